"""P-384 keys, JWK and raw signatures; and data sealed for the disk.

What it is: the one place that touches `cryptography`. What it is not: it knows no sessions and no GoatDB envelopes.
Rules: signatures are raw ``r || s``, 96 bytes, big-endian (IEEE P1363), hash SHA-384; verification raises and returns
nothing; a private key never shows in ``repr``, in an error, or through pickling.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from typing import Any, NoReturn

import cryptography
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from goatherd.errors import DecodeError, InvalidSealError, InvalidSignatureError

COORDINATE_BYTES = 48
SIGNATURE_BYTES = 96
SEAL_KEY_BYTES = 32

_NONCE_BYTES = 12
_TAG_BYTES = 16

_COORDINATE = re.compile("[A-Za-z0-9_-]{64}")
_CURVE = ec.SECP384R1()
_VERIFY = ec.ECDSA(hashes.SHA384())
# COMPAT: Deno signs by RFC 6979, so the same key and text give the same bytes there and here.
_SIGN = ec.ECDSA(hashes.SHA384(), deterministic_signing=True)


def library_versions() -> tuple[str, str]:
    """Return the version of the library behind this module, and the text of the OpenSSL in it."""
    from cryptography.hazmat.backends.openssl.backend import backend

    return cryptography.__version__, backend.openssl_version_text()


def _coordinate(jwk: Mapping[str, Any], member: str) -> bytes:
    """Return 48 bytes; the error names the member and never quotes it."""
    text = jwk.get(member)
    if not isinstance(text, str) or _COORDINATE.fullmatch(text) is None:
        raise DecodeError(f"JWK member {member!r} is not 64 characters of base64url")
    return base64.urlsafe_b64decode(text)


def _raw_from_der(der: bytes) -> bytes:
    """Return ``r || s`` of OpenSSL's own DER: both lengths fit in one byte, leading zeros as DER wants them."""
    end = 4 + der[3]
    return der[4:end][-COORDINATE_BYTES:].rjust(COORDINATE_BYTES, b"\0") + der[end + 2 :][-COORDINATE_BYTES:].rjust(
        COORDINATE_BYTES, b"\0"
    )


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode("ascii")


def _check_kind(jwk: Mapping[str, Any]) -> None:
    if not isinstance(jwk, Mapping):
        raise DecodeError("a JWK is a JSON object")
    if jwk.get("kty") != "EC" or jwk.get("crv") != "P-384":
        raise DecodeError("a GoatDB key is a JWK with kty EC and crv P-384")


class PublicKey:
    """A P-384 public key; parsed by OpenSSL on first use, so holding 50 000 of them is cheap.

    Two keys are equal when their coordinates are.
    """

    __slots__ = ("_key", "raw")

    raw: bytes
    """``x || y``, 96 bytes."""

    def __init__(self, raw: bytes) -> None:
        if len(raw) != 2 * COORDINATE_BYTES:
            raise DecodeError("a P-384 public key is 96 bytes, x then y")
        self.raw = raw
        self._key: ec.EllipticCurvePublicKey | None = None

    @classmethod
    def from_jwk(cls, jwk: Mapping[str, Any]) -> PublicKey:
        """Read a JWK; members beyond ``kty``, ``crv``, ``x``, ``y`` are not looked at.

        Raises:
            DecodeError: Not an EC P-384 key, or a coordinate is not 48 bytes. A point off the curve shows only at
                `check`.
        """
        _check_kind(jwk)
        return cls(_coordinate(jwk, "x") + _coordinate(jwk, "y"))

    def check(self) -> None:
        """Parse the key now.

        Raises:
            DecodeError: The point is not on the curve.
        """
        self._openssl()

    def to_jwk(self) -> dict[str, Any]:
        """Return the JWK with its members in the order in which Deno exports them (formats 2.2)."""
        x, y = self.raw[:COORDINATE_BYTES], self.raw[COORDINATE_BYTES:]
        return {
            "kty": "EC",
            "alg": "ES384",
            "crv": "P-384",
            "x": _text(x),
            "y": _text(y),
            "key_ops": ["verify"],
            "ext": True,
        }

    def verify(self, signature: bytes, data: bytes) -> None:
        """Check a raw 96-byte signature over `data`. Releases the GIL while OpenSSL works.

        Raises:
            InvalidSignatureError: Wrong length, wrong bytes, or this key is not on the curve.
        """
        if len(signature) != SIGNATURE_BYTES:
            raise InvalidSignatureError(f"a signature has {SIGNATURE_BYTES} bytes, this one {len(signature)}")
        try:
            key = self._openssl()
        except DecodeError as error:
            raise InvalidSignatureError(str(error)) from error
        r = int.from_bytes(signature[:COORDINATE_BYTES], "big")
        s = int.from_bytes(signature[COORDINATE_BYTES:], "big")
        try:
            key.verify(encode_dss_signature(r, s), data, _VERIFY)
        except InvalidSignature:
            raise InvalidSignatureError("the signature does not match the data and the key") from None

    def _openssl(self) -> ec.EllipticCurvePublicKey:
        if self._key is None:
            try:
                self._key = ec.EllipticCurvePublicKey.from_encoded_point(_CURVE, b"\x04" + self.raw)
            except ValueError:
                raise DecodeError("the public key is not a point of P-384") from None
        return self._key

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PublicKey) and self.raw == other.raw

    def __hash__(self) -> int:
        return hash(self.raw)

    def __repr__(self) -> str:
        return f"PublicKey(x={_text(self.raw[:6])}…)"


class PrivateKey:
    """A P-384 private key in memory.

    SECURITY: its ``repr`` shows nothing and it cannot be pickled (tests/unit/test_crypto.py).
    """

    __slots__ = ("_key", "public_key")

    public_key: PublicKey

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        self._key = key
        numbers = key.public_key().public_numbers()
        self.public_key = PublicKey(
            numbers.x.to_bytes(COORDINATE_BYTES, "big") + numbers.y.to_bytes(COORDINATE_BYTES, "big")
        )

    @classmethod
    def generate(cls) -> PrivateKey:
        """Make a fresh key from the operating system's randomness."""
        return cls(ec.generate_private_key(_CURVE))

    @classmethod
    def from_jwk(cls, jwk: Mapping[str, Any]) -> PrivateKey:
        """Read a private JWK.

        Raises:
            DecodeError: Not a P-384 key, or ``x`` and ``y`` are not the point of ``d``. Never quotes the key.
        """
        _check_kind(jwk)
        d = int.from_bytes(_coordinate(jwk, "d"), "big")
        try:
            key = ec.derive_private_key(d, _CURVE)
        except ValueError:
            raise DecodeError("JWK member 'd' is out of range for P-384") from None
        private = cls(key)
        if private.public_key.raw != _coordinate(jwk, "x") + _coordinate(jwk, "y"):
            raise DecodeError("the private JWK's x and y do not belong to its d")
        return private

    def to_jwk(self) -> dict[str, Any]:
        """Return the private JWK in Deno's member order. The caller holds key material from here on."""
        d = self._key.private_numbers().private_value.to_bytes(COORDINATE_BYTES, "big")
        public = self.public_key.to_jwk()
        return {
            "kty": public["kty"],
            "alg": public["alg"],
            "crv": public["crv"],
            "d": _text(d),
            "x": public["x"],
            "y": public["y"],
            "key_ops": ["sign"],
            "ext": True,
        }

    def sign(self, data: bytes) -> bytes:
        """Return the raw 96-byte signature over `data`, deterministic by RFC 6979."""
        return _raw_from_der(self._key.sign(data, _SIGN))

    def __repr__(self) -> str:
        return "PrivateKey(…)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a private key is not pickled")


def seal(data: bytes, *, key: bytes, associated: bytes) -> bytes:
    """Encrypt and authenticate `data` with AES-256-GCM (NIST SP 800-38D), under a fresh random nonce.

    One key may seal some four thousand million times, far more than a file is ever written.

    Args:
        data: What nobody else may read.
        key: 32 random bytes.
        associated: What is not hidden, but must be the same at `open_sealed`.

    Returns:
        The nonce (12 bytes), then the ciphertext with its tag: 28 bytes more than `data`.
    """
    # `cryptography` has no name for "random bytes"; a key is what it calls them. A nonce is never the caller's affair.
    nonce = AESGCM.generate_key(bit_length=128)[:_NONCE_BYTES]
    return nonce + AESGCM(_checked(key)).encrypt(nonce, data, associated)


def open_sealed(sealed: bytes, *, key: bytes, associated: bytes) -> bytes:
    """Return what `seal` was given.

    Raises:
        InvalidSealError: Another key, other associated data, or not a byte-for-byte copy of what `seal` returned. Which
            of them it is cannot be told.
    """
    if len(sealed) < _NONCE_BYTES + _TAG_BYTES:
        raise InvalidSealError("too short to be sealed data")
    try:
        return AESGCM(_checked(key)).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], associated)
    except InvalidTag:
        raise InvalidSealError("sealed with another key or for another purpose, or damaged") from None


def _checked(key: bytes) -> bytes:
    if len(key) != SEAL_KEY_BYTES:
        raise ValueError(f"a key to seal with has {SEAL_KEY_BYTES} bytes")
    return key
