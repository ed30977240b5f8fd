"""The live view of a rotation on a real terminal."""

from __future__ import annotations

import os
import pty
import sys
from pathlib import Path

import pytest

from .conftest import Goatherd


def on_a_terminal(*arguments: str, **environ: str) -> str:
    """Run the command line with a terminal for all three streams and return what was written to it."""
    command = [sys.executable, "-m", "goatherd", *arguments]
    pid, terminal = pty.fork()
    if pid == 0:  # pragma: no cover - the child
        os.execve(sys.executable, command, {**os.environ, "TERM": "xterm", "COLUMNS": "120", **environ})
    written = b""
    while True:
        try:
            some = os.read(terminal, 4096)
        except OSError:
            break
        if not some:
            break
        written += some
    os.close(terminal)
    os.waitpid(pid, 0)
    return written.decode()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of forkpty:DeprecationWarning")
def test_on_a_terminal_the_view_is_written_over_and_the_result_stays(
    goatherd: Goatherd, store: str, tmp_path: Path
) -> None:
    goatherd("init", "--provider", store)
    written = on_a_terminal("rotate", "--unsafe-without-nodes", "--provider", store)
    assert "\x1b[" in written
    assert "verified" in written
    assert "rotated: " in written


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of forkpty:DeprecationWarning")
def test_errors_are_coloured_on_a_terminal_unless_no_color_is_set() -> None:
    assert "\x1b[31merror: " in on_a_terminal("shwo")
    assert "\x1b" not in on_a_terminal("shwo", NO_COLOR="1")
