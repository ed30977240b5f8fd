"""What each store reports about itself under each role's rights, and that the diagnosis changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from goatherd.errors import ProviderError, SecretNotFoundError
from goatherd.files import System
from goatherd.providers.base import SecretProvider
from goatherd.providers.capabilities import DiagnosableSecretProvider, Finding, Verdict, rights_finding
from goatherd.providers.file.provider import FileSecretProvider
from goatherd.providers.memory import MemorySecretProvider
from tests.fakes.openbao import ROOT_TOKEN, WHY_SKIPPED, BaoServer, find_bao

READS = "the credentials may read, but not write: enough for a server, too little to rotate"
ROTATES = "the credentials may read and write, but not destroy: enough for a rotator, too little for `goatherd retire`"
ALL = "the credentials may read, write and destroy versions: more than a server needs"


async def found(provider: SecretProvider, secret_id: str) -> dict[str, Finding]:
    assert isinstance(provider, DiagnosableSecretProvider)
    return {finding.name: finding for finding in await provider.diagnose(secret_id)}


def test_each_finding_on_rights_names_the_command_that_prints_what_is_needed():
    for may_write, may_destroy, role in ((False, None, "rotator"), (True, False, "admin"), (True, True, "server")):
        finding = rights_finding("aws", may_write=may_write, may_destroy=may_destroy)
        assert finding.verdict is Verdict.FINE
        assert f"`goatherd policy aws --role {role}`" in finding.hint


def test_a_store_that_tells_nothing_does_not_pretend_to():
    assert not isinstance(MemorySecretProvider(), DiagnosableSecretProvider)


# --- files ------------------------------------------------------------------------------------------------------------


class Told(System):
    """Made-up answers of the operating system about a directory."""

    def __init__(self, *, writes: bool, room: int) -> None:
        self.writes, self.left = writes, room

    def may_write(self, path: str) -> bool:
        return self.writes

    def free_bytes(self, path: str) -> int:
        return self.left


@pytest.mark.parametrize(
    ("writes", "room", "text", "verdict"),
    [(True, 10**9, ALL, "fine"), (False, 10**6, READS, "caution"), (False, 10, READS, "wrong")],
)
async def test_a_directory_says_whether_it_can_be_written_and_how_much_room_there_is(
    tmp_path: Path, writes: bool, room: int, text: str, verdict: str
):
    provider = FileSecretProvider(tmp_path / "keys")
    await provider.create("root", b"value")
    asked = await found(FileSecretProvider(tmp_path / "keys", system=Told(writes=writes, room=room)), "root")
    assert asked["rights"].text == text
    assert asked["room"].verdict == verdict
    real = await found(provider, "root")
    assert real["rights"].text == ALL
    assert real["room"].verdict is not Verdict.WRONG


async def test_a_directory_that_is_not_there_is_an_error_of_ours(tmp_path: Path):
    with pytest.raises(ProviderError):
        await found(FileSecretProvider(tmp_path / "keys", system=System()), "root")


# --- Kubernetes -------------------------------------------------------------------------------------------------------


async def test_kubernetes_tells_each_role_what_it_may_do_and_how_full_the_secret_is(tmp_path: Path):
    yaml = pytest.importorskip("yaml")
    from goatherd.providers.kubernetes.permissions import policy
    from tests.contract.kubernetes.clients import provider_of
    from tests.fakes.kubernetes_fake import FakeKubernetes

    with FakeKubernetes() as fake:
        async with provider_of(fake, tmp_path) as admin:
            await admin.create("default/root", b"x" * 40_000)
        before = fake.stored("default", "root")
        for role, text in (("server", READS), ("rotator", ALL)):
            token = fake.account(role, next(yaml.safe_load_all(policy(role, "default/root"))))
            async with provider_of(fake, tmp_path, token=token) as provider:
                asked = await found(provider, "default/root")
                assert asked["rights"].text == text
                assert asked["size"] == Finding(name="size", verdict=Verdict.FINE, text="the Secret is 4 % full")
                with pytest.raises(ProviderError):
                    await found(provider, "default/other")
        assert fake.stored("default", "root") == before


async def test_a_kubernetes_secret_whose_oldest_versions_are_dropped_is_not_more_than_full(tmp_path: Path):
    from tests.contract.kubernetes.clients import provider_of
    from tests.fakes.kubernetes_fake import FakeKubernetes

    with FakeKubernetes() as fake:
        async with provider_of(fake, tmp_path) as admin:
            holder = await admin.create("default/root", b"x" * 64_000)
            for _ in range(17):
                holder = await admin.write("default/root", b"x" * 64_000, expected=holder.id)
            assert "1" not in [version.id for version in await admin.versions("default/root")]
            size = (await found(admin, "default/root"))["size"]
    assert (size.verdict, size.text) == (Verdict.CAUTION, "the Secret is 98 % full")


# --- Google -----------------------------------------------------------------------------------------------------------


async def test_google_tells_each_role_what_it_may_do_and_what_is_missing():
    pytest.importorskip("google.cloud.secretmanager_v1", reason="needs the extra gcp")
    from google.auth.credentials import AnonymousCredentials

    from goatherd.providers.gcp.address import GCPAddress
    from goatherd.providers.gcp.permissions import permissions
    from goatherd.providers.gcp.provider import GCPSecretProvider
    from tests.fakes.gcp_fake import FakeSecretManager

    with FakeSecretManager("goatherd-testing") as fake:
        address = GCPAddress(project="goatherd-testing", endpoint=fake.endpoint)
        async with GCPSecretProvider(address, credentials=AnonymousCredentials()) as provider:
            await provider.create("root", b"value")
            for role, text in (("server", READS), ("rotator", ALL), ("admin", ALL)):
                fake.granted = {"": permissions(role)}
                assert (await found(provider, "root"))["rights"].text == text
            fake.granted = {"": permissions("rotator") - {"secretmanager.versions.destroy"}}
            short = (await found(provider, "root"))["rights"]
            assert short.verdict is Verdict.CAUTION
            assert "secretmanager.versions.destroy missing" in short.text


# --- Vault ------------------------------------------------------------------------------------------------------------

BAO = find_bao()


@pytest.fixture(scope="module")
def bao() -> Any:
    if BAO is None:
        pytest.skip(WHY_SKIPPED)
    with BaoServer(BAO) as running:
        yield running


@pytest.fixture
def vault(bao: BaoServer) -> Callable[[str], SecretProvider]:
    from goatherd.providers.vault.address import VaultAddress
    from goatherd.providers.vault.auth import TokenAuth
    from goatherd.providers.vault.provider import VaultSecretProvider

    def provider(token: str) -> SecretProvider:
        return VaultSecretProvider(VaultAddress(url=bao.url, auth=TokenAuth(token=token), reads_active=True))

    return provider


async def test_vault_tells_each_role_what_it_may_do(bao: BaoServer, vault: Callable[[str], SecretProvider]):
    from goatherd.providers.vault.permissions import policy

    async with vault(ROOT_TOKEN) as root:
        await root.create("diagnosis/roles", b"value")
    for role, text in (("server", READS), ("rotator", ROTATES), ("admin", ALL)):
        async with vault(bao.token(policy(role, "secret/diagnosis/roles"))) as provider:
            asked = await found(provider, "diagnosis/roles")
            assert {name: (one.text, one.verdict) for name, one in asked.items()} == {"rights": (text, Verdict.FINE)}


async def test_what_is_not_there_is_not_diagnosed(bao: BaoServer, vault: Callable[[str], SecretProvider]):
    async with vault(ROOT_TOKEN) as root:
        with pytest.raises(SecretNotFoundError):
            await found(root, "diagnosis/missing")
