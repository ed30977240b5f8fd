"""The time after which a writer to Google Secret Manager counts as dead, on a clock that advances only while a task
waits."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from goatherd.providers.gcp import provider as module
from tests.deadlines import HANG

_PAUSES = 5


def let_the_lease_pass(patch: pytest.MonkeyPatch) -> None:
    """Make a writer that waits for another one wait a few short pauses, after which the lease has passed.

    A writer that waits for no other writer keeps its lease, however slow the machine is.
    """
    passed = 0.0

    async def pause(_: object) -> None:
        nonlocal passed
        passed += HANG / _PAUSES
        await asyncio.sleep(0.01)

    patch.setattr(module, "LEASE", timedelta(seconds=HANG))
    patch.setattr(module, "_loop_time", lambda: passed)
    patch.setattr(module._Pause, "__call__", pause)
