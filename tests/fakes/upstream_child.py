"""A stand-in for an unmodified GoatDB 0.5.1 server, with GoatDB's defects.

For tests of the door: the attack works on this server, and must not work through the door. It has the
HTTP surface, the trust, the sync and the known deaths of the original (the recorded exchanges say how it answers); it
has no disk, no merges and no schemas beyond those given to it. Like the original it verifies the whole of a message
before it stores any of it, answers others meanwhile, and continues when the client has disconnected.

What would end the original's process ends this one's listening (`died`), what would hang it is never answered (`hung`).

Never store data with it: it sends its private key to every caller.
"""

from __future__ import annotations

import asyncio
import gzip
import json
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Mapping, MutableMapping
from contextlib import asynccontextmanager
from datetime import timedelta
from email.utils import formatdate
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs

from goatherd.clock import Clock, SystemClock
from goatherd.crypto import PublicKey
from goatherd.errors import DecodeError, EncodeError, GoatherdError, VerificationError, WireError
from goatherd.identity.session import (
    ROOT_OWNER,
    OwnedSession,
    Session,
    parse_signature,
    sign_commit,
    sign_data,
    verify_commit,
    verify_data,
)
from goatherd.identity.session_commits import SESSIONS_NAMESPACE, SESSIONS_SCHEMA, session_fields
from goatherd.ids import new_id, new_seeds
from goatherd.serving.caller_limiter import CONNECTION, CallerLimiter
from goatherd.serving.caller_limits import CallerLimits
from goatherd.serving.http_connection import HTTPConnection
from goatherd.serving.listener import HTTPListener
from goatherd.wire.base32 import base32_decode
from goatherd.wire.bloom import BloomFilter, seed_count
from goatherd.wire.commit import Commit, new_commit
from goatherd.wire.items import record_data
from goatherd.wire.json import parse_json, to_json_bytes
from goatherd.wire.messages import VERSION, SyncMessage
from goatherd.wire.schema import Registry, Schema, SchemaField
from tests.fakes.goatdb_paths import log_file, repository_id

SESSIONS = "/sys/sessions"
STATS = "/sys/stats"
USERS = "/sys/users"

APPLICATION = b'console.log("serverURL", "http://localhost:1");\n'

NOTE = Schema(ns="note", version=1, fields=(SchemaField(name="text", type="string", required=True),))
THING = Schema(ns="thing", version=1, fields=(SchemaField(name="n", type="number", required=True),))
APPLICATION_SCHEMAS = Registry([NOTE, THING])

_FATAL_COUNT = 10_000_000
_FATAL_NAME = 255
_WINDOW_MS = 180_000
_OLD_MS = 5_000
_STORED_AT_ONCE = 50
_VERIFIED_AT_ONCE = 20

Scope = MutableMapping[str, Any]


class DiedError(Exception):
    """The original's process would end here."""


class HungError(Exception):
    """The original's event loop would be blocked indefinitely here."""


class FailedError(Exception):
    """The original would answer with this status and nothing else."""

    def __init__(self, status: int = 500) -> None:
        super().__init__(status)
        self.status = status


class UpstreamChild:
    """One server of one organization, on a socket of its own while it is entered.

    Args:
        root: Its current session; published with the private key, as from a ``settings.json`` that it wrote itself.
            None: there is no ``settings.json``, so it creates a new root.
        org: The organization.
        registry: The application's schemas.
        clock: The time.
        settle: How long ``/auth/session`` waits before it answers; a second in the original.
        leaks: Whether the root's private key is in the answers of ``/auth/session``.
        host: The address to listen on; the original has no option for it and listens on all of the machine's.
        work: How long it verifies one commit, one after the other, from every sender.

    Attributes:
        reached: Every request that came: method, target, body.
        repositories: The commits of each repository, as sent, by id.
        files: Names of the files that it made below its data directory, and beside it.
        died: Why the process ended; None while it lives.
        mails: Addresses to which login links were sent.
        sessions: The sessions that it trusts.
        roots: Its roots.
        publishes_extra: Whether unknown members of a root are published, as the original does.
        resolves_to: What the application's ``domain.resolveOrg`` returns; its own address when None.
        answers: The bodies of its answers of ``/auth/session``.
        is_chunked: Whether its answers have no length, as those of GoatDB under Node.
        compresses: Whether its answers are compressed, as if middleware did that.
        verified: How often it has verified each commit; a commit that is sent again before it is stored counts again.
    """

    def __init__(
        self,
        root: OwnedSession | None,
        *,
        org: str = "localhost",
        registry: Registry = APPLICATION_SCHEMAS,
        clock: Clock | None = None,
        settle: timedelta = timedelta(0),
        leaks: bool = True,
        host: str = "127.0.0.1",
        work: timedelta = timedelta(0),
    ) -> None:
        self.clock: Clock = clock or SystemClock()
        if root is None:
            root = OwnedSession.generate(session_id=new_id(), owner=ROOT_OWNER, now_ms=self.clock.now_ms())
        self.root = root
        self.org = org
        self.reached: list[tuple[str, str, bytes]] = []
        self.repositories: dict[str, dict[str, dict[str, Any]]] = {}
        self.files: set[str] = set()
        self.died: str | None = None
        self.hung = False
        self.is_chunked = False
        self.compresses = False
        self.mails: list[str] = []
        self.sessions: dict[str, Session] = {root.id: root.session}
        self.roots: dict[str, Session] = {root.id: root.session}
        self.publishes_extra = False
        self.resolves_to: str | None = None
        self.answers: list[bytes] = []
        self._connection = new_id()
        self._registry = registry
        self.verified: Counter[str] = Counter()
        self._host = host
        self._work = work
        self._processor = asyncio.Lock()
        self._settle = settle
        self._leaks = leaks
        self._decoded: dict[str, Commit] = {}
        self._parents: defaultdict[str, set[str]] = defaultdict(set)
        self._verdicts: dict[str, bool] = {}
        self._spoilt: set[str] = set()
        self._cannot_start = False
        self._listener: HTTPListener | None = None
        self.url = ""

    async def __aenter__(self) -> UpstreamChild:
        await self._listen(0)
        return self

    async def _listen(self, port: int) -> None:
        generous = CallerLimits(connections=100_000, connections_per_address=100_000, header_bytes=1 << 30)
        self._listener = HTTPListener(self.app, self._host, port, limiter=CallerLimiter(generous, clock=self.clock))
        await self._listener.start()
        self.url = self._listener.url.replace("//0.0.0.0:", "//127.0.0.1:")

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._listener is not None:
            await self._listener.stop(timedelta(0))

    def restart(self) -> None:
        """Start again on the same data: everything in ``/sys/sessions`` is trusted."""
        self.died = None
        self._connection = new_id()
        self._spoilt.clear()
        self._verdicts.clear()
        self._parents.clear()
        for path, commits in self.repositories.items():
            self._parents[path].update(parent for raw in commits.values() for parent in raw.get("p", ()))
        for raw in self.repositories.get(SESSIONS, {}).values():
            try:
                self._trust(_session_of(raw))
            except (KeyError, TypeError, ValueError, WireError):
                self._cannot_start = True

    async def crash(self, path: str, *lost: str) -> None:
        """Crash before these commits were written to the disk, and start again at the same address."""
        assert self._listener is not None
        await self._listener.close()
        for commit_id in lost:
            del self.repositories[path][commit_id]
        self._decoded.clear()
        self.restart()
        await self._listen(self._listener.port)

    @asynccontextmanager
    async def stalled(self) -> AsyncIterator[None]:
        """Verify nothing, and therefore store nothing and answer no push, until the block ends."""
        async with self._processor:
            yield

    def create(self, path: str, commit: Commit) -> None:
        """Store a commit without checks, as the application or a peer would."""
        self.repositories.setdefault(path, {})[commit.id] = commit.to_json()
        self._parents[path].update(commit.parents)

    def introduce(self, session: Session) -> Commit:
        """Trust a session, with its commit in ``/sys/sessions``."""
        now_ms = self.clock.now_ms()
        commit = new_commit(
            commit_id=new_id(),
            key=session.id,
            session_id=self.root.id,
            ts=now_ms,
            org=self.org,
            data=session_fields(session),
            schema_marker=SESSIONS_SCHEMA,
            connection=self._connection,
        )
        signed = sign_commit(self.root, commit, now_ms=now_ms)
        self.create(SESSIONS, signed)
        self._trust(session)
        return signed

    def login_token(self, user: str, session_id: str, ts: int) -> str:
        """Return a login token, as the mail would hold it."""
        return sign_data(self.root, now_ms=ts, embedded={"u": user, "s": session_id, "ts": ts, "sl": new_id()})

    # --- HTTP ---------------------------------------------------------------------------------------------------------

    async def app(self, scope: Scope, receive: Any, send: Any) -> None:
        """The ASGI application."""
        caller: HTTPConnection = scope[CONNECTION]
        body = bytearray()
        more = True
        while more:
            event = await receive()
            if event["type"] == "http.disconnect":
                return
            body += event.get("body", b"")
            more = bool(event.get("more_body"))
        query = scope["query_string"].decode("latin-1")
        target = scope["raw_path"].decode("latin-1") + (f"?{query}" if query else "")
        self.reached.append((scope["method"], target, bytes(body)))
        headers = {name.decode(): value.decode("latin-1") for name, value in scope["headers"]}
        if self.died is not None:
            caller.abort()
        try:
            status, answer = await self._dispatch(scope["method"], target, headers, bytes(body))
        except DiedError as error:
            await self._die(str(error))
            return
        except HungError:
            self.hung = True
            while (await receive())["type"] != "http.disconnect":
                pass
            return
        except FailedError as error:
            status, answer = error.status, b""
        date = formatdate(self.clock.now_ms() / 1000, usegmt=True).encode()
        fields = [(b"date", date)]
        if self.compresses and answer:
            answer = gzip.compress(answer)
            fields.append((b"content-encoding", b"gzip"))
        if not self.is_chunked:
            fields.append((b"content-length", str(len(answer)).encode()))
        if answer:
            kind = b"application/json" if "/auth/session" in target else b"text/plain;charset=UTF-8"
            fields.append((b"content-type", kind))
        if status not in (403, 500):
            fields += [
                (b"access-control-allow-origin", self._base_url.encode()),
                (b"access-control-allow-methods", scope["method"].encode()),
                (b"access-control-allow-headers", b"*"),
            ]
        if status == 307:
            fields.append((b"location", self._base_url.encode()))
        await send({"type": "http.response.start", "status": status, "headers": fields})
        await send({"type": "http.response.body", "body": answer})

    @property
    def _base_url(self) -> str:
        return self.resolves_to or self.url

    def _script(self) -> bytes:
        """Return the application's script behind the configuration that the original puts in front of it."""
        config = {"debug": False, "version": VERSION, "orgId": self.org, "serverURL": self._base_url}
        return b";\nglobalThis.GoatDBConfig = " + to_json_bytes(config) + b";\n;" + APPLICATION

    async def _die(self, why: str) -> None:
        self.died = why
        assert self._listener is not None
        await self._listener.close()

    async def _dispatch(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> tuple[int, bytes]:
        if self.hung:
            raise HungError
        if self._cannot_start:
            raise FailedError
        path = _pathname(headers.get("host", ""), target).lower()
        if method == "POST" and path == "/batch-sync":
            return 200, await self._batch_sync(body, headers.get("x-goat-sig", ""))
        if method == "POST" and path == "/auth/session":
            return await self._new_session(body)
        if method == "POST" and path == "/auth/send-login-email":
            return self._login_mail(body)
        if method == "GET" and path == "/auth/temp-login":
            self._login(parse_qs(target.partition("?")[2]).get("t", [""])[0])
            return 307, b""
        if method == "GET" and path == "/healthy":
            return 200, b"OK"
        if method == "GET" and path.endswith("/app.js"):
            return 200, self._script()
        if method == "PATCH" and path == "/auth/session":
            return 400, b"Unknown request"
        return (200, b"") if method == "OPTIONS" else (404, b"")

    # --- /auth/* ------------------------------------------------------------------------------------------------------

    async def _new_session(self, body: bytes) -> tuple[int, bytes]:
        try:
            request = json.loads(body)
        except ValueError:
            return 400, b'{"error":"InvalidPublicKey"}'
        if request is None:
            return 400, b'{"error":"InvalidPublicKey"}'
        jwk = request.get("publicKey", 0) if isinstance(request, dict) else 0
        if jwk is not None and not isinstance(jwk, dict | list):
            return 400, b'{"error":"MissingPublicKey"}'
        if not isinstance(jwk, dict) or jwk.get("kty") != "EC" or "d" in jwk or jwk.get("ext") is False:
            return 400, b'{"error":"InvalidPublicKey"}'
        try:
            key = PublicKey.from_jwk(jwk)
            key.check()
        except DecodeError:
            raise FailedError from None  # Deno checks late
        expiration = self.clock.now_ms() + 30 * 86_400_000
        session = Session(id=new_id(), public_key=key, owner=None, expiration_ms=expiration)
        self.introduce(session)
        await self.clock.sleep(self._settle)
        encoded = session.to_json()
        # A root that the server owns is encoded with its private key.
        roots = [
            self.root.to_secret_json() if self._leaks and each.id == self.root.id else each.to_json()
            for each in self.roots.values()
        ]
        if self.publishes_extra:
            roots = [{**encoded, **self.roots[encoded["id"]].extra} for encoded in roots]
        answer = {"session": {name: encoded[name] for name in ("publicKey", "id", "expiration")}, "roots": roots}
        self.answers.append(to_json_bytes(answer))
        return 200, self.answers[-1]

    def _login_mail(self, body: bytes) -> tuple[int, bytes]:
        try:
            request = json.loads(body)
            email, signature = request.get("email", ""), request.get("signature")
            email = email.strip().lower()
        except (ValueError, AttributeError):
            raise FailedError from None
        if "@" not in email:
            return 400, b'{"error":"MissingEmail"}'
        if not isinstance(signature, str):
            return 400, b'{"error":"MissingSignature"}'
        try:
            envelope = parse_signature(signature)
        except VerificationError:
            raise FailedError from None
        session = self.sessions.get(envelope.session_id)
        if session is None or session.owner is not None or session.is_expired(self.clock.now_ms()):
            return 403, b'{"error":"AccessDenied"}'
        self.mails.append(email)  # the signature's check is not awaited
        return 200, b"OK"

    def _login(self, token: str) -> None:
        try:
            envelope = parse_signature(token)
            signer = self.sessions[envelope.session_id]
            verify_data(signer, envelope)
            user, asking = envelope.data["u"], self.sessions[envelope.data["s"]]
        except (GoatherdError, LookupError, TypeError):
            return
        if signer.is_root and user and asking.owner is None:  # the token's age is not looked at
            self.introduce(
                Session(id=asking.id, public_key=asking.public_key, owner=user, expiration_ms=asking.expiration_ms)
            )

    # --- /batch-sync --------------------------------------------------------------------------------------------------

    async def _batch_sync(self, body: bytes, header: str) -> bytes:
        try:
            elements = parse_json(body)
        except DecodeError:
            raise FailedError from None
        if not isinstance(elements, list) or not header:
            raise FailedError(400)
        requester = self._authenticate(header)
        replies = []
        for element in elements:
            try:
                given, raw_message = element["path"], element["msg"]
                path = repository_id(given)
                message = SyncMessage.from_json(raw_message)
            except (GoatherdError, TypeError, LookupError, AttributeError):
                raise FailedError from None
            self._open(path)
            await self._verify(path, message.commits)
            brought = self._ingest(path, message.commits)
            size = raw_message.get("s")
            if isinstance(size, int | float) and size > _FATAL_COUNT:
                raise DiedError("out of memory: the reply's filter is sized by s")
            replies.append({"path": given, "res": self._reply(path, message, requester, brought)})
        return to_json_bytes(replies)

    def _authenticate(self, header: str) -> Session:
        if header in self._verdicts:  # indefinitely, whatever the time
            if not self._verdicts[header]:
                raise FailedError(403)
            return self.sessions[parse_signature(header).session_id]
        try:
            if parse_json(base32_decode(header)) == {}:
                raise FailedError(403)  # names no session
            envelope = parse_signature(header)
        except (VerificationError, DecodeError):
            raise FailedError from None  # a malformed signature throws
        session = self.sessions.get(envelope.session_id)
        if session is None or session.is_expired(self.clock.now_ms()):
            raise FailedError(403)
        if not isinstance(envelope.data, Mapping):
            raise FailedError
        try:
            is_good = abs(self.clock.now_ms() - float(envelope.data.get("ts", "nan"))) <= _WINDOW_MS
            if is_good:
                verify_data(session, envelope)
        except (VerificationError, ValueError, TypeError):
            is_good = False
        self._verdicts[header] = is_good
        users = {raw["k"] for raw in self.repositories.get(USERS, {}).values()}
        if not is_good or not (session.is_root or session.owner is None or session.owner in users):
            raise FailedError(403)
        return session

    def _open(self, path: str) -> None:
        try:
            name = log_file(path)
        except GoatherdError:
            raise FailedError from None
        if "\0" in name or any(len(part) > _FATAL_NAME for part in name.split("/")) or "/settings.json" in path:
            raise DiedError("an error in the file worker")
        if path in self._spoilt:
            raise FailedError
        self.files.add(name)  # whatever the name
        self.repositories.setdefault(path, {})

    async def _verify(self, path: str, raws: Any) -> None:
        """Take the time that the signatures of what is not stored yet take, while others are answered."""
        ids = [raw["id"] for raw in raws if isinstance(raw, dict) and isinstance(raw.get("id"), str)]
        new = [each for each in ids if each not in self.repositories[path]]
        self.verified.update(new)
        for at in range(0, len(new), _VERIFIED_AT_ONCE):
            async with self._processor:
                if self._work:
                    await asyncio.sleep(len(new[at : at + _VERIFIED_AT_ONCE]) * self._work.total_seconds())

    def _ingest(self, path: str, raws: Any) -> list[Commit]:
        stored = self.repositories[path]
        good: list[tuple[Mapping[str, Any], Commit]] = []
        for raw in raws:
            commit = self._decode(path, raw)
            if commit is not None and commit.id not in stored and self._may_store(path, commit):
                good.append((raw, commit))
        good.sort(key=lambda pair: pair[1].ts)
        for at in range(0, len(good), _STORED_AT_ONCE):
            batch = good[at : at + _STORED_AT_ONCE]
            for raw, commit in batch:
                stored[commit.id] = {**commit.to_json(), **({"age": raw["age"]} if "age" in raw else {})}
                self._parents[path].update(commit.parents)
            for _, commit in batch:
                # Only new leaves are looked at: not an introduction that comes together with its child.
                if commit.namespace == SESSIONS_NAMESPACE and commit.id not in self._parents[path]:
                    self._offer(commit)
        for _, commit in good:
            self._follow_deltas(path, commit.id)
            self._merge_if_needed(path, commit)
        return [commit for _, commit in good]

    def _decode(self, path: str, raw: Any) -> Commit | None:
        if not isinstance(raw, dict) or not isinstance(raw.get("c"), dict):
            return None
        if "k" not in raw:
            raise DiedError("a commit without k")
        if not isinstance(raw.get("id"), str):
            self._spoilt.add(path)
            raise FailedError
        if raw["id"] in self._decoded:  # by id, whatever was decoded first
            return self._decoded[raw["id"]]
        contents = raw["c"]
        if "e" in contents and "r" not in contents and "b" not in contents:
            raise FailedError
        if raw.get("age") == 0:
            raise FailedError
        if "hasOwnProperty" in json.dumps(contents):
            raise FailedError  # the decoder throws
        if "r" in contents and not self._has_schema(contents["r"]):
            return None
        try:
            commit = Commit.from_json(raw, org=self.org, registry=self._registry)
        except (DecodeError, RecursionError):
            return None
        self._decoded[commit.id] = commit
        return commit

    def _has_schema(self, record: Any) -> bool:
        """Return whether a record names a schema that the application has registered; others are not stored."""
        marker = record.get("s") if isinstance(record, dict) else None
        if marker == "null":
            return True
        return isinstance(marker, str) and "/" in marker[:-1] and self._registry.from_marker(marker) is not None

    def _follow_deltas(self, path: str, commit_id: str) -> None:
        """Follow a chain of deltas; a circular one is followed endlessly, as soon as a client reads its key."""
        seen: set[str] = set()
        base: str | None = commit_id
        while base is not None:
            if base in seen:
                raise HungError
            seen.add(base)
            base = self.repositories[path].get(base, {}).get("c", {}).get("b")

    def _may_store(self, path: str, commit: Commit) -> bool:
        """Verify the signature by the session in the envelope, and the right by the session that the commit claims."""
        try:
            envelope = parse_signature(commit.signature or "")
            signer = self.sessions[envelope.session_id]
            verify_commit(signer, commit, envelope)
        except (VerificationError, EncodeError, LookupError, RecursionError):
            return False
        if path not in (SESSIONS, STATS):
            return True
        author = self.sessions.get(commit.session)
        return author is not None and author.is_root

    def _offer(self, commit: Commit) -> None:
        """Trust the session at the head of the key if a root signed this commit."""
        signer = self.roots.get(parse_signature(commit.signature or "").session_id)
        if signer is None:
            return
        try:
            self._trust(_session_of(commit.to_json()))
        except (KeyError, TypeError, ValueError, WireError):
            return

    def _trust(self, session: Session) -> None:
        """Trust a session; nothing can be revoked or shortened."""
        known = self.sessions.get(session.id)
        if (
            known is None
            or session.expiration_ms > known.expiration_ms
            or (known.owner is None and session.owner is not None)
        ):
            self.sessions[session.id] = session
        if session.is_root:
            self.roots.setdefault(session.id, session)

    def _merge_if_needed(self, path: str, commit: Commit) -> None:
        """Merge the leaves of a key where this server leads; some of that ends its process.

        A server leads when no leaf is younger than five seconds, or when its own session wrote one that is. It ends
        when it merges leaves of a key of which no commit has a child, unless all say the same: then there is nothing to
        merge.
        """
        now_ms = self.clock.now_ms()
        of_key = [self._decoded.get(raw["id"]) or _as_commit(raw, self.org) for raw in self._of_key(path, commit.key)]
        parents = {parent for raw in self.repositories[path].values() for parent in raw.get("p", ())}
        leaves = [each for each in of_key if each.id not in parents]
        leaders = {each.session for each in leaves if abs(now_ms - each.ts) <= _OLD_MS}
        if len(leaves) < 2 or (leaders and self.root.id not in leaders):
            return
        if all(each.record is not None and each.record == leaves[0].record for each in leaves):
            return
        if not any(each.id in parents for each in of_key):
            raise DiedError("Merge commit got empty ancestors filter")
        if len({each.namespace for each in leaves if not each.is_delta}) > 1:
            raise DiedError("a merge of two schemas")
        for each in leaves:
            schema = self._registry.from_marker(each.schema) if each.schema else None
            record = each.record
            if schema is not None and record is not None:
                try:
                    problem = schema.problem(record_data(record, self._registry))
                except (EncodeError, DecodeError):
                    problem = "undecodable"
                if problem:
                    raise DiedError("a merge of malformed fields")

    def _of_key(self, path: str, key: str) -> list[dict[str, Any]]:
        return [raw for raw in self.repositories[path].values() if raw["k"] == key]

    def _reply(self, path: str, message: SyncMessage, requester: Session, brought: list[Commit]) -> dict[str, Any]:
        del brought
        stored = self.repositories[path]
        visible = {} if path == STATS and not requester.is_root else stored
        size = max(1, len(visible))
        rate = 1 / size ** (2 / 3) if size > 2 else 0.5
        held = BloomFilter.for_size(size, rate, new_seeds(seed_count(size, rate)))
        held.update(visible)
        commits = [raw for commit_id, raw in visible.items() if commit_id not in message.filter]
        wrapped = {"__t": "E", "__v": held.to_json()}
        return {"ver": VERSION, "f": wrapped, "s": len(visible), "c": commits, "ad": []}


def _as_commit(raw: Mapping[str, Any], org: str) -> Commit:
    return Commit.from_json(dict(raw), org=org)


def _session_of(raw: Mapping[str, Any]) -> Session:
    fields = raw["c"]["r"]["d"]
    return Session.from_json({**fields, "publicKey": json.loads(fields["publicKey"])})


def _pathname(host: str, target: str) -> str:
    """Return the path of a URL as browsers read it: of Host and request target, put together."""
    text = f"{host}{target}".replace("\\", "/")
    for mark in "?#":
        text = text.partition(mark)[0]
    parts: list[str] = []
    for part in text.partition("/")[2].split("/"):
        plain = part.lower().replace("%2e", ".")
        if plain == "..":
            parts = parts[:-1]
        elif plain != ".":
            parts.append(part)
    return "/" + "/".join(parts)
