"""The contract over a real OpenBao server, and over more of them than one kind of address."""

from __future__ import annotations

from datetime import timedelta

import pytest

from goatherd.providers.base import SecretProvider
from goatherd.providers.vault.address import VaultAddress
from goatherd.providers.vault.auth import TokenAuth
from goatherd.providers.vault.provider import OpenBaoSecretProvider, VaultSecretProvider
from goatherd.testing.contract import ProviderContract
from tests.deadlines import HANG
from tests.fakes.openbao import ROOT_TOKEN, WHY_SKIPPED, BaoServer, find_bao

BAO = find_bao()
pytestmark = pytest.mark.skipif(BAO is None, reason=WHY_SKIPPED)


class TestVault(ProviderContract):
    promises = frozenset({"cas", "custom_labels", "destroys", "durable"})
    prefix = "goatdb/contract-"
    settle = timedelta(0)
    rounds = 20

    @pytest.fixture(autouse=True)
    def _address(self, server: BaoServer) -> None:
        self.address = VaultAddress(url=server.url, auth=TokenAuth(token=ROOT_TOKEN), reads_active=True)

    def provider(self) -> SecretProvider:
        return VaultSecretProvider(self.address)


@pytest.mark.deep
class TestVaultAtLength(TestVault):
    rounds = 100


class TestOpenBaoWhereReadsMayLag(ProviderContract):
    """The same contract as declared for a cluster whose standbys answer reads, in a namespace, with a mount of its
    own."""

    promises = frozenset({"cas", "custom_labels", "destroys", "durable"})
    settle = timedelta(seconds=HANG)
    rounds = 5

    @pytest.fixture(autouse=True)
    def _address(self, server: BaoServer) -> None:
        server.ask("POST", "sys/namespaces/team", {})
        if "kv/goats/" not in server.ask("GET", "team/sys/mounts")["data"]:
            server.ask("POST", "team/sys/mounts/kv/goats", {"type": "kv", "options": {"version": "2"}})
        auth = TokenAuth(token=ROOT_TOKEN)
        self.address = VaultAddress(url=server.url, auth=auth, mount="kv/goats", namespace="team")

    def provider(self) -> SecretProvider:
        return OpenBaoSecretProvider(self.address)
