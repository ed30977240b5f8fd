"""200 servers during an hour without the store, and after its return: how many calls the store gets."""

from __future__ import annotations

import logging
from datetime import timedelta

import pytest

from tests.bench.bench_outage import NODES, simulate

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "goatherd.settings")


async def test_an_hour_without_the_store_is_no_storm_and_its_return_is_none_either() -> None:
    seen = await simulate("goatherd")
    usual = NODES / 30
    assert usual * 0.8 < seen.healthy_mean < usual * 1.2
    # No server knows yet, and each poll makes two attempts: the mean doubles. The worst second is higher.
    assert seen.onset_peak < 8 * usual
    # Then each node probes once in five minutes at most, two and a half on average.
    assert seen.outage_mean < NODES / 150 * 1.25
    assert seen.outage_peak < 2.5 * usual
    assert seen.return_mean < usual / 2
    assert seen.return_peak < 2.5 * usual
    assert seen.later_peak < 4 * usual
    assert seen.recovered_s <= 305


async def test_the_loop_that_only_retries_would_be_a_storm() -> None:
    """Shows what the bounds above are worth: the same measurement without the circuit breaker."""
    seen = await simulate("jittered", outage=timedelta(minutes=6), after=timedelta(minutes=2))
    assert seen.outage_mean > 4 * NODES / 30
