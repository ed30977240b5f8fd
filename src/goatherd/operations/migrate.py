"""Migrate a GoatDB cluster: put its identity into a store, verify the stored copy, remove the key from the disks.

`migrate_all` reads settings.json and the ``/sys/sessions`` log of one or several servers and organizations, writes each
identity into the store, writes the trusted user sessions of each settings.json into the log of the same server, reads
the store back, and asks the running servers whether they accept the root. It stops no server. `remove_keys` removes the
settings.json files.

Rules: an identity that the store already holds is never overwritten; only the expiration of its current root becomes a
later one, which a GoatDB server has given the root meanwhile. A log that a process has open is not changed. A second
run changes nothing. A key is removed from a disk only after the store has returned the same identity, with an
expiration at which all that the root has signed is valid, and only if none of the servers rejects the root.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack
from dataclasses import dataclass, field, replace
from datetime import timedelta
from os import PathLike
from pathlib import Path

import orjson

from goatherd.clock import SystemClock
from goatherd.cluster.client import NodeClient
from goatherd.cluster.discovery import NodeDirectory
from goatherd.cluster.node import NodeView
from goatherd.cluster.observer import observe_trust
from goatherd.errors import (
    ConfigurationError,
    IdentityExistsError,
    IllegalStepError,
    SecretExistsError,
    SecretNotFoundError,
    SettingsError,
    UnconfirmedError,
    UnsignedIdentityError,
)
from goatherd.files import remove_file, replace_file
from goatherd.identity.document import IdentityDocument, encode_document, sign_document
from goatherd.identity.session import OwnedSession, Session
from goatherd.identity.settings_json import describe_short_life
from goatherd.identity.transitions import extend_current_root
from goatherd.node.log_storage import LogDirectory
from goatherd.operations.git_history import GitFinding, find_in_git
from goatherd.operations.identity_store import Store, check_address_has_org
from goatherd.operations.merge_identities import (
    contains_root,
    covers_root,
    describe_double_keys,
    describe_union,
    find_doubtful_roots,
    merge_server_identities,
    pair_roots,
)
from goatherd.operations.migration_files import (
    MigrationSource,
    check_signed_for,
    describe_key_copies,
    find_sources,
    make_note,
    read_note,
    read_settings,
)
from goatherd.operations.migration_sessions import (
    StoredIdentity,
    agree_on_sessions,
    compare_sessions,
    find_held_by_servers,
    find_held_in_logs,
    find_root_introductions,
    with_pruned_root,
)
from goatherd.operations.opening import (
    ORG_HINT,
    StoreName,
    choose_policy,
    name_store,
    open_store,
    read_addresses,
)
from goatherd.providers.values import CURRENT, ORG_FIELD, SecretBytes
from goatherd.rotation.policy import Policy
from goatherd.settings.data_directory import REMAINS, refuse_running
from goatherd.telemetry import describe_count
from goatherd.times import format_utc
from goatherd.wire.commit import Commit


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrationTarget:
    """The stores to write the identities into, and the servers of the cluster.

    Attributes:
        open_store: Opens the store of one organization.
        secret_for: Returns the secret's id, with ``{org}`` not yet replaced; raises an error if the secret is not meant
            for the given organizations.
        addresses: URLs of running servers, or URLs that discover them.
        timeout: Timeout of one request to a server.
        clock_tolerance: By how much this machine's clock may differ from the store's.
        org: The only organization to migrate; None for all.
    """

    open_store: Callable[[str], AbstractAsyncContextManager[Store]]
    secret_for: Callable[[Sequence[str]], str]
    addresses: tuple[str, ...] = ()
    timeout: timedelta = timedelta(seconds=5)
    clock_tolerance: timedelta = timedelta(minutes=5)
    org: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MigratedServer:
    """What was done for one organization on one server.

    Attributes:
        settings: That server's settings.json.
        is_new: Whether the identity was written into the store; False if the store held it already.
        in_log: How many trusted user sessions the server's log already introduces.
        written: Ids of sessions that were written into the log or, in a dry run, would be.
        missing: Ids of trusted sessions that the log does not introduce.
        own_root_id: Id of the root that the server's settings.json has signed with.
        doubtful: Roots that not every settings.json lists, or that an only one lists beside its own; they become
            trusted only if the operator has confirmed it.
        notes: What was changed, and what the operator should know.
        is_read_back: Whether the store returned the identity when it was read afterwards.
    """

    org: str
    settings: Path
    store: str
    current_id: str
    own_root_id: str
    is_new: bool
    in_log: int
    written: tuple[str, ...]
    missing: tuple[str, ...]
    notes: tuple[str, ...]
    dry_run: bool
    is_read_back: bool
    doubtful: tuple[str, ...] = ()

    def to_json(self) -> dict[str, object]:
        """Return the outcome as JSON data."""
        return {
            "org": self.org,
            "settings": str(self.settings),
            "store": self.store,
            "current": self.current_id,
            "migrated": self.is_new,
            "alreadyThere": not self.is_new,
            "readBack": self.is_read_back,
            "sessionsInLog": self.in_log,
            "sessionsWritten": list(self.written),
            "sessionsMissing": list(self.missing),
            "doubtfulRoots": list(self.doubtful),
            "notes": list(self.notes),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Migration:
    """What a migration has done, and what the running servers answered.

    Attributes:
        outcomes: One outcome for each organization of each server.
        proofs: For each organization and running server, whether the server accepts the organization's root.
        removable: The settings.json files that may be removed, since the store has returned their identity.
        is_dry: Whether this was a dry run, in which nothing was written.
        introductions: For each organization, commits that introduce roots, if the store no longer lists the root.
    """

    outcomes: tuple[MigratedServer, ...]
    proofs: tuple[RootAcceptance, ...]
    removable: tuple[tuple[MigrationSource, IdentityDocument], ...]
    is_dry: bool
    introductions: Mapping[str, Sequence[Commit]] = field(default_factory=dict, repr=False)

    def find_kept_settings(self) -> list[Path]:
        """Return the settings.json files that are still on the disk, with the private key; none after a dry run."""
        return [] if self.is_dry else [one.settings for one in self.outcomes if one.settings.exists()]


async def migrate(
    store: StoreName,
    sources: str | PathLike[str] | Iterable[str | PathLike[str]],
    nodes: str | Iterable[str] = (),
    *,
    org: str | None = None,
    policy: Policy | None = None,
    dry_run: bool = False,
    write_sessions: bool = True,
    is_only_server: bool = False,
    root_id: str | None = None,
    accepts_roots: bool = False,
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
        accepts_roots: Trust also roots that not every server lists in its file, or, with one server, that it lists
            beside its own. A server that was broken into may list a root of the attacker.
        remove_key: Remove ``settings.json`` after the identity was read back from the store.

    Raises:
        ConfigurationError: No source is given, a source holds no ``settings.json`` and no earlier call has removed it,
            the store does not hold the root of a removed one, several organizations would share one secret, or no
            commit of a log is signed for the organization; nothing was written.
        IdentityExistsError: The store holds another identity. Nothing was written.
        MalformedIdentityError, KeyMismatchError: A ``settings.json`` is invalid; nothing was written.
        SettingsError: Two servers have different identities for one organization, or an earlier call has migrated a
            server that may create the same sessions differently; nothing was written.
        UnconfirmedError: A server lists a root that the others do not list, and `accepts_roots` is false; nothing was
            written.
        UnsignedIdentityError: The stored identity needs the later expiration of a ``settings.json``, but is not signed.
        ProviderConfigurationError: The store exists only in this process, and this is no dry run.
        WrongClockError: This machine's clock differs from the store's.
        StorageError: A running server holds a log open, or a log is damaged.
        DiscoveryError: The running servers could not be discovered.
    """
    policy = choose_policy(policy)

    def secret_for(orgs: Sequence[str]) -> str:
        if isinstance(store, Store):
            return store.secret_id
        _, template, name = name_store(store)
        for one in orgs:
            check_address_has_org(template, name, one, hint=ORG_HINT)
        return template

    target = MigrationTarget(
        open_store=lambda one: open_store(store, org=one),
        secret_for=secret_for,
        addresses=read_addresses(nodes),
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
    migration = await migrate_all(
        target,
        paths,
        dry_run=dry_run,
        write_sessions=write_sessions,
        is_only_server=is_only_server,
        root_id=root_id,
        accepts_roots=accepts_roots,
    )
    if remove_key:
        await remove_keys(target, migration, confirmed=True)
    return migration


async def migrate_all(
    target: MigrationTarget,
    paths: Sequence[Path],
    *,
    dry_run: bool,
    write_sessions: bool,
    is_only_server: bool = False,
    root_id: str | None = None,
    accepts_roots: bool = False,
    tell: Callable[[str], None] | None = None,
) -> Migration:
    """Migrate every organization found in the paths. Several paths are several servers of one cluster.

    Everything is read and checked before anything is written.

    Args:
        target: The store, and running servers that may hold sessions.
        paths: Data directories and settings.json files; one that is found twice counts once. From a server that was
            migrated earlier, and has no settings.json any more, only the log is read. If there is no other server, the
            store and the running servers are checked, and nothing is written.
        dry_run, write_sessions, is_only_server, root_id, accepts_roots: As for `migrate`.
        tell: Called before anything is written, with each line that describes what follows if servers have different
            roots.

    Raises:
        GoatherdError: As `migrate`.
    """
    now_ms = SystemClock().now_ms()
    found: dict[tuple[Path, Path], MigrationSource] = {}
    for source in [source for path in paths for source in find_sources(path, target.org)]:
        found.setdefault(source.place, source)
    sources = [source for source in found.values() if not source.is_migrated]
    migrated = [source for source in found.values() if source.is_migrated]
    orgs = sorted({source.org for source in sources or migrated})
    secret_id = target.secret_for(orgs[:1] if len(orgs) == 1 else ())
    if len(orgs) > 1 and ORG_FIELD not in secret_id:
        raise ConfigurationError(
            f"there are several organizations ({', '.join(orgs)}), but the name of the secret is the same for all",
            hint="Each organization has an identity of its own. Put {org} into the secret's name, such as"
            " file:///srv/keys/{org}/root.",
        )
    if not sources:
        return await _confirm_migrated(target, migrated, dry_run=dry_run)
    read = [(source, *read_settings(source, now_ms)) for source in sources]
    of_each = {
        org: [(source.settings, document) for source, document, _, _ in read if source.org == org] for org in orgs
    }
    one = {org: merge_server_identities(org, of_each[org], root_id, now_ms=now_ms) for org in orgs}
    for org in orgs:
        for line in (
            *describe_union(org, of_each[org], one[org]),
            *describe_double_keys(org, [source for source in sources if source.org == org], of_each[org]),
        ):
            if tell is not None:
                tell(line)
    agreed = {org: agree_on_sessions([users for source, _, users, _ in read if source.org == org]) for org in orgs}
    servers = {org: [source for source in found.values() if source.org == org] for org in orgs}
    stored = {org: await _read_stored(target, org, one[org], servers[org]) for org in orgs}
    for source, document, _, _ in read:
        name, known = stored[source.org].name, stored[source.org].document
        check_signed_for(source, [one[source.org]] if known is None else [one[source.org], known])
        if known is not None:
            _check_covered(known, (one[source.org].current, document.current), source.settings, name)
    # A stored identity gets no further roots.
    doubtful = {
        org: {} if stored[org].document is not None else find_doubtful_roots(of_each[org], one[org]) for org in orgs
    }
    # SECURITY: what a server that was broken into has added to its settings.json must not become a root of the cluster
    # without a word (tests/unit/cli/test_migrate_cluster.py).
    if any(doubtful.values()) and not accepts_roots and not dry_run:
        raise UnconfirmedError(
            f"a settings.json lists {_join_roots(doubtful)} beside the root of its server, and no other server confirms"
            " that; nothing was written",
            hint="If you do not know such a root, an attacker may have added it: remove it from `roots` and"
            " `trustedSessions` of the file. Otherwise, confirm it with --accept-roots (Python: accepts_roots=True).",
        )
    held = {org: find_held_in_logs(servers[org], stored[org].document or one[org]) for org in orgs}
    if write_sessions:
        for org in orgs:
            of_org = [(source, users) for source, _, users, _ in read if source.org == org]
            held[org] |= await find_held_by_servers(
                target,
                org,
                one[org],
                stored[org],
                of_org,
                held[org],
                names_migrated=any(source.org == org and source.data is not None for source in migrated),
                is_only_server=is_only_server,
            )
    outcomes = [
        await _migrate_server(
            target,
            source,
            one[source.org],
            pair_roots(one[source.org], [document.current for _, document in of_each[source.org]]),
            document.current,
            tuple(agreed[source.org][user.id] for user in users),
            notes,
            held[source.org],
            stored[source.org].introductions,
            tuple(one for one, paths in doubtful[source.org].items() if source.settings in paths),
            dry_run=dry_run,
            write_sessions=write_sessions,
        )
        for source, document, users, notes in read
    ]
    signers = [(org, _find_signers(stored[org].document or one[org], one[org].current)) for org in orgs]
    proofs = await ask_servers(target.addresses, signers, timeout=target.timeout)
    safe = [(source, one[source.org]) for source, done in zip(sources, outcomes, strict=True) if done.is_read_back]
    return Migration(
        outcomes=tuple(outcomes),
        proofs=tuple(proofs),
        removable=() if servers_rejecting_root(proofs) else tuple(safe),
        is_dry=dry_run,
        introductions={org: stored[org].introductions for org in orgs},
    )


async def _confirm_migrated(target: MigrationTarget, sources: Sequence[MigrationSource], *, dry_run: bool) -> Migration:
    """Check that the store holds the identities of servers whose settings.json earlier runs have removed.

    Raises:
        ConfigurationError: No earlier run has removed a settings.json there, or the store does not hold its root.
        DiscoveryError: The running servers could not be discovered.
    """
    outcomes, signers = [], dict[str, list[tuple[OwnedSession, bool]]]()
    for source in sources:
        note = read_note(source)
        async with target.open_store(source.org) as store:
            try:
                _, document = await store.read()
            except SecretNotFoundError:
                document = None
            name = store.name
        held = document
        if held is not None and held.pruned and held.find_root(note.root.id) is None:
            commits = await find_root_introductions(target, source.org, held, held, [source])
            held = with_pruned_root(held, note.root.id, source.org, commits)
        kept = None if held is None else held.find_root(note.root.id)
        if document is None or kept is None or kept.public_key != note.root.public_key:
            raise ConfigurationError(
                f"{source.settings} was removed by a migration at {format_utc(note.removed_ms)}, but {name} does not"
                f" hold its root {note.root.id}, or a later root that has introduced it",
                hint=f"The file {REMAINS} beside it states that {note.store} held the identity. Give that store, and"
                " --node URL of a running server.",
            )
        signers[source.org] = _find_signers(document, document.current)
        outcomes.append(
            MigratedServer(
                org=source.org,
                settings=source.settings,
                store=name,
                current_id=document.current.id,
                own_root_id=note.root.id,
                is_new=False,
                in_log=0,
                written=(),
                missing=(),
                notes=(
                    f"{source.settings} was removed at {format_utc(note.removed_ms)}",
                    *describe_key_copies(source.settings),
                ),
                dry_run=dry_run,
                is_read_back=True,
            )
        )
    proofs = await ask_servers(target.addresses, list(signers.items()), timeout=target.timeout)
    return Migration(outcomes=tuple(outcomes), proofs=tuple(proofs), removable=(), is_dry=dry_run)


async def remove_keys(target: MigrationTarget, migration: Migration, *, confirmed: bool) -> list[str]:
    """Remove the migrated settings.json files. Return, in lines, what was done and what the operator should know.

    Nothing is removed after a dry run, or if a server rejects the root.

    Args:
        target: The stores, as for `migrate_all`.
        migration: What `migrate_all` has returned.
        confirmed: Whether the operator wants the files to be removed.

    Raises:
        UnconfirmedError: There are files to remove, and `confirmed` is false.
        StorageError: A process has a file of a data directory open for writing.
        SettingsError: The store no longer returns the identity, or a file cannot be removed.
    """
    if migration.removable and confirmed is not True:
        files = ", ".join(str(source.settings) for source, _ in migration.removable)
        raise UnconfirmedError(f"removing {files} needs a confirmation; nothing was removed")
    messages = []
    with ExitStack() as stack:
        for source, _ in migration.removable:
            if source.data is not None:
                refuse_running(source.data)
                stack.enter_context(LogDirectory(source.data))
        for source, document in migration.removable:
            async with target.open_store(source.org) as store:
                await read_back(store, document.current, migration.introductions.get(source.org, ()))
                messages += remove_key(source.settings, document, store.name)
    return messages


async def _read_stored(
    target: MigrationTarget, org: str, document: IdentityDocument, sources: Sequence[MigrationSource]
) -> StoredIdentity:
    """Read the identity in an organization's store, and give its root the later expiration of `document`.

    If the identity no longer lists the root, look for introductions of the root in the logs and on the running servers.

    Raises:
        IdentityExistsError: The store holds another identity.
    """
    async with target.open_store(org) as store:
        try:
            _, present = await store.read()
        except SecretNotFoundError:
            return StoredIdentity(name=store.name, document=None)
        introductions: tuple[Commit, ...] = ()
        if present.pruned and present.find_root(document.current.id) is None:
            introductions = await find_root_introductions(target, org, document, present, sources)
            present = with_pruned_root(present, document.current.id, org, introductions)
        _check_same_identity(present, document, store.name)
        extended = _extend_stored_root(present, document.current, store.name)
        return StoredIdentity(name=store.name, document=extended or present, introductions=introductions)


async def _migrate_server(
    target: MigrationTarget,
    source: MigrationSource,
    document: IdentityDocument,
    introduced_roots: tuple[tuple[Session, OwnedSession], ...],
    own_root: OwnedSession,
    users: tuple[Session, ...],
    notes: list[str],
    held: Mapping[str, Sequence[Commit]],
    introductions: Sequence[Commit],
    doubtful: tuple[str, ...],
    *,
    dry_run: bool,
    write_sessions: bool,
) -> MigratedServer:
    notes = list(notes)
    is_read_back = False
    async with target.open_store(source.org) as store:
        try:
            version, present = await store.read()
        except SecretNotFoundError:
            version, present = None, None
        if not dry_run:
            # SECURITY: the store must be durable, because `remove_keys` later deletes the only other copy of the key
            # (tests/unit/cli/test_migrate_cluster.py).
            store.check_durable("migrate")
            store.check_clock(target.clock_tolerance)
        extended = None
        if present is not None:
            present = with_pruned_root(present, document.current.id, source.org, introductions)
            _check_same_identity(present, document, store.name)
            extended = _extend_stored_root(present, document.current, store.name)
        identity = extended or present or document
        with compare_sessions(source, users, identity, writes=write_sessions and not dry_run) as sessions:
            if present is None and not dry_run:
                try:
                    signed = sign_document(document, SystemClock().now_ms())
                    await store.provider.create(store.secret_id, SecretBytes(encode_document(signed)))
                except SecretExistsError as error:
                    raise IdentityExistsError(
                        f"{store.name} received an identity from another process during this migration; that "
                        "identity was kept"
                    ) from error
            if extended is not None and version is not None and not dry_run:
                value = SecretBytes(encode_document(extended))
                await store.provider.write(store.secret_id, value, label=CURRENT, expected=version.id)
            if write_sessions and not dry_run:
                # Signed by the root of settings.json, even after rotations, so that each server writes the same commit.
                is_revoked = document.current.id in identity.revoked_ids
                sessions.write(identity.current if is_revoked else document.current, source.org, held)
                sessions.write_roots(introduced_roots, source.org, held)
        if not dry_run:
            identity = await read_back(store, document.current, introductions)
            is_read_back = True
    if present is not None and extended is not None:
        notes.append(_describe_extension(present, extended, dry_run=dry_run))
    if identity.current != document.current:
        notes += describe_short_life(identity, SystemClock().now_ms())
    notes += sessions.problems
    notes += describe_key_copies(source.settings)
    secret = str(own_root.to_secret_json()["privateKey"]["d"]).encode()
    in_git = await asyncio.to_thread(find_in_git, source.settings.resolve(), secret)
    if in_git is not None:
        notes.append(_describe_git(source.settings, own_root.id, in_git))
    lacking = tuple(session.id for session in sessions.lacking)
    writes = write_sessions and source.data is not None
    return MigratedServer(
        org=source.org,
        settings=source.settings,
        store=store.name,
        current_id=identity.current.id,
        own_root_id=own_root.id,
        is_new=present is None,
        in_log=sessions.fine,
        written=lacking if writes else (),
        missing=() if writes else lacking,
        notes=tuple(notes),
        dry_run=dry_run,
        is_read_back=is_read_back,
        doubtful=doubtful,
    )


def _join_roots(doubtful: Mapping[str, Mapping[str, Sequence[Path]]]) -> str:
    found = [
        f"root {root} ({org}: in {', '.join(map(str, paths))})"
        for org, roots in doubtful.items()
        for root, paths in roots.items()
    ]
    return ", ".join(found)


def _describe_git(settings: Path, root_id: str, found: GitFinding) -> str:
    """Describe what it means that a settings.json is in a git repository, and what to do."""
    revoke = f"`goatherd revoke {root_id}` as soon as every server starts from the store; a rotation is not enough"
    if found.path is None:
        return (
            f"{settings} is in the git repository {found.repository}, and it could not be checked whether git has it:"
            f" {found.problem}. If it was ever committed, every reader of the repository has the key: run {revoke}"
        )
    return (
        f"the git repository {found.repository} has the private key of root {root_id} in its files or its history"
        f" ({found.path}): every reader of the repository has the key. Run {revoke}"
    )


def _check_same_identity(present: IdentityDocument, document: IdentityDocument, name: str) -> None:
    """Check that the identity in a store, `present`, has the current root of `document`, now or as a previous one.

    Raises:
        IdentityExistsError: The store, called `name`, holds another identity.
    """
    if contains_root(present, document.current):
        return
    if present.pruned and present.find_root(document.current.id) is None:
        raise IdentityExistsError(
            f"the identity in {name} (root {present.current.id}) does not list root {document.current.id}. It has"
            f" removed {describe_count(present.pruned, 'previous root')} from its list, and no commit was found by"
            " which it has introduced this one; the stored identity was kept",
            hint="If this root was an earlier one of this cluster, name a running server with --node; if none has the"
            " commit, start from the store and remove the file by hand. Otherwise name another secret.",
        )
    raise IdentityExistsError(
        f"{name} holds another identity (root {present.current.id}), not that of root {document.current.id};"
        " the stored identity was kept",
        hint="Name another secret; each cluster, and each organization, has its own. If both servers are to be one"
        " cluster, migrate them together, into a new secret, with --root.",
    )


def _extend_stored_root(present: IdentityDocument, root: OwnedSession, name: str) -> IdentityDocument | None:
    """Return the stored identity `present` with the later expiration of `root`; None if it needs or allows no change.

    COMPAT: a GoatDB server that restarts with 15 days or less left extends the root in its settings.json only.

    Raises:
        UnsignedIdentityError: The identity in the store, called `name`, is not signed, so it must not be signed here.
    """
    stored = present.current.session
    if stored.id != root.id or stored.expiration_ms >= root.session.expiration_ms:
        return None
    # SECURITY: this command must not sign an identity that is unsigned now, because the signature would also cover what
    # an attacker has altered (tests/unit/cli/test_migrate_cluster.py).
    if not present.is_signed:
        raise UnsignedIdentityError(
            f"{name} holds an identity without a valid signature, so the later expiration of root {root.id} was not"
            " written into it"
        )
    try:
        return extend_current_root(present, root.session.expiration_ms, SystemClock().now_ms())
    except IllegalStepError:
        return None


def _check_covered(stored: IdentityDocument, roots: Iterable[OwnedSession], settings: Path, name: str) -> None:
    """Check that all that the roots of a settings.json have signed is valid with the identity in the store.

    Raises:
        SettingsError: The store, called `name`, holds one of the roots with an expiration that has passed, and the file
            has a later one.
    """
    for root in roots:
        kept = stored.find_root(root.id)
        if kept is None or root.id in stored.revoked_ids or covers_root(stored, root, SystemClock().now_ms()):
            continue
        if stored.rotation is not None:
            why = f"rotation {stored.rotation.id} is in progress there"
            hint = "Complete the rotation (`goatherd rotate --resume`) or cancel it (`--cancel`), then run this again."
        else:
            why = "it is not the current root there, or another root has signed its earlier expiration"
            hint = (
                "If that may be lost (users who have signed in since then sign in again), start the server from the"
                " store and remove the file by hand."
            )
        raise SettingsError(
            f"{settings} has extended root {root.id} until {format_utc(root.session.expiration_ms)}, but in {name} this"
            f" root has expired at {format_utc(kept.expiration_ms)}, and {why}. What the root has signed since then"
            " would become invalid. Nothing was removed",
            hint=hint,
        )


def _describe_extension(present: IdentityDocument, extended: IdentityDocument, *, dry_run: bool) -> str:
    before, after = (format_utc(one.current.session.expiration_ms) for one in (present, extended))
    would = "would become" if dry_run else "is now"
    return (
        f"a GoatDB server has extended root {extended.current.id}: its expiration in the store {would} {after} instead"
        f" of {before}"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RootAcceptance:
    """Whether a running server accepts requests that are signed with the root of an organization.

    `root` is the root that signed. `server` is the server as it was observed; its `trusts_current` holds the answer,
    which is None if the server did not answer, or rejected a root that has expired.
    """

    org: str
    root: str
    server: NodeView


async def read_back(store: Store, wanted: OwnedSession, introductions: Iterable[Commit] = ()) -> IdentityDocument:
    """Read the identity in the store, and check that it contains the root `wanted`, with a sufficient expiration.

    Args:
        store: The store.
        wanted: The root of a settings.json.
        introductions: Unverified commits that introduce roots, in case the identity no longer lists `wanted` itself.

    Raises:
        SettingsError: The store holds another identity, or an expiration at which not all that the root has signed is
            valid.
        ProviderError, IdentityError: The identity cannot be read.
    """
    _, document = await store.read()
    document = with_pruned_root(document, wanted.id, store.org, introductions)
    if not contains_root(document, wanted):
        raise SettingsError(
            f"{store.name} did not return root {wanted.id} when it was read back",
            hint="Nothing was removed from the disk. `goatherd show --versions` shows what the store holds.",
        )
    if wanted.id not in document.revoked_ids and not covers_root(document, wanted, SystemClock().now_ms()):
        raise SettingsError(
            f"{store.name} returned root {wanted.id} with an earlier expiration than settings.json when it was read"
            " back",
            hint="Nothing was removed from the disk. Run the command again.",
        )
    return document


def _find_signers(identity: IdentityDocument, root: OwnedSession) -> list[tuple[OwnedSession, bool]]:
    """Return the roots with which to ask servers: the current one in the store, then that of the file.

    A server that has not followed a rotation accepts the root of the file. With each root comes whether a server that
    rejects it has another identity: not if the root has expired in the store. A revoked root is left out.
    """
    now_ms = SystemClock().now_ms()
    listed = {one.id: one for one in identity.roots if one.id not in identity.revoked_ids}
    signers = {one.id: one for one in (identity.current, root)}
    return [(one, not listed[one.id].is_expired(now_ms)) for one in signers.values() if one.id in listed]


async def ask_servers(
    addresses: Sequence[str], signers: Sequence[tuple[str, Sequence[tuple[OwnedSession, bool]]]], *, timeout: timedelta
) -> list[RootAcceptance]:
    """Ask every server, for each organization, whether it accepts a request signed with one of the roots.

    Args:
        addresses: URLs of the servers, or URLs that discover them.
        signers: The organizations, each with the roots that sign requests until the server accepts one, and whether a
            server that rejects the root has another identity.
        timeout: Timeout of one request.

    Raises:
        DiscoveryError: The servers could not be discovered.
    """
    async with NodeDirectory(addresses, timeout=timeout) as directory:
        asked = [_ask_server(client, org, roots) for client in await directory() for org, roots in signers]
        return list(await asyncio.gather(*asked))


async def _ask_server(client: NodeClient, org: str, roots: Sequence[tuple[OwnedSession, bool]]) -> RootAcceptance:
    rejected = unclear = None
    for root, is_valid in roots:
        answer = RootAcceptance(org=org, root=root.id, server=await observe_trust(client, root))
        if answer.server.trusts_current is not False:
            return answer
        if is_valid:
            rejected = rejected or answer
        else:
            view = replace(answer.server, trusts_current=None, problem="the server rejects it, but it has expired")
            unclear = unclear or replace(answer, server=view)
    found = rejected or unclear
    assert found is not None
    return found


def remove_key(settings: Path, document: IdentityDocument, store: str) -> list[str]:
    """Replace a settings.json by a note without the key. Return, in lines, what the operator should know.

    SECURITY: call this function only after `read_back` has found the root in the store, because it removes the only
    other copy of the key (tests/unit/cli/test_migrate_cluster.py).

    Raises:
        SettingsError: The file is a link, or cannot be removed.
    """
    if settings.is_symlink():
        raise SettingsError(
            f"{settings} was not removed, because it is a link to {settings.readlink()}",
            hint="If `goatherd run` has made the link, to a file in memory, stop `goatherd run`: it removes both. If it"
            " is your own, remove both by hand, once every server starts from the store.",
        )
    remains = settings.with_name(REMAINS)
    note = make_note(store, SystemClock().now_ms(), document)
    replace_file(remains, orjson.dumps(note, option=orjson.OPT_INDENT_2) + b"\n")
    remove_file(settings)
    # COMPAT: GoatDB treats a missing settings.json as a first start, and generates a new root.
    messages = [
        f"{settings} was removed; {remains} records in which store the key is",
        "start that server with `goatherd serve` or `goatherd run` from now on: GoatDB itself would create a new root",
    ]
    return messages + describe_key_copies(settings, advice=": remove it by hand")


def servers_rejecting_root(proofs: Iterable[RootAcceptance]) -> list[RootAcceptance]:
    """Return the answers of the servers that rejected the root; servers that gave no answer are not included."""
    return [proof for proof in proofs if proof.server.trusts_current is False]
