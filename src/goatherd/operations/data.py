"""Check and repair the logs in a data directory: `goatherd data`.

`check_organization` reads every record of one organization, and verifies its signature where it is known whose
signatures count. `repair_organization` moves what cannot be used into files beside the logs, ``*.damaged``, and takes
back what can be verified, from those files and from peers. It joins concurrent creations of a session, which end
GoatDB processes (`goatherd.operations.creations`), here and on the peers. Both need `lock_organization`: no server may
run on the directory. They work on the directories of unmodified GoatDB servers as well, which have the same logs.

Rules: no byte is ever deleted; a log without findings is not written; a repair that was interrupted is completed by the
next one; a commit is taken only after its signature was verified.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from goatherd.agent.data_directory_lock import LOCK_NAME as AGENT_LOCK_NAME
from goatherd.data_directory import (
    SEEN_NAME,
    SETTINGS_NAME,
    is_organization_directory,
    organization_directories,
    refuse_running,
)
from goatherd.errors import (
    AgentBusyError,
    ConfigurationError,
    DecodeError,
    IdentityError,
    NodeError,
    RevokedSessionError,
    StorageError,
    UnknownSignerError,
    VerificationError,
)
from goatherd.files import lock_file
from goatherd.identity.document import IdentityDocument
from goatherd.identity.session import OwnedSession, Session
from goatherd.identity.settings_json import from_settings
from goatherd.identity.succession import Seen
from goatherd.node.data_check import Kind, decode_lines, order_repositories
from goatherd.node.log_storage import FileLog, LogDirectory
from goatherd.node.repository import Repository
from goatherd.operations.creations import Conflict, find_conflicts, join_creations
from goatherd.trust import TrustPool
from goatherd.wire.commit import Commit
from goatherd.wire.commit_log import Line
from goatherd.wire.paths import SESSIONS_PATH

_EVERYTHING: Final = 1 << 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of a log that cannot be used.

    Attributes:
        repository: The repository's path.
        file: The log.
        offset: Where the line begins, in bytes.
        length: How many bytes it has.
        kind: What is wrong.
        reason: The same in words.
        code: The code of the verification's error; None for other kinds.
        commit_id: The commit's id, where one can be read.
    """

    repository: str
    file: Path
    offset: int
    length: int
    kind: Kind
    reason: str
    code: str | None = None
    commit_id: str | None = None

    def to_json(self) -> dict[str, object]:
        """Return it as data."""
        return {
            "repository": self.repository,
            "file": str(self.file),
            "offset": self.offset,
            "length": self.length,
            "kind": self.kind.value,
            "reason": self.reason,
            "code": self.code,
            "commit": self.commit_id,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchor:
    """The roots by whose signatures the records of an organization are verified.

    Attributes:
        source: Where they are from, in words.
        roots: The roots.
        revoked: Ids of revoked roots; what they have signed and the log holds counts.
        current: The session that can sign requests to peers; None where no private key is known.
    """

    source: str
    roots: tuple[Session, ...]
    revoked: frozenset[str] = frozenset()
    current: OwnedSession | None = field(default=None, repr=False)

    @classmethod
    def of(cls, document: IdentityDocument, source: str) -> Anchor:
        """Return the anchor that an identity document gives."""
        return cls(source=source, roots=document.roots, revoked=document.revoked_ids, current=document.current)

    def pool(self, org: str) -> TrustPool:
        """Return a trust pool that knows the roots and nothing else."""
        # A pool has a session that signs. It signs nothing here, and a session without an owner vouches for nothing.
        current = self.current or OwnedSession.generate(session_id="check", owner=None, now_ms=0)
        return TrustPool(org=org, current=current, roots=self.roots, revoked=self.revoked)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogReport:
    """What one log holds.

    Attributes:
        repository: The repository's path.
        file: The log.
        records: How many lines are commits, unverifiable ones included.
        findings: The lines that cannot be used, in the order of the file.
    """

    repository: str
    file: Path
    records: int
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What the logs of one organization hold.

    Attributes:
        org: The organization.
        directory: Its directory.
        anchor: Where the roots are from; None: no signature was verified.
        logs: One report for each log.
        conflicts: Concurrent creations of a session, in this directory and on the peers that were asked.
        problems: Why peers could not be asked.
    """

    org: str
    directory: Path
    anchor: str | None
    logs: tuple[LogReport, ...]
    conflicts: tuple[Conflict, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def records(self) -> int:
        """How many commits there are."""
        return sum(log.records for log in self.logs)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Everything that cannot be used, by log."""
        return tuple(finding for log in self.logs for finding in log.findings)

    @property
    def is_clean(self) -> bool:
        """Whether there is nothing to repair, as far as every peer could be asked."""
        return not (self.findings or self.conflicts or self.problems)

    def to_json(self) -> dict[str, object]:
        """Return it as data."""
        return {
            "org": self.org,
            "directory": str(self.directory),
            "verifiedWith": self.anchor,
            "logs": len(self.logs),
            "records": self.records,
            "findings": [finding.to_json() for finding in self.findings],
            "conflicts": [conflict.to_json() for conflict in self.conflicts],
            "problems": list(self.problems),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """What a repair did for one organization.

    Attributes:
        before: What the logs held.
        after: What they hold now.
        set_aside: The findings that were moved into ``*.damaged`` files.
        restored: How many commits were taken back from those files, since they verify now.
        fetched: How many commits were fetched from peers.
        lacking: Ids of commits that were set aside and that neither a file nor a peer could give back.
        unidentified: How many lines were set aside whose commit's id cannot be read.
        joined: The sessions whose concurrent creations were joined.
        given: How many commits that join creations the peers were given.
        problems: Why peers could not be asked, or creations not joined.
    """

    before: Report
    after: Report
    set_aside: tuple[Finding, ...]
    restored: int
    fetched: int
    lacking: tuple[str, ...]
    unidentified: int
    joined: tuple[str, ...]
    given: int
    problems: tuple[str, ...]

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left to repair, here and on every peer."""
        return self.after.is_clean and not self.problems

    def to_json(self) -> dict[str, object]:
        """Return it as data."""
        return {
            "org": self.before.org,
            "directory": str(self.before.directory),
            "verifiedWith": self.before.anchor,
            "setAside": [finding.to_json() for finding in self.set_aside],
            "restored": self.restored,
            "fetched": self.fetched,
            "lacking": list(self.lacking),
            "unidentified": self.unidentified,
            "joined": list(self.joined),
            "given": self.given,
            "conflicts": [conflict.to_json() for conflict in self.after.conflicts],
            "left": [finding.to_json() for finding in self.after.findings],
            "problems": list(self.problems),
        }


class Peer(Protocol):
    """What a repair needs of another server; `goatherd.cluster.client.NodeClient` is one."""

    @property
    def base_url(self) -> str: ...

    async def create_session(self) -> tuple[OwnedSession, list[Session]]: ...

    async def pull(
        self, path: str, signer: OwnedSession, now_ms: int | None = None, *, known: Collection[str] = ()
    ) -> list[dict[str, Any]]: ...

    async def push(
        self, path: str, commits: Iterable[Mapping[str, Any]], signer: OwnedSession, now_ms: int | None = None
    ) -> object: ...


# --- finding the directory and the roots ------------------------------------------------------------------------------


def find_organizations(path: Path, org: str | None) -> list[tuple[str, Path]]:
    """Return the organizations that a path holds, by name: a data directory, or the directory of one organization.

    Args:
        path: What the operator has named.
        org: The organization to choose; what the only one is called, where its directory is named otherwise.

    Raises:
        ConfigurationError: It holds none, or not this one.
        StorageError: It cannot be read.
    """
    if not path.is_dir():
        raise ConfigurationError(f"{path} is not a directory", hint="Name the data directory of a server.")
    found = [(one.name, one) for one in organization_directories(path)]
    if not found and is_organization_directory(path):
        return [(org or path.resolve().name, path)]
    chosen = [(name, one) for name, one in found if org is None or name == org]
    if not chosen:
        what = "no GoatDB data" if org is None or not found else f"no data of organization {org!r}"
        raise ConfigurationError(f"{path} holds {what}", hint="Name the data directory of a server.")
    return chosen


@contextmanager
def lock_organization(directory: Path) -> Iterator[LogDirectory]:
    """Hold an organization's directory against servers and agents.

    Raises:
        StorageError: A server runs on it; the message names its process.
        AgentBusyError: An agent looks after it.
        NewerFormatError: A newer GoatDB has written in it.
    """
    descriptor: int | None = None
    try:
        try:
            descriptor = lock_file(directory.parent / AGENT_LOCK_NAME, create=False)
        except FileNotFoundError:
            pass
        except BlockingIOError:
            raise AgentBusyError(
                f"`goatherd run`, `watch` or `fetch` uses {directory.parent}", hint="Stop it, and run this again."
            ) from None
        except OSError as error:
            raise StorageError(f"{directory.parent / AGENT_LOCK_NAME}: {error.strerror}") from error
        with LogDirectory(directory) as logs:
            refuse_running(directory)
            yield logs
    finally:
        if descriptor is not None:
            os.close(descriptor)


def find_anchor(directory: Path, now_ms: int) -> Anchor | None:
    """Return the roots that an organization's own files name; None where no file does.

    They are the ones of the identity that a server here took from a store, else those of settings.json. Whoever can
    write the directory can write these files too: only a store shows that records were not forged.

    Raises:
        IdentityError: A file is there and is malformed.
        StorageError: A file is there and cannot be read.
    """
    for name in (SEEN_NAME, SETTINGS_NAME):
        path = directory / name
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise StorageError(f"{path} cannot be read: {error.strerror}") from error
        try:
            if name == SEEN_NAME:
                seen = Seen.from_bytes(raw)
                return Anchor(source=str(path), roots=seen.roots, revoked=seen.revoked_ids)
            document, _, _ = from_settings(raw, now_ms)
        except IdentityError as error:
            raise type(error)(f"{path}: {error}", hint="Give --provider URI, or --offline to verify nothing.") from None
        return Anchor.of(document, str(path))
    return None


# --- check ------------------------------------------------------------------------------------------------------------


def check_organization(
    logs: LogDirectory,
    org: str,
    anchor: Anchor | None,
    executor: Executor | None = None,
    held_by_peers: Mapping[str, Iterable[Commit]] | None = None,
) -> Report:
    """Read every record of an organization, and verify it where there is an anchor. Blocks; writes nothing.

    Args:
        logs: The organization's directory, locked.
        org: The organization.
        anchor: Whose signatures count; None verifies nothing.
        executor: Spreads the verification.
        held_by_peers: What other servers hold in ``/sys/sessions`` (`read_peers`), by their URLs.

    Raises:
        StorageError: A log cannot be read.
        ConfigurationError: The records are of another identity or organization.
    """
    pool = None if anchor is None else anchor.pool(org)
    found, verified, signers = [], 0, set()
    sessions: list[Commit] = []
    for repository in _repositories(logs):
        log = logs.open(repository)
        findings: list[Finding] = []
        commits: list[tuple[Line, Commit]] = []
        for line, outcome in decode_lines(log.read(), org):
            if isinstance(outcome, Commit):
                commits.append((line, outcome))
            else:
                problem = (outcome.kind, outcome.reason, outcome.commit_id)
                findings.append(_finding(repository, log, line, *problem))
        good = [commit for _, commit in commits]
        if pool is not None:
            verdicts = _verify(pool, repository, good, executor)
            good = [commit for commit, verdict in zip(good, verdicts, strict=True) if verdict is None]
            verified += len(good)
            for (line, commit), verdict in zip(commits, verdicts, strict=True):
                signers.add(commit.session)
                if verdict is not None:
                    text = str(verdict)
                    findings.append(_finding(repository, log, line, Kind.UNVERIFIABLE, text, commit.id, verdict.code))
        if repository == SESSIONS_PATH:
            sessions = good
        findings.sort(key=lambda finding: finding.offset)
        found.append(LogReport(repository=repository, file=log.file, records=len(commits), findings=tuple(findings)))
    report = Report(
        org=org,
        directory=logs.path,
        anchor=None if anchor is None else anchor.source,
        logs=tuple(found),
        conflicts=tuple(find_conflicts({str(logs.path): sessions, **(held_by_peers or {})})),
    )
    if anchor is not None and report.records and not verified:
        # SECURITY: with another cluster's identity nothing verifies, and a repair would set everything aside
        # (tests/unit/operations/test_data.py).
        knows_signer = any(root.id in signers for root in anchor.roots)
        if report.records > 1 or not knows_signer:
            raise ConfigurationError(
                f"none of the {report.records} commits in {logs.path} verifies with the identity of {anchor.source} as"
                f" organization {org!r}; nothing was changed",
                hint="Is it the identity of this cluster, and the organization's name? See --provider and --org.",
            )
    return report


def _repositories(logs: LogDirectory) -> list[str]:
    return order_repositories(logs.repositories())


def _commits(data: bytes, org: str) -> list[Commit]:
    return [outcome for _, outcome in decode_lines(data, org) if isinstance(outcome, Commit)]


def _finding(
    repository: str, log: FileLog, line: Line, kind: Kind, reason: str, commit_id: str | None, code: str | None = None
) -> Finding:
    return Finding(
        repository=repository,
        file=log.file,
        offset=line.start,
        length=line.end - line.start,
        kind=kind,
        reason=reason,
        code=code,
        commit_id=commit_id,
    )


def _verify(
    pool: TrustPool, repository: str, commits: Sequence[Commit], executor: Executor | None
) -> list[VerificationError | None]:
    """Verify commits that we hold; those of ``/sys/sessions`` are a root's word, and are learnt."""
    if repository != SESSIONS_PATH:
        return pool.verify_commits(commits, executor, held=True)
    pool.offer_session_commits(commits)
    verification = pool.prepare_pending(_EVERYTHING)
    verification.run(executor)
    pool.conclude(verification)
    verdicts = pool.verify_commits(commits, executor, held=True)
    return [verdict or _not_by_a_root(pool, commit) for verdict, commit in zip(verdicts, commits, strict=True)]


def _not_by_a_root(pool: TrustPool, commit: Commit) -> VerificationError | None:
    try:
        pool.root(commit.session)
    except RevokedSessionError:
        return None
    except VerificationError as error:
        return error
    return None


# --- repair -----------------------------------------------------------------------------------------------------------


async def repair_organization(
    logs: LogDirectory,
    org: str,
    anchor: Anchor | None,
    peers: Sequence[Peer] = (),
    executor: Executor | None = None,
) -> Repair:
    """Set aside what cannot be used, and take back what can be verified, from the set-aside files and from peers.

    Concurrent creations of a session are joined by a commit of the current root, in the log and on each peer that holds
    one of them.

    A commit whose signer is unknown stays in its log while ``/sys/sessions`` has lines set aside: its session may have
    been introduced in one of them.

    Args:
        logs: The organization's directory, locked.
        org: The organization.
        anchor: Whose signatures count. None: only what is no commit is set aside, and nothing is taken back.
        peers: Servers that may hold what is damaged here.
        executor: Spreads the verification.

    Raises:
        ConfigurationError: There are peers and no anchor, or the records are of another identity.
        StorageError: A log cannot be read or written; run it again.
    """
    _check_verifiable(peers, anchor)
    before = check_organization(logs, org, anchor, executor)
    sessions = logs.open(SESSIONS_PATH)
    is_incomplete = sessions.set_aside_file.exists() or any(one.repository == SESSIONS_PATH for one in before.findings)
    moved: list[Finding] = []
    for log in before.logs:
        chosen = [one for one in log.findings if not (is_incomplete and one.code == UnknownSignerError.code)]
        if chosen:
            logs.open(log.repository).set_aside([_line(finding) for finding in chosen])
            moved += chosen
    restored, fetched, held, problems = 0, 0, set[str](), list[str]()
    joined: tuple[str, ...] = ()
    given, held_by_peers = 0, dict[str, list[Commit]]()
    if anchor is not None:
        fetcher = _Fetcher(peers, anchor.current)
        pool = anchor.pool(org)
        pool.offer_session_commits(_commits(sessions.read(), org))
        for repository in _repositories_set_aside(logs):
            taker = _Taker(logs.open(repository), repository, org, pool, executor)
            restored += taker.take_set_aside()
            fetched += taker.take_sent(await fetcher.pull(repository, taker.ids))
            held |= set(taker.ids)
        joiner = _Joiner(logs, org, anchor, fetcher, executor)
        joined, given, held_by_peers = await joiner.join()
        problems = fetcher.problems
    if moved or restored or fetched or joined or held_by_peers:
        after = check_organization(logs, org, anchor, executor, held_by_peers)
    else:
        after = before
    ids = [finding.commit_id for finding in moved if finding.kind is not Kind.TORN]  # its write was never confirmed
    return Repair(
        before=before,
        after=after,
        set_aside=tuple(moved),
        restored=restored,
        fetched=fetched,
        lacking=tuple(dict.fromkeys(one for one in ids if one is not None and one not in held)),
        unidentified=ids.count(None),
        joined=joined,
        given=given,
        problems=tuple(dict.fromkeys(problems)),
    )


async def read_peers(
    logs: LogDirectory, org: str, anchor: Anchor | None, peers: Sequence[Peer], executor: Executor | None = None
) -> tuple[dict[str, list[Commit]], tuple[str, ...]]:
    """Return what peers hold in ``/sys/sessions``, verified, by their URLs; and why peers could not be asked.

    Raises:
        ConfigurationError: There are peers and no anchor.
        StorageError: The log of the sessions cannot be read.
    """
    _check_verifiable(peers, anchor)
    if anchor is None:
        return {}, ()
    fetcher = _Fetcher(peers, anchor.current)
    held = await _Joiner(logs, org, anchor, fetcher, executor).read_peers()
    return held, tuple(dict.fromkeys(fetcher.problems))


def _check_verifiable(peers: Sequence[Peer], anchor: Anchor | None) -> None:
    if peers and anchor is None:
        raise ConfigurationError(
            "what peers send could not be verified: it is not known whose signatures count",
            hint="Give --provider URI.",
        )


class _Joiner:
    """Joins concurrent creations of sessions, in a log and on peers."""

    def __init__(
        self, logs: LogDirectory, org: str, anchor: Anchor, fetcher: _Fetcher, executor: Executor | None
    ) -> None:
        self._logs = logs
        self._log = logs.open(SESSIONS_PATH)
        self._org = org
        self._anchor = anchor
        self._fetcher = fetcher
        self._executor = executor

    async def join(self) -> tuple[tuple[str, ...], int, dict[str, list[Commit]]]:
        """Join what can be joined.

        Returns:
            The sessions whose creations were joined, how many commits the peers were given, and what these hold now.
        """
        held = await self.read_peers()
        local = _commits(self._log.read(), self._org)
        conflicts = find_conflicts({str(self._logs.path): local, **held})
        if conflicts:
            local = self._believed(local, self._anchor.pool(self._org))
            conflicts = find_conflicts({str(self._logs.path): local, **held})
        signer = self._anchor.current
        if conflicts and signer is None:
            self._fetcher.problems.append(
                "concurrent creations of a session can be joined by the current root only, whose private key is not"
                " known here: give --provider URI"
            )
        if not conflicts or signer is None:
            return (), 0, held
        joined: list[tuple[Conflict, dict[str, Any]]] = []
        for conflict in conflicts:
            try:
                joined.append((conflict, join_creations(conflict, signer=signer, org=self._org)))
            except DecodeError as error:
                self._fetcher.problems.append(str(error))
        if not joined:
            return (), 0, held
        self._write(joined, {commit.id for commit in local})
        given = 0
        for url in held:
            commits = [commit for conflict, commit in joined if url in conflict.holders]
            if commits and await self._fetcher.push(url, SESSIONS_PATH, commits, signer):
                given += len(commits)
        return tuple(conflict.session_id for conflict, _ in joined), given, await self.read_peers()

    async def read_peers(self) -> dict[str, list[Commit]]:
        """Return the commits of ``/sys/sessions`` that each peer holds and a root has signed."""
        pool = self._anchor.pool(self._org)
        pool.offer_session_commits(_commits(self._log.read(), self._org))
        held = {}
        for url, records in (await self._fetcher.pull_each(SESSIONS_PATH)).items():
            commits = []
            for record in records:
                try:
                    commits.append(Commit.from_json(record, org=self._org))
                except DecodeError:
                    continue
            held[url] = self._believed(commits, pool)
        return held

    def _believed(self, commits: Sequence[Commit], pool: TrustPool) -> list[Commit]:
        verdicts = _verify(pool, SESSIONS_PATH, commits, self._executor)
        return [commit for commit, verdict in zip(commits, verdicts, strict=True) if verdict is None]

    def _write(self, joined: Iterable[tuple[Conflict, dict[str, Any]]], present: Collection[str]) -> None:
        self._log.records()  # cuts a torn last line off, so that nothing is appended to it
        for conflict, commit in joined:
            for creation in conflict.creations:
                if creation.id not in present:
                    self._log.append(creation.to_json())
            self._log.append(commit)
        self._log.flush()


def _line(finding: Finding) -> Line:
    return Line(finding.offset, finding.offset + finding.length, None, is_finished=finding.kind is not Kind.TORN)


def _repositories_set_aside(logs: LogDirectory) -> list[str]:
    return [path for path in _repositories(logs) if logs.open(path).set_aside_file.exists()]


class _Taker:
    """Takes verified commits into one repository."""

    def __init__(self, log: FileLog, path: str, org: str, pool: TrustPool, executor: Executor | None) -> None:
        self._log = log
        self._path = path
        self._org = org
        self._pool = pool
        self._executor = executor
        self._repository = Repository(path, log, org=org, connection="", own_session=lambda: "")
        self._repository.load()

    @property
    def ids(self) -> Sequence[str]:
        """The ids of the commits in the log."""
        return self._repository.ids

    def take_set_aside(self) -> int:
        """Take back what was set aside and verifies now, and return how many commits these are."""
        try:
            data = self._log.set_aside_file.read_bytes()
        except OSError as error:
            raise StorageError(f"{self._log.set_aside_file}: {error.strerror}") from error
        fresh = self._fresh(_commits(data, self._org))
        verdicts = _verify(self._pool, self._path, fresh, self._executor)
        return self._add([commit for commit, verdict in zip(fresh, verdicts, strict=True) if verdict is None])

    def take_sent(self, records: Iterable[Any]) -> int:
        """Take what a peer has sent and verifies, and return how many commits these are.

        SECURITY: as from any peer; nothing of a revoked root counts (tests/unit/operations/test_data.py).
        """
        commits = []
        for record in records:
            try:
                commits.append(Commit.from_json(record, org=self._org))
            except DecodeError:
                continue
        fresh = self._fresh(commits)
        if self._path == SESSIONS_PATH:
            # A root may be introduced by one that comes later.
            taken: list[Commit] = []
            while learnt := [commit for commit in fresh if self._pool.add_session_commit(commit)]:
                taken += learnt
                known = {commit.id for commit in learnt}
                fresh = [commit for commit in fresh if commit.id not in known]
            return self._add(taken)
        verdicts = self._pool.verify_commits(fresh, self._executor)
        return self._add([commit for commit, verdict in zip(fresh, verdicts, strict=True) if verdict is None])

    def _fresh(self, commits: Iterable[Commit]) -> list[Commit]:
        return [commit for commit in commits if commit.id not in self._repository]

    def _add(self, commits: Iterable[Commit]) -> int:
        count = sum(self._repository.add(commit) for commit in commits)
        self._log.flush()
        return count


class _Fetcher:
    """Asks peers for commits.

    Attributes:
        problems: Why a peer could not be asked.
    """

    def __init__(self, peers: Sequence[Peer], current: OwnedSession | None) -> None:
        self._peers = peers
        self._current = current
        self._anonymous: dict[str, OwnedSession] = {}
        self.problems: list[str] = []

    async def pull(self, path: str, known: Sequence[str]) -> list[dict[str, Any]]:
        """Return what the peers hold of a repository beyond `known`; unverified."""
        found: list[dict[str, Any]] = []
        for peer in self._peers:
            try:
                found += await peer.pull(path, await self._signer(peer), known=set(known))
            except NodeError as error:
                self.problems.append(str(error))
        return found

    async def pull_each(self, path: str) -> dict[str, list[dict[str, Any]]]:
        """Return all that each peer holds of a repository, by its URL; unverified. One that fails is left out."""
        found = {}
        for peer in self._peers:
            try:
                found[peer.base_url] = await peer.pull(path, await self._signer(peer))
            except NodeError as error:
                self.problems.append(str(error))
        return found

    async def push(self, url: str, path: str, commits: Sequence[Mapping[str, Any]], signer: OwnedSession) -> bool:
        """Give a peer commits, and return whether it answered."""
        (peer,) = [peer for peer in self._peers if peer.base_url == url]
        try:
            await peer.push(path, commits, signer)
        except NodeError as error:
            self.problems.append(str(error))
            return False
        return True

    async def _signer(self, peer: Peer) -> OwnedSession:
        """Return who asks: the current root, or a new anonymous session where its private key is not known."""
        if self._current is not None:
            return self._current
        if peer.base_url not in self._anonymous:
            self._anonymous[peer.base_url], _ = await peer.create_session()
        return self._anonymous[peer.base_url]
