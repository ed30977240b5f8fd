"""What the commands that run for long have in common: where the log goes, which loop runs them, how they are ended."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

import click

from goatherd.cli.main import App, Terminated

T = TypeVar("T")
FC = TypeVar("FC", bound=Callable[..., Any])

LAST: Final = 19
"""The priority that lets everybody else go first (POSIX nice)."""


def log_to_stderr(level: str, *, others: str | None = None) -> None:
    """Send the log to standard error, since standard output is for results.

    Args:
        level: The least that is said of Goatherd's own.
        others: The least that is said by libraries; warnings unless told.
    """
    logging.basicConfig(
        level=(others or "warning").upper(),
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    logging.getLogger("goatherd").setLevel(level.upper())


def log_level_option(default: str) -> Callable[[FC], FC]:
    """Return the option ``--log-level``."""
    return click.option(
        "--log-level",
        type=click.Choice(["error", "warning", "info", "debug"]),
        default=default,
        show_default=True,
        help="Lowest level of events to log on standard error.",
    )


def run_fast(serving: Coroutine[Any, Any, None]) -> None:
    """Run in uvloop where it is installed."""
    try:
        import uvloop
    except ImportError:  # Windows
        asyncio.run(serving)
    else:
        uvloop.run(serving)


def give_way(app: App) -> None:
    """Let everything else on this machine go first, the servers' clients above all, where the process is our own."""
    if app.owns_process:
        with contextlib.suppress(AttributeError, OSError):  # Windows has no nice
            os.nice(LAST)


def run_interruptible(app: App, work: Coroutine[Any, Any, T], *, note: str) -> T:
    """Run; where Ctrl-C or SIGTERM cut it off, say how to go on.

    SIGTERM does what Ctrl-C does in asyncio: the work is cancelled at its next wait, and cleans up.

    Args:
        app: Its writer gets the note.
        work: What to run.
        note: How to go on; empty for nothing.

    Raises:
        Terminated: SIGTERM has come.
    """
    is_terminated = False

    async def cut_off_by_sigterm() -> T:
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
            return asyncio.run(cut_off_by_sigterm())
        except asyncio.CancelledError:
            if is_terminated:
                raise Terminated from None
            raise
    except (KeyboardInterrupt, Terminated):
        if note:
            app.out.note(f"note: {note}")
        raise
