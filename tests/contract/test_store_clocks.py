"""Where a platform answers over HTTP, the provider reads the platform's clock from the dates of its answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from .interrupted_stores import STORES

DAY_MS = 86_400_000
WITH_DATES = {"vault", "azure", "aws", "kubernetes"}

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", STORES)
async def test_the_clock_of_the_store_is_seen_in_its_answers(name: str, tmp_path: Path) -> None:
    with STORES[name](tmp_path) as store:
        async with store.make() as provider:
            assert provider.store_clock.ahead_ms(provider.clock.now_ms()) is None
            secret = store.name()
            await provider.create(secret, b"value")
            await provider.read(secret)
            ahead_ms = provider.store_clock.ahead_ms(provider.clock.now_ms() + 31 * DAY_MS)
            assert (ahead_ms is not None) is (name in WITH_DATES)
            if name in WITH_DATES - {"azure"}:  # the clock of its fake is fast
                assert abs(ahead_ms + 31 * DAY_MS) < 60_000
                assert provider.store_clock.ahead_ms(provider.clock.now_ms()) == 0
