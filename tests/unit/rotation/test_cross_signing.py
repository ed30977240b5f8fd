"""The commits by which one root introduces another."""

from __future__ import annotations

import pytest

from goatherd.identity import transitions
from goatherd.identity.document import IdentityDocument, Phase
from goatherd.identity.session import OwnedSession
from goatherd.rotation.cross_signing import (
    COPIES,
    expected_cross_signature,
    expected_introductions,
    introduction_id,
    make_cross_signature,
    make_earlier_introduction,
    make_introduction,
    make_introductions,
)
from goatherd.trust import TrustPool
from goatherd.wire.commit import Commit

NOW = 1_790_000_000_000


def root(name: str) -> OwnedSession:
    return OwnedSession.generate(session_id=name, owner="root", now_ms=NOW)


@pytest.fixture(scope="module")
def published() -> IdentityDocument:
    prepared = transitions.prepare_rotation(
        transitions.create_document(root("root-a"), NOW),
        root("root-b"),
        now_ms=NOW + 1000,
        rotation_id="rotation-1",
        started_by="",
        stable_version="1",
    )
    return transitions.with_phase(prepared, transitions.Phase.PUBLISHED, NOW + 2000)


def test_a_process_that_resumes_a_rotation_makes_the_same_commits(published: IdentityDocument) -> None:
    activated = transitions.activate_rotation(published, NOW + 3000)
    assert make_introduction(published, org="acme") == make_introduction(published, org="acme")
    assert make_cross_signature(activated, org="acme") == make_cross_signature(activated, org="acme")
    later = transitions.with_phase(activated, Phase.VERIFIED, NOW + 9000)
    assert make_cross_signature(later, org="acme") == make_cross_signature(activated, org="acme")


def test_a_pool_that_knows_a_learns_b_and_one_that_knows_b_learns_a(published: IdentityDocument) -> None:
    activated = transitions.activate_rotation(published, NOW + 3000)
    a, b = published.current, activated.current
    for knows, raw, learns in (
        (a, make_introduction(published, org="acme"), b),
        (b, make_cross_signature(activated, org="acme"), a),
    ):
        pool = TrustPool(org="acme", current=root("client"), roots=[knows.session])
        assert pool.add_session_commit(Commit.from_json(raw, org="acme"))
        assert pool.get_root(learns.id).public_key == learns.session.public_key


def test_a_commit_of_another_organization_is_worth_nothing(published: IdentityDocument) -> None:
    pool = TrustPool(org="acme", current=root("client"), roots=[published.current.session])
    assert not pool.add_session_commit(Commit.from_json(make_introduction(published, org="other"), org="acme"))


def test_what_is_looked_for_is_what_is_made(published: IdentityDocument) -> None:
    activated = transitions.activate_rotation(published, NOW + 3000)
    made = ((expected_introductions(published)[-1], make_introduction(published, org="acme")),)
    made += ((expected_cross_signature(activated), make_cross_signature(activated, org="acme")),)
    for sought, commit in made:
        assert sought is not None
        assert sought.matches(commit, org="acme")
        assert not sought.matches(commit, org="other")
        for change in ({"k": "another"}, {"id": "another"}, {"sig": "nonsense"}, {"sig": None}, {"ts": 1}, {"c": {}}):
            assert not sought.matches({**commit, **change}, org="acme")
    steady = transitions.cancel_rotation(published, NOW + 4000, reason="")
    assert expected_introductions(steady) == ()
    assert expected_cross_signature(steady) is None


def test_no_introduction_of_a_root_has_a_parent_and_all_say_the_same(published: IdentityDocument) -> None:
    """A client that was offline looks at a commit only if it holds no child of it, and GoatDB merges leaves that
    differ."""
    first = transitions.finalize_rotation(
        transitions.with_phase(transitions.activate_rotation(published, NOW + 3000), Phase.VERIFIED, NOW), NOW + 5000
    )
    prepared = transitions.prepare_rotation(
        first, root("root-c"), now_ms=NOW + 6000, rotation_id="rotation-2", started_by="", stable_version="5"
    )
    second = transitions.activate_rotation(
        transitions.with_phase(prepared, transitions.Phase.PUBLISHED, NOW + 7000), NOW + 8000
    )
    steady = transitions.finalize_rotation(transitions.with_phase(second, Phase.VERIFIED, NOW + 8500), NOW + 9000)
    commits = [
        *make_introductions(published, org="acme")[0],
        make_cross_signature(second, org="acme"),
        make_earlier_introduction(steady, "root-b", org="acme"),
    ]
    assert {commit["k"] for commit in commits} == {"root-b"}
    assert len({commit["id"] for commit in commits}) == len(commits) == COPIES + 2
    assert not any("p" in commit for commit in commits)
    assert all(commit["c"] == commits[0]["c"] for commit in commits)
    assert commits[0]["id"] == introduction_id("root-b")


def test_the_introduction_is_repeated_by_the_same_root(published: IdentityDocument) -> None:
    (introductions,) = make_introductions(published, org="acme")
    assert len(introductions) == COPIES
    for raw in introductions[1:]:
        pool = TrustPool(org="acme", current=root("client"), roots=[published.current.session])
        assert pool.add_session_commit(Commit.from_json(raw, org="acme"))
    assert make_introductions(published, org="acme") == [introductions]
