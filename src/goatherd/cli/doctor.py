"""`goatherd doctor`: check the store, the identity and every server."""

from __future__ import annotations

import asyncio

from goatherd.cli.main import EXIT_FINDINGS, App, command
from goatherd.cli.status import watching_rotator
from goatherd.config.build import build_policy, open_store
from goatherd.config.options import Options
from goatherd.errors import GoatherdError
from goatherd.operations.doctor import Examined, examine, obstacle_checks
from goatherd.operations.store_checks import FAILED, SKIPPED, WARNING, Check
from goatherd.rotation.obstacles import Survey


@command(example="goatherd doctor --provider file:///srv/keys/root --node http://10.0.0.1:8080", nodes=True)
def doctor(app: App) -> int:
    """Check the store, the identity and every server.

    Checks of the store: access, latency, the permissions of these credentials (where the platform reports them), the
    labels, and the clock. Checks of the identity: its format, its remaining lifetime, and whether a process drives the
    rotation in progress. Each finding states what to do.

    The command sends an unauthenticated POST /auth/session to every server and looks for a private key in the answer.
    This creates one anonymous session on each server; an agent has made this check itself, and reports the result. The
    command lists every obstacle to a rotation, as `goatherd rotate --plan` does. It compares the /sys/sessions of the
    servers and lists sessions with conflicting creations: GoatDB servers and clients crash when they merge these. The
    exit code is 11 if a check has failed; warnings do not change it.
    """
    checks = asyncio.run(_doctor(app.options))
    failed = [check for check in checks if check.level == FAILED]
    rows = []
    for check in checks:
        rows.append(f"{check.level:<4}  {check.name:<22}  {check.text}")
        if check.hint:
            rows.append(f"      {'':<22}  -> {check.hint}")
    warnings, skipped = (sum(check.level == level for check in checks) for level in (WARNING, SKIPPED))
    total = f"{len(checks)} checks, {len(failed)} failed, {warnings} warnings"
    rows += ["", f"{total}, {skipped} not possible" if skipped else total]
    app.out.result({"healthy": not failed, "checks": [check.to_json() for check in checks]}, rows)
    return EXIT_FINDINGS if failed else 0


async def _doctor(options: Options) -> list[Check]:
    examined = Examined(
        addresses=options.nodes,
        timeout=options.timeout,
        org=options.org,
        policy=build_policy(options),
        refresh_interval=options.settings_refresh_interval,
    )
    checks = await examine(open_store(options), examined)
    is_identity_known = not any(check.level == FAILED and check.name in ("store", "identity") for check in checks)
    if (options.nodes or options.rotation_bare) and is_identity_known:
        try:
            checks += obstacle_checks(await _survey(options))
        except GoatherdError as error:
            checks.append(Check(name="rotation", level=SKIPPED, text=str(error), hint=error.hint))
    return checks


async def _survey(options: Options) -> Survey:
    async with watching_rotator(options) as rotator:
        return await rotator.survey()
