"""Five Goatherd servers in one process, on real sockets, around one store.

By default the store is the file store, from which each server can be cut off; or any other that a factory makes clients
of.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from goatherd.clock import SystemClock
from goatherd.errors import UnavailableError
from goatherd.identity.document import IdentityDocument, decode_document, encode_document
from goatherd.identity.session import ROOT_OWNER, OwnedSession
from goatherd.identity.transitions import create_document
from goatherd.ids import new_id
from goatherd.node.server import Server, ServerListener
from goatherd.providers.base import SecretProvider
from goatherd.providers.file.provider import FileSecretProvider
from goatherd.providers.values import CURRENT, Label, SecretValue, VersionId
from goatherd.settings.store import CloudSecretSettings
from tests.ports import free_ports


class CutOff(FileSecretProvider):
    """The file store over a connection that a test can cut."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.is_cut = False

    async def read(
        self, secret_id: str, at: Label | VersionId | str = CURRENT, *, attempts: int | None = None
    ) -> SecretValue:
        if self.is_cut:
            raise UnavailableError("the cable is out", provider="file", secret_id=secret_id, operation="read")
        return await super().read(secret_id, at, attempts=attempts)


@dataclass(slots=True)
class Herd:
    """The servers' URLs, sockets and cables, the store, and the root that it began with."""

    urls: list[str]
    servers: list[Server]
    listeners: list[ServerListener]
    cables: Sequence[SecretProvider]
    provider: SecretProvider
    secret_id: str
    first: OwnedSession

    async def document(self) -> IdentityDocument:
        return decode_document((await self.provider.read(self.secret_id, CURRENT)).value.reveal())


@contextlib.asynccontextmanager
async def herd(top: Path, count: int = 5, *, root_signers: Sequence[str] = ()) -> AsyncIterator[Herd]:
    """Yield servers around a file store; their `cables` are `CutOff`."""
    around = herd_around(top, lambda: CutOff(top / "keys"), "root", count=count, root_signers=root_signers)
    async with around as started:
        yield started


@contextlib.asynccontextmanager
async def herd_around(
    top: Path,
    factory: Callable[[], SecretProvider],
    secret_id: str,
    *,
    count: int = 5,
    neighbours: int | None = None,
    refresh_interval: timedelta = timedelta(seconds=1),
    root_signers: Sequence[str] = (),
) -> AsyncIterator[Herd]:
    """Yield servers around a store, with a first identity in it.

    Args:
        top: Where the servers keep their data.
        factory: Makes one more client of the store, not entered yet: one for each server, and one for the operator.
        secret_id: The secret; it must not exist.
        count: How many servers.
        neighbours: With how many others each server exchanges commits: with the next ones in a ring; None for all.
        refresh_interval: How often each server reads the store.
        root_signers: URIs of the signers with which each server may sign as the root.
    """
    provider = factory()
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(provider)
        now_ms = SystemClock().now_ms()
        first = OwnedSession.generate(session_id=new_id(), owner=ROOT_OWNER, now_ms=now_ms)
        await provider.create(secret_id, encode_document(create_document(first, now_ms)))
        ports = free_ports(count)
        urls = [f"http://127.0.0.1:{port}" for port in ports]
        servers, listeners, cables = [], [], []
        for number, port in enumerate(ports):
            cable = factory()
            settings = CloudSecretSettings(cable, secret_id, refresh_interval=refresh_interval)
            others = [*urls[number + 1 :], *urls[:number]]
            peers = others if neighbours is None else others[:neighbours]
            server = Server(top / f"node-{number}", settings, peers=peers, root_signers=root_signers)
            await stack.enter_async_context(server)
            listeners.append(await stack.enter_async_context(ServerListener(server, port=port)))
            servers.append(server)
            cables.append(cable)
        yield Herd(
            urls=urls,
            servers=servers,
            listeners=listeners,
            cables=cables,
            provider=provider,
            secret_id=secret_id,
            first=first,
        )
