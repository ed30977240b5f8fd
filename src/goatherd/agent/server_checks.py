"""Check a GoatDB server from outside: which root signs, and whether it exposes its private key.

The caller decides what to do about a result. Rules: the checks send only requests that any client can send. A private
key in an answer is reported by its root's id, and the key itself is dropped at once (`goatherd.cluster.client`). A
check of a server that does not answer never counts as passed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from goatherd.clock import Clock
from goatherd.cluster.client import NodeClient
from goatherd.cluster.session_queries import find_session_commit, read_sessions_filter, read_signer
from goatherd.errors import KeyLeakedError, NodeError
from goatherd.identity.document import IdentityDocument

_ATTEMPTS: Final = 3


@dataclass(frozen=True, slots=True)
class LeakCheck:
    """Result of a check for key exposure in which the server returned no private key.

    Attributes:
        at_ms: When the request was sent, in milliseconds since 1970.
        signer: The root that has introduced the new session; None if its introduction was not found.
        commit_id: The commit that introduces the new session.
    """

    at_ms: int
    signer: str | None = None
    commit_id: str | None = None


async def check_key_exposure(client: NodeClient, document: IdentityDocument, clock: Clock) -> LeakCheck | None:
    """Request a session without authentication (POST /auth/session) and search the answer for a private key.

    Each check creates one anonymous session, which GoatDB stores permanently. Its commit also shows which root signs.

    Args:
        client: HTTP client of the server.
        document: The identity document that the server was started with.
        clock: Supplies the current time.

    Returns:
        The result; None if the server did not answer.

    Raises:
        KeyLeakedError: The answer held a private key. That key is exposed.
    """
    for _ in range(_ATTEMPTS):
        known = await _read_known(client, document, clock)
        try:
            new = await client.new_session()
        except NodeError:
            continue
        if new.leaked:
            # SECURITY: earlier clients may have received the key. The caller must stop the server, before the server
            # returns the key again (tests/cluster/test_agent.py).
            raise KeyLeakedError(
                f"{client.base_url} returned the private key of root {' '.join(new.leaked)}"
                " to an unauthenticated request",
                root_ids=new.leaked,
            )
        at_ms = clock.now_ms()
        try:
            commit = await find_session_commit(client, new.owned, known, at_ms)
        except NodeError:
            commit = None
        if commit is None or not isinstance(commit.get("id"), str):
            return LeakCheck(at_ms)
        return LeakCheck(at_ms, read_signer(commit), commit["id"])
    return None


async def _read_known(client: NodeClient, document: IdentityDocument, clock: Clock) -> Any:
    try:
        return await read_sessions_filter(client, document.current, clock.now_ms())
    except NodeError:
        return None  # a server that does not trust the root is checked as well
