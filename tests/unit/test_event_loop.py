"""Coroutines that never wait run without an event loop, and the file store is the same store without one."""

from __future__ import annotations

import asyncio
import fcntl
import threading
from datetime import timedelta
from pathlib import Path

import pytest

from goatherd.errors import ConflictError, SecretNotFoundError, UnavailableError
from goatherd.event_loop import EventLoopNeededError, find_running_loop, run_reader
from goatherd.plugins import open_provider
from goatherd.providers.base import RetryPolicy, SecretBytes, SecretProvider
from goatherd.providers.file.provider import FileSecretProvider
from goatherd.providers.values import SecretValue
from tests.deadlines import HANG


def test_a_coroutine_that_never_waits_runs_without_an_event_loop() -> None:
    async def read() -> object:
        return find_running_loop()

    assert run_reader(read) is None


def test_a_coroutine_that_needs_an_event_loop_gets_one() -> None:
    async def read() -> object:
        if find_running_loop() is None:
            raise EventLoopNeededError
        await asyncio.sleep(0)
        return find_running_loop()

    assert isinstance(run_reader(read), asyncio.AbstractEventLoop)


def test_a_coroutine_that_waits_without_an_event_loop_is_an_error() -> None:
    async def read() -> None:
        await asyncio.sleep(0)

    with pytest.raises(RuntimeError, match="has waited"):
        run_reader(read)


def test_an_error_leaves_the_coroutine_as_it_is() -> None:
    async def read() -> None:
        raise SecretNotFoundError("none", provider="file", secret_id="root", operation="read")

    with pytest.raises(SecretNotFoundError):
        run_reader(read)


def test_only_a_provider_that_says_so_is_opened_without_an_event_loop() -> None:
    async def loop_of(provider: SecretProvider) -> object:
        async with provider:
            return find_running_loop()

    assert run_reader(lambda: loop_of(FileSecretProvider("/srv/keys"))) is None
    assert run_reader(lambda: loop_of(open_provider("memory:///here/root")[0])) is not None


def test_the_file_store_does_without_an_event_loop_what_it_does_with_one(tmp_path: Path) -> None:
    async def use(base: Path) -> list[object]:
        async with FileSecretProvider(base.as_posix()) as provider:
            first = await provider.create("root", SecretBytes(b"one"))
            second = await provider.write("root", SecretBytes(b"two"), expected=first.id)
            await provider.label("root", "stable", first.id, expected=None)
            with pytest.raises(ConflictError):
                await provider.write("root", SecretBytes(b"three"), expected=first.id)
            read: SecretValue = await provider.read("root")
            assert read.value.reveal() == b"two"
            assert read.version.id == second.id
            listed = [(one.id, sorted(one.labels)) for one in await provider.versions("root")]
            await provider.delete("root")
            with pytest.raises(SecretNotFoundError):
                await provider.read("root")
            return [listed, sorted(path.name for path in base.iterdir())]

    assert run_reader(lambda: use(tmp_path / "without")) == asyncio.run(use(tmp_path / "with"))


def test_without_an_event_loop_a_writer_waits_for_the_lock_of_another(tmp_path: Path) -> None:
    async def write() -> bytes:
        async with FileSecretProvider(tmp_path.as_posix()) as provider:
            first = await provider.create("root", SecretBytes(b"one"))
            with (tmp_path / "root" / "lock").open("rb+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                release = threading.Timer(0.05, fcntl.flock, (lock, fcntl.LOCK_UN))
                release.start()
                await provider.write("root", SecretBytes(b"two"), expected=first.id)
                release.join(HANG)
            return (await provider.read("root")).value.reveal()

    assert run_reader(write) == b"two"


def test_without_an_event_loop_a_failed_call_is_retried_until_its_deadline(tmp_path: Path) -> None:
    class Failing(FileSecretProvider):
        attempts = 0

        async def _versions(self, call):  # type: ignore[no-untyped-def]
            type(self).attempts += 1
            raise call.error(UnavailableError, "the disk does not answer")

    async def read(retry: RetryPolicy, timeout: timedelta) -> None:
        async with Failing(tmp_path.as_posix(), retry=retry, timeout=timeout) as provider:
            await provider.versions("root")

    moment = timedelta(milliseconds=1)
    with pytest.raises(UnavailableError, match="does not answer"):
        run_reader(lambda: read(RetryPolicy(attempts=3, base=moment), timedelta(seconds=HANG)))
    assert Failing.attempts == 3
    Failing.attempts = 0
    with pytest.raises(UnavailableError, match="does not answer"):
        run_reader(lambda: read(RetryPolicy(attempts=3, base=timedelta(hours=1)), moment))
    assert Failing.attempts == 1
