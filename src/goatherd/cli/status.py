"""`goatherd status`: show the store, the identity, and the state of every server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from goatherd.cli.main import EXIT_FINDINGS, App, command
from goatherd.cli.text.identity import describe
from goatherd.cli.text.key_inventory import inventory_data, inventory_lines
from goatherd.cli.text.rotation import (
    ending_data,
    ending_line,
    last_ending,
    progress_data,
    progress_lines,
)
from goatherd.clock import SystemClock
from goatherd.cluster.discovery import NodeDirectory
from goatherd.cluster.server_answers import AgentReport
from goatherd.config.build import build_health_signals, build_policy, open_store
from goatherd.config.options import Options
from goatherd.errors import DiscoveryError
from goatherd.identity.document import IdentityDocument
from goatherd.identity.redaction import notes, redacted
from goatherd.key_inventory import take_key_inventory
from goatherd.operations.status import NodeState, clock_notes, read_server_states
from goatherd.providers.values import shown_label
from goatherd.rotation.action import Obstacle, ObstacleKind
from goatherd.rotation.obstacles import Survey
from goatherd.rotation.rotator import Rotator
from goatherd.rotation.store_history import KINDS
from goatherd.settings.base import Origin


@command(example="goatherd status --provider file:///srv/keys/root --node http://10.0.0.1:8080", nodes=True)
def status(app: App) -> int:
    """Show the store, the identity, and the state of every server.

    The report covers every stored version: the private keys that it holds, and since when each key could be destroyed.
    It also states how the last rotation ended, and why. Credentials that can read only the current version do not allow
    this; the report then says so.

    The exit code is 11 if a server does not answer, does not trust the current root, or signs with another root.
    """
    return asyncio.run(_status(app))


async def _status(app: App) -> int:
    async with open_store(app.options) as store:
        version, document = await store.read()
        labels = {label: one.id for one in await store.versions() for label in one.labels}
        keys = await take_key_inventory(store.provider, store.secret_id, document, app.options.rotation_grace)
        store_ahead_ms = store.provider.store_clock.ahead_ms(SystemClock().now_ms())
    nodes = await read_server_states(app.options.nodes, document, timeout=app.options.timeout, org=app.options.org)
    now_ms = SystemClock().now_ms()
    remarks = [*notes(document, now_ms), *clock_notes(document, store_ahead_ms, nodes, now_ms)]
    survey = await survey_now(app.options) if nodes else Survey(obstacles=(), remarks=())
    obstacles, progress = survey.obstacles, survey.progress
    ending = last_ending(document)
    data = {
        "store": store.name,
        "storeVersion": version.id,
        "labels": labels,
        "identity": redacted(document),
        "rotation": progress_data(progress),
        "lastRotation": ending_data(ending),
        "privateKeys": inventory_data(keys, now_ms),
        "notes": remarks,
        "obstacles": [one.text for one in obstacles],
        "storeClockAheadMs": store_ahead_ms,
        "nodes": [node.to_json() for node in nodes],
    }
    lines = describe(app.out, store, version.id, document)
    lines.insert(1, "labels      " + ", ".join(f"{shown_label(label)} -> {labels[label]}" for label in sorted(labels)))
    if ending is not None:
        lines.insert(2, ending_line(ending))
    if progress is not None:
        lines += ["", *progress_lines(progress)]
    lines += ["", *inventory_lines(keys, app.out, now_ms)]
    if nodes:
        heads = ("NODE", "SIGNS WITH", "TRUSTS CURRENT", "GENERATION", "PHASE", "VIEW AGE", "")
        lines += ["", *app.out.table(heads, [_node_row(node, document) for node in nodes])]
    for one in obstacles:
        if one.kind in KINDS:
            lines.append(f"THE STORE WENT BACK: {one.text}")
        else:
            lines.append(f"obstacle to a rotation: {one.text}")
    lines += dict.fromkeys(one.hint for one in obstacles if one.kind in KINDS)
    lines += [f"note: {remark}" for remark in remarks]
    app.out.result(data, lines)
    return 0 if all(node.is_in_step(document.current.id) for node in nodes) else EXIT_FINDINGS


def _node_row(node: NodeState, document: IdentityDocument) -> tuple[str, ...]:
    trusts = {True: "yes", False: "NO", None: "?"}[node.trusts_current]
    generation = "?" if node.generation is None else str(node.generation)
    age = "?" if node.view_age is None else f"{node.view_age.total_seconds():.1f} s"
    if node.is_unmodified and node.agent is None:
        generation, age = "-", "-"
    kind = "an unmodified GoatDB server" if node.is_unmodified else ""
    if node.agent is not None:
        kind = f"{kind}{':' if node.agent.activity else ''} {_describe_agent(node.agent)}"
    problem = node.problem or kind
    if node.is_of_another_identity(document):
        problem = "; ".join(filter(None, (f"another identity: trusts {', '.join(node.roots[:5])}", problem)))
    if node.source == Origin.LAST_KNOWN_GOOD:
        problem = "; ".join(filter(None, ("LAST KNOWN GOOD: cannot reach the store", problem)))
    elif node.is_degraded and not problem:
        problem = "degraded: cannot use what the store holds"
    if node.data is not None and node.data.unusable is not None:
        problem = "; ".join(filter(None, (problem, node.data.unusable)))
    if node.data is not None and node.data.cannot_write is not None:
        problem = "; ".join(filter(None, (problem, node.data.cannot_write)))
    return (node.url, node.signs_with or "?", trusts, generation, node.phase or "?", age, problem)


def _describe_agent(agent: AgentReport) -> str:
    """Return what an agent reports of its server, as a phrase."""
    if agent.activity is not None:
        return agent.activity
    return "under an agent" if not agent.restarts else f"under an agent, restarts: {agent.restarts}"


async def survey_now(options: Options) -> Survey:
    """Return what stands in the way of a rotation, without the operator's health checks, which are not run."""
    try:
        async with watching_rotator(options, has_health=False) as rotator:
            return await rotator.survey(is_probing=False, has_remarks=False)
    except DiscoveryError as error:
        unknown = Obstacle(kind=ObstacleKind.NODES_UNKNOWN, text=str(error), hint=error.hint)
        return Survey(obstacles=(unknown,), remarks=())


@asynccontextmanager
async def watching_rotator(options: Options, *, has_health: bool = True) -> AsyncIterator[Rotator]:
    """Give a rotator that is only to look.

    Args:
        options: The options.
        has_health: Whether the operator's health checks are asked.
    """
    addresses = tuple(dict.fromkeys((*options.nodes, *options.rotation_bare)))
    async with (
        open_store(options) as store,
        NodeDirectory(addresses, timeout=options.timeout, org=options.org) as directory,
    ):
        yield Rotator(
            store.provider,
            store.secret_id,
            directory if directory.is_discovered else await directory(),
            org=store.org,
            policy=build_policy(options, is_discovered=directory.is_discovered),
            health=build_health_signals(options) if has_health else (),
        )
