"""The budget of each caller, and `goatherd serve` behind it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest

from goatherd.clock import SystemClock
from goatherd.cluster.client import NodeClient
from goatherd.errors import ConfigurationError
from goatherd.identity.session import OwnedSession, sign_request
from goatherd.ids import new_id
from goatherd.node import Server, ServerListener
from goatherd.serving.caller_limiter import (
    LONGEST_PAUSE,
    SMALL_BODY,
    SPARE_PART,
    UNLISTED,
    Budget,
    CallerLimiter,
    GoneError,
    Share,
)
from goatherd.serving.caller_limits import CallerLimits, Excess, Rate, RefusedError
from tests.deadlines import ANSWER, HANG
from tests.unit.node.nodes import document_of, now_ms, root, settings_of, store_of

FEW = Rate(per_second=0.001, burst=2)
KEY = {"publicKey": OwnedSession.generate(session_id="new", owner=None, now_ms=now_ms()).session.public_key.to_jwk()}


@asynccontextmanager
async def serving(
    directory: Path,
    limits: CallerLimits | None = None,
    forwarded_by: tuple[str, ...] = (),
    clock: SystemClock | None = None,
) -> AsyncIterator[tuple[Server, OwnedSession, httpx2.AsyncClient]]:
    signer = root("the-root")
    settings = settings_of(await store_of(document_of(signer)))
    server = Server(directory, settings, debug=True, limits=limits, forwarded_by=forwarded_by, clock=clock)
    async with (
        server,
        ServerListener(server) as listener,
        httpx2.AsyncClient(base_url=listener.url, verify=False, timeout=HANG) as http,
    ):
        yield server, signer, http


async def spoken(http: httpx2.AsyncClient, sent: bytes) -> bytes:
    """Send bytes without ending the request, and return the first line of the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", http.base_url.port)
    try:
        async with asyncio.timeout(HANG):
            writer.write(sent)
            return await reader.readline()
    finally:
        writer.close()


def head(path: str, *fields: str) -> bytes:
    return "\r\n".join([f"POST {path} HTTP/1.1", "host: h", *fields, "", ""]).encode()


# --- bytes and time ---------------------------------------------------------------------------------------------------


async def test_a_body_below_auth_has_16_kib(tmp_path: Path) -> None:
    async with serving(tmp_path) as (server, _, http):
        assert (await http.post("/auth/session", json={**KEY, "x": "x" * 15_000})).status_code == 200
        refused = await http.post("/auth/session", json={**KEY, "x": "x" * 17_000})
        assert (refused.status_code, refused.content) == (413, b"")
        assert server.stopped[Excess.TOO_LARGE] == 1
        # The announced length counts before a byte of the body has arrived.
        assert b" 413 " in await spoken(http, head("/AUTH/Session", "content-length: 60000000"))


@pytest.mark.parametrize("path", ["/batch-sync", "/goatherd/v1/held", "/goatherd/v1/frozen"])
@pytest.mark.parametrize("framing", ["content-length: 60000000", "transfer-encoding: chunked"])
async def test_a_large_body_is_read_only_for_a_good_signature(tmp_path: Path, path: str, framing: str) -> None:
    async with serving(tmp_path) as (_, signer, http):
        stranger = sign_request(root("stranger"), now_ms=now_ms(), nonce=new_id())
        assert b" 403 " in await spoken(http, head(path, framing, f"x-goat-sig: {stranger}"))
        good = sign_request(signer, now_ms=now_ms(), nonce=new_id())
        large = b"[%s]" % (b" " * 100_000)
        assert (await http.post("/batch-sync", content=large, headers={"x-goat-sig": good})).status_code == 200


async def test_a_body_that_stops_coming_is_408_and_its_memory_comes_back(tmp_path: Path) -> None:
    limits = CallerLimits(body_timeout=timedelta(milliseconds=50), body_rate=1 << 30)
    async with serving(tmp_path, limits) as (server, signer, http):
        good = sign_request(signer, now_ms=now_ms(), nonce=new_id())
        sent = head("/batch-sync", "content-length: 60000000", f"x-goat-sig: {good}") + b" " * 30_000
        assert b" 408 " in await spoken(http, sent)
        assert b" 408 " in await spoken(http, head("/auth/session", "content-length: 10"))
        assert server.stopped[Excess.TOO_SLOW] == 2
        server.limiter.open_share("another").take(limits.buffered_bytes // 2)


def test_one_address_does_not_take_all_the_memory_for_bodies() -> None:
    budget = Budget(100, 50)
    first, second = Share(budget, "a"), Share(budget, "a")
    first.take(30)
    second.take(20)
    with pytest.raises(RefusedError) as refused:
        second.take(1)
    assert (refused.value.status, refused.value.retry_after) == (503, 1)
    other = Share(budget, "b")
    other.take(50)
    with pytest.raises(RefusedError):
        Share(budget, "c").take(1)
    moved = first.move()
    assert (first.give_back(), moved.give_back(), second.give_back(), other.give_back()) == (0, 30, 20, 50)
    assert not budget._held


def test_small_bodies_have_room_when_large_ones_have_taken_the_memory() -> None:
    """A large body may arrive slowly for hours, and a few of them are enough."""
    limits = CallerLimits()
    limiter = CallerLimiter(limits, clock=SystemClock())
    for address in ("a", "b"):
        for _ in range(2):
            limiter.open_share(address).take(limits.body_bytes)
    for address in ("a", "c"):
        poll = limiter.open_share(address)
        poll.take(10_000)
        with pytest.raises(RefusedError):
            poll.take(100_000)
        poll.give_back()
    with pytest.raises(RefusedError):
        limiter.open_share("c").take(100_000)
    for number in range(limits.buffered_bytes // SPARE_PART // SMALL_BODY):
        limiter.open_share(f"caller {number}").take(SMALL_BODY)
    with pytest.raises(RefusedError):
        limiter.open_share("c").take(1)


def test_the_address_that_holds_most_makes_room_for_others() -> None:
    reports: list[tuple[Excess, str]] = []
    budget = Budget(100, 60, report=lambda excess, why: reports.append((excess, why)))
    dropped: list[str] = []
    shares = {
        name: Share(budget, name[0], partial(dropped.append, name)) for name in ("a-started", "a1", "a2", "b1", "c1")
    }
    with ExitStack() as waiting:
        for name, count in (("a-started", 0), ("a1", 30), ("a2", 30), ("b1", 40)):
            waiting.enter_context(shares[name].waiting())
            shares[name].take(count)
        shares["c1"].take(20)
        assert dropped == ["a1"], "the oldest request of a that holds memory"
        assert [excess for excess, _ in reports] == [Excess.TOO_SLOW]
        assert reports[0][1].startswith("a holds")
        with pytest.raises(GoneError):
            shares["a1"].take(1)
        shares["c1"].take(15)
        assert dropped == ["a1", "b1"], "b holds most now"
        shares["a2"].take(10)
        with pytest.raises(RefusedError):
            Share(budget, "d").take(40)
        assert dropped == ["a1", "b1"], "d would hold as much as the one that holds most"
    with pytest.raises(RefusedError):
        Share(budget, "d").take(30)
    assert dropped == ["a1", "b1"], "work that has begun is not dropped"
    for share in shares.values():
        share.give_back()
    assert not budget._held


async def test_a_slow_body_is_dropped_when_another_address_needs_its_memory() -> None:
    limiter = CallerLimiter(CallerLimits(), clock=SystemClock())
    size = limiter.limits.buffered_bytes // 2
    is_aborted = asyncio.Event()
    is_waiting = asyncio.Event()
    parts = iter([{"type": "http.request", "body": b"x" * size, "more_body": True}])

    async def receive() -> dict[str, Any]:
        for part in parts:
            return part
        is_waiting.set()
        await is_aborted.wait()
        return {"type": "http.disconnect"}

    with limiter.open_share("a", is_aborted.set) as slow, limiter.open_share("b") as read:
        reading = asyncio.create_task(limiter.read_body(receive, {}, slow, size * 2))
        await is_waiting.wait()
        read.take(size)
        with limiter.open_share("c") as small:
            small.take(size // 2)
        with pytest.raises(GoneError):
            await reading


# --- how often --------------------------------------------------------------------------------------------------------


async def test_one_address_makes_so_many_sessions_and_no_more(tmp_path: Path) -> None:
    async with serving(tmp_path, CallerLimits(new_sessions=FEW)) as (server, _, http):
        answers = [await http.post("/auth/session", json=KEY) for _ in range(4)]
        assert [answer.status_code for answer in answers] == [200, 200, 429, 429]
        assert int(answers[-1].headers["retry-after"]) > 1
        assert len(server.database().engine.get_repository("/sys/sessions")) == 2
        assert server.stopped[Excess.TOO_MANY] == 2


async def test_addresses_are_counted_apart_where_a_named_proxy_tells_them(tmp_path: Path) -> None:
    async with serving(tmp_path, CallerLimits(new_sessions=FEW), ("127.0.0.0/8",)) as (_, _, http):
        for caller in ("192.0.2.1", "192.0.2.2"):
            fields = {"x-forwarded-for": f"spoofed, {caller}"}
            codes = [(await http.post("/auth/session", json=KEY, headers=fields)).status_code for _ in range(3)]
            assert codes == [200, 200, 429]


@pytest.mark.parametrize(
    "limits", [CallerLimits(requests=FEW), CallerLimits(new_sessions=FEW)], ids=["requests", "new"]
)
async def test_a_proxy_that_is_not_named_is_pointed_out_where_it_meets_a_limit(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, limits: CallerLimits
) -> None:
    async with serving(tmp_path, limits) as (_, _, http):
        codes = [
            (await http.post("/auth/session", json=KEY, headers={"x-forwarded-for": f"192.0.2.{number}"})).status_code
            for number in range(4)
        ]
        assert codes == [200, 200, 429, 429]
    lines = [record.getMessage() for record in caplog.records if "node.request_stopped" in record.getMessage()]
    assert len(lines) == 1, "one line a minute"
    assert "rule=too-many" in lines[0]
    assert "--forwarded-by" in lines[0]


async def test_a_malformed_request_for_a_session_is_not_charged_to_its_address(tmp_path: Path) -> None:
    async with serving(tmp_path, CallerLimits(new_sessions=FEW)) as (_, _, http):
        for junk in ({}, {"publicKey": {}}, [], {"publicKey": 1}, {"publicKey": {**KEY["publicKey"], "d": "x"}}):
            assert (await http.post("/auth/session", json=junk)).status_code == 400
        codes = [(await http.post("/auth/session", json=KEY)).status_code for _ in range(3)]
        assert codes == [200, 200, 429]


def test_the_proxies_that_are_not_named_take_little_memory() -> None:
    limiter = CallerLimiter(CallerLimits(), clock=SystemClock())
    for number in range(UNLISTED + 10):
        client = (f"10.0.{number // 256}.{number % 256}", 1)
        limiter.take_request({"client": client, "headers": [(b"x-forwarded-for", b"192.0.2.1")]})
    assert len(limiter._unlisted) == UNLISTED


async def test_an_office_behind_one_address_meets_no_limit() -> None:
    """Three hundred clients start within a minute; each creates a session and polls three times a second."""
    limiter = CallerLimiter(CallerLimits(), clock=(clock := Turned()))
    scope: dict[str, Any] = {"client": ("203.0.113.7", 1), "headers": []}
    clients = 300
    assert all(limiter.count_connection("203.0.113.7", partial(int, number)) for number in range(3 * clients)), (
        "a browser opens several"
    )
    for second in range(60):
        clock.at = float(second)
        for number in range(clients):
            if number % 60 == second:
                limiter.take_session(limiter.take_request(scope))
            if number % 60 <= second:
                for _ in range(3 if number % 2 else 0):
                    limiter.take_request(scope)


async def test_only_the_session_with_too_many_requests_is_delayed_and_then_rejected(tmp_path: Path) -> None:
    pauses: list[float] = []

    class Noting(SystemClock):
        async def sleep(self, duration: timedelta) -> None:
            if duration.total_seconds() > LONGEST_PAUSE:
                await super().sleep(duration)
            else:
                pauses.append(duration.total_seconds())

        def monotonic(self) -> float:
            return 0.0  # However slow the machine is, no allowance grows back while the test runs.

    limits = CallerLimits(session_requests=Rate(per_second=1, burst=5))
    async with serving(tmp_path, limits, clock=Noting()) as (server, signer, http):

        async def ask(who: OwnedSession) -> int:
            return (await http.post("/batch-sync", json=[], headers={"x-goat-sig": named(who)})).status_code

        client = NodeClient(str(http.base_url), http=http, timeout=ANSWER)
        greedy, modest = [await client.create_session() for _ in range(2)]
        forger = OwnedSession.generate(session_id=modest[0].id, owner=None, now_ms=now_ms())
        assert [await ask(forger) for _ in range(20)] == [403] * 20
        before = len(pauses)
        assert [await ask(signer) for _ in range(20)] == [200] * 20, "the servers of a cluster share a root"
        assert [await ask(modest[0]) for _ in range(5)] == [200] * 5, "no other caller has used up what it may send"
        assert [await ask(greedy[0]) for _ in range(5)] == [200] * 5
        assert len(pauses) == before
        codes = [await ask(greedy[0]) for _ in range(6)]
        assert codes[:3] == [200, 200, 200]
        assert codes[-1] == 429
        assert sorted(pauses[before:]) == pauses[before:]
        assert max(pauses) <= LONGEST_PAUSE
        refused = await http.post("/batch-sync", content=b"[" * 100, headers={"x-goat-sig": named(greedy[0])})
        assert (refused.status_code, int(refused.headers["retry-after"]) >= 3) == (429, True), "its body is not read"
        assert server.stopped[Excess.TOO_MANY] == codes.count(429) + 1
        text = (await http.get("/goatherd/v1/metrics")).text
        assert f'goatherd_paused_total{{cause="requests"}} {server.limiter.paused_count}.0' in text
        assert server.limiter.paused_count >= 3
        # All at once, before the first is counted: no more than what would come back within the longest pause.
        burst = await asyncio.gather(*[ask(modest[0]) for _ in range(30)])
        assert burst.count(200) <= 4


def named(session: OwnedSession) -> str:
    return sign_request(session, now_ms=now_ms(), nonce=new_id())


async def test_a_client_at_full_speed_is_never_slowed_down() -> None:
    """GoatDB sends one request at a time, at most one every 0.2 s; here from five windows of a browser at once."""
    limiter = CallerLimiter(CallerLimits(), clock=(clock := Turned()))
    for tick in range(5 * 600):
        clock.at = tick / 5
        for _ in range(5):
            await limiter.pause_request("session")
            limiter.take_request_of("session")
    assert limiter.paused_count == 0


class Turned(SystemClock):
    def __init__(self) -> None:
        self.at = 0.0

    def monotonic(self) -> float:
        return self.at


def test_a_network_that_is_none_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match="forwarded_by"):
        CallerLimiter(CallerLimits(), clock=SystemClock(), forwarded_by=["10.0.0.0/99"])


async def test_an_address_with_fewer_connections_gets_in_and_the_oldest_of_the_address_with_most_goes(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path, CallerLimits(connections=4)) as (server, _, http):

        async def connect(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
            reader, writer = await asyncio.open_connection("127.0.0.1", http.base_url.port, local_addr=(address, 0))
            writer.write(b"GET /healthy HTTP/1.1\r\nhost: h\r\n\r\n")
            return reader, writer

        async with asyncio.timeout(HANG):
            greedy = [await connect("127.0.0.2") for _ in range(4)]
            assert [(await reader.readline())[9:12] for reader, _ in greedy] == [b"200"] * 4
            others = [await connect(f"127.0.0.{number}") for number in (3, 4)]
            assert [(await reader.readline())[9:12] for reader, _ in others] == [b"200"] * 2
            for reader, _ in greedy[:2]:
                with contextlib.suppress(ConnectionError):
                    await reader.read()
            others.append(await connect("127.0.0.2"))
            assert (await others[-1][0].readline())[9:12] == b"503", "it still has most"
            assert server.limiter.connection_count <= 5
            for _, writer in (*greedy, *others):
                writer.close()
                with contextlib.suppress(ConnectionError):
                    await writer.wait_closed()


def test_a_proxy_that_reaches_a_listener_on_all_addresses_by_ipv4_is_known() -> None:
    limits = CallerLimits(connections=3, connections_per_address=1)
    limiter = CallerLimiter(limits, clock=SystemClock(), forwarded_by=["10.0.0.0/8"])
    assert [limiter.count_connection("::ffff:10.0.0.5", partial(int, number)) for number in range(4)] == [
        True,
        True,
        True,
        False,
    ]
    scope = {"client": ("::ffff:10.0.0.5", 1), "headers": [(b"x-forwarded-for", b"192.0.2.1")]}
    assert limiter.take_request(scope) == "192.0.2.1"
