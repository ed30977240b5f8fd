"""The commands that look at or change a running cluster: status, doctor, rotate, retire."""

from __future__ import annotations

import asyncio
import getpass
import os
import socket
from contextlib import AsyncExitStack
from typing import Any

import click

from goatherd.cli.checks import NodeState, examine, look
from goatherd.cli.commands_store import describe
from goatherd.cli.main import EXIT_FINDINGS, App, command
from goatherd.cli.progress import Progress
from goatherd.cli.store import open_store
from goatherd.cli.store_checks import FAILED, SKIPPED, WARNING
from goatherd.client import NodeClient
from goatherd.clock import SystemClock, iso
from goatherd.config import Options, format_duration
from goatherd.errors import ConfigurationError, IllegalStepError
from goatherd.identity.redaction import notes, redacted
from goatherd.rotation.events import Report
from goatherd.rotation.machine import Outcome, Phase, Policy
from goatherd.rotation.plan import Plan
from goatherd.rotation.rotator import Rotator
from goatherd.settings.base import Origin


@command(example="goatherd status --provider file:///srv/keys/root --node http://10.0.0.1:8080", nodes=True)
def status(app: App) -> int:
    """Show the store, the identity, and what every node does.

    Ends with 11 when a node does not answer, does not trust the current root, or signs with another one.
    """
    return asyncio.run(_status(app))


async def _status(app: App) -> int:
    async with open_store(app.options) as store:
        version, document = await store.read()
        labels = {label: one.id for one in await store.versions() for label in one.labels}
    nodes = await look(app.options, document)
    now_ms = SystemClock().now_ms()
    remarks = notes(document, now_ms)
    data = {
        "store": store.name,
        "storeVersion": version.id,
        "labels": labels,
        "identity": redacted(document),
        "notes": remarks,
        "nodes": [node.to_json() for node in nodes],
    }
    lines = describe(app.out, store, version.id, document)
    lines.insert(1, "labels      " + ", ".join(f"{label} -> {labels[label]}" for label in sorted(labels)))
    if nodes:
        heads = ("NODE", "SIGNS WITH", "TRUSTS CURRENT", "GENERATION", "PHASE", "VIEW AGE", "")
        lines += ["", *app.out.table(heads, [_node_row(node) for node in nodes])]
    lines += [f"note: {remark}" for remark in remarks]
    app.out.result(data, lines)
    return 0 if all(node.is_in_step(document.current.id) for node in nodes) else EXIT_FINDINGS


def _node_row(node: NodeState) -> tuple[str, ...]:
    trusts = {True: "yes", False: "NO", None: "?"}[node.trusts_current]
    generation = "?" if node.generation is None else str(node.generation)
    age = "?" if node.view_age is None else f"{node.view_age.total_seconds():.1f} s"
    if node.is_unmodified:
        generation, age = "-", "-"
    problem = node.problem or ("an unmodified GoatDB server" if node.is_unmodified else "")
    if node.source == Origin.LAST_KNOWN_GOOD:
        problem = "; ".join(filter(None, ("LAST KNOWN GOOD: cannot reach the store", problem)))
    elif node.is_degraded and not problem:
        problem = "degraded: cannot use what the store holds"
    return (node.url, node.signs_with or "?", trusts, generation, node.phase or "?", age, problem)


@command(example="goatherd doctor --provider file:///srv/keys/root --node http://10.0.0.1:8080", nodes=True)
def doctor(app: App) -> int:
    """Check the store, the identity and every node.

    Of the store: can it be read, how fast, what may these credentials do (where the platform tells without its being
    done), where do the labels lead, is its clock ours. Of the identity: is it whole, how long is it valid, is somebody
    driving the rotation. Each finding says what to do.

    Asks each node what an attacker would ask, POST /auth/session, and looks for a private key in the answer. (That
    makes one anonymous session on each.) Ends with 11 when a check has failed; a warning does not count.
    """
    checks = asyncio.run(examine(app.options))
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


@command(
    example="goatherd rotate --plan\n"
    "goatherd rotate --provider file:///srv/keys/root --node http://10.0.0.1:8080 --node http://10.0.0.2:8080\n"
    "goatherd rotate --rollback",
    nodes=True,
)
@click.option("--plan", is_flag=True, help="Say what would happen; write nothing.")
@click.option("--resume", is_flag=True, help="Carry on the rotation under way, whoever began it.")
@click.option("--rollback", is_flag=True, help="Leave the rotation under way; the earlier root signs again.")
@click.option("--cancel", is_flag=True, help="As --rollback, but only where the next root has not signed yet.")
@click.option(
    "--to",
    "to_phase",
    type=click.Choice(["prepared", "published", "activated", "verified"]),
    help="Stop when this phase is reached; --resume carries on.",
)
@click.option("--reason", metavar="TEXT", help="Why, for the document's history; with --rollback or --cancel.")
@click.option("--lifetime", "rotation_lifetime", metavar="TIME", help="How long the new root is valid.")
@click.option("--adoption", "rotation_adoption", metavar="TIME", help="Patience with the nodes, for each phase.")
@click.option("--unsafe-without-nodes", is_flag=True, help="Rotate though no node is listed: nobody is waited for.")
def rotate(
    app: App,
    plan: bool,
    resume: bool,
    rollback: bool,
    cancel: bool,
    to_phase: str | None,
    reason: str | None,
    unsafe_without_nodes: bool,
) -> int:
    """Replace the root key while the cluster serves.

    Trust in the next root spreads to every node first; signing moves when all of them trust it. A node that does not
    follow in time makes the rotation cancel itself, or roll back. List every server that holds this identity: one that
    is missing is not waited for.
    """
    if sum((plan, resume, rollback, cancel)) > 1:
        raise click.UsageError("--plan, --resume, --rollback and --cancel exclude one another")
    return asyncio.run(
        _rotate(
            app,
            what="plan" if plan else "resume" if resume else "rollback" if rollback else "cancel" if cancel else "",
            to_phase=Phase(to_phase) if to_phase else None,
            reason=reason or "asked for by the operator",
            unsafe_without_nodes=unsafe_without_nodes,
        )
    )


def policy_of(options: Options) -> Policy:
    """Return the policy that the options describe."""
    return Policy(
        adoption=options.rotation_adoption,
        settle=options.rotation_settle,
        node_timeout=options.timeout,
        poll_max=options.rotation_poll,
        poll_min=min(Policy().poll_min, options.rotation_poll),
        lifetime=options.rotation_lifetime,
        grace=options.rotation_grace,
    )


async def _rotate(app: App, *, what: str, to_phase: Phase | None, reason: str, unsafe_without_nodes: bool) -> int:
    options = app.options
    # SECURITY: a rotation that waits for nobody breaks hazard 1 (tests/unit/cli/test_rotate.py).
    if not options.nodes and not unsafe_without_nodes and what in ("", "resume"):
        raise ConfigurationError(
            "no node is listed, so the rotation would wait for nobody",
            hint="Give --node URL for each server, set GOATHERD_NODES, or write `nodes = [...]` into goatherd.toml.",
        )
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(open_store(options))
        if what == "cancel":
            _, document = await store.read()
            if document.phase in ("activated", "verified"):
                raise IllegalStepError(
                    f"the rotation is {document.phase}: the next root signs already",
                    hint="`goatherd rotate --rollback` makes the earlier root sign again and keeps trusting both.",
                )
        nodes = [await stack.enter_async_context(NodeClient(url, timeout=options.timeout)) for url in options.nodes]
        progress = stack.enter_context(Progress(app.out))
        rotator = Rotator(
            store.provider,
            store.secret_id,
            nodes,
            org=store.org,
            policy=policy_of(options),
            started_by=_who(),
            on_event=progress.told,
        )
        if what == "plan":
            _show_plan(app, await rotator.plan())
            return 0
        if what == "resume":
            report = await rotator.resume(to_phase=to_phase)
        elif what in ("rollback", "cancel"):
            report = await rotator.abandon(reason)
        else:
            report = await rotator.rotate(to_phase=to_phase)
    app.out.result(report_data(report), _report_lines(report))
    return 0


def _who() -> str:
    """Return who runs this, for people."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}:{os.getpid()}"


def report_data(report: Report) -> dict[str, Any]:
    """Return a rotation's report as data: ids and times."""
    return {
        "outcome": report.outcome.value,
        "rotation": report.rotation_id,
        "from": report.from_id,
        "to": report.to_id,
        "current": report.current_id,
        "phase": report.phase.value,
        "generation": report.generation,
        "reason": report.reason,
        "behind": list(report.behind),
        "destroyed": list(report.destroyed),
        "givenUp": list(report.given_up),
        "began": iso(report.began_ms),
        "ended": iso(report.ended_ms),
        "seconds": round((report.ended_ms - report.began_ms) / 1000, 3),
    }


def _report_lines(report: Report) -> list[str]:
    took = f"{(report.ended_ms - report.began_ms) / 1000:.1f} s"
    signs = f"in place of {report.from_id}" if report.current_id == report.to_id else f"next is {report.to_id}"
    lines = {
        Outcome.ROTATED: [f"rotated: {report.current_id} signs in place of {report.from_id}, after {took}"],
        Outcome.ABANDONED: [f"abandoned: {report.current_id} signs; both roots stay trusted ({report.reason})"],
        Outcome.REACHED: [
            f"reached {report.phase.value} after {took}: {report.current_id} signs, {signs}",
            "`goatherd rotate --resume` carries on, `--rollback` goes back",
        ],
        Outcome.NOTHING: [f"nothing to do: {report.current_id} signs, no rotation is under way"],
    }[report.outcome]
    lines += [f"not seen to sign with it: {url}" for url in report.behind]
    return lines


def _show_plan(app: App, plan: Plan) -> None:
    data = {
        "phase": plan.phase.value,
        "current": plan.current_id,
        "resumes": plan.resumes,
        "nodes": list(plan.nodes),
        "obstacles": list(plan.obstacles),
        "steps": [
            {
                "step": step.step.value,
                "leadsTo": step.leads_to.value,
                "effect": step.effect,
                "gate": list(step.gate),
                "patience": None if step.patience is None else format_duration(step.patience),
                "otherwise": None if step.otherwise is None else step.otherwise.value,
                "storeWrites": step.store_writes,
            }
            for step in plan.steps
        ],
    }
    begins = f"carries on rotation {plan.resumes}" if plan.resumes else "a new rotation"
    lines = [f"{begins}: {plan.current_id} signs now, phase {plan.phase.value}, {len(plan.nodes)} nodes", ""]
    for number, step in enumerate(plan.steps, 1):
        lines.append(f"{number}. {step.step.value} -> {step.leads_to.value}: {step.effect}")
        lines += [f"   first, every node: {gate}" for gate in step.gate]
        if step.patience is not None and step.otherwise is not None:
            lines.append(f"   waits {format_duration(step.patience)} at most, else: {step.otherwise.value}")
    lines += ["", *(f"obstacle: {obstacle}" for obstacle in plan.obstacles)]
    lines += [] if plan.obstacles else ["nothing is known that would stand in its way"]
    app.out.result(data, lines)


@command(example="goatherd retire --provider file:///srv/keys/root")
@click.option("--grace", "rotation_grace", metavar="TIME", help="How old a rotation must be, such as 30d.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def retire(app: App, yes: bool) -> int:
    """Destroy old private keys whose time to go back is over.

    Stored versions whose private keys have not signed for longer than the grace period are destroyed for good. The
    roots stay trusted, with their public keys. Running it again is harmless.
    """
    return asyncio.run(_retire(app, yes=yes))


async def _retire(app: App, *, yes: bool) -> int:
    grace = format_duration(app.options.rotation_grace)
    if not yes:
        if not app.out.is_live:
            raise click.UsageError("nobody can be asked here: say --yes to destroy old private keys for good")
        click.confirm(f"Destroy the private keys of roots replaced over {grace} ago, for good?", abort=True, err=True)
    async with open_store(app.options) as store:
        rotator = Rotator(
            store.provider, store.secret_id, [], org=store.org, policy=policy_of(app.options), started_by=_who()
        )
        report = await rotator.retire()
    found = list(report.destroyed)
    lines = [f"destroyed version {version}" for version in found]
    lines += [f"gave up version {version}: this store does not destroy at once" for version in report.given_up]
    app.out.result(report_data(report), lines or [f"nothing to destroy: no replaced root is older than {grace}"])
    return 0
