"""The option ``--audit-log``, and the run of a command that it records."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from goatherd.cli.main import App, PathType
from goatherd.operations.identity_store import Store
from goatherd.operations.runs import record_run

if TYPE_CHECKING:
    from goatherd.audit.trail import Journal

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def audit_option() -> Decorator:
    """Return the option ``--audit-log``."""
    return click.option(
        "--audit-log",
        "audit_log",
        type=PathType(path_type=Path, dir_okay=False),
        help="File to append an audit trail to: every decision with its evidence, chained and signed.",
    )


def audited(app: App, store: Store, command: str, asked: Mapping[str, object]) -> AbstractAsyncContextManager[Journal]:
    """Record what happens inside as one run of `command`; see `goatherd.operations.runs`."""

    def warn(path: Path, count: int) -> None:
        text = f"the audit trail {path} lacks {count} records that could not be written"
        app.out.event("audit", {"missing": count, "file": str(path)}, text)

    return record_run(store, command, asked, path=app.options.audit_log, on_missing=warn)
