"""Change an identity document, with one pure function for each step of a rotation, a restore or a revocation.

`goatherd.rotation.machine` decides which step comes next. No function here writes to a store. Each returns a new, fully
checked document: its generation is higher by one, its last update is `now_ms`, and its current root has signed it. A
step that the phase in the document does not allow raises `IllegalStepError`.

The module also chooses which previous roots can be removed, so that the document stays small however old the cluster
is. Servers still trust a removed root, because a later root has introduced it in ``/sys/sessions``;
`goatherd.rotation.machine` first checks that every server holds that introduction.

In an identity with an anchor, the anchor endorses the next root. The caller obtains the anchor's signatures first, and
passes them as an `AnchorWord`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import Any, Final

from goatherd.errors import IllegalStepError
from goatherd.identity.anchor import KEPT_CHANGES, AnchorChange, AnchorWord
from goatherd.identity.document import (
    HistoryEntry,
    IdentityDocument,
    Phase,
    RotationRecord,
    encode_document,
    normalize_document,
    sign_document,
    source_digest,
)
from goatherd.identity.key_age import EXPIRED_HINT, last_valid_ms
from goatherd.identity.lineage import Lineage
from goatherd.identity.revocations import BESIDE, Freeze, Revocation, sign_proof
from goatherd.identity.root_signatures import Endorsement, endorse_root
from goatherd.identity.session import OwnedSession, Session
from goatherd.identity.strict_json import to_pretty_json

MAX_HISTORY = 16
MAX_HISTORY_BYTES: Final = 2048
KEPT_PROOFS: Final = 2
_MAX_REASON = 200
_RETIRED = "retired"
CANCELLED = "cancelled"
REVOKED: Final = "revoked"
PROMOTED: Final = "promoted"
ROTATED = "rotated"
RESTORED = "restored"
ROLLED_BACK: Final = "rolled-back"
ANCHOR_DROPPED: Final = "anchor-dropped"
BEGINNINGS: Final = frozenset({ROTATED, REVOKED, ANCHOR_DROPPED})
"""Events of the history by which a new root, if they name one, begins to sign."""
SUCCESSES = frozenset({ROTATED, RESTORED})
"""Events of the history by which a rotation has come to its end."""
FAILURES: Final = frozenset({CANCELLED, ROLLED_BACK})
"""Events of the history by which a rotation has ended early."""
NO_WAY_BACK_HINT: Final = (
    "The new anchor has permitted a roll-back to the previous anchor only up to a certain generation of the identity,"
    " which other changes have reached. `goatherd rotate --resume` completes the rotation."
)


def create_document(
    current: OwnedSession, now_ms: int, *, roots: Iterable[Session] = (), word: AnchorWord | None = None
) -> IdentityDocument:
    """Create the first identity document of a cluster, with generation 1.

    Args:
        current: The current root, with its private key; its owner must be ``root``.
        now_ms: Milliseconds since 1970.
        roots: Other roots to trust.
        word: The anchor, and its endorsement of `current`, unless `current` is the anchor; None for an identity without
            an anchor.

    Raises:
        MalformedIdentityError: The sessions do not make a valid document.
    """
    others = tuple(root for root in roots if root.id != current.id)
    first = IdentityDocument(generation=1, current=current, roots=(current.session, *others), last_updated=now_ms)
    if word is not None and word.session is not None:
        listed = first.roots if word.session.id == current.id else (*first.roots, word.session)
        first = replace(first, roots=listed, anchor=word.anchor, endorsements=word.endorsements)
    return normalize_document(sign_document(first, now_ms))


def prepare_rotation(
    document: IdentityDocument,
    successor: OwnedSession,
    *,
    now_ms: int,
    rotation_id: str,
    started_by: str,
    stable_version: str | None,
    word: AnchorWord | None = None,
) -> IdentityDocument:
    """Start a rotation in an identity document: record the next root, endorsed by the current root, which still signs.

    In an identity with an anchor, the anchor endorses the next root instead.

    Args:
        document: An identity document without a rotation in progress.
        successor: The next root, with its private key.
        now_ms: Milliseconds since 1970.
        rotation_id: A new id for the rotation.
        started_by: The user and machine that start the rotation; human-readable.
        stable_version: The store's version id of `document`, to which the rotation can be rolled back.
        word: The anchor's signatures, if the identity has an anchor or gets one.

    Raises:
        IllegalStepError: A rotation is in progress, the successor was used before or is not a root session, or the
            current root has expired and so cannot endorse the successor; or the identity has an anchor, and its
            signatures are missing.
    """
    if document.rotation is not None:
        raise IllegalStepError(f"rotation {document.rotation.id} is already in progress ({document.rotation.phase})")
    if not successor.session.is_root:
        raise IllegalStepError("the successor's owner must be `root`")
    if document.find_root(successor.id) is not None or successor.id in document.revoked_ids:
        raise IllegalStepError(f"root {successor.id} was used before; the successor must be a new root")
    if document.current.session.is_expired(now_ms):
        raise IllegalStepError(
            f"the current root {document.current.id} has expired and cannot endorse a successor",
            hint=EXPIRED_HINT,
        )
    record = _begin_record(document, successor.id, now_ms, rotation_id, started_by, stable_version)
    changes: dict[str, Any] = {
        "next": successor,
        "roots": (*document.roots, successor.session),
        "rotation": record,
    }
    if word is not None or document.anchor is not None:
        changes.update(_with_word(document, record, successor.session, _require_word(word), now_ms))
    else:
        endorsed = endorse_root(document.current, successor.session, now_ms)
        changes["endorsements"] = (*document.endorsements, endorsed)
    return _next_document(document, now_ms, **changes)


def _begin_record(
    document: IdentityDocument, to_id: str, now_ms: int, rotation_id: str, started_by: str, stable_version: str | None
) -> RotationRecord:
    return RotationRecord(
        id=rotation_id,
        phase=Phase.PREPARED,
        from_id=document.current.id,
        to_id=to_id,
        started_at=now_ms,
        started_by=started_by[:_MAX_REASON],
        phase_at=now_ms,
        stable_version=stable_version,
    )


def _require_word(word: AnchorWord | None) -> AnchorWord:
    if word is None:
        raise IllegalStepError("the anchor has not endorsed the next root")
    return word


def _with_word(
    document: IdentityDocument, record: RotationRecord, successor: Session, word: AnchorWord, now_ms: int
) -> dict[str, Any]:
    """Return the members of a document that change when a rotation is prepared with an anchor's signatures."""
    before = document.anchor
    after = word.anchor
    pairs = {(one.by, one.of) for one in word.endorsements}
    kept = tuple(one for one in document.endorsements if (one.by, one.of) not in pairs)
    roots, endorsements = (*document.roots, successor), (*kept, *word.endorsements)
    if word.session is not None and word.session != successor and document.find_root(word.session.id) is None:
        roots = (*roots, word.session)
    current = document.current
    if (
        before is None
        and word.session is not None
        and (current.id, word.session.id) not in {(one.by, one.of) for one in endorsements}
    ):
        # Servers without an anchor follow the current root's word.
        endorsements = (*endorsements, endorse_root(current, word.session, now_ms))
    if after != before:
        record = replace(record, anchor=word.anchor, removes_anchor=word.anchor is None)
    return {
        "roots": roots,
        "rotation": record,
        "endorsements": endorsements,
        "anchor_changes": (*document.anchor_changes, *word.changes),
    }


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
    """Start the restore of a previous root in an identity document: this root becomes the next root.

    The current root endorses the previous root, unless the current root has already done so or has expired. In an
    identity with an anchor, the anchor's earlier endorsement of the previous root counts instead. The servers trust the
    previous root already, so the rotation need not wait until they learn of it.

    Args:
        document: An identity document without a rotation in progress.
        earlier: The previous root, with its private key.
        now_ms: Milliseconds since 1970.
        rotation_id: A new id for the rotation.
        started_by: The user and machine that start the restore; human-readable.
        stable_version: The store's version id of `document`, to which the rotation can be rolled back.
        has_left: Whether `earlier` is no longer in the document, so that this step lists it again. The caller has
            verified that it was listed before (`goatherd.identity.succession.find_introduced`).

    Raises:
        IllegalStepError: A rotation is in progress, or `earlier` is not a root of the document with the same key and
            expiration, is the current root, is revoked, is recorded as retired (its key was destroyed), or has expired;
            or it was removed from the document, and the current root, which must endorse it, has expired; or the anchor
            does not let it sign again (`may_sign_again`).
    """
    if document.rotation is not None:
        raise IllegalStepError(f"rotation {document.rotation.id} is already in progress ({document.rotation.phase})")
    listed, is_listed_again = document.find_root(earlier.id), False
    if listed is None and has_left and not document.current.session.is_expired(now_ms):
        is_listed_again = True
    elif listed != earlier.session or earlier.id == document.current.id:
        raise IllegalStepError(f"{earlier.id} is not a previous root of this identity")
    if earlier.id in document.revoked_ids | document.retired_ids or earlier.session.is_expired(now_ms):
        raise IllegalStepError(f"the previous root {earlier.id} is revoked or has expired, or its key was destroyed")
    record = _begin_record(document, earlier.id, now_ms, rotation_id, started_by, stable_version)
    current, endorsements = document.current, document.endorsements
    if not may_sign_again(document, earlier.id):
        raise IllegalStepError(f"the anchor has not endorsed and introduced root {earlier.id}")
    is_endorsed = any(item.by == current.id and item.of == earlier.id for item in endorsements)
    if document.anchor is None and not is_endorsed and not current.session.is_expired(now_ms):
        endorsements = (*endorsements, endorse_root(current, earlier.session, now_ms))
    return _next_document(
        document,
        now_ms,
        next=earlier,
        rotation=replace(record, is_restore=True),
        endorsements=endorsements,
        roots=(*document.roots, earlier.session) if is_listed_again else document.roots,
        pruned=max(0, document.pruned - is_listed_again),
    )


def may_sign_again(document: IdentityDocument, root_id: str) -> bool:
    """Return whether the identity's anchor allows that a previous root signs again; True if there is no anchor.

    The anchor must have endorsed the root as a working root, and servers must know the root by an introduction of this
    anchor. The introductions of one root by two anchors have the same commit id, so a server that holds the
    introduction by a former anchor does not store one by the present anchor.
    """
    anchor = document.anchor
    if anchor is None:
        return True
    introduced_by = (one.by for one in document.endorsements if one.of == root_id and one.commit is not None)
    return next(introduced_by, None) == anchor and document.is_endorsed_to_sign(root_id, anchor)


def replace_expired(
    document: IdentityDocument,
    successor: OwnedSession,
    now_ms: int,
    *,
    rotation_id: str,
    word: AnchorWord | None = None,
) -> IdentityDocument:
    """Replace the expired current root in an identity document by a successor. The expired root stays trusted.

    What the expired root signed before its expiration stays valid, so it is not revoked. It endorses its successor with
    the last time at which its signature is valid (`goatherd.identity.key_age.last_valid_ms`). A rotation in progress
    ends: its next root becomes the successor if possible (`find_successor`), and otherwise stays trusted.

    Args:
        document: A document whose current root has expired.
        successor: A new root, or the one that `find_successor` returns.
        now_ms: Milliseconds since 1970.
        rotation_id: A new id, recorded in the history.
        word: The anchor's endorsement of a new root, if the identity has an anchor; the expired root then endorses
            nothing.

    Raises:
        IllegalStepError: The current root has not expired, or the successor is not a root session, was used before or
            has expired too; or the identity has an anchor, and its endorsement is missing.
    """
    expired = document.current
    if not expired.session.is_expired(now_ms):
        raise IllegalStepError(
            f"the current root {expired.id} has not expired", hint="`goatherd rotate` replaces the current root."
        )
    if not successor.session.is_root or successor.session.is_expired(now_ms):
        raise IllegalStepError("the successor must be a root that has not expired")
    is_prepared = find_successor(document, now_ms) == successor
    if not is_prepared and (document.find_root(successor.id) is not None or successor.id in document.revoked_ids):
        raise IllegalStepError(f"root {successor.id} was used before; the successor must be a new root")
    roots, endorsements = document.roots, document.endorsements
    if not is_prepared:
        roots = (*roots, successor.session)
        if document.anchor is None:
            endorsements = (*endorsements, endorse_root(expired, successor.session, last_valid_ms(expired.session)))
        else:
            endorsements = (*endorsements, *_require_word(word).endorsements)
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
        anchor_changes=_changes_after_end(document),
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
    """Return the next root of the rotation in progress if it can replace an expired root at once; None otherwise.

    A previous root that is being restored cannot, because other roots have introduced it.
    """
    record, following = document.rotation, document.next
    if record is None or following is None or record.is_restore or following.session.is_expired(now_ms):
        return None
    if document.next_anchor != document.anchor:
        return None  # that root is for another anchor, which its rotation would have made known first
    is_endorsed = any(one.by == record.from_id and one.of == following.id for one in document.endorsements)
    if document.anchor is not None:
        is_endorsed = document.is_endorsed_to_sign(following.id, document.anchor)
    return following if is_endorsed else None


def find_replaced(document: IdentityDocument) -> Session | None:
    """Return the root that the current root replaced because it had expired; None if there was no such replacement."""
    replaced = document.find_root(document.rotated_from or "")
    if replaced is None or document.rotated_at is None or replaced.id == document.current.id:
        return None
    return replaced if replaced.is_expired(document.rotated_at) else None


def has_begun(document: IdentityDocument, rotation_id: str) -> bool:
    """Return whether an identity document records a rotation with this id, in progress or ended."""
    if document.rotation is not None:
        return document.rotation.id == rotation_id
    return any(entry.rotation_id == rotation_id for entry in document.history)


def with_phase(document: IdentityDocument, phase: Phase, now_ms: int) -> IdentityDocument:
    """Record that a rotation has reached its next phase, when nothing else in the identity document changes.

    Raises:
        IllegalStepError: The change is neither from prepared to published nor from activated to verified.
    """
    record = _require_rotation(document, "enter the next phase")
    if (record.phase, phase) not in {(Phase.PREPARED, Phase.PUBLISHED), (Phase.ACTIVATED, Phase.VERIFIED)}:
        raise IllegalStepError(f"rotation {record.id} cannot go from phase {record.phase} to phase {phase}")
    return _next_document(document, now_ms, rotation=replace(record, phase=phase, phase_at=now_ms))


def activate_rotation(document: IdentityDocument, now_ms: int) -> IdentityDocument:
    """Make the next root the current root of an identity document, and remove the previous root's private key from it.

    Raises:
        IllegalStepError: The rotation is not in phase published, or the next root has expired.
    """
    record = _require_rotation(document, "activate", Phase.PUBLISHED)
    successor = document.next
    if successor is None or successor.session.is_expired(now_ms):
        raise IllegalStepError("the root prepared by the rotation has expired; cancel the rotation")
    return _next_document(
        document,
        now_ms,
        current=successor,
        next=None,
        anchor=document.next_anchor,
        rotated_from=record.from_id,
        rotated_at=now_ms,
        rotation=replace(record, phase=Phase.ACTIVATED, phase_at=now_ms),
    )


def extend_current_root(document: IdentityDocument, expiration_ms: int, now_ms: int) -> IdentityDocument:
    """Record in an identity document the later expiration that an unmodified GoatDB server has given its current root.

    COMPAT: GoatDB extends a root that expires soon in its own ``settings.json`` only, whatever the store holds.

    Args:
        document: An identity document without an anchor, and without a rotation in progress.
        expiration_ms: The later expiration, in milliseconds since 1970.
        now_ms: Milliseconds since 1970.

    Raises:
        IllegalStepError: A rotation is in progress, or a signature over the root by another root or an anchor states
            the present expiration.
    """
    if document.rotation is not None:
        raise IllegalStepError(f"rotation {document.rotation.id} is in progress")
    if document.anchor is not None or any(one.of == document.current.id for one in document.endorsements):
        raise IllegalStepError(f"another root has signed the present expiration of root {document.current.id}")
    extended = replace(document.current.session, expiration_ms=expiration_ms)
    roots = tuple(extended if root.id == extended.id else root for root in document.roots)
    return _next_document(document, now_ms, current=replace(document.current, session=extended), roots=roots)


def correct_times(document: IdentityDocument, now_ms: int) -> IdentityDocument:
    """Return the next generation of an identity document whose timestamps were corrected.

    The caller has corrected the timestamps of `document` with `goatherd.identity.recorded_times`.
    """
    return _next_document(document, now_ms)


def finalize_rotation(document: IdentityDocument, now_ms: int) -> IdentityDocument:
    """End a verified rotation in an identity document, and add an entry to the document's history.

    Raises:
        IllegalStepError: The rotation is not in phase verified.
    """
    record = _require_rotation(document, "finalize", Phase.VERIFIED)
    event = RESTORED if record.is_restore else ROTATED
    return _end_rotation(document, now_ms, event, record, None, anchor_changes=_changes_after_end(document))


def cancel_rotation(document: IdentityDocument, now_ms: int, *, reason: str) -> IdentityDocument:
    """Cancel a rotation before its activation. The current root does not change.

    Servers know a next root that was published, so its public key stays among the roots. A previous root that was being
    restored stays too, with the current root's endorsement of it.

    Raises:
        IllegalStepError: The rotation is already activated (roll it back instead), or no rotation is in progress.
    """
    record = _require_rotation(document, "cancel", Phase.PREPARED, Phase.PUBLISHED)
    changes = _changes_after_end(document)
    if record.phase is Phase.PUBLISHED or record.is_restore:
        return _end_rotation(document, now_ms, CANCELLED, record, reason, next=None, anchor_changes=changes)
    return _end_rotation(
        document,
        now_ms,
        CANCELLED,
        record,
        reason,
        next=None,
        anchor_changes=changes,
        roots=tuple(root for root in document.roots if root.id != record.to_id),
        # A next root that is the next anchor has endorsed others.
        endorsements=tuple(item for item in document.endorsements if record.to_id not in (item.by, item.of)),
    )


def _changes_after_end(document: IdentityDocument) -> tuple[AnchorChange, ...]:
    """Return the changes of the anchor that stay when the rotation in progress ends and the present anchor stays."""
    after = document.next_anchor
    expired = () if after is None else _find_roll_back_permissions(document, after)
    if document.phase in (Phase.PREPARED, Phase.PUBLISHED):
        # If an earlier rotation to the same anchor was rolled back, its permission stays, for servers that have missed
        # that roll-back.
        expired = expired[-1:]
    return _lasting_changes(document, document.anchor, expired)


def _lasting_changes(
    document: IdentityDocument, anchor: str | None, expired: Collection[AnchorChange] = ()
) -> tuple[AnchorChange, ...]:
    """Return the changes that stay in the document when a rotation has ended with this anchor.

    These are the latest `KEPT_CHANGES` permanent changes that `anchor` itself has not signed, and, for servers that
    have missed a roll-back, the permissions to roll back that are not in `expired`.
    """
    # SECURITY: if `anchor` has signed a permanent change, the rotation to the next anchor was cancelled or rolled back.
    # Drop the change, or that next anchor would keep its rights (tests/unit/identity/test_anchor.py).
    lasting = [one for one in document.anchor_changes if one.until is None and one.by != anchor][-KEPT_CHANGES:]
    return tuple(
        one for one in document.anchor_changes if one in lasting or (one.until is not None and one not in expired)
    )


def roll_back_rotation(
    document: IdentityDocument, stable: IdentityDocument, now_ms: int, *, reason: str
) -> IdentityDocument:
    """Roll back an activated rotation: the previous root becomes the current root again. The new root stays trusted.

    Args:
        document: An identity document with a rotation in phase activated or verified.
        stable: The identity document from before the rotation, at the recorded stable version, which holds the previous
            root's private key.
        now_ms: Milliseconds since 1970.
        reason: The operator's reason, human-readable.

    Raises:
        IllegalStepError: The rotation is not activated, `stable` holds another root or key, or that root has expired or
            is revoked; or servers would not follow a roll-back to the previous anchor (`can_go_back`).
    """
    record = _require_rotation(document, "roll back", Phase.ACTIVATED, Phase.VERIFIED)
    if not can_go_back(document):
        raise IllegalStepError(
            f"rotation {record.id} can only be completed, because servers would not follow a roll-back",
            hint=NO_WAY_BACK_HINT,
        )
    earlier = stable.current
    if earlier.id != record.from_id or document.find_root(earlier.id) != earlier.session:
        raise IllegalStepError(f"the stable version does not hold the previous root {record.from_id}")
    if earlier.session.is_expired(now_ms) or earlier.id in document.revoked_ids:
        raise IllegalStepError(f"the previous root {earlier.id} has expired or is revoked")
    # SECURITY: a roll-back keeps the new root in the document: without its public key, the commits that it has signed
    # could not be verified (tests/unit/identity/test_transitions.py).
    return _end_rotation(
        document,
        now_ms,
        ROLLED_BACK,
        record,
        reason,
        current=earlier,
        # A server that has used the next anchor follows the one before it, because the next one has signed that.
        anchor=stable.anchor,
        anchor_changes=_lasting_changes(document, stable.anchor),
        rotated_from=record.to_id,
        rotated_at=now_ms,
    )


def can_go_back(document: IdentityDocument) -> bool:
    """Return whether servers would follow a roll-back that is the next change of an identity document.

    A server that knows the new anchor of a rotation follows a roll-back only if that anchor has signed a permission to
    roll back. The permission counts up to a generation (`AnchorChange.until`), which other writes raise as well: the
    promotion of a store, or the end of an earlier revocation. True if no rotation is in progress, or if the rotation
    sets no anchor.
    """
    record = document.rotation
    if record is None or record.anchor is None:
        return True
    return any(one.counts_at(document.generation + 1) for one in _find_roll_back_permissions(document, record.anchor))


def _find_roll_back_permissions(document: IdentityDocument, anchor_id: str) -> tuple[AnchorChange, ...]:
    """Return an anchor's permissions to roll back to the anchor, or to the root without an anchor, before it."""
    return tuple(one for one in document.anchor_changes if one.by == anchor_id and one.until is not None)


def record_retirement(document: IdentityDocument, session_id: str, now_ms: int) -> IdentityDocument:
    """Record in an identity document that no version in the store holds a root's private key any more.

    The root's public half stays in the document.

    During a rotation only a revoked root can be retired: a rollback may need any other root, but never a revoked one.

    Raises:
        IllegalStepError: `session_id` is not a root of the document, or the root may still sign or is recorded as
            retired already.
    """
    if document.rotation is not None and session_id not in document.revoked_ids:
        raise IllegalStepError(
            f"rotation {document.rotation.id} is in progress; a rollback may need the private key of root {session_id}"
        )
    if document.find_root(session_id) is None or session_id == document.current.id:
        raise IllegalStepError(f"{session_id} is not a previous root of this identity")
    if session_id in document.retired_ids:
        raise IllegalStepError(f"root {session_id} is retired already")
    return _next_document(document, now_ms, entry=HistoryEntry(at=now_ms, event=_RETIRED, from_id=session_id))


def prune_roots(document: IdentityDocument, session_ids: Collection[str], now_ms: int) -> IdentityDocument:
    """Remove previous roots from an identity document, with their endorsements and retirement records.

    Servers still trust these roots because of their introductions in ``/sys/sessions``. The caller has checked that
    every server holds these introductions.

    Raises:
        IllegalStepError: A rotation is in progress, or one of the roots is not in `prunable_roots`.
    """
    if document.rotation is not None:
        raise IllegalStepError(
            f"rotation {document.rotation.id} is in progress, in phase {document.rotation.phase}; roots"
            " can be removed from the identity only after it has ended"
        )
    staying = sorted(set(session_ids) - prunable_roots(document))
    if staying or not session_ids:
        raise IllegalStepError(
            f"{', '.join(staying) or 'no root'}: not a previous root that can be removed from the identity"
        )
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
    word: AnchorWord | None = None,
) -> IdentityDocument:
    """Revoke a root in an identity document: nothing that it signs from now on is accepted, whatever its timestamp.

    Revoking the current root makes `successor` the current root, without an endorsement by the stolen key. The stolen
    key signs only the proof (`goatherd.identity.revocations`), by which servers accept the successor. A rotation in
    progress ends. A next root that has signed nothing is revoked too, unless it is the successor: its key was stored
    with the stolen key. A previous root that was to be restored is not revoked.

    Args:
        document: An identity document, in any phase.
        session_id: Id of the root to revoke.
        now_ms: Milliseconds since 1970.
        reason: The operator's reason, human-readable.
        successor: The new current root: a new root, the next root, or a previous root. Required if the current root is
            revoked; otherwise not allowed.
        proving: The revoked root with its private key, if it is not the current root and the store still holds the key.
            Without it, servers that know no other root of the document need ``--accept-identity``.
        word: The anchor's signatures, if the identity has an anchor; the stolen key then signs nothing. The anchor
            endorses a new successor; otherwise it signs each revocation (`revocations_to_sign`).

    Raises:
        IllegalStepError: The root is unknown or revoked already, the current root has no successor given, another root
            has one, or the successor is not a root session, is revoked, has expired, or is known with another key. Or
            the root is the anchor, the anchor's signatures are missing, or the anchor has not endorsed a listed
            successor.
    """
    if document.find_root(session_id) is None or session_id in document.revoked_ids:
        raise IllegalStepError(f"{session_id} is not a root of this identity, or is revoked already")
    if document.anchor is not None:
        if session_id == document.anchor:
            raise IllegalStepError(
                f"{session_id} is the anchor, which must be replaced before it can be revoked",
                hint="Replace the anchor with `goatherd rotate --anchor URI` (in direct mode with --direct), then"
                " revoke the previous one. If the anchor's key is lost, remove the anchor with `goatherd rotate"
                " --drop-lost-anchor`, and start every server once with --accept-identity.",
            )
        if document.next_anchor is not None and session_id == document.next_anchor:
            raise IllegalStepError(
                f"{session_id} is the next anchor of the rotation in progress, and cannot be revoked before its end",
                hint="Cancel the rotation with `goatherd rotate --cancel`, or roll it back with `goatherd rotate"
                " --rollback`. To replace the key that you do not trust, rotate to another anchor afterwards.",
            )
        word = _require_word(word)
    is_current = session_id == document.current.id
    if is_current == (successor is None):
        raise IllegalStepError("a successor must be given if the current root is revoked, and only then")
    current = successor or document.current
    _check_successor(document, current, session_id, now_ms)
    prover = document.current if is_current else proving
    if document.anchor is not None:
        prover = None
    if prover is not None and prover.session != document.find_root(session_id):
        raise IllegalStepError(f"the proof must be signed by the revoked root {session_id}")
    revoked = [
        Revocation(
            id=session_id,
            at=now_ms,
            reason=_shorten_reason(reason),
            successor=None if prover is None else current.id,
            proof=None if prover is None else sign_proof(prover, current.session, now_ms),
            anchor_proof=None if word is None else word.proofs.get(session_id),
        )
    ]
    has_signed = document.rotation is not None and document.rotation.is_restore
    if document.next is not None and document.next.id not in (session_id, current.id) and not has_signed:
        proof = None if word is None else word.proofs.get(document.next.id)
        beside = f"{BESIDE}{session_id}"
        revoked.append(Revocation(id=document.next.id, at=now_ms, reason=beside, anchor_proof=proof))
    roots = document.roots if document.find_root(current.id) else (*document.roots, current.session)
    revoked_ids = document.revoked_ids | {one.id for one in revoked}
    changes: dict[str, Any] = {
        "revoked": (*_without_old_proofs(document.revoked), *revoked),
        "rotation": None,
        "next": None,
        # A server that has not read an activated document follows the new anchor by the previous one's signature.
        "anchor_changes": _changes_after_end(document),
        "roots": roots,
        "endorsements": _renew_endorsements(document, current, roots, revoked_ids, now_ms, word),
        "entry": HistoryEntry(
            at=now_ms,
            event=REVOKED,
            from_id=session_id,
            to_id=successor.id if successor else None,
            reason=_shorten_reason(reason),
        ),
    }
    if successor is not None:
        changes.update(current=successor, rotated_from=session_id, rotated_at=now_ms)
    return _next_document(document, now_ms, **changes)


def revocations_to_sign(document: IdentityDocument, session_id: str, successor: OwnedSession | None) -> tuple[str, ...]:
    """Return the ids of the roots whose revocation the anchor must sign when root `session_id` is revoked.

    There are none if the successor is a new root, because the anchor's endorsement of that root is proof enough.
    Otherwise a next root, which is revoked too, can be among them.

    Args:
        document: An identity document with an anchor.
        session_id: Id of the root to revoke.
        successor: The new current root; None if the current root stays.
    """
    if successor is not None and document.find_root(successor.id) is None:
        return ()
    beside = document.next
    is_beside = beside is not None and document.rotation is not None and not document.rotation.is_restore
    ids = [session_id, *([beside.id] if is_beside and beside is not None else [])]
    return tuple(one for one in dict.fromkeys(ids) if successor is None or one != successor.id)


def drop_lost_anchor(
    document: IdentityDocument, now_ms: int, *, reason: str, successor: OwnedSession | None = None
) -> IdentityDocument:
    """Remove an anchor whose key is lost, without its signature. The current root stays, as an ordinary root.

    In direct mode the anchor is the current root, so a new ordinary root takes its place.

    A server rejects the document until the operator makes it accept the document (``--accept-identity``).

    Args:
        document: An identity document with an anchor, without a rotation in progress.
        now_ms: Milliseconds since 1970.
        reason: The operator's reason, human-readable.
        successor: The new root, which is needed in direct mode, and only then.

    Raises:
        IllegalStepError: There is no anchor, or a rotation is in progress.
    """
    if document.anchor is None:
        raise IllegalStepError("the identity has no anchor")
    if document.rotation is not None:
        raise IllegalStepError(
            f"rotation {document.rotation.id} is in progress, in phase {document.rotation.phase}",
            hint="Finish it with `goatherd rotate --resume`, or cancel it with `goatherd rotate --cancel`.",
        )
    if document.is_direct != (successor is not None):
        raise IllegalStepError("a new root must be given if the anchor signs itself (direct mode), and only then")
    entry = HistoryEntry(
        at=now_ms,
        event=ANCHOR_DROPPED,
        from_id=document.anchor,
        to_id=None if successor is None else successor.id,
        reason=_shorten_reason(reason),
    )
    current = successor or document.current
    # For servers of the past, the roots stay reachable from the root that signs.
    known = {one.of for one in document.endorsements if one.by == current.id}
    others = [root for root in document.roots if root.id not in document.revoked_ids | known | {current.id}]
    changes: dict[str, Any] = {"anchor": None, "anchor_changes": ()}
    if successor is not None:
        changes.update(current=successor, rotated_from=document.current.id, rotated_at=now_ms)
        changes["roots"] = (*document.roots, successor.session)
    endorsements = (*document.endorsements, *(endorse_root(current, one, now_ms) for one in others))
    return _next_document(document, now_ms, entry=entry, endorsements=endorsements, **changes)


def sign_again(
    document: IdentityDocument, now_ms: int, *, after: int, signed: IdentityDocument | None = None
) -> IdentityDocument:
    """Sign an identity document whose signature is invalid, or an older one that is to be used again.

    The history gets no entry, because the rotation schedule and restores read it, and no root changes here.

    Args:
        document: The identity document to sign.
        now_ms: Milliseconds since 1970.
        after: The generation that the new document follows; its own is one higher.
        signed: The last signed document, which servers use; it is recorded as the predecessor. The predecessors that
            `document` itself names are not used, because they are not signed.
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
    """Record in an identity document the list of a revoked root's frozen commits.

    From then on servers accept no other commits of that root.

    Args:
        document: An identity document that lists the root as revoked.
        session_id: Id of the revoked root.
        now_ms: Milliseconds since 1970.
        commits: The number of commits in the list.
        digest: SHA-256 of the list, hexadecimal.

    Raises:
        IllegalStepError: The root is not revoked.
    """
    if session_id not in document.revoked_ids:
        raise IllegalStepError(f"root {session_id} is not revoked, so it has no frozen commits")
    freeze = Freeze(at=now_ms, commits=commits, digest=digest)
    revoked = tuple(replace(one, freeze=freeze) if one.id == session_id else one for one in document.revoked)
    return _next_document(document, now_ms, revoked=revoked)


def record_reissued_sessions(document: IdentityDocument, session_id: str, now_ms: int) -> IdentityDocument:
    """Record that all sessions that a revoked root had introduced were reissued, so its introductions no longer count.

    A reissued session has a new introduction, signed by another root.

    Raises:
        IllegalStepError: The root is not revoked, or its list of frozen commits is not recorded yet.
    """
    found = next((one for one in document.revoked if one.id == session_id), None)
    if found is None or found.freeze is None:
        raise IllegalStepError(f"root {session_id} is not revoked, or the list of its frozen commits is not complete")
    revoked = tuple(replace(one, settled_at=now_ms) if one.id == session_id else one for one in document.revoked)
    return _next_document(document, now_ms, revoked=revoked)


def record_promotion(
    document: IdentityDocument, now_ms: int, *, region: str, above: int, stable_version: str | None
) -> IdentityDocument:
    """Record in an identity document that the store of another region has become the primary store.

    Args:
        document: The identity in that store.
        now_ms: Milliseconds since 1970.
        region: The region of the store.
        above: The highest generation that was seen; the new document's generation is higher.
        stable_version: Id of the version that has the label ``stable`` in that store. A rotation in progress is rolled
            back to it, since the id from the former primary store does not exist there.
    """
    record = document.rotation
    return _next_document(
        document,
        now_ms,
        entry=HistoryEntry(at=now_ms, event=PROMOTED, reason=f"the primary store is now that of region {region}"),
        generation=max(document.generation, above) + 1,
        rotation=None if record is None else replace(record, stable_version=stable_version),
    )


def _without_old_proofs(revoked: tuple[Revocation, ...]) -> tuple[Revocation, ...]:
    """Return the revocations of an identity document, with reason and proof removed from the older ones.

    This limits the size of the document; few servers still need an old proof. A revocation whose sessions are not all
    reissued stays complete.
    """
    old = revoked[: max(0, len(revoked) - KEPT_PROOFS)]
    bare = (replace(one, reason="", successor=None, proof=None) if one.settled_at is not None else one for one in old)
    return (*bare, *revoked[len(old) :])


def _check_successor(document: IdentityDocument, successor: OwnedSession, session_id: str, now_ms: int) -> None:
    if successor.id == session_id or not successor.session.is_root or successor.id in document.revoked_ids:
        raise IllegalStepError(f"the successor {successor.id} must be a root, not revoked, and not the root to revoke")
    if document.find_root(successor.id) not in (None, successor.session):
        raise IllegalStepError(f"the identity lists root {successor.id}, the successor, with another key or expiration")
    if successor.session.is_expired(now_ms):
        raise IllegalStepError(f"the successor {successor.id} has expired")
    anchor = document.anchor
    if anchor is None or successor.id == anchor or document.find_root(successor.id) is None:
        return
    if not document.is_endorsed_to_sign(successor.id, anchor):
        raise IllegalStepError(
            f"the anchor {anchor} has not endorsed the successor {successor.id} as a root that signs",
            hint="Revoke with a new root as the successor, which is the default: the anchor endorses it.",
        )


def _renew_endorsements(
    document: IdentityDocument,
    current: OwnedSession,
    roots: Iterable[Session],
    revoked_ids: frozenset[str],
    now_ms: int,
    word: AnchorWord | None,
) -> tuple[Endorsement, ...]:
    """Return the endorsements of an identity document after a revocation.

    Those by revoked roots are dropped. The current root endorses every other unrevoked root, because maybe only the
    revoked root had endorsed it. In an identity with an anchor, the anchor's endorsements (`word`) are added instead.
    """
    kept = [item for item in document.endorsements if item.by not in revoked_ids]
    if word is not None:
        return (*kept, *word.endorsements)
    known = {item.of for item in kept if item.by == current.id}
    others = [root for root in roots if root.id not in revoked_ids | known | {current.id}]
    return (*kept, *(endorse_root(current, root, now_ms) for root in others))


def _require_rotation(document: IdentityDocument, step: str, *phases: Phase) -> RotationRecord:
    record = document.rotation
    if record is None:
        raise IllegalStepError(f"cannot {step}: there is no rotation in progress")
    if phases and record.phase not in phases:
        raise IllegalStepError(f"cannot {step}: rotation {record.id} is in phase {record.phase}")
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
        started_by=record.started_by or None,
    )
    return _next_document(document, now_ms, entry=entry, rotation=None, **changes)


def _next_document(
    document: IdentityDocument, now_ms: int, *, entry: HistoryEntry | None = None, **changes: Any
) -> IdentityDocument:
    history = document.history if entry is None else (*document.history, entry)
    changes.setdefault("generation", document.generation + 1)
    lineage = (document.lineage or Lineage()).followed_by(document.generation, source_digest(document))
    changes.setdefault("lineage", lineage)
    kept = changes.get("anchor_changes", document.anchor_changes)
    changes["anchor_changes"] = tuple(one for one in kept if one.counts_at(changes["generation"]))
    changed = replace(document, last_updated=now_ms, **changes)
    if changed.rotation is None:
        changed = replace(changed, former_anchors=_find_former_anchors(changed))
    roots = frozenset(root.id for root in changed.roots)
    return normalize_document(sign_document(replace(changed, history=_trim_history(history, roots)), now_ms))


def _find_former_anchors(document: IdentityDocument) -> tuple[str, ...]:
    """Return the ids of the anchors before the present one in a document without a rotation in progress.

    SECURITY: the document keeps these ids, so that the roots that former anchors have endorsed stay working roots,
    which may not introduce roots (tests/unit/rotation/test_anchor.py).
    """
    if document.anchor is None:
        return ()
    replaced = [one.by for one in document.anchor_changes if one.until is None and one.to is not None]
    return tuple(one for one in dict.fromkeys((*document.former_anchors, *replaced)) if one != document.anchor)


def _shorten_reason(reason: str) -> str:
    return reason if len(reason) <= _MAX_REASON else f"{reason[: _MAX_REASON - 3]}..."


def _trim_history(history: tuple[HistoryEntry, ...], roots: frozenset[str]) -> tuple[HistoryEntry, ...]:
    """Return the latest history entries within the limits, and the retirement records of the document's roots.

    A retirement record stays as long as its root; without the record, `goatherd retire` would search the store for the
    root's key again. These records do not count against the limits, so that they cannot displace the entry of the last
    rotation. If there is no room for all entries, older failures lose their reasons first: the rotation schedule counts
    the failures in a row, and needs the time of the last success.
    """
    latest = [one for one in history if one.event != _RETIRED][-MAX_HISTORY:]
    is_crowded = sum(map(_history_bytes, latest)) > MAX_HISTORY_BYTES
    kept: dict[int, HistoryEntry] = {}
    size = 0
    for entry in reversed(latest):
        is_bare = is_crowded and size > MAX_HISTORY_BYTES // 4 and entry.event in FAILURES
        stored = replace(entry, reason=None) if is_bare else entry
        size += _history_bytes(stored)
        if kept and size > MAX_HISTORY_BYTES:
            break
        kept[id(entry)] = stored
    return tuple(
        kept.get(id(entry), entry)
        for entry in history
        if id(entry) in kept or (entry.event == _RETIRED and entry.from_id in roots)
    )


def _history_bytes(entry: HistoryEntry) -> int:
    return len(to_pretty_json(entry.to_json()))


KEPT_ROOTS: Final = 3
"""Maximum number of previous roots in the document that are not retired; one fewer in an identity with an anchor."""
MOST_BYTES: Final = 24_000
"""A document is full if this many bytes would not hold it with all that is reserved below.

The reserves are generous: what is written stays below the smallest limit of any store (Azure Key Vault, 19 200 bytes),
unless the document holds kilobytes of members that Goatherd does not know.
"""
ROTATION_BYTES: Final = 3 * 1024
"""Bytes that a rotation in progress adds: the next root twice, an endorsement, the record."""
REVOCATION_BYTES: Final = 3 * 1024
"""Bytes that a revocation during a rotation adds: a root, two entries with reasons, a proof."""
LITTLE_ROOM_BYTES: Final = 2 * 1024
"""With less room than this (`room_left`), about one more rotation can begin if no root leaves the document."""
ENDORSEMENT_BYTES: Final = 512
"""Bytes that a revocation adds for each root that the successor endorses."""


def prunable_roots(document: IdentityDocument) -> frozenset[str]:
    """Return the ids of the roots that may be removed from an identity document.

    All roots may be removed except: the current and the next root; the previous root, because a server that missed the
    last rotation needs it to accept the current root, and because it is needed if the current root must be revoked;
    revoked roots, whose public keys verify their frozen commits; successors that a revocation's proof names; anchors,
    with the roots that the anchor's signed statements name; and former anchors while a root is listed that servers have
    learned from them.
    """
    staying = {document.current.id, document.rotated_from, *document.revoked_ids}
    staying |= {revocation.successor for revocation in document.revoked if revocation.proof is not None}
    if document.next is not None:
        staying.add(document.next.id)
    staying |= document.anchor_ids - {*document.former_anchors}
    staying |= {one for change in document.anchor_changes for one in (change.by, change.to, change.root)}
    introducers: dict[str, str] = {}
    for one in document.endorsements:
        if one.commit is not None:
            introducers.setdefault(one.of, one.by)
    staying |= {by for of, by in introducers.items() if by in document.former_anchors and of not in document.anchor_ids}
    return frozenset(root.id for root in document.roots) - staying


def roots_to_prune(document: IdentityDocument, *, is_renewal: bool = False) -> tuple[str, ...]:
    """Return the ids of the roots to remove from an identity document without a rotation in progress, oldest first.

    Retired roots are removed, and roots whose rotation was cancelled, because these have signed nothing. Without an
    anchor, former anchors are removed, too, whose keys were never stored, and rejected ones. The anchor of a rotation
    that was cancelled early is introduced nowhere; it would be linked to no other root once those before it have been
    removed. Of the other previous roots, which can still be restored, the latest `KEPT_ROOTS` stay (one fewer with an
    anchor). But none stays if the document has no room for another rotation (`is_full`, which explains `is_renewal`).
    """
    earlier = [root.id for root in document.roots if root.id in prunable_roots(document)]
    if is_full(document, is_renewal=is_renewal):
        return tuple(earlier)
    done = document.retired_ids | _cancelled_roots(document)
    if document.anchor is None:
        done |= {one.by for one in document.endorsements if one.commit is not None}
    count = KEPT_ROOTS - 1 if document.anchor is None else KEPT_ROOTS - 2  # the anchor and its predecessor stay too
    kept = [one for one in earlier if one not in done][-count:]
    return tuple(one for one in earlier if one not in kept)


def is_full(document: IdentityDocument, *, is_renewal: bool = False) -> bool:
    """Return whether an identity document is too large to start a rotation and leave room for a revocation.

    Args:
        document: An identity document without a rotation in progress.
        is_renewal: Whether the rotation keeps the anchor of an identity that has one. A revocation then adds no
            endorsements of the listed roots, since only the anchor's count.
    """
    return room_left(document, is_renewal=is_renewal) < 0


def room_left(document: IdentityDocument, *, is_renewal: bool = False) -> int:
    """Return by how many bytes a document may grow before it is full; negative if it is; arguments as of `is_full`."""
    endorsed = 0 if is_renewal else len(document.roots) + 1 - len(document.revoked)
    worst = len(encode_document(document)) + ROTATION_BYTES + REVOCATION_BYTES + endorsed * ENDORSEMENT_BYTES
    return MOST_BYTES - worst


def _cancelled_roots(document: IdentityDocument) -> frozenset[str]:
    """Return the ids of roots whose rotation was cancelled and that took part in no other rotation."""
    cancelled = {entry.to_id for entry in document.history if entry.event == "cancelled" and entry.to_id}
    # The restore of a previous root can be cancelled too; that root has endorsed its successor.
    used = {document.current.id, document.rotated_from, *(endorsement.by for endorsement in document.endorsements)}
    for entry in document.history:
        used |= {entry.from_id} if entry.event == "cancelled" else {entry.from_id, entry.to_id}
    return frozenset(cancelled - used)


def signing_since_ms(document: IdentityDocument) -> int | None:
    """Return when the current root began to sign, in milliseconds since 1970.

    If that is unknown, return the earliest time that the document records; None if it records none.

    If a root signs again after a roll-back or a restore, its first time counts.
    """
    current = document.current.id
    came = [entry.at for entry in document.history if entry.event in BEGINNINGS and entry.to_id == current]
    if came:
        return min(came)
    record = document.rotation
    if record is not None and record.to_id == current:
        return document.rotated_at
    known = [*(entry.at for entry in document.history), *([] if record is None else [record.started_at])]
    known += [moment for moment in (document.last_updated,) if moment is not None]
    return min(known, default=None)
