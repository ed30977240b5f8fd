"""What the agent asks its server from outside: is it up, who signs, and would it give its key to a stranger.

What it is not: it decides nothing. Rules: plain GoatDB means only, as any client would; a key that comes back is
noticed by its root's id and dropped at once (`goatherd.client`); no answer is never taken for a good one.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from goatherd.client import NodeClient
from goatherd.clock import Clock
from goatherd.errors import KeyLeakedError, NodeError
from goatherd.identity.document import IdentityDocument
from goatherd.rotation.machine import NodeView
from goatherd.rotation.observe import Observer, Question

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


async def signer_at(client: NodeClient, document: IdentityDocument, clock: Clock) -> str | None:
    """Return who signs at the server, or None where that cannot be seen. Costs one anonymous session."""
    observer = Observer([client], clock=clock, timeout=2 * client.timeout)
    view: NodeView
    (view,) = await observer.look(Question(asker=document.current, signer=True))
    return view.signs_with


async def ask_as_an_attacker(client: NodeClient) -> bool:
    """Ask what anybody can ask, POST /auth/session, and look for a private key in the answer (formats T1).

    Returns:
        Whether there was an answer. Costs one anonymous session.

    Raises:
        KeyLeakedError: A private key came back. It is burnt.
    """
    for _ in range(_ATTEMPTS):
        try:
            new = await client.new_session()
        except NodeError:
            continue
        if new.leaked:
            # SECURITY: whoever asked before us has the key; the server must not go on giving it
            # (tests/cluster/test_agent.py).
            raise KeyLeakedError(
                f"{client.base_url} GIVES THE PRIVATE KEY OF ROOT {' '.join(new.leaked)} TO ANYBODY WHO ASKS"
            )
        return True
    return False
