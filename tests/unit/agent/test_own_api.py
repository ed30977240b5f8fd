"""Requests that the agent answers instead of its server, through the door and at an address of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import sys
from collections.abc import AsyncIterator
from datetime import timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

import goatherd
from goatherd.agent.own_address import OwnAddress
from goatherd.agent.own_api import OwnAPI
from goatherd.cluster.client import INSTANCE_HEADER, NodeClient
from goatherd.cluster.server_answers import ServerIdentity
from goatherd.door.door import Door, DoorStatus
from goatherd.door.report import DoorAPI
from goatherd.door.request_checks import DoorRule
from goatherd.door.trusted_sessions import TrustedSessions
from goatherd.errors import ConfigurationError, NodeRefusedError, NodeUnreachableError
from goatherd.identity.request_binding import RequestBinding, RequestGuard, sign_bound_request
from goatherd.identity.session import OwnedSession, sign_request
from goatherd.identity.transitions import create_document
from goatherd.ids import new_id
from goatherd.rotation.obstacles import ObstacleKind
from goatherd.rotation.store_history import find_contradictions
from goatherd.serving.sockets import find_machine_addresses
from goatherd.telemetry import Metric
from tests.cluster.door_world import Standing
from tests.deadlines import ANSWER, HANG
from tests.docs.http_answers import AGENT, IDENTITY, LEFT_OUT_BY_AGENTS, REGIONS
from tests.fakes.upstream_child import UpstreamChild
from tests.unit.cli.json_documents import JSONDocuments
from tests.unit.goats import ORG, root
from tests.unit.identity.make import NOW, activated, first, owned, shows_key
from tests.unit.settings.make import HandClock, settle

from .test_organization import Kit

A = root("root-a")
REFRESH = "/goatherd/v1/refresh"


class Told:
    """An agent's own answer that records each request for it."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, str]] = []

    async def answer(self, method: str, path: str, query: str, signature: str, body: bytes) -> tuple[int, bytes]:
        self.asked.append((method, path, query))
        if path != "/goatherd/v1/identity":
            return 404, b""
        return 200, json.dumps({"signer": None, "agent": {"state": "serving"}}).encode()


@contextlib.asynccontextmanager
async def fronts(told: Told | None) -> AsyncIterator[tuple[UpstreamChild, Door, OwnAddress]]:
    clock = Standing()
    async with UpstreamChild(A, clock=clock) as child:
        trust = TrustedSessions(org=ORG, identity=first(), clock=clock)
        door = Door(upstream=child.url, trust=trust, clock=clock, own=None if told is None else told.answer)
        guard = RequestGuard(lambda: "agent")
        own = OwnAddress(upstream=child.url, answer=(told or Told()).answer, guard=guard, clock=clock)
        async with door, own:
            yield child, door, own


@pytest.mark.parametrize("which", [0, 1], ids=["the door", "the agent's own address"])
async def test_nothing_of_the_agents_own_reaches_the_server(which: int) -> None:
    told = Told()
    async with fronts(told) as (child, *addresses), httpx2.AsyncClient(verify=False, timeout=HANG) as http:
        url = addresses[which].url
        async with NodeClient(url, org=ORG, timeout=ANSWER) as client:
            answer = await client.identity()
            assert answer is not None
            assert answer.agent is not None
        for path in ("/goatherd/v1/identity", "/Goatherd/V1/identity", "/goatherd/v1/anything", "/goatherd/v1/"):
            for method in ("GET", "POST", "PUT"):
                found = await http.request(method, url + path, content=b"x" if method != "GET" else None)
                assert found.status_code == (200 if path.lower().endswith("identity") else 404)
        assert told.asked[0] == ("GET", "/goatherd/v1/identity", f"org={ORG}")
        assert not [one for one in child.reached if "goatherd" in one[1].lower()]


@pytest.mark.parametrize("which", [0, 1], ids=["the door", "the agent's own address"])
@pytest.mark.parametrize("is_chunked", [True, False])
async def test_a_large_body_for_the_agent_takes_no_memory_from_others(which: int, is_chunked: bool) -> None:
    """No signature is verified yet, and a caller that sends the body slowly would hold that memory for hours."""
    told = Told()
    async with fronts(told) as (_, *addresses):
        address = addresses[which]
        limiter = address._limiter
        left = limiter.budget._left
        reader, writer = await asyncio.open_connection("127.0.0.1", int(address.url.rpartition(":")[2]))
        framing = "transfer-encoding: chunked" if is_chunked else f"content-length: {limiter.limits.body_bytes}"
        writer.write(f"POST /goatherd/v1/x HTTP/1.1\r\nhost: h\r\n{framing}\r\n\r\n".encode())
        part = b"x" * 16_000
        writer.write((b"3e80\r\n%b\r\n" % part if is_chunked else part) * 2)
        async with asyncio.timeout(HANG):
            assert (await reader.readline()).split()[1] == b"404"
        writer.close()
        assert limiter.budget._left == left
        assert told.asked == []


async def test_a_door_without_an_agent_lets_no_server_speak_for_one() -> None:
    async with fronts(None) as (child, door, _), NodeClient(door.url, timeout=ANSWER) as client:
        assert await client.identity() is None
        assert not [one for one in child.reached if "goatherd" in one[1]]


async def test_the_agents_own_address_passes_on_what_our_tools_ask_of_a_server_and_nothing_else() -> None:
    async with (
        fronts(Told()) as (child, _, own),
        NodeClient(own.url, timeout=ANSWER) as client,
        httpx2.AsyncClient(timeout=HANG) as http,
    ):
        new = await client.new_session()
        assert await client.answers(new.owned, child.clock.now_ms())
        assert await client.healthy()
        for method, path in (("GET", "/app.js"), ("POST", "/auth/send-login-email"), ("GET", "/auth/temp-login?t=x")):
            assert (await http.request(method, own.url + path)).status_code == 404
        assert {path for _, path, _ in child.reached} <= {"/auth/session", "/batch-sync", "/healthy"}
        await child._listener.close()  # type: ignore[union-attr]
        with pytest.raises(NodeRefusedError, match="503"):
            await client.new_session()


@pytest.mark.parametrize("is_restarting", [True, False])
async def test_a_door_says_that_its_server_is_away_and_whether_its_agent_restarts_it(
    caplog: pytest.LogCaptureFixture, is_restarting: bool
) -> None:
    caplog.set_level("INFO", "goatherd.door")
    clock = Standing()
    async with UpstreamChild(A, clock=clock) as child:
        trust = TrustedSessions(org=ORG, identity=first(), clock=clock)
        door = Door(upstream=child.url, trust=trust, clock=clock, is_restarting=lambda: is_restarting)
        async with door, httpx2.AsyncClient(timeout=HANG) as http:
            await child._listener.close()  # type: ignore[union-attr]
            for _ in range(3):
                assert (await http.get(door.url + "/healthy")).status_code == 503
            assert door.status.stopped == {DoorRule.CHILD: 3}
    (line,) = [one for one in caplog.records if "door.server_away" in one.getMessage()]
    assert (line.levelname, "restarted by its agent" in line.getMessage()) == (
        "INFO" if is_restarting else "WARNING",
        is_restarting,
    )
    assert "door.stopped" not in caplog.text


async def test_a_door_warns_that_it_reads_no_sessions_only_while_no_agent_starts_its_server(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Unread(TrustedSessions):
        async def refresh(self) -> None:
            self.failure = failure
            if failure is not None:
                raise failure

    caplog.set_level("INFO", "goatherd.door")
    failure: NodeUnreachableError | None = NodeUnreachableError("cannot connect to http://child")
    is_restarting, clock = True, HandClock()
    trust = Unread(org=ORG, identity=first(), clock=clock)

    def lines() -> list[tuple[str, str]]:
        found = [(one.levelname, one.getMessage().split()[0]) for one in caplog.records]
        return [one for one in found if one[1] in ("door.blind", "door.sees")]

    async with Door(upstream="http://127.0.0.1:1", trust=trust, clock=clock, is_restarting=lambda: is_restarting):
        await settle()
        await clock.turn(timedelta(seconds=1))
        assert len(clock.waits) == 2
        assert lines() == [], "its agent starts it"
        is_restarting = False
        await clock.turn(timedelta(seconds=1))
        assert lines() == [("WARNING", "door.blind")]
        failure = None
        await clock.turn(timedelta(seconds=1))
        assert lines() == [("WARNING", "door.blind"), ("INFO", "door.sees")]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="127.0.0.2 is an address of this machine on Linux only")
@pytest.mark.parametrize(
    ("host", "addresses", "exposed"),
    [
        ("0.0.0.0", ["127.0.0.2", "127.0.0.3"], ["127.0.0.2", "127.0.0.3"]),
        ("127.0.0.1", ["127.0.0.2"], []),
        ("0.0.0.0", [], []),
    ],
)
async def test_a_server_that_can_be_reached_past_its_door_is_warned_of(
    caplog: pytest.LogCaptureFixture, host: str, addresses: list[str], exposed: list[str]
) -> None:
    """GoatDB listens on all addresses, and has no option for it."""
    clock = Standing()
    async with UpstreamChild(A, clock=clock, host=host) as child:
        child.introduce(owned("user", owner=None).session)
        trust = TrustedSessions(org=ORG, identity=create_document(A, clock.now_ms()), clock=clock)
        done = asyncio.Event()

        def find() -> list[str]:
            return addresses

        door = Door(upstream=child.url, trust=trust, clock=clock, addresses=find)
        checked = door._check_exposure

        async def check(trust: TrustedSessions) -> None:
            await checked(trust)
            done.set()

        door._check_exposure = check  # type: ignore[method-assign]
        async with door, asyncio.timeout(HANG):
            await done.wait()
            assert door.status.is_exposed is bool(exposed)
            assert door.status.to_json()["exposed"] is bool(exposed)
    lines = [one.getMessage() for one in caplog.records if "door.server_exposed" in one.getMessage()]
    assert len(lines) == bool(exposed)
    assert all(address in lines[0] for address in exposed)


@pytest.mark.slow
async def test_neither_the_door_itself_nor_a_stranger_at_the_same_port_is_the_server(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Server and door may use the same port number at two addresses, and another program may use it at a third."""
    clock = Standing()
    async with UpstreamChild(A, clock=clock) as child, UpstreamChild(owned("z"), clock=clock) as stranger:
        trust = TrustedSessions(org=ORG, identity=create_document(A, clock.now_ms()), clock=clock)
        door = Door(upstream=child.url, trust=trust, clock=clock, addresses=list)
        async with door:
            assert await door._is_server_at("127.0.0.1", trust)
            door._server.port = stranger._listener.port  # type: ignore[union-attr]
            assert not await door._is_server_at("127.0.0.1", trust)
            door._server.port = door.port
            door._addresses = lambda: ["127.0.0.1"]
            door._server.host = "127.0.0.9"
            await door._check_exposure(trust)
    assert "door.server_exposed" not in caplog.text


@pytest.mark.parametrize("answers", ["nothing", "endlessly"])
async def test_another_program_at_the_servers_port_gets_nothing_that_a_root_has_signed(
    monkeypatch: pytest.MonkeyPatch, answers: str
) -> None:
    """That program may belong to another user, and could send the signature to the server, which accepts it with any
    body."""
    monkeypatch.setattr("goatherd.door.door.ANSWER_BYTES", 100_000, raising=False)
    clock, heard = Standing(), bytearray()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.extend(await reader.readuntil(b"\r\n\r\n"))
        with contextlib.suppress(OSError):
            if answers == "endlessly":
                writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
                while True:
                    writer.write(b" " * 10_000)
                    await writer.drain()
        writer.close()

    async with UpstreamChild(A, clock=clock) as child, asyncio.timeout(HANG):
        trust = TrustedSessions(org=ORG, identity=create_document(A, clock.now_ms()), clock=clock)
        async with Door(upstream=child.url, trust=trust, clock=clock, addresses=list) as opened:
            other = await asyncio.start_server(listen, "127.0.0.1", 0)
            async with other:
                opened._server.port = other.sockets[0].getsockname()[1]
                assert not await opened._is_server_at("127.0.0.1", trust)
    assert heard.startswith(b"POST ")
    named = child.url.removeprefix("http://").encode()
    assert b"host: " + named in heard, "by its name the application finds the organization"
    assert b"x-goat-sig" not in heard


def test_the_addresses_of_this_machine_are_numeric_and_not_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    named = [(0, 0, 0, "", (address, 0)) for address in ("127.0.0.1", "::1", "192.0.2.7")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: named)
    found = find_machine_addresses()
    assert "192.0.2.7" in found
    assert not [address for address in found if ip_address(address).is_loopback]


def test_the_agents_own_address_is_not_the_servers() -> None:
    guard = RequestGuard(lambda: "agent")
    with pytest.raises(ConfigurationError, match="8080"):
        OwnAddress(upstream="http://127.0.0.1:8080", answer=Told().answer, guard=guard, port=8080)


def api(kits: list[Kit], **state: Any) -> OwnAPI:
    told = {"instance": "i", "state": "serving", "restarts": 0, **state}
    return OwnAPI([kit.organization for kit in kits], describe=lambda: told, clock=HandClock())


async def identity(own: OwnAPI, query: str = "") -> dict[str, Any]:
    status, body = await own.answer_request("GET", "/goatherd/v1/identity", query, "")
    assert status == 200
    found: dict[str, Any] = json.loads(body)
    return found


async def test_the_answer_has_what_a_goatherd_server_says_and_what_the_agent_does(tmp_path: Any) -> None:
    document = activated(first())
    kit = Kit(tmp_path, document)
    own = api([kit], restarts=3)
    before = await identity(own)
    assert (before["signer"], before["agent"]["started"], before["agent"]["leakCheck"]) == (None, None, None)
    await kit.organization.write_file()
    kit.client.trusts.add(document.current.id)
    kit.client.signs_with = document.current
    await kit.organization.check_key_exposure()
    told = await identity(own)
    assert told["signer"] == told["agent"]["started"] == document.current.id
    assert (told["generation"], told["phase"], told["instance"]) == (document.generation, "activated", "i")
    assert told["version"] == goatherd.__version__
    assert set(told["roots"]) == {one.id for one in document.roots}
    assert (told["agent"]["state"], told["agent"]["restarts"], told["agent"]["door"]) == ("serving", 3, None)
    assert not shows_key(json.dumps(told), document.current, owned("a"))


async def test_the_answer_has_the_members_that_the_reference_lists(tmp_path: Any) -> None:
    kit = Kit(tmp_path, first())
    await kit.organization.write_file()
    kit.client.trusts.add(first().current.id)
    await kit.organization.check_key_exposure()
    own = api([kit], problem=None)
    stopped = {DoorRule.BODY: 1}
    own.figures = lambda: DoorStatus(
        url="", handed_on=1, stopped=stopped, connections=1, requests=1, sessions=1, is_blind=False
    )
    documents = JSONDocuments()
    documents.check_fields("identity", IDENTITY | AGENT, await identity(own))
    left_out = {*LEFT_OUT_BY_AGENTS, *REGIONS}
    inner = {name for name in IDENTITY if re.search(r"\W", name)}
    assert documents.seen["identity"] == set(IDENTITY | AGENT) - left_out - inner


async def test_while_a_restart_is_due_the_report_is_of_the_document_in_the_store(tmp_path: Any) -> None:
    """Generation and digest of two documents would look like a store that was replaced by another one."""
    kit, document = Kit(tmp_path, first()), activated(first())
    await kit.organization.write_file()
    kit.settings.document = document
    told = await identity(api([kit]))
    assert told["agent"]["pending"] == [f"root {owned('b').id} replaces {owned('a').id} as the current root"]
    report = ServerIdentity.from_json(told)
    assert report is not None
    assert find_contradictions({"http://agent": report}, document) == ()
    (later,) = find_contradictions({"http://agent": report}, first())
    assert later.kind is ObstacleKind.STORE_BEHIND, "the agent has read what this store no longer holds"


async def test_several_organizations_are_told_apart(tmp_path: Any) -> None:
    kits = [Kit(tmp_path / name, first()) for name in ("one", "two")]
    kits[1].organization.org = "other"
    own = api(kits)
    assert (await identity(own))["org"] == (await identity(own, "org=localhost"))["org"] == "localhost"
    assert (await identity(own, "org=other"))["org"] == "other"
    assert await own.answer_request("GET", "/goatherd/v1/identity", "org=nobody", "") == (404, b"")


async def test_each_organization_is_refreshed_by_its_own_root(tmp_path: Any) -> None:
    documents = [first(), create_document(owned("b"), NOW)]
    kits = [Kit(tmp_path / name, document) for name, document in zip(("one", "two"), documents, strict=True)]
    kits[1].organization.org = "other"
    own = api(kits)
    looks: list[str] = []
    for kit in kits:
        kit.settings.refresh = lambda kit=kit: looked(looks, kit.organization.org)  # type: ignore[method-assign,misc]

    async def answer(request: httpx2.Request) -> httpx2.Response:
        query, signature = request.url.query.decode(), request.headers["x-goat-sig"]
        status, body = await own.answer_request(request.method, request.url.path, query, signature, request.content)
        return httpx2.Response(status, content=body, headers={INSTANCE_HEADER: "i"})

    async with httpx2.AsyncClient(transport=httpx2.MockTransport(answer)) as http:
        for kit, document in zip(kits, documents, strict=True):
            client = NodeClient("http://agent", http=http, clock=kit.clock, org=kit.organization.org)
            told = await client.refresh(document.current)
            assert told == {"generation": 1, "changed": False}
            with pytest.raises(NodeRefusedError):
                await client.refresh(owned("c"))
    assert looks == ["localhost", "other"]


async def looked(looks: list[str], org: str) -> bool:
    looks.append(org)
    return False


async def test_only_a_root_has_the_store_read(tmp_path: Any) -> None:
    kit = Kit(tmp_path, first())
    own = OwnAPI([kit.organization], describe=lambda: {"instance": "agent"}, clock=kit.clock)
    now_ms = kit.clock.now_ms()

    async def ask(header: str) -> int:
        return (await own.answer_request("POST", REFRESH, "", header, b""))[0]

    def bound(signer: OwnedSession, at_ms: int = now_ms, *, audience: str = "agent", body: bytes = b"") -> str:
        binding = RequestBinding.for_request("POST", REFRESH, body, [audience])
        return sign_bound_request(signer, binding, now_ms=at_ms, nonce=new_id())

    good = bound(owned("a"))
    assert await ask(good) == 200
    for header in (
        "",
        "nonsense",
        good,
        bound(owned("b")),
        bound(owned("a"), now_ms - 600_000),
        bound(owned("a"), body=b"[]"),
        sign_request(owned("a"), now_ms=now_ms, nonce="n" * 24),
    ):
        assert await ask(header) == 403
    assert await ask(bound(owned("a"), audience="another")) == 421


async def test_a_server_that_is_away_is_not_asked_for(tmp_path: Any) -> None:
    """The agent answers while its server is down, because its state matters most then."""
    kit = Kit(tmp_path, first())
    await kit.organization.write_file()
    kit.client.is_away = True
    with pytest.raises(NodeUnreachableError):
        await kit.client.answers(owned("a"))
    assert (await identity(api([kit], state="restarting")))["agent"]["state"] == "restarting"


# --- health and metrics -----------------------------------------------------------------------------------------------


def numbers(text: bytes) -> dict[str, float]:
    """Return the metrics by name and labels."""
    return {
        ",".join((sample.name, *sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def status_of_door(**changed: Any) -> DoorStatus:
    given = {"handed_on": 7, "connections": 2, "requests": 1, "sessions": 4}
    return DoorStatus(url="http://d", stopped={DoorRule.TOO_MANY: 3}, **{**given, "is_blind": False, **changed})


@pytest.mark.parametrize(
    ("state", "door", "reason"),
    [
        ("serving", None, None),
        ("serving", {}, None),
        ("restarting", {}, "server.restarting"),
        ("stopped", None, "server.stopped"),
        ("serving", {"is_blind": True}, "door.blind"),
        ("serving", {"is_exposed": True}, "door.server_exposed"),
    ],
)
async def test_an_agent_tells_how_its_server_and_its_door_are(
    tmp_path: Path, state: str, door: dict[str, Any] | None, reason: str | None
) -> None:
    kit = Kit(tmp_path, first())
    own = api([kit], state=state, restarts=2)
    if door is not None:
        own.figures = lambda: status_of_door(**door)
    status, body = await own.answer_request("GET", "/goatherd/v1/health", "", "")
    told = json.loads(body)
    assert (status, told["status"], told["reason"]) == (200, "ok" if reason is None else "degraded", reason)
    assert (told["server"], told["door"] is None) == (state, door is None)
    status, body = await own.answer_request("GET", "/goatherd/v1/metrics", "", "")
    found = numbers(body)
    assert status == 200
    assert found[f"{Metric.SERVER_STATE},{state}"] == 1
    assert found[Metric.SERVER_RESTARTS] == 2
    assert found[Metric.IDENTITY_GENERATION] == kit.organization.document.generation
    assert found[Metric.SETTINGS_DEGRADED] == 0
    assert found.get(f"{Metric.STOPPED},too-many") == (None if door is None else 3)
    assert found.get(Metric.DOOR_REQUESTS) == (None if door is None else 7)
    assert not shows_key(body.decode(), kit.organization.document.current)


async def test_a_door_without_an_agent_tells_how_it_is(tmp_path: Path) -> None:
    own = DoorAPI(Kit(tmp_path, first()).settings)  # type: ignore[arg-type]
    clock = Standing()
    async with UpstreamChild(A, clock=clock) as child:
        door = Door(
            upstream=child.url,
            trust=TrustedSessions(org=ORG, identity=create_document(A, clock.now_ms())),
            clock=clock,
            own=own.answer_request,
        )
        own.figures = lambda: door.status
        async with door, httpx2.AsyncClient(verify=False, base_url=door.url, timeout=HANG) as http:
            assert (await http.request("TRACE", "/")).status_code == 405
            answer = await http.get("/goatherd/v1/metrics")
            assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
            found = numbers(answer.content)
            assert found[f"{Metric.STOPPED},method"] == 1
            assert found[f"{Metric.STOPPED},author"] == 0, "a counter begins at 0"
            assert found[Metric.CONNECTIONS] == 1
            health = await http.get("/goatherd/v1/health")
            assert health.headers["content-type"] == "application/json"
            assert health.json()["server"] is None
            assert set(health.json()["door"]) == {"blind", "exposed"}
            assert (await http.get("/goatherd/v1/identity")).status_code == 404
        assert not [one for one in child.reached if "goatherd" in one[1]]
