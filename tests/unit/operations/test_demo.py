"""The demo's servers use ports that no other program can take, and nothing from the operator's working directory."""

from __future__ import annotations

import errno
import socket
import sys
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from goatherd.clock import SystemClock
from goatherd.identity.document import encode_document
from goatherd.identity.session import ROOT_OWNER, OwnedSession
from goatherd.identity.transitions import create_document
from goatherd.operations.demo import _reserve_port, _run_servers
from goatherd.plugins import open_provider
from goatherd.serving.sockets import bind

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a server bind a reserved port")


def test_a_reserved_port_is_given_to_no_other_program_and_a_server_can_listen_on_it() -> None:
    with _reserve_port() as port:
        with socket.socket() as other, pytest.raises(OSError, match="in use") as caught:
            other.bind(("127.0.0.1", port))
        assert caught.value.errno == errno.EADDRINUSE
        server, bound, _ = bind("127.0.0.1", port)
        with closing(server):
            server.listen()
            assert bound == port
            socket.create_connection(("127.0.0.1", port)).close()


def test_ports_that_are_reserved_at_the_same_time_differ() -> None:
    with ExitStack() as stack:
        ports = [stack.enter_context(_reserve_port()) for _ in range(50)]
        assert len(set(ports)) == 50


@pytest.mark.slow
async def test_the_servers_take_no_module_and_no_option_from_the_operators_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, top = tmp_path / "place", tmp_path / "top"
    place.mkdir()
    top.mkdir()
    (place / "json.py").write_text("raise SystemExit(3)")
    (place / "goatherd.toml").write_text('org = "other"\n')
    monkeypatch.chdir(place)
    monkeypatch.setenv("GOATHERD_SERVE_UNUSED_SESSIONS", "many")
    store, now_ms = f"file://{top}/keys/root", SystemClock().now_ms()
    provider, secret_id = open_provider(store)
    root = OwnedSession.generate(session_id="root", owner=ROOT_OWNER, now_ms=now_ms)
    async with provider:
        await provider.create(secret_id, encode_document(create_document(root, now_ms)))
    async with _run_servers(top, [["--provider", store]] * 3) as servers:
        assert [server.process.returncode for server in servers] == [None] * 3
