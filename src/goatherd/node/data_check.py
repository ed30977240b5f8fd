"""Check the logs of a running server: read every record, verify its signature, and withhold damaged commits.

The check does not change the logs; `goatherd.operations.repair_data` repairs them while the server is stopped. A line
that is not a commit is never loaded, and is counted. A commit with an invalid signature was changed after the server
had accepted it: the check removes it from the open repository, and the server fetches it from a peer like any missing
commit. A commit by an unknown signer is counted and still served, and reported only if the signer stays unknown: a
server that was offline for long gets the introductions of newer roots from its peers. A commit that the log holds and
the open repository lacks, because the log's index was wrong, is added, and the index is removed.

Cost: reading and verifying take 0.6 ms a record. The check runs in the background after the start, in one thread that
pauses four times as long as it works, so 100 000 records take five minutes and a fifth of a core. While requests keep
the server busy, it pauses up to five times as long.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from itertools import islice
from time import process_time
from typing import Final, TypeVar

from goatherd.clock import Clock
from goatherd.cluster.server_answers import LogsReport
from goatherd.errors import (
    DecodeError,
    GoatherdError,
    UnknownSignerError,
    VerificationError,
)
from goatherd.node.commit_checks import is_damaged
from goatherd.node.engine import Engine
from goatherd.node.log_storage import FileLog, LogDirectory
from goatherd.telemetry import Event, event_text
from goatherd.wire.commit import Commit
from goatherd.wire.commit_log import LogLine, read_lines
from goatherd.wire.paths import SESSIONS_PATH, USERS_PATH

_log = logging.getLogger("goatherd.node")

T = TypeVar("T")

BATCH: Final = 64
PART_BYTES: Final = 512 * 1024
REST: Final = 4
"""Pause after a batch, as a multiple of the duration of the batch."""
MOST_RESTS: Final = 5
BUSY: Final = 0.4
"""If the server, with its verifier processes, uses more than this part of a core in a pause, the pause is repeated,
`MOST_RESTS` times in all."""

UNKNOWN_FOR: Final = timedelta(minutes=1)
"""How long after the check a signer must still be unknown to be reported."""
AGAIN: Final = timedelta(seconds=1)
AGAIN_AT_MOST: Final = timedelta(minutes=10)

_FIRST: Final = (SESSIONS_PATH, USERS_PATH)
_ID: Final = re.compile(rb'"id":\s*"([A-Za-z0-9._~-]{1,63})"')


class LineProblem(StrEnum):
    """The kinds of damage that a line in a repository's log file can have."""

    TORN = "torn"
    """The last line is unfinished, as a crash in the middle of a write leaves it."""
    DAMAGED = "damaged"
    """The line is not a JSON object."""
    NOT_A_COMMIT = "not-a-commit"
    """The line is a JSON object, but not a commit that GoatDB could read."""
    UNVERIFIABLE = "unverifiable"
    """The line is a commit with an invalid signature."""
    SET_ASIDE = "set-aside"
    """The line is a valid commit in the log's ``*.damaged`` file, and the log lacks it. Found by `doctor --data`."""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A line of a repository's log that is not a commit.

    `kind` and `reason` describe the damage. `commit_id` is the id that the line seems to contain, or None.
    """

    kind: LineProblem
    reason: str
    commit_id: str | None


def decode_lines(data: bytes, org: str) -> Iterator[tuple[LogLine, Commit | Unreadable]]:
    """Decode the lines of a repository's log; yield each line with its commit, or with its damage.

    Blank lines are skipped. `org` is the id of the organization to which the commits belong.
    """
    for line in read_lines(data):
        raw = data[line.start : line.end]
        if not line.is_finished:
            yield line, Unreadable(LineProblem.TORN, "the last line is unfinished, as after a crash", _guess_id(raw))
        elif line.record is None:
            yield line, Unreadable(LineProblem.DAMAGED, "the line is not a JSON object", _guess_id(raw))
        else:
            try:
                yield line, Commit.from_json(line.record, org=org)
            except DecodeError as error:
                yield line, Unreadable(LineProblem.NOT_A_COMMIT, str(error), _guess_id(raw))


def decode_file(log: FileLog, org: str) -> Iterator[tuple[int, Commit | Unreadable]]:
    """Decode the present contents of a repository's log file part by part, so that a large file needs little memory.

    Yield the offset in bytes of each line, with the commit in it or with its damage. Commits that are appended
    meanwhile need no check, because the server verified them when it received them. An unfinished line may be a write
    in progress; reading ends there.
    """
    position, end = 0, log.read_size()
    while position < end and (part := log.read_part(position, PART_BYTES)):
        for line, outcome in decode_lines(part, org):
            yield position + line.start, outcome
        if not part.endswith(b"\n"):
            break
        position += len(part)


def order_repositories(paths: Sequence[str]) -> list[str]:
    """Return repository paths in the order in which to check their logs: ``/sys/sessions`` first.

    The sessions in it determine which signatures in the other repositories are valid.
    """
    return sorted(paths, key=lambda path: (path not in _FIRST, path))


def _guess_id(raw: bytes) -> str | None:
    found = _ID.search(raw)
    return None if found is None else found[1].decode()


async def pause_after(clock: Clock, worked: float) -> None:
    """Pause after background work that took `worked` seconds, and longer while requests keep the server busy."""
    rest = timedelta(seconds=REST * worked)
    for _ in range(MOST_RESTS):
        before = process_time()
        await clock.sleep(rest)
        if process_time() - before < BUSY * rest.total_seconds():
            break


class DataCheck:
    """Check all logs of one organization for damaged commits, once after the server's start.

    Args:
        engine: The engine with the open repositories and the trusted sessions; the check runs on the engine's event
            loop.
        logs: The organization's log directory.
        workers: Executor that reads, decodes and verifies commits; the check submits one task at a time.
        clock: Supplies the current time.
        withheld: Called with a repository's path after damaged commits were removed from the repository, so that the
            caller can fetch them from the peers.
    """

    def __init__(
        self,
        *,
        engine: Engine,
        logs: LogDirectory,
        workers: Executor,
        clock: Clock,
        withheld: Callable[[str], None],
    ) -> None:
        self._engine = engine
        self._logs = logs
        self._workers = workers
        self._clock = clock
        self._withheld = withheld
        self._is_complete = False
        self._records = 0
        self._damaged = 0
        self._unverifiable = 0
        self._unknown: dict[str, Counter[str]] = {}  # by repository, how many records of each signer
        self._first: dict[str, int] = {}  # by repository, where the first of these records begins
        self._problems: dict[str, str] = {}

    @property
    def status(self) -> LogsReport:
        """What the check of the logs has found so far."""
        return LogsReport(
            is_complete=self._is_complete,
            records=self._records,
            damaged=self._damaged,
            unverifiable=self._unverifiable + sum(map(self._count_unknown, self._unknown)),
        )

    def _count_unknown(self, path: str) -> int:
        """Return the number of records in a repository's log whose signers are unknown at present."""
        knows = self._engine.pool.knows_session
        return sum(count for signer, count in self._unknown.get(path, {}).items() if not knows(signer))

    async def run(self) -> None:
        """Check every log of the organization. A check that fails, as of an unreadable log, is repeated later."""
        left = order_repositories(await asyncio.to_thread(self._logs.repository_paths))
        rest = AGAIN
        while left := [path for path in left if not await self._is_checked(path)]:
            await self._clock.sleep(rest)
            rest = min(2 * rest, AGAIN_AT_MOST)
        self._is_complete = True
        found = self.status
        fields = {"records": found.records, "damaged": found.damaged, "unverifiable": found.unverifiable}
        _log.info("%s", event_text(Event.DATA_CHECKED, **fields))
        if self._first:
            await self._clock.sleep(UNKNOWN_FOR)
        for path, first in self._first.items():
            if self._count_unknown(path):
                self._report_damage(path, damaged=0, wrong=0, first=first)

    def _report_damage(self, path: str, *, damaged: int, wrong: int, first: int) -> None:
        counts = {"damaged": damaged, "wrong_signature": wrong, "unknown_signer": self._count_unknown(path)}
        text = event_text(Event.DATA_DAMAGED, file=self._logs.open_log(path).file, **counts, first_at_byte=first)
        _log.warning("%s: stop the server and run `goatherd doctor --data check %s`", text, self._logs.path)

    async def _is_checked(self, path: str) -> bool:
        """Check one repository's log; return False if the check failed and must be repeated later."""
        before = self._records, self._damaged, self._unverifiable
        try:
            await self._check_log(path)
        except GoatherdError as error:
            if self._problems.get(path) != str(error):  # reported once
                _log.warning("%s", event_text(Event.DATA_DAMAGED, repository=path, error=error))
            self._problems[path] = str(error)
        except Exception:  # noqa: BLE001 - one log must not leave the others unchecked
            _log.exception("cannot check %s; the check is retried later", path)
        else:
            return True
        self._records, self._damaged, self._unverifiable = before
        self._unknown.pop(path, None)
        self._first.pop(path, None)
        return False

    async def _check_log(self, path: str) -> None:
        log = self._logs.open_log(path)
        lines = decode_file(log, self._engine.org)
        first: int | None = None
        damaged, wrong = 0, dict[str, list[Commit]]()
        good: dict[str, Commit] = {}
        while True:
            began = self._clock.monotonic()
            batch = await self._in_thread(lambda: list(islice(lines, BATCH)))
            if not batch:
                break
            commits: list[Commit] = []
            for start, outcome in batch:
                if isinstance(outcome, Commit):
                    commits.append(outcome)
                elif outcome.kind is not LineProblem.TORN:  # which may be a write in progress
                    damaged += 1
                    self._damaged += 1
                    first = start if first is None else first
            verified: list[str] = []
            starts = iter(start for start, outcome in batch if isinstance(outcome, Commit))
            for start, commit, verdict in zip(starts, commits, await self._verify_commits(commits), strict=True):
                self._records += 1
                if verdict is None:
                    if commit.id in wrong:
                        good[commit.id] = commit
                    else:
                        verified.append(commit.id)
                    continue
                if isinstance(verdict, UnknownSignerError) and not is_damaged(commit, verdict):
                    self._unknown.setdefault(path, Counter())[commit.session] += 1
                    self._first.setdefault(path, start)
                    continue
                first = start if first is None else first
                if is_damaged(commit, verdict):
                    wrong.setdefault(commit.id, []).append(commit)
                    self._unverifiable += 1
                else:
                    self._unverifiable += 1
            self._engine.note_verified(path, verified)
            if len(batch) == BATCH:
                await pause_after(self._clock, self._clock.monotonic() - began)
        if wrong and self._engine.withhold_damaged(path, wrong, good):
            self._withheld(path)
        if first is not None:
            self._first.pop(path, None)
            self._report_damage(path, damaged=damaged, wrong=sum(map(len, wrong.values())), first=first)

    async def _verify_commits(self, commits: Sequence[Commit]) -> list[VerificationError | None]:
        pool = self._engine.pool
        verification = pool.prepare_verification(commits, held=True)
        await self._in_thread(verification.run)
        return pool.conclude_verification(verification)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._workers, work)
