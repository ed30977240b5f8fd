"""A store, a clock and a herd, and the invariants that are checked at the end of every test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from goatherd.identity.document import IdentityDocument, decode_document
from goatherd.providers.memory import MemorySecretProvider
from goatherd.providers.values import CURRENT, STABLE
from goatherd.rotation.events import Event
from goatherd.rotation.policy import Policy
from goatherd.rotation.rotator import Rotator
from tests.fakes.herd import FakeClock, Herd

POLICY = Policy(adoption=timedelta(seconds=25), settle=timedelta(seconds=25), node_timeout=timedelta(seconds=2))
OWN_CLOCK = replace(POLICY, clock_tolerance=timedelta(days=1000))
"""For a world whose clock is turned, beside a store that tells the real time."""

MakeHerd = Callable[..., Awaitable[Herd]]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def make_herd(clock: FakeClock) -> AsyncIterator[MakeHerd]:
    async with MemorySecretProvider(clock=clock) as provider:

        async def make(*, nodes: int = 3, clients: int = 2, **options: Any) -> Herd:
            herd = await Herd.start(provider, clock=clock, nodes=nodes, **options)
            await herd.add_clients(clients)
            return herd

        yield make


def rotator_for(herd: Herd, *, policy: Policy = POLICY, events: list[Event] | None = None, **options: Any) -> Rotator:
    return Rotator(
        options.pop("provider", herd.provider),
        herd.secret_id,
        options.pop("nodes", herd.nodes),
        policy=policy,
        clock=herd.clock,
        started_by=options.pop("started_by", "alice@host-1:4711"),
        on_event=options.pop("listener", None if events is None else events.append),
        health=options.pop("health", ()),
        unsafe_without_nodes=options.pop("unsafe_without_nodes", False),
        **options,
    )


async def document_of(herd: Herd) -> IdentityDocument:
    found = await herd.provider.read(herd.secret_id, CURRENT)
    return decode_document(found.value.reveal())


async def check_steady(herd: Herd) -> IdentityDocument:
    """Check the invariants of a herd at rest."""
    document = await document_of(herd)
    assert document.rotation is None
    assert document.next is None
    current = await herd.provider.read(herd.secret_id, CURRENT)
    stable = await herd.provider.read(herd.secret_id, STABLE)
    assert stable.version.id == current.version.id
    await herd.settle()
    alive = [node for node in herd.nodes if not node.faults.cut_off and not node.unmodified]
    assert {node.pool.current.id for node in alive} == {document.current.id}
    assert herd.lost() == []
    assert herd.unverifiable() == []
    return document
