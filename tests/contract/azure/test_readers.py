"""Other readers of a secret in Azure Key Vault, and views that lag behind."""

from __future__ import annotations

import asyncio
import json
import re
import ssl
import urllib.request
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
from goatherd.providers.azure.provider import AzureSecretProvider
from goatherd.providers.base import RetryPolicy
from goatherd.providers.capabilities import Verdict
from goatherd.providers.values import CURRENT, STABLE, Label, VersionId, VersionState
from tests.fakes.azure_fake import FakeKeyVault, Trouble

from .clients import made

ONCE = RetryPolicy(attempts=1)
PAGE = Path(__file__).resolve().parents[3] / "docs/how-to/store-azure.md"
DOCUMENT = '{\n  "roots": ["é", "\\u0001"],\t"n": 1\n}\n'
READER = "token-of-an-ordinary-reader"

READS = [
    "Microsoft.KeyVault/vaults/secrets/getSecret/action",
    "Microsoft.KeyVault/vaults/secrets/readMetadata/action",
]
SETS = "Microsoft.KeyVault/vaults/secrets/setSecret/action"


def documented_secret() -> str:
    """Return the secret's name in the page's command, after checking the rest of the command."""
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


# --- views that lag behind --------------------------------------------------------------------------------------------


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
    vault.allow("old-rotator", [*READS, SETS], ["goatdb-root-pointer"])
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
        put = slow._vault.put_secret

        async def late(name: str, *rest: Any) -> Any:
            if name == "goatdb-root" and not held.is_set():
                sent.set()
                await held.wait()
            return await put(name, *rest)

        slow._vault.put_secret = late  # type: ignore[method-assign]
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
        put, sent = dying._vault.put_secret, asyncio.Event()

        async def late(*arguments: Any) -> Any:
            sent.set()
            await overtaken.wait()
            return await put(*arguments)

        overtaken = asyncio.Event()
        await dying.read("goatdb-root")
        dying._vault.put_secret = late  # type: ignore[method-assign]
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
    vault.allow("old-server", READS, ["goatdb-root-pointer"])
    async with made(vault, token="old-server") as server:
        assert await view(server) == (Verdict.NOT_CHECKED, "goatdb-root may not be read")
    async with made(vault) as other:
        await other.label("goatdb-root", STABLE, first.id, expected=None)
        assert (await view(other))[0] is Verdict.FINE
