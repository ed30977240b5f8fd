"""Large pushes through the door: verified once, delivered once, answered while the client waits."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from typing import Any

import httpx2
import pytest

import goatherd.trust
from goatherd.crypto.keys import SignatureCheck
from goatherd.door import door, proxy
from goatherd.door.delivery import smallest_portion
from goatherd.door.limits import DoorLimits
from goatherd.door.request_checks import DoorRule
from goatherd.identity.session import Session
from goatherd.wire.commit import Commit
from goatherd.wire.json import to_json_bytes
from tests.cluster.door_world import A, World, X, world
from tests.cluster.pushing import OFFERS, PushingClient
from tests.deadlines import HANG
from tests.unit.goats import ORG, commit_by, element, introduction, owned

NOTES = "/data/notes"
WORK = timedelta(milliseconds=4)
MANY = 200


def notes(count: int) -> list[Commit]:
    return [commit_by(X, f"k{number}", {"text": "x"}) for number in range(count)]


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often the door has checked the signature of each commit."""
    counts: Counter[str] = Counter()
    read = goatherd.trust.read_signature_by

    def counted(session: Session, commit: Commit) -> SignatureCheck:
        counts[commit.id] += 1
        return read(session, commit)

    monkeypatch.setattr(goatherd.trust, "read_signature_by", counted)
    return counts


def client(w: World, commits: Sequence[Commit], *, through: bool = True, **more: Any) -> PushingClient:
    return PushingClient(w.base(through), X, NOTES, commits, **more)


async def until_stored(w: World, commits: Sequence[Commit]) -> None:
    async with asyncio.timeout(HANG):
        while not w.stored(NOTES) >= {each.id for each in commits}:
            await asyncio.sleep(0.01)


async def push_until_stored(w: World, commits: Sequence[Commit], **more: Any) -> None:
    """Push again after each 503, as a client does: on a busy machine the door may not have verified all in time."""
    async with asyncio.timeout(HANG):
        while (await w.push(True, NOTES, *commits, **more)).status_code == 503:
            await asyncio.sleep(0.01)
    await until_stored(w, commits)


@pytest.mark.slow
async def test_without_a_door_a_client_that_gives_up_has_the_server_verify_everything_again() -> None:
    async with world(work=WORK) as w:
        commits = notes(MANY)
        pushing = client(w, commits, through=False, patience=0.4)
        await pushing.run()
        await until_stored(w, commits)
        assert pushing.timeouts
        assert max(w.child.verified.values()) > 1


@pytest.mark.slow
async def test_a_client_that_gives_up_and_sends_everything_again_costs_no_second_verification(
    checked: Counter[str],
) -> None:
    async with world(work=WORK) as w:
        commits = notes(MANY)
        pushing = client(w, commits, patience=0.4)
        await pushing.run()
        await until_stored(w, commits)
        assert pushing.timeouts
        assert set(w.child.verified.values()) == {1}
        assert set(checked.values()) == {1}


@pytest.mark.slow
async def test_a_large_push_is_answered_before_its_client_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy, "ANSWER_SECONDS", 0.3)
    monkeypatch.setattr(proxy, "JUDGE_SECONDS", 0.1)
    async with world(work=3 * WORK) as w:  # it takes several times as long as one answer may, on a slow machine too
        commits = notes(MANY)
        pushing = client(w, commits, patience=HANG)
        await pushing.run()
        await until_stored(w, commits)
        answered = pushing.statuses.count(200)
        assert answered > 2, "one asks for the filter; the push took several"
        assert set(w.child.verified.values()) == {1}
        assert max(pushing.offered.values()) < OFFERS


async def test_a_server_that_pushes_is_answered_earlier_than_a_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy, "ANSWER_SECONDS", HANG)
    monkeypatch.setattr(proxy, "PEER_ANSWER_SECONDS", 0.3)
    monkeypatch.setattr(proxy, "JUDGE_SECONDS", 0.1)
    async with world() as w:
        commits = notes(100)
        async with w.child.stalled():
            assert (await w.push(True, NOTES, *commits, by=A)).status_code == 503
        await push_until_stored(w, commits, by=A)


@pytest.mark.slow
async def test_clients_are_not_answered_so_often_that_they_take_a_commit_for_replicated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(proxy, "ANSWER_SECONDS", 0.1)
    monkeypatch.setattr(proxy, "JUDGE_SECONDS", 0.0)
    async with world(work=WORK) as w:
        commits = notes(2 * MANY)
        pushing = client(w, commits, patience=HANG)
        await pushing.run()
        assert w.stored(NOTES) == {each.id for each in commits}, "it stopped only when everything was stored"
        assert 503 in pushing.statuses
        assert max(pushing.offered.values()) < OFFERS


async def test_a_push_that_a_stalled_server_does_not_take_is_503_and_delivered_when_it_wakes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(proxy, "ANSWER_SECONDS", 0.3)
    monkeypatch.setattr(proxy, "JUDGE_SECONDS", 0.1)
    async with world(work=WORK) as w:
        commits = notes(100)
        async with w.child.stalled():
            responses = await asyncio.gather(*[w.push(True, NOTES, *commits) for _ in range(3)])
            assert [each.status_code for each in responses] == [503] * 3
            assert not w.stored(NOTES)
        await push_until_stored(w, commits)
        assert set(w.child.verified.values()) == {1}


@pytest.mark.slow
async def test_the_next_part_of_a_push_is_verified_while_the_server_works_on_the_one_before(
    checked: Counter[str],
) -> None:
    async with world(work=WORK) as w:
        commits = notes(200)
        async with w.child.stalled():
            pushing = asyncio.create_task(w.push(True, NOTES, *commits))
            async with asyncio.timeout(HANG):
                while len(checked) < len(commits):
                    await asyncio.sleep(0.01)
            assert not w.stored(NOTES)
        assert (await pushing).status_code == 200
        assert w.stored(NOTES) == {each.id for each in commits}


@pytest.mark.parametrize("is_chain", [False, True])
async def test_two_parts_are_on_their_way_together_unless_one_builds_on_the_other(
    is_chain: bool, checked: Counter[str]
) -> None:
    async with world() as w:
        commits = notes(200)
        if is_chain:
            commits = commits[:1]
            for number in range(1, 200):
                commits.append(commit_by(X, commits[0].key, {"text": str(number)}, parents=[commits[-1].id]))
        async with w.child.stalled():
            pushing = asyncio.create_task(w.push(True, NOTES, *commits))
            async with asyncio.timeout(HANG):
                while len(checked) < len(commits) or len(w.pushes()) < (1 if is_chain else 2):
                    await asyncio.sleep(0.01)
            await asyncio.sleep(0.05)  # for what must not come
            assert len(w.pushes()) == (1 if is_chain else 2)
        assert (await pushing).status_code == 200
        assert w.stored(NOTES) == {each.id for each in commits}


@pytest.mark.slow
async def test_a_large_push_is_not_read_back_all_the_time() -> None:
    """The server sends back every commit that it has just stored, and searches all commits that it holds for them."""
    async with world(work=timedelta(milliseconds=1)) as w:
        commits, began = notes(1000), time.monotonic()
        assert (await w.push(True, NOTES, *commits)).status_code == 200
        async with asyncio.timeout(HANG):  # a slow door answers before it has delivered everything
            while w.stored(NOTES) != {each.id for each in commits}:
                await asyncio.sleep(0.05)
        readings = [json.loads(body) for _, target, body in w.child.reached if target == "/batch-sync"]
        readings = [each for each in readings if each[0]["path"] == NOTES and not each[0]["msg"]["c"]]
        assert len(w.pushes()) > 4
        assert len(readings) <= 2 + (time.monotonic() - began) / 3


@pytest.mark.parametrize(("held", "size"), [(0, 32), (1920, 32), (6000, 100), (30_000, 500), (1_000_000, 500)])
def test_a_server_that_holds_much_gets_larger_parts(held: int, size: int) -> None:
    """Each of its answers has a filter of all that it holds."""
    assert smallest_portion(held) == size


async def test_what_the_server_holds_is_neither_decoded_nor_delivered_again(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[str] = []
    read = proxy.read_commit

    def noted(raw: Any, *args: Any, **options: Any) -> Commit:
        decoded.append(raw["id"])
        return read(raw, *args, **options)

    monkeypatch.setattr(proxy, "read_commit", noted)
    async with world() as w:
        commits, fresh = notes(50), commit_by(X, "fresh", {"text": "x"})
        for each in commits:
            w.child.create(NOTES, each)
        assert (await w.push(True, NOTES, *commits, fresh)).status_code == 200
        assert decoded == [fresh.id]
        assert [[one["id"] for one in json.loads(body)[0]["msg"]["c"]] for body in w.pushes()] == [[fresh.id]]

        lost = commits[:5]
        await w.child.crash(NOTES, *[each.id for each in lost])
        assert (await w.push(True, NOTES, *commits)).status_code == 200
        assert w.stored(NOTES) == {each.id for each in (*commits, fresh)}
        assert decoded == [fresh.id, *[each.id for each in lost]]


async def test_a_push_in_parts_brings_parents_before_their_children_and_drops_what_is_bad() -> None:
    async with world() as w:
        chain = [commit_by(X, "k", {"text": "x"})]
        for number in range(1, 100):
            chain.append(commit_by(X, "k", {"text": str(number)}, parents=[chain[-1].id]))
        forged = [{**each.to_json(), "k": "other"} for each in notes(10)]
        given: list[Any] = [*reversed(chain), *forged]
        response = await w.push(True, NOTES, *given)
        assert response.status_code == 200
        assert w.stored(NOTES) == {each.id for each in chain}
        assert w.stopped(DoorRule.SIGNATURE) == len(forged)
        assert not w.stopped(DoorRule.BIRTH)


async def test_a_session_and_what_it_wrote_arrive_in_their_order_in_a_push_of_many_parts() -> None:

    async with world() as w:
        fresh = owned("anon-fresh")
        commits = [commit_by(fresh, f"k{number}", {"text": "x"}) for number in range(150)]
        body = [element("/sys/sessions", [introduction(fresh, A)]), element(NOTES, commits)]
        assert (await w.send(True, body, by=A)).status_code == 200
        assert w.stored(NOTES) == {each.id for each in commits}


async def test_a_forgery_under_the_id_of_a_commit_on_its_way_does_not_count_as_that_one() -> None:
    async with world(work=WORK) as w:
        commits = notes(100)
        forged = [{**each.to_json(), "k": "other"} for each in commits]
        async with w.child.stalled():
            first = asyncio.create_task(w.push(True, NOTES, *forged))
            while not w.stopped(DoorRule.SIGNATURE):
                await asyncio.sleep(0.01)
            second = asyncio.create_task(w.push(True, NOTES, *commits))
        await asyncio.gather(first, second)
        assert w.stored(NOTES) == {each.id for each in commits}


@pytest.mark.slow
async def test_a_push_whose_server_ends_in_the_middle_can_be_sent_again() -> None:
    async with world(work=WORK) as w:
        commits = notes(200)
        pushing = asyncio.create_task(w.push(True, NOTES, *commits))
        async with asyncio.timeout(HANG):
            while not w.stored(NOTES):
                await asyncio.sleep(0.01)
        await w.child.crash(NOTES)
        assert (await pushing).status_code in (200, 502, 503)
        assert (await w.push(True, NOTES, *commits)).status_code == 200
        assert w.stored(NOTES) == {each.id for each in commits}


@pytest.mark.slow
@pytest.mark.parametrize("is_early", [False, True])
async def test_a_door_that_stops_in_the_middle_of_a_large_push_leaves_no_traceback(
    is_early: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """`is_early`: the client has its answer, and the rest is still being delivered."""
    monkeypatch.setattr(proxy, "ANSWER_SECONDS", 0.0 if is_early else HANG)
    monkeypatch.setattr(proxy, "JUDGE_SECONDS", 0.2)
    monkeypatch.setattr(door, "GRACE", timedelta(milliseconds=100))
    async with contextlib.AsyncExitStack() as stack, world(work=5 * WORK) as w:
        commits = notes(MANY)
        pushing = asyncio.create_task(w.push(True, NOTES, *commits))
        async with asyncio.timeout(HANG):
            while not w.stored(NOTES):
                await asyncio.sleep(0.001)
            # However slow this machine is, the rest is not stored before the door stops.
            await stack.enter_async_context(w.child.stalled())
            while is_early and not pushing.done():
                await asyncio.sleep(0.01)
        caplog.clear()
    assert len(w.stored(NOTES)) < len(commits)
    assert not [each.getMessage() for each in caplog.records if each.levelno >= logging.ERROR]
    left = {task.get_name() for task in asyncio.all_tasks()}
    assert not left & {"rest of a push", "delivery of a push", "verify a push", "part of a push"}
    with contextlib.suppress(httpx2.HTTPError):
        await pushing


async def push_at_random(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients push overlapping sets of chains, give up and are answered at random times, and the server stalls."""
    rng = random.Random(seed)
    monkeypatch.setattr(proxy, "ANSWER_SECONDS", rng.uniform(0.05, 0.5))
    monkeypatch.setattr(proxy, "JUDGE_SECONDS", rng.uniform(0.0, 0.2))
    async with world(work=timedelta(milliseconds=rng.uniform(0.2, 2))) as w:
        commits: list[Commit] = []
        for number in range(rng.randrange(20, 60)):
            last: list[str] = []
            for _ in range(rng.choice((1, 1, 1, 2, 5))):
                commits.append(commit_by(X, f"k{number}", {"text": "x"}, parents=last))
                last = [commits[-1].id]
        clients = []
        for _ in range(3):
            # A client has what its commits build on.
            begin = rng.randrange(len(commits))
            mine = commits if rng.random() < 0.5 else [each for each in commits if each.key >= commits[begin].key]
            clients.append(client(w, mine, patience=rng.uniform(0.05, 1.0), pause=rng.uniform(0.01, 0.1)))
        clients.append(client(w, commits, patience=HANG))

        async def stall() -> None:
            for _ in range(3):
                await asyncio.sleep(rng.uniform(0.0, 0.3))
                async with w.child.stalled():
                    await asyncio.sleep(rng.uniform(0.0, 0.3))

        async with asyncio.timeout(2 * HANG), asyncio.TaskGroup() as group:
            group.create_task(stall())
            for each in clients:
                group.create_task(each.run())
        await until_stored(w, commits)
        assert w.child.died is None
        assert set(w.child.verified.values()) == {1}
        assert w.stored(NOTES) == {each.id for each in commits}
        assert w.door._proxy is not None
        async with asyncio.timeout(HANG):
            while w.door._proxy._deliveries or w.door.status.requests:
                await asyncio.sleep(0.01)
        assert not w.door._indexes[ORG]._indexes[NOTES]._claims
        assert w.door._limiter.budget._left == DoorLimits().buffered_bytes


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
async def test_everything_is_stored_once_whichever_client_gives_up_and_when(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    await push_at_random(seed, monkeypatch)


@pytest.mark.deep
@pytest.mark.parametrize("seed", range(3, 100))
async def test_everything_is_stored_once_whichever_client_gives_up_at_many_seeds(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    await push_at_random(seed, monkeypatch)


# --- a session that the door does not know yet ------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def not_listed(w: World, commits: Sequence[Commit], size: int) -> AsyncIterator[asyncio.Task[httpx2.Response]]:
    """A push by a session that the door looks for in vain while the block runs: the server does not list any."""
    looking, may_read = asyncio.Event(), asyncio.Event()
    look_up = w.trust.look_up

    async def wait() -> None:
        looking.set()
        await may_read.wait()
        await look_up()

    w.trust.look_up = wait  # type: ignore[method-assign]
    body = to_json_bytes([element(NOTES, commits)]).ljust(size)
    pushing = asyncio.create_task(w.send(True, body, by=FRESH))
    async with asyncio.timeout(HANG):
        await looking.wait()
    yield pushing
    may_read.set()
    await pushing


FRESH = owned("anon-fresh")


@pytest.mark.parametrize("size", [1_000, 100_000])
async def test_a_new_session_s_push_is_answered_before_its_client_gives_up(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proxy, "ANSWER_SECONDS", 0.2)
    monkeypatch.setattr(proxy, "JUDGE_SECONDS", 0.1)
    async with world() as w:
        commit = commit_by(FRESH, "k", {"text": "x"})
        async with not_listed(w, [commit], size) as pushing:
            response = await asyncio.wait_for(asyncio.shield(pushing), HANG)
            assert (response.status_code, response.headers["retry-after"]) == (503, "1")
        w.child.introduce(FRESH.session)
        monkeypatch.setattr(proxy, "ANSWER_SECONDS", HANG)
        assert (await w.push(True, NOTES, commit, by=FRESH)).status_code == 200
        assert w.stored(NOTES) == {commit.id}


async def test_what_waits_for_its_session_keeps_no_memory_from_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy, "ANSWER_SECONDS", HANG)
    async with world(limits=DoorLimits(buffered_bytes=110_000)) as w:
        commit, late = commit_by(X, "k", {"text": "x"}), commit_by(FRESH, "j", {"text": "x"})
        async with not_listed(w, [late], 60_000) as pushing:
            body = to_json_bytes([element(NOTES, [commit])]).ljust(100_000)
            assert (await w.send(True, body)).status_code == 200
            assert w.stored(NOTES) == {commit.id}
            w.child.introduce(FRESH.session)
        assert pushing.result().status_code == 200
        assert w.stored(NOTES) == {commit.id, late.id}


async def test_an_unknown_session_is_looked_for_once_in_a_push_of_many_parts() -> None:
    async with world() as w:
        look_ups = 0
        look_up = w.trust.look_up

        async def counted() -> None:
            nonlocal look_ups
            look_ups += 1
            await look_up()

        w.trust.look_up = counted  # type: ignore[method-assign]
        commits = [commit_by(FRESH, f"k{number}", {"text": "x"}) for number in range(300)]
        assert (await w.push(True, NOTES, *commits)).status_code == 200
        assert (look_ups, w.stored(NOTES), w.stopped(DoorRule.UNKNOWN_SIGNER)) == (1, set(), len(commits))
