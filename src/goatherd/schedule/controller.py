"""Rotate on a schedule: read the identity, do what is due, and repeat.

This module has the pauses between reads, the choice of the operation, the alerts, and the stop at a safe point.
`goatherd.schedule.due` decides when to rotate, and the rotator how.

Rules:
- The schedule and the identity document alone determine when a rotation is due. So a controller may be killed at any
  time, and several may run at once. The store's compare-and-swap decides which one begins a rotation; the others get a
  conflict and check again later. State in the controller's memory only makes it act or check less often. Pauses are
  measured with the monotonic clock, so that setting the system clock does not affect them.
- After a request to stop, the controller begins no new operation. It completes a rotation that makes progress, if that
  does not take too long. It ends its work on a rotation that waits for servers: the store records the state of that
  rotation, so another process can resume it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, Protocol

from goatherd.audit.trail import Journal
from goatherd.clock import Clock, SystemClock
from goatherd.errors import (
    GoatherdError,
    IllegalStepError,
    NotAdoptedError,
    RotationBusyError,
)
from goatherd.identity.document import IdentityDocument, decode_document
from goatherd.key_inventory import describe_kept, find_unlisted_keys
from goatherd.providers.base import SecretProvider
from goatherd.providers.values import CURRENT
from goatherd.rotation.events import Decided, Event, Report
from goatherd.rotation.machine import Kept, Wait
from goatherd.schedule.alerts import Alarm, Alert, AlertKind
from goatherd.schedule.anchor_watch import AnchorWatch
from goatherd.schedule.due import (
    BACKOFF,
    BACKOFF_MAX,
    Act,
    DueDecision,
    Schedule,
    jitter_fraction,
    limit_pause_ms,
    next_rotation,
    order_actions,
    read_facts,
)
from goatherd.schedule.seen_identity import SeenIdentity
from goatherd.stores import DocumentMark, RegionalReader, ReplicatedStore
from goatherd.telemetry import Event as LogEvent
from goatherd.telemetry import event_text
from goatherd.times import iso, milliseconds

_log = logging.getLogger("goatherd.rotation")

QUIET_FAILURES: Final = 2
"""How many consecutive reads of the store may fail before an alert is raised."""
SHORT_WAIT: Final = timedelta(seconds=3)
"""Time that a rotation must have waited for the same servers before a stopping controller leaves it."""
RETIRE_PAUSE: Final = timedelta(days=1)
"""Pause before the store is asked again to destroy a version, since some stores destroy with a delay; and before it is
searched again for keys of roots that are no longer in the identity document, since that reads every version."""
_SHORTEST_PAUSE: Final = timedelta(milliseconds=20)


class Worker(Protocol):
    """The interface of the object that performs rotations; `goatherd.Rotator` implements it."""

    async def rotate(self) -> Report: ...

    async def resume(self) -> Report: ...

    async def retire(self) -> Report: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """The result of one turn of the controller: one read of the identity, and the action that followed.

    If a rotation failed and old keys were due to be destroyed too, the result is that of the rotation.

    Attributes:
        verdict: Which action is due next, and when; None if the identity could not be read.
        has_acted: Whether the controller has begun the action.
        report: The report of the action, if it succeeded; else None.
        error: The error, if the read or the action failed; else None. If the primary store failed, but the identity was
            read from another region's store, there is a verdict as well.
        has_yielded: Whether another process had begun the action first, which is no failure.
    """

    verdict: DueDecision | None = None
    has_acted: bool = False
    report: Report | None = None
    error: GoatherdError | None = None
    has_yielded: bool = False


class Controller:
    """Rotates the root of one identity on a schedule.

    Args:
        provider: The store. If the identity is stored in several regions, it is read from another region's store while
            the primary store does not answer, or holds an earlier identity. Then the next action is still known and
            alerts are still sent, but no action is performed.
        secret_id: The secret that holds the identity, with ``{org}`` replaced.
        schedule: When to rotate, as `make_schedule` returns it.
        worker: Returns the object that performs rotations; called with a function to which that object must report each
            event.
        clock: Tells the time and waits.
        interval: How often the identity is read, approximately.
        alarm: Sends alerts to the operator.
        journal: The audit trail, which records decisions and their evidence.
        anchor_watch: Checks the signer of the identity's anchor after each read; None to check nothing.
        on_look: Called after each read with the identity document, and when the next rotation begins; must not block or
            raise.
        stop_patience: How long the controller waits, when asked to stop, for a rotation that makes progress to
            complete.
    """

    def __init__(
        self,
        provider: SecretProvider,
        secret_id: str,
        schedule: Schedule,
        *,
        worker: Callable[[Callable[[Event], None]], Worker],
        clock: Clock | None = None,
        interval: timedelta = timedelta(minutes=1),
        alarm: Alarm | None = None,
        journal: Journal | None = None,
        anchor_watch: AnchorWatch | None = None,
        on_look: Callable[[IdentityDocument, DueDecision], None] | None = None,
        stop_patience: timedelta = timedelta(seconds=20),
    ) -> None:
        self.schedule = schedule
        self._reader = provider.open_reader(interval) if isinstance(provider, ReplicatedStore) else provider
        self._secret_id = secret_id
        self._clock: Clock = clock or SystemClock()
        self._interval = interval
        self._alarm = alarm or Alarm()
        self._journal = journal or Journal()
        self._anchor_watch = anchor_watch
        self._on_look = on_look
        self._stop_patience = stop_patience.total_seconds()
        self._worker = worker(self._on_event)
        self._missed = 0
        self._seen = SeenIdentity()
        # Counted by kind, so that a failed retirement does not delay a rotation, and vice versa.
        self._failures: dict[AlertKind, int] = {}
        self._not_before: dict[AlertKind, float] = {}
        self._kept: tuple[Kept, ...] = ()
        self._unlisted_keys: tuple[tuple[str, int], ...] = ()
        self._next_search = 0.0
        self._turns = 0
        self._planned: dict[Act, str] = {}
        self._rung: set[tuple[AlertKind, object]] = set()
        self._is_stopping = False
        self._is_acting = False
        self._wait: tuple[tuple[tuple[str, ...], str], float] | None = None
        self._turn: asyncio.Task[Turn] | None = None

    # --- one look -----------------------------------------------------------------------------------------------------

    async def _read_identity(self) -> tuple[IdentityDocument, int]:
        found = await self._reader.read(self._secret_id, CURRENT)
        document = decode_document(found.value.reveal())
        if self._seen.follows(document) and isinstance(self._reader, RegionalReader):
            self._reader.note_used(self._secret_id, DocumentMark.from_document(document))
        return document, found.version.created_ms

    async def act_once(self) -> Turn:
        """Read the identity once, and perform the action that is due by the schedule, such as a rotation, if any."""
        self._turns += 1
        self._is_acting = False
        try:
            document, written_ms = await self._read_identity()
        except GoatherdError as error:
            await self._report_unreadable_store(error)
            return Turn(error=error)
        away = self._reader.primary_error(self._secret_id) if isinstance(self._reader, RegionalReader) else None
        if away is None:
            self._missed = 0
            self._allow_again(AlertKind.STORE_AWAY)
            self._journal.follow_root(document)
            await self._search_for_keys(document)
        else:
            await self._report_unreadable_store(away)
            self._journal.use_identity(document)
        now_ms = self._clock.now_ms()
        facts = read_facts(
            document,
            now_ms,
            written_ms=written_ms,
            tolerance=self.schedule.policy.clock_tolerance,
            unlisted_keys=self._unlisted_keys,
        )
        verdicts = order_actions(facts, self.schedule, now_ms)
        if self._on_look is not None:
            self._on_look(document, next_rotation(verdicts))
        await self._check_anchor(document)
        for verdict in verdicts:
            await self._warn_of_end(document, verdict, now_ms)
        self._tell_plan(verdicts)
        if away is not None:
            return Turn(verdict=verdicts[0], error=away)
        turn: Turn | None = None
        # A rotation that fails, or rests after a failure, must not keep old keys from being destroyed.
        for verdict in filter(self._may_act, verdicts):
            done = await self._do_due(verdict, document)
            turn = turn or done
            if done.error is None or done.has_yielded:
                break
        if turn is None:
            self._failures = {kind: count for kind, count in self._failures.items() if self._is_resting(kind)}
        return turn or Turn(verdict=verdicts[0])

    async def _search_for_keys(self, document: IdentityDocument) -> None:
        """Find the private keys in the store whose roots are no longer in the identity document, if it is time for it.

        The document cannot show that these keys must be destroyed. No search takes place during a rotation, because
        nothing is destroyed then.
        """
        kind = AlertKind.RETIREMENT_FAILED
        if not self.schedule.retires or document.rotation is not None:
            return
        now = self._clock.monotonic()
        if now < self._next_search or self._is_resting(kind):
            return
        try:
            self._unlisted_keys = await find_unlisted_keys(self._reader, self._secret_id, document)
        except GoatherdError as error:
            await self._record_failure(kind, error, document)
            return
        self._next_search = now + RETIRE_PAUSE.total_seconds()

    def _may_act(self, verdict: DueDecision) -> bool:
        is_due = verdict.is_due(self._clock.now_ms())
        return is_due and not self._is_stopping and not self._is_resting(_failure_of(verdict.act))

    def _pause_actions(self, kind: AlertKind, pause: timedelta) -> None:
        """Try no action again whose failures are of this kind, until `pause` has passed."""
        self._not_before[kind] = self._clock.monotonic() + pause.total_seconds()

    def _is_resting(self, kind: AlertKind) -> bool:
        return self._clock.monotonic() < self._not_before.get(kind, 0)

    async def _do_due(self, verdict: DueDecision, document: IdentityDocument) -> Turn:
        _log.info(event_text(LogEvent.CONTROLLER_ACTS, act=verdict.act.value, why=verdict.why))
        kind, root_id = _failure_of(verdict.act), document.current.id
        self._is_acting = True
        try:
            report = await self._do_recorded(verdict)
        except NotAdoptedError as error:
            # The document's history records it, and every controller waits accordingly before the next attempt.
            await self._raise_alert(Alert(kind=kind, reason=str(error), code=error.code, root_id=root_id, failures=1))
            return Turn(verdict=verdict, has_acted=True, error=error)
        except GoatherdError as error:
            lost = isinstance(error, RotationBusyError)
            if lost or (verdict.act is Act.RETIRE and isinstance(error, IllegalStepError)):
                _log.info(event_text(LogEvent.CONTROLLER_YIELDED, reason=str(error)))
                self._pause_actions(kind, self._choose_interval())
                return Turn(verdict=verdict, has_acted=True, error=error, has_yielded=True)
            await self._record_failure(kind, error, document)
            return Turn(verdict=verdict, has_acted=True, error=error)
        self._failures.pop(kind, None)
        if verdict.act is Act.RETIRE:
            self._pause_actions(kind, RETIRE_PAUSE)
            self._unlisted_keys = ()
            await self._tell_kept(report.kept, root_id)
        else:
            self._rung.clear()
        fields = {"act": verdict.act.value, "outcome": report.summary, "current": report.current_id}
        _log.info(event_text(LogEvent.CONTROLLER_DONE, **fields))
        return Turn(verdict=verdict, has_acted=True, report=report)

    async def _do_recorded(self, verdict: DueDecision) -> Report:
        """Perform the action that is due, with an audit record before and after.

        If the first record cannot be written, the action is not performed.
        """
        work = {Act.ROTATE: self._worker.rotate, Act.RESUME: self._worker.resume, Act.RETIRE: self._worker.retire}
        self._journal.begin("controller-acts", {"act": verdict.act, "why": verdict.why, "dueMs": verdict.due_ms})
        try:
            report = await work[verdict.act]()
        except GoatherdError as error:
            await self._use_current_root()
            self._journal.end("controller-failed", {"act": verdict.act, "code": error.code, "reason": str(error)})
            raise
        except asyncio.CancelledError:
            self._journal.end("controller-stopped", {"act": verdict.act})
            raise
        await self._use_current_root()
        self._journal.end("controller-done", {"act": verdict.act, "current": report.current_id})
        return report

    async def _use_current_root(self) -> None:
        """Sign the trail with the root that is current now, so that its record follows those of the previous one."""
        with contextlib.suppress(GoatherdError):
            document, _ = await self._read_identity()
            self._journal.use_identity(document)

    # --- the loop -----------------------------------------------------------------------------------------------------

    async def run(self, stop: asyncio.Event, hurry: asyncio.Event | None = None, *, once: bool = False) -> Turn | None:
        """Read the identity and perform the actions that are due, repeatedly until `stop` is set.

        When asked to stop, the controller first lets a rotation that makes progress complete, but for a limited time.

        Args:
            stop: Event that asks the controller to stop.
            hurry: Event that asks a controller that is stopping not to wait for the end of its rotation.
            once: Whether to return after one read of the identity and the action that followed.

        Returns:
            The result of the last read and its action; None if these were interrupted, or if there was none.
        """
        _log.info(event_text(LogEvent.CONTROLLER_STARTED, controller=self.schedule.controller, secret=self._secret_id))
        hurry = hurry or asyncio.Event()
        is_left = False
        done: Turn | None = None
        while not stop.is_set():
            self._turn = asyncio.create_task(self.act_once())
            try:
                await _wait_for_first(self._turn, stop)
                if not self._turn.done():
                    await self._wind_down(self._turn, hurry)
                is_left = self._is_acting and self._turn.cancelled()
                done = None if self._turn.cancelled() else self._turn.result()
            finally:
                # The whole loop may be cancelled.
                self._turn.cancel()
            if once:
                break
            if not stop.is_set():
                sleeping = asyncio.ensure_future(self._clock.sleep(self._until_next(done)))
                await _wait_for_first(sleeping, stop)
                if not sleeping.cancel():
                    sleeping.result()
        _log.info(event_text(LogEvent.CONTROLLER_STOPPED, leaves_rotation=str(is_left).lower()))
        return done

    async def _wind_down(self, turn: asyncio.Task[Turn], hurry: asyncio.Event) -> None:
        self._is_stopping = True
        hurrying = asyncio.create_task(hurry.wait())
        await asyncio.wait({turn, hurrying}, timeout=self._stop_patience, return_when=asyncio.FIRST_COMPLETED)
        hurrying.cancel()
        turn.cancel()
        await asyncio.wait({turn})

    def _on_event(self, event: Event) -> None:
        self._journal.record_event(event)
        if not isinstance(event, Decided):
            return
        if not isinstance(event.action, Wait):
            self._wait = None
            return
        now, about = self._clock.monotonic(), (event.action.nodes, event.action.reason)
        if self._wait is None or self._wait[0] != about:
            self._wait = about, now
        # While a rotation waits between two observations, no action is in progress, so a stopping controller can leave
        # it there. A short wait is not interrupted: it is part of a rotation that makes progress.
        if self._is_stopping and self._turn is not None and now - self._wait[1] >= SHORT_WAIT.total_seconds():
            self._turn.cancel()

    def _until_next(self, turn: Turn | None) -> timedelta:
        pause = self._choose_interval()
        if self._missed:
            # An unreachable store is retried at increasing intervals.
            pause = min(pause * 2 ** min(self._missed - 1, 20), max(pause, BACKOFF))
        verdict = None if turn is None or turn.has_acted else turn.verdict
        if verdict is not None and verdict.at_ms is not None:
            rest = self._not_before.get(_failure_of(verdict.act), 0) - self._clock.monotonic()
            left = max(timedelta(milliseconds=verdict.at_ms - self._clock.now_ms()), timedelta(seconds=rest))
            if left > timedelta(0):
                pause = min(pause, left)
        return max(pause, _SHORTEST_PAUSE)

    def _choose_interval(self) -> timedelta:
        """Return how long to wait before the next read of the identity: the interval plus up to a tenth of it.

        The additional time differs for each controller, so that controllers that were started at the same time do not
        all read at the same time.
        """
        return self._interval * (1 + 0.1 * jitter_fraction(self.schedule, f"pause {self._turns}"))

    # --- telling ------------------------------------------------------------------------------------------------------

    async def _report_unreadable_store(self, error: GoatherdError) -> None:
        """Log that the identity could not be read from the store, or alert the operator to it.

        The alert is sent at once if a retry would not help, and otherwise only after several failures in a row.
        """
        self._missed += 1
        if error.retryable and self._missed <= QUIET_FAILURES:
            _log.warning(event_text(LogEvent.CONTROLLER_TROUBLED, reason=str(error), failures=self._missed))
            return
        alert = Alert(kind=AlertKind.STORE_AWAY, reason=str(error), code=error.code, failures=self._missed)
        await self._ring_once(alert, error.code)

    async def _record_failure(self, kind: AlertKind, error: GoatherdError, document: IdentityDocument) -> None:
        """Alert the operator to a failed action, and compute when it may be tried again.

        This is for failures that the identity document does not record. The pause doubles with each further failure.
        """
        failures = self._failures[kind] = self._failures.get(kind, 0) + 1
        pause = min(BACKOFF * 2 ** min(failures - 1, 20), BACKOFF_MAX)
        pause *= 1 + 0.25 * jitter_fraction(self.schedule, f"rest {self._turns}")
        root = document.current
        if kind is AlertKind.ROTATION_FAILED:
            limited_ms = limit_pause_ms(milliseconds(pause), root.session.expiration_ms, self._clock.now_ms())
            pause = timedelta(milliseconds=limited_ms)
        self._pause_actions(kind, pause)
        reason, code = str(error), error.code
        await self._raise_alert(Alert(kind=kind, reason=reason, code=code, root_id=root.id, failures=failures))

    async def _tell_kept(self, kept: tuple[Kept, ...], root_id: str) -> None:
        """Alert the operator to stored versions that are due to be destroyed, but kept because of another tool's label.

        The alert is sent once, and again only when the set of these versions has changed.
        """
        if kept and kept != self._kept:
            reason = "; ".join(describe_kept(one.version, one.labels) for one in kept)
            await self._raise_alert(Alert(kind=AlertKind.RETIREMENT_FAILED, reason=reason, root_id=root_id))
        self._kept = kept

    async def _warn_of_end(self, document: IdentityDocument, verdict: DueDecision, now_ms: int) -> None:
        root_id = document.current.id
        if verdict.urgent:
            # The alert is sent once before the root expires, and once a day after that.
            past_end_ms = now_ms - document.current.session.expiration_ms
            days = past_end_ms // milliseconds(timedelta(days=1)) if past_end_ms > 0 else None
            alert = Alert(kind=AlertKind.KEY_NEAR_END, reason=verdict.why, root_id=root_id)
            await self._ring_once(alert, (root_id, days))

    async def _check_anchor(self, document: IdentityDocument) -> None:
        if self._anchor_watch is None:
            return
        reason = await self._anchor_watch.check_if_due(document)
        if reason is not None:
            alert = Alert(kind=AlertKind.ANCHOR_UNREACHABLE, reason=reason, root_id=document.current.id)
            await self._ring_once(alert, (self._anchor_watch.is_reachable, document.anchor))
        elif self._anchor_watch.is_reachable:
            self._allow_again(AlertKind.ANCHOR_UNREACHABLE)

    async def _ring_once(self, alert: Alert, about: object) -> None:
        if (alert.kind, about) not in self._rung:
            self._rung.add((alert.kind, about))
            await self._raise_alert(alert)

    def _allow_again(self, kind: AlertKind) -> None:
        self._rung = {one for one in self._rung if one[0] is not kind}

    async def _raise_alert(self, alert: Alert) -> None:
        self._journal.record_decision("alert", alert.to_json())
        await self._alarm.raise_alert(alert)

    def _tell_plan(self, verdicts: tuple[DueDecision, ...]) -> None:
        planned = {verdict.act: f"{verdict.due_ms}" for verdict in verdicts}
        for verdict in verdicts:
            if planned[verdict.act] != self._planned.get(verdict.act):
                at = "never" if verdict.at_ms is None else iso(verdict.at_ms)
                _log.info(event_text(LogEvent.CONTROLLER_PLANNED, act=verdict.act.value, at=at, why=verdict.why))
        self._planned = planned


async def _wait_for_first(work: asyncio.Future[Any], stop: asyncio.Event) -> None:
    """Wait until `work` is done, or until the controller is asked to stop."""
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({work, stopping}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopping.cancel()


def _failure_of(act: Act) -> AlertKind:
    return AlertKind.RETIREMENT_FAILED if act is Act.RETIRE else AlertKind.ROTATION_FAILED
