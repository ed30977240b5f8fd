"""A whole rotation of five simulated nodes at Google Secret Manager, under the rotator's rights."""

from __future__ import annotations

from datetime import timedelta

import pytest
from google.auth.credentials import AnonymousCredentials

from goatherd.identity.document import Phase
from goatherd.providers.gcp.address import GCPAddress
from goatherd.providers.gcp.permissions import permissions
from goatherd.providers.gcp.provider import GCPSecretProvider
from goatherd.providers.values import CURRENT, STABLE, VersionState
from goatherd.rotation.machine import Outcome
from tests.fakes.gcp_fake import FakeSecretManager
from tests.fakes.herd import FakeClock, Herd
from tests.unit.rotation.conftest import POLICY, check_steady, document_of, rotator_for

PROJECT = "goatherd-testing"
SECRET = "goatdb-root"


async def test_five_nodes_rotate_go_back_and_retire(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(Herd, "secret_id", SECRET)
    clock = FakeClock()
    with FakeSecretManager(PROJECT) as fake:
        address = GCPAddress(project=PROJECT, endpoint=fake.endpoint)
        async with GCPSecretProvider(address, credentials=AnonymousCredentials()) as provider:
            herd = await Herd.start(provider, clock=clock, nodes=5)
            await herd.add_clients(4)
            fake.granted = {"": permissions("rotator")}
            before = await provider.read(SECRET)
            report = await rotator_for(herd).rotate()
            assert report.outcome is Outcome.ROTATED
            assert (await check_steady(herd)).current.id == report.to_id
            held = {label: v.id for v in await provider.versions(SECRET) for label in v.labels}
            assert held[CURRENT] == held[STABLE]

            await rotator_for(herd).rotate(to_phase=Phase.ACTIVATED)
            await rotator_for(herd).abandon()
            assert (await document_of(herd)).current.id == report.to_id

            clock.turn(POLICY.grace + timedelta(days=400))
            retired = await rotator_for(herd).retire()
            assert before.version.id in retired.destroyed
            states = {version.id: version.state for version in await provider.versions(SECRET)}
            assert states[before.version.id] is VersionState.DESTROYED
