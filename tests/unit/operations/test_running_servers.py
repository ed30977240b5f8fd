"""A server and a door, run as a command runs them: until a signal stops them."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest

from goatherd.cluster.client import NodeClient
from goatherd.door.door import Door
from goatherd.door.limits import DoorLimits
from goatherd.errors import ConfigurationError, MissingExtraError, SecretNotFoundError
from goatherd.identity.transitions import create_document
from goatherd.node import Server
from goatherd.operations import serve
from goatherd.operations.run_door import run_door
from goatherd.operations.serve import ServerReady, require_node_extra, serve_organization
from goatherd.providers.memory import MemorySecretProvider
from goatherd.providers.values import SecretValue
from goatherd.settings.store import CloudSecretSettings
from tests.deadlines import ANSWER, HANG
from tests.fakes.upstream_child import UpstreamChild
from tests.unit.door.scripted_server import GET, Reader, Scripted, Writer, head_of, is_listening, line, scripted
from tests.unit.node.nodes import ORG, now_ms, root, settings_of, store_of
from tests.waiting import until

GRACE = timedelta(seconds=HANG)


@pytest.fixture(autouse=True)
def _switch_interval() -> Iterator[None]:
    before = sys.getswitchinterval()
    yield
    sys.setswitchinterval(before)


def stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


async def test_a_server_answers_once_it_says_so_and_stops_at_a_signal(tmp_path: Path) -> None:
    signer = root()
    settings = settings_of(await store_of(create_document(signer, now_ms())))
    ready: asyncio.Queue[ServerReady] = asyncio.Queue()

    async def use() -> None:
        started = await ready.get()
        assert (started.org, started.signer) == (ORG, signer.id)
        async with NodeClient(started.url, timeout=ANSWER) as client:
            assert await client.answers(signer)
        stop()

    running = serve_organization(
        Server(tmp_path / "data", settings),
        tmp_path / "data",
        ORG,
        creates=True,
        host="127.0.0.1",
        port=0,
        on_ready=ready.put_nowait,
    )
    async with asyncio.timeout(HANG), asyncio.TaskGroup() as group:
        group.create_task(running)
        group.create_task(use())
    assert (tmp_path / "data").is_dir()


async def test_a_missing_data_directory_is_created_only_if_that_is_asked(tmp_path: Path) -> None:
    settings = settings_of(await store_of(create_document(root(), now_ms())))
    with pytest.raises(ConfigurationError):
        await serve_organization(
            Server(tmp_path / "data", settings),
            tmp_path / "data",
            ORG,
            creates=False,
            host="127.0.0.1",
            port=0,
            on_ready=lambda _: pytest.fail("it has started"),
        )
    assert not (tmp_path / "data").exists()


def test_missing_libraries_are_named_with_the_command_that_installs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    require_node_extra()
    monkeypatch.setattr(serve, "NODE_LIBRARIES", ("uvicorn", "no_such_library", "no_such.library"))
    with pytest.raises(MissingExtraError, match=r"no_such_library, no_such\.library$") as missing:
        require_node_extra()
    assert "pip install" in missing.value.hint


MAKE_DOOR = partial(
    Door,
    upstream="http://127.0.0.1:1",
    host="127.0.0.1",
    port=0,
    public_url=None,
    private=False,
    limits=DoorLimits(),
    forwarded_by=(),
)


async def test_a_door_passes_the_servers_answers_on_and_stops_at_a_signal() -> None:
    signer, following = root(), root()
    document = create_document(signer, now_ms())
    provider = await store_of(document)
    settings = settings_of(provider)
    ready: asyncio.Queue[Door] = asyncio.Queue()

    async def use() -> None:
        door = await ready.get()
        async with NodeClient(door.url, timeout=ANSWER) as client:
            assert await client.answers(signer)
            assert not await client.answers(following), "no root of this identity"
        stop()

    async with UpstreamChild(signer) as child:
        running = run_door(partial(MAKE_DOOR, upstream=child.url), settings, ORG, on_ready=ready.put_nowait)
        async with asyncio.timeout(HANG), asyncio.TaskGroup() as group:
            group.create_task(running)
            group.create_task(use())


async def test_a_second_signal_ends_a_door_at_once_although_the_server_has_not_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("goatherd.door.door.GRACE", 10 * GRACE)
    settings = settings_of(await store_of(create_document(root(), now_ms())))
    ready: asyncio.Queue[Door] = asyncio.Queue()

    async def never(reader: Reader, writer: Writer, state: Scripted) -> None:
        await head_of(reader)
        await asyncio.Event().wait()

    async def use() -> None:
        door = await ready.get()
        async with line(door.port) as (reader, writer):
            writer.write(GET)
            await until(lambda: door.status.requests == 1)
            stop()
            await until(lambda: not is_listening(door))
            assert door.status.requests == 1, "the door waits for the answer"
            stop()
            assert await reader.read() == b""

    async with scripted(never) as (server, _), asyncio.timeout(HANG), asyncio.TaskGroup() as group:
        group.create_task(run_door(partial(MAKE_DOOR, upstream=server.url), settings, ORG, on_ready=ready.put_nowait))
        group.create_task(use())


async def test_a_signal_ends_the_start_of_a_door_that_waits_for_the_store() -> None:
    class Silent(MemorySecretProvider):
        async def read(self, *_: object, **__: object) -> SecretValue:
            stop()
            await asyncio.Event().wait()
            raise AssertionError

    async with asyncio.timeout(HANG):
        await run_door(MAKE_DOOR, settings_of(Silent()), ORG, on_ready=lambda _: pytest.fail("it is open"))


async def test_a_door_without_an_identity_does_not_open() -> None:
    provider = await store_of(create_document(root(), now_ms()))
    settings = CloudSecretSettings(provider, "missing")
    with pytest.raises(SecretNotFoundError):
        await run_door(MAKE_DOOR, settings, ORG, on_ready=lambda _: pytest.fail("it is open"))
