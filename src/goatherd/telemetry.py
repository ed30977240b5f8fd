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
    SETTINGS_SUBSCRIBER_FAILED = "settings.subscriber_failed"
    """Somebody who wanted to be told of a change raised an exception when told."""


class Metric(StrEnum):
    """Metrics; the unit is the last part of the name where there is one."""

    SETTINGS_AGE_SECONDS = "goatherd_settings_age_seconds"
    """Time since the store last gave a good answer."""
    SETTINGS_GENERATION = "goatherd_settings_generation"
    """Generation of the identity in use."""
    SETTINGS_REFRESHES_TOTAL = "goatherd_settings_refreshes_total"
    """Reads of the store, by outcome: unchanged, changed, refused, unreachable."""


def event_text(event: Event, **fields: object) -> str:
    """Return one log line: the event, then ``name=value`` in the order given; texts with spaces are quoted."""
    parts = [event.value]
    for name, value in fields.items():
        text = str(value)
        parts.append(f"{name}={text!r}" if " " in text or not text.isprintable() or not text else f"{name}={text}")
    return " ".join(parts)
