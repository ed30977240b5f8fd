"""The demo's servers get ports that no other program can take before they listen."""

from __future__ import annotations

import errno
import socket
import sys
from contextlib import ExitStack, closing

import pytest

from goatherd.operations.demo import _reserve_port
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
