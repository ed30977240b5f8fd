"""Which earlier roots may leave the identity document, so that it stays small whatever the age of the cluster.

A root that has left is not forgotten: its introduction in ``/sys/sessions``, signed by a later root, goes on making its
signatures count. What it is: the choice, by the document alone. What it is not: it does not know what the nodes hold
(`goatherd.rotation.machine` asks for that first) and changes nothing (`transitions.prune`). Pure.
"""

from __future__ import annotations

from typing import Final

from goatherd.identity.document import IdentityDocument, encode_document

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


def may_leave(document: IdentityDocument) -> frozenset[str]:
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


def leaving(document: IdentityDocument) -> tuple[str, ...]:
    """Return the roots that should leave a steady document, oldest first.

    A root that is on record as retired, and one whose rotation was cancelled, which has signed nothing. Of the others,
    which can still be restored, the latest `KEPT_ROOTS` stay, the root before the current one among them.
    """
    earlier = [root.id for root in document.roots if root.id in may_leave(document)]
    done = document.retired_ids | _cancelled(document)
    kept = [one for one in earlier if one not in done][-(KEPT_ROOTS - 1) :]
    return tuple(one for one in earlier if one not in kept)


def is_full(document: IdentityDocument) -> bool:
    """Whether the document is too large for another rotation to begin: with a revocation in the middle of it."""
    endorsed = len(document.roots) + 1 - len(document.revoked)
    worst = len(encode_document(document)) + ROTATION_BYTES + REVOCATION_BYTES + endorsed * ENDORSEMENT_BYTES
    return worst > MOST_BYTES


def _cancelled(document: IdentityDocument) -> frozenset[str]:
    """Return the roots of which the history says that their rotation was cancelled, and nothing else."""
    cancelled = {entry.to_id for entry in document.history if entry.event == "cancelled" and entry.to_id}
    # A rotation to an earlier root can be cancelled too; that one has endorsed the root after it.
    used = {document.current.id, document.rotated_from, *(endorsement.by for endorsement in document.endorsements)}
    for entry in document.history:
        used |= {entry.from_id} if entry.event == "cancelled" else {entry.from_id, entry.to_id}
    return frozenset(cancelled - used)
