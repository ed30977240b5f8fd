"""Servers of 0.1.0 and of this version form one herd, which this version's commands rotate and restore under load.

The archive holds the modules of 0.1.0 with which `goatherd serve` runs around a file store: the code that wrote
`written_by_0_1_0.tar.gz`. It is never edited. Its servers run from it, as processes of their own, with the libraries
that are installed today; their first store and data directory are those of the other archive.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest

from goatherd.identity.document import decode_document
from goatherd.operations.workload import Workload
from goatherd.providers.file import FileSecretProvider
from tests.deadlines import ADOPTION, ANSWER, HANG
from tests.ports import free_ports
from tests.upgrade.test_upgrade import goatherd, home

__all__ = ["home"]

ARCHIVE = Path(__file__).parent / "server_of_0_1_0.tar.xz"

pytestmark = [pytest.mark.slow, pytest.mark.deep]


class Servers:
    """The servers of a herd, each of one version, as processes."""

    def __init__(self, home: Path, urls: list[str]) -> None:
        self.home, self.urls = home, urls
        self.running: dict[str, subprocess.Popen[str]] = {}
        with tarfile.open(ARCHIVE) as archive:
            archive.extractall(home / "0.1.0", filter="data")

    def start(self, url: str, *, is_old: bool) -> None:
        number = self.urls.index(url)
        peers = [word for other in self.urls if other != url for word in ("--peer", other)]
        data = self.home / ("data" if number == 0 else f"data-{number}")
        line = [sys.executable, "-m", "goatherd", "serve", "--create", "--data", str(data), *peers]
        line += ["--port", url.rpartition(":")[2], "--provider", f"file://{self.home}/keys/root"]
        environ = {name: value for name, value in os.environ.items() if not name.startswith("GOATHERD_")}
        if is_old:
            environ["PYTHONPATH"] = str(self.home / "0.1.0")
        with (self.home / f"log-{number}").open("a") as log:
            process = subprocess.Popen(
                line, cwd=self.home / "keys", env=environ, stdout=subprocess.PIPE, stderr=log, text=True
            )
        self.running[url] = process

    def wait_for(self, *urls: str) -> None:
        for url in urls:
            stdout = self.running[url].stdout
            assert stdout is not None
            said = stdout.readline()
            assert said.startswith(f"ready at {url}"), (said, (self.home / f"log-{self.urls.index(url)}").read_text())

    def stop(self, url: str) -> None:
        process = self.running.pop(url)
        process.terminate()
        process.communicate(timeout=HANG)
        assert process.returncode == 0

    def report(self, url: str) -> dict[str, Any]:
        found: dict[str, Any] = httpx2.get(f"{url}/goatherd/v1/identity", timeout=HANG).json()
        return found


@pytest.fixture
def servers(home: Path) -> Iterator[Servers]:
    started = Servers(home, [f"http://127.0.0.1:{port}" for port in free_ports(3)])
    yield started
    for process in started.running.values():
        process.kill()
        process.communicate()


async def test_servers_of_both_versions_rotate_and_restore_under_load_and_one_is_upgraded(
    home: Path, servers: Servers
) -> None:
    other, new = servers.urls[1:]
    for url in servers.urls:
        servers.start(url, is_old=url != new)
    await asyncio.to_thread(servers.wait_for, *servers.urls)
    assert ["version" in servers.report(url) for url in servers.urls] == [False, False, True], "two are of 0.1.0"

    store = ["--provider", f"file://{home}/keys/root"]
    patience = ["--timeout", f"{ANSWER.total_seconds():.0f}s", "--adoption", f"{ADOPTION.total_seconds():.0f}s"]
    nodes = [*patience, *(word for url in servers.urls for word in ("--node", url))]
    async with FileSecretProvider(str(home / "keys")) as provider:
        first = decode_document((await provider.read("root")).value.reveal()).current
    async with contextlib.AsyncExitStack() as stack:
        load = await stack.enter_async_context(Workload(servers.urls, clients=3, pause=timedelta(milliseconds=500)))
        began = load.now()
        signers = []
        for command in ("rotate", "restore"):
            await asyncio.to_thread(goatherd, home, command, *store, *nodes)
            shown = json.loads(await asyncio.to_thread(goatherd, home, "show", "--json", *store))
            assert shown["phase"] == "steady"
            signers.append(shown["current"]["id"])
            assert {servers.report(url)["signer"] for url in servers.urls} == {signers[-1]}
        window = load.window(began)
        await load.stop()
        audit = await load.audit([first.session], timeout=ADOPTION)
    assert signers[0] != first.id
    assert signers[1] == first.id
    assert window.refused == 0, window.reasons
    assert audit.accepted > 10
    assert audit.lost == {}
    assert audit.unverifiable == ()

    servers.stop(other)
    servers.start(other, is_old=False)
    await asyncio.to_thread(servers.wait_for, other)
    await asyncio.to_thread(goatherd, home, "rotate", *store, *nodes)
    reports = [servers.report(url) for url in servers.urls]
    assert ["version" in each for each in reports] == [False, True, True]
    assert {each["signer"] for each in reports} - {first.id, signers[0]} == {reports[0]["signer"]}
