"""Timestamps and durations: each timestamp has one string, which is parsed back."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goatherd.times import iso, milliseconds, read_iso
from goatherd.wire.derived_ids import derived_id

LAST_MS = 253_402_300_799_999
"""The last millisecond of the year 9999."""


@given(st.integers(-62_135_596_800_000, LAST_MS))
def test_a_timestamp_is_written_as_javascript_does_and_read_back(ms: int) -> None:
    text = iso(ms)
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=ms)
    assert text == f"{moment.isoformat(timespec='milliseconds').removesuffix('+00:00')}Z"
    assert read_iso(text) == ms


def test_years_of_more_than_four_digits_have_a_sign() -> None:
    assert iso(LAST_MS + 1) == "+010000-01-01T00:00:00.000Z"
    assert iso(8_640_000_000_000_000) == "+275760-09-13T00:00:00.000Z"


@pytest.mark.parametrize("text", ["", "yesterday", "2026-11-24T12:00:00", "2026-13-01T00:00:00Z"])
def test_what_is_no_timestamp_with_a_time_zone_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        read_iso(text)


def test_a_duration_is_counted_in_whole_milliseconds() -> None:
    assert milliseconds(timedelta(seconds=1.001)) == 1001
    assert milliseconds(timedelta(microseconds=1999)) == 1


def test_a_derived_id_is_the_same_on_every_machine() -> None:
    assert derived_id("introduction", "root-a") == derived_id("introduction", "root-a")
    assert derived_id("introduction", "root-a") != derived_id("introduction", "root-b")
    assert derived_id("introduction", "x") == "dcbkkyho1wxwmit61kpxrl5t"
