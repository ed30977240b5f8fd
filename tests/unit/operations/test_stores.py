"""The commands for several stores: what `status` and `doctor` report, what `sync` writes, and which can be promoted."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from goatherd.cli.text.stores import promotion_data, promotion_lines
from goatherd.cluster.server_answers import ServerIdentity
from goatherd.config.values import StoreEntry
from goatherd.errors import (
    ConfigurationError,
    IdentityExistsError,
    NodeUnreachableError,
    PromotionRefusedError,
    SecretNotFoundError,
    StoresDifferError,
    UnavailableError,
    UnsignedIdentityError,
)
from goatherd.identity.document import encode_document, normalize_document, sign_document, source_digest
from goatherd.identity.session import OwnedSession
from goatherd.identity.transitions import create_document, prepare_rotation
from goatherd.operations.doctor import CheckScope, run_checks
from goatherd.operations.identity_store import Store
from goatherd.operations.init import init_identity
from goatherd.operations.runs import AuditLog
from goatherd.operations.store_checks import FAILED, OK, SKIPPED, WARNING, _check_rights
from goatherd.operations.stores import promote_store, read_regions, sync_stores
from goatherd.providers.base import Call
from goatherd.providers.file.provider import FileSecretProvider
from goatherd.providers.memory import MemorySecretProvider, MemoryStore
from goatherd.providers.values import STABLE, Label, SecretValue, VersionId
from goatherd.rotation.anchor_keys import ROLL_BACK_WRITES
from goatherd.rotation.policy import Policy
from goatherd.stores import RegionalReader, ReplicatedStore, Standing, StoreMember
from goatherd.web.collector import find_excess_rights
from tests.fakes.herd import FakeClock
from tests.unit.identity.make import first, owned
from tests.unit.identity.test_anchor import World as AnchoredWorld
from tests.unit.stores.regions import SECRET, Regions
from tests.unit.stores.test_reader import FIRST, OTHER_SECOND, OTHER_THIRD, SECOND, THIRD, write


@pytest.fixture
async def regions() -> Regions:
    made = Regions(FakeClock())
    await made.writer().create(SECRET, encode_document(FIRST))
    return made


def stores_of(regions: Regions, primary: str = "eu", **options: Any) -> Store:
    return Store(provider=regions.writer(primary, **options), secret_id=SECRET, org="localhost", name="stores")


class Answering:
    """A server that reports which identity it uses."""

    base_url = "http://a"

    def __init__(self, document: Any) -> None:
        self._document = document

    async def identity(self) -> ServerIdentity:
        return ServerIdentity(generation=self._document.generation, digest=source_digest(self._document))

    async def answers(self, root: OwnedSession) -> bool:
        return root.session in self._document.roots


def nodes_with(document: Any) -> Any:
    async def nodes() -> list[Answering]:
        return [Answering(document)]

    return nodes


async def test_each_region_is_compared_with_the_latest_identity(regions: Regions) -> None:
    regions.us.lag = 1
    await write(regions, "eu", SECOND)
    regions.ap.is_cut_off = True
    eu, us, ap = await read_regions(stores_of(regions))
    assert (eu.standing, us.standing, ap.standing) == (Standing.SAME, Standing.BEHIND, None)
    assert us.problem == "behind region eu, which holds generation 2"
    assert us.lag_since_ms == SECOND.last_updated
    assert not ap.is_reachable
    assert "cut off" in (ap.problem or "")


async def test_a_region_lags_since_the_first_change_that_it_lacks(regions: Regions) -> None:
    regions.us.lag = 2
    held = (await regions.eu.read(SECRET)).version.id
    for document in (SECOND, THIRD):
        held = (await regions.eu.write(SECRET, encode_document(document), expected=held)).id
    _, us, ap = await read_regions(stores_of(regions))
    assert (us.generation, ap.generation) == (1, 1)
    assert us.lag_since_ms == ap.lag_since_ms == SECOND.last_updated
    regions.us.lag = 3
    await regions.eu.destroy(SECRET, "2")
    _, us, ap = await read_regions(stores_of(regions))
    assert us.lag_since_ms is ap.lag_since_ms is None, "the change itself can no longer be read"


@pytest.mark.slow
async def test_the_rights_are_those_in_each_region(tmp_path: Path) -> None:
    places = {"eu": FileSecretProvider(f"{tmp_path}/eu"), "us": FileSecretProvider(f"{tmp_path}/us")}
    filled, empty = MemorySecretProvider(MemoryStore()), MemorySecretProvider(MemoryStore())
    for store_with_identity in (places["eu"], filled):
        await store_with_identity.create("root", encode_document(FIRST))
    members = [
        StoreMember(region="eu", provider=places["eu"], template="root", is_primary=True),
        StoreMember(region="us", provider=places["us"], template="root"),
        StoreMember(region="ap", provider=filled, template="root"),
        StoreMember(region="sa", provider=empty, template="root"),
    ]
    for provider in (ReplicatedStore(members), RegionalReader(members)):
        store = Store(provider=provider, secret_id="root", org="localhost", name="stores")
        async with provider:
            eu, us, ap, sa = (one for one in await _check_rights(store) if one.name == "rights")
            (remark,) = await find_excess_rights(store)
        assert (eu.level, eu.text) == (
            OK,
            "region eu: the credentials may read, write and destroy versions: more than a server needs",
        )
        assert (us.level, us.text.startswith("region us: the store did not report its rights: ")) == (SKIPPED, True)
        assert (ap.level, ap.text.startswith("region ap: the credentials may read; memory cannot report")) == (
            SKIPPED,
            True,
        )
        assert "`goatherd policy memory --role rotator`" in ap.hint
        assert (sa.level, sa.text.startswith("region sa: the store did not report its rights: ")) == (SKIPPED, True)
        assert (
            remark.advice == "`goatherd policy file --role server` and `goatherd policy memory --role server` print "
            "what it needs."
        )


async def test_the_rights_in_a_region_without_the_secret_do_not_advise_to_create_another_identity(
    regions: Regions,
) -> None:
    regions.eu.store.secrets.clear()
    reader = regions.reader()
    await reader.read(SECRET)
    (eu,) = [one for one in await reader.diagnose(SECRET) if one.text.startswith("region eu: ")]
    assert "there is no such secret" in eu.text
    assert eu.hint == ""


async def test_after_the_primary_store_was_emptied_each_command_names_the_region_to_promote(regions: Regions) -> None:
    regions.us.is_stalled = True
    regions.eu.store.secrets.clear()
    stores = stores_of(regions)
    advice = "If the store of region eu was lost or emptied, run `goatherd stores promote {}`"
    for command in (stores.read(), sync_stores(stores)):
        with pytest.raises(SecretNotFoundError) as missing:
            await command
        assert advice.format("us") in missing.value.hint
    reader = regions.reader()
    assert (await reader.read(SECRET)).version.id == "us:1"
    problem = reader.primary_error(SECRET)
    assert problem is not None
    assert advice.format("us") in problem.hint
    with pytest.raises(IdentityExistsError, match="the store of region us holds the secret") as caught:
        await init_identity(stores, Policy())
    assert advice.format("us") in caught.value.hint
    eu, us, ap = await read_regions(stores)
    assert (eu.is_missing, us.problem, ap.problem) == (True, None, None)
    assert advice.format("us") in eu.hint
    regions.ap.store.secrets.clear()
    _, _, ap = await read_regions(stores)
    assert ap.hint == "`goatherd stores sync` fills it."
    regions.us.is_cut_off = True
    with pytest.raises(SecretNotFoundError, match="there is no such secret") as missing:
        await stores.read()
    assert missing.value.hint.endswith(SecretNotFoundError.hint), "no region is known to hold it"


async def test_sync_brings_forward_what_it_may_and_says_what_it_may_not(regions: Regions) -> None:
    await write(regions, "eu", SECOND)
    report = await sync_stores(stores_of(regions))
    assert report.is_complete
    assert report.before == {"us": 2, "ap": 1}
    await write(regions, "ap", THIRD)
    report = await sync_stores(stores_of(regions))
    assert [one.is_in_step for one in report.followers] == [True, False]
    assert (await regions.ap.read(SECRET)).value.reveal() == encode_document(THIRD)


async def test_with_the_former_section_no_region_that_only_follows_is_called_promoted(regions: Regions) -> None:
    regions.eu.is_cut_off = True
    await promote_store(stores_of(regions), "us")
    promoted = regions.us.document()
    regions.eu.is_cut_off = False
    await write(regions, "ap", promoted)
    synced = await sync_stores(stores_of(regions))
    listed = await read_regions(stores_of(regions))
    hints = [one.hint for one in (*synced.followers, *listed) if one.hint]
    assert ["that `goatherd stores promote` printed" in hint for hint in hints] == [True] * 3
    assert not [hint for hint in hints if "Region ap was promoted" in hint]


async def test_a_region_is_promoted_only_with_the_highest_generation_that_anything_has_shown(regions: Regions) -> None:
    regions.us.lag = 1
    await write(regions, "eu", SECOND)
    with pytest.raises(PromotionRefusedError, match="holds generation 1, but region eu has generation 2"):
        await promote_store(stores_of(regions), "us")
    regions.us.lag = 0
    with pytest.raises(PromotionRefusedError, match="but http://a has generation 3"):
        await promote_store(stores_of(regions), "us", nodes_with(THIRD))
    with pytest.raises(PromotionRefusedError, match="with another history"):
        await promote_store(stores_of(regions), "us", nodes_with(OTHER_SECOND))
    assert regions.us.document().generation == 2
    for region, message in (("mars", "no store has the region"), ("eu", "is the primary store already")):
        with pytest.raises(ConfigurationError, match=message):
            await promote_store(stores_of(regions), region)
    report = await promote_store(stores_of(regions), "us", nodes_with(SECOND))
    assert (report.before, report.generation, report.unseen) == (2, 3, {})
    assert regions.us.document().history[-1].event == "promoted"
    assert regions.us.document().is_signed
    again = await promote_store(stores_of(regions), "us", nodes_with(SECOND))
    assert again.is_repeated
    assert regions.us.document().generation == 3


async def test_two_regions_that_are_promoted_at_the_same_time_do_not_both_report_success(regions: Regions) -> None:
    regions.eu.is_cut_off = True
    done = await asyncio.gather(
        *(promote_store(stores_of(regions), one) for one in ("us", "ap")), return_exceptions=True
    )
    assert [one for one in done if isinstance(one, StoresDifferError)], done
    assert "was promoted to generation 2, but meanwhile region" in str(done)
    with pytest.raises(PromotionRefusedError, match="with another history"):
        await promote_store(stores_of(regions), "us")


async def test_an_identity_that_was_altered_without_a_root_s_key_is_not_promoted(regions: Regions) -> None:
    altered = replace(FIRST, roots=(*FIRST.roots, owned("stranger").session))
    await write(regions, "us", altered)
    regions.eu.is_cut_off = regions.ap.is_cut_off = True
    with pytest.raises(UnsignedIdentityError) as caught:
        await promote_store(stores_of(regions), "us", force=True)
    assert caught.value.hint.startswith("Make us the primary store in [stores]. ")
    assert regions.us.document() == altered


async def test_a_store_that_was_altered_without_a_root_s_key_is_behind_whatever_its_generation_and_never_copied(
    regions: Regions,
) -> None:
    """A writer of one store, who has no root's key, raises the generation: what was signed stays the later identity."""
    now_ms = FakeClock().now_ms()
    signed = normalize_document(sign_document(replace(FIRST, generation=2), now_ms))
    altered = normalize_document(replace(signed, generation=7, rotated_at=now_ms))
    assert not altered.is_signed
    regions.us.is_promoted = True
    for one in ("eu", "us", "ap"):
        await write(regions, one, signed)
    await write(regions, "ap", altered)
    states = {one.region: one for one in await read_regions(stores_of(regions))}
    assert (states["ap"].standing, states["us"].standing) == (Standing.BEHIND, Standing.SAME)
    assert (await sync_stores(stores_of(regions))).is_complete
    assert regions.ap.document() == signed
    await write(regions, "eu", altered)
    states = {one.region: one for one in await read_regions(stores_of(regions))}
    assert (states["eu"].standing, states["us"].standing) == (Standing.BEHIND, Standing.SAME)
    assert not (await sync_stores(stores_of(regions), patience=timedelta(0))).is_complete
    assert regions.us.document() == regions.ap.document() == signed


@pytest.mark.parametrize("force", [False, True])
async def test_an_identity_that_no_server_trusts_is_not_promoted(regions: Regions, force: bool) -> None:
    """A writer of one follower's store, who has no root's key, must not take over the other regions."""
    now_ms = FakeClock().now_ms()
    stranger = create_document(owned("stranger"), now_ms)
    foreign = replace(stranger, generation=FIRST.generation + 1)
    await write(regions, "us", normalize_document(sign_document(foreign, now_ms)))
    before = regions.us.document()
    with pytest.raises(PromotionRefusedError, match=r"no server trusts root stranger\w*, which region us"):
        await promote_store(stores_of(regions), "us", nodes_with(FIRST), force=force)
    assert regions.us.document() == before
    assert regions.eu.document() == FIRST


async def test_a_promotion_says_why_the_generation_of_a_store_or_server_is_not_known(regions: Regions) -> None:
    class Another:
        def __init__(self, base_url: str, answer: ServerIdentity | None) -> None:
            self.base_url, self._answer = base_url, answer

        async def answers(self, root: OwnedSession) -> bool:
            return self.base_url != "http://down"

        async def identity(self) -> ServerIdentity | None:
            if self.base_url == "http://down":
                raise NodeUnreachableError("connection refused")
            return self._answer

    async def nodes() -> list[Any]:
        return [Another("http://down", None), Another("http://bare", None), Another("http://file", ServerIdentity())]

    regions.eu.is_cut_off = True
    report = await promote_store(stores_of(regions), "us", nodes)  # type: ignore[arg-type]
    entries = [StoreEntry(region=name, provider=f"memory:{name}") for name in ("eu", "us", "ap")]
    assert [line for line in promotion_lines(report, entries) if line.startswith("generation not known")] == [
        "generation not known: region eu: memory: read 'cluster/root': cut off",
        "generation not known: http://down: connection refused",
        "generation not known: http://bare: it answered, but reports no generation (unmodified, without an agent)",
        "generation not known: http://file: it answered, but reports no generation (it has a settings.json)",
    ]
    found = promotion_data(report)
    assert found["unseen"] == ["region eu", "http://down", "http://bare", "http://file"]
    assert found["reasons"]["http://down"] == "connection refused"


@pytest.mark.parametrize("is_reader", [True, False])
async def test_a_store_that_failed_a_moment_ago_is_asked_again_before_another_is_promoted(
    regions: Regions, monkeypatch: pytest.MonkeyPatch, is_reader: bool
) -> None:
    monkeypatch.setattr("goatherd.providers.breaker._RANDOM.random", lambda: 1.0)
    provider = regions.reader() if is_reader else regions.writer()
    gone = regions.stores["eu" if is_reader else "ap"]
    gone.is_cut_off = True
    await (provider.read(SECRET) if is_reader else provider.observe(SECRET))  # type: ignore[union-attr]
    gone.is_cut_off, regions.us.is_stalled = False, True
    await write(regions, "eu" if is_reader else "ap", SECOND)
    with pytest.raises(PromotionRefusedError, match="generation 2"):
        await promote_store(Store(provider=provider, secret_id=SECRET, org="localhost", name="stores"), "us")


async def test_a_promotion_that_cannot_read_the_stable_version_writes_nothing(
    regions: Regions, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = regions.ap
    held = await store.read(SECRET)
    await store.label(SECRET, STABLE, held.version.id, expected=None)
    rotating = prepare_rotation(
        FIRST, owned("b"), now_ms=FIRST.last_updated, rotation_id="r", started_by="", stable_version="of the primary"
    )
    await store.write(SECRET, encode_document(rotating), expected=held.version.id)
    read = store._read

    async def fail_once(call: Call, at: Label | VersionId) -> SecretValue:
        if at == STABLE:
            monkeypatch.undo()
            raise call.error(UnavailableError, "no answer")
        return await read(call, at)

    monkeypatch.setattr(store, "_read", fail_once)
    with pytest.raises(UnavailableError, match="no answer"):
        await promote_store(stores_of(regions), "ap")
    assert store.document() == rotating
    await promote_store(stores_of(regions), "ap")
    rotation = store.document().rotation
    assert rotation is not None
    assert rotation.stable_version == held.version.id, "the rotation can be rolled back"


async def test_a_promotion_without_a_rotation_in_progress_needs_no_stable_version(
    regions: Regions, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = regions.ap
    read = store._read

    async def fail(call: Call, at: Label | VersionId) -> SecretValue:
        if at == STABLE:
            raise call.error(UnavailableError, "no answer")
        return await read(call, at)

    monkeypatch.setattr(store, "_read", fail)
    before = store.document().generation
    assert (await promote_store(stores_of(regions), "ap")).generation == before + 1


async def test_the_operator_s_word_overrules_is_above_what_was_seen_and_is_on_record(
    regions: Regions, tmp_path: Path
) -> None:
    trail = tmp_path / "audit.jsonl"
    log = AuditLog(trail, lambda *_: None)
    report = await promote_store(stores_of(regions), "ap", nodes_with(THIRD), force=True, audit_log=log)
    assert report.generation == 4
    assert [one.text for one in report.overruled] == ["http://a has generation 3"]
    assert "http://a has generation 3" in trail.read_text()


async def test_a_promotion_reports_that_a_changed_anchor_can_no_longer_be_rolled_back() -> None:
    (_, _, activated, *_) = await AnchoredWorld().rotate(first(), owned("b"), signer="memory:kms")
    regions = Regions(FakeClock())
    await regions.writer().create(SECRET, encode_document(activated))
    report = await promote_store(stores_of(regions), "ap", nodes_with(activated))
    assert report.can_go_back
    lost = replace(activated, generation=activated.generation + ROLL_BACK_WRITES)
    report = await promote_store(stores_of(regions), "us", nodes_with(lost), force=True)
    assert not report.can_go_back
    entries = [StoreEntry(region=one, provider=f"file:///{one}") for one in ("eu", "us")]
    assert any("can no longer be rolled back" in line for line in promotion_lines(report, entries))
    assert promotion_data(report)["canRollBack"] is False


async def test_a_lagging_region_that_is_allowed_is_on_record(regions: Regions, tmp_path: Path) -> None:
    trail = tmp_path / "audit.jsonl"
    await sync_stores(stores_of(regions, allowed=["us"]), audit_log=AuditLog(trail, lambda *_: None))
    assert '"allowLagging":["us"]' in trail.read_text().replace(" ", "")


async def findings(regions: Regions) -> list[tuple[str, str]]:
    @asynccontextmanager
    async def opening() -> Any:
        yield stores_of(regions)

    scope = CheckScope(org="localhost", policy=Policy(), refresh_interval=timedelta(seconds=30))
    return [(one.level, one.text) for one in await run_checks(opening(), scope) if one.name == "stores"]


async def test_doctor_tells_an_old_primary_that_is_behind_from_one_that_went_on_alone(regions: Regions) -> None:
    assert {level for level, _ in await findings(regions)} == {OK}
    await write(regions, "ap", SECOND)
    found = await findings(regions)
    assert (FAILED, "region eu (primary): behind region ap, which holds generation 2") in found
    await write(regions, "eu", OTHER_SECOND)
    await write(regions, "eu", OTHER_THIRD)
    found = await findings(regions)
    assert (FAILED, "region ap (follower): another history than region eu") in found
    assert any(text.startswith("both stores were changed since") for level, text in found if level == FAILED)
    histories = [text for level, text in found if level == WARNING and text.startswith("history of region")]
    assert [text.split(",")[0] for text in histories] == [
        "history of region eu: generation 3",
        "history of region ap: generation 2",
    ]
