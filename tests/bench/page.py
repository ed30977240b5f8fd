"""What each row means, and the table of the last full run in docs/reference/performance.md."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from .rows import Row, format_number

PAGE: Final = Path(__file__).parents[2] / "docs" / "reference" / "performance.md"
BEGIN, END = "<!-- made by make bench ARGS=--docs -->", "<!-- end -->"

MEANINGS: Final[Mapping[str, str]] = {
    "command/help": "`goatherd --help`",
    "command/status": "`goatherd status`, file store",
    "signing/sign": "sign a commit",
    "signing/verify": "verify a commit",
    "signing/verify-aws-lc": "verify a commit with AWS-LC, as servers do",
    "signing/receive": "decode a received commit",
    "signers/local": "signatures of a sealed key in a file",
    "signers/transit": "signatures of OpenBao's transit engine",
    "signers/pkcs11": "signatures of a PKCS#11 token (SoftHSM)",
    "direct/session": "direct mode: a new session, its key in OpenBao",
    "direct/peer": "direct mode: a request between servers",
    "repository/open": "open a log",
    "repository/open-strange": "open a log whose members are in another order",
    "repository/memory": "memory at its peak while a log is opened",
    "repository/poll-cpu": "idle poll of a large repository, server",
    "repository/poll": "idle poll of a large repository, client",
    "repository/polls": "idle polls on 16 connections",
    "repository/pull": "a new client pulls a repository",
    "repository/pull-rounds": "requests for a pull of a repository",
    "repository/push-one": "push of one commit into a large repository",
    "repository/push": "push of many commits in one body",
    "sessions/ready": "start with many sessions, until the server listens",
    "sessions/answered": "start with many sessions, until a signed request is answered",
    "sessions/peak": "memory of a server at its peak, all sessions verified",
    "sessions/memory": "additional memory for each session",
    "settings/poll": "poll at a server with its identity from a store",
    "door/poll": "idle poll through the door",
    "door/push-one": "push of one commit through the door",
    "door/pull": "pull of a repository through the door",
    "door/push": "push of many commits in one body through the door",
    "door/push-again": "push of the same commits again, door and server",
    "crowd/p50": "request of one of many clients, median",
    "crowd/p99": "request of one of many clients, slowest of a hundred",
    "crowd/answers": "answers to many clients",
    "crowd/refused": "requests of many clients that were rejected or lost",
    "crowd/cpu": "server's work for each answer to many clients",
    "rotation/p99": "slowest of a hundred requests during a rotation",
    "rotation/total": "rotation of real servers under load",
    "rotation/cpu": "work of the rotator under load",
    "rotation/simulated": "work of a rotation, simulated servers",
    "rotation/prepared": "work of a rotation in the phase prepared",
    "rotation/published": "work of a rotation in the phase published",
    "rotation/activated": "work of a rotation in the phase activated",
    "rotation/verified": "work of a rotation in the phase verified",
    "rotation/calls": "calls of the store by a rotation",
    "rotation/regions": "work of a rotation, stores in several regions",
    "rotation/store-calls": "calls of all stores by a rotation in several regions",
    "rotation/anchor-calls": "signatures of the anchor for a renewal of the working root",
    "revocation/rejected": "revocation: until every server rejects the root",
    "revocation/freeze": "revocation: list of frozen commits",
    "revocation/collect": "revocation: reading and verifying the sessions",
    "revocation/reissue": "revocation: signing and sending all sessions anew",
    "revocation/spread": "revocation: until both servers hold all sessions",
    "revocation/total": "revocation: all steps",
    "revocation/requests": "revocation: requests to servers",
    "agent/first": "agent: first start, every session verified",
    "agent/restart": "agent: restart",
    "outage/healthy-mean": "reads of a healthy store",
    "outage/onset-peak": "outage of the store: first two minutes, worst second",
    "outage/outage-mean": "outage: rest of an hour, mean",
    "outage/outage-peak": "outage: rest of an hour, worst second",
    "outage/return-mean": "return of the store: first minute, mean",
    "outage/return-peak": "return: first minute, worst second",
    "outage/later-peak": "return: later, worst second",
    "page/view": "web page: a view of 200 servers for many open pages",
    "page/memory": "web page: memory at its peak",
    "page/requests": "web page: requests to each server for a view",
}

OF_SIMULATED: Final = frozenset(f"rotation/{phase}" for phase in ("prepared", "published", "activated", "verified"))
"""Rows of the benchmark that the page leaves out, because they are parts of ``rotation/simulated``."""


def machine() -> str:
    """Return what kind of machine this is, and how busy it is."""
    cpu = next(
        (line.partition(":")[2].strip() for line in _lines(Path("/proc/cpuinfo")) if line.startswith("model name")),
        platform.machine(),
    )
    kind = f"{os.cpu_count()} cores, {cpu}, {platform.system()}, Python {platform.python_version()}"
    return f"{kind}; load average {os.getloadavg()[2]:.0f} in the fifteen minutes before the end"


def _lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


def markdown(rows: Iterable[Row]) -> Iterator[str]:
    """Yield the lines of a Markdown table."""
    yield "| what | size | measured | bare limit, in the same unit | ratio |"
    yield "|---|---|---|---|---|"
    for row in rows:
        if row.name in OF_SIMULATED:
            continue
        bare = "" if row.bare_value is None else f"{format_number(row.bare_value)}: {row.limit}"
        over = "" if row.over is None else f"{row.over:.2f}"
        measured = f"{format_number(row.value)} {row.unit}".rstrip()
        yield f"| {MEANINGS[row.name]} | {row.size} | {measured} | {bare} | {over} |"


def write_page(rows: Iterable[Row], page: Path = PAGE) -> None:
    """Replace the table of the page."""
    before, _, rest = page.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    lines = [f"Measured on: {machine()}.", "", *markdown(rows)]
    page.write_text("\n".join([before + BEGIN, "", *lines, "", END]) + after)
