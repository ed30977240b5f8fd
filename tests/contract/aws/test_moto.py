"""AWS Secrets Manager through boto3 against moto, an emulator from another project."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from goatherd import create_identity, generate_session
from goatherd.errors import IdentityExistsError, SecretDeletedError
from goatherd.identity.document import encode_document
from goatherd.operations.copy import copy_secret
from goatherd.operations.identity_store import Store
from goatherd.providers.aws.address import AWSAddress
from goatherd.providers.aws.provider import AWSSecretProvider
from goatherd.providers.base import Call, SecretProvider
from goatherd.providers.file.provider import FileSecretProvider
from goatherd.providers.values import Label, VersionId
from goatherd.testing import provider_checks
from goatherd.testing.contract import ProviderContract
from goatherd.testing.subject import ContractViolationError
from tests.fakes.faults import Fault, FaultProxy, Mode
from tests.fakes.moto import WHY_SKIPPED, MotoServer, find_moto

REGION = "eu-west-1"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def moto() -> Iterator[MotoServer]:
    program = find_moto()
    if program is None:
        pytest.skip(WHY_SKIPPED)
    with MotoServer(program) as server:
        yield server


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAMOTO000000000000")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x" * 40)


class MoversTogether(AWSSecretProvider):
    """Delays moves of a label that no version has, until four clients have seen that none has it."""

    def __init__(self, address: AWSAddress) -> None:
        super().__init__(address)
        self._have_looked = asyncio.Barrier(4)

    async def _move_label(self, call: Call, label: Label, version: VersionId, expected: VersionId | None) -> None:
        if call.operation == "label" and expected is None:
            await self._have_looked.wait()
        await super()._move_label(call, label, version, expected)


class TestMoto(ProviderContract):
    promises = frozenset({"cas", "custom_labels", "deprecates", "durable", "first_is_current"})
    settle = timedelta(0)
    rounds = 20

    @pytest.fixture(autouse=True)
    def _moto(self, moto: MotoServer) -> None:
        self.moto = moto

    @property
    def address(self) -> AWSAddress:
        return AWSAddress(region=REGION, endpoint=self.moto.url, recovery_days=0)

    def provider(self) -> SecretProvider:
        return AWSSecretProvider(self.address)

    # Known differences between moto 5.2.5 and the API reference. test_contract.py runs these checks
    # against a fake that does as it says, and looks at what we send. A moto that has repaired them fails here.

    def test_of_many_label_movers_exactly_one_wins(self, monkeypatch: pytest.MonkeyPatch):
        """moto moves an operator's label even if the holder is not named."""
        # A client that reads after two others have moved the label finds two holders, which is another error.
        monkeypatch.setattr(self, "provider", lambda: MoversTogether(self.address))
        with pytest.raises(ContractViolationError, match="4 movers won"):
            self.run(provider_checks.of_many_label_movers_exactly_one_wins)

    def test_what_is_not_there_is_not_found(self):
        """moto fails (500) when the versions of a missing secret are listed."""
        with pytest.raises(ContractViolationError, match="UnavailableError was raised: aws: versions"):
            self.run(provider_checks.what_is_not_there_is_not_found)


async def test_a_role_is_assumed_with_the_credentials_found(moto: MotoServer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", moto.url)
    address = AWSAddress(
        region=REGION, endpoint=moto.url, role_arn="arn:aws:iam::123456789012:role/goatherd", recovery_days=0
    )
    async with AWSSecretProvider(address) as store:
        made = await store.create("role/root", b"1")
        assert (await store.read("role/root")).version.id == made.id
        # moto, like AWS, gives temporary keys that begin so; the one in the environment begins with AKIA.
        client = store._api._client._get()
        assert client._request_signer._credentials.access_key.startswith("ASIA")  # type: ignore[attr-defined]
        await store.delete("role/root")


async def test_a_secret_that_is_scheduled_for_deletion_is_an_error_of_its_own(moto: MotoServer):
    async with AWSSecretProvider(AWSAddress(region=REGION, endpoint=moto.url)) as store:
        await store.create("scheduled/root", b"1")
        await store.delete("scheduled/root")
        for begin in (lambda: store.read("scheduled/root"), lambda: store.delete("scheduled/root")):
            with pytest.raises(SecretDeletedError):
                await begin()


async def test_a_reply_that_is_lost_after_the_write_took_effect_leaves_one_version(moto: MotoServer):
    async with FaultProxy("127.0.0.1", moto.port) as proxy:
        address = AWSAddress(region=REGION, endpoint=f"http://127.0.0.1:{proxy.port}", recovery_days=0)
        async with AWSSecretProvider(address) as store:
            holder = await store.create("lost/root", b"0")
            for number, step in enumerate(("PutSecretValue", "UpdateSecretVersionStage"), 1):
                proxy.fault = Fault(mode=Mode.REPLY_LOST, times=1, match=f"secretsmanager.{step}".encode())
                holder = await store.write("lost/root", b"%d" % number, expected=holder.id)
                assert proxy.hits == number
                assert (await store.read("lost/root")).version.id == holder.id
            assert len(await store.versions("lost/root")) == 3
            await store.delete("lost/root")


async def test_an_identity_is_copied_from_files_to_aws_and_back(moto: MotoServer, tmp_path: Path):
    files = FileSecretProvider(str(tmp_path / "keys"))
    raw = encode_document(create_identity(generate_session("root")))
    first = await files.create("root", raw)
    await files.write("root", raw, expected=first.id)
    await files.label("root", "stable", first.id, expected=None)
    async with files, AWSSecretProvider(AWSAddress(region=REGION, endpoint=moto.url)) as aws:
        source, there, back = (
            Store(provider=provider, secret_id=secret_id, org="localhost", name=secret_id)
            for provider, secret_id in ((files, "root"), (aws, "goatdb/copied"), (files, "back"))
        )
        for origin, destination in ((source, there), (there, back)):
            report = await copy_secret(origin, destination)
            assert len(report.plan.items) == 2
            with pytest.raises(IdentityExistsError):
                await copy_secret(origin, destination)
        held = [(one.labels, one.state) for one in await files.versions("back")]
    assert held == [(one.labels, one.state) for one in await files.versions("root")]
