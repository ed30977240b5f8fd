"""What everybody in a run shares: time, dice, network, store, trace, and what has been promised so far.

What it is not: it decides nothing (`scenario`) and judges nothing (`invariants`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

from goatherd.client import NodeClient
from goatherd.identity.document import IdentityDocument, decode_document
from goatherd.providers.base import SecretBytes
from goatherd.rotation import Policy
from goatherd.testing.simulation.dice import Dice
from goatherd.testing.simulation.loop import VirtualLoop
from goatherd.testing.simulation.machine import MachineClock
from goatherd.testing.simulation.network import Network
from goatherd.testing.simulation.store import Kind, Platform, SimulatedStore
from goatherd.testing.simulation.trace import Trace

SECRET: Final = "cluster/root"  # noqa: S105 - the name of a secret
ORG: Final = "localhost"
SESSIONS: Final = "/sys/sessions"
NOTES: Final = "/data/notes"
FIRST_ROOT: Final = "root-a"
REFRESH: Final = timedelta(seconds=3)
PEER_TIMEOUT: Final = timedelta(seconds=8)
POLICY: Final = Policy(
    adoption=timedelta(seconds=5),
    settle=timedelta(seconds=3),
    node_timeout=timedelta(seconds=1),
    store_patience=timedelta(seconds=5),
    grace=timedelta(seconds=3),
)


@dataclass(slots=True)
class Promises:
    """What must be true at the end, and what must not have happened.

    Attributes:
        written: Ids of commits that a node has acknowledged, in order, each with the node.
        wanted: Ids of notes that a client has signed; it goes on offering them until they are acknowledged.
        documents: What label ``current`` was moved to, in order, each with its version.
        broken: What was seen to be wrong while the run went on.
    """

    written: dict[str, str] = field(default_factory=dict)
    wanted: dict[str, None] = field(default_factory=dict)
    documents: list[tuple[str, IdentityDocument]] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)


class World:
    """See the module.

    Args:
        seed: Decides every chance.
        loop: The loop.
        kind: Of store.
        steps: Whether the trace tells single calls.
    """

    def __init__(self, seed: int, loop: VirtualLoop, kind: Kind, *, steps: bool = False) -> None:
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
        )
        self.is_calm = False
        """Nobody writes anything new any more."""

    def client(self, url: str, clock: MachineClock, *, timeout: timedelta = PEER_TIMEOUT) -> NodeClient:
        """Return a client of the node at `url`, for the process that calls it."""
        return NodeClient(url, http=self.network.line(), timeout=timeout, clock=clock)

    def store(self, clock: MachineClock) -> SimulatedStore:
        """Return a way to the store for a process with this clock."""
        return SimulatedStore(self.platform, clock)

    def _on_current(self, version: str, value: SecretBytes) -> None:
        """SECURITY: what design §3 demands of the store, at every write (tests/simulation)."""
        document = decode_document(value.reveal())
        documents = self.promises.documents
        if documents and document.generation <= documents[-1][1].generation:
            self.promises.broken.append(
                f"generation went from {documents[-1][1].generation} to {document.generation} in the store"
            )
        documents.append((version, document))
        signer, phase = document.current.id, document.phase or "steady"
        self.trace.tell(
            "store",
            f"version {version}: generation {document.generation}, {phase}, {signer[:8]} signs",
        )
