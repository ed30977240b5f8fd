"""Old private keys in several regions: which store still holds them, and that each is destroyed in the end."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from goatherd.cli.text.key_inventory import retirement_lines
from goatherd.cli.text.revocation import revocation_lines
from goatherd.errors import NotRestorableError
from goatherd.identity.document import IdentityDocument, Phase, decode_document, encode_document
from goatherd.identity.transitions import record_promotion
from goatherd.key_inventory import describe_kept, find_holdings, find_unlisted_keys, retained_copies
from goatherd.operations.identity_store import Store
from goatherd.operations.retire import Retirement, read_key_inventory
from goatherd.providers.base import Call, Guarantees, SecretProvider
from goatherd.providers.values import CURRENT, STABLE, Label, VersionId, VersionState
from goatherd.revocation.revoker import Revoker
from goatherd.rotation.machine import Outcome
from goatherd.rotation.rotator import Rotator
from goatherd.stores import RegionalReader, ReplicatedStore, StoreMember
from tests.fakes.herd import FakeClock, Herd
from tests.unit.rotation.conftest import OWN_CLOCK
from tests.unit.stores.regions import SECRET, RegionStore

GRACE = OWN_CLOCK.grace + timedelta(days=1)


class Drill:
    """A rotation with one region, a second region that is added later, and its promotion."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.eu, self.us = RegionStore(clock=self.clock), RegionStore(clock=self.clock)

    @classmethod
    async def after_promotion(cls) -> Drill:
        """Return the state after `eu`, the former primary store, has returned as a follower of `us`."""
        drill = cls()
        await Herd.start(drill.eu, clock=drill.clock, nodes=0)
        await drill.rotator(drill.eu).rotate()
        await ReplicatedStore(drill.members("eu", "us"), clock=drill.clock).observe(SECRET, catch_up=True)
        found = await drill.us.read(SECRET)
        document, now_ms = decode_document(found.value.reveal()), drill.clock.now_ms()
        stable = (await drill.us.read(SECRET, STABLE)).version.id
        promoted = record_promotion(document, now_ms, region="us", above=0, stable_version=stable)
        await drill.us.write(SECRET, encode_document(promoted), expected=found.version.id)
        await drill.writer().observe(SECRET, catch_up=True)
        return drill

    def members(self, *regions: str) -> list[StoreMember]:
        stores = {"eu": self.eu, "us": self.us}
        return [
            StoreMember(
                region=one,
                provider=stores[one],
                template=SECRET,
                is_primary=at == 0,
            )
            for at, one in enumerate(regions)
        ]

    def writer(self, *, allowed: tuple[str, ...] = ()) -> ReplicatedStore:
        return ReplicatedStore(self.members("us", "eu"), allowed=allowed, clock=self.clock)

    def rotator(self, provider: SecretProvider) -> Rotator:
        return Rotator(provider, SECRET, [], policy=OWN_CLOCK, clock=self.clock, unsafe_without_nodes=True)

    @property
    def document(self) -> IdentityDocument:
        return self.us.document()


async def versions_with(store: RegionStore, root: str) -> list[str]:
    """Return the ids of the versions in one store that hold a root's private key."""
    found = []
    for version in await store.versions(SECRET):
        if version.state is VersionState.ENABLED:
            document = decode_document((await store.read(SECRET, version.id)).value.reveal())
            found += [
                str(version.id) for one in (document.current, document.next) if one is not None and one.id == root
            ]
    return found


async def test_what_only_a_former_primary_store_holds_is_destroyed_before_its_root_is_recorded_as_retired() -> None:
    """SECURITY: no version that can still be read is forgotten."""
    drill = await Drill.after_promotion()
    assert await versions_with(drill.us, "root-a") == []
    assert await versions_with(drill.eu, "root-a") == ["3", "2", "1"]
    early = await drill.rotator(drill.writer()).retire()
    assert early.destroyed == ()
    drill.clock.turn(GRACE)
    report = await drill.rotator(drill.writer()).retire()
    assert report.destroyed == ("eu:3", "eu:2", "eu:1")
    assert await versions_with(drill.eu, "root-a") == []
    assert drill.document.retired_ids == {"root-a"}
    assert drill.eu.contents() == drill.us.contents()


async def test_no_root_is_recorded_as_retired_while_a_store_cannot_be_searched() -> None:
    drill = await Drill.after_promotion()
    drill.clock.turn(GRACE)
    drill.eu.is_cut_off = True
    writer = drill.writer(allowed=("eu",))
    report = await drill.rotator(writer).retire()
    assert report.destroyed == ()
    assert drill.document.retired_ids == frozenset()
    keys = await read_key_inventory(Store(provider=writer, secret_id=SECRET, org="localhost", name=""), OWN_CLOCK)
    assert not keys.is_complete
    (_, line) = retirement_lines(Retirement(report=report, keys=keys))
    assert line == (
        "region eu: not searched (provider.unavailable), so no root is recorded as retired; run `goatherd retire` again"
        " when its store answers"
    )
    drill.eu.is_cut_off = False
    drill.clock.turn(timedelta(minutes=1))
    assert len((await drill.rotator(drill.writer()).retire()).destroyed) == 3
    assert drill.document.retired_ids == {"root-a"}


async def test_a_region_that_may_lag_keeps_no_key_in_the_other_stores_and_none_is_recorded_as_gone() -> None:
    drill = await Drill.after_promotion()
    await drill.rotator(drill.writer()).rotate()
    former = drill.document.rotated_from
    assert former is not None
    drill.clock.turn(GRACE)
    drill.eu.is_cut_off = True
    report = await drill.rotator(drill.writer(allowed=("eu",))).retire()
    assert await versions_with(drill.us, former) == []
    assert len(report.destroyed) >= 3
    assert drill.document.retired_ids == frozenset()
    drill.eu.is_cut_off = False
    drill.clock.turn(timedelta(minutes=1))
    assert await versions_with(drill.eu, former) != []
    await drill.rotator(drill.writer()).retire()
    assert await versions_with(drill.eu, former) == []
    assert drill.document.retired_ids == {"root-a", former}


async def test_a_root_whose_key_only_a_former_primary_store_holds_can_sign_again() -> None:
    drill = await Drill.after_promotion()
    drill.eu.is_cut_off = True
    with pytest.raises(NotRestorableError, match=r"not read: eu:\* \(not searched \(provider.unavailable\)\)"):
        await drill.rotator(drill.writer(allowed=("eu",))).restore()
    drill.eu.is_cut_off = False
    drill.clock.turn(timedelta(minutes=1))
    assert (await drill.rotator(drill.writer()).restore()).outcome is Outcome.RESTORED
    assert drill.document.current.id == "root-a"
    assert await versions_with(drill.us, "root-a") != []


async def test_a_rotation_is_cancelled_at_once_while_a_region_that_may_lag_is_away() -> None:
    drill = await Drill.after_promotion()
    drill.eu.is_cut_off = True
    writer = drill.writer(allowed=("eu",))
    await drill.rotator(writer).rotate(to_phase=Phase.PREPARED)
    began = drill.clock.monotonic()
    report = await drill.rotator(writer).abandon()
    assert report.outcome is Outcome.CANCELLED
    assert report.undestroyed == ()
    assert len(report.destroyed) == 1
    assert drill.clock.monotonic() - began < OWN_CLOCK.store_patience.total_seconds()


async def test_what_bears_a_label_in_a_former_primary_store_is_kept_there() -> None:
    drill = await Drill.after_promotion()
    drill.clock.turn(GRACE)
    await drill.eu.label(SECRET, Label("audit"), "2", expected=None)
    report = await drill.rotator(drill.writer()).retire()
    assert report.destroyed == ("eu:3", "eu:1")
    (kept,) = report.kept
    assert describe_kept(kept.version, kept.labels) == (
        "version eu:2 is kept: label `audit` points at it; remove it with `goatherd show --versions unlabel audit"
        " --provider URI` (URI: the store of region eu), and run `goatherd retire` again"
    )
    assert drill.document.retired_ids == frozenset()


async def test_a_revocation_destroys_the_key_in_a_former_primary_store_too() -> None:
    drill = await Drill.after_promotion()
    revoker = Revoker(drill.writer(), SECRET, (), policy=OWN_CLOCK, clock=drill.clock)
    report = await revoker.revoke("root-a", reason="stolen", destroy=True)
    assert report.destroyed == ("eu:3", "eu:2", "eu:1")
    assert await versions_with(drill.eu, "root-a") == []
    assert drill.document.retired_ids == {"root-a"}


async def test_the_inventory_lists_what_only_one_store_holds_and_no_copies() -> None:
    drill = await Drill.after_promotion()
    reader = RegionalReader(drill.members("us", "eu"), region="us", clock=drill.clock)
    for provider in (drill.writer(), reader):
        held = await find_holdings(provider, SECRET, drill.document)
        listed = {one.version.id: one for one in held}
        own = {one.id for one in await drill.us.versions(SECRET)}
        assert {"eu:1", "eu:2", "eu:3"} <= listed.keys()
        assert listed["eu:1"].private_ids == {"root-a"}
        current = (await drill.eu.read(SECRET, CURRENT)).version.id
        assert listed.keys() & {f"eu:{current}", f"us:{max(own)}"} == set()


async def test_a_value_counts_as_destroyed_only_where_every_store_destroys_it() -> None:
    drill = await Drill.after_promotion()
    drill.eu._guarantees = replace(drill.eu.guarantees, destroys=False, deprecates=True)

    async def keep(call: Call, version: VersionId) -> None:
        pass

    drill.eu._destroy = keep  # type: ignore[method-assign]
    assert not drill.writer().guarantees.destroys
    drill.clock.turn(GRACE)
    report = await drill.rotator(drill.writer()).retire()
    assert report.destroyed == ()
    assert report.given_up == ("eu:3", "eu:2", "eu:1")
    assert drill.document.retired_ids == frozenset()
    phrase = retained_copies(drill.writer())
    assert str(phrase).startswith("the store of at least one region removes a version"), "the primary store destroys it"


class SlowlyDeleting(RegionStore):
    """A store that deletes versions with a delay, as AWS does: destroyed versions can still be read."""

    @property
    def guarantees(self) -> Guarantees:
        return replace(super().guarantees, destroys=False, deprecates=True)

    async def _destroy(self, call: Call, version: VersionId) -> None:
        self._arrive(call)


async def test_a_region_whose_store_deletes_in_its_own_time_keeps_no_key_in_the_other_stores() -> None:
    """SECURITY: the keys of roots that have left the document are found in each store that can destroy them."""
    drill = Drill()
    drill.us, drill.eu = RegionStore(clock=drill.clock), SlowlyDeleting(clock=drill.clock)
    await Herd.start(drill.us, clock=drill.clock, nodes=0)
    writer = drill.writer()
    await writer.observe(SECRET, catch_up=True)
    await drill.rotator(writer).rotate()
    pruned = replace(drill.document, pruned=1, roots=(drill.document.current,))
    assert {one for one, _ in await find_unlisted_keys(writer, SECRET, pruned)} == {"root-a"}
    drill.clock.turn(GRACE)
    await drill.rotator(writer).retire()
    assert await versions_with(drill.us, "root-a") == []
    assert await versions_with(drill.eu, "root-a") != []
    assert await find_unlisted_keys(writer, SECRET, pruned) == (), "only the store that destroys nothing has them"
    assert drill.document.retired_ids == frozenset()
    drill.us = SlowlyDeleting(clock=drill.clock)
    assert await find_unlisted_keys(drill.writer(), SECRET, pruned) == (), "no store is read if none destroys"


async def test_a_revocation_that_has_destroyed_what_it_could_does_not_advise_to_destroy() -> None:
    drill = Drill()
    drill.us, drill.eu = RegionStore(clock=drill.clock), SlowlyDeleting(clock=drill.clock)
    await Herd.start(drill.us, clock=drill.clock, nodes=0)
    writer = drill.writer()
    await writer.observe(SECRET, catch_up=True)
    revoker = Revoker(writer, SECRET, (), policy=OWN_CLOCK, clock=drill.clock)
    kept = "\n".join(revocation_lines(await revoker.revoke("root-a", reason="stolen")))
    assert "--destroy destroys it now" in kept
    lines = "\n".join(revocation_lines(await revoker.revoke("root-a", reason="stolen", destroy=True)))
    assert await versions_with(drill.us, "root-a") == []
    assert await versions_with(drill.eu, "root-a") != []
    assert "gave up version 1: not every store that holds it destroys at once" in lines
    assert "--destroy destroys it now" not in lines
    assert "Their store removes old versions in its own time" in lines


async def test_a_version_of_another_region_is_gone_if_its_store_destroys_although_a_third_does_not() -> None:
    drill = await Drill.after_promotion()
    third = SlowlyDeleting(clock=drill.clock)
    members = [
        *drill.members("us", "eu"),
        StoreMember(region="ap", provider=third, template=SECRET),
    ]
    writer = ReplicatedStore(members, clock=drill.clock)
    await writer.observe(SECRET, catch_up=True)
    drill.clock.turn(GRACE)
    report = await drill.rotator(writer).retire()
    assert report.destroyed == ("eu:3", "eu:2", "eu:1")
    assert report.given_up == ()
