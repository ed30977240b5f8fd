"""What the commands that run for long have in common: where the log goes, which loop runs them."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Coroutine
from typing import Any


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


def run_fast(serving: Coroutine[Any, Any, None]) -> None:
    """Run in uvloop where it is installed."""
    try:
        import uvloop
    except ImportError:  # Windows
        asyncio.run(serving)
    else:
        uvloop.run(serving)
