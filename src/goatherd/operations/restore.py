"""Make a previous root the current root again, after a rotation that has completed: ``goatherd restore``.

For a rotation that is still in progress use `goatherd.operations.rotate.roll_back` instead.
"""

from __future__ import annotations

from typing import Unpack

from goatherd.operations.opening import Servers, StoreName, parse_phase
from goatherd.operations.rotate import RotationOptions, describe_request, run_rotation
from goatherd.rotation.events import Report
from goatherd.rotation.machine import Phase
from goatherd.rotation.policy import Policy


async def restore(
    store: StoreName,
    nodes: Servers = (),
    policy: Policy | None = None,
    *,
    org: str | None = None,
    root_id: str | None = None,
    to_phase: Phase | str | None = None,
    unsafe_without_nodes: bool = False,
    **options: Unpack[RotationOptions],
) -> Report:
    """Make a previous root the current root again, after a finished rotation. The current root stays trusted.

    Args:
        store, nodes, policy, org, to_phase, unsafe_without_nodes, options: As for `goatherd.rotate`.
        root_id: The previous root: its id, or a unique beginning of the id; None for the last root before the current
            one.

    Raises:
        NotRestorableError: The root is unknown, is the current root, was revoked, expires too soon, or no readable
            stored version holds its private key. Nothing was written.
        RotationError, ProviderError, IdentityError: As `rotate`.
    """
    stop_at = parse_phase(to_phase)
    return await run_rotation(
        lambda rotator: rotator.restore(root_id, to_phase=stop_at),
        store,
        nodes,
        policy,
        org,
        {**describe_request("restore", to_phase=stop_at), "root": root_id},
        command="restore",
        unsafe_without_nodes=unsafe_without_nodes,
        **options,
    )
