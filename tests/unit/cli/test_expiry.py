"""``goatherd doctor`` warns of an expiring root long before GoatDB's fifteen days."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path

import pytest

from goatherd.clock import SystemClock
from goatherd.identity.document import encode_document
from goatherd.identity.session import ROOT_OWNER, OwnedSession
from goatherd.identity.transitions import create_document
from goatherd.ids import new_id
from goatherd.plugins import open_provider

from .conftest import Goatherd


@pytest.mark.parametrize(
    ("lifetime", "level", "hint"),
    [
        ("180d", "ok", ""),
        ("45d", "warn", "at a convenient time"),
        ("25d", "warn", "as soon as every server starts from the store"),
    ],
)
def test_doctor_warns_in_time(goatherd: Goatherd, store: str, lifetime: str, level: str, hint: str) -> None:
    assert goatherd("init", "--provider", store, "--lifetime", lifetime).code == 0
    done = goatherd("doctor", "--provider", store, "--json")
    (check,) = [one for one in done.json["checks"] if one["name"] == "expiration"]
    assert check["level"] == level
    assert hint in check["hint"]
    assert done.code == 0


def test_doctor_promises_no_longer_life_than_a_rotation_gives(goatherd: Goatherd, store: str, tmp_path: Path) -> None:
    (tmp_path / "goatherd.toml").write_text(f'provider = "{store}"\n[rotation]\nlifetime = "25d"\n')
    assert goatherd("init").code == 0
    (check,) = [one for one in goatherd("doctor", "--json").json["checks"] if one["name"] == "expiration"]
    assert check["hint"].endswith("A root that a rotation makes is valid for 25d (rotation.lifetime).")


def test_doctor_says_that_a_rotation_is_overdue(goatherd: Goatherd, store: str) -> None:
    made_ms = SystemClock().now_ms() - timedelta(days=155) // timedelta(milliseconds=1)
    root = OwnedSession.generate(session_id=new_id(), owner=ROOT_OWNER, now_ms=made_ms, lifetime=timedelta(days=180))

    async def keep() -> None:
        provider, secret_id = open_provider(store)
        async with provider:
            await provider.create(secret_id, encode_document(create_document(root, made_ms)))

    asyncio.run(keep())
    done = goatherd("doctor", "--provider", store, "--json")
    (check,) = [one for one in done.json["checks"] if one["name"] == "expiration"]
    assert (check["level"], check["text"]) == ("warn", "25 days left")
    assert "overdue: run `goatherd rotate` this week" in check["hint"]


def test_a_new_identity_lives_half_a_year_unless_told_otherwise(goatherd: Goatherd, store: str) -> None:
    goatherd("init", "--provider", store)
    done = goatherd("doctor", "--provider", store, "--json")
    assert [one["text"] for one in done.json["checks"] if one["name"] == "expiration"] == ["180 days left"]
