"""The trust pool against a model that recomputes everything from the whole history, in any order of events."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from goatherd.errors import VerificationError
from goatherd.identity.session import OwnedSession

from .goats import RevokedSession, TrustedRoots, introduction, owned, pool_of, root, verify_pending

ROOTS = [root(f"r{number}") for number in range(4)]
USERS = [owned(f"u{number}") for number in range(3)]
EVERYBODY = ROOTS + USERS
BY_ID = {each.id: each for each in EVERYBODY}
GENUINE = {(who.id, by.id): introduction(who, by) for who in EVERYBODY for by in EVERYBODY}
FORGED = {(who.id, by.id): introduction(who, USERS[0], claimed=by.id) for who in EVERYBODY for by in ROOTS}

anybody, roots = st.sampled_from(EVERYBODY), st.sampled_from(ROOTS)


class Trust(RuleBasedStateMachine):
    """State machine: the invariants of the trust pool after any order of introductions, swaps and revocations.

    The model knows only the document and which introductions are in the log: `held`. A pool that saw every event
    trusts no more than one that is started afresh with the same log and document, and no less than what follows from
    untainted document roots.
    """

    @initialize()
    def start(self) -> None:
        self.document = {"r0"}
        self.former = {"r0"}
        self.counted: set[str] = set()
        self.current = "r0"
        self.revoked: set[str] = set()
        self.held: list[tuple[str, str]] = []
        self.pool = pool_of(BY_ID["r0"], BY_ID["r0"])

    @rule(who=anybody, by=anybody)
    def introduce(self, who: OwnedSession, by: OwnedSession) -> None:
        before = set(self.pool.root_ids)
        took = self.pool.add_session_commit(GENUINE[who.id, by.id])
        assert took == (by.id in before)
        if took:
            self.held.append((who.id, by.id))

    @rule(who=anybody, by=roots)
    def push_a_forgery(self, who: OwnedSession, by: OwnedSession) -> None:
        before = self.pool.root_ids
        assert not self.pool.add_session_commit(FORGED[who.id, by.id])
        assert self.pool.root_ids == before

    @rule(who=anybody, by=roots)
    def find_in_the_log(self, who: OwnedSession, by: OwnedSession) -> None:
        self.pool.offer_session_commits([FORGED[who.id, by.id], GENUINE[who.id, by.id]])
        self.held.append((who.id, by.id))

    @rule(who=anybody)
    def need(self, who: OwnedSession) -> None:
        with suppress(VerificationError):
            assert self.pool.get_session(who.id).public_key == who.session.public_key

    @rule(limit=st.integers(1, 3))
    def work_in_the_background(self, limit: int) -> None:
        verify_pending(self.pool, limit)

    @rule(current=roots, others=st.sets(roots.map(lambda each: each.id)), revoked=st.sets(roots.map(lambda r: r.id)))
    def swap(self, current: OwnedSession, others: set[str], revoked: set[str]) -> None:
        self.current, self.revoked = current.id, revoked - {current.id}
        self.document = others | {current.id}
        self.former |= self.document
        sessions = tuple(BY_ID[id_].session for id_ in sorted(self.document))
        self.pool.adopt_document(
            TrustedRoots(current, sessions, tuple(RevokedSession(id_) for id_ in sorted(self.revoked)))
        )

    # --- the model ---

    def least(self) -> set[str]:
        """Return the roots that must be trusted: the document's, and those that they introduced, none revoked."""
        trusted = self.document - self.revoked
        while True:
            more = {who for who, by in self.held if by in trusted and who.startswith("r")} - self.revoked - trusted
            if not more:
                return trusted
            trusted |= more

    def most(self) -> set[str]:
        """Return the roots that may be trusted: as `least`, but roots of former documents count too."""
        trusted = self.former - self.revoked
        while True:
            more = {who for who, by in self.held if by in trusted and who.startswith("r")} - self.revoked - trusted
            if not more:
                return trusted
            trusted |= more

    @invariant()
    def no_root_too_many_and_none_too_few(self) -> None:
        roots_now = set(self.pool.root_ids)
        self.counted |= self.most()
        assert self.least() <= roots_now <= self.most()
        assert not roots_now & self.revoked
        assert set(self.pool.document_root_ids) == self.document - self.revoked

    @invariant()
    def a_user_is_known_exactly_if_a_root_vouched(self) -> None:
        for user in USERS:
            vouchers = {by for who, by in self.held if who == user.id}
            try:
                self.pool.get_session(user.id)
            except VerificationError:
                assert not vouchers & self.least()
            else:
                # A revoked root's users stay signed in; the root was a document's, or was learnt and counted.
                assert vouchers & (self.most() | ((self.former | self.counted) & self.revoked))

    @invariant()
    def a_pool_that_lived_through_it_trusts_no_less_than_a_fresh_one(self) -> None:
        fresh = pool_of(
            BY_ID[self.current], *[BY_ID[id_] for id_ in sorted(self.document)], revoked=sorted(self.revoked)
        )
        fresh.offer_session_commits([GENUINE[pair] for pair in self.held])
        assert set(fresh.root_ids) <= set(self.pool.root_ids)


Trust.TestCase.settings = settings(
    max_examples=40, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
)
TestTrust = Trust.TestCase
TestTrust.pytestmark = [pytest.mark.slow]
