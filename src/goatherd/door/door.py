"""Open and close the parts of the door, a reverse proxy in front of a GoatDB server: listener, proxy, trusted sessions.

Use `Door` as an async context manager. The door can open before its server answers; until the server does, the door
answers 503 with Retry-After. Rules: everything that the door rejects is counted, but logged at a limited rate, so that
callers cannot fill a log. A log line contains nothing that a caller has sent except ids.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, Final
from urllib.parse import urlsplit

from goatherd.clock import Clock, SystemClock
from goatherd.crypto import PrivateKey
from goatherd.door.commit_index import RepositoryIndex, RepositoryIndexes
from goatherd.door.exchange import HeaderRewriter
from goatherd.door.limits import DoorLimits
from goatherd.door.proxy import ANSWER_BYTES, Answerer, Proxy
from goatherd.door.request_checks import DoorRule
from goatherd.door.server_connections import ServerConnections
from goatherd.door.trusted_sessions import TrustedSessions
from goatherd.errors import (
    ConfigurationError,
    DecodeError,
    NodeRefusedError,
    NodeUnreachableError,
    RevokedSessionError,
)
from goatherd.identity.request_binding import RequestGuard
from goatherd.ids import new_id
from goatherd.serving.caller_limiter import CallerLimiter
from goatherd.serving.listener import HTTPListener
from goatherd.serving.server_url import parse_server_url
from goatherd.serving.signals import cancel_tasks
from goatherd.serving.sockets import find_machine_addresses
from goatherd.telemetry import Event, event_text
from goatherd.verifiers import count_cores, use_aws_lc
from goatherd.wire.json import parse_json, to_json_bytes

_log = logging.getLogger("goatherd.door")

GRACE: Final = timedelta(seconds=10)
REFRESH: Final = timedelta(seconds=5)
LOG_SECONDS: Final = 60.0
EXPOSURE_TIMEOUT: Final = timedelta(seconds=3)
LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True, kw_only=True)
class DoorStatus:
    """Counters and state of the door, a reverse proxy in front of a GoatDB server.

    Attributes:
        url: The URL at which the door listens.
        handed_on: Number of requests that the server has answered.
        stopped: How often each rule has rejected something.
        connections: Open connections of callers.
        requests: Requests that are being answered.
        sessions: Number of sessions that the door has read from the server.
        is_exposed: Whether the server also answered at another address of its machine, so that callers can bypass the
            door.
        is_blind: Whether the last attempt to read the server's sessions failed; pushes by unknown sessions then get
            503.
    """

    url: str
    handed_on: int
    stopped: Mapping[DoorRule, int]
    connections: int
    requests: int
    sessions: int
    is_blind: bool
    is_exposed: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the status as a JSON object that contains only numbers."""
        return {
            "passedOn": self.handed_on,
            "stopped": {rule.value: count for rule, count in sorted(self.stopped.items()) if count},
            "connections": self.connections,
            "requests": self.requests,
            "sessions": self.sessions,
            "blind": self.is_blind,
            "exposed": self.is_exposed,
        }


class Door:
    """A verifying reverse proxy in front of one GoatDB server.

    Args:
        upstream: The server's URL, such as ``http://127.0.0.1:8081``. No other caller may reach it there.
        trust: The trusted sessions, one `TrustedSessions` for each organization that the server serves.
        org_urls: The server's URL for each organization, by whose host name the application recognizes the
            organization; default: `upstream` for all.
        host: Address to listen on.
        port: Port to listen on; 0 selects a free one.
        limits: Limits on each caller's requests.
        private: Whether only roots may write to ``/sys/*`` and only the owner to ``/user/<id>``, as GoatDB's
            documentation promises and GoatDB does not enforce. If off, an application's own rules, which the door does
            not know, may allow other writers.
        public_url: The URL at which callers reach the door. It replaces the server's own address in CORS headers and
            redirects (COMPAT: ``http://localhost:<port>`` unless the application sets another).
        forwarded_by: Networks of the proxies in front of the door, whose ``X-Forwarded-For`` names the caller.
        clock: Supplies the current time.
        own: Answers requests below ``/goatherd/v1/``, which never reach the server; by default they are 404.
        guard: Checks whether a request that was signed for one server is meant for this one; a new guard by default.
        addresses: Returns the numeric addresses of this machine at which other machines may reach it.
        is_restarting: Returns whether an agent is restarting the server, so that no answer is expected.

    Raises:
        ConfigurationError: `upstream`, the public URL or a network is invalid, or `upstream` is the door itself.
    """

    def __init__(
        self,
        *,
        upstream: str,
        trust: TrustedSessions | Sequence[TrustedSessions],
        org_urls: Mapping[str, str] | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        limits: DoorLimits | None = None,
        private: bool = False,
        public_url: str | None = None,
        forwarded_by: Iterable[str] = (),
        clock: Clock | None = None,
        own: Answerer | None = None,
        guard: RequestGuard | None = None,
        is_restarting: Callable[[], bool] | None = None,
        addresses: Callable[[], Sequence[str]] = find_machine_addresses,
    ) -> None:
        self._addresses = addresses
        self._is_exposed = False
        self._own = own
        instance = new_id()
        self._guard = guard or RequestGuard(lambda: instance)
        self._is_restarting = is_restarting
        self.trusts = (trust,) if isinstance(trust, TrustedSessions) else tuple(trust)
        self._limits = limits or DoorLimits()
        self._private = private
        self._public_url = public_url
        self._clock: Clock = clock or SystemClock()
        self._server = ServerConnections(upstream)
        self._hosts = {org: parse_server_url(url).authority.encode("ascii") for org, url in (org_urls or {}).items()}
        if self._server.is_at(host, port):
            raise ConfigurationError(
                f"the server and the door cannot both listen on port {port}",
                hint="Let the server listen on another port.",
            )
        self._stopped: Counter[DoorRule] = Counter()
        self._logged: dict[DoorRule, float] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._hurry = asyncio.Event()
        self._executor: ThreadPoolExecutor | None = None
        self._proxy: Proxy | None = None
        self._indexes: dict[str, RepositoryIndexes] = {}
        self._limiter = CallerLimiter(
            self._limits,
            clock=self._clock,
            forwarded_by=forwarded_by,
            report=lambda excess, why: self._report_stopped(DoorRule(excess), why),
        )
        self._listener = HTTPListener(self._handle_request, host, port, limiter=self._limiter)
        if public_url is not None:
            self._public_url = str(parse_server_url(public_url, hint="Write the URL as https://goats.example."))

    @property
    def url(self) -> str:
        """The URL ``http://<host>:<port>``, once the door is open."""
        return self._listener.url

    @property
    def port(self) -> int:
        """The port that the door uses; if 0 was given, the actual port once the door is open."""
        return self._listener.port

    @property
    def status(self) -> DoorStatus:
        """Counters and state of the door (reverse proxy)."""
        return DoorStatus(
            url=self.url,
            handed_on=self._proxy.handed_on if self._proxy else 0,
            stopped=dict(self._stopped),
            connections=self._limiter.connection_count,
            requests=self._listener.request_count,
            sessions=sum(trust.session_count for trust in self.trusts),
            is_blind=any(trust.failure is not None for trust in self.trusts),
            is_exposed=self._is_exposed,
        )

    async def __aenter__(self) -> Door:
        use_aws_lc()
        self._executor = ThreadPoolExecutor(count_cores(), thread_name_prefix="goatherd-door")
        for trust in self.trusts:
            ask = partial(self._send_to_server, self._hosts.get(trust.org))
            trust.set_sender(ask)
            make_index = partial(
                RepositoryIndex,
                ask=ask,
                signer=lambda pool=trust.pool: pool.current,  # type: ignore[misc]
                verify=partial(trust.verify_commits, executor=self._executor),
                clock=self._clock,
                server_generation=lambda: self._server.server_generation,
                org=trust.org,
            )
            self._indexes[trust.org] = RepositoryIndexes(
                make_index,
                capacity=self._limits.index_commits,
                repositories=self._limits.repositories,
                is_session=trust.holds_commit,
            )
        self._proxy = Proxy(
            server=self._server,
            trusts=self.trusts,
            indexes=self._indexes,
            limits=self._limits,
            limiter=self._limiter,
            clock=self._clock,
            executor=self._executor,
            private=self._private,
            header_rewriter=self._header_rewriter(),
            report=self._report_stopped,
            report_away=self._log_unanswered,
            own=self._own,
            guard=self._guard,
        )
        try:
            await self._listener.start()
        except BaseException:
            self._executor.shutdown()
            raise
        self._tasks = [
            asyncio.create_task(self._follow_sessions(trust), name=f"door {trust.org}") for trust in self.trusts
        ]
        _log.info(event_text(Event.DOOR_OPENED, url=self.url, upstream=self._server.url))
        return self

    async def __aexit__(self, *_: object) -> None:
        began = self._clock.monotonic()
        await self._listener.stop(GRACE)
        if self._proxy is not None:
            await self._proxy.aclose(max(0.0, GRACE.total_seconds() - (self._clock.monotonic() - began)), self._hurry)
        await cancel_tasks(*self._tasks)
        for trust in self.trusts:
            await trust.aclose()
        for indexes in self._indexes.values():
            await indexes.aclose()
        await self._server.aclose()
        if self._executor is not None:
            self._executor.shutdown()

    def hurry(self) -> None:
        """Stop waiting for running requests and deliveries, which are then cut off, when the door closes."""
        self._hurry.set()
        self._listener.stop_waiting()

    def _header_rewriter(self) -> HeaderRewriter:
        public = None if self._public_url is None else self._public_url.encode("ascii")
        return HeaderRewriter(self._server.names, public)

    async def _check_address(self) -> None:
        """Log a warning if the server sends browsers, or the links in login mails, to another address than the door's.

        COMPAT: GoatDB puts the result of ``domain.resolveOrg`` into CORS headers, ``/app.js`` and login mails.

        Raises:
            NodeUnreachableError: The server did not answer.
        """
        limit = REFRESH.total_seconds()
        _, headers, _ = await self._server.fetch("OPTIONS", "/healthy", [], b"", limit=limit)
        named = headers.get(b"access-control-allow-origin", b"").decode("latin-1")
        if not named or named == "*":
            return
        if self._public_url is None:
            if _port_of(named) == self.port:
                return
            why = f"the server sends browsers and login emails to {named[:200]}, which is not the door"
            remedy = "start with --public-url, and have domain.resolveOrg of the application return the public URL"
        elif named != self._public_url:
            # The door replaces the server's own address only: another one may belong to another organization.
            is_replaced = self._header_rewriter().rewrite_address(named.encode("latin-1")) != named.encode("latin-1")
            who = "login emails name" if is_replaced else "the server sends browsers and login emails to"
            why = f"{who} {named[:200]} instead of {self._public_url}"
            remedy = "have domain.resolveOrg of the application return the public URL"
        else:
            return
        _log.warning(event_text(Event.DOOR_BYPASSED, why=why, remedy=remedy))

    async def _check_exposure(self, trust: TrustedSessions) -> None:
        """Log a warning if the server answers at another address of this machine, so that clients can bypass the door.

        COMPAT: GoatDB listens on all addresses, and has no option to change that.
        """
        mine = await asyncio.to_thread(self._addresses)
        if self._server.host not in (*LOOPBACK, *mine):
            return  # it is on another machine
        door = (self._listener.host, self.port)
        others = [one for one in mine if one != self._server.host and (one, self._server.port) != door]
        answers = await asyncio.gather(*(self._is_server_at(one, trust) for one in others))
        exposed = [one for one, is_there in zip(others, answers, strict=True) if is_there]
        self._is_exposed = bool(exposed)
        if exposed:
            remedy = (
                f"have a firewall drop packets to port {self._server.port} on every address except loopback"
                " (how-to page: Run unmodified GoatDB servers)"
            )
            fields = {"port": self._server.port, "addresses": " ".join(exposed)}
            _log.warning(event_text(Event.DOOR_SERVER_EXPOSED, **fields, remedy=remedy))

    async def _is_server_at(self, address: str, trust: TrustedSessions) -> bool:
        """Return whether the server itself answers at this address, on its port.

        This method requests a new anonymous session from the address. If the server then lists this session, the server
        answers there. SECURITY: another user's program may listen at the address, so nothing that a root has signed is
        sent (tests/unit/agent/test_own_api.py).
        """
        host = f"[{address}]" if ":" in address else address
        if self._server.is_encrypted:
            # The server's certificate is not valid for this address, so it suffices that the port accepts connections.
            try:
                async with asyncio.timeout(EXPOSURE_TIMEOUT.total_seconds()):
                    _, writer = await asyncio.open_connection(address, self._server.port)
            except (OSError, TimeoutError):
                return False
            writer.close()
            return True
        other = ServerConnections(f"http://{host}:{self._server.port}", connect_timeout=EXPOSURE_TIMEOUT)
        # The application chooses the organization by the host name, and must not create one for this address.
        named = self._server.authority
        key = PrivateKey.generate().public_key
        body = to_json_bytes({"publicKey": key.to_jwk()})
        headers = [(b"content-type", b"application/json")]
        limit = EXPOSURE_TIMEOUT.total_seconds()
        try:
            status, _, answer = await other.fetch(
                "POST", "/auth/session", headers, body, limit=limit, most=ANSWER_BYTES, host=named
            )
            new = parse_json(answer)["session"]["id"] if status == 200 else None
            await trust.refresh()
            session = trust.find_session(new) if isinstance(new, str) else None
        except (NodeUnreachableError, NodeRefusedError, DecodeError, RevokedSessionError, LookupError, TypeError):
            return False
        finally:
            await other.aclose()
        return session is not None and session.public_key == key

    async def _handle_request(self, scope: object, receive: object, send: object) -> None:
        assert self._proxy is not None
        await self._proxy.handle_request(scope, receive, send)  # type: ignore[arg-type]

    async def _send_to_server(self, host: bytes | None, body: bytes, signature: str) -> tuple[int, bytes]:
        headers = [(b"x-goat-sig", signature.encode()), (b"content-type", b"application/json")]
        limit = self._limits.answer_timeout.total_seconds()
        status, _, answer = await self._server.fetch("POST", "/batch-sync", headers, body, limit=limit, host=host)
        return status, answer

    async def _follow_sessions(self, trust: TrustedSessions) -> None:
        """Read the server's sessions at intervals, so that few pushes by new sessions have to wait for a read."""
        was_blind = False
        must_check = trust is self.trusts[0]
        while True:
            with suppress(NodeUnreachableError, NodeRefusedError):
                await trust.refresh()
            is_blind = trust.failure is not None
            if is_blind != was_blind and not (is_blind and self._is_being_restarted()):
                event = Event.DOOR_BLIND if is_blind else Event.DOOR_SEES
                _log.log(
                    logging.WARNING if is_blind else logging.INFO,
                    event_text(event, org=trust.org, why=trust.failure or "", sessions=trust.session_count),
                )
                was_blind = is_blind
            if must_check and trust.session_count and not is_blind:
                with suppress(NodeUnreachableError, ValueError):
                    await self._check_address()
                    await self._check_exposure(trust)
                    must_check = False
            await self._clock.sleep(timedelta(seconds=1) if is_blind else max(REFRESH, 4 * trust.pause))

    def _is_being_restarted(self) -> bool:
        """Return whether the server's agent starts or restarts it, so that it is not expected to answer."""
        return self._is_restarting is not None and self._is_restarting()

    def _log_unanswered(self, why: str) -> None:
        """Log that the server did not answer a request: as a warning, unless its agent is restarting it."""
        is_restarting = self._is_being_restarted()
        if self._count_stopped(DoorRule.CHILD):
            text = "the server is being restarted by its agent" if is_restarting else why[:300]
            level = logging.INFO if is_restarting else logging.WARNING
            _log.log(level, event_text(Event.DOOR_SERVER_AWAY, count=self._stopped[DoorRule.CHILD], why=text))

    def _count_stopped(self, rule: DoorRule) -> bool:
        """Count a rejection by a rule; return whether it is time to log the count."""
        self._stopped[rule] += 1
        now = self._clock.monotonic()
        if now - self._logged.get(rule, -LOG_SECONDS) < LOG_SECONDS:
            return False
        self._logged[rule] = now
        return True

    def _report_stopped(self, rule: DoorRule, why: str) -> None:
        if not self._count_stopped(rule):
            return
        is_leak = rule is DoorRule.PRIVATE_KEY
        event = Event.DOOR_KEY_WITHHELD if is_leak else Event.DOOR_STOPPED
        _log.log(
            logging.CRITICAL if is_leak else logging.WARNING,
            event_text(event, rule=rule.value, count=self._stopped[rule], why=why[:300]),
        )


def _port_of(origin: str) -> int | None:
    """Return the port of an origin such as ``http://host:8080``; None if it has no port or is not an origin."""
    try:
        return urlsplit(origin).port
    except ValueError:
        return None
