"""Adjust Python's interpreter for a server: when it collects garbage, and how its threads share it.

A collection walks through every object that may refer to others. While a log is loaded, nothing becomes garbage, but
the many new objects cause many collections; so a server pauses them.
"""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Final

_lock = threading.Lock()
_pauses = 0


@contextmanager
def pause_collection() -> Iterator[None]:
    """Pause Python's garbage collection during the block, in all threads.

    Pauses may overlap. A collector that was disabled before the block stays disabled after it.
    """
    global _pauses
    with _lock:
        is_counted = _pauses > 0 or gc.isenabled()
        _pauses += is_counted
        gc.disable()
    try:
        yield
    finally:
        with _lock:
            _pauses -= is_counted
            if is_counted and not _pauses:
                gc.enable()


def collect_rarely() -> None:
    """Let Python's garbage collector run only after many new objects. For a process that runs only Goatherd.

    A command uses what it imports and reads until it ends, and a server what it holds: there is hardly any garbage.
    """
    gc.set_threshold(50_000, 20, 50)


def exempt_present_objects() -> None:
    """Leave the present objects out of later collections of Python's garbage collector.

    Call the function when a server has started: the objects that exist then stay in use, so collecting them would only
    take time. Among 90 000 objects of a start, some 200 are garbage, and stay.
    """
    gc.freeze()


_M_ARENA_MAX: Final = -8


def share_arena() -> None:
    """Let all threads of this process allocate memory from one arena of the C library. Call it before threads start.

    By default, glibc gives each thread an arena of its own, and the buffers through which a thread reads a log leave
    holes between the commits: with 50 000 sessions, a tenth of the server's memory. Python's threads hold the GIL while
    they allocate, so they do not wait for each other. Other C libraries stay as they are.
    """
    # A Python that was built without libffi has no ctypes; where no memory may be executable, its import can fail.
    with suppress(ImportError, MemoryError, OSError, AttributeError):
        import ctypes  # commands load this module too, and need no ctypes

        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


SWITCH_INTERVAL: Final = timedelta(microseconds=200)
"""A thread that has verified a signature (0.6 ms without the GIL) waits for the thread that runs Python: 5 ms at
Python's own setting, and both cores idle. `make bench` shows the difference."""


def shorten_switch_interval() -> None:
    """Shorten the interval at which Python switches between the threads of this process.

    With Python's default of 5 ms, a thread that has verified a signature waits long for its next turn, and cores are
    idle.
    """
    sys.setswitchinterval(SWITCH_INTERVAL.total_seconds())
