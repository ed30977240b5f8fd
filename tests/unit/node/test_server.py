"""The HTTP interface: routing, organizations, durable writes before answers, and identities that change."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import httpx2
import pytest

import goatherd
from goatherd.clock import SystemClock
from goatherd.cluster.client import NodeClient
from goatherd.errors import (
    ItemExistsError,
    ItemNotFoundError,
    NodeRefusedError,
    PathError,
    SecretNotFoundError,
    StorageError,
)
from goatherd.identity.document import Phase, encode_document
from goatherd.identity.session import OwnedSession, Session, SignatureEnvelope, verify_commit, verify_data
from goatherd.identity.transitions import activate_rotation, prepare_rotation, with_phase
from goatherd.ids import new_id
from goatherd.node import Server, database
from goatherd.node.log_storage import FileLog
from goatherd.node.server import ServerListener, _Turns
from goatherd.providers.memory import MemorySecretProvider
from goatherd.serving.caller_limits import CallerLimits
from goatherd.settings.store import CloudSecretSettings
from goatherd.wire.commit import Commit
from goatherd.wire.schema import Registry, Schema, SchemaField
from tests.deadlines import HANG
from tests.docs.http_answers import IDENTITY, REGIONS
from tests.unit.cli.json_documents import JSONDocuments
from tests.unit.node.nodes import (
    ORG,
    SECRET,
    all_others,
    cluster,
    document_of,
    eventually,
    hold_flush,
    now_ms,
    root,
    session_commit,
    settings_of,
    signed_commit,
    store_of,
)
from tests.unit.settings.make import CountingProvider

from .requests import batch, client_of, header, records

# --- dispatch (what the recorded exchanges do not show) ---------------------------------------------------------------


async def test_a_load_balancer_gets_its_health_answer_even_while_the_server_stops(
    server: Server, http: httpx2.AsyncClient
) -> None:
    server.stopping = True
    answer = await http.get("/healthy", headers={"host": "AWSALB"})
    assert (answer.status_code, answer.content) == (200, b"")
    assert "access-control-allow-origin" not in answer.headers
    refused = await http.get("/healthy")
    assert (refused.status_code, refused.content) == (503, b"")
    assert "access-control-allow-origin" not in refused.headers


@pytest.mark.parametrize(
    ("url", "host"),
    [("/healthy?x=1", "AWSALB"), ("/HEALTHY", "AWSALB"), ("/heal%74hy", "AWSALB"), ("/healthy", "AWSALB:80")],
)
async def test_a_load_balancers_url_is_that_one_and_no_other(
    server: Server, http: httpx2.AsyncClient, url: str, host: str
) -> None:
    server.stopping = True
    assert (await http.get(url, headers={"host": host})).status_code == 503


async def test_a_path_is_compared_as_it_was_sent(
    tmp_path: Path, http: httpx2.AsyncClient, signer: OwnedSession
) -> None:
    assert (await http.get("/heal%74hy")).status_code == 404
    assert (await http.post("/batch%2Dsync", content=b"[]", headers=header(signer))).status_code == 404
    seen: list[str] = []

    def resolve(url: str) -> str:
        seen.append(url)
        return ""

    settings = settings_of(await store_of(document_of(signer)))
    async with Server(tmp_path / "own", lambda _: settings, resolve_domain=resolve) as server, client_of(server) as own:
        await own.get("/Heal%74hy?x=%31")
    assert seen == ["http://node/Heal%74hy?x=%31"]


async def test_a_request_with_a_large_body_is_verified_once(
    http: httpx2.AsyncClient, signer: OwnedSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    verified: list[str] = []

    def note(session: Session, envelope: SignatureEnvelope) -> None:
        verified.append(session.id)
        verify_data(session, envelope)

    monkeypatch.setattr("goatherd.identity.session.verify_data", note)
    for size in (10, 100_000):
        verified.clear()
        answer = await http.post("/batch-sync", content=b"[]".ljust(size), headers=header(signer))
        assert (answer.status_code, verified) == (200, [signer.id])


async def test_two_signatures_are_none(http: httpx2.AsyncClient, signer: OwnedSession) -> None:
    good = header(signer)["x-goat-sig"]
    for twice in ((good, good), ("x", good), (good, "x")):
        doubled = [("x-goat-sig", value) for value in twice]
        assert (await http.post("/batch-sync", content=b"[]", headers=doubled)).status_code == 403


@pytest.mark.parametrize(("before", "after"), [("", " "), ("\t", " \t")])
async def test_white_space_around_a_signature_does_not_count(
    http: httpx2.AsyncClient, signer: OwnedSession, before: str, after: str
) -> None:
    padded = {"x-goat-sig": before + header(signer)["x-goat-sig"] + after}
    assert (await http.post("/batch-sync", content=b"[]", headers=padded)).status_code == 200
    assert (await http.post("/batch-sync", content=b"[]", headers={"x-goat-sig": before + after})).status_code == 400


async def test_paths_are_compared_in_lower_case(http: httpx2.AsyncClient, signer: OwnedSession) -> None:
    assert (await http.post("/BATCH-Sync?x=1", content=b"[]", headers=header(signer))).status_code == 200
    assert (await http.post("/batch-sync/", content=b"[]", headers=header(signer))).status_code == 404


async def test_answers_of_endpoints_carry_cors_and_refused_signatures_do_not(
    http: httpx2.AsyncClient, signer: OwnedSession
) -> None:
    good = await http.post("/batch-sync", content=b"[]", headers=header(signer))
    assert good.headers["access-control-allow-origin"] == "https://goats.test"
    assert good.headers["access-control-allow-methods"] == "POST"
    bad = await http.post("/batch-sync", content=b"[]", headers=header(root("stranger")))
    assert bad.status_code == 403
    assert "access-control-allow-origin" not in bad.headers
    options = await http.request("OPTIONS", "/anything/at/all")
    assert (options.status_code, options.headers["access-control-allow-headers"]) == (200, "*")


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/auth/send-login-email"), ("GET", "/auth/temp-login"), ("GET", "/metrics"), ("PUT", "/batch-sync")],
)
async def test_what_is_not_there_is_404_with_cors(http: httpx2.AsyncClient, method: str, path: str) -> None:
    answer = await http.request(method, path)
    assert (answer.status_code, answer.content) == (404, b"")
    assert answer.headers["access-control-allow-origin"] == "https://goats.test"


def test_a_database_before_the_server_was_entered_is_an_error_that_names_the_block(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="enter the server with `async with` first"):
        Server(tmp_path, settings_of(MemorySecretProvider())).database()


async def test_a_body_beyond_the_limit_is_413_and_is_not_kept_in_memory(tmp_path: Path, signer: OwnedSession) -> None:
    settings = settings_of(await store_of(document_of(signer)))
    async with (
        Server(tmp_path, settings, debug=True, limits=CallerLimits(body_bytes=1000)) as server,
        client_of(server) as http,
    ):
        assert (await http.post("/batch-sync", content=b"[" * 1001)).status_code == 413

        async def chunks() -> AsyncIterator[bytes]:
            for _ in range(100):
                yield b"[" * 100

        assert (await http.post("/auth/session", content=chunks())).status_code == 413
        assert (await http.post("/auth/session", content=b"{}")).status_code == 400


async def test_an_unexpected_failure_is_a_bare_500_and_the_server_continues(
    server: Server, http: httpx2.AsyncClient, signer: OwnedSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(*_: object) -> None:
        raise ZeroDivisionError("on purpose")

    with monkeypatch.context() as patch:
        patch.setattr(server.database().engine, "batch_sync", explode)
        answer = await http.post("/batch-sync", content=b"[]", headers=header(signer))
        assert (answer.status_code, answer.content) == (500, b"")
        assert "access-control-allow-origin" not in answer.headers
    assert (await http.post("/batch-sync", content=b"[]", headers=header(signer))).status_code == 200


# --- organizations ----------------------------------------------------------------------------------------------------


def by_host(url: str) -> str:
    return url.split("://")[1].split(".goats.test")[0].split("/")[0]


async def test_an_organization_is_opened_once_by_the_first_request(tmp_path: Path, signer: OwnedSession) -> None:
    provider = await store_of(document_of(signer))
    opened: list[str] = []

    def factory(org: str) -> CloudSecretSettings:
        opened.append(org)
        return settings_of(provider)

    async with Server(tmp_path, factory, resolve_domain=by_host, debug=True) as server, client_of(server) as http:
        answers = await asyncio.gather(
            *(http.get(f"http://{org}.goats.test/goatherd/v1/identity") for org in ("a", "b", "a", "b", "a"))
        )
        assert [answer.json()["org"] for answer in answers] == ["a", "b", "a", "b", "a"]
        assert sorted(opened) == ["a", "b"]
        await http.post("http://a.goats.test/batch-sync", content=batch("/data/x", signed_commit(signer)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


async def test_a_server_that_stops_does_not_wait_for_a_store_that_a_tool_has_it_read(
    tmp_path: Path, signer: OwnedSession
) -> None:
    provider = CountingProvider()
    provider.timeout = timedelta(hours=1)
    await provider.create(SECRET, encode_document(document_of(signer)))
    async with asyncio.timeout(HANG), Server(tmp_path, settings_of(provider)) as server:
        listener = ServerListener(server, grace=timedelta(seconds=0.1))
        async with listener, NodeClient(listener.url, timeout=timedelta(seconds=HANG)) as client:
            provider.hold = asyncio.Event()
            before = provider.reads
            asking = asyncio.create_task(client.refresh(signer))
            while provider.reads == before:
                await asyncio.sleep(0.01)
            asking.cancel()
            await asyncio.wait({asking})


async def test_each_organization_can_have_peers_of_its_own(tmp_path: Path, signer: OwnedSession) -> None:
    provider = await store_of(document_of(signer))
    server = Server(
        tmp_path,
        lambda _: settings_of(provider),
        resolve_domain=by_host,
        peers=lambda org: [f"http://{org}.peer.test:1/"] if org == "a" else f"http://{org}.other.test:1",
        debug=True,
    )
    async with server, client_of(server) as http:
        for org in ("a", "b"):
            await http.get(f"http://{org}.goats.test/healthy")
        peers = {org: [peer.url for peer in server.database(org).peers] for org in ("a", "b")}
    assert peers == {"a": ["http://a.peer.test:1"], "b": ["http://b.other.test:1"]}


@pytest.mark.parametrize("org", ["../outside", "..", ".", "a/b", "a\\b", "a\0b", ".hidden", "x" * 129, "a b"])
async def test_an_organization_cannot_name_its_way_out_of_the_data_directory(
    tmp_path: Path, signer: OwnedSession, org: str
) -> None:
    provider = await store_of(document_of(signer))
    server = Server(tmp_path / "data", lambda _: settings_of(provider), resolve_domain=lambda _: org, debug=True)
    async with server, client_of(server) as http:
        answer = await http.get("/goatherd/v1/identity")
        assert (answer.status_code, answer.content) == (404, b"")
    assert not any(path.is_dir() for path in tmp_path.iterdir())


@pytest.mark.parametrize("org", ["", None])
async def test_no_organization_is_404_without_cors(tmp_path: Path, signer: OwnedSession, org: str | None) -> None:
    provider = await store_of(document_of(signer))
    server = Server(tmp_path, lambda _: settings_of(provider), resolve_domain=lambda _: org, debug=True)
    async with server, client_of(server) as http:
        answer = await http.get("/healthy")
        assert (answer.status_code, answer.content) == (404, b"")
        assert "access-control-allow-origin" not in answer.headers


async def test_an_organization_that_cannot_be_opened_is_500_and_tried_again(
    tmp_path: Path, signer: OwnedSession
) -> None:
    provider = MemorySecretProvider()
    server = Server(tmp_path, lambda _: settings_of(provider), resolve_domain=lambda _: "late", debug=True)
    async with server, client_of(server) as http:
        for _ in range(2):
            answers = await asyncio.gather(*(http.get("/healthy") for _ in range(3)))
            assert {(one.status_code, one.text) for one in answers} == {(500, "Internal Server Error")}
        await provider.create(SECRET, encode_document(document_of(signer)))
        assert (await http.get("/healthy")).status_code == 200


async def test_the_one_organization_is_opened_at_once_and_a_missing_identity_is_an_error(tmp_path: Path) -> None:
    server = Server(tmp_path, settings_of(MemorySecretProvider()), debug=True)
    with pytest.raises(SecretNotFoundError):
        async with server:
            raise AssertionError("a server without an identity has started")
    assert not any((tmp_path / ORG).glob("**/*.json*")) if (tmp_path / ORG).exists() else True


async def test_two_servers_cannot_share_a_data_directory(server: Server, tmp_path: Path, signer: OwnedSession) -> None:
    second = Server(tmp_path, settings_of(await store_of(document_of(signer))), debug=True)
    with pytest.raises(StorageError, match="in use"):
        async with second:
            raise AssertionError("two servers write one log")


# --- durability -------------------------------------------------------------------------------------------------------


async def test_a_push_is_answered_after_its_commits_are_on_the_disk(
    server: Server, http: httpx2.AsyncClient, signer: OwnedSession, tmp_path: Path
) -> None:
    commit = signed_commit(signer)
    await http.post("/batch-sync", content=batch("/data/x", commit), headers=header(signer))
    assert records(tmp_path / ORG / "data" / "x.jsonl") == [commit.to_json()]


async def test_no_answer_shows_a_commit_that_is_not_on_the_disk_yet(
    server: Server, http: httpx2.AsyncClient, signer: OwnedSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read by another client, and a repeated push, wait for the flush of the push that stored the commit."""
    begun, gate = hold_flush(monkeypatch)
    commit = signed_commit(signer)
    requests = [asyncio.create_task(http.post("/batch-sync", content=batch("/data/x", commit), headers=header(signer)))]
    while not begun.is_set():
        await asyncio.sleep(0)
    requests += [
        asyncio.create_task(http.post("/batch-sync", content=body, headers=header(signer)))
        for body in (batch("/data/x"), batch("/data/x", commit))
    ]
    await asyncio.wait(requests, timeout=0.05)
    assert not any(request.done() for request in requests)
    gate.set()
    answers = await asyncio.gather(*requests)
    assert [answer.json()[0]["res"]["s"] for answer in answers] == [1, 1, 1]


@pytest.mark.slow
async def test_a_disk_that_fails_is_507_and_the_commit_is_written_when_it_works_again(
    http: httpx2.AsyncClient, server: Server, signer: OwnedSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit, later = signed_commit(signer), signed_commit(signer)

    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(FileLog, "_append_bytes", no_space)
        answer = await http.post("/batch-sync", content=batch("/data/x", commit), headers=header(signer))
        assert answer.status_code == 507

    async def is_taken() -> bool:
        answer = await http.post("/batch-sync", content=batch("/data/x", later), headers=header(signer))
        return answer.status_code == 200

    await eventually(is_taken)
    assert records(tmp_path / ORG / "data" / "x.jsonl") == [commit.to_json(), later.to_json()]


async def test_large_answers_that_clients_do_not_take_fill_no_memory(tmp_path: Path, signer: OwnedSession) -> None:
    """A client may request everything on many connections, and read a few bytes a second from each."""
    settings = settings_of(await store_of(document_of(signer)))
    client = OwnedSession.generate(session_id=new_id(), owner=None, now_ms=now_ms())
    limits = CallerLimits(buffered_bytes=800_000, body_bytes=400_000)
    async with Server(tmp_path, settings, debug=True, limits=limits) as server, client_of(server) as http:
        for commit, path in (
            (session_commit(signer, client.session), "/sys/sessions"),
            (signed_commit(client, text="x" * 300_000), "/data/x"),
        ):
            answer = await http.post("/batch-sync", content=batch(path, commit), headers=header(signer))
            assert answer.status_code == 200
        may_take, started = asyncio.Event(), asyncio.Event()
        parts: list[bytes] = []

        async def ask(by: OwnedSession, path: str = "/data/x", *, is_slow: bool = False) -> int:
            statuses: list[int] = []

            async def receive() -> dict[str, Any]:
                return {"type": "http.request", "body": batch(path)}

            async def send(event: Any) -> None:
                if event["type"] == "http.response.start":
                    statuses.append(event["status"])
                elif is_slow:
                    parts.append(event["body"])
                    started.set()
                    await may_take.wait()

            length = str(len(batch(path))).encode()
            signed = [(name.encode(), value.encode()) for name, value in header(by).items()]
            scope = {"type": "http", "method": "POST", "scheme": "http", "path": "/batch-sync", "query_string": b""}
            fields = [*signed, (b"content-length", length)]
            await server.app({**scope, "headers": fields, "client": ("192.0.2.1", 1)}, receive, send)
            (status,) = statuses
            return status

        slow = asyncio.create_task(ask(client, is_slow=True))
        async with asyncio.timeout(HANG):
            await started.wait()
        assert await ask(client) == 503
        assert await ask(client, "/data/small") == 200, "what is small"
        assert await ask(signer) == 200, "servers, which sign as the root"
        may_take.set()
        assert await slow == 200
        assert len(parts) > 1
        assert await ask(client) == 200


async def test_a_client_that_hangs_up_does_not_undo_its_request(
    server: Server, signer: OwnedSession, tmp_path: Path
) -> None:
    commits = [signed_commit(signer) for _ in range(30)]
    request = asyncio.create_task(
        server.database().answer_sync(batch("/data/x", *commits), header(signer)["x-goat-sig"])
    )
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    await server.__aexit__(None, None, None)
    assert {record["id"] for record in records(tmp_path / ORG / "data" / "x.jsonl")} == {one.id for one in commits}


async def test_a_restart_finds_everything(tmp_path: Path, signer: OwnedSession) -> None:
    provider = await store_of(document_of(signer))
    commit = signed_commit(signer)
    async with Server(tmp_path, settings_of(provider), debug=True) as server, client_of(server) as http:
        user, _ = await NodeClient("http://node", http=http).create_session()
        await http.post("/batch-sync", content=batch("/data/x", commit), headers=header(user))
    async with Server(tmp_path, settings_of(provider), debug=True) as server, client_of(server) as http:
        client = NodeClient("http://node", http=http)
        assert await client.pull("/data/x", user) == [commit.to_json()]


# --- identity ---------------------------------------------------------------------------------------------------------


async def test_the_identity_says_who_signs_in_ids_only(http: httpx2.AsyncClient, signer: OwnedSession) -> None:
    answer = (await http.get("/goatherd/v1/identity")).json()
    JSONDocuments().check_fields("identity", IDENTITY, answer)
    assert set(answer) == {name for name in IDENTITY if not re.search(r"\W", name)} - set(REGIONS)
    assert answer.pop("viewAgeMs") >= 0
    del answer["data"]["complete"]  # it reads its logs in the background
    assert abs(answer.pop("nowMs") - SystemClock().now_ms()) < 60_000
    assert re.fullmatch(r"[a-z0-9]{24}", answer.pop("instance"))
    assert re.fullmatch(r"[0-9a-f]{64}", answer.pop("digest"))
    assert answer.pop("viewIntervalMs") > 0
    assert answer == {
        "peers": [],
        "watching": False,
        "version": goatherd.__version__,
        "org": ORG,
        "signer": "the-root",
        "roots": ["the-root"],
        "documentRoots": ["the-root"],
        "revoked": [],
        "generation": 1,
        "signed": True,
        "phase": "steady",
        "rotation": None,
        "degraded": False,
        "source": "store",
        "known": 1,
        "pending": 0,
        "refusal": None,
        "rootSigners": [],
        "signingProblem": None,
        "keyOnDisk": False,
        "data": {"records": 0, "damaged": 0, "unverifiable": 0, "unwritable": 0},
    }


async def test_a_new_identity_signs_from_the_next_commit_on_and_the_old_one_stays_trusted(
    tmp_path: Path, signer: OwnedSession
) -> None:
    first = document_of(signer)
    provider = await store_of(first)
    successor = root("the-next")
    async with Server(tmp_path, settings_of(provider), debug=True) as server, client_of(server) as http:
        client = NodeClient("http://node", http=http)
        notes = server.database().repository("/data/notes")
        await notes.create("one", "note/1", {"title": "by the first"})
        document = prepare_rotation(
            first, successor, now_ms=now_ms(), rotation_id="r", started_by="t", stable_version=None
        )
        await provider.write(SECRET, encode_document(document), label="current", expected=(await head(provider)))
        assert await client.refresh(signer) == {"generation": document.generation, "changed": True}
        assert await client.answers(successor), "a document root is trusted before it signs"
        await notes.create("two", "note/1", {"title": "still by the first"})
        document = activate_rotation(with_phase(document, Phase.PUBLISHED, now_ms()), now_ms())
        await provider.write(SECRET, encode_document(document), label="current", expected=(await head(provider)))
        assert (await client.refresh(successor) or {})["changed"] is True
        await notes.create("three", "note/1", {"title": "by the next"})

        identity = await client.identity()
        assert identity is not None
        assert (identity.signer, identity.phase, identity.generation) == (
            "the-next",
            "activated",
            document.generation,
        )
        commits = {record["k"]: record["s"] for record in await client.pull("/data/notes", signer)}
        assert commits == {"one": "the-root", "two": "the-root", "three": "the-next"}
        user, roots = await client.create_session()
        assert {one.id for one in roots} == {"the-root", "the-next"}
        assert await client.answers(user)


async def head(provider: MemorySecretProvider) -> Any:
    return (await provider.read(SECRET)).version.id


async def test_only_a_root_may_have_the_settings_looked_at(http: httpx2.AsyncClient, signer: OwnedSession) -> None:
    client = NodeClient("http://node", http=http)
    user, _ = await client.create_session()
    for stranger in (user, root("stranger")):
        with pytest.raises(NodeRefusedError) as refusal:
            await client.refresh(stranger)
        assert refusal.value.status == 403
    assert (await http.post("/goatherd/v1/refresh")).status_code == 403
    assert await client.refresh(signer) == {"generation": 1, "changed": False}


async def test_only_a_root_gets_the_urls_of_the_peers(tmp_path: Path, signer: OwnedSession) -> None:
    peer = "http://127.0.0.1:1"
    provider = await store_of(document_of(signer))
    async with Server(tmp_path, settings_of(provider), peers=[peer]) as server, client_of(server) as http:
        client = NodeClient("http://node", http=http)
        assert peer not in (await http.get("/goatherd/v1/identity")).text
        user, _ = await client.create_session()
        for stranger in (user, root("stranger")):
            with pytest.raises(NodeRefusedError) as refusal:
                await client.list_peers(stranger)
            assert refusal.value.status == 403
        assert (await http.post("/goatherd/v1/peers", content=b"{}")).status_code == 403
        assert [one.url for one in await client.list_peers(signer)] == [peer]


async def test_sessions_in_the_log_that_no_root_signed_are_not_trusted_after_a_start(
    tmp_path: Path, signer: OwnedSession
) -> None:
    """GoatDB trusts every session in the log; here each is verified, in the background or when first needed."""
    good, bad = (OwnedSession.generate(session_id=name, owner=None, now_ms=now_ms()) for name in ("good", "bad"))
    log = tmp_path / ORG / "sys" / "sessions.jsonl"
    log.parent.mkdir(parents=True)
    commits = [session_commit(signer, good.session), session_commit(root("stranger"), bad.session)]
    log.write_bytes(b"".join(b"\n" + json.dumps(commit.to_json()).encode() + b"\n" for commit in commits))
    provider = await store_of(document_of(signer))
    async with Server(tmp_path, settings_of(provider), debug=True) as server, client_of(server) as http:
        client = NodeClient("http://node", http=http)
        assert await client.answers(good)
        assert not await client.answers(bad)

        async def verified() -> bool:
            return server.database().pool.known_count == 2

        await eventually(verified)


# --- from Python ------------------------------------------------------------------------------------------------------


async def test_items_are_written_signed_and_read_from_python(
    server: Server, http: httpx2.AsyncClient, signer: OwnedSession
) -> None:
    notes = server.database(ORG).repository("/data/notes")
    assert await notes.get("a") is None
    created = await notes.create("a", "note/1", {"title": "first"})
    assert (created.schema, created.data) == ("note/1", {"title": "first"})
    with pytest.raises(ItemExistsError):
        await notes.create("a", "note/1", {})
    assert (await notes.set("a", {"title": "second"})).data == {"title": "second"}
    await notes.create("b", "note/1", {"n": 1.5, "tags": ["x"]})
    assert await notes.keys() == ["a", "b"]
    await notes.delete("a")
    assert await notes.get("a") is None
    assert await notes.keys() == ["b"]
    with pytest.raises(ItemNotFoundError):
        await notes.set("a", {})
    with pytest.raises(PathError):
        server.database().repository("/../outside")
    commits = await NodeClient("http://node", http=http).pull("/data/notes", signer)
    assert len(commits) == 4
    for raw in commits:
        verify_commit(signer.session, Commit.from_json(raw, org=ORG))


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        (datetime(2026, 1, 2, 3, 4, 5, 678_901, tzinfo=UTC), datetime(2026, 1, 2, 3, 4, 5, 678_000, tzinfo=UTC)),
        (datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone(timedelta(hours=2))), datetime(2026, 1, 2, 1, 4, 5, tzinfo=UTC)),
        (datetime(2004, 5, 6, 7, 8, 9, 1_000, tzinfo=UTC), datetime(2004, 5, 6, 7, 8, 9, tzinfo=UTC)),
        (
            datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
            datetime(1969, 12, 31, 23, 59, 59, 999_000, tzinfo=UTC),
        ),
    ],
    ids=["microseconds", "another time zone", "a millisecond that changes", "before 1970"],
)
async def test_a_server_that_knows_the_schema_can_verify_a_datetime_that_was_written_without_it(
    server: Server, http: httpx2.AsyncClient, signer: OwnedSession, when: datetime, expected: datetime
) -> None:
    await server.database(ORG).repository("/data/notes").create("a", "note/1", {"when": when})
    (raw,) = await NodeClient("http://node", http=http).pull("/data/notes", signer)
    registry = Registry([Schema(ns="note", version=1, fields=(SchemaField(name="when", type="date"),))])
    commit = Commit.from_json(raw, org=ORG, registry=registry)
    verify_commit(signer.session, commit)
    assert commit.data == {"when": expected.timestamp()}


# --- process ----------------------------------------------------------------------------------------------------------

LONG = timedelta(seconds=10)
"""How long a new session waits here for peers that do not answer: one that waits shorter has not waited for that."""


async def test_a_new_session_is_known_to_the_peers_before_its_client_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GoatDB sleeps a second instead."""
    monkeypatch.setattr(database, "SETTLE", LONG)
    signer = root("shared")
    async with cluster(tmp_path, 3, [document_of(signer)], links=all_others(3)) as nodes:
        for node in nodes:
            node.server.database()._debug = False

        async def quickly() -> bool:
            started = asyncio.get_running_loop().time()
            user, _ = await nodes[0].client.create_session()
            took = asyncio.get_running_loop().time() - started
            known = [await node.client.answers(user) for node in nodes]
            return took < LONG.total_seconds() and known == [True, True, True]

        await eventually(quickly)


async def test_a_peer_that_is_known_to_be_down_keeps_no_new_session_waiting(
    tmp_path: Path, signer: OwnedSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "SETTLE", LONG)
    server = Server(tmp_path, settings_of(await store_of(document_of(signer))), peers=["http://127.0.0.1:1"])
    async with server, client_of(server) as http:

        async def down() -> bool:
            return server.database().peers[0].last_error is not None

        async def quickly() -> bool:
            started = asyncio.get_running_loop().time()
            await NodeClient("http://node", http=http).create_session()
            return asyncio.get_running_loop().time() - started < LONG.total_seconds()

        await eventually(down)
        await eventually(quickly)


async def test_requests_that_arrive_together_take_their_turns_in_order_and_one_in_each_round_of_the_loop() -> None:
    turns, rounds, taken = _Turns(), 0, list[tuple[int, int]]()
    loop = asyncio.get_running_loop()

    def count_rounds() -> None:
        nonlocal rounds
        rounds += 1
        if len(taken) < 9:
            loop.call_soon(count_rounds)

    async def work(number: int) -> None:
        await turns.take()
        taken.append((number, rounds))

    count_rounds()
    tasks = [asyncio.create_task(work(number)) for number in range(10)]
    await asyncio.sleep(0)
    tasks[3].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert [number for number, _ in taken] == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    assert len({at for _, at in taken}) == 9
    await asyncio.wait_for(work(10), HANG)
    await asyncio.wait_for(work(11), HANG)
