"""The trust pool, rule by rule."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from goatherd import trust
from goatherd.crypto import PublicKey
from goatherd.errors import (
    AuthorMismatchError,
    ClockSkewError,
    ExpiredSessionError,
    InvalidSignatureError,
    RevokedSessionError,
    UnknownSignerError,
    UntrustedRootError,
)
from goatherd.identity.session import Session, sign_data
from goatherd.trust import TrustPool
from goatherd.wire.commit import compact_commit

from .goats import (
    DAY,
    NOW,
    ORG,
    RevokedSession,
    TrustedRoots,
    commit_by,
    introduction,
    owned,
    pool_of,
    root,
    signed_header,
    verify_pending,
)

A, B, C = root("root-a"), root("root-b"), root("root-c")
USER = owned("user-1", "u1")
ANON = owned("anon-1")


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as executor:
        yield executor


def test_a_document_root_is_a_root_and_a_known_signer() -> None:
    pool = pool_of(A, A, B)
    assert pool.root_ids == ("root-a", "root-b")
    pool.verify_commit(commit_by(B, "k", {"t": "x"}))
    assert pool.verify_request(signed_header(B), NOW) == B.session


def test_the_current_session_is_a_root_even_where_the_list_forgets_it() -> None:
    assert pool_of(A, B).root_ids == ("root-b", "root-a")


def test_a_session_introduced_by_a_root_may_sign() -> None:
    pool = pool_of(A, A)
    with pytest.raises(UnknownSignerError):
        pool.verify_commit(commit_by(USER, "k", {"t": "x"}))
    assert pool.add_session_commit(introduction(USER, A))
    pool.verify_commit(commit_by(USER, "k", {"t": "x"}))


def test_a_session_that_no_root_introduced_may_not_sign() -> None:
    pool = pool_of(A, A)
    pool.add_session_commit(introduction(USER, A))
    assert not pool.add_session_commit(introduction(ANON, USER))
    assert not pool.add_session_commit(introduction(ANON, B))
    assert not pool.add_session_commit(introduction(B, B))
    with pytest.raises(UnknownSignerError):
        pool.get_session(ANON.id)


def test_roots_are_learnt_through_any_chain_in_any_order_of_the_log() -> None:
    chain = [introduction(USER, C), introduction(C, B), introduction(B, A)]
    pool = pool_of(A, A)
    pool.offer_session_commits(chain)
    assert set(pool.root_ids) == {"root-a", "root-b", "root-c"}
    pool.verify_commit(commit_by(USER, "k", {"t": "x"}))


def test_roots_that_only_vouch_for_each_other_are_no_roots() -> None:
    pool = pool_of(A, A)
    pool.offer_session_commits([introduction(B, C), introduction(C, B)])
    assert pool.root_ids == ("root-a",)
    with pytest.raises(UntrustedRootError):
        pool.get_root("root-b")


def test_offered_sessions_are_verified_when_first_needed_and_not_before() -> None:
    pool = pool_of(A, A)
    sessions = [owned(f"lazy-{number}") for number in range(3)]
    pool.offer_session_commits([introduction(session, A) for session in sessions])
    assert (pool.pending_count, pool.known_count) == (3, 1)
    assert pool.get_session("lazy-1") == sessions[1].session
    assert (pool.pending_count, pool.known_count) == (2, 2)
    verify_pending(pool, 1)
    assert pool.pending_count == 1
    verify_pending(pool, 10)
    assert (pool.pending_count, pool.known_count) == (0, 4)


def test_sessions_beyond_those_that_stay_decoded_are_decoded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust, "MAX_DECODED", 2)
    pool = pool_of(A, A)
    sessions = [owned(f"user-{number}", "u") for number in range(5)]
    pool.offer_session_commits([introduction(session, A) for session in (B, *sessions)])
    for _ in range(2):
        assert [pool.get_session(session.id) for session in sessions] == [session.session for session in sessions]
    assert pool.root_ids == ("root-a", "root-b")
    assert (pool.pending_count, pool.known_count) == (0, 7)


def test_asking_for_a_root_changes_nothing_since_threads_do_so() -> None:
    pool = pool_of(A, A)
    pool.offer_session_commits([introduction(B, A), introduction(USER, B)])
    verify_pending(pool)
    containers = {name: value for name, value in vars(pool).items() if isinstance(value, dict | set)}
    before = {name: list(value) for name, value in containers.items()}
    assert pool.get_root("root-b") == B.session
    with pytest.raises(UntrustedRootError):
        pool.get_root(USER.id)
    assert {name: list(value) for name, value in containers.items()} == before


def test_a_session_is_what_its_remaining_introductions_say_after_a_revocation() -> None:
    renewed = replace(USER, session=replace(USER.session, expiration_ms=USER.session.expiration_ms + DAY))
    pool = pool_of(A, A, B)
    pool.offer_session_commits([introduction(USER, A), introduction(renewed, B)])
    assert pool.get_session(USER.id) == renewed.session
    pool.adopt_document(TrustedRoots(current=A, roots=(A.session, B.session), revoked=(RevokedSession("root-b"),)))
    pool.set_frozen_commits({}, settled=["root-b"])
    assert pool.get_session(USER.id) == USER.session


def test_a_new_client_is_told_the_roots_without_a_look_at_every_session(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = TrustPool(
        org=ORG, current=A, roots=[A.session], trusted=[replace(ANON.session, id=f"anon-{n}") for n in range(200)]
    )
    assert pool.add_session_commit(introduction(B, A))
    looked: list[str] = []
    is_root = Session.is_root.fget  # type: ignore[attr-defined]
    monkeypatch.setattr(Session, "is_root", property(lambda session: looked.append(session.id) or is_root(session)))
    assert [one.id for one in pool.public_roots(NOW)] == ["root-a", "root-b"]
    assert set(looked) == {"root-a", "root-b"}


def test_an_offered_forgery_is_never_trusted() -> None:
    pool = pool_of(A, A)
    forged = introduction(USER, ANON, claimed=A.id)
    tampered = replace(introduction(B, A), ts=NOW + 1)
    pool.offer_session_commits([forged, tampered])
    assert pool.root_ids == ("root-a",)
    verify_pending(pool)
    for session in (USER, B):
        with pytest.raises(UnknownSignerError):
            pool.get_session(session.id)


def test_a_forgery_beside_the_real_introduction_does_no_harm() -> None:
    pool = pool_of(A, A)
    pool.offer_session_commits([introduction(USER, ANON, claimed=A.id), introduction(USER, A)])
    assert pool.get_session(USER.id) == USER.session


def test_sessions_wait_for_a_root_that_comes_later() -> None:
    pool = pool_of(A, A)
    pool.offer_session_commits([introduction(USER, B)])
    verify_pending(pool)
    assert pool.queued_count == 0
    with pytest.raises(UnknownSignerError):
        pool.get_session(USER.id)
    assert pool.add_session_commit(introduction(B, A))
    assert pool.get_session(USER.id) == USER.session


def test_a_commit_of_another_schema_is_no_introduction() -> None:
    pool = pool_of(A, A)
    assert not pool.add_session_commit(commit_by(A, "user-1", {"id": "user-1"}))


@pytest.mark.parametrize(
    "change",
    [
        {"publicKey": "no json"},
        {"publicKey": "[]"},
        {"publicKey": '{"kty":"EC"}'},
        {"owner": 5},
        {"id": "somebody-else"},
        {"isDeleted": True},
        {"expiration": "never"},
    ],
    ids=str,
)
def test_a_malformed_session_is_not_trusted_even_if_a_root_signed_it(change: dict[str, object]) -> None:
    good = introduction(USER, A)
    assert good.data is not None
    pool = pool_of(A, A)
    malformed = commit_by(A, USER.id, {**good.data, **change}, schema="sessions/1", checksum="0")
    assert not pool.add_session_commit(malformed)
    assert pool.known_count == 1


def test_a_later_expiration_counts_and_an_earlier_one_does_not() -> None:
    later = owned("user-1", "u1", expiration_ms=NOW + 60 * DAY)
    pool = pool_of(A, A)
    pool.add_session_commit(introduction(later, A))
    pool.add_session_commit(introduction(USER, A))
    assert pool.get_session("user-1").expiration_ms == NOW + 60 * DAY


def test_a_session_gains_its_owner_at_login() -> None:
    pool = pool_of(A, A)
    pool.add_session_commit(introduction(owned("user-1"), A))
    assert pool.get_session("user-1").owner is None
    pool.add_session_commit(introduction(USER, A))
    assert pool.get_session("user-1").owner == "u1"


def test_nothing_learnt_changes_a_document_root() -> None:
    impostor = replace(owned("impostor").session, id="root-b", owner="root", expiration_ms=NOW + 900 * DAY)
    pool = pool_of(A, A, B)
    pool.add_session_commit(introduction(impostor, A))
    assert pool.get_session("root-b") == B.session


def test_a_root_is_not_demoted_by_a_later_copy_without_owner() -> None:
    pool = pool_of(A, A)
    pool.add_session_commit(introduction(B, A))
    pool.add_session_commit(introduction(owned("root-b", expiration_ms=NOW + 90 * DAY), A))
    assert pool.get_session("root-b").is_root


def test_the_author_must_be_the_signer() -> None:
    pool = pool_of(A, A, B)
    with pytest.raises(AuthorMismatchError):
        pool.verify_commit(commit_by(B, "k", {"t": "x"}, claimed=A.id))


def test_what_was_signed_in_time_stays_valid_and_what_comes_later_is_refused() -> None:
    old = root("old-root", expiration_ms=NOW)
    pool = pool_of(A, A, old)
    pool.verify_commit(commit_by(old, "k", {"t": "x"}, ts=NOW))
    with pytest.raises(ExpiredSessionError):
        pool.verify_commit(commit_by(old, "k", {"t": "x"}, ts=NOW - 5, signed_at=NOW + 1))
    with pytest.raises(ExpiredSessionError):
        pool.verify_commit(commit_by(old, "k", {"t": "x"}, ts=NOW + 1, signed_at=NOW))


def test_every_commit_gets_its_own_verdict_in_order(threads: ThreadPoolExecutor) -> None:
    pool = pool_of(A, A, B)
    pool.offer_session_commits([introduction(USER, B), introduction(owned("late"), C)])
    good, bad = commit_by(USER, "k", {"t": "x"}), commit_by(A, "k", {"t": "x"})
    commits = [
        good,
        replace(bad, ts=bad.ts + 1),
        commit_by(owned("late"), "k", {"t": "x"}),
        commit_by(ANON, "k", {}),
    ] * 12
    verdicts = pool.verify_commits(commits, threads)
    kinds = [type(verdict) for verdict in verdicts]
    assert kinds == [type(None), InvalidSignatureError, UnknownSignerError, UnknownSignerError] * 12


def test_a_run_in_a_thread_does_not_need_the_pool() -> None:
    pool = pool_of(A, A)
    pool.offer_session_commits([introduction(USER, A)])
    first = pool.prepare_verification([commit_by(USER, "k", {"t": "x"})])
    second = pool.prepare_verification([commit_by(USER, "k", {"t": "y"})])
    first.run()
    second.run()
    assert pool.conclude_verification(first) == pool.conclude_verification(second) == [None]
    assert pool.pending_count == 0


def test_a_verification_is_not_concluded_before_it_ran() -> None:
    pool = pool_of(A, A)
    pool.offer_session_commits([introduction(USER, A)])
    with pytest.raises(RuntimeError, match=r"call Verification\.run\(\) before"):
        pool.conclude_verification(pool.prepare_verification([commit_by(USER, "k", {"t": "x"})]))


# --- swap and revocation ------------------------------------------------------------------------------------------


def test_a_swap_changes_who_signs_and_keeps_what_was_learnt() -> None:
    pool = pool_of(A, A)
    pool.add_session_commit(introduction(USER, A))
    pool.adopt_document(TrustedRoots(B, (A.session, B.session)))
    assert pool.current is B
    assert pool.document_root_ids == ("root-a", "root-b")
    assert pool.get_session(USER.id) == USER.session


def test_a_swap_updates_a_session_of_the_same_id() -> None:
    pool = pool_of(A, A)
    extended = root("root-a", expiration_ms=NOW + 99 * DAY)
    pool.adopt_document(TrustedRoots(extended, (extended.session,)))
    assert pool.get_session("root-a").expiration_ms == NOW + 99 * DAY


def test_a_root_that_left_the_document_signs_nothing_new_unless_it_was_introduced() -> None:
    pool = pool_of(A, A, B, C)
    pool.add_session_commit(introduction(C, A))
    pool.adopt_document(TrustedRoots(A, (A.session,)))
    assert set(pool.root_ids) == {"root-a", "root-c"}
    with pytest.raises(UnknownSignerError):
        pool.verify_commit(commit_by(B, "k", {"t": "x"}))
    assert not pool.add_session_commit(introduction(USER, B))


def test_sessions_that_a_former_root_introduced_and_we_hold_are_still_found() -> None:
    pool = pool_of(A, A)
    pool.offer_session_commits([introduction(USER, A)])
    pool.adopt_document(TrustedRoots(B, (B.session,)))
    assert pool.get_session(USER.id) == USER.session


def test_a_request_that_was_verified_before_is_checked_again_in_all_but_its_signature(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool = pool_of(A, A, B)
    header = signed_header(B)
    signer = pool.verify_request(header, NOW)
    verified: list[bytes] = []
    monkeypatch.setattr(PublicKey, "verify", lambda _, signature, __: verified.append(signature))
    assert pool.verify_request(header, NOW + 1, verified_by=signer) == B.session
    assert not verified
    with pytest.raises(ClockSkewError):
        pool.verify_request(header, NOW + 10 * 60_000, verified_by=signer)
    pool.verify_request(header, NOW, verified_by=C.session)
    assert len(verified) == 1, "another session's key proves nothing"
    pool.adopt_document(TrustedRoots(A, (A.session, B.session), (RevokedSession("root-b"),)))
    with pytest.raises(RevokedSessionError):
        pool.verify_request(header, NOW, verified_by=signer)


def test_a_revoked_root_signs_nothing_new() -> None:
    pool = pool_of(A, A, B)
    pool.adopt_document(TrustedRoots(B, (A.session, B.session), (RevokedSession("root-a"),)))
    assert pool.root_ids == ("root-b",)
    assert [each.id for each in pool.public_roots(NOW)] == ["root-b"]
    with pytest.raises(RevokedSessionError):
        pool.verify_commit(commit_by(A, "k", {"t": "x"}, ts=NOW - 9 * DAY))
    with pytest.raises(RevokedSessionError):
        pool.verify_request(signed_header(A), NOW)
    assert not pool.add_session_commit(introduction(USER, A))


def test_users_of_a_revoked_root_stay_and_its_roots_go() -> None:
    mole, fruit = owned("mole"), root("fruit")
    pool = pool_of(A, A, B)
    for session, by in [(USER, A), (C, A), (mole, C), (fruit, C)]:
        assert pool.add_session_commit(introduction(session, by))
    pool.adopt_document(TrustedRoots(B, (A.session, B.session), (RevokedSession("root-a"),)))
    assert pool.root_ids == ("root-b",)
    assert pool.get_session(USER.id) == USER.session
    for gone in ("root-c", "mole", "fruit"):
        with pytest.raises(UnknownSignerError):
            pool.get_session(gone)


def test_users_of_a_revoked_root_that_no_document_named_stay_signed_in_as_well() -> None:
    pool = pool_of(A, A)
    for session, by in [(B, A), (USER, B)]:
        assert pool.add_session_commit(introduction(session, by))
    pool.adopt_document(TrustedRoots(A, (A.session,), (RevokedSession("root-b"),)))
    assert pool.root_ids == ("root-a",)
    assert pool.get_session(USER.id) == USER.session


def test_after_a_restart_a_revoked_root_counts_for_the_same_as_before() -> None:
    log = [introduction(session, by) for session, by in [(USER, A), (C, A), (owned("mole"), C)]]
    pool = pool_of(B, A, B, revoked=["root-a"])
    pool.offer_session_commits(log)
    verify_pending(pool)
    assert pool.root_ids == ("root-b",)
    assert pool.get_session(USER.id) == USER.session
    with pytest.raises(UnknownSignerError):
        pool.get_session("mole")


def test_a_root_that_a_good_root_introduced_too_survives_the_revocation() -> None:
    pool = pool_of(A, A, B)
    pool.add_session_commit(introduction(C, A))
    pool.add_session_commit(introduction(C, B))
    pool.adopt_document(TrustedRoots(B, (A.session, B.session), (RevokedSession("root-a"),)))
    assert set(pool.root_ids) == {"root-b", "root-c"}


def test_a_revocation_can_be_taken_back() -> None:
    pool = pool_of(A, A, B)
    pool.add_session_commit(introduction(C, A))
    pool.add_session_commit(introduction(USER, C))
    pool.adopt_document(TrustedRoots(B, (A.session, B.session), (RevokedSession("root-a"),)))
    pool.adopt_document(TrustedRoots(B, (A.session, B.session)))
    assert set(pool.root_ids) == {"root-a", "root-b", "root-c"}
    assert pool.get_session(USER.id) == USER.session


def test_a_revoked_session_cannot_be_the_current_one() -> None:
    pool = pool_of(A, A)
    with pytest.raises(RevokedSessionError):
        pool.adopt_document(TrustedRoots(A, (A.session,), (RevokedSession("root-a"),)))
    assert not pool.revoked


# --- requests and answers -----------------------------------------------------------------------------------------


def test_new_clients_hear_of_roots_that_are_alive_the_current_one_first() -> None:
    dead = root("dead-root", expiration_ms=NOW - 1)
    assert [each.id for each in pool_of(B, A, dead, B).public_roots(NOW)] == ["root-b", "root-a"]


def test_a_login_token_is_no_request_signature() -> None:
    token = sign_data(A, now_ms=NOW, embedded={"u": "u1", "s": "anon-1", "ts": NOW, "sl": "x"})
    with pytest.raises(InvalidSignatureError):
        pool_of(A, A).verify_request(token, NOW)


def test_sessions_of_a_settings_file_are_taken_as_they_are() -> None:
    pool = TrustPool(org="localhost", current=A, roots=[A.session], trusted=[USER.session, B.session])
    assert pool.get_session(USER.id) == USER.session
    assert set(pool.root_ids) == {"root-a", "root-b"}


def test_a_session_that_was_removed_from_a_settings_file_is_trusted_only_if_a_root_has_introduced_it() -> None:
    pool = TrustPool(org=ORG, current=A, roots=[A.session], trusted=[USER.session, ANON.session])
    assert pool.add_session_commit(introduction(ANON, A))
    for one in (USER, ANON):
        assert pool.get_session(one.id) == one.session
    pool.replace_trusted([])
    with pytest.raises(UnknownSignerError):
        pool.get_session(USER.id)
    assert pool.get_session(ANON.id) == ANON.session
    pool.replace_trusted([USER.session])
    assert pool.get_session(USER.id) == USER.session


def test_roots_that_introduce_each_other_do_not_survive_the_revocation_of_who_brought_them() -> None:
    rogue, other = root("root-x"), root("root-y")
    pool = pool_of(A, A, B)
    for commit in (introduction(rogue, B), introduction(other, rogue), introduction(rogue, other)):
        assert pool.add_session_commit(commit)
    pool.replace_roots(current=A, roots=[A.session, B.session], revoked=[B.id])
    assert pool.root_ids == (A.id,)
    for one in (rogue, other):
        with pytest.raises(UnknownSignerError):
            pool.verify_commit(commit_by(one, "k", {"t": "x"}))


@pytest.mark.slow
def test_a_chain_of_roots_in_the_worst_order_costs_one_signature_each(monkeypatch: pytest.MonkeyPatch) -> None:
    links = [root(f"root-{number}") for number in range(200)]
    chain = [introduction(older, newer) for older, newer in itertools.pairwise(links)]
    counted, looks = 0, 0
    run, jobs = trust._SessionCommitCheck.verify, TrustPool._checks_for

    def counting(job: trust._SessionCommitCheck) -> None:
        nonlocal counted
        counted += 1
        run(job)

    def looking(pool: TrustPool, session_id: str) -> list[trust._SessionCommitCheck]:
        nonlocal looks
        looks += 1
        return jobs(pool, session_id)

    monkeypatch.setattr(trust._SessionCommitCheck, "verify", counting)
    monkeypatch.setattr(TrustPool, "_checks_for", looking)
    pool = pool_of(links[-1], links[-1])
    pool.offer_session_commits(chain)
    assert len(pool.root_ids) == len(links)
    assert counted == len(chain)
    assert looks <= 3 * len(links)


def test_a_commit_that_cannot_be_decoded_keeps_no_other_session_out() -> None:
    pool = pool_of(A, A)
    damaged = compact_commit(b"{", "id", "damaged", A.id, 1, ORG, (), "sessions/1", None)
    pool.offer_session_commits([damaged, introduction(USER, A)])
    verify_pending(pool)
    assert pool.queued_count == 0
    assert pool.get_session(USER.id) == USER.session
    with pytest.raises(UnknownSignerError):
        pool.get_session("damaged")


def test_each_of_several_commits_of_one_session_is_verified_once() -> None:
    pool = pool_of(A, A)
    commits = [introduction(USER, A, commit_id=f"commit-{number}") for number in range(4)]
    pool.offer_session_commits([*commits, introduction(ANON, A)])
    verification = pool.prepare_pending()
    assert verification.signature_count == len(commits) + 1
    verification.run()
    pool.conclude_verification(verification)
    assert (pool.pending_count, pool.queued_count) == (0, 0)


def test_commits_by_session_are_those_of_a_plain_dictionary_and_take_no_more_memory_than_what_is_left() -> None:
    held, plain = trust._SessionCommits(), {}
    commit = introduction(USER, A)
    others = [introduction(USER, A, commit_id=f"other-{number}") for number in range(2)]
    for number in range(5000):
        for one in (commit, *others)[: 1 + number % 3]:
            held.add_commit(f"session-{number}", one)
            plain.setdefault(f"session-{number}", []).append(one)
    most = sys.getsizeof(held._commits)
    for number in range(4990):
        left = plain[f"session-{number}"][1:] if number > 4980 else []
        held.replace_commits(f"session-{number}", left)
        plain[f"session-{number}"] = left
    for session_id, commits in plain.items():
        assert held.get_commits(session_id) == tuple(commits)
        assert (session_id in held) == bool(commits)
    assert list(held) == [session_id for session_id, commits in plain.items() if commits]
    assert sys.getsizeof(held._commits) < most / 3
