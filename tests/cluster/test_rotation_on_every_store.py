"""Five real servers under load, and a rotation meanwhile, on every kind of store."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest

from goatherd.clock import SystemClock
from goatherd.cluster.client import NodeClient
from goatherd.operations.workload import Workload
from goatherd.plugins import provider_schemes
from goatherd.providers.base import SecretProvider
from goatherd.providers.file.provider import FileSecretProvider
from goatherd.providers.memory import MemorySecretProvider, MemoryStore
from goatherd.providers.values import CURRENT, STABLE
from goatherd.rotation.machine import Policy
from goatherd.rotation.rotator import Rotator
from tests.deadlines import ADOPTION, ANSWER

from .herd import herd_around

pytestmark = pytest.mark.slow
SECOND = timedelta(seconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A running store.

    Attributes:
        factory: Makes one more client of the store.
        secret_id: A secret that does not exist.
        adoption: The timeout for the nodes; longer than the store delays a change.
        clock_tolerance: By how much its clock may differ from this machine's.
    """

    factory: Callable[[], SecretProvider]
    secret_id: str = "goatdb/root"
    adoption: timedelta = ADOPTION
    clock_tolerance: timedelta = Policy().clock_tolerance


Opened = contextlib.AbstractContextManager[Place]


@contextlib.contextmanager
def memory(top: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    store = MemoryStore()
    yield Place(factory=lambda: MemorySecretProvider(store))


@contextlib.contextmanager
def file(top: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    yield Place(factory=lambda: FileSecretProvider(str(top / "keys")))


@contextlib.contextmanager
def aws(top: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    pytest.importorskip("boto3", reason="NO BOTO3, SO NOTHING IS ROTATED ON AWS: make .venv/.dev")
    from goatherd.providers.aws.address import AWSAddress
    from goatherd.providers.aws.provider import AWSSecretProvider
    from tests.fakes.aws_fake import ACCESS_KEY, REGION, FakeSecretsManager

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x" * 40)
    with FakeSecretsManager() as fake:
        address = AWSAddress(region=REGION, endpoint=fake.url)
        yield Place(factory=lambda: AWSSecretProvider(address, timeout=ANSWER))


@contextlib.contextmanager
def aws_moto(top: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    pytest.importorskip("boto3", reason="NO BOTO3, SO NOTHING IS ROTATED ON AWS: make .venv/.dev")
    from goatherd.providers.aws.address import AWSAddress
    from goatherd.providers.aws.provider import AWSSecretProvider
    from tests.fakes.moto import WHY_SKIPPED, MotoServer, find_moto

    program = find_moto()
    if program is None:
        pytest.skip(WHY_SKIPPED)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAMOTO000000000000")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x" * 40)
    with MotoServer(program) as moto:
        address = AWSAddress(region="eu-west-1", endpoint=moto.url)
        yield Place(factory=lambda: AWSSecretProvider(address, timeout=ANSWER))


@contextlib.contextmanager
def gcp(top: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    pytest.importorskip(
        "google.cloud.secretmanager_v1", reason="NO SDK, SO NOTHING IS ROTATED ON GOOGLE: make .venv/.dev"
    )
    from google.auth.credentials import AnonymousCredentials

    from goatherd.providers.gcp.address import GCPAddress
    from goatherd.providers.gcp.provider import GCPSecretProvider
    from tests.fakes.gcp_fake import FakeSecretManager

    with FakeSecretManager("goatherd-testing") as fake:
        address = GCPAddress(project="goatherd-testing", endpoint=fake.endpoint)
        yield Place(
            factory=lambda: GCPSecretProvider(address, credentials=AnonymousCredentials(), timeout=ANSWER),
            secret_id="goatdb-root",
        )


@contextlib.contextmanager
def azure(top: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """The vault's and the providers' clocks run fifty times faster, so that the seconds of a change pass quickly."""
    pytest.importorskip("azure.keyvault.secrets", reason="NO SDK, SO NOTHING IS ROTATED ON AZURE: make .venv/.dev")
    from goatherd.providers.azure.address import AzureAddress
    from goatherd.providers.azure.provider import AzureSecretProvider
    from tests.fakes.azure_fake import FakeCredential, FakeKeyVault, FastClock

    with FakeKeyVault(speed=50.0) as vault:
        address = AzureAddress(vault="fake", url=vault.url, ca=str(vault.ca), check_challenge=False)
        yield Place(
            factory=lambda: AzureSecretProvider(
                address, credential=FakeCredential(), clock=FastClock(50.0), timeout=50 * ANSWER
            ),
            secret_id="goatdb-root",
            clock_tolerance=timedelta(days=1000),  # in seven seconds it is minutes ahead
        )


@contextlib.contextmanager
def k8s(top: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    pytest.importorskip("kubernetes_asyncio", reason="NO CLIENT, SO NOTHING IS ROTATED ON KUBERNETES: make .venv/.dev")
    from tests.contract.kubernetes.clients import provider_of
    from tests.fakes.kubernetes_fake import FakeKubernetes

    with FakeKubernetes() as fake:
        yield Place(factory=lambda: provider_of(fake, top, timeout=ANSWER.total_seconds()), secret_id="default/root")


@contextlib.contextmanager
def vault(top: Path, monkeypatch: pytest.MonkeyPatch, *, role: str = "rotator") -> Iterator[Place]:
    from goatherd.providers.vault.address import VaultAddress
    from goatherd.providers.vault.auth import TokenAuth
    from goatherd.providers.vault.permissions import policy
    from goatherd.providers.vault.provider import VaultSecretProvider
    from tests.fakes.openbao import WHY_SKIPPED, BaoServer, find_bao

    program = find_bao()
    if program is None:
        pytest.skip(WHY_SKIPPED)
    with BaoServer(program) as server:
        token = server.token(policy(role, "secret/goatdb/root"))
        address = VaultAddress(url=server.url, auth=TokenAuth(token=token), reads_active=True)
        yield Place(factory=lambda: VaultSecretProvider(address, timeout=ANSWER))


STORES: dict[str, Callable[[Path, pytest.MonkeyPatch], Opened]] = {
    "memory": memory,
    "file": file,
    "aws": aws,
    "aws-moto": aws_moto,
    "gcp": gcp,
    "azure": azure,
    "k8s": k8s,
    "vault": vault,
}


@pytest.fixture(params=list(STORES))
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    with STORES[request.param](tmp_path, monkeypatch) as opened:
        yield opened


@contextlib.asynccontextmanager
async def rotator_of(urls: list[str], provider: SecretProvider, place: Place) -> AsyncIterator[Rotator]:
    async with contextlib.AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(NodeClient(url, timeout=ANSWER)) for url in urls]
        policy = Policy(
            adoption=place.adoption, settle=ADOPTION, clock_tolerance=place.clock_tolerance, node_timeout=ANSWER
        )
        yield Rotator(provider, place.secret_id, nodes, policy=policy, started_by="test")


def test_no_provider_of_ours_is_left_out() -> None:
    # `openbao` is `vault` by another name; through `k8s-volume` nothing can be rotated.
    assert set(provider_schemes()) - {"openbao", "k8s-volume"} <= set(STORES)


async def test_three_nodes_rotate_under_load_and_nothing_is_refused_or_lost(place: Place, tmp_path: Path) -> None:
    await check_rotation(place, tmp_path, count=3)


@pytest.mark.deep
async def test_five_nodes_rotate_under_load_and_nothing_is_refused_or_lost(place: Place, tmp_path: Path) -> None:
    await check_rotation(place, tmp_path, count=5)


async def check_rotation(place: Place, tmp_path: Path, *, count: int) -> None:
    clock = SystemClock()
    async with herd_around(tmp_path, place.factory, place.secret_id, count=count) as cluster:
        load = Workload(cluster.urls, clients=4, pause=timedelta(milliseconds=80))
        async with load, rotator_of(cluster.urls, cluster.provider, place) as rotator:
            began = load.now()
            await clock.sleep(SECOND / 2)
            await rotator.rotate()
            await clock.sleep(SECOND / 2)
            async with asyncio.timeout(ADOPTION.total_seconds()):  # a slow machine has not done so much by now
                while load.window(began).requests <= 20 or len(load.accepted) <= 10:
                    await asyncio.sleep(0.05)
            await load.stop()
            audit = await load.audit([cluster.first.session], timeout=ADOPTION)
        document = await cluster.document()
        window = load.window(began)
        signers = [server.database().pool.current.id for server in cluster.servers]
        labels = {label: one.id for one in await cluster.provider.versions(place.secret_id) for label in one.labels}
    assert window.requests > 20
    assert window.refused == 0, window.reasons
    assert audit.accepted > 10
    assert audit.lost == {}
    assert audit.unverifiable == ()
    assert document.rotation is None
    assert document.current.id != cluster.first.id
    assert signers == [document.current.id] * count
    assert labels[CURRENT] == labels[STABLE]
