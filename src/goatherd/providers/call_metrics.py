"""Count the calls of a provider or a signer, their outcomes and their durations, in memory.

`goatherd.metrics` exports the counts. The names of operations and outcomes come from short lists in the code, never
from a store or a secret's name. Other threads may read the counts at any time.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from goatherd.errors import GoatherdError, ProviderError

BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds in seconds; the last is a provider's own deadline."""
OK: Final = "ok"
CANCELLED: Final = "cancelled"
"""The caller went away before the store had answered."""


def possible_outcomes(family: type[GoatherdError] = ProviderError) -> tuple[str, ...]:
    """Return every outcome that a call can have: ``ok``, ``cancelled``, or the code of an error class in `family`."""
    return (OK, CANCELLED, *family.all_codes())


@dataclass(slots=True)
class Durations:
    """A histogram of call durations: a count for each of `BUCKETS`, a count of longer calls, and the total seconds."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS) + 1))
    total: float = 0.0

    def add_duration(self, seconds: float) -> None:
        self.counts[bisect_left(BUCKETS, seconds)] += 1
        self.total += seconds


class CallCounts:
    """Counts of the calls of one secret provider or signer, by operation and outcome.

    Args:
        provider: The plugin's URI scheme.
        family: The base class of the errors that its calls raise.
    """

    def __init__(self, provider: str, family: type[GoatherdError] = ProviderError) -> None:
        self.provider = provider
        self._family = family
        self._ended: dict[tuple[str, str], int] = {}
        self._retries: dict[str, int] = {}
        self._durations: dict[str, Durations] = {}

    @contextmanager
    def count_call(self, operation: str, monotonic: Callable[[], float]) -> Iterator[None]:
        """Count the code inside the ``with`` block as one call of a provider or signer.

        Args:
            operation: The name of the public method that was called.
            monotonic: Returns the seconds of a monotonic clock.
        """
        began, outcome = monotonic(), CANCELLED
        try:
            yield
            outcome = OK
        except GoatherdError as error:
            outcome = error.code
            raise
        finally:
            self._ended_with(operation, outcome, monotonic() - began)

    def count_retry(self, operation: str) -> None:
        """Count one more attempt of a provider's or signer's call; `count_call` has counted the call itself."""
        self._retries[operation] = self._retries.get(operation, 0) + 1

    @property
    def ended(self) -> Mapping[tuple[str, str], int]:
        """The number of calls of a provider or signer that ended, by operation and outcome."""
        return dict(self._ended)

    @property
    def retries(self) -> Mapping[str, int]:
        """The number of retries of a provider or signer (attempts after the first), by operation."""
        return {operation: self._retries.get(operation, 0) for operation in list(self._durations)}

    @property
    def durations(self) -> Mapping[str, Durations]:
        """The durations of a provider's or signer's calls, by operation; they include retries and pauses."""
        return {operation: Durations(list(one.counts), one.total) for operation, one in list(self._durations.items())}

    def _ended_with(self, operation: str, outcome: str, seconds: float) -> None:
        if operation not in self._durations:
            # Every outcome begins at 0, or its first occurrence would be no increase that a query could see.
            self._ended.update({(operation, each): 0 for each in possible_outcomes(self._family)})
            self._durations[operation] = Durations()
        self._ended[operation, outcome] = self._ended.get((operation, outcome), 0) + 1
        self._durations[operation].add_duration(seconds)
