"""`goatherd rotate --replace-expired`: put another root in the place of an expired one, and print how it ended."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Any

from goatherd.cli.auditing import audited
from goatherd.cli.main import EXIT_FINDINGS, App
from goatherd.cluster.discovery import NodeDirectory
from goatherd.config.build import open_store
from goatherd.errors import ConfigurationError
from goatherd.identity.key_age import REPLACE_EXPIRED
from goatherd.rotation.events import Event, ExpiredRootReplaced
from goatherd.rotation.policy import Policy
from goatherd.rotation.replacement import NodeStanding, ReplacementReport, Replacer
from goatherd.times import iso


async def replace_expired(app: App, policy: Policy, *, unsafe_without_nodes: bool) -> int:
    """Replace an expired root, print the result, and return the exit code.

    Args:
        app: The options and the writer.
        policy: How long to wait, and how long the new root lives.
        unsafe_without_nodes: Whether no server need be listed.

    Raises:
        ConfigurationError: No server is listed, and that was not asked for.
    """
    options = app.options
    addresses = tuple(dict.fromkeys((*options.nodes, *options.rotation_bare)))
    if not addresses and not unsafe_without_nodes:
        raise ConfigurationError(
            "no server is listed, so the new root could not be introduced to clients",
            hint="Give --node URL for each server, set GOATHERD_NODES, or write `nodes = [...]` into goatherd.toml.",
        )
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(open_store(options))
        directory = await stack.enter_async_context(NodeDirectory(addresses, timeout=options.timeout, org=options.org))
        journal = await stack.enter_async_context(audited(app, store, "rotate", {"what": "replace-expired"}))

        def told(event: Event) -> None:
            journal.told(event)
            if isinstance(event, ExpiredRootReplaced):
                data = {"from": event.from_id, "to": event.to_id, "at": iso(event.at_ms)}
                text = f"root {event.to_id} signs in place of {event.from_id}, generation {event.generation}"
                app.out.event("replaced", data, text)

        replacer = Replacer(
            store.provider,
            store.secret_id,
            directory if directory.is_discovered else await directory(),
            org=store.org,
            policy=policy,
            on_event=told,
        )
        report = await replacer.replace()
    app.out.result(_data(report), _lines(report))
    return 0 if report.is_complete else EXIT_FINDINGS


def _data(report: ReplacementReport) -> dict[str, Any]:
    return {
        "expired": report.expired_id,
        "current": report.current_id,
        "generation": report.generation,
        "written": report.is_written,
        "complete": report.is_complete,
        "introducible": report.has_key,
        "nodes": [_node_data(report, node) for node in report.nodes],
    }


def _node_data(report: ReplacementReport, node: NodeStanding) -> Mapping[str, Any]:
    return {
        "url": node.url,
        "followed": report.has_followed(node),
        "unmodified": node.is_unmodified,
        "trustsCurrent": node.trusts_current,
        "signsWith": node.signs_with,
        "introduction": node.holds_introduction,
        "crossSignature": node.holds_cross_signature,
        "problem": node.problem,
    }


def _lines(report: ReplacementReport) -> list[str]:
    when = "replaced" if report.is_written else "an earlier run has replaced"
    lines = [f"{when} expired root {report.expired_id}: root {report.current_id} signs in its place"]
    if not report.has_key:
        lines.append(
            "the store no longer holds the expired root's private key: existing clients cannot learn of the new root"
            " until they are set up again"
        )
    lines += [f"{node.url}: {_standing(report, node)}" for node in report.nodes]
    if not report.nodes:
        lines.append(
            f"no server is listed, so no client learns of the new root: run `{REPLACE_EXPIRED}` again with --node URL"
            " for each server"
        )
    elif report.is_complete:
        lines.append("finished: what the expired root has signed stays valid; keep its clients as they are")
    else:
        lines.append(f"NOT FINISHED: start or restart the servers named above, and run `{REPLACE_EXPIRED}` again")
    return lines


def _standing(report: ReplacementReport, node: NodeStanding) -> str:
    if report.has_followed(node):
        return "signs with the new root"
    if node.trusts_current is None:
        return f"did not answer{f': {node.problem}' if node.problem else ''}"
    if node.signs_with not in (None, report.current_id):
        return f"still signs with root {node.signs_with}; {_remedy(node)}"
    if node.trusts_current is False:
        return f"does not trust the new root yet; {_remedy(node)}"
    if node.problem is not None:
        return node.problem
    return "has not stored the introductions yet"


def _remedy(node: NodeStanding) -> str:
    if node.is_unmodified:
        return (
            "an unmodified GoatDB server: `goatherd run` restarts it; where nobody does, stop it, run `goatherd fetch`"
            " there, and start it"
        )
    return "can it read the store? Its log says"
