"""`goatherd demo`: run three servers with one identity, rotate twice under traffic, and print the report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from goatherd.cli.main import EXIT_FINDINGS, App, command
from goatherd.cli.output import Output
from goatherd.cli.process import run_interruptible
from goatherd.operations.serve import require_node_extra

if TYPE_CHECKING:
    from goatherd.operations.demo import DemoReport


@command(example="goatherd demo\ngoatherd demo --regions", store=False, org=False)
@click.option(
    "--regions",
    is_flag=True,
    help="Run a store and a server in each of three regions; during a rotation, one fails and another is promoted.",
)
def demo(app: App, regions: bool) -> int:
    """Run three servers with one identity, and rotate twice under traffic.

    The demo uses a temporary directory and loopback addresses, and takes less than a minute. The exit code is 11 if a
    request was rejected or a commit was lost.
    """
    require_node_extra()
    from goatherd.operations.demo import run_demo

    def tell(name: str, text: str) -> None:
        app.out.event(name, {"text": text}, f"{name:>10}  {text}")

    # SIGTERM, such as from `timeout`, must not leave the servers and the temporary directory behind.
    report = run_interruptible(app, run_demo(tell, has_regions=regions), note="")
    app.out.result(demo_json(report), demo_lines(report, app.out))
    return 0 if report.passed else EXIT_FINDINGS


def demo_json(report: DemoReport) -> dict[str, Any]:
    """Return the report of `goatherd demo` as JSON data. The names of durations end in their unit."""
    return {
        "passed": report.passed,
        "servers": report.servers,
        "clients": report.clients,
        "requests": report.requests,
        "refused": report.refused,
        "commits": report.audit.accepted,
        "lost": len(report.audit.lost),
        "unverifiable": len(report.audit.unverifiable),
        "signer": report.signer,
        "sessionsSignedBy": {name: report.audit.by_signer.get(root, 0) for name, root in report.roots.items()},
        "passages": [
            {
                "name": passage.name,
                "requests": passage.window.requests,
                "refused": passage.window.refused,
                "reasons": dict(passage.window.reasons),
                "p50Ms": round(passage.window.p50_ms, 2),
                "p99Ms": round(passage.window.p99_ms, 2),
                "phaseSeconds": {name: round(seconds, 3) for name, seconds in passage.phases.items()},
            }
            for passage in report.passages
        ],
    }


def demo_lines(report: DemoReport, out: Output) -> list[str]:
    """Return the report of `goatherd demo` as lines of text."""
    rows = [
        [
            passage.name,
            str(passage.window.requests),
            str(passage.window.refused),
            f"{passage.window.p50_ms:.1f} ms",
            f"{passage.window.p99_ms:.1f} ms",
            "  ".join(f"{name} {seconds:.2f} s" for name, seconds in passage.phases.items()),
        ]
        for passage in report.passages
    ]
    signed = ", ".join(f"{name} {report.audit.by_signer.get(root, 0)}" for name, root in report.roots.items())
    checked = (
        f"{len(report.audit.unverifiable)}   (each read from all {report.servers} servers, each signature checked)"
    )
    lines = [
        "",
        *out.table(["", "requests", "refused", "p50", "p99", "time of each phase"], rows),
        "",
        f"  requests {report.requests}   refused {report.refused}",
        f"  commits  {report.audit.accepted}   lost {len(report.audit.lost)}   unverifiable {checked}",
        f"  session commits signed by root: {signed}",
        "",
    ]
    for passage in report.passages:
        lines += [f"  {passage.name}: {count} x {why}" for why, count in passage.window.reasons.items()]
    if not report.clean_exits:
        lines.append("  a server did not end cleanly")
    lines.append("Nothing refused, nothing lost." if report.passed else "FAILED: see above.")
    return lines
