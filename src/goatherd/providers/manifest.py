"""The bytes of a file store's ``manifest.json``: a `Ledger`, with a digest of itself.

Pure. Rules: whatever is not exactly what `encode` writes is damaged, and says so; nothing is guessed or repaired.
"""

from __future__ import annotations

import hashlib
import json
from types import MappingProxyType
from typing import Any, Final

from goatherd.providers.base import Label
from goatherd.providers.ledger import Entry, Ledger

FORMAT: Final = "goatherd-file-secret/1"


class DamagedManifestError(ValueError):
    """The bytes are not a manifest; the text says why and quotes nothing."""


def encode(ledger: Ledger) -> bytes:
    """Return the manifest of `ledger`."""
    content = _content(ledger)
    document = {"format": FORMAT, "sha256": _digest(content), **content}
    return json.dumps(document, indent=1).encode() + b"\n"


def decode(raw: bytes) -> Ledger:
    """Return the ledger that `raw` holds.

    Raises:
        DamagedManifestError: `raw` is not what `encode` wrote.
    """
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError):
        raise DamagedManifestError("it is not JSON") from None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise DamagedManifestError(f"its format is not {FORMAT}")
    try:
        ledger = Ledger(
            entries=MappingProxyType({int(n): _entry(entry) for n, entry in document["versions"].items()}),
            labels=MappingProxyType({Label(name): int(n) for name, n in document["labels"].items()}),
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):  # the last: `Infinity` is JSON here
        raise DamagedManifestError("a member is missing or of the wrong kind") from None
    if not set(ledger.labels.values()) <= set(ledger.entries):
        raise DamagedManifestError("a label points at no version")
    if encode(ledger) != raw:
        raise DamagedManifestError("its digest does not fit its content")
    return ledger


def _content(ledger: Ledger) -> dict[str, Any]:
    return {
        "labels": {str(label): ledger.labels[label] for label in sorted(ledger.labels)},
        "versions": {
            str(number): {
                "created": entry.created_ms,
                "request": entry.request,
                "sha256": entry.digest,
                "size": entry.size,
                "destroyed": entry.destroyed,
            }
            for number, entry in sorted(ledger.entries.items())
        },
    }


def _entry(encoded: dict[str, Any]) -> Entry:
    return Entry(
        created_ms=int(encoded["created"]),
        request=str(encoded["request"]),
        digest=str(encoded["sha256"]),
        size=int(encoded["size"]),
        destroyed=bool(encoded["destroyed"]),
    )


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
