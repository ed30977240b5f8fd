"""A hundred open pages: the cost of a view for the process that serves them, its memory, and the requests to servers.

The views for processor time and memory show 200 servers. Each differs from the one before, so that every page is sent
the whole new one; then every page polls once more, and is sent the status 304. Requests are counted at real servers.
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from goatherd.cluster.discovery import NodeDirectory
from goatherd.node.server import Server
from goatherd.operations.identity_store import Store
from goatherd.plugins import open_provider
from goatherd.rotation.policy import Policy
from goatherd.serving.caller_limiter import Receive, Scope, Send
from goatherd.serving.listener import HTTPListener
from goatherd.settings.store import CloudSecretSettings
from goatherd.web.access import PageAddress
from goatherd.web.collector import Collector
from goatherd.web.publisher import start_page_process
from goatherd.web.render import view_data
from tests.deadlines import ANSWER
from tests.fakes.page_scenes import scenes, view_of

from . import bare
from .data import Data
from .rows import Row
from .scale import Scale

PAGES: Final = 100
SERVERS: Final = 3
GRACE: Final = timedelta(seconds=2)
INTERVAL: Final = timedelta(seconds=10)
PAUSE: Final = 0.05
"""Seconds between two polls of one page for a new view, so that they hardly add to the time that is measured."""
_TICKS: Final = os.sysconf("SC_CLK_TCK")


async def run(scale: Scale, data: Data) -> list[Row]:
    """Measure a view for many open pages, the memory of the process that serves them, and the requests to servers."""
    crowd = view_of(scenes()["crowd"])
    moved = replace(crowd, servers=tuple(replace(row, clock_ahead_ms=5000) for row in crowd.servers))
    line = json.dumps({"view": view_data(moved), "problem": None}).encode()
    async with start_page_process(PageAddress(host="127.0.0.1", port=0), INTERVAL) as page:
        await page.show(crowd)
        readers = [await _open_page(page.url) for _ in range(PAGES)]
        tag, body = await _read_newer(readers, "")
        samples, limits = [], []
        for number in range(2 * scale.times(5)):
            before = _cpu_seconds(page.pid)
            await page.show(crowd if number % 2 else moved)
            tag, body = await _read_newer(readers, tag)
            samples.append((_cpu_seconds(page.pid) - before) * 1000)
            limit = bare.cpu_seconds(lambda: bare.parse([line])) + bare.cpu_seconds_to_send(body, PAGES)
            limits.append(limit * 1000)
            await asyncio.sleep(1)  # as between two polls; faster ones would reach the limit on requests
        memory = int(_field(page.pid, "VmHWM")) / 1024
        for each in readers:
            each.writer.close()
    return [
        Row(
            name="page/view",
            unit="ms CPU",
            size=PAGES,
            samples=samples,
            bare=limits,
            limit="parsing the view, writing the page to each",
        ),
        Row(name="page/memory", unit="MB", size=PAGES, samples=[memory]),
        await _count_requests(data, scale.times(1)),
    ]


class _Counted:
    """The application of a server, with the number of its requests."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.requests = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.requests += 1
        await self._server.app(scope, receive, send)


async def _count_requests(data: Data, rounds: int) -> Row:
    """Return how many requests each server gets for a view, with many open pages and with none."""
    async with AsyncExitStack() as stack:
        top = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        uri = await data.create_store(top)
        provider, secret_id = open_provider(uri)
        await stack.enter_async_context(provider)
        counted, urls = [], []
        for number in range(SERVERS):
            settings = CloudSecretSettings(open_provider(uri)[0], secret_id)
            server = await stack.enter_async_context(Server(top / f"node-{number}", settings))
            counted.append(_Counted(server))
            listener = HTTPListener(counted[-1], "127.0.0.1", 0, limiter=server.limiter)
            await listener.start()
            stack.push_async_callback(listener.stop, GRACE)
            urls.append(listener.url)
        nodes = await stack.enter_async_context(NodeDirectory(urls, timeout=ANSWER))
        store = Store(provider=provider, secret_id=secret_id, org="localhost", name=uri)
        policy = Policy()
        collector = Collector(
            store=store, nodes=nodes, policy=policy, schedule=None, grace=policy.grace, interval=INTERVAL
        )
        page = await stack.enter_async_context(start_page_process(PageAddress(host="127.0.0.1", port=0), INTERVAL))
        readers: list[_Reader] = []

        async def count_for_a_view() -> float:
            before = sum(one.requests for one in counted)
            await page.show(await collector.collect())
            for each in readers:
                await each.poll("")
            return (sum(one.requests for one in counted) - before) / SERVERS

        await count_for_a_view()  # the first one asks what later ones remember
        alone = [await count_for_a_view() for _ in range(rounds)]
        readers += [await _open_page(page.url) for _ in range(PAGES)]
        watched = [await count_for_a_view() for _ in range(rounds)]
        for each in readers:
            each.writer.close()
    return Row(
        name="page/requests", unit="", size=PAGES, samples=watched, bare=alone, limit="the same with no page open"
    )


@dataclass(frozen=True, slots=True)
class _Reader:
    """A connection by which an open page polls."""

    host: str
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def poll(self, tag: str) -> tuple[str, bytes]:
        """Ask for a page other than the one with this tag; return its tag and body, empty if there is none."""
        head = f"GET / HTTP/1.1\r\nhost: {self.host}\r\nif-none-match: {tag}\r\n\r\n"
        self.writer.write(head.encode())
        answer = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in answer[1:] if line)
        body = await self.reader.readexactly(int(headers.get("content-length", "0")))
        return headers["etag"], body


async def _open_page(url: str) -> _Reader:
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port, limit=16 * 1024 * 1024)
    return _Reader(address.netloc, reader, writer)


async def _read_newer(readers: Sequence[_Reader], tag: str) -> tuple[str, bytes]:
    """Poll on every page until the new view is there, and once more; return the tag and body of the new page."""
    newest, body = await readers[0].poll(tag)
    while not body:
        await asyncio.sleep(PAUSE)
        newest, body = await readers[0].poll(tag)
    for each in readers[1:]:
        await each.poll(tag)
    for each in readers:
        await each.poll(newest)
    return newest, body


def _cpu_seconds(pid: int) -> float:
    """Return the processor time of a process so far, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def _field(pid: int, name: str) -> str:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.split()[1] for line in lines if line.startswith(f"{name}:"))
