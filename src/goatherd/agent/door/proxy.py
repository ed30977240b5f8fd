"""One request's way through the door: judge, hand on, answer.

An ASGI application for `goatherd.agent.door.listener`, which tells it when a caller has gone. What the rules are is for
`rules`, `trust` and `index`; here stands in which order they are asked, and what is answered.

Rules: four kinds of request are read whole and judged (`/batch-sync`, `/auth/session`, `/auth/send-login-email`,
`/auth/temp-login`); all others stream both ways. Answers stream. Hop-by-hop headers end here, on both sides; framing is
made anew. A judgement that cannot be made, because the child cannot be asked, is 503 with Retry-After. A refusal has an
empty body and no CORS headers, like GoatDB's own. An answer that breaks off is cut off, never completed.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qs

from goatherd.agent.door.exchange import Budget, Exchange, GoneError, Receive, Renaming, Send, refusal_headers
from goatherd.agent.door.index import Indexes, RepositoryIndex
from goatherd.agent.door.limits import Buckets, Limits, Network, caller_of
from goatherd.agent.door.listener import CONNECTION
from goatherd.agent.door.redaction import (
    KeyFilter,
    root_introductions,
    script_with_server_url,
    session_answer,
    with_introductions,
)
from goatherd.agent.door.rules import (
    SESSIONS_PATH,
    DroppedError,
    Element,
    RefusedError,
    Rule,
    check_encoding,
    check_headers,
    check_session_request,
    check_target,
    may_write_privately,
    read_batch,
    read_commit,
    read_mail_request,
    rule_of,
)
from goatherd.agent.door.trust import Trust
from goatherd.agent.door.upstream import Connection, LostError, Upstream
from goatherd.clock import Clock
from goatherd.errors import (
    DecodeError,
    ExpiredSessionError,
    GoatherdError,
    InvalidSignatureError,
    NodeRefusedError,
    NodeUnreachableError,
    RevokedSessionError,
    UnknownSignerError,
    VerificationError,
)
from goatherd.identity.session import (
    Session,
    SignatureEnvelope,
    check_request_time,
    parse_signature,
    verify_data,
    verify_request,
)
from goatherd.wire.commit import Commit
from goatherd.wire.encoding import to_json_bytes

Scope = MutableMapping[str, Any]

BIG_BODY: Final = 64 * 1024
MANY_COMMITS: Final = 4
"""From so many commits on, the request's own signature is checked before them: it costs as much as one of them."""
ANSWER_BYTES: Final = 8 * 1024 * 1024
"""The largest answer to ``/auth/session`` that is read."""
DELIVERY_SECONDS: Final = 7.0
"""How long a push waits for another one that delivers the same commits; a client waits ten seconds for the answer."""
LEFT_OUT: Final = 1000
"""How many roots that are not trusted are remembered, at most."""
SCRIPT_BYTES: Final = 64 * 1024 * 1024
"""The largest ``/app.js`` in which the server's address is replaced."""


@dataclass(slots=True)
class Push:
    """The commits of a batch that go to the child, held by the indexes until it has answered."""

    held: list[tuple[RepositoryIndex, list[Commit]]] = field(default_factory=list)

    def settle(self, *, is_stored: bool) -> None:
        for index, commits in self.held:
            index.settle(commits, is_stored=is_stored)
        self.held.clear()


class Proxy:
    """Judges and hands on.

    Args:
        upstream: The child.
        trusts: One for each organization.
        indexes: One for each organization, by its id.
        limits: See there.
        clock: The time.
        executor: Threads for signatures.
        private: Whether ``/sys/*`` and ``/user/<id>`` are closed to writers whom the documentation closes them to.
        forwarded_by: Proxies in front of the door, whose ``X-Forwarded-For`` counts.
        renaming: What the child's headers become.
        report: Told of each thing that was stopped: the rule, and why.
    """

    def __init__(
        self,
        *,
        upstream: Upstream,
        trusts: Sequence[Trust],
        indexes: Mapping[str, Indexes],
        limits: Limits,
        clock: Clock,
        executor: Executor | None,
        private: bool,
        forwarded_by: tuple[Network, ...],
        renaming: Renaming,
        report: Callable[[Rule, str], None],
    ) -> None:
        self.limits = limits
        self._upstream = upstream
        self._trusts = tuple(trusts)
        self._indexes = indexes
        self._clock = clock
        self._executor = executor
        self._private = private
        self._forwarded_by = forwarded_by
        self._renaming = renaming
        self._report = report
        self._patience = limits.answer_timeout.total_seconds()
        self._requests = Buckets(limits.requests)
        self._session_requests = Buckets(limits.session_requests)
        self._new_sessions = Buckets(limits.new_sessions)
        self._mails = Buckets(limits.mails)
        self._new_repositories = Buckets(limits.new_repositories)
        self._repositories: dict[str, None] = {}
        self._left_out: dict[str, None] = {}
        self._budget = Budget(limits.buffered_bytes)
        self.handed_on = 0
        """How many requests have reached the child."""

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI application."""
        if scope["type"] != "http":
            return
        try:
            exchange = self._begin(scope, receive, send)
        except RefusedError as refused:
            self._report(refused.rule, str(refused))
            await send({"type": "http.response.start", "status": refused.status, "headers": refusal_headers(refused)})
            await send({"type": "http.response.body", "body": b""})
            return
        with suppress(GoneError):
            try:
                await self._guarded(exchange)
            finally:
                exchange.end()

    async def _guarded(self, exchange: Exchange) -> None:
        try:
            await self._judge(exchange)
        except RefusedError as refused:
            self._report(refused.rule, f"{exchange.method} {exchange.path:.100}: {refused}")
            await exchange.refuse(refused)
        except (LostError, TimeoutError) as error:
            status = 504 if isinstance(error, TimeoutError) else 502
            await exchange.refuse(RefusedError(Rule.CHILD, status, str(error), retry_after=1))
        except (NodeUnreachableError, NodeRefusedError) as error:
            # Also where the child does not trust the door's signer, so that nothing can be judged.
            self._report(Rule.CHILD, str(error))
            await exchange.refuse(RefusedError(Rule.CHILD, 503, str(error), retry_after=1))

    def _begin(self, scope: Scope, receive: Receive, send: Send) -> Exchange:
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        found = check_headers(headers)
        client = scope.get("client")
        forwarded = ""
        if self._forwarded_by:
            forwarded = ",".join([value.decode("latin-1") for name, value in headers if name == b"x-forwarded-for"])
        address = caller_of(client[0] if client else "", forwarded, self._forwarded_by)
        self._take(self._requests, address, "requests")
        raw_path: bytes = scope["raw_path"]
        path = check_target(raw_path)
        query: bytes = scope["query_string"]
        exchange = Exchange(
            method=scope["method"],
            path=path,
            target=raw_path + b"?" + query if query else raw_path,
            headers=headers,
            found=found,
            address=address,
            caller=scope.get(CONNECTION),
            receive=receive,
            send=send,
            renaming=self._renaming,
        )
        if exchange.has_body and b"upgrade" in found:
            raise RefusedError(Rule.HEADERS, 400, "a body, and a wish for another protocol")
        return exchange

    async def _judge(self, exchange: Exchange) -> None:
        method, path = exchange.method, exchange.path
        if method == "POST":
            if path == "/batch-sync":
                return await self._batch_sync(exchange)
            if path == "/auth/session":
                return await self._new_session(exchange)
            if path == "/auth/send-login-email":
                return await self._login_mail(exchange)
        elif method == "GET" and path == "/auth/temp-login":
            self._login_token(exchange)
        return await self._pass(exchange)

    async def _pass(self, exchange: Exchange) -> None:
        """Hand on what is not judged; only private keys in JSON are made unreadable."""
        if exchange.has_body:
            connection = await exchange.stream_on(self._upstream, self.limits, self._patience)
        else:
            connection = await exchange.hand_on(self._upstream, b"", self._patience)
        if self._renaming.public is not None and exchange.method == "GET" and exchange.path.endswith("/app.js"):
            await self._answer_script(exchange, connection)
            return
        headers = dict(connection.headers)
        is_json = b"json" in headers.get(b"content-type", b"").lower()
        await self._answer(exchange, connection, KeyFilter() if is_json else None)

    async def _answer_script(self, exchange: Exchange, connection: Connection) -> None:
        """Answer with an application's script, in which GoatDB's client finds the address that it synchronizes with."""
        status, headers = connection.status, exchange.handed_back(connection.headers)
        try:
            script = await exchange.whole(connection, SCRIPT_BYTES, self._patience)
        finally:
            self._upstream.release(connection)
        script = script_with_server_url(script, self._renaming.address)
        fields = [(name, value) for name, value in headers if name != b"content-length"]
        await exchange.start(status, [*fields, (b"content-length", b"%d" % len(script))])
        await exchange.finish(script)
        self.handed_on += 1

    async def _answer(self, exchange: Exchange, connection: Connection, keys: KeyFilter | None) -> None:
        try:
            if keys is not None and dict(connection.headers).get(b"content-encoding", b"identity") != b"identity":
                raise RefusedError(Rule.PRIVATE_KEY, 502, "the child's answer is compressed and cannot be looked at")
            await exchange.answer(connection, keys, self._patience)
            self.handed_on += 1
        finally:
            self._upstream.release(connection)
            if keys is not None and keys.found:
                self._report(Rule.PRIVATE_KEY, f"{keys.found} private keys in the answer of {exchange.path:.100}")

    def _take(self, buckets: Buckets, key: str, what: str) -> None:
        wait = buckets.take(key, self._clock.monotonic())
        if wait:
            raise RefusedError(Rule.TOO_MANY, 429, f"too many {what} from {key}", retry_after=wait)

    # --- POST /batch-sync ---------------------------------------------------------------------------------------------

    async def _batch_sync(self, exchange: Exchange) -> None:
        header = exchange.found.get(b"x-goat-sig", b"").decode("latin-1")
        if not header:
            raise RefusedError(Rule.REQUEST_SIGNATURE, 400, "a batch without a signature")
        check_encoding(exchange.found)
        async with exchange.body(self.limits, self._budget) as body:
            envelope = self._check_request(header)
            if len(body) > BIG_BODY:
                elements = await asyncio.to_thread(read_batch, body, self.limits)
            else:
                elements = read_batch(body, self.limits)
            has_commits = any(element.commits for element in elements)
            trust, session = await self._requester(envelope, is_needed=has_commits)
            now = self._clock.monotonic()
            # The servers of a cluster share one root session; they are counted by their addresses only.
            is_counted = session is not None and not session.is_root
            if session is not None and is_counted and (wait := self._session_requests.wait(session.id, now)):
                raise RefusedError(Rule.TOO_MANY, 429, f"too many requests of session {session.id!r}", retry_after=wait)
            self._count_repositories(exchange.address, elements)
            push = Push()
            try:
                if has_commits and trust is not None and session is not None:
                    await self._check_weight(session, envelope, elements)
                    body = await self._judge_push(trust, elements, body, push)
                # A client that waited ten seconds goes and sends everything again; what it has sent is delivered.
                connection = await exchange.hand_on(self._upstream, body, self._patience, is_kept=has_commits)
                is_stored = connection.status == 200
            except BaseException:
                push.settle(is_stored=False)
                raise
            push.settle(is_stored=is_stored)
        if session is not None and is_counted and connection.status != 403:
            # Only what the child took for genuine counts, so that nobody uses up another's share.
            self._session_requests.take(session.id, now)
        asks_for_sessions = any(element.path == SESSIONS_PATH for element in elements)
        if connection.status == 200 and asks_for_sessions and (session is None or not session.is_root):
            await self._answer_client(exchange, connection, envelope.session_id)
            return
        await self._answer(exchange, connection, KeyFilter(only=self._root_coordinates()))

    async def _answer_client(self, exchange: Exchange, connection: Connection, session_id: str) -> None:
        """Answer a client with those introductions of roots that it can follow, as `goatherd serve` does.

        Those of roots that are not trusted are left out, as `goatherd serve` does, too.

        SECURITY: a client cannot be told that a root was revoked, but need not learn of it
        (tests/cluster/test_door.py).
        """
        status, headers = connection.status, exchange.handed_back(connection.headers)
        try:
            body = await exchange.whole(connection, self.limits.buffered_bytes, self._patience)
        finally:
            self._upstream.release(connection)
        try:
            if introductions := root_introductions(body):
                body = with_introductions(body, await self._chooser(session_id, introductions))
        except (DecodeError, RecursionError) as error:
            raise RefusedError(Rule.CHILD, 502, f"the server's answer cannot be read: {error}") from None
        keys = KeyFilter(only=self._root_coordinates())
        body = keys.feed(body) + keys.close()
        if keys.found:
            self._report(Rule.PRIVATE_KEY, f"{keys.found} private keys in the answer of {exchange.path:.100}")
        fields = [(name, value) for name, value in headers if name != b"content-length"]
        await exchange.start(status, [*fields, (b"content-length", b"%d" % len(body))])
        await exchange.finish(body)
        self.handed_on += 1

    async def _chooser(
        self, session_id: str, introductions: list[dict[str, Any]]
    ) -> Callable[[list[dict[str, Any]]], list[dict[str, Any]]]:
        """Return what chooses the introductions of roots for a client, once all that the server holds are read."""
        if not any(trust.knows_introductions(introductions) for trust in self._trusts):
            with suppress(NodeUnreachableError, NodeRefusedError):
                await self._refresh()
        untrusted = await self._untrusted({each["k"] for each in introductions})
        with suppress(RevokedSessionError):
            trust, session = self._find(session_id)
            if trust is None and len(self._trusts) == 1:
                trust = self._trusts[0]
            if trust is not None:
                return lambda raws: trust.introductions_for(session, raws)
        return lambda raws: [each for each in raws if each["k"] not in untrusted]

    async def _untrusted(self, root_ids: set[str]) -> set[str]:
        """Return those of the roots that are not trusted, after another look at the sessions for one seen first."""
        untrusted = root_ids - self._trusted_roots()
        revoked = {each for trust in self._trusts for each in trust.pool.revoked}
        if untrusted - revoked - self._left_out.keys():
            # A root that was introduced a moment ago, past the door, may be good.
            with suppress(NodeUnreachableError, NodeRefusedError):
                await self._refresh()
            untrusted = root_ids - self._trusted_roots()
        for root_id in untrusted - self._left_out.keys():
            # The server sends it again with each answer: what it is was found out, and reported, once.
            self._left_out[root_id] = None
            if len(self._left_out) > LEFT_OUT:
                del self._left_out[next(iter(self._left_out))]
            self._report(Rule.UNTRUSTED_ROOT, f"root {root_id!r:.100} is left out of {SESSIONS_PATH}")
        return untrusted

    def _trusted_roots(self) -> set[str]:
        return {root.id for trust in self._trusts for root in trust.pool.roots}

    def _check_request(self, header: str) -> SignatureEnvelope:
        """Check what needs no key: form, purpose, time. The child checks the signature itself.

        SECURITY: the child remembers verdicts and takes a signature again after its three minutes (T10), takes a login
        token for a request signature, and answers 500 to a malformed one (tests/cluster/test_door.py).
        """
        try:
            envelope = parse_signature(header)
            if not isinstance(envelope.data, Mapping) or not isinstance(envelope.data.get("id"), str):
                raise InvalidSignatureError("this is no request signature")
            ts = envelope.ts
            if isinstance(ts, bool) or not isinstance(ts, int | float) or not math.isfinite(ts):
                raise InvalidSignatureError("the request signature has no time")
        except (InvalidSignatureError, RecursionError) as error:
            raise RefusedError(Rule.REQUEST_SIGNATURE, 403, str(error)) from None
        try:
            check_request_time(envelope, now_ms=self._clock.now_ms())
        except VerificationError as error:
            raise RefusedError(Rule.REQUEST_TIME, 403, str(error)) from None
        return envelope

    async def _requester(self, envelope: SignatureEnvelope, *, is_needed: bool) -> tuple[Trust | None, Session | None]:
        """Return who asks and in which organization; nobody where the child may decide about a mere question."""
        try:
            found = self._find(envelope.session_id)
            if found[1] is None and is_needed:
                await self._refresh()
                found = self._find(envelope.session_id)
        except RevokedSessionError as error:
            raise RefusedError(Rule.REVOKED, 403, str(error)) from None
        if found[1] is None and is_needed:
            raise RefusedError(Rule.UNKNOWN_SIGNER, 403, f"session {envelope.session_id!r:.100} is not known")
        return found

    def _find(self, session_id: str) -> tuple[Trust | None, Session | None]:
        for trust in self._trusts:
            session = trust.find(session_id)
            if session is not None:
                return trust, session
        return None, None

    async def _refresh(self) -> None:
        await asyncio.gather(*[trust.look_up() for trust in self._trusts])

    def _count_repositories(self, address: str, elements: Iterable[Element]) -> None:
        fresh = dict.fromkeys(element.path for element in elements if element.path not in self._repositories)
        if not fresh:
            return
        if len(self._repositories) + len(fresh) > self.limits.repositories:
            # What the indexes hold is bounded by this, too: none is made for a repository that is not counted here.
            raise RefusedError(Rule.TOO_MANY, 507, f"there are {len(self._repositories)} repositories already")
        wait = self._new_repositories.take(address, self._clock.monotonic(), len(fresh))
        if wait:
            raise RefusedError(Rule.TOO_MANY, 429, f"too many new repositories from {address}", retry_after=wait)
        self._repositories.update(fresh)

    async def _check_weight(self, session: Session, envelope: SignatureEnvelope, elements: Sequence[Element]) -> None:
        """Before many signatures are checked for somebody, check that it is them."""
        if sum(len(element.commits) for element in elements) <= MANY_COMMITS:
            return
        try:
            verify_request(session, envelope, now_ms=self._clock.now_ms())
        except VerificationError as error:
            raise RefusedError(Rule.REQUEST_SIGNATURE, 403, str(error)) from None

    async def _judge_push(self, trust: Trust, elements: Sequence[Element], body: bytes, push: Push) -> bytes:
        """Return the body with the commits that are not to be stored taken out; itself where there are none."""
        is_changed = False
        for element in elements:
            if not element.commits:
                continue
            commits = self._read_commits(trust, element)
            good = await self._verified(trust, element.path, commits)
            if element.path != SESSIONS_PATH and good:
                good = await self._admitted(trust, element.path, good, push)
            if len(good) < len(element.commits):
                is_changed = True
                element.raw["msg"]["c"] = [raw for raw, _ in good]
        if not is_changed:
            return body
        return to_json_bytes([element.raw for element in elements])

    def _read_commits(self, trust: Trust, element: Element) -> list[tuple[Any, Commit]]:
        now_ms = self._clock.now_ms()
        commits = []
        for raw in element.commits:
            try:
                commits.append((raw, read_commit(raw, element.path, org=trust.org, limits=self.limits, now_ms=now_ms)))
            except DroppedError as error:
                self._report(error.rule, f"{element.path}: {error}")
        return commits

    async def _verified(
        self, trust: Trust, path: str, commits: Sequence[tuple[Any, Commit]]
    ) -> list[tuple[Any, Commit]]:
        verdicts = await trust.verify(path, [commit for _, commit in commits], self._executor)
        good = []
        for (raw, commit), verdict in zip(commits, verdicts, strict=True):
            if verdict is not None:
                self._report(rule_of(verdict), f"{path}: {verdict}")
            elif self._private and not self._may_write(trust, path, commit):
                self._report(Rule.PRIVATE, f"{path}: session {commit.session!r} may not write here")
            else:
                good.append((raw, commit))
        return good

    def _may_write(self, trust: Trust, path: str, commit: Commit) -> bool:
        author = trust.pool.session(commit.session)
        return author.is_root or may_write_privately(path, author.owner)

    async def _admitted(
        self, trust: Trust, path: str, commits: Sequence[tuple[Any, Commit]], push: Push
    ) -> list[tuple[Any, Commit]]:
        index = await self._indexes[trust.org].of(path)
        # A client that gave up sends what another request is still delivering: the server must not verify it twice.
        delivering = await index.wait_for_deliveries([commit for _, commit in commits], DELIVERY_SECONDS)
        commits = [pair for pair in commits if pair[1].id not in delivering]
        problems = await index.admit([commit for _, commit in commits])
        good = []
        for pair, problem in zip(commits, problems, strict=True):
            if problem is None:
                good.append(pair)
            else:
                self._report(problem.rule, f"{path}: {problem}")
        push.held.append((index, [commit for _, commit in good]))
        return good

    def _root_coordinates(self) -> frozenset[bytes]:
        if len(self._trusts) == 1:
            return self._trusts[0].root_coordinates()
        return frozenset().union(*[trust.root_coordinates() for trust in self._trusts])

    # --- /auth/* ------------------------------------------------------------------------------------------------------

    async def _new_session(self, exchange: Exchange) -> None:
        check_encoding(exchange.found)
        async with exchange.body(self.limits, self._budget) as body:
            check_session_request(body)
            self._take(self._new_sessions, exchange.address, "new sessions")
            connection = await exchange.hand_on(self._upstream, body, self._patience)
        if connection.status != 200:
            await self._answer(exchange, connection, KeyFilter())
            return
        status, headers = connection.status, exchange.handed_back(connection.headers)
        try:
            answer = await exchange.whole(connection, ANSWER_BYTES, self._patience)
        finally:
            self._upstream.release(connection)
        try:
            cleaned = await self._clean(answer)
        except (DecodeError, RecursionError) as error:
            raise RefusedError(Rule.PRIVATE_KEY, 502, f"the child's answer cannot be read: {error}") from None
        for trust in self._trusts:
            trust.refresh_soon()
        fields = [(name, value) for name, value in headers if name != b"content-length"]
        await exchange.start(status, [*fields, (b"content-length", b"%d" % len(cleaned))])
        await exchange.finish(cleaned)
        self.handed_on += 1

    async def _clean(self, answer: bytes) -> bytes:
        """SECURITY: T1, tests/cluster/test_door.py."""
        cleaned, leaked, untrusted = session_answer(answer, self._is_root)
        if untrusted:
            # A root that was introduced a moment ago, past the door, may be good.
            try:
                await self._refresh()
            except (NodeUnreachableError, NodeRefusedError):
                pass
            else:
                cleaned, leaked, untrusted = session_answer(answer, self._is_root)
        for root_id in leaked:
            self._report(Rule.PRIVATE_KEY, f"the child gave away the private key of root {root_id!r:.100}")
        for root_id in untrusted:
            self._report(Rule.UNTRUSTED_ROOT, f"the child named root {root_id!r:.100}, which is not trusted here")
        return cleaned

    def _is_root(self, session_id: str, public_key: Any) -> bool:
        return any(trust.is_root(session_id, public_key) for trust in self._trusts)

    async def _login_mail(self, exchange: Exchange) -> None:
        """SECURITY: the child does not look at the result of its own check (T12, tests/cluster/test_door.py)."""
        check_encoding(exchange.found)
        async with exchange.body(self.limits, self._budget) as body:
            email, signature = read_mail_request(body)
            self._take(self._mails, exchange.address, "login mails")
            try:
                await self._check_mail(email, parse_signature(signature))
            except (VerificationError, RecursionError) as error:
                raise RefusedError(Rule.LOGIN_MAIL, 403, str(error), body=b'{"error":"AccessDenied"}') from None
            connection = await exchange.hand_on(self._upstream, body, self._patience)
        await self._answer(exchange, connection, KeyFilter())

    async def _check_mail(self, email: str, envelope: SignatureEnvelope) -> None:
        session = self._find(envelope.session_id)[1]
        if session is None:
            await self._refresh()
            session = self._find(envelope.session_id)[1]
        if session is None:
            raise UnknownSignerError(f"session {envelope.session_id!r:.100} is not known")
        if session.is_expired(self._clock.now_ms()):
            raise ExpiredSessionError(f"session {session.id!r} has expired")
        verify_data(session, envelope, external=email)

    def _login_token(self, exchange: Exchange) -> None:
        """Take a token out of the request that is not a fresh word of a root; the child then sends the caller home."""
        query = exchange.target.partition(b"?")[2]
        tokens = parse_qs(query.decode("latin-1")).get("t", [])
        if not tokens:
            return
        try:
            self._check_token(tokens)
        except (GoatherdError, RecursionError) as error:
            self._report(Rule.LOGIN_TOKEN, str(error))
            exchange.target = exchange.target.partition(b"?")[0]

    def _check_token(self, tokens: Sequence[str]) -> None:
        if len(tokens) > 1:
            raise InvalidSignatureError("several login tokens")
        envelope = parse_signature(tokens[0])
        session = next((each for trust in self._trusts if (each := trust.find(envelope.session_id))), None)
        if session is None or not session.is_root:
            raise InvalidSignatureError("a login token that no root has signed")
        data = envelope.data
        ts = data.get("ts") if isinstance(data, Mapping) else None
        age = self.limits.login_age.total_seconds() * 1000
        if isinstance(ts, bool) or not isinstance(ts, int | float) or not abs(self._clock.now_ms() - ts) <= age:
            raise InvalidSignatureError("a login token that is too old")
        verify_data(session, envelope)
