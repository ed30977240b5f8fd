"""A revocation against servers in this process: every step, and an interruption at every step."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from goatherd.cli.text.revocation import revocation_lines, revocation_plan_lines
from goatherd.cluster.client import NodeClient
from goatherd.cluster.server_answers import AgentReport, DoorReport
from goatherd.errors import (
    ConfigurationError,
    IllegalStepError,
    NodeRefusedError,
    RotationError,
    StoreWentBackError,
    UnavailableError,
    UnsignedIdentityError,
)
from goatherd.identity.document import IdentityDocument, Phase, encode_document
from goatherd.identity.session import ROOT_OWNER, OwnedSession
from goatherd.identity.transitions import (
    activate_rotation,
    correct_times,
    create_document,
    finalize_rotation,
    prepare_rotation,
    with_phase,
)
from goatherd.ids import new_id
from goatherd.node import Server
from goatherd.providers.memory import MemorySecretProvider
from goatherd.providers.values import CURRENT, STABLE, VersionState
from goatherd.revocation.revoker import Revoker
from goatherd.rotation.cross_signing import make_earlier_introduction
from goatherd.rotation.events import Decided, Event, RevocationStep, RevocationStepped, StoreTroubled
from goatherd.rotation.machine import Wait
from goatherd.rotation.rotator import Rotator
from goatherd.times import milliseconds
from tests.deadlines import HANG
from tests.unit.node.nodes import (
    SECRET,
    document_of,
    now_ms,
    root,
    session_commit,
    settings_of,
    signed_commit,
)
from tests.unit.revocation.clusters import (
    NOTES,
    POLICY,
    SECOND,
    SESSIONS,
    Cluster,
    Counting,
    Doubting,
    Faltering,
    Forgetful,
    Lagging,
    Meddling,
    Unlabelling,
    Upstream,
    client_of,
    cluster_of,
    ids,
    spread,
)

pytestmark = pytest.mark.slow


async def test_a_revocation_from_one_end_to_the_other(tmp_path: Path) -> None:
    a = root("root-a")
    events: list[Event] = []
    async with cluster_of(tmp_path, document_of(a), 3) as cluster:
        first, second, _ = cluster.nodes
        users = [(await node.create_session())[0] for node in (first, second, first)]
        await spread(cluster, a)
        note, in_flight = signed_commit(a), signed_commit(a)
        for node in cluster.nodes:
            await node.push(NOTES, [note], a)
        for node in (first, second):
            await node.push(NOTES, [in_flight], a)

        report = await cluster.revoker(on_event=events.append).revoke(a.id, reason="stolen")

        document = await cluster.document()
        b = document.current
        assert b.id != a.id
        assert report.is_complete
        assert (report.frozen, report.sessions, report.pushed) == (8, 3, 3)
        assert [node.in_flight for node in report.nodes] == [0, 0, 1]
        assert {server.database().pool.current.id for server in cluster.servers} == {b.id}
        for node in cluster.nodes:
            assert all([await node.answers(user) for user in users]), "every session is known everywhere by now"
            await node.push(NOTES, [in_flight, signed_commit(a)], b)
            assert await ids(node, NOTES, b) == {note.id, in_flight.id}
        stable = await cluster.provider.read(SECRET, STABLE)
        assert stable.version.id == (await cluster.provider.read(SECRET)).version.id
        assert report.keys_left == ("1",)
        (took,) = (line for line in revocation_lines(report) if line.startswith("took: "))
        assert ("reissue " in took, "introduce again" in took) == (True, False)

        again = await cluster.revoker().revoke(a.id, reason="stolen")
        assert again.is_complete
        assert again.pushed == 0
        assert (await cluster.document()).generation == document.generation
    taken = [event for event in events if isinstance(event, RevocationStepped)]
    steps = [event.step for event in taken]
    assert {event.detail for event in taken if event.step is RevocationStep.INTRODUCED} == {b.id}
    assert list(dict.fromkeys(steps)) == list(RevocationStep)[:-1]


async def test_a_new_node_takes_over_the_old_commits_and_none_of_the_thiefs(tmp_path: Path) -> None:
    a = root("root-a")
    async with cluster_of(tmp_path, document_of(a), 1) as cluster:
        old = cluster.nodes[0]
        user, _ = await old.create_session()
        oldest = [signed_commit(a), signed_commit(user)]
        await old.push(NOTES, oldest, a)
        report = await cluster.revoker().revoke(a.id, reason="stolen")
        b = (await cluster.document()).current
        await cluster.revoker().revoke(a.id, reason="stolen")
        new = await cluster.add()
        frozen = await old.frozen((await cluster.document()).revoked[0].freeze.digest)  # type: ignore[union-attr]
        assert frozen is not None
        await new.keep_frozen(frozen, b)
        for path in (SESSIONS, NOTES):
            await new.push(path, await old.pull(path, b), b)
            assert await ids(new, path, b) == await ids(old, path, b)
        assert await new.answers(user)
        assert report.is_complete


async def test_nothing_is_written_by_a_plan(tmp_path: Path) -> None:
    a = root("root-a")
    async with cluster_of(tmp_path, document_of(a)) as cluster:
        await cluster.nodes[0].create_session()
        rogue = session_commit(a, root("rogue").session)
        await cluster.nodes[1].push(SESSIONS, [rogue, replace(rogue, id=new_id())], a)
        before = [await ids(node, SESSIONS, a) for node in cluster.nodes]
        report = await cluster.revoker().plan(a.id)
        assert (report.sessions, report.rogue_roots) == (1, ("rogue",))
        assert [await ids(node, SESSIONS, a) for node in cluster.nodes] == before
        assert (await cluster.document()).generation == 1
        assert [one.refuses for one in report.nodes] == [False, False]


@pytest.mark.slow
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("stride", [2, pytest.param(1, marks=pytest.mark.deep)])
async def test_a_revocation_that_is_cut_off_at_any_call_of_the_store_is_carried_on(
    tmp_path: Path, after: bool, stride: int
) -> None:
    a = root("root-a")
    at = calls = 0
    while calls >= at:
        at += stride
        async with (
            cluster_of(tmp_path / str(at), document_of(a), 1) as cluster,
            Counting(cluster.provider.store) as provider,
        ):
            node = cluster.nodes[0]
            user, _ = await node.create_session()
            note = signed_commit(a)
            await node.push(NOTES, [note], a)
            provider.fails_at, provider.after = at, after
            revoker = Revoker(provider, SECRET, cluster.nodes, policy=POLICY)
            with contextlib.suppress(UnavailableError):
                await revoker.revoke(a.id, reason="stolen", destroy=True)
            calls = provider.calls
            report = await cluster.revoker().revoke(a.id, reason="stolen", destroy=True)
            assert report.is_complete
            document = await cluster.document()
            assert document.revoked_ids == {a.id}
            assert document.retired_ids >= {a.id}
            assert report.keys_left == ()
            assert await node.answers(user)
            assert await ids(node, NOTES, document.current) == {note.id}
            assert not await node.answers(a)
    assert calls > 10


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_a_store_that_fails_every_call_once_ends_no_revocation(tmp_path: Path, after: bool) -> None:
    a, events = root("root-a"), list[Event]()
    async with cluster_of(tmp_path, document_of(a), 1) as cluster, Faltering(cluster.provider.store) as provider:
        (node,) = cluster.nodes
        user, _ = await node.create_session()
        provider.is_faltering, provider.after = True, after
        revoker = Revoker(provider, SECRET, cluster.nodes, policy=POLICY, on_event=events.append)
        report = await revoker.revoke(a.id, reason="stolen", destroy=True)
        document = await cluster.document()
        assert (report.is_complete, report.sessions, report.keys_left) == (True, 1, ())
        assert (document.revoked_ids, document.retired_ids) == ({a.id}, {a.id})
        assert await node.answers(user)
        assert provider.failures > 10
        assert report.store_calls == provider._calls + 1, "also those that failed, and those of a search"
        assert sum(isinstance(event, StoreTroubled) for event in events) == provider.failures
        steps = {event.step for event in events if isinstance(event, RevocationStepped)}
        assert steps >= {RevocationStep.REVOKED, RevocationStep.CLOSED, RevocationStep.SETTLED}
        stable = await cluster.provider.read(SECRET, STABLE)
        assert stable.version.id == (await cluster.provider.read(SECRET)).version.id


async def test_a_resumed_revocation_reads_each_stored_version_once(tmp_path: Path) -> None:
    a = root("root-a")
    async with cluster_of(tmp_path, document_of(a), 1) as cluster:
        for _ in range(5):
            await cluster.put(await cluster.document())
        await cluster.revoker().revoke(a.id, reason="stolen")
        old = [one.id for one in (await cluster.provider.versions(SECRET))[1:]]
        reads: list[Any] = []
        read = cluster.provider.read

        async def counted(secret_id: str, at: Any = CURRENT, **options: Any) -> Any:
            reads.append(at)
            return await read(secret_id, at, **options)

        cluster.provider.read = counted  # type: ignore[method-assign]
        await cluster.revoker().revoke(a.id, reason="stolen")
        one_for_the_key = 1
        assert sum(reads.count(one) for one in old) == len(old) + one_for_the_key


async def test_a_store_that_is_away_before_a_revocation_begins_is_reported_at_once(tmp_path: Path) -> None:
    provider = Counting()
    async with provider:
        await provider.create(SECRET, encode_document(document_of(root("root-a"))))
    provider.fails_at = 1
    with pytest.raises(UnavailableError):
        await Revoker(provider, SECRET, []).revoke("root-a", reason="stolen")
    assert provider.calls == 1


@pytest.mark.slow
async def test_the_plan_for_an_expired_root_names_no_obstacle_that_the_revocation_does_not_meet(tmp_path: Path) -> None:
    made_ms = now_ms() - milliseconds(timedelta(days=40))
    a = OwnedSession.generate(session_id=new_id(), owner=ROOT_OWNER, now_ms=made_ms, lifetime=timedelta(days=39))
    async with cluster_of(tmp_path, create_document(a, made_ms), 1) as cluster:
        planned = await cluster.revoker().plan(a.id)
    assert planned.is_expired
    assert [node.problem for node in planned.nodes] == [None]
    lines = "\n".join(revocation_plan_lines(planned))
    assert "the current root has expired" in lines
    assert "obstacle" not in lines
    assert " 0 user sessions" not in lines


@pytest.mark.slow
async def test_a_node_that_cannot_be_reached_keeps_the_list_open_and_the_others_refuse_the_root_all_the_same(
    tmp_path: Path,
) -> None:
    a = root("root-a")
    async with cluster_of(tmp_path, document_of(a), 1) as cluster:
        policy = replace(POLICY, adoption=SECOND / 10)
        async with NodeClient("http://127.0.0.1:9") as gone, asyncio.timeout(HANG):
            while True:  # until the server that is there refuses the root: a slow one does not in so short a time
                report = await cluster.revoker([*cluster.nodes, gone], policy=policy).revoke(a.id, reason="stolen")
                assert not report.closed
                assert not report.is_complete
                assert not report.nodes[1].refuses
                if report.nodes[0].refuses:
                    break
        assert report.nodes[1].problem
        assert not await cluster.nodes[0].answers(a)
        report = await cluster.revoker().revoke(a.id, reason="stolen")
        assert report.is_complete


@pytest.mark.slow
async def test_a_server_that_stores_no_reissued_sessions_is_named_while_it_is_waited_for(tmp_path: Path) -> None:
    class Full(NodeClient):
        async def push(self, *arguments: Any, **options: Any) -> None:
            raise NodeRefusedError("its disk is full", status=507)

    a, events = root("root-a"), list[Event]()
    async with cluster_of(tmp_path, document_of(a)) as cluster:
        first, second = cluster.nodes
        user, _ = await first.create_session()
        await spread(cluster, a)
        assert await second.answers(user)
        full = client_of(cluster.servers[1], second.base_url, Full)
        policy = replace(POLICY, adoption=SECOND)
        report = await cluster.revoker([first, full], policy=policy, on_event=events.append).revoke(a.id, reason="?")
        assert not report.is_complete
        assert report.nodes[1].problem == "its disk is full"
    waits = [event.action for event in events if isinstance(event, Decided) and isinstance(event.action, Wait)]
    assert (waits[-1].nodes, waits[-1].reason) == ((full.base_url,), "stores the reissued sessions")


@pytest.mark.slow
@pytest.mark.parametrize("is_exposed", [False, True])
async def test_the_report_asks_for_no_restart_of_a_server_behind_the_door_of_its_agent(
    tmp_path: Path, is_exposed: bool
) -> None:
    class Agent(Upstream):
        async def identity(self) -> Any:
            found = await NodeClient.identity(self)
            door = DoorReport(passed_on=1, stopped=0, is_exposed=is_exposed)
            agent = AgentReport(
                state="serving", started=None, restarts=1, pending=(), problem=None, checked_ms=None, check_commit=None,
                door=door,
            )  # fmt: skip
            return None if found is None else replace(found, agent=agent)

    a = root("root-a")
    async with cluster_of(tmp_path, document_of(a)) as cluster:
        first, second = cluster.nodes
        agent = client_of(cluster.servers[1], second.base_url, Agent)
        planned = await cluster.revoker([first, agent]).plan(a.id)
        await cluster.revoker([first, agent]).revoke(a.id, reason="stolen")
        await NodeClient.refresh(agent, (await cluster.document()).current)
        report = await cluster.revoker([first, agent]).revoke(a.id, reason="stolen")
    for lines in (revocation_plan_lines(planned), revocation_lines(report)):
        text = "\n".join(lines)
        assert (f"{second.base_url}: an unmodified GoatDB server behind the door" in text) is not is_exposed
        assert ("still trusts the revoked root" in text) is is_exposed


@pytest.mark.slow
async def test_what_a_node_took_in_too_late_stays_there_until_the_list_is_reopened(tmp_path: Path) -> None:
    a = root("root-a")
    async with cluster_of(tmp_path, document_of(a)) as cluster:
        first, late = cluster.nodes
        assert (await cluster.revoker([first]).revoke(a.id, reason="stolen")).closed
        thiefs = signed_commit(a)
        await late.push(NOTES, [thiefs], a)
        user, _ = await late.create_session()
        b = (await cluster.document()).current
        report = await cluster.revoker().revoke(a.id, reason="stolen")
        assert [node.late for node in report.nodes] == [0, 2]
        await first.push(NOTES, [thiefs], b)
        assert await ids(first, NOTES, b) == set()
        assert await ids(late, NOTES, b) == {thiefs.id}
        report = await cluster.revoker().revoke(a.id, reason="stolen", reopen=True)
        assert [node.alone for node in report.nodes] == [0, 2]
        assert not await late.answers(user)
        await first.push(NOTES, [thiefs], b)
        assert await ids(first, NOTES, b) == set(), "no other server holds it, so it takes the operator's word"
        report = await cluster.revoker(trust_alone=["http://node-1"]).revoke(a.id, reason="stolen", reopen=True)
        assert [(node.late, node.alone) for node in report.nodes] == [(0, 0), (0, 0)]
        assert all([await node.answers(user) for node in cluster.nodes])
        await first.push(NOTES, [thiefs], b)
        assert await ids(first, NOTES, b) == {thiefs.id}


@pytest.mark.parametrize("kind", [Lagging, Doubting])
async def test_a_store_that_shows_what_was_before_a_write_changes_nothing(
    tmp_path: Path, kind: type[MemorySecretProvider]
) -> None:
    a = root("root-a")
    document = document_of(a)
    provider = kind()
    async with provider:
        await provider.create(SECRET, encode_document(document))
    async with cluster_of(tmp_path, document, provider=provider) as cluster:
        report = await cluster.revoker().revoke(a.id, reason="stolen")
        assert report.is_complete
        assert (await cluster.document()).generation == document.generation + 3, "each step is written once"
        (current,) = [one for one in await MemorySecretProvider.versions(provider, SECRET) if CURRENT in one.labels]
        assert STABLE in current.labels, "there is no going back behind a revocation"


async def test_servers_are_notified_before_label_stable_moves_and_also_if_it_does_not(tmp_path: Path) -> None:
    a = root("root-a")
    document, provider = document_of(a), Unlabelling()
    async with provider:
        await provider.create(SECRET, encode_document(document))
    async with cluster_of(tmp_path, document, provider=provider) as cluster:
        trusted: set[str] = set()
        provider.look = lambda: trusted.update(server.database().pool.current.id for server in cluster.servers)
        report = await cluster.revoker().revoke(a.id, reason="stolen")
        assert trusted == {report.current_id}, "every server has adopted the revocation by then"
        assert (report.closed, report.settled, report.is_complete) == (True, True, False)
        assert report.stable_problem is not None
        assert "label stable WAS NOT MOVED" in "\n".join(revocation_lines(report))
        provider.is_stuck = False
        again = await cluster.revoker().revoke(a.id, reason="stolen")
        assert (again.is_complete, again.stable_problem) == (True, None)
        assert again.generation == report.generation
        assert (await provider.read(SECRET, STABLE)).version.id == (await provider.read(SECRET)).version.id


async def test_the_root_that_takes_over_introduces_the_earlier_ones(tmp_path: Path) -> None:
    a, b = root("root-a"), root("root-b")
    async with cluster_of(tmp_path, after_a_rotation(a, b)) as cluster:
        assert (await cluster.revoker().revoke(b.id, reason="stolen")).is_complete
        document = await cluster.document()
        wanted = make_earlier_introduction(document, a.id, org="localhost")["id"]
        for node in cluster.nodes:
            assert wanted in await ids(node, SESSIONS, document.current)


async def test_a_list_that_no_server_has_any_more_is_closed_anew(tmp_path: Path) -> None:
    a = root("root-a")
    async with cluster_of(tmp_path, document_of(a)) as cluster:
        await cluster.nodes[0].push(NOTES, [signed_commit(a)], a)
        alone = cluster.revoker(trust_alone=["http://node-0"])
        before = await alone.revoke(a.id, reason="stolen")
        nodes = [client_of(server, f"http://node-{n}", Forgetful) for n, server in enumerate(cluster.servers)]
        with pytest.raises(RotationError, match="no server has the list") as caught:
            await cluster.revoker(nodes).revoke(a.id, reason="stolen")
        assert "--reopen" in caught.value.hint
        report = await cluster.revoker(nodes).revoke(a.id, reason="stolen", reopen=True)
        assert (report.is_complete, report.frozen) == (True, before.frozen - 1)


async def test_stable_stays_at_the_version_that_another_rotation_would_roll_back_to(tmp_path: Path) -> None:
    a, b = root("root-a"), root("root-b")
    async with cluster_of(tmp_path, document_of(a), 1) as cluster:
        await cluster.revoker().revoke(a.id, reason="stolen")
        steady = await cluster.document()
        (stable,) = [one.id for one in await cluster.provider.versions(SECRET) if STABLE in one.labels]
        await cluster.put(after_a_rotation(a, b, Phase.PUBLISHED, first=steady))
        assert (await cluster.revoker().revoke(a.id, reason="stolen")).is_complete
        assert [one.id for one in await cluster.provider.versions(SECRET) if STABLE in one.labels] == [stable]


@pytest.mark.parametrize("phase", [Phase.PREPARED, Phase.PUBLISHED, Phase.ACTIVATED])
async def test_keys_of_a_revoked_root_are_destroyed_during_another_rotation(tmp_path: Path, phase: Phase) -> None:
    a, b = root("root-a"), root("root-b")
    async with cluster_of(tmp_path, document_of(a), 1) as cluster:
        await cluster.revoker().revoke(a.id, reason="stolen")
        steady = await cluster.document()
        (stable,) = [one.id for one in await cluster.provider.versions(SECRET) if STABLE in one.labels]
        await cluster.put(after_a_rotation(steady.current, b, phase, first=steady))
        report = await cluster.revoker().revoke(a.id, reason="stolen", destroy=True)
        assert (report.destroyed, report.keys_left) == (("1",), ())
        document = await cluster.document()
        assert document.retired_ids == {a.id}
        assert document.rotation is not None
        assert document.rotation.phase is phase
        assert [one.id for one in await cluster.provider.versions(SECRET) if STABLE in one.labels] == [stable]
        again = await cluster.revoker().revoke(a.id, reason="stolen", destroy=True)
        assert (again.destroyed, again.generation) == ((), document.generation)


async def test_nothing_is_destroyed_where_the_record_of_it_would_be_refused(tmp_path: Path) -> None:
    a = root("root-a")
    async with cluster_of(tmp_path, document_of(a), 1) as cluster:
        await cluster.revoker().revoke(a.id, reason="stolen")
        document = await cluster.document()
        node = client_of(cluster.servers[0], "http://node-0", Meddling)
        assert isinstance(node, Meddling)
        node.meddle = lambda: cluster.put(replace(document, last_updated=now_ms() + 1))
        with pytest.raises(UnsignedIdentityError):
            await cluster.revoker([node]).revoke(a.id, reason="stolen", destroy=True)
        assert {one.state for one in await cluster.provider.versions(SECRET)} == {VersionState.ENABLED}


async def test_a_session_that_is_left_out_is_believed_no_more(tmp_path: Path) -> None:
    a = root("root-a")
    async with cluster_of(tmp_path, document_of(a), 1) as cluster:
        node = cluster.nodes[0]
        user, _ = await node.create_session()
        far = now_ms() + 400 * 86_400_000
        mole = OwnedSession.generate(session_id=new_id(), owner=None, now_ms=far)
        await node.push(SESSIONS, [session_commit(a, mole.session)], a)
        plan = await cluster.revoker().plan(a.id)
        assert plan.long_lived == (mole.id,)
        report = await cluster.revoker().revoke(a.id, reason="stolen", leave_out=[mole.id])
        assert (report.sessions, report.left_out, report.is_complete) == (1, (mole.id,), True)
        assert await node.answers(user)
        assert not await node.answers(mole)
    async with Server(tmp_path / "node-0", settings_of(cluster.provider), debug=True) as server:
        restarted = client_of(server, "http://again")
        assert await restarted.answers(user)
        assert not await restarted.answers(mole)


async def test_a_session_that_cannot_be_left_out_is_named_before_any_session_is_reissued(tmp_path: Path) -> None:
    a = root("root-a")
    async with cluster_of(tmp_path, document_of(a), 1) as cluster:
        user, _ = await cluster.nodes[0].create_session()
        mole = OwnedSession.generate(session_id=new_id(), owner=None, now_ms=now_ms())
        await cluster.nodes[0].push(SESSIONS, [session_commit(a, mole.session)], a)
        with pytest.raises(ConfigurationError, match="no effect on mistyped"):
            await cluster.revoker().plan(a.id, leave_out=["mistyped"])
        plan = await cluster.revoker().plan(a.id, leave_out=[mole.id])
        assert (plan.sessions, plan.left_out) == (1, (mole.id,))
        with pytest.raises(ConfigurationError, match="no effect on mistyped"):
            await cluster.revoker().revoke(a.id, reason="stolen", leave_out=["mistyped", mole.id])
        assert a.id in (await cluster.document()).revoked_ids
        report = await cluster.revoker().revoke(a.id, reason="stolen", leave_out=[mole.id])
        assert (report.pushed, report.left_out, report.is_complete) == (1, (mole.id,), True)
        with pytest.raises(ConfigurationError, match=f"no effect on {user.id}") as caught:
            await cluster.revoker().revoke(a.id, reason="stolen", leave_out=[user.id, mole.id])
        assert report.current_id in caught.value.hint
        assert await cluster.nodes[0].answers(user)


async def test_a_rogue_root_is_neither_introduced_again_nor_listed(tmp_path: Path) -> None:
    a, rogue = root("root-a"), root("rogue")
    async with cluster_of(tmp_path, document_of(a), 1) as cluster:
        node = cluster.nodes[0]
        mole = root("mole")
        await node.push(SESSIONS, [session_commit(a, rogue.session)], a)
        await node.push(SESSIONS, [session_commit(rogue, replace(mole.session, owner=None))], rogue)
        report = await cluster.revoker().revoke(a.id, reason="stolen")
        assert report.rogue_roots == ("rogue",)
        assert (report.sessions, report.is_complete) == (0, True)
        assert not await node.answers(rogue)
        assert not await node.answers(mole)


async def test_the_root_of_a_cancelled_rotation_is_not_called_a_rogue_root(tmp_path: Path) -> None:
    a, rogue = root("root-a"), root("rogue")
    async with cluster_of(tmp_path, document_of(a), 1) as cluster:
        rotator = Rotator(cluster.provider, SECRET, cluster.nodes, policy=POLICY)
        cancelled = (await rotator.rotate(to_phase=Phase.PUBLISHED)).to_id
        await rotator.abandon(reason="the wrong day")
        await rotator.rotate()
        await rotator.restore()
        assert (await cluster.document()).find_root(cancelled or "") is None
        await cluster.nodes[0].push(SESSIONS, [session_commit(a, rogue.session)], a)
        report = await cluster.revoker().plan(a.id)
        assert set(report.rogue_roots) == {rogue.id, cancelled}
        lines = "\n".join(revocation_plan_lines(report))
        assert f"ROGUE ROOT {rogue.id}: " in lines
        assert f"root {cancelled} is from a cancelled rotation: " in lines
        assert f"ROGUE ROOT {cancelled}" not in lines


async def test_the_next_rotation_and_the_next_theft_are_as_any_other(tmp_path: Path) -> None:
    a = root("root-a")
    async with cluster_of(tmp_path, document_of(a), 1) as cluster:
        node = cluster.nodes[0]
        user, _ = await node.create_session()
        note = signed_commit(a)
        await node.push(NOTES, [note], a)
        first = await cluster.revoker().revoke(a.id, reason="stolen")
        done = await Rotator(cluster.provider, SECRET, cluster.nodes, policy=POLICY).rotate()
        assert done.from_id == first.current_id
        second = await cluster.revoker().revoke(done.current_id, reason="stolen as well")
        assert second.is_complete
        assert second.sessions == 0, "the user's session was introduced by the root before"
        document = await cluster.document()
        assert document.revoked_ids == {a.id, done.current_id}
        assert await node.answers(user)
        assert await ids(node, NOTES, document.current) == {note.id}


async def test_a_prepared_root_can_be_revoked_alone(tmp_path: Path) -> None:
    a, b = root("root-a"), root("root-b")
    async with cluster_of(tmp_path, after_a_rotation(a, b, Phase.PREPARED), 1) as cluster:
        report = await cluster.revoker().revoke(b.id, reason="stolen")
        document = await cluster.document()
        assert (report.is_complete, report.has_proof) == (True, True)
        assert (document.current.id, document.next, document.rotation) == (a.id, None, None)


def after_a_rotation(
    a: OwnedSession, b: OwnedSession, phase: Phase | None = None, *, first: IdentityDocument | None = None
) -> IdentityDocument:
    now = now_ms() if first is None else first.last_updated or 0
    document = prepare_rotation(
        first or document_of(a), b, now_ms=now, rotation_id="r", started_by="", stable_version="1"
    )
    if phase is Phase.PREPARED:
        return document
    document = with_phase(document, Phase.PUBLISHED, now)
    if phase is Phase.PUBLISHED:
        return document
    document = activate_rotation(document, now)
    if phase is Phase.ACTIVATED:
        return document
    return finalize_rotation(with_phase(document, Phase.VERIFIED, now), now)


@pytest.mark.parametrize("choice", ["new", "next", "root-b"])
async def test_during_a_rotation_the_successor_is_chosen(tmp_path: Path, choice: str) -> None:
    a, b = root("root-a"), root("root-b")
    async with cluster_of(tmp_path, after_a_rotation(a, b, Phase.PUBLISHED), 1) as cluster:
        report = await cluster.revoker().revoke(a.id, reason="stolen", successor=choice)
        document = await cluster.document()
    assert report.is_complete
    assert (document.current.id == b.id) == (choice != "new")
    assert document.revoked_ids == ({a.id, b.id} if choice == "new" else {a.id})


async def test_an_earlier_root_is_revoked_and_the_current_one_goes_on(tmp_path: Path) -> None:
    a, b = root("root-a"), root("root-b")
    first = document_of(a)
    async with cluster_of(tmp_path, first, 2) as cluster:
        user, _ = await cluster.nodes[0].create_session()
        await spread(cluster, a)
        for document in (after_a_rotation(a, b, Phase.PREPARED, first=first), after_a_rotation(a, b, first=first)):
            await cluster.put(document)
        report = await cluster.revoker().revoke(a.id, reason="stolen")
        document = await cluster.document()
        assert (document.current.id, report.is_complete, report.has_proof) == (b.id, True, True)
        assert document.revoked_ids == {a.id}
        assert all([await node.answers(user) for node in cluster.nodes])
        assert report.also_stored == ()
        assert len(report.keys_left) == 2


async def test_an_earlier_root_can_take_over_while_its_key_is_in_the_store(tmp_path: Path) -> None:
    a, b = root("root-a"), root("root-b")
    first = document_of(a)
    async with cluster_of(tmp_path, first, 1) as cluster:
        await cluster.put(after_a_rotation(a, b, first=first))
        report = await cluster.revoker().revoke(b.id, reason="stolen", successor=a.id)
        assert (report.current_id, report.is_complete) == (a.id, True)
        with pytest.raises(IllegalStepError):
            await cluster.revoker().revoke(a.id, reason="stolen", successor=b.id)


@pytest.mark.parametrize(("session_id", "successor"), [("nobody", "new"), ("root-a", "next"), ("root-a", "nobody")])
async def test_what_cannot_be_is_refused_before_anything_happens(
    tmp_path: Path, session_id: str, successor: str
) -> None:
    a = root("root-a")
    async with cluster_of(tmp_path, document_of(a), 1) as cluster:
        for call in (
            cluster.revoker().plan(session_id, successor=successor),
            cluster.revoker().revoke(session_id, reason="x", successor=successor),
        ):
            with pytest.raises(IllegalStepError):
                await call
        assert (await cluster.document()).generation == 1


async def aged_cluster(cluster: Cluster) -> list[str]:
    """Rotate until the first roots have left the document; return the ids of all roots, oldest first."""
    rotator = Rotator(cluster.provider, SECRET, cluster.nodes, policy=POLICY)
    roots = [(await cluster.document()).current.id]
    while (await cluster.document()).pruned < 2:
        roots.append((await rotator.rotate()).current_id)
    return roots


async def test_a_root_that_has_left_the_document_can_still_be_revoked(tmp_path: Path) -> None:
    a = root("root-a")
    async with cluster_of(tmp_path, document_of(a), 1) as cluster:
        node = cluster.nodes[0]
        note = signed_commit(a)
        await node.push(NOTES, [note], a)
        roots = await aged_cluster(cluster)
        before = await cluster.document()
        assert before.find_root(a.id) is None
        assert await node.answers(a), "it is trusted by its introductions"
        planned = await cluster.revoker().plan(a.id)
        assert planned.rogue_roots == ()
        report = await cluster.revoker().revoke(a.id, reason="stolen")
        assert report.rogue_roots == ()
        document = await cluster.document()
        assert a.id in document.revoked_ids
        assert document.find_root(a.id) == a.session
        assert document.pruned == before.pruned - 1
        assert not await node.answers(a)
        await node.push(NOTES, [signed_commit(a)], document.current)
        assert await ids(node, NOTES, document.current) == {note.id}, "what was held counts, and nothing else"
        pool = cluster.servers[0].database().pool
        assert set(roots) - {a.id} <= set(pool.root_ids), "no other root goes with it"
        with pytest.raises(IllegalStepError):
            await cluster.revoker().revoke("stranger", reason="never heard of")


async def test_a_root_that_only_older_versions_of_the_secret_list_can_be_revoked_without_servers(
    tmp_path: Path,
) -> None:
    a = root("root-a")
    async with cluster_of(tmp_path, document_of(a), 1) as cluster:
        await aged_cluster(cluster)
        node, document = cluster.nodes[0], await cluster.document()
        assert document.find_root(a.id) is None
        assert await node.answers(a)
        report = await Revoker(cluster.provider, SECRET, (), policy=POLICY).revoke(a.id, reason="stolen")
        assert report.revoked_id == a.id
        await node.refresh(document.current)
        assert not await node.answers(a)


async def test_revoking_the_current_root_takes_no_root_that_has_left_the_document_with_it(tmp_path: Path) -> None:
    a = root("root-a")
    async with cluster_of(tmp_path, document_of(a), 1) as cluster:
        roots = await aged_cluster(cluster)
        document = await cluster.document()
        stolen, thief = document.current.id, root("rogue")
        (node,) = cluster.nodes
        await node.push(SESSIONS, [session_commit(document.current, thief.session)], document.current)
        planned = await cluster.revoker().plan(stolen)
        assert planned.rogue_roots == (thief.id,), "and not the roots that it introduced before they left the document"
        report = await cluster.revoker().revoke(stolen, reason="stolen")
        assert report.rogue_roots == (thief.id,)
        assert set(roots) - {stolen} <= set(cluster.servers[0].database().pool.root_ids)


async def test_a_revocation_ends_where_the_store_is_restored_meanwhile_and_gives_its_version_id_again(
    tmp_path: Path,
) -> None:
    a = root("root-a")
    async with cluster_of(tmp_path, document_of(a), 1) as cluster:
        store = cluster.provider.store
        backup = dict(store.secrets)
        started = prepare_rotation(
            await cluster.document(),
            root("fork"),
            now_ms=now_ms(),
            rotation_id="fork",
            started_by="",
            stable_version="1",
        )
        await cluster.put(correct_times(await cluster.document(), now_ms()))
        push = cluster.nodes[0].push

        async def restored_meanwhile(*arguments: Any, **options: Any) -> Any:
            before = (await cluster.provider.read(SECRET)).version.id
            store.secrets = dict(backup)
            await cluster.put(started)
            assert (await cluster.provider.read(SECRET)).version.id == before
            return await push(*arguments, **options)

        cluster.nodes[0].push = restored_meanwhile  # type: ignore[method-assign]
        with pytest.raises(StoreWentBackError, match="a backup was restored meanwhile"):
            await cluster.revoker().revoke(a.id, reason="stolen")
        assert await cluster.document() == started, "it was overwritten"
