"""A herd of simulated servers with a store, as the operations see them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest

from goatherd.operations.identity_store import Store
from goatherd.providers.memory import MemorySecretProvider
from goatherd.rotation.policy import Policy
from tests.fakes.herd import ORG, FakeClock, Herd

POLICY = Policy(adoption=timedelta(seconds=25), settle=timedelta(seconds=25), node_timeout=timedelta(seconds=2))

MakeHerd = Callable[..., Awaitable[Herd]]


@pytest.fixture
async def make_herd() -> AsyncIterator[MakeHerd]:
    """Return a function that starts servers on one store, with a clock that only tests move."""
    clock = FakeClock()
    async with MemorySecretProvider(clock=clock) as provider:

        async def make(*, nodes: int = 3, **options: Any) -> Herd:
            return await Herd.start(provider, clock=clock, nodes=nodes, **options)

        yield make


def store_of(herd: Herd) -> Store:
    return Store(provider=herd.provider, secret_id=herd.secret_id, org=ORG, name="memory:///herd")
