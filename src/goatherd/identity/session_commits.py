"""Session commits: commits of ``/sys/sessions`` that introduce a session, and the rules for who may sign a commit.

GoatDB's rules are in docs/reference/goatdb-formats.md#session-items and docs/reference/goatdb-protocol.md#trust. Pure
and without state; `goatherd.trust` records which sessions are trusted.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from goatherd.crypto.keys import SignatureCheck
from goatherd.errors import (
    AuthorMismatchError,
    DecodeError,
    ExpiredSessionError,
    InvalidSignatureError,
)
from goatherd.identity.session import Session, parse_signature, read_commit_signature
from goatherd.wire.derived_ids import derived_id
from goatherd.wire.javascript_values import seconds_from_ms
from goatherd.wire.json import parse_json, to_json

if TYPE_CHECKING:
    from goatherd.wire.commit import Commit

SESSIONS_NAMESPACE = "sessions"
SESSIONS_SCHEMA = "sessions/1"


def earlier_introduction_id(session_id: str, signer_id: str) -> str:
    """Return the id of the commit by which root `signer_id` introduces a previous root (`session_id`).

    Once every server holds this commit, the previous root can be removed from the identity document.
    """
    return derived_id("earlier root/2", f"{session_id}/{signer_id}")


def introduction_id(session_id: str) -> str:
    """Return the id of the commit that introduces a new root to its cluster. It depends on the id of the root only."""
    return derived_id("introduction", session_id)


def draft_session_commit(
    session: Session,
    *,
    signer_id: str,
    commit_id: str,
    ts: int,
    org: str,
    parents: Sequence[str] = (),
    connection: str | None = None,
) -> Commit:
    """Return the commit of ``/sys/sessions`` that introduces a session, without its signature.

    Args:
        session: The session to introduce; only its public key is written.
        signer_id: Id of the root that introduces the session, the commit's author.
        commit_id: 24 characters of a-z and 0-9.
        ts: Time of the commit, in milliseconds since 1970.
        org: The organization of the servers' data; it is part of the signed bytes.
        parents: Ids of the commit's parents.
        connection: Id of the process that writes the commit; None to derive it from the signer.
    """
    # Imported here, because a command that only shows an identity needs no commits.
    from goatherd.wire.bloom import DEFAULT_FPR, BloomFilter, seed_count
    from goatherd.wire.commit import new_commit

    return new_commit(
        commit_id=commit_id,
        key=session.id,
        session_id=signer_id,
        ts=ts,
        org=org,
        data=session_fields(session),
        schema_marker=SESSIONS_SCHEMA,
        connection=connection or derived_id("connection", signer_id),
        parents=parents,
        # COMPAT: GoatDB's commits always carry a filter; that of the first two commits of a key is empty.
        ancestors_filter=BloomFilter.for_size(1, DEFAULT_FPR, range(1, 1 + seed_count(1, DEFAULT_FPR))),
    )


def session_from_commit(commit: Commit) -> Session:
    """Read the session that a commit of ``/sys/sessions`` introduces, from this commit alone.

    Raises:
        DecodeError: The commit contains no whole item with the schema ``sessions/1`` (but, for example, a delta), is
            malformed, deletes a session, holds a private key, or is stored under a key that is not the session's id.
    """
    commit = commit.to_decoded()
    fields = commit.data
    if commit.schema != SESSIONS_SCHEMA or not isinstance(fields, Mapping):
        raise DecodeError(
            f"commit {commit.id!r} introduces no session: it must contain a complete item (not a delta) with the schema"
            f" {SESSIONS_SCHEMA}"
        )
    if fields.get("isDeleted"):
        raise DecodeError(f"commit {commit.id!r} deletes a session")
    if not isinstance(fields.get("publicKey"), str):
        raise DecodeError(f"commit {commit.id!r}: publicKey must be a string")
    try:
        jwk = parse_json(fields["publicKey"])
    except DecodeError:
        raise DecodeError(f"commit {commit.id!r}: publicKey must be JSON") from None
    if not isinstance(jwk, Mapping) or "d" in jwk:
        raise DecodeError(f"commit {commit.id!r}: publicKey must be a public JWK")
    members: dict[str, Any] = {name: fields[name] for name in ("id", "owner", "expiration") if name in fields}
    if members.get("id") == commit.key:
        members["id"] = commit.key  # one string in memory, not two: servers know tens of thousands of sessions
    session = Session.from_json({**members, "publicKey": jwk})
    if session.id != commit.key:
        raise DecodeError(f"commit {commit.id!r}: its item key must be the id of the session that it introduces")
    return session


def session_fields(session: Session) -> dict[str, Any]:
    """Return the encoded fields of the ``/sys/sessions`` item that introduces `session`."""
    # COMPAT: GoatDB writes the fields in this order, which is not the schema's (tests/exchanges).
    fields: dict[str, Any] = {"id": session.id}
    if session.owner is not None:
        fields["owner"] = session.owner
    fields["expiration"] = seconds_from_ms(session.expiration_ms)
    fields["publicKey"] = to_json(session.public_key.to_jwk())
    return fields


def verify_commit_by(session: Session, commit: Commit) -> None:
    """Check that `session` wrote and signed a commit, and that it had not expired then. Thread-safe.

    These are the rules for a commit that can be checked without another session.

    Raises:
        InvalidSignatureError, AuthorMismatchError, UnknownSignerError, ExpiredSessionError: The commit breaks a rule.
    """
    read_signature_by(session, commit).verify()


def read_signature_by(session: Session, commit: Commit) -> SignatureCheck:
    """Return a commit's signature, to be verified with others, after all other checks of `verify_commit_by`.

    Raises:
        InvalidSignatureError, AuthorMismatchError, UnknownSignerError, ExpiredSessionError: The commit breaks a rule.
    """
    commit = commit.to_decoded()
    if not commit.signature:
        raise InvalidSignatureError(f"commit {commit.id!r} is not signed")
    envelope = parse_signature(commit.signature)
    if envelope.session_id != commit.session:
        # SECURITY: access rules judge a commit by its author, so the author must be the session that signed it
        # (tests/unit/test_upstream_traps.py).
        raise AuthorMismatchError(
            f"commit {commit.id!r} names author {commit.session!r}, but session {envelope.session_id!r} signed it"
        )
    ts = envelope.ts
    if isinstance(ts, bool) or not isinstance(ts, int | float) or not math.isfinite(ts):
        # SECURITY: a signature without a timestamp would escape the check whether the signer had expired
        # (tests/unit/test_upstream_traps.py).
        raise InvalidSignatureError(f"the signature of commit {commit.id!r} has no timestamp")
    if not commit.ts <= session.expiration_ms:  # NaN included
        raise ExpiredSessionError(f"session {session.id!r} had expired when commit {commit.id!r} was written")
    try:
        return read_commit_signature(session, commit, envelope)
    except RecursionError:
        raise InvalidSignatureError(f"commit {commit.id!r} is nested too deeply") from None


def preferred_session(known: Session | None, new: Session) -> Session:
    """Choose between two versions of the same session, as GoatDB does (docs/reference/goatdb-protocol.md#trust).

    The version that expires later, or has an owner where the known one has none, replaces the known one. Goatherd adds
    one rule: a root stays a root, so that a later copy without an owner cannot demote it.
    """
    if known is None:
        return new
    if known.is_root and not new.is_root:
        return known
    if new.expiration_ms > known.expiration_ms or (known.owner is None and new.owner is not None):
        return new
    return known


def claims_root(commit: Commit) -> bool:
    """Return whether a commit introduces a session and states that it is a root. Nothing is verified.

    An item of another schema introduces no session, whatever its fields are called.
    """
    if not commit.may_contain("root") or commit.namespace != SESSIONS_NAMESPACE:
        return False
    data = commit.data
    return isinstance(data, Mapping) and data.get("owner") == "root"


def find_rejected_anchors(introductions: Iterable[Commit], anchors: Collection[str]) -> frozenset[str]:
    """Return the ids of the next anchors of rotations that were cancelled or rolled back.

    Each has introduced the anchor before it as a previous root, but did not become the anchor.

    Args:
        introductions: Session commits that introduce roots; verified.
        anchors: The ids of the roots that are or were the identity's anchor.
    """
    by = {
        one.session
        for one in introductions
        if one.key in anchors and one.id == earlier_introduction_id(one.key, one.session)
    }
    return frozenset(by.difference(anchors))
