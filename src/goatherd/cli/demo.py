"""`goatherd demo`: run three servers with one identity, and rotate twice under traffic."""

from __future__ import annotations

import asyncio

from goatherd.cli.main import EXIT_FINDINGS, App, command
from goatherd.operations.serve import require_node_extra


@command(example="goatherd demo\ngoatherd demo --json")
def demo(app: App) -> int:
    """Run three servers with one identity, and rotate twice under traffic.

    The demo uses a temporary directory and loopback addresses, and takes less than a minute. The exit code is 11 if a
    request was rejected or a commit was lost.
    """
    require_node_extra()
    from goatherd.cli.text.demo import demo_json, demo_lines
    from goatherd.operations.demo import run_demo

    def tell(name: str, text: str) -> None:
        app.out.event(name, {"text": text}, f"{name:>10}  {text}")

    report = asyncio.run(run_demo(tell))
    app.out.result(demo_json(report), demo_lines(report, app.out))
    return 0 if report.passed else EXIT_FINDINGS
