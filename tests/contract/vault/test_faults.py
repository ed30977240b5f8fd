"""A real server behind a proxy that fails on purpose: old or new is seen, never both or neither, and nothing twice."""

from __future__ import annotations

import asyncio
import secrets
import socket
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import timedelta
from pathlib import Path

import httpx2
import pytest

from goatherd.errors import (
    GoatherdError,
    ProviderAccessDeniedError,
    ProviderConfigurationError,
    ProviderError,
    SecretNotFoundError,
    ThrottledError,
    UnavailableError,
)
from goatherd.providers.base import RetryPolicy
from goatherd.providers.values import CURRENT, STABLE
from goatherd.providers.vault.address import VaultAddress
from goatherd.providers.vault.auth import TokenAuth
from goatherd.providers.vault.provider import VaultSecretProvider
from tests.deadlines import HANG
from tests.fakes.faults import BREAKS, Fault, FaultProxy, Mode
from tests.fakes.openbao import ROOT_TOKEN, WHY_SKIPPED, BaoServer, find_bao

BAO = find_bao()
pytestmark = pytest.mark.skipif(BAO is None, reason=WHY_SKIPPED)

QUICK = RetryPolicy(attempts=3, base=timedelta(milliseconds=5))
NEVER = RetryPolicy(attempts=1)


@pytest.fixture
async def proxy(server: BaoServer) -> AsyncIterator[FaultProxy]:
    async with FaultProxy("127.0.0.1", server.port) as running:
        yield running


def through(proxy: FaultProxy, *, retry: RetryPolicy = QUICK, timeout: float = HANG) -> VaultSecretProvider:
    address = VaultAddress(url=f"http://127.0.0.1:{proxy.port}", auth=TokenAuth(token=ROOT_TOKEN), reads_active=True)
    return VaultSecretProvider(address, retry=retry, timeout=timedelta(seconds=timeout))


def new_secret() -> str:
    return f"goatdb/{secrets.token_hex(6)}"


def versions_of(server: BaoServer, path: str) -> int:
    answer = server.ask("GET", f"secret/metadata/{path}")
    return int(answer["data"]["current_version"]) if "data" in answer else 0


# --- every fault at every request of every operation ------------------------------------------------------------------

Operation = Callable[[VaultSecretProvider, str], Awaitable[object]]


async def write(provider: VaultSecretProvider, name: str) -> None:
    await provider.write(name, b"new", expected="1")


async def label(provider: VaultSecretProvider, name: str) -> None:
    await provider.label(name, STABLE, "1", expected=None)


async def create(provider: VaultSecretProvider, name: str) -> None:
    await provider.create(f"{name}-made", b"new")


async def delete(provider: VaultSecretProvider, name: str) -> None:
    await provider.delete(name)


async def destroy(provider: VaultSecretProvider, name: str) -> None:
    await provider.label(name, CURRENT, "2", expected="1")
    await provider.destroy(name, "1")


REQUESTS: list[tuple[Operation, str]] = [
    (write, "GET /v1/secret/data/{} "),
    (write, "POST /v1/secret/data/{} "),
    (label, "POST /v1/secret/data/{} "),
    (create, "POST /v1/secret/data/{}-made "),
    (delete, "DELETE /v1/secret/metadata/{} "),
    (destroy, "POST /v1/secret/data/{} "),
    (destroy, "GET /v1/secret/metadata/{} "),
    (destroy, "POST /v1/secret/destroy/{} "),
]
FAULTS = BREAKS


async def picture(server: BaoServer, name: str) -> dict[str, object]:
    """Return what a reader sees, and how many writes were made."""
    address = VaultAddress(url=server.url, auth=TokenAuth(token=ROOT_TOKEN))
    found: dict[str, object] = {}
    async with VaultSecretProvider(address) as reader:
        for secret in (name, f"{name}-made"):
            try:
                found[secret] = {
                    version.id: (version.labels, version.state) for version in await reader.versions(secret)
                }
                found[f"{secret} value"] = (await reader.read(secret)).value.reveal()
            except SecretNotFoundError:
                found[secret] = None
            found[f"{secret} writes"] = versions_of(server, secret)
    return {key.replace(name, "NAME"): value for key, value in found.items()}


async def prepared(server: BaoServer, operation: Operation) -> str:
    name = new_secret()
    address = VaultAddress(url=server.url, auth=TokenAuth(token=ROOT_TOKEN))
    async with VaultSecretProvider(address) as provider:
        await provider.create(name, b"old")
        if operation is destroy:
            await provider.write(name, b"new", label="candidate", expected=None)
    return name


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.mode}-{fault.after}")
@pytest.mark.parametrize(("operation", "request_line"), REQUESTS, ids=lambda each: getattr(each, "__name__", each))
async def test_after_a_fault_the_retry_does_it_once(
    server: BaoServer, proxy: FaultProxy, operation: Operation, request_line: str, fault: Fault
):
    undisturbed = await prepared(server, operation)
    disturbed = await prepared(server, operation)
    async with through(proxy) as provider:
        await operation(provider, undisturbed)
        wanted = request_line.format(disturbed).encode()
        proxy.fault = Fault(mode=fault.mode, after=fault.after, times=1, match=wanted)
        await operation(provider, disturbed)
    assert proxy.hits == 1, "the fault befell nothing"
    assert await picture(server, disturbed) == await picture(server, undisturbed)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.mode}-{fault.after}")
async def test_without_retries_a_broken_write_leaves_old_or_new(server: BaoServer, proxy: FaultProxy, fault: Fault):
    for request_line in [line for operation, line in REQUESTS if operation is write]:
        name = await prepared(server, write)
        wanted = request_line.format(name).encode()
        async with through(proxy, retry=NEVER) as provider:
            proxy.fault = Fault(mode=fault.mode, after=fault.after, times=1, match=wanted)
            try:
                await write(provider, name)
                assert fault.mode is Mode.CUT, "only an answer that was cut behind its end can be whole"
            except UnavailableError:
                pass
            found = await provider.read(name)
            committed = fault.mode is not Mode.RESET and request_line.startswith("POST")
            assert (found.version.id, found.value.reveal()) == (("2", b"new") if committed else ("1", b"old"))
            assert [version.id for version in await provider.versions(name) if version.labels] == [found.version.id]


@pytest.mark.parametrize("after", [*range(0, 400, 23), 5000])
async def test_a_read_that_was_cut_is_unavailable_or_whole(server: BaoServer, proxy: FaultProxy, after: int):
    name = new_secret()
    async with through(proxy, retry=NEVER) as provider:
        await provider.create(name, b"v" * 4000)
        proxy.fault = Fault(mode=Mode.CUT, after=after, times=1, match=f"GET /v1/secret/data/{name} ".encode())
        try:
            assert (await provider.read(name)).value.reveal() == b"v" * 4000
        except UnavailableError:
            pass
        else:
            assert after == 5000
    assert proxy.hits == 1


async def test_a_slow_server_is_waited_for_and_a_silent_one_only_until_the_deadline(
    server: BaoServer, proxy: FaultProxy
):
    name = await prepared(server, write)
    async with through(proxy, timeout=HANG) as patient, through(proxy, timeout=1) as hasty:
        proxy.fault = Fault(mode=Mode.DELAY, delay=timedelta(milliseconds=50))
        assert (await patient.read(name)).value.reveal() == b"old"
        proxy.fault = Fault(mode=Mode.BLACK_HOLE)
        async with asyncio.timeout(HANG):
            with pytest.raises(UnavailableError):
                await hasty.read(name)
            with pytest.raises(UnavailableError):
                await hasty.write(name, b"new", expected="1")
        proxy.fault = Fault()
        assert (await patient.read(name)).value.reveal() == b"old"


async def test_a_connection_that_died_silently_costs_one_attempt_and_not_the_call(server: BaoServer, proxy: FaultProxy):
    name = await prepared(server, write)
    async with through(proxy) as provider:
        await provider.read(name)
        client = provider._client
        assert client is not None
        assert client._pool is not None
        assert client._timeout <= provider.timeout.total_seconds() / 2, "another attempt has as much time"
        client._pool.http.timeout = httpx2.Timeout(2)  # it is connected, so only the black hole can take so long
        proxy.fault = Fault(mode=Mode.BLACK_HOLE, times=1)
        reading = asyncio.create_task(provider.read(name))
        while not proxy.hits:
            await asyncio.sleep(0.002)
        client._pool.http.timeout = httpx2.Timeout(HANG)
        assert (await reading).value.reveal() == b"old"


async def test_a_refused_connection_is_unavailable_and_names_the_address():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        async with VaultSecretProvider(VaultAddress(url=url, auth=TokenAuth(token="t")), retry=QUICK) as provider:
            with pytest.raises(UnavailableError, match=f"{url}: connection refused"):
                await provider.read("goatdb/root")


async def test_a_server_that_comes_back_is_found_again(server: BaoServer, proxy: FaultProxy):
    name = await prepared(server, write)
    async with through(proxy, retry=RetryPolicy(attempts=8, base=timedelta(milliseconds=5))) as provider:
        proxy.fault = Fault(mode=Mode.RESET, times=4)
        assert (await provider.read(name)).value.reveal() == b"old"
        assert proxy.hits == 4


async def test_no_error_leads_to_the_token_or_the_value(server: BaoServer, proxy: FaultProxy):
    async with through(proxy, retry=NEVER) as provider:
        for mode in (Mode.RESET, Mode.CUT, Mode.REPLY_LOST):
            name = await prepared(server, write)
            proxy.fault = Fault(mode=mode, match=b"POST ")
            with pytest.raises(UnavailableError) as caught:
                await provider.write(name, b"S3CRET", expected="1")
            error: BaseException | None = caught.value
            while error is not None:
                assert isinstance(error, GoatherdError), "a stranger's error carries its request along"
                error = error.__cause__ or error.__context__


# --- refusals that pass -----------------------------------------------------------------------------------------------


async def read_until_refused(provider: VaultSecretProvider) -> None:
    """Read as fast as the machine can, until a read fails: more than two in one second, however slow it is."""
    async with asyncio.timeout(HANG):
        while True:
            found = await asyncio.gather(*(provider.read("goatdb/root") for _ in range(8)), return_exceptions=True)
            for each in found:
                if isinstance(each, BaseException):
                    raise each


async def test_a_quota_throttles_with_the_servers_own_hint_where_it_gives_one(server: BaoServer):
    server.ask("POST", "sys/mounts/limited", {"type": "kv", "options": {"version": "2"}})
    address = VaultAddress(url=server.url, auth=TokenAuth(token=ROOT_TOKEN), mount="limited")
    async with VaultSecretProvider(address, retry=NEVER) as hasty, VaultSecretProvider(address) as patient:
        await hasty.create("goatdb/root", b"value")
        server.ask("POST", "sys/quotas/rate-limit/t", {"path": "limited/", "rate": 2, "interval": "1s"})
        with pytest.raises(ThrottledError) as caught:
            await read_until_refused(hasty)
        assert caught.value.retry_after is None
        server.ask("POST", "sys/quotas/config", {"enable_rate_limit_response_headers": True})
        with pytest.raises(ThrottledError) as caught:
            await read_until_refused(hasty)
        assert caught.value.retry_after == 1
        assert "GET limited/data/goatdb/root" in str(caught.value)
        assert (await patient.read("goatdb/root")).value.reveal() == b"value", "a retry comes through"


@pytest.mark.slow
async def test_a_sealed_server_is_unavailable_and_says_what_to_do():
    assert BAO is not None
    with BaoServer(BAO) as server:
        address = VaultAddress(url=server.url, auth=TokenAuth(token=ROOT_TOKEN))
        async with VaultSecretProvider(address, retry=NEVER) as provider:
            await provider.create("goatdb/root", b"value")
            server.ask("POST", "sys/seal", {})
            with pytest.raises(UnavailableError, match="sealed") as caught:
                await provider.read("goatdb/root")
            assert "unseal" in caught.value.hint


# --- TLS --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tls_server() -> Iterator[BaoServer]:
    assert BAO is not None
    with BaoServer(BAO, tls=True) as running:
        yield running


@pytest.fixture
def stranger(tmp_path: Path) -> str:
    """Return the certificate of an unrelated authority."""
    ca = tmp_path / "ca.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    command += ["-subj", "/CN=stranger", "-keyout", str(tmp_path / "key.pem"), "-out", str(ca)]
    subprocess.run(command, check=True, capture_output=True)
    return str(ca)


async def test_over_tls_the_right_authority_is_needed(tls_server: BaoServer, stranger: str):
    auth = TokenAuth(token=ROOT_TOKEN)
    async with VaultSecretProvider(VaultAddress(url=tls_server.url, auth=auth, ca=tls_server.ca)) as provider:
        await provider.create("goatdb/tls", b"value")
        assert (await provider.read("goatdb/tls")).value.reveal() == b"value"
    for ca in (None, stranger):
        async with VaultSecretProvider(VaultAddress(url=tls_server.url, auth=auth, ca=ca)) as provider:
            with pytest.raises(ProviderConfigurationError, match="certificate") as caught:
                await provider.read("goatdb/tls")
            assert "VAULT_CACERT" in caught.value.hint


async def test_over_tls_a_cut_is_unavailable_like_any_other(tls_server: BaoServer):
    async with FaultProxy("127.0.0.1", tls_server.port) as proxy:
        url = f"https://127.0.0.1:{proxy.port}"
        address = VaultAddress(url=url, auth=TokenAuth(token=ROOT_TOKEN), ca=tls_server.ca)
        for mode in (Mode.RESET, Mode.CUT, Mode.REPLY_LOST):
            proxy.fault = Fault(mode=mode, after=40)
            async with VaultSecretProvider(address, retry=NEVER) as provider:
                with pytest.raises(UnavailableError):
                    await provider.read("goatdb/tls")


@pytest.mark.parametrize(("tls", "match"), [(True, "wants TLS"), (False, "does not speak TLS")])
async def test_the_wrong_protocol_is_named(server: BaoServer, tls_server: BaoServer, tls: bool, match: str):
    port = tls_server.port if tls else server.port
    url = f"{'http' if tls else 'https'}://127.0.0.1:{port}"
    async with VaultSecretProvider(VaultAddress(url=url, auth=TokenAuth(token=ROOT_TOKEN))) as provider:
        with pytest.raises(ProviderConfigurationError, match=match):
            await provider.read("goatdb/tls")


async def test_a_cancelled_call_ends_at_once_and_leaves_the_provider_usable(server: BaoServer, proxy: FaultProxy):
    name = await prepared(server, write)
    async with through(proxy) as provider:
        proxy.fault = Fault(mode=Mode.BLACK_HOLE)
        for begin in (provider.read(name), provider.write(name, b"new", expected="1")):
            task = asyncio.ensure_future(begin)
            await asyncio.sleep(0.05)
            task.cancel()
            async with asyncio.timeout(HANG):
                with pytest.raises(asyncio.CancelledError):
                    await task
        proxy.fault = Fault()
        assert (await provider.read(name)).value.reveal() == b"old"


async def test_a_dead_token_is_told_apart_from_a_missing_right(server: BaoServer):
    async with VaultSecretProvider(VaultAddress(url=server.url, auth=TokenAuth(token="hvs.no"))) as provider:
        with pytest.raises(ProviderAccessDeniedError, match="expired, revoked or unknown") as caught:
            await provider.read("goatdb/root")
    assert isinstance(caught.value, ProviderError)
    assert "hvs.no" not in f"{caught.value} {caught.value.hint}"


async def test_a_write_that_is_cancelled_on_its_way_does_not_take_effect_later(server: BaoServer, proxy: FaultProxy):
    name = await prepared(server, write)
    async with through(proxy) as provider:
        commit = f"POST /v1/secret/data/{name} ".encode()
        proxy.fault = Fault(mode=Mode.DELAY, delay=timedelta(milliseconds=200), match=commit)
        task = asyncio.ensure_future(write(provider, name))
        while proxy.hits == 0:
            await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await provider.read(name)).value.reveal() == b"new", "settled when the call has ended"
