"""A wrong clock removes no deadline and no grace period: it is detected in time, or its records are limited."""

from __future__ import annotations

import time
from datetime import timedelta
from email.utils import formatdate
from typing import Any

import pytest

from goatherd.clock import RemoteClock, SteadyClock, read_http_date
from goatherd.errors import NotAdoptedError, ObstructedError, WrongClockError
from goatherd.identity import transitions
from goatherd.identity.document import Phase, decode_document, encode_document
from goatherd.identity.recorded_times import limit_times, recorded_ahead_ms
from goatherd.identity.session import OwnedSession
from goatherd.providers.values import VersionState
from goatherd.revocation.revoker import Revoker
from goatherd.rotation.clocks import Clocks
from goatherd.rotation.machine import Outcome
from goatherd.rotation.obstacles import check_own_clock, find_clock_obstacle
from goatherd.rotation.rotator import Rotator
from goatherd.schedule.due import Act, Schedule, make_schedule, next_due, read_facts
from tests.fakes.herd import FakeClock, Herd
from tests.unit.rotation.conftest import POLICY, MakeHerd, check_steady, document_of, rotator_for

DAY = timedelta(days=1)
DAY_MS = 86_400_000
NOW = 1_790_000_000_000
TOLERANCE = POLICY.clock_tolerance


class SkewedClock:
    """A machine's clock that is wrong."""

    def __init__(self, clock: FakeClock, skew: timedelta) -> None:
        self.skew = skew
        self._clock = clock

    def now_ms(self) -> int:
        return self._clock.now_ms() + self.skew // timedelta(milliseconds=1)

    def monotonic(self) -> float:
        return self._clock.monotonic()

    async def sleep(self, duration: timedelta) -> None:
        await self._clock.sleep(duration)


def rotator_on(herd: Herd, skew: timedelta, **options: Any) -> Rotator:
    """Return a rotator on a machine whose clock is wrong by `skew`."""
    return Rotator(
        herd.provider,
        herd.secret_id,
        options.pop("nodes", herd.nodes),
        policy=POLICY,
        clock=SkewedClock(herd.clock, skew),
    )


async def rotate_wrongly(herd: Herd, skew: timedelta, *, to_phase: Phase | None = None) -> None:
    """Rotate while all clocks that can be compared are wrong by `skew`, including the operator's."""
    for node in herd.nodes:
        node.faults.clock_ahead = skew
    await rotator_on(herd, skew).rotate(to_phase=to_phase)
    for node in herd.nodes:
        node.faults.clock_ahead = timedelta(0)


async def enabled(herd: Herd) -> int:
    return sum(one.state is VersionState.ENABLED for one in await herd.provider.versions(herd.secret_id))


# --- whose clock is wrong ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("store", "servers", "is_wrong", "is_confirmed"),
    [
        (None, [], False, False),
        (0, [], False, True),
        (70 * DAY_MS, [], True, False),
        (-70 * DAY_MS, [0, 0, 0], True, False),  # the store is trusted
        (0, [70 * DAY_MS, 70 * DAY_MS, 70 * DAY_MS], False, True),
        (None, [0], False, True),
        (None, [70 * DAY_MS], True, False),
        (None, [0, 70 * DAY_MS], False, True),  # one that lies stops no rotation
        (None, [0, 0, -70 * DAY_MS], False, True),
        (None, [-70 * DAY_MS, -70 * DAY_MS, 0], True, False),
        (None, [299_999, -299_999], False, True),
        (None, [None, None], False, False),
        (None, [None, None, -70 * DAY_MS], True, False),
    ],
)
def test_the_store_decides_whose_clock_is_wrong_else_most_of_the_clocks(
    store: int | None, servers: list[int | None], is_wrong: bool, is_confirmed: bool
) -> None:
    known = {f"http://node-{at}": ahead_ms for at, ahead_ms in enumerate(servers)}
    clocks = Clocks(store_ahead_ms=store, servers_ahead_ms=known, tolerance=TOLERANCE)
    assert (clocks.is_ours_wrong, clocks.is_ours_confirmed) == (is_wrong, is_confirmed)
    assert (find_clock_obstacle(clocks) is not None) is is_wrong


def test_the_error_names_the_difference_and_what_to_do() -> None:
    with pytest.raises(WrongClockError) as caught:
        check_own_clock(-31 * DAY_MS, {"http://node-0": -31 * DAY_MS, "http://node-1": None}, TOLERANCE)
    assert "the clock of the store is 31.0 days behind this machine's" in str(caught.value)
    assert "the clock of http://node-0 is 31.0 days behind this machine's" in str(caught.value)
    assert "NTP" in caught.value.hint
    assert "rotation.clock_tolerance" in caught.value.hint


def test_a_date_is_compared_with_what_the_answer_explains() -> None:
    clock = FakeClock(NOW + 400)
    remote = RemoteClock(clock)
    assert remote.ahead_ms(clock.now_ms()) is None
    began = clock.monotonic()
    clock.turn(timedelta(seconds=2))
    for header in (None, "", "yesterday", "x" * 100_000, "Tue, 99 Nov 2026 99:99:99 GMT"):
        remote.note_date(header, began=began)
        assert remote.ahead_ms(clock.now_ms()) is None
    remote.note_date(formatdate(NOW / 1000, usegmt=True), began=began)
    assert remote.ahead_ms(clock.now_ms()) == 0
    clock.turn(timedelta(hours=1))
    assert remote.ahead_ms(clock.now_ms()) == 0, "both have gone on"
    assert remote.ahead_ms(clock.now_ms() - DAY_MS) == DAY_MS - 2400
    assert remote.ahead_ms(clock.now_ms() + DAY_MS) == -DAY_MS + 3000 - 2400


def test_a_steady_clock_is_not_set() -> None:
    clock = FakeClock(NOW)
    skewed = SkewedClock(clock, timedelta(0))
    steady = SteadyClock(skewed)
    skewed.skew = 70 * DAY
    clock.turn(timedelta(seconds=3))
    assert steady.now_ms() == NOW + 3000


@pytest.mark.parametrize(
    "header",
    [
        "Tue, 24 Nov 2026 12:00:00 GMT",
        "Tuesday, 24-Nov-26 12:00:00 GMT",
        "Tue Nov 24 12:00:00 2026",
        "Tue, 24 Nov 2026 14:00:00 +0200",
    ],
)
def test_a_date_is_read_in_each_of_its_forms_whatever_the_zone_of_this_machine(
    header: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "EST-5")
    time.tzset()
    try:
        assert read_http_date(header) == 1_795_521_600_000
        assert read_http_date(f"{header:64}") == 1_795_521_600_000
        assert read_http_date(f"{header:65}") is None
    finally:
        monkeypatch.undo()
        time.tzset()


# --- recorded times ---------------------------------------------------------------------------------------------------


def root(name: str) -> OwnedSession:
    return OwnedSession.generate(session_id=name, owner="root", now_ms=NOW, lifetime=180 * DAY)


def test_a_time_in_the_future_becomes_the_latest_that_it_can_be() -> None:
    ahead = NOW + 70 * DAY_MS
    document = transitions.create_document(root("root-a"), NOW)
    document = transitions.prepare_rotation(
        document, root("root-b"), now_ms=ahead, rotation_id="r", started_by="laptop", stable_version="1"
    )
    document = transitions.activate_rotation(transitions.with_phase(document, Phase.PUBLISHED, ahead), ahead)
    assert recorded_ahead_ms(document, NOW + 5000) == ahead - NOW - 5000
    by_the_store = limit_times(document, NOW + 5000, written_ms=NOW + 2000)
    assert by_the_store.rotation is not None
    assert (by_the_store.last_updated, by_the_store.rotated_at) == (NOW + 2000, NOW + 2000)
    assert (by_the_store.rotation.phase_at, by_the_store.rotation.started_at) == (NOW + 2000, NOW + 2000)
    by_nobody = limit_times(document, NOW + 5000, written_ms=ahead)
    assert by_nobody.rotated_at == NOW + 5000
    ended = transitions.finalize_rotation(transitions.with_phase(document, Phase.VERIFIED, ahead), ahead)
    assert [one.at for one in limit_times(ended, NOW, written_ms=ahead).history] == [NOW]
    again = decode_document(encode_document(limit_times(ended, NOW, written_ms=ahead)))
    assert recorded_ahead_ms(again, NOW) == 0, "what is written is limited"


def test_a_time_that_is_not_in_the_future_stays_as_it_is() -> None:
    document = transitions.create_document(root("root-a"), NOW + 60_000)
    assert limit_times(document, NOW, written_ms=NOW - DAY_MS, tolerance=TOLERANCE) is document
    assert limit_times(document, NOW + 60_000, written_ms=0) is document


# --- a rotation -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("phase", [Phase.PREPARED, Phase.PUBLISHED, Phase.ACTIVATED])
async def test_a_dead_laptop_70_days_ahead_does_not_prolong_the_wait_for_an_absent_server(
    make_herd: MakeHerd, phase: Phase
) -> None:
    herd = await make_herd(nodes=3, clients=0)
    await rotate_wrongly(herd, 70 * DAY, to_phase=phase)
    herd.nodes[2].faults.cut_off = True
    began = herd.clock.now_ms()
    with pytest.raises(NotAdoptedError):
        await rotator_for(herd).resume()
    assert herd.clock.now_ms() - began <= (POLICY.adoption + POLICY.settle + DAY / 1440) // timedelta(milliseconds=1)
    herd.nodes[2].faults.cut_off = False
    document = await check_steady(herd)
    assert recorded_ahead_ms(document, herd.clock.now_ms()) == 0


async def test_a_deadline_ends_where_no_clock_tells_which_one_is_right(make_herd: MakeHerd) -> None:
    herd = await make_herd(nodes=1, clients=0)
    await rotate_wrongly(herd, 70 * DAY, to_phase=Phase.PUBLISHED)
    herd.nodes[0].faults.cut_off = True
    began = herd.clock.now_ms()
    with pytest.raises(NotAdoptedError):
        await rotator_for(herd).resume()
    assert herd.clock.now_ms() - began <= 2 * POLICY.adoption // timedelta(milliseconds=1)


@pytest.mark.parametrize("days", [70, -70])
@pytest.mark.parametrize("goal", ["rotate", "restore", "resume", "abandon", "retire"])
async def test_nothing_is_written_with_a_clock_that_is_days_wrong(make_herd: MakeHerd, goal: str, days: int) -> None:
    herd = await make_herd(nodes=3, clients=0)
    await rotator_for(herd).rotate()
    if goal in ("resume", "abandon"):
        await rotator_for(herd).rotate(to_phase=Phase.PUBLISHED)
    before, versions, began = await document_of(herd), await enabled(herd), herd.clock.now_ms()
    rotator = rotator_on(herd, days * DAY)
    if goal == "retire" and days < 0:
        assert (await rotator.retire()).outcome is Outcome.NOTHING
    else:
        with pytest.raises(WrongClockError, match=r"70\.0 days"):
            await getattr(rotator, goal)()
    assert await document_of(herd) == before
    assert await enabled(herd) == versions
    assert herd.clock.now_ms() == began, "at once"


async def test_retire_with_a_clock_31_days_ahead_does_not_destroy_the_way_back(make_herd: MakeHerd) -> None:
    herd = await make_herd(nodes=2, clients=0)
    await rotator_for(herd).rotate()
    herd.clock.turn(timedelta(seconds=1))
    with pytest.raises(WrongClockError, match=r"31\.0 days behind this machine's"):
        await rotator_on(herd, 31 * DAY).retire()
    assert (await rotator_for(herd).restore()).outcome is Outcome.RESTORED


async def test_one_server_that_lies_about_the_time_stops_no_retirement(make_herd: MakeHerd) -> None:
    herd = await make_herd(nodes=3, clients=0)
    await rotator_for(herd).rotate()
    herd.clock.turn(POLICY.grace + DAY)
    herd.nodes[1].faults.clock_ahead = 70 * DAY
    assert (await rotator_for(herd).retire()).destroyed


async def test_the_clock_of_the_store_counts_where_it_tells_the_time(make_herd: MakeHerd) -> None:
    herd = await make_herd(nodes=1, clients=0)
    await rotator_for(herd).rotate()
    herd.clock.turn(POLICY.grace + DAY)
    remote = herd.provider.store_clock
    remote.note_date(formatdate(herd.clock.now_ms() / 1000 - 31 * 86_400, usegmt=True), began=herd.clock.monotonic())
    with pytest.raises(WrongClockError, match="the clock of the store is"):
        await rotator_for(herd).retire()
    remote.note_date(formatdate(herd.clock.now_ms() / 1000, usegmt=True), began=herd.clock.monotonic())
    herd.nodes[0].faults.clock_ahead = -31 * DAY
    assert (await rotator_for(herd).retire()).destroyed, "the store is trusted, and no server outvotes it"


async def test_a_grace_period_that_was_recorded_in_the_future_begins_now_and_ends(make_herd: MakeHerd) -> None:
    herd = await make_herd(nodes=2, clients=0)
    await rotate_wrongly(herd, 70 * DAY)
    kept = await enabled(herd)
    assert (await rotator_for(herd).retire()).destroyed == ()
    assert recorded_ahead_ms(await document_of(herd), herd.clock.now_ms()) == 0, "corrected"
    assert await enabled(herd) == kept + 1
    herd.clock.turn(POLICY.grace - timedelta(hours=1))
    assert (await rotator_for(herd).retire()).destroyed == ()
    herd.clock.turn(timedelta(hours=2))
    assert (await rotator_for(herd).retire()).destroyed
    await check_steady(herd)


@pytest.mark.slow
async def test_a_rotation_begins_on_what_a_wrong_clock_wrote_if_another_clock_shows_ours_right(
    make_herd: MakeHerd,
) -> None:
    herd = await make_herd(nodes=2, clients=0)
    await rotate_wrongly(herd, 70 * DAY)
    plan = await rotator_for(herd).plan()
    assert plan.obstacles == ()
    assert any("contains timestamps up to 70.0 days in the future" in remark for remark in plan.remarks)
    with pytest.raises(ObstructedError, match="no server or store tells which clock is right"):
        await rotator_for(herd, nodes=[], unsafe_without_nodes=True).rotate()
    assert (await rotator_for(herd).rotate()).outcome is Outcome.ROTATED
    assert recorded_ahead_ms(await check_steady(herd), herd.clock.now_ms()) == 0


async def test_a_clock_that_is_set_while_a_rotation_waits_moves_no_deadline(make_herd: MakeHerd) -> None:
    herd = await make_herd(nodes=2, clients=0)
    await rotator_for(herd).rotate(to_phase=Phase.PREPARED)
    herd.nodes[1].faults.store_lost = True
    clock = SkewedClock(herd.clock, timedelta(0))
    rotator = Rotator(herd.provider, herd.secret_id, herd.nodes, policy=POLICY, clock=clock)
    began, tick = herd.clock.now_ms(), herd.clock.on_tick

    async def set_back() -> None:
        if herd.clock.now_ms() - began > 5000:
            clock.skew = -70 * DAY
        assert tick is not None
        await tick()

    herd.clock.on_tick = set_back
    with pytest.raises(NotAdoptedError):
        await rotator.resume()
    waited = herd.clock.now_ms() - began
    assert waited <= (2 * POLICY.adoption + POLICY.settle) // timedelta(milliseconds=1)


async def test_a_revocation_is_not_written_with_a_wrong_clock(make_herd: MakeHerd) -> None:
    herd = await make_herd(nodes=3, clients=0)
    for node in herd.nodes:
        await node.identity()
    before = await document_of(herd)
    revoker = Revoker(
        herd.provider,
        herd.secret_id,
        herd.nodes,  # type: ignore[arg-type] - it stops before it needs more of them
        policy=POLICY,
        clock=SkewedClock(herd.clock, 70 * DAY),
    )
    with pytest.raises(WrongClockError, match=r"70\.0 days behind"):
        await revoker.revoke("root-a", reason="stolen")
    assert await document_of(herd) == before


# --- the controller ---------------------------------------------------------------------------------------------------


async def test_a_controller_resumes_what_a_laptop_70_days_ahead_has_left(make_herd: MakeHerd) -> None:
    herd = await make_herd(nodes=1, clients=0)
    await rotate_wrongly(herd, 70 * DAY, to_phase=Phase.PUBLISHED)
    document, now_ms = await document_of(herd), herd.clock.now_ms()
    schedule = make_schedule(Schedule(controller="c"), now_ms)
    ahead = next_due(
        read_facts(document, now_ms, written_ms=now_ms + 70 * DAY_MS, tolerance=TOLERANCE), schedule, now_ms
    )
    assert ahead.act is Act.RESUME
    assert ahead.is_due(now_ms)
    assert "since a time in the future" in ahead.why
    stamped = next_due(read_facts(document, now_ms, written_ms=now_ms - 1000, tolerance=TOLERANCE), schedule, now_ms)
    assert stamped.at_ms == now_ms - 1000 + schedule.stale // timedelta(milliseconds=1), "by the store's clock"


async def test_a_controller_has_times_in_the_future_corrected(make_herd: MakeHerd) -> None:
    herd = await make_herd(nodes=1, clients=0)
    await rotate_wrongly(herd, 70 * DAY)
    document, now_ms = await document_of(herd), herd.clock.now_ms()
    schedule = make_schedule(Schedule(controller="c"), now_ms)
    verdict = next_due(read_facts(document, now_ms, written_ms=now_ms, tolerance=TOLERANCE), schedule, now_ms)
    assert verdict.act is Act.RETIRE
    assert verdict.is_due(now_ms)
    await rotator_for(herd).retire()
    document = await document_of(herd)
    verdict = next_due(read_facts(document, now_ms, written_ms=now_ms, tolerance=TOLERANCE), schedule, now_ms)
    assert not verdict.is_due(now_ms)
