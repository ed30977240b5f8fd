"""Private files: what root creates in another user's directory, and paths that are no regular file."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from goatherd import files
from goatherd.errors import SettingsError
from tests.deadlines import HANG

APP = (12345, 12346)
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Return a directory of another user, in which root has to write."""
    found = tmp_path / "data"
    found.mkdir(mode=0o700)
    os.chown(found, *APP)
    return found


def owner(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_uid, status.st_gid


@as_root
def test_what_root_creates_belongs_to_the_owner_of_its_directory(directory: Path) -> None:
    files.create_file(directory / "created", b"")
    files.replace_file(directory / "replaced", b"before")
    os.chown(directory / "replaced", 0, 0)
    files.replace_file(directory / "replaced", b"after")
    os.close(files.lock_file(directory / "lock"))
    files.replace_file(directory / "a/b/file", b"")
    assert {path.name: owner(path) for path in directory.rglob("*")} == dict.fromkeys(
        ["created", "replaced", "lock", "a", "b", "file"], APP
    )
    assert {path.stat().st_mode & 0o777 for path in directory.rglob("*") if path.is_file()} == {0o600}


@as_root
def test_another_user_cannot_make_root_give_a_file_away(directory: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("x")
    for place in (directory / "hard", directory / "lock"):
        place.hardlink_to(precious)
    (directory / "soft").symlink_to(precious)
    (directory / "folder").symlink_to(tmp_path)
    os.close(files.lock_file(directory / "lock"))
    with pytest.raises(OSError, match="symbolic link"):
        files.lock_file(directory / "soft")
    for place in ("hard", "soft"):
        files.replace_file(directory / place, b"new")
        assert owner(directory / place) == APP
    files.replace_file(directory / "folder/file", b"new")
    assert owner(tmp_path / "file") == (0, 0), "of the directory in which it is"
    assert (precious.read_text(), owner(precious)) == ("x", (0, 0))


@as_root
@pytest.mark.parametrize(
    "change",
    [
        lambda path: files.create_file(path.with_name("new"), b""),
        lambda path: files.replace_file(path, b""),
        files.remove_file,
        lambda path: files.replace_link(path, path),
        lambda path: files.make_directory(path.with_name("made")),
    ],
    ids=["create", "replace", "remove", "link", "make a directory"],
)
def test_root_writes_into_no_directory_to_which_another_user_has_made_a_link(
    directory: Path, tmp_path: Path, change: Callable[[Path], object]
) -> None:
    """Such as the directory of an organization, which the server's user can replace while an agent of root runs."""
    (etc := tmp_path / "etc").mkdir()
    (etc / "settings.json").write_text("x")
    (link := directory / "org").symlink_to(etc)
    os.lchown(link, *APP)
    with pytest.raises((SettingsError, NotADirectoryError), match="Not a directory"):
        change(link / "settings.json")
    assert [path.read_text() for path in etc.iterdir()] == ["x"]
    os.lchown(link, 0, 0)
    change(link / "settings.json")


@as_root
def test_in_a_directory_of_root_and_by_another_user_nothing_is_given_away(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.chown(tmp_path, 0, APP[1])
    files.replace_file(tmp_path / "file", b"")
    assert owner(tmp_path / "file") == (0, 0)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    files.replace_file(directory / "file", b"")
    assert owner(directory / "file") == (0, 0)


@as_root
def test_where_root_may_not_give_files_away_they_are_written_nevertheless(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "fchown", refuse)
    files.replace_file(directory / "file", b"x")
    assert (directory / "file").read_bytes() == b"x"


def test_a_file_is_on_the_disk_before_it_gets_its_name_and_the_name_before_the_call_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def record(name: str) -> None:
        real = getattr(os, name)

        def call(*arguments: object, **options: object) -> object:
            is_directory = name == "fsync" and stat.S_ISDIR(os.fstat(arguments[0]).st_mode)  # type: ignore[call-overload]
            done.append(f"{name} of the directory" if is_directory else name)
            return real(*arguments, **options)

        monkeypatch.setattr(os, name, call)

    for name in ("fsync", "replace", "link"):
        record(name)
    files.replace_file(tmp_path / "replaced", b"x")
    assert done == ["fsync", "replace", "fsync of the directory"]
    done.clear()
    files.create_file(tmp_path / "created", b"x")
    assert done == ["fsync", "link", "fsync of the directory"]


def test_a_pipe_or_a_device_is_neither_replaced_nor_read(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """As root, replacing /dev/stdout or /dev/null would break the machine."""
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    for place in (pipe, link):
        with pytest.raises(SettingsError, match="is not a regular file"):
            files.replace_file(place, b"new")
    assert stat.S_ISFIFO(pipe.lstat().st_mode)
    assert link.is_symlink()
    assert sorted(tmp_path.iterdir()) == [link, pipe]
    # Here standard output is a regular file.
    for place in (pipe, link, Path("/dev/null"), Path("/dev/stdout")):
        with pytest.raises(SettingsError, match="is not a regular file"):
            files.read_if_there(place)


@pytest.mark.slow
def test_a_pipe_that_takes_the_place_of_a_file_after_the_check_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(pipe := tmp_path / "settings.json")
    monkeypatch.setattr(files, "_refuse_special", lambda _: None)
    with pytest.raises(SettingsError, match="is not a regular file"):
        files.read_if_there(pipe)


def test_a_new_directory_is_used_by_no_other_thread_before_it_belongs_to_its_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, order = tmp_path / "new", list[str]()
    other = threading.Thread(target=lambda: (files.make_directory(path), order.append("used")))

    def give(*_: int) -> None:
        other.start()
        other.join(timeout=0.2)
        order.append("given")

    monkeypatch.setattr(files, "_give_to_owner", give)
    files.make_directory(path)
    other.join(timeout=HANG)
    assert order == ["given", "used"]
