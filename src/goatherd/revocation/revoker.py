"""Revoke a stolen root: replace it, freeze the list of its commits, and reissue the sessions that it had introduced.

Unlike a rotation, a revocation waits for no server, and it continues without a region whose store lags for longer than
its timeout. Every step can be repeated.

The order, and why:

1. *Introduce* the successor to every server, by a commit that the stolen root signs. Clients and unmodified servers
   cannot learn of the successor in another way. The thief can sign such a commit anyway, so this adds no risk.
2. *Revoke*: write the identity with the successor and the revocation. From now on servers reject the stolen root.
3. *Freeze*: each server that rejects the root reports which of the root's commits it holds. The list contains the
   commits that at least two servers hold; once its digest is in the identity, it is final. A commit that only one
   server holds may have been signed after the theft, so it is included only if the operator trusts that server, or if
   it introduces a root that the identity lists. A short wait before step 2 lets commits reach a second server. Until
   every listed server has reported, the list is not final, and each server accepts the root's commits that it holds.
4. *Reissue*: the successor introduces every user session that the root had introduced. From then on the root's
   signature introduces no session (*settled*).
5. *Destroy* the stored versions that hold the root's private key, if the caller asks for it.

Another run resumes from the state of the identity and of the servers. `goatherd.rotation.identity_writer` reads and
writes the identity.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from goatherd.clock import Clock, SystemClock
from goatherd.cluster.observer import call_each
from goatherd.errors import (
    ConfigurationError,
    ConflictError,
    IllegalStepError,
    NodeError,
    NodeRefusedError,
    ProviderError,
    RotationError,
    SignerError,
)
from goatherd.identity import transitions
from goatherd.identity.anchor import AnchorWord
from goatherd.identity.document import IdentityDocument
from goatherd.identity.revocations import MAX_SHOWN, FrozenList, Revocation, merge_frozen_lists
from goatherd.identity.root_signatures import Endorsement
from goatherd.identity.session import ROOT_OWNER, OwnedSession, Session
from goatherd.identity.succession import verify_successor
from goatherd.identity.transitions import revocations_to_sign
from goatherd.ids import new_id
from goatherd.key_inventory import (
    Holding,
    ReadVersions,
    find_former_root,
    find_holdings,
    is_gone_when_destroyed,
    read_private_root,
)
from goatherd.providers.base import SecretProvider
from goatherd.remote_keys import RootSigners, call_signing, sign_aside
from goatherd.revocation.introduced_sessions import IntroducedSessions
from goatherd.revocation.reissue_sessions import SessionNode, SessionReissuer
from goatherd.revocation.report import NodeOutcome, RevocationReport, count_claims
from goatherd.rotation.anchor_keys import AnchorKeys, SignerOpener, open_anchor_signer
from goatherd.rotation.attempts import Attempts
from goatherd.rotation.cross_signing import (
    introduction_ids,
    is_introduced_by_anchor,
    make_earlier_introduction,
    make_session_commit,
)
from goatherd.rotation.events import (
    ConflictMet,
    Decided,
    Event,
    NodeNotified,
    RevocationStep,
    RevocationStepped,
    StoreTroubled,
)
from goatherd.rotation.identity_writer import IdentityWriter
from goatherd.rotation.machine import Kept, Policy, Wait
from goatherd.rotation.obstacles import check_own_clock
from goatherd.rotation.policy import check_lifetime
from goatherd.rotation.polling import Polling
from goatherd.stores import FollowerView, ReplicatedStore
from goatherd.wire.paths import DEFAULT_ORG, SESSIONS_PATH

if TYPE_CHECKING:
    from goatherd.cluster.server_answers import HeldCommit, ServerIdentity

R = TypeVar("R")

NEW: Final = "new"
NEXT: Final = "next"


class RevocableNode(SessionNode, Protocol):
    """The interface of a server for a revocation, which `goatherd.cluster.client.NodeClient` implements."""

    async def held(
        self, session_id: str, signer: OwnedSession, now_ms: int | None = None, *, early: bool = False
    ) -> bytes: ...

    async def describe_held(
        self, session_id: str, digests: Sequence[str], signer: OwnedSession, now_ms: int | None = None
    ) -> list[HeldCommit]: ...

    async def keep_frozen(self, body: bytes, signer: OwnedSession, now_ms: int | None = None) -> None: ...

    async def frozen(self, digest: str) -> bytes | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Decision:
    """Which root signs after a revocation, and what the anchor has signed for that.

    Attributes:
        document: The identity document on which it was decided.
        session_id: Id of the root to revoke.
        new_root: The root that becomes the current root; None if the current root stays.
        word: The anchor's signatures; None if the identity has no anchor.
        at: The time of the revocation that the anchor has signed, in milliseconds since 1970.
    """

    document: IdentityDocument
    session_id: str
    new_root: OwnedSession | None
    word: AnchorWord | None
    at: int

    def holds_for(self, document: IdentityDocument) -> bool:
        """Return whether the decision would be the same on `document`, which another process may have changed."""
        return self._list_facts(document) == self._list_facts(self.document)

    def _list_facts(self, document: IdentityDocument) -> tuple[object, ...]:
        to_sign = revocations_to_sign(document, self.session_id, self.new_root)
        return document.current.id, document.anchor, to_sign


class Revoker:
    """Revokes a root of one organization. One run at a time.

    Args:
        provider: The store.
        secret_id: Name of the secret that holds the identity, with the organization in place of ``{org}``.
        nodes: Every server that holds this identity.
        org: The organization id, which is part of every signed commit.
        policy: Timeouts (`adoption`: until every server has adopted the revocation; `flow_patience`: until commits have
            reached a second server), and the lifetime of the successor (`lifetime`).
        distrust: URLs of servers whose lists of commits and reports on the store's history are ignored. The revocation
            does not wait for them.
        trust_alone: URLs of servers whose lists are accepted although no other server confirms them.
        clock: Returns the time, and sleeps; None for the system clock.
        on_event: Called with each event as it happens; must not block and must not raise.
        open_signer: Opens the signer of the identity's anchor by its URI.
        signers: The signers that this machine may call; None for none.
    """

    def __init__(
        self,
        provider: SecretProvider,
        secret_id: str,
        nodes: Sequence[RevocableNode],
        *,
        org: str = DEFAULT_ORG,
        policy: Policy | None = None,
        distrust: Collection[str] = (),
        trust_alone: Collection[str] = (),
        clock: Clock | None = None,
        on_event: Callable[[Event], None] | None = None,
        open_signer: SignerOpener = open_anchor_signer,
        signers: RootSigners | None = None,
    ) -> None:
        self.policy = policy or Policy()
        self._provider = provider
        self._secret_id = secret_id
        self._nodes = {node.base_url: node for node in nodes}
        self._distrust, self._trust_alone = frozenset(distrust), frozenset(trust_alone)
        self._org = org
        self._clock: Clock = clock or SystemClock()
        self._on_event = on_event
        self._report = RevocationReport(revoked_id="")
        self._outcomes: dict[str, NodeOutcome] = {}
        self._stolen: OwnedSession | None = None
        self._signers = signers or RootSigners()
        self._anchor_keys = AnchorKeys(org, open_signer, self._signers)
        self._has_waited = False
        self._instances: dict[str, str] = {}
        self._identity = IdentityWriter(
            provider,
            secret_id,
            policy=replace(self.policy, distrust=self.policy.distrust | self._distrust),
            clock=self._clock,
            ask=self._read_identities,
            on_event=self._emit_event,
            signers=self._signers,
        )
        self._store = self._identity.store
        self._read_versions = ReadVersions()

    # --- what an operator asks for ----------------------------------------------------------------------------------

    async def plan(self, session_id: str, *, successor: str = NEW, leave_out: Collection[str] = ()) -> RevocationReport:
        """Return the report that a revocation would give, without writing or pushing anything.

        Raises:
            ConfigurationError: A session cannot be left out.
            IllegalStepError: There is no such root, or no such successor.
            StoreWentBackError: As `revoke`.
            UnsignedIdentityError: The identity, which has an anchor, was changed since a root signed it.
            ProviderError, IdentityError: The store does not answer, or does not hold an identity.
        """
        self._begin_run(session_id)
        first, _ = await self._identity.read()
        document = await self._identity.check_history(first, is_voted=True)
        self._copy_state(document, session_id)
        document = await self._restore_pruned_root(document, session_id)
        if session_id not in document.revoked_ids:
            new_root, _ = await self._choose_successor(document, session_id, successor)
            self._report.current_id = document.current.id if new_root is None else new_root.id
            self._report.anchor_problem = await self._find_anchor_problem(document)
        await self._observe_nodes(document)
        self._report.is_expired = document.current.session.is_expired(self._clock.now_ms())
        # Servers reject the questions of an expired root. The revocation itself asks with the next root.
        if not self._report.is_expired:
            await self._run_timed("freeze", self._preview_claims(document, session_id))
            found, _ = await self._run_timed(
                "survey", self._make_reissuer(document).collect_sessions(document, session_id, leave_out=leave_out)
            )
            if self._outcomes and all(one.problem is None for one in self._outcomes.values()):
                self._check_left_out(document, found)
        await self._look_for_keys(document, session_id)
        return self._end_run()

    async def revoke(
        self,
        session_id: str,
        *,
        reason: str,
        successor: str = NEW,
        leave_out: Collection[str] = (),
        reopen: bool = False,
        destroy: bool = False,
    ) -> RevocationReport:
        """Revoke a root, or resume where an earlier run has stopped.

        Args:
            session_id: Id of the root to revoke.
            reason: The reason, recorded in the identity.
            successor: The root that signs from now on, if the revoked one is the current root: `NEW`, `NEXT` (the next
                root of the rotation in progress), or the id of a previous root whose private key the store still holds.
            leave_out: Sessions not to be reissued: once the revocation is settled, no server accepts them. The root
                must have introduced them, and no earlier run may have reissued them.
            reopen: Rebuild the list of frozen commits, including servers that were unreachable when it was closed.
            destroy: Destroy the stored versions that hold the root's private key, at once.

        Raises:
            ConfigurationError: A session cannot be left out. The root is revoked; no session was reissued by this run.
            IllegalStepError: There is no such root, or no such successor.
            WrongClockError: This machine's clock differs from the store's, or from those of most servers.
            StoreWentBackError: A server has used a later identity than the store holds, or a different one: a backup
                was restored. Nothing was written. Servers in `distrust` do not count.
            ProviderError: The store failed. Run the revocation again.
            GenerationError: The store shows an older identity than it has shown before.
            StuckError: The store has refused the same change twice, although nothing had changed in the store.
            RotationError: A server did not store the commits that were pushed to it.
            LifetimeError: The lifetime of the new root would be too short.
            SuccessionError: Servers would reject the identity with the revocation. Nothing was written.
        """
        if successor == NEW:
            check_lifetime(self.policy)
        self._begin_run(session_id)
        # If the store does not answer at all, nothing has begun, and the operator gets the error at once.
        first, _ = await self._identity.read()
        provider = self._provider
        lagging = provider.leaving_behind(self._note_left) if isinstance(provider, ReplicatedStore) else nullcontext()
        with self._store.repeating(), lagging:
            await self._identity.check_history(first, is_voted=True)
            async with self._anchor_keys:
                return await self._run_steps(
                    session_id, reason, successor, leave_out=leave_out, reopen=reopen, destroy=destroy
                )

    async def _run_steps(
        self,
        session_id: str,
        reason: str,
        successor: str,
        *,
        leave_out: Collection[str],
        reopen: bool,
        destroy: bool,
    ) -> RevocationReport:
        document = await self._run_timed("revoke", self._write_revocation(session_id, reason, successor))
        await self._run_timed("adoption", self._wait_for_adoption(document))
        if self._has_only_unmodified():
            await self._run_timed(
                "introduce again", self._reissued_at_unmodified(document, session_id, leave_out, reopen=reopen)
            )
            return await self._finish_revocation(document, session_id, destroy=destroy)
        document, frozen = await self._run_timed("freeze", self._close_if_complete(document, session_id, reopen=reopen))
        reissuer = self._make_reissuer(document)
        found, known = await self._run_timed(
            "survey", reissuer.collect_sessions(document, session_id, frozen=frozen, leave_out=leave_out)
        )
        if frozen is not None:
            self._check_left_out(document, found)
            entry = _find_entry(document, session_id)
            await self._run_timed("introduce again", reissuer.introduce_again(document, entry, found, known))
            await self._run_timed("introduce roots", self._introduce_roots(document))
            document = await self._settle_if_complete(document, session_id)
        return await self._finish_revocation(document, session_id, destroy=destroy)

    async def _finish_revocation(
        self, document: IdentityDocument, session_id: str, *, destroy: bool
    ) -> RevocationReport:
        if destroy:
            document = await self._run_timed("destroy", self._destroy_keys(session_id))
        self._copy_state(document, session_id)
        await self._look_for_keys(document, session_id)
        return self._end_run()

    # --- 1 and 2: the identity --------------------------------------------------------------------------------------

    async def _write_revocation(self, session_id: str, reason: str, successor: str) -> IdentityDocument:
        decision: _Decision | None = None

        async def change(stored: IdentityDocument) -> IdentityDocument | None:
            nonlocal decision
            if session_id in stored.revoked_ids:
                return None
            document = await self._restore_pruned_root(stored, session_id)
            if decision is None or not decision.holds_for(document):
                decision = await self._decide_successor(document, session_id, successor)
            if not self._has_waited:
                self._has_waited = True
                await self._run_timed("spread", self._wait_until_spread(document, session_id))
                # The wait may have been long, so read again: the store may have been restored from a backup meanwhile.
                await self._identity.read_latest()
            new_root, word = decision.new_root, decision.word
            revoke = partial(
                transitions.revoke_root,
                document,
                session_id,
                self._clock.now_ms() if word is None else decision.at,
                reason=reason,
                successor=new_root,
                proving=self._stolen if new_root is None else None,
                word=word,
            )
            changed = await sign_aside(revoke, new_root or document.current)
            # SECURITY: servers must accept this document, because a server that rejects it keeps trusting the stolen
            # root (tests/unit/rotation/test_anchor.py).
            verify_successor(changed, stored)
            return changed

        document, is_written = await self._change_identity("write the revocation", change)
        if is_written:
            self._emit_step(RevocationStep.REVOKED, document, session_id)
        # For notifications to servers that have missed the introduction of the successor.
        self._stolen = self._stolen or await self._stored_root(document, session_id)
        return document

    async def _decide_successor(self, document: IdentityDocument, session_id: str, successor: str) -> _Decision:
        """Choose the root that signs from now on, let the anchor sign for it, and introduce it to the servers."""
        new_root, self._stolen = await self._choose_successor(document, session_id, successor)
        self._check_clock()
        # The anchor signs before anything is pushed or written, so a signer that fails leaves no trace.
        at = self._clock.now_ms()
        word = await self._ask_anchor(document, session_id, new_root, at)
        if new_root is not None:
            await self._introduce_successor(document, new_root.session, word)
        return _Decision(document=document, session_id=session_id, new_root=new_root, word=word, at=at)

    async def _ask_anchor(
        self, document: IdentityDocument, session_id: str, new_root: OwnedSession | None, at: int
    ) -> AnchorWord | None:
        """Return the anchor's signatures for the revocation; None if the identity has no anchor."""
        if document.anchor is None or session_id == document.anchor:
            return None  # the change itself explains that an anchor cannot be revoked
        anchor = await self._anchor_keys.open_current(document)
        endorsements: list[Endorsement] = []
        if new_root is not None and document.find_root(new_root.id) is None:
            endorsements.append(await anchor.introduce(new_root.session, at))
        proofs = {
            one: await anchor.sign_revocation(one, at) for one in revocations_to_sign(document, session_id, new_root)
        }
        return AnchorWord(session=anchor.session, endorsements=tuple(endorsements), proofs=proofs)

    async def _find_anchor_problem(self, document: IdentityDocument) -> str | None:
        """Return why the anchor's signer, without which nothing can be revoked, does not sign; None if it does."""
        if document.anchor is None:
            return None
        await self._identity.signatures.check_document(document)
        async with self._anchor_keys as keys:
            try:
                await (await keys.open_current(document)).check_signing()
            except SignerError as error:
                return str(error)
        return None

    def _check_clock(self) -> None:
        """Check that this machine's clock is right, by the answers of the store and the servers so far."""
        now_ms = self._clock.now_ms()
        check_own_clock(
            self._provider.store_clock.ahead_ms(now_ms),
            {url: node.clock_ahead_ms(now_ms) for url, node in self._nodes.items()},
            self.policy.clock_tolerance,
        )

    async def _restore_pruned_root(self, document: IdentityDocument, session_id: str) -> IdentityDocument:
        """Add a root that the document no longer lists to the document again, so that it can be revoked.

        Such a root was pruned, or the store was restored from an older backup. With its public key in the document,
        servers can still verify its frozen commits; and servers that trust the root because of an introduction reject
        it because of the revocation. If no listed server has an introduction of it, an older version of the secret may
        list the root.
        """
        if document.find_root(session_id) is not None:
            return document
        found = await self._make_reissuer(document).find_pruned(document, session_id) or await find_former_root(
            self._store, self._secret_id, document, session_id, known=self._read_versions
        )
        if found is None:
            return document
        return replace(document, roots=(*document.roots, found), pruned=max(0, document.pruned - 1))

    async def _choose_successor(
        self, document: IdentityDocument, session_id: str, successor: str
    ) -> tuple[OwnedSession | None, OwnedSession | None]:
        """Return the root that signs from now on (None: no change), and the stolen root if its key is stored."""
        if document.find_root(session_id) is None:
            raise IllegalStepError(
                f"{session_id} is not a root of this identity", hint="`goatherd show` lists the roots."
            )
        if document.is_direct and session_id == document.current.id:
            raise IllegalStepError(
                f"the key of root {session_id} is in an HSM or a KMS (direct mode): only this root can name another",
                hint="`goatherd rotate --anchor URI --direct` or `goatherd rotate --remove-anchor` replaces it; then it"
                " can be revoked. If its key is lost: `goatherd rotate --drop-lost-anchor`.",
            )
        if session_id != document.current.id:
            return None, await self._stored_root(document, session_id)
        if successor == NEW:
            self.policy.check_new_root(has_anchor=document.anchor is not None)
            policy = self.policy.for_identity(has_anchor=document.anchor is not None)
            # In an emergency, unreachable servers are no obstacle; the others report what they run.
            check_lifetime(policy, unmodified=await self._find_unmodified())
            now_ms = self._clock.now_ms()
            fresh = OwnedSession.generate(
                session_id=new_id(), owner=ROOT_OWNER, now_ms=now_ms, lifetime=policy.lifetime
            )
            return fresh, document.current
        if successor == NEXT or (document.next is not None and document.next.id == successor):
            if document.next is None:
                raise IllegalStepError("there is no next root: no rotation in progress has prepared one")
            if document.next.is_remote:
                raise IllegalStepError(
                    "the next root has its key in an HSM or a KMS (direct mode), and the revocation ends the rotation"
                    " that would make it the current root",
                    hint="Revoke with a new root, which is the default, and rotate again afterwards.",
                )
            return document.next, document.current
        earlier = await self._stored_root(document, successor)
        if earlier is None:
            raise IllegalStepError(f"the store holds no private key of root {successor}")
        return earlier, document.current

    async def _read_reports(self) -> dict[str, ServerIdentity | None]:
        """Return the report of each server that answers, by URL; None for an unmodified server without an agent."""
        found: dict[str, ServerIdentity | None] = {}

        async def ask(node: RevocableNode) -> None:
            found[node.base_url] = await node.identity()

        await self._call_each(tuple(self._nodes), ask)
        return found

    async def _find_unmodified(self) -> tuple[str, ...]:
        reports = await self._read_reports()
        return tuple(url for url, one in reports.items() if one is None or one.agent is not None)

    async def _read_identities(self) -> dict[str, ServerIdentity]:
        return {url: one for url, one in (await self._read_reports()).items() if one is not None}

    async def _stored_root(self, document: IdentityDocument, session_id: str) -> OwnedSession | None:
        root = document.find_root(session_id)
        return await read_private_root(self._store, self._secret_id, document, root, known=self._read_versions)

    async def _introduce_successor(
        self, document: IdentityDocument, new_root: Session, word: AnchorWord | None
    ) -> None:
        stolen, now_ms = document.current, self._clock.now_ms()
        if document.find_root(new_root.id) is not None or stolen.session.is_expired(now_ms):
            return
        if word is not None:
            commits = [one.introduction(new_root).to_json() for one in word.endorsements]
        else:
            commits = [
                make_session_commit(new_root, signer=stolen, commit_id=commit_id, ts=now_ms, org=self._org)
                for commit_id in introduction_ids(new_root.id)
            ]

        async def introduce(node: RevocableNode) -> None:
            await node.push(SESSIONS_PATH, commits, stolen, now_ms)
            self._emit_step(RevocationStep.INTRODUCED, document, stolen.id, node=node.base_url, detail=new_root.id)

        await self._call_each(tuple(self._nodes), introduce)

    # --- 3: the freeze ----------------------------------------------------------------------------------------------

    async def _wait_for_adoption(self, document: IdentityDocument) -> None:
        """Notify the servers until each has adopted the revocation, or the timeout has passed."""
        polling, shown = Polling(self._clock, self.policy, self.policy.adoption), None
        while True:
            await self._observe_nodes(document)
            behind = [
                one.url
                for one in self._outcomes.values()
                if not (one.refuses or one.is_unmodified or one.is_distrusted)
            ]
            if not behind or polling.is_over:
                return
            if behind != shown:
                shown = behind
                self._emit_wait("rejects the revoked root", tuple(behind), polling.until_ms)
            await self._notify_servers(document, behind)
            await polling.pause()

    async def _observe_nodes(self, document: IdentityDocument) -> None:
        revoked = document.revoked_ids

        async def observe(node: RevocableNode) -> None:
            outcome = self._outcomes[node.base_url]
            answer = await node.identity()
            refuses = answer is not None and bool(revoked) and revoked <= set(answer.revoked or ())
            outcome.is_from_file = answer is not None and answer.is_from_file
            door = None if answer is None or answer.agent is None else answer.agent.door
            knows_revoked = answer is not None and revoked <= set(answer.revoked or ())
            outcome.has_door = door is not None and not door.is_exposed and knows_revoked
            if answer is not None and (answer.agent is not None or (answer.is_from_file and not refuses)):
                # Such a server counts as unmodified: an agent follows the revocation, but its server still trusts the
                # root, and so does a server with a settings.json, because GoatDB's format cannot revoke a root.
                answer = None
            outcome.problem = None
            outcome.is_unmodified = answer is None
            if answer is None:
                outcome.refuses = False
                return
            if answer.instance is not None:
                self._instances[node.base_url] = answer.instance
            outcome.refuses = refuses
            if not outcome.refuses and answer.refusal is not None:
                outcome.problem = f"rejects the identity: {answer.refusal}"

        await self._call_each(tuple(self._outcomes), observe)

    async def _close_if_complete(
        self, document: IdentityDocument, session_id: str, *, reopen: bool
    ) -> tuple[IdentityDocument, FrozenList | None]:
        """Close the revoked root's list of frozen commits if every server has reported; return document and list.

        Frozen commits stay valid, and a closed list is final. The list is None as long as a server has not reported.
        With `reopen`, a closed list is made again.
        """
        ours = [one for one in self._outcomes.values() if not one.is_unmodified]
        entry = _find_entry(document, session_id)
        is_to_close = entry.freeze is None or reopen
        lists = await self._read_lists(document, session_id, is_repeated=is_to_close)
        frozen = self._count_lists(lists)
        complete = bool(ours) and all(one.url in lists for one in ours if not one.is_distrusted)
        if entry.freeze is not None and not (reopen and complete):
            known = await self._compare_with_closed(document, entry.freeze.digest, lists, frozen)
            await self._describe_claims(document, session_id, lists, known)
            return document, known
        if not complete:
            return document, None
        if entry.freeze is not None:
            before = await self._find_list(entry.freeze.digest, frozen)
            if before is None and any(one.problem is not None for one in ours):
                raise _list_lost()  # a server that has failed may have it
            # If no server has the list any more, it is replaced by a list of the commits that they hold now.
            frozen = frozen if before is None else FrozenList.union([frozen, before])
        frozen = await self._add_introductions(document, session_id, lists, frozen)
        for url, found in lists.items():
            self._outcomes[url].in_flight = len(frozen.digests - found.digests)
        await self._describe_claims(document, session_id, lists, frozen)
        await self._give_list(document, frozen, lists)
        return await self._write_closed_list(session_id, frozen), frozen

    async def _wait_until_spread(self, document: IdentityDocument, session_id: str) -> None:
        """Wait until commits that only one server holds have reached another, before servers reject them.

        Servers that do not answer are not waited for, nor are commits that were signed after the first check: servers
        accept the stolen root meanwhile.
        """
        polling, first = Polling(self._clock, self.policy, self.policy.flow_patience), None
        while True:
            lists = await self._read_early_lists(document, session_id)
            left = self._find_left_out(lists, self._count_lists(lists))
            first = left if first is None else first & left
            if len(lists) < 2 or not first or polling.is_over:
                return
            await polling.pause()

    async def _preview_claims(self, document: IdentityDocument, session_id: str) -> None:
        """Record, for the report of a plan, which commits only one server would report to a revocation."""
        entry = next((one for one in document.revoked if one.id == session_id), None)
        if entry is None:
            await self._wait_until_spread(document, session_id)
        lists = await self._read_early_lists(document, session_id)
        frozen = self._count_lists(lists)
        if entry is None or entry.freeze is None:
            frozen = await self._add_introductions(document, session_id, lists, frozen)
        else:
            try:
                frozen = await self._read_closed_list(entry.freeze.digest, frozen)
            except RotationError:
                return  # the run itself reports the error
        await self._describe_claims(document, session_id, lists, frozen)

    async def _read_early_lists(self, document: IdentityDocument, session_id: str) -> dict[str, FrozenList]:
        lists: dict[str, FrozenList] = {}

        async def ask(node: RevocableNode) -> None:
            try:
                raw = await node.held(session_id, document.current, self._clock.now_ms(), early=True)
            except NodeRefusedError:
                return  # an unmodified server, or one that reports only after the revocation
            lists[node.base_url] = FrozenList.from_bytes(raw)

        await self._call_each([one.url for one in self._outcomes.values() if one.problem is None], ask)
        return lists

    async def _read_lists(
        self, document: IdentityDocument, session_id: str, *, is_repeated: bool
    ) -> dict[str, FrozenList]:
        """Read from each server the list of the revoked root's commits that it holds.

        With `is_repeated`, the lists are read again while they still change and a commit is on one list only.
        """
        lists: dict[str, FrozenList] = {}

        async def ask(node: RevocableNode) -> None:
            raw = await node.held(session_id, document.current, self._clock.now_ms())
            found = lists[node.base_url] = FrozenList.from_bytes(raw)
            self._outcomes[node.base_url].held = len(found)

        urls = [one.url for one in self._outcomes.values() if one.refuses and not one.is_unmodified]
        deadline = self._clock.monotonic() + self.policy.flow_patience.total_seconds()
        before: dict[str, FrozenList] | None = None
        while True:
            await self._call_each(urls, ask, is_long=True)
            is_alone = bool(self._find_left_out(lists, self._count_lists(lists)))
            if not (is_repeated and is_alone) or lists == before or self._clock.monotonic() >= deadline:
                break
            before, urls = dict(lists), list(lists)
            await self._clock.sleep(self.policy.poll_max)
        for url, found in lists.items():
            self._emit_step(RevocationStep.FROZEN, document, session_id, node=url, count=len(found))
        return lists

    def _count_lists(self, lists: Mapping[str, FrozenList]) -> FrozenList:
        return merge_frozen_lists(
            lists,
            listed=[one.url for one in self._outcomes.values() if not one.is_unmodified],
            distrusted=self._distrust,
            trusted_alone=self._trust_alone,
            instances=self._instances,
        )

    def _find_left_out(self, lists: Mapping[str, FrozenList], frozen: FrozenList) -> set[bytes]:
        trusted = FrozenList.union(one for url, one in lists.items() if url not in self._distrust)
        return set(trusted.digests - frozen.digests)

    async def _add_introductions(
        self, document: IdentityDocument, session_id: str, lists: Mapping[str, FrozenList], frozen: FrozenList
    ) -> FrozenList:
        """Add the root's introductions of roots that the identity trusts, even if only one server holds them.

        An earlier run may not have reached the other servers. Clients that know only the revoked root need them.
        """
        # SECURITY: an introduction adds nothing to a root that the identity lists, so it does not matter who signed it.
        # Its contents must be those of the listed root (tests/unit/revocation/test_claims_of_one_server.py).
        left = self._find_left_out(lists, frozen)
        if not left:
            return frozen
        introductions = await self._make_reissuer(document).find_introductions(document, session_id)
        return FrozenList(frozen.digests | (introductions & left))

    async def _describe_claims(
        self, document: IdentityDocument, session_id: str, lists: Mapping[str, FrozenList], frozen: FrozenList
    ) -> None:
        """Record the commits that only one server holds and that are not accepted; ask that server to describe them."""
        ours = [one for one in self._outcomes.values() if not one.is_unmodified and not one.is_distrusted]
        asked: dict[str, list[str]] = {}
        for url, found in lists.items():
            outcome = self._outcomes[url]
            outcome.is_sole = [one.url for one in ours] == [url]
            others = FrozenList.union(one for at, one in lists.items() if at != url and at not in self._distrust)
            left = found.digests - frozen.digests
            # A commit that other servers hold, too, is late for a closed list, but not a claim of one server alone.
            left = left if outcome.is_distrusted else left - others.digests
            outcome.alone = len(left)
            if url in self._trust_alone:
                outcome.counted_alone = len((found.digests & frozen.digests) - others.digests)
            if left:
                asked[url] = [digest.hex() for digest in sorted(left)[:MAX_SHOWN]]

        async def ask(node: RevocableNode) -> None:
            try:
                held = await node.describe_held(
                    session_id, asked[node.base_url], document.current, self._clock.now_ms()
                )
            except NodeError:
                return  # the claims are counted nevertheless
            self._outcomes[node.base_url].claims = count_claims(held)

        await self._call_each(list(asked), ask, is_long=True)

    async def _write_closed_list(self, session_id: str, union: FrozenList) -> IdentityDocument:
        async def change(document: IdentityDocument) -> IdentityDocument | None:
            now_ms, freeze = self._clock.now_ms(), _find_entry(document, session_id).freeze
            # A store may apply a write and report a conflict, so this may be our own.
            if freeze is not None and (freeze.commits, freeze.digest) == (len(union), union.digest):
                return None
            return await call_signing(
                transitions.record_frozen_commits,
                document,
                session_id,
                now_ms,
                commits=len(union),
                digest=union.digest,
            )

        changed, _ = await self._change_identity("write the closed list of commits", change)
        self._emit_step(RevocationStep.CLOSED, changed, session_id, count=len(union))
        return changed

    async def _compare_with_closed(
        self, document: IdentityDocument, digest: str, lists: Mapping[str, FrozenList], union: FrozenList
    ) -> FrozenList:
        """Count the commits that servers hold beyond a closed (final) list; send the list to servers that lack it."""
        known = await self._read_closed_list(digest, union)
        for url, found in lists.items():
            self._outcomes[url].late = len(found.digests - known.digests)
        await self._give_list(document, known, lists)
        return known

    async def _read_closed_list(self, digest: str, union: FrozenList) -> FrozenList:
        """Return the closed list of frozen commits that the identity names, from any server that has it.

        Raises:
            RotationError: No server has the list.
        """
        found = await self._find_list(digest, union)
        if found is None:
            raise _list_lost()
        return found

    async def _find_list(self, digest: str, union: FrozenList) -> FrozenList | None:
        if union.digest == digest:
            return union
        found: list[FrozenList] = []

        async def ask(node: RevocableNode) -> None:
            raw = await node.frozen(digest)
            if raw is not None and (one := FrozenList.from_bytes(raw)).digest == digest:
                found.append(one)

        await self._call_each([one.url for one in self._outcomes.values() if not one.is_unmodified], ask, is_long=True)
        return found[0] if found else None

    async def _give_list(self, document: IdentityDocument, frozen: FrozenList, urls: Iterable[str]) -> None:
        async def give(node: RevocableNode) -> None:
            if await node.frozen(frozen.digest) is None:
                await node.keep_frozen(frozen.to_bytes(), document.current, self._clock.now_ms())

        await self._call_each(tuple(urls), give, is_long=True)

    # --- 4: the sessions --------------------------------------------------------------------------------------------

    def _make_reissuer(self, document: IdentityDocument) -> SessionReissuer:
        revoked_id = self._report.revoked_id

        def pushed(url: str, count: int) -> None:
            self._emit_step(RevocationStep.INTRODUCED_AGAIN, document, revoked_id, node=url, count=count)

        return SessionReissuer(
            nodes=self._nodes,
            outcomes=self._outcomes,
            report=self._report,
            on_each=self._call_each,
            pushed=pushed,
            waits=partial(self._emit_wait, "stores the reissued sessions"),
            org=self._org,
            policy=self.policy,
            clock=self._clock,
        )

    async def _introduce_roots(self, document: IdentityDocument) -> None:
        """Let the current root introduce the other valid roots, since maybe only the revoked root had introduced them.

        New clients may learn of the current root only, because the other roots have expired; with these introductions
        they can verify what the other roots have signed.
        """
        without = {document.current.id, *document.revoked_ids}
        if document.next is not None:
            without.add(document.next.id)  # the rotation in progress introduces it
        good = [root.id for root in document.roots if root.id not in without]
        if document.anchor is not None:
            # Any other introduction would need another signature of the anchor, and servers hold one by it.
            good = [one for one in good if is_introduced_by_anchor(document, one)]
        commits = [await call_signing(make_earlier_introduction, document, one, org=self._org) for one in good]
        if not commits:
            return

        async def introduce(node: RevocableNode) -> None:
            await node.push(SESSIONS_PATH, commits, document.current, self._clock.now_ms())

        await self._call_each([one.url for one in self._outcomes.values() if one.problem is None], introduce)

    def _check_left_out(self, document: IdentityDocument, found: IntroducedSessions) -> None:
        """Check, before sessions are reissued, that each session that the operator wants to leave out can be."""
        if found.cannot_leave:
            raise ConfigurationError(
                f"--except has no effect on {', '.join(found.cannot_leave)}: root {self._report.revoked_id} has"
                " introduced no such session, or an earlier run has reissued it. This run has reissued no session",
                hint="Correct the id, or leave it out, and run the command again. What an earlier run has reissued is"
                f" trusted until root {document.current.id}, which has reissued it, is revoked with the same --except.",
            )

    def _has_only_unmodified(self) -> bool:
        return bool(self._outcomes) and all(one.is_unmodified for one in self._outcomes.values())

    async def _reissued_at_unmodified(
        self, document: IdentityDocument, session_id: str, leave_out: Collection[str], *, reopen: bool
    ) -> None:
        """Reissue the sessions if every listed server is unmodified, and retry while servers restart.

        There is no list of frozen commits, because unmodified servers neither keep it nor use it. A later run that
        lists a Goatherd server makes the list.
        """
        reissuer, entry = self._make_reissuer(document), _find_entry(document, session_id)
        polling = Polling(self._clock, self.policy, self.policy.adoption)
        while True:
            found, known = await reissuer.collect_sessions(document, session_id, leave_out=leave_out)
            if all(one.problem is None for one in self._outcomes.values()):
                self._check_left_out(document, found)
            reissued = tuple(one for one in found.sessions if one.commit_id in known)
            if reissued and not reopen and not self._report.pushed:
                # SECURITY: after the first run, unmodified servers still accept sessions that the stolen root
                # introduces. The new current root must not reissue those (tests/unit/revocation/test_revoker.py).
                self._report.late_sessions = tuple(one.session.id for one in found.sessions if one not in reissued)
                found = replace(found, sessions=reissued)
                self._report.sessions = len(reissued)
            # The problem of a server that fails is recorded, and the server is asked again below.
            with suppress(NodeError):
                await reissuer.introduce_again(document, entry, found, known, comes_back=False)
                await self._introduce_roots(document)
            done = all(one.problem is None and one.introduced == len(found.sessions) for one in self._outcomes.values())
            if done or polling.is_over:
                return
            await polling.pause()
            await self._observe_nodes(document)

    async def _settle_if_complete(self, document: IdentityDocument, session_id: str) -> IdentityDocument:
        ours = [one for one in self._outcomes.values() if not one.is_unmodified]
        entry = _find_entry(document, session_id)
        done = ours and all(
            one.is_distrusted or (one.problem is None and one.introduced == self._report.sessions) for one in ours
        )
        if entry.settled_at is not None or entry.freeze is None or not done:
            return document

        async def change(document: IdentityDocument) -> IdentityDocument | None:
            if _find_entry(document, session_id).settled_at is not None:
                return None
            now_ms = self._clock.now_ms()
            return await call_signing(transitions.record_reissued_sessions, document, session_id, now_ms)

        changed, _ = await self._change_identity("record the revocation as settled", change)
        self._emit_step(RevocationStep.SETTLED, changed, session_id, count=self._report.sessions)
        return changed

    # --- 5: the keys ------------------------------------------------------------------------------------------------

    async def _destroy_keys(self, session_id: str) -> IdentityDocument:
        document, version = await self._identity.read_latest()
        # Every check that can reject the later record runs now, because a destroyed key cannot be recovered.
        await self._identity.signatures.check_document(document)
        if session_id not in document.retired_ids:
            await call_signing(transitions.record_retirement, document, session_id, self._clock.now_ms())
        report = self._report
        report.destroyed = report.given_up = ()
        attempts = Attempts(self._provider.guarantees, self.policy, self._clock)
        while await self._destroy_each(document, version.id, attempts):
            await self._clock.sleep(self.policy.poll_max)
        if report.given_up or session_id in document.retired_ids:
            return document
        # The keys in a version that could not be read are unknown.
        if any(session_id in one.private_ids or one.problem is not None for one in await self._find_holdings(document)):
            return document

        async def change(document: IdentityDocument) -> IdentityDocument | None:
            if session_id in document.retired_ids:
                return None
            return await call_signing(transitions.record_retirement, document, session_id, self._clock.now_ms())

        changed, _ = await self._change_identity(f"record root {session_id} as retired", change)
        return changed

    async def _destroy_each(self, document: IdentityDocument, current: str, attempts: Attempts) -> bool:
        """Destroy the stored versions that hold or may hold a revoked root's key, except those with foreign labels.

        A foreign label is one that Goatherd did not set.

        Returns:
            Whether a version could not be destroyed yet, so that the store must be checked again.

        Raises:
            StuckError: The store refuses to destroy a version although no label or lock protects it.
        """
        report, kept, is_over = self._report, [], True
        for holding in await self._find_holdings(document):
            at = holding.version.id
            may_hold_it = holding.private_ids & document.revoked_ids or holding.is_unknown_leftover
            if not may_hold_it or at in (current, *report.given_up, *report.destroyed):
                continue
            if holding.foreign_labels:
                kept.append(Kept(version=at, labels=holding.foreign_labels))
                continue
            evidence = (at, holding.version.labels)
            if not attempts.may_try(evidence, f"destroy version {at}"):
                is_over = False
                continue
            self._read_versions.forget(at)
            try:
                await self._store.destroy(self._secret_id, at)
            except ConflictError as conflict:
                # A label was just added, or one of Goatherd's own labels still points at it.
                attempts.count_attempt(evidence, conflict)
                self._emit_event(ConflictMet())
                is_over = False
                continue
            attempts.count_attempt(evidence)
            if not is_gone_when_destroyed(self._provider, at):
                report.given_up = (*report.given_up, at)
                continue
            report.destroyed = (*report.destroyed, at)
            self._emit_step(RevocationStep.DESTROYED, document, self._report.revoked_id, detail=at)
        report.kept = tuple(kept)
        return not is_over

    async def _find_holdings(self, document: IdentityDocument) -> Sequence[Holding]:
        return await find_holdings(self._store, self._secret_id, document, known=self._read_versions)

    async def _look_for_keys(self, document: IdentityDocument, session_id: str) -> None:
        report = self._report
        others: dict[str, None] = {}
        left, unknown = [], []
        for holding in await self._find_holdings(document):
            if holding.version.id in report.given_up:
                continue
            if session_id in holding.private_ids:
                left.append(str(holding.version.id))
            if holding.is_unknown_leftover:
                unknown.append(str(holding.version.id))
            others.update(dict.fromkeys(sorted(holding.private_ids - {session_id, report.current_id})))
        report.keys_left, report.unknown_left = tuple(left), tuple(unknown)
        report.also_stored = tuple(one for one in others if one not in document.revoked_ids)

    # --- the store and the nodes ------------------------------------------------------------------------------------

    def _note_left(self, view: FollowerView) -> None:
        self._report.lagging_regions = (*self._report.lagging_regions, view.region)
        self._emit_event(StoreTroubled(error=f"the revocation continues without region {view.region}: {view.problem}"))

    async def _change_identity(
        self, name: str, change: Callable[[IdentityDocument], Awaitable[IdentityDocument | None]]
    ) -> tuple[IdentityDocument, bool]:
        """Change the stored identity, notify the servers, and move label ``stable``: a revocation is not rolled back.

        Args:
            name, change: As for `goatherd.rotation.identity_writer.IdentityWriter.change`.

        Returns:
            The document as it is stored, and whether this call has written it.
        """
        document, version, is_ours = await self._identity.change(name, lambda stored, _: change(stored))
        if is_ours:
            self._copy_state(document, self._report.revoked_id)
            await self._notify_servers(document, tuple(self._nodes))
        self._report.stable_problem = None
        try:
            await self._identity.move_stable(document, version)
        except ProviderError as error:
            # The revocation is in the store already. The next run moves the label, and so does the next rotation.
            self._report.stable_problem = str(error)
            self._emit_event(StoreTroubled(error=str(error)))
        return document, is_ours

    async def _notify_servers(self, document: IdentityDocument, urls: Sequence[str]) -> None:
        """Notify the servers. If a server does not know the successor yet, the stolen root signs the request."""

        async def notify(node: RevocableNode) -> None:
            now_ms = self._clock.now_ms()
            try:
                answer = await node.refresh(document.current, now_ms)
            except NodeRefusedError as error:
                if error.status != 403 or self._stolen is None:
                    raise
                answer = await node.refresh(self._stolen, now_ms)
            self._emit_event(NodeNotified(url=node.base_url, is_reached=answer is not None))

        await self._call_each(urls, notify)

    async def _call_each(
        self, urls: Collection[str], call: Callable[[RevocableNode], Awaitable[object]], *, is_long: bool = False
    ) -> None:
        """Call servers concurrently. A server that fails does not delay the others; its outcome records the reason.

        Args:
            urls: The servers.
            call: The call to make.
            is_long: Whether the call can take long, so that `Policy.node_timeout` does not apply; the client has its
                own timeout.
        """

        def record(url: str, problem: str) -> None:
            self._outcomes[url].problem = problem
            self._emit_event(NodeNotified(url=url, is_reached=False, problem=problem))

        self._report.node_calls += len(urls)
        timeout = None if is_long else self.policy.node_timeout
        await call_each([self._nodes[url] for url in urls], call, timeout=timeout, on_failure=record)

    # --- telling ----------------------------------------------------------------------------------------------------

    def _begin_run(self, session_id: str) -> None:
        self._report = RevocationReport(revoked_id=session_id)
        self._outcomes = {url: NodeOutcome(url=url, is_distrusted=url in self._distrust) for url in self._nodes}
        self._stolen, self._has_waited = None, False
        self._instances = {}
        self._identity.forget()
        self._store.calls, self._read_versions = 0, ReadVersions()
        if strangers := sorted((self._distrust | self._trust_alone) - self._nodes.keys()):
            raise ConfigurationError(
                f"--distrust and --trust-alone take listed servers only, not {', '.join(strangers)}",
                hint=f"Listed servers: {', '.join(self._nodes) or 'none'}.",
            )
        if both := sorted(self._distrust & self._trust_alone):
            raise ConfigurationError(
                f"--distrust and --trust-alone both name {', '.join(both)}; name a server with only one of them"
            )

    def _copy_state(self, document: IdentityDocument, session_id: str) -> None:
        report = self._report
        report.current_id, report.generation = document.current.id, document.generation
        entry = next((one for one in document.revoked if one.id == session_id), None)
        if entry is not None:
            report.has_proof = entry.proof is not None or document.anchor is not None
            report.settled = entry.settled_at is not None
            report.closed = entry.freeze is not None
            report.frozen = 0 if entry.freeze is None else entry.freeze.commits

    def _end_run(self) -> RevocationReport:
        self._report.nodes, self._report.store_calls = tuple(self._outcomes.values()), self._store.calls
        return self._report

    async def _run_timed(self, name: str, work: Awaitable[R]) -> R:
        began = self._clock.monotonic()
        done = await work
        self._report.seconds[name] = self._clock.monotonic() - began
        return done

    def _emit_step(self, step: RevocationStep, document: IdentityDocument, session_id: str, **more: Any) -> None:
        self._emit_event(
            RevocationStepped(
                step=step,
                revoked_id=session_id,
                current_id=document.current.id,
                at_ms=self._clock.now_ms(),
                generation=document.generation,
                **more,
            )
        )

    def _emit_wait(self, reason: str, urls: tuple[str, ...], until_ms: int) -> None:
        self._emit_event(Decided(action=Wait(nodes=urls, reason=reason, until_ms=until_ms)))

    def _emit_event(self, event: Event) -> None:
        if self._on_event is not None:
            self._on_event(event)


def _find_entry(document: IdentityDocument, session_id: str) -> Revocation:
    return next(one for one in document.revoked if one.id == session_id)


def _list_lost() -> RotationError:
    return RotationError(
        "no server has the list of frozen commits, and the commits that the servers hold now differ from it",
        hint="Run the command with --reopen: it makes a new list from the commits that the servers hold now.",
    )
