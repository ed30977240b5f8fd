"""A cluster in three regions on a clock that a test moves: rotations, faults in a phase, and invariants."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Self

from goatherd.errors import GoatherdError
from goatherd.identity.document import IdentityDocument, Phase
from goatherd.operations.identity_store import Store
from goatherd.operations.stores import PromotionReport, promote_store
from goatherd.rotation.events import Event, PhaseEntered
from goatherd.rotation.rotator import Rotator
from goatherd.stores import DocumentMark, RegionalReader, Standing, compare_documents
from tests.fakes.herd import SESSIONS, FakeClock, Herd
from tests.unit.rotation.conftest import POLICY
from tests.unit.stores.regions import SECRET, Regions

IMPATIENT = replace(
    POLICY,
    store_patience=timedelta(seconds=3),
    adoption=timedelta(seconds=8),
    settle=timedelta(seconds=8),
    poll_min=timedelta(seconds=1),
    poll_max=timedelta(seconds=2),
)


@dataclass(slots=True)
class Counters:
    """Counts of the checks of a world."""

    moments: int = 0
    changes: int = 0


class ViolationError(GoatherdError):
    """An invariant that does not hold."""


@dataclass(slots=True)
class World:
    """Stores in three regions, servers in each, and a rotator that uses the primary store.

    Attributes:
        primary: The region that the commands' configuration names.
        allowed: Regions that the operator lets lag.
        counted: Counts of the checks that were made.
        is_going_back: Whether a cancel or a roll-back may change the primary store now.
        checked: The state of the servers at which their trust was checked last.
    """

    regions: Regions
    herd: Herd
    primary: str = "eu"
    allowed: tuple[str, ...] = ()
    counted: Counters = field(default_factory=Counters)
    is_going_back: bool = False
    checked: list[tuple[int, int]] = field(default_factory=list)

    @classmethod
    async def start(
        cls, *, servers: int = 3, clients: int = 0, seed: int = 0, lifetime: timedelta | None = None
    ) -> Self:
        clock = FakeClock()
        regions = Regions(clock)
        writer = regions.writer()
        options = {} if lifetime is None else {"lifetime": lifetime}
        interval = timedelta(seconds=10)
        herd = await Herd.start(writer, clock=clock, nodes=servers, seed=seed, refresh_interval=interval, **options)
        for number, node in enumerate(herd.nodes):
            node.provider = regions.reader(("eu", "us", "ap")[number % 3])
            node.adopt(node.document)
        await herd.add_clients(clients)
        world = cls(regions=regions, herd=herd)
        clock.on_tick = world.tick
        regions.eu.before_change = world.check_gate
        return world

    def rotator(self, on_event: Callable[[Event], None] | None = None) -> Rotator:
        provider = self.regions.writer(self.primary, allowed=self.allowed)
        return Rotator(
            provider,
            SECRET,
            self.herd.nodes,
            policy=POLICY,
            clock=self.herd.clock,
            started_by="test",
            on_event=on_event,
        )

    async def promote(self, region: str, *, force: bool = False) -> PromotionReport:
        """Promote a region's store as `goatherd stores promote` does, and configure the commands with it."""
        reader = RegionalReader(self.regions.members(self.primary), clock=self.herd.clock)
        store = Store(provider=reader, secret_id=SECRET, org="localhost", name="stores")
        report = await promote_store(store, region, self.nodes, force=force, clock=self.herd.clock)  # type: ignore[arg-type]
        self.primary = region
        return report

    async def nodes(self) -> list[object]:
        return list(self.herd.nodes)

    # --- what must always hold ------------------------------------------------------------------------------------

    async def tick(self) -> None:
        before = {node.base_url: node.document.generation for node in self.herd.nodes}
        await self.herd.step()
        self.check_nodes(before)

    def check_nodes(self, before: dict[str, int]) -> None:
        """Check that no server went back, that all have one history, and that each trusts who signed what any holds."""
        self.counted.moments += 1
        for node in self.herd.nodes:
            if node.document.generation < before[node.base_url]:
                raise ViolationError(f"{node.base_url} went back to generation {node.document.generation}")
        marks = [DocumentMark.from_document(node.document) for node in self.herd.nodes]
        if any(compare_documents(one, other) is Standing.SPLIT for one in marks for other in marks):
            raise ViolationError("servers follow two histories")
        signers = {node.pool.current.id for node in self.herd.nodes}
        latest = max((node.document for node in self.herd.nodes), key=lambda one: one.generation)
        trusted = {root.id for root in latest.roots}
        if len(signers) > 2 or not signers <= trusted:
            raise ViolationError(f"too many signers: {sorted(signers)}")
        state = [(node.document.generation, len(node.commits(SESSIONS))) for node in self.herd.nodes]
        if state != self.checked and self.herd.unverifiable(SESSIONS):
            raise ViolationError("a server holds what another one would refuse")
        self.checked = state

    def check_gate(self) -> None:
        """Check, before the primary store changes, that every follower shows the change before."""
        self.counted.changes += 1
        if self.is_going_back or self.primary != "eu":
            return
        us, ap = self.regions.us, self.regions.ap
        us.catch_up()
        is_us_behind = not us.is_promoted and us.shown < len(self.regions.eu.states) - 1
        if is_us_behind and "us" not in self.allowed:
            raise ViolationError(
                f"the primary store changes while us is {len(self.regions.eu.states) - 1 - us.shown} behind"
            )
        if ap.contents() != self.regions.eu.contents() and "ap" not in self.allowed:
            raise ViolationError("the primary store changes while ap is behind")


def at_phase(phase: Phase, act: Callable[[], None]) -> Callable[[Event], None]:
    """Return a listener that acts once, when a rotation enters a phase."""
    done: list[bool] = []

    def listen(event: Event) -> None:
        if isinstance(event, PhaseEntered) and event.phase is phase and not done:
            done.append(True)
            act()

    return listen


def current(world: World) -> IdentityDocument:
    """Return the identity in the primary store."""
    return world.regions.stores[world.primary].document()
