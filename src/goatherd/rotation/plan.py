"""Describe a rotation before it runs: its steps, their costs and risks, and what could stop it.

The functions are pure, and take the steps and their conditions from the tables in `goatherd.rotation.machine`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

from goatherd.cluster.node import group_by_region
from goatherd.rotation.machine import (
    BACKWARD,
    FORWARD,
    GATES,
    Observation,
    ObstacleKind,
    Phase,
    Policy,
    Step,
    find_lack_of_room,
    find_obstacles_to_begin,
    phase_after,
)
from goatherd.rotation.obstacles import find_named_twice

EFFECTS: Final[dict[Step, str]] = {
    Step.PREPARE: "put the label stable on the current version; write a new root, which the current root endorses",
    Step.PUBLISH: "introduce the next root at every server, by a commit in /sys/sessions that the current root signs",
    Step.ACTIVATE: "write the next root as the current root; notify the servers",
    Step.VERIFY: (
        "introduce the previous root at one server, by a commit that the next root signs; check "
        "that every server holds it"
    ),
    Step.FINALIZE: "end the rotation; move the label stable to this version",
}

RISKS: Final[dict[Step, str]] = {
    Step.PREPARE: "none: the current root signs as before, and a cancel removes the next root",
    Step.PUBLISH: "little: from here on servers trust the next root, even after a cancel; it has signed nothing",
    Step.ACTIVATE: "a server that is not listed, and reads neither store nor peers, rejects what the next root signs",
    Step.VERIFY: "none: both roots are trusted everywhere, and a rollback loses nothing",
    Step.FINALIZE: "none; but from here on only `goatherd restore` makes the previous root current again",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """The smallest number of requests that a planned step makes, if nothing fails and all servers are Goatherd servers.

    Each further observation during a wait costs one read of the store, two requests to each server, and one
    notification to each server that the step waits for. With an unmodified GoatDB server, finding out which root signs
    costs more requests, at most every five seconds. Once per rotation, three requests identify the process of that
    server; they create an anonymous session there.

    Attributes:
        store_reads: Number of reads from the store: of values, and of lists of versions.
        store_writes: Number of changes in the store: versions written, and labels moved.
        node_requests: Number of requests to each server.
    """

    store_reads: int
    store_writes: int
    node_requests: int


# Two requests per observation, one to introduce, one to notify (tests/unit/rotation/test_plan.py counts them).
COSTS: Final[dict[Step, Cost]] = {
    Step.PREPARE: Cost(store_reads=5, store_writes=2, node_requests=14),
    Step.PUBLISH: Cost(store_reads=1, store_writes=1, node_requests=3),
    Step.ACTIVATE: Cost(store_reads=2, store_writes=1, node_requests=6),
    Step.VERIFY: Cost(store_reads=2, store_writes=1, node_requests=5),
    Step.FINALIZE: Cost(store_reads=4, store_writes=2, node_requests=5),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedStep:
    """One step of a planned rotation.

    Attributes:
        leads_to: The phase after the step.
        effect: What the step does, human-readable.
        risk: What could go wrong because of the step, human-readable.
        gate: What every server must have shown before the step.
        also: What else is required before the step, human-readable: time for unlisted servers, health checks.
        patience: Longest time that the step waits for the servers; None if it waits for no server.
        otherwise: The step that ends the rotation if the servers do not meet the condition in time; None if the step
            waits for no server.
        store_writes: Number of changes in the store: versions written, and labels moved.
        cost: How many requests the step makes.
    """

    step: Step
    leads_to: Phase
    effect: str
    risk: str
    gate: tuple[str, ...]
    also: tuple[str, ...] = ()
    patience: timedelta | None
    otherwise: Step | None
    store_writes: int
    cost: Cost


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The plan of a rotation: its remaining steps, its servers, and its obstacles.

    Attributes:
        resumes: The rotation that would be resumed, or None for a new one.
        started_by, started_ms: Who started that rotation, and when.
        obstacles: Why a new rotation would be refused now, human-readable; empty if it would start. For a rotation in
            progress: what prevents it from continuing.
        remarks: Problems that the operator should know, but that do not stop the rotation.
        not_waited_for: Which servers the rotation would not wait for, as sentences.
        stops: What would end the rotation automatically, as sentences.
        aliases: For a server that is listed under several URLs, the further ones, by the URL in `nodes`.
        regions: For each region that servers report, their URLs; empty if none reports one.
        followers: Regions whose store must show each change of the primary store before the next one.
    """

    phase: Phase
    current_id: str
    resumes: str | None
    started_by: str = ""
    started_ms: int = 0
    steps: tuple[PlannedStep, ...]
    nodes: tuple[str, ...]
    obstacles: tuple[str, ...]
    remarks: tuple[str, ...] = ()
    not_waited_for: tuple[str, ...] = ()
    stops: tuple[str, ...] = ()
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    regions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    followers: tuple[str, ...] = ()


def make_plan(
    observation: Observation, policy: Policy, now_ms: int, *, signals: Sequence[str] = (), remarks: Sequence[str] = ()
) -> Plan:
    """Return the plan of a rotation: the steps that remain from the observed state of the store and the servers.

    Args:
        observation: The state of the store, and what the servers answered to requests that change nothing.
        policy: Timeouts and quorum of the rotation.
        now_ms: Milliseconds since 1970.
        signals: The names of the health checks.
        remarks: Problems that the operator should know, but that do not stop the rotation
            (`goatherd.rotation.obstacles.find_remarks`).
    """
    store = observation.store
    # A load balancer's URL may lead to this process now and to another one later, so the rotation waits for every URL.
    aliases = {first: tuple(more) for first, *more in find_named_twice(observation.nodes)}
    nodes = [one for one in observation.nodes if not any(one.url in more for more in aliases.values())]
    steps: list[PlannedStep] = []
    phase = store.phase
    while not steps or phase is not Phase.STEADY:
        steps.append(_plan_step(phase, FORWARD[phase], policy, signals))
        phase = phase_after(phase, FORWARD[phase])
    return Plan(
        phase=store.phase,
        current_id=store.current_id,
        resumes=store.rotation_id,
        started_by=store.started_by,
        started_ms=store.started_ms,
        steps=tuple(steps),
        nodes=tuple(node.url for node in nodes),
        aliases=aliases,
        obstacles=tuple(_describe_obstacles(observation, policy, now_ms)),
        remarks=tuple(remarks),
        not_waited_for=tuple(_not_waited_for(observation, policy)),
        stops=tuple(_describe_stops(policy, signals)),
        regions={
            region: tuple(node.url for node in nodes)
            for region, nodes in group_by_region(nodes).items()
            if region is not None
        },
        followers=tuple(one.region for one in observation.followers if not one.is_allowed),
    )


def _plan_step(phase: Phase, step: Step, policy: Policy, signals: Sequence[str]) -> PlannedStep:
    gate = tuple(str(evidence) for evidence in GATES[step])
    also = []
    if step is Step.ACTIVATE and policy.unlisted:
        also.append(f"{_format_seconds(policy.unlisted)} since published, for servers that are not listed")
    if step in (Step.VERIFY, Step.FINALIZE):
        also += [f"passed: {name}" for name in signals]
    if step is Step.FINALIZE and signals and policy.health_soak:
        also.append(f"health checks pass for {_format_seconds(policy.health_soak)}")
    patience = (
        policy.adoption if gate and phase is not Phase.STEADY else None
    )  # in phase steady the rotation is refused at once
    if step is Step.ACTIVATE:
        patience = max(policy.adoption, policy.unlisted)
    elif step is Step.FINALIZE and signals:
        patience = policy.adoption + policy.health_soak
    return PlannedStep(
        step=step,
        leads_to=phase_after(phase, step),
        effect=EFFECTS[step],
        risk=RISKS[step],
        gate=gate,
        also=tuple(also),
        patience=patience,
        otherwise=None if patience is None else BACKWARD[phase],
        store_writes=COSTS[step].store_writes,
        cost=COSTS[step],
    )


def _describe_obstacles(observation: Observation, policy: Policy, now_ms: int) -> list[str]:
    found = [
        f"{one.text}. {one.hint}" if one.kind is ObstacleKind.EXPIRED else one.text
        for one in find_obstacles_to_begin(observation, policy, now_ms)
    ]
    found += [one.text for one in find_lack_of_room(observation, policy, now_ms)]
    if not observation.nodes and observation.nodes_unknown is None:
        found.append("no server is listed: the rotation would wait for no server")
    return found


def _not_waited_for(observation: Observation, policy: Policy) -> list[str]:
    total = len(observation.nodes)
    needed = policy.quorum.needed(total)
    found = []
    if policy.unlisted:
        found.append(
            f"servers that are not listed: they have {_format_seconds(policy.unlisted)} after published to follow"
        )
    else:
        found.append("servers that are not listed: there should be none (they get no time to follow)")
    found += [
        f"{node.url}, to sign with the next root: it is restarted by hand" for node in observation.nodes if node.is_bare
    ]
    if needed < total:
        found.append(
            f"up to {total - needed} of {total} servers (quorum {policy.quorum}), if they do not answer for "
            f"{_format_seconds(policy.adoption)}; they must read the store, or fetch /sys/sessions from a peer, before "
            "they serve again"
        )
    return found


def _describe_stops(policy: Policy, signals: Sequence[str]) -> list[str]:
    late, away = _format_seconds(policy.adoption), _format_seconds(policy.store_patience)
    found = [
        f"a listed server that does not follow within {late} in a phase: cancelled; rolled back if the next root signs",
        "a server that rejects the identity document: the same, at once",
        f"a store that does not answer for {away}: this run ends, and --resume continues the rotation",
    ]
    found += [
        f"{name}: {policy.health_failures} bad answers in a row while the next root signs: rolled back within "
        f"{_format_seconds(policy.health_bound)} of the first"
        for name in signals
    ]
    return found


def _format_seconds(duration: timedelta) -> str:
    seconds = duration.total_seconds()
    minutes, left = divmod(seconds, 60)
    return f"{minutes:g} min" if minutes and not left else f"{seconds:g} s"
