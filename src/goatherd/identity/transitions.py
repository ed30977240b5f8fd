"""Change an identity document: each step of a rotation, a restore or a revocation is a pure function.

`goatherd.rotation.machine` decides which step comes next. No function here writes to a store; each returns a new, fully
checked document: its generation is higher by one, its last update is `now_ms`, and its current root has
signed it (from activation on, the new root). A step that the recorded phase does not allow raises `IllegalStepError`.

The module also chooses which previous roots can leave the document, so that it stays small however old the cluster is.
Servers still trust a root that has left, because a later root has introduced it in ``/sys/sessions``.
`goatherd.rotation.machine` first checks that every server holds that introduction.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import Any, Final

from goatherd.errors import IllegalStepError
from goatherd.identity.document import (
    HistoryEntry,
    IdentityDocument,
    Phase,
    RotationRecord,
    encode_document,
    history_json,
    normalize_document,
    sign_document,
    source_digest,
)
from goatherd.identity.key_age import EXPIRED_HINT, last_valid_ms
from goatherd.identity.lineage import Lineage
from goatherd.identity.revocations import Freeze, Revocation, sign_proof
from goatherd.identity.root_signatures import Endorsement, endorse_root
from goatherd.identity.session import OwnedSession, Session
from goatherd.identity.strict_json import to_pretty_json

MAX_HISTORY = 16
MAX_HISTORY_BYTES: Final = 2048
KEPT_PROOFS: Final = 2
_MAX_REASON = 200
_RETIRED = "retired"
CANCELLED = "cancelled"
ROTATED = "rotated"
RESTORED = "restored"
SUCCESSES = frozenset({ROTATED, RESTORED})
"""Events of the history by which a rotation has come to its end."""


def create_document(current: OwnedSession, now_ms: int, *, roots: Iterable[Session] = ()) -> IdentityDocument:
    """Create the first document of a cluster, generation 1.

    Args:
        current: The root that signs; its owner is ``root``.
        now_ms: Milliseconds since 1970.
        roots: Other roots to trust.

    Raises:
        MalformedIdentityError: The sessions do not make a valid document.
    """
    others = tuple(root for root in roots if root.id != current.id)
    first = IdentityDocument(generation=1, current=current, roots=(current.session, *others), last_updated=now_ms)
    return normalize_document(sign_document(first, now_ms))


def prepare_rotation(
    document: IdentityDocument,
    successor: OwnedSession,
    *,
    now_ms: int,
    rotation_id: str,
    started_by: str,
    stable_version: str | None,
) -> IdentityDocument:
    """Start a rotation: record the next root, endorsed by the current root. The current root still signs.

    Args:
        document: A steady document.
        successor: A new root.
        now_ms: Milliseconds since 1970.
        rotation_id: A new id.
        started_by: The user and machine that start it; human-readable.
        stable_version: The store's version id of `document`, to which the rotation can be rolled back.

    Raises:
        IllegalStepError: A rotation is in progress, the successor was used before or is not a root, or the current root
            has expired and so cannot endorse the successor.
    """
    if document.rotation is not None:
        raise IllegalStepError(f"rotation {document.rotation.id} is {document.rotation.phase} already")
    if not successor.session.is_root:
        raise IllegalStepError("the successor's owner is not root")
    if document.find_root(successor.id) is not None or successor.id in document.revoked_ids:
        raise IllegalStepError(f"root {successor.id} was used before")
    if document.current.session.is_expired(now_ms):
        raise IllegalStepError(
            f"the current root {document.current.id} has expired and cannot endorse a successor",
            hint=EXPIRED_HINT,
        )
    record = RotationRecord(
        id=rotation_id,
        phase=Phase.PREPARED,
        from_id=document.current.id,
        to_id=successor.id,
        started_at=now_ms,
        started_by=started_by[:_MAX_REASON],
        phase_at=now_ms,
        stable_version=stable_version,
    )
    return _next_document(
        document,
        now_ms,
        next=successor,
        roots=(*document.roots, successor.session),
        rotation=record,
        endorsements=(*document.endorsements, endorse_root(document.current, successor.session, now_ms)),
    )


def prepare_restore(
    document: IdentityDocument,
    earlier: OwnedSession,
    *,
    now_ms: int,
    rotation_id: str,
    started_by: str,
    stable_version: str | None,
    has_left: bool = False,
) -> IdentityDocument:
    """Start the restore of a previous root: it becomes the next root, exactly as the document lists it.

    The current root endorses it, unless it has already done so or has expired: the servers trust the previous root
    already.

    Args:
        document: A steady document.
        earlier: The previous root, with its private key.
        now_ms: Milliseconds since 1970.
        rotation_id: A new id.
        started_by: The user and machine that start it; human-readable.
        stable_version: The store's version id of `document`, to roll back to.
        has_left: Whether `earlier` has left the document and is listed again. The caller has verified that it was
            listed (`goatherd.identity.succession.find_introduced`).

    Raises:
        IllegalStepError: A rotation is in progress, or `earlier` is not a root of the document with the same key and
            expiration, is the current root, is revoked, is recorded as destroyed, or has expired. Or it has left the
            document, and the current root, which must endorse it, has expired.
    """
    if document.rotation is not None:
        raise IllegalStepError(f"rotation {document.rotation.id} is {document.rotation.phase} already")
    listed, is_listed_again = document.find_root(earlier.id), False
    if listed is None and has_left and not document.current.session.is_expired(now_ms):
        is_listed_again = True
    elif listed != earlier.session or earlier.id == document.current.id:
        raise IllegalStepError(f"{earlier.id} is not a previous root of this identity")
    if earlier.id in document.revoked_ids | document.retired_ids or earlier.session.is_expired(now_ms):
        raise IllegalStepError(f"the previous root {earlier.id} is revoked, destroyed or has expired")
    record = RotationRecord(
        id=rotation_id,
        phase=Phase.PREPARED,
        from_id=document.current.id,
        to_id=earlier.id,
        started_at=now_ms,
        started_by=started_by[:_MAX_REASON],
        phase_at=now_ms,
        stable_version=stable_version,
        is_restore=True,
    )
    current, endorsements = document.current, document.endorsements
    is_endorsed = any(item.by == current.id and item.of == earlier.id for item in endorsements)
    if not is_endorsed and not current.session.is_expired(now_ms):
        endorsements = (*endorsements, endorse_root(current, earlier.session, now_ms))
    return _next_document(
        document,
        now_ms,
        next=earlier,
        rotation=record,
        endorsements=endorsements,
        roots=(*document.roots, earlier.session) if is_listed_again else document.roots,
        pruned=max(0, document.pruned - is_listed_again),
    )


def replace_expired(
    document: IdentityDocument, successor: OwnedSession, now_ms: int, *, rotation_id: str
) -> IdentityDocument:
    """Replace the current root, which has expired. The expired root stays trusted.

    What the expired root signed before its expiration stays valid, so it is not revoked. It endorses its successor
    with the last time at which its signature is valid (`goatherd.identity.key_age.last_valid_ms`). A rotation in
    progress ends: its next root is the successor where it can be (`find_successor`), else it stays trusted.

    Args:
        document: A document whose current root has expired.
        successor: A new root, or what `find_successor` returns.
        now_ms: Milliseconds since 1970.
        rotation_id: A new id.

    Raises:
        IllegalStepError: The current root has not expired, or the successor is not a root, was used before or has
            expired too.
    """
    expired = document.current
    if not expired.session.is_expired(now_ms):
        raise IllegalStepError(f"the current root {expired.id} has not expired", hint="`goatherd rotate` replaces it.")
    if not successor.session.is_root or successor.session.is_expired(now_ms):
        raise IllegalStepError("the successor is not a root, or has expired too")
    is_prepared = find_successor(document, now_ms) == successor
    if not is_prepared and (document.find_root(successor.id) is not None or successor.id in document.revoked_ids):
        raise IllegalStepError(f"root {successor.id} was used before")
    roots, endorsements = document.roots, document.endorsements
    if not is_prepared:
        roots = (*roots, successor.session)
        endorsements = (*endorsements, endorse_root(expired, successor.session, last_valid_ms(expired.session)))
    return _next_document(
        document,
        now_ms,
        current=successor,
        next=None,
        rotation=None,
        rotated_from=expired.id,
        rotated_at=now_ms,
        roots=roots,
        endorsements=endorsements,
        entry=HistoryEntry(
            at=now_ms,
            event=ROTATED,
            from_id=expired.id,
            to_id=successor.id,
            reason="the previous root had expired",
            rotation_id=rotation_id,
        ),
    )


def find_successor(document: IdentityDocument, now_ms: int) -> OwnedSession | None:
    """Return the next root of the rotation in progress if it can replace an expired root at once, else None.

    A previous root that is being restored cannot: other roots have introduced it.
    """
    record, following = document.rotation, document.next
    if record is None or following is None or record.is_restore or following.session.is_expired(now_ms):
        return None
    is_endorsed = any(one.by == record.from_id and one.of == following.id for one in document.endorsements)
    return following if is_endorsed else None


def find_replaced(document: IdentityDocument) -> Session | None:
    """Return the root that the current one replaced after its expiration; None if there was none."""
    replaced = document.find_root(document.rotated_from or "")
    if replaced is None or document.rotated_at is None or replaced.id == document.current.id:
        return None
    return replaced if replaced.is_expired(document.rotated_at) else None


def has_begun(document: IdentityDocument, rotation_id: str) -> bool:
    """Return whether a rotation with this id was started; it may have ended."""
    if document.rotation is not None:
        return document.rotation.id == rotation_id
    return any(entry.rotation_id == rotation_id for entry in document.history)


def with_phase(document: IdentityDocument, phase: Phase, now_ms: int) -> IdentityDocument:
    """Record the next phase of a rotation if nothing but the record changes.

    Raises:
        IllegalStepError: The change is neither from prepared to published nor from activated to verified.
    """
    record = _require_rotation(document, "enter the next phase")
    if (record.phase, phase) not in {(Phase.PREPARED, Phase.PUBLISHED), (Phase.ACTIVATED, Phase.VERIFIED)}:
        raise IllegalStepError(f"rotation {record.id} is {record.phase}; it cannot become {phase} next")
    return _next_document(document, now_ms, rotation=replace(record, phase=phase, phase_at=now_ms))


def activate_rotation(document: IdentityDocument, now_ms: int) -> IdentityDocument:
    """Make the next root the current root; the previous root's private key leaves the document.

    Raises:
        IllegalStepError: The rotation is not published, or the next session has expired.
    """
    record = _require_rotation(document, "activate", Phase.PUBLISHED)
    successor = document.next
    if successor is None or successor.session.is_expired(now_ms):
        raise IllegalStepError("the next session has expired; cancel the rotation")
    return _next_document(
        document,
        now_ms,
        current=successor,
        next=None,
        rotated_from=record.from_id,
        rotated_at=now_ms,
        rotation=replace(record, phase=Phase.ACTIVATED, phase_at=now_ms),
    )


def mark_verified(document: IdentityDocument, now_ms: int) -> IdentityDocument:
    """Record that every server signs with the new root and holds the cross-signature; see `with_phase`."""
    return with_phase(document, Phase.VERIFIED, now_ms)


def correct_times(document: IdentityDocument, now_ms: int) -> IdentityDocument:
    """Return the next generation of a document whose timestamps were corrected (`goatherd.identity.recorded_times`)."""
    return _next_document(document, now_ms)


def finalize_rotation(document: IdentityDocument, now_ms: int) -> IdentityDocument:
    """End a verified rotation, and add an entry to the history.

    Raises:
        IllegalStepError: The rotation is not verified.
    """
    record = _require_rotation(document, "finalize", Phase.VERIFIED)
    return _end_rotation(document, now_ms, RESTORED if record.is_restore else ROTATED, record, None)


def cancel_rotation(document: IdentityDocument, now_ms: int, *, reason: str) -> IdentityDocument:
    """Cancel a rotation before activation. The current root does not change.

    Servers know a next root that was published, so its public key stays among the roots. So does a previous root that
    was being restored, with the current root's endorsement.

    Raises:
        IllegalStepError: The rotation is already activated (roll it back instead), or there is none.
    """
    record = _require_rotation(document, "cancel", Phase.PREPARED, Phase.PUBLISHED)
    if record.phase is Phase.PUBLISHED or record.is_restore:
        return _end_rotation(document, now_ms, CANCELLED, record, reason, next=None)
    return _end_rotation(
        document,
        now_ms,
        CANCELLED,
        record,
        reason,
        next=None,
        roots=tuple(root for root in document.roots if root.id != record.to_id),
        endorsements=tuple(item for item in document.endorsements if item.of != record.to_id),
    )


def roll_back_rotation(
    document: IdentityDocument, stable: IdentityDocument, now_ms: int, *, reason: str
) -> IdentityDocument:
    """Make the previous root the current root again, after activation. The new root stays trusted.

    Args:
        document: An activated or verified document.
        stable: The document at the recorded stable version, which holds the previous root's private key.
        now_ms: Milliseconds since 1970.
        reason: The operator's reason, human-readable.

    Raises:
        IllegalStepError: The rotation is not activated, `stable` holds another root or key, or that root has expired or
            is revoked.
    """
    record = _require_rotation(document, "roll back", Phase.ACTIVATED, Phase.VERIFIED)
    earlier = stable.current
    if earlier.id != record.from_id or document.find_root(earlier.id) != earlier.session:
        raise IllegalStepError(f"the stable version does not hold the previous root {record.from_id}")
    if earlier.session.is_expired(now_ms) or earlier.id in document.revoked_ids:
        raise IllegalStepError(f"the previous root {earlier.id} has expired or is revoked")
    # SECURITY: the roots stay listed: without the new root's public key its commits could not be verified
    # (tests/unit/identity/test_transitions.py).
    return _end_rotation(
        document,
        now_ms,
        "rolled-back",
        record,
        reason,
        current=earlier,
        rotated_from=record.to_id,
        rotated_at=now_ms,
    )


def record_retirement(document: IdentityDocument, session_id: str, now_ms: int) -> IdentityDocument:
    """Record that no version in the store holds this root's private key. Its public half stays.

    During a rotation only a revoked root can be retired: a rollback may need any other root, but never a revoked one.

    Raises:
        IllegalStepError: `session_id` is not a root of the document, or the root may still sign or is retired already.
    """
    if document.rotation is not None and session_id not in document.revoked_ids:
        raise IllegalStepError(f"rotation {document.rotation.id} is {document.rotation.phase}; it may be rolled back")
    if document.find_root(session_id) is None or session_id == document.current.id:
        raise IllegalStepError(f"{session_id} is not a previous root")
    if session_id in document.retired_ids:
        raise IllegalStepError(f"root {session_id} is retired already")
    return _next_document(document, now_ms, entry=HistoryEntry(at=now_ms, event=_RETIRED, from_id=session_id))


def prune_roots(document: IdentityDocument, session_ids: Collection[str], now_ms: int) -> IdentityDocument:
    """Remove previous roots from the document, with their endorsements and retirement records.

    Servers still trust them by their introductions in ``/sys/sessions``. The caller has checked that every server holds
    these introductions.

    Raises:
        IllegalStepError: A rotation is in progress, or one of the roots is not in `prunable_roots`.
    """
    if document.rotation is not None:
        raise IllegalStepError(f"rotation {document.rotation.id} is {document.rotation.phase}; no root can leave now")
    staying = sorted(set(session_ids) - prunable_roots(document))
    if staying or not session_ids:
        raise IllegalStepError(f"{', '.join(staying) or 'no root'}: not a previous root that can leave the document")
    return _next_document(
        document,
        now_ms,
        roots=tuple(root for root in document.roots if root.id not in session_ids),
        endorsements=tuple(one for one in document.endorsements if not {one.by, one.of} & set(session_ids)),
        pruned=document.pruned + len(session_ids),
    )


def revoke_root(
    document: IdentityDocument,
    session_id: str,
    now_ms: int,
    *,
    reason: str,
    successor: OwnedSession | None = None,
    proving: OwnedSession | None = None,
) -> IdentityDocument:
    """Revoke a root: from now on, nothing that it signs is accepted, whatever timestamp the signature has.

    Revoking the current root makes `successor` the current root, without an endorsement by the stolen key. The stolen
    key signs only the proof (`goatherd.identity.revocations`), by which servers follow. A rotation in progress ends. A
    next root that has signed nothing is revoked too, unless it is the successor: its key was stored with the stolen
    key. A previous root that was to be restored is not revoked.

    Args:
        document: Any document.
        session_id: The root to revoke.
        now_ms: Milliseconds since 1970.
        reason: The operator's reason, human-readable.
        successor: The new current root: a new root, the next root, or a previous root. Required if the current root is
            revoked; otherwise not allowed.
        proving: The revoked root with its private key, if it is not the current root and the store still holds the key.
            Without it, servers that know no other root of the document need ``--accept-identity``.

    Raises:
        IllegalStepError: The root is unknown or revoked already, the current root has no successor given, another
            root has one, or the successor is no root, revoked, expired, or known with another key.
    """
    if document.find_root(session_id) is None or session_id in document.revoked_ids:
        raise IllegalStepError(f"{session_id} is not a root that can be revoked")
    is_current = session_id == document.current.id
    if is_current == (successor is None):
        raise IllegalStepError("a successor must be given if the current root is revoked, and only then")
    current = successor or document.current
    _check_successor(document, current, session_id, now_ms)
    prover = document.current if is_current else proving
    if prover is not None and prover.session != document.find_root(session_id):
        raise IllegalStepError("the proof is not signed by the revoked root")
    revoked = [
        Revocation(
            id=session_id,
            at=now_ms,
            reason=_shorten_reason(reason),
            successor=None if prover is None else current.id,
            proof=None if prover is None else sign_proof(prover, current.session, now_ms),
        )
    ]
    has_signed = document.rotation is not None and document.rotation.is_restore
    if document.next is not None and document.next.id not in (session_id, current.id) and not has_signed:
        revoked.append(Revocation(id=document.next.id, at=now_ms, reason=f"lay beside {session_id}"))
    roots = document.roots if document.find_root(current.id) else (*document.roots, current.session)
    revoked_ids = document.revoked_ids | {one.id for one in revoked}
    changes: dict[str, Any] = {
        "revoked": (*_without_old_proofs(document.revoked), *revoked),
        "rotation": None,
        "next": None,
        "roots": roots,
        "endorsements": _renew_endorsements(document, current, roots, revoked_ids, now_ms),
        "entry": HistoryEntry(
            at=now_ms,
            event="revoked",
            from_id=session_id,
            to_id=successor.id if successor else None,
            reason=_shorten_reason(reason),
        ),
    }
    if successor is not None:
        changes.update(current=successor, rotated_from=session_id, rotated_at=now_ms)
    return _next_document(document, now_ms, **changes)


def sign_again(
    document: IdentityDocument, now_ms: int, *, after: int, signed: IdentityDocument | None = None
) -> IdentityDocument:
    """Sign a document whose signature is invalid, or an older document that is to be used again.

    The history gets no entry, because the schedule and restores read it.

    Args:
        document: The document to sign.
        now_ms: Milliseconds since 1970.
        after: The generation after which the document comes.
        signed: The last signed document before it, which servers use. The predecessors that `document` itself names are
            as unsigned as the rest of it, and it may have the same generation as this one.
    """
    if signed is None:
        return _next_document(document, now_ms, generation=after + 1)
    lineage = (signed.lineage or Lineage()).followed_by(signed.generation, source_digest(signed))
    if signed.generation < document.generation <= after:
        lineage = lineage.followed_by(document.generation, source_digest(document))
    return _next_document(document, now_ms, generation=after + 1, lineage=lineage)


def record_frozen_commits(
    document: IdentityDocument, session_id: str, now_ms: int, *, commits: int, digest: str
) -> IdentityDocument:
    """Record the list of frozen commits of a revoked root. Servers accept no other commit of that root.

    Args:
        document: A document that lists the root as revoked.
        session_id: The revoked root.
        now_ms: Milliseconds since 1970.
        commits: The number of commits in the list.
        digest: SHA-256 of the list, hexadecimal.

    Raises:
        IllegalStepError: The root is not revoked.
    """
    if session_id not in document.revoked_ids:
        raise IllegalStepError(f"{session_id} is not revoked")
    freeze = Freeze(at=now_ms, commits=commits, digest=digest)
    revoked = tuple(replace(one, freeze=freeze) if one.id == session_id else one for one in document.revoked)
    return _next_document(document, now_ms, revoked=revoked)


def record_reissued_sessions(document: IdentityDocument, session_id: str, now_ms: int) -> IdentityDocument:
    """Record that all sessions that a revoked root had introduced were reissued: its introductions no longer count.

    Raises:
        IllegalStepError: The root is not revoked, or its list of frozen commits is not recorded yet.
    """
    found = next((one for one in document.revoked if one.id == session_id), None)
    if found is None or found.freeze is None:
        raise IllegalStepError(f"{session_id} is not revoked, or the list of its frozen commits is not complete")
    revoked = tuple(replace(one, settled_at=now_ms) if one.id == session_id else one for one in document.revoked)
    return _next_document(document, now_ms, revoked=revoked)


def _without_old_proofs(revoked: tuple[Revocation, ...]) -> tuple[Revocation, ...]:
    """Return the revocations, with reason and proof removed from the older ones, which few servers still need.

    An unfinished revocation is not shortened.
    """
    old = revoked[: max(0, len(revoked) - KEPT_PROOFS)]
    bare = (replace(one, reason="", successor=None, proof=None) if one.settled_at is not None else one for one in old)
    return (*bare, *revoked[len(old) :])


def _check_successor(document: IdentityDocument, heir: OwnedSession, session_id: str, now_ms: int) -> None:
    if heir.id == session_id or not heir.session.is_root or heir.id in document.revoked_ids:
        raise IllegalStepError("the successor is not a trusted root")
    if document.find_root(heir.id) not in (None, heir.session):
        raise IllegalStepError("the successor is known with another key")
    if heir.session.is_expired(now_ms):
        raise IllegalStepError("the successor has expired")


def _renew_endorsements(
    document: IdentityDocument,
    current: OwnedSession,
    roots: Iterable[Session],
    revoked_ids: frozenset[str],
    now_ms: int,
) -> tuple[Endorsement, ...]:
    """Let the current root endorse the other unrevoked roots, because only the revoked root may have endorsed some."""
    kept = [item for item in document.endorsements if item.by not in revoked_ids]
    known = {item.of for item in kept if item.by == current.id}
    others = [root for root in roots if root.id not in revoked_ids | known | {current.id}]
    return (*kept, *(endorse_root(current, root, now_ms) for root in others))


def _require_rotation(document: IdentityDocument, step: str, *phases: Phase) -> RotationRecord:
    record = document.rotation
    if record is None:
        raise IllegalStepError(f"cannot {step}: there is no rotation in progress")
    if phases and record.phase not in phases:
        raise IllegalStepError(f"cannot {step}: rotation {record.id} is {record.phase}")
    return record


def _end_rotation(
    document: IdentityDocument, now_ms: int, event: str, record: RotationRecord, reason: str | None, **changes: Any
) -> IdentityDocument:
    entry = HistoryEntry(
        at=now_ms,
        event=event,
        from_id=record.from_id,
        to_id=record.to_id,
        reason=None if reason is None else _shorten_reason(reason),
        rotation_id=record.id,
    )
    return _next_document(document, now_ms, entry=entry, rotation=None, **changes)


def _next_document(
    document: IdentityDocument, now_ms: int, *, entry: HistoryEntry | None = None, **changes: Any
) -> IdentityDocument:
    history = document.history if entry is None else (*document.history, entry)
    changes.setdefault("generation", document.generation + 1)
    lineage = (document.lineage or Lineage()).followed_by(document.generation, source_digest(document))
    changes.setdefault("lineage", lineage)
    changed = replace(document, last_updated=now_ms, **changes)
    roots = frozenset(root.id for root in changed.roots)
    return normalize_document(sign_document(replace(changed, history=_trim_history(history, roots)), now_ms))


def _shorten_reason(reason: str) -> str:
    return reason if len(reason) <= _MAX_REASON else f"{reason[: _MAX_REASON - 3]}..."


def _trim_history(history: tuple[HistoryEntry, ...], roots: frozenset[str]) -> tuple[HistoryEntry, ...]:
    """Return the latest entries within both limits, and the retirement records of the document's roots.

    A retirement record stays as long as its root; without it, `retire` would search for the key again. These records do
    not count against the limits, so that they cannot displace the entry of the last rotation.
    """
    kept: set[int] = set()
    size = 0
    for entry in reversed([one for one in history if one.event != _RETIRED]):
        size += len(to_pretty_json(history_json(entry)))
        if kept and (size > MAX_HISTORY_BYTES or len(kept) == MAX_HISTORY):
            break
        kept.add(id(entry))
    return tuple(
        entry for entry in history if id(entry) in kept or (entry.event == _RETIRED and entry.from_id in roots)
    )


KEPT_ROOTS: Final = 3
"""Maximum number of previous roots in the document that are not retired."""
MOST_BYTES: Final = 24_000
"""Maximum size of a document in bytes: below the smallest limit of any store (Azure Key Vault, 25 KB)."""
ROTATION_BYTES: Final = 3 * 1024
"""Bytes that a rotation in progress adds: the next root twice, an endorsement, the record."""
REVOCATION_BYTES: Final = 3 * 1024
"""Bytes that a revocation during a rotation adds: a root, two entries with reasons, a proof."""
ENDORSEMENT_BYTES: Final = 512
"""Bytes that a revocation adds for each root that the successor endorses."""


def prunable_roots(document: IdentityDocument) -> frozenset[str]:
    """Return the ids of the roots that can leave the document.

    All roots can leave but these: the current and the next root; the previous root, because a server that missed the
    last rotation follows from it, and because it is needed if the current root must be revoked; revoked roots, whose
    public keys verify their frozen commits; and successors that a revocation's proof names.
    """
    staying = {document.current.id, document.rotated_from, *document.revoked_ids}
    staying |= {revocation.successor for revocation in document.revoked if revocation.proof is not None}
    if document.next is not None:
        staying.add(document.next.id)
    return frozenset(root.id for root in document.roots) - staying


def roots_to_prune(document: IdentityDocument) -> tuple[str, ...]:
    """Return the ids of the roots that should leave a document without a rotation in progress, oldest first.

    Retired roots leave, and roots whose rotation was cancelled, because they have signed nothing. Of the other previous
    roots, which can still be restored, the latest `KEPT_ROOTS` stay.
    """
    earlier = [root.id for root in document.roots if root.id in prunable_roots(document)]
    done = document.retired_ids | _cancelled_roots(document)
    kept = [one for one in earlier if one not in done][-(KEPT_ROOTS - 1) :]
    return tuple(one for one in earlier if one not in kept)


def is_full(document: IdentityDocument) -> bool:
    """Return whether the document is too large to start a rotation and leave room for a revocation during it."""
    endorsed = len(document.roots) + 1 - len(document.revoked)
    worst = len(encode_document(document)) + ROTATION_BYTES + REVOCATION_BYTES + endorsed * ENDORSEMENT_BYTES
    return worst > MOST_BYTES


def _cancelled_roots(document: IdentityDocument) -> frozenset[str]:
    """Return the ids of roots whose rotation was cancelled and that took part in no other."""
    cancelled = {entry.to_id for entry in document.history if entry.event == "cancelled" and entry.to_id}
    # The restore of a previous root can be cancelled too; that root has endorsed its successor.
    used = {document.current.id, document.rotated_from, *(endorsement.by for endorsement in document.endorsements)}
    for entry in document.history:
        used |= {entry.from_id} if entry.event == "cancelled" else {entry.from_id, entry.to_id}
    return frozenset(cancelled - used)
