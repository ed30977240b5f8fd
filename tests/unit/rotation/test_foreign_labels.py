"""A label that an operator or another tool has set: the version is kept, the outcome names it, and the rest
proceeds."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from goatherd.cli.text.revocation import revocation_lines
from goatherd.errors import VersionDisabledError
from goatherd.identity.document import decode_document
from goatherd.key_inventory import describe_kept
from goatherd.providers.values import CURRENT, Label, format_label
from goatherd.rotation.machine import Kept
from goatherd.schedule.alerts import AlertKind
from goatherd.schedule.due import Act
from tests.fakes.herd import Herd
from tests.unit.node.nodes import SECRET, root
from tests.unit.node.nodes import document_of as document_for
from tests.unit.revocation.clusters import cluster_of
from tests.unit.rotation.conftest import POLICY, MakeHerd, check_steady, document_of, rotator_for
from tests.unit.schedule.test_controller import LIFETIME, Rung, make

AUDIT = Label("audit")


async def rotated_with_a_label(herd: Herd) -> str:
    """Rotate, label the first version, and let the grace period pass."""
    first = (await herd.provider.read(herd.secret_id, CURRENT)).version
    await rotator_for(herd).rotate()
    await herd.provider.label(herd.secret_id, AUDIT, first.id, expected=None)
    herd.clock.turn(POLICY.grace + timedelta(seconds=1))
    return str(first.id)


async def test_retire_keeps_a_labelled_version_destroys_the_others_and_names_the_label(make_herd: MakeHerd) -> None:
    herd = await make_herd(clients=0)
    labelled = await rotated_with_a_label(herd)
    report = await rotator_for(herd).retire()
    assert report.kept == (Kept(version=labelled, labels=("audit",)),)
    assert len(report.destroyed) == 2
    held = await herd.provider.read(herd.secret_id, AUDIT)
    assert decode_document(held.value.reveal()).current.id == "root-a"
    assert (await document_of(herd)).retired_ids == frozenset(), "a key that can be read is not on record as destroyed"
    assert describe_kept(labelled, report.kept[0].labels).startswith(
        f"version {labelled} is kept: label `audit` points at it; remove it with"
    )
    assert describe_kept("eu:7", ["audit", "mine"], command="`goatherd revoke`") == (
        "version eu:7 is kept: labels `audit` and `mine` point at it; remove them with"
        " `goatherd show --versions unlabel audit --provider URI` and"
        " `goatherd show --versions unlabel mine --provider URI` (URI: the store of region eu),"
        " and run `goatherd revoke` again"
    )


async def test_once_the_label_is_removed_retire_destroys_the_version_and_records_it(make_herd: MakeHerd) -> None:
    herd = await make_herd(clients=0)
    labelled = await rotated_with_a_label(herd)
    await rotator_for(herd).retire()
    newest = (await herd.provider.read(herd.secret_id, CURRENT)).version
    held = (await herd.provider.read(herd.secret_id, AUDIT)).version
    await herd.provider.label(herd.secret_id, AUDIT, newest.id, expected=held.id)
    report = await rotator_for(herd).retire()
    assert (report.kept, report.destroyed) == ((), (labelled,))
    assert (await document_of(herd)).retired_ids == {"root-a"}
    await check_steady(herd)


async def test_a_label_that_appears_between_the_look_and_the_destruction_is_respected(make_herd: MakeHerd) -> None:
    herd = await make_herd(clients=0)
    first = (await herd.provider.read(herd.secret_id, CURRENT)).version
    await rotator_for(herd).rotate()
    herd.clock.turn(POLICY.grace + timedelta(seconds=1))
    provider, destroy = herd.provider, herd.provider.destroy

    async def late(secret_id: str, version: str) -> None:
        if version == first.id and AUDIT not in {
            label for one in await provider.versions(secret_id) for label in one.labels
        }:
            await provider.label(secret_id, AUDIT, first.id, expected=None)
        await destroy(secret_id, version)  # type: ignore[arg-type]

    provider.destroy = late  # type: ignore[method-assign,assignment]
    report = await rotator_for(herd).retire()
    assert [one.version for one in report.kept] == [first.id]


@pytest.mark.slow
async def test_a_controller_whose_retirement_a_label_blocks_rings_once_and_goes_on_rotating(
    make_herd: MakeHerd,
) -> None:
    herd = await make_herd(clients=0, lifetime=LIFETIME)
    alarm = Rung()
    controller = make(herd, max_age=timedelta(days=40), alarm=alarm)
    labelled = (await herd.provider.read(herd.secret_id, CURRENT)).version
    herd.clock.turn(timedelta(days=41))
    await controller.act_once()
    await herd.provider.label(herd.secret_id, AUDIT, labelled.id, expected=None)
    acts = []
    for _ in range(100):
        herd.clock.turn(timedelta(days=1))
        turn = await controller.act_once()
        if turn.has_acted and turn.verdict is not None:
            acts.append(turn.verdict.act)
            assert turn.error is None
    assert acts.count(Act.ROTATE) == 2
    assert acts.count(Act.RETIRE) > 20
    assert [(one.kind, "`audit`" in one.reason) for one in alarm.alerts] == [(AlertKind.RETIREMENT_FAILED, True)]


async def test_a_retirement_that_fails_keeps_no_rotation_waiting(make_herd: MakeHerd) -> None:
    herd = await make_herd(clients=0, lifetime=LIFETIME)
    await rotator_for(herd).rotate()

    async def refused(secret_id: str, version: str) -> None:
        raise VersionDisabledError("not allowed", provider="memory", secret_id=secret_id, operation="destroy")

    herd.provider.destroy = refused  # type: ignore[method-assign,assignment]
    policy = replace(POLICY, grace=timedelta(days=39))
    controller = make(herd, max_age=timedelta(days=40), policy=policy)
    herd.clock.turn(timedelta(days=39, hours=20))
    failed = await controller.act_once()
    assert failed.verdict is not None
    assert failed.verdict.act is Act.RETIRE
    assert failed.error is not None
    herd.clock.turn(timedelta(days=1))
    turn = await controller.act_once()
    assert turn.verdict is not None
    assert (turn.verdict.act, turn.error) == (Act.ROTATE, None)
    assert turn.report is not None


async def test_revoke_with_destroy_keeps_a_labelled_version_and_is_not_finished(tmp_path: Path) -> None:
    a = root("root-a")
    async with cluster_of(tmp_path, document_for(a), 1) as cluster:
        first = (await cluster.provider.read(SECRET)).version
        await cluster.provider.label(SECRET, AUDIT, first.id, expected=None)
        report = await cluster.revoker().revoke(a.id, reason="stolen", destroy=True)
        assert report.kept == (Kept(version=first.id, labels=("audit",)),)
        assert report.keys_left == (first.id,)
        for one in (report, replace(report, given_up=("9",))):
            text = "\n".join(revocation_lines(one))
            assert describe_kept(first.id, ["audit"], command="the same command") in text
            assert "--destroy destroys it" not in text, "this run has destroyed what no label keeps"
            assert "removes old versions" not in text, "a label keeps it"
        assert not report.is_complete
        assert (await cluster.provider.read(SECRET, AUDIT)).version.id == first.id
        assert (await cluster.document()).retired_ids == frozenset()


@pytest.mark.parametrize(
    "label", ["audit", "1st", "Q4 2024", "it's", "$HOME `x`", "a\\b", "a\nb", "\x1b[31mred", "\u202eabc", "'\t\\'"]
)
def test_a_label_is_shown_on_one_line_and_as_a_shell_takes_it(label: str) -> None:
    shown = format_label(label)
    assert shown.isprintable()
    if "bash" in (bash := shutil.which("bash") or ""):
        done = subprocess.run([bash, "-c", f"printf %s {shown}"], capture_output=True, check=True)
        assert done.stdout.decode() == label
