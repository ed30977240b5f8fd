"""Retire, as a Python program calls it."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from goatherd.errors import UnconfirmedError
from goatherd.operations.retire import read_key_inventory, retire
from goatherd.operations.rotate import rotate

from .conftest import POLICY, MakeHerd, store_of

NO_GRACE = replace(POLICY, grace=timedelta(0))


async def test_nothing_is_destroyed_without_a_confirmation(make_herd: MakeHerd) -> None:
    herd = await make_herd()
    store = store_of(herd)
    await rotate(store, herd.nodes, POLICY, clock=herd.clock)
    before = await store.versions()
    from_the_environment: Any = "false"
    for confirmed in (False, from_the_environment):
        with pytest.raises(UnconfirmedError):
            await retire(store, herd.nodes, NO_GRACE, confirmed=confirmed, clock=herd.clock)
    assert await store.versions() == before


async def test_the_inventory_names_what_is_destroyed_afterwards(make_herd: MakeHerd) -> None:
    herd = await make_herd()
    store = store_of(herd)
    first = (await store.read())[1].current.id
    await rotate(store, herd.nodes, POLICY, clock=herd.clock)
    keys = await read_key_inventory(store, NO_GRACE)
    due = [one.version.id for one in keys.holdings_due(herd.clock.now_ms())]
    assert set(keys.versions_with(first)) >= set(due) != set()
    done = await retire(store, herd.nodes, NO_GRACE, confirmed=True, clock=herd.clock)
    assert sorted(done.report.destroyed) == sorted(due)
    assert done.report.outcome == "retired"
    assert done.keys.versions_with(first) == ()
    again = await retire(store, herd.nodes, NO_GRACE, confirmed=True, clock=herd.clock)
    assert (again.report.outcome, again.report.destroyed) == ("nothing to do", ())
