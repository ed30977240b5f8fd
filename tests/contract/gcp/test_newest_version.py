"""The newest version of a secret at Google Secret Manager is the current one, however its writers fail."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
from google.cloud.secretmanager_v1 import types as wire

from goatherd.errors import (
    ConflictError,
    SecretExistsError,
    UnavailableError,
)
from goatherd.providers.base import RetryPolicy
from goatherd.providers.gcp.journal import ANNOUNCED
from goatherd.providers.values import CURRENT, STABLE, SecretVersion, VersionState
from tests.deadlines import HANG
from tests.fakes.gcp_fake import FakeSecretManager

from .clients import PROJECT, At, client, failing, latest, new_secret, stored, void

NEVER = RetryPolicy(attempts=1)


def telling(event: asyncio.Event) -> Callable[[], None]:
    loop = asyncio.get_running_loop()
    return lambda: void(loop.call_soon_threadsafe(event.set))


async def test_after_each_race_the_newest_version_is_the_current_one_and_no_loser_added_any(fake: FakeSecretManager):
    name = new_secret()
    async with client(fake.port) as left, client(fake.port) as right:
        holder = await left.create(name, b"0")
        for number in range(10):
            done = await asyncio.gather(
                *(it.write(name, b"%d" % number, expected=holder.id) for it in (left, right, left)),
                return_exceptions=True,
            )
            winners = [each for each in done if isinstance(each, SecretVersion)]
            assert [type(each) for each in done if isinstance(each, BaseException)] == [ConflictError] * 2
            holder = winners[0]
            assert latest(fake, name) == b"%d" % number
            assert len(await left.versions(name)) == number + 2


async def test_a_stalled_writer_gives_way_and_takes_its_version_back(
    fake: FakeSecretManager, short_lease: None, monkeypatch: pytest.MonkeyPatch
):
    name, stalled, go_on = new_secret(), asyncio.Event(), asyncio.Event()
    async with client(fake.port) as slow, client(fake.port) as quick:
        await slow.create(name, b"first")
        whole = slow._move_label

        async def late(*arguments: Any) -> Any:
            stalled.set()
            await go_on.wait()
            return await whole(*arguments)

        monkeypatch.setattr(slow, "_move_label", late)
        losing = asyncio.ensure_future(slow.write(name, b"slow", expected="1"))
        await stalled.wait()
        assert latest(fake, name) == b"slow", "as the service is: the newest version is the latest at once"
        winner = await quick.write(name, b"quick", expected="1")
        go_on.set()
        with pytest.raises(ConflictError):
            await losing
        assert (await quick.read(name)).version.id == winner.id
        assert latest(fake, name) == b"quick"
        assert {v.id: v.state.value for v in await quick.versions(name)} == {
            "1": "enabled",
            "2": "destroyed",
            "3": "enabled",
        }


async def test_what_a_dead_writer_left_is_disabled_and_what_stood_before_is_not(
    fake: FakeSecretManager, short_lease: None
):
    name = new_secret()
    async with client(fake.port) as calm:
        await calm.create(name, b"first")
        await calm.write(name, b"second", expected="1")
        await calm.label(name, CURRENT, "1", expected="2")

        dying = client(fake.port, retry=NEVER)
        dead = threading.Event()

        def die(method: str, request: Any) -> None:
            if method == "UpdateSecret" and "version_aliases" in request.update_mask.paths:
                dead.set()
            if dead.is_set():
                failing("UNAVAILABLE")()

        fake.before = die
        async with dying:
            with pytest.raises(UnavailableError):
                await dying.write(name, b"dead", expected="1")
        fake.before = None
        assert latest(fake, name) == b"dead", "as the service is: the newest version is the latest at once"
        await calm.write(name, b"alive", expected="1")
        assert latest(fake, name) == b"alive"
        states = {v.id: v.state.value for v in await calm.versions(name)}
        assert states == {"1": "enabled", "2": "enabled", "3": "disabled", "4": "enabled"}
        assert [v.id for v in await calm.versions(name) if v.is_leftover] == ["3"]
        await calm.destroy(name, "3")
        states = {v.id: (v.state.value, v.is_leftover) for v in await calm.versions(name)}
        assert states["3"] == ("destroyed", False)


async def test_a_cancelled_write_leaves_no_note_and_no_newer_version(fake: FakeSecretManager):
    async with client(fake.port) as provider:
        for number in range(6):
            name, reached = new_secret(), asyncio.Event()
            await provider.create(name, b"first")
            fake.before, fake.after = At(number, telling(reached)), At(number, telling(reached))
            task = asyncio.ensure_future(provider.write(name, b"second", expected="1"))
            waiting = asyncio.ensure_future(reached.wait())
            await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED, timeout=HANG)
            waiting.cancel()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            fake.before = fake.after = None
            assert ANNOUNCED not in stored(fake, name).annotations
            found = await provider.read(name)
            enabled = [v.id for v in await provider.versions(name) if v.state is VersionState.ENABLED]
            assert enabled[0] == found.version.id, f"cancelled at request {number}"


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
