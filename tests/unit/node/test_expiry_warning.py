"""A root that is about to expire is reported in the log, long before."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta
from pathlib import Path

import httpx2
import pytest

from goatherd.identity.document import IdentityDocument, Phase
from goatherd.identity.key_age import Urgency, assess_urgency
from goatherd.identity.session import OwnedSession
from goatherd.identity.transitions import (
    activate_rotation,
    create_document,
    finalize_rotation,
    prepare_rotation,
    with_phase,
)
from goatherd.node import Server
from goatherd.node.expiry_warning import ExpiryWatch
from goatherd.rotation.machine import Policy
from tests.fakes.herd import FakeClock

from .nodes import settings_of, store_of

DAY = timedelta(days=1)


def first(clock: FakeClock, life: timedelta) -> IdentityDocument:
    owned = OwnedSession.generate(session_id="root-a", owner="root", now_ms=clock.now_ms(), lifetime=life)
    return create_document(owned, clock.now_ms())


def rotated(clock: FakeClock, life: timedelta) -> IdentityDocument:
    now = clock.now_ms()
    successor = OwnedSession.generate(session_id="root-b", owner="root", now_ms=now, lifetime=life)
    document = prepare_rotation(
        first(clock, 30 * DAY), successor, now_ms=now, rotation_id="r", started_by="", stable_version=None
    )
    document = activate_rotation(with_phase(document, Phase.PUBLISHED, now), now)
    return finalize_rotation(with_phase(document, Phase.VERIFIED, now), now)


@pytest.mark.parametrize(
    ("left", "stage"),
    [
        (61 * DAY, Urgency.FINE),
        (59 * DAY, Urgency.DUE),
        (29 * DAY, Urgency.SOON),
        (14 * DAY, Urgency.URGENT),
        (-1 * DAY, Urgency.EXPIRED),
    ],
    ids=["two months", "under two months", "under a month", "two weeks", "over"],
)
def test_the_stages_of_a_root(left: timedelta, stage: Urgency) -> None:
    clock = FakeClock()
    document = first(clock, timedelta(days=180))
    clock.turn(timedelta(days=180) - left)
    assert assess_urgency(document, clock.now_ms()) is stage


def test_a_new_root_is_fine_from_its_first_day_on_however_short_it_was_made_to_live() -> None:
    clock = FakeClock()
    for life in (Policy().lifetime, 30 * DAY, timedelta(hours=6)):
        document = rotated(clock, life)
        assert assess_urgency(document, clock.now_ms()) is Urgency.FINE
        assert assess_urgency(document, clock.now_ms() + int(life.total_seconds() * 600)) in (Urgency.FINE, Urgency.DUE)
        assert assess_urgency(document, clock.now_ms() + int(life.total_seconds() * 925)) is Urgency.URGENT


def test_a_root_of_goatdb_is_due_on_the_first_day_and_not_late() -> None:
    """The root is valid for 30 days, so it could not have been rotated earlier."""
    clock = FakeClock()
    document = first(clock, timedelta(days=30))
    stages = {}
    for day in (0, 1, 14, 16, 31):
        stages[day] = assess_urgency(document, clock.now_ms() + day * 86_400_000 + 1)
    assert stages == {0: Urgency.DUE, 1: Urgency.DUE, 14: Urgency.DUE, 16: Urgency.URGENT, 31: Urgency.EXPIRED}


def test_the_default_life_of_a_root_leaves_no_cliff_at_thirty_days() -> None:
    assert Policy().lifetime >= 4 * timedelta(days=30)


async def test_a_neglected_server_says_so_daily_and_ever_louder(caplog: pytest.LogCaptureFixture) -> None:
    clock = FakeClock()
    document = first(clock, timedelta(days=180))
    watch = ExpiryWatch("localhost", lambda: document, clock)
    levels: list[tuple[int, int]] = []
    for hour in range(181 * 24):
        caplog.clear()
        watch.check_expiry()
        levels += [(hour // 24, record.levelno) for record in caplog.records]
        clock.turn(timedelta(hours=1))
    assert levels[0] == (120, logging.WARNING)
    assert {day for day, _ in levels} == set(range(120, 181))
    assert next(day for day, level in levels if level == logging.ERROR) == 165
    assert len(levels) <= 61 + 4, "once a day, and once when a stage begins"


async def test_a_new_root_ends_the_warning(caplog: pytest.LogCaptureFixture) -> None:
    clock = FakeClock()
    documents = [first(clock, timedelta(days=20))]
    watch = ExpiryWatch("localhost", lambda: documents[-1], clock)
    watch.check_expiry()
    assert "identity.expiring" in caplog.text
    assert "root-a" in caplog.text
    caplog.clear()
    documents.append(rotated(clock, timedelta(days=180)))
    watch.check_expiry()
    assert not caplog.records


async def test_a_server_says_it_at_start_and_on_its_health_page(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = FakeClock()
    provider = await store_of(first(clock, timedelta(days=180)))
    clock.turn(timedelta(days=160))
    settings = settings_of(provider)
    async with Server(tmp_path, settings, debug=True, clock=_Still(clock.now_ms())) as server:
        transport = httpx2.ASGITransport(server.app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://node", verify=False) as http:
            expiry = (await http.get("/goatherd/v1/health")).json()["expiry"]
    assert expiry["root"] == "root-a"
    assert (expiry["daysLeft"], expiry["urgency"]) == (20, "soon")
    assert "identity.expiring" in caplog.text


class _Still:
    """A clock that does not advance."""

    def __init__(self, now_ms: int) -> None:
        self._now_ms = now_ms

    def now_ms(self) -> int:
        return self._now_ms

    def monotonic(self) -> float:
        return 0.0

    async def sleep(self, duration: timedelta) -> None:
        await asyncio.Event().wait()
