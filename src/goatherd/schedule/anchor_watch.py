"""Check between rotations that the signer of the identity's anchor can be reached and signs.

A rotation needs the anchor once in weeks. Without this check, an operator would learn of a signer that does not answer
only when the working root has to be renewed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Final

from goatherd.clock import Clock
from goatherd.identity.document import IdentityDocument

CHECK_INTERVAL: Final = timedelta(hours=1)
"""Pause between two test signatures; each can cost money and counts against the quota of the platform."""
RETRY_INTERVAL: Final = timedelta(minutes=5)
"""Pause after a check that failed."""
QUIET_FAILURES: Final = 2
"""How many consecutive checks may fail before an operator is told."""

FindProblem = Callable[[IdentityDocument], Awaitable[tuple[str, str] | None]]
"""Lets the signer of an identity's anchor sign a test text; returns what is wrong and what to do, None if it signed."""


class AnchorWatch:
    """Lets the anchor sign a test text from time to time, and remembers whether it did.

    Args:
        find_problem: Asks the signer; see `FindProblem`.
        clock: Measures the pauses.

    Attributes:
        is_reachable: Whether the anchor signed at the last check; None if there was none, or there is no anchor.
    """

    def __init__(self, find_problem: FindProblem, *, clock: Clock) -> None:
        self.is_reachable: bool | None = None
        self._find_problem = find_problem
        self._clock = clock
        self._anchor_id: str | None = None
        self._failures = 0
        self._next_at = 0.0

    async def check_if_due(self, document: IdentityDocument) -> str | None:
        """Check the anchor if the last check is long ago; return the problem if it has lasted for several checks.

        While a rotation is in progress nothing is checked: the rotation has every signature that it needs.
        """
        anchor = document.anchor
        anchor_id = None if anchor is None else anchor.id
        if anchor_id != self._anchor_id:
            self._anchor_id, self.is_reachable, self._failures, self._next_at = anchor_id, None, 0, 0.0
        if anchor is None or document.rotation is not None or self._clock.monotonic() < self._next_at:
            return None
        problem = await self._find_problem(document)
        self.is_reachable = problem is None
        self._failures = 0 if problem is None else self._failures + 1
        pause = CHECK_INTERVAL if problem is None else RETRY_INTERVAL
        self._next_at = self._clock.monotonic() + pause.total_seconds()
        if problem is None or self._failures <= QUIET_FAILURES:
            return None
        return f"the anchor {anchor.id} cannot sign: {problem[0]}"
