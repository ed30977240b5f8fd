"""The contract over Azure Key Vault as it is faked, through the real SDK, over TLS."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest

pytest.importorskip("azure.keyvault.secrets", reason="needs the extra azure")

from goatherd.providers.azure.address import AzureAddress
from goatherd.providers.azure.provider import AzureSecretProvider
from goatherd.providers.base import SecretProvider
from goatherd.testing.answer_checks import a_change_that_was_not_made_is_not_reported_as_made
from goatherd.testing.contract import AnswerContract, ProviderContract
from goatherd.testing.wrong_answers import WrongAnswers
from tests.deadlines import HANG
from tests.fakes.azure_fake import FakeCredential, FakeKeyVault, FastClock, SteppedClock

SPEED = 50.0


class TestAzure(ProviderContract):
    """The vault's clock and ours run fifty times faster, so that the three seconds of a change take a twentieth."""

    promises = frozenset({"best_effort_cas", "custom_labels", "disables", "durable", "recoverable"})
    rounds = 20
    settle = timedelta(0)

    @pytest.fixture(autouse=True)
    def _vault(self) -> Iterator[None]:
        with FakeKeyVault(speed=SPEED) as vault:
            self.vault = vault
            yield

    def provider(self) -> SecretProvider:
        address = AzureAddress(vault="fake", url=self.vault.url, ca=str(self.vault.ca), check_challenge=False)
        return AzureSecretProvider(address, credential=FakeCredential(), clock=FastClock(SPEED))


@pytest.mark.deep
class TestAzureAtLength(TestAzure):
    rounds = 100


@pytest.mark.slow
class TestAzureAnswers(AnswerContract):
    """The vault's clock and ours advance only while a task waits."""

    settle = timedelta(0)
    timeout = timedelta(seconds=HANG)

    @pytest.fixture(autouse=True)
    def _vault(self) -> Iterator[None]:
        self.clock = SteppedClock()
        with FakeKeyVault(clock=self.clock) as self.vault:
            yield

    def provider(self) -> SecretProvider:
        address = AzureAddress(vault="fake", url=self.vault.url, ca=str(self.vault.ca), check_challenge=False)
        return AzureSecretProvider(address, credential=FakeCredential(), clock=self.clock, timeout=self.timeout)

    def wrong_answers(self) -> WrongAnswers:
        return self.vault.wrong

    @pytest.mark.deep
    def test_a_change_that_was_not_made_is_not_reported_as_made(self) -> None:
        """Twice twenty seconds, for which the SDK waits for a deletion that was not made."""
        self.timeout = timedelta(seconds=20)
        self.run(a_change_that_was_not_made_is_not_reported_as_made)
