"""Check the parts of a request that Goatherd's server (node) and reverse proxy (door) read alike.

Both answer a malformed request in their own way: the node with GoatDB's own error, the door with the name of its rule.
"""

from __future__ import annotations

from goatherd.admission.limits import NAME_LENGTH, RequestLimits
from goatherd.crypto import PublicKey
from goatherd.errors import DecodeError, PathError
from goatherd.wire.bloom import BloomFilter
from goatherd.wire.json import parse_json
from goatherd.wire.paths import check_repository_path


def read_repository_path(given: str) -> str:
    """Return the repository of an element, in the form ``/kind/name``.

    Raises:
        PathError: The path is not a repository path, or a name in it is too long.
    """
    # COMPAT: a missing leading slash is forgiven, and what follows the second component is an item's key.
    kind, name = check_repository_path("/" + "/".join(given.removeprefix("/").split("/", 2)[:2]))
    if len(kind) > NAME_LENGTH or len(name) > NAME_LENGTH:
        raise PathError(f"a name in a repository path must have at most {NAME_LENGTH} characters")
    return f"/{kind}/{name}"


def check_filter_size(held: BloomFilter, limits: RequestLimits) -> None:
    """Reject a filter of an element that is larger than any filter of GoatDB.

    Raises:
        DecodeError: The filter is too large.
    """
    if len(held.seeds) > limits.seeds or len(held.bits) > limits.filter_bytes:
        raise DecodeError("the filter must not be larger than GoatDB's largest filter")


def decode_session_request(body: bytes) -> PublicKey:
    """Decode the public key in the body of ``POST /auth/session``.

    Raises:
        DecodeError: The body or the key is malformed; the message is GoatDB's answer. Keys of other curves and points
            off the curve count as malformed (COMPAT: GoatDB answers 500 to them, after it has stored a session).
    """
    try:
        request = parse_json(body)
    except DecodeError:
        raise DecodeError("InvalidPublicKey") from None
    if request is None:
        raise DecodeError("InvalidPublicKey")
    if not isinstance(request, dict) or "publicKey" not in request:
        raise DecodeError("MissingPublicKey")
    jwk = request["publicKey"]
    if jwk is not None and not isinstance(jwk, dict | list):
        raise DecodeError("MissingPublicKey")
    if (
        not isinstance(jwk, dict)
        or "d" in jwk
        or jwk.get("ext") is False
        or jwk.get("key_ops", ["verify"]) != ["verify"]
    ):
        raise DecodeError("InvalidPublicKey")
    try:
        key = PublicKey.from_jwk(jwk)
        key.check()
    except DecodeError:
        raise DecodeError("InvalidPublicKey") from None
    return key
