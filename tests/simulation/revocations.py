"""A stolen root: the operator who revokes it, the thief who uses it, and what still counts of what it signed.

What is real: `goatherd.revocation.revoker.Revoker`. What it is not: it says nothing of a rotation (`invariants`).

What a revoked root has signed itself counts as far as it is in the frozen list, so a server's own note that no other
server held when the list was closed is lost, by design. What user sessions have signed counts always: they are
reissued, and the operator also approves commits that one server alone claims to hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Final

from goatherd.clock import Clock
from goatherd.cluster.client import NodeClient
from goatherd.identity.document import IdentityDocument, decode_document
from goatherd.identity.revocations import FrozenList, commit_digest
from goatherd.identity.session import OwnedSession, Session
from goatherd.providers.values import CURRENT, VersionState
from goatherd.remote_keys import RootSigners
from goatherd.revocation.report import RevocationReport
from goatherd.revocation.revoker import NEW, Revoker
from goatherd.rotation.anchor_keys import UNCHANGED, AnchorChoice
from goatherd.rotation.cross_signing import make_session_commit
from goatherd.rotation.events import Event
from goatherd.wire.commit import Commit
from tests.simulation.machine import EPOCH_MS
from tests.simulation.node import SimulatedNode
from tests.simulation.signers import FIRST, SECOND
from tests.simulation.store import SimulatedStore
from tests.simulation.world import NOTES, ORG, POLICY, SECRET, SESSIONS, World

_POLICY: Final = replace(POLICY, flow_patience=timedelta(seconds=3))
_THIEFS: Final = "a-lie-of-the-thief"
_WHEN_MS: Final = 1_010_000
_OK: Final = 200
_LIFETIME: Final = timedelta(days=365)


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """The options of an operator's command; all but the quorum are those of a revocation.

    Attributes:
        quorum: How many servers must follow a rotation; None for all.
        root_id: Which root; None for the one that signs, or the one before it.
        trust_alone: Servers whose claims the operator trusts.
        reopen: Whether the list is closed anew.
        destroy: Whether the stored keys are destroyed.
        distrust: Servers whose reports on the store's history a rotation ignores.
        anchor: What a rotation changes about the anchor.
    """

    quorum: int | None = None
    root_id: str | None = None
    trust_alone: Sequence[str] = ()
    reopen: bool = False
    destroy: bool = False
    distrust: Sequence[str] = ()
    anchor: AnchorChoice = UNCHANGED


async def revoke(
    world: World,
    store: SimulatedStore,
    nodes: Sequence[NodeClient],
    clock: Clock,
    order: Order,
    *,
    earlier: bool,
    heard: Callable[[Event], None],
) -> RevocationReport:
    """Revoke a root, as an operator does who has checked which root signs.

    Args:
        world: The world, which records which root is stolen.
        store: The operator's connection to the store.
        nodes: The servers that the operator lists.
        clock: The operator's clock.
        order: The options of the command.
        earlier: Without a root in `order`: the one that signed before, where there is one that counts.
        heard: As `Revoker`'s ``on_event``.
    """
    root_id = order.root_id
    if root_id is None:
        found = await store.read(SECRET, CURRENT)
        root_id = _chosen(decode_document(found.value.reveal()), earlier=earlier)
    world.promises.stolen[root_id] = None
    revoker = Revoker(
        store,
        SECRET,
        nodes,
        org=ORG,
        policy=_POLICY,
        trust_alone=order.trust_alone,
        clock=clock,
        on_event=heard,
        open_signer=world.signers.opener(clock, lambda call: world.trace.detail("signer", call)),
        signers=RootSigners((FIRST, SECOND)),
    )
    return await revoker.revoke(root_id, reason="stolen", successor=NEW, reopen=order.reopen, destroy=order.destroy)


def _chosen(document: IdentityDocument, *, earlier: bool) -> str:
    staying = {document.current.id, *document.revoked_ids, *document.anchor_ids}
    others = [root.id for root in document.roots if root.id not in staying]
    return others[-1] if earlier and others else document.current.id


# --- what counts ------------------------------------------------------------------------------------------------------


def uncounted(nodes: Iterable[SimulatedNode], document: IdentityDocument) -> frozenset[str]:
    """Return the ids of commits that revoked roots have signed and that are in no frozen list."""
    revoked = document.revoked_ids
    if not revoked:
        return frozenset()
    up = [node.database for node in nodes if node.database is not None]
    counted = set[bytes]().union(*(one.digests for one in frozen_lists(nodes, document)))
    return frozenset(
        commit.id
        for each in up
        for path in (SESSIONS, NOTES)
        for commit in each.engine.get_repository(path)
        if commit.session in revoked and commit_digest(commit) not in counted
    )


def frozen_lists(nodes: Iterable[SimulatedNode], document: IdentityDocument) -> list[FrozenList]:
    """Return the lists that the identity names, from whichever servers have them."""
    named = [one.freeze.digest for one in document.revoked if one.freeze is not None]
    answers = [
        node.database.frozen_commits.answer_get(digest)
        for digest in named
        for node in nodes
        if node.database is not None
    ]
    return [FrozenList.from_bytes(answer.body) for answer in answers if answer.status == _OK]


def holders(world: World, root_id: str) -> tuple[str, ...]:
    """Return the versions that hold the private key of a root, newest first, as the platform really stores them."""
    platform, found = world.platform, []
    for number in sorted(platform.values, reverse=True):
        if platform.ledger.describe_version(number).state is VersionState.ENABLED:
            held = decode_document(platform.values[number].reveal())
            if root_id in {one.id for one in (held.current, held.next) if one is not None}:
                found.append(str(number))
    return tuple(found)


# --- the thief --------------------------------------------------------------------------------------------------------


def loot(world: World, root_id: str) -> OwnedSession | None:
    """Return a root with its private key, which an attacker has read from the store while the root signed."""
    return next((one.current for _, one in world.promises.documents if one.current.id == root_id), None)


def thiefs_session(stolen: OwnedSession) -> Commit:
    """Return the commit by which a stolen root introduces the attacker as an administrator."""
    key = stolen.session.public_key  # of any key that he has: this one needs no new one
    session = Session(
        id=f"{_THIEFS}-{stolen.id}"[:64],
        public_key=key,
        owner="admin",
        expiration_ms=EPOCH_MS + _LIFETIME // timedelta(milliseconds=1),
    )
    commit_id = "".join(one for one in f"thief{stolen.id}".lower() if one.isalnum()).ljust(24, "0")[:24]
    raw = make_session_commit(session, signer=stolen, commit_id=commit_id, ts=EPOCH_MS + _WHEN_MS, org=ORG)
    return Commit.from_json(raw, org=ORG)
