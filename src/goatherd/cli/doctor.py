"""`goatherd doctor`: check the store, the identity and every server.

With --signer the command checks a signer, with --data a server's data directory; with --options it shows every option.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from goatherd.cli.main import DIRECTORY, EXIT_FINDINGS, App, command, config_flag, peers_option
from goatherd.cli.text.doctor import check_lines, data_check_lines, data_repair_lines
from goatherd.config.build import build_health_signals, build_policy, build_store_opener, open_peers, open_store
from goatherd.config.options import effective_settings
from goatherd.operations.doctor import CheckScope, run_checks
from goatherd.operations.store_checks import FAILED


@command(
    example="goatherd doctor --provider file:///srv/keys/root --node http://10.0.0.1:8080\n"
    "goatherd doctor --signer 'pkcs11:token=goatdb;object=anchor'",
    nodes=True,
)
@click.option("--signer", metavar="URI", help="URI of a signer to check, instead of the store and the servers.")
@click.option(
    "--as-server", is_flag=True, help="Check with the credentials of a server, which may read the store but not write."
)
def doctor(app: App, signer: str | None, as_server: bool) -> int:
    """Check the store, the identity and every server.

    The command checks the store (access, latency, labels, clock, permissions where the platform reports them), the
    identity (format, remaining lifetime, whether a process drives the rotation in progress), and every obstacle to a
    rotation. Failures come first, and each finding states what to do. Whatever would make the next `goatherd rotate`
    fail is a failure, such as credentials that may only read; with --as-server, such credentials are enough.

    To check whether a server exposes its private key, the command creates one anonymous session on it by an
    unauthenticated POST /auth/session; for a server under an agent, it uses the result of the agent's check. It lists
    sessions that were created twice with different contents, which crash GoatDB servers and clients when they merge
    them.

    With --signer, the command checks a signer only: it reads the public key, signs a short test text, verifies the
    signature, and shows what the signer declares about its key. It creates no key.

    The exit code is 11 if a check has failed; warnings do not change it.
    """
    if signer is not None:
        return _check_signer(app, signer)
    options = app.options
    scope = CheckScope(
        addresses=options.nodes,
        timeout=options.timeout,
        org=options.org,
        policy=build_policy(options),
        refresh_interval=options.settings_refresh_interval,
        health=build_health_signals(options),
        as_server=as_server,
    )
    checks = asyncio.run(run_checks(open_store(options, is_reader=True), scope))
    is_healthy = not any(check.level == FAILED for check in checks)
    app.out.result({"healthy": is_healthy, "checks": [check.to_json() for check in checks]}, check_lines(checks))
    return 0 if is_healthy else EXIT_FINDINGS


def _check_signer(app: App, uri: str) -> int:
    # Imported here, since a check of a store needs no signers.
    from goatherd.cli.text.doctor import signer_lines
    from goatherd.operations.check_signer import check_signer

    report = asyncio.run(check_signer(uri))
    is_healthy = not any(check.level == FAILED for check in report.checks)
    found = {
        "healthy": is_healthy,
        "signer": report.to_json(),
        "checks": [check.to_json() for check in report.checks],
    }
    app.out.result(found, signer_lines(report))
    return 0 if is_healthy else EXIT_FINDINGS


@command(
    example="goatherd doctor --data check /srv/goatdb --provider file:///srv/keys/root\n"
    "goatherd doctor --data repair /srv/goatdb --provider file:///srv/keys/root --peer http://10.0.0.2:8080",
)
@click.argument("action", type=click.Choice(["check", "repair"]), metavar="check|repair")
@click.argument("directory", type=DIRECTORY)
@peers_option
@click.option(
    "--offline",
    is_flag=True,
    help="Do not read the store; verify with the roots in the data directory. Without roots nothing is verified.",
)
@config_flag("--timeout", "timeout", "Timeout of one request to a server (default: 2m, which is also the minimum).")
async def data(app: App, action: str, directory: Path, offline: bool) -> int:
    """Check a server's data directory, or repair it.

    `check` changes nothing. It lists, with file and offset, each record that is damaged, is no commit, or has a
    signature that cannot be verified. It also lists conflicts: sessions that two commits in /sys/sessions, here or on a
    --peer, create with different contents. GoatDB crashes when it merges such commits.

    `repair` adds sessions that only a --peer holds to /sys/sessions. Then it moves damaged lines to a file beside the
    log, whose name ends in .damaged, and fetches the commits again from the peers. It leaves records of unknown
    sessions in their logs until every --peer has sent its sessions. It resolves a conflict with a merge commit, which
    it writes to the log and to each --peer. It deletes nothing, and can be repeated.

    DIRECTORY is the data directory of a server, Goatherd's or an unmodified one, or the directory of one organization
    in it. Stop the server first. Signatures are verified with the identity in the store, else with the roots in the
    server's own files, else not.

    The exit code is 11 if `check` finds something, if `repair` cannot repair everything, or if a peer does not answer.
    """
    # Imported here, since only this form needs what the extra `node` brings.
    from goatherd.operations.data import check_data, repair_data

    options = app.options
    org = options.org if "org" in options.origin else None
    opening = build_store_opener(options, offline=offline)
    async with open_peers(options, repairs=action == "repair") as peers:
        if action == "check":
            reports = await check_data(directory, org=org, open_store=opening, peers=peers)
            app.out.result({"organizations": [one.to_json() for one in reports]}, data_check_lines(reports, directory))
            return 0 if all(one.is_clean for one in reports) else EXIT_FINDINGS
        repairs = await repair_data(directory, org=org, open_store=opening, peers=peers)
        lines = data_repair_lines(repairs, has_peers=bool(peers))
        app.out.result({"organizations": [one.to_json() for one in repairs]}, lines)
        return 0 if all(one.is_complete for one in repairs) else EXIT_FINDINGS


@command(example="goatherd doctor --options\ngoatherd doctor --options --config /etc/goatherd.toml --json")
def config(app: App) -> None:
    """Show every option with its value and where the value comes from.

    The source is a flag, an environment variable, the configuration file with its line, or the default. A flag takes
    precedence over the environment, and the environment over the file. Passwords, tokens and the arguments of commands
    are hidden. The command contacts no store and no server.
    """
    settings = effective_settings(app.options)
    file = None if app.options.file is None else str(app.options.file)
    data = {
        "file": file,
        "options": [
            {"key": each.key, "value": each.value, "source": each.source, "variable": each.variable}
            for each in settings
        ],
    }
    rows = [(each.key, "-" if each.value is None else each.value, each.source) for each in settings]
    table = app.out.table(("KEY", "VALUE", "SOURCE"), rows)
    app.out.result(data, [f"configuration file: {file or 'none'}", "", *table])
