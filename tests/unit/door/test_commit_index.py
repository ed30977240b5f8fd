"""The commit index admits no commit that would end the server, and loses none of those that it admits."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from functools import partial
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goatherd.clock import SystemClock
from goatherd.door.commit_index import FirstSeen, RepositoryIndex, RepositoryIndexes, Verify
from goatherd.door.received_commits import ReceivedCommit
from goatherd.door.request_checks import (
    DoorRule,
)
from goatherd.door.trusted_sessions import TrustedSessions
from goatherd.errors import NodeUnreachableError
from goatherd.wire.commit import Commit
from goatherd.wire.json import to_json_bytes
from tests.cluster.door_world import A, Standing, X, Y, believe, identity
from tests.deadlines import HANG
from tests.unit.goats import NOW, ORG, commit_by, introduction, new_id


class Held:
    """A repository that answers as a server does, until a test stops it."""

    def __init__(self, *commits: Commit) -> None:
        self.commits = list(commits)
        self.asked = 0
        self.is_away = False
        self.server_generation = 0

    async def ask(self, body: bytes, signature: str) -> tuple[int, bytes]:
        self.asked += 1
        if self.is_away:
            raise NodeUnreachableError("away")
        held = {each.id for each in self.commits}
        for raw in json.loads(body)[0]["msg"]["c"]:
            if raw["id"] not in held:
                self.commits.append(Commit.from_json(raw, org=ORG))
        commits = [each.to_json() for each in self.commits]
        return 200, to_json_bytes([{"path": "/d/x", "res": {"c": commits, "s": len(commits)}}])


def index_of(held: Held, verify: Verify = believe) -> RepositoryIndex:
    return RepositoryIndex(
        "/d/x",
        ask=held.ask,
        signer=lambda: A,
        verify=verify,
        clock=SystemClock(),
        server_generation=lambda: held.server_generation,
    )


def note(key: str, commit_id: str | None = None, parents: tuple[str, ...] = ()) -> Commit:
    return commit_by(X, key, {"text": "x"}, commit_id=commit_id, parents=parents)


async def test_a_second_creation_waits_for_the_first_and_is_admitted_when_that_was_not_stored() -> None:
    index = index_of(Held())
    await index.refresh()
    first, second = note("k"), note("k")
    assert await index.hold_accepted([first]) == [None]
    later = asyncio.create_task(index.hold_accepted([second]))
    await asyncio.sleep(0.05)
    assert not later.done()
    index.settle_commits([first], is_stored=False)
    assert await later == [None]


async def test_a_second_creation_whose_first_one_never_settles_is_not_taken_for_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("goatherd.door.commit_index._SETTLING_SECONDS", 0.05)
    index = index_of(Held())
    await index.refresh()
    assert await index.hold_accepted([note("k")]) == [None]
    with pytest.raises(NodeUnreachableError):
        await index.hold_accepted([note("k")])


@pytest.mark.parametrize("author", ["anon-y", "stranger"])
async def test_the_root_signs_no_child_of_a_creation_that_is_forged_or_by_an_unknown_session(
    author: str, caplog: pytest.LogCaptureFixture
) -> None:
    """An unmodified server stores commits in the name of any session."""
    trust = TrustedSessions(org=ORG, identity=identity(A), clock=Standing())
    for session in (X, Y):
        assert trust.pool.add_session_commit(introduction(session, A))
    trust.look_up = mock.AsyncMock()  # type: ignore[method-assign]
    forged, mine = commit_by(X, "k", {"text": "forged"}, claimed=author), note("k")
    held = Held(forged)
    index = index_of(held, partial(trust.verify_commits, executor=None))
    await index.refresh()
    (problem,) = await index.hold_accepted([mine])
    assert problem is not None
    assert problem.rule is DoorRule.BIRTH
    assert held.commits == [forged]
    assert "the first commit of an item" in caplog.text
    held.commits = [note("k2")]
    await index.refresh()
    assert await index.hold_accepted([note("k2")]) == [None]
    (child,) = [each for each in held.commits if each.parents]
    assert child.session == A.id


async def test_what_the_child_has_left_out_does_not_keep_the_key_from_others() -> None:
    """The application may have rejected the commit silently; otherwise any client could block any key."""
    held = Held()
    index = index_of(held)
    await index.refresh()
    refused, good = note("k"), note("k")
    assert await index.hold_accepted([refused]) == [None]
    index.settle_commits([refused], is_stored=True)
    assert await index.hold_accepted([good]) == [None]
    index.settle_commits([good], is_stored=True)
    held.commits.append(good)
    assert await index.hold_accepted([refused]) == [None]
    (child,) = [each for each in held.commits if each.parents]
    assert child.parents == (good.id,)


class Merging(Held):
    """A model of `Repository.mergeIfNeeded`: it shows which order of commits ends a GoatDB server.

    Attributes:
        now: The server's clock in milliseconds.
        died: Whether it has ended.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = NOW
        self.died = False

    async def ask(self, body: bytes, signature: str) -> tuple[int, bytes]:
        ((element,),) = [json.loads(body)]
        self.receive([Commit.from_json(raw, org=ORG) for raw in element["msg"]["c"]])
        return await super().ask(body, signature)

    def receive(self, commits: Sequence[Commit]) -> None:
        held = {each.id for each in self.commits}
        fresh = sorted((each for each in commits if each.id not in held), key=lambda each: each.ts)
        for at in range(0, len(fresh), 50):  # GoatDB stores so many, then looks at each
            batch = fresh[at : at + 50]
            self.commits += batch
            for each in batch:
                self.merge_if_needed(each.key)

    def merge_if_needed(self, key: str) -> None:
        parents = {parent for each in self.commits for parent in each.parents}
        of_key = [each for each in self.commits if each.key == key]
        leaves = [each for each in of_key if each.id not in parents]
        recent = {each.session for each in leaves if abs(self.now - each.ts) <= 5_000}
        if len(leaves) < 2 or (recent and A.id not in recent):
            return
        if not any(each.id in parents for each in of_key):
            self.died = True
            return
        self.commits.append(commit_by(A, key, {"text": "merged"}, ts=self.now, parents=[each.id for each in leaves]))


_STEPS = st.lists(
    st.tuples(
        st.sampled_from(["create", "edit", "both"]),
        st.sampled_from(["k", "j"]),
        st.sampled_from([0, 4_000, 5_001, 100_000]),
        st.sampled_from([0, 3_000, 10_000]),
    ),
    min_size=1,
    max_size=12,
)


@pytest.mark.slow
@given(_STEPS, st.integers(1, 4))
async def test_no_order_of_creations_and_edits_ends_the_server_and_none_is_lost(
    steps: list[tuple[str, str, int, int]], size: int
) -> None:
    held = Merging()
    index = index_of(held)
    await index.refresh()
    mine: list[Commit] = []
    for at in range(0, len(steps), size):
        push: list[Commit] = []
        for kind, key, age, pause in steps[at : at + size]:
            held.now += pause
            of_key = [each for each in (*mine, *push) if each.key == key]
            if kind != "create" and of_key:
                push.append(commit_by(X, key, {"text": "e"}, ts=held.now - age, parents=[of_key[-1].id]))
            if kind != "edit" or not of_key:
                push.append(commit_by(X, key, {"text": "c"}, ts=held.now - age))
        assert await index.hold_accepted(push) == [None] * len(push)
        held.receive(push)
        index.settle_commits(push, is_stored=True)
        mine += push
        assert not held.died
    assert {each.id for each in mine} <= {each.id for each in held.commits}


async def test_a_commit_that_the_filter_hides_is_not_taken_for_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held()
    index = index_of(held)
    await index.refresh()
    stored = note("k")
    assert await index.hold_accepted([stored]) == [None]
    index.settle_commits([stored], is_stored=True)
    index._reader._filter.add(stored.id)  # by mistake
    read = index._reader.read_new

    async def unless_hidden() -> list[dict[str, Any]]:
        if not index._reader.hides_commit(stored.id):
            held.commits = [stored]
        return await read()

    monkeypatch.setattr(index._reader, "read_new", unless_hidden)
    await index.refresh()
    assert await index.hold_accepted([note("k", parents=(stored.id,))]) == [None]


async def test_what_others_have_brought_is_found_out_before_a_refusal() -> None:
    held = Held()
    index = index_of(held)
    await index.refresh()
    parent = note("k")
    held.commits.append(parent)
    index._read_at = SystemClock().monotonic() - 1
    assert await index.hold_accepted([note("k", parents=(parent.id,))]) == [None]


async def test_a_server_that_has_started_again_is_read_before_anything_is_judged() -> None:
    birth, lost = note("k"), note("j")
    held = Held(birth, lost)
    index = index_of(held)
    await index.refresh()
    on_both = [note("k", parents=(birth.id,)), note("j", parents=(lost.id,))]
    assert await index.hold_accepted(on_both) == [None, None]
    index.settle_commits(on_both, is_stored=False)
    held.commits, held.server_generation = [birth], 1
    assert [each and each.rule for each in await index.hold_accepted(on_both)] == [None, DoorRule.BIRTH]
    assert await index.hold_accepted([note("j")]) == [None], "nothing of that key is there any more"


async def test_a_server_that_has_started_again_and_cannot_be_read_gets_nothing() -> None:
    birth = note("k")
    held = Held(birth)
    index = index_of(held)
    await index.refresh()
    held.server_generation, held.is_away = 1, True
    with pytest.raises(NodeUnreachableError):
        await index.hold_accepted([note("k", parents=(birth.id,))])


async def test_a_server_that_has_started_again_with_all_that_it_had_is_not_read_anew() -> None:
    held = Held(note("k"), note("j"))
    index = index_of(held)
    await index.refresh()
    asked, held.server_generation = held.asked, 1
    assert await index.hold_accepted([note("i")]) == [None]
    assert held.asked == asked + 1
    assert await index.hold_accepted([note("h")]) == [None]
    assert held.asked == asked + 1, "once"


async def test_a_parent_that_was_missing_may_come_later() -> None:
    """A server may hold a commit whose parents have not reached it yet."""
    late = note("k", "late")
    index = index_of(Held(note("k", parents=("late",))))
    await index.refresh()
    assert await index.hold_accepted([late]) == [None]
    assert await index.hold_accepted([note("k", "other")]) == [None], "some commit of that key has a child"


async def test_a_commit_that_comes_twice_in_a_message_is_one() -> None:
    index = index_of(Held())
    await index.refresh()
    assert [each and each.rule for each in await index.hold_accepted([note("k", "a"), note("j", "a")])] == [
        None,
        DoorRule.COMMIT,
    ]


async def test_what_another_push_delivers_is_waited_for_and_not_delivered_twice() -> None:
    index = index_of(Held())
    await index.refresh()
    first, other = ReceivedCommit(note("k").to_json()), ReceivedCommit(note("j").to_json())
    assert first.id is not None
    assert index.claim_commits([first], "A") == ([first], [])
    assert index.claim_commits([first, other], "B") == ([other], [first])
    index.release_claims([first.id], "B")
    assert index.find_claimant(first.id) == "A", "only who has claimed it releases it"
    waiting = asyncio.create_task(index.wait_for_release())
    await asyncio.sleep(0)
    assert not waiting.done()
    index.release_claims([first.id], "A")
    await asyncio.wait_for(waiting, HANG)
    assert not index.holds_id(first.id), "the delivery failed: another push may deliver it"
    assert index.claim_commits([first], "B") == ([first], [])


async def test_a_commit_under_the_id_of_one_that_is_being_delivered_is_not_taken_for_that_one() -> None:
    index = index_of(Held())
    await index.refresh()
    genuine = ReceivedCommit(note("k").to_json())
    forged = ReceivedCommit({**genuine.raw, "k": "other"})
    assert genuine.id is not None
    assert index.claim_commits([forged], "attacker") == ([forged], [])
    assert index.claim_commits([genuine], "owner") == ([genuine], [])
    index.release_claims([genuine.id], "owner")
    assert index.find_claimant(genuine.id) == "attacker"


async def test_what_the_server_has_is_not_delivered_again_but_another_commit_of_its_id_is_judged() -> None:
    index = index_of(Held())
    await index.refresh()
    first = note("k")
    assert not index.holds_commit(first)
    assert await index.hold_accepted([first]) == [None]
    assert not index.holds_commit(first), "it is on its way"
    index.settle_commits([first], is_stored=True)
    assert index.holds_commit(first)
    assert not index.holds_commit(note("j", first.id))


async def test_a_commit_that_is_on_its_way_keeps_its_id() -> None:
    index = index_of(Held())
    await index.refresh()
    first = note("k", "a")
    assert await index.hold_accepted([first]) == [None]
    assert await index.hold_accepted([first]) == [None]
    assert [each and each.rule for each in await index.hold_accepted([note("j", "a")])] == [DoorRule.COMMIT]


async def test_what_is_on_its_way_tells_the_schema_of_its_key_also_beside_a_delta_and_an_empty_schema() -> None:
    index = index_of(Held())
    await index.refresh()
    first, nameless = note("k"), commit_by(X, "e", {}, schema="/1")
    edit = {"b": first.id, "e": {"sc": "1", "dc": "2", "c": {}}}
    delta = replace_contents(note("k", parents=(first.id,)), edit)
    for commit in (first, nameless, delta):
        assert await index.hold_accepted([commit]) == [None]
    for other in (
        commit_by(X, "k", {"n": 1}, schema="thing/1", parents=[first.id]),
        commit_by(X, "e", {"n": 1}, schema="thing/1", parents=[nameless.id]),
    ):
        (problem,) = await index.hold_accepted([other])
        assert problem is not None
        assert problem.rule is DoorRule.SCHEMA


def replace_contents(commit: Commit, contents: dict[str, Any]) -> Commit:
    return Commit.from_json({**commit.to_json(), "c": contents}, org=ORG)


def test_no_more_ids_are_remembered_than_there_is_room_for() -> None:
    first_seen = FirstSeen(2)
    for commit_id in ("a", "b", "c"):
        first_seen.record_commit(commit_id, "/d/x")
    assert [first_seen.is_in_other_repository(each, "/d/y") for each in ("a", "b", "c")] == [False, True, True]


async def test_a_repository_that_cannot_be_read_is_not_an_empty_one() -> None:
    held = Held()
    held.is_away = True
    with pytest.raises(NodeUnreachableError):
        await index_of(held).refresh()


@given(st.permutations(range(8)))
async def test_a_history_is_admitted_in_any_order(order: list[int]) -> None:
    chain = [note("k", new_id())]
    for _ in range(7):
        chain.append(note("k", parents=(chain[-1].id,)))
    index = index_of(Held())
    await index.refresh()
    assert await index.hold_accepted([chain[position] for position in order]) == [None] * 8


async def test_an_index_that_is_being_read_is_not_dropped_so_that_its_reading_ends_with_the_door() -> None:
    reading = asyncio.Event()
    ended: list[str] = []

    async def ask(body: bytes, signature: str) -> tuple[int, bytes]:
        path = json.loads(body)[0]["path"]
        if path != "/d/slow":
            return 200, to_json_bytes([{"path": path, "res": {"c": [], "s": 0}}])
        reading.set()
        try:
            await asyncio.sleep(HANG)
        finally:
            ended.append(path)
        raise AssertionError("the reading is cancelled")

    indexes = RepositoryIndexes(
        partial(RepositoryIndex, ask=ask, signer=lambda: A, verify=believe, clock=SystemClock()),
        capacity=1,
        repositories=1,
        is_session=lambda _: False,
    )
    slow = asyncio.create_task(indexes.open_index("/d/slow"))
    await reading.wait()
    for path in ("/d/a", "/d/b"):
        await indexes.open_index(path)
    await indexes.aclose()
    assert ended == ["/d/slow"]
    with pytest.raises(asyncio.CancelledError):
        await slow
