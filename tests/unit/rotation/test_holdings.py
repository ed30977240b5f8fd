"""The inventory of stored private keys; a version that cannot be read is never taken for one without a key."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import timedelta

import pytest

from goatherd.errors import (
    GoatherdError,
    NewerKeyError,
    ProviderConfigurationError,
    ProviderError,
    SecretNotFoundError,
    UnavailableError,
    VersionDisabledError,
)
from goatherd.identity.document import Phase, decode_document
from goatherd.key_inventory import Holding, find_holdings, find_unlisted_keys, retained_copies, take_key_inventory
from goatherd.providers.base import Guarantees, ReadConsistency
from goatherd.providers.memory import MemorySecretProvider, MemoryStore
from goatherd.providers.values import (
    CURRENT,
    STABLE,
    Label,
    SecretBytes,
    SecretValue,
    SecretVersion,
    VersionId,
    VersionState,
)
from tests.fakes.herd import Herd
from tests.unit.rotation.conftest import POLICY, MakeHerd, check_steady, document_of, rotator_for


async def holdings_of(herd: Herd) -> tuple[Holding, ...]:
    return await find_holdings(herd.provider, herd.secret_id, await document_of(herd))


async def test_every_version_is_listed_with_whose_private_keys_it_holds(make_herd: MakeHerd) -> None:
    herd = await make_herd(clients=0)
    report = await rotator_for(herd).rotate()
    assert report.to_id is not None
    a, b = {"root-a"}, {report.to_id}
    assert [one.private_ids for one in await holdings_of(herd)] == [b, b, b, a | b, a | b, a]
    herd.clock.turn(POLICY.grace + timedelta(seconds=1))
    await rotator_for(herd).retire()
    assert {key for one in await holdings_of(herd) for key in one.private_ids} == b


async def test_a_version_whose_destruction_was_interrupted_is_destroyed_again(make_herd: MakeHerd) -> None:
    herd = await make_herd(clients=0)
    await rotator_for(herd).rotate()
    assert isinstance(herd.provider, MemorySecretProvider)
    secret = herd.provider.store.secrets[herd.secret_id]
    begun = secret.record.versions[1]._replace(digest="", size=0)
    record = replace(secret.record, versions={**secret.record.versions, 1: begun})
    herd.provider.store.secrets[herd.secret_id] = secret.with_record(record)
    assert (await holdings_of(herd))[-1].problem == "its destruction was interrupted"
    herd.clock.turn(POLICY.grace + timedelta(seconds=1))
    assert "1" in (await rotator_for(herd).retire()).destroyed
    states = {version.id: version.state for version in await herd.provider.versions(herd.secret_id)}
    assert states["1"] is VersionState.DESTROYED
    assert "root-a" in (await document_of(herd)).retired_ids


@pytest.mark.slow
@pytest.mark.parametrize("phase", [phase for phase in Phase if phase is not Phase.STEADY])
async def test_after_the_grace_period_nothing_holds_the_key_that_was_given_up_in_any_phase(
    make_herd: MakeHerd, phase: Phase
) -> None:
    herd = await make_herd(clients=1)
    await rotator_for(herd).rotate(to_phase=phase)
    report = await rotator_for(herd).abandon()
    has_signed = phase in (Phase.ACTIVATED, Phase.VERIFIED)
    assert (report.to_id in {key for one in await holdings_of(herd) for key in one.private_ids}) is has_signed
    herd.clock.turn(POLICY.grace + timedelta(seconds=1))
    await rotator_for(herd).retire()
    assert {key for one in await holdings_of(herd) for key in one.private_ids} == {"root-a"}
    await check_steady(herd)


async def test_the_keys_of_roots_that_have_left_the_document_are_found_until_they_are_destroyed(
    make_herd: MakeHerd,
) -> None:
    herd = await make_herd(nodes=1, clients=0)

    async def find() -> dict[str, int]:
        return dict(await find_unlisted_keys(herd.provider, herd.secret_id, await document_of(herd)))

    ended: dict[str, int] = {}
    for _ in range(6):
        assert (await find()).keys() == ended.keys() - {root.id for root in (await document_of(herd)).roots}
        report = await rotator_for(herd).rotate()
        ended[report.from_id] = herd.clock.now_ms()
        herd.clock.turn(timedelta(days=1))
    assert "root-a" in await find()
    assert (await find())["root-a"] <= ended["root-a"]
    (first,) = [one for one in await holdings_of(herd) if one.private_ids == {"root-a"}]
    for one in await holdings_of(herd):
        if "root-a" in one.private_ids:
            await herd.provider.label(herd.secret_id, f"audit{one.version.id}", one.version.id, expected=None)
    assert "root-a" not in await find(), "no version that a label points at is destroyed"
    await herd.provider.unlabel(herd.secret_id, f"audit{first.version.id}", expected=first.version.id)
    assert "root-a" in await find()
    herd.clock.turn(POLICY.grace)
    await rotator_for(herd).retire()
    assert await find() == {}


async def test_a_store_that_deletes_old_versions_in_its_own_time_is_not_searched(make_herd: MakeHerd) -> None:
    herd = await make_herd(nodes=1, clients=0)
    document = replace(await document_of(herd), pruned=1)

    class Deprecating:
        guarantees = Guarantees(cas=True, read_consistency=ReadConsistency.EVENTUAL, destroys=False, deprecates=True)

    assert await find_unlisted_keys(Deprecating(), herd.secret_id, document) == ()  # type: ignore[arg-type]


async def test_no_version_is_read_for_keys_that_an_identity_no_longer_lists_if_it_lists_every_root(
    make_herd: MakeHerd,
) -> None:
    herd = await make_herd(nodes=1, clients=0)
    document = await document_of(herd)
    assert document.pruned == 0
    async with MemorySecretProvider() as empty:
        assert await find_unlisted_keys(empty, herd.secret_id, document) == (), "a read would have failed"
        with pytest.raises(SecretNotFoundError):
            await find_unlisted_keys(empty, herd.secret_id, replace(document, pruned=1))


async def test_nothing_is_destroyed_before_the_grace_period_has_passed(make_herd: MakeHerd) -> None:
    herd = await make_herd(clients=0)
    await rotator_for(herd).rotate()
    herd.clock.turn(POLICY.grace - timedelta(minutes=1))
    assert (await rotator_for(herd).retire()).destroyed == ()
    herd.clock.turn(timedelta(minutes=2))
    assert (await rotator_for(herd).retire()).destroyed != ()


async def test_the_plan_of_a_retirement_names_a_version_at_which_an_interrupted_run_has_left_the_label_stable(
    make_herd: MakeHerd,
) -> None:
    herd = await make_herd(nodes=1, clients=0)
    first = (await herd.provider.read(herd.secret_id, CURRENT)).version.id
    await rotator_for(herd).rotate(to_phase=Phase.VERIFIED)
    herd.clock.turn(POLICY.grace + timedelta(seconds=1))

    async def due() -> tuple[str, ...]:
        keys = await take_key_inventory(herd.provider, herd.secret_id, await document_of(herd), POLICY.grace)
        return tuple(one.version.id for one in keys.holdings_due(herd.clock.now_ms()))

    assert first not in await due(), "a roll-back would read the key there"
    await rotator_for(herd).resume()
    newest = (await herd.provider.read(herd.secret_id, CURRENT)).version.id
    await herd.provider.label(herd.secret_id, STABLE, first, expected=newest)
    herd.clock.turn(POLICY.grace + timedelta(seconds=1))
    planned = await due()
    assert first in planned
    assert (await rotator_for(herd).retire()).destroyed == planned


class Counting(MemorySecretProvider):
    """Counts how often each version was read by its id."""

    reads: Counter[str]

    async def read(self, secret_id, at=CURRENT, *, attempts=None):  # type: ignore[no-untyped-def]
        self.reads[str(at)] += 1
        return await super().read(secret_id, at, attempts=attempts)


async def test_a_retirement_reads_no_version_once_for_each_version_that_it_destroys(make_herd: MakeHerd) -> None:
    clock = (await make_herd(clients=0)).clock
    async with Counting(clock=clock) as provider:
        provider.reads = Counter()
        herd = await Herd.start(provider, clock=clock, nodes=1)
        for _ in range(4):
            await rotator_for(herd).rotate()
        clock.turn(POLICY.grace + timedelta(seconds=1))
        provider.reads.clear()
        destroyed = (await rotator_for(herd).retire()).destroyed
        assert len(destroyed) > 12
        assert all(count == 1 for at, count in provider.reads.items() if at.isdecimal())


class WithADarkVersion(MemorySecretProvider):
    """A store that lists one version as disabled, and returns no value for it."""

    dark = "1"

    async def versions(self, secret_id: str) -> list:  # type: ignore[type-arg]
        found = await super().versions(secret_id)
        return [replace(one, state=VersionState.DISABLED) if one.id == self.dark else one for one in found]

    async def read(self, secret_id, at=CURRENT, *, attempts=None):  # type: ignore[no-untyped-def]
        if at == self.dark:
            from goatherd.errors import VersionDisabledError

            raise VersionDisabledError("off", provider="memory", secret_id=secret_id, operation="read")
        return await super().read(secret_id, at, attempts=attempts)


async def test_a_version_that_is_switched_off_is_listed_and_no_key_is_recorded_as_gone(make_herd: MakeHerd) -> None:
    """SECURITY: a client that may change the secret can enable the version again, and the version may hold any key."""
    clock = (await make_herd(clients=0)).clock
    async with WithADarkVersion(clock=clock) as provider:
        herd = await Herd.start(provider, clock=clock, nodes=1)
        await rotator_for(herd).rotate()
        clock.turn(POLICY.grace + timedelta(seconds=1))
        report = await rotator_for(herd).retire()
        assert report.destroyed == ("3", "2")
        assert (await document_of(herd)).retired_ids == frozenset()
        dark = next(one for one in await holdings_of(herd) if one.version.id == "1")
        assert dark.private_ids == frozenset()
        assert "enable it again" in (dark.problem or "")


async def test_a_version_that_is_no_identity_is_listed_and_left_alone(make_herd: MakeHerd) -> None:
    herd = await make_herd(clients=0)
    current = await herd.provider.read(herd.secret_id, CURRENT)
    await herd.provider.write(herd.secret_id, SecretBytes(b"nonsense"), label=Label("notes"), expected=None)
    assert decode_document(current.value.reveal()).current.id == "root-a"
    await rotator_for(herd).rotate()
    herd.clock.turn(POLICY.grace + timedelta(seconds=1))
    report = await rotator_for(herd).retire()
    assert "2" not in report.destroyed
    assert report.destroyed
    odd = next(one for one in await holdings_of(herd) if one.version.id == "2")
    assert odd.problem == "not an identity (identity.malformed)"


class WithALeftover(MemorySecretProvider):
    """A store that lists a value that no record names; a read of it returns `left`, or fails with it."""

    left: bytes | GoatherdError | None = None
    state = VersionState.ENABLED
    kept_as: Guarantees | None = None

    @property
    def guarantees(self) -> Guarantees:
        return self.kept_as or super().guarantees

    def _leftover(self) -> SecretVersion:
        return SecretVersion(id=VersionId("99"), created_ms=self.clock.now_ms(), state=self.state, is_leftover=True)

    async def versions(self, secret_id: str) -> list[SecretVersion]:
        found = await super().versions(secret_id)
        return found if self.left is None else [replace(self._leftover(), created_ms=self.since_ms), *found]

    async def read(self, secret_id, at=CURRENT, *, attempts=None):  # type: ignore[no-untyped-def]
        if at != "99":
            return await super().read(secret_id, at, attempts=attempts)
        if isinstance(self.left, Exception):
            raise self.left
        assert self.left is not None
        return SecretValue(version=self._leftover(), value=SecretBytes(self.left))

    async def destroy(self, secret_id: str, version: str) -> None:
        if version != "99":
            await super().destroy(secret_id, version)
        elif self.guarantees.destroys:
            self.left = None

    def leave(self, left: bytes | GoatherdError) -> None:
        """Leave a value that holds `left`, with the present time."""
        self.left, self.since_ms = left, self.clock.now_ms()


def failing(kind: type[ProviderError], *, retryable: bool = False) -> ProviderError:
    error = kind("as the test wants it", provider="memory", secret_id="root", operation="read")
    error.retryable = retryable
    return error


@pytest.mark.parametrize(
    ("left", "state"),
    [
        (b'{"currentSession": {"id": "root-a", "privateKey": {"d": "MIGHT-BE-', VersionState.ENABLED),
        (b"", VersionState.ENABLED),
        (failing(UnavailableError), VersionState.ENABLED),
        (failing(VersionDisabledError), VersionState.ENABLED),
        (b"not read", VersionState.DISABLED),
    ],
    ids=["cut short", "empty", "damaged", "switched off since", "switched off"],
)
async def test_a_leftover_whose_keys_cannot_be_known_is_destroyed_after_the_grace_period(
    make_herd: MakeHerd, left: bytes | ProviderError, state: VersionState
) -> None:
    """SECURITY: the value may hold the retired key, and no later command would check it again."""
    clock = (await make_herd(clients=0)).clock
    async with WithALeftover(clock=clock) as provider:
        herd = await Herd.start(provider, clock=clock, nodes=1)
        await rotator_for(herd).rotate()
        provider.state = state
        provider.leave(left)
        clock.turn(POLICY.grace - timedelta(minutes=1))
        assert "99" not in (await rotator_for(herd).retire()).destroyed
        assert (await document_of(herd)).retired_ids == frozenset()
        clock.turn(timedelta(minutes=2))
        assert "99" in (await rotator_for(herd).retire()).destroyed
        assert (await document_of(herd)).retired_ids == {"root-a"}


@pytest.mark.parametrize(
    ("left", "said"),
    [
        (failing(ProviderConfigurationError), "not written by Goatherd (provider.invalid_configuration)"),
        (NewerKeyError("it holds an Ed25519 key"), "not an identity of this version (identity.newer_key)"),
    ],
    ids=["not ours", "a newer GoatDB's"],
)
async def test_a_leftover_of_another_program_is_listed_and_left_alone_and_no_key_is_recorded_as_gone(
    make_herd: MakeHerd, left: GoatherdError, said: str
) -> None:
    clock = (await make_herd(clients=0)).clock
    async with WithALeftover(clock=clock) as provider:
        herd = await Herd.start(provider, clock=clock, nodes=1)
        await rotator_for(herd).rotate()
        provider.leave(left)
        clock.turn(POLICY.grace + timedelta(minutes=1))
        assert "99" not in (await rotator_for(herd).retire()).destroyed
        assert (await holdings_of(herd))[0].problem == said
        assert (await document_of(herd)).retired_ids == frozenset()


async def test_a_store_that_does_not_answer_is_not_taken_for_a_damaged_leftover(make_herd: MakeHerd) -> None:
    clock = (await make_herd(clients=0)).clock
    async with WithALeftover(clock=clock) as provider:
        herd = await Herd.start(provider, clock=clock, nodes=1)
        provider.leave(failing(UnavailableError, retryable=True))
        with pytest.raises(UnavailableError):
            await holdings_of(herd)


async def test_where_a_store_cannot_destroy_a_leftover_that_is_switched_off_stays_as_it_is(make_herd: MakeHerd) -> None:
    clock = (await make_herd(clients=0)).clock
    async with WithALeftover(clock=clock) as provider:
        herd = await Herd.start(provider, clock=clock, nodes=1)
        provider.kept_as = replace(provider.guarantees, destroys=False, disables=True)
        provider.state = VersionState.DISABLED
        provider.leave(b"not read")
        clock.turn(POLICY.grace + timedelta(minutes=1))
        report = await rotator_for(herd).retire()
        assert "99" not in (*report.destroyed, *report.given_up)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, None),
        ({"destroys": False, "deprecates": True}, "in its own time"),
        ({"destroys": False, "disables": True}, "enable it again, until the whole secret is deleted and purged"),
        ({"destroys": False}, "cannot destroy"),
    ],
    ids=["destroys", "deprecates", "disables", "nothing"],
)
def test_where_a_store_keeps_a_copy_that_is_said(changes: dict[str, bool], said: str | None) -> None:
    store = MemorySecretProvider(MemoryStore())
    store._guarantees = replace(store.guarantees, **changes)
    found = retained_copies(store)
    assert found is None if said is None else said in str(found)


@pytest.mark.slow
async def test_keys_are_destroyed_in_time_however_many_rotations_fit_into_the_grace_period(make_herd: MakeHerd) -> None:
    herd = await make_herd(clients=0, nodes=1)
    policy = replace(POLICY, grace=timedelta(days=8))
    for _ in range(13):
        await rotator_for(herd, policy=policy).rotate()
        herd.clock.turn(timedelta(days=1))
    await rotator_for(herd, policy=policy).retire()
    held = await holdings_of(herd)
    assert 8 <= len({key for one in held for key in one.private_ids}) <= 10
    assert min(one.version.created_ms for one in held) >= herd.clock.now_ms() - 10 * 86_400_000
