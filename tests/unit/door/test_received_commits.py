"""Commits that the door recognizes by the bytes that it has verified before."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from goatherd.door.limits import DoorLimits
from goatherd.door.received_commits import NOTHING_KNOWN, KnownCommits
from goatherd.door.request_checks import RefusedError, read_batch
from goatherd.wire import json as wire_json
from goatherd.wire.json import to_json_bytes
from tests.cluster.door_world import X, Y
from tests.unit.goats import commit_by, element

LIMITS = DoorLimits()
NOTES = [commit_by(X, f"k{number}", {"text": "x" * 1000}) for number in range(20)]
BODY = to_json_bytes([element("/data/x", NOTES), element("/data/y", NOTES[:2])])


def known_commits() -> KnownCommits:
    known = KnownCommits(100)
    for each in read_batch(BODY, LIMITS)[0].commits:
        known.add(each, X.session)
    return known


def content_of(body: bytes, known: KnownCommits) -> Any:
    try:
        return [
            (each.path, each.left_out, [(commit.id, commit.raw, commit.text) for commit in each.commits])
            for each in read_batch(body, LIMITS, known)
        ]
    except RefusedError as error:
        return error.rule


def test_commits_that_were_verified_before_are_not_parsed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    known = known_commits()
    parsed: list[int] = []
    loads = wire_json.orjson.loads
    monkeypatch.setattr(wire_json.orjson, "loads", lambda text: parsed.append(len(text)) or loads(text))
    (first, second) = read_batch(BODY, LIMITS, known)
    assert all(each.is_known for each in [*first.commits, *second.commits])
    assert sum(parsed) < 1000
    parsed.clear()
    assert not any(each.is_known for each in read_batch(BODY, LIMITS)[0].commits)
    assert sum(parsed) < 1.5 * len(BODY), "what is not known is parsed once"
    assert first.commits[0].raw == NOTES[0].to_json()
    assert [each.text for each in second.commits] == [to_json_bytes(each.to_json()) for each in NOTES[:2]]


@pytest.mark.slow
def test_known_commits_never_change_what_a_body_says() -> None:
    """SECURITY: guards `KnownCommits.find`: bytes that only begin like a known commit are another commit."""
    known, lots = known_commits(), random.Random(3)
    text = BODY.decode()
    first = json.dumps(NOTES[0].to_json(), separators=(",", ":"))
    bodies = [
        text,
        text.replace(first, first[:-1] + ',"id":"another"}'),
        text.replace(first, first[:-1] + "}}"),
        text.replace(first, first + first),
        text.replace(first, first + ",0"),
        text.replace(first, first.replace('"k"', '"id":"another","k"', 1)),
    ]
    assert len(set(bodies)) == len(bodies)
    for _ in range(300):
        at, mark = lots.randrange(len(text)), lots.choice(["", ",", "}", "{", '"', "]", "x", "},{"])
        bodies.append(text[:at] + mark + text[at + lots.randint(0, 1) :])
    for body in bodies:
        assert content_of(body.encode(), known) == content_of(body.encode(), NOTHING_KNOWN), body


def test_a_known_commit_is_valid_only_for_the_session_that_signed_it() -> None:
    known = known_commits()
    (element, _) = read_batch(BODY, LIMITS)
    assert known.is_valid(element.commits[0], X.session)
    assert not known.is_valid(element.commits[0], Y.session)
    assert not known.is_valid(element.commits[0], None)


@pytest.mark.parametrize("odd", [b"\\ud800", b"\xff"])
def test_only_bytes_that_every_parser_reads_alike_are_passed_on_as_they_came(odd: bytes) -> None:
    body = BODY.replace(b"xxxx", odd + b"xx", 1)
    first, *others = read_batch(body, LIMITS)[0].commits
    assert first.text == to_json_bytes(first.raw)
    assert first.text not in body or odd.startswith(b"\\")
    assert others[0].text in body
