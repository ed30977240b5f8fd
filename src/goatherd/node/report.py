"""What monitoring asks of a node: one word of health, and numbers in Prometheus' text format.

Pure. Not GoatDB's ``/healthy``, which says whether requests are answered and stays as it is: a degraded node answers
them all. Rules: codes and numbers only, names from `goatherd.telemetry`.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from goatherd.settings.base import Origin
from goatherd.telemetry import Metric

if TYPE_CHECKING:
    from goatherd.settings import SettingsStatus

METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

_HELP: Final = {
    Metric.SETTINGS_GENERATION: "Generation of the identity in use.",
    Metric.SETTINGS_AGE_SECONDS: "Seconds since the store last gave a good answer.",
    Metric.SETTINGS_DEGRADED: "1 while the last look at the store failed or was refused.",
    Metric.SETTINGS_FAILURES: "Looks at the store in a row that failed or were refused.",
    Metric.SETTINGS_LAST_KNOWN_GOOD: "1 while the identity in use is from the sealed copy.",
    Metric.SETTINGS_BREAKER_OPEN: "1 while the store is asked ever more seldom because it fails.",
    Metric.SETTINGS_WATCHING: "1 while the store tells of changes by itself.",
}


def health(status: SettingsStatus) -> dict[str, Any]:
    """Return the answer to ``GET /goatherd/v1/health``: ``ok`` or ``degraded``, and why.

    A degraded node serves and verifies with the identity that it has; no rotation begins with it.
    """
    refusal = status.last_refusal
    return {
        "status": "degraded" if status.is_degraded else "ok",
        "source": str(status.origin),
        "reason": refusal.code if status.is_degraded and refusal is not None else None,
    }


def metrics(status: SettingsStatus) -> bytes:
    """Return the answer to ``GET /goatherd/v1/metrics`` (Prometheus text exposition format 0.0.4); all are gauges."""
    values: dict[Metric, float | None] = {
        Metric.SETTINGS_GENERATION: status.generation,
        Metric.SETTINGS_AGE_SECONDS: None if status.age is None else status.age / timedelta(seconds=1),
        Metric.SETTINGS_DEGRADED: status.is_degraded,
        Metric.SETTINGS_FAILURES: status.failures,
        Metric.SETTINGS_LAST_KNOWN_GOOD: status.origin is Origin.LAST_KNOWN_GOOD,
        Metric.SETTINGS_BREAKER_OPEN: status.is_backing_off,
        Metric.SETTINGS_WATCHING: status.is_watching,
    }
    lines = [
        f"# HELP {name} {_HELP[name]}\n# TYPE {name} gauge\n{name} {_number(value)}\n"
        for name, value in values.items()
        if value is not None
    ]
    return "".join(lines).encode()


def _number(value: float) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(int(value))
