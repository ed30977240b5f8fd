"""The members of ``GET /goatherd/v1/identity`` that a Goatherd server and an agent have in common.

Pure. SECURITY: built from ids and numbers, never from a document as a whole (tests/cluster/test_exchanges.py,
tests/unit/agent/test_own_api.py).
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from goatherd.identity.document import IdentityDocument, source_digest
from goatherd.settings.base import SettingsStatus


def describe_identity(document: IdentityDocument, status: SettingsStatus) -> dict[str, Any]:
    """Return what a program says of the identity that it has read, and of how fresh that is."""
    age, refusal, interval = status.age, status.last_refusal, status.view_interval
    return {
        "documentRoots": [root.id for root in document.roots],
        "revoked": sorted(document.revoked_ids),
        "generation": document.generation,
        # Whether it refuses an unsigned document: a command that would sign one asks (rotation.signed_store).
        "signed": status.has_seen_signed,
        "digest": source_digest(document),
        "phase": str(document.phase or "steady"),
        "rotation": document.rotation.id if document.rotation is not None else None,
        "viewAgeMs": None if age is None else round(age / timedelta(milliseconds=1)),
        "degraded": status.is_degraded,
        "source": str(status.origin),
        # A rotation that sees a server refuse the document goes back at once (rotation.observe).
        "refusal": {"code": refusal.code} if status.is_degraded and refusal is not None else None,
        "viewIntervalMs": None if interval is None else round(interval / timedelta(milliseconds=1)),
        "watching": status.is_watching,
    }
