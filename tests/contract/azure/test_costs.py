"""The cost of a change at Azure Key Vault, and the garbage that it leaves for later changes to remove."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("azure.keyvault.secrets", reason="needs the extra azure")

from goatherd.errors import (
    UnavailableError,
    VersionDisabledError,
)
from goatherd.providers.azure import records
from goatherd.providers.base import RetryPolicy
from goatherd.providers.values import CURRENT, STABLE
from tests.deadlines import HANG
from tests.fakes.azure_fake import FakeKeyVault, SteppedClock, Trouble

from .clients import made

ONCE = RetryPolicy(attempts=1)
PAGE = Path(__file__).resolve().parents[3] / "docs/adr/0015-azure-change-cost.md"
READER = "token-of-an-ordinary-reader"


def documented_requests() -> dict[str, int]:
    rows = re.findall(r"^\| `(\w+)`([^|]*)\|[^|]*\| (\d+) \|$", PAGE.read_text(), re.MULTILINE)
    return {f"{operation}{rest.rstrip()}": int(count) for operation, rest, count in rows}


async def test_each_call_makes_the_number_of_requests_that_the_page_says():
    clock = SteppedClock()
    with FakeKeyVault(clock=clock) as vault:
        counted: dict[str, int] = {}

        async def count(name: str, begin: Callable[[], Awaitable[Any]]) -> Any:
            vault.requests.clear()
            result = await begin()
            counted[name] = len(vault.requests)
            clock.passed += 60
            return result

        name = "goatdb-root"
        async with made(vault, clock=clock) as provider, made(vault, clock=clock) as other:
            first = await count("create", lambda: provider.create(name, b"first"))
            second = await count("write", lambda: provider.write(name, b"second", expected=first.id))
            await count("read, after a write", lambda: provider.read(name))
            await count("label", lambda: provider.label(name, STABLE, second.id, expected=None))
            await count("read", lambda: provider.read(name))
            await count("destroy", lambda: provider.destroy(name, first.id))
            await count("versions", lambda: provider.versions(name))
            third = await count(
                "write, another label", lambda: provider.write(name, b"third", label="candidate", expected=None)
            )
            await count("unlabel", lambda: provider.unlabel(name, "candidate", expected=third.id))
            await count("read, the first", lambda: other.read(name))
            await count("label, `current`", lambda: provider.label(name, CURRENT, third.id, expected=second.id))
    assert counted == documented_requests()


async def test_a_value_that_is_too_long_to_go_with_the_pointer_costs_two_requests_more():
    clock = SteppedClock()
    with FakeKeyVault(clock=clock) as vault:
        async with made(vault, clock=clock) as provider, made(vault, clock=clock) as other:
            first = await provider.create("goatdb-root", b"first")
            long = b"\xff" * provider.guarantees.max_value_bytes
            vault.requests.clear()
            second = await provider.write("goatdb-root", long, expected=first.id)
            assert len(vault.requests) == documented_requests()["write"] + 2
            for reader in (provider, other):
                assert (await reader.read("goatdb-root")).value.reveal() == long
                assert [version.id for version in await reader.versions("goatdb-root")] == [second.id, first.id]


async def test_a_value_that_was_written_alone_and_left_is_listed_and_hides_nothing():
    clock = SteppedClock()
    with FakeKeyVault(clock=clock) as vault:
        async with made(vault, clock=clock, retry=ONCE) as dying, made(vault, clock=clock) as provider:
            first = await dying.create("goatdb-root", b"first")
            clock.passed += 60
            vault.trouble = [Trouble(match="GET /secrets/goatdb-root-pointer/", status=500)]
            with pytest.raises(UnavailableError):
                await dying.write("goatdb-root", b"\xff" * 19_000, expected=first.id)
            assert (await provider.read("goatdb-root")).value.reveal() == b"first"
            left, listed = await provider.versions("goatdb-root")
            assert (left.is_leftover, listed.id) == (True, first.id)
            assert (await provider.read("goatdb-root", left.id)).value.reveal() == b"\xff" * 19_000
            await provider.destroy("goatdb-root", left.id)
            with pytest.raises(VersionDisabledError):
                await provider.read("goatdb-root", left.id)
            assert (await provider.write("goatdb-root", b"second", expected=first.id)).labels == {CURRENT}


async def test_a_writer_that_was_held_up_looks_at_the_pointer_once_more():
    clock = SteppedClock()
    with FakeKeyVault(clock=clock) as vault:
        async with made(vault, clock=clock) as provider:
            first = await provider.create("goatdb-root", b"first")
            put = provider._vault.put_secret

            async def slow(name: str, *rest: Any) -> Any:
                clock.passed += 1 if name == "goatdb-root" else 0
                return await put(name, *rest)

            provider._vault.put_secret = slow  # type: ignore[method-assign]
            vault.requests.clear()
            await provider.write("goatdb-root", b"second", expected=first.id)
            assert len(vault.requests) == documented_requests()["write"] + 1
            assert vault.requests[-1] == "GET /secrets/goatdb-root-pointer/"


async def test_a_copy_in_the_view_that_comes_after_the_destruction_is_listed_and_destroyed():
    clock = SteppedClock()
    with FakeKeyVault(clock=clock) as vault:
        async with made(vault, clock=clock) as slow, made(vault, clock=clock) as provider:
            first = await slow.create("goatdb-root", b"first")
            put, is_held, go_on = slow._vault.put_secret, asyncio.Event(), asyncio.Event()

            async def held_up(name: str, *rest: Any) -> Any:
                if name == "goatdb-root" and not is_held.is_set():
                    is_held.set()
                    await go_on.wait()
                return await put(name, *rest)

            slow._vault.put_secret = held_up  # type: ignore[method-assign]
            writing = asyncio.create_task(slow.write("goatdb-root", b"second", expected=first.id))
            await asyncio.wait_for(is_held.wait(), HANG)
            second = (await provider.read("goatdb-root")).version.id
            third = await provider.write("goatdb-root", b"third", expected=second)
            await provider.destroy("goatdb-root", second)
            go_on.set()
            await writing

            def in_the_view() -> set[str]:
                return {one.value for one in vault._state.secrets["goatdb-root"].values() if one.enabled}

            assert in_the_view() == {"first", "second", "third"}
            listed = {one.id: (one.state.value, one.is_leftover) for one in await provider.versions("goatdb-root")}
            assert listed[second] == ("enabled", True)
            found = await provider.read("goatdb-root", second)
            assert (found.value.reveal(), found.version.is_leftover) == (b"second", True)
            await provider.destroy("goatdb-root", second)
            assert in_the_view() == {"first", "third"}
            states = {one.id: one.state.value for one in await provider.versions("goatdb-root")}
            assert states == {third.id: "enabled", second: "disabled", first.id: "enabled"}


async def test_a_copy_in_the_view_of_a_version_that_was_switched_off_by_hand_is_listed_once_it_has_no_label():
    clock = SteppedClock()
    with FakeKeyVault(clock=clock) as vault:
        async with made(vault, clock=clock) as provider:
            first = await provider.create("goatdb-root", b"first")
            second = await provider.write("goatdb-root", b"second", expected=first.id)
            vault._state.secrets["goatdb-root-pointer"][first.id].enabled = False
            listed = {one.id: (one.state.value, one.is_leftover) for one in await provider.versions("goatdb-root")}
            assert listed == {second.id: ("enabled", False), first.id: ("enabled", True)}
            assert (await provider.read("goatdb-root", first.id)).value.reveal() == b"first"
            await provider.destroy("goatdb-root", first.id)
            assert [one.value for one in vault._state.secrets["goatdb-root"].values() if one.enabled] == ["second"]
            with pytest.raises(VersionDisabledError):
                await provider.read("goatdb-root", first.id)
            states = {one.id: one.state.value for one in await provider.versions("goatdb-root")}
            assert states == {second.id: "enabled", first.id: "disabled"}


async def test_values_that_the_pointer_has_forgotten_are_listed_and_all_of_them_can_be_destroyed(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(records, "MAX_LISTED", 4)
    monkeypatch.setattr(records, "HISTORY", 3)
    monkeypatch.setattr(records, "MOST_LEFTOVERS", 2)
    clock = SteppedClock()
    with FakeKeyVault(clock=clock) as vault:
        async with made(vault, clock=clock) as provider:
            made_ids = [(await provider.create("goatdb-root", b"0")).id]
            for number in range(1, 12):
                written = await provider.write("goatdb-root", str(number).encode(), expected=made_ids[-1])
                made_ids.append(written.id)
            listed = await provider.versions("goatdb-root")
            assert [one.id for one in listed] == made_ids[::-1]
            assert [one.id for one in listed if one.is_leftover] == made_ids[:8][::-1]
            for version in made_ids[:-1]:
                await provider.destroy("goatdb-root", version)
            enabled = [
                one.value.rpartition("\n")[2]
                for name in ("goatdb-root", "goatdb-root-pointer")
                for one in vault._state.secrets[name].values()
                if one.enabled and one.content_type != records.POINTER_TYPE
            ]
            assert enabled == ["11", "11"]
            newest = list(vault.versions("goatdb-root-pointer").values())[-1]
            assert len(records.decode_pointer(newest).versions) <= 4 + 2
            assert (await provider.read("goatdb-root")).value.reveal() == b"11"
