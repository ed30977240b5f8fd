"""No request holds the event loop of a server or of the door for long, signed or not, whatever its body is.

Of requests without a valid signature, the work is counted. Of all others, the processor time of each callback on the
event loop is measured, in the loop's own thread: the client, the threads that decode and verify, and the server behind
the door do not count, and neither does a machine that is busy elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import http.client
import json
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from itertools import islice, product
from pathlib import Path
from urllib.parse import urlsplit

import orjson
import pytest

from goatherd.door.door import Door
from goatherd.door.limits import DoorLimits
from goatherd.door.trusted_sessions import TrustedSessions
from goatherd.serving.caller_limits import CallerLimits, Rate
from goatherd.wire.base32 import base32_encode
from tests.cluster.door_world import A, X, identity
from tests.deadlines import HANG
from tests.depth import STRIDE
from tests.fakes.upstream_child import UpstreamChild
from tests.hostile.shapes import SHAPES, inside
from tests.unit.goats import ORG, commit_by, element, owned, root, signed_header
from tests.unit.node.nodes import cluster, document_of, now_ms

LONGEST = 0.05
"""Seconds of the processor that one callback may take."""
SIZE = 512 * 1024
FREE = Rate(per_second=1e6, burst=1e6)
"""The door's limits on how often a client asks, which are not what is tested here."""


CALLS = 8000
"""Function calls that the request of a caller without a session may take on the event loop: a few milliseconds."""
PARSED = 20 * 1024
"""Bytes of JSON that may be parsed for it: 2 ms, whatever they hold."""


class Work:
    """The function calls in this thread since `begin`, and the bytes of JSON that were parsed."""

    def __init__(self) -> None:
        self.calls = self.parsed = 0

    def begin(self) -> None:
        self.calls = self.parsed = 0

    @contextlib.contextmanager
    def watched(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        def count(_: object, event: str, __: object) -> None:
            self.calls += event in ("call", "c_call")

        def loads(text: bytes | str) -> object:
            self.parsed += len(text)
            return parse(text)

        parse = orjson.loads
        monkeypatch.setattr(orjson, "loads", loads)
        sys.setprofile(count)
        try:
            yield
        finally:
            sys.setprofile(None)


class Longest:
    """The longest callback of the event loop of this thread since `begin`."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.what = ""

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        run, thread = asyncio.events.Handle._run, threading.get_ident()

        def timed(handle: asyncio.Handle) -> None:
            if threading.get_ident() != thread:
                run(handle)
                return
            begun = time.thread_time()
            what = repr(handle)[:300] if self.seconds == 0.0 else ""
            try:
                run(handle)
            finally:
                spent = time.thread_time() - begun
                if spent > self.seconds:
                    self.seconds, self.what = spent, what or repr(handle)[:300]

        asyncio.events.Handle._run = timed  # type: ignore[method-assign]
        try:
            yield
        finally:
            asyncio.events.Handle._run = run  # type: ignore[method-assign]

    def begin(self) -> None:
        self.seconds, self.what = 0.0, ""


def post(url: str, path: str, body: bytes, header: str | None) -> int:
    """Send one request and return its status; 0 when the connection was closed on it."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=HANG)
    try:
        connection.request("POST", path, body, {"x-goat-sig": header} if header else {})
        response = connection.getresponse()
        response.read()
        return response.status
    except (ConnectionError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


def bodies(author: object) -> Iterator[tuple[str, str, bytes]]:
    """Yield requests: a description, the path, and the body."""
    note = commit_by(author, "k", {"text": "x"}, ts=now_ms()).to_json()  # type: ignore[arg-type]
    batch = json.dumps([element("/data/a", [note])]).encode()
    key = json.dumps({"publicKey": owned("draft").session.public_key.to_jwk()}).encode()
    samples = (("/batch-sync", batch), ("/auth/session", key), ("/auth/send-login-email", b'{"email":"a@b"}'))
    places = [(path, *place) for path, sample in samples for place in inside(sample)]
    for (path, place, put), (name, shape) in islice(product(places, SHAPES.items()), 0, None, STRIDE):
        yield f"{name} {place}", path, put(shape(SIZE))
    many = [note] * 1000
    yield "one commit a thousand times", "/batch-sync", json.dumps([element("/data/a", many)]).encode()
    yield (
        "a thousand elements",
        "/batch-sync",
        json.dumps([element(f"/data/r{i}", [note]) for i in range(1000)]).encode(),
    )


async def dearest(url: str, author: object) -> list[str]:
    """Send every body, signed and unsigned; return those that held the loop for too long."""
    longest, wrong, sent = Longest(), [], 0
    gc.collect()
    gc.freeze()
    with longest.watched():
        for what, path, body in bodies(author):
            for header in (signed_header(author, now_ms()), None):  # type: ignore[arg-type]
                for _ in range(3):
                    longest.begin()
                    status = await asyncio.to_thread(post, url, path, body, header)
                    if longest.seconds <= LONGEST:
                        break
                else:
                    wrong.append(f"{1000 * longest.seconds:.0f} ms, {what} to {path}, {longest.what}")
                assert status != 500, what
                sent += 1
    gc.unfreeze()
    assert sent > 1000 // STRIDE
    return wrong


def forged_header(session_id: str, data: str) -> str:
    """Return a signature string with the right session, time and form that nobody has signed, which embeds `data`."""
    text = f'{{"i":"{session_id}","s":"{base32_encode(bytes(96))}","ts":1,"d":{{"id":"a","ts":{now_ms()},"x":{data}}}}}'
    return base32_encode(text.encode())


def unsigned_requests(session_id: str) -> Iterator[tuple[str, str, bytes, str | None]]:
    """Yield the dearest requests of a caller without a session: what they are, path, body and header."""
    lists = "[" + ",".join(["[]"] * 20_000) + "]"
    elements = json.dumps([element("/data/a")] * 400)
    forged = forged_header(session_id, "0")
    for size in (16_000, 60_000):
        for body in (lists, elements, "1," * 30_000):
            yield f"{size} bytes of {body[:9]}", "/batch-sync", f"[{body[:size].rpartition(',')[0]}]".encode(), forged
    yield "a large signature", "/batch-sync", b"[]", forged_header(session_id, lists[:36_000].rpartition(",")[0] + "]")
    small = lists[:16_000].rpartition(",")[0] + "]"
    yield "lists for a session", "/auth/session", small.encode(), None
    yield "a key of lists", "/auth/session", f'{{"publicKey":{{"x":{small}}}}}'.encode(), None
    for name in ("email", "signature"):
        mail = {"email": "a@b", "signature": forged, name: "\u00e9" * 2000}
        yield f"a mail with a long {name}", "/auth/send-login-email", json.dumps(mail).encode(), None


async def costly(url: str, session_id: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Send every unsigned request; return those that take more work than a caller without a session may cause."""
    work, wrong = Work(), []
    await asyncio.to_thread(post, url, "/batch-sync", b"[]", None)
    with work.watched(monkeypatch):
        for what, path, body, header in unsigned_requests(session_id):
            work.begin()
            status = await asyncio.to_thread(post, url, path, body, header)
            assert 400 <= status < 500, (what, status)
            if work.calls > CALLS or work.parsed > PARSED:
                wrong.append(f"{what} to {path}: {work.calls} calls, {work.parsed} bytes parsed")
    return wrong


@pytest.mark.slow
async def test_a_caller_without_a_session_causes_little_work_at_a_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signer = root("root-a", expiration_ms=now_ms() + 30 * 86_400_000)
    async with cluster(tmp_path, 1, [document_of(signer)], links=lambda _: []) as (node,):
        wrong = await costly(node.url, signer.id, monkeypatch)
    assert not wrong, "\n".join(wrong)


@pytest.mark.slow
async def test_a_caller_without_a_session_causes_little_work_at_the_door(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving_in_a_thread() as server, door_before(server) as door:
        wrong = await costly(door.url, X.id, monkeypatch)
    assert not wrong, "\n".join(wrong)


@contextlib.asynccontextmanager
async def serving_in_a_thread() -> AsyncIterator[UpstreamChild]:
    """Yield a stand-in for a GoatDB server that runs in another thread, which is not measured."""
    stop, ready = threading.Event(), threading.Event()
    started: list[UpstreamChild] = []

    async def child() -> None:
        async with UpstreamChild(A) as server:
            server.introduce(X.session)
            started.append(server)
            ready.set()
            await asyncio.to_thread(stop.wait)

    thread = threading.Thread(target=lambda: asyncio.run(child()))
    thread.start()
    try:
        await asyncio.to_thread(ready.wait, HANG)
        yield started[0]
    finally:
        stop.set()
        thread.join(HANG)


@contextlib.asynccontextmanager
async def door_before(server: UpstreamChild) -> AsyncIterator[Door]:
    limits = DoorLimits(requests=FREE, session_requests=FREE, new_sessions=FREE, mails=FREE, new_repositories=FREE)
    trust = TrustedSessions(org=ORG, identity=identity())
    async with Door(upstream=server.url, trust=trust, limits=limits) as door:
        await trust.refresh()
        yield door


@pytest.mark.deep
async def test_no_request_holds_the_loop_of_a_server(tmp_path: Path) -> None:
    signer = root("root-a", expiration_ms=now_ms() + 30 * 86_400_000)
    limits = CallerLimits(session_requests=FREE)
    async with cluster(tmp_path, 1, [document_of(signer)], links=lambda _: [], limits=limits) as (node,):
        user, _ = await node.client.create_session()
        wrong = await dearest(node.url, user)
    assert not wrong, "\n".join(wrong[:20])


@pytest.mark.deep
async def test_no_request_holds_the_loop_of_the_door() -> None:
    async with serving_in_a_thread() as server, door_before(server) as door:
        wrong = await dearest(door.url, X)
    assert not wrong, "\n".join(wrong[:20])
