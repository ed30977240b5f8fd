"""Write the indexes of a running server's logs, so that the server opens the logs faster at its next start.

The task runs in the background and writes an index block by block, like `goatherd.node.data_check` with pauses that are
longer while requests keep the server busy. It checks the open repositories every two minutes. A log gets its index
after it was opened, and further blocks as it grows. A server that is killed loses at most the last `LEAST` commits of
the index.
"""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import Executor
from datetime import timedelta
from typing import Final

from goatherd.clock import Clock
from goatherd.errors import StorageError
from goatherd.node.data_check import pause_after
from goatherd.node.engine import Engine
from goatherd.node.repository import Repository
from goatherd.telemetry import Event, event_text

LEAST: Final = 1000
"""So many commits must be missing in an index before a block is added: parsing fewer takes some milliseconds."""
INTERVAL: Final = timedelta(minutes=2)

_log = logging.getLogger("goatherd.node")


class IndexWriter:
    """Write the indexes of an organization's open repositories.

    Args:
        engine: The engine with the open repositories; the task runs on the engine's event loop.
        workers: Executor that reads the logs and writes the indexes, one block at a time.
        clock: Supplies the current time.
    """

    def __init__(self, *, engine: Engine, workers: Executor, clock: Clock) -> None:
        self._engine = engine
        self._workers = workers
        self._clock = clock

    async def run(self) -> None:
        """Write what the indexes lack, again and again, until the task is cancelled."""
        while True:
            for repository in list(self._engine.repositories.values()):
                await self.extend_index(repository)
            await self._clock.sleep(INTERVAL)

    async def extend_index(self, repository: Repository) -> None:
        """Add blocks to the index of one repository's log until it lacks fewer than `LEAST` commits.

        An index that cannot be written is not continued before the repository is opened again; this is logged.
        """
        loop = asyncio.get_running_loop()
        while repository.unindexed_count >= LEAST:
            before, began = repository.indexed, self._clock.monotonic()
            try:
                after = await loop.run_in_executor(self._workers, repository.write_index_block)
            except StorageError as error:
                after = None
                _log.info("%s", event_text(Event.DATA_NO_INDEX, repository=repository.path, error=error))
            repository.note_indexed(before, after)
            if after is before:
                return  # the commits are not in the log yet
            await pause_after(self._clock, self._clock.monotonic() - began)
