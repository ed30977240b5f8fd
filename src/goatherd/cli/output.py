"""What the commands write, and where.

What it is: the only writer to the terminal. Five rules:
1. Results go to standard output, everything else (progress, notes, errors, hints) to standard error.
2. With ``--json`` standard output holds exactly one JSON document, an error too; progress is JSON lines on standard
   error.
3. Colour, and lines that are written over, only on a terminal; ``NO_COLOR`` is honoured.
4. Nothing that looks like key material is ever written: errors pass through `hide_key_material`. Nothing that commands
a terminal
   is: every line passes through `make_visible`.
5. Whether somebody reads decides nothing: a reader that has gone, or a full disk under standard error, stops no
   rotation half-way and changes no exit code. Only a result that cannot be kept is an error.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import traceback
from collections.abc import Iterable, Mapping, Sequence
from typing import TextIO

from goatherd.errors import GoatherdError
from goatherd.telemetry import hide_key_material, make_visible


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

    @property
    def may_ask(self) -> bool:
        """Whether a person can be asked a question, and answer it."""
        return self.is_live and sys.stdin.isatty()

    def result(self, data: Mapping[str, object], lines: Iterable[str]) -> None:
        """Write the result: `data` for programs, `lines` for people."""
        if self.as_json:
            self._line(self.stdout, _json(self.stdout, data, indent=2))
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
            self._line(self.stderr, _json(self.stderr, {"event": name, **data}))
        else:
            self._line(self.stderr, text)

    def error(self, error: BaseException, *, debug: bool = False) -> None:
        """Write an error with its code and hint; with `debug` its traceback before it, scrubbed."""
        if debug:
            trace = "".join(traceback.format_exception(error))
            self._line(self.stderr, hide_key_material(trace).rstrip())
        if isinstance(error, GoatherdError):
            code, message, hint = error.code, str(error), error.hint
        elif isinstance(error, OSError) and error.strerror:
            where = f": {error.filename}" if error.filename else ""
            code, message = "system", f"the operating system refused: {error.strerror}{where}"
            hint = "Check disks, permissions and limits, then run the command again. --debug shows where it happened."
        else:
            code, message = "internal", f"{type(error).__name__}: {error}"
            hint = "This is a bug of Goatherd: please report it with the output of --debug."
        self.failure(code, message, hint)

    def failure(self, code: str, message: str, hint: str) -> None:
        """Write an error given by its parts."""
        message, hint = hide_key_material(message), hide_key_material(hint)
        if self.as_json:
            shape = {"error": {"code": code, "message": message, "hint": hint}}
            with contextlib.suppress(OSError):  # then it is told as text, which is better than nothing
                self._line(self.stdout, _json(self.stdout, shape, indent=2))
                return
        self._line(self.stderr, f"error: {message} [{code}]", style="31")
        if hint:
            self._line(self.stderr, f"hint: {hint}", style="2")

    def _line(self, stream: TextIO, text: str, *, style: str = "") -> None:
        """Write one line at once.

        Raises:
            OSError: A result cannot be kept: the disk under standard output is full, for one.
        """
        text = make_visible(text)
        if style and stream.isatty() and not os.environ.get("NO_COLOR"):
            text = f"\x1b[{style}m{text}\x1b[0m"
        try:
            try:
                stream.write(text + "\n")
            except UnicodeEncodeError:
                encoding = stream.encoding or "ascii"
                stream.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
            stream.flush()
        except BrokenPipeError:
            abandon(stream)
        except OSError:
            if stream is self.stdout:
                raise


def abandon(stream: TextIO) -> None:
    """Let whatever is still written go nowhere: nobody reads it any more (`goatherd rotate | head`)."""
    with contextlib.suppress(OSError):  # a stream without a number, of a test
        number = stream.fileno()
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, number)
        os.close(null)


def settle() -> None:
    """Let what could not be written be, so that the interpreter does not end with a code of its own for it."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            abandon(stream)


def _json(stream: TextIO, data: Mapping[str, object], *, indent: int | None = None) -> str:
    """Return one JSON document that the stream can hold: escapes where its encoding has no place for a letter."""
    text = json.dumps(data, ensure_ascii=False, indent=indent)
    try:
        text.encode(stream.encoding or "utf-8")
    except UnicodeEncodeError:
        return json.dumps(data, indent=indent)
    return text
