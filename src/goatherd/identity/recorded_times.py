"""Find and correct timestamps in an identity document that are in the future, because their writer had a wrong clock.

Pure. `goatherd.rotation.clocks` finds out whether the clock of this machine is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta

from goatherd.identity.document import IdentityDocument
from goatherd.times import milliseconds


def recorded_ahead_ms(document: IdentityDocument, now_ms: int) -> int:
    """Return how many milliseconds the latest timestamp in an identity document is ahead of `now_ms`; 0 if none is."""
    return max(0, max(_recorded_times(document), default=0) - now_ms)


def limit_times(
    document: IdentityDocument, now_ms: int, *, written_ms: int, tolerance: timedelta = timedelta(0)
) -> IdentityDocument:
    """Return an identity document in which each timestamp in the future is replaced by the latest possible time.

    The latest possible time is `written_ms`. If that is in the future too, because the store has no clock of its own
    and recorded the same wrong time, it is `now_ms`. Timestamps in the past do not change.

    Args:
        document: The identity document as it was read.
        now_ms: Milliseconds since 1970, from a correct clock.
        written_ms: When the document was written, by the store's clock, in milliseconds since 1970.
        tolerance: How far a timestamp may be ahead of `now_ms` without counting as in the future.
    """
    last_ms = now_ms + milliseconds(tolerance)
    if recorded_ahead_ms(document, last_ms) == 0:
        return document
    latest_ms = min(now_ms, written_ms)

    def limited(at_ms: int) -> int:
        return at_ms if at_ms <= last_ms else latest_ms

    record = document.rotation
    return replace(
        document,
        last_updated=None if document.last_updated is None else limited(document.last_updated),
        rotated_at=None if document.rotated_at is None else limited(document.rotated_at),
        rotation=None
        if record is None
        else replace(record, started_at=limited(record.started_at), phase_at=limited(record.phase_at)),
        history=tuple(replace(entry, at=limited(entry.at)) for entry in document.history),
    )


def _recorded_times(document: IdentityDocument) -> Iterator[int]:
    yield from (at_ms for at_ms in (document.last_updated, document.rotated_at) if at_ms is not None)
    if document.rotation is not None:
        yield from (document.rotation.started_at, document.rotation.phase_at)
    yield from (entry.at for entry in document.history)
