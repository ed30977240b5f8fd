"""Blocking calls of a library in their own threads, also if the system cannot start a thread."""

from __future__ import annotations

import asyncio
import threading

import pytest

from goatherd.providers.threads import Threads
from goatherd.remote_keys import _SignerLoop
from tests.deadlines import HANG


def refuse_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no thread start, as in a container whose process limit is reached."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)


async def test_a_call_after_one_that_got_no_thread_is_made() -> None:
    threads = Threads("test", 1)
    with pytest.MonkeyPatch.context() as patch:
        refuse_threads(patch)
        with pytest.raises(RuntimeError):
            await threads.run(lambda: 1)
    async with asyncio.timeout(HANG):
        assert await threads.run(lambda: 2) == 2
    threads.close()


async def test_a_call_that_gets_no_thread_of_its_own_waits_for_one_that_was_started_before() -> None:
    threads = Threads("test", 2)
    assert await threads.run(lambda: 1) == 1
    with pytest.MonkeyPatch.context() as patch:
        refuse_threads(patch)
        async with asyncio.timeout(HANG):
            assert await threads.run(lambda: 2) == 2
    threads.close()


def test_a_signature_after_one_that_got_no_thread_waits_for_none(monkeypatch: pytest.MonkeyPatch) -> None:
    async def sign() -> bytes:
        return b"signature"

    loop = _SignerLoop()
    refuse_threads(monkeypatch)
    with pytest.raises(RuntimeError):
        loop.run(sign())
    assert loop._loop is None, "the next call starts a thread"
