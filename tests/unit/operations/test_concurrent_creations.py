"""Concurrent creations of a session that would end a GoatDB process: found, and merged by one commit for all
servers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goatherd.clock import SystemClock
from goatherd.cluster.client import NodeClient
from goatherd.errors import DecodeError, NodeError
from goatherd.identity.session import OwnedSession
from goatherd.identity.session_commits import session_from_commit
from goatherd.node.log_storage import LogDirectory
from goatherd.operations.check_data import TrustedRoots, check_organization
from goatherd.operations.concurrent_creations import find_conflicts, join_creations
from goatherd.operations.data import lock_organization
from goatherd.operations.repair_data import Repair, read_peers
from goatherd.operations.repair_data import repair_organization as repair
from goatherd.wire.commit import Commit
from goatherd.wire.commit_log import frame_records
from tests.deadlines import ANSWER
from tests.fakes.upstream_child import SESSIONS, UpstreamChild
from tests.unit.goats import NOW, ORG, introduction, owned, pool_of, root

A, B = root("root-a"), root("root-b")
USER = owned("user")
LATER = replace(USER.session, expiration_ms=USER.session.expiration_ms + 1000)
SIGNED_IN = replace(USER.session, owner="u7")

FIRST = introduction(USER, A, commit_id="c1", ts=NOW - 9000)
SECOND = introduction(SIGNED_IN, A, commit_id="c2", ts=NOW - 8000)
THIRD = introduction(LATER, A, commit_id="c3", ts=NOW - 7000)
COPY = introduction(USER, A, commit_id="c4", ts=NOW - 6000)


def child_of(*parents: Commit) -> Commit:
    return introduction(SIGNED_IN, A, commit_id="child", parents=[each.id for each in parents], ts=NOW - 5000)


def conflicts_of(**places: Sequence[Commit]) -> list[tuple[list[str], list[str]]]:
    return [([c.id for c in one.creations], list(one.holders)) for one in find_conflicts(places)]


def test_different_creations_of_one_session_are_a_conflict_within_a_server_and_between_two() -> None:
    assert conflicts_of(x=[FIRST, SECOND]) == [(["c1", "c2"], ["x"])]
    assert conflicts_of(y=[SECOND], x=[FIRST]) == [(["c1", "c2"], ["x", "y"])]
    assert conflicts_of(x=[FIRST, introduction(B, A)]) == []


def test_equal_creations_and_those_that_a_commit_follows_end_nothing() -> None:
    assert conflicts_of(x=[FIRST, COPY]) == []
    assert conflicts_of(x=[FIRST, SECOND, child_of(FIRST)]) == []
    assert conflicts_of(x=[FIRST, child_of(FIRST)], y=[SECOND]) == [], "the two synchronize; one of them can merge"
    assert conflicts_of(x=[FIRST, child_of(FIRST)], y=[SECOND], z=[FIRST]) == [(["c1", "c2"], ["y", "z"])]


def test_the_joining_commit_follows_all_creations_and_says_all_that_they_say() -> None:
    (conflict,) = find_conflicts({"x": [FIRST, SECOND, THIRD]})
    joined = Commit.from_json(join_creations(conflict, signer=B, org=ORG), org=ORG)
    assert joined.parents == ("c1", "c2", "c3")
    assert session_from_commit(joined) == replace(LATER, owner="u7")
    assert joined.ts == FIRST.ts - 1, "a server that is sent all of it verifies, and stores, this commit first"
    pool_of(A, B).verify_commit(joined)
    assert find_conflicts({"x": [FIRST, SECOND, THIRD, joined]}) == []


@given(order=st.permutations([FIRST, SECOND, THIRD]), others=st.permutations([FIRST, SECOND, THIRD]))
def test_servers_that_are_repaired_at_different_times_and_by_different_roots_do_not_disagree_again(
    order: list[Commit], others: list[Commit]
) -> None:
    (here,) = find_conflicts({"x": order})
    (there,) = find_conflicts({"y": others[:2], "z": others[2:]})
    assert join_creations(here, signer=A, org=ORG) == join_creations(there, signer=A, org=ORG)
    assert join_creations(here, signer=A, org=ORG)["c"] == join_creations(there, signer=B, org=ORG)["c"]


def test_creations_with_different_keys_are_not_joined_since_one_is_forged() -> None:
    forged = replace(USER.session, public_key=owned("thief").session.public_key)
    (conflict,) = find_conflicts({"x": [FIRST, introduction(forged, A, commit_id="c9")]})
    with pytest.raises(DecodeError, match="different keys"):
        join_creations(conflict, signer=A, org=ORG)


# --- a server that crashes where GoatDB does --------------------------------------------------------------------------


def now_ms() -> int:
    return SystemClock().now_ms()


class Poisoned:
    """A cluster's root, and a session that two servers have created differently a minute ago."""

    def __init__(self) -> None:
        self.root = OwnedSession.generate(session_id="root-now", owner="root", now_ms=now_ms())
        self.user = user = OwnedSession.generate(session_id="user-now", owner=None, now_ms=now_ms())
        minute_ago = now_ms() - 60_000
        self.first = introduction(user, self.root, commit_id="first", ts=minute_ago)
        self.second = introduction(
            replace(user.session, owner="u7"), self.root, commit_id="second", ts=minute_ago + 1000
        )
        self.third = introduction(replace(user.session, owner="u8"), self.root, commit_id="third", ts=minute_ago + 2000)
        self.trusted = TrustedRoots(source="the store", roots=(self.root.session,), current=self.root)

    def directory(self, path: Path, *commits: Commit) -> Path:
        file = path / ORG / "sys/sessions.jsonl"
        file.parent.mkdir(parents=True)
        file.write_bytes(b"".join(frame_records([commit.to_json()]) for commit in commits))
        return path / ORG

    async def push(self, child: UpstreamChild, *commits: Commit) -> None:
        async with NodeClient(child.url, timeout=ANSWER) as client:
            await client.push(SESSIONS, commits, self.root)


def records(directory: Path) -> list[str]:
    with LogDirectory(directory) as logs:
        return [record["id"] for record in logs.open_log(SESSIONS).read_records()]


async def repaired(directory: Path, trusted: TrustedRoots, *urls: str) -> Repair:
    clients = [NodeClient(url, timeout=ANSWER) for url in urls]
    try:
        with lock_organization(directory) as logs:
            return await repair(logs, ORG, trusted, clients)
    finally:
        for client in clients:
            await client.aclose()


async def test_a_server_that_meets_a_second_creation_ends_and_lives_once_the_first_server_is_repaired(
    tmp_path: Path,
) -> None:
    world = Poisoned()
    async with UpstreamChild(world.root) as child:
        child.create(SESSIONS, world.first)
        with pytest.raises(NodeError):
            await world.push(child, world.second)
        assert child.died == "Merge commit got empty ancestors filter"
    async with UpstreamChild(world.root) as child:
        child.create(SESSIONS, world.first)
        directory = world.directory(tmp_path, world.second)
        done = await repaired(directory, world.trusted, child.url)
        assert (done.joined, done.given, done.is_complete) == (("user-now",), 1, True)
        joining = records(directory)[-1]
        assert records(directory) == ["second", "first", joining]
        assert set(child.repositories[SESSIONS]) == {"first", joining}
        # What the repaired server, and any other that still holds a creation, sends now.
        await world.push(child, world.second)
        await world.push(child, world.third)
        assert child.died is None


async def test_a_repair_without_the_other_servers_is_enough_for_what_this_server_sends_them(tmp_path: Path) -> None:
    world = Poisoned()
    directory = world.directory(tmp_path, world.first, world.second)
    done = await repaired(directory, world.trusted)
    assert (done.joined, done.given, done.is_complete) == (("user-now",), 0, True)
    again = await repaired(directory, world.trusted)
    assert (again.joined, len(records(directory))) == ((), 3)
    async with UpstreamChild(world.root) as child:
        child.create(SESSIONS, world.second)
        with LogDirectory(directory) as logs:
            sent = [Commit.from_json(record, org=ORG) for record in logs.open_log(SESSIONS).read_records()]
        await world.push(child, *sent)
        assert child.died is None


async def test_check_finds_what_only_a_peer_holds_and_a_peer_that_does_not_answer_is_no_silence(tmp_path: Path) -> None:
    world = Poisoned()
    directory = world.directory(tmp_path, world.second)
    async with UpstreamChild(world.root) as child, NodeClient(child.url, timeout=ANSWER) as client:
        child.create(SESSIONS, world.first)
        with lock_organization(directory) as logs:
            assert check_organization(logs, ORG, world.trusted).is_clean
            held, problems = await read_peers(logs, ORG, world.trusted, [client])
            report = check_organization(logs, ORG, world.trusted, held_by_peers=held)
        assert [one.holders for one in report.conflicts] == [(str(directory), child.url)]
        assert problems == ()
        down = child.url
    done = await repaired(directory, world.trusted, down)
    assert (done.joined, done.is_complete) == ((), False)
    assert down in done.problems[0]


async def test_without_the_roots_private_key_nothing_is_joined_and_the_error_says_so(tmp_path: Path) -> None:
    world = Poisoned()
    directory = world.directory(tmp_path, world.first, world.second)
    done = await repaired(directory, replace(world.trusted, current=None))
    assert (done.joined, done.is_complete, len(done.after.conflicts)) == ((), False, 1)
    assert "--provider" in done.problems[0]
    assert records(directory) == ["first", "second"]


async def test_a_creation_that_no_root_has_signed_is_set_aside_and_not_joined(tmp_path: Path) -> None:
    world = Poisoned()
    forged = introduction(session_from_commit(world.second), world.user, commit_id="forged", ts=now_ms() - 60_000)
    directory = world.directory(tmp_path, world.first, forged)
    done = await repaired(directory, world.trusted)
    assert (done.joined, [one.commit_id for one in done.set_aside]) == ((), ["forged"])
    assert json.loads((directory / "sys/sessions.jsonl").read_bytes())["id"] == "first"
