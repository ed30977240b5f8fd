"""The versions of a secret at Google Secret Manager, however its writers fail."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from google.cloud.secretmanager_v1 import types as wire

from goatherd.errors import (
    ConflictError,
    SecretExistsError,
    UnavailableError,
    VersionDisabledError,
)
from goatherd.providers.base import RetryPolicy
from goatherd.providers.values import CURRENT, STABLE, SecretVersion, VersionState
from tests.fakes.gcp_fake import FakeSecretManager

from .clients import PROJECT, client, failing, new_secret, stored

NEVER = RetryPolicy(attempts=1)


async def test_a_writer_that_loses_destroys_its_version(fake: FakeSecretManager):
    name = new_secret()
    async with client(fake.port) as left, client(fake.port) as right:
        holder = await left.create(name, b"0")
        winners = [holder.id]
        for number in range(10):
            done = await asyncio.gather(
                *(it.write(name, b"%d" % number, expected=holder.id) for it in (left, right, left)),
                return_exceptions=True,
            )
            (holder,) = [each for each in done if isinstance(each, SecretVersion)]
            assert [type(each) for each in done if isinstance(each, BaseException)] == [ConflictError] * 2
            winners.append(holder.id)
        enabled = [v.id for v in await left.versions(name) if v.state is VersionState.ENABLED]
        assert sorted(enabled, key=int) == winners


async def test_what_a_dead_writer_left_stays_readable_until_it_is_destroyed(fake: FakeSecretManager):
    name, dead = new_secret(), threading.Event()

    def die(method: str, request: Any) -> None:
        if method == "UpdateSecret":
            dead.set()
        if dead.is_set():
            failing("UNAVAILABLE")()

    async with client(fake.port) as calm, client(fake.port, retry=NEVER) as dying:
        await calm.create(name, b"first")
        fake.before = die
        with pytest.raises(UnavailableError):
            await dying.write(name, b"dead", expected="1")
        fake.before = None
        await calm.write(name, b"alive", expected="1")
        assert (await calm.read(name)).value.reveal() == b"alive"
        assert {v.id: v.state.value for v in await calm.versions(name)} == dict.fromkeys("123", "enabled")
        await calm.destroy(name, "2")
        assert {v.id: v.state.value for v in await calm.versions(name)}["2"] == "destroyed"


async def test_a_version_that_is_being_destroyed_gets_no_label(fake: FakeSecretManager):
    name = new_secret()
    async with client(fake.port) as calm, client(fake.port, retry=NEVER) as dying:
        await calm.create(name, b"first")
        await calm.write(name, b"second", expected="1")
        fake.before = lambda method, request: failing("UNAVAILABLE")() if method == "DestroySecretVersion" else None
        with pytest.raises(UnavailableError):
            await dying.destroy(name, "1")
        fake.before = None
        with pytest.raises(VersionDisabledError):
            await calm.label(name, STABLE, "1", expected=None)
        await calm.destroy(name, "1")
        assert (await calm.read(name)).version.id == "2"


async def test_a_secret_that_was_made_empty_beforehand_takes_its_first_version(fake: FakeSecretManager):
    name = new_secret()
    secret = wire.Secret(replication=wire.Replication(automatic=wire.Replication.Automatic()))
    fake.service.create_secret(wire.CreateSecretRequest(parent=f"projects/{PROJECT}", secret_id=name, secret=secret))
    async with client(fake.port) as provider:
        made = await provider.create(name, b"first")
        assert (made.id, made.labels) == ("1", {CURRENT})
        with pytest.raises(SecretExistsError):
            await provider.create(name, b"again")


async def test_versions_without_any_label_are_not_taken_for_an_empty_secret(fake: FakeSecretManager):
    name = new_secret()
    secret = wire.Secret(replication=wire.Replication(automatic=wire.Replication.Automatic()))
    parent = f"projects/{PROJECT}"
    fake.service.create_secret(wire.CreateSecretRequest(parent=parent, secret_id=name, secret=secret))
    payload = wire.SecretPayload(data=b"theirs")
    fake.service.add_secret_version(wire.AddSecretVersionRequest(parent=f"{parent}/secrets/{name}", payload=payload))
    async with client(fake.port) as provider:
        with pytest.raises(SecretExistsError):
            await provider.create(name, b"ours")
        await provider.label(name, CURRENT, "1", expected=None)
        assert (await provider.read(name)).value.reveal() == b"theirs"


async def test_annotations_of_others_are_kept(fake: FakeSecretManager):
    name = new_secret()
    async with client(fake.port) as provider:
        await provider.create(name, b"first")
        found = stored(fake, name)
        theirs = wire.Secret(name=found.name, annotations={**found.annotations, "team": "goats"})
        fake.service.update_secret(wire.UpdateSecretRequest(secret=theirs, update_mask={"paths": ["annotations"]}))
        await provider.write(name, b"second", expected="1")
        await provider.label(name, STABLE, "1", expected=None)
        assert stored(fake, name).annotations["team"] == "goats"
