"""What the commands write, and where.

What it is: the only writer to the terminal. Four rules:
1. Results go to standard output, everything else (progress, notes, errors, hints) to standard error.
2. With ``--json`` standard output holds exactly one JSON document, an error too; progress is JSON lines on standard
   error.
3. Colour, and lines that are written over, only on a terminal; ``NO_COLOR`` is honoured.
4. Nothing that looks like key material is ever written: errors pass through `scrub`.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Iterable, Mapping, Sequence
from typing import TextIO

from goatherd.errors import GoatherdError
from goatherd.telemetry import scrub


class Output:
    """Writes for people, or for programs.

    Args:
        as_json: Write for programs.
        stdout: Where results go; the process's own when None.
        stderr: Where everything else goes.
    """

    def __init__(self, *, as_json: bool, stdout: TextIO | None = None, stderr: TextIO | None = None) -> None:
        self.as_json = as_json
        self.stdout = stdout or sys.stdout
        self.stderr = stderr or sys.stderr

    @property
    def is_live(self) -> bool:
        """Whether lines may be written over: a terminal, and a person before it."""
        return not self.as_json and self.stderr.isatty()

    def result(self, data: Mapping[str, object], lines: Iterable[str]) -> None:
        """Write the result: `data` for programs, `lines` for people."""
        if self.as_json:
            self._line(self.stdout, json.dumps(data, ensure_ascii=False, indent=2))
            return
        for line in lines:
            self._line(self.stdout, line)

    def line(self, text: str) -> None:
        """Write one line of result at once: for what comes before the end, such as a server's address."""
        self._line(self.stdout, text)

    def table(self, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
        """Return aligned lines under `heads`; plain text, so that `result` can write them anywhere."""
        grid = [tuple(heads), *(tuple(row) for row in rows)]
        widths = [max(len(row[i]) for row in grid) for i in range(len(heads))]
        return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in grid]

    def note(self, text: str) -> None:
        """Write a remark for people; programs don't get it."""
        if not self.as_json:
            self._line(self.stderr, text)

    def event(self, name: str, data: Mapping[str, object], text: str) -> None:
        """Write one line of progress."""
        if self.as_json:
            self._line(self.stderr, json.dumps({"event": name, **data}, ensure_ascii=False))
        else:
            self._line(self.stderr, text)

    def error(self, error: BaseException, *, debug: bool = False) -> None:
        """Write an error with its code and hint; with `debug` its traceback before it, scrubbed."""
        if debug:
            trace = "".join(traceback.format_exception(error))
            self._line(self.stderr, scrub(trace).rstrip())
        if isinstance(error, GoatherdError):
            code, message, hint = error.code, str(error), error.hint
        else:
            code, message = "internal", f"{type(error).__name__}: {error}"
            hint = "This is a bug of Goatherd. --debug shows where."
        self.failure(code, message, hint)

    def failure(self, code: str, message: str, hint: str) -> None:
        """Write an error given by its parts."""
        message, hint = scrub(message), scrub(hint)
        if self.as_json:
            shape = {"error": {"code": code, "message": message, "hint": hint}}
            self._line(self.stdout, json.dumps(shape, ensure_ascii=False, indent=2))
            return
        self._line(self.stderr, f"error: {message} [{code}]", style="31")
        if hint:
            self._line(self.stderr, f"hint: {hint}", style="2")

    def _line(self, stream: TextIO, text: str, *, style: str = "") -> None:
        if style and stream.isatty() and not os.environ.get("NO_COLOR"):
            text = f"\x1b[{style}m{text}\x1b[0m"
        stream.write(text + "\n")
        stream.flush()
