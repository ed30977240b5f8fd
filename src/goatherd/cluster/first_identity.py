"""Ask the peers of a server that has used no identity yet whether they trust the root of the identity in the store.

Such a server has nothing with which to compare the identity. Its peers have: they follow only endorsed roots. A peer
that accepts a request signed by the root trusts this root; the request is an ordinary ``/batch-sync`` request, which
unmodified GoatDB servers answer, too. A peer that reports the digest of the same identity also trusts its root, even if
the root has expired, or its HSM or KMS does not sign. `goatherd.settings.store` decides what follows.

Rules: an attacker may have written the identity, so nothing in it makes a rejection count less. A peer that does not
answer, or answers with an error, counts neither way, so that a server also starts before its peers. One peer that
trusts the root is enough, so that a compromised peer cannot keep a server from starting as long as another one answers.
A peer whose clock differs rejects every signature, so its rejection does not count.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Final

from goatherd.clock import Clock
from goatherd.cluster.client import NodeClient
from goatherd.errors import GoatherdError, NodeRefusedError, NodeUnreachableError
from goatherd.identity.document import IdentityDocument, source_digest
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

    The function returns no peer if any peer accepts the root.

    Args:
        peers: Returns the URLs of the other servers; may raise `GoatherdError`.
        connect: Makes a client for a URL; this module closes it.
        clock: Tells the time.
        connect_root: As for `goatherd.cluster.introductions.introduction_source`.
    """

    async def find_rejecting_peers(document: IdentityDocument) -> Sequence[str]:
        signer = connect_root(document).current
        try:
            urls = await peers()
        except GoatherdError:  # the servers cannot be found out now
            return ()
        digest = source_digest(document)
        asked = {asyncio.create_task(_accepts_root(connect, url, signer, digest, clock)): url for url in urls}
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
    connect: Callable[[str], NodeClient], url: str, signer: OwnedSession, digest: str, clock: Clock
) -> bool | None:
    """Return whether the server at a URL trusts a root; None if it does not answer, or if its clock differs."""
    try:
        async with connect(url) as client:
            now_ms = clock.now_ms()
            try:
                if await client.answers(signer, now_ms):
                    return True
            except (NodeUnreachableError, NodeRefusedError):
                return None
            except GoatherdError:
                pass  # this server cannot sign as the root
            identity = await client.identity()
            if identity is not None and identity.digest == digest:
                return True
            ahead_ms = client.clock_ahead_ms(now_ms)
            return None if ahead_ms is None or abs(ahead_ms) > _MOST_AHEAD_MS else False
    except GoatherdError:  # a URL that is not valid, too: the synchronization reports it
        return None
