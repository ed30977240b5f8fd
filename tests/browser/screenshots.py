"""Take the pictures of the page for the docs, from the scenes of the tests: ``make screenshots``.

A record beside them holds the digest of what each one shows, so that a test finds the stale ones
(tests/unit/web/test_screenshots.py).
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from goatherd.web.render import Renderer, view_data
from tests.fakes.chromium import WHY_SKIPPED, find_chromium
from tests.fakes.page_scenes import scenes, view_of

PICTURES: Final = Path(__file__).parents[2] / "docs/pictures"
RECORD: Final = PICTURES / "shown.txt"
TAKEN: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "page-rotation-light": ("activated", {"color_scheme": "light", "viewport": {"width": 1280, "height": 900}}),
    "page-rotation-dark": ("activated", {"color_scheme": "dark", "viewport": {"width": 1280, "height": 900}}),
    "page-steady-narrow": ("steady", {"color_scheme": "light", "viewport": {"width": 360, "height": 740}}),
}
"""For each picture, the scene and the options of the browser's context."""


def render(scene: str) -> str:
    """Return a scene as the page in one file, with times relative to the scene's own time."""
    return Renderer().render_file(view_data(view_of(scenes()[scene], interval_ms=None)))


def digests() -> str:
    """Return a line for each picture: its name, and the digest of the page that it shows, without fingerprints."""
    pages = {scene: re.sub(r"<code>[0-9a-f]{16}</code>", "", render(scene)) for scene, _ in TAKEN.values()}
    lines = [f"{name} {hashlib.sha256(pages[scene].encode()).hexdigest()}" for name, (scene, _) in TAKEN.items()]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Take every picture; return the exit code."""
    from playwright.sync_api import sync_playwright

    program = find_chromium()
    if program is None:
        print(WHY_SKIPPED, file=sys.stderr)
        return 1
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as directory, sync_playwright() as playwright:
        arguments = ["--no-sandbox"] if os.getuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=program, args=arguments)
        for name, (scene, options) in TAKEN.items():
            file = Path(directory) / "status.html"
            file.write_text(render(scene))
            page = browser.new_context(timezone_id="UTC", **options).new_page()
            page.goto(f"file://{file}")
            page.screenshot(path=PICTURES / f"{name}.png", full_page=True)
            print(f"docs/pictures/{name}.png")
        browser.close()
    RECORD.write_text(digests())
    return 0


if __name__ == "__main__":
    sys.exit(main())
