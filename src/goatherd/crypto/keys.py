"""P-384 keys: their JWKs (RFC 7518, 6.2), signing and verifying.

A raw signature is ``r || s``, 96 bytes, big-endian (IEEE P1363), with SHA-384. GoatDB's sessions and signature strings
are in `goatherd.identity.session`. Verification raises an error or returns nothing. A private key is never shown in
``repr`` or an error, and cannot be pickled. An error about a JWK names the member and does not quote it.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, NoReturn, Protocol

import cryptography
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from goatherd.errors import DecodeError, InvalidSignatureError

SIGNATURE_BYTES = 96
CURVE = ec.SECP384R1()
VERIFY = ec.ECDSA(hashes.SHA384())
# COMPAT: Deno, which runs GoatDB, signs by RFC 6979. So Goatherd and GoatDB make the same signature bytes from the same
# key and text.
SIGN = ec.ECDSA(hashes.SHA384(), deterministic_signing=True)


def raw_from_der(der: bytes) -> bytes:
    """Convert an ECDSA signature from DER (RFC 3279), as OpenSSL and most key services make it, to raw ``r || s``.

    A number that is shorter than 48 bytes is padded. A high ``s`` is kept: verifiers of GoatDB accept it.

    Raises:
        DecodeError: The bytes are not a DER signature, or a number is negative or longer than 48 bytes.
    """
    try:
        r, s = decode_dss_signature(der)
        return r.to_bytes(COORDINATE_BYTES, "big") + s.to_bytes(COORDINATE_BYTES, "big")
    except (ValueError, OverflowError):
        raise DecodeError("the bytes are not an ECDSA signature over P-384 in DER") from None


def der_from_raw(signature: bytes) -> bytes:
    """Convert a raw ECDSA signature (``r || s``, 96 bytes) to DER, the encoding that OpenSSL reads."""
    r = int.from_bytes(signature[:COORDINATE_BYTES], "big")
    s = int.from_bytes(signature[COORDINATE_BYTES:], "big")
    return encode_dss_signature(r, s)


COMPRESSED_BYTES = 49
"""Of a point that is written as x and the half of the curve that it is on."""
COORDINATE_BYTES = 48
_SPKI_OF_P384 = bytes.fromhex("3076301006072a8648ce3d020106052b8104002203620004")
"""What precedes x and y in a SubjectPublicKeyInfo. Written here, since the library's encoder takes long to import."""
_COORDINATE = re.compile("[A-Za-z0-9_-]{64}")


def _decode_coordinate(jwk: Mapping[str, Any], member: str) -> bytes:
    """Return a coordinate (such as ``x``) of a JWK as 48 bytes. An error names the member and never quotes it."""
    text = jwk.get(member)
    if not isinstance(text, str) or _COORDINATE.fullmatch(text) is None:
        raise DecodeError(f"JWK member {member!r} must be 64 characters of base64url")
    return base64.urlsafe_b64decode(text)


def _encode_base64url(raw: bytes) -> str:
    """Return bytes as base64url; the number of bytes must be a multiple of three, so that there is no padding."""
    return base64.urlsafe_b64encode(raw).decode("ascii")


def _raw_of(key: ec.EllipticCurvePublicKey) -> bytes:
    numbers = key.public_numbers()
    return numbers.x.to_bytes(COORDINATE_BYTES) + numbers.y.to_bytes(COORDINATE_BYTES)


def _check_jwk(jwk: Mapping[str, Any]) -> None:
    """Check that a JWK is an elliptic-curve key over P-384.

    Raises:
        DecodeError: The JWK is not an elliptic-curve key over P-384.
    """
    if not isinstance(jwk, Mapping):
        raise DecodeError("a JWK must be a JSON object")
    if jwk.get("kty") != "EC" or jwk.get("crv") != "P-384":
        if jwk.get("kty") == "OKP":
            raise DecodeError(
                "it is an Ed25519 key, which is a newer GoatDB's key; Goatherd supports GoatDB 0.5.1, whose keys are"
                " P-384"
            )
        raise DecodeError("a GoatDB key must be a JWK with kty EC and crv P-384")


class ImportedKey(Protocol):
    """The interface of a public key that a library other than OpenSSL has imported."""

    def verify(self, digest: bytes, signature: bytes) -> bool:
        """Return whether a DER signature matches the SHA-384 digest of the signed data."""
        ...


class OtherLibrary(NamedTuple):
    """A library that can verify signatures instead of OpenSSL; see `verify_with`.

    Attributes:
        import_key: Makes the library's public key from a SubjectPublicKeyInfo in DER; raises RuntimeError if it cannot.
        is_preferred: Returns whether the calling thread is to verify with this library rather than with OpenSSL.
        is_serial: Whether all threads verify with this library, and it verifies only one signature at a time.
    """

    import_key: Callable[[bytes], ImportedKey]
    is_preferred: Callable[[], bool]
    is_serial: bool = False


_other: OtherLibrary | None = None


def verify_with(library: OtherLibrary | None) -> None:
    """Let this process verify signatures with another library; with None, with OpenSSL alone."""
    global _other
    _other = library


def is_verification_serial() -> bool:
    """Return whether several threads of this process verify no faster than one. With OpenSSL, they verify faster."""
    return _other is not None and _other.is_serial


def library_versions() -> tuple[str, str]:
    """Return the version of the library `cryptography`, and the version of OpenSSL that it contains."""
    from cryptography.hazmat.backends.openssl.backend import backend

    return cryptography.__version__, backend.openssl_version_text()


class PublicKey:
    """A P-384 public key. OpenSSL parses it on first use, so that holding 50 000 keys is cheap.

    Two keys are equal if their coordinates are equal.
    """

    __slots__ = ("_imported", "_key", "raw")

    raw: bytes
    """``x || y``, 96 bytes."""

    def __init__(self, raw: bytes) -> None:
        if len(raw) != 2 * COORDINATE_BYTES:
            raise DecodeError("a P-384 public key must be 96 bytes, x then y")
        self.raw = raw
        self._key: ec.EllipticCurvePublicKey | None = None
        self._imported: ImportedKey | None = None

    @classmethod
    def from_jwk(cls, jwk: Mapping[str, Any]) -> PublicKey:
        """Read a public key from a JWK; members other than ``kty``, ``crv``, ``x`` and ``y`` are ignored.

        Raises:
            DecodeError: The JWK is not an EC P-384 key, or a coordinate is not 48 bytes. Only `check` finds a point off
                the curve.
        """
        _check_jwk(jwk)
        return cls(_decode_coordinate(jwk, "x") + _decode_coordinate(jwk, "y"))

    @classmethod
    def from_compressed(cls, compressed: bytes) -> PublicKey:
        """Read a public key from its compressed point, the 49 bytes that `compressed` returns.

        Raises:
            DecodeError: The bytes are not a point of P-384.
        """
        try:
            key = ec.EllipticCurvePublicKey.from_encoded_point(CURVE, compressed)
        except ValueError:
            raise DecodeError("the public key is not a point of P-384") from None
        return cls(_raw_of(key))

    @classmethod
    def from_der(cls, der: bytes) -> PublicKey:
        """Read a public key from a SubjectPublicKeyInfo (RFC 5480) in DER.

        Raises:
            DecodeError: The bytes are not a public key, or the key is not an elliptic-curve key over P-384.
        """
        from cryptography.hazmat.primitives.serialization import load_der_public_key

        return cls._from_loaded(load_der_public_key, der)

    @classmethod
    def from_pem(cls, pem: str) -> PublicKey:
        """Read a public key from a SubjectPublicKeyInfo (RFC 5480) in PEM. See `from_der`."""
        from cryptography.hazmat.primitives.serialization import load_pem_public_key

        return cls._from_loaded(load_pem_public_key, pem.encode("utf-8", "replace"))

    @classmethod
    def _from_loaded(cls, load: Callable[[bytes], object], data: bytes) -> PublicKey:
        try:
            key = load(data)
        except (ValueError, UnsupportedAlgorithm):
            raise DecodeError("the bytes are not a public key") from None
        if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
            kind = key.curve.name if isinstance(key, ec.EllipticCurvePublicKey) else type(key).__name__
            raise DecodeError(f"the key must be an elliptic-curve key over P-384; it is {kind}")
        return cls(_raw_of(key))

    @property
    def compressed(self) -> bytes:
        """The public key as a compressed point of 49 bytes (SEC 1, 2.3.3): a byte for the sign of y, then x."""
        return bytes([2 + (self.raw[-1] & 1)]) + self.raw[:COORDINATE_BYTES]

    def check(self) -> None:
        """Parse the public key now, and check that its point is on the curve.

        Raises:
            DecodeError: The point is not on the curve.
        """
        self._parse_key()

    def to_jwk(self) -> dict[str, Any]:
        """Return the public key as a JWK, with its members in the order in which Deno exports them."""
        x, y = self.raw[:COORDINATE_BYTES], self.raw[COORDINATE_BYTES:]
        return {
            "kty": "EC",
            "alg": "ES384",
            "crv": "P-384",
            "x": _encode_base64url(x),
            "y": _encode_base64url(y),
            "key_ops": ["verify"],
            "ext": True,
        }

    def verify(self, signature: bytes, data: bytes) -> None:
        """Verify a raw 96-byte signature over `data` with this public key. OpenSSL releases the GIL while it verifies.

        Raises:
            InvalidSignatureError: The signature has a wrong length or does not match, or the key is not on the curve.
        """
        if len(signature) != SIGNATURE_BYTES:
            raise InvalidSignatureError(f"a signature must have {SIGNATURE_BYTES} bytes, not {len(signature)}")
        der = der_from_raw(signature)
        if _other is not None and _other.is_preferred():
            try:
                if self._imported is None:
                    self._imported = _other.import_key(_SPKI_OF_P384 + self.raw)
                is_valid = self._imported.verify(hashlib.sha384(data).digest(), der)
            except RuntimeError:
                pass  # such as a point that is not on the curve: OpenSSL decides
            else:
                if not is_valid:
                    raise _mismatch_error()
                return
        try:
            self._parse_key().verify(der, data, VERIFY)
        except DecodeError as error:
            raise InvalidSignatureError(str(error)) from error
        except InvalidSignature:
            raise _mismatch_error() from None

    def to_der(self) -> bytes:
        """Return the public key as a SubjectPublicKeyInfo (RFC 5480) in DER, the form in which `openssl` writes a key.

        Raises:
            DecodeError: The point is not on the curve.
        """
        self.check()
        return _SPKI_OF_P384 + self.raw

    def _parse_key(self) -> ec.EllipticCurvePublicKey:
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

    def __reduce__(self) -> tuple[type[PublicKey], tuple[bytes]]:
        # Without what the libraries have imported, which cannot be pickled.
        return PublicKey, (self.raw,)

    def __repr__(self) -> str:
        return f"PublicKey(x={_encode_base64url(self.raw[:6])}…)"


def _mismatch_error() -> InvalidSignatureError:
    return InvalidSignatureError("the signature does not match the data and the key")


class SignatureCheck(NamedTuple):
    """A signature that is still to be verified.

    Attributes:
        key: The public key of the signer.
        signature: The raw signature.
        data: The signed bytes.
    """

    key: PublicKey
    signature: bytes
    data: bytes

    def verify(self) -> None:
        """Verify the signature; see `PublicKey.verify`."""
        self.key.verify(self.signature, self.data)


class PrivateKey:
    """A P-384 private key in memory.

    SECURITY: its ``repr`` hides the key, and it cannot be pickled (tests/unit/crypto/test_keys.py).
    """

    __slots__ = ("_key", "public_key")

    public_key: PublicKey

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        self._key = key
        self.public_key = PublicKey(_raw_of(key.public_key()))

    @classmethod
    def generate(cls) -> PrivateKey:
        """Generate a new private key from the operating system's random numbers."""
        return cls(ec.generate_private_key(CURVE))

    @classmethod
    def from_jwk(cls, jwk: Mapping[str, Any]) -> PrivateKey:
        """Read a private key from a JWK.

        Raises:
            DecodeError: The JWK is not a P-384 key, or ``x`` and ``y`` do not belong to ``d``. The error never quotes
                the key.
        """
        _check_jwk(jwk)
        private = cls._from_bytes(_decode_coordinate(jwk, "d"))
        if private.public_key.raw != _decode_coordinate(jwk, "x") + _decode_coordinate(jwk, "y"):
            raise DecodeError("the private JWK's x and y do not belong to its d")
        return private

    @classmethod
    def from_scalar(cls, encoded: str) -> PrivateKey:
        """Read a private key from the member ``d`` of a JWK alone.

        Raises:
            DecodeError: `encoded` is not a scalar of P-384. The error never quotes the key.
        """
        return cls._from_bytes(_decode_coordinate({"d": encoded}, "d"))

    @classmethod
    def _from_bytes(cls, scalar: bytes) -> PrivateKey:
        try:
            return cls(ec.derive_private_key(int.from_bytes(scalar, "big"), CURVE))
        except ValueError:
            raise DecodeError("JWK member 'd' is out of range for P-384") from None

    def to_jwk(self) -> dict[str, Any]:
        """Return the private key as a JWK in Deno's member order. The result is unprotected key material."""
        d = self._key.private_numbers().private_value.to_bytes(COORDINATE_BYTES, "big")
        public = self.public_key.to_jwk()
        return {
            "kty": public["kty"],
            "alg": public["alg"],
            "crv": public["crv"],
            "d": _encode_base64url(d),
            "x": public["x"],
            "y": public["y"],
            "key_ops": ["sign"],
            "ext": True,
        }

    def sign(self, data: bytes) -> bytes:
        """Sign `data` with ECDSA; return the raw 96-byte signature, deterministic by RFC 6979."""
        return raw_from_der(self._key.sign(data, SIGN))

    def __repr__(self) -> str:
        return "PrivateKey(…)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a private key cannot be pickled")


def fingerprint(key: PublicKey) -> str:
    """Return a public key's fingerprint: the first 16 hexadecimal digits of the SHA-256 of its SubjectPublicKeyInfo.

    Raises:
        DecodeError: The point is not on the curve.
    """
    return hashlib.sha256(key.to_der()).hexdigest()[:16]
