"""A stand-in for an unmodified GoatDB server on a thread of its own, for commands that run in this process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from goatherd.identity.session import OwnedSession
from tests.fakes.upstream_child import UpstreamChild


@contextmanager
def upstream(root: OwnedSession, prepare: Callable[[UpstreamChild], None]) -> Iterator[UpstreamChild]:
    """Run a server until the block ends; `prepare` fills it before it serves."""
    started, child = threading.Event(), UpstreamChild(root, leaks=False)
    prepare(child)
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def serve() -> None:
        async with child:
            started.set()
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    try:
        assert started.wait(60)
        yield child
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()
