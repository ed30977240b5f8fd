"""Keep the commits of a request as the bytes that arrived, and recognize commits that were verified before by them.

A client that got no answer in time sends all its commits again. `KnownCommits` remembers the digests of commits whose
signature was valid, so that the same bytes need neither be parsed nor verified again.

Rules: only bytes that every JSON parser reads in the same way are passed on to the server as they arrived; any other
commit is parsed and encoded anew. A commit is recognized only if all its bytes are the same.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any, Final

from goatherd.identity.session import Session
from goatherd.wire.batch import RawCommits
from goatherd.wire.json import parse_json, to_json_bytes

# COMPAT: GoatDB writes the members `ver` (the program's build) and `id` of a commit first.
_HEAD: Final = re.compile(rb'\{(?:"ver":[0-9]{1,16},)?"id":"([A-Za-z0-9_-]{1,64})"')


class ReceivedCommit:
    """One commit of a request, parsed or not, and not checked yet: it may be any JSON value.

    Args:
        raw: The parsed commit; None for a known commit that has not been parsed.
        source: The body that contains the commit, and the offsets of its first byte and after its last one; None if
            the commit must be encoded anew.
        known_id: The id of the commit if its bytes were verified before; else None.
    """

    __slots__ = ("_digest", "_raw", "_source", "id", "is_known")

    def __init__(self, raw: Any, source: tuple[bytes, int, int] | None = None, *, known_id: str | None = None) -> None:
        self._raw = raw
        self._source = source
        self._digest: bytes | None = None
        self.is_known = known_id is not None
        """Whether a commit with these bytes was verified before."""
        self.id: str | None = known_id if known_id is not None else _id_of(raw)
        """The commit's id; None if it has none."""

    @property
    def raw(self) -> Any:
        """The parsed commit."""
        if self._raw is None and self.is_known:
            self._raw = parse_json(self.text)
        return self._raw

    @property
    def text(self) -> bytes:
        """The commit as JSON in UTF-8, as it is passed on to the server."""
        if self._source is None:
            self._source = (text := to_json_bytes(self._raw)), 0, len(text)
        data, start, end = self._source
        return data[start:end]

    @property
    def digest(self) -> bytes:
        """The SHA-256 of the commit's bytes."""
        if self._digest is None:
            self._digest = hashlib.sha256(self.text).digest()
        return self._digest


def _id_of(raw: Any) -> str | None:
    found = raw.get("id") if isinstance(raw, dict) else None
    return found if isinstance(found, str) else None


class KnownCommits:
    """Remember commits whose signature was valid: the digest of their bytes, and the session that signed them.

    Args:
        capacity: Maximum number of commits; the oldest are forgotten.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._entries: dict[str, tuple[bytes, int, Session]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, commit: ReceivedCommit, signer: Session) -> None:
        """Remember a commit whose signature by this session was valid."""
        if commit.id is None:
            return
        self._entries[commit.id] = commit.digest, len(commit.text), signer
        while len(self._entries) > self._capacity:
            del self._entries[next(iter(self._entries))]

    def is_valid(self, commit: ReceivedCommit, signer: Session | None) -> bool:
        """Return whether a commit with the same bytes was valid for a session with the same key and expiration.

        SECURITY: a session that is revoked or has another key must not get a remembered verdict
        (tests/unit/door/test_trusted_sessions.py).
        """
        entry = self._entries.get(commit.id) if commit.id is not None else None
        return entry is not None and entry[2] == signer and entry[0] == commit.digest

    def find(self, body: bytes, start: int) -> tuple[str, int] | None:
        """Return the id and the end of the verified commit whose bytes begin at an offset of a body; else None."""
        head = _HEAD.match(body, start)
        if head is None:
            return None
        commit_id = head[1].decode("ascii")
        entry = self._entries.get(commit_id)
        if entry is None:
            return None
        end = start + entry[1]
        # SECURITY: the commit counts as known only if all its bytes are the same: a later member could repeat the id
        # (tests/unit/door/test_received_commits.py).
        return (commit_id, end) if hashlib.sha256(body[start:end]).digest() == entry[0] else None


NOTHING_KNOWN: Final = KnownCommits(0)


class ReceivedList(RawCommits):
    """The commits of one sync message in a large body. Commits that were verified before are not parsed.

    Args:
        data: The body.
        known: The commits that were verified before.
    """

    def __init__(self, data: bytes, known: KnownCommits) -> None:
        super().__init__(data)
        self._known = known
        self._ids: dict[int, str] = {}
        self._values: dict[int, Any] = {}  # both by the offset of the commit's first byte

    def find_known(self, start: int) -> int:
        """Return the end of the commit that begins at an offset of the body, if it was verified before; otherwise 0."""
        found = self._known.find(self._data, start)
        if found is None:
            return 0
        self._ids[start] = found[0]
        return found[1]

    def add_parsed(self, start: int, end: int, value: Any) -> None:
        """Add the commit between two offsets of the body; `value` is its parsed JSON, which is kept."""
        super().add_parsed(start, end, value)
        self._values[start] = value

    def receive(self, index: int) -> ReceivedCommit:
        """Return the commit at an index.

        Raises:
            TooManyValuesError: The commit has more JSON values than Goatherd parses.
            DecodeError: The commit is not JSON.
        """
        start = self._starts[index]
        source = (self._data, start, self._ends[index])
        if start in self._ids:
            return ReceivedCommit(None, source, known_id=self._ids[start])
        if start in self._values:
            return ReceivedCommit(self._values.pop(start), source)
        return ReceivedCommit(self[index])
