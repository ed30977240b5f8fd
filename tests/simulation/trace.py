"""The events of a run, one line each. Ids, times and texts only; never key material."""

from __future__ import annotations

import hashlib

from tests.simulation.loop import BEGINNING, VirtualLoop


class Trace:
    """The story of one run.

    Args:
        loop: Supplies the true time.
        steps: Whether single calls are recorded, too.
    """

    def __init__(self, loop: VirtualLoop, *, steps: bool = False) -> None:
        self.lines: list[str] = []
        self.is_detailed = steps
        self._loop = loop
        self._digest = hashlib.sha256()

    def tell(self, who: str, what: str) -> None:
        """Write a line."""
        line = f"{self._loop.time() - BEGINNING:9.3f}  {who:<12} {what}"
        self.lines.append(line)
        self._digest.update(line.encode() + b"\n")

    def detail(self, who: str, what: str) -> None:
        """Write a line about one call; it is part of the digest whether it is kept or not."""
        line = f"{self._loop.time() - BEGINNING:9.3f}  {who:<12}   . {what}"
        self._digest.update(line.encode() + b"\n")
        if self.is_detailed:
            self.lines.append(line)

    @property
    def digest(self) -> str:
        """A text that two runs share only if all their lines were the same, details included."""
        return self._digest.hexdigest()[:16]
