"""Keys, signatures and encryption: the only package that uses the library `cryptography`. Pure, except for random keys.

- `keys`: `PublicKey`, `PrivateKey` and `fingerprint`, JWKs, and the raw form of signatures.
- `sealed`: data encrypted for the disk.
"""

from typing import TYPE_CHECKING

from goatherd.crypto.keys import (
    SIGNATURE_BYTES,
    PrivateKey,
    PublicKey,
    fingerprint,
    library_versions,
    raw_from_der,
)
from goatherd.lazy_imports import lazy_attributes

if TYPE_CHECKING:
    from goatherd.crypto.sealed import SEAL_KEY_BYTES, open_sealed, seal_data

__all__ = [
    "SEAL_KEY_BYTES",
    "SIGNATURE_BYTES",
    "PrivateKey",
    "PublicKey",
    "fingerprint",
    "library_versions",
    "open_sealed",
    "raw_from_der",
    "seal_data",
]

__getattr__ = lazy_attributes(__name__, SEAL_KEY_BYTES="sealed", open_sealed="sealed", seal_data="sealed")
