"""Revoked roots: the entry in the identity document, its proof, and the list of commits that stay valid.

Pure. `transitions` writes these into a document, and `succession` decides what follows from them.

A proof is a signature by the revoked root that names its successor. Servers that trust the revoked root accept it as a
reason to follow the successor, but only in a document that they have read from the store. So neither an attacker who
can only write to the store nor one who has only the root's private key can make servers follow a false successor.

The list of *frozen commits* holds digests of those commits of the revoked root that the cluster already held. The
document holds the digest of the list. A commit of the root is accepted only if it is in the list and its signature is
valid. Each digest covers the text that the root signed, not the commit's id, which another commit can have, nor the
signature, since one key can make many valid signatures of a text.
"""

# ruff: noqa: RUF009 (`json_member` is `dataclasses.field` with its metadata in a fixed shape)

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from goatherd.errors import DecodeError, EncodeError, MalformedIdentityError, SuccessionError
from goatherd.identity.json_members import (
    JSONObject,
    json_member,
    read_id,
    read_number,
    read_signature,
    read_text,
    read_time,
)
from goatherd.identity.session import OwnedSession, Session, is_statement_signed, sign_data
from goatherd.times import iso

if TYPE_CHECKING:
    from goatherd.wire.commit import Commit


DOMAIN = "revocation/1"
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
BESIDE: Final = "lay beside "
"""How the reason of a revocation begins if the key was only stored with a stolen one."""


def _read_digest(value: Any, where: str) -> str:
    if not isinstance(value, str) or not _SHA256.fullmatch(value):
        raise MalformedIdentityError(f"{where} must be a SHA-256 digest")
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Freeze(JSONObject):
    """The record, in a revocation, of the list of frozen commits: the only commits of the revoked root that stay valid.

    Attributes:
        at: When the list was completed, in milliseconds since 1970.
        commits: Number of commits in the list.
        digest: SHA-256, hexadecimal, of the list itself (`goatherd.identity.revocations.FrozenList`).
    """

    at: int = json_member("at", read_time, iso)
    commits: int = json_member("commits", read_number)
    digest: str = json_member("digest", _read_digest)


@dataclass(frozen=True, slots=True, kw_only=True)
class Revocation(JSONObject):
    """The entry for a revoked root in an identity document.

    Attributes:
        id: Id of the revoked root.
        at: When the root was revoked, in milliseconds since 1970.
        reason: The operator's reason, human-readable.
        successor: Id of the root that was or became the current root at the revocation; set only together with `proof`.
        proof: The revoked root's signature over the revocation and its successor; None if there is none, as with an
            anchor.
        anchor_proof: The anchor's signature over the revocation (`goatherd.identity.anchor`); None if the identity has
            no anchor, or if the current root was replaced by a new root that the anchor endorses.
        freeze: Identifies the list of frozen commits, which are the only commits of the root that stay valid. None
            until the list is complete; until then each server accepts only those commits of the root that it already
            holds.
        settled_at: When all sessions that the root had introduced had been reissued (introduced by another root), in
            milliseconds since 1970; None before. From then on the root's introductions no longer count.
    """

    id: str = json_member("id", read_id)
    at: int = json_member("at", read_time, iso)
    reason: str = json_member("reason", read_text, default="")
    successor: str | None = json_member("successor", read_id, default=None, is_nullable=True)
    proof: str | None = json_member("proof", read_signature, default=None, is_nullable=True)
    anchor_proof: str | None = json_member("anchorProof", read_signature, default=None, is_nullable=True)
    freeze: Freeze | None = json_member("freeze", Freeze.from_json, Freeze.to_json, default=None, is_nullable=True)
    settled_at: int | None = json_member("settledAt", read_time, iso, default=None)


def sign_proof(revoked: OwnedSession, successor: Session, at: int) -> str:
    """Sign, with a revoked root's own key, that it was revoked at `at` (ms since 1970) and replaced by `successor`."""
    # The time in an envelope is not signed. A root that has expired must still be replaceable.
    ts = min(at, revoked.session.expiration_ms)
    return sign_data(revoked, now_ms=ts, external=_proof_statement(revoked.id, successor, at))


def verify_proof(revocation: Revocation, *, revoked: Session, successor: Session) -> None:
    """Check the proof of a revocation: the revoked root's key must have signed exactly this revocation and successor.

    Raises:
        SuccessionError: The revocation has no proof, or the proof names other sessions, or its signature covers other
            data.
    """
    if revocation.proof is None or revocation.id != revoked.id or revocation.successor != successor.id:
        raise SuccessionError(
            f"the proof of the revocation of {revocation.id} is missing, or names another revoked root or successor"
        )
    statement = _proof_statement(revoked.id, successor, revocation.at)
    if not is_statement_signed(revocation.proof, by=revoked, statement=statement):
        raise SuccessionError(f"the proof of the revocation of {revocation.id} has an invalid signature")


def _proof_statement(revoked_id: str, successor: Session, at: int) -> dict[str, Any]:
    # SECURITY: the member `goatherd` states the purpose, so a signature under a proof is never valid as an endorsement,
    # a commit or a request (tests/unit/identity/test_revocations.py).
    return {"goatherd": DOMAIN, "revoked": revoked_id, "at": at, "successor": successor.to_json()}


DIGEST_BYTES: Final = 32
MAX_COMMITS: Final = 1_000_000
MAX_SHOWN: Final = 1000
"""How many commits a server describes in one answer."""


def commit_digest(commit: Commit) -> bytes | None:
    """Return the SHA-256 of the text that a commit's author signed; None if the commit is too malformed for that."""
    try:
        return hashlib.sha256(commit.signed_text(commit.session).encode("utf-8", "surrogatepass")).digest()
    except (EncodeError, RecursionError):
        return None


@dataclass(frozen=True, slots=True)
class FrozenList:
    """The list of a revoked root's commits that stay valid (frozen commits), as a set of SHA-256 digests.

    `to_bytes` returns the sorted digests, concatenated.
    """

    digests: frozenset[bytes]

    @classmethod
    def union(cls, lists: Iterable[FrozenList]) -> FrozenList:
        """Return the list of the frozen commits that are in at least one of the given lists."""
        return cls(frozenset().union(*(one.digests for one in lists)))

    @classmethod
    def from_bytes(cls, raw: bytes) -> FrozenList:
        """Read a list of frozen commits from the bytes that `to_bytes` returned.

        Raises:
            DecodeError: The bytes are not such a list, or contain more than a million digests.
        """
        count, rest = divmod(len(raw), DIGEST_BYTES)
        if rest or count > MAX_COMMITS:
            raise DecodeError("the bytes must be a list of SHA-256 digests")
        found = cls(frozenset(raw[start : start + DIGEST_BYTES] for start in range(0, len(raw), DIGEST_BYTES)))
        if found.to_bytes() != raw:
            raise DecodeError("a list of digests must be sorted, without repetitions")
        return found

    def to_bytes(self) -> bytes:
        return b"".join(sorted(self.digests))

    @property
    def digest(self) -> str:
        """SHA-256, hexadecimal, of the list of frozen commits as `to_bytes` encodes it."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def __len__(self) -> int:
        return len(self.digests)


def merge_frozen_lists(
    lists: Mapping[str, FrozenList],
    *,
    listed: Collection[str],
    distrusted: Collection[str],
    trusted_alone: Collection[str],
    instances: Mapping[str, str],
) -> FrozenList:
    """Merge servers' lists of the commits of a revoked root that they hold, into the list of those that stay valid.

    A commit is included if two servers report it, or if one server reports it whose list needs no confirmation.

    Args:
        lists: The reported lists, by URL of the server.
        listed: URLs of all servers that were asked. If all but one of them are distrusted, the remaining server's list
            counts without confirmation.
        distrusted: URLs of servers whose lists neither count nor confirm others.
        trusted_alone: URLs of servers whose lists count without confirmation.
        instances: Id of the server process behind each URL, so that one process with two URLs counts once.
    """
    heard = {url: one for url, one in lists.items() if url not in distrusted}
    enough = set(trusted_alone)
    if len(sole := set(listed) - set(distrusted)) == 1:
        enough |= sole
    # SECURITY: a commit counts only if two server processes report it, because a compromised server can report commits
    # that were signed after the revocation (tests/unit/revocation/test_claims_of_one_server.py).
    by_process: dict[str, set[bytes]] = {}
    for url, one in heard.items():
        by_process.setdefault(instances.get(url, url), set()).update(one.digests)
    holders = Counter(digest for digests in by_process.values() for digest in digests)
    both = frozenset(digest for digest, count in holders.items() if count > 1)
    return FrozenList.union([FrozenList(both), *(one for url, one in heard.items() if url in enough)])
