"""What a cluster held of a revoked root's commits: a list of digests, fixed by its own digest in the identity document.

Pure. What it is not: it does not verify commits; being in the list stands beside a good signature, not in its place.
Rules: a digest is over the text that the root signed, not over an id, which anybody can give to another
commit, and not over the signature, of which one key can make many for one text.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from goatherd.errors import DecodeError, EncodeError

if TYPE_CHECKING:
    from goatherd.wire.commit import Commit

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


def counted(
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
    # (tests/unit/rotation/test_revocation.py).
    by_process: dict[str, set[bytes]] = {}
    for url, one in heard.items():
        by_process.setdefault((instances or {}).get(url, url), set()).update(one.digests)
    holders = Counter(digest for digests in by_process.values() for digest in digests)
    both = frozenset(digest for digest, count in holders.items() if count > 1)
    return FrozenList.union([FrozenList(both), *(one for url, one in heard.items() if url in enough)])
