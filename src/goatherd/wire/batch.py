"""Read the body of a ``/batch-sync`` request in portions, so that no single call blocks other threads for long. Pure.

A JSON parser holds Python's global lock while it parses: 64 MiB of JSON block every other thread for a second, and the
objects made from ``[],[],…`` take thirty times its size. So `read_batch` finds where each commit begins and ends,
parses everything else, and keeps the commits as bytes until they are used (`RawCommits`).

In JSON without spaces between its values, as GoatDB writes it, the next ``},{"`` is most likely the end of a commit. If
the bytes up to there are one JSON object, they are the commit; otherwise the module finds the ends of this commit and
the following ones by counting brackets.

The module accepts the JSON that `goatherd.wire.json.parse_json` accepts, up to limits far above what GoatDB writes.
Commits are not checked here: a malformed commit is detected when it is decoded.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final, TypeVar, overload

from goatherd.errors import DecodeError
from goatherd.wire.json import MAX_DEPTH, parse_json, parse_plain_json
from goatherd.wire.messages import SyncMessage, decode_request_element

SMALL_BODY: Final = 16 * 1024
"""Parsing a body up to this size takes less than a millisecond, whatever it holds."""
_LIGHT_BODY: Final = 512 * 1024
_LIGHT_VALUES: Final = 1000
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

_RUN: Final = re.compile(rb'(?:[^"\[\]{}]++|"(?:[^"\\]{1,256}+|\\.){0,4}+")*+', re.DOTALL)
"""Text without brackets. Longer strings (a filter's bits) are found faster by `_skip_string`."""
_CHARACTERS: Final = re.compile(rb'(?:[^"\\]++|\\.)++', re.DOTALL)
_STRING: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_SPACE: Final = b" \t\n\r"
_SHAPE: Final = b"[{{["
"""``[{"path": …, "msg": {"c": [``: the arrays at this depth hold commits, or nothing that is read."""
_ARRAY_START: Final = re.compile(rb"(?:\xef\xbb\xbf)?[ \t\n\r]*+\[")


class TooManyValuesError(DecodeError, code="wire.too_many_values"):
    """A commit contains more JSON values than Goatherd parses."""


class RawCommits(Sequence[Any]):
    """The undecoded commits of one sync message, as bytes; each is parsed only when it is used.

    Attributes:
        other: The number of items in the message's list of commits that are not objects, or too short to be commits.
            These items are left out.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._starts = array("Q")
        self._ends = array("Q")
        self._checked = 0
        self.other = 0

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, index: int) -> Any: ...

    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...

    def __getitem__(self, index: int | slice) -> Any:
        """Parse and return the commit at an index, or the commits in a slice.

        Raises:
            TooManyValuesError: A commit has more JSON values than Goatherd parses.
            DecodeError: A commit is not JSON.
        """
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        text = self.text(index)
        if not _is_bounded(text, MAX_COMMIT_VALUES):
            raise TooManyValuesError(f"a commit of {len(text)} bytes has more JSON values than are allowed")
        return parse_json(text)

    def text(self, index: int) -> bytes:
        """Return the commit at this index as the bytes that were received."""
        return self._data[self._starts[index] : self._ends[index]]

    def size(self, index: int) -> int:
        """Return the size in bytes of the commit at this index."""
        return self._ends[index] - self._starts[index]

    def check_json(self) -> None:
        """Check that every commit is JSON. Commits with more JSON values than Goatherd parses are not checked.

        Raises:
            DecodeError: A commit is not JSON.
        """
        for index in range(self._checked, len(self)):
            text = self.text(index)
            if _is_bounded(text, MAX_COMMIT_VALUES):
                parse_json(text)

    def find_known(self, start: int) -> int:
        """Return the end of the commit at an offset of the body if a subclass remembers it; 0 in this class."""
        del start
        return 0

    def add_parsed(self, start: int, end: int, value: Any) -> None:
        """Add the JSON object between two offsets of the body as a commit; `value` is the object, parsed."""
        del value
        self.add(start, end)
        self._checked = len(self)

    def add(self, start: int, end: int) -> None:
        """Add the JSON object between two offsets of the body as a commit.

        An object that is too short to be a commit is only counted (`other`).
        """
        if end - start < SMALLEST_COMMIT:
            self.add_other(self._data[start:end])
        else:
            self._starts.append(start)
            self._ends.append(end)

    def add_other(self, text: bytes) -> None:
        """Count items of the list of commits that are not commits.

        `text` has these items as JSON, with commas between them.

        Raises:
            DecodeError: The text is not JSON, or there are more such items than a body may hold.
        """
        if not _is_bounded(text, MAX_OTHER_VALUES):
            raise DecodeError("the batch has more JSON values than are allowed")
        self.other += len(parse_json(b"[" + text + b"]"))
        if self.other > MAX_OTHER_VALUES:
            raise DecodeError("the batch has more JSON values than are allowed")

    def portions(self) -> Iterator[tuple[int, int]]:
        """Yield ranges of commits to process together: about `PORTION_BYTES` and at most `PORTION_COMMITS` each."""
        first = 0
        for index in range(len(self)):
            size = self._ends[index] - self._starts[first]
            if index > first and (size > PORTION_BYTES or index - first >= PORTION_COMMITS):
                yield first, index
                first = index
        if first < len(self):
            yield first, len(self)


def begins_array(body: bytes) -> bool:
    """Return whether a body begins like a JSON array. Nothing is parsed, so this takes no time for any caller."""
    return _ARRAY_START.match(body) is not None


def is_light(body: bytes) -> bool:
    """Return whether `read_batch` parses a body whole, in about a millisecond, so that no thread is needed for it.

    Most polls are light: they have large Bloom filters, but only few values.
    """
    return len(body) <= SMALL_BODY or (len(body) <= _LIGHT_BODY and _count_marks(body, _LIGHT_VALUES) <= _LIGHT_VALUES)


RawList = TypeVar("RawList", bound=RawCommits)


def read_batch(body: bytes, most: int) -> list[tuple[str, SyncMessage]]:
    """Return the repository path and the sync message of each element in the body of a ``/batch-sync`` request.

    The paths are not checked. If the body is not light (`is_light`), the commits of a message are `RawCommits`.

    Args:
        body: The body as received.
        most: The maximum number of elements.

    Raises:
        DecodeError: The body is not JSON or not an array, an element is malformed, or there are too many elements or
            values.
    """
    if is_light(body):
        return [decode_request_element(each) for each in _check_array(parse_json(body), most)]
    elements, lists = split_batch(body, most, RawCommits)
    for commits in lists:
        commits.check_json()
    found = []
    for each in elements:
        path, message = decode_request_element(each)
        # Every array at the depth of `c` was taken out and holds the number of its list.
        found.append((path, replace(message, commits=lists[message.commits[0]] if message.commits else ())))
    return found


def read_answer(body: bytes, most: int) -> list[Any]:
    """Return the elements of an answer to ``/batch-sync``, without the commits that cannot be parsed.

    It takes longer than `parse_json`, but no single call blocks other threads for long.

    Args:
        body: The body as received.
        most: The maximum number of elements.

    Raises:
        DecodeError: The answer cannot be parsed without its commits either, or has too many elements.
    """
    elements, lists = split_batch(body, most, RawCommits)
    for element in elements:
        reply = element.get("res") if isinstance(element, dict) else None
        if isinstance(reply, dict) and isinstance(found := reply.get("c"), list) and found:
            commits, reply["c"] = lists[found[0]], []
            for index in range(len(commits)):
                with suppress(DecodeError):
                    reply["c"].append(commits[index])
    return elements


def split_batch(body: bytes, most: int, new_list: Callable[[bytes], RawList]) -> tuple[list[Any], list[RawList]]:
    """Split the body of ``/batch-sync``, a request or its answer, into its elements without commits, and the commits.

    The elements are parsed. In them, each array where a message has its commits (``c``, and ``ad``, which GoatDB never
    reads) is replaced by an array that contains only one number: the index of its commits in the second result. This
    includes empty arrays, and arrays with any other name or in any other member of the element, whose items are not
    parsed either.

    Args:
        body: The body as received.
        most: The maximum number of elements.
        new_list: Creates the empty list, to which the commits of one array are added, given the body.

    Raises:
        DecodeError: The body is not JSON or not an array, or has more elements or values than `most` and this module
            allow.
    """
    try:
        rest, lists = _split_elements(body, new_list)
    except IndexError:
        raise DecodeError("not JSON") from None
    return _check_array(parse_json(rest), most), lists


def _check_array(value: Any, most: int) -> list[Any]:
    if not isinstance(value, list):
        raise DecodeError("a batch must be a JSON array")
    if len(value) > most:
        raise DecodeError(f"the batch has {len(value)} elements, which is too many")
    return value


def _split_elements(body: bytes, new_list: Callable[[bytes], RawList]) -> tuple[bytes, list[RawList]]:
    """Return the body with the contents of each array of commits replaced by the array's number, and these arrays."""
    rest: list[bytes] = []
    lists: list[RawList] = []
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
            raise DecodeError("the batch has more JSON values than are allowed")
        if character in b"[{":
            stack += character
            if len(stack) > MAX_DEPTH:
                raise DecodeError(f"JSON is nested deeper than {MAX_DEPTH}")
            if stack == _SHAPE:
                commits = new_list(body)
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
        raise DecodeError("the batch has more JSON values than are allowed")
    return text, lists


def _read_commits(body: bytes, position: int, commits: RawCommits) -> int:
    """Find the objects in a JSON array whose first item begins at `position`, and add each to `commits`.

    Return the position of the closing bracket.
    """
    begin = position
    position = _read_plain_commits(body, position, commits)
    is_first = position == begin
    gap, depth, start = position if is_first else position - 1, 0, position
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


def _read_plain_commits(body: bytes, position: int, commits: RawCommits) -> int:
    """Add objects from the start of a JSON array to `commits`, up to the first one whose end is not easy to find.

    The end is easy to find if the object was read before, or if the next ``},{"`` ends it.

    Return the position of the next object: `position`, or the position after the comma that follows the last object.
    """
    while body[position : position + 1] == b"{":
        end = commits.find_known(position)
        if end:
            if body[end : end + 1] != b",":
                break  # the last one; its end is found with that of the array
            commits.add(position, end)
        else:
            end = body.find(b'},{"', position, position + MAX_COMMIT_VALUES) + 1
            try:
                value = parse_plain_json(body[position:end])
            except DecodeError:
                break
            commits.add_parsed(position, end, value)
        position = end + 1
    return position


def _find_bracket(body: bytes, position: int) -> int:
    """Return the position of the next bracket in a JSON text that is not inside a string, or the length of the text.

    Raises:
        DecodeError: A JSON string has no end.
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
    """Return the position after the end of a JSON string that is too long for one match of `_RUN`."""
    end = body.find(b'"', start + 1)
    if body[end - 1 : end] == b"\\":
        end = start + 1
        while (found := _CHARACTERS.match(body, end, end + _WINDOW)) is not None:
            end = found.end()
    if end < 0 or body[end : end + 1] != b'"':
        raise DecodeError("not JSON")
    return end + 1


def _read_gap(text: bytes, commits: RawCommits, *, is_first: bool, is_last: bool) -> None:
    """Check that the text between two objects of a JSON array contains only commas and items that are not objects.

    These items are added to the count of `commits`.
    """
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
    """Return whether a JSON text contains at most `most` values."""
    if len(text) <= most:
        return True
    if _count_marks(text, most) <= most:
        return True
    count = sum(text.count(mark) for mark in (b",", b"[", b"{"))
    for string in _STRING.finditer(text):
        inside = string[0]
        count -= sum(inside.count(mark) for mark in (b",", b"[", b"{"))
    return count <= most


def _count_marks(text: bytes, most: int) -> int:
    """Return how many commas and opening brackets a text contains, or any number above `most` if there are more."""
    # Faster than `count` where a mark is rare, as in the bits of a filter.
    return sum(len(text) - len(text.replace(mark, b"", most + 1)) for mark in (b",", b"[", b"{"))
