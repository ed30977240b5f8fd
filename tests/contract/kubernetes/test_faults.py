"""The fake API server behind a proxy that fails on purpose: old or new is seen, and nothing is written twice."""

from __future__ import annotations

import asyncio
import socket
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from pathlib import Path

import pytest

pytest.importorskip("kubernetes_asyncio", reason="needs the extra kubernetes")

from goatherd.errors import GoatherdError, ProviderError, SecretNotFoundError, UnavailableError
from goatherd.providers.base import RetryPolicy
from goatherd.providers.kubernetes.address import KubernetesAddress
from goatherd.providers.kubernetes.provider import KubernetesSecretProvider
from goatherd.providers.values import CURRENT, STABLE
from tests.contract.kubernetes.clients import QUICK, kubeconfig, provider_of
from tests.deadlines import HANG
from tests.fakes.faults import BREAKS, Fault, FaultProxy, Mode
from tests.fakes.kubernetes_fake import ADMIN_TOKEN, FakeKubernetes

from .test_contract import NEVER, ROOT, SECRET


@pytest.fixture
async def proxy(fake: FakeKubernetes) -> AsyncIterator[FaultProxy]:
    async with FaultProxy("127.0.0.1", fake.port) as running:
        yield running


def through(port: int, path: Path, *, retry: RetryPolicy = QUICK, timeout: float = HANG) -> KubernetesSecretProvider:
    address = KubernetesAddress(kubeconfig=kubeconfig(path, f"http://127.0.0.1:{port}"))
    return KubernetesSecretProvider(address, retry=retry, timeout=timedelta(seconds=timeout))


# --- every fault at every request of every operation ------------------------------------------------------------------

Operation = Callable[[KubernetesSecretProvider], Awaitable[object]]


async def write(provider: KubernetesSecretProvider) -> None:
    await provider.write(ROOT, b"new", expected="1")


async def label(provider: KubernetesSecretProvider) -> None:
    await provider.label(ROOT, STABLE, "1", expected=None)


async def create(provider: KubernetesSecretProvider) -> None:
    await provider.create("default/made", b"new")


async def delete(provider: KubernetesSecretProvider) -> None:
    await provider.delete(ROOT)


async def destroy(provider: KubernetesSecretProvider) -> None:
    await provider.label(ROOT, CURRENT, "2", expected="1")
    await provider.destroy(ROOT, "1")


async def read(provider: KubernetesSecretProvider) -> None:
    assert (await provider.read(ROOT)).value.reveal() == b"old"


REQUESTS: list[tuple[Operation, bytes]] = [
    (read, b"GET "),
    (write, b"GET "),
    (write, b"PUT "),
    (label, b"PUT "),
    (create, b"POST "),
    (delete, b"GET "),
    (delete, b"DELETE "),
    (destroy, b"PUT "),
]
FAULTS = [*BREAKS, Fault(mode=Mode.DELAY, delay=timedelta(milliseconds=30), times=1)]


async def picture(fake: FakeKubernetes, path: Path) -> dict[str, object]:
    """Return what a reader sees, and how many changes were made."""
    found: dict[str, object] = {}
    async with provider_of(fake, path) as reader:
        for secret in (ROOT, "default/made"):
            try:
                found[secret] = [(v.id, v.labels, v.state) for v in await reader.versions(secret)]
                found[f"{secret} value"] = (await reader.read(secret)).value.reveal()
            except SecretNotFoundError:
                found[secret] = None
    found["changes"] = fake.version
    return found


async def prepared(fake: FakeKubernetes, path: Path, operation: Operation) -> None:
    async with provider_of(fake, path) as provider:
        await provider.create(ROOT, b"old")
        if operation is destroy:
            await provider.write(ROOT, b"new", label="candidate", expected=None)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.mode}-{fault.after}")
@pytest.mark.parametrize(
    ("operation", "request_line"), REQUESTS, ids=lambda each: getattr(each, "__name__", str(each)[2:-2])
)
async def test_after_a_fault_the_retry_does_it_once(
    fake: FakeKubernetes, proxy: FaultProxy, tmp_path: Path, operation: Operation, request_line: bytes, fault: Fault
):
    with FakeKubernetes() as undisturbed:
        await prepared(undisturbed, tmp_path, operation)
        async with provider_of(undisturbed, tmp_path) as provider:
            await operation(provider)
        wanted = await picture(undisturbed, tmp_path)
    await prepared(fake, tmp_path, operation)
    proxy.fault = Fault(mode=fault.mode, after=fault.after, delay=fault.delay, match=request_line, times=1)
    async with through(proxy.port, tmp_path) as provider:
        await operation(provider)
    assert proxy.hits == 1
    assert await picture(fake, tmp_path) == wanted


@pytest.mark.parametrize("fault", FAULTS[:-1], ids=lambda fault: f"{fault.mode}-{fault.after}")
@pytest.mark.parametrize("operation", [write, label], ids=lambda each: each.__name__)
async def test_without_a_retry_a_fault_leaves_old_or_new_and_says_unavailable(
    fake: FakeKubernetes, proxy: FaultProxy, tmp_path: Path, operation: Operation, fault: Fault
):
    await prepared(fake, tmp_path, operation)
    old = fake.stored("default", "root")
    proxy.fault = Fault(mode=fault.mode, after=fault.after, match=b"PUT ", times=1)
    async with through(proxy.port, tmp_path, retry=NEVER) as provider:
        with pytest.raises(UnavailableError):
            await operation(provider)
    async with provider_of(fake, tmp_path) as reader:
        count = len(await reader.versions(ROOT))
        value = (await reader.read(ROOT)).value.reveal()
    assert (count, value) in ([(1, b"old"), (2, b"new")] if operation is write else [(1, b"old")])
    if fault.mode is Mode.RESET:
        assert fake.stored("default", "root") == old


# --- no server there, or one that does not answer ---------------------------------------------------------------------


async def test_a_refused_connection_is_unavailable(tmp_path: Path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        async with through(port, tmp_path) as provider:
            with pytest.raises(UnavailableError, match="connection refused"):
                await provider.read(ROOT)


async def test_a_black_hole_is_noticed_in_time_for_another_attempt(
    fake: FakeKubernetes, proxy: FaultProxy, tmp_path: Path
):
    await prepared(fake, tmp_path, read)
    async with asyncio.timeout(2 * HANG), through(proxy.port, tmp_path) as provider:
        await read(provider)  # it is connected, so only the black hole can take so long
        client = provider._client
        assert client is not None
        assert client._timeout <= provider.timeout.total_seconds() / 2, "another attempt has as much time"
        usual, client._timeout = client._timeout, 2
        proxy.fault = Fault(mode=Mode.BLACK_HOLE, match=b"GET ", times=1)
        reading = asyncio.create_task(read(provider))
        while not proxy.hits:
            await asyncio.sleep(0.002)
        client._timeout = usual
        await reading
    assert proxy.hits == 1, "the first attempt ended in the black hole, and the second one was answered"


async def test_a_black_hole_that_stays_ends_at_the_deadline(fake: FakeKubernetes, proxy: FaultProxy, tmp_path: Path):
    proxy.fault = Fault(mode=Mode.BLACK_HOLE)
    async with asyncio.timeout(HANG), through(proxy.port, tmp_path, timeout=0.6) as provider:
        with pytest.raises(UnavailableError):
            await provider.read(ROOT)


async def test_a_cancelled_read_ends_at_once_and_the_provider_goes_on(
    fake: FakeKubernetes, proxy: FaultProxy, tmp_path: Path
):
    await prepared(fake, tmp_path, read)
    async with through(proxy.port, tmp_path) as provider:
        proxy.fault = Fault(mode=Mode.BLACK_HOLE, times=1)
        task = asyncio.create_task(provider.read(ROOT))
        while not proxy.hits:
            await asyncio.sleep(0.002)
        task.cancel()
        async with asyncio.timeout(HANG):
            with pytest.raises(asyncio.CancelledError):
                await task
        await read(provider)


async def test_a_cancelled_write_is_given_a_moment_to_be_settled(
    fake: FakeKubernetes, proxy: FaultProxy, tmp_path: Path
):
    await prepared(fake, tmp_path, write)
    async with through(proxy.port, tmp_path) as provider:
        proxy.fault = Fault(mode=Mode.DELAY, delay=timedelta(milliseconds=50), match=b"PUT ", times=1)
        task = asyncio.create_task(provider.write(ROOT, b"new", expected="1"))
        while not proxy.hits:
            await asyncio.sleep(0.002)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert [asked.status for asked in fake.asked if asked.verb == "update"] == [200]


async def test_no_error_leads_to_the_token_or_the_value(fake: FakeKubernetes, proxy: FaultProxy, tmp_path: Path):
    await prepared(fake, tmp_path, write)
    shown = []
    attempts: tuple[Operation, ...] = (
        lambda provider: provider.write(ROOT, SECRET, expected="1"),
        lambda provider: provider.create("default/made", SECRET),
        lambda provider: provider.read(ROOT),
    )
    for fault in FAULTS[:-1]:
        for attempt in attempts:
            proxy.fault = Fault(mode=fault.mode, after=fault.after)
            async with through(proxy.port, tmp_path, retry=NEVER) as provider:
                with pytest.raises(ProviderError) as caught:
                    await attempt(provider)
            error: BaseException | None = caught.value
            assert isinstance(error, GoatherdError)
            while error is not None:
                shown.append(repr(error) + "".join(traceback.format_exception(error)) + repr(vars(error)))
                assert not hasattr(error, "_request"), "an exception of the HTTP library carries the request"
                error = error.__cause__ or error.__context__
    assert shown
    assert not any(ADMIN_TOKEN in text or SECRET.decode() in text for text in shown)


# --- watching ---------------------------------------------------------------------------------------------------------


async def test_a_watch_that_breaks_says_so(fake: FakeKubernetes, proxy: FaultProxy, tmp_path: Path):
    await prepared(fake, tmp_path, read)
    async with through(proxy.port, tmp_path) as provider:
        hints = provider.watch(ROOT)
        await anext(hints)
        await anext(hints)
        waiting = asyncio.create_task(anext(hints))
        await asyncio.sleep(0)
        await proxy.stop()
        with pytest.raises(UnavailableError):
            await asyncio.wait_for(waiting, HANG)


@pytest.mark.parametrize("after", [0, 40, 200, 700])
async def test_a_watch_that_is_cut_anywhere_is_unavailable(
    fake: FakeKubernetes, proxy: FaultProxy, tmp_path: Path, after: int
):
    await prepared(fake, tmp_path, read)
    proxy.fault = Fault(mode=Mode.CUT, after=after)
    async with through(proxy.port, tmp_path) as provider:
        with pytest.raises(UnavailableError):
            async for _ in provider.watch(ROOT):
                pass


async def test_a_watch_on_a_server_that_is_not_there_is_unavailable(tmp_path: Path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        async with through(closed.getsockname()[1], tmp_path) as provider:
            with pytest.raises(UnavailableError):
                await anext(provider.watch(ROOT))
