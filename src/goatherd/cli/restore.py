"""`goatherd restore`: make a previous root the current root again, after a finished rotation."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import click

from goatherd.cli.main import App, command
from goatherd.cli.process import give_way, run_interruptible
from goatherd.cli.rotate import rotate
from goatherd.cli.rotation_run import HOW_TO_RESUME, run_rotation
from goatherd.operations.restore import restore as operation
from goatherd.rotation.machine import Phase

_SHARED: Final = frozenset(
    {
        "to_phase",
        "rotation_adoption",
        "rotation_quorum",
        "rotation_unlisted",
        "rotation_bare",
        "rotation_distrust",
        "rotation_health_url",
        "rotation_health_command",
        "metrics_file",
        "audit_log",
        "unsafe_without_nodes",
    }
)


def _options_of_rotate(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add to `goatherd restore` the options of `goatherd rotate` that mean the same there."""
    own = getattr(function, "__click_params__", [])
    function.__click_params__ = [  # type: ignore[attr-defined]
        *reversed([option for option in rotate.params if option.name in _SHARED]),
        *own,
    ]
    return function


@command(
    example="goatherd restore --provider file:///srv/keys/root --node http://10.0.0.1:8080 --node http://10.0.0.2:8080",
    nodes=True,
)
@_options_of_rotate
@click.argument("root", required=False)
def restore(
    app: App, root: str | None, to_phase: str | None, metrics_file: Path | None, unsafe_without_nodes: bool
) -> int:
    """Make a previous root the current root again.

    Use this command after a finished rotation; the cluster keeps serving. ROOT is the id of a previous root (default:
    the last root before the current one). The command reads that root's private key from the stored version that holds
    it, which is possible until `goatherd retire` has destroyed the key. The root that is replaced stays trusted, and
    the store keeps its private key for the grace period.

    A restore has the steps and checks of a rotation, and --resume, --cancel and --rollback of `goatherd rotate` apply.

    If a rotation is still in progress, use `goatherd rotate --rollback` instead. If the key of a root is exposed, use
    `goatherd revoke`.
    """
    if app.options.rotation_health_command is None:
        give_way(app)
    stop_at = Phase(to_phase) if to_phase else None
    work = partial(operation, root_id=root, to_phase=stop_at, unsafe_without_nodes=unsafe_without_nodes)
    return run_interruptible(app, run_rotation(app, work, metrics_file), note=HOW_TO_RESUME)
