"""Ports for servers whose address must be known before they listen, or that stop and listen there again.

A port that the system gave and that was closed again may be the next one that it gives, to another server or as the
near end of any connection. So these are below those that it gives, and no two processes of a test run share any. The
port after each one is given to no test, for servers that take two.
"""

from __future__ import annotations

import os
import random
import socket
from contextlib import suppress
from itertools import cycle, islice
from pathlib import Path
from typing import Final

_FIRST: Final = 10_000
_LAST: Final = 32_767
_SYSTEM: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")


def _own() -> list[int]:
    """Return the ports of this process of the test run, starting at a random one."""
    last = _LAST
    with suppress(OSError):
        last = min(last, int(_SYSTEM.read_text().split()[0]) - 1)
    count = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    ports = list(range(_FIRST + 2 * number, last, 2 * count))
    start = random.SystemRandom().randrange(len(ports))
    return ports[start:] + ports[:start]


_NEXT: Final = cycle(_own())


def free_ports(count: int) -> list[int]:
    """Return ports on which nothing listens, and which no other test of this run is given."""
    return list(islice((port for port in _NEXT if _is_free(port) and _is_free(port + 1)), count))


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
