"""The controller on a simulated herd: it rotates in time, waits for others, backs off after failures, and stops at safe
points."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from goatherd.audit.records import Anchors, read_record, verify
from goatherd.audit.trail import AuditTrail, Journal, read_lines
from goatherd.cli.text.schedule import turn_lines
from goatherd.errors import (
    IllegalStepError,
    ObstructedError,
    StoreLagError,
    UnavailableError,
    WrongClockError,
)
from goatherd.identity.document import IdentityDocument, Phase, encode_document
from goatherd.identity.session import OwnedSession
from goatherd.identity.transitions import create_document
from goatherd.key_inventory import find_holdings
from goatherd.operations.identity_store import Store
from goatherd.operations.init import init_identity
from goatherd.providers.memory import MemorySecretProvider
from goatherd.providers.values import CURRENT
from goatherd.revocation.revoker import Revoker
from goatherd.rotation.anchor_keys import AnchorChoice
from goatherd.rotation.events import Decided, Event, PhaseEntered
from goatherd.rotation.machine import Wait
from goatherd.rotation.policy import Policy
from goatherd.rotation.rotator import Rotator
from goatherd.schedule.alerts import Alarm, Alert, AlertKind
from goatherd.schedule.anchor_watch import AnchorWatch
from goatherd.schedule.controller import RETIRE_PAUSE, Controller, Turn
from goatherd.schedule.due import BACKOFF_MAX, Act, DueDecision, Schedule
from goatherd.times import milliseconds
from tests.deadlines import HANG
from tests.fakes.anchors import MemorySigners
from tests.fakes.herd import FakeClock, Herd
from tests.unit.rotation.conftest import OWN_CLOCK, POLICY, MakeHerd, check_steady, document_of, rotator_for
from tests.unit.rotation.test_clocks import SkewedClock
from tests.unit.rotation.test_signed_store import put
from tests.unit.stores.regions import SECRET
from tests.unit.stores.world import World

DAY = timedelta(days=1)
LIFETIME = timedelta(days=180)
ALWAYS_DUE = replace(POLICY, lifetime=timedelta(days=180), renewal_fraction=1.0, renewal_cap=timedelta(days=179))


class Rung(Alarm):
    """An alarm that records its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.alerts: list[Alert] = []

    async def raise_alert(self, alert: Alert) -> None:
        await super().raise_alert(alert)
        self.alerts.append(alert)

    @property
    def kinds(self) -> list[AlertKind]:
        return [alert.kind for alert in self.alerts]


def make(
    herd: Herd, name: str = "a", *, alarm: Alarm | None = None, provider: Any = None, **options: Any
) -> Controller:
    plan = Schedule(
        controller=name,
        started_by=f"controller {name}",
        policy=options.pop("policy", POLICY),
        **{key: options.pop(key) for key in list(options) if key in Schedule.__dataclass_fields__},
    )
    return Controller(
        provider or herd.provider,
        herd.secret_id,
        plan,
        worker=lambda told: rotator_for(
            herd,
            policy=plan.policy,
            started_by=plan.started_by,
            **({"provider": provider} if provider else {}),
            listener=told,
        ),
        clock=herd.clock,
        alarm=alarm,
        **options,
    )


async def test_a_key_that_is_due_is_replaced_once(make_herd: MakeHerd) -> None:
    herd = await make_herd(clients=0, lifetime=LIFETIME)
    controller = make(herd, max_age=timedelta(days=40))
    first = await controller.act_once()
    assert (first.has_acted, first.verdict and first.verdict.act) == (False, Act.ROTATE)
    herd.clock.turn(DAY * 41)
    done = await controller.act_once()
    assert done.report is not None
    document = await check_steady(herd)
    assert document.current.id == done.report.to_id
    assert not (await controller.act_once()).has_acted


async def test_at_its_start_it_tells_the_next_rotation_also_if_old_keys_are_destroyed_before(
    make_herd: MakeHerd, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    herd = await make_herd(clients=0, lifetime=LIFETIME)
    await rotator_for(herd).rotate()
    caplog.clear()
    controller = make(herd)
    for _ in range(2):
        assert not (await controller.act_once()).has_acted
    planned = [one.message.split()[1] for one in caplog.records if one.message.startswith("controller.planned")]
    assert planned == ["act=retire", "act=rotate"]


async def test_a_failure_is_recorded_by_the_root_that_signs_then(
    make_herd: MakeHerd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    herd = await make_herd(nodes=0, clients=0, lifetime=LIFETIME)
    herd.clock.turn(DAY * 130)

    async def rotate(_: Rotator) -> None:
        herd.clock.turn(timedelta(seconds=1))
        await Revoker(herd.provider, herd.secret_id, (), policy=OWN_CLOCK, clock=herd.clock).revoke("root-a", reason="")
        herd.clock.turn(timedelta(seconds=1))
        raise IllegalStepError("the root was revoked")

    monkeypatch.setattr(Rotator, "rotate", rotate)
    trail = AuditTrail(tmp_path / "audit.jsonl", actor="controller a", clock=herd.clock)
    assert (await make(herd, journal=Journal(trail)).act_once()).has_acted
    document = await document_of(herd)
    found = [(one.event, one.by) for one in map(read_record, read_lines(trail.path))]
    assert ("controller-acts", "root-a") in found
    assert ("controller-failed", document.current.id) in found
    assert verify(read_lines(trail.path), anchors=Anchors.from_document(document)).after_revocation == ()


@pytest.mark.slow
@pytest.mark.parametrize("is_restarted", [False, True])
async def test_a_controller_that_only_watches_for_many_rotations_keeps_a_trail_that_verifies(
    make_herd: MakeHerd, tmp_path: Path, is_restarted: bool
) -> None:
    herd = await make_herd(nodes=1, clients=0, lifetime=LIFETIME)
    trail = AuditTrail(tmp_path / "audit.jsonl", actor="controller a", clock=herd.clock)
    watching = make(herd, journal=Journal(trail))
    await watching.act_once()
    assert not trail.path.exists(), "without a record there is nothing to follow"
    trail.use_identity(await document_of(herd))
    trail.record("controller-starts", {})
    for _ in range(6):
        await rotator_for(herd).rotate()
        if is_restarted:
            watching = make(herd, journal=Journal(AuditTrail(trail.path, actor="controller a", clock=herd.clock)))
        for _ in range(2):
            assert not (await watching.act_once()).has_acted
    document = await document_of(herd)
    assert document.find_root("root-a") is None
    checked = verify(read_lines(trail.path), anchors=Anchors.from_document(document))
    assert (len(checked.signers), checked.signers[-1], checked.head.seq) == (7, document.current.id, 8)


@pytest.mark.parametrize("is_restarted", [False, True])
async def test_an_unrelated_identity_that_is_in_the_store_for_a_while_does_not_break_the_trail(
    make_herd: MakeHerd, tmp_path: Path, is_restarted: bool
) -> None:
    herd = await make_herd(nodes=1, clients=0, lifetime=LIFETIME)
    document, now_ms = await document_of(herd), herd.clock.now_ms()
    trail = AuditTrail(tmp_path / "audit.jsonl", actor="controller a", clock=herd.clock)
    trail.use_identity(document)
    trail.record("controller-starts", {})
    watching = make(herd, journal=Journal(trail))
    await watching.act_once()
    if is_restarted:
        trail = AuditTrail(trail.path, actor="controller a", clock=herd.clock)
        watching = make(herd, journal=Journal(trail))
    for name in ("stranger", "another-one"):
        stranger = OwnedSession.generate(session_id=name, owner="root", now_ms=now_ms, lifetime=LIFETIME)
        generation = (await document_of(herd)).generation + 1
        await put(herd, replace(create_document(stranger, now_ms), generation=generation))
        assert (await watching.act_once()).error is None
    await put(herd, document)
    await watching.act_once()
    trail.record("controller-acts", {})
    checked = verify(read_lines(trail.path), anchors=Anchors.from_document(document))
    assert (checked.signers, checked.head.seq) == ((document.current.id,), 3)


@pytest.mark.parametrize("creates", [False, True])
async def test_a_trail_whose_file_was_renamed_begins_anew_at_the_next_look(
    make_herd: MakeHerd, tmp_path: Path, creates: bool
) -> None:
    """logrotate renames it so, with `create` or without. Otherwise the page would report a missing trail until the next
    rotation."""
    herd = await make_herd(nodes=1, clients=0, lifetime=LIFETIME)
    document = await document_of(herd)
    trail = AuditTrail(tmp_path / "audit.jsonl", actor="controller a", clock=herd.clock)
    trail.use_identity(document)
    trail.record("controller-starts", {})
    controller = make(herd, journal=Journal(trail))
    for number in range(2):
        await controller.act_once()
        trail.path.rename(tmp_path / f"audit.{number}.jsonl")
        if creates:
            trail.path.touch(mode=0o600)
        stranger = OwnedSession.generate(session_id="stranger", owner="root", now_ms=herd.clock.now_ms())
        generation = document.generation + 1
        await put(herd, replace(create_document(stranger, herd.clock.now_ms()), generation=generation))
        for _ in range(2):
            await controller.act_once()
        assert list(read_lines(trail.path)) == [] if creates else not trail.path.exists()
        await put(herd, document)
        await controller.act_once()
        assert verify(read_lines(trail.path), anchors=Anchors.from_document(document)).signers == (document.current.id,)
    await rotator_for(herd).rotate()
    await controller.act_once()
    checked = verify(read_lines(trail.path), anchors=Anchors.from_document(await document_of(herd)))
    assert (len(checked.signers), checked.head.seq) == (2, 2)


async def test_a_trail_that_cannot_be_written_does_not_stop_a_look(
    make_herd: MakeHerd, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    herd = await make_herd(nodes=1, clients=0, lifetime=LIFETIME)
    path = tmp_path / "audit.jsonl"
    path.write_text("not a trail\n")
    controller = make(herd, journal=Journal(AuditTrail(path, actor="controller a", clock=herd.clock)))
    assert [(await controller.act_once()).error for _ in range(2)] == [None, None]
    assert caplog.text.count("audit.failed") == 1


async def test_of_controllers_that_act_at_the_same_moment_one_rotates_and_the_others_yield(
    make_herd: MakeHerd, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    herd = await make_herd(clients=0, lifetime=LIFETIME)
    herd.clock.turn(DAY * 130)
    alarm = Rung()
    controllers = [make(herd, name, alarm=alarm) for name in "abcd"]
    turns = await asyncio.gather(*(controller.act_once() for controller in controllers))
    assert sorted(turn.has_yielded for turn in turns) == [False, True, True, True]
    assert sum(turn.report is not None for turn in turns) == 1
    document = await check_steady(herd)
    assert len(document.roots) == 2
    assert alarm.alerts == []
    assert caplog.text.count("controller.yielded") == 3
    # None of the controllers rotates again.
    again = [await controller.act_once() for controller in controllers]
    assert not any(turn.has_acted for turn in again)


@pytest.mark.slow
async def test_in_weeks_of_several_controllers_that_die_each_week_has_one_rotation(make_herd: MakeHerd) -> None:
    herd = await make_herd(nodes=1, clients=0, lifetime=LIFETIME)
    # Mondays from noon to one, UTC.
    plan = {
        "max_age": timedelta(days=6),
        "cron": "* 12 * * MON",
        "policy": replace(POLICY, grace=timedelta(days=60)),
    }
    controllers = [make(herd, name, **plan) for name in "abc"]
    begun: list[datetime] = []
    for step in range(5 * 7 * 24):
        herd.clock.turn(timedelta(hours=1))
        if step % 80 == 0:
            # One of them is started anew: it knows nothing but the document.
            controllers[step // 80 % 3] = make(herd, "abc"[step // 80 % 3], **plan)
        for controller in controllers:
            done = await controller.act_once()
            assert done.error is None
            if done.report is not None and done.verdict is not None and done.verdict.act is Act.ROTATE:
                begun.append(datetime.fromtimestamp(herd.clock.now_ms() / 1000, UTC))
    assert {(one.weekday(), one.hour) for one in begun} == {(0, 12)}
    assert len({one.date() for one in begun}) == len(begun) >= 4


@pytest.mark.slow
async def test_a_failed_rotation_is_told_and_tried_again_later_and_ever_more_seldom(make_herd: MakeHerd) -> None:
    herd = await make_herd(clients=0, lifetime=LIFETIME)
    herd.clock.turn(DAY * 130)
    herd.nodes[1].faults.forgets_pushes = True
    alarm = Rung()
    attempts: list[int] = []
    controller = make(herd, alarm=alarm)
    for _ in range(60):
        done = await controller.act_once()
        if done.has_acted:
            attempts.append(herd.clock.now_ms())
        herd.clock.turn(timedelta(minutes=2))
    assert set(alarm.kinds) == {AlertKind.ROTATION_FAILED}
    assert len(alarm.alerts) == len(attempts) >= 3
    assert "holds the introduction" in alarm.alerts[0].reason
    pauses = [later - earlier for earlier, later in itertools.pairwise(attempts)]
    assert pauses[0] >= 300_000
    assert pauses[1] >= 600_000
    herd.nodes[1].faults.forgets_pushes = False
    herd.clock.turn(timedelta(hours=7))
    assert (await controller.act_once()).report is not None
    await check_steady(herd)


@pytest.mark.slow
async def test_the_pauses_after_failures_grow_to_the_longest_one_though_the_history_is_short(
    make_herd: MakeHerd,
) -> None:
    herd = await make_herd(nodes=5, clients=0, lifetime=LIFETIME, refresh_interval=DAY * 999)
    herd.clock.turn(DAY * 130)
    for node in herd.nodes:
        node.faults.deaf = True
    attempts: list[int] = []
    controller = make(herd)
    while len(attempts) < 12:
        if (await controller.act_once()).has_acted:
            attempts.append(herd.clock.now_ms())
        herd.clock.turn(timedelta(minutes=5))
    longest = milliseconds(BACKOFF_MAX)
    assert all(later - earlier >= longest for earlier, later in itertools.pairwise(attempts[-4:]))


@pytest.mark.slow
async def test_a_short_lived_root_does_not_expire_during_a_pause_after_failures(make_herd: MakeHerd) -> None:
    policy = replace(POLICY, lifetime=timedelta(hours=2))
    herd = await make_herd(clients=0, lifetime=policy.lifetime)
    controller = make(herd, policy=policy)
    expires_ms = (await document_of(herd)).current.session.expiration_ms
    herd.nodes[0].faults.cut_off = True
    while herd.clock.now_ms() < expires_ms - milliseconds(timedelta(minutes=20)):
        await controller.act_once()
        herd.clock.turn(timedelta(minutes=1))
    herd.nodes[0].faults.cut_off = False
    while (await controller.act_once()).report is None:
        assert herd.clock.now_ms() < expires_ms
        herd.clock.turn(timedelta(minutes=1))
    await check_steady(herd)


async def test_a_failure_that_leaves_no_trace_in_the_document_makes_it_rest_too(make_herd: MakeHerd) -> None:
    herd = await make_herd(clients=0, lifetime=LIFETIME)
    herd.clock.turn(DAY * 130)
    alarm = Rung()

    class Refusing:
        calls = 0

        async def rotate(self) -> Any:
            self.calls += 1
            raise UnavailableError("no", provider="memory", secret_id="s", operation="write")

        resume = retire = rotate

    refusing = Refusing()
    controller = Controller(
        herd.provider,
        herd.secret_id,
        Schedule(controller="a"),
        worker=lambda told: refusing,
        clock=herd.clock,
        alarm=alarm,
    )
    for _ in range(120):
        await controller.act_once()
        herd.clock.turn(timedelta(minutes=1))
    # 5, 10, 20, 40 minutes, each up to a quarter longer.
    assert 4 <= refusing.calls <= 6
    assert [alert.failures for alert in alarm.alerts] == list(range(1, refusing.calls + 1))
    assert {alert.code for alert in alarm.alerts} == {"provider.unavailable"}


async def test_a_controller_whose_clock_was_wrong_tries_again_soon_after_the_clock_is_set(make_herd: MakeHerd) -> None:
    herd = await make_herd(clients=0, lifetime=LIFETIME)
    await rotator_for(herd, started_by="controller a").rotate(to_phase=Phase.PUBLISHED)
    clock = SkewedClock(herd.clock, DAY * 365 * 9)
    controller = Controller(
        herd.provider,
        herd.secret_id,
        Schedule(controller="a", started_by="controller a", policy=POLICY),
        worker=lambda told: Rotator(
            herd.provider, herd.secret_id, herd.nodes, policy=POLICY, clock=clock, on_event=told
        ),
        clock=clock,
    )
    assert isinstance((await controller.act_once()).error, WrongClockError)
    clock.skew = timedelta(0)
    herd.clock.turn(timedelta(minutes=4))
    assert not (await controller.act_once()).has_acted
    herd.clock.turn(timedelta(minutes=3))
    assert (await controller.act_once()).report is not None
    await check_steady(herd)


async def test_a_store_that_is_away_is_told_after_a_few_looks_and_asked_ever_more_seldom(
    make_herd: MakeHerd, caplog: pytest.LogCaptureFixture
) -> None:
    herd = await make_herd(clients=0, lifetime=LIFETIME)

    class Away:
        is_away = True
        reads = 0

        def __getattr__(self, name: str) -> Any:
            return getattr(herd.provider, name)

        async def read(self, secret_id: str, at: Any = CURRENT) -> Any:
            self.reads += 1
            if self.is_away:
                raise UnavailableError("away", provider="memory", secret_id=secret_id, operation="read")
            return await herd.provider.read(secret_id, at)

    away, alarm, stop = Away(), Rung(), asyncio.Event()
    controller = make(herd, alarm=alarm, provider=away)
    began = herd.clock.now_ms()

    async def tick() -> None:
        if herd.clock.now_ms() - began > 3_600_000:
            stop.set()

    herd.clock.on_tick = tick
    await controller.run(stop)
    assert away.reads < 20, "an hour of looks every minute would be sixty"
    assert alarm.kinds == [AlertKind.STORE_AWAY]
    assert caplog.text.count("controller.troubled") == 2
    away.is_away = False
    assert (await controller.act_once()).error is None


async def test_a_rotation_that_a_dead_controller_left_is_carried_on_when_it_is_stale(make_herd: MakeHerd) -> None:
    herd = await make_herd(clients=0, lifetime=LIFETIME)
    await rotator_for(herd, started_by="controller dead").rotate(to_phase=Phase.PUBLISHED)
    controller = make(herd)
    herd.clock.turn(timedelta(minutes=14))
    assert not (await controller.act_once()).has_acted
    herd.clock.turn(timedelta(minutes=1))
    done = await controller.act_once()
    assert done.verdict is not None
    assert done.verdict.act is Act.RESUME
    assert done.report is not None
    await check_steady(herd)


async def test_its_own_rotation_is_carried_on_without_waiting(make_herd: MakeHerd) -> None:
    herd = await make_herd(clients=0, lifetime=LIFETIME)
    await rotator_for(herd, started_by="controller a").rotate(to_phase=Phase.ACTIVATED)
    assert (await make(herd).act_once()).report is not None
    await check_steady(herd)


async def test_old_private_keys_are_destroyed_after_the_grace_period(
    make_herd: MakeHerd, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "goatherd.rotation")
    herd = await make_herd(clients=0, lifetime=LIFETIME)
    await rotator_for(herd).rotate()
    controller = make(herd)
    herd.clock.turn(timedelta(days=29))
    assert not (await controller.act_once()).has_acted
    herd.clock.turn(timedelta(days=2))
    done = await controller.act_once()
    assert done.report is not None
    assert done.report.destroyed
    assert turn_lines(done, herd.clock.now_ms())[1] == f"3 versions destroyed: {done.report.current_id} signs"
    assert "controller.done act=retire outcome='3 versions destroyed'" in caplog.text
    assert (await document_of(herd)).retired_ids == {"root-a"}
    assert not (await controller.act_once()).has_acted


async def test_what_died_between_destroying_the_last_copy_and_recording_it_is_recorded_by_the_next(
    make_herd: MakeHerd, monkeypatch: pytest.MonkeyPatch
) -> None:
    herd = await make_herd(clients=0, lifetime=LIFETIME)
    await rotator_for(herd).rotate()
    herd.clock.turn(timedelta(days=31))

    async def die(*_: object) -> None:
        raise asyncio.CancelledError

    with monkeypatch.context() as patched:
        patched.setattr(Rotator, "_write_identity", die)  # destroying is no write
        with pytest.raises(asyncio.CancelledError):
            await rotator_for(herd).retire()
    assert (await document_of(herd)).retired_ids == frozenset()
    controller = make(herd)
    assert (await controller.act_once()).has_acted
    assert (await document_of(herd)).retired_ids == {"root-a"}
    herd.clock.turn(RETIRE_PAUSE)
    assert not (await controller.act_once()).has_acted


@pytest.mark.slow
@pytest.mark.parametrize(
    ("max_age", "grace"), [(DAY * 7, DAY * 30), (DAY, DAY * 12)], ids=["weekly", "more often than the history is long"]
)
async def test_the_keys_of_roots_that_left_the_document_within_their_grace_period_are_destroyed_too(
    make_herd: MakeHerd, max_age: timedelta, grace: timedelta
) -> None:
    herd = await make_herd(nodes=1, clients=0, lifetime=LIFETIME)
    controller = make(herd, max_age=max_age, policy=replace(POLICY, grace=grace))
    destroyed: set[Act] = set()
    for _ in range(2 * (grace + 3 * max_age) // DAY):
        herd.clock.turn(DAY / 2)
        done = await controller.act_once()
        assert done.error is None
        if done.verdict is not None and done.report is not None and done.report.destroyed:
            destroyed.add(done.verdict.act)
    assert destroyed == {Act.RETIRE}
    document = await check_steady(herd)
    listed = {root.id for root in document.roots}
    assert document.pruned > 0
    assert "root-a" not in listed
    held = await find_holdings(herd.provider, herd.secret_id, document)
    assert any(one.private_ids - listed for one in held), "keys of such roots whose grace period has not ended"
    latest_ms = herd.clock.now_ms() - milliseconds(grace + max_age + RETIRE_PAUSE)
    assert not [one for one in held if one.private_ids - {document.current.id} and one.retired_ms < latest_ms]


async def test_a_store_that_does_not_list_its_versions_is_told_and_rotations_continue(
    make_herd: MakeHerd, monkeypatch: pytest.MonkeyPatch
) -> None:
    herd = await make_herd(clients=0, lifetime=LIFETIME)
    alarm, searches = Rung(), list[str]()

    async def fail(_: object, secret_id: str, document: IdentityDocument) -> tuple[tuple[str, int], ...]:
        del document
        searches.append(secret_id)
        raise UnavailableError("away", provider="memory", secret_id=secret_id, operation="versions")

    monkeypatch.setattr("goatherd.schedule.controller.find_unlisted_keys", fail)
    controller = make(herd, alarm=alarm)
    for _ in range(10):
        assert not (await controller.act_once()).has_acted
        herd.clock.turn(timedelta(minutes=1))
    assert len(searches) == 2, "at the first look, and after the pause"
    assert alarm.kinds == [AlertKind.RETIREMENT_FAILED] * 2
    herd.clock.turn(DAY * 130)
    assert (await controller.act_once()).report is not None


@pytest.mark.parametrize("ahead", [timedelta(0), DAY * 365], ids=["", "with a clock that is ahead on the first day"])
async def test_a_store_that_does_not_destroy_at_once_is_asked_once_a_day(make_herd: MakeHerd, ahead: timedelta) -> None:
    herd = await make_herd(clients=0, lifetime=LIFETIME)
    await rotator_for(herd).rotate()

    class Keeping:
        calls = 0

        async def retire(self) -> Any:
            self.calls += 1
            return type("Report", (), {"summary": "nothing to do", "current_id": "x", "kept": ()})()

        rotate = resume = retire

    keeping = Keeping()
    plan = Schedule(controller="a", policy=POLICY)
    clock = SkewedClock(herd.clock, ahead)
    controller = Controller(herd.provider, herd.secret_id, plan, worker=lambda told: keeping, clock=clock)
    herd.clock.turn(timedelta(days=31))
    for _ in range(5 * 4):
        await controller.act_once()
        clock.skew = timedelta(0)
        herd.clock.turn(timedelta(hours=6))
    assert keeping.calls == 5 * DAY // RETIRE_PAUSE


async def test_a_key_near_its_end_is_told_once_and_an_expired_one_is_not_rotated(make_herd: MakeHerd) -> None:
    herd = await make_herd(clients=0, lifetime=LIFETIME)
    alarm = Rung()
    controller = make(herd, alarm=alarm, cron="0 12 1 1 *")
    document = await document_of(herd)
    left = document.current.session.expiration_ms - herd.clock.now_ms()
    herd.clock.turn(timedelta(milliseconds=left + 1000))
    for _ in range(3):
        done = await controller.act_once()
        assert not done.has_acted
    assert alarm.kinds == [AlertKind.KEY_NEAR_END]
    assert "expired" in alarm.alerts[0].reason


@pytest.mark.parametrize("once", [False, True], ids=["", "in one process for each look"])
async def test_while_no_rotation_can_begin_old_private_keys_are_destroyed_nevertheless(
    make_herd: MakeHerd, once: bool
) -> None:
    herd = await make_herd(clients=0, lifetime=LIFETIME)
    await rotator_for(herd).rotate()
    herd.nodes[2].faults.cut_off = True
    alarm = Rung()
    controller = make(herd, alarm=alarm, max_age=DAY * 20)
    herd.clock.turn(DAY * 31)
    first = await controller.act_once()
    assert isinstance(first.error, ObstructedError)
    assert first.verdict is not None
    assert first.verdict.act is Act.ROTATE
    assert (await document_of(herd)).retired_ids == {"root-a"}
    herd.clock.turn(timedelta(minutes=1))
    again = await (make(herd, alarm=alarm, max_age=DAY * 20) if once else controller).act_once()
    assert again.has_acted is once
    assert set(alarm.kinds) == {AlertKind.ROTATION_FAILED}


async def test_keys_that_are_due_to_be_destroyed_do_not_hide_that_the_root_has_expired(make_herd: MakeHerd) -> None:
    herd = await make_herd(clients=0, lifetime=LIFETIME)
    await rotator_for(herd).rotate()
    alarm = Rung()
    herd.clock.turn(LIFETIME + DAY)
    done = await make(herd, alarm=alarm).act_once()
    assert done.verdict is not None
    assert (done.verdict.act, done.error) == (Act.RETIRE, None)
    assert alarm.kinds == [AlertKind.KEY_NEAR_END]


async def warnings_around_the_end(
    controller: Controller, document: IdentityDocument, alarm: Rung, clock: FakeClock
) -> list[bool]:
    """Run the checks from a day before the root expires until three days after it; return which warnings name an
    expired root."""
    clock.turn(timedelta(milliseconds=document.current.session.expiration_ms - clock.now_ms()) - DAY)
    for _ in range(4 * 4):
        await controller.act_once()
        clock.turn(DAY / 4)
    return ["has expired" in alert.reason for alert in alarm.alerts if alert.kind is AlertKind.KEY_NEAR_END]


async def test_an_expired_root_is_told_every_day_although_its_near_end_was_told(make_herd: MakeHerd) -> None:
    herd = await make_herd(clients=0, lifetime=LIFETIME)
    herd.nodes[0].faults.cut_off = True  # so that the root cannot be replaced
    alarm = Rung()
    controller = make(herd, alarm=alarm)
    told = await warnings_around_the_end(controller, await document_of(herd), alarm, herd.clock)
    assert told == [False, True, True, True]


async def test_an_expired_root_in_direct_mode_is_told_every_day_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOATHERD_SIGNER_SEAL_KEY", bytes(range(32)).hex())
    clock, alarm = FakeClock(), Rung()
    async with MemorySecretProvider(clock=clock) as provider:
        store = Store(provider=provider, secret_id="root", org="localhost", name="memory:///root")
        await init_identity(store, Policy(), anchor=f"local:{tmp_path}/anchor.json", create_key=True, direct=True)

        def make_none(_: Callable[[Event], None]) -> Any:
            return None  # without a rotation that is due, nothing is asked of it

        controller = Controller(provider, "root", Schedule(controller="a"), worker=make_none, clock=clock, alarm=alarm)
        _, document = await store.read()
        assert await warnings_around_the_end(controller, document, alarm, clock) == [False, True, True, True]


# --- the loop, and its end --------------------------------------------------------------------------------------------


def stop_when(
    controller_events: list[Event], stop: asyncio.Event, sought: Callable[[Event], bool]
) -> Callable[[Event], None]:
    def told(event: Event) -> None:
        controller_events.append(event)
        if sought(event):
            stop.set()

    return told


async def run_until(
    herd: Herd, sought: Callable[[Event], bool], *, patience: timedelta = timedelta(seconds=60), hurry: bool = False
) -> list[Event]:
    stop, hurrying = asyncio.Event(), asyncio.Event()
    events: list[Event] = []
    listener = stop_when(events, stop, sought)
    plan = Schedule(controller="a", started_by="controller a", policy=POLICY)
    if hurry:
        hurrying.set()

    def worker(told: Callable[[Event], None]) -> Any:
        def both(event: Event) -> None:
            listener(event)
            told(event)

        return rotator_for(herd, started_by="controller a", listener=both)

    controller = Controller(
        herd.provider, herd.secret_id, plan, worker=worker, clock=herd.clock, stop_patience=patience
    )
    async with asyncio.timeout(HANG):
        await controller.run(stop, hurrying)
    return events


def decided(kind: type) -> Callable[[Event], bool]:
    return lambda event: isinstance(event, Decided) and isinstance(event.action, kind)


async def test_asked_to_stop_in_a_rotation_that_goes_on_it_brings_it_to_its_end(make_herd: MakeHerd) -> None:
    herd = await make_herd(clients=0, lifetime=LIFETIME)
    herd.clock.turn(DAY * 130)
    await run_until(herd, lambda event: isinstance(event, Decided))
    document = await check_steady(herd)
    assert document.current.id != "root-a"


@pytest.mark.slow
async def test_asked_to_stop_while_it_waits_for_a_node_it_leaves_the_rotation_to_be_carried_on(
    make_herd: MakeHerd, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    herd = await make_herd(clients=0, lifetime=LIFETIME)
    herd.clock.turn(DAY * 130)

    def waits(event: Event) -> bool:
        if isinstance(event, PhaseEntered) and event.phase is Phase.PREPARED:
            herd.nodes[1].faults.cut_off = True
        return decided(Wait)(event)

    events = await run_until(herd, waits)
    document = await document_of(herd)
    assert document.phase == "published"
    assert herd.clock.now_ms() - (document.last_updated or 0) < 10_000, "not until its patience with nodes ends"
    assert decided(Wait)([event for event in events if isinstance(event, Decided)][-1])
    assert "controller.stopped leaves_rotation=true" in caplog.text
    herd.nodes[1].faults.cut_off = False
    assert (await make(herd).act_once()).report is not None
    await check_steady(herd)


async def test_in_a_hurry_it_leaves_at_once_whatever_it_does(make_herd: MakeHerd) -> None:
    herd = await make_herd(clients=0, lifetime=LIFETIME)
    herd.clock.turn(DAY * 130)
    await run_until(herd, lambda event: isinstance(event, Decided), hurry=True)
    assert (await make(herd, policy=ALWAYS_DUE).act_once()).report is not None
    await check_steady(herd)


async def test_asked_to_stop_while_it_waits_for_its_time_it_ends_at_once(make_herd: MakeHerd) -> None:
    herd = await make_herd(clients=0, lifetime=LIFETIME)
    stop = asyncio.Event()

    async def tick() -> None:
        stop.set()

    herd.clock.on_tick = tick
    async with asyncio.timeout(HANG):
        await make(herd).run(stop)
    assert (await document_of(herd)).generation == 1


async def test_the_loop_sleeps_until_what_it_has_announced_and_no_longer_than_the_interval(make_herd: MakeHerd) -> None:
    herd = await make_herd(clients=0, lifetime=LIFETIME)
    controller = make(herd, interval=timedelta(minutes=1))
    now = herd.clock.now_ms()

    def verdict(at_ms: int | None) -> Turn:
        return Turn(verdict=DueDecision(act=Act.ROTATE, at_ms=at_ms, why=""))

    assert controller._until_next(verdict(now + 5000)) == timedelta(seconds=5)
    for turn in (verdict(now + 999_999), verdict(None), verdict(now - 1), Turn(), None):
        assert timedelta(seconds=60) <= controller._until_next(turn) <= timedelta(seconds=66)


# --- alerts -----------------------------------------------------------------------------------------------------------

ALERT = Alert(kind=AlertKind.ROTATION_FAILED, reason="timeout", root_id="root-a", code="rotation.x")


async def test_an_alert_is_an_error_in_the_log_and_a_command_that_gets_it_as_json(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await Alarm(f"cat > {tmp_path}/told").raise_alert(ALERT)
    assert json.loads((tmp_path / "told").read_text()) == ALERT.to_json()
    (record,) = caplog.records
    assert (record.levelno, record.message.split()[0]) == (logging.ERROR, "controller.alert")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "told"),
    [("exit 3", "ended with 3"), ("sleep 60", "did not end within"), ("nonsense-that-is-not-there", "ended with 127")],
    ids=["fails", "hangs", "is not there"],
)
async def test_an_alert_command_that_does_not_end_well_is_logged_and_nothing_more(
    command: str, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    limit = timedelta(seconds=1 if "within" in told else HANG)
    await Alarm(command, timeout=limit).raise_alert(ALERT)
    assert "controller.alert_failed" in caplog.text
    assert told in caplog.text


async def test_a_command_that_does_not_read_what_it_is_told_is_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    await Alarm("exec true").raise_alert(replace(ALERT, reason="x" * 60 + " " + "y " * 100_000))
    assert "alert_failed" not in caplog.text


async def test_an_alert_holds_no_key(caplog: pytest.LogCaptureFixture) -> None:
    key = "A1b2C3d4" * 8
    await Alarm().raise_alert(replace(ALERT, reason=f"the plugin said {key}"))
    assert "the plugin said" in caplog.text
    assert key not in caplog.text


@pytest.mark.slow
async def test_an_anchor_that_does_not_sign_rings_once_in_an_outage_and_is_asked_seldom(make_herd: MakeHerd) -> None:
    signers, alarm = MemorySigners(), Rung()
    herd = await make_herd(clients=0)
    await rotator_for(herd, open_signer=signers.open, signers=signers.configured).rotate(
        anchor=AnchorChoice(signer="memory:kms")
    )
    signer = signers["memory:kms"]
    asks = rotator_for(herd, open_signer=signers.open, signers=signers.configured).find_anchor_problem
    watch = AnchorWatch(asks, clock=herd.clock)
    controller = make(herd, alarm=alarm, anchor_watch=watch)

    async def look_for(span: timedelta) -> int:
        before = signer.signed
        for _ in range(int(span / timedelta(minutes=1))):
            await controller.act_once()
            herd.clock.turn(timedelta(minutes=1))
        return signer.signed - before

    assert watch.is_reachable is None
    assert await look_for(timedelta(hours=2)) == 2
    assert watch.is_reachable is True
    signer.is_down = True
    await look_for(timedelta(hours=2))
    assert watch.is_reachable is False
    assert [(one.kind, "cannot sign" in one.reason) for one in alarm.alerts] == [(AlertKind.ANCHOR_UNREACHABLE, True)]
    signer.is_down = False
    assert await look_for(timedelta(minutes=6)) == 1
    signer.is_down = True
    await look_for(timedelta(hours=2))
    assert alarm.kinds == [AlertKind.ANCHOR_UNREACHABLE] * 2
    # The next anchor does not sign either, as seen from the controller's machine.
    signer.is_down = False
    await rotator_for(herd, open_signer=signers.open, signers=signers.configured).rotate(
        anchor=AnchorChoice(signer="memory:other")
    )
    signer.is_down = signers["memory:other"].is_down = True
    await look_for(timedelta(hours=2))
    assert alarm.kinds == [AlertKind.ANCHOR_UNREACHABLE] * 3


@pytest.mark.slow
async def test_while_the_primary_store_is_away_the_identity_is_read_from_another_region_and_nothing_is_begun() -> None:
    world = await World.start(lifetime=LIFETIME)
    herd, alarm, seen = world.herd, Rung(), []
    writer = world.regions.writer()
    controller = make(herd, alarm=alarm, provider=writer, on_look=lambda document, _: seen.append(document.generation))
    world.regions.eu.is_cut_off = True
    herd.clock.turn(DAY * 170)
    for _ in range(4):
        turn = await controller.act_once()
        assert turn.verdict is not None
        assert turn.verdict.is_due(herd.clock.now_ms())
        assert isinstance(turn.error, UnavailableError)
        assert not turn.has_acted
        herd.clock.turn(timedelta(minutes=10))
    assert seen == [1] * 4
    assert alarm.kinds == [AlertKind.KEY_NEAR_END, AlertKind.STORE_AWAY]
    world.regions.eu.is_cut_off = False
    done = await controller.act_once()
    assert done.error is None
    assert done.report is not None
    assert world.regions.eu.document().current.id == done.report.to_id


@pytest.mark.slow
async def test_an_earlier_identity_in_another_region_s_store_is_not_used_while_the_primary_store_is_away() -> None:
    world = await World.start(lifetime=LIFETIME)
    regions, herd, alarm, seen = world.regions, world.herd, Rung(), []
    controller = make(
        herd,
        alarm=alarm,
        provider=regions.writer(),
        on_look=lambda document, _: seen.append(document.current.id),
    )
    regions.us.is_stalled, world.allowed = True, ("us",)
    herd.clock.turn(DAY * 170)
    report = await world.rotator().rotate()
    assert (await controller.act_once()).error is None
    regions.eu.is_cut_off = True
    for _ in range(4):
        assert isinstance((await controller.act_once()).error, UnavailableError)
        herd.clock.turn(timedelta(minutes=10))
    assert seen == [report.to_id] * 5
    assert alarm.kinds == [AlertKind.STORE_AWAY]


@pytest.mark.slow
async def test_a_primary_store_that_returns_after_another_was_promoted_is_not_used() -> None:
    world = await World.start(lifetime=LIFETIME)
    regions, alarm, seen = world.regions, Rung(), []
    controller = make(
        world.herd,
        alarm=alarm,
        provider=regions.writer(),
        on_look=lambda document, _: seen.append(document.generation),
    )
    assert (await controller.act_once()).error is None
    regions.eu.is_cut_off = True
    await world.promote("us")
    for _ in range(2):
        await controller.act_once()
        world.herd.clock.turn(timedelta(minutes=10))
    assert seen == [1, 2, 2]
    regions.eu.is_cut_off = False
    for _ in range(3):
        turn = await controller.act_once()
        assert isinstance(turn.error, StoreLagError)
        world.herd.clock.turn(timedelta(minutes=10))
    assert seen == [1, 2, 2, 2, 2, 2]
    assert alarm.alerts[-1].code == "provider.lagging"
    assert "region eu: holds generation 1, earlier than the one in use" in alarm.alerts[-1].reason


@pytest.mark.slow
async def test_a_forged_identity_in_one_region_s_store_leads_no_controller() -> None:
    world = await World.start(lifetime=LIFETIME)
    regions, herd, alarm = world.regions, world.herd, Rung()
    seen: list[str] = []
    controller = make(
        herd,
        alarm=alarm,
        provider=regions.writer(),
        on_look=lambda document, _: seen.append(document.current.id),
    )
    assert (await controller.act_once()).error is None
    stranger = OwnedSession.generate(session_id="stranger", owner="root", now_ms=herd.clock.now_ms())
    forged = replace(create_document(stranger, herd.clock.now_ms()), generation=10**6)
    held = await regions.ap.read(SECRET)
    await regions.ap.write(SECRET, encode_document(forged), expected=held.version.id)
    for _ in range(20):
        herd.clock.turn(timedelta(minutes=1))
        assert (await controller.act_once()).error is None
    assert set(seen) == {regions.eu.document().current.id}
    assert alarm.alerts == []
