"""Labels: a concurrent writer, and a store without labels of an operator's own."""

from __future__ import annotations

import pytest

from goatherd.errors import ConfigurationError, ConflictError
from goatherd.operations.identity_store import Store
from goatherd.operations.labels import change_label
from goatherd.providers.base import Call, Guarantees
from goatherd.providers.memory import MemorySecretProvider
from goatherd.providers.values import Label, SecretBytes, VersionId


def store_in(provider: MemorySecretProvider) -> Store:
    return Store(provider=provider, secret_id="s", org="localhost", name="memory")


class Interrupting(MemorySecretProvider):
    """A store in which another writer moves the label between the read and the move."""

    async def _label(self, call: Call, label: Label, version: VersionId, expected: VersionId | None) -> None:
        await super()._label(call, label, VersionId("2"), expected)
        await super()._label(call, label, version, expected)

    async def _unlabel(self, call: Call, label: Label, expected: VersionId) -> None:
        await super()._label(call, label, VersionId("1"), expected)
        await super()._unlabel(call, label, expected)


async def test_of_two_writers_of_a_label_one_is_told_that_it_lost() -> None:
    provider = Interrupting()
    first = await provider.create("s", SecretBytes(b"1"))
    await provider.write("s", SecretBytes(b"2"), expected=first.id)
    await provider.write("s", SecretBytes(b"3"), label="mine", expected=None)
    with pytest.raises(ConflictError) as lost:
        await change_label(store_in(provider), "mine", "1")
    assert "Another writer moved the label" in lost.value.hint
    with pytest.raises(ConflictError) as lost:
        await change_label(store_in(provider), "mine", None)
    assert "Another writer moved the label" in lost.value.hint


class Bare(MemorySecretProvider):
    """A plugin that declares nothing about labels."""

    @property
    def guarantees(self) -> Guarantees:
        return Guarantees(cas=True, read_consistency=super().guarantees.read_consistency)


async def test_a_store_without_custom_labels_says_so_before_anything_is_written() -> None:
    provider = Bare()
    await provider.create("s", SecretBytes(b"1"))
    with pytest.raises(ConfigurationError, match="supports only Goatherd's own labels"):
        await change_label(store_in(provider), "mine", "1")
    with pytest.raises(ConfigurationError, match="supports only Goatherd's own labels"):
        await change_label(store_in(provider), "mine", None)
