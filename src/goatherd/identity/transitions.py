"""How an identity document changes: each step of a rotation as a pure function from document to document.

What it is not: it decides nothing (`goatherd.rotation.machine` does) and writes nothing. Rules: each function returns a
new document whose generation is higher by exactly one, whose last update is `now_ms`, which its current root has signed
(the new root from its activation on), and which has been checked whole; a step that does not follow from the recorded
phase raises `IllegalStepError`.

Which earlier roots may leave the identity document, so that it stays small whatever the age of the cluster.

A root that has left is not forgotten: its introduction in ``/sys/sessions``, signed by a later root, goes on making its
signatures count. What it is: the choice, by the document alone. What it is not: it does not know what the nodes hold
(`goatherd.rotation.machine` asks for that first) and changes nothing (`transitions.prune`). Pure.
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
    """Make the first document of a cluster, generation 1.

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
    """Begin a rotation: the successor becomes the next session and an endorsed root; the current one still signs.

    Args:
        document: A steady document.
        successor: A fresh root.
        now_ms: Milliseconds since 1970.
        rotation_id: A fresh id.
        started_by: Who begins, for people.
        stable_version: The store's version id of `document`, to go back to.

    Raises:
        IllegalStepError: A rotation is under way, the successor is known already or is no root, or the current root has
            expired and so cannot endorse anybody.
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
    """Begin a rotation to an earlier root: it becomes the next session exactly as the document lists it.

    The current root, which may have expired, endorses it where it has not before and still can: the servers trust the
    earlier root already.

    Args:
        document: A steady document.
        earlier: An earlier root of the document, with its private key.
        now_ms: Milliseconds since 1970.
        rotation_id: A fresh id.
        started_by: Who begins, for people.
        stable_version: The store's version id of `document`, to go back to.
        has_left: `earlier` is no root of the document any more, and is listed again. That it was one is for the caller
            to have verified (`goatherd.identity.succession.find_introduced`).

    Raises:
        IllegalStepError: A rotation is under way, or `earlier` is not a root of the document with the same key and
            expiration, signs already, is revoked, is on record as destroyed, or has expired. Or it has left the
            document, and the current root, which has to endorse it, has expired.
    """
    if document.rotation is not None:
        raise IllegalStepError(f"rotation {document.rotation.id} is {document.rotation.phase} already")
    listed, is_listed_again = document.find_root(earlier.id), False
    if listed is None and has_left and not document.current.session.is_expired(now_ms):
        is_listed_again = True
    elif listed != earlier.session or earlier.id == document.current.id:
        raise IllegalStepError(f"{earlier.id} is not an earlier root of this identity")
    if earlier.id in document.revoked_ids | document.retired_ids or earlier.session.is_expired(now_ms):
        raise IllegalStepError(f"the earlier root {earlier.id} is revoked, destroyed or has expired")
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
    """Put another root in the place of the current one, which has expired; that one stays trusted.

    What an expired root has signed while it lived is as good as ever, so it is not revoked. It endorses its successor
    with the last time at which its signature is valid (`goatherd.identity.key_age.last_valid_ms`). A rotation in
    progress ends: its next root is the successor where it can be (`find_successor`), else it stays trusted.

    Args:
        document: A document whose current root has expired.
        successor: A fresh root, or what `find_successor` returns.
        now_ms: Milliseconds since 1970.
        rotation_id: A fresh id.

    Raises:
        IllegalStepError: The current root has not expired, or the successor is no root, was used before or has expired
            as well.
    """
    expired = document.current
    if not expired.session.is_expired(now_ms):
        raise IllegalStepError(f"the current root {expired.id} has not expired", hint="`goatherd rotate` replaces it.")
    if not successor.session.is_root or successor.session.is_expired(now_ms):
        raise IllegalStepError("the successor is no root, or has expired as well")
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
    """Return the next root of the rotation in progress if it can follow an expired root at once, else None.

    An earlier root that was to be restored cannot: it has introductions of its own, by other roots.
    """
    record, following = document.rotation, document.next
    if record is None or following is None or record.is_restore or following.session.is_expired(now_ms):
        return None
    is_endorsed = any(one.by == record.from_id and one.of == following.id for one in document.endorsements)
    return following if is_endorsed else None


def find_replaced(document: IdentityDocument) -> Session | None:
    """Return the root that had expired when the current one took its place; None where none had."""
    replaced = document.find_root(document.rotated_from or "")
    if replaced is None or document.rotated_at is None or replaced.id == document.current.id:
        return None
    return replaced if replaced.is_expired(document.rotated_at) else None


def has_begun(document: IdentityDocument, rotation_id: str) -> bool:
    """Whether the rotation that `prepare` or `restore` would begin with this id has been begun, be it over by now."""
    if document.rotation is not None:
        return document.rotation.id == rotation_id
    return any(entry.rotation_id == rotation_id for entry in document.history)


def with_phase(document: IdentityDocument, phase: Phase, now_ms: int) -> IdentityDocument:
    """Record that the rotation has come a phase further, where nothing but the record changes.

    Raises:
        IllegalStepError: Anything but prepared to published or activated to verified. (`activate` changes more.)
    """
    record = _require_rotation(document, "go on")
    if (record.phase, phase) not in {(Phase.PREPARED, Phase.PUBLISHED), (Phase.ACTIVATED, Phase.VERIFIED)}:
        raise IllegalStepError(f"rotation {record.id} is {record.phase}; it cannot become {phase} by itself")
    return _next_document(document, now_ms, rotation=replace(record, phase=phase, phase_at=now_ms))


def activate_rotation(document: IdentityDocument, now_ms: int) -> IdentityDocument:
    """Move signing to the next session; the earlier root's private key leaves the document.

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
    """Record that every node signs with the new root and took the cross-signed commit; `with_phase` says the rest."""
    return with_phase(document, Phase.VERIFIED, now_ms)


def correct_times(document: IdentityDocument, now_ms: int) -> IdentityDocument:
    """Write a document anew whose times in the future were limited (`goatherd.identity.recorded_times`)."""
    return _next_document(document, now_ms)


def finalize_rotation(document: IdentityDocument, now_ms: int) -> IdentityDocument:
    """End a verified rotation; who signed before, and until when, stays.

    Raises:
        IllegalStepError: The rotation is not verified.
    """
    record = _require_rotation(document, "finalize", Phase.VERIFIED)
    return _end_rotation(document, now_ms, RESTORED if record.is_restore else ROTATED, record, None)


def cancel_rotation(document: IdentityDocument, now_ms: int, *, reason: str) -> IdentityDocument:
    """Give up a rotation before activation; the current root goes on signing.

    A root that was published already is known to nodes, and stays among the roots as a public key. So does an earlier
    root that was to be restored, with the current root's endorsement of it.

    Raises:
        IllegalStepError: The rotation is activated already (roll it back), or there is none.
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
    """Let the earlier root sign again, after activation. The new root stays trusted: what it signed must verify.

    Args:
        document: An activated or verified document.
        stable: What the store holds at the recorded stable version; it has the earlier root's private key.
        now_ms: Milliseconds since 1970.
        reason: For people.

    Raises:
        IllegalStepError: The rotation is not activated, `stable` holds another root or key, or that root has expired or
            is revoked.
    """
    record = _require_rotation(document, "roll back", Phase.ACTIVATED, Phase.VERIFIED)
    earlier = stable.current
    if earlier.id != record.from_id or document.find_root(earlier.id) != earlier.session:
        raise IllegalStepError(f"the stable version does not hold the earlier root {record.from_id}")
    if earlier.session.is_expired(now_ms) or earlier.id in document.revoked_ids:
        raise IllegalStepError(f"the earlier root {earlier.id} has expired or is revoked")
    # SECURITY: roots are left as they are: without the new root's public key its commits could not be
    # verified any more (tests/unit/identity/test_transitions.py).
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
    """Record that no version in the store holds this root's private key any more; its public half stays.

    A rotation in progress may roll back to an earlier root, but never to a revoked one, so that can be retired then.

    Raises:
        IllegalStepError: It is no root of the document, may still sign, or is retired already.
    """
    if document.rotation is not None and session_id not in document.revoked_ids:
        raise IllegalStepError(f"rotation {document.rotation.id} is {document.rotation.phase}; it may go back")
    if document.find_root(session_id) is None or session_id == document.current.id:
        raise IllegalStepError(f"{session_id} is no earlier root")
    if session_id in document.retired_ids:
        raise IllegalStepError(f"root {session_id} is retired already")
    return _next_document(document, now_ms, entry=HistoryEntry(at=now_ms, event=_RETIRED, from_id=session_id))


def prune_roots(document: IdentityDocument, session_ids: Collection[str], now_ms: int) -> IdentityDocument:
    """Take earlier roots out of the document, with their endorsements and the records that they are retired.

    Nodes go on trusting them by their introductions in ``/sys/sessions``; that every node holds these is for the caller
    to have seen.

    Raises:
        IllegalStepError: A rotation is in progress, or one of them is not an earlier root that may leave (`may_leave`).
    """
    if document.rotation is not None:
        raise IllegalStepError(f"rotation {document.rotation.id} is {document.rotation.phase}; no root leaves now")
    staying = sorted(set(session_ids) - prunable_roots(document))
    if staying or not session_ids:
        raise IllegalStepError(f"{', '.join(staying) or 'no root'}: not an earlier root that may leave the document")
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
    """List a root as not to be believed any more, whatever it signs from now on and whenever it claims to have.

    Revoking the current root puts `successor` in its place, without the endorsement of the stolen key. The key is used
    once more all the same, for the proof that whoever writes this had it (`goatherd.identity.revocations`): by it nodes
    follow. A rotation under way ends. A next session that has signed nothing yet is revoked with it, unless it is the
    successor: it lay beside the stolen key. An earlier root that was to sign again stays, for what it has signed; who
    revokes it too has its sessions introduced again.

    Args:
        document: Any document.
        session_id: The root to revoke.
        now_ms: Milliseconds since 1970.
        reason: For people.
        successor: Who signs from now on: a fresh root, the next session, or an earlier root. Only, and always, when the
            current root is revoked.
        proving: The revoked root with its private key, where it is not the current one and can still be had. Without
            it, nodes that know no other root of the document must be told to accept it.

    Raises:
        IllegalStepError: The root is unknown or revoked already, the current root has no successor given, another
            root has one, or the successor is no root, revoked, expired, or known with another key.
    """
    if document.find_root(session_id) is None or session_id in document.revoked_ids:
        raise IllegalStepError(f"{session_id} is no root that could be revoked")
    is_current = session_id == document.current.id
    if is_current == (successor is None):
        raise IllegalStepError("a successor is given when, and only when, the current root is revoked")
    current = successor or document.current
    _check_successor(document, current, session_id, now_ms)
    prover = document.current if is_current else proving
    if prover is not None and prover.session != document.find_root(session_id):
        raise IllegalStepError("the proof is not made with the revoked root")
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
    """Sign a document whose signature does not hold, or an earlier one that shall be used again.

    The history does not tell of it: the schedule and a restore read it.

    Args:
        document: What shall be signed.
        now_ms: Milliseconds since 1970.
        after: The generation that it shall come after.
        signed: The last signed document before it, which servers use. What `document` itself names as its predecessors
            is as unsigned as the rest of it, and it may have the same generation as this one.
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
    """Record what the cluster held of a revoked root's commits: nothing else of it is taken in any more, by anybody.

    Args:
        document: A document that lists the root as revoked.
        session_id: The revoked root.
        now_ms: Milliseconds since 1970.
        commits: How many commits are in the list.
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
    """Record that the sessions that a revoked root had introduced were introduced again: its word counts no more.

    Raises:
        IllegalStepError: The root is not revoked, or what the cluster held of it is not on record yet.
    """
    found = next((one for one in document.revoked if one.id == session_id), None)
    if found is None or found.freeze is None:
        raise IllegalStepError(f"{session_id} is not revoked, or its freeze is not closed")
    revoked = tuple(replace(one, settled_at=now_ms) if one.id == session_id else one for one in document.revoked)
    return _next_document(document, now_ms, revoked=revoked)


def _without_old_proofs(revoked: tuple[Revocation, ...]) -> tuple[Revocation, ...]:
    """Return the revocations, the older ones with what nodes refuse by and what the frozen list is checked with only.

    A proof leads a server on that knows no other root than the revoked one. What is not finished stays as it is.
    """
    old = revoked[: max(0, len(revoked) - KEPT_PROOFS)]
    bare = (replace(one, reason="", successor=None, proof=None) if one.settled_at is not None else one for one in old)
    return (*bare, *revoked[len(old) :])


def _check_successor(document: IdentityDocument, heir: OwnedSession, session_id: str, now_ms: int) -> None:
    if heir.id == session_id or not heir.session.is_root or heir.id in document.revoked_ids:
        raise IllegalStepError("the successor is no root that is to be believed")
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
    """Let the root that signs now endorse the other good ones: some were endorsed by the revoked root alone."""
    kept = [item for item in document.endorsements if item.by not in revoked_ids]
    known = {item.of for item in kept if item.by == current.id}
    others = [root for root in roots if root.id not in revoked_ids | known | {current.id}]
    return (*kept, *(endorse_root(current, root, now_ms) for root in others))


def _require_rotation(document: IdentityDocument, step: str, *phases: Phase) -> RotationRecord:
    record = document.rotation
    if record is None:
        raise IllegalStepError(f"cannot {step}: there is no rotation under way")
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
    """Return the latest entries, within both bounds, and the records that roots of the document are retired.

    Such a record stays as long as its root: the key would be looked for again without it. Many of them must not crowd
    out what came of the last rotation.
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
"""So many earlier roots stay at most that are not retired, however short the time between two rotations is."""
MOST_BYTES: Final = 24_000
"""What a document may become at the worst: below the smallest limit of any store (Azure Key Vault, 25 KB)."""
ROTATION_BYTES: Final = 3 * 1024
"""What a rotation adds while it is in progress: the next root twice, an endorsement, the record."""
REVOCATION_BYTES: Final = 3 * 1024
"""What a revocation in the middle of it adds: a root, two entries with reasons, a proof."""
ENDORSEMENT_BYTES: Final = 512
"""What it adds for each root that its successor endorses anew."""


def prunable_roots(document: IdentityDocument) -> frozenset[str]:
    """Return the roots without which the document is still whole.

    Not the current root, and not the one before it: by that one a node that missed the last rotation follows, and what
    hangs from it stays trusted if the current root must be revoked. Not a revoked root: the frozen list of its commits
    is checked with its public key. Not the successor that a revocation's proof names.
    """
    staying = {document.current.id, document.rotated_from, *document.revoked_ids}
    staying |= {revocation.successor for revocation in document.revoked if revocation.proof is not None}
    if document.next is not None:
        staying.add(document.next.id)
    return frozenset(root.id for root in document.roots) - staying


def roots_to_prune(document: IdentityDocument) -> tuple[str, ...]:
    """Return the roots that should leave a steady document, oldest first.

    A root that is on record as retired, and one whose rotation was cancelled, which has signed nothing. Of the others,
    which can still be restored, the latest `KEPT_ROOTS` stay, the root before the current one among them.
    """
    earlier = [root.id for root in document.roots if root.id in prunable_roots(document)]
    done = document.retired_ids | _cancelled_roots(document)
    kept = [one for one in earlier if one not in done][-(KEPT_ROOTS - 1) :]
    return tuple(one for one in earlier if one not in kept)


def is_full(document: IdentityDocument) -> bool:
    """Whether the document is too large for another rotation to begin: with a revocation in the middle of it."""
    endorsed = len(document.roots) + 1 - len(document.revoked)
    worst = len(encode_document(document)) + ROTATION_BYTES + REVOCATION_BYTES + endorsed * ENDORSEMENT_BYTES
    return worst > MOST_BYTES


def _cancelled_roots(document: IdentityDocument) -> frozenset[str]:
    """Return the roots of which the history says that their rotation was cancelled, and nothing else."""
    cancelled = {entry.to_id for entry in document.history if entry.event == "cancelled" and entry.to_id}
    # A rotation to an earlier root can be cancelled too; that one has endorsed the root after it.
    used = {document.current.id, document.rotated_from, *(endorsement.by for endorsement in document.endorsements)}
    for entry in document.history:
        used |= {entry.from_id} if entry.event == "cancelled" else {entry.from_id, entry.to_id}
    return frozenset(cancelled - used)
