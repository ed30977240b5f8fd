"""The file of an audit trail: append-only, shared by several processes, safe in a crash at any time, and without
keys."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from goatherd.audit.events_as_data import EventData, to_json_value
from goatherd.audit.records import Anchors, Checked, Head, Record, read_record, verify
from goatherd.audit.trail import AuditTrail, Journal, read_lines
from goatherd.errors import AuditBrokenError, AuditError, DecodeError
from goatherd.files import System
from goatherd.identity.document import encode_document
from goatherd.identity.session import OwnedSession
from goatherd.identity.transitions import create_document
from goatherd.rotation.events import (
    ConflictMet,
    Decided,
    NodeNotified,
    NodesSeen,
    PhaseEntered,
    RunEnded,
    StoreTroubled,
)
from goatherd.rotation.machine import Advance, NodeView, Phase, Step, Wait
from tests.deadlines import HANG
from tests.fakes.herd import FakeClock
from tests.unit.audit.trails import NOW_MS, after, before, root, rotated, secret_text
from tests.unit.rotation.conftest import MakeHerd, check_steady, document_of, rotator_for


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


def make(file: Path, **options: Any) -> AuditTrail:
    trail = AuditTrail(file, actor="alice@host-1:4711", clock=FakeClock(NOW_MS), **options)
    trail.use_identity(before())
    return trail


def check(file: Path, **options: Any) -> Checked:
    return verify(read_lines(file), **options)


def read_trail(file: Path) -> list[Record]:
    """Return the records, without the incomplete lines that a crash has left."""
    found = []
    for line in read_lines(file):
        with contextlib.suppress(DecodeError):
            found.append(read_record(line))
    return found


def events(file: Path) -> list[str]:
    return [record.event for record in read_trail(file)]


# --- the file ---------------------------------------------------------------------------------------------------------


def test_a_new_file_is_for_its_owner_only_and_begins_with_the_signer(file: Path) -> None:
    trail = make(file)
    trail.record("run-began", {"command": "rotate"})
    assert file.stat().st_mode & 0o777 == 0o600
    assert events(file) == ["signer", "run-began"]
    assert check(file).head == trail.head


def test_another_process_carries_on_where_the_last_one_ended(file: Path) -> None:
    for _ in range(3):
        make(file).record("run-began", {})
    assert events(file) == ["signer", "run-began", "run-began", "run-began"]
    assert check(file, anchors=Anchors.from_document(after())).head.seq == 4


def test_the_signer_follows_the_identity_and_is_introduced_each_time_it_changes(file: Path) -> None:
    trail = make(file)
    trail.record("one", {})
    trail.use_identity(after())
    trail.record("two", {})
    trail.use_identity(after())
    trail.record("three", {})
    trail.use_identity(before())
    trail.record("four", {})
    assert events(file) == ["signer", "one", "signer", "two", "three", "signer", "four"]
    assert check(file).signers == ("root-a", "root-b")
    assert check(file, anchors=Anchors.from_document(after())).signers == ("root-a", "root-b")


def test_a_file_that_is_moved_away_is_followed_by_a_new_one(file: Path) -> None:
    trail = make(file)
    trail.record("one", {})
    file.rename(file.with_suffix(".1"))
    trail.record("two", {})
    assert events(file) == ["signer", "two"]
    assert check(file).head.seq == check(file.with_suffix(".1")).head.seq == 2


@pytest.mark.parametrize("mode", [0o602, 0o620, 0o666])
def test_a_file_that_others_may_write_is_refused(file: Path, mode: int) -> None:
    make(file).record("one", {})
    file.chmod(mode)
    with pytest.raises(AuditError, match="is writable by other users"):
        make(file).record("two", {})
    assert events(file) == ["signer", "one"]


def test_a_file_that_others_may_read_is_taken(file: Path) -> None:
    make(file).record("one", {})
    file.chmod(0o640)
    make(file).record("two", {})
    assert events(file) == ["signer", "one", "two"]


def test_a_link_a_directory_a_pipe_and_any_other_file_are_refused_and_left_alone(tmp_path: Path) -> None:
    other = tmp_path / "hosts"
    other.write_text("127.0.0.1 localhost\n")
    other.chmod(0o600)
    link = tmp_path / "link"
    link.symlink_to(other)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe, 0o600)
    for path, told in (
        (other, "not an audit trail"),
        (link, "symbolic link"),
        (tmp_path, "directory"),
        (pipe, "not a regular file"),
    ):
        with pytest.raises(AuditError, match=told):
            make(path).record("one", {})
    with pytest.raises(AuditError, match="No such file"):
        make(tmp_path / "nowhere/audit").record("one", {})
    assert other.read_text() == "127.0.0.1 localhost\n"


def test_each_record_is_on_the_medium_before_the_next_thing_happens(file: Path) -> None:
    calls: list[str] = []

    class Watching(System):
        def run_call(self, operation: Any, *args: Any, **kwargs: Any) -> Any:
            calls.append(operation.__name__)
            return super().run_call(operation, *args, **kwargs)

    trail = make(file, system=Watching())
    trail.record("one", {})
    assert calls.count("fsync") == 2, "of the file, and of the directory that names it"
    assert calls.index("flock") < calls.index("write") < len(calls) - 1 - calls[::-1].index("fsync")
    calls.clear()
    trail.record("two", {})
    assert calls.count("fsync") == 1


def test_while_another_process_holds_the_lock_nothing_is_written(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(file).record("one", {})
    monkeypatch.setattr("goatherd.audit.trail._LOCK_PATIENCE", 0.05)
    holder = os.open(file, os.O_RDWR)
    try:
        assert System().try_lock(holder)
        with pytest.raises(AuditError, match="locked by another process"):
            make(file).record("two", {})
    finally:
        os.close(holder)
    make(file).record("three", {})
    assert events(file) == ["signer", "one", "three"]


# --- crashes ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    file = tmp_path_factory.mktemp("audit") / "audit.jsonl"
    trail = make(file)
    for name in ("one", "two", "three"):
        trail.record(name, {"nodes": ["http://10.0.0.1:8080"]})
    return file.read_bytes()


@pytest.mark.slow
@settings(max_examples=150)
@given(data=st.data())
def test_wherever_crashes_cut_the_file_it_goes_on_and_says_so(
    whole: bytes, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    file = tmp_path_factory.mktemp("audit") / "audit.jsonl"
    cut = data.draw(st.integers(0, len(whole)), label="cut")
    file.write_bytes(whole[:cut])
    file.chmod(0o600)
    kept = whole[:cut].count(b"\n")
    is_torn = cut > 0 and whole[cut - 1 : cut] != b"\n"
    if is_torn:
        with pytest.raises(AuditBrokenError) as caught:
            check(file)
        assert caught.value.line == kept + 1
    # A second crash, while the record that states the first tear is being written.
    make(file).record("four", {})
    grown = file.read_bytes()
    again = data.draw(st.integers(cut, len(grown)), label="second cut")
    file.write_bytes(grown[:again])
    file.chmod(0o600)
    make(file).record("five", {})
    checked = check(file)
    assert events(file)[-1] == "five"
    assert file.read_bytes().startswith(grown[:again]), "nothing is taken back"
    # If a line lacks only its line end, adding one completes it.
    if is_torn and whole[cut : cut + 1] != b"\n":
        assert kept + 1 in checked.torn


def test_a_disk_that_is_full_half_way_leaves_a_torn_line_that_the_next_record_states(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Full(System):
        is_full = False

        def write_all(self, descriptor: int, data: bytes) -> None:
            if self.is_full:
                super().write_all(descriptor, data[:40])
                raise OSError(28, "No space left on device")
            super().write_all(descriptor, data)

    system = Full()
    trail = make(file, system=system)
    trail.record("one", {})
    system.is_full = True
    assert not trail.add_if_possible("two", {})
    assert not trail.add_if_possible("three", {})
    assert caplog.text.count("audit.failed") == 1
    assert "No space left" in caplog.text
    system.is_full = False
    assert trail.add_if_possible("four", {})
    assert "audit.torn" in caplog.text
    checked = check(file)
    assert (checked.lost, len(checked.torn)) == (2, 2)
    assert events(file) == ["signer", "one", "four"]


@pytest.mark.parametrize("garbage", [b"x\n" * 20, b"x" * 3_000_000], ids=["lines", "one line"])
def test_a_file_whose_end_is_no_trail_is_not_added_to(file: Path, garbage: bytes) -> None:
    make(file).record("one", {})
    with file.open("ab") as end:
        end.write(garbage)
    with pytest.raises(AuditError, match="is not a complete record"):
        make(file).record("two", {})


@pytest.mark.slow
def test_processes_that_write_at_the_same_time_make_one_chain(file: Path) -> None:
    script = (
        "import sys, pathlib\n"
        "from goatherd.identity.document import decode_document\n"
        "from goatherd.audit import trail as module\n"
        f"module._LOCK_PATIENCE = {HANG}\n"
        "trail = module.AuditTrail(pathlib.Path(sys.argv[1]), actor=sys.argv[2])\n"
        "trail.use_identity(decode_document(sys.stdin.read()))\n"
        "for number in range(20):\n"
        "    trail.record('decided', {'number': number})\n"
    )

    command = [sys.executable, "-c", script, str(file)]
    started = []
    for index, document in enumerate((before(), after(), before())):
        process = subprocess.Popen([*command, f"writer-{index}"], stdin=subprocess.PIPE, text=True)
        assert process.stdin is not None
        process.stdin.write(encode_document(document).decode())
        process.stdin.close()
        started.append(process)
    assert [process.wait(120) for process in started] == [0, 0, 0]
    check(file, anchors=Anchors.from_document(after()))
    for index in range(3):
        numbers = [r.data["number"] for r in read_trail(file) if r.actor == f"writer-{index}" and r.event == "decided"]
        assert numbers == list(range(20))


# --- contents ---------------------------------------------------------------------------------------------------------


def test_evidence_is_ids_versions_times_and_addresses() -> None:
    view = NodeView(url="http://10.0.0.1:8080", reachable=True, trusts_next=True, signs_with="root-a")
    name, data = EventData().convert_event(NodesSeen(nodes=(view,))) or ("", {})
    assert name == "nodes-seen"
    assert data["nodes"][0]["trustsNext"] is True
    assert data["nodes"][0]["holdsIntroduction"] is None
    assert data["nodes"][0]["answers"] is None
    assert not {"trustsCurrent", "report"} & data["nodes"][0].keys(), "a record keeps its names"
    name, data = EventData().convert_event(Decided(action=Advance(step=Step.PUBLISH, expected="7"))) or ("", {})
    assert (name, data["action"], data["step"], data["expected"]) == ("decided", "advance", "publish", "7")


def test_what_is_repeated_in_a_phase_is_told_once_and_anew_in_the_next() -> None:
    evidence = EventData()
    wait = Decided(action=Wait(nodes=("http://a",), reason="signs", until_ms=5))
    told = NodeNotified(url="http://a", is_reached=False)
    entered = PhaseEntered(phase=Phase.PREPARED, generation=2, rotation_id="r", current_id="a", next_id="b", at_ms=1)
    found = [
        evidence.convert_event(event) for event in (wait, told, wait, told, ConflictMet(), ConflictMet(), entered, wait)
    ]
    assert [one and one[0] for one in found] == [
        "decided", "node-told", None, None, "conflict-met", "conflict-met", "phase-entered", "decided",
    ]  # fmt: skip
    assert found[1] == ("node-told", {"url": "http://a", "heard": False, "problem": None}), "a record keeps its names"


def test_an_error_of_aws_is_repeated_although_each_request_has_another_id() -> None:
    evidence = EventData()
    refused = [StoreTroubled(error=f"aws: create 'x': Denied (HTTP 400, request {number}): no") for number in "12"]
    assert [evidence.convert_event(event) is None for event in refused] == [False, True]


@pytest.mark.parametrize(
    "value", [root("root-a"), root("root-a").session, root("root-a").signer, b"bytes", object(), {1: 2}],
    ids=["owned session", "session", "key", "bytes", "object", "number as name"],
)  # fmt: skip
def test_what_has_no_place_in_a_trail_is_an_error(value: object) -> None:
    with pytest.raises(TypeError):
        to_json_value({"value": value})


def test_a_dataclass_of_somewhere_else_is_not_opened() -> None:
    @dataclass
    class Foreign:
        secret: str

    with pytest.raises(TypeError):
        to_json_value(Foreign("x"))


def test_a_key_in_a_text_that_is_not_ours_is_hidden(file: Path) -> None:
    secret = secret_text(root("root-a"))
    make(file).record("store-troubled", {"error": f"the plugin says {secret} and {secret}!"})
    assert secret not in file.read_text()
    assert "<hidden>" in file.read_text()


@pytest.mark.slow
async def test_the_trail_of_a_rotation_holds_every_step_and_no_key(
    make_herd: MakeHerd, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    herd = await make_herd()
    trail = AuditTrail(file, actor="alice@host-1:4711", clock=herd.clock)
    first = await document_of(herd)
    trail.use_identity(first)
    journal = Journal(trail)
    await rotator_for(herd, listener=journal.record_event).rotate()
    document = await check_steady(herd)
    checked = check(file, anchors=Anchors.from_document(document))
    assert checked.lost == 0
    records = read_trail(file)
    steps = [r.data["step"] for r in records if r.event == "decided" and r.data["action"] == "advance"]
    assert steps == ["publish", "activate", "verify", "finalize"]
    assert [r.data["phase"] for r in records if r.event == "phase-entered"] == [
        "steady", "prepared", "published", "activated", "verified", "steady",
    ]  # fmt: skip
    assert records[-1].event == "run-ended"
    assert records[-1].data["report"]["outcome"] == "rotated"
    seen = [r for r in records if r.event == "nodes-seen"]
    assert {node["url"] for node in seen[-1].data["nodes"]} == {"http://node-0", "http://node-1", "http://node-2"}
    for secret in (secret_text(first.current), secret_text(document.current)):
        assert secret not in file.read_text() + caplog.text
    assert caplog.text.count("rotation.evidence") == len(records) - 1, "the log holds all but who signs"


def test_a_trail_that_fails_does_not_stop_a_rotation_that_has_begun(file: Path, tmp_path: Path) -> None:
    trail = make(file)
    trail.record("one", {})
    journal = Journal(trail)
    file.unlink()
    file.mkdir()
    journal.record_event(ConflictMet())
    assert trail.head is not None


def test_a_trail_that_cannot_be_read_is_reported_with_the_systems_reason(file: Path) -> None:
    with pytest.raises(AuditError, match=r"cannot be read: No such file or directory$"):
        list(read_lines(file))


def test_the_head_is_logged_as_a_checkpoint(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    trail = make(file)
    trail.log_head()
    assert "audit.head" not in caplog.text
    trail.record("one", {})
    trail.log_head()
    assert trail.head is not None
    assert f"seq=2 sha256={trail.head.digest}" in caplog.text
    assert check(file, checkpoint=Head.from_text(f"2:{trail.head.digest}"))


def test_an_ended_run_is_told_with_its_report_and_its_repetitions_are_forgotten() -> None:
    from goatherd.rotation.events import Report
    from goatherd.rotation.machine import Outcome

    report = Report(
        outcome=Outcome.ROTATED, rotation_id="r", from_id="a", to_id="b", current_id="b", phase=Phase.STEADY,
        generation=6, began_ms=1, ended_ms=2,
    )  # fmt: skip
    evidence = EventData()
    told = NodeNotified(url="http://a", is_reached=True)
    evidence.convert_event(told)
    name, data = evidence.convert_event(RunEnded(report=report)) or ("", {})
    assert (name, data["report"]["outcome"], data["report"]["behind"]) == ("run-ended", "rotated", [])
    assert evidence.convert_event(told) is not None


def test_a_duration_is_told_with_its_unit() -> None:
    assert to_json_value({"grace": timedelta(minutes=1.5)}) == {"grace": "90s"}


def test_in_a_run_that_revokes_evidence_is_held_until_it_is_known_who_signs_it(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    clock = FakeClock(NOW_MS)
    trail = AuditTrail(file, actor="alice@host-1:4711", clock=clock)
    journal = Journal(trail, holds=True)
    journal.use_identity(before())
    journal.begin("run-began", {})
    journal.record_decision("one", {})
    mark = journal.mark_position()
    clock.turn(timedelta(seconds=1))
    journal.record_decision("two", {})
    assert events(file) == ["signer", "run-began"]
    journal.use_identity(before(), up_to=mark)
    assert events(file) == ["signer", "run-began", "one"], "what came after the mark waits for the next identity"
    clock.turn(timedelta(seconds=1))
    journal.use_identity(after())
    assert "audit.head" not in caplog.text
    journal.end("run-over", {})
    assert caplog.text.count("audit.head") == 1
    found = {record.event: record for record in read_trail(file) if record.event != "signer"}
    assert {name: record.by for name, record in found.items()} == {
        "run-began": "root-a", "one": "root-a", "two": "root-b", "run-over": "root-b",
    }  # fmt: skip
    assert found["two"].at_ms == NOW_MS + 1000, "the time is that of the event"
    check(file, anchors=Anchors(roots=Anchors.from_document(after()).roots, revoked={"root-a": NOW_MS + 500}))


# --- a process that reads the identity regularly ----------------------------------------------------------------------


def test_only_a_root_that_an_earlier_signer_introduces_is_recorded_because_it_was_read(file: Path) -> None:
    trail = AuditTrail(file, actor="controller")
    trail.use_identity(before())
    trail.record("one", {})
    stranger = create_document(root("stranger"), NOW_MS)
    namesake = create_document(OwnedSession.generate(session_id="root-b", owner="root", now_ms=NOW_MS), NOW_MS)
    for document in (stranger, namesake, rotated(stranger, "root-c"), before()):
        trail.follow_root(document)
        assert events(file) == ["signer", "one"]
    trail.follow_root(after())
    trail.follow_root(before())
    assert events(file) == ["signer", "one", "signer", "signer"]
    verify(read_lines(file), anchors=Anchors.from_document(after()))


def test_a_failure_after_a_root_could_be_recorded_is_logged_again(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    trail = AuditTrail(file, actor="controller")
    file.write_text("not a trail\n")
    trail.follow_root(before())
    file.unlink()
    trail.follow_root(before())
    file.write_text("not a trail\n")
    trail.follow_root(after())
    assert caplog.text.count("audit.failed") == 2
