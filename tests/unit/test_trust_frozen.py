"""What counts of a revoked root: the commits that servers hold and the cluster's list names, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest

from goatherd.errors import DecodeError, InvalidSignatureError, RevokedSessionError, UnknownSignerError
from goatherd.identity.revocations import FrozenList, commit_digest
from goatherd.trust import TrustPool
from goatherd.wire.commit import Commit

from .goats import DAY, NOW, Node, commit_by, introduction, owned, pool_of, root

A, B, X = root("root-a"), root("root-b"), root("root-x")
USER = owned("user-1", "u1")


def frozen(*commits: Commit) -> FrozenList:
    digests = [commit_digest(commit) for commit in commits]
    return FrozenList(frozenset(digest for digest in digests if digest is not None))


def pool_after(*commits: Commit) -> TrustPool:
    """Return a pool that knows that A is revoked, and that the cluster holds these commits of A."""
    pool = pool_of(B, A, B, revoked=["root-a"])
    pool.set_frozen_commits({"root-a": frozen(*commits)})
    return pool


def test_a_commit_of_a_revoked_root_is_taken_in_if_it_is_in_the_list() -> None:
    held = commit_by(A, "k", {"t": "x"})
    pool = pool_after(held)
    pool.verify_commit(held)
    assert pool.get_author(held) == A.session


def test_a_back_dated_commit_of_a_revoked_root_is_refused() -> None:
    pool = pool_after(commit_by(A, "k", {"t": "x"}))
    for late in (commit_by(A, "k", {"t": "y"}, ts=NOW - 20 * DAY), commit_by(A, "k", {"t": "x"})):
        with pytest.raises(RevokedSessionError):
            pool.verify_commit(late)
        with pytest.raises(RevokedSessionError):
            pool.get_author(late)


def test_another_commit_under_the_id_of_one_in_the_list_is_refused() -> None:
    held = commit_by(A, "k", {"t": "x"})
    with pytest.raises(RevokedSessionError):
        pool_after(held).verify_commit(commit_by(A, "k", {"t": "evil"}, commit_id=held.id))


def test_being_in_the_list_does_not_stand_for_a_signature() -> None:
    held = commit_by(A, "k", {"t": "x"})
    forged = replace(commit_by(B, "k", {"t": "x"}, commit_id=held.id, claimed=A.id), signature=held.signature)
    pool_after(held).verify_commit(forged)  # the very same text, so the very same commit
    unsigned = replace(held, signature=commit_by(A, "k", {"t": "z"}).signature)
    with pytest.raises(InvalidSignatureError):
        pool_after(held).verify_commit(unsigned)


def test_without_a_list_nothing_of_a_revoked_root_is_taken_in() -> None:
    pool = pool_of(B, A, B, revoked=["root-a"])
    with pytest.raises(RevokedSessionError):
        pool.verify_commit(commit_by(A, "k", {"t": "x"}))


def test_a_list_counts_for_the_revoked_root_that_it_is_of_only() -> None:
    held = commit_by(A, "k", {"t": "x"})
    pool = pool_of(B, A, B, X, revoked=["root-a", "root-x"])
    pool.set_frozen_commits({"root-x": frozen(held)})
    with pytest.raises(RevokedSessionError):
        pool.verify_commit(held)


def test_the_oldest_commits_that_are_held_still_verify() -> None:
    held = commit_by(A, "k", {"t": "x"}, ts=NOW - 20 * DAY)
    pool = pool_of(A, A)
    pool.replace_roots(current=B, roots=[A.session, B.session], revoked=["root-a"])
    assert pool.verify_commits([held], held=True) == [None]
    (verdict,) = pool.verify_commits([held])
    assert isinstance(verdict, RevokedSessionError)


def test_a_user_session_in_the_list_is_learnt_and_a_root_is_not() -> None:
    user, rogue = introduction(USER, A), introduction(X, A)
    node = Node(B, A, B)
    node.pool.replace_roots(current=B, roots=[A.session, B.session], revoked=["root-a"])
    node.pool.set_frozen_commits({"root-a": frozen(user, rogue)})
    node.sync(B, "/sys/sessions", [user, rogue])
    assert node.stored("/sys/sessions") == {user.id, rogue.id}
    assert node.pool.get_session(USER.id) == USER.session
    with pytest.raises(UnknownSignerError):
        node.pool.get_session(X.id)


def test_sessions_that_a_revoked_root_introduces_now_are_refused() -> None:
    node = Node(B, A, B)
    node.pool.replace_roots(current=B, roots=[A.session, B.session], revoked=["root-a"])
    node.sync(B, "/sys/sessions", [introduction(USER, A, ts=NOW - 20 * DAY)])
    assert node.stored("/sys/sessions") == set()
    with pytest.raises(UnknownSignerError):
        node.pool.get_session(USER.id)


def test_a_restarted_node_knows_what_it_held_by_its_log_alone() -> None:
    before = Node(A, A)
    note, user = commit_by(A, "k", {"t": "x"}), introduction(USER, A)
    before.sync(A, "/sys/sessions", [user])
    before.sync(A, "/data/test", [note])
    logs = {path: log.read_records() for path, log in before.logs.items()}
    after = Node(B, A, B, logs=logs, load=False)
    after.pool.replace_roots(current=B, roots=[A.session, B.session], revoked=["root-a"])
    after.engine.load_sessions()
    assert after.stored() == {note.id}
    assert after.pool.get_session(USER.id) == USER.session
    late = commit_by(A, "k", {"t": "late"}, ts=NOW - DAY)
    after.sync(B, "/data/test", [note, late])
    assert after.stored() == {note.id}


def test_once_it_is_settled_a_revoked_root_vouches_for_no_session_any_more_at_once_and_after_a_restart() -> None:
    mole = owned("mole")
    log = [introduction(USER, A), introduction(mole, A), introduction(USER, B)]
    live = pool_of(A, A)
    for commit in log[:2]:
        assert live.add_session_commit(commit)
    live.replace_roots(current=B, roots=[A.session, B.session], revoked=["root-a"])
    assert live.add_session_commit(log[2])
    assert live.get_session(mole.id) == mole.session, "until it is settled"
    restarted = pool_of(B, A, B, revoked=["root-a"])
    restarted.offer_session_commits(log)
    for pool in (live, restarted):
        pool.set_frozen_commits({"root-a": frozen(*log[:2])}, ["root-a"])
        assert pool.get_session(USER.id) == USER.session
        with pytest.raises(UnknownSignerError):
            pool.get_session(mole.id)


@pytest.mark.parametrize("raw", [b"x", b"b" * 32 + b"a" * 32, b"a" * 64], ids=["short", "unsorted", "twice"])
def test_a_malformed_list_is_refused(raw: bytes) -> None:
    with pytest.raises(DecodeError):
        FrozenList.from_bytes(raw)


def test_a_list_reads_back_and_its_digest_covers_all_of_it() -> None:
    one, two = frozen(commit_by(A, "k", {"t": "1"})), frozen(commit_by(A, "k", {"t": "2"}))
    both = FrozenList.union([one, two, one])
    assert FrozenList.from_bytes(both.to_bytes()) == both
    assert len(both) == 2
    assert len({one.digest, two.digest, both.digest, FrozenList(frozenset()).digest}) == 4
