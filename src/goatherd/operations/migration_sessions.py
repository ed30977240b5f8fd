"""Write sessions that only a settings.json holds into every server's ``/sys/sessions`` log, as the same commit.

COMPAT: GoatDB 0.5.1 crashes with "Merge commit got empty ancestors filter" when it merges two commits of one session
that have no parents. So if another server already has a commit of the session, that commit is copied. If the other
servers do not answer, nothing is written. A log that a process has open is not changed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from goatherd.clock import SystemClock
from goatherd.cluster.client import NodeClient
from goatherd.cluster.discovery import NodeDirectory
from goatherd.errors import (
    DecodeError,
    NodeError,
    SettingsError,
    UnknownSignerError,
    VerificationError,
)
from goatherd.identity.document import IdentityDocument
from goatherd.identity.session import SESSION_LIFETIME, OwnedSession, Session
from goatherd.identity.session_commits import claims_root, preferred_session, session_from_commit, verify_commit_by
from goatherd.node.log_storage import LogDirectory
from goatherd.operations.migration_files import SHOWN, MigrationSource, SessionLog, read_session_log
from goatherd.rotation.cross_signing import make_session_commit
from goatherd.settings.data_directory import SESSIONS_LOG, read_commits, refuse_running
from goatherd.telemetry import describe_count
from goatherd.times import milliseconds
from goatherd.trust import TrustPool
from goatherd.wire.commit import Commit, decode_commits
from goatherd.wire.derived_ids import derived_id
from goatherd.wire.paths import SESSIONS_PATH

if TYPE_CHECKING:
    from goatherd.operations.migrate import MigrationTarget

_LARGE_ANSWER_TIMEOUT: Final = timedelta(seconds=60)
"""Timeout of one request whose answer may hold 50 000 sessions."""
_LONG_AGO_MS: Final = 1_577_836_800_000
"""2020-01-01, before GoatDB existed: the time of a commit whose session has an unusual expiration."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredIdentity:
    """What a store holds before a migration.

    Attributes:
        name: Name of the store in messages.
        document: The identity in the store, with the root of settings.json among the roots; None if there is none yet.
        introductions: Commits that introduce roots, if the identity no longer lists the root of settings.json itself.
    """

    name: str
    document: IdentityDocument | None
    introductions: tuple[Commit, ...] = ()


def agree_on_sessions(users_of_each: Iterable[Iterable[Session]]) -> dict[str, Session]:
    """Merge the user sessions of several servers into one session for each id: the most complete version.

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
                    hint="One of the keys is forged. Find out which one before clients use these servers again.",
                )
            agreed[user.id] = preferred_session(known, user)
    return agreed


def find_held_in_logs(sources: Sequence[MigrationSource], identity: IdentityDocument) -> dict[str, tuple[Commit, ...]]:
    """Return, for each session that a log on a disk introduces, the verified commits that introduce the session.

    Other servers copy these commits. So the result is empty if there is only one server.
    """
    held: dict[str, tuple[Commit, ...]] = {}
    for source in sources if len(sources) > 1 else ():
        if source.data is not None:
            for session_id, commits in read_session_log(source.data, identity, source.org).introductions.items():
                held.setdefault(session_id, commits)
    return held


async def find_held_by_servers(
    target: MigrationTarget,
    org: str,
    document: IdentityDocument,
    stored: StoredIdentity,
    read: Sequence[tuple[MigrationSource, Sequence[Session]]],
    held: Collection[str],
    *,
    names_migrated: bool,
    is_only_server: bool,
) -> dict[str, tuple[Commit, ...]]:
    """Ask running servers for the sessions that no log on a disk introduces; return their commits, by session id.

    COMPAT: two different commits of one session without parents crash GoatDB servers and clients. So a commit that an
    earlier run wrote on another server must be found and copied.

    Args:
        target: The servers.
        org: The organization.
        document: The identity that is migrated.
        stored: What the store holds.
        read: The files and trusted sessions of each server whose disk is migrated.
        held: Ids of the sessions that a log of these servers, or of a server that was migrated earlier, introduces.
        names_migrated: Whether the operator has given the data directory of a server that was migrated earlier.
        is_only_server: Whether the operator states that there is no other server.

    Raises:
        SettingsError: An earlier run has migrated a server, not every server could be asked, and `is_only_server` is
            false.
    """
    missing: set[str] = set()
    for source, users in read:
        if source.data is not None:
            known = read_session_log(source.data, stored.document or document, org).introductions
            missing |= {user.id for user in users if user.id not in known and user.id not in held}
    if not missing:
        return {}
    present = stored.document
    found: dict[str, tuple[Commit, ...]] = {}
    silent = []
    async with NodeDirectory(target.addresses, timeout=max(target.timeout, _LARGE_ANSWER_TIMEOUT)) as directory:
        clients = await directory()
        for client in clients:
            try:
                commits = await _pull_sessions(client, document, present)
            except NodeError as error:
                silent.append(str(error))
                continue
            for session_id, of_session in _select_signed(commits, document, present, org).items():
                if session_id in missing:
                    found.setdefault(session_id, tuple(of_session))
    unknown = sorted(missing - found.keys())
    is_asked = bool(clients or names_migrated) and not silent
    if unknown and present is not None and not is_asked and not is_only_server:
        why = f" ({'; '.join(silent)})" if silent else ""
        sessions = describe_count(len(unknown), "session", "is", "are")
        raise SettingsError(
            f"an earlier run has put the identity of {org} into {stored.name}, and {sessions} in this settings.json"
            f" only: {' '.join(unknown[:SHOWN])}. If a server that was migrated earlier has created the same sessions"
            f" in other commits, GoatDB servers and clients crash when they merge both{why}",
            hint="Name the servers that were migrated earlier: a running one by --node URL, a stopped one by its data"
            " directory beside this one. If there is none, give --only-server. --no-write-sessions leaves these"
            " sessions out.",
        )
    return found


async def find_root_introductions(
    target: MigrationTarget,
    org: str,
    document: IdentityDocument,
    present: IdentityDocument,
    sources: Iterable[MigrationSource],
) -> tuple[Commit, ...]:
    """Return the unverified commits that introduce roots, from the logs on the disks and from the running servers.

    Args:
        target: The servers; those that do not answer are left out.
        org: The organization.
        document: The identity that is migrated.
        present: The identity in the store.
        sources: The servers whose disks are migrated.
    """
    found = [
        commit
        for source in sources
        if source.data is not None
        for commit in read_commits(source.data / SESSIONS_LOG, org)
    ]
    async with NodeDirectory(target.addresses, timeout=max(target.timeout, _LARGE_ANSWER_TIMEOUT)) as directory:
        for client in await directory():
            with suppress(NodeError):
                found += decode_commits(await _pull_sessions(client, document, present), org)
    return tuple(commit for commit in found if claims_root(commit))


def with_pruned_root(
    identity: IdentityDocument, root_id: str, org: str, introductions: Iterable[Commit]
) -> IdentityDocument:
    """Return an identity that lists a root again that it no longer lists, if a root of it has introduced that root.

    The result is for verifying only, and must not be written. An identity that lists the root, or that has removed no
    root from its list, is returned unchanged.

    Args:
        identity: The identity in the store.
        root_id: Id of the root of a settings.json.
        org: The organization; it is part of the signed bytes.
        introductions: Unverified commits that introduce roots; a chain of them may lead to that root.
    """
    if not identity.pruned or identity.find_root(root_id) is not None:
        return identity
    pool = TrustPool.from_identity(identity, org=org)
    pool.offer_session_commits(introductions)
    try:
        found = pool.get_root(root_id)
    except VerificationError:
        return identity
    return replace(identity, roots=(*identity.roots, found))


async def _pull_sessions(
    client: NodeClient, document: IdentityDocument, present: IdentityDocument | None
) -> list[dict[str, Any]]:
    try:
        return await client.pull(SESSIONS_PATH, document.current)
    except NodeError:
        if present is None or present.current.id == document.current.id:
            raise
        return await client.pull(SESSIONS_PATH, present.current)


def _select_signed(
    sent: Iterable[Any], document: IdentityDocument, present: IdentityDocument | None, org: str
) -> dict[str, list[Commit]]:
    """Return the commits that a root of the identity has signed, by session id.

    The identity is `present`, which the store holds, or else `document`, which is to be migrated.
    """
    identity = present or document
    pool = TrustPool.from_identity(identity, org=org)
    commits = decode_commits(sent, org)
    pool.offer_session_commits(commits)
    verified: dict[str, list[Commit]] = {}
    for commit in commits:
        if pool.add_session_commit(commit):
            verified.setdefault(commit.key, []).append(commit)
    return verified


def find_missing_sessions(log: SessionLog, users: Iterable[Session]) -> tuple[list[Session], int]:
    """Return the trusted sessions that are missing or incomplete in the log, and how many the log holds completely."""
    lacking, fine = [], 0
    for user in users:
        try:
            known = log.pool.get_session(user.id)
        except UnknownSignerError:
            lacking.append(user)
            continue
        if known.public_key != user.public_key:
            raise SettingsError(
                f"session {user.id!r} has one key in settings.json and another in the log",
                hint="One of the keys is forged. Find out which one before clients use this server again.",
            )
        says_more = user.expiration_ms > known.expiration_ms or (known.owner is None and user.owner is not None)
        if says_more:
            lacking.append(user)
        else:
            fine += 1
    return lacking, fine


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionComparison:
    """Compares the trusted sessions of a settings.json with the log, and writes those that the log lacks.

    Attributes:
        lacking: The sessions that are missing or incomplete in the log.
        fine: How many sessions the log holds completely.
        latest: For each session id in the log, the id of its last verified commit.
        problems: Sessions that could not be verified.
        directory: The logs of the organization, locked; None if nothing is to be written.
    """

    lacking: list[Session]
    fine: int
    latest: dict[str, str]
    problems: tuple[str, ...]
    directory: LogDirectory | None

    def write(self, signer: OwnedSession, org: str, held: Mapping[str, Sequence[Commit]]) -> None:
        """Append the commits that introduce each session that the log lacks.

        Args:
            signer: The root that signs.
            org: The organization; it is part of the signed bytes.
            held: By session id, the commits that other servers hold. They are copied if this log has no commit of the
                session.
        """
        if self.directory is None or not self.lacking:
            return
        now_ms = SystemClock().now_ms()
        log = self.directory.open_log(SESSIONS_PATH)
        log.read_records()  # cuts a torn last line off, so that nothing is appended to it
        for session in self.lacking:
            known = self.latest.get(session.id)
            copied = held.get(session.id, ()) if known is None else ()
            for commit in copied:
                log.append_record(commit.to_json())
            if copied:
                if _is_covered(copied, session):
                    continue
                followed = {parent for commit in copied for parent in commit.parents}
                known = next(commit.id for commit in reversed(copied) if commit.id not in followed)
            log.append_record(introduction_of_migrated(session, signer, org, known, now_ms))
        log.flush()

    def write_roots(
        self, pairs: Iterable[tuple[Session, OwnedSession]], org: str, held: Mapping[str, Sequence[Commit]]
    ) -> None:
        """Append, for each pair, the commit by which one root introduces the other, unless the log holds such a commit.

        Args:
            pairs: Each root to introduce, with the root that introduces it.
            org: The organization; it is part of the signed bytes.
            held: As for `write`.
        """
        if self.directory is None:
            return
        for root, by in pairs:
            commits = read_commits(self.directory.path / SESSIONS_LOG, org)
            of_root = [commit for commit in commits if commit.key == root.id]
            if any(_is_by(by.session, commit) for commit in of_root):
                continue
            log = self.directory.open_log(SESSIONS_PATH)
            log.read_records()
            if not of_root:
                of_root = list(held.get(root.id, ()))
                for commit in of_root:
                    log.append_record(commit.to_json())
            parent = of_root[-1].id if of_root else None
            log.append_record(introduction_of_migrated(root, by, org, parent, SystemClock().now_ms()))
            log.flush()


def _is_by(signer: Session, commit: Commit) -> bool:
    try:
        verify_commit_by(signer, commit)
    except VerificationError:
        return False
    return True


def _is_covered(commits: Iterable[Commit], session: Session) -> bool:
    """Whether the commits of a session already state its owner, and an expiration at least as late as in `session`."""
    best: Session | None = None
    for commit in commits:
        try:
            best = preferred_session(best, session_from_commit(commit))
        except DecodeError:
            continue
    return best is not None and preferred_session(best, session) == best


def introduction_of_migrated(
    session: Session, signer: OwnedSession, org: str, parent: str | None, now_ms: int
) -> dict[str, Any]:
    """Return the commit that introduces a session which only settings.json holds; it is the same on every server.

    The commit depends neither on the time of the migration nor on earlier rotations.

    Args:
        session: The session.
        signer: The root that introduces the session.
        org: The organization; it is part of the signed bytes.
        parent: The last commit of the session in the log; None if there is none.
        now_ms: Milliseconds since 1970; the latest time that the commit may have.
    """
    # The time when GoatDB created the session: the same on every server. Signatures are deterministic (RFC 6979).
    ts = session.expiration_ms - milliseconds(SESSION_LIFETIME)
    if not 0 < ts <= min(now_ms, signer.session.expiration_ms):
        ts = _LONG_AGO_MS
    text = f"{signer.id}/{org}/{session.id}/{session.owner or ''}/{session.expiration_ms}/{ts}/{parent or ''}"
    return make_session_commit(
        session,
        signer=signer,
        commit_id=derived_id("migrated session", text),
        ts=ts,
        org=org,
        parents=(parent,) if parent else (),
    )


@contextmanager
def compare_sessions(
    source: MigrationSource, users: tuple[Session, ...], identity: IdentityDocument, *, writes: bool
) -> Iterator[SessionComparison]:
    """Compare a settings.json's sessions with the log. If `writes` is true, the data directory is locked meanwhile."""
    if source.data is None:
        problems = (
            ("no data directory was given, so the trusted sessions were not looked up in its log",) if users else ()
        )
        yield SessionComparison(lacking=list(users), fine=0, latest={}, problems=problems, directory=None)
        return
    with ExitStack() as stack:
        directory = None
        if writes:
            refuse_running(source.data)
            directory = stack.enter_context(LogDirectory(source.data))
        log = read_session_log(source.data, identity, source.org)
        lacking, fine = find_missing_sessions(log, users)
        latest = {session_id: commits[-1].id for session_id, commits in log.introductions.items()}
        yield SessionComparison(lacking=lacking, fine=fine, latest=latest, problems=log.problems, directory=directory)
