"""`goatherd run --door`: an agent, its server, and a door in front, through a rotation of the root."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest

from goatherd.clock import SystemClock
from goatherd.cluster.client import NodeClient
from goatherd.errors import NodeError
from goatherd.identity.session import OwnedSession, sign_commit
from goatherd.ids import new_id
from goatherd.rotation.machine import Policy
from goatherd.rotation.rotator import Rotator
from goatherd.wire.commit import Commit, new_commit
from tests.deadlines import ADOPTION, ANSWER
from tests.ports import free_ports

from .agents import cluster

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and /dev/shm"),
]
NOTES = "/data/notes"
T = TypeVar("T")


def note(author: OwnedSession, claimed: str | None = None) -> Commit:
    now_ms = SystemClock().now_ms()
    unsigned = new_commit(
        commit_id=new_id(),
        key=new_id(),
        session_id=claimed or author.id,
        ts=now_ms,
        org="localhost",
        data={"text": "x"},
        schema_marker="note/1",
        connection=new_id(),
    )
    return sign_commit(author, unsigned, now_ms=now_ms)


async def stored(client: NodeClient, caller: OwnedSession) -> set[str]:
    return {commit["id"] for commit in await client.pull(NOTES, caller)}


async def push(client: NodeClient, commit: Commit, caller: OwnedSession) -> None:
    """Offer a commit as a client does: again, until it is there."""
    async with asyncio.timeout(ADOPTION.total_seconds()):
        while True:
            with contextlib.suppress(NodeError):
                await client.push(NOTES, [commit], caller)
                if commit.id in await stored(client, caller):
                    return
            await asyncio.sleep(0.1)


async def again(call: Callable[[], Awaitable[T]]) -> T:
    """Repeat a request as a client does: on a slow machine the door may answer that the server is not done yet."""
    async with asyncio.timeout(ADOPTION.total_seconds()):
        while True:
            with contextlib.suppress(NodeError):
                return await call()
            await asyncio.sleep(0.1)


async def test_writes_through_the_door_survive_a_rotation_and_forgeries_never_arrive(tmp_path: Path) -> None:
    async with cluster(tmp_path, 1) as made:
        (node,) = made.nodes
        (port,) = free_ports(1)
        node.options = ("--door", str(port), "--private", "--forwarded-by", "127.0.0.0/8")
        await node.start()
        await made.up()
        await node.logged("door.opened")
        async with (
            NodeClient(f"http://127.0.0.1:{port}", timeout=ANSWER) as client,
            NodeClient(node.url, timeout=ANSWER) as direct,
        ):
            early = await again(client.new_session)
            assert early.leaked == ()
            written = [note(early.owned)]
            await push(client, written[0], early.owned)
            forged = note(early.owned, claimed=made.first.id)
            await again(lambda: client.push(NOTES, [forged], early.owned))
            private = note(early.owned)
            await again(lambda: client.push("/user/somebody", [private], early.owned))
            rotator = Rotator(
                made.provider,
                made.secret_id,
                [direct],
                policy=Policy(adoption=ADOPTION, settle=ADOPTION, node_timeout=ANSWER),
                started_by="test",
            )
            await rotator.rotate()
            document = await made.document()
            assert document.current.id != made.first.id
            late = await again(client.new_session)
            assert {root.id for root in late.roots} == {made.first.id, document.current.id}
            for author in (early.owned, late.owned):
                written.append(note(author))
                await push(client, written[-1], author)
            assert await stored(direct, late.owned) == {commit.id for commit in written}
        assert "rule=author" in node.log
        assert "rule=private" in node.log
        assert await node.stop() == 0
