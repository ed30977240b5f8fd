"""Check the logs in an organization's data directory: every record must be whole and signed by a trusted session.

The check writes nothing; `goatherd.operations.repair_data` repairs. The directories of unmodified GoatDB servers can be
checked as well, since their logs have the same format. The caller must hold the lock of the directory
(`goatherd.operations.data`), so that no server writes to it during the check.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from pathlib import Path

from goatherd.errors import (
    ConfigurationError,
    RevokedSessionError,
    UntrustedRootError,
    VerificationError,
)
from goatherd.identity.anchor import AnchoredTrust
from goatherd.identity.document import IdentityDocument
from goatherd.identity.session import OwnedSession, Session
from goatherd.identity.succession import TrustCheckpoint
from goatherd.node.data_check import LineProblem, decode_lines, order_repositories
from goatherd.node.log_storage import FileLog, LogDirectory
from goatherd.operations.concurrent_creations import Conflict, find_conflicts
from goatherd.telemetry import describe_count
from goatherd.trust import TrustPool
from goatherd.wire.commit import Commit
from goatherd.wire.commit_log import LogLine
from goatherd.wire.paths import SESSIONS_PATH


@dataclass(frozen=True, slots=True, kw_only=True)
class LogFinding:
    """A line that is damaged, is no commit, or cannot be verified; or a valid line that was moved out of its log.

    Attributes:
        repository: The repository's path.
        file: The log, or its ``*.damaged`` file.
        offset: Offset of the line in bytes.
        length: Length of the line in bytes.
        kind: The kind of problem.
        reason: The problem, in a sentence.
        code: Error code of the failed verification; None if the line is damaged or is no commit.
        commit_id: Id of the commit; None if it cannot be read.
    """

    repository: str
    file: Path
    offset: int
    length: int
    kind: LineProblem
    reason: str
    code: str | None = None
    commit_id: str | None = None

    def to_json(self) -> dict[str, object]:
        """Return this finding about a line of a log as JSON data."""
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
class TrustedRoots:
    """The roots with which the signatures of an organization's records are verified.

    Attributes:
        source: Name of the store or the file that names the roots.
        roots: The roots.
        revoked: Ids of revoked roots. Commits that they have signed are valid if the log already holds them.
        current: The current root, which can sign requests to peers (other servers of the cluster); None if its private
            key is not known.
        anchored: Which roots may introduce other roots, if the identity has an anchor (a root key in an HSM or a KMS);
            None if every root may.
    """

    source: str
    roots: tuple[Session, ...]
    revoked: frozenset[str] = frozenset()
    current: OwnedSession | None = field(default=None, repr=False)
    anchored: AnchoredTrust | None = None

    @classmethod
    def from_document(cls, document: IdentityDocument, source: str) -> TrustedRoots:
        """Return the roots of an identity document, for verifying an organization's records."""
        return cls(
            source=source,
            roots=document.roots,
            revoked=document.revoked_ids,
            current=document.current,
            anchored=document.anchored_trust,
        )

    @classmethod
    def from_checkpoint(cls, seen: TrustCheckpoint, source: str) -> TrustedRoots:
        """Return the roots in a trust checkpoint, the file in which a server remembers the identity that it uses.

        Their private keys are not known.
        """
        return cls(source=source, roots=seen.roots, revoked=seen.revoked_ids, anchored=seen.anchored_trust)

    def make_pool(self, org: str) -> TrustPool:
        """Return a trust pool that knows the roots and no other session."""
        # A pool needs a session that signs. This one signs nothing, and without an owner it introduces no session.
        current = self.current or OwnedSession.generate(session_id="check", owner=None, now_ms=0)
        return TrustPool(org=org, current=current, roots=self.roots, revoked=self.revoked, anchored=self.anchored)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogReport:
    """The result of checking one log.

    Attributes:
        repository: The repository's path.
        file: The log.
        records: How many lines are commits, unverifiable ones included.
        findings: The lines that cannot be used, in the order of the file; then the valid ones in the ``*.damaged``
            file that the log lacks.
    """

    repository: str
    file: Path
    records: int
    findings: tuple[LogFinding, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DataReport:
    """The result of checking the logs of one organization.

    Attributes:
        org: The organization.
        directory: Its directory.
        verified_with: Name of the store or the file that names the roots; None if no signature was verified.
        logs: One report for each log.
        conflicts: Sessions that are created by different commits, in this directory or on peers (other servers) that
            were asked. GoatDB crashes when it merges such commits.
        problems: The error of each peer that could not be asked.
    """

    org: str
    directory: Path
    verified_with: str | None
    logs: tuple[LogReport, ...]
    conflicts: tuple[Conflict, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def records(self) -> int:
        """Number of commits in all logs."""
        return sum(log.records for log in self.logs)

    @property
    def findings(self) -> tuple[LogFinding, ...]:
        """The lines that are damaged, no commit, unverifiable, or set aside although valid; by log."""
        return tuple(finding for log in self.logs for finding in log.findings)

    @property
    def is_clean(self) -> bool:
        """Whether there is nothing to repair, and every peer answered."""
        return not (self.findings or self.conflicts or self.problems)

    def to_json(self) -> dict[str, object]:
        """Return this report on an organization's logs as JSON data."""
        return {
            "org": self.org,
            "directory": str(self.directory),
            "verifiedWith": self.verified_with,
            "logs": len(self.logs),
            "records": self.records,
            "findings": [finding.to_json() for finding in self.findings],
            "conflicts": [conflict.to_json() for conflict in self.conflicts],
            "problems": list(self.problems),
        }


# --- check ------------------------------------------------------------------------------------------------------------


def check_organization(
    logs: LogDirectory,
    org: str,
    trusted: TrustedRoots | None,
    executor: Executor | None = None,
    held_by_peers: Mapping[str, Iterable[Commit]] | None = None,
) -> DataReport:
    """Read every record of an organization and verify its signature. Writes nothing; blocks until all are checked.

    Args:
        logs: The organization's directory, locked.
        org: The organization.
        trusted: The trusted roots; None to verify no signature.
        executor: Verifies signatures in parallel.
        held_by_peers: Commits of other servers' ``/sys/sessions``, by URL (as `read_peers` returns them). They are
            compared with this server's, to find commits that create the same session with different contents.

    Raises:
        StorageError: A log cannot be read.
        ConfigurationError: No record verifies, not even with the sessions of the other servers: the records belong to
            another identity or organization, or this server has lost its sessions.
    """
    held = {url: list(commits) for url, commits in (held_by_peers or {}).items()}
    pool = None if trusted is None else trusted.make_pool(org)
    found: list[LogReport] = []
    verified, signers = 0, set()
    sessions: list[Commit] = []
    for repository in list_repositories(logs):
        log = logs.open_log(repository)
        findings: list[LogFinding] = []
        commits: list[tuple[LogLine, Commit]] = []
        for line, outcome in decode_lines(log.read_bytes(), org):
            if isinstance(outcome, Commit):
                commits.append((line, outcome))
            else:
                problem = (outcome.kind, outcome.reason, outcome.commit_id)
                findings.append(_make_finding(repository, log.file, line, *problem))
        good = [commit for _, commit in commits]
        if pool is not None:
            verdicts = verify_commits(pool, repository, good, executor)
            good = [commit for commit, verdict in zip(good, verdicts, strict=True) if verdict is None]
            verified += len(good)
            for (line, commit), verdict in zip(commits, verdicts, strict=True):
                signers.add(commit.session)
                if verdict is not None:
                    problem = (LineProblem.UNVERIFIABLE, str(verdict), commit.id)
                    findings.append(_make_finding(repository, log.file, line, *problem, code=verdict.code))
        if repository == SESSIONS_PATH:
            sessions = good
        findings.sort(key=lambda finding: finding.offset)
        found.append(LogReport(repository=repository, file=log.file, records=len(commits), findings=tuple(findings)))
    if pool is not None:
        found = [_add_set_aside(one, logs.open_log(one.repository), org, pool, executor) for one in found]
    report = DataReport(
        org=org,
        directory=logs.path,
        verified_with=None if trusted is None else trusted.source,
        logs=tuple(found),
        conflicts=tuple(find_conflicts({str(logs.path): sessions, **held})),
    )
    verified += sum(finding.kind is LineProblem.SET_ASIDE for finding in report.findings)
    if trusted is not None and report.records and not verified:
        # SECURITY: with the identity of another cluster, no record verifies, and a repair would move all of them out
        # (tests/unit/operations/test_data.py).
        knows_signer = any(root.id in signers for root in trusted.roots)
        learnt = [commit for commits in held.values() for commit in commits]
        if (report.records > 1 or not knows_signer) and not _verify_any(logs, org, trusted, learnt, executor):
            raise _unverified_error(report, trusted, has_sessions=bool(learnt))
    return report


def _add_set_aside(report: LogReport, log: FileLog, org: str, pool: TrustPool, executor: Executor | None) -> LogReport:
    """Add the valid commits in a log's ``*.damaged`` file that the log lacks to the report on the log.

    Sessions that such commits introduce are added to the pool.
    """
    data = log.read_set_aside()
    if not data:
        return report
    present = {commit.id for commit in decode_log_commits(log.read_bytes(), org)}
    lines = [(line, one) for line, one in decode_lines(data, org) if isinstance(one, Commit) and one.id not in present]
    verdicts = verify_commits(pool, report.repository, [commit for _, commit in lines], executor)
    reason = "the commit is valid, but its log lacks it"
    findings = tuple(
        _make_finding(report.repository, log.set_aside_file, line, LineProblem.SET_ASIDE, reason, commit.id)
        for (line, commit), verdict in zip(lines, verdicts, strict=True)
        if verdict is None
    )
    return replace(report, findings=report.findings + findings)


def _verify_any(
    logs: LogDirectory, org: str, trusted: TrustedRoots, learnt: Sequence[Commit], executor: Executor | None
) -> bool:
    """Return whether a commit in the logs verifies with the sessions that the commits in `learnt` introduce."""
    if not learnt:
        return False
    pool = trusted.make_pool(org)
    pool.offer_session_commits(learnt)
    return any(
        None in verify_commits(pool, path, decode_log_commits(logs.open_log(path).read_bytes(), org), executor)
        for path in list_repositories(logs)
    )


def _unverified_error(report: DataReport, trusted: TrustedRoots, *, has_sessions: bool) -> ConfigurationError:
    """Return the error which says that no commit verifies; `has_sessions`: whether peers have sent sessions."""
    count = describe_count(report.records, "commit")
    if not has_sessions and not any(log.records for log in report.logs if log.repository == SESSIONS_PATH):
        return ConfigurationError(
            f"{report.directory} has lost its sessions: {SESSIONS_PATH} holds no commit, so none of the {count} in the"
            " other logs can be verified; nothing was changed",
            hint="Give --peer URL for each server that holds the sessions. If this is not the cluster of the identity,"
            " check --provider and --org.",
        )
    return ConfigurationError(
        f"none of the {count} in {report.directory} verifies with the identity of {trusted.source} as organization"
        f" {report.org!r}; nothing was changed",
        hint="Check that --provider names this cluster's identity, and that --org is right.",
    )


def list_repositories(logs: LogDirectory) -> list[str]:
    """Return the paths of all repositories in a data directory, in the order in which to check them.

    Raises:
        PathError: The name of a log is too long, so it could not be checked.
    """
    return order_repositories(logs.repository_paths(is_whole=True))


def decode_log_commits(data: bytes, org: str) -> list[Commit]:
    return [outcome for _, outcome in decode_lines(data, org) if isinstance(outcome, Commit)]


def _make_finding(
    repository: str,
    file: Path,
    line: LogLine,
    kind: LineProblem,
    reason: str,
    commit_id: str | None,
    code: str | None = None,
) -> LogFinding:
    return LogFinding(
        repository=repository,
        file=file,
        offset=line.start,
        length=line.end - line.start,
        kind=kind,
        reason=reason,
        code=code,
        commit_id=commit_id,
    )


def verify_commits(
    pool: TrustPool, repository: str, commits: Sequence[Commit], executor: Executor | None
) -> list[VerificationError | None]:
    """Verify commits of one log; return an error for each invalid commit, and None for each valid one.

    If `repository` is ``/sys/sessions``, the sessions that a root introduces there are added to the pool, so that
    commits of these sessions can be verified, too.
    """
    if repository != SESSIONS_PATH:
        return pool.verify_commits(commits, executor, held=True)
    pool.offer_session_commits(commits)
    verification = pool.prepare_pending()
    verification.run(executor)
    pool.conclude_verification(verification)
    verdicts = pool.verify_commits(commits, executor, held=True)
    return [verdict or _check_introducer(pool, commit) for verdict, commit in zip(verdicts, commits, strict=True)]


def _check_introducer(pool: TrustPool, commit: Commit) -> VerificationError | None:
    # SECURITY: with an anchor, the repair does not keep a root that only a working root has introduced, so a server
    # does not trust it again (tests/unit/operations/test_data.py).
    if not pool.may_introduce(commit):
        return UntrustedRootError(
            f"working root {commit.session!r} cannot introduce root {commit.key!r}: only the anchor can"
        )
    try:
        pool.get_root(commit.session)
    except RevokedSessionError:
        return None
    except VerificationError as error:
        return error
    return None
