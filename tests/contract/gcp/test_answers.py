"""Google Secret Manager's answers: errors, hints and damage, and that no error shows a value."""

from __future__ import annotations

import asyncio
import base64
import logging
import secrets
import traceback
from collections.abc import Awaitable, Callable, Iterator
from datetime import timedelta

import pytest
from google.cloud.secretmanager_v1 import types as wire

from goatherd.errors import (
    ProviderAccessDeniedError,
    ProviderConfigurationError,
    ProviderError,
    SecretNotFoundError,
    ThrottledError,
    UnavailableError,
    VersionDisabledError,
)
from goatherd.providers.base import RetryPolicy
from goatherd.providers.values import CURRENT, STABLE, Label, VersionId
from tests.fakes.gcp_fake import ACCESS, READ, Failure, FakeSecretManager

from .clients import PROJECT, client, new_secret

NEVER = RetryPolicy(attempts=1)


# --- what the service says --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        ("PERMISSION_DENIED", ProviderAccessDeniedError),
        ("UNAUTHENTICATED", ProviderAccessDeniedError),
        ("RESOURCE_EXHAUSTED", ThrottledError),
        ("UNAVAILABLE", UnavailableError),
        ("DEADLINE_EXCEEDED", UnavailableError),
        ("ABORTED", UnavailableError),
        ("INTERNAL", UnavailableError),
        ("UNKNOWN", UnavailableError),
        ("DATA_LOSS", UnavailableError),
        ("CANCELLED", UnavailableError),
        ("INVALID_ARGUMENT", ProviderConfigurationError),
        ("FAILED_PRECONDITION", ProviderConfigurationError),
        ("UNIMPLEMENTED", ProviderConfigurationError),
        ("NOT_FOUND", SecretNotFoundError),
    ],
)
async def test_each_status_has_its_error(status: str, kind: type[ProviderError], fake: FakeSecretManager):
    name = new_secret()
    async with client(fake.port, retry=NEVER) as provider:
        await provider.create(name, b"first")
        fake.failures["*"] = Failure(status, times=None)
        with pytest.raises(ProviderError) as caught:
            await provider.read(name)
        assert type(caught.value) is kind
        assert caught.value.hint or kind in (SecretNotFoundError, UnavailableError, ProviderConfigurationError)


async def test_the_services_own_hint_says_how_long_to_wait(fake: FakeSecretManager):
    name = new_secret()
    async with client(fake.port, retry=NEVER) as provider, client(fake.port) as patient:
        await provider.create(name, b"first")
        fake.failures["AccessSecretVersion"] = Failure("RESOURCE_EXHAUSTED", times=2, retry_after=0.6)
        with pytest.raises(ThrottledError) as caught:
            await provider.read(name)
        assert caught.value.retry_after == pytest.approx(0.6)
        began = asyncio.get_running_loop().time()
        assert (await patient.read(name)).value.reveal() == b"first"
        assert asyncio.get_running_loop().time() - began >= 0.6


async def test_polling_uses_the_large_quota_and_almost_nothing_of_the_small_one(fake: FakeSecretManager):
    name = new_secret()
    async with client(fake.port, retry=NEVER) as writer, client(fake.port, retry=NEVER) as server:
        await writer.create(name, b"first")
        fake.calls.clear()
        for _ in range(20):
            await server.read(name)
        assert fake.calls == {"AccessSecretVersion": 20, "GetSecretVersion": 1}
        fake.quotas = {ACCESS: 0, READ: 0}
        with pytest.raises(ThrottledError):
            await server.read(name)


async def test_a_disabled_version_is_named_as_such(fake: FakeSecretManager):
    name = new_secret()
    async with client(fake.port) as provider:
        await provider.create(name, b"first")
        version = f"projects/{PROJECT}/secrets/{name}/versions/1"
        fake.service.disable_secret_version(wire.DisableSecretVersionRequest(name=version))
        for at in (CURRENT, VersionId("1")):
            with pytest.raises(VersionDisabledError, match="disabled"):
                await provider.read(name, at)
        with pytest.raises(VersionDisabledError):
            await provider.label(name, STABLE, "1", expected=None)


async def test_delayed_destruction_is_unreadable_at_once_and_asked_for_once(fake: FakeSecretManager):
    name = new_secret()
    async with client(fake.port) as provider:
        await provider.create(name, b"first")
        await provider.write(name, b"second", expected="1")
        ttl = wire.Secret(name=f"projects/{PROJECT}/secrets/{name}", version_destroy_ttl=timedelta(days=1))
        fake.service.update_secret(wire.UpdateSecretRequest(secret=ttl, update_mask={"paths": ["version_destroy_ttl"]}))
        fake.calls.clear()
        await provider.destroy(name, "1")
        await provider.destroy(name, "1")
        assert fake.calls["DestroySecretVersion"] == 1
        with pytest.raises(VersionDisabledError):
            await provider.read(name, VersionId("1"))


# --- damage -----------------------------------------------------------------------------------------------------------


def emptied(answer: wire.AccessSecretVersionResponse) -> object:
    return wire.AccessSecretVersionResponse(name=answer.name)


def changed(answer: wire.AccessSecretVersionResponse) -> object:
    answer.payload.data = answer.payload.data[:-1] + b"?"
    return answer


def cut(answer: wire.AccessSecretVersionResponse) -> object:
    answer.payload.data = answer.payload.data[:-1]
    return answer


def unsummed(answer: wire.AccessSecretVersionResponse) -> object:
    return wire.AccessSecretVersionResponse(name=answer.name, payload=wire.SecretPayload(data=answer.payload.data))


def renamed(answer: wire.AccessSecretVersionResponse) -> object:
    answer.name = "projects/1/secrets/another/versions/1"
    return answer


def nameless(answer: wire.AccessSecretVersionResponse) -> object:
    answer.name = ""
    return answer


def nothing(answer: wire.AccessSecretVersionResponse) -> object:
    return b""


def noise(answer: wire.AccessSecretVersionResponse) -> object:
    return b"\xff\xff\xff\xff\x00"


@pytest.mark.parametrize("damage", [emptied, changed, cut, unsummed, renamed, nameless, nothing, noise])
async def test_a_damaged_value_is_unavailable_and_never_returned(
    damage: Callable[[wire.AccessSecretVersionResponse], object], fake: FakeSecretManager
):
    name = new_secret()
    async with client(fake.port, retry=NEVER) as provider:
        await provider.create(name, b"first")
        fake.damage = lambda method, answer: damage(answer) if method == "AccessSecretVersion" else answer
        for at in (CURRENT, VersionId("1")):
            with pytest.raises(UnavailableError):
                await provider.read(name, at)


@pytest.mark.parametrize("method", ["GetSecret", "GetSecretVersion", "ListSecretVersions", "AddSecretVersion"])
@pytest.mark.parametrize("damage", [b"", b"\xff\xff\xff\xff\x00"])
async def test_a_damaged_description_is_unavailable_and_never_a_lost_label(
    method: str, damage: bytes, fake: FakeSecretManager
):
    if (method, damage) == ("ListSecretVersions", b""):
        pytest.skip("an empty list is what a secret without versions answers")
    name = new_secret()
    async with client(fake.port, retry=NEVER) as provider:
        await provider.create(name, b"first")
        fake.damage = lambda called, answer: damage if called == method else answer
        begin: dict[str, Callable[[], Awaitable[object]]] = {
            "GetSecret": lambda: provider.write(name, b"second", expected="1"),
            "AddSecretVersion": lambda: provider.write(name, b"second", expected="1"),
            "GetSecretVersion": lambda: provider.label(name, STABLE, "1", expected=None),
            "ListSecretVersions": lambda: provider.versions(name),
        }
        with pytest.raises(UnavailableError):
            await begin[method]()
        fake.damage = None
        assert (await provider.read(name)).value.reveal() == b"first"


async def test_a_list_that_lags_still_has_every_labelled_version(fake: FakeSecretManager):
    name = new_secret()
    async with client(fake.port) as provider:
        await provider.create(name, b"first")
        await provider.write(name, b"second", expected="1")
        fake.damage = lambda method, answer: (
            wire.ListSecretVersionsResponse() if method == "ListSecretVersions" else answer
        )
        assert [(v.id, v.labels) for v in await provider.versions(name)] == [("2", {CURRENT})]


async def test_lists_longer_than_a_page_are_whole(fake: FakeSecretManager):
    name = new_secret()
    fake.service.page = 2
    try:
        async with client(fake.port) as provider:
            version = await provider.create(name, b"0")
            for number in range(1, 6):
                version = await provider.write(name, b"%d" % number, expected=version.id)
            assert [v.id for v in await provider.versions(name)] == ["6", "5", "4", "3", "2", "1"]
    finally:
        fake.service.page = 25_000


async def test_no_error_of_the_service_shows_a_value(fake: FakeSecretManager):
    name, value = new_secret(), b"S3CRET-" + secrets.token_hex(8).encode()

    def shown(error: BaseException | None) -> Iterator[str]:
        while error is not None:
            yield repr(error) + repr(vars(error)) + "".join(traceback.format_exception(error))
            error = error.__cause__ or error.__context__

    async with client(fake.port, retry=NEVER) as provider:
        await provider.create(name, value)
        for status in ("INVALID_ARGUMENT", "INTERNAL", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED"):
            fake.failures["AddSecretVersion"] = Failure(status, message=f"cannot take {value.decode()}")
            with pytest.raises(ProviderError) as caught:
                await provider.write(name, value, label=f"l-{status}", expected=None)
            assert not any(value.decode() in text for text in shown(caught.value))


async def test_the_sdk_logs_no_value(fake: FakeSecretManager, caplog: pytest.LogCaptureFixture):
    name, value = new_secret(), b"S3CRET-" + secrets.token_hex(8).encode()
    names = ["google", *(each for each in logging.root.manager.loggerDict if each.startswith("google."))]
    for each in names:
        logger = logging.getLogger(each)
        logger.setLevel(logging.DEBUG)
        logger.propagate = True
    with caplog.at_level(logging.DEBUG):
        async with client(fake.port) as provider:
            await provider.create(name, value)
            assert (await provider.read(name)).value.reveal() == value
    told = "".join(f"{record.getMessage()} {vars(record)}" for record in caplog.records)
    encoded = base64.b64encode(value).decode()
    assert not [text for text in (value.decode(), encoded, encoded[:12]) if text in told]


async def test_a_foreign_alias_is_a_label_like_any_other(fake: FakeSecretManager):
    name = new_secret()
    async with client(fake.port) as provider:
        await provider.create(name, b"first")
        aliased = wire.Secret(name=f"projects/{PROJECT}/secrets/{name}", version_aliases={"current": 1, "prod": 1})
        fake.service.update_secret(wire.UpdateSecretRequest(secret=aliased, update_mask={"paths": ["version_aliases"]}))
        await provider.write(name, b"second", expected="1")
        assert (await provider.read(name, Label("prod"))).value.reveal() == b"first"
