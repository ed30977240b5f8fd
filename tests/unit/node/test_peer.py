"""Synchronization between servers: over real sockets, and against a simulated GoatDB peer and clock."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Collection, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from goatherd.errors import NodeRefusedError, NodeUnreachableError, StorageError
from goatherd.identity.session import OwnedSession
from goatherd.ids import new_id, new_seeds
from goatherd.node.database import MAX_LACKING
from goatherd.node.peer import MANY, MAX_BYTES, MAX_COMMITS, MAX_PATHS, MIN_COMMITS, POLL_MAX, Peer, _Waiting
from goatherd.wire.bloom import BloomFilter, seed_count
from goatherd.wire.commit import Commit
from goatherd.wire.json import to_json_bytes
from goatherd.wire.messages import EncodedMessage, encode_request, filter_parameters
from tests.unit.node.nodes import (
    Node,
    all_others,
    cluster,
    document_of,
    eventually,
    now_ms,
    root,
    session_commit,
    signed_commit,
)

PATH = "/data/notes"


def user(session_id: str = "") -> OwnedSession:
    return OwnedSession.generate(session_id=session_id or new_id(), owner=None, now_ms=now_ms())


async def all_hold(nodes: Sequence[Node], path: str, ids: set[str], signer: OwnedSession) -> None:
    async def hold() -> bool:
        return all([ids <= await node.holds(path, signer) for node in nodes])

    await eventually(hold)


# --- real servers ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_five_servers_that_know_each_other_converge(tmp_path: Path) -> None:
    signer = root("shared")
    async with cluster(tmp_path, 5, [document_of(signer)], links=all_others(5)) as nodes:
        written: set[str] = set()
        for node in nodes:
            author, _ = await node.client.create_session()
            commits = [signed_commit(author) for _ in range(20)]
            await node.client.push(PATH, commits, author)
            written |= {commit.id for commit in commits}
        await all_hold(nodes, PATH, written, signer)
        assert [await node.holds(PATH, signer) for node in nodes] == [written] * 5
        sessions = [await node.holds("/sys/sessions", signer) for node in nodes]
        assert [len(one) for one in sessions] == [5] * 5

        async def all_online() -> bool:
            return all(status.online for node in nodes for status in node.server.database().peers)

        await eventually(all_online)


async def test_a_server_says_which_processes_it_has_synchronized_with_lately() -> None:
    link = Link(PATH)
    assert (link.peer.status.was_tried, link.peer.status.instances) == (False, ())
    link.there.answered_by = "instance1"
    await link.until(lambda: link.peer.status.rounds > 0)
    assert link.peer.status.instances == ("instance1",)
    link.there.answered_by = "instance2"
    await link.let_pass(5)
    assert set(link.peer.status.instances) == {"instance1", "instance2"}, "behind one URL there may be several"
    await link.let_pass(60)
    assert link.peer.status.instances == ("instance2",)
    link.there.down = NodeUnreachableError("gone")
    await link.let_pass(60)
    assert (link.peer.status.was_tried, link.peer.status.online, link.peer.status.instances) == (True, False, ())


@pytest.mark.slow
async def test_answers_say_which_process_gave_them(tmp_path: Path) -> None:
    signer = root("shared")
    async with cluster(tmp_path, 2, [document_of(signer)], links=all_others(2)) as nodes:
        client = nodes[0].client
        await client.batch_sync([], signer)
        assert client.answered_by == nodes[0].server.database().instance
        other = nodes[1].server.database()
        assert client.answered_by != other.instance

        async def is_told() -> bool:
            identity = await client.identity()
            return identity is not None and [peer.instances for peer in identity.peers or ()] == [(other.instance,)]

        async with asyncio.timeout(60):
            while not await is_told():
                await asyncio.sleep(0.05)


@pytest.mark.slow
async def test_a_commit_is_everywhere_before_the_next_poll(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new commit is pushed at once; the next poll is an hour away."""
    for name in ("POLL_MIN", "POLL_MAX"):
        monkeypatch.setattr(f"goatherd.node.peer.{name}", timedelta(hours=1))
    signer = root("shared")
    async with cluster(tmp_path, 3, [document_of(signer)], links=all_others(3)) as nodes:
        for _ in range(2):
            commit = signed_commit(signer)
            await nodes[0].client.push(PATH, [commit], signer)
            await all_hold(nodes, PATH, {commit.id}, signer)


@pytest.mark.slow
async def test_a_commit_reaches_servers_that_are_not_linked_to_its_own(tmp_path: Path) -> None:
    """Servers 0 - 1 - 2: only the middle one knows the others; it pulls from one and pushes to the other."""
    signer = root("shared")
    links = {0: [], 1: [0, 2], 2: []}
    async with cluster(tmp_path, 3, [document_of(signer)], links=lambda index: links[index]) as nodes:
        await nodes[1].server.database().repository(PATH).create("from-1", "note/1", {})
        await all_hold(nodes, PATH, await nodes[1].holds(PATH, signer), signer)
        commit = signed_commit(signer)
        await nodes[0].client.push(PATH, [commit], signer)
        await all_hold(nodes, PATH, {commit.id}, signer)


@pytest.mark.slow
async def test_a_server_fetches_what_its_clients_only_read_from_a_peer_that_does_not_know_it(tmp_path: Path) -> None:
    signer = root("shared")
    links = {0: [], 1: [0]}
    async with cluster(tmp_path, 2, [document_of(signer)], links=lambda index: links[index]) as nodes:
        commit = signed_commit(signer)
        await nodes[0].client.push(PATH, [commit], signer)
        reader, _ = await nodes[1].client.create_session()
        await all_hold(nodes[1:], PATH, {commit.id}, reader)


@pytest.mark.slow
async def test_of_requested_paths_that_no_server_has_only_the_latest_are_polled(tmp_path: Path) -> None:
    signer = root("shared")
    async with cluster(tmp_path, 2, [document_of(signer)], links=all_others(2)) as nodes:
        reader, _ = await nodes[0].client.create_session()
        for number in range(MAX_LACKING + 5):
            await nodes[0].holds(f"/data/n{number}", reader)
        looked_for = [path for path in nodes[0].server.database().synced_paths() if path.startswith("/data/n")]
        assert looked_for == [f"/data/n{number}" for number in range(5, MAX_LACKING + 5)]
        asked_for = [path for path in nodes[0].server.database()._peers[0]._repositories if path.startswith("/data/n")]
        assert sorted(asked_for) == sorted(looked_for)
        assert not [path for path in nodes[1].server.database().synced_paths() if path.startswith("/data/n")]


@pytest.mark.slow
async def test_requested_paths_that_no_server_has_do_not_stay_in_memory(tmp_path: Path) -> None:
    signer = root("shared")
    async with cluster(tmp_path, 2, [document_of(signer)], links=all_others(2)) as nodes:
        database = nodes[0].server.database()
        reader, _ = await nodes[0].client.create_session()
        await nodes[0].holds("/data/n", reader)
        before = database.peers[0].rounds

        async def has_asked_its_peer() -> bool:
            return database.peers[0].rounds >= before + 3

        await eventually(has_asked_its_peer)
        assert "/data/n" in database.synced_paths()
        assert "/data/n" not in database.engine.repositories
        commit = signed_commit(reader)
        await nodes[1].client.push("/data/n", [commit], reader)
        await all_hold(nodes, "/data/n", {commit.id}, reader)
        assert "/data/n" in database.engine.repositories


@pytest.mark.slow
async def test_what_was_written_while_a_server_was_down_arrives_when_it_is_back(tmp_path: Path) -> None:
    signer = root("shared")
    async with cluster(tmp_path, 3, [document_of(signer)], links=all_others(3)) as nodes:
        await nodes[0].client.push(PATH, [signed_commit(signer)], signer)
        await all_hold(nodes, PATH, await nodes[0].holds(PATH, signer), signer)
        await nodes[2].stop()
        author, _ = await nodes[0].client.create_session()
        commits = [signed_commit(author) for _ in range(MAX_COMMITS + 50)]
        await nodes[0].client.push(PATH, commits, author)
        await all_hold(nodes[:2], PATH, {commit.id for commit in commits}, signer)
        assert not all(status.online for status in nodes[0].server.database().peers)
        await nodes[2].start()
        await all_hold(nodes, PATH, {commit.id for commit in commits}, signer)


@pytest.mark.slow
async def test_nothing_is_lost_between_servers_with_different_roots_until_they_trust_each_other(tmp_path: Path) -> None:
    """Far more than ten offers are rejected; then each root introduces the other, and every commit is accepted."""
    one, two = root("one"), root("two")
    documents = [document_of(one), document_of(two)]
    async with cluster(tmp_path, 2, documents, links=all_others(2)) as (first, second):
        author, _ = await first.client.create_session()
        commits = [signed_commit(author) for _ in range(5)]
        await first.client.push(PATH, commits, author)
        await second.server.database().repository(PATH).create("here", "note/1", {})

        async def refused() -> bool:
            statuses = [*first.server.database().peers, *second.server.database().peers]
            return all(status.last_error is not None and "403" in status.last_error for status in statuses)

        await eventually(refused)
        for _ in range(15):
            for node in (first, second):
                node.server.database()._peers[0].sync_now()
            await asyncio.sleep(0.01)
        assert await second.holds(PATH, two) == {c["id"] for c in await second.client.pull(PATH, two)}
        assert len(await second.holds(PATH, two)) == 1
        await first.client.push("/sys/sessions", [session_commit(one, two.session)], one)
        await second.client.push("/sys/sessions", [session_commit(two, one.session)], two)
        for node in (first, second):
            node.server.database()._peers[0].sync_now()
        await all_hold([first], PATH, await second.holds(PATH, two), one)
        await all_hold([second], PATH, {commit.id for commit in commits}, two)
        assert await second.client.answers(author)


async def test_a_pulled_commit_is_verified_like_a_pushed_one_and_a_refused_one_waits_for_its_session(
    tmp_path: Path,
) -> None:
    """GoatDB's peers do not check signature, author and rules of the commits that a server sends."""
    signer, author, stranger = root("shared"), user("author"), user("stranger")
    async with cluster(tmp_path, 1, [document_of(signer)], links=all_others(1)) as (node,):
        database = node.server.database()
        good, early = signed_commit(signer), signed_commit(author)
        unsigned = {name: value for name, value in signed_commit(signer).to_json().items() if name != "sig"}
        tampered = {**signed_commit(signer).to_json(), "k": "another-key"}
        forged = {**signed_commit(stranger).to_json(), "s": signer.id}
        sent: list[Any] = [good.to_json(), early.to_json(), unsigned, tampered, forged, None, {"id": 5}]
        assert await database.store_commits(PATH, sent) == 1
        assert await node.holds(PATH, signer) == {good.id}
        assert await database.store_commits(PATH, sent) == 0
        outsider = signed_commit(user("outsider"))
        await database.store_commits("/sys/sessions", [session_commit(stranger, stranger.session).to_json()])
        await database.store_commits(PATH, [outsider.to_json()])
        assert await database.store_commits("/sys/sessions", [session_commit(signer, author.session).to_json()]) == 1
        await all_hold([node], PATH, {early.id}, signer)
        assert await node.holds(PATH, signer) == {good.id, early.id}


async def test_forged_commits_that_a_peer_sends_with_each_answer_are_verified_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GoatDB accepts forged commits from any client, and a server that rejects them receives them again with each
    poll."""
    signer, author, other = root("shared"), user("author"), user("other")
    async with cluster(tmp_path, 1, [document_of(signer)], links=all_others(1)) as (node,):
        database = node.server.database()
        await database.store_commits("/sys/sessions", [session_commit(signer, author.session).to_json()])
        forged = [{**signed_commit(author).to_json(), "k": f"k{number}"} for number in range(5)]
        forged += [{**signed_commit(other).to_json(), "s": author.id}]
        ingest = mock.Mock(side_effect=database.engine.ingest_commits)
        monkeypatch.setattr(database.engine, "ingest_commits", ingest)
        for _ in range(3):
            assert await database.store_commits(PATH, forged) == 0
        good = signed_commit(author)
        twin = {**good.to_json(), "k": "other"}
        for _ in range(2):
            await database.store_commits(PATH, [*forged, twin, good.to_json()])
        ingested = [len(call.args[1]) for call in ingest.call_args_list]
        assert ingested == [6, 2, 2], "of two with one id, it is not known which was rejected"
        assert await node.holds(PATH, signer) == {good.id}


async def test_a_commit_that_was_forged_in_the_name_of_a_session_may_be_good_for_a_later_session_of_that_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signer, first, second = root("shared"), user("same"), user("same")
    async with cluster(tmp_path, 1, [document_of(signer)], links=all_others(1)) as (node,):
        database = node.server.database()
        await database.store_commits("/sys/sessions", [session_commit(signer, first.session).to_json()])
        commit = signed_commit(second).to_json()
        assert [await database.store_commits(PATH, [commit]) for _ in range(2)] == [0, 0]
        monkeypatch.setattr(database.pool, "get_session", lambda _: second.session)
        ingest = mock.Mock(side_effect=database.engine.ingest_commits)
        monkeypatch.setattr(database.engine, "ingest_commits", ingest)
        await database.store_commits(PATH, [commit])
        assert ingest.call_count == 1


# --- against a simulated peer ---------------------------------------------------------------------------------------


class TurnedClock:
    """Time passes only while a task sleeps."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def now_ms(self) -> int:
        return round(self.seconds * 1000)

    def monotonic(self) -> float:
        return self.seconds

    async def sleep(self, duration: timedelta) -> None:
        await asyncio.sleep(0)
        self.seconds += duration.total_seconds()


class Shelf:
    """A repository: commits by id, in the order in which they arrived."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.commits: dict[str, Mapping[str, Any]] = {}

    def put(self, *commits: Mapping[str, Any]) -> int:
        fresh = [commit for commit in commits if commit["id"] not in self.commits]
        for commit in fresh:
            self.ids.append(commit["id"])
            self.commits[commit["id"]] = commit
        return len(fresh)

    def encoded_commit(self, commit_id: str) -> bytes:
        return to_json_bytes(self.commits[commit_id])


class Here:
    """The database that a `Peer` synchronizes."""

    def __init__(self, *paths: str) -> None:
        self.shelves = {path: Shelf() for path in (*paths, "/sys/users", "/sys/sessions")}
        self.current = root("current")
        self.unreadable: set[str] = set()
        self.unwritable: set[str] = set()
        self.failures = 0

    def current_signer(self) -> OwnedSession:
        return self.current

    def synced_paths(self) -> Sequence[str]:
        return list(self.shelves)

    async def open_view(self, path: str) -> Shelf:
        self.check(path, self.unreadable)
        return self.shelves[path]

    async def store_commits(self, path: str, commits: Sequence[Any]) -> int:
        self.check(path, self.unwritable)
        return self.shelves[path].put(*commits)

    def check(self, path: str, broken: Collection[str]) -> None:
        if path in broken:
            self.failures += 1
            raise StorageError(f"the log of {path} is broken")


class There:
    """A GoatDB server as a peer sees it: correct filters, unlimited replies, rejections without an error."""

    base_url = "http://there"

    def __init__(self) -> None:
        self.answered_by: str | None = None
        self.shelves: dict[str, Shelf] = {}
        self.refuses: set[str] = set()
        self.down: Exception | None = None
        self.batches: list[list[tuple[str, Mapping[str, Any]]]] = []
        self.signers: list[str] = []
        self.offers: dict[str, int] = {}
        self.broken: set[str] = set()
        self.status = 500
        self.refused_batches = 0
        self.most_bytes = 1 << 60

    async def batch_sync(
        self, requests: Sequence[tuple[str, EncodedMessage]], signer: OwnedSession, now_ms: int | None = None
    ) -> list[dict[str, Any]]:
        self.signers.append(signer.id)
        await asyncio.sleep(0)
        if self.down is not None:
            raise self.down
        for path in self.broken.intersection(path for path, _ in requests):
            self.refused_batches += 1
            raise NodeRefusedError(f"refused because of {path}", status=self.status)
        if len(encode_request(requests)) > self.most_bytes:
            raise NodeRefusedError("too large", status=413)
        batch = [(each["path"], each["msg"]) for each in json.loads(encode_request(requests))]
        self.batches.append(batch)
        return [self.reply(path, message) for path, message in batch]

    def reply(self, path: str, message: Mapping[str, Any]) -> dict[str, Any]:
        shelf = self.shelves.setdefault(path, Shelf())
        for commit in message["c"]:
            self.offers[commit["id"]] = self.offers.get(commit["id"], 0) + 1
        new = shelf.put(*(commit for commit in message["c"] if commit["id"] not in self.refuses))
        size, rate = filter_parameters(len(shelf.ids), message["s"], 1 if new else 3)
        bloom = BloomFilter.for_size(size, rate, new_seeds(seed_count(size, rate)))
        for commit_id in shelf.ids:
            bloom.add(commit_id)
        asked = BloomFilter.from_json(message["f"]["__v"])
        lacking = [shelf.commits[commit_id] for commit_id in shelf.ids if commit_id not in asked]
        return {"ver": 50595584, "f": {"__t": "E", "__v": bloom.to_json()}, "s": len(shelf.ids), "c": lacking}


class Link:
    """A `Peer` that synchronizes `Here` with `There`."""

    def __init__(self, *paths: str) -> None:
        self.here, self.there, self.clock = Here(*paths), There(), TurnedClock()
        self.peer = Peer(self.here, self.there, self.clock)  # type: ignore[arg-type]

    async def until(self, condition: Any, *, seconds: float = 120.0) -> None:
        """Advance the clock until a condition holds."""
        task = asyncio.create_task(self.peer.run())
        end = self.clock.seconds + seconds
        try:
            while not condition():
                assert self.clock.seconds < end, "in all that time it did not happen"
                await asyncio.sleep(0)
        finally:
            task.cancel()
            await asyncio.wait({task})

    async def let_pass(self, seconds: float) -> None:
        end = self.clock.seconds + seconds
        await self.until(lambda: self.clock.seconds >= end, seconds=seconds + 10)


def fake_commits(count: int, size: int = 10) -> list[dict[str, Any]]:
    return [{"id": new_id(), "k": "x" * size} for _ in range(count)]


async def test_both_sides_end_with_the_same_commits() -> None:
    link = Link(PATH)
    common, ours, theirs = fake_commits(50), fake_commits(60), fake_commits(70)
    link.here.shelves[PATH].put(*common, *ours)
    link.there.shelves[PATH] = Shelf()
    link.there.shelves[PATH].put(*common, *theirs)
    await link.until(lambda: len(link.there.shelves[PATH].ids) == len(link.here.shelves[PATH].ids) == 180)
    assert set(link.there.shelves[PATH].ids) == set(link.here.shelves[PATH].ids)
    assert not any(link.there.offers.get(commit["id"], 0) for commit in common), "nothing was sent that was there"


async def test_sessions_and_users_come_first_and_all_repositories_share_a_request() -> None:
    link = Link("/data/a", "/data/b")
    for path in link.here.shelves:
        link.here.shelves[path].put(*fake_commits(3))
    await link.until(lambda: sum(len(shelf.ids) for shelf in link.there.shelves.values()) == 12)
    for batch in link.there.batches:
        paths = [path for path, _ in batch]
        assert paths == sorted(paths, key=lambda path: (path != "/sys/sessions", path != "/sys/users"))
    assert len(link.there.batches[0]) == 4


async def test_a_session_goes_along_in_front_of_what_it_signed() -> None:
    link = Link(PATH)
    await link.let_pass(5)
    link.here.shelves["/sys/sessions"].put(*fake_commits(1))
    link.peer.mark_changed("/sys/sessions")
    link.here.shelves[PATH].put(*fake_commits(1))
    link.peer.mark_changed(PATH)
    before = len(link.there.batches)
    await link.until(lambda: len(link.there.batches) > before)
    assert [path for path, message in link.there.batches[before] if message["c"]] == ["/sys/sessions", PATH]


async def test_a_refused_commit_is_offered_for_ever_and_less_and_less_often() -> None:
    link = Link(PATH)
    (refused,) = fake_commits(1)
    link.here.shelves[PATH].put(refused)
    link.there.refuses = {refused["id"]}
    await link.let_pass(30)
    early = link.there.offers[refused["id"]]
    assert 5 <= early <= 20
    await link.let_pass(600)
    late = link.there.offers[refused["id"]] - early
    assert 10 < late < 40
    link.there.refuses.clear()
    await link.until(lambda: link.there.shelves[PATH].ids == [refused["id"]], seconds=40)


@pytest.mark.slow
async def test_refused_commits_do_not_stand_in_the_way_of_new_ones() -> None:
    link = Link(PATH)
    refused = fake_commits(10 * MAX_COMMITS)
    link.here.shelves[PATH].put(*refused)
    link.there.refuses = {commit["id"] for commit in refused}
    await link.let_pass(20)
    (news,) = fake_commits(1)
    link.here.shelves[PATH].put(news)
    link.peer.mark_changed(PATH)
    before = len(link.there.batches)
    await link.until(lambda: link.there.shelves[PATH].ids == [news["id"]], seconds=1)
    assert len(link.there.batches) == before + 1


async def test_requests_stay_small_enough_for_a_slow_server() -> None:
    link = Link(PATH)
    link.here.shelves[PATH].put(*fake_commits(3000, size=2000))
    await link.until(lambda: len(link.there.shelves[PATH].ids) == 3000 if PATH in link.there.shelves else False)
    for batch in link.there.batches:
        sent = [commit for _, message in batch for commit in message["c"]]
        assert len(sent) <= MAX_COMMITS
        assert sum(len(str(commit)) for commit in sent) <= MAX_BYTES * 1.1


async def test_after_a_time_out_less_is_sent_at_once() -> None:
    link = Link(PATH)
    link.here.shelves[PATH].put(*fake_commits(1000))
    await link.until(lambda: bool(link.there.batches))
    link.there.batches.clear()
    link.there.down = NodeUnreachableError("no answer within 30 s")
    await link.let_pass(30)
    link.there.down = None
    await link.until(lambda: any(message["c"] for batch in link.there.batches for _, message in batch))
    sizes = [sum(len(message["c"]) for _, message in batch) for batch in link.there.batches]
    assert 0 < next(size for size in sizes if size) <= 4 * MIN_COMMITS
    await link.until(lambda: len(link.there.shelves[PATH].ids) == 1000)


@pytest.mark.parametrize(
    "trouble", [NodeUnreachableError("refused"), NodeRefusedError("403", status=403), NodeRefusedError("?", status=200)]
)
async def test_no_trouble_loses_anything_and_waits_stay_short(trouble: Exception) -> None:
    link = Link(PATH)
    link.there.down = trouble
    commits = fake_commits(5)
    link.here.shelves[PATH].put(*commits)
    await link.let_pass(600)
    assert 250 <= len(link.there.signers) <= 700, "about every two seconds"
    assert not link.peer.status.online
    link.there.down = None
    await link.until(lambda: PATH in link.there.shelves and len(link.there.shelves[PATH].ids) == 5, seconds=3)
    assert link.peer.status.online
    assert link.peer.status.last_error is None


async def test_half_a_character_in_a_commit_does_not_end_the_syncing() -> None:
    """JavaScript writes a lone surrogate whenever it cuts a string in the middle of an emoji."""
    link = Link(PATH)
    link.here.shelves[PATH].put({"id": new_id(), "k": "a\ud83d", "\udc00": 2**70}, *fake_commits(1))
    await link.until(lambda: PATH in link.there.shelves and len(link.there.shelves[PATH].ids) == 2)


async def test_an_unexpected_error_is_logged_and_synchronization_continues(caplog: pytest.LogCaptureFixture) -> None:
    link = Link(PATH)
    link.there.down = ZeroDivisionError("a bug")
    link.here.shelves[PATH].put(*fake_commits(1))
    await link.let_pass(10)
    assert "a bug" in caplog.text
    assert not link.peer.status.online
    link.there.down = None
    await link.until(lambda: PATH in link.there.shelves and len(link.there.shelves[PATH].ids) == 1)


@pytest.mark.parametrize("fault", ["unreadable", "unwritable"])
async def test_a_broken_log_delays_no_other_repository(fault: str, caplog: pytest.LogCaptureFixture) -> None:
    bad = "/data/bad"
    link = Link(bad, PATH)
    here, there = link.here.shelves, link.there.shelves
    for path in (bad, PATH):
        there[path] = Shelf()
        here[path].put(*fake_commits(20))
        there[path].put(*fake_commits(20))
    broken: set[str] = getattr(link.here, fault)
    broken.add(bad)
    told = {path: link.peer.push_changes(path) for path in (bad, PATH)}
    await link.until(lambda: len(here[PATH].ids) == len(there[PATH].ids) == 40 and told[PATH].done())
    assert {path: one.result() for path, one in told.items()} == {bad: False, PATH: True}
    await link.let_pass(120)
    assert link.here.failures <= 15, "it is tried less and less often"
    assert link.peer.status.online
    assert link.peer.status.last_error == f"the log of {bad} is broken"
    assert caplog.text.count(f"cannot sync {bad}") == 1
    broken.clear()
    await link.until(lambda: len(here[bad].ids) == len(there[bad].ids) == 40, seconds=60)


@pytest.mark.parametrize(("bad", "status"), [("/data/bad", 500), ("/data/bad", 507), ("/sys/sessions", 500)])
async def test_a_repository_that_the_peer_refuses_delays_no_other(
    bad: str, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    link = Link(bad, PATH)
    here, there = link.here.shelves, link.there.shelves
    for path in (bad, PATH):
        here[path].put(*fake_commits(20))
        there[path] = Shelf()
        there[path].put(*fake_commits(20))
    link.there.broken, link.there.status = {bad}, status
    told = {path: link.peer.push_changes(path) for path in (bad, PATH)}
    await link.until(lambda: len(here[PATH].ids) == len(there[PATH].ids) == 40 and told[PATH].done(), seconds=10)
    assert {path: one.result() for path, one in told.items()} == {bad: False, PATH: True}
    refused = link.there.refused_batches
    for number in range(1, 31):
        here[PATH].put(*fake_commits(1))
        link.peer.mark_changed(PATH)
        await link.until(lambda: len(there[PATH].ids) == 40 + number, seconds=5)  # noqa: B023 - until it is awaited
    await link.let_pass(120)
    assert link.there.refused_batches - refused <= 30, "it is tried less and less often"
    assert link.peer.status.online
    assert link.peer.status.last_error == f"refused because of {bad}"
    assert caplog.text.count(f"cannot sync {bad}") == 1
    assert "peer_lost" not in caplog.text
    link.there.broken = set()
    await link.until(lambda: len(here[bad].ids) == len(there[bad].ids) == 40, seconds=60)
    await link.let_pass(5)
    assert link.peer.status.last_error is None


async def test_several_repositories_that_the_peer_refuses_delay_no_other() -> None:
    bad = {"/data/bad", "/data/worse"}
    link = Link(*bad, PATH)
    here, there = link.here.shelves, link.there.shelves
    for path in (*bad, PATH):
        here[path].put(*fake_commits(20))
        there[path] = Shelf()
    link.there.broken = bad
    await link.until(lambda: len(there[PATH].ids) == 20, seconds=10)
    for number in range(1, 121):
        here[PATH].put(*fake_commits(1))
        link.peer.mark_changed(PATH)
        await link.until(lambda: len(there[PATH].ids) == 20 + number, seconds=1)  # noqa: B023 - until it is awaited
        await link.let_pass(1)
        assert link.peer.status.online
    link.there.broken = set()
    await link.until(lambda: all(len(there[path].ids) == 20 for path in bad), seconds=60)


@pytest.mark.parametrize("others", [(), ("/data/other",)], ids=["alone", "beside another repository"])
async def test_a_peer_that_refuses_large_requests_gets_smaller_ones(others: tuple[str, ...]) -> None:
    link = Link(PATH, *others)
    here, there = link.here.shelves, link.there.shelves
    for path in (PATH, *others):
        there[path] = Shelf()
    here[PATH].put(*fake_commits(1000, size=2000))
    link.there.most_bytes = 300_000
    for _ in range(20):
        for path in others:
            here[path].put(*fake_commits(1))
            link.peer.mark_changed(path)
        await link.let_pass(1)
    assert {path: len(there[path].ids) for path in (PATH, *others)} == {PATH: 1000, **dict.fromkeys(others, 20)}


async def test_a_peer_that_refuses_every_repository_is_not_asked_for_each_all_the_time() -> None:
    link = Link(*(f"/data/{number}" for number in range(30)))
    link.there.down = NodeRefusedError("broken", status=500)
    await link.let_pass(600)
    assert len(link.there.signers) <= 1500, "one request every two seconds, and every half a minute one for each"
    assert not link.peer.status.online
    link.there.down = None
    await link.until(lambda: link.peer.status.online, seconds=5)


async def test_a_log_that_breaks_again_is_reported_and_retried_as_the_first_time(
    caplog: pytest.LogCaptureFixture,
) -> None:
    link = Link(PATH)
    here, there = link.here.shelves[PATH], link.there.shelves.setdefault(PATH, Shelf())
    link.here.unwritable.add(PATH)
    there.put(*fake_commits(40))  # a filter of so many does not hide them all from an answer
    await link.until(lambda: link.here.failures > 5, seconds=120)
    here.put(*there.commits.values())  # another peer has brought them, and now the log can be written
    link.here.unwritable.clear()
    await link.let_pass(120)
    assert link.peer.status.last_error is None
    link.here.unwritable.add(PATH)
    link.here.failures = 0
    there.put(*fake_commits(40))
    await link.until(lambda: link.here.failures > 2, seconds=10)
    assert caplog.text.count(f"cannot sync {PATH}") == 2


async def test_a_peer_that_was_asked_nothing_because_no_log_can_be_read_is_not_online() -> None:
    link = Link()
    link.here.unreadable = set(link.here.shelves)
    await link.let_pass(10)
    assert not link.there.batches
    assert not link.peer.status.online


async def test_a_peer_that_claims_to_hold_very_much_does_not_size_our_filters() -> None:
    link = Link(PATH)
    link.here.shelves[PATH].put(*fake_commits(3))
    truth = link.there.reply
    link.there.reply = lambda path, message: {**truth(path, message), "s": 2**52}  # type: ignore[method-assign]
    await link.let_pass(10)
    filters = [message["f"]["__v"]["d"] for batch in link.there.batches for _, message in batch]
    assert max(map(len, filters)) < 10_000
    assert len(link.there.shelves[PATH].ids) == 3


async def test_very_many_commits_are_looked_through_beside_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    link = Link(PATH)
    link.here.shelves[PATH].put(*fake_commits(MANY + 1))
    link.there.shelves[PATH] = Shelf()
    link.there.shelves[PATH].put(*link.here.shelves[PATH].commits.values())
    update, threads = BloomFilter.update, set()

    def noted(self: BloomFilter, members: Sequence[str]) -> None:
        if len(members) > MANY:
            threads.add(threading.current_thread())
        update(self, members)

    monkeypatch.setattr(BloomFilter, "update", noted)
    await link.until(lambda: link.peer.status.rounds > 8 and not link.peer.status.waiting)
    assert threads
    assert threading.main_thread() not in threads


async def test_a_peer_that_fails_now_and_then_is_reported_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    link = Link(PATH)
    for _ in range(200):
        link.there.down = NodeRefusedError("status 502", status=502)
        await link.until(lambda: link.peer.status.was_tried and not link.peer.status.online)
        link.there.down = None
        await link.until(lambda: link.peer.status.online)
    minutes = int((link.clock.seconds - 1000) // 60)
    lines = [record.getMessage().split()[0] for record in caplog.records]
    assert minutes > 2
    assert lines == ["node.peer_lost", "node.peer_found"] * (len(lines) // 2)
    assert minutes <= len(lines) // 2 <= minutes + 1
    caplog.clear()
    link.there.down = NodeUnreachableError("gone")
    await link.let_pass(300)
    assert [record.getMessage().split()[0] for record in caplog.records] == ["node.peer_lost"]


async def test_the_report_of_a_peer_that_rejects_requests_states_what_to_check(
    caplog: pytest.LogCaptureFixture,
) -> None:
    link = Link(PATH)
    link.there.down = NodeRefusedError("status 403", status=403, hint="Its clock differs.")
    await link.until(lambda: link.peer.status.was_tried and not link.peer.status.online)
    assert "message='status 403' do='Its clock differs.'" in caplog.text


async def test_a_hint_that_the_peer_is_back_is_taken_at_once() -> None:
    link = Link(PATH)
    link.there.down = NodeUnreachableError("refused")
    await link.let_pass(60)
    link.there.down = None
    now = link.clock.seconds
    link.peer.sync_now()
    await link.until(lambda: bool(link.there.batches))
    assert link.clock.seconds - now < 0.1


async def test_requests_are_signed_by_the_root_that_is_current_when_they_are_sent() -> None:
    link = Link(PATH)
    await link.until(lambda: len(link.there.signers) >= 2)
    link.here.current = root("next")
    link.peer.mark_changed(PATH)
    before = len(link.there.signers)
    await link.until(lambda: len(link.there.signers) > before)
    assert set(link.there.signers[:before]) == {"current"}
    assert link.there.signers[-1] == "next"


async def test_a_peer_that_lost_its_data_gets_it_again() -> None:
    link = Link(PATH)
    link.here.shelves[PATH].put(*fake_commits(100))
    await link.until(lambda: PATH in link.there.shelves and len(link.there.shelves[PATH].ids) == 100)
    await link.let_pass(30)
    assert link.peer.status.waiting == 0
    link.there.shelves[PATH] = Shelf()
    await link.until(lambda: len(link.there.shelves[PATH].ids) == 100, seconds=10)


async def test_a_peer_that_claims_to_hold_everything_is_not_believed() -> None:
    """A filter without seeds seems to contain every id."""
    link = Link(PATH)
    (commit,) = fake_commits(1)
    link.here.shelves[PATH].put(commit)
    honest = There.reply

    def lie(path: str, message: Mapping[str, Any]) -> dict[str, Any]:
        return {**honest(link.there, path, message), "f": {"__t": "E", "__v": {"d": "AA==", "s": []}}}

    link.there.reply = lie  # type: ignore[method-assign]
    await link.until(lambda: link.there.offers.get(commit["id"], 0) >= 2)
    assert link.peer.status.waiting == 1


async def test_a_commit_that_repeated_filters_contain_by_chance_is_sent_after_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A Goatherd server answers pushes with its last filter, extended, so the seeds stay the same."""
    monkeypatch.setattr("goatherd.node.peer.MAX_COMMITS", 5)
    link = Link(PATH)
    await link.let_pass(5)
    commits, pushed = fake_commits(200), BloomFilter.for_size(400, 0.05, new_seeds(seed_count(400, 0.05)))
    pushed.update([new_id() for _ in range(200)])  # an empty filter would contain no commit by chance
    pushed.add(commits[-1]["id"])
    honest = link.there.reply

    def answer(path: str, message: Mapping[str, Any]) -> dict[str, Any]:
        reply = honest(path, message)
        if message["c"]:
            pushed.update([commit["id"] for commit in message["c"]])
            reply["f"] = {"__t": "E", "__v": pushed.to_json()}
        return reply

    link.there.reply = answer  # type: ignore[method-assign]
    link.here.shelves[PATH].put(*commits)
    link.peer.mark_changed(PATH)
    await link.until(lambda: len(link.there.shelves[PATH].ids) == 200, seconds=10)


def test_a_commit_is_looked_up_once_in_filters_with_the_same_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    peer, shown = Link(PATH).peer, BloomFilter.for_size(2, 0.01, range(seed_count(2, 0.01)))
    shown.add("held")
    state = peer._state_of(PATH)
    state.waiting = {"held": _Waiting(), "absent": _Waiting()}
    peer._mark_confirmed(state, shown)
    looked_up: list[str] = []
    monkeypatch.setattr(BloomFilter, "__contains__", lambda _, member: bool(looked_up.append(member)))
    peer._mark_confirmed(state, shown)
    assert looked_up == ["absent"]
    assert state.wants_filters, "filters with other seeds decide about the other commit"


async def test_commits_are_confirmed_although_polls_are_answered_with_the_same_filter() -> None:
    """A Goatherd server sends the same filter while both hold the same; polls that claim every commit get other
    filters."""
    link = Link(PATH)
    honest, kept = link.there.reply, dict[int, Any]()

    def answer(path: str, message: Mapping[str, Any]) -> dict[str, Any]:
        reply = honest(path, message)
        if path == PATH and (message["c"] or message["f"]["__v"]["s"]):
            reply["f"] = kept.setdefault(reply["s"], reply["f"])
        return reply

    link.there.reply = answer  # type: ignore[method-assign]
    link.here.shelves[PATH].put(*fake_commits(30))
    await link.until(lambda: PATH in link.there.shelves and len(link.there.shelves[PATH].ids) == 30)
    await link.until(lambda: not link.peer.status.waiting, seconds=40)
    (news,) = fake_commits(1)
    link.there.shelves[PATH].put(news)
    await link.until(lambda: news["id"] in link.here.shelves[PATH].ids, seconds=10)


async def test_polls_slow_down_to_a_second_and_a_half_and_speed_up_with_news() -> None:
    link = Link(PATH)
    await link.let_pass(30)
    before = len(link.there.batches)
    await link.let_pass(30)
    assert 18 <= len(link.there.batches) - before <= 25


@pytest.mark.slow
async def test_very_many_repositories_do_not_mean_very_many_questions() -> None:
    link = Link(*(f"/data/r{number}" for number in range(10 * MAX_PATHS)))
    await link.let_pass(60)
    before = sum(len(batch) for batch in link.there.batches)
    await link.let_pass(60)
    asked = sum(len(batch) for batch in link.there.batches) - before
    assert asked <= 1.2 * 60 / POLL_MAX.total_seconds() * MAX_PATHS
    (news,) = fake_commits(1)
    link.here.shelves["/data/r5"].put(news)
    link.peer.mark_changed("/data/r5")
    await link.until(lambda: link.there.shelves["/data/r5"].ids == [news["id"]], seconds=1)


async def test_settled_tells_when_the_peer_has_been_offered_everything() -> None:
    link = Link(PATH)
    link.here.shelves["/sys/sessions"].put(*fake_commits(1))
    told = link.peer.push_changes("/sys/sessions")
    await link.until(told.done)
    assert told.result() is True
    assert link.there.shelves["/sys/sessions"].ids == link.here.shelves["/sys/sessions"].ids
    link.there.down = NodeUnreachableError("refused")
    told = link.peer.push_changes("/sys/sessions")
    await link.until(told.done)
    assert told.result() is False


def test_a_commit_keeps_its_form_on_the_way(tmp_path: Path) -> None:
    """`Commit.from_json` reads what `encoded_commit` returns, with the same fields and signature."""
    commit = signed_commit(user())
    assert Commit.from_json(json.loads(commit.encoded), org="localhost") == commit
