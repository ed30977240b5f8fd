"""Decide whether a change of identity requires a restart, and classify edits that the server made to settings.json.

Pure: the module writes no file and stops no process. Rules: reports contain ids, times and counts, never key material.
A file that cannot be read is "unknown", never "empty".
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
from goatherd.times import milliseconds

START_MARGIN: Final = timedelta(hours=1)
"""A server may take a while from being started to reading its file; it must still find more than 15 days then."""
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
    """What a settings.json holds, without its keys.

    Attributes:
        current_id: Who signs by it; None where there is no current session.
        expiration: Of the current session, in seconds since 1970.
        roots: Ids.
        exposed: Roots that it would publish with their private key.
        trusted: Ids of the sessions in ``trustedSessions``.
    """

    current_id: str | None
    expiration: float | None
    roots: frozenset[str]
    exposed: frozenset[str]
    trusted: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One thing that the server changed in its file.

    Attributes:
        text: What, for people.
        is_serious: Its key is in danger, or it is another server now.
        is_common: It happens with every new client.
    """

    text: str
    is_serious: bool = False
    is_common: bool = False


def reasons_to_restart(running: IdentityDocument, wanted: IdentityDocument) -> tuple[str, ...]:
    """Return why a server that was started with `running` has to be started again for `wanted`; nothing if it need not.

    COMPAT: a running GoatDB server learns a new root from ``/sys/sessions`` and never reads its file again, so another
    list of roots alone is no reason.
    """
    reasons = []
    old, new = running.current.session, wanted.current.session
    if old.id != new.id:
        reasons.append(f"root {new.id} signs in place of {old.id}")
    elif old.public_key != new.public_key:
        reasons.append(f"root {new.id} has another key")
    elif old.expiration_ms != new.expiration_ms:
        reasons.append(f"root {new.id} has another expiration")
    reasons += [f"root {one} is revoked" for one in sorted(wanted.revoked_ids - running.revoked_ids)]
    reasons += [f"root {one} is revoked no longer" for one in sorted(running.revoked_ids - wanted.revoked_ids)]
    return tuple(reasons)


def with_previous_root(wanted: IdentityDocument, good: IdentityDocument) -> IdentityDocument | None:
    """Return `wanted` with the root that signed before as the one that signs; None where that one must not sign.

    What the roots are stays as it is in `wanted`: the root that did not come up may have signed something elsewhere.
    """
    earlier = good.current.session
    known = wanted.find_root(earlier.id)
    if known is None or known.public_key != earlier.public_key or earlier.id in wanted.revoked_ids:
        return None
    roots = tuple(earlier if root.id == earlier.id else root for root in wanted.roots)
    return replace(wanted, current=good.current, roots=roots, next=None)


def require_life(document: IdentityDocument, now_ms: int) -> None:
    """Check that a server may be started with the document's current root.

    COMPAT: with 15 days or less left, GoatDB extends its root at its start and then publishes the private key.

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
            hint="Rotate now: `goatherd rotate`. That works while the servers that run go on running.",
        )


def short_life(document: IdentityDocument, now_ms: int) -> str | None:
    """Return the warning that the current root will soon be too old for a start, or None."""
    left = days_left(document, now_ms)
    if left > EARLY_WARNING.days:
        return None
    if left < 0:
        return (
            f"root {document.current.id} has expired: no new client gets in, and the server cannot be started again;"
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
    """Return how long to wait after crash number `crashes` in a row, from 1: a second, doubled, a minute at most."""
    return min(_BACKOFF_CAP, timedelta(seconds=2.0 ** min(crashes - 1, 10)))


# --- the file as the server left it ---------------------------------------------------------------------------------


def read_file_view(raw: bytes) -> FileView | None:
    """Return what a settings.json holds, or None where it cannot be read: half-written, for one."""
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
    """Check the bytes that are about to be handed to a GoatDB server.

    SECURITY: the last look before a key goes out. The public half of the current session stands among the roots with
    the same expiration, and no other private key is there; otherwise the server would expose its key
    (tests/unit/agent/test_restart_rules.py).

    Raises:
        IdentityError: One of these does not hold.
    """
    tree = orjson.loads(raw)
    current = tree["currentSession"]
    mine = [root for root in tree["roots"] if root["id"] == current["id"]]
    if [(root["publicKey"], root["expiration"]) for root in mine] != [(current["publicKey"], current["expiration"])]:
        raise IdentityError(f"root {current['id']} is not among the roots as it is, so the server would expose its key")
    if any("privateKey" in session for session in [*tree["roots"], *tree["trustedSessions"]]):
        raise IdentityError("a private key stands outside of currentSession")


def find_differences(before: FileView, after: FileView, *, is_known: Callable[[str], bool]) -> tuple[Difference, ...]:
    """Return what the server has changed in its file, the serious things first.

    Args:
        before, after: The file then and now.
        is_known: Whether a root is, or was, one of the identity; a revoked one is in no list of the file.
    """
    found = []
    if after.current_id != before.current_id and after.current_id is not None and is_known(after.current_id):
        found.append(Difference(text=f"it has written root {after.current_id} back, with which it still signs"))
    elif after.current_id != before.current_id:
        text = f"it signs with {after.current_id or 'nothing'} now, not with {before.current_id}"
        found.append(Difference(text=f"{text}: it has invented a root", is_serious=True))
    elif after.expiration != before.expiration:
        text = f"it has moved the expiration of root {after.current_id} by itself"
        found.append(Difference(text=f"{text}, and may expose its private key", is_serious=True))
    found += [
        Difference(text=f"it would publish the private key of root {one}", is_serious=True)
        for one in sorted(after.exposed - before.exposed)
    ]
    found += [Difference(text=f"it has learnt root {one}") for one in sorted(after.roots - before.roots)]
    found += [Difference(text=f"it has dropped root {one}") for one in sorted(before.roots - after.roots)]
    learnt, dropped = len(after.trusted - before.trusted), len(before.trusted - after.trusted)
    if learnt:
        found.append(Difference(text=f"it has learnt {learnt} sessions", is_common=True))
    if dropped:
        found.append(Difference(text=f"it has dropped {dropped} sessions"))
    return tuple(found)


def _sessions_of(value: Any) -> list[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []


def _short_id(session: Mapping[str, Any]) -> str | None:
    """Return the id where it is one. SECURITY: never a text as long as a private key (formats of ids: 63 at most)."""
    found = session.get("id")
    return found if isinstance(found, str) and 0 < len(found) < 64 and found.isprintable() else None
