"""``goatherd doctor`` warns of an expiring root long before GoatDB's fifteen days."""

from __future__ import annotations

import pytest

from .conftest import Goatherd


@pytest.mark.parametrize(
    ("lifetime", "level", "hint"),
    [
        ("180d", "ok", ""),
        ("45d", "warn", "when it suits you"),
        ("25d", "warn", "this week"),
    ],
)
def test_doctor_warns_in_time(goatherd: Goatherd, store: str, lifetime: str, level: str, hint: str) -> None:
    assert goatherd("init", "--provider", store, "--lifetime", lifetime).code == 0
    done = goatherd("doctor", "--provider", store, "--json")
    (check,) = [one for one in done.json["checks"] if one["name"] == "expiration"]
    assert check["level"] == level
    assert hint in check["hint"]
    assert done.code == 0


def test_a_new_identity_lives_half_a_year_unless_told_otherwise(goatherd: Goatherd, store: str) -> None:
    goatherd("init", "--provider", store)
    done = goatherd("doctor", "--provider", store, "--json")
    assert [one["text"] for one in done.json["checks"] if one["name"] == "expiration"] == ["180 days left"]
