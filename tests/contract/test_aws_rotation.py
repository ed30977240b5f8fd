"""A whole rotation of five simulated nodes with the identity in AWS: forward, back, retired."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest

from goatherd.providers.aws import AWSAddress, AWSSecretProvider, policy
from goatherd.providers.aws.provider import CANDIDATE
from goatherd.providers.base import CURRENT, STABLE
from goatherd.rotation import Outcome, Phase
from goatherd.testing.aws_fake import ACCESS_KEY, REGION, FakeSecretsManager
from goatherd.testing.herd import FakeClock, Herd
from tests.unit.rotation.conftest import POLICY, check_steady, document_of, rotator_for


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeSecretsManager]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x" * 40)
    with FakeSecretsManager() as started:
        yield started


@pytest.mark.slow
async def test_five_nodes_rotate_and_go_back_under_the_rotators_policy(fake: FakeSecretsManager):
    clock = FakeClock()
    async with AWSSecretProvider(AWSAddress(region=REGION, endpoint=fake.url), clock=clock) as provider:
        herd = await Herd.start(provider, clock=clock, nodes=5)
        await herd.add_clients(4)
        fake.policies[ACCESS_KEY] = policy("rotator", f"aws://{REGION}/{herd.secret_id}")
        before = await provider.read(herd.secret_id)
        report = await rotator_for(herd).rotate()
        assert report.outcome is Outcome.ROTATED
        document = await check_steady(herd)
        assert document.current.id == report.to_id
        after = await provider.read(herd.secret_id)
        assert after.version.labels == {CURRENT, STABLE}
        assert (await provider.read(herd.secret_id, before.version.id)).value == before.value

        reached = await rotator_for(herd).rotate(to_phase=Phase.ACTIVATED)
        assert reached.to_id != report.to_id
        await rotator_for(herd).abandon()
        assert (await document_of(herd)).current.id == report.to_id
        await check_steady(herd)

        clock.turn(POLICY.grace + timedelta(days=400))
        retired = await rotator_for(herd).retire()
        assert retired.destroyed == ()
        assert before.version.id in retired.given_up
        assert [stages for stages in fake.stages(herd.secret_id).values() if stages] == [
            [CANDIDATE, "AWSCURRENT", "stable"]
        ]
