"""Servers in this process, stores that fail and servers that lie, for the tests of a revocation."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2

from goatherd.cluster.client import NodeClient
from goatherd.errors import (
    ConflictError,
    UnavailableError,
)
from goatherd.identity.document import IdentityDocument, decode_document, encode_document
from goatherd.identity.session import OwnedSession
from goatherd.node import Server
from goatherd.providers.memory import MemorySecretProvider
from goatherd.providers.values import CURRENT
from goatherd.revocation.revoker import Revoker
from goatherd.rotation.machine import Policy
from tests.deadlines import ADOPTION, ANSWER
from tests.unit.node.nodes import (
    SECRET,
    settings_of,
    store_of,
)

SECOND = timedelta(seconds=1)
POLICY = Policy(
    adoption=ADOPTION, settle=SECOND / 5, flow_patience=SECOND / 5, poll_max=SECOND / 20, node_timeout=ANSWER
)
NOTES = "/data/notes"
SESSIONS = "/sys/sessions"


class Counting(MemorySecretProvider):
    """A store that becomes unavailable at its n-th call, before or after that call takes effect; 0 for never."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.calls = 0
        self.fails_at = 0
        self.after = False

    async def _count(self, name: str, call: Any) -> Any:
        self.calls += 1
        is_away = 0 < self.fails_at <= self.calls
        if is_away and not (self.after and self.calls == self.fails_at):
            call.close()
            raise UnavailableError("gone", provider="memory", secret_id=SECRET, operation=name)
        done = await call
        if is_away:
            raise UnavailableError("gone", provider="memory", secret_id=SECRET, operation=name)
        return done

    async def read(self, *arguments: Any, **options: Any) -> Any:
        return await self._count("read", super().read(*arguments, **options))

    async def write(self, *arguments: Any, **options: Any) -> Any:
        return await self._count("write", super().write(*arguments, **options))

    async def label(self, *arguments: Any, **options: Any) -> Any:
        return await self._count("label", super().label(*arguments, **options))

    async def destroy(self, *arguments: Any, **options: Any) -> Any:
        return await self._count("destroy", super().destroy(*arguments, **options))


class Faltering(MemorySecretProvider):
    """A store that fails every call once, before or after it takes effect, except the first read."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.is_faltering = self.after = False
        self.failures = 0
        self._calls = -1

    async def _falter(self, name: str, call: Any) -> Any:
        self._calls += self.is_faltering
        fails = self.is_faltering and self._calls % 2 == 1
        self.failures += fails
        if fails and not self.after:
            call.close()
            raise UnavailableError("gone", provider="memory", secret_id=SECRET, operation=name)
        done = await call
        if fails:
            raise UnavailableError("gone", provider="memory", secret_id=SECRET, operation=name)
        return done

    async def read(self, *arguments: Any, **options: Any) -> Any:
        return await self._falter("read", super().read(*arguments, **options))

    async def versions(self, *arguments: Any, **options: Any) -> Any:
        return await self._falter("versions", super().versions(*arguments, **options))

    async def write(self, *arguments: Any, **options: Any) -> Any:
        return await self._falter("write", super().write(*arguments, **options))

    async def label(self, *arguments: Any, **options: Any) -> Any:
        return await self._falter("label", super().label(*arguments, **options))

    async def destroy(self, *arguments: Any, **options: Any) -> Any:
        return await self._falter("destroy", super().destroy(*arguments, **options))


class Lagging(MemorySecretProvider):
    """A store whose first read and first list after each write show the state before the write."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.before: tuple[Any, Any] | None = None

    async def read(self, *arguments: Any, **options: Any) -> Any:
        before, self.before = self.before, None if self.before is None else (None, self.before[1])
        now = await super().read(*arguments, **options)
        return now if before is None or before[0] is None else before[0]

    async def versions(self, secret_id: str) -> Any:
        before, self.before = self.before, None if self.before is None else (self.before[0], None)
        now = await super().versions(secret_id)
        return now if before is None or before[1] is None else before[1]

    async def write(self, secret_id: str, value: Any, **options: Any) -> Any:
        before = (await super().read(secret_id, CURRENT), await super().versions(secret_id))
        done = await super().write(secret_id, value, **options)
        self.before = before
        return done


class Unlabelling(MemorySecretProvider):
    """A store that fails to move labels while `is_stuck`, and calls `look` at each attempt."""

    is_stuck = True
    look: Callable[[], None]

    async def label(self, *arguments: Any, **options: Any) -> None:
        self.look()
        if self.is_stuck:
            raise UnavailableError("gone", provider="memory", secret_id=SECRET, operation="label")
        await super().label(*arguments, **options)


class Doubting(MemorySecretProvider):
    """A store that applies a write and reports a conflict, as a store with stale lists does."""

    async def write(self, secret_id: str, value: Any, **options: Any) -> Any:
        await super().write(secret_id, value, **options)
        raise ConflictError("not confirmed", provider="memory", secret_id=secret_id, operation="write")


class Forgetful(NodeClient):
    """A server that has lost the frozen lists."""

    async def frozen(self, digest: str) -> bytes | None:
        return None


class Meddling(NodeClient):
    """A server that calls `meddle`, which can change the store, when it is asked which commits of the root it holds."""

    meddle: Callable[[], Awaitable[None]]

    async def held(self, *arguments: Any, **options: Any) -> bytes:
        await self.meddle()
        return await super().held(*arguments, **options)


class Upstream(NodeClient):
    """An unmodified GoatDB server, which has none of Goatherd's endpoints."""

    async def identity(self) -> None:
        return None

    async def refresh(self, signer: OwnedSession, now_ms: int | None = None) -> None:
        return None


@dataclass
class Cluster:
    """Servers in this process that are not peers, and the store that they read."""

    top: Path
    provider: MemorySecretProvider
    servers: list[Server]
    nodes: list[NodeClient]
    stack: contextlib.AsyncExitStack

    async def add(self) -> NodeClient:
        server = Server(self.top / f"node-{len(self.servers)}", settings_of(self.provider), debug=True)
        await self.stack.enter_async_context(server)
        self.servers.append(server)
        self.nodes.append(client_of(server, f"http://node-{len(self.nodes)}"))
        return self.nodes[-1]

    async def document(self) -> IdentityDocument:
        return decode_document((await self.provider.read(SECRET)).value.reveal())

    async def put(self, document: IdentityDocument) -> None:
        found = await self.provider.read(SECRET)
        await self.provider.write(SECRET, encode_document(document), label=CURRENT, expected=found.version.id)

    def revoker(self, nodes: Sequence[NodeClient] | None = None, **options: Any) -> Revoker:
        options.setdefault("policy", POLICY)
        return Revoker(self.provider, SECRET, self.nodes if nodes is None else nodes, **options)


def client_of(server: Server, url: str, kind: type[NodeClient] = NodeClient) -> NodeClient:
    http = httpx2.AsyncClient(transport=httpx2.ASGITransport(server.app), base_url=url, verify=False)
    return kind(url, http=http, timeout=ANSWER)


@contextlib.asynccontextmanager
async def cluster_of(
    top: Path, document: IdentityDocument, count: int = 2, provider: MemorySecretProvider | None = None
) -> AsyncIterator[Cluster]:
    if provider is None:
        provider = await store_of(document)
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(provider)
        cluster = Cluster(top, provider, [], [], stack)
        for _ in range(count):
            await cluster.add()
        yield cluster


async def ids(node: NodeClient, path: str, signer: OwnedSession) -> set[str]:
    return {commit["id"] for commit in await node.pull(path, signer)}


async def spread(cluster: Cluster, signer: OwnedSession) -> None:
    """Copy the commits of each node to all others, as peers do."""
    for path in (SESSIONS, NOTES):
        for giver in cluster.nodes:
            for taker in cluster.nodes:
                if taker is not giver:
                    await taker.push(path, await giver.pull(path, signer), signer)
