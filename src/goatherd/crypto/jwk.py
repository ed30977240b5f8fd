"""The members of a P-384 JWK (RFC 7518, 6.2). Rule: an error names a member and never quotes it."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from typing import Any

from goatherd.errors import DecodeError

COMPRESSED_BYTES = 49
"""Of a point that is written as x and the half of the curve that it is on."""
COORDINATE_BYTES = 48
_COORDINATE = re.compile("[A-Za-z0-9_-]{64}")


def coordinate(jwk: Mapping[str, Any], member: str) -> bytes:
    """Return 48 bytes; the error names the member and never quotes it."""
    text = jwk.get(member)
    if not isinstance(text, str) or _COORDINATE.fullmatch(text) is None:
        raise DecodeError(f"JWK member {member!r} is not 64 characters of base64url")
    return base64.urlsafe_b64decode(text)


def base64url(raw: bytes) -> str:
    """Return bytes as base64url, without padding where their count is a multiple of three."""
    return base64.urlsafe_b64encode(raw).decode("ascii")


def check_kind(jwk: Mapping[str, Any]) -> None:
    """Check that a JWK is an elliptic-curve key over P-384.

    Raises:
        DecodeError: It is not.
    """
    if not isinstance(jwk, Mapping):
        raise DecodeError("a JWK is a JSON object")
    if jwk.get("kty") != "EC" or jwk.get("crv") != "P-384":
        raise DecodeError("a GoatDB key is a JWK with kty EC and crv P-384")
