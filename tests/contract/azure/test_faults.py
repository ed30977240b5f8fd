"""Errors of the Azure provider when the vault, the network or the stored data are faulty."""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from datetime import timedelta

import pytest

pytest.importorskip("azure.keyvault.secrets", reason="needs the extra azure")

from azure.keyvault.secrets._shared import http_challenge_cache

from goatherd.errors import (
    ConflictError,
    ProviderAccessDeniedError,
    ProviderConfigurationError,
    ProviderError,
    SecretDeletedError,
    SecretExistsError,
    ThrottledError,
    UnavailableError,
    VersionDisabledError,
)
from goatherd.plugins import open_provider
from goatherd.providers.azure.address import AzureAddress
from goatherd.providers.azure.client import StoredSecret
from goatherd.providers.azure.provider import AzureSecretProvider
from goatherd.providers.azure.records import POINTER_TYPE
from goatherd.providers.values import CURRENT, STABLE, VersionState
from tests.deadlines import HANG
from tests.fakes.azure_fake import FakeCredential, FakeKeyVault, FastClock, Trouble
from tests.fakes.faults import Fault, FaultProxy, Mode

from .clients import ONCE, SPEED, made

VALUE = b"S3CRET-of-this-test"


def values_in(vault: FakeKeyVault) -> list[str]:
    """Return the stored values, without the pointers."""
    stored = vault._state.secrets["herd-pointer"].values()
    return [one.value for one in stored if one.content_type != POINTER_TYPE]


DAMAGED = {
    "a text": b"<html>not a vault</html>",
    "nothing": b"",
    "an empty object": b"{}",
    "a list": b"[]",
    "null": b"null",
    "cut JSON": b'{"value":"x","id":"https://localhost/secrets/herd/0123',
    "no value": b'{"id":"https://localhost/secrets/herd/%s","attributes":{"created":1}}' % (b"a" * 32),
    "no id": b'{"value":"x","attributes":{"created":1}}',
    "no time": b'{"value":"x","id":"https://localhost/secrets/herd/%s","attributes":{}}' % (b"a" * 32),
    "no attributes": b'{"value":"x","id":"https://localhost/secrets/herd/%s"}' % (b"a" * 32),
    "another version": b'{"value":"x","id":"https://localhost/secrets/herd/%s","attributes":{"created":1}}'
    % (b"a" * 32),
}


@pytest.mark.parametrize("body", DAMAGED.values(), ids=DAMAGED.keys())
@pytest.mark.parametrize("what", ["view", "pointer", "value"])
async def test_a_damaged_answer_is_unavailable_and_neither_a_value_nor_no_secret(
    vault: FakeKeyVault, once: AzureSecretProvider, body: bytes, what: str
):
    first = await once.create("herd", VALUE)
    once._pointers.clear()
    where = {"view": "/", "pointer": f"-pointer/{list(vault.versions('herd-pointer'))[-1]}"}
    vault.trouble = [
        Trouble(match=f"GET /secrets/herd{where.get(what, f'-pointer/{first.id}')}", status=200, body=body)
    ]
    at = first.id if what == "value" else CURRENT
    with pytest.raises((UnavailableError, ProviderConfigurationError)):
        await once.read("herd", at)
    assert (await once.read("herd", at)).value.reveal() == VALUE


ITEM = f'{{"id": "https://v/secrets/herd/{"a" * 32}", "attributes": {{"created": 1}}, %s}}'


@pytest.mark.parametrize(
    "body",
    [
        b"<html>",
        b"{}",
        b"null",
        b'{"value":[{}]}',
        b'{"value":[{"id":"x"}]}',
        b'{"value":5}',
        b'{"value":[5]}',
        *(
            f'{{"value": [{ITEM % odd}]}}'.encode()
            for odd in ('"tags": 5', '"tags": [1]', '"tags": "x"', '"attributes": {"created": "x"}')
        ),
    ],
)
async def test_a_damaged_list_is_unavailable(vault: FakeKeyVault, once: AzureSecretProvider, body: bytes):
    await once.create("herd", VALUE)
    vault.trouble = [Trouble(match="GET /secrets/herd-pointer/versions", status=200, body=body)]
    with pytest.raises(UnavailableError):
        await once.versions("herd")


@pytest.mark.parametrize("stored", ["oops", '{"format":"goatherd-azure-pointer/1","labels":{},"destroyed":[]}'])
async def test_a_pointer_that_changed_where_it_lies_is_unavailable(
    vault: FakeKeyVault, once: AzureSecretProvider, stored: str
):
    await once.create("herd", VALUE)
    once._pointers.clear()
    vault.overwrite("herd-pointer", list(vault.versions("herd-pointer"))[-1], stored)
    for begin in (lambda: once.read("herd"), lambda: once.versions("herd")):
        with pytest.raises(UnavailableError, match="is damaged"):
            await begin()


async def test_a_404_that_does_not_come_from_a_vault_is_not_an_absent_secret(
    vault: FakeKeyVault, once: AzureSecretProvider
):
    await once.create("herd", VALUE)
    vault.trouble = [Trouble(match="GET /secrets/herd/", status=404, body=b"<html>no such page</html>")]
    with pytest.raises(UnavailableError, match="not as a key vault does"):
        await once.read("herd")


async def test_a_version_of_the_pointer_that_is_listed_and_absent_is_named(
    vault: FakeKeyVault, once: AzureSecretProvider
):
    await once.create("herd", VALUE)
    once._pointers.clear()
    listed = list(vault.versions("herd-pointer"))[-1]
    absent = b'{"error": {"code": "SecretNotFound", "message": "not found"}}'
    vault.trouble = [Trouble(match=f"GET /secrets/herd-pointer/{listed}", status=404, body=absent)]
    with pytest.raises(UnavailableError, match=f"has no version {listed} of the pointer"):
        await once.read("herd")


async def test_429_carries_the_hint_and_is_waited_for(vault: FakeKeyVault, once: AzureSecretProvider):
    await once.create("herd", VALUE)
    hinted = Trouble(match="GET /secrets/herd", status=429, headers=(("Retry-After", "7"),))
    vault.trouble = [hinted]
    with pytest.raises(ThrottledError) as caught:
        await once.read("herd")
    assert caught.value.retry_after == 7
    async with made(vault) as patient:
        vault.trouble = [hinted]
        began = time.monotonic()
        assert (await patient.read("herd")).value.reveal() == VALUE
        assert time.monotonic() - began >= 7 / SPEED


async def test_429_without_a_hint_and_500_for_a_while_are_tried_again(
    vault: FakeKeyVault, provider: AzureSecretProvider
):
    await provider.create("herd", VALUE)
    for status in (429, 500, 503, 408):
        vault.trouble = [Trouble(match="GET", status=status, times=2)]
        assert (await provider.read("herd")).value.reveal() == VALUE
        assert vault.trouble == []


async def test_the_sdk_itself_repeats_nothing(vault: FakeKeyVault, once: AzureSecretProvider):
    await once.create("herd", VALUE)
    vault.requests.clear()
    vault.trouble = [Trouble(match="GET", status=500, times=None)]
    with pytest.raises(UnavailableError):
        await once.read("herd")
    assert len(vault.requests) == 1


async def test_a_version_switched_off_by_hand_is_disabled_and_not_denied(
    vault: FakeKeyVault, provider: AzureSecretProvider
):
    first = await provider.create("herd", VALUE)
    second = await provider.write("herd", b"second", label="candidate", expected=None)
    await provider._vault.disable_version("herd-pointer", second.id)
    with pytest.raises(VersionDisabledError) as caught:
        await provider.read("herd", "candidate")
    assert "az keyvault secret set-attributes" in caught.value.hint
    assert {v.id: v.state for v in await provider.versions("herd")} == {
        first.id: VersionState.ENABLED,
        second.id: VersionState.DISABLED,
    }
    with pytest.raises(VersionDisabledError):
        await provider.label("herd", STABLE, second.id, expected=None)


@pytest.mark.parametrize("inner_error", ["innererror", "innerError"])
async def test_a_denial_is_told_with_the_vaults_reason(vault: FakeKeyVault, inner_error: str):
    vault.allow("nobody", [])
    vault.inner_error = inner_error
    async with made(vault, token="nobody") as denied:
        with pytest.raises(ProviderAccessDeniedError, match=r"403 ForbiddenByRbac: Caller is not authorized") as caught:
            await denied.read("herd")
    assert "goatherd policy azure" in caught.value.hint


async def test_a_token_that_the_vault_refuses_is_a_denial(vault: FakeKeyVault):
    async with made(vault, token="unknown") as denied:
        with pytest.raises(ProviderAccessDeniedError, match="401"):
            await denied.read("herd")


async def test_azures_own_credentials_chain_finds_the_managed_identity(
    vault: FakeKeyVault, monkeypatch: pytest.MonkeyPatch
):
    for name in ("AZURE_CLIENT_ID", "AZURE_TENANT_ID", "AZURE_CLIENT_SECRET", "AZURE_TOKEN_CREDENTIALS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in vault.environment.items():
        monkeypatch.setenv(name, value)
    http_challenge_cache.clear()  # another test may have used the same port
    provider, secret_id = open_provider(vault.uri("herd"))
    provider.clock = FastClock(SPEED)
    async with provider:
        await provider.create(secret_id, VALUE)
        assert (await provider.read(secret_id)).value.reveal() == VALUE
    assert vault.challenges == 1, "only the first request goes without a token"


async def test_a_vault_in_another_domain_than_the_token_is_refused(vault: FakeKeyVault):
    address = AzureAddress(vault="fake", url=vault.url, ca=str(vault.ca))
    async with AzureSecretProvider(address, credential=FakeCredential()) as provider:
        with pytest.raises(ProviderConfigurationError, match="another domain") as caught:
            await provider.read("herd")
    assert "challenge=unchecked" in caught.value.hint
    assert vault.requests == [], "no token was sent"


async def test_an_untrusted_certificate_is_unavailable(vault: FakeKeyVault):
    address = AzureAddress(vault="fake", url=vault.url, check_challenge=False)
    async with AzureSecretProvider(address, credential=FakeCredential(), retry=ONCE) as provider:
        with pytest.raises(UnavailableError, match="the server's certificate is not trusted: self-signed"):
            await provider.read("herd")


async def test_a_deleted_secret_says_how_to_recover_it(provider: AzureSecretProvider):
    await provider.create("herd", VALUE)
    await provider.delete("herd")
    for begin in (lambda: provider.create("herd", VALUE), lambda: provider.read("herd")):
        with pytest.raises(SecretDeletedError, match="can be recovered") as caught:
            await begin()
        assert "Recover herd, herd-pointer (" in caught.value.hint
        assert "az keyvault secret recover --vault-name fake" in caught.value.hint


async def test_a_deletion_that_was_cut_in_the_middle_can_be_finished(
    vault: FakeKeyVault, once: AzureSecretProvider, provider: AzureSecretProvider
):
    await once.create("herd", VALUE)
    vault.trouble = [Trouble(match="DELETE /secrets/herd-pointer", status=500)]
    with pytest.raises(UnavailableError):
        await once.delete("herd")
    assert (await once.read("herd")).value.reveal() == VALUE, "until the pointer is deleted, it is there"
    with pytest.raises(SecretDeletedError, match="can be recovered"):
        await once.create("herd", VALUE)
    await provider.delete("herd")
    for begin in (provider.delete, provider.read):
        with pytest.raises(SecretDeletedError):
            await begin("herd")


async def test_a_deletion_whose_answer_was_lost_is_not_an_error(vault: FakeKeyVault, provider: AzureSecretProvider):
    await provider.create("herd", VALUE)
    vault.trouble = [Trouble(match="DELETE /secrets/herd-pointer", after=True, hang_up=True)]
    await provider.delete("herd")


async def test_a_secret_that_is_not_ours_is_not_written_to(vault: FakeKeyVault, provider: AzureSecretProvider):
    await provider._vault.put_secret("herd", "of another program", "text/plain", {})
    with pytest.raises(SecretExistsError, match="is not Goatherd's"):
        await provider.create("herd", VALUE)
    assert list(vault.versions("herd").values()) == ["of another program"]


async def test_a_pointer_set_by_hand_changes_nothing(vault: FakeKeyVault, provider: AzureSecretProvider):
    first = await provider.create("herd", VALUE)
    await provider._vault.put_secret("herd-pointer", "oops", "text/plain", {})
    async with made(vault) as reader:
        assert [one.id for one in await reader.versions("herd")] == [first.id]
        second = await reader.write("herd", b"second", expected=first.id)
    assert (await provider.read("herd")).version.id == second.id


# --- answers that are lost after the vault made the change ------------------------------------------------------------


@pytest.mark.parametrize("what", ["PUT /secrets/herd ", "PUT /secrets/herd-pointer "])
async def test_a_write_whose_answer_was_lost_is_done_once(
    vault: FakeKeyVault, provider: AzureSecretProvider, what: str
):
    first = await provider.create("herd", b"first")
    vault.trouble = [Trouble(match=what, after=True, hang_up=True)]
    second = await provider.write("herd", b"second", expected=first.id)
    assert vault.trouble == []
    assert values_in(vault) == ["first", "second"], "no third version"
    assert [v.id for v in await provider.versions("herd")] == [second.id, first.id]
    assert (await provider.read("herd")).value.reveal() == b"second"


@pytest.mark.parametrize("what", ["PUT /secrets/herd ", "PUT /secrets/herd-pointer "])
async def test_a_creation_whose_answer_was_lost_is_done_once(
    vault: FakeKeyVault, provider: AzureSecretProvider, what: str
):
    vault.trouble = [Trouble(match=what, after=True, hang_up=True)]
    first = await provider.create("herd", b"first")
    assert values_in(vault) == ["first"]
    assert (await provider.read("herd")).version.id == first.id


async def test_a_label_whose_answer_was_lost_is_moved_once(vault: FakeKeyVault, provider: AzureSecretProvider):
    first = await provider.create("herd", b"first")
    vault.trouble = [Trouble(match="PUT /secrets/herd-pointer", after=True, hang_up=True)]
    await provider.label("herd", STABLE, first.id, expected=None)
    assert (await provider.read("herd", STABLE)).version.labels == {CURRENT, STABLE}


async def test_a_write_that_was_lost_with_its_writer_is_settled_by_the_next_writer(
    vault: FakeKeyVault, once: AzureSecretProvider, provider: AzureSecretProvider
):
    first = await once.create("herd", b"first")
    put = once._vault.put_secret

    async def lost(name: str, value: str, kind: str, tags: dict[str, str]) -> StoredSecret:
        written = await put(name, value, kind, tags)
        if kind == POINTER_TYPE:
            raise UnavailableError("no answer")
        return written

    once._vault.put_secret = lost  # type: ignore[method-assign]
    with pytest.raises(UnavailableError):
        await once.write("herd", b"second", expected=first.id)
    with pytest.raises(ConflictError):
        await provider.write("herd", b"third", expected=first.id)
    assert (await provider.read("herd")).value.reveal() == b"second"


# --- over a proxy -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        Fault(mode=Mode.RESET, times=1),
        Fault(mode=Mode.CUT, after=0, times=1),
        Fault(mode=Mode.CUT, after=60, times=1),
        Fault(mode=Mode.CUT, after=400, times=1),
        Fault(mode=Mode.REPLY_LOST, times=1),
        Fault(mode=Mode.DELAY, delay=timedelta(milliseconds=50), times=3),
    ],
    ids=lambda fault: f"{fault.mode} {fault.after}",
)
async def test_after_a_fault_on_the_way_old_or_new_is_there_and_nothing_was_written_twice(
    vault: FakeKeyVault, fault: Fault
):
    async with FaultProxy("127.0.0.1", vault.port) as proxy, made(vault, port=proxy.port) as provider:
        holder = (await provider.create("herd", b"0")).id
        for number in range(1, 4):
            proxy.fault = fault
            holder = (await provider.write("herd", b"%d" % number, expected=holder)).id
            assert proxy.fault.mode is Mode.OK, "it happened"
            assert (await provider.read("herd")).value.reveal() == b"%d" % number
        assert len(await provider.versions("herd")) == 4
        assert values_in(vault) == ["0", "1", "2", "3"]


async def test_a_refused_connection_is_unavailable(vault: FakeKeyVault):
    async with FaultProxy("127.0.0.1", vault.port) as proxy, made(vault, port=proxy.port, retry=ONCE) as provider:
        await provider.create("herd", VALUE)
        await proxy.stop()
        with pytest.raises(UnavailableError, match="no answer from"):
            await provider.read("herd")


async def test_a_vault_that_says_nothing_is_waited_for_no_longer_than_the_deadline(vault: FakeKeyVault):
    async with FaultProxy("127.0.0.1", vault.port) as proxy, made(vault, port=proxy.port, seconds=0.5) as provider:
        await provider.create("herd", VALUE)
        proxy.fault = Fault(mode=Mode.BLACK_HOLE)
        async with asyncio.timeout(HANG):
            with pytest.raises(UnavailableError, match=r"0\.5 s|no answer"):
                await provider.read("herd")


async def test_no_error_and_no_log_shows_a_value_or_a_token(
    vault: FakeKeyVault, once: AzureSecretProvider, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.DEBUG)
    first = await once.create("herd", VALUE)
    shown = []
    for trouble in (
        Trouble(match="PUT", status=200, body=b'{"value":"' + VALUE + b'"'),
        Trouble(match="PUT", status=400, body=b'{"error":{"code":"BadParameter","message":"' + VALUE + b'"}}'),
        Trouble(match="PUT", status=500, body=VALUE),
        Trouble(match="PUT", hang_up=True),
        Trouble(match="GET /secrets/herd-pointer/versions", status=200, body=b'{"value":"' + VALUE),
    ):
        vault.trouble = [trouble]
        with pytest.raises(ProviderError) as caught:
            await once.write("herd", VALUE, expected=first.id)
        error: BaseException | None = caught.value
        while error is not None:
            shown.append(repr(error) + "".join(traceback.format_exception(error)) + repr(vars(error)))
            error = error.__cause__ or error.__context__
    shown += [record.getMessage() for record in caplog.records]
    leaks = [text for text in shown if VALUE.decode() in text or "token-of-the-owner" in text]
    assert leaks == []
