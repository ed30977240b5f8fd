"""The audit trail of an identity: a file to which every decision is added, with its evidence.

Only this module writes and reads that file. `records` encodes and verifies the records.

Rules:
1. Records are only ever added. A record is on the disk when `record` returns. A lock ensures that one process at a time
   writes.
2. If the trail cannot be written, no run begins (`record` raises). A rotation in progress continues: the failed records
   are logged and counted, and the next record that can be written states their number.
3. A last line that a crash has cut short is kept as it is. The next record, which is signed, states the length and the
   hash of that line. So an attacker cannot pass off a change of the file as damage from a crash.
4. The file has mode 0600. A file that other users may write, a symbolic link, and a file that is not an audit trail are
   rejected.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from goatherd.audit.events_as_data import EventData, to_json_value
from goatherd.audit.records import (
    MAX_LINE,
    MAX_TORN,
    SIGNER,
    Head,
    Torn,
    can_continue,
    read_record,
    signer_data,
    write_record,
)
from goatherd.clock import Clock, SystemClock
from goatherd.errors import AuditError, DecodeError, SignerError
from goatherd.files import SUPPORTED, System
from goatherd.identity.document import IdentityDocument
from goatherd.identity.session import OwnedSession, Session
from goatherd.rotation.events import Event, RevocationStepped
from goatherd.telemetry import Event as LogEvent
from goatherd.telemetry import event_text

_log = logging.getLogger("goatherd.rotation")

_FLAGS: Final = (
    os.O_RDWR | os.O_APPEND | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
)
_LOCK_PATIENCE: Final = 5.0
_LOCK_PAUSE: Final = 0.01
_OPEN_TRIES: Final = 10
_CHUNK: Final = 1 << 16
_FIRST: Final = b'{"v":1,"seq":1,'


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tail:
    """The end of a file. `by` is the root that signed its last record; `is_whole` means that it ends with a newline."""

    head: Head
    by: str | None
    torn: tuple[Torn, ...]
    is_whole: bool


class AuditTrail:
    """Adds records to one audit trail file. Call `use_identity` before the first `record`.

    Attributes:
        head: The end of the file after this object's last record; None before the first.
        missing: How many records could not be written so far.

    Args:
        path: The file; created if missing, in an existing directory.
        actor: The user or process that acts, human-readable: ``user@host:pid``.
        clock: Tells the time.
        system: Makes the system calls on the file.
    """

    def __init__(self, path: Path, *, actor: str, clock: Clock | None = None, system: System | None = None) -> None:
        self.path = path
        self.head: Head | None = None
        self.missing = 0
        self._actor = actor
        self._clock: Clock = clock or SystemClock()
        self._system = system or System()
        self._signer: OwnedSession | None = None
        self._introduction: Mapping[str, Any] = {}
        self._followed: Session | None = None
        self._last_signer: Session | None = None
        self._lost = 0
        self._is_failing = False

    def use_identity(self, document: IdentityDocument) -> None:
        """Sign audit records from now on with the current root of `document`.

        Call it whenever the document was read again, since its current root may have changed.
        """
        if self._signer is None or self._signer.session != document.current.session:
            self._introduction = signer_data(document)
        self._signer = document.current

    def now_ms(self) -> int:
        """Return the time by the trail's clock, in milliseconds since 1970."""
        return self._clock.now_ms()

    def record(self, event: str, data: Mapping[str, object], *, at_ms: int | None = None) -> None:
        """Add one record to the audit trail, and return when it is on the disk.

        Args:
            event: The name of the event.
            data: Ids, times and texts.
            at_ms: When it happened, in milliseconds since 1970 (default: now).

        Raises:
            AuditError: The record could not be added.
            TypeError: `data` contains a type that has no place in a trail.
        """
        values = to_json_value(data)
        try:
            self._append_records([(event, values)], self.now_ms() if at_ms is None else at_ms)
        except AuditError:
            self._report_gap()
            raise
        except SignerError as error:
            self._report_gap()
            raise AuditError(f"audit trail {self.path}: the root has not signed the record: {error}") from error
        except OSError as error:
            self._report_gap()
            raise AuditError(f"audit trail {self.path} cannot be written: {error.strerror or error}") from error

    def _report_gap(self) -> None:
        self._lost += 1
        self.missing += 1

    def _log_failure(self, reason: str) -> None:
        if not self._is_failing:
            _log.error(event_text(LogEvent.AUDIT_FAILED, reason=reason))
        self._is_failing = True

    def add_if_possible(self, event: str, data: Mapping[str, object], *, at_ms: int | None = None) -> bool:
        """Add one record to the audit trail if possible, else log the failure; return whether it was added.

        The next record that can be added states how many are missing.
        """
        try:
            self.record(event, data, at_ms=at_ms)
        except AuditError as error:
            self._log_failure(str(error))
            return False
        self._is_failing = False
        return True

    def follow_root(self, document: IdentityDocument) -> None:
        """Do as `use_identity`, and record that the current root signs, if the last record is by another root.

        For a process that reads the identity regularly. A signer is verified by the endorsement of an earlier one, and
        the identity keeps only the latest endorsements. So a trail to which nothing is added for several rotations,
        such as that of a controller while another one rotates, could not be verified any more. Never raises. Does
        nothing if the root's key is in an HSM or a KMS, whose signature is a request.

        If the file was renamed after this object's last record, a new one begins, because a missing trail cannot be
        verified. Otherwise nothing is done while there is no file.

        SECURITY: an attacker who can write the store, but has no root's key, must not break the trail. So nothing is
        recorded if no root that has signed the trail introduces the current one
        (tests/unit/schedule/test_controller.py).
        """
        self.use_identity(document)
        session = document.current.session
        begins_anew = session == self._last_signer and self._is_empty()
        if document.current.is_remote or (session == self._followed and not begins_anew):
            return
        try:
            is_other = self.path.exists() and self._last_signer_id() != document.current.id
            if begins_anew or (is_other and can_continue(read_lines(self.path), document)):
                self._append_records([], self.now_ms())
        except (AuditError, SignerError, OSError) as error:
            self._log_failure(str(error))
            return
        self._followed, self._is_failing = session, False

    def _is_empty(self) -> bool:
        """Return whether the file is missing or empty."""
        try:
            return self.path.stat().st_size == 0
        except FileNotFoundError:
            return True
        except OSError:
            return False

    def find_gap(self, document: IdentityDocument) -> str | None:
        """Return why records by the current root of `document` could not be verified after those in the file.

        None if they can be verified, or if the file cannot be read, which the next record reports.
        """
        try:
            if self._is_empty() or self._last_signer_id() in {None, *(root.id for root in document.roots)}:
                return None
            if can_continue(read_lines(self.path), document):
                return None
        except (AuditError, OSError):
            return None
        return (
            f"the records of audit trail {self.path} cannot be verified from now on, because no root that has signed"
            f" it leads to root {document.current.id}"
        )

    def log_head(self) -> None:
        """Log the end of the audit trail: a checkpoint, which later shows whether records at the end were removed."""
        if self.head is not None:
            _log.info(event_text(LogEvent.AUDIT_HEAD, file=self.path, seq=self.head.seq, sha256=self.head.digest))

    # --- the file -----------------------------------------------------------------------------------------------------

    def _last_signer_id(self) -> str | None:
        with self._hold_lock() as descriptor:
            return self._read_tail(descriptor).by

    def _append_records(self, records: Sequence[tuple[str, Mapping[str, Any]]], at_ms: int) -> None:
        """Add records, each an event and its data, after a ``signer`` record if the last record is by another root."""
        signer = self._signer
        if signer is None:
            raise AuditError(
                f"audit trail {self.path}: the identity could not be read yet, so no root can sign the record"
            )
        with self._hold_lock() as descriptor:
            tail = self._read_tail(descriptor)
            out = b"" if tail.is_whole else b"\n"
            head, torn, lost = tail.head, tail.torn, self._lost
            if torn:
                _log.warning(event_text(LogEvent.AUDIT_TORN, file=self.path, after=head.seq))
            introduction = [(SIGNER, self._introduction)] if tail.by != signer.id else []
            if not records and not introduction:
                return
            for name, values in (*introduction, *records):
                try:
                    record = write_record(
                        signer,
                        head,
                        at_ms=at_ms,
                        actor=self._actor,
                        event=name,
                        data=values,
                        lost=lost,
                        torn=torn,
                    )
                except ValueError as error:
                    raise AuditError(f"audit trail {self.path}: {error}") from None
                out += record.line
                head, torn, lost = record.head, (), 0
            self._system.write_all(descriptor, out)
            self._system.sync_file(descriptor)
            self.head, self._lost, self._last_signer = head, 0, signer.session

    @contextmanager
    def _hold_lock(self) -> Iterator[int]:
        if not SUPPORTED:
            raise AuditError("an audit trail needs a POSIX system")
        descriptor = self._open_file()
        try:
            self._lock_file(descriptor)
            yield descriptor
        finally:
            self._system.close_file(descriptor)

    def _open_file(self) -> int:
        """Open the audit trail's file; create it durably if it is missing."""
        for _ in range(_OPEN_TRIES):
            try:
                descriptor = self._system.run_call(os.open, self.path, _FLAGS)
            except FileNotFoundError:
                try:
                    descriptor = self._system.run_call(os.open, self.path, _FLAGS | os.O_CREAT | os.O_EXCL, 0o600)
                except FileExistsError:
                    continue
                parent = self._system.open_base(str(self.path.parent))
                try:
                    self._system.sync_file(parent)
                finally:
                    self._system.close_file(parent)
            except OSError as error:
                if error.errno == errno.ELOOP:
                    raise AuditError(f"audit trail {self.path} is a symbolic link, which is not allowed") from error
                raise
            return descriptor
        raise AuditError(f"another process keeps deleting and creating audit trail {self.path}")

    def _lock_file(self, descriptor: int) -> None:
        until = time.monotonic() + _LOCK_PATIENCE
        while not self._system.try_lock(descriptor):
            if time.monotonic() > until:
                raise AuditError(f"audit trail {self.path} is locked by another process")
            time.sleep(_LOCK_PAUSE)
        status = self._system.file_status(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise AuditError(f"audit trail {self.path} is not a regular file")
        if status.st_mode & 0o022 or status.st_uid not in (self._system.effective_user(), 0):
            raise AuditError(
                f"audit trail {self.path} is writable by other users",
                hint="Only the user that rotates may write the file: change it with `chown` and `chmod 0600`.",
            )

    def _read_tail(self, descriptor: int) -> _Tail:
        size = self._system.file_status(descriptor).st_size
        if size == 0:
            return _Tail(head=Head(), by=None, torn=(), is_whole=True)
        if not _FIRST.startswith(os.pread(descriptor, len(_FIRST), 0).partition(b"\n")[0]):
            raise AuditError(f"{self.path} is not an audit trail", hint="Name another file, or move this file away.")
        torn: list[Torn] = []
        is_whole = os.pread(descriptor, 1, size - 1) == b"\n"
        for line in _lines_backwards(descriptor, size):
            try:
                # If only the newline is missing, writing it completes the line.
                record = read_record(line if line.endswith(b"\n") else line + b"\n")
            except DecodeError:
                torn.insert(0, Torn.from_line(line))
                if len(torn) > MAX_TORN:
                    break
            else:
                return _Tail(head=record.head, by=record.by, torn=tuple(torn), is_whole=is_whole)
        else:
            if sum(line.size for line in torn) + len(torn) >= size:
                return _Tail(head=Head(), by=None, torn=tuple(torn), is_whole=is_whole)
        raise AuditError(
            f"the last line of audit trail {self.path} is not a complete record",
            hint="`goatherd audit verify` names the first broken line. Keep this file, and name another one.",
        )


def _lines_backwards(descriptor: int, size: int) -> Iterator[bytes]:
    """Yield the lines of a file from the last to the first, each with its newline; the last may have none."""
    left, start = b"", size
    while start > 0:
        before = start
        start = max(0, start - _CHUNK)
        left = os.pread(descriptor, before - start, start) + left
        while (cut := left.rfind(b"\n", 0, len(left) - 1)) >= 0:
            yield left[cut + 1 :]
            left = left[: cut + 1]
        if len(left) > 2 * MAX_LINE:
            break
    yield left


class Journal:
    """Records the events of runs: in the log, and in an audit trail if there is one.

    Give `record_event` to a `goatherd.Rotator` as its `on_event`.

    Args:
        trail: The audit trail, or None.
        holds: Whether to hold records in memory until `use_identity` names the root that signs them. This is for a run
            that revokes the current root, whose signatures in the trail are not accepted after its revocation.

    Attributes:
        on_step: Called after each step of a revocation. It should call `mark_position`, read the identity, and call
            `use_identity` with that mark as `up_to`.
    """

    def __init__(self, trail: AuditTrail | None = None, *, holds: bool = False) -> None:
        self.trail = trail
        self.on_step: Callable[[], None] | None = None
        self._holds = holds
        self._held: list[tuple[int, str, Mapping[str, object]]] = []
        self._given = 0
        self._evidence = EventData()

    def mark_position(self) -> int:
        """Return how many events were reported to the journal so far, as a mark for `use_identity`."""
        return self._given + len(self._held)

    def use_identity(self, document: IdentityDocument, *, up_to: int | None = None) -> None:
        """Sign the trail from now on with the current root of `document`, and add the records that were held back.

        Args:
            document: The identity.
            up_to: A mark from before the identity was read (`mark_position`): records after it are held until the next
                call. None to add all.
        """
        if self.trail is not None:
            self.trail.use_identity(document)
        self._release_events(self.mark_position() if up_to is None else up_to)

    def follow_root(self, document: IdentityDocument) -> None:
        """Do as `use_identity`, and record that the current root of `document` signs (`AuditTrail.follow_root`)."""
        self.use_identity(document)
        if self.trail is not None:
            self.trail.follow_root(document)

    def begin(self, event: str, data: Mapping[str, object]) -> None:
        """Record that an operation is about to begin.

        Raises:
            AuditError: The trail cannot be written, so the operation must not begin.
        """
        self._log_record(event, data)
        if self.trail is not None:
            self.trail.record(event, data)

    def record_event(self, event: Event) -> None:
        """Record one event. Never raises, even if the file cannot be written."""
        found = self._evidence.convert_event(event)
        if found is None:
            return
        self.record_decision(*found)
        if isinstance(event, RevocationStepped) and self.on_step is not None:
            self.on_step()

    def record_decision(self, event: str, data: Mapping[str, object]) -> None:
        """Record a decision that is not an event of a rotation."""
        self._log_record(event, data)
        if self.trail is not None:
            self._held.append((self.trail.now_ms(), event, data))
            if not self._holds:
                self._release_events(self.mark_position())

    def end(self, event: str, data: Mapping[str, object]) -> None:
        """Record how the operation ended, and log the end of the trail as a checkpoint."""
        self.record_decision(event, data)
        self._release_events(self.mark_position())
        if self.trail is not None:
            self.trail.log_head()

    def _release_events(self, up_to: int) -> None:
        while self._held and self._given < up_to:
            at_ms, event, data = self._held.pop(0)
            self._given += 1
            if self.trail is not None:
                self.trail.add_if_possible(event, data, at_ms=at_ms)

    def _log_record(self, event: str, data: Mapping[str, object]) -> None:
        if _log.isEnabledFor(logging.INFO):
            evidence = json.dumps(to_json_value(data), ensure_ascii=False, separators=(",", ":"))
            _log.info(event_text(LogEvent.ROTATION_EVIDENCE, what=event, evidence=evidence))


def is_trail(path: Path) -> bool:
    """Return whether a file begins like an audit trail. The rest of the file is not checked.

    Raises:
        AuditError: The file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(len(_FIRST)) == _FIRST
    except OSError as error:
        raise AuditError(f"audit trail {path} cannot be read: {error.strerror or error}") from error


def read_lines(path: Path) -> Iterator[bytes]:
    """Yield the lines of a trail, each with its newline. Lines that are added after the call began are left out.

    Raises:
        AuditError: The file cannot be read.
    """
    try:
        left = _settled_size(path)
        with path.open("rb") as file:
            while left > 0 and (line := file.readline(min(left, 2 * MAX_LINE))):
                left -= len(line)
                yield line
    except OSError as error:
        raise AuditError(f"audit trail {path} cannot be read: {error.strerror or error}") from error


def _settled_size(path: Path) -> int:
    """Return a file's size while no process is writing a record, or after waiting 5 seconds for that."""
    system = System()
    if not path.is_file() and path.exists():
        raise OSError(errno.EINVAL, "it is no regular file")  # to open a pipe would not end
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    try:
        until = time.monotonic() + _LOCK_PATIENCE
        while not system.try_lock(descriptor) and time.monotonic() < until:
            time.sleep(_LOCK_PAUSE)
        return system.file_status(descriptor).st_size
    finally:
        system.close_file(descriptor)
