"""How long a session that the door does not know yet has to wait."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from goatherd.agent.door import Trust
from goatherd.agent.door import trust as door_trust
from goatherd.clock import SystemClock
from goatherd.errors import NodeUnreachableError
from goatherd.wire.encoding import to_json_bytes
from tests.cluster.door_world import A, X, identity
from tests.unit.goats import NOW, ORG, commit_by, introduction

CLIENT_PATIENCE = timedelta(seconds=10)


class Measured(SystemClock):
    """A clock on which each reading takes as long as a test says."""

    def __init__(self) -> None:
        self.at = 0.0

    def now_ms(self) -> int:
        return NOW

    def monotonic(self) -> float:
        return self.at


class Sessions:
    """A server's ``/sys/sessions``, which can be slow, unreachable, or silent."""

    def __init__(self, clock: Measured) -> None:
        self.clock = clock
        self.takes = 0.0
        self.is_away = False
        self.is_silent = False
        self.commits = [introduction(X, A)]

    async def ask(self, body: bytes, signature: str) -> tuple[int, bytes]:
        self.clock.at += self.takes
        if self.is_silent:
            await asyncio.Event().wait()
        if self.is_away:
            raise NodeUnreachableError("away")
        commits = [each.to_json() for each in self.commits]
        return 200, to_json_bytes([{"path": "/sys/sessions", "res": {"c": commits, "s": len(commits)}}])


def follow(sessions: Sessions) -> Trust:
    trust = Trust(org=ORG, identity=identity(), clock=sessions.clock)
    trust.attach(sessions.ask)
    return trust


async def test_after_a_stall_of_fifteen_seconds_a_new_session_waits_less_than_its_client_does() -> None:
    sessions = Sessions(Measured())
    trust = follow(sessions)
    sessions.takes = 15
    await trust.refresh()
    assert trust.pause + door_trust.PATIENCE < CLIENT_PATIENCE
    assert trust.pause == door_trust.LONGEST_PAUSE


async def test_a_reading_that_failed_does_not_slow_down_the_next() -> None:
    sessions = Sessions(Measured())
    trust = follow(sessions)
    await trust.refresh()
    sessions.clock.at += 60
    sessions.takes, sessions.is_away = 30, True
    with pytest.raises(NodeUnreachableError):
        await trust.refresh()
    assert trust.pause == door_trust.PAUSE


async def test_a_push_is_answered_although_the_server_does_not_list_its_sessions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(door_trust, "PATIENCE", timedelta(milliseconds=50))
    sessions = Sessions(Measured())
    sessions.is_silent = True
    trust = follow(sessions)
    with pytest.raises(NodeUnreachableError):
        await trust.verify("/data/x", [commit_by(X, "k", {"text": "x"})], None)
    await trust.aclose()
