"""Find the test that leaves a connection open when its event loop has ended.

Without this, the garbage collector reports such a connection much later, during a test that has nothing to do with it.
"""

from __future__ import annotations

import asyncio
from asyncio import selector_events
from collections import deque
from typing import Any
from weakref import ref

_Transport: Any = selector_events._SelectorTransport  # type: ignore[attr-defined]
_made: deque[tuple[ref[Any], str]] = deque()
_running = ["before the first test"]


def watch_connections() -> None:
    """Note for each connection of asyncio in which test it was made. Call it once."""
    make = _Transport.__init__

    def note(self: Any, loop: asyncio.AbstractEventLoop, sock: Any, protocol: Any, *rest: Any, **more: Any) -> None:
        make(self, loop, sock, protocol, *rest, **more)
        _made.append((ref(self), f"{_running[0]}: to {_peer_of(sock)}, by {type(protocol).__name__}"))

    _Transport.__init__ = note


def enter_test(name: str) -> None:
    """Note which test runs now."""
    _running[0] = name


def connections_left_open() -> list[str]:
    """Return in which test each connection was made whose event loop has ended, and that nothing has closed."""
    found = []
    for _ in range(len(_made)):
        made, text = _made.popleft()
        one = made()
        if one is None or one._sock is None:
            continue
        if one._loop is not None and not one._loop.is_closed():
            _made.append((made, text))
            continue
        one._sock.close()
        one._sock = None
        found.append(text)
    return found


def _peer_of(sock: Any) -> str:
    try:
        return f"{sock.getpeername()}"
    except OSError:
        return "a peer that is gone"
