"""Rotate on a schedule, after a check of everything that a rotation needs; or explain what the schedule will do.

``goatherd controller`` and Python programs call this. The loop is `goatherd.schedule.controller`, and
`goatherd.schedule.due` decides when to rotate.

Rules: before it waits for the first time, the controller tries everything that it will need, so that problems show at
the start. It does not run the alert command, which would page an operator at every start. A configuration mistake
prevents the start; a problem that may be temporary is a warning. For each configured command, the controller asks the
shell whether the program exists.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final, Protocol

from goatherd.audit.trail import AuditTrail, Journal
from goatherd.clock import SystemClock
from goatherd.cluster.discovery import NodeDirectory
from goatherd.errors import ConfigurationError, GoatherdError, ProviderError
from goatherd.identity.document import IdentityDocument
from goatherd.key_inventory import find_unlisted_keys
from goatherd.operations.identity_store import Store
from goatherd.operations.opening import Nodes
from goatherd.operations.rotate import make_rotator, resolve_nodes
from goatherd.operations.rotation_metrics import RotationMetrics
from goatherd.operations.runs import EventListener, notify_each
from goatherd.operations.status import find_obstacles_now
from goatherd.providers.base import SecretProvider
from goatherd.providers.capabilities import DiagnosableSecretProvider
from goatherd.providers.capabilities import Verdict as RightsVerdict
from goatherd.providers.values import CURRENT
from goatherd.rotation.events import Report
from goatherd.rotation.health_checks import HealthSignal
from goatherd.rotation.obstacles import Obstacle, ObstacleKind, Survey
from goatherd.rotation.policy import check_rotation_servers
from goatherd.rotation.rotator import Rotator
from goatherd.schedule.alerts import Alarm
from goatherd.schedule.anchor_watch import QUIET_FAILURES, AnchorWatch
from goatherd.schedule.controller import Controller, Turn, Worker
from goatherd.schedule.due import Act, DueDecision, Facts, Schedule, next_due, preview, read_facts
from goatherd.serving.process_group import SHELL
from goatherd.serving.signals import run_unless_set
from goatherd.signers.verified import VerifiedSigner, open_signer
from goatherd.stores.members import StoreGroup
from goatherd.telemetry import Event as LogEvent
from goatherd.telemetry import event_text, find_program

PREVIEW: Final = 5
"""How many future rotations an explanation lists."""

_log = logging.getLogger("goatherd.rotation")

_PERMANENT: Final = frozenset(
    {ObstacleKind.OTHER_IDENTITY, ObstacleKind.NAMED_TWICE, ObstacleKind.QUORUM, ObstacleKind.LIFETIME}
)
"""Obstacles that are mistakes of the controller's own configuration."""

_GAP_HINT: Final = (
    "Rename the file, so that a new one begins. If controllers were not stopped during several rotations, find out who"
    " wrote the identity."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleExplanation:
    """What a controller would do, when and why.

    Attributes:
        facts: What the identity document says that matters for the schedule.
        verdict: The next action, with its time and the reason for it.
        begins: When the next rotations would begin if each succeeded at once, in milliseconds since 1970.
        obstacles: What prevents a rotation from starting now.
        at_ms: When this explanation was made, in milliseconds since 1970.
    """

    facts: Facts
    verdict: DueDecision
    begins: tuple[int, ...]
    obstacles: tuple[Obstacle, ...]
    at_ms: int


async def explain_schedule(store: Store, nodes: NodeDirectory, schedule: Schedule) -> ScheduleExplanation:
    """Return what a controller would do, when and why. Writes nothing.

    Args:
        store: The open store.
        nodes: The servers; may be empty.
        schedule: When to rotate, as checked by `make_schedule`.

    Raises:
        ProviderError, IdentityError: The identity, or the versions that may hold old private keys, cannot be read.
    """
    version, document = await store.read()
    obstacles = await find_obstacles_now(store, nodes, schedule.policy) if nodes.addresses else ()
    unlisted = await find_unlisted_keys(store.provider, store.secret_id, document) if schedule.retires else ()
    now_ms = SystemClock().now_ms()
    facts = read_facts(
        document,
        now_ms,
        written_ms=version.created_ms,
        tolerance=schedule.policy.clock_tolerance,
        unlisted_keys=unlisted,
    )
    return ScheduleExplanation(
        facts=facts,
        verdict=next_due(facts, schedule, now_ms),
        begins=tuple(preview(facts, schedule, now_ms, PREVIEW)),
        obstacles=obstacles,
        at_ms=now_ms,
    )


async def run_controller(
    store: Store,
    nodes: Nodes,
    schedule: Schedule,
    *,
    stop: asyncio.Event,
    hurry: asyncio.Event | None = None,
    once: bool = False,
    interval: timedelta = timedelta(minutes=1),
    unsafe_without_nodes: bool = False,
    health: Sequence[HealthSignal] = (),
    alert_command: str | None = None,
    audit_log: Path | None = None,
    metrics: RotationMetrics | None = None,
    counts_runs: bool = True,
) -> Turn | None:
    """Rotate on a schedule, resume interrupted rotations, and destroy old keys in time, until `stop` is set.

    Args:
        store: The open store.
        nodes: Every server that holds this identity.
        schedule: When to rotate, as checked by `make_schedule`, and the policy of each rotation.
        stop: Event that asks the controller to stop at a safe point.
        hurry: Event that asks a controller that is stopping not to wait for the end of a rotation.
        once: Do what is due now, without the checks at the start, and return.
        interval: How often the identity is read.
        unsafe_without_nodes: Rotate although no server is listed.
        health: Health checks that must pass before a rotation begins and while the new root signs.
        alert_command: Command to run when an operator is needed.
        audit_log: File to append the audit trail to.
        metrics: Metrics to update.
        counts_runs: Whether each rotation counts as a run in `metrics`; false if the caller counts this call as one.

    Returns:
        What the last read of the identity led to; None if the controller was stopped during it.

    Raises:
        ConfigurationError: No server is listed, or something is configured wrongly, such as a missing program.
        AuditError: The audit trail cannot be written.
        GoatherdError: With `once`, the error of the rotation that failed.
    """
    servers = await resolve_nodes(nodes)
    check_rotation_servers(servers, unsafe_without_nodes=unsafe_without_nodes)
    seen = metrics or RotationMetrics()
    seen.calls = store.provider.call_counts
    journal = Journal(None if audit_log is None else AuditTrail(audit_log, actor=schedule.started_by))

    def open_counted(uri: str) -> VerifiedSigner:
        signer = open_signer(uri)
        signer.call_counts = seen.signer_calls.setdefault(signer.scheme, signer.call_counts)
        return signer

    def use_identity(document: IdentityDocument) -> None:
        journal.use_identity(document)
        seen.document = document

    def make(on_event: EventListener | None = None) -> Rotator:
        return make_rotator(
            store,
            servers,
            schedule.policy,
            health=health,
            on_event=on_event,
            on_identity=use_identity,
            started_by=schedule.started_by,
            unsafe_without_nodes=unsafe_without_nodes,
            open_signer=open_counted,
        )

    # The next run with `once` knows nothing of this one.
    quiet_failures = 0 if once else QUIET_FAILURES
    watch = AnchorWatch(make().find_anchor_problem, clock=SystemClock(), quiet_failures=quiet_failures)
    seen.is_anchor_reachable = lambda: watch.is_reachable

    def make_worker(on_event: EventListener) -> Worker:
        rotator = make(notify_each(on_event, seen.record_event))
        return _CountedWorker(rotator, seen) if counts_runs else rotator

    def keep(document: IdentityDocument, verdict: DueDecision) -> None:
        seen.document = document
        seen.next_ms = verdict.at_ms if verdict.act is Act.ROTATE else None

    if not once:
        commands = {"controller.alert_command": alert_command}
        # Asked to stop meanwhile, it would only wait for stores and servers that do not answer.
        await run_unless_set(stop, _check_start(store, make(), journal, commands))
    controller = Controller(
        store.provider,
        store.secret_id,
        schedule,
        worker=make_worker,
        interval=interval,
        alarm=Alarm(alert_command),
        journal=journal,
        anchor_watch=watch,
        on_look=keep,
    )
    turn = await controller.run(stop, hurry, once=once)
    if once and turn is not None and turn.error is not None and not turn.has_yielded:
        raise turn.error
    return turn


class _CountedWorker:
    """A rotator whose rotations are counted in the metrics. Destroying old keys does not count as a rotation."""

    def __init__(self, rotator: Rotator, seen: RotationMetrics) -> None:
        self._rotator = rotator
        self._seen = seen

    async def rotate(self) -> Report:
        with self._seen.count_run(SystemClock()):
            return await self._rotator.rotate()

    async def resume(self) -> Report:
        with self._seen.count_run(SystemClock()):
            return await self._rotator.resume()

    async def retire(self) -> Report:
        return await self._rotator.retire()


# --- before the start -------------------------------------------------------------------------------------------------


async def _check_start(store: Store, rotator: Rotator, journal: Journal, commands: Mapping[str, str | None]) -> None:
    """Try everything that a rotation will need: temporary problems are logged as warnings, others are an error.

    Raises:
        ConfigurationError: Something is configured wrongly.
        AuditError: The audit trail cannot be written.
    """
    problems = await find_start_problems(store.provider, store.secret_id, rotator, commands)
    refuse_start(problems)
    for one in problems:
        _log.warning(event_text(LogEvent.CONTROLLER_START_PROBLEM, reason=one.text, do=one.hint or "-"))
    with suppress(ProviderError):
        _, document = await store.read()
        gap = None if journal.trail is None else journal.trail.find_gap(document)
        if gap is not None:
            _log.warning(event_text(LogEvent.CONTROLLER_START_PROBLEM, reason=gap, do=_GAP_HINT))
        journal.use_identity(document)
        journal.begin("controller-starts", {"secret": store.name, "problems": [one.text for one in problems]})


@dataclass(frozen=True, slots=True, kw_only=True)
class StartProblem:
    """One thing that would make a controller fail.

    Attributes:
        text: What is wrong and where.
        hint: What to do about it; may be empty.
        is_permanent: Whether the controller must not start because of it.
    """

    text: str
    hint: str = ""
    is_permanent: bool


class Surveyor(Protocol):
    """Finds what prevents a rotation from starting; `goatherd.Rotator` implements it."""

    async def survey(self, *, is_probing: bool = True) -> Survey: ...


async def find_start_problems(
    provider: SecretProvider, secret_id: str, surveyor: Surveyor, commands: Mapping[str, str | None]
) -> list[StartProblem]:
    """Try everything that a controller needs, and return what does not work.

    Args:
        provider: The open store.
        secret_id: The secret that holds the identity.
        surveyor: Observes the servers.
        commands: The operator's commands, by the name of the option; None for an option that was not given.

    Raises:
        ProviderError, IdentityError: The store cannot be read, and a retry would not help.
    """
    problems = []
    for option, line in commands.items():
        missing = None if line is None else await find_missing_program(line)
        if missing is not None:
            problems.append(
                StartProblem(
                    text=f"{option}: /bin/sh does not find the program {missing!r}",
                    hint="Give its full path, or install it on this machine.",
                    is_permanent=True,
                )
            )
    try:
        await provider.read(secret_id, CURRENT)
        problems += await _find_missing_rights(provider, secret_id)
        survey = await surveyor.survey(is_probing=False)
    except GoatherdError as error:
        if not error.retryable:
            raise
        return [*problems, StartProblem(text=str(error), hint=error.hint, is_permanent=False)]
    problems += [
        StartProblem(text=one.text, hint=one.hint, is_permanent=one.kind in _PERMANENT) for one in survey.obstacles
    ]
    return [*problems, *(StartProblem(text=remark, is_permanent=False) for remark in survey.remarks)]


async def _find_missing_rights(provider: SecretProvider, secret_id: str) -> list[StartProblem]:
    if not isinstance(provider, DiagnosableSecretProvider):
        return []
    # A region that the credentials may not write may be one that the operator lets lag.
    has_regions = isinstance(provider, StoreGroup)
    return [
        StartProblem(
            text=one.text,
            hint=one.hint,
            is_permanent=one.verdict is RightsVerdict.WRONG or (one.may_write is False and not has_regions),
        )
        for one in await provider.diagnose(secret_id)
        if one.verdict in (RightsVerdict.WRONG, RightsVerdict.CAUTION) or one.may_write is False
    ]


async def find_missing_program(line: str) -> str | None:
    """Return the program at the start of a command line if the shell does not find it, else None.

    A command line that begins with something other than a plain word (an assignment, a subshell) is not checked.
    """
    word = find_program(line)
    if not word:
        return None
    nothing = asyncio.subprocess.DEVNULL
    try:
        process = await asyncio.create_subprocess_exec(
            SHELL, "-c", 'command -v -- "$1"', SHELL, word, stdin=nothing, stdout=nothing, stderr=nothing
        )
    except OSError:
        return word
    return None if await process.wait() == 0 else word


def refuse_start(problems: Sequence[StartProblem]) -> None:
    """Raise an error if one of the problems prevents the controller from starting.

    Raises:
        ConfigurationError: There are such problems; the message names all of them.
    """
    permanent = [one for one in problems if one.is_permanent]
    if permanent:
        message = f"the controller was not started: {'; '.join(one.text for one in permanent)}"
        hint = " ".join(dict.fromkeys(one.hint for one in permanent if one.hint))
        raise ConfigurationError(message, hint=hint or None)
