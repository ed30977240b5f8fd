"""A process dies at each request of each change: `versions` lists what the store then holds, and `retire` removes it.

A death is: the store gets the request, or not, and from then on nothing of that process reaches it. What is counted is
HTTP requests on their way to the store, calls of gRPC, and system calls of the file store. What counts as held is read
from the store itself, past the provider.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import inspect
import re
import secrets
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from goatherd.clock import SystemClock
from goatherd.errors import ConflictError, GoatherdError, SecretNotFoundError, UnavailableError
from goatherd.files import System
from goatherd.identity.document import decode_document, encode_document
from goatherd.identity.session import OwnedSession
from goatherd.identity.transitions import create_document, prepare_rotation
from goatherd.providers.base import RetryPolicy, SecretProvider
from goatherd.providers.file import FileSecretProvider
from goatherd.providers.values import CURRENT, STABLE, VersionId, VersionState
from goatherd.rotation import Policy, Rotator
from tests.deadlines import HANG
from tests.fakes.faults import Fault, FaultProxy, Mode
from tests.fakes.herd import FakeClock
from tests.fakes.openbao import ROOT_TOKEN, WHY_SKIPPED, BaoServer, find_bao

pytestmark = pytest.mark.slow
ONCE = RetryPolicy(attempts=1)
MOST_CALLS = 60
BAO = find_bao()


REQUEST = re.compile(rb"(GET|HEAD|LIST|POST|PUT|PATCH|DELETE) /")


class DyingProxy(FaultProxy):
    """What stands between a process that dies at its nth HTTP request and the server.

    Args:
        port: The server's, on this machine.
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
    """Holds a process up at one request until it is opened."""

    def __init__(self) -> None:
        self.reached, self._open = asyncio.Event(), threading.Event()
        self._loop = asyncio.get_running_loop()

    def open(self) -> None:
        """Let the process go on."""
        self._open.set()

    async def wait(self) -> None:
        """Say that the process has come here, and wait."""
        self.reached.set()
        while not self._open.is_set():
            await asyncio.sleep(0.001)

    def wait_in_thread(self) -> None:
        """Do the same in a thread."""
        self._loop.call_soon_threadsafe(self.reached.set)
        self._open.wait(HANG)


class HoldingProxy(FaultProxy):
    """Holds a process up before its nth HTTP request reaches the server."""

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
    """A provider's client that is held up before its nth call."""

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
    """A provider's client that dies at its nth call.

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
    """The same for system calls. What is only opened, closed or looked at changes nothing, but counts."""

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
        kill: Make one whose process dies at a call; what is returned with it says whether it came to that.
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
    """Return what makes a provider for a port at which a proxy holds it up."""

    @contextlib.asynccontextmanager
    async def opened(at: int, gate: Gate) -> AsyncIterator[SecretProvider]:
        async with HoldingProxy(port, at, gate) as proxy, make(proxy.port) as provider:
            yield provider

    return opened


def dying_at_a_request(
    make: Callable[[int], SecretProvider], port: int
) -> Callable[[int, bool], contextlib.AbstractAsyncContextManager[tuple[SecretProvider, Any]]]:
    """Return what makes a provider for a port at which a proxy dies."""

    @contextlib.asynccontextmanager
    async def opened(at: int, after: bool) -> AsyncIterator[tuple[SecretProvider, Any]]:
        async with DyingProxy(port, at, after=after) as proxy, make(proxy.port) as provider:
            yield provider, proxy

    return opened


def dying(
    make: Callable[[], SecretProvider], attribute: str
) -> Callable[[int, bool], contextlib.AbstractAsyncContextManager[tuple[SecretProvider, Any]]]:
    """Return what makes a provider whose client, in `attribute`, dies."""

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


@contextlib.contextmanager
def file_store(tmp_path: Path) -> Iterator[Store]:
    @contextlib.asynccontextmanager
    async def opened(at: int, after: bool) -> AsyncIterator[tuple[SecretProvider, Any]]:
        system = DyingSystem(at, after=after)
        yield FileSecretProvider(str(tmp_path / "store"), retry=ONCE, system=system), system

    yield Store(
        make=lambda: FileSecretProvider(str(tmp_path / "store"), retry=ONCE),
        kill=opened,
        held=lambda name: {file.read_bytes() for file in (tmp_path / "store" / name).glob("*.value")},
        name=lambda: f"root-{secrets.token_hex(4)}",
    )


@contextlib.contextmanager
def vault_store(tmp_path: Path) -> Iterator[Store]:
    from goatherd.providers.vault import TokenAuth, VaultAddress, VaultSecretProvider

    if BAO is None:
        pytest.skip(WHY_SKIPPED)
    with BaoServer(BAO) as server:

        def held(name: str) -> set[bytes]:
            found = set()
            for path in (name, f"{name}-pointer"):
                known = server.ask("GET", f"secret/metadata/{path}").get("data", {})
                for number in known.get("versions", {}):
                    data = (server.ask("GET", f"secret/data/{path}?version={number}").get("data") or {}).get("data")
                    if data and "value" in data:
                        found.add(base64.b64decode(data["value"]))
                    if data and "identity" in data:
                        found.add(data["identity"].encode())
            return found

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
    from goatherd.providers.azure import AzureAddress, AzureSecretProvider
    from goatherd.providers.azure.records import POINTER_TYPE, WITH_VALUE_TYPES, value_after_pointer
    from tests.fakes.azure_fake import FakeCredential, FakeKeyVault, FastClock, Trouble

    class DyingVault(FakeKeyVault):
        """Dies for all clients at its nth request, or holds up the one that has made it."""

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
            enabled = [one for versions in stored for one in versions.values() if one.enabled]
            return {
                (value_after_pointer(one.value) if one.content_type in WITH_VALUE_TYPES else one.value).encode()
                for one in enabled
                if one.content_type != POINTER_TYPE
            }

        def make() -> SecretProvider:
            return AzureSecretProvider(
                address, credential=FakeCredential(), clock=FastClock(200), retry=ONCE, timeout=timedelta(minutes=1)
            )

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
    from goatherd.providers.aws import AWSAddress, AWSSecretProvider
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

    from goatherd.providers.gcp import GCPAddress, GCPSecretProvider
    from tests.fakes.gcp_fake import FakeSecretManager
    from tests.fakes.gcp_fake.service import ENABLED

    with FakeSecretManager("goatherd-testing") as fake:
        address = GCPAddress(project="goatherd-testing", endpoint=fake.endpoint)

        def held(name: str) -> set[bytes]:
            found = [secret for full, secret in fake.service._secrets.items() if full.endswith(f"/{name}")]
            versions = [version for secret in found for version in secret.versions.values()]
            return {version.payload for version in versions if version.payload and version.state == ENABLED}

        def make() -> SecretProvider:
            return GCPSecretProvider(
                address, credentials=AnonymousCredentials(), retry=ONCE, timeout=timedelta(seconds=30)
            )

        @contextlib.asynccontextmanager
        async def hold(at: int, gate: Gate) -> AsyncIterator[SecretProvider]:
            async with make() as provider:
                provider._api = HoldingClient(provider._api, at, gate)
                yield provider

        yield Store(
            make=make, kill=dying(make, "_api"), held=held, name=lambda: f"root-{secrets.token_hex(4)}", hold=hold
        )


@contextlib.contextmanager
def kubernetes_store(tmp_path: Path) -> Iterator[Store]:
    pytest.importorskip("kubernetes_asyncio", reason="needs the extra kubernetes")
    from goatherd.providers.kubernetes import KubernetesAddress, KubernetesSecretProvider
    from tests.contract.kubernetes.test_contract import kubeconfig
    from tests.fakes.kubernetes_fake import FakeKubernetes

    with FakeKubernetes() as fake:

        def held(name: str) -> set[bytes]:
            try:
                data = fake.stored(*name.split("/"))["data"]
            except KeyError:
                return set()
            return {base64.b64decode(raw) for key, raw in data.items() if key.startswith("identity-")}

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


# Google's lease of five seconds has to end after each kill: minutes.
@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=pytest.mark.deep if name == "gcp" else ()) for name in STORES]
)
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with STORES[request.param](tmp_path_factory.mktemp(request.param)) as made:
        yield made


Change = Callable[[SecretProvider, str, VersionId, VersionId], Awaitable[object]]


async def write(provider: SecretProvider, name: str, first: VersionId, second: VersionId) -> None:
    await provider.write(name, b"third", expected=second)


async def write_candidate(provider: SecretProvider, name: str, first: VersionId, second: VersionId) -> None:
    await provider.write(name, b"third", label="candidate", expected=None)


async def label(provider: SecretProvider, name: str, first: VersionId, second: VersionId) -> None:
    await provider.label(name, STABLE, second, expected=None)


async def go_back(provider: SecretProvider, name: str, first: VersionId, second: VersionId) -> None:
    await provider.label(name, CURRENT, first, expected=second)


async def destroy(provider: SecretProvider, name: str, first: VersionId, second: VersionId) -> None:
    await provider.destroy(name, first)


async def must_all_be_listed(store: Store, provider: SecretProvider, name: str, moment: str) -> None:
    readable = set()
    for version in await provider.versions(name):
        if version.state is VersionState.ENABLED:
            found = await provider.read(name, version.id)
            assert found.version.is_leftover == version.is_leftover, f"{moment}: read and versions disagree"
            readable.add(found.value.reveal())
    held = {value for value in store.held(name) if value}  # of a file that was begun, but holds nothing, none is held
    assert held <= readable, f"{moment}: the store holds values that no listed version has"


async def must_be_gone_when_destroyed(store: Store, provider: SecretProvider, name: str, moment: str) -> None:
    for version in await provider.versions(name):
        if version.state is VersionState.ENABLED and not version.labels:
            await provider.destroy(name, version.id)
    listed = await provider.versions(name)
    labelled = {(await provider.read(name, version.id)).value.reveal() for version in listed if version.labels}
    if store.destroys:
        assert store.held(name) == labelled, f"{moment}: a destroyed value can still be read"


@pytest.mark.parametrize("change", [write, write_candidate, label, go_back, destroy], ids=lambda each: each.__name__)
async def test_whatever_a_process_that_died_left_is_listed_and_can_be_destroyed(store: Store, change: Change):
    async with store.make() as provider:
        for after in (False, True):
            for at in range(1, MOST_CALLS):
                moment = f"{change.__name__}, {'after' if after else 'before'} call {at}"
                name = store.name()
                first = (await provider.create(name, b"first")).id
                second = (await provider.write(name, b"second", expected=first)).id
                async with store.kill(at, after) as (victim, client):
                    with contextlib.suppress(GoatherdError):
                        await change(victim, name, first, second)
                    has_died = client.is_dead
                await must_all_be_listed(store, provider, name, moment)
                await must_be_gone_when_destroyed(store, provider, name, moment)
                if not has_died:
                    break
            else:
                pytest.fail("the change made more calls than expected")


async def test_what_a_creation_left_is_listed_once_the_secret_exists(store: Store):
    async with store.make() as provider:
        for after in (False, True):
            for at in range(1, MOST_CALLS):
                name = store.name()
                async with store.kill(at, after) as (victim, client):
                    with contextlib.suppress(GoatherdError):
                        await victim.create(name, b"first")
                    has_died = client.is_dead
                with contextlib.suppress(ConflictError):
                    try:
                        await provider.versions(name)
                    except SecretNotFoundError:
                        await provider.create(name, b"second")
                await must_all_be_listed(store, provider, name, f"create, call {at}")
                if not has_died:
                    break
            else:
                pytest.fail("the creation made more calls than expected")


# Stores tell the real time, which a clock that is turned is not.
POLICY = Policy(settle=timedelta(0), grace=timedelta(days=30), clock_tolerance=timedelta(days=1000))


def root_of(name: str, clock: FakeClock) -> OwnedSession:
    return OwnedSession.generate(session_id=name, owner="root", now_ms=clock.now_ms(), lifetime=timedelta(days=400))


async def begin(provider: SecretProvider, name: str, clock: FakeClock, *, rotation_id: str) -> None:
    """Write what the first write of a rotation stores: the current root, and a next one."""
    found = await provider.read(name)
    prepared = prepare_rotation(
        decode_document(found.value.reveal()),
        root_of(f"root-{rotation_id}", clock),
        now_ms=clock.now_ms(),
        rotation_id=rotation_id,
        started_by="test",
        stable_version=found.version.id,
    )
    await provider.write(name, encode_document(prepared), expected=found.version.id)


def private_ids(store: Store, name: str) -> set[str]:
    """Return the roots whose private keys the store itself still gives out."""
    found: set[str] = set()
    for value in store.held(name):
        document = decode_document(value)
        found |= {document.current.id, *([document.next.id] if document.next is not None else [])}
    return found


async def rotated_and_retired(store: Store, provider: SecretProvider, name: str, clock: FakeClock) -> str:
    """Finish the rotation in progress, or rotate, then retire after the grace period; return the current root."""
    rotator = Rotator(provider, name, [], policy=POLICY, clock=clock)
    document = decode_document((await provider.read(name)).value.reveal())
    await (rotator.rotate() if document.rotation is None else rotator.resume())
    clock.turn(POLICY.grace + timedelta(days=1))
    await Rotator(provider, name, [], policy=POLICY, clock=clock).retire()
    document = decode_document((await provider.read(name)).value.reveal())
    if store.destroys and provider.guarantees.destroys:
        assert "root-a" in document.retired_ids, "it is not on record that the key is in no version"
    return document.current.id


@pytest.mark.deep
async def test_after_a_kill_at_any_request_of_a_write_retire_leaves_no_retired_key(store: Store):
    clock = FakeClock(SystemClock().now_ms())
    async with store.make() as provider:
        for after in (False, True):
            for at in range(1, MOST_CALLS):
                moment = f"{'after' if after else 'before'} request {at}"
                name = store.name()
                await provider.create(name, encode_document(create_document(root_of("root-a", clock), clock.now_ms())))
                async with store.kill(at, after) as (victim, client):
                    with contextlib.suppress(GoatherdError):
                        await begin(victim, name, clock, rotation_id="b")
                    has_died = client.is_dead
                current = await rotated_and_retired(store, provider, name, clock)
                if store.destroys:
                    assert private_ids(store, name) == {current}, moment
                left = [one for one in await provider.versions(name) if one.labels]
                assert len(left) == 1, moment
                if not has_died:
                    break
            else:
                pytest.fail("the write made more requests than expected")


async def destroy_what_has_no_label(provider: SecretProvider, name: str) -> None:
    """Destroy it all, as `retire` would if the grace period of all of it were over."""
    for version in await provider.versions(name):
        if not version.labels and version.state is VersionState.ENABLED:
            with contextlib.suppress(ConflictError):  # it has one now
                await provider.destroy(name, version.id)


async def test_a_value_whose_record_is_being_written_may_be_destroyed_and_the_write_is_not_lost(store: Store):
    if store.hold is None:
        pytest.skip("a writer holds a lock")
    async with store.make() as provider:
        for at in range(1, MOST_CALLS):
            name, gate = store.name(), Gate()
            first = (await provider.create(name, b"first")).id
            async with store.hold(at, gate) as slow:
                writing = asyncio.ensure_future(slow.write(name, b"second", expected=first))
                reached = asyncio.ensure_future(gate.reached.wait())
                await asyncio.wait({writing, reached}, return_when=asyncio.FIRST_COMPLETED, timeout=HANG)
                was_held = gate.reached.is_set()
                if was_held:
                    await destroy_what_has_no_label(provider, name)
                gate.open()
                reached.cancel()
                (outcome,) = await asyncio.gather(writing, return_exceptions=True)
            current = await provider.read(name)
            if isinstance(outcome, BaseException):
                assert isinstance(outcome, UnavailableError), f"request {at}: {outcome!r}"
            else:
                assert (current.version.id, current.value.reveal()) == (outcome.id, b"second"), f"request {at}"
            assert current.value.reveal() in (b"first", b"second"), f"request {at}"
            if not was_held:
                break
        else:
            pytest.fail("the write made more requests than expected")
