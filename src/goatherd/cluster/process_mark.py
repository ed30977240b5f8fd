"""Find out whether an unmodified GoatDB server has restarted, by a mark in its process and without writing any data.

COMPAT: a GoatDB process caches the results for the last thousand request signatures, and continues to accept a cached
signature after it has expired. So the mark is a request signature that is sent shortly before it expires. As long as
the server accepts the mark later, but rejects a new signature with the same timestamp, the process is the same.

A missing mark does not prove a restart: a process that has checked a thousand other signatures has lost the mark, too.

SECURITY: a mark is a request signature. Once the mark has expired, only the process that has cached it accepts it.
Goatherd keeps marks in memory only. A mark names no server, so no Goatherd server and no door (the verifying proxy in
front of an unmodified server) accepts it (tests/unit/node/test_bound_requests.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from enum import Enum, auto
from typing import Final

from goatherd.cluster.node import Node
from goatherd.identity.request_binding import RequestBinding, sign_bound_request
from goatherd.identity.session import OwnedSession
from goatherd.ids import new_id

# GoatDB accepts a signature for three minutes. The older a mark is when it is sent, the sooner only the marked process
# accepts it. The younger ages are for a server whose clock is ahead.
_AGES_MS: Final = (179_700, 178_000, 170_000)
TOO_OLD_AFTER: Final = timedelta(seconds=30)
"""After this time a server rejects every signature as old as a mark, unless it has the mark in its cache."""


class MarkState(Enum):
    """Whether a server's process still has the mark that was left in it, as the server's answer shows."""

    FOUND = auto()
    """The server still runs in the process that took the mark."""
    LOST = auto()
    """The server runs in another process, or the process has lost the mark."""
    TOO_EARLY = auto()
    """The server would still accept any signature with that timestamp, so its answer proves nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessMark:
    """A mark to recognize a server's process by: a request signature that the process has accepted and remembers."""

    signer: OwnedSession
    time_ms: int
    signature: str = field(repr=False)


async def leave_mark(node: Node, signer: OwnedSession, now_ms: int) -> ProcessMark | None:
    """Leave a mark in the memory of a server's present process, to notice a restart; return the mark.

    The mark is a request signature that is about to expire. The result is None if the server accepts none, or if the
    key of `signer` is in an HSM or a KMS, where each signature costs a request.

    Args:
        node: The server.
        signer: A session that the server trusts.
        now_ms: Milliseconds since 1970.

    Raises:
        NodeUnreachableError, NodeRefusedError: The server does not answer, or answers neither yes nor no.
    """
    if signer.is_remote:
        return None
    for age_ms in _AGES_MS:
        time_ms = now_ms - age_ms
        signature = _sign(signer, time_ms)
        if await node.accepts_signature(signature):
            return ProcessMark(signer=signer, time_ms=time_ms, signature=signature)
    return None


async def find_mark(node: Node, mark: ProcessMark) -> MarkState:
    """Return whether the process of a server still has a mark that was left in it, which shows that it is the same.

    Raises:
        NodeUnreachableError, NodeRefusedError: The server does not answer, or answers neither yes nor no.
    """
    if await node.accepts_signature(_sign(mark.signer, mark.time_ms)):
        return MarkState.TOO_EARLY
    return MarkState.FOUND if await node.accepts_signature(mark.signature) else MarkState.LOST


def _sign(signer: OwnedSession, time_ms: int) -> str:
    return sign_bound_request(
        signer, RequestBinding.for_request("POST", "/batch-sync", b"[]"), now_ms=time_ms, nonce=new_id()
    )
