"""Bodies of requests that are read in portions: the same result as parsing them whole, and bounded work."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from goatherd.errors import DecodeError
from goatherd.wire import batch
from goatherd.wire.batch import MAX_COMMIT_VALUES, PORTION_COMMITS, RawCommits, read_batch
from goatherd.wire.json import MAX_DEPTH, parse_json
from goatherd.wire.messages import SyncMessage

FILTER = {"__t": "E", "__v": {"d": "AA==", "s": [1]}}


def commit(number: int, **more: Any) -> dict[str, Any]:
    return {"id": str(number), "t": "}]x\\{[\"'" * 20, "n": [[], {"a": {}}], **more}


def text_of(*lists: list[Any]) -> str:
    return json.dumps([{"path": "/a/b", "msg": {"ver": 3, "f": FILTER, "c": each, "ad": []}} for each in lists])


def read(body: str, monkeypatch: pytest.MonkeyPatch, *, in_portions: bool) -> list[tuple[str, SyncMessage]] | None:
    monkeypatch.setattr(batch, "is_light", lambda _: not in_portions)
    try:
        return read_batch(body.encode(), 1000)
    except DecodeError:
        return None


def commits_in(read: list[tuple[str, SyncMessage]] | None) -> Any:
    """Return the commits that a body contains; what is too short to be a commit is left out."""
    return read and [
        (path, one.version, one.size, one.filter, [each for each in one.commits if len(json.dumps(each)) > 150])
        for path, one in read
    ]


@pytest.mark.slow
@pytest.mark.parametrize("window", [40, batch._WINDOW])
def test_a_body_read_in_portions_says_what_it_says_when_it_is_parsed_whole(
    monkeypatch: pytest.MonkeyPatch, window: int
) -> None:
    monkeypatch.setattr(batch, "_WINDOW", window)
    whole = text_of([commit(1), commit(2), 1, [2], None, {"a": 1}], [], [commit(3)])
    twice = whole.replace('"ad": []', f'"c": [{json.dumps(commit(4))}], "\\u0063": [0, 1]', 1)
    tight = json.dumps(json.loads(text_of([commit(1), commit(2), commit(5)], [commit(3), 1])), separators=(",", ":"))
    nested = tight.replace('"n":[[]', '"n":[{"a":{}},{"b":"},{\\""}', 1)
    lots = random.Random(7)
    bodies = [
        whole,
        twice,
        tight,
        nested,
        f" {whole}\n",
        "[]",
        "[ ]",
        "{",
        "]",
        '"',
        '[{"a":{"b":[',
        '[{"a":{"b":[{"]}}]',
        "[[[[1]]]]",
    ]
    for number in range(800):
        letters = list((whole, tight)[number % 2])
        for _ in range(lots.randint(1, 3)):
            at, mark = lots.randrange(len(letters)), lots.choice('[]{}",:\\ 0a')
            letters[at] = lots.choice(["", mark, mark + letters[at]])
        bodies.append("".join(letters))
    for body in bodies:
        expected = commits_in(read(body, monkeypatch, in_portions=False))
        assert commits_in(read(body, monkeypatch, in_portions=True)) == expected, body


@pytest.mark.parametrize("depth", [MAX_DEPTH, MAX_DEPTH + 1, 100_000])
def test_a_body_nested_deeper_than_is_parsed_is_refused_where_that_shows(
    monkeypatch: pytest.MonkeyPatch, depth: int
) -> None:
    """Each bracket costs a search step, so a body of nothing but brackets must not be searched to its end."""
    found = 0

    def find_bracket(body: bytes, position: int) -> int:
        nonlocal found
        found += 1
        return batch_find_bracket(body, position)

    batch_find_bracket = batch._find_bracket
    monkeypatch.setattr(batch, "_find_bracket", find_bracket)
    body = b"[" * depth + b"]" * depth
    large = body + b" " * batch.SMALL_BODY
    if depth <= MAX_DEPTH:
        assert batch.split_batch(large, 1, RawCommits) == ([parse_json(body)[0]], [])
        return
    with pytest.raises(DecodeError, match="nested deeper"):
        batch.split_batch(large, 1, RawCommits)
    assert found <= MAX_DEPTH + 1


def test_commits_of_a_large_body_are_bytes_until_they_are_asked_for_in_portions() -> None:
    ((_, message),) = read_batch(text_of([commit(number) for number in range(1200)]).encode(), 1)
    commits = message.commits
    assert isinstance(commits, RawCommits)
    assert [end - start for start, end in commits.portions()] == [PORTION_COMMITS, PORTION_COMMITS, 200]
    assert [each["id"] for each in commits[1198:]] == ["1198", "1199"]


@pytest.mark.parametrize("junk", ["[],", "{},", "0,", '{"a":0},', '"",'])
def test_a_body_of_more_values_than_any_batch_has_is_refused_unread(monkeypatch: pytest.MonkeyPatch, junk: str) -> None:
    """SECURITY: guards `read_batch`: 64 MiB of these become objects of two gigabytes and more."""
    monkeypatch.setattr(batch, "MAX_OTHER_VALUES", 10_000)
    inside = (junk * 10_001)[:-1]
    for body in (text_of([17]).replace("17", inside), text_of([]).replace('"ad": []', f'"ad": {{"x": [{inside}]}}')):
        with pytest.raises(DecodeError, match="more JSON values"):
            read_batch(body.encode(), 1000)


def test_a_commit_of_too_many_values_is_refused_alone_and_commas_in_its_texts_are_no_values() -> None:
    many, prose = commit(1, x=[0] * (MAX_COMMIT_VALUES + 1)), commit(2, x=", [{" * MAX_COMMIT_VALUES)
    ((_, message),) = read_batch(text_of([many, prose]).encode(), 1)
    with pytest.raises(DecodeError, match="more JSON values"):
        message.commits[0]
    assert message.commits[1] == prose
