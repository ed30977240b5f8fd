"""A start without the store: from the last known good identity or not at all, and never with a new identity."""

from __future__ import annotations

import base64
import json
import logging
import os
import secrets
import stat
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from goatherd.crypto.sealed import open_sealed
from goatherd.errors import (
    ConfigurationError,
    DegradedError,
    GoatherdError,
    InvalidSealError,
    LastKnownGoodError,
    MalformedIdentityError,
    ProviderAccessDeniedError,
    ProviderError,
    SecretNotFoundError,
    SuccessionError,
    ThrottledError,
    UnavailableError,
    VersionDisabledError,
)
from goatherd.identity.document import IdentityDocument, Phase, encode_document
from goatherd.identity.session import OwnedSession
from goatherd.identity.transitions import create_document, prepare_rotation, with_phase
from goatherd.providers.breaker import CAP, GAP
from goatherd.settings.base import Origin
from goatherd.settings.last_known_good import KeySource, LastKnownGood
from goatherd.settings.store import CloudSecretSettings

from .make import NOW, SECRET, CountingProvider, HandClock, settle, store_with

DAY = timedelta(days=1)
KEY = secrets.token_bytes(32)


def owned(session_id: str) -> OwnedSession:
    return OwnedSession.generate(session_id=session_id, owner="root", now_ms=NOW)


A, B, C = owned("a" * 24), owned("b" * 24), owned("c" * 24)
FIRST = create_document(A, NOW)
PREPARED = prepare_rotation(FIRST, B, now_ms=NOW, rotation_id="r1", started_by="alice", stable_version="1")
PUBLISHED = with_phase(PREPARED, Phase.PUBLISHED, NOW)
STRANGER = replace(create_document(C, NOW), generation=99)


@pytest.fixture
async def provider() -> CountingProvider:
    return await store_with(FIRST)


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "keys/seal"
    path.parent.mkdir()
    path.write_text(base64.b64encode(KEY).decode() + "\n")
    path.chmod(0o600)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "copy/identity.sealed"


Make = Callable[..., CloudSecretSettings]


@pytest.fixture
def make(provider: CountingProvider, clock: HandClock, key: Path, path: Path) -> Make:
    def make(
        *,
        secret: str = SECRET,
        key_at: str | None = None,
        store: str = "memory:///x/goatdb/root",
        max_age: timedelta = DAY,
        copy: bool = True,
        **options: object,
    ) -> CloudSecretSettings:
        source = KeySource.from_text(key_at or f"file:{key}")
        good = LastKnownGood(path, source, max_age=max_age, store=store) if copy else None
        return CloudSecretSettings(
            provider,
            secret,
            clock=clock,
            jitter=0,
            last_known_good=good,
            **options,  # type: ignore[arg-type]
        )

    return make


@pytest.fixture
async def copied(make: Make, path: Path) -> Path:
    """Return a sealed copy that a server has left."""
    async with make() as settings:
        await settings.load()
    assert path.exists()
    return path


def away(provider: CountingProvider, kind: type[ProviderError] = UnavailableError) -> None:
    provider.failures = [kind] * 1000


async def refused(settings: CloudSecretSettings) -> GoatherdError:
    with pytest.raises(GoatherdError) as caught:
        async with settings:
            await settings.load()
    return caught.value


# --- what is on the disk --------------------------------------------------------------------------------------------


async def test_the_copy_shows_nothing_of_the_key_and_is_the_servers_alone(copied: Path) -> None:
    raw = copied.read_bytes()
    document = encode_document(FIRST)
    secret = str(A.to_secret_json()["privateKey"]["d"]).encode()
    sealed = base64.b64decode(json.loads(raw)["sealed"])
    for text in (raw, sealed):
        assert secret not in text
        assert base64.urlsafe_b64decode(secret + b"==") not in text
        assert not any(document[at : at + 24] in text for at in range(0, len(document) - 24, 24))
    assert stat.S_IMODE(copied.stat().st_mode) == 0o600
    assert [entry.name for entry in copied.parent.iterdir()] == [copied.name], "nothing temporary is left"


async def test_every_write_has_a_nonce_of_its_own(make: Make, path: Path) -> None:
    nonces = set()
    for _ in range(5):
        async with make() as settings:
            await settings.load()
        nonces.add(base64.b64decode(json.loads(path.read_text())["sealed"])[:12])
    assert len(nonces) == 5


async def test_without_the_option_nothing_is_written_and_a_start_without_the_store_fails(
    make: Make, provider: CountingProvider, path: Path
) -> None:
    async with make(copy=False) as settings:
        await settings.load()
    assert not path.exists()
    away(provider)
    assert isinstance(await refused(make(copy=False)), UnavailableError)


async def test_the_copy_follows_the_identity_and_its_stamp_the_stores_word(
    make: Make, provider: CountingProvider, clock: HandClock, path: Path
) -> None:
    async def written() -> dict[str, object]:
        remembering = settings._remembering
        assert remembering is not None
        await remembering
        return dict(json.loads(path.read_text()))

    async with make() as settings:
        await settings.load()
        first = await written()
        assert (first["generation"], first["confirmedAt"]) == (1, NOW)
        await provider.put(PREPARED)
        await settings.refresh()
        assert (await written())["generation"] == 2
        before = path.read_bytes()
        await clock.turn(DAY / 24 - timedelta(seconds=1))
        await settings.refresh()
        assert (await written()) == json.loads(before), "not at every poll"
        await clock.turn(timedelta(seconds=1))
        await settings.refresh()
        assert (await written())["confirmedAt"] == clock.now_ms()


async def test_a_stamp_from_a_clock_that_was_ahead_is_replaced_once_it_is_right_again(
    make: Make, provider: CountingProvider, clock: HandClock, path: Path
) -> None:
    await clock.turn(DAY)
    async with make() as settings:
        await settings.load()
        assert settings._remembering is not None
        await settings._remembering
        await clock.turn(-DAY)
        await settings.refresh()
    assert json.loads(path.read_text())["confirmedAt"] == NOW
    away(provider)
    async with make() as settings:
        assert (await settings.load()).current == A


async def test_a_copy_that_cannot_be_written_is_logged_and_no_reason_to_stop(
    make: Make, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path.parent.write_text("in the way")
    async with make() as settings:
        assert (await settings.load()).current == A
    assert "settings.not_sealed" in caplog.text


# --- a start without the store ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [UnavailableError, ThrottledError])
async def test_a_node_starts_from_the_copy_while_the_store_gives_no_answer_and_says_so(
    make: Make,
    provider: CountingProvider,
    clock: HandClock,
    copied: Path,
    kind: type[ProviderError],
    caplog: pytest.LogCaptureFixture,
) -> None:
    await clock.turn(timedelta(hours=2))
    away(provider, kind)
    async with make() as settings:
        loaded = await settings.load()
        assert loaded.document == FIRST
        status = settings.status
        assert status.origin == Origin.LAST_KNOWN_GOOD == "last known good"
        assert status.is_degraded
        assert status.age == timedelta(hours=2), "since the store's last word, not since the start"
        assert status.last_refusal is not None
        assert status.last_refusal.code == kind.code
        assert str(copied) in loaded.source
    assert "settings.last_known_good" in caplog.text
    assert "age=7200s" in caplog.text


async def test_a_degraded_node_writes_nothing(
    make: Make, provider: CountingProvider, clock: HandClock, copied: Path
) -> None:
    before = copied.read_bytes()
    provider.failures = [UnavailableError]
    async with make() as settings:
        await settings.load()
        with pytest.raises(DegradedError):
            await settings.update(document=PREPARED)
        assert provider.writes == 0
        assert copied.read_bytes() == before, "what was not confirmed is not stamped anew"
        await clock.turn(GAP)
        assert await settings.refresh() is False
        assert await settings.update(document=PREPARED) is True


async def test_when_the_store_is_back_the_node_is_as_any_other(
    make: Make, provider: CountingProvider, clock: HandClock, copied: Path, caplog: pytest.LogCaptureFixture
) -> None:
    provider.failures = [UnavailableError]
    async with make() as settings:
        await settings.load()
        told: list[IdentityDocument] = []
        settings.subscribe(lambda new: told.append(new.document))
        await settle()
        await clock.turn(CAP)
        status = settings.status
        assert (status.origin, status.is_degraded, status.age) == (Origin.STORE, False, timedelta(0))
        assert settings.settings.confirmed_at_ms is None
        assert told == [], "it is the same identity"
        await provider.put(PREPARED)
        await settings.refresh()
        assert told == [PREPARED]
    assert "settings.recovered" in caplog.text


async def test_what_the_store_holds_after_the_outage_must_follow_from_the_copy(
    make: Make, provider: CountingProvider, clock: HandClock, copied: Path
) -> None:
    provider.failures = [UnavailableError]
    async with make() as settings:
        await settings.load()
        await provider.put(STRANGER)
        await clock.turn(GAP)
        await settings.refresh()
        assert settings.settings.document == FIRST
        assert settings.status.origin == Origin.LAST_KNOWN_GOOD
        assert settings.status.last_refusal is not None
        assert settings.status.last_refusal.code == SuccessionError.code


# --- where it must not be used ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [ProviderAccessDeniedError, SecretNotFoundError, VersionDisabledError])
async def test_a_store_that_answers_no_is_believed(
    make: Make, provider: CountingProvider, copied: Path, kind: type[ProviderError]
) -> None:
    away(provider, kind)
    assert type(await refused(make())) is kind


@pytest.mark.parametrize("value", [b"garbage", encode_document(STRANGER)])
async def test_an_identity_that_is_refused_is_not_replaced_by_the_copy(
    make: Make, provider: CountingProvider, copied: Path, tmp_path: Path, value: bytes
) -> None:
    seen = tmp_path / "seen.json"
    async with make(seen=seen) as settings:
        await settings.load()
    await provider.put(value)
    assert isinstance(await refused(make(seen=seen)), MalformedIdentityError | SuccessionError)


async def test_without_a_copy_the_stores_failure_is_told_and_nothing_is_made(
    make: Make, provider: CountingProvider, path: Path
) -> None:
    away(provider)
    assert isinstance(await refused(make()), UnavailableError)
    assert not path.exists()
    assert provider.writes == 0


async def test_a_copy_that_is_too_old_is_refused(
    make: Make, provider: CountingProvider, clock: HandClock, copied: Path
) -> None:
    away(provider)
    await clock.turn(DAY)
    async with make() as settings:
        await settings.load()
    await clock.turn(timedelta(milliseconds=1))
    error = await refused(make())
    assert isinstance(error, LastKnownGoodError)
    assert "24.0 h old" in str(error)
    assert "bad day" in str(error), "why the store did not answer is told as well"
    async with make(max_age=2 * DAY) as settings:
        await settings.load()


async def test_a_copy_from_the_future_is_refused_so_that_no_clock_makes_one_last_indefinitely(
    make: Make, provider: CountingProvider, clock: HandClock, path: Path
) -> None:
    await clock.turn(timedelta(hours=1))
    async with make() as settings:
        await settings.load()
    away(provider)
    await clock.turn(timedelta(hours=-1))
    assert "future" in str(await refused(make()))


async def test_a_copy_under_another_key_is_refused(
    make: Make, provider: CountingProvider, copied: Path, key: Path
) -> None:
    key.write_text(secrets.token_hex(32))
    away(provider)
    error = await refused(make())
    assert isinstance(error, LastKnownGoodError)
    assert "another key" in str(error)


async def test_a_copy_from_another_store_or_of_another_secret_is_refused(
    make: Make, provider: CountingProvider, copied: Path
) -> None:
    away(provider)
    assert "another store" in str(await refused(make(store="memory:///elsewhere/goatdb/root")))
    assert "copy of another secret" in str(await refused(make(secret="goatdb/other")))


@pytest.mark.parametrize(
    ("member", "value"),
    [("generation", 2), ("confirmedAt", NOW + 1), ("secret", "goatdb/other"), ("format", "x"), ("more", 1)],
)
async def test_what_stands_in_the_clear_is_under_the_seal(
    make: Make, provider: CountingProvider, copied: Path, member: str, value: object
) -> None:
    copied.write_text(json.dumps(json.loads(copied.read_text()) | {member: value}))
    away(provider)
    secret = value if member == "secret" else SECRET
    assert isinstance(await refused(make(secret=secret)), LastKnownGoodError)


async def test_a_copy_with_any_bit_changed_is_refused_and_left_as_it_is(
    make: Make, provider: CountingProvider, copied: Path
) -> None:
    good = copied.read_bytes()
    away(provider)
    for at in range(0, len(good), 37):
        damaged = good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :]
        copied.write_bytes(damaged)
        error = await refused(make())
        assert isinstance(error, LastKnownGoodError), at
        assert "no new identity" in error.hint
        assert copied.read_bytes() == damaged
    assert provider.writes == 0


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"\xff", b"x" * 500_000, b"{}", b'{"sealed": "AAAA"}'])
async def test_a_copy_that_is_none_is_refused(make: Make, provider: CountingProvider, copied: Path, raw: bytes) -> None:
    copied.write_bytes(raw)
    away(provider)
    assert "damaged" in str(await refused(make()))


async def test_a_place_that_cannot_be_read_is_an_error_and_not_an_absence(
    make: Make, provider: CountingProvider, path: Path
) -> None:
    away(provider)
    path.mkdir(parents=True)
    assert isinstance(await refused(make()), LastKnownGoodError)
    path.rmdir()
    path.parent.rmdir()
    path.parent.write_text("")
    assert isinstance(await refused(make()), LastKnownGoodError)


async def test_an_older_copy_that_was_put_back_does_not_lead_back(
    make: Make, provider: CountingProvider, copied: Path, tmp_path: Path
) -> None:
    older, seen = copied.read_bytes(), tmp_path / "seen.json"
    await provider.put(PREPARED)
    async with make(seen=seen) as settings:
        assert (await settings.load()).document == PREPARED
    copied.write_bytes(older)
    away(provider)
    for accept in (False, True):
        error = await refused(make(seen=seen, accept_identity=accept))
        assert isinstance(error, LastKnownGoodError)
        assert "went back from 2 to 1" in str(error)


async def test_an_acceptance_is_not_spent_on_a_copy(
    make: Make, provider: CountingProvider, clock: HandClock, copied: Path
) -> None:
    provider.failures = [UnavailableError]
    async with make(accept_identity=True) as settings:
        await settings.load()
        await provider.put(STRANGER)
        await clock.turn(GAP)
        await settings.refresh()
        assert settings.settings.current == C


async def test_an_acceptance_is_spent_once_the_store_has_confirmed_the_copy(
    make: Make, provider: CountingProvider, clock: HandClock, copied: Path
) -> None:
    provider.failures = [UnavailableError]
    async with make(accept_identity=True) as settings:
        await settings.load()
        await clock.turn(GAP)
        assert await settings.refresh() is False
        assert settings.status.origin is Origin.STORE
        await provider.put(STRANGER)
        assert await settings.refresh() is False
        assert settings.settings.current == A


# --- the key --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666])
async def test_a_key_that_others_can_read_or_change_is_refused_at_every_start(
    make: Make, provider: CountingProvider, key: Path, mode: int
) -> None:
    key.chmod(mode)
    error = await refused(make())
    assert isinstance(error, ConfigurationError)
    assert "chmod 0600" in error.hint
    assert provider.reads == 0, "it shows at the first start, not in the outage"


async def test_a_key_beside_the_copy_is_refused(make: Make, path: Path, key: Path) -> None:
    path.parent.mkdir()
    beside = path.with_name("seal")
    beside.write_bytes(key.read_bytes())
    beside.chmod(0o600)
    assert "in the same directory as the copy" in str(await refused(make(key_at=f"file:{beside}")))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hunter2",
        "x" * 32,
        "0" * 64,
        base64.b64encode(bytes(32)).decode(),
        base64.b64encode(KEY[:31]).decode(),
        base64.b64encode(KEY + b"x").decode(),
        KEY.hex()[:-1] + "g",
    ],
    ids=["nothing", "a word", "letters", "zeros", "zeros in base64", "a byte short", "a byte long", "not hexadecimal"],
)
async def test_what_is_no_key_is_refused_and_not_quoted(make: Make, key: Path, text: str) -> None:
    key.write_text(text)
    error = await refused(make())
    assert isinstance(error, ConfigurationError)
    assert "openssl rand -base64 32" in error.hint
    assert not text or text not in f"{error} {error.hint}"


@pytest.mark.parametrize(
    "text",
    [KEY.hex(), base64.b64encode(KEY).decode(), base64.urlsafe_b64encode(KEY).decode().rstrip("=") + "\n"],
    ids=["hexadecimal", "base64", "base64url with a newline"],
)
async def test_the_key_comes_from_a_file_the_environment_or_a_systemd_credential(
    make: Make, provider: CountingProvider, key: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    key.write_text(text)
    monkeypatch.setenv("SEAL_KEY", text)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(key.parent))
    async with make() as settings:
        await settings.load()
    away(provider)
    for place in ("env:SEAL_KEY", "credential:seal", f"file:{key}"):
        async with make(key_at=place) as settings:
            assert (await settings.load()).current == A


async def test_a_systemd_credential_may_show_its_acl_as_the_groups_bits_but_not_the_worlds(
    make: Make, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(key.parent))
    key.chmod(0o440)
    async with make(key_at="credential:seal") as settings:
        await settings.load()
    key.chmod(0o444)
    assert "other users" in str(await refused(make(key_at="credential:seal")))


async def test_a_key_that_is_not_there_is_an_error(make: Make, key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    assert "not set" in str(await refused(make(key_at="env:GOATHERD_NO_SUCH_KEY")))
    assert "LoadCredential" in (await refused(make(key_at="credential:seal"))).hint
    assert "cannot be read" in str(await refused(make(key_at=f"file:{key}x")))
    assert "not a regular file" in str(await refused(make(key_at="file:/")))
    os.mkfifo(key.with_name("pipe"), 0o600)
    assert "not a regular file" in str(await refused(make(key_at=f"file:{key.with_name('pipe')}")))


@pytest.mark.parametrize(
    "text",
    ["", "file:relative", "env:", "env:A B", "credential:../x", "credential:..", "x:y", KEY.hex()],
    ids=["nothing", "relative", "no name", "a space", "up", "up only", "another kind", "the key itself"],
)
def test_a_place_that_is_none_is_refused_and_not_quoted(text: str) -> None:
    """An operator may have written the key itself in place of the location of the key."""
    with pytest.raises(ConfigurationError) as caught:
        KeySource.from_text(text)
    assert text in ("", "env:") or text not in f"{caught.value} {caught.value.hint}"


def test_no_age_at_all_is_refused(key: Path, path: Path) -> None:
    with pytest.raises(ConfigurationError):
        LastKnownGood(path, KeySource.from_text(f"file:{key}"), max_age=timedelta(0))


# --- organizations, and nothing leaks ---------------------------------------------------------------------------------


async def test_each_organization_has_a_copy_of_its_own(
    provider: CountingProvider, clock: HandClock, key: Path, tmp_path: Path
) -> None:
    copies = LastKnownGood(tmp_path / "copies/{org}.sealed", KeySource.from_text(f"file:{key}"))
    cluster = CloudSecretSettings(provider, "goatdb/{org}/root", clock=clock, last_known_good=copies)
    with pytest.raises(ConfigurationError, match="give an organization"):
        await cluster.load()
    for org, session in (("north", A), ("south", B)):
        await provider.create(f"goatdb/{org}/root", encode_document(create_document(session, NOW)))
        async with cluster.for_org(org) as settings:
            await settings.load()
    away(provider)
    await clock.turn(CAP)
    for org, session in (("north", A), ("south", B)):
        async with cluster.for_org(org) as settings:
            assert (await settings.load()).current == session
    (tmp_path / "copies/south.sealed").write_bytes((tmp_path / "copies/north.sealed").read_bytes())
    assert isinstance(await refused(cluster.for_org("south")), LastKnownGoodError)


async def test_neither_key_is_in_a_log_a_status_an_error_or_a_repr(
    make: Make, provider: CountingProvider, clock: HandClock, copied: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    away(provider)
    async with make() as settings:
        await settings.load()
        await settings.refresh()
        texts = [repr(settings.settings), repr(settings.status), repr(settings._copy), repr(vars(settings._copy))]
    copied.write_bytes(copied.read_bytes()[:-60])
    error = await refused(make())
    texts += [str(error), error.hint, repr(error), caplog.text, repr(error.__cause__), repr(error.__context__)]
    for secret in (KEY.hex(), base64.b64encode(KEY).decode(), repr(KEY), str(A.to_secret_json()["privateKey"]["d"])):
        assert not any(secret in text for text in texts)


def test_the_seal_itself_tells_another_key_and_other_data_apart_from_nothing() -> None:
    with pytest.raises(InvalidSealError):
        open_sealed(b"", key=KEY, associated=b"")
