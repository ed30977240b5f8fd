"""The identity document, which lists a cluster's roots: its type, its checks and its JSON.

`transitions` changes a document; `succession` decides which document may replace another. Pure.

Rules: an `IdentityDocument` exists only if all checks have passed. It lists no user sessions; GoatDB's
``settings.json``, to which `settings_json` converts it, can list them. No error, no ``repr`` and no output of
`redaction` (the parts that may be shown) holds key material; errors name positions (``roots[1]``) and quote nothing.
Members that were not changed are written back byte for byte.
"""

# ruff: noqa: RUF009 (`json_member` is `dataclasses.field` with its metadata in a fixed shape)

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Final

from goatherd.errors import (
    DecodeError,
    IdentityError,
    KeyMismatchError,
    MalformedIdentityError,
    NewerKeyError,
    SuccessionError,
)
from goatherd.identity.anchor import (
    AnchorChange,
    AnchoredTrust,
    verify_change,
)
from goatherd.identity.json_members import (
    JSONObject,
    json_member,
    read_each,
    read_flag,
    read_id,
    read_ids,
    read_number,
    read_object,
    read_text,
    read_time,
)
from goatherd.identity.lineage import Lineage
from goatherd.identity.remote_key import RemoteKey, Sign
from goatherd.identity.revocations import BESIDE, Revocation, verify_proof
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
from goatherd.times import iso

VERSION: Final = 2
SIZE_LIMIT_BYTES: Final = 64 * 1024
_MAX_MS = 253_402_300_799_999


class Phase(StrEnum):
    """Phase of a root rotation. `STEADY` means that no rotation is in progress, and is never recorded."""

    STEADY = "steady"
    PREPARED = "prepared"
    PUBLISHED = "published"
    ACTIVATED = "activated"
    VERIFIED = "verified"


def _read_phase(value: Any, where: str) -> Phase:
    recorded = [one for one in Phase if one is not Phase.STEADY]
    if value not in recorded:
        raise MalformedIdentityError(f"{where} must be one of {', '.join(recorded)}")
    return Phase(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class RotationRecord(JSONObject):
    """The rotation in progress, with all that another process needs to resume, cancel or roll back this rotation.

    Attributes:
        id: Id of the rotation.
        phase: The last phase that the rotation has reached.
        from_id: Id of the root that is replaced.
        to_id: Id of the next root.
        started_at: When the rotation was started, in milliseconds since 1970.
        started_by: The user and machine that started the rotation; human-readable.
        phase_at: When `phase` began, in milliseconds since 1970.
        stable_version: The version id, in the store, of the identity document to roll back to.
        is_restore: Whether `to_id` is a previous root that is restored, and not a new one.
        anchor: Id of the new anchor (the root that says which roots may sign), which replaces the present one at the
            activation; None if the rotation brings no new anchor.
        removes_anchor: Whether the activation removes the anchor and brings no new one.
    """

    id: str = json_member("id", read_id)
    phase: Phase = json_member("phase", _read_phase, str)
    from_id: str = json_member("from", read_id)
    to_id: str = json_member("to", read_id)
    started_at: int = json_member("startedAt", read_time, iso)
    started_by: str = json_member("startedBy", read_text, default="")
    phase_at: int = json_member("phaseAt", read_time, iso)
    stable_version: str | None = json_member("stableVersion", read_text, default=None, is_nullable=True)
    is_restore: bool = json_member("restores", read_flag, default=False)
    anchor: str | None = json_member("anchor", read_id, default=None)
    removes_anchor: bool = json_member("removesAnchor", read_flag, default=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryEntry(JSONObject):
    """One past event in the history of an identity document, such as ``rotated``. `at` is in milliseconds since 1970.

    `rotation_id` names the rotation that the event ended, and `started_by` the user and machine that had started it.
    """

    at: int = json_member("at", read_time, iso)
    event: str = json_member("event", read_id)
    from_id: str | None = json_member("from", read_id, default=None, is_nullable=True)
    to_id: str | None = json_member("to", read_id, default=None, is_nullable=True)
    reason: str | None = json_member("reason", read_text, default=None, is_nullable=True)
    rotation_id: str | None = json_member("rotation", read_id, default=None, is_nullable=True)
    started_by: str | None = json_member("startedBy", read_text, default=None, is_nullable=True)


class _DecodedFrom:
    """The JSON from which an identity document was decoded, so that unchanged parts are written back as they were read.

    The ``repr`` hides the private keys.
    """

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
    """The identity document of a cluster: its root sessions, their endorsements, and the rotation in progress.

    Only `decode_document`, `settings_json.from_settings` and `transitions` create it.

    Attributes:
        version: The version of the document's format.
        generation: Rises by one with every write; 0 if the JSON has none.
        current: The current root, with its private key; in direct mode that key is in an HSM or a KMS.
        roots: The public halves of all listed roots, including the current one, the anchor and revoked roots.
        anchor: Id of the root that alone says which roots may sign, and whose key is in an HSM or a KMS; None if the
            current root itself endorses the next one.
        anchor_changes: The signed statements by which the role of the anchor passed to another root, oldest first; only
            the latest are kept.
        former_anchors: The ids of the anchors before the present one, oldest first, back to the last time at which the
            identity had no anchor; they may have been removed from `roots`.
        next: The next root, with its private key; set only during a rotation before activation.
        last_updated: When the document was last written, in milliseconds since 1970.
        rotated_from: Id of the previous root.
        rotated_at: When the current root replaced the previous one, in milliseconds since 1970.
        rotation: The rotation in progress, or None.
        endorsements: The signatures by which one root endorses another, oldest first.
        revoked: The revoked roots.
        history: Past events, oldest first. Only the latest are kept, and one retirement record for each of `roots`.
        pruned: Number of previous roots that were removed from the document; commits in ``/sys/sessions`` introduce
            them.
        lineage: The digests of the document's latest predecessors (earlier generations); None if the JSON names none.
        signature: The current root's signature over the document; None in a document that Goatherd 0.1.0 wrote. Not
            compared, because two signatures over one document differ.
        extra: Top-level members that this version of Goatherd does not know.
    """

    version: int = VERSION
    generation: int
    current: OwnedSession
    roots: tuple[Session, ...]
    anchor: str | None = None
    anchor_changes: tuple[AnchorChange, ...] = ()
    former_anchors: tuple[str, ...] = ()
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
        """The phase of the rotation that the identity document records as in progress; None if there is no rotation."""
        return self.rotation.phase if self.rotation else None

    @property
    def revoked_ids(self) -> frozenset[str]:
        return frozenset(revocation.id for revocation in self.revoked)

    @property
    def unfinished_revocations(self) -> tuple[Revocation, ...]:
        """The revocations that have not reissued every session of the revoked root yet."""
        return tuple(
            one
            for one in self.revoked
            # Without a successor's proof it is a root that lay beside a stolen one and has signed nothing.
            if (one.proof is not None or (self.anchor is not None and not one.reason.startswith(BESIDE)))
            and one.settled_at is None
        )

    @property
    def anchor_session(self) -> Session | None:
        """The anchor's root session; None if the identity has no anchor."""
        return None if self.anchor is None else self.find_root(self.anchor)

    @property
    def is_direct(self) -> bool:
        """Whether the current root is the anchor itself, so that each root signature is made in an HSM or a KMS."""
        return self.anchor is not None and self.anchor == self.current.id

    @property
    def uses_remote_key(self) -> bool:
        """Whether the key of the current or of the next root is in an HSM or a KMS."""
        return self.current.is_remote or (self.next is not None and self.next.is_remote)

    @property
    def next_anchor(self) -> str | None:
        """Id of the anchor after the activation of the rotation in progress; None if the identity has no anchor then.

        The present anchor, if no rotation that changes it is in progress.
        """
        if self.rotation is None or (self.rotation.anchor is None and not self.rotation.removes_anchor):
            return self.anchor
        return self.rotation.anchor

    @property
    def anchor_ids(self) -> frozenset[str]:
        """The ids of the present anchor, the former ones, the one after a rotation, and those that a change names."""
        return self._anchors_by(self.anchor_changes)

    @property
    def introducing_anchor_ids(self) -> frozenset[str]:
        """The ids in `anchor_ids` of anchors whose introductions of roots count.

        The next anchor of a rotation that was rolled back is not among them: of what it has signed, only the roll-back
        counts (`AnchorChange.until`).
        """
        return self._anchors_by(change for change in self.anchor_changes if change.until is None)

    def _anchors_by(self, changes: Iterable[AnchorChange]) -> frozenset[str]:
        found = {one for one in (self.anchor, self.next_anchor) if one is not None} | {*self.former_anchors}
        for change in changes:
            found |= {change.by} if change.to is None else {change.by, change.to}
        return frozenset(found)

    def is_endorsed_to_sign(self, root_id: str, anchor_id: str) -> bool:
        """Return whether an anchor has endorsed a root to sign, as a new working root.

        An endorsement of a root that was trusted before the anchor (`IntroducedBy.is_earlier`) does not count.
        """
        return any(
            one.by == anchor_id and one.of == root_id and one.commit is not None and not one.commit.is_earlier
            for one in self.endorsements
        )

    @property
    def anchored_trust(self) -> AnchoredTrust | None:
        """Which of the identity's roots may introduce other roots; None if the identity has no anchor, and each may."""
        if self.anchor is None and self.next_anchor is None:
            return None
        anchors = self.introducing_anchor_ids
        new = {one.of for one in self.endorsements if one.by in anchors and one.commit and not one.commit.is_earlier}
        earlier = {one.of for one in self.endorsements if one.by in anchors and one.commit and one.commit.is_earlier}
        return AnchoredTrust(anchors, frozenset(new - earlier - anchors))

    @property
    def retired_ids(self) -> frozenset[str]:
        """The ids of roots recorded as retired: no version in the store holds their private keys any more."""
        return frozenset(entry.from_id for entry in self.history if entry.event == "retired" and entry.from_id)

    @property
    def is_signed(self) -> bool:
        """Whether the current root has signed the identity document in its present state."""
        if self.signature is None:
            return False
        tree = document_tree(self)
        return is_signed_by(tree, self.signature, by=self.current.session, generation=self.generation)

    def find_root(self, session_id: str) -> Session | None:
        """Return the root with this id from the identity document, even a revoked one; None if there is none."""
        return next((root for root in self.roots if root.id == session_id), None)

    def check(self) -> None:
        """Check that the identity document follows every rule of its format.

        Raises:
            MalformedIdentityError: The document breaks a rule; the message names the rule.
            KeyMismatchError: A private key does not belong to the public key next to it.
        """
        _check_document(self)


# --- decoding ---------------------------------------------------------------------------------------------------------


def decode_document(raw: bytes | str, sign: Sign | None = None) -> IdentityDocument:
    """Read and check an identity document.

    Args:
        raw: The document.
        sign: Signs as a root whose key is in an HSM or a KMS (direct mode); None if the caller does not sign.

    Raises:
        MalformedIdentityError: The document breaks a rule; the message names the rule and the position.
        KeyMismatchError: A private key does not belong to the public key next to it.
    """
    if not isinstance(raw, bytes | str):
        raise TypeError(
            f"an identity document must be bytes or a string, not {type(raw).__name__}"
            " (SecretBytes.reveal() returns the bytes)"
        )
    return document_from_tree(parse_object(raw, max_bytes=SIZE_LIMIT_BYTES), sign)


def document_from_tree(tree: Mapping[str, Any], sign: Sign | None = None) -> IdentityDocument:
    """Decode and check an identity document that is already parsed into JSON values, as `decode_document` does."""
    if "trustedSessions" in tree:
        raise MalformedIdentityError(
            "user sessions (trustedSessions) do not belong in an identity document",
            hint="`goatherd migrate` makes an identity document from a settings.json.",
        )
    if tree.get("version") != VERSION or isinstance(tree.get("version"), bool):
        raise MalformedIdentityError(f"version is not {VERSION}, the format that this version of Goatherd reads")
    _refuse_private_keys(tree)
    decoded: dict[str, Any] = {"version": VERSION}
    for name, (attribute, reader) in _MEMBERS.items():
        value = tree.get(name)
        if value is not None:
            decoded[attribute] = reader(value, name)
        elif name in _REQUIRED:
            raise MalformedIdentityError(f"{name} is missing")
    decoded.setdefault("generation", 0)
    _connect_signers(decoded, sign)
    decoded["extra"] = {name: value for name, value in tree.items() if name not in _MEMBERS and name != "version"}
    document = IdentityDocument(**decoded, source=_DecodedFrom(tree, decoded))
    document.check()
    _refuse_copies(document, tree)
    return document


def _connect_signers(decoded: dict[str, Any], sign: Sign | None) -> None:
    """Let `sign` sign as a current or next root that has no private key in the document.

    Such a root is the anchor itself, whose key is in an HSM or a KMS (direct mode).

    Raises:
        MalformedIdentityError: A current or next root without a private key is not the anchor.
    """
    rotation = decoded.get("rotation")
    anchors = {decoded.get("anchor"), None if rotation is None else rotation.anchor}
    for attribute, name in (("current", "currentSession"), ("next", "nextSession")):
        owned = decoded.get(attribute)
        if owned is None or not owned.is_remote:
            continue
        if owned.id not in anchors:
            raise MalformedIdentityError(f"{name}.privateKey must be the JWK of a P-384 private key")
        decoded[attribute] = OwnedSession(session=owned.session, signer=RemoteKey(owned.session.public_key, sign))


def _refuse_private_keys(tree: Mapping[str, Any]) -> None:
    for name, value in tree.items():
        public = value
        if name in ("currentSession", "nextSession") and isinstance(value, Mapping):
            public = {member: inner for member, inner in value.items() if member != "privateKey"}
            jwk = value.get("privateKey")
            if isinstance(jwk, Mapping):  # another key may hide beside its `d`
                public["jwk"] = {member: inner for member, inner in jwk.items() if member != "d"}
        # SECURITY: GoatDB servers get all these members, and publish them (tests/unit/identity/test_document.py).
        if holds_private_key(public) or holds_private_key(name) or name == "privateKey":
            where = name if name in _MEMBERS else "a member that this version does not know"
            raise MalformedIdentityError(f"{where} holds a private key, which is not allowed there")


def _refuse_copies(document: IdentityDocument, tree: Mapping[str, Any]) -> None:
    strings = all_strings(tree)
    for owned, name in ((document.current, "currentSession"), (document.next, "nextSession")):
        if owned is not None and not owned.is_remote:
            secret = tree[name]["privateKey"]["d"]
            if sum(text.count(secret) for text in strings) != 1:
                raise MalformedIdentityError(f"the private key of {name} must not be anywhere else in the document")


def read_session(value: Any, where: str, *, is_key_checked: bool = True) -> Session:
    """Read the public half of a session from its JSON object and check it.

    With `is_key_checked`, also check that the public key is a point on the curve.

    Raises:
        NewerKeyError: The key has a format that only a newer GoatDB supports.
        MalformedIdentityError: A member is missing or has the wrong type.
    """
    if not isinstance(value, Mapping):
        raise MalformedIdentityError(f"{where} must be a JSON object")
    key = value.get("publicKey")
    if isinstance(key, Mapping) and key.get("kty") == "OKP":
        raise NewerKeyError(
            f"{where}.publicKey is an Ed25519 key, which is a newer GoatDB's key; Goatherd supports GoatDB 0.5.1, whose"
            " keys are P-384"
        )
    read_id(value.get("id"), f"{where}.id")
    if value.get("owner") is not None:
        read_text(value["owner"], f"{where}.owner")
    expiration = value.get("expiration")
    if isinstance(expiration, bool) or not isinstance(expiration, int | float) or not 0 < expiration <= _MAX_MS:
        raise MalformedIdentityError(f"{where}.expiration must be a time in seconds since 1970")
    session = _session_or_none(value, is_key_checked)
    if session is None:
        raise MalformedIdentityError(f"{where}.publicKey must be the JWK of a P-384 public key")
    if session.expiration_ms > _MAX_MS:
        raise MalformedIdentityError(f"{where}.expiration must be a time in seconds since 1970")
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
    """Read a session with its private key from its JSON object.

    Raises:
        MalformedIdentityError: As for `read_session`; or the private key is missing or invalid.
        KeyMismatchError: The private key does not belong to the public key.
    """
    read_session(value, where)
    problem: IdentityError
    try:
        return OwnedSession.from_json(value)
    except KeyMismatchError:
        problem = KeyMismatchError(f"{where}: the private key does not belong to the public key")
    except DecodeError:
        problem = MalformedIdentityError(f"{where}.privateKey must be the JWK of a P-384 private key")
    raise problem


def _read_signing_root(value: Any, where: str) -> OwnedSession:
    """Read the current or the next root, which signs, from its JSON object.

    In direct mode the root has no private key in the document, and `_connect_signers` sets its signer afterwards.
    """
    if isinstance(value, Mapping) and "privateKey" not in value:
        session = read_session(value, where)
        return OwnedSession(session=session, signer=RemoteKey(session.public_key))
    return read_owned(value, where)


read_roots = read_each(read_session)


def _read_rotation(value: Any, where: str) -> RotationRecord:
    # Without a time of its own, the phase began with the rotation.
    given = read_object(value, where)
    return RotationRecord.from_json({**given, "phaseAt": given.get("phaseAt", given.get("startedAt"))}, where)


def _read_anchor_change(value: Any, where: str) -> AnchorChange:
    change = AnchorChange.from_json(value, where)
    if (change.to is None) == (change.root is None):
        raise MalformedIdentityError(f"{where} must have exactly one of the members `to` and `root`")
    return change


_REQUIRED = ("currentSession", "roots")
_TIMES = frozenset({"last_updated", "rotated_at"})
_MEMBERS: Final[dict[str, tuple[str, Any]]] = {
    "generation": ("generation", read_number),
    "currentSession": ("current", _read_signing_root),
    "roots": ("roots", read_roots),
    "anchor": ("anchor", read_id),
    "anchorChanges": ("anchor_changes", read_each(_read_anchor_change)),
    "formerAnchors": ("former_anchors", read_ids),
    "lastUpdated": ("last_updated", read_time),
    "rotatedFrom": ("rotated_from", read_id),
    "rotatedAt": ("rotated_at", read_time),
    "nextSession": ("next", _read_signing_root),
    "rotation": ("rotation", _read_rotation),
    "endorsements": ("endorsements", read_each(Endorsement.from_json)),
    "revoked": ("revoked", read_each(Revocation.from_json)),
    "history": ("history", read_each(HistoryEntry.from_json)),
    "prunedRoots": ("pruned", read_number),
    "predecessors": ("lineage", Lineage.from_json),
    MEMBER: ("signature", DocumentSignature.from_json),
}


# --- checking ---------------------------------------------------------------------------------------------------------


def _check_document(document: IdentityDocument) -> None:
    ids = [root.id for root in document.roots]
    if len(set(ids)) != len(ids):
        raise MalformedIdentityError("two roots have the same id")
    if len({root.public_key for root in document.roots}) != len(ids):
        raise MalformedIdentityError("two roots have the same public key")
    if any(root.owner != ROOT_OWNER for root in document.roots):
        raise MalformedIdentityError("the owner of a root must be `root`")
    for owned, name in ((document.current, "currentSession"), (document.next, "nextSession")):
        if owned is None:
            continue
        if owned.signer.public_key != owned.session.public_key:
            raise KeyMismatchError(f"{name}: the private key does not belong to the public key")
        # SECURITY: a GoatDB server publishes the private key of its root if `roots` does not contain that root with the
        # same expiration (tests/unit/identity/test_document.py).
        if document.find_root(owned.id) != owned.session:
            raise MalformedIdentityError(
                f"{name} is not among the roots: it must be there with the same key, owner and expiration"
            )
    if document.current.id in document.revoked_ids:
        raise MalformedIdentityError("currentSession is revoked")
    if len(document.revoked_ids) != len(document.revoked):
        raise MalformedIdentityError("a session is revoked twice")
    _check_rotation(document)
    _check_endorsements(document)
    _check_proofs(document)
    _check_anchor(document)


def _check_rotation(document: IdentityDocument) -> None:
    rotation, current, following = document.rotation, document.current.id, document.next
    if rotation is None:
        if following is not None:
            raise MalformedIdentityError("there is a nextSession but no rotation")
        return
    if rotation.from_id == rotation.to_id:
        raise MalformedIdentityError("the rotation leads from a root to itself: members `from` and `to` must differ")
    if document.find_root(rotation.from_id) is None:
        raise MalformedIdentityError("the root that the rotation's member `from` names is not among the roots")
    if rotation.phase in (Phase.PREPARED, Phase.PUBLISHED):
        if following is None:
            raise MalformedIdentityError(f"the rotation is {rotation.phase} but there is no nextSession")
        if rotation.from_id != current or rotation.to_id != following.id:
            raise MalformedIdentityError("the rotation must lead from currentSession to nextSession")
        if following.id in document.revoked_ids:
            raise MalformedIdentityError("nextSession is revoked")
    else:
        if following is not None:
            raise MalformedIdentityError(f"the rotation is {rotation.phase} but there still is a nextSession")
        if rotation.to_id != current:
            raise MalformedIdentityError("the rotation must lead to currentSession")


def _check_endorsements(document: IdentityDocument) -> None:
    for index, endorsement in enumerate(document.endorsements):
        by, of = document.find_root(endorsement.by), document.find_root(endorsement.of)
        if by is None or of is None:
            raise MalformedIdentityError(f"endorsements[{index}] names a session that is not among the roots")
        try:
            verify_endorsement(endorsement, by=by, of=of)
        except SuccessionError:
            raise MalformedIdentityError(f"the signature of endorsements[{index}] is invalid") from None


def _check_proofs(document: IdentityDocument) -> None:
    for index, revocation in enumerate(document.revoked):
        if revocation.successor is None and revocation.proof is None:
            continue
        revoked, successor = document.find_root(revocation.id), document.find_root(revocation.successor or "")
        try:
            if revoked is None or successor is None:
                raise SuccessionError("the revocation names a session that is not among the roots")
            verify_proof(revocation, revoked=revoked, successor=successor)
        except SuccessionError:
            raise MalformedIdentityError(
                f"the proof of revoked[{index}] names an unlisted root or has an invalid signature"
            ) from None


def _check_anchor(document: IdentityDocument) -> None:
    authority = document.next_anchor or document.anchor
    # In direct mode the anchor itself signs, and then no key of it may be in the document.
    local = {one.id for one in (document.current, document.next) if one is not None and not one.is_remote}
    for anchor_id, name in ((document.anchor, "anchor"), (document.next_anchor, "rotation.anchor")):
        if anchor_id is None:
            continue
        if document.find_root(anchor_id) is None:
            raise MalformedIdentityError(f"{name} is not among the roots")
        if anchor_id in document.revoked_ids or anchor_id in local:
            raise MalformedIdentityError(
                f"{name} names {anchor_id}; it must be neither a revoked root nor one whose private key is stored"
            )
    for owned, anchor, name in (
        (document.current, document.anchor, "currentSession"),
        (document.next, authority, "nextSession"),
    ):
        if owned is None or anchor == owned.id:
            continue
        if owned.is_remote:
            raise MalformedIdentityError(f"{name} must have a private key, because it is not the anchor")
        # SECURITY: in an identity with an anchor, a root may sign only if the anchor has endorsed it
        # (tests/unit/identity/test_anchor.py).
        if anchor is not None and not document.is_endorsed_to_sign(owned.id, anchor):
            raise MalformedIdentityError(f"{name} has no endorsement by the anchor {anchor}")
    for index, change in enumerate(document.anchor_changes):
        by, subject = document.find_root(change.by), document.find_root(change.to or change.root or "")
        if by is None or subject is None:
            raise MalformedIdentityError(f"anchorChanges[{index}] names a session that is not among the roots")
        try:
            verify_change(change, by=by, subject=subject)
        except SuccessionError:
            raise MalformedIdentityError(f"the signature of anchorChanges[{index}] is invalid") from None


# --- encoding ---------------------------------------------------------------------------------------------------------


def encode_document(document: IdentityDocument) -> bytes:
    """Return an identity document as JSON, which a GoatDB server also accepts as its ``settings.json``.

    Parts that have not changed since `decode_document` are written as they were read, unknown members included.

    Raises:
        MalformedIdentityError: The JSON would be larger than `SIZE_LIMIT_BYTES`.
    """
    raw = to_pretty_json(document_tree(document))
    if len(raw) > SIZE_LIMIT_BYTES:
        raise MalformedIdentityError(f"the identity has {len(raw)} bytes; at most {SIZE_LIMIT_BYTES} are allowed")
    return raw


def document_digest(document: IdentityDocument) -> str:
    """Return the SHA-256, hexadecimal, of an identity document's JSON, which identifies the document.

    The digest does not reveal the private key in the JSON, which has 384 random bits; in direct mode, the JSON holds
    nothing secret.
    """
    return hashlib.sha256(encode_document(document)).hexdigest()


def source_digest(document: IdentityDocument) -> str:
    """Return the SHA-256, hexadecimal, of the JSON from which an identity document was decoded.

    Later changes of the document do not count. A document that was not decoded has its `document_digest`.
    """
    if document.source is None:
        return document_digest(document)
    return hashlib.sha256(to_pretty_json(document.source.tree)).hexdigest()


def document_tree(document: IdentityDocument) -> dict[str, Any]:
    """Return an identity document as plain JSON values, private keys included."""
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
    """The JSON objects of sessions as they were read, by session id, so that their unknown members are written back."""

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
        return {**(owned.session.to_json() if owned.is_remote else owned.to_secret_json()), **owned.session.extra}

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
    return value if isinstance(value, str | int) else value.to_json()


def sign_document(document: IdentityDocument, now_ms: int) -> IdentityDocument:
    """Return an identity document with its current root's signature over the whole document.

    Args:
        document: The document to write, complete except for its signature.
        now_ms: Milliseconds since 1970.
    """
    tree = document_tree(document)
    signature = sign_tree(tree, by=document.current, generation=document.generation, now_ms=now_ms)
    return replace(document, signature=signature)


def normalize_document(document: IdentityDocument) -> IdentityDocument:
    """Encode an identity document and decode it again.

    The result has passed every check, and keeps nothing of the JSON from which `document` was decoded.
    """
    remote = [one.signer for one in (document.current, document.next) if one is not None and one.is_remote]
    sign = next((key.make_signature for key in remote if isinstance(key, RemoteKey)), None)
    return decode_document(encode_document(document), sign)
