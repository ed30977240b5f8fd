"""Agents as processes, around servers that treat their settings.json as GoatDB does, and one store for all of them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from goatherd.clock import SystemClock
from goatherd.cluster.client import NodeClient
from goatherd.errors import NodeError
from goatherd.identity.document import IdentityDocument, decode_document, encode_document
from goatherd.identity.session import ROOT_OWNER, OwnedSession
from goatherd.identity.transitions import create_document
from goatherd.ids import new_id
from goatherd.plugins import open_provider
from goatherd.providers.base import SecretProvider
from goatherd.providers.values import CURRENT
from tests.deadlines import ANSWER, HANG
from tests.ports import free_ports
from tests.waiting import until

REPO = Path(__file__).parents[2]
PATIENCE = 120
_SCALAR = re.compile(rb'"d"\s*:\s*"([A-Za-z0-9_-]{64})"')


@dataclass(slots=True)
class Agented:
    """One node: an agent and its server, or a bare server."""

    path: Path
    port: int
    uri: str
    peers: Sequence[str] = ()
    options: Sequence[str] = ()
    faults: Sequence[str] = ()
    wrapper: Sequence[str] = ()
    is_bare: bool = False
    argv: Sequence[str] | None = None
    shift: Path | None = None
    process: asyncio.subprocess.Process | None = None
    runs: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def data(self) -> Path:
        return self.path / "data"

    @property
    def settings(self) -> Path:
        return self.data / "localhost" / "settings.json"

    @property
    def log(self) -> str:
        return "".join(path.read_text() for path in sorted(self.path.glob("stderr-*")))

    @property
    def out(self) -> str:
        return "".join(path.read_text() for path in sorted(self.path.glob("stdout-*")))

    def command(self) -> list[str]:
        """What to start: the agent with the server's own command, that command alone, or ``goatherd`` with `argv`."""
        if self.argv is not None:
            return [*self.module("goatherd"), *self.argv]
        peers = [word for url in self.peers for word in ("--peer", url)]
        child = [*self.module("tests.cluster.goatlike"), "--path", str(self.data), "--port", str(self.port)]
        child = [*self.wrapper, *child, *peers, *self.faults]
        if self.is_bare:
            return child
        agent = [*self.module("goatherd"), "run", "--create", "--provider", self.uri]
        agent += ["--data", str(self.data)]
        agent += ["--url", self.url, "--refresh-interval", "500ms", "--grace", f"{HANG:g}s"]
        agent += self.options
        return [*agent, "--", *child]

    def module(self, name: str) -> list[str]:
        """Return how to run a module: unchanged, or with a clock that is ahead by what the file `shift` says."""
        shifted = [] if self.shift is None else ["tests.cluster.shifted", str(self.shift)]
        return [sys.executable, "-m", *shifted, name]

    async def start(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        self.runs += 1
        environ = {name: value for name, value in os.environ.items() if not name.startswith("GOATHERD_")}
        environ["GOATHERD_TIMEOUT"] = f"{ANSWER.total_seconds():g}s"
        with (
            (self.path / f"stdout-{self.runs:03}").open("wb") as out,
            (self.path / f"stderr-{self.runs:03}").open("wb") as err,
        ):
            self.process = await asyncio.create_subprocess_exec(
                *self.command(), stdout=out, stderr=err, cwd=REPO, env=environ
            )

    async def stop(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        if self.process.returncode is None:
            self.process.send_signal(number)
        async with asyncio.timeout(PATIENCE):
            return await self.process.wait()

    def child_pid(self) -> int | None:
        """The PID of the server that the agent runs now, from the agent's state file."""
        with contextlib.suppress(OSError):
            found = re.search(r'"pid": (\d+)', (self.data / ".goatherd-agent.json").read_text())
            return int(found[1]) if found else None
        return None

    async def up(self, root: OwnedSession) -> None:
        """Wait until the server accepts what `root` has signed."""
        async with NodeClient(self.url, timeout=ANSWER) as client, asyncio.timeout(PATIENCE):
            while True:
                assert self.process is not None
                assert self.process.returncode is None, f"it has ended with {self.process.returncode}: {self.log}"
                with contextlib.suppress(NodeError):
                    if await client.answers(root):
                        return
                await asyncio.sleep(0.05)

    async def logged(self, text: str, times: int = 1) -> None:
        await until(lambda: self.log.count(text) >= times, lambda: self.log)


@dataclass(slots=True)
class Cluster:
    """Nodes around one store."""

    provider: SecretProvider
    secret_id: str
    uri: str
    first: OwnedSession
    nodes: list[Agented] = field(default_factory=list)

    @property
    def urls(self) -> list[str]:
        return [node.url for node in self.nodes]

    async def document(self) -> IdentityDocument:
        return decode_document((await self.provider.read(self.secret_id, CURRENT)).value.reveal())

    async def versions(self) -> int:
        return len(await self.provider.versions(self.secret_id))

    async def up(self) -> None:
        document = await self.document()
        await asyncio.gather(*(node.up(document.current) for node in self.nodes))


@contextlib.asynccontextmanager
async def cluster(top: Path, count: int, *, lifetime: timedelta = timedelta(days=90)) -> AsyncIterator[Cluster]:
    """Yield a store with a first identity, and nodes that are not started yet; whatever runs is stopped at the end."""
    uri = f"file://{top}/keys/root"
    provider, secret_id = open_provider(uri)
    async with provider:
        now_ms = SystemClock().now_ms()
        first = OwnedSession.generate(session_id=new_id(), owner=ROOT_OWNER, now_ms=now_ms, lifetime=lifetime)
        await provider.create(secret_id, encode_document(create_document(first, now_ms)))
        ports = free_ports(count)
        urls = [f"http://127.0.0.1:{port}" for port in ports]
        made = Cluster(provider=provider, secret_id=secret_id, uri=uri, first=first)
        made.nodes = [
            Agented(
                path=top / f"node-{number}",
                port=port,
                uri=uri,
                peers=[url for url in urls if not url.endswith(f":{port}")],
            )
            for number, port in enumerate(ports)
        ]
        try:
            yield made
        finally:
            await asyncio.gather(*(_end(node) for node in made.nodes))


async def _end(node: Agented) -> None:
    if node.process is None:
        return
    pid = node.child_pid()
    if node.process.returncode is None:
        node.process.terminate()
        try:
            async with asyncio.timeout(60):
                await node.process.wait()
        except TimeoutError:
            node.process.kill()
            await node.process.wait()
            if pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def keys_on_disk(top: Path) -> dict[Path, set[bytes]]:
    """Return every private scalar in a regular file below a directory; links are not followed."""
    found = {}
    for path in top.rglob("*"):
        if path.is_file() and not path.is_symlink():
            with contextlib.suppress(OSError):
                scalars = set(_SCALAR.findall(path.read_bytes()))
                if scalars:
                    found[path] = scalars
    return found
