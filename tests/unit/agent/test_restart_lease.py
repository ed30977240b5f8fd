"""The restart lease: one server restarts at a time, even if the holder of the lease crashes, hangs or loses the
store."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from goatherd.agent.restart_lease import SKEW, TERM, Lease, LeaseRecord, lease_id_for, read_lease
from goatherd.errors import AgentError, ProviderAccessDeniedError, SecretNotFoundError, UnavailableError
from goatherd.providers.base import Call
from goatherd.providers.values import CURRENT, Label, SecretBytes, SecretVersion, VersionId
from tests.unit.settings.make import NOW, CountingProvider, HandClock, settle

HERE = lease_id_for("goatdb/root")
SECOND = timedelta(seconds=1)


@pytest.fixture
async def provider() -> AsyncIterator[CountingProvider]:
    async with CountingProvider() as opened:
        yield opened


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


def lease(provider: CountingProvider, clock: HandClock, holder: str) -> Lease:
    return Lease(provider, HERE, holder=holder, clock=clock)


async def ticket(provider: CountingProvider) -> LeaseRecord:
    return LeaseRecord.from_bytes((await provider.read(HERE, CURRENT)).value.reveal())


class Turn:
    """Another holder, which takes the lease and keeps it until the test releases it."""

    def __init__(self, one: Lease) -> None:
        self.has_it = asyncio.Event()
        self.done = asyncio.Event()
        self.task = asyncio.create_task(self._take(one))

    async def _take(self, one: Lease) -> None:
        async with one.hold():
            self.has_it.set()
            await self.done.wait()

    async def end(self) -> None:
        self.done.set()
        await self.task

    async def crash(self) -> None:
        """End without releasing the lease."""
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.task


async def until(clock: HandClock, turn: Turn, limit: timedelta) -> timedelta:
    """Advance the clock until a server has the lease; return how long that took."""
    passed = timedelta(0)
    while not turn.has_it.is_set():
        assert passed < limit, "no server got it"
        await clock.turn(SECOND)
        passed += SECOND
    return passed


def frozen(one: Lease) -> None:
    """Simulate a killed holder: it neither renews nor releases the lease."""

    async def nothing() -> None:
        await asyncio.Event().wait()

    async def release() -> None:
        return None

    one._renew_lease = nothing  # type: ignore[method-assign]
    one._release_lease = release  # type: ignore[method-assign]


async def test_of_two_one_waits_until_the_other_gives_it_back(provider: CountingProvider, clock: HandClock) -> None:
    first, second = Turn(lease(provider, clock, "one")), None
    await settle()
    assert first.has_it.is_set()
    assert (await ticket(provider)).holder == "one"
    second = Turn(lease(provider, clock, "two"))
    for _ in range(5):
        await clock.turn(SECOND)
    assert not second.has_it.is_set()
    await first.end()
    assert (await ticket(provider)).holder is None
    await until(clock, second, 10 * SECOND)
    assert (await ticket(provider)).holder == "two"
    await second.end()


async def test_of_many_at_once_exactly_one_has_it_at_any_moment(provider: CountingProvider, clock: HandClock) -> None:
    inside, most, done = 0, 0, 0

    async def take(name: str) -> None:
        nonlocal inside, most, done
        async with lease(provider, clock, name).hold():
            inside += 1
            most = max(most, inside)
            await clock.sleep(SECOND)
            inside -= 1
            done += 1

    tasks = [asyncio.create_task(take(f"node-{number}")) for number in range(6)]
    for _ in range(600):
        if done == 6:
            break
        await clock.turn(SECOND)
    await asyncio.gather(*tasks)
    assert most == 1


async def test_it_is_renewed_for_as_long_as_it_is_held(provider: CountingProvider, clock: HandClock) -> None:
    first = Turn(lease(provider, clock, "one"))
    await settle()
    second = Turn(lease(provider, clock, "two"))
    for _ in range(2 * (TERM + SKEW) // SECOND):
        await clock.turn(SECOND)
    assert not second.has_it.is_set()
    assert (await ticket(provider)).until_ms > clock.now_ms()
    await first.end()
    await until(clock, second, 10 * SECOND)
    await second.end()


async def test_a_holder_that_has_crashed_is_waited_for_until_the_deadline_and_the_skew_and_no_longer(
    provider: CountingProvider, clock: HandClock
) -> None:
    crashed = lease(provider, clock, "one")
    frozen(crashed)
    gone = Turn(crashed)
    await settle()
    await gone.crash()
    second = Turn(lease(provider, clock, "two"))
    waited = await until(clock, second, 5 * TERM)
    assert TERM + SKEW <= waited <= TERM + SKEW + 5 * SECOND
    await second.end()


async def test_the_next_agent_of_the_same_node_need_not_wait_for_the_one_that_has_crashed(
    provider: CountingProvider, clock: HandClock
) -> None:
    crashed = Lease(provider, HERE, holder="one:7", token="node-one", clock=clock)
    frozen(crashed)
    gone = Turn(crashed)
    await settle()
    await gone.crash()
    again = Turn(Lease(provider, HERE, holder="one:8", token="node-one", clock=clock))
    await settle()
    assert again.has_it.is_set()
    assert (await ticket(provider)).holder == "one:8"
    await again.end()


@pytest.mark.parametrize("until_ms", [NOW + 10**12, 10**30], ids=["a wrong clock", "no end"])
async def test_a_lease_that_is_not_renewed_ends_whatever_it_says(
    provider: CountingProvider, clock: HandClock, until_ms: int
) -> None:
    tree = {"goatherdLease": 1, "holder": "one", "token": "x", "until": until_ms, "term": 10**30}
    await provider.create(HERE, json.dumps(tree).encode())
    second = Turn(lease(provider, clock, "two"))
    waited = await until(clock, second, 5 * TERM)
    assert waited >= TERM
    await second.end()


async def test_a_clock_that_is_a_little_ahead_does_not_take_what_is_held(
    provider: CountingProvider, clock: HandClock
) -> None:
    held = LeaseRecord(holder="one", token="x", until_ms=NOW - 20_000)
    await provider.create(HERE, held.to_bytes())
    second = Turn(lease(provider, clock, "two"))
    for _ in range(5):
        await clock.turn(SECOND)
    assert not second.has_it.is_set(), "20 seconds are within the skew"
    await second.crash()


async def test_a_write_whose_answer_was_lost_is_recognized(provider: CountingProvider, clock: HandClock) -> None:
    await provider.create(HERE, LeaseRecord().to_bytes())
    provider.is_answer_lost = True
    turn = Turn(lease(provider, clock, "one"))
    await until(clock, turn, 20 * SECOND)
    assert (await ticket(provider)).holder == "one"
    await turn.end()
    assert (await ticket(provider)).holder is None


@pytest.mark.parametrize("kind", [UnavailableError, ProviderAccessDeniedError])
async def test_a_store_that_fails_is_asked_on(
    provider: CountingProvider, clock: HandClock, kind: type[UnavailableError]
) -> None:
    provider.failures = [kind, kind, kind]
    one = lease(provider, clock, "one")
    turn = Turn(one)
    await clock.turn(SECOND)
    assert one.problem == kind.code
    await until(clock, turn, timedelta(minutes=3))
    assert one.problem is None
    await turn.end()


async def test_what_is_no_lease_is_never_overwritten(provider: CountingProvider, clock: HandClock) -> None:
    precious = json.dumps({"currentSession": "somebody's identity"}).encode()
    await provider.create(HERE, precious)
    turn = Turn(lease(provider, clock, "one"))
    for _ in range(60):
        await clock.turn(SECOND)
    assert not turn.has_it.is_set()
    await turn.crash()
    assert (await provider.read(HERE, CURRENT)).value.reveal() == precious


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{}",
        b"[]",
        b"[" * 100_000,
        b'{"goatherdLease": 1}',
        b'{"goatherdLease": 1, "holder": 3, "token": null}',
        b'{"goatherdLease": 1, "holder": null, "token": null, "until": 1e999}',
    ],
)
def test_a_lease_that_cannot_be_read_is_an_error(raw: bytes) -> None:
    with pytest.raises(AgentError, match="contains something else"):
        LeaseRecord.from_bytes(raw)


async def test_old_values_do_not_pile_up_in_a_store_that_can_destroy(
    provider: CountingProvider, clock: HandClock
) -> None:
    for number in range(5):
        turn = Turn(lease(provider, clock, f"node-{number}"))
        await until(clock, turn, 10 * SECOND)
        await turn.end()
    readable = [one for one in await provider.versions(HERE) if one.state == "enabled"]
    assert len(readable) == 1


async def test_giving_up_the_wait_leaves_no_trace(provider: CountingProvider, clock: HandClock) -> None:
    first = Turn(lease(provider, clock, "one"))
    await settle()
    second = Turn(lease(provider, clock, "two"))
    await clock.turn(SECOND)
    await second.crash()
    assert (await ticket(provider)).holder == "one"
    await first.end()


async def test_giving_up_the_wait_reads_no_store_although_the_lease_was_held_before(
    provider: CountingProvider, clock: HandClock
) -> None:
    mine = lease(provider, clock, "one")
    async with mine.hold():
        pass
    other = Turn(lease(provider, clock, "two"))
    await until(clock, other, 10 * SECOND)
    again = Turn(mine)
    await clock.turn(SECOND)
    provider.hold = asyncio.Event()  # the store does not answer any more
    reads = provider.reads
    await again.crash()
    assert provider.reads == reads
    provider.hold = None
    await other.end()


class SilentProvider(CountingProvider):
    """A provider that makes every change, and does not answer a caller that takes the lease."""

    async def _create(self, call: Call, value: SecretBytes, label: Label) -> SecretVersion:
        return await self._be_silent(await super()._create(call, value, label), value)

    async def _write(self, call: Call, value: SecretBytes, label: Label, expected: VersionId | None) -> SecretVersion:
        return await self._be_silent(await super()._write(call, value, label, expected), value)

    async def _be_silent(self, version: SecretVersion, value: SecretBytes) -> SecretVersion:
        if LeaseRecord.from_bytes(value.reveal()).holder is not None:
            await asyncio.Event().wait()
        return version


@pytest.mark.parametrize("is_made", [False, True])
async def test_a_lease_that_was_taken_by_a_cancelled_write_is_given_back(clock: HandClock, is_made: bool) -> None:
    async with SilentProvider() as provider:
        if is_made:
            await provider.create(HERE, LeaseRecord().to_bytes())
        turn = Turn(lease(provider, clock, "one"))
        await settle()
        assert (await ticket(provider)).holder == "one"
        assert not turn.has_it.is_set()
        await turn.crash()
        assert (await ticket(provider)).holder is None


async def test_a_lease_that_was_made_beforehand_is_free_and_can_be_taken(provider: CountingProvider, clock: HandClock):
    with pytest.raises(SecretNotFoundError):
        await read_lease(provider, HERE)
    made, is_new = await read_lease(provider, HERE, make=True)
    assert (made.holder, is_new) == (None, True)
    async with lease(provider, clock, "node-1").hold():
        held, is_new = await read_lease(provider, HERE, make=True)
        assert (held.holder, is_new) == ("node-1", False)
    assert (await read_lease(provider, HERE))[0].holder is None
