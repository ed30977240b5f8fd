"""Cache what costs most: simulated servers verify the same signatures and decode the same documents again and again.

A signature that this process has made or found valid is not verified again, the same text is signed once (signatures
are deterministic), a private key is derived from its scalar once, and an identity document (which is immutable) is
decoded once from the same bytes. Invalid input is checked each time. Processes that tests start are not affected. A
test of signing or verification runs inside `sign_and_verify_each_time`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from hashlib import blake2b
from inspect import unwrap
from typing import Any
from unittest.mock import patch

from goatherd.crypto.keys import PrivateKey, PublicKey
from goatherd.identity import document as documents
from goatherd.identity import strict_json
from goatherd.identity.document import IdentityDocument
from goatherd.identity.remote_key import Sign

MOST_DOCUMENTS = 64


@contextmanager
def do_once() -> Iterator[None]:
    with _sign_and_verify_once(), _derive_once(), decode_once():
        yield


@contextmanager
def _sign_and_verify_once() -> Iterator[None]:
    sign, verify = PrivateKey.sign, PublicKey.verify
    signatures: dict[tuple[bytes, bytes], bytes] = {}
    valid: set[tuple[bytes, bytes, bytes]] = set()

    @wraps(sign)
    def sign_once(self: PrivateKey, data: bytes) -> bytes:
        raw, digest = self.public_key.raw, blake2b(data).digest()
        signature = signatures.get((raw, digest))
        if signature is None:
            signature = signatures[raw, digest] = sign(self, data)
            valid.add((raw, signature, digest))
        return signature

    @wraps(verify)
    def verify_once(self: PublicKey, signature: bytes, data: bytes) -> None:
        known = (self.raw, signature, blake2b(data).digest())
        if known not in valid:
            verify(self, signature, data)
            valid.add(known)

    with patch.object(PrivateKey, "sign", sign_once), patch.object(PublicKey, "verify", verify_once):
        yield


@contextmanager
def sign_and_verify_each_time() -> Iterator[None]:
    sign, verify = unwrap(PrivateKey.sign), unwrap(PublicKey.verify)
    with patch.object(PrivateKey, "sign", sign), patch.object(PublicKey, "verify", verify):
        yield


@contextmanager
def _derive_once() -> Iterator[None]:
    derive = PrivateKey._from_bytes
    keys: dict[bytes, PrivateKey] = {}

    def derive_once(scalar: bytes) -> PrivateKey:
        if scalar not in keys:
            keys[scalar] = derive(scalar)
        return keys[scalar]

    with patch.object(PrivateKey, "_from_bytes", derive_once):
        yield


@contextmanager
def decode_once() -> Iterator[None]:
    """`decode_document` is imported by name in many modules, so its two halves are replaced, not itself."""
    parse, decode = strict_json.parse_object, documents.document_from_tree
    parsed: OrderedDict[tuple[type, bytes | str], dict[str, Any]] = OrderedDict()
    decoded: dict[int, IdentityDocument | None] = {}

    @wraps(parse)
    def parse_once(raw: bytes | str, *, max_bytes: int) -> dict[str, Any]:
        known = type(raw), raw
        if known in parsed:
            parsed.move_to_end(known)
            return parsed[known]
        tree = parse(raw, max_bytes=max_bytes)
        parsed[known], decoded[id(tree)] = tree, None
        if len(parsed) > MOST_DOCUMENTS:
            _, oldest = parsed.popitem(last=False)
            del decoded[id(oldest)]
        return tree

    @wraps(decode)
    def build_once(tree: Mapping[str, Any], sign: Sign | None = None) -> IdentityDocument:
        document = decoded.get(id(tree))
        if document is None:
            document = decode(tree, sign)
            if id(tree) in decoded and not document.uses_remote_key:  # such a key keeps `sign`
                decoded[id(tree)] = document
        return document

    with patch.object(documents, "parse_object", parse_once), patch.object(documents, "document_from_tree", build_once):
        yield
