"""A stand-in for an unmodified GoatDB server, and a door in front of it: every attack is tried on both."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import httpx2
import pytest

from goatherd.clock import SystemClock
from goatherd.door import commit_index, proxy, trusted_sessions
from goatherd.door.door import Door
from goatherd.door.limits import DoorLimits
from goatherd.door.request_checks import DoorRule
from goatherd.door.trusted_sessions import TrustedSessions
from goatherd.errors import VerificationError
from goatherd.identity.document import IdentityDocument
from goatherd.identity.session import OwnedSession
from goatherd.identity.transitions import create_document
from goatherd.wire.commit import Commit
from tests.deadlines import HANG
from tests.fakes.upstream_child import UpstreamChild
from tests.unit.goats import NOW, ORG, element, owned, root, signed_header

A, B = root("root-a"), root("root-b")
X, Y = owned("anon-x"), owned("anon-y")


@pytest.fixture(autouse=True)
def patient_door(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the door's deadlines so long that a slow machine causes no 503, except where a test sets a deadline."""
    for name in ("ANSWER_SECONDS", "PEER_ANSWER_SECONDS", "SESSION_SECONDS", "JUDGE_SECONDS"):
        monkeypatch.setattr(proxy, name, HANG)
    monkeypatch.setattr(commit_index, "_SETTLING_SECONDS", HANG)
    monkeypatch.setattr(trusted_sessions, "PATIENCE", timedelta(seconds=HANG))


async def believe(_: str, commits: Sequence[object]) -> list[VerificationError | None]:
    """Accept commits without verifying them."""
    return [None] * len(commits)


class Standing(SystemClock):
    """A clock that stands still until a test moves it; sleeping and measuring use the real time."""

    def __init__(self) -> None:
        self.at_ms = NOW

    def now_ms(self) -> int:
        return self.at_ms


@dataclass
class World:
    child: UpstreamChild
    door: Door
    trust: TrustedSessions
    clock: Standing
    http: httpx2.AsyncClient = field(repr=False)

    def base(self, through: bool) -> str:
        return self.door.url if through else self.child.url

    async def send(
        self,
        through: bool,
        body: Any,
        header: str | None = None,
        *,
        by: OwnedSession = X,
        path: str = "/batch-sync",
        method: str = "POST",
        headers: dict[str, str] | None = None,
    ) -> httpx2.Response:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        fields = dict(headers or {})
        if header != "":
            fields["x-goat-sig"] = header or signed_header(by, self.clock.at_ms)
        return await self.http.request(method, self.base(through) + path, content=raw, headers=fields)

    async def push(
        self, through: bool, path: str, *commits: Commit | dict[str, Any], by: OwnedSession = X
    ) -> httpx2.Response:
        return await self.send(through, [element(path, commits)], by=by)

    def stored(self, path: str) -> set[str]:
        return set(self.child.repositories.get(path, {}))

    def stopped(self, rule: DoorRule) -> int:
        return self.door.status.stopped.get(rule, 0)

    def pushes(self) -> list[bytes]:
        """The bodies with commits that reached the server."""
        found = []
        for _, target, body in self.child.reached:
            if target == "/batch-sync":
                with contextlib.suppress(ValueError, TypeError, KeyError):
                    if any(one["msg"]["c"] for one in json.loads(body)):
                        found.append(body)
        return found

    def others(self) -> list[tuple[str, str, bytes]]:
        """The requests that reached the server, except those of the door itself."""
        own = b'{"path":"'
        return [
            each
            for each in self.child.reached
            if not (each[1] == "/batch-sync" and own in each[2]) and each[:2] != ("OPTIONS", "/healthy")
        ]


def identity(
    current: OwnedSession = A, *more: OwnedSession, revoked: tuple[str, ...] = ()
) -> IdentityDocument | Identity:
    if not more and not revoked:
        return create_document(current, NOW)
    return Identity(current, tuple(each.session for each in (current, *more)), revoked)


@dataclass(frozen=True)
class Revoked:
    id: str


class Identity:
    """A stand-in for an identity: roots and revocations in any combination, without the checks of a document."""

    def __init__(self, current: OwnedSession, roots: tuple[Any, ...], revoked: tuple[str, ...]) -> None:
        self.current = current
        self.roots = roots
        self.revoked = tuple(Revoked(each) for each in revoked)
        self.anchored_trust = None


@contextlib.asynccontextmanager
async def world(
    *,
    limits: DoorLimits | None = None,
    private: bool = False,
    leaks: bool = True,
    forwarded_by: tuple[str, ...] = (),
    sessions: tuple[OwnedSession, ...] = (X, Y),
    given: Any = None,
    work: timedelta = timedelta(0),
) -> AsyncIterator[World]:
    clock = Standing()
    trust = TrustedSessions(org=ORG, identity=given or identity(), clock=clock)
    async with contextlib.AsyncExitStack() as stack:
        child = await stack.enter_async_context(UpstreamChild(A, clock=clock, leaks=leaks, work=work))
        for session in sessions:
            child.introduce(session.session)
        door = await stack.enter_async_context(
            Door(
                upstream=child.url,
                trust=trust,
                limits=limits,
                private=private,
                forwarded_by=forwarded_by,
                clock=clock,
            )
        )
        await trust.refresh()
        http = await stack.enter_async_context(httpx2.AsyncClient(verify=False, timeout=60))
        yield World(child, door, trust, clock, http)
