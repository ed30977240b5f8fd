"""A store that was restored from a backup reuses version ids for other contents."""

from __future__ import annotations

from pathlib import Path

import pytest

from goatherd.errors import ForkedIdentityError, GenerationError
from goatherd.identity.document import IdentityDocument, encode_document
from goatherd.providers.memory import MemorySecretProvider, MemoryStore
from goatherd.settings.store import CloudSecretSettings
from tests.unit.identity.make import first, owned, prepared, published, rotated

from .make import SECRET, CountingProvider, store_with

B = owned("b")


def copy_of(store: MemoryStore) -> MemoryStore:
    """Return a backup. A store that is restored from it gives the same version ids again."""
    return MemoryStore(store.secrets)


@pytest.fixture
async def provider() -> CountingProvider:
    return await store_with(first())


async def used(settings: CloudSecretSettings) -> IdentityDocument:
    await settings.refresh()
    return settings.settings.document


async def test_a_version_id_that_is_given_again_is_no_proof_that_nothing_has_changed(
    provider: CountingProvider,
) -> None:
    async with CloudSecretSettings(provider, SECRET) as settings:
        await settings.load()
        backup = copy_of(provider.store)
        version = await provider.put(prepared(name="b"))
        assert (await used(settings)).next == B
        provider.store = backup
        assert await provider.put(prepared(name="d")) == version, "the very same id"

        assert (await used(settings)).next == B
        refusal = settings.status.last_refusal
        assert settings.status.is_degraded, "the status would claim that the server uses the store's identity"
        assert refusal is not None
        assert refusal.code == GenerationError.code


async def test_a_refused_version_id_that_is_given_again_is_looked_at(provider: CountingProvider) -> None:
    async with CloudSecretSettings(provider, SECRET) as settings:
        await settings.load()
        await provider.put(prepared(name="b"))
        assert (await used(settings)).next == B
        good = copy_of(provider.store)
        version = await provider.put(published(name="d"))
        await settings.refresh()
        assert settings.status.is_degraded
        provider.store = good
        assert await provider.put(published(name="b")) == version
        assert (await used(settings)).phase == "published"
        assert not settings.status.is_degraded


async def test_who_goes_on_from_the_backup_takes_no_server_with_him_and_the_operator_can_say_so(
    provider: CountingProvider, tmp_path: Path
) -> None:
    seen = tmp_path / "seen.json"
    async with CloudSecretSettings(provider, SECRET, seen=seen) as settings:
        await settings.load()
        backup = copy_of(provider.store)
        await provider.put(rotated(name="b"))
        assert (await used(settings)).current == B
        provider.store = backup
        await provider.put(rotated(rotated(name="d"), "e"))

        assert (await used(settings)).current == B, "it would follow, and B would be gone from the identity"
        refusal = settings.status.last_refusal
        assert refusal is not None
        assert refusal.code == ForkedIdentityError.code
        assert settings.status.refused[ForkedIdentityError.code] == 1
    with pytest.raises(ForkedIdentityError, match="not grown"):
        await CloudSecretSettings(provider, SECRET, seen=seen).load()
    async with CloudSecretSettings(provider, SECRET, seen=seen, accept_identity=True) as settings:
        assert (await settings.load()).current == owned("e")


async def test_a_server_without_a_memory_believes_the_store() -> None:
    provider = MemorySecretProvider(MemoryStore())
    await provider.create(SECRET, encode_document(rotated(rotated(name="d"), "e")))
    async with CloudSecretSettings(provider, SECRET) as settings:
        assert (await settings.load()).current == owned("e")
