"""What settings from a store cost a running server: polls at it and at one with a settings.json, in turns."""

from __future__ import annotations

import asyncio
import itertools
import tempfile
from pathlib import Path

from goatherd.identity.settings_json import to_settings
from goatherd.identity.transitions import create_document
from tests.ports import free_ports

from .clients import SESSIONS, Line, batch, element, filter_over, post, signature
from .data import AUTHORS, Data, ids_of, write_log
from .rows import Row
from .scale import Scale
from .servers import Program, serve

POLLED = "/data/few"
POLLS = 20
"""Polls in one sample."""
FILTERS = 8
"""Filters with different seeds; a client makes one for each request."""


async def run(scale: Scale, data: Data) -> list[Row]:
    """Measure two servers with the same data, one of which reads its identity from a settings.json."""
    with tempfile.TemporaryDirectory() as name:
        top = Path(name)
        store = await data.create_store(top)
        file = top / "settings.json"
        file.write_bytes(to_settings(create_document(data.root, data.made_ms)))
        for directory in ("store", "file"):
            write_log(top / directory, SESSIONS, data.sessions(AUTHORS))
            write_log(top / directory, POLLED, data.commits(0, scale.few))
        ports = free_ports(2)
        async with (
            serve(top / "store", ports[0], store) as from_store,
            serve(top / "file", ports[1], file) as from_file,
        ):
            return [await asyncio.to_thread(_compare, scale, data, from_store, from_file)]


def _compare(scale: Scale, data: Data, from_store: Program, from_file: Program) -> Row:
    users = itertools.cycle(data.user(number) for number in range(AUTHORS))
    held = ids_of(data.commits(0, scale.few))
    filters = itertools.cycle([filter_over(held) for _ in range(FILTERS)])
    spent: dict[Program, list[float]] = {from_store: [], from_file: []}
    with Line(from_store.port) as one, Line(from_file.port) as other:
        for turn in range(scale.times(10) + 1):
            for server, line in ((from_store, one), (from_file, other)):
                began = server.cpu_seconds()
                for _ in range(POLLS):
                    body = batch(element(POLLED, next(filters), len(held)))
                    line.ask(post(signature(next(users)), body))
                if turn:  # the first builds what later ones use again
                    spent[server].append((server.cpu_seconds() - began) / POLLS * 1000)
    return Row(
        name="settings/poll",
        unit="ms CPU",
        size=len(held),
        samples=spent[from_store],
        bare=spent[from_file],
        limit="with a settings.json",
    )
