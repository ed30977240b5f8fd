"""The anchor of an identity: a root whose key is in an HSM or a KMS, and which alone says which roots may sign.

Pure. The identity document holds the anchor's id and public half, and nothing that says where its key is. The root that
signs every day is then a *working root*: an ordinary local key with a short life, endorsed by the anchor. A server that
uses an identity with an anchor trusts only roots that the anchor has endorsed or introduced
(`goatherd.identity.succession`; the rules are in docs/explanation/anchor.md).

The role of the anchor ends by an `AnchorChange`: the anchor's signed statement that another root is the anchor from now
on, or that a given root signs without an anchor. An endorsement by the anchor does not end the role, because every
working root has one.

This module does not call the HSM or KMS: its functions return the text to sign, and take signatures as arguments.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from goatherd.errors import SuccessionError
from goatherd.identity.json_members import JSONObject, json_member, read_id, read_number, read_signature
from goatherd.identity.root_signatures import Endorsement
from goatherd.identity.session import Session, is_statement_signed, signed_text

DOMAIN: Final = "anchor/1"
KEPT_CHANGES: Final = 1
"""How many permanent changes of the anchor a document keeps. A server that has missed more of them must be
started with `--accept-identity`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnchorChange(JSONObject):
    """The anchor's signed statement that its role ends: root `to` is the next anchor, or root `root` signs without one.

    Attributes:
        by: Id of the anchor that has signed.
        to: Id of the next anchor; None if there is none.
        root: Id of the root that signs without an anchor; None if `to` is given.
        until: The last generation of the identity document for which the statement counts; None for no limit. A
            statement that only makes the rollback of a rotation possible has a limit, so that it is worthless after the
            rotation.
        signature: A signature string in GoatDB's format.
        extra: Members of the JSON that this version of Goatherd does not know; they are not signed.
    """

    by: str = json_member("by", read_id)
    to: str | None = json_member("to", read_id, default=None, is_nullable=True)
    root: str | None = json_member("root", read_id, default=None, is_nullable=True)
    until: int | None = json_member("until", read_number, default=None, is_nullable=True)
    signature: str = json_member("signature", read_signature)

    def counts_at(self, generation: int) -> bool:
        """Return whether the statement counts for an identity document of this generation (see `until`)."""
        return self.until is None or generation <= self.until


class AnchorWord(NamedTuple):
    """The anchor's signatures for one change of the identity document, collected before the new document is made.

    Attributes:
        session: The root session of the anchor from the time at which the next root is the current root; None if there
            is no anchor then.
        endorsements: Endorsements of roots, by this anchor and by the anchor that it replaces.
        changes: The statements by which the role of the anchor passes on, or passes back if the rotation is rolled
            back.
        proofs: The anchor's signature over the revocation of each root that is revoked, by the id of that root.
    """

    session: Session | None
    endorsements: tuple[Endorsement, ...] = ()
    changes: tuple[AnchorChange, ...] = ()
    proofs: Mapping[str, str] = MappingProxyType({})

    @property
    def anchor(self) -> str | None:
        """The id of the anchor; None if there is none."""
        return None if self.session is None else self.session.id


class AnchoredTrust(NamedTuple):
    """Which roots may introduce other roots, in an identity with an anchor (a root that says which roots may sign).

    Attributes:
        anchors: Ids of the roots that are, were, or will be the anchor.
        working: Ids of the listed working roots, which may introduce user sessions only.
    """

    anchors: frozenset[str]
    working: frozenset[str]


def change_text(by_id: str, subject: Session, *, is_anchor: bool, until: int | None) -> str:
    """Return the text that the anchor `by_id` signs to end its role.

    Args:
        by_id: Id of the anchor that signs.
        subject: The next anchor, or the root that needs no anchor.
        is_anchor: Whether `subject` is the next anchor.
        until: The last generation of the identity document for which the statement counts; None for no limit.
    """
    return signed_text(by_id, _change_statement(subject, is_anchor=is_anchor, until=until), None)


def _change_statement(subject: Session, *, is_anchor: bool, until: int | None) -> dict[str, Any]:
    # SECURITY: the member `goatherd` states the purpose, so a signature under an anchor change is never valid as an
    # endorsement, a proof, a commit or a request, nor an endorsement as a change (tests/unit/identity/test_anchor.py).
    statement: dict[str, Any] = {"goatherd": DOMAIN, ("anchor" if is_anchor else "root"): subject.to_json()}
    return statement if until is None else {**statement, "until": until}


def verify_change(change: AnchorChange, *, by: Session, subject: Session) -> None:
    """Check that anchor `by` has signed that its role ends: `subject` is the next anchor, or signs without one.

    Raises:
        SuccessionError: The change names other roots, its signature covers other data, or it was signed after `by` had
            expired.
    """
    if change.by != by.id or subject.id != (change.to or change.root) or subject.id == by.id:
        raise SuccessionError(
            f"the change of the anchor names root {change.by} and its successor {change.to or change.root}; it must"
            f" name root {by.id} and its successor {subject.id}"
        )
    _verify_change(change.signature, by, subject, change.to is not None, change.until)


# SECURITY: the cache key contains everything that is verified, and only successes are cached
# (tests/unit/identity/test_anchor.py).
@lru_cache(maxsize=64)
def _verify_change(signature: str, by: Session, subject: Session, is_anchor: bool, until: int | None) -> None:
    statement = _change_statement(subject, is_anchor=is_anchor, until=until)
    if not is_statement_signed(signature, by=by, statement=statement):
        raise SuccessionError(f"the change of the anchor from {by.id} to {subject.id} has an invalid signature")


REVOCATION_DOMAIN: Final = "anchored-revocation/1"


def revocation_text(anchor_id: str, revoked_id: str, at: int) -> str:
    """Return the text that the anchor signs to revoke a root at `at` (ms since 1970)."""
    return signed_text(anchor_id, _revocation_statement(revoked_id, at), None)


def _revocation_statement(revoked_id: str, at: int) -> dict[str, Any]:
    return {"goatherd": REVOCATION_DOMAIN, "revoked": revoked_id, "at": at}


def is_revocation_signed(signature: str, *, anchor: Session, revoked_id: str, at: int) -> bool:
    """Return whether the anchor has signed in `signature` that root `revoked_id` is revoked at `at` (ms since 1970)."""
    return is_statement_signed(signature, by=anchor, statement=_revocation_statement(revoked_id, at))
