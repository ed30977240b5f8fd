"""One organization under an agent: from the identity in the store to the server that uses it."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from goatherd.agent.organization import ManagedOrganization
from goatherd.agent.settings_file import FileState, SettingsFile
from goatherd.cluster.client import NewSession
from goatherd.errors import IdentityError, IdentityExistsError, KeyLeakedError, NodeUnreachableError, SettingsError
from goatherd.identity.document import HistoryEntry, IdentityDocument
from goatherd.identity.session import OwnedSession
from goatherd.identity.settings_json import to_settings
from goatherd.identity.transitions import extend_current_root, revoke_root
from tests.unit.identity.make import DAY, NOW, activated, first, owned, published, rotated, secret_of, shows_key
from tests.unit.settings.make import HandClock

from .make import TestSettings, introduction, write_log

A, B = owned("a"), owned("b")
USER = owned("user", owner=None)


class FakeClient:
    """A server that trusts the roots that a test sets."""

    base_url = "http://server"

    def __init__(self) -> None:
        self.trusts: set[str] = {A.id}
        self.leaked: tuple[str, ...] = ()
        self.is_away = False
        self.asked = 0
        self.signs_with = A

    async def answers(self, signer: OwnedSession) -> bool:
        if self.is_away:
            raise NodeUnreachableError("no server there")
        return signer.id in self.trusts

    async def new_session(self) -> NewSession:
        self.asked += 1
        if self.is_away:
            raise NodeUnreachableError("no server there")
        return NewSession(USER, (A.session,), self.leaked)

    async def batch_sync(self, requests: Any, signer: OwnedSession, now_ms: int) -> list[dict[str, Any]]:
        if self.is_away:
            raise NodeUnreachableError("no server there")
        made = [introduction(USER.session, self.signs_with)] if self.asked else []
        return [{"s": len(made), "f": {}, "c": made}]

    async def aclose(self) -> None:
        pass


class Kit:
    """An organization whose store, server and files are controlled by a test."""

    def __init__(self, tmp_path: Path, document: IdentityDocument, *, in_memory: bool = True) -> None:
        self.settings, self.client, self.clock = TestSettings(document), FakeClient(), HandClock()
        self.directory = tmp_path / "data" / "localhost"
        self.directory.mkdir(parents=True)
        memory = tmp_path / "memory"
        memory.mkdir(mode=0o700)
        self.file = SettingsFile(
            link=self.directory / "settings.json", target=memory / "localhost.json" if in_memory else None
        )
        self.organization = ManagedOrganization(
            org="localhost",
            settings=self.settings,  # type: ignore[arg-type]
            directory=self.directory,
            file=self.file,
            client=self.client,  # type: ignore[arg-type]
            clock=self.clock,
        )

    @property
    def tree(self) -> Any:
        return json.loads(self.file.link.read_bytes())

    def rewrite_records(self, **members: Any) -> None:
        """Rewrite the log in place, as GoatDB does."""
        text = json.dumps({**self.tree, **members}).encode()
        descriptor = os.open(self.file.link, os.O_WRONLY)
        os.write(descriptor, text)
        os.ftruncate(descriptor, len(text))
        os.close(descriptor)


@pytest.fixture
def kit(tmp_path: Path) -> Kit:
    return Kit(tmp_path, first())


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG, "goatherd.agent")
    return caplog


# --- what goes out ----------------------------------------------------------------------------------------------------


async def test_the_server_gets_what_it_reads_and_nothing_else(kit: Kit) -> None:
    kit.settings.document = published()
    user = owned("user", owner=None).session
    write_log(kit.directory, [introduction(user, A)])
    await kit.organization.write_file()
    assert set(kit.tree) == {"currentSession", "roots", "trustedSessions"}
    assert kit.tree["currentSession"]["id"] == A.id
    assert [root["id"] for root in kit.tree["roots"]] == [A.id, B.id]
    assert {one["id"] for one in kit.tree["trustedSessions"]} == {A.id, B.id, user.id}
    assert secret_of(B) not in kit.file.link.read_text(), "never the next key"
    assert kit.file.link.is_symlink()


async def test_a_server_is_not_given_a_root_with_15_days_left_and_nothing_is_written(kit: Kit) -> None:
    kit.clock._now_ms = A.session.expiration_ms - 15 * DAY
    with pytest.raises(IdentityError, match="15"):
        await kit.organization.write_file()
    assert not os.path.lexists(kit.file.link)


async def test_where_nothing_was_written_nothing_is_a_reason(kit: Kit) -> None:
    assert kit.organization.reasons_to_restart() == ()


# --- forward and back -------------------------------------------------------------------------------------------------


async def test_a_server_that_does_not_come_up_gets_the_root_before_and_not_the_new_one_again(kit: Kit) -> None:
    await kit.organization.write_file()
    kit.organization.mark_ready()
    kit.settings.document = activated()
    assert kit.organization.reasons_to_restart()
    await kit.organization.write_file()
    assert kit.tree["currentSession"]["id"] == B.id
    assert kit.organization.record_failed_start()
    await kit.organization.write_file()
    assert kit.tree["currentSession"]["id"] == A.id
    assert {root["id"] for root in kit.tree["roots"]} == {A.id, B.id}, "B may have signed something elsewhere"
    assert kit.organization.reasons_to_restart() == (), "B is not tried again for this document"
    assert not kit.organization.record_failed_start(), "there is nowhere else to go"
    kit.settings.document = rotated()
    assert kit.organization.reasons_to_restart(), "but for the next one"


async def test_a_server_that_never_came_up_has_nothing_to_go_back_to(kit: Kit) -> None:
    await kit.organization.write_file()
    assert not kit.organization.record_failed_start()


async def test_a_file_that_is_there_already_is_taken_for_written_only_if_it_is_what_is_wanted(kit: Kit) -> None:
    assert not await kit.organization.adopt_file()
    await kit.organization.write_file()
    again = ManagedOrganization(
        org="localhost",
        settings=kit.settings,  # type: ignore[arg-type]
        directory=kit.directory,
        file=kit.file,
        client=kit.client,  # type: ignore[arg-type]
        clock=kit.clock,
    )
    assert await again.adopt_file()
    kit.settings.document = extend_current_root(first(), A.session.expiration_ms + DAY, NOW)
    assert not await again.adopt_file(), "the root has a later expiration"
    kit.settings.document = activated()
    assert not await again.adopt_file()


# --- what is there already --------------------------------------------------------------------------------------------


async def test_a_settings_json_of_this_identity_may_be_replaced_rotated_since_or_not(kit: Kit) -> None:
    kit.file.link.write_bytes(to_settings(first()))
    await kit.organization.check_place(is_left_over=False)
    kit.settings.document = rotated()
    await kit.organization.check_place(is_left_over=False)


@pytest.mark.parametrize("text", [b"", b"{", b'{"currentSession": null}'], ids=["empty", "torn", "nobody"])
async def test_a_settings_json_that_cannot_be_read_is_not_replaced_unless_an_agent_left_it(
    kit: Kit, text: bytes
) -> None:
    kit.file.link.write_bytes(text)
    with pytest.raises(IdentityExistsError, match="cannot be read"):
        await kit.organization.check_place(is_left_over=False)
    assert kit.file.link.read_bytes() == text
    await kit.organization.check_place(is_left_over=True)


async def test_a_settings_json_of_another_identity_is_not_replaced_and_the_operator_is_told_what_it_may_be(
    kit: Kit,
) -> None:
    other = to_settings(first()).replace(A.id.encode(), owned("z").id.encode())
    kit.file.link.write_bytes(other)
    with pytest.raises(IdentityExistsError) as caught:
        await kit.organization.check_place(is_left_over=False)
    assert owned("z").id in str(caught.value)
    assert "into a secret of its own with `goatherd migrate`" in caught.value.hint
    assert "it created that root" in caught.value.hint


async def test_a_root_beside_the_identity_that_an_agent_has_used_is_not_to_be_migrated(kit: Kit) -> None:
    """The server's identity is in the store already, so `goatherd migrate` would reject the file."""
    kit.file.link.write_bytes(to_settings(first()).replace(A.id.encode(), owned("z").id.encode()))
    kit.settings.recalled = (A.session,)
    with pytest.raises(IdentityExistsError) as caught:
        await kit.organization.check_place(is_left_over=False)
    assert "do not migrate it" in caught.value.hint


async def test_a_root_that_the_server_has_invented_is_not_written_over_after_its_agent_was_killed(kit: Kit) -> None:
    await kit.organization.write_file()
    kit.settings.document = rotated()
    await kit.organization.check_place(is_left_over=True)
    kit.rewrite_records(currentSession=owned("z").to_secret_json())
    with pytest.raises(IdentityExistsError, match=owned("z").id) as caught:
        await kit.organization.check_place(is_left_over=True)
    assert "do not migrate it" in caught.value.hint
    assert kit.tree["currentSession"]["id"] == owned("z").id


@pytest.mark.parametrize("shown_by", ["history", "revocation", "log"])
async def test_an_earlier_root_that_has_left_the_document_may_be_replaced(kit: Kit, shown_by: str) -> None:
    """A server that is restarted by hand long after a rotation, with `goatherd run --once`."""
    await kit.organization.write_file()
    c = owned("c")
    document = replace(first(), current=c, roots=(c.session,), pruned=1)
    if shown_by == "history":
        document = replace(document, history=(HistoryEntry(at=1, event="rotated", from_id=A.id, to_id=B.id),))
    elif shown_by == "revocation":
        document = revoke_root(rotated(), A.id, NOW, reason="stolen")
    else:
        write_log(kit.directory, [introduction(A.session, B), introduction(B.session, c)])
    kit.settings.document = document
    for is_left_over in (True, False):
        await kit.organization.check_place(is_left_over=is_left_over)
    assert await kit.organization.remove_file()


async def test_a_log_that_another_root_has_signed_proves_no_earlier_root(kit: Kit) -> None:
    await kit.organization.write_file()
    c = owned("c")
    write_log(kit.directory, [introduction(A.session, owned("z")), introduction(B.session, c)])
    kit.settings.document = replace(first(), current=c, roots=(c.session,), pruned=1)
    for is_left_over in (True, False):
        with pytest.raises(IdentityExistsError, match=A.id) as caught:
            await kit.organization.check_place(is_left_over=is_left_over)
    assert "an earlier one of this identity" in caught.value.hint


async def test_a_root_that_this_agent_has_used_is_not_an_invented_one_though_it_has_left_the_document(kit: Kit) -> None:
    await kit.organization.write_file()
    kit.settings.document = replace(first(), current=B, roots=(B.session,), pruned=1)
    with pytest.raises(IdentityExistsError):
        await kit.organization.check_place(is_left_over=True)
    kit.settings.recalled = (A.session,)
    for is_left_over in (True, False):
        await kit.organization.check_place(is_left_over=is_left_over)


async def test_at_the_end_the_file_is_removed(kit: Kit) -> None:
    await kit.organization.write_file()
    await kit.organization.remove_file()
    assert not os.path.lexists(kit.file.link)
    assert kit.file.target is not None
    assert not kit.file.target.exists()


async def test_a_root_that_the_server_has_invented_is_left_where_it_is_at_the_end_and_told(
    kit: Kit, told: pytest.LogCaptureFixture
) -> None:
    await kit.organization.write_file()
    kit.rewrite_records(currentSession=owned("z").to_secret_json())
    await kit.organization.remove_file()
    assert kit.tree["currentSession"]["id"] == owned("z").id
    assert "the file was not removed" in told.text


# --- how the server changes the file ----------------------------------------------------------------------------------


async def test_what_the_server_learns_is_told_without_its_keys_and_the_store_is_not_touched(
    kit: Kit, told: pytest.LogCaptureFixture
) -> None:
    await kit.organization.write_file()
    before = kit.settings.document
    users = [owned(name, owner=None).session.to_json() for name in ("u", "v")]
    kit.rewrite_records(trustedSessions=[A.to_secret_json(), *users], roots=[A.session.to_json(), B.session.to_json()])
    assert not await kit.organization.check_file()
    assert f"the server added root {B.id}" in told.text
    assert "the server added 2 sessions" in told.text
    assert not shows_key(told.text, A, B)
    assert kit.settings.document is before
    told.clear()
    kit.organization._seen.not_before = 0
    assert not await kit.organization.check_file()
    assert told.text == "", "it is told once"


@pytest.mark.parametrize("how", ["invented", "extended", "exposed"])
async def test_what_puts_the_key_in_danger_makes_the_agent_ask_the_server(
    kit: Kit, told: pytest.LogCaptureFixture, how: str
) -> None:
    await kit.organization.write_file()
    current = kit.tree["currentSession"]
    if how == "invented":
        kit.rewrite_records(currentSession=owned("z").to_secret_json())
    elif how == "extended":
        kit.rewrite_records(currentSession={**current, "expiration": current["expiration"] + 86_400})
    else:
        kit.rewrite_records(roots=[current])
    assert await kit.organization.check_file()
    assert "agent.key_in_danger" in told.text
    assert not shows_key(told.text, A, owned("z"))


async def test_a_file_in_the_middle_of_being_written_is_nothing_and_one_that_stays_so_is_told(
    kit: Kit, told: pytest.LogCaptureFixture
) -> None:
    await kit.organization.write_file()
    with kit.file.link.open("r+b") as file:
        file.truncate(100)
    for _ in range(2):
        await look_again(kit)
    assert told.text.count("unreadable") == 0
    for _ in range(4):
        await look_again(kit)
    assert told.text.count("unreadable") == 1


async def test_a_file_that_is_written_again_and_again_is_never_told_for_being_caught_in_the_middle(
    kit: Kit, told: pytest.LogCaptureFixture
) -> None:
    await kit.organization.write_file()
    for length in range(100, 110):
        with kit.file.link.open("r+b") as file:
            file.truncate(length)
        await look_again(kit)
    assert "unreadable" not in told.text


async def test_a_revoked_root_in_the_servers_log_is_named_once_and_is_no_error(
    kit: Kit, told: pytest.LogCaptureFixture
) -> None:
    write_log(kit.directory, [introduction(B.session, A), introduction(A.session, B)])
    kit.settings.document = revoke_root(rotated(), A.id, NOW, reason="stolen")
    for _ in range(3):
        await kit.organization.write_file()
    assert told.text.count("agent.revoked_root") == 1
    assert A.id in told.text
    assert "agent.key_in_danger" not in told.text


async def test_a_root_that_a_failed_revocation_left_is_reported_once_with_what_it_is(
    kit: Kit, told: pytest.LogCaptureFixture
) -> None:
    """The stolen root introduced the successor of a first run, which was then not written."""
    write_log(kit.directory, [introduction(owned("x").session, A), introduction(B.session, A)])
    kit.settings.document = revoke_root(rotated(), A.id, NOW, reason="stolen")
    for user in ("u", "v"):
        await kit.organization.write_file()
        write_log(kit.directory, [introduction(owned(user, owner=None).session, B)])
    assert told.text.count("agent.key_in_danger") == 1
    assert f"if `goatherd revoke {A.id}` failed and was run again, this is the root of the first run" in told.text


async def look_again(kit: Kit) -> None:
    kit.organization._seen.not_before = 0
    await kit.organization.check_file()


async def test_a_plain_file_in_the_links_place_is_brought_back_into_memory_and_told(
    kit: Kit, told: pytest.LogCaptureFixture
) -> None:
    await kit.organization.write_file()
    new = kit.directory / "new"
    new.write_bytes(kit.file.link.read_bytes())
    new.replace(kit.file.link)
    assert kit.file.read_state() is FileState.REPLACED
    await kit.organization.check_file()
    assert kit.file.read_state() is FileState.OURS
    assert "on the disk" in told.text


async def test_a_file_that_cannot_be_brought_back_is_told_once(
    kit: Kit, told: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(file: SettingsFile, _: bytes) -> None:
        raise SettingsError(f"cannot write {file.link}: No space left on device")

    await kit.organization.write_file()
    for times in (1, 2):
        kit.file.link.unlink()
        with monkeypatch.context() as patch:
            patch.setattr(SettingsFile, "write", fail)
            for _ in range(3):
                await kit.organization.check_file()
        assert told.text.count("No space left on device") == times
        await kit.organization.check_file()
        assert kit.file.link.exists()


async def test_a_file_that_is_gone_is_written_again(kit: Kit, told: pytest.LogCaptureFixture) -> None:
    await kit.organization.write_file()
    assert kit.file.target is not None
    written = kit.file.read()
    kit.file.target.unlink()
    await kit.organization.check_file()
    assert kit.file.read() == written, "it passes the same checks before it is written"
    assert kit.tree["currentSession"]["id"] == A.id
    assert "agent.mended" in told.text


async def test_that_the_server_wrote_the_earlier_root_over_the_new_one_is_noticed(kit: Kit) -> None:
    await kit.organization.write_file()
    before = kit.tree
    kit.settings.document = activated()
    await kit.organization.write_file()
    assert not await kit.organization.is_regressed()
    kit.rewrite_records(**before)
    assert await kit.organization.is_regressed()


async def test_forged_roots_and_damage_in_the_log_are_told_once(kit: Kit, told: pytest.LogCaptureFixture) -> None:
    forger = owned("forger", owner=None)
    forged = introduction(owned("z").session, forger, claimed=A.id)
    write_log(kit.directory, [introduction(forger.session, A), forged], tail=b"\nbroken\n")
    write_log(kit.directory, [introduction(owned("u", owner=None).session, A)])
    for _ in range(2):
        await kit.organization.write_file()
    assert told.text.count(f"/sys/sessions holds root {owned('z').id}") == 1
    assert told.text.count("agent.log_damaged") == 1
    assert owned("z").id not in {one["id"] for one in kit.tree["trustedSessions"]}


# --- asking -----------------------------------------------------------------------------------------------------------


async def test_how_the_server_stands_to_its_root(kit: Kit) -> None:
    await kit.organization.write_file()
    assert await kit.organization.is_root_trusted() is True
    kit.client.trusts = set()
    assert await kit.organization.is_root_trusted() is False
    kit.client.is_away = True
    assert await kit.organization.is_root_trusted() is None


async def test_a_private_key_that_comes_back_is_an_error_that_names_the_root_and_nothing_more(
    kit: Kit, told: pytest.LogCaptureFixture
) -> None:
    await kit.organization.write_file()
    kit.client.leaked = (A.id,)
    with pytest.raises(KeyLeakedError, match=A.id) as caught:
        await kit.organization.check_key_exposure()
    assert not shows_key(told.text + str(caught.value), A)
    assert "agent.key_leaked" in told.text


async def test_a_server_that_cannot_be_asked_is_not_one_that_was_asked(kit: Kit) -> None:
    await kit.organization.write_file()
    kit.client.is_away = True
    await kit.organization.check_key_exposure()
    assert not kit.organization.is_exposure_checked
    kit.client.is_away = False
    await kit.organization.check_key_exposure()
    assert kit.organization.is_exposure_checked
    await kit.organization.write_file()
    assert not kit.organization.is_exposure_checked, "after another start it is asked again"


async def test_the_session_of_the_attackers_question_shows_who_signs(kit: Kit) -> None:
    await kit.organization.write_file()
    await kit.organization.check_key_exposure()
    assert kit.organization.check is not None
    assert (kit.organization.check.signer, kit.client.asked) == (A.id, 1)
    told = kit.organization.describe()
    assert (told["signer"], told["agent"]["started"], told["agent"]["pending"]) == (A.id, A.id, [])
    assert told["agent"]["leakCheck"]["commit"] == kit.organization.check.commit_id
    assert not shows_key(json.dumps(told), A)


async def test_a_server_that_starts_again_by_itself_is_asked_who_signs_after_it_was_away(kit: Kit) -> None:
    """GoatDB keeps every session permanently, so checking every second would add a session every second."""
    kit.settings.document = activated(0)
    await kit.organization.write_file()
    kit.client.trusts = {A.id, B.id}
    for _ in range(300):
        await kit.clock.turn(timedelta(milliseconds=200))
        await kit.organization.is_root_trusted()
        assert not await kit.organization.check_signer()
    assert kit.client.asked <= 6, "in a minute"
    asked = kit.client.asked
    kit.client.is_away = True
    await kit.organization.is_root_trusted()
    kit.client.is_away, kit.client.signs_with = False, B
    await kit.organization.is_root_trusted()
    assert await kit.organization.check_signer()
    assert kit.client.asked == asked + 1


async def test_a_short_life_is_told_now_and_then(kit: Kit, told: pytest.LogCaptureFixture) -> None:
    kit.clock._now_ms = A.session.expiration_ms - 20 * DAY
    for _ in range(3):
        kit.organization.warn_of_age()
    assert told.text.count("agent.short_life") == 1
    kit.clock._now_ms += DAY
    kit.organization.warn_of_age()
    assert told.text.count("agent.short_life") == 2


async def test_a_change_in_the_store_wakes_the_agent(kit: Kit) -> None:
    changed = asyncio.Event()
    async with kit.organization:
        await kit.organization.load_identity(changed)
        assert not changed.is_set()
        kit.settings.change(activated())
        assert changed.is_set()
