"""Encrypt data for the disk, with AES-256-GCM and a key that the operator provides."""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from goatherd.errors import InvalidSealError

SEAL_KEY_BYTES = 32
_NONCE_BYTES = 12
_TAG_BYTES = 16


def seal_data(data: bytes, *, key: bytes, associated: bytes) -> bytes:
    """Encrypt and authenticate `data` with AES-256-GCM (NIST SP 800-38D), under a fresh random nonce.

    Use one key at most about 2**32 times: with more, two random nonces could be equal.

    Args:
        data: The data to encrypt.
        key: 32 random bytes.
        associated: Data that is not encrypted, but must be passed unchanged to `open_sealed`.

    Returns:
        The nonce (12 bytes), then the ciphertext with its tag: 28 bytes more than `data`.
    """
    # `cryptography` has no name for "random bytes"; a key is what it calls them. A nonce is never the caller's affair.
    nonce = AESGCM.generate_key(bit_length=128)[:_NONCE_BYTES]
    return nonce + AESGCM(_check_key(key)).encrypt(nonce, data, associated)


def open_sealed(sealed: bytes, *, key: bytes, associated: bytes) -> bytes:
    """Decrypt and authenticate data that `seal_data` returned.

    Raises:
        InvalidSealError: The key or the associated data differ, or `sealed` is not byte for byte what `seal_data`
            returned. The error cannot say which of these it is.
    """
    if len(sealed) < _NONCE_BYTES + _TAG_BYTES:
        raise InvalidSealError(f"the data has {len(sealed)} bytes, which is too short for sealed data")
    try:
        return AESGCM(_check_key(key)).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], associated)
    except InvalidTag:
        raise InvalidSealError("the data was sealed with another key or for another purpose, or is damaged") from None


def _check_key(key: bytes) -> bytes:
    if len(key) != SEAL_KEY_BYTES:
        raise ValueError(f"the encryption key must have {SEAL_KEY_BYTES} bytes")
    return key
