"""Raw ECDSA signatures: ``r || s``, 96 bytes, big-endian (IEEE P1363), over P-384 with SHA-384."""

from __future__ import annotations

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from goatherd.crypto.jwk import COORDINATE_BYTES

SIGNATURE_BYTES = 96
CURVE = ec.SECP384R1()
VERIFY = ec.ECDSA(hashes.SHA384())
# COMPAT: Deno signs by RFC 6979, so the same key and text give the same bytes there and here.
SIGN = ec.ECDSA(hashes.SHA384(), deterministic_signing=True)


def raw_from_der(der: bytes) -> bytes:
    """Return ``r || s`` of a signature in DER, as OpenSSL makes it."""
    r, s = decode_dss_signature(der)
    return r.to_bytes(COORDINATE_BYTES, "big") + s.to_bytes(COORDINATE_BYTES, "big")


def der_from_raw(signature: bytes) -> bytes:
    """Return the DER of a raw signature, as OpenSSL reads it."""
    r = int.from_bytes(signature[:COORDINATE_BYTES], "big")
    s = int.from_bytes(signature[COORDINATE_BYTES:], "big")
    return encode_dss_signature(r, s)
