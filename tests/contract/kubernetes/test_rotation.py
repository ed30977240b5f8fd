"""A whole rotation of five simulated nodes with the identity in a Secret: forward, back, retired; and notified at
once."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import yaml

pytest.importorskip("kubernetes_asyncio", reason="needs the extra kubernetes")

from goatherd.clock import SystemClock
from goatherd.identity.document import Phase, encode_document
from goatherd.identity.session import OwnedSession
from goatherd.identity.transitions import create_document, prepare_rotation
from goatherd.providers.kubernetes.permissions import policy
from goatherd.providers.values import CURRENT, STABLE, VersionState
from goatherd.rotation.machine import Outcome
from goatherd.settings.store import CloudSecretSettings
from tests.contract.kubernetes.clients import provider_of
from tests.deadlines import HANG
from tests.fakes.herd import FakeClock, Herd
from tests.fakes.kubernetes_fake import FakeKubernetes
from tests.unit.rotation.conftest import OWN_CLOCK, POLICY, check_steady, document_of, rotator_for


@pytest.fixture
def fake() -> Iterator[FakeKubernetes]:
    namespace = Herd.secret_id.partition("/")[0]
    with FakeKubernetes(namespaces=(namespace,)) as running:
        yield running


async def test_five_nodes_rotate_go_back_and_retire_under_the_rotators_role(fake: FakeKubernetes, tmp_path: Path):
    clock, secret = FakeClock(), Herd.secret_id
    namespace, name = secret.split("/")
    async with provider_of(fake, tmp_path) as admin:
        herd = await Herd.start(admin, clock=clock, nodes=5)
        await herd.add_clients(4)
        token = fake.account("rotator", next(yaml.safe_load_all(policy("rotator", secret))))
        async with provider_of(fake, tmp_path, token=token) as provider:
            herd.provider = provider
            before = await provider.read(secret)
            report = await rotator_for(herd, policy=OWN_CLOCK).rotate()
            assert report.outcome is Outcome.ROTATED
            document = await check_steady(herd)
            assert document.current.id == report.to_id
            after = await provider.read(secret)
            assert after.version.labels == {CURRENT, STABLE}
            assert (await provider.read(secret, before.version.id)).value == before.value

            reached = await rotator_for(herd, policy=OWN_CLOCK).rotate(to_phase=Phase.ACTIVATED)
            assert reached.to_id != report.to_id
            await rotator_for(herd, policy=OWN_CLOCK).abandon()
            assert (await document_of(herd)).current.id == report.to_id
            await check_steady(herd)

            clock.turn(POLICY.grace + timedelta(days=400))
            retired = await rotator_for(herd, policy=OWN_CLOCK).retire()
            assert before.version.id in retired.destroyed
            states = {version.id: version.state for version in await provider.versions(secret)}
            assert states[before.version.id] is VersionState.DESTROYED
    stored = fake.stored(namespace, name)["data"]
    assert before.value.reveal() not in [base64.b64decode(value) for value in stored.values()]


async def test_a_node_is_told_of_a_new_identity_and_does_not_wait_for_its_interval(
    fake: FakeKubernetes, tmp_path: Path
):
    secret = Herd.secret_id
    server = fake.account("server", next(yaml.safe_load_all(policy("server", secret))))
    now_ms = SystemClock().now_ms()
    root = OwnedSession.generate(session_id="root-a", owner="root", now_ms=now_ms, lifetime=timedelta(days=90))
    first = create_document(root, now_ms)
    async with provider_of(fake, tmp_path) as writer:
        made = await writer.create(secret, encode_document(first))
        settings = CloudSecretSettings(
            provider_of(fake, tmp_path, token=server), secret, refresh_interval=timedelta(hours=1)
        )
        async with settings:
            await settings.load()
            changed = asyncio.Event()
            settings.subscribe(lambda _: changed.set())
            while not fake.watching:
                await asyncio.sleep(0.01)
            successor = OwnedSession.generate(
                session_id="root-b", owner="root", now_ms=now_ms, lifetime=timedelta(days=90)
            )
            second = prepare_rotation(
                first, successor, now_ms=now_ms, rotation_id="r", started_by="test", stable_version=made.id
            )
            await writer.write(secret, encode_document(second), expected=made.id)
            await asyncio.wait_for(changed.wait(), HANG)
            assert settings.settings.document is not None
            assert settings.settings.document.generation == first.generation + 1
