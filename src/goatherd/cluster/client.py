"""A client of one GoatDB server: get a session, synchronize commits, and send the requests that only Goatherd answers.

The client works with unmodified GoatDB servers and with Goatherd's. It is not a replica: it stores and merges no
commits. It parses answers and does not trust them; the caller verifies signatures. One timeout covers connecting,
sending and the whole answer, whose size is limited (`_most_bytes`). The client does not retry; callers do. The
signature of a request is valid for the endpoint, the body, and the server processes that are known to answer at the URL
(`goatherd.identity.request_binding`). If another process answers, the request is signed again for that process, too.

Errors: `NodeUnreachableError` (no connection, no answer in time, no HTTP) and `NodeRefusedError` (a refusal, or an
answer that no GoatDB server would give). Their messages contain the URL.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import quote

import orjson

from goatherd.clock import Clock, RemoteClock, SystemClock, read_http_date
from goatherd.cluster.node import Sendable
from goatherd.cluster.server_answers import (
    HeldCommit,
    PeerReport,
    ServerIdentity,
    make_printable,
    read_entries,
    read_peers,
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
from goatherd.serving.connection_pool import ConnectionPool
from goatherd.serving.http_client import describe_failure, make_http_client
from goatherd.serving.server_url import masked, parse_server_url
from goatherd.wire.batch import read_answer
from goatherd.wire.bloom import BloomFilter
from goatherd.wire.json import parse_json, to_json_bytes
from goatherd.wire.messages import EncodedMessage, encode_filter, encode_request, filter_of_held

if TYPE_CHECKING:
    import httpx2

T = TypeVar("T")

DEFAULT_TIMEOUT: Final = timedelta(seconds=5)
PUSH_CHUNK: Final = 500
PULL_ROUNDS: Final = 200
# GoatDB puts everything into one answer (Goatherd: 64 MiB), which may be a million commits of a kilobyte.
MAX_ANSWER_BYTES: Final = 1024 * 1024 * 1024
# Ten thousand roots, which a server publishes, have 3 MB.
_SMALL_ANSWER_BYTES: Final = 8 * 1024 * 1024
_BIG_ANSWER: Final = 4 * 1024 * 1024
_DATA: Final = ("/batch-sync", "/goatherd/v1/held", "/goatherd/v1/lacking", "/goatherd/v1/frozen/")

Message = dict[str, Any]

_FULL_FILTER: Final = encode_filter(BloomFilter(b"\0", ()))

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


@dataclass(frozen=True, slots=True)
class NewSession:
    """The answer to ``POST /auth/session``.

    Attributes:
        owned: The new session, with the private key that the client has made for it.
        roots: The roots that the server publishes; unverified.
        leaked: Ids of the roots whose private keys were in the server's answer, so that these keys are exposed.
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
    """An HTTP client of one GoatDB server. Safe for concurrent calls in one event loop.

    Use it as an async context manager, or call `aclose` at the end. In a later event loop it opens new connections.

    Args:
        base_url: The server's URL: scheme, host and port.
        http: A connection pool to use, which the caller closes. By default the client makes its own.
        timeout: Timeout of each request, from connecting to the last byte of the answer. GoatDB's own peers use 5 s.
        clock: The clock for the time in request signatures, unless a call gives `now_ms`.
        server_name: The server's name, if it differs from the URL's host: requests are addressed to this name, and the
            certificate must have it.
        org: The organization that requests are about; needed if the agent at this URL serves several.
        sender: Id of the server process that sends the requests, if a server uses the client.

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
        self._pool = None if http is None else ConnectionPool(http)
        self._owns_pool = http is None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_closed = False
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
        self._is_closed = False
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections, unless the caller provided the connection pool.

        If other tasks wait for answers, the connections are closed when the last of them has ended. A later request
        closes its connection at its end.
        """
        self._is_closed = True
        if self._owns_pool and self._pool is not None:
            pool, self._pool = self._pool, None
            if self._loop is asyncio.get_running_loop():
                await pool.aclose()

    # --- sessions ---------------------------------------------------------------------------------------------------

    async def create_session(self) -> tuple[OwnedSession, list[Session]]:
        """Create an anonymous session with a new key; return it and the roots that the server publishes.

        Raises:
            NodeUnreachableError: No connection to the server, or no answer in time.
            NodeRefusedError: The server refused the request, or its answer is invalid.
        """
        new = await self.new_session()
        return new.owned, list(new.roots)

    async def new_session(self) -> NewSession:
        """Create an anonymous session, and report which roots' private keys were in the server's answer.

        An unmodified server whose root is near its end exposes the key in this way. SECURITY: a private key in the
        answer is noticed and dropped, never kept (tests/unit/cluster/test_client.py).

        Raises:
            NodeUnreachableError: No connection to the server, or no answer in time.
            NodeRefusedError: The server refused the request, or its answer is invalid.
        """
        draft = OwnedSession.generate(session_id="draft", owner=None, now_ms=self._clock.now_ms())

        def read(answer: Any) -> NewSession:
            raw = read_entries(answer, "roots")
            session = Session.from_json(answer.get("session") or {})
            if session.public_key != draft.session.public_key:
                raise DecodeError("the session has another key")
            return NewSession(
                owned=OwnedSession(session=session, signer=draft.signer),
                roots=tuple(Session.from_json(root) for root in raw),
                leaked=tuple(make_printable(root["id"]) for root in raw if "privateKey" in root),
            )

        path = "/auth/session"
        body = to_json_bytes({"publicKey": draft.session.public_key.to_jwk()})
        response = await self._send_request("POST", path, content=body)
        self._check_status("POST", path, response)
        return self._parse_answer(path, response, read)

    # --- sync -------------------------------------------------------------------------------------------------------

    async def batch_sync(
        self,
        requests: Sequence[tuple[str, EncodedMessage | Mapping[str, Any]]],
        signer: OwnedSession,
        now_ms: int | None = None,
    ) -> list[Message]:
        """Synchronize repositories by one ``POST /batch-sync``; return a sync message for each request, in their order.

        Commits that cannot be parsed, such as one with very deeply nested data, are left out.

        Args:
            requests: Repository paths, sent as given, each with a sync message: encoded, or as a JSON object.
            signer: The session that signs the request.
            now_ms: The time to sign with; the client's clock by default.

        Raises:
            NodeUnreachableError: No connection to the server, or no answer in time.
            NodeRefusedError: The server refused the request, or its answer is invalid. Status 403: the server does not
                trust `signer`.
        """
        body = encode_request(requests)
        response = await self._post_signed("/batch-sync", body, signer, now_ms)
        try:
            answer = await _parse_sync_answer(response.content, len(requests))
        except DecodeError as error:
            raise self._make_answer_error("POST", "/batch-sync", str(error)) from None
        self.answered_by = self._learn_instance(response.headers.get(INSTANCE_HEADER))
        if not isinstance(answer, list) or len(answer) != len(requests):
            raise self._make_answer_error(
                "POST", "/batch-sync", "the number of replies differs from the number of requests"
            )
        replies: list[Message] = []
        for (path, _), reply in zip(requests, answer, strict=True):
            if not isinstance(reply, dict) or reply.get("path") != path:
                raise self._make_answer_error("POST", "/batch-sync", f"the reply for {path} is missing")
            try:
                replies.append(read_sync_reply(reply.get("res")))
            except DecodeError as error:
                raise self._make_answer_error("POST", "/batch-sync", f"the reply for {path}: {error}") from None
        return replies

    async def answers(self, signer: OwnedSession, now_ms: int | None = None) -> bool:
        """Return whether the server accepts an empty batch signed by `signer`, which means that it trusts `signer`.

        Raises:
            NodeUnreachableError: No connection to the server, or no answer in time.
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
        """Return whether the server accepts a request with this signature, which any session may have made at any time.

        The request is an empty ``POST /batch-sync``.

        Raises:
            NodeUnreachableError: No connection to the server, or no answer in time.
            NodeRefusedError: The status is neither 200 nor 403.
        """
        headers = {"x-goat-sig": signature, SENDER_HEADER: self._sender}
        response = await self._send_request("POST", "/batch-sync", content=b"[]", headers=headers)
        if response.status_code in (403, MISDIRECTED):
            return False
        self._check_status("POST", "/batch-sync", response)
        return True

    async def push(
        self,
        path: str,
        commits: Iterable[Sendable | Mapping[str, Any]],
        signer: OwnedSession,
        now_ms: int | None = None,
    ) -> Message | None:
        """Send commits to a repository of the server, `PUSH_CHUNK` in each request, without requesting any commits.

        GoatDB does not report commits that it rejects: status 200 does not mean that they were stored. To be sure,
        `pull` the repository and check; the Bloom filter in the reply is not enough, because it has false positives.

        Returns:
            The sync message in the last reply; None if there was nothing to push.

        Raises:
            NodeUnreachableError: No connection to the server, or no answer in time.
            NodeRefusedError: The server refused the request, or its answer is invalid.
        """
        encoded = [to_json_bytes(dict(one)) if isinstance(one, Mapping) else one.encoded for one in commits]
        reply: Message | None = None
        for start in range(0, len(encoded), PUSH_CHUNK):
            chunk = encoded[start : start + PUSH_CHUNK]
            message = EncodedMessage(filter=_FULL_FILTER, size=len(chunk), commits=chunk)
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
            known: Ids of commits that the caller has already, which the result leaves out.

        Raises:
            NodeUnreachableError: No connection to the server, or no answer in time.
            NodeRefusedError: The server refused the request, or its answer is invalid.
        """
        commits: dict[str, dict[str, Any]] = {}
        for _ in range(PULL_ROUNDS):
            held = {*known, *commits}
            message = EncodedMessage(filter=encode_filter(filter_of_held(held, new_seeds)), size=len(held))
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
            NodeUnreachableError: No connection to the server, or no answer in time.
            NodeRefusedError: The server refused the request, or its answer is invalid.
        """
        path = f"/goatherd/v1/identity{self._query}"
        response = await self._get_if_present(path)
        if response is None:
            return None
        try:
            answer = orjson.loads(response.content)
        except orjson.JSONDecodeError:
            return None  # COMPAT: GoatDB with static assets answers any GET with its index page
        try:
            identity = ServerIdentity.from_json(answer)
        except DecodeError as error:
            raise self._make_answer_error("GET", path, f"an invalid {error}") from None
        if identity is not None:
            self._learn_instance(identity.instance)
        return identity

    async def refresh(self, signer: OwnedSession, now_ms: int | None = None) -> dict[str, Any] | None:
        """Ask the server to read its identity from the store now (``POST /goatherd/v1/refresh``).

        Args:
            signer: A root that the server trusts; it signs the request.
            now_ms: The time to sign with; the client's clock by default.

        Returns:
            The members ``generation`` (of the identity that the server then uses) and ``changed`` (whether it was
            another one before); None if the server is not a Goatherd server.

        Raises:
            NodeUnreachableError: No connection to the server, or no answer in time.
            NodeRefusedError: The server refused the request, or its answer is invalid.
        """
        path = "/goatherd/v1/refresh"
        response = await self._send_signed(path, b"", signer, now_ms, query=self._query)
        if response.status_code == 404:
            return None
        self._check_status("POST", path, response)
        return self._parse_answer(path, response, read_refresh)

    async def list_peers(self, signer: OwnedSession, now_ms: int | None = None) -> tuple[PeerReport, ...]:
        """Return the server's peers with their URLs (``POST /goatherd/v1/peers``).

        Args:
            signer: A root that the server trusts; it signs the request.
            now_ms: The time to sign with; the client's clock by default.

        Raises:
            NodeUnreachableError: No connection to the server, or no answer in time.
            NodeRefusedError: The server refused the request, or its answer is invalid. Status 404: it is not a Goatherd
                server.
        """
        return await self._post_json("/goatherd/v1/peers", {}, signer, now_ms, read_peers)

    async def held(
        self, session_id: str, signer: OwnedSession, now_ms: int | None = None, *, early: bool = False
    ) -> bytes:
        """Return the list of a revoked root's commits that the server holds, encoded (`goatherd.identity.revocations`).

        Args:
            session_id: Id of the revoked root.
            signer: The root that signs the request.
            now_ms: The time to sign with; the client's clock by default.
            early: Whether the server must answer even if it does not know of the revocation yet.

        Raises:
            NodeUnreachableError: No connection to the server, or no answer in time.
            NodeRefusedError: The server refused the request, or its answer is invalid. Status 404: it is not a Goatherd
                server; 409: this root is not revoked at the server.
        """
        body = to_json_bytes({"session": session_id, "early": True} if early else {"session": session_id})
        return (await self._post_signed("/goatherd/v1/held", body, signer, now_ms)).content

    async def describe_held(
        self, session_id: str, digests: Sequence[str], signer: OwnedSession, now_ms: int | None = None
    ) -> list[HeldCommit]:
        """Return the server's descriptions of a revoked root's commits, which it holds.

        Args:
            session_id: Id of the revoked root.
            digests: Digests of the commits, from the list that `held` returns. Unknown ones are left out.
            signer: A root that the server trusts; it signs the request.
            now_ms: The time to sign with; the client's clock by default.

        Raises:
            NodeUnreachableError: No connection to the server, or no answer in time.
            NodeRefusedError: The server refused the request, or its answer is invalid. Status 404: it is not a Goatherd
                server.
        """

        def read(answer: Any) -> dict[str, HeldCommit]:
            return {one.digest: one for one in map(HeldCommit.from_json, read_entries(answer, "commits"))}

        asked = {"session": session_id, "early": True, "show": list(digests)}
        by_digest = await self._post_json("/goatherd/v1/held", asked, signer, now_ms, read)
        return [by_digest[digest] for digest in digests if digest in by_digest]

    async def lacking(
        self, path: str, commit_ids: Sequence[str], signer: OwnedSession, now_ms: int | None = None
    ) -> list[str]:
        """Return the ids of those given commits of a repository that the server does not hold.

        Unlike the answer of a Bloom filter, the result is exact.

        Args:
            path: The repository.
            commit_ids: Ids of the commits.
            signer: A root that the server trusts; it signs the request.
            now_ms: The time to sign with; the client's clock by default.

        Raises:
            NodeUnreachableError: No connection to the server, or no answer in time.
            NodeRefusedError: The server refused the request, or its answer is invalid. Status 404: it is not a Goatherd
                server.
        """
        asked = {"path": path, "commits": list(commit_ids)}
        return await self._post_json(
            "/goatherd/v1/lacking", asked, signer, now_ms, lambda answer: read_texts(answer, "lacking")
        )

    async def send_unused_sessions(
        self,
        sessions: Sequence[Mapping[str, Any]],
        recipients: Sequence[str],
        signer: OwnedSession,
        now_ms: int | None = None,
    ) -> str:
        """Send the server anonymous sessions that have signed nothing yet, so that it stores them.

        Args:
            sessions: Records of the sessions, as `goatherd.node.unused_sessions.record_of` makes them.
            recipients: Ids of the server processes that get these sessions, including the sending server.
            signer: A root that the server trusts.
            now_ms: The time to sign with; the client's clock by default.

        Returns:
            The id of the server process that has stored the sessions.

        Raises:
            NodeUnreachableError: No connection to the server, or no answer in time.
            NodeRefusedError: The server refused the request, or its answer is invalid. Status 404: it is not a Goatherd
                server; 409: the server has a peer that is not among the recipients, or itself introduces each new
                session immediately, so it stored nothing; introduce the sessions in ``/sys/sessions``.
        """

        def read(answer: Any) -> str:
            instance = self._learn_instance(answer.get("instance") if isinstance(answer, dict) else None)
            if instance is None:
                raise DecodeError("the instance is missing")
            return instance

        asked = {"sessions": list(sessions), "servers": list(recipients)}
        return await self._post_json(_UNUSED, asked, signer, now_ms, read)

    async def unused(self, after: str, signer: OwnedSession, now_ms: int | None = None) -> list[Any]:
        """Return a part of the list of the server's sessions that have signed nothing yet, ordered by id.

        Args:
            after: The part begins after this session id; empty for the beginning of the list.
            signer: A root that the server trusts; it signs the request.
            now_ms: The time to sign with; the client's clock by default.

        Raises:
            NodeUnreachableError: No connection to the server, or no answer in time.
            NodeRefusedError: The server refused the request, or its answer is invalid. Status 404: it is not a Goatherd
                server.
        """
        asked = {"sessions": [], "after": after}
        return await self._post_json(_UNUSED, asked, signer, now_ms, lambda answer: read_entries(answer, "sessions"))

    async def keep_frozen(self, body: bytes, signer: OwnedSession, now_ms: int | None = None) -> None:
        """Send the server the list of a revoked root's commits that stay valid (frozen commits), so that it keeps it.

        Args:
            body: The encoded list.
            signer: A root that the server trusts; it signs the request.
            now_ms: The time to sign with; the client's clock by default.

        Raises:
            NodeUnreachableError: No connection to the server, or no answer in time.
            NodeRefusedError: The server refused the request, or its answer is invalid. Status 404: it is not a Goatherd
                server.
        """
        await self._post_signed("/goatherd/v1/frozen", body, signer, now_ms)

    async def frozen(self, digest: str) -> bytes | None:
        """Return from the server a list of frozen commits: those of a revoked root that stay valid.

        `digest` is the SHA-256 of the list, which is not compared with it here. The result is None if the server lacks
        this list.

        Raises:
            NodeUnreachableError: No connection to the server, or no answer in time.
            NodeRefusedError: The server refused the request, or its answer is invalid.
        """
        response = await self._get_if_present(f"/goatherd/v1/frozen/{digest}")
        return None if response is None else response.content

    async def healthy(self) -> bool:
        """Return whether ``GET /healthy`` reports a healthy server; an unreachable server is not healthy."""
        try:
            response = await self._send_request("GET", "/healthy")
        except NodeUnreachableError:
            return False
        return response.status_code == 200

    async def time_ms(self) -> int | None:
        """Return the server's time in milliseconds since 1970, exact to a second; None if its answer has no date.

        Raises:
            NodeUnreachableError: No connection to the server, or no answer in time.
        """
        response = await self._send_request("GET", "/healthy")
        return read_http_date(response.headers.get("date"))

    def clock_ahead_ms(self, now_ms: int) -> int | None:
        """Return how far the server's clock is ahead of this machine's, according to the date of its last answer.

        Args:
            now_ms: This machine's time, in milliseconds since 1970.

        Returns:
            The difference in milliseconds, negative if the server's clock is behind; None if no answer had a date.
        """
        return self._server_clock.ahead_ms(now_ms)

    # --- inside -----------------------------------------------------------------------------------------------------

    @property
    def _query(self) -> str:
        """The query string that names the organization, for an agent that serves several; empty without `org`."""
        return "" if self._org is None else f"?org={quote(self._org, safe='')}"

    async def _send_signed(
        self, path: str, body: bytes, signer: OwnedSession, now_ms: int | None, *, query: str = ""
    ) -> _Answer:
        """Send a ``POST`` whose signature is valid for this request only, and for the known processes of this server.

        Several processes may answer at one URL. A process that the signature does not name answers 421 with its own id;
        the request is then signed again, and names this process, too. The query is not signed.
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
            response = await self._send_request("POST", path + query, content=body, headers=headers, limit=left)
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

    def _learn_instance(self, instance: object) -> str | None:
        """Record the id of a server process that answers at the URL; return it, or None if it is not valid."""
        if not isinstance(instance, str) or _INSTANCE.fullmatch(instance) is None:
            return None
        self._instances.pop(instance, None)
        self._instances[instance] = None
        while len(self._instances) >= MAX_AUDIENCE:
            del self._instances[next(iter(self._instances))]
        return instance

    def _open_pool(self) -> ConnectionPool:
        # Connections cannot be used in another event loop than theirs, such as that of the next `asyncio.run`.
        loop = asyncio.get_running_loop()
        if self._pool is not None and (self._loop is loop or not self._owns_pool):
            return self._pool
        # Building a TLS context costs 150 ms; a plain http URL needs none, and redirects are not followed.
        http = make_http_client(self.base_url, verify=not self.base_url.startswith("http://"), timeout=None)
        pool = ConnectionPool(http, is_closed=self._is_closed)
        if not self._is_closed:
            self._pool, self._loop = pool, loop
        return pool

    async def _get_if_present(self, path: str) -> _Answer | None:
        """Return the server's answer to a GET request; None if it has no such endpoint or object."""
        response = await self._send_request("GET", path)
        if response.status_code == 404:
            return None
        self._check_status("GET", path, response)
        return response

    async def _send_request(
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
        most = _most_bytes(path, content)
        extensions = {}
        if self._server_name is not None:
            # SECURITY: TLS checks the server's certificate against this name, and not only sends the name to the server
            # (tests/unit/cluster/test_discovery.py).
            extensions["sni_hostname"] = self._server_name
            port = httpx2.URL(url).port
            name = self._server_name if port is None else f"{self._server_name}:{port}"
            headers = {**(headers or {}), "host": name}

        async def exchange(http: httpx2.AsyncClient) -> _Answer:
            began = self._clock.monotonic()
            async with http.stream(
                method, url, content=content, headers=headers, timeout=limit, extensions=extensions
            ) as answer:
                self._server_clock.note_date(answer.headers.get("date"), began=began)
                # SECURITY: an endless answer, or a small one that decompresses to a huge one, must not fill this
                # process's memory (tests/unit/cluster/test_client.py).
                parts: list[bytes] = []
                size = 0
                async for part in answer.aiter_bytes():
                    size += len(part)
                    if size > most:
                        raise NodeRefusedError(
                            f"{method} {url}: the answer is longer than {most >> 20} MiB",
                            status=answer.status_code,
                            hint="Check that this is a GoatDB server. If it is, its data is too large for one answer.",
                        )
                    parts.append(part)
                return _Answer(answer.status_code, answer.headers, b"".join(parts))

        try:
            async with asyncio.timeout(limit):
                return await self._open_pool().run(exchange)
        except (TimeoutError, httpx2.TimeoutException) as error:
            raise NodeUnreachableError(f"{method} {url}: no answer within {patience:g} s") from error
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise NodeUnreachableError(f"{method} {url}: {describe_failure(error)}") from error

    async def _post_signed(self, path: str, body: bytes, signer: OwnedSession, now_ms: int | None) -> _Answer:
        """Send a signed ``POST``, and return the answer if its status is 200."""
        response = await self._send_signed(path, body, signer, now_ms)
        self._check_status("POST", path, response)
        return response

    async def _post_json(
        self,
        path: str,
        asked: Mapping[str, Any],
        signer: OwnedSession,
        now_ms: int | None,
        read: Callable[[Any], T],
    ) -> T:
        """Send a signed ``POST`` with the JSON object `asked`, and return what `read` makes of the JSON answer."""
        return self._parse_answer(path, await self._post_signed(path, to_json_bytes(asked), signer, now_ms), read)

    def _parse_answer(self, path: str, response: _Answer, read: Callable[[Any], T]) -> T:
        """Return what `read` makes of the JSON in the answer to a ``POST``."""
        try:
            return read(parse_json(response.content))
        except DecodeError as error:
            raise self._make_answer_error("POST", path, str(error)) from None

    def _check_status(self, method: str, path: str, response: _Answer) -> None:
        status = response.status_code
        if status != 200:
            hint = _HINTS.get(status)
            why = f"status {status}"
            if 300 <= status < 400 and (target := response.headers.get("location")):
                why += f", a redirect to {make_printable(masked(target))}, which is not followed"
                hint = "Give the URL at which the server itself answers, for example with https:// instead of http://."
            raise NodeRefusedError(f"{method} {self.base_url}{path}: {why}", status=status, hint=hint)

    def _make_answer_error(self, method: str, path: str, what: str) -> InvalidAnswerError:
        return InvalidAnswerError(
            f"{method} {self.base_url}{path}: answered 200, but the content is invalid: {what}",
            status=200,
            hint="Check that this URL is that of a GoatDB server.",
        )


def _most_bytes(path: str, content: bytes | None) -> int:
    """Return how many bytes the answer to a request may have; only those with commits, or lists of them, are large."""
    is_large = path.startswith(_DATA) and content != b"[]"
    return MAX_ANSWER_BYTES if is_large else min(MAX_ANSWER_BYTES, _SMALL_ANSWER_BYTES)


async def _parse_sync_answer(content: bytes, most: int) -> Any:
    if len(content) > _BIG_ANSWER:
        # A server that receives what it missed answers its callers meanwhile.
        return await asyncio.to_thread(read_answer, content, most)
    try:
        return parse_json(content)
    except DecodeError as error:
        # COMPAT: GoatDB stores commits that are nested too deeply for this client, and sends them with the others.
        with suppress(DecodeError):
            return read_answer(content, most)
        raise error
