"""The name of every log event and every metric, so that a dashboard, a test and the documentation agree on them.

What it is not: a logging set-up or an exporter. Rules: names are dotted, family first, and stable; fields hold ids,
generations, times and codes, never a value from a store.
"""

from __future__ import annotations

from enum import StrEnum


class Event(StrEnum):
    """Log events."""

    SETTINGS_LOADED = "settings.loaded"
    """An identity was taken at start."""
    SETTINGS_CHANGED = "settings.changed"
    """Another identity was taken over from the store while running."""
    SETTINGS_REFUSED = "settings.refused"
    """What the store or the file holds is not to be used; the identity in use stays."""
    SETTINGS_UNREACHABLE = "settings.unreachable"
    """The store did not answer; the identity in use stays."""
    SETTINGS_RECOVERED = "settings.recovered"
    """The first good answer after refusals or failures."""
    SETTINGS_WRITTEN = "settings.written"
    """The identity was written to the store or the file."""
    SETTINGS_ACCEPTED = "settings.accepted"
    """An identity without succession was taken over, because the operator said so."""
    SETTINGS_NOT_REMEMBERED = "settings.not_remembered"
    """The file that keeps a node from going back over a restart cannot be written."""
    SETTINGS_LAST_KNOWN_GOOD = "settings.last_known_good"
    """The store did not answer at start, and a node began from its sealed copy of the identity."""
    SETTINGS_NOT_SEALED = "settings.not_sealed"
    """The sealed copy of the identity cannot be written; a start without the store uses the one before, or fails."""
    SETTINGS_BREAKER_OPENED = "settings.breaker_opened"
    """The store failed, and is asked ever more seldom until it answers."""
    SETTINGS_BREAKER_CLOSED = "settings.breaker_closed"
    """The store answers again, and is asked at the usual interval."""
    SETTINGS_WATCHING = "settings.watching"
    """The store tells of changes by itself from now on; polls become rare."""
    SETTINGS_WATCH_LOST = "settings.watch_lost"
    """The store no longer tells of changes; it is polled at the usual interval until it does."""
    SETTINGS_SUBSCRIBER_FAILED = "settings.subscriber_failed"
    """Somebody who wanted to be told of a change raised an exception when told."""


class Metric(StrEnum):
    """Metrics; the unit is the last part of the name where there is one."""

    SETTINGS_AGE_SECONDS = "goatherd_settings_age_seconds"
    """Time since the store last gave a good answer."""
    SETTINGS_GENERATION = "goatherd_settings_generation"
    """Generation of the identity in use."""
    SETTINGS_LAST_KNOWN_GOOD = "goatherd_settings_last_known_good"
    """1 while the identity in use is from the sealed copy, else 0."""
    SETTINGS_BREAKER_OPEN = "goatherd_settings_breaker_open"
    """1 while the store is asked ever more seldom because it fails, else 0."""
    SETTINGS_WATCHING = "goatherd_settings_watching"
    """1 while the store tells of changes by itself, else 0."""
    SETTINGS_DEGRADED = "goatherd_settings_degraded"
    """1 while the last look at the store failed or was refused, else 0."""
    SETTINGS_FAILURES = "goatherd_settings_failures"
    """How many looks at the store in a row have failed or were refused."""


def event_text(event: Event, **fields: object) -> str:
    """Return one log line: the event, then ``name=value`` in the order given; texts with spaces are quoted."""
    parts = [event.value]
    for name, value in fields.items():
        text = str(value)
        parts.append(f"{name}={text!r}" if " " in text or not text.isprintable() or not text else f"{name}={text}")
    return " ".join(parts)
