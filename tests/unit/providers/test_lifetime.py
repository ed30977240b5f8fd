"""A provider opens itself, is closed at the end of the event loop, and reports wrong use."""

from __future__ import annotations

import asyncio
import gc

import pytest

from goatherd.errors import ProviderMisuseError, SecretNotFoundError, UnavailableError
from goatherd.providers.base import RetryPolicy
from goatherd.providers.memory import MemorySecretProvider


class Connected(MemorySecretProvider):
    """A store with a connection, which notes when it is opened and closed."""

    def __init__(self, *, failures: int = 0) -> None:
        super().__init__(retry=RetryPolicy(attempts=1))
        self.noted: list[str] = []
        self.failures = failures

    async def _open(self) -> None:
        await asyncio.sleep(0)
        if self.failures:
            self.failures -= 1
            raise UnavailableError("no answer", provider="memory", secret_id="", operation="open")
        self.noted.append("opened")

    async def _close(self) -> None:
        await asyncio.sleep(0)
        self.noted.append("closed")


def test_calls_from_synchronous_code_open_and_close_the_provider_each():
    provider = Connected()
    asyncio.run(provider.create("root", b"value"))
    assert asyncio.run(provider.get_secret("root")).reveal() == b"value"
    assert provider.noted == ["opened", "closed", "opened", "closed"]


def test_a_provider_that_is_dropped_is_closed_at_the_end_of_the_loop_and_nothing_is_reported():
    noted: list[str] = []
    reported: list[str] = []

    async def use_and_drop() -> None:
        provider = Connected()
        provider.noted = noted
        await provider.create("root", b"value")

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context["message"]))
        await use_and_drop()
        gc.collect()
        assert noted == ["opened"]

    asyncio.run(main())
    assert (noted, reported) == (["opened", "closed"], [])


async def test_first_calls_at_once_open_it_once_and_aclose_closes_it():
    provider = Connected()
    await provider.create("root", b"value")
    await asyncio.gather(*[provider.get_secret("root") for _ in range(5)])
    assert provider.noted == ["opened"]
    await provider.aclose()
    assert provider.noted == ["opened", "closed"]
    with pytest.raises(ProviderMisuseError, match="the provider is closed"):
        await provider.get_secret("root")
    await provider.aclose()
    async with provider:
        await provider.get_secret("root")
    assert provider.noted == ["opened", "closed"] * 2


async def test_a_provider_whose_block_has_ended_says_so():
    async with Connected() as provider:
        await provider.create("root", b"value")
    with pytest.raises(ProviderMisuseError, match="the provider is closed") as caught:
        await provider.get_secret("root")
    assert "async with" in caught.value.hint
    assert provider.noted == ["opened", "closed"]


async def test_an_opening_that_fails_is_tried_again_by_the_next_call():
    provider = Connected(failures=1)
    with pytest.raises(UnavailableError):
        await provider.get_secret("root")
    with pytest.raises(SecretNotFoundError):
        await provider.get_secret("root")
    await provider.aclose()
    assert provider.noted == ["opened", "closed"]


async def test_a_call_that_waits_for_the_opening_when_the_provider_is_closed_says_so_and_is_not_cancelled():
    class Slow(Connected):
        async def _open(self) -> None:
            await asyncio.Event().wait()

    provider = Slow()
    call = asyncio.create_task(provider.create("root", b"value"))
    for _ in range(10):
        await asyncio.sleep(0)
    await provider.aclose()
    with pytest.raises(ProviderMisuseError, match="the provider is closed"):
        await call


async def test_a_caller_that_is_cancelled_does_not_take_the_opening_from_others():
    provider = Connected()
    first = asyncio.create_task(provider.create("root", b"value"))
    second = asyncio.create_task(provider.create("other", b"value"))
    await asyncio.sleep(0)
    first.cancel()
    await second
    assert (await asyncio.wait({first}))[0].pop().cancelled()
    await provider.aclose()
    assert provider.noted == ["opened", "closed"]


async def test_a_provider_that_is_open_in_another_event_loop_says_so():
    async with Connected() as provider:
        await provider.create("root", b"value")
        with pytest.raises(ProviderMisuseError, match="another event loop"):
            await asyncio.to_thread(lambda: asyncio.run(provider.get_secret("root")))
        await provider.get_secret("root")


def test_a_block_without_async_is_refused():
    with pytest.raises(TypeError, match="use `async with`"), MemorySecretProvider():
        pass
