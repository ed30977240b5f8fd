"""Each phase × each event: a node joins, leaves, restarts, is cut off or loses the store, in every phase of a
rotation."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from goatherd.cluster.node import Node
from goatherd.cluster.observer import Observer
from goatherd.errors import NodeUnreachableError, NotAdoptedError, ObstructedError
from goatherd.identity.document import Phase
from goatherd.rotation.events import Decided, Event, NodesUnknown
from goatherd.rotation.machine import FORWARD, Abandon, Advance, Outcome, Prepare, Wait
from tests.fakes.herd import Herd, HerdNode
from tests.unit.rotation.conftest import POLICY, MakeHerd, check_steady, document_of, rotator_for

pytestmark = pytest.mark.slow

Happening = Callable[[Herd], None]
MOMENT = timedelta(seconds=4)


def joins(herd: Herd) -> None:
    """A server with an empty disk starts from the store, and is listed from then on."""
    herd.nodes.append(HerdNode(herd, "node-new", herd.nodes[0].document))


def leaves(herd: Herd) -> None:
    """The server is shut down permanently, and is no longer listed."""
    del herd.nodes[1]


def restarts(herd: Herd) -> None:
    """The server answers no request for a moment, and comes back with the content of its log and of the store."""
    node = herd.nodes[1]
    away(herd, node, then=node.restart)


def is_cut_off_for_a_moment(herd: Herd) -> None:
    away(herd, herd.nodes[1])


def is_cut_off_permanently(herd: Herd) -> None:
    herd.nodes[1].faults.cut_off = True


def loses_the_store_for_a_moment(herd: Herd) -> None:
    node = herd.nodes[1]
    node.faults.store_lost = True
    later(herd, lambda: setattr(node.faults, "store_lost", False))


def loses_the_store_permanently(herd: Herd) -> None:
    herd.nodes[1].faults.store_lost = True


def away(herd: Herd, node: HerdNode, *, then: Callable[[], None] = lambda: None) -> None:
    node.faults.cut_off = True

    def back() -> None:
        node.faults.cut_off = False
        then()

    later(herd, back)


def later(herd: Herd, do: Callable[[], None]) -> None:
    """Call `do` when `MOMENT` has passed on the herd's clock."""
    due = herd.clock.now_ms() + MOMENT // timedelta(milliseconds=1)
    tick = herd.clock.on_tick
    assert tick is not None

    async def on_tick(tick: Callable[[], Awaitable[None]] = tick) -> None:
        nonlocal due
        if herd.clock.now_ms() >= due:
            due = 2**60
            do()
        await tick()

    herd.clock.on_tick = on_tick


HARMLESS: list[Happening] = [joins, leaves, restarts, is_cut_off_for_a_moment, loses_the_store_for_a_moment]
WHEN = ["before", pytest.param("after", marks=pytest.mark.slow)]
PERMANENT: list[Happening] = [is_cut_off_permanently, loses_the_store_permanently]

# The outcome when a node stops permanently, by the phase in which it stops, before or after the first look in it.
# After the last gate, the rotation does not wait for the node, but names it.
ENDINGS = {
    (Phase.STEADY, "before"): (None, "rolled-back"),  # it is looked at before anything is written
    (Phase.STEADY, "after"): ("cancelled", "rolled-back"),
    (Phase.PREPARED, "before"): ("cancelled", "rolled-back"),
    (Phase.PREPARED, "after"): ("cancelled", "rolled-back"),
    (Phase.PUBLISHED, "before"): ("cancelled", "rolled-back"),
    (Phase.PUBLISHED, "after"): ("rolled-back", "rolled-back"),
    (Phase.ACTIVATED, "before"): ("rolled-back", "rotated"),
    (Phase.ACTIVATED, "after"): ("rotated", "rotated"),
    (Phase.VERIFIED, "before"): ("rotated", "rotated"),
    (Phase.VERIFIED, "after"): ("rotated", "rotated"),
}


class Script:
    """Causes an event once: right before the first look in a phase, or right before the phase is left."""

    def __init__(self, herd: Herd, phase: Phase, when: str, happening: Happening) -> None:
        self.herd, self.phase, self.when, self.happening = herd, phase, when, happening
        self.has_happened = False
        self.events: list[Event] = []

    async def nodes(self) -> Sequence[Node]:
        document = await document_of(self.herd)
        if self.when == "before" and Phase(document.phase or Phase.STEADY) is self.phase:
            self._now()
        return list(self.herd.nodes)

    def told(self, event: Event) -> None:
        self.events.append(event)
        if self.when != "after" or not isinstance(event, Decided):
            return
        left = event.action
        if isinstance(left, Prepare if self.phase is Phase.STEADY else Advance) and (
            not isinstance(left, Advance) or machine_phase(left) is self.phase
        ):
            self._now()

    def _now(self) -> None:
        if not self.has_happened:
            self.has_happened = True
            self.happening(self.herd)


def machine_phase(advance: Advance) -> Phase:
    return next(phase for phase, step in FORWARD.items() if step is advance.step)


def rotator_of(script: Script) -> Any:
    rotator = rotator_for(script.herd, nodes=script.nodes)
    rotator._on_event = script.told
    return rotator


def name(value: object) -> str | None:
    return value.__name__.replace("_", " ") if callable(value) else None


@pytest.mark.parametrize("happening", HARMLESS, ids=name)
@pytest.mark.parametrize("when", WHEN)
@pytest.mark.parametrize("phase", list(Phase))
async def test_what_passes_or_is_known_in_any_phase_neither_stops_a_rotation_nor_loses_anything(
    make_herd: MakeHerd, phase: Phase, when: str, happening: Happening
) -> None:
    herd = await make_herd()
    script = Script(herd, phase, when, happening)
    if phase is Phase.STEADY and when == "before" and happening in (restarts, is_cut_off_for_a_moment):
        with pytest.raises(ObstructedError, match="node-1 did not answer"):
            await rotator_of(script).rotate()
        assert (await document_of(herd)).generation == 1, "nothing was written"
        await herd.clock.sleep(2 * MOMENT)
    report = await rotator_of(script).rotate()
    assert script.has_happened
    assert report.outcome is Outcome.ROTATED
    assert not [e for e in script.events if isinstance(e, Decided) and isinstance(e.action, Abandon)]
    if phase in (Phase.STEADY, Phase.PREPARED, Phase.PUBLISHED) and when == "before":
        assert report.behind == ()
    await check_steady(herd)
    urls = {node.base_url for node in herd.nodes}
    assert ("http://node-new" in urls) is (happening is joins)
    if happening is not joins:  # until it has fetched the sessions, a server with an empty disk knows no client
        assert herd.refused == 0


@pytest.mark.parametrize("happening", PERMANENT, ids=name)
@pytest.mark.parametrize("when", WHEN)
@pytest.mark.parametrize("phase", list(Phase))
async def test_a_node_that_is_gone_permanently_in_any_phase_costs_at_most_the_rotation(
    make_herd: MakeHerd, phase: Phase, when: str, happening: Happening
) -> None:
    herd = await make_herd()
    script = Script(herd, phase, when, happening)
    began = herd.clock.now_ms()
    ending = ENDINGS[phase, when][PERMANENT.index(happening)]
    if ending == "rotated":
        report = await rotator_of(script).rotate()
        assert report.outcome is Outcome.ROTATED
        gone = happening is is_cut_off_permanently
        assert report.behind == ((herd.nodes[1].base_url,) if gone else ())
    elif ending is None:
        with pytest.raises(ObstructedError, match="node-1 did not answer"):
            await rotator_of(script).rotate()
        assert (await document_of(herd)).generation == 1, "nothing was written"
        return
    else:
        with pytest.raises(NotAdoptedError) as caught:
            await rotator_of(script).rotate()
        assert "node-1" in caught.value.report.reason
    took = timedelta(milliseconds=herd.clock.now_ms() - began)
    assert took <= POLICY.adoption + POLICY.settle + 3 * POLICY.poll_max + timedelta(seconds=1), "no rotation hangs"
    assert script.has_happened
    assert (await document_of(herd)).history[-1].event == ending
    herd.nodes[1].faults = type(herd.nodes[1].faults)()
    await check_steady(herd)
    assert herd.refused == 0


# --- who the nodes are ------------------------------------------------------------------------------------------------


async def test_a_node_that_has_joined_counts_though_all_others_have_followed(make_herd: MakeHerd) -> None:
    herd = await make_herd()
    await rotator_for(herd).rotate(to_phase=Phase.PUBLISHED)
    late = HerdNode(herd, "node-new", herd.nodes[0].document)
    late.faults.cut_off = True
    herd.nodes.append(late)

    async def nodes() -> Sequence[Node]:
        return list(herd.nodes)

    with pytest.raises(NotAdoptedError, match="node-new"):
        await rotator_for(herd, nodes=nodes).resume()
    assert (await document_of(herd)).history[-1].event == "cancelled"


def fails() -> Sequence[Node]:
    raise NodeUnreachableError("the name server does not answer")


def breaks() -> Sequence[Node]:
    raise OSError(5, "resolver broken")


def is_empty() -> Sequence[Node]:
    return []


@pytest.mark.parametrize("answer", [fails, breaks, is_empty], ids=name)
async def test_not_to_know_who_the_nodes_are_is_not_to_have_none(
    make_herd: MakeHerd, answer: Callable[[], Sequence[Node]]
) -> None:
    """SECURITY: otherwise a rotation would wait for no server as soon as the name server does not answer."""
    herd = await make_herd()
    events: list[Event] = []

    async def nodes() -> Sequence[Node]:
        return answer()

    await rotator_for(herd).rotate(to_phase=Phase.PUBLISHED)
    with pytest.raises(NotAdoptedError, match="the servers can be discovered"):
        await rotator_for(herd, nodes=nodes, events=events).resume()
    assert any(isinstance(event, NodesUnknown) for event in events)
    assert (await document_of(herd)).history[-1].event == "cancelled"
    assert any(
        "the servers of the cluster are not known" in obstacle
        for obstacle in (await rotator_for(herd, nodes=nodes).plan()).obstacles
    )


@pytest.mark.parametrize("phase", [Phase.PUBLISHED, Phase.ACTIVATED])
async def test_a_list_of_nodes_that_cannot_be_had_for_a_moment_is_waited_for(make_herd: MakeHerd, phase: Phase) -> None:
    herd = await make_herd()
    events: list[Event] = []
    await rotator_for(herd).rotate(to_phase=phase)
    back = herd.clock.now_ms() + MOMENT // timedelta(milliseconds=1)

    async def nodes() -> Sequence[Node]:
        return fails() if herd.clock.now_ms() < back else list(herd.nodes)

    assert (await rotator_for(herd, nodes=nodes, events=events).resume()).outcome is Outcome.ROTATED
    waits = [e.action for e in events if isinstance(e, Decided) and isinstance(e.action, Wait)]
    assert "name server" in waits[0].reason
    await check_steady(herd)


async def test_a_list_of_nodes_that_hangs_is_one_that_cannot_be_had(make_herd: MakeHerd) -> None:

    herd = await make_herd()

    async def nodes() -> Sequence[Node]:
        await asyncio.Event().wait()
        raise AssertionError

    observer = Observer(nodes, clock=herd.clock, timeout=timedelta(milliseconds=5))
    await observer.refresh_nodes()
    assert observer.unknown == "no answer within 0.005 s"


async def test_nothing_but_the_list_is_asked_of_nodes_that_have_left(make_herd: MakeHerd) -> None:
    herd = await make_herd()
    left = herd.nodes[1]

    async def nodes() -> Sequence[Node]:
        return [node for node in herd.nodes if node is not left]

    await rotator_for(herd, nodes=nodes, policy=replace(POLICY, poll_max=timedelta(seconds=1))).rotate()
    assert left.asked["push"] == left.asked["refresh"] == left.asked["identity"] == 0
