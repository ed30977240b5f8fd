"""How long the door waits for a session that it does not know yet."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

import goatherd.trust
from goatherd.clock import SystemClock
from goatherd.crypto.keys import SignatureCheck
from goatherd.door import trusted_sessions as door_trust
from goatherd.door.received_commits import ReceivedCommit
from goatherd.door.trusted_sessions import TrustedSessions
from goatherd.errors import InvalidSignatureError, NodeUnreachableError, RevokedSessionError, UntrustedRootError
from goatherd.identity.session import Session
from goatherd.wire.commit import Commit
from goatherd.wire.json import to_json_bytes
from tests.cluster.door_world import A, B, X, Y, identity
from tests.unit.goats import NOW, ORG, commit_by, introduction, owned

CLIENT_PATIENCE, PATIENCE = timedelta(seconds=10), door_trust.PATIENCE


class Measured(SystemClock):
    """A clock that advances by a given time at each reading."""

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


def follow(sessions: Sessions) -> TrustedSessions:
    trust = TrustedSessions(org=ORG, identity=identity(), clock=sessions.clock)
    trust.set_sender(sessions.ask)
    return trust


def received(*commits: Commit) -> list[tuple[ReceivedCommit, Commit]]:
    return [(ReceivedCommit(each.to_json()), each) for each in commits]


async def test_after_a_stall_of_fifteen_seconds_a_new_session_waits_less_than_its_client_does() -> None:
    sessions = Sessions(Measured())
    trust = follow(sessions)
    sessions.takes = 15
    await trust.refresh()
    assert trust.pause == door_trust.PAUSE, "one slow reading may be a stall"
    sessions.clock.at += 60
    await trust.refresh()
    assert trust.pause == door_trust.LONGEST_PAUSE, "two are a lot to read"
    assert trust.pause + PATIENCE < CLIENT_PATIENCE
    sessions.takes = 0.0
    sessions.clock.at += 60
    await trust.refresh()
    assert trust.pause == door_trust.PAUSE


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
        await trust.verify_commits("/data/x", received(commit_by(X, "k", {"text": "x"})), None)
    await trust.aclose()


async def test_a_commit_that_is_sent_again_is_verified_once(monkeypatch: pytest.MonkeyPatch) -> None:
    trust = follow(Sessions(Measured()))
    await trust.refresh()
    commits = [commit_by(X, f"k{number}", {"text": "x"}) for number in range(5)]
    assert await trust.verify_commits("/data/x", received(*commits), None) == [None] * 5
    checked: list[str] = []
    read = goatherd.trust.read_signature_by

    def counted(session: Session, commit: Commit) -> SignatureCheck:
        checked.append(commit.id)
        return read(session, commit)

    monkeypatch.setattr(goatherd.trust, "read_signature_by", counted)
    more = commit_by(X, "other", {"text": "x"})
    assert await trust.verify_commits("/data/x", received(*commits, more), None) == [None] * 6
    assert checked == [more.id]


async def test_a_commit_that_was_well_signed_once_is_no_excuse_for_another_one() -> None:
    trust = follow(Sessions(Measured()))
    await trust.refresh()
    good = commit_by(X, "k", {"text": "x"})
    assert await trust.verify_commits("/data/x", received(good), None) == [None]
    for forged in (replace(good, contents=commit_by(X, "k", {"text": "y"}).contents), replace(good, key="j")):
        (verdict,) = await trust.verify_commits("/data/x", received(forged), None)
        assert isinstance(verdict, InvalidSignatureError)
    trust.adopt_identity(identity(A, revoked=(X.id,)))
    (verdict,) = await trust.verify_commits("/data/x", received(good), None)
    assert isinstance(verdict, RevokedSessionError)


async def test_no_more_verdicts_are_kept_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door_trust, "VERDICTS", 3)
    trust = follow(Sessions(Measured()))
    await trust.refresh()
    commits = [commit_by(X, f"k{number}", {"text": "x"}) for number in range(9)]
    await trust.verify_commits("/data/x", received(*commits), None)
    assert len(trust.known_commits) == 3


def note_threads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list to which each verification of a signature adds its thread."""
    read = goatherd.trust.read_signature_by
    threads: list[int] = []

    def noted(session: Session, commit: Commit) -> SignatureCheck:
        threads.append(threading.get_ident())
        return read(session, commit)

    monkeypatch.setattr(goatherd.trust, "read_signature_by", noted)
    return threads


async def test_the_session_that_signed_a_commit_is_verified_in_a_thread_too(monkeypatch: pytest.MonkeyPatch) -> None:
    trust = follow(Sessions(Measured()))
    await trust.refresh()
    threads = note_threads(monkeypatch)
    good = received(commit_by(X, "k", {"text": "x"}))
    assert await trust.verify_commits("/data/x", good, None, False, are_large=True) == [None]
    assert len(threads) == 2, "of the session and of the commit"
    assert threading.get_ident() not in threads
    assert trust.known_commits.is_valid(good[0][0], X.session)


async def test_session_commits_are_verified_in_threads_and_count_in_their_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(door_trust, "PORTION", 2)
    trust = TrustedSessions(org=ORG, identity=identity(), clock=Measured())
    threads = note_threads(monkeypatch)
    session = introduction(Y, B)
    copies = [replace(introduction(X, A), id=f"x{number}") for number in range(5)]
    commits = [introduction(X, A), introduction(B, A), session, introduction(owned("z"), Y), *copies]
    verdicts = await trust.verify_commits("/sys/sessions", received(*commits), None, False, are_large=True)
    assert verdicts[:3] == [None] * 3
    assert isinstance(verdicts[3], UntrustedRootError)
    assert all(isinstance(each, InvalidSignatureError) for each in verdicts[4:])
    assert [each.id for each in (X, B, Y) if trust.find_session(each.id)] == [X.id, B.id, Y.id]
    assert threading.get_ident() not in threads


async def test_a_root_that_is_revoked_while_its_commits_are_verified_introduces_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trust = TrustedSessions(org=ORG, identity=identity(), clock=Measured())
    verify = TrustedSessions._verify_signatures

    async def then_revoked(*given: Any) -> Any:
        verdicts = await verify(*given)
        trust.adopt_identity(identity(B, revoked=(A.id,)))
        return verdicts

    monkeypatch.setattr(TrustedSessions, "_verify_signatures", then_revoked)
    (verdict,) = await trust.verify_commits("/sys/sessions", received(introduction(X, A)), None, False)
    assert isinstance(verdict, RevokedSessionError)
    assert trust.find_session(X.id) is None


async def test_what_claims_to_introduce_a_root_and_is_no_commit_is_not_sought_in_the_server() -> None:
    sessions = Sessions(Measured())
    sessions.commits.append(introduction(B.session, A))
    trust = follow(sessions)
    real = sessions.commits[-1].to_json()
    damaged = [{**real, "id": each} for each in (["x"], {}, None)] + [{**real, "id": "other", "s": 1}]
    assert not trust.knows_introductions([real])
    assert trust.knows_introductions(damaged)
    await trust.refresh()
    assert trust.knows_introductions([real, *damaged])
    assert trust.introductions_for(None, damaged) == []
