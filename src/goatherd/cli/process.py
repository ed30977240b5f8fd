"""Set up logging and the event loop, and stop on a signal, for commands that run for a long time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

import click

from goatherd.cli.main import App, Terminated

T = TypeVar("T")

LOW_PRIORITY: Final = 10
"""POSIX nice: a tenth of a core that another process wants too. With 19, it would be a seventieth."""


def log_to_stderr(level: str, *, others: str | None = None) -> None:
    """Send the log to standard error, since standard output is for results.

    Args:
        level: Lowest level of Goatherd's events.
        others: Lowest level of the events of libraries (default: warning).
    """
    logging.basicConfig(
        level=(others or "warning").upper(),
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    logging.getLogger("goatherd").setLevel(level.upper())


log_level_option = click.option(
    "--log-level",
    type=click.Choice(["error", "warning", "info", "debug"]),
    default="info",
    help="Lowest level of events to log on standard error (default: info).",
)


def run_fast(serving: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine in uvloop if it is installed, else in asyncio."""
    try:
        import uvloop
    except ImportError:  # Windows
        asyncio.run(serving)
    else:
        uvloop.run(serving)


def lower_priority(app: App) -> None:
    """Lower the priority of this process, so that servers and clients on the same machine are not slowed down.

    Do nothing if a program or a test runs the command in its own process.
    """
    if app.owns_process:
        with contextlib.suppress(AttributeError, OSError):  # Windows has no nice
            os.nice(max(0, LOW_PRIORITY - os.nice(0)))


def run_interruptible(app: App, work: Coroutine[Any, Any, T], *, note: str) -> T:
    """Run a coroutine. If Ctrl-C or SIGTERM interrupts it, print how to resume.

    Both signals cancel the coroutine at its next `await`, so that it cleans up.

    Args:
        app: The context of the command, whose output prints the note.
        work: The work to run.
        note: How to resume; empty for no note.

    Raises:
        Terminated: The process received SIGTERM.
    """
    is_terminated = False

    async def run_until_sigterm() -> T:
        task = asyncio.current_task()
        assert task is not None

        def end() -> None:
            nonlocal is_terminated
            is_terminated = True
            task.cancel()

        with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):  # Windows; not in the main thread
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, end)
        return await work

    try:
        try:
            return asyncio.run(run_until_sigterm())
        except asyncio.CancelledError:
            if is_terminated:
                raise Terminated from None
            raise
    except (KeyboardInterrupt, Terminated):
        if note:
            app.out.write_note(f"note: {note}")
        raise
