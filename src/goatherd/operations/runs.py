"""What the runs of all operations share: they report events, write the audit trail, and write a metrics file.

If the audit trail cannot be written, the operation stops before it has done anything. If records cannot be written
later, the operation continues and reports their number at the end.

The metrics file, for node_exporter's textfile collector, is also written after a run that failed. A file that cannot be
written is reported, but does not change the result of the run. `goatherd.metrics` defines the metrics.
"""

from __future__ import annotations

import asyncio
import getpass
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypedDict

from goatherd.clock import Clock, SystemClock
from goatherd.errors import ConfigurationError, GoatherdError
from goatherd.files import check_path
from goatherd.operations.identity_store import Store

if TYPE_CHECKING:
    from goatherd.audit.trail import Journal
    from goatherd.operations.rotation_metrics import RotationMetrics
    from goatherd.rotation.events import Event

_log = logging.getLogger("goatherd.rotation")

SUFFIX: Final = ".prom"
"""How the name of a metrics file must end; node_exporter ignores other files."""

EventListener = Callable[["Event"], None]
"""A function that is called with each event of a run as it happens. It must not block; what it raises is logged."""


def notify_each(*listeners: EventListener | None) -> EventListener:
    """Return a listener that hands each event to all of `listeners`.

    An exception of one of them is logged: it must not leave a rotation half-way.
    """

    def listener(event: Event) -> None:
        for one in listeners:
            try:
                if one is not None:
                    one(event)
            except Exception:  # noqa: BLE001 - a program's own listener can raise anything
                _log.exception("a listener failed with the event %s", type(event).__name__)

    return listener


@dataclass(frozen=True, slots=True)
class AuditLog:
    """The file that an operation appends its audit trail to.

    Attributes:
        path: The file.
        on_missing: Called at the end with the file and the number of records that could not be written, if there are
            any.
        on_head: Called at the end with the file and its head (the number and the digest of the last record), as
            ``goatherd audit verify --checkpoint`` takes it.
    """

    path: Path
    on_missing: Callable[[Path, int], None] = lambda _path, _count: None
    on_head: Callable[[Path, str], None] = lambda _path, _head: None


AuditLogName = AuditLog | str | PathLike[str]
"""The ways to give an operation the file of its audit trail."""


class RunOptions(TypedDict, total=False):
    """Options of every operation that changes an identity.

    Attributes:
        audit_log: The file that the audit trail is appended to.
        on_event: Called with each event as it happens. It must not block; what it raises is logged.
        clock: Tells the time and waits.
    """

    audit_log: AuditLogName | None
    on_event: EventListener | None
    clock: Clock | None


def current_actor() -> str:
    """Return the user, host and process of this program, such as ``ops@host1:4711``."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}:{os.getpid()}"


@asynccontextmanager
async def record_run(
    store: Store,
    command: str,
    asked: Mapping[str, object],
    audit_log: AuditLogName | None,
) -> AsyncIterator[Journal]:
    """Record the body of the ``async with`` statement as one run of an operation.

    Args:
        store: The open store.
        command: The name of the operation, such as ``rotate``.
        asked: The arguments of the operation; plain values.
        audit_log: The file of the audit trail; None to write only the log.

    Raises:
        ConfigurationError: `audit_log` is no path.
        AuditError: The trail cannot be written. The operation was not begun.
        ProviderError, IdentityError: The identity, whose root signs the trail, cannot be read.
    """
    # Imported here, since a list of versions needs no audit trail.
    from goatherd.audit.trail import AuditTrail, Journal
    from goatherd.stores.writer import ReplicatedStore

    if audit_log is not None and not isinstance(audit_log, AuditLog):
        check_path(audit_log, "audit_log", hint="Write a path such as /var/log/goatherd/audit.jsonl.")
        audit_log = AuditLog(Path(audit_log))
    revokes = command == "revoke"
    # The signature of a revoked or an expired root is not valid.
    holds = revokes or asked.get("what") == "replace-expired"
    journal = Journal(None if audit_log is None else AuditTrail(audit_log.path, actor=current_actor()), holds=holds)
    if audit_log is not None:
        _, document = await store.read()
        journal.use_identity(document)
    renewals: set[asyncio.Task[None]] = set()
    if revokes:
        journal.on_step = lambda: renewals.add(asyncio.create_task(_use_current_root(journal, store)))
    if isinstance(store.provider, ReplicatedStore) and store.provider.allowed:
        asked = {**asked, "allowLagging": sorted(store.provider.allowed)}
    journal.begin("run-began", {"command": command, "store": store.name, "org": store.org, **asked})
    try:
        yield journal
    except GoatherdError as error:
        await _use_current_root(journal, store)
        journal.end("run-failed", {"command": command, "code": error.code, "reason": str(error)})
        raise
    except BaseException as error:
        is_interrupted = isinstance(error, asyncio.CancelledError | KeyboardInterrupt)
        journal.end(
            "run-interrupted" if is_interrupted else "run-failed", {"command": command, "code": type(error).__name__}
        )
        raise
    else:
        await _use_current_root(journal, store)
        journal.end("run-over", {"command": command})
    finally:
        for renewal in renewals:
            renewal.cancel()
        if audit_log is not None and journal.trail is not None:
            if journal.trail.missing:
                audit_log.on_missing(audit_log.path, journal.trail.missing)
            if journal.trail.head is not None:
                audit_log.on_head(audit_log.path, str(journal.trail.head))


async def _use_current_root(journal: Journal, store: Store) -> None:
    """Read the identity again, sign the trail with its current root, and write the records that were held back."""
    if journal.trail is not None:
        with suppress(GoatherdError):
            mark = journal.mark_position()
            _, document = await store.read()
            journal.use_identity(document, up_to=mark)


@contextmanager
def write_metrics_file(path: Path | None, store: str, on_failure: Callable[[str], None]) -> Iterator[RotationMetrics]:
    """Count the body of the ``with`` statement as one run of a rotation, and write the metrics to `path` at its end.

    Args:
        path: The file; None to write none.
        store: The name of the store, which becomes a metric label.
        on_failure: Called with a line of text if the file cannot be written.

    Raises:
        ConfigurationError: node_exporter would not read a file of this name.
        MissingExtraError: The library that writes metrics is not installed.
    """
    from goatherd.metrics import require_library, write_file
    from goatherd.operations.rotation_metrics import RotationMetrics

    seen = RotationMetrics()
    if path is None:
        yield seen
        return
    if path.suffix != SUFFIX:
        raise ConfigurationError(
            f"{path} does not end in {SUFFIX}: node_exporter would not read it",
            hint=f"Name the file {path.stem}{SUFFIX}.",
        )
    require_library()
    try:
        with seen.count_run(SystemClock()):
            yield seen
    finally:
        try:
            write_file(path, seen.all_samples(), store=store)
        except OSError as error:
            on_failure(f"the metrics file {path} was not written: {error.strerror or error}")


@asynccontextmanager
async def read_identity_at_end(store: Store, seen: RotationMetrics) -> AsyncIterator[None]:
    """Read the identity once more at the end, for the metrics. A store that does not answer does not fail the run."""
    try:
        yield
    finally:
        with suppress(GoatherdError):
            _, seen.document = await store.read()
