"""The Prometheus metrics, read back with Prometheus's client library, and the example alerts."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

import goatherd
from goatherd.clock import SystemClock
from goatherd.cluster.server_answers import LogsReport
from goatherd.door.door import DoorStatus
from goatherd.door.report import agent_samples, door_samples
from goatherd.errors import (
    ConflictError,
    MissingExtraError,
    NotAdoptedError,
    RotationBusyError,
    RotationError,
    SecretNotFoundError,
    StoreWentBackError,
    UnavailableError,
    WrongClockError,
)
from goatherd.identity.anchor import AnchorWord
from goatherd.identity.document import IdentityDocument, Phase, encode_document
from goatherd.identity.session import ROOT_OWNER, OwnedSession
from goatherd.identity.transitions import (
    activate_rotation,
    cancel_rotation,
    create_document,
    finalize_rotation,
    prepare_rotation,
    revoke_root,
    roll_back_rotation,
    signing_since_ms,
    with_phase,
)
from goatherd.metrics import (
    FAMILIES,
    NEVER,
    Exporter,
    MetricKind,
    MetricSample,
    call_samples,
    common_samples,
    format_samples,
    identity_samples,
    require_library,
    serve_metrics,
    settings_samples,
    signer_samples,
    write_file,
)
from goatherd.node.management import caller_samples, data_samples, root_signer_samples
from goatherd.operations.rotation_metrics import RotationMetrics
from goatherd.providers.base import Call, RetryPolicy
from goatherd.providers.call_metrics import BUCKETS, CallCounts, possible_outcomes
from goatherd.providers.memory import MemorySecretProvider
from goatherd.providers.values import Label, SecretValue, VersionId
from goatherd.remote_keys import RootSigners
from goatherd.rotation.anchor_keys import AnchorKeys
from goatherd.rotation.events import NodesSeen, PhaseEntered, Report, RunEnded
from goatherd.rotation.machine import Outcome
from goatherd.rotation.rotator import Rotator
from goatherd.serving.caller_limits import Excess
from goatherd.settings.base import SettingsStatus
from goatherd.settings.store import CloudSecretSettings
from goatherd.signers.verified import SignerCounts
from goatherd.stores import StoreState
from goatherd.telemetry import Metric
from tests.fakes.anchors import MemorySigners
from tests.fakes.herd import FakeClock, Herd

ROOT = Path(__file__).parents[2]
NOW_MS = 1_790_000_000_000
ALERTS = ROOT / "deploy/prometheus/alerts.yaml"
PROMTOOL = shutil.which("promtool", path=f"{ROOT / 'build/tools/promtool'}{os.pathsep}{os.environ.get('PATH', '')}")
NOW = 1_790_000_000_000
HOUR = 3_600_000

Labels = tuple[tuple[str, str], ...]
Read = dict[tuple[str, Labels], float]


def root(name: str = "a") -> OwnedSession:
    return OwnedSession.generate(session_id=f"root-{name}", owner=ROOT_OWNER, now_ms=NOW)


def read(text: bytes) -> Read:
    """Return every sample of an exposition by name and labels; a duplicate fails the test."""
    found: Read = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in found, key
            found[key] = sample.value
    return found


def value(found: Read, metric: Metric, **labels: str) -> float:
    return found[metric.value, tuple(sorted(labels.items()))]


def of(document: IdentityDocument) -> Read:
    return read(format_samples(identity_samples(document)))


def prepared(document: IdentityDocument, name: str, at: int) -> IdentityDocument:
    return prepare_rotation(
        document, root(name), now_ms=at, rotation_id=f"r-{name}", started_by="me", stable_version="1"
    )


def rotated(document: IdentityDocument, name: str, at: int) -> IdentityDocument:
    published = with_phase(prepared(document, name, at), Phase.PUBLISHED, at + 1)
    return finalize_rotation(with_phase(activate_rotation(published, at + 2), Phase.VERIFIED, at + 3), at + 4)


# --- identity -----------------------------------------------------------------------------------------------------


def test_a_new_identity_tells_who_signs_since_when_and_until_when_and_that_nothing_has_happened() -> None:
    document = create_document(root(), NOW)
    found = of(document)
    assert value(found, Metric.IDENTITY_GENERATION) == 1
    assert value(found, Metric.IDENTITY_INFO, root="root-a") == 1
    assert value(found, Metric.ROOT_SIGNING_SINCE) == NOW / 1000
    assert value(found, Metric.ROOT_EXPIRES) == document.current.session.expiration_ms / 1000
    assert value(found, Metric.ROTATION_LAST_SUCCESS) == NEVER
    assert value(found, Metric.ROTATION_LAST_FAILURE, event="cancelled") == NEVER
    assert value(found, Metric.ROTATION_LAST_FAILURE, event="rolled-back") == NEVER


def test_the_phase_is_a_set_of_states_of_which_exactly_one_holds() -> None:
    document = create_document(root(), NOW)
    assert value(of(document), Metric.ROTATION_PHASE, phase="steady") == 1
    begun = prepared(document, "b", NOW + 5000)
    found = of(begun)
    states = {phase: value(found, Metric.ROTATION_PHASE, phase=phase) for phase in Phase}
    assert states == {phase: float(phase == "prepared") for phase in Phase}
    assert value(found, Metric.ROTATION_PHASE_ENTERED) == NOW / 1000 + 5


def test_a_rotation_that_ends_well_is_the_last_success_and_the_key_is_young_again() -> None:
    document = rotated(create_document(root(), NOW), "b", NOW + HOUR)
    found = of(document)
    assert value(found, Metric.ROTATION_LAST_SUCCESS) == (NOW + HOUR + 4) / 1000
    assert value(found, Metric.ROOT_SIGNING_SINCE) == (NOW + HOUR + 4) / 1000
    assert value(found, Metric.IDENTITY_INFO, root="root-b") == 1


def test_a_root_that_has_just_been_activated_is_as_old_as_that() -> None:
    published = with_phase(prepared(create_document(root(), NOW), "b", NOW + HOUR), Phase.PUBLISHED, NOW + HOUR)
    assert signing_since_ms(activate_rotation(published, NOW + 2 * HOUR)) == NOW + 2 * HOUR


def test_a_cancelled_and_a_rolled_back_rotation_are_failures_and_the_key_keeps_its_age() -> None:
    stable = rotated(create_document(root(), NOW), "b", NOW + HOUR)
    cancelled = cancel_rotation(prepared(stable, "c", NOW + 2 * HOUR), NOW + 3 * HOUR, reason="no")
    published = with_phase(prepared(cancelled, "d", NOW + 4 * HOUR), Phase.PUBLISHED, NOW + 4 * HOUR)
    back = roll_back_rotation(activate_rotation(published, NOW + 5 * HOUR), stable, NOW + 6 * HOUR, reason="no")
    found = of(back)
    assert value(found, Metric.ROTATION_LAST_FAILURE, event="cancelled") == NOW / 1000 + 3 * 3600
    assert value(found, Metric.ROTATION_LAST_FAILURE, event="rolled-back") == NOW / 1000 + 6 * 3600
    assert value(found, Metric.ROTATION_LAST_SUCCESS) == (NOW + HOUR + 4) / 1000
    assert value(found, Metric.ROOT_SIGNING_SINCE) == (NOW + HOUR + 4) / 1000


def test_the_successor_of_a_revoked_root_is_as_old_as_the_revocation() -> None:
    document = rotated(create_document(root(), NOW), "b", NOW + HOUR)
    revoked = revoke_root(document, "root-b", NOW + 2 * HOUR, reason="stolen", successor=root("c"))
    assert signing_since_ms(revoked) == NOW + 2 * HOUR


def test_a_first_root_is_as_old_as_the_document_remembers() -> None:
    document = cancel_rotation(prepared(create_document(root(), NOW), "b", NOW + HOUR), NOW + 2 * HOUR, reason="no")
    assert signing_since_ms(document) == NOW + 2 * HOUR


# --- provider calls -----------------------------------------------------------------------------------------------


class Moody(MemorySecretProvider):
    """A store that fails as often as a test sets."""

    failures = 0

    async def _read(self, call: Call, at: Label | VersionId) -> SecretValue:
        self.clock.turn(timedelta(milliseconds=30))  # type: ignore[attr-defined]
        if self.failures:
            self.failures -= 1
            raise call.error(UnavailableError, "moody")
        return await super()._read(call, at)


async def test_calls_are_counted_by_operation_and_outcome_with_their_retries_and_durations() -> None:
    provider = Moody(clock=FakeClock(), retry=RetryPolicy(attempts=2, base=timedelta(milliseconds=1)))
    await provider.create("a", b"1")
    await provider.read("a")
    provider.failures = 1
    await provider.read("a")
    provider.failures = 2
    with pytest.raises(UnavailableError):
        await provider.read("a")
    with pytest.raises(ConflictError):
        await provider.write("a", b"2", expected=None)
    with pytest.raises(SecretNotFoundError):
        await provider.read("b")
    found = read(format_samples(call_samples(provider.call_counts)))

    def calls(operation: str, outcome: str) -> float:
        return value(found, Metric.PROVIDER_CALLS, provider="memory", operation=operation, outcome=outcome)

    assert calls("create", "ok") == 1
    assert calls("read", "ok") == 2
    assert calls("read", "provider.unavailable") == 1
    assert calls("read", "provider.not_found") == 1
    assert calls("write", "provider.conflict") == 1
    assert calls("write", "ok") == 0
    assert value(found, Metric.PROVIDER_RETRIES, provider="memory", operation="read") == 2
    assert value(found, Metric.PROVIDER_RETRIES, provider="memory", operation="create") == 0
    name = Metric.PROVIDER_CALL_DURATION.value
    of_reads = (("operation", "read"), ("provider", "memory"))
    assert found[f"{name}_count", of_reads] == 4
    assert found[f"{name}_sum", of_reads] == pytest.approx(0.182, abs=0.01)
    by_bound = {
        dict(labels)["le"]: n
        for (key, labels), n in found.items()
        if key == f"{name}_bucket" and dict(labels)["operation"] == "read"
    }
    assert list(by_bound) == [*map(str, BUCKETS), "+Inf"]
    assert list(by_bound.values()) == sorted(by_bound.values())
    assert by_bound["0.025"] == 0
    assert by_bound["0.05"] == 2


async def test_a_call_whose_caller_goes_away_is_counted_as_cancelled() -> None:
    class Silent(MemorySecretProvider):
        async def _read(self, call: Call, at: Label | VersionId) -> SecretValue:
            asked.set()
            await asyncio.Event().wait()
            raise AssertionError

    asked = asyncio.Event()
    provider = Silent()
    task = asyncio.create_task(provider.read("a"))
    await asked.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert provider.call_counts.ended["read", "cancelled"] == 1
    assert sum(provider.call_counts.ended.values()) == 1


def test_an_operation_begins_with_every_outcome_at_zero_so_that_a_first_failure_is_an_increase() -> None:
    calls = CallCounts("file")
    with calls.count_call("read", lambda: 0.0):
        pass
    assert {outcome for _, outcome in calls.ended} == set(possible_outcomes())
    assert sum(calls.ended.values()) == 1


# --- a process that rotates ---------------------------------------------------------------------------------------


async def test_a_rotation_tells_its_outcome_its_phases_and_its_nodes() -> None:
    clock = FakeClock()
    herd = await Herd.start(MemorySecretProvider(clock=clock), clock=clock)
    herd.provider.clock = clock
    seen = RotationMetrics(herd.provider.call_counts)
    rotator = Rotator(herd.provider, herd.secret_id, herd.nodes, clock=clock, on_event=seen.record_event)
    with seen.count_run(clock):
        await rotator.rotate()
    found = read(format_samples(seen.all_samples()))
    assert value(found, Metric.RUNS, outcome="rotated") == 1
    assert value(found, Metric.RUNS, outcome="cancelled") == value(found, Metric.RUNS, outcome="rolled_back") == 0
    assert value(found, Metric.RUN_SUCCEEDED) == 1
    assert value(found, Metric.RUN_ENDED) == clock.now_ms() / 1000
    assert value(found, Metric.NODES, state="reachable") == 3
    assert value(found, Metric.NODES, state="unreachable") == 0
    assert value(found, Metric.PROVIDER_CALLS, provider="memory", operation="write", outcome="ok") >= 5
    phases = {dict(labels)["phase"] for name, labels in found if name == Metric.PHASE_DURATION}
    assert phases == {"prepared", "published", "activated", "verified"}


@pytest.mark.slow
async def test_a_rotation_that_is_cancelled_counts_once_and_as_no_success() -> None:
    clock = FakeClock()
    herd = await Herd.start(MemorySecretProvider(clock=clock), clock=clock)
    seen = RotationMetrics()
    rotator = Rotator(herd.provider, herd.secret_id, herd.nodes, clock=clock, on_event=seen.record_event)
    await rotator.rotate(to_phase=Phase.PREPARED)  # before that, a server that is down is a refusal
    herd.nodes[1].faults.cut_off = True
    with pytest.raises(NotAdoptedError), seen.count_run(clock):
        await rotator.resume()
    found = read(format_samples(seen.all_samples()))
    assert value(found, Metric.RUNS, outcome="cancelled") == 1
    assert sum(n for (name, _), n in found.items() if name == Metric.RUNS) == 1
    assert value(found, Metric.RUN_SUCCEEDED) == 0
    assert value(found, Metric.NODES, state="unreachable") == 1


@pytest.mark.parametrize("kind", [NotAdoptedError, WrongClockError, StoreWentBackError])
def test_the_first_run_with_an_error_is_an_increase(kind: type[RotationError]) -> None:
    assert value(read(format_samples(RotationMetrics().all_samples())), Metric.RUNS, outcome=kind.code) == 0


def test_a_run_that_the_store_stops_counts_by_the_error_and_one_that_is_interrupted_as_such() -> None:
    seen = RotationMetrics()
    error = UnavailableError("gone", provider="memory", secret_id="a", operation="read")
    with pytest.raises(UnavailableError), seen.count_run(FakeClock()):
        raise error
    with pytest.raises(KeyboardInterrupt), seen.count_run(FakeClock()):
        raise KeyboardInterrupt
    found = read(format_samples(seen.all_samples()))
    assert value(found, Metric.RUNS, outcome="provider.unavailable") == 1
    assert value(found, Metric.RUNS, outcome="interrupted") == 1


def test_the_last_result_stays_during_a_run_and_when_another_process_rotates() -> None:
    def last() -> tuple[float, float]:
        found = {one.metric: one.value for one in seen.all_samples()}
        return float(found[Metric.RUN_SUCCEEDED]), float(found[Metric.RUN_ENDED])  # type: ignore[arg-type]

    seen, clock = RotationMetrics(), FakeClock()
    with seen.count_run(clock):
        assert Metric.RUN_SUCCEEDED not in {one.metric for one in seen.all_samples()}
    ended = clock.now_ms() / 1000
    clock.turn(timedelta(hours=1))
    with seen.count_run(clock):
        assert last() == (1, ended)
    ended = clock.now_ms() / 1000
    clock.turn(timedelta(hours=1))
    with pytest.raises(RotationBusyError), seen.count_run(clock):
        raise RotationBusyError("another process rotates")
    assert last() == (1, ended)
    found = read(format_samples(seen.all_samples()))
    assert value(found, Metric.RUNS, outcome="rotation.busy") == 1
    with pytest.raises(UnavailableError), seen.count_run(clock):
        raise UnavailableError("gone", provider="memory", secret_id="a", operation="read")
    assert last() == (0, clock.now_ms() / 1000)
    with seen.count_run(clock):
        assert last()[0] == 0


def entered(phase: Phase, at_ms: int, rotation_id: str | None) -> PhaseEntered:
    return PhaseEntered(phase=phase, generation=1, rotation_id=rotation_id, current_id="a", next_id=None, at_ms=at_ms)


def test_time_per_phase_is_of_the_last_rotation_only() -> None:
    seen = RotationMetrics()
    with seen.count_run(FakeClock()):
        seen.record_event(entered(Phase.STEADY, 0, None))
        seen.record_event(entered(Phase.PREPARED, 1000, "r1"))
        seen.record_event(entered(Phase.PUBLISHED, 3000, "r1"))
        seen.record_event(entered(Phase.STEADY, 3500, None))
    assert {s.labels: s.value for s in seen.all_samples() if s.metric is Metric.PHASE_DURATION} == {
        ("prepared",): 2.0,
        ("published",): 0.5,
    }
    with seen.count_run(FakeClock()):
        seen.record_event(entered(Phase.STEADY, 9000, None))
        seen.record_event(entered(Phase.PREPARED, 10_000, "r2"))
        seen.record_event(entered(Phase.STEADY, 10_250, None))
    assert {s.labels: s.value for s in seen.all_samples() if s.metric is Metric.PHASE_DURATION} == {("prepared",): 0.25}


# --- ways out -----------------------------------------------------------------------------------------------------


def everything() -> RotationMetrics:
    seen = RotationMetrics(CallCounts("memory"))
    assert seen.calls is not None
    with seen.calls.count_call("read", lambda: 0.0):
        pass
    seen.document = create_document(root(), NOW)
    seen.next_ms = NOW + HOUR
    seen.is_anchor_reachable = lambda: True
    report = Report(
        outcome=Outcome.ROTATED,
        rotation_id="r",
        from_id="a",
        to_id="b",
        current_id="b",
        phase=Phase.STEADY,
        generation=6,
        began_ms=0,
        ended_ms=1,
    )
    with seen.count_run(SystemClock()):
        seen.record_event(entered(Phase.PREPARED, 0, "r"))
        seen.record_event(entered(Phase.STEADY, 1, None))
        seen.record_event(RunEnded(report=report))
    return seen


@pytest.mark.slow
def test_the_endpoint_answers_a_scrape_while_it_is_open() -> None:
    seen = everything()
    with serve_metrics(seen.all_samples, host="127.0.0.1", port=0) as port:
        answer = httpx2.get(f"http://127.0.0.1:{port}/metrics", trust_env=False)
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/plain; version=")
        assert value(read(answer.content), Metric.RUNS, outcome="rotated") == 1
        seen.next_ms = NOW + 2 * HOUR
        again = httpx2.get(f"http://127.0.0.1:{port}/metrics", trust_env=False)
        assert value(read(again.content), Metric.NEXT_ROTATION) == (NOW + 2 * HOUR) / 1000
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(f"http://127.0.0.1:{port}/metrics", trust_env=False)


def test_the_file_holds_gauges_with_the_store_as_a_label_and_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "goatherd.prom"
    path.write_text("old")
    before = path.open()
    write_file(path, everything().all_samples(), store="file:///srv/keys/root")
    with before:
        assert before.read() == "old", "it was written into and not replaced: a reader could see half of it"
    found = read(path.read_bytes())
    assert value(found, Metric.RUN_SUCCEEDED, store="file:///srv/keys/root") == 1
    assert value(found, Metric.ROOT_EXPIRES, store="file:///srv/keys/root") > NOW / 1000
    kinds = {FAMILIES[Metric(name)].kind for name, _ in found}
    assert kinds == {MetricKind.GAUGE}
    assert list(tmp_path.iterdir()) == [path]


def test_node_exporter_can_read_the_file_whatever_the_umask_is(tmp_path: Path) -> None:
    path = tmp_path / "goatherd.prom"
    before = os.umask(0o077)
    try:
        write_file(path, everything().all_samples(), store="x")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o644


def test_only_the_new_file_gets_the_mode_that_others_can_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The owner of node_exporter's directory can replace a file there by a link to any other file, at any time."""
    secret, path = tmp_path / "secret", tmp_path / "goatherd.prom"
    secret.write_text("")
    secret.chmod(0o600)

    def replace_by_link(new: str | os.PathLike[str], target: str | os.PathLike[str], **_: Any) -> None:
        Path(new).unlink()
        Path(target).symlink_to(secret)

    monkeypatch.setattr(os, "replace", replace_by_link)
    write_file(path, everything().all_samples(), store="x")
    assert path.is_symlink()
    assert secret.stat().st_mode & 0o777 == 0o600


def test_a_file_that_cannot_be_written_leaves_the_one_before(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        write_file(tmp_path / "missing" / "goatherd.prom", everything().all_samples(), store="x")


def test_without_the_library_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(MissingExtraError, match="prometheus-client") as caught:
        require_library()
    assert "goatherd[metrics]" in caught.value.hint


# --- the table of metrics -----------------------------------------------------------------------------------------


def of_a_node(settings: CloudSecretSettings) -> bytes:
    data = LogsReport(is_complete=True, records=3, damaged=1, unverifiable=0)
    return format_samples([*common_samples(settings.settings.document, settings.status), *data_samples(data)])


@pytest.fixture
async def node_text() -> bytes:
    provider = MemorySecretProvider()
    await provider.create("root", encode_document(create_document(root(), NOW)))
    async with CloudSecretSettings(provider, "root") as settings:
        await settings.load()
        return of_a_node(settings)


def signed() -> SignerCounts:
    """Return the counts of a signer after one call with one retry and one invalid signature."""
    counts = SignerCounts("local")
    with counts.count_call("sign", lambda: 0.0):
        counts.count_retry("sign")
        counts.invalid_signatures += 1
    return counts


def test_every_metric_is_exported_by_whom_the_table_says(node_text: bytes) -> None:
    def exported(text: bytes) -> set[str]:
        return {re.sub("_(bucket|sum|count)$", "", name) for name, _ in read(text)}

    seen = everything()
    seen.record_event(NodesSeen(nodes=()))

    def table(*where: Exporter) -> set[str]:
        found = {metric for metric, about in FAMILIES.items() if about.where in where}
        return {metric.value for metric in found - {Metric.WORKING_ROOT_LIFETIME}}  # the next test

    callers = [*caller_samples(1, {Excess.TOO_MANY: 1}, {"requests": 1}, (1, 0))]
    store = StoreState(region="eu", is_primary=True, is_reachable=True)
    status = SettingsStatus(
        source="",
        generation=1,
        version="1",
        last_success_ms=1,
        age=None,
        failures=0,
        last_refusal=None,
        stores=(store,),
    )
    others = [*settings_samples(status), *root_signer_samples("signer.unavailable", RootSigners(), 0)]
    assert exported(node_text) | exported(format_samples([*callers, *others])) == table(
        Exporter.NODE, Exporter.BOTH, Exporter.FRONT
    )
    assert list(root_signer_samples(None, RootSigners(), 0)) == [], "a server without a signer"
    assert exported(format_samples(seen.all_samples())) == table(Exporter.ROTATOR, Exporter.BOTH)
    door = DoorStatus(url="", handed_on=0, stopped={}, connections=0, requests=0, sessions=0, is_blind=False)
    assert exported(format_samples(door_samples(door))) == table(Exporter.DOOR, Exporter.FRONT)
    assert exported(format_samples(agent_samples({"restarts": 0, "state": "serving"}))) == table(Exporter.AGENT)
    assert exported(format_samples(signer_samples(signed()))) == table(Exporter.SIGNER)
    assert set(FAMILIES) == set(Metric)


async def test_the_lifetime_of_a_working_root_is_exported_if_an_anchor_has_endorsed_it() -> None:
    root = OwnedSession.generate(session_id="working", owner="root", now_ms=NOW_MS, lifetime=timedelta(days=30))
    key = await AnchorKeys("localhost", MemorySigners().open).open_new("memory:kms", session_id="anchor", now_ms=NOW_MS)
    word = AnchorWord(session=key.session, endorsements=(await key.introduce(root.session, now_ms=NOW_MS),))
    found = {one.metric: one.value for one in identity_samples(create_document(root, NOW_MS, word=word))}
    assert found[Metric.WORKING_ROOT_LIFETIME] == timedelta(days=30).total_seconds()
    assert Metric.WORKING_ROOT_LIFETIME not in {one.metric for one in identity_samples(create_document(root, NOW_MS))}


@pytest.mark.parametrize("metric", list(Metric), ids=lambda metric: metric.value)
def test_names_follow_the_conventions(metric: Metric) -> None:
    about = FAMILIES[metric]
    assert re.fullmatch(r"goatherd_[a-z]+(_[a-z]+)*", metric)
    assert metric.endswith("_total") == (about.kind is MetricKind.COUNTER)
    assert not metric.endswith(("_count", "_sum", "_bucket", "_ms", "_milliseconds", "_days"))
    if about.kind is MetricKind.HISTOGRAM or "duration" in metric or "timestamp" in metric:
        assert metric.endswith("_seconds")
    assert about.help.endswith(".")
    assert len(set(about.labels)) == len(about.labels)
    assert not set(about.labels) & {"job", "instance", "le", "quantile"}


async def test_no_label_grows_with_use(node_text: bytes) -> None:
    provider = MemorySecretProvider()
    for number in range(50):
        await provider.create(f"secret-{number}", b"x")
        with pytest.raises(SecretNotFoundError):
            await provider.read(f"missing-{number}")
    series = read(format_samples(call_samples(provider.call_counts)))
    assert len(series) == 2 * (len(possible_outcomes()) + 1 + len(BUCKETS) + 3)
    assert "secret-1" not in format_samples(call_samples(provider.call_counts)).decode()
    assert len(read(node_text)) < 120


def test_nothing_of_a_key_is_exported(node_text: bytes) -> None:
    document = rotated(create_document(root(), NOW), "b", NOW + HOUR)
    begun = prepared(document, "c", NOW + 2 * HOUR)
    text = format_samples(identity_samples(begun)).decode() + node_text.decode()
    for owned in (begun.current, begun.next):
        assert owned is not None
        assert owned.to_secret_json()["privateKey"]["d"] not in text
        assert owned.session.public_key.to_jwk()["x"] not in text


def test_values_of_labels_that_need_it_are_escaped() -> None:
    odd = 'a "quoted"\nback\\slash'
    text = format_samples([MetricSample(Metric.IDENTITY_INFO, 1, (odd,))])
    assert value(read(text), Metric.IDENTITY_INFO, root=odd) == 1


def test_the_version_is_exported(node_text: bytes) -> None:
    assert value(read(node_text), Metric.BUILD_INFO, version=goatherd.__version__) == 1


# --- alerts -------------------------------------------------------------------------------------------------------


def rules() -> Iterator[dict[str, object]]:
    for group in yaml.safe_load(ALERTS.read_text())["groups"]:
        yield from group["rules"]


def test_every_alert_asks_only_for_what_is_exported_or_recorded_before_it() -> None:
    exported = {metric.value for metric in Metric}
    exported |= {
        f"{m}_{part}" for m in Metric for part in ("bucket", "sum", "count") if FAMILIES[m].kind is MetricKind.HISTOGRAM
    }
    for rule in rules():
        expression = re.sub(r'"[^"]*"|#.*', "", str(rule["expr"]))
        asked = set(re.findall(r"\bgoatherd[a-z0-9_:]+", expression))
        assert asked, rule
        assert asked <= exported, asked - exported
        if "record" in rule:
            exported.add(str(rule["record"]))


def test_every_label_that_an_alert_asks_for_is_one_of_the_metrics_that_it_asks() -> None:
    known = {label for about in FAMILIES.values() for label in about.labels} | {"store"}  # which files have
    for rule in rules():
        for inside in re.findall(r"\{([^}]*)\}", str(rule["expr"])):
            for label in re.findall(r"(\w+)\s*[=!]~?", inside):
                assert label in known, rule


def test_every_alert_says_how_bad_it_is_what_it_means_and_what_to_do() -> None:
    alerts = [rule for rule in rules() if "alert" in rule]
    assert len(alerts) >= 8
    for rule in alerts:
        assert rule["labels"]["severity"] in ("info", "warning", "critical")  # type: ignore[index]
        assert set(rule["annotations"]) >= {"summary", "description"}  # type: ignore[call-overload]
    page = (ROOT / "docs/how-to/alerts.md").read_text()
    sections = re.findall(r"^## (.+)\n\n\*\*", page, re.MULTILINE)
    assert sections == [rule["alert"] for rule in alerts], "the runbook states for each alert how soon to act"


@pytest.mark.slow
@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed: scripts/install-promtool")
@pytest.mark.parametrize("arguments", [["check", "rules"], ["test", "rules"]], ids=" ".join)
def test_promtool_accepts_the_alerts_and_they_fire_when_they_should(arguments: list[str]) -> None:
    path = ALERTS if arguments[0] == "check" else ALERTS.with_name("alerts_test.yaml")
    done = subprocess.run([str(PROMTOOL), *arguments, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed: scripts/install-promtool")
def test_promtool_finds_nothing_wrong_with_what_is_exported(node_text: bytes) -> None:
    for text in (node_text, format_samples(everything().all_samples())):
        done = subprocess.run([str(PROMTOOL), "check", "metrics"], input=text, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode()
