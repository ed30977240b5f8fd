"""A rotation that is killed before or after every effect, cancelled at every call, or whose store fails then."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from goatherd.errors import (
    NotAdoptedError,
    ProviderAccessDeniedError,
    ProviderConfigurationError,
    ProviderError,
    SecretNotFoundError,
    UnavailableError,
)
from goatherd.identity.document import Phase, decode_document
from goatherd.providers.values import VersionState
from goatherd.rotation.machine import Outcome
from goatherd.rotation.rotator import Rotator
from tests.fakes.herd import Herd, HerdNode
from tests.unit.rotation.conftest import POLICY, MakeHerd, check_steady, document_of, rotator_for

pytestmark = pytest.mark.slow

EFFECTS = {"write", "label", "destroy", "push", "refresh", "create_session"}
CALLS = EFFECTS | {"read", "versions", "batch_sync", "identity"}


class KilledError(BaseException):
    """The simulated end of a killed process."""


class Trap:
    """Counts calls of chosen methods through the wrappers that it makes, and interrupts the run at the chosen call."""

    def __init__(self, methods: set[str], at: int, spring: Callable[[], Any], *, after: bool) -> None:
        self.methods = methods
        self.at = at
        self.spring = spring
        self.after = after
        self.count = 0
        self.sprung: str | None = None

    def wrap(self, target: object) -> Any:
        return _Wrapped(target, self)


class _Wrapped:
    def __init__(self, target: object, trap: Trap) -> None:
        self._target = target
        self._trap = trap

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._target, name)
        if name not in self._trap.methods:
            return attribute

        async def call(*args: Any, **options: Any) -> Any:
            trap = self._trap
            if trap.sprung is not None and trap.spring is kill:
                raise KilledError  # a process that is gone does nothing more, in no task
            mine = trap.count == trap.at
            trap.count += 1
            if mine and not trap.after:
                trap.sprung = name
                await trap.spring()
            result = await attribute(*args, **options)
            if mine and trap.after:
                trap.sprung = name
                await trap.spring()
            return result

        return call


async def kill() -> None:
    raise KilledError


def trapped(herd: Herd, trap: Trap) -> Rotator:
    return rotator_for(herd, provider=trap.wrap(herd.provider), nodes=[trap.wrap(node) for node in herd.nodes])


async def finish(herd: Herd) -> None:
    """Do what the next operator does: resume the rotation in progress, or rotate if there is none."""
    report = await rotator_for(herd, started_by="carol@host-2:1").resume()
    if report.outcome is Outcome.NOTHING and report.current_id == "root-a":
        report = await rotator_for(herd, started_by="carol@host-2:1").rotate()
    document = await check_steady(herd)
    assert document.current.id != "root-a"
    assert document.rotated_from == "root-a"
    assert herd.refused == 0
    herd.clock.turn(POLICY.grace + timedelta(seconds=1))
    await rotator_for(herd).retire()
    for version in await herd.provider.versions(herd.secret_id):
        if version.state is VersionState.ENABLED:
            held = decode_document((await herd.provider.read(herd.secret_id, version.id)).value.reveal())
            assert held.current.id == document.current.id, "an orphan holds another private key"
            assert held.next is None


async def at_every_call(make_herd: MakeHerd, methods: set[str], *, after: bool, spring: Any) -> int:
    at = 0
    while True:
        herd = await make_herd(nodes=2, clients=1)
        trap = Trap(methods, at, spring, after=after)
        try:
            await trapped(herd, trap).rotate()
        except (KilledError, BaseExceptionGroup):
            assert trap.sprung is not None
        else:
            if trap.sprung is None:
                return at
        await finish(herd)
        await herd.provider.delete(herd.secret_id)
        at += 1


@pytest.mark.slow
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_killed_at_every_effect_the_next_process_brings_it_to_steady(make_herd: MakeHerd, after: bool) -> None:
    assert await at_every_call(make_herd, EFFECTS, after=after, spring=kill) >= 20


@pytest.mark.slow
@pytest.mark.parametrize("stride", [3, pytest.param(1, marks=pytest.mark.deep)])
async def test_cancelled_at_every_call_the_next_process_brings_it_to_steady(make_herd: MakeHerd, stride: int) -> None:
    at = 0
    while True:
        herd = await make_herd(nodes=2, clients=1)
        running: list[asyncio.Task[Any]] = []

        async def cancel(running: list[asyncio.Task[Any]] = running) -> None:
            running[0].cancel()
            await asyncio.sleep(0)

        trap = Trap(CALLS, at, cancel, after=at % 2 == 0)
        running.append(asyncio.create_task(trapped(herd, trap).rotate()))
        await asyncio.wait(running)
        if trap.sprung is None:
            assert running[0].result().outcome is Outcome.ROTATED
            break
        assert running[0].cancelled()
        await finish(herd)
        await herd.provider.delete(herd.secret_id)
        at += stride
    assert at > 60


@pytest.mark.slow
@pytest.mark.parametrize("after", [False, True], ids=["asked in vain", "answer lost"])
async def test_a_store_that_fails_once_at_any_call_is_asked_again(make_herd: MakeHerd, after: bool) -> None:
    at = 0
    while True:
        herd = await make_herd(nodes=2, clients=1)

        async def fail() -> None:
            raise UnavailableError("no answer", provider="memory", secret_id=Herd.secret_id, operation="any")

        # The first read is the operator's own question: it fails in his face, and nothing has begun.
        trap = Trap({"write", "label", "read", "versions"}, at + 1, fail, after=after)
        report = await rotator_for(herd, provider=trap.wrap(herd.provider)).rotate()
        assert report.outcome is Outcome.ROTATED
        document = await check_steady(herd)
        assert len(document.roots) == 2, "a repeated step made a second candidate"
        if trap.sprung is None:
            break
        await herd.provider.delete(herd.secret_id)
        at += 1
    assert at > 10


async def test_a_store_that_stays_away_ends_the_run_and_changes_nothing(make_herd: MakeHerd) -> None:
    herd = await make_herd(clients=1)
    await rotator_for(herd).rotate(to_phase=Phase.PUBLISHED)

    class Away:
        guarantees = herd.provider.guarantees
        store_clock = herd.provider.store_clock

        async def read(self, *args: Any, **options: Any) -> Any:
            if self.calls:
                raise UnavailableError("no answer", provider="memory", secret_id=herd.secret_id, operation="read")
            self.calls += 1
            return await herd.provider.read(*args, **options)

        calls = 0

    began = herd.clock.now_ms()
    with pytest.raises(UnavailableError):
        await rotator_for(herd, provider=Away()).resume()
    assert herd.clock.now_ms() - began >= POLICY.store_patience / timedelta(milliseconds=1)
    assert (await document_of(herd)).phase == Phase.PUBLISHED


async def test_a_stale_replica_is_not_believed(make_herd: MakeHerd) -> None:
    herd = await make_herd(clients=1)
    first = await herd.provider.read(herd.secret_id)

    class Lagging:
        """Returns the previous state at every second read."""

        calls = 0

        def __getattr__(self, name: str) -> Any:
            return getattr(herd.provider, name)

        async def read(self, *args: Any, **options: Any) -> Any:
            self.calls += 1
            return first if self.calls % 2 else await herd.provider.read(*args, **options)

    report = await rotator_for(herd, provider=Lagging()).rotate()
    assert report.outcome is Outcome.ROTATED
    await check_steady(herd)


async def test_a_node_that_hangs_is_a_node_that_does_not_answer(make_herd: MakeHerd) -> None:
    herd = await make_herd(clients=1)

    class Hanging:
        base_url = herd.nodes[2].base_url

        def clock_ahead_ms(self, now_ms: int) -> int | None:
            return None

        def __getattr__(self, name: str) -> Any:
            async def hang(*args: Any, **options: Any) -> Any:
                await asyncio.Event().wait()

            return hang

    policy = replace(POLICY, node_timeout=timedelta(milliseconds=100), adoption=timedelta(seconds=3))
    await rotator_for(herd).rotate(to_phase=Phase.PUBLISHED)
    rotator = rotator_for(herd, nodes=[*herd.nodes[:2], Hanging()], policy=policy)
    with pytest.raises(NotAdoptedError, match="node-2"):
        await rotator.resume()
    await check_steady(herd)


class Unreadable:
    """A store that fails every read for a number of seconds, once it has been read a few times."""

    def __init__(self, herd: Any, error: type[ProviderError], *, seconds: float) -> None:
        self._herd, self._error, self._seconds = herd, error, seconds
        self._reads, self._until = 0, 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._herd.provider, name)

    async def read(self, *args: Any, **options: Any) -> Any:
        self._reads += 1
        now = self._herd.clock.monotonic()
        if self._reads == 2:
            self._until = now + self._seconds
        if now < self._until:
            raise self._error("refused", provider="memory", secret_id=self._herd.secret_id, operation="read")
        return await self._herd.provider.read(*args, **options)


UNREADABLE = [ProviderAccessDeniedError, ProviderConfigurationError, SecretNotFoundError]


@pytest.mark.parametrize("error", UNREADABLE)
async def test_a_store_that_cannot_be_read_for_a_while_in_the_middle_of_a_rotation_is_waited_for(
    make_herd: MakeHerd, error: type[ProviderError]
) -> None:
    herd = await make_herd()
    await rotator_for(herd).rotate(to_phase=Phase.PUBLISHED)
    seconds = POLICY.store_patience.total_seconds() / 2
    report = await rotator_for(herd, provider=Unreadable(herd, error, seconds=seconds)).resume()
    assert report.outcome is Outcome.ROTATED
    await check_steady(herd)


@pytest.mark.parametrize("error", UNREADABLE)
async def test_a_store_that_stays_unreadable_ends_the_run_with_the_phase_and_the_command_that_resumes(
    make_herd: MakeHerd, error: type[ProviderError]
) -> None:
    herd = await make_herd()
    await rotator_for(herd).rotate(to_phase=Phase.PUBLISHED)
    began = herd.clock.now_ms()
    with pytest.raises(error) as raised:
        await rotator_for(herd, provider=Unreadable(herd, error, seconds=10**6)).resume()
    assert herd.clock.now_ms() - began >= POLICY.store_patience / timedelta(milliseconds=1)
    assert "in phase published" in raised.value.hint
    assert "goatherd rotate --resume" in raised.value.hint
    assert (await document_of(herd)).phase == Phase.PUBLISHED


async def test_a_store_that_denies_access_before_anything_is_written_ends_the_run_at_once(make_herd: MakeHerd) -> None:
    herd = await make_herd()
    store = Unreadable(herd, ProviderAccessDeniedError, seconds=10**6)
    began = herd.clock.now_ms()
    with pytest.raises(ProviderAccessDeniedError) as raised:
        await rotator_for(herd, provider=store).rotate()
    assert herd.clock.now_ms() - began < POLICY.store_patience / timedelta(milliseconds=1)
    assert "--resume" not in raised.value.hint


class Unlistable:
    """A provider whose credentials may read and write, and may not list the versions."""

    def __init__(self, herd: Herd) -> None:
        self._herd = herd

    def __getattr__(self, name: str) -> Any:
        return getattr(self._herd.provider, name)

    async def versions(self, *_: Any) -> Any:
        raise ProviderAccessDeniedError("denied", provider="memory", secret_id="root", operation="versions")


async def test_credentials_that_may_not_list_versions_are_found_before_a_rotation_begins(make_herd: MakeHerd) -> None:
    herd = await make_herd()
    await rotator_for(herd).rotate()
    before = await document_of(herd)
    rotator = rotator_for(herd, provider=Unlistable(herd))
    with pytest.raises(ProviderAccessDeniedError):
        await rotator.plan()
    with pytest.raises(ProviderAccessDeniedError):
        await rotator.rotate()
    assert await document_of(herd) == before


class Blinking:
    """A store in which one read fails every five seconds, and which ends a node's outage after a minute."""

    def __init__(self, herd: Herd, away: HerdNode) -> None:
        self._herd, self._away = herd, away
        self._began = self._failed = herd.clock.monotonic()
        self.failures = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._herd.provider, name)

    async def read(self, *args: Any, **options: Any) -> Any:
        now = self._herd.clock.monotonic()
        if now - self._began >= 60:
            self._away.faults.cut_off = False
        if now - self._failed >= 5:
            self._failed, self.failures = now, self.failures + 1
            raise UnavailableError("blink", provider="memory", secret_id=self._herd.secret_id, operation="read")
        return await self._herd.provider.read(*args, **options)


async def test_a_store_that_fails_now_and_then_while_a_server_is_waited_for_ends_nothing(make_herd: MakeHerd) -> None:
    herd = await make_herd()
    policy = replace(POLICY, adoption=timedelta(minutes=2), store_patience=timedelta(seconds=8))
    await rotator_for(herd, policy=policy).rotate(to_phase=Phase.PUBLISHED)
    herd.nodes[2].faults.cut_off = True
    store = Blinking(herd, herd.nodes[2])
    report = await rotator_for(herd, policy=policy, provider=store).resume()
    assert report.outcome is Outcome.ROTATED
    assert store.failures >= 10
    await check_steady(herd)


class Stuttering:
    """A store in which every call fails once, and succeeds if it is repeated before any other."""

    def __init__(self, herd: Herd) -> None:
        self._herd = herd
        self._failed = ""
        self.failures = 0

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._herd.provider, name)
        if name not in ("read", "versions", "write", "label", "destroy"):
            return found

        async def call(*args: Any, **options: Any) -> Any:
            if self._failed == name:
                self._failed = ""
                return await found(*args, **options)
            self._failed, self.failures = name, self.failures + 1
            raise UnavailableError("stutter", provider="memory", secret_id=self._herd.secret_id, operation=name)

        return call


async def test_a_store_that_fails_every_call_once_ends_no_rotation_that_was_begun(make_herd: MakeHerd) -> None:
    herd = await make_herd()
    await rotator_for(herd).rotate(to_phase=Phase.PUBLISHED)
    store = Stuttering(herd)
    rotator = rotator_for(herd, provider=store)
    with pytest.raises(UnavailableError):
        await rotator.resume()  # the command begins with one read that is not repeated
    report = await rotator.resume()
    assert report.outcome is Outcome.ROTATED
    assert store.failures >= 10
    await check_steady(herd)
