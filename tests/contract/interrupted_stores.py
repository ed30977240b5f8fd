"""Every store, behind a proxy or client that kills or holds a process at a chosen request."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import inspect
import json
import re
import secrets
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from goatherd.errors import UnavailableError
from goatherd.files import System
from goatherd.providers.base import RetryPolicy, SecretProvider
from goatherd.providers.file.provider import FileSecretProvider
from goatherd.providers.versioned_record import BASE64, RECORD
from tests.deadlines import HANG
from tests.fakes.faults import Fault, FaultProxy, Mode
from tests.fakes.openbao import ROOT_TOKEN, WHY_SKIPPED, BaoServer, find_bao

ONCE = RetryPolicy(attempts=1)
MOST_CALLS = 60
BAO = find_bao()


REQUEST = re.compile(rb"(GET|HEAD|LIST|POST|PUT|PATCH|DELETE) /")


class DyingProxy(FaultProxy):
    """A proxy that lets a process die at its n-th HTTP request to the server.

    Args:
        port: The server's port, on this machine.
        at: The number of the request, from 1.
        after: Whether the server still gets that request, and only the answer is lost.
    """

    def __init__(self, port: int, at: int, *, after: bool) -> None:
        super().__init__("127.0.0.1", port)
        self._at, self._after = at, after
        self.calls = 0

    @property
    def is_dead(self) -> bool:
        return self.calls >= self._at

    async def _sent(self, both: Any, chunk: bytes) -> bool:
        if REQUEST.match(chunk):
            self.calls += 1
            lost = Fault(mode=Mode.REPLY_LOST, times=1) if self.calls == self._at and self._after else None
            self.fault = lost or Fault(mode=Mode.RESET if self.is_dead else Mode.OK)
        return await super()._sent(both, chunk)


class Gate:
    """Holds a process at one request until the gate is opened."""

    def __init__(self) -> None:
        self.reached, self._open = asyncio.Event(), threading.Event()
        self._loop = asyncio.get_running_loop()

    def open(self) -> None:
        """Let the process continue."""
        self._open.set()

    async def wait(self) -> None:
        """Report that the process has arrived here, and wait."""
        self.reached.set()
        while not self._open.is_set():
            await asyncio.sleep(0.001)

    def wait_in_thread(self) -> None:
        """Do the same in a thread."""
        self._loop.call_soon_threadsafe(self.reached.set)
        self._open.wait(HANG)


class HoldingProxy(FaultProxy):
    """Holds a process before its n-th HTTP request reaches the server."""

    def __init__(self, port: int, at: int, gate: Gate) -> None:
        super().__init__("127.0.0.1", port)
        self._at, self._gate = at, gate
        self._calls = 0

    async def _sent(self, both: Any, chunk: bytes) -> bool:
        if REQUEST.match(chunk):
            self._calls += 1
            if self._calls == self._at:
                await self._gate.wait()
        return await super()._sent(both, chunk)


class HoldingClient:
    """A provider's client that is held before its n-th call."""

    def __init__(self, client: object, at: int, gate: Gate) -> None:
        self._client, self._at, self._gate = client, at, gate
        self._calls = 0

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._client, name)
        if not inspect.iscoroutinefunction(found):
            return found

        async def call(*args: Any, **options: Any) -> Any:
            self._calls += 1
            if self._calls == self._at:
                await self._gate.wait()
            return await found(*args, **options)

        return call


class DyingClient:
    """A provider's client that dies at its n-th call.

    Args:
        client: The real one.
        at: The number of the call, from 1.
        after: Whether that call is still done, and only its answer is lost.
    """

    def __init__(self, client: object, at: int, *, after: bool) -> None:
        self._client, self._at, self._after = client, at, after
        self.calls = 0

    @property
    def is_dead(self) -> bool:
        return self.calls >= self._at

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._client, name)
        if not inspect.iscoroutinefunction(found):
            return found

        async def call(*args: Any, **options: Any) -> Any:
            self.calls += 1
            if self.calls == self._at and self._after:
                await found(*args, **options)
            if self.is_dead:
                raise UnavailableError("the process is dead", provider="x", secret_id="x", operation="x")
            return await found(*args, **options)

        return call


class DyingSystem(System):
    """Dies at the n-th system call. Calls that only open, close or read change nothing, but count."""

    def __init__(self, at: int, *, after: bool) -> None:
        self._at, self._after = at, after
        self.calls = 0

    @property
    def is_dead(self) -> bool:
        return self.calls >= self._at

    def run_call(self, operation: Any, *args: Any, **options: Any) -> Any:
        self.calls += 1
        if self.is_dead and operation.__name__ == "close":
            return operation(*args, **options)  # the system closes what a dead process had open
        if self.calls == self._at and self._after:
            operation(*args, **options)
        if self.is_dead:
            raise OSError(5, "the process is dead")
        return operation(*args, **options)


@dataclass(frozen=True, kw_only=True)
class Store:
    """One store under test.

    Attributes:
        make: Make a provider that does not retry.
        kill: Make one whose process dies at a call; the returned function tells whether the process has died.
        held: Return all values that the store holds of a secret: how often each, only those that can be read.
        name: Make a new secret id.
        destroys: Whether what is destroyed is gone from `held`.
        hold: Make one whose process is held up before a call, by a gate; None where it would hold a lock meanwhile.
    """

    make: Callable[[], SecretProvider]
    kill: Callable[[int, bool], contextlib.AbstractAsyncContextManager[tuple[SecretProvider, Any]]]
    held: Callable[[str], set[bytes]]
    name: Callable[[], str]
    destroys: bool = True
    hold: Callable[[int, Gate], contextlib.AbstractAsyncContextManager[SecretProvider]] | None = None


def held_at_a_request(
    make: Callable[[int], SecretProvider], port: int
) -> Callable[[int, Gate], contextlib.AbstractAsyncContextManager[SecretProvider]]:
    """Return a factory of providers that a proxy holds at a request."""

    @contextlib.asynccontextmanager
    async def opened(at: int, gate: Gate) -> AsyncIterator[SecretProvider]:
        async with HoldingProxy(port, at, gate) as proxy, make(proxy.port) as provider:
            yield provider

    return opened


def dying_at_a_request(
    make: Callable[[int], SecretProvider], port: int
) -> Callable[[int, bool], contextlib.AbstractAsyncContextManager[tuple[SecretProvider, Any]]]:
    """Return a factory of providers that a proxy lets die at a request."""

    @contextlib.asynccontextmanager
    async def opened(at: int, after: bool) -> AsyncIterator[tuple[SecretProvider, Any]]:
        async with DyingProxy(port, at, after=after) as proxy, make(proxy.port) as provider:
            yield provider, proxy

    return opened


def dying(
    make: Callable[[], SecretProvider], attribute: str
) -> Callable[[int, bool], contextlib.AbstractAsyncContextManager[tuple[SecretProvider, Any]]]:
    """Return a factory of providers whose client, in `attribute`, dies."""

    @contextlib.asynccontextmanager
    async def opened(at: int, after: bool) -> AsyncIterator[tuple[SecretProvider, Any]]:
        async with make() as provider:
            real = getattr(provider, attribute)
            client = DyingClient(real, at, after=after)
            setattr(provider, attribute, client)
            try:
                yield provider, client
            finally:
                setattr(provider, attribute, real)

    return opened


def values_of(document: Any) -> set[bytes]:
    """Return the values in the JSON object of a secret; none if there is no object."""
    members = [member for name, member in (document or {}).items() if name not in (RECORD, "path")]
    return {base64.b64decode(one[BASE64]) if isinstance(one, dict) else one.encode() for one in members}


def values_in(raw: bytes) -> set[bytes]:
    """Return the values in the bytes of a JSON object; none if a dying writer has not written it to the end."""
    with contextlib.suppress(ValueError):
        return values_of(json.loads(raw))
    return set()


@contextlib.contextmanager
def file_store(tmp_path: Path) -> Iterator[Store]:
    @contextlib.asynccontextmanager
    async def opened(at: int, after: bool) -> AsyncIterator[tuple[SecretProvider, Any]]:
        system = DyingSystem(at, after=after)
        yield FileSecretProvider(str(tmp_path / "store"), retry=ONCE, system=system), system

    yield Store(
        make=lambda: FileSecretProvider(str(tmp_path / "store"), retry=ONCE),
        kill=opened,
        held=lambda name: {
            value for file in (tmp_path / "store" / name).glob("secret.*") for value in values_in(file.read_bytes())
        },
        name=lambda: f"root-{secrets.token_hex(4)}",
    )


@contextlib.contextmanager
def vault_store(tmp_path: Path) -> Iterator[Store]:
    from goatherd.providers.vault.address import VaultAddress
    from goatherd.providers.vault.auth import TokenAuth
    from goatherd.providers.vault.provider import VaultSecretProvider

    if BAO is None:
        pytest.skip(WHY_SKIPPED)
    with BaoServer(BAO) as server:

        def held(name: str) -> set[bytes]:
            known = server.ask("GET", f"secret/metadata/{name}").get("data", {}).get("versions", {})
            asked = [server.ask("GET", f"secret/data/{name}?version={number}") for number in known]
            return {value for each in asked for value in values_of((each.get("data") or {}).get("data"))}

        def make(port: int = server.port) -> SecretProvider:
            url = f"http://127.0.0.1:{port}"
            address = VaultAddress(url=url, auth=TokenAuth(token=ROOT_TOKEN), reads_active=True)
            return VaultSecretProvider(address, retry=ONCE)

        yield Store(
            make=make,
            kill=dying_at_a_request(make, server.port),
            held=held,
            name=lambda: f"root-{secrets.token_hex(4)}",
            hold=held_at_a_request(make, server.port),
        )


@contextlib.contextmanager
def azure_store(tmp_path: Path) -> Iterator[Store]:
    pytest.importorskip("azure.keyvault.secrets", reason="needs the extra azure")
    from goatherd.providers.azure.address import AzureAddress
    from goatherd.providers.azure.provider import AzureSecretProvider
    from goatherd.providers.azure.records import POINTER_TYPE
    from tests.fakes.azure_fake import FakeCredential, FakeKeyVault, FastClock, Trouble

    class DyingVault(FakeKeyVault):
        """Dies for all clients at its n-th request, or holds the client that made the request."""

        calls = at = 0
        after = False
        gate: Gate | None = None

        @property
        def is_dead(self) -> bool:
            return 0 < self.at <= self.calls

        def _next_trouble(self, request: str) -> Trouble | None:
            self.calls += 1
            if self.gate is not None:
                if self.calls == self.at:
                    self.gate.wait_in_thread()
                return None
            return Trouble(hang_up=True, after=self.after and self.calls == self.at) if self.is_dead else None

    with DyingVault(speed=200) as vault:
        address = AzureAddress(vault="fake", url=vault.url, ca=str(vault.ca), check_challenge=False)

        def held(name: str) -> set[bytes]:
            stored = [vault._state.secrets.get(name + suffix, {}) for suffix in ("", "-pointer")]
            kept = [one for versions in stored for one in versions.values()]
            return {one.value.encode() for one in kept if one.enabled and one.content_type != POINTER_TYPE}

        def make() -> SecretProvider:
            return AzureSecretProvider(address, credential=FakeCredential(), clock=FastClock(200), retry=ONCE)

        @contextlib.asynccontextmanager
        async def kill(at: int, after: bool) -> AsyncIterator[tuple[SecretProvider, Any]]:
            async with make() as provider:
                vault.calls, vault.at, vault.after = 0, at, after
                try:
                    yield provider, vault
                finally:
                    vault.at = 0

        @contextlib.asynccontextmanager
        async def hold(at: int, gate: Gate) -> AsyncIterator[SecretProvider]:
            async with make() as provider:
                vault.calls, vault.at, vault.gate = 0, at, gate
                try:
                    yield provider
                finally:
                    vault.at, vault.gate = 0, None

        yield Store(make=make, kill=kill, held=held, name=lambda: f"root-{secrets.token_hex(4)}", hold=hold)


@contextlib.contextmanager
def aws_store(tmp_path: Path) -> Iterator[Store]:
    pytest.importorskip("boto3", reason="needs the extra aws")
    from goatherd.providers.aws.address import AWSAddress
    from goatherd.providers.aws.provider import AWSSecretProvider
    from tests.fakes.aws_fake import ACCESS_KEY, REGION, FakeSecretsManager

    with FakeSecretsManager() as fake, pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
        environment.setenv("AWS_SECRET_ACCESS_KEY", "x" * 40)

        def held(name: str) -> set[bytes]:
            secret = fake._secrets.get(name)
            values = [] if secret is None else [version.value for version in secret.versions.values()]
            return {
                str(value["SecretString"]).encode()
                if "SecretString" in value
                else base64.b64decode(str(value["SecretBinary"]))
                for value in values
            }

        def make(port: int = urlsplit(fake.url).port or 0) -> SecretProvider:
            address = AWSAddress(region=REGION, endpoint=f"http://127.0.0.1:{port}", recovery_days=0)
            return AWSSecretProvider(address, retry=ONCE)

        yield Store(
            make=make,
            kill=dying_at_a_request(make, urlsplit(fake.url).port or 0),
            hold=held_at_a_request(make, urlsplit(fake.url).port or 0),
            held=held,
            name=lambda: f"root-{secrets.token_hex(4)}",
            destroys=False,
        )


@contextlib.contextmanager
def gcp_store(tmp_path: Path) -> Iterator[Store]:
    pytest.importorskip("google.cloud.secretmanager_v1", reason="needs the extra gcp")
    from google.auth.credentials import AnonymousCredentials

    from goatherd.providers.gcp.address import GCPAddress
    from goatherd.providers.gcp.provider import GCPSecretProvider
    from tests.fakes.gcp_fake import FakeSecretManager
    from tests.fakes.gcp_fake.service import ENABLED

    with FakeSecretManager("goatherd-testing") as fake:
        address = GCPAddress(project="goatherd-testing", endpoint=fake.endpoint)

        def held(name: str) -> set[bytes]:
            found = [secret for full, secret in fake.service._secrets.items() if full.endswith(f"/{name}")]
            versions = [version for secret in found for version in secret.versions.values()]
            return {version.payload for version in versions if version.payload and version.state == ENABLED}

        def make() -> GCPSecretProvider:
            credentials = AnonymousCredentials()  # type: ignore[no-untyped-call]
            return GCPSecretProvider(address, credentials=credentials, retry=ONCE)

        @contextlib.asynccontextmanager
        async def hold(at: int, gate: Gate) -> AsyncIterator[SecretProvider]:
            async with make() as provider:
                provider._api = HoldingClient(provider._api, at, gate)  # type: ignore[assignment]
                yield provider

        yield Store(
            make=make, kill=dying(make, "_api"), held=held, name=lambda: f"root-{secrets.token_hex(4)}", hold=hold
        )


@contextlib.contextmanager
def kubernetes_store(tmp_path: Path) -> Iterator[Store]:
    pytest.importorskip("kubernetes_asyncio", reason="needs the extra kubernetes")
    from goatherd.providers.kubernetes.address import KubernetesAddress
    from goatherd.providers.kubernetes.provider import KubernetesSecretProvider
    from tests.contract.kubernetes.clients import kubeconfig
    from tests.fakes.kubernetes_fake import FakeKubernetes

    with FakeKubernetes() as fake:

        def held(name: str) -> set[bytes]:
            try:
                data = fake.stored(*name.split("/"))["data"]
            except KeyError:
                return set()
            return {base64.b64decode(raw) for key, raw in data.items() if key != RECORD}

        def make(port: int = fake.port) -> SecretProvider:
            address = KubernetesAddress(kubeconfig=kubeconfig(tmp_path, f"http://127.0.0.1:{port}"))
            return KubernetesSecretProvider(address, retry=ONCE)

        yield Store(
            make=make,
            kill=dying_at_a_request(make, fake.port),
            held=held,
            name=lambda: f"default/root-{secrets.token_hex(4)}",
            hold=held_at_a_request(make, fake.port),
        )


STORES = {
    "file": file_store,
    "vault": vault_store,
    "azure": azure_store,
    "aws": aws_store,
    "gcp": gcp_store,
    "kubernetes": kubernetes_store,
}
