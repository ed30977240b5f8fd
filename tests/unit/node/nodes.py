"""Servers for tests: identities, running servers on loopback, signed commits."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from goatherd.clock import SystemClock
from goatherd.cluster.client import NodeClient
from goatherd.identity.document import IdentityDocument, encode_document
from goatherd.identity.session import OwnedSession, Session, sign_commit
from goatherd.identity.session_commits import session_fields
from goatherd.identity.transitions import create_document
from goatherd.ids import new_id, new_seeds
from goatherd.node import Server, ServerListener
from goatherd.node.log_storage import FileLog
from goatherd.providers.memory import MemorySecretProvider
from goatherd.serving.caller_limits import CallerLimits
from goatherd.settings.store import CloudSecretSettings
from goatherd.wire.bloom import BloomFilter
from goatherd.wire.commit import Commit, new_commit
from tests.deadlines import ANSWER, HANG

SECRET = "root"
ORG = "localhost"


def now_ms() -> int:
    return SystemClock().now_ms()


def root(session_id: str = "") -> OwnedSession:
    return OwnedSession.generate(session_id=session_id or new_id(), owner="root", now_ms=now_ms())


def hold_flush(patch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """Block each flush of a log; return an event that is set when one begins, and an event that lets the flushes
    continue."""
    flush, begun, gate = FileLog.flush, threading.Event(), threading.Event()

    def slow_flush(log: FileLog) -> None:
        begun.set()
        assert gate.wait(HANG)
        flush(log)

    patch.setattr(FileLog, "flush", slow_flush)
    return begun, gate


def signed_commit(signer: OwnedSession, key: str = "", *, schema: str = "note/1", **data: Any) -> Commit:
    """A full commit without parents, as a client writes it."""
    time = now_ms()
    commit = new_commit(
        commit_id=new_id(),
        key=key or new_id(),
        session_id=signer.id,
        ts=time,
        org=ORG,
        data=data or {"title": "a title"},
        schema_marker=schema,
        connection=new_id(),
        ancestors_filter=BloomFilter.for_size(1, 0.25, new_seeds(3)),
    )
    return sign_commit(signer, commit, now_ms=time)


def session_commit(signer: OwnedSession, session: Session) -> Commit:
    """The commit by which `signer` introduces `session`."""
    return signed_commit(signer, session.id, schema="sessions/1", **session_fields(session))


async def store_of(document: IdentityDocument) -> MemorySecretProvider:
    """A secret store that holds an identity."""

    provider = MemorySecretProvider()
    async with provider:
        await provider.create(SECRET, encode_document(document))
    return provider


def settings_of(provider: MemorySecretProvider) -> CloudSecretSettings:
    return CloudSecretSettings(provider, SECRET, refresh_interval=timedelta(hours=1))


@dataclass
class Node:
    """A server on a loopback socket."""

    server: Server
    listener: ServerListener
    client: NodeClient
    directory: Path
    settings: CloudSecretSettings
    _stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    @property
    def url(self) -> str:
        return self.listener.url

    async def start(self) -> None:
        await self._stack.enter_async_context(self.server)
        await self._stack.enter_async_context(self.listener)

    async def stop(self) -> None:
        await self._stack.aclose()

    async def holds(self, path: str, signer: OwnedSession) -> set[str]:
        return {commit["id"] for commit in await self.client.pull(path, signer)}


@asynccontextmanager
async def cluster(
    directory: Path,
    count: int,
    documents: Sequence[IdentityDocument],
    *,
    links: Callable[[int], Sequence[int]],
    limits: CallerLimits | None = None,
) -> AsyncIterator[list[Node]]:
    """Start `count` servers; `links(i)` are the peers that server i is given. One document each, or one for all."""
    async with AsyncExitStack() as stack:
        stores = [await store_of(document) for document in documents]
        nodes: list[Node] = []
        for index in range(count):
            settings = settings_of(stores[index % len(stores)])
            server = Server(directory / str(index), settings, debug=True, limits=limits)
            listener = ServerListener(server)
            client = await stack.enter_async_context(NodeClient(listener.bind(), timeout=ANSWER))
            nodes.append(Node(server, listener, client, directory / str(index), settings))
        for index, node in enumerate(nodes):
            node.server.peers = [nodes[peer].url for peer in links(index)]
            if len(stores) > 1:
                node.settings.accept_next()  # a peer that serves already does not trust the root of another identity
            await node.start()
            stack.push_async_callback(node.stop)
        yield nodes


def all_others(count: int) -> Callable[[int], list[int]]:
    return lambda index: [other for other in range(count) if other != index]


def document_of(signer: OwnedSession, *roots: Session) -> IdentityDocument:
    return create_document(signer, now_ms(), roots=roots)


async def eventually(condition: Callable[[], Any]) -> None:
    """Wait until an async condition holds; fail at the deadline."""
    async with asyncio.timeout(HANG):
        while not await condition():
            await asyncio.sleep(0.01)
