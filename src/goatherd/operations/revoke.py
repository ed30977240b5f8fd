"""Revoke a root whose private key was exposed, or show what a revocation would do: ``goatherd revoke``.

An expired root needs no revocation: `goatherd.operations.rotate.replace_expired` replaces it. A revocation cannot be
undone, so the caller must pass `confirmed` and a reason. A revocation without servers is an error unless the caller
explicitly allows it, because only servers can report which commits of the root stay valid.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import timedelta
from typing import Any, Final

from goatherd.clock import Clock
from goatherd.cluster.discovery import NodeDirectory
from goatherd.errors import ConfigurationError, UnconfirmedError
from goatherd.operations.identity_store import Store
from goatherd.operations.runs import AuditLogName, EventListener, notify_each, record_run
from goatherd.revocation.report import RevocationReport
from goatherd.revocation.revoker import NEW, RevocableNode, Revoker
from goatherd.rotation.anchor_keys import SignerOpener, open_pinned_signer
from goatherd.rotation.policy import Policy, check_lifetime, check_servers_listed
from goatherd.server_url import parse_server_url

REQUEST_TIMEOUT: Final = timedelta(seconds=120)
"""Timeout of one request to a server, whose answer may hold 50 000 sessions."""


async def revoke(
    store: Store,
    nodes: Sequence[RevocableNode] | NodeDirectory,
    policy: Policy | None = None,
    *,
    root_id: str,
    reason: str,
    confirmed: bool = False,
    successor: str = NEW,
    leave_out: Collection[str] = (),
    destroy: bool = False,
    reopen: bool = False,
    distrust: Sequence[str] = (),
    trust_alone: Sequence[str] = (),
    unsafe_without_nodes: bool = False,
    audit_log: AuditLogName | None = None,
    on_event: EventListener | None = None,
    clock: Clock | None = None,
    open_signer: SignerOpener = open_pinned_signer,
) -> RevocationReport:
    """Revoke a root, or resume a revocation. Servers then reject every new commit that the root signs.

    Args:
        store: The open store.
        nodes: Every server that holds this identity, with a timeout of at least `REQUEST_TIMEOUT`.
        policy: How long to wait for servers, and the lifetime of a new root.
        root_id: The root to revoke.
        reason: The reason, recorded in the identity's history.
        confirmed: Must be true, since a revocation cannot be undone.
        successor: The root that becomes the current root, if the revoked one is the current root: ``new``, ``next``, or
            the id of a previous root.
        leave_out: Ids of user sessions that are not reissued (signed again by another root), so that servers reject
            them.
        destroy: Destroy the stored versions that hold the revoked private key, without a grace period.
        reopen: Rebuild the list of frozen commits (those of the root that stay valid), with the commits of servers that
            were unreachable before.
        distrust: URLs of compromised servers, whose lists of commits and reports on the store's history are ignored.
        trust_alone: URLs of servers whose commits are accepted even if no other server holds them.
        unsafe_without_nodes: Allow a revocation without servers. It only writes the identity: no commits are frozen,
            and no sessions are reissued.
        audit_log, on_event, clock, open_signer: As for `goatherd.operations.rotate.rotate`.

    Raises:
        ConfigurationError: No server is listed, there is no reason, or a URL is invalid.
        UnconfirmedError: `confirmed` is false.
        LifetimeError: The lifetime of the new root would be too short.
        AuditError, RotationError, ProviderError, IdentityError: As `goatherd.revocation.revoker.Revoker.revoke`.
    """
    servers = await _listed(nodes)
    check_revocation_servers(servers, unsafe_without_nodes=unsafe_without_nodes)
    if not reason:
        raise ConfigurationError(
            "a revocation needs a reason", hint="Give `reason`; it is recorded in the identity's history."
        )
    if confirmed is not True:
        raise UnconfirmedError(f"the revocation of root {root_id} was not confirmed; nothing was written")
    if successor == NEW:
        check_lifetime(policy or Policy())
    asked: dict[str, Any] = {
        "session": root_id,
        "reason": reason,
        "successor": successor,
        "destroy": destroy,
        "distrust": _urls(distrust),
        "trustAlone": _urls(trust_alone),
    }
    async with record_run(store, "revoke", asked, audit_log) as journal:
        listener = notify_each(on_event, journal.record_event)
        revoker = _make_revoker(store, servers, policy, distrust, trust_alone, listener, clock, open_signer)
        return await revoker.revoke(
            root_id, reason=reason, successor=successor, leave_out=leave_out, destroy=destroy, reopen=reopen
        )


async def plan_revocation(
    store: Store,
    nodes: Sequence[RevocableNode] | NodeDirectory,
    policy: Policy | None = None,
    *,
    root_id: str,
    successor: str = NEW,
    leave_out: Collection[str] = (),
    distrust: Sequence[str] = (),
    trust_alone: Sequence[str] = (),
    unsafe_without_nodes: bool = False,
    on_event: EventListener | None = None,
    clock: Clock | None = None,
    open_signer: SignerOpener = open_pinned_signer,
) -> RevocationReport:
    """Return what `revoke` would do, and which sessions it would reissue. Writes nothing.

    Args and errors are those of `revoke`.
    """
    servers = await _listed(nodes)
    check_revocation_servers(servers, unsafe_without_nodes=unsafe_without_nodes)
    revoker = _make_revoker(store, servers, policy, distrust, trust_alone, on_event, clock, open_signer)
    return await revoker.plan(root_id, successor=successor, leave_out=leave_out)


def check_revocation_servers(servers: object, *, unsafe_without_nodes: bool) -> None:
    """Refuse a revocation without servers, which would freeze none of the commits that the root has signed.

    SECURITY: a commit can be frozen only if a server has reported it (tests/unit/operations/test_revoke.py).

    Args:
        servers: The listed servers, or their addresses.
        unsafe_without_nodes: Whether the caller asks for a revocation without servers.

    Raises:
        ConfigurationError: No server is listed, and `unsafe_without_nodes` is false.
    """
    check_servers_listed(
        servers,
        "the commits that the cluster holds cannot be collected",
        unsafe_without_nodes=unsafe_without_nodes,
        command_hint="Give --node URL for each server. In an emergency: --unsafe-without-nodes first, --node later.",
    )


async def _listed(nodes: Sequence[RevocableNode] | NodeDirectory) -> Sequence[RevocableNode]:
    return await nodes() if isinstance(nodes, NodeDirectory) else nodes


def _urls(texts: Sequence[str]) -> list[str]:
    return [str(parse_server_url(text)) for text in texts]


def _make_revoker(
    store: Store,
    servers: Sequence[RevocableNode],
    policy: Policy | None,
    distrust: Sequence[str],
    trust_alone: Sequence[str],
    on_event: EventListener | None,
    clock: Clock | None,
    open_signer: SignerOpener,
) -> Revoker:
    return Revoker(
        store.provider,
        store.secret_id,
        servers,
        org=store.org,
        policy=policy,
        distrust=_urls(distrust),
        trust_alone=_urls(trust_alone),
        clock=clock,
        on_event=on_event,
        open_signer=open_signer,
    )
