"""``make bench``: costs that users notice, relative to the bare limit of the same work, measured side by side in one
run."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from . import page, rows
from .data import FOLDER, Data
from .parts import GROWING_WITH_COMMITS, GROWING_WITH_SESSIONS, PARTS
from .rows import Row
from .scale import COMMITS, FULL, SESSIONS, Scale, growing_commits, growing_sessions


def main() -> None:
    logging.getLogger("goatherd").setLevel(logging.ERROR)  # of servers in this process: their root expires soon
    options = _parse()
    if options.compare and len(options.compare) == 2:
        _print(rows.compare(*(_read(file) for file in options.compare)))
        return
    data = Data(FOLDER)
    found: list[Row] = []
    for name, scale in _work(options):
        began = time.perf_counter()
        measured = [row for row in asyncio.run(PARTS[name](scale, data)) if _is_wanted(row.name, options.only)]
        found += measured
        print(f"\n{name}  ({time.perf_counter() - began:.0f} s)", flush=True)
        _print(rows.table(measured))
        if options.json:  # after each part, so that an interrupted run leaves what it has measured
            options.json.write_text(json.dumps([row.to_json() for row in found], indent=2) + "\n")
    if options.growth:
        print()
        _print(rows.growth(found))
    if options.docs:
        page.write_page(found)
    if options.compare:
        print()
        _print(rows.compare(_read(options.compare[0]), found))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--only", action="append", help=f"a part or a row of one: {', '.join(PARTS)}; may be repeated")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows with all samples to FILE")
    parser.add_argument(
        "--compare",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="compare this run with FILE, which --json wrote; with two files, compare these and measure nothing",
    )
    parser.add_argument("--growth", action="store_true", help="measure several sizes, and report what grows too fast")
    parser.add_argument("--commits", type=int, default=COMMITS[-1], help="with --growth: at most so many commits")
    parser.add_argument("--sessions", type=int, default=SESSIONS[-1], help="with --growth: at most so many sessions")
    parser.add_argument("--docs", action="store_true", help="write the table into docs/reference/performance.md")
    options = parser.parse_args()
    if options.compare and len(options.compare) > 2:
        parser.error("--compare takes one or two files")
    if options.docs and (options.growth or options.only):
        parser.error("--docs needs a full run")
    unknown = [name for name in options.only or () if name.split("/")[0] not in PARTS]
    if unknown:
        parser.error(f"no such part: {', '.join(unknown)}")
    return options


def _work(options: argparse.Namespace) -> Iterator[tuple[str, Scale]]:
    """Yield the parts to run, with their sizes."""
    if options.growth:
        work = [(name, scale) for scale in growing_commits(options.commits) for name in GROWING_WITH_COMMITS]
        work += [(name, scale) for scale in growing_sessions(options.sessions) for name in GROWING_WITH_SESSIONS]
    else:
        work = [(name, FULL) for name in PARTS]
    wanted = {name.split("/")[0] for name in options.only or PARTS}
    return ((name, scale) for name, scale in work if name in wanted)


def _is_wanted(name: str, only: Sequence[str] | None) -> bool:
    return not only or any(name == one or name.startswith(f"{one}/") for one in only)


def _read(file: Path) -> list[Row]:
    return [Row.from_json(one) for one in json.loads(file.read_bytes())]


def _print(lines: Iterator[str]) -> None:
    for line in lines:
        print(line)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
