"""Migrate a GoatDB cluster: put its identity into a store, prove that it is there, remove the key from the disks.

It reads settings.json and the ``/sys/sessions`` log of one or several servers and organizations, puts each identity
into the store, writes every trusted user session into that server's log, reads the store back, and asks the running
servers. What it is not: it stops no server, and it removes a settings.json only where that is asked for.
Rules: the store is written by `create` only, so an identity that is there is never overwritten; a log that a process
holds open is not touched; running it twice is running it once; a key leaves a disk only after the store has given the
same identity back, and no server that was asked rejects it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import orjson

from goatherd.clock import SystemClock
from goatherd.cluster.client import NodeClient
from goatherd.cluster.discovery import NodeDirectory
from goatherd.data_directory import REMAINS, SESSIONS_LOG, SETTINGS_NAME, check_understood, read_commits, refuse_running
from goatherd.derived_ids import derived_id
from goatherd.errors import (
    ConfigurationError,
    DecodeError,
    IdentityError,
    IdentityExistsError,
    NodeError,
    SecretExistsError,
    SecretNotFoundError,
    SettingsError,
    UnknownSignerError,
    VerificationError,
)
from goatherd.files import remove_file, replace_file
from goatherd.identity.document import IdentityDocument, encode_document, settled, sign_document
from goatherd.identity.key_age import last_valid_ms
from goatherd.identity.root_signatures import endorse
from goatherd.identity.session import SESSION_LIFETIME, OwnedSession, Session
from goatherd.identity.session_commits import better, session_from_commit, verify_commit_by
from goatherd.identity.settings_json import from_settings
from goatherd.node.log_storage import LogDirectory
from goatherd.operations.git_history import GitFinding, find_in_git
from goatherd.operations.identity_store import DEFAULT_ORG, Store
from goatherd.providers.values import ORG_FIELD, SecretBytes
from goatherd.revocation.reintroduction import decode
from goatherd.rotation.cross_signing import session_commit
from goatherd.times import iso, milliseconds
from goatherd.trust import TrustPool
from goatherd.wire.commit import Commit
from goatherd.wire.paths import SESSIONS_PATH

_SHOWN: Final = 10
_LARGEST_COPY: Final = 1 << 24
_PATIENCE: Final = timedelta(seconds=60)
"""For one answer about 50 000 sessions."""
_LONG_AGO_MS: Final = 1_577_836_800_000
"""2020-01-01, before any GoatDB: the time of a commit where its session has an unusual expiration."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where the identities go, and what is known of the cluster.

    Attributes:
        open_store: Opens the store of one organization.
        secret_for: Returns the id of the secret for these organizations, ``{org}`` still in it; refuses one that is not
            meant for them.
        addresses: Running servers, or where to discover them.
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
class Source:
    """One organization's files. `data` is None when only a settings.json outside a data directory was given."""

    settings: Path
    data: Path | None
    org: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionLog:
    """What a ``/sys/sessions`` log was found to hold.

    Attributes:
        pool: The sessions that a trusted root introduced there.
        latest: For each session id, the id of its last commit.
        problems: What could not be believed, for people.
    """

    pool: TrustPool
    latest: dict[str, str]
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What was done for one organization on one server.

    Attributes:
        settings: That server's settings.json.
        is_new: Whether the identity was put into the store; False when it was there already.
        in_log: How many trusted user sessions the server's log already introduces.
        written: Ids of sessions that were written into the log.
        missing: Ids of trusted sessions that the log does not introduce.
        notes: What was changed or should be known.
        is_read_back: Whether the store was asked afterwards, and gave the identity back.
    """

    org: str
    settings: Path
    store: str
    current_id: str
    is_new: bool
    in_log: int
    written: tuple[str, ...]
    missing: tuple[str, ...]
    notes: tuple[str, ...]
    dry_run: bool
    is_read_back: bool

    def to_json(self) -> dict[str, object]:
        """Return the outcome as data."""
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
            "notes": list(self.notes),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Migration:
    """What was done, and what the running servers said.

    Attributes:
        outcomes: One for each organization of each server.
        proofs: One for each organization and running server that was asked.
        removable: The settings.json whose key may leave the disk: the store gave the identity back.
    """

    outcomes: tuple[Outcome, ...]
    proofs: tuple[Proof, ...]
    removable: tuple[tuple[Source, IdentityDocument], ...]


async def migrate_all(
    target: Target,
    paths: Sequence[Path],
    *,
    dry_run: bool,
    write_sessions: bool,
    is_only_server: bool = False,
    root_id: str | None = None,
    tell: Callable[[str], None] | None = None,
) -> Migration:
    """Migrate every organization that the paths hold; several paths are several servers of one cluster.

    Everything is read and checked before anything is written.

    Args:
        target: The store, and running servers that may hold sessions.
        paths: Data directories and settings.json files.
        dry_run: Write nothing.
        write_sessions: Write sessions that only settings.json knows into the log.
        is_only_server: There is no other server that another run has migrated.
        root_id: The root that signs from now on, where servers have different ones.
        tell: Called with what that means, one line at a time, before anything is written.

    Raises:
        ConfigurationError: A path holds no settings.json, or several organizations would share one secret.
        MalformedIdentityError, KeyMismatchError: A settings.json cannot be believed; nothing was written.
        SettingsError: Two servers have different identities for one organization, or another run has migrated a server
            that may create the same sessions differently; nothing was written.
        IdentityExistsError: The store holds another identity.
        WrongClockError: This machine's clock differs from the store's.
        StorageError: A log is held open by a running server, or damaged.
        DiscoveryError: It cannot be found out who the running servers are.
    """
    now_ms = SystemClock().now_ms()
    sources = [source for path in paths for source in find_sources(path, target.org)]
    orgs = sorted({source.org for source in sources})
    secret_id = target.secret_for(orgs[:1] if len(orgs) == 1 else ())
    if len(orgs) > 1 and ORG_FIELD not in secret_id:
        raise ConfigurationError(
            f"there are several organizations ({', '.join(orgs)}), and each has an identity of its own",
            hint="Put {org} into the secret's name, such as file:///srv/keys/{org}/root.",
        )
    read = [(source, *_read_settings(source, now_ms)) for source in sources]
    of_each = {
        org: [(source.settings, document) for source, document, _, _ in read if source.org == org] for org in orgs
    }
    one = {org: merge_server_identities(org, of_each[org], root_id, now_ms=now_ms) for org in orgs}
    for org in orgs:
        for line in (
            *describe_union(org, of_each[org], one[org]),
            *_describe_double_keys(org, [source for source in sources if source.org == org], of_each[org]),
        ):
            if tell is not None:
                tell(line)
    agreed = {org: _agreed([users for source, _, users, _ in read if source.org == org]) for org in orgs}
    held = {org: _held_elsewhere([source for source in sources if source.org == org], one[org]) for org in orgs}
    if write_sessions:
        for org in orgs:
            of_org = [(source, users) for source, _, users, _ in read if source.org == org]
            held[org] |= await _held_by_servers(target, org, one[org], of_org, held[org], is_only_server)
    outcomes = [
        await _migrate(
            target,
            source,
            one[source.org],
            _introduced_roots(one[source.org], [document.current for _, document in of_each[source.org]]),
            document.current,
            tuple(agreed[source.org][user.id] for user in users),
            notes,
            held[source.org],
            dry_run=dry_run,
            write_sessions=write_sessions,
        )
        for source, document, users, notes in read
    ]
    proofs = await ask_servers(
        target.addresses, [(org, document.current) for org, document in one.items()], timeout=target.timeout
    )
    safe = [(source, one[source.org]) for source, done in zip(sources, outcomes, strict=True) if done.is_read_back]
    return Migration(
        outcomes=tuple(outcomes), proofs=tuple(proofs), removable=() if servers_rejecting_root(proofs) else tuple(safe)
    )


def _introduced_roots(
    identity: IdentityDocument, roots: Iterable[OwnedSession]
) -> tuple[tuple[Session, OwnedSession], ...]:
    """Return which root is to be introduced by which, where servers had different ones: each pair both ways."""
    current = identity.current
    given_up = {root.id: root for root in roots if root.id != current.id}
    return tuple(pair for root in given_up.values() for pair in ((current.session, root), (root.session, current)))


def _describe_double_keys(
    org: str, sources: Sequence[Source], found: Sequence[tuple[Path, IdentityDocument]]
) -> list[str]:
    """Return a warning of items that servers with different roots have created each for itself.

    COMPAT: an unmodified GoatDB server ends when it meets two commits without parents for one key, and so does its
    client.
    """
    if len({document.current.id for _, document in found}) < 2:
        return []
    created: list[dict[tuple[str, str], set[str]]] = []
    for source in sources:
        keys: dict[tuple[str, str], set[str]] = {}
        for path in sorted(source.data.rglob("*.jsonl")) if source.data is not None else ():
            name = str(path.relative_to(source.data or path).with_suffix(""))
            for commit in read_commits(path, org):
                if not commit.parents:
                    keys.setdefault((name, commit.key), set()).add(commit.id)
        created.append(keys)
    double = {
        key
        for number, one in enumerate(created)
        for other in created[number + 1 :]
        for key in one.keys() & other.keys()
        if not (one[key] <= other[key] or other[key] <= one[key])
    }
    if not double:
        return []
    shown = ", ".join(f"/{name}/{key}" for name, key in sorted(double)[:_SHOWN])
    text = (
        f"{org}: {len(double)} items were created on more than one server independently ({shown}). An unmodified GoatDB"
        " server ends when it meets both versions, and so do its clients: serve this data with `goatherd serve`, which"
        " merges them"
    )
    return [text]


def _agreed(users_of_each: Iterable[Iterable[Session]]) -> dict[str, Session]:
    """Return one session for each id, as the server that knows most about it has it.

    Raises:
        SettingsError: Two servers have different keys for one session.
    """
    agreed: dict[str, Session] = {}
    for users in users_of_each:
        for user in users:
            known = agreed.get(user.id)
            if known is not None and known.public_key != user.public_key:
                raise SettingsError(
                    f"session {user.id!r} has different keys in the settings.json of two servers",
                    hint="One of them is forged. Find out which before anything trusts these servers again.",
                )
            agreed[user.id] = better(known, user)
    return agreed


def _held_elsewhere(sources: Sequence[Source], identity: IdentityDocument) -> dict[str, list[Commit]]:
    """Return, for each session that a server's log introduces, that log's commits about it."""
    held: dict[str, list[Commit]] = {}
    for source in sources if len(sources) > 1 else ():
        if source.data is None:
            continue
        log = read_session_log(source.data, identity, source.org)
        commits = read_commits(source.data / SESSIONS_LOG, source.org)
        for session_id in log.latest:
            try:
                log.pool.session(session_id)
            except VerificationError:
                continue
            held.setdefault(session_id, [commit for commit in commits if commit.key == session_id])
    return held


async def _held_by_servers(
    target: Target,
    org: str,
    document: IdentityDocument,
    read: Sequence[tuple[Source, Sequence[Session]]],
    held: Collection[str],
    is_only_server: bool,
) -> dict[str, list[Commit]]:
    """Return, for each session that no log introduces, the commits about it that the running servers hold.

    COMPAT: two different commits without parents for one session end GoatDB servers and clients. So what another run
    has written on another server must be known here.

    Raises:
        SettingsError: Another run has migrated a server, and not every server could be asked.
    """
    missing: set[str] = set()
    for source, users in read:
        if source.data is not None:
            keys = {commit.key for commit in read_commits(source.data / SESSIONS_LOG, org)}
            missing |= {user.id for user in users if user.id not in keys and user.id not in held}
    if not missing:
        return {}
    async with target.open_store(org) as store:
        try:
            _, present = await store.read()
        except SecretNotFoundError:
            present = None
        name = store.name
    found: dict[str, list[Commit]] = {}
    silent = []
    async with NodeDirectory(target.addresses, timeout=max(target.timeout, _PATIENCE)) as directory:
        clients = await directory()
        for client in clients:
            try:
                commits = await _pull_sessions(client, document, present)
            except NodeError as error:
                silent.append(str(error))
                continue
            for session_id, of_session in _believed(commits, document, present, org).items():
                if session_id in missing:
                    found.setdefault(session_id, of_session)
    unknown = sorted(missing - found.keys())
    if unknown and present is not None and (silent or not clients) and not is_only_server:
        why = f" ({'; '.join(silent)})" if silent else ""
        raise SettingsError(
            f"another run has put the identity of {org} into {name}, and {len(unknown)} sessions are in this"
            f" settings.json only: {' '.join(unknown[:_SHOWN])}. A server that was migrated before may create them"
            f" differently, which ends GoatDB servers and clients{why}",
            hint="Name the servers that were migrated before: each by --node URL while it runs, or its data directory"
            " beside this one. --only-server if there is none; --no-write-sessions leaves these sessions out.",
        )
    return found


async def _pull_sessions(
    client: NodeClient, document: IdentityDocument, present: IdentityDocument | None
) -> list[dict[str, Any]]:
    try:
        return await client.pull(SESSIONS_PATH, document.current)
    except NodeError:
        if present is None or present.current.id == document.current.id:
            raise
        return await client.pull(SESSIONS_PATH, present.current)


def _believed(
    sent: Iterable[Any], document: IdentityDocument, present: IdentityDocument | None, org: str
) -> dict[str, list[Commit]]:
    """Return the commits that a root of the identity has signed, by session."""
    identity = present or document
    pool = TrustPool(org=org, current=identity.current, roots=identity.roots, revoked=identity.revoked_ids)
    commits = decode(sent, org)
    pool.offer_session_commits(commits)
    believed: dict[str, list[Commit]] = {}
    for commit in commits:
        if pool.add_session_commit(commit):
            believed.setdefault(commit.key, []).append(commit)
    return believed


async def remove_keys(target: Target, migration: Migration) -> list[str]:
    """Remove the settings.json of what was migrated, and return what was done and what should be known.

    Raises:
        StorageError: A process holds a data directory open.
        SettingsError: The store no longer gives the identity back, or a file cannot be removed.
    """
    said = []
    with ExitStack() as stack:
        for source, _ in migration.removable:
            if source.data is not None:
                refuse_running(source.data)
                stack.enter_context(LogDirectory(source.data))
        for source, document in migration.removable:
            async with target.open_store(source.org) as store:
                await read_back(store, document.current)
                said += remove_key(source.settings, document, store.name)
    return said


def find_sources(source: Path, given: str | None) -> list[Source]:
    """Return the organizations that a path holds, sorted by name.

    Args:
        source: A data directory, one with a directory for each organization, or a settings.json.
        given: The only organization to look for; None for all.

    Raises:
        ConfigurationError: It holds none.
        NewerFormatError: A newer GoatDB has written in it.
    """
    if source.is_file():
        return [_source(source, given)]
    if (source / SETTINGS_NAME).is_file():
        return [_source(source / SETTINGS_NAME, given)]
    if source.is_dir():
        found = sorted(path for path in source.glob(f"*/{SETTINGS_NAME}") if path.is_file())
        found = [path for path in found if given is None or path.parent.name == given]
        for path in found:
            check_understood(path.parent)
        if found:
            return [Source(settings=path, data=path.parent, org=path.parent.name) for path in found]
    raise ConfigurationError(
        f"there is no {SETTINGS_NAME} in {source}, nor in a directory of it",
        hint="Name the data directory of a GoatDB server, or a settings.json.",
    )


def _source(settings: Path, given: str | None) -> Source:
    directory = settings.resolve().parent
    data = directory if (directory / "sys").is_dir() else None
    if data is not None:
        check_understood(data)
    if given is not None or data is None:
        return Source(settings=settings, data=data, org=given or DEFAULT_ORG)
    # The organization is part of what is signed, so the log itself tells it from the other candidate.
    commits = read_commits(data / SESSIONS_LOG, directory.name)
    if (
        commits
        and not _is_signed_for(settings, commits)
        and _is_signed_for(settings, read_commits(data / SESSIONS_LOG, DEFAULT_ORG))
    ):
        return Source(settings=settings, data=data, org=DEFAULT_ORG)
    return Source(settings=settings, data=data, org=directory.name)


def _is_signed_for(settings: Path, commits: Iterable[Commit]) -> bool:
    document, _, _ = from_settings(_read_bytes(settings), 0)
    roots = {root.id: root for root in document.roots}
    pool = TrustPool(org=DEFAULT_ORG, current=document.current, roots=document.roots)
    for commit in commits:
        if commit.session in roots:
            try:
                pool.verify_commit(commit)
            except VerificationError:
                continue
            return True
    return False


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}") from error


def _read_settings(source: Source, now_ms: int) -> tuple[IdentityDocument, tuple[Session, ...], list[str]]:
    try:
        return from_settings(_read_bytes(source.settings), now_ms)
    except IdentityError as error:
        raise type(error)(f"{source.settings}: {error}", hint=error.hint) from None


def read_session_log(data: Path, document: IdentityDocument, org: str) -> SessionLog:
    """Read and verify a server's ``/sys/sessions`` log against the roots of an identity."""
    commits = read_commits(data / SESSIONS_LOG, org)
    pool = TrustPool(org=org, current=document.current, roots=document.roots, revoked=document.revoked_ids)
    pool.offer_session_commits(commits)
    latest = {commit.key: commit.id for commit in commits}
    problems = []
    for session_id in latest:
        try:
            pool.session(session_id)
        except VerificationError as error:
            problems.append(f"session {session_id} of the log is not believed: {error}")
    return SessionLog(pool=pool, latest=latest, problems=tuple(problems))


def verified_sessions(data: Path, document: IdentityDocument, org: str) -> tuple[Session, ...]:
    """Return the user sessions that a server's log introduces, each vouched for by a root of the identity.

    Raises:
        ConfigurationError: `data` has no ``/sys/sessions`` log.
    """
    if not (data / SESSIONS_LOG).is_file():
        raise ConfigurationError(f"{data} has no {SESSIONS_LOG}", hint="Name the data directory of one organization.")
    log = read_session_log(data, document, org)
    found = []
    for session_id in log.latest:
        try:
            session = log.pool.session(session_id)
        except VerificationError:
            continue
        if not session.is_root:
            found.append(session)
    return tuple(found)


def _lacking(log: SessionLog, users: Iterable[Session]) -> tuple[list[Session], int]:
    """Return the trusted sessions whose log entry is missing or says less than settings.json; and how many are fine."""
    lacking, fine = [], 0
    for user in users:
        try:
            known = log.pool.session(user.id)
        except UnknownSignerError:
            lacking.append(user)
            continue
        if known.public_key != user.public_key:
            raise SettingsError(
                f"session {user.id!r} has one key in settings.json and another in the log",
                hint="One of them is forged. Find out which before anything trusts this server again.",
            )
        says_more = user.expiration_ms > known.expiration_ms or (known.owner is None and user.owner is not None)
        if says_more:
            lacking.append(user)
        else:
            fine += 1
    return lacking, fine


async def _migrate(
    target: Target,
    source: Source,
    document: IdentityDocument,
    introduced_roots: tuple[tuple[Session, OwnedSession], ...],
    own_root: OwnedSession,
    users: tuple[Session, ...],
    notes: list[str],
    held: Mapping[str, Sequence[Commit]],
    *,
    dry_run: bool,
    write_sessions: bool,
) -> Outcome:
    notes = list(notes)
    is_read_back = False
    async with target.open_store(source.org) as store:
        try:
            _, present = await store.read()
        except SecretNotFoundError:
            present = None
        if not dry_run:
            store.check_clock(target.clock_tolerance)
        if present is not None:
            _same_identity(present, document, store.name)
        identity = present or document
        with _sessions_of(source, users, identity, writes=write_sessions and not dry_run) as sessions:
            if present is None and not dry_run:
                try:
                    signed = sign_document(document, SystemClock().now_ms())
                    await store.provider.create(store.secret_id, SecretBytes(encode_document(signed)))
                except SecretExistsError as error:
                    raise IdentityExistsError(f"{store.name} got an identity while this ran; it was kept") from error
            if write_sessions and not dry_run:
                # Its own root, whatever has been rotated since: so each server of the cluster writes the same commit.
                is_revoked = document.current.id in identity.revoked_ids
                sessions.write(identity.current if is_revoked else document.current, source.org, held)
                sessions.write_roots(introduced_roots, source.org, held)
        if not dry_run:
            await read_back(store, document.current)
            is_read_back = True
    notes += sessions.problems
    notes += [f"{copy} holds a private key too" for copy in copies(source.settings)]
    if any(note.startswith("the private key of root") for note in notes):
        notes.append(
            "a GoatDB server that runs with this settings.json gives its private key to any caller that asks. Treat the"
            " key as exposed: run `goatherd rotate` as soon as every server starts from the store"
        )
    secret = str(own_root.to_secret_json()["privateKey"]["d"]).encode()
    in_git = await asyncio.to_thread(find_in_git, source.settings.resolve(), secret)
    if in_git is not None:
        notes.append(_describe_git(source.settings, own_root.id, in_git))
    lacking = tuple(session.id for session in sessions.lacking)
    writes = write_sessions and source.data is not None
    return Outcome(
        org=source.org,
        settings=source.settings,
        store=store.name,
        current_id=identity.current.id,
        is_new=present is None,
        in_log=sessions.fine,
        written=lacking if writes else (),
        missing=() if writes else lacking,
        notes=tuple(notes),
        dry_run=dry_run,
        is_read_back=is_read_back,
    )


def _describe_git(settings: Path, root_id: str, found: GitFinding) -> str:
    """Return what a git repository means for the key in a settings.json, and what to do."""
    revoke = f"`goatherd revoke {root_id}` as soon as every server starts from the store; a rotation is not enough"
    if found.path is None:
        return (
            f"{settings} lies in the git repository {found.repository}, and it could not be checked whether git has it:"
            f" {found.problem}. If it was ever committed, every reader of the repository has the key: run {revoke}"
        )
    return (
        f"the git repository {found.repository} has the private key of root {root_id} in its files or its history"
        f" ({found.path}): every reader of the repository has the key. Run {revoke}"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sessions:
    """The trusted sessions of a settings.json against the log: which it lacks, how many are fine, and the log."""

    lacking: list[Session]
    fine: int
    latest: dict[str, str]
    problems: tuple[str, ...]
    directory: LogDirectory | None

    def write(self, signer: OwnedSession, org: str, held: Mapping[str, Sequence[Commit]]) -> None:
        """Append session commits for each session that the log lacks.

        Args:
            signer: The root that signs.
            org: The organization; it is part of what is signed.
            held: What other servers hold about a session. It is copied where this log holds nothing.
        """
        if self.directory is None or not self.lacking:
            return
        now_ms = SystemClock().now_ms()
        log = self.directory.open(SESSIONS_PATH)
        log.records()  # cuts a torn last line off, so that nothing is appended to it
        for session in self.lacking:
            known = self.latest.get(session.id)
            copied = held.get(session.id, ()) if known is None else ()
            for commit in copied:
                log.append(commit.to_json())
            if copied:
                if _says(copied, session):
                    continue
                followed = {parent for commit in copied for parent in commit.parents}
                known = next(commit.id for commit in reversed(copied) if commit.id not in followed)
            log.append(introduction_of_migrated(session, signer, org, known, now_ms))
        log.flush()

    def write_roots(
        self, pairs: Iterable[tuple[Session, OwnedSession]], org: str, held: Mapping[str, Sequence[Commit]]
    ) -> None:
        """Append the introduction of each root by the other, where the log does not hold it.

        Args:
            pairs: A root, and the one that introduces it.
            org: The organization; it is part of what is signed.
            held: As for `write`.
        """
        if self.directory is None:
            return
        for root, by in pairs:
            commits = read_commits(self.directory.path / SESSIONS_LOG, org)
            of_root = [commit for commit in commits if commit.key == root.id]
            if any(_is_by(by.session, commit) for commit in of_root):
                continue
            log = self.directory.open(SESSIONS_PATH)
            log.records()
            if not of_root:
                of_root = list(held.get(root.id, ()))
                for commit in of_root:
                    log.append(commit.to_json())
            parent = of_root[-1].id if of_root else None
            log.append(introduction_of_migrated(root, by, org, parent, SystemClock().now_ms()))
            log.flush()


def _is_by(signer: Session, commit: Commit) -> bool:
    try:
        verify_commit_by(signer, commit)
    except VerificationError:
        return False
    return True


def _says(commits: Iterable[Commit], session: Session) -> bool:
    """Whether commits about a session say as much as is known of it."""
    best: Session | None = None
    for commit in commits:
        try:
            best = better(best, session_from_commit(commit))
        except DecodeError:
            continue
    return best is not None and better(best, session) == best


def introduction_of_migrated(
    session: Session, signer: OwnedSession, org: str, parent: str | None, now_ms: int
) -> dict[str, Any]:
    """Return the commit that introduces a session that only settings.json knows: on every server the same.

    It does not depend on when that server is migrated, nor on rotations before.

    COMPAT: GoatDB 0.5.1 ends with "Merge commit got empty ancestors filter" where it meets two commits of one session
    that have no parents.

    Args:
        session: The session.
        signer: The root that introduces it.
        org: The organization; it is part of what is signed.
        parent: The commit that the log holds about the session; None for none.
        now_ms: Milliseconds since 1970; the commit is not of a later time.
    """
    # When GoatDB made the session, since that is the same everywhere, and signatures are deterministic (RFC 6979).
    ts = session.expiration_ms - milliseconds(SESSION_LIFETIME)
    if not 0 < ts <= min(now_ms, signer.session.expiration_ms):
        ts = _LONG_AGO_MS
    text = f"{signer.id}/{org}/{session.id}/{session.owner or ''}/{session.expiration_ms}/{ts}/{parent or ''}"
    return session_commit(
        session,
        signer=signer,
        commit_id=derived_id("migrated session", text),
        ts=ts,
        org=org,
        parents=(parent,) if parent else (),
    )


@contextmanager
def _sessions_of(
    source: Source, users: tuple[Session, ...], identity: IdentityDocument, *, writes: bool
) -> Iterator[_Sessions]:
    """Compare settings.json with the log; with `writes` while holding the data directory against a server."""
    if source.data is None:
        problems = (
            ("no data directory was given, so nobody looked for the trusted sessions in its log",) if users else ()
        )
        yield _Sessions(lacking=list(users), fine=0, latest={}, problems=problems, directory=None)
        return
    with ExitStack() as stack:
        directory = None
        if writes:
            refuse_running(source.data)
            directory = stack.enter_context(LogDirectory(source.data))
        log = read_session_log(source.data, identity, source.org)
        lacking, fine = _lacking(log, users)
        yield _Sessions(lacking=lacking, fine=fine, latest=log.latest, problems=log.problems, directory=directory)


def _same_identity(present: IdentityDocument, document: IdentityDocument, name: str) -> None:
    """Accept a store that holds this identity, rotated since or not.

    Raises:
        IdentityExistsError: It holds another one.
    """
    if not contains_root(present, document.current):
        raise IdentityExistsError(
            f"{name} holds another identity (root {present.current.id}), not that of root {document.current.id};"
            " it was kept",
            hint="Name another secret; each cluster, and each organization, has its own. If both servers are to be one"
            " cluster, migrate them together, into a new secret, with --root.",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What one running server said to a request that was signed with the key.

    Attributes:
        trusts: Whether it took the key for a root of its own; None when it gave no answer.
    """

    org: str
    url: str
    root: str
    trusts: bool | None
    problem: str | None = None

    def to_json(self) -> dict[str, object]:
        """Return it as data."""
        return {"org": self.org, "url": self.url, "root": self.root, "trusts": self.trusts, "problem": self.problem}


def merge_server_identities(
    org: str, found: Sequence[tuple[Path, IdentityDocument]], root_id: str | None = None, *, now_ms: int
) -> IdentityDocument:
    """Return the one identity that several servers' settings hold for an organization.

    GoatDB pushes the expiration of its root forward when it starts, each server by itself: the latest one counts.

    Args:
        org: The organization.
        found: Each settings.json and what it holds.
        root_id: The root that signs from now on, where the servers have different ones; the others stay trusted.
        now_ms: Milliseconds since 1970.

    Raises:
        SettingsError: They hold different ones and none was chosen, or none has the chosen one.
    """
    current = {document.current.id: document.current for _, document in found}
    held = "; ".join(f"{path} has {document.current.id}" for path, document in found)
    if root_id is not None and root_id not in current:
        raise SettingsError(f"no server of {org} has root {root_id}: {held}")
    if len(current) > 1 and root_id is None:
        raise SettingsError(
            f"the servers of {org} have different roots: {held}",
            hint="They do not accept one another. If they are two clusters, migrate each into a secret of its own. If"
            " they are to be one, choose the root that signs from now on with --root ID: the others stay trusted, so"
            " that their clients keep their sessions and their data. With --dry-run, --root tells what that means.",
        )
    kept = [(path, document) for path, document in found if document.current.id == (root_id or document.current.id)]
    newest = _one_root(org, kept)
    known = {root.id for root in newest.roots}
    others = {root.id: root for _, document in found for root in document.roots if root.id not in known}
    whole = replace(newest, roots=(*newest.roots, *others.values()))
    given_up = [root for root in current.values() if root.id != newest.current.id]
    if not given_up:
        return whole
    # Both ways: a server or client that trusts one of the roots finds its way to the other.
    endorsements = [
        endorse(by, of, min(now_ms, last_valid_ms(by.session)))
        for root in given_up
        for by, of in ((root, newest.current.session), (newest.current, root.session))
    ]
    return settled(replace(whole, endorsements=(*whole.endorsements, *endorsements)))


def describe_union(org: str, found: Sequence[tuple[Path, IdentityDocument]], identity: IdentityDocument) -> list[str]:
    """Return what it means that one of several roots was chosen, line by line; nothing where there is one root only."""
    current = identity.current.id
    given_up = {document.current.id: document.current.session for _, document in found}
    given_up.pop(current, None)
    if not given_up:
        return []
    lines = [f"{org}: root {current} wins: it signs from now on, on every server"]
    for root_id, root in given_up.items():
        paths = ", ".join(str(path) for path, document in found if document.current.id == root_id)
        lines.append(
            f"{org}: root {root_id} ({paths}) stays trusted until {iso(root.expiration_ms)}, and what it has signed"
            " permanently. Its clients keep their sessions and their data; they learn the other root from"
            " /sys/sessions, and the clients of the other root learn this one"
        )
        lines.append(
            f"{org}: the private key of root {root_id} does not go into the store. It is on that server's disk; if it"
            f" may be exposed, run `goatherd revoke {root_id}` as soon as every server starts from the store"
        )
    return lines


def _one_root(org: str, found: Sequence[tuple[Path, IdentityDocument]]) -> IdentityDocument:
    """Return what servers with the same root hold, with the latest expiration.

    Raises:
        SettingsError: The root has different keys.
    """
    first = found[0][1]
    forged = [
        str(path) for path, document in found if document.current.session.public_key != first.current.session.public_key
    ]
    if forged:
        raise SettingsError(
            f"root {first.current.id} of {org} has another key in {', '.join(forged)} than in {found[0][0]}",
            hint="One of them is forged. Find out which before anything trusts these servers again.",
        )
    return max((document for _, document in found), key=lambda document: document.current.session.expiration_ms)


def contains_root(document: IdentityDocument, root: OwnedSession) -> bool:
    """Whether an identity has this very root among its own, as the one that signs or as an earlier one."""
    kept = document.root(root.id)
    return kept is not None and kept.public_key == root.session.public_key


async def read_back(store: Store, wanted: OwnedSession) -> IdentityDocument:
    """Return what the store holds, after making sure that it is the identity of `wanted`.

    Raises:
        SettingsError: It holds something else than what was put there.
        ProviderError, IdentityError: It cannot be read, or is no identity.
    """
    _, document = await store.read()
    if not contains_root(document, wanted):
        raise SettingsError(
            f"{store.name} does not give root {wanted.id} back",
            hint="Nothing was removed from the disk. `goatherd versions` shows what the store holds.",
        )
    return document


async def ask_servers(
    addresses: Sequence[str], signers: Sequence[tuple[str, OwnedSession]], *, timeout: timedelta
) -> list[Proof]:
    """Ask every server, once for each organization, whether it accepts a request signed with the key.

    Args:
        addresses: The servers, or where to discover them.
        signers: For each organization its root.
        timeout: Timeout of one request.

    Raises:
        DiscoveryError: It cannot be found out who the servers are.
    """
    async with NodeDirectory(addresses, timeout=timeout) as directory:
        asked = [_ask(client, org, signer) for client in await directory() for org, signer in signers]
        return list(await asyncio.gather(*asked))


async def _ask(client: NodeClient, org: str, signer: OwnedSession) -> Proof:
    try:
        trusts = await client.answers(signer)
    except NodeError as error:
        return Proof(org=org, url=client.base_url, root=signer.id, trusts=None, problem=str(error))
    return Proof(org=org, url=client.base_url, root=signer.id, trusts=trusts)


def remove_key(settings: Path, document: IdentityDocument, store: str) -> list[str]:
    """Remove a settings.json that holds the key, leave a note in its place, and return what people should know.

    SECURITY: only after `read_back` (tests/unit/cli/test_migrate_cluster.py).

    Raises:
        SettingsError: It is a link, or cannot be removed.
    """
    if settings.is_symlink():
        raise SettingsError(
            f"{settings} is a link to {settings.readlink()}",
            hint="`goatherd run` makes such a link, to a file in memory. Stop it, and the file goes by itself.",
        )
    remains = settings.with_name(REMAINS)
    note = {
        "store": store,
        "removedAt": iso(SystemClock().now_ms()),
        "current": document.current.session.to_json(),
        "roots": [root.to_json() for root in document.roots],
        "undo": "goatherd export settings.json --provider … --data <this directory>",
    }
    replace_file(remains, orjson.dumps(note, option=orjson.OPT_INDENT_2) + b"\n")
    remove_file(settings)
    # COMPAT: GoatDB takes a missing settings.json for a first start and generates a root.
    said = [
        f"{settings} is removed; {remains} says where the key went",
        "start that server with `goatherd serve` or `goatherd run` from now on: GoatDB itself would make a new root",
    ]
    said += [f"{copy} holds a private key too: remove it by hand" for copy in copies(settings)]
    return said


def copies(settings: Path) -> list[Path]:
    """Return the files beside a settings.json that hold a private key as well, such as a backup of it."""
    return [path for path in sorted(settings.parent.iterdir()) if path != settings and _holds_key(path)]


def _holds_key(path: Path) -> bool:
    try:
        if not path.is_file() or path.suffix == ".jsonl" or path.stat().st_size > _LARGEST_COPY:
            return False
        return b'"privateKey"' in path.read_bytes()
    except OSError:
        return False


def servers_rejecting_root(proofs: Iterable[Proof]) -> list[Proof]:
    """Return the servers that were asked and do not take the key for a root of their own."""
    return [proof for proof in proofs if proof.trusts is False]
