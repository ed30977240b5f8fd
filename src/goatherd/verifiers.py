"""Decide which library verifies signatures in this process, and in how many threads.

AWS-LC, which comes with the library `awscrt`, takes less than half of the time that OpenSSL takes for P-384. Signing
stays with OpenSSL, since AWS-LC's signatures are not deterministic.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from goatherd.crypto.keys import OtherLibrary, verify_with

CPU_LIMIT: Final = Path("/sys/fs/cgroup/cpu.max")
_FEW_CORES: Final = 2


def use_aws_lc() -> bool:
    """Verify with AWS-LC from now on, if `awscrt` is installed; return whether it is.

    `awscrt` holds the GIL while it verifies. So AWS-LC verifies in the main thread, where requests wait for the result.
    In other threads it verifies only on a machine with one or two cores, where one thread verifies many signatures
    faster than several, which would wait for each other. On more cores, several threads with OpenSSL are faster.
    """
    try:
        from awscrt.crypto import EC
    except ImportError:
        return False
    has_few_cores = count_cores() <= _FEW_CORES
    main = threading.main_thread().ident
    verify_with(
        OtherLibrary(
            EC.new_key_from_der_data,
            is_preferred=lambda: has_few_cores or threading.get_ident() == main,
            is_serial=has_few_cores,
        )
    )
    return True


@contextmanager
def verification_threads(name: str) -> Iterator[ThreadPoolExecutor]:
    """Verify with AWS-LC from now on, and provide one thread for each core; the threads end with the block.

    Args:
        name: What the names of the threads begin with.
    """
    use_aws_lc()
    with ThreadPoolExecutor(count_cores(), thread_name_prefix=name) as executor:
        yield executor


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
