"""One round at a time reads the server's repositories; it returns every commit, and other requests continue
meanwhile."""

from __future__ import annotations

import asyncio
import json

import pytest

from goatherd.clock import SystemClock
from goatherd.door.repository_reader import SLICE, Ask, RepositoryReader, SharedRounds
from goatherd.errors import NodeRefusedError, NodeUnreachableError
from goatherd.wire.bloom import BloomFilter
from goatherd.wire.json import to_json_bytes
from tests.cluster.door_world import A


def reader_of(ask: Ask) -> RepositoryReader:
    return RepositoryReader("/data/x", ask=ask, signer=lambda: A, clock=SystemClock(), error_rate=1e-3)


def answer(ids: list[str], size: int) -> tuple[int, bytes]:
    return 200, to_json_bytes([{"path": "/data/x", "res": {"c": [{"id": each} for each in ids], "s": size}}])


async def test_what_was_read_before_a_round_failed_is_returned_by_the_next_read() -> None:
    ids = [f"id{number}" for number in range(20)]
    asked = 0

    async def ask(body: bytes, signature: str) -> tuple[int, bytes]:
        nonlocal asked
        asked += 1
        if asked == 2:
            raise NodeUnreachableError("away")
        held = BloomFilter.from_json(json.loads(body)[0]["msg"]["f"]["__v"])
        return answer([each for each in ids if each not in held][:12], len(ids))

    reader = reader_of(ask)
    with pytest.raises(NodeUnreachableError):
        await reader.read_new()
    assert [each["id"] for each in await reader.read_new()] == ids
    assert await reader.read_new() == []


@pytest.mark.parametrize("depth", [300, 2_000, 100_000])
async def test_a_commit_that_is_nested_too_deeply_hides_no_other(depth: int) -> None:
    commits = [{"id": f"id{number}", "k": "x" * 100} for number in range(3)]

    async def ask(body: bytes, signature: str) -> tuple[int, bytes]:
        text = to_json_bytes([{"path": "/data/x", "res": {"c": commits, "s": 3}}])
        return 200, text.replace(b'"id1",', b'"id1","c":' + b"[" * depth + b"]" * depth + b",")

    found = {each["id"] for each in await reader_of(ask).read_new()}
    assert {"id0", "id2"} <= found


async def test_a_server_that_rejects_the_signature_is_said_to_have_another_identity_or_clock() -> None:
    async def ask(body: bytes, signature: str) -> tuple[int, bytes]:
        return 403, b""

    with pytest.raises(NodeRefusedError, match=f"does not trust root {A.id} .*, or its clock differs"):
        await reader_of(ask).read_new()


async def test_other_requests_are_answered_while_a_large_repository_is_read() -> None:
    ids = [f"id{number}" for number in range(8 * SLICE)]

    async def ask(body: bytes, signature: str) -> tuple[int, bytes]:
        return answer(ids, len(ids))

    reader = reader_of(ask)
    reading = asyncio.create_task(reader.read_new())
    turns = 0
    while not reader.ids:
        await asyncio.sleep(0)
    while not reading.done():
        turns += 1
        await asyncio.sleep(0)
    assert [each["id"] for each in reading.result()] == ids
    assert turns >= 7
    assert not any(reader.hides_commit(each) for each in ids)
    assert all(each in reader._filter for each in ids)


async def test_many_who_ask_at_once_share_one_round_and_never_one_that_began_before() -> None:
    began: list[int] = []
    go_on = asyncio.Event()

    async def work() -> None:
        began.append(len(began))
        await go_on.wait()

    rounds = SharedRounds(work, "test")
    first = asyncio.create_task(rounds.run())
    await asyncio.sleep(0)
    others = [asyncio.create_task(rounds.run()) for _ in range(10)]
    await asyncio.sleep(0)
    others[0].cancel()
    go_on.set()
    await asyncio.wait([first, *others])
    assert began == [0, 1]
    await rounds.aclose()


async def test_never_do_two_rounds_run_at_once_although_callers_come_back_as_soon_as_one_has_ended() -> None:
    running = most = 0

    async def work() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.001)
        running -= 1

    rounds = SharedRounds(work, "test")

    async def call_repeatedly() -> None:
        for _ in range(5):
            await rounds.run()

    await asyncio.gather(*(call_repeatedly() for _ in range(3)))
    assert most == 1
