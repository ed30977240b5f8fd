"""Replace an expired root, and wait until every server signs with the new one.

A rotation cannot replace an expired root, because servers reject the requests that the root signs. A revocation
(`goatherd.revocation.revoker`) is not needed: the root was not stolen, so its commits stay valid everywhere.

The steps, in order:

1. *Check.* Nothing is written if a server has seen a later identity, belongs to another identity, or has a clock that
   disagrees with this machine's: the root may only seem to have expired.
2. *Write* the identity in which a new root, the successor, is the current root. The expired root endorses it (if there
   is an anchor, the anchor does), so Goatherd servers and agents follow the successor at their next read of the store.
3. *Introduce* both roots to the servers, by commits in ``/sys/sessions``. The expired root introduces the successor, so
   that existing clients follow it. The successor introduces the expired root, so that new clients can verify what that
   root has signed. The successor signs the requests that push these commits, because no server accepts a request signed
   by the expired root. So a server gets the commits only after it has read the new identity.

If a run is interrupted, another run resumes from the state of the identity and of the servers. `identity_writer` reads
and writes the identity.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from goatherd.clock import Clock, SystemClock
from goatherd.cluster.node import Node, NodeSource
from goatherd.cluster.observer import Observer, Question
from goatherd.cluster.session_queries import ExpectedCommit
from goatherd.errors import IllegalStepError
from goatherd.identity import transitions
from goatherd.identity.anchor import AnchorWord
from goatherd.identity.document import IdentityDocument
from goatherd.identity.session import ROOT_OWNER, OwnedSession
from goatherd.ids import new_id
from goatherd.key_inventory import read_private_root
from goatherd.providers.base import SecretProvider
from goatherd.providers.values import SecretVersion
from goatherd.remote_keys import RootSigners
from goatherd.rotation.anchor_keys import (
    UNCHANGED,
    AnchorKeys,
    SignerOpener,
    collect_anchor_signatures,
    open_anchor_signer,
)
from goatherd.rotation.cross_signing import (
    expected_earlier_introduction,
    expected_late_introduction,
    make_earlier_introduction,
    make_late_introduction,
)
from goatherd.rotation.events import (
    Decided,
    Event,
    ExpiredRootReplaced,
    NodeNotified,
    NodesSeen,
)
from goatherd.rotation.identity_writer import IdentityWriter
from goatherd.rotation.machine import NodeView, Observation, Policy, Refuse, Wait, refusal_error
from goatherd.rotation.observation import make_store_view
from goatherd.rotation.obstacles import Obstacle, ObstacleKind, find_obstacles
from goatherd.rotation.policy import check_lifetime
from goatherd.rotation.polling import Polling
from goatherd.wire.paths import DEFAULT_ORG, SESSIONS_PATH

OBSTACLES: Final = frozenset(
    {
        ObstacleKind.CLOCK,
        ObstacleKind.OWN_CLOCK,
        ObstacleKind.FORKED,
        ObstacleKind.NODES_UNKNOWN,
        ObstacleKind.OTHER_IDENTITY,
        ObstacleKind.STORE_BEHIND,
    }
)
"""The obstacles to the replacement of an expired root. An unreachable server is none: it follows when it starts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplacementReport:
    """The state of the replacement of an expired root at the end of a run.

    Attributes:
        expired_id: The root that had expired.
        current_id: The root that has replaced it.
        generation: Generation of the identity.
        is_written: Whether this run has written the new identity; False if an earlier run had written it.
        can_introduce: Whether the current root can be introduced to existing clients: the store still holds the expired
            root's private key, or the identity has an anchor.
        nodes: The last observed state of each server. In it, "next root" means the new current root.
    """

    expired_id: str
    current_id: str
    generation: int
    is_written: bool
    can_introduce: bool
    nodes: tuple[NodeView, ...]

    def has_followed(self, node: NodeView) -> bool:
        """Return whether a server signs with the new root, and holds the introductions of the new and the expired root.

        The new root's introduction is not required if it could not be signed (`can_introduce`).
        """
        return node.signs_with == self.current_id and _is_introduced(node, can_introduce=self.can_introduce)

    @property
    def is_complete(self) -> bool:
        """Whether the replacement of the expired root is complete at every server."""
        return all(self.has_followed(node) for node in self.nodes)


class Replacer:
    """Replaces the expired current root of one organization. One run at a time.

    Args:
        provider: The store.
        secret_id: The secret that holds the identity, with ``{org}`` replaced.
        nodes: Every server that holds this identity, or a source that lists them.
        org: The organization id, which is part of every signed commit.
        policy: Says how long to wait for the servers (`adoption`), and how long the new root lives (`lifetime`).
        clock: Tells the time and waits.
        on_event: Called with each event as it happens; must not block and must not raise.
        open_signer: Opens the signer of the identity's anchor by its URI.
        signers: The signers that this machine may call; None for none.
    """

    def __init__(
        self,
        provider: SecretProvider,
        secret_id: str,
        nodes: Sequence[Node] | NodeSource,
        *,
        org: str = DEFAULT_ORG,
        policy: Policy | None = None,
        clock: Clock | None = None,
        on_event: Callable[[Event], None] | None = None,
        open_signer: SignerOpener = open_anchor_signer,
        signers: RootSigners | None = None,
    ) -> None:
        self.policy = policy or Policy()
        self._provider = provider
        self._secret_id = secret_id
        self._org = org
        self._clock: Clock = clock or SystemClock()
        self._on_event = on_event
        self._observer = Observer(
            nodes,
            clock=self._clock,
            timeout=self.policy.node_timeout,
            bare=self.policy.bare,
            org=org,
            on_failure=self._report_failure,
        )
        self._signers = signers or RootSigners()
        self._identity = IdentityWriter(
            provider,
            secret_id,
            policy=self.policy,
            clock=self._clock,
            ask=self._observer.read_identities,
            on_event=self._emit_event,
            signers=self._signers,
        )
        self._anchor_keys = AnchorKeys(org, open_signer, self._signers)
        self._seen: tuple[NodeView, ...] = ()

    async def replace(self) -> ReplacementReport:
        """Replace the current root, which has expired, or resume where an earlier run has stopped.

        Raises:
            IllegalStepError: The current root has not expired, and has not itself replaced an expired one; or it has
                expired, but signs in direct mode, so that no other root can be endorsed.
            StoreWentBackError: A server has used a later identity than the store holds, or a different one. Nothing was
                written.
            ObstructedError: A server has seen a later identity, belongs to another identity, has a clock that differs
                from this machine's, or is listed twice. Nothing was written.
            ConfigurationError: The policy needs a working root, but the identity has no anchor. Nothing was written.
            LifetimeError: The lifetime of the new root would be too short. Nothing was written.
            StuckError: The write of the new identity failed twice, although the store had not changed.
            ProviderError: The store failed. Run the replacement again.
        """
        self._identity.forget()
        # If the store does not answer at all, nothing has begun, and the operator gets the error at once.
        first, _ = await self._identity.read()
        self.policy.check_new_root(has_anchor=first.anchor is not None)
        with self._identity.store.repeating():
            async with self._anchor_keys:
                return await self._run_until_followed(first)

    async def _run_until_followed(self, first: IdentityDocument) -> ReplacementReport:
        await self._identity.check_history(first)
        document, is_written = await self._write_replacement()
        expired = transitions.find_replaced(document)
        assert expired is not None
        key = await read_private_root(self._identity.store, self._secret_id, document, expired)
        nodes = await self._wait_until_followed(document, expired.id, key)
        return ReplacementReport(
            expired_id=expired.id,
            current_id=document.current.id,
            generation=document.generation,
            is_written=is_written,
            can_introduce=key is not None or document.anchor is not None,
            nodes=nodes,
        )

    # --- 1 and 2: the identity --------------------------------------------------------------------------------------

    async def _write_replacement(self) -> tuple[IdentityDocument, bool]:
        """Write the identity with another root; return it, and whether this run has written it."""
        fresh: OwnedSession | None = None
        word: AnchorWord | None = None
        written: ExpiredRootReplaced | None = None
        rotation_id = new_id()

        async def replace_root(document: IdentityDocument, version: SecretVersion) -> IdentityDocument | None:
            nonlocal fresh, word, written
            if transitions.has_begun(document, rotation_id):
                return None  # the write succeeded and its answer was lost
            now_ms = self._clock.now_ms()
            if document.is_direct and document.current.session.is_expired(now_ms):
                raise IllegalStepError(
                    f"root {document.current.id} has expired; it is also the anchor (direct mode), so no key can "
                    "endorse another root",
                    hint="`goatherd rotate --drop-lost-anchor` writes a new root; then start each server once with"
                    " --accept-identity.",
                )
            if not document.current.session.is_expired(now_ms):
                if transitions.find_replaced(document) is None or document.rotation is not None:
                    raise IllegalStepError(
                        f"the current root {document.current.id} has not expired",
                        hint="`goatherd rotate` replaces a root that is still valid; with --resume it finishes a"
                        " rotation in progress.",
                    )
                return None
            await self._refuse_obstacles(document, version)
            successor = transitions.find_successor(document, now_ms)
            if successor is None:
                if fresh is None:
                    fresh = OwnedSession.generate(
                        session_id=new_id(),
                        owner=ROOT_OWNER,
                        now_ms=now_ms,
                        lifetime=self._policy_for(document).lifetime,
                    )
                    word = await collect_anchor_signatures(
                        self._anchor_keys, document, fresh.session, UNCHANGED, anchor_id="", now_ms=now_ms
                    )
                successor = fresh
            changed = transitions.replace_expired(document, successor, now_ms, rotation_id=rotation_id, word=word)
            written = ExpiredRootReplaced(
                from_id=document.current.id, to_id=successor.id, at_ms=now_ms, generation=changed.generation
            )
            return changed

        document, version, _ = await self._identity.change("write the identity with another root", replace_root)
        is_written = transitions.has_begun(document, rotation_id)
        if is_written and written is not None:
            self._emit_event(written)
        await self._identity.move_stable(document, version)
        return document, is_written

    async def _refuse_obstacles(self, document: IdentityDocument, version: SecretVersion) -> Sequence[NodeView]:
        """Check that nothing prevents the replacement; return the servers as they were observed."""
        nodes = await self._observer.observe(Question(asker=document.current, answers=True))
        now_ms = self._clock.now_ms()
        policy = self._policy_for(document)
        check_lifetime(policy, unmodified=self._observer.known_unmodified)
        observation = Observation(
            store=make_store_view(
                document, version, version.id, policy, seen_ms=now_ms, clock_ahead_ms=self._store_ahead_ms(now_ms)
            ),
            nodes=nodes,
            nodes_unknown=self._observer.unknown,
            are_nodes_discovered=self._observer.is_discovered,
        )
        roots = observation.store.root_ids
        strange = frozenset(node.url for node in nodes if node.is_of_another_identity(roots))
        found = find_obstacles(observation, policy, now_ms, silent=strange)
        obstacles: tuple[Obstacle, ...] = tuple(one for one in found if one.kind in OBSTACLES)
        if obstacles:
            raise refusal_error(Refuse(obstacles=obstacles))
        return nodes

    def _policy_for(self, document: IdentityDocument) -> Policy:
        return self.policy.for_identity(has_anchor=document.anchor is not None)

    def _store_ahead_ms(self, now_ms: int) -> int | None:
        return self._provider.store_clock.ahead_ms(now_ms)

    # --- 3: the servers ---------------------------------------------------------------------------------------------

    async def _wait_until_followed(
        self, document: IdentityDocument, expired_id: str, key: OwnedSession | None
    ) -> tuple[NodeView, ...]:
        """Notify the servers and push the introductions until each server signs with the new root and holds them.

        Args:
            document: The identity in which the new root is the current one.
            expired_id: Id of the expired root.
            key: The expired root with its private key; None if no stored version holds the key.

        Returns:
            The last observed state of each server, at the latest when `Policy.adoption` is over.
        """
        current = document.current
        cross = expected_earlier_introduction(document, expired_id)
        introductions: tuple[ExpectedCommit, ...] = ()
        commits = [make_earlier_introduction(document, expired_id, org=self._org)]
        can_introduce = key is not None or document.anchor is not None
        if document.anchor is not None:
            introductions = (expected_late_introduction(document, document.anchor),)
            commits.insert(0, make_earlier_introduction(document, current.id, org=self._org))
        elif key is not None:
            introductions = (expected_late_introduction(document, expired_id),)
            # Pushed first, so that a client which knows only the expired root can verify the other commit.
            commits.insert(0, make_late_introduction(document, key, org=self._org))
        question = Question(
            asker=current, next_root=current, introductions=introductions, cross_signature=cross, signer=False
        )

        async def push(node: Node) -> None:
            await node.push(SESSIONS_PATH, commits, current, self._clock.now_ms())

        async def notify(node: Node) -> None:
            await node.refresh(current, self._clock.now_ms())

        polling, shown = Polling(self._clock, self.policy, self.policy.adoption), None
        while True:
            nodes = await self._observer.observe(question)
            if nodes and all(_is_introduced(node, can_introduce=can_introduce) for node in nodes):
                # Asked only now, because asking an unmodified server creates a session there.
                nodes = await self._observer.observe(replace(question, signer=True))
            if nodes != self._seen:
                self._seen = nodes
                self._emit_event(NodesSeen(nodes=nodes))
            done = [
                node.signs_with == current.id and _is_introduced(node, can_introduce=can_introduce) for node in nodes
            ]
            if all(done) or polling.is_over:
                return nodes
            waiting = tuple(node.url for node, is_done in zip(nodes, done, strict=True) if not is_done)
            if waiting != shown:
                shown = waiting
                wait = Wait(nodes=waiting, reason="signs with the new root", until_ms=polling.until_ms)
                self._emit_event(Decided(action=wait))
            lacking = [
                node.url for node in nodes if node.trusts_next and not _is_introduced(node, can_introduce=can_introduce)
            ]
            behind = [node.url for node in nodes if node.trusts_next is False]
            await self._observer.call_each(lacking, push)
            await self._observer.call_each(behind, notify)
            await polling.pause()

    def _report_failure(self, url: str, problem: str) -> None:
        self._emit_event(NodeNotified(url=url, is_reached=False, problem=problem))

    def _emit_event(self, event: Event) -> None:
        if self._on_event is not None:
            self._on_event(event)


def _is_introduced(node: NodeView, *, can_introduce: bool) -> bool:
    return node.holds_cross_signature is True and (node.holds_introduction is True or not can_introduce)
