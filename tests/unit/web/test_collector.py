"""What the page reads and counts over a long time."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from goatherd.audit.records import Checked
from goatherd.audit.trail import AuditTrail
from goatherd.cli.web import make_collector
from goatherd.config.options import load_options
from goatherd.errors import AuditError
from goatherd.identity.document import decode_document, encode_document
from goatherd.identity.transitions import create_document
from goatherd.operations.identity_store import Store
from goatherd.providers.base import Call, SecretProvider
from goatherd.providers.capabilities import Finding, Verdict
from goatherd.providers.memory import MemorySecretProvider
from goatherd.rotation.policy import Policy
from goatherd.times import milliseconds
from goatherd.web import collector
from goatherd.web.collector import Collector
from tests.fakes.herd import FakeClock, Herd, HerdNode
from tests.unit.identity.make import owned
from tests.unit.stores.regions import SECRET, Regions
from tests.unit.stores.test_reader import FIRST, SECOND
from tests.unit.stores.world import World

NOW = 1_700_000_000_000
MINUTE = 60_000


def page_of(provider: SecretProvider) -> Collector:
    return Collector(
        store=Store(provider=provider, secret_id=SECRET, org="localhost", name="a store"),
        nodes=None,
        policy=Policy(),
        schedule=None,
        grace=timedelta(days=1),
        interval=timedelta(minutes=1),
    )


async def test_the_page_shows_no_earlier_identity_of_another_region() -> None:
    regions = Regions(FakeClock())
    first = await regions.eu.create(SECRET, encode_document(FIRST))
    await regions.ap.create(SECRET, encode_document(FIRST))
    page = page_of(regions.reader())
    assert (await page.collect()).generation == 1
    regions.us.is_stalled = True
    written = await regions.eu.write(SECRET, encode_document(SECOND), expected=first.id)
    assert (await page.collect()).generation == 2
    held = await regions.ap.read(SECRET)
    await regions.ap.write(SECRET, (await regions.eu.read(SECRET, written.id)).value, expected=held.version.id)
    regions.eu.is_cut_off = True
    assert decode_document((await regions.us.read(SECRET)).value.reveal()).generation == 1
    assert (await page.collect()).generation == 2


async def test_the_page_of_a_controller_shows_another_region_while_the_primary_store_is_away(tmp_path: Path) -> None:
    regions = Regions(FakeClock())
    writer = regions.writer()
    await writer.create(SECRET, encode_document(FIRST))
    store = Store(provider=writer, secret_id=SECRET, org="localhost", name="stores")
    page = make_collector(load_options({}, {}, directory=tmp_path), store, None, may_write=True)
    assert (await page.collect()).generation == 1
    regions.eu.is_cut_off = True
    view = await page.collect()
    assert view.generation == 1
    assert [one.region for one in view.stores if one.problem] == ["eu"]


class Directory:
    """The servers of a herd, as the page lists them."""

    addresses = ("herd",)
    timeout = timedelta(seconds=5)

    def __init__(self, herd: Herd) -> None:
        self._herd = herd

    async def __call__(self) -> list[HerdNode]:
        return list(self._herd.nodes)


async def test_the_page_of_a_controller_names_a_region_that_prevents_a_rotation(tmp_path: Path) -> None:
    world = await World.start(lifetime=timedelta(days=180))
    store = Store(provider=world.regions.writer(), secret_id=SECRET, org="localhost", name="stores")
    nodes: Any = Directory(world.herd)
    page = make_collector(load_options({}, {}, directory=tmp_path), store, nodes, may_write=True)
    problem = "the store of region ap does not show what the primary store holds"
    assert not any(problem in one.text for one in (await page.collect()).remarks)
    world.regions.ap.is_cut_off = True
    assert any(problem in one.text for one in (await page.collect()).remarks)


@pytest.mark.parametrize("region", ["eu", "us", "ap"])
async def test_a_region_whose_store_failed_is_not_called_again_for_every_view(tmp_path: Path, region: str) -> None:
    world = await World.start(lifetime=timedelta(days=180))
    store = Store(provider=world.regions.writer(), secret_id=SECRET, org="localhost", name="stores")
    nodes: Any = Directory(world.herd)
    page = make_collector(load_options({}, {}, directory=tmp_path), store, nodes, may_write=True)
    await page.collect()
    gone = world.regions.stores[region]
    gone.is_cut_off = True
    await page.collect()
    failed = gone.calls
    for _ in range(3):
        assert [one.region for one in (await page.collect()).stores if one.problem] == [region]
    assert gone.calls == failed
    gone.is_cut_off = False
    world.herd.clock.turn(timedelta(minutes=10))
    assert not any(one.problem for one in (await page.collect()).stores)


async def test_only_the_first_view_waits_for_a_store_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    regions = Regions(FakeClock())
    await regions.eu.create(SECRET, encode_document(FIRST))
    await regions.ap.create(SECRET, encode_document(FIRST))
    page = page_of(regions.reader())
    for module in ("writer", "members"):
        monkeypatch.setattr(f"goatherd.stores.{module}.FOLLOWER_TIMEOUT", timedelta(milliseconds=20))
    hanging: list[str] = []

    async def hang(call: Call, *_: object) -> Any:
        hanging.append(call.operation)
        await asyncio.Event().wait()

    monkeypatch.setattr(regions.ap, "_read", hang)
    monkeypatch.setattr(regions.ap, "_versions", hang)
    for _ in range(3):
        assert [one.region for one in (await page.collect()).stores if one.problem] == ["ap"]
        assert hanging == ["versions", "read"]


async def test_a_forged_identity_in_another_region_is_not_shown() -> None:
    regions = Regions(FakeClock())
    await regions.eu.create(SECRET, encode_document(FIRST))
    first = await regions.ap.create(SECRET, encode_document(FIRST))
    page = page_of(regions.reader())
    assert (await page.collect()).generation == 1
    forged = replace(create_document(owned("stranger"), regions.clock.now_ms()), generation=10**6)
    await regions.ap.write(SECRET, encode_document(forged), expected=first.id)
    for _ in range(15):
        regions.clock.turn(timedelta(minutes=1))
        assert (await page.collect()).generation == 1


async def test_calls_are_counted_for_an_hour_also_after_the_clock_was_a_year_ahead() -> None:
    async with MemorySecretProvider() as provider:
        page = page_of(provider)
        page._count_calls(NOW - MINUTE)
        page._count_calls(NOW + milliseconds(timedelta(days=365)))
        for minute in range(180):
            await provider.create(f"secret-{minute}", b"value")
            found = page._count_calls(NOW + minute * MINUTE)
        assert (found.calls, found.since_ms) == (60, NOW + 119 * MINUTE)
        assert len(page._counted) == 61


class Diagnosable(MemorySecretProvider):
    """A store that reports whether the credentials allow writes."""

    may_write = True

    async def diagnose(self, _: str) -> list[Finding]:
        return [Finding(name="rights", verdict=Verdict.CAUTION, text="", may_write=self.may_write)]


async def test_the_remark_about_excess_rights_ends_when_they_were_withdrawn() -> None:
    clock = FakeClock()
    async with Diagnosable(clock=clock) as provider:
        await provider.create(SECRET, encode_document(FIRST))
        page = page_of(provider)
        assert [one.text for one in (await page.collect()).remarks if "more rights" in one.text]
        provider.may_write = False
        clock.turn(timedelta(hours=2))
        assert not [one.text for one in (await page.collect()).remarks if "more rights" in one.text]


async def test_a_trail_that_could_not_be_read_is_read_again_although_its_file_has_not_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change of permissions, or of the limit on open files, changes neither the file's size nor its time."""
    provider = MemorySecretProvider()
    await provider.create(SECRET, encode_document(FIRST))
    file = tmp_path / "audit.jsonl"
    trail = AuditTrail(file, actor="controller")
    trail.use_identity(FIRST)
    trail.record("one", {})
    page = replace(page_of(provider), audit_log=file)

    def refuse(*_: object, **__: object) -> Checked:
        raise AuditError(f"{file} cannot be read: Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(collector, "verify_trail", refuse)
        shown = (await page.collect()).trail
        assert shown is not None
        assert shown.verdict == "unreadable"
    shown = (await page.collect()).trail
    assert shown is not None
    assert shown.verdict == "whole"
