"""The command that checks and repairs a data directory: data."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Final

import click

from goatherd.cli.main import EXIT_FINDINGS, App, PathType, command
from goatherd.clock import SystemClock
from goatherd.cluster.client import NodeClient
from goatherd.config.build import open_store, store_name
from goatherd.operations.check_data import (
    Anchor,
    DataReport,
    LogFinding,
    check_organization,
    find_anchor,
    find_organizations,
    lock_organization,
)
from goatherd.operations.concurrent_creations import Conflict
from goatherd.operations.repair_data import Repair, read_peers, repair_organization

SHOWN: Final = 100
PATIENCE: Final = timedelta(seconds=120)
"""For one answer about 50 000 sessions."""


@command(
    example="goatherd data check /srv/goatdb --provider file:///srv/keys/root\n"
    "goatherd data repair /srv/goatdb --provider file:///srv/keys/root --peer http://10.0.0.2:8080",
)
@click.argument("action", type=click.Choice(["check", "repair"]), metavar="check|repair")
@click.argument("directory", type=PathType(path_type=Path, file_okay=False))
@click.option(
    "--peer",
    "serve_peers",
    multiple=True,
    metavar="URL",
    help="URL of another server, to compare sessions with and fetch damaged commits from. Can be given more than once.",
)
@click.option(
    "--offline", is_flag=True, help="Do not read the store; verify with the roots in the data directory, if any."
)
@click.option("--timeout", metavar="TIME", help="Timeout of one request to a server, at least 2m.")
def data(app: App, action: str, directory: Path, offline: bool) -> int:
    """Check a server's data directory, or repair it.

    check reads every record of every log and verifies its signature. It lists what is damaged, no commit, or not
    verifiable, with file and offset. It also names sessions that several commits in /sys/sessions create differently,
    in this directory or on a --peer: GoatDB servers and clients end when they merge these. It changes nothing.

    repair moves damaged lines into a file beside the log, named like it with .damaged, and fetches the commits again
    from the peers. It joins the creations of a session by a commit that follows all of them, in the log and on each
    --peer. It deletes nothing, and does not write a log without findings. An interrupted repair is completed by the
    next one.

    DIRECTORY is a data directory, or the directory of one organization; of a Goatherd server or an unmodified GoatDB
    server. Stop the server first. Signatures are verified with the identity in the store; without one, with the roots
    that the server's own files name; without these, not at all, and the command says so.

    Ends with 11 when check finds something, when repair leaves something, or when a peer cannot be asked.
    """
    given = app.options.org if "org" in app.options.origin else None
    found = find_organizations(directory, given)
    if action == "check":
        reports = [asyncio.run(_check(app, org, path, offline=offline)) for org, path in found]
        app.out.result({"organizations": [one.to_json() for one in reports]}, _check_lines(reports, directory))
        return 0 if all(one.is_clean for one in reports) else EXIT_FINDINGS
    repairs = [asyncio.run(_repair(app, org, path, offline=offline)) for org, path in found]
    app.out.result({"organizations": [one.to_json() for one in repairs]}, _repair_lines(repairs))
    return 0 if all(one.is_complete for one in repairs) else EXIT_FINDINGS


async def _check(app: App, org: str, path: Path, *, offline: bool) -> DataReport:
    anchor = await _anchor(app, org, path, offline=offline)
    async with AsyncExitStack() as stack:
        logs = stack.enter_context(lock_organization(path))
        executor = stack.enter_context(_threads())
        # Peers of the configuration file are for `repair` and `serve`: a check needs no network unless it is asked to.
        peers = await _peers(app, stack) if app.options.origin.get("serve.peers") == "flag" else []
        held, problems = await read_peers(logs, org, anchor, peers, executor)
        report = await asyncio.to_thread(check_organization, logs, org, anchor, executor, held)
        return replace(report, problems=problems)


async def _repair(app: App, org: str, path: Path, *, offline: bool) -> Repair:
    anchor = await _anchor(app, org, path, offline=offline)
    async with AsyncExitStack() as stack:
        logs = stack.enter_context(lock_organization(path))
        executor = stack.enter_context(_threads())
        return await repair_organization(logs, org, anchor, await _peers(app, stack), executor)


async def _peers(app: App, stack: AsyncExitStack) -> list[NodeClient]:
    timeout = max(app.options.timeout, PATIENCE)
    return [
        await stack.enter_async_context(NodeClient(url, timeout=timeout))
        for url in dict.fromkeys(app.options.serve_peers)
    ]


async def _anchor(app: App, org: str, path: Path, *, offline: bool) -> Anchor | None:
    options = app.options
    if not offline and (options.provider is not None or options.cloud_config is not None):
        async with open_store(options, org=org) as store:
            _, document = await store.read()
        return Anchor.of(document, store_name(options, org))
    return find_anchor(path, SystemClock().now_ms())


def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="goatherd-data")


# --- text -------------------------------------------------------------------------------------------------------------


def _check_lines(reports: Sequence[DataReport], directory: Path) -> list[str]:
    lines = []
    for report in reports:
        lines.append(f"{report.directory}: {len(report.logs)} logs, {report.records} records")
        lines.append(f"  {_verified(report)}")
        lines += _finding_lines(report.findings, report.directory)
        lines += _conflict_lines(report.conflicts)
        lines += [f"  problem: {problem}" for problem in report.problems]
    count = sum(len(report.findings) for report in reports)
    conflicts = sum(len(report.conflicts) for report in reports)
    if count:
        lines.append(
            f"{count} found. `goatherd data repair {directory}` moves them aside; --peer URL fetches them again."
        )
    if conflicts:
        lines.append(
            f"{conflicts} sessions in conflict. `goatherd data repair {directory}` joins their creations; --peer URL"
            " for each other server joins them there too."
        )
    if not count and not conflicts:
        lines.append("nothing found")
    return lines


def _conflict_lines(conflicts: Sequence[Conflict]) -> list[str]:
    lines = [f"  sys/sessions.jsonl: conflict: {one.text}" for one in conflicts[:SHOWN]]
    if len(conflicts) > SHOWN:
        lines.append(f"  and {len(conflicts) - SHOWN} more; --json lists all")
    if conflicts:
        lines.append('  GoatDB merges these by ending: "Merge commit got empty ancestors filter"')
    return lines


def _verified(report: DataReport) -> str:
    if report.anchor is None:
        return "signatures were NOT verified: no store is named, and no file here names the roots. Give --provider URI."
    return f"signatures were verified with the identity of {report.anchor}"


def _finding_lines(findings: Sequence[LogFinding], directory: Path) -> list[str]:
    lines = []
    for one in findings[:SHOWN]:
        commit = f" (commit {one.commit_id})" if one.commit_id is not None and one.commit_id not in one.reason else ""
        where = f"{one.file.relative_to(directory)}, byte {one.offset}, {one.length} bytes"
        lines.append(f"  {where}: {one.kind.value}: {one.reason}{commit}")
    if len(findings) > SHOWN:
        lines.append(f"  and {len(findings) - SHOWN} more; --json lists all")
    return lines


def _repair_lines(repairs: Sequence[Repair]) -> list[str]:
    lines = []
    for one in repairs:
        directory = one.before.directory
        lines.append(f"{directory}: {one.before.records} records before, {one.after.records} now")
        lines.append(f"  {_verified(one.before)}")
        if not one.set_aside and not one.restored and not one.fetched and not one.joined:
            lines.append("  nothing was moved or fetched")
        if one.set_aside:
            files = sorted({finding.file.relative_to(directory) for finding in one.set_aside})
            lines.append(f"  moved aside: {len(one.set_aside)}, into " + ", ".join(f"{file}.damaged" for file in files))
            lines += [f"  {line}" for line in _finding_lines(one.set_aside, directory)]
        if one.restored:
            lines.append(f"  taken back from .damaged files, since they verify: {one.restored}")
        if one.fetched:
            lines.append(f"  fetched from peers: {one.fetched}")
        if one.joined:
            lines.append(f"  joined: the creations of {len(one.joined)} sessions: {' '.join(one.joined[:SHOWN])}")
            lines.append(
                f"  peers were given {one.given} of the joining commits"
                if one.given
                else "  other servers get the joining commits when they synchronize with this one, or now by --peer URL"
            )
        if one.lacking:
            lines.append(f"  not fetched yet: {len(one.lacking)}: {' '.join(one.lacking[:SHOWN])}")
        if one.unidentified:
            lines.append(f"  lines whose commit cannot be told: {one.unidentified}")
        if one.lacking or one.unidentified:
            lines.append("  A server with --peer fetches what its peers hold. `repair --peer URL` does so now.")
        lines += [f"  problem: {problem}" for problem in one.problems]
        if one.after.conflicts:
            lines.append(f"  still in conflict: {len(one.after.conflicts)} sessions")
            lines += _conflict_lines(one.after.conflicts)
        if one.after.findings:
            lines.append(f"  left as they are: {len(one.after.findings)}")
            lines += [f"  {line}" for line in _finding_lines(one.after.findings, directory)]
    return lines
