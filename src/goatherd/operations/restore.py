"""Make a previous root the current root again, after a rotation that has completed: ``goatherd restore``.

For a rotation that is still in progress use `goatherd.operations.rotate.roll_back` instead.
"""

from __future__ import annotations

from collections.abc import Sequence

from goatherd.clock import Clock
from goatherd.operations.identity_store import Store
from goatherd.operations.rotate import (
    ASKED,
    Nodes,
    distrusted,
    resolve_nodes,
    run_rotator,
)
from goatherd.operations.runs import AuditLog, EventListener
from goatherd.rotation.events import Report
from goatherd.rotation.health_checks import HealthSignal
from goatherd.rotation.machine import Phase
from goatherd.rotation.policy import Policy, check_rotation_servers


async def restore(
    store: Store,
    nodes: Nodes,
    policy: Policy | None = None,
    *,
    root_id: str | None = None,
    to_phase: Phase | None = None,
    unsafe_without_nodes: bool = False,
    health: Sequence[HealthSignal] = (),
    audit_log: AuditLog | None = None,
    on_event: EventListener | None = None,
    clock: Clock | None = None,
) -> Report:
    """Make a previous root sign again, if the store still holds its private key. The current root stays trusted.

    Args:
        root_id: The previous root; None for the last root before the current one.
        store, nodes, policy, to_phase, unsafe_without_nodes, health, audit_log, on_event, clock: As for
            `goatherd.operations.rotate.rotate`.

    Raises:
        ConfigurationError: No server is listed.
        NotRestorableError: The root is unknown, is the current root, was revoked, expires too soon, or no readable
            stored version holds its private key. Nothing was written.
        AuditError, RotationError, ProviderError, IdentityError: As `goatherd.operations.rotate.rotate`.
    """
    servers = await resolve_nodes(nodes)
    check_rotation_servers(servers, unsafe_without_nodes=unsafe_without_nodes)
    asked = {"what": "restore", "reason": ASKED, "toPhase": to_phase, **distrusted(policy), "root": root_id}
    return await run_rotator(
        lambda rotator: rotator.restore(root_id, to_phase=to_phase),
        store,
        servers,
        policy,
        unsafe_without_nodes=unsafe_without_nodes,
        asked=asked,
        command="restore",
        health=health,
        audit_log=audit_log,
        on_event=on_event,
        clock=clock,
    )
