"""Migrate, called from a Python program with a server's files and a store."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from goatherd.errors import (
    ConfigurationError,
    IdentityExistsError,
    SecretNotFoundError,
    SettingsError,
    UnconfirmedError,
)
from goatherd.identity.document import IdentityDocument
from goatherd.operations.export import export_settings
from goatherd.operations.identity_store import Store
from goatherd.operations.init import init_identity
from goatherd.operations.migrate import MigrationTarget, migrate_all, remove_keys
from goatherd.operations.migration_files import verified_sessions
from goatherd.providers.base import Guarantees
from goatherd.providers.memory import MemorySecretProvider, MemoryStore
from goatherd.rotation.policy import Policy
from goatherd.wire.commit_log import frame_records
from tests.fakes.goatdb_data import DESCRIPTION, write_goatdb_data
from tests.unit.goats import NOW, introduction, owned, root
from tests.unit.identity.test_anchor import World

ROOT_ID = next(session["id"] for session in DESCRIPTION["sessions"] if session["owner"] == "root")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data directory that GoatDB 0.5.1 wrote."""
    return write_goatdb_data(tmp_path / "goatdb")


class LastingProvider(MemorySecretProvider):
    """A store in memory that declares itself persistent."""

    @property
    def guarantees(self) -> Guarantees:
        return replace(super().guarantees, durable=True)


class Target:
    """Stores, one for each organization, and the options of a migration."""

    def __init__(self) -> None:
        self.memory = MemoryStore()

    @asynccontextmanager
    async def open_store(self, org: str) -> AsyncIterator[Store]:
        async with LastingProvider(self.memory) as provider:
            yield Store(provider=provider, secret_id=f"{org}/root", org=org, name=f"memory:///{org}/root")

    def secret_for(self, orgs: Sequence[str]) -> str:
        del orgs
        return "{org}/root"

    @property
    def described(self) -> MigrationTarget:
        return MigrationTarget(open_store=self.open_store, secret_for=self.secret_for)


async def test_the_identity_is_in_the_store_and_a_second_run_changes_nothing(data: Path) -> None:
    target = Target()
    first = await migrate_all(target.described, [data], dry_run=False, write_sessions=True)
    (server,) = first.outcomes
    assert (server.org, server.current_id, server.is_new, server.is_read_back) == ("localhost", ROOT_ID, True, True)
    second = await migrate_all(target.described, [data], dry_run=False, write_sessions=True)
    assert [one.is_new for one in second.outcomes] == [False]
    async with target.open_store("localhost") as store:
        assert (await store.read())[1].current.id == ROOT_ID
        assert len(await store.versions()) == 1


async def test_a_dry_run_says_the_same_and_writes_nothing(data: Path) -> None:
    target = Target()
    before = {path: path.read_bytes() for path in data.rglob("*") if path.is_file()}
    done = await migrate_all(target.described, [data], dry_run=True, write_sessions=True)
    assert done.is_dry
    assert [(one.current_id, one.is_new) for one in done.outcomes] == [(ROOT_ID, True)]
    assert (done.removable, done.find_kept_settings()) == ((), [])
    assert await remove_keys(target.described, done, confirmed=True) == []
    assert {path: path.read_bytes() for path in data.rglob("*") if path.is_file()} == before
    async with target.open_store("localhost") as store:
        with pytest.raises(SecretNotFoundError):
            await store.read()


async def test_a_key_leaves_the_disk_only_while_the_store_returns_it_and_can_be_exported_again(data: Path) -> None:
    target, file = Target(), data / "localhost/settings.json"
    done = await migrate_all(target.described, [data], dry_run=False, write_sessions=True)
    assert done.find_kept_settings() == [file]
    with pytest.raises(UnconfirmedError, match="nothing was removed"):
        await remove_keys(target.described, done, confirmed=False)
    assert file.exists()
    kept, target.memory = target.memory, MemoryStore()
    with pytest.raises(SecretNotFoundError):
        await remove_keys(target.described, done, confirmed=True)
    assert file.exists()
    async with target.open_store("localhost") as store:
        await init_identity(store, Policy())
    with pytest.raises(SettingsError, match="did not return root"):
        await remove_keys(target.described, done, confirmed=True)
    assert file.exists()
    target.memory = kept
    messages = await remove_keys(target.described, done, confirmed=True)
    assert f"{file} was removed" in messages[0]
    assert not file.exists()
    async with target.open_store("localhost") as store:
        exported = await export_settings(store, file, data=data / "localhost", unsafe_short_life=True)
    assert exported.current_id == ROOT_ID
    assert exported.sessions > 0


async def test_a_store_with_another_identity_keeps_it(data: Path) -> None:
    target = Target()
    async with target.open_store("localhost") as store:
        _, other = await init_identity(store, Policy())
    with pytest.raises(IdentityExistsError, match="holds another identity"):
        await migrate_all(target.described, [data], dry_run=False, write_sessions=True)
    async with target.open_store("localhost") as store:
        assert (await store.read())[1] == other


async def test_a_session_whose_root_only_a_working_root_has_introduced_is_not_migrated(data: Path) -> None:
    log, working = data / "localhost/sys/sessions.jsonl", root("working")
    forged = [introduction(root("thief"), working), introduction(owned("friend"), root("thief"))]
    by_working = [*forged, introduction(owned("user"), working)]
    log.write_bytes(b"".join(frame_records([commit.to_json()]) for commit in by_working))
    identity = IdentityDocument(generation=1, current=working, roots=(working.session,), last_updated=NOW)
    assert {one.id for one in verified_sessions(log.parents[1], identity, "localhost")} == {"user", "friend"}
    anchored = await World().anchored(working)
    assert {one.id for one in verified_sessions(log.parents[1], anchored, "localhost")} == {"user"}


async def test_a_path_without_settings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"there is no settings\.json"):
        await migrate_all(Target().described, [tmp_path], dry_run=False, write_sessions=True)
