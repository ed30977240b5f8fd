"""Who a cluster is. Pure.

- `session`: sessions, and what they sign.
- `text`: the JSON of the document, read strictly.
- `endorsement`: one root vouches for another.
- `revocation`: a root that is not to be believed, and the proof by which nodes follow to the next.
- `document`: `IdentityDocument`, its checks, its text.
- `redaction`: what may be shown of it.
- `succession`: which document may follow which.
- `transitions`: how a rotation changes the document.
- `pruning`: which earlier roots may leave the document.
- `following`: which introductions of roots a client is sent, so that it can follow them.
- `silence`: since when earlier roots have not signed.
- `settings_text`: GoatDB's ``settings.json``.
"""

from goatherd.identity.document import (
    HistoryEntry,
    IdentityDocument,
    Phase,
    RotationRecord,
    decode_document,
    encode_document,
)
from goatherd.identity.redaction import days_left, find_warnings, redact_document
from goatherd.identity.revocations import Freeze, Revocation
from goatherd.identity.root_signatures import Endorsement, endorse_root, verify_endorsement
from goatherd.identity.session import OwnedSession, Session
from goatherd.identity.settings_json import from_settings, to_settings
from goatherd.identity.succession import TrustCheckpoint, check_generation, verify_succession, verify_successor
from goatherd.identity.transitions import (
    activate_rotation,
    cancel_rotation,
    create_document,
    finalize_rotation,
    mark_verified,
    prepare_rotation,
    prune_roots,
    record_frozen_commits,
    record_reissued_sessions,
    record_retirement,
    revoke_root,
    roll_back_rotation,
    with_phase,
)

__all__ = [
    "Endorsement",
    "Freeze",
    "HistoryEntry",
    "IdentityDocument",
    "OwnedSession",
    "Phase",
    "Revocation",
    "RotationRecord",
    "Session",
    "TrustCheckpoint",
    "activate_rotation",
    "cancel_rotation",
    "check_generation",
    "create_document",
    "days_left",
    "decode_document",
    "encode_document",
    "endorse_root",
    "finalize_rotation",
    "find_warnings",
    "from_settings",
    "mark_verified",
    "prepare_rotation",
    "prune_roots",
    "record_frozen_commits",
    "record_reissued_sessions",
    "record_retirement",
    "redact_document",
    "revoke_root",
    "roll_back_rotation",
    "to_settings",
    "verify_endorsement",
    "verify_succession",
    "verify_successor",
    "with_phase",
]
