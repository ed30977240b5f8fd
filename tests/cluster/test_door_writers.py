"""The private key, and who may write: the attack works on the server itself, and the door stops it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from goatherd.door.request_checks import DoorRule
from goatherd.wire.bloom import BloomFilter
from goatherd.wire.commit import Commit
from tests.cluster.door_world import A, B, World, X, Y, identity, world
from tests.unit.following import Client
from tests.unit.goats import DAY, NOW, ORG, commit_by, element, introduction, key_of, owned, root

from .door_attacks import NOTES, both_ways, envelope, note

pytestmark = pytest.mark.slow


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
        assert w.stopped(DoorRule.PRIVATE_KEY) == 1
        assert answer.headers["content-type"] == "application/json"


async def test_an_answer_without_a_key_passes_byte_for_byte() -> None:
    async with world(leaks=False) as w:
        answer = await ask_for_a_session(w, True)
        assert answer.content == w.child.answers[-1]
        assert w.stopped(DoorRule.PRIVATE_KEY) == 0


async def test_a_session_of_a_server_with_another_identity_is_503() -> None:
    async with world() as w:
        w.trust.adopt_identity(identity(B, revoked=(A.id,)))
        request = {"publicKey": owned("new").session.public_key.to_jwk()}
        answer = await w.http.post(w.door.url + "/auth/session", json=request)
        assert (answer.status_code, answer.content) == (503, b"")
        assert w.stopped(DoorRule.PRIVATE_KEY) == 1
        assert w.stopped(DoorRule.UNTRUSTED_ROOT) == 2, "the root, and the answer without one"


async def test_foreign_members_of_a_root_are_not_published() -> None:
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
        assert w.stopped(DoorRule.PRIVATE_KEY) == 1


# --- who writes -------------------------------------------------------------------------------------------------------


async def test_a_commit_that_claims_another_session_than_its_signer_is_taken_out() -> None:
    await both_ways(DoorRule.AUTHOR, lambda: note(X, claimed=A.id), "/sys/stats")


async def test_a_root_session_in_the_name_of_the_root_does_not_become_a_root_at_the_next_start() -> None:
    evil = root("evil")
    await both_ways(DoorRule.AUTHOR, lambda: introduction(evil, X, claimed=A.id), "/sys/sessions")
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
    await both_ways(DoorRule.UNKNOWN_SIGNER, lambda: note(owned("stranger")), works=False)
    async with world() as w:
        late = owned("late-comer")
        w.child.introduce(late.session)
        commit = note(late)
        assert (await w.push(True, NOTES, commit, by=late)).status_code == 200
        assert commit.id in w.stored(NOTES), "made past the door, found by asking"
        assert (await w.push(True, NOTES, note(owned("stranger")), by=owned("stranger"))).status_code == 403


async def test_a_session_that_only_a_forged_root_has_introduced_is_unknown() -> None:
    """The door does not trust a session only because the server trusts it since its last start."""
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
            assert w.stopped(DoorRule.UNTRUSTED_ROOT) == (1 if through else 0)


async def test_a_revoked_session_writes_nothing_and_asks_for_nothing() -> None:
    given = identity(A, revoked=(X.id, B.id))
    await both_ways(DoorRule.REVOKED, lambda: note(X), by=Y, given=given)
    async with world(given=given) as w:
        assert (await w.send(False, [element(NOTES)])).status_code == 200
        assert (await w.send(True, [element(NOTES)])).status_code == 403
        w.child.introduce(B.session)
        assert "root-b" in (await ask_for_a_session(w, False)).text
        assert "root-b" not in (await ask_for_a_session(w, True)).text


async def test_a_revocation_counts_at_once() -> None:
    async with world() as w:
        assert (await w.push(True, NOTES, note(X))).status_code == 200
        w.trust.adopt_identity(identity(A, revoked=(X.id,)))
        assert (await w.push(True, NOTES, note(X))).status_code == 403


async def test_a_commit_written_after_its_session_expired_is_taken_out() -> None:
    """The timestamp beside a signature is not signed, so the server accepts a back-dated commit."""
    short = owned("short", expiration_ms=NOW - DAY)
    await both_ways(
        DoorRule.EXPIRED, lambda: note(short, ts=NOW, signed_at=NOW - 2 * DAY), by=Y, sessions=(X, Y, short)
    )


async def test_a_signature_without_a_time_is_taken_out() -> None:
    def attack() -> Commit:
        commit = note()
        return replace(commit, signature=envelope(commit.signature, ts=None))

    await both_ways(DoorRule.SIGNATURE, attack)


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
    await both_ways(DoorRule.SIGNATURE, lambda: broken(note()), works=False)


async def test_a_root_session_that_no_root_introduces_is_taken_out() -> None:
    evil = root("evil")
    await both_ways(DoorRule.ROOT_SESSION, lambda: introduction(evil, X), "/sys/sessions", works=False)
    await both_ways(DoorRule.UNKNOWN_SIGNER, lambda: introduction(evil, evil), "/sys/sessions", works=False)


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
        assert w.stopped(DoorRule.UNTRUSTED_ROOT) == 1
        assert w.trust._read_at == before, "the sessions are not read again for each answer"


C = root("root-c")


def rotations(*, has_parents: bool) -> list[Commit]:
    """The introductions and cross-signatures of two rotations, A to B to C; with a parent in logs of before ADR 17."""
    b_by_a = introduction(B, A)
    b_by_c = introduction(B, C, parents=[b_by_a.id] if has_parents else [])
    return [b_by_a, introduction(A, B), introduction(C, B), b_by_c, introduction(owned("by-c"), C)]


@pytest.mark.parametrize("has_parents", [True, False])
async def test_a_client_that_was_away_for_two_rotations_follows_the_roots(has_parents: bool) -> None:
    """The child's answer contains all commits at once, and a client looks at new leaves only (see `Client`)."""
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
    """A Bloom filter also contains ids that were not added, and a client that gets B after C does not follow C."""
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
    await both_ways(DoorRule.SESSION_ITEM, lambda: introduction(owned("z"), A, key="y"), "/sys/sessions", by=A)


async def test_a_session_commit_in_another_repository_is_taken_out() -> None:
    await both_ways(DoorRule.SESSION_ITEM, lambda: introduction(owned("z"), A), NOTES, by=A)


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
