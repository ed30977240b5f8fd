"""Start the server as a child process, pass signals on, stop it, and read its exit code.

`goatherd.agent.agent` decides when to start and stop it. Rules: the child inherits the agent's input, output,
environment and working directory. Its arguments and environment contain no key material. The child leads its own
process group. So a signal from a terminal reaches the child only once, from the agent. The child has ended when its
whole process group has.

No process is asked to stop twice, because the second signal ends some servers while they still write their data. The
child may be a script that does not replace itself with the server. If it passes the signal on, it ends after the
server. If not, it leaves the server behind, and the agent then signals what is left of the group; or it waits for the
server, and the agent signals the server before it kills all of them.

If the agent is killed, the kernel sends the child a signal to stop (on Linux). Otherwise the child would keep the port
and the data directory, and the next agent could not start. `end_leftover` stops a child that ignored that signal, and
the descendants of the child, which the kernel does not signal.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import Final

from goatherd.agent.data_directory_lock import Process, find_members, has_members
from goatherd.clock import Clock, SystemClock
from goatherd.errors import AgentError, ConfigurationError

KILL_PATIENCE: Final = timedelta(seconds=10)
HANDED_ON: Final = timedelta(seconds=1)
"""How long the processes that a child leaves behind may take to end, before they are signalled: it may have done so."""
LEFT_BEHIND: Final = timedelta(seconds=5)
"""How long a child may take to stop that a killed agent has left, or after the agent has received a second signal; also
what a child has left that ended unasked."""
_POLL: Final = timedelta(milliseconds=50)

# In a process of its own and not between fork and exec of this one, which has threads. It becomes the command.
_LAUNCHER: Final = """\
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, int(signal.SIGTERM), 0, 0, 0)
if os.getppid() != int(sys.argv[1]):
    sys.exit(128 + signal.SIGTERM)
for number in (signal.SIGPIPE, signal.SIGXFSZ):
    signal.signal(number, signal.SIG_DFL)
try:
    os.execv(sys.argv[2], sys.argv[3:])
except OSError as error:
    sys.stderr.write(f"{sys.argv[2]}: {error.strerror}\\n")
    sys.exit(126)
"""


def exit_code(returned: int) -> int:
    """Return the exit code as a shell reports it: the process's own code, or 128 plus the number of the signal."""
    return 128 - returned if returned < 0 else returned


def find_command(command: Sequence[str]) -> str:
    """Return the path of the program that a command names.

    Raises:
        ConfigurationError: There is no such program.
    """
    found = shutil.which(command[0]) if command else None
    if found is None:
        raise ConfigurationError(
            f"the command {command[0] if command else ''!r} was not found",
            hint="Give the path of an executable program, or the name of one on the PATH.",
        )
    return os.path.abspath(found)  # noqa: PTH100 - a link must stay the link that it is


class Supervisor:
    """Run a command as a child process; only one child runs at a time.

    Args:
        command: Program and arguments.
        environ: The child's environment.
        grace: How long a child may take to stop before it is killed.
        clock: Supplies the current time.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        environ: Mapping[str, str],
        grace: timedelta = timedelta(seconds=30),
        clock: Clock | None = None,
    ) -> None:
        self._command = tuple(command)
        self._environ = dict(environ)
        self._grace = grace
        self._clock: Clock = clock or SystemClock()
        self._process: asyncio.subprocess.Process | None = None
        self._starting: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[int] | None = None
        self._hurry = asyncio.Event()
        self.asked: set[int] = set()
        """The signals that asked the present child, or the last one, to stop."""
        self.was_killed = False
        self.was_cut_off = False
        """Whether a signal that the last child did not handle has ended it. Unknown, and False, with descendants."""

    @property
    def is_running(self) -> bool:
        """Whether a child process was started and has not ended."""
        return self._process is not None and self._process.returncode is None

    @property
    def child(self) -> Process | None:
        """PID and start time of the running child, by which a later agent can find it; None if none is running."""
        return Process.find_process(self._process.pid) if self._process is not None and self.is_running else None

    @property
    def pid(self) -> int | None:
        """The PID of the present child process, or of the last one if it has ended; None if none was started."""
        return None if self._process is None else self._process.pid

    async def start(self) -> None:
        """Start the child process.

        Raises:
            AgentError: The operating system cannot start the program.
        """
        if self.is_running:
            raise RuntimeError("the server is already running")
        self.asked, self.was_killed, self.was_cut_off = set(), False, False
        self._starting = asyncio.ensure_future(self._spawn_process())
        # Not cut short by a cancellation: a child that is not known would never be stopped.
        await asyncio.shield(self._starting)

    async def _spawn_process(self) -> None:
        program, arguments = find_command(self._command), list(self._command)
        if sys.platform == "linux" and sys.executable:
            launcher = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), program, *arguments]
            program, arguments = sys.executable, launcher
        try:
            self._process = await asyncio.create_subprocess_exec(
                *arguments, executable=program, env=self._environ, process_group=0
            )
        except OSError as error:
            raise AgentError(f"cannot start {self._command[0]}: {error.strerror}") from error
        self._ending = asyncio.ensure_future(self._await_exit(self._process))
        for number in self.asked:  # while there was no process yet
            self.send_signal(number)

    async def _await_exit(self, process: asyncio.subprocess.Process) -> int:
        returned, session = await process.wait(), os.getsid(0)

        def has_descendants() -> bool:
            return has_members(process.pid, session)

        if not await asyncio.to_thread(has_descendants):
            self.was_cut_off = -returned in self.asked
            return exit_code(returned)
        # The server may be one of the descendants, and still write its data.
        number, grace = min(self.asked, default=signal.SIGTERM), self._grace
        if not self.asked:
            grace = min(grace, LEFT_BEHIND)
        signal_all = partial(_signal_group, process.pid)
        if await _end_group(signal_all, has_descendants, number, grace, self._clock):
            self._note_kill()
        return exit_code(returned)

    def _note_kill(self) -> None:
        """Note that the server was killed, unless the child has handled the signal to stop and left only helpers."""
        code = self._process.returncode if self._process is not None else None
        self.was_killed = self.was_killed or code is None or not self.asked or -code in self.asked

    def send_signal(self, number: int) -> None:
        """Send a signal to the child but not to its descendants, if a child runs."""
        if self._process is not None and self.is_running:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    def ask_to_stop(self, number: int) -> None:
        """Ask the child to stop by a signal. A child that is being started gets the signal once it is."""
        self.asked.add(number)
        self.send_signal(number)

    def hurry(self) -> None:
        """Kill the child soon, in a `stop` that is waiting for it or that begins later."""
        self._hurry.set()

    def has_stopped(self, code: int) -> bool:
        """Return whether a child with this exit code has stopped as requested: with 0, or by a signal that asked it."""
        return not self.was_killed and (code == 0 or code - 128 in self.asked)

    async def wait(self) -> int:
        """Return the child's exit code once the child and all processes that it started have ended."""
        assert self._ending is not None
        return await asyncio.shield(self._ending)

    async def stop(self, number: int = signal.SIGTERM, *, grace: timedelta | None = None) -> int | None:
        """Ask the child to stop, kill it after a timeout, and return its exit code; None if none was started.

        Args:
            number: The signal that asks the child to stop; not sent if the child has already got it.
            grace: How long to wait before the child is killed (default: the supervisor's `grace`; then, the processes
                that it has started are asked to stop first).
        """
        if self._starting is not None:
            await asyncio.wait({self._starting})
            if self._starting.exception() is not None:
                return None
        if self._process is None or self._ending is None:
            return None
        if not self._ending.done() and number not in self.asked:
            self.ask_to_stop(number)
        ending = self._ending
        timeout = asyncio.ensure_future(self._clock.sleep(self._grace if grace is None else grace))
        hurried = asyncio.ensure_future(self._hurry.wait())
        late: asyncio.Future[None] | None = None
        try:
            await asyncio.wait({ending, timeout, hurried}, return_when=asyncio.FIRST_COMPLETED)
            ends = {ending, timeout} if hurried.done() and not timeout.done() else set()
            # After Ctrl-C, a shell continues to wait for its server, which was not asked to stop yet.
            if grace is None and self.is_running and await asyncio.to_thread(_signal_descendants, self._process.pid):
                ends = {ending}
                if signal.SIGTERM in self.asked:  # a script may have passed it on: this was the second one
                    self._note_kill()
            if ends:
                late = asyncio.ensure_future(self._clock.sleep(LEFT_BEHIND))
                await asyncio.wait({*ends, late}, return_when=asyncio.FIRST_COMPLETED)
            if not ending.done():
                self._note_kill()
                _signal_group(self._process.pid, signal.SIGKILL)
            return await asyncio.shield(ending)
        finally:
            timeout.cancel()
            hurried.cancel()
            if late is not None:
                late.cancel()


async def end_leftover(process: Process, grace: timedelta, clock: Clock) -> bool:
    """Stop the child of an earlier agent that was killed, and the child's descendants; return whether any was running.

    They are killed if they have not stopped after `grace`.

    Raises:
        AgentError: They cannot be stopped.
    """
    if not process.has_group():
        return False
    # The kernel has signalled the child when the agent was killed: it may still write its data.
    if not await _wait_until_gone(process.is_running, min(grace, LEFT_BEHIND), clock):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(process.pid, signal.SIGTERM)
        if not await _wait_until_gone(process.is_running, grace, clock):
            grace = timedelta(0)
    await _end_group(partial(_signal_leftover, process), process.has_group, signal.SIGTERM, grace, clock)
    if process.has_group():
        raise AgentError(f"process {process.pid}, which an earlier agent started, cannot be stopped")
    return True


async def _end_group(
    signal_all: Callable[[int], None], is_there: Callable[[], bool], number: int, grace: timedelta, clock: Clock
) -> bool:
    """Wait until a process group has ended, after its leader; signal it, then kill it; return whether it was killed."""
    if await _wait_until_gone(is_there, HANDED_ON, clock):
        return False
    for sent, timeout in ((number, grace), (signal.SIGKILL, KILL_PATIENCE)):
        signal_all(sent)
        if await _wait_until_gone(is_there, timeout, clock):
            return sent == signal.SIGKILL
    return True


async def _wait_until_gone(is_there: Callable[[], bool], timeout: timedelta, clock: Clock) -> bool:
    until = clock.monotonic() + timeout.total_seconds()
    while await asyncio.to_thread(is_there):
        if clock.monotonic() >= until:
            return False
        await clock.sleep(_POLL)
    return True


def _signal_descendants(pid: int) -> bool:
    """Ask all processes of a group but its leader to stop; return whether there are any (False without ``/proc``)."""
    others = [one for one in find_members(pid, os.getsid(0)) if one != pid]
    for one in others:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(one, signal.SIGTERM)
    return bool(others)


def _signal_leftover(process: Process, number: int) -> None:
    if process.named_by is None:
        _signal_group(process.pid, number)
        return
    for pid in process.find_group():  # other members of the group may belong to another user
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def _signal_group(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)
