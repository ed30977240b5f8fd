"""The file store killed at every system call: a reader then finds the old or the new state, and the next writer cleans
up.

Each case runs the real provider in a forked process whose system layer ends it, without any clean-up, right before or
right after its k-th call. A crash of the machine also loses caches; the order of fsync calls, which is tested here
too, covers that.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from goatherd.errors import SecretNotFoundError
from goatherd.files import System
from goatherd.providers.file.provider import FileSecretProvider
from goatherd.providers.values import STABLE, Label, VersionId

DIED, FINISHED = 66, 0
Operation = Callable[[FileSecretProvider], Awaitable[object]]


class MortalSystem(System):
    """Ends the process at the k-th system call."""

    def __init__(self, number: int, *, before: bool) -> None:
        self.left = number
        self.before = before

    def run_call(self, operation, *args, **kwargs):
        self.left -= 1
        if self.left == 0 and self.before:
            os._exit(DIED)
        try:
            return operation(*args, **kwargs)
        finally:
            if self.left == 0:
                os._exit(DIED)


def at(directory: Path, system: System | None = None) -> FileSecretProvider:
    return FileSecretProvider(str(directory / "keys"), system=system)


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def die_at(directory: Path, operation: Operation, number: int, *, before: bool) -> bool:
    """Run `operation` in a process of its own that is killed at call `number`; return whether it was killed."""
    # Threads cannot survive a fork, and none is running here: each asyncio.run has ended its executor.
    child = os.fork()
    if child == 0:
        code = 99
        try:
            asyncio.run(operation(at(directory, MortalSystem(number, before=before))))
            code = FINISHED
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (DIED, FINISHED), f"the writer failed instead of dying: exit {code}"
    return code == DIED


async def two_versions(provider: FileSecretProvider) -> None:
    await provider.create("root", b"old")
    await provider.label("root", STABLE, "1", expected=None)
    await provider.write("root", b"middle", expected="1")


async def nothing(provider: FileSecretProvider) -> None:
    """Start from a store without the secret."""


async def seen(provider: FileSecretProvider) -> tuple[object, ...]:
    """Return what readers see, as a comparable value."""
    found: list[object] = []
    for place in (Label("current"), STABLE, VersionId("1"), VersionId("2")):
        try:
            found.append((await provider.read("root", place)).value.reveal())
        except Exception as error:  # noqa: BLE001 - whatever it is, it is what is seen
            found.append(type(error).__name__)
    return tuple(found)


OPERATIONS: dict[str, tuple[Operation, Operation]] = {
    "create": (nothing, lambda provider: provider.create("root", b"new")),
    "write": (two_versions, lambda provider: provider.write("root", b"new", expected="2")),
    "label": (two_versions, lambda provider: provider.label("root", STABLE, "2", expected="1")),
    "destroy": (
        lambda provider: _unlabelled_first(provider),
        lambda provider: provider.destroy("root", "1"),
    ),
    "delete": (two_versions, lambda provider: provider.delete("root")),
}


async def _unlabelled_first(provider: FileSecretProvider) -> None:
    await two_versions(provider)
    await provider.label("root", STABLE, "2", expected="1")


@pytest.mark.slow
@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_writer_that_dies_at_any_call_leaves_old_or_new_and_the_next_one_tidies(
    tmp_path: Path, name: str, before: bool
):
    deaths = _die_everywhere(tmp_path, name, before=before, step=1)
    assert deaths > 15, "there must be that many calls to die at"


@pytest.mark.parametrize("name", ["create", "write"])
def test_a_writer_that_dies_at_some_calls_leaves_old_or_new_and_the_next_one_tidies(tmp_path: Path, name: str):
    assert _die_everywhere(tmp_path, name, before=True, step=3) > 5


def _die_everywhere(tmp_path: Path, name: str, *, before: bool, step: int) -> int:
    prepare, operation = OPERATIONS[name]
    old, new = tmp_path / "old", tmp_path / "new"
    for directory in (old, new):
        asyncio.run(prepare(at(directory)))
    asyncio.run(operation(at(new)))
    allowed = [asyncio.run(seen(at(old))), asyncio.run(seen(at(new)))]
    assert allowed[0] != allowed[1]

    committed = False
    for number in range(1, 400, step):
        directory = tmp_path / str(number)
        asyncio.run(prepare(at(directory)))
        died = die_at(directory, operation, number, before=before)
        state = asyncio.run(seen(at(directory)))
        assert state in allowed, f"dead at call {number}: {state}"
        assert state == allowed[1] or not committed, f"dead at call {number}: old after the commit"
        committed = state == allowed[1]
        asyncio.run(_go_on(directory))
        if not died:
            assert committed
            return number // step
    raise AssertionError("the operation has more calls than this test allows for")


async def _go_on(directory: Path) -> None:
    """Check that the next writer succeeds, and leaves no file of the killed one."""
    provider = at(directory)
    try:
        holder = (await provider.read("root")).version.id
    except SecretNotFoundError:
        await provider.create("root", b"after")
    else:
        await provider.write("root", b"after", expected=holder)
    assert (await provider.read("root")).value.reveal() == b"after"
    secret = directory / "keys" / "root"
    assert names(secret) == {"lock", "secret.json"}
    assert names(directory / "keys") == {"root"}


class RecordingSystem(System):
    """Records the calls that decide what survives a power failure."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.opened: dict[int, str] = {}

    def run_call(self, operation, *args, **kwargs):
        result = operation(*args, **kwargs)
        if operation is os.open:
            self.opened[result] = args[0]
        elif operation is os.fsync:
            self.calls.append(f"sync {self.opened[args[0]]}")
        elif operation is os.rename:
            self.calls.append(f"rename {args[0]} {args[1]}")
        elif operation in (os.unlink, os.rmdir):
            self.calls.append(f"{operation.__name__} {args[0]}")
        return result

    def sync_file(self, descriptor: int) -> None:
        self.run_call(os.fsync, descriptor)


READ = ["sync root"]
"""What was read counts once it is on the medium."""
COMMIT = ["sync secret.new", "rename secret.new secret.json", "sync root"]


@pytest.mark.parametrize(
    ("name", "calls"),
    [
        ("write", [*READ, *COMMIT]),
        ("label", [*READ, *COMMIT]),
        ("destroy", [*READ, *COMMIT, *READ]),
        ("delete", [*READ, "unlink secret.json", "sync root", "unlink lock", "rmdir root", "sync {base}"]),
    ],
)
async def test_what_is_referred_to_is_on_the_medium_first_and_goes_last(tmp_path: Path, name: str, calls: list[str]):
    prepare, operation = OPERATIONS[name]
    await prepare(at(tmp_path))
    system = RecordingSystem()
    await operation(at(tmp_path, system))
    assert system.calls == [call.replace("{base}", str(tmp_path / "keys")) for call in calls]
