"""Pointers in Azure Key Vault that are disabled together with the value that they brought."""

from __future__ import annotations

from dataclasses import replace

import pytest

pytest.importorskip("azure.keyvault.secrets", reason="needs the extra azure")

from goatherd.errors import UnavailableError
from goatherd.providers.base import RetryPolicy
from goatherd.providers.values import CURRENT, VersionState
from tests.fakes.azure_fake import FakeKeyVault, SteppedClock

from .clients import made

ONCE = RetryPolicy(attempts=1)


async def test_the_rule_holds_for_pointers_that_are_switched_off_for_every_reader():
    """Two rounds of candidates that are destroyed, seen by one that looks rarely, and by one that has never looked."""
    clock = SteppedClock()
    with FakeKeyVault(clock=clock) as vault:
        async with made(vault, clock=clock) as provider, made(vault, clock=clock) as seldom:
            first = await provider.create("goatdb-root", b"first")
            await seldom.read("goatdb-root")
            clock.passed += 60
            gone = [await provider.write("goatdb-root", b"one", label="one", expected=None)]
            gone.append(await provider.write("goatdb-root", b"two", label="two", expected=None))
            gone.append(await provider.write("goatdb-root", b"three", expected=first.id))
            await provider.label("goatdb-root", CURRENT, first.id, expected=gone[2].id)
            for label, version in (("one", gone[0]), ("two", gone[1])):
                await provider.unlabel("goatdb-root", label, expected=version.id)
            for version in gone:
                await provider.destroy("goatdb-root", version.id)
            for reader in (provider, seldom):
                assert (await reader.read("goatdb-root")).value.reveal() == b"first"
            async with made(vault, clock=clock) as late:
                # A proposal of a writer that was held up since before all this: it has lost.
                stale = list(vault._state.secrets["goatdb-root-pointer"].values())[1]
                vault._state.secrets["goatdb-root-pointer"]["f" * 32] = replace(
                    stale, created=vault.now(), enabled=True, tags={**stale.tags, "goatherd-request": "9" * 32}
                )
                clock.passed += 60
                for reader in (seldom, late, provider):
                    assert (await reader.read("goatdb-root")).value.reveal() == b"first"
                    states = {version.id: version.state for version in await reader.versions("goatdb-root")}
                    assert [states[version.id] for version in gone] == [VersionState.DISABLED] * 3


async def test_a_pointer_whose_tags_were_changed_after_it_was_switched_off_is_damage_and_not_an_older_state():
    clock = SteppedClock()
    with FakeKeyVault(clock=clock) as vault:
        async with made(vault, clock=clock) as provider, made(vault, clock=clock) as seldom:
            first = await provider.create("goatdb-root", b"first")
            clock.passed += 60
            await seldom.read("goatdb-root")
            second = await provider.write("goatdb-root", b"second", expected=first.id)
            await provider.write("goatdb-root", b"third", expected=second.id)
            await provider.destroy("goatdb-root", second.id)
            clock.passed += 60
            vault._state.secrets["goatdb-root-pointer"][second.id].tags.clear()
            seldom.retry = ONCE
            with pytest.raises(UnavailableError, match="its tags were changed"):
                await seldom.read("goatdb-root")


async def test_a_value_that_the_vault_lost_is_not_an_absent_secret_and_the_hint_keeps_the_pointer():
    clock = SteppedClock()
    with FakeKeyVault(clock=clock) as vault:
        async with made(vault, clock=clock, retry=ONCE) as provider:
            await provider.create("goatdb-root", b"first")
            alone = await provider.write("goatdb-root", b"\xff" * 19_000, label="other", expected=None)
            del vault._state.secrets["goatdb-root-pointer"][alone.id]
            with pytest.raises(UnavailableError, match="that the vault does not have") as caught:
                await provider.read("goatdb-root", "other")
            assert "Do not delete goatdb-root-pointer" in str(caught.value.hint)
