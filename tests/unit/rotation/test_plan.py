"""A plan: its costs are counted, the rotation then does what the plan says, and making it changes nothing."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest

from goatherd.identity.document import Phase
from goatherd.rotation.events import Event, PhaseEntered
from goatherd.rotation.health_checks import HTTPProbe
from goatherd.rotation.machine import FORWARD, GATES, Step, phase_after
from goatherd.rotation.plan import COSTS, EFFECTS, RISKS, Cost
from tests.fakes.herd import SESSIONS, Herd
from tests.unit.rotation.conftest import POLICY, MakeHerd, rotator_for

READS, WRITES = ("read", "versions"), ("write", "label", "destroy")


class Counted:
    """A store that counts its calls."""

    def __init__(self, herd: Herd) -> None:
        self.herd = herd
        self.calls: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.herd.provider, name)
        if name not in READS + WRITES:
            return method

        async def call(*arguments: Any, **options: Any) -> Any:
            self.calls[name] += 1
            return await method(*arguments, **options)

        return call


STEP_INTO = {phase_after(phase, step): step for phase, step in FORWARD.items()}


async def test_what_each_step_costs_is_what_the_plan_says(make_herd: MakeHerd, monkeypatch: pytest.MonkeyPatch) -> None:
    """The nodes are notified at once; the calls are counted at a node that the cross-signature is not pushed to."""
    herd = await make_herd(clients=0)
    store, node, plain = Counted(herd), herd.nodes[1], herd.nodes[1].batch_sync
    asked: Counter[str] = Counter()

    async def batch_sync(requests: Any, signer: Any, now_ms: int | None = None) -> Any:
        asked["by a rotator"] += now_ms is not None  # peers give no time
        return await plain(requests, signer, now_ms)

    def count() -> tuple[int, int, int]:
        requests = node.asked["identity"] + node.asked["refresh"] + asked["by a rotator"]
        return sum(store.calls[one] for one in READS), sum(store.calls[one] for one in WRITES), requests

    monkeypatch.setattr(node, "batch_sync", batch_sync)
    counts: list[tuple[int, int, int]] = [(0, 0, 0)]

    def told(event: Event) -> None:
        if isinstance(event, PhaseEntered) and event.phase is not Phase.STEADY:
            reads, writes, requests = count()
            # The event of a phase comes after the first look in it; this look belongs to the step leaving the phase.
            counts.append((reads - 1, writes, requests - 2))

    rotator = rotator_for(herd, provider=store)
    rotator._on_event = told
    await rotator.rotate()
    counts.append(count())
    steps = [tuple(b - a for a, b in zip(*pair, strict=True)) for pair in pairwise(counts)]
    found = {
        STEP_INTO[phase]: Cost(store_reads=reads, store_writes=writes, node_requests=requests)
        for phase, (reads, writes, requests) in zip([*list(Phase)[1:], Phase.STEADY], steps, strict=True)
    }
    # In the herd, nodes pass commits on when the clock moves: one look more, by a node that is told to look.
    least = COSTS[Step.VERIFY]
    waited = replace(least, store_reads=least.store_reads + 1, node_requests=least.node_requests + 3)
    assert found == {**COSTS, Step.VERIFY: waited}


async def test_every_step_has_an_effect_a_risk_a_cost_and_where_it_waits_for_a_gate_an_end_to_patience(
    make_herd: MakeHerd,
) -> None:
    herd = await make_herd()
    plan = await rotator_for(herd).plan()
    assert {step.step for step in plan.steps} == set(EFFECTS) == set(RISKS) == set(COSTS)
    for step in plan.steps:
        assert step.store_writes == step.cost.store_writes > 0
        assert (step.patience is not None) is (bool(GATES[step.step]) and step.step is not Step.PREPARE)
        assert (step.otherwise is not None) is (step.patience is not None)


async def test_making_a_plan_writes_nothing_and_tells_no_node_anything(make_herd: MakeHerd) -> None:
    herd = await make_herd(unmodified=[1])
    await rotator_for(herd).rotate(to_phase=Phase.PUBLISHED)
    store, held = Counted(herd), [node.commits(SESSIONS) for node in herd.nodes]
    before = [Counter(node.asked) for node in herd.nodes]
    plan = await rotator_for(herd, provider=store).plan()
    assert not [call for call in WRITES if store.calls[call]]
    assert [node.commits(SESSIONS) for node in herd.nodes] == held
    for node, was in zip(herd.nodes, before, strict=True):
        assert set(node.asked - was) <= {"identity", "batch_sync"}
    assert plan.resumes is not None
    assert plan.started_by == "alice@host-1:4711"


async def test_what_would_stop_it_and_who_is_not_waited_for_is_said(make_herd: MakeHerd) -> None:
    herd = await make_herd()
    policy = replace(POLICY, unlisted=timedelta(seconds=38))
    plan = await rotator_for(
        herd, policy=policy, health=[HTTPProbe("http://127.0.0.1:1/", timeout=POLICY.poll_max)]
    ).plan()
    assert any("38 s after published" in who for who in plan.not_waited_for)
    assert any("GET http://127.0.0.1:1/: 3 bad answers in a row" in what for what in plan.stops)
    assert any("the health check fails: GET http://127.0.0.1:1/" in what for what in plan.obstacles)
    steps = {step.step: step for step in plan.steps}
    assert steps[Step.ACTIVATE].also == ("38 s since published, for servers that are not listed",)
    assert steps[Step.FINALIZE].also == ("passed: GET http://127.0.0.1:1/", "health checks pass for 10 s")
    assert any("there should be none" in who for who in (await rotator_for(herd).plan()).not_waited_for)


async def test_a_server_that_is_not_restarted_is_named(make_herd: MakeHerd) -> None:
    herd = await make_herd(unmodified=[1])
    bare = herd.nodes[1].base_url
    plan = await rotator_for(herd, policy=replace(POLICY, bare=frozenset([bare]))).plan()
    assert f"{bare}, to sign with the next root: it is restarted by hand" in plan.not_waited_for
