"""Google Secret Manager through the stock path: an address, application default credentials, and the printed rights."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from google.cloud.secretmanager_v1 import types as wire

from goatherd.cluster.discovery import NodeDirectory
from goatherd.errors import GoatherdError, ProviderAccessDeniedError
from goatherd.operations.identity_store import Store
from goatherd.operations.init import init_identity
from goatherd.operations.status import read_status
from goatherd.plugins import open_provider, provider_from_config
from goatherd.providers.base import SecretProvider
from goatherd.providers.gcp.permissions import permissions
from goatherd.providers.values import CURRENT, STABLE, VersionId
from goatherd.rotation.policy import Policy
from tests.fakes.gcp_fake import Failure, FakeSecretManager

PROJECT = "goatherd-testing"


@pytest.fixture(scope="module")
def key() -> str:
    """The private key of this test's service accounts."""
    made = rsa.generate_private_key(65537, 2048)
    return made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


@pytest.fixture
def fake() -> Iterator[FakeSecretManager]:
    with FakeSecretManager(PROJECT) as running:
        running.granted = {email(role): permissions(role) for role in ("server", "rotator", "admin")}
        yield running


def email(role: str) -> str:
    return f"goatherd-{role}@{PROJECT}.iam.gserviceaccount.com"


Become = Callable[[str], SecretProvider]


@pytest.fixture
def become(fake: FakeSecretManager, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Become:
    """Return a provider from the address alone, with the credentials that the environment has."""

    def provider(role: str) -> SecretProvider:
        account = {
            "type": "service_account",
            "project_id": PROJECT,
            "private_key_id": "1",
            "private_key": key,
            "client_email": email(role),
            "client_id": "1",
            "token_uri": "https://oauth2.invalid/token",
        }
        file = tmp_path / f"{role}.json"
        file.write_text(json.dumps(account))
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(file))
        return open_provider(f"gcp://{PROJECT}/goatdb-root?endpoint={fake.endpoint}")[0]

    return provider


async def test_each_role_can_do_its_work_under_the_printed_rights_and_nothing_else(become: Become):
    async with become("admin") as admin:
        await admin.create("goatdb-root", b"first")
        await admin.versions("goatdb-root")
    async with become("rotator") as rotator:
        found = await rotator.read("goatdb-root")
        second = await rotator.write("goatdb-root", b"second", expected=found.version.id)
        await rotator.label("goatdb-root", STABLE, second.id, expected=None)
        await rotator.versions("goatdb-root")
        await rotator.destroy("goatdb-root", "1")
        for begin in (lambda: rotator.create("goatdb-other", b"x"), lambda: rotator.delete("goatdb-root")):
            with pytest.raises(ProviderAccessDeniedError):
                await begin()
    async with become("server") as server:
        for at in (CURRENT, STABLE, VersionId("2")):
            assert (await server.read("goatdb-root", at)).value.reveal() == b"second"
        for begin in (
            lambda: server.write("goatdb-root", b"x", expected="2"),
            lambda: server.label("goatdb-root", STABLE, "2", expected="2"),
            lambda: server.create("goatdb-root", b"x"),
            lambda: server.versions("goatdb-root"),
            lambda: server.destroy("goatdb-root", "2"),
            lambda: server.delete("goatdb-root"),
        ):
            with pytest.raises(ProviderAccessDeniedError) as caught:
                await begin()
            assert "goatherd policy" in caught.value.hint
    async with become("admin") as admin:
        await admin.delete("goatdb-root")


async def test_credentials_that_google_rejects_are_read_again_from_their_file(
    fake: FakeSecretManager, become: Become, tmp_path: Path
):
    async with become("admin") as admin:
        await admin.create("goatdb-root", b"first")
    become("rotator")
    async with become("server") as store:
        await store.read("goatdb-root")
        (tmp_path / "rotator.json").replace(tmp_path / "server.json")
        with pytest.raises(ProviderAccessDeniedError):
            await store.versions("goatdb-root")  # what Google denies is no reason to look for other credentials
        fake.failures["AccessSecretVersion"] = Failure("UNAUTHENTICATED")
        with pytest.raises(ProviderAccessDeniedError, match="UNAUTHENTICATED"):
            await store.read("goatdb-root")
        assert [version.id for version in await store.versions("goatdb-root")] == ["1"]


async def test_a_server_s_rights_are_enough_for_the_status(become: Become):
    def store(provider: SecretProvider) -> Store:
        return Store(provider=provider, secret_id="goatdb-root", org="localhost", name="gcp")

    async with become("admin") as admin:
        written, document = await init_identity(store(admin), Policy())
    async with become("server") as server, NodeDirectory(["http://127.0.0.1:1"], timeout=timedelta(seconds=5)) as nodes:
        status = await read_status(store(server), nodes, Policy())
    assert (status.version, status.document.current.id) == (written.id, document.current.id)
    assert (status.labels, status.versions, status.written_ms) == ({CURRENT: written.id}, (), None)
    assert status.keys.problem == ProviderAccessDeniedError.code
    assert [one.reachable for one in status.servers] == [False]


async def test_no_right_is_printed_that_its_role_does_not_use(become: Become, fake: FakeSecretManager):
    """Perform every operation of a role with one right removed: one is denied, or leaves something behind."""
    rights = permissions("rotator")
    needed = set()
    for missing in rights:
        fake.granted = {email("rotator"): rights - {missing}}
        for name in ("goatdb-root", "goatdb-lost"):
            try_delete(fake, name)
            make_empty(fake, name)
        denied_before = fake.calls.copy()
        async with become("rotator") as rotator:
            try:
                await everything(rotator)
            except GoatherdError:
                needed.add(missing)
        assert fake.calls != denied_before
    assert rights == needed


async def everything(rotator: SecretProvider) -> None:
    first = await rotator.create("goatdb-root", b"first")
    second = await rotator.write("goatdb-root", b"second", expected=first.id)
    await rotator.label("goatdb-root", STABLE, second.id, expected=None)
    await rotator.read("goatdb-root")
    await rotator.versions("goatdb-root")
    await rotator.destroy("goatdb-root", first.id)


def make_empty(fake: FakeSecretManager, name: str) -> None:
    secret = wire.Secret(replication=wire.Replication(automatic=wire.Replication.Automatic()))
    fake.service.create_secret(wire.CreateSecretRequest(parent=f"projects/{PROJECT}", secret_id=name, secret=secret))


def try_delete(fake: FakeSecretManager, name: str) -> None:
    if fake.service.has(name):
        fake.service.delete_secret(wire.DeleteSecretRequest(name=f"projects/{PROJECT}/secrets/{name}"))


async def test_goatdbs_configuration_shape_reaches_the_same_secret(become: Become, fake: FakeSecretManager):
    async with become("admin") as admin:
        await admin.create("goatdb-root", b"first")
        config = {
            "provider": "gcp",
            "secretId": f"projects/{PROJECT}/secrets/goatdb-root",
            "endpoint": fake.endpoint,
        }
        provider, secret_id = provider_from_config(config)
        async with provider:
            assert (await provider.read(secret_id)).value.reveal() == b"first"


async def test_missing_credentials_are_denied_with_what_to_do(
    fake: FakeSecretManager, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    provider, secret_id = open_provider(f"gcp://{PROJECT}/goatdb-root?endpoint={fake.endpoint}")
    async with provider:
        with pytest.raises(ProviderAccessDeniedError) as caught:
            await provider.read(secret_id)
    assert "gcloud auth application-default login" in caught.value.hint
