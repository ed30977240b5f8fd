"""Fixtures of the server's tests: a server, an engine, and the sessions that sign."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest

from goatherd.identity.session import OwnedSession
from goatherd.node import Server
from tests.unit import goats
from tests.unit.node.nodes import (
    document_of,
    root,
    settings_of,
    store_of,
)

from .requests import client_of


@pytest.fixture
def node() -> goats.Node:
    """An engine with its root, two anonymous sessions and a user's."""
    first = goats.root("root-a")
    made = goats.Node(first, first)
    for session in (goats.owned("anon-x"), goats.owned("anon-y"), goats.owned("user-s", "u1")):
        assert made.pool.add_session_commit(goats.introduction(session, first))
    return made


@pytest.fixture
def signer() -> OwnedSession:
    return root("the-root")


@pytest.fixture
async def server(tmp_path: Path, signer: OwnedSession) -> AsyncIterator[Server]:
    settings = settings_of(await store_of(document_of(signer)))
    async with Server(tmp_path, settings, debug=True, base_url="https://goats.test") as running:
        yield running


@pytest.fixture
async def http(server: Server) -> AsyncIterator[httpx2.AsyncClient]:
    async with client_of(server) as http:
        yield http
