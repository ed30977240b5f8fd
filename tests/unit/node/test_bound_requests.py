"""A signed request is valid at one server, for one endpoint and one body, once; no other server can use it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest

from goatherd.clock import SystemClock
from goatherd.cluster.client import INSTANCE_HEADER, NodeClient
from goatherd.cluster.process_mark import leave_mark
from goatherd.errors import (
    InvalidSignatureError,
    NodeRefusedError,
    NodeUnreachableError,
    OtherServerError,
    ReplayedRequestError,
)
from goatherd.identity import request_binding
from goatherd.identity.document import encode_document
from goatherd.identity.request_binding import (
    MISDIRECTED,
    RequestBinding,
    RequestGuard,
    read_binding,
    sign_bound_request,
)
from goatherd.identity.session import OwnedSession, parse_signature, sign_data, sign_request
from goatherd.ids import new_id
from goatherd.node import Server, ServerListener
from goatherd.providers.memory import MemorySecretProvider, MemoryStore
from goatherd.rotation.machine import Outcome
from goatherd.rotation.policy import Policy
from goatherd.rotation.rotator import Rotator
from goatherd.settings.store import CloudSecretSettings
from tests.deadlines import ANSWER, HANG

from .nodes import SECRET, document_of, now_ms, root, settings_of, store_of

ENDPOINTS = ("/batch-sync", "/goatherd/v1/refresh", "/goatherd/v1/held", "/goatherd/v1/lacking", "/goatherd/v1/frozen")
NOW = 1_795_529_337_420


def http_of(server: Server) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(server.app), base_url="http://node", verify=False)


@contextlib.asynccontextmanager
async def two_servers(top: Path, signer: OwnedSession) -> AsyncIterator[tuple[httpx2.AsyncClient, httpx2.AsyncClient]]:
    """Two servers that trust one root: an honest one, and one that an attacker controls."""
    provider = await store_of(document_of(signer))
    async with (
        Server(top / "honest", settings_of(provider), debug=True) as honest,
        Server(top / "broken", settings_of(provider), debug=True) as broken,
        http_of(honest) as at_honest,
        http_of(broken) as at_broken,
    ):
        yield at_honest, at_broken


Taken = tuple[str, bytes, str]


def tapped(http: httpx2.AsyncClient, taken: list[Taken]) -> NodeClient:
    """Return an operator's client to a server that records the requests that it accepts."""

    async def carry(request: httpx2.Request) -> httpx2.Response:
        answer = await http.request(request.method, request.url.path, content=request.content, headers=request.headers)
        if answer.status_code != MISDIRECTED:
            taken.append((request.url.path, request.content, request.headers["x-goat-sig"]))
        return httpx2.Response(answer.status_code, headers=dict(answer.headers), content=answer.content)

    return NodeClient("http://node", http=httpx2.AsyncClient(transport=httpx2.MockTransport(carry)))


async def send(http: httpx2.AsyncClient, path: str, body: bytes, header: str) -> int:
    return (await http.post(path, content=body, headers={"x-goat-sig": header})).status_code


async def test_a_server_cannot_use_what_an_operator_has_sent_it(tmp_path: Path) -> None:
    signer = root()
    taken: list[Taken] = []
    async with two_servers(tmp_path, signer) as (honest, broken):
        operator = tapped(broken, taken)
        await operator.batch_sync([], signer)
        assert (await operator.refresh(signer) or {})["generation"] == 1
        await operator.held("a-root", signer, early=True)
        await operator.lacking("/sys/sessions", ["x"], signer)
        await operator.keep_frozen(b"", signer)
        assert [path for path, _, _ in taken] == list(ENDPOINTS)
        for path, body, header in taken:
            assert await send(honest, path, body, header) == MISDIRECTED, "at another server"
            for elsewhere in ENDPOINTS:
                other = b"[ ]" if elsewhere == "/batch-sync" else b"{}"
                assert await send(honest, elsewhere, other, header) == 403, "at another server, with another body"
                assert await send(broken, elsewhere, other, header) == 403, "with another body"
            assert await send(broken, path, body, header) == 403, "a second time"


async def test_only_goatdbs_own_endpoint_takes_a_roots_request_that_names_no_server(tmp_path: Path) -> None:
    signer = root()
    bodies = {"/batch-sync": b"[]", "/goatherd/v1/held": b'{"session":"x","early":true}'}
    async with two_servers(tmp_path, signer) as (honest, _):
        for path in ENDPOINTS:
            header = sign_request(signer, now_ms=now_ms(), nonce=new_id())
            status = await send(honest, path, bodies.get(path, b""), header)
            assert status == (200 if path == "/batch-sync" else 403), path


async def test_a_request_that_names_no_server_is_told_whom_to_name(tmp_path: Path) -> None:
    signer = root()
    async with two_servers(tmp_path, signer) as (honest, _):
        binding = RequestBinding.for_request("POST", "/batch-sync", b"[]")
        header = sign_bound_request(signer, binding, now_ms=now_ms(), nonce=new_id())
        answer = await honest.post("/batch-sync", content=b"[]", headers={"x-goat-sig": header})
        identity = (await honest.get("/goatherd/v1/identity")).json()
        assert (answer.status_code, answer.headers[INSTANCE_HEADER]) == (MISDIRECTED, identity["instance"])
        forged = header[:-8] + "aaaaaaaa"
        assert await send(honest, "/batch-sync", b"[]", forged) == 403


async def test_what_marks_an_unmodified_servers_process_is_of_no_use_at_another_server(tmp_path: Path) -> None:
    signer = root()
    async with two_servers(tmp_path, signer) as (honest, _):
        kept: list[str] = []

        class Thief:
            async def accepts_signature(self, signature: str) -> bool:
                kept.append(signature)
                return len(kept) == 3

        assert await leave_mark(Thief(), signer, now_ms()) is not None
        for signature in kept:
            assert await send(honest, "/batch-sync", b"[]", signature) == MISDIRECTED


# --- the client -----------------------------------------------------------------------------------------------------


async def test_behind_one_url_there_may_be_several_servers_in_turn(tmp_path: Path) -> None:
    signer = root()
    async with two_servers(tmp_path, signer) as servers:
        turns = itertools.cycle(servers)

        async def carry(request: httpx2.Request) -> httpx2.Response:
            http = next(turns)
            answer = await http.post(request.url.path, content=request.content, headers=request.headers)
            return httpx2.Response(answer.status_code, headers=dict(answer.headers), content=answer.content)

        client = NodeClient("http://node", http=httpx2.AsyncClient(transport=httpx2.MockTransport(carry)))
        for _ in range(4):
            await client.refresh(signer)
            assert await client.answers(signer)


@pytest.mark.parametrize(
    ("instances", "requests"),
    [(["same"], 2), ([""], 1), (["not an id"], 1), ([f"x{number}" for number in range(99)], 9)],
    ids=["the same", "none", "nonsense", "ever another one"],
)
async def test_a_server_that_never_takes_a_request_refuses_it(instances: list[str], requests: int) -> None:
    seen: list[httpx2.Request] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        seen.append(request)
        instance = instances[min(len(seen), len(instances)) - 1]
        return httpx2.Response(MISDIRECTED, headers={INSTANCE_HEADER: instance} if instance else {})

    client = NodeClient("http://node", http=httpx2.AsyncClient(transport=httpx2.MockTransport(answer)))
    with pytest.raises(NodeRefusedError) as refusal:
        await client.refresh(root())
    assert (refusal.value.status, len(seen)) == (MISDIRECTED, requests)


async def test_signing_again_is_within_the_deadline_of_the_request() -> None:
    count = itertools.count()

    async def answer(_: httpx2.Request) -> httpx2.Response:
        await asyncio.sleep(0.06)
        return httpx2.Response(MISDIRECTED, headers={INSTANCE_HEADER: f"x{next(count)}"})

    http = httpx2.AsyncClient(transport=httpx2.MockTransport(answer))
    client = NodeClient("http://node", http=http, timeout=timedelta(seconds=0.1))
    with pytest.raises(NodeUnreachableError, match=r"no answer within 0\.1 s"):
        await client.refresh(root())
    assert next(count) < 3


# --- the guard ------------------------------------------------------------------------------------------------------


def arrive(guard: RequestGuard, signer: OwnedSession, nonce: str, *, signed_ms: int = NOW, now_ms: int = NOW) -> str:
    binding = RequestBinding.for_request("POST", "/x", b"", ["here"])
    header = sign_bound_request(signer, binding, now_ms=signed_ms, nonce=nonce)
    accept(guard, header, now_ms)
    return header


def accept(guard: RequestGuard, header: str, now_ms: int) -> None:
    envelope = parse_signature(header)
    digest = request_binding.digest_body(b"")
    guard.check_request(
        envelope, read_binding(envelope), method="POST", path="/x", digest=digest, is_root=True, now_ms=now_ms
    )


def test_a_request_is_remembered_for_as_long_as_its_signature_counts() -> None:
    guard, signer = RequestGuard(lambda: "here"), root()
    ahead = arrive(guard, signer, "ahead", signed_ms=NOW + 180_000)
    behind = arrive(guard, signer, "behind", signed_ms=NOW - 180_000)
    for now in range(NOW, NOW + 361_000, 30_000):
        with pytest.raises(ReplayedRequestError):
            accept(guard, ahead, min(now, NOW + 360_000))
    with pytest.raises(ReplayedRequestError):
        accept(guard, behind, NOW)
    arrive(guard, signer, "later", now_ms=NOW + 361_000)
    assert [len(each) for each in guard._accepted.values()] == [1], "what no longer counts is forgotten"


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_binding, "_MAX_NONCES", 3)
    guard, signer = RequestGuard(lambda: "here"), root()
    for nonce in "abc":
        arrive(guard, signer, nonce)
    with pytest.raises(ReplayedRequestError, match="too many"):
        arrive(guard, signer, "d")
    arrive(guard, root(), "d")  # another root's requests are not counted with it
    arrive(guard, signer, "d", now_ms=NOW + 181_000)
    with pytest.raises(InvalidSignatureError, match="too long"):
        arrive(guard, signer, "n" * 65, now_ms=NOW + 181_000)


def test_after_the_clock_was_set_back_what_no_longer_counts_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_binding, "_MAX_NONCES", 3)
    guard, signer = RequestGuard(lambda: "here"), root()
    later = NOW + 3_600_000
    ahead = arrive(guard, signer, "ahead", signed_ms=later, now_ms=later)
    for now in range(NOW, later, 200_000):
        arrive(guard, signer, f"at {now}", signed_ms=now, now_ms=now)
    with pytest.raises(ReplayedRequestError, match="second time"):
        accept(guard, ahead, later)


def test_each_start_of_a_server_is_another_server() -> None:
    name = "here"
    guard, signer = RequestGuard(lambda: name), root()
    header = arrive(guard, signer, "a")
    name = "after a restart"
    with pytest.raises(OtherServerError):
        accept(guard, header, NOW)


@pytest.mark.parametrize(
    "member",
    [
        None,
        [],
        {},
        {"aud": "here"},
        {"aud": [1], "method": "POST", "path": "/x", "sha256": ""},
        {"aud": ["here"] * 9, "method": "POST", "path": "/x", "sha256": ""},
        {"aud": ["here"], "method": "POST", "path": "/x"},
    ],
)
def test_a_binding_that_cannot_be_read_is_no_absent_one(member: Any) -> None:
    embedded = {"id": "n", "ts": NOW, "goatherd": member}
    text = sign_data(root(), now_ms=NOW, embedded={key: value for key, value in embedded.items() if value is not None})
    envelope = parse_signature(text)
    envelope.data["goatherd"] = member
    with pytest.raises(InvalidSignatureError):
        read_binding(envelope)


# --- half upgraded --------------------------------------------------------------------------------------------------


class OldClient(NodeClient):
    """A client of an earlier version, whose requests name no server."""

    async def _send_signed(
        self, path: str, body: bytes, signer: OwnedSession, now_ms: int | None, *, query: str = ""
    ) -> Any:
        time_ms = SystemClock().now_ms() if now_ms is None else now_ms
        header = sign_request(signer, now_ms=time_ms, nonce=new_id())
        return await self._send_request("POST", path + query, content=body, headers={"x-goat-sig": header})


class OldGuard(RequestGuard):
    """A server of an earlier version, which checks no binding."""

    def check_request(self, *_: Any, **__: Any) -> None:
        pass


ORDERS: Mapping[str, tuple[type[NodeClient], tuple[bool, bool]]] = {
    "the tools first": (NodeClient, (True, True)),
    "the tools first, then one server": (NodeClient, (True, False)),
    "the servers first": (OldClient, (False, False)),
    "one server first": (OldClient, (True, False)),
}


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS)
async def test_a_cluster_that_is_half_upgraded_rotates(tmp_path: Path, order: str) -> None:
    """With the servers upgraded first, no request can notify them, so they follow at their next read of the store."""
    make, are_old = ORDERS[order]
    signer, store = root(), MemoryStore()
    async with contextlib.AsyncExitStack() as stack:
        provider = await stack.enter_async_context(MemorySecretProvider(store))
        await provider.create(SECRET, encode_document(document_of(signer)))
        servers, listeners = [], []
        for number in range(2):
            settings = CloudSecretSettings(MemorySecretProvider(store), SECRET, refresh_interval=timedelta(seconds=0.5))
            servers.append(Server(tmp_path / str(number), settings, debug=True))
            listeners.append(ServerListener(servers[-1]))
        urls = [listener.bind() for listener in listeners]
        for server, listener, is_old in zip(servers, listeners, are_old, strict=True):
            server.peers = urls
            await stack.enter_async_context(server)
            await stack.enter_async_context(listener)
            if is_old:
                server.database().engine.guard = OldGuard(lambda: "old")
        clients = [await stack.enter_async_context(make(url)) for url in urls]
        policy = Policy(health_soak=timedelta(0), node_timeout=ANSWER)
        rotator = Rotator(provider, SECRET, clients, policy=policy, started_by="test")
        report = await asyncio.wait_for(rotator.rotate(), HANG)
        assert report.outcome is Outcome.ROTATED
        for client in clients:
            identity = await client.identity()
            assert identity is not None
            assert identity.signer == report.current_id
