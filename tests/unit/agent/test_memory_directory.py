"""The check that a directory is in memory and that no other user can read it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from goatherd.agent.memory_directory import directory_for, find_memory, kind_of, make_private, remove_directory
from goatherd.errors import NotInMemoryError

SHM = Path("/dev/shm")
in_memory = pytest.mark.skipif(not SHM.is_dir(), reason="there is no /dev/shm here")


def mounts(tmp_path: Path, kind: str) -> Path:
    """Return mount entries that give every path below the test's directory one kind of file system."""
    device = tmp_path.stat().st_dev
    file = tmp_path / "mountinfo"
    file.write_text(
        "1 2 0:999 / / rw - ext4 /dev/root rw\n"
        f"3 1 {os.major(device)}:{os.minor(device)} / /some\\040where rw,nosuid shared:5 - {kind} {kind} rw\n"
    )
    return file


def test_the_kernel_says_what_kind_of_file_system_it_is() -> None:
    text = "36 35 0:5 / /run rw,nosuid master:1 - tmpfs tmpfs rw\n37 35 8:1 / / rw - ext4 /dev/sda1 rw\nnonsense\n"
    assert kind_of(os.makedev(0, 5), text) == "tmpfs"
    assert kind_of(os.makedev(8, 1), text) == "ext4"
    assert kind_of(os.makedev(9, 9), text) is None
    assert kind_of(os.makedev(0, 5), text.replace("0:5", "0:51")) is None, "another device"


@pytest.mark.parametrize("kind", ["tmpfs", "ramfs"])
def test_a_directory_in_memory_is_taken(tmp_path: Path, kind: str) -> None:
    assert find_memory(tmp_path, {}, mounts=mounts(tmp_path, kind)) == tmp_path


@pytest.mark.parametrize("kind", ["ext4", "overlay", "nfs4", "tmpfs2"])
def test_a_directory_on_a_disk_is_refused_whatever_its_name(tmp_path: Path, kind: str) -> None:
    with pytest.raises(NotInMemoryError, match="not in memory") as caught:
        find_memory(tmp_path, {}, mounts=mounts(tmp_path, kind))
    assert "--plain-file" in caught.value.hint


def test_where_the_kernel_lists_nothing_nothing_is_in_memory(tmp_path: Path) -> None:
    with pytest.raises(NotInMemoryError):
        find_memory(tmp_path, {}, mounts=tmp_path / "none")


@pytest.mark.parametrize("name", ["RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR"])
def test_the_runtime_directory_of_the_service_or_the_user_is_preferred(tmp_path: Path, name: str) -> None:
    assert find_memory(None, {name: str(tmp_path)}, mounts=mounts(tmp_path, "tmpfs")) == tmp_path


def test_a_file_is_not_a_directory_in_memory(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(NotInMemoryError, match="is not a writable directory"):
        find_memory(file, {}, mounts=mounts(tmp_path, "tmpfs"))


def test_without_any_place_in_memory_nothing_is_taken_instead(tmp_path: Path) -> None:
    with pytest.raises(NotInMemoryError, match=r"no directory in memory \(tmpfs\) was found"):
        find_memory(None, {"XDG_RUNTIME_DIR": str(tmp_path)}, mounts=mounts(tmp_path, "ext4"))


@in_memory
def test_this_machine_has_a_place_in_memory() -> None:
    assert find_memory(SHM, {}) == SHM


def test_one_data_directory_has_one_place_and_another_has_another(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    assert directory_for(SHM, one) == directory_for(SHM, tmp_path / "x" / ".." / "one")
    assert directory_for(SHM, one) != directory_for(SHM, other)


def test_the_directory_is_made_for_its_owner_alone_and_again_is_fine(tmp_path: Path) -> None:
    made = tmp_path / "made"
    make_private(made)
    make_private(made)
    assert made.stat().st_mode & 0o777 == 0o700
    (made / "file").touch()
    remove_directory(made)
    remove_directory(made)
    assert not made.exists()


def test_a_directory_that_others_can_enter_is_refused(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir(mode=0o755)
    with pytest.raises(NotInMemoryError, match="not a directory that only this user can access"):
        make_private(tmp_path / "open")


def test_a_planted_link_is_rejected_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "planted").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(NotInMemoryError):
        make_private(tmp_path / "planted")
    remove_directory(tmp_path / "planted")
    assert (tmp_path / "elsewhere").is_dir()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a directory of another user")
def test_a_directory_of_another_user_is_rejected_and_not_cleared(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir(mode=0o700)
    os.chown(theirs, 12345, 12345)
    with pytest.raises(NotInMemoryError):
        make_private(theirs)
    remove_directory(theirs)
    assert theirs.is_dir()
