"""Settings from a store: which documents are adopted or rejected, and what that costs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from goatherd.errors import (
    ConfigurationError,
    ConflictError,
    GenerationError,
    MalformedIdentityError,
    ProviderAccessDeniedError,
    ProviderConfigurationError,
    SecretNotFoundError,
    SettingsError,
    SuccessionError,
    UnavailableError,
)
from goatherd.identity.anchor import AnchorWord
from goatherd.identity.document import IdentityDocument, Phase, encode_document
from goatherd.identity.remote_key import RemoteKey
from goatherd.identity.session import OwnedSession
from goatherd.identity.transitions import (
    activate_rotation,
    create_document,
    prepare_rotation,
    revoke_root,
    roll_back_rotation,
    with_phase,
)
from goatherd.providers.base import Call
from goatherd.providers.breaker import CAP
from goatherd.providers.memory import MemorySecretProvider
from goatherd.providers.values import CURRENT, Label, SecretValue, VersionId
from goatherd.settings.base import DBSettings
from goatherd.settings.store import CloudSecretSettings, settings_from_options

from .make import NOW, SECRET, CountingProvider, HandClock, settle, store_with

EVERY = timedelta(seconds=30)


def owned(session_id: str, owner: str | None = "root") -> OwnedSession:
    return OwnedSession.generate(session_id=session_id, owner=owner, now_ms=NOW)


A, B, C = owned("a" * 24), owned("b" * 24), owned("c" * 24)
FIRST = create_document(A, NOW)
PREPARED = prepare_rotation(FIRST, B, now_ms=NOW, rotation_id="r1", started_by="alice", stable_version="1")
PUBLISHED = with_phase(PREPARED, Phase.PUBLISHED, NOW)
ACTIVATED = activate_rotation(PUBLISHED, NOW)
STRANGER = replace(create_document(C, NOW), generation=99)


@pytest.fixture
async def provider() -> CountingProvider:
    return await store_with(FIRST)


@pytest.fixture
async def settings(provider: CountingProvider, clock: HandClock) -> AsyncIterator[CloudSecretSettings]:
    async with CloudSecretSettings(provider, SECRET, clock=clock, jitter=0) as settings:
        await settings.load()
        yield settings


def secret_text(session: OwnedSession) -> str:
    return str(session.to_secret_json()["privateKey"]["d"])


# --- loading --------------------------------------------------------------------------------------------------------


async def test_load_takes_the_identity_that_the_store_holds(settings: CloudSecretSettings) -> None:
    loaded = settings.settings
    assert (loaded.current, loaded.roots, loaded.document, loaded.trusted) == (A, (A.session,), FIRST, ())
    assert loaded.loaded_at_ms == NOW
    assert settings.status.generation == 1
    assert not settings.status.is_degraded


async def test_there_are_no_settings_before_the_first_load(provider: CountingProvider) -> None:
    settings = CloudSecretSettings(provider, SECRET)
    with pytest.raises(SettingsError, match="has not been loaded"):
        _ = settings.settings
    with pytest.raises(SettingsError):
        await settings.refresh()
    assert settings.status.generation is None


async def test_a_missing_secret_is_an_error_and_stays_missing() -> None:
    provider = CountingProvider()
    with pytest.raises(SecretNotFoundError):
        await CloudSecretSettings(provider, SECRET).load()
    with pytest.raises(SecretNotFoundError):
        await provider.versions(SECRET)
    assert provider.writes == 0


@pytest.mark.parametrize("raw", [b"{}", b"garbage", encode_document(FIRST)[:-40]])
async def test_a_broken_identity_is_an_error_at_start_and_is_left_as_it_is(
    provider: CountingProvider, raw: bytes
) -> None:
    await provider.put(raw)
    provider.writes = 0
    with pytest.raises(MalformedIdentityError, match=SECRET) as caught:
        await CloudSecretSettings(provider, SECRET).load()
    assert "no new identity" in caught.value.hint
    assert provider.writes == 0
    assert (await provider.read(SECRET)).value.reveal() == raw


@pytest.mark.parametrize("failure", [UnavailableError, ProviderAccessDeniedError])
async def test_a_store_that_cannot_be_read_is_an_error_at_start(
    provider: CountingProvider, failure: type[UnavailableError]
) -> None:
    provider.failures = [failure]
    with pytest.raises(failure):
        await CloudSecretSettings(provider, SECRET).load()
    assert provider.writes == 0


async def test_what_was_seen_before_a_restart_is_not_gone_back_behind(
    provider: CountingProvider, tmp_path: Path
) -> None:
    seen = tmp_path / "north/seen.json"
    pattern = str(tmp_path / "{org}/seen.json")

    def restarted(**options: bool) -> CloudSecretSettings:
        return CloudSecretSettings(provider, SECRET, seen=seen, **options)

    async with restarted() as settings:
        await settings.load()
        await provider.put(PREPARED)
        assert await settings.refresh() is True
    assert secret_text(A) not in seen.read_text()
    assert secret_text(B) not in seen.read_text()
    async with restarted() as settings:
        assert (await settings.load()).document == PREPARED

    await provider.put(FIRST)
    with pytest.raises(GenerationError, match="went back from 2 to 1"):
        await restarted().load()
    for stranger, advice in ((STRANGER, "--peer"), (replace(STRANGER, generation=1), "restored from a backup")):
        await provider.put(stranger)
        with pytest.raises(
            SuccessionError, match=r"another identity \(root c+\) than this server used last \(root b+, according to"
        ) as caught:
            await restarted().load()
        assert advice in caught.value.hint
    await provider.put(STRANGER)
    async with restarted(accept_identity=True) as settings:
        assert (await settings.load()).current == C
    async with restarted() as settings:
        assert (await settings.load()).current == C

    shared = CloudSecretSettings(provider, SECRET, seen=pattern)
    with pytest.raises(ConfigurationError, match="give an organization"):
        await shared.load()
    with pytest.raises(ConfigurationError):
        shared.for_org("../x")
    async with shared.for_org("south") as settings:
        await settings.load()
    assert (tmp_path / "south/seen.json").exists()


@pytest.mark.parametrize("raw", [b"", b"{}", b'{"generation": 1, "digest": "", "roots": [1], "revoked": []}'])
async def test_a_damaged_memory_of_what_was_seen_is_an_error_and_not_a_first_start(
    provider: CountingProvider, tmp_path: Path, raw: bytes
) -> None:
    seen = tmp_path / "seen.json"
    seen.write_bytes(raw)
    with pytest.raises(SettingsError, match="damaged"):
        await CloudSecretSettings(provider, SECRET, seen=seen).load()
    assert seen.read_bytes() == raw


@pytest.mark.parametrize("place", ["file/seen.json", "circle/seen.json"])
async def test_a_memory_that_cannot_be_read_is_an_error_and_not_a_first_start(
    provider: CountingProvider, tmp_path: Path, place: str
) -> None:
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(SettingsError, match="cannot read"):
        await CloudSecretSettings(provider, SECRET, seen=tmp_path / place).load()


async def test_a_memory_that_cannot_be_written_is_logged_once_no_reason_to_stop_and_tried_again(
    provider: CountingProvider, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place, seen = tmp_path / "place", tmp_path / "place/seen.json"

    async def remembered(settings: CloudSecretSettings) -> None:
        assert settings._remembering is not None
        await settings._remembering

    async with CloudSecretSettings(provider, SECRET, seen=seen) as settings:
        await settings.load()
        await remembered(settings)
        place.rename(tmp_path / "away")
        place.write_text("in the way")
        await provider.put(PREPARED)
        await settings.refresh()
        await remembered(settings)
        assert settings.settings.document.generation == 2
        await settings.refresh()
        await remembered(settings)
        assert caplog.text.count("settings.not_remembered") == 1
        place.unlink()
        await settings.refresh()
        await remembered(settings)
        assert json.loads(seen.read_text())["generation"] == 2


# --- refreshing -----------------------------------------------------------------------------------------------------


async def test_the_identity_is_swapped_at_the_next_interval_and_subscribers_are_told(
    settings: CloudSecretSettings, provider: CountingProvider, clock: HandClock
) -> None:
    told: list[DBSettings] = []
    forget = settings.subscribe(told.append)
    await settle()
    for document in (PREPARED, PUBLISHED, ACTIVATED):
        await provider.put(document)
        await clock.turn(EVERY)
    assert [one.document.phase for one in told] == [Phase.PREPARED, Phase.PUBLISHED, Phase.ACTIVATED]
    assert settings.settings.current == B
    assert settings.settings.roots == (A.session, B.session)
    forget_itself = settings.subscribe(lambda _: forget_itself())
    settings.subscribe(told.append)
    forget()
    forget()
    await provider.put(roll_back_rotation(ACTIVATED, FIRST, NOW, reason="test"))
    await clock.turn(EVERY)
    assert settings.settings.current == A
    assert len(told) == 4, "a subscriber that ends its subscription delays no other"


async def test_each_interval_reads_the_store_once_and_an_unchanged_version_is_not_parsed(
    settings: CloudSecretSettings, provider: CountingProvider, clock: HandClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def must_not_be_called(raw: bytes) -> IdentityDocument:
        raise AssertionError("parsed again")

    monkeypatch.setattr("goatherd.settings.store.decode_document", must_not_be_called)
    await settle()
    provider.reads = 0
    for _ in range(10):
        await clock.turn(EVERY)
    assert provider.reads == 10
    assert provider.writes == 0
    assert settings.status.age == timedelta(0)


async def test_waits_are_spread_around_the_interval_by_the_jitter(provider: CountingProvider, clock: HandClock) -> None:
    async with CloudSecretSettings(provider, SECRET, clock=clock, jitter=0.2) as settings:
        await settings.load()
        await settle()
        for _ in range(40):
            await clock.turn(EVERY * 1.2)
    assert all(EVERY * 0.8 <= wait <= EVERY * 1.2 for wait in clock.waits)
    assert len(set(clock.waits)) > 20
    assert len(clock.waits) == 41


async def test_told_at_once_is_seen_at_once(settings: CloudSecretSettings, provider: CountingProvider) -> None:
    assert await settings.refresh() is False
    await provider.put(PREPARED)
    assert await settings.refresh() is True
    assert await settings.refresh() is False
    assert settings.settings.document == PREPARED


async def test_calls_during_a_look_share_the_next_one_and_see_what_they_were_told_of(
    settings: CloudSecretSettings, provider: CountingProvider
) -> None:
    provider.reads, provider.hold = 0, asyncio.Event()
    under_way = asyncio.create_task(settings.refresh())
    await settle()
    await provider.put(PREPARED)
    others = [asyncio.create_task(settings.refresh()) for _ in range(20)]
    await settle()
    assert provider.reads == 1
    provider.hold.set()
    await under_way
    assert len({await other for other in others}) == 1
    assert provider.reads == 2
    assert settings.settings.document == PREPARED


async def test_a_caller_that_goes_away_does_not_take_the_answer_from_the_others(
    settings: CloudSecretSettings, provider: CountingProvider
) -> None:
    await provider.put(PREPARED)
    provider.hold = asyncio.Event()
    hasty, patient = (asyncio.create_task(settings.refresh()) for _ in range(2))
    await settle()
    hasty.cancel()
    await settle()
    provider.hold.set()
    await patient
    assert settings.settings.document == PREPARED
    with contextlib.suppress(asyncio.CancelledError):
        await hasty


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (b"garbage", "identity.malformed"),
        (encode_document(PREPARED)[:-9], "identity.malformed"),
        (encode_document(STRANGER), "identity.broken_succession"),
        (encode_document(replace(FIRST, generation=0)), "identity.generation_went_back"),
        (encode_document(replace(FIRST, extra={"x": 1})), "identity.generation_went_back"),
        (encode_document(replace(FIRST, generation=2, roots=(A.session, C.session))), "identity.broken_succession"),
    ],
    ids=["garbage", "truncated", "stranger", "older", "same generation", "root slipped in"],
)
async def test_what_is_refused_leaves_the_identity_in_use_and_is_reported(
    settings: CloudSecretSettings,
    provider: CountingProvider,
    clock: HandClock,
    value: bytes,
    code: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    told: list[DBSettings] = []
    settings.subscribe(told.append)
    await settle()
    version = await provider.put(value)
    for _ in range(3):
        await clock.turn(EVERY)
    assert settings.settings.document == FIRST
    assert told == []
    status = settings.status
    assert status.is_degraded
    assert status.failures == 3
    assert status.age == 3 * EVERY
    assert status.last_refusal is not None
    assert (status.last_refusal.code, status.last_refusal.version) == (code, version)
    assert len([record for record in caplog.records if record.levelno >= logging.ERROR]) == 1
    assert secret_text(A) not in caplog.text + repr(status)

    await provider.put(PREPARED)
    await clock.turn(EVERY)
    assert settings.settings.document == PREPARED
    assert not settings.status.is_degraded
    assert settings.status.last_refusal is not None


async def test_a_refused_version_is_parsed_once(
    settings: CloudSecretSettings, provider: CountingProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    await provider.put(STRANGER)
    assert await settings.refresh() is False
    monkeypatch.setattr("goatherd.settings.store.decode_document", None)
    for _ in range(3):
        assert await settings.refresh() is False
    assert settings.status.failures == 4


async def test_the_operators_word_lets_one_stranger_in_and_no_second(
    settings: CloudSecretSettings, provider: CountingProvider
) -> None:
    await provider.put(replace(create_document(C, NOW), generation=98))
    assert await settings.refresh() is False
    settings.accept_next()
    assert await settings.refresh() is True
    assert settings.settings.current == C
    await provider.put(replace(create_document(B, NOW), generation=99))
    assert await settings.refresh() is False
    assert settings.settings.current == C


@pytest.mark.parametrize("is_known", [True, False], ids=["known", "first start"])
async def test_an_acceptance_that_the_start_did_not_need_lets_no_stranger_in_later(
    provider: CountingProvider, tmp_path: Path, is_known: bool
) -> None:
    seen = tmp_path / "seen.json"
    if is_known:
        async with CloudSecretSettings(provider, SECRET, seen=seen) as settings:
            await settings.load()
    await provider.put(PREPARED)
    async with CloudSecretSettings(provider, SECRET, seen=seen, accept_identity=True) as settings:
        await settings.load()
        await provider.put(PUBLISHED)
        assert await settings.refresh() is True
        await provider.put(STRANGER)
        assert await settings.refresh() is False
        assert settings.settings.document == PUBLISHED


async def test_the_operators_word_is_used_up_by_a_write_of_this_server(
    settings: CloudSecretSettings, provider: CountingProvider
) -> None:
    settings.accept_next()
    assert await settings.update(document=PREPARED) is True
    await provider.put(STRANGER)
    assert await settings.refresh() is False
    assert settings.settings.document == PREPARED


async def test_an_acceptance_reaches_organizations_of_the_start_and_none_that_is_opened_later(
    provider: CountingProvider, tmp_path: Path
) -> None:
    pattern = str(tmp_path / "{org}/seen.json")
    before = CloudSecretSettings(provider, SECRET, seen=pattern)
    for org in ("north", "south", "east"):
        async with before.for_org(org) as settings:
            await settings.load()
    await provider.put(STRANGER)
    server = CloudSecretSettings(provider, SECRET, seen=pattern, accept_identity=True)
    async with server.for_org("north") as north, server.for_org("south") as south:
        assert (await north.load()).current == C
        assert (await south.load()).current == C
        async with server.for_org("east") as east:
            with pytest.raises(SuccessionError):
                await east.load()
        server.accept_next()
        async with server.for_org("east") as east:
            assert (await east.load()).current == C
        await provider.put(replace(create_document(B, NOW), generation=100))
        for settings in (north, south):
            assert await settings.refresh() is False


async def test_a_revocation_is_followed_at_once_and_only_with_its_proof(
    settings: CloudSecretSettings, provider: CountingProvider
) -> None:
    replaced = revoke_root(FIRST, A.id, NOW, reason="stolen", successor=C)
    bare = replace(replaced.revoked[0], successor=None, proof=None)
    await provider.put(replace(replaced, revoked=(bare,)))
    assert await settings.refresh() is False
    assert settings.settings.current == A
    await provider.put(replaced)
    assert await settings.refresh() is True
    assert settings.settings.current == C
    await provider.put(replace(FIRST, generation=99))
    assert await settings.refresh() is False
    assert settings.settings.current == C


async def test_an_unreachable_store_leaves_the_identity_in_use_and_the_loop_goes_on(
    settings: CloudSecretSettings, provider: CountingProvider, clock: HandClock
) -> None:
    await settle()
    provider.failures = [UnavailableError, ProviderAccessDeniedError, SecretNotFoundError]
    for failures in (1, 2, 3):
        await clock.turn(EVERY if failures == 1 else CAP)
        assert settings.status.failures == failures
        assert settings.settings.document == FIRST
    await provider.put(PREPARED)
    await clock.turn(CAP)
    assert settings.settings.document == PREPARED
    assert settings.status.failures == 0
    assert settings.status.age == timedelta(0)


async def test_a_subscriber_that_fails_does_not_keep_the_others_on_the_old_key(
    settings: CloudSecretSettings, provider: CountingProvider, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[DBSettings] = []

    def fail(_: DBSettings) -> None:
        raise RuntimeError("broken subscriber")

    settings.subscribe(fail)
    settings.subscribe(told.append)
    await provider.put(PREPARED)
    assert await settings.refresh() is True
    assert len(told) == 1
    assert "settings.subscriber_failed" in caplog.text


async def test_leaving_ends_the_loop_and_a_look_under_way(provider: CountingProvider, clock: HandClock) -> None:
    async with CloudSecretSettings(provider, SECRET, clock=clock) as settings:
        async with settings:
            await settings.load()
        provider.hold = asyncio.Event()
        look = asyncio.create_task(settings.refresh())
        again = asyncio.create_task(settings.refresh())
        await settle()
    assert await asyncio.gather(look, again, return_exceptions=True)
    assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []


# --- writing --------------------------------------------------------------------------------------------------------


async def test_ten_thousand_new_user_sessions_cause_no_write_and_no_read(
    settings: CloudSecretSettings, provider: CountingProvider
) -> None:
    user = owned("u", None).session
    provider.reads = 0
    for number in range(10_000):
        written = await settings.update(trusted_sessions=[replace(user, id=f"user{number}")])
        assert written is False
    assert await settings.update(document=settings.settings.document) is False
    assert (provider.writes, provider.reads) == (0, 0)
    assert settings.settings.trusted == ()


async def test_a_changed_identity_is_written_once_by_compare_and_swap(
    settings: CloudSecretSettings, provider: CountingProvider
) -> None:
    told: list[DBSettings] = []
    settings.subscribe(told.append)
    assert await settings.update(document=PREPARED) is True
    assert await settings.update(document=PREPARED) is False
    assert provider.writes == 1
    assert (await provider.read(SECRET)).value.reveal() == encode_document(PREPARED)
    assert [one.document for one in told] == [PREPARED]
    assert await settings.refresh() is False
    assert await settings.update(document=PUBLISHED) is True


async def test_who_writes_second_is_told_and_has_changed_nothing(
    settings: CloudSecretSettings, provider: CountingProvider
) -> None:
    others = prepare_rotation(FIRST, C, now_ms=NOW, rotation_id="r2", started_by="bob", stable_version="1")
    await provider.put(others)
    with pytest.raises(ConflictError):
        await settings.update(document=PREPARED)
    assert (await provider.read(SECRET)).value.reveal() == encode_document(others)
    assert settings.settings.document == others


async def test_a_write_whose_answer_got_lost_is_found_to_be_done(
    settings: CloudSecretSettings, provider: CountingProvider
) -> None:
    provider.is_answer_lost = True
    assert await settings.update(document=PREPARED) is True
    assert settings.settings.document == PREPARED
    assert await settings.refresh() is False


async def test_an_identity_that_nodes_would_refuse_is_not_written(
    settings: CloudSecretSettings, provider: CountingProvider
) -> None:
    with pytest.raises(GenerationError):
        await settings.update(document=STRANGER)
    with pytest.raises(GenerationError):
        await settings.update(document=PUBLISHED)
    with pytest.raises(SuccessionError):
        await settings.update(document=replace(STRANGER, generation=2))
    assert provider.writes == 0


async def test_a_refresh_during_a_write_never_goes_back(
    settings: CloudSecretSettings, provider: CountingProvider
) -> None:
    provider.hold = asyncio.Event()
    look = asyncio.create_task(settings.refresh())
    await settle()
    provider_read_before_write = provider.reads
    assert await settings.update(document=PREPARED) is True
    provider.hold.set()
    await look
    assert provider_read_before_write == provider.reads - 1
    assert settings.settings.document == PREPARED
    assert settings.status.failures == 0


# --- organizations and options ----------------------------------------------------------------------------------------


async def test_each_organization_has_an_identity_of_its_own() -> None:
    provider = MemorySecretProvider()
    for org, session in (("north", A), ("south", B)):
        await provider.create(f"goatdb/{org}/root", encode_document(create_document(session, NOW)))
    cluster = CloudSecretSettings(provider, "goatdb/{org}/root")
    async with cluster.for_org("north") as north, cluster.for_org("south") as south:
        assert (await north.load()).current == A
        assert (await south.load()).current == B
    with pytest.raises(ConfigurationError):
        cluster.for_org("../other")
    with pytest.raises(ProviderConfigurationError, match="name an organization"):
        await cluster.load()
    single = CloudSecretSettings(provider, "goatdb/north/root")
    assert single.for_org("anything") is single


async def test_organizations_that_come_at_once_share_a_store_that_takes_time_to_open() -> None:
    class Slow(MemorySecretProvider):
        is_open = False

        async def _open(self) -> None:
            await asyncio.sleep(0)
            self.is_open = True

        async def _close(self) -> None:
            self.is_open = False

        async def _read(self, call: Call, at: Label | VersionId) -> SecretValue:
            assert self.is_open
            return await super()._read(call, at)

    slow = Slow()
    async with slow:
        await slow.create(SECRET, encode_document(FIRST))
    single = CloudSecretSettings(slow, SECRET)

    async def use(org: str) -> OwnedSession:
        async with single.for_org(org) as settings:
            return (await settings.load()).current

    assert await asyncio.gather(use("north"), use("south")) == [A, A]
    assert not slow.is_open


async def test_neither_settings_nor_their_repr_nor_the_log_show_a_key(
    settings: CloudSecretSettings, provider: CountingProvider, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    for document in (PREPARED, PUBLISHED, ACTIVATED):
        await provider.put(document)
        await settings.refresh()
    text = caplog.text + repr(settings.settings) + repr(settings.status) + repr(settings)
    assert "settings.changed" in text
    assert json.dumps(settings.status.source) == f'"memory secret {SECRET}"'
    for session in (A, B):
        assert secret_text(session) not in text


def test_an_interval_of_nothing_and_a_jitter_above_one_are_refused() -> None:
    provider = MemorySecretProvider()
    with pytest.raises(ConfigurationError):
        CloudSecretSettings(provider, SECRET, refresh_interval=timedelta(0))
    with pytest.raises(ConfigurationError):
        CloudSecretSettings(provider, SECRET, jitter=1.5)


async def test_the_secret_and_its_provider_are_named_in_several_ways(tmp_path: Path):
    provider = MemorySecretProvider()
    await provider.create(SECRET, encode_document(FIRST))
    for settings in (CloudSecretSettings(SECRET, provider), CloudSecretSettings(provider, SECRET)):
        assert (await settings.load()).current == A
    named = CloudSecretSettings(str(tmp_path / "root"), "file")
    assert named._provider.scheme == "file"
    assert CloudSecretSettings("x", {"provider": "aws", "region": "eu-west-1"})._provider.address.region == "eu-west-1"
    assert settings_from_options("aws://eu-west-1/goatdb/root")._secret_id == "goatdb/root"
    for wrong in ((provider, provider), (1, "file"), ("x", 1)):
        with pytest.raises(ConfigurationError, match="needs the id of a secret"):
            CloudSecretSettings(*wrong)


async def test_settings_for_an_unmodified_server_keep_the_identity_when_the_cluster_turns_to_direct_mode(
    provider: CountingProvider, clock: HandClock
) -> None:
    key = RemoteKey(C.session.public_key, lambda key, data: C.signer.sign(data))
    anchor = OwnedSession(session=C.session, signer=key)
    word = AnchorWord(session=C.session)
    direct = prepare_rotation(
        FIRST, anchor, now_ms=NOW, rotation_id="r1", started_by="alice", stable_version="1", word=word
    )
    async with CloudSecretSettings(SECRET, provider, clock=clock, allows_direct=False) as settings:
        await settings.load()
        await provider.write(SECRET, encode_document(direct), label=CURRENT, expected="1")
        assert await settings.refresh() is False
        assert settings.settings.document == FIRST
        assert settings.status.last_refusal is not None
        assert settings.status.last_refusal.code == "identity.direct"
    async with CloudSecretSettings(SECRET, provider, clock=clock) as ours:
        assert (await ours.load()).document == direct
