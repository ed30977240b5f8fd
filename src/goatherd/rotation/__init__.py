"""Replacing the root key of a cluster while it serves.

- `machine`: phases, legal steps, gates, policy, `decide`. Pure.
- `plan`: what a rotation would do, for people. Pure.
- `vouching`: the commits by which one root introduces another. Pure.
- `observe`: what each node trusts, holds and signs with.
- `events`: what a run tells while it runs.
- `rotator`: does what the machine decides.
"""

from goatherd.rotation.events import Event, Report
from goatherd.rotation.machine import Outcome, Phase, Policy
from goatherd.rotation.plan import Plan
from goatherd.rotation.rotator import Rotator

__all__ = ["Event", "Outcome", "Phase", "Plan", "Policy", "Report", "Rotator"]
