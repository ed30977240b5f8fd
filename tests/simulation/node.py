"""A server of the herd: Goatherd's own database, settings, engine and peers, on a simulated machine.

What is real: `goatherd.node.database.Database` with its engine, trust pool, peers and group commit,
`goatherd.settings.store.CloudSecretSettings` with its keeper and breaker, and `goatherd.NodeClient`. What is not: HTTP
framing, sockets, threads, files.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from email.utils import formatdate
from typing import Any, Final, cast

import httpx2
import orjson

from goatherd.cluster.client import INSTANCE_HEADER
from goatherd.errors import GoatherdError, IdentityError, ProviderError
from goatherd.identity.request_binding import MISDIRECTED
from goatherd.node.database import Database
from goatherd.settings.base import DBSettings
from goatherd.settings.store import CloudSecretSettings
from goatherd.wire.json import to_json_bytes
from tests.simulation.dice import Dice
from tests.simulation.liar import Liar
from tests.simulation.loop import Process
from tests.simulation.machine import MachineClock, MachineDisk
from tests.simulation.network import Answer
from tests.simulation.signers import THIEF
from tests.simulation.world import NOTES, ORG, REFRESH, SECRET, World

_FROZEN: Final = "/goatherd/v1/frozen/"
_START_AGAIN: Final = timedelta(seconds=0.5)
_WRITE_EVERY: Final = (1.0, 4.0)


class SimulatedNode:
    """A machine with a server on it, which is started again whenever its process ends.

    Args:
        world: The world of the run.
        name: Its name, and its host name.
        peers: The URLs of all servers, its own among them.
        dice: Decides when its application writes.

    Attributes:
        process: The process that runs now; None while the server is down.
        database: The database of that process; None until it serves.
        lives: How often it was started.
        liar: What it answers falsely; None for a server that was not broken into.
        accepts: Whether it is started with ``--accept-identity`` the next time.
    """

    def __init__(self, world: World, name: str, peers: Sequence[str], dice: Dice) -> None:
        self.name = name
        self.url = f"http://{name}"
        self.clock = MachineClock(world.loop)
        self.process: Process | None = None
        self.database: Database | None = None
        self.lives = 0
        self.liar: Liar | None = None
        self.accepts = False
        self._world = world
        self._disk = MachineDisk()
        self._peers = [url for url in peers if url != self.url]
        self._dice = dice
        self._notes = 0
        world.network.add(self.url, self)

    @property
    def is_up(self) -> bool:
        """Whether it serves."""
        return self.database is not None

    @property
    def generation(self) -> int:
        """The generation of the identity that it uses; -1 while it is down."""
        return -1 if self.database is None else int(self.database.describe_identity()["generation"])

    def start(self) -> None:
        """Start its server; it serves once it has read the store."""
        assert self.process is None
        self.lives += 1
        self.process = Process(self._world.loop, f"{self.name}/{self.lives}")
        self.process.spawn(self._live(), "serve")

    async def crash(self) -> None:
        """Kill its server, between two instants of writing to the disk."""
        process, self.process, self.database = self.process, None, None
        if process is not None:
            process.mark_dead()
            self._disk.crash(self._world.disk_dice)
            await process.kill()

    async def stop(self) -> None:
        """Stop the server gracefully."""
        database, self.database = self.database, None
        if database is not None and self.process is not None:
            await asyncio.wait({self.process.spawn(database.aclose(), "close")})
        await self.crash()

    async def answer(self, method: str, path: str, content: bytes, headers: Mapping[str, str]) -> Answer:
        """Answer a request; a `tests.simulation.network.Host`."""
        answer = await self._answer(method, path, content, headers)
        date = formatdate(self.clock.now_ms() / 1000, usegmt=True)
        return replace(answer, headers={**answer.headers, "date": date})

    async def _answer(self, method: str, path: str, content: bytes, headers: Mapping[str, str]) -> Answer:
        database = self.database
        if database is None:
            return Answer(503)
        try:
            answer = await self._dispatch(database, method, path, content, headers)
            return answer if self.liar is None else self.liar.twist(path, answer)
        except GoatherdError as error:
            self._world.trace.tell(self.name, f"{method} {path} failed: {error.code}: {error}")
            return Answer(500)
        except Exception as error:  # noqa: BLE001 - a server of ours answers 500 too; here it is a finding
            self._world.promises.broken.append(f"{self.name}: {method} {path} failed with {error!r}")
            return Answer(500)

    async def _dispatch(
        self, database: Database, method: str, path: str, content: bytes, headers: Mapping[str, str]
    ) -> Answer:
        match method, path:
            case "POST", "/batch-sync":
                response = await database.answer_sync(content, headers.get("x-goat-sig"))
                if response.status == 200:
                    self._acknowledge(database, content)
            case "POST", "/auth/session":
                response = await database.answer_session(content)
            case "POST", "/goatherd/v1/refresh":
                response = await database.answer_refresh(content, headers.get("x-goat-sig"))
            case "POST", "/goatherd/v1/held":
                response = await database.frozen_commits.answer_held(content, headers.get("x-goat-sig"))
            case "POST", "/goatherd/v1/lacking":
                response = await database.frozen_commits.answer_lacking(content, headers.get("x-goat-sig"))
            case "POST", "/goatherd/v1/frozen":
                response = await database.frozen_commits.answer_put(content, headers.get("x-goat-sig"))
            case "GET", _ if path.startswith(_FROZEN):
                response = database.frozen_commits.answer_get(path.removeprefix(_FROZEN))
            case "GET", "/goatherd/v1/identity":
                return Answer(200, to_json_bytes(database.describe_identity()))
            case _:
                return Answer(404)
        if response.status == MISDIRECTED:
            return Answer(MISDIRECTED, headers=httpx2.Headers({INSTANCE_HEADER: database.instance}))
        return Answer(response.status, response.body)

    def _acknowledge(self, database: Database, content: bytes) -> None:
        """Note the pushed notes that a peer or client may now rely on: answered with 200, and held."""
        for element in orjson.loads(content):
            if element["path"] == NOTES and element["msg"]["c"]:
                held = database.engine.get_repository(NOTES)
                for commit in element["msg"]["c"]:
                    if commit["id"] in held:
                        self._world.promises.written.setdefault(commit["id"], self.name)

    # --- its life -----------------------------------------------------------------------------------------------------

    async def _live(self) -> None:
        try:
            await self._serve()
        except Exception as error:  # noqa: BLE001 - nothing of ours may end a server; here it is a finding
            self._world.promises.broken.append(f"{self.name}: the server ended with {error!r}")

    async def _serve(self) -> None:
        while True:
            store = self._world.store(self.clock)
            settings = CloudSecretSettings(
                store,
                SECRET,
                refresh_interval=REFRESH,
                clock=self.clock,
                accept_identity=self.accepts,
                seen=None if self._world.history is None else f"/{self.name}/seen.json",
            )
            database = Database(
                org=ORG,
                directory=self._disk,
                settings=settings,
                workers=cast("Any", None),  # the loop runs everything
                clock=self.clock,
                peers=self._peers,
                connect=lambda url: self._world.client(url, self.clock),
            )
            try:
                await database.open()
            except (ProviderError, IdentityError) as error:
                if isinstance(error, IdentityError) and self._world.history is None:
                    raise  # nothing but a store that went back makes a server refuse at its start
                self._world.trace.tell(self.name, f"does not start: {error.code}")
                await self.clock.sleep(_START_AGAIN)
                continue
            break
        await database.open_repository(NOTES)
        watch = _Watch(self._world, self.name, settings.settings, is_accepted=self.accepts)
        self.accepts = False
        settings.subscribe(watch.changed)
        self.database = database
        await self._write_notes(database)

    async def _write_notes(self, database: Database) -> None:
        """Simulate an application that writes with the server's own key."""
        notes = database.repository(NOTES)
        while True:
            await self.clock.sleep(timedelta(seconds=self._dice.uniform(*_WRITE_EVERY)))
            if self._world.is_calm:
                return
            self._notes += 1
            item = await notes.create(f"{self.name}-{self._notes}", "note/1", {"title": "by the server"})
            self._world.promises.written[item.commit.id] = self.name


class _Watch:
    """Records every identity that a server adopts."""

    def __init__(self, world: World, name: str, settings: DBSettings, *, is_accepted: bool) -> None:
        self._world = world
        self._name = name
        self._settings = settings
        if world.history is not None:
            world.history.uses(name, settings.document, is_accepted=is_accepted)
        self._tell("serves")

    def changed(self, settings: DBSettings) -> None:
        before, self._settings = self._settings, settings
        if settings.document.generation < before.document.generation:
            self._world.promises.broken.append(f"{self._name} went back in generation")
        # SECURITY: a server that has used a signed document follows no other (mutant "altered_document_is_followed").
        if before.document.is_signed and not settings.document.is_signed:
            self._world.promises.broken.append(f"{self._name} follows what a writer without the key wrote")
        # SECURITY: a server that knows an anchor follows only roots that it has signed (mutant "anchor_is_ignored").
        if before.document.anchor is not None and (
            not self._world.signers.have_named(settings.document) or settings.document.find_root(THIEF) is not None
        ):
            self._world.promises.broken.append(
                f"{self._name} follows generation {settings.document.generation}, which its anchor has not signed"
            )
        if self._world.history is not None:
            self._world.history.uses(self._name, settings.document)
        self._tell("follows")

    def _tell(self, what: str) -> None:
        document = self._settings.document
        phase = document.phase or "steady"
        self._world.trace.tell(
            self._name, f"{what} generation {document.generation}, {phase}, signs with {document.current.id[:8]}"
        )
