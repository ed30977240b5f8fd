"""The server of the controller's metrics: callers do not take its threads and open files."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import Any

import httpx2
import pytest

from goatherd.serving import scrape_server
from goatherd.serving.scrape_server import CONNECTIONS, ScrapeServer
from tests.deadlines import HANG


def answer(_: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
    start("200 OK", [("content-type", "text/plain")])
    return [b"metrics"]


@pytest.fixture
def port() -> Iterator[int]:
    with ScrapeServer("127.0.0.1", 0, answer).running() as bound:
        yield bound


def scrape(port: int) -> bytes:
    return httpx2.get(f"http://127.0.0.1:{port}/metrics", trust_env=False, timeout=HANG).content


@pytest.mark.slow
def test_many_connections_without_a_request_take_few_threads_and_keep_no_scrape_out(port: int) -> None:
    with ExitStack() as stack:
        opened = [stack.enter_context(socket.create_connection(("127.0.0.1", port), HANG)) for _ in range(100)]
        assert scrape(port) == b"metrics"
        for one in opened[: 100 - CONNECTIONS]:
            assert one.recv(1) == b"", "the oldest are closed"
        assert scrape(port) == b"metrics"


@pytest.mark.slow
@pytest.mark.parametrize("is_begun", [True, False])
def test_a_request_that_does_not_come_in_time_is_cut_off(monkeypatch: pytest.MonkeyPatch, is_begun: bool) -> None:
    monkeypatch.setattr(scrape_server, "SECONDS", 0.05)
    with (
        ScrapeServer("127.0.0.1", 0, answer).running() as port,
        socket.create_connection(("127.0.0.1", port), HANG) as line,
    ):
        if is_begun:
            line.sendall(b"GET /metrics HTTP/1.1\r\nhost: ")
        assert line.recv(1) == b""
