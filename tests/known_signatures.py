"""Cryptography once for each input: simulated servers verify the same signatures, and read the same keys, many times.

A signature that was found valid is not verified again in this process, and a private key is derived from its scalar
once. Invalid signatures are verified each time. Processes that tests start are not affected. A test of verification
itself takes `inspect.unwrap(PublicKey.verify)`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from hashlib import blake2b
from unittest.mock import patch

from goatherd.crypto.keys import PrivateKey, PublicKey


@contextmanager
def remember_signatures() -> Iterator[None]:
    verify, derive = PublicKey.verify, PrivateKey._from_bytes
    valid: set[tuple[bytes, bytes, bytes]] = set()
    keys: dict[bytes, PrivateKey] = {}

    @wraps(verify)
    def verify_once(self: PublicKey, signature: bytes, data: bytes) -> None:
        known = (self.raw, signature, blake2b(data).digest())
        if known not in valid:
            verify(self, signature, data)
            valid.add(known)

    def derive_once(scalar: bytes) -> PrivateKey:
        if scalar not in keys:
            keys[scalar] = derive(scalar)
        return keys[scalar]

    with patch.object(PublicKey, "verify", verify_once), patch.object(PrivateKey, "_from_bytes", derive_once):
        yield
