"""settings.json in a memory directory, and the link at the path where GoatDB reads it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from goatherd.agent.settings_file import FileState, SettingsFile
from goatherd.errors import SettingsError


@pytest.fixture
def file(tmp_path: Path) -> SettingsFile:
    memory = tmp_path / "memory"
    memory.mkdir(mode=0o700)
    return SettingsFile(link=tmp_path / "data" / "localhost" / "settings.json", target=memory / "localhost.json")


@pytest.fixture
def plain(tmp_path: Path) -> SettingsFile:
    return SettingsFile(link=tmp_path / "data" / "localhost" / "settings.json", target=None)


def in_place(path: Path, text: bytes) -> None:
    """Write the file in place, as GoatDB does."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    os.write(descriptor, text)
    os.ftruncate(descriptor, len(text))
    os.close(descriptor)


def test_the_bytes_are_in_memory_readable_by_their_owner_only_and_a_link_is_where_goatdb_looks(
    file: SettingsFile,
) -> None:
    file.write(b"one")
    assert file.link.is_symlink()
    assert file.link.read_bytes() == b"one"
    assert file.target is not None
    assert file.target.stat().st_mode & 0o777 == 0o600
    assert file.read_state() is FileState.OURS
    assert [path.name for path in file.link.parent.iterdir()] == ["settings.json"]
    assert [path.name for path in file.target.parent.iterdir()] == ["localhost.json"]


def test_a_reader_sees_the_old_bytes_or_the_new_ones(file: SettingsFile) -> None:
    file.write(b"old" * 1000)
    with file.link.open("rb") as reader:
        file.write(b"new")
        assert reader.read() == b"old" * 1000
    assert file.read() == b"new"


def test_what_goatdb_writes_in_place_stays_in_memory_and_is_noticed(file: SettingsFile) -> None:
    before = file.write(b"one")
    in_place(file.link, b"by goatdb")
    assert file.read_state() is FileState.OURS
    assert file.stamp() != before
    assert file.target is not None
    assert file.target.read_bytes() == b"by goatdb"


def test_a_file_that_was_renamed_into_the_links_place_is_noticed_and_brought_back_into_memory(
    file: SettingsFile,
) -> None:
    file.write(b"one")
    new = file.link.with_name("new")
    new.write_bytes(b"by rename")
    new.replace(file.link)
    assert file.read_state() is FileState.REPLACED
    file.repair_link()
    assert file.read_state() is FileState.OURS
    assert file.read() == b"by rename"
    assert file.link.is_symlink()


def test_a_link_to_somewhere_else_is_not_ours(file: SettingsFile, tmp_path: Path) -> None:
    file.write(b"one")
    file.link.unlink()
    file.link.symlink_to(tmp_path / "elsewhere")
    assert file.read_state() is FileState.REPLACED


@pytest.mark.parametrize("what", ["link", "bytes"])
def test_that_it_is_gone_is_noticed(file: SettingsFile, what: str) -> None:
    file.write(b"one")
    assert file.target is not None
    (file.link if what == "link" else file.target).unlink()
    assert file.read_state() is FileState.MISSING
    file.write(b"two")
    assert file.read_state() is FileState.OURS


def test_removing_leaves_neither_link_nor_bytes_and_again_is_no_error(file: SettingsFile) -> None:
    file.write(b"one")
    file.remove()
    file.remove()
    assert not os.path.lexists(file.link)
    assert file.target is not None
    assert not file.target.exists()
    assert file.read() is None
    assert file.stamp() is None


def left_by_a_killed_writer(path: Path) -> Path:
    left = path.with_name(f".{path.name}.{'a' * 16}.new")
    left.write_bytes(b"a private key")
    return left


def test_removing_leaves_nothing_of_a_writer_that_was_killed_a_moment_ago(
    plain: SettingsFile, file: SettingsFile
) -> None:
    for each in (plain, file):
        each.write(b"one")
        left_by_a_killed_writer(each.bytes_at)
        each.remove()
        assert list(each.bytes_at.parent.iterdir()) == []


def test_moving_to_other_memory_leaves_nothing_in_the_earlier_one(file: SettingsFile, tmp_path: Path) -> None:
    file.write(b"one")
    left_by_a_killed_writer(file.bytes_at)
    (tmp_path / "other").mkdir()
    moved = SettingsFile(link=file.link, target=tmp_path / "other" / "localhost.json")
    assert moved.move_in(lambda _: True) == file.bytes_at.parent
    assert moved.read() == b"one"
    assert list(file.bytes_at.parent.iterdir()) == []


def test_a_plain_file_is_one_and_takes_the_place_of_a_link(plain: SettingsFile, file: SettingsFile) -> None:
    file.write(b"one")
    plain.write(b"two")
    assert not plain.link.is_symlink()
    assert plain.link.stat().st_mode & 0o777 == 0o600
    assert plain.read_state() is FileState.OURS
    assert file.target is not None
    assert file.target.read_bytes() == b"one"


def test_what_cannot_be_written_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file where a directory should be")
    with pytest.raises(SettingsError, match=r"settings\.json"):
        SettingsFile(link=tmp_path / "data" / "localhost" / "settings.json", target=None).write(b"one")


def test_a_pipe_in_place_of_the_file_is_not_waited_for(file: SettingsFile, plain: SettingsFile) -> None:
    file.write(b"one")
    file.link.unlink()
    os.mkfifo(file.link)
    for each in (file, plain):
        with pytest.raises(SettingsError, match="is not a regular file"):
            each.read()
