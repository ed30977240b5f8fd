"""Headless Chromium, and the process that serves the page, for tests of the page as a reader sees it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Self

from goatherd.clock import SystemClock
from goatherd.web.render import view_data
from goatherd.web.view import View
from tests.deadlines import HANG

INSTALLED: Final = Path(__file__).parents[2] / "build/tools/chromium/chromium"
WHY_SKIPPED: Final = (
    "NO CHROMIUM, SO THE PAGE IS NOT TESTED IN A BROWSER: run scripts/install-chromium, install the package "
    "chromium-headless-shell, or set GOATHERD_CHROMIUM to its program"
)


def find_chromium() -> str | None:
    """Return the program: from `GOATHERD_CHROMIUM`, where scripts/install-chromium puts it, or on the PATH."""
    named = os.environ.get("GOATHERD_CHROMIUM")
    if named or INSTALLED.exists():
        return named or str(INSTALLED)
    return shutil.which("chromium-headless-shell") or shutil.which("chromium")


class PageServer:
    """The process that serves the page, given views by a test. A context manager.

    Args:
        port: Port to listen on; 0 takes a free one.
        more: What else the first line holds, such as the digest of a token.
    """

    def __init__(self, port: int = 0, **more: Any) -> None:
        self.url = ""
        address = {
            "host": "127.0.0.1",
            "port": port,
            "token_digest": None,
            "certificate": None,
            "key": None,
            "proxies": [],
        }
        self._first = {"address": address | more, "interval_ms": 10_000}
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        line = [sys.executable, "-m", "goatherd", "page-process"]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(line, stdin=pipe, stdout=pipe, text=True)
        self._write(self._first)
        assert self._process.stdout is not None
        answer = json.loads(self._process.stdout.readline())
        self.url = answer["ready"]
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(HANG)
        self._process.stdout.close()

    def show(self, view: View | None, problem: dict[str, str] | None = None) -> None:
        """Show a view on every open page, as read just now; None keeps the last one."""
        now_ms = SystemClock().now_ms()
        data = None if view is None else view_data(replace(view, at_ms=now_ms))
        self._write({"view": data, "problem": problem})

    def _write(self, message: dict[str, Any]) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()
