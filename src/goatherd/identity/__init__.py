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
from goatherd.identity.redaction import days_left, notes, redacted
from goatherd.identity.revocations import Freeze, Revocation
from goatherd.identity.root_signatures import Endorsement, endorse, verify_endorsement
from goatherd.identity.session import OwnedSession, Session
from goatherd.identity.settings_json import from_settings, to_settings
from goatherd.identity.succession import Seen, check_generation, verify_succession, verify_successor
from goatherd.identity.transitions import (
    activate,
    cancel,
    close_freeze,
    create,
    finalize,
    prepare,
    prune,
    retire,
    revoke,
    roll_back,
    settle,
    verified,
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
    "Seen",
    "Session",
    "activate",
    "cancel",
    "check_generation",
    "close_freeze",
    "create",
    "days_left",
    "decode_document",
    "encode_document",
    "endorse",
    "finalize",
    "from_settings",
    "notes",
    "prepare",
    "prune",
    "redacted",
    "retire",
    "revoke",
    "roll_back",
    "settle",
    "to_settings",
    "verified",
    "verify_endorsement",
    "verify_succession",
    "verify_successor",
    "with_phase",
]
