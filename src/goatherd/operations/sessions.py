"""Make sessions and a first identity, encode sessions as GoatDB does, and introduce a root.

These functions do not rotate a root. Running servers do not trust a root that a program merely writes into the store;
`goatherd.rotate` introduces the new root to them first. A private key is encoded only if the caller passes
`include_private_key`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from goatherd.clock import SystemClock
from goatherd.errors import ConfigurationError, DecodeError, ExpiredSessionError
from goatherd.identity.document import IdentityDocument
from goatherd.identity.session import ROOT_OWNER, SESSION_LIFETIME, OwnedSession, Session
from goatherd.identity.transitions import create_document
from goatherd.ids import new_id
from goatherd.rotation.cross_signing import make_session_commit
from goatherd.rotation.policy import Policy, check_duration, check_lifetime
from goatherd.wire.commit import Commit
from goatherd.wire.paths import DEFAULT_ORG


def generate_session(owner: str | None = ROOT_OWNER, *, lifetime: timedelta | None = None) -> OwnedSession:
    """Generate a session with a new key pair. The session exists in this process only, until something stores it.

    Args:
        owner: ``"root"`` for a root, the id of a user, or None for an anonymous session.
        lifetime: How long the session is valid; by default 180 days for a root, and 30 days for others.

    Raises:
        ConfigurationError: The lifetime is no `timedelta`, or is negative, or longer than a hundred years.
        LifetimeError: The lifetime of a root would be too short to replace it in time.
    """
    if lifetime is not None:
        check_duration("lifetime", lifetime)
    if owner == ROOT_OWNER:
        policy = Policy() if lifetime is None else Policy(lifetime=lifetime)
        check_lifetime(policy)
        lifetime = policy.lifetime
    chosen = SESSION_LIFETIME if lifetime is None else lifetime
    return OwnedSession.generate(session_id=new_id(), owner=owner, now_ms=SystemClock().now_ms(), lifetime=chosen)


def create_identity(root: OwnedSession) -> IdentityDocument:
    """Return the first identity document of a cluster whose root is `root`. Nothing is stored.

    Raises:
        ConfigurationError: `root` is not a root.
    """
    _check_root(root, "an identity")
    return create_document(root, SystemClock().now_ms())


def create_session_commit(
    current_root: OwnedSession, new_root: Session | OwnedSession, *, org: str = DEFAULT_ORG
) -> Commit:
    """Return the commit of ``/sys/sessions`` that introduces `new_root`, signed by `current_root`.

    A server that trusts `current_root` then trusts `new_root`. `goatherd.rotate` makes such a commit itself, and waits
    until every server has it before `new_root` signs.

    Args:
        current_root: A root that the servers trust.
        new_root: The session to introduce; the commit contains only its public key.
        org: The organization; it is part of the signed bytes.

    Raises:
        ConfigurationError: `current_root` is not a root, or `new_root` is not a session.
        ExpiredSessionError: `current_root` has expired.
    """
    _check_root(current_root, "a session commit")
    now_ms = SystemClock().now_ms()
    if current_root.session.is_expired(now_ms):
        raise ExpiredSessionError(
            f"root {current_root.id} has expired and can introduce no session",
            hint="`goatherd rotate --replace-expired` replaces an expired root.",
        )
    if not isinstance(new_root, Session | OwnedSession):
        raise _not_a_session(new_root)
    session = new_root.session if isinstance(new_root, OwnedSession) else new_root
    return Commit.from_json(
        make_session_commit(session, signer=current_root, commit_id=new_id(), ts=now_ms, org=org), org=org
    )


def encode_session(session: Session | OwnedSession, *, include_private_key: bool = False) -> dict[str, Any]:
    """Return a session as GoatDB writes it in JSON: ``id``, ``publicKey``, ``owner``, ``expiration``.

    Args:
        session: The session.
        include_private_key: Add ``privateKey``, as ``currentSession`` of a ``settings.json`` has it.

    Raises:
        ConfigurationError: `session` has no private key to include.
    """
    if not isinstance(session, Session | OwnedSession):
        raise _not_a_session(session)
    if not include_private_key:
        return (session.session if isinstance(session, OwnedSession) else session).to_json()
    if not isinstance(session, OwnedSession):
        raise ConfigurationError(
            f"session {session.id!r} is public: it has no private key", hint="Give an OwnedSession."
        )
    return session.to_secret_json()


def decode_session(encoded: Mapping[str, Any] | str | bytes) -> Session | OwnedSession:
    """Decode a session from GoatDB's JSON: an `OwnedSession` if it has a private key, else a `Session`.

    Raises:
        DecodeError: The value is not JSON, or a member is missing or of the wrong type.
        KeyMismatchError: The private key does not belong to the public key.
    """
    if isinstance(encoded, str | bytes):
        try:
            encoded = json.loads(encoded)
        except (ValueError, RecursionError):
            raise DecodeError("a session must be a JSON object") from None
    if isinstance(encoded, Mapping) and "privateKey" in encoded:
        return OwnedSession.from_json(encoded)
    return Session.from_json(encoded)  # type: ignore[arg-type]


def _not_a_session(given: object) -> ConfigurationError:
    return ConfigurationError(
        f"a {type(given).__name__} is not a session",
        hint="`generate_session` makes a session, and `decode_session` reads one.",
    )


def _check_root(root: OwnedSession, what: str) -> None:
    if not isinstance(root, OwnedSession) or not root.session.is_root:
        raise ConfigurationError(
            f"{what} needs a root session with its private key", hint='`generate_session("root")` makes a root session.'
        )
