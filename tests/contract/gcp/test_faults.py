"""Google Secret Manager with faults, at each request of each operation: old or new is seen, and nothing done twice."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta

import pytest

from goatherd.errors import (
    SecretNotFoundError,
    UnavailableError,
)
from goatherd.providers.base import RetryPolicy
from goatherd.providers.gcp import provider as module
from goatherd.providers.gcp.provider import GCPSecretProvider
from goatherd.providers.values import CURRENT, STABLE, SecretValue
from tests.deadlines import HANG
from tests.fakes.faults import Fault, FaultProxy, Mode
from tests.fakes.gcp_fake import FakeSecretManager, StatusError

from .clients import At, client, failing, new_secret, void

NEVER = RetryPolicy(attempts=1)


@pytest.fixture
async def proxy(fake: FakeSecretManager) -> AsyncIterator[FaultProxy]:
    async with FaultProxy("127.0.0.1", fake.port) as running:
        yield running


async def back(provider: GCPSecretProvider, name: str) -> SecretValue:
    """Read as soon as the connection works again: gRPC pauses up to two seconds between two attempts to connect."""
    async with asyncio.timeout(HANG):
        while True:
            with contextlib.suppress(UnavailableError):
                return await provider.read(name)


def dropping(proxy: FaultProxy, *, losing: bool) -> Callable[[], None]:
    """Return a function that ends all connections from the server's thread, and with `losing` drops the request,
    too."""
    loop = asyncio.get_running_loop()

    def drop() -> None:
        asyncio.run_coroutine_threadsafe(proxy.drop(), loop).result(HANG)
        if losing:
            raise StatusError("CANCELLED", "never seen")

    return drop


Operation = Callable[[GCPSecretProvider, str], Awaitable[object]]


async def create(provider: GCPSecretProvider, name: str) -> None:
    await provider.create(f"{name}-made", b"made")


async def write(provider: GCPSecretProvider, name: str) -> None:
    await provider.write(name, b"new", expected="2")


async def write_candidate(provider: GCPSecretProvider, name: str) -> None:
    await provider.write(name, b"new", label="candidate", expected=None)


async def label(provider: GCPSecretProvider, name: str) -> None:
    await provider.label(name, STABLE, "1", expected=None)


async def destroy(provider: GCPSecretProvider, name: str) -> None:
    await provider.destroy(name, "1")


async def delete(provider: GCPSecretProvider, name: str) -> None:
    await provider.delete(name)


async def picture(provider: GCPSecretProvider, name: str) -> list[tuple[str, str, frozenset[str]]] | None:
    try:
        return [(v.id, v.state.value, v.labels) for v in await provider.versions(name)]
    except SecretNotFoundError:
        return None


OPERATIONS: tuple[Operation, ...] = (create, write, write_candidate, label, destroy, delete)


@pytest.mark.parametrize("kind", ["reply lost", "request lost", "UNAVAILABLE", "INTERNAL", "RESOURCE_EXHAUSTED"])
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.__name__)
async def test_one_fault_at_any_request_changes_nothing_about_the_outcome(
    operation: Operation, kind: str, fake: FakeSecretManager, proxy: FaultProxy
):
    async def done(number: int | None) -> tuple[object, object, int]:
        """Perform the operation with a fault at request `number`; return the stored state, and the number of
        requests."""
        name = new_secret()
        async with client(fake.port) as calm:
            await calm.create(name, b"first")
            await calm.write(name, b"second", expected="1")
            seen = At(-1, lambda: None)
            fake.before, fake.after = seen, None
            if number is not None and kind == "reply lost":
                fake.after = At(number, dropping(proxy, losing=False))
            elif number is not None and kind == "request lost":
                fake.before = At(number, dropping(proxy, losing=True))
            elif number is not None:
                fake.before = At(number, failing(kind, 0.05 if kind == "RESOURCE_EXHAUSTED" else None))
            async with client(proxy.port) as unlucky:
                await operation(unlucky, name)
            fake.before = fake.after = None
            found = await picture(calm, name), await picture(calm, f"{name}-made")
            return *found, seen.seen

    expected = await done(None)
    assert 1 <= expected[2] <= 8
    for number in range(expected[2]):
        assert (await done(number))[:2] == expected[:2], f"request {number}"


@pytest.mark.slow
@pytest.mark.parametrize("effect", [True, False])
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.__name__)
async def test_without_a_retry_old_or_new_is_there_and_the_next_writer_gets_on(
    operation: Operation, effect: bool, fake: FakeSecretManager, proxy: FaultProxy
):
    for number in range(6):
        name = new_secret()
        async with client(fake.port) as calm, client(proxy.port, retry=NEVER) as unlucky:
            await calm.create(name, b"first")
            await calm.write(name, b"second", expected="1")
            cut = At(number, dropping(proxy, losing=not effect))
            fake.before, fake.after = (None, cut) if effect else (cut, None)
            with contextlib.suppress(UnavailableError):
                await operation(unlucky, name)
            fake.before = fake.after = None
            if await picture(calm, name) is None:
                assert operation is delete
                await calm.create(name, b"again")
                continue
            found = await calm.read(name)
            assert found.value.reveal() in (b"second", b"new")
            version = await calm.write(name, b"next", expected=found.version.id)
            assert (await calm.read(name)).value.reveal() == b"next"
            assert version.labels == {CURRENT}


async def test_a_silent_store_costs_one_attempt_and_its_late_effect_harms_no_writer(
    fake: FakeSecretManager, monkeypatch: pytest.MonkeyPatch
):
    name, silent = new_secret(), threading.Event()
    monkeypatch.setattr(module, "_ATTEMPT", timedelta(seconds=2.4))
    async with client(fake.port) as calm, client(fake.port) as unlucky:
        await calm.create(name, b"first")
        await back(unlucky, name)  # it is connected, so only the silence can take so long
        fake.before = At(1, lambda: void(silent.wait(HANG)))  # the second request adds the version
        version = await unlucky.write(name, b"second", expected="1")
        silent.set()
        assert (await calm.read(name, version.id)).value.reveal() == b"second"
        assert (await calm.read(name)).version.id == version.id


async def test_refused_connections_are_unavailable_and_it_goes_on_when_they_are_not(fake: FakeSecretManager):
    name = new_secret()
    proxy = FaultProxy("127.0.0.1", fake.port)
    async with proxy, client(proxy.port) as provider:
        await provider.create(name, b"first")
        port = proxy.port
        await proxy.stop()
        async with client(port, retry=NEVER) as other:
            for each in (provider, other):
                with pytest.raises(UnavailableError):
                    await each.read(name)


@pytest.mark.parametrize("mode", [Mode.RESET, Mode.CUT, Mode.REPLY_LOST, Mode.BLACK_HOLE])
async def test_a_broken_connection_is_unavailable_and_never_a_missing_secret(mode: Mode, fake: FakeSecretManager):
    name = new_secret()
    async with (
        FaultProxy("127.0.0.1", fake.port) as proxy,
        client(proxy.port) as provider,
        client(fake.port) as calm,
    ):
        await calm.create(name, b"first")
        await back(provider, name)
        provider.timeout = timedelta(seconds=2)  # it is connected, so only the fault can take so long
        proxy.fault = Fault(mode=mode, after=20)
        with pytest.raises(UnavailableError):
            await provider.read(name)
        provider.timeout = timedelta(seconds=HANG)
        proxy.fault = Fault()
        await proxy.drop()
        assert (await back(provider, name)).value.reveal() == b"first"


async def test_a_slow_store_is_waited_for_and_no_longer_than_the_deadline(proxy: FaultProxy):
    name = new_secret()
    async with client(proxy.port, timeout=HANG) as patient, client(proxy.port, timeout=0.3) as hasty:
        await patient.create(name, b"first")
        proxy.fault = Fault(mode=Mode.DELAY, delay=timedelta(milliseconds=400))
        assert (await patient.read(name)).value.reveal() == b"first"
        async with asyncio.timeout(HANG):
            with pytest.raises(UnavailableError):
                await hasty.read(name)
