"""The requests of each call at Azure Key Vault, and what writers that die or are delayed leave there."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("azure.keyvault.secrets", reason="needs the extra azure")

from goatherd.errors import ConflictError, UnavailableError, VersionDisabledError
from goatherd.providers.azure.provider import AzureSecretProvider
from goatherd.providers.values import CURRENT, STABLE, VersionId, VersionState
from tests.deadlines import HANG
from tests.fakes.azure_fake import FakeKeyVault, SteppedClock

from .clients import ONCE, made

PAGE = Path(__file__).resolve().parents[3] / "docs/adr/0015-azure-change-cost.md"


@pytest.fixture
def clock() -> SteppedClock:
    return SteppedClock()


@pytest.fixture
def vault(clock: SteppedClock) -> Iterator[FakeKeyVault]:
    with FakeKeyVault(clock=clock) as running:
        yield running


@pytest.fixture
async def provider(vault: FakeKeyVault, clock: SteppedClock) -> AsyncIterator[AzureSecretProvider]:
    async with made(vault, clock=clock) as opened:
        yield opened


def enabled(vault: FakeKeyVault, name: str) -> set[str]:
    return {one.value for one in vault._state.secrets[name].values() if one.enabled}


@contextlib.asynccontextmanager
async def held_before(
    vault: FakeKeyVault, clock: SteppedClock, put_to: str, begin: Callable[[AzureSecretProvider], Awaitable[Any]]
) -> AsyncIterator[None]:
    """Run a change whose writer is held before its first PUT to a secret, until the end of the block."""
    async with made(vault, clock=clock) as slow:
        put, is_held, go_on = slow._vault.put_secret, asyncio.Event(), asyncio.Event()

        async def held_up(name: str, *rest: Any) -> Any:
            if name == put_to and not is_held.is_set():
                is_held.set()
                await go_on.wait()
            return await put(name, *rest)

        slow._vault.put_secret = held_up  # type: ignore[method-assign]
        working = asyncio.ensure_future(begin(slow))
        await asyncio.wait_for(is_held.wait(), HANG)
        yield
        go_on.set()
        await working


async def test_each_call_makes_the_number_of_requests_that_the_page_says(
    vault: FakeKeyVault, clock: SteppedClock, provider: AzureSecretProvider
):
    counted: dict[str, int] = {}

    async def count(name: str, begin: Callable[[], Awaitable[Any]]) -> Any:
        vault.requests.clear()
        result = await begin()
        counted[name] = len(vault.requests)
        clock.passed += 60
        return result

    name = "goatdb-root"
    first = await count("create", lambda: provider.create(name, b"first"))
    second = await count("write", lambda: provider.write(name, b"second", expected=first.id))
    await count("label", lambda: provider.label(name, STABLE, second.id, expected=None))
    await count("read", lambda: provider.read(name))
    await count("read, another version", lambda: provider.read(name, first.id))
    await count("destroy", lambda: provider.destroy(name, first.id))
    await count("versions", lambda: provider.versions(name))
    await count("unlabel", lambda: provider.unlabel(name, STABLE, expected=second.id))
    async with made(vault, clock=clock) as other:
        await count("read, after a change", lambda: other.read(name))
    rows = re.findall(r"^\| `(\w+)`([^|]*)\|[^|]*\| (\d+) \|$", PAGE.read_text(), re.MULTILINE)
    assert counted == {f"{operation}{rest.rstrip()}": int(number) for operation, rest, number in rows}


async def test_a_value_of_a_writer_that_died_is_listed_read_and_destroyed(
    vault: FakeKeyVault, clock: SteppedClock, provider: AzureSecretProvider
):
    first = await provider.create("goatdb-root", b"first")
    async with made(vault, clock=clock, retry=ONCE) as dying:
        store = dying._store_value

        async def die(*arguments: Any) -> VersionId:
            await store(*arguments)
            raise UnavailableError("the process is dead")

        dying._store_value = die  # type: ignore[method-assign]
        with pytest.raises(UnavailableError):
            await dying.write("goatdb-root", b"\xff" * 19_000, expected=first.id)
    clock.passed += 60
    assert (await provider.read("goatdb-root")).value.reveal() == b"first"
    (left,) = [one.id for one in await provider.versions("goatdb-root") if one.id != first.id]
    assert (await provider.read("goatdb-root", left)).value.reveal() == b"\xff" * 19_000
    await provider.destroy("goatdb-root", left)
    with pytest.raises(VersionDisabledError):
        await provider.read("goatdb-root", left)
    with pytest.raises(VersionDisabledError):
        await provider.label("goatdb-root", STABLE, left, expected=None)
    assert (await provider.write("goatdb-root", b"second", expected=first.id)).labels == {CURRENT}


async def test_a_version_that_is_destroyed_while_a_label_moves_to_it_has_the_label_or_is_disabled(
    vault: FakeKeyVault, clock: SteppedClock, provider: AzureSecretProvider
):
    first = await provider.create("goatdb-root", b"first")
    second = await provider.write("goatdb-root", b"second", expected=first.id)
    with pytest.raises(VersionDisabledError):
        async with held_before(
            vault,
            clock,
            "goatdb-root-pointer",
            lambda slow: slow.label("goatdb-root", STABLE, first.id, expected=None),
        ):
            await provider.destroy("goatdb-root", first.id)
    states = {one.id: (one.state, set(one.labels)) for one in await provider.versions("goatdb-root")}
    assert states == {second.id: (VersionState.ENABLED, {CURRENT}), first.id: (VersionState.DISABLED, set())}


async def test_a_view_that_is_written_after_the_next_change_s_is_written_again(
    vault: FakeKeyVault, clock: SteppedClock, provider: AzureSecretProvider
):
    first = await provider.create("goatdb-root", b"first")
    async with held_before(
        vault, clock, "goatdb-root", lambda slow: slow.write("goatdb-root", b"second", expected=first.id)
    ):
        (second,) = [one.id for one in await provider.versions("goatdb-root") if CURRENT in one.labels]
        await provider.write("goatdb-root", b"third", expected=second)
    assert list(vault.versions("goatdb-root").values())[-2:] == ["second", "third"]


async def test_a_copy_in_the_view_that_comes_after_the_destruction_is_listed_and_destroyed(
    vault: FakeKeyVault, clock: SteppedClock, provider: AzureSecretProvider
):
    first = await provider.create("goatdb-root", b"first")
    async with held_before(
        vault, clock, "goatdb-root", lambda slow: slow.write("goatdb-root", b"second", expected=first.id)
    ):
        (second,) = [one.id for one in await provider.versions("goatdb-root") if CURRENT in one.labels]
        third = await provider.write("goatdb-root", b"third", expected=second)
        await provider.destroy("goatdb-root", second)
    assert enabled(vault, "goatdb-root") == {"first", "second", "third"}
    states = {one.id: one.state for one in await provider.versions("goatdb-root")}
    assert states == dict.fromkeys([first.id, second, third.id], VersionState.ENABLED)
    assert (await provider.read("goatdb-root", second)).value.reveal() == b"second"
    await provider.destroy("goatdb-root", second)
    assert enabled(vault, "goatdb-root") == {"first", "third"}
    states = {one.id: one.state for one in await provider.versions("goatdb-root")}
    assert states == {
        third.id: VersionState.ENABLED,
        second: VersionState.DISABLED,
        first.id: VersionState.ENABLED,
    }


async def test_everybody_sees_the_same_after_many_changes_and_a_late_proposal_changes_nothing(
    vault: FakeKeyVault, clock: SteppedClock, provider: AzureSecretProvider
):
    versions = [(await provider.create("goatdb-root", b"0")).id]
    for number in range(1, 12):
        value = str(number).encode()
        versions.append((await provider.write("goatdb-root", value, expected=versions[-1])).id)
    async with made(vault, clock=clock) as other:
        assert [one.id for one in await other.versions("goatdb-root")] == versions[::-1]
        for version in versions[:-1]:
            await other.destroy("goatdb-root", version)
    values = {one for one in enabled(vault, "goatdb-root-pointer") if not one.startswith("{")}
    assert values == enabled(vault, "goatdb-root") == {"11"}
    # A proposal of a writer that was held up since before all this.
    pointers = vault._state.secrets["goatdb-root-pointer"]
    stale = next(one for one in pointers.values() if one.tags.get("goatherd-epoch") == "2")
    pointers["f" * 32] = type(stale)(
        stale.value, vault.now(), stale.content_type, {**stale.tags, "goatherd-request": "9"}
    )
    clock.passed += 60
    async with made(vault, clock=clock) as late:
        for reader in (provider, late):
            assert (await reader.read("goatdb-root")).value.reveal() == b"11"
            listed = {one.id: one.state for one in await reader.versions("goatdb-root")}
            assert [listed[version] for version in versions[:-1]] == [VersionState.DISABLED] * 11
            assert listed[versions[-1]] is VersionState.ENABLED


@pytest.mark.parametrize("lost", ["tags of the last pointer", "last pointer"])
async def test_a_pointer_whose_tags_were_changed_or_that_is_not_listed_is_damage_and_not_an_older_state(
    vault: FakeKeyVault, provider: AzureSecretProvider, lost: str
):
    first = await provider.create("goatdb-root", b"first")
    await provider.write("goatdb-root", b"second", expected=first.id)
    stored = vault._state.secrets["goatdb-root-pointer"]
    last = list(stored)[-1]
    if lost == "last pointer":
        del stored[last]
    else:
        stored[last].tags.clear()
    provider.retry = ONCE
    with pytest.raises(UnavailableError, match="its tags were changed"):
        await provider.versions("goatdb-root")
    with pytest.raises(UnavailableError, match="its tags were changed"):
        await provider.write("goatdb-root", b"third", expected=first.id)


async def test_a_value_that_the_vault_lost_is_not_an_absent_secret_and_the_hint_keeps_the_pointer(
    vault: FakeKeyVault, provider: AzureSecretProvider
):
    await provider.create("goatdb-root", b"first")
    lost = await provider.write("goatdb-root", b"second", label="other", expected=None)
    del vault._state.secrets["goatdb-root-pointer"][lost.id]
    provider.retry = ONCE
    for begin in (lambda: provider.read("goatdb-root", "other"), lambda: provider.versions("goatdb-root")):
        with pytest.raises(UnavailableError, match="that the vault does not have") as caught:
            await begin()
        assert "Do not delete goatdb-root-pointer" in str(caught.value.hint)


async def test_a_destroyed_version_that_has_a_label_is_left_alone(provider: AzureSecretProvider, vault: FakeKeyVault):
    first = await provider.create("goatdb-root", b"first")
    with pytest.raises(ConflictError, match="current"):
        await provider.destroy("goatdb-root", first.id)
    assert enabled(vault, "goatdb-root") == {"first"}
    assert (await provider.read("goatdb-root", VersionId(first.id))).value.reveal() == b"first"
