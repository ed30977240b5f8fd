"""Callers that ask at once share one reading."""

from __future__ import annotations

import asyncio

from goatherd.door.repository_reader import SharedRounds


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
