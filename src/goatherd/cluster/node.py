"""One server of a cluster: the requests that Goatherd makes to it (`Node`), and its observed state (`NodeView`)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Protocol

from goatherd.cluster.server_answers import PeerReport, ServerIdentity
from goatherd.identity.session import OwnedSession, Session


class Sendable(Protocol):
    """The interface of a commit that can be pushed to a server: `encoded` is its JSON in GoatDB's form.

    `goatherd.wire.commit.Commit` implements it.
    """

    @property
    def encoded(self) -> bytes: ...


class Node(Protocol):
    """The interface of a client of one server, for the requests that Goatherd makes, such as `goatherd.NodeClient`."""

    @property
    def base_url(self) -> str: ...

    async def batch_sync(
        self, requests: Sequence[tuple[str, Mapping[str, Any]]], signer: OwnedSession, now_ms: int | None = None
    ) -> list[dict[str, Any]]: ...

    async def push(
        self,
        path: str,
        commits: Iterable[Sendable | Mapping[str, Any]],
        signer: OwnedSession,
        now_ms: int | None = None,
    ) -> dict[str, Any] | None: ...

    async def identity(self) -> ServerIdentity | None: ...

    async def refresh(self, signer: OwnedSession, now_ms: int | None = None) -> dict[str, Any] | None: ...

    async def list_peers(self, signer: OwnedSession, now_ms: int | None = None) -> tuple[PeerReport, ...]: ...

    async def create_session(self) -> tuple[OwnedSession, list[Session]]: ...

    async def accepts_signature(self, signature: str) -> bool: ...

    async def time_ms(self) -> int | None: ...

    def clock_ahead_ms(self, now_ms: int) -> int | None: ...


NodeSource = Callable[[], Awaitable[Sequence[Node]]]
"""Returns the servers that there are now; called again for each observation. The source owns and closes them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeView:
    """Everything that is known of one server: what it reports about itself, and what its answers prove.

    None means not known (not asked, or no answer). `goatherd.cluster.observer` makes the views. Two views are equal if
    they differ in nothing on which a rotation bases its decisions; their clocks, for example, may differ.

    Attributes:
        reachable: The server answered, possibly with a refusal.
        report: What the server, or its agent, reports about itself; empty if it reports nothing.
        rejects: Error code with which the server reports that it rejects the identity document; else None.
        without_store: The server reports that it cannot reach the store and uses its last known good identity.
        is_bare: It is a manual-restart server: no rotation waits for it to sign with the next root (`Policy.bare`).
        is_unmodified: The server runs unmodified GoatDB, as far as its answers have shown.
        trusts_current: Whether the server accepted a request signed by the current root.
        roots: Ids of the roots that the server reports as trusted.
        revoked: Ids of the sessions that the server reports as revoked.
        generation: Generation of the identity that the server uses, as it reports; None at an unmodified server.
        digest: Digest of that identity's text; None if the server does not report it.
        clock_ahead_ms: How far the server's clock is ahead of this machine's, negative if behind, at the least: a
            difference that the duration of the request can explain is not counted.
        instance: The id of the server process that answered.
        is_shared: Several server processes answer at this URL in turn, as behind a load balancer.
        partners: Ids of the server processes with which the server has recently synchronized, as it reports.
        is_partner_unknown: The server has a peer whose process id or reachability it does not know.
        unlisted_peers: The server's peers that accept its requests, and so trust its root, and are no listed servers:
            their URLs, as it reports them to a root.
        signs_with: Id of the root that signs at the server: a Goatherd server reports it, and the commits of an
            unmodified server prove it.
        holds_earlier: Ids of previous roots that are to be removed from the document, and whose introduction by the
            current root the server holds.
        activity: What the server's agent does with the server, as a phrase such as "is being restarted by its agent".
        problem: Why something could not be observed, in one line.
    """

    url: str
    reachable: bool
    is_unmodified: bool = False
    report: ServerIdentity = field(default_factory=ServerIdentity, compare=False, repr=False)
    trusts_current: bool | None = None
    roots: tuple[str, ...] | None = None
    revoked: tuple[str, ...] = field(default=(), repr=False)
    generation: int | None = None
    digest: str | None = field(default=None, repr=False)
    clock_ahead_ms: int | None = field(default=None, compare=False)
    instance: str | None = None
    is_shared: bool = False
    partners: frozenset[str] | None = None
    is_partner_unknown: bool = False
    unlisted_peers: tuple[str, ...] = ()
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

    @property
    def region(self) -> str | None:
        """The region in which the server stands, as it reports; None if it reports none."""
        return self.report.region

    @property
    def version(self) -> str | None:
        """Version of Goatherd that the server or its agent reports.

        Empty for an unmodified GoatDB server without an agent; None if the version is not known.
        """
        is_without_goatherd = self.is_unmodified and self.report.agent is None
        return self.report.version or ("" if is_without_goatherd else None)

    def is_in_step(self, current_id: str) -> bool:
        """Return whether the server trusts the current root and, as far as is known, signs with it.

        If an unmodified server was not asked, it is not known with which root it signs.
        """
        is_silent = self.is_unmodified and self.signs_with is None
        return self.trusts_current is True and (is_silent or self.signs_with == current_id)

    def why_cannot_sign(self, fingerprint: str) -> str | None:
        """Return why the server cannot sign with a root's key in an HSM or a KMS, as a phrase; None if it can.

        Args:
            fingerprint: Fingerprint of the public key.
        """
        signers = self.report.root_signers
        if signers is None:
            return "cannot use a root whose key is in an HSM or a KMS"
        found = next((one for one in signers if one.fingerprint == fingerprint), None)
        if found is not None:
            return None if found.problem is None else f"cannot sign with the key: {found.problem}"
        unknown = next((one.problem for one in signers if one.fingerprint is None), None)
        return "was not started with the signer of the key" if unknown is None else f"cannot read the key: {unknown}"

    def is_of_another_identity(self, root_ids: Set[str]) -> bool:
        """Return whether the server belongs to another identity: it reports roots, but none of the given ones.

        A root that the server rejects as revoked counts as reported. So a server is not taken for one of another
        identity if the store was restored from a backup that lists only a root which has been revoked since.

        Args:
            root_ids: The roots that the identity in the store lists.
        """
        known = (*(self.roots or ()), *self.revoked)
        return self.roots is not None and bool(known and root_ids) and root_ids.isdisjoint(known)

    def is_stale(self, usual: timedelta) -> bool:
        """Return whether the server's last valid read of the store is longer ago than three of its read intervals.

        Both times are as the server reports them; False if it does not report when it last read the store.

        Args:
            usual: The interval to assume for a server that does not report one.
        """
        age, interval = self.report.view_age, self.report.view_interval if self.report.says_interval else usual
        return age is not None and interval is not None and age > 3 * interval

    def find_problem(self) -> str | None:
        """Return what is wrong with the server, as a phrase; None if no problem is known.

        It did not answer, rejects the identity in the store, or cannot sign as the current root.
        """
        code = self.report.refusal or ""
        if self.problem is None and code.startswith("identity."):
            return f"rejects the store's identity: {code}"
        cannot_sign = self.report.signing_problem
        return self.problem or (None if cannot_sign is None else f"cannot sign as the root: {cannot_sign}")


def group_by_region(nodes: Iterable[NodeView]) -> dict[str | None, list[NodeView]]:
    """Return the servers grouped by the region that they report, None for those that report none.

    The regions are in the order in which they first occur among the servers.
    """
    return _group(nodes, lambda node: node.region)


def group_by_version(nodes: Iterable[NodeView]) -> dict[str | None, list[NodeView]]:
    """Return the servers that report about themselves, grouped by the version of Goatherd that they report.

    These are Goatherd servers and servers under an agent. The version is None for those that do not report it.
    """
    return _group((node for node in nodes if node.report != ServerIdentity()), lambda node: node.version)


def _group(nodes: Iterable[NodeView], key: Callable[[NodeView], str | None]) -> dict[str | None, list[NodeView]]:
    groups: dict[str | None, list[NodeView]] = {}
    for node in nodes:
        groups.setdefault(key(node), []).append(node)
    return groups


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowProbe:
    """Result of checking that a session created at one server reaches the other servers.

    Attributes:
        at: URL of the server that created the session, or was to create it.
        unreached: URLs of the servers that the session did not reach in time.
        problem: Why no session could be created; None if there was one.
    """

    at: str
    unreached: tuple[str, ...] = ()
    problem: str | None = None
