"""Other readers of a secret in Azure Key Vault, views that lag behind, secrets of earlier builds, what a change costs.

`az` is not run: it is too large to install here. What it sends is, byte by byte: Get Secret without a version.
"""

from __future__ import annotations

import asyncio
import json
import re
import ssl
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("azure.keyvault.secrets", reason="needs the extra azure")

from goatherd.errors import (
    ConflictError,
    ProviderAccessDeniedError,
    UnavailableError,
    VersionDisabledError,
)
from goatherd.providers.azure import AzureAddress, AzureSecretProvider, records
from goatherd.providers.azure.permissions import DATA_ACTIONS
from goatherd.providers.base import RetryPolicy
from goatherd.providers.capabilities import Verdict
from goatherd.providers.values import CURRENT, STABLE, Label, VersionId, VersionState
from tests.deadlines import HANG
from tests.fakes.azure_fake import FakeCredential, FakeKeyVault, FastClock, SteppedClock, Trouble, _Version

SPEED = 50.0
ONCE = RetryPolicy(attempts=1)
EARLIER = Path(__file__).with_name("azure_earlier_build.json")
PAGE = Path(__file__).resolve().parents[2] / "docs/how-to/store-azure.md"
DOCUMENT = '{\n  "roots": ["é", "\\u0001"],\t"n": 1\n}\n'
READER = "token-of-an-ordinary-reader"


@pytest.fixture
def vault() -> Iterator[FakeKeyVault]:
    with FakeKeyVault(speed=SPEED) as running:
        # What the page says that such a reader needs, and nothing more.
        running.allow(READER, ["Microsoft.KeyVault/vaults/secrets/getSecret/action"], ["goatdb-root"])
        yield running


def made(
    vault: FakeKeyVault,
    *,
    token: str | None = None,
    retry: RetryPolicy | None = None,
    clock: SteppedClock | None = None,
) -> AzureSecretProvider:
    address = AzureAddress(vault="fake", url=vault.url, ca=str(vault.ca), check_challenge=False)
    credential = FakeCredential() if token is None else FakeCredential(token)
    return AzureSecretProvider(address, credential=credential, clock=clock or FastClock(SPEED), retry=retry)


@pytest.fixture
async def provider(vault: FakeKeyVault) -> AsyncIterator[AzureSecretProvider]:
    async with made(vault) as opened:
        yield opened


def documented_secret() -> str:
    """Return the name that the page's command reads, after a look at the rest of it."""
    found = re.findall(r"^\$ az keyvault secret download (.*)$", PAGE.read_text(), re.MULTILINE)
    assert len(found) == 1
    words = found[0].split()
    options = dict(zip(words[::2], words[1::2], strict=True))
    assert options.keys() == {"--vault-name", "--name", "--file", "--encoding"}
    assert options["--encoding"] == "utf-8"
    return options["--name"]


def read_as_documented(vault: FakeKeyVault) -> str:
    """Send the request of ``az keyvault secret download`` and return the value, which the command stores as UTF-8."""
    url = f"{vault.url}/secrets/{documented_secret()}/?api-version=7.4"
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {READER}"})
    context = ssl.create_default_context(cafile=str(vault.ca))
    with urllib.request.urlopen(request, context=context, timeout=60) as answer:
        return str(json.load(answer)["value"])


async def test_the_pages_command_reads_the_current_document_with_rights_on_the_view_alone(
    vault: FakeKeyVault, provider: AzureSecretProvider
):
    first = await provider.create("goatdb-root", DOCUMENT.encode())
    assert read_as_documented(vault) == DOCUMENT
    second = await provider.write("goatdb-root", b"second", expected=first.id)
    assert read_as_documented(vault) == "second"
    await provider.write("goatdb-root", b"a candidate", label="candidate", expected=None)
    with pytest.raises(ConflictError):
        await provider.write("goatdb-root", b"lost", expected=first.id)
    await provider.label("goatdb-root", STABLE, first.id, expected=None)
    assert read_as_documented(vault) == "second"
    await provider.label("goatdb-root", CURRENT, first.id, expected=second.id)
    assert read_as_documented(vault) == DOCUMENT
    await provider.destroy("goatdb-root", second.id)
    assert read_as_documented(vault) == DOCUMENT


async def test_a_reader_during_changes_sees_only_what_was_decided_and_never_goes_back(
    vault: FakeKeyVault, provider: AzureSecretProvider
):
    seen: list[int] = []

    async def poll() -> None:
        while True:
            seen.append(int(await asyncio.to_thread(read_as_documented, vault)))

    holder = (await provider.create("goatdb-root", b"0")).id
    polling = asyncio.create_task(poll())
    for number in range(1, 6):
        await provider.write("goatdb-root", b"candidate", label=f"c{number}", expected=None)
        holder = (await provider.write("goatdb-root", b"%d" % number, expected=holder)).id
        assert await asyncio.to_thread(read_as_documented, vault) == str(number), "right after the change"
    polling.cancel()
    assert seen == sorted(seen)
    assert len(set(seen)) > 2, "the reader did read between changes"


async def test_a_value_that_is_not_text_is_there_in_base64(vault: FakeKeyVault, provider: AzureSecretProvider):
    await provider.create("goatdb-root", b"\xff\x00")
    assert read_as_documented(vault) == "/wA="


# --- views that lag behind ------------------------------------------------------------------------------------------


def without_view(vault: FakeKeyVault) -> None:
    """Make it a secret whose view was never written, or deleted by hand."""
    del vault._state.secrets["goatdb-root"]


@pytest.mark.parametrize("change", ["write", "label", "candidate", "destroy"])
@pytest.mark.parametrize("is_new_process", [True, False])
async def test_the_next_change_writes_a_view_that_is_missing(vault: FakeKeyVault, change: str, is_new_process: bool):
    async with made(vault) as writer:
        first = await writer.create("goatdb-root", b"first")
        second = await writer.write("goatdb-root", b"second", expected=first.id)
        without_view(vault)
        writer._shown.clear()
        async with made(vault) as other:
            provider = other if is_new_process else writer
            assert (await provider.read("goatdb-root")).value.reveal() == b"second"
            if change == "write":
                await provider.write("goatdb-root", b"third", expected=second.id)
            elif change == "label":
                await provider.label("goatdb-root", STABLE, second.id, expected=None)
            elif change == "candidate":
                await provider.write("goatdb-root", b"third", label="candidate", expected=None)
            else:
                await provider.destroy("goatdb-root", first.id)
    assert read_as_documented(vault) == ("third" if change == "write" else "second")


async def test_a_rotator_without_rights_on_the_view_is_denied_before_anything_changes(
    vault: FakeKeyVault, provider: AzureSecretProvider
):
    first = await provider.create("goatdb-root", b"first")
    without_view(vault)
    vault.allow("old-rotator", DATA_ACTIONS["rotator"], ["goatdb-root-pointer"])
    before = vault.versions("goatdb-root-pointer")
    async with made(vault, token="old-rotator") as denied:
        with pytest.raises(ProviderAccessDeniedError) as caught:
            await denied.write("goatdb-root", b"second", expected=first.id)
    assert "goatherd policy azure" in caught.value.hint
    assert vault.versions("goatdb-root-pointer") == before


@pytest.mark.parametrize("operation", ["create", "write", "label"])
async def test_a_view_whose_writing_failed_is_written_by_the_retry(
    vault: FakeKeyVault, provider: AzureSecretProvider, operation: str
):
    if operation != "create":
        first = await provider.create("goatdb-root", b"first")
        await provider.write("goatdb-root", b"second", label="candidate", expected=None)
    vault.trouble = [Trouble(match="PUT /secrets/goatdb-root ", status=500)]
    if operation == "create":
        await provider.create("goatdb-root", b"second")
    elif operation == "write":
        await provider.write("goatdb-root", b"second", expected=first.id)
    else:
        held = (await provider.read("goatdb-root", Label("candidate"))).version.id
        await provider.label("goatdb-root", CURRENT, held, expected=first.id)
    assert vault.trouble == []
    assert read_as_documented(vault) == "second"


async def test_a_view_whose_writer_died_shows_the_whole_old_document_until_the_next_change(vault: FakeKeyVault):
    async with made(vault, retry=ONCE) as dying, made(vault) as next_one:
        first = await dying.create("goatdb-root", b"first")
        vault.trouble = [Trouble(match="PUT /secrets/goatdb-root ", status=500)]
        with pytest.raises(UnavailableError):
            await dying.write("goatdb-root", b"second", expected=first.id)
        assert read_as_documented(vault) == "first"
        current = await next_one.read("goatdb-root")
        assert current.value.reveal() == b"second"
        await next_one.label("goatdb-root", STABLE, current.version.id, expected=None)
        assert read_as_documented(vault) == "second"


async def test_a_view_that_arrives_after_the_next_change_s_is_put_right(vault: FakeKeyVault):
    held, sent = asyncio.Event(), asyncio.Event()
    async with made(vault) as slow, made(vault) as fast:
        first = await slow.create("goatdb-root", b"first")
        assert slow._vault is not None
        put = slow._vault.put

        async def late(call: Any, name: str, *rest: Any) -> Any:
            if name == "goatdb-root" and not held.is_set():
                sent.set()
                await held.wait()
            return await put(call, name, *rest)

        slow._vault.put = late  # type: ignore[method-assign]
        writing = asyncio.create_task(slow.write("goatdb-root", b"second", expected=first.id))
        await sent.wait()
        second = await fast.read("goatdb-root")
        assert second.value.reveal() == b"second"
        await fast.write("goatdb-root", b"third", expected=second.version.id)
        held.set()
        await writing
    assert list(vault.versions("goatdb-root").values())[-2:] == ["second", "third"]


async def test_a_current_version_that_was_switched_off_by_hand_does_not_stop_the_change_that_helps(
    vault: FakeKeyVault, provider: AzureSecretProvider
):
    first = await provider.create("goatdb-root", b"first")
    second = await provider.write("goatdb-root", b"second", expected=first.id)
    vault._state.secrets["goatdb-root-pointer"][second.id].enabled = False
    without_view(vault)
    async with made(vault) as other:
        with pytest.raises(VersionDisabledError):
            await other.read("goatdb-root")
        await other.label("goatdb-root", CURRENT, first.id, expected=second.id)
    assert read_as_documented(vault) == "first"


async def test_destroying_switches_off_what_the_view_showed_before(vault: FakeKeyVault, provider: AzureSecretProvider):
    first = await provider.create("goatdb-root", b"first")
    await provider.write("goatdb-root", b"second", expected=first.id)
    await provider.destroy("goatdb-root", first.id)
    enabled = [one.value for one in vault._state.secrets["goatdb-root"].values() if one.enabled]
    assert enabled == ["second"]


async def test_a_value_that_no_pointer_names_is_listed_read_and_switched_off(
    vault: FakeKeyVault, provider: AzureSecretProvider
):
    first = await provider.create("goatdb-root", b"first")
    async with made(vault, retry=ONCE) as dying:
        assert dying._vault is not None
        put, sent = dying._vault.put, asyncio.Event()

        async def late(call: Any, *rest: Any) -> Any:
            sent.set()
            await overtaken.wait()
            return await put(call, *rest)

        overtaken = asyncio.Event()
        await dying.read("goatdb-root")
        dying._vault.put = late  # type: ignore[method-assign]
        writing = asyncio.create_task(dying.write("goatdb-root", b"lost", expected=first.id))
        await sent.wait()
        await provider.label("goatdb-root", STABLE, first.id, expected=None)
        vault.trouble = [Trouble(match="GET /secrets/goatdb-root-pointer/versions", status=500)]
        overtaken.set()
        with pytest.raises(UnavailableError):
            await writing
    stored = vault.versions("goatdb-root-pointer")
    (lost,) = [version for version, value in stored.items() if value.endswith("\nlost")]
    assert [(version.id, sorted(version.labels)) for version in await provider.versions("goatdb-root")] == [
        (lost, []),
        (first.id, ["current", "stable"]),
    ]
    assert (await provider.read("goatdb-root", VersionId(lost))).value.reveal() == b"lost"
    await provider.destroy("goatdb-root", lost)
    assert {version.id: version.state for version in await provider.versions("goatdb-root")} == {
        lost: VersionState.DISABLED,
        first.id: VersionState.ENABLED,
    }
    with pytest.raises(VersionDisabledError):
        await provider.read("goatdb-root", VersionId(lost))
    assert (await provider.write("goatdb-root", b"second", expected=first.id)).labels == {CURRENT}


async def test_the_diagnosis_says_whether_the_view_holds_the_current_document(
    vault: FakeKeyVault, provider: AzureSecretProvider
):
    async def view(one: AzureSecretProvider) -> tuple[Verdict, str]:
        rights, finding = await one.diagnose("goatdb-root")
        assert (rights.name, rights.verdict, finding.name) == ("rights", Verdict.NOT_CHECKED, "view")
        return finding.verdict, finding.text

    first = await provider.create("goatdb-root", b"first")
    assert await view(provider) == (Verdict.FINE, "goatdb-root holds the current document")
    (version,) = vault.versions("goatdb-root")
    vault.overwrite("goatdb-root", version, "another")
    assert await view(provider) == (Verdict.CAUTION, "goatdb-root does not hold the current document")
    without_view(vault)
    assert await view(provider) == (Verdict.CAUTION, "goatdb-root does not exist")
    vault.allow("old-server", DATA_ACTIONS["server"], ["goatdb-root-pointer"])
    async with made(vault, token="old-server") as server:
        assert await view(server) == (Verdict.NOT_CHECKED, "goatdb-root may not be read")
    async with made(vault) as other:
        await other.label("goatdb-root", STABLE, first.id, expected=None)
        assert (await view(other))[0] is Verdict.FINE


# --- what a change costs --------------------------------------------------------------------------------------------


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
            assert provider._vault is not None
            put = provider._vault.put

            async def slow(call: Any, name: str, *rest: Any) -> Any:
                clock.passed += 1 if name == "goatdb-root" else 0
                return await put(call, name, *rest)

            provider._vault.put = slow  # type: ignore[method-assign]
            vault.requests.clear()
            await provider.write("goatdb-root", b"second", expected=first.id)
            assert len(vault.requests) == documented_requests()["write"] + 1
            assert vault.requests[-1] == "GET /secrets/goatdb-root-pointer/"


async def test_a_copy_in_the_view_that_comes_after_the_destruction_is_listed_and_destroyed():
    clock = SteppedClock()
    with FakeKeyVault(clock=clock) as vault:
        async with made(vault, clock=clock) as slow, made(vault, clock=clock) as provider:
            first = await slow.create("goatdb-root", b"first")
            assert slow._vault is not None
            put, is_held, go_on = slow._vault.put, asyncio.Event(), asyncio.Event()

            async def held_up(call: Any, name: str, *rest: Any) -> Any:
                if name == "goatdb-root" and not is_held.is_set():
                    is_held.set()
                    await go_on.wait()
                return await put(call, name, *rest)

            slow._vault.put = held_up  # type: ignore[method-assign]
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


# --- pointers that are switched off with the value that they brought ------------------------------------------------


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


# --- secrets of earlier builds --------------------------------------------------------------------------------------


def earlier_build(vault: FakeKeyVault, clock: SteppedClock, *, has_view: bool = True) -> dict[str, str]:
    """Put a secret of an earlier build into the vault; return the version ids by what they are."""
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
