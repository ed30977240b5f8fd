"""`goatherd revoke`: revoke a root whose private key was exposed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any

import click

from goatherd.cli.main import (
    EXIT_FINDINGS,
    App,
    adoption_option,
    allow_lagging_option,
    audit_log,
    audit_option,
    command,
    lifetime_option,
)
from goatherd.cli.process import run_interruptible
from goatherd.cli.text.progress import show_delay
from goatherd.cli.text.revocation import (
    revocation_data,
    revocation_event,
    revocation_lines,
    revocation_plan_lines,
)
from goatherd.cli.text.rotation import warn_of_short_life
from goatherd.config.build import build_policy, listed_nodes, open_nodes, open_store
from goatherd.operations import revoke as operations
from goatherd.operations.runs import notify_each
from goatherd.revocation.report import RevocationReport
from goatherd.revocation.revoker import NEW


@command(
    example="goatherd revoke h4x1c9m2k7p0q5r8s3t6u1vw --plan\n"
    'goatherd revoke h4x1c9m2k7p0q5r8s3t6u1vw --reason "laptop stolen" --node http://10.0.0.1:8080 --yes',
    nodes=True,
)
@click.argument("root")
@click.option(
    "--reason", metavar="TEXT", help="Reason, recorded in the identity's history; required unless --plan is given."
)
@click.option(
    "--plan",
    "--dry-run",
    is_flag=True,
    help="Show what would be done: the steps, and the sessions that they change; write nothing.",
)
@click.option(
    "--successor",
    default=NEW,
    metavar="new|next|ID",
    help="Root that becomes the current root: `new`, `next`, or the ID of a previous root (default: new).",
)
@click.option(
    "--except",
    "leave_out",
    multiple=True,
    metavar="ID",
    help="Do not reissue the user session with this id, so that servers reject it. Can be given more than once.",
)
@click.option(
    "--destroy",
    is_flag=True,
    help="Destroy the stored versions that hold the revoked private key, without a grace period.",
)
@click.option(
    "--reopen",
    is_flag=True,
    help="Make the list of the root's valid (frozen) commits again, to add commits of servers that were unreachable.",
)
@click.option(
    "--distrust",
    multiple=True,
    metavar="URL",
    help="URL of a compromised server. Its list of commits and its report on the store's history are ignored. Can be"
    " given more than once.",
)
@click.option(
    "--trust-alone",
    multiple=True,
    metavar="URL",
    help="URL of a server that is certainly not compromised: the root's commits that it holds stay valid even if no"
    " other server holds them. Can be given more than once.",
)
@lifetime_option
@adoption_option
@click.option(
    "--unsafe-without-nodes",
    is_flag=True,
    help="Allow a run without a list of servers: it only writes the identity, records no valid commits of the root and"
    " reissues no sessions.",
)
@allow_lagging_option
@audit_option
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
def revoke(
    app: App,
    root: str,
    reason: str | None,
    plan: bool,
    successor: str,
    leave_out: tuple[str, ...],
    destroy: bool,
    reopen: bool,
    distrust: tuple[str, ...],
    trust_alone: tuple[str, ...],
    unsafe_without_nodes: bool,
    yes: bool,
) -> int:
    """Revoke a root whose private key was exposed.

    ROOT is the root's id, a unique beginning of it, `current` or `previous`. If it is the current root, another root
    replaces it. From then on, every Goatherd server rejects new commits that the revoked root signs, whatever their
    date. Commits that the servers held before stay valid, and every user session that the root introduced is reissued.

    Do not revoke a root that has only expired: `goatherd rotate --replace-expired` replaces it.

    To resume a revocation, or after unreachable servers have returned, run the same command again with the root's id.
    The exit code is 11 while the revocation is incomplete.
    """
    if not plan and not reason:
        raise click.UsageError("--reason TEXT is missing; it is recorded in the identity's history")
    if not plan and not yes:
        root = _confirm_revocation(app, root, unsafe_without_nodes=unsafe_without_nodes)
    if successor == NEW and not plan:
        warn_of_short_life(app.out, app.options.rotation_lifetime)
    work: partial[Coroutine[Any, Any, RevocationReport]] = partial(
        operations.plan_revocation,
        root_id=root,
        successor=successor,
        leave_out=leave_out,
        distrust=distrust,
        trust_alone=trust_alone,
        unsafe_without_nodes=unsafe_without_nodes,
    )
    if not plan:
        work = partial(
            operations.revoke,
            **work.keywords,
            reason=reason or "",
            confirmed=True,
            destroy=destroy,
            reopen=reopen,
            audit_log=audit_log(app),
        )
    note = "" if plan else "run the same command again to resume"
    report = run_interruptible(app, _run_revocation(app, work), note=note)
    lines = revocation_plan_lines(report) if plan else revocation_lines(report)
    app.out.result({"plan": plan, **revocation_data(report)}, lines)
    return 0 if plan or report.is_complete else EXIT_FINDINGS


def _confirm_revocation(app: App, named: str, *, unsafe_without_nodes: bool) -> str:
    """Ask for confirmation, and return the id of the root that the operator has confirmed."""
    # Without servers, the revocation is refused before the question.
    operations.check_revocation_servers(listed_nodes(app.options), unsafe_without_nodes=unsafe_without_nodes)
    if not app.out.may_ask:
        raise click.UsageError("nothing can be confirmed without a terminal; give --yes to revoke the root")
    root_id = asyncio.run(_resolve_root(app, named))
    click.confirm(f"Revoke root {root_id}? This cannot be undone.", abort=True, err=True)
    return root_id


async def _resolve_root(app: App, named: str) -> str:
    async with open_store(app.options, is_reader=True) as store:
        return await operations.choose_revoked_root(store, named)


async def _run_revocation(app: App, work: Callable[..., Awaitable[RevocationReport]]) -> RevocationReport:
    options = app.options
    async with (
        open_store(options) as store,
        open_nodes(options, timeout=operations.REQUEST_TIMEOUT) as nodes,
    ):
        policy = build_policy(options)
        show = notify_each(partial(show_delay, app.out), partial(revocation_event, app.out))
        return await work(store, nodes, policy, on_event=show)
