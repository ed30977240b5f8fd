"""Direct mode: a new session and a request between servers whose root is in OpenBao, over the same with a local key."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

from goatherd.clock import SystemClock
from goatherd.cluster.client import NodeClient
from goatherd.identity.anchor import AnchorWord
from goatherd.identity.document import IdentityDocument, encode_document
from goatherd.identity.session import ROOT_OWNER, OwnedSession
from goatherd.identity.transitions import create_document
from goatherd.ids import new_id
from goatherd.node.server import Server, ServerListener
from goatherd.providers.memory import MemorySecretProvider
from goatherd.remote_keys import RootSigners, sign_aside
from goatherd.rotation.anchor_keys import AnchorKeys
from goatherd.serving.caller_limits import CallerLimits, Rate
from goatherd.settings.store import CloudSecretSettings
from tests.deadlines import ANSWER
from tests.fakes.openbao import ROOT_TOKEN, BaoServer, find_bao

from .data import Data
from .rows import Row
from .scale import Scale

REQUESTS: Final = 25
_UNLIMITED: Final = Rate(per_second=1e6, burst=1e6)


async def run(scale: Scale, _: Data) -> list[Row]:
    """Measure two servers in turn; nothing without OpenBao. One client sends one request after the other."""
    program = find_bao()
    if program is None:
        return []
    async with AsyncExitStack() as stack:
        top = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="goatherd-bench-direct-")))
        bao = stack.enter_context(BaoServer(program))
        bao.ask("POST", "sys/mounts/transit", {"type": "transit"})
        bao.ask("POST", "transit/keys/root", {"type": "ecdsa-p384"})
        before = os.environ.get("VAULT_TOKEN")
        stack.callback(_set_token, before)
        _set_token(ROOT_TOKEN)
        uri = f"transit://127.0.0.1:{bao.port}/transit/root?tls=off"
        now_ms = SystemClock().now_ms()
        local = OwnedSession.generate(session_id=new_id(), owner=ROOT_OWNER, now_ms=now_ms)
        signers = await stack.enter_async_context(RootSigners([uri]))
        async with AnchorKeys("localhost", signers=signers) as keys:
            key = await keys.open_new(uri, session_id=new_id(), now_ms=now_ms)
            word = AnchorWord(session=key.session)
            document = await sign_aside(lambda: create_document(key.owned, now_ms, word=word), key.owned)
        ours = await stack.enter_async_context(_serve(top / "direct", document, uri))
        theirs = await stack.enter_async_context(_serve(top / "local", create_document(local, now_ms)))
        root = signers.connect(document.current)

        rows = []
        for name, mine, bare in (
            ("session", ours.create_session, theirs.create_session),
            ("peer", lambda: ours.batch_sync([], root), lambda: theirs.batch_sync([], local)),
        ):
            await _milliseconds(mine)
            pairs = [(await _milliseconds(mine), await _milliseconds(bare)) for _ in range(scale.times(5))]
            samples, limits = zip(*pairs, strict=True)
            limit = "the same with a local root"
            rows.append(Row(name=f"direct/{name}", unit="ms", size=1, samples=samples, bare=limits, limit=limit))
        return rows


def _set_token(token: str | None) -> None:
    if token is None:
        os.environ.pop("VAULT_TOKEN", None)
    else:
        os.environ["VAULT_TOKEN"] = token


async def _milliseconds(ask: Callable[[], Awaitable[object]]) -> float:
    began = time.perf_counter()
    for _ in range(REQUESTS):
        await ask()
    return 1000 * (time.perf_counter() - began) / REQUESTS


@asynccontextmanager
async def _serve(folder: Path, document: IdentityDocument, *signers: str) -> AsyncIterator[NodeClient]:
    provider = MemorySecretProvider()
    async with provider:
        await provider.create("root", encode_document(document))
        limits = CallerLimits(requests=_UNLIMITED, new_sessions=_UNLIMITED, session_requests=_UNLIMITED)
        settings = CloudSecretSettings("root", provider)
        server = Server(folder, settings, limits=limits, unused_sessions=0, root_signers=signers)
        async with server, ServerListener(server) as listener, NodeClient(listener.url, timeout=ANSWER) as client:
            yield client
