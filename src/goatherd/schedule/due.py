"""Decide which action a controller performs next, and when: `next_due`, from the identity document and the schedule.

A root is due when it has reached an age; a rotation begins in the next minute that a cron expression allows, unless
rotations have just failed. The function reads no store, does not wait and keeps no state (`controller` has the loop).

Rules:
1. Apart from the schedule and the time, a decision depends only on the identity document: when the root began to sign,
   which rotations have failed since (its history), and which process is rotating. So all controllers, including one
   that has just started, decide alike.
2. Shortly before the root expires, it is replaced in any minute.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from goatherd.errors import ConfigurationError
from goatherd.identity.document import HistoryEntry, IdentityDocument, RotationRecord
from goatherd.identity.key_age import REPLACE_EXPIRED, roots_with_keys
from goatherd.identity.recorded_times import limit_times
from goatherd.identity.transitions import BEGINNINGS, FAILURES, RESTORED, SUCCESSES
from goatherd.rotation.machine import Policy, rotation_due_ms
from goatherd.rotation.policy import check_lifetime
from goatherd.times import milliseconds

SHORTEST: Final = timedelta(hours=1)
"""The lowest maximum age of a key, because each rotation leaves a public key on the servers permanently."""
URGENT_FRACTION: Final = 0.25
URGENT_CAP: Final = timedelta(days=20)
"""A root with less than this fraction of its lifetime left, and at most this time, is replaced even outside of the
schedule. COMPAT: a GoatDB server extends a root with less than 15 days left, and then exposes its private key."""
BACKOFF: Final = timedelta(minutes=5)
"""Pause after a failed rotation; it doubles with each further failure, up to `BACKOFF_MAX` (`limit_pause_ms`)."""
BACKOFF_MAX: Final = timedelta(hours=6)
_STALE: Final = timedelta(minutes=15)
_MINUTE_MS: Final = 60_000


class Act(StrEnum):
    """The kind of action that a controller performs next."""

    ROTATE = "rotate"
    RESUME = "resume"
    RETIRE = "retire"
    NOTHING = "nothing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """The ids and times in the identity document that matter for a schedule. Times are milliseconds since 1970.

    Attributes:
        underway: The rotation in progress; None if there is none.
        unretired: Previous roots whose private keys the store may still hold, each with the time at which it stopped
            signing; also roots that are no longer in the document, if a search of the store has found their keys.
        is_ahead: Whether the document records a time in the future, written by a machine with a wrong clock.
        has_anchor: Whether an anchor (a key in an HSM or a KMS) endorses the roots. Such roots live shorter, and are
            renewed when a smaller part of their lifetime is left.
        is_direct: Whether the anchor itself is the current root (direct mode). Only an operator can replace such a
            root, because the operator must name another key.
    """

    current_id: str
    expires_ms: int
    updated_ms: int
    history: tuple[HistoryEntry, ...] = ()
    underway: RotationRecord | None = None
    unretired: tuple[tuple[str, int], ...] = ()
    is_ahead: bool = False
    has_anchor: bool = False
    is_direct: bool = False


def read_facts(
    document: IdentityDocument,
    now_ms: int,
    *,
    written_ms: int,
    tolerance: timedelta,
    unlisted_keys: tuple[tuple[str, int], ...] = (),
) -> Facts:
    """Return the facts in an identity document that matter for a rotation schedule.

    Times in the future are replaced by the latest possible time (`goatherd.identity.recorded_times`). If even the store
    reports that the document was written in the future, a rotation in progress counts as one that no process drives;
    otherwise a controller would wait for that time before it resumes the rotation.

    Args:
        document: The identity document as it was read.
        now_ms: Milliseconds since 1970.
        written_ms: When the document was written, as the store reports it.
        tolerance: A time is in the future if it is more than this ahead of `now_ms`.
        unlisted_keys: The roots that are no longer in the document, but whose private keys the store still holds, from
            `goatherd.key_inventory.find_unlisted_keys`.
    """
    limited = limit_times(document, now_ms, written_ms=written_ms, tolerance=tolerance)
    is_ahead, document = limited is not document, limited
    record = document.rotation
    if record is not None and is_ahead and written_ms > now_ms + milliseconds(tolerance):
        record = replace(record, phase_at=0)
    return Facts(
        is_ahead=is_ahead,
        has_anchor=document.anchor is not None,
        is_direct=document.is_direct,
        current_id=document.current.id,
        expires_ms=document.current.session.expiration_ms,
        updated_ms=document.last_updated or 0,
        history=document.history,
        underway=record,
        unretired=(*roots_with_keys(document), *unlisted_keys),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """When to rotate: the age at which a root is due, and the minutes in which a rotation may begin.

    Create it with `make_schedule`, which checks it.

    Attributes:
        controller: The name of the controller; its hash makes the pauses of several controllers differ.
        started_by: The name that this controller records in the rotations that it begins; it resumes a rotation with
            this name at once. The name must differ for each process, or two controllers on one machine would resume
            each other's rotations. So a restarted controller resumes its earlier rotation only once that is stale.
        max_age: The age at which a root is due; None for the time at which the rotation policy makes it due.
        cron: Cron expression of five fields, in time zone `zone`: the minutes in which a rotation may begin; None for
            any minute.
        retires: Whether old private keys are destroyed after `policy.grace`.
    """

    controller: str
    started_by: str = ""
    max_age: timedelta | None = None
    cron: str | None = None
    zone: ZoneInfo = field(default_factory=lambda: ZoneInfo("UTC"))
    retires: bool = True
    policy: Policy = field(default_factory=Policy)

    @property
    def stale(self) -> timedelta:
        """How long a rotation may stay in one phase until it counts as driven by no process, and is resumed."""
        return max(_STALE, 2 * (self.policy.adoption + self.policy.health_soak))


@dataclass(frozen=True, slots=True, kw_only=True)
class DueDecision:
    """The action that a controller performs next, with its time and reason. Times are milliseconds since 1970.

    Attributes:
        act: The kind of action.
        at_ms: The time from which the action is due; it is due now if that time has passed. None if nothing will be due
            automatically.
        why: The reason for the action, human-readable.
        due_ms: The time by the key's age because of which the action is due; the cron expression or a pause after
            failures may delay the action to `at_ms`. None if there is no such time.
        urgent: Whether the root expires soon or has expired, so that the operator must be alerted.
    """

    act: Act
    at_ms: int | None
    why: str
    due_ms: int | None = None
    urgent: bool = False

    def is_due(self, now_ms: int) -> bool:
        """Return whether there is an action to perform, and its time has come at `now_ms`."""
        return self.act is not Act.NOTHING and self.at_ms is not None and self.at_ms <= now_ms


def make_schedule(schedule: Schedule, now_ms: int) -> Schedule:
    """Check a rotation schedule and return it unchanged.

    Raises:
        ConfigurationError: The cron expression is invalid or matches no time in the future, or the maximum key age is
            below an hour or beyond the lifetime.
        LifetimeError: The lifetime of new roots would be too short.
    """
    check_lifetime(schedule.policy)
    if schedule.cron is not None:
        check_cron(schedule.cron)
        if _next_minute(schedule, now_ms) is None:
            raise ConfigurationError(
                f"controller.cron: {schedule.cron!r} matches no time in the future", hint=_CRON_HINT
            )
    if schedule.max_age is not None and not SHORTEST <= schedule.max_age < schedule.policy.lifetime:
        raise ConfigurationError(
            "controller.max_age must be at least 1h and less than rotation.lifetime", hint="Change one of the two."
        )
    return schedule


def read_zone(name: str) -> ZoneInfo:
    """Return a time zone by its name.

    Raises:
        ConfigurationError: This machine knows no such time zone.
    """
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ConfigurationError(
            f"{name!r} is not a time zone that this machine knows",
            hint=(
                "Give a name such as Europe/Berlin or UTC. If the system has no time zone data, install it: `pip "
                "install tzdata`."
            ),
        ) from None


def next_due(facts: Facts, schedule: Schedule, now_ms: int) -> DueDecision:
    """Return the action that is due now by the schedule, or else the action that will be due first.

    Args:
        facts: The facts in the identity document, from `read_facts`.
        schedule: When to rotate.
        now_ms: Milliseconds since 1970.
    """
    return order_actions(facts, schedule, now_ms)[0]


def order_actions(facts: Facts, schedule: Schedule, now_ms: int) -> tuple[DueDecision, ...]:
    """Return the next rotation and the next destruction of old keys, in the order in which to perform them.

    A controller that cannot perform the first action now, such as a rotation while a server is down, can perform the
    second one if it is due too. While a rotation is in progress, the only action is to resume it.

    Args:
        facts: The facts in the identity document, from `read_facts`.
        schedule: When to rotate.
        now_ms: Milliseconds since 1970.
    """
    schedule = _for_facts(schedule, facts)
    if facts.underway is not None:
        return (_decide_resumption(facts.underway, schedule, now_ms),)
    rotation = _decide_rotation(facts, schedule, now_ms)
    retirement = _decide_retirement(facts, schedule, now_ms)
    if retirement is None:
        return (rotation,)
    assert retirement.at_ms is not None
    if rotation.at_ms is None:
        is_rotation_first = not retirement.is_due(now_ms)
    else:
        is_rotation_first = rotation.is_due(now_ms) or rotation.at_ms <= retirement.at_ms
    return (rotation, retirement) if is_rotation_first else (retirement, rotation)


def next_rotation(decisions: Sequence[DueDecision]) -> DueDecision:
    """Return the decision about the next rotation, or the one in progress, among those of `order_actions`."""
    return next(one for one in decisions if one.act is not Act.RETIRE)


def preview(facts: Facts, schedule: Schedule, now_ms: int, count: int = 3) -> list[int]:
    """Return when the next `count` rotations would begin, in milliseconds since 1970, if each succeeded at once.

    There are fewer if the cron expression has an end. There are none while a rotation is in progress, in direct mode
    (the anchor itself signs), and after the root has expired, because a schedule then begins no rotation.
    """
    begins: list[int] = []
    schedule = _for_facts(schedule, facts)
    if facts.underway is not None or facts.is_direct or now_ms > facts.expires_ms:
        return begins
    verdict = _decide_rotation(facts, schedule, now_ms)
    at_ms = verdict.at_ms
    lifetime = milliseconds(schedule.policy.lifetime)
    while at_ms is not None and len(begins) < count:
        begin = max(at_ms, now_ms)
        begins.append(begin)
        done = HistoryEntry(at=begin + 1, event="rotated", from_id=None, to_id=f"after {len(begins)}")
        facts = Facts(
            current_id=f"after {len(begins)}",
            expires_ms=begin + lifetime,
            updated_ms=begin + 1,
            history=(done,),
        )
        at_ms = _decide_rotation(facts, schedule, begin + 1).at_ms
    return begins


def _for_facts(schedule: Schedule, facts: Facts) -> Schedule:
    if not facts.has_anchor:
        return schedule
    return replace(schedule, policy=schedule.policy.for_identity(has_anchor=True))


# --- the parts --------------------------------------------------------------------------------------------------------


def _decide_resumption(underway: RotationRecord, schedule: Schedule, now_ms: int) -> DueDecision:
    who = underway.started_by or "an unnamed operator"
    since = _format_time(underway.phase_at, schedule) if underway.phase_at else "a time in the future"
    state = f"rotation {underway.id} by {who} is {underway.phase} since {since}"
    if schedule.started_by and underway.started_by == schedule.started_by:
        return DueDecision(act=Act.RESUME, at_ms=now_ms, why=f"{state}: this controller started it and resumes it")
    # The cron expression does not apply here: a rotation in progress must not wait for days.
    at_ms = underway.phase_at + milliseconds(schedule.stale)
    left = (
        "no process drives it, so it is resumed"
        if at_ms <= now_ms
        else "another process drives it until it counts as stale"
    )
    return DueDecision(act=Act.RESUME, at_ms=at_ms, why=f"{state}: {left}", due_ms=at_ms)


def _decide_rotation(facts: Facts, schedule: Schedule, now_ms: int) -> DueDecision:
    if now_ms > facts.expires_ms:
        return DueDecision(
            act=Act.NOTHING,
            at_ms=None,
            why=f"root {facts.current_id} has expired and can endorse no successor; replace it with "
            f"`{REPLACE_EXPIRED}`",
            urgent=True,
        )
    if facts.is_direct:
        return _decide_in_direct_mode(facts, schedule, now_ms)
    issued_ms = _issued_ms(facts, schedule.policy)
    rested_ms, rest = _find_rest(facts, schedule)
    due_ms = rotation_due_ms(issued_ms=issued_ms, expires_ms=facts.expires_ms, policy=schedule.policy)
    if schedule.max_age is not None:
        due_ms = min(due_ms, issued_ms + milliseconds(schedule.max_age))
    why = f"root {facts.current_id}, of {_format_time(issued_ms, schedule)}, is to be replaced from "
    why += _format_time(due_ms, schedule)
    if schedule.cron is not None:
        why += f", in a minute of `{schedule.cron}`"
    at_ms = _find_allowed(schedule, max(due_ms, rested_ms, now_ms))
    planned = DueDecision(act=Act.ROTATE, at_ms=at_ms, why=why, due_ms=due_ms)
    reserve = min(int((facts.expires_ms - issued_ms) * URGENT_FRACTION), milliseconds(URGENT_CAP))
    urgent_ms = max(facts.expires_ms - reserve, rested_ms)
    if planned.at_ms is None or urgent_ms < planned.at_ms:
        end = _format_time(facts.expires_ms, schedule)
        planned = replace(
            planned,
            act=Act.ROTATE,
            at_ms=urgent_ms,
            why=f"root {facts.current_id} expires at {end}, too soon to wait for a minute of `{schedule.cron}`"
            if schedule.cron
            else f"root {facts.current_id} expires at {end}",
            due_ms=facts.expires_ms - reserve,
            urgent=facts.expires_ms - reserve <= now_ms,
        )
    return replace(planned, why=f"{planned.why}; {rest}") if rested_ms > now_ms else planned


def _decide_in_direct_mode(facts: Facts, schedule: Schedule, now_ms: int) -> DueDecision:
    """Return that no action is due, because in direct mode (the anchor itself signs) an operator replaces the root.

    The decision is urgent, so that the operator is alerted, when the root expires soon.
    """
    is_urgent = now_ms >= facts.expires_ms - milliseconds(schedule.policy.renewal_cap)
    why = f"root {facts.current_id} signs in its signer (direct mode) until {_format_time(facts.expires_ms, schedule)}"
    if is_urgent:
        why += "; replace it with `goatherd rotate --anchor URI --direct` or `goatherd rotate --working-root`"
    return DueDecision(act=Act.NOTHING, at_ms=None, why=why, urgent=is_urgent)


def _decide_retirement(facts: Facts, schedule: Schedule, now_ms: int) -> DueDecision | None:
    if not schedule.retires:
        return None
    if facts.is_ahead:
        why = "the identity records times in the future, which are corrected, so that grace periods end"
        return DueDecision(act=Act.RETIRE, at_ms=now_ms, why=why)
    if not facts.unretired:
        return None
    root_id, since_ms = min(facts.unretired, key=lambda one: one[1])
    at_ms = since_ms + milliseconds(schedule.policy.grace)
    since = _format_time(since_ms, schedule)
    why = f"root {root_id} has not signed since {since}: its private key is destroyed in the store"
    return DueDecision(act=Act.RETIRE, at_ms=at_ms, why=why, due_ms=at_ms)


# --- time -------------------------------------------------------------------------------------------------------------


def _find_allowed(schedule: Schedule, from_ms: int) -> int | None:
    """Return the earliest time from `from_ms` on at which a rotation may begin; None if there is none."""
    if schedule.cron is None:
        return from_ms
    minute_ms = _next_minute(schedule, from_ms - from_ms % _MINUTE_MS - 1)
    return None if minute_ms is None else max(minute_ms, from_ms)


def _next_minute(schedule: Schedule, after_ms: int) -> int | None:
    """Return the beginning of the first minute after `after_ms` that the cron expression allows; None without one.

    When clocks change, Debian's cron is the model: a time in an hour that the clocks skip comes right after that hour,
    and a time in an hour that occurs twice comes once.
    """
    assert schedule.cron is not None
    for minute in CronSim(schedule.cron, datetime.fromtimestamp(after_ms / 1000, schedule.zone)):
        minute_ms = round(minute.astimezone(UTC).timestamp() * 1000)
        # CronSim uses local time, so within a repeated hour it may first return a time that has passed.
        if minute_ms > after_ms:
            return minute_ms
    return None


def _find_rest(facts: Facts, schedule: Schedule) -> tuple[int, str]:
    """Return until when to pause because of failed rotations, in milliseconds since 1970, and the reason as a phrase.

    The rotations that were cancelled or rolled back since the last success count. Without one, the result is 0 and "".
    """
    failures: list[HistoryEntry] = []
    for entry in reversed(facts.history):
        if _is_success(entry):
            break
        if entry.event in FAILURES:
            failures.append(entry)
    if not failures:
        return 0, ""
    doubled = min(milliseconds(BACKOFF) << (len(failures) - 1), milliseconds(BACKOFF_MAX))
    pause = int(doubled * (1 + 0.25 * jitter_fraction(schedule, str(failures[0].at))))
    pause = limit_pause_ms(pause, facts.expires_ms, failures[0].at)
    count = f"{len(failures)} failures in a row" if len(failures) > 1 else "a failure"
    until_ms = failures[0].at + pause
    return (
        until_ms,
        f"after {count} ({failures[0].event}: {failures[0].reason}) not before {_format_time(until_ms, schedule)}",
    )


def limit_pause_ms(pause_ms: int, expires_ms: int, failed_ms: int) -> int:
    """Return a pause after a failed rotation, shortened to a quarter of the time until the root expires.

    Otherwise a short-lived root could expire during the pause, and no controller can replace an expired root.

    Args:
        pause_ms: The pause, in milliseconds.
        expires_ms: Expiration of the current root, in milliseconds since 1970. If it has passed, nothing is shortened.
        failed_ms: When the rotation failed, in milliseconds since 1970.
    """
    left_ms = expires_ms - failed_ms
    return pause_ms if left_ms <= 0 else min(pause_ms, left_ms // 4)


def _is_success(entry: HistoryEntry) -> bool:
    return entry.event in SUCCESSES or (entry.event in BEGINNINGS and entry.to_id is not None)


def _issued_ms(facts: Facts, policy: Policy) -> int:
    """Return when the current root first began to sign, or when it was last restored, in milliseconds since 1970.

    The time of the restore counts, so that a restored root is not due for rotation at once because it signed earlier.
    If the document has no history, the result is the time at which the identity was created or migrated. If the history
    no longer reaches back that far, the result is the root's expiration minus the policy's lifetime, which may have
    been changed since; but at the latest the time of the history's oldest entry.
    """
    restored = [entry.at for entry in facts.history if entry.event == RESTORED and entry.to_id == facts.current_id]
    if restored:
        return max(restored)
    came = [entry.at for entry in facts.history if _is_success(entry) and entry.to_id == facts.current_id]
    if came:
        return min(came)
    reckoned = facts.expires_ms - milliseconds(policy.lifetime)
    if facts.history:
        return min(reckoned, facts.history[0].at)
    return facts.updated_ms or reckoned


_CRON_HINT: Final = (
    "Five fields as in a crontab: minute, hour, day of month, month, day of week, such as `* 2-4 * * SUN`."
)


def check_cron(text: str) -> None:
    """Check that a string is a valid cron expression with five fields.

    Raises:
        ConfigurationError: The expression does not have five fields, or a field is invalid.
    """
    if len(text.split()) != 5:
        raise ConfigurationError(f"{text!r} is not a cron expression of five fields", hint=_CRON_HINT)
    try:
        CronSim(text, datetime(2000, 1, 1, tzinfo=UTC))
    except CronSimError as error:
        raise ConfigurationError(f"{text!r} is not a cron expression: {error}", hint=_CRON_HINT) from None


def jitter_fraction(schedule: Schedule, what: str) -> float:
    """Return this controller's jitter for the purpose `what`: a fraction from 0 to 1, the same at every call."""
    digest = hashlib.sha256(f"{schedule.controller}\n{what}".encode()).digest()
    return int.from_bytes(digest[:6]) / 2**48


def _format_time(moment_ms: int, schedule: Schedule) -> str:
    return datetime.fromtimestamp(moment_ms / 1000, schedule.zone).strftime("%Y-%m-%d %H:%M:%S %Z")
