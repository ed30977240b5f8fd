"""Fixtures: a clock that a test moves, simulated herds, and their store as the operations see it."""

from __future__ import annotations

from goatherd.operations.identity_store import Store
from tests.cluster.door_world import patient_door
from tests.fakes.herd import ORG, Herd
from tests.unit.rotation.conftest import POLICY, MakeHerd, clock, make_herd

__all__ = ["POLICY", "MakeHerd", "clock", "make_herd", "patient_door", "store_of"]


def store_of(herd: Herd) -> Store:
    """Return the herd's store."""
    return Store(provider=herd.provider, secret_id=herd.secret_id, org=ORG, name="memory:///herd")
