"""Verifier processes give the same verdicts as OpenSSL, and their failures change no verdict."""

from __future__ import annotations

import logging
import os
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest

from goatherd import aws_lc
from goatherd.aws_lc import VerifierProcesses, verifier_processes
from goatherd.crypto import PublicKey, keys
from goatherd.crypto.keys import SignatureCheck, verify_signatures, verify_with
from goatherd.errors import InvalidSignatureError, UnknownSignerError
from goatherd.own_processes import own_command
from goatherd.trust import TrustPool, verify_in_threads
from goatherd.verifier_process import MOST, TAG
from goatherd.wire.commit import Commit
from tests.deadlines import HANG

from .goats import ORG, commit_by, introduction, key_of, owned, root

KEY, OTHER = key_of("x"), key_of("other")
ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973
CANARY = "a-credential-of-the-store"
GOOD = SignatureCheck(KEY.public_key, KEY.sign(b"data"), b"data")
OFF_CURVE = SignatureCheck(PublicKey(bytes(95) + b"\1"), GOOD.signature, b"data")


@pytest.fixture
def processes() -> Iterator[VerifierProcesses]:
    made = VerifierProcesses(1)
    yield made
    made.close()


@pytest.fixture(autouse=True)
def library_of_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(aws_lc, "ANSWER_TIMEOUT", timedelta(seconds=HANG))
    before = keys._other
    yield
    verify_with(before)


def pid_of(processes: VerifierProcesses) -> int:
    process = processes._all[0]._process
    assert process is not None
    return process.pid


def changed(check: SignatureCheck, byte: int) -> SignatureCheck:
    """Return the check with one bit of its signature flipped."""
    signature = bytearray(check.signature)
    signature[byte] ^= 1 << (byte % 8)
    return check._replace(signature=bytes(signature))


def number(signature: bytes, half: int) -> int:
    return int.from_bytes(signature[48 * half : 48 * half + 48])


def openssl(check: SignatureCheck) -> bool:
    verify_with(None)
    try:
        check.verify()
    except InvalidSignatureError:
        return False
    return True


def test_the_verdicts_are_those_of_openssl(processes: VerifierProcesses) -> None:
    r, s = number(GOOD.signature, 0), number(GOOD.signature, 1)
    edges = [(r, ORDER - s), (0, s), (r, 0), (ORDER, s), (r, ORDER), (1, 1), (2**384 - 1, 2**384 - 1)]
    checks = [
        GOOD,
        GOOD._replace(data=b"other data"),
        GOOD._replace(key=OTHER.public_key),
        *(GOOD._replace(signature=r.to_bytes(48) + s.to_bytes(48)) for r, s in edges),
        *(changed(GOOD, byte) for byte in range(96)),
        *(SignatureCheck(KEY.public_key, KEY.sign(bytes(size)), bytes(size)) for size in (0, 1, 127, 128, 100_000)),
    ]
    assert len(checks) <= MOST
    verdicts = processes.verify(checks)
    assert verdicts == [openssl(check) for check in checks]
    assert verdicts[:2] == [True, False]


def test_a_key_that_aws_lc_cannot_read_is_left_to_openssl(processes: VerifierProcesses) -> None:
    assert processes.verify([OFF_CURVE, GOOD, OFF_CURVE]) == [None, True, None]


def test_signatures_of_any_length_and_key_get_their_verdict() -> None:
    short = GOOD._replace(signature=GOOD.signature[:-1])
    with verifier_processes():
        verdicts = verify_signatures([GOOD, OFF_CURVE, changed(GOOD, 5)], elsewhere=True)
        assert verdicts[0] is None
        assert all(isinstance(verdict, InvalidSignatureError) for verdict in verdicts[1:])
        assert "not a point" in str(verdicts[1])
        assert [type(verdict) for verdict in verify_signatures([GOOD, short], elsewhere=True)] == [
            type(None),
            InvalidSignatureError,
        ]


def test_a_process_that_was_killed_is_replaced(processes: VerifierProcesses, caplog: pytest.LogCaptureFixture) -> None:
    assert processes.verify([GOOD]) == [True]
    before = pid_of(processes)
    os.kill(before, signal.SIGKILL)
    with caplog.at_level(logging.WARNING):
        assert processes.verify([GOOD]) is None
    assert [record.message.split()[0] for record in caplog.records] == ["verifier.failed"]
    assert processes.verify([GOOD]) == [True]
    assert pid_of(processes) != before


def test_a_process_that_does_not_answer_is_killed(
    processes: VerifierProcesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert processes.verify([GOOD]) == [True]
    before = pid_of(processes)
    os.kill(before, signal.SIGSTOP)
    monkeypatch.setattr(aws_lc, "ANSWER_TIMEOUT", timedelta(milliseconds=50))
    assert processes.verify([GOOD]) is None
    assert not Path(f"/proc/{before}").exists()


@pytest.mark.slow
def test_one_timeout_is_waited_for_if_all_processes_are_frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    three = VerifierProcesses(3)
    try:
        for process in three._all:
            assert process.verify([GOOD]) == [True]
            assert process._process is not None
            os.kill(process._process.pid, signal.SIGSTOP)
        monkeypatch.setattr(aws_lc, "ANSWER_TIMEOUT", timedelta(milliseconds=50))
        assert three.verify([GOOD]) is None
        monkeypatch.setattr(aws_lc, "ANSWER_TIMEOUT", timedelta(seconds=HANG))
        assert [three.verify([GOOD]) for _ in range(4)] == [[True]] * 4
        assert [process.failures for process in three._all] == [1, 0, 0]
    finally:
        three.close()


def test_a_process_that_does_not_read_is_killed(processes: VerifierProcesses, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aws_lc, "ANSWER_TIMEOUT", timedelta(milliseconds=50))
    monkeypatch.setattr(aws_lc, "own_command", lambda _: ["sleep", "600"])
    monkeypatch.setattr(aws_lc, "_encode_check", lambda _: bytes(1_000_000))
    assert processes.verify([GOOD]) is None
    assert processes._all[0]._process is None


@pytest.mark.parametrize("noise", [r"\n", r"\001", "a line that is longer than an answer"])
def test_what_a_module_prints_is_no_verdict(
    processes: VerifierProcesses, monkeypatch: pytest.MonkeyPatch, noise: str
) -> None:
    command = shlex.join(own_command("verifier-process"))
    monkeypatch.setattr(aws_lc, "own_command", lambda _: ["sh", "-c", f"printf '{noise}'; exec {command}"])
    # The second and third would get the verdicts on those before them.
    assert [processes.verify([each]) for each in (GOOD, changed(GOOD, 5), GOOD)] == [None] * 3


def test_an_answer_that_was_not_read_is_no_verdict(processes: VerifierProcesses) -> None:
    assert processes.verify([GOOD]) == [True]
    connection = processes._all[0]._connection
    assert connection is not None
    connection.sendall(bytes(TAG) + bytes([1]) + aws_lc._encode_check(GOOD))
    assert processes.verify([changed(GOOD, 5)]) is None
    assert processes.verify([changed(GOOD, 5)]) == [False]


def test_an_unknown_verdict_is_none(processes: VerifierProcesses, monkeypatch: pytest.MonkeyPatch) -> None:
    program = f"import os; os.write(1, os.read(0, 1 << 20)[:{TAG}] + bytes([7]))"
    monkeypatch.setattr(aws_lc, "own_command", lambda _: [sys.executable, "-c", program])
    assert processes.verify([GOOD]) is None


@pytest.mark.parametrize("count", [0, MOST + 1])
def test_a_process_is_not_asked_for_no_signature_or_too_many(processes: VerifierProcesses, count: int) -> None:
    assert processes.verify([GOOD] * count) is None
    assert processes._all[0]._process is None


def test_modules_in_the_working_directory_are_not_imported(
    processes: VerifierProcesses, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "awscrt").mkdir()
    (tmp_path / "awscrt/__init__.py").touch()
    (tmp_path / "awscrt/crypto.py").write_text(
        "class EC:\n"
        "    new_key_from_der_data = classmethod(lambda cls, der: cls())\n"
        "    verify = lambda self, digest, der: True\n"
    )
    monkeypatch.chdir(tmp_path)
    assert processes.verify([changed(GOOD, 5)]) == [False]


def test_a_python_without_an_executable_verifies_here(
    processes: VerifierProcesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", None)
    assert processes.verify([GOOD]) is None


@pytest.mark.parametrize("command", [["false"], ["/no/such/program"]])
def test_a_process_that_cannot_be_started_is_given_up(
    processes: VerifierProcesses, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    started: list[str] = []

    def counted(name: str) -> list[str]:
        started.append(name)
        return command

    monkeypatch.setattr(aws_lc, "own_command", counted)
    assert [processes.verify([GOOD]) for _ in range(6)] == [None] * 6
    assert started == ["verifier-process"] * 3


def test_a_thread_for_which_no_process_is_free_verifies_itself_if_there_is_a_core_for_it() -> None:
    made = VerifierProcesses(0, has_more_cores=True)
    assert made.verify([GOOD]) is None


def test_a_process_that_was_given_up_gets_no_work_while_another_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    two = VerifierProcesses(2)
    try:
        with monkeypatch.context() as patched:
            patched.setattr(aws_lc, "own_command", lambda _: ["false"])
            assert [two.verify([GOOD]) for _ in range(3)] == [None] * 3
        assert two.verify([GOOD]) == [True]
        assert two.verify([GOOD]) == [True]
    finally:
        two.close()


def test_signals_to_the_server_do_not_end_its_processes(processes: VerifierProcesses) -> None:
    assert processes.verify([GOOD]) == [True]
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(pid_of(processes), number)
        assert processes.verify([GOOD]) == [True]


def test_a_process_has_no_credentials_and_no_open_file_of_the_server(
    processes: VerifierProcesses, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", CANARY)
    with (tmp_path / "log").open("w"):
        assert processes.verify([GOOD]) == [True]
        folder = Path(f"/proc/{pid_of(processes)}")
        assert CANARY.encode() not in (folder / "environ").read_bytes()
        assert not [one for one in (folder / "fd").iterdir() if str(tmp_path) in str(one.readlink())]


def commits_of_many() -> list[Commit]:
    """Return commits of two sessions, of which every seventh is forged and every eleventh by an unknown session."""
    authors = [owned("x"), owned("y"), owned("stranger")]
    commits = []
    for index in range(150):
        commit = commit_by(authors[2 if index % 11 == 10 else index % 2], f"k{index}", {"text": str(index)})
        commits.append(commit.with_signature(commits[index % 2].signature or "") if index % 7 == 6 else commit)
    return commits


def pool() -> TrustPool:
    a = root("a")
    made = TrustPool(org=ORG, current=a, roots=[a.session])
    made.offer_session_commits([introduction(owned("x"), a), introduction(owned("y"), a)])
    return made


def test_a_large_batch_has_the_same_verdicts_in_the_same_order(monkeypatch: pytest.MonkeyPatch) -> None:
    commits = commits_of_many()
    sizes: list[int] = []
    verify = VerifierProcesses.verify

    def counted(self: VerifierProcesses, checks: Sequence[SignatureCheck]) -> Sequence[bool | None] | None:
        sizes.append(len(checks))
        return verify(self, checks)

    monkeypatch.setattr(VerifierProcesses, "verify", counted)
    monkeypatch.setattr(aws_lc, "count_cores", lambda: 2)
    here = pool().verify_commits(commits)
    assert sizes == []
    with verifier_processes(), ThreadPoolExecutor(2) as executor:
        pool().verify_commits(commits[:63], executor)
        assert sizes == []
        there = pool().verify_commits(commits, executor)
    assert sum(sizes) == sum(not isinstance(verdict, UnknownSignerError) for verdict in here)
    assert [type(verdict) for verdict in there] == [type(verdict) for verdict in here]
    assert {type(verdict) for verdict in here} == {type(None), UnknownSignerError, InvalidSignatureError}


@pytest.mark.parametrize(
    ("count", "sizes"),
    [(64, [32, 32]), (100, [32, 32, 32, 4]), (200, [50] * 4), (500, [125] * 4), (510, [125] * 4 + [10])],
)
def test_a_large_batch_is_verified_in_few_parts_and_one_for_each_process(count: int, sizes: Sequence[int]) -> None:
    asked: list[int] = []

    def verify_many(checks: Sequence[SignatureCheck]) -> Sequence[bool]:
        asked.append(len(checks))
        return [True] * len(checks)

    verify_with(keys.OtherLibrary(lambda _: pytest.fail("imported"), lambda: False, verify_many=verify_many))
    with ThreadPoolExecutor(1) as executor:
        assert verify_in_threads(lambda _: GOOD, range(count), executor) == [None] * count
    assert asked == sizes


def test_commits_of_unknown_sessions_alone_wait_for_no_process(caplog: pytest.LogCaptureFixture) -> None:
    commits = [commit_by(owned("stranger"), f"k{index}", {"text": "x"}) for index in range(64)]
    with verifier_processes(), ThreadPoolExecutor(2) as executor:
        verdicts = pool().verify_commits(commits, executor)
    assert {type(verdict) for verdict in verdicts} == {UnknownSignerError}
    assert not caplog.records


def test_sessions_whose_signature_is_wrong_are_not_trusted() -> None:
    a = root("a")
    users = [owned(f"user{index}") for index in range(80)]
    commits = [introduction(user, a) for user in users]
    commits[30] = commits[30].with_signature(commits[31].signature or "")
    made = TrustPool(org=ORG, current=a, roots=[a.session])
    made.offer_session_commits(commits)
    with verifier_processes(), ThreadPoolExecutor(2) as executor:
        verification = made.prepare_pending(len(commits))
        verification.run(executor)
        made.conclude_verification(verification)
    known = [made.knows_session(user.id) for user in users]
    assert known == [index != 30 for index in range(80)]


def test_processes_end_with_the_last_block_that_uses_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aws_lc, "count_cores", lambda: 2)
    with verifier_processes():
        outer = aws_lc._processes
        assert outer is not None
        with verifier_processes():
            assert aws_lc._processes is outer
            assert verify_signatures([GOOD], elsewhere=True) == [None]
        assert not keys.is_verification_serial(of_many=True)
        pid = pid_of_any(outer)
    assert not Path(f"/proc/{pid}").exists()
    assert aws_lc._processes is None
    assert keys.is_verification_serial(of_many=True)


def test_the_work_of_the_processes_is_work_of_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aws_lc, "count_cores", lambda: 2)
    monkeypatch.setattr(aws_lc, "process_time", lambda: 5.0)
    with verifier_processes():
        assert aws_lc.busy_seconds() == 5.0
        assert verify_signatures([GOOD], elsewhere=True) == [None]
        assert aws_lc.busy_seconds() > 5.0


def pid_of_any(processes: VerifierProcesses) -> int:
    (pid,) = [each._process.pid for each in processes._all if each._process is not None]
    return pid


def test_one_core_needs_no_other_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aws_lc, "count_cores", lambda: 1)
    with verifier_processes():
        assert aws_lc._processes is None
        assert verify_signatures([GOOD, changed(GOOD, 3)], elsewhere=True)[0] is None
