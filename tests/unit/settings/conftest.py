"""The clock of the tests of the settings."""

from __future__ import annotations

import pytest

from .make import HandClock


@pytest.fixture
def clock() -> HandClock:
    return HandClock()
