"""The index of a log: the members by which a server finds and orders commits, so that it need not parse the log again.

Pure; `goatherd.node.log_storage.FileLogIndex` reads and writes the file. An index is a cache: a server without it reads
the log line by line, with the same result (docs/adr/0029-log-index.md). GoatDB has no such file and ignores it.

An index is a text file of lines. Each line is a checksum, a space and a JSON object. The first line, the header, says
for which format, organization and schemas the index was written; an index with another header is not used. Each further
line is a block, which describes the next part of the log: the part's size in bytes, its SHA-256, and the members of its
commits in columns. A block is used only if these bytes are still the same, and only after all blocks before it. So a
log that was repaired, restored or damaged is parsed from the first changed part on.

SECURITY: the index holds nothing that is secret, and proves nothing. Signatures are verified over the bytes of the log,
as without an index (tests/unit/node/test_log_index.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from sys import intern
from typing import Any, Final, Protocol

import orjson

from goatherd.errors import DecodeError
from goatherd.wire.commit import Commit, compact_commit
from goatherd.wire.schema import Registry

FORMAT: Final = 2
"""Version of the index's format. It changes whenever a server would decode a log's line to another commit."""

BLOCK_LINES: Final = 1000
"""Number of commits in a block: so many are described while other threads wait, which takes some milliseconds."""

_CHECKSUM_LENGTH: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexedPart:
    """One part of a log, with what the index says of it.

    Attributes:
        block: The columns of the block, as JSON.
        lines: The part's lines that are not blank, without their newlines.
        log_end: Offset in the log after the part.
        index_end: Offset in the index after the block.
    """

    block: dict[str, Any]
    lines: Sequence[bytes]
    log_end: int
    index_end: int


class LogIndex(Protocol):
    """The interface of an index's storage, beside its log."""

    def read_parts(self, header: bytes) -> Iterator[IndexedPart]:
        """Yield the parts of the log that the index describes, in order; stop at the first that does not match it.

        Args:
            header: The index's first line. An index with another one is not used.
        """
        ...

    def read_part(self, start: int, size: int) -> bytes:
        """Read whole lines of the log from byte `start` on: about `size` bytes."""
        ...

    def write_block(self, header: bytes, block: bytes, offset: int) -> int:
        """Write a block at an offset of the index, and drop what the index holds after this offset.

        Args:
            header: The index's first line, which is written before the first block.
            block: The block's line.
            offset: The `index_end` of the block before it; 0 for the first block.

        Returns:
            The offset after the block.

        Raises:
            StorageError: The index cannot be written.
        """
        ...


def encode_header(org: str, registry: Registry) -> bytes:
    """Return the first line of an index for an organization's logs, as a server with these schemas decodes them."""
    schemas = [
        [schema.ns, schema.version, [[each.name, each.type] for each in schema.by_name.values()]]
        for schema in registry.schemas
    ]
    return _encode_line({"format": FORMAT, "org": org, "schemas": schemas})


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedBlock:
    """A block to write.

    Attributes:
        text: The block's line.
        size: Size of the described part of the log in bytes; 0 if there is nothing to write.
        commit_count: Number of commits in the block.
        is_blocked: Whether the next line of the log does not fit the commits that the server holds, so that the index
            cannot be continued.
    """

    text: bytes
    size: int
    commit_count: int
    is_blocked: bool


def encode_block(
    part: bytes, commits: Iterator[Commit], registry: Registry, is_duplicate: Callable[[str], bool]
) -> EncodedBlock:
    """Describe a part of a log: at most `BLOCK_LINES` lines.

    Args:
        part: Whole lines of the log; an unfinished last line is ignored.
        commits: The commits that a server holds of this log, in log order, from the part's first one on.
        registry: The schemas that the server knows.
        is_duplicate: Returns whether the server held a commit with an id before the first of `commits`.
    """
    columns = _Columns(registry, is_duplicate)
    size, is_blocked = 0, False
    expected = next(commits, None)
    for line in part.split(b"\n")[:-1]:
        if line:
            if expected is None or columns.line_count == BLOCK_LINES:
                break
            match columns.add_line(line, expected):
                case _Match.EXPECTED:
                    expected = next(commits, None)
                case _Match.OTHER:
                    is_blocked = True
                    break
                case _Match.SKIPPED:
                    pass
        size += len(line) + 1
    head = {"size": size, "sha256": hashlib.sha256(part[:size]).hexdigest()}
    return EncodedBlock(
        text=_encode_line(head | columns.to_json()),
        size=size,
        commit_count=len(columns.ids),
        is_blocked=is_blocked,
    )


def decode_line(line: bytes) -> dict[str, Any]:
    """Decode a line of an index.

    Raises:
        DecodeError: The line is damaged or unfinished.
    """
    checksum, _, text = line[:-1].partition(b" ")
    if not line.endswith(b"\n") or checksum != _compute_checksum(text):
        raise DecodeError("a line of the index is damaged")
    found = orjson.loads(text)
    if not isinstance(found, dict):
        raise DecodeError("a line of the index is not an object")
    return found


def split_part(block: dict[str, Any], part: bytes) -> list[bytes]:
    """Return the lines, without blank ones, of the part of a log that a block describes.

    Raises:
        DecodeError: The part has changed since it was described.
    """
    if hashlib.sha256(part).hexdigest() != block["sha256"]:
        raise DecodeError("the log has changed since its index was written")
    return [line for line in part.split(b"\n") if line]


def decode_part(part: IndexedPart, *, org: str, registry: Registry) -> tuple[list[Commit], int]:
    """Return the commits of a part of a log, in compact form, and the number of its lines that are not commits.

    Raises:
        DecodeError: The part's index block does not describe these lines.
    """
    block = part.block
    try:
        lines = part.lines
        if block["skipped"]:
            skipped = set(block["skipped"])
            lines = [line for number, line in enumerate(lines) if number not in skipped]
        sessions = [intern(session) for session in block["sessions"]]
        schemas = [None if schema is None else intern(schema) for schema in block["schemas"]]
        commits: list[Commit] = []
        append = commits.append
        columns = [block[name] for name in ("ids", "keys", "session", "ts", "parents", "schema", "bases")]
        for line, commit_id, key, session, ts, parents, schema, base in zip(lines, *columns, strict=True):
            if commit_id is None:
                append(Commit.from_stored(line, org=org, registry=registry))
                continue
            append(
                compact_commit(
                    line,
                    commit_id,
                    commits[key].key if type(key) is int else key,
                    sessions[session],
                    ts,
                    org,
                    tuple([commits[one].id if type(one) is int else one for one in parents]) if parents else (),
                    schemas[schema],
                    commits[base].id if type(base) is int else base,
                )
            )
        return commits, block["undecodable"]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise DecodeError("a block of the index does not describe the lines of its log") from error


class _Match(Enum):
    EXPECTED = auto()
    """The line is the next commit that the server holds."""
    SKIPPED = auto()
    """The server skips the line: it is no commit, or one that the server held already."""
    OTHER = auto()
    """Neither."""


class _Columns:
    """The members of a block's commits. A string that occurred in an earlier row is written as that row's number."""

    def __init__(self, registry: Registry, is_duplicate: Callable[[str], bool]) -> None:
        self.line_count = 0
        self.ids: list[str | None] = []
        self._registry = registry
        self._is_duplicate = is_duplicate
        self._keys: list[str | int] = []
        self._session: list[int] = []
        self._ts: list[float] = []
        self._parents: list[list[str | int] | None] = []
        self._schema: list[int] = []
        self._bases: list[str | int | None] = []
        self._skipped: list[int] = []
        self._undecodable = 0
        self._sessions: dict[str, int] = {}
        self._schemas: dict[str | None, int] = {}
        self._rows: dict[str, int] = {}
        self._rows_of_keys: dict[str, int] = {}

    def add_line(self, line: bytes, expected: Commit) -> _Match:
        """Describe the next line of the log, where the server's next commit is `expected`."""
        if not expected.is_compact or expected.encoded != line or not _is_plain(expected):
            return self._add_unusual(line, expected)
        parents: list[str | int] | None = None
        if expected.parents:
            parents = [self._rows.get(parent, parent) for parent in expected.parents]
        base = expected.base
        row = len(self.ids)
        self._add_row(
            expected.id,
            expected.id,
            self._rows_of_keys.get(expected.key, expected.key),
            self._sessions.setdefault(expected.session, len(self._sessions)),
            expected.ts,
            parents,
            self._schemas.setdefault(expected.schema, len(self._schemas)),
            None if base is None else self._rows.get(base, base),
        )
        self._rows_of_keys.setdefault(expected.key, row)
        return _Match.EXPECTED

    def _add_unusual(self, line: bytes, expected: Commit) -> _Match:
        """Describe a line that a server must decode, or skips."""
        try:
            found = Commit.from_stored(line, org=expected.org, registry=self._registry)
        except DecodeError:
            self._undecodable += 1
        else:
            if found == expected:
                self._add_row(found.id, None)
                return _Match.EXPECTED
            if found.id not in self._rows and not self._is_duplicate(found.id):
                return _Match.OTHER
        self._skipped.append(self.line_count)
        self.line_count += 1
        return _Match.SKIPPED

    def _add_row(
        self,
        commit_id: str,
        written_id: str | None,
        key: str | int = "",
        session: int = 0,
        ts: float = 0,
        parents: list[str | int] | None = None,
        schema: int = 0,
        base: str | int | None = None,
    ) -> None:
        self._rows[commit_id] = len(self.ids)
        self.line_count += 1
        self.ids.append(written_id)
        self._keys.append(key)
        self._session.append(session)
        self._ts.append(ts)
        self._parents.append(parents)
        self._schema.append(schema)
        self._bases.append(base)

    def to_json(self) -> dict[str, Any]:
        return {
            "ids": self.ids,
            "keys": self._keys,
            "sessions": list(self._sessions),
            "session": self._session,
            "ts": self._ts,
            "parents": self._parents,
            "schemas": list(self._schemas),
            "schema": self._schema,
            "bases": self._bases,
            "skipped": self._skipped,
            "undecodable": self._undecodable,
        }


def _is_plain(commit: Commit) -> bool:
    """Return whether JSON holds a commit's members without any change."""
    texts = (commit.id, commit.key, commit.session, commit.schema or "", commit.base or "", *commit.parents)
    return type(commit.ts) is int and all(map(str.isascii, texts))


def _encode_line(value: dict[str, Any]) -> bytes:
    text = orjson.dumps(value)
    return _compute_checksum(text) + b" " + text + b"\n"


def _compute_checksum(text: bytes) -> bytes:
    return hashlib.sha256(text).hexdigest()[:_CHECKSUM_LENGTH].encode()
