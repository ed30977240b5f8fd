"""The options ``--audit-log`` and ``--distrust``, which several commands have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from goatherd.cli.main import App, PathType
from goatherd.operations.runs import AuditLog

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def audit_option() -> Decorator:
    """Return the option ``--audit-log``."""
    return click.option(
        "--audit-log",
        "audit_log",
        type=PathType(path_type=Path, dir_okay=False),
        help="File to which the command appends every decision with its evidence: an audit trail, chained and signed.",
    )


def audit_log(app: App) -> AuditLog | None:
    """Return the audit trail that ``--audit-log`` names; None if the option is not given."""

    def warn(path: Path, count: int) -> None:
        text = f"the audit trail {path} lacks {count} records that could not be written"
        app.out.event("audit", {"missing": count, "file": str(path)}, text)

    return None if app.options.audit_log is None else AuditLog(app.options.audit_log, warn)


def distrust_option() -> Decorator:
    """Return the option ``--distrust``, for commands that compare the store with what servers report."""
    return click.option(
        "--distrust",
        "rotation_distrust",
        multiple=True,
        metavar="URL",
        help="URL of a server whose report about the store's history is ignored. Can be given more than once.",
    )
