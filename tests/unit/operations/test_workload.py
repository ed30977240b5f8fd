"""The demo's load ends with an error, and does not wait indefinitely, if a server does not follow the others."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from goatherd.cluster.client import NodeClient
from goatherd.errors import NodeError
from goatherd.identity.session import OwnedSession, Session
from goatherd.operations import workload
from goatherd.operations.workload import Workload
from tests.deadlines import HANG
from tests.unit.node.nodes import root


class Stranger(NodeClient):
    """A client of a server that creates sessions, but never learns of a session that another server has created."""

    closed = 0

    async def create_session(self) -> tuple[OwnedSession, list[Session]]:
        return root(), []

    async def answers(self, signer: OwnedSession, now_ms: int | None = None) -> bool:
        return False

    async def aclose(self) -> None:
        Stranger.closed += 1
        await super().aclose()


async def test_a_server_that_never_learns_a_session_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workload, "NodeClient", Stranger)
    load = Workload(["http://one.test:8080", "http://two.test:8080"], timeout=timedelta(milliseconds=100))
    async with asyncio.timeout(HANG):
        with pytest.raises(NodeError, match=r"one\.test:8080 did not learn within 0\.1 s"):
            await load.__aenter__()
    assert Stranger.closed == 2
