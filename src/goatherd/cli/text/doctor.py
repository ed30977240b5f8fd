"""Format the output of `goatherd doctor`: its checks, also of a signer (--signer) or a data directory (--data)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from goatherd.cli.output import BLUE, GREEN, RED, YELLOW, Marked
from goatherd.errors import UnknownSignerError
from goatherd.operations.store_checks import FAILED, OK, SKIPPED, WARNING, Check
from goatherd.telemetry import describe_count

if TYPE_CHECKING:
    from goatherd.operations.check_data import DataReport, LogFinding
    from goatherd.operations.check_signer import SignerReport
    from goatherd.operations.concurrent_creations import Conflict
    from goatherd.operations.repair_data import Repair


_COLOURS: Final = {FAILED: RED, WARNING: YELLOW, SKIPPED: BLUE, OK: GREEN}
"""The colour of each level, in the order in which the checks are listed."""


def check_lines(checks: Sequence[Check]) -> list[str | Marked]:
    """Return the results of all checks as lines, failures first, with a total at the end."""
    lines: list[str | Marked] = []
    for check in sorted(checks, key=lambda one: list(_COLOURS).index(one.level)):
        lines.append(Marked(f"{check.level:<4}", _COLOURS[check.level], f"  {check.name:<22}  {check.text}"))
        if check.hint:
            lines.append(f"      {'':<22}  -> {check.hint}")
    failed, warnings, skipped = (sum(check.level == level for check in checks) for level in (FAILED, WARNING, SKIPPED))
    total = f"{describe_count(len(checks), 'check')}, {failed} failed, {describe_count(warnings, 'warning')}"
    return [*lines, "", f"{total}, {skipped} not possible" if skipped else total]


def signer_lines(report: SignerReport) -> list[str | Marked]:
    """Return the facts of a signer and the results of its checks as lines."""
    facts = report.facts
    lines = [
        f"signer       {report.scheme}",
        f"key          {report.name}",
        f"exportable   {'yes' if facts.exportable else 'no'}",
        f"latency      {facts.latency}",
    ]
    if facts.region is not None:
        lines.append(f"region       {facts.region}")
    if facts.signatures_per_second is not None:
        lines.append(f"rate limit   {facts.signatures_per_second} signatures per second")
    if facts.max_text_bytes is not None:
        lines.append(f"longest text {facts.max_text_bytes} bytes")
    return [*lines, "", *check_lines(report.checks)]


SHOWN: Final = 100


def data_check_lines(reports: Sequence[DataReport], directory: Path) -> list[str]:
    """Return what a check of a data directory found, as lines."""
    lines = []
    for report in reports:
        lines.append(
            f"{report.directory}: {describe_count(len(report.logs), 'log')}, {describe_count(report.records, 'record')}"
        )
        lines.append(f"  {_describe_anchor(report)}")
        lines += _list_findings(report.findings, report.directory)
        lines += _list_conflicts(report.conflicts)
        lines += [f"  problem: {problem}" for problem in report.problems]
    count = sum(len(report.findings) for report in reports)
    conflicts = sum(len(report.conflicts) for report in reports)
    if count:
        lines.append(
            f"{count} found. `goatherd doctor --data repair {directory} --peer URL` moves bad records aside and fetches"
            " good copies."
        )
    if conflicts:
        lines.append(
            f"{describe_count(conflicts, 'session')} in conflict. `goatherd doctor --data repair {directory}` joins"
            " their creations; --peer URL for each other server joins them there too."
        )
    if not count and not conflicts:
        lines.append("nothing found")
    return lines


def _list_conflicts(conflicts: Sequence[Conflict]) -> list[str]:
    lines = [f"  sys/sessions.jsonl: conflict: {one.text}" for one in conflicts[:SHOWN]]
    if len(conflicts) > SHOWN:
        lines.append(f"  and {len(conflicts) - SHOWN} more; --json lists all")
    if conflicts:
        lines.append('  GoatDB crashes when it merges these: "Merge commit got empty ancestors filter"')
    return lines


def _describe_anchor(report: DataReport) -> str:
    if report.verified_with is None:
        return (
            "signatures were NOT verified: no store is named, and no file in the directory names the roots. Give"
            " --provider URI."
        )
    return f"signatures were verified with the identity of {report.verified_with}"


def _list_findings(findings: Sequence[LogFinding], directory: Path) -> list[str]:
    lines = []
    for one in findings[:SHOWN]:
        commit = f" (commit {one.commit_id})" if one.commit_id is not None and one.commit_id not in one.reason else ""
        where = f"{one.file.relative_to(directory)}, byte {one.offset}, {describe_count(one.length, 'byte')}"
        lines.append(f"  {where}: {one.kind.value}: {one.reason}{commit}")
    if len(findings) > SHOWN:
        lines.append(f"  and {len(findings) - SHOWN} more; --json lists all")
    return lines


def data_repair_lines(repairs: Sequence[Repair], *, has_peers: bool) -> list[str]:
    """Return what a repair of a data directory did, as lines. `has_peers` is true if a --peer was given."""
    lines = []
    for one in repairs:
        directory = one.before.directory
        lines.append(f"{directory}: {describe_count(one.before.records, 'record')} before, {one.after.records} now")
        lines.append(f"  {_describe_anchor(one.before)}")
        if not one.set_aside and not one.restored and not one.fetched and not one.joined:
            lines.append("  nothing was moved or fetched")
        if one.set_aside:
            files = sorted({finding.file.relative_to(directory) for finding in one.set_aside})
            lines.append(f"  moved aside: {len(one.set_aside)}, into " + ", ".join(f"{file}.damaged" for file in files))
            lines += [f"  {line}" for line in _list_findings(one.set_aside, directory)]
        if one.restored:
            lines.append(f"  restored from .damaged files: {one.restored}")
        if one.fetched:
            lines.append(f"  fetched from peers: {one.fetched}")
        if one.joined:
            sessions = describe_count(len(one.joined), "session")
            lines.append(f"  joined: the creations of {sessions}: {' '.join(one.joined[:SHOWN])}")
            lines.append(
                f"  joining commits that were pushed to peers: {one.given}"
                if one.given
                else "  other servers get the commits that join them when they synchronize; --peer URL pushes them now"
            )
        if one.lacking:
            lines.append(f"  not fetched yet: {len(one.lacking)}: {' '.join(one.lacking[:SHOWN])}")
        if one.unidentified:
            fetched = "; their commits were fetched if a peer that answered holds them" if has_peers else ""
            lines.append(f"  lines without a readable commit id: {one.unidentified}{fetched}")
        if one.lacking or one.unidentified:
            lines.append(
                "  No peer that answered holds a valid copy of what was not fetched. If other servers may, name them"
                " with --peer URL."
                if has_peers
                else "  A server with --peer fetches what its peers hold. `repair --peer URL` does so now."
            )
        lines += [f"  problem: {problem}" for problem in one.problems]
        if one.after.conflicts:
            lines.append(f"  still in conflict: {describe_count(len(one.after.conflicts), 'session')}")
            lines += _list_conflicts(one.after.conflicts)
        if one.after.findings:
            lines.append(f"  not repaired: {len(one.after.findings)}")
            lines += [f"  {line}" for line in _list_findings(one.after.findings, directory)]
            if any(finding.code == UnknownSignerError.code for finding in one.after.findings):
                lines.append(
                    "  Records of unknown sessions stay in their logs until every --peer has sent its sessions, and"
                    " while sys/sessions.jsonl.damaged exists."
                    if has_peers
                    else "  Records of unknown sessions stay in their logs. --peer URL fetches missing sessions."
                )
    return lines
