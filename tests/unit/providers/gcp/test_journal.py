"""The journal of a change, in the annotations of a secret."""

from __future__ import annotations

import secrets

import pytest

from goatherd.providers.gcp import journal

REQUEST = "0123456789abcdef" * 2
NOTE = journal.Announcement(purpose="add", request=journal.short_request(REQUEST), nonce="f" * 16, base=7)


def test_an_announcement_reads_back_and_goes_when_the_work_is_done():
    annotations = journal.with_announcement({"team": "goats"}, NOTE)
    assert journal.read_announcement(annotations) == NOTE
    assert journal.without_announcement(annotations) == {"team": "goats"}
    after = journal.with_done_note(annotations, REQUEST, 8)
    assert journal.read_announcement(after) is None
    assert journal.written_by(after, REQUEST) == 8
    assert after["team"] == "goats"


def test_only_the_last_few_writes_are_remembered():
    annotations: dict[str, str] = {}
    requests = [secrets.token_hex(16) for _ in range(20)]
    for number, request in enumerate(requests, 1):
        annotations = journal.with_done_note(annotations, request, number)
    assert [journal.written_by(annotations, request) for request in requests[-8:]] == list(range(13, 21))
    assert journal.written_by(annotations, requests[11]) is None
    assert sum(map(len, annotations.values())) < 1024


def test_the_newest_known_version_is_a_labelled_or_a_written_one():
    assert journal.newest_known({}, {}) == 0
    assert journal.newest_known({}, {"current": 3, "stable": 2}) == 3
    assert journal.newest_known(journal.with_done_note({}, REQUEST, 9), {"current": 3}) == 9


@pytest.mark.parametrize(
    "text", ["", "add", "add x y 1", f"eat {'0' * 16} {'0' * 16} 1", f"add {'0' * 16} {'0' * 16} -1", "\u0661=x"]
)
def test_a_note_that_is_none_of_ours_is_as_good_as_none(text: str):
    assert journal.read_announcement({journal.ANNOUNCED: text}) is None
    assert journal.written_by({journal.DONE: text}, REQUEST) is None
    assert journal.newest_known({journal.DONE: text}, {}) == 0
