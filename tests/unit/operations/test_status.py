"""Status and doctor, as a Python program calls them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from goatherd.cluster.client import NodeClient
from goatherd.cluster.discovery import NodeDirectory
from goatherd.cluster.node import NodeView
from goatherd.cluster.server_answers import ServerIdentity
from goatherd.errors import DiscoveryError, ProviderAccessDeniedError
from goatherd.operations import doctor
from goatherd.operations.doctor import CheckScope, run_checks
from goatherd.operations.identity_store import Store
from goatherd.operations.init import init_identity
from goatherd.operations.rotate import rotate
from goatherd.operations.status import SEARCH_AGAIN, find_obstacles_now, read_status
from goatherd.operations.store_checks import FAILED, SKIPPED, WARNING
from goatherd.providers.base import Call
from goatherd.providers.memory import MemorySecretProvider
from goatherd.providers.values import CURRENT, SecretValue, SecretVersion
from goatherd.rotation.obstacles import ObstacleKind
from goatherd.rotation.policy import Policy
from goatherd.times import milliseconds
from tests.fakes.herd import FakeClock
from tests.unit.stores.regions import SECRET, Regions

from .conftest import POLICY, MakeHerd, store_of

NOWHERE = "http://127.0.0.1:1"


def directory(addresses: Sequence[str] = ()) -> NodeDirectory:
    return NodeDirectory(addresses, timeout=timedelta(seconds=5))


async def test_the_status_of_a_store_is_data_and_needs_no_server(make_herd: MakeHerd) -> None:
    herd = await make_herd(clients=0)
    store = store_of(herd)
    report = await rotate(store, herd.nodes, POLICY, clock=herd.clock)
    async with directory() as nodes:
        status = await read_status(store, nodes, POLICY)
        assert await find_obstacles_now(store, nodes, POLICY) == ()
    version, document = await store.read()
    assert (status.version, status.document) == (version.id, document)
    assert status.labels == {"current": version.id, "stable": version.id}
    assert status.last_rotation is not None
    assert (status.last_rotation.event, status.last_rotation.to_id) == ("rotated", report.current_id)
    assert status.keys.versions_with(report.from_id) != ()
    assert (status.servers, status.obstacles, status.progress) == ((), (), None)
    assert status.is_in_step


async def test_a_server_that_does_not_answer_is_out_of_step_and_an_obstacle_unless_it_is_hidden(
    make_herd: MakeHerd,
) -> None:
    herd = await make_herd(clients=0)
    store = store_of(herd)
    async with directory([NOWHERE]) as nodes:
        status = await read_status(store, nodes, POLICY)
        hidden = await read_status(store, nodes, POLICY, hidden={NOWHERE})
    (server,) = status.servers
    assert (server.url, server.trusts_current) == (NOWHERE, None)
    assert ObstacleKind.UNREACHABLE in {one.kind for one in status.obstacles}
    assert not status.is_in_step
    assert hidden.servers == ()
    assert hidden.is_in_step


async def test_the_status_with_servers_needs_no_right_to_list_the_versions(
    make_herd: MakeHerd, monkeypatch: pytest.MonkeyPatch
) -> None:
    herd = await make_herd(clients=0)
    store = store_of(herd)
    version, document = await store.read()
    may_list = MemorySecretProvider._versions

    async def read_one_label(self: MemorySecretProvider, call: Call, at: Any) -> SecretValue:
        found = await may_read(self, call, at)
        return replace(found, version=replace(found.version, labels=frozenset({CURRENT}), created_ms=0))

    async def refuse(self: MemorySecretProvider, call: Call) -> list[SecretVersion]:
        raise call.error(ProviderAccessDeniedError, "may not list")

    # As with Google's role secretAccessor.
    may_read = MemorySecretProvider._read
    monkeypatch.setattr(MemorySecretProvider, "_read", read_one_label)
    monkeypatch.setattr(MemorySecretProvider, "_versions", refuse)
    async with directory([NOWHERE]) as nodes:
        status = await read_status(store, nodes, POLICY)
        again = await read_status(store, nodes, POLICY, known=status)
    assert (status.document, status.labels, status.versions) == (document, {CURRENT: version.id}, ())
    assert (status.keys.problem, status.written_ms) == ("provider.access_denied", None)
    assert ObstacleKind.UNREACHABLE in {one.kind for one in status.obstacles}
    assert again.keys is status.keys, "the refusal is not asked for twice"
    monkeypatch.setattr(MemorySecretProvider, "_versions", may_list)
    async with directory() as nodes:
        assert (await read_status(store, nodes, POLICY, known=again)).keys.is_complete


async def test_a_store_without_an_identity_is_a_failed_check_and_no_error() -> None:
    scope = CheckScope(org="localhost", policy=POLICY, refresh_interval=timedelta(seconds=30))

    @asynccontextmanager
    async def opened():  # type: ignore[no-untyped-def]
        async with MemorySecretProvider() as provider:
            yield Store(provider=provider, secret_id="none", org="localhost", name="memory:///none")

    checks = await run_checks(opened(), scope)
    assert [(check.name, check.level) for check in checks] == [("store", FAILED), ("servers", WARNING)]


async def test_servers_that_are_not_found_a_second_time_are_a_check_that_was_skipped(
    make_herd: MakeHerd, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    class Flaky(NodeDirectory):
        async def __call__(self) -> list[NodeClient]:
            made.append(self)
            if len(made) > 1:
                raise DiscoveryError("the name server does not answer")
            return []

    herd = await make_herd(clients=0)
    scope = CheckScope(
        addresses=("dns://herd:8080",), org="localhost", policy=POLICY, refresh_interval=timedelta(seconds=30)
    )
    monkeypatch.setattr(doctor, "NodeDirectory", Flaky)
    checks = await run_checks(nullcontext(store_of(herd)), scope)
    assert [one.level for one in checks if one.name == "sessions" and "name server" in one.text] == [SKIPPED]


def test_the_interval_at_which_a_server_reads_the_store_says_when_its_view_is_stale() -> None:
    def node(**told: Any) -> NodeView:
        report = ServerIdentity(view_age=timedelta(minutes=10), **told)
        return NodeView(url="http://a", reachable=True, report=report)

    usual = timedelta(seconds=30)
    assert node().is_stale(usual), "a server that does not say how often it reads"
    assert node(says_interval=True, view_interval=timedelta(seconds=36)).is_stale(usual)
    assert not node(says_interval=True, view_interval=timedelta(minutes=6)).is_stale(usual), "watched or slow"
    assert not node(says_interval=True, view_interval=None).is_stale(usual), "nothing to read at intervals"


async def test_a_store_that_did_not_answer_while_versions_were_read_is_asked_again() -> None:
    """The page reads the store for years; a rotation, which changes the list of versions, may come months later."""
    regions = Regions(FakeClock())
    writer = regions.writer()
    store = Store(provider=writer, secret_id=SECRET, org="localhost", name="stores")
    await init_identity(store, Policy())
    regions.ap.is_cut_off = True
    status = await read_status(store)
    assert [one.version.id for one in status.keys.unsearched] == ["ap:*"]
    regions.ap.is_cut_off = False
    regions.clock.turn(timedelta(minutes=10))
    soon = await read_status(store, known=status)
    assert soon.keys is status.keys
    later = await read_status(store, known=replace(soon, keys_ms=soon.keys_ms - milliseconds(SEARCH_AGAIN)))
    assert later.keys.unsearched == ()
    assert (await read_status(store, known=replace(later, keys_ms=0))).keys is later.keys
