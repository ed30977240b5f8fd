"""Select the parts of an identity document that may be shown, and list warnings about it for the operator.

Pure. Only ids, fingerprints, timestamps and phases are shown; never key material or the values of unknown members.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from goatherd.crypto import fingerprint
from goatherd.identity.document import (
    IdentityDocument,
    RotationRecord,
    encode_document,
)
from goatherd.identity.key_age import REPLACE_EXPIRED, SHORT_LIFE, Urgency, assess_urgency
from goatherd.identity.revocations import Revocation
from goatherd.identity.session import Session
from goatherd.identity.transitions import LITTLE_ROOM_BYTES, prunable_roots, room_left
from goatherd.times import iso


def days_left(document: IdentityDocument, now_ms: int) -> float:
    """Return the number of days until the current root of an identity expires; negative once it has expired."""
    return (document.current.session.expiration_ms - now_ms) / 86_400_000


def find_warnings(document: IdentityDocument, now_ms: int) -> list[str]:
    """Return warnings for the operator about a valid identity document, such as a root that expires soon."""
    found = []
    left, size = days_left(document, now_ms), len(encode_document(document))
    if left < 0:
        found.append(
            f"the current root {document.current.id} expired {-left:.1f} days ago; replace it with `{REPLACE_EXPIRED}`"
        )
    elif document.anchor is not None and not document.is_direct:
        if assess_urgency(document, now_ms) in (Urgency.SOON, Urgency.URGENT):
            found.append(
                f"the working root {document.current.id} expires in {left:.1f} days and was not renewed; check the"
                " anchor's signer with `goatherd rotate --plan`"
            )
    elif left < SHORT_LIFE.days:
        found.append(f"the current root {document.current.id} expires in {left:.1f} days; rotate it")
    found += [
        f"root {one.id} is revoked, but that is not finished: run `goatherd revoke {one.id} --reason TEXT` again, with"
        " every server. If all of them are unmodified GoatDB servers, nothing is left to do"
        for one in document.unfinished_revocations
    ]
    room = room_left(document, is_renewal=document.anchor is not None)
    if document.rotation is None and room < LITTLE_ROOM_BYTES:
        state = "is" if room < 0 else "will soon be"
        way_out = (
            "a rotation first removes previous roots from it if every listed server answers"
            if prunable_roots(document)
            else "no root can be removed from it now; `goatherd revoke` can still replace the current root"
        )
        found.append(f"the document has {size} bytes, and {state} too large for another rotation; {way_out}")
    return found


def redact_document(document: IdentityDocument) -> dict[str, Any]:
    """Return the parts of an identity document that may be shown: ids, fingerprints, times and phases, no key material.

    Of members that this version of Goatherd does not know, only the names are included.
    """
    rotation = document.rotation
    return {
        "version": document.version,
        "generation": document.generation,
        "phase": rotation.phase.value if rotation else "steady",
        "signed": document.is_signed,
        "current": _redacted_session(document.current.session),
        "next": _redacted_session(document.next.session) if document.next else None,
        **({} if document.anchor is None else {"anchor": _redacted_anchor(document, document.anchor)}),
        "roots": [{**_redacted_session(root), "revoked": root.id in document.revoked_ids} for root in document.roots],
        "lastUpdated": _iso_or_none(document.last_updated),
        "rotatedFrom": document.rotated_from,
        "rotatedAt": _iso_or_none(document.rotated_at),
        "rotation": _redacted_rotation(rotation) if rotation else None,
        "endorsements": [{"by": item.by, "of": item.of} for item in document.endorsements],
        "revoked": [_redacted_revocation(item) for item in document.revoked],
        "history": [replace(item, extra={}).to_json() for item in document.history],
        "prunedRoots": document.pruned,
        "unknownMembers": sorted(document.extra),
    }


def _redacted_rotation(rotation: RotationRecord) -> dict[str, Any]:
    return replace(rotation, extra={}).to_json()


def _redacted_session(session: Session) -> dict[str, Any]:
    return {
        "id": session.id,
        "fingerprint": fingerprint(session.public_key),
        "owner": session.owner,
        "expiration": iso(session.expiration_ms),
    }


def _redacted_anchor(document: IdentityDocument, anchor_id: str) -> dict[str, Any]:
    session = document.find_root(anchor_id)
    assert session is not None
    return _redacted_session(session)


def _redacted_revocation(revocation: Revocation) -> dict[str, Any]:
    freeze = None if revocation.freeze is None else replace(revocation.freeze, extra={})
    shown = replace(revocation, extra={}, freeze=freeze).to_json()
    return {name: value for name, value in shown.items() if name not in ("proof", "anchorProof")}


def _iso_or_none(ms: int | None) -> str | None:
    return None if ms is None else iso(ms)
