"""Check the logs in an organization's data directory: every record must be whole and signed by a trusted session.

The check writes nothing; `goatherd.operations.repair_data` repairs. The directories of unmodified GoatDB servers can be
checked as well, since their logs have the same format. The caller must hold the lock of the directory
(`goatherd.operations.data`), so that no server writes to it during the check.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

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

_EVERYTHING: Final = 1 << 60


@dataclass(frozen=True, slots=True, kw_only=True)
class LogFinding:
    """A line of a log that is damaged, is no commit, or cannot be verified.

    Attributes:
        repository: The repository's path.
        file: The log.
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
        findings: The lines that cannot be used, in the order of the file.
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
        """The lines that are damaged, no commit, or unverifiable, of all logs in their order."""
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
        ConfigurationError: No record verifies, so the records belong to another identity or organization.
    """
    pool = None if trusted is None else trusted.make_pool(org)
    found, verified, signers = [], 0, set()
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
                findings.append(_make_finding(repository, log, line, *problem))
        good = [commit for _, commit in commits]
        if pool is not None:
            verdicts = verify_commits(pool, repository, good, executor)
            good = [commit for commit, verdict in zip(good, verdicts, strict=True) if verdict is None]
            verified += len(good)
            for (line, commit), verdict in zip(commits, verdicts, strict=True):
                signers.add(commit.session)
                if verdict is not None:
                    text = str(verdict)
                    findings.append(
                        _make_finding(repository, log, line, LineProblem.UNVERIFIABLE, text, commit.id, verdict.code)
                    )
        if repository == SESSIONS_PATH:
            sessions = good
        findings.sort(key=lambda finding: finding.offset)
        found.append(LogReport(repository=repository, file=log.file, records=len(commits), findings=tuple(findings)))
    report = DataReport(
        org=org,
        directory=logs.path,
        verified_with=None if trusted is None else trusted.source,
        logs=tuple(found),
        conflicts=tuple(find_conflicts({str(logs.path): sessions, **(held_by_peers or {})})),
    )
    if trusted is not None and report.records and not verified:
        # SECURITY: with another cluster's identity nothing verifies, and a repair would set everything aside
        # (tests/unit/operations/test_data.py).
        knows_signer = any(root.id in signers for root in trusted.roots)
        if report.records > 1 or not knows_signer:
            raise ConfigurationError(
                f"none of the {describe_count(report.records, 'commit')} in {logs.path} verifies with the identity of"
                f" {trusted.source} as organization {org!r}; nothing was changed",
                hint="Check that --provider names this cluster's identity, and that --org is right.",
            )
    return report


def list_repositories(logs: LogDirectory) -> list[str]:
    return order_repositories(logs.repository_paths())


def decode_log_commits(data: bytes, org: str) -> list[Commit]:
    return [outcome for _, outcome in decode_lines(data, org) if isinstance(outcome, Commit)]


def _make_finding(
    repository: str,
    log: FileLog,
    line: LogLine,
    kind: LineProblem,
    reason: str,
    commit_id: str | None,
    code: str | None = None,
) -> LogFinding:
    return LogFinding(
        repository=repository,
        file=log.file,
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
    verification = pool.prepare_pending(_EVERYTHING)
    verification.run(executor)
    pool.conclude_verification(verification)
    verdicts = pool.verify_commits(commits, executor, held=True)
    return [verdict or _check_introducer(pool, commit) for verdict, commit in zip(verdicts, commits, strict=True)]


def _check_introducer(pool: TrustPool, commit: Commit) -> VerificationError | None:
    # SECURITY: a root that only a working root has introduced must not come back from a repaired log
    # (tests/unit/operations/test_data.py).
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
