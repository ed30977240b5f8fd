"""A run that is delayed between two of its calls while another operator works. tests/model found these cases."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from goatherd.errors import NotAdoptedError, RotationBusyError, StoreWentBackError
from goatherd.identity.document import Phase
from goatherd.providers.base import Guarantees, ReadConsistency
from goatherd.providers.values import CURRENT, STABLE
from goatherd.rotation.events import Event, StoreTroubled
from goatherd.rotation.machine import Outcome
from tests.unit.rotation.conftest import POLICY, MakeHerd, check_steady, document_of, rotator_for


class HeldUp:
    """A provider that delays its caller before or after call number `at` of `method`, until `meanwhile` has ended."""

    def __init__(
        self, target: object, method: str, meanwhile: Callable[[], Awaitable[object]], *, at: int = 1, after: bool
    ) -> None:
        self._target, self._method, self._meanwhile = target, method, meanwhile
        self._at, self._after, self.calls = at, after, 0

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._target, name)
        if name != self._method:
            return attribute

        async def call(*args: Any, **options: Any) -> Any:
            self.calls += 1
            is_now = self.calls == self._at
            if is_now and not self._after:
                await self._meanwhile()
            result = await attribute(*args, **options)
            if is_now and self._after:
                await self._meanwhile()
            return result

        return call


async def test_a_run_whose_rotation_is_cancelled_before_it_looks_again_does_not_begin_another(
    make_herd: MakeHerd,
) -> None:
    herd = await make_herd()
    provider = HeldUp(herd.provider, "write", lambda: rotator_for(herd).abandon("not today"), after=True)
    with pytest.raises(NotAdoptedError, match="not today"):
        await rotator_for(herd, provider=provider).rotate()
    assert provider.calls == 1
    document = await check_steady(herd)
    assert [entry.event for entry in document.history] == ["cancelled"]


async def test_a_run_that_was_held_up_does_not_put_stable_back(make_herd: MakeHerd) -> None:
    herd = await make_herd()

    async def others_rotate() -> None:
        await rotator_for(herd).rotate()
        await rotator_for(herd).rotate(to_phase=Phase.PUBLISHED)

    provider = HeldUp(herd.provider, "versions", others_rotate, after=False)
    with pytest.raises(RotationBusyError):
        await rotator_for(herd, provider=provider).resume()
    rotation = (await document_of(herd)).rotation
    assert rotation is not None
    labelled = await herd.provider.read(herd.secret_id, STABLE)
    assert labelled.version.id == rotation.stable_version


@pytest.mark.slow
async def test_a_run_reports_that_it_has_rotated_though_others_have_rotated_again(make_herd: MakeHerd) -> None:
    herd = await make_herd()
    provider = HeldUp(herd.provider, "write", lambda: rotator_for(herd).rotate(), at=5, after=True)
    report = await rotator_for(herd, provider=provider).rotate()
    assert report.outcome is Outcome.ROTATED
    document = await check_steady(herd)
    assert document.rotated_from == report.to_id
    assert [entry.event for entry in document.history] == ["rotated", "rotated"]


class Lagging:
    """A provider whose first reads show the previous current version."""

    def __init__(self, target: Any, old: Any, *, reads: int) -> None:
        self._target, self._old, self._left = target, old, reads

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target, name)

    @property
    def guarantees(self) -> Guarantees:
        return replace(self._target.guarantees, read_consistency=ReadConsistency.EVENTUAL)

    async def read(self, secret_id: str, at: Any) -> Any:
        self._left -= at == CURRENT
        return self._old if at == CURRENT and self._left >= 0 else await self._target.read(secret_id, at)


@pytest.mark.slow
@pytest.mark.parametrize("gives_up", [False, True], ids=["resumed", "cancelled"])
async def test_who_comes_after_a_crash_is_not_told_that_there_is_nothing_to_do_by_a_store_that_lags(
    make_herd: MakeHerd, gives_up: bool
) -> None:
    """The nodes have read a state that the store does not show yet."""
    herd = await make_herd()
    old = await herd.provider.read(herd.secret_id, CURRENT)
    await rotator_for(herd).rotate(to_phase=Phase.PUBLISHED)
    events: list[Event] = []
    rotator = rotator_for(herd, provider=Lagging(herd.provider, old, reads=5), events=events)
    report = await (rotator.abandon() if gives_up else rotator.resume())
    assert report.outcome.is_stopped if gives_up else report.outcome is Outcome.ROTATED
    said = {event.error for event in events if isinstance(event, StoreTroubled)}
    assert said == {"http://node-0 has seen generation 3 of the identity, and the store holds generation 1"}
    await check_steady(herd)


@pytest.mark.slow
async def test_a_store_that_lags_permanently_ends_the_run(make_herd: MakeHerd) -> None:
    herd = await make_herd()
    old = await herd.provider.read(herd.secret_id, CURRENT)
    await rotator_for(herd).rotate(to_phase=Phase.PUBLISHED)
    began = herd.clock.monotonic()
    with pytest.raises(StoreWentBackError, match="http://node-2 has seen generation 3 of the identity"):
        await rotator_for(herd, provider=Lagging(herd.provider, old, reads=10**6)).resume()
    assert herd.clock.monotonic() - began < POLICY.store_patience.total_seconds() + 5
