"""Read the sessions in a GoatDB server's own ``/sys/sessions`` log again and again while the server runs.

The agent lists these sessions in the server's ``trustedSessions`` setting. The module never writes to the log. Rules: a
session is reported only when a root that the identity trusts has signed it. Each record is read and verified once,
while the server runs, so that a restart is not delayed. Verification runs in threads.

Sessions in records after a damaged line are reported, too: GoatDB cuts the log off at that line at its next start, and
then knows these sessions only from ``trustedSessions``.

COMPAT: GoatDB's start takes time that grows with the square of the number of sessions that are in the log but not in
``trustedSessions``.

COMPAT: GoatDB trusts every session in its log without verifying it. So `SessionLogContents.unvouched` lists the
sessions that no trusted root has signed.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final

from goatherd.errors import SettingsError, VerificationError
from goatherd.identity.document import IdentityDocument
from goatherd.identity.session import Session
from goatherd.trust import TrustPool
from goatherd.verifiers import verification_threads
from goatherd.wire.commit import Commit, decode_commits
from goatherd.wire.commit_log import Scan, read_lines, scan_log

_TAIL: Final = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionLogContents:
    """The sessions in a log, and the problems found in it.

    Attributes:
        sessions: Sessions that a trusted root has introduced: those of users, and roots that were removed from the
            identity.
        unvouched: Ids in the log that no trusted root has introduced; the server trusts these sessions anyway.
        unvouched_roots: The ids among `unvouched` that claim to be roots, each with the id of the session that its
            commit names as the author. That is a claim, too.
        revoked_roots: Ids of revoked roots in the log. The server trusts them, too, after a start.
        damage: Description of a damaged line, if any; at its next start the server cuts the log off there.
    """

    sessions: tuple[Session, ...] = field(repr=False)
    unvouched: tuple[str, ...] = ()
    unvouched_roots: tuple[tuple[str, str], ...] = ()
    revoked_roots: tuple[str, ...] = ()
    damage: str | None = None


class SessionLogReader:
    """Reads one organization's log repeatedly; each record is verified only once.

    Args:
        path: The log.
        org: The organization's id; signatures of commits cover it.
    """

    def __init__(self, path: Path, org: str) -> None:
        self._path = path
        self._org = org
        self._pool: TrustPool | None = None
        self._offered: set[str] = set()
        self._read_to = 0
        self._inode = 0
        self._tail = b""
        self._keys: dict[str, str | None] = {}
        self._reading = asyncio.Lock()

    async def read_sessions(self, document: IdentityDocument) -> SessionLogContents:
        """Return the sessions that the log holds now, judged by the roots of `document`.

        Raises:
            SettingsError: The log exists and cannot be read.
        """
        async with self._reading:
            found, fresh = await asyncio.to_thread(self._read_new_commits)
            if self._pool is None:
                self._pool = TrustPool.from_identity(document, org=self._org)
            else:
                self._pool.adopt_document(document)
            self._offered |= {commit.id for commit in fresh}
            for commit in fresh:
                self._keys[commit.key] = self._keys.get(commit.key) or (
                    commit.session if _claims_root(commit) else None
                )
            self._pool.offer_session_commits(fresh)
            verification = self._pool.prepare_pending()
            with verification_threads("goatherd-sessions") as executor:
                await asyncio.to_thread(verification.run, executor)
            self._pool.conclude_verification(verification)
            return self._judge_sessions(self._pool, found, document)

    def _read_new_commits(self) -> tuple[Scan, list[Commit]]:
        try:
            # A pipe in place of the log must not make the open wait.
            descriptor = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            with os.fdopen(descriptor, "rb") as file:
                status = os.fstat(file.fileno())
                if status.st_ino != self._inode or not self._continues(file):
                    # The log was replaced or cut off, so it is read from the start. Known commits are skipped by id.
                    self._inode, self._read_to, self._tail = status.st_ino, 0, b""
                file.seek(self._read_to)
                data = file.read()
                found = scan_log(data)
                self._read_to += found.good_end
                self._tail = (self._tail + data[max(0, found.good_end - _TAIL) : found.good_end])[-_TAIL:]
        except FileNotFoundError:
            return scan_log(b""), []
        except OSError as error:
            raise SettingsError(f"cannot read {self._path}: {error.strerror}") from error
        behind = [line.record for line in read_lines(data[found.good_end :]) if line.record is not None]
        records = [record for record in (*found.records, *behind) if isinstance(record, dict)]
        new = [record for record in records if _id_of(record) not in self._offered]
        return found, decode_commits(new, self._org)

    def _continues(self, file: BinaryIO) -> bool:
        """Return whether the last part of the log that was read is unchanged, so that reading can continue after it.

        COMPAT: GoatDB may cut good records off and append others, so that the log has the same length as before
        (docs/reference/goatdb-formats.md#defects).
        """
        file.seek(self._read_to - len(self._tail))
        return file.read(len(self._tail)) == self._tail

    def _judge_sessions(self, pool: TrustPool, found: Scan, document: IdentityDocument) -> SessionLogContents:
        listed = frozenset(root.id for root in document.roots)
        sessions, unvouched, revoked = [], [], []
        for key in self._keys:
            if key in document.revoked_ids:
                revoked.append(key)
                continue
            try:
                session = pool.get_session(key)
            except VerificationError:
                unvouched.append(key)
                continue
            # COMPAT: a GoatDB server accepts what a previous root has signed only if that root is among the server's
            # sessions. The identity's own roots are in another list (tests/unit/agent/test_session_log.py).
            if not session.is_root or key not in listed:
                sessions.append(session)
        damage = None
        if found.records_after_damage:
            damage = f"a line is not JSON, and {found.records_after_damage} good records follow it"
        return SessionLogContents(
            sessions=tuple(sessions),
            unvouched=tuple(unvouched),
            unvouched_roots=tuple((key, author) for key in unvouched if (author := self._keys[key]) is not None),
            revoked_roots=tuple(revoked),
            damage=damage,
        )


def _id_of(record: dict[str, Any]) -> str | None:
    found = record.get("id")
    return found if isinstance(found, str) else None


def _claims_root(commit: Commit) -> bool:
    # COMPAT: GoatDB loads each item of the log as a session, whatever its schema is.
    return isinstance(commit.data, dict) and commit.data.get("owner") == "root"
