"""Deadlines of tests: against hangs only, never a measure of speed. A busy machine is ten times slower than another."""

from __future__ import annotations

from typing import Final

HANG: Final = 60.0
"""Seconds after which a call that should end by itself counts as hanging."""
