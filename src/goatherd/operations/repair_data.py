"""Repair the logs of an organization's data directory.

`repair_organization` moves unusable lines into files ``*.damaged`` in the directories of the logs, and restores the
commits that can be verified, from those files and from peers. GoatDB crashes if different commits create the same
session. For such commits, the function writes a commit that has all of them as parents, to the log and to the peers
(`goatherd.operations.concurrent_creations`). The caller must hold the lock of the directory
(`goatherd.operations.data`), so that no server runs on it.

Rules: no byte is ever deleted. A log without damage is not written, except ``/sys/sessions``, to which missing sessions
are added. The next repair completes an interrupted one. A commit is restored only after its signature was verified.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, Protocol

from goatherd.errors import (
    ConfigurationError,
    DecodeError,
    NodeError,
    UnknownSignerError,
)
from goatherd.identity.session import OwnedSession, Session
from goatherd.node.data_check import LineProblem
from goatherd.node.log_storage import FileLog, LogDirectory
from goatherd.node.repository import Repository
from goatherd.operations.check_data import (
    DataReport,
    LogFinding,
    TrustedRoots,
    check_organization,
    decode_log_commits,
    list_repositories,
    verify_commits,
)
from goatherd.operations.concurrent_creations import Conflict, find_conflicts, join_creations
from goatherd.trust import TrustPool
from goatherd.wire.commit import Commit, decode_commits
from goatherd.wire.commit_log import LogLine
from goatherd.wire.paths import SESSIONS_PATH


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """What a repair did for one organization.

    Attributes:
        before: The check before the repair.
        after: The check after the repair.
        set_aside: The lines that were moved into ``*.damaged`` files.
        restored: Number of commits that were restored from those files.
        fetched: Number of commits that were fetched from peers.
        lacking: Ids of commits that were moved away and could not be restored from a file or a peer.
        unidentified: Number of moved lines whose commit id cannot be read.
        joined: Ids of the sessions that different commits had created, and that a joining commit now unites.
        given: Number of joining commits that were pushed to peers.
        problems: Errors of peers that could not be asked, and reasons why creations could not be joined.
    """

    before: DataReport
    after: DataReport
    set_aside: tuple[LogFinding, ...]
    restored: int
    fetched: int
    lacking: tuple[str, ...]
    unidentified: int
    joined: tuple[str, ...]
    given: int
    problems: tuple[str, ...]

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left to repair, in the logs and on every peer."""
        return self.after.is_clean and not self.problems

    def to_json(self) -> dict[str, object]:
        """Return the result as JSON data."""
        return {
            "org": self.before.org,
            "directory": str(self.before.directory),
            "verifiedWith": self.before.verified_with,
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


class RepairPeer(Protocol):
    """The interface of another server of the cluster; `goatherd.cluster.client.NodeClient` implements it."""

    @property
    def base_url(self) -> str: ...

    async def create_session(self) -> tuple[OwnedSession, list[Session]]: ...

    async def pull(
        self, path: str, signer: OwnedSession, now_ms: int | None = None, *, known: Collection[str] = ()
    ) -> list[dict[str, Any]]: ...

    async def push(
        self, path: str, commits: Iterable[Mapping[str, Any]], signer: OwnedSession, now_ms: int | None = None
    ) -> object: ...


# --- repair -----------------------------------------------------------------------------------------------------------


async def repair_organization(
    logs: LogDirectory,
    org: str,
    trusted: TrustedRoots | None,
    peers: Sequence[RepairPeer] = (),
    executor: Executor | None = None,
) -> Repair:
    """Move unusable lines into ``*.damaged`` files, and restore verifiable commits from these files and from peers.

    If different commits create the same session, which crashes GoatDB, the current root signs a commit that joins them,
    in the log and on each peer that holds one of them.

    If there are bad lines, ``/sys/sessions`` is repaired first, and gets the sessions that only peers hold: without
    them, valid commits in the other logs cannot be verified. A commit with an unknown signer is set aside only if every
    peer has sent its sessions, and there is at least one peer. It stays in its log while lines of ``/sys/sessions`` are
    set aside, because one of those lines may introduce the signer.

    Args:
        logs: The organization's directory, locked.
        org: The organization.
        trusted: The trusted roots; if None, only lines that hold no commit are set aside, and no commit is restored.
        peers: Servers that may hold the damaged commits.
        executor: Verifies signatures in parallel.

    Raises:
        ConfigurationError: There are peers and no trusted roots; or the commits belong to the cluster of another
            identity, or ``/sys/sessions`` is lost and no peer holds it.
        StorageError: A log cannot be read or written. The repair can be run again.
    """
    _check_verifiable(peers, trusted)
    fetcher = _PeerClient(peers, None if trusted is None else trusted.current)
    joiner = None if trusted is None else _CreationJoiner(logs, org, trusted, fetcher, executor)
    sent = await fetcher.pull_sessions()
    held = {} if joiner is None else joiner.verify_sent(sent)
    before = judged = check_organization(logs, org, trusted, executor, held)
    moved: list[LogFinding] = []
    restored = fetched = 0
    sessions = logs.open_log(SESSIONS_PATH)
    if trusted is not None and (before.findings or _list_set_aside(logs)):
        # First, since the sessions decide which commits in the other logs are valid.
        moved = _set_aside(logs, [one for one in before.findings if one.repository == SESSIONS_PATH], is_final=False)
        restorer = _CommitRestorer(sessions, SESSIONS_PATH, org, _make_pool(logs, org, trusted), executor)
        restored = restorer.restore_set_aside()
        fetched = restorer.add_sent([record for records in sent.values() for record in records])
        if moved or restored or fetched:
            judged = check_organization(logs, org, trusted, executor, held)
    # A line whose signer stays unknown introduces no session, unlike a damaged one, which could be repaired.
    is_incomplete = sessions.set_aside_file.exists() or any(
        one.repository == SESSIONS_PATH and one.code != UnknownSignerError.code for one in judged.findings
    )
    have_peers_answered = bool(peers) and all(held.get(peer.base_url) for peer in peers)
    moved += _set_aside(logs, judged.findings, is_final=have_peers_answered and not is_incomplete)
    present: set[str] = set()
    joined: tuple[str, ...] = ()
    given = 0
    if trusted is not None and joiner is not None:
        pool = _make_pool(logs, org, trusted)
        for repository in _list_set_aside(logs):
            restorer = _CommitRestorer(logs.open_log(repository), repository, org, pool, executor)
            if repository != SESSIONS_PATH:
                restored += restorer.restore_set_aside()
                fetched += restorer.add_sent(await fetcher.pull(repository, restorer.ids))
            present |= set(restorer.ids)
        joined, given, held = await joiner.join(held)
    is_changed = moved or restored or fetched or joined
    after = check_organization(logs, org, trusted, executor, held) if is_changed else before
    ids = [
        finding.commit_id for finding in moved if finding.kind is not LineProblem.TORN
    ]  # its write was never confirmed
    return Repair(
        before=before,
        after=after,
        set_aside=tuple(moved),
        restored=restored,
        fetched=fetched,
        lacking=tuple(dict.fromkeys(one for one in ids if one is not None and one not in present)),
        unidentified=ids.count(None),
        joined=joined,
        given=given,
        problems=tuple(dict.fromkeys(fetcher.problems)),
    )


async def read_peers(
    logs: LogDirectory,
    org: str,
    trusted: TrustedRoots | None,
    peers: Sequence[RepairPeer],
    executor: Executor | None = None,
) -> tuple[dict[str, list[Commit]], tuple[str, ...]]:
    """Return the verified commits in each peer's ``/sys/sessions``, by URL, and the errors of peers that were not read.

    Raises:
        ConfigurationError: There are peers and no trusted roots.
        StorageError: The log of the sessions cannot be read.
    """
    _check_verifiable(peers, trusted)
    if trusted is None:
        return {}, ()
    fetcher = _PeerClient(peers, trusted.current)
    held = await _CreationJoiner(logs, org, trusted, fetcher, executor).read_peers()
    return held, tuple(dict.fromkeys(fetcher.problems))


def _check_verifiable(peers: Sequence[RepairPeer], trusted: TrustedRoots | None) -> None:
    if peers and trusted is None:
        raise ConfigurationError(
            "commits from peers could not be verified, because the trusted roots are not known",
            hint="Give --provider URI: the identity in that store names the trusted roots.",
        )


class _CreationJoiner:
    """Joins different commits that create the same session, in a log and on peers, so that GoatDB can merge them."""

    def __init__(
        self, logs: LogDirectory, org: str, trusted: TrustedRoots, fetcher: _PeerClient, executor: Executor | None
    ) -> None:
        self._logs = logs
        self._log = logs.open_log(SESSIONS_PATH)
        self._org = org
        self._trusted = trusted
        self._fetcher = fetcher
        self._executor = executor

    async def join(self, held: dict[str, list[Commit]]) -> tuple[tuple[str, ...], int, dict[str, list[Commit]]]:
        """Join every conflict (different commits that create the same session) that can be joined.

        Args:
            held: The commits that the peers hold, as `verify_sent` returns them.

        Returns:
            The sessions whose creations were joined, the number of commits that were pushed to peers, and the commits
            that the peers hold now.
        """
        local = decode_log_commits(self._log.read_bytes(), self._org)
        conflicts = find_conflicts({str(self._logs.path): local, **held})
        if conflicts:
            local = self._select_verified(local, self._trusted.make_pool(self._org))
            conflicts = find_conflicts({str(self._logs.path): local, **held})
        signer = self._trusted.current
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
            if commits and await self._fetcher.push(url, commits, signer):
                given += len(commits)
        return tuple(conflict.session_id for conflict, _ in joined), given, await self.read_peers()

    async def read_peers(self) -> dict[str, list[Commit]]:
        """Return the commits of each peer's ``/sys/sessions`` that a root has signed."""
        return self.verify_sent(await self._fetcher.pull_sessions())

    def verify_sent(self, sent: Mapping[str, Iterable[Any]]) -> dict[str, list[Commit]]:
        """Return those commits of peers' ``/sys/sessions``, given by URL, that a root has signed."""
        pool = _make_pool(self._logs, self._org, self._trusted)
        return {url: self._select_verified(decode_commits(records, self._org), pool) for url, records in sent.items()}

    def _select_verified(self, commits: Sequence[Commit], pool: TrustPool) -> list[Commit]:
        verdicts = verify_commits(pool, SESSIONS_PATH, commits, self._executor)
        return [commit for commit, verdict in zip(commits, verdicts, strict=True) if verdict is None]

    def _write(self, joined: Iterable[tuple[Conflict, dict[str, Any]]], present: Collection[str]) -> None:
        self._log.read_records()  # cuts a torn last line off, so that nothing is appended to it
        for conflict, commit in joined:
            for creation in conflict.creations:
                if creation.id not in present:
                    self._log.append_record(creation.to_json())
            self._log.append_record(commit)
        self._log.flush()


def _set_aside(logs: LogDirectory, findings: Iterable[LogFinding], *, is_final: bool) -> list[LogFinding]:
    """Move the lines of findings out of their logs, and return the findings.

    If `is_final` is false, further sessions may become known, so commits with an unknown signer stay in their logs.
    """
    chosen: dict[str, list[LogFinding]] = {}
    for finding in findings:
        is_open = finding.code == UnknownSignerError.code and not is_final
        if finding.kind is not LineProblem.SET_ASIDE and not is_open:
            chosen.setdefault(finding.repository, []).append(finding)
    for repository, some in chosen.items():
        logs.open_log(repository).set_aside([_locate_line(finding) for finding in some])
    return [finding for some in chosen.values() for finding in some]


def _locate_line(finding: LogFinding) -> LogLine:
    return LogLine(
        finding.offset, finding.offset + finding.length, None, is_finished=finding.kind is not LineProblem.TORN
    )


def _list_set_aside(logs: LogDirectory) -> list[str]:
    paths = dict.fromkeys([SESSIONS_PATH, *list_repositories(logs)])
    return [path for path in paths if logs.open_log(path).set_aside_file.exists()]


def _make_pool(logs: LogDirectory, org: str, trusted: TrustedRoots) -> TrustPool:
    """Return a trust pool that knows the roots, and the sessions that they introduce in the log of the sessions."""
    pool = trusted.make_pool(org)
    pool.offer_session_commits(decode_log_commits(logs.open_log(SESSIONS_PATH).read_bytes(), org))
    return pool


class _CommitRestorer:
    """Adds verified commits to the log of one repository, from its ``*.damaged`` file or from peers."""

    def __init__(self, log: FileLog, path: str, org: str, pool: TrustPool, executor: Executor | None) -> None:
        self._log = log
        self._path = path
        self._org = org
        self._pool = pool
        self._executor = executor
        self._repository = Repository(path, log, org=org, connection="", own_session=lambda: "")
        self._repository.load_log()

    @property
    def ids(self) -> Sequence[str]:
        """The ids of the commits in the log."""
        return self._repository.ids

    def restore_set_aside(self) -> int:
        """Restore the commits in the ``*.damaged`` file that can be verified now, and return their number."""
        fresh = self._select_new(decode_log_commits(self._log.read_set_aside(), self._org))
        verdicts = verify_commits(self._pool, self._path, fresh, self._executor)
        return self._add_commits([commit for commit, verdict in zip(fresh, verdicts, strict=True) if verdict is None])

    def add_sent(self, records: Iterable[Any]) -> int:
        """Verify the commits that a peer sent, add the valid ones, and return their number.

        SECURITY: a commit of a revoked root is not valid here, as it is not valid from any other peer
        (tests/unit/operations/test_data.py).
        """
        fresh = self._select_new(decode_commits(records, self._org))
        if self._path == SESSIONS_PATH:
            # The commit that introduces a root may come after commits of that root.
            taken: list[Commit] = []
            while learnt := [commit for commit in fresh if self._pool.add_session_commit(commit)]:
                taken += learnt
                known = {commit.id for commit in learnt}
                fresh = [commit for commit in fresh if commit.id not in known]
            return self._add_commits(taken)
        verdicts = self._pool.verify_commits(fresh, self._executor)
        return self._add_commits([commit for commit, verdict in zip(fresh, verdicts, strict=True) if verdict is None])

    def _select_new(self, commits: Iterable[Commit]) -> list[Commit]:
        return [commit for commit in commits if commit.id not in self._repository]

    def _add_commits(self, commits: Iterable[Commit]) -> int:
        count = sum(self._repository.add_commit(commit) for commit in commits)
        self._log.flush()
        return count


class _PeerClient:
    """Reads and writes commits of peers.

    Attributes:
        problems: The errors of requests to peers that failed.
    """

    def __init__(self, peers: Sequence[RepairPeer], current: OwnedSession | None) -> None:
        self._peers = peers
        self._current = current
        self._anonymous: dict[str, OwnedSession] = {}
        self.problems: list[str] = []

    async def pull(self, path: str, known: Sequence[str]) -> list[dict[str, Any]]:
        """Return the commits of a repository that peers hold and that are not in `known`. They are unverified."""
        found: list[dict[str, Any]] = []
        for peer in self._peers:
            try:
                found += await peer.pull(path, await self._choose_signer(peer), known=set(known))
            except NodeError as error:
                self.problems.append(str(error))
        return found

    async def pull_sessions(self) -> dict[str, list[dict[str, Any]]]:
        """Return each peer's commits of ``/sys/sessions``, unverified, by URL. A peer that fails is left out."""
        found = {}
        for peer in self._peers:
            try:
                found[peer.base_url] = await peer.pull(SESSIONS_PATH, await self._choose_signer(peer))
            except NodeError as error:
                self.problems.append(str(error))
        return found

    async def push(self, url: str, commits: Sequence[Mapping[str, Any]], signer: OwnedSession) -> bool:
        """Push session commits to the peer at `url`; return whether it accepted them. Add a failure to `problems`."""
        (peer,) = [peer for peer in self._peers if peer.base_url == url]
        try:
            await peer.push(SESSIONS_PATH, commits, signer)
        except NodeError as error:
            self.problems.append(str(error))
            return False
        return True

    async def _choose_signer(self, peer: RepairPeer) -> OwnedSession:
        """Return the session that signs requests: the current root if its key is known, or an anonymous session."""
        if self._current is not None:
            return self._current
        if peer.base_url not in self._anonymous:
            self._anonymous[peer.base_url], _ = await peer.create_session()
        return self._anonymous[peer.base_url]
