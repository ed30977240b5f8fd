"""P-384 keys: their JWK, what they sign, and what they verify.

What it is not: it knows no sessions and no GoatDB envelopes. Rules: verification raises and returns nothing; a private
key never shows in ``repr``, in an error, or through pickling.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, NoReturn

import cryptography
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec

from goatherd.crypto.jwk import COORDINATE_BYTES, base64url, check_kind, coordinate
from goatherd.crypto.signatures import CURVE, SIGN, SIGNATURE_BYTES, VERIFY, der_from_raw, raw_from_der
from goatherd.errors import DecodeError, InvalidSignatureError


def library_versions() -> tuple[str, str]:
    """Return the version of the library behind this module, and the text of the OpenSSL in it."""
    from cryptography.hazmat.backends.openssl.backend import backend

    return cryptography.__version__, backend.openssl_version_text()


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
        check_kind(jwk)
        return cls(coordinate(jwk, "x") + coordinate(jwk, "y"))

    @classmethod
    def from_compressed(cls, compressed: bytes) -> PublicKey:
        """Read what `compressed` returns.

        Raises:
            DecodeError: Not a point of P-384.
        """
        try:
            key = ec.EllipticCurvePublicKey.from_encoded_point(CURVE, compressed)
        except ValueError:
            raise DecodeError("the public key is not a point of P-384") from None
        numbers = key.public_numbers()
        return cls(numbers.x.to_bytes(COORDINATE_BYTES) + numbers.y.to_bytes(COORDINATE_BYTES))

    @property
    def compressed(self) -> bytes:
        """The point in 49 bytes: which half of the curve it is on (SEC 1, 2.3.3), then x."""
        return bytes([2 + (self.raw[-1] & 1)]) + self.raw[:COORDINATE_BYTES]

    def check(self) -> None:
        """Parse the key now.

        Raises:
            DecodeError: The point is not on the curve.
        """
        self._openssl()

    def to_jwk(self) -> dict[str, Any]:
        """Return the JWK with its members in the order in which Deno exports them."""
        x, y = self.raw[:COORDINATE_BYTES], self.raw[COORDINATE_BYTES:]
        return {
            "kty": "EC",
            "alg": "ES384",
            "crv": "P-384",
            "x": base64url(x),
            "y": base64url(y),
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
        try:
            key.verify(der_from_raw(signature), data, VERIFY)
        except InvalidSignature:
            raise InvalidSignatureError("the signature does not match the data and the key") from None

    def to_der(self) -> bytes:
        """Return the SubjectPublicKeyInfo (RFC 5480), the form in which `openssl` prints a key.

        Raises:
            DecodeError: The point is not on the curve.
        """
        # Imported here, since it doubles the time that this module takes to import.
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        return self._openssl().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    def _openssl(self) -> ec.EllipticCurvePublicKey:
        if self._key is None:
            try:
                self._key = ec.EllipticCurvePublicKey.from_encoded_point(CURVE, b"\x04" + self.raw)
            except ValueError:
                raise DecodeError("the public key is not a point of P-384") from None
        return self._key

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PublicKey) and self.raw == other.raw

    def __hash__(self) -> int:
        return hash(self.raw)

    def __repr__(self) -> str:
        return f"PublicKey(x={base64url(self.raw[:6])}…)"


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
        return cls(ec.generate_private_key(CURVE))

    @classmethod
    def from_jwk(cls, jwk: Mapping[str, Any]) -> PrivateKey:
        """Read a private JWK.

        Raises:
            DecodeError: Not a P-384 key, or ``x`` and ``y`` are not the point of ``d``. Never quotes the key.
        """
        check_kind(jwk)
        d = int.from_bytes(coordinate(jwk, "d"), "big")
        try:
            key = ec.derive_private_key(d, CURVE)
        except ValueError:
            raise DecodeError("JWK member 'd' is out of range for P-384") from None
        private = cls(key)
        if private.public_key.raw != coordinate(jwk, "x") + coordinate(jwk, "y"):
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
            "d": base64url(d),
            "x": public["x"],
            "y": public["y"],
            "key_ops": ["sign"],
            "ext": True,
        }

    def sign(self, data: bytes) -> bytes:
        """Return the raw 96-byte signature over `data`, deterministic by RFC 6979."""
        return raw_from_der(self._key.sign(data, SIGN))

    def __repr__(self) -> str:
        return "PrivateKey(…)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a private key is not pickled")


def fingerprint(key: PublicKey) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of the key's SubjectPublicKeyInfo.

    Raises:
        DecodeError: The point is not on the curve.
    """
    return hashlib.sha256(key.to_der()).hexdigest()[:16]
