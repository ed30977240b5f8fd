"""Sessions with fixed keys, documents in every phase, and a search for key material."""

from __future__ import annotations

import hashlib
import traceback
from functools import cache
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from goatherd.crypto import PrivateKey
from goatherd.identity.document import IdentityDocument, Phase
from goatherd.identity.session import ROOT_OWNER, OwnedSession, Session
from goatherd.identity.transitions import (
    activate_rotation,
    create_document,
    finalize_rotation,
    prepare_rotation,
    with_phase,
)

NOW = 1_795_000_000_000
DAY = 86_400_000
PIECE = 12
USUAL_BYTES = 10 * 1024
"""What an identity document takes at most in normal use (docs/explanation/scope.md)."""
SMALLEST_LIMIT = 19_200
"""Largest value in bytes that every store accepts: the limit of Azure Key Vault (docs/how-to/choose-a-store.md)."""


@cache
def owned(name: str, *, owner: str | None = ROOT_OWNER, days: int = 30) -> OwnedSession:
    """Return a session whose key follows from its name."""
    number = int.from_bytes(hashlib.sha384(name.encode()).digest(), "big") >> 1
    key = PrivateKey(ec.derive_private_key(number, ec.SECP384R1()))
    session = Session(
        id=name.ljust(24, "x"), public_key=key.public_key, owner=owner, expiration_ms=NOW + days * DAY + 123
    )
    return OwnedSession(session=session, signer=key)


def secret_of(session: OwnedSession) -> str:
    return str(session.to_secret_json()["privateKey"]["d"])


def first() -> IdentityDocument:
    return create_document(owned("a"), NOW)


def prepared(document: IdentityDocument | None = None, name: str = "b") -> IdentityDocument:
    return prepare_rotation(
        document or first(),
        owned(name),
        now_ms=NOW,
        rotation_id=f"rotation-to-{name}",
        started_by="alice@host",
        stable_version="7",
    )


def published(document: IdentityDocument | None = None, name: str = "b") -> IdentityDocument:
    return with_phase(prepared(document, name), Phase.PUBLISHED, NOW)


def activated(document: IdentityDocument | None = None, name: str = "b") -> IdentityDocument:
    return activate_rotation(published(document, name), NOW)


def rotated(document: IdentityDocument | None = None, name: str = "b") -> IdentityDocument:
    return finalize_rotation(with_phase(activated(document, name), Phase.VERIFIED, NOW), NOW)


def pieces_of(secret: str) -> set[str]:
    return {secret[i : i + PIECE] for i in range(len(secret) - PIECE + 1)}


def everything_in(error: BaseException) -> str:
    """Return all text that can be read from an error, its causes and contexts, and their attributes."""
    parts = ["".join(traceback.format_exception(error))]
    todo: list[BaseException | None] = [error]
    seen: set[int] = set()
    while todo:
        one = todo.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        attributes: dict[str, Any] = {
            name: getattr(one, name, None) for name in dir(one) if name not in ("__traceback__", "__dict__")
        }
        parts += [str(one), repr(one), repr(vars(one)), repr({k: v for k, v in attributes.items() if not callable(v)})]
        todo += [one.__cause__, one.__context__]
    return "\n".join(parts)


def shows_key(text: str, *sessions: OwnedSession) -> bool:
    return any(piece in text for session in sessions for piece in pieces_of(secret_of(session)))
