"""A cancellation destroys the private key of the cancelled next root, and no other key."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from goatherd.errors import ConflictError, NotAdoptedError, ProviderAccessDeniedError, UnavailableError
from goatherd.identity.document import Phase, decode_document
from goatherd.key_inventory import find_holdings, take_key_inventory
from goatherd.providers.base import SecretProvider
from goatherd.providers.memory import MemorySecretProvider
from goatherd.providers.values import CURRENT, STABLE, Label, VersionState
from tests.fakes.herd import FakeClock, Herd
from tests.unit.rotation.conftest import POLICY, MakeHerd, check_steady, document_of, rotator_for

EARLY = (Phase.PREPARED, Phase.PUBLISHED)


async def keys_of(herd: Herd) -> dict[str, frozenset[str]]:
    """Return the roots whose private keys each version holds, without destroyed versions."""
    held = await find_holdings(herd.provider, herd.secret_id, await document_of(herd))
    return {one.version.id: one.private_ids for one in held}


@pytest.mark.parametrize("phase", EARLY)
async def test_a_cancelled_root_leaves_no_private_key_in_the_store(make_herd: MakeHerd, phase: Phase) -> None:
    herd = await make_herd(clients=1)
    await rotator_for(herd).rotate(to_phase=phase)
    report = await rotator_for(herd).abandon()
    assert report.outcome.is_stopped
    assert report.event == "cancelled"
    assert report.trusts_next is (phase is Phase.PUBLISHED), "what was published stays trusted"
    assert len(report.destroyed) == (1 if phase is Phase.PREPARED else 2)
    assert set((await keys_of(herd)).values()) == {frozenset({"root-a"})}
    await check_steady(herd)


@pytest.mark.slow
async def test_a_rotation_that_cancels_itself_destroys_the_key_too(make_herd: MakeHerd) -> None:
    herd = await make_herd(clients=1)
    herd.nodes[1].faults.forgets_pushes = True
    with pytest.raises(NotAdoptedError) as caught:
        await rotator_for(herd).rotate()
    assert caught.value.report.destroyed
    assert set((await keys_of(herd)).values()) == {frozenset({"root-a"})}


async def test_a_rolled_back_root_keeps_its_key_for_the_grace_period(make_herd: MakeHerd) -> None:
    herd = await make_herd(clients=1)
    await rotator_for(herd).rotate(to_phase=Phase.ACTIVATED)
    report = await rotator_for(herd).abandon()
    assert report.destroyed == ()
    assert report.event == "rolled-back"
    assert report.to_id in frozenset().union(*(await keys_of(herd)).values())


@pytest.mark.parametrize("phase", EARLY)
async def test_a_cancelled_restore_leaves_the_version_that_the_earlier_root_came_from(
    make_herd: MakeHerd, phase: Phase
) -> None:
    herd = await make_herd(clients=1)
    await rotator_for(herd).rotate()
    before = await keys_of(herd)
    await rotator_for(herd).restore(to_phase=phase)
    await rotator_for(herd).abandon()
    after = await keys_of(herd)
    assert {version: after[version] for version in before} == before
    (left,) = [keys for version, keys in after.items() if version not in before]
    assert left == {(await document_of(herd)).current.id}


@pytest.mark.slow
async def test_versions_of_earlier_rotations_are_left_alone(make_herd: MakeHerd) -> None:
    herd = await make_herd(clients=1)
    await rotator_for(herd).rotate()
    before = await keys_of(herd)
    await rotator_for(herd).rotate(to_phase=Phase.PUBLISHED)
    await rotator_for(herd).abandon()
    after = await keys_of(herd)
    assert {version: after[version] for version in before} == before


async def test_what_a_crash_has_left_is_destroyed_by_retire_without_a_grace_period(make_herd: MakeHerd) -> None:
    herd = await make_herd(clients=1)
    await rotator_for(herd).rotate(to_phase=Phase.PUBLISHED)
    destroy = MemorySecretProvider.destroy

    class GoneError(BaseException):
        pass

    async def dies(*_: object) -> None:
        raise GoneError

    MemorySecretProvider.destroy = dies  # type: ignore[method-assign, assignment]
    try:
        with pytest.raises((GoneError, BaseExceptionGroup)):
            await rotator_for(herd).abandon()
    finally:
        MemorySecretProvider.destroy = destroy  # type: ignore[method-assign]
    assert len(frozenset().union(*(await keys_of(herd)).values())) == 2
    report = await rotator_for(herd).retire()
    assert len(report.destroyed) == 2
    assert set((await keys_of(herd)).values()) == {frozenset({"root-a"})}
    await check_steady(herd)


async def test_the_plan_of_a_retirement_names_a_cancelled_version_whose_time_is_in_the_future(
    make_herd: MakeHerd,
) -> None:
    herd = await make_herd(clients=0)
    await rotator_for(herd).rotate(to_phase=Phase.PREPARED)
    prepared = (await herd.provider.read(herd.secret_id, CURRENT)).version.id
    await herd.provider.label(herd.secret_id, Label("audit"), prepared, expected=None)
    await rotator_for(herd).abandon()
    await herd.provider.unlabel(herd.secret_id, Label("audit"), expected=prepared)
    herd.clock = FakeClock(herd.clock.now_ms() - 60_000)  # the rotation ran on another machine, whose clock is ahead
    now_ms = herd.clock.now_ms()
    keys = await take_key_inventory(herd.provider, herd.secret_id, await document_of(herd), POLICY.grace)
    assert [one.version.id for one in keys.holdings_due(now_ms)] == [prepared]
    assert keys.next_due_ms(now_ms) is None
    assert (await rotator_for(herd).retire()).destroyed == (prepared,)


class Refusing:
    """A store that rejects every destroy."""

    def __init__(self, inner: SecretProvider, error: type[Exception]) -> None:
        self._inner, self._error = inner, error

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)

    async def destroy(self, secret_id: str, version: str) -> None:
        raise self._error(f"not {version}", provider="memory", secret_id=secret_id, operation="destroy")  # type: ignore[call-arg]


class Keeping:
    """A store that destroys versions with a delay."""

    def __init__(self, inner: SecretProvider) -> None:
        self._inner, self.guarantees = inner, replace(inner.guarantees, destroys=False)

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)

    async def destroy(self, secret_id: str, version: str) -> None:
        pass


@pytest.mark.slow
@pytest.mark.parametrize("error", [ProviderAccessDeniedError, ConflictError, UnavailableError])
async def test_a_store_that_refuses_to_destroy_does_not_stop_the_cancellation(
    make_herd: MakeHerd, error: type[Exception]
) -> None:
    herd = await make_herd(clients=1)
    await rotator_for(herd).rotate(to_phase=Phase.PUBLISHED)
    report = await rotator_for(herd, provider=Refusing(herd.provider, error)).abandon()
    assert report.outcome.is_stopped
    assert report.destroyed == ()
    assert [one.partition(": ")[2] for one in report.undestroyed] == [error.code] * 2  # type: ignore[attr-defined]
    await check_steady(herd)


@pytest.mark.slow
async def test_a_rotation_that_cancels_itself_is_reported_although_the_store_cannot_destroy(
    make_herd: MakeHerd,
) -> None:
    herd = await make_herd(clients=1)
    herd.nodes[1].faults.forgets_pushes = True
    began = herd.clock.monotonic()
    with pytest.raises(NotAdoptedError) as caught:
        await rotator_for(herd, provider=Refusing(herd.provider, UnavailableError)).rotate()
    assert [one.partition(": ")[2] for one in caught.value.report.undestroyed] == [UnavailableError.code] * 2
    assert caught.value.report.destroyed == ()
    waited = timedelta(seconds=herd.clock.monotonic() - began)
    assert waited < POLICY.adoption + 1.5 * POLICY.store_patience, "the store is not waited for twice"


async def test_a_version_with_a_label_of_its_own_is_not_destroyed(make_herd: MakeHerd) -> None:
    herd = await make_herd(clients=1)
    await rotator_for(herd).rotate(to_phase=Phase.PREPARED)
    prepared = (await herd.provider.read(herd.secret_id, CURRENT)).version
    await herd.provider.label(herd.secret_id, Label("audit"), prepared.id, expected=None)
    report = await rotator_for(herd).abandon()
    assert report.destroyed == ()
    assert report.undestroyed == ()
    assert [(one.version, one.labels) for one in report.kept] == [(prepared.id, ("audit",))]
    kept = await herd.provider.read(herd.secret_id, prepared.id)
    assert decode_document(kept.value.reveal()).next is not None
    assert STABLE not in kept.version.labels


async def test_a_store_that_cannot_destroy_names_the_versions_that_keep_the_key(make_herd: MakeHerd) -> None:
    herd = await make_herd(clients=1)
    await rotator_for(herd).rotate(to_phase=Phase.PUBLISHED)
    report = await rotator_for(herd, provider=Keeping(herd.provider)).abandon()
    assert report.destroyed == ()
    assert len(report.given_up) == 2
    states = {one.id: one.state for one in await herd.provider.versions(herd.secret_id)}
    assert all(version in states for version in report.given_up)
    assert VersionState.ENABLED in states.values()
