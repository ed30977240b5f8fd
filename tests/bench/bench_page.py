"""A hundred open pages: the cost of a view for the process that serves them, its memory, and the requests to servers.

The views for processor time and memory show 200 servers. Each differs from the one before in the row of each server, so
that every page is sent the largest section. Requests are counted at real servers.
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
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
_TICKS: Final = os.sysconf("SC_CLK_TCK")


async def run(scale: Scale, data: Data) -> list[Row]:
    """Measure a view for many open pages, the memory of the process that serves them, and the requests to servers."""
    crowd = view_of(scenes()["crowd"])
    moved = replace(crowd, servers=tuple(replace(row, clock_ahead_ms=5000) for row in crowd.servers))
    line = json.dumps({"view": view_data(moved), "problem": None}).encode()
    async with start_page_process(PageAddress(host="127.0.0.1", port=0), INTERVAL) as page:
        await page.show(crowd)
        readers = [await _open_page(page.url) for _ in range(PAGES)]
        await _read_views(readers)
        samples, limits = [], []
        for number in range(2 * scale.times(5)):
            before = _cpu_seconds(page.pid)
            await page.show(crowd if number % 2 else moved)
            event = await _read_views(readers)
            samples.append((_cpu_seconds(page.pid) - before) * 1000)
            limit = bare.cpu_seconds(lambda: bare.parse([line])) + bare.cpu_seconds_to_send(event, PAGES)
            limits.append(limit * 1000)
        memory = int(_field(page.pid, "VmHWM")) / 1024
        for _, writer in readers:
            writer.close()
    return [
        Row(
            name="page/view",
            unit="ms CPU",
            size=PAGES,
            samples=samples,
            bare=limits,
            limit="parsing the view, writing the section to each",
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
        readers: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

        async def count_for_a_view() -> float:
            before = sum(one.requests for one in counted)
            await page.show(await collector.collect())
            await _read_views(readers)
            return (sum(one.requests for one in counted) - before) / SERVERS

        await count_for_a_view()  # the first one asks what later ones remember
        alone = [await count_for_a_view() for _ in range(rounds)]
        readers += [await _open_page(page.url) for _ in range(PAGES)]
        await _read_views(readers)
        watched = [await count_for_a_view() for _ in range(rounds)]
        for _, writer in readers:
            writer.close()
    return Row(
        name="page/requests", unit="", size=PAGES, samples=watched, bare=alone, limit="the same with no page open"
    )


async def _open_page(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port, limit=16 * 1024 * 1024)
    writer.write(f"GET /events HTTP/1.1\r\nhost: {address.netloc}\r\n\r\n".encode())
    await writer.drain()
    return reader, writer


async def _read_views(readers: Sequence[tuple[asyncio.StreamReader, asyncio.StreamWriter]]) -> bytes:
    """Read the next view on every page, and return the last one."""
    line = b""
    for reader, _ in readers:
        while not (line := await reader.readline()).startswith(b"data: "):
            if not line:
                raise EOFError("the page was closed")
    return line


def _cpu_seconds(pid: int) -> float:
    """Return the processor time of a process so far, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def _field(pid: int, name: str) -> str:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.split()[1] for line in lines if line.startswith(f"{name}:"))
