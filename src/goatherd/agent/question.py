"""What the agent asks its server from outside: is it up, who signs, and would it give its key to a stranger.

What it is not: it decides nothing. Rules: plain GoatDB means only, as any client would; a key that comes back is
noticed by its root's id and dropped at once (`goatherd.client`); no answer is never taken for a good one.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from goatherd.client import NodeClient
from goatherd.clock import Clock
from goatherd.errors import KeyLeakedError, NodeError
from goatherd.identity.document import IdentityDocument
from goatherd.rotation.observe import find_session_commit, read_sessions_filter
from goatherd.rotation.vouching import signer_of

_ATTEMPTS: Final = 3


class Standing(StrEnum):
    """How a server stands to one root."""

    UP = "up"
    STRANGER = "stranger"
    """It answers, and does not trust the root: it has not read the file that it was given."""
    AWAY = "away"


async def standing(client: NodeClient, document: IdentityDocument) -> Standing:
    """Return whether the server answers a request that the document's current root has signed."""
    try:
        return Standing.UP if await client.answers(document.current) else Standing.STRANGER
    except NodeError:
        return Standing.AWAY


@dataclass(frozen=True, slots=True)
class LeakCheck:
    """What a server's answer to the attacker's question has shown; no private key was in it.

    Attributes:
        at_ms: When it was asked, in milliseconds since 1970.
        signer: The root that has signed the new session; None where that could not be seen.
        commit_id: The commit by which it did so.
    """

    at_ms: int
    signer: str | None = None
    commit_id: str | None = None


async def ask_as_an_attacker(client: NodeClient, document: IdentityDocument, clock: Clock) -> LeakCheck | None:
    """Ask what anybody can ask, POST /auth/session, and look for a private key in the answer.

    Costs one anonymous session, which GoatDB keeps permanently; so the same session also shows who signs.

    Args:
        client: The server.
        document: What it was started with.
        clock: The time.

    Returns:
        What was seen; None where there was no answer.

    Raises:
        KeyLeakedError: The server returned a private key. The key is exposed.
    """
    for _ in range(_ATTEMPTS):
        known = await _read_known(client, document, clock)
        try:
            new = await client.new_session()
        except NodeError:
            continue
        if new.leaked:
            # SECURITY: any earlier client may have the key; the server must stop before it returns the key again
            # (tests/cluster/test_agent.py).
            raise KeyLeakedError(
                f"{client.base_url} returned the private key of root {' '.join(new.leaked)} to an unauthenticated"
                " request"
            )
        at_ms = clock.now_ms()
        try:
            commit = await find_session_commit(client, new.owned, known, at_ms)
        except NodeError:
            commit = None
        if commit is None or not isinstance(commit.get("id"), str):
            return LeakCheck(at_ms)
        return LeakCheck(at_ms, signer_of(commit), commit["id"])
    return None


async def _read_known(client: NodeClient, document: IdentityDocument, clock: Clock) -> Any:
    try:
        return await read_sessions_filter(client, document.current, clock.now_ms())
    except NodeError:
        return None  # a server that does not trust the root is asked all the same
