"""A root that must not be believed any more, what the cluster held of it, and who comes after it.

Pure. What it is not: it does not change a document (`transitions`) nor judge one (`succession`). Rules: a proof is no
endorsement. It does not say "believe the next root because I do"; it shows that whoever wrote the revocation had the
revoked root's private key before him, which a stranger who can only write to the store has not. It counts for one
thing, in a document that came out of the store: which root follows the revoked one. Whoever has stolen the key can make
a proof too, but needs the store to have it read.

What a cluster held of a revoked root's commits: a list of digests, fixed by its own digest in the identity document.

Pure. What it is not: it does not verify commits; being in the list stands beside a good signature, not in its place.
Rules: a digest is over the text that the root signed, not over an id, which anybody can give to another
commit, and not over the signature, of which one key can make many for one text.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from goatherd.errors import DecodeError, EncodeError, SuccessionError, VerificationError
from goatherd.identity.session import OwnedSession, Session, parse_signature, sign_data, verify_data
from goatherd.times import iso
from goatherd.wire.javascript_values import UNDEFINED

if TYPE_CHECKING:
    from goatherd.wire.commit import Commit


DOMAIN = "revocation/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Freeze:
    """What the cluster held of a revoked root's commits when the list was closed.

    Attributes:
        at: When it was closed, in milliseconds since 1970.
        commits: How many there are.
        digest: SHA-256, hexadecimal, of the list itself (`goatherd.identity.revocations.FrozenList`).
        extra: Members that we do not know.
    """

    at: int
    commits: int
    digest: str
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False, hash=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Revocation:
    """A root that must not be believed any more.

    Attributes:
        id: The root.
        at: When it was revoked, in milliseconds since 1970.
        reason: For people.
        successor: The root that signed, or began to sign, when it was revoked; only together with `proof`.
        proof: The revoked root's signature, made by whoever revoked it, over the revocation and its successor.
        freeze: The list of what the cluster held. None: not closed yet, so that each node goes by what it holds itself.
        settled_at: When every session that it had introduced had been introduced again, in milliseconds since 1970;
            from then on its word counts for no session any more.
        extra: Members that we do not know.
    """

    id: str
    at: int
    reason: str
    successor: str | None = None
    proof: str | None = None
    freeze: Freeze | None = None
    settled_at: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False, hash=False)


def sign_proof(revoked: OwnedSession, successor: Session, at: int) -> str:
    """Sign, with the revoked root's key, that it was revoked at `at` (milliseconds since 1970) for `successor`."""
    # The time in an envelope is not signed. A root that has expired must still be replaceable.
    ts = min(at, revoked.session.expiration_ms)
    return sign_data(revoked, now_ms=ts, external=_proof_statement(revoked.id, successor, at))


def verify_proof(revocation: Revocation, *, revoked: Session, successor: Session) -> None:
    """Check that the revoked root's key made the proof, for exactly this revocation and successor.

    Raises:
        SuccessionError: There is none, it names other sessions, or it covers something else.
    """
    if revocation.proof is None or revocation.id != revoked.id or revocation.successor != successor.id:
        raise SuccessionError(f"the revocation of {revocation.id} names other sessions")
    try:
        envelope = parse_signature(revocation.proof)
        # SECURITY: as for an endorsement, nothing else may be signed with it (tests/unit/identity/test_revocations.py).
        valid = envelope.data is UNDEFINED
        if valid:
            verify_data(revoked, envelope, external=_proof_statement(revoked.id, successor, revocation.at))
    except VerificationError:
        valid = False
    if not valid:
        raise SuccessionError(f"the proof of the revocation of {revocation.id} does not verify")


def revocation_json(revocation: Revocation) -> dict[str, Any]:
    encoded: dict[str, Any] = {"id": revocation.id, "at": iso(revocation.at), "reason": revocation.reason}
    if revocation.successor is not None:
        encoded.update(successor=revocation.successor, proof=revocation.proof)
    if revocation.freeze is not None:
        freeze = revocation.freeze
        encoded["freeze"] = {"at": iso(freeze.at), "commits": freeze.commits, "digest": freeze.digest, **freeze.extra}
    if revocation.settled_at is not None:
        encoded["settledAt"] = iso(revocation.settled_at)
    return {**encoded, **revocation.extra}


def _proof_statement(revoked_id: str, successor: Session, at: int) -> dict[str, Any]:
    # SECURITY: the first member keeps a proof from ever being an endorsement, a commit or a request
    # (tests/unit/identity/test_revocations.py).
    return {"goatherd": DOMAIN, "revoked": revoked_id, "at": at, "successor": successor.to_json()}


DIGEST_BYTES: Final = 32
MAX_COMMITS: Final = 1_000_000
MAX_SHOWN: Final = 1000
"""How many commits a server describes in one answer."""


def commit_digest(commit: Commit) -> bytes | None:
    """Return the SHA-256 of what the commit's author signed; None where that cannot be written, so cannot verify."""
    try:
        return hashlib.sha256(commit.signed_text(commit.session).encode("utf-8", "surrogatepass")).digest()
    except (EncodeError, RecursionError):
        return None


@dataclass(frozen=True, slots=True)
class FrozenList:
    """The digests of the commits that count. As bytes: the digests, sorted, one after the other."""

    digests: frozenset[bytes]

    @classmethod
    def union(cls, lists: Iterable[FrozenList]) -> FrozenList:
        """Return what any of them holds."""
        return cls(frozenset().union(*(one.digests for one in lists)))

    @classmethod
    def from_bytes(cls, raw: bytes) -> FrozenList:
        """Read what `to_bytes` wrote.

        Raises:
            DecodeError: It is something else, or longer than is believable.
        """
        count, rest = divmod(len(raw), DIGEST_BYTES)
        if rest or count > MAX_COMMITS:
            raise DecodeError("not a list of SHA-256 digests")
        found = cls(frozenset(raw[start : start + DIGEST_BYTES] for start in range(0, len(raw), DIGEST_BYTES)))
        if found.to_bytes() != raw:
            raise DecodeError("a list of digests is sorted and holds none twice")
        return found

    def to_bytes(self) -> bytes:
        return b"".join(sorted(self.digests))

    @property
    def digest(self) -> str:
        """SHA-256 of the list, hexadecimal."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def __len__(self) -> int:
        return len(self.digests)


def merge_frozen_lists(
    lists: Mapping[str, FrozenList],
    *,
    listed: Collection[str],
    distrusted: Collection[str] = (),
    trusted_alone: Collection[str] = (),
    instances: Mapping[str, str] | None = None,
) -> FrozenList:
    """Return what counts of what servers say they hold: what two of them hold, or one whose word is enough.

    Args:
        lists: By the servers' URLs.
        listed: Every server that was asked. If only one is not distrusted, nobody can confirm it: its list counts.
        distrusted: Servers whose lists do not count, and confirm nobody's.
        trusted_alone: Servers whose lists count although nobody confirms them.
        instances: Ids of the server processes behind URLs: one that is listed twice is no two servers.
    """
    heard = {url: one for url, one in lists.items() if url not in distrusted}
    enough = set(trusted_alone)
    if len(sole := set(listed) - set(distrusted)) == 1:
        enough |= sole
    # SECURITY: one server that was broken into can name what was signed after the revocation
    # (tests/unit/revocation/test_revoker.py).
    by_process: dict[str, set[bytes]] = {}
    for url, one in heard.items():
        by_process.setdefault((instances or {}).get(url, url), set()).update(one.digests)
    holders = Counter(digest for digests in by_process.values() for digest in digests)
    both = frozenset(digest for digest, count in holders.items() if count > 1)
    return FrozenList.union([FrozenList(both), *(one for url, one in heard.items() if url in enough)])
