"""Serve GoatDB's endpoints and Goatherd's management endpoints over HTTP, as an ASGI application or as a process.

`goatherd.node.database` and `goatherd.node.engine` answer the requests. This module finds the organization, selects the
endpoint as docs/reference/goatdb-protocol.md#endpoints says, turns failures into HTTP statuses, and starts and stops
the server.

Rules:

* Paths are compared in lower case, otherwise as the client sent them. The query is ignored; a trailing slash matters.
  Repeated headers are joined by commas, as `fetch` does. Answers have CORS headers, also those with status 400 and 404,
  but not those with 403 (signature rejected), 500 and 503.
* Each organization has one `Database`. Concurrent first requests share one attempt to open it. If the attempt fails,
  these requests get a 500, and the next request tries again.
* The application is a plain ASGI callable, because a router cannot reproduce GoatDB's dispatch (any ``OPTIONS``,
  lower-case paths).
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, cast, runtime_checkable
from urllib.parse import quote

import goatherd
from goatherd.admission.access import AccessRule
from goatherd.clock import Clock, SystemClock
from goatherd.cluster.client import INSTANCE_HEADER, SENDER_HEADER
from goatherd.errors import (
    ConfigurationError,
    GoatherdError,
    MissingExtraError,
    SignerError,
    VerificationError,
)
from goatherd.files import check_path
from goatherd.identity.request_binding import MISDIRECTED
from goatherd.identity.session import Session, SignatureEnvelope, parse_signature
from goatherd.ids import new_id
from goatherd.metrics import TEXT_TYPE as METRICS_TYPE
from goatherd.metrics import common_samples, format_samples
from goatherd.node.database import Database
from goatherd.node.engine import JSON_TYPE, TEXT_TYPE, Response
from goatherd.node.management import (
    caller_samples,
    data_samples,
    describe_health,
    root_signer_samples,
)
from goatherd.node.unused_sessions import MAX_UNUSED
from goatherd.providers.values import ORG_FIELD
from goatherd.remote_keys import RootSigners
from goatherd.serving.caller_limiter import (
    CONNECTION,
    SMALL_BODY,
    CallerLimiter,
    GoneError,
    Headers,
    Receive,
    Scope,
    Send,
    send_body,
    send_refusal,
)
from goatherd.serving.caller_limits import CallerLimits, Excess, RefusedError
from goatherd.serving.garbage_collection import shorten_switch_interval
from goatherd.serving.server_url import one_or_more
from goatherd.serving.signals import run_unless_set, watch_stop_signals
from goatherd.settings.data_directory import SEEN_NAME
from goatherd.settings.store import settings_from_options
from goatherd.telemetry import Event, event_text
from goatherd.verifiers import count_cores, use_aws_lc
from goatherd.wire.json import to_json_bytes
from goatherd.wire.paths import DEFAULT_ORG
from goatherd.wire.schema import BUILTIN, Registry

if TYPE_CHECKING:
    from goatherd.settings.base import SettingsProvider

__all__ = ["Server", "ServerListener", "run", "serve"]

_log = logging.getLogger("goatherd.node")

GRACE: Final = timedelta(seconds=10)
LOG_SECONDS: Final = 60.0

LOAD_BALANCER_URL: Final = "http://AWSALB/healthy"
FROZEN_PREFIX: Final = "/goatherd/v1/frozen/"

# SECURITY: the id of an organization becomes the name of a directory, so it must not contain a slash or begin with a
# dot (tests/unit/node/test_server.py).
_ORG_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")

_SENDER_HEADER: Final = SENDER_HEADER.encode()
_NO_STORE: Final = (b"cache-control", b"no-store")


@runtime_checkable
class SettingsFactory(Protocol):
    """The interface of an object that returns the settings provider of each organization.

    Every `SettingsProvider` implements it.
    """

    def for_org(self, org: str) -> SettingsProvider: ...


class Server:
    """A GoatDB server: one ASGI application for several organizations, each with its own database.

    Use as an async context manager; `app` may be called only inside. If all requests belong to one organization
    (`org_id`), its database is opened on entering, so that an identity that cannot be loaded is an error at once.

    Args:
        path: The data directory; an organization has ``<path>/<org>/``.
        settings_provider: A settings provider (the server calls its ``for_org``), or a function that returns one for an
            organization's id; the server enters and leaves the provider's context. It can also be options as for
            `goatherd.settings.settings_from_options`: ``{"type": "cloud", "cloudConfig": {…}}``, ``{"type": "file"}``,
            or the URI of a secret. The server then records in its data directory which identity it has used, and
            rejects older ones.
        org_id: The organization of every request, unless `resolve_domain` is given.
        base_url: The public URL for CORS: a string, or a function of the organization's id. Without one,
            ``ServerListener`` sets ``http://localhost:<port>`` while it listens.
        resolve_domain: Returns the organization id of a request's full URL; None or an empty id is answered with 404.
        peers: URLs of the other servers of this cluster; the attribute may be set until the server is entered. The list
            may include this server's own URL. It can also be a function that returns the URLs for an organization's id,
            which organizations with host names of their own need.
        clock: Supplies the current time.
        registry: The application's schemas, in addition to GoatDB's own.
        rules: The application's access rules, in order.
        debug: Whether to answer ``/auth/session`` without waiting for the other servers, like GoatDB's debug build.
        threads: Number of threads that verify signatures; by default one per processor core.
        limits: Limits on the resources that an unauthenticated caller may use.
        forwarded_by: Networks of the proxies in front of the server, whose ``X-Forwarded-For`` names the caller.
        unused_sessions: Maximum number of sessions that are kept out of ``/sys/sessions`` until they sign their first
            request; 0 introduces each session when it is created.
        root_signers: URIs of the signers that hold the keys of roots in an HSM or a KMS (direct mode).
        new_id: Returns a new unique id.

    Attributes:
        limiter: Counts the requests, connections and bytes of each caller, and enforces `limits`.

    Raises:
        ConfigurationError: `path` is a URI, a network of `forwarded_by` is invalid, or the options in
            `settings_provider` are invalid.
        PluginNotFoundError, MissingExtraError: The plugin of the store cannot be loaded.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        settings_provider: SettingsFactory | Callable[[str], SettingsProvider] | Mapping[str, object] | str,
        *,
        org_id: str = DEFAULT_ORG,
        base_url: str | Callable[[str], str] | None = None,
        resolve_domain: Callable[[str], str | None] | None = None,
        peers: str | Iterable[str] | Callable[[str], str | Iterable[str]] = (),
        clock: Clock | None = None,
        registry: Registry = BUILTIN,
        rules: Sequence[AccessRule] = (),
        debug: bool = False,
        threads: int | None = None,
        limits: CallerLimits | None = None,
        forwarded_by: str | Iterable[str] = (),
        unused_sessions: int = MAX_UNUSED,
        root_signers: str | Iterable[str] = (),
        new_id: Callable[[], str] = new_id,
    ) -> None:
        check_path(path, "the data directory")
        self.path = Path(path)
        self.org_id = org_id
        self.base_url = base_url
        self.peers: Sequence[str] | Callable[[str], str | Iterable[str]] = (
            peers if callable(peers) else one_or_more(peers)
        )
        self.stopping = False
        self._resolve_domain = resolve_domain
        self._clock: Clock = clock or SystemClock()
        self._settings = self._built(settings_provider)
        self._threads = threads or count_cores()
        self.limiter = CallerLimiter(
            limits or CallerLimits(),
            clock=self._clock,
            forwarded_by=one_or_more(forwarded_by),
            report=self._report_stopped,
        )
        self.stopped: Counter[Excess] = Counter(dict.fromkeys(Excess, 0))
        self._logged: dict[Excess, float] = {}
        self._root_signers = RootSigners(one_or_more(root_signers), clock=self._clock)
        self._make_database = partial(
            Database,
            clock=self._clock,
            registry=registry,
            rules=tuple(rules),
            debug=debug,
            new_id=new_id,
            unused_sessions=unused_sessions,
            root_signers=self._root_signers,
        )
        self._databases: dict[str, Database] = {}
        self._opening: dict[str, asyncio.Task[Database]] = {}
        self._stack = AsyncExitStack()
        self._verifiers: ThreadPoolExecutor | None = None
        self._workers: ThreadPoolExecutor | None = None
        self._running = 0
        self._is_entered = False
        self._turns = _Turns()
        self._idle = asyncio.Event()

    def _built(
        self, given: SettingsFactory | Callable[[str], SettingsProvider] | Mapping[str, object] | str
    ) -> SettingsFactory | Callable[[str], SettingsProvider]:
        if isinstance(given, Mapping | str):
            seen = self.path / ORG_FIELD / SEEN_NAME
            return settings_from_options(given, path=self.path, seen=seen, clock=self._clock)
        if isinstance(given, SettingsFactory) or callable(given):
            return given
        raise ConfigurationError(
            f"settings_provider has the unsupported type {type(given).__name__}",
            hint='Give {"type": "cloud", "cloudConfig": {…}}, the URI of a secret, or a settings provider, such as'
            ' CloudSecretSettings("goatdb/root", provider).',
        )

    async def __aenter__(self) -> Server:
        if self._is_entered:
            raise ConfigurationError(
                "the server is in use already: it was entered, or listens",
                hint='To listen on several addresses, give the host "0.0.0.0" or "::".',
            )
        use_aws_lc()
        self._verifiers = ThreadPoolExecutor(self._threads, thread_name_prefix="goatherd-verify")
        self._stack.callback(self._verifiers.shutdown)
        self._workers = ThreadPoolExecutor(self._threads + 2, thread_name_prefix="goatherd-work")
        self._stack.callback(self._workers.shutdown)
        self.stopping = False
        self._turns = _Turns()
        self._is_entered = True
        try:
            await self._stack.enter_async_context(self._root_signers)
            if self._resolve_domain is None:
                await self.open_database(self.org_id)
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self.stopping = True
        while self._running:
            self._idle.clear()
            await self._idle.wait()
        await self._close()

    async def _close(self) -> None:
        """Close every database, also one that is being opened, and the resources that they share."""
        opening = list(self._opening.values())
        for task in opening:
            task.cancel()
        try:
            await asyncio.gather(*opening, return_exceptions=True)
            databases, self._databases = self._databases, {}
            async with self._stack:
                for database in databases.values():
                    self._stack.push_async_callback(database.aclose)
        finally:
            self._is_entered = False

    @asynccontextmanager
    async def listen(self, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[str]:
        """Enter the server and answer requests until the ``async with`` block ends; yield the server's URL.

        Args:
            host: Address to listen on.
            port: Port to listen on; 0 selects a free one.

        Raises:
            GoatherdError: The identity or the data cannot be loaded, or the address or this server is in use.
        """
        listener = ServerListener(self, host, port)
        async with self, listener:
            yield listener.url

    def database(self, org: str | None = None) -> Database:
        """Return the open database of an organization; without an id, that of the only organization.

        Raises:
            KeyError: The database is not open; `open_database` opens it.
        """
        wanted = self.org_id if org is None else org
        if wanted not in self._databases:
            how = "`open_database` opens it" if self._is_entered else "enter the server with `async with` first"
            raise KeyError(f"the database of organization {wanted!r} is not open; {how}")
        return self._databases[wanted]

    async def open_database(self, org: str) -> Database:
        """Return the database of an organization, and open it if necessary.

        Raises:
            GoatherdError: The database cannot be opened.
            ValueError: The id is not an organization's id.
        """
        database = self._databases.get(org)
        if database is not None:
            return database
        if _ORG_ID.fullmatch(org) is None:
            raise ValueError(f"{org!r:.100} is not a valid organization id")
        task = self._opening.get(org)
        if task is None:
            task = self._opening[org] = asyncio.create_task(self._open_database(org), name=f"open {org}")
            task.add_done_callback(lambda _: self._opening.pop(org, None))
        # One waiter that goes away must not take the opening from the others.
        return await asyncio.shield(task)

    async def _open_database(self, org: str) -> Database:
        if self._workers is None:
            raise RuntimeError("the server must be entered with `async with` first")
        peers = one_or_more(self.peers(org)) if callable(self.peers) else self.peers
        database = self._make_database(
            org=org,
            directory=self.path / org,
            settings=self._settings_of(org),
            workers=self._workers,
            verifiers=self._verifiers,
            peers=tuple(dict.fromkeys(url.rstrip("/") for url in peers)),
        )
        await database.open()
        self._databases[org] = database
        return database

    def _settings_of(self, org: str) -> SettingsProvider:
        found: object
        if isinstance(self._settings, SettingsFactory) and not isinstance(self._settings, type):
            found = self._settings.for_org(org)
        else:
            found = cast("Callable[[str], SettingsProvider]", self._settings)(org)
        if not hasattr(found, "load"):
            source = type(self._settings).__name__
            raise ConfigurationError(
                f"settings_provider ({source}) returned a {type(found).__name__} for organization {org!r}",
                hint="Its for_org, or the function that was given, must return a settings provider.",
            )
        return found

    # --- ASGI -------------------------------------------------------------------------------------------------------

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one ASGI request. This is the ASGI application.

        It ignores ASGI lifespan events; the caller enters the server instead.
        """
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await receive()
                await send({"type": "websocket.close", "code": 1000})
            return
        with ExitStack() as held:
            self._running += 1
            try:
                status, headers, body = await self._answer_request(scope, receive, held)
            except GoneError:
                return
            except RefusedError as refused:
                self._report_stopped(Excess(refused.rule), f"{scope['method']} {_raw_path(scope):.100}: {refused}")
                await send_refusal(refused, receive, send, is_head=scope["method"] == "HEAD")
                return
            finally:
                self._running -= 1
                if not self._running:
                    self._idle.set()
            headers.append((b"content-length", str(len(body)).encode()))
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send_body(send, b"" if scope["method"] == "HEAD" else body)

    async def _answer_request(self, scope: Scope, receive: Receive, held: ExitStack) -> tuple[int, Headers, bytes]:
        """Return the status, the headers and the body of the answer; `held` is closed when the body is sent."""
        method: str = scope["method"]
        # COMPAT: GoatDB compares the path of a request without decoding it, and the load balancer's URL as a whole,
        # character by character.
        path = _raw_path(scope).lower()
        headers = _read_headers(scope)
        url = _request_url(scope, headers.get(b"host", ""))
        if url == LOAD_BALANCER_URL:
            return 200, [], b""
        if self.stopping:
            return 503, [], b""
        address = self.limiter.take_request(scope)
        try:
            org = self.org_id if self._resolve_domain is None else self._resolve_domain(url) or ""
            database = self._databases.get(org)
            if database is None:
                if _ORG_ID.fullmatch(org) is None:
                    return 404, [], b""
                database = await self.open_database(org)
            answer = await self._dispatch_request(
                database, method, path, headers, Body(self.limiter, scope, receive, path, address, held)
            )
        except (GoneError, RefusedError):
            raise
        except SignerError as error:
            _log.debug("%s %s: %s: %s", method, path[:200], error.code, error)
            return 503, [], b""
        except GoatherdError as error:
            _log.error("%s %s: %s: %s", method, path[:200], error.code, error)
            return 500, [(b"content-type", TEXT_TYPE.encode())], b"Internal Server Error"
        except Exception:  # noqa: BLE001 - one request's failure is a 500, whatever it is
            _log.exception("%s %s failed", method, path[:200])
            return 500, [], b""
        fields: Headers = []
        if answer.content_type is not None:
            fields.append((b"content-type", answer.content_type.encode()))
        if method == "GET" and answer.body:
            fields.append(_NO_STORE)
        if answer.status == MISDIRECTED or (method == "POST" and path == "/batch-sync" and answer.status == 200):
            fields.append((INSTANCE_HEADER.encode(), database.instance.encode()))
        if answer.cors:
            fields += self._cors_headers(org, method)
        return answer.status, fields, answer.body

    def _cors_headers(self, org: str, method: str) -> Headers:
        base = self.base_url(org) if callable(self.base_url) else self.base_url
        return [
            (b"access-control-allow-origin", (base or f"http://{DEFAULT_ORG}").encode("latin-1")),
            (b"access-control-allow-methods", method.encode("latin-1")),
            (b"access-control-allow-headers", b"*"),
        ]

    async def _dispatch_request(
        self, database: Database, method: str, path: str, headers: Mapping[bytes, str], body: Body
    ) -> Response:
        if method == "POST":
            signature = headers.get(b"x-goat-sig")
            if path == "/batch-sync":
                return await self._answer_sync(database, signature, headers.get(_SENDER_HEADER), body)
            if path == "/auth/session":
                async with body.read() as content:
                    self.limiter.take_session(body.address)
                    response = await database.answer_session(content)
                    if response.status == 400:
                        # Only what creates a session is charged to its address, which honest users may share.
                        self.limiter.give_back_session(body.address)
                    return response
            answers: dict[str, Callable[[bytes, str | None], Awaitable[Response]]] = {
                "/goatherd/v1/refresh": database.answer_refresh,
                "/goatherd/v1/peers": database.answer_peers,
                "/goatherd/v1/held": database.frozen_commits.answer_held,
                "/goatherd/v1/lacking": database.frozen_commits.answer_lacking,
                "/goatherd/v1/frozen": database.frozen_commits.answer_put,
                "/goatherd/v1/unused": database.answer_unused,
            }
            if (answer := answers.get(path)) is not None:
                if not body.is_small and await database.find_signer(signature) is None:
                    raise _refuse_large_body()
                async with body.read() as content:
                    return await answer(content, signature)
        elif method == "GET":
            if path == "/healthy":
                return Response(status=200, body=b"OK", content_type=TEXT_TYPE)
            if path == "/goatherd/v1/identity":
                return Response(status=200, body=to_json_bytes(database.describe_identity()), content_type=JSON_TYPE)
            if path == "/goatherd/v1/health":
                health = describe_health(database.status, database.data, database.signing_problem)
                found = {**health, "expiry": database.expiry.describe_expiry()}
                return Response(status=200, body=to_json_bytes(found), content_type=JSON_TYPE)
            if path.startswith(FROZEN_PREFIX):
                return database.frozen_commits.answer_get(path.removeprefix(FROZEN_PREFIX))
            if path == "/goatherd/v1/metrics":
                paused = {"requests": self.limiter.paused_count, "work": database.paused_count}
                samples = [*common_samples(database.document, database.status)]
                samples += caller_samples(self.limiter.connection_count, self.stopped, paused, database.unused)
                samples += root_signer_samples(database.signing_problem, self._root_signers, database.withheld_count)
                if database.data is not None:
                    samples += data_samples(database.data)
                text = await asyncio.to_thread(format_samples, samples)
                return Response(status=200, body=text, content_type=METRICS_TYPE)
        elif method == "PATCH" and path == "/auth/session":
            return Response(status=400, body=b"Unknown request", content_type=TEXT_TYPE)
        elif method == "OPTIONS":
            return Response(status=200)
        return Response(status=404)

    async def _answer_sync(self, database: Database, signature: str | None, sender: str | None, body: Body) -> Response:
        signed: str | SignatureEnvelope | None = signature
        with suppress(VerificationError):
            signed = envelope = parse_signature(signature or "")
            await self.limiter.pause_request(envelope.session_id)
        signer: Session | None = None
        if not body.is_small:
            await self._turns.take()
            if (signer := await database.find_signer(signed)) is None:
                raise _refuse_large_body()
        async with body.read() as content:
            await self._turns.take()
            admit = self.limiter.take_request_of
            response = await database.answer_sync(content, signed, admit=admit, sender=sender, verified_by=signer)
        if response.requester is not None and len(response.body) > SMALL_BODY:
            body.charge_answer(len(response.body))
        return response

    def _report_stopped(self, excess: Excess, why: str) -> None:
        self.stopped[excess] += 1
        now = self._clock.monotonic()
        if now - self._logged.get(excess, -LOG_SECONDS) >= LOG_SECONDS:
            self._logged[excess] = now
            fields = {"rule": excess.value, "count": self.stopped[excess], "why": why[:300]}
            _log.warning("%s", event_text(Event.NODE_REQUEST_STOPPED, **fields))


class Body:
    """The body of an HTTP request that has not been read yet.

    Args:
        limiter: Reads the body and enforces the limits.
        scope: The request's ASGI scope.
        receive: The ASGI receive function.
        path: The request's path in lower case; it determines the limit on the body's size.
        address: The caller's address, to which the bytes of the body are charged.
        held: Is closed when the answer is sent.
    """

    def __init__(
        self, limiter: CallerLimiter, scope: Scope, receive: Receive, path: str, address: str, held: ExitStack
    ) -> None:
        self.address = address
        connection = scope.get(CONNECTION)
        self._abort = None if connection is None else connection.abort
        self._held = held
        self._limiter = limiter
        self._receive = receive
        self._headers: dict[bytes, bytes] = dict(scope["headers"])
        self._limit = limiter.limits.body_limit(path)

    @property
    def is_small(self) -> bool:
        """Whether the request announces a body that is so short that reading it costs almost nothing."""
        length = self._headers.get(b"content-length", b"" if b"transfer-encoding" in self._headers else b"0")
        return length.isdigit() and int(length) <= SMALL_BODY

    @asynccontextmanager
    async def read(self) -> AsyncIterator[bytes]:
        """Read the whole body of the request and yield it.

        Its bytes count against the memory limit until the block ends.

        Raises:
            RefusedError: The body is too large or too slow, or there is no more memory for it.
            GoneError: The caller disconnected.
        """
        with self._limiter.open_share(self.address, self._abort) as share:
            yield await self._limiter.read_body(self._receive, self._headers, share, self._limit)

    def charge_answer(self, size: int) -> None:
        """Charge the answer to the caller's share of the memory for answers, until it is sent.

        SECURITY: without this limit, a caller could fill the memory by requesting many large answers and reading them
        slowly (tests/unit/node/test_server.py).

        Raises:
            RefusedError: Too many answers wait for their callers.
        """
        share = self._held.enter_context(self._limiter.open_answer_share(self.address, self._abort))
        share.take(min(size, self._limiter.limits.buffered_bytes // 2))
        self._held.enter_context(share.waiting())


class _Turns:
    """Give coroutines turns on the event loop, in order of arrival, and at most one in each of the loop's rounds.

    The loop (uvloop) sends what was written in a round only at the end of the round. Without turns, the requests that
    many clients send at the same time would all be answered when the last one is; the clients would then send their
    next requests at the same time again.
    """

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._is_taken = False

    async def take(self) -> None:
        """Wait for a turn, which lasts until the caller waits for something else."""
        loop = asyncio.get_running_loop()
        if self._is_taken:
            turn = loop.create_future()
            self._waiting.append(turn)
            await turn
        else:
            self._is_taken = True
            loop.call_soon(self._pass_on, loop)

    def _pass_on(self, loop: asyncio.AbstractEventLoop) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                loop.call_soon(self._pass_on, loop)
                return
        self._is_taken = False


def _refuse_large_body() -> RefusedError:
    return RefusedError(Excess.TOO_LARGE, 403, "a large body needs a valid request signature", is_unread=True)


def _read_headers(scope: Scope) -> dict[bytes, str]:
    """Return the headers of a request as a dict.

    White space around a value does not belong to it (RFC 9110, 5.5). Repeated headers are joined, as `fetch` does
    (COMPAT), so that two signatures are invalid.
    """
    headers: dict[bytes, str] = {}
    for name, raw in scope["headers"]:
        value = raw.strip(b" \t").decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


def _request_url(scope: Scope, host: str) -> str:
    """Return the full URL of a request, as the client sent it."""
    query = scope.get("query_string", b"").decode("latin-1")
    return f"{scope['scheme']}://{host}{_raw_path(scope)}{'?' + query if query else ''}"


def _raw_path(scope: Scope) -> str:
    """Return the path of a request as the client sent it.

    If the ASGI server does not provide that, the decoded path is encoded again.
    """
    raw = scope.get("raw_path")
    return quote(scope["path"]) if raw is None else raw.decode("latin-1")


# --- process --------------------------------------------------------------------------------------------------------


class ServerListener:
    """Let a server answer HTTP requests on a socket. An async context manager for a `Server` that has been entered.

    Leaving the context stops accepting connections, answers running requests and closes all connections.

    Args:
        server: The server whose application answers the requests.
        host: Address to listen on.
        port: Port to listen on; 0 selects a free one.
        grace: How long running requests may take at the end, before they are cut off.
    """

    def __init__(self, server: Server, host: str = "127.0.0.1", port: int = 0, *, grace: timedelta = GRACE) -> None:
        try:
            from goatherd.serving.listener import HTTPListener
        except ModuleNotFoundError as error:
            raise MissingExtraError(
                f"serving needs a library that is not installed: {error.name}",
                hint="Install it: pip install 'goatherd[node]'",
            ) from error

        self._server = server
        self._grace = grace
        self._listener = HTTPListener(server.app, host, port, limiter=server.limiter, has_date=True)
        self._has_set_base_url = False

    @property
    def url(self) -> str:
        """The URL at which the server answers, ``http://<host>:<port>``, once the socket is bound."""
        return self._listener.url

    @property
    def port(self) -> int:
        """The port on which the server listens. If 0 was given, this is the actual port once the socket is bound."""
        return self._listener.port

    def bind(self) -> str:
        """Bind the server's address without listening yet, and return the URL.

        May be called before entering the listener.

        Raises:
            NodeError: The address cannot be bound.
        """
        return self._listener.bind()

    async def __aenter__(self) -> ServerListener:
        self.bind()
        await self._listener.start()
        self._has_set_base_url = self._server.base_url is None
        if self._has_set_base_url:
            self._server.base_url = f"http://{DEFAULT_ORG}:{self.port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            await self._listener.stop(self._grace)
        finally:
            if self._has_set_base_url:
                self._server.base_url = None  # the next listener may have another port

    def hurry(self) -> None:
        """Stop waiting for running requests, which are then cut off."""
        self._listener.stop_waiting()


async def serve(
    server: Server,
    host: str = "127.0.0.1",
    port: int = 8080,
    *,
    started: Callable[[str], None] | None = None,
    stopping: Callable[[], None] | None = None,
    grace: timedelta = GRACE,
) -> None:
    """Run a server until SIGTERM or SIGINT arrives, then finish running requests, flush the logs and close.

    A second signal stops the server at once. A signal that arrives during the start ends the start.

    Call this function in the main thread of a process of its own, since it handles signals and changes the thread
    switch interval of the process. Elsewhere, use `Server.listen`.

    Args:
        server: The server, not entered yet.
        host: Address to listen on.
        port: Port to listen on; 0 selects a free one.
        started: Called with the URL once the server answers requests.
        stopping: Called when the server begins to stop.
        grace: How long running requests may take at the end.

    Raises:
        ConfigurationError: This is not the main thread.
        GoatherdError: The identity or the data cannot be loaded, or the address cannot be bound.
    """
    shorten_switch_interval()
    listener = ServerListener(server, host, port, grace=grace)
    with watch_stop_signals() as signals:
        async with AsyncExitStack() as stack:
            if await run_unless_set(signals.stop, stack.enter_async_context(server)) is None:
                return
            await stack.enter_async_context(listener)
            signals.on_repeat.append(listener.hurry)
            _log.info("%s", event_text(Event.NODE_STARTED, url=listener.url, version=goatherd.__version__))
            if started is not None:
                started(listener.url)
            await signals.stop.wait()
            server.stopping = True
            if stopping is not None:
                stopping()
    _log.info("%s", event_text(Event.NODE_STOPPED, url=listener.url))


def run(
    server: Server, host: str = "127.0.0.1", port: int = 8080, *, started: Callable[[str], None] | None = None
) -> None:
    """Call `serve`, which runs a server until a signal arrives, in a new event loop.

    If uvloop is installed, it is used.
    """
    try:
        import uvloop
    except ImportError:  # Windows
        asyncio.run(serve(server, host, port, started=started))
    else:
        uvloop.run(serve(server, host, port, started=started))
