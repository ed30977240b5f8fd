"""Other readers of a secret in Azure Key Vault, and views that lag behind."""

from __future__ import annotations

import asyncio
import json
import re
import ssl
import urllib.request
from pathlib import Path

import pytest

pytest.importorskip("azure.keyvault.secrets", reason="needs the extra azure")

from goatherd.errors import (
    ConflictError,
    ProviderAccessDeniedError,
    SecretExistsError,
    UnavailableError,
    VersionDisabledError,
)
from goatherd.providers.azure.provider import AzureSecretProvider
from goatherd.providers.capabilities import Verdict
from goatherd.providers.values import CURRENT, STABLE, Label
from tests.fakes.azure_fake import FakeKeyVault, Trouble

from .clients import ONCE, made

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


@pytest.mark.parametrize("change", ["write", "label", "candidate", "destroy", "create"])
@pytest.mark.parametrize("lack", ["missing", "disabled", "without tags"])
async def test_a_secret_without_a_view_is_read_and_the_next_change_writes_the_view(
    vault: FakeKeyVault, provider: AzureSecretProvider, change: str, lack: str
):
    first = await provider.create("goatdb-root", b"first")
    second = await provider.write("goatdb-root", b"second", expected=first.id)
    newest = list(vault._state.secrets["goatdb-root"].values())[-1]
    if lack == "missing":
        without_view(vault)
    elif lack == "disabled":
        newest.enabled = False
    else:
        newest.tags.clear()
    if lack == "disabled":
        with pytest.raises(VersionDisabledError):
            await provider.read("goatdb-root")
    else:
        assert await provider.read("goatdb-root") == await provider.read("goatdb-root", second.id)
    if change == "write":
        await provider.write("goatdb-root", b"third", expected=second.id)
    elif change == "label":
        await provider.label("goatdb-root", STABLE, second.id, expected=None)
    elif change == "candidate":
        await provider.write("goatdb-root", b"third", label="candidate", expected=None)
    elif change == "destroy":
        await provider.destroy("goatdb-root", first.id)
    else:
        with pytest.raises(SecretExistsError):
            await provider.create("goatdb-root", b"third")
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
        assert (await next_one.read("goatdb-root")).version == first
        (second,) = [one.id for one in await next_one.versions("goatdb-root") if CURRENT in one.labels]
        assert (await next_one.read("goatdb-root", second)).value.reveal() == b"second"
        with pytest.raises(ConflictError):
            await next_one.write("goatdb-root", b"third", expected=first.id)
        assert (await next_one.read("goatdb-root")).version.id == second
        assert read_as_documented(vault) == "second"


async def test_a_current_version_that_was_switched_off_by_hand_does_not_stop_the_change_that_helps(
    vault: FakeKeyVault, provider: AzureSecretProvider
):
    first = await provider.create("goatdb-root", b"first")
    second = await provider.write("goatdb-root", b"second", expected=first.id)
    vault._state.secrets["goatdb-root-pointer"][second.id].enabled = False
    without_view(vault)
    with pytest.raises(VersionDisabledError):
        await provider.read("goatdb-root")
    await provider.label("goatdb-root", CURRENT, first.id, expected=second.id)
    assert read_as_documented(vault) == "first"


async def test_destroying_switches_off_what_the_view_showed_before(vault: FakeKeyVault, provider: AzureSecretProvider):
    first = await provider.create("goatdb-root", b"first")
    await provider.write("goatdb-root", b"second", expected=first.id)
    await provider.destroy("goatdb-root", first.id)
    assert {one.value for one in vault._state.secrets["goatdb-root"].values() if one.enabled} == {"second"}


async def test_the_diagnosis_says_whether_the_view_holds_the_current_document(
    vault: FakeKeyVault, provider: AzureSecretProvider
):
    async def view() -> tuple[Verdict, str]:
        rights, finding = await provider.diagnose("goatdb-root")
        assert (rights.name, rights.verdict, finding.name) == ("rights", Verdict.NOT_CHECKED, "view")
        return finding.verdict, finding.text

    first = await provider.create("goatdb-root", b"first")
    assert await view() == (Verdict.FINE, "goatdb-root holds the current document")
    next(iter(vault._state.secrets["goatdb-root"].values())).tags.clear()
    assert await view() == (Verdict.CAUTION, "goatdb-root does not hold the current document")
    without_view(vault)
    assert await view() == (Verdict.CAUTION, "goatdb-root does not exist")
    await provider.label("goatdb-root", STABLE, first.id, expected=None)
    assert (await view())[0] is Verdict.FINE
