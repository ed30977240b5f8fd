"""Rotate, resume, cancel, roll back and plan, as a Python program calls them."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from goatherd.audit.records import Anchors, read_record, verify
from goatherd.audit.trail import read_lines
from goatherd.cli.text.rotation import report_lines
from goatherd.cluster.discovery import NodeDirectory
from goatherd.errors import (
    ConfigurationError,
    IllegalStepError,
    LifetimeError,
    NotAdoptedError,
    StoreWentBackError,
    UnsignedIdentityError,
    WrongClockError,
)
from goatherd.identity.document import encode_document
from goatherd.operations.identity_store import Store
from goatherd.operations.init import init_identity
from goatherd.operations.restore import restore
from goatherd.operations.rotate import (
    cancel,
    drop_lost_anchor,
    make_rotator,
    plan_rotation,
    resume,
    roll_back,
    rotate,
)
from goatherd.operations.runs import AuditLog
from goatherd.providers.memory import MemorySecretProvider, MemoryStore
from goatherd.providers.values import CURRENT
from goatherd.revocation.revoker import Revoker
from goatherd.rotation.anchor_keys import UNCHANGED, AnchorChoice
from goatherd.rotation.events import Event, LostAnchorDropped, PhaseEntered
from goatherd.rotation.health_checks import HTTPProbe
from goatherd.rotation.machine import Outcome, Phase
from goatherd.rotation.policy import Policy
from goatherd.stores import ReplicatedStore, StoreMember
from tests.fakes.anchors import MemorySigners
from tests.fakes.health_page import serve_health
from tests.unit.rotation.conftest import OWN_CLOCK

from .conftest import POLICY, MakeHerd, store_of


@pytest.mark.parametrize("operation", [rotate, resume, restore, partial(rotate, replace_expired=True)])
async def test_a_rotation_that_would_wait_for_no_server_is_refused(make_herd: MakeHerd, operation: object) -> None:
    herd = await make_herd()
    store = store_of(herd)
    before = await store.versions()
    empty = NodeDirectory((), timeout=timedelta(seconds=1))
    for nodes in ([], empty):
        with pytest.raises(ConfigurationError, match="no server is listed"):
            await operation(store, nodes, POLICY, clock=herd.clock)  # type: ignore[operator]
    assert await store.versions() == before


async def test_a_rotation_without_servers_is_done_where_it_is_asked_for(make_herd: MakeHerd) -> None:
    herd = await make_herd(nodes=0, clients=0)
    report = await rotate(store_of(herd), [], POLICY, unsafe_without_nodes=True, clock=herd.clock)
    assert report.outcome is Outcome.ROTATED


async def test_a_lifetime_below_the_floor_is_refused_before_anything_is_recorded(
    make_herd: MakeHerd, tmp_path: Path
) -> None:
    herd = await make_herd()
    short = replace(POLICY, lifetime=timedelta(minutes=1))
    log = AuditLog(tmp_path / "audit.jsonl")
    with pytest.raises(LifetimeError):
        await rotate(store_of(herd), herd.nodes, short, audit_log=log, clock=herd.clock)
    assert not log.path.exists()


async def test_a_lifetime_of_a_working_root_is_refused_where_no_anchor_endorses_the_next_root(
    make_herd: MakeHerd,
) -> None:
    herd = await make_herd()
    store, policy = store_of(herd), replace(POLICY, needs_working_root=True)
    before = await store.versions()
    for operation in (rotate, plan_rotation, partial(rotate, replace_expired=True)):
        with pytest.raises(ConfigurationError, match="no anchor endorses the next root") as caught:
            await operation(store, herd.nodes, policy, clock=herd.clock)  # type: ignore[operator]
        assert "--lifetime sets" in caught.value.command_hint
    assert await store.versions() == before
    rotator = make_rotator(store, herd.nodes, policy, clock=herd.clock, open_signer=MemorySigners().open)
    for choice in (AnchorChoice(signer="memory:kms"), UNCHANGED):
        assert (await rotator.rotate(anchor=choice)).outcome is Outcome.ROTATED
    with pytest.raises(ConfigurationError, match="no anchor endorses the next root"):
        await rotator.rotate(anchor=AnchorChoice(is_removed=True))


async def test_a_rotation_returns_data_tells_its_events_and_is_recorded(make_herd: MakeHerd, tmp_path: Path) -> None:
    herd = await make_herd()
    store = store_of(herd)
    _, before = await store.read()
    events: list[Event] = []
    log = AuditLog(tmp_path / "audit.jsonl")
    report = await rotate(store, herd.nodes, POLICY, audit_log=log, on_event=events.append, clock=herd.clock)
    _, after = await store.read()
    assert (report.outcome, report.from_id, report.current_id) == (Outcome.ROTATED, before.current.id, after.current.id)
    phases = [event.phase for event in events if isinstance(event, PhaseEntered)]
    assert phases == [Phase.STEADY, Phase.PREPARED, Phase.PUBLISHED, Phase.ACTIVATED, Phase.VERIFIED, Phase.STEADY]
    assert '"run-began"' in log.path.read_text()
    assert '"run-over"' in log.path.read_text()


@pytest.mark.slow
async def test_the_trail_of_a_rotation_that_a_revocation_ends_is_signed_by_the_root_that_signs_then(
    make_herd: MakeHerd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    herd = await make_herd(nodes=1, clients=0)
    policy = replace(OWN_CLOCK, unlisted=timedelta(seconds=20))
    store, path, step = store_of(herd), tmp_path / "audit.jsonl", herd.clock.on_tick
    monkeypatch.setattr("goatherd.audit.trail.SystemClock", lambda: herd.clock)

    async def tick() -> None:
        if (await store.read())[1].phase == Phase.PUBLISHED:
            herd.clock.on_tick = step
            herd.clock.turn(timedelta(seconds=1))
            await Revoker(store.provider, store.secret_id, (), policy=OWN_CLOCK, clock=herd.clock).revoke(
                "root-a", reason="stolen"
            )
            herd.clock.turn(timedelta(seconds=1))
        await step()

    herd.clock.on_tick = tick
    with pytest.raises(NotAdoptedError, match="the rotation was ended: root root-a was revoked meanwhile") as caught:
        await rotate(store, herd.nodes, policy, audit_log=path, clock=herd.clock)
    _, document = await store.read()
    assert caught.value.report is not None
    assert "Another command has ended this rotation" in caught.value.hint, (
        "it does not send the operator to servers that are well"
    )
    ended = f"ended by another command: {document.current.id} signs (root root-a was revoked meanwhile)"
    assert report_lines(caught.value.report, timedelta(days=1))[0] == ended
    checked = verify(read_lines(path), anchors=Anchors.from_document(document))
    assert checked.signers == ("root-a", document.current.id)
    assert checked.after_revocation == ()
    assert {one.by for one in map(read_record, read_lines(path)) if one.event == "run-ended"} == {document.current.id}


@pytest.mark.slow
async def test_a_rotation_stops_at_a_phase_and_is_resumed_cancelled_or_rolled_back(make_herd: MakeHerd) -> None:
    herd = await make_herd()
    store, clock = store_of(herd), herd.clock
    _, before = await store.read()
    assert (await rotate(store, herd.nodes, POLICY, to_phase=Phase.PUBLISHED, clock=clock)).phase is Phase.PUBLISHED
    with pytest.raises(IllegalStepError):
        await roll_back(store, herd.nodes, POLICY, clock=clock)
    cancelled = await cancel(store, herd.nodes, POLICY, reason="wrong day", clock=clock)
    assert (cancelled.event, cancelled.reason, cancelled.current_id) == ("cancelled", "wrong day", before.current.id)
    reached = await rotate(store, herd.nodes, POLICY, to_phase=Phase.ACTIVATED, clock=clock)
    with pytest.raises(IllegalStepError):
        await cancel(store, herd.nodes, POLICY, clock=clock)
    assert (await roll_back(store, herd.nodes, POLICY, clock=clock)).current_id == before.current.id
    await rotate(store, herd.nodes, POLICY, to_phase=Phase.ACTIVATED, clock=clock)
    done = await resume(store, herd.nodes, POLICY, clock=clock)
    assert done.outcome is Outcome.ROTATED
    assert done.current_id not in (before.current.id, reached.to_id)
    back = await restore(store, herd.nodes, POLICY, root_id=before.current.id, clock=clock)
    assert (back.outcome, back.current_id) == (Outcome.RESTORED, before.current.id)


async def test_a_plan_writes_nothing_and_names_the_health_check(make_herd: MakeHerd) -> None:
    herd = await make_herd()
    store = store_of(herd)
    before = await store.versions()
    with serve_health(lambda _: True) as page:
        probe = HTTPProbe(page.url)
        plan = await plan_rotation(store, herd.nodes, POLICY, health=[probe], clock=herd.clock)
    assert [step.leads_to for step in plan.steps][-1] is Phase.STEADY
    assert plan.nodes == tuple(node.base_url for node in herd.nodes)
    assert any(probe.name in stop for stop in plan.stops)
    assert await store.versions() == before


async def test_a_lost_anchor_that_is_dropped_is_recorded_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOATHERD_SIGNER_SEAL_KEY", bytes(range(32)).hex())
    signer, log = f"local:{tmp_path}/anchor.json", AuditLog(tmp_path / "audit.jsonl")
    async with MemorySecretProvider() as provider:
        store = Store(provider=provider, secret_id="root", org="localhost", name="memory:///root")
        _, before = await init_identity(store, Policy(), anchor=signer, create_key=True)
        events: list[Event] = []
        after = await drop_lost_anchor(store, (), reason="the token is broken", audit_log=log, on_event=events.append)
        with pytest.raises(IllegalStepError):
            await drop_lost_anchor(store, (), audit_log=log, on_event=events.append)
    assert before.anchor is not None
    (event,) = events
    assert isinstance(event, LostAnchorDropped)
    records = [json.loads(line) for line in log.path.read_text().splitlines()]
    (dropped,) = [one["data"] for one in records if one["event"] == "lost-anchor-dropped"]
    assert dropped == {
        "anchorId": before.anchor,
        "currentId": before.current.id,
        "atMs": event.at_ms,
        "generation": after.generation,
        "reason": "the token is broken",
    }


async def test_a_key_is_created_although_the_store_of_another_region_is_only_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOATHERD_SIGNER_SEAL_KEY", bytes(range(32)).hex())
    primary, follower = MemoryStore(), MemoryStore()

    def open_stores() -> Store:
        members = [
            StoreMember(region="eu", provider=MemorySecretProvider(primary), template="root", is_primary=True),
            StoreMember(region="us", provider=MemorySecretProvider(follower), template="root"),
        ]
        return Store(provider=ReplicatedStore(tuple(members)), secret_id="root", org="localhost", name="both")

    stores = open_stores()
    async with stores.provider:
        await init_identity(stores, Policy())
    async with MemorySecretProvider(primary) as provider:
        await rotate(replace(stores, provider=provider), (), unsafe_without_nodes=True)
    stores = open_stores()
    async with stores.provider:
        anchor = f"local:{tmp_path}/anchor.json"
        await rotate(stores, (), anchor=anchor, create_key=True, unsafe_without_nodes=True)
        assert (await stores.read())[1].anchor is not None


async def test_a_lost_anchor_is_not_dropped_from_an_identity_that_was_altered_without_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOATHERD_SIGNER_SEAL_KEY", bytes(range(32)).hex())
    async with MemorySecretProvider() as provider:
        store = Store(provider=provider, secret_id="root", org="localhost", name="memory:///root")
        version, document = await init_identity(
            store, Policy(), anchor=f"local:{tmp_path}/anchor.json", create_key=True
        )
        altered = encode_document(replace(document, rotated_at=1, source=None))
        await provider.write("root", altered, label=CURRENT, expected=version.id)
        with pytest.raises(UnsignedIdentityError):
            await drop_lost_anchor(store, ())
        assert (await provider.read("root")).value.reveal() == altered


@pytest.mark.slow
async def test_a_lost_anchor_is_not_dropped_while_a_server_has_used_a_later_identity(make_herd: MakeHerd) -> None:
    """SECURITY: the operator would then be told to start servers with any identity from the store, even an unsigned
    one."""
    herd = await make_herd(nodes=2)
    store, signers, clock = store_of(herd), MemorySigners(), herd.clock
    anchor = AnchorChoice(signer="memory:kms")
    rotator = make_rotator(store, herd.nodes, POLICY, open_signer=signers.open, clock=clock)
    await rotator.rotate(anchor=anchor)
    backup = (await herd.provider.read(herd.secret_id)).value
    await rotator.rotate()
    at = (await herd.provider.read(herd.secret_id)).version.id
    await herd.provider.write(herd.secret_id, backup, expected=at)
    before = await store.versions()
    with pytest.raises(StoreWentBackError):
        await drop_lost_anchor(store, herd.nodes, POLICY, clock=clock)
    assert await store.versions() == before
    every = replace(POLICY, distrust=frozenset(node.base_url for node in herd.nodes))
    assert (await drop_lost_anchor(store, herd.nodes, every, clock=clock)).anchor is None


async def test_a_replica_that_lags_for_a_moment_keeps_no_lost_anchor(
    make_herd: MakeHerd, monkeypatch: pytest.MonkeyPatch
) -> None:
    herd = await make_herd()
    store, signers = store_of(herd), MemorySigners()
    anchor = AnchorChoice(signer="memory:kms")
    await make_rotator(store, herd.nodes, POLICY, open_signer=signers.open, clock=herd.clock).rotate(anchor=anchor)
    earlier, read, reads = (await store.versions())[1].id, herd.provider.read, itertools.count(1)

    async def lagging(secret_id: str, at: Any = CURRENT, **options: Any) -> Any:
        return await read(secret_id, earlier if next(reads) == 2 else at, **options)

    monkeypatch.setattr(herd.provider, "read", lagging)
    assert (await drop_lost_anchor(store, herd.nodes, POLICY, clock=herd.clock)).anchor is None


async def test_a_lost_anchor_is_not_dropped_by_a_machine_whose_clock_is_wrong(make_herd: MakeHerd) -> None:
    herd = await make_herd(nodes=2)
    store, signers = store_of(herd), MemorySigners()
    anchor = AnchorChoice(signer="memory:kms")
    await make_rotator(store, herd.nodes, POLICY, open_signer=signers.open, clock=herd.clock).rotate(anchor=anchor)
    before = await store.versions()
    for node in herd.nodes:
        node.faults.clock_ahead = timedelta(days=1)
    with pytest.raises(WrongClockError):
        await drop_lost_anchor(store, herd.nodes, POLICY, clock=herd.clock)
    assert await store.versions() == before
