"""The records of an audit trail: hash-chained, each signed by a root of the identity whose changes it records.

This module encodes one record as a line of bytes, and verifies a whole file line by line. It does no I/O:
`goatherd.audit.trail` opens the file.

A record is a JSON object on one line: number, time, actor, event, data, the SHA-256 of the previous line, the id of the
root that signs, and the signature over all of that. Its format version is ``"v":1``. When another root starts to sign,
a record ``signer`` with its public key comes first. If a crash has cut the previous line short, the record has a member
``torn`` with the length and the hash of that line.

Rules:
1. The signature covers the bytes of the line as they are in the file, so there is only one way to read them.
2. A failed check names the number of the first line that was altered.
3. The file itself cannot show that its last records were removed. To detect this, `Chain` accepts a checkpoint that was
   stored elsewhere.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from goatherd.errors import AuditBrokenError, DecodeError, MalformedIdentityError, SuccessionError, VerificationError
from goatherd.identity.document import IdentityDocument
from goatherd.identity.json_members import read_number, read_object, read_text
from goatherd.identity.revocations import Revocation, verify_proof
from goatherd.identity.root_signatures import Endorsement, verify_endorsement
from goatherd.identity.session import OwnedSession, Session
from goatherd.identity.succession import is_current_introduced
from goatherd.times import iso, read_iso

GENESIS: Final = "0" * 64
"""The previous hash of the first record, which has no line before it."""
SIGNER: Final = "signer"
MAX_LINE: Final = 1 << 20
MAX_TORN: Final = 16
_VERSION: Final = 1
_TAMPERED_HINT: Final = "Otherwise keep a copy of the file, and find out which users could write to it."
_PROOF_MEMBERS: Final = ("id", "at", "successor", "proof")
# SECURITY: the same key signs GoatDB's data, which always begins with "{". A signed audit record begins with this
# domain instead, so neither signature is valid for the other (tests/unit/audit/test_records.py).
_DOMAIN: Final = b"goatherd audit/1\n"
_LINE: Final = re.compile(rb'(\{"v":1,"seq":[^\n]*),"sig":"([A-Za-z0-9_-]{128})"\}\n')
_read_text: Final = partial(read_text, where="", limit=MAX_LINE)
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Torn:
    """A line of an audit trail that a crash has cut short, given by its length and SHA-256 (without newline)."""

    size: int
    digest: str

    @classmethod
    def from_line(cls, line: bytes) -> Torn:
        raw = line.removesuffix(b"\n")
        return cls(size=len(raw), digest=hashlib.sha256(raw).hexdigest())

    def to_json(self) -> dict[str, Any]:
        return {"bytes": self.size, "sha256": self.digest}


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The end of an audit trail: the number of its last record, and the SHA-256 of that record's line.

    A head that is stored outside the file is a checkpoint: it shows later whether records at the end are missing.
    """

    seq: int = 0
    digest: str = GENESIS

    def __str__(self) -> str:
        return f"{self.seq}:{self.digest}"

    @classmethod
    def from_text(cls, text: str) -> Head:
        """Parse the string form of the end of an audit trail (a checkpoint).

        Raises:
            DecodeError: The string has another form.
        """
        match = re.fullmatch(r"([1-9]\d{0,14}):([0-9a-f]{64})", text.strip())
        if match is None:
            raise DecodeError("a checkpoint must be a record's number, a colon, and 64 hexadecimal digits")
        return cls(seq=int(match[1]), digest=match[2])


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One record of an audit trail.

    Attributes:
        seq: Number of the record; 1 for the first.
        at_ms: Milliseconds since 1970, by the writer's clock.
        actor: The user or process that acted, human-readable.
        by: The root that signed the record.
        lost: How many records before this one could not be written.
        torn: The lines between the previous record and this one that a crash has cut short.
        line: The whole line as it is in the file.
    """

    seq: int
    at_ms: int
    actor: str
    event: str
    data: Mapping[str, Any]
    prev: str
    by: str
    lost: int = 0
    torn: tuple[Torn, ...] = ()
    line: bytes = field(repr=False)

    @property
    def head(self) -> Head:
        return Head(seq=self.seq, digest=hashlib.sha256(self.line).hexdigest())


def write_record(
    signer: OwnedSession,
    after: Head,
    *,
    at_ms: int,
    actor: str,
    event: str,
    data: Mapping[str, Any],
    lost: int = 0,
    torn: Sequence[Torn] = (),
) -> Record:
    """Make and sign the audit record that follows the record `after`.

    Args:
        data: Plain JSON values; never key material.
        lost, torn: As in `Record`.

    Raises:
        ValueError: The line would be longer than `MAX_LINE`.
    """
    members: dict[str, Any] = {
        "v": _VERSION,
        "seq": after.seq + 1,
        "at": iso(at_ms),
        "actor": actor,
        "event": event,
        "data": data,
        "prev": after.digest,
        "by": signer.id,
    }
    if lost:
        members["lost"] = lost
    if torn:
        members["torn"] = [one.to_json() for one in torn]
    signed = json.dumps(members, ensure_ascii=True, separators=(",", ":"), allow_nan=False).encode()[:-1]
    signature = base64.urlsafe_b64encode(signer.signer.sign(_DOMAIN + signed))
    line = signed + b',"sig":"' + signature + b'"}\n'
    if len(line) > MAX_LINE:
        raise ValueError(f"the record is longer than the {MAX_LINE} bytes that are allowed: it has {len(line)}")
    return read_record(line)


def read_record(line: bytes) -> Record:
    """Parse one line of an audit trail, without checking its signature and its place in the chain.

    Raises:
        DecodeError: The line is not a record. The message is a predicate, such as "is cut off"; the caller puts the
            line in front.
    """
    if len(line) > MAX_LINE:
        raise DecodeError("is longer than a record can be")
    match = _LINE.fullmatch(line)
    if match is None:
        raise DecodeError("is cut off" if not line.endswith(b"\n") else "is not a record")
    try:
        members = json.loads(match[1] + b"}")
        at = members["at"]
        if not _TIME.fullmatch(at):
            raise DecodeError("has no valid timestamp")
        return Record(
            seq=read_number(members["seq"], ""),
            at_ms=read_iso(at),
            actor=_read_text(members["actor"]),
            event=_read_text(members["event"]),
            data=read_object(members["data"], ""),
            prev=_read_text(members["prev"]),
            by=_read_text(members["by"]),
            lost=read_number(members.get("lost", 0), ""),
            torn=tuple(
                Torn(size=read_number(t["bytes"], ""), digest=_read_text(t["sha256"])) for t in members.get("torn", ())
            ),
            line=line,
        )
    except (ValueError, KeyError, TypeError, RecursionError, MalformedIdentityError):
        raise DecodeError("is not a record") from None


# --- who may sign -----------------------------------------------------------------------------------------------------


def signer_data(document: IdentityDocument) -> dict[str, Any]:
    """Return the data of a ``signer`` record for the current root: its public key, the endorsements and their roots.

    After a revocation no root endorses the successor, so the data also have the proof by which the revoked root names
    it.
    """
    named = {end for item in document.endorsements for end in (item.by, item.of)}
    proofs = [
        {"id": one.id, "at": iso(one.at), "successor": one.successor, "proof": one.proof}
        for one in document.revoked
        if one.proof is not None
    ]
    return {
        "session": document.current.session.to_json(),
        "roots": [root.to_json() for root in document.roots if root.id in named and root.id != document.current.id],
        "endorsements": [item.to_json() for item in document.endorsements],
        **({"revocations": proofs} if proofs else {}),
    }


def can_continue(lines: Iterable[bytes], document: IdentityDocument) -> bool:
    """Return whether the current root of an identity may sign a trail with these lines, which are not verified.

    It may if it has signed the trail before, or if a root that has, or an anchor that endorsed that root, leads to it.
    """
    known: dict[str, Session] = {}
    for line in lines:
        with suppress(DecodeError):
            if SIGNER.encode() in line and (record := read_record(line)).event == SIGNER:
                session = Session.from_json(record.data.get("session", {}))
                session.public_key.check()
                known |= {**_find_anchors(session, record.data), session.id: session}
    return is_current_introduced(document, known)


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchors:
    """The roots that may sign an audit trail, and when each revoked root was revoked (milliseconds since 1970)."""

    roots: Mapping[str, Session]
    revoked: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def from_document(cls, document: IdentityDocument) -> Anchors:
        return cls(
            roots={root.id: root for root in document.roots},
            revoked={revocation.id: revocation.at for revocation in document.revoked},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """The result of verifying a whole trail without finding an error.

    Attributes:
        signers: Ids of the roots that have signed, in order of appearance.
        rests_on: The first signer, which was trusted without a proof; None if the signers were checked with the
            identity.
        torn: Numbers of the lines that a crash has cut short, as the record after each line states.
        lost: How many records could not be written at the time, as later ones report.
        by_revoked: How many records at the end are signed by a root that was revoked later. With its exposed key they
            could have been rewritten, since no record of another root follows them.
        after_revocation: Numbers of the lines that a root has signed after it was revoked, and that a record of another
            root follows. A process that had not read the revocation yet signs such records; so can an attacker who has
            the key and can write the file.
    """

    head: Head
    first_ms: int
    last_ms: int
    signers: tuple[str, ...]
    rests_on: str | None
    torn: tuple[int, ...]
    lost: int
    by_revoked: int
    after_revocation: tuple[int, ...]


class Chain:
    """Verifies an audit trail line by line: call `feed` for each line, then `finish`.

    In an identity with an anchor (a key in an HSM or a KMS that endorses the roots), a working root endorses no other
    root. So an endorsement by the anchor of an unrevoked signer counts like one by that signer.

    Args:
        anchors: The roots whose signatures are valid. A signer that the identity no longer lists is accepted only if it
            endorses, directly or through others, a root that the identity lists; or if, after a revocation, such a root
            endorses it. The successor of a revoked root counts like a root that the revoked one endorses, if it
            endorses the last unrevoked signer. Without anchors the first signer is trusted, and every root that a
            trusted one endorses, or names as its successor in the proof of its revocation.
        checkpoint: An earlier head of this trail, stored outside the file; records up to it must not be missing.
    """

    def __init__(self, *, anchors: Anchors | None = None, checkpoint: Head | None = None) -> None:
        self._anchors = anchors
        self._checkpoint = checkpoint
        self._line = 0
        self._head = Head()
        self._signers: dict[str, Session] = {}
        self._signers_anchors: dict[str, Session] = {}
        self._last_unrevoked: str | None = None
        self._pending: list[tuple[int, bytes, str]] = []
        self._torn: list[int] = []
        self._lost = 0
        self._by_revoked = 0
        self._after_revocation: list[int] = []
        self._unsealed: tuple[int, str] | None = None
        self._times: list[int] = []
        self._by: str | None = None
        self._unlisted: tuple[int, str] | None = None

    def feed(self, line: bytes) -> Record | None:
        """Verify the next line, newline included, and return its record; None if the line is no record.

        The next record may state that a crash has cut such a line short. If it does not, the trail is broken.

        Raises:
            AuditBrokenError: This line is not as it was written, or it does not state that a crash has cut short the
                unreadable lines before it.
        """
        self._line += 1
        try:
            record = read_record(line)
        except DecodeError as error:
            self._pending.append((self._line, line, str(error)))
            if len(self._pending) > MAX_TORN:
                self._refuse_pending()
            return None
        self._explain_torn(record)
        self._check_place(record)
        self._verify_record(record)
        self._head = record.head
        self._lost += record.lost
        self._times = [*self._times[:1], record.at_ms]
        if self._checkpoint is not None and record.seq == self._checkpoint.seq and record.head != self._checkpoint:
            raise self._broken_error(f"is another record {record.seq} than the one from which the checkpoint was taken")
        return record

    def finish(self) -> Checked:
        """Return the result of verifying the audit trail, after its last line.

        Raises:
            AuditBrokenError: The last line is cut off, there is no record at all, or the file ends before the
                checkpoint; or a root signed a record after it was revoked, and no record of a valid root follows.
        """
        self._refuse_pending()
        self._line += 1
        if not self._times:
            raise self._broken_error("is missing: the file holds no record")
        if self._unlisted is not None:
            line, signer = self._unlisted
            raise self._unlisted_error(signer, line)
        if self._unsealed is not None:
            line, signer = self._unsealed
            raise self._broken_error(
                f"is signed by root {signer!r:.70} after it was revoked, and no record of a valid root follows", line
            )
        if self._checkpoint is not None and self._head.seq < self._checkpoint.seq:
            raise self._broken_error(
                f"is missing: the file ends with record {self._head.seq}, the checkpoint is of {self._checkpoint.seq}"
            )
        return Checked(
            head=self._head,
            first_ms=self._times[0],
            last_ms=self._times[-1],
            signers=tuple(self._signers),
            rests_on=None if self._anchors is not None else next(iter(self._signers)),
            torn=tuple(self._torn),
            lost=self._lost,
            by_revoked=self._by_revoked,
            after_revocation=tuple(self._after_revocation),
        )

    def _broken_error(self, what: str, line: int | None = None, *, hint: str | None = None) -> AuditBrokenError:
        number = self._line if line is None else line
        return AuditBrokenError(f"line {number} {what}", line=number, hint=hint)

    def _unlisted_error(self, signer: str, line: int | None = None) -> AuditBrokenError:
        return self._broken_error(
            f"is signed by {signer!r:.70}, which is no root of this identity",
            line,
            hint="If that root has left the identity, because more than three rotations followed without a record in"
            f" this file, verify the file with --offline and a checkpoint, and begin a new file. {_TAMPERED_HINT}",
        )

    def _refuse_pending(self) -> None:
        if self._pending:
            line, _, why = self._pending[0]
            raise self._broken_error(why, line)

    def _explain_torn(self, record: Record) -> None:
        found = tuple(Torn.from_line(raw) for _, raw, _ in self._pending)
        if record.torn != found:
            self._refuse_pending()
            raise self._broken_error("states that torn bytes precede it, but the file does not contain them")
        self._torn += [line for line, _, _ in self._pending]
        self._pending = []

    def _check_place(self, record: Record) -> None:
        expected = self._head.seq + 1
        if record.seq != expected:
            how = "is missing" if record.seq > expected else "is repeated, or out of order"
            number = min(record.seq, expected)
            raise self._broken_error(f"has record {record.seq} instead of record {expected}: record {number} {how}")
        if record.prev != self._head.digest:
            raise self._broken_error("does not follow the line before it: one of them was replaced")

    def _verify_record(self, record: Record) -> None:
        introduced = self._read_introduced(record) if record.event == SIGNER else None
        session = introduced if introduced is not None else self._signers.get(record.by)
        if session is None:
            raise self._broken_error(f"is signed by {record.by!r:.70}, which no earlier record introduces")
        match = _LINE.fullmatch(record.line)
        assert match is not None
        try:
            session.public_key.verify(base64.urlsafe_b64decode(match[2]), _DOMAIN + match[1])
        except VerificationError:
            raise self._broken_error(f"was changed after root {record.by!r:.70} signed it") from None
        if introduced is None and record.by != self._by:
            raise self._broken_error(
                f"is signed by {record.by!r:.70}, but no earlier record states that this root signs"
            )
        self._check_revoked(record)
        # SECURITY: the anchors that a revoked root's record names do not count. Otherwise the thief of that root could
        # name an anchor that endorses the following root, and replace the whole file
        # (tests/unit/audit/test_records.py).
        if self._anchors is None or record.by not in self._anchors.revoked:
            self._last_unrevoked = record.by
            if introduced is not None:
                self._signers_anchors |= _find_anchors(introduced, record.data)
        self._signers[record.by] = session
        self._by = record.by

    def _check_revoked(self, record: Record) -> None:
        revoked_ms = None if self._anchors is None else self._anchors.revoked.get(record.by)
        if revoked_ms is None:
            # With a stolen key, records that are followed by another root's record cannot be rewritten.
            self._by_revoked, self._unsealed = 0, None
            return
        self._by_revoked += 1
        if record.at_ms > revoked_ms:
            self._after_revocation.append(self._line)
            self._unsealed = self._unsealed or (self._line, record.by)

    def _read_introduced(self, record: Record) -> Session:
        try:
            session = Session.from_json(record.data.get("session", {}))
            session.public_key.check()
        except DecodeError:
            raise self._broken_error("introduces a signer without a key") from None
        if session.id != record.by:
            raise self._broken_error("introduces another root than the one that signs it")
        known = self._signers.get(session.id)
        if known is not None and known.public_key != session.public_key:
            raise self._broken_error(f"introduces {session.id!r:.70} with another key than before")
        if self._anchors is not None:
            root = self._anchors.roots.get(session.id)
            if root is not None and root.public_key != session.public_key:
                raise self._broken_error(f"is signed by {session.id!r:.70}, which is no root of this identity")
            is_vouched = known is not None or not self._signers or self._is_vouched_for(session, record.data)
            # SECURITY: a root that was removed from the identity is accepted if a listed root signs a later record,
            # because that record's hash covers all earlier lines. The listed root must be the removed root's successor
            # or endorse it; otherwise the next record would confirm lines that an attacker has appended
            # (tests/unit/audit/test_records.py).
            if root is None:
                if not is_vouched:
                    raise self._unlisted_error(session.id)
                self._unlisted = self._unlisted or (self._line, session.id)
            elif self._unlisted is not None:
                if not (is_vouched or self._is_vouching_for_last(session, record.data)):
                    line, signer = self._unlisted
                    raise self._unlisted_error(signer, line)
                if session.id not in self._anchors.revoked:
                    self._unlisted = None
        elif self._signers and known is None and not self._is_vouched_for(session, record.data):
            raise self._broken_error(
                f"is signed by {session.id!r:.70}, which no earlier signer introduces",
                hint="If that root is one of the cluster's, more than three rotations before that line have no record"
                f" in this file: begin a new file. {_TAMPERED_HINT}",
            )
        return session

    def _is_vouching_for_last(self, session: Session, data: Mapping[str, Any]) -> bool:
        """Return whether a root endorses the last unrevoked signer, by the data of a ``signer`` record.

        The successor of a revoked root is endorsed by none, and endorses the roots before it that were not revoked.
        """
        last = None if self._last_unrevoked is None else self._signers[self._last_unrevoked]
        for item in _read_endorsements(data.get("endorsements")):
            if last is not None and (item.by, item.of) == (session.id, last.id):
                with suppress(SuccessionError):
                    verify_endorsement(item, by=session, of=last)
                    return True
        return False

    def _may_succeed(self, successor: Session, data: Mapping[str, Any]) -> bool:
        """Return whether the proof of a revoked root, in the data of a ``signer`` record, may lead to a successor.

        SECURITY: the thief of a revoked root can sign such a proof for a root of its own, and add lines of that root.
        The true successor does not endorse that root, so it must not seal those lines
        (tests/unit/audit/test_records.py).
        """
        return self._anchors is None or self._last_unrevoked is None or self._is_vouching_for_last(successor, data)

    def _is_vouched_for(self, session: Session, data: Mapping[str, Any]) -> bool:
        named = {**_read_sessions(data.get("roots")), session.id: session}
        trusted = {**self._signers_anchors, **self._signers}
        endorsements = _read_endorsements(data.get("endorsements"))
        # A root that can endorse another one can also name it as its successor, so such a proof is worth the same.
        proofs = _read_proofs(data.get("revocations"))
        while True:
            found = {}
            for proof in proofs:
                successor = named.get(proof.successor or "")
                if (
                    proof.id in trusted
                    and successor is not None
                    and successor.id not in trusted
                    and self._may_succeed(successor, data)
                ):
                    with suppress(SuccessionError):
                        verify_proof(proof, revoked=trusted[proof.id], successor=successor)
                        found[successor.id] = successor
            for item in endorsements:
                if item.by in trusted and item.of in named and item.of not in trusted:
                    try:
                        verify_endorsement(item, by=trusted[item.by], of=named[item.of])
                    except SuccessionError:
                        continue
                    found[item.of] = named[item.of]
            trusted |= found
            if session.id in found:
                return True
            if not found:
                return False


def _read_sessions(value: Any) -> dict[str, Session]:
    found = {}
    for item in value if isinstance(value, list) else ():
        try:
            session = Session.from_json(item)
            session.public_key.check()
        except DecodeError:
            continue
        found[session.id] = session
    return found


def _read_endorsements(value: Any) -> list[Endorsement]:
    found = []
    for item in value if isinstance(value, list) else ():
        with suppress(MalformedIdentityError):
            found.append(Endorsement.from_json(item, "endorsements"))
    return found


def _read_proofs(value: Any) -> list[Revocation]:
    found = []
    for item in value if isinstance(value, list) else ():
        if isinstance(item, dict) and all(isinstance(item.get(name), str) for name in _PROOF_MEMBERS):
            with suppress(ValueError):
                at = read_iso(item["at"])
                found.append(
                    Revocation(id=item["id"], at=at, reason="", successor=item["successor"], proof=item["proof"])
                )
    return found


def _find_anchors(session: Session, data: Mapping[str, Any]) -> dict[str, Session]:
    """Return, by id, the anchors that have endorsed a root to sign, from the data of its ``signer`` record."""
    named, found = _read_sessions(data.get("roots")), {}
    for item in _read_endorsements(data.get("endorsements")):
        by = named.get(item.by)
        if by is None or item.of != session.id or item.commit is None or item.commit.is_earlier:
            continue
        with suppress(SuccessionError):
            verify_endorsement(item, by=by, of=session)
            found[by.id] = by
    return found


def verify(lines: Iterable[bytes], *, anchors: Anchors | None = None, checkpoint: Head | None = None) -> Checked:
    """Verify a whole audit trail: the signature of each record, and that no record was changed or removed.

    Args:
        lines: The lines, each with its newline.
        anchors, checkpoint: As for `Chain`.

    Raises:
        AuditBrokenError: A line is not as it was written; the message names the first such line and the problem.
    """
    chain = Chain(anchors=anchors, checkpoint=checkpoint)
    for line in lines:
        chain.feed(line)
    return chain.finish()
