"""A server that an attacker controls: it does its work, and gives the commands false answers.

What it is: one lie in the answers of a real server, until the server is repaired. What it is not: a thief of keys;
it signs nothing that counts. Clients and peers get honest answers, since they verify what they are sent; what a server
says of itself and of what it holds cannot be verified, so that is what it lies about.

Rule: whatever is invented bears `MARK`, so that it can be found wherever it must not get to.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from enum import StrEnum
from typing import Any, Final

import orjson

from goatherd.identity.revocations import FrozenList
from tests.simulation.dice import Dice
from tests.simulation.network import Answer

MARK: Final = "a-lie"
_OK: Final = 200
_GARBAGE: Final[tuple[Any, ...]] = ([[]], 1e300, -1, f"{MARK}\x1b[2J", {MARK: []}, [MARK, 7], True, 2**63 - 1)
_MEMBERS: Final = ("signer", "roots", "generation", "revoked", "viewAgeMs", "instance", "peers", "nowMs", "org", "data")
_FAR: Final = (2**31, 2**53 - 2, 2**53 - 1)


class Lie(StrEnum):
    """The kind of a server's false answer."""

    FAR = "a generation far ahead"
    ANOTHER = "the instance of another server"
    STRANGER = "roots that there are not"
    ALONE = "commits that it holds alone"
    GARBAGE = "members of wrong types"
    NONSENSE = "bodies that are none"


INVALID: Final = frozenset({Lie.GARBAGE})
"""Lies that are no answers: they count as the server's failure, as silence does. A body that is none does not: an
unmodified GoatDB server answers so whatever it is asked, and is then looked at by plain GoatDB means."""


class Liar:
    """One server's lie.

    Args:
        lie: The lie.
        dice: Source of the random parts of the lie.
        another: Returns the instance id of another server; None where none serves.
        claimed: Returns the digests of what a thief signs with stolen roots.
    """

    def __init__(
        self,
        lie: Lie,
        dice: Dice,
        *,
        another: Callable[[], str | None],
        claimed: Callable[[], frozenset[bytes]],
    ) -> None:
        self.lie = lie
        self._claimed = claimed
        self._dice = dice
        self._another = another

    def twist(self, path: str, answer: Answer) -> Answer:
        """Return the false answer that replaces an honest one."""
        if answer.status_code != _OK or not path.startswith("/goatherd/"):
            return answer
        if self.lie is Lie.NONSENSE:
            return replace(answer, content=self._dice.choice((b"", b"\xff\x00", f'["{MARK}"'.encode(), b"[" * 900)))
        match path:
            case "/goatherd/v1/identity" | "/goatherd/v1/refresh":
                return replace(answer, content=orjson.dumps(self._identity(orjson.loads(answer.content))))
            case "/goatherd/v1/lacking" if self.lie is Lie.GARBAGE:
                return replace(answer, content=orjson.dumps({"lacking": self._garbage()}))
            case "/goatherd/v1/held" if self.lie is Lie.ALONE:
                return replace(answer, content=self._held(answer.content))
            case "/goatherd/v1/held" if self.lie is Lie.GARBAGE:
                return replace(answer, content=answer.content + b"\x00" * self._dice.randint(1, 64))
        return answer

    def _identity(self, told: dict[str, Any]) -> dict[str, Any]:
        match self.lie:
            case Lie.FAR:
                return {**told, "generation": self._dice.choice(_FAR)}
            case Lie.ANOTHER:
                return {**told, "instance": self._another() or told.get("instance")}
            case Lie.STRANGER:
                return {**told, "signer": f"{MARK}-signer", "roots": [*told.get("roots", []), f"{MARK}-root"]}
            case Lie.GARBAGE:
                names: Sequence[str] = self._dice.sample(_MEMBERS, k=self._dice.randint(1, 3))
                return {**told, **{name: self._garbage() for name in names}}
        return told

    def _garbage(self) -> Any:
        return self._dice.choice(_GARBAGE)

    def _held(self, content: bytes) -> bytes:
        if content.startswith(b"{"):
            return content  # what some of them are
        honest = FrozenList.from_bytes(content)
        return FrozenList(honest.digests | invented() | self._claimed()).to_bytes()


def invented() -> frozenset[bytes]:
    """Return digests of commits that there are not."""
    return frozenset(hashlib.sha256(f"{MARK}-{number}".encode()).digest() for number in range(3))
