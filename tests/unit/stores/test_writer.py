"""Writing to several regions: when a write waits, what `bring forward` copies, and what is never overwritten."""

from __future__ import annotations

from datetime import timedelta

import pytest

from goatherd.errors import ConflictError, ProviderAccessDeniedError, StoreLagError, StoresDifferError, UnavailableError
from goatherd.identity.document import IdentityDocument, encode_document
from goatherd.providers.base import Call
from goatherd.providers.breaker import CAP
from goatherd.providers.values import CURRENT, STABLE, Label, SecretValue, SecretVersion, VersionId
from goatherd.stores import FollowerView
from goatherd.stores.writer import PATIENCE
from tests.fakes.herd import FakeClock
from tests.unit.stores.regions import SECRET, Regions
from tests.unit.stores.test_reader import FIRST, OTHER_SECOND, OTHER_THIRD, SECOND, THIRD


@pytest.fixture
async def regions() -> Regions:
    made = Regions(FakeClock())
    await made.writer().create(SECRET, encode_document(FIRST))
    return made


async def held(regions: Regions, region: str) -> int:
    return regions.stores[region].document().generation


async def write(regions: Regions, document: IdentityDocument, primary: str = "eu") -> None:
    writer = regions.writer(primary)
    found = await writer.read(SECRET)
    await writer.write(SECRET, encode_document(document), expected=found.version.id)


async def test_create_write_and_label_reach_every_region_with_the_same_values(regions: Regions) -> None:
    await write(regions, SECOND)
    writer = regions.writer()
    version = (await writer.read(SECRET)).version.id
    await writer.label(SECRET, STABLE, version, expected=None)
    await write(regions, THIRD)
    for store in regions.stores.values():
        assert (await store.read(SECRET, CURRENT)).value.reveal() == encode_document(THIRD)
        assert (await store.read(SECRET, STABLE)).value.reveal() == encode_document(SECOND)
    assert len(await regions.ap.versions(SECRET)) == 3, "no value was written twice"
    assert all(view.is_in_step for view in await writer.observe(SECRET))


@pytest.mark.slow
async def test_nothing_is_written_while_a_region_lacks_the_change_before(regions: Regions) -> None:
    regions.us.lag = 1
    await write(regions, SECOND)
    with pytest.raises(StoreLagError, match="region us: it shows generation 1, the primary store 2"):
        await write(regions, THIRD)
    assert regions.eu.document().generation == 2
    regions.us.lag = 0
    await write(regions, THIRD)
    assert [await held(regions, one) for one in ("eu", "ap")] == [3, 3]


async def test_if_the_primary_store_does_not_answer_the_hint_names_the_promotion_of_another(regions: Regions) -> None:
    regions.eu.is_cut_off = True
    for _ in range(2):
        with pytest.raises(UnavailableError) as caught:
            await regions.writer().read(SECRET)
        assert caught.value.hint.count("If the store of region eu is lost permanently, `goatherd stores promote") == 1
        assert "makes the store of another region the primary store: us or ap." in caught.value.hint


@pytest.mark.slow
async def test_no_label_moves_while_a_region_lacks_the_move_before(regions: Regions) -> None:
    writer = regions.writer()
    regions.us.lag = 1
    await writer.label(SECRET, STABLE, "1", expected=None)
    with pytest.raises(StoreLagError, match="stable"):
        await write(regions, SECOND)
    assert regions.eu.document().generation == 1


async def test_a_region_that_may_lag_holds_nothing_up(regions: Regions) -> None:
    regions.us.lag = 3
    writer = regions.writer(allowed=["us"])
    for document in (SECOND, THIRD):
        found = await writer.read(SECRET)
        await writer.write(SECRET, encode_document(document), expected=found.version.id)
    assert await held(regions, "eu") == 3
    with pytest.raises(Exception, match="no follower has the region 'mars'"):
        regions.writer(allowed=["mars"])


@pytest.mark.slow
async def test_who_goes_back_is_not_held_up(regions: Regions) -> None:
    regions.ap.is_cut_off = True
    writer = regions.writer()
    found = await writer.read(SECRET)
    with pytest.raises(StoreLagError, match="ap"):
        await writer.write(SECRET, encode_document(SECOND), expected=found.version.id)
    with writer.ignoring_lag():
        await writer.write(SECRET, encode_document(SECOND), expected=found.version.id)
    assert await held(regions, "eu") == 2


async def test_who_goes_back_writes_nothing_once_another_store_was_promoted(regions: Regions) -> None:
    writer = regions.writer()
    found = await writer.read(SECRET)
    at = (await regions.ap.read(SECRET)).version.id
    await regions.ap.write(SECRET, encode_document(SECOND), expected=at)
    with writer.ignoring_lag(), pytest.raises(StoresDifferError, match="later than generation 1"):
        await writer.write(SECRET, encode_document(OTHER_SECOND), expected=found.version.id)
    assert await held(regions, "eu") == 1


@pytest.mark.slow
async def test_a_region_that_is_left_behind_is_waited_for_once(regions: Regions) -> None:
    regions.ap.is_cut_off = True
    writer, left = regions.writer(), list[FollowerView]()
    found = await writer.read(SECRET)
    began = regions.clock.monotonic()
    with writer.leaving_behind(left.append):
        written = await writer.write(SECRET, encode_document(SECOND), expected=found.version.id)
        assert regions.clock.monotonic() >= began + PATIENCE.total_seconds()
        began = regions.clock.monotonic()
        await writer.label(SECRET, STABLE, written.id, expected=None)
        assert regions.clock.monotonic() == began
    assert [view.region for view in left] == ["ap"]
    with pytest.raises(StoreLagError, match="ap"):
        await writer.write(SECRET, encode_document(THIRD), expected=written.id)
    assert await held(regions, "eu") == 2


@pytest.mark.slow
async def test_a_region_that_lags_for_a_moment_is_not_left_behind(regions: Regions) -> None:
    regions.us.lag = 1
    writer, left = regions.writer(), list[FollowerView]()
    found = await writer.read(SECRET)

    async def arrive() -> None:
        regions.us.lag = 0

    with writer.leaving_behind(left.append):
        written = await writer.write(SECRET, encode_document(SECOND), expected=found.version.id)
        regions.clock.on_tick = arrive
        await writer.label(SECRET, STABLE, written.id, expected=None)
    assert (left, regions.us.document().generation) == ([], 2)


async def test_a_store_that_was_promoted_is_not_left_behind(regions: Regions) -> None:
    writer = regions.writer()
    found = await writer.read(SECRET)
    at = (await regions.ap.read(SECRET)).version.id
    await regions.ap.write(SECRET, encode_document(SECOND), expected=at)
    with writer.leaving_behind(lambda _: None), pytest.raises(StoresDifferError, match="later than generation 1"):
        await writer.write(SECRET, encode_document(OTHER_SECOND), expected=found.version.id)
    assert await held(regions, "eu") == 1


async def test_a_writer_that_was_killed_before_the_follower_is_completed_by_the_next(regions: Regions) -> None:
    await write(regions, SECOND)
    found = await regions.eu.read(SECRET)
    await regions.eu.label(SECRET, STABLE, found.version.id, expected=None)
    await regions.eu.write(SECRET, encode_document(THIRD), expected=found.version.id)
    for _ in range(2):  # the second time changes nothing
        (_, ap) = await regions.writer().observe(SECRET, catch_up=True)
        assert ap.is_in_step
        assert (await regions.ap.read(SECRET, STABLE)).value.reveal() == encode_document(SECOND)
        assert len(await regions.ap.versions(SECRET)) == 3


async def test_a_copy_is_looked_for_among_the_newest_versions_and_no_further(regions: Regions) -> None:
    for document in (SECOND, THIRD):
        await write(regions, document)
    second = next(one.id for one in await regions.eu.versions(SECRET) if one.id == "2")
    await regions.eu.label(SECRET, STABLE, second, expected=None)
    reads: list[object] = []
    read = regions.ap._read

    async def counted(call: Call, at: Label | VersionId) -> SecretValue:
        reads.append(at)
        return await read(call, at)

    regions.ap._read = counted  # type: ignore[method-assign]
    (_, ap) = await regions.writer().observe(SECRET, catch_up=True)
    assert ap.is_in_step
    assert (await regions.ap.read(SECRET, STABLE)).value.reveal() == encode_document(SECOND)
    assert "2" in reads
    assert "1" not in reads, "the first version need not be read"


async def test_a_later_identity_and_another_history_are_never_overwritten(regions: Regions) -> None:
    await write(regions, SECOND)
    at = (await regions.ap.read(SECRET)).version.id
    await regions.ap.write(SECRET, encode_document(THIRD), expected=at)
    with pytest.raises(StoresDifferError, match="later than generation 2"):
        await write(regions, THIRD)
    assert (regions.eu.document().generation, regions.ap.document().generation) == (2, 3)
    (_, ap) = await regions.writer().observe(SECRET, catch_up=True)
    assert ap.is_later
    assert regions.ap.document() == regions.ap.document()
    at = (await regions.ap.read(SECRET)).version.id
    await regions.ap.write(SECRET, encode_document(OTHER_THIRD), expected=at)
    (_, ap) = await regions.writer().observe(SECRET, catch_up=True)
    assert ap.is_split
    assert (await regions.ap.read(SECRET)).value.reveal() == encode_document(OTHER_THIRD)
    with pytest.raises(StoresDifferError, match="another history"):
        await write(regions, THIRD)


async def test_two_writers_at_once_leave_one_winner_and_followers_with_what_it_wrote(regions: Regions) -> None:
    one, other = regions.writer(), regions.writer()
    at = (await one.read(SECRET)).version.id
    await one.observe(SECRET)
    await other.observe(SECRET)
    await one.write(SECRET, encode_document(SECOND), expected=at)
    with pytest.raises(ConflictError):
        await other.write(SECRET, encode_document(OTHER_SECOND), expected=at)
    assert (await regions.ap.read(SECRET)).value.reveal() == encode_document(SECOND)


async def test_a_follower_that_refuses_a_change_is_not_filled_with_versions_that_lack_a_label(regions: Regions) -> None:
    await regions.eu.write(SECRET, encode_document(SECOND), expected=(await regions.eu.read(SECRET)).version.id)
    left: list[str] = []

    async def write_half_way(call: Call, *_: object) -> SecretVersion:
        left.append(call.request)
        raise call.error(ProviderAccessDeniedError, "no label may be moved")

    writer, whole, regions.ap._write = regions.writer(), regions.ap._write, write_half_way  # type: ignore[method-assign]
    for _ in range(60):
        (_, ap) = await writer.observe(SECRET, catch_up=True)
        assert "no label may be moved" in ap.problem
        await regions.clock.sleep(timedelta(seconds=5))
    assert 1 < len(left) < 40
    regions.ap._write = whole  # type: ignore[method-assign]
    await regions.clock.sleep(CAP)
    (_, ap) = await writer.observe(SECRET, catch_up=True)
    assert ap.is_in_step


@pytest.mark.parametrize("change", ["_create", "_write", "_label"])
async def test_a_follower_that_another_process_brings_forward_at_the_same_time_is_in_step(change: str) -> None:
    regions = Regions(FakeClock())
    await regions.eu.create(SECRET, encode_document(FIRST))
    if change != "_create":
        await regions.writer().observe(SECRET, catch_up=True)
    if change == "_write":
        await regions.eu.write(SECRET, encode_document(SECOND), expected=(await regions.eu.read(SECRET)).version.id)
    if change == "_label":
        await regions.eu.label(SECRET, STABLE, "1", expected=None)
    slow = getattr(regions.ap, change)

    async def overtaken(*arguments: object) -> object:
        setattr(regions.ap, change, slow)
        (_, faster) = await regions.writer().observe(SECRET, catch_up=True)
        assert faster.is_in_step
        return await slow(*arguments)

    setattr(regions.ap, change, overtaken)
    (_, ap) = await regions.writer().observe(SECRET, catch_up=True)
    assert (ap.is_in_step, ap.problem) == (True, "")
    assert regions.ap.contents() == regions.eu.contents()


@pytest.mark.slow
async def test_a_destroyed_version_is_gone_from_every_store_that_goatherd_writes(regions: Regions) -> None:
    await write(regions, SECOND)
    first = encode_document(FIRST)
    await regions.writer().destroy(SECRET, "1")
    for store in (regions.eu, regions.ap):
        readable = [
            (await store.read(SECRET, one.id)).value.reveal()
            for one in await store.versions(SECRET)
            if one.state == "enabled"
        ]
        assert first not in readable
    regions.ap.is_cut_off = True
    with pytest.raises(StoreLagError):
        await regions.writer().destroy(SECRET, "1")
