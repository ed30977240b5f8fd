"""The order and the form in which the commits of a push are delivered."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goatherd.clock import SystemClock
from goatherd.door.commit_index import RepositoryIndex
from goatherd.door.delivery import Delivery, Verified, encode_batch, parents_first
from goatherd.door.received_commits import ReceivedCommit
from goatherd.door.request_checks import Element
from goatherd.wire.commit import Commit
from goatherd.wire.json import to_json_bytes
from tests.cluster.door_world import A, X, believe
from tests.deadlines import HANG
from tests.unit.goats import ORG, commit_by, element

PATH = "/data/x"


@given(st.lists(st.lists(st.integers(0, 11), max_size=3), min_size=12, max_size=12), st.permutations(range(12)))
def test_a_push_is_put_into_an_order_in_which_parents_come_first(links: list[list[int]], order: list[int]) -> None:
    raws: list[dict[str, Any]] = []
    for number, others in enumerate(links):
        earlier = [str(each) for each in others if each < number]
        raws.append({"id": str(number), "p": earlier, "c": {"b": earlier[0]} if earlier else {"r": {}}})
    found = ordered([raws[number] for number in order])
    assert sorted(found, key=lambda raw: int(raw["id"])) == raws
    at = {raw["id"]: position for position, raw in enumerate(found)}
    for raw in raws:
        assert all(at[each] < at[raw["id"]] for each in raw["p"])


def ordered(raws: Sequence[Any]) -> list[Any]:
    return [each.raw for each in parents_first([ReceivedCommit(raw) for raw in raws])]


def test_the_order_of_commits_that_wait_for_nothing_stays_and_circles_and_nonsense_are_kept() -> None:
    plain: list[Any] = [{"id": "b"}, {"id": "a"}, None, {"id": 1}, {"id": "c", "p": ["a", 7], "c": []}]
    assert ordered(plain) == plain
    circle: list[Any] = [{"id": "a", "p": ["b"]}, {"id": "b", "p": ["a"]}, {"id": "c", "p": ["c"]}]
    assert sorted(map(str, ordered(circle))) == sorted(map(str, circle))


@pytest.mark.parametrize("is_large", [False, True])
async def test_a_batch_is_encoded_with_other_commits_than_its_own(is_large: bool) -> None:
    message = {"ver": 1, "f": {"d": "AA==", "s": []}, "c": [{"id": "bad"}], "ad": []}
    raw = {"msg": message, "more": ["\u00e9", None], "path": "/data/x"}
    element = Element(raw, "/data/x", [], is_large=is_large)
    commits = [{"id": "a", "ts": 1.5}, {"id": "b"}]
    received = [ReceivedCommit(each) for each in commits]
    body = await encode_batch([(element, raw, received), (element, raw, [])])
    assert json.loads(body) == [{**raw, "msg": {**message, "c": commits}}, {**raw, "msg": {**message, "c": []}}]
    assert message["c"] == [{"id": "bad"}]


# --- several deliveries of the same commits ---------------------------------------------------------------------------


async def empty_index() -> RepositoryIndex:
    async def ask(body: bytes, signature: str) -> tuple[int, bytes]:
        return 200, to_json_bytes([{"path": PATH, "res": {"c": [], "s": 0}}])

    index = RepositoryIndex(PATH, ask=ask, signer=lambda: A, verify=believe, clock=SystemClock())
    await index.refresh()
    return index


def delivery_of(index: RepositoryIndex, *commits: Commit) -> Delivery:
    async def find(path: str) -> RepositoryIndex:
        return index

    async def judge(part: Element, received: Sequence[ReceivedCommit]) -> list[Verified]:
        return [Verified(part, each, Commit.from_json(each.raw, org=ORG)) for each in received]

    async def admit(held: RepositoryIndex, found: Sequence[Verified]) -> list[Verified]:
        problems = await held.hold_accepted([each.commit for each in found])
        return [each for each, problem in zip(found, problems, strict=True) if problem is None]

    async def send(body: bytes) -> int:
        return 200

    raw = element(PATH, commits)
    parts = [Element(raw, PATH, [ReceivedCommit(each) for each in raw["msg"]["c"]])]
    return Delivery(parts, index_of=find, judge=judge, admit=admit, send=send)


def note(key: str) -> Commit:
    return commit_by(X, key, {"text": "x"})


async def finish(delivery: Delivery) -> set[str]:
    """Run a delivery to its end, as its request does; return the ids of its last portion."""
    async with asyncio.timeout(HANG):
        last = await delivery.run()
    delivery.settle_held(is_stored=True)
    delivery.release_commits()
    return {each.commit.id for each in last}


async def test_what_an_earlier_delivery_has_failed_to_deliver_is_claimed_by_the_one_that_waits() -> None:
    index, first, own = await empty_index(), note("first"), note("own")
    failing, waiting = delivery_of(index, first), delivery_of(index, first, own)
    await failing.claim_commits()
    await waiting.claim_commits()
    running = asyncio.create_task(finish(waiting))
    await asyncio.sleep(0)
    assert not running.done()
    failing.release_commits()
    assert await running == {first.id, own.id}


async def test_two_deliveries_never_wait_for_each_other() -> None:
    """A commit is released while a delivery also waits for another commit, and a later delivery claims the first
    one."""
    index, own, first, second = await empty_index(), note("own"), note("first"), note("second")
    failing, slow = delivery_of(index, first), delivery_of(index, second)
    waiting, later = delivery_of(index, own, first, second), delivery_of(index, own, first)
    for each in (failing, slow, waiting):
        await each.claim_commits()
    running = asyncio.create_task(finish(waiting))
    await asyncio.sleep(0)
    failing.release_commits()
    await later.claim_commits()
    assert index.find_claimant(first.id) is later, "it came before the one that waited was awake"
    last = asyncio.create_task(finish(later))
    await asyncio.sleep(0)
    slow.release_commits()
    assert await running == {own.id, second.id}
    assert await last == {first.id}
    assert not index._claims
