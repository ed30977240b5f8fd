"""Write the status of a cluster as one file: a page that needs no other file, for a ticket or a report."""

from __future__ import annotations

from pathlib import Path

from goatherd.audit.records import Anchors
from goatherd.files import replace_file
from goatherd.operations.status import ClusterStatus
from goatherd.providers.base import Guarantees
from goatherd.schedule.due import Schedule
from goatherd.web.collector import decide_next_rotation, read_trail_view
from goatherd.web.render import Renderer, view_data
from goatherd.web.view import make_view


def write_status_file(
    path: Path,
    status: ClusterStatus,
    *,
    org: str,
    guarantees: Guarantees,
    schedule: Schedule,
    audit_log: Path | None,
) -> None:
    """Write the status of a cluster as an HTML page; an existing file is replaced.

    Args:
        path: The file.
        status: The state of the store, the identity and the servers.
        org: The organization.
        guarantees: What the store promises.
        schedule: When the controller rotates.
        audit_log: File of the audit trail; None if there is none.

    Raises:
        MissingExtraError: ``jinja2`` is not installed.
        OSError: The file cannot be written.
    """
    renderer = Renderer()
    anchors = Anchors.from_document(status.document)
    view = make_view(
        status,
        org=org,
        guarantees=guarantees,
        schedule=schedule,
        decision=decide_next_rotation(status, schedule),
        trail=None if audit_log is None else read_trail_view(audit_log, anchors, status.at_ms),
    )
    replace_file(path, renderer.render_file(view_data(view)).encode())
