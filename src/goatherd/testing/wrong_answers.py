"""Make a fake store answer a request wrongly, to test whether a provider notices the wrong answer.

A wrong answer reports success, but the change was not made or was made twice, or the data are those of another version;
or the answer is empty or truncated. Errors, lost answers and broken networks are not simulated.

A fake server, or the transport of a client, calls `WrongAnswers` for each request. `WrongAnswers` gives a wrong answer
if a check has chosen one for this request, and passes every other answer and every error on unchanged.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from enum import StrEnum

Restore = Callable[[], None]


class WrongAnswer(StrEnum):
    """A kind of wrong answer of a store; each reports success, so that a provider must look at the content."""

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
    """Decides which request to a fake store is answered wrongly. A check and the store share one object; thread-safe.

    Attributes:
        seen: The number of requests since the wrong answer was chosen, of those to which this kind of answer applies.
        given: The number of wrong answers given since then.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wrong: WrongAnswer | None = None
        self._position = 0
        self.seen = 0
        self.given = 0

    def choose(self, wrong: WrongAnswer | None, position: int = 1) -> None:
        """Choose the kind of wrong answer for the request at `position`, and reset the counts.

        Only requests to which this kind applies are counted; 1 is the next one. With None, all answers are right.
        """
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
        """Answer one request to the fake store, wrongly if `choose` has chosen that; return the body of the answer.

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
                # The store may reject the second request; the client does not get that answer.
                with contextlib.suppress(Exception):
                    do()
            case WrongAnswer.EMPTY:
                body = b""
            case WrongAnswer.CUT:
                body = body[: len(body) // 2]
        return body

    def take(self, *, changes: bool) -> WrongAnswer | None:
        """Count a request, and return the kind of wrong answer that it must get; None for the right answer.

        For callers that cannot use `answer`. A caller that has given the wrong answer must increase `given`.
        """
        with self._lock:
            if self._wrong is None or (self._wrong in CHANGES and not changes):
                return None
            if self._wrong is WrongAnswer.OTHER_VERSION and changes:
                return None
            self.seen += 1
            return self._wrong if self.seen == self._position else None
