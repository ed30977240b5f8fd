"""What prevents the start of a rotation: the rotation and its plan both find it, before anything is written."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import chain, cycle, repeat
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import goatherd
from goatherd.cli.text.rotation import plan_lines
from goatherd.cluster.node import FlowProbe
from goatherd.cluster.observer import Observer
from goatherd.cluster.server_answers import ServerIdentity
from goatherd.errors import (
    ConfigurationError,
    DegradedError,
    GoatherdError,
    ObstructedError,
    RotationBusyError,
    RotationError,
    WrongClockError,
)
from goatherd.identity.document import Phase
from goatherd.identity.key_age import EXPIRED_HINT
from goatherd.identity.session import ROOT_OWNER, OwnedSession
from goatherd.identity.transitions import create_document
from goatherd.providers.memory import MemorySecretProvider
from goatherd.providers.values import Label
from goatherd.rotation.cross_signing import make_session_commit
from goatherd.rotation.machine import NodeView, Outcome
from goatherd.rotation.obstacles import CLOCK_TOLERANCE, explain_silence, find_flow, find_named_twice
from goatherd.rotation.policy import Quorum
from goatherd.wire.commit import Commit
from goatherd.wire.paths import SESSIONS_PATH
from tests.deadlines import HANG
from tests.fakes.herd import FakeClock, Herd, HerdNode
from tests.unit.rotation.conftest import POLICY, MakeHerd, document_of, rotator_for


class Alias:
    """A node under another URL."""

    def __init__(self, node: HerdNode, url: str) -> None:
        self._node = node
        self.base_url = url

    def __getattr__(self, name: str) -> Any:
        return getattr(self._node, name)


class Balancer(Alias):
    """A URL at which several servers answer about their identity in turn."""

    def __init__(self, nodes: Iterable[HerdNode]) -> None:
        self._turns = iter(nodes)
        super().__init__(next(self._turns), "http://balancer")

    async def identity(self) -> ServerIdentity | None:
        return await next(self._turns).identity()


def stranger(herd: Herd) -> HerdNode:
    """Return a server of another cluster."""
    root = OwnedSession.generate(session_id="root-x", owner=ROOT_OWNER, now_ms=herd.clock.now_ms())
    node = HerdNode(herd, "other", create_document(root, herd.clock.now_ms()))
    node.faults.store_lost = True
    node.peers = []
    return node


def part(herd: Herd, *groups: Sequence[int]) -> None:
    """Let nodes know only the nodes of their own group."""
    for group in groups:
        for number in group:
            herd.nodes[number].peers = [herd.nodes[other] for other in group]


async def refused(herd: Herd, **options: Any) -> GoatherdError:
    """Rotate, check that the rotation is rejected at once and nothing was written, and return the error."""
    before, began = await document_of(herd), herd.clock.now_ms()
    plan = await rotator_for(herd, **options).plan()
    with pytest.raises((RotationError, ConfigurationError)) as caught:
        await rotator_for(herd, **options).rotate()
    assert await document_of(herd) == before
    assert herd.clock.now_ms() == began
    assert plan.obstacles
    for obstacle in plan.obstacles:
        assert obstacle in str(caught.value)
    return caught.value


async def test_servers_of_another_identity_are_named_with_the_roots_that_they_sign_with_and_trust(
    make_herd: MakeHerd,
) -> None:
    herd = await make_herd(nodes=2, clients=0)
    error = await refused(herd, nodes=[*herd.nodes, stranger(herd)])
    assert isinstance(error, ObstructedError)
    assert (
        "http://other belongs to another identity: it signs with root root-x and trusts root-x, not root root-a"
    ) in str(error)
    assert "--provider" in error.hint
    assert "--peer" not in error.hint, "two clusters must not be made peers of each other"


async def test_servers_that_were_not_told_of_each_other_are_named_with_the_option_that_tells_them(
    make_herd: MakeHerd,
) -> None:
    herd = await make_herd(nodes=3, clients=0)
    part(herd, [0], [1], [2])
    error = await refused(herd)
    assert "the servers do not synchronize" in str(error)
    assert "each on its own: http://node-0; http://node-1; http://node-2" in str(error)
    assert "--peer" in error.hint
    part(herd, [0, 1], [2])
    assert "in separate groups: http://node-0 and http://node-1; http://node-2" in str(await refused(herd))
    herd.nodes[2].peers = [herd.nodes[0]]
    assert (await rotator_for(herd).plan()).obstacles == ()
    assert (await rotator_for(herd).rotate()).outcome is Outcome.ROTATED


async def test_servers_that_an_expired_root_keeps_from_synchronizing_are_not_sent_to_their_peers(
    make_herd: MakeHerd,
) -> None:
    herd = await make_herd(nodes=2, clients=0)
    part(herd, [0], [1])
    herd.clock.turn(timedelta(days=400))
    (obstacle,) = (await rotator_for(herd).plan()).obstacles
    assert "has expired" in obstacle
    assert "synchronize" not in obstacle


async def test_where_servers_do_not_say_with_whom_they_synchronize_a_session_shows_it(make_herd: MakeHerd) -> None:
    herd = await make_herd(nodes=3, clients=0, unmodified=[0, 1, 2])
    policy = replace(POLICY, bare=frozenset(node.base_url for node in herd.nodes))
    plan = await rotator_for(herd, policy=policy).plan()
    assert plan.obstacles == ()
    assert any("do not report their peers" in remark for remark in plan.remarks)
    assert not any(node.asked["create_session"] for node in herd.nodes), "a plan leaves nothing behind"
    part(herd, [0, 1], [2])
    before = await document_of(herd)
    with pytest.raises(ObstructedError, match="a session at http://node-0 did not reach http://node-2"):
        await rotator_for(herd, policy=policy).rotate()
    assert await document_of(herd) == before
    part(herd, [0, 1, 2])
    assert (await rotator_for(herd, policy=policy).rotate()).outcome is Outcome.ROTATED


async def test_where_sessions_were_made_lately_they_show_it_and_none_is_made_for_it(make_herd: MakeHerd) -> None:
    herd = await make_herd(nodes=3, clients=0, unmodified=[0, 1, 2])
    policy = replace(POLICY, bare=frozenset(node.base_url for node in herd.nodes))
    for node in herd.nodes:
        await node.create_session()
    part(herd, [0, 1], [2])
    await herd.spread()
    with pytest.raises(ObstructedError, match="a session at http://node-2 did not reach http://node-0 and"):
        await rotator_for(herd, policy=policy).rotate()
    assert all(node.asked["create_session"] == 1 for node in herd.nodes)
    part(herd, [0, 1, 2])
    assert (await rotator_for(herd, policy=policy).rotate(to_phase=Phase.PUBLISHED)).outcome is Outcome.REACHED
    assert all(node.asked["create_session"] == 1 for node in herd.nodes)


async def test_a_session_of_long_ago_shows_nothing(make_herd: MakeHerd) -> None:
    herd = await make_herd(nodes=2, clients=0, unmodified=[0, 1])
    policy = replace(POLICY, bare=frozenset(node.base_url for node in herd.nodes))
    await herd.nodes[0].create_session()
    await herd.spread()
    herd.clock.turn(timedelta(days=2))
    part(herd, [0], [1])
    with pytest.raises(ObstructedError, match="a session at http://node-0 did not reach http://node-1"):
        await rotator_for(herd, policy=policy).rotate()
    assert herd.nodes[0].asked["create_session"] == 2


async def probe(herd: Herd) -> FlowProbe:
    """Check, without waiting, whether the sessions at the first server have reached the second one."""
    (url, other) = (node.base_url for node in herd.nodes)
    observer = Observer(herd.nodes, clock=herd.clock, timeout=timedelta(seconds=HANG))
    return await observer.probe_flow(url, [other], asker=herd.nodes[0].document.current, patience=timedelta(0))


async def test_of_many_sessions_only_the_latest_must_have_reached_the_others(make_herd: MakeHerd) -> None:
    herd = await make_herd(nodes=2, clients=0, unmodified=[0, 1])
    part(herd, [0], [1])
    await herd.nodes[0].create_session()
    herd.clock.turn(timedelta(seconds=1))
    assert (await probe(herd)).unreached == ("http://node-1",)
    for _ in range(16):
        await herd.nodes[0].create_session()
        herd.clock.turn(timedelta(seconds=1))
    herd.nodes[1]._keep(SESSIONS_PATH, herd.nodes[0].commits(SESSIONS_PATH)[-16:])
    assert (await probe(herd)).unreached == ()


async def test_a_session_that_another_root_has_introduced_shows_nothing(make_herd: MakeHerd) -> None:
    herd = await make_herd(nodes=2, clients=0, unmodified=[0, 1])
    part(herd, [0], [1])
    root = OwnedSession.generate(session_id="root-x", owner=ROOT_OWNER, now_ms=herd.clock.now_ms())
    user = OwnedSession.generate(session_id="user", owner=None, now_ms=herd.clock.now_ms())
    raw = make_session_commit(user.session, signer=root, commit_id="c" * 24, ts=herd.clock.now_ms(), org="localhost")
    herd.nodes[0]._keep(SESSIONS_PATH, [Commit.from_json(raw, org="localhost")])
    await probe(herd)
    assert herd.nodes[0].asked["create_session"] == 1


async def test_servers_that_say_with_whom_they_synchronize_are_left_without_a_session(make_herd: MakeHerd) -> None:
    herd = await make_herd(nodes=3, clients=0)
    await rotator_for(herd).rotate()
    assert not any(node.asked["create_session"] for node in herd.nodes)


async def test_a_server_that_is_named_twice_is_one_server(make_herd: MakeHerd) -> None:
    herd = await make_herd(nodes=2, clients=0)
    nodes = [*herd.nodes, Alias(herd.nodes[0], "http://127.0.0.1:8101")]
    said = "http://node-0 and http://127.0.0.1:8101 are the same server"
    plan = await rotator_for(herd, nodes=nodes).plan()
    assert (plan.obstacles, said in plan.remarks) == ((), True), "every URL is waited for"
    assert (plan.nodes, plan.aliases) == (("http://node-0", "http://node-1"), {"http://node-0": (nodes[2].base_url,)})
    assert "\n  http://node-0 = http://127.0.0.1:8101\n" in "\n".join(plan_lines(plan, None))
    assert (await rotator_for(herd, nodes=nodes).rotate()).outcome is Outcome.ROTATED
    policy = replace(POLICY, quorum=Quorum(count=2))
    assert said in str(await refused(herd, nodes=nodes, policy=policy)), "it would count twice"

    async def found() -> Sequence[Any]:
        return nodes

    plan = await rotator_for(herd, nodes=found).plan()
    assert plan.obstacles == (), "a name may lead to one server in two ways"
    assert any("are the same server" in remark for remark in plan.remarks)


@pytest.mark.parametrize("turns", [(0, 1), (0, 0, 0, 1), (0, 1, 1, 1, 1, 0), (0, 1, 2, 3, 4, 5)])
async def test_a_url_at_which_several_servers_answer_is_refused(make_herd: MakeHerd, turns: tuple[int, ...]) -> None:
    herd = await make_herd(nodes=6, clients=0)
    nodes = [Balancer(cycle([herd.nodes[number] for number in turns]))]
    assert "several servers answer at http://balancer in turn" in str(await refused(herd, nodes=nodes))
    nodes = [Balancer(cycle([herd.nodes[number] for number in turns]))]
    policy = replace(POLICY, unlisted=timedelta(minutes=5))
    assert (await rotator_for(herd, nodes=nodes, policy=policy).plan()).obstacles == (), "it waits for all servers"


async def test_a_server_that_restarts_between_two_answers_is_one_server(make_herd: MakeHerd) -> None:
    herd = await make_herd(nodes=3, clients=0)
    first, second, third = herd.nodes
    for before in ([first], [first] * 2, [first] * 6, [first, *[second] * 4], [first, second, second]):
        nodes = [Balancer(chain(before, repeat(third)))]
        assert not [one for one in (await rotator_for(herd, nodes=nodes).plan()).obstacles if "in turn" in one]


async def test_a_quorum_of_more_servers_than_are_listed_is_refused(make_herd: MakeHerd) -> None:
    herd = await make_herd(nodes=2, clients=0)
    error = await refused(herd, policy=replace(POLICY, quorum=Quorum(count=99)))
    assert "99, but 2 servers are listed" in str(error)


@pytest.mark.parametrize("ahead", [1.5, -1.5])
async def test_a_clock_that_differs_is_named_before_it_makes_requests_fail(make_herd: MakeHerd, ahead: float) -> None:
    herd = await make_herd(nodes=2, clients=0)
    herd.nodes[1].faults.clock_ahead = CLOCK_TOLERANCE * ahead
    error = await refused(herd)
    assert f"the clock of http://node-1 is 3 min 0 s {'ahead of' if ahead > 0 else 'behind'} this machine's" in str(
        error
    )


@pytest.mark.parametrize(("ahead_ms", "names_clock"), [(-240_000, True), (240_000, True), (180_000, False)])
def test_a_server_whose_clock_makes_it_reject_requests_is_not_said_to_distrust_the_root(
    ahead_ms: int, names_clock: bool
) -> None:
    silent = NodeView(url="http://b", reachable=True, trusts_current=False, roots=("A",), clock_ahead_ms=ahead_ms)
    found = explain_silence(silent, {"A"}, current_id="A", generation=1)
    assert ("the server rejects this machine's requests" in found.text) is names_clock
    assert ("rejects a request signed by the current root" in found.text) is not names_clock
    assert ("4 min 0 s behind this machine's" in found.text) is (ahead_ms == -240_000)


async def test_an_identity_that_was_written_in_the_future_is_not_written_over(make_herd: MakeHerd) -> None:
    herd = await make_herd(nodes=1, clients=0)
    herd.clock.turn(timedelta(days=1))
    await rotator_for(herd).rotate()
    herd.clock._now_ms -= 3_600_000
    herd.nodes[0].faults.tells_no_time = True
    error = await refused(herd)
    assert "the identity was last written 60 min 0 s after the time that this machine's clock shows" in str(error)


async def test_a_store_that_shows_less_than_a_server_has_seen_is_not_written_to(make_herd: MakeHerd) -> None:
    herd = await make_herd(nodes=2, clients=0)
    herd.nodes[1].document = replace(herd.nodes[1].document, generation=17)
    error = await refused(herd)
    assert "http://node-1 has seen generation 17 of the identity, and the store holds generation 1" in str(error)


async def test_a_rotation_in_progress_is_a_remark_of_the_plan_to_resume_it(make_herd: MakeHerd) -> None:
    herd = await make_herd(nodes=2, clients=0)
    await rotator_for(herd).rotate(to_phase=Phase.PUBLISHED)
    plan = await rotator_for(herd).plan()
    assert plan.obstacles == ()
    assert any(f"rotation {plan.resumes} is in progress" in remark for remark in plan.remarks)
    with pytest.raises(RotationBusyError, match=plan.resumes):
        await rotator_for(herd).rotate()


async def test_a_label_of_others_and_a_version_that_cannot_be_read_are_remarks(make_herd: MakeHerd) -> None:
    herd = await make_herd(nodes=1, clients=0)
    await rotator_for(herd).rotate()
    *_, oldest = await herd.provider.versions(herd.secret_id)
    await herd.provider.label(herd.secret_id, Label("audit"), oldest.id, expected=None)
    await herd.provider.write(herd.secret_id, b"damaged", label=Label("broken"), expected=None)
    plan = await rotator_for(herd).plan()
    assert plan.obstacles == ()
    assert f"label 'audit' is on version {oldest.id}: `goatherd retire` does not destroy that version" in plan.remarks
    assert any("cannot be read" in remark and "which private keys" in remark for remark in plan.remarks)
    assert (await rotator_for(herd).survey()).remarks == plan.remarks
    assert (await rotator_for(herd).rotate()).outcome is Outcome.ROTATED


async def test_different_versions_are_a_remark_and_no_obstacle(make_herd: MakeHerd) -> None:
    herd = await make_herd(nodes=4, clients=0, unmodified=[3])

    async def remarks() -> list[str]:
        plan = await rotator_for(herd).plan()
        assert plan.obstacles == ()
        return [remark for remark in plan.remarks if "run" in remark and "Goatherd" in remark]

    assert await remarks() == []  # servers of an earlier build do not report their version
    for node in herd.nodes:
        node.version = goatherd.__version__
    assert await remarks() == []
    herd.nodes[1].version = "0.2.0"
    (mixed,) = await remarks()
    assert f"{goatherd.__version__} at http://node-0 and http://node-2; 0.2.0 at http://node-1" in mixed
    herd.nodes[2].version = None
    assert "unknown at http://node-2" in (await remarks())[0]
    for node in herd.nodes:
        node.version = "0.2.0"
    (newer,) = await remarks()
    assert f"the servers run Goatherd 0.2.0, and this command is Goatherd {goatherd.__version__}" in newer


# --- which servers exchange commits ---------------------------------------------------------------------------------


def says(url: str, instance: str | None, *partners: str, is_unknown: bool = False) -> NodeView:
    told = None if instance is None else frozenset(partners)
    return NodeView(url=url, reachable=True, instance=instance, partners=told, is_partner_unknown=is_unknown)


def test_the_word_of_one_side_is_enough_and_servers_that_are_not_listed_count() -> None:
    assert find_flow([says("a", "1", "2"), says("b", "2"), says("c", "3", "2")]).is_proven
    between = find_flow([says("a", "1", "x"), says("b", "2", "x")])
    assert between.is_proven
    assert between.groups == (("a", "b"),)


def test_what_is_not_known_is_neither_proven_nor_interrupted() -> None:
    unknown = [
        [says("a", "1"), says("b", "2"), says("c", None)],
        [says("a", "1"), says("b", "2", is_unknown=True)],
        [says("a", None), says("b", None)],
    ]
    for nodes in unknown:
        flow = find_flow(nodes)
        assert not flow.is_proven
        assert not flow.is_interrupted
    assert find_flow([says("a", "1"), says("b", "2")]).is_interrupted
    assert find_flow([says("a", None)]).is_proven
    assert find_flow([]).is_proven


def test_a_server_that_does_not_identify_its_process_never_counts_as_listed_twice() -> None:
    assert find_named_twice([says("a", None), says("b", None)]) == ()
    assert find_named_twice([says("a", "1"), says("b", "2"), says("c", "1")]) == (("a", "c"),)


# --- the plan and the rotation say the same --------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """A generated cluster: its nodes, the faults of each, which nodes know each other, and the requested rotation."""

    troubles: tuple[str, ...]
    links: frozenset[tuple[int, int]]
    quorum: int | None
    extra: str
    is_healthy: bool


TROUBLES = ("none", "none", "none", "unmodified", "cut off", "without the store", "clock a bit off", "clock off")
EXTRAS = ("none", "none", "none", "stranger", "alias", "expired", "in progress", "back in time")


@st.composite
def clusters(draw: st.DrawFn) -> Cluster:
    size = draw(st.integers(1, 4))
    pairs = [(a, b) for a in range(size) for b in range(size) if a != b]
    is_full = draw(st.booleans())
    return Cluster(
        troubles=tuple(draw(st.sampled_from(TROUBLES)) for _ in range(size)),
        links=frozenset(pairs if is_full or not pairs else draw(st.sets(st.sampled_from(pairs)))),
        quorum=draw(st.sampled_from([None, None, 1, size, 99])),
        extra=draw(st.sampled_from(EXTRAS)),
        is_healthy=draw(st.sampled_from([True, True, True, False])),
    )


class Signal:
    name = "the test"

    def __init__(self, *, is_healthy: bool) -> None:
        self._is_healthy = is_healthy

    async def ask(self) -> str | None:
        return None if self._is_healthy else "the test: bad"


async def built(cluster: Cluster, provider: MemorySecretProvider, clock: FakeClock) -> tuple[Herd, list[Any]]:
    unmodified = [at for at, trouble in enumerate(cluster.troubles) if trouble == "unmodified"]
    herd = await Herd.start(provider, clock=clock, nodes=len(cluster.troubles), unmodified=unmodified)
    nodes: list[Any] = list(herd.nodes)
    for at, (node, trouble) in enumerate(zip(herd.nodes, cluster.troubles, strict=True)):
        node.peers = [herd.nodes[to] for start, to in sorted(cluster.links) if start == at]
        node.faults.cut_off = trouble == "cut off"
        node.faults.store_lost = node.faults.admits_loss = trouble == "without the store"
        if trouble.startswith("clock"):
            node.faults.clock_ahead = timedelta(minutes=1 if "a bit" in trouble else 10)
    if cluster.extra == "stranger":
        nodes.append(stranger(herd))
    elif cluster.extra == "alias":
        nodes.append(Alias(herd.nodes[0], "http://again"))
    elif cluster.extra == "expired":
        clock.turn(timedelta(days=91))
    elif cluster.extra == "in progress":
        await rotator_for(herd, nodes=[], unsafe_without_nodes=True, started_by="bob@host-2:1").rotate(
            to_phase=Phase.PREPARED
        )
    elif cluster.extra == "back in time":
        clock._now_ms -= 30 * 60_000
    return herd, nodes


async def compare(cluster: Cluster) -> None:
    clock = FakeClock()
    async with MemorySecretProvider(clock=clock) as provider:
        herd, nodes = await built(cluster, provider, clock)
        bare = frozenset(node.base_url for node in nodes if node.unmodified)
        policy = replace(POLICY, quorum=Quorum(count=cluster.quorum), bare=bare)
        options: dict[str, Any] = {
            "nodes": nodes,
            "policy": policy,
            "health": [Signal(is_healthy=cluster.is_healthy)],
        }
        plan = await rotator_for(herd, **options).plan()
        before, began = await document_of(herd), clock.now_ms()
        is_unproven = any("do not report their peers" in remark for remark in plan.remarks)
        error: GoatherdError | None = None
        try:
            report = await rotator_for(herd, **options).rotate()
        except (RotationError, ConfigurationError, DegradedError) as caught:
            error = caught
        if error is None:
            assert plan.obstacles == ()
            assert report.outcome is Outcome.ROTATED
            return
        assert await document_of(herd) == before, "nothing was written"
        if isinstance(error, RotationBusyError):
            assert plan.resumes is not None
            assert plan.resumes in str(error)
            return
        assert plan.resumes is None
        if plan.obstacles:
            assert clock.now_ms() == began, "at once"
            way_out = f". {EXPIRED_HINT}"  # the plan has it beside the obstacle, the error as its hint
            assert all(obstacle.removesuffix(way_out) in str(error) for obstacle in plan.obstacles)
            assert error.hint is not None
            if not isinstance(error, WrongClockError):  # its hint is about the clock: the root may only seem expired
                assert all(way_out[2:] in error.hint for obstacle in plan.obstacles if obstacle.endswith(way_out))
        else:
            assert is_unproven, "what the plan calls possible was refused"
            assert "did not reach" in str(error)


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(clusters())
def test_what_the_plan_calls_possible_succeeds_and_what_it_calls_impossible_is_refused_for_the_same_reasons(
    cluster: Cluster,
) -> None:
    asyncio.run(compare(cluster))
