"""The two signatures that a root makes in the identity document: endorsements of other roots, and the document's own.

Pure. An endorsement is root A's signature over root B's public session: its id, public key, owner and expiration. An
anchor (a root whose key is in an HSM or a KMS) endorses a root by the commit of ``/sys/sessions`` that introduces it,
so that one signature serves both purposes (`IntroducedBy`).

The document signature is the current root's signature over the whole document except the signature string itself; it
covers private keys and unknown members, too. White space and the order of members are not signed, because a store may
change them.

Each signed object starts with a member that names its purpose, so that no signature is valid for another purpose.
"""

# ruff: noqa: RUF009 (`json_member` is `dataclasses.field` with its metadata in a fixed shape)

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from goatherd.errors import MalformedIdentityError, SuccessionError, VerificationError
from goatherd.identity.json_members import (
    JSONObject,
    json_member,
    read_id,
    read_number,
    read_object,
    read_signature,
    read_text,
)
from goatherd.identity.key_age import last_valid_ms
from goatherd.identity.session import (
    OwnedSession,
    Session,
    is_statement_signed,
    parse_signature,
    sign_data,
    verify_data,
)
from goatherd.identity.session_commits import (
    draft_session_commit,
    earlier_introduction_id,
    introduction_id,
    verify_commit_by,
)
from goatherd.identity.strict_json import to_canonical_json
from goatherd.wire.javascript_values import UNDEFINED

if TYPE_CHECKING:
    from goatherd.wire.commit import Commit

ENDORSEMENT_DOMAIN = "endorsement/1"


class IntroducedBy(NamedTuple):
    """What is needed, besides the introduced session and the author's id, to make an anchor's session commit again.

    An endorsement by an anchor stores these members, because its signature covers that commit.

    Attributes:
        ts: Time of the commit, in milliseconds since 1970.
        org: The organization of the servers' data; it is part of the signed bytes.
        is_earlier: Whether the commit introduces a root that was trusted before the author of the commit was.
    """

    ts: int
    org: str
    is_earlier: bool = False

    @classmethod
    def from_json(cls, value: Any, where: str) -> IntroducedBy:
        given = read_object(value, where)
        if not isinstance(given.get("earlier", False), bool) or set(given) - {"ts", "org", "earlier"}:
            raise MalformedIdentityError(
                f"{where} must have only the members ts, org and, optionally, earlier (true or false)"
            )
        return cls(
            ts=read_number(given.get("ts"), f"{where}.ts"),
            org=read_text(given.get("org"), f"{where}.org"),
            is_earlier=given.get("earlier", False),
        )

    def to_json(self) -> dict[str, Any]:
        return {"ts": self.ts, "org": self.org, **({"earlier": True} if self.is_earlier else {})}

    def draft_commit(self, of: Session, *, by_id: str) -> Commit:
        """Return the unsigned commit by which root `by_id` introduces root `of`."""
        commit_id = earlier_introduction_id(of.id, by_id) if self.is_earlier else introduction_id(of.id)
        return draft_session_commit(of, signer_id=by_id, commit_id=commit_id, ts=self.ts, org=self.org)


@dataclass(frozen=True, slots=True, kw_only=True)
class Endorsement(JSONObject):
    """A root's signed statement that another root may be trusted: root `by` endorses root `of`.

    Attributes:
        by: Id of the root that has signed.
        of: Id of the endorsed root.
        signature: A signature string in GoatDB's format.
        commit: The commit that the signature covers, if the endorsement is an introduction in ``/sys/sessions``; None
            if the signature covers Goatherd's own statement.
        extra: Members of the JSON that this version of Goatherd does not know; they are not signed.
    """

    by: str = json_member("by", read_id)
    of: str = json_member("of", read_id)
    signature: str = json_member("signature", read_signature)
    commit: IntroducedBy | None = json_member("commit", IntroducedBy.from_json, IntroducedBy.to_json, default=None)

    def introduction(self, of: Session) -> Commit:
        """Return the signed commit that introduces the endorsed root `of`. Call it only if `commit` is not None."""
        assert self.commit is not None
        return self.commit.draft_commit(of, by_id=self.by).with_signature(self.signature)


def endorse_root(by: OwnedSession, of: Session, now_ms: int) -> Endorsement:
    """Return the endorsement of root `of`, signed by root `by`.

    The signature covers the four public members of a GoatDB session: id, publicKey, owner and expiration.
    """
    signature = sign_data(by, now_ms=now_ms, external=_endorsement_statement(of))
    return Endorsement(by=by.id, of=of.id, signature=signature)


def verify_endorsement(endorsement: Endorsement, *, by: Session, of: Session) -> None:
    """Check that root `by` has endorsed exactly the root `of`.

    Raises:
        SuccessionError: The endorsement names other roots, its signature covers other data (another key, owner,
            expiration or purpose), or it was made after `by` had expired.
    """
    if endorsement.by != by.id or endorsement.of != of.id:
        raise SuccessionError(
            f"the endorsement names root {endorsement.by} endorsing {endorsement.of}; it must name root {by.id}"
            f" endorsing {of.id}"
        )
    if by.id == of.id:
        raise SuccessionError(f"root {by.id} is endorsed by itself; the endorsement must be by another root")
    _verify_endorsement(endorsement.signature, by, of, endorsement.commit)


# Each decoding of a document verifies the same endorsements, so successes are cached (`make bench`, rotation).
# SECURITY: the cache key contains everything that is verified, including the coordinates of the public keys, and only
# successes are cached (tests/unit/identity/test_succession.py, "a verified endorsement is worth nothing for another
# key").
@lru_cache(maxsize=256)
def _verify_endorsement(signature: str, by: Session, of: Session, commit: IntroducedBy | None) -> None:
    try:
        envelope = parse_signature(signature)
        # SECURITY: a signature can embed data, which it then covers as well. Reject it: an endorsement must sign its
        # statement and nothing else (tests/unit/identity/test_succession.py).
        valid = envelope.data is UNDEFINED
        if valid and commit is None:
            verify_data(by, envelope, external=_endorsement_statement(of))
        elif valid and commit is not None:
            verify_commit_by(by, commit.draft_commit(of, by_id=by.id).with_signature(signature))
    except VerificationError:
        valid = False
    if not valid:
        raise SuccessionError(f"the endorsement of root {of.id} by root {by.id} has an invalid signature")


def _endorsement_statement(session: Session) -> dict[str, Any]:
    # SECURITY: the same key signs GoatDB's commits and requests. The member `goatherd` states the purpose, so a
    # signature under an endorsement is never valid as one of those (tests/unit/identity/test_succession.py).
    return {"goatherd": ENDORSEMENT_DOMAIN, "session": session.to_json()}


DOCUMENT_DOMAIN: Final = "document/1"
MEMBER: Final = "documentSignature"


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentSignature(JSONObject):
    """The signature over an identity document.

    Attributes:
        by: Id of the current root, which made the signature.
        generation: The document's generation when it was signed. An old version of Goatherd copies the signature
            unchanged when it writes a changed document, but increases the document's own generation, so the two differ.
        signature: A signature string in GoatDB's format.
    """

    by: str = json_member("by", read_id)
    generation: int = json_member("generation", read_number)
    signature: str = json_member("signature", read_signature)


def sign_tree(tree: Mapping[str, Any], *, by: OwnedSession, generation: int, now_ms: int) -> DocumentSignature:
    """Sign an identity document that is given as JSON values; a signature that it already has is ignored.

    Args:
        tree: The document as plain JSON values.
        by: The document's current root. An expired root signs with the last timestamp at which it was valid.
        generation: The document's generation.
        now_ms: Milliseconds since 1970.
    """
    head = DocumentSignature(by=by.id, generation=generation, signature="")
    ts = min(now_ms, last_valid_ms(by.session))
    signature = sign_data(by, now_ms=ts, external=_document_statement(tree_digest({**tree, MEMBER: head.to_json()})))
    return DocumentSignature(by=by.id, generation=generation, signature=signature)


def is_signed_by(tree: Mapping[str, Any], signature: DocumentSignature, *, by: Session, generation: int) -> bool:
    """Return whether `signature` is root `by`'s valid signature over exactly this identity document and generation."""
    if signature.by != by.id or signature.generation != generation:
        return False
    return _is_signature_valid(signature.signature, by, tree_digest(tree))


def tree_digest(tree: Mapping[str, Any]) -> str:
    """Return the SHA-256, hexadecimal, of an identity document's canonical JSON (RFC 8785) without its signature."""
    signed = dict(tree)
    if isinstance(member := tree.get(MEMBER), Mapping):
        signed[MEMBER] = {name: value for name, value in member.items() if name != "signature"}
    return hashlib.sha256(to_canonical_json(signed)).hexdigest()


# Documents are verified often, so results are cached. SECURITY: the cache key covers everything that is verified: the
# public key and the digest of the whole document (tests/unit/identity/test_root_signatures.py).
@lru_cache(maxsize=256)
def _is_signature_valid(signature: str, by: Session, digest: str) -> bool:
    return is_statement_signed(signature, by=by, statement=_document_statement(digest))


def _document_statement(digest: str) -> dict[str, Any]:
    # SECURITY: the member `goatherd` states the purpose, so a document's signature is never valid as an endorsement, a
    # proof, a commit or a request (tests/unit/identity/test_root_signatures.py).
    return {"goatherd": DOCUMENT_DOMAIN, "sha256": digest}
