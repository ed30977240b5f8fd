"""Which sessions a server's own log contains, and which root introduces each."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from goatherd.agent.session_log import SessionLogReader
from goatherd.errors import SettingsError
from goatherd.identity.document import IdentityDocument
from goatherd.identity.transitions import revoke_root
from goatherd.trust import TrustPool
from tests.unit.identity.make import NOW, first, owned, rotated

from .make import introduction, write_log

USERS = [owned(f"user-{number}", owner=None).session for number in range(5)]
A, B, STRANGER = owned("a"), owned("b"), owned("stranger")


def book(tmp_path: Path) -> SessionLogReader:
    return SessionLogReader(tmp_path / "sys" / "sessions.jsonl", "localhost")


async def ids(one: SessionLogReader, document: IdentityDocument) -> set[str]:
    return {session.id for session in (await one.read_sessions(document)).sessions}


async def test_a_server_without_a_log_has_no_sessions(tmp_path: Path) -> None:
    found = await book(tmp_path).read_sessions(first())
    assert (found.sessions, found.unvouched, found.damage) == ((), (), None)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo], ids=["directory", "pipe"])
async def test_a_log_that_cannot_be_read_is_an_error(tmp_path: Path, make: Callable[[Path], None]) -> None:
    (tmp_path / "sys").mkdir()
    make(tmp_path / "sys" / "sessions.jsonl")
    with pytest.raises(SettingsError):
        await book(tmp_path).read_sessions(first())


async def test_sessions_of_a_trusted_root_are_told_and_others_are_not(tmp_path: Path) -> None:
    records = [introduction(USERS[0], A), introduction(USERS[1], STRANGER), introduction(USERS[2], A)]
    write_log(tmp_path, records)
    found = await book(tmp_path).read_sessions(first())
    assert [session.id for session in found.sessions] == [USERS[0].id, USERS[2].id]
    assert found.unvouched == (USERS[1].id,)
    assert found.unvouched_roots == ()


async def test_records_that_are_no_commits_are_passed_over(tmp_path: Path) -> None:
    write_log(tmp_path, [{"id": ["x"]}, {"id": {}}, {}, introduction(USERS[0], A)])
    assert await ids(book(tmp_path), first()) == {USERS[0].id}


async def test_a_forged_root_is_told_apart(tmp_path: Path) -> None:
    """An anonymous session claims to be the root, and the server would trust it after its next start."""
    forger = owned("forger", owner=None)
    write_log(tmp_path, [introduction(forger.session, A), introduction(STRANGER.session, forger, claimed=A.id)])
    found = await book(tmp_path).read_sessions(first())
    assert found.unvouched_roots == ((STRANGER.id, A.id),)
    assert [session.id for session in found.sessions] == [forger.id]


async def test_a_revoked_root_is_named_as_such_and_is_no_forged_one(tmp_path: Path) -> None:
    rogue = introduction(STRANGER.session, A)
    write_log(tmp_path, [introduction(B.session, A), introduction(A.session, B), rogue])
    found = await book(tmp_path).read_sessions(revoke_root(rotated(), A.id, NOW, reason="stolen"))
    assert found.revoked_roots == (A.id,)
    assert found.unvouched_roots == ((STRANGER.id, A.id),), "what the revoked root alone has introduced is an attack"
    assert A.id not in {session.id for session in found.sessions}


async def test_a_root_of_the_log_is_told_where_the_document_does_not_list_it_any_more(tmp_path: Path) -> None:
    write_log(tmp_path, [introduction(USERS[0], B), introduction(B.session, A)])
    assert await ids(book(tmp_path), first()) == {USERS[0].id, B.id}
    assert await ids(book(tmp_path), rotated()) == {USERS[0].id}
    forged = introduction(STRANGER.session, STRANGER)
    write_log(tmp_path, [forged])
    assert await ids(book(tmp_path), first()) == {USERS[0].id, B.id}


async def test_a_signature_for_another_organization_does_not_count(tmp_path: Path) -> None:
    write_log(tmp_path, [introduction(USERS[0], A, org="elsewhere")])
    assert (await book(tmp_path).read_sessions(first())).unvouched == (USERS[0].id,)


async def test_what_has_come_since_is_added_and_a_new_root_of_the_document_counts_at_once(tmp_path: Path) -> None:
    one = book(tmp_path)
    write_log(tmp_path, [introduction(USERS[0], A), introduction(USERS[1], B)])
    assert await ids(one, first()) == {USERS[0].id}
    write_log(tmp_path, [introduction(USERS[2], A)])
    assert await ids(one, rotated()) == {USERS[0].id, USERS[1].id, USERS[2].id}


async def test_what_was_verified_once_is_not_verified_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = book(tmp_path)
    write_log(tmp_path, [introduction(user, A) for user in USERS[:4]])
    await one.read_sessions(first())
    offered = 0
    original = TrustPool.offer_session_commits

    def counting(pool: TrustPool, commits: list[object]) -> None:
        nonlocal offered
        offered += len(commits)
        original(pool, commits)  # type: ignore[arg-type]

    monkeypatch.setattr(TrustPool, "offer_session_commits", counting)
    write_log(tmp_path, [introduction(USERS[4], A)])
    assert len(await ids(one, first())) == 5
    assert offered == 1


async def test_a_torn_last_line_is_nothing_and_damage_in_the_middle_is_told(tmp_path: Path) -> None:
    write_log(tmp_path, [introduction(USERS[0], A)], tail=b'\n{"torn":')
    assert (await book(tmp_path).read_sessions(first())).damage is None
    write_log(tmp_path, [introduction(USERS[1], A)])
    found = await book(tmp_path).read_sessions(first())
    assert found.damage is not None
    assert "1 good records" in found.damage
    assert [session.id for session in found.sessions] == [USERS[0].id, USERS[1].id], (
        "the server cuts off what is behind"
    )


async def test_sessions_behind_a_damaged_line_are_known_also_those_that_come_later(tmp_path: Path) -> None:
    one = book(tmp_path)
    write_log(tmp_path, [introduction(USERS[0], A)], tail=b"\n{damaged\n")
    write_log(tmp_path, [introduction(USERS[1], A), introduction(STRANGER.session, STRANGER)])
    found = await one.read_sessions(first())
    assert {session.id for session in found.sessions} == {USERS[0].id, USERS[1].id}
    assert found.unvouched_roots == ((STRANGER.id, STRANGER.id),)
    assert found.damage is not None
    write_log(tmp_path, [introduction(USERS[2], A)])
    assert await ids(one, first()) == {user.id for user in USERS[:3]}


async def test_a_log_that_the_server_has_cut_off_and_written_on_is_read_anew(tmp_path: Path) -> None:
    """GoatDB's log repair removes valid records too, and at the next read the log may be as long as before, or
    longer."""
    for number, added in enumerate((USERS[2:3], USERS[2:5])):
        one = book(tmp_path / str(number))
        path = write_log(tmp_path / str(number), [introduction(USERS[0], A)])
        kept = path.stat().st_size
        write_log(tmp_path / str(number), [introduction(USERS[1], A)])
        await one.read_sessions(first())
        os.truncate(path, kept)
        write_log(tmp_path / str(number), [introduction(user, A) for user in added])
        found = await one.read_sessions(first())
        assert found.damage is None
        assert {session.id for session in found.sessions} == {user.id for user in (*USERS[:2], *added)}
