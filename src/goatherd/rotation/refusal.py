"""The error for a run that may not do what was asked. Pure; `goatherd.rotation.machine` decides that, and why."""

from __future__ import annotations

from goatherd.clock import iso
from goatherd.errors import IllegalStepError, RotationBusyError
from goatherd.rotation.action import Busy, Illegal


def refusal(action: Busy | Illegal) -> RotationBusyError | IllegalStepError:
    """Return the error that says who is at it, or why it cannot follow."""
    if isinstance(action, Illegal):
        return IllegalStepError(action.why, hint=action.hint)
    if action.rotation_id is None:
        return RotationBusyError(
            "somebody else has just rotated this identity", hint="Look at `goatherd status` before rotating again."
        )
    who = action.started_by or "somebody who gave no name"
    since = f" since {iso(action.phase_since_ms)}" if action.phase_since_ms else ""
    return RotationBusyError(
        f"rotation {action.rotation_id} by {who}, begun at {action.started_at}, is in phase {action.phase}{since}"
    )
