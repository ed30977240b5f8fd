"""``--audit-log``: the frame that keeps the evidence of one command in the audit trail.

What it is not: the trail itself (`goatherd.rotation.audit`). Rules: a trail that cannot be written stops the command
before it has done anything; what cannot be written later is said at the end, and by the next record that can be.
"""

from __future__ import annotations

import asyncio
import getpass
import os
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from goatherd.cli.main import App, PathType
from goatherd.cli.store import Store
from goatherd.errors import GoatherdError

if TYPE_CHECKING:
    from goatherd.rotation.audit import Journal

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def audit_option() -> Decorator:
    """Return the option ``--audit-log``."""
    return click.option(
        "--audit-log",
        "audit_log",
        type=PathType(path_type=Path, dir_okay=False),
        help="Add every decision with its evidence to this file, chained and signed.",
    )


def who() -> str:
    """Return who runs this, for people."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}:{os.getpid()}"


@asynccontextmanager
async def audited(app: App, store: Store, command: str, asked: Mapping[str, object]) -> AsyncIterator[Journal]:
    """Keep what happens inside as one run: its beginning, what its journal is told, and how it ended.

    Args:
        app: Its options name the file; without one only the log is written.
        store: The open store.
        command: The command's name.
        asked: What it was asked for; plain values.

    Raises:
        AuditError: The trail cannot be written. Nothing was begun.
        ProviderError, IdentityError: The identity, whose root signs the trail, cannot be read.
    """
    # Here, since the package of the rotation is more than a listing of versions needs.
    from goatherd.rotation.audit import AuditTrail, Journal

    path = app.options.audit_log
    revokes = command == "revoke"
    # What a revoked or an expired root signs counts for nothing.
    holds = revokes or asked.get("what") == "replace-expired"
    journal = Journal(None if path is None else AuditTrail(path, actor=who()), holds=holds)
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
            count = journal.trail.missing
            text = f"the audit trail {journal.trail.path} lacks {count} records that could not be written"
            app.out.event("audit", {"missing": count, "file": str(journal.trail.path)}, text)


async def _renew(journal: Journal, store: Store) -> None:
    """Let the root that signs now seal what the one before it has signed."""
    if journal.trail is not None:
        with suppress(GoatherdError):
            mark = journal.mark()
            _, document = await store.read()
            journal.use(document, up_to=mark)
