"""A process that verifies signatures with AWS-LC for a server or a door (``python -m goatherd verifier-process``).

`awscrt` holds the GIL while it verifies, so the threads of one process verify one signature at a time. Several such
processes verify several. `goatherd.aws_lc` starts them. The process reads requests from its standard input and answers
each on its standard output; it ends when its standard input ends.

A request is a random tag (16 bytes), the number of signatures (one byte), then for each one `SIGNATURE` bytes: the
public key (x and y, 96 bytes), the SHA-384 digest of the signed data (48 bytes) and the signature in DER, filled up
with zeros to 104 bytes. An answer is the same tag, then one byte for each signature: `VALID`, `INVALID`, or
`UNREADABLE` if AWS-LC cannot read the key.

SECURITY: the process gets only public data, and no credentials in its environment (tests/unit/test_verifiers.py).
"""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from awscrt.crypto import EC

TAG = 16
MOST = 255
KEY, DIGEST, DER = 96, 48, 104
SIGNATURE = KEY + DIGEST + DER
VALID, INVALID, UNREADABLE = 1, 0, 2
_SPKI_OF_P384 = bytes.fromhex("3076301006072a8648ce3d020106052b8104002203620004")
_MOST_KEYS = 4096


def main() -> None:
    """Answer requests until standard input ends."""
    # A service manager and a terminal send these signals to the server, too, which still needs this process while it
    # stops.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    read, write, flush = sys.stdin.buffer.read, sys.stdout.buffer.write, sys.stdout.buffer.flush
    keys: dict[bytes, EC | None] = {}
    while len(head := read(TAG + 1)) > TAG:
        tag, size = head[:TAG], head[TAG] * SIGNATURE
        request = read(size)
        if len(request) < size:
            return
        if len(keys) > _MOST_KEYS:
            keys.clear()
        write(tag + bytes([_verify_signature(request[at : at + SIGNATURE], keys) for at in range(0, size, SIGNATURE)]))
        flush()


def _verify_signature(signature: bytes, keys: dict[bytes, EC | None]) -> int:
    raw, digest, der = signature[:KEY], signature[KEY : KEY + DIGEST], signature[KEY + DIGEST :]
    if raw not in keys:
        keys[raw] = _import_key(raw)
    key = keys[raw]
    if key is None:
        return UNREADABLE
    try:
        return VALID if key.verify(digest, der[: der[1] + 2]) else INVALID
    except RuntimeError:
        return UNREADABLE


def _import_key(raw: bytes) -> EC | None:
    from awscrt.crypto import EC

    try:
        return EC.new_key_from_der_data(_SPKI_OF_P384 + raw)
    except RuntimeError:
        return None
