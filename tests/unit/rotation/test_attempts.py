"""Every loop of a run is bounded: the third attempt of the same action on the same evidence ends with an error."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import fields, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, get_args

import pytest

from goatherd.errors import ConflictError, StuckError
from goatherd.identity.document import Phase, decode_document, encode_document, sign_document
from goatherd.providers.base import Call, Guarantees, ReadConsistency
from goatherd.providers.memory import MemorySecretProvider
from goatherd.providers.values import CURRENT, STABLE, VersionId
from goatherd.rotation.attempts import identify_attempt
from goatherd.rotation.events import Decided, Event
from goatherd.rotation.machine import Action, Destroy, LabelStable, Observation, Step, StoreView
from goatherd.rotation.rotator import Rotator
from tests.fakes.herd import FakeClock, Herd
from tests.unit.node.nodes import SECRET, root
from tests.unit.node.nodes import document_of as document_for
from tests.unit.revocation.clusters import cluster_of
from tests.unit.rotation.conftest import POLICY, MakeHerd, check_steady, document_of, rotator_for


class Refusing(MemorySecretProvider):
    """A store that answers some calls with a conflict, although nothing in it changes."""

    def __init__(self, clock: FakeClock, *, consistency: ReadConsistency = ReadConsistency.STRONG) -> None:
        super().__init__(clock=clock)
        self._consistency = consistency
        self.refuses: Callable[[str, Any], bool] = lambda operation, label: False
        self.refused: list[str] = []

    @property
    def guarantees(self) -> Guarantees:
        return replace(super().guarantees, read_consistency=self._consistency)

    def _check(self, call: Call, label: Any = None) -> None:
        if self.refuses(call.operation, label):
            self.refused.append(call.operation)
            raise call.error(ConflictError, "another writer was first")

    async def _write(self, call: Call, value: Any, label: Any, expected: Any) -> Any:
        self._check(call, label)
        return await super()._write(call, value, label, expected)

    async def _label(self, call: Call, label: Any, version: Any, expected: Any) -> None:
        self._check(call, label)
        await super()._label(call, label, version, expected)

    async def _destroy(self, call: Call, version: VersionId) -> None:
        self._check(call)
        await super()._destroy(call, version)


def writes(operation: str, label: Any) -> bool:
    return operation == "write"


def moves_stable(operation: str, label: Any) -> bool:
    return operation == "label" and label == STABLE


def destroys(operation: str, label: Any) -> bool:
    return operation == "destroy"


Asked = Callable[[Rotator], Any]

STUCK: dict[str, tuple[Phase | None, Callable[[str, Any], bool], Asked, str]] = {
    "moving label stable": (None, moves_stable, Rotator.rotate, "move label `stable` to version 1"),
    "preparing": (None, writes, Rotator.rotate, "write the identity of step 'prepare'"),
    "publishing": (Phase.PREPARED, writes, Rotator.resume, "write the identity of step 'publish'"),
    "activating": (Phase.PUBLISHED, writes, Rotator.resume, "write the identity of step 'activate'"),
    "verifying": (Phase.ACTIVATED, writes, Rotator.resume, "write the identity of step 'verify'"),
    "finalizing": (Phase.VERIFIED, writes, Rotator.resume, "write the identity of step 'finalize'"),
    "cancelling": (Phase.PUBLISHED, writes, Rotator.abandon, "write the identity of step 'cancel'"),
    "rolling back": (Phase.ACTIVATED, writes, Rotator.abandon, "write the identity of step 'roll back'"),
    "destroying": (Phase.STEADY, destroys, Rotator.retire, "destroy version 3"),
    "recording a retirement": (Phase.STEADY, writes, Rotator.retire, "record root root-a as retired"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("until", "refuses", "asked", "says"), STUCK.values(), ids=list(STUCK))
async def test_an_action_that_the_store_refuses_while_nothing_changes_is_tried_twice_and_ends_with_an_error(
    clock: FakeClock, until: Phase | None, refuses: Callable[[str, Any], bool], asked: Asked, says: str
) -> None:
    async with Refusing(clock) as provider:
        herd = await Herd.start(provider, clock=clock, nodes=2)
        if until is not None:
            await rotator_for(herd).rotate(to_phase=until)
        clock.turn(POLICY.grace + timedelta(seconds=1))
        provider.refuses = refuses
        with pytest.raises(StuckError) as caught:
            async with asyncio.timeout(60):
                await asked(rotator_for(herd))
        assert caught.value.code == "rotation.stuck"
        assert f"cannot {says}: tried 2 times" in str(caught.value)
        assert "another writer was first" in str(caught.value)
        assert len(provider.refused) == 2
        # Nothing was left half done: once the store takes writes again, the next run ends as it should.
        provider.refuses = lambda operation, label: False
        await rotator_for(herd).resume()
        await check_steady(herd)


def test_every_action_that_writes_is_counted_and_the_others_have_a_deadline_or_end_the_run() -> None:
    by_deadline, ends = {"Introduce", "IntroduceEarlier", "CrossSign", "Wait"}, {"Busy", "Illegal", "Done", "Refuse"}
    seen = Observation(store=StoreView(version="1", stable="1", generation=1, phase=Phase.STEADY, phase_since_ms=0,
                                       current_id="A", current_expires_ms=0))  # fmt: skip
    for kind in get_args(Action):
        given = {field.name: "x" for field in fields(kind)}
        given |= {"step": Step.PUBLISH} if "step" in given else {}
        is_counted = identify_attempt(kind(**given), seen) is not None
        assert is_counted != (kind.__name__ in by_deadline | ends), kind.__name__


async def test_a_store_that_may_show_an_older_state_is_looked_at_for_a_while_before_the_error(
    clock: FakeClock,
) -> None:
    async with Refusing(clock, consistency=ReadConsistency.EVENTUAL) as provider:
        herd = await Herd.start(provider, clock=clock, nodes=1)
        provider.refuses = moves_stable
        began = clock.now_ms()
        with pytest.raises(StuckError):
            await rotator_for(herd).rotate()
        assert len(provider.refused) == 2
        assert clock.now_ms() - began >= POLICY.store_patience / timedelta(milliseconds=1)


@pytest.mark.slow
async def test_a_conflict_with_a_writer_that_changes_the_store_is_no_reason_to_end(make_herd: MakeHerd) -> None:
    herd = await make_herd(clients=0)
    provider, write = herd.provider, herd.provider.write
    rivals = 0

    async def overtaken(secret_id: str, value: bytes, **options: Any) -> Any:
        nonlocal rivals
        if rivals < 8:
            rivals += 1
            document = await document_of(herd)
            rival = sign_document(replace(document, generation=document.generation + 1), herd.clock.now_ms())
            found = await provider.read(secret_id, CURRENT)
            await write(secret_id, encode_document(rival), label=CURRENT, expected=found.version.id)
        return await write(secret_id, value, **options)

    provider.write = overtaken  # type: ignore[method-assign,assignment]
    await rotator_for(herd).rotate()
    assert rivals == 8
    await check_steady(herd)


@pytest.mark.slow
async def test_a_store_that_confirms_a_destruction_and_destroys_nothing_ends_with_an_error(clock: FakeClock) -> None:
    class Lying(MemorySecretProvider):
        asked = 0

        async def destroy(self, secret_id: str, version: str) -> None:
            self.asked += 1

    async with Lying(clock=clock) as provider:
        herd = await Herd.start(provider, clock=clock, nodes=1)
        await rotator_for(herd).rotate()
        clock.turn(POLICY.grace + timedelta(seconds=1))
        events: list[Event] = []
        with pytest.raises(StuckError, match="reported success each time"):
            await rotator_for(herd, events=events).retire()
        assert provider.asked == 2
        assert {type(one.action) for one in events if isinstance(one, Decided)} <= {Destroy, LabelStable}


REVOKING: dict[str, tuple[Callable[[Any], bool], dict[str, Any], str]] = {
    "revoking": (lambda document: True, {}, "write the revocation"),
    "closing the list": (
        lambda document: any(one.freeze is not None and one.settled_at is None for one in document.revoked),
        {},
        "write the closed list of commits",
    ),
    "settling": (
        lambda document: any(one.settled_at is not None for one in document.revoked) and not document.retired_ids,
        {},
        "record the revocation as settled",
    ),
    "recording a retirement": (
        lambda document: bool(document.retired_ids),
        {"destroy": True},
        "record root root-a as retired",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(("when", "options", "says"), REVOKING.values(), ids=list(REVOKING))
async def test_a_revocation_that_the_store_refuses_while_nothing_changes_ends_with_an_error(
    tmp_path: Path, when: Callable[[Any], bool], options: dict[str, Any], says: str
) -> None:
    a = root("root-a")
    async with cluster_of(tmp_path, document_for(a), 1) as cluster:
        write = cluster.provider.write
        tries = 0

        async def refused(secret_id: str, value: bytes, **more: Any) -> Any:
            nonlocal tries
            if when(decode_document(value)):
                tries += 1
                raise ConflictError("no", provider="memory", secret_id=secret_id, operation="write")
            return await write(secret_id, value, **more)

        cluster.provider.write = refused  # type: ignore[method-assign,assignment]
        with pytest.raises(StuckError, match=f"cannot {says}: tried 2 times"):
            async with asyncio.timeout(60):
                await cluster.revoker().revoke(a.id, reason="stolen", **options)
        assert tries == 2
        cluster.provider.write = write  # type: ignore[method-assign]
        assert (await cluster.revoker().revoke(a.id, reason="stolen", destroy=True)).is_complete


@pytest.mark.slow
async def test_a_store_that_refuses_to_destroy_a_revoked_key_ends_the_revocation_with_an_error(
    tmp_path: Path,
) -> None:
    a = root("root-a")
    async with cluster_of(tmp_path, document_for(a), 1) as cluster:
        destroy = cluster.provider.destroy

        async def refused(secret_id: str, version: str) -> None:
            raise ConflictError("held", provider="memory", secret_id=secret_id, operation="destroy")

        cluster.provider.destroy = refused  # type: ignore[method-assign,assignment]
        with pytest.raises(StuckError, match="cannot destroy version 1: tried 2 times"):
            await cluster.revoker().revoke(a.id, reason="stolen", destroy=True)
        cluster.provider.destroy = destroy  # type: ignore[method-assign]
        report = await cluster.revoker().revoke(a.id, reason="stolen", destroy=True)
        assert (report.destroyed, report.is_complete) == (("1",), True)
        assert (await cluster.provider.read(SECRET)).version.id != "1"
