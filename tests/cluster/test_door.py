"""Everything that the door stops: the attack works on the server itself, and through the door nothing of it arrives.

The server is `tests.fakes.upstream_child`; tests/unit/door/test_child.py holds it against the recorded
answers of the original.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx2
import pytest

from goatherd.door import DoorLimits, Rate, Rule
from goatherd.identity.session import OwnedSession, sign_commit, sign_data, verify_commit
from goatherd.wire.base32 import base32_decode, base32_encode
from goatherd.wire.bloom import BloomFilter
from goatherd.wire.commit import Commit
from tests.cluster.door_world import A, B, World, X, Y, identity, world
from tests.deadlines import HANG
from tests.unit.following import Client
from tests.unit.goats import DAY, NOW, ORG, commit_by, element, introduction, key_of, new_id, owned, root, signed_header

pytestmark = pytest.mark.slow

NOTES = "/data/notes"
OLD = NOW - 10_000


def envelope(signature: str | None, **changes: Any) -> str:
    """Change a signature string's envelope; None removes a member."""
    members = {**json.loads(base32_decode(signature or "")), **changes}
    return base32_encode(json.dumps({k: v for k, v in members.items() if v is not None}).encode())


def delta(author: OwnedSession, key: str, base: str, commit_id: str | None = None, **more: Any) -> Commit:
    unsigned = commit_by(author, key, {"text": "x"}, commit_id=commit_id, **more)
    changed = replace(unsigned, contents={"b": base, "e": {"sc": "1", "dc": "2", "c": {}}}, signature=None)
    return sign_commit(author, changed, now_ms=NOW)


def note(author: OwnedSession = X, key: str | None = None, **more: Any) -> Commit:
    """Return a note that says something else each time: creations that say the same need no merge."""
    return commit_by(author, key or new_id(), {"text": new_id()}, **more)


# --- the private key --------------------------------------------------------------------------------------------------


async def ask_for_a_session(w: World, through: bool) -> Any:
    response = await w.http.post(
        w.base(through) + "/auth/session", json={"publicKey": owned("new").session.public_key.to_jwk()}
    )
    assert response.status_code == 200
    return response


async def test_the_private_key_of_the_root_does_not_come_out() -> None:
    async with world() as w:
        secret = key_of("root-a").to_jwk()["d"]
        assert secret in (await ask_for_a_session(w, False)).text
        answer = await ask_for_a_session(w, True)
        assert secret not in answer.text
        (published,) = answer.json()["roots"]
        assert set(published) == {"id", "publicKey", "owner", "expiration"}
        assert published["publicKey"] == A.session.public_key.to_jwk()
        assert w.door.status.leaks == 1
        assert answer.headers["content-type"] == "application/json"


async def test_an_answer_without_a_key_passes_byte_for_byte() -> None:
    async with world(leaks=False) as w:
        answer = await ask_for_a_session(w, True)
        assert answer.content == w.child.answers[-1]
        assert w.door.status.leaks == 0


async def test_members_that_somebody_wrote_into_a_root_are_not_published() -> None:
    async with world(leaks=False) as w:
        w.child.roots["root-a"] = replace(A.session, extra={"note": "internal"})
        w.child.publishes_extra = True
        assert "internal" in (await ask_for_a_session(w, False)).text
        assert "internal" not in (await ask_for_a_session(w, True)).text


async def test_a_root_key_that_lies_in_a_repository_is_made_unreadable_and_the_rest_is_not_touched() -> None:
    async with world() as w:
        own, secret = key_of("anon-y").to_jwk(), key_of("root-a").to_jwk()
        commit = commit_by(A, "k", {"text": json.dumps([secret, own])})
        w.child.create(NOTES, commit)
        bare = await w.send(False, [element(NOTES)])
        assert secret["d"] in bare.text
        answer = await w.send(True, [element(NOTES)])
        assert secret["d"] not in answer.text
        assert own["d"] in answer.text, "what users keep is theirs"
        assert len(answer.content) == int(answer.headers["content-length"])
        assert w.door.status.leaks == 1


# --- who writes -------------------------------------------------------------------------------------------------------


async def both_ways(
    rule: Rule,
    attack: Callable[[], Any],
    path: str = NOTES,
    *,
    by: OwnedSession = X,
    given: Any = None,
    works: bool = True,
    sessions: tuple[OwnedSession, ...] = (X, Y),
) -> None:
    """Push something bad to the server itself, where it is stored, and through the door, where it is taken out."""
    async with world(given=given, sessions=sessions) as w:
        bad = attack()
        bad_id = bad.id if isinstance(bad, Commit) else bad["id"]
        response = await w.push(False, path, bad, by=by)
        assert response.status_code == 200
        assert (bad_id in w.stored(path)) is works
    async with world(given=given, sessions=sessions) as w:
        bad, good = attack(), note(Y)
        bad_id = bad.id if isinstance(bad, Commit) else bad["id"]
        good_path = NOTES if path.startswith("/sys/") else path
        await w.push(True, good_path, note(Y), by=Y)
        w.child.reached.clear()
        elements = [element(path, [bad]), element(good_path, [good])]
        response = await w.send(True, elements, by=by)
        assert response.status_code == 200, "the rest of the request goes on"
        assert [one["path"] for one in response.json()] == [path, good_path]
        assert bad_id not in w.stored(path)
        assert good.id in w.stored(good_path)
        assert all(bad_id.encode() not in body for body in w.pushes()), "nothing of it reached the server"
        assert w.stopped(rule) == 1


async def test_a_commit_that_claims_another_session_than_its_signer_is_taken_out() -> None:
    await both_ways(Rule.AUTHOR, lambda: note(X, claimed=A.id), "/sys/stats")


async def test_a_root_session_in_the_name_of_the_root_does_not_become_a_root_at_the_next_start() -> None:
    evil = root("evil")
    await both_ways(Rule.AUTHOR, lambda: introduction(evil, X, claimed=A.id), "/sys/sessions")
    for through in (False, True):
        async with world() as w:
            await w.push(through, "/sys/sessions", introduction(evil, X, claimed=A.id))
            w.child.restart()
            assert ("evil" in w.child.roots) is not through, "the server trusts its whole log at start"
            response = await w.send(False, [], by=evil)
            assert response.status_code == (403 if through else 200)


async def test_a_value_that_is_no_session_does_not_keep_the_server_from_ever_starting_again() -> None:
    for through in (False, True):
        async with world() as w:
            await w.push(through, "/sys/sessions", note(X, "k", claimed=A.id))
            await w.push(through, "/sys/sessions", note(A, "j"), by=A)
            w.child.restart()
            response = await w.http.get(w.child.url + "/healthy")
            assert response.status_code == (200 if through else 500)


async def test_an_unknown_signer_is_looked_for_once_and_then_taken_out() -> None:
    await both_ways(Rule.UNKNOWN_SIGNER, lambda: note(owned("stranger")), works=False)
    async with world() as w:
        late = owned("late-comer")
        w.child.introduce(late.session)
        commit = note(late)
        assert (await w.push(True, NOTES, commit, by=late)).status_code == 200
        assert commit.id in w.stored(NOTES), "made past the door, found by asking"
        assert (await w.push(True, NOTES, note(owned("stranger")), by=owned("stranger"))).status_code == 403


async def test_a_session_that_only_a_forged_root_has_introduced_is_unknown() -> None:
    """What the server trusts since its last start is not believed for that."""
    evil, mate = root("evil"), owned("mate")
    for through in (False, True):
        async with world() as w:
            await w.push(False, "/sys/sessions", introduction(evil, X, claimed=A.id))
            w.child.restart()
            await w.push(False, "/sys/sessions", introduction(mate, evil), by=evil)
            commit = note(mate)
            response = await w.push(through, NOTES, commit, by=mate)
            assert response.status_code == (403 if through else 200)
            assert (commit.id in w.stored(NOTES)) is not through
            answer = await ask_for_a_session(w, through)
            assert ("evil" in answer.text) is not through
            assert w.stopped(Rule.UNTRUSTED_ROOT) == (1 if through else 0)


async def test_a_revoked_session_writes_nothing_and_asks_for_nothing() -> None:
    given = identity(A, revoked=(X.id, B.id))
    await both_ways(Rule.REVOKED, lambda: note(X), by=Y, given=given)
    async with world(given=given) as w:
        assert (await w.send(False, [element(NOTES)])).status_code == 200
        assert (await w.send(True, [element(NOTES)])).status_code == 403
        w.child.introduce(B.session)
        assert "root-b" in (await ask_for_a_session(w, False)).text
        assert "root-b" not in (await ask_for_a_session(w, True)).text


async def test_a_revocation_counts_at_once() -> None:
    async with world() as w:
        assert (await w.push(True, NOTES, note(X))).status_code == 200
        w.trust.swap(identity(A, revoked=(X.id,)))
        assert (await w.push(True, NOTES, note(X))).status_code == 403


async def test_a_commit_written_after_its_session_expired_is_taken_out() -> None:
    """The time in a signature is not signed, so the server believes a back-dated one."""
    short = owned("short", expiration_ms=NOW - DAY)
    await both_ways(Rule.EXPIRED, lambda: note(short, ts=NOW, signed_at=NOW - 2 * DAY), by=Y, sessions=(X, Y, short))


async def test_a_signature_without_a_time_is_taken_out() -> None:
    def attack() -> Commit:
        commit = note()
        return replace(commit, signature=envelope(commit.signature, ts=None))

    await both_ways(Rule.SIGNATURE, attack)


@pytest.mark.parametrize(
    "broken",
    [
        lambda commit: replace(commit, signature=None),
        lambda commit: replace(commit, signature="zz"),
        lambda commit: replace(commit, signature=envelope(commit.signature, s="")),
        lambda commit: replace(commit, ts=commit.ts - 1),
    ],
    ids=["none", "malformed", "empty", "of something else"],
)
async def test_a_bad_signature_is_taken_out(broken: Callable[[Commit], Commit]) -> None:
    await both_ways(Rule.SIGNATURE, lambda: broken(note()), works=False)


async def test_a_root_session_that_no_root_introduces_is_taken_out() -> None:
    evil = root("evil")
    await both_ways(Rule.ROOT_SESSION, lambda: introduction(evil, X), "/sys/sessions", works=False)
    await both_ways(Rule.UNKNOWN_SIGNER, lambda: introduction(evil, evil), "/sys/sessions", works=False)


async def test_a_client_does_not_learn_of_a_revoked_root_from_the_sessions_and_a_peer_does() -> None:
    async with world(given=identity(A, revoked=("root-b",))) as w:
        w.child.introduce(B.session)
        w.child.introduce(owned("user-z", "root-less").session)
        for through, by, expected in ((False, X, True), (True, X, False), (True, A, True)):
            answer = (await w.send(through, [element("/sys/sessions")], by=by)).json()
            keys = {each["k"] for each in answer[0]["res"]["c"]}
            assert ("root-b" in keys) is expected
            assert {"anon-x", "anon-y", "user-z"} <= keys
        before = w.trust._read_at
        await w.send(True, [element("/sys/sessions")])
        assert w.stopped(Rule.UNTRUSTED_ROOT) == 1
        assert w.trust._read_at == before, "the sessions are not read again for each answer"


C = root("root-c")


def rotations(*, has_parents: bool) -> list[Commit]:
    """The introductions and cross-signatures of two rotations, A to B to C; with a parent in logs of before ADR 17."""
    b_by_a = introduction(B, A)
    b_by_c = introduction(B, C, parents=[b_by_a.id] if has_parents else [])
    return [b_by_a, introduction(A, B), introduction(C, B), b_by_c, introduction(owned("by-c"), C)]


@pytest.mark.parametrize("has_parents", [True, False])
async def test_a_client_that_was_away_for_two_rotations_follows_the_roots(has_parents: bool) -> None:
    """The child's answer holds everything at once: a client looks at new leaves only (see `Client`)."""
    for through in (False, True):
        async with world() as w:
            for commit in rotations(has_parents=has_parents):
                await w.push(False, "/sys/sessions", commit, by=A)
            client = Client({"root-a"})
            for _ in range(3):
                held = BloomFilter.for_size(50, 1e-6, range(1, 21))
                held.update(client.held)
                answer = (await w.send(through, [element("/sys/sessions", held=held)], by=X)).json()
                client.take([Commit.from_json(each, org=ORG) for each in answer[0]["res"]["c"]])
            assert ("root-c" in client.roots) is (through or not has_parents)
            assert ("by-c" in client.sessions) is (through or not has_parents)


async def test_an_introduction_that_the_servers_answer_lacks_by_chance_is_added() -> None:
    """A Bloom filter contains what was not put into it, and a client that gets B after C does not follow C."""
    async with world() as w:
        log = rotations(has_parents=False)
        for commit in log:
            await w.push(False, "/sys/sessions", commit, by=A)
        held = BloomFilter.for_size(50, 1e-6, range(1, 21))
        held.add(log[0].id)
        for through in (False, True):
            client = Client({"root-a"})
            answer = (await w.send(through, [element("/sys/sessions", held=held)], by=X)).json()
            client.take([Commit.from_json(each, org=ORG) for each in answer[0]["res"]["c"]])
            assert ("root-c" in client.roots) is through


async def test_a_client_learns_of_a_trusted_root_from_the_sessions_at_once() -> None:
    async with world() as w:
        w.child.introduce(B.session)  # past the door, a moment ago
        answer = (await w.send(True, [element("/sys/sessions")])).json()
        assert "root-b" in {each["k"] for each in answer[0]["res"]["c"]}


async def test_a_session_under_another_key_is_taken_out() -> None:
    await both_ways(Rule.SESSION_ITEM, lambda: introduction(owned("z"), A, key="y"), "/sys/sessions", by=A)


async def test_a_session_commit_in_another_repository_is_taken_out() -> None:
    await both_ways(Rule.SESSION_ITEM, lambda: introduction(owned("z"), A), NOTES, by=A)


async def test_a_root_and_a_session_that_it_introduces_count_in_their_order() -> None:
    async with world() as w:
        mate, commit = owned("mate"), note(owned("mate"))
        first = [element("/sys/sessions", [introduction(B, A), introduction(mate, B)])]
        await w.send(True, [*first, element(NOTES, [commit])], by=A)
        assert w.stored("/sys/sessions") >= {each["id"] for each in first[0]["msg"]["c"]} - {
            first[0]["msg"]["c"][1]["id"]
        }
        assert "root-b" in w.child.roots
        answer = await ask_for_a_session(w, True)
        assert {each["id"] for each in answer.json()["roots"]} == {"root-a", "root-b"}


# --- commits on which the server dies, hangs, or goes astray ----------------------------------------------------------


async def fatal(
    attack: Callable[[], list[Commit | dict[str, Any]]],
    outcome: Callable[[World], bool],
    rule: Rule,
    *,
    before: Callable[[], list[Commit]] = list,
) -> None:
    """Push what ends the server's process, or hangs it, and the same through the door."""
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
                assert not w.stopped(Rule.BIRTH)


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
        assert not w.stopped(Rule.BIRTH)


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


async def test_leaves_whose_parents_nobody_knows_do_not_end_the_server() -> None:
    await fatal(
        lambda: [note(X, "k", ts=OLD, parents=["nowhere"])],
        died,
        Rule.BIRTH,
        before=lambda: [note(Y, "k", ts=OLD)],
    )


async def test_a_parent_of_another_key_is_no_ancestor() -> None:
    other = note(Y, "other", ts=OLD)
    await fatal(
        lambda: [note(X, "k", ts=OLD, parents=[other.id])],
        died,
        Rule.BIRTH,
        before=lambda: [note(Y, "k", ts=OLD), other],
    )


async def test_a_circle_of_commits_carries_nobody() -> None:
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
        assert w.stopped(Rule.BIRTH) == 3


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
    await fatal(lambda: list(itself), hung, Rule.DELTA, before=lambda: [birth])
    circle = [delta(X, "k", "d2", "d1", parents=[birth.id]), delta(X, "k", "d1", "d2", parents=[birth.id])]
    await fatal(lambda: list(circle), hung, Rule.DELTA, before=lambda: [birth])


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

    await both_ways(Rule.CONTENTS, attack)


async def test_a_commit_without_a_key_does_not_end_the_server() -> None:
    def attack() -> list[Commit | dict[str, Any]]:
        raw = note().to_json()
        del raw["k"]
        return [raw]

    await fatal(attack, died, Rule.COMMIT)


@pytest.mark.parametrize("commit_id", [None, 5], ids=["none", "number"])
async def test_a_commit_without_an_id_does_not_spoil_its_repository(commit_id: Any) -> None:
    def attack() -> list[Commit | dict[str, Any]]:
        raw = note().to_json()
        raw["id"] = commit_id
        return [raw]

    await fatal(attack, lambda w: bool(w.child._spoilt), Rule.COMMIT)


async def test_a_commit_that_changes_the_schema_of_its_key_does_not_end_the_server() -> None:
    birth = note(Y, "k", ts=OLD)
    left = note(Y, "k", ts=OLD, parents=[birth.id])
    await fatal(
        lambda: [commit_by(X, "k", {"n": 1}, schema="thing/1", ts=OLD, parents=[birth.id])],
        died,
        Rule.SCHEMA,
        before=lambda: [birth, left],
    )


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"age": 0}, Rule.COMMIT),
        ({"age": 1e15}, Rule.COMMIT),
        ({"ts": -5}, Rule.TIME),
        ({"k": "../x"}, Rule.COMMIT),
        ({"k": "__proto__ "}, Rule.COMMIT),
        ({"id": "x" * 1000}, Rule.COMMIT),
        ({"p": ["p"] * 2000}, Rule.ANCESTORS),
        ({"ac": 2**40}, Rule.ANCESTORS),
        ({"ac": "many"}, Rule.COMMIT),
        ({"cid": 5}, Rule.SIGNATURE),
        ({"c": {"e": {"sc": "1", "dc": "2", "c": {}}}}, Rule.COMMIT),
        ({"c": {"r": {"s": "null", "d": {}, "n": False, "cs": "3320765784"}}}, Rule.CONTENTS),
        ({"c": {"r": {"s": "note/1", "d": {"hasOwnProperty": 1}, "n": True, "cs": "1"}}}, Rule.CONTENTS),
        ({"af": {"d": "/w==", "s": [1, 2]}}, Rule.ANCESTORS),
        ({"af": {"d": "AA==", "s": []}}, Rule.ANCESTORS),
        ({"af": {"d": "AA==", "s": [1] * 100}}, Rule.ANCESTORS),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else value.value,
)
async def test_a_commit_of_an_impossible_form_is_taken_out(change: dict[str, Any], rule: Rule) -> None:
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

    await both_ways(Rule.ANCESTORS, attack)


async def test_a_forgery_with_the_id_of_a_genuine_commit_does_not_keep_it_out() -> None:
    for through in (False, True):
        async with world() as w:
            genuine = note(X, "k")
            forgery = {**note(Y, "k", commit_id=genuine.id).to_json(), "sig": "zz"}
            await w.push(through, "/data/other", forgery, by=Y)
            await w.push(through, NOTES, genuine)
            assert (genuine.id in w.stored(NOTES)) is through


async def test_a_commit_under_the_id_of_one_elsewhere_does_not_bring_that_one() -> None:
    """To the server, what comes with a known id is the commit that it knows: here, a second birth of a key."""
    for through in (False, True):
        async with world() as w:
            w.child.create(NOTES, note(Y, "k", ts=OLD))
            first = note(X, "k", ts=OLD)
            await w.push(through, "/data/other", first)
            with contextlib.suppress(Exception):  # whatever the client makes of a dead server
                await w.push(through, NOTES, note(X, "fresh", ts=OLD, commit_id=first.id))
            assert died(w) is not through
            assert w.stopped(Rule.COMMIT) == through


async def test_a_commit_under_the_id_of_one_that_is_on_its_way_carries_nobody() -> None:
    for through in (False, True):
        mine = note(X, "mine", ts=OLD)

        other = note(X, "k", ts=OLD, commit_id=mine.id, parents=["head"])
        child = note(X, "k", ts=OLD, parents=[mine.id])
        async with world() as w:
            w.child.create(NOTES, note(Y, "k", ts=OLD, commit_id="head"))
            with contextlib.suppress(Exception):
                await w.send(through, [element(NOTES, [each]) for each in (mine, other, child)])
            assert died(w) is not through
            assert w.stopped(Rule.COMMIT) == through


async def test_no_commit_takes_the_id_of_a_session_s() -> None:
    async with world() as w:
        introduced = w.child.introduce(owned("anon-z").session)
        await w.trust.refresh()
        await w.push(True, NOTES, note(X, commit_id=introduced.id))
        assert introduced.id not in w.stored(NOTES)
        assert w.stopped(Rule.COMMIT) == 1


async def test_a_commit_from_the_far_future_is_taken_out() -> None:
    await both_ways(Rule.TIME, lambda: note(ts=NOW + DAY + 1, signed_at=NOW))


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
            assert w.stopped(Rule.PRIVATE) == (2 if private else 0)


# --- messages ---------------------------------------------------------------------------------------------------------


def message(**changes: Any) -> list[dict[str, Any]]:
    one = element(NOTES)
    one["msg"].update(changes)
    return [one]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[",
        b"null",
        b'"x"',
        b"{}",
        [None],
        [5],
        [{}],
        [{"path": NOTES}],
        [{"path": NOTES, "msg": None}],
        [{"path": NOTES, "msg": {}}],
        message(f=None),
        message(f={"d": "!", "s": []}),
        message(f={"d": "AA=="}),
        message(c=None),
        [{**element(NOTES), "path": 5}],
        [{**element(NOTES), "path": "/one"}],
        message(x={"hasOwnProperty": 1}),
        b"[" * 200_000,
    ],
    ids=lambda body: str(body)[:50],
)
async def test_a_malformed_body_does_not_reach_the_server(body: Any) -> None:
    async with world() as w:
        bare = await w.send(False, body)
        assert bare.status_code in (200, 400, 500)
        w.child.reached.clear()
        response = await w.send(True, body)
        assert (response.status_code, response.content) == (400, b"")
        assert not w.others()
        assert "access-control-allow-origin" not in response.headers


async def test_the_elements_before_a_malformed_one_take_no_effect() -> None:
    for through in (False, True):
        async with world() as w:
            commit = note()
            response = await w.send(through, [element(NOTES, [commit]), {}])
            assert response.status_code == (400 if through else 500)
            assert (commit.id in w.stored(NOTES)) is not through


@pytest.mark.parametrize("size", [1e8, 1e9, 1e12, -1, 0.5, "1e9", None, True], ids=str)
async def test_a_count_by_which_the_server_would_size_its_answer_is_refused(size: Any) -> None:
    async with world() as w:
        assert (await w.send(True, message(s=size))).status_code == 400
        assert w.stopped(Rule.MESSAGE) == 1
        if size == 1e8:
            with pytest.raises(Exception, match=r".*"):
                await w.send(False, message(s=size))
            assert w.child.died


@pytest.mark.parametrize(
    "given", [{"d": "AA==", "s": [1] * 2000}, {"d": "A" * 8_000_000, "s": [1]}], ids=["seeds", "bits"]
)
async def test_a_filter_that_costs_the_server_seconds_is_refused(given: Any) -> None:
    async with world() as w:
        assert (await w.send(True, message(f={"__t": "E", "__v": given}))).status_code == 400


@pytest.mark.parametrize(
    "path",
    ["/../x", "/data/..", "/settings.json/x", "/data/x\0y", "/data/" + "n" * 300, "/Data/x", "//sys/sessions", "/a//b"],
    ids=lambda path: path[:20].replace("\0", "0"),
)
async def test_a_path_that_is_none_opens_no_file(path: str) -> None:
    async with world() as w:
        assert (await w.send(True, [element(path)])).status_code == 400
        assert w.child.files == {"sys/sessions.jsonl"}
        if path == "/../x":
            await w.send(False, [element(path)])
            assert "../x.jsonl" in w.child.files, "beside the data directory"
        elif "\0" in path:
            with pytest.raises(Exception, match=r".*"):
                await w.send(False, [element(path)])
            assert w.child.died


async def test_a_batch_of_thousands_of_paths_is_refused() -> None:
    async with world() as w:
        paths = [element(f"/data/r{number}") for number in range(2000)]
        assert (await w.send(False, paths)).status_code == 200
        assert len(w.child.files) == 2001
        assert (await w.send(True, paths)).status_code == 400


# --- request signatures -----------------------------------------------------------------------------------------------


def token(by: OwnedSession = A) -> str:
    return sign_data(by, now_ms=NOW, embedded={"u": "u1", "s": X.id, "ts": NOW, "sl": new_id()})


@pytest.mark.parametrize(
    ("header", "bare", "guarded"),
    [
        (lambda: "", 400, 400),
        (lambda: "!!", 500, 403),
        (lambda: base32_encode(b"text"), 500, 403),
        (lambda: sign_data(X, now_ms=NOW), 500, 403),
        (lambda: envelope(signed_header(X), s="a"), 500, 403),
        (lambda: signed_header(owned("stranger")), 403, 403),
        (lambda: signed_header(X, NOW - 240_000), 403, 403),
        (lambda: token(), 200, 403),
    ],
    ids=["none", "no base32", "no JSON", "no data", "no signature", "unknown", "late", "a login token"],
)
async def test_a_request_that_nobody_has_signed_as_one(header: Callable[[], str], bare: int, guarded: int) -> None:
    async with world() as w:
        for through, status in ((False, bare), (True, guarded)):
            fields = {"x-goat-sig": header()} if header() else {}
            response = await w.http.post(w.base(through) + "/batch-sync", json=[element(NOTES)], headers=fields)
            assert response.status_code == status
            assert response.content == b"" or status == 200


async def test_a_signature_counts_for_three_minutes_and_no_longer() -> None:
    async with world() as w:
        header = signed_header(X)
        for through in (False, True):
            assert (await w.send(through, [], header)).status_code == 200
        w.clock.at_ms += 200_000
        assert (await w.send(False, [], header)).status_code == 200, "remembered"
        assert (await w.send(True, [], header)).status_code == 403


async def test_before_many_signatures_are_checked_the_sender_s_own_is() -> None:
    async with world() as w:
        forged = envelope(signed_header(Y), i=X.id)
        response = await w.send(True, [element(NOTES, [note() for _ in range(10)])], forged)
        assert response.status_code == 403
        assert w.stopped(Rule.REQUEST_SIGNATURE) == 1


# --- /auth/* ----------------------------------------------------------------------------------------------------------


async def mail(w: World, through: bool, by: OwnedSession, *, signed: str = "a@goats.example", **changes: Any) -> int:
    request = {"email": "a@goats.example", "signature": sign_data(by, now_ms=NOW, external=signed), **changes}
    response = await w.http.post(w.base(through) + "/auth/send-login-email", json=request)
    return response.status_code


async def test_no_login_mail_goes_out_on_a_forged_signature() -> None:
    async with world() as w:
        thief = replace(X, signer=Y.signer)
        assert await mail(w, False, thief) == 200
        assert len(w.child.mails) == 1
        assert await mail(w, True, thief) == 403
        assert await mail(w, True, X, signed="b@goats.example") == 403
        assert await mail(w, True, X, signature="zz") == 403
        assert await mail(w, False, X, signature="zz") == 500
        assert await mail(w, True, X, email=5) == 400
        assert len(w.child.mails) == 1
        assert await mail(w, True, X) == 200
        assert len(w.child.mails) == 2


async def test_an_old_login_token_signs_nobody_in() -> None:
    for through in (False, True):
        async with world() as w:
            old = w.child.login_token("u1", X.id, NOW - 10 * DAY)
            response = await w.http.get(w.base(through) + f"/auth/temp-login?t={old}", follow_redirects=False)
            assert response.status_code == 307
            assert w.child.sessions[X.id].owner == (None if through else "u1")
            fresh = w.child.login_token("u1", X.id, NOW - 60_000)
            await w.http.get(w.base(through) + f"/auth/temp-login?t={fresh}", follow_redirects=False)
            assert w.child.sessions[X.id].owner == "u1"


@pytest.mark.parametrize(
    ("body", "bare", "guarded"),
    [
        (b"", 400, 400),
        (b"{}", 400, 400),
        (b"null", 400, 400),
        ({"publicKey": "x"}, 400, 400),
        ({"publicKey": {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"}}, 500, 400),
        ({"publicKey": {**owned("n").session.public_key.to_jwk(), "x": "A" * 64}}, 500, 400),
        ({"publicKey": key_of("n").to_jwk()}, 400, 400),
    ],
    ids=["empty", "object", "null", "text", "P-256", "off the curve", "private"],
)
async def test_a_key_that_is_none_makes_no_session(body: Any, bare: int, guarded: int) -> None:
    async with world() as w:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        direct = await w.http.post(w.child.url + "/auth/session", content=raw)
        assert direct.status_code == bare
        w.child.reached.clear()
        response = await w.http.post(w.door.url + "/auth/session", content=raw)
        assert response.status_code == guarded
        if bare == guarded:
            assert response.content == direct.content
        assert not w.others()


# --- how much ---------------------------------------------------------------------------------------------------------

FEW = Rate(per_second=0.001, burst=3)


@pytest.mark.parametrize(
    ("limits", "attempt"),
    [
        (DoorLimits(requests=FEW), lambda w: w.http.get(w.door.url + "/healthy")),
        (DoorLimits(session_requests=FEW), lambda w: w.send(True, [])),
        (DoorLimits(new_sessions=FEW), lambda w: w.http.post(w.door.url + "/auth/session", json=NEW)),
        (DoorLimits(new_repositories=FEW), lambda w: w.send(True, [element(f"/data/{new_id()}")])),
    ],
    ids=["requests", "session", "new sessions", "repositories"],
)
async def test_who_asks_too_often_is_told_when_to_come_again(
    limits: DoorLimits, attempt: Callable[[World], Any]
) -> None:
    async with world(limits=limits) as w:
        statuses = [await attempt(w) for _ in range(5)]
        assert [each.status_code for each in statuses] == [200, 200, 200, 429, 429]
        assert int(statuses[-1].headers["retry-after"]) >= 1
        assert w.stopped(Rule.TOO_MANY) == 2


async def test_forged_requests_do_not_fill_the_table_of_repositories() -> None:
    async with world(limits=DoorLimits(repositories=3, new_repositories=Rate(per_second=0.001, burst=4))) as w:
        forged = envelope(signed_header(Y), i=X.id)
        for number in range(20):
            assert (await w.send(True, [element(f"/data/f{number}")], forged)).status_code == 403
        stranger = signed_header(owned("stranger"))
        assert (await w.send(True, [element("/data/s1"), element("/data/s2")], stranger)).status_code == 403
        assert not w.door._proxy._repositories
        assert (await w.push(True, "/data/0", note(X))).status_code == 200


async def test_there_is_always_room_for_one_more_repository_and_no_id_is_forgotten_for_it() -> None:
    async with world(limits=DoorLimits(repositories=3)) as w:
        first = note(X)
        assert (await w.push(True, "/data/0", first)).status_code == 200
        for number in range(1, 6):
            assert (await w.push(True, f"/data/{number}", note(X))).status_code == 200
        assert list(w.door._proxy._repositories) == ["/data/3", "/data/4", "/data/5"]
        # A push whose commits the server has not shown yet keeps its index.
        assert {"/data/4", "/data/5"} <= set(w.door._indexes[ORG]._indexes)
        await w.push(True, "/data/1", note(Y, "k", commit_id=first.id))
        assert first.id not in w.stored("/data/1"), "an id counts in all repositories"
        assert first.id in w.stored("/data/0")


async def test_the_indexes_of_repositories_are_not_more_than_so_many() -> None:
    async with world(limits=DoorLimits(repositories=3)) as w:
        for number in range(8):
            assert (await w.push(True, f"/data/{number}", note(X))).status_code == 200
            await w.door._indexes[ORG]._indexes[f"/data/{number}"].refresh()
        assert list(w.door._indexes[ORG]._indexes) == ["/data/5", "/data/6", "/data/7"]


NEW = {"publicKey": owned("new").session.public_key.to_jwk()}


async def test_nobody_uses_up_the_share_of_another_s_session() -> None:
    async with world(limits=DoorLimits(session_requests=FEW)) as w:
        forged = envelope(signed_header(Y), i=X.id)
        for _ in range(10):
            assert (await w.send(True, [], forged)).status_code == 403
        assert (await w.send(True, [])).status_code == 200


async def test_addresses_are_counted_apart_where_a_trusted_proxy_names_them() -> None:
    async with world(limits=DoorLimits(requests=FEW), forwarded_by=("127.0.0.0/8",)) as w:
        for caller in ("192.0.2.1", "192.0.2.2"):
            answers = [
                await w.http.get(w.door.url + "/healthy", headers={"x-forwarded-for": f"spoofed, {caller}"})
                for _ in range(4)
            ]
            assert [each.status_code for each in answers] == [200, 200, 200, 429]
    async with world(limits=DoorLimits(requests=FEW)) as w:
        answers = [
            await w.http.get(w.door.url + "/healthy", headers={"x-forwarded-for": f"192.0.2.{n}"}) for n in range(4)
        ]
        assert answers[-1].status_code == 429, "a header that anybody can write"


@pytest.mark.parametrize("is_chunked", [False, True], ids=["length", "chunked"])
async def test_a_body_that_is_too_large_is_413(is_chunked: bool) -> None:
    async with world(limits=DoorLimits(body_bytes=100_000)) as w:

        async def parts() -> Any:
            for _ in range(20):
                yield b" " * 10_000

        for path in ("/batch-sync", "/nothing"):
            content: Any = parts() if is_chunked else b" " * 200_000
            response = await w.http.post(w.door.url + path, content=content, headers={"x-goat-sig": signed_header(X)})
            assert response.status_code == 413
        assert w.stopped(Rule.TOO_LARGE) == 2


async def test_bodies_that_do_not_fit_into_memory_together_wait() -> None:
    async with world(limits=DoorLimits(buffered_bytes=50_000)) as w:
        response = await w.send(True, b" " * 60_000)
        assert response.status_code == 503
        assert response.headers["retry-after"] == "1"
        assert (await w.send(True, [])).status_code == 200, "the memory came back"


async def test_a_compressed_body_is_not_taken() -> None:
    async with world() as w:
        for path in ("/batch-sync", "/auth/session", "/auth/send-login-email"):
            response = await w.send(True, b"\x1f\x8b", path=path, headers={"content-encoding": "gzip"})
            assert response.status_code == 415
        assert not w.others()
