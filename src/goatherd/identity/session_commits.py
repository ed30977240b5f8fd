"""Session commits: commits of ``/sys/sessions`` that introduce a session, and the rules for who may sign a commit.

GoatDB's rules: docs/reference/goatdb-formats.md#session-items and docs/reference/goatdb-protocol.md#trust. Pure and
without state: `goatherd.trust` knows which sessions are trusted.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from goatherd.derived_ids import derived_id
from goatherd.errors import (
    AuthorMismatchError,
    DecodeError,
    ExpiredSessionError,
    InvalidSignatureError,
)
from goatherd.identity.session import Session, parse_signature, verify_commit
from goatherd.wire.javascript_values import seconds_from_ms
from goatherd.wire.json import to_json

if TYPE_CHECKING:
    from goatherd.wire.commit import Commit

SESSIONS_NAMESPACE = "sessions"
SESSIONS_SCHEMA = "sessions/1"


def earlier_introduction_id(session_id: str, signer_id: str) -> str:
    """Return the id of the commit by which a root introduces an earlier root, which may then leave the document."""
    return derived_id("earlier root/2", f"{session_id}/{signer_id}")


def session_from_commit(commit: Commit) -> Session:
    """Read the session that a commit of ``/sys/sessions`` introduces. No other commit is needed.

    Raises:
        DecodeError: The commit is not a full commit of ``sessions/1``, is malformed or deleted, holds a private key, or
            is stored under a key that is not the session's id.
    """
    fields = commit.data
    if commit.schema != SESSIONS_SCHEMA or not isinstance(fields, Mapping):
        raise DecodeError(f"commit {commit.id!r} introduces no session")
    if fields.get("isDeleted"):
        raise DecodeError(f"commit {commit.id!r} deletes a session")
    if not isinstance(fields.get("publicKey"), str):
        raise DecodeError(f"commit {commit.id!r}: publicKey is not a string")
    try:
        jwk = json.loads(fields["publicKey"])
    except (ValueError, RecursionError):
        raise DecodeError(f"commit {commit.id!r}: publicKey is not JSON") from None
    if not isinstance(jwk, Mapping) or "d" in jwk:
        raise DecodeError(f"commit {commit.id!r}: publicKey is not a public JWK")
    members: dict[str, Any] = {name: fields[name] for name in ("id", "owner", "expiration") if name in fields}
    session = Session.from_json({**members, "publicKey": jwk})
    if session.id != commit.key:
        raise DecodeError(f"commit {commit.id!r}: its key is not the id of its session")
    return session


def session_fields(session: Session) -> dict[str, Any]:
    """Return the encoded fields of the item that introduces `session` in ``/sys/sessions``."""
    fields: dict[str, Any] = {"id": session.id}
    if session.owner is not None:
        fields["owner"] = session.owner
    fields["expiration"] = seconds_from_ms(session.expiration_ms)
    fields["publicKey"] = to_json(session.public_key.to_jwk())
    return fields


def verify_commit_by(session: Session, commit: Commit) -> None:
    """Check that `session` wrote and signed `commit`: all rules of this module that need no other session. Thread-safe.

    Raises:
        InvalidSignatureError, AuthorMismatchError, UnknownSignerError, ExpiredSessionError: The commit breaks a rule.
    """
    if not commit.signature:
        raise InvalidSignatureError(f"commit {commit.id!r} is not signed")
    envelope = parse_signature(commit.signature)
    if envelope.session_id != commit.session:
        # SECURITY: rights are the author's, so the author must be the signer (tests/unit/test_upstream_traps.py).
        raise AuthorMismatchError(
            f"commit {commit.id!r} claims session {commit.session!r} but {envelope.session_id!r} signed it"
        )
    ts = envelope.ts
    if isinstance(ts, bool) or not isinstance(ts, int | float) or not math.isfinite(ts):
        # SECURITY: without a timestamp the expiration would not be checked (tests/unit/test_upstream_traps.py).
        raise InvalidSignatureError(f"the signature of commit {commit.id!r} has no timestamp")
    if not commit.ts <= session.expiration_ms:  # NaN included
        raise ExpiredSessionError(f"session {session.id!r} had expired when commit {commit.id!r} was written")
    try:
        verify_commit(session, commit, envelope)
    except RecursionError:
        raise InvalidSignatureError(f"commit {commit.id!r} is nested too deeply") from None


def preferred_session(known: Session | None, new: Session) -> Session:
    """Choose between two versions of one session, as GoatDB does (docs/reference/goatdb-protocol.md#trust).

    Goatherd adds one rule: a root stays a root, so that a later copy without an owner cannot demote it.
    """
    if known is None:
        return new
    if known.is_root and not new.is_root:
        return known
    if new.expiration_ms > known.expiration_ms or (known.owner is None and new.owner is not None):
        return new
    return known


def claims_root(commit: Commit) -> bool:
    """Return whether a session commit says that its session is a root. Nothing is verified."""
    return isinstance(commit.data, Mapping) and commit.data.get("owner") == "root"
