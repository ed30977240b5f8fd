"""The bytes of a file store's ``manifest.json``: a `Ledger`, with a digest of itself.

Pure. Rules: whatever is not exactly what `encode` writes is damaged, and says so; nothing is guessed or repaired.
"""

from __future__ import annotations

import json
from typing import Final

from goatherd.providers.ledger import Ledger
from goatherd.providers.versioned_record import (
    DamagedRecordError,
    ForeignRecordError,
    ledger_content,
    ledger_of,
    must_be_equal,
    parse,
    sealed,
)

FORMAT: Final = "goatherd-file-secret/1"
_MEMBERS: Final = ("created", "request", "sha256", "size", "destroyed")


def encode(ledger: Ledger) -> bytes:
    """Return the manifest of `ledger`."""
    return json.dumps(sealed(FORMAT, ledger_content(ledger, _MEMBERS)), indent=1).encode() + b"\n"


def decode(raw: bytes) -> Ledger:
    """Return the ledger that `raw` holds.

    Raises:
        DamagedRecordError: `raw` is not what `encode` wrote.
    """
    try:
        ledger = ledger_of(parse(raw, FORMAT), may_be_empty=True)
    except ForeignRecordError as error:
        # Nothing but a file store writes a manifest here.
        raise DamagedRecordError(str(error)) from None
    must_be_equal(encode(ledger), raw)
    return ledger
