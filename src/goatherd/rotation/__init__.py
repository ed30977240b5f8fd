"""Replacing the root key of a cluster while it serves.

- `table`, `action`, `policy`: phases, legal steps and gates; what can come next; how patient to be. Pure.
- `machine`: what was seen, and `decide`; it hands on the names of the three above. Pure.
- `plan`: what a rotation would do, for people. Pure.
- `vouching`: the commits by which one root introduces another. Pure.
- `observe`: who the nodes are, and what each trusts, holds and signs with.
- `health`: the operator's own signal of whether the cluster is well.
- `events`: what a run tells while it runs.
- `view`: what the machine is shown of the document. Pure.
- `refusal`: the error for a run that may not do what was asked. Pure.
- `repeating_store`: makes a call of the store that fails again at once.
- `rotator`: does what the machine decides.
- `replacement`: replaces a root that has expired.
- `windows`, `schedule`: when a rotation is due. Pure.
- `controller`: the loop that rotates by a schedule; `alert`: tells somebody.
- `chain`, `evidence`: the records of an audit trail. Pure. `audit`: the file.
"""

from goatherd.rotation.events import Event, Report
from goatherd.rotation.machine import Outcome, Phase, Policy, Quorum
from goatherd.rotation.plan import Plan
from goatherd.rotation.rotator import Rotator

__all__ = ["Event", "Outcome", "Phase", "Plan", "Policy", "Quorum", "Report", "Rotator"]
