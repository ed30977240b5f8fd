"""A server as a process: its sockets, connections that do not end, and its shutdown."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest

from goatherd.cluster.client import NodeClient
from goatherd.errors import (
    NodeError,
    NodeUnreachableError,
)
from goatherd.identity.session import OwnedSession
from goatherd.node import Server, ServerListener
from goatherd.node.engine import Engine
from goatherd.serving.caller_limits import CallerLimits
from tests.deadlines import ANSWER, HANG
from tests.ports import free_ports
from tests.unit.node.nodes import (
    ORG,
    document_of,
    hold_flush,
    settings_of,
    signed_commit,
    store_of,
)

from .requests import batch, header, records


async def test_a_listener_answers_on_a_socket_and_leaves_nothing_open(tmp_path: Path, signer: OwnedSession) -> None:
    server = Server(tmp_path, settings_of(await store_of(document_of(signer))), debug=True)
    async with server:
        async with ServerListener(server) as listener, NodeClient(listener.url, timeout=ANSWER) as client:
            assert await client.healthy()
            user, _ = await client.create_session()
            commit = signed_commit(user)
            await client.push("/data/x", [commit], user)
            assert await client.pull("/data/x", user) == [commit.to_json()]
            url = listener.url
        async with NodeClient(url) as client:
            with pytest.raises(NodeUnreachableError):
                await client.create_session()


async def answer_to(listener: ServerListener, sent: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
    try:
        async with asyncio.timeout(HANG):
            writer.write(sent)
            return await reader.read()
    finally:
        writer.close()


async def test_a_server_that_listens_again_names_its_new_port(tmp_path: Path, signer: OwnedSession) -> None:
    server = Server(tmp_path, settings_of(await store_of(document_of(signer))))
    async with server:
        for port in free_ports(2):
            async with ServerListener(server, port=port) as listener:
                answer = await answer_to(listener, b"GET /healthy HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
                assert b"access-control-allow-origin: http://localhost:%d\r\n" % port in answer


@pytest.mark.parametrize(
    "sent", [b"GET /" + b"x" * 70_000, b"GET / HTTP/1.1\r\nx-goat-sig: " + b"a" * 70_000], ids=["line", "header"]
)
async def test_a_head_without_end_is_cut_off(tmp_path: Path, signer: OwnedSession, sent: bytes) -> None:
    server = Server(tmp_path, settings_of(await store_of(document_of(signer))))
    async with server, ServerListener(server) as listener:
        assert (await answer_to(listener, sent)).startswith(b"HTTP/1.1 431 ")
        async with NodeClient(listener.url, timeout=ANSWER) as client:
            assert await client.healthy()


async def test_a_whole_head_that_is_too_large_is_refused(tmp_path: Path, signer: OwnedSession) -> None:
    server = Server(tmp_path, settings_of(await store_of(document_of(signer))))
    async with server, ServerListener(server) as listener:
        head = b"GET /healthy HTTP/1.1\r\nhost: a\r\nconnection: close\r\nx: %s\r\n\r\n"
        assert (await answer_to(listener, head % (b"a" * 65_000))).startswith(b"HTTP/1.1 200 ")
        assert (await answer_to(listener, head % (b"a" * 66_000))).startswith(b"HTTP/1.1 431 ")


async def test_an_idle_connection_is_kept_for_longer_than_a_client_uses_it_again(
    tmp_path: Path, signer: OwnedSession
) -> None:
    server = Server(tmp_path, settings_of(await store_of(document_of(signer))))
    async with server, ServerListener(server) as listener, NodeClient(listener.url, timeout=ANSWER) as client:
        await client.healthy()
        assert client._pool is not None
        reused = client._pool.http._transport._pool._keepalive_expiry
        assert server.limiter.limits.idle_timeout.total_seconds() > 4 * reused


async def test_a_head_that_never_ends_is_not_waited_for(tmp_path: Path, signer: OwnedSession) -> None:
    limits = CallerLimits(header_timeout=timedelta(milliseconds=50))
    server = Server(tmp_path, settings_of(await store_of(document_of(signer))), limits=limits)
    async with server, ServerListener(server) as listener:
        assert (await answer_to(listener, b"GET /healthy HTTP/1.1\r\nhost: ")).startswith(b"HTTP/1.1 408 ")


async def test_a_body_after_a_wish_for_another_protocol_is_no_request(tmp_path: Path, signer: OwnedSession) -> None:
    hidden = b"GET /healthy HTTP/1.1\r\nhost: h\r\n\r\n"
    head = b"POST /batch-sync HTTP/1.1\r\nhost: h\r\nconnection: upgrade\r\nupgrade: x\r\ncontent-length: %d\r\n\r\n"
    server = Server(tmp_path, settings_of(await store_of(document_of(signer))))
    async with server, ServerListener(server) as listener:
        reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
        try:
            writer.write(head % len(hidden))
            said = await reader.readline()
            with contextlib.suppress(ConnectionError):
                writer.write(hidden)
                said += await reader.read()
        finally:
            writer.close()
        assert said.startswith(b"HTTP/1.1 400 ")
        assert said.count(b"HTTP/1.1 ") == 1


async def test_an_address_in_use_is_an_error(tmp_path: Path, signer: OwnedSession) -> None:
    server = Server(tmp_path, settings_of(await store_of(document_of(signer))), debug=True)
    async with server, ServerListener(server) as listener:
        with pytest.raises(NodeError, match="in use"):
            await ServerListener(server, port=listener.port).__aenter__()


async def test_stopping_answers_what_runs_before_it_closes(
    tmp_path: Path, signer: OwnedSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, gate = hold_flush(monkeypatch)
    server = Server(tmp_path, settings_of(await store_of(document_of(signer))), debug=True)
    listener = ServerListener(server)
    await server.__aenter__()
    await listener.__aenter__()
    commit = signed_commit(signer)
    async with NodeClient(listener.url, timeout=ANSWER) as client:
        push = asyncio.create_task(client.push("/data/x", [commit], signer))
        while not begun.is_set():
            await asyncio.sleep(0.001)
        closing = asyncio.create_task(listener.__aexit__(None, None, None))
        await asyncio.sleep(0.02)
        assert not closing.done()
        gate.set()
        reply = await push
        assert reply is not None
        assert reply["s"] == 1
        await closing
    await server.__aexit__(None, None, None)
    assert records(tmp_path / ORG / "data" / "x.jsonl") == [commit.to_json()]


async def test_a_request_whose_body_is_still_coming_is_answered_before_the_server_closes(
    tmp_path: Path, signer: OwnedSession
) -> None:
    server = Server(tmp_path, settings_of(await store_of(document_of(signer))), debug=True)
    await server.__aenter__()
    rest = asyncio.Event()
    commit = signed_commit(signer)
    parts = [batch("/data/x", commit)[:50], batch("/data/x", commit)[50:]]
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        if len(parts) == 1:
            await rest.wait()
        return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

    async def send(message: Any) -> None:
        sent.append(message)

    signature = (b"x-goat-sig", header(signer)["x-goat-sig"].encode())
    scope = {"type": "http", "method": "POST", "path": "/batch-sync", "scheme": "http", "headers": [signature]}
    request = asyncio.create_task(server.app(scope, receive, send))
    while len(parts) > 1:
        await asyncio.sleep(0)
    closing = asyncio.create_task(server.__aexit__(None, None, None))
    await asyncio.sleep(0.02)
    rest.set()
    await asyncio.gather(request, closing)
    assert sent[0]["status"] == 200
    assert records(tmp_path / ORG / "data" / "x.jsonl") == [commit.to_json()]


async def test_a_start_that_is_cancelled_leaves_nothing_open(
    tmp_path: Path, signer: OwnedSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    loading, released, load = threading.Event(), threading.Event(), Engine.load_sessions

    def load_when_released(engine: Engine) -> None:
        loading.set()
        assert released.wait(HANG)
        load(engine)

    monkeypatch.setattr(Engine, "load_sessions", load_when_released)
    starting = asyncio.create_task(Server(tmp_path, settings_of(await store_of(document_of(signer)))).__aenter__())
    assert await asyncio.to_thread(loading.wait, HANG)
    starting.cancel()
    released.set()
    with pytest.raises(asyncio.CancelledError):
        await starting
    async with Server(tmp_path, settings_of(await store_of(document_of(signer)))):
        pass  # it has the lock


def run_program(program: str, *arguments: str) -> subprocess.Popen[str]:
    repository = Path(__file__).parents[3]
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), *arguments],
        stdout=subprocess.PIPE,
        text=True,
        cwd=repository,
        env={**os.environ, "PYTHONPATH": str(repository)},
    )


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_start_that_waits_for_the_store(tmp_path: Path, number: signal.Signals) -> None:
    program = """
        import asyncio, sys
        from tests.unit.node.nodes import settings_of
        from goatherd.node import Server, run
        from goatherd.providers.memory import MemorySecretProvider

        class Silent(MemorySecretProvider):
            async def read(self, *_, **__):
                print("reading", flush=True)
                await asyncio.Event().wait()

        run(Server(sys.argv[1], settings_of(Silent())), port=0)
        print("closed", flush=True)
        """
    with run_program(program, str(tmp_path)) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "reading\n"
            process.send_signal(number)
            assert process.communicate(timeout=HANG)[0] == "closed\n"
        finally:
            process.kill()
    assert process.returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_process_ends_cleanly_on_a_signal(tmp_path: Path, number: signal.Signals) -> None:
    program = """
        import asyncio, sys
        from tests.unit.node.nodes import document_of, root, settings_of, store_of
        from goatherd.node import Server, run

        settings = settings_of(asyncio.run(store_of(document_of(root("r")))))
        run(Server(sys.argv[1], settings), port=0, started=lambda url: print(url, flush=True))
        print("closed", flush=True)
        """
    with run_program(program, str(tmp_path)) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert httpx2.get(f"{url}/healthy").text == "OK"
        process.send_signal(number)
        assert process.stdout.read() == "closed\n"
    assert process.returncode == 0
