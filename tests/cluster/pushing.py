"""A client that pushes as GoatDB's does: all commits that the server lacks in one message, repeated after ten
seconds."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import httpx2

from goatherd.identity.session import OwnedSession
from goatherd.ids import new_seeds
from goatherd.wire.bloom import BloomFilter, seed_count
from goatherd.wire.commit import Commit
from tests.deadlines import HANG
from tests.unit.goats import NOW, element, signed_header

OFFERS = 10
"""GoatDB's client offers a commit in so many answered messages and then takes it for replicated."""
IMPATIENT = 50
"""After so many timeouts a client waits for each answer, since on a busy machine its patience may never be enough."""


@dataclass
class PushingClient:
    """One client with the commits of one repository.

    Attributes:
        url: The server that it talks to.
        owned: Its session.
        path: The repository.
        commits: The commits that it holds.
        patience: How many seconds it waits for a whole answer; ten in the original.
        pause: How many seconds it waits between two messages.
        offered: In how many answered messages each commit was.
        statuses: The statuses of the answers.
        timeouts: How often it gave up and closed the connection.
    """

    url: str
    owned: OwnedSession
    path: str
    commits: Sequence[Commit]
    patience: float = 10.0
    pause: float = 0.02
    offered: Counter[str] = field(default_factory=Counter)
    statuses: list[int] = field(default_factory=list)
    timeouts: int = 0

    async def run(self) -> None:
        """Push until the server has everything, or everything was offered too often."""
        held: BloomFilter | None = None
        while True:
            # The first message asks for the server's filter.
            wanted = [] if held is None else [each for each in self.commits if each.id not in held]
            left = [each for each in wanted if self.offered[each.id] < OFFERS]
            if held is not None and not left:
                return
            held = await self._send(left) or held
            await asyncio.sleep(self.pause)

    async def _send(self, commits: Sequence[Commit]) -> BloomFilter | None:
        size = len(self.commits)
        own = BloomFilter.for_size(size, 1e-6, new_seeds(seed_count(size, 1e-6)))
        own.update([each.id for each in self.commits])
        body = [element(self.path, commits, held=own, size=size)]
        patience = self.patience if self.timeouts < IMPATIENT else HANG
        try:
            # A client that gives up closes the connection.
            async with httpx2.AsyncClient(verify=False, timeout=None) as http, asyncio.timeout(patience):
                headers = {"x-goat-sig": signed_header(self.owned, NOW)}
                response = await http.post(f"{self.url}/batch-sync", content=json.dumps(body), headers=headers)
        except (TimeoutError, httpx2.HTTPError):
            self.timeouts += 1
            return None
        self.statuses.append(response.status_code)
        if response.status_code != 200:
            return None
        self.offered.update([each.id for each in commits])
        return BloomFilter.from_json(response.json()[0]["res"]["f"]["__v"])
