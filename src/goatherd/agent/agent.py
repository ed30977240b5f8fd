"""Run one GoatDB server: start it, restart it when the identity changes, stop it if it exposes a key.

The agent runs the server itself (``goatherd run``), or another program runs the server, and the agent only keeps its
settings.json up to date (``goatherd run --watch``; there is no `Supervisor`). The agent never writes the identity to
the store, and decides nothing about rotation. Rules:

- settings.json is written while the server is stopped. With ``--on-change signal`` or ``command``, the agent instead
  writes the file while the server runs, and notifies the server at once.
- A change is prepared while the server serves, and applied only while this agent holds the restart lease, which lets
  one server of the cluster restart at a time.
- When the agent ends, it stops the server first, then removes the files. When the server has crashed, the agent waits
  for a growing delay, writes the files with the identity that it last read from the store, and starts the server.
- After every start the agent requests a session without authentication. If the answer holds a private key, the agent
  stops the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum, StrEnum, auto
from functools import partial
from typing import Any, Final, Protocol

from goatherd.agent.child_process import Supervisor, end_leftover
from goatherd.agent.data_directory_lock import DataDirectoryLock
from goatherd.agent.organization import ManagedOrganization, format_problem
from goatherd.agent.own_api import OwnAPI
from goatherd.agent.restart_lease import Lease, NoLease
from goatherd.agent.restart_rules import OnChange, restart_delay
from goatherd.clock import Clock, SystemClock
from goatherd.errors import AgentError, ConfigurationError, GoatherdError, KeyLeakedError, SettingsError
from goatherd.ids import new_id
from goatherd.serving.process_group import kill_group
from goatherd.serving.service_manager import ServiceManager
from goatherd.serving.signals import cancel_tasks, handle_signals, run_unless_set
from goatherd.settings.data_directory import holds_server_data, organization_directories
from goatherd.telemetry import Event, event_text

STABLE_AFTER: Final = timedelta(minutes=1)
LEAK_GRACE: Final = timedelta(seconds=5)
AGAIN_AFTER: Final = timedelta(minutes=1)
PROBE: Final = timedelta(milliseconds=200)
RENOTIFY: Final = 3
CANNOT_START: Final = 126
"""Exit code of a server that the system cannot start, as in a shell."""

STOPPING: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
PASSED_ON: Final = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH)
_COMMAND_HINT: Final = "Check --command: run it by hand as the agent's user."

_log = logging.getLogger("goatherd.agent")

Notify = Callable[[], Awaitable[None]]


class FrontListener(Protocol):
    """What listens in front of the agent's server."""

    def hurry(self) -> None:
        """Stop waiting for running requests when it closes."""
        ...


Front = Callable[[Sequence[ManagedOrganization], OwnAPI], contextlib.AbstractAsyncContextManager[FrontListener]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """Options of the agent that runs a GoatDB server.

    Attributes:
        on_change: What to do when the identity changes.
        stop_signal: Signal that stops the server for a restart.
        ready_timeout: How long a server may take until it answers signed requests.
        crashes: How many times in a row the server may exit with an error and is started again before the agent gives
            up.
        look_every: How often to check settings.json for edits by the server.
    """

    on_change: OnChange = OnChange.RESTART
    stop_signal: int = signal.SIGTERM
    ready_timeout: timedelta = timedelta(seconds=60)
    crashes: int = 5
    look_every: timedelta = timedelta(seconds=2)


class ServerState(StrEnum):
    """What the agent's server is doing."""

    STARTING = "starting"
    SERVING = "serving"
    RESTARTING = "restarting"
    STOPPED = "stopped"
    """The server has exited by itself, and is started again after a pause."""


class _Readiness(Enum):
    """Result of waiting for the server to become ready."""

    READY = auto()
    NOT_READY = auto()
    UNKNOWN_ROOT = auto()
    ENDED = auto()
    UNCHANGED = auto()
    """The server was not notified, because a settings.json could not be written."""


class Agent:
    """Run one server until the agent is stopped or the server ends.

    Args:
        organizations: The organizations that the server serves.
        lock: The lock on the data directory; entered by the caller.
        supervisor: Runs the server process; None if another program runs the server.
        lease: The restart lease.
        rules: Options of the agent.
        notify: Notifies the server that its settings.json has changed; needed for `OnChange.SIGNAL` and
            `OnChange.COMMAND`.
        front: Returns what listens in front of the server: a `goatherd.door.door.Door` (reverse proxy) or a
            `goatherd.agent.own_address.OwnAddress`. The arguments are the organizations and the `OwnAPI`, which answers
            requests for the agent itself. The result is entered as long as the agent runs.
        service: Reports to systemd that the server is ready, or stops.
        clock: Supplies the current time.

    Attributes:
        owns_files: Whether the agent may remove the settings files. False until the files were checked, and if one of
            them holds a root that the store does not know.
    """

    def __init__(
        self,
        organizations: Sequence[ManagedOrganization],
        *,
        lock: DataDirectoryLock,
        supervisor: Supervisor | None,
        lease: Lease | NoLease,
        rules: Rules | None = None,
        notify: Notify | None = None,
        front: Front | None = None,
        service: ServiceManager | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._organizations = tuple(organizations)
        self._lock = lock
        self._supervisor = supervisor
        self._lease = lease
        self._rules = rules or Rules()
        self._notify = notify
        self._front = front
        self._listening: FrontListener | None = None
        self._service = service or ServiceManager({})
        self._clock: Clock = clock or SystemClock()
        self._changed = asyncio.Event()
        self._stop = asyncio.Event()
        self._stop_number: int | None = None
        self._ended: asyncio.Future[int] | None = None
        self._up_since: float | None = None
        self._ignored: set[tuple[str, int]] = set()
        self._again_at: float | None = None
        self._refused_code: str | None = None
        self._is_file_pending = False
        self._passed_on: set[int] = set()
        self._is_cut_off_reported = False
        self._state = ServerState.STARTING
        self._has_come_up = False
        self._instance = new_id()
        self._starts = 0
        self.owns_files = False

    async def run(self) -> int:
        """Run the agent until it is stopped or the server ends, and return the exit code.

        The code is 0 after a clean stop: a stop was requested, and the server exited by itself or by the signal that
        it was sent. Otherwise it is the server's own code, or 128 plus the number of the signal that ended it.

        Raises:
            IdentityError, ProviderError, SettingsError: The identity cannot be loaded; no server was started.
            KeyLeakedError: The server exposed its key; it was stopped.
            AgentError: The server does not read its file.
            StorageError: The server would cut off good records of a damaged log; it was not started.
            ConfigurationError: There is no such program.
        """
        with self._handle_signals():
            async with self._service.feed_watchdog(self._clock):
                code = await self._run_to_end()
        if self._stop_number is not None and self._supervisor is not None and self._supervisor.has_stopped(code):
            return 0
        return code

    async def _run_to_end(self) -> int:
        async with contextlib.AsyncExitStack() as stack:
            if await run_unless_set(self._stop, self._load_identities(stack)) is None:
                return 0
            if self._front is not None:
                own = OwnAPI(self._organizations, describe=self.describe, clock=self._clock)
                self._listening = await stack.enter_async_context(self._front(self._organizations, own))
            return await self._until_the_end()

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Stop the agent: send the signal `number` to the server; `run` returns when the server has ended.

        A later call sends the server another signal, and kills it soon if it does not stop.
        """
        if self._stop.is_set():
            if self._supervisor is not None:
                self._supervisor.hurry()
            if self._listening is not None:
                self._listening.hurry()
        _log.info(event_text(Event.AGENT_STOPPING, signal=signal.Signals(number).name))
        self._stop_number = number if self._stop_number is None else self._stop_number
        self._service.report_stopping()
        if self._supervisor is not None:
            self._supervisor.ask_to_stop(number)
        self._stop.set()

    def describe(self) -> dict[str, Any]:
        """Return what the agent currently does with its server, for the answers of the management endpoints."""
        return {
            "instance": self._instance,
            "state": self._state.value,
            "restarts": max(0, self._starts - 1),
            "problem": self._refused_code or self._lease.problem,
        }

    def _pass_on(self, number: int) -> None:
        self._passed_on.add(number)
        if self._supervisor is not None:
            self._supervisor.send_signal(number)

    # --- begin and end ----------------------------------------------------------------------------------------------

    async def _load_identities(self, stack: contextlib.AsyncExitStack) -> bool:
        """Load the identity of every organization; return True."""
        for organization in self._organizations:
            await stack.enter_async_context(organization)
            await organization.load_identity(self._changed)
        self._check_not_exposed()
        await self._claim_settings_files()
        return True

    def _check_not_exposed(self) -> None:
        for organization in self._organizations:
            self._lock.before.check_not_exposed(organization.wanted.current.id)

    async def _claim_settings_files(self) -> None:
        """Check that writing settings.json overwrites no other identity, and record which files will be written."""
        before = self._lock.before
        for organization in self._organizations:
            await organization.check_place(is_left_over=organization.org in before.orgs)
        orgs = {*before.orgs, *(organization.org for organization in self._organizations)}
        await asyncio.to_thread(lambda: self._lock.save(orgs=orgs))
        self.owns_files = True

    async def _until_the_end(self) -> int:
        life = asyncio.create_task(self._run_server(), name="agent")
        stopping = asyncio.create_task(self._stop.wait())
        grace: timedelta | None = None
        exposed: tuple[str, ...] = ()
        try:
            await asyncio.wait({life, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if life.done():
                return life.result()
        except KeyLeakedError as leak:
            grace, exposed = LEAK_GRACE, leak.root_ids
            raise
        finally:
            await cancel_tasks(life, stopping)
            code = await self._stop_server(grace)
            if exposed:
                try:
                    await asyncio.to_thread(lambda: self._lock.save(exposed=exposed))
                except SettingsError as error:
                    _log.error(event_text(Event.AGENT_NOT_RECORDED, exposed=" ".join(exposed), message=error))
        if life.done() and not life.cancelled() and (failure := life.exception()) is not None:
            raise failure
        return 0 if code is None else code

    async def _stop_server(self, grace: timedelta | None) -> int | None:
        """Stop the server, remove its settings files, and return its exit code.

        If another program runs the server, change nothing and return None. The server is killed if it has not stopped
        after `grace` (default: the grace of the supervisor).
        """
        if self._supervisor is None:
            return None
        number = self._stop_number if self._stop_number is not None else self._rules.stop_signal
        code = await self._supervisor.stop(number, grace=grace)
        self._log_forced_stop()
        if self._ended is not None:
            self._ended.cancel()
        for organization in self._organizations:
            self.owns_files &= await organization.remove_file()
        await asyncio.to_thread(self._lock.clear)
        return code

    def _handle_signals(self) -> contextlib.AbstractContextManager[None]:
        handlers: dict[int, Callable[[], object]] = {number: partial(self.stop, number) for number in STOPPING}
        if self._supervisor is not None:
            # Signals that nohup has set to be ignored stay ignored, in the agent and in the server.
            passed_on = [number for number in PASSED_ON if signal.getsignal(number) is not signal.SIG_IGN]
            handlers |= {number: partial(self._pass_on, number) for number in passed_on}
        return handle_signals(handlers)

    # --- the life of a server ---------------------------------------------------------------------------------------

    async def _run_server(self) -> int:
        if self._supervisor is None:
            return await self._run_beside()
        crashes = 0
        for organization in self._organizations:
            await organization.write_file()
        while True:
            self._state = ServerState.STARTING
            await self._start_server()
            up = await self._wait_until_ready(sees_signer=False)
            if up is not _Readiness.READY and up is not _Readiness.ENDED:
                await self._not_up(up)
            code = await self._follow_until_end()
            _log.warning(event_text(Event.AGENT_ENDED, code=code))
            if self._up_since is not None and self._clock.monotonic() - self._up_since > STABLE_AFTER.total_seconds():
                crashes = 0
            # A program that cannot be started says nothing about the root.
            if self._up_since is None and code != CANNOT_START and self._note_failed_start():
                self._log_return()
            crashes += 1
            if code == 0 or self._is_by_our_signal(code) or crashes > self._rules.crashes:
                return code
            pause = restart_delay(crashes)
            self._state = ServerState.STOPPED
            _log.warning(event_text(Event.AGENT_ENDED, again_in=f"{pause.total_seconds():g}s", crashes=crashes))
            await self._clock.sleep(pause)
            await self._write_for_start()

    async def _run_beside(self) -> int:
        """Keep the settings.json files up to date for a server that another program runs."""
        stale = [organization for organization in self._organizations if not await organization.adopt_file()]
        behind = [
            organization for organization in stale if await asyncio.to_thread(organization.file.stamp) is not None
        ]
        if not behind:
            for organization in stale:
                await organization.write_file()
        elif self._rules.on_change is OnChange.IGNORE:
            self._ignore_changes(
                [f"{organization.file.link} does not match the current identity" for organization in behind]
            )
        else:
            # The server may run with what the file holds: it is notified as of any other change.
            async with self._wait_for_turn(lambda: True):
                await self._switch_identity()
            while self._is_file_pending:
                await self._follow_once()
        self._service.report_ready("settings.json follows the store")
        while True:
            await self._follow_once()

    async def _not_up(self, up: _Readiness) -> None:
        """Handle a server that runs but is not ready: try the previous root, give up, or keep waiting.

        Args:
            up: What was found: the server does not answer, or does not know the root in its settings.json.

        Raises:
            AgentError: The first server answers, but does not read the settings.json that the agent wrote.
        """
        if self._note_failed_start():
            await self._return_to_previous_root()
        elif up is _Readiness.UNKNOWN_ROOT and not self._has_come_up:
            files = ", ".join(str(organization.file.link) for organization in self._organizations)
            raise AgentError(
                f"the server answers, but does not know the root that the agent wrote to {files}: the server"
                " does not read this file",
                hint="Check --data, --org and --url against the server's own path, organization and port. A GoatDB"
                " newer than 0.5.1 ignores this file, too, because its keys are of another kind.",
            )

    async def _follow_until_end(self) -> int:
        """Follow the store until the server has ended by itself; return its exit code."""
        while (code := await self._follow_once()) is None:
            pass
        return code

    async def _follow_once(self) -> int | None:
        """Wait for a change or a pause, and act on it; return the server's exit code if it has ended by itself."""
        changed = asyncio.create_task(self._changed.wait())
        waits: set[asyncio.Future[Any]] = {changed, *([self._ended] if self._ended is not None else [])}
        try:
            await asyncio.wait(
                waits, timeout=self._rules.look_every.total_seconds(), return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            changed.cancel()
        if self._ended is not None and self._ended.done():
            return self._ended.result()
        is_due = self._again_at is not None and self._clock.monotonic() >= self._again_at
        if self._changed.is_set() or is_due:
            self._changed.clear()
            self._again_at = None
            await self._follow_store()
        await self._check_file()
        return None

    async def _check_file(self) -> None:
        for organization in self._organizations:
            if organization.running is None:
                continue
            must_ask = await organization.check_file()
            if not organization.is_exposure_checked and await organization.is_root_trusted():
                organization.mark_ready()
                must_ask = True
            if must_ask:
                await organization.check_key_exposure()
            organization.warn_of_age()
        is_written = not self._is_file_pending and all(one.running for one in self._organizations)
        is_late = self._state is not ServerState.SERVING and is_written
        if is_late and all([await organization.is_root_trusted() for organization in self._organizations]):
            await self._is_up()

    def _is_by_our_signal(self, code: int) -> bool:
        return code - 128 in self._passed_on

    # --- a change ---------------------------------------------------------------------------------------------------

    async def _follow_store(self) -> None:
        """Apply changes of the identity in the store to the server, while this node holds the restart lease."""
        self._refused_code = None
        reasons = self._reasons_to_restart()
        if not reasons:
            return
        if self._rules.on_change is OnChange.IGNORE:
            self._ignore_changes(reasons)
            return
        _log.warning(event_text(Event.AGENT_CHANGE, message="; ".join(reasons)))
        try:
            self._check_not_exposed()
            for organization in self._organizations:
                await organization.prepare_file()
        except GoatherdError as error:
            self._report_refused(error)
            return
        async with self._wait_for_turn(lambda: bool(self._reasons_to_restart())) as is_ours:
            # While others had their turn, the change may have been taken back.
            if is_ours and self._reasons_to_restart():
                await self._switch_identity()

    def _report_refused(self, error: GoatherdError) -> None:
        self._again_at = self._clock.monotonic() + AGAIN_AFTER.total_seconds()
        self._refused_code = error.code
        _log.error(event_text(Event.AGENT_CHANGE_REFUSED, message=format_problem(error)))

    def _reasons_to_restart(self) -> tuple[str, ...]:
        reasons = [reason for organization in self._organizations for reason in organization.reasons_to_restart()]
        if self._is_file_pending and not reasons:
            reasons.append("a settings.json could not be written, and the server was not notified")
        return tuple(reasons)

    def _ignore_changes(self, reasons: Sequence[str]) -> None:
        now = {(organization.org, organization.document.generation) for organization in self._organizations}
        if now != self._ignored:
            self._ignored = now
            text = f"{'; '.join(reasons)}: the server keeps its previous identity until its next start"
            _log.warning(event_text(Event.AGENT_CHANGE, message=text))

    @contextlib.asynccontextmanager
    async def _wait_for_turn(self, is_wanted: Callable[[], bool]) -> AsyncIterator[bool]:
        """Wait for the restart lease; yield False if no restart is needed any more or the server has ended."""
        async with contextlib.AsyncExitStack() as stack:
            entering = asyncio.create_task(stack.enter_async_context(self._lease.hold()))
            waits: set[asyncio.Future[Any]] = {entering, *([self._ended] if self._ended is not None else [])}
            every = self._rules.look_every.total_seconds()
            try:
                while not (await asyncio.wait(waits, timeout=every, return_when=asyncio.FIRST_COMPLETED))[0]:
                    if not is_wanted():
                        break
                    await self._check_file()
            finally:
                if not entering.done():
                    entering.cancel()
                    await asyncio.wait({entering})
            if entering.cancelled():
                yield False
                return
            entering.result()
            yield True

    async def _switch_identity(self) -> None:
        up = await self._deliver_identity()
        if up in (_Readiness.READY, _Readiness.ENDED, _Readiness.UNCHANGED):
            return
        if self._note_failed_start():
            await self._return_to_previous_root()

    def _note_failed_start(self) -> bool:
        """Record that the server did not become ready; return whether it can be started with a previous root."""
        return True in [organization.record_failed_start() for organization in self._organizations]

    async def _return_to_previous_root(self) -> None:
        self._log_return()
        await self._deliver_identity()

    def _log_return(self) -> None:
        for organization in self._organizations:
            if organization.wanted is not organization.document:
                fields = {"org": organization.org, "refused": organization.document.current.id}
                _log.error(event_text(Event.AGENT_STEPPED_BACK, **fields, signs=organization.wanted.current.id))

    async def _deliver_identity(self) -> _Readiness:
        """Give the server the wanted identity (by restart, signal or command), and wait until it is ready."""
        if self._supervisor is not None and self._rules.on_change in (OnChange.RESTART, OnChange.IGNORE):
            if self._ended is not None and self._ended.done():
                return _Readiness.ENDED
            self._state = ServerState.RESTARTING
            await self._supervisor.stop(self._rules.stop_signal)
            self._log_forced_stop()
            await self._write_for_start()
            await self._start_server()
            return await self._wait_until_ready(sees_signer=False)
        if not await self._write_files():
            return _Readiness.UNCHANGED
        await self._tell_server()
        return await self._wait_until_ready(sees_signer=True)

    async def _write_files(self) -> bool:
        """Write the settings.json files; return False if one of them could not be written, which is retried later.

        Until then, the server has not been notified of any of them, even if the change is withdrawn meanwhile.
        """
        try:
            self._check_not_exposed()
            for organization in self._organizations:
                await organization.write_file()
        except GoatherdError as error:
            self._is_file_pending = True
            self._report_refused(error)
            return False
        return True

    async def _write_for_start(self) -> None:
        """Write the settings.json files for a server that has ended.

        If this fails, as on a full disk, the server is started with the previous ones, rather than not at all.

        Raises:
            SettingsError: A file cannot be written, and the previous one holds no root.
            IdentityError: A root is too old to start a server with it.
        """
        if not await self._write_files():
            for organization in self._organizations:
                await organization.check_present_file()

    async def _tell_server(self) -> None:
        self._is_file_pending = False
        if self._notify is None:
            return
        try:
            await self._notify()
        except GoatherdError as error:
            _log.error(event_text(Event.AGENT_NOT_UP, message=format_problem(error)))

    async def _start_server(self) -> None:
        assert self._supervisor is not None
        self._up_since = None
        self._is_file_pending = False
        self._passed_on.clear()
        self._instance, self._starts = new_id(), self._starts + 1
        for organization in self._organizations:
            await organization.prepare_logs()
        try:
            await self._supervisor.start()
        except (AgentError, ConfigurationError) as error:
            if self._starts == 1 and isinstance(error, ConfigurationError):
                raise
            # The system has no process to spare, or the program is being replaced: that passes, as a crash does.
            _log.error(event_text(Event.AGENT_NOT_UP, message=format_problem(error)))
            self._ended = asyncio.get_running_loop().create_future()
            self._ended.set_result(CANNOT_START)
            return
        child = self._supervisor.child
        try:
            await asyncio.to_thread(lambda: self._lock.save(child=child))
        except SettingsError as error:
            # The agent cannot record the server's process id, as on a full or read-only disk. The server keeps running;
            # if this agent is killed, the kernel stops the server.
            _log.error(event_text(Event.AGENT_NOT_RECORDED, pid=self._supervisor.pid, message=error))
        self._ended = asyncio.create_task(self._supervisor.wait(), name="child")
        _log.info(event_text(Event.AGENT_STARTED, pid=self._supervisor.pid))

    def _refuse_unnamed_roots(self) -> None:
        """Check that the server has not created a root for an organization that is not named with ``--org``.

        Raises:
            AgentError: The server has created one. The caller stops the server.
        """
        if self._supervisor is None:
            return
        named = {organization.file.link.parent for organization in self._organizations}
        for data in {directory.parent for directory in named}:
            for directory in organization_directories(data) if data.is_dir() else ():
                if directory not in named and holds_server_data(directory):
                    # SECURITY: the server is stopped, because no store holds the root that it has created: when that
                    # root is lost, so are the clients that trust it (tests/unit/cli/test_agent_commands.py).
                    names = ", ".join(organization.org for organization in self._organizations)
                    raise AgentError(
                        f"the server serves organization {directory.name!r}, which is not named with --org (named:"
                        f" {names}), and has created a new root for it in {directory}. The agent stopped the server",
                        hint=f"Move {directory} away: this start has created it, and no store has its root. Then start"
                        f" again with --org {directory.name}.",
                    )

    async def _wait_until_ready(self, *, sees_signer: bool) -> _Readiness:
        """Wait until the server answers requests that its root signed, then check whether it exposes its key.

        Args:
            sees_signer: Whether to check as well that the server signs with the new root. This is needed if the agent
                notified the server instead of restarting it.

        Raises:
            KeyLeakedError: The server returned a private key.
        """
        until = self._clock.monotonic() + self._rules.ready_timeout.total_seconds()
        up, notified = _Readiness.NOT_READY, 1
        while self._clock.monotonic() < until:
            if self._ended is not None and self._ended.done():
                return _Readiness.ENDED
            await asyncio.to_thread(self._refuse_unnamed_roots)
            trusted = [await organization.is_root_trusted() for organization in self._organizations]
            up = _Readiness.UNKNOWN_ROOT if False in trusted else _Readiness.NOT_READY
            if all(trusted):
                if not sees_signer or all([await organization.check_signer() for organization in self._organizations]):
                    await self._is_up()
                    return _Readiness.READY
                if notified < RENOTIFY and any(
                    [await organization.is_regressed() for organization in self._organizations]
                ):
                    # COMPAT: a running GoatDB server overwrites its settings.json at every new session, so the agent
                    # writes the file again.
                    notified += 1
                    if await self._write_files():
                        await self._tell_server()
            await self._clock.sleep(PROBE)
        after = f"{self._rules.ready_timeout.total_seconds():g}s"
        for organization in self._organizations:
            signs = ", and sign with this root" if sees_signer else ""
            text = (
                f"the server must answer, at this URL (--url), a request signed by its root{signs}. See also the"
                " server's own output; the agent keeps checking"
            )
            _log.error(
                event_text(Event.AGENT_NOT_UP, org=organization.org, url=organization.url, after=after, message=text)
            )
        return up

    async def _is_up(self) -> None:
        self._up_since = self._clock.monotonic()
        self._state = ServerState.SERVING
        self._has_come_up = True
        for organization in self._organizations:
            organization.mark_ready()
            assert organization.running is not None
            _log.info(event_text(Event.AGENT_UP, org=organization.org, signs=organization.running.current.id))
        for organization in self._organizations:
            if not organization.is_exposure_checked:
                await organization.check_key_exposure()
        signing = ", ".join(f"{one.org} by {one.running.current.id}" for one in self._organizations if one.running)
        self._service.report_ready(f"the server serves, signed {signing}")

    def _log_forced_stop(self) -> None:
        """Log if the server had to be killed, or (once) if it does not handle the signal that stops it."""
        if self._supervisor is None:
            return
        if self._supervisor.was_killed:
            _log.error(
                event_text(
                    Event.AGENT_KILLED,
                    message="the server, or a process that it started, did not stop when it was asked to, so the agent"
                    " killed it",
                )
            )
        elif self._supervisor.was_cut_off and not self._is_cut_off_reported:
            self._is_cut_off_reported = True
            text = (
                "the server does not handle the signal that stops it: it ends in the middle of requests and can lose"
                " data that is not written yet. Have the application handle the signal and call GoatDB's stop()"
            )
            _log.warning(event_text(Event.AGENT_CUT_OFF, message=text))


async def stop_leftover_server(lock: DataDirectoryLock, grace: timedelta, clock: Clock) -> None:
    """If an earlier agent was killed and its server is still running, stop that server.

    Args:
        lock: The lock on the data directory, which has read the earlier agent's state.
        grace: How long the server may take to stop before it is killed.
        clock: Supplies the current time.

    Raises:
        AgentError: The server cannot be stopped.
    """
    child = lock.before.child
    if child is not None and await end_leftover(child, grace, clock):
        _log.warning(event_text(Event.AGENT_LEFTOVER, pid=child.pid))


async def run_command(command: Sequence[str], patience: timedelta, clock: Clock, environ: Mapping[str, str]) -> None:
    """Run a command that makes a server read its new file; its output goes to standard error.

    If it takes too long, or the agent stops meanwhile, it is killed with the processes that it started.

    Raises:
        AgentError: The command cannot be started, fails, or takes longer than `patience`.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.DEVNULL, stdout=sys.stderr, env=environ, start_new_session=True
        )
    except OSError as error:
        raise AgentError(f"cannot run {command[0]}: {error.strerror}", hint=_COMMAND_HINT) from error
    ending = asyncio.create_task(process.wait())
    limit = asyncio.create_task(clock.sleep(patience))
    try:
        await asyncio.wait({ending, limit}, return_when=asyncio.FIRST_COMPLETED)
        if not ending.done():
            text = f"the command {command[0]} did not end within {patience.total_seconds():g} s"
            raise AgentError(text, hint=_COMMAND_HINT)
        if process.returncode:
            text = f"the command {command[0]} ended with exit status {process.returncode}"
            raise AgentError(text, hint=_COMMAND_HINT)
    finally:
        limit.cancel()
        ending.cancel()
        await kill_group(process)
