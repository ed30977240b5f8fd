"""The process that serves the page holds no key, and `goatherd web` runs, serves, and stops as it should."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from goatherd.cli.main import run
from goatherd.errors import NodeError, UnavailableError
from goatherd.web import publisher
from goatherd.web.access import PageAddress
from goatherd.web.publisher import publish_views
from goatherd.web.view import View
from tests.deadlines import HANG
from tests.fakes.page_scenes import scenes, view_of
from tests.ports import free_ports
from tests.unit.cli.conftest import secrets_in
from tests.unit.cli.test_no_keys_in_output import forms

ADDRESS = PageAddress(host="127.0.0.1", port=0)
CANARY = "canary-credential-0123456789"
pytestmark = pytest.mark.slow


def fetch(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=HANG) as answer:
        found: bytes = answer.read()
    return found


def read_page(url: str, text: bytes) -> bytes:
    """Poll the page until it has a text, and return it; the first page may be that nothing has been read."""
    end = time.monotonic() + HANG
    while text not in (found := fetch(url)):
        assert time.monotonic() < end, f"the page has no {text!r}"
        time.sleep(0.05)
    return found


@contextmanager
def serving(*arguments: str, cwd: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run `goatherd web` on a free port with a credential in its environment; yield the process and the URL."""
    line = [sys.executable, "-m", "goatherd", "web", "--json", "--port", "0", *arguments]
    environment = {**os.environ, "AWS_SECRET_ACCESS_KEY": CANARY, "VAULT_TOKEN": CANARY}
    process = subprocess.Popen(
        line, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        ready = process.stdout.readline()
        assert ready, process.stderr and process.stderr.read()
        yield process, json.loads(ready)["url"]
    finally:
        process.kill()
        process.communicate()


def child_of(pid: int) -> int:
    """Return the process that serves the page, among others that earlier tests may have left."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return next(int(one) for one in children if b"page-process" in Path(f"/proc/{one}/cmdline").read_bytes())


def memory_of(pid: int) -> bytes:
    """Return the writable memory of a process."""
    found = []
    with Path(f"/proc/{pid}/mem").open("rb") as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            match = re.match(r"([0-9a-f]+)-([0-9a-f]+) rw", line)
            if match is not None:
                start, end = (int(text, 16) for text in match.groups())
                memory.seek(start)
                try:
                    found.append(memory.read(end - start))
                except OSError:
                    continue
    return b"".join(found)


def test_no_byte_that_is_served_and_none_in_the_serving_process_is_a_key(tmp_path: Path) -> None:
    store = f"file://{tmp_path}/keys/root"
    assert run(["init", "--provider", store]) == 0
    assert run(["rotate", "--to", "prepared", "--unsafe-without-nodes", "--provider", store]) == 0
    secrets = secrets_in(tmp_path)
    assert len(secrets) == 2
    with serving("--provider", store, "--interval", "1s", cwd=tmp_path) as (process, url):
        served = read_page(url, b"Rotation from")
        served += b"".join(fetch(url + path) for path in ("/", "/page.css", "/page.js", "/icon.svg", "/?all=1"))
        assert b"more rights than it needs" in served
        child = child_of(process.pid)
        assert CANARY.encode() not in Path(f"/proc/{child}/environ").read_bytes()
        opened = [str(one.readlink()) for one in Path(f"/proc/{child}/fd").iterdir()]
        assert not [one for one in opened if str(tmp_path) in one]
        memory = memory_of(child)
        assert b"more rights than it needs" in memory  # so that what is looked for would be found
        for secret in secrets:
            for form in forms(secret):
                assert form.encode() not in served
                assert form.encode() not in memory
        assert CANARY.encode() not in memory
        process.send_signal(signal.SIGTERM)
        assert process.wait(HANG) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""
        with pytest.raises(urllib.error.URLError):
            fetch(url)
        assert not Path(f"/proc/{child}").exists()


@pytest.mark.deep
def test_the_serving_process_ends_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    store = f"file://{tmp_path}/keys/root"
    assert run(["init", "--provider", store]) == 0
    with serving("--provider", store, cwd=tmp_path) as (process, _):
        child = child_of(process.pid)
        descriptor = os.pidfd_open(child)
        process.kill()
        with os.fdopen(descriptor):
            import select

            readable, _, _ = select.select([descriptor], [], [], HANG)
            assert readable, "the process that serves the page still runs"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_process_group_while_the_page_starts_ends_the_command_quietly(
    number: signal.Signals, tmp_path: Path
) -> None:
    store = f"file://{tmp_path}/keys/root"
    assert run(["init", "--provider", store]) == 0
    line = [sys.executable, "-m", "goatherd", "web", "--port", "0", "--provider", store]
    process = subprocess.Popen(
        line, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0
    )
    try:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while not any(
            b"page-process" in Path(f"/proc/{one}/cmdline").read_bytes() for one in children.read_text().split()
        ):
            assert process.poll() is None
        os.killpg(process.pid, number)  # as Ctrl-C in a terminal does
        assert process.communicate(timeout=HANG) == ("", "")
        assert process.returncode == 0
    finally:
        process.kill()
        process.communicate()


def test_sigterm_to_every_process_as_systemd_sends_it_ends_the_command_quietly(tmp_path: Path) -> None:
    store = f"file://{tmp_path}/keys/root"
    assert run(["init", "--provider", store]) == 0
    with serving("--provider", store, cwd=tmp_path) as (process, url):
        os.kill(child_of(process.pid), signal.SIGTERM)
        assert fetch(url), "the process that serves the page waits for its parent"
        process.send_signal(signal.SIGTERM)
        assert process.wait(HANG) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_a_mistake_is_an_error_before_anything_is_served(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    store = f"file://{tmp_path}/keys/root"
    assert run(["web", "--port", "0", "--provider", store]) == 7
    assert "goatherd init" in capsys.readouterr().err
    assert run(["init", "--provider", store]) == 0
    assert run(["web", "--host", "0.0.0.0", "--provider", store]) == 2
    assert "--behind NETWORK" in capsys.readouterr().err
    assert run(["web", "--interval", "1ms", "--provider", store]) == 2
    assert "at least 1s" in capsys.readouterr().err
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert run(["web", "--port", str(taken.getsockname()[1]), "--provider", store]) == 9
    assert "Another process listens on this port" in capsys.readouterr().err


async def test_the_executable_of_one_file_starts_the_serving_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, entry = tmp_path / "goatherd", Path(__file__).parents[3] / "deploy/onefile/entry.py"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{entry}" "$@"\n')
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setenv("_PYI_APPLICATION_HOME_DIR", str(tmp_path))
    monkeypatch.setenv("VAULT_TOKEN", CANARY)
    async with publisher.start_page_process(ADDRESS, timedelta(hours=1)) as page:
        await page.show(view_of(scenes()["steady"]))
        await asyncio.to_thread(read_page, page.url, b"5 of 5 servers")
        environment = Path(f"/proc/{page.pid}/environ").read_bytes()
        assert f"_PYI_APPLICATION_HOME_DIR={tmp_path}".encode() in environment
        assert CANARY.encode() not in environment


class Source:
    """Returns a view, then an error, then another view; the second and third when they are requested."""

    def __init__(self) -> None:
        self.count = 0
        self.go = asyncio.Semaphore(1)

    async def collect(self) -> View:
        await self.go.acquire()
        self.count += 1
        if self.count == 2:
            raise UnavailableError("the store did not answer", provider="file", secret_id="root", operation="read")
        return view_of(scenes()["steady" if self.count == 1 else "server-away"])


async def test_a_store_that_is_away_leaves_the_last_view_with_the_reason() -> None:
    stop, urls, source = asyncio.Event(), asyncio.Queue[str](), Source()
    interval = timedelta(milliseconds=10)
    publishing = asyncio.create_task(
        publish_views(source, ADDRESS, interval=interval, stop=stop, on_ready=urls.put_nowait)
    )
    url = await urls.get()
    await asyncio.to_thread(read_page, url, b"5 of 5 servers")
    source.go.release()
    lost = await asyncio.to_thread(read_page, url, b"the store did not answer.")
    assert b"5 of 5 servers" in lost
    assert b"The page shows what was read at" in lost
    source.go.release()
    back = await asyncio.to_thread(read_page, url, b"4 of 5 servers")
    assert b"the store did not answer." not in back
    stop.set()
    source.go.release()
    await publishing


async def test_while_a_rotation_runs_the_page_is_renewed_every_second() -> None:
    class Rotating(Source):
        async def collect(self) -> View:
            self.count += 1
            return view_of(scenes()["activated" if self.count < 3 else "steady"])

    source, stop = Rotating(), asyncio.Event()
    publishing = asyncio.create_task(
        publish_views(source, ADDRESS, interval=timedelta(hours=1), stop=stop, on_ready=lambda _: None)
    )
    async with asyncio.timeout(HANG):
        while source.count < 3:
            await asyncio.sleep(0.05)
    stop.set()
    await publishing


class Silent(Source):
    """A store that does not answer from view number `since` on."""

    def __init__(self, since: int) -> None:
        super().__init__()
        self.since, self.is_silent = since, asyncio.Event()

    async def collect(self) -> View:
        if self.count + 1 == self.since:
            self.is_silent.set()
            await asyncio.Event().wait()
        return await super().collect()


@pytest.mark.parametrize("since", [1, 2])
async def test_a_store_that_does_not_answer_does_not_delay_the_end(since: int) -> None:
    stop, urls, source = asyncio.Event(), asyncio.Queue[str](), Silent(since)
    interval = timedelta(milliseconds=10)
    async with asyncio.timeout(HANG):
        publishing = asyncio.create_task(
            publish_views(source, ADDRESS, interval=interval, stop=stop, on_ready=urls.put_nowait)
        )
        await source.is_silent.wait()
        stop.set()
        await publishing
    assert urls.qsize() == since - 1


async def test_a_serving_process_that_dies_is_an_error() -> None:
    stop, urls = asyncio.Event(), asyncio.Queue[str]()
    interval = timedelta(hours=1)
    publishing = asyncio.create_task(
        publish_views(Source(), ADDRESS, interval=interval, stop=stop, on_ready=urls.put_nowait)
    )
    await urls.get()
    os.kill(child_of(os.getpid()), signal.SIGKILL)
    with pytest.raises(NodeError, match="has ended"):
        await publishing


async def test_beside_a_controller_a_page_that_dies_is_served_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "RETRY_PAUSE", timedelta(0))
    (port,) = free_ports(1)
    source = Source()
    source.go = asyncio.Semaphore(1000)
    interval = timedelta(milliseconds=50)
    address = PageAddress(host="127.0.0.1", port=port)
    async with publisher.publish_beside(source, address, interval=interval) as url:
        first = child_of(os.getpid())
        os.kill(first, signal.SIGKILL)
        async with asyncio.timeout(HANG):
            while b"4 of 5 servers" not in await asyncio.to_thread(fetch_or_nothing, url):
                await asyncio.sleep(0.05)
        second = child_of(os.getpid())
        assert second != first
    assert not Path(f"/proc/{second}").exists()
    with socket.create_server(("127.0.0.1", port)), pytest.raises(NodeError, match="cannot listen"):
        async with publisher.publish_beside(source, address, interval=interval):
            pytest.fail("the address is taken")


async def test_beside_a_controller_a_page_that_fails_unexpectedly_is_served_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class FailingOnce(Source):
        async def collect(self) -> View:
            if self.count == 0:
                self.count = 2
                raise ValueError("a fault of the collector")
            return await super().collect()

    monkeypatch.setattr(publisher, "RETRY_PAUSE", timedelta(0))
    (port,) = free_ports(1)
    address = PageAddress(host="127.0.0.1", port=port)
    with caplog.at_level(logging.WARNING, logger="goatherd.web"):
        async with publisher.publish_beside(FailingOnce(), address, interval=timedelta(hours=1)) as url:
            async with asyncio.timeout(HANG):
                while b"4 of 5 servers" not in await asyncio.to_thread(fetch_or_nothing, url):
                    await asyncio.sleep(0.05)
    (record,) = caplog.records
    assert record.getMessage() == "page.lost reason='a fault of the collector'"
    assert record.exc_info is not None, "a fault of Goatherd is logged with its traceback"


async def test_beside_a_controller_a_page_that_cannot_be_started_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(*_: object, **__: object) -> None:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(asyncio, "create_subprocess_exec", refuse)
    await check_that_the_page_does_not_start("cannot start the process that serves the page: Resource temporarily")

    async def fail(*_: object, **__: object) -> None:
        raise ValueError("a fault")

    monkeypatch.setattr(asyncio, "create_subprocess_exec", fail)
    await check_that_the_page_does_not_start("a fault", ValueError)


@pytest.mark.parametrize("printed", ["Welcome!", "5"])
async def test_text_that_the_serving_process_did_not_mean_to_print_is_an_error(
    printed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(f"print({printed!r}, flush=True)\n")
    monkeypatch.syspath_prepend(tmp_path)
    await check_that_the_page_does_not_start(f"printed '{printed}' first")


async def check_that_the_page_does_not_start(message: str, kind: type[Exception] = NodeError) -> None:
    async with asyncio.timeout(HANG):
        with pytest.raises(kind, match=message):
            async with publisher.publish_beside(Source(), ADDRESS, interval=timedelta(hours=1)):
                pytest.fail("the page cannot be served")


def fetch_or_nothing(url: str) -> bytes:
    try:
        return fetch(url)
    except OSError:
        return b""
