"""A client of one GoatDB server: get a session, synchronize commits, and send the requests that only Goatherd answers.

The client works with unmodified GoatDB servers and with Goatherd's. It is not a replica: it stores and merges no
commits. It parses answers and does not trust them; the caller verifies signatures. One timeout covers connecting,
sending and the whole answer, which may have at most `MAX_ANSWER_BYTES`. The client does not retry; callers do. The
signature of a request covers the server process, the endpoint and the body (`goatherd.identity.request_binding`). A
request is signed a second time only if another server process answers.

Errors: `NodeUnreachableError` (no connection, no answer in time, no HTTP) and `NodeRefusedError` (a refusal, or an
answer that no GoatDB server would give). Their messages contain the URL.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import quote

import orjson

from goatherd.clock import Clock, RemoteClock, SystemClock, read_http_date
from goatherd.cluster.server_answers import (
    HeldCommit,
    ServerIdentity,
    make_printable,
    read_entries,
    read_refresh,
    read_sync_reply,
    read_texts,
)
from goatherd.errors import (
    DecodeError,
    InvalidAnswerError,
    NodeRefusedError,
    NodeUnreachableError,
    SignerError,
    UnsignedRequestError,
)
from goatherd.identity.request_binding import MAX_AUDIENCE, MISDIRECTED, RequestBinding, sign_bound_request
from goatherd.identity.session import OwnedSession, Session
from goatherd.ids import new_id, new_seeds
from goatherd.server_url import parse_server_url
from goatherd.wire.bloom import BloomFilter, seed_count
from goatherd.wire.json import parse_json, to_json_bytes
from goatherd.wire.messages import VERSION

if TYPE_CHECKING:
    from types import TracebackType

    import httpx2

DEFAULT_TIMEOUT: Final = timedelta(seconds=5)
PUSH_CHUNK: Final = 500
PULL_ROUNDS: Final = 200
# GoatDB puts everything into one answer (Goatherd: 64 MiB), which may be a million commits of a kilobyte.
MAX_ANSWER_BYTES: Final = 1024 * 1024 * 1024

Message = dict[str, Any]

_EMPTY_FILTER: Final = {"__t": "E", "__v": {"d": "AA==", "s": [1, 2]}}
_FULL_FILTER: Final = {"__t": "E", "__v": {"d": "AA==", "s": []}}
_PULL_ERROR_RATE: Final = 1e-6

_UNUSED: Final = "/goatherd/v1/unused"
INSTANCE_HEADER: Final = "x-goatherd-instance"
"""Header with the id of the server process that answers a ``/batch-sync`` request."""
SENDER_HEADER: Final = "x-goatherd-sender"
"""Header with the id of the server process that sends a ``/batch-sync`` request, or `NO_SERVER`."""
NO_SERVER: Final = "-"
_INSTANCE: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_HINTS: Final = {
    403: "The server does not trust the session that signed, or its clock differs.",
    MISDIRECTED: "Several servers may answer at this URL. List each of them by a URL of its own.",
}


class Sendable(Protocol):
    """The interface of an object that can be pushed: a `goatherd.wire.commit.Commit`, or one that encodes as such."""

    def to_json(self) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class NewSession:
    """The answer to ``POST /auth/session``.

    Attributes:
        owned: The new session with the key made for it.
        roots: The roots that the server publishes; unverified.
        leaked: Ids of the roots whose private key the server published: those keys are exposed.
    """

    owned: OwnedSession
    roots: tuple[Session, ...]
    leaked: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Answer:
    """A complete HTTP answer, decompressed."""

    status_code: int
    headers: Mapping[str, str]
    content: bytes


class NodeClient:
    """An HTTP client of one GoatDB server. Safe for concurrent calls.

    Use it as an async context manager, or call `aclose` at the end.

    Args:
        base_url: The server's URL: scheme, host and port.
        http: A connection pool to use, which the caller closes. By default the client makes its own.
        timeout: Timeout of each request, from connecting to the last byte of the answer. GoatDB's own peers use 5 s.
        clock: The clock for the time in request signatures, unless a call gives `now_ms`.
        server_name: The server's name, if it differs from the URL's host: requests are addressed to this name, and the
            certificate must have it.
        org: The organization to ask about, if an agent's server has several.
        sender: Id of the server process that sends the requests.

    Attributes:
        answered_by: Id of the server process that answered the last `batch_sync`; None if it did not report one.
            Several processes may answer at one URL.

    Raises:
        ConfigurationError: `base_url` is not a URL with scheme, host and port.
    """

    def __init__(
        self,
        base_url: str,
        *,
        http: httpx2.AsyncClient | None = None,
        timeout: timedelta = DEFAULT_TIMEOUT,
        clock: Clock | None = None,
        server_name: str | None = None,
        org: str | None = None,
        sender: str = NO_SERVER,
    ) -> None:
        self.base_url = str(parse_server_url(base_url))
        self._http = http
        self._owns_http = http is None
        self._timeout = timeout
        self._clock: Clock = clock or SystemClock()
        self._server_name = server_name
        self._org = org
        self._sender = sender
        self._server_clock = RemoteClock(self._clock)
        self.answered_by: str | None = None
        self._instances: dict[str, None] = {}

    @property
    def timeout(self) -> timedelta:
        """The timeout of each request."""
        return self._timeout

    async def __aenter__(self) -> NodeClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections, unless the caller provided the connection pool."""
        if self._owns_http and self._http is not None:
            http, self._http = self._http, None
            await http.aclose()

    # --- sessions ---------------------------------------------------------------------------------------------------

    async def create_session(self) -> tuple[OwnedSession, list[Session]]:
        """Create an anonymous session with a new key; return it and the roots that the server publishes.

        Raises:
            NodeUnreachableError, NodeRefusedError: See the module.
        """
        new = await self.new_session()
        return new.owned, list(new.roots)

    async def new_session(self) -> NewSession:
        """Create a session as `create_session` does, and report whether the answer had a root's private key.

        SECURITY: a private key in the answer is noticed and dropped, never kept (tests/unit/cluster/test_client.py).

        Raises:
            NodeUnreachableError, NodeRefusedError: See the module.
        """
        draft = OwnedSession.generate(session_id="draft", owner=None, now_ms=self._clock.now_ms())
        body = to_json_bytes({"publicKey": draft.session.public_key.to_jwk()})
        url = "/auth/session"
        answer = await self._json("POST", url, content=body)
        try:
            if not isinstance(answer, dict):
                raise DecodeError("must be an object")
            session = Session.from_json(answer.get("session") or {})
            raw = read_entries(answer, "roots")
            roots = tuple(Session.from_json(root) for root in raw)
            leaked = tuple(make_printable(root["id"]) for root in raw if "privateKey" in root)
        except DecodeError as error:
            raise self._nonsense("POST", url, f"it is not a session: {error}") from None
        if session.public_key != draft.session.public_key:
            raise self._nonsense("POST", url, "the session has another key")
        return NewSession(OwnedSession(session=session, signer=draft.signer), roots, leaked)

    # --- sync -------------------------------------------------------------------------------------------------------

    async def batch_sync(
        self, requests: Sequence[tuple[str, Mapping[str, Any]]], signer: OwnedSession, now_ms: int | None = None
    ) -> list[Message]:
        """Send one ``POST /batch-sync`` and return the replies' messages in the order of `requests`.

        Args:
            requests: Repository paths, sent as given, each with the JSON of a sync message.
            signer: The session that signs the request.
            now_ms: The time to sign with; the client's clock by default.

        Raises:
            NodeUnreachableError, NodeRefusedError: See the module. Status 403: the server does not trust `signer`.
        """
        body = to_json_bytes([{"path": path, "msg": message} for path, message in requests])
        response = await self._send_signed("/batch-sync", body, signer, now_ms)
        self._check("POST", "/batch-sync", response)
        answer = self._parse("POST", "/batch-sync", response)
        self.answered_by = self._learn_instance(response.headers.get(INSTANCE_HEADER))
        if not isinstance(answer, list) or len(answer) != len(requests):
            raise self._nonsense("POST", "/batch-sync", "the number of replies differs from the number of requests")
        replies: list[Message] = []
        for (path, _), reply in zip(requests, answer, strict=True):
            if not isinstance(reply, dict) or reply.get("path") != path:
                raise self._nonsense("POST", "/batch-sync", f"the reply for {path} is missing")
            try:
                replies.append(read_sync_reply(reply.get("res")))
            except DecodeError as error:
                raise self._nonsense("POST", "/batch-sync", f"the reply for {path}: {error}") from None
        return replies

    async def answers(self, signer: OwnedSession, now_ms: int | None = None) -> bool:
        """Return whether the server accepts an empty batch signed by `signer`, which means that it trusts `signer`.

        Raises:
            NodeUnreachableError: See the module.
            NodeRefusedError: The status is neither 200 nor 403.
        """
        try:
            await self.batch_sync([], signer, now_ms)
        except NodeRefusedError as error:
            if error.status == 403:
                return False
            raise
        return True

    async def accepts_signature(self, signature: str) -> bool:
        """Return whether the server accepts an empty batch with the given request signature, of any session and time.

        Raises:
            NodeUnreachableError: See the module.
            NodeRefusedError: The status is neither 200 nor 403.
        """
        headers = {"x-goat-sig": signature, SENDER_HEADER: self._sender}
        response = await self._send("POST", "/batch-sync", content=b"[]", headers=headers)
        if response.status_code in (403, MISDIRECTED):
            return False
        self._check("POST", "/batch-sync", response)
        return True

    async def push(
        self,
        path: str,
        commits: Iterable[Sendable | Mapping[str, Any]],
        signer: OwnedSession,
        now_ms: int | None = None,
    ) -> Message | None:
        """Send commits, in messages of at most `PUSH_CHUNK`, without requesting any; return the last reply.

        GoatDB does not report refused commits: status 200 does not mean that they were stored. To be sure, `pull` the
        repository and check (the Bloom filter in the reply has false positives).

        Returns:
            The last reply's message, or None if there was nothing to push.

        Raises:
            NodeUnreachableError, NodeRefusedError: See the module.
        """
        encoded = [dict(commit) if isinstance(commit, Mapping) else commit.to_json() for commit in commits]
        reply: Message | None = None
        for start in range(0, len(encoded), PUSH_CHUNK):
            chunk = encoded[start : start + PUSH_CHUNK]
            message = {"ver": VERSION, "f": _FULL_FILTER, "s": len(chunk), "c": chunk, "ad": []}
            (reply,) = await self.batch_sync([(path, message)], signer, now_ms)
        return reply

    async def pull(
        self, path: str, signer: OwnedSession, now_ms: int | None = None, *, known: Collection[str] = ()
    ) -> list[dict[str, Any]]:
        """Return every commit of a repository that `signer` may read, as the server sent them: unverified.

        A server may send the commits in several replies; the client repeats the request, each time with a filter of the
        commits received so far, until no new commit arrives.

        Args:
            path: The repository.
            signer: The session that signs the requests.
            now_ms: The time to sign with; the client's clock by default.
            known: Ids of commits that the caller has; they are left out.

        Raises:
            NodeUnreachableError, NodeRefusedError: See the module.
        """
        commits: dict[str, dict[str, Any]] = {}
        for _ in range(PULL_ROUNDS):
            held = {*known, *commits}
            message = {"ver": VERSION, "f": _filter_of(held), "s": len(held), "c": [], "ad": []}
            (reply,) = await self.batch_sync([(path, message)], signer, now_ms)
            fresh = {c["id"]: c for c in reply.get("c") or () if isinstance(c.get("id"), str)}
            before = len(commits)
            # A server may send a known commit again, because the Bloom filter has errors.
            commits.update({commit_id: commit for commit_id, commit in fresh.items() if commit_id not in known})
            size = reply.get("s")
            if len(commits) == before or (not known and isinstance(size, int) and len(commits) >= size):
                break
        return list(commits.values())

    # --- Goatherd's own ---------------------------------------------------------------------------------------------

    async def identity(self) -> ServerIdentity | None:
        """Read the server's report on its identity (``GET /goatherd/v1/identity``); None if there is no such endpoint.

        The report is unsigned, and contains ids but no keys.

        Raises:
            NodeUnreachableError, NodeRefusedError: See the module.
        """
        path = f"/goatherd/v1/identity{self._query}"
        response = await self._send("GET", path)
        if response.status_code == 404:
            return None
        self._check("GET", path, response)
        try:
            answer = orjson.loads(response.content)
        except orjson.JSONDecodeError:
            return None  # COMPAT: GoatDB with static assets answers any GET with its index page
        try:
            identity = ServerIdentity.from_json(answer)
        except DecodeError as error:
            raise self._nonsense("GET", path, f"an invalid {error}") from None
        if identity is not None:
            self._learn_instance(identity.instance)
        return identity

    async def refresh(self, signer: OwnedSession, now_ms: int | None = None) -> dict[str, Any] | None:
        """Ask the server to read its settings now (``POST /goatherd/v1/refresh``). `signer` must be a root.

        Returns:
            ``{"generation", "changed"}``, or None if the server is not a Goatherd server.

        Raises:
            NodeUnreachableError, NodeRefusedError: See the module.
        """
        path = "/goatherd/v1/refresh"
        response = await self._send_signed(path, b"", signer, now_ms, query=self._query)
        if response.status_code == 404:
            return None
        self._check("POST", path, response)
        answer = self._parse("POST", path, response)
        try:
            return read_refresh(answer)
        except DecodeError as error:
            raise self._nonsense("POST", path, str(error)) from None

    async def held(
        self, session_id: str, signer: OwnedSession, now_ms: int | None = None, *, early: bool = False
    ) -> bytes:
        """Return the encoded list of a revoked root's commits that the server holds (`goatherd.identity.revocations`).

        Args:
            session_id: The revoked root.
            signer: The root that signs the request.
            now_ms: Milliseconds since 1970.
            early: Whether to ask even if the server does not know of the revocation yet.

        Raises:
            NodeUnreachableError, NodeRefusedError: See the module. Status 404: it is not a Goatherd server. 409: the
                root is not revoked there.
        """
        path = "/goatherd/v1/held"
        body = to_json_bytes({"session": session_id, "early": True} if early else {"session": session_id})
        response = await self._send_signed(path, body, signer, now_ms)
        self._check("POST", path, response)
        return response.content

    async def describe_held(
        self, session_id: str, digests: Sequence[str], signer: OwnedSession, now_ms: int | None = None
    ) -> list[HeldCommit]:
        """Return the server's descriptions of some commits that `held` lists. `signer` is a root.

        Raises:
            NodeUnreachableError, NodeRefusedError: See the module. Status 404: it is not a Goatherd server.
        """
        url = "/goatherd/v1/held"
        body = to_json_bytes({"session": session_id, "early": True, "show": list(digests)})
        response = await self._send_signed(url, body, signer, now_ms)
        self._check("POST", url, response)
        answer = self._parse("POST", url, response)
        try:
            by_digest = {one.digest: one for one in map(HeldCommit.from_json, read_entries(answer, "commits"))}
        except DecodeError as error:
            raise self._nonsense("POST", url, str(error)) from None
        return [by_digest[digest] for digest in digests if digest in by_digest]

    async def lacking(
        self, path: str, commit_ids: Sequence[str], signer: OwnedSession, now_ms: int | None = None
    ) -> list[str]:
        """Return which of the given commits the server does not hold. `signer` is a root.

        Unlike the answer of a Bloom filter, the result is exact.

        Raises:
            NodeUnreachableError, NodeRefusedError: See the module. Status 404: it is not a Goatherd server.
        """
        url = "/goatherd/v1/lacking"
        body = to_json_bytes({"path": path, "commits": list(commit_ids)})
        response = await self._send_signed(url, body, signer, now_ms)
        self._check("POST", url, response)
        answer = self._parse("POST", url, response)
        try:
            return read_texts(answer, "lacking")
        except DecodeError as error:
            raise self._nonsense("POST", url, str(error)) from None

    async def send_unused_sessions(
        self,
        sessions: Sequence[Mapping[str, Any]],
        recipients: Sequence[str],
        signer: OwnedSession,
        now_ms: int | None = None,
    ) -> str:
        """Send the server anonymous sessions that have signed nothing yet, so that it stores them.

        Args:
            sessions: As `goatherd.node.unused_sessions.record_of` makes them.
            recipients: The ids of all server processes that the sessions are sent to, and of the sender.
            signer: A root that the server trusts.
            now_ms: The time to sign with; the client's clock by default.

        Returns:
            The id of the server process that has stored the sessions.

        Raises:
            NodeUnreachableError, NodeRefusedError: See the module. Status 404: it is not a Goatherd server. 409: the
                server refuses, since it has peers that are no recipients and need the sessions' introductions.
        """
        asked = {"sessions": list(sessions), "servers": list(recipients)}
        answer = await self._unused(asked, signer, now_ms)
        instance = self._learn_instance(answer.get("instance"))
        if instance is None:
            raise self._nonsense("POST", _UNUSED, "the instance is missing")
        return instance

    async def unused(self, after: str, signer: OwnedSession, now_ms: int | None = None) -> list[Any]:
        """Return some of the server's sessions that have signed nothing yet, ordered by id, that follow the id `after`.

        Raises:
            NodeUnreachableError, NodeRefusedError: See the module. Status 404: it is not a Goatherd server.
        """
        answer = await self._unused({"sessions": [], "after": after}, signer, now_ms)
        try:
            return read_entries(answer, "sessions")
        except DecodeError as error:
            raise self._nonsense("POST", _UNUSED, str(error)) from None

    async def _unused(self, asked: Mapping[str, Any], signer: OwnedSession, now_ms: int | None) -> dict[str, Any]:
        response = await self._send_signed(_UNUSED, to_json_bytes(asked), signer, now_ms)
        self._check("POST", _UNUSED, response)
        answer = self._parse("POST", _UNUSED, response)
        if not isinstance(answer, dict):
            raise self._nonsense("POST", _UNUSED, "must be an object")
        return answer

    async def keep_frozen(self, body: bytes, signer: OwnedSession, now_ms: int | None = None) -> None:
        """Send the server the list of a revoked root's commits that stay valid (frozen commits). `signer` is a root.

        Raises:
            NodeUnreachableError, NodeRefusedError: See the module. Status 404: it is not a Goatherd server.
        """
        path = "/goatherd/v1/frozen"
        response = await self._send_signed(path, body, signer, now_ms)
        self._check("POST", path, response)

    async def frozen(self, digest: str) -> bytes | None:
        """Read from the server the list of frozen commits with this SHA-256, unverified; None if the server lacks it.

        Raises:
            NodeUnreachableError, NodeRefusedError: See the module.
        """
        path = f"/goatherd/v1/frozen/{digest}"
        response = await self._send("GET", path)
        if response.status_code == 404:
            return None
        self._check("GET", path, response)
        return response.content

    async def healthy(self) -> bool:
        """Return whether ``GET /healthy`` reports a healthy server; an unreachable server is not healthy."""
        try:
            response = await self._send("GET", "/healthy")
        except NodeUnreachableError:
            return False
        return response.status_code == 200

    async def time_ms(self) -> int | None:
        """Return the server's time in milliseconds since 1970, in whole seconds; None if it does not report it.

        Raises:
            NodeUnreachableError: See the module.
        """
        response = await self._send("GET", "/healthy")
        return read_http_date(response.headers.get("date"))

    def clock_ahead_ms(self, now_ms: int) -> int | None:
        """Return how far the server's clock is ahead of `now_ms`, negative if behind, by the date of its last answer.

        Args:
            now_ms: This machine's time, in milliseconds since 1970.

        Returns:
            Milliseconds; None if no answer had a date.
        """
        return self._server_clock.ahead_ms(now_ms)

    # --- inside -----------------------------------------------------------------------------------------------------

    @property
    def _query(self) -> str:
        """The query string that tells an agent with several organizations which of them is meant."""
        return "" if self._org is None else f"?org={quote(self._org, safe='')}"

    async def _send_signed(
        self, path: str, body: bytes, signer: OwnedSession, now_ms: int | None, *, query: str = ""
    ) -> _Answer:
        """Send a ``POST`` whose signature is valid for this server process and this request only.

        The query is not part of what is signed. A server process that is not the one named in the request answers 421
        and its own id, since several processes may answer at one URL.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + self._timeout.total_seconds()
        binding = RequestBinding.for_request("POST", path, body, tuple(self._instances))
        while True:
            time_ms = self._clock.now_ms() if now_ms is None else now_ms
            if signer.is_remote:
                signature = await self._sign_remotely(path, signer, binding, time_ms)
            else:
                signature = sign_bound_request(signer, binding, now_ms=time_ms, nonce=new_id())
            left = max(0.0, until - loop.time())
            headers = {"x-goat-sig": signature, SENDER_HEADER: self._sender}
            response = await self._send("POST", path + query, content=body, headers=headers, limit=left)
            if response.status_code != MISDIRECTED:
                return response
            instance = self._learn_instance(response.headers.get(INSTANCE_HEADER))
            if instance is None or instance in binding.audience or len(binding.audience) == MAX_AUDIENCE:
                return response
            binding = replace(binding, audience=(*binding.audience, instance))

    async def _sign_remotely(self, path: str, signer: OwnedSession, binding: RequestBinding, time_ms: int) -> str:
        from goatherd.remote_keys import run_remote  # only direct mode needs it

        def sign() -> str:
            return sign_bound_request(signer, binding, now_ms=time_ms, nonce=new_id())

        try:
            async with asyncio.timeout(self._timeout.total_seconds()):
                return await run_remote(sign)
        except SignerError as error:
            problem = f"POST {self.base_url}{path}: the request was not signed: {error}"
            raise UnsignedRequestError(problem, hint=error.hint) from error
        except TimeoutError:
            patience = f"{self._timeout.total_seconds():g} s"
            problem = f"POST {self.base_url}{path}: the signer of root {signer.id} did not sign within {patience}"
            raise UnsignedRequestError(problem) from None

    def _learn_instance(self, told: object) -> str | None:
        """Record which server process answers at the URL; return its id, or None if `told` is no valid id."""
        if not isinstance(told, str) or _INSTANCE.fullmatch(told) is None:
            return None
        self._instances.pop(told, None)
        self._instances[told] = None
        while len(self._instances) >= MAX_AUDIENCE:
            del self._instances[next(iter(self._instances))]
        return told

    def _pool(self) -> httpx2.AsyncClient:
        if self._http is None:
            import httpx2

            # Building a TLS context costs 150 ms; a plain http URL needs none, and redirects are not followed.
            self._http = httpx2.AsyncClient(verify=not self.base_url.startswith("http://"), timeout=None)
        return self._http

    async def _send(
        self,
        method: str,
        path: str,
        *,
        content: bytes | None = None,
        headers: dict[str, str] | None = None,
        limit: float | None = None,
    ) -> _Answer:
        import httpx2

        url = self.base_url + path
        patience = self._timeout.total_seconds()
        limit = patience if limit is None else limit
        extensions = {}
        if self._server_name is not None:
            # SECURITY: the certificate is checked against this name, not only sent it
            # (tests/unit/cluster/test_discovery.py).
            extensions["sni_hostname"] = self._server_name
            port = httpx2.URL(url).port
            name = self._server_name if port is None else f"{self._server_name}:{port}"
            headers = {**(headers or {}), "host": name}
        began = self._clock.monotonic()
        try:
            async with (
                asyncio.timeout(limit),
                self._pool().stream(
                    method, url, content=content, headers=headers, timeout=limit, extensions=extensions
                ) as answer,
            ):
                self._server_clock.note_date(answer.headers.get("date"), began=began)
                # SECURITY: an endless answer, or a small one that decompresses to it, must not fill the memory
                # (tests/unit/cluster/test_client.py).
                parts: list[bytes] = []
                size = 0
                async for part in answer.aiter_bytes():
                    size += len(part)
                    if size > MAX_ANSWER_BYTES:
                        raise NodeRefusedError(
                            f"{method} {url}: the answer is longer than {MAX_ANSWER_BYTES >> 20} MiB",
                            status=answer.status_code,
                            hint="Check that this is a GoatDB server. If it is, its data is too large for one answer.",
                        )
                    parts.append(part)
                return _Answer(answer.status_code, answer.headers, b"".join(parts))
        except (TimeoutError, httpx2.TimeoutException) as error:
            raise NodeUnreachableError(f"{method} {url}: no answer within {patience:g} s") from error
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise NodeUnreachableError(f"{method} {url}: {_connection_problem(error)}") from error

    async def _json(self, method: str, path: str, *, content: bytes, headers: dict[str, str] | None = None) -> Any:
        response = await self._send(method, path, content=content, headers=headers)
        self._check(method, path, response)
        return self._parse(method, path, response)

    def _parse(self, method: str, path: str, response: _Answer) -> Any:
        try:
            return parse_json(response.content)
        except DecodeError as error:
            raise self._nonsense(method, path, str(error)) from None

    def _check(self, method: str, path: str, response: _Answer) -> None:
        status = response.status_code
        if status != 200:
            hint = _HINTS.get(status)
            raise NodeRefusedError(f"{method} {self.base_url}{path}: status {status}", status=status, hint=hint)

    def _nonsense(self, method: str, path: str, what: str) -> InvalidAnswerError:
        return InvalidAnswerError(
            f"{method} {self.base_url}{path}: answered 200, but the content is invalid: {what}",
            status=200,
            hint="Check that this URL is that of a GoatDB server.",
        )


def _connection_problem(error: Exception) -> str:
    """Return in a few words why a connection to a server failed."""
    text = str(error) or type(error).__name__
    if "WRONG_VERSION_NUMBER" in text or "HTTP_REQUEST" in text or "RECORD_LAYER_FAILURE" in text:
        return "the port does not speak TLS; is the URL http:// and not https://?"
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return f"the server's certificate is not trusted: {text.partition('CERTIFICATE_VERIFY_FAILED] ')[2] or text}"
    if text == "All connection attempts failed":
        return "connection refused, or no route to the host"
    return text


def _filter_of(commits: Collection[str]) -> Any:
    if not commits:
        return _EMPTY_FILTER
    size = len(commits)
    bloom = BloomFilter.for_size(size, _PULL_ERROR_RATE, new_seeds(seed_count(size, _PULL_ERROR_RATE)))
    for commit_id in commits:
        bloom.add(commit_id)
    return {"__t": "E", "__v": bloom.to_json()}
