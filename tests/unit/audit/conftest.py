"""Fixtures: a clock that a test moves, and simulated herds."""

from tests.unit.rotation.conftest import clock, make_herd

__all__ = ["clock", "make_herd"]
