"""What monitoring asks of a node: one word of health, and numbers for Prometheus.

Not GoatDB's ``/healthy``, which says whether requests are answered and stays as it is: a degraded node answers them
all. Rules: codes, ids and numbers only; what each metric is stands in `goatherd.metrics`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from goatherd.metrics import build_samples, call_samples, exposition, identity_samples, settings_samples

if TYPE_CHECKING:
    from goatherd.identity.document import IdentityDocument
    from goatherd.settings import SettingsStatus


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


def metrics(document: IdentityDocument, status: SettingsStatus) -> bytes:
    """Return the answer to ``GET /goatherd/v1/metrics``. Takes milliseconds: not for an event loop.

    Args:
        document: The identity in use.
        status: How fresh it is.

    Raises:
        MissingExtraError: The extra ``node`` is not installed.
    """
    samples = [*build_samples(), *identity_samples(document), *settings_samples(status)]
    if status.calls is not None:
        samples += call_samples(status.calls)
    return exposition(samples)
