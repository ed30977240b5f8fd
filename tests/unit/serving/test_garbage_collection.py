"""What a server's process changes in the Python interpreter and in the C library."""

from __future__ import annotations

import gc
import os
import subprocess
import sys

import pytest

from goatherd.serving.garbage_collection import exempt_present_objects, share_arena

COUNT_ARENAS = """
import ctypes, sys, threading
from goatherd.serving.garbage_collection import exempt_present_objects, share_arena

libc = ctypes.CDLL(None)
if not hasattr(libc, "malloc_info"):
    sys.exit(77)
if sys.argv[1] == "shared":
    share_arena()
thread = threading.Thread(target=lambda: [bytes(4096) for _ in range(100)])
thread.start()
thread.join()
libc.malloc_info(0, ctypes.c_void_p.in_dll(libc, "stdout"))
libc.fflush(None)
"""


def count_arenas(kind: str) -> int:
    """Return how many arenas glibc uses in a new process after a thread has allocated memory."""
    command = [sys.executable, "-c", COUNT_ARENAS, kind]
    given = ("MALLOC_ARENA_MAX", "GLIBC_TUNABLES", "LD_PRELOAD")  # by which an operator tunes the C library
    environ = {name: value for name, value in os.environ.items() if name not in given}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environ)
    if done.returncode == 77:
        pytest.skip("this C library does not report its arenas")
    assert done.returncode == 0, done.stderr
    return done.stdout.count("<heap nr=")


def test_threads_of_a_server_share_one_arena() -> None:
    assert count_arenas("shared") == 1
    assert count_arenas("default") > 1


def test_a_server_starts_with_a_python_without_ctypes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Python that was built on a machine without the headers of libffi has no ctypes."""
    monkeypatch.setitem(sys.modules, "ctypes", None)
    share_arena()


def test_a_server_that_has_started_walks_through_no_objects_once_more() -> None:
    collected: list[str] = []

    def note(phase: str, info: dict[str, int]) -> None:
        collected.append(phase)

    gc.callbacks.append(note)
    try:
        exempt_present_objects()
        assert gc.get_freeze_count() > 0
        assert not collected
    finally:
        gc.callbacks.remove(note)
        gc.unfreeze()
