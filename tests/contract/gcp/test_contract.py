"""The contract over Google Secret Manager: the official client, over TLS, against `tests.fakes.gcp_fake`."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest
from google.auth.credentials import AnonymousCredentials

from goatherd.providers.base import SecretProvider
from goatherd.providers.gcp.address import GCPAddress
from goatherd.providers.gcp.provider import GCPSecretProvider
from goatherd.testing import provider_checks
from goatherd.testing.contract import AnswerContract, ProviderContract
from goatherd.testing.wrong_answers import WrongAnswers
from tests.deadlines import HANG
from tests.fakes.gcp_fake import FakeSecretManager

PROJECT = "goatherd-testing"


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeSecretManager]:
    with FakeSecretManager(PROJECT) as server:
        yield server


class TestGlobal(ProviderContract):
    promises = frozenset({"cas", "custom_labels", "destroys", "durable"})
    settle = timedelta(seconds=HANG)
    rounds = 20

    @pytest.fixture(autouse=True)
    def _server(self, fake: FakeSecretManager) -> None:
        self.fake = fake

    def provider(self) -> SecretProvider:
        address = GCPAddress(project=PROJECT, endpoint=self.fake.endpoint)
        return GCPSecretProvider(address, credentials=AnonymousCredentials())


class TestGlobalAnswers(AnswerContract):
    settle = timedelta(seconds=HANG)

    @pytest.fixture(autouse=True)
    def _server(self) -> Iterator[None]:
        with FakeSecretManager(PROJECT) as self.fake:
            yield

    def provider(self) -> SecretProvider:
        address = GCPAddress(project=PROJECT, endpoint=self.fake.endpoint)
        return GCPSecretProvider(address, credentials=AnonymousCredentials())

    def wrong_answers(self) -> WrongAnswers:
        return self.fake.wrong


class TestRegional(TestGlobal):
    rounds = 5

    def provider(self) -> SecretProvider:
        address = GCPAddress(project=PROJECT, location="europe-west3", endpoint=self.fake.endpoint)
        return GCPSecretProvider(address, credentials=AnonymousCredentials())


@pytest.mark.deep
class TestAtLength(TestGlobal):
    rounds = 100


@pytest.mark.slow
class TestWhileAliasesLag(TestGlobal):
    """Accesses by alias show an earlier state for a while; decisions are based on the secret itself."""

    rounds = 5

    @pytest.fixture(autouse=True)
    def _lagging(self, _server: None) -> Iterator[None]:
        self.fake.service.lag = 0.3
        yield
        self.fake.service.lag = 0.0

    def test_a_write_is_cancelled_after_an_alias_has_begun_to_lead_to_an_older_version(self) -> None:
        self.fake.service.lag = 0.02
        self.run(provider_checks.a_cancelled_write_leaves_old_or_new)
