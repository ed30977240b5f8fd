"""Convert GoatDB's ``settings.json`` to an identity document and user sessions, and back.

The format is in docs/reference/goatdb-formats.md#settingsjson. GoatDB itself skips members that it cannot read and
creates missing ones; this reader rejects such a file. Pure. A private key is written to ``currentSession`` only. The
reader reports each value that it changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Final

from goatherd.errors import DirectModeError, IdentityError, MalformedIdentityError
from goatherd.identity.document import (
    IdentityDocument,
    document_from_tree,
    document_tree,
    normalize_document,
    read_owned,
    read_session,
)
from goatherd.identity.json_members import read_list
from goatherd.identity.key_age import EXPIRED_HINT, SHORT_LIFE
from goatherd.identity.redaction import days_left
from goatherd.identity.session import ROOT_OWNER, OwnedSession, Session
from goatherd.identity.session_commits import preferred_session
from goatherd.identity.strict_json import holds_private_key, parse_object, to_pretty_json
from goatherd.telemetry import describe_count
from goatherd.wire.json import to_json_bytes

SETTINGS_NAME: Final = "settings.json"
"""Name of the file in a data directory."""
SETTINGS_LIMIT_BYTES: Final = 256 * 1024 * 1024

_MEMBERS = frozenset({"currentSession", "roots", "trustedSessions"})


def from_settings(raw: bytes | str, now_ms: int) -> tuple[IdentityDocument, tuple[Session, ...], list[str]]:
    """Read a ``settings.json`` that GoatDB wrote, or an identity document that is used as one.

    Args:
        raw: The content of the file.
        now_ms: Milliseconds since 1970.

    Returns:
        The document, the user sessions of ``trustedSessions`` (never a root), and notes on what was changed: private
        keys taken out, roots added or merged, unknown members removed, a root that expires soon.

    Raises:
        MalformedIdentityError: The file is malformed. Nothing is skipped or invented.
        KeyMismatchError: The private key does not belong to the public key.
    """
    tree = parse_object(raw, max_bytes=SETTINGS_LIMIT_BYTES)
    notes: list[str] = []
    trusted = _read_trusted(tree, notes)
    if "generation" in tree or "version" in tree:
        own = {name: value for name, value in tree.items() if name != "trustedSessions"}
        document = document_from_tree(own)
        users = tuple(session for session in trusted if not session.is_root)
        missing = [session.id for session in trusted if session.is_root and document.find_root(session.id) is None]
        if missing:
            raise MalformedIdentityError(f"root {missing[0]} is in trustedSessions, but not among the roots")
    else:
        document, users = _convert_settings(tree, trusted, now_ms, notes)
    return document, users, notes + describe_short_life(document, now_ms)


def describe_short_life(document: IdentityDocument, now_ms: int) -> list[str]:
    """Return a note on a current root that expires soon or has expired; an empty list otherwise."""
    left = days_left(document, now_ms)
    if left < 0:
        return [f"the current root {document.current.id} has expired. {EXPIRED_HINT}"]
    if left < SHORT_LIFE.days:
        return [f"the current root {document.current.id} expires in {left:.1f} days; rotate it"]
    return []


def publishes_private_key(raw: bytes | str) -> bool:
    """Return whether a GoatDB server that runs with a ``settings.json`` gives a root's private key to its callers.

    COMPAT: GoatDB 0.5.1 answers ``POST /auth/session`` with its list of roots, each as it is in memory. The list is
    ``roots``; the server's own session, and then each trusted root, is added to it, or replaces an entry with an
    earlier expiration, with the private key that it has in the file. So only the public half of the server's root in
    ``roots``, with exactly the same expiration, keeps the private key out.

    Args:
        raw: The content of the file, which `from_settings` has accepted.
    """
    tree = parse_object(raw, max_bytes=SETTINGS_LIMIT_BYTES)
    roots, trusted = tree.get("roots") or (), tree.get("trustedSessions") or ()
    own = Session.from_json(tree["currentSession"])
    listed: dict[str, int] = {}
    for root in map(Session.from_json, roots):
        listed[root.id] = max(root.expiration_ms, listed.get(root.id, root.expiration_ms))
    if listed.get(own.id) != own.expiration_ms or any("privateKey" in root for root in roots):
        return True
    with_key = [Session.from_json(session) for session in trusted if "privateKey" in session]
    return any(one.is_root and listed.get(one.id, -1) < one.expiration_ms for one in with_key)


def _convert_settings(
    tree: Mapping[str, Any], trusted: Iterable[Session], now_ms: int, notes: list[str]
) -> tuple[IdentityDocument, tuple[Session, ...]]:
    if tree.get("currentSession") is None:
        raise MalformedIdentityError("currentSession is missing")
    current = read_owned(tree["currentSession"], "currentSession")
    if current.session.owner != ROOT_OWNER:
        raise MalformedIdentityError("the owner of currentSession must be `root`: these are a client's settings")
    current = OwnedSession(session=_without_unknown(current.session, "currentSession", notes), signer=current.signer)
    roots: dict[str, Session] = {current.id: current.session}
    for root in _read_roots(tree, notes):
        _add_root(roots, root, notes)
    for session in trusted:
        if session.is_root:
            if session.id not in roots:
                notes.append(f"root {session.id} is in trustedSessions only; it counts as one of the roots")
            _add_root(roots, session, notes)
    # COMPAT: if the roots contain the current session with a later expiration, a GoatDB server uses that expiration for
    # its current session, too.
    current = OwnedSession(session=roots[current.id], signer=current.signer)
    extra = {}
    for name, value in tree.items():
        if name not in _MEMBERS:
            if holds_private_key(value) or holds_private_key({name: None}):
                notes.append("an unknown member that holds a private key is left out")
            else:
                extra[name] = value
    document = normalize_document(
        IdentityDocument(generation=1, current=current, roots=tuple(roots.values()), last_updated=now_ms, extra=extra)
    )
    return document, tuple(session for session in trusted if not session.is_root)


def _add_root(roots: dict[str, Session], root: Session, notes: list[str]) -> None:
    known = roots.get(root.id)
    if known is None:
        roots[root.id] = root
        return
    if known.public_key != root.public_key:
        raise MalformedIdentityError(f"root {root.id} is listed with two different keys")
    if root.expiration_ms != known.expiration_ms:
        notes.append(f"root {root.id} has two expirations; the later one counts")
    if root.expiration_ms > known.expiration_ms:
        roots[root.id] = root


def _read_roots(tree: Mapping[str, Any], notes: list[str]) -> list[Session]:
    value = tree.get("roots")
    roots = []
    for item, where in read_list([] if value is None else value, "roots"):
        root = _without_unknown(read_session(item, where), where, notes)
        if root.owner != ROOT_OWNER:
            raise MalformedIdentityError(f"the owner of {where} must be `root`")
        if "privateKey" in item:
            notes.append(f"the private key of root {root.id} is left out of {where}")
        roots.append(root)
    return roots


def _read_trusted(tree: Mapping[str, Any], notes: list[str]) -> list[Session]:
    value = tree.get("trustedSessions")
    sessions: dict[str, Session] = {}
    for item, where in read_list([] if value is None else value, "trustedSessions"):
        # Of users' sessions, there may be thousands: OpenSSL parses each key when it is first used.
        is_root = isinstance(item, Mapping) and item.get("owner") == ROOT_OWNER
        session = _without_unknown(read_session(item, where, is_key_checked=is_root), where, notes)
        if session.id in sessions and sessions[session.id].public_key != session.public_key:
            raise MalformedIdentityError(f"{where} and another session have the same id and different keys")
        if "privateKey" in item:
            notes.append(f"the private key of session {session.id} is left out of {where}")
        sessions[session.id] = preferred_session(sessions.get(session.id), session)
    return list(sessions.values())


def _without_unknown(session: Session, where: str, notes: list[str]) -> Session:
    """Remove members that GoatDB does not know from a session's JSON, because a GoatDB server would publish them."""
    if not session.extra:
        return session
    notes.append(f"{describe_count(len(session.extra), 'unknown member')} of {where} left out")
    return replace(session, extra={})


def to_settings(
    document: IdentityDocument, trusted: Iterable[Session] = (), *, now_ms: int | None = None, is_compact: bool = False
) -> bytes:
    """Return the ``settings.json`` for a GoatDB server, with only the members that GoatDB reads.

    The next root's private key is never included. Roots are also in ``trustedSessions``, because a GoatDB server
    otherwise rejects what a root signs; revoked roots are in neither list.

    Args:
        document: The identity document.
        trusted: User sessions that the server knows; the caller has verified them.
        now_ms: The current time, in milliseconds since 1970. If given, a current root that expires within 15 days is
            rejected.
        is_compact: Whether to write no line breaks, which takes a tenth of the time with thousands of sessions.

    Raises:
        IdentityError: The current root expires too soon: the server would extend it automatically and thereby expose
            its private key.
        DirectModeError: The key of the current root is in an HSM or a KMS, and GoatDB's servers need it in this file.
    """
    check_exportable(document)
    if now_ms is not None and (left := days_left(document, now_ms)) <= SHORT_LIFE.days:
        raise IdentityError(
            f"the current root {document.current.id} has {max(0.0, left):.1f} days left;"
            f" a GoatDB server needs more than {SHORT_LIFE.days}, or it exposes its private key",
            hint=EXPIRED_HINT if left < 0 else "Rotate first: `goatherd rotate`.",
        )
    members = {
        "currentSession": document.current.to_secret_json(),
        "roots": [root.to_json() for root in document.roots if root.id not in document.revoked_ids],
        "trustedSessions": _trusted_members(document, trusted),
    }
    return to_json_bytes(members) if is_compact else to_pretty_json(members)


def check_exportable(document: IdentityDocument) -> None:
    """Check that unmodified GoatDB can sign with the current root, and with the next root of a rotation in progress.

    Raises:
        DirectModeError: The key of one of these roots is in an HSM or a KMS.
    """
    for owned in (document.current, document.next):
        if owned is not None and owned.is_remote:
            raise DirectModeError(
                f"the key of root {owned.id} is in an HSM or a KMS, which unmodified GoatDB cannot use"
            )


def to_settings_keeping(document: IdentityDocument, trusted: Iterable[Session]) -> bytes:
    """Return a ``settings.json`` that is also a complete identity document: it keeps members that GoatDB ignores.

    `trusted` are the user sessions that are added as ``trustedSessions``.
    """
    tree = document_tree(document)
    return to_pretty_json({**tree, "trustedSessions": _trusted_members(document, trusted)})


def _trusted_members(document: IdentityDocument, trusted: Iterable[Session]) -> list[dict[str, Any]]:
    roots = {root.id: root for root in document.roots if root.id not in document.revoked_ids}
    known = {document.current.id: document.current.session, **roots}
    for session in trusted:
        if session.id not in document.revoked_ids:
            known.setdefault(session.id, session)
    return [session.to_json() for session in known.values()]
