"""What happens to a request whose caller is cancelled."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from goatherd.providers.cancellation import finish_request


async def test_the_answer_of_a_request_is_returned_and_its_error_raised():
    async def work(answer: str | Exception) -> str:
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert await finish_request(work("done")) == "done"
    with pytest.raises(KeyError):
        await finish_request(work(KeyError("x")))


@pytest.mark.parametrize("fails", [False, True])
async def test_a_cancelled_request_that_is_answered_in_time_has_taken_effect(fails: bool):
    begun, answered, done = asyncio.Event(), asyncio.Event(), list[str]()

    async def work() -> None:
        begun.set()
        await answered.wait()
        done.append("it was done")
        if fails:
            raise OSError("an answer that is not awaited")

    task = asyncio.create_task(finish_request(work(), timedelta(minutes=1)))
    await begun.wait()
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done(), "it waits for the answer"
    answered.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done == ["it was done"]


async def test_a_cancelled_request_that_is_not_answered_is_given_up():
    begun, given_up = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            given_up.set()

    task = asyncio.create_task(finish_request(work(), timedelta(milliseconds=1)))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await given_up.wait()
