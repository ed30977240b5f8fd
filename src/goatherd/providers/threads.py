"""Run a blocking library in separate threads, so that the event loop continues and a caller can be cancelled.

A thread cannot be stopped: the call of a cancelled caller continues until the library returns, and its result is
dropped. The threads are daemon threads, so a library that hangs does not keep the process from ending.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

from goatherd.providers.cancellation import retrieve_outcome

Result = TypeVar("Result")
_Job = tuple["Future[Any]", Callable[[], Any]]


class Threads:
    """Threads for blocking calls of a store or a signer, started when needed.

    `close` ends them; a later call starts new ones.

    Args:
        name: The name that each of the threads gets.
        most: How many calls may run at the same time.
    """

    def __init__(self, name: str, most: int) -> None:
        self._name = name
        self._most = most
        self.forget()

    def forget(self) -> None:
        """Forget the threads without ending them, for the child process after a fork, in which they do not exist."""
        self._lock = threading.Lock()
        self._started = 0
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()

    async def run(self, work: Callable[[], Result]) -> Result:
        """Run the blocking call `work` in a thread and return its result.

        If the caller is cancelled before the call has begun, the call is never made.
        """
        waiting = asyncio.wrap_future(self.submit(work))
        waiting.add_done_callback(retrieve_outcome)
        return await waiting

    def submit(self, work: Callable[[], Result]) -> Future[Result]:
        """Start the blocking call `work` in a thread; return a future of its result, which need not be awaited.

        Raises:
            RuntimeError: The system gives this process no thread, and none was started before.
        """
        job: Future[Result] = Future()
        with self._lock:
            if self._started < self._most:
                thread = threading.Thread(target=_run_jobs, args=(self._jobs,), name=self._name, daemon=True)
                try:
                    thread.start()
                except RuntimeError:
                    if not self._started:
                        raise
                else:
                    self._started += 1
            self._jobs.put((job, work))
        return job

    def close(self) -> None:
        """End the threads once they have made the calls that were requested before. Does not wait for that."""
        with self._lock:
            for _ in range(self._started):
                self._jobs.put(None)
            self._started, self._jobs = 0, SimpleQueue()


def _run_jobs(jobs: SimpleQueue[_Job | None]) -> None:
    while (job := jobs.get()) is not None:
        future, work = job
        if not future.set_running_or_notify_cancel():
            continue
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 - whatever it is, the caller gets it
            future.set_exception(error)
        else:
            future.set_result(result)
        del job, future, work  # nothing of a call stays until the next one
