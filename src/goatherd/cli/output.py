"""Write what a command prints: results, progress, notes and errors.

Commands write to the terminal only through `Output`. Rules:
1. Results go to standard output; progress, notes, errors and hints go to standard error.
2. With ``--json``, standard output holds exactly one JSON document, also for an error; progress is JSON lines on
   standard error.
3. Colour, and lines that are updated in place, appear only on a terminal; ``NO_COLOR`` is honoured.
4. Errors pass through `hide_key_material`, so that no key is printed. Every line passes through `make_visible`, so that
   no terminal control sequence is printed. SECURITY: a line feed in a line is escaped, too, or a text from the store
   could show lines that the command has not written (tests/unit/cli/test_output.py).
5. If progress, notes, errors or the line of a server that is ready cannot be written (closed pipe, full disk), the
   command continues and its exit code stays the same. Only a result that cannot be written is an error.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, TextIO

from goatherd.errors import GoatherdError
from goatherd.telemetry import hide_key_material, make_visible


class Marked(NamedTuple):
    """A line of a result whose beginning, `mark`, has a colour on a terminal (`RED` and the others)."""

    mark: str
    colour: str
    rest: str


RED, GREEN, YELLOW, BLUE = "31", "32", "33", "34"


class Output:
    """Write human-readable lines, or JSON.

    Args:
        as_json: Write JSON.
        stdout: Stream for results (default: standard output).
        stderr: Stream for everything else (default: standard error).
    """

    def __init__(self, *, as_json: bool, stdout: TextIO | None = None, stderr: TextIO | None = None) -> None:
        self.as_json = as_json
        self.stdout = stdout or sys.stdout
        self.stderr = stderr or sys.stderr

    @property
    def is_live(self) -> bool:
        """Whether lines may be updated in place: standard error is a terminal, and the output is not JSON."""
        return not self.as_json and self.stderr.isatty()

    @property
    def may_ask(self) -> bool:
        """Whether the command can ask a question: input and standard error are terminals; the output is not JSON."""
        return self.is_live and sys.stdin.isatty()

    @property
    def is_terminal(self) -> bool:
        """Whether results go to a terminal, where signs and colours tell more than words alone."""
        return self.stdout.isatty()

    def clear_screen(self) -> None:
        """Clear the terminal before a result that replaces the last one; elsewhere, write an empty line."""
        self.stdout.write("\x1b[H\x1b[2J" if self.is_terminal else "\n")

    def result(self, data: Mapping[str, object], lines: Iterable[str | Marked]) -> None:
        """Write the result: `data` as JSON, or else `lines`."""
        if self.as_json:
            self._write_block(self.stdout, _format_json(self.stdout, data, indent=2))
            return
        for line in lines:
            if isinstance(line, Marked):
                self._write_line(self.stdout, line.rest, style=line.colour, mark=line.mark)
            else:
                self._write_line(self.stdout, line)

    def document(self, text: str) -> None:
        """Write a result that is a document of several lines, in which every text is escaped already."""
        self._write_block(self.stdout, text)

    def ready(self, data: Mapping[str, object], text: str) -> None:
        """Write the line with which a command reports that it is ready and runs until it is stopped."""
        with contextlib.suppress(OSError):  # a log on a full disk must not keep a server from starting
            self._write_line(self.stdout, _format_json(self.stdout, {"ready": True, **data}) if self.as_json else text)

    def table(self, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
        """Return a plain-text table with aligned columns, as lines; the first line holds `heads`."""
        grid = [tuple(heads), *(tuple(row) for row in rows)]
        widths = [max(len(row[i]) for row in grid) for i in range(len(heads))]
        return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in grid]

    def write_note(self, text: str) -> None:
        """Write a note for a human reader; with JSON output, write nothing."""
        if not self.as_json:
            self._write_line(self.stderr, text)

    def event(self, name: str, data: Mapping[str, object], *lines: str) -> None:
        """Write progress: `lines`, or in JSON output an object with `name` and `data`."""
        if self.as_json:
            self._write_line(self.stderr, _format_json(self.stderr, {"event": name, **data}))
        else:
            for line in lines:
                self._write_line(self.stderr, line)

    def error(self, error: BaseException, *, debug: bool = False) -> None:
        """Write an error with its code and hint. With `debug`, write its traceback first, in which keys are hidden."""
        if debug:
            import traceback  # here, since most commands print none

            trace = "".join(traceback.format_exception(error))
            self._write_block(self.stderr, hide_key_material(trace).rstrip())
        if isinstance(error, GoatherdError):
            code, message, hint = error.code, str(error), error.command_hint or error.hint
        elif isinstance(error, OSError) and error.strerror:
            where = f": {error.filename}" if error.filename else ""
            code, message = "system", f"the operating system refused: {error.strerror}{where}"
            hint = "Check disks, permissions and limits, then run the command again. --debug shows where it happened."
        else:
            code, message = "internal", f"{type(error).__name__}: {error}"
            hint = "This is a bug of Goatherd: please report it with the output of --debug."
        self.failure(code, message, hint)

    def failure(self, code: str, message: str, hint: str) -> None:
        """Write an error that is given as code, message and hint."""
        message, hint = hide_key_material(message), hide_key_material(hint)
        if self.as_json:
            shape = {"error": {"code": code, "message": message, "hint": hint}}
            with contextlib.suppress(OSError):  # then the error is written as text to standard error
                self._write_block(self.stdout, _format_json(self.stdout, shape, indent=2))
                return
        self._write_line(self.stderr, f"error: {message} [{code}]", style=RED)
        if hint:
            self._write_line(self.stderr, f"hint: {hint}", style="2")

    def _write_line(self, stream: TextIO, text: str, *, style: str = "", mark: str = "") -> None:
        """Write one line and flush it; a line feed in `text` is escaped. See `_write_block`."""
        self._write_block(stream, text.replace("\n", "\\u000a"), style=style, mark=mark)

    def _write_block(self, stream: TextIO, text: str, *, style: str = "", mark: str = "") -> None:
        """Write lines and flush them.

        Args:
            stream: Standard output or standard error.
            text: The lines.
            style: Code of a colour for `mark`, or for all of `text` without one; used on a terminal only.
            mark: Text in front of `text`.

        Raises:
            OSError: A result cannot be written, for example because the disk under standard output is full.
        """
        begin, rest = (make_visible(mark), make_visible(text)) if mark else (make_visible(text), "")
        if style and stream.isatty() and not os.environ.get("NO_COLOR"):
            begin = f"\x1b[{style}m{begin}\x1b[0m"
        text = begin + rest
        try:
            try:
                stream.write(text + "\n")
            except UnicodeEncodeError:
                encoding = stream.encoding or "ascii"
                stream.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
            stream.flush()
        except BrokenPipeError:
            discard_output(stream)
        except OSError:
            if stream is self.stdout:
                raise


def discard_output(stream: TextIO) -> None:
    """Redirect a stream to /dev/null, after its reader has closed it, so that writes no longer fail."""
    with contextlib.suppress(OSError):  # a stream without a file descriptor, in a test
        number = stream.fileno()
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, number)
        os.close(null)


def flush_streams() -> None:
    """Flush standard output and standard error, and discard what cannot be written.

    Otherwise Python would try to write it at exit, fail, and change the exit code.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            discard_output(stream)


def _format_json(stream: TextIO, data: Mapping[str, object], *, indent: int | None = None) -> str:
    """Return a JSON document for a stream; characters that the stream's encoding lacks are escaped."""
    text = json.dumps(data, ensure_ascii=False, indent=indent)
    try:
        text.encode(stream.encoding or "utf-8")
    except UnicodeEncodeError:
        return json.dumps(data, indent=indent)
    return text
