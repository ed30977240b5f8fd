"""Finds vector files, checks each by its ``kind``, and reports.

One line per file: ``NAME N ok / M``, then what is not judged and why. A file that is no vector file of a known kind is
named and fails the run, whatever its name.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from goatherd.errors import DecodeError
from goatherd.wire.json import parse_json
from tests.vectors import formats, graphs, items, repositories, signed
from tests.vectors.sheet import Sheet, shown

_USAGE = "usage: python -m tests.vectors [DIR or FILE ...]"
_FORMAT = "goatdb-vectors/1"
_DECLARATIONS = frozenset({"schemas", "sessions", "repositories"})

Judge = Callable[[dict[str, Any], Sheet], None]

KINDS: Final[dict[str, Judge]] = {
    "base32": formats.base32,
    "bloom": formats.bloom_filter,
    "checksums": items.checksums,
    "commits": signed.commits,
    "dates": formats.dates,
    "edits": items.edits,
    "encoders": formats.encoders,
    "js-numbers": formats.js_numbers,
    "log-recovery": formats.log_recovery,
    "merges": items.merges,
    "misc": formats.misc,
    "murmur3": formats.murmur,
    "orders": graphs.orders,
    "paths": formats.path,
    "request-signatures": signed.request_signatures,
    "schemas": items.schemas,
    "sessions": signed.sessions,
    "signatures": signed.signatures,
    "stable-stringify": formats.stable,
    "sync-messages": formats.sync_messages,
}


def check_directory(directory: Path) -> tuple[list[Sheet], list[str]]:
    """Check every file below a directory, or one file.

    Returns:
        A sheet for each vector file, and a message for each other file.
    """
    sheets: list[Sheet] = []
    strangers: list[str] = []
    files = sorted(_files(directory, strangers))
    logs: set[Path] = set()
    for file in files:
        if file.suffix == ".jsonl":
            continue
        name = file.relative_to(directory) if file != directory else Path(file.name)
        problem, document = _read(file)
        if document is None:
            strangers.append(f"{name}: {problem}")
            continue
        sheets.append(_judge(document, file))
        if document["kind"] == "jsonl":
            logs |= {repositories.log_path(each, file).resolve() for each in _repositories(document)}
    strangers += [
        f"{file.relative_to(directory)}: a log that no description names"
        for file in files
        if file.suffix == ".jsonl" and file != directory and file.resolve() not in logs
    ]
    return sheets, strangers


def _files(directory: Path, strangers: list[str]) -> Iterator[Path]:
    """Yield the vector files below a directory, without hidden files, READMEs and this checker; add unreadable
    ones to `strangers`."""
    if directory.is_file():
        yield directory
        return

    def unreadable(error: OSError) -> None:
        strangers.append(f"{error.filename}: cannot be read: {error.strerror}")

    for root, folders, names in os.walk(directory, onerror=unreadable):
        folders[:] = [name for name in folders if not name.startswith(".") and name != "__pycache__"]
        links = [name for name in folders if Path(root, name).is_symlink()]
        for name in (*links, *names):
            path = Path(root, name)
            if name.startswith((".", "README")) or name.endswith(".py"):
                continue
            if path.is_file():
                yield path
            else:
                strangers.append(f"{path.relative_to(directory)}: no file")


def _read(file: Path) -> tuple[str, dict[str, Any] | None]:
    """Return a vector file's object, or a message that says what is wrong with the file."""
    try:
        document = parse_json(file.read_bytes())
    except DecodeError as error:
        return f"not a vector file: {error}", None
    except OSError as error:
        return f"cannot be read: {error.strerror}", None
    if not isinstance(document, dict) or not isinstance(document.get("kind"), str):
        return "not a vector file: no kind", None
    if document.get("format", _FORMAT) != _FORMAT:
        return f"unknown format {shown(document['format'])}", None
    if document["kind"] not in KINDS and document["kind"] != "jsonl":
        return f"unknown kind {shown(document['kind'])}", None
    return "", document


def _judge(document: dict[str, Any], file: Path) -> Sheet:
    described = document["kind"] == "jsonl" and file.stem == "description"
    sheet = Sheet(file.resolve().parent.name if described else file.stem)
    reason = "a part that this kind is not known to have"
    try:
        if document["kind"] == "jsonl":
            repositories.jsonl(document, sheet, file)
        else:
            KINDS[document["kind"]](document, sheet)
    except Exception as error:  # noqa: BLE001 - a damaged head of the file (sessions, schemas) fails the file, no crash
        sheet.failures.append(f"the file's own declarations: {type(error).__name__}: {shown(str(error))}")
        reason = "the file's own declarations are damaged"
    for name, part in document.items():
        if isinstance(part, list) and name not in sheet.parts | _DECLARATIONS:
            sheet.leave(len(part), reason)
    if not sheet.total:
        sheet.failures.append("the file holds no cases")
    return sheet


def _repositories(document: dict[str, Any]) -> list[dict[str, Any]]:
    found = document.get("repositories")
    return [each for each in found if isinstance(each, dict) and "file" in each] if isinstance(found, list) else []


def main(arguments: list[str]) -> int:
    """Run the command; return 0 if all checked cases hold, 1 if not, 2 for wrong usage."""
    if not arguments or arguments[0].startswith("-"):
        _write(_USAGE, sys.stdout if arguments[:1] in (["-h"], ["--help"]) else sys.stderr)
        return 0 if arguments[:1] in (["-h"], ["--help"]) else 2
    failed = False
    for argument in arguments:
        path = Path(argument)
        if not path.exists():
            _write(f"{argument}: no such directory", sys.stderr)
            return 2
        sheets, strangers = check_directory(path)
        for sheet in sheets:
            _write(sheet.line())
            for failure in sheet.failures:
                _write(f"  FAILED {failure}")
        for stranger in strangers:
            _write(f"UNKNOWN {stranger}")
        if not sheets and not strangers:
            _write(f"{argument}: no vector files")
        failed = failed or bool(strangers) or not sheets or any(sheet.failures for sheet in sheets)
    return 1 if failed else 0


def _write(line: str, stream: Any = None) -> None:
    out = stream or sys.stdout
    encoding = out.encoding or "utf-8"
    print(line.encode(encoding, "backslashreplace").decode(encoding), file=out)
