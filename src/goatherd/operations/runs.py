"""What the runs of all operations share: the servers that they wait for, and their record in the audit trail.

If the audit trail cannot be written, the operation stops before it has done anything. If records cannot be written
later, the operation continues and reports their number at the end.
"""

from __future__ import annotations

import asyncio
import getpass
import os
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from goatherd.errors import ConfigurationError, GoatherdError
from goatherd.operations.identity_store import Store

if TYPE_CHECKING:
    from goatherd.audit.trail import Journal
    from goatherd.rotation.events import Event

EventListener = Callable[["Event"], None]
"""A function that is called with each event of a run as it happens. It must not block and must not raise."""

LIST_SERVERS: Final = (
    "Give --node URL for each server, set GOATHERD_NODES, or write `nodes = [...]` into goatherd.toml. From Python: "
    'nodes=["http://…"].'
)


def check_servers_listed(servers: object, consequence: str, *, unsafe_without_nodes: bool, hint: str) -> None:
    """Check that an operation that waits for servers has servers to wait for.

    Args:
        servers: The listed servers, or a function that discovers them.
        consequence: What the operation could not do without servers, such as ``the rotation could not wait``.
        unsafe_without_nodes: Whether the operator has asked for the operation without servers.
        hint: How to list servers.

    Raises:
        ConfigurationError: No server is listed.
    """
    # SECURITY: with no server listed, the next root would sign before servers trust it
    # (tests/unit/operations/test_rotate.py).
    if not callable(servers) and not servers and not unsafe_without_nodes:
        raise ConfigurationError(f"no server is listed, so {consequence}", hint=hint)


def notify_each(*listeners: EventListener | None) -> EventListener:
    """Return a listener that hands each event to all of `listeners`."""

    def listener(event: Event) -> None:
        for one in listeners:
            if one is not None:
                one(event)

    return listener


@dataclass(frozen=True, slots=True)
class AuditLog:
    """The file that an operation appends its audit trail to.

    Attributes:
        path: The file.
        on_missing: Called at the end with the file and the number of records that could not be written, if there are
            any.
    """

    path: Path
    on_missing: Callable[[Path, int], None] = lambda _path, _count: None


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
    audit_log: AuditLog | None,
) -> AsyncIterator[Journal]:
    """Record the body of the ``async with`` statement as one run of an operation.

    Args:
        store: The open store.
        command: The name of the operation, such as ``rotate``.
        asked: The arguments of the operation; plain values.
        audit_log: The file of the audit trail; None to write only the log.

    Raises:
        AuditError: The trail cannot be written. The operation was not begun.
        ProviderError, IdentityError: The identity, whose root signs the trail, cannot be read.
    """
    # Imported here, since a list of versions needs no audit trail.
    from goatherd.audit.trail import AuditTrail, Journal

    revokes = command == "revoke"
    # The signature of a revoked or an expired root is not valid.
    holds = revokes or asked.get("what") == "replace-expired"
    journal = Journal(None if audit_log is None else AuditTrail(audit_log.path, actor=current_actor()), holds=holds)
    if audit_log is not None:
        _, document = await store.read()
        journal.use(document)
    renewals: set[asyncio.Task[None]] = set()
    if revokes:
        journal.on_step = lambda: renewals.add(asyncio.create_task(_use_current_root(journal, store)))
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
        if audit_log is not None and journal.trail is not None and journal.trail.missing:
            audit_log.on_missing(audit_log.path, journal.trail.missing)


async def _use_current_root(journal: Journal, store: Store) -> None:
    """Sign the trail with the current root, which may have changed, and write the records that were held back."""
    if journal.trail is not None:
        with suppress(GoatherdError):
            mark = journal.mark()
            _, document = await store.read()
            journal.use(document, up_to=mark)
