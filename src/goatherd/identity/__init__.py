"""The identity of a cluster: its root keys ("roots"), and the document in a secret store that holds them.

Pure: the modules do no I/O, and get the time as an argument.

- `session`: sessions, and signatures of data, requests and commits.
- `request_binding`: the server, path and body that a signed request is for.
- `strict_json`: the JSON of the document, read strictly.
- `root_signatures`: endorsements of one root by another, and the signature over the document.
- `revocations`: revoked roots, their proofs, and the lists of their commits that stay valid (frozen commits).
- `lineage`: digests of a document's predecessors.
- `document`: `IdentityDocument`, its checks, and its JSON.
- `redaction`: the parts of a document that may be shown.
- `session_commits`: the commits that introduce sessions.
- `succession`: which document may replace which.
- `transitions`: how a rotation or a revocation changes the document, and which roots may be removed from it.
- `introductions_for_clients`: which introductions of roots are sent to a client.
- `key_age`: how soon the current root expires, and when other roots last signed.
- `recorded_times`: finds and corrects timestamps in a document that are in the future.
- `settings_json`: GoatDB's ``settings.json``.
"""

from typing import TYPE_CHECKING

from goatherd.lazy_imports import lazy_attributes

if TYPE_CHECKING:
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

__getattr__ = lazy_attributes(
    __name__,
    Endorsement="root_signatures",
    Freeze="revocations",
    HistoryEntry="document",
    IdentityDocument="document",
    OwnedSession="session",
    Phase="document",
    Revocation="revocations",
    RotationRecord="document",
    Session="session",
    TrustCheckpoint="succession",
    activate_rotation="transitions",
    cancel_rotation="transitions",
    check_generation="succession",
    create_document="transitions",
    days_left="redaction",
    decode_document="document",
    encode_document="document",
    endorse_root="root_signatures",
    finalize_rotation="transitions",
    find_warnings="redaction",
    from_settings="settings_json",
    mark_verified="transitions",
    prepare_rotation="transitions",
    prune_roots="transitions",
    record_frozen_commits="transitions",
    record_reissued_sessions="transitions",
    record_retirement="transitions",
    redact_document="redaction",
    revoke_root="transitions",
    roll_back_rotation="transitions",
    to_settings="settings_json",
    verify_endorsement="root_signatures",
    verify_succession="succession",
    verify_successor="succession",
    with_phase="transitions",
)
