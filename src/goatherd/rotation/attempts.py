"""Limit how often a rotation tries an action: not a third time if two attempts did not change the store.

A rotation decides on each action by the state of the store, and attempts are counted for each pair of action and state.
This module does not limit calls that the store does not answer (`Policy.store_patience` does), nor waits and pushes to
servers (the deadline of the phase does, `goatherd.rotation.machine`).

Rules:
1. If another process wrote first, the store shows a new state: the run decides again, and a new count begins. If a
   write conflicts although the store shows the same state as before, the count continues.
2. Some stores may show an older state for a while. With such a store, a run that has used up its attempts only reads
   for `Policy.store_patience`, in case the change shows after all, before it fails.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from goatherd.clock import Clock
from goatherd.errors import GoatherdError, StuckError
from goatherd.providers.base import Guarantees, ReadConsistency
from goatherd.rotation.machine import (
    Abandon,
    Action,
    Advance,
    CorrectTimes,
    Destroy,
    LabelStable,
    Observation,
    Policy,
    Prepare,
    PrepareRestore,
    Prune,
    RecordRetired,
)

TRIES: Final = 2
"""How often an action is tried on the same state of the store."""


@dataclass(slots=True)
class _Attempt:
    count: int = 0
    last_at: float = 0.0
    answer: str = ""


class Attempts:
    """Counts how often one run of a rotation has tried each action, and limits the attempts.

    Args:
        guarantees: The store's guarantees; they say whether reads of the store may lag.
        policy: The rotation's policy. If reads may lag, `Policy.store_patience` is the time allowed for that.
        clock: Tells the time.
    """

    def __init__(self, guarantees: Guarantees, policy: Policy, clock: Clock) -> None:
        is_strong = guarantees.read_consistency is ReadConsistency.STRONG
        self._patience = timedelta(0) if is_strong else policy.store_patience
        self._clock = clock
        self._known: dict[Hashable, _Attempt] = {}

    def may_try(self, evidence: Hashable, action: Action | str) -> bool:
        """Return whether an action of the rotation may be tried now; if not, the caller first reads the store again.

        Args:
            evidence: The action with the state on which it was decided (from `identify_attempt`); None for an action
                that is not limited here.
            action: The action, or a phrase that names it in the error message.

        Raises:
            StuckError: The action was tried as often as allowed, and the store has had time to show an effect.
        """
        known = self._known.get(evidence)
        if evidence is None or known is None or known.count < TRIES:
            return True
        if self._clock.monotonic() - known.last_at < self._patience.total_seconds():
            return False
        name = action if isinstance(action, str) else describe_action(action)
        raise StuckError(f"cannot {name}: tried {known.count} times, but the store has not changed ({known.answer})")

    def count_attempt(self, evidence: Hashable, conflict: GoatherdError | None = None) -> None:
        """Count one attempt of an action that the store has answered.

        Args:
            evidence: The value from `identify_attempt`; None for an action that is not limited, which is not counted.
            conflict: The error if the store answered with a conflict; None if it reported success.
        """
        if evidence is None:
            return
        known = self._known.setdefault(evidence, _Attempt())
        known.count += 1
        known.last_at = self._clock.monotonic()
        known.answer = "it reported success each time" if conflict is None else f"it answered: {conflict}"


def identify_attempt(action: Action, observation: Observation) -> Hashable:
    """Return a value that is equal for attempts of the same action on the same state; None if attempts are not limited.

    Returns:
        For a write, the action and the state of the store. The servers' answers, and texts with counts, are left out:
        they differ at every observation, and make the write no likelier to succeed. None for an action that a deadline
        limits.
    """
    store = observation.store
    match action:
        case Destroy(version=version):
            return Destroy, version, store, observation.versions
        case Advance(step=step) | Abandon(step=step):
            return type(action), step, store
        case RecordRetired(session_id=session_id):
            return RecordRetired, session_id, store
        case LabelStable() | Prepare() | Prune() | PrepareRestore() | CorrectTimes():
            return type(action), store
    return None


def describe_action(action: Action) -> str:
    """Return what an action does, as a phrase that follows "cannot" in an error message."""
    match action:
        case Destroy(version=version):
            return f"destroy version {version}"
        case Advance(step=step) | Abandon(step=step):
            return f"write the identity of step {step.value!r}"
        case RecordRetired(session_id=session_id):
            return f"record root {session_id} as retired"
        case LabelStable(version=version):
            return f"move label `stable` to version {version}"
        case CorrectTimes():
            return "correct the timestamps in the identity"
        case Prune():
            return "remove previous roots from the identity document"
        case Prepare():
            return "write the identity of step 'prepare'"
        case PrepareRestore(root_id=root_id):
            return f"write the identity of step 'prepare' for root {root_id}"
    return f"carry out {type(action).__name__}"
