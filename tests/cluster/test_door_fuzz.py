"""Random requests to the door: it never answers 500, and passes nothing on that it could not parse."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from goatherd.door.limits import DoorLimits
from goatherd.door.request_checks import RefusedError, read_batch
from goatherd.serving.caller_limits import Rate
from tests.cluster.door_world import X, world
from tests.unit.goats import commit_by, element, signed_header

pytestmark = pytest.mark.slow

FREE = Rate(per_second=1e6, burst=1e6)
LIMITS = DoorLimits(requests=FREE, session_requests=FREE, new_sessions=FREE, mails=FREE, new_repositories=FREE)
COMMIT = commit_by(X, "k", {"text": "x"}).to_json()

LEAF = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
VALUE = st.recursive(
    LEAF, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
)


@st.composite
def batches(draw: st.DrawFn) -> Any:
    """A batch that is right but for a few members somewhere in it."""
    batch: Any = [element(draw(st.sampled_from(["/data/a", "/sys/sessions", "/x"])), [dict(COMMIT)])]
    for _ in range(draw(st.integers(0, 3))):
        place = batch
        while isinstance(place, dict | list) and place:
            name = draw(st.sampled_from(sorted(place)) if isinstance(place, dict) else st.integers(0, len(place) - 1))
            if draw(st.booleans()) or not isinstance(place[name], dict | list) or not place[name]:
                place[name] = draw(VALUE)
                break
            place = place[name]
    return batch


BODIES = st.binary(max_size=80) | st.builds(lambda value: json.dumps(value).encode(), VALUE | batches())
HEADERS = st.sampled_from(["", "!", "aaaaaaaa", signed_header(X)]) | st.text("abc234=_", max_size=20)
LINES = st.sampled_from([b"GET / HTTP/1.1\r\n", b"host: h\r\n", b"\r\n"])
PATHS = st.sampled_from(["/batch-sync", "/auth/session", "/auth/send-login-email", "/BATCH-SYNC", "/nope"])


@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=60)
@given(st.lists(st.tuples(PATHS, HEADERS, BODIES), min_size=1, max_size=15))
def test_no_request_is_a_500_and_none_arrives_that_was_not_understood(requests: list[tuple[str, str, bytes]]) -> None:
    async def go() -> None:
        async with world(limits=LIMITS) as w:
            for path, header, body in requests:
                fields = {"x-goat-sig": header} if header else {}
                w.child.reached.clear()
                response = await w.http.post(w.door.url + path, content=body, headers=fields)
                assert response.status_code != 500
                assert response.status_code in {200, 400, 403, 404}
                for _, target, arrived in w.child.reached:
                    if target.lower() == "/batch-sync":
                        _readable(arrived)
                assert w.child.died is None
                assert not w.child.hung
            assert w.door.status.requests == 0

    asyncio.run(go())


def _readable(body: bytes) -> None:
    try:
        read_batch(body, LIMITS)
    except RefusedError as error:
        raise AssertionError(f"{error}: {body!r}") from error


@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=60)
@given(
    st.lists(st.binary(max_size=300) | st.sampled_from([b"GET / HTTP/1.1\r\n", b"host: h\r\n", b"\r\n"]), max_size=8)
)
def test_no_bytes_at_all_make_a_500(parts: list[bytes]) -> None:
    async def go() -> None:
        async with world(limits=LIMITS) as w:
            reader, writer = await asyncio.open_connection("127.0.0.1", w.door.port)
            for part in parts:
                writer.write(part)
            writer.write_eof()
            async with asyncio.timeout(60):
                assert b"HTTP/1.1 500" not in await reader.read()
            writer.close()

    asyncio.run(go())
