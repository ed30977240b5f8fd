"""Check the parts of a request that Goatherd's server (the node) and reverse proxy (the door) read in the same way.

They answer a malformed request differently: the node with GoatDB's own error, the door with the name of its rule.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from goatherd.crypto import PublicKey
from goatherd.errors import DecodeError
from goatherd.wire.bloom import BloomFilter
from goatherd.wire.javascript_values import is_truthy
from goatherd.wire.json import parse_json
from goatherd.wire.paths import check_repository_path

_OPERATIONS: Final = ("encrypt", "decrypt", "sign", "verify", "deriveKey", "deriveBits", "wrapKey", "unwrapKey")
"""What a JWK's member ``key_ops`` may contain (RFC 7517, 4.3)."""


# No slots: the door's limits inherit from this class and from those of every caller.
@dataclass(frozen=True, kw_only=True)
class RequestLimits:
    """Limits on one ``/batch-sync`` request and its commits. The defaults are far above what GoatDB's clients send.

    Attributes:
        elements: Maximum number of elements in one request; real clients and servers send up to 19.
        seeds: Maximum number of hash functions of one Bloom filter; GoatDB needs 31 for 50 000 commits at its
            strictest.
        filter_bytes: Maximum size of one Bloom filter; 4 MiB is enough for 800 000 commits at GoatDB's
            strictest.
        parents: Maximum number of parents of one commit.
        ancestor_bytes: Maximum size of a commit's filter over its ancestors.
        depth: Maximum number of levels of nested JSON. Goatherd's server counts the levels in a commit's contents, the
            door (reverse proxy) those in the whole element or commit.
        ahead: How far the timestamp of a commit may be in the future.
    """

    elements: int = 1000
    seeds: int = 64
    filter_bytes: int = 4 * 1024 * 1024
    parents: int = 1000
    ancestor_bytes: int = 1024 * 1024
    depth: int = 64
    ahead: timedelta = timedelta(days=1)


def read_repository_path(given: str) -> str:
    """Check the repository path in an element of a request, and return it in the form ``/kind/name``.

    Raises:
        PathError: The path is not one that this server allows for a repository.
    """
    # COMPAT: like GoatDB, accept a path without its leading slash, and ignore what follows the second component: it is
    # an item's key.
    kind, name = check_repository_path("/" + "/".join(given.removeprefix("/").split("/", 2)[:2]))
    return f"/{kind}/{name}"


def check_filter_size(held: BloomFilter, limits: RequestLimits) -> None:
    """Reject a sync message whose Bloom filter is larger than any filter that GoatDB makes.

    Raises:
        DecodeError: The filter is too large.
    """
    if len(held.seeds) > limits.seeds or len(held.bits) > limits.filter_bytes:
        raise DecodeError("the Bloom filter must not be larger than the largest that GoatDB makes")


def decode_session_request(body: bytes) -> PublicKey:
    """Decode the public key in the body of ``POST /auth/session``, which requests a session for this key.

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
    if not isinstance(jwk, dict) or not may_verify(jwk):
        raise DecodeError("InvalidPublicKey")
    try:
        key = PublicKey.from_jwk(jwk)
        key.check()
    except DecodeError:
        raise DecodeError("InvalidPublicKey") from None
    return key


def may_verify(jwk: Mapping[str, Any]) -> bool:
    """Return whether a JWK is for a public key that may verify signatures of GoatDB's kind, by its optional members.

    COMPAT: these are the checks of Deno, on which GoatDB's server runs. A member that is null counts as absent.
    """
    operations, is_extractable = jwk.get("key_ops"), jwk.get("ext")
    if isinstance(operations, list) and not ("verify" in operations and all(one in _OPERATIONS for one in operations)):
        return False
    return (
        jwk.get("d") is None
        and jwk.get("alg") in (None, "ES384")
        and jwk.get("use") in (None, "sig")
        and (is_extractable is None or is_truthy(is_extractable))
    )
