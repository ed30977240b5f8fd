"""Replace the root key of an identity: plan, rotate, resume, cancel, roll back, and replace an expired root.

``goatherd rotate`` and Python programs call this. The rotation itself is `goatherd.rotation.rotator`. A rotation
without servers is an error unless the caller explicitly allows it, because it cannot wait until servers trust the new
root. Each run is recorded in the audit trail, if there is one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal, TypedDict, Unpack, overload

from goatherd.clock import Clock, SystemClock
from goatherd.cluster.discovery import NodeDirectory
from goatherd.cluster.observer import Observer
from goatherd.errors import ConfigurationError
from goatherd.identity import transitions
from goatherd.identity.document import IdentityDocument
from goatherd.identity.session import ROOT_OWNER, OwnedSession
from goatherd.ids import new_id
from goatherd.operations.anchor_key import create_anchor_key, mention_created_key
from goatherd.operations.identity_store import Store
from goatherd.operations.opening import (
    Nodes,
    Servers,
    StoreName,
    check_key_is_named,
    choose_policy,
    make_signer_opener,
    open_cluster,
    parse_phase,
    read_signer_uri,
)
from goatherd.operations.runs import AuditLogName, EventListener, RunOptions, current_actor, notify_each, record_run
from goatherd.rotation.anchor_keys import UNCHANGED, AnchorChoice, SignerOpener, open_anchor_signer
from goatherd.rotation.events import LostAnchorDropped, Report
from goatherd.rotation.health_checks import HealthSignal
from goatherd.rotation.identity_writer import IdentityWriter
from goatherd.rotation.machine import Phase, Step
from goatherd.rotation.obstacles import check_own_clock
from goatherd.rotation.plan import Plan
from goatherd.rotation.policy import Policy, check_lifetime, check_rotation_servers, check_servers_listed
from goatherd.rotation.replacement import ReplacementReport, Replacer
from goatherd.rotation.rotator import Rotator

if TYPE_CHECKING:
    from goatherd.signers.verified import VerifiedSigner


class RotationOptions(RunOptions, total=False):
    """Options of `rotate`, `resume`, `restore`, `cancel` and `roll_back`.

    Attributes:
        health: Health checks that must pass before the rotation begins, and from when the new root signs until the
            rotation ends.
    """

    health: Sequence[HealthSignal]


ASKED: Final = "asked for by the operator"
"""The default reason of a cancel or a roll-back."""


@overload
async def rotate(
    store: StoreName,
    nodes: Servers = (),
    policy: Policy | None = None,
    *,
    org: str | None = None,
    to_phase: Phase | str | None = None,
    anchor: str | VerifiedSigner | None = None,
    direct: bool = False,
    working_root: bool = False,
    remove_anchor: bool = False,
    create_key: bool = False,
    signer: str | VerifiedSigner | None = None,
    on_wait: Callable[[timedelta], None] | None = None,
    replace_expired: Literal[False] = False,
    unsafe_without_nodes: bool = False,
    **options: Unpack[RotationOptions],
) -> Report: ...


@overload
async def rotate(
    store: StoreName,
    nodes: Servers = (),
    policy: Policy | None = None,
    *,
    org: str | None = None,
    signer: str | VerifiedSigner | None = None,
    replace_expired: Literal[True],
    unsafe_without_nodes: bool = False,
    **options: Unpack[RunOptions],
) -> ReplacementReport: ...


@overload
async def rotate(
    store: StoreName,
    nodes: Servers = (),
    policy: Policy | None = None,
    *,
    org: str | None = None,
    signer: str | VerifiedSigner | None = None,
    replace_expired: bool,
    unsafe_without_nodes: bool = False,
    **options: Unpack[RunOptions],
) -> Report | ReplacementReport: ...


async def rotate(
    store: StoreName,
    nodes: Servers = (),
    policy: Policy | None = None,
    *,
    org: str | None = None,
    to_phase: Phase | str | None = None,
    anchor: str | VerifiedSigner | None = None,
    direct: bool = False,
    working_root: bool = False,
    remove_anchor: bool = False,
    create_key: bool = False,
    signer: str | VerifiedSigner | None = None,
    replace_expired: bool = False,
    unsafe_without_nodes: bool = False,
    health: Sequence[HealthSignal] = (),
    on_wait: Callable[[timedelta], None] | None = None,
    **options: Unpack[RunOptions],
) -> Report | ReplacementReport:
    """Replace the current root while the cluster serves, and return when every server signs with the new one.

    Args:
        store: See `open_store`.
        nodes: The URL of every server that holds this identity, or URLs that discover them. The rotation does not wait
            for a server that is missing here.
        policy: How long to wait for servers, and the lifetime of the new root.
        org: The organization.
        to_phase: Stop when this phase is reached, such as ``"published"``; `resume` continues.
        anchor: The signer that holds the key of a new anchor, which is added or replaces the present one: its URI, or
            what `open_signer` returns, which stays open.
        direct: Let the new anchor itself sign, without a working root (direct mode). Every server must be a `Server`
            with that key among its ``root_signers``.
        working_root: End direct mode: rotate to a working root, which the present anchor endorses.
        remove_anchor: Rotate to a root without an anchor; the present anchor must sign this change.
        create_key: Create the key of the new anchor first, and wait until it is ready: some minutes at most. It must
            not exist yet.
        signer: The signer of the present anchor, unless the store was opened with it.
        replace_expired: Replace a root that has expired, which cannot endorse a next root; what it has signed stays
            valid. The result is then a `goatherd.rotation.replacement.ReplacementReport`. If its ``is_complete`` is
            false, a listed server has not followed: call again. Not with ``to_phase``, ``anchor``, ``remove_anchor``,
            ``create_key`` or ``health``.
        unsafe_without_nodes: Rotate although no server is listed.
        health: Health checks that must pass before the rotation begins, and from when the new root signs until the
            rotation ends: objects with a ``name`` and a method ``async def ask()``, which returns None or the reason
            why the cluster is not healthy.
        on_wait: Called once, with the longest duration of the wait, if the created key is not ready at once.
        options: ``audit_log``, ``on_event``, ``clock``; see `goatherd.operations.runs.RunOptions`.

    Raises:
        ConfigurationError: No server is listed, or an argument is wrong. Nothing was written.
        IllegalStepError: With ``replace_expired``: the current root has not expired. Nothing was written.
        RotationBusyError: A rotation is in progress: `resume`, `cancel` or `roll_back` ends it.
        NotAdoptedError: A server did not adopt a change of the identity in time. The rotation was cancelled or rolled
            back.
        SignerError: The signer of an anchor refused or did not answer. Nothing was written.
        RotationError, ProviderError, IdentityError: As `goatherd.rotation.rotator.Rotator.rotate`.
    """
    choice = _choose_anchor(anchor, remove_anchor, direct, working_root)
    check_key_is_named(choice.signer, create_key=create_key)
    opener = make_signer_opener(anchor, signer)
    if replace_expired:
        if choice != UNCHANGED or to_phase is not None or health:
            raise ConfigurationError(
                "replace_expired cannot be combined with to_phase, health, or an argument that changes the anchor",
                hint="Replace the expired root first, then call rotate again.",
            )
        async with open_cluster(store, nodes, policy, org, signer=signer) as (opened, clients, policy):
            return await _replace_expired(
                opened,
                await resolve_nodes(clients),
                policy,
                unsafe_without_nodes=unsafe_without_nodes,
                open_signer=opener,
                **options,
            )
    check_lifetime(choose_policy(policy))
    stop_at = parse_phase(to_phase)
    changed = {} if choice == UNCHANGED else {"anchor": choice.signer, "removesAnchor": choice.is_removed}
    if choice.is_direct or choice.leaves_direct:
        changed["direct"] = choice.is_direct

    async def begin(rotator: Rotator) -> Report:
        # As late as possible: a key that no rotation uses costs money, and blocks the next attempt.
        was_created = create_key and choice.signer is not None and await rotator.may_begin(choice)
        if was_created and choice.signer is not None:
            await create_anchor_key(choice.signer, opener, on_wait=on_wait)
        with mention_created_key(was_created=was_created):
            return await rotator.rotate(to_phase=stop_at, anchor=choice)

    return await run_rotation(
        begin,
        store,
        nodes,
        policy,
        org,
        {**describe_request("rotate", to_phase=stop_at), **changed},
        unsafe_without_nodes=unsafe_without_nodes,
        signer=signer,
        open_signer=opener,
        health=health,
        **options,
    )


async def resume(
    store: StoreName,
    nodes: Servers = (),
    policy: Policy | None = None,
    *,
    org: str | None = None,
    to_phase: Phase | str | None = None,
    unsafe_without_nodes: bool = False,
    **options: Unpack[RotationOptions],
) -> Report:
    """Resume the rotation in progress, whichever process started it. Does nothing if there is none.

    Args and errors are those of `rotate`, without `RotationBusyError`.
    """
    stop_at = parse_phase(to_phase)
    return await run_rotation(
        lambda rotator: rotator.resume(to_phase=stop_at),
        store,
        nodes,
        policy,
        org,
        describe_request("resume", to_phase=stop_at),
        unsafe_without_nodes=unsafe_without_nodes,
        **options,
    )


async def cancel(
    store: StoreName,
    nodes: Servers = (),
    policy: Policy | None = None,
    *,
    org: str | None = None,
    reason: str = ASKED,
    **options: Unpack[RotationOptions],
) -> Report:
    """Cancel the rotation in progress. Possible only before the next root signs.

    Args:
        store, nodes, policy, org, options: As for `rotate`.
        reason: The reason, recorded in the identity's history.

    Raises:
        IllegalStepError: There is no rotation in progress, or the next root already signs: use `roll_back` instead.
        RotationError, ProviderError, IdentityError: As `rotate`.
    """
    return await _abandon_rotation(store, nodes, policy, org, Step.CANCEL, reason, **options)


async def roll_back(
    store: StoreName,
    nodes: Servers = (),
    policy: Policy | None = None,
    *,
    org: str | None = None,
    reason: str = ASKED,
    **options: Unpack[RotationOptions],
) -> Report:
    """Roll back the rotation in progress: the previous root signs again, and both roots stay trusted.

    Args and errors are those of `cancel`, except that `IllegalStepError` means that the next root does not sign yet.
    """
    return await _abandon_rotation(store, nodes, policy, org, Step.ROLL_BACK, reason, **options)


async def _abandon_rotation(
    store: StoreName,
    nodes: Servers,
    policy: Policy | None,
    org: str | None,
    step: Step,
    reason: str,
    **options: Unpack[RotationOptions],
) -> Report:
    asked = describe_request("cancel" if step is Step.CANCEL else "rollback", reason=reason)
    work = partial(Rotator.abandon, reason=reason, by=step)
    return await run_rotation(work, store, nodes, policy, org, asked, waits_for_servers=False, **options)


async def run_rotation(
    work: Callable[[Rotator], Awaitable[Report]],
    store: StoreName,
    nodes: Servers,
    policy: Policy | None,
    org: str | None,
    asked: Mapping[str, object],
    *,
    command: str = "rotate",
    waits_for_servers: bool = True,
    unsafe_without_nodes: bool = False,
    signer: str | VerifiedSigner | None = None,
    open_signer: SignerOpener = open_anchor_signer,
    health: Sequence[HealthSignal] = (),
    audit_log: AuditLogName | None = None,
    on_event: EventListener | None = None,
    clock: Clock | None = None,
) -> Report:
    """Check that servers are listed, then run one operation of a rotator, recorded as one run in the audit trail.

    Args:
        work: The operation; called with the rotator.
        store, nodes, policy, org, unsafe_without_nodes: As for `rotate`.
        asked: The arguments that the audit trail records, such as `describe_request` returns them.
        command: Name of the command that runs the operation.
        signer: The signer of the present anchor, if the operator names it.
        open_signer: Opens the signer of the anchor by its URI.
        waits_for_servers: Whether the operation waits for servers, so that it is an error if none is listed.
        health, audit_log, on_event, clock: As in `RotationOptions`.
    """
    async with open_cluster(store, nodes, policy, org, signer=signer) as (opened, clients, policy):
        servers = await resolve_nodes(clients)
        if waits_for_servers:
            check_rotation_servers(servers, unsafe_without_nodes=unsafe_without_nodes)
        async with record_run(opened, command, {**asked, **describe_distrust(policy)}, audit_log) as journal:
            rotator = make_rotator(
                opened,
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


def describe_request(what: str, *, reason: str = ASKED, to_phase: Phase | None = None) -> dict[str, object]:
    """Return the arguments of an operation of a rotation, as the audit trail records them.

    Args:
        what: Name of the operation, such as ``resume``.
        reason: Why a rotation is cancelled or rolled back.
        to_phase: The phase at which the rotation stops.
    """
    return {"what": what, "reason": reason, "toPhase": to_phase}


async def plan_rotation(
    store: StoreName,
    nodes: Servers = (),
    policy: Policy | None = None,
    *,
    org: str | None = None,
    anchor: str | VerifiedSigner | None = None,
    direct: bool = False,
    working_root: bool = False,
    remove_anchor: bool = False,
    signer: str | VerifiedSigner | None = None,
    health: Sequence[HealthSignal] = (),
    clock: Clock | None = None,
) -> Plan:
    """Return the steps, the servers and the obstacles of `rotate`, or of `resume` if a rotation is in progress.

    Nothing is written. The signer of a new anchor signs a test text; so does that of the
    identity's anchor, if a server trusts the current root. Args are those of `rotate`.

    Raises:
        ProviderError, IdentityError: The store cannot be read, or does not hold an identity.
    """
    choice = _choose_anchor(anchor, remove_anchor, direct, working_root)
    opener = make_signer_opener(anchor, signer)
    async with open_cluster(store, nodes, policy, org, signer=signer) as (opened, clients, policy):
        servers = await resolve_nodes(clients)
        rotator = make_rotator(opened, servers, policy, health=health, clock=clock, open_signer=opener)
        return await rotator.plan(anchor=choice)


def _choose_anchor(
    anchor: str | VerifiedSigner | None, remove_anchor: bool, direct: bool, working_root: bool
) -> AnchorChoice:
    return AnchorChoice(
        signer=read_signer_uri(anchor), is_removed=remove_anchor, is_direct=direct, leaves_direct=working_root
    )


LOST: Final = "the anchor's key is lost"
"""The default reason for which an anchor is dropped."""


async def drop_lost_anchor(
    store: StoreName,
    nodes: Servers = (),
    policy: Policy | None = None,
    *,
    org: str | None = None,
    reason: str = LOST,
    audit_log: AuditLogName | None = None,
    on_event: EventListener | None = None,
    clock: Clock | None = None,
) -> IdentityDocument:
    """Remove an anchor (a root key in an HSM or a KMS) whose key is lost, and return the new identity.

    The working root, whose key is in the store, continues to sign; in direct mode, in which the anchor itself signs, a
    new root signs from now on. Every server rejects the new identity until it is started once with
    ``--accept-identity``. If the anchor can still sign, use `rotate` with ``remove_anchor`` instead.

    Args:
        store, org: As for `rotate`.
        nodes: Every server. Their clocks and identities are compared with the store's, because a server that is started
            with ``--accept-identity`` also accepts an older identity. No server need be listed.
        reason: The reason, recorded in the identity's history.
        audit_log, on_event, clock: As in `RunOptions`.
        policy: In direct mode, the lifetime of the new root.

    Raises:
        IllegalStepError: The identity has no anchor, or a rotation is in progress. Nothing was written.
        StoreWentBackError: A server has used a later identity than the store holds. Nothing was written.
        AuditError, ProviderError, IdentityError: As `rotate`.
    """
    clock = clock or SystemClock()
    async with open_cluster(store, nodes, policy, org) as (opened, clients, policy):
        asked = {"what": "drop-lost-anchor", "reason": reason, **describe_distrust(policy)}
        async with record_run(opened, "rotate", asked, audit_log) as journal:
            servers = await resolve_nodes(clients)
            observer = Observer(servers, clock=clock, timeout=policy.node_timeout, bare=policy.bare, org=opened.org)
            listener = notify_each(on_event, journal.record_event)
            identity = IdentityWriter(
                opened.provider,
                opened.secret_id,
                policy=policy,
                clock=clock,
                ask=observer.read_identities,
                on_event=listener,
                signers=opened.signers,
            )
            # SECURITY: servers that are started with --accept-identity follow the result also from a restored backup,
            # and lose the roots that have signed since (tests/unit/operations/test_rotate.py).
            await identity.check_history((await identity.read())[0])
            document, version = await identity.read_latest()
            await identity.signatures.check_document(document)
            now_ms = clock.now_ms()
            check_own_clock(
                opened.provider.store_clock.ahead_ms(now_ms),
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
                anchor_id=document.anchor,
                current_id=changed.current.id,
                at_ms=now_ms,
                generation=changed.generation,
                reason=reason,
            )
            listener(event)
            return changed


async def _replace_expired(
    store: Store,
    servers: Nodes,
    policy: Policy,
    *,
    unsafe_without_nodes: bool,
    open_signer: SignerOpener,
    audit_log: AuditLogName | None = None,
    on_event: EventListener | None = None,
    clock: Clock | None = None,
) -> ReplacementReport:
    """Replace a current root that has expired, and so cannot endorse a next root."""
    consequence = "the new root could not be introduced to clients"
    check_servers_listed(servers, consequence, unsafe_without_nodes=unsafe_without_nodes)
    check_lifetime(policy)
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
            signers=store.signers,
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


def describe_distrust(policy: Policy | None) -> dict[str, Any]:
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
    return Rotator(
        store.provider, store.secret_id, servers, org=store.org, policy=policy, signers=store.signers, **options
    )
