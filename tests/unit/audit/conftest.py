"""The clock and the herds of the rotation's tests."""

from tests.unit.rotation.conftest import clock, make_herd

__all__ = ["clock", "make_herd"]
