"""Describe everything that is wrong with a server, for the table of `goatherd status` and for the page."""

from __future__ import annotations

import re
from collections.abc import Set
from typing import Final

from goatherd.cluster.node import NodeView
from goatherd.settings.base import Origin

_REQUEST: Final = re.compile(r"[A-Z]+ https?://\S+: ")
"""What an error about a request to a server begins with."""


def describe_problems(node: NodeView, root_ids: Set[str]) -> str:
    """Return everything that is wrong with a server, and what its agent does with it; empty if nothing is wrong.

    Args:
        node: The server.
        root_ids: The roots that the identity in the store lists.
    """
    report, problem = node.report, node.find_problem() or ""
    found = []
    if node.is_of_another_identity(root_ids):
        found.append(f"belongs to another identity: it trusts {', '.join((node.roots or ())[:5])}")
    if report.source == Origin.LAST_KNOWN_GOOD:
        found.append("cannot reach the store, and uses its last known good identity")
    elif report.is_degraded and not problem:
        found.append("cannot use the identity in the store")
    if report.stores_not_followed:
        found.append(f"does not follow the store of region {', '.join(report.stores_not_followed)}")
    if report.has_key_on_disk:
        found.append("holds a private key in settings.json: stop it, and run goatherd migrate DIR --remove-key")
    if report.data is not None:
        found += [text for text in (report.data.unusable, report.data.cannot_write) if text is not None]
    if report.agent is not None and report.agent.door is not None and report.agent.door.is_exposed:
        found.append("can be reached without its door")
    if not node.reachable and (request := _REQUEST.match(problem)):
        problem = f"did not answer: {problem[request.end() :]}"
    return "; ".join([*found, *(text for text in (node.activity, problem) if text)])
