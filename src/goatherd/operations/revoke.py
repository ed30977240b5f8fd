"""Revoke a root whose private key was exposed, or show what a revocation would do: ``goatherd revoke``.

An expired root needs no revocation: `goatherd.operations.rotate.replace_expired` replaces it. A revocation cannot be
undone, so the caller must pass `confirmed` and a reason. A revocation without servers is an error unless the caller
explicitly allows it, because only servers can report which commits of the root stay valid.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, Unpack, cast

from goatherd.clock import Clock
from goatherd.errors import ConfigurationError, UnconfirmedError
from goatherd.identity.root_names import CURRENT_ROOT, PREVIOUS_ROOT, resolve_root
from goatherd.operations.identity_store import Store
from goatherd.operations.opening import Nodes, Servers, StoreName, make_signer_opener, open_cluster
from goatherd.operations.runs import EventListener, RunOptions, notify_each, record_run
from goatherd.revocation.report import RevocationReport
from goatherd.revocation.revoker import NEW, RevocableNode, Revoker
from goatherd.rotation.policy import Policy, check_lifetime, check_servers_listed
from goatherd.serving.server_url import one_or_more, parse_server_url

if TYPE_CHECKING:
    from goatherd.signers.verified import VerifiedSigner

REQUEST_TIMEOUT: Final = timedelta(seconds=120)
"""Timeout of one request to a server, whose answer may hold 50 000 sessions."""


async def revoke(
    store: StoreName,
    nodes: Servers = (),
    policy: Policy | None = None,
    *,
    org: str | None = None,
    root_id: str,
    reason: str,
    confirmed: bool = False,
    successor: str = NEW,
    leave_out: str | Iterable[str] = (),
    destroy: bool = False,
    reopen: bool = False,
    distrust: str | Iterable[str] = (),
    trust_alone: str | Iterable[str] = (),
    signer: str | VerifiedSigner | None = None,
    unsafe_without_nodes: bool = False,
    **options: Unpack[RunOptions],
) -> RevocationReport:
    """Revoke a root whose private key was exposed, or resume a revocation. Servers then reject its new commits.

    Args:
        store, nodes, policy, org, options: As for `goatherd.rotate`.
        root_id: The root to revoke: its id, a unique beginning of the id, ``current`` or ``previous``.
        reason: The reason, recorded in the identity's history.
        confirmed: Must be true, since a revocation cannot be undone.
        successor: The root that becomes the current root, if the revoked one is the current root: ``"new"``,
            ``"next"``, or the id of a previous root.
        leave_out: Ids of user sessions that are not reissued (signed again by another root), so that servers reject
            them.
        destroy: Destroy the stored versions that hold the revoked private key, without a grace period.
        reopen: Rebuild the list of frozen commits (those of the root that stay valid), with the commits of servers that
            were unreachable before.
        distrust: URLs of compromised servers, whose lists of commits and reports on the store's history are ignored.
        trust_alone: URLs of servers whose commits are accepted even if no other server holds them.
        signer: As for `goatherd.rotate`; the anchor signs the revocation.
        unsafe_without_nodes: Allow a revocation without servers. It only writes the identity: no commits are frozen,
            and no sessions are reissued.

    Raises:
        UnconfirmedError: `confirmed` is false. Nothing was written.
        ConfigurationError: No server is listed, there is no reason, or a URL is invalid.
        LifetimeError: The lifetime of the new root would be too short.
        AuditError, RotationError, ProviderError, IdentityError: As `goatherd.revocation.revoker.Revoker.revoke`.
    """
    opening = open_cluster(store, nodes, policy, org, signer=signer, least_timeout=REQUEST_TIMEOUT)
    async with opening as (opened, clients, policy):
        servers = await _list_servers(clients, unsafe_without_nodes=unsafe_without_nodes)
        if not reason:
            raise ConfigurationError(
                "a revocation needs a reason", hint="Give `reason`; it is recorded in the identity's history."
            )
        if confirmed is not True:
            raise UnconfirmedError(f"the revocation of root {root_id} was not confirmed; nothing was written")
        root_id = await choose_revoked_root(opened, root_id)
        if successor == NEW:
            check_lifetime(policy)
        judged = {"distrust": _parse_urls(distrust), "trust_alone": _parse_urls(trust_alone)}
        asked: dict[str, Any] = {
            "session": root_id,
            "reason": reason,
            "successor": successor,
            "destroy": destroy,
            "distrust": judged["distrust"],
            "trustAlone": judged["trust_alone"],
        }
        async with record_run(opened, "revoke", asked, options.get("audit_log")) as journal:
            listener = notify_each(options.get("on_event"), journal.record_event)
            revoker = _make_revoker(opened, servers, policy, signer, listener, options.get("clock"), **judged)
            return await revoker.revoke(
                root_id,
                reason=reason,
                successor=successor,
                leave_out=one_or_more(leave_out),
                destroy=destroy,
                reopen=reopen,
            )


async def plan_revocation(
    store: StoreName,
    nodes: Servers = (),
    policy: Policy | None = None,
    *,
    org: str | None = None,
    root_id: str,
    successor: str = NEW,
    leave_out: str | Iterable[str] = (),
    distrust: str | Iterable[str] = (),
    trust_alone: str | Iterable[str] = (),
    unsafe_without_nodes: bool = False,
    on_event: EventListener | None = None,
) -> RevocationReport:
    """Return what `revoke` would do, and which sessions it would reissue. Writes nothing.

    Args and errors are those of `revoke`.
    """
    opening = open_cluster(store, nodes, policy, org, least_timeout=REQUEST_TIMEOUT)
    async with opening as (opened, clients, policy):
        servers = await _list_servers(clients, unsafe_without_nodes=unsafe_without_nodes)
        root_id = await choose_revoked_root(opened, root_id)
        judged = {"distrust": _parse_urls(distrust), "trust_alone": _parse_urls(trust_alone)}
        revoker = _make_revoker(opened, servers, policy, None, on_event, None, **judged)
        return await revoker.plan(root_id, successor=successor, leave_out=one_or_more(leave_out))


async def choose_revoked_root(store: Store, named: str) -> str:
    """Return the id of the root to revoke, which may be named as `resolve_root` reads it.

    SECURITY: a command that is repeated to resume a revocation must not revoke the successor, which is the current root
    by then (tests/unit/operations/test_revoke.py).

    Raises:
        ConfigurationError: The name fits several roots; or it is ``current`` or ``previous`` while a revocation is
            unfinished.
        ProviderError, IdentityError: The store cannot be read, or does not hold an identity.
    """
    _, document = await store.read()
    unfinished = [one.id for one in document.unfinished_revocations]
    if unfinished and named in (CURRENT_ROOT, PREVIOUS_ROOT):
        raise ConfigurationError(
            f"the revocation of root {', '.join(unfinished)} is not finished; {named!r} may now be its successor",
            hint="Name the root by its id. The id of the revoked root resumes its revocation.",
        )
    return resolve_root(document, named)


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


async def _list_servers(nodes: Nodes, *, unsafe_without_nodes: bool) -> Sequence[RevocableNode]:
    servers = await nodes() if callable(nodes) else nodes
    check_revocation_servers(servers, unsafe_without_nodes=unsafe_without_nodes)
    return cast("Sequence[RevocableNode]", servers)


def _parse_urls(texts: str | Iterable[str]) -> list[str]:
    return [str(parse_server_url(text)) for text in one_or_more(texts)]


def _make_revoker(
    store: Store,
    servers: Sequence[RevocableNode],
    policy: Policy,
    signer: str | VerifiedSigner | None,
    on_event: EventListener | None,
    clock: Clock | None,
    **judged: Sequence[str],
) -> Revoker:
    return Revoker(
        store.provider,
        store.secret_id,
        servers,
        org=store.org,
        policy=policy,
        clock=clock,
        on_event=on_event,
        open_signer=make_signer_opener(signer),
        signers=store.signers,
        **judged,
    )
