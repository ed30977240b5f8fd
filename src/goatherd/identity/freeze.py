"""What a cluster held of a revoked root's commits: a list of digests, fixed by its own digest in the identity document.

Pure. What it is not: it does not verify commits; being in the list stands beside a good signature, not in its place.
Rules: a digest is over the text that the root signed (formats 6.5), not over an id, which anybody can give to another
commit, and not over the signature, of which one key can make many for one text (T14).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from goatherd.errors import DecodeError, EncodeError

if TYPE_CHECKING:
    from goatherd.wire.commit import Commit

DIGEST_BYTES: Final = 32
MAX_COMMITS: Final = 1_000_000


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
