"""Operations on an identity in a store, for Python programs that give the store and the servers as URLs.

These functions do what the commands do, with Python values as arguments and results. The operations themselves
(`goatherd.operations`) take opened stores and clients. Each function here opens the store and the servers that its
arguments name, calls one operation, and closes them before it returns. So a synchronous program needs only
``asyncio.run`` of one call.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import replace
from datetime import timedelta
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, Unpack, overload

from goatherd.cluster.discovery import NodeDirectory
from goatherd.errors import ConfigurationError
from goatherd.identity.document import IdentityDocument
from goatherd.identity.remote_key import accept_signer
from goatherd.operations import init as init_operations
from goatherd.operations import migrate as migrate_operations
from goatherd.operations import restore as restore_operations
from goatherd.operations import retire as retire_operations
from goatherd.operations import revoke as revoke_operations
from goatherd.operations import rotate as rotate_operations
from goatherd.operations import status as status_operations
from goatherd.operations.identity_store import Store, check_address_has_org
from goatherd.operations.rotate import RotationOptions
from goatherd.operations.runs import RunOptions
from goatherd.plugins import open_provider, provider_from_config
from goatherd.providers.base import SecretProvider
from goatherd.providers.values import CURRENT, ORG_FIELD, Label, VersionId, secret_id_for
from goatherd.rotation.anchor_keys import UNCHANGED, AnchorChoice, AnchorSigner, SignerOpener, open_pinned_signer
from goatherd.rotation.health_checks import HealthSignal
from goatherd.rotation.machine import Phase
from goatherd.rotation.policy import Policy, unlisted_for
from goatherd.server_url import one_or_more
from goatherd.settings.store import REFRESH_INTERVAL
from goatherd.wire.paths import DEFAULT_ORG

if TYPE_CHECKING:
    from goatherd.crypto import PublicKey
    from goatherd.operations.migrate import Migration
    from goatherd.operations.retire import Retirement
    from goatherd.operations.status import ClusterStatus
    from goatherd.revocation.report import RevocationReport
    from goatherd.rotation.events import Report
    from goatherd.rotation.plan import Plan
    from goatherd.rotation.replacement import ReplacementReport
    from goatherd.signers.verified import VerifiedSigner

StoreName = str | Mapping[str, object] | tuple[SecretProvider, str] | Store
"""What an operation takes as its store: the URI of a secret; a ``cloudConfig``; a provider and the id of a secret, as
`open_provider` returns them; or what `open_store` gives."""

Servers = str | Iterable[str]
"""What an operation takes as its servers: their URLs, or addresses at which they are discovered, such as ``dns://…``."""

_STORE_HINT: Final = (
    "Give the URI of a secret, such as file:///srv/keys/root, a cloudConfig, or what open_provider returns."
)
_ORG_HINT: Final = f"Is org right? Write {ORG_FIELD} into the address, such as file:///srv/keys/{ORG_FIELD}/root."
_SIGNER_HINT: Final = (
    "Give the URI of a signer, such as transit://vault.internal/transit/goatdb, or what goatherd.open_signer returns."
)
_SERVERS_HINT: Final = (
    "Give the URL of every server, such as http://10.0.0.1:8080, or an address such as dns://name:port."
)


@asynccontextmanager
async def open_store(store: StoreName, *, org: str | None = None) -> AsyncIterator[Store]:
    """Open a store for several operations, which then share its connections.

    Args:
        store: The URI of a secret; a ``cloudConfig``, or the settings of a server that contain one; a provider (which
            is not closed) and the id of a secret; or a store that is already open.
        org: The organization, which replaces ``{org}`` in the secret's id.

    Raises:
        ConfigurationError: `store` names no secret, or names the same secret for every organization although `org` is
            given.
        PluginNotFoundError, MissingExtraError: The plugin of the store cannot be loaded.
    """
    if isinstance(store, Store):
        if org not in (None, store.org):
            raise ConfigurationError(f"the store is open for organization {store.org!r}, not for {org!r}")
        yield store
        return
    provider, template, name = _named_store(store)
    chosen = DEFAULT_ORG if org is None else org
    check_address_has_org(template, name, chosen, hint=_ORG_HINT)
    # The caller's own provider opens itself with its first call, and the caller may go on to use it.
    async with nullcontext() if isinstance(store, tuple) else provider:
        yield Store(
            provider=provider,
            secret_id=secret_id_for(template, chosen),
            org=chosen,
            name=name.replace(ORG_FIELD, chosen),
        )


async def read_identity(
    store: StoreName, at: Label | VersionId | str = CURRENT, *, org: str | None = None
) -> IdentityDocument:
    """Return an identity as it is stored, with its private keys.

    Args:
        store: See `open_store`.
        at: A label such as ``"stable"``, or the id of a version.
        org: The organization.

    Raises:
        SecretNotFoundError: There is no such secret, label or version.
        ProviderError, IdentityError: The store cannot be read, or does not hold an identity.
    """
    async with open_store(store, org=org) as opened:
        if not isinstance(at, Label | VersionId):
            at = await opened.find(at)
        return (await opened.read(at))[1]


async def init(
    store: StoreName,
    *,
    org: str | None = None,
    policy: Policy | None = None,
    anchor: str | VerifiedSigner | None = None,
    create_key: bool = False,
    direct: bool = False,
) -> IdentityDocument:
    """Create the first identity of a cluster in a store that has none, and return it.

    Args:
        store: See `open_store`.
        org: The organization.
        policy: How long the root is valid: `Policy.lifetime`, or `Policy.working_lifetime` if there is an anchor.
        anchor: The signer (an HSM or a KMS) that holds the key of the identity's anchor: its URI, or what `open_signer`
            returns, which stays open. None for an identity without an anchor.
        create_key: Create the anchor's key first, and wait until it is ready: some minutes at most. It must not exist
            yet.
        direct: Let the anchor itself sign (direct mode). Signatures are made by the signer that the URI names.

    Raises:
        LifetimeError: The lifetime of the root would be too short.
        WrongClockError: This machine's clock differs from the store's.
        IdentityExistsError: The store holds an identity. Nothing was changed.
        ProviderError: The store could not be written.
        SignerError: The signer refused, did not answer, or holds the key already. Nothing was written.
    """
    uri = _signer_uri(anchor)
    _check_key_is_named(uri, create_key=create_key)
    async with open_store(store, org=org) as opened:
        _, document = await init_operations.init_identity(
            opened,
            _policy_for(policy, ()),
            anchor=uri,
            create_key=create_key,
            direct=direct,
            open_signer=_signer_opener(anchor, None),
        )
        return document


async def migrate(
    store: StoreName,
    sources: str | PathLike[str] | Iterable[str | PathLike[str]],
    nodes: Servers = (),
    *,
    org: str | None = None,
    policy: Policy | None = None,
    dry_run: bool = False,
    write_sessions: bool = True,
    is_only_server: bool = False,
    root_id: str | None = None,
    remove_key: bool = False,
) -> Migration:
    """Copy the identity of stopped GoatDB servers into a store.

    An identity already stored is not changed, except for a later expiration that a GoatDB server has given its root.

    Args:
        store: See `open_store`.
        sources: A ``settings.json`` or a data directory; for several servers of one cluster, one for each.
        nodes: Running servers, which are asked for their sessions and whether they accept the root.
        org: The only organization to migrate; None for all that the sources hold.
        policy: The timeout of a request, and by how much clocks may differ.
        dry_run: Write nothing.
        write_sessions: Write sessions that only ``settings.json`` has into the server's log of ``/sys/sessions``.
        is_only_server: State that no other server of the cluster was migrated before. Sessions are then written even if
            no other server can be asked for them.
        root_id: The root that becomes the current root if the servers have different ones.
        remove_key: Remove ``settings.json`` after the identity was read back from the store.

    Raises:
        ConfigurationError: No source is given, a source holds no ``settings.json`` and no earlier call has removed it,
            the store does not hold the root of a removed one, or several organizations would share one secret.
        IdentityExistsError: The store holds another identity. Nothing was written.
        GoatherdError: As `goatherd.operations.migrate.migrate_all`. Nothing was written.
    """
    policy = _policy_for(policy, ())

    def secret_for(orgs: Sequence[str]) -> str:
        if isinstance(store, Store):
            return store.secret_id
        _, template, name = _named_store(store)
        for one in orgs:
            check_address_has_org(template, name, one, hint=_ORG_HINT)
        return template

    target = migrate_operations.MigrationTarget(
        open_store=lambda one: open_store(store, org=one),
        secret_for=secret_for,
        addresses=_addresses(nodes),
        timeout=policy.node_timeout,
        clock_tolerance=policy.clock_tolerance,
        org=org,
    )
    given = (sources,) if isinstance(sources, str | PathLike) or not isinstance(sources, Iterable) else tuple(sources)
    for one in given:
        if not isinstance(one, str | PathLike):
            raise ConfigurationError(
                f"a {type(one).__name__} cannot be used as a source", hint="Give the path of a settings.json."
            )
    paths = [Path(one) for one in given]
    if not paths:
        raise ConfigurationError(
            "no source is given, so there is nothing to migrate",
            hint="Name a settings.json or a data directory of a GoatDB server.",
        )
    migration = await migrate_operations.migrate_all(
        target,
        paths,
        dry_run=dry_run,
        write_sessions=write_sessions,
        is_only_server=is_only_server,
        root_id=root_id,
    )
    if remove_key:
        await migrate_operations.remove_keys(target, migration, confirmed=True)
    return migration


async def status(
    store: StoreName, nodes: Servers = (), *, org: str | None = None, policy: Policy | None = None
) -> ClusterStatus:
    """Read the store, and ask every server which roots it trusts and which one it signs with. Changes nothing.

    Args:
        store: See `open_store`.
        nodes: The URLs of the servers, or URLs that discover them.
        org: The organization.
        policy: The policy of a rotation, and how long a private key is kept.

    Raises:
        ProviderError, IdentityError: The store cannot be read, or does not hold an identity.
    """
    async with _open_cluster(store, nodes, org, policy) as (opened, servers, policy):
        return await status_operations.read_status(opened, servers, policy)


async def plan_rotation(
    store: StoreName,
    nodes: Servers = (),
    *,
    org: str | None = None,
    policy: Policy | None = None,
    anchor: str | VerifiedSigner | None = None,
    direct: bool = False,
    working_root: bool = False,
    remove_anchor: bool = False,
    signer: str | VerifiedSigner | None = None,
    health: Sequence[HealthSignal] = (),
) -> Plan:
    """Return the steps, the servers and the obstacles of `rotate`, or of `resume` if a rotation is in progress.

    Nothing is written, and no health command is run. The signer of a new anchor signs a test text; so does that of the
    identity's anchor, if a server trusts the current root. Args are those of `rotate`.

    Raises:
        ProviderError, IdentityError: The store cannot be read, or does not hold an identity.
    """
    async with _open_cluster(store, nodes, org, policy) as (opened, servers, policy):
        return await rotate_operations.plan_rotation(
            opened,
            servers,
            policy,
            health=health,
            anchor=_anchor_choice(anchor, is_removed=remove_anchor, is_direct=direct, leaves_direct=working_root),
            open_signer=_signer_opener(anchor, signer),
        )


@overload
async def rotate(
    store: StoreName,
    nodes: Servers = (),
    *,
    org: str | None = None,
    policy: Policy | None = None,
    to_phase: Phase | str | None = None,
    anchor: str | VerifiedSigner | None = None,
    direct: bool = False,
    working_root: bool = False,
    remove_anchor: bool = False,
    create_key: bool = False,
    signer: str | VerifiedSigner | None = None,
    replace_expired: Literal[False] = False,
    unsafe_without_nodes: bool = False,
    **options: Unpack[RotationOptions],
) -> Report: ...


@overload
async def rotate(
    store: StoreName,
    nodes: Servers = (),
    *,
    org: str | None = None,
    policy: Policy | None = None,
    signer: str | VerifiedSigner | None = None,
    replace_expired: Literal[True],
    unsafe_without_nodes: bool = False,
    **options: Unpack[RunOptions],
) -> ReplacementReport: ...


@overload
async def rotate(
    store: StoreName,
    nodes: Servers = (),
    *,
    org: str | None = None,
    policy: Policy | None = None,
    signer: str | VerifiedSigner | None = None,
    replace_expired: bool,
    unsafe_without_nodes: bool = False,
    **options: Unpack[RunOptions],
) -> Report | ReplacementReport: ...


async def rotate(
    store: StoreName,
    nodes: Servers = (),
    *,
    org: str | None = None,
    policy: Policy | None = None,
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
    **options: Unpack[RunOptions],
) -> Report | ReplacementReport:
    """Replace the current root while the cluster serves, and return when every server signs with the new one.

    Args:
        store: See `open_store`.
        nodes: The URL of every server that holds this identity, or URLs that discover them. The rotation does not wait
            for a server that is missing here.
        org: The organization.
        policy: How long to wait for servers, and the lifetime of the new root.
        to_phase: Stop when this phase is reached, such as ``"published"``; `resume` continues.
        anchor: The signer that holds the key of a new anchor, which is added or replaces the present one: its URI, or
            what `open_signer` returns, which stays open.
        direct: Let the new anchor itself sign, without a working root (direct mode). Every server must be a `Server`
            with that key among its ``root_signers``.
        working_root: End direct mode: rotate to a working root, which the present anchor endorses.
        remove_anchor: Rotate to a root without an anchor; the present anchor must sign this change.
        create_key: Create the key of the new anchor first, and wait until it is ready: some minutes at most. It must
            not exist yet.
        signer: The signer of the present anchor; None to open it by the URI that the identity names.
        replace_expired: Replace a root that has expired, which cannot endorse a next root; what it has signed stays
            valid. The result is then a `goatherd.rotation.replacement.ReplacementReport`. If its ``is_complete`` is
            false, a listed server has not followed: call again. Not with ``to_phase``, ``anchor``, ``remove_anchor``,
            ``create_key`` or ``health``.
        unsafe_without_nodes: Rotate although no server is listed.
        health: Health checks that must pass before the rotation begins, and from when the new root signs until the
            rotation ends: objects with a ``name`` and a method ``async def ask()``, which returns None or the reason
            why the cluster is not healthy.
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
    choice = _anchor_choice(anchor, is_removed=remove_anchor, is_direct=direct, leaves_direct=working_root)
    _check_key_is_named(choice.signer, create_key=create_key)
    if replace_expired and (choice != UNCHANGED or to_phase is not None or health):
        raise ConfigurationError(
            "replace_expired cannot be combined with to_phase, health, or an argument that changes the anchor",
            hint="Replace the expired root first, then call rotate again.",
        )
    opener = _signer_opener(anchor, signer)
    async with _open_cluster(store, nodes, org, policy) as (opened, servers, policy):
        if replace_expired:
            return await rotate_operations.replace_expired(
                opened, servers, policy, open_signer=opener, unsafe_without_nodes=unsafe_without_nodes, **options
            )
        return await rotate_operations.rotate(
            opened,
            servers,
            policy,
            to_phase=_phase(to_phase),
            anchor=choice,
            create_key=create_key,
            open_signer=opener,
            unsafe_without_nodes=unsafe_without_nodes,
            health=health,
            **options,
        )


async def drop_lost_anchor(
    store: StoreName,
    nodes: Servers = (),
    *,
    org: str | None = None,
    reason: str = rotate_operations.LOST,
    policy: Policy | None = None,
    **options: Unpack[RunOptions],
) -> IdentityDocument:
    """Remove an anchor (a root key in an HSM or a KMS) whose key is lost, and return the new identity.

    The working root, whose key is in the store, continues to sign; in direct mode, in which the anchor itself signs, a
    new root signs from now on. Every server rejects the new identity until it is started once with
    ``--accept-identity``. If the anchor can still sign, use `rotate` with ``remove_anchor`` instead.

    Args:
        store, org, options: As for `rotate`.
        nodes: Every server. Their clocks and identities are compared with the store's, because a server that is started
            with ``--accept-identity`` also accepts an older identity. No server need be listed.
        reason: The reason, recorded in the identity's history.
        policy: In direct mode, the lifetime of the new root.

    Raises:
        IllegalStepError: The identity has no anchor, or a rotation is in progress. Nothing was written.
        StoreWentBackError: A server has used a later identity than the store holds. Nothing was written.
        AuditError, ProviderError, IdentityError: As `goatherd.operations.rotate.drop_lost_anchor`.
    """
    async with _open_cluster(store, nodes, org, policy) as (opened, servers, policy):
        return await rotate_operations.drop_lost_anchor(opened, servers, policy, reason=reason, **options)


async def resume(
    store: StoreName,
    nodes: Servers = (),
    *,
    org: str | None = None,
    policy: Policy | None = None,
    to_phase: Phase | str | None = None,
    unsafe_without_nodes: bool = False,
    **options: Unpack[RotationOptions],
) -> Report:
    """Resume the rotation in progress, whichever process started it. Does nothing if there is none.

    Args and errors are those of `rotate`, without `RotationBusyError`.
    """
    async with _open_cluster(store, nodes, org, policy) as (opened, servers, policy):
        return await rotate_operations.resume(
            opened,
            servers,
            policy,
            to_phase=_phase(to_phase),
            unsafe_without_nodes=unsafe_without_nodes,
            **options,
        )


async def cancel(
    store: StoreName,
    nodes: Servers = (),
    *,
    org: str | None = None,
    policy: Policy | None = None,
    reason: str = rotate_operations.ASKED,
    **options: Unpack[RotationOptions],
) -> Report:
    """Cancel the rotation in progress. Possible only before the next root signs.

    Args:
        store, nodes, org, policy, options: As for `rotate`.
        reason: The reason, recorded in the identity's history.

    Raises:
        IllegalStepError: There is no rotation in progress, or the next root already signs: use `roll_back` instead.
        RotationError, ProviderError, IdentityError: As `rotate`.
    """
    async with _open_cluster(store, nodes, org, policy) as (opened, servers, policy):
        return await rotate_operations.cancel(opened, servers, policy, reason=reason, **options)


async def roll_back(
    store: StoreName,
    nodes: Servers = (),
    *,
    org: str | None = None,
    policy: Policy | None = None,
    reason: str = rotate_operations.ASKED,
    **options: Unpack[RotationOptions],
) -> Report:
    """Roll back the rotation in progress: the previous root signs again, and both roots stay trusted.

    Args and errors are those of `cancel`, except that `IllegalStepError` means that the next root does not sign yet.
    """
    async with _open_cluster(store, nodes, org, policy) as (opened, servers, policy):
        return await rotate_operations.roll_back(opened, servers, policy, reason=reason, **options)


async def restore(
    store: StoreName,
    nodes: Servers = (),
    *,
    org: str | None = None,
    policy: Policy | None = None,
    root_id: str | None = None,
    to_phase: Phase | str | None = None,
    unsafe_without_nodes: bool = False,
    **options: Unpack[RotationOptions],
) -> Report:
    """Make a previous root the current root again, after a finished rotation. The current root stays trusted.

    Args:
        store, nodes, org, policy, to_phase, unsafe_without_nodes, options: As for `rotate`.
        root_id: The previous root; None for the last root before the current one.

    Raises:
        NotRestorableError: The store no longer holds the root's private key, or the root must not sign. Nothing was
            written.
        RotationError, ProviderError, IdentityError: As `rotate`.
    """
    async with _open_cluster(store, nodes, org, policy) as (opened, servers, policy):
        return await restore_operations.restore(
            opened,
            servers,
            policy,
            root_id=root_id,
            to_phase=_phase(to_phase),
            unsafe_without_nodes=unsafe_without_nodes,
            **options,
        )


async def retire(
    store: StoreName,
    nodes: Servers = (),
    *,
    org: str | None = None,
    policy: Policy | None = None,
    confirmed: bool = False,
    **options: Unpack[RunOptions],
) -> Retirement:
    """Destroy old private keys whose grace period has ended. The public keys of these roots stay trusted.

    Args:
        store, nodes, org, options: As for `rotate`; no server need be listed.
        policy: How long a private key is kept after it was replaced (`Policy.grace`).
        confirmed: Must be true, since destroyed keys cannot be recovered. `status` lists them before.

    Raises:
        UnconfirmedError: `confirmed` is false. Nothing was destroyed.
        IllegalStepError: A rotation is in progress.
        RotationError, ProviderError, IdentityError: As `goatherd.rotation.rotator.Rotator.retire`.
    """
    async with _open_cluster(store, nodes, org, policy) as (opened, servers, policy):
        return await retire_operations.retire(opened, servers, policy, confirmed=confirmed, **options)


async def revoke(
    store: StoreName,
    nodes: Servers = (),
    *,
    root_id: str,
    reason: str,
    confirmed: bool = False,
    org: str | None = None,
    policy: Policy | None = None,
    successor: str = "new",
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
        store, nodes, org, policy, options: As for `rotate`.
        root_id: The root to revoke.
        reason: The reason, recorded in the identity's history.
        confirmed: Must be true, since a revocation cannot be undone.
        successor: The root that becomes the current root, if the revoked one is the current root: ``"new"``,
            ``"next"``, or the id of a previous root.
        leave_out: Ids of user sessions that are not reissued (signed again by another root), so that servers reject
            them.
        destroy: Destroy the stored versions that hold the revoked private key, without a grace period.
        reopen: Rebuild the list of frozen commits (those of the root that stay valid), with the commits of servers that
            were unreachable before.
        distrust: URLs of compromised servers, whose lists of commits are ignored.
        trust_alone: URLs of servers whose commits are accepted even if no other server holds them.
        signer: As for `rotate`; the anchor signs the revocation.
        unsafe_without_nodes: Allow a revocation without servers. It only writes the identity: no commits are frozen,
            and no sessions are reissued.

    Raises:
        UnconfirmedError: `confirmed` is false. Nothing was written.
        ConfigurationError: No server is listed, or there is no reason.
        RotationError, ProviderError, IdentityError: As `goatherd.operations.revoke.revoke`.
    """
    least = revoke_operations.REQUEST_TIMEOUT
    async with _open_cluster(store, nodes, org, policy, least_timeout=least) as (opened, servers, policy):
        return await revoke_operations.revoke(
            opened,
            servers,
            policy,
            root_id=root_id,
            reason=reason,
            confirmed=confirmed,
            successor=successor,
            leave_out=one_or_more(leave_out),
            destroy=destroy,
            reopen=reopen,
            distrust=one_or_more(distrust),
            trust_alone=one_or_more(trust_alone),
            open_signer=_signer_opener(None, signer),
            unsafe_without_nodes=unsafe_without_nodes,
            **options,
        )


def _named_store(store: StoreName) -> tuple[SecretProvider, str, str]:
    """Return the provider, the secret's id with ``{org}`` not yet replaced, and the store's name for messages."""
    if isinstance(store, str):
        return (*open_provider(store), store)
    if isinstance(store, Mapping):
        config = store.get("cloudConfig", store)
        if not isinstance(config, Mapping):
            raise ConfigurationError("cloudConfig must be a mapping", hint=_STORE_HINT)
        provider, secret_id = provider_from_config(config)
        return provider, secret_id, f"{config['provider']}: {secret_id}"
    if isinstance(store, tuple) and len(store) == 2 and isinstance(store[0], SecretProvider):
        return store[0], store[1], f"{store[0].scheme}: {store[1]}"
    hint = _STORE_HINT
    if isinstance(store, AbstractAsyncContextManager):
        hint = "Use `async with goatherd.open_store(…) as store`, or give (provider, secret_id)."
    raise ConfigurationError(f"a {type(store).__name__} cannot be used as a store", hint=hint)


def _signer_uri(signer: str | VerifiedSigner | None) -> str | None:
    """Return the URI by which an identity names a signer; None if there is no signer."""
    uri = signer if signer is None or isinstance(signer, str) else getattr(signer, "uri", None)
    if signer is not None and not isinstance(uri, str):
        raise ConfigurationError(f"a {type(signer).__name__} cannot be used as an anchor", hint=_SIGNER_HINT)
    return uri


def _check_key_is_named(uri: str | None, *, create_key: bool) -> None:
    if create_key and uri is None:
        raise ConfigurationError("create_key needs `anchor`, the signer in which to create the key", hint=_SIGNER_HINT)


def _anchor_choice(
    anchor: str | VerifiedSigner | None, *, is_removed: bool, is_direct: bool, leaves_direct: bool
) -> AnchorChoice:
    return AnchorChoice(
        signer=_signer_uri(anchor), is_removed=is_removed, is_direct=is_direct, leaves_direct=leaves_direct
    )


def _signer_opener(new: str | VerifiedSigner | None, present: str | VerifiedSigner | None) -> SignerOpener:
    """Return a function that opens signers. A signer that the caller has opened is used as it is, and stays open.

    Args:
        new: The signer of a new anchor, whose key is not known yet.
        present: The signer of the present anchor; None for the one that the identity names.
    """
    if (named := _signer_uri(present)) is not None:
        accept_signer(named)

    def open_or_lend(uri: str, pinned: PublicKey | None) -> AnchorSigner:
        given = new if pinned is None else present
        if given is None or isinstance(given, str):
            return open_pinned_signer(given or uri, pinned)
        return given.lend(pinned)

    return open_or_lend


def _addresses(nodes: Servers) -> tuple[str, ...]:
    addresses = one_or_more(nodes) if isinstance(nodes, Iterable) else (nodes,)
    for one in addresses:
        if not isinstance(one, str):
            raise ConfigurationError(f"a {type(one).__name__} cannot be used as a server", hint=_SERVERS_HINT)
    return addresses


def _policy_for(policy: Policy | None, nodes: Servers) -> Policy:
    """Return the given policy, or a default one if it is None.

    If servers are discovered, the default policy allows time for servers that the discovery has missed.
    """
    if policy is not None:
        if not isinstance(policy, Policy):
            raise ConfigurationError(
                f"a {type(policy).__name__} is not a policy",
                hint="Write, for example, Policy(lifetime=timedelta(days=90)).",
            )
        return policy
    directory = NodeDirectory(_addresses(nodes), timeout=Policy().node_timeout)
    return replace(Policy(), unlisted=unlisted_for(REFRESH_INTERVAL)) if directory.is_discovered else Policy()


@asynccontextmanager
async def _open_cluster(
    store: StoreName,
    nodes: Servers,
    org: str | None,
    policy: Policy | None,
    *,
    least_timeout: timedelta = timedelta(0),
) -> AsyncIterator[tuple[Store, NodeDirectory, Policy]]:
    """Open what an operation takes: the store, the servers and the policy.

    Args:
        store, nodes, org, policy: As for `rotate`.
        least_timeout: The timeout of one request is at least this, whatever the policy says.
    """
    chosen = _policy_for(policy, nodes)
    # A manual-restart server is a server of the cluster, too.
    addresses = tuple(dict.fromkeys((*_addresses(nodes), *sorted(chosen.bare))))
    timeout = max(chosen.node_timeout, least_timeout)
    async with (
        open_store(store, org=org) as opened,
        NodeDirectory(addresses, timeout=timeout, org=opened.org) as servers,
    ):
        yield opened, servers, chosen


def _phase(text: Phase | str | None) -> Phase | None:
    if text is None:
        return None
    try:
        return Phase(text)
    except ValueError:
        known = ", ".join(one.value for one in Phase)
        raise ConfigurationError(f"{text!r} is not a phase of a rotation", hint=f"Phases: {known}.") from None
