"""Reading from several regions: which store is read, and that no read goes back to an earlier or a forked identity."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from goatherd.errors import ProviderAccessDeniedError, ProviderConfigurationError, StoreLagError, UnavailableError
from goatherd.identity.document import IdentityDocument, decode_document, encode_document
from goatherd.identity.session import ROOT_OWNER, OwnedSession
from goatherd.identity.transitions import correct_times, create_document
from goatherd.providers.base import Call
from goatherd.providers.values import CURRENT, STABLE, Label, SecretValue, VersionId
from goatherd.settings.store import CloudSecretSettings
from goatherd.stores import DocumentMark, RegionalReader, ReplicatedStore, Standing, compare_documents
from tests.deadlines import HANG
from tests.fakes.herd import FakeClock
from tests.unit.stores.regions import SECRET, Regions

NOW_MS = FakeClock().now_ms()
ROOT = OwnedSession.generate(session_id="root-a", owner=ROOT_OWNER, now_ms=NOW_MS, lifetime=timedelta(days=90))
FIRST = create_document(ROOT, NOW_MS)
SECOND = correct_times(FIRST, NOW_MS + 1)
THIRD = correct_times(SECOND, NOW_MS + 2)
OTHER_SECOND = correct_times(FIRST, NOW_MS + 50)
OTHER_THIRD = correct_times(OTHER_SECOND, NOW_MS + 51)


def mark(document: IdentityDocument) -> DocumentMark:
    return DocumentMark.from_document(decode_document(encode_document(document)))


@pytest.fixture
async def regions() -> Regions:
    made = Regions(FakeClock())
    await made.eu.create(SECRET, encode_document(FIRST))
    await made.ap.create(SECRET, encode_document(FIRST))
    return made


async def write(regions: Regions, region: str, document: IdentityDocument) -> None:
    store = regions.stores[region]
    held = await store.read(SECRET)
    await store.write(SECRET, encode_document(document), expected=held.version.id)


async def read(reader: RegionalReader) -> tuple[int, str]:
    found = await reader.read(SECRET)
    last = reader.last_read(SECRET)
    assert last is not None
    return decode_document(found.value.reveal()).generation, last.region


@pytest.mark.parametrize(
    ("one", "other", "standing"),
    [
        (FIRST, FIRST, Standing.SAME),
        (FIRST, THIRD, Standing.BEHIND),
        (THIRD, FIRST, Standing.AHEAD),
        (SECOND, OTHER_SECOND, Standing.SPLIT),
        (SECOND, OTHER_THIRD, Standing.SPLIT),
        (OTHER_THIRD, SECOND, Standing.SPLIT),
        (THIRD, OTHER_THIRD, Standing.SPLIT),
    ],
)
def test_two_documents_are_compared_by_their_history_and_not_by_the_number_alone(
    one: IdentityDocument, other: IdentityDocument, standing: Standing
) -> None:
    assert compare_documents(mark(one), mark(other)) is standing


async def test_the_own_region_is_read_first_and_then_the_others_in_order(regions: Regions) -> None:
    reader = regions.reader("ap")
    assert await read(reader) == (1, "ap")
    assert regions.eu.calls == 1, "only `create` has arrived there"
    regions.ap.is_cut_off = True
    assert await read(reader) == (1, "eu")
    regions.eu.is_cut_off = True
    assert await read(reader) == (1, "us")


async def test_a_region_that_is_away_costs_one_call_and_not_one_a_refresh(regions: Regions) -> None:
    reader = RegionalReader(regions.members(), region="ap", interval=timedelta(hours=1), clock=regions.clock)
    regions.ap.is_cut_off = True
    before = regions.ap.calls
    for _ in range(20):
        assert await read(reader) == (1, "eu")
    assert regions.ap.calls == before + 1
    regions.ap.is_cut_off = False
    regions.clock.turn(timedelta(hours=2))
    assert await read(reader) == (1, "ap"), "it is probed again, and read first again"


async def test_a_replica_that_is_behind_is_reported_and_not_followed(
    regions: Regions, caplog: pytest.LogCaptureFixture
) -> None:
    reader = regions.reader("us")
    await write(regions, "eu", SECOND)
    assert await read(reader) == (2, "us")
    reader.note_used(SECRET, mark(SECOND))
    regions.us.lag = 1
    await write(regions, "eu", THIRD)
    reader.note_used(SECRET, mark(THIRD))
    assert await read(reader) == (3, "eu")
    behind = {state.region: state.is_followed for state in reader.states(SECRET)}
    assert behind == {"us": False, "eu": True, "ap": None}
    assert "stores.behind" in caplog.text
    assert "region=us" in caplog.text


async def test_a_replica_whose_replication_has_ended_hides_no_later_identity(regions: Regions) -> None:
    reader = RegionalReader(regions.members(), region="us", interval=timedelta(minutes=1), clock=regions.clock)
    async with CloudSecretSettings(SECRET, reader, clock=regions.clock) as settings:
        await settings.load()
        assert await read(reader) == (1, "us")
        regions.us.is_stalled = True
        await write(regions, "eu", SECOND)
        assert await read(reader) == (1, "us"), "not every read asks every region"
        regions.clock.turn(timedelta(minutes=10))
        assert await read(reader) == (2, "eu")
        assert await read(reader) == (1, "us")
        assert await settings.refresh(), "a command has said that there is a change"
        assert settings.status.generation == 2
        assert await read(reader) == (2, "eu")
        assert [one.region for one in settings.status.stores if one.is_followed is False] == ["us"]


async def test_a_comparison_of_all_regions_waits_for_none_that_is_away(regions: Regions) -> None:
    reader = RegionalReader(regions.members(), region="us", interval=timedelta(minutes=1), clock=regions.clock)
    reader.note_used(SECRET, mark(FIRST))
    regions.us.is_stalled = regions.eu.is_cut_off = True
    await write(regions, "ap", SECOND)
    for _ in range(2):
        reader.expect_change(SECRET)
        assert await read(reader) == (2, "ap")
    assert regions.eu.calls == 2, "`create`, and one read that failed"


async def test_a_comparison_waits_only_briefly_for_a_store_that_hangs(
    regions: Regions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("goatherd.stores.reader.COMPARE_TIMEOUT", timedelta(milliseconds=50))
    reader = RegionalReader(regions.members(), region="us", interval=timedelta(minutes=1), clock=regions.clock)
    reader.note_used(SECRET, mark(FIRST))

    async def hang(*_: object) -> SecretValue:
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(regions.eu, "_read", hang)
    async with asyncio.timeout(HANG):
        reader.expect_change(SECRET)
        assert await read(reader) == (1, "us")


async def test_an_identity_of_another_region_that_was_rejected_is_not_returned_by_each_comparison(
    regions: Regions,
) -> None:
    reader = RegionalReader(regions.members(), region="us", interval=timedelta(minutes=1), clock=regions.clock)
    reader.note_used(SECRET, mark(FIRST))
    await write(regions, "ap", SECOND)
    reader.expect_change(SECRET)
    assert await read(reader) == (2, "ap")
    reader.note_rejected(SECRET, (await regions.ap.read(SECRET)).value)
    for _ in range(3):
        reader.expect_change(SECRET)
        assert await read(reader) == (1, "us")
    problems = {state.region: state.problem for state in reader.states(SECRET)}
    assert (problems["us"], problems["ap"]) == (None, "holds an identity that was rejected")


async def test_a_problem_of_a_store_that_is_read_no_more_ends(
    regions: Regions, caplog: pytest.LogCaptureFixture
) -> None:
    reader = RegionalReader(regions.members(), region="ap", interval=timedelta(minutes=1), clock=regions.clock)
    reader.note_used(SECRET, mark(FIRST))
    regions.ap.is_cut_off = regions.eu.is_cut_off = True
    assert await read(reader) == (1, "us")
    regions.ap.is_cut_off = regions.eu.is_cut_off = False
    for _ in range(20):
        regions.clock.turn(timedelta(minutes=1))
        assert (await read(reader))[0] == 1
    assert await read(reader) == (1, "ap")
    assert {state.region: state.is_followed for state in reader.states(SECRET)} == {"ap": True, "eu": True, "us": True}
    assert caplog.text.count("stores.recovered") == 2


async def test_where_every_store_that_answers_is_behind_the_caller_learns_that_and_gets_nothing(
    regions: Regions,
) -> None:
    reader = regions.reader("ap")
    reader.note_used(SECRET, mark(THIRD))
    with pytest.raises(StoreLagError, match="generation 3"):
        await reader.read(SECRET)


async def test_another_history_is_not_followed_although_its_number_is_higher(regions: Regions) -> None:
    reader = regions.reader("ap")
    await write(regions, "eu", SECOND)
    reader.note_used(SECRET, mark(SECOND))
    await write(regions, "ap", OTHER_SECOND)
    await write(regions, "ap", OTHER_THIRD)
    assert await read(reader) == (2, "eu")
    assert next(iter(reader.states(SECRET))).standing is Standing.SPLIT


async def test_a_store_that_holds_rubbish_does_not_keep_the_others_from_being_read(regions: Regions) -> None:
    held = await regions.ap.read(SECRET)
    await regions.ap.write(SECRET, b"no identity", expected=held.version.id)
    assert await read(regions.reader("ap")) == (1, "eu")


async def test_all_stores_away_is_the_store_s_error(regions: Regions) -> None:
    for store in regions.stores.values():
        store.is_cut_off = True
    reader = regions.reader("us")
    for _ in range(2):
        with pytest.raises(UnavailableError):
            await reader.read(SECRET)


async def test_versions_of_a_follower_bear_its_region_and_are_read_there(regions: Regions) -> None:
    reader = regions.reader("ap")
    found = await reader.read(SECRET)
    assert found.version.id == "ap:1"
    assert [version.id for version in await reader.versions(SECRET)] == ["ap:1"]
    again = await reader.read(SECRET, VersionId("ap:1"))
    assert again.value == found.value
    assert (await reader.read(SECRET, VersionId("1"))).version.id == "1"


async def test_the_memory_of_secrets_is_bounded_and_identities_in_use_stay(regions: Regions) -> None:
    reader = regions.reader("eu")
    reader.note_used(SECRET, mark(SECOND))
    for number in range(1100):
        reader.states(f"org{number}")
    assert len(reader._secrets) <= 1001
    with pytest.raises(StoreLagError):
        await reader.read(SECRET)


async def test_nothing_is_written_by_a_reader(regions: Regions) -> None:
    with pytest.raises(ProviderConfigurationError):
        await regions.reader().write(SECRET, b"x", expected="1")


async def test_a_server_keeps_what_it_has_and_follows_the_region_that_goes_on(regions: Regions) -> None:
    settings = CloudSecretSettings(SECRET, regions.reader("ap"), clock=regions.clock)
    async with settings:
        await settings.load()
        await write(regions, "eu", SECOND)
        await write(regions, "eu", THIRD)
        regions.ap.is_cut_off = True
        assert await settings.refresh()
        assert settings.status.generation == 3
        regions.ap.is_cut_off = False  # and it still holds generation 1
        regions.clock.turn(timedelta(minutes=10))
        assert not await settings.refresh()
        assert settings.status.generation == 3
        assert settings.status.failures == 0
        assert [one.region for one in settings.status.stores if one.is_followed is False] == ["ap"]
        assert settings.status.store_read is not None
        assert settings.status.store_read.region == "eu"


async def test_a_start_beside_a_replica_that_lags_reads_the_region_that_has_the_identity(
    regions: Regions, tmp_path: object
) -> None:
    seen = f"{tmp_path}/seen"
    await write(regions, "eu", SECOND)
    async with CloudSecretSettings(SECRET, regions.reader(), seen=seen, clock=regions.clock) as first:
        await first.load()
    async with CloudSecretSettings(SECRET, regions.reader("ap"), seen=seen, clock=regions.clock) as again:
        assert (await again.load()).document.generation == 2
    assert (await regions.ap.read(SECRET, CURRENT)).version.id == "1"


async def test_a_view_that_fails_keeps_no_store_from_being_read(
    regions: Regions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A view also reads the label `stable`, which a server's credentials may not allow, and has a shorter timeout."""
    monkeypatch.setattr("goatherd.providers.breaker._RANDOM.random", lambda: 1.0)
    real = regions.ap._read

    async def refuse_stable(call: Call, at: Label | VersionId) -> SecretValue:
        if at == STABLE:
            raise call.error(ProviderAccessDeniedError, "the label must not be read")
        return await real(call, at)

    monkeypatch.setattr(regions.ap, "_read", refuse_stable)
    reader = regions.reader("ap")
    for _ in range(2):
        views = await ReplicatedStore.from_reader(reader).observe(SECRET)
        assert [view.region for view in views if not view.is_reachable] == ["ap"]
    assert await read(reader) == (1, "ap")
