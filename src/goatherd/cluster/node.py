"""One server: the requests that Goatherd makes to it (`Node`), and what its answers have shown (`NodeView`)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from goatherd.cluster.server_answers import ServerIdentity
from goatherd.identity.session import OwnedSession, Session


class Node(Protocol):
    """The requests that Goatherd makes to a server. `goatherd.NodeClient` implements them over HTTP."""

    @property
    def base_url(self) -> str: ...

    async def batch_sync(
        self, requests: Sequence[tuple[str, Mapping[str, Any]]], signer: OwnedSession, now_ms: int | None = None
    ) -> list[dict[str, Any]]: ...

    async def push(
        self, path: str, commits: Iterable[Mapping[str, Any]], signer: OwnedSession, now_ms: int | None = None
    ) -> dict[str, Any] | None: ...

    async def identity(self) -> ServerIdentity | None: ...

    async def refresh(self, signer: OwnedSession, now_ms: int | None = None) -> dict[str, Any] | None: ...

    async def create_session(self) -> tuple[OwnedSession, list[Session]]: ...

    async def accepts_signature(self, signature: str) -> bool: ...

    async def time_ms(self) -> int | None: ...

    def clock_ahead_ms(self, now_ms: int) -> int | None: ...


NodeSource = Callable[[], Awaitable[Sequence[Node]]]
"""Returns the servers that there are now; called again for each observation. The source owns and closes them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeView:
    """What one server has shown when it was observed. None means not known (not asked, or no answer).

    Attributes:
        reachable: The server answered, possibly with a refusal.
        rejects: Error code with which the server reports that it rejects the identity document; else None.
        without_store: The server reports that it cannot reach the store and uses its last known good identity.
        is_bare: It is a manual-restart server: no rotation waits for it to sign with the next root (`Policy.bare`).
        is_unmodified: The server runs unmodified GoatDB, as far as earlier answers have shown.
        answers: Whether the server accepted a request signed by the current root.
        roots: Ids of the roots that the server reports as trusted.
        revoked: Ids of the sessions that the server reports as revoked.
        generation: Generation of the identity that the server uses, as it reports; None at an unmodified server.
        digest: Digest of that identity's text; None if the server does not report it.
        clock_ahead_ms: How far the server's clock is ahead of this machine's, negative if behind, after subtracting
            what the duration of the request explains.
        instance: The id of the server process that answered.
        partners: Ids of the server processes with which the server has recently synchronized, as it reports.
        is_partner_unknown: The server has a peer whose process id or reachability it does not know.
        holds_earlier: Ids of previous roots that are to be removed from the document, and whose introduction by the
            current root the server holds.
        activity: What the server's agent does with it, as a phrase such as "is being restarted by its agent".
        problem: Why something could not be observed, in one line.
    """

    url: str
    reachable: bool
    is_unmodified: bool = False
    answers: bool | None = None
    roots: tuple[str, ...] | None = None
    revoked: tuple[str, ...] = field(default=(), repr=False)
    generation: int | None = None
    digest: str | None = field(default=None, repr=False)
    clock_ahead_ms: int | None = field(default=None, compare=False)
    instance: str | None = None
    partners: frozenset[str] | None = None
    is_partner_unknown: bool = False
    trusts_next: bool | None = None
    holds_introduction: bool | None = None
    signs_with: str | None = None
    holds_cross_signature: bool | None = None
    rejects: str | None = None
    without_store: bool = False
    is_bare: bool = False
    holds_earlier: frozenset[str] | None = None
    activity: str | None = None
    problem: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowProbe:
    """Result of creating an anonymous session at one server and checking that the other servers know it.

    Attributes:
        at: URL of the server that created the session.
        unreached: URLs of the servers that did not know it in time.
        problem: Why no session could be created.
    """

    at: str
    unreached: tuple[str, ...] = ()
    problem: str | None = None
