"""Check between rotations that the anchor can still sign: a key in an HSM or a KMS, which endorses each new root.

A rotation needs the anchor only once every few weeks. Without this check, an operator would find out that the HSM or
the KMS does not answer only when the root has to be renewed.
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
"""How many consecutive checks may fail by default before the controller reports the failure."""

FindProblem = Callable[[IdentityDocument], Awaitable[tuple[str, str] | None]]
"""Lets the signer of an identity's anchor sign a test text; returns what is wrong and what to do, None if it signed."""


class AnchorWatch:
    """Checks from time to time that the identity's anchor signs a test text, and remembers the result.

    Args:
        find_problem: Lets the anchor's signer sign a test text, and returns the problem, if any (`FindProblem`).
        clock: Measures the pauses between checks.
        quiet_failures: How many consecutive checks may fail before the controller reports the failure.

    Attributes:
        is_reachable: Whether the anchor signed at the last check; None before the first one, and without an
            anchor.
    """

    def __init__(self, find_problem: FindProblem, *, clock: Clock, quiet_failures: int = QUIET_FAILURES) -> None:
        self.is_reachable: bool | None = None
        self._find_problem = find_problem
        self._clock = clock
        self._quiet_failures = quiet_failures
        self._anchor_id: str | None = None
        self._failures = 0
        self._next_at = 0.0

    async def check_if_due(self, document: IdentityDocument) -> str | None:
        """Check the anchor if the next check is due; return the problem once several checks in a row have failed.

        The result is None after a success, after the first failures, and if nothing was checked. Nothing is checked
        while a rotation is in progress, because the rotation has every signature of the anchor that it needs.
        """
        anchor = document.anchor
        if anchor != self._anchor_id:
            self._anchor_id, self.is_reachable, self._failures, self._next_at = anchor, None, 0, 0.0
        if anchor is None or document.rotation is not None or self._clock.monotonic() < self._next_at:
            return None
        problem = await self._find_problem(document)
        self.is_reachable = problem is None
        self._failures = 0 if problem is None else self._failures + 1
        pause = CHECK_INTERVAL if problem is None else RETRY_INTERVAL
        self._next_at = self._clock.monotonic() + pause.total_seconds()
        if problem is None or self._failures <= self._quiet_failures:
            return None
        return f"the anchor {anchor} cannot sign: {problem[0]}"
