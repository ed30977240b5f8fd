"""Record one run of an operation in the audit trail: its beginning, its decisions and its end.

What it is not: the trail itself (`goatherd.audit.trail`). Rules: a trail that cannot be written stops the operation
before it has done anything; the number of records that could not be written later is reported at the end.
"""

from __future__ import annotations

import asyncio
import getpass
import os
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from goatherd.errors import GoatherdError
from goatherd.operations.identity_store import Store

if TYPE_CHECKING:
    from goatherd.audit.trail import Journal


def current_actor() -> str:
    """Return the user, host and process that run this, such as ``ops@host1:4711``."""
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
    *,
    path: Path | None,
    on_missing: Callable[[Path, int], None],
) -> AsyncIterator[Journal]:
    """Record what happens inside as one run.

    Args:
        store: The open store.
        command: The name of the operation, such as ``rotate``.
        asked: Its arguments; plain values.
        path: The file of the audit trail; None to write only the log.
        on_missing: Called at the end with the number of records that could not be written, if there are any.

    Raises:
        AuditError: The trail cannot be written. Nothing was begun.
        ProviderError, IdentityError: The identity, whose root signs the trail, cannot be read.
    """
    # Here, since the package of the rotation is more than a listing of versions needs.
    from goatherd.audit.trail import AuditTrail, Journal

    revokes = command == "revoke"
    # What a revoked or an expired root signs counts for nothing.
    holds = revokes or asked.get("what") == "replace-expired"
    journal = Journal(None if path is None else AuditTrail(path, actor=current_actor()), holds=holds)
    if path is not None:
        _, document = await store.read()
        journal.use(document)
    renewals: set[asyncio.Task[None]] = set()
    if revokes:
        journal.on_step = lambda: renewals.add(asyncio.create_task(_renew(journal, store)))
    journal.begin("run-began", {"command": command, "store": store.name, "org": store.org, **asked})
    try:
        yield journal
    except GoatherdError as error:
        await _renew(journal, store)
        journal.end("run-failed", {"command": command, "code": error.code, "reason": str(error)})
        raise
    except BaseException as error:
        cut_off = isinstance(error, asyncio.CancelledError | KeyboardInterrupt)
        journal.end("run-interrupted" if cut_off else "run-failed", {"command": command, "code": type(error).__name__})
        raise
    else:
        await _renew(journal, store)
        journal.end("run-over", {"command": command})
    finally:
        for renewal in renewals:
            renewal.cancel()
        if journal.trail is not None and journal.trail.missing:
            on_missing(journal.trail.path, journal.trail.missing)


async def _renew(journal: Journal, store: Store) -> None:
    """Let the root that signs now seal what the one before it has signed."""
    if journal.trail is not None:
        with suppress(GoatherdError):
            mark = journal.mark()
            _, document = await store.read()
            journal.use(document, up_to=mark)
