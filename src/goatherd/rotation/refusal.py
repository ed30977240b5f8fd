"""The error for a run that may not do what was asked. Pure; `goatherd.rotation.machine` decides that, and why."""

from __future__ import annotations

from goatherd.errors import (
    ConfigurationError,
    DegradedError,
    GoatherdError,
    IllegalStepError,
    LifetimeError,
    ObstructedError,
    RotationBusyError,
    UnhealthyError,
)
from goatherd.rotation.action import Busy, Illegal, Obstacle, ObstacleKind, Refuse
from goatherd.rotation.clocks import wrong_clock
from goatherd.rotation.store_history import KINDS, went_back
from goatherd.times import iso


def refusal(action: Busy | Illegal | Refuse) -> GoatherdError:
    """Return the error that says who is rotating, what stands in the way, or why the step cannot follow."""
    if isinstance(action, Refuse):
        return _obstructed(action.obstacles)
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


def _obstructed(obstacles: tuple[Obstacle, ...]) -> GoatherdError:
    if all(one.kind in KINDS for one in obstacles):
        return went_back(obstacles)
    message = f"the rotation was not begun: {'; '.join(one.text for one in obstacles)}"
    hint = " ".join(dict.fromkeys(one.hint for one in obstacles if one.hint)) or None
    kinds = {one.kind for one in obstacles}
    if ObstacleKind.OWN_CLOCK in kinds:
        return wrong_clock(obstacles)
    if ObstacleKind.EXPIRED in kinds:
        return IllegalStepError(message, hint=hint)
    if kinds == {ObstacleKind.UNHEALTHY}:
        return UnhealthyError(message, hint=hint)
    if kinds == {ObstacleKind.WITHOUT_STORE}:
        return DegradedError(message, hint=hint)
    if kinds == {ObstacleKind.QUORUM}:
        return ConfigurationError(message, hint=hint)
    if kinds == {ObstacleKind.LIFETIME}:
        return LifetimeError(message, hint=hint)
    return ObstructedError(message, obstacles=obstacles, hint=hint)
