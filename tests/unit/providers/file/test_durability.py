"""The file store after a power failure, and with a disk that gets full during a command."""

from __future__ import annotations

import contextlib
import errno
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from goatherd.clock import SystemClock
from goatherd.errors import UnavailableError
from goatherd.files import System
from goatherd.identity.document import Phase, decode_document, encode_document
from goatherd.identity.session import OwnedSession
from goatherd.identity.transitions import create_document
from goatherd.providers.base import RetryPolicy
from goatherd.providers.file.provider import FileSecretProvider
from goatherd.providers.values import CURRENT, STABLE
from goatherd.revocation.revoker import Revoker
from goatherd.rotation.machine import Outcome
from goatherd.rotation.policy import Policy
from goatherd.rotation.replacement import Replacer
from goatherd.rotation.rotator import Rotator
from tests.fakes.herd import FakeClock

ONCE = RetryPolicy(attempts=1)
PATIENT = Policy(settle=timedelta(0), store_patience=timedelta(seconds=5))


class Medium(System):
    """Simulates a power failure: it records the renames that have not reached the medium yet.

    Args:
        dies_after_rename: Whether the process that uses it does nothing after its first rename.
        volatile: The renames that are not on the medium yet, shared with another process.
    """

    def __init__(
        self, *, dies_after_rename: bool = False, volatile: dict[tuple[int, int], tuple[Path, bytes]] | None = None
    ) -> None:
        self.volatile: dict[tuple[int, int], tuple[Path, bytes]] = {} if volatile is None else volatile
        self.dies_after_rename, self.is_dead = dies_after_rename, False
        self.syncs = 0

    def run_call(self, operation: Any, *args: Any, **options: Any) -> Any:
        if self.is_dead and operation is not os.close:
            raise OSError(errno.EIO, "the process is dead")
        if operation is os.rename:
            directory = options["dst_dir_fd"]
            place = Path(f"/proc/self/fd/{directory}").resolve() / args[1]
            status = os.fstat(directory)
            if place.exists():
                self.volatile.setdefault((status.st_dev, status.st_ino), (place, place.read_bytes()))
        result = operation(*args, **options)
        if operation is os.rename and self.dies_after_rename:
            self.is_dead = True
        if operation is os.fsync:
            self.syncs += 1
            status = os.fstat(args[0])
            self.volatile.pop((status.st_dev, status.st_ino), None)
        return result

    def lose_power(self) -> None:
        """Restore the files that were replaced by renames which have not reached the medium."""
        for place, before in self.volatile.values():
            place.write_bytes(before)
        self.volatile.clear()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
async def test_what_a_reader_has_seen_is_there_after_a_power_failure(tmp_path: Path):
    medium = Medium()
    keys = tmp_path / "keys"
    reader = FileSecretProvider(keys, retry=ONCE, system=medium)
    await reader.create("root", b"first")
    dying = Medium(dies_after_rename=True, volatile=medium.volatile)
    with pytest.raises(UnavailableError):
        await FileSecretProvider(keys, retry=ONCE, system=dying).write("root", b"second", expected="1")
    assert medium.volatile, "the writer died before it had synced the directory"
    assert (await reader.read("root")).value.reveal() == b"second"
    medium.lose_power()
    assert (await reader.read("root")).value.reveal() == b"second"


@pytest.mark.parametrize("code", [errno.EROFS, errno.EINVAL], ids=errno.errorcode.get)
async def test_where_a_directory_cannot_be_synced_it_can_be_read(tmp_path: Path, code: int):
    class NoSync(System):
        def run_call(self, operation: Any, *args: Any, **options: Any) -> Any:
            if operation is os.fsync:
                raise OSError(code, os.strerror(code))
            return operation(*args, **options)

    await FileSecretProvider(tmp_path / "keys").create("root", b"first")
    reader = FileSecretProvider(tmp_path / "keys", system=NoSync())
    assert (await reader.read("root")).value.reveal() == b"first"


class Disk(System):
    """A disk whose size a test changes: writes take space, and removing a file frees it."""

    def __init__(self, room: int) -> None:
        self.free_bytes = room

    def run_call(self, operation: Any, *args: Any, **options: Any) -> Any:
        if operation is os.write:
            if len(args[1]) > self.free_bytes:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self.free_bytes -= len(args[1])
        elif operation in (os.unlink, os.rename):
            name = args[0] if operation is os.unlink else args[1]
            folder = options["dir_fd" if operation is os.unlink else "dst_dir_fd"]
            with contextlib.suppress(FileNotFoundError):
                self.free_bytes += os.stat(name, dir_fd=folder).st_size
        return operation(*args, **options)


class Rotating:
    """A store on such a disk, with rotations without servers."""

    def __init__(self, keys: Path, disk: Disk) -> None:
        self.keys, self.disk, self.clock = keys, disk, FakeClock(SystemClock().now_ms())
        self.provider = FileSecretProvider(keys, retry=ONCE, system=disk)

    async def create(self) -> None:
        lifetime = timedelta(days=400)
        root = OwnedSession.generate(session_id="root-a", owner="root", now_ms=self.clock.now_ms(), lifetime=lifetime)
        await self.provider.create("root", encode_document(create_document(root, self.clock.now_ms())))
        await self.provider.label("root", STABLE, "1", expected=None)

    def rotator(self) -> Rotator:
        return Rotator(self.provider, "root", [], policy=PATIENT, clock=self.clock, unsafe_without_nodes=True)

    async def run(self, command: str) -> None:
        match command:
            case "rotate":
                await self.rotator().rotate()
            case "replace":
                self.clock.turn(timedelta(days=401))
                await Replacer(self.provider, "root", [], policy=PATIENT, clock=self.clock).replace()
            case "revoke":
                await Revoker(self.provider, "root", [], policy=PATIENT, clock=self.clock).revoke("root-a", reason="x")

    async def signs(self) -> str:
        return decode_document((await self.provider.read("root", CURRENT)).value.reveal()).current.id


@pytest.mark.parametrize("command", ["rotate", "replace", "revoke"])
async def test_on_a_full_disk_a_command_fails_before_anything_changes(tmp_path: Path, command: str):
    disk = Disk(1_000_000)
    it = Rotating(tmp_path / "keys", disk)
    await it.create()
    before = Path(tmp_path, "keys", "root", "secret.json").read_bytes()
    disk.free_bytes = 3000
    with pytest.raises(UnavailableError, match="No space left on device"):
        await it.run(command)
    assert Path(tmp_path, "keys", "root", "secret.json").read_bytes() == before
    disk.free_bytes = 1_000_000
    await it.run(command)
    assert await it.signs() != "root-a"


@pytest.mark.slow
@pytest.mark.parametrize("phase", [Phase.PREPARED, Phase.PUBLISHED, Phase.ACTIVATED, Phase.VERIFIED])
async def test_a_rotation_that_the_disk_stops_in_any_phase_says_so_and_can_be_resumed(tmp_path: Path, phase: Phase):
    disk = Disk(1_000_000)
    it = Rotating(tmp_path / "keys", disk)
    await it.create()
    report = await it.rotator().rotate(to_phase=phase)
    disk.free_bytes = 0
    with pytest.raises(UnavailableError, match="No space left on device") as caught:
        await it.rotator().resume()
    assert f"in phase {phase.value}" in str(caught.value.hint)
    assert "finish it with `goatherd rotate --resume`" in str(caught.value.hint)
    assert "Free some space under" in str(caught.value.hint)
    disk.free_bytes = 1_000_000
    assert (await it.rotator().resume()).outcome is Outcome.ROTATED
    assert await it.signs() == report.to_id
