"""The shared parts of a run: time, dice, network, store, trace, and the promises that were made so far.

What it is not: it decides nothing (`scenario`) and judges nothing (`invariants`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from goatherd.cluster.client import NodeClient
from goatherd.identity.document import IdentityDocument, decode_document
from goatherd.providers.values import SecretBytes
from goatherd.rotation.policy import Policy
from tests.simulation.dice import Dice
from tests.simulation.liar import MARK
from tests.simulation.loop import VirtualLoop
from tests.simulation.machine import MachineClock
from tests.simulation.network import Network
from tests.simulation.signers import SimulatedSigners
from tests.simulation.store import Kind, Platform, SimulatedStore
from tests.simulation.trace import Trace

if TYPE_CHECKING:
    from tests.simulation.restored_store import StoreHistory

SECRET: Final = "cluster/root"
ORG: Final = "localhost"
SESSIONS: Final = "/sys/sessions"
NOTES: Final = "/data/notes"
FIRST_ROOT: Final = "root-a"
_BELIEVABLE: Final = 2**20
REFRESH: Final = timedelta(seconds=3)
PEER_TIMEOUT: Final = timedelta(seconds=8)
POLICY: Final = Policy(
    adoption=timedelta(seconds=5),
    settle=timedelta(seconds=3),
    node_timeout=timedelta(seconds=1),
    store_patience=timedelta(seconds=5),
    grace=timedelta(seconds=3),
)


WRONG_CLOCKS_POLICY: Final = replace(
    POLICY, grace=timedelta(seconds=240), clock_tolerance=timedelta(seconds=170), store_patience=timedelta(seconds=5)
)
"""Where clocks are days wrong: a grace period that is longer than what tolerated clocks differ by."""
CLOCKS_DIFFER: Final = timedelta(seconds=160)
"""By so much the clocks of the process that recorded a time and of one that counts from it may differ."""


@dataclass(slots=True)
class Promises:
    """What the servers and the store have acknowledged, which must hold at the end, and the rules broken so far.

    Attributes:
        written: Ids of commits that a node has acknowledged, in order, each with the node.
        wanted: Ids of notes that a client has signed; it offers them until they are acknowledged.
        stolen: Roots whose revocation has begun, in order.
        documents: What label ``current`` was moved to, in order, each with its version.
        signed_until: When each root was seen to be the current one last, in seconds of the true time.
        broken: The rules that were broken during the run.
    """

    written: dict[str, str] = field(default_factory=dict)
    wanted: dict[str, None] = field(default_factory=dict)
    stolen: dict[str, None] = field(default_factory=dict)
    documents: list[tuple[str, IdentityDocument]] = field(default_factory=list)
    signed_until: dict[str, float] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)


class World:
    """All shared parts of a run.

    Args:
        seed: The seed of the run.
        loop: The loop.
        kind: The kind of store.
        policy: The timeouts of rotations.
        steps: Whether the trace tells single calls.
    """

    def __init__(
        self, seed: int, loop: VirtualLoop, kind: Kind, *, policy: Policy = POLICY, steps: bool = False
    ) -> None:
        self.policy = policy
        self.loop = loop
        self.clock = MachineClock(loop)
        self.trace = Trace(loop, steps=steps)
        self.promises = Promises()
        self.network = Network(Dice(seed, "network"), self.trace)
        self.disk_dice = Dice(seed, "disk")
        self.platform = Platform(
            loop=loop,
            clock=self.clock,
            dice=Dice(seed, "store"),
            trace=self.trace,
            kind=kind,
            on_current=self._on_current,
            on_destroyed=self._on_destroyed,
        )
        self.signers = SimulatedSigners(Dice(seed, "signers"))
        self.history: StoreHistory | None = None
        """Kept where the store goes back; servers then remember over a restart what they have used."""
        self.is_calm = False
        """Whether clients have stopped writing."""
        self.is_repairing = False
        """Whether an operator has examined what changed in the store, and may sign it or revert it."""
        self.is_stealing = False
        """Whether a thief of the working root writes to the store."""

    def client(self, url: str, clock: MachineClock, *, timeout: timedelta = PEER_TIMEOUT) -> NodeClient:
        """Return a client of the node at `url`, for the process that calls it."""
        return NodeClient(url, http=self.network.line(), timeout=timeout, clock=clock)

    def store(self, clock: MachineClock) -> SimulatedStore:
        """Return a way to the store for a process with this clock."""
        return SimulatedStore(self.platform, clock)

    def _on_current(self, version: str, value: SecretBytes) -> None:
        """SECURITY: what must be true of the store after every write (tests/simulation)."""
        document = decode_document(value.reveal())
        documents = self.promises.documents
        if documents and document.generation <= documents[-1][1].generation:
            self.promises.broken.append(
                f"generation went from {documents[-1][1].generation} to {document.generation} in the store"
            )
        if documents:
            self.promises.signed_until[documents[-1][1].current.id] = self.loop.time()
        # SECURITY: no command signs what was altered without the key (mutant "altered_document_is_signed").
        if documents and document.is_signed and not documents[-1][1].is_signed and not self.is_repairing:
            self.promises.broken.append(f"generation {document.generation} goes on from an altered one, and is signed")
        # SECURITY: no change makes a revoked root count again (tests/simulation, mutant "revocation_is_forgotten").
        if document.current.id in document.revoked_ids:
            self.promises.broken.append(f"generation {document.generation}: the root that signs is revoked")
        if documents and (forgiven := documents[-1][1].revoked_ids - document.revoked_ids):
            self.promises.broken.append(f"generation {document.generation} forgives {sorted(forgiven)}")
        # SECURITY: nothing is written before each anchor has signed (tests/simulation).
        for what in () if self.is_stealing else self.signers.unsigned(document):
            self.promises.broken.append(f"generation {document.generation}: no signer has made {what}")
        if document.generation >= _BELIEVABLE:
            self.promises.broken.append(f"generation {document.generation} is one that a server has invented")
        # SECURITY: a server's claims get into the identity only if they can be verified (tests/simulation).
        if MARK.encode() in value.reveal():
            self.promises.broken.append(f"generation {document.generation} holds what a server has invented")
        if self.history is not None:
            self.history.written(document)
        self._note(version, document, "")

    def was_put_back(self, version: str, value: SecretBytes) -> None:
        """Note that the store has gone back to an earlier document, or on to a later one."""
        self._note(version, decode_document(value.reveal()), "put back: ")

    def _note(self, version: str, document: IdentityDocument, how: str) -> None:
        self.promises.documents.append((version, document))
        signer, phase = document.current.id, document.phase or "steady"
        self.trace.tell(
            "store",
            f"{how}version {version}: generation {document.generation}, {phase}, {signer[:8]} signs",
        )

    def _on_destroyed(self, version: str, value: SecretBytes) -> None:
        """See that no key is destroyed that its root could need to sign again within the grace period."""
        if self.policy.grace <= CLOCKS_DIFFER:
            return
        held = decode_document(value.reveal())
        elsewhere = [decode_document(one.reveal()).current.id for one in self.platform.values.values()]
        ended = self.promises.signed_until.get(held.current.id)
        if ended is None or held.current.id in elsewhere:
            return
        since = timedelta(seconds=self.loop.time() - ended)
        if since < self.policy.grace - CLOCKS_DIFFER:
            self.promises.broken.append(
                f"version {version} was destroyed {since.total_seconds():.0f} s after root {held.current.id} had signed"
            )
