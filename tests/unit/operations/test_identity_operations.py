"""Init, export, labels and the audit trail, called from a Python program with objects that it has opened."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from goatherd.audit.records import Anchors, Head
from goatherd.errors import (
    AuditBrokenError,
    ConfigurationError,
    IdentityError,
    IdentityExistsError,
    MalformedIdentityError,
    ProviderAccessDeniedError,
    UnavailableError,
)
from goatherd.operations.audit import read_trail, verify_trail
from goatherd.operations.export import export_settings
from goatherd.operations.identity_store import Store
from goatherd.operations.init import init_identity
from goatherd.operations.labels import change_label
from goatherd.operations.runs import AuditLog
from goatherd.providers.base import Call, RetryPolicy
from goatherd.providers.memory import MemorySecretProvider, MemoryStore
from goatherd.providers.values import Label, SecretBytes, SecretValue, SecretVersion, VersionId
from goatherd.rotation.policy import Policy


@pytest.fixture
async def store() -> AsyncIterator[Store]:
    async with MemorySecretProvider(MemoryStore()) as provider:
        yield Store(provider=provider, secret_id="root", org="localhost", name="memory")


async def test_an_identity_is_created_once(store: Store) -> None:
    version, document = await init_identity(store, Policy())
    assert (await store.read())[0].id == version.id
    with pytest.raises(IdentityExistsError):
        await init_identity(store, Policy())
    assert (await store.read())[1] == document


async def test_a_lifetime_below_the_floor_is_refused_before_anything_is_written(store: Store) -> None:
    with pytest.raises(ConfigurationError):
        await init_identity(store, Policy(lifetime=timedelta(minutes=1)))
    version, _ = await init_identity(store, Policy())
    assert version.id == "1"


async def test_of_two_processes_that_create_an_identity_the_later_one_names_the_key_that_it_created(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOATHERD_SIGNER_SEAL_KEY", bytes(range(32)).hex())
    both, create = asyncio.Barrier(2), store.provider.create

    async def create_at_once(secret_id: str, value: SecretBytes) -> SecretVersion:
        await both.wait()
        return await create(secret_id, value)

    monkeypatch.setattr(store.provider, "create", create_at_once)
    keys = [f"local:{tmp_path}/{name}.json" for name in ("one", "two")]
    done = await asyncio.gather(
        *(init_identity(store, Policy(), anchor=key, create_key=True) for key in keys), return_exceptions=True
    )
    (late,) = (one for one in done if isinstance(one, IdentityExistsError))
    loser = keys[done.index(late)]
    assert late.hint is not None
    assert late.hint.endswith(
        f"The command has created the key {loser}: destroy it, unless it is the anchor of that identity."
    )


@pytest.mark.parametrize("is_away", [False, True])
async def test_no_key_is_created_for_an_identity_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_away: bool
) -> None:
    monkeypatch.setenv("GOATHERD_SIGNER_SEAL_KEY", bytes(range(32)).hex())
    key = tmp_path / "anchor.json"
    provider = AwayProvider(retry=RetryPolicy(attempts=1)) if is_away else MemorySecretProvider(MemoryStore())
    if not is_away:
        await provider.create("root", SecretBytes(b"no identity"))
    store = Store(provider=provider, secret_id="root", org="localhost", name="memory")
    with pytest.raises(UnavailableError if is_away else MalformedIdentityError):
        await init_identity(store, Policy(), anchor=f"local:{key}", create_key=True)
    assert not key.exists()
    with pytest.raises(UnavailableError if is_away else IdentityExistsError):
        await init_identity(store, Policy())


async def test_an_error_after_the_anchors_key_was_created_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOATHERD_SIGNER_SEAL_KEY", bytes(range(32)).hex())
    anchor = f"local:{tmp_path}/anchor.json"
    store = Store(provider=DenyingProvider(), secret_id="root", org="localhost", name="memory")
    with pytest.raises(ProviderAccessDeniedError) as caught:
        await init_identity(store, Policy(), anchor=anchor, create_key=True)
    assert "leave out --create-key" in caught.value.hint
    with pytest.raises(ProviderAccessDeniedError) as caught:
        await init_identity(store, Policy(), anchor=anchor)
    assert "--create-key" not in caught.value.hint


class DenyingProvider(MemorySecretProvider):
    async def _create(self, call: Call, value: SecretBytes, label: Label) -> SecretVersion:
        raise call.error(ProviderAccessDeniedError, "no right to create")


class AwayProvider(MemorySecretProvider):
    async def _read(self, call: Call, at: Label | VersionId) -> SecretValue:
        raise call.error(UnavailableError, "no answer")

    async def _create(self, call: Call, value: SecretBytes, label: Label) -> SecretVersion:
        raise call.error(UnavailableError, "no answer")


async def test_an_export_holds_the_current_root_and_is_private(store: Store, tmp_path: Path) -> None:
    _, document = await init_identity(store, Policy())
    file = tmp_path / "settings.json"
    done = await export_settings(store, file)
    assert (done.current_id, done.roots, done.sessions) == (document.current.id, 1, 0)
    assert json.loads(file.read_bytes())["currentSession"]["id"] == document.current.id
    assert file.stat().st_mode & 0o777 == 0o600


async def test_an_export_replaces_another_file_only_where_that_is_asked_for(store: Store, tmp_path: Path) -> None:
    await init_identity(store, Policy())
    file = tmp_path / "settings.json"
    file.write_text("another")
    with pytest.raises(IdentityExistsError) as refused:
        await export_settings(store, file)
    assert "--replace" in refused.value.hint
    assert file.read_text() == "another"
    await export_settings(store, file, replace=True)
    await export_settings(store, file)  # the same content again is no change


async def test_a_root_that_a_goatdb_server_would_extend_is_not_exported(store: Store, tmp_path: Path) -> None:
    await init_identity(store, Policy(lifetime=timedelta(days=10)))
    with pytest.raises(IdentityError):
        await export_settings(store, tmp_path / "settings.json")
    assert not (tmp_path / "settings.json").exists()
    await export_settings(store, tmp_path / "settings.json", unsafe_short_life=True)


async def test_a_data_directory_without_a_log_of_sessions_is_refused(store: Store, tmp_path: Path) -> None:
    await init_identity(store, Policy())
    with pytest.raises(ConfigurationError, match=r"has no sys/sessions\.jsonl"):
        await export_settings(store, tmp_path / "settings.json", data=tmp_path)


async def test_a_label_that_is_moved_is_in_the_audit_trail(store: Store, tmp_path: Path) -> None:
    await init_identity(store, Policy())
    trail = tmp_path / "audit.jsonl"
    change = await change_label(store, "mine", "current", audit_log=AuditLog(trail))
    assert (change.before, change.after) == (None, "1")
    records = read_trail(trail)
    assert records.unreadable == 0
    moved = [record.data for record in records.records if record.event == "label-moved"]
    assert moved == [{"label": "mine", "from": None, "to": "1"}]
    assert len(read_trail(trail, last=1).records) == 1
    checked = verify_trail(trail, anchors=Anchors.from_document((await store.read())[1]))
    assert checked.head.seq == len(records.records)


async def test_a_protected_label_is_refused_before_a_record_is_written(store: Store, tmp_path: Path) -> None:
    await init_identity(store, Policy())
    trail = tmp_path / "audit.jsonl"
    for to in ("1", None):
        with pytest.raises(ConfigurationError, match="protected"):
            await change_label(store, "current", to, audit_log=AuditLog(trail))
    assert not trail.exists()


async def test_a_trail_that_lacks_its_end_is_broken_for_a_checkpoint_only(store: Store, tmp_path: Path) -> None:
    await init_identity(store, Policy())
    trail = tmp_path / "audit.jsonl"
    await change_label(store, "mine", "current", audit_log=AuditLog(trail))
    anchors = Anchors.from_document((await store.read())[1])
    head = verify_trail(trail, anchors=anchors).head
    trail.write_bytes(b"".join(trail.read_bytes().splitlines(keepends=True)[:-1]))
    verify_trail(trail, anchors=anchors)
    with pytest.raises(AuditBrokenError):
        verify_trail(trail, anchors=anchors, checkpoint=Head.from_text(str(head)))


async def test_another_file_is_called_no_trail(tmp_path: Path) -> None:
    other = tmp_path / "notes.txt"
    other.write_text("not a record\n")
    with pytest.raises(AuditBrokenError, match="is not an audit trail"):
        verify_trail(other, anchors=None)
    with pytest.raises(AuditBrokenError, match="is not an audit trail"):
        read_trail(other)
