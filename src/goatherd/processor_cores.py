"""Count the processor cores that this process may use, for the sizes of its thread pools."""

from __future__ import annotations

import math
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

CPU_LIMIT: Final = Path("/sys/fs/cgroup/cpu.max")


def count_cores() -> int:
    """Return how many cores this process may use; in a container, at most the limit of its processor time."""
    try:
        count = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS and Windows
        count = os.cpu_count() or 1
    with suppress(OSError, ValueError):  # no control groups of version 2, or no limit: "max 100000"
        quota, period = CPU_LIMIT.read_text().split()
        count = min(count, max(1, math.ceil(int(quota) / int(period))))
    return count
