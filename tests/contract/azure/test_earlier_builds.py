"""Secrets in Azure Key Vault of earlier builds, and pointers that are disabled with their value."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("azure.keyvault.secrets", reason="needs the extra azure")

from goatherd.errors import (
    UnavailableError,
    VersionDisabledError,
)
from goatherd.providers.azure import AzureSecretProvider
from goatherd.providers.base import RetryPolicy
from goatherd.providers.values import CURRENT, STABLE, Label, VersionId, VersionState
from tests.fakes.azure_fake import FakeKeyVault, SteppedClock, _Version

from .clients import made

ONCE = RetryPolicy(attempts=1)
EARLIER = Path(__file__).with_name("earlier_build.json")
READER = "token-of-an-ordinary-reader"


# --- pointers that are switched off with the value that they brought --------------------------------------------------


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


# --- secrets of earlier builds ----------------------------------------------------------------------------------------


def earlier_build(vault: FakeKeyVault, clock: SteppedClock, *, has_view: bool = True) -> dict[str, str]:
    """Put a secret of an earlier build into the vault; return the version ids by role."""
    for name, versions in json.loads(EARLIER.read_text()).items():
        if has_view or not name.endswith("-current"):
            stored = {version: _Version(**one) for version, one in versions.items()}
            vault._state.secrets[name] = stored
    clock.passed += 60
    first, gone, second, candidate, left = vault.versions("goatdb-root")
    return {"first": first, "gone": gone, "second": second, "candidate": candidate, "left": left}


@pytest.mark.parametrize("has_view", [True, False])
async def test_a_secret_of_an_earlier_build_is_read_as_it_is_and_changed_in_the_new_format(has_view: bool):
    clock = SteppedClock()
    with FakeKeyVault(clock=clock) as vault:
        ids = earlier_build(vault, clock, has_view=has_view)
        before = dict(vault._state.secrets["goatdb-root-pointer"])
        async with made(vault, clock=clock) as provider, made(vault, clock=clock) as other:
            await must_be_as_the_earlier_build_left_it(provider, ids)
            assert vault._state.secrets["goatdb-root-pointer"] == before, "reading changes nothing"
            third = await provider.write("goatdb-root", b'{"n": 3}', expected=ids["second"])
            for reader in (provider, other):
                assert (await reader.read("goatdb-root")).value.reveal() == b'{"n": 3}'
                assert (await reader.read("goatdb-root", STABLE)).value.reveal() == b'{"n": 1}'
                assert (await reader.read("goatdb-root", VersionId(ids["left"]))).value.reveal() == b"left"
                assert [version.id for version in await reader.versions("goatdb-root")] == [
                    *(third.id, ids["left"], ids["candidate"], ids["second"], ids["gone"], ids["first"])
                ]
            assert list(vault.versions("goatdb-root").values())[-1] == '{"n": 3}', "other readers find it by its name"
            await other.label("goatdb-root", CURRENT, ids["candidate"], expected=third.id)
            assert list(vault.versions("goatdb-root").values())[-1] == "/wA="
            for version in (ids["second"], ids["left"], third.id):
                await other.destroy("goatdb-root", version)
            enabled = {
                one.value.rpartition("\n")[2]
                for name in vault._state.secrets
                for one in vault._state.secrets[name].values()
                if one.enabled and "json" not in (one.content_type or "")
            }
            assert enabled == {'{"n": 1}', "/wA="}, (
                "no key that was destroyed is left, nor the view that is not written"
            )
            await provider.delete("goatdb-root")
            assert vault._state.secrets == {}


async def test_values_that_were_purged_are_not_an_absent_secret_and_the_hint_keeps_the_pointer():
    clock = SteppedClock()
    with FakeKeyVault(clock=clock) as vault:
        earlier_build(vault, clock)
        del vault._state.secrets["goatdb-root"]
        async with made(vault, clock=clock, retry=ONCE) as provider:
            with pytest.raises(UnavailableError, match="that the vault does not have") as caught:
                await provider.read("goatdb-root")
            assert "Do not delete goatdb-root-pointer" in str(caught.value.hint)


async def test_the_next_change_of_an_earlier_secret_writes_the_view_whatever_it_is():
    for change in ("label", "candidate", "destroy"):
        clock = SteppedClock()
        with FakeKeyVault(clock=clock) as vault:
            ids = earlier_build(vault, clock)
            async with made(vault, clock=clock) as provider:
                if change == "label":
                    await provider.label("goatdb-root", STABLE, ids["second"], expected=ids["first"])
                elif change == "candidate":
                    await provider.write("goatdb-root", b"x", label="other", expected=None)
                else:
                    await provider.destroy("goatdb-root", ids["left"])
                await provider.read("goatdb-root")
            assert list(vault.versions("goatdb-root").values())[-1] == '{"n": 2}', change


async def must_be_as_the_earlier_build_left_it(provider: AzureSecretProvider, ids: dict[str, str]) -> None:
    assert (await provider.read("goatdb-root")).value.reveal() == b'{"n": 2}'
    assert (await provider.read("goatdb-root", STABLE)).value.reveal() == b'{"n": 1}'
    assert (await provider.read("goatdb-root", Label("candidate"))).value.reveal() == b"\xff\x00"
    with pytest.raises(VersionDisabledError):
        await provider.read("goatdb-root", VersionId(ids["gone"]))
    assert [
        (version.id, set(version.labels), str(version.state), version.is_leftover)
        for version in await provider.versions("goatdb-root")
    ] == [
        (ids["left"], set(), "enabled", True),
        (ids["candidate"], {"candidate"}, "enabled", False),
        (ids["second"], {"current"}, "enabled", False),
        (ids["gone"], set(), "disabled", False),
        (ids["first"], {"stable"}, "enabled", False),
    ]
