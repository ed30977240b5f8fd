"""`goatherd doctor --data`: finds each damaged or unverifiable record, sets it aside without loss, and fetches it
again."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from goatherd.errors import (
    AgentBusyError,
    ConfigurationError,
    IdentityError,
    NodeUnreachableError,
    StorageError,
    UnknownSignerError,
    UntrustedRootError,
)
from goatherd.identity.anchor import AnchoredTrust
from goatherd.identity.document import IdentityDocument, encode_document
from goatherd.identity.session import OwnedSession, Session
from goatherd.identity.settings_json import to_settings
from goatherd.identity.succession import TrustCheckpoint
from goatherd.identity.transitions import create_document
from goatherd.node.data_check import LineProblem
from goatherd.node.log_storage import LogDirectory
from goatherd.operations.check_data import DataReport, TrustedRoots, check_organization
from goatherd.operations.data import check_data, find_organizations, find_trusted_roots, lock_organization, repair_data
from goatherd.operations.identity_store import Store
from goatherd.operations.repair_data import Repair, repair_organization
from goatherd.providers.memory import MemorySecretProvider, MemoryStore
from goatherd.wire.commit import Commit
from goatherd.wire.commit_log import frame_records
from goatherd.wire.json import to_json_bytes
from tests.unit.goats import NOW, ORG, commit_by, introduction, owned, root

EARLIER, CURRENT = root("earlier"), root("current")
USER, STRANGER = owned("user"), owned("stranger")
SESSIONS = [
    introduction(EARLIER, CURRENT, commit_id="s0"),
    introduction(USER, EARLIER, commit_id="s1"),
]
NOTES = [commit_by(USER, f"k{n}", {"text": f"note {n}"}, commit_id=f"n{n}") for n in range(6)]
TRUSTED = TrustedRoots(source="the store", roots=(CURRENT.session,), current=CURRENT)


class FakePeer:
    """A server that holds commits, or does not answer."""

    def __init__(self, commits: dict[str, Sequence[Commit]], *, is_down: bool = False) -> None:
        self.commits = commits
        self.is_down = is_down
        self.asked: list[tuple[str, str]] = []

    @property
    def base_url(self) -> str:
        return "http://peer"

    async def create_session(self) -> tuple[OwnedSession, list[Session]]:
        return owned("anonymous"), []

    async def pull(
        self, path: str, signer: OwnedSession, now_ms: int | None = None, *, known: Collection[str] = ()
    ) -> list[dict[str, Any]]:
        if self.is_down:
            raise NodeUnreachableError("http://peer: no answer")
        self.asked.append((path, signer.id))
        return [commit.to_json() for commit in self.commits.get(path, ()) if commit.id not in known]

    async def push(
        self, path: str, commits: Iterable[Mapping[str, Any]], signer: OwnedSession, now_ms: int | None = None
    ) -> object:
        raise AssertionError(f"nothing is to be pushed to {path}")


PEER = {"/sys/sessions": SESSIONS, "/data/notes": NOTES}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """An organization with sessions and notes, as a server leaves it."""
    path = tmp_path / "data" / ORG
    for name, commits in (("sys/sessions", SESSIONS), ("data/notes", NOTES)):
        file = path / f"{name}.jsonl"
        file.parent.mkdir(parents=True)
        file.write_bytes(b"".join(frame_records([commit.to_json()]) for commit in commits))
        file.chmod(0o640)
    return path


def notes(directory: Path) -> Path:
    return directory / "data" / "notes.jsonl"


def replace(file: Path, old: bytes, new: bytes) -> None:
    data = file.read_bytes()
    assert old in data
    file.write_bytes(data.replace(old, new, 1))


def tree(directory: Path) -> dict[str, tuple[bytes, int, int]]:
    return {
        str(path.relative_to(directory)): (path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ino)
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != ".goatherd.lock"
    }


def check(directory: Path, trusted: TrustedRoots | None = TRUSTED) -> DataReport:
    with lock_organization(directory) as logs:
        return check_organization(logs, ORG, trusted)


async def repair(directory: Path, *peers: FakePeer, trusted: TrustedRoots | None = TRUSTED) -> Repair:
    with lock_organization(directory) as logs:
        return await repair_organization(logs, ORG, trusted, peers)


def damage_everything(directory: Path) -> dict[str, LineProblem]:
    """Damage five records, each in another way; return the kind of damage that the check must find for each commit."""
    file = notes(directory)
    replace(file, b'"id":"n0"', b'"id":"n0')
    replace(file, b"note 2", b"note X")
    replace(file, b'"id":"n1"', b'"c":1,"id":"n1"')
    replace(file, _contents(NOTES[1]), b'"C"' + _contents(NOTES[1])[3:])
    forged = commit_by(STRANGER, "k9", {}, commit_id="n9").to_json()
    with file.open("ab") as log:
        log.write(frame_records([forged]) + b'\n{"id":"n7","to')
    # A line that is no JSON may still show its id; n0's does not.
    return {
        "n1": LineProblem.NOT_A_COMMIT,
        "n2": LineProblem.UNVERIFIABLE,
        "n9": LineProblem.UNVERIFIABLE,
        "n7": LineProblem.TORN,
    }


def _contents(commit: Commit) -> bytes:
    return b'"c":' + to_json_bytes(commit.to_json()["c"])


def test_a_healthy_directory_has_no_findings_roots_that_only_the_log_introduces_included(directory: Path) -> None:
    report = check(directory)
    assert report.findings == ()
    assert report.records == len(SESSIONS) + len(NOTES)
    assert report.verified_with == "the store"


def test_every_kind_of_damage_is_found_with_its_offset_and_nothing_is_written(directory: Path) -> None:
    replace(notes(directory), b'"id":"n5"', b'"id":n5"')
    kinds = damage_everything(directory)
    before = tree(directory)
    report = check(directory)
    data = notes(directory).read_bytes()
    for finding in report.findings:
        assert finding.file == notes(directory)
        line = data[finding.offset : finding.offset + finding.length]
        assert line == line.strip()
        assert data[finding.offset - 1 : finding.offset] == b"\n"
        if finding.commit_id is not None:
            assert finding.commit_id.encode() in line
            assert kinds[finding.commit_id] == finding.kind
    kinds_found = [finding.kind for finding in report.findings]
    assert sorted(kinds_found) == sorted([*kinds.values(), LineProblem.DAMAGED, LineProblem.DAMAGED])
    codes = {finding.commit_id: finding.code for finding in report.findings if finding.code}
    assert codes == {"n2": "verification.invalid_signature", "n9": "verification.unknown_signer"}
    assert tree(directory) == before


def test_without_trusted_roots_damage_is_found_and_signatures_are_said_not_to_be_verified(directory: Path) -> None:
    damage_everything(directory)
    report = check(directory, None)
    assert report.verified_with is None
    assert {finding.kind for finding in report.findings} == {
        LineProblem.TORN,
        LineProblem.DAMAGED,
        LineProblem.NOT_A_COMMIT,
    }


def test_a_session_that_no_root_has_introduced_is_found(directory: Path) -> None:
    """An unmodified server stores such a session, and trusts it at its next start."""
    forged = introduction(root("attacker"), USER, commit_id="s9")
    with (directory / "sys" / "sessions.jsonl").open("ab") as log:
        log.write(frame_records([forged.to_json()]))
    (finding,) = check(directory).findings
    assert (finding.commit_id, finding.code) == ("s9", "verification.untrusted_root")


def test_what_a_revoked_root_has_signed_and_the_log_holds_verifies(directory: Path) -> None:
    revoked = TrustedRoots(
        source="the store", roots=(CURRENT.session, EARLIER.session), revoked=frozenset({EARLIER.id}), current=CURRENT
    )
    assert check(directory, revoked).findings == ()


@pytest.mark.parametrize("trusted", [TrustedRoots(source="another store", roots=(root("other").session,))])
async def test_with_the_identity_of_another_cluster_nothing_is_set_aside(
    directory: Path, trusted: TrustedRoots
) -> None:
    before = tree(directory)
    for work in (lambda: check(directory, trusted), None):
        with pytest.raises(ConfigurationError, match="none of the 8 commits"):
            work() if work else await repair(directory, trusted=trusted)
    assert tree(directory) == before


async def test_a_healthy_directory_is_not_touched_by_a_repair(directory: Path) -> None:
    before = tree(directory)
    done = await repair(directory, FakePeer(PEER))
    assert tree(directory) == before
    assert (done.set_aside, done.fetched, done.restored) == ((), 0, 0)


async def test_repair_moves_what_is_damaged_aside_and_keeps_every_other_byte(directory: Path) -> None:
    damage_everything(directory)
    whole = notes(directory).read_bytes()
    done = await repair(directory, FakePeer({"/sys/sessions": SESSIONS}))
    aside = notes(directory).with_name("notes.jsonl.damaged")
    assert check(directory).findings == ()
    assert len(done.set_aside) == 5
    left, moved = notes(directory).read_bytes().split(b"\n"), aside.read_bytes().split(b"\n")
    assert sorted(filter(None, [*left, *moved])) == sorted(filter(None, whole.split(b"\n")))
    assert notes(directory).read_bytes() == b"".join(frame_records([commit.to_json()]) for commit in NOTES[3:])
    for file in (aside, notes(directory)):
        assert stat.S_IMODE(file.stat().st_mode) == 0o640, "as the log had it"
    assert set(done.lacking) == {"n1", "n2", "n9"}, "a torn write was never confirmed"
    assert done.unidentified == 1


async def test_repair_fetches_what_it_has_set_aside_from_a_peer_and_verifies_it(directory: Path) -> None:
    damage_everything(directory)
    forged = commit_by(STRANGER, "k0", {"text": "forged"}, commit_id="n0")
    peer = FakePeer({**PEER, "/data/notes": [forged, *NOTES]})
    done = await repair(directory, peer)
    assert done.fetched == 3
    assert done.lacking == ("n9",)
    asked = [("/sys/sessions", CURRENT.id), ("/data/notes", CURRENT.id)]
    assert peer.asked == asked, "the sessions are asked for first, then what was damaged, by the current root"
    assert check(directory).records == len(SESSIONS) + len(NOTES)
    text = notes(directory).read_text()
    assert "forged" not in text
    again = tree(directory)
    assert (await repair(directory, peer)).fetched == 0
    assert tree(directory) == again, "a second repair changes nothing"


async def test_a_damaged_introduction_costs_no_record_of_the_session(directory: Path) -> None:
    """The session's records cannot be verified, but are kept: a peer supplies the introduction later."""
    replace(directory / "sys" / "sessions.jsonl", b'"id":"s1"', b'"id":"s1')
    done = await repair(directory)
    assert [finding.kind for finding in done.set_aside] == [LineProblem.DAMAGED]
    assert {finding.code for finding in done.after.findings} == {"verification.unknown_signer"}
    assert len(done.after.findings) == len(NOTES)
    fetched = await repair(directory, FakePeer(PEER))
    assert fetched.fetched == 1
    assert fetched.after.findings == ()


async def test_what_was_set_aside_and_verifies_later_is_taken_back(directory: Path) -> None:
    late = commit_by(STRANGER, "k9", {}, commit_id="n9")
    with notes(directory).open("ab") as log:
        log.write(frame_records([late.to_json()]))
    assert [finding.commit_id for finding in (await repair(directory, FakePeer(PEER))).set_aside] == ["n9"]
    assert check(directory).is_clean
    with (directory / "sys" / "sessions.jsonl").open("ab") as log:
        log.write(frame_records([introduction(STRANGER, CURRENT, commit_id="s2").to_json()]))
    (finding,) = check(directory).findings
    assert (finding.kind, finding.commit_id) == (LineProblem.SET_ASIDE, "n9")
    assert finding.file == notes(directory).with_name("notes.jsonl.damaged")
    done = await repair(directory)
    assert (done.restored, done.after.findings) == (1, ())
    assert b'"n9"' in notes(directory).read_bytes()


async def test_nothing_of_a_revoked_root_is_taken_from_a_peer(directory: Path) -> None:
    revoked = TrustedRoots(
        source="the store", roots=(CURRENT.session, EARLIER.session), revoked=frozenset({EARLIER.id}), current=CURRENT
    )
    replace(notes(directory), b'"id":"n5"', b'"id":n5"')
    backdated = commit_by(EARLIER, "k5", {"text": "stolen"}, commit_id="n8")
    done = await repair(directory, FakePeer({"/data/notes": [backdated, NOTES[5]]}), trusted=revoked)
    assert done.fetched == 1
    assert b"stolen" not in notes(directory).read_bytes()


# --- lost sessions ----------------------------------------------------------------------------------------------------


def lose_sessions(directory: Path, how: str) -> Path:
    """Remove the session of the notes' author from the log, in a way that leaves no damage for a check to find."""
    file = directory / "sys" / "sessions.jsonl"
    if how == "cut off":
        file.write_bytes(frame_records([SESSIONS[0].to_json()]))
    elif how == "empty":
        file.write_bytes(b"")
    else:
        file.unlink()
    return file


LOSSES = pytest.mark.parametrize("how", ["cut off", "empty", "missing"])


@LOSSES
async def test_lost_sessions_are_fetched_before_the_records_of_these_sessions_are_judged(
    directory: Path, how: str
) -> None:
    before = notes(directory).read_bytes()
    lose_sessions(directory, how)
    done = await repair(directory, FakePeer(PEER))
    assert (done.set_aside, done.lacking, done.is_complete) == ((), (), True)
    assert done.fetched == (1 if how == "cut off" else 2)
    assert notes(directory).read_bytes() == before
    assert check(directory).is_clean
    assert check(directory).records == len(SESSIONS) + len(NOTES)


async def test_records_of_unknown_sessions_are_not_moved_before_every_peer_has_sent_its_sessions(
    directory: Path,
) -> None:
    lose_sessions(directory, "cut off")
    before = tree(directory)
    root_only = FakePeer({"/sys/sessions": SESSIONS[:1]})
    for peers in ([], [FakePeer(PEER, is_down=True)], [FakePeer({"/data/notes": NOTES})]):
        done = await repair(directory, *peers)
        assert (done.set_aside, done.is_complete) == ((), False)
        assert [finding.commit_id for finding in done.after.findings] == [commit.id for commit in NOTES]
        assert tree(directory) == before
    done = await repair(directory, root_only)
    assert [finding.commit_id for finding in done.set_aside] == [commit.id for commit in NOTES]


async def test_the_sessions_of_a_root_that_no_peer_introduces_are_moved_with_their_records(directory: Path) -> None:
    """GoatDB makes such a root if it is started without its settings.json; no record introduces it."""
    before = notes(directory).read_bytes()
    for file, commit in (
        (directory / "sys" / "sessions.jsonl", introduction(STRANGER, THIEF, commit_id="s9")),
        (notes(directory), commit_by(STRANGER, "k9", {}, commit_id="n9")),
    ):
        with file.open("ab") as log:
            log.write(frame_records([commit.to_json()]))
    left = await repair(directory)
    assert [finding.commit_id for finding in left.after.findings] == ["s9", "n9"], "a peer may know the root"
    done = await repair(directory, FakePeer(PEER))
    assert [finding.commit_id for finding in done.set_aside] == ["s9", "n9"]
    assert done.after.findings == ()
    assert notes(directory).read_bytes() == before


@LOSSES
async def test_records_that_were_moved_when_their_session_was_lost_are_taken_back_once_a_peer_has_sent_it(
    directory: Path, how: str
) -> None:
    lose_sessions(directory, "cut off")
    assert len((await repair(directory, FakePeer({"/sys/sessions": SESSIONS[:1]}))).set_aside) == len(NOTES)
    lose_sessions(directory, how)
    done = await repair(directory, FakePeer({"/sys/sessions": SESSIONS}))
    assert (done.restored, done.is_complete) == (len(NOTES), True)
    assert check(directory).records == len(SESSIONS) + len(NOTES)


async def test_sessions_that_were_all_moved_aside_are_taken_back_first(directory: Path) -> None:
    file = lose_sessions(directory, "empty")
    file.with_name("sessions.jsonl.damaged").write_bytes(frame_records([one.to_json() for one in SESSIONS]))
    found = [finding.commit_id for finding in check(directory).findings if finding.kind is LineProblem.SET_ASIDE]
    assert found == [commit.id for commit in SESSIONS]
    done = await repair(directory)
    assert (done.set_aside, done.restored, done.is_complete) == ((), len(SESSIONS), True)


@pytest.mark.parametrize("how", ["empty", "missing"])
async def test_without_any_session_the_error_says_that_the_sessions_are_lost(directory: Path, how: str) -> None:
    lose_sessions(directory, how)
    before = tree(directory)
    for work in (lambda: check(directory), None):
        with pytest.raises(ConfigurationError, match="has lost its sessions") as caught:
            work() if work else await repair(directory)
        assert "--peer" in caught.value.hint
    with lock_organization(directory) as logs:
        held = {"http://peer": SESSIONS}
        report = check_organization(logs, ORG, TRUSTED, held_by_peers=held)
    assert {finding.code for finding in report.findings} == {UnknownSignerError.code}
    assert tree(directory) == before


async def test_the_sessions_of_peers_are_not_written_into_the_directory_of_another_cluster(directory: Path) -> None:
    lose_sessions(directory, "missing")
    before = tree(directory)
    other = root("other")
    trusted = TrustedRoots(source="another store", roots=(other.session,), current=other)
    peer = FakePeer({"/sys/sessions": [introduction(STRANGER, other, commit_id="o1")]})
    with pytest.raises(ConfigurationError, match="none of the 6 commits"):
        await repair(directory, peer, trusted=trusted)
    assert tree(directory) == before


ANCHOR_ROOT, WORKING, THIEF = root("anchor"), root("working"), root("thief")
FORGED = [
    introduction(THIEF, WORKING, commit_id="t0"),
    introduction(STRANGER, THIEF, commit_id="t1"),
]


@pytest.mark.parametrize("has_anchor", [True, False])
async def test_a_root_that_a_working_root_has_introduced_is_found_and_not_fetched_again(
    directory: Path, has_anchor: bool
) -> None:
    anchored = AnchoredTrust(frozenset({ANCHOR_ROOT.id}), frozenset({WORKING.id}))
    trusted = TrustedRoots(
        source="the store",
        roots=(WORKING.session, ANCHOR_ROOT.session, CURRENT.session),
        current=WORKING,
        anchored=anchored if has_anchor else None,
    )
    repeated = introduction(WORKING, ANCHOR_ROOT, commit_id="t2"), introduction(ANCHOR_ROOT, WORKING, commit_id="t3")
    with (directory / "sys" / "sessions.jsonl").open("ab") as log:
        log.write(frame_records([commit.to_json() for commit in (*repeated, *FORGED)]))
    codes = {one.commit_id: one.code for one in check(directory, trusted).findings}
    assert codes == ({"t0": UntrustedRootError.code, "t1": UnknownSignerError.code} if has_anchor else {})
    done = await repair(directory, FakePeer({"/sys/sessions": [*SESSIONS, *FORGED]}), trusted=trusted)
    assert (done.restored, done.fetched) == (0, 0)
    assert {one.commit_id for one in done.set_aside} == ({"t0"} if has_anchor else set())
    seen = TrustCheckpoint(
        generation=1, digest="0", roots=trusted.roots, revoked_ids=frozenset(), anchored_trust=trusted.anchored
    )
    remembered = TrustedRoots.from_checkpoint(TrustCheckpoint.from_bytes(seen.to_bytes()), "remembered")
    assert remembered.anchored == trusted.anchored
    done = await repair(directory, FakePeer({"/sys/sessions": FORGED}), trusted=remembered)
    assert done.fetched == 0


async def test_a_peer_that_does_not_answer_is_a_problem_and_no_loss(directory: Path) -> None:
    replace(notes(directory), b'"id":"n5"', b'"id":n5"')
    done = await repair(directory, FakePeer({}, is_down=True), FakePeer(PEER))
    assert done.problems == ("http://peer: no answer",)
    assert done.fetched == 1


async def test_peers_without_roots_to_verify_with_are_an_error(directory: Path) -> None:
    replace(notes(directory), b'"id":"n5"', b'"id":n5"')
    with pytest.raises(ConfigurationError, match="could not be verified"):
        await repair(directory, FakePeer(PEER), trusted=None)
    done = await repair(directory, trusted=None)
    assert [finding.kind for finding in done.set_aside] == [LineProblem.DAMAGED]


async def test_without_the_private_key_an_anonymous_session_asks_the_peer(directory: Path) -> None:
    replace(notes(directory), b'"id":"n5"', b'"id":n5"')
    peer = FakePeer(PEER)
    done = await repair(directory, peer, trusted=TrustedRoots(source="seen", roots=(CURRENT.session,)))
    assert done.fetched == 1
    assert peer.asked == [("/sys/sessions", "anonymous"), ("/data/notes", "anonymous")]


class Killed(BaseException):
    """The process is killed at this call."""


@pytest.mark.slow
@pytest.mark.parametrize("call", ["fsync", "replace", "fchmod", "unlink"])
async def test_a_repair_that_is_killed_loses_nothing_and_the_next_one_completes_it(
    directory: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    pristine = {path: path.read_bytes() for path in directory.rglob("*.jsonl")}
    for moment in range(12):
        for path in [*directory.rglob("*.damaged"), *directory.rglob("*.new")]:
            path.unlink()
        for path, data in pristine.items():
            path.write_bytes(data)
        damage_everything(directory)
        lines = set(filter(None, notes(directory).read_bytes().split(b"\n")))
        real, calls = getattr(os, call), iter(range(1000))

        def dying(*args: Any, real: Any = real, calls: Iterator[int] = calls, moment: int = moment, **more: Any) -> Any:
            if next(calls) == moment:
                raise Killed
            return real(*args, **more)

        with monkeypatch.context() as patch:
            patch.setattr(os, call, dying)
            try:
                await repair(directory, FakePeer(PEER))
                was_killed = False
            except Killed:
                was_killed = True
        files = [notes(directory), *directory.rglob("*.damaged")]
        assert lines <= {line for file in files for line in file.read_bytes().split(b"\n")}, moment
        await repair(directory, FakePeer(PEER))
        report = check(directory)
        assert (report.findings, report.records) == ((), len(SESSIONS) + len(NOTES))
        moved = [line for line in (directory / "data/notes.jsonl.damaged").read_bytes().split(b"\n") if line]
        assert len(moved) == len(set(moved)) == 5
        if not was_killed:
            return
    raise AssertionError("every moment was tried")


@pytest.mark.slow
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_whatever_bytes_are_flipped_a_check_finds_the_record_or_it_still_verifies(
    directory: Path, data: st.DataObject
) -> None:
    file = notes(directory)
    file.write_bytes(b"".join(frame_records([commit.to_json()]) for commit in NOTES))
    raw = bytearray(file.read_bytes())
    position = data.draw(st.integers(0, len(raw) - 1))
    raw[position] ^= data.draw(st.integers(1, 255))
    file.write_bytes(bytes(raw))
    report = check(directory)
    with LogDirectory(directory) as logs:
        held = {
            record["id"] for record in logs.open_log("/data/notes").read_records() if isinstance(record.get("id"), str)
        }
    found = {finding.commit_id for finding in report.findings}
    lost = {commit.id for commit in NOTES} - held
    assert not lost or report.findings, "a record that cannot be read is a finding"
    for commit in NOTES:
        if commit.id in held and commit.id not in found:
            stored = next(record for record in map(json.loads, _whole_lines(file)) if record.get("id") == commit.id)
            assert Commit.from_json(stored, org=ORG).signed_text(USER.id) == commit.signed_text(USER.id)


def _whole_lines(file: Path) -> list[str]:
    lines = []
    for line in file.read_bytes().decode("utf-8", "replace").split("\n"):
        try:
            if isinstance(json.loads(line), dict):
                lines.append(line)
        except ValueError:
            continue
    return lines


# --- roots, places and locks ------------------------------------------------------------------------------------------


def document() -> IdentityDocument:
    return IdentityDocument(generation=1, current=CURRENT, roots=(CURRENT.session,), last_updated=NOW)


def test_the_roots_are_found_in_what_a_server_remembers_or_in_its_settings(directory: Path) -> None:
    assert find_trusted_roots(directory, NOW) is None
    (directory / "settings.json").write_bytes(to_settings(document()))
    found = find_trusted_roots(directory, NOW)
    assert found is not None
    assert (found.source, found.current) == (str(directory / "settings.json"), CURRENT)
    assert "current=" not in repr(found), "it holds the private key"
    (directory / ".goatherd.seen.json").write_bytes(TrustCheckpoint.from_document(document()).to_bytes())
    found = find_trusted_roots(directory, NOW)
    assert found is not None
    assert (found.source, found.current) == (str(directory / ".goatherd.seen.json"), None)
    assert check(directory, found).findings == ()


def test_a_file_that_names_no_roots_is_an_error_that_only_a_store_helps_against(directory: Path) -> None:
    for name in ("settings.json", ".goatherd.seen.json"):
        (directory / name).write_bytes(b'{"currentSession": 5}')
        with pytest.raises(IdentityError, match=re.escape(name)) as caught:
            find_trusted_roots(directory, NOW)
        assert "--offline" not in caught.value.hint, "it reads the same file"


def test_a_data_directory_and_the_directory_of_one_organization_are_both_found(directory: Path, tmp_path: Path) -> None:
    assert find_organizations(directory.parent, None) == [(ORG, directory)]
    assert find_organizations(directory.parent, ORG) == [(ORG, directory)]
    assert find_organizations(directory, None) == [(ORG, directory)]
    assert find_organizations(directory, "acme") == [("acme", directory)]
    with pytest.raises(ConfigurationError, match="no data of organization 'acme'"):
        find_organizations(directory.parent, "acme")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigurationError, match="no GoatDB data"):
        find_organizations(tmp_path / "empty", None)
    with pytest.raises(ConfigurationError, match="not a directory"):
        find_organizations(tmp_path / "missing", None)


def test_an_organization_whose_directory_may_not_be_read_is_not_taken_for_no_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ORG).mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path / ORG)  # the tests may run as root
    with pytest.raises(StorageError, match=f"{ORG} cannot be read: Permission denied"):
        find_organizations(tmp_path, None)


@pytest.mark.parametrize(("name", "org"), [("lost+found", None), (".snapshots", None), ("other", ORG)])
def test_a_directory_that_is_not_the_organization_need_not_be_readable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, org: str | None
) -> None:
    (tmp_path / name).mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path / name)
    with pytest.raises(ConfigurationError, match="holds no GoatDB data"):
        find_organizations(tmp_path, org)


def test_a_directory_in_use_is_an_error_that_names_the_process(directory: Path) -> None:
    script = "import sys, time; file = open(sys.argv[1], 'a'); print('open', flush=True); time.sleep(600)"
    command = [sys.executable, "-c", script, str(notes(directory))]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as server:
        try:
            assert server.stdout is not None
            server.stdout.readline()
            with pytest.raises(StorageError, match=f"process {server.pid} holds"):
                check(directory)
        finally:
            server.kill()
    with LogDirectory(directory), pytest.raises(StorageError, match=f"in use by process {os.getpid()}"):
        check(directory)


def test_a_directory_that_an_agent_uses_is_an_error(directory: Path) -> None:
    from goatherd.agent.data_directory_lock import DataDirectoryLock

    with DataDirectoryLock(directory.parent), pytest.raises(AgentBusyError, match="uses"):
        check(directory)
    assert check(directory).findings == ()


@pytest.mark.parametrize("is_new", [True, False])
async def test_a_read_only_file_system_can_be_checked_and_not_repaired(
    directory: Path, monkeypatch: pytest.MonkeyPatch, is_new: bool
) -> None:
    from goatherd.agent.data_directory_lock import DataDirectoryLock

    if not is_new:  # the locks are there, and where the directory can be written, others may hold them
        with DataDirectoryLock(directory.parent), LogDirectory(directory):
            pass
    real = os.open

    def open_reading(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return real(path, flags, *arguments, **options)

    def check_all() -> Any:
        return check_data(directory.parent, org=None, open_store=store_with_identity)

    with ExitStack() as others:
        if not is_new:
            others.enter_context(LogDirectory(directory))
        monkeypatch.setattr(os, "open", open_reading)
        if not is_new:
            with pytest.raises(StorageError, match="in use by process"):
                await check_all()
    (report,) = await check_all()
    assert (report.is_clean, report.records) == (True, len(SESSIONS) + len(NOTES))
    with pytest.raises(StorageError, match="Read-only file system"):
        await repair_data(directory.parent, org=None, open_store=store_with_identity)


# --- every organization of a data directory ---------------------------------------------------------------------------


@asynccontextmanager
async def store_with_identity(org: str) -> AsyncIterator[Store]:
    async with MemorySecretProvider(MemoryStore()) as provider:
        await provider.create("root", encode_document(create_document(CURRENT, NOW)))
        yield Store(provider=provider, secret_id="root", org=org, name="the store")


async def test_an_agent_is_seen_from_within_the_directory_of_the_organization(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from goatherd.agent.data_directory_lock import DataDirectoryLock

    monkeypatch.chdir(directory)
    with DataDirectoryLock(directory.parent), pytest.raises(AgentBusyError, match="uses"):
        await check_data(Path(), org=None, open_store=None)
    (report,) = await check_data(Path(), org=None, open_store=None)
    assert report.org == ORG


async def test_a_data_directory_is_checked_and_repaired_with_the_identity_in_the_store(directory: Path) -> None:
    replace(notes(directory), b"note 2", b"note X")
    (report,) = await check_data(directory.parent, org=None, open_store=store_with_identity)
    assert (report.org, report.verified_with, report.is_clean) == (ORG, "the store", False)
    (repaired,) = await repair_data(directory.parent, org=None, open_store=store_with_identity, peers=[FakePeer(PEER)])
    assert (len(repaired.set_aside), repaired.fetched, repaired.is_complete) == (1, 1, True)
    (report,) = await check_data(directory.parent, org=ORG, open_store=store_with_identity)
    assert report.is_clean


async def test_without_a_store_the_roots_that_the_files_name_verify_the_records(directory: Path) -> None:
    (report,) = await check_data(directory.parent, org=None, open_store=None)
    assert report.verified_with is None
    (directory / "settings.json").write_bytes(to_settings(create_document(CURRENT, NOW), (), now_ms=None))
    (report,) = await check_data(directory.parent, org=None, open_store=None)
    assert report.verified_with == str(directory / "settings.json")
    with pytest.raises(ConfigurationError, match="no data of organization"):
        await check_data(directory.parent, org="another", open_store=None)
