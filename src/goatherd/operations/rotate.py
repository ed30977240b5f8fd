"""Replace the root key of an identity: plan, rotate, resume, cancel, roll back, and replace an expired root.

``goatherd rotate`` and Python programs call this; the caller opens the store and the servers. The rotation itself is
`goatherd.rotation.rotator`. A rotation without servers is an error unless the caller explicitly allows it, because it
cannot wait until servers trust the new root. Each run is recorded in the audit trail, if there is one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import Any, Final, TypedDict, Unpack

from goatherd.clock import Clock, SystemClock
from goatherd.cluster.discovery import NodeDirectory
from goatherd.cluster.node import Node, NodeSource
from goatherd.cluster.observer import Observer
from goatherd.identity import transitions
from goatherd.identity.document import IdentityDocument
from goatherd.identity.session import ROOT_OWNER, OwnedSession
from goatherd.ids import new_id
from goatherd.operations.anchor_key import create_anchor_key, mention_created_key
from goatherd.operations.identity_store import Store
from goatherd.operations.runs import AuditLogName, EventListener, RunOptions, current_actor, notify_each, record_run
from goatherd.rotation.anchor_keys import UNCHANGED, AnchorChoice, SignerOpener, open_pinned_signer
from goatherd.rotation.events import LostAnchorDropped, Report
from goatherd.rotation.health_checks import HealthCommand, HealthSignal
from goatherd.rotation.identity_writer import IdentityWriter
from goatherd.rotation.machine import Phase, Step
from goatherd.rotation.obstacles import check_own_clock
from goatherd.rotation.plan import Plan
from goatherd.rotation.policy import Policy, check_lifetime, check_rotation_servers, check_servers_listed
from goatherd.rotation.replacement import ReplacementReport, Replacer
from goatherd.rotation.rotator import Rotator
from goatherd.rotation.store_history import check_distrusted

Nodes = Sequence[Node] | NodeSource
"""Every server that holds the identity: a list, or a function that discovers them, such as a `NodeDirectory`."""


class RotationOptions(RunOptions, total=False):
    """Options of `rotate`, `resume`, `restore`, `cancel` and `roll_back`.

    Attributes:
        health: Health checks that must pass before the rotation begins, and from when the new root signs until the
            rotation ends.
    """

    health: Sequence[HealthSignal]


ASKED: Final = "asked for by the operator"
"""The default reason of a cancel or a roll-back."""


async def rotate(
    store: Store,
    nodes: Nodes,
    policy: Policy | None = None,
    *,
    to_phase: Phase | None = None,
    anchor: AnchorChoice = UNCHANGED,
    create_key: bool = False,
    on_wait: Callable[[timedelta], None] | None = None,
    unsafe_without_nodes: bool = False,
    open_signer: SignerOpener = open_pinned_signer,
    **options: Unpack[RotationOptions],
) -> Report:
    """Replace the current root, and return when every server signs with the new one.

    Args:
        store: The open store.
        nodes: Every server that holds this identity. The rotation does not wait for a server that is missing here.
        policy: How long to wait for servers, and the lifetime of the new root.
        to_phase: Stop when this phase is reached; `resume` continues.
        anchor: What the rotation changes about the anchor (the root key in an HSM or a KMS); by default nothing.
        create_key: Whether to create the key of the new anchor first; it must not exist yet.
        on_wait: Called once, with the longest duration of the wait, if the created key is not ready at once.
        unsafe_without_nodes: Rotate although no server is listed.
        open_signer: Opens the signer of the anchor by its URI.
        options: Health checks, and the options of every run.

    Raises:
        ConfigurationError: No server is listed; or the policy needs a working root, but no anchor endorses the next
            root.
        LifetimeError: The lifetime of the new root would be too short.
        AuditError: The audit trail cannot be written. Nothing was begun.
        SignerError: The anchor's signer refused or did not answer. Nothing was written.
        RotationError, ProviderError, IdentityError: As `goatherd.rotation.rotator.Rotator.rotate`.
    """
    check_lifetime(policy or Policy())
    changed = {} if anchor == UNCHANGED else {"anchor": anchor.signer, "removesAnchor": anchor.is_removed}
    if anchor.is_direct or anchor.leaves_direct:
        changed["direct"] = anchor.is_direct

    async def begin(rotator: Rotator) -> Report:
        # As late as possible: a key that no rotation uses costs money, and blocks the next attempt.
        was_created = create_key and anchor.signer is not None and await rotator.may_begin(anchor)
        if was_created and anchor.signer is not None:
            await create_anchor_key(anchor.signer, open_signer, on_wait=on_wait)
        with mention_created_key(was_created=was_created):
            return await rotator.rotate(to_phase=to_phase, anchor=anchor)

    return await run_rotation(
        begin,
        store,
        nodes,
        policy,
        {**describe_request("rotate", policy, to_phase=to_phase), **changed},
        unsafe_without_nodes=unsafe_without_nodes,
        open_signer=open_signer,
        **options,
    )


async def resume(
    store: Store,
    nodes: Nodes,
    policy: Policy | None = None,
    *,
    to_phase: Phase | None = None,
    unsafe_without_nodes: bool = False,
    **options: Unpack[RotationOptions],
) -> Report:
    """Resume the rotation in progress, whichever process started it. Does nothing if there is none.

    Args and errors are those of `rotate`, without `RotationBusyError`.
    """
    return await run_rotation(
        lambda rotator: rotator.resume(to_phase=to_phase),
        store,
        nodes,
        policy,
        describe_request("resume", policy, to_phase=to_phase),
        unsafe_without_nodes=unsafe_without_nodes,
        **options,
    )


async def cancel(
    store: Store,
    nodes: Nodes,
    policy: Policy | None = None,
    *,
    reason: str = ASKED,
    **options: Unpack[RotationOptions],
) -> Report:
    """Cancel the rotation in progress. Possible only before the next root signs.

    Args:
        store, nodes, policy, options: As for `rotate`.
        reason: The reason, recorded in the identity's history.

    Raises:
        IllegalStepError: There is no rotation in progress, or the next root already signs: use `roll_back` instead.
        AuditError, RotationError, ProviderError, IdentityError: As `rotate`.
    """
    return await _leave(store, nodes, policy, Step.CANCEL, reason, **options)


async def roll_back(
    store: Store,
    nodes: Nodes,
    policy: Policy | None = None,
    *,
    reason: str = ASKED,
    **options: Unpack[RotationOptions],
) -> Report:
    """Roll back the rotation in progress: the previous root signs again, and both roots stay trusted.

    Args and errors are those of `cancel`, except that `IllegalStepError` means that the next root does not sign yet.
    """
    return await _leave(store, nodes, policy, Step.ROLL_BACK, reason, **options)


async def _leave(
    store: Store, nodes: Nodes, policy: Policy | None, step: Step, reason: str, **options: Unpack[RotationOptions]
) -> Report:
    asked = describe_request("cancel" if step is Step.CANCEL else "rollback", policy, reason=reason)
    work = partial(Rotator.abandon, reason=reason, by=step)
    return await run_rotation(work, store, nodes, policy, asked, waits_for_servers=False, **options)


async def run_rotation(
    work: Callable[[Rotator], Awaitable[Report]],
    store: Store,
    nodes: Nodes,
    policy: Policy | None,
    asked: Mapping[str, object],
    *,
    command: str = "rotate",
    waits_for_servers: bool = True,
    unsafe_without_nodes: bool = False,
    open_signer: SignerOpener = open_pinned_signer,
    health: Sequence[HealthSignal] = (),
    audit_log: AuditLogName | None = None,
    on_event: EventListener | None = None,
    clock: Clock | None = None,
) -> Report:
    """Check that servers are listed, then run one operation of a rotator, recorded as one run in the audit trail.

    Args:
        work: The operation; called with the rotator.
        store, nodes, policy, unsafe_without_nodes, open_signer: As for `rotate`.
        asked: The arguments that the audit trail records, such as `describe_request` returns them.
        command: Name of the command that runs the operation.
        waits_for_servers: Whether the operation waits for servers, so that it is an error if none is listed.
        health, audit_log, on_event, clock: As in `RotationOptions`.
    """
    servers = await resolve_nodes(nodes)
    if waits_for_servers:
        check_rotation_servers(servers, unsafe_without_nodes=unsafe_without_nodes)
    async with record_run(store, command, asked, audit_log) as journal:
        rotator = make_rotator(
            store,
            servers,
            policy,
            health=health,
            on_event=notify_each(on_event, journal.record_event),
            on_identity=journal.use_identity,
            clock=clock,
            unsafe_without_nodes=unsafe_without_nodes,
            open_signer=open_signer,
        )
        return await work(rotator)


def describe_request(
    what: str, policy: Policy | None, *, reason: str = ASKED, to_phase: Phase | None = None
) -> dict[str, object]:
    """Return the arguments of an operation of a rotation, as the audit trail records them.

    Args:
        what: Name of the operation, such as ``resume``.
        policy: The policy, of which the distrusted servers are recorded.
        reason: Why a rotation is cancelled or rolled back.
        to_phase: The phase at which the rotation stops.
    """
    return {"what": what, "reason": reason, "toPhase": to_phase, **distrusted(policy)}


async def plan_rotation(
    store: Store,
    nodes: Nodes,
    policy: Policy | None = None,
    *,
    health: Sequence[HealthSignal] = (),
    anchor: AnchorChoice = UNCHANGED,
    clock: Clock | None = None,
    open_signer: SignerOpener = open_pinned_signer,
) -> Plan:
    """Return the steps, the servers and the obstacles of `rotate`, or of `resume` if a rotation is in progress.

    Nothing is written, and no health command is run.

    Raises:
        ProviderError, IdentityError: The store cannot be read, or does not hold an identity.
    """
    # SECURITY: a plan runs no health command, because operators request a plan before they trust the configuration
    # (tests/unit/cli/test_rotate_commands.py).
    named = [one.without_running() if isinstance(one, HealthCommand) else one for one in health]
    rotator = make_rotator(
        store, await resolve_nodes(nodes), policy, health=named, clock=clock, open_signer=open_signer
    )
    return await rotator.plan(anchor=anchor)


LOST: Final = "the anchor's key is lost"
"""The default reason for which an anchor is dropped."""


async def drop_lost_anchor(
    store: Store,
    nodes: Nodes,
    policy: Policy | None = None,
    *,
    reason: str = LOST,
    audit_log: AuditLogName | None = None,
    on_event: EventListener | None = None,
    clock: Clock | None = None,
) -> IdentityDocument:
    """Remove an anchor (a root key in an HSM or a KMS) whose key is lost, and return the new identity.

    The working root, whose key is in the store, continues to sign. In direct mode the anchor itself signs, so there is
    no working root: a new root, whose key is in the store, signs from then on.

    Every server rejects the new identity until it is started with ``--accept-identity``.

    Args:
        store: The open store.
        nodes: Every server. Their clocks and identities are compared with the store's, because a server that is started
            with ``--accept-identity`` also accepts an older identity. No server need be listed.
        policy: In direct mode, the lifetime of the new root.
        reason: The reason, recorded in the identity's history.
        audit_log, on_event, clock: As in `RunOptions`.

    Raises:
        IllegalStepError: The identity has no anchor, or a rotation is in progress.
        UnsignedIdentityError: The identity was altered without a root's key. Nothing was written.
        StoreWentBackError: A server has used a later identity than the store holds, or a different one. Nothing was
            written.
        WrongClockError: This machine's clock differs from the store's, or from those of most servers. Nothing was
            written.
        AuditError, ProviderError, IdentityError: As for `rotate`.
    """
    policy, clock = policy or Policy(), clock or SystemClock()
    asked = {"what": "drop-lost-anchor", "reason": reason, **distrusted(policy)}
    async with record_run(store, "rotate", asked, audit_log) as journal:
        servers = await resolve_nodes(nodes)
        observer = Observer(servers, clock=clock, timeout=policy.node_timeout, bare=policy.bare, org=store.org)
        check_distrusted(policy.distrust, () if observer.is_discovered else observer.nodes)
        listener = notify_each(on_event, journal.record_event)
        identity = IdentityWriter(
            store.provider,
            store.secret_id,
            policy=policy,
            clock=clock,
            ask=observer.read_identities,
            on_event=listener,
        )
        # SECURITY: servers that are started with --accept-identity follow the result also from a restored backup, and
        # lose the roots that have signed since (tests/unit/operations/test_rotate.py).
        await identity.check_history((await identity.read())[0])
        document, version = await identity.read_latest()
        await identity.signatures.check(document)
        now_ms = clock.now_ms()
        check_own_clock(
            store.provider.store_clock.ahead_ms(now_ms),
            {url: node.clock_ahead_ms(now_ms) for url, node in observer.nodes.items()},
            policy.clock_tolerance,
        )
        successor = None
        if document.is_direct and document.rotation is None:
            successor = OwnedSession.generate(
                session_id=new_id(), owner=ROOT_OWNER, now_ms=now_ms, lifetime=policy.lifetime
            )
        changed = transitions.drop_lost_anchor(document, now_ms, reason=reason, successor=successor)
        await identity.write(changed, version.id)
        assert document.anchor is not None
        event = LostAnchorDropped(
            anchor_id=document.anchor.id,
            signer=document.anchor.signer,
            current_id=changed.current.id,
            at_ms=now_ms,
            generation=changed.generation,
            reason=reason,
        )
        listener(event)
        return changed


async def replace_expired(
    store: Store,
    nodes: Nodes,
    policy: Policy | None = None,
    *,
    unsafe_without_nodes: bool = False,
    open_signer: SignerOpener = open_pinned_signer,
    audit_log: AuditLogName | None = None,
    on_event: EventListener | None = None,
    clock: Clock | None = None,
) -> ReplacementReport:
    """Replace a current root that has expired, and so cannot endorse a next root. Commits that it signed stay valid.

    Args:
        store, nodes, policy, unsafe_without_nodes, open_signer: As for `rotate`.
        audit_log, on_event, clock: As in `RunOptions`.

    Raises:
        ConfigurationError: No server is listed.
        LifetimeError: The lifetime of the new root would be too short.
        IllegalStepError: The current root has not expired.
        AuditError, RotationError, ProviderError, IdentityError: As `goatherd.rotation.replacement.Replacer.replace`.
    """
    servers = await resolve_nodes(nodes)
    consequence = "the new root could not be introduced to clients"
    check_servers_listed(servers, consequence, unsafe_without_nodes=unsafe_without_nodes)
    check_lifetime(policy or Policy())
    async with record_run(store, "rotate", {"what": "replace-expired"}, audit_log) as journal:
        replacer = Replacer(
            store.provider,
            store.secret_id,
            servers,
            org=store.org,
            policy=policy,
            clock=clock,
            on_event=notify_each(on_event, journal.record_event),
            open_signer=open_signer,
        )
        return await replacer.replace()


async def resolve_nodes(nodes: Nodes) -> Nodes:
    """Return the servers as a list if each is given by its URL.

    A caller can then count them. Servers that are discovered (a function, or a DNS or Kubernetes name) are returned
    unchanged.
    """
    if isinstance(nodes, NodeDirectory) and not nodes.is_discovered:
        return await nodes()
    return nodes


def distrusted(policy: Policy | None) -> dict[str, Any]:
    """Return the servers that the operator distrusts, for the audit trail; an empty dict if there are none."""
    return {"distrust": sorted(policy.distrust)} if policy is not None and policy.distrust else {}


class RotatorOptions(TypedDict, total=False):
    """Options of `make_rotator`, which are those of `goatherd.rotation.rotator.Rotator`."""

    health: Sequence[HealthSignal]
    on_event: EventListener | None
    on_identity: Callable[[IdentityDocument], None] | None
    clock: Clock | None
    started_by: str
    unsafe_without_nodes: bool
    open_signer: SignerOpener


def make_rotator(store: Store, servers: Nodes, policy: Policy | None, **options: Unpack[RotatorOptions]) -> Rotator:
    """Return a rotator for the identity in a store.

    Args:
        store, policy: As for `rotate`.
        servers: The result of `resolve_nodes`.
        options: As for `goatherd.rotation.rotator.Rotator`. By default, the rotation is started by user, host and
            process id.
    """
    options.setdefault("started_by", current_actor())
    return Rotator(store.provider, store.secret_id, servers, org=store.org, policy=policy, **options)
