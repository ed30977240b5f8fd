"""A process dies at each call of each change: whatever the store then holds, `versions` lists, and `destroy` removes.

A death is: the call is done, or not, and from then on nothing of that process reaches the store. What counts as held is
looked up in the store itself, past the provider.
"""

from __future__ import annotations

import base64
import contextlib
import inspect
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from goatherd.errors import ConflictError, GoatherdError, SecretNotFoundError, UnavailableError
from goatherd.providers.base import CURRENT, STABLE, RetryPolicy, SecretProvider, VersionId, VersionState
from goatherd.providers.file import FileSecretProvider
from goatherd.providers.posix import System
from goatherd.testing.openbao import ROOT_TOKEN, WHY_SKIPPED, BaoServer, find_bao

pytestmark = pytest.mark.slow
ONCE = RetryPolicy(attempts=1)
MOST_CALLS = 60
BAO = find_bao()


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

    def call(self, operation: Any, *args: Any, **options: Any) -> Any:
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
    """

    make: Callable[[], SecretProvider]
    kill: Callable[[int, bool], contextlib.AbstractAsyncContextManager[tuple[SecretProvider, Any]]]
    held: Callable[[str], set[bytes]]
    name: Callable[[], str]
    destroys: bool = True


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
        address = VaultAddress(url=server.url, auth=TokenAuth(token=ROOT_TOKEN), reads_active=True)

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

        def make() -> SecretProvider:
            return VaultSecretProvider(address, retry=ONCE)

        yield Store(make=make, kill=dying(make, "_client"), held=held, name=lambda: f"root-{secrets.token_hex(4)}")


@contextlib.contextmanager
def azure_store(tmp_path: Path) -> Iterator[Store]:
    pytest.importorskip("azure.keyvault.secrets", reason="needs the extra azure")
    from goatherd.providers.azure import AzureAddress, AzureSecretProvider
    from goatherd.providers.azure.records import POINTER_TYPE
    from goatherd.testing.azure_fake import FakeCredential, FakeKeyVault, FastClock

    with FakeKeyVault(speed=200) as vault:
        address = AzureAddress(vault="fake", url=vault.url, ca=str(vault.ca), check_challenge=False)

        def held(name: str) -> set[bytes]:
            stored = [vault._state.secrets.get(name + suffix, {}) for suffix in ("", "-pointer")]
            enabled = [one for versions in stored for one in versions.values() if one.enabled]
            # After a pointer, which is one line, comes the value that it brings.
            return {one.value.rpartition("\n")[2].encode() for one in enabled if one.content_type != POINTER_TYPE}

        def make() -> SecretProvider:
            return AzureSecretProvider(
                address, credential=FakeCredential(), clock=FastClock(200), retry=ONCE, timeout=timedelta(minutes=1)
            )

        yield Store(make=make, kill=dying(make, "_vault"), held=held, name=lambda: f"root-{secrets.token_hex(4)}")


@contextlib.contextmanager
def aws_store(tmp_path: Path) -> Iterator[Store]:
    pytest.importorskip("boto3", reason="needs the extra aws")
    from goatherd.providers.aws import AWSAddress, AWSSecretProvider
    from goatherd.testing.aws_fake import ACCESS_KEY, REGION, FakeSecretsManager

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

        def make() -> SecretProvider:
            return AWSSecretProvider(AWSAddress(region=REGION, endpoint=fake.url, recovery_days=0), retry=ONCE)

        yield Store(
            make=make,
            kill=dying(make, "_api"),
            held=held,
            name=lambda: f"root-{secrets.token_hex(4)}",
            destroys=False,
        )


@contextlib.contextmanager
def gcp_store(tmp_path: Path) -> Iterator[Store]:
    pytest.importorskip("google.cloud.secretmanager_v1", reason="needs the extra gcp")
    from google.auth.credentials import AnonymousCredentials

    from goatherd.providers.gcp import GCPAddress, GCPSecretProvider
    from goatherd.testing.gcp_fake import FakeSecretManager
    from goatherd.testing.gcp_fake.service import ENABLED

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

        yield Store(make=make, kill=dying(make, "_api"), held=held, name=lambda: f"root-{secrets.token_hex(4)}")


@contextlib.contextmanager
def kubernetes_store(tmp_path: Path) -> Iterator[Store]:
    pytest.importorskip("kubernetes_asyncio", reason="needs the extra kubernetes")
    from goatherd.testing.kubernetes_fake import FakeKubernetes
    from tests.contract.test_kubernetes_fake import provider_of

    with FakeKubernetes() as fake:

        def held(name: str) -> set[bytes]:
            try:
                data = fake.stored(*name.split("/"))["data"]
            except KeyError:
                return set()
            return {base64.b64decode(raw) for key, raw in data.items() if key.startswith("identity-")}

        def make() -> SecretProvider:
            return provider_of(fake, tmp_path, retry=ONCE)

        yield Store(
            make=make, kill=dying(make, "_client"), held=held, name=lambda: f"default/root-{secrets.token_hex(4)}"
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
@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.deep if name == "gcp" else ()) for name in STORES])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    with STORES[request.param](tmp_path) as made:
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
