"""Write a view as one file: a page that needs no other file, for a ticket or a report."""

from __future__ import annotations

from pathlib import Path

from goatherd.files import replace_file
from goatherd.web.render import Renderer, view_data
from goatherd.web.view import View


def write_status_file(path: Path, view: View) -> None:
    """Write a view as an HTML page; an existing file is replaced.

    Raises:
        MissingExtraError: ``jinja2`` is not installed.
        OSError: The file cannot be written.
    """
    replace_file(path, Renderer().render_file(view_data(view)).encode())
