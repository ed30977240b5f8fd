"""Sessions that have signed nothing yet: not in ``/sys/sessions``, but known to each server once they sign."""

from __future__ import annotations

import base64
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest

from goatherd.cluster.client import SENDER_HEADER, NodeClient, NodeRefusedError
from goatherd.crypto import PublicKey
from goatherd.identity.session import OwnedSession, Session, sign_request
from goatherd.identity.transitions import create_document
from goatherd.ids import new_id
from goatherd.node import Server, unused_session_exchange
from goatherd.node.log_storage import UNUSED_NAME, FileLog, LogDirectory
from goatherd.node.unused_sessions import UNUSED_LOG, UnusedSessions, record_of
from goatherd.wire.paths import SESSIONS_PATH
from tests.deadlines import ANSWER, HANG
from tests.unit.node.nodes import (
    ORG,
    Node,
    all_others,
    cluster,
    document_of,
    eventually,
    now_ms,
    root,
    signed_commit,
)

DAY = 86_400_000


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unused_session_exchange, "INTRODUCED_AFTER_START", timedelta(0))
    monkeypatch.setattr(unused_session_exchange, "LOOK", timedelta(milliseconds=20))
    monkeypatch.setattr(unused_session_exchange, "FETCH_AGAIN", timedelta(milliseconds=20))
    monkeypatch.setattr(unused_session_exchange, "AGAIN_AFTER", timedelta(milliseconds=20))
    monkeypatch.setattr(unused_session_exchange, "CONFIRMED_WITHIN", ANSWER)


@pytest.fixture
def signer() -> OwnedSession:
    return root("signer")


def table_of(node: Node) -> UnusedSessions:
    unused = node.server.database().engine.unused
    assert unused is not None
    return unused


def introduced(node: Node) -> list[str]:
    return node.server.database().engine.get_repository(SESSIONS_PATH).item_keys()


async def ready(nodes: list[Node]) -> None:
    """Wait until every server knows its peers' processes, and so can keep unused sessions out of its log."""

    async def all_may() -> bool:
        exchanges = [node.server.database()._exchange for node in nodes]
        peers = [len(node.server.peers) for node in nodes]
        instances = {node.server.database().engine.instance for node in nodes}
        return all(
            one is not None and one.may_defer and len(one._confirmed) >= count and one._is_complete(instances)
            for one, count in zip(exchanges, peers, strict=True)
        )

    await eventually(all_may)


def session_of(number: int = 0, expiration_ms: int = 0) -> Session:
    owned = OwnedSession.generate(session_id=f"s{number:04}", owner=None, now_ms=now_ms())
    end = expiration_ms or now_ms() + 30 * DAY
    return Session(id=owned.id, public_key=owned.session.public_key, owner=None, expiration_ms=end)


# --- the table --------------------------------------------------------------------------------------------------------


def test_a_compressed_key_is_the_same_key() -> None:
    for _ in range(20):
        key = session_of().public_key
        assert len(key.compressed) == 49
        assert PublicKey.from_compressed(key.compressed) == key


def test_the_table_is_bounded_and_drops_the_oldest(tmp_path: Path) -> None:
    with LogDirectory(tmp_path) as logs:
        unused, session = UnusedSessions(logs.open_unused(), capacity=32), session_of()
        for number in range(100):
            unused.add_session(
                Session(id=f"s{number}", public_key=session.public_key, owner=None, expiration_ms=now_ms() + DAY)
            )
            assert len(unused) <= 32
        assert unused.find_session("s99", now_ms()) is not None
        assert unused.find_session("s10", now_ms()) is None
        assert unused.dropped_count == 100 - len(unused)


def test_the_log_is_written_anew_once_most_of_it_is_of_no_more_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("goatherd.node.unused_sessions._SPARE_RECORDS", 20)
    monkeypatch.setattr("goatherd.node.unused_sessions._LEAVING", 4)
    session = session_of()
    with LogDirectory(tmp_path) as logs:
        log = logs.open_unused()
        unused = UnusedSessions(log)
        for number in range(200):
            unused.add_session(
                Session(id=f"s{number}", public_key=session.public_key, owner=None, expiration_ms=now_ms() + DAY)
            )
            if number % 10:
                unused.discard_session(f"s{number}")
            log.flush()
            assert len(log.read_records()) <= 2 * len(unused) + 25
            assert any(record["id"] == f"s{number}" for record in log.read_records()), (
                "until its introduction is durable"
            )
        assert (tmp_path / UNUSED_NAME).stat().st_mode & 0o777 == 0o600
    with LogDirectory(tmp_path) as logs:
        again = UnusedSessions(logs.open_unused())
        again.load_log(lambda session_id: session_id == "s10" or not session_id.endswith("0"), now_ms())
        assert [one.id for one in again.oldest_sessions(100, now_ms())] == [
            f"s{number}" for number in range(0, 200, 10) if number != 10
        ]


def test_a_rewrite_that_fails_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with LogDirectory(tmp_path) as logs:
        log = logs.open_unused()
        log.append_record({"id": "a"})
        log.flush()
        log.rewrite_records(lambda: [{"id": "b"}])
        log.append_record({"id": "c"})
        with monkeypatch.context() as patch:
            patch.setattr("goatherd.node.log_storage._replace_file", full)
            with pytest.raises(Exception, match="No space"):
                log.flush()
        assert log.unflushed == 2
        log.flush()
        assert [record["id"] for record in log.read_records()] == ["b", "c"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"id": "../x"},
        {"id": 7},
        {"id": "x" * 64},
        {"key": "?"},
        {"key": None},
        {"key": "AAAA"},
        {"expiration": 0},
        {"expiration": True},
        {"expiration": 1e300},
        {"expiration": 10**20},
    ],
)
def test_what_a_peer_sends_is_checked(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with LogDirectory(tmp_path) as logs:
        unused = UnusedSessions(logs.open_unused())
        record = record_of(session_of())
        assert unused.add_records([{**record, **wrong}, {}], lambda _: False, now_ms()) == 0
        assert unused.add_records([record], lambda _: True, now_ms()) == 0
        assert unused.add_records([record, record], lambda _: False, now_ms()) == 1
        assert unused.find_session("s0000", now_ms() + 31 * DAY) is None
        unused.drop_expired(now_ms() + 31 * DAY)
        assert len(unused) == 0


def test_a_record_whose_key_was_damaged_on_a_disk_keeps_no_other_session_out(tmp_path: Path) -> None:
    with LogDirectory(tmp_path) as logs:
        unused = UnusedSessions(logs.open_unused())
        damaged, whole = record_of(session_of(1)), record_of(session_of(2))
        damaged["key"] = base64.urlsafe_b64encode(bytes([2, *bytes(47), 1])).decode()  # no point has this x
        assert unused.add_records([damaged, whole], lambda _: False, now_ms()) == 2
        assert unused.find_session(damaged["id"], now_ms()) is None
        assert [one.id for one in unused.oldest_sessions(10, now_ms())] == [whole["id"]]


# --- one server -------------------------------------------------------------------------------------------------------


async def test_a_session_is_introduced_by_its_first_request_and_by_no_other(
    tmp_path: Path, signer: OwnedSession
) -> None:
    async with cluster(tmp_path, 1, [document_of(signer)], links=lambda _: []) as (node,):
        (user, roots), (silent, _) = await node.client.create_session(), await node.client.create_session()
        assert [one.id for one in roots] == ["signer"]
        assert introduced(node) == []
        forger = OwnedSession.generate(session_id=user.id, owner=None, now_ms=now_ms())
        assert not await node.client.answers(forger)
        assert not await node.client.answers(user, now_ms() - 600_000)
        assert (introduced(node), len(table_of(node))) == ([], 2)

        await node.stop()
        node.server = Server(node.directory, node.settings, debug=True)
        async with node.server:
            transport = httpx2.ASGITransport(node.server.app)
            async with httpx2.AsyncClient(transport=transport, base_url="http://node") as http:
                client = NodeClient("http://node", http=http)
                assert len(table_of(node)) == 2, "it survives a restart"
                seen = await client.pull(SESSIONS_PATH, user)
                assert [commit["k"] for commit in seen] == [user.id], "its first answer shows it its introduction"
                assert seen[0]["s"] == "signer"
                await client.push("/data/a", [signed_commit(user, "k")], user)
                assert len(await client.pull("/data/a", user)) == 1
                assert len(table_of(node)) == 1
                text = (await http.get("/goatherd/v1/metrics")).text
                assert "goatherd_unused_sessions 1.0" in text
        again = Server(node.directory, node.settings, debug=True)
        async with again:
            unused = again.database().engine.unused
            assert unused is not None
            assert [one.id for one in unused.oldest_sessions(10, now_ms())] == [silent.id]


async def test_a_session_is_introduced_by_a_commit_of_its_own_and_by_no_forgery(
    tmp_path: Path, signer: OwnedSession
) -> None:
    async with cluster(tmp_path, 1, [document_of(signer)], links=lambda _: []) as (node,):
        user, _ = await node.client.create_session()
        victim, _ = await node.client.create_session()
        forged = signed_commit(OwnedSession.generate(session_id=victim.id, owner=None, now_ms=now_ms()), "forged")
        written = [signed_commit(user, "k"), signed_commit(user, "l")]
        await node.client.push("/data/a", [*written, forged], signer)
        assert introduced(node) == [user.id]
        assert victim.id in table_of(node)
        assert await node.holds("/data/a", signer) == {commit.id for commit in written}
        await node.client.push("/data/a", [forged], signer)
        assert introduced(node) == [user.id]


async def test_a_session_signs_its_first_request_after_another_root_has_taken_over(
    tmp_path: Path, signer: OwnedSession
) -> None:
    async with cluster(tmp_path, 1, [document_of(signer)], links=lambda _: []) as (node,):
        user, _ = await node.client.create_session()
        successor = root("successor")
        node.server.database().pool.adopt_document(create_document(successor, now_ms(), roots=[signer.session]))
        assert await node.client.answers(user)
        (commit,) = node.server.database().engine.get_repository(SESSIONS_PATH).commits_of(user.id)
        assert commit.session == "successor"


async def test_a_log_of_unused_sessions_that_cannot_be_written_is_507_and_hurts_nothing_else(
    tmp_path: Path, signer: OwnedSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = FileLog._append_bytes

    def full(log: FileLog, data: bytes) -> None:
        if log.file.name == UNUSED_NAME:
            raise OSError(28, "No space left on device")
        write(log, data)

    async with cluster(tmp_path, 1, [document_of(signer)], links=lambda _: []) as (node,):
        user, _ = await node.client.create_session()
        with monkeypatch.context() as patch:
            patch.setattr(FileLog, "_append_bytes", full)
            for _ in range(2):
                with pytest.raises(NodeRefusedError) as refused:
                    await node.client.create_session()
                assert refused.value.status == 507
            assert await node.client.answers(user), "its introduction can be written"
        await node.server.database()._disk.retry_failed()
        await node.client.create_session()
        assert UNUSED_LOG not in node.server.database().synced_paths(), "no repository for the peers"


async def test_none_is_kept_back_where_the_operator_says_so(tmp_path: Path, signer: OwnedSession) -> None:
    async with cluster(tmp_path, 1, [document_of(signer)], links=lambda _: []) as (node,):
        early, _ = await node.client.create_session()
        assert introduced(node) == []
        await node.stop()
        async with Server(node.directory, node.settings, debug=True, unused_sessions=0) as server:
            sessions = server.database().engine.get_repository(SESSIONS_PATH)

            async def is_introduced() -> bool:
                return early.id in sessions.item_keys()

            await eventually(is_introduced)
            body = {"publicKey": session_of().public_key.to_jwk()}
            transport = httpx2.ASGITransport(server.app)
            async with httpx2.AsyncClient(transport=transport, base_url="http://node") as http:
                made = (await http.post("/auth/session", json=body)).json()["session"]["id"]
            assert made in sessions.item_keys()


# --- several servers --------------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_a_session_of_one_server_signs_its_first_request_at_another(tmp_path: Path, signer: OwnedSession) -> None:
    async with cluster(tmp_path, 3, [document_of(signer)], links=all_others(3)) as nodes:
        await ready(nodes)
        users = [(await nodes[0].client.create_session())[0] for _ in range(4)]
        assert [introduced(node) for node in nodes] == [[], [], []]
        assert [len(table_of(node)) for node in nodes] == [4, 4, 4]
        await nodes[0].stop()  # the server that made them is not needed any more
        assert await nodes[1].client.answers(users[0])
        commit = signed_commit(users[1], "k")
        await nodes[2].client.push("/data/a", [commit], users[1])

        async def is_everywhere() -> bool:
            held = [await node.holds("/data/a", signer) for node in nodes[1:]]
            known = [sorted(introduced(node)) == sorted([users[0].id, users[1].id]) for node in nodes[1:]]
            return all(known) and held == [{commit.id}, {commit.id}]

        await eventually(is_everywhere)
        assert [len(table_of(node)) for node in nodes[1:]] == [2, 2]
        nodes.pop(0)


@pytest.mark.slow
@pytest.mark.parametrize("created_at", [0, 1])
async def test_in_a_chain_of_servers_a_session_is_known_at_both_ends(
    tmp_path: Path, signer: OwnedSession, created_at: int
) -> None:
    """The servers at the ends do not know each other, so only introductions reach both."""
    links = {0: [1], 1: [0, 2], 2: [1]}
    async with cluster(tmp_path, 3, [document_of(signer)], links=lambda index: links[index]) as nodes:
        await ready(nodes)
        users = [(await nodes[created_at].client.create_session())[0] for _ in range(3)]
        expected = [] if created_at == 1 else sorted(user.id for user in users)
        assert sorted(introduced(nodes[created_at])) == expected

        async def is_known() -> bool:
            at_the_ends = [await nodes[end].client.answers(users[0]) for end in (0, 2)]
            return all(at_the_ends)

        await eventually(is_known)


@pytest.mark.slow
async def test_a_session_is_introduced_at_once_where_a_peer_does_not_confirm_it(
    tmp_path: Path, signer: OwnedSession
) -> None:
    async with cluster(tmp_path, 2, [document_of(signer)], links=all_others(2)) as nodes:
        await ready(nodes)
        await nodes[1].stop()
        user, _ = await nodes[0].client.create_session()
        assert introduced(nodes[0]) == [user.id]
        nodes.pop(1)


async def test_a_server_that_comes_later_fetches_what_the_others_have(tmp_path: Path, signer: OwnedSession) -> None:
    async with cluster(tmp_path, 2, [document_of(signer)], links=lambda index: [0] if index else []) as nodes:
        first, second = nodes
        exchange = second.server.database()._exchange
        assert exchange is not None
        courier = exchange._couriers[0]

        async def has_asked() -> bool:
            return courier.has_given

        await eventually(has_asked)  # the first time, when there is nothing to fetch yet
        users = [OwnedSession.generate(session_id=new_id(), owner=None, now_ms=now_ms()) for _ in range(3)]
        for user in users:
            table_of(first).add_session(user.session)

        async def has_them() -> bool:
            return len(table_of(second)) == 3

        courier.has_given, courier.fetch_not_before = False, 0.0
        await eventually(has_them)
        assert await second.client.answers(users[0])


async def test_the_exchange_continues_after_the_tidied_log_could_not_be_written(
    tmp_path: Path, signer: OwnedSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unused_session_exchange, "TIDY", timedelta(0))
    write, is_full = FileLog._append_bytes, False

    def append(log: FileLog, data: bytes) -> None:
        if is_full and log.file.is_relative_to(tmp_path / "1"):
            raise OSError(28, "No space left on device")
        write(log, data)

    monkeypatch.setattr(FileLog, "_append_bytes", append)
    async with cluster(tmp_path, 2, [document_of(signer)], links=lambda index: [0] if index else []) as (first, second):
        database = second.server.database()
        exchange = database._exchange
        assert exchange is not None
        courier = exchange._couriers[0]

        async def has_fetched() -> bool:
            return courier.has_given

        async def has_failed() -> bool:
            return UNUSED_LOG in database._disk.failing

        async def has_both() -> bool:
            return len(table_of(second)) == 2

        await eventually(has_fetched)
        is_full = True
        table_of(second).add_session(session_of())
        await eventually(has_failed)
        is_full = False
        await database._disk.retry_failed()
        table_of(first).add_session(session_of(1))
        courier.has_given, courier.fetch_not_before = False, 0.0
        await eventually(has_both)


@pytest.mark.slow
async def test_while_a_server_asks_that_confirms_nothing_every_session_is_introduced(
    tmp_path: Path, signer: OwnedSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unused_session_exchange, "PERSISTENT", timedelta(seconds=1))
    async with cluster(tmp_path, 1, [document_of(signer)], links=lambda _: []) as (node,):
        early, _ = await node.client.create_session()
        await node.client.pull(SESSIONS_PATH, signer)  # as a tool
        assert introduced(node) == []

        async def ask(**more: str) -> None:
            header = {"x-goat-sig": sign_request(signer, now_ms=now_ms(), nonce=new_id()), **more}
            async with httpx2.AsyncClient(base_url=node.url, timeout=HANG) as http:
                assert (await http.post("/batch-sync", json=[], headers=header)).status_code == 200

        await ask()  # as GoatDB does
        late, _ = await node.client.create_session()
        assert introduced(node) == [late.id]

        async def is_introduced() -> bool:
            await ask()
            return early.id in introduced(node)

        await eventually(is_introduced)
        monkeypatch.setattr(unused_session_exchange, "REMEMBERED", timedelta(0))
        await ask(**{SENDER_HEADER: new_id()})
        monkeypatch.undo()
        another, _ = await node.client.create_session()
        assert another.id in introduced(node), "another Goatherd server that is no peer of this one"


async def test_only_a_root_reads_or_writes_the_unused_sessions_of_others(tmp_path: Path, signer: OwnedSession) -> None:
    async with cluster(tmp_path, 1, [document_of(signer)], links=lambda _: []) as (node,):
        user, _ = await node.client.create_session()
        for asker in (user, root("signer"), root("stranger")):
            with pytest.raises(NodeRefusedError) as refused:
                await node.client.unused("", asker)
            assert refused.value.status == 403
        (record,) = await node.client.unused("", signer)
        assert set(record) == {"id", "key", "expiration"}
        assert record["id"] == user.id
        assert (tmp_path / "0" / ORG / UNUSED_NAME).exists()
