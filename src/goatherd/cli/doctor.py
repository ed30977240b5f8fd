"""`goatherd doctor`: check the store, the identity and every server."""

from __future__ import annotations

import asyncio

from goatherd.cli.main import EXIT_FINDINGS, App, command
from goatherd.cli.text.checks import check_lines
from goatherd.config.build import build_health_signals, build_policy, open_store
from goatherd.operations.doctor import CheckScope, run_checks
from goatherd.operations.store_checks import FAILED


@command(example="goatherd doctor --provider file:///srv/keys/root --node http://10.0.0.1:8080", nodes=True)
def doctor(app: App) -> int:
    """Check the store, the identity and every server.

    The command checks the store: access, latency, labels, clock, and the permissions of these credentials, where the
    platform reports them. It checks the identity: its format, its remaining lifetime, and whether a process drives the
    rotation in progress. Each finding states what to do.

    To check whether a server exposes its private key, the command sends an unauthenticated POST /auth/session, which
    creates one anonymous session on that server. For a server under an agent, the command uses the result of the
    agent's own check instead. The command lists every obstacle to a rotation, as `goatherd rotate --plan` does. It also
    lists sessions that were created twice with different contents: GoatDB servers and clients crash when they merge
    these.

    The exit code is 11 if a check has failed; warnings do not change it.
    """
    options = app.options
    scope = CheckScope(
        addresses=options.nodes,
        timeout=options.timeout,
        org=options.org,
        policy=build_policy(options),
        refresh_interval=options.settings_refresh_interval,
        health=build_health_signals(options),
    )
    checks = asyncio.run(run_checks(open_store(options), scope))
    is_healthy = not any(check.level == FAILED for check in checks)
    app.out.result({"healthy": is_healthy, "checks": [check.to_json() for check in checks]}, check_lines(checks))
    return 0 if is_healthy else EXIT_FINDINGS
