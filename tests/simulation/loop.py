"""An event loop whose time is a number, and processes that can be killed at any of their steps.

What it is: asyncio's own loop without a selector. When nothing is ready, the time jumps to the next timer; when there
is no timer either, that is a deadlock and an error. What runs in an executor elsewhere runs here on the loop, after a
pause that the world's dice decide. What it is not: an operating system; nothing here waits for anything real.

Rules:
- Order is a function of the program and the dice alone: tasks and futures hash by their number, never by their address,
  since asyncio keeps them in sets.
- Everything that runs belongs to the `Process` whose context it was started in, or to the world, which has none.
- A step is one callback of the loop. A process counts its own, so that a run can say "at the 117th step".
- A killed process has no further effect: network, store and disk call `check_alive` first.
  Its tasks are unwound completely; what they do meanwhile has no effect.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

T = TypeVar("T")

BEGINNING: Final = 1000.0
"""What the loop's clock shows first, in seconds."""
_UNWINDING: Final = 200

_PROCESS: contextvars.ContextVar[Process | None] = contextvars.ContextVar("simulated process", default=None)


class DeadlockError(AssertionError):
    """Every task waits, and nothing is left that could wake one."""


class _Future(asyncio.Future[Any]):
    def __init__(self, *, loop: VirtualLoop) -> None:
        self._number = loop.next_number()
        super().__init__(loop=loop)

    def __hash__(self) -> int:
        return self._number


class _Task(asyncio.Task[Any]):
    def __init__(self, work: Any, *, loop: VirtualLoop, **options: Any) -> None:
        self._number = loop.next_number()  # first: asyncio puts every new task in a set
        super().__init__(work, loop=loop, **options)

    def __hash__(self) -> int:
        return self._number


class Process:
    """A process on a machine: its tasks, its steps, and whether it was killed.

    Args:
        loop: The loop.
        name: The name in the trace.

    Attributes:
        steps: How many steps it has done.
        is_dead: It was killed.
    """

    def __init__(self, loop: VirtualLoop, name: str) -> None:
        self.name = name
        self.steps = 0
        self.is_dead = False
        self._loop = loop
        self._tasks: dict[asyncio.Task[Any], None] = {}
        self._kept = 32
        self._alarms: dict[int, list[Callable[[], None]]] = {}
        self._context = contextvars.copy_context()
        self._context.run(_PROCESS.set, self)

    def spawn(self, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """Run something in this process."""
        return self._loop.create_task(work, name=f"{self.name}: {name}", context=self._context)

    def at_step(self, number: int, action: Callable[[], None]) -> None:
        """Have `action` called, by the world, right after step `number` of this process (from 1)."""
        self._alarms.setdefault(number, []).append(action)

    def mark_dead(self) -> None:
        """Mark the process as dead: from now on it has no effect outside."""
        self.is_dead = True

    async def kill(self) -> None:
        """Kill the process, as SIGKILL does: whatever its tasks still do has no effect.

        Raises:
            AssertionError: A task cannot be ended.
        """
        self.mark_dead()
        for _ in range(_UNWINDING):
            left = [task for task in self._tasks if not task.done()]
            if not left:
                return
            for task in left:
                task.cancel()
            await asyncio.sleep(0)
        names = [task.get_name() for task in self._tasks if not task.done()]
        raise AssertionError(f"{self.name}: these tasks cannot be cancelled: {names}")

    def stepped(self) -> None:
        """Count a step."""
        self.steps += 1
        for action in self._alarms.pop(self.steps, ()):
            action()

    def owns(self, task: asyncio.Task[Any]) -> None:
        """Record a task of this process."""
        if len(self._tasks) >= 2 * self._kept:
            self._tasks = {task: None for task in self._tasks if not task.done()}
            self._kept = max(32, len(self._tasks))
        self._tasks[task] = None


def current_process() -> Process | None:
    """Return the process in which this runs; None for the world."""
    return _PROCESS.get()


def check_alive() -> None:
    """Raise `CancelledError` in a process that was killed. Whatever has an effect outside of it calls this first."""
    process = _PROCESS.get()
    if process is not None and process.is_dead:
        raise asyncio.CancelledError


class VirtualLoop(asyncio.BaseEventLoop):
    """An event loop whose time is a number; see the module.

    Args:
        pause: How long something takes that elsewhere runs in a thread, in seconds: first until it is done, then until
            the loop hears of it.
    """

    def __init__(self, pause: Callable[[], float]) -> None:
        super().__init__()
        self._now = BEGINNING
        self._pause = pause
        self._number = 0
        self.problems: list[str] = []
        self.set_task_factory(_new_task)
        self.set_exception_handler(_note_problem)

    def time(self) -> float:
        return self._now

    def next_number(self) -> int:
        """Return a number that no task or future of this loop has."""
        self._number += 1
        return self._number

    def create_future(self) -> asyncio.Future[Any]:
        return _Future(loop=self)

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        """Run `func` on the loop, later. The executor is not used."""
        del executor
        check_alive()
        future = self.create_future()
        process = current_process()

        def work() -> None:
            if (process is not None and process.is_dead) or future.cancelled():
                # A thread that has begun cannot be stopped; one that has not is never begun.
                future.cancel()
                return
            try:
                result, failure = func(*args), None
            except Exception as error:  # noqa: BLE001 - it is handed on
                result, failure = None, error
            self.call_later(self._pause(), answer, result, failure)

        def answer(result: Any, failure: Exception | None) -> None:
            if future.done():
                return
            if failure is None:
                future.set_result(result)
            else:
                future.set_exception(failure)

        self.call_later(self._pause(), work)
        return future

    def _run_once(self) -> None:
        ready, scheduled = self._ready, self._scheduled  # type: ignore[attr-defined]
        while scheduled and scheduled[0].cancelled():
            heapq.heappop(scheduled)._scheduled = False
        if not ready:
            if not scheduled:
                raise DeadlockError("no task will ever run again")
            self._now = max(self._now, scheduled[0].when())
        while scheduled and scheduled[0].when() <= self._now:
            handle = heapq.heappop(scheduled)
            handle._scheduled = False
            if not handle.cancelled():
                ready.append(handle)
        for _ in range(len(ready)):
            handle = ready.popleft()
            if handle.cancelled():
                continue
            handle._run()
            process = handle._context.get(_PROCESS)
            if process is not None:
                process.stepped()

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """A cancelled timer leaves the heap when its time comes."""

    def _process_events(self, event_list: Any) -> None:
        """There is no selector."""

    def _write_to_self(self) -> None:
        """There is no other thread."""


def _new_task(loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> _Task:
    assert isinstance(loop, VirtualLoop)
    task = _Task(work, loop=loop, **options)
    context = options.get("context")
    process = _PROCESS.get() if context is None else context.get(_PROCESS)
    if process is not None:
        process.owns(task)
    return task


def _note_problem(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    assert isinstance(loop, VirtualLoop)
    error = context.get("exception")
    loop.problems.append(f"{context.get('message')}: {error!r}" if error is not None else str(context.get("message")))
