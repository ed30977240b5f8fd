"""`goatherd demo`: run three servers with one identity in a file store, rotate twice under traffic, and audit them.

The demo shows in under a minute, on one machine, that rotations lose nothing; it is not a benchmark. Server processes,
HTTP over loopback, signatures, the file store and the rotator are real. The audit at the end decides the result: it
reads every commit from every server and verifies each signature itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final

from goatherd.clock import SystemClock
from goatherd.cluster.client import NodeClient
from goatherd.errors import NodeError
from goatherd.identity.document import decode_document, encode_document
from goatherd.identity.session import ROOT_OWNER, OwnedSession
from goatherd.identity.transitions import create_document
from goatherd.ids import new_id
from goatherd.operations.workload import LoadAudit, LoadWindow, Workload
from goatherd.plugins import open_provider
from goatherd.providers.base import SecretProvider
from goatherd.providers.values import CURRENT
from goatherd.rotation.events import Event, PhaseEntered
from goatherd.rotation.machine import Phase, Policy
from goatherd.rotation.rotator import Rotator

SERVERS: Final = 3
CLIENTS: Final = 6
QUIET_TIME: Final = timedelta(seconds=3)
PAUSE: Final = timedelta(milliseconds=50)
_READY_TIMEOUT: Final = timedelta(seconds=20)

Tell = Callable[[str, str], None]
"""Called at the start of each step with its name and a sentence about it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoPart:
    """One part of the demo: its name, the load during it, and the duration of each rotation phase in it, in seconds."""

    name: str
    window: LoadWindow
    phases: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoReport:
    """The result of the demo. `passed` determines the exit code."""

    servers: int
    clients: int
    passages: tuple[DemoPart, ...]
    audit: LoadAudit
    roots: Mapping[str, str]
    signer: str
    clean_exits: bool

    @property
    def requests(self) -> int:
        return sum(passage.window.requests for passage in self.passages)

    @property
    def refused(self) -> int:
        return sum(passage.window.refused for passage in self.passages)

    @property
    def passed(self) -> bool:
        audit = self.audit
        return not (self.refused or audit.lost or audit.unverifiable) and self.clean_exits and audit.accepted > 0


class _Server:
    """One `goatherd serve` process."""

    def __init__(self, process: asyncio.subprocess.Process, url: str) -> None:
        self.process = process
        self.url = url

    async def stop(self) -> bool:
        """Stop the process by SIGTERM; return whether it ended with exit code 0."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        return await self.process.wait() == 0


async def run_demo(tell: Tell) -> DemoReport:
    """Run the demo in a temporary directory and return its result.

    Raises:
        NodeError: A server did not start.
        RotationError: A rotation could not be completed.
    """
    # Without a handler, Python would print warnings of the log between the lines of the demo.
    logging.getLogger("goatherd").addHandler(logging.NullHandler())
    with tempfile.TemporaryDirectory(prefix="goatherd-demo-") as name:
        return await _run_demo_in(Path(name), tell)


async def _run_demo_in(top: Path, tell: Tell) -> DemoReport:
    store = f"file://{top}/keys/root"
    provider, secret_id = open_provider(store)
    clock = SystemClock()
    async with provider:
        now_ms = clock.now_ms()
        first = OwnedSession.generate(session_id=new_id(), owner=ROOT_OWNER, now_ms=now_ms)
        await provider.create(secret_id, encode_document(create_document(first, now_ms)))
        tell("identity", f"one identity, root {first.id}, in {store}")
        async with _run_servers(top, store) as servers:
            urls = [server.url for server in servers]
            tell("servers", f"{len(servers)} servers took it from there: {', '.join(urls)}")
            load = Workload(urls, clients=CLIENTS, pause=PAUSE, clock=clock)
            async with load:
                tell("load", f"{CLIENTS} clients write and read, and newcomers keep arriving")
                passages = await _run_parts(load, provider, secret_id, urls, clock, tell)
                await load.stop()
                document = decode_document((await provider.read(secret_id, CURRENT)).value.reveal())
                tell("audit", "asking every server for everything, and checking every signature")
                audit = await load.audit([first.session])
            clean = all(await asyncio.gather(*(server.stop() for server in servers)))
    return DemoReport(
        servers=SERVERS,
        clients=CLIENTS,
        passages=passages,
        audit=audit,
        roots={letter: root.id for letter, root in zip("ABCDEF", document.roots, strict=False)},
        signer=document.current.id,
        clean_exits=clean,
    )


async def _run_parts(
    load: Workload, provider: SecretProvider, secret_id: str, urls: Sequence[str], clock: SystemClock, tell: Tell
) -> tuple[DemoPart, ...]:
    passages: list[DemoPart] = []
    entered: list[tuple[str, float]] = []

    def listen(event: Event) -> None:
        if isinstance(event, PhaseEntered):
            entered.append((str(event.phase), load.now()))

    @contextlib.asynccontextmanager
    async def passage(name: str, text: str) -> AsyncIterator[None]:
        tell(name, text)
        entered.clear()
        began = load.now()
        yield
        passages.append(
            DemoPart(name=name, window=load.window(began, load.now()), phases=_measure_phases(began, entered))
        )

    async with contextlib.AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(NodeClient(url)) for url in urls]
        policy = Policy(adoption=timedelta(seconds=20), settle=timedelta(seconds=20))
        rotator = Rotator(
            provider, secret_id, nodes, policy=policy, clock=clock, started_by="goatherd demo", on_event=listen
        )
        async with passage("before", "a while of nothing special"):
            await clock.sleep(QUIET_TIME)
        async with passage("rotation", "rotating the root: A hands over to B"):
            await rotator.rotate()
        async with passage("between", "B signs"):
            await clock.sleep(QUIET_TIME)
        async with passage("roll back", "rotating again, as far as C signs, and back to B"):
            await rotator.rotate(to_phase=Phase.ACTIVATED)
            await clock.sleep(QUIET_TIME / 2)  # time for C to sign commits that must stay valid after the roll-back
            await rotator.abandon("the demo rolls one rotation back")
        async with passage("after", "B signs again, C stays trusted"):
            await clock.sleep(QUIET_TIME)
    return tuple(passages)


def _measure_phases(began: float, entered: Sequence[tuple[str, float]]) -> dict[str, float]:
    """Return, for each phase, how many seconds passed from the phase before it until it was reached."""
    durations: dict[str, float] = {}
    previous = began
    for phase, at in entered:
        if phase != Phase.STEADY or durations:
            durations[phase] = at - previous
        previous = at
    return durations


@contextlib.asynccontextmanager
async def _run_servers(top: Path, store: str) -> AsyncIterator[list[_Server]]:
    ports = _free_ports(SERVERS)
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    servers: list[_Server] = []
    try:
        for number, (port, url) in enumerate(zip(ports, urls, strict=True), 1):
            command = [
                sys.executable,
                "-m",
                "goatherd",
                "serve",
                "--create",
                "--json",
                "--log-level",
                "error",
                "--provider",
                store,
            ]
            command += ["--data", str(top / f"server-{number}"), "--host", "127.0.0.1", "--port", str(port)]
            for peer in urls:
                if peer != url:
                    command += ["--peer", peer]
            process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.DEVNULL)
            servers.append(_Server(process, url))
        await asyncio.gather(*(_wait_until_ready(server) for server in servers))
        yield servers
    finally:
        await asyncio.gather(*(server.stop() for server in servers if server.process.returncode is None))


async def _wait_until_ready(server: _Server) -> None:
    try:
        async with asyncio.timeout(_READY_TIMEOUT.total_seconds()), NodeClient(server.url) as node:
            while not await node.healthy():
                if server.process.returncode is not None:
                    raise NodeError(f"the server at {server.url} ended with status {server.process.returncode}")
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise NodeError(
            f"the server at {server.url} did not come up within {_READY_TIMEOUT.total_seconds():g} s"
        ) from None


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in sockets]
    finally:
        for sock in sockets:
            sock.close()
