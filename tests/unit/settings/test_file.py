"""Settings from GoatDB's settings.json."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from goatherd import files
from goatherd.errors import (
    ConfigurationError,
    GenerationError,
    IdentityError,
    IdentityExistsError,
    PluginNotFoundError,
    SettingsError,
    SuccessionError,
)
from goatherd.identity.document import IdentityDocument, Phase, encode_document
from goatherd.identity.session import OwnedSession
from goatherd.identity.settings_json import from_settings
from goatherd.identity.transitions import activate_rotation, create_document, prepare_rotation, with_phase
from goatherd.settings.base import DBSettings
from goatherd.settings.file import FileSettings
from goatherd.settings.store import CloudSecretSettings, settings_from_options
from tests.deadlines import HANG

from .make import NOW, HandClock, settle

GOATDB = json.loads((Path(__file__).parents[2] / "vectors/jsonl/description.json").read_text())["settings_json"]
DELAY = timedelta(seconds=1)


def owned(session_id: str, owner: str | None = "root") -> OwnedSession:
    return OwnedSession.generate(session_id=session_id, owner=owner, now_ms=NOW)


A, B, U = owned("a" * 24), owned("b" * 24), owned("u" * 24, None)
FIRST = create_document(A, NOW)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "settings.json"
    path.write_text(GOATDB)
    return path


async def until_written(settings: FileSettings, path: Path, before: bytes) -> None:
    """Wait for a write that happens in a thread."""
    async with asyncio.timeout(HANG):
        while path.read_bytes() == before:
            await asyncio.sleep(0.001)
    await settle()


async def test_a_file_that_goatdb_wrote_is_loaded_and_not_touched(path: Path) -> None:
    async with FileSettings(path) as settings:
        loaded = await settings.load()
        assert await settings.refresh() is False
    assert loaded.current.id == json.loads(GOATDB)["currentSession"]["id"]
    assert [session.owner for session in loaded.trusted] != []
    assert any("private key" in note for note in loaded.notes)
    assert path.read_text() == GOATDB


async def test_a_missing_file_is_an_error_that_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="does not exist") as caught:
        await FileSettings(tmp_path).load()
    assert "goatherd init" in caught.value.hint
    assert "goatherd migrate" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text", ["", "{", "null", "[]", "{}", GOATDB[:-5], GOATDB + "x", GOATDB.replace('"d"', '"e"')], ids=range(8)
)
async def test_a_corrupt_file_is_an_error_and_never_a_new_identity(path: Path, text: str) -> None:
    path.write_text(text)
    settings = FileSettings(path)
    with pytest.raises(IdentityError, match=r"settings\.json") as caught:
        await settings.load()
    assert "no new identity" in caught.value.hint
    assert path.read_text() == text
    assert list(path.parent.iterdir()) == [path]


async def test_a_directory_in_place_of_the_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "settings.json").mkdir()
    with pytest.raises(SettingsError, match="cannot read"):
        await FileSettings(tmp_path).load()


@pytest.mark.slow
async def test_ten_thousand_sessions_are_written_together(path: Path, clock: HandClock) -> None:
    writes: list[int] = []
    real = files.replace_file
    before = path.read_bytes()

    async with FileSettings(path, clock=clock) as settings:
        count = len((await settings.load()).trusted)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                "goatherd.settings.file.replace_file", lambda place, raw: (writes.append(len(raw)), real(place, raw))
            )
            for number in range(10_000):
                await settings.update(trusted_sessions=[replace(U.session, id=f"user{number}")])
            await settle()
            assert writes == []
            await clock.turn(DELAY)
            await until_written(settings, path, before)
        assert len(writes) == 1
        assert len(settings.settings.trusted) == count + 10_000
    assert len(writes) == 1
    _, trusted, _ = from_settings(path.read_bytes(), NOW)
    assert len(trusted) == count + 10_000
    assert list(json.loads(path.read_text())) == ["currentSession", "roots", "trustedSessions"]


async def test_sessions_that_wait_are_written_on_leaving(path: Path, clock: HandClock) -> None:
    async with FileSettings(path, clock=clock) as settings:
        await settings.load()
        await settings.update(trusted_sessions=[U.session])
    _, trusted, notes = from_settings(path.read_bytes(), NOW)
    assert U.session in trusted
    assert not any("private key" in note for note in notes)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_sessions_known_already_and_roots_cause_no_write(path: Path, clock: HandClock) -> None:
    async with FileSettings(path, clock=clock) as settings:
        loaded = await settings.load()
        await settings.update(trusted_sessions=[*loaded.trusted, B.session])
    assert path.read_text() == GOATDB


async def test_a_write_that_fails_is_reported_and_tried_again(
    path: Path, clock: HandClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = path.read_bytes()
    tried = asyncio.Event()
    loop = asyncio.get_running_loop()

    def fail(place: Path, raw: bytes) -> None:
        loop.call_soon_threadsafe(tried.set)
        raise SettingsError(f"cannot write {place}: No space left on device")

    async with FileSettings(path, clock=clock) as settings:
        await settings.load()
        with monkeypatch.context() as patch:
            patch.setattr("goatherd.settings.file.replace_file", fail)
            await settings.update(trusted_sessions=[U.session])
            await settle()
            await clock.turn(DELAY)
            await asyncio.wait_for(tried.wait(), HANG)
            async with asyncio.timeout(HANG):
                while not settings.status.is_degraded:
                    await asyncio.sleep(0.001)
            await settle()
        assert path.read_bytes() == before
        await clock.turn(DELAY)
        await until_written(settings, path, before)
    assert U.session in from_settings(path.read_bytes(), NOW)[1]


async def test_a_changed_identity_is_written_at_once_and_told(path: Path, clock: HandClock) -> None:
    told: list[DBSettings] = []
    async with FileSettings(path, clock=clock) as settings:
        loaded = await settings.load()
        settings.subscribe(told.append)
        new = prepare_rotation(loaded.document, B, now_ms=NOW, rotation_id="r", started_by="x", stable_version=None)
        assert await settings.update(document=new) is True
        assert await settings.update(document=new) is False
        with pytest.raises(SuccessionError):
            await settings.update(document=replace(FIRST, generation=9))
        with pytest.raises(GenerationError):
            await settings.update(document=loaded.document)
    assert [one.document for one in told] == [new]
    again = await FileSettings(path).load()
    assert again.document == new
    assert again.trusted == loaded.trusted


async def test_an_edit_of_the_file_is_taken_over_where_it_follows_and_refused_where_not(path: Path) -> None:
    settings = FileSettings(path)
    loaded = await settings.load()
    new = prepare_rotation(loaded.document, B, now_ms=NOW, rotation_id="r", started_by="x", stable_version=None)
    path.write_bytes(encode_document(new))
    assert await settings.refresh() is True
    assert settings.settings.document == new
    assert settings.settings.trusted == ()
    for text in (encode_document(FIRST), b"garbage", GOATDB.encode()):
        path.write_bytes(text)
        assert await settings.refresh() is False
        assert settings.status.last_refusal is not None
        assert settings.settings.document == new
        assert path.read_bytes() == text
    path.unlink()
    assert await settings.refresh() is False
    assert settings.status.failures == 4


async def rotate(settings: FileSettings) -> IdentityDocument:
    """Activate root B as another program does, with three writes; return the identity that is in the file then."""
    loaded = (await settings.load()).document
    prepared = prepare_rotation(loaded, B, now_ms=NOW, rotation_id="r", started_by="x", stable_version=None)
    published = with_phase(prepared, Phase.PUBLISHED, NOW)
    activated = activate_rotation(published, NOW)
    for document in (prepared, published, activated):
        assert await settings.update(document=document) is True
    return activated


@pytest.mark.parametrize("is_left", [False, True])
async def test_a_write_of_sessions_adopts_the_identity_that_another_program_wrote(
    path: Path, clock: HandClock, is_left: bool
) -> None:
    async with FileSettings(path, clock=clock) as settings, FileSettings(path) as other:
        trusted = (await settings.load()).trusted
        told: list[DBSettings] = []
        settings.subscribe(told.append)
        new = await rotate(other)
        before = path.read_bytes()
        await settings.update(trusted_sessions=[U.session])
        if not is_left:
            await settle()
            await clock.turn(DELAY)
            await until_written(settings, path, before)
    found, users, _ = from_settings(path.read_bytes(), NOW)
    assert found == new == settings.settings.document
    assert [one.document for one in told] == [new]
    assert users == settings.settings.trusted == (*trusted, U.session)


async def test_an_identity_does_not_overwrite_one_that_another_program_wrote(path: Path) -> None:
    async with FileSettings(path) as settings, FileSettings(path) as other:
        stale = (await settings.load()).document
        stale = prepare_rotation(stale, A, now_ms=NOW, rotation_id="q", started_by="y", stable_version=None)
        new = await rotate(other)
        with pytest.raises(GenerationError):
            await settings.update(document=stale)
        assert settings.settings.document == new
        assert await settings.update(document=new) is False
    assert (await FileSettings(path).load()).document == new


async def test_of_two_identities_that_are_written_at_once_only_the_first_is_written(path: Path) -> None:
    async with FileSettings(path) as settings:
        loaded = (await settings.load()).document
        first, second = (
            prepare_rotation(loaded, root, now_ms=NOW, rotation_id=root.id, started_by="x", stable_version=None)
            for root in (A, B)
        )
        done = await asyncio.gather(
            settings.update(document=first), settings.update(document=second), return_exceptions=True
        )
        assert done[0] is True
        assert isinstance(done[1], GenerationError)
        assert settings.settings.document == first
    assert (await FileSettings(path).load()).document == first


async def test_a_session_that_was_removed_from_the_file_is_not_trusted_and_not_written_again(
    path: Path, clock: HandClock
) -> None:
    removed, kept = (replace(U.session, id=letter * 24) for letter in "rk")
    async with FileSettings(path, clock=clock) as settings:
        loaded = await settings.load()
        await settings.update(trusted_sessions=[removed, kept])
        await settings.flush()
        tree = json.loads(path.read_bytes())
        tree["trustedSessions"] = [one for one in tree["trustedSessions"] if one["id"] != removed.id]
        path.write_text(json.dumps(tree))
        await settings.update(trusted_sessions=[U.session])
        assert await settings.refresh() is True
        assert settings.settings.trusted == (*loaded.trusted, kept, U.session), "U is not written yet"
    assert from_settings(path.read_bytes(), NOW)[1] == (*loaded.trusted, kept, U.session)


async def test_sessions_wait_while_the_file_is_missing_or_its_identity_is_refused(path: Path) -> None:
    async with FileSettings(path) as settings:
        await settings.load()
        await settings.update(trusted_sessions=[U.session])
        for text in (encode_document(FIRST), b"garbage"):
            path.write_bytes(text)
            with pytest.raises(IdentityError):
                await settings.flush()
            assert path.read_bytes() == text
        path.unlink()
        with pytest.raises(SettingsError, match="does not exist"):
            await settings.flush()
        assert list(path.parent.iterdir()) == []
        path.write_text(GOATDB)
    assert U.session in from_settings(path.read_bytes(), NOW)[1]


async def test_an_identity_whose_write_was_cancelled_is_in_use_if_it_was_written(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, may_end, real = asyncio.Event(), threading.Event(), files.replace_file
    loop = asyncio.get_running_loop()

    def slow(place: Path, raw: bytes) -> None:
        loop.call_soon_threadsafe(began.set)
        assert may_end.wait(HANG)
        real(place, raw)

    monkeypatch.setattr("goatherd.settings.file.replace_file", slow)
    async with FileSettings(path) as settings:
        loaded = (await settings.load()).document
        new = prepare_rotation(loaded, B, now_ms=NOW, rotation_id="r", started_by="x", stable_version=None)
        task = asyncio.create_task(settings.update(document=new))
        await asyncio.wait_for(began.wait(), HANG)
        task.cancel()
        await settle()
        may_end.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert settings.settings.document == new
        await settings.update(trusted_sessions=[U.session])
    assert (await FileSettings(path).load()).document == new


async def test_create_is_the_explicit_way_and_overwrites_nothing(tmp_path: Path) -> None:
    settings = await FileSettings.create(tmp_path / "localhost", FIRST)
    assert (await settings.load()).current == A
    assert stat.S_IMODE(settings.path.stat().st_mode) == 0o600
    before = settings.path.read_bytes()
    with pytest.raises(IdentityExistsError):
        await FileSettings.create(settings.path, create_document(B, NOW))
    assert settings.path.read_bytes() == before
    assert list(settings.path.parent.iterdir()) == [settings.path]


@pytest.mark.parametrize("has_locks", [True, False])
@pytest.mark.parametrize("call", ["os.fsync", "os.replace", "os.open"])
def test_a_write_that_fails_at_any_call_leaves_the_old_file_and_nothing_else(
    path: Path, call: str, has_locks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    if not has_locks:
        monkeypatch.setattr("fcntl.flock", fail)
    monkeypatch.setattr(call, fail)
    with pytest.raises(SettingsError, match="No space left on device"):
        files.replace_file(path, b"new")
    monkeypatch.undo()
    assert path.read_text() == GOATDB
    assert list(path.parent.iterdir()) == [path]


def left_beside(path: Path, digit: str) -> Path:
    left = path.with_name(f".{path.name}.{digit * 16}.new")
    left.write_text("a private key")
    return left


def test_what_a_killed_writer_left_does_not_stay_on_the_disk(path: Path) -> None:
    left, at_work = left_beside(path, "a"), left_beside(path, "b")
    other = left_beside(path.with_name("other.json"), "c")
    writer = files.lock_file(at_work)
    files.replace_file(path, b"new")
    assert sorted(path.parent.iterdir()) == sorted([path, at_work, other])
    os.close(writer)
    files.replace_file(path, b"newer")
    assert sorted(path.parent.iterdir()) == sorted([path, other])
    left.write_text("a private key")
    files.remove_file(path)
    assert list(path.parent.iterdir()) == [other]


def test_where_there_are_no_locks_only_an_old_file_is_one_of_a_killed_writer(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, fresh = left_beside(path, "a"), left_beside(path, "b")
    os.utime(old, (1, 1))

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(files.fcntl, "flock", refuse)
    files.replace_file(path, b"new")
    assert sorted(path.parent.iterdir()) == sorted([path, fresh])


def test_a_writer_that_is_killed_leaves_nothing_once_another_has_written(path: Path) -> None:
    script = "import os, sys; from goatherd import files; os.fsync = lambda _: os.kill(os.getpid(), 9);"
    script += "from pathlib import Path; files.replace_file(Path(sys.argv[1]), b'a private key')"
    assert subprocess.run([sys.executable, "-c", script, str(path)], check=False).returncode == -9
    assert len(list(path.parent.iterdir())) == 2
    files.replace_file(path, b"new")
    assert list(path.parent.iterdir()) == [path]


def test_a_creator_that_was_killed_leaves_nothing_once_another_has_tried(path: Path) -> None:
    left_beside(path, "a")
    path.write_text(GOATDB)
    with pytest.raises(IdentityExistsError):
        files.create_file(path, b"new")
    assert list(path.parent.iterdir()) == [path]


def test_a_file_is_removed_although_what_a_killed_writer_left_cannot_be(path: Path) -> None:
    path.write_text("{}")
    (path.parent / f".{path.name}.{'a' * 16}.new").mkdir()
    with pytest.raises(SettingsError):
        files.remove_file(path)
    assert not path.exists()


def test_writers_at_the_same_time_do_not_remove_each_other_s_files(path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: files.replace_file(path, b"%d" % number), range(400)))
    assert list(path.parent.iterdir()) == [path]


def test_a_new_file_is_private_from_its_first_moment(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[int] = []
    real = os.open

    def watched(name: os.PathLike[str], flags: int, mode: int = 0o777, **kwargs: int) -> int:
        if flags & os.O_CREAT:
            assert flags & os.O_EXCL
            modes.append(mode)
        return real(name, flags, mode, **kwargs)

    monkeypatch.setattr(os, "open", watched)
    files.replace_file(path, b"new")
    assert modes == [0o600]
    assert path.read_bytes() == b"new"


async def test_each_organization_has_a_file_of_its_own(tmp_path: Path) -> None:
    await FileSettings.create(tmp_path / "north", FIRST)
    await FileSettings.create(tmp_path / "south", create_document(B, NOW))
    server = FileSettings(tmp_path)
    assert (await server.for_org("north").load()).current == A
    assert (await FileSettings(f"{tmp_path}/{{org}}/settings.json").for_org("south").load()).current == B
    single = FileSettings(tmp_path / "north/settings.json")
    assert single.for_org("anything") is single
    with pytest.raises(ConfigurationError):
        server.for_org("../north")


async def test_options_in_the_tickets_shape_name_settings(tmp_path: Path) -> None:
    cloud = {"type": "cloud", "cloudConfig": {"provider": "file", "secretId": f"{tmp_path}/keys/root"}}
    settings = settings_from_options(cloud)
    assert isinstance(settings, CloudSecretSettings)
    await FileSettings.create(tmp_path, FIRST)
    for options in ({"type": "file", "path": str(tmp_path)}, {"type": "file"}):
        file = settings_from_options(options, path=tmp_path)
        assert isinstance(file, FileSettings)
        assert (await file.load()).current == A


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"type": "kms"},
        {"type": ["file"]},
        {"type": "file"},
        {"type": "file", "path": 7},
        {"type": "file", "pth": "x"},
        {"type": "cloud"},
        {"type": "cloud", "cloudConfig": "aws"},
        {"type": "cloud", "cloudConfig": {}},
        {"type": "cloud", "cloudConfig": {"provider": "nowhere", "secretId": "x"}},
    ],
    ids=range(10),
)
def test_options_of_no_shape_are_refused(options: dict[str, object]) -> None:
    with pytest.raises((ConfigurationError, PluginNotFoundError)):
        settings_from_options(options)
