"""Decide whether a change of identity requires a restart, and classify edits that the server made to settings.json.

Pure: the module writes no file and stops no process. Rules: reports contain ids, times and counts, never key material.
A settings.json that cannot be read counts as "unknown", never as "empty".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from enum import StrEnum
from typing import Any, Final

import orjson

from goatherd.errors import IdentityError
from goatherd.identity.document import IdentityDocument
from goatherd.identity.key_age import EXPIRED_HINT, REPLACE_EXPIRED, SHORT_LIFE
from goatherd.identity.redaction import days_left
from goatherd.telemetry import describe_count
from goatherd.times import milliseconds

START_MARGIN: Final = timedelta(hours=1)
"""Time that a server may take from its start to reading its file; more than 15 days must be left even then."""
EARLY_WARNING: Final = timedelta(days=30)
_BACKOFF_CAP: Final = timedelta(minutes=1)


class OnChange(StrEnum):
    """What to do when the identity changes."""

    RESTART = "restart"
    SIGNAL = "signal"
    COMMAND = "command"
    IGNORE = "ignore"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileView:
    """The content of a settings.json without its keys.

    Attributes:
        current_id: Id of the current session, which signs; None if there is none.
        expiration: Expiration of the current session, in seconds since 1970.
        roots: Ids of the roots.
        exposed: Ids of roots whose private key the server would publish with this file.
        trusted: Ids of the sessions in ``trustedSessions``.
    """

    current_id: str | None
    expiration: float | None
    roots: frozenset[str]
    exposed: frozenset[str]
    trusted: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One edit that the server made to its file.

    Attributes:
        text: Human-readable description.
        is_serious: Whether the server's key is in danger, or the server uses another identity.
        is_common: Whether every new client causes such an edit.
    """

    text: str
    is_serious: bool = False
    is_common: bool = False


def reasons_to_restart(running: IdentityDocument, wanted: IdentityDocument) -> tuple[str, ...]:
    """Return why a server that runs with `running` must be restarted to use `wanted`; empty if it need not be.

    COMPAT: a running GoatDB server learns new roots from ``/sys/sessions`` and does not read its file again, so a
    changed list of roots alone is no reason.
    """
    reasons = []
    old, new = running.current.session, wanted.current.session
    if old.id != new.id:
        reasons.append(f"root {new.id} replaces {old.id} as the current root")
    elif old.public_key != new.public_key:
        reasons.append(f"root {new.id} has a different key")
    elif old.expiration_ms != new.expiration_ms:
        reasons.append(f"root {new.id} has a different expiration")
    reasons += [f"root {one} is revoked" for one in sorted(wanted.revoked_ids - running.revoked_ids)]
    reasons += [f"root {one} is no longer revoked" for one in sorted(running.revoked_ids - wanted.revoked_ids)]
    return tuple(reasons)


def with_previous_root(wanted: IdentityDocument, good: IdentityDocument) -> IdentityDocument | None:
    """Return `wanted` with the current root of `good`; None if this root must not sign any more.

    `good` is the identity with which the server was last ready. The list of roots stays that of `wanted`, because the
    rejected root may have signed on another server already.
    """
    earlier = good.current.session
    known = wanted.find_root(earlier.id)
    if known is None or known.public_key != earlier.public_key or earlier.id in wanted.revoked_ids:
        return None
    roots = tuple(earlier if root.id == earlier.id else root for root in wanted.roots)
    return replace(wanted, current=good.current, roots=roots, next=None)


def require_life(document: IdentityDocument, now_ms: int) -> None:
    """Check that the document's current root is valid long enough to start a server with it.

    COMPAT: if a root has 15 days or less left, GoatDB extends it at its start and then publishes the private key.

    Raises:
        IdentityError: 15 days or less are left; the hint says what to do.
    """
    left = days_left(document, now_ms + milliseconds(START_MARGIN))
    if document.current.session.is_expired(now_ms):
        raise IdentityError(
            f"the current root {document.current.id} has expired; a GoatDB server that starts with it exposes its"
            " private key, so it is not started",
            hint=f"{EXPIRED_HINT} Then start the agent again.",
        )
    if left <= SHORT_LIFE.days:
        raise IdentityError(
            f"the current root {document.current.id} has {max(0.0, left):.1f} days left; a GoatDB server that starts"
            f" with {SHORT_LIFE.days} or less exposes its private key, so it is not started",
            hint="Run `goatherd rotate` now. Do not stop the servers that still run: the rotation needs them. If none"
            " runs, let `goatherd serve` serve this data directory until the rotation is complete.",
        )


def short_life(document: IdentityDocument, now_ms: int) -> str | None:
    """Return a warning if a server can soon not be started with the current root any more, else None."""
    left = days_left(document, now_ms)
    if left > EARLY_WARNING.days:
        return None
    if left < 0:
        return (
            f"root {document.current.id} has expired: the server rejects new clients and cannot be started again;"
            f" replace it with `{REPLACE_EXPIRED}`"
        )
    if left <= SHORT_LIFE.days:
        return (
            f"root {document.current.id} has {left:.1f} days left: the server cannot be started again until you rotate"
        )
    return (
        f"root {document.current.id} has {left:.1f} days left; with {SHORT_LIFE.days} the server could not be started"
        " again: rotate"
    )


def restart_delay(crashes: int) -> timedelta:
    """Return the pause after the n-th crash in a row: one second for the first, doubled each time, at most a minute."""
    return min(_BACKOFF_CAP, timedelta(seconds=2.0 ** min(crashes - 1, 10)))


# --- the file as the server left it ---------------------------------------------------------------------------------


def read_file_view(raw: bytes) -> FileView | None:
    """Return the content of a settings.json without keys, or None if it cannot be read, such as a half-written file."""
    try:
        tree = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(tree, Mapping):
        return None
    current = tree.get("currentSession")
    owner = current if isinstance(current, Mapping) else {}
    roots = _sessions_of(tree.get("roots"))
    expiration = owner.get("expiration")
    return FileView(
        current_id=_short_id(owner),
        expiration=expiration if isinstance(expiration, int | float) else None,
        roots=frozenset(one for root in roots if (one := _short_id(root))),
        exposed=frozenset(one for root in roots if "privateKey" in root and (one := _short_id(root))),
        trusted=frozenset(one for session in _sessions_of(tree.get("trustedSessions")) if (one := _short_id(session))),
    )


def verify_safe(raw: bytes) -> None:
    """Check the settings.json of a GoatDB server for private keys that it would expose, before the file is written.

    SECURITY: no other check follows. The list of roots must hold the public half of the current session, with the same
    expiration, and the file must hold no other private key. Otherwise the server would expose its key
    (tests/unit/agent/test_restart_rules.py).

    Raises:
        IdentityError: One of these conditions is not met.
    """
    tree = orjson.loads(raw)
    current = tree["currentSession"]
    mine = [root for root in tree["roots"] if root["id"] == current["id"]]
    if [(root["publicKey"], root["expiration"]) for root in mine] != [(current["publicKey"], current["expiration"])]:
        raise IdentityError(
            f"the roots in settings.json must include the current root {current['id']} with the same key and expiration"
        )
    if any("privateKey" in session for session in [*tree["roots"], *tree["trustedSessions"]]):
        raise IdentityError("settings.json contains a private key outside of currentSession")


def find_differences(before: FileView, after: FileView, *, is_known: Callable[[str], bool]) -> tuple[Difference, ...]:
    """Return the edits that the server made to its file, the serious ones first.

    Args:
        before, after: The content of the file before and after the edits.
        is_known: Returns whether the identity contains the root with this id, or contained it earlier. If the server
            now signs with a root that is not known, the server has created this root.
    """
    found = []
    if after.current_id != before.current_id and after.current_id is not None and is_known(after.current_id):
        found.append(Difference(text=f"the server wrote root {after.current_id} back, and still signs with it"))
    elif after.current_id != before.current_id:
        text = f"the server now signs with {after.current_id or 'no root'} instead of {before.current_id}"
        found.append(Difference(text=f"{text}: it created a new root", is_serious=True))
    elif after.expiration != before.expiration:
        text = f"the server changed the expiration of root {after.current_id}"
        found.append(Difference(text=f"{text}, and may expose its private key", is_serious=True))
    found += [
        Difference(text=f"the server would publish the private key of root {one}", is_serious=True)
        for one in sorted(after.exposed - before.exposed)
    ]
    found += [Difference(text=f"the server added root {one}") for one in sorted(after.roots - before.roots)]
    found += [Difference(text=f"the server removed root {one}") for one in sorted(before.roots - after.roots)]
    learnt, dropped = len(after.trusted - before.trusted), len(before.trusted - after.trusted)
    if learnt:
        found.append(Difference(text=f"the server added {describe_count(learnt, 'session')}", is_common=True))
    if dropped:
        found.append(Difference(text=f"the server removed {describe_count(dropped, 'session')}"))
    return tuple(found)


def _sessions_of(value: Any) -> list[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []


def _short_id(session: Mapping[str, Any]) -> str | None:
    """Return a session's id, or None if it is not a valid id of at most 63 characters.

    SECURITY: a private key is longer than 63 characters, so it is never returned if it stands in place of the id
    (tests/unit/agent/test_restart_rules.py).
    """
    found = session.get("id")
    return found if isinstance(found, str) and 0 < len(found) < 64 and found.isprintable() else None
