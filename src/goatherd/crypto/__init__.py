"""Keys, signatures and encryption: the only package that uses the library `cryptography`. Pure, but for random keys.

- `keys`: `PublicKey`, `PrivateKey` and `fingerprint`, JWKs, and the raw form of signatures.
- `sealed`: data encrypted for the disk.
"""

from goatherd.crypto.keys import SIGNATURE_BYTES, PrivateKey, PublicKey, fingerprint, library_versions
from goatherd.crypto.sealed import SEAL_KEY_BYTES, open_sealed, seal_data

__all__ = [
    "SEAL_KEY_BYTES",
    "SIGNATURE_BYTES",
    "PrivateKey",
    "PublicKey",
    "fingerprint",
    "library_versions",
    "open_sealed",
    "seal_data",
]
