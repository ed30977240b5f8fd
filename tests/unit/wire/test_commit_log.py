"""The log: framing, scanning, and a repair that loses nothing."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goatherd.wire.commit_log import frame_records, parse_record, scan_log
from tests.vectors.upstream_log import UpstreamLog

RECORDS = st.lists(
    st.fixed_dictionaries(
        {"id": st.text(st.characters(exclude_categories=["Cs"]), max_size=8), "v": st.integers(0, 99)}
    ),
    max_size=6,
)


@given(st.lists(RECORDS, max_size=4))
def test_what_was_appended_is_read_back(batches: list[list[Any]]) -> None:
    data = b"".join(frame_records(batch) for batch in batches)
    found = scan_log(data)
    assert found.records == [record for batch in batches for record in batch]
    assert (found.good_end, found.damage, found.records_after_damage) == (len(data), None, 0)


@given(RECORDS, RECORDS, st.data())
def test_a_torn_append_never_costs_an_earlier_record(before: list[Any], torn: list[Any], data: st.DataObject) -> None:
    whole, last = frame_records(before), frame_records(torn)
    cut = data.draw(st.integers(0, len(last)))
    found = scan_log(whole + last[:cut])
    assert found.records[: len(before)] == before
    repaired = (whole + last[:cut])[: found.good_end]
    again = scan_log(repaired + frame_records([{"id": "next"}]))
    assert again.records == [*found.records, {"id": "next"}]
    assert again.damage is None


def test_upstreams_repair_loses_a_good_record_where_ours_does_not() -> None:
    torn = frame_records([{"id": "a"}, {"id": "b"}]) + b"\n{"
    upstream = UpstreamLog(torn)
    upstream.scan()
    assert [record["id"] for record in UpstreamLog(upstream.data).scan()] == ["a"]
    assert [record["id"] for record in scan_log(torn[: scan_log(torn).good_end]).records] == ["a", "b"]


@pytest.mark.parametrize("line", [b"[]", b"1", b"null", b'{"id":'])
def test_a_line_that_is_not_a_json_object_is_no_record(line: bytes) -> None:
    assert parse_record(line) is None


def test_a_complete_line_without_its_newline_is_unfinished() -> None:
    found = scan_log(b'{"id":"a"}\n{"id":"b"}')
    assert found.records == [{"id": "a"}]
    assert found.good_end == 11
    assert found.damage == "unfinished last line"


@pytest.mark.parametrize("depth", [201, 1_100, 100_000])
def test_a_line_that_is_nested_too_deeply_is_no_damage(depth: int) -> None:
    deep = b'{"id":"b","c":' + b"[" * depth + b"]" * depth + b"}"
    data = b'{"id":"a"}\n%b\n{"id":"c"}\n' % deep
    found = scan_log(data)
    assert found.records == [{"id": "a"}, {"id": "c"}]
    assert (found.good_end, found.damage, found.records_after_damage) == (len(data), None, 0)
    assert scan_log(b"?\n" + data).records_after_damage == 3


def test_damage_in_the_middle_says_how_much_lies_behind_it() -> None:
    found = scan_log(b'{"id":"a"}\n???\n\n{"id":"b"}\n  \n{"id":"c"}\n{"id":')
    assert found.records == [{"id": "a"}]
    assert found.good_end == 11
    assert found.records_after_damage == 2
    assert "byte 11" in (found.damage or "")


@pytest.mark.parametrize("line", [b"   ", b"\r", b"\xff\xfe", b"NaN"])
def test_a_line_that_is_no_json_is_damage(line: bytes) -> None:
    assert scan_log(line + b"\n").damage is not None


def test_an_append_of_nothing_is_two_newlines() -> None:
    assert frame_records([]) == b"\n\n"
    assert scan_log(b"\n\n").good_end == 2


def test_ready_bytes_are_framed_as_they_are() -> None:
    assert frame_records([b'{"id":"a"}', {"id": "b"}]) == b'\n{"id":"a"}\n\n{"id":"b"}\n'
