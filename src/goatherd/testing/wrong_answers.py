"""Make a store answer a request wrongly, to test whether a provider notices the wrong answer.

A wrong answer reports success, but the change was not made, was made twice, or was made to the wrong version; or the
answer is empty or truncated. Errors, lost answers and broken networks are not simulated.

A fake server or a client's transport calls `WrongAnswers` for each request. It gives one wrong answer when a check of
the contract suite requests that, and passes every other answer and every error on unchanged.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from enum import StrEnum

Restore = Callable[[], None]


class WrongAnswer(StrEnum):
    """A kind of wrong answer; each reports success."""

    NOT_DONE = "not done"
    """The change was not made; the answer is the one of a change that was."""
    DONE_TWICE = "done twice"
    """The change was made twice; the answer is that of the first time."""
    OTHER_VERSION = "other version"
    """A read is answered with the data of another version, or of another secret."""
    EMPTY = "empty"
    """It has no body."""
    CUT = "cut"
    """Its body ends in the middle."""


CHANGES = frozenset({WrongAnswer.NOT_DONE, WrongAnswer.DONE_TWICE})
"""Those that befall requests which change something; the others befall any."""


class WrongAnswers:
    """Decides which request is answered wrongly. A check and the fake store share it; thread-safe.

    Attributes:
        seen: The number of requests, of the kind that the chosen wrong answer applies to, since it was chosen.
        given: The number of wrong answers given since then.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wrong: WrongAnswer | None = None
        self._position = 0
        self.seen = 0
        self.given = 0

    def choose(self, wrong: WrongAnswer | None, position: int = 1) -> None:
        """Choose the wrong answer for the request at `position` (1 is the next); None for right answers only."""
        with self._lock:
            self._wrong, self._position, self.seen, self.given = wrong, position, 0, 0

    def answer(
        self,
        do: Callable[[], bytes],
        *,
        changes: bool,
        save: Callable[[], Restore],
        other: Callable[[], bytes | None] = lambda: None,
    ) -> bytes:
        """Answer one request, rightly or wrongly.

        Args:
            do: Carries out the request and returns the body of the answer; raises if the answer is an error.
            changes: Whether the request changes the store.
            save: Saves the store's state, and returns a function that restores it.
            other: Returns the body for another version or secret than the requested one; None if there is none.
        """
        wrong = self.take(changes=changes)
        if wrong is None:
            return do()
        if wrong is WrongAnswer.OTHER_VERSION:
            body = other()
            if body is None:
                return do()
            self.given += 1
            return body
        restore = save()
        body = do()
        self.given += 1
        match wrong:
            case WrongAnswer.NOT_DONE:
                restore()
            case WrongAnswer.DONE_TWICE:
                # The store may reject the second time; its client does not hear of it.
                with contextlib.suppress(Exception):
                    do()
            case WrongAnswer.EMPTY:
                body = b""
            case WrongAnswer.CUT:
                body = body[: len(body) // 2]
        return body

    def take(self, *, changes: bool) -> WrongAnswer | None:
        """Count a request and return the wrong answer for it, for callers that cannot use `answer`.

        After a wrong answer, the caller increases `given`.
        """
        with self._lock:
            if self._wrong is None or (self._wrong in CHANGES and not changes):
                return None
            if self._wrong is WrongAnswer.OTHER_VERSION and changes:
                return None
            self.seen += 1
            return self._wrong if self.seen == self._position else None
