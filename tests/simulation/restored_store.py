"""A store that goes back to an earlier state, what servers and operators may do then, and the operator's way out.

What it is: the backup and its restore, an operator who continues from there, a record of which document has grown from
which by what its writer had read, and the two ways out of docs/how-to/restored-store.md. The module does not use
what the documents record about their own past, because that is under test.

A store that was restored from a backup counts its version ids on from there, so that servers see ids again that they
have seen with other content.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from goatherd.errors import GoatherdError
from goatherd.identity.document import IdentityDocument, decode_document, document_digest
from goatherd.providers.values import CURRENT
from goatherd.rotation.obstacles import WENT_BACK, Survey
from goatherd.rotation.rotator import Rotator
from tests.simulation.loop import current_process
from tests.simulation.people import Goal
from tests.simulation.revocations import Order
from tests.simulation.store import Backup
from tests.simulation.world import ORG, REFRESH, SECRET, World

if TYPE_CHECKING:
    from tests.simulation.herd import Herd

_LOOKED: Final = 2.5 * REFRESH.total_seconds()
"""Seconds within which every server has read the store."""


class Kind(StrEnum):
    """How a store goes back."""

    BACKUP = "a backup is restored"
    LABEL = "an older version is made current"


class WayOut(StrEnum):
    """The operator's choice of a way out."""

    LATER = "the later state is put back"
    ACCEPT = "every server is told to accept what the store holds"


@dataclass(frozen=True, slots=True, kw_only=True)
class WentBack:
    """How the store of one run goes back.

    Attributes:
        kind: The way in which it goes back.
        backed_up_at: Time of the restored state, in seconds.
        at: When it goes back, in seconds; from the end of the first command where that has ended (`is_after`).
        is_after: Whether it goes back after the first command has ended.
        forks: How many operators then write on from there, in turn, who overrule every server.
        is_unlisted: These operators know of no server instead.
        goal: What an operator wants who knows the servers and overrules none; None for no operator.
        asks_at: When, in seconds after the store went back.
        way_out: What is decided, where both ways are open.
        is_loss_theft: Whether a root that is lost with the later state is then treated as stolen.
    """

    kind: Kind
    backed_up_at: float
    at: float
    is_after: bool
    forks: int
    is_unlisted: bool
    goal: Goal | None
    asks_at: float
    way_out: WayOut
    is_loss_theft: bool

    def __str__(self) -> str:
        when = "after ops-0 has ended" if self.is_after else ""
        parts = [f"{self.kind}, of {self.backed_up_at:.1f} s, at {self.at:.1f} s {when}".rstrip()]
        if self.forks:
            parts.append(f"{self.forks} write on who {'know of no server' if self.is_unlisted else 'overrule all'}")
        if self.goal is not None:
            parts.append(f"{self.goal} {self.asks_at:.1f} s later")
        parts.append(f"then {self.way_out}" + (", and a lost root is stolen" if self.is_loss_theft else ""))
        return "; ".join(parts)


@dataclass(slots=True)
class StoreHistory:
    """A record of all documents: which has grown from which, and which servers use them.

    Attributes:
        world: The world of the run.
        is_strict: Whether every server answers, so that an operator must see what they use.
        is_lineage_believed: Whether the store keeps its promise of compare-and-swap. Where two writers may win, servers
            go on by what has grown from another document, but never without a root that has signed.
        used: What each server uses or has used last, and since when.
        signers: The roots by which servers have signed.
    """

    world: World
    is_strict: bool
    is_lineage_believed: bool
    used: dict[str, tuple[IdentityDocument, float]] = field(default_factory=dict)
    signers: set[str] = field(default_factory=set)
    _begun: dict[str, tuple[Goal, float, frozenset[str]]] = field(default_factory=dict)

    def begins(self, operator: str, goal: Goal, listed: Sequence[str], order: Order) -> None:
        """Record that an operator begins a command with these servers."""
        trusted = frozenset(url.removeprefix("http://") for url in listed if url not in order.distrust)
        self._begun[operator] = (goal, self.world.loop.time(), trusted)

    def uses(self, node: str, document: IdentityDocument, *, is_accepted: bool = False) -> None:
        """Record that a server uses a document. SECURITY: it follows no fork (tests/simulation)."""
        before = self.used.get(node)
        self.used[node] = (document, self.world.loop.time())
        self.signers.add(document.current.id)
        if before is None or is_accepted or self.has_grown(document, before[0]):
            return
        if self.is_lineage_believed:
            self._broken(f"{node} follows a fork: generation {document.generation} after {before[0].generation}")
        elif lost := self._lost(document, before[0]):
            self._broken(f"{node} goes on to generation {document.generation}, in which {sorted(lost)} are gone")

    def written(self, document: IdentityDocument) -> None:
        """Record that a client has written. SECURITY: what servers know is not overwritten (tests/simulation)."""
        process = current_process()
        name = "" if process is None else process.name.partition("/")[0]
        if name not in self._begun or not self.is_strict:
            return
        goal, began, listed = self._begun[name]
        known = {node: used for node, (used, since) in self.used.items() if node in listed and since < began}
        against = [node for node, used in known.items() if not self.has_grown(document, used)]
        if not against or (goal.is_revocation and 2 * len(against) < len(known)):
            return
        self._broken(f"{name} writes generation {document.generation} over what {', '.join(against)} used before")

    def has_grown(self, new: IdentityDocument, old: IdentityDocument) -> bool:
        """Whether a document has grown from another one, or is that one, by what its writers had read."""
        at: str | None = document_digest(new)
        wanted = document_digest(old)
        parents = self.world.platform.parents
        while at is not None and at != wanted:
            at = parents.get(at)
        return at == wanted

    def _lost(self, new: IdentityDocument, old: IdentityDocument) -> set[str]:
        explained = {root.id for root in new.roots} | new.revoked_ids | new.retired_ids
        lost = ({root.id for root in old.roots} & self.signers) - explained
        return set() if new.pruned > old.pruned else lost

    def _broken(self, rule: str) -> None:
        self.world.promises.broken.append(rule)


class Restoration:
    """The restore of one run, and the way out of it.

    Args:
        herd: The herd of the run.
        plan: The plan of the restore.
        history: The record of all documents.
    """

    def __init__(self, herd: Herd, plan: WentBack, history: StoreHistory) -> None:
        self._herd, self._plan, self._history = herd, plan, history
        self._world = herd.world
        self._later: Backup | None = None
        self._has_unknown_roots = False

    async def happen(self, ended: Sequence[asyncio.Event]) -> None:
        """Let the store go back, and let the operators do what they do then."""
        plan, platform = self._plan, self._world.platform
        await asyncio.sleep(plan.backed_up_at)
        backup = platform.back_up()
        if plan.is_after:
            await ended[0].wait()
            await asyncio.sleep(plan.at)
        else:
            await asyncio.sleep(plan.at - plan.backed_up_at)
        self._later = platform.back_up()
        self._put_back(backup)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._write_on())
            if plan.goal is not None:
                group.create_task(self._ask(plan.goal))

    async def _write_on(self) -> None:
        assert self._later is not None
        _, current = self._world.promises.documents[-1]
        # An operator who lists no server introduces no root to any; so no server may be able to follow that root.
        is_apart = not any(self._history.has_grown(current, used) for used, _ in self._history.used.values())
        listed = [] if self._plan.is_unlisted and is_apart else [node.url for node in self._herd.nodes]
        for number in range(self._plan.forks):
            await asyncio.sleep(0.2)
            self._has_unknown_roots = self._has_unknown_roots or not listed
            await self._herd.operate(f"hasty-{number}", Goal.ROTATE, listed, Order(distrust=tuple(listed)))

    async def _ask(self, goal: Goal) -> None:
        await asyncio.sleep(self._plan.asks_at)
        await self._herd.operate("careful", goal, [node.url for node in self._herd.nodes], Order())

    async def find_way_out(self) -> None:
        """Act as the operator who reads what `doctor` reports, decides which identity is right, and follows the
        docs."""
        await asyncio.sleep(_LOOKED)
        _, current = self._world.promises.documents[-1]
        self._judge_servers(current)
        strays = [name for name, (used, _) in self._history.used.items() if not self._history.has_grown(current, used)]
        await self._judge_doctor(current, strays)
        if not strays:
            return
        is_needed = self._has_unknown_roots or self._is_revocation_lost(current)
        if self._is_later_right() and (is_needed or self._plan.way_out is WayOut.LATER):
            assert self._later is not None
            self._world.trace.tell("decider", str(WayOut.LATER))
            self._put_back(self._later)
        else:
            await self._accept(current)
        self._forget_unknown_roots()

    async def _accept(self, current: IdentityDocument) -> None:
        self._world.trace.tell("decider", str(WayOut.ACCEPT))
        known = {root.id for root in current.roots}
        lost = sorted(self._history.signers - known - current.revoked_ids)
        for node in self._herd.nodes:
            await node.stop()
            node.accepts = True
            node.start()
            async with asyncio.timeout(30):
                await self._herd.until(lambda node=node: node.is_up)  # type: ignore[misc]
        promises = self._world.promises
        if self._plan.is_loss_theft or promises.stolen:
            # First, as the docs say: they are trusted by the word of the root that signs again.
            promises.stolen = {**dict.fromkeys(lost), **promises.stolen}

    def _is_revocation_lost(self, current: IdentityDocument) -> bool:
        """Return whether the docs leave only one way out, because a stolen root would sign again."""
        assert self._later is not None
        lost = decode_document(self._later.current[1].reveal()).revoked_ids - current.revoked_ids
        return bool(lost) or not self._world.promises.stolen.keys().isdisjoint(root.id for root in current.roots)

    def _forget_unknown_roots(self) -> None:
        """Let no operator revoke a root that only a fork has known."""
        _, current = self._world.promises.documents[-1]
        known = {root.id for root in current.roots} | current.revoked_ids | self._history.signers
        stolen = self._world.promises.stolen
        for root_id in [one for one in stolen if one not in known]:
            del stolen[root_id]

    def _is_later_right(self) -> bool:
        if self._later is None:
            return False
        later = decode_document(self._later.current[1].reveal())
        return all(self._history.has_grown(later, used) for used, _ in self._history.used.values())

    def _put_back(self, backup: Backup) -> None:
        """Restore a backup, or make its version current again."""
        platform, is_label = self._world.platform, self._plan.kind is Kind.LABEL
        number, value = backup.current
        if is_label and number in platform.values and platform.values[number] == value:
            labels = MappingProxyType({**platform.ledger.labels, CURRENT: number})
            platform.past.append((self._world.loop.time(), replace(platform.ledger, labels=labels)))
        else:
            platform.restore(backup)
        self._world.was_put_back(str(number), value)

    # --- what must be seen --------------------------------------------------------------------------------------------

    def _judge_servers(self, current: IdentityDocument) -> None:
        """SECURITY: a server does not take another content for the one that it uses, whatever its version id says."""
        digest = document_digest(current)
        for node in self._herd.nodes:
            if node.database is None or node.name not in self._history.used:
                continue
            used, _ = self._history.used[node.name]
            if document_digest(used) != digest and not node.database.status.is_degraded:
                self._world.promises.broken.append(
                    f"{node.name} uses another generation {used.generation} than the store holds, and says nothing"
                )

    async def _judge_doctor(self, current: IdentityDocument, strays: Sequence[str]) -> None:
        broken = self._world.promises.broken
        try:
            survey = await self._survey()
        except GoatherdError as error:
            broken.append(f"doctor failed: {error.code}: {error}")
            return
        found = [one for one in survey.obstacles if one.kind in WENT_BACK]
        for node in self._herd.nodes:
            if not node.is_up or node.name not in strays:
                continue
            used, _ = self._history.used[node.name]
            is_known = current.lineage is not None and current.lineage.digest_of(used.generation) is not None
            if used.generation < current.generation and not is_known:
                continue  # further back than a document remembers
            named = [one for one in found if node.url in one.nodes]
            if not named or not all(way in one.hint for one in named for way in ("later", "--accept-identity")):
                broken.append(f"doctor does not say that the store went back behind {node.name}, and the ways out")
        if found and not strays:
            broken.append(f"doctor says that the store went back, and it did not: {found[0].text}")

    async def _survey(self) -> Survey:
        async with self._world.store(self._world.clock) as store:
            clients = [self._world.client(node.url, self._world.clock) for node in self._herd.nodes]
            rotator = Rotator(
                store, SECRET, clients, org=ORG, policy=self._world.policy, clock=self._world.clock, started_by="doctor"
            )
            return await rotator.survey(is_probing=False)
