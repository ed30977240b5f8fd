"""A whole rotation of five simulated nodes with the identity in AWS: forward, back, retired."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from unittest.mock import ANY

import pytest

from goatherd.cli.main import EXIT_FINDINGS, run
from goatherd.identity.document import Phase
from goatherd.providers.aws.address import AWSAddress
from goatherd.providers.aws.permissions import policy
from goatherd.providers.aws.provider import CANDIDATE, AWSSecretProvider
from goatherd.providers.values import CURRENT, STABLE
from goatherd.rotation.machine import Kept, Outcome
from tests.fakes.aws_fake import ACCESS_KEY, REGION, FakeSecretsManager
from tests.fakes.herd import FakeClock, Herd
from tests.unit.rotation.conftest import OWN_CLOCK, POLICY, check_steady, document_of, rotator_for


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
        report = await rotator_for(herd, policy=OWN_CLOCK).rotate()
        assert report.outcome is Outcome.ROTATED
        document = await check_steady(herd)
        assert document.current.id == report.to_id
        after = await provider.read(herd.secret_id)
        assert after.version.labels == {CURRENT, STABLE}
        assert (await provider.read(herd.secret_id, before.version.id)).value == before.value

        reached = await rotator_for(herd, policy=OWN_CLOCK).rotate(to_phase=Phase.ACTIVATED)
        assert reached.to_id != report.to_id
        await rotator_for(herd, policy=OWN_CLOCK).abandon()
        assert (await document_of(herd)).current.id == report.to_id
        await check_steady(herd)

        clock.turn(POLICY.grace + timedelta(days=400))
        retired = await rotator_for(herd, policy=OWN_CLOCK).retire()
        assert retired.destroyed == ()
        assert before.version.id in retired.given_up
        assert [stages for stages in fake.stages(herd.secret_id).values() if stages] == [
            [CANDIDATE, "AWSCURRENT", "stable"]
        ]


async def test_a_staging_label_that_is_no_label_of_ours_keeps_its_version_and_is_named(
    fake: FakeSecretsManager, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """`retire` keeps the version, `status` and `versions` name the label, `versions unlabel` removes it."""
    stage = "Q4 2024 (audit)"
    address = f"aws://{REGION}/{Herd.secret_id}?endpoint={fake.url}"

    def goatherd(*arguments: str) -> tuple[int, str]:
        capsys.readouterr()
        code = run([*arguments, "--provider", address])
        return code, capsys.readouterr().out

    assert await asyncio.to_thread(goatherd, "init") == (0, ANY)
    (first,) = fake.stages(Herd.secret_id)
    assert (await asyncio.to_thread(goatherd, "rotate", "--unsafe-without-nodes"))[0] == 0
    fake.set_stage(Herd.secret_id, stage, first)
    kept = (
        f"version {first} is kept: label `'{stage}'` points at it; remove it with `goatherd show --versions unlabel "
        f"'{stage}'`, and run `goatherd retire` again"
    )
    code, out = await asyncio.to_thread(goatherd, "retire", "--grace", "0s", "--yes")
    assert code == EXIT_FINDINGS
    assert kept in out
    code, out = await asyncio.to_thread(goatherd, "status", "--versions")
    assert f"labels: 'Q4 2024 (audit)' -> {first}, current -> " in out
    listed = json.loads((await asyncio.to_thread(goatherd, "versions", "--json"))[1])["versions"]
    assert [one["labels"] for one in listed if one["id"] == first] == [[stage]]
    shown = json.loads((await asyncio.to_thread(goatherd, "show", "--at", stage, "--json"))[1])
    assert shown["storeVersion"] == first

    copy = f"file://{tmp_path}/copy/root"
    assert await asyncio.to_thread(run, ["copy", address, copy, "--json"]) == 0
    copied = json.loads(capsys.readouterr().out)
    assert copied["leftLabels"] == [{"label": stage, "version": first}]

    code, out = await asyncio.to_thread(goatherd, "versions", "unlabel", stage)
    assert (code, out) == (0, f"label '{stage}': removed from version {first}\n")
    code, out = await asyncio.to_thread(goatherd, "retire", "--grace", "0s", "--dry-run")
    assert code == 0
    assert f"would give up version {first}" in out, "this store destroys no single version"
    code, out = await asyncio.to_thread(goatherd, "retire", "--grace", "0s", "--yes")
    assert code == 0
    assert f"gave up version {first}" in out
    assert "due: `goatherd retire` gives up 3 versions: " in out
    assert fake.stages(Herd.secret_id)[first] == []


async def test_a_stage_of_awss_own_rotation_on_a_version_of_a_cancelled_rotation_leaves_nothing_stuck(
    fake: FakeSecretsManager,
):
    clock = FakeClock()
    async with AWSSecretProvider(AWSAddress(region=REGION, endpoint=fake.url), clock=clock) as provider:
        herd = await Herd.start(provider, clock=clock, nodes=1)
        await rotator_for(herd, policy=OWN_CLOCK).rotate(to_phase=Phase.PUBLISHED)
        prepared = (await provider.read(herd.secret_id)).version.id
        fake.set_stage(herd.secret_id, "AWSPENDING", prepared)
        report = await rotator_for(herd, policy=OWN_CLOCK).abandon("enough")
        assert report.kept == (Kept(version=prepared, labels=("AWSPENDING",)),)
        assert "AWSPENDING" in fake.stages(herd.secret_id)[prepared]
        again = await rotator_for(herd, policy=OWN_CLOCK).rotate()
        assert again.outcome is Outcome.ROTATED
