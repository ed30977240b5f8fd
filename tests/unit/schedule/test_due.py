"""When a rotation is due: examples for each rule, simulated years, and clocks that jump."""

from __future__ import annotations

import itertools
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from goatherd.config.options import option_keys
from goatherd.errors import ConfigurationError
from goatherd.identity import transitions
from goatherd.identity.document import HistoryEntry, IdentityDocument, Phase, RotationRecord
from goatherd.identity.session import OwnedSession
from goatherd.rotation.machine import Policy
from goatherd.schedule.due import (
    Act,
    DueDecision,
    Facts,
    Schedule,
    make_schedule,
    next_due,
    order_actions,
    preview,
    read_facts,
    read_zone,
)

BERLIN = ZoneInfo("Europe/Berlin")
DAY_MS = 86_400_000
HOUR_MS = 3_600_000
LIFETIME = Policy().lifetime // timedelta(milliseconds=1)


def ms(text: str, zone: ZoneInfo = BERLIN, fold: int = 0) -> int:
    return round(datetime.fromisoformat(text).replace(tzinfo=zone, fold=fold).timestamp() * 1000)


def utc(moment_ms: int | None) -> str:
    assert moment_ms is not None
    return datetime.fromtimestamp(moment_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M")


def schedule(**options: Any) -> Schedule:
    return make_schedule(Schedule(**{"controller": "a", "zone": BERLIN, **options}), ms("2026-11-24T12:00"))


def facts(issued: str = "2026-11-01T00:00", **changes: Any) -> Facts:
    """Return the facts of a document whose root began to sign at `issued`, by a rotation."""
    issued_ms = ms(issued)
    done = HistoryEntry(at=issued_ms, event="rotated", from_id="root-a", to_id="root-b")
    return replace(
        Facts(
            current_id="root-b",
            expires_ms=issued_ms + LIFETIME,
            updated_ms=issued_ms,
            history=(done,),
        ),
        **changes,
    )


def failed(facts: Facts, *times: str, event: str = "cancelled") -> Facts:
    entries = tuple(
        HistoryEntry(at=ms(time), event=event, from_id="root-b", to_id="root-c", reason="timeout") for time in times
    )
    return replace(facts, history=(*facts.history, *entries))


# --- by key age -------------------------------------------------------------------------------------------------------


def test_a_key_is_due_when_its_reserve_begins_and_not_before() -> None:
    due = ms("2026-11-01T00:00") + LIFETIME - 60 * DAY_MS
    verdict = next_due(facts(), schedule(), ms("2026-11-24T12:00"))
    assert (verdict.act, verdict.at_ms, verdict.is_due(due - 1)) == (Act.ROTATE, due, False)
    assert next_due(facts(), schedule(), due).is_due(due)
    assert not verdict.urgent


def test_the_reference_says_at_which_age_a_key_is_replaced_by_default() -> None:
    due_ms = next_due(facts(), schedule(), ms("2026-11-02T00:00")).at_ms
    assert due_ms is not None
    age = round((due_ms - ms("2026-11-01T00:00")) / DAY_MS)
    (key,) = [one for one in option_keys() if one.name == "controller.max_age"]
    assert f"a key of {Policy().lifetime.days} days at the age of {age} days" in key.help


def test_a_greatest_age_makes_it_due_earlier_but_never_later() -> None:
    by_age = next_due(facts(), schedule(max_age=timedelta(days=30)), ms("2026-11-24T12:00"))
    assert by_age.at_ms == ms("2026-11-01T00:00") + 30 * DAY_MS
    late = next_due(facts(), schedule(max_age=timedelta(days=179)), ms("2026-11-24T12:00"))
    assert late.at_ms == ms("2026-11-01T00:00") + LIFETIME - 60 * DAY_MS


@pytest.mark.parametrize("event", ["revoked", "anchor-dropped"])
def test_a_root_that_has_replaced_a_revoked_root_or_a_lost_anchor_is_new(event: str) -> None:
    now_ms = ms("2026-11-24T12:00")
    replaced = HistoryEntry(at=now_ms, event=event, from_id="root-b", to_id="root-c")
    new = facts("2026-01-01T00:00", current_id="root-c", expires_ms=now_ms + LIFETIME)
    verdict = next_due(replace(new, history=(*new.history, replaced)), schedule(max_age=timedelta(days=30)), now_ms)
    assert verdict.at_ms == now_ms + 30 * DAY_MS


def test_the_age_of_a_root_is_reckoned_from_its_expiration_where_the_history_does_not_reach_back() -> None:
    old = failed(facts(history=(), updated_ms=ms("2026-11-20T00:00")), "2026-11-19T00:00")
    verdict = next_due(old, schedule(max_age=timedelta(days=30)), ms("2026-11-21T00:00"))
    assert verdict.at_ms == ms("2026-11-01T00:00") + 30 * DAY_MS


def test_the_age_of_a_first_root_counts_from_the_birth_of_the_identity() -> None:
    born = facts(history=(), updated_ms=ms("2026-11-20T00:00"))
    verdict = next_due(born, schedule(max_age=timedelta(days=30)), ms("2026-11-21T00:00"))
    assert verdict.at_ms == ms("2026-11-20T00:00") + 30 * DAY_MS


@pytest.mark.parametrize("history", [(), (HistoryEntry(at=ms("2026-11-19T00:00"), event="cancelled"),)])
def test_the_age_of_a_first_root_is_no_less_where_new_roots_live_shorter_than_it(
    history: tuple[HistoryEntry, ...],
) -> None:
    born = facts(history=history, updated_ms=ms("2026-11-19T00:00"), expires_ms=ms("2026-11-19T00:00") + LIFETIME)
    shorter = Policy(lifetime=timedelta(days=60))
    by_age = next_due(born, schedule(max_age=timedelta(days=30), policy=shorter), ms("2026-11-24T12:00"))
    assert by_age.at_ms == ms("2026-11-19T00:00") + 30 * DAY_MS


def test_a_root_that_signs_again_after_a_roll_back_is_as_old_as_it_was() -> None:
    back = failed(facts(), "2026-11-20T00:00", event="rolled-back")
    verdict = next_due(back, schedule(max_age=timedelta(days=30)), ms("2026-11-24T12:00"))
    assert verdict.at_ms == ms("2026-11-01T00:00") + 30 * DAY_MS


# --- the minutes of a cron expression ---------------------------------------------------------------------------------


def test_what_is_due_waits_for_a_minute_that_the_cron_expression_allows() -> None:
    plan = schedule(max_age=timedelta(days=30), cron="* 2-3 * * SUN")
    now = ms("2026-12-01T12:00")
    verdict = next_due(facts(), plan, now)
    assert (verdict.at_ms, verdict.due_ms) == (ms("2026-12-06T02:00"), ms("2026-12-01T00:00"))
    assert not verdict.is_due(now)
    for time, is_due in (("2026-12-06T02:00", True), ("2026-12-06T03:59:59", True), ("2026-12-06T04:00", False)):
        assert next_due(facts(), plan, ms(time)).is_due(ms(time)) is is_due


def test_a_minute_before_the_root_is_due_begins_nothing() -> None:
    plan = schedule(max_age=timedelta(days=30), cron="* 2-3 * * *")
    assert next_due(facts(), plan, ms("2026-11-24T02:30")).at_ms == ms("2026-12-01T02:00")


def test_a_root_that_was_missed_in_all_its_minutes_is_still_due_in_the_next_one() -> None:
    plan = schedule(max_age=timedelta(days=6), cron="0 3 * * SUN")
    assert next_due(facts(), plan, ms("2026-11-24T12:00")).at_ms == ms("2026-11-29T03:00")


def test_the_end_of_a_key_overrides_the_cron_expression_and_raises_an_alert() -> None:
    near = ms("2026-11-01T00:00") + LIFETIME - 20 * DAY_MS
    plan = schedule(cron="0 3 1 11 *")
    early = next_due(facts(), plan, near - HOUR_MS)
    assert (early.urgent, early.is_due(near - HOUR_MS)) == (False, False)
    verdict = next_due(facts(), plan, near + 4 * HOUR_MS)
    assert (verdict.act, verdict.urgent, verdict.is_due(near + 4 * HOUR_MS)) == (Act.ROTATE, True, True)
    assert "too soon to wait for a minute of `0 3 1 11 *`" in verdict.why


def test_an_expired_root_is_told_and_not_rotated() -> None:
    after = ms("2026-11-01T00:00") + LIFETIME + 1
    verdict = next_due(facts(), schedule(), after)
    assert (verdict.act, verdict.at_ms, verdict.urgent) == (Act.NOTHING, None, True)
    assert not verdict.is_due(after)


@pytest.mark.parametrize(
    ("what", "cron", "after", "slots"),
    [
        ("at the end of the year", "30 23 31 12 *", "2026-12-31T00:00", ["2026-12-31T22:30", "2027-12-31T22:30"]),
        ("on leap days only", "0 12 29 2 *", "2026-01-01T00:00", ["2028-02-29T11:00", "2032-02-29T11:00"]),
        ("on the last day of the month", "0 0 L * *", "2028-02-20T00:00", ["2028-02-28T23:00", "2028-03-30T22:00"]),
        # The clocks leave out 02:30 on 2026-03-29: it runs at once after, that is at 03:00 CEST.
        ("where the clocks go forward", "30 2 * * *", "2026-03-28T12:00", ["2026-03-29T01:00", "2026-03-30T00:30"]),
        # 02:30 comes twice on 2026-10-25: it runs at the first.
        ("where the clocks go back", "30 2 * * *", "2026-10-24T12:00", ["2026-10-25T00:30", "2026-10-26T01:30"]),
        ("every hour where the clocks go back", "0 * * * *", "2026-10-25T01:30", ["2026-10-25T00:00", "2026-10-25T01:00"]),  # noqa: E501
    ],
    ids=lambda value: value if " " in str(value) and "*" not in str(value) else "",
)  # fmt: skip
def test_the_minutes_of_a_cron_expression(what: str, cron: str, after: str, slots: list[str]) -> None:
    plan = schedule(cron=cron, max_age=timedelta(hours=1))
    begins, now = [], ms(after)
    for _ in slots:
        known = facts(expires_ms=now + 3000 * DAY_MS, history=(), updated_ms=now - HOUR_MS)
        verdict = next_due(known, plan, now)
        begins.append(utc(verdict.at_ms))
        assert verdict.at_ms is not None
        now = verdict.at_ms + 60_000
    assert begins == slots


def test_from_within_the_hour_that_comes_again_no_minute_of_its_first_coming_is_named() -> None:
    now = ms("2026-10-25T02:10", fold=1)
    known = facts(expires_ms=now + LIFETIME, history=(), updated_ms=now - HOUR_MS)
    verdict = next_due(known, schedule(cron="45 2 * * *", max_age=timedelta(hours=1)), now)
    assert utc(verdict.at_ms) == "2026-10-26T01:45"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"cron": "0 3 * *"}, "five fields"),
        ({"cron": "0 0 3 * * *"}, "five fields"),
        ({"cron": "61 3 * * *"}, "Bad minute"),
        ({"cron": "0 3 30 2 *"}, "Bad day-of-month"),
        ({"max_age": timedelta(minutes=59)}, "controller.max_age must be at least 1h"),
        ({"max_age": timedelta(days=180)}, "less than rotation.lifetime"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_schedule_that_cannot_be_meant_is_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        schedule(**options)


@pytest.mark.parametrize("name", ["Europe/Atlantis", "", "../../etc/passwd", "/etc/localtime"])
def test_a_time_zone_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="is not a time zone"):
        read_zone(name)


# --- failures ---------------------------------------------------------------------------------------------------------


def test_failures_make_the_next_attempt_wait_twice_as_long_each_time_up_to_six_hours() -> None:
    plan, known = schedule(max_age=timedelta(hours=1)), facts("2026-11-23T12:00")
    for day, least in zip(range(20, 30), (5, 10, 20, 40, 80, 160, 320, 360, 360, 360), strict=True):
        time = f"2026-12-{day} 03:05"
        known = failed(known, time)
        verdict = next_due(known, plan, ms(time))
        assert verdict.at_ms is not None
        assert "cancelled: timeout" in verdict.why
        assert least <= (verdict.at_ms - ms(time)) / 60_000 <= least * 1.25


def test_the_pause_after_failures_ends_well_before_the_root_does() -> None:
    known = facts("2026-11-24T00:00", expires_ms=ms("2026-11-24T04:00"))
    known = failed(known, "2026-11-24T02:00", "2026-11-24T02:10", "2026-11-24T02:30", "2026-11-24T03:10")
    assert next_due(known, schedule(), ms("2026-11-24T03:11")).at_ms == ms("2026-11-24T03:22") + 30_000


def test_failures_before_the_last_success_are_forgotten() -> None:
    known = failed(facts("2026-11-22T00:00"), "2026-11-23T00:00", "2026-11-23T01:00")
    done = HistoryEntry(at=ms("2026-11-24T03:00"), event="rotated", from_id="root-b", to_id="root-d")
    known = replace(known, history=(*known.history, done))
    known = replace(known, current_id="root-d")
    plan = schedule(max_age=timedelta(hours=1))
    assert next_due(known, plan, ms("2026-11-24T03:30")).at_ms == ms("2026-11-24T04:00")


# --- a rotation under way ---------------------------------------------------------------------------------------------


def underway(since: str, started_by: str = "bob") -> Facts:
    record = RotationRecord(
        id="rotation-1",
        phase=Phase.PUBLISHED,
        from_id="root-a",
        to_id="root-b",
        started_at=ms(since),
        started_by=started_by,
        phase_at=ms(since),
        stable_version="1",
    )
    return facts(underway=record)


def test_the_rotation_of_another_process_is_left_alone_until_it_is_stale() -> None:
    plan = schedule(cron="* 2-3 * * SUN")
    verdict = next_due(underway("2026-11-24T12:00"), plan, ms("2026-11-24T12:05"))
    assert (verdict.act, verdict.at_ms) == (Act.RESUME, ms("2026-11-24T12:15"))
    assert "by bob" in verdict.why
    late = ms("2026-11-24T12:15")
    assert next_due(underway("2026-11-24T12:00"), plan, late).is_due(late), "in any minute"


def test_a_rotation_of_our_own_is_carried_on_at_once() -> None:
    now = ms("2026-11-24T12:01")
    verdict = next_due(underway("2026-11-24T12:00", "controller a"), schedule(started_by="controller a"), now)
    assert (verdict.act, verdict.is_due(now)) == (Act.RESUME, True)


def test_a_rotation_that_waits_for_its_servers_is_not_stale() -> None:
    assert schedule().stale == timedelta(minutes=15)
    patient = Policy(adoption=timedelta(hours=1), lifetime=timedelta(days=60))
    assert schedule(policy=patient).stale > timedelta(hours=2)


# --- retiring ---------------------------------------------------------------------------------------------------------


def test_old_private_keys_are_due_to_be_destroyed_after_the_grace_period() -> None:
    known = facts(unretired=(("root-a", ms("2026-11-01T00:00")),))
    due = ms("2026-11-01T00:00") + 30 * DAY_MS
    verdict = next_due(known, schedule(), ms("2026-11-24T12:00"))
    assert (verdict.act, verdict.at_ms) == (Act.RETIRE, due)
    assert next_due(known, schedule(), due).is_due(due)
    assert next_due(known, schedule(retires=False), due).act is Act.ROTATE


def test_a_rotation_that_is_due_comes_before_what_is_to_be_retired() -> None:
    known = facts(unretired=(("root-a", ms("2026-11-01T00:00")),))
    now = ms("2026-11-01T00:00") + LIFETIME - 59 * DAY_MS
    assert next_due(known, schedule(), now).act is Act.ROTATE
    assert [one.act for one in order_actions(known, schedule(), now)] == [Act.ROTATE, Act.RETIRE]


def test_the_action_that_is_due_first_comes_first_and_a_rotation_in_progress_is_the_only_one() -> None:
    unretired = (("root-a", ms("2026-11-01T00:00")),)
    due = ms("2026-11-01T00:00") + 30 * DAY_MS

    def order(known: Facts, now: int, **options: Any) -> list[Act]:
        return [one.act for one in order_actions(known, schedule(**options), now)]

    known = facts(unretired=unretired)
    assert order(known, due - DAY_MS) == [Act.RETIRE, Act.ROTATE]
    assert order(known, due - DAY_MS, max_age=timedelta(days=30)) == [Act.ROTATE, Act.RETIRE]
    assert order(known, due, retires=False) == [Act.ROTATE]
    expired = replace(known, expires_ms=due - 2 * DAY_MS)
    assert order(expired, due - DAY_MS) == [Act.NOTHING, Act.RETIRE]
    assert order(expired, due) == [Act.RETIRE, Act.NOTHING]
    assert order(replace(underway("2026-11-24T12:00"), unretired=unretired), due) == [Act.RESUME]


# --- documents --------------------------------------------------------------------------------------------------------


def test_facts_are_read_from_a_document() -> None:
    now = ms("2026-11-24T12:00")

    def seen(document: IdentityDocument) -> Facts:
        return read_facts(document, now, written_ms=now, tolerance=timedelta(minutes=5))

    first, second = (
        OwnedSession.generate(session_id=name, owner="root", now_ms=now, lifetime=timedelta(days=180))
        for name in ("root-a", "root-b")
    )
    document = transitions.create_document(first, now)
    assert seen(document) == Facts(current_id="root-a", expires_ms=now + LIFETIME, updated_ms=now, history=())
    document = transitions.prepare_rotation(
        document, second, now_ms=now + 1, rotation_id="rotation-1", started_by="bob", stable_version="1"
    )
    record = seen(document).underway
    assert record is not None
    assert (record.id, record.phase, record.started_by, record.phase_at) == (
        "rotation-1",
        Phase.PREPARED,
        "bob",
        now + 1,
    )
    document = transitions.activate_rotation(transitions.with_phase(document, Phase.PUBLISHED, now + 2), now + 3)
    document = transitions.finalize_rotation(transitions.with_phase(document, Phase.VERIFIED, now + 4), now + 5)
    found = seen(document)
    assert (found.current_id, found.underway, found.unretired) == ("root-b", None, (("root-a", now + 5),))
    assert [entry.event for entry in found.history] == ["rotated"]
    assert seen(transitions.record_retirement(document, "root-a", now + 6)).unretired == ()
    forgotten = replace(document, history=(), last_updated=now + 9)
    assert seen(forgotten).unretired == (("root-a", now + 3),)  # since signing moved, whatever was written since


# --- lives ------------------------------------------------------------------------------------------------------------


def live(plan: Schedule, days: int, *, fails: frozenset[int] = frozenset()) -> tuple[list[int], list[int]]:
    """Follow a schedule, sleeping until the announced time; return when each success and failure was."""
    now = ms("2026-01-01T00:00")
    end = now + days * DAY_MS
    known = facts(history=(), updated_ms=now, expires_ms=now + LIFETIME)
    successes: list[int] = []
    failures: list[int] = []
    count = itertools.count()
    while now < end:
        verdict = next_due(known, plan, now)
        if verdict.is_due(now) and verdict.act is Act.ROTATE:
            attempt = next(count)
            event = "cancelled" if attempt in fails else "rotated"
            (failures if attempt in fails else successes).append(now)
            to_id = f"root-{attempt}"
            entry = HistoryEntry(at=now, event=event, from_id=known.current_id, to_id=to_id, reason="x")
            known = replace(known, history=(*known.history, entry)[-16:])
            if event == "rotated":
                known = replace(known, current_id=to_id, expires_ms=now + LIFETIME)
            now += 1
        else:
            now = end if verdict.at_ms is None else max(verdict.at_ms, now + 1)
    return successes, failures


def test_a_year_of_weekly_rotations_has_one_on_every_sunday_at_three() -> None:
    successes, _ = live(schedule(max_age=timedelta(days=6), cron="0 3 * * SUN"), 366)
    local = [datetime.fromtimestamp(moment / 1000, BERLIN) for moment in successes]
    assert len(local) == 51
    assert {(moment.weekday(), moment.hour, moment.minute) for moment in local} == {(6, 3, 0)}
    assert all(later.date() - earlier.date() == timedelta(days=7) for earlier, later in itertools.pairwise(local))


@pytest.mark.slow
@settings(max_examples=60)
@given(
    cron=st.sampled_from([None, "* 2-3 * * *", "* 22-23,0-1 * * SAT,SUN", "0 0 1 * *"]),
    max_age=st.sampled_from([None, timedelta(days=1), timedelta(days=40)]),
    fails=st.frozensets(st.integers(0, 12), max_size=9),
    name=st.sampled_from("abc"),
)
def test_whatever_the_schedule_no_key_comes_near_its_end_while_rotations_succeed(
    cron: str | None, max_age: timedelta | None, fails: frozenset[int], name: str
) -> None:
    plan = schedule(cron=cron, max_age=max_age, controller=name)
    successes, failures = live(plan, 370, fails=fails)
    births = [ms("2026-01-01T00:00"), *successes]
    # 20 days are the reserve; nine failures in a row take two days and a half at most.
    assert all(later - earlier <= LIFETIME - 17 * DAY_MS for earlier, later in itertools.pairwise(births))
    assert successes
    for earlier, later in itertools.pairwise(failures):
        assert later - earlier >= 5 * 60_000


@given(st.integers(0, 3 * 365 * 24 * 60), st.sampled_from(["30 2 * * *", "0 3 * * SUN", "15 1,2,3 * * *"]))
@pytest.mark.slow
def test_what_is_announced_is_what_is_done_when_the_time_has_come(minutes: int, cron: str) -> None:
    now = ms("2026-01-01T00:00") + minutes * 60_000
    known = facts(history=(HistoryEntry(at=now, event="rotated", to_id="root-b"),), expires_ms=now + LIFETIME)
    plan = schedule(cron=cron, max_age=timedelta(hours=1))
    announced = next_due(known, plan, now)
    assert announced.at_ms is not None
    assert announced.at_ms > now
    assert not next_due(known, plan, announced.at_ms - 1).is_due(announced.at_ms - 1)
    assert next_due(known, plan, announced.at_ms).is_due(announced.at_ms)


def test_a_preview_names_the_next_rotations() -> None:
    begins = preview(facts(), schedule(cron="0 3 * * SUN", max_age=timedelta(days=6)), ms("2026-11-22T02:30"), count=3)
    assert [utc(begin) for begin in begins] == ["2026-11-22T02:00", "2026-11-29T02:00", "2026-12-06T02:00"]
    assert preview(underway("2026-11-24T12:00"), schedule(), ms("2026-11-24T12:00")) == []


def test_a_verdict_of_nothing_is_never_due() -> None:
    assert not DueDecision(act=Act.NOTHING, at_ms=0, why="").is_due(1)
