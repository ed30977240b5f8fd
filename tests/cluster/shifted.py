"""Run a program of this project with a clock that is ahead by the number in a file: writing the file makes a month
pass.

    python -m tests.cluster.shifted FILE MODULE [ARGUMENT …]

FILE holds the number of milliseconds.
"""

from __future__ import annotations

import runpy
import sys
import time
from email.utils import formatdate
from pathlib import Path

from goatherd.clock import SystemClock
from goatherd.serving import listener


def main() -> None:
    ahead, module = Path(sys.argv[1]), sys.argv[2]
    SystemClock.now_ms = lambda self: time.time_ns() // 1_000_000 + int(ahead.read_text())  # type: ignore[method-assign]
    listener.formatdate = lambda *_, **__: formatdate(SystemClock().now_ms() / 1000, usegmt=True)  # type: ignore[attr-defined]
    sys.argv = sys.argv[2:]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
