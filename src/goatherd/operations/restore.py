"""Make a previous root the current root again, after a rotation that has completed: ``goatherd restore``.

For a rotation that is still in progress use `goatherd.operations.rotate.roll_back` instead.
"""

from __future__ import annotations

from typing import Unpack

from goatherd.operations.identity_store import Store
from goatherd.operations.rotate import Nodes, RotationOptions, describe_request, run_rotation
from goatherd.rotation.events import Report
from goatherd.rotation.machine import Phase
from goatherd.rotation.policy import Policy


async def restore(
    store: Store,
    nodes: Nodes,
    policy: Policy | None = None,
    *,
    root_id: str | None = None,
    to_phase: Phase | None = None,
    unsafe_without_nodes: bool = False,
    **options: Unpack[RotationOptions],
) -> Report:
    """Make a previous root sign again, if the store still holds its private key. The current root stays trusted.

    Args:
        root_id: The previous root; None for the last root before the current one.
        store, nodes, policy, to_phase, unsafe_without_nodes, options: As for `goatherd.operations.rotate.rotate`.

    Raises:
        ConfigurationError: No server is listed.
        NotRestorableError: The root is unknown, is the current root, was revoked, expires too soon, or no readable
            stored version holds its private key. Nothing was written.
        AuditError, RotationError, ProviderError, IdentityError: As `goatherd.operations.rotate.rotate`.
    """
    return await run_rotation(
        lambda rotator: rotator.restore(root_id, to_phase=to_phase),
        store,
        nodes,
        policy,
        {**describe_request("restore", policy, to_phase=to_phase), "root": root_id},
        command="restore",
        unsafe_without_nodes=unsafe_without_nodes,
        **options,
    )
