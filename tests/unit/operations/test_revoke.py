"""Revoke, as a Python program calls it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from goatherd.errors import ConfigurationError, LifetimeError, UnconfirmedError
from goatherd.operations.identity_store import Store
from goatherd.operations.init import init_identity
from goatherd.operations.revoke import plan_revocation, revoke
from goatherd.providers.memory import MemorySecretProvider
from goatherd.rotation.policy import Policy


@pytest.fixture
async def store() -> AsyncIterator[Store]:
    async with MemorySecretProvider() as provider:
        store = Store(provider=provider, secret_id="root", org="localhost", name="memory:///root")
        await init_identity(store, Policy())
        yield store


async def test_a_revocation_that_would_freeze_nothing_is_refused(store: Store) -> None:
    root_id = (await store.read())[1].current.id
    with pytest.raises(ConfigurationError, match="no server is listed"):
        await revoke(store, [], root_id=root_id, reason="stolen", confirmed=True)
    with pytest.raises(ConfigurationError, match="no server is listed"):
        await plan_revocation(store, [], root_id=root_id)
    assert len(await store.versions()) == 1


@pytest.mark.parametrize(
    ("reason", "confirmed", "error"),
    [("stolen", False, UnconfirmedError), ("stolen", "false", UnconfirmedError), ("", True, ConfigurationError)],
    ids=["no confirmation", "a string", "no reason"],
)
async def test_a_revocation_needs_a_confirmation_and_a_reason(
    store: Store, reason: str, confirmed: bool, error: type[ConfigurationError]
) -> None:
    root_id = (await store.read())[1].current.id
    with pytest.raises(error):
        await revoke(store, [], root_id=root_id, reason=reason, confirmed=confirmed, unsafe_without_nodes=True)
    assert len(await store.versions()) == 1


async def test_a_new_root_below_the_shortest_lifetime_is_refused(store: Store) -> None:
    root_id = (await store.read())[1].current.id
    short = Policy(lifetime=timedelta(minutes=1))
    with pytest.raises(LifetimeError):
        await revoke(store, [], short, root_id=root_id, reason="stolen", confirmed=True, unsafe_without_nodes=True)


async def test_a_repeated_revocation_of_the_current_root_does_not_revoke_the_successor(store: Store) -> None:
    stolen = (await store.read())[1].current.id
    policy = Policy(adoption=timedelta(0), flow_patience=timedelta(0))

    async def revoke_root(name: str) -> str:
        done = await revoke(store, [], policy, root_id=name, reason="stolen", confirmed=True, unsafe_without_nodes=True)
        return done.revoked_id

    assert await revoke_root("current") == stolen
    successor = (await store.read())[1].current.id
    for name in ("current", "previous"):
        with pytest.raises(ConfigurationError, match=f"the revocation of root {stolen} is not finished"):
            await revoke_root(name)
        with pytest.raises(ConfigurationError, match="may now be its successor"):
            await plan_revocation(store, [], policy, root_id=name, unsafe_without_nodes=True)
    assert await revoke_root(stolen[:8]) == stolen, "the beginning that every output shows"
    _, document = await store.read()
    assert (document.current.id, document.revoked_ids) == (successor, {stolen})


async def test_a_revocation_returns_a_report_and_a_plan_writes_nothing(store: Store) -> None:
    root_id = (await store.read())[1].current.id
    policy = Policy(adoption=timedelta(0), flow_patience=timedelta(0))
    planned = await plan_revocation(store, [], policy, root_id=root_id, unsafe_without_nodes=True)
    assert (planned.revoked_id, planned.nodes) == (root_id, ())
    assert len(await store.versions()) == 1
    report = await revoke(
        store, [], policy, root_id=root_id, reason="stolen", confirmed=True, unsafe_without_nodes=True
    )
    document = (await store.read())[1]
    assert report.current_id == document.current.id != root_id
    assert root_id in document.revoked_ids
