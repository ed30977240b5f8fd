"""Commits that crash or block a server: the attack works on the server itself, and the door rejects it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx2
import pytest

from goatherd.door.request_checks import DoorRule
from goatherd.identity.session import OwnedSession, sign_commit, verify_commit
from goatherd.wire.bloom import BloomFilter
from goatherd.wire.commit import Commit
from tests.cluster.door_world import A, World, X, Y, world
from tests.deadlines import HANG
from tests.unit.goats import DAY, NOW, ORG, commit_by, element, owned

from .door_attacks import NOTES, both_ways, note

pytestmark = pytest.mark.slow
OLD = NOW - 10_000


def delta(author: OwnedSession, key: str, base: str, commit_id: str | None = None, **more: Any) -> Commit:
    unsigned = commit_by(author, key, {"text": "x"}, commit_id=commit_id, **more)
    changed = replace(unsigned, contents={"b": base, "e": {"sc": "1", "dc": "2", "c": {}}}, signature=None)
    return sign_commit(author, changed, now_ms=NOW)


async def fatal(
    attack: Callable[[], list[Commit | dict[str, Any]]],
    outcome: Callable[[World], bool],
    rule: DoorRule,
    *,
    before: Callable[[], list[Commit]] = list,
) -> None:
    """Push what crashes or blocks the server's process, directly and through the door."""
    for through in (False, True):
        async with world() as w:
            for commit in before():
                w.child.create(NOTES, commit)
            commits = attack()
            if through:
                response = await w.push(True, NOTES, *commits, by=A)
                assert response.status_code == 200
                assert not outcome(w)
                assert w.stopped(rule) >= 1
                assert (await w.http.get(w.door.url + "/healthy")).text == "OK"
            else:
                pushing = asyncio.create_task(w.push(False, NOTES, *commits, by=A))
                async with asyncio.timeout(HANG):
                    while not outcome(w):
                        await asyncio.sleep(0.01)
                pushing.cancel()
                await asyncio.wait({pushing})  # whatever the client makes of a dead or hanging server


def died(w: World) -> bool:
    return w.child.died is not None


async def test_two_creations_of_one_key_in_one_message_are_both_stored() -> None:
    for through in (False, True):
        async with world() as w:
            first, second = note(X, "k", ts=OLD), note(Y, "k", ts=OLD)
            with contextlib.suppress(httpx2.HTTPError):
                await w.push(through, NOTES, first, second)
            assert died(w) is not through
            if through:
                assert w.stored(NOTES) > {first.id, second.id}
                assert not w.stopped(DoorRule.BIRTH)


@pytest.mark.parametrize("age", [0, 3_000, 4_999, 5_001, 60_000, 3_600_000])
async def test_a_second_creation_of_a_key_arrives_whatever_its_age_and_the_server_lives(age: int) -> None:
    async with world() as w:
        first = note(X, "k", ts=OLD)
        w.child.create(NOTES, first)
        late = note(Y, "k", ts=NOW - age)
        edit = note(Y, "k", ts=NOW, parents=[late.id])
        assert (await w.push(True, NOTES, late, edit, by=Y)).status_code == 200
        assert w.stored(NOTES) > {first.id, late.id, edit.id}
        w.clock.at_ms += 60_000
        third = note(X, "k", ts=OLD)
        assert (await w.push(True, NOTES, third)).status_code == 200
        assert third.id in w.stored(NOTES)
        assert not died(w)
        assert not w.stopped(DoorRule.BIRTH)


async def test_the_child_of_a_first_creation_says_the_same_and_is_the_root_s() -> None:
    async with world() as w:
        first = note(X, "k", ts=OLD)
        w.child.create(NOTES, first)
        late = note(Y, "k", ts=OLD)
        await w.push(True, NOTES, late, by=Y)
        (added,) = w.stored(NOTES) - {first.id, late.id}
        child = Commit.from_json(w.child.repositories[NOTES][added], org=ORG)
        verify_commit(A.session, child)
        assert (child.parents, child.contents) == ((first.id,), first.contents)


async def test_two_clients_that_create_fifty_keys_at_once_lose_nothing() -> None:
    async with world() as w:
        of_x = [note(X, f"k{number}", ts=OLD) for number in range(50)]
        of_y = [note(Y, f"k{number}", ts=OLD) for number in range(50)]
        responses = await asyncio.gather(
            *[w.push(True, NOTES, *of_x[at : at + 10]) for at in range(0, 50, 10)],
            *[w.push(True, NOTES, *of_y[at : at + 10], by=Y) for at in range(0, 50, 10)],
        )
        assert {response.status_code for response in responses} == {200}
        assert w.stored(NOTES) >= {each.id for each in (*of_x, *of_y)}
        assert not died(w)


async def test_leaves_with_unknown_parents_do_not_end_the_server() -> None:
    await fatal(
        lambda: [note(X, "k", ts=OLD, parents=["nowhere"])],
        died,
        DoorRule.BIRTH,
        before=lambda: [note(Y, "k", ts=OLD)],
    )


async def test_a_parent_of_another_key_is_no_ancestor() -> None:
    other = note(Y, "other", ts=OLD)
    await fatal(
        lambda: [note(X, "k", ts=OLD, parents=[other.id])],
        died,
        DoorRule.BIRTH,
        before=lambda: [note(Y, "k", ts=OLD), other],
    )


async def test_a_cycle_of_commits_is_removed() -> None:
    def circle() -> list[Commit | dict[str, Any]]:
        return [
            note(X, "k", ts=OLD, commit_id="c1", parents=["c2"]),
            note(X, "k", ts=OLD, commit_id="c2", parents=["c1"]),
            note(X, "k", ts=OLD, commit_id="c3", parents=["c1"]),
        ]

    async with world() as w:
        w.child.create(NOTES, note(Y, "k", ts=OLD))
        await w.push(True, NOTES, *circle())
        assert len(w.stored(NOTES)) == 1
        assert w.stopped(DoorRule.BIRTH) == 3


async def test_a_creation_that_another_request_has_just_brought_counts() -> None:
    async with world() as w:
        first, second = note(X, "k", ts=OLD), note(Y, "k", ts=OLD)
        await w.push(True, NOTES, first)
        await w.push(True, NOTES, second, by=Y)
        assert w.stored(NOTES) > {first.id, second.id}
        await w.push(True, NOTES, first)
        child = note(Y, "k", ts=OLD, parents=[first.id])
        await w.push(True, NOTES, child, by=Y)
        assert child.id in w.stored(NOTES)
        assert w.child.died is None


async def test_what_builds_on_a_commit_that_a_crash_has_lost_does_not_end_the_server() -> None:
    for through in (False, True):
        async with world() as w:
            birth = note(X, "k", ts=OLD)
            lost = note(X, "k", ts=OLD, parents=[birth.id])
            assert (await w.push(through, NOTES, birth, lost)).status_code == 200
            # A refusal has the door read what is there.
            await w.push(through, NOTES, note(X, "other"))
            await w.child.crash(NOTES, lost.id)
            later = note(X, "k", ts=OLD, parents=[lost.id])
            with contextlib.suppress(Exception):  # whatever the client makes of a dead server
                await w.push(through, NOTES, later)
            assert died(w) is not through
            if through:
                assert later.id not in w.stored(NOTES)
                assert (await w.push(True, NOTES, lost, later)).status_code == 200
                assert w.stored(NOTES) >= {birth.id, lost.id, later.id}, "with what it builds on, it is let through"


async def test_a_chain_in_any_order_is_let_through() -> None:
    async with world() as w:
        birth = note(X, "k")
        chain = [birth]
        for _ in range(5):
            chain.append(note(X, "k", parents=[chain[-1].id]))
        await w.push(True, NOTES, *reversed(chain))
        assert len(w.stored(NOTES)) == 6
        assert sum(w.door.status.stopped.values()) == 0


async def test_deltas_that_build_on_each_other_do_not_hang_the_server() -> None:
    birth = note(X, "k")

    def hung(w: World) -> bool:
        return w.child.hung

    itself = [delta(X, "k", "d1", "d1", parents=[birth.id])]
    await fatal(lambda: list(itself), hung, DoorRule.DELTA, before=lambda: [birth])
    circle = [delta(X, "k", "d2", "d1", parents=[birth.id]), delta(X, "k", "d1", "d2", parents=[birth.id])]
    await fatal(lambda: list(circle), hung, DoorRule.DELTA, before=lambda: [birth])


async def test_a_delta_on_a_delta_that_came_earlier_is_taken_out() -> None:
    async with world() as w:
        birth = note(X, "k")
        good = delta(X, "k", birth.id, parents=[birth.id])
        bad = delta(X, "k", good.id, parents=[good.id])
        await w.push(True, NOTES, birth, good)
        await w.push(True, NOTES, bad)
        assert w.stored(NOTES) == {birth.id, good.id}


async def test_a_commit_that_is_another_one_when_it_is_read_again_is_taken_out() -> None:
    def attack() -> dict[str, Any]:
        raw = delta(X, "k", "base").to_json()
        late = {"changeType": "fd", "operation": 1, "vType": "date", "value": 2e15}
        raw["c"]["e"]["c"] = {"f": [{"__t": "E", "__v": late}]}
        signed = sign_commit(X, Commit.from_json(raw, org=ORG), now_ms=NOW)
        return {**raw, "sig": signed.signature}

    await both_ways(DoorRule.CONTENTS, attack)


async def test_a_commit_without_a_key_does_not_end_the_server() -> None:
    def attack() -> list[Commit | dict[str, Any]]:
        raw = note().to_json()
        del raw["k"]
        return [raw]

    await fatal(attack, died, DoorRule.COMMIT)


@pytest.mark.parametrize("commit_id", [None, 5], ids=["none", "number"])
async def test_a_commit_without_an_id_does_not_spoil_its_repository(commit_id: Any) -> None:
    def attack() -> list[Commit | dict[str, Any]]:
        raw = note().to_json()
        raw["id"] = commit_id
        return [raw]

    await fatal(attack, lambda w: bool(w.child._spoilt), DoorRule.COMMIT)


async def test_a_commit_that_changes_the_schema_of_its_key_does_not_end_the_server() -> None:
    birth = note(Y, "k", ts=OLD)
    left = note(Y, "k", ts=OLD, parents=[birth.id])
    await fatal(
        lambda: [commit_by(X, "k", {"n": 1}, schema="thing/1", ts=OLD, parents=[birth.id])],
        died,
        DoorRule.SCHEMA,
        before=lambda: [birth, left],
    )


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"age": 0}, DoorRule.COMMIT),
        ({"age": 1e15}, DoorRule.COMMIT),
        ({"ts": -5}, DoorRule.TIME),
        ({"k": "../x"}, DoorRule.COMMIT),
        ({"k": "__proto__ "}, DoorRule.COMMIT),
        ({"id": "x" * 1000}, DoorRule.COMMIT),
        ({"p": ["p"] * 2000}, DoorRule.ANCESTORS),
        ({"ac": 2**40}, DoorRule.ANCESTORS),
        ({"ac": "many"}, DoorRule.COMMIT),
        ({"cid": 5}, DoorRule.SIGNATURE),
        ({"c": {"e": {"sc": "1", "dc": "2", "c": {}}}}, DoorRule.COMMIT),
        ({"c": {"r": {"s": "null", "d": {}, "n": False, "cs": "3320765784"}}}, DoorRule.CONTENTS),
        ({"c": {"r": {"s": "note/1", "d": {"hasOwnProperty": 1}, "n": True, "cs": "1"}}}, DoorRule.CONTENTS),
        ({"c": {"r": {"s": "note/1", "d": {"x": {"__rId": 0}}, "n": True, "cs": "1"}}}, DoorRule.CONTENTS),
        ({"c": {"r": {"s": "note/1", "d": {"x": [{"__IS_MAP_OBJ": 1}]}, "n": True, "cs": "1"}}}, DoorRule.CONTENTS),
        ({"c": {"b": "b", "e": {"sc": "1", "dc": "2", "c": {}, "s": "sessions/1"}}}, DoorRule.SESSION_ITEM),
        ({"c": {"r": {"s": "note/1", "d": {}, "n": True, "cs": "1", "__t": "E", "__v": {}}}}, DoorRule.COMMIT),
        ({"af": {"d": "/w==", "s": [1, 2]}}, DoorRule.ANCESTORS),
        ({"af": {"d": "AA==", "s": []}}, DoorRule.ANCESTORS),
        ({"af": {"d": "AA==", "s": [1] * 100}}, DoorRule.ANCESTORS),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else value.value,
)
async def test_a_commit_of_an_impossible_form_is_taken_out(change: dict[str, Any], rule: DoorRule) -> None:
    async with world() as w:
        raw = {**note().to_json(), **change}
        response = await w.push(True, NOTES, raw)
        assert response.status_code == 200
        assert not w.stored(NOTES)
        assert w.stopped(rule) == 1
        assert not w.pushes()


async def test_a_member_that_stops_the_decoder_is_taken_out_and_the_server_answers_500_to_it() -> None:
    async with world() as w:
        bad = note().to_json()
        bad["c"]["r"]["d"] = {"text": {"hasOwnProperty": 1}}
        assert (await w.push(False, NOTES, bad)).status_code == 500
        assert (await w.push(True, NOTES, bad)).status_code == 200


async def test_a_filter_that_claims_every_ancestor_is_taken_out() -> None:
    full = BloomFilter(b"\xff", (1, 2))

    def attack() -> Commit:
        unsigned = replace(note(), ancestors_filter=full, ancestors_count=3, signature=None)
        return sign_commit(X, unsigned, now_ms=NOW)

    await both_ways(DoorRule.ANCESTORS, attack)


async def test_a_forgery_with_the_id_of_a_genuine_commit_does_not_keep_it_out() -> None:
    for through in (False, True):
        async with world() as w:
            genuine = note(X, "k")
            forgery = {**note(Y, "k", commit_id=genuine.id).to_json(), "sig": "zz"}
            await w.push(through, "/data/other", forgery, by=Y)
            await w.push(through, NOTES, genuine)
            assert (genuine.id in w.stored(NOTES)) is through


async def test_a_commit_under_the_id_of_one_elsewhere_does_not_bring_that_one() -> None:
    """The server takes a commit with a known id for the known commit: here, for a second creation of a key."""
    for through in (False, True):
        async with world() as w:
            w.child.create(NOTES, note(Y, "k", ts=OLD))
            first = note(X, "k", ts=OLD)
            await w.push(through, "/data/other", first)
            with contextlib.suppress(Exception):  # whatever the client makes of a dead server
                await w.push(through, NOTES, note(X, "fresh", ts=OLD, commit_id=first.id))
            assert died(w) is not through
            assert w.stopped(DoorRule.COMMIT) == through


async def test_a_commit_under_the_id_of_one_in_delivery_is_removed() -> None:
    for through in (False, True):
        mine = note(X, "mine", ts=OLD)

        other = note(X, "k", ts=OLD, commit_id=mine.id, parents=["head"])
        child = note(X, "k", ts=OLD, parents=[mine.id])
        async with world() as w:
            w.child.create(NOTES, note(Y, "k", ts=OLD, commit_id="head"))
            with contextlib.suppress(Exception):
                await w.send(through, [element(NOTES, [each]) for each in (mine, other, child)])
            assert died(w) is not through
            assert w.stopped(DoorRule.COMMIT) == through


async def test_no_commit_takes_the_id_of_a_session_s() -> None:
    async with world() as w:
        introduced = w.child.introduce(owned("anon-z").session)
        await w.trust.refresh()
        await w.push(True, NOTES, note(X, commit_id=introduced.id))
        assert introduced.id not in w.stored(NOTES)
        assert w.stopped(DoorRule.COMMIT) == 1


async def test_a_commit_from_the_far_future_is_taken_out() -> None:
    await both_ways(DoorRule.TIME, lambda: note(ts=NOW + DAY + 1, signed_at=NOW))


async def test_what_the_documentation_promises_is_closed_to_writers_on_request() -> None:
    signed_in = owned("s-1", "u1")
    cases = [(X, "/sys/users", False), (X, "/user/u1", False), (signed_in, "/user/u1", True), (A, "/sys/users", True)]
    for private in (False, True):
        async with world(private=private, sessions=(X, Y, signed_in)) as w:
            w.child.create("/sys/users", note(A, "u1"))
            for session, path, is_allowed in cases:
                commit = note(session)
                await w.push(True, path, commit, by=session)
                assert (commit.id in w.stored(path)) is (is_allowed or not private)
            assert w.stopped(DoorRule.PRIVATE) == (2 if private else 0)
