"""Sessions, commits and engines for the tests of trust and node. Deterministic but for the keys, which are cached."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import count
from typing import Any

from goatherd.admission.access import AccessRule
from goatherd.crypto import PrivateKey
from goatherd.identity.session import OwnedSession, Session, sign_commit, sign_request
from goatherd.identity.session_commits import session_fields
from goatherd.node.engine import Engine, Response, drive_inline
from goatherd.node.repository import Log, Repository
from goatherd.trust import TrustPool
from goatherd.wire.bloom import BloomFilter
from goatherd.wire.commit import Commit, new_commit
from goatherd.wire.messages import VERSION
from goatherd.wire.schema import BUILTIN, Registry
from tests.fakes.memory_log import MemoryLog

ORG = "localhost"
NOW = 1_795_000_000_000
DAY = 86_400_000
EMPTY = BloomFilter(b"\0", (1, 2, 3))

_numbers = count(1)


def new_id() -> str:
    return f"id{next(_numbers):022d}"


def new_seeds(how_many: int) -> Sequence[int]:
    return [next(_numbers) * 7919 for _ in range(how_many)]


@cache
def key_of(name: str) -> PrivateKey:
    return PrivateKey.generate()


def owned(name: str, owner: str | None = None, *, expiration_ms: int = NOW + 30 * DAY) -> OwnedSession:
    """The same name is the same id and key every time."""
    key = key_of(name)
    session = Session(id=name, public_key=key.public_key, owner=owner, expiration_ms=expiration_ms)
    return OwnedSession(session=session, signer=key)


def verify_pending(pool: TrustPool, limit: int | None = None) -> None:
    """Verify sessions that were offered and that nothing has needed yet, as a server does in the background."""
    verification = pool.prepare_pending(limit)
    verification.run()
    pool.conclude_verification(verification)


def root(name: str, **more: Any) -> OwnedSession:
    return owned(name, "root", **more)


def commit_by(
    author: OwnedSession,
    key: str,
    data: Mapping[str, Any],
    *,
    schema: str = "note/1",
    claimed: str | None = None,
    ts: int = NOW,
    signed_at: int | None = None,
    commit_id: str | None = None,
    parents: Sequence[str] = (),
    registry: Registry = BUILTIN,
    checksum: str | None = None,
) -> Commit:
    """Return a signed commit; `claimed` names another session in it than the one that signs."""
    unsigned = new_commit(
        commit_id=commit_id or new_id(),
        key=key,
        session_id=claimed or author.id,
        ts=ts,
        org=ORG,
        data=data,
        schema_marker=schema,
        connection="connection",
        parents=parents,
        ancestors_filter=EMPTY,
        registry=registry,
        checksum=checksum,
    )
    return sign_commit(author, unsigned, now_ms=ts if signed_at is None else signed_at)


def introduction(session: Session | OwnedSession, by: OwnedSession, *, key: str | None = None, **more: Any) -> Commit:
    """The session commit for `session`, signed by `by`."""
    public = session.session if isinstance(session, OwnedSession) else session
    return commit_by(by, key or public.id, session_fields(public), schema="sessions/1", **more)


@dataclass(frozen=True)
class RevokedSession:
    """A revoked session, as a trust pool reads it in an identity."""

    id: str


@dataclass(frozen=True)
class TrustedRoots:
    """The part of an identity that a trust pool follows."""

    current: OwnedSession
    roots: tuple[Session, ...]
    revoked: tuple[RevokedSession, ...] = ()
    anchored_trust: None = None


def pool_of(current: OwnedSession, *roots: OwnedSession, revoked: Sequence[str] = ()) -> TrustPool:
    return TrustPool(org=ORG, current=current, roots=[each.session for each in roots], revoked=revoked)


def signed_header(session: OwnedSession, now_ms: int = NOW) -> str:
    return sign_request(session, now_ms=now_ms, nonce=new_id())


class Node:
    """An engine that keeps its logs in memory, with helpers for tests."""

    def __init__(
        self,
        current: OwnedSession,
        *roots: OwnedSession,
        logs: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
        rules: Sequence[AccessRule] = (),
        registry: Registry = BUILTIN,
        load: bool = True,
        **more: Any,
    ) -> None:
        self.logs: dict[str, MemoryLog] = {path: MemoryLog(records) for path, records in (logs or {}).items()}
        self.pool = pool_of(current, *roots)
        self.engine = Engine(
            org=ORG,
            pool=self.pool,
            open_log=self.open_log,
            new_id=new_id,
            new_seeds=new_seeds,
            registry=registry,
            rules=rules,
            **more,
        )
        if load:
            self.engine.load_sessions()

    def open_log(self, path: str) -> Log:
        return self.logs.setdefault(path, MemoryLog())

    def repository(self, path: str) -> Repository:
        return self.engine.get_repository(path)

    def create_item(self, path: str, key: str, schema: str, data: Mapping[str, Any], now_ms: int) -> Commit:
        return drive_inline(self.engine.create_item_in_steps(path, key, schema, data, now_ms))

    def set_item(self, path: str, key: str, data: Mapping[str, Any], now_ms: int) -> Commit:
        return drive_inline(self.engine.set_item_in_steps(path, key, data, now_ms))

    def delete_item(self, path: str, key: str, now_ms: int) -> Commit:
        return drive_inline(self.engine.delete_item_in_steps(path, key, now_ms))

    def introduce_session(self, session: Session, now_ms: int) -> Commit:
        return drive_inline(self.engine.introduce_in_steps(session, now_ms))

    def send(self, body: Any, header: str | None, *, now_ms: int = NOW) -> Response:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        return drive_inline(self.engine.batch_sync(header, raw, now_ms))

    def sync(
        self,
        session: OwnedSession,
        path: str = "/data/test",
        commits: Sequence[Any] = (),
        *,
        held: BloomFilter = EMPTY,
        size: int = 0,
        now_ms: int = NOW,
        version: Any = VERSION,
    ) -> dict[str, Any]:
        """Push commits and return the one answer's message."""
        response = self.send(
            [element(path, commits, held=held, size=size, version=version)],
            signed_header(session, now_ms),
            now_ms=now_ms,
        )
        assert response.status == 200, response
        ((answer),) = json.loads(response.body)
        assert answer["path"] == path
        message: dict[str, Any] = answer["res"]
        return message

    def stored(self, path: str = "/data/test") -> set[str]:
        return set(self.repository(path).ids)


def element(
    path: str,
    commits: Sequence[Any] = (),
    *,
    held: BloomFilter = EMPTY,
    size: Any = 0,
    version: Any = VERSION,
) -> dict[str, Any]:
    raw = [commit.to_json() if isinstance(commit, Commit) else commit for commit in commits]
    return {
        "path": path,
        "msg": {"ver": version, "f": {"__t": "E", "__v": held.to_json()}, "s": size, "c": raw, "ad": []},
    }
