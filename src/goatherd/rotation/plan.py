"""What a rotation would do, to whom, and what could stop it: for people, before anything is done.

Pure. It adds no rule: steps and gates are read from the machine's tables.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from goatherd.rotation.machine import BACKWARD, FORWARD, GATES, Observation, Phase, Policy, Step, after

EFFECTS: Final[dict[Step, str]] = {
    Step.PREPARE: "label the current version stable; write a new root beside the current one, endorsed by it",
    Step.PUBLISH: "introduce the next root to every node, by a commit in /sys/sessions signed by the current root",
    Step.ACTIVATE: "write the next root as the one that signs; tell the nodes",
    Step.VERIFY: "introduce the earlier root by a commit that the next root signs, at one node; see it arrive at all",
    Step.FINALIZE: "end the rotation; move label stable to this version",
}

_WRITES: Final = {Step.PREPARE: 2, Step.FINALIZE: 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedStep:
    """One step.

    Attributes:
        leads_to: The phase after it.
        effect: What it does, for people.
        gate: What every node must be seen to do before it.
        patience: How long it waits for that at most; None where it waits for nobody.
        otherwise: The step that leaves the rotation if that does not happen.
        store_writes: Writes to the store, labels included.
    """

    step: Step
    leads_to: Phase
    effect: str
    gate: tuple[str, ...]
    patience: timedelta | None
    otherwise: Step | None
    store_writes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Every step from here to the end, the nodes it concerns, and what stands in its way now.

    Attributes:
        resumes: The rotation that would be carried on, or None for a new one.
        obstacles: What would stop it, for people. Empty means: nothing is known that would.
    """

    phase: Phase
    current_id: str
    resumes: str | None
    steps: tuple[PlannedStep, ...]
    nodes: tuple[str, ...]
    obstacles: tuple[str, ...]


def make_plan(observation: Observation, policy: Policy, now_ms: int) -> Plan:
    """Return what would happen from here on.

    Args:
        observation: The store, and the nodes as far as they could be asked at no cost.
        policy: How patient the rotation would be.
        now_ms: Milliseconds since 1970.
    """
    store = observation.store
    steps: list[PlannedStep] = []
    phase = store.phase
    while not steps or phase is not Phase.STEADY:
        step = FORWARD[phase]
        gate = tuple(str(evidence) for evidence in GATES[step])
        steps.append(
            PlannedStep(
                step=step,
                leads_to=after(phase, step),
                effect=EFFECTS[step],
                gate=gate,
                patience=policy.adoption if gate else None,
                otherwise=BACKWARD[phase] if gate else None,
                store_writes=_WRITES.get(step, 1),
            )
        )
        phase = after(phase, step)
    obstacles = [f"{node.url}: {node.problem or 'does not answer'}" for node in observation.nodes if not node.reachable]
    obstacles += [f"{node.url} refuses the document: {node.rejects}" for node in observation.nodes if node.rejects]
    obstacles += [f"{node.url} cannot reach the store" for node in observation.nodes if node.without_store]
    expected = store.current_id
    obstacles += [
        f"{node.url} signs with {node.signs_with}, not with {expected}"
        for node in observation.nodes
        if node.signs_with not in (None, expected)
    ]
    if store.phase is Phase.STEADY and now_ms > store.current_expires_ms:
        obstacles.append(f"root {store.current_id} has expired and can introduce nobody")
    if not observation.nodes:
        obstacles.append("no node is listed: nothing would wait for the servers that hold this identity")
    return Plan(
        phase=store.phase,
        current_id=store.current_id,
        resumes=store.rotation_id,
        steps=tuple(steps),
        nodes=tuple(node.url for node in observation.nodes),
        obstacles=tuple(obstacles),
    )
