"""`goatherd demo`: run three servers with one identity in a file store, rotate twice under traffic, and audit them.

The demo shows in under a minute, on one machine, that rotations lose no write; it is not a benchmark. Server processes,
HTTP over loopback, signatures, the file store and the rotator are real. The demo succeeds if the audit at its end does:
the audit reads every commit from every server and verifies each signature itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final

from goatherd.clock import SystemClock
from goatherd.cluster.client import NodeClient
from goatherd.errors import NodeError
from goatherd.identity.document import IdentityDocument, decode_document, encode_document
from goatherd.identity.session import ROOT_OWNER, OwnedSession
from goatherd.identity.transitions import create_document
from goatherd.ids import new_id
from goatherd.operations.identity_store import Store
from goatherd.operations.stores import promote_store, sync_stores
from goatherd.operations.workload import LoadAudit, LoadWindow, Workload
from goatherd.plugins import open_provider
from goatherd.providers.base import SecretProvider
from goatherd.providers.values import CURRENT
from goatherd.rotation.events import Event, PhaseEntered
from goatherd.rotation.machine import Phase, Policy
from goatherd.rotation.rotator import Rotator
from goatherd.serving.own_processes import own_command, own_environment
from goatherd.stores import RegionalReader, ReplicatedStore, StoreMember
from goatherd.wire.paths import DEFAULT_ORG

_ROOT_ID: Final = "root"
_CLOCK: Final = SystemClock()
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
    """The result of the demo.

    The demo has passed, with exit code 0, if writes were accepted, no request was refused, no commit is lost or
    unverifiable, and every server ended cleanly (`passed`).
    """

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


async def run_demo(tell: Tell, *, has_regions: bool = False) -> DemoReport:
    """Run the demo in a temporary directory and return its result.

    Args:
        tell: Called at the start of each step.
        has_regions: Whether to run the demo with a store and a server in each of three regions, one of which is lost
            in the middle of a rotation.

    Raises:
        NodeError: A server did not start.
        RotationError: A rotation could not be completed.
    """
    # Without a handler, Python would print warnings of the log between the lines of the demo.
    logging.getLogger("goatherd").addHandler(logging.NullHandler())
    with tempfile.TemporaryDirectory(prefix="goatherd-demo-") as name:
        return await (_run_regions_in if has_regions else _run_demo_in)(Path(name), tell)


async def _run_demo_in(top: Path, tell: Tell) -> DemoReport:
    name = f"file://{top}/keys/{_ROOT_ID}"
    store, _ = open_provider(name)
    async with store:
        first = await _create_identity(store)
        tell("identity", f"one identity, root {first.id}, in {name}")
        async with _run_servers(top, [["--provider", name]] * SERVERS) as servers:
            tell("servers", f"{len(servers)} servers use it: {_join_urls(servers)}")
            return await _run_under_load(servers, first, lambda parts: _run_parts(store, parts), tell)


async def _create_identity(store: SecretProvider) -> OwnedSession:
    """Create the identity in the store, and return its root."""
    now_ms = _CLOCK.now_ms()
    first = OwnedSession.generate(session_id=new_id(), owner=ROOT_OWNER, now_ms=now_ms)
    await store.create(_ROOT_ID, encode_document(create_document(first, now_ms)))
    return first


def _join_urls(servers: Sequence[_Server]) -> str:
    return ", ".join(server.url for server in servers)


async def _run_under_load(
    servers: Sequence[_Server],
    first: OwnedSession,
    run_parts: Callable[[_Parts], Awaitable[IdentityDocument]],
    tell: Tell,
) -> DemoReport:
    """Let clients write and read while the parts of the demo run; then audit every server, and stop it.

    Args:
        servers: The running servers.
        first: The first root, which the audit trusts.
        run_parts: Runs the parts, and returns the identity at their end.
        tell: Called at the start of each step.
    """
    urls = [server.url for server in servers]
    async with contextlib.AsyncExitStack() as stack:
        load = await stack.enter_async_context(Workload(urls, clients=CLIENTS, pause=PAUSE, clock=_CLOCK))
        tell("load", f"{CLIENTS} clients write and read, and new clients join")
        nodes = [await stack.enter_async_context(NodeClient(url)) for url in urls]
        parts = _Parts(load, nodes, tell)
        document = await run_parts(parts)
        await load.stop()
        tell("audit", "reading every commit from every server, and checking every signature")
        audit = await load.audit([first.session])
    clean = all(await asyncio.gather(*(server.stop() for server in servers)))
    return DemoReport(
        servers=SERVERS,
        clients=CLIENTS,
        passages=tuple(parts.done),
        audit=audit,
        roots={letter: root.id for letter, root in zip("ABCDEF", document.roots, strict=False)},
        signer=document.current.id,
        clean_exits=clean,
    )


REGIONS: Final = ("eu", "us", "ap")


def _open_regions(top: Path, primary: str) -> tuple[StoreMember, ...]:
    """Return a file store in `top` for each region; the primary store, that of region `primary`, comes first."""
    members = []
    for region in (primary, *(one for one in REGIONS if one != primary)):
        provider, template = open_provider(f"file://{top}/keys-{region}/root")
        members.append(StoreMember(region=region, provider=provider, template=template, is_primary=region == primary))
    return tuple(members)


def _write_regions_file(top: Path) -> Path:
    """Write the servers' configuration file, which lists the store of each region, and return its path."""
    stores = [f'{{region = "{one}", provider = "file://{top}/keys-{one}/root"' for one in REGIONS]
    followers = ", ".join(one + "}" for one in stores[1:])
    file = top / "regions.toml"
    file.write_text(f"[stores]\nprimary = {stores[0]}}}\nfollowers = [{followers}]\n")
    return file


async def _run_regions_in(top: Path, tell: Tell) -> DemoReport:
    file = _write_regions_file(top)
    async with ReplicatedStore(_open_regions(top, "eu")) as writer:
        first = await _create_identity(writer)
    tell("identity", f"one identity, root {first.id}, in the stores of {', '.join(REGIONS)}; eu is the primary store")
    places = [["--config", str(file), "--region", region] for region in REGIONS]
    async with _run_servers(top, places) as servers:
        tell("servers", f"a server in each region: {_join_urls(servers)}")
        return await _run_under_load(servers, first, lambda parts: _run_region_parts(top, parts, tell), tell)


async def _run_region_parts(top: Path, parts: _Parts, tell: Tell) -> IdentityDocument:
    eu, away = top / "keys-eu", top / "keys-eu.away"
    async with ReplicatedStore(_open_regions(top, "eu")) as store:
        async with parts.run("rotation", "rotating the root: every region shows each change before the next one"):
            await parts.rotator_for(store).rotate()
        async with parts.run("cut off", "rotating again; when the next root is published, region eu is lost"):
            await parts.rotator_for(store).rotate(to_phase=Phase.PUBLISHED)
            eu.rename(away)
            eu.touch()
            await _CLOCK.sleep(QUIET_TIME)
    async with parts.run("promoted", "region us becomes the primary store, and the rotation ends there"):
        async with RegionalReader(_open_regions(top, "eu")) as reader:
            stores = Store(provider=reader, secret_id=_ROOT_ID, org=DEFAULT_ORG, name="the stores")
            promoted = await promote_store(stores, "us")
        tell("", f"us: generation {promoted.before} -> {promoted.generation}; no answer: {next(iter(promoted.unseen))}")
        async with ReplicatedStore(_open_regions(top, "us"), allowed=["eu"]) as store:
            await parts.rotator_for(store).resume()
    async with parts.run("healed", "region eu returns, is brought forward, and a rotation waits for it again"):
        eu.unlink()
        away.rename(eu)
        async with ReplicatedStore(_open_regions(top, "us")) as store:
            stores = Store(provider=store, secret_id=_ROOT_ID, org=DEFAULT_ORG, name="the stores")
            synced = await sync_stores(stores)
            tell("", f"eu: generation {synced.before.get('eu')} -> {synced.followers[0].generation}")
            await parts.rotator_for(store).rotate()
            return await _read_identity(store)


class _Parts:
    """Records the parts of the demo while they run: the load during each part, and the phases of its rotations."""

    def __init__(self, load: Workload, nodes: Sequence[NodeClient], tell: Tell) -> None:
        self.done: list[DemoPart] = []
        self._load = load
        self._nodes = nodes
        self._tell = tell
        self._entered: list[tuple[str, float]] = []

    def rotator_for(self, store: SecretProvider) -> Rotator:
        policy = Policy(adoption=timedelta(seconds=20), settle=timedelta(seconds=20))
        return Rotator(
            store, _ROOT_ID, self._nodes, policy=policy, clock=_CLOCK, started_by="goatherd demo", on_event=self._listen
        )

    def _listen(self, event: Event) -> None:
        """Record the time of an event if it reports that a rotation enters a phase."""
        if isinstance(event, PhaseEntered):
            self._entered.append((str(event.phase), self._load.now()))

    @contextlib.asynccontextmanager
    async def run(self, name: str, text: str) -> AsyncIterator[None]:
        """Measure the load in the body of the ``async with`` statement as one part of the demo."""
        self._tell(name, text)
        self._entered.clear()
        began = self._load.now()
        yield
        window = self._load.window(began, self._load.now())
        self.done.append(DemoPart(name=name, window=window, phases=_measure_phases(began, self._entered)))


async def _run_parts(store: SecretProvider, parts: _Parts) -> IdentityDocument:
    rotator = parts.rotator_for(store)
    async with parts.run("before", "no rotation yet"):
        await _CLOCK.sleep(QUIET_TIME)
    async with parts.run("rotation", "rotating from root A to root B"):
        await rotator.rotate()
    async with parts.run("between", "root B signs"):
        await _CLOCK.sleep(QUIET_TIME)
    async with parts.run("roll back", "rotating again until root C signs, then rolling back to B"):
        await rotator.rotate(to_phase=Phase.ACTIVATED)
        await _CLOCK.sleep(QUIET_TIME / 2)  # time for C to sign commits that must stay valid after the roll-back
        await rotator.abandon("the demo rolls one rotation back")
    async with parts.run("after", "root B signs again, root C stays trusted"):
        await _CLOCK.sleep(QUIET_TIME)
    return await _read_identity(store)


async def _read_identity(store: SecretProvider) -> IdentityDocument:
    return decode_document((await store.read(_ROOT_ID, CURRENT)).value.reveal())


def _measure_phases(began: float, entered: Sequence[tuple[str, float]]) -> dict[str, float]:
    """Return how many seconds each rotation phase took to be reached from the one before, or the first from `began`."""
    durations: dict[str, float] = {}
    previous = began
    for phase, at in entered:
        if phase != Phase.STEADY or durations:
            durations[phase] = at - previous
        previous = at
    return durations


@contextlib.asynccontextmanager
async def _run_servers(top: Path, places: Sequence[Sequence[str]]) -> AsyncIterator[list[_Server]]:
    servers: list[_Server] = []
    async with contextlib.AsyncExitStack() as stack:
        ports = [stack.enter_context(_reserve_port()) for _ in range(SERVERS)]
        stack.push_async_callback(_stop_servers, servers)
        urls = [f"http://127.0.0.1:{port}" for port in ports]
        for number, (port, url) in enumerate(zip(ports, urls, strict=True), 1):
            command = own_command("serve", "--create", "--json", "--log-level", "error", *places[number - 1])
            command += ["--data", str(top / f"server-{number}"), "--host", "127.0.0.1", "--port", str(port)]
            for peer in urls:
                if peer != url:
                    command += ["--peer", peer]
            # Otherwise the operator's variables and goatherd.toml would configure these servers, too.
            process = await asyncio.create_subprocess_exec(
                *command, stdout=asyncio.subprocess.DEVNULL, cwd=top, env=own_environment()
            )
            servers.append(_Server(process, url))
        await asyncio.gather(*(_wait_until_ready(server) for server in servers))
        yield servers


async def _stop_servers(servers: Sequence[_Server]) -> None:
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
            f"the server at {server.url} was not ready within {_READY_TIMEOUT.total_seconds():g} s"
        ) from None


@contextlib.contextmanager
def _reserve_port() -> Iterator[int]:
    """Reserve a free port of 127.0.0.1 for a server that listens there later.

    Each server is given the URLs of the others before it starts, so none can choose its own port. On Linux, a socket
    that is bound with SO_REUSEADDR and does not listen keeps the port from every other program, and a server that sets
    the option too can still bind it. Other systems do not allow that second bind, so there the port is released at
    once, and the server may find it in use.
    """
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        port: int = holder.getsockname()[1]
        if sys.platform != "linux":
            holder.close()
        yield port
