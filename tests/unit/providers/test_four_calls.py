"""The four calls of GoatDB's proposal, on every provider."""

from __future__ import annotations

import pytest

from goatherd.errors import ConflictError, ProviderConfigurationError, SecretNotFoundError
from goatherd.providers.base import CloudSecretProvider, SecretProvider
from goatherd.providers.memory import MemorySecretProvider
from goatherd.providers.values import STABLE, VersionId


async def made() -> SecretProvider:
    provider = MemorySecretProvider()
    await provider.create("root", b"first")
    return provider


async def test_the_current_value_is_read_and_replaced():
    provider = await made()
    await provider.update_secret("root", "second")
    assert (await provider.get_secret("root")).reveal() == b"second"
    assert (await provider.get_secret_version("root", "1")).reveal() == b"first"
    assert (await provider.get_secret_version("root", VersionId("2"))).reveal() == b"second"
    await provider.delete_secret("root")
    with pytest.raises(SecretNotFoundError):
        await provider.get_secret("root")


async def test_the_current_value_is_labelled_without_a_second_copy():
    provider = await made()
    labelled = await provider.update_secret("root", await provider.get_secret("root"), version_label="stable")
    again = await provider.update_secret("root", b"first", version_label="stable")
    assert labelled.id == again.id == "1"
    assert [version.id for version in await provider.versions("root")] == ["1"]
    assert (await provider.get_secret_version("root", "stable")).reveal() == b"first"


async def test_another_label_leaves_the_current_value_to_readers():
    provider = await made()
    await provider.update_secret("root", b"candidate", version_label="candidate")
    assert (await provider.get_secret("root")).reveal() == b"first"
    assert (await provider.get_secret_version("root", "candidate")).reveal() == b"candidate"


async def test_the_stable_version_is_restored():
    provider = await made()
    await provider.update_secret("root", b"first", version_label="stable")
    await provider.update_secret("root", b"second")
    await provider.update_secret("root", await provider.get_secret_version("root", "stable"))
    assert (await provider.get_secret("root")).reveal() == b"first"


async def test_what_is_not_there_is_not_made_and_not_mistaken():
    provider = await made()
    for call in (provider.update_secret("other", b"x"), provider.get_secret_version("root", "9")):
        with pytest.raises(SecretNotFoundError):
            await call
    with pytest.raises(SecretNotFoundError):
        await provider.get_secret_version("root", STABLE)
    with pytest.raises(ProviderConfigurationError, match="is not a valid label"):
        await provider.update_secret("root", b"x", version_label="latest")


async def test_a_writer_that_comes_between_wins():
    provider = await made()
    held = provider.read

    async def overtaken(secret_id: str, *rest: object):
        found = await held(secret_id, *rest)
        await provider.write("root", b"another", expected="1")
        return found

    provider.read = overtaken
    with pytest.raises(ConflictError):
        await provider.update_secret("root", b"mine")
    assert (await held("root")).value.reveal() == b"another"


async def test_goatdb_s_spelling_means_the_same():
    assert CloudSecretProvider is SecretProvider
    assert CloudSecretProvider.getSecret is CloudSecretProvider.get_secret
    assert CloudSecretProvider.getSecretVersion is CloudSecretProvider.get_secret_version
    assert CloudSecretProvider.updateSecret is CloudSecretProvider.update_secret
    assert CloudSecretProvider.deleteSecret is CloudSecretProvider.delete_secret
