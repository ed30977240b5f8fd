"""Which requests go through the proxy that the environment names, and which answers are unpacked."""

from __future__ import annotations

import asyncio
import gzip
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx2
import pytest

from goatherd.cluster.client import NodeClient
from goatherd.errors import ConfigurationError, NodeUnreachableError, SecretNotFoundError, UnavailableError
from goatherd.plugins import open_provider
from goatherd.rotation.health_checks import HTTPProbe
from goatherd.serving.http_client import describe_failure, make_http_client
from tests.deadlines import ANSWER

FINE = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nOK"
ABSENT = b'HTTP/1.1 404 Not Found\r\ncontent-length: 15\r\nconnection: close\r\n\r\n{"errors": [] }'
VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@asynccontextmanager
async def server(answer: bytes = FINE) -> AsyncIterator[tuple[int, list[bytes]]]:
    """A server that answers every request alike. Yields its port, and the first lines of the requests."""
    seen: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append((await reader.readuntil(b"\r\n\r\n")).partition(b"\r\n")[0])
        writer.write(answer)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as opened:
        yield opened.sockets[0].getsockname()[1], seen


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
async def test_a_server_on_this_machine_is_reached_without_the_proxy(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    async with server() as (proxy, asked), server() as (port, seen):
        monkeypatch.setenv(variable, f"http://127.0.0.1:{proxy}")
        async with NodeClient(f"http://127.0.0.1:{port}", timeout=ANSWER) as client:
            assert await client.healthy()
        assert await HTTPProbe(f"http://localhost:{port}/healthy", timeout=ANSWER).ask() is None
    assert (len(seen), asked) == (2, [])


async def test_a_vault_on_this_machine_is_reached_without_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAULT_TOKEN", "token")
    async with server() as (proxy, asked), server(ABSENT) as (port, _):
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{proxy}")
        provider, secret_id = open_provider(f"vault://127.0.0.1:{port}/secret/goatdb/root?tls=off")
        async with provider:
            with pytest.raises(SecretNotFoundError):
                await provider.read(secret_id)
    assert asked == []


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.10", "[::1]", "localhost", "acme.localhost"])
async def test_every_name_of_this_machine_counts(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://user:hunter2@proxy.example:1080")  # which cannot be used
    async with make_http_client(f"https://{host}:8443", verify=True, timeout=None) as http:
        assert not http.trust_env


async def test_another_host_is_reached_through_the_proxy_unless_it_is_excepted(monkeypatch: pytest.MonkeyPatch) -> None:
    async with server() as (proxy, asked):
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{proxy}")
        async with NodeClient("http://goat.invalid:8080", timeout=ANSWER) as client:
            assert await client.healthy()
        monkeypatch.setenv("NO_PROXY", "goat.invalid")
        async with NodeClient("http://goat.invalid:8080", timeout=ANSWER) as client:
            assert not await client.healthy()
    assert asked == [b"GET http://goat.invalid:8080/healthy HTTP/1.1"]


@pytest.mark.parametrize(
    ("url", "is_excepted"),
    [
        ("https://10.96.0.1", True),
        ("http://10.244.1.7:8080", True),
        ("http://[fd00::7]:8080", True),
        ("http://192.0.2.1:8080", False),
        ("http://goat.invalid:8080", False),
    ],
)
async def test_an_address_in_an_excepted_network_is_reached_without_the_proxy(
    monkeypatch: pytest.MonkeyPatch, url: str, is_excepted: bool
) -> None:
    """Such as a cluster's API server and pods, which have addresses and no names."""
    for scheme in ("HTTP", "HTTPS"):
        monkeypatch.setenv(f"{scheme}_PROXY", "http://proxy.invalid:3128")
    monkeypatch.setenv("NO_PROXY", "10.0.0.0/8,fd00::/8,.svc")
    async with make_http_client(url, verify=True, timeout=None) as http:
        assert (http._transport_for_url(httpx2.URL(url)) is http._transport) is is_excepted


@pytest.mark.parametrize("url", ["socks5://user:hunter2@proxy.example:1080", "ftp://user:hunter2@proxy.example"])
async def test_a_proxy_that_cannot_be_used_is_an_error_without_its_password(
    monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("ALL_PROXY", url)
    async with NodeClient("http://goat.invalid:8080", timeout=ANSWER) as client:
        with pytest.raises(ConfigurationError, match="ALL_PROXY") as caught:
            await client.create_session()
    assert "hunter2" not in f"{caught.value!r} {caught.value.hint} {caught.value.__cause__!r}"
    assert "cannot be used" in str(await HTTPProbe("http://goat.invalid/healthy", timeout=ANSWER).ask())


# --- compressed answers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encodings", [b"gzip, gzip", b"gzip\r\ncontent-encoding: gzip"], ids=["a list", "two headers"])
async def test_an_answer_that_is_compressed_twice_is_not_unpacked(
    monkeypatch: pytest.MonkeyPatch, encodings: bytes
) -> None:
    """Of a few KiB it could make so much that the process does nothing else for minutes."""
    monkeypatch.setenv("VAULT_TOKEN", "token")
    packed = gzip.compress(gzip.compress(b'{"errors": []}'))
    head = b"HTTP/1.1 404 Not Found\r\ncontent-length: %d\r\ncontent-encoding: %b\r\n\r\n" % (len(packed), encodings)
    async with server(head + packed) as (port, _):
        async with NodeClient(f"http://127.0.0.1:{port}", timeout=ANSWER) as client:
            with pytest.raises(NodeUnreachableError, match="compressed"):
                await client.identity()
        provider, secret_id = open_provider(f"vault://127.0.0.1:{port}/secret/goatdb/root?tls=off")
        async with provider:
            with pytest.raises(UnavailableError, match="compressed"):
                await provider.read(secret_id)
        assert "compressed" in str(await HTTPProbe(f"http://127.0.0.1:{port}/healthy", timeout=ANSWER).ask())


async def test_an_answer_that_is_compressed_once_is_unpacked() -> None:
    packed = gzip.compress(b"OK")
    head = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\ncontent-encoding: gzip\r\n\r\n" % len(packed)
    async with server(head + packed) as (port, _), NodeClient(f"http://127.0.0.1:{port}", timeout=ANSWER) as client:
        assert await client.healthy()


# --- why a request got no answer --------------------------------------------------------------------------------------


def caused_by(cause: BaseException) -> Exception:
    error = httpx2.ConnectError("All connection attempts failed")
    error.__cause__ = cause
    return error


def tls_error(reason: str) -> ssl.SSLError:
    error = ssl.SSLError(1, f"[SSL: {reason}]")
    error.reason = reason
    return error


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (caused_by(ConnectionRefusedError(111, "Connect call failed ('127.0.0.1', 1)")), "connection refused"),
        (caused_by(ExceptionGroup("both addresses", [ConnectionRefusedError(111, "")])), "connection refused"),
        (caused_by(ConnectionResetError(104, "")), "connection reset by peer"),
        (caused_by(socket.gaierror(-2, "")), "the name of the host cannot be resolved"),
        (caused_by(TimeoutError()), "timeout"),
        (caused_by(OSError(113, "Connect call failed ('192.0.2.1', 1)")), "no route to host"),
        (
            caused_by(tls_error("WRONG_VERSION_NUMBER")),
            "the port does not speak TLS; is the URL http:// and not https://?",
        ),
        (caused_by(tls_error("NO_SHARED_CIPHER")), "the TLS handshake failed: no shared cipher"),
        (httpx2.UnsupportedProtocol("the token is s.1234"), "UnsupportedProtocol"),
        (
            httpx2.RemoteProtocolError("the token is s.1234"),
            "the server closed the connection before its answer was complete, or does not speak HTTP",
        ),
    ],
)
def test_the_reason_for_a_missing_answer_is_that_of_the_operating_system(error: Exception, words: str):
    assert describe_failure(error) == words


async def test_a_server_whose_host_name_has_no_address_is_described_so(monkeypatch: pytest.MonkeyPatch):
    async def no_address(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", no_address)
    async with NodeClient("http://no-such-host:8080") as client:
        with pytest.raises(NodeUnreachableError, match=r": the name of the host cannot be resolved$"):
            await client.identity()
