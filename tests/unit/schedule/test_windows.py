"""Maintenance windows, also over changes to and from summer time: examples, and a comparison with a wall clock."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goatherd.errors import ConfigurationError
from goatherd.schedule.windows import Window, first_span

BERLIN = ZoneInfo("Europe/Berlin")
MINUTE_MS = 60_000


def ms(text: str, zone: ZoneInfo = BERLIN, fold: int = 0) -> int:
    return round(datetime.fromisoformat(text).replace(tzinfo=zone, fold=fold).timestamp() * 1000)


def utc_ms(text: str) -> int:
    return round(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


@pytest.mark.parametrize(
    ("text", "days", "start", "end"),
    [
        ("02:00-04:00", range(7), 120, 240),
        ("Mon-Fri 02:00-04:00", range(5), 120, 240),
        ("Sat,Sun 22:00-06:00", (5, 6), 1320, 360),
        ("fri-mon 00:00-24:00", (4, 5, 6, 0), 0, 1440),
        ("wed 23:59-00:00", (2,), 1439, 0),
    ],
)
def test_a_window_is_read(text: str, days: range | tuple[int, ...], start: int, end: int) -> None:
    assert Window.from_text(text) == Window(days=frozenset(days), start=start, end=end)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Mon",
        "Mon 2:00-4:00",
        "Mo 02:00-04:00",
        "Mon- 02:00-04:00",
        "Mon 02:60-04:00",
        "24:00-01:00",
        "02:00-24:30",
        "02:00-02:00",
        "Mon,,Tue 02:00-04:00",
        "Mon 02:00-04:00 UTC",
    ],
)
def test_what_is_no_window_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Window.from_text(text)
    assert "02:00-04:00" in caught.value.hint


@pytest.mark.parametrize(
    ("what", "window", "at", "opens", "closes"),
    [
        ("open now", "02:00-04:00", "2026-11-24T03:00", "2026-11-24T02:00", "2026-11-24T04:00"),
        ("its end is no longer in it", "02:00-04:00", "2026-11-24T04:00", "2026-11-25T02:00", "2026-11-25T04:00"),
        ("over midnight", "Sat 22:00-06:00", "2026-11-29T01:00", "2026-11-28T22:00", "2026-11-29T06:00"),
        ("over the end of a year", "Thu 22:00-06:00", "2027-01-01T02:00", "2026-12-31T22:00", "2027-01-01T06:00"),
        ("on a leap day", "Tue 02:00-04:00", "2028-02-28T12:00", "2028-02-29T02:00", "2028-02-29T04:00"),
        ("a year that has none", "Mon 02:00-04:00", "2026-02-28T12:00", "2026-03-02T02:00", "2026-03-02T04:00"),
    ],
    ids=lambda value: value if " " in str(value) else "",
)
def test_the_next_opening_is_found(what: str, window: str, at: str, opens: str, closes: str) -> None:
    span = first_span([Window.from_text(window)], BERLIN, ms(at))
    assert span is not None
    assert (span.open_ms, span.close_ms) == (ms(opens), ms(closes))


@pytest.mark.parametrize(
    ("what", "window", "opens", "closes"),
    [
        # 2026-03-29, 02:00 CET (01:00 UTC) becomes 03:00 CEST.
        ("an hour shorter where the clocks go forward in it", "01:00-04:00", "2026-03-29T00:00", "2026-03-29T02:00"),
        ("beginning in what is left out", "02:30-04:00", "2026-03-29T01:00", "2026-03-29T02:00"),
        ("ending in what is left out", "01:00-02:30", "2026-03-29T00:00", "2026-03-29T01:00"),
        ("all of it left out: the day after", "02:00-03:00", "2026-03-30T00:00", "2026-03-30T01:00"),
    ],
    ids=lambda value: value if " " in str(value) else "",
)
def test_where_the_clocks_go_forward_a_window_is(what: str, window: str, opens: str, closes: str) -> None:
    span = first_span([Window.from_text(window)], BERLIN, ms("2026-03-29T00:30"))
    assert span is not None
    assert (span.open_ms, span.close_ms) == (utc_ms(opens), utc_ms(closes))


@pytest.mark.parametrize(
    ("what", "window", "opens", "closes"),
    [
        # 2026-10-25, 03:00 CEST (01:00 UTC) becomes 02:00 CET: 02:00 to 03:00 comes twice.
        ("an hour longer where the clocks go back in it", "01:00-04:00", "2026-10-24T23:00", "2026-10-25T03:00"),
        ("open once in the hour that comes twice", "02:15-02:45", "2026-10-25T00:15", "2026-10-25T00:45"),
        ("closed at the first of two ends", "01:00-02:30", "2026-10-24T23:00", "2026-10-25T00:30"),
        ("opened at the first of two beginnings", "02:30-04:00", "2026-10-25T00:30", "2026-10-25T03:00"),
    ],
    ids=lambda value: value if " " in str(value) else "",
)
def test_where_the_clocks_go_back_a_window_is(what: str, window: str, opens: str, closes: str) -> None:
    span = first_span([Window.from_text(window)], BERLIN, ms("2026-10-25T00:30"))
    assert span is not None
    assert (span.open_ms, span.close_ms) == (utc_ms(opens), utc_ms(closes))


def test_windows_that_touch_or_overlap_are_one() -> None:
    windows = [Window.from_text(text) for text in ("02:00-03:00", "03:00-04:00", "03:30-05:00", "06:00-07:00")]
    span = first_span(windows, BERLIN, ms("2026-11-24T01:00"))
    assert span is not None
    assert (span.open_ms, span.close_ms) == (ms("2026-11-24T02:00"), ms("2026-11-24T05:00"))


def test_a_window_of_one_day_that_the_clocks_leave_out_opens_a_week_later() -> None:
    span = first_span([Window.from_text("Sun 02:10-02:50")], BERLIN, ms("2026-03-27T12:00"))
    assert span is not None
    assert span.open_ms == ms("2026-04-05T02:10")


@given(
    start=st.integers(0, 1439),
    end=st.integers(1, 1440),
    days=st.frozensets(st.integers(0, 6), min_size=1),
    zone=st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu"]),
    at=st.integers(1_704_067_200, 1_861_833_600),
)
def test_on_days_without_a_change_a_span_is_what_the_wall_clock_says(
    start: int, end: int, days: frozenset[int], zone: str, at: int
) -> None:
    if start == end:
        return
    window, place = Window(days=days, start=start, end=end), ZoneInfo(zone)
    at_ms = at * 1000
    span = first_span([window], place, at_ms)
    assert span is not None
    assert span.close_ms > at_ms
    opens, closes = (datetime.fromtimestamp(moment / 1000, place) for moment in (span.open_ms, span.close_ms))
    if {(opens + timedelta(days=away)).utcoffset() for away in (-1, 2)} != {opens.utcoffset()}:
        return  # the examples above say what happens there
    assert (opens.hour * 60 + opens.minute, opens.weekday() in days) == (start, True) or span.open_ms < at_ms
    assert closes.hour * 60 + closes.minute == end % 1440
