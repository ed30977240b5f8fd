"""A process dies at each request of each change: `versions` lists what the store then holds, and `retire` removes it.

In a store that replaces a secret as one object, the secret is then as before the change or as after it.

A death is: the store gets the request, or not, and from then on nothing of that process reaches it. What is counted is
HTTP requests on their way to the store, calls of gRPC, and system calls of the file store. What counts as held is read
from the store itself, past the provider.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from datetime import timedelta

import pytest

from goatherd.clock import SystemClock
from goatherd.errors import ConflictError, GoatherdError, RotationBusyError, SecretNotFoundError, UnavailableError
from goatherd.identity.document import decode_document, encode_document
from goatherd.identity.session import OwnedSession
from goatherd.identity.transitions import create_document, prepare_rotation
from goatherd.providers.base import SecretProvider
from goatherd.providers.values import CURRENT, STABLE, VersionId, VersionState
from goatherd.rotation.policy import Policy
from goatherd.rotation.rotator import Rotator
from tests.contract.interrupted_stores import MOST_CALLS, STORES, Gate, Store
from tests.deadlines import HANG
from tests.fakes.herd import FakeClock

pytestmark = pytest.mark.slow


# Google's lease of five seconds has to end after each kill: minutes.
@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=pytest.mark.deep if name == "gcp" else ()) for name in STORES]
)
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with STORES[request.param](tmp_path_factory.mktemp(request.param)) as made:
        yield made


Change = Callable[[SecretProvider, str, VersionId, VersionId], Awaitable[object]]


async def write(provider: SecretProvider, name: str, first: VersionId, second: VersionId) -> None:
    await provider.write(name, b"third", expected=second)


async def write_candidate(provider: SecretProvider, name: str, first: VersionId, second: VersionId) -> None:
    await provider.write(name, b"third", label="candidate", expected=None)


async def label(provider: SecretProvider, name: str, first: VersionId, second: VersionId) -> None:
    await provider.label(name, STABLE, second, expected=None)


async def go_back(provider: SecretProvider, name: str, first: VersionId, second: VersionId) -> None:
    await provider.label(name, CURRENT, first, expected=second)


async def destroy(provider: SecretProvider, name: str, first: VersionId, second: VersionId) -> None:
    await provider.destroy(name, first)


async def must_all_be_listed(store: Store, provider: SecretProvider, name: str, moment: str) -> None:
    readable = set()
    for version in await provider.versions(name):
        if version.state is VersionState.ENABLED:
            found = await provider.read(name, version.id)
            assert found.version.is_leftover == version.is_leftover, f"{moment}: read and versions disagree"
            readable.add(found.value.reveal())
        elif version.state is VersionState.DESTROYING:
            readable.add(b"first")  # the version that `destroy` destroys: listed, although it can no longer be read
    held = {value for value in store.held(name) if value}  # of a file that was begun, but holds nothing, none is held
    assert held <= readable, f"{moment}: the store holds values that no listed version has"


async def must_be_gone_when_destroyed(store: Store, provider: SecretProvider, name: str, moment: str) -> None:
    for version in await provider.versions(name):
        if version.state in (VersionState.ENABLED, VersionState.DESTROYING) and not version.labels:
            await provider.destroy(name, version.id)
    listed = await provider.versions(name)
    labelled = {(await provider.read(name, version.id)).value.reveal() for version in listed if version.labels}
    if store.destroys:
        assert store.held(name) == labelled, f"{moment}: a destroyed value can still be read"


@pytest.mark.parametrize("change", [write, write_candidate, label, go_back, destroy], ids=lambda each: each.__name__)
async def test_whatever_a_process_that_died_left_is_listed_and_can_be_destroyed(store: Store, change: Change):
    async with store.make() as provider:
        for after in (False, True):
            for at in range(1, MOST_CALLS):
                moment = f"{change.__name__}, {'after' if after else 'before'} call {at}"
                name = store.name()
                first = (await provider.create(name, b"first")).id
                second = (await provider.write(name, b"second", expected=first)).id
                async with store.kill(at, after) as (victim, client):
                    with contextlib.suppress(GoatherdError):
                        await change(victim, name, first, second)
                    has_died = client.is_dead
                await must_all_be_listed(store, provider, name, moment)
                await must_be_gone_when_destroyed(store, provider, name, moment)
                if not has_died:
                    break
            else:
                pytest.fail("the change made more calls than expected")


async def test_what_a_creation_left_is_listed_once_the_secret_exists(store: Store):
    async with store.make() as provider:
        for after in (False, True):
            for at in range(1, MOST_CALLS):
                name = store.name()
                async with store.kill(at, after) as (victim, client):
                    with contextlib.suppress(GoatherdError):
                        await victim.create(name, b"first")
                    has_died = client.is_dead
                with contextlib.suppress(ConflictError):
                    try:
                        await provider.versions(name)
                    except SecretNotFoundError:
                        await provider.create(name, b"second")
                await must_all_be_listed(store, provider, name, f"create, call {at}")
                if not has_died:
                    break
            else:
                pytest.fail("the creation made more calls than expected")


# Stores tell the real time, which a clock that is turned is not.
POLICY = Policy(settle=timedelta(0), grace=timedelta(days=30), clock_tolerance=timedelta(days=1000))


def root_of(name: str, clock: FakeClock) -> OwnedSession:
    return OwnedSession.generate(session_id=name, owner="root", now_ms=clock.now_ms(), lifetime=timedelta(days=400))


async def begin(provider: SecretProvider, name: str, clock: FakeClock, *, rotation_id: str) -> None:
    """Write what the first write of a rotation stores: the current root, and a next one."""
    found = await provider.read(name)
    prepared = prepare_rotation(
        decode_document(found.value.reveal()),
        root_of(f"root-{rotation_id}", clock),
        now_ms=clock.now_ms(),
        rotation_id=rotation_id,
        started_by="test",
        stable_version=found.version.id,
    )
    await provider.write(name, encode_document(prepared), expected=found.version.id)


def private_ids(store: Store, name: str) -> set[str]:
    """Return the roots whose private keys the store itself still gives out."""
    found: set[str] = set()
    for value in store.held(name):
        document = decode_document(value)
        found |= {document.current.id, *([document.next.id] if document.next is not None else [])}
    return found


async def rotated_and_retired(store: Store, provider: SecretProvider, name: str, clock: FakeClock) -> str:
    """Finish the rotation in progress, or rotate, then retire after the grace period; return the current root."""
    rotator = Rotator(provider, name, [], policy=POLICY, clock=clock, unsafe_without_nodes=True)
    document = decode_document((await provider.read(name)).value.reveal())
    try:
        await (rotator.rotate() if document.rotation is None else rotator.resume())
    except RotationBusyError:  # the reading showed the document before the writer's crash
        await rotator.resume()
    clock.turn(POLICY.grace + timedelta(days=1))
    await Rotator(provider, name, [], policy=POLICY, clock=clock).retire()
    document = decode_document((await provider.read(name)).value.reveal())
    if store.destroys and provider.guarantees.destroys:
        assert "root-a" in document.retired_ids, "it is not on record that the key is in no version"
    return document.current.id


@pytest.mark.deep
async def test_after_a_kill_at_any_request_of_a_write_retire_leaves_no_retired_key(store: Store):
    clock = FakeClock(SystemClock().now_ms())
    async with store.make() as provider:
        for after in (False, True):
            for at in range(1, MOST_CALLS):
                moment = f"{'after' if after else 'before'} request {at}"
                name = store.name()
                await provider.create(name, encode_document(create_document(root_of("root-a", clock), clock.now_ms())))
                async with store.kill(at, after) as (victim, client):
                    with contextlib.suppress(GoatherdError):
                        await begin(victim, name, clock, rotation_id="b")
                    has_died = client.is_dead
                current = await rotated_and_retired(store, provider, name, clock)
                if store.destroys:
                    assert private_ids(store, name) == {current}, moment
                left = [one for one in await provider.versions(name) if one.labels]
                assert len(left) == 1, moment
                if not has_died:
                    break
            else:
                pytest.fail("the write made more requests than expected")


async def destroy_what_has_no_label(provider: SecretProvider, name: str) -> None:
    """Destroy all versions without a label, as `retire` would after their grace period."""
    for version in await provider.versions(name):
        if not version.labels and version.state is VersionState.ENABLED:
            with contextlib.suppress(ConflictError):  # it has one now
                await provider.destroy(name, version.id)


async def test_a_value_whose_record_is_being_written_may_be_destroyed_and_the_write_is_not_lost(store: Store):
    if store.hold is None:
        pytest.skip("a writer holds a lock")
    async with store.make() as provider:
        for at in range(1, MOST_CALLS):
            name, gate = store.name(), Gate()
            first = (await provider.create(name, b"first")).id
            async with store.hold(at, gate) as slow:
                writing = asyncio.ensure_future(slow.write(name, b"second", expected=first))
                reached = asyncio.ensure_future(gate.reached.wait())
                await asyncio.wait({writing, reached}, return_when=asyncio.FIRST_COMPLETED, timeout=HANG)
                was_held = gate.reached.is_set()
                if was_held:
                    await destroy_what_has_no_label(provider, name)
                gate.open()
                reached.cancel()
                (outcome,) = await asyncio.gather(writing, return_exceptions=True)
            current = await provider.read(name)
            if isinstance(outcome, BaseException):
                assert isinstance(outcome, UnavailableError), f"request {at}: {outcome!r}"
            else:
                assert (current.version.id, current.value.reveal()) == (outcome.id, b"second"), f"request {at}"
            assert current.value.reveal() in (b"first", b"second"), f"request {at}"
            if not was_held:
                break
        else:
            pytest.fail("the write made more requests than expected")
