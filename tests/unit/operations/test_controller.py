"""The checks of a controller at its start: which errors end it, and which are warnings."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from goatherd.audit.records import Anchors, read_record, verify
from goatherd.audit.trail import read_lines
from goatherd.clock import SystemClock
from goatherd.cluster.discovery import NodeDirectory
from goatherd.errors import AuditBrokenError, ConfigurationError, ProviderAccessDeniedError, UnavailableError
from goatherd.identity.document import Phase
from goatherd.metrics import Metric
from goatherd.operations.controller import (
    StartProblem,
    explain_schedule,
    find_missing_program,
    find_start_problems,
    refuse_start,
    run_controller,
)
from goatherd.operations.identity_store import Store
from goatherd.operations.init import init_identity
from goatherd.operations.rotate import rotate
from goatherd.operations.rotation_metrics import RotationMetrics
from goatherd.providers.capabilities import Finding, Verdict, rights_finding
from goatherd.providers.memory import MemorySecretProvider
from goatherd.providers.values import SecretValue
from goatherd.rotation.events import Event, PhaseEntered
from goatherd.rotation.machine import rotation_due_ms
from goatherd.rotation.policy import Policy
from goatherd.schedule.due import Schedule, make_schedule
from goatherd.times import milliseconds
from tests.deadlines import HANG
from tests.fakes.herd import FakeClock, Herd
from tests.unit.rotation.conftest import rotator_for
from tests.unit.rotation.test_obstacles import part, stranger
from tests.unit.stores.regions import SECRET, Regions

from .conftest import POLICY, MakeHerd, store_of


class Telling:
    """A store that reports which operations these credentials allow."""

    def __init__(self, herd: Herd, *findings: Finding, fails: Exception | None = None) -> None:
        self._provider = herd.provider
        self._findings, self._fails = list(findings), fails

    def __getattr__(self, name: str) -> object:
        if name == "read" and self._fails is not None:
            raise self._fails
        return getattr(self._provider, name)

    async def diagnose(self, _: str) -> list[Finding]:
        return self._findings


async def problems_of(herd: Herd, *, store: object = None, **options: object) -> list[StartProblem]:
    surveyor = rotator_for(herd, **options)
    return await find_start_problems(store or herd.provider, herd.secret_id, surveyor, {})  # type: ignore[arg-type]


async def test_a_cluster_in_good_order_has_no_problem(make_herd: MakeHerd) -> None:
    herd = await make_herd(clients=0)
    problems = await problems_of(herd)
    assert problems == []
    refuse_start(problems)


async def test_a_server_that_is_down_or_alone_may_be_in_order_later(make_herd: MakeHerd) -> None:
    herd = await make_herd(clients=0)
    herd.nodes[0].faults.cut_off = True
    part(herd, [1], [2])
    problems = await problems_of(herd)
    assert [one.is_permanent for one in problems] == [False, False]
    assert "http://node-0 did not answer" in problems[0].text
    assert "each on its own: http://node-1; http://node-2" in problems[1].text
    refuse_start(problems)


async def test_a_server_of_another_identity_ends_the_start(make_herd: MakeHerd) -> None:
    herd = await make_herd(clients=0)
    with pytest.raises(ConfigurationError, match="the controller was not started: http://other belongs to another"):
        refuse_start(await problems_of(herd, nodes=[*herd.nodes, stranger(herd)]))


async def test_an_unmodified_server_that_rejects_the_current_root_may_only_have_a_wrong_clock(
    make_herd: MakeHerd,
) -> None:
    herd = await make_herd(nodes=1, clients=0)
    other = stranger(herd)
    other.unmodified = True
    problem, _ = await problems_of(herd, nodes=[*herd.nodes, other])
    assert "it belongs to another identity, or its clock differs by more than three minutes" in problem.text
    assert not problem.is_permanent


async def test_servers_that_do_not_say_with_whom_they_synchronize_are_left_without_a_session(
    make_herd: MakeHerd,
) -> None:
    herd = await make_herd(clients=0, unmodified=[0, 1, 2])
    (problem,) = await problems_of(herd)
    assert "do not report their peers" in problem.text
    assert not any(node.asked["create_session"] for node in herd.nodes)


async def test_a_right_that_is_missing_ends_the_start_and_one_that_will_be_missing_does_not(
    make_herd: MakeHerd,
) -> None:
    herd = await make_herd(clients=0)
    late = Finding(name="rights", verdict=Verdict.CAUTION, text="the token expires in an hour")
    (warned,) = await problems_of(herd, store=Telling(herd, late))
    assert (warned.text, warned.is_permanent) == (late.text, False)
    wrong = Finding(name="rights", verdict=Verdict.WRONG, text="may not write", hint="Grant it.")
    with pytest.raises(ConfigurationError, match="may not write") as caught:
        refuse_start(await problems_of(herd, store=Telling(herd, wrong, late)))
    assert caught.value.hint == "Grant it."
    server = rights_finding("vault", may_write=False, may_destroy=None)
    with pytest.raises(ConfigurationError, match="too little to rotate") as caught:
        refuse_start(await problems_of(herd, store=Telling(herd, server)))
    assert "--role rotator" in caught.value.hint


async def test_a_store_that_does_not_answer_may_answer_later_and_one_that_denies_access_ends_the_start(
    make_herd: MakeHerd,
) -> None:
    herd = await make_herd(clients=0)
    about = {"provider": "memory", "secret_id": herd.secret_id, "operation": "read"}
    assert isinstance(herd.provider, MemorySecretProvider)
    (away,) = await problems_of(herd, store=Telling(herd, fails=UnavailableError("no answer", **about)))
    assert not away.is_permanent
    with pytest.raises(ProviderAccessDeniedError):
        await problems_of(herd, store=Telling(herd, fails=ProviderAccessDeniedError("denied", **about)))


@pytest.mark.parametrize(
    ("line", "missing"),
    [
        ("true", None),
        ("cat > /dev/null", None),
        ("/bin/sh -c true", None),
        ("no-such-program-anywhere now", "no-such-program-anywhere"),
        ("/no/such/program", "/no/such/program"),
        ("NAME=value true", None),
        ("(true)", None),
        ("", None),
    ],
)
async def test_a_program_is_looked_up_as_the_shell_will_do_it(line: str, missing: str | None) -> None:
    assert await find_missing_program(line) == missing


# --- as a Python program calls it -------------------------------------------------------------------------------------


def schedule_of(herd: Herd, **options: Any) -> Schedule:
    return make_schedule(
        Schedule(controller="one", started_by="one", policy=POLICY, **options), now_ms=herd.clock.now_ms()
    )


async def test_a_controller_that_would_wait_for_no_server_is_refused(make_herd: MakeHerd) -> None:
    herd = await make_herd()
    with pytest.raises(ConfigurationError, match="no server is listed"):
        await run_controller(store_of(herd), [], schedule_of(herd), stop=asyncio.Event(), once=True)


async def test_an_explanation_is_data_and_writes_nothing(make_herd: MakeHerd) -> None:
    herd = await make_herd()
    store = store_of(herd)
    before = await store.versions()
    async with NodeDirectory((), timeout=timedelta(seconds=1)) as nodes:
        found = await explain_schedule(store, nodes, schedule_of(herd, max_age=timedelta(days=60)))
    assert found.facts.current_id == (await store.read())[1].current.id
    assert found.verdict.at_ms is not None
    assert found.obstacles == ()
    assert await store.versions() == before


@pytest.mark.slow
async def test_an_explanation_names_keys_whose_roots_have_left_the_document(make_herd: MakeHerd) -> None:
    herd = await make_herd(nodes=1, clients=0)
    for _ in range(5):
        await rotator_for(herd).rotate()
    store = store_of(herd)
    assert (await store.read())[1].find_root("root-a") is None
    async with NodeDirectory((), timeout=timedelta(seconds=1)) as nodes:
        found = await explain_schedule(store, nodes, schedule_of(herd))
        assert "root-a" in dict(found.facts.unretired)
        found = await explain_schedule(store, nodes, schedule_of(herd, retires=False))
    assert "root-a" not in dict(found.facts.unretired)


async def test_a_controller_that_is_asked_to_stop_does_not_wait_for_its_checks_at_the_start() -> None:
    is_reading, stop = asyncio.Event(), asyncio.Event()

    class Silent(MemorySecretProvider):
        async def read(self, *_: object, **__: object) -> SecretValue:
            is_reading.set()
            await asyncio.Event().wait()
            raise AssertionError

    async with asyncio.timeout(HANG), Silent() as provider:
        store = Store(provider=provider, secret_id="root", org="localhost", name="memory")
        schedule = Schedule(controller="one", started_by="one")
        running = asyncio.create_task(run_controller(store, [], schedule, stop=stop, unsafe_without_nodes=True))
        await is_reading.wait()
        stop.set()
        assert await running is None


async def test_the_events_of_a_rotation_are_recorded_by_the_root_that_signs_then(tmp_path: Path) -> None:
    async with MemorySecretProvider() as provider:
        store, path = Store(provider=provider, secret_id="root", org="localhost", name="memory"), tmp_path / "audit"
        await init_identity(store, Policy())
        always = Schedule(controller="one", started_by="one", max_age=timedelta(0))
        stop = asyncio.Event()
        await run_controller(store, [], always, stop=stop, once=True, unsafe_without_nodes=True, audit_log=path)
        phases = [one for one in map(read_record, read_lines(path)) if one.event == "phase-entered"]
        assert [one.data["phase"] for one in phases if one.by == (await store.read())[1].current.id] == [
            "activated",
            "verified",
            "steady",
        ]


async def test_an_anchor_that_does_not_sign_is_seen_in_the_metrics_and_told_by_each_single_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOATHERD_SIGNER_SEAL_KEY", bytes(range(32)).hex())
    async with MemorySecretProvider() as provider:
        store = Store(provider=provider, secret_id="root", org="localhost", name="memory:///root")

        async def look() -> dict[str, float]:
            seen, schedule = RotationMetrics(), Schedule(controller="one", started_by="one")
            await run_controller(
                store,
                [],
                schedule,
                stop=asyncio.Event(),
                once=True,
                unsafe_without_nodes=True,
                metrics=seen,
                alert_command=f"cat >> {tmp_path}/alerts",
            )
            samples = {(one.metric, *one.labels): one.value for one in seen.all_samples()}
            found = {
                "reachable": samples.get((Metric.ANCHOR_REACHABLE,)),
                "signed": samples.get((Metric.SIGNER_CALLS, "local", "sign", "ok")),
                "missing": samples.get((Metric.SIGNER_CALLS, "local", "public_key", "signer.not_found")),
            }
            return {name: float(value) for name, value in found.items() if isinstance(value, int | float)}

        await init_identity(store, Policy(), anchor=f"local:{tmp_path}/anchor.json", create_key=True)
        assert await look() == {"reachable": 1, "signed": 1, "missing": 0}
        assert not (tmp_path / "alerts").exists()
        (tmp_path / "anchor.json").unlink()
        assert await look() == {"reachable": 0, "missing": 1}
        assert json.loads((tmp_path / "alerts").read_text())["kind"] == "anchor-unreachable"


async def test_the_metrics_state_when_the_next_rotation_begins_also_while_a_key_is_to_be_destroyed_first() -> None:
    seen, clock = RotationMetrics(), SystemClock()

    async def look(**options: Any) -> float | None:
        schedule = Schedule(controller="one", started_by="one", **options)
        await run_controller(
            store, [], schedule, stop=asyncio.Event(), once=True, unsafe_without_nodes=True, metrics=seen
        )
        return next((one.value for one in seen.all_samples() if one.metric is Metric.NEXT_ROTATION), None)  # type: ignore[return-value]

    async with MemorySecretProvider() as provider:
        store = Store(provider=provider, secret_id="root", org="localhost", name="memory")
        await init_identity(store, Policy())
        await look(max_age=timedelta(0))
        _, document = await store.read()
        assert document.rotated_from is not None
        due_ms = rotation_due_ms(
            issued_ms=document.history[-1].at, expires_ms=document.current.session.expiration_ms, policy=Policy()
        )
        assert clock.now_ms() + milliseconds(Policy().grace) < due_ms
        assert await look() == due_ms / 1000
        await rotate(store, [], to_phase=Phase.PUBLISHED, unsafe_without_nodes=True)
        assert await look() is None, "one is in progress"


async def test_the_metrics_follow_a_rotation_of_the_controller() -> None:
    phases: list[tuple[str, ...]] = []

    class Seen(RotationMetrics):
        def record_event(self, event: Event) -> None:
            super().record_event(event)
            if isinstance(event, PhaseEntered):
                phases.extend(
                    one.labels for one in self.all_samples() if one.metric is Metric.ROTATION_PHASE and one.value
                )

    async with MemorySecretProvider() as provider:
        store = Store(provider=provider, secret_id="root", org="localhost", name="memory")
        await init_identity(store, Policy())
        seen, always = Seen(), Schedule(controller="one", started_by="one", max_age=timedelta(0))
        stop = asyncio.Event()
        await run_controller(store, [], always, stop=stop, once=True, unsafe_without_nodes=True, metrics=seen)
        assert phases == [("steady",), ("prepared",), ("published",), ("activated",), ("verified",), ("steady",)]
        assert seen.document == (await store.read())[1]


async def test_the_metrics_count_the_calls_to_the_store() -> None:
    clock = FakeClock()
    regions = Regions(clock)
    writer, seen = regions.writer(), RotationMetrics()
    store = Store(provider=writer, secret_id=SECRET, org="localhost", name="stores")
    await init_identity(store, Policy())
    schedule = Schedule(controller="one", started_by="one")

    async def look() -> dict[str, float]:
        with suppress(UnavailableError):
            await run_controller(
                store, [], schedule, stop=asyncio.Event(), once=True, unsafe_without_nodes=True, metrics=seen
            )
        found = [one for one in seen.all_samples() if one.metric is Metric.PROVIDER_CALLS and one.value]
        assert len({one.labels for one in found}) == len(found)
        return {one.labels[2]: float(one.value) for one in found if one.labels[1] == "read"}  # type: ignore[arg-type]

    before = await look()
    for region in regions.stores.values():
        region.is_cut_off = True
    after = await look()
    assert after.pop("provider.unavailable") == 1
    assert before == after
    assert before["ok"] >= 1


@pytest.mark.slow
@pytest.mark.parametrize("rotations", [3, 6])
async def test_a_controller_that_has_missed_many_rotations_says_that_its_trail_cannot_be_verified(
    make_herd: MakeHerd, tmp_path: Path, caplog: pytest.LogCaptureFixture, rotations: int
) -> None:
    herd, path, stop = await make_herd(nodes=1, clients=0), tmp_path / "audit", asyncio.Event()

    class Seen(RotationMetrics):
        def __setattr__(self, name: str, value: object) -> None:
            super().__setattr__(name, value)
            if name == "next_ms" and self.document is not None:
                stop.set()

    async def start() -> None:
        stop.clear()
        schedule = Schedule(controller="one", started_by="one", retires=False)
        await run_controller(store_of(herd), herd.nodes, schedule, stop=stop, audit_log=path, metrics=Seen())

    async with asyncio.timeout(HANG):
        await start()
        for _ in range(rotations):
            await rotator_for(herd).rotate()
        await start()
    anchors = Anchors.from_document((await store_of(herd).read())[1])
    told = "the records of audit trail" in caplog.text
    assert told == (rotations == 6)
    if told:
        assert "Rename the file" in caplog.text
        with pytest.raises(AuditBrokenError):
            verify(read_lines(path), anchors=anchors)
    else:
        verify(read_lines(path), anchors=anchors)
