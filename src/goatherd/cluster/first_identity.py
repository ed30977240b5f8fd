"""Ask the peers of a server that has used no identity yet whether they trust the root of the identity in the store.

Such a server has nothing with which to compare the identity. Its peers have: they follow only endorsed roots. A request
signed by the root shows whether a peer trusts this root; it is an ordinary ``/batch-sync`` request, which unmodified
GoatDB servers answer, too. This module judges nothing but the answers; `goatherd.settings.store` decides.

Rules: a peer that does not answer, or answers with an error, counts neither way, so that a server also starts before
its peers. One peer that trusts the root is enough, so that a compromised peer cannot keep a server from starting as
long as another one answers. A peer whose clock differs rejects every signature, so its rejection does not count.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Final

from goatherd.clock import Clock
from goatherd.cluster.client import NodeClient
from goatherd.errors import GoatherdError
from goatherd.identity.document import IdentityDocument
from goatherd.identity.session import OwnedSession
from goatherd.serving.signals import cancel_tasks
from goatherd.settings.base import RejectionSource

ANSWER: Final = timedelta(seconds=5)
"""How long the peers may take to answer."""
_MOST_AHEAD_MS: Final = 60_000


def rejection_source(
    *,
    peers: Callable[[], Awaitable[Sequence[str]]],
    connect: Callable[[str], NodeClient],
    clock: Clock,
    connect_root: Callable[[IdentityDocument], IdentityDocument] = lambda document: document,
) -> RejectionSource:
    """Return a function that returns the peers which reject the current root of an identity document.

    The function returns no peer if any peer accepts the root, or if the root has expired.

    Args:
        peers: Returns the URLs of the other servers; may raise `GoatherdError`.
        connect: Makes a client for a URL; this module closes it.
        clock: Tells the time.
        connect_root: As for `goatherd.cluster.introductions.introduction_source`.
    """

    async def find_rejecting_peers(document: IdentityDocument) -> Sequence[str]:
        if document.current.session.is_expired(clock.now_ms()):
            return ()
        signer = connect_root(document).current
        try:
            urls = await peers()
        except GoatherdError:  # the servers cannot be found out now
            return ()
        asked = {asyncio.create_task(_accepts_root(connect, url, signer, clock)): url for url in urls}
        try:
            for answer in asyncio.as_completed(asked, timeout=ANSWER.total_seconds()):
                if await answer:
                    return ()
        except TimeoutError:
            pass
        finally:
            await cancel_tasks(*asked)
        return [url for task, url in asked.items() if not task.cancelled() and task.result() is False]

    return find_rejecting_peers


async def _accepts_root(
    connect: Callable[[str], NodeClient], url: str, signer: OwnedSession, clock: Clock
) -> bool | None:
    """Return whether the server at a URL trusts a root; None if it does not answer, or if its clock differs."""
    try:
        async with connect(url) as client:
            now_ms = clock.now_ms()
            if await client.answers(signer, now_ms):
                return True
            ahead_ms = client.clock_ahead_ms(now_ms)
            return None if ahead_ms is None or abs(ahead_ms) > _MOST_AHEAD_MS else False
    except GoatherdError:  # a URL that is not valid, too: the synchronization reports it
        return None
