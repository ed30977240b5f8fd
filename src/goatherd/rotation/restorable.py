"""Find out which previous root can sign again, and read its private key, before `Rotator.restore` writes.

This module writes nothing. A restored root keeps its key and its expiration, as the identity document lists them, or as
its introduction in ``/sys/sessions`` has them. If a root cannot be restored, the error states why.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from typing import Final

from goatherd.cluster.observer import Observer
from goatherd.errors import NotRestorableError
from goatherd.identity.document import IdentityDocument
from goatherd.identity.key_age import EXPIRED_HINT, SHORT_LIFE
from goatherd.identity.root_names import PREVIOUS_ROOT, resolve_root
from goatherd.identity.session import OwnedSession, Session
from goatherd.identity.succession import find_introduced
from goatherd.identity.transitions import CANCELLED, ROLLED_BACK, may_sign_again
from goatherd.key_inventory import Holding, ReadVersions, find_holdings, read_private_root
from goatherd.providers.base import StoreReader
from goatherd.rotation.cross_signing import find_introduction_ids
from goatherd.rotation.policy import Policy, compute_lifetime_floor
from goatherd.times import format_utc

START_MARGIN: Final = timedelta(hours=1)
"""An unmodified server that starts within this time after the restore must still find more than 15 days."""
_NEW_ROOT: Final = "`goatherd rotate` replaces the current root with a new one."


def choose_root(document: IdentityDocument, named: str | None, now_ms: int) -> str:
    """Return the root to restore: the one that the operator named, or else the root before the current one.

    The operator may name a root that the identity document no longer lists. This function accepts it; `find_left_root`
    then checks that it was a root of this identity.

    Args:
        document: An identity document without a rotation in progress.
        named: The root that the operator named (`resolve_root`); None for the root before the current one.
        now_ms: Milliseconds since 1970.

    Raises:
        NotRestorableError: No root was named, and there is no previous root, or it was rolled back; or the root cannot
            sign again: it is the current root or an anchor, was revoked, has expired, its key is recorded as destroyed,
            or the present anchor has not endorsed it.
        ConfigurationError: The name fits several roots.
    """
    chosen = _find_previous(document) if named in (None, PREVIOUS_ROOT) else resolve_root(document, named)
    if chosen == document.current.id:
        raise NotRestorableError(
            f"root {chosen} signs already: it is the current root", hint="There is nothing to restore."
        )
    revocation = next((one for one in document.revoked if one.id == chosen), None)
    if revocation is not None:
        raise NotRestorableError(f"root {chosen} was revoked at {format_utc(revocation.at)}: {revocation.reason}")
    if chosen in document.anchor_ids:
        raise NotRestorableError(f"{chosen} is an anchor, whose key is not in the store", hint=_NEW_ROOT)
    root = document.find_root(chosen)
    anchor = document.anchor
    if anchor is not None and not may_sign_again(document, chosen):
        raise NotRestorableError(
            f"the anchor {anchor} has not endorsed root {chosen}, or another anchor introduced it to the servers",
            hint=f"{_NEW_ROOT} A root from before the anchor can sign again after `goatherd rotate --remove-anchor`.",
        )
    if root is not None and root.is_expired(now_ms):
        raise NotRestorableError(f"root {chosen} has expired at {format_utc(root.expiration_ms)}", hint=_NEW_ROOT)
    destroyed = [one.at for one in document.history if one.event == "retired" and one.from_id == chosen]
    if destroyed:
        raise NotRestorableError(
            f"the private key of root {chosen} was destroyed; `retire` recorded it at {format_utc(destroyed[-1])}",
            hint=f"A key is kept for the grace period after a rotation and cannot be recovered later. {_NEW_ROOT}",
        )
    return chosen


def _list_restorable(document: IdentityDocument, stored: Collection[str], now_ms: int) -> str:
    """Return the ids of the listed roots that `choose_root` accepts and whose private keys are `stored`, or "none"."""
    found = []
    for root in document.roots:
        with suppress(NotRestorableError):
            found += [choose_root(document, root.id, now_ms)] if root.id in stored else []
    return ", ".join(found) or "none"


def check_remaining_life(root: Session, now_ms: int, policy: Policy, *, unmodified: tuple[str, ...]) -> None:
    """Check that the root to restore expires late enough to sign for some time and then be replaced.

    Args:
        root: The root to restore.
        now_ms: Milliseconds since 1970.
        policy: How long a rotation may take.
        unmodified: URLs of servers that run unmodified GoatDB.

    Raises:
        NotRestorableError: The root would expire too soon, or an unmodified server would expose its private key.
    """
    root_id = root.id
    if root.is_expired(now_ms):
        raise NotRestorableError(f"root {root_id} has expired at {format_utc(root.expiration_ms)}", hint=_NEW_ROOT)
    left = timedelta(milliseconds=root.expiration_ms - now_ms)
    shortest = compute_lifetime_floor(replace(policy, bare=frozenset())).shortest
    if left <= shortest:
        raise NotRestorableError(
            f"root {root_id} expires at {format_utc(root.expiration_ms)}: the time left is too little to restore it "
            f"and then replace it; more than {shortest} is needed",
            hint=_NEW_ROOT,
        )
    if unmodified and left <= SHORT_LIFE + START_MARGIN:
        # SECURITY: with 15 days or less left, such a server extends its root at its start and then exposes its
        # private key (docs/explanation/agent.md; tests/unit/rotation/test_restore.py).
        raise NotRestorableError(
            f"root {root_id} expires at {format_utc(root.expiration_ms)}: {SHORT_LIFE.days} days or less are left, and "
            f"{', '.join(unmodified)} runs unmodified GoatDB, which would expose its private key",
            hint=_NEW_ROOT,
        )


async def find_left_root(
    provider: StoreReader,
    secret_id: str,
    document: IdentityDocument,
    root_id: str,
    *,
    observer: Observer,
    now_ms: int,
) -> Session:
    """Return a root that the identity document no longer lists, if introductions on the servers prove that it was one.

    SECURITY: a stored version with its private key does not prove that it was a root of this identity, because a writer
    of the store could have put the key there. So a chain of introductions (commits by which one root introduces
    another) must lead from a root of the document to this root. The introductions are signed, so a copy from any
    listed server is enough (tests/unit/rotation/test_restore_left.py).

    Args:
        provider: The store.
        secret_id: Id of the store's secret that holds the identity.
        document: The current identity.
        root_id: Id of the root to find.
        observer: Makes the requests to the listed servers.
        now_ms: Milliseconds since 1970.

    Raises:
        NotRestorableError: No stored version holds a private key with this id, no server holds an introduction, or the
            current root has expired.
        ProviderError: The store failed.
    """
    holdings = await find_holdings(provider, secret_id, document)
    stored = {key for one in holdings for key in one.private_ids}
    rotations = dict.fromkeys(rotation for one in holdings for rotation in one.rotation_ids)
    listed = [root.id for root in document.roots]
    roots = dict.fromkeys([*listed, *(root for one in holdings for root in one.root_ids)])
    unread = _list_unread(holdings)
    restorable = _list_restorable(document, stored, now_ms)
    if root_id not in stored:
        raise NotRestorableError(
            f"root {root_id} is unknown: the identity document does not list it, and no stored version holds its "
            f"private key; listed roots that can be restored: {restorable}"
            + (f"; not read: {', '.join(unread)}" if unread else ""),
            hint="`goatherd status` shows which version holds whose key. A key is kept for the grace period after a "
            f"rotation and cannot be recovered later. {_NEW_ROOT}",
        )
    if document.current.session.is_expired(now_ms):
        raise NotRestorableError(
            f"the identity document no longer lists root {root_id}, and the current root, which would have to "
            f"introduce it again, has expired at {format_utc(document.current.session.expiration_ms)}",
            hint=f"Listed roots that can be restored: {restorable}. {EXPIRED_HINT}",
        )
    ids = find_introduction_ids(rotations, roots, listed)
    async for commits in observer.read_commits(ids, document.current):
        found = find_introduced(document, commits).get(root_id)
        if found is not None:
            return found
    raise NotRestorableError(
        f"the identity document no longer lists root {root_id}, and no listed server holds an introduction of it that "
        "leads back to a root of the document; only a stored version holds a private key with this id",
        hint="List the servers with --node, and start those that do not answer. Without the introduction the key may "
        "be forged.",
    )


def _list_unread(holdings: Iterable[Holding]) -> list[str]:
    return [f"{one.version.id} ({one.problem})" for one in holdings if one.problem is not None]


async def read_earlier_root(
    provider: StoreReader, secret_id: str, document: IdentityDocument, wanted: Session
) -> OwnedSession:
    """Return a previous root with its private key, from the newest stored version that holds the key.

    Args:
        provider: The store.
        secret_id: Id of the store's secret that holds the identity.
        document: The current identity.
        wanted: The root, exactly as the document lists it or `find_left_root` returns it.

    Raises:
        NotRestorableError: No readable version holds the root's private key.
        ProviderError: The store failed.
    """
    root_id, known = wanted.id, ReadVersions()
    found = await read_private_root(provider, secret_id, document, wanted, known=known)
    if found is not None:
        return found
    unread = _list_unread(await find_holdings(provider, secret_id, document, known=known))
    if unread:
        raise NotRestorableError(
            f"no version that can be read holds the private key of root {root_id}; not read: {', '.join(unread)}",
            hint="If one of these versions holds the key, enable that version with the platform's own tools, or see "
            "that the store of its region answers, then run `goatherd restore` again.",
        )
    raise NotRestorableError(
        f"no stored version holds the private key of root {root_id} any more",
        hint=f"A key is kept for the grace period after a rotation and cannot be recovered later. {_NEW_ROOT}",
    )


def _find_previous(document: IdentityDocument) -> str:
    if document.rotated_from is None:
        raise NotRestorableError(
            f"root {document.current.id} has signed from the beginning: there is no previous root",
            hint="`goatherd status` lists the roots.",
        )
    # Other events may have followed, such as a cancelled rotation. That root has not signed since.
    led_to_it = (one for one in reversed(document.history) if one.to_id == document.rotated_from)
    last = next((one for one in led_to_it if one.event != CANCELLED), None)
    if last is not None and last.event == ROLLED_BACK:
        reason = f" ({last.reason})" if last.reason else ""
        raise NotRestorableError(
            f"root {last.to_id} was rolled back at {format_utc(last.at)}{reason}, so it is not restored by default",
            hint=f"Name the root: `goatherd restore {last.to_id}`, or an earlier one that `goatherd status` lists.",
        )
    return document.rotated_from
