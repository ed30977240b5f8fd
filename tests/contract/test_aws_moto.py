"""AWS Secrets Manager through boto3 against moto, an emulator that somebody else wrote."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest

from goatherd.providers.aws import AWSAddress, AWSSecretProvider
from goatherd.providers.base import SecretProvider
from goatherd.testing import provider_checks
from goatherd.testing.contract import ProviderContract
from goatherd.testing.moto import WHY_SKIPPED, MotoServer, find_moto
from goatherd.testing.subject import ContractViolationError

REGION = "eu-west-1"


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


class TestMoto(ProviderContract):
    settle = timedelta(0)
    rounds = 20

    @pytest.fixture(autouse=True)
    def _moto(self, moto: MotoServer) -> None:
        self.moto = moto

    def provider(self) -> SecretProvider:
        return AWSSecretProvider(AWSAddress(region=REGION, endpoint=self.moto.url, recovery_days=0))

    # Where moto 5.2.5 is known to do otherwise than the API reference says. test_aws_fake.py runs these checks against
    # a fake that does as it says, and test_aws_wire.py looks at what we send. A moto that has mended them fails here.

    def test_of_many_label_movers_exactly_one_wins(self):
        """It moves a label of one's own although the holder is not named."""
        with pytest.raises(ContractViolationError, match="movers won"):
            self.run(provider_checks.of_many_label_movers_exactly_one_wins)

    def test_what_is_not_there_is_not_found(self):
        """It fails (500) when the versions of a missing secret are listed."""
        with pytest.raises(ContractViolationError, match="UnavailableError came: aws: versions"):
            self.run(provider_checks.what_is_not_there_is_not_found)
