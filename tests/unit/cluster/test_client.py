"""`NodeClient` against servers made of an `httpx2.MockTransport`: what it sends, accepts and rejects."""

from __future__ import annotations

import asyncio
import gc
import gzip
import json
import socket
import subprocess
import sys
import threading
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx2
import pytest

from goatherd.cluster import client
from goatherd.cluster.client import NodeClient
from goatherd.cluster.server_answers import ServerIdentity
from goatherd.crypto import PublicKey
from goatherd.errors import ClockSkewError, ConfigurationError, NodeRefusedError, NodeUnreachableError
from goatherd.identity.session import OwnedSession, parse_signature, verify_request
from goatherd.wire.batch import read_answer
from goatherd.wire.bloom import BloomFilter
from goatherd.wire.messages import VERSION
from tests.deadlines import HANG

NOW_MS = 1_795_529_337_420
URL = "http://goat.test:8080"

Handler = Callable[[httpx2.Request], httpx2.Response]


class FixedClock:
    def now_ms(self) -> int:
        return NOW_MS

    def monotonic(self) -> float:
        return 0.0

    async def sleep(self, duration: timedelta) -> None:
        raise AssertionError("a client does not sleep")


def owned(session_id: str = "signer", owner: str | None = "root") -> OwnedSession:
    return OwnedSession.generate(session_id=session_id, owner=owner, now_ms=NOW_MS)


def client_of(handler: Handler) -> NodeClient:
    http = httpx2.AsyncClient(transport=httpx2.MockTransport(handler))
    return NodeClient(URL + "/", http=http, clock=FixedClock())


def replies(request: httpx2.Request, *messages: dict[str, Any]) -> httpx2.Response:
    paths = [element["path"] for element in json.loads(request.content)]
    body = [{"path": path, "res": message} for path, message in zip(paths, messages, strict=True)]
    return httpx2.Response(200, content=json.dumps(body), headers={"content-type": "text/plain;charset=UTF-8"})


def message(*commits: dict[str, Any], size: int | None = None) -> dict[str, Any]:
    bits = {"__t": "E", "__v": {"d": "AA==", "s": [1, 2]}}
    return {"ver": VERSION, "f": bits, "s": len(commits) if size is None else size, "c": list(commits)}


# --- sessions -------------------------------------------------------------------------------------------------------


def session_answer(request: httpx2.Request, *, root_extra: dict[str, Any] | None = None) -> dict[str, Any]:
    root = owned("the-root").session.to_json()
    return {
        "session": {"id": "new", "publicKey": json.loads(request.content)["publicKey"], "expiration": 1798121328.246},
        "roots": [{**root, **(root_extra or {})}],
    }


async def test_a_new_session_has_the_servers_id_and_the_clients_own_key() -> None:
    seen: list[httpx2.Request] = []

    def handler(request: httpx2.Request) -> httpx2.Response:
        seen.append(request)
        return httpx2.Response(200, json=session_answer(request))

    session, roots = await client_of(handler).create_session()

    assert (seen[0].method, str(seen[0].url)) == ("POST", URL + "/auth/session")
    assert session.id == "new"
    assert session.session.expiration_ms == 1798121328246
    assert session.signer.public_key == session.session.public_key
    assert [root.id for root in roots] == ["the-root"]
    assert "d" not in json.loads(seen[0].content)["publicKey"], "a private key was sent"


async def test_a_root_that_comes_with_a_private_key_is_named_and_the_key_is_not_kept() -> None:
    private = {"kty": "EC", "crv": "P-384", "d": "SECRET-PART", "x": "x", "y": "y"}

    def handler(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, json=session_answer(request, root_extra={"privateKey": private}))

    new = await client_of(handler).new_session()

    assert new.leaked == ("the-root",)
    assert "SECRET-PART" not in repr(new)
    assert all("privateKey" not in root.extra for root in new.roots)


@pytest.mark.parametrize(
    "answer", [b"", b"nonsense", b"{}", b"[]", b"null", b'{"session":{},"roots":[]}', b'{"session":null,"roots":[]}']
)
async def test_an_answer_that_is_no_session_is_refused_by_name(answer: bytes) -> None:
    client = client_of(lambda _: httpx2.Response(200, content=answer))
    with pytest.raises(NodeRefusedError, match=r"POST http://goat\.test:8080/auth/session"):
        await client.create_session()


async def test_a_session_for_another_key_is_rejected() -> None:
    def handler(request: httpx2.Request) -> httpx2.Response:
        answer = session_answer(request)
        answer["session"]["publicKey"] = owned("other").session.public_key.to_jwk()
        return httpx2.Response(200, json=answer)

    with pytest.raises(NodeRefusedError, match="another key"):
        await client_of(handler).create_session()


# --- sync -----------------------------------------------------------------------------------------------------------


async def test_a_batch_is_signed_afresh_and_comes_back_in_order() -> None:
    signer = owned()
    seen: list[httpx2.Request] = []

    def handler(request: httpx2.Request) -> httpx2.Response:
        seen.append(request)
        return replies(request, message(size=1), message(size=2))

    client = client_of(handler)
    for _ in range(2):
        answer = await client.batch_sync([("/data/a", message()), ("data/b", message())], signer)
        assert [reply["s"] for reply in answer] == [1, 2]

    assert [element["path"] for element in json.loads(seen[0].content)] == ["/data/a", "data/b"]
    headers = [request.headers["x-goat-sig"] for request in seen]
    for header in headers:
        verify_request(signer.session, header, now_ms=NOW_MS)
    assert parse_signature(headers[0]).data["id"] != parse_signature(headers[1]).data["id"]


async def test_the_time_to_sign_with_can_be_given() -> None:
    signer = owned()
    seen: list[str] = []

    def handler(request: httpx2.Request) -> httpx2.Response:
        seen.append(request.headers["x-goat-sig"])
        return httpx2.Response(200, content=b"[]")

    await client_of(handler).batch_sync([], signer, NOW_MS - 1_000_000)
    with pytest.raises(ClockSkewError):
        verify_request(signer.session, seen[0], now_ms=NOW_MS)


@pytest.mark.parametrize(
    "answer",
    [
        b"[]",
        b"{}",
        b'[{"path":"/data/b","res":{}}]',
        b'[{"path":"/data/a"}]',
        b'[{"path":"/data/a","res":[]}]',
        b"[5]",
        b'[{"path":"/data/a","res":{}},{"path":"/data/a","res":{}}]',
    ],
)
async def test_replies_that_do_not_fit_the_request_are_refused(answer: bytes) -> None:
    client = client_of(lambda _: httpx2.Response(200, content=answer))
    with pytest.raises(NodeRefusedError, match=r"POST http://goat\.test:8080/batch-sync"):
        await client.batch_sync([("/data/a", message())], owned())


async def test_whether_a_server_trusts_a_session_is_read_from_its_answer_to_an_empty_batch() -> None:
    bodies: list[bytes] = []

    def handler(status: int) -> Handler:
        def handle(request: httpx2.Request) -> httpx2.Response:
            bodies.append(request.content)
            return httpx2.Response(status, content=b"[]" if status == 200 else b"")

        return handle

    assert await client_of(handler(200)).answers(owned()) is True
    assert await client_of(handler(403)).answers(owned()) is False
    with pytest.raises(NodeRefusedError) as refusal:
        await client_of(handler(500)).answers(owned())
    assert refusal.value.status == 500
    assert bodies == [b"[]"] * 3


async def test_whether_a_server_accepts_a_signature_is_read_from_its_answer_to_an_empty_batch() -> None:
    asked: list[tuple[bytes, str]] = []

    def handler(status: int) -> Handler:
        def handle(request: httpx2.Request) -> httpx2.Response:
            asked.append((request.content, request.headers["x-goat-sig"]))
            return httpx2.Response(status, content=b"[]" if status == 200 else b"")

        return handle

    assert await client_of(handler(200)).accepts_signature("old") is True
    assert await client_of(handler(403)).accepts_signature("old") is False
    with pytest.raises(NodeRefusedError):
        await client_of(handler(500)).accepts_signature("old")
    assert set(asked) == {(b"[]", "old")}


async def test_a_push_goes_out_in_chunks_and_asks_for_nothing_back() -> None:
    seen: list[dict[str, Any]] = []

    def handler(request: httpx2.Request) -> httpx2.Response:
        seen.append(json.loads(request.content)[0]["msg"])
        return replies(request, message(size=len(seen)))

    commits = [{"id": f"c{n}"} for n in range(1201)]
    reply = await client_of(handler).push("/data/a", commits, owned())

    assert [len(sent["c"]) for sent in seen] == [500, 500, 201]
    assert [commit for sent in seen for commit in sent["c"]] == commits
    assert all(sent["f"]["__v"]["s"] == [] for sent in seen), "no seeds: 'I have everything'"
    assert reply is not None
    assert reply["s"] == 3
    assert await client_of(handler).push("/data/a", [], owned()) is None


async def test_a_pull_asks_on_with_a_truthful_filter_until_a_server_that_caps_its_replies_has_sent_all() -> None:
    stored = [{"id": f"commit-{n}", "k": str(n)} for n in range(25)]
    rounds: list[int] = []

    def handler(request: httpx2.Request) -> httpx2.Response:
        sent = json.loads(request.content)[0]["msg"]
        known = BloomFilter.from_json(sent["f"]["__v"])
        lacking = [commit for commit in stored if commit["id"] not in known]
        rounds.append(len(lacking))
        return replies(request, message(*lacking[:10], size=len(stored)))

    assert await client_of(handler).pull("/data/a", owned()) == stored
    assert rounds == [25, 15, 5]


@pytest.mark.parametrize("depth", [201, 1_100, 100_000])
async def test_a_commit_that_is_nested_too_deeply_is_left_out_of_an_answer_with_others(depth: int) -> None:
    commits = [{"id": f"c{index}", "k": "key", "text": "x" * 100} for index in range(3)]

    def handler(request: httpx2.Request) -> httpx2.Response:
        answer = replies(request, message(*commits, size=3), message(commits[0])).content.decode()
        nested = "[" * depth + "]" * depth
        return httpx2.Response(200, content=answer.replace('"c1", "k": "key"', f'"c1", "k": {nested}'))

    requests = [("/data/a", message()), ("/data/b", message())]
    first, second = await client_of(handler).batch_sync(requests, owned())
    assert ([commit["id"] for commit in first["c"]], first["s"]) == (["c0", "c2"], 3)
    assert second["c"] == commits[:1]


async def test_a_large_answer_is_parsed_beside_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: set[threading.Thread] = set()
    commits = [{"id": f"c{index}", "k": "key", "text": "x" * 100} for index in range(100)]

    def parse(content: bytes, most: int) -> list[Any]:
        threads.add(threading.current_thread())
        return read_answer(content, most)

    monkeypatch.setattr(client, "read_answer", parse)
    monkeypatch.setattr(client, "_BIG_ANSWER", 1000)
    (reply,) = await client_of(lambda request: replies(request, message(*commits))).batch_sync(
        [("/data/a", message())], owned()
    )
    assert reply == message(*commits)
    assert threads
    assert threading.main_thread() not in threads


async def test_an_answer_that_is_nested_too_deeply_outside_of_its_commits_is_invalid() -> None:
    nested = b"[" * 300 + b"]" * 300

    def handler(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, content=b'[{"path":"/data/a","res":{"x":{"y":' + nested + b"}}}]")

    with pytest.raises(NodeRefusedError, match="nested deeper than 200"):
        await client_of(handler).batch_sync([("/data/a", message())], owned())


async def test_a_pull_ends_although_a_server_promises_more_than_it_sends() -> None:
    client = client_of(lambda request: replies(request, message({"id": "only"}, size=1000)))
    assert await client.pull("/data/a", owned()) == [{"id": "only"}]


# --- Goatherd's own -------------------------------------------------------------------------------------------------


async def test_the_identity_of_a_server_that_is_not_ours_is_none() -> None:
    ours = {"org": "localhost", "signer": "r", "roots": ["r"]}
    assert await client_of(lambda _: httpx2.Response(200, json=ours)).identity() == ServerIdentity(
        org="localhost", signer="r", roots=("r",)
    )
    assert await client_of(lambda _: httpx2.Response(404)).identity() is None
    assert await client_of(lambda _: httpx2.Response(200, html="<html>index</html>")).identity() is None
    with pytest.raises(NodeRefusedError):
        await client_of(lambda _: httpx2.Response(500)).identity()


async def test_a_refresh_is_signed_and_reports_what_the_server_says() -> None:
    signer = owned()

    def handler(request: httpx2.Request) -> httpx2.Response:
        verify_request(signer.session, request.headers["x-goat-sig"], now_ms=NOW_MS)
        assert (request.method, request.url.path) == ("POST", "/goatherd/v1/refresh")
        return httpx2.Response(200, json={"generation": 3, "changed": True})

    assert await client_of(handler).refresh(signer) == {"generation": 3, "changed": True}
    assert await client_of(lambda _: httpx2.Response(404)).refresh(signer) is None
    with pytest.raises(NodeRefusedError) as refusal:
        await client_of(lambda _: httpx2.Response(403)).refresh(signer)
    assert refusal.value.status == 403


# --- trouble --------------------------------------------------------------------------------------------------------


@pytest.fixture
async def silent_server() -> AsyncIterator[str]:
    """Yield a server that accepts connections and never answers."""

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_silence_ends_at_the_deadline_and_names_the_url(silent_server: str) -> None:
    async with NodeClient(silent_server, timeout=timedelta(milliseconds=50)) as client:
        with pytest.raises(NodeUnreachableError, match=f"{silent_server}/batch-sync.*0.05 s"):
            await client.answers(owned())
        assert await client.healthy() is False


@pytest.mark.parametrize("packed", [False, True])
async def test_an_answer_without_end_is_cut_off_also_one_that_unpacks_to_one(
    monkeypatch: pytest.MonkeyPatch, packed: bool
) -> None:
    monkeypatch.setattr("goatherd.cluster.client.MAX_ANSWER_BYTES", 3 << 20)
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        packer = zlib.compressobj(wbits=31)
        for _ in range(1000):
            sent += 1
            part = b"x" * (1 << 20)
            yield packer.compress(part) + packer.flush(zlib.Z_SYNC_FLUSH) if packed else part

    headers = {"content-encoding": "gzip"} if packed else {}
    client = client_of(lambda _: httpx2.Response(200, headers=headers, content=endless()))
    with pytest.raises(NodeRefusedError, match=r"/auth/session: the answer is longer than 3 MiB"):
        await client.create_session()
    assert sent == 4


@pytest.mark.parametrize("ask", ["identity", "answers", "refresh", "healthy", "new_session"])
@pytest.mark.slow
async def test_a_small_answer_that_unpacks_to_a_large_one_is_cut_off_where_no_commits_are_asked_for(ask: str) -> None:
    """Parsed, it would take many gigabytes of the process that rotates."""
    packed = gzip.compress(b"[%s]" % b",".join([b"[]"] * 3_000_000))
    headers = {"content-encoding": "gzip"}
    client = client_of(lambda _: httpx2.Response(200, headers=headers, content=packed))
    with pytest.raises(NodeRefusedError, match="the answer is longer than 8 MiB"):
        await getattr(client, ask)(*([owned()] if ask in ("answers", "refresh") else []))


async def test_a_packed_answer_is_read() -> None:
    headers = {"content-encoding": "gzip"}
    assert await client_of(lambda _: httpx2.Response(200, headers=headers, content=gzip.compress(b"[]"))).answers(
        owned()
    )


@pytest.fixture
def deaf_address() -> Iterator[tuple[str, int]]:
    """Yield an address that drops connection requests, because the queue of its socket is full."""
    with ExitStack() as stack:
        full = stack.enter_context(socket.socket())
        full.bind(("127.0.0.2", 0))
        full.listen(0)
        address: tuple[str, int] = full.getsockname()
        for _ in range(2):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(address)
        with pytest.raises(TimeoutError), socket.create_connection(address, timeout=0.2):
            pass
        yield address


@pytest.mark.skipif(sys.platform != "linux", reason="127.0.0.2 and full queues are Linux's")
async def test_a_name_whose_first_address_drops_packets_is_reached_at_the_next_one(
    deaf_address: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    deaf, port = deaf_address

    def find_both(*_: object, **__: object) -> list[tuple[object, ...]]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port)) for each in (deaf, "127.0.0.1")]

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nOK")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", port):
        monkeypatch.setattr(socket, "getaddrinfo", find_both)
        monkeypatch.setenv("NO_PROXY", "*")
        async with NodeClient(f"http://two-addresses.test:{port}", timeout=timedelta(seconds=HANG)) as client:
            assert await client.healthy()


async def test_a_refused_connection_is_unreachable_and_names_the_url() -> None:
    async with NodeClient("http://127.0.0.1:1") as client:
        with pytest.raises(NodeUnreachableError, match=r"http://127\.0\.0\.1:1/auth/session") as error:
            await client.create_session()
        assert error.value.retryable
        assert await client.healthy() is False


async def test_a_name_without_an_address_is_stated_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def find_none(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", find_none)
    monkeypatch.setenv("NO_PROXY", "*")
    async with NodeClient("http://no-address.test:80") as client:
        with pytest.raises(NodeUnreachableError, match=r"/auth/session: the name of the host cannot be resolved$"):
            await client.create_session()


@pytest.mark.parametrize("url", ["http://[", "http://h:99999", "h:80", "http://me:secret@h"])
def test_a_client_of_what_is_no_server_url_is_refused_before_it_connects(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        NodeClient(url)
    assert "secret" not in str(caught.value)


async def test_a_pool_that_was_lent_stays_open() -> None:
    http = httpx2.AsyncClient(transport=httpx2.MockTransport(lambda _: httpx2.Response(200, text="OK")))
    async with NodeClient(URL, http=http) as client:
        assert await client.healthy()
    assert not http.is_closed
    await http.aclose()


async def test_a_client_that_is_closed_during_a_request_leaves_no_connection_open() -> None:
    ended: list[asyncio.Task[Any] | None] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ended.append(asyncio.current_task())
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        assert await reader.read() == b"", "the client closes the connection"
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        for rounds in range(40):  # of the event loop, so that the request is connecting, sending, or waiting
            client = NodeClient(url, timeout=timedelta(seconds=HANG))
            request = asyncio.create_task(client.healthy())
            for _ in range(rounds):
                await asyncio.sleep(0)
            await client.aclose()
            assert await request
        assert len(ended) == 40
        await asyncio.wait_for(asyncio.gather(*filter(None, ended)), HANG)


class Well(BaseHTTPRequestHandler):
    """A server that answers every GET and keeps connections open."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


# The connections of a loop that has ended are left to the garbage collector.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_client_works_in_one_event_loop_after_the_other() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Well) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        client = NodeClient(f"http://127.0.0.1:{server.server_port}")
        assert [asyncio.run(client.healthy()) for _ in range(3)] == [True, True, True]
        asyncio.run(client.aclose())
        server.shutdown()
        gc.collect()


async def test_a_server_of_a_newer_goatdb_is_named_by_its_keys() -> None:
    key = {"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}
    session = {"id": "new", "publicKey": key, "expiration": 1_795_000_000}
    client = client_of(lambda _: httpx2.Response(200, json={"session": session, "roots": []}))
    with pytest.raises(
        NodeRefusedError, match=r"an Ed25519 key, which is a newer GoatDB's key; Goatherd supports .*0\.5"
    ):
        await client.new_session()


# --- the module -----------------------------------------------------------------------------------------------------


def test_importing_the_client_does_not_import_the_http_library() -> None:
    code = "import sys, goatherd.cluster.client; sys.exit('httpx2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_public_keys_compare_by_value() -> None:
    """`new_session` relies on it to notice the session has another key."""
    jwk = owned().session.public_key.to_jwk()
    assert PublicKey.from_jwk(jwk) == PublicKey.from_jwk(dict(jwk))


@pytest.mark.parametrize(
    ("location", "shown"),
    [
        ("https://goat.test/healthy", "a redirect to https://goat.test/healthy, "),
        ("https://me:secret@goat.test/?token=secret", "a redirect to https://…@goat.test/?…, "),
    ],
)
async def test_a_redirect_is_named_with_its_target(location: str, shown: str) -> None:
    client = client_of(lambda _: httpx2.Response(308, headers={"location": location}))
    with pytest.raises(NodeRefusedError) as raised:
        await client.identity()
    assert f"status 308, {shown}" in str(raised.value)
    assert "secret" not in str(raised.value)
    assert "https://" in (raised.value.hint or "")
