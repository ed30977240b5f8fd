"""The contract over Azure Key Vault as it is faked, through the real SDK, over TLS."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest

pytest.importorskip("azure.keyvault.secrets", reason="needs the extra azure")

from goatherd.providers.azure import AzureAddress, AzureSecretProvider
from goatherd.providers.base import SecretProvider
from goatherd.testing.azure_fake import FakeCredential, FakeKeyVault, FastClock, SteppedClock
from goatherd.testing.contract import AnswerContract, ProviderContract
from goatherd.testing.wrong_answers import WrongAnswers

SPEED = 50.0


class TestAzure(ProviderContract):
    """Its clock and ours run fifty times faster, so that the three seconds of a change take a twentieth."""

    promises = frozenset({"best_effort_cas", "custom_labels", "disables", "durable", "recoverable"})
    rounds = 40
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
class TestAzureAnswers(AnswerContract):
    """A minute, because the SDK waits twenty seconds for a deletion that was not made."""

    settle = timedelta(0)

    @pytest.fixture(autouse=True)
    def _vault(self) -> Iterator[None]:
        self.clock = SteppedClock()
        with FakeKeyVault(clock=self.clock) as self.vault:
            yield

    def provider(self) -> SecretProvider:
        address = AzureAddress(vault="fake", url=self.vault.url, ca=str(self.vault.ca), check_challenge=False)
        return AzureSecretProvider(address, credential=FakeCredential(), clock=self.clock)

    def wrong_answers(self) -> WrongAnswers:
        return self.vault.wrong
