"""AWS Secrets Manager through boto3 against the fake that follows the API reference: the contract, and our requests."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest

from goatherd.providers.aws.address import AWSAddress
from goatherd.providers.aws.provider import AWSSecretProvider
from goatherd.providers.base import SecretProvider
from goatherd.testing import provider_checks
from goatherd.testing.contract import AnswerContract, ProviderContract, check_name, run_check
from goatherd.testing.provider_checks import Check
from goatherd.testing.wrong_answers import WrongAnswers
from tests.fakes.aws_fake import ACCESS_KEY, REGION, FakeSecretsManager


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x" * 40)


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeSecretsManager]:
    with FakeSecretsManager() as started:
        yield started


class TestAWSFake(ProviderContract):
    promises = frozenset({"cas", "custom_labels", "deprecates", "durable", "first_is_current"})
    settle = timedelta(0)
    rounds = 20

    @pytest.fixture(autouse=True)
    def _fake(self, fake: FakeSecretsManager) -> None:
        self.fake = fake

    def provider(self) -> SecretProvider:
        return AWSSecretProvider(AWSAddress(region=REGION, endpoint=self.fake.url, recovery_days=0))


@pytest.mark.deep
class TestAWSFakeAtLength(TestAWSFake):
    rounds = 100


class TestAWSFakeAnswers(AnswerContract):
    settle = timedelta(0)

    @pytest.fixture(autouse=True)
    def _fake(self) -> Iterator[None]:
        with FakeSecretsManager() as self.fake:
            yield

    def provider(self) -> SecretProvider:
        return AWSSecretProvider(AWSAddress(region=REGION, endpoint=self.fake.url, recovery_days=0))

    def wrong_answers(self) -> WrongAnswers:
        return self.fake.wrong


@pytest.mark.parametrize(
    "check",
    [
        provider_checks.a_deleted_secret_that_can_be_restored_is_neither_there_nor_missing,
        provider_checks.what_is_declared_is_true,
    ],
    ids=check_name,
)
async def test_a_store_that_keeps_what_is_deleted_holds_to_it(fake: FakeSecretsManager, check: Check):
    address = AWSAddress(region=REGION, endpoint=fake.url)
    await run_check(check, lambda: AWSSecretProvider(address), settle=timedelta(0))
