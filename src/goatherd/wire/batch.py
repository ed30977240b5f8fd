"""Read the body of a ``/batch-sync`` request in portions, so that no single call blocks other threads for long. Pure.

A JSON parser holds Python's global lock while it parses: 64 MiB of JSON stop every other thread for a second, and
``[],[],…`` becomes objects of thirty times its size. `read_batch` finds where each commit begins and ends, parses
everything else, and leaves the commits as bytes until they are used (`RawCommits`).

It accepts what `goatherd.wire.json.parse_json` accepts, up to the bounds below, which are far above what GoatDB writes.
Commits are not checked here: a malformed one is found when it is decoded.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Final, overload

from goatherd.errors import DecodeError
from goatherd.wire.json import parse_json
from goatherd.wire.messages import SyncMessage, decode_request_element

SMALL_BODY: Final = 16 * 1024
"""Bodies up to this size are parsed whole; that takes less than a millisecond, whatever they hold."""
SMALLEST_COMMIT: Final = 100
"""Bytes of a commit with ids, a record and a signature of one character each; anything shorter is none."""
MAX_COMMIT_VALUES: Final = 100_000
"""Objects, arrays and their members in one commit; GoatDB's clients stall on items far smaller."""
MAX_OTHER_VALUES: Final = 200_000
"""The same for everything in a body but the commits."""
PORTION_BYTES: Final = 512 * 1024
PORTION_COMMITS: Final = 500

_WINDOW: Final = 256 * 1024
"""Bytes that one search goes through before other threads get their turn."""

_RUN: Final = re.compile(rb'(?:[^"\[\]{}]++|"(?:[^"\\]++|\\.)*+")*+', re.DOTALL)
_STRING: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_SPACE: Final = b" \t\n\r"
_COMMITS_DEPTH: Final = 4
"""``[{"path": …, "msg": {"c": [``: the arrays at this depth hold commits, or nothing that is read."""
_SHAPE: Final = b"[{{["


class TooManyValuesError(DecodeError):
    """A commit has more JSON values than Goatherd reads."""

    code = "wire.too_many_values"


class RawCommits(Sequence[Any]):
    """The commits of one message as bytes; each is parsed only when it is used.

    Attributes:
        other: The number of array items that are not objects, or too short to be commits. They are left out.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._starts = array("Q")
        self._ends = array("Q")
        self.other = 0

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, index: int) -> Any: ...

    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...

    def __getitem__(self, index: int | slice) -> Any:
        """Parse one commit, or those of a slice.

        Raises:
            TooManyValuesError: A commit has more values than Goatherd reads.
            DecodeError: A commit is not JSON.
        """
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        text = self._data[self._starts[index] : self._ends[index]]
        if not _is_bounded(text, MAX_COMMIT_VALUES):
            raise TooManyValuesError(f"a commit of {len(text)} bytes, has more values than are allowed")
        return parse_json(text)

    def size(self, index: int) -> int:
        """Return the size of one commit in bytes."""
        return self._ends[index] - self._starts[index]

    def check(self) -> None:
        """Check that every commit is JSON. Commits with more values than Goatherd reads are not parsed.

        Raises:
            DecodeError: A commit is not JSON.
        """
        for start, end in zip(self._starts, self._ends, strict=True):
            text = self._data[start:end]
            if _is_bounded(text, MAX_COMMIT_VALUES):
                parse_json(text)

    def add(self, start: int, end: int) -> None:
        """Add the object at these offsets."""
        if end - start < SMALLEST_COMMIT:
            self.add_other(self._data[start:end])
        else:
            self._starts.append(start)
            self._ends.append(end)

    def add_other(self, text: bytes) -> None:
        """Count array items that are not commits; `text` holds them as JSON with commas between them.

        Raises:
            DecodeError: The text is not JSON, or there are more such items than a body may hold.
        """
        if not _is_bounded(text, MAX_OTHER_VALUES):
            raise DecodeError("the batch has more values than are allowed")
        self.other += len(parse_json(b"[" + text + b"]"))
        if self.other > MAX_OTHER_VALUES:
            raise DecodeError("the batch has more values than are allowed")

    def portions(self) -> Iterator[tuple[int, int]]:
        """Yield ranges of commits: about `PORTION_BYTES` and at most `PORTION_COMMITS` each."""
        first = 0
        for index in range(len(self)):
            size = self._ends[index] - self._starts[first]
            if index > first and (size > PORTION_BYTES or index - first >= PORTION_COMMITS):
                yield first, index
                first = index
        if first < len(self):
            yield first, len(self)


def read_batch(body: bytes, most: int) -> list[tuple[str, SyncMessage]]:
    """Return the paths and messages of a request body; the paths are not checked. Large bodies give `RawCommits`.

    Args:
        body: The body as received.
        most: The maximum number of elements.

    Raises:
        DecodeError: The body is not JSON or not an array, an element is malformed, or there are too many elements or
            values.
    """
    if len(body) <= SMALL_BODY:
        return [decode_request_element(each) for each in _check_array(parse_json(body), most)]
    elements, lists = split_batch(body, most)
    for commits in lists:
        commits.check()
    found = []
    for each in elements:
        path, message = decode_request_element(each)
        # Every array at the depth of `c` was taken out and holds the number of its list.
        found.append((path, replace(message, commits=lists[message.commits[0]] if message.commits else ())))
    return found


def split_batch(body: bytes, most: int) -> tuple[list[Any], list[RawCommits]]:
    """Split a body into its elements as JSON, without the commits, and the commits.

    In the JSON, each array of commits in a message (``c``, and ``ad``, which GoatDB never reads) is replaced by an
    array that holds only the index of its commits in the second result. This includes empty arrays.

    Raises:
        DecodeError: The body is not JSON or not an array, or has more elements or values than `most` and this module
            allow.
    """
    try:
        rest, lists = _split_elements(body)
    except IndexError:
        raise DecodeError("not JSON") from None
    return _check_array(parse_json(rest), most), lists


def _check_array(value: Any, most: int) -> list[Any]:
    if not isinstance(value, list):
        raise DecodeError("a batch must be a JSON array")
    if len(value) > most:
        raise DecodeError(f"a batch of {len(value)} elements")
    return value


def _split_elements(body: bytes) -> tuple[bytes, list[RawCommits]]:
    """Return the body with each array of commits replaced by its number, and these arrays."""
    rest: list[bytes] = []
    lists: list[RawCommits] = []
    stack = bytearray()
    position = kept = values = 0
    while True:
        end = _find_bracket(body, position)
        if end == len(body):
            break
        character = body[end : end + 1]
        position = end + 1
        values += 1
        if values > MAX_OTHER_VALUES:
            raise DecodeError("the batch has more values than are allowed")
        if character in b"[{":
            stack += character
            if stack == _SHAPE:
                commits = RawCommits(body)
                rest += [body[kept:position], b"%d" % len(lists)]
                kept = position = _read_commits(body, position, commits)
                lists.append(commits)
        elif stack:
            stack.pop()
        else:
            raise DecodeError("not JSON")
    rest.append(body[kept:])
    text = b"".join(rest)
    if not _is_bounded(text, MAX_OTHER_VALUES):
        raise DecodeError("the batch has more values than are allowed")
    return text, lists


def _read_commits(body: bytes, position: int, commits: RawCommits) -> int:
    """Record the objects of the array that begins at `position`, and return the position of its closing bracket."""
    gap, depth, start, is_first = position, 0, position, True
    while True:
        end = _find_bracket(body, position)
        character = body[end]
        position = end + 1
        if character in b"{[":
            if depth == 0:
                start = end
            depth += 1
        elif depth:
            depth -= 1
            if depth == 0 and body[start] in b"{":
                _read_gap(body[gap:start], commits, is_first=is_first, is_last=False)
                commits.add(start, position)
                gap, is_first = position, False
        else:
            _read_gap(body[gap:end], commits, is_first=is_first, is_last=True)
            return end


def _find_bracket(body: bytes, position: int) -> int:
    """Return the position of the next bracket outside of a string, or the length of the body.

    Raises:
        DecodeError: A string has no end.
    """
    while position < len(body):
        found = _RUN.match(body, position, position + _WINDOW)
        if found is not None:
            position = found.end()
        if body[position : position + 1] == b'"':
            position = _skip_string(body, position)
        elif found is None or position < min(len(body), found.endpos):
            break
    return position


def _skip_string(body: bytes, start: int) -> int:
    """Return the position of the end of a string that is longer than a window."""
    position = start + 1
    while True:
        end = body.find(b'"', position)
        if end < 0:
            raise DecodeError("not JSON")
        before = body[position:end]
        position = end + 1
        if (len(before) - len(before.rstrip(b"\\"))) % 2 == 0:
            return position


def _read_gap(text: bytes, commits: RawCommits, *, is_first: bool, is_last: bool) -> None:
    """Check that between two objects of an array there are only commas and items that are not objects."""
    bare = text.strip(_SPACE)
    if bare == (b"" if is_first or is_last else b","):
        return
    if not is_first:
        if not bare.startswith(b","):
            raise DecodeError("not JSON")
        bare = bare[1:]
    if not is_last:
        if not bare.endswith(b","):
            raise DecodeError("not JSON")
        bare = bare[:-1]
    if not bare.strip(_SPACE):
        raise DecodeError("not JSON")
    commits.add_other(bare)


def _is_bounded(text: bytes, most: int) -> bool:
    """Return whether a JSON text holds at most `most` values."""
    if len(text) <= most:
        return True
    count = sum(text.count(mark) for mark in (b",", b"[", b"{"))
    if count <= most:
        return True
    for string in _STRING.finditer(text):
        inside = string[0]
        count -= sum(inside.count(mark) for mark in (b",", b"[", b"{"))
    return count <= most
