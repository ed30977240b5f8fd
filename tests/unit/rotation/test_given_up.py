"""Retiring in a store that destroys with a delay: one request a version, an end, and no claim that the key is
destroyed."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from goatherd.providers.base import Call, Guarantees
from goatherd.providers.memory import MemorySecretProvider
from goatherd.providers.values import VersionId
from tests.fakes.herd import FakeClock, Herd
from tests.unit.rotation.conftest import POLICY, check_steady, document_of, rotator_for


class Deprecates(MemorySecretProvider):
    """A store that removes versions later, after the end of this test."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock=clock)
        self.asked: list[str] = []

    @property
    def guarantees(self) -> Guarantees:
        return replace(super().guarantees, destroys=False, deprecates=True)

    async def _destroy(self, call: Call, version: VersionId) -> None:
        self.asked.append(version)


async def test_a_store_that_only_deprecates_is_asked_once_a_version_and_no_key_is_recorded_as_destroyed(
    clock: FakeClock,
) -> None:
    async with Deprecates(clock) as provider:
        herd = await Herd.start(provider, clock=clock, nodes=1)
        await rotator_for(herd).rotate()
        clock.turn(POLICY.grace + timedelta(seconds=1))
        report = await rotator_for(herd).retire()
        assert sorted(report.given_up) == sorted(provider.asked) == ["1", "2", "3"]
        assert report.destroyed == ()
        assert (await document_of(herd)).retired_ids == frozenset()
        rotator = rotator_for(herd)
        assert (await rotator.retire()).given_up == (await rotator.retire()).given_up
        await check_steady(herd)
