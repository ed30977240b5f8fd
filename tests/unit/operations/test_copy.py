"""Copy: every version and label, from any store to any other; complete or not at all, and never over other versions."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from goatherd.errors import (
    ConflictError,
    IdentityExistsError,
    SecretNotFoundError,
    SecretTooLargeError,
    UnavailableError,
)
from goatherd.operations.copy import copy_secret
from goatherd.operations.identity_store import Store
from goatherd.providers.base import Call, Guarantees
from goatherd.providers.memory import MemorySecretProvider, MemoryStore
from goatherd.providers.values import CURRENT, Label, SecretValue, SecretVersion, VersionId


class Emulated(MemorySecretProvider):
    """A memory store with other guarantees, which can fail after a number of writes and records what readers could
    see."""

    def __init__(self, *, fail_after: int | None = None, forget: bool = False, **changes: Any) -> None:
        super().__init__(MemoryStore())
        self.changes, self.fail_after, self.forget = changes, fail_after, forget
        self.current_seen: list[bytes | None] = []

    @property
    def guarantees(self) -> Guarantees:
        base = super().guarantees
        return Guarantees(
            **{name: getattr(base, name) for name in Guarantees.__slots__ if name not in self.changes} | self.changes
        )

    async def _step(self) -> None:
        try:
            self.current_seen.append((await self.read("root", CURRENT)).value.reveal())
        except SecretNotFoundError:
            self.current_seen.append(None)
        if self.fail_after is not None:
            self.fail_after -= 1
            if self.fail_after < 0:
                raise UnavailableError("the cable is out", provider="memory", secret_id="root", operation="write")

    async def create(self, secret_id: str, value: Any, label: str = CURRENT) -> SecretVersion:
        await self._step()
        return await super().create(secret_id, value, label)

    async def write(self, secret_id: str, value: Any, *, label: str = CURRENT, expected: str | None) -> SecretVersion:
        await self._step()
        return await super().write(secret_id, b"damaged" if self.forget else value, label=label, expected=expected)

    async def label(self, secret_id: str, label: str, version: str, *, expected: str | None) -> None:
        await self._step()
        await super().label(secret_id, label, version, expected=expected)


def store_of(provider: MemorySecretProvider) -> Store:
    return Store(provider=provider, secret_id="root", org="localhost", name="memory")


async def source_of(values: Sequence[bytes], labels: dict[str, int], destroyed: Sequence[int] = ()) -> Store:
    """Return a source whose versions are numbered from 1."""
    provider = MemorySecretProvider(MemoryStore())
    made = await provider.create("root", values[0])
    for value in values[1:]:
        made = await provider.write("root", value, expected=made.id)
    for label, number in labels.items():
        expected = made.id if label == CURRENT else None
        await provider.label("root", label, str(number), expected=expected)
    for number in destroyed:
        await provider.destroy("root", str(number))
    return store_of(provider)


async def picture(store: Store) -> dict[str, Any]:
    """Return the content of a store: the values, oldest first, and the value of each label."""
    listed = await store.versions()
    values = {one.id: (await store.provider.read("root", one.id)).value.reveal() for one in reversed(listed)}
    return {
        "values": list(values.values()),
        "labels": {str(label): values[one.id] for one in listed for label in one.labels},
    }


WHOLE = {
    "values": [b"one", b"three", b"four"],
    "labels": {"current": b"three", "stable": b"one", "drill": b"four"},
}


async def usual() -> Store:
    return await source_of([b"one", b"two", b"three", b"four"], {"current": 3, "stable": 1, "drill": 4}, destroyed=[2])


async def test_all_readable_versions_and_all_labels_arrive_and_what_stays_behind_is_named() -> None:
    source, target = await usual(), Emulated()
    done = await copy_secret(source, store_of(target))
    assert await picture(store_of(target)) == WHOLE
    assert [(item.source, item.target) for item in done.plan.items] == [("1", "1"), ("3", "2"), ("4", "3")]
    assert [(each.id, each.reason) for each in done.plan.skipped] == [("2", "destroyed")]


async def test_a_store_is_asked_for_one_version_at_a_time_however_many_there_are() -> None:
    class Crowded(Emulated):
        reading = most = 0

        async def _read(self, call: Call, at: Label | VersionId) -> SecretValue:
            self.reading += 1
            self.most = max(self.most, self.reading)
            await asyncio.sleep(0)
            self.reading -= 1
            return await super()._read(call, at)

    target = Crowded()
    await copy_secret(await source_of([b"%d" % n for n in range(20)], {}), store_of(target))
    assert target.most == 1


async def test_no_version_is_current_before_the_copy_is_complete() -> None:
    target = Emulated()
    await copy_secret(await usual(), store_of(target))
    assert target.current_seen == [None] * len(target.current_seen)
    assert len(target.current_seen) >= 5


async def test_where_the_first_version_is_current_whatever_is_asked_the_plan_says_so() -> None:
    target = Emulated(first_is_current=True)
    dry = await copy_secret(await usual(), store_of(target), dry_run=True)
    assert dry.shows_current_early
    await copy_secret(await usual(), store_of(target))
    assert await picture(store_of(target)) == WHOLE


@pytest.mark.parametrize("first_is_current", [False, True])
@pytest.mark.parametrize("steps", range(6))
async def test_an_interrupted_copy_is_carried_on_from_wherever_it_stopped(steps: int, first_is_current: bool) -> None:
    source = await usual()
    target = Emulated(fail_after=steps, first_is_current=first_is_current)
    with pytest.raises(UnavailableError):
        await copy_secret(source, store_of(target))
    target.fail_after = None
    if steps:
        with pytest.raises(IdentityExistsError, match="holds a secret already") as caught:
            await copy_secret(source, store_of(target))
        assert "--resume" in caught.value.hint
    await copy_secret(source, store_of(target), resume=True)
    assert await picture(store_of(target)) == WHOLE
    again = await copy_secret(source, store_of(target), resume=True)
    assert again.present == 3
    assert await picture(store_of(target)) == WHOLE


@pytest.mark.parametrize(
    ("values", "labels", "reason"),
    [
        ([b"one", b"other"], {}, "its version 2 is not what version 3 of the source is"),
        ([b"one", b"three", b"four", b"five"], {}, "it has more versions"),
        ([b"one"], {"strange": 1}, "it has a label 'strange', which the source does not have"),
    ],
)
async def test_what_is_not_the_beginning_of_the_copy_is_left_alone(
    values: list[bytes], labels: dict[str, int], reason: str
) -> None:
    target = await source_of(values, labels)
    before = await picture(target)
    with pytest.raises(IdentityExistsError, match=reason):
        await copy_secret(await usual(), target, resume=True)
    assert await picture(target) == before


async def test_a_value_that_is_too_long_for_the_destination_is_refused_before_anything_is_written() -> None:
    target = Emulated(max_value_bytes=4)
    with pytest.raises(SecretTooLargeError, match="version 3 is 5 bytes long"):
        await copy_secret(await usual(), store_of(target))
    with pytest.raises(SecretNotFoundError):
        await target.versions("root")


async def test_more_than_the_destination_keeps_is_left_behind_the_oldest_first() -> None:
    source = await source_of([b"%d" % n for n in range(6)], {"stable": 1})
    target = Emulated(history=2)
    done = await copy_secret(source, store_of(target))
    assert [each.id for each in done.plan.skipped] == ["2", "3"]
    assert (await picture(store_of(target)))["values"] == [b"0", b"3", b"4", b"5"]


async def test_a_store_that_deletes_old_versions_in_its_own_time_gets_those_that_a_restore_needs() -> None:
    source = await source_of([b"%d" % n for n in range(70)], {})
    target = Emulated(history=1, destroys=False, deprecates=True)
    done = await copy_secret(source, store_of(target))
    assert [each.id for each in done.plan.skipped] == ["1", "2", "3", "4", "5"]
    assert len(done.plan.items) == 64 + 1


async def test_a_source_that_changes_meanwhile_leaves_no_current_version_behind() -> None:
    source, target = await usual(), Emulated()

    async def meddle() -> None:
        await source.provider.write("root", b"five", expected="3")

    told: list[str] = []

    class Meddling(Emulated):
        async def _step(self) -> None:
            if not told:
                told.append("once")
                await meddle()

    target = Meddling()
    with pytest.raises(ConflictError, match="changed while it was copied") as caught:
        await copy_secret(source, store_of(target))
    assert "--resume" in caught.value.hint
    with pytest.raises(SecretNotFoundError) as missing:
        await target.read("root", CURRENT)
    assert "--resume" in missing.value.hint
    await copy_secret(source, store_of(target), resume=True)
    assert (await target.read("root", CURRENT)).value.reveal() == b"five"


async def test_a_store_that_keeps_something_else_than_what_was_written_is_noticed() -> None:
    with pytest.raises(
        UnavailableError, match="the copy differs from the source: version 2 differs from version 3 of the source"
    ):
        await copy_secret(await usual(), store_of(Emulated(forget=True)))


async def test_bytes_that_are_no_identity_are_copied_as_they_are() -> None:
    source, target = await source_of([b"\x00\xff not JSON"], {}), Emulated()
    await copy_secret(source, store_of(target))
    assert (await target.read("root", CURRENT)).value.reveal() == b"\x00\xff not JSON"


async def test_a_source_without_a_readable_current_version_is_refused() -> None:
    provider = MemorySecretProvider(MemoryStore())
    await provider.create("root", b"one", "drill")
    with pytest.raises(SecretNotFoundError, match="'current'"):
        await copy_secret(store_of(provider), store_of(Emulated()))
