"""A follower that the platform fills, as Vault's performance replication does: Goatherd reads it, and waits.

What it is: two OpenBao servers, one of which gets what the other one holds, later, under a token that may not write.
What it is not: Vault Enterprise, which alone has performance replication. Nothing here shows that it does what
Vault's documentation says.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta

import pytest

from goatherd.errors import NotAdoptedError, ProviderAccessDeniedError
from goatherd.identity.document import Phase, decode_document
from goatherd.operations.identity_store import Store
from goatherd.operations.stores import promote_store, read_regions
from goatherd.providers.vault.address import VaultAddress
from goatherd.providers.vault.auth import TokenAuth
from goatherd.providers.vault.permissions import policy
from goatherd.providers.vault.provider import VaultSecretProvider
from goatherd.rotation.machine import Outcome
from goatherd.rotation.rotator import Rotator
from goatherd.stores import RegionalReader, ReplicatedStore, Replication, StoreMember
from tests.deadlines import ANSWER
from tests.fakes.herd import FakeClock, Herd
from tests.fakes.openbao import WHY_SKIPPED, BaoServer
from tests.unit.rotation.conftest import OWN_CLOCK
from tests.unit.stores.world import at_phase

from .conftest import BAO

pytestmark = [pytest.mark.slow, pytest.mark.deep, pytest.mark.skipif(BAO is None, reason=WHY_SKIPPED)]

SECRET = Herd.secret_id
POLICY = replace(OWN_CLOCK, adoption=timedelta(seconds=6), poll_min=timedelta(seconds=1), settle=timedelta(seconds=3))


class Pair:
    """The primary cluster, and a secondary one that gets each version and each label when a test says so."""

    def __init__(self, primary: BaoServer, secondary: BaoServer) -> None:
        self.primary, self.secondary = primary, secondary
        self.is_lagging = False
        self.tokens = {
            "eu": primary.token(policy("admin", f"secret/{SECRET}")),
            "us": secondary.token(policy("server", f"secret/{SECRET}")),
        }

    def replicate(self) -> None:
        if self.is_lagging:
            return
        for path in (SECRET,):
            held = self.primary.ask("GET", f"secret/metadata/{path}").get("data", {"versions": {}})
            shown = self.secondary.ask("GET", f"secret/metadata/{path}").get("data", {"versions": {}})
            for number in sorted(map(int, held["versions"].keys() - shown["versions"].keys())):
                found = self.primary.ask("GET", f"secret/data/{path}?version={number}")
                self.secondary.ask("POST", f"secret/data/{path}", {"data": found["data"]["data"]})
            if held["versions"]:
                labels = {"custom_metadata": held["custom_metadata"] or {}}
                self.secondary.ask("POST", f"secret/metadata/{path}", labels)

    def members(self) -> list[StoreMember]:
        found = []
        for name, server in (("eu", self.primary), ("us", self.secondary)):
            address = VaultAddress(url=server.url, auth=TokenAuth(token=self.tokens[name]), reads_active=name == "eu")
            provider = VaultSecretProvider(address, timeout=ANSWER)
            way = None if name == "eu" else Replication.PLATFORM
            found.append(StoreMember(region=name, provider=provider, template=SECRET, replication=way))
        return found


@pytest.fixture
def pair(server: BaoServer) -> Iterator[Pair]:
    assert BAO is not None
    with BaoServer(BAO) as secondary:
        yield Pair(server, secondary)


async def test_a_rotation_waits_for_a_secondary_which_it_only_reads(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("goatherd.stores.writer.FOLLOWER_TIMEOUT", ANSWER)
    clock = FakeClock()
    async with ReplicatedStore(pair.members()) as store:
        herd = await Herd.start(store, clock=clock, nodes=2)
        for name, node in zip(("eu", "us"), herd.nodes, strict=True):
            node.provider = RegionalReader(pair.members(), region=name)
            node.adopt(node.document)
        rotator = Rotator(store, SECRET, herd.nodes, policy=POLICY, clock=clock)

        async def tick() -> None:
            pair.replicate()
            await herd.step()

        clock.on_tick = tick
        assert (await rotator.rotate()).outcome is Outcome.ROTATED
        pair.replicate()
        (view,) = await store.observe(SECRET)
        assert view.is_in_step
        document = decode_document((await store.read(SECRET)).value.reveal())

        lagging = Rotator(
            store,
            SECRET,
            herd.nodes,
            policy=POLICY,
            clock=clock,
            on_event=at_phase(Phase.PUBLISHED, lambda: setattr(pair, "is_lagging", True)),
        )
        with pytest.raises(NotAdoptedError, match="us: it shows generation"):
            await lagging.rotate()
        stores = Store(provider=store, secret_id=SECRET, org="localhost", name="stores")
        _, us = await read_regions(stores)
        assert us.problem is not None
        assert us.problem.startswith("behind region eu")
        assert us.hint.startswith("The platform replicates it")
        pair.is_lagging = False
        pair.replicate()
        (view,) = await store.observe(SECRET)
        assert view.is_in_step
        after = decode_document((await store.read(SECRET)).value.reveal())
        assert after.current.id == document.current.id

        # Goatherd cannot promote a secondary that takes no writes: Vault's own promotion comes first.
        with pytest.raises(ProviderAccessDeniedError):
            await promote_store(stores, "us", clock=clock)
