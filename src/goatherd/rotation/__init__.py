"""Replace the root key of a cluster while its servers run.

- `machine`: phases, legal steps and their conditions as tables; `decide`, which returns the next action. Pure.
- `observation`: the data on which `decide` decides. Pure. `policy`: timeouts, quorum, lifetimes. Pure.
- `obstacles`: what prevents a rotation from starting. Pure. `clocks`: whether this machine's clock is wrong. Pure.
- `plan`: what a rotation would do. Pure.
- `cross_signing`: the commits by which one root introduces another. Pure.
- `rotator`: observes, decides, acts and repeats. `events`: what it reports. `attempts`: how often it repeats.
- `health_checks`: the operator's own health check of the cluster.
- `restorable`: which previous root can sign again. `replacement`: replaces an expired root.
- `signed_store`, `store_history`: checks of the store before a write. `repeating_store`: retries of single calls.
"""

from typing import TYPE_CHECKING

from goatherd.lazy_imports import lazy_attributes

if TYPE_CHECKING:
    from goatherd.rotation.events import Event, Report
    from goatherd.rotation.machine import Outcome, Phase, Policy, Quorum
    from goatherd.rotation.plan import Plan
    from goatherd.rotation.rotator import Rotator

__all__ = ["Event", "Outcome", "Phase", "Plan", "Policy", "Quorum", "Report", "Rotator"]

__getattr__ = lazy_attributes(
    __name__,
    Event="events",
    Outcome="machine",
    Phase="machine",
    Plan="plan",
    Policy="machine",
    Quorum="machine",
    Report="events",
    Rotator="rotator",
)
