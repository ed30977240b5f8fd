"""Get root introductions from a server's own log and from its peers, for a server that was offline for many rotations.

A root introduction is a session commit by which one root declares another root trusted. Such a server needs a chain of
them, from a root that it trusts to the current one. This module only collects them, and `goatherd.identity.succession`
verifies the chain, so a malicious peer can at most send commits that do not verify. The server's own log is read first,
then one peer after the other, until the chain is complete. If one of them cannot be read, the error is reported.

Requests to peers are signed with the current root of the new identity document. The server itself does not trust this
root yet, but its peers do. The requests are ordinary ``/batch-sync`` requests, which unmodified GoatDB servers answer.
SECURITY: an attacker may have written the document, so a signer that only the document names is not called
(tests/unit/node/test_database.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import Any, Final

from goatherd.clock import Clock
from goatherd.cluster.client import NodeClient
from goatherd.errors import GoatherdError, NodeError
from goatherd.identity.document import IdentityDocument
from goatherd.identity.session_commits import claims_root
from goatherd.settings.base import Introductions, IntroductionSource
from goatherd.wire.commit import Commit, decode_commits
from goatherd.wire.paths import SESSIONS_PATH

OWN_LOG: Final = "this server's own log"


def introduction_source(
    *,
    org: str,
    read_own: Callable[[], Iterable[Any]],
    peers: Callable[[], Awaitable[Sequence[str]]],
    connect: Callable[[str], NodeClient],
    clock: Clock,
    connect_root: Callable[[IdentityDocument], IdentityDocument] = lambda document: document,
) -> IntroductionSource:
    """Return a function that yields root introductions: first from this server's own log, then from each peer.

    A root introduction is a commit by which one root declares another root trusted.

    Args:
        org: The organization; it is part of the signed bytes.
        read_own: Returns the records of this server's own ``/sys/sessions``; called in a thread, may raise
            `GoatherdError`.
        peers: Returns the URLs of the other servers; may raise `GoatherdError`.
        connect: Makes a client for a URL; this module closes it.
        clock: Tells the time.
        connect_root: Returns the document with a current root that signs with a signer of this server, if its key is in
            an HSM or a KMS. By default such a document must be rejected before.
    """

    async def give(document: IdentityDocument) -> AsyncIterator[Introductions]:
        try:
            commits = await asyncio.to_thread(lambda: _roots(read_own(), org))
        except GoatherdError as error:
            yield Introductions(place=OWN_LOG, problem=str(error))
        else:
            yield Introductions(place=OWN_LOG, commits=commits)
        signer = connect_root(document).current
        try:
            urls = await peers()
        except GoatherdError as error:
            urls = ()
            yield Introductions(place="the other servers", problem=str(error))
        for url in urls:
            client = connect(url)
            try:
                pulled = await client.pull(SESSIONS_PATH, signer, clock.now_ms())
                found = Introductions(place=url, commits=await asyncio.to_thread(_roots, pulled, org))
            except NodeError as error:
                found = Introductions(place=url, problem=str(error))
            finally:
                await client.aclose()
            yield found

    return give


def _roots(records: Iterable[Any], org: str) -> tuple[Commit, ...]:
    return tuple(commit for commit in decode_commits(records, org) if claims_root(commit))
