"""Keys, signatures and encryption: the only package that uses the library `cryptography`. Pure, except for random keys.

- `keys`: `PublicKey`, `PrivateKey` and `fingerprint`, JWKs, and the raw form of signatures.
- `sealed`: data encrypted for the disk.
"""

from goatherd.crypto.keys import (
    SIGNATURE_BYTES,
    PrivateKey,
    PublicKey,
    fingerprint,
    library_versions,
    raw_from_der,
)

__all__ = [
    "SIGNATURE_BYTES",
    "PrivateKey",
    "PublicKey",
    "fingerprint",
    "library_versions",
    "raw_from_der",
]
