"""The identity document, which lists a cluster's roots: its type, its checks and its JSON.

`transitions` changes a document; `succession` decides which document may replace another. User sessions are in
``settings.json`` only (`settings_json`). Pure. A document is created only if all its checks pass. No error, ``repr`` or
redaction holds key material; errors name positions (``roots[1]``) and quote nothing. Unchanged members are written back
byte for byte.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Final

from goatherd.errors import (
    DecodeError,
    KeyMismatchError,
    MalformedIdentityError,
    NewerKeyError,
    SuccessionError,
)
from goatherd.identity.lineage import Lineage
from goatherd.identity.revocations import Freeze, Revocation, revocation_json, verify_proof
from goatherd.identity.root_signatures import (
    MEMBER,
    DocumentSignature,
    Endorsement,
    is_signed_by,
    sign_tree,
    verify_endorsement,
)
from goatherd.identity.session import ROOT_OWNER, OwnedSession, Session
from goatherd.identity.strict_json import all_strings, holds_private_key, parse_object, to_pretty_json
from goatherd.times import iso, read_iso

VERSION: Final = 2
SIZE_WARNING_BYTES: Final = 10 * 1024
SIZE_LIMIT_BYTES: Final = 64 * 1024
# 63, since a private key's text has 64 characters: it can never be taken for an id and then be shown.
_ID = re.compile(r"[A-Za-z0-9._~-]{1,63}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_ISO = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,3})?Z")
_MAX_MS = 253_402_300_799_999
_MAX_TEXT = 500
_SAFE_INTEGER = 2**53 - 1


class Phase(StrEnum):
    """The progress of a rotation. `STEADY` means that no rotation is in progress, and is never recorded."""

    STEADY = "steady"
    PREPARED = "prepared"
    PUBLISHED = "published"
    ACTIVATED = "activated"
    VERIFIED = "verified"


@dataclass(frozen=True, slots=True, kw_only=True)
class RotationRecord:
    """The rotation in progress, with what another process needs to resume, cancel or roll it back.

    Attributes:
        id: Identifies the rotation.
        phase: The last phase that was reached.
        from_id: Id of the root that is replaced.
        to_id: Id of the next root.
        started_at: Milliseconds since 1970.
        started_by: The user and machine that started it; human-readable.
        phase_at: When the phase began, in milliseconds since 1970.
        stable_version: The store's version id of the document to roll back to.
        is_restore: Whether `to_id` is a previous root that is restored, and not a new one.
        extra: Members that this version of Goatherd does not know.
    """

    id: str
    phase: Phase
    from_id: str
    to_id: str
    started_at: int
    started_by: str
    phase_at: int
    stable_version: str | None = None
    is_restore: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryEntry:
    """One past event of the identity, such as ``rotated``. `at` is in milliseconds since 1970.

    `rotation_id` names the rotation that the event ended; entries of older versions of Goatherd have none. `extra`
    holds members that this version does not know.
    """

    at: int
    event: str
    from_id: str | None = None
    to_id: str | None = None
    reason: str | None = None
    rotation_id: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False, hash=False)


class _DecodedFrom:
    """The JSON from which a document was decoded, to write unchanged parts back as read. Its repr hides the keys."""

    __slots__ = ("decoded", "tree")

    def __init__(self, tree: Mapping[str, Any], decoded: Mapping[str, Any]) -> None:
        self.tree = tree
        self.decoded = decoded

    def __repr__(self) -> str:
        return "…"

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("an identity document cannot be pickled, because it holds private keys")


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityDocument:
    """The identity of a cluster. Only `decode_document`, `settings_json.from_settings` and `transitions` create it.

    Attributes:
        version: The version of the format.
        generation: Rises by one with every write; 0 if the JSON has none.
        current: The current root, with its private key.
        roots: The public halves of all trusted roots, including the current one.
        next: The next root, with its private key; set only during a rotation before activation.
        last_updated: Milliseconds since 1970.
        rotated_from: Id of the previous root.
        rotated_at: When the current root replaced it, in milliseconds since 1970.
        rotation: The rotation in progress, or None.
        endorsements: The signatures by which one root endorses another, oldest first.
        revoked: The revoked roots.
        history: Past events, oldest first. The number is limited, except for one retirement record for each of `roots`.
        pruned: Number of previous roots that have left the document; ``/sys/sessions`` introduces them.
        lineage: The digests of the latest predecessors of the document; None if the JSON names none.
        signature: The current root's signature over the document; None in a document that Goatherd 0.1.0 wrote. Not
            compared, because two signatures over one document differ.
        extra: Top-level members that this version of Goatherd does not know.
    """

    version: int = VERSION
    generation: int
    current: OwnedSession
    roots: tuple[Session, ...]
    next: OwnedSession | None = None
    last_updated: int | None = None
    rotated_from: str | None = None
    rotated_at: int | None = None
    rotation: RotationRecord | None = None
    endorsements: tuple[Endorsement, ...] = ()
    revoked: tuple[Revocation, ...] = ()
    history: tuple[HistoryEntry, ...] = ()
    pruned: int = 0
    lineage: Lineage | None = None
    signature: DocumentSignature | None = field(default=None, compare=False)
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False)
    source: _DecodedFrom | None = field(default=None, repr=False, compare=False)

    @property
    def phase(self) -> Phase | None:
        """The phase of the rotation in progress, or None when the document is steady."""
        return self.rotation.phase if self.rotation else None

    @property
    def revoked_ids(self) -> frozenset[str]:
        return frozenset(revocation.id for revocation in self.revoked)

    @property
    def retired_ids(self) -> frozenset[str]:
        """The ids of roots that are recorded as retired: no version in the store holds their private keys any more."""
        return frozenset(entry.from_id for entry in self.history if entry.event == "retired" and entry.from_id)

    @property
    def is_signed(self) -> bool:
        """Whether the current root has signed the document in its present state."""
        if self.signature is None:
            return False
        tree = document_tree(self)
        return is_signed_by(tree, self.signature, by=self.current.session, generation=self.generation)

    def find_root(self, session_id: str) -> Session | None:
        """Return the root with this id, revoked or not."""
        return next((root for root in self.roots if root.id == session_id), None)

    def check(self) -> None:
        """Check the whole document.

        Raises:
            MalformedIdentityError: The document breaks a rule; the message names the rule.
            KeyMismatchError: A private key does not belong to the public key next to it.
        """
        _check_document(self)


# --- decoding ---------------------------------------------------------------------------------------------------------


def decode_document(raw: bytes | str) -> IdentityDocument:
    """Read and check an identity document.

    Raises:
        MalformedIdentityError: The document breaks a rule; the message names the rule and the position.
        KeyMismatchError: A private key does not belong to the public key next to it.
    """
    if not isinstance(raw, bytes | str):
        raise TypeError(
            f"an identity document must be bytes or a string, not {type(raw).__name__} (reveal() gives its bytes)"
        )
    return document_from_tree(parse_object(raw, max_bytes=SIZE_LIMIT_BYTES))


def document_from_tree(tree: Mapping[str, Any]) -> IdentityDocument:
    """Check an identity document that is already parsed, and return it; see `decode_document`."""
    if "trustedSessions" in tree:
        raise MalformedIdentityError(
            "user sessions (trustedSessions) do not belong in an identity document",
            hint="Make a document of a settings.json with `goatherd migrate`.",
        )
    if tree.get("version") != VERSION or isinstance(tree.get("version"), bool):
        raise MalformedIdentityError(f"version is not {VERSION}")
    _refuse_private_keys(tree)
    decoded: dict[str, Any] = {"version": VERSION}
    for name, (attribute, reader) in _MEMBERS.items():
        value = tree.get(name)
        if value is not None:
            decoded[attribute] = reader(value, name)
        elif name in _REQUIRED:
            raise MalformedIdentityError(f"{name} is missing")
    decoded.setdefault("generation", 0)
    decoded["extra"] = {name: value for name, value in tree.items() if name not in _MEMBERS and name != "version"}
    document = IdentityDocument(**decoded, source=_DecodedFrom(tree, decoded))
    document.check()
    _refuse_copies(document, tree)
    return document


def _refuse_private_keys(tree: Mapping[str, Any]) -> None:
    for name, value in tree.items():
        public = value
        if name in ("currentSession", "nextSession") and isinstance(value, Mapping):
            public = {member: inner for member, inner in value.items() if member != "privateKey"}
            jwk = value.get("privateKey")
            if isinstance(jwk, Mapping):  # another key may hide beside its `d`
                public["jwk"] = {member: inner for member, inner in jwk.items() if member != "d"}
        # SECURITY: what is here goes to GoatDB servers, which publish it (tests/unit/identity/test_document.py).
        if holds_private_key(public) or holds_private_key(name) or name == "privateKey":
            where = name if name in _MEMBERS else "a member that this version does not know"
            raise MalformedIdentityError(f"{where} holds a private key, which is not allowed there")


def _refuse_copies(document: IdentityDocument, tree: Mapping[str, Any]) -> None:
    for owned, name in ((document.current, "currentSession"), (document.next, "nextSession")):
        if owned is not None:
            secret = tree[name]["privateKey"]["d"]
            if sum(text.count(secret) for text in all_strings(tree)) != 1:
                raise MalformedIdentityError(f"the private key of {name} is also somewhere else in the document")


def read_text(value: Any, where: str, *, limit: int = _MAX_TEXT) -> str:
    if not isinstance(value, str) or len(value) > limit:
        raise MalformedIdentityError(f"{where} is not a string of at most {limit} characters")
    return value


def read_id(value: Any, where: str) -> str:
    if not isinstance(value, str) or not _ID.fullmatch(value):
        raise MalformedIdentityError(f"{where} is not an id")
    return value


def read_session(value: Any, where: str, *, is_key_checked: bool = True) -> Session:
    """Read the public half of a session and check it; with `is_key_checked`, also that the key is a point on the curve.

    Raises:
        NewerKeyError: The key has a format of a newer GoatDB.
        MalformedIdentityError: A member is missing or has the wrong type.
    """
    if not isinstance(value, Mapping):
        raise MalformedIdentityError(f"{where} is not an object")
    key = value.get("publicKey")
    if isinstance(key, Mapping) and key.get("kty") == "OKP":
        raise NewerKeyError(
            f"{where}.publicKey is an Ed25519 key: a newer GoatDB's key; Goatherd supports GoatDB 0.5.1, whose keys are"
            " P-384"
        )
    read_id(value.get("id"), f"{where}.id")
    if value.get("owner") is not None:
        read_text(value["owner"], f"{where}.owner")
    expiration = value.get("expiration")
    if isinstance(expiration, bool) or not isinstance(expiration, int | float) or not 0 < expiration <= _MAX_MS:
        raise MalformedIdentityError(f"{where}.expiration is not a date")
    session = _session_or_none(value, is_key_checked)
    if session is None:
        raise MalformedIdentityError(f"{where}.publicKey is not a JWK with a point of P-384")
    if session.expiration_ms > _MAX_MS:
        raise MalformedIdentityError(f"{where}.expiration is not a date")
    return session


def _session_or_none(value: Mapping[str, Any], is_key_checked: bool) -> Session | None:
    try:
        session = Session.from_json(value)
        if is_key_checked:
            session.public_key.check()
    except DecodeError:
        return None
    return session


def read_owned(value: Any, where: str) -> OwnedSession:
    """Read a session with its private key.

    Raises:
        MalformedIdentityError: As `read_session`, or the private key is missing or invalid.
        KeyMismatchError: The private key does not belong to the public one.
    """
    read_session(value, where)
    try:
        owned, mismatch = OwnedSession.from_json(value), False
    except KeyMismatchError:
        owned, mismatch = None, True
    except DecodeError:
        owned, mismatch = None, False
    if mismatch:
        raise KeyMismatchError(f"{where}: the private key does not belong to the public key")
    if owned is None:
        raise MalformedIdentityError(f"{where}.privateKey is missing or not the JWK of a P-384 private key")
    return owned


def _read_generation(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _SAFE_INTEGER:
        raise MalformedIdentityError(f"{where} is not a non-negative integer")
    return value


def _read_time(value: Any, where: str) -> int:
    if isinstance(value, str) and _ISO.fullmatch(value):
        with contextlib.suppress(ValueError):
            return read_iso(value)
    raise MalformedIdentityError(f"{where} is not a timestamp as JavaScript writes it")


def _read_list(value: Any, where: str) -> list[tuple[Any, str]]:
    if not isinstance(value, list):
        raise MalformedIdentityError(f"{where} is not a list")
    return [(item, f"{where}[{index}]") for index, item in enumerate(value)]


def _read_object(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise MalformedIdentityError(f"{where} is not an object")
    return value


def _read_roots(value: Any, where: str) -> tuple[Session, ...]:
    return tuple(read_session(item, position) for item, position in _read_list(value, where))


def _read_rotation(value: Any, where: str) -> RotationRecord:
    member = _read_object(value, where)
    phase = member.get("phase")
    recorded = [one for one in Phase if one is not Phase.STEADY]
    if phase not in recorded:
        raise MalformedIdentityError(f"{where}.phase is none of {', '.join(recorded)}")
    started_at = _read_time(member.get("startedAt"), f"{where}.startedAt")
    stable = member.get("stableVersion")
    restores = member.get("restores", False)
    if not isinstance(restores, bool):
        raise MalformedIdentityError(f"{where}.restores is not true or false")
    return RotationRecord(
        id=read_id(member.get("id"), f"{where}.id"),
        phase=Phase(phase),
        from_id=read_id(member.get("from"), f"{where}.from"),
        to_id=read_id(member.get("to"), f"{where}.to"),
        started_at=started_at,
        started_by=read_text(member.get("startedBy", ""), f"{where}.startedBy"),
        phase_at=_read_time(member["phaseAt"], f"{where}.phaseAt") if "phaseAt" in member else started_at,
        stable_version=None if stable is None else read_text(stable, f"{where}.stableVersion"),
        is_restore=restores,
        extra=_unknown_members(member, *_ROTATION_MEMBERS),
    )


def _read_endorsements(value: Any, where: str) -> tuple[Endorsement, ...]:
    result = []
    for item, position in _read_list(value, where):
        member = _read_object(item, position)
        by, of = read_id(member.get("by"), f"{position}.by"), read_id(member.get("of"), f"{position}.of")
        signature = read_text(member.get("signature"), f"{position}.signature", limit=4096)
        extra = _unknown_members(member, "by", "of", "signature")
        result.append(Endorsement(by=by, of=of, signature=signature, extra=extra))
    return tuple(result)


def _unknown_members(member: Mapping[str, Any], *known: str) -> Mapping[str, Any]:
    """Return the members that this version does not know, so that they are written back unchanged."""
    return {name: value for name, value in member.items() if name not in known}


def _read_signature(value: Any, where: str) -> DocumentSignature:
    member = _read_object(value, where)
    return DocumentSignature(
        by=read_id(member.get("by"), f"{where}.by"),
        generation=_read_generation(member.get("generation"), f"{where}.generation"),
        signature=read_text(member.get("signature"), f"{where}.signature", limit=4096),
        extra=_unknown_members(member, "by", "generation", "signature"),
    )


def _read_revoked(value: Any, where: str) -> tuple[Revocation, ...]:
    result = []
    for item, position in _read_list(value, where):
        member = _read_object(item, position)
        successor, proof, freeze = (member.get(name) for name in ("successor", "proof", "freeze"))
        result.append(
            Revocation(
                id=read_id(member.get("id"), f"{position}.id"),
                at=_read_time(member.get("at"), f"{position}.at"),
                reason=read_text(member.get("reason", ""), f"{position}.reason"),
                successor=None if successor is None else read_id(successor, f"{position}.successor"),
                proof=None if proof is None else read_text(proof, f"{position}.proof", limit=4096),
                freeze=None if freeze is None else _read_freeze(freeze, f"{position}.freeze"),
                settled_at=_read_time(member["settledAt"], f"{position}.settledAt") if "settledAt" in member else None,
                extra=_unknown_members(member, "id", "at", "reason", "successor", "proof", "freeze", "settledAt"),
            )
        )
    return tuple(result)


def _read_freeze(value: Any, where: str) -> Freeze:
    member = _read_object(value, where)
    digest = member.get("digest")
    if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
        raise MalformedIdentityError(f"{where}.digest is not a SHA-256")
    commits = _read_generation(member.get("commits"), f"{where}.commits")
    at, extra = _read_time(member.get("at"), f"{where}.at"), _unknown_members(member, "at", "commits", "digest")
    return Freeze(at=at, commits=commits, digest=digest, extra=extra)


def _read_history(value: Any, where: str) -> tuple[HistoryEntry, ...]:
    result = []
    for item, position in _read_list(value, where):
        member = _read_object(item, position)
        result.append(
            HistoryEntry(
                at=_read_time(member.get("at"), f"{position}.at"),
                event=read_id(member.get("event"), f"{position}.event"),
                from_id=None if member.get("from") is None else read_id(member["from"], f"{position}.from"),
                to_id=None if member.get("to") is None else read_id(member["to"], f"{position}.to"),
                reason=None if member.get("reason") is None else read_text(member["reason"], f"{position}.reason"),
                rotation_id=None
                if member.get("rotation") is None
                else read_id(member["rotation"], f"{position}.rotation"),
                extra=_unknown_members(member, "at", "event", "from", "to", "reason", "rotation"),
            )
        )
    return tuple(result)


_REQUIRED = ("currentSession", "roots")
_TIMES = frozenset({"last_updated", "rotated_at"})
_ROTATION_MEMBERS = frozenset(
    {"id", "phase", "from", "to", "startedAt", "startedBy", "phaseAt", "stableVersion", "restores"}
)
_MEMBERS: Final[dict[str, tuple[str, Any]]] = {
    "generation": ("generation", _read_generation),
    "currentSession": ("current", read_owned),
    "roots": ("roots", _read_roots),
    "lastUpdated": ("last_updated", _read_time),
    "rotatedFrom": ("rotated_from", read_id),
    "rotatedAt": ("rotated_at", _read_time),
    "nextSession": ("next", read_owned),
    "rotation": ("rotation", _read_rotation),
    "endorsements": ("endorsements", _read_endorsements),
    "revoked": ("revoked", _read_revoked),
    "history": ("history", _read_history),
    "prunedRoots": ("pruned", _read_generation),
    "predecessors": ("lineage", Lineage.from_json),
    MEMBER: ("signature", _read_signature),
}


# --- checking ---------------------------------------------------------------------------------------------------------


def _check_document(document: IdentityDocument) -> None:
    ids = [root.id for root in document.roots]
    if len(set(ids)) != len(ids):
        raise MalformedIdentityError("two roots have the same id")
    if len({root.public_key for root in document.roots}) != len(ids):
        raise MalformedIdentityError("two roots have the same public key")
    if any(root.owner != ROOT_OWNER for root in document.roots):
        raise MalformedIdentityError("the owner of a root is not root")
    for owned, name in ((document.current, "currentSession"), (document.next, "nextSession")):
        if owned is None:
            continue
        if owned.signer.public_key != owned.session.public_key:
            raise KeyMismatchError(f"{name}: the private key does not belong to the public key")
        # SECURITY: a GoatDB server publishes the private key when its root is not among the roots with the very same
        # expiration (tests/unit/identity/test_document.py).
        if document.find_root(owned.id) != owned.session:
            raise MalformedIdentityError(f"{name} is not among the roots with the same key, owner and expiration")
    if document.current.id in document.revoked_ids:
        raise MalformedIdentityError("currentSession is revoked")
    if len(document.revoked_ids) != len(document.revoked):
        raise MalformedIdentityError("a session is revoked twice")
    _check_rotation(document)
    _check_endorsements(document)
    _check_proofs(document)


def _check_rotation(document: IdentityDocument) -> None:
    rotation, current, following = document.rotation, document.current.id, document.next
    if rotation is None:
        if following is not None:
            raise MalformedIdentityError("there is a nextSession but no rotation")
        return
    if rotation.from_id == rotation.to_id:
        raise MalformedIdentityError("the rotation leads from a root to itself")
    if document.find_root(rotation.from_id) is None:
        raise MalformedIdentityError("the rotation's from is not among the roots")
    if rotation.phase in (Phase.PREPARED, Phase.PUBLISHED):
        if following is None:
            raise MalformedIdentityError(f"the rotation is {rotation.phase} but there is no nextSession")
        if rotation.from_id != current or rotation.to_id != following.id:
            raise MalformedIdentityError("the rotation does not lead from currentSession to nextSession")
        if following.id in document.revoked_ids:
            raise MalformedIdentityError("nextSession is revoked")
    else:
        if following is not None:
            raise MalformedIdentityError(f"the rotation is {rotation.phase} but there still is a nextSession")
        if rotation.to_id != current:
            raise MalformedIdentityError("the rotation does not lead to currentSession")


def _check_endorsements(document: IdentityDocument) -> None:
    broken = False
    for index, endorsement in enumerate(document.endorsements):
        by, of = document.find_root(endorsement.by), document.find_root(endorsement.of)
        if by is None or of is None:
            raise MalformedIdentityError(f"endorsements[{index}] names a session that is not among the roots")
        try:
            verify_endorsement(endorsement, by=by, of=of)
        except SuccessionError:
            broken = True
        if broken:
            raise MalformedIdentityError(f"endorsements[{index}] does not verify")


def _check_proofs(document: IdentityDocument) -> None:
    for index, revocation in enumerate(document.revoked):
        if revocation.successor is None and revocation.proof is None:
            continue
        revoked, successor = document.find_root(revocation.id), document.find_root(revocation.successor or "")
        try:
            if revoked is None or successor is None:
                raise SuccessionError("a session that is not among the roots")
            verify_proof(revocation, revoked=revoked, successor=successor)
        except SuccessionError:
            raise MalformedIdentityError(f"the proof of revoked[{index}] does not verify") from None


# --- encoding ---------------------------------------------------------------------------------------------------------


def encode_document(document: IdentityDocument) -> bytes:
    """Return the document's JSON, which a GoatDB server also accepts as its ``settings.json``.

    Parts that have not changed since `decode_document` are written as they were read, unknown members included.

    Raises:
        MalformedIdentityError: The JSON would be larger than `SIZE_LIMIT_BYTES`.
        TypeError: A key is in a KMS and cannot be exported.
    """
    raw = to_pretty_json(document_tree(document))
    if len(raw) > SIZE_LIMIT_BYTES:
        raise MalformedIdentityError(f"the identity has {len(raw)} bytes, more than {SIZE_LIMIT_BYTES}")
    return raw


def document_digest(document: IdentityDocument) -> str:
    """Return the SHA-256, hexadecimal, of the document's JSON, which identifies the document.

    SECURITY: the JSON holds a private key of 384 random bits, so that the digest does not reveal it.
    """
    return hashlib.sha256(encode_document(document)).hexdigest()


def source_digest(document: IdentityDocument) -> str:
    """Return the digest of the JSON from which the document was decoded, even if the document was changed since."""
    if document.source is None:
        return document_digest(document)
    return hashlib.sha256(to_pretty_json(document.source.tree)).hexdigest()


def document_tree(document: IdentityDocument) -> dict[str, Any]:
    """Return the document as plain JSON values, private keys included."""
    tree: Mapping[str, Any] = document.source.tree if document.source else {}
    decoded: Mapping[str, Any] = document.source.decoded if document.source else {}
    sessions = _OriginalSessions(tree)
    model: dict[str, Any] = {"version": document.version}
    for name, (attribute, _) in _MEMBERS.items():
        value = getattr(document, attribute)
        if name in tree and (value == decoded.get(attribute) or (tree[name] in (None, []) and value in (None, ()))):
            model[name] = tree[name]
        elif value not in (None, ()) and (value or name != "prunedRoots"):
            model[name] = iso(value) if attribute in _TIMES else _encode_member(value, sessions)
    if "generation" not in tree and document.source and not document.generation:
        del model["generation"]
    model.update(document.extra)
    order = [name for name in tree if name in model]
    return {name: model[name] for name in [*order, *(name for name in model if name not in tree)]}


class _OriginalSessions:
    """The sessions as they were read, by id, so that their unknown members are written back."""

    def __init__(self, tree: Mapping[str, Any]) -> None:
        owned = [tree[name] for name in ("currentSession", "nextSession") if tree.get(name) is not None]
        self._owned: dict[str, Mapping[str, Any]] = {member["id"]: member for member in owned}
        self._public: dict[str, Mapping[str, Any]] = {member["id"]: member for member in tree.get("roots") or ()}
        for member in owned:
            public = {name: value for name, value in member.items() if name != "privateKey"}
            self._public.setdefault(member["id"], public)

    def encode_owned(self, owned: OwnedSession) -> Mapping[str, Any]:
        kept = self._owned.get(owned.id)
        if kept is not None and Session.from_json(kept) == owned.session:
            return kept
        return {**owned.to_secret_json(), **owned.session.extra}

    def encode_public(self, session: Session) -> Mapping[str, Any]:
        kept = self._public.get(session.id)
        if kept is not None and Session.from_json(kept) == session:
            return kept
        return {**session.to_json(), **session.extra}


def _encode_member(value: Any, sessions: _OriginalSessions) -> Any:
    if isinstance(value, OwnedSession):
        return sessions.encode_owned(value)
    if isinstance(value, Session):
        return sessions.encode_public(value)
    if isinstance(value, tuple):
        return [_encode_member(item, sessions) for item in value]
    if isinstance(value, Endorsement | DocumentSignature):
        return value.to_json()
    if isinstance(value, RotationRecord):
        return rotation_json(value)
    if isinstance(value, Revocation):
        return revocation_json(value)
    if isinstance(value, HistoryEntry):
        return history_json(value)
    if isinstance(value, Lineage):
        return value.to_json()
    return value


def history_json(entry: HistoryEntry) -> dict[str, Any]:
    members = {
        "event": entry.event,
        "from": entry.from_id,
        "to": entry.to_id,
        "reason": entry.reason,
        "rotation": entry.rotation_id,
    }
    return {"at": iso(entry.at), **{name: value for name, value in members.items() if value is not None}, **entry.extra}


def rotation_json(record: RotationRecord) -> dict[str, Any]:
    encoded: dict[str, Any] = {
        "id": record.id,
        "phase": record.phase.value,
        "from": record.from_id,
        "to": record.to_id,
        "startedAt": iso(record.started_at),
        "startedBy": record.started_by,
        "phaseAt": iso(record.phase_at),
    }
    if record.stable_version is not None:
        encoded["stableVersion"] = record.stable_version
    if record.is_restore:
        encoded["restores"] = True
    return {**encoded, **record.extra}


def sign_document(document: IdentityDocument, now_ms: int) -> IdentityDocument:
    """Return the document with its current root's signature over the whole document.

    Args:
        document: The document to write, complete except for its signature.
        now_ms: Milliseconds since 1970.
    """
    tree = document_tree(document)
    signature = sign_tree(tree, by=document.current, generation=document.generation, now_ms=now_ms)
    return replace(document, signature=signature)


def normalize_document(document: IdentityDocument) -> IdentityDocument:
    """Encode a document and decode it again. The result is fully checked and keeps none of the earlier JSON."""
    return decode_document(encode_document(document))
