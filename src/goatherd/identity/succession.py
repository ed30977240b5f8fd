"""Decide whether a server that uses one identity document may adopt another.

Pure. The functions that verify return nothing, and raise an error if a check fails. A server trusts a root only if it
already trusted it, or if a trusted root that is not revoked has endorsed or introduced it. That a document lists a root
is not sufficient.

An endorsement is a signature in the document, by one root over another. An introduction is a commit of
``/sys/sessions`` in which one root declares another trusted. It stays there after the document no longer lists the
two roots.

A server that uses an identity with an anchor is stricter: it trusts only roots that the anchor has endorsed or
introduced, and only the anchor can end its own role (`goatherd.identity.anchor`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from goatherd.errors import (
    DecodeError,
    ForkedIdentityError,
    GenerationError,
    GenerationJumpError,
    MalformedIdentityError,
    SuccessionError,
    UnanchoredIdentityError,
    UnsignedIdentityError,
    VerificationError,
)
from goatherd.identity.anchor import AnchoredTrust, is_revocation_signed, verify_change
from goatherd.identity.document import (
    SIZE_LIMIT_BYTES,
    IdentityDocument,
    Phase,
    document_digest,
    read_roots,
)
from goatherd.identity.json_members import read_flag, read_id, read_ids, read_number, read_text
from goatherd.identity.revocations import verify_proof
from goatherd.identity.root_signatures import Endorsement, verify_endorsement
from goatherd.identity.session import Session
from goatherd.identity.session_commits import (
    claims_root,
    earlier_introduction_id,
    session_from_commit,
    verify_commit_by,
)
from goatherd.identity.strict_json import parse_object, to_canonical_json, to_pretty_json

if TYPE_CHECKING:
    from goatherd.crypto import PublicKey
    from goatherd.wire.commit import Commit


MAX_JUMP: Final = 1_000_000
"""Maximum by which a document's generation may exceed the last one seen. A rotation writes seven generations; ten years
of hourly rotations are 600 000. Without a bound, servers would adopt a document with the highest number that JSON
holds, and no document could follow it."""


def verify_succession(
    document: IdentityDocument,
    trusted: Iterable[Session],
    introductions: Iterable[Commit] = (),
    *,
    anchor: Session | None = None,
) -> None:
    """Check that a server that trusts the roots `trusted` may trust the identity document `document`.

    The document's current root, and every other root that it lists, must be trusted already (with the same id and key),
    or a chain of endorsements and introductions must lead to it from a trusted root that the document does not revoke.
    A rollback passes, because the previous root is still trusted. The proof of a revocation is one more link: from a
    revoked root that is trusted so far, or that a chain reaches, to the successor that the proof names.

    Args:
        document: The new identity document, fully checked.
        trusted: Public halves of the roots that are trusted so far, without revoked ones.
        introductions: Session commits, unverified, in any order and from any source. Commits whose signatures do not
            verify are ignored.
        anchor: The anchor of the identity that the server uses; None if it has none. With an anchor, only endorsements
            and introductions by the anchor count, and those by the anchor to which it has passed its role.

    Raises:
        SuccessionError: No chain leads to the current root or to another listed root (then `is_chain_open` is set), a
            root has another key than the trusted root with its id, or the current root is revoked.
        UnanchoredIdentityError: The document has another anchor, or none, without the anchor's signature.
    """
    revoked = document.revoked_ids
    known = {session.id: session for session in trusted}
    if document.current.id in revoked:
        raise SuccessionError(f"the current root {document.current.id} is revoked")
    for root in document.roots:
        if root.id in known and known[root.id].public_key != root.public_key:
            raise SuccessionError(f"root {root.id} is listed with another key than the one that is trusted here")
    if anchor is None:
        reachable = _trusted_roots(document, known, introductions)
    else:
        reachable = _anchored_roots(document, known, introductions, anchor)
    if document.current.id not in reachable:
        raise _open_chain_error(f"the current root {document.current.id}")
    # SECURITY: an attacker who can write the secret but has no root's key must not be able to add a root
    # (tests/unit/identity/test_succession.py).
    strange = [root.id for root in document.roots if root.id not in reachable and root.id not in revoked]
    if strange:
        raise _open_chain_error(f"root {strange[0]}")


def _anchored_roots(
    document: IdentityDocument, known: Mapping[str, Session], introductions: Iterable[Commit], anchor: Session
) -> frozenset[str]:
    """Return the ids of the unrevoked roots that a server may trust: those that it knows, and those the anchor allows.

    SECURITY: the thief of a working root can sign documents, so nothing that such a root alone says about another root
    may count (tests/unit/identity/test_anchor.py).
    """
    for root in document.roots:
        if root.id in known and known[root.id] != root:
            raise UnanchoredIdentityError(
                f"root {root.id} is listed with another owner or expiration than the one that is trusted here"
            )
    anchors, released = find_anchors(document, anchor)
    commits = tuple(introductions)
    if document.anchor is not None:
        if document.anchor not in anchors:
            raise UnanchoredIdentityError(
                f"the identity names root {document.anchor} as its new anchor, but the anchor in use"
                f" until now, {anchor.id}, has not signed this change"
            )
        return frozenset({**known, **_reachable_roots(document, anchors, commits, leaders=anchors)}) - (
            document.revoked_ids
        )
    if not released:
        raise UnanchoredIdentityError(
            f"the identity no longer has an anchor, but the anchor in use until now, {anchor.id}, has not signed"
            " the removal"
        )
    by_release = _trusted_roots(document, released, commits)
    if document.current.id not in by_release:
        raise UnanchoredIdentityError(
            f"anchor {anchor.id} has ended its role, but no chain of endorsements leads from the root that it named to"
            " the current root"
        )
    by_anchor = _reachable_roots(document, anchors, commits, leaders=anchors)
    return (frozenset({**known, **by_anchor}) - document.revoked_ids) | by_release


def find_anchors(document: IdentityDocument, anchor: Session) -> tuple[dict[str, Session], dict[str, Session]]:
    """Return the anchors, and the roots that may sign without an anchor; both by id.

    The anchors are `anchor` and the roots to which its role has passed by the document's signed statements. Revoked
    roots are left out.
    """
    listed = {root.id: root for root in document.roots if root.id not in document.revoked_ids}
    anchors = {} if anchor.id in document.revoked_ids else {anchor.id: anchor}
    released: dict[str, Session] = {}
    todo = [change for change in document.anchor_changes if change.counts_at(document.generation)]
    while True:
        counting = [change for change in todo if change.by in anchors]
        todo = [change for change in todo if change.by not in anchors]
        if not counting:
            return anchors, released
        for change in counting:
            subject = listed.get(change.to or change.root or "")
            if subject is None:
                continue
            verify_change(change, by=anchors[change.by], subject=subject)
            (released if change.to is None else anchors)[subject.id] = subject


def _check_anchors(new: IdentityDocument, seen: TrustCheckpoint, anchor: Session) -> None:
    """Check that the known anchor has signed every change of the anchor in an identity document.

    The document must also name each former anchor that it named before.

    SECURITY: the thief of a working root can sign a change of the anchor that names this root, and write it into the
    document (tests/unit/identity/test_anchor.py).
    """
    if new.anchor is None:
        return
    known = frozenset() if seen.anchored_trust is None else seen.anchored_trust.anchors
    passed, _ = find_anchors(new, anchor)
    unproven = sorted(new.introducing_anchor_ids - known - passed.keys())
    if unproven:
        raise UnanchoredIdentityError(
            f"the identity names root {unproven[0]} as an anchor, but the anchor in use until now, {anchor.id}, has"
            " not signed this change"
        )
    forgotten = sorted({*seen.former_anchors} - new.anchor_ids)
    if forgotten:
        raise UnanchoredIdentityError(f"the identity no longer names the former anchor {forgotten[0]}")


def check_revocations(
    new: IdentityDocument,
    known: Mapping[str, Session],
    revoked: Collection[str],
    anchor: Session,
    introductions: Iterable[Commit] = (),
) -> None:
    """Check that the anchor has signed each revocation that is new in an identity document.

    A revocation needs no signature of its own if this server does not know the document's current root yet: then the
    anchor has just endorsed that root, and the thief of a previous root does not have its key.

    Args:
        new: The new identity document; `verify_succession` has passed.
        known: The roots that this server trusts, by id.
        revoked: Ids of the roots that this server knows to be revoked.
        anchor: The anchor of the identity that the server uses.
        introductions: As for `verify_succession`. They show the pruned roots, which are no longer in the document but
            which this server still trusts.

    Raises:
        UnanchoredIdentityError: The anchor has not signed a revocation.
    """
    added = [one for one in new.revoked if one.id not in revoked]
    if new.current.id not in known or not added:
        return
    anchors, _ = find_anchors(new, anchor)
    trusted = known if all(one.id in known for one in added) else _reachable_roots(new, known, introductions)
    for one in added:
        if one.id not in trusted:
            continue
        if not any(
            is_revocation_signed(one.anchor_proof or "", anchor=by, revoked_id=one.id, at=one.at)
            for by in anchors.values()
        ):
            raise UnanchoredIdentityError(
                f"root {one.id} is listed as revoked, but anchor {anchor.id} has not signed the revocation"
            )


def _open_chain_error(to: str) -> SuccessionError:
    error = SuccessionError(f"no chain of endorsements leads from a root trusted here to {to}")
    error.is_chain_open = True
    return error


def find_introduced(document: IdentityDocument, introductions: Iterable[Commit]) -> dict[str, Session]:
    """Return, by id, the unrevoked roots of an identity document and those to which a chain leads from them.

    A chain consists of endorsements and introductions, so that it also leads to roots that the document no longer
    lists.

    Args:
        document: An identity document that is trusted.
        introductions: As for `verify_succession`.
    """
    known = {root.id: root for root in document.roots if root.id not in document.revoked_ids}
    reached = _reachable_roots(document, known, introductions)
    return {one: session for one, session in reached.items() if one not in document.revoked_ids}


def is_current_introduced(document: IdentityDocument, known: Mapping[str, Session]) -> bool:
    """Return whether the current root is a known one, or a chain of endorsements leads from a known one to it.

    As in `verify_succession`, only the proof of its revocation leads on from a revoked root.
    """
    current = document.current.session
    try:
        found = _reachable_roots(document, known, ()).get(current.id)
    except SuccessionError:
        return False
    return found is not None and found.public_key == current.public_key and current.id not in document.revoked_ids


def _trusted_roots(
    document: IdentityDocument, known: Mapping[str, Session], introductions: Iterable[Commit]
) -> frozenset[str]:
    """Return the ids of unrevoked roots to which a chain of endorsements or introductions leads from a known root."""
    return frozenset(_reachable_roots(document, known, introductions)) - document.revoked_ids


def _reachable_roots(
    document: IdentityDocument,
    known: Mapping[str, Session],
    introductions: Iterable[Commit],
    *,
    leaders: Collection[str] | None = None,
) -> dict[str, Session]:
    """Return, by id, the known roots and those to which chains of endorsements and introductions lead from them.

    Args:
        document, known, introductions: As for `verify_succession`.
        leaders: Ids of the roots whose endorsements and introductions count; None for all roots.
    """
    revoked = document.revoked_ids
    listed = {root.id: root for root in document.roots}
    endorsed: dict[str, list[Endorsement]] = {}
    for endorsement in document.endorsements:
        endorsed.setdefault(endorsement.by, []).append(endorsement)
    introduced: dict[str, list[Commit]] = {}
    for commit in introductions:
        if claims_root(commit):
            introduced.setdefault(commit.session, []).append(commit)
    proofs = {one.id: one for one in document.revoked if one.successor is not None}
    reached = dict(known)
    todo = list(known)
    while todo:
        by = reached[todo.pop()]
        found: list[Session] = []
        if leaders is not None and by.id not in leaders:
            continue
        if by.id in revoked:
            # SECURITY: a revoked root makes another root trusted only by the proof of its revocation, never by its
            # endorsements or introductions. An attacker who can write the store but has no root's key cannot make that
            # proof; one who stole only a key cannot write it into the store (tests/unit/identity/test_revocations.py).
            if (proof := proofs.get(by.id)) is not None and proof.successor not in reached:
                successor = listed[proof.successor or ""]
                verify_proof(proof, revoked=by, successor=successor)
                found.append(successor)
        else:
            for endorsement in endorsed.get(by.id, ()):
                if endorsement.of not in reached:
                    verify_endorsement(endorsement, by=by, of=listed[endorsement.of])
                    found.append(listed[endorsement.of])
            found += [
                session
                for commit in introduced.get(by.id, ())
                if commit.key not in reached
                and (session := _read_introduction(commit, by)) is not None
                # What the document says of a root must be what was introduced, down to the expiration.
                and listed.get(session.id, session) == session
            ]
        for session in found:
            if session.id not in reached:
                reached[session.id] = session
                todo.append(session.id)
    return reached


def _read_introduction(commit: Commit, by: Session) -> Session | None:
    """Return the root that a session commit introduces; None if `by` did not sign it or it introduces no root."""
    try:
        session = session_from_commit(commit)
        verify_commit_by(by, commit)
        session.public_key.check()
    except (DecodeError, VerificationError):
        return None
    return session if session.is_root else None


def check_generation(new: IdentityDocument, seen: IdentityDocument | TrustCheckpoint) -> None:
    """Check that an identity document is not older than `seen`, the one with the highest generation seen so far.

    Raises:
        GenerationError: The generation of `new` is lower (a stale replica, a replayed value), or the same with other
            contents (two writers used one generation, so at least one wrote without compare-and-swap).
        GenerationJumpError: The generation of `new` is higher by more than `MAX_JUMP`.
    """
    if new.generation > seen.generation + MAX_JUMP:
        raise GenerationJumpError(
            f"generation {new.generation} cannot come after {seen.generation}: it is more than {MAX_JUMP} higher"
        )
    if new.generation < seen.generation:
        raise GenerationError(f"generation went back from {seen.generation} to {new.generation}")
    if new.generation == seen.generation and document_digest(new) != _as_checkpoint(seen).digest:
        raise GenerationError(f"generation {new.generation} was seen before with other contents")


def check_first(document: IdentityDocument) -> None:
    """Check the generation of the first identity document that a server reads, which may be forged if it is unsigned.

    Raises:
        GenerationJumpError: The document is unsigned, and its generation is above `MAX_JUMP`.
    """
    if document.generation > MAX_JUMP and not document.is_signed:
        raise GenerationJumpError(
            f"generation {document.generation} is above {MAX_JUMP}, which an unsigned document cannot have reached"
        )


def check_signature(new: IdentityDocument, seen: IdentityDocument | TrustCheckpoint) -> None:
    """Check that a new identity document is signed by its current root, if a signed one was seen before.

    Raises:
        UnsignedIdentityError: The signature is missing or invalid. If `new` is the document `seen` itself, it passes
            even so, because the operator has accepted it.
    """
    before = _as_checkpoint(seen)
    if before.is_signed and document_digest(new) != before.digest:
        verify_signed(new)


def verify_signed(document: IdentityDocument) -> None:
    """Check that the current root has signed an identity document in its present state.

    Raises:
        UnsignedIdentityError: The signature is missing or invalid.
    """
    signature, generation = document.signature, document.generation
    if document.is_signed:
        return
    if signature is None:
        problem = "has no signature"
    elif signature.generation != generation:
        problem = f"was signed at generation {signature.generation} and changed since by a tool that does not sign"
    else:
        problem = f"is not what {signature.by} signed: it was altered in the store"
    raise UnsignedIdentityError(f"generation {generation} of the identity {problem}")


def check_lineage(new: IdentityDocument, seen: IdentityDocument | TrustCheckpoint) -> None:
    """Check that an identity document descends from `seen`, as far as the predecessors that it names show.

    Raises:
        ForkedIdentityError: `new` names another document than `seen` as its predecessor of that generation.
    """
    if new.lineage is not None and new.lineage.contradicts(seen.generation, _as_checkpoint(seen).digest):
        raise ForkedIdentityError(
            f"generation {new.generation} has not grown from the generation {seen.generation} that is in use, but from"
            f" another document with the number {seen.generation}"
        )


def verify_successor(
    new: IdentityDocument,
    seen: IdentityDocument | TrustCheckpoint,
    introductions: Iterable[Commit] = (),
    *,
    may_fork: bool = False,
    is_pruning_believed: bool = False,
) -> None:
    """Check that a server that uses the identity document `seen` may adopt the identity document `new`.

    The checks cover the generation, the lineage, the succession, the signature, and missing revocations and roots.

    Args:
        new: The new identity document, fully checked.
        seen: The identity in use, or its checkpoint.
        introductions: As for `verify_succession`; also the introductions of pruned roots.
        may_fork: Whether two writers can both succeed at this store, so that a server may have read a document that was
            then overwritten.
        is_pruning_believed: Whether to rely on the document's count of pruned roots, because no source of introductions
            is available.

    Raises:
        GenerationError: As for `check_generation`.
        ForkedIdentityError: As for `check_lineage`, unless `may_fork`.
        SuccessionError: As for `verify_succession`; or a revocation is missing, or a root is missing without a reason
            (then `is_root_lost` is set).
        UnanchoredIdentityError: As for `verify_succession` and `check_revocations`; or a root counts as an anchor in
            `new`, but the anchor has not signed that.
        UnsignedIdentityError: As for `check_signature`.
    """
    check_generation(new, seen)
    if not may_fork:
        check_lineage(new, seen)
    forgotten = sorted(seen.revoked_ids - new.revoked_ids)
    if forgotten:
        raise SuccessionError(f"the revocation of {forgotten[0]} is missing, although the identity in use has it")
    commits = tuple(introductions)
    anchor = _as_checkpoint(seen).anchor
    trusted = [root for root in seen.roots if root.id not in seen.revoked_ids]
    verify_succession(new, trusted, commits, anchor=anchor)
    if anchor is not None:
        _check_anchors(new, _as_checkpoint(seen), anchor)
        check_revocations(new, {root.id: root for root in trusted}, seen.revoked_ids, anchor, commits)
    # SECURITY: an attacker who can write the secret but has no root's key can alter what no chain covers: expirations,
    # history, and which roots are listed or revoked (tests/unit/identity/test_root_signatures.py).
    check_signature(new, seen)
    lost = find_lost_roots(new, seen, commits)
    # SECURITY: a writer that continues from a restored backup must not remove a root that has signed since
    # (tests/unit/identity/test_lineage.py).
    if lost and not (is_pruning_believed and new.pruned - _as_checkpoint(seen).pruned >= len(lost)):
        error = SuccessionError(
            f"root {lost[0].id}, which is trusted here, is gone from the identity: it is neither retired nor revoked,"
            " and no later root has introduced it",
            hint="The store was restored from a backup, or a user removed the root. `goatherd doctor` lists the fixes.",
        )
        error.is_chain_open = error.is_root_lost = True
        raise error


def find_lost_roots(
    new: IdentityDocument, seen: IdentityDocument | TrustCheckpoint, introductions: Iterable[Commit]
) -> tuple[Session, ...]:
    """Return the roots of the earlier identity `seen` that the document `new` no longer lists without a valid reason.

    A root may be missing if it was only prepared in `seen` (its rotation was cancelled), if it is revoked or recorded
    as retired, or if it was pruned: then a later root has introduced it as a previous root, in ``/sys/sessions``. An
    introduction by an older root is no valid reason.

    Args:
        new: The new identity document, fully checked.
        seen: The identity that the server uses, or used last.
        introductions: Session commits, unverified and in any order.
    """
    known = _as_checkpoint(seen)
    explained = {root.id for root in new.roots} | new.revoked_ids | new.retired_ids | {known.prepared_id}
    lost = tuple(root for root in known.roots if root.id not in explained)
    if not lost:
        return ()
    outlived = _later_introduced_keys(new, introductions)
    return tuple(root for root in lost if outlived.get(root.id) != root.public_key)


def _later_introduced_keys(document: IdentityDocument, introductions: Iterable[Commit]) -> dict[str, PublicKey]:
    """Return, by id, the public keys of roots that later roots have introduced, starting from the document's roots.

    Introductions by revoked roots count, too: the result only shows which roots may be missing; it makes none trusted.
    """
    by_signer: dict[str, list[Commit]] = {}
    anchors = document.introducing_anchor_ids
    for commit in introductions:
        # An anchor does not expire with the roots that it introduces, so its first introduction is enough.
        is_later = commit.id == earlier_introduction_id(commit.key, commit.session) or commit.session in anchors
        if claims_root(commit) and is_later:
            by_signer.setdefault(commit.session, []).append(commit)
    found: dict[str, PublicKey] = {}
    todo = list(document.roots)
    while todo:
        by = todo.pop()
        for commit in by_signer.pop(by.id, ()):
            session = _read_introduction(commit, by)
            if session is not None and session.id not in found:
                found[session.id] = session.public_key
                todo.append(session)
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustCheckpoint:
    """A server's record of the identity that it uses, so that it adopts no older one after a restart. Holds no secrets.

    Attributes:
        generation: The generation of the identity.
        digest: SHA-256 of the identity's JSON, hexadecimal.
        roots: The roots of the identity.
        revoked_ids: Ids of the revoked roots.
        is_signed: Whether the current root had signed this identity document, or a signed one was seen before.
        prepared_id: Id of the next root of a rotation that was only prepared, so that no server knows the root yet.
        pruned: Number of previous roots that had been removed from the document.
        anchor_id: Id of the identity's anchor, which is among `roots`; None if it has none.
        anchored_trust: Which of the roots may introduce other roots; None if the identity has no anchor.
        former_anchors: The ids of the anchors before the present one.
    """

    generation: int
    digest: str
    roots: tuple[Session, ...]
    revoked_ids: frozenset[str]
    is_signed: bool = False
    prepared_id: str | None = None
    pruned: int = 0
    anchor_id: str | None = None
    anchored_trust: AnchoredTrust | None = None
    former_anchors: tuple[str, ...] = ()

    @property
    def anchor(self) -> Session | None:
        """The root session of the identity's anchor; None if the identity has no anchor."""
        return next((root for root in self.roots if root.id == self.anchor_id), None)

    @classmethod
    def from_document(cls, document: IdentityDocument) -> TrustCheckpoint:
        record = document.rotation
        is_unknown = record is not None and record.phase is Phase.PREPARED and not record.is_restore
        return cls(
            generation=document.generation,
            digest=document_digest(document),
            roots=document.roots,
            revoked_ids=document.revoked_ids,
            is_signed=document.is_signed,
            prepared_id=record.to_id if record is not None and is_unknown else None,
            pruned=document.pruned,
            anchor_id=document.anchor,
            anchored_trust=document.anchored_trust,
            former_anchors=document.former_anchors,
        )

    def shares_root_with(self, document: IdentityDocument) -> bool:
        """Return whether an identity document lists a root of this checkpoint, and so belongs to the same cluster."""
        keys = {root.id: root.public_key for root in self.roots}
        return any(keys.get(root.id) == root.public_key for root in document.roots)

    @classmethod
    def from_bytes(cls, raw: bytes) -> TrustCheckpoint:
        """Read a trust checkpoint from the bytes that `to_bytes` returned.

        Raises:
            MalformedIdentityError: The bytes are not a checkpoint, or do not match their checksum. A checkpoint of
                Goatherd 0.1.0 has no checksum and is accepted.
        """
        tree = parse_object(raw, max_bytes=SIZE_LIMIT_BYTES)
        if ("checksum" in tree or "signed" in tree) and tree.pop("checksum", None) != _checkpoint_digest(tree):
            raise MalformedIdentityError("the record's checksum does not match its contents")
        prepared, anchor = tree.get("prepared"), tree.get("anchor")
        found = cls(
            generation=read_number(tree.get("generation"), "generation"),
            digest=read_text(tree.get("digest"), "digest"),
            roots=read_roots(tree.get("roots"), "roots"),
            revoked_ids=frozenset(read_ids(tree.get("revoked"), "revoked")),
            is_signed=read_flag(tree.get("signed", False), "signed"),
            prepared_id=None if prepared is None else read_id(prepared, "prepared"),
            pruned=read_number(tree.get("prunedRoots", 0), "prunedRoots"),
            anchor_id=None if anchor is None else read_id(anchor, "anchor"),
            anchored_trust=_read_anchored_trust(tree),
            former_anchors=read_ids(tree.get("formerAnchors", []), "formerAnchors"),
        )
        # SECURITY: a checkpoint whose anchor cannot be read is rejected. Without the anchor, the server would follow
        # roots that the anchor has not endorsed (tests/unit/identity/test_anchor.py).
        if anchor is not None and found.anchor is None:
            raise MalformedIdentityError("anchor is not among the roots")
        return found

    def to_bytes(self) -> bytes:
        """Return the checkpoint as JSON with a checksum.

        Without the checksum, one flipped bit on the disk could let an older identity pass.
        """
        tree: dict[str, object] = {
            "generation": self.generation,
            "digest": self.digest,
            "signed": self.is_signed,
            "roots": [root.to_json() for root in self.roots],
            "revoked": sorted(self.revoked_ids),
            "prunedRoots": self.pruned,
        }
        if self.prepared_id is not None:
            tree["prepared"] = self.prepared_id
        if self.anchor_id is not None:
            tree["anchor"] = self.anchor_id
        if self.anchored_trust is not None:
            tree["anchors"] = sorted(self.anchored_trust.anchors)
            tree["workingRoots"] = sorted(self.anchored_trust.working)
        if self.former_anchors:
            tree["formerAnchors"] = list(self.former_anchors)
        return to_pretty_json({**tree, "checksum": _checkpoint_digest(tree)})


def _read_anchored_trust(tree: Mapping[str, Any]) -> AnchoredTrust | None:
    # A checkpoint of an earlier version names the anchor alone; the log then shows which roots it has introduced.
    anchors = tree.get("anchors", [tree["anchor"]] if "anchor" in tree else None)
    if anchors is None:
        return None
    working = read_ids(tree.get("workingRoots", []), "workingRoots")
    return AnchoredTrust(frozenset(read_ids(anchors, "anchors")), frozenset(working))


def _checkpoint_digest(tree: Mapping[str, Any]) -> str:
    return hashlib.sha256(to_canonical_json(tree)).hexdigest()


def _as_checkpoint(seen: IdentityDocument | TrustCheckpoint) -> TrustCheckpoint:
    return seen if isinstance(seen, TrustCheckpoint) else TrustCheckpoint.from_document(seen)
