"""Let this process verify signatures with AWS-LC, which takes less than half of the time that OpenSSL takes for P-384.

AWS-LC comes with the library `awscrt`. Signing stays with OpenSSL, since AWS-LC's signatures are not deterministic.
"""

from __future__ import annotations

import hashlib
import logging
import os
import socket
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from queue import Empty, PriorityQueue
from time import monotonic, process_time
from typing import Final

from goatherd.crypto.keys import OtherLibrary, SignatureCheck, der_from_raw, verify_with
from goatherd.own_processes import own_command, own_environment
from goatherd.processor_cores import count_cores
from goatherd.telemetry import Event, event_text
from goatherd.verifier_process import DER, INVALID, MOST, TAG, UNREADABLE, VALID

_FEW_CORES: Final = 2
_MOST_PROCESSES: Final = 4
"""With four, the rest of the work for each commit takes longer, which one thread at a time does."""
_MOST_FAILURES: Final = 3
ANSWER_TIMEOUT: Final = timedelta(seconds=5)
"""How long a verifier process may take to answer, which it usually does in milliseconds. A server that stops waits for
it, too, so this is shorter than `serve.shutdown_timeout`."""

_log = logging.getLogger("goatherd.crypto")
_lock = threading.Lock()
_processes: VerifierProcesses | None = None
_users = 0


def use_aws_lc() -> bool:
    """Verify with AWS-LC from now on, if `awscrt` is installed; return whether it is.

    `awscrt` holds the GIL while it verifies. So AWS-LC verifies in the main thread, where requests wait for the result.
    In other threads it verifies only on a machine with one or two cores, where one thread verifies many signatures
    faster than several, which would wait for each other. On more cores, several threads with OpenSSL are faster. Within
    `verifier_processes`, large batches are verified in other processes.
    """
    try:
        from awscrt.crypto import EC
    except ImportError:
        return False
    has_few_cores = count_cores() <= _FEW_CORES
    main = threading.main_thread().ident
    verify_with(
        OtherLibrary(
            EC.new_key_from_der_data,
            is_preferred=lambda: has_few_cores or threading.get_ident() == main,
            is_serial=has_few_cores,
            verify_many=None if _processes is None else _processes.verify,
        )
    )
    return True


@contextmanager
def verifier_processes() -> Iterator[None]:
    """Within the block, verify with AWS-LC, and large batches of signatures in other processes, one for each core.

    A process starts when it is first needed. Blocks may overlap: they use the same processes, which end with the last
    block. Use it in a process of Goatherd's own: a program that embeds a server may not want processes beside its own.
    """
    global _processes, _users
    with _lock:
        cores = count_cores()
        if _processes is None and cores > 1:
            _processes = VerifierProcesses(min(cores, _MOST_PROCESSES), has_more_cores=cores > _MOST_PROCESSES)
        _users += 1
        use_aws_lc()
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            ended = None
            if not _users:
                ended, _processes = _processes, None
                use_aws_lc()
        if ended is not None:
            ended.close()


def busy_seconds() -> float:
    """Return the processor time that this process has used, and the time that its verifier processes have worked."""
    processes = _processes
    return process_time() + (0.0 if processes is None else processes.busy_seconds)


class VerifierProcesses:
    """Processes that verify signatures with AWS-LC (`goatherd.verifier_process`). Its methods are thread-safe.

    Args:
        count: The greatest number of processes.
        has_more_cores: Whether there are cores for more than these processes.
    """

    def __init__(self, count: int, *, has_more_cores: bool = False) -> None:
        self._has_more_cores = has_more_cores
        # By failures, so that one that was given up is used last; then by number, so that few are started.
        self._free: PriorityQueue[tuple[int, int]] = PriorityQueue()
        self._all = [_VerifierProcess() for _ in range(count)]
        for number in range(count):
            self._free.put((0, number))

    def verify(self, checks: Sequence[SignatureCheck]) -> Sequence[bool | None] | None:
        """Verify up to 255 signatures in one of the processes, once one is free; return a verdict for each.

        A verdict is None if AWS-LC cannot read the key. The result is None if the caller must verify: the process
        fails, there is no signature or more than 255, or no process is free and there is a core for the caller.
        """
        if not 0 < len(checks) <= MOST:
            return None
        try:
            _, number = self._free.get(block=not self._has_more_cores)
        except Empty:
            return None
        process = self._all[number]
        try:
            return process.verify(checks)
        finally:
            if process.has_hung:
                self._stop_free()
            self._free.put((process.failures, number))

    @property
    def busy_seconds(self) -> float:
        """How long the processes have worked, all of them together."""
        return sum(each.busy_seconds for each in self._all)

    def _stop_free(self) -> None:
        """End the processes that wait, which whatever keeps one from answering has probably stopped, too.

        Otherwise the next signatures would wait for each of them in turn. Each is started again when it is needed.
        """
        waiting = []
        with suppress(Empty):
            while True:
                waiting.append(self._free.get_nowait())
        for failures, number in waiting:
            self._all[number].stop()
            self._free.put((failures, number))

    def close(self) -> None:
        """End the processes. Call it when no thread verifies any more."""
        for each in self._all:
            each.stop()


class _VerifierProcess:
    """One process, which is started when it is first needed. One thread uses it at a time."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: socket.socket | None = None
        self.failures = 0
        self.has_hung = False
        self.busy_seconds = 0.0

    def verify(self, checks: Sequence[SignatureCheck]) -> Sequence[bool | None] | None:
        self.has_hung = False
        if self.failures >= _MOST_FAILURES:
            return None
        began = monotonic()
        try:
            verdicts = self._request_verdicts(checks)
        except OSError as error:
            self.failures += 1
            self.has_hung = isinstance(error, TimeoutError)
            self.stop()
            _log.warning(event_text(Event.VERIFIER_FAILED, message=f"a process that verifies signatures: {error}"))
            return None
        finally:
            self.busy_seconds += monotonic() - began
        self.failures = 0
        return [None if verdict == UNREADABLE else verdict == VALID for verdict in verdicts]

    def _request_verdicts(self, checks: Sequence[SignatureCheck]) -> bytes:
        """Return the verdicts of the process.

        Raises:
            OSError: The process cannot be started, has ended, does not answer in time, or writes something else.
        """
        connection = self._connection or self._start_process()
        connection.settimeout(ANSWER_TIMEOUT.total_seconds())
        tag = os.urandom(TAG)
        connection.sendall(b"".join([tag, bytes([len(checks)]), *map(_encode_check, checks)]))
        answer = b""
        while missing := TAG + len(checks) - len(answer):
            part = connection.recv(missing)
            if not part:
                raise OSError("it has ended")
            answer += part
        verdicts = answer[TAG:]
        # SECURITY: without the tag, bytes of an earlier answer, or a line that some module prints, would be taken for
        # the verdicts on these signatures (tests/unit/test_verifiers.py).
        if answer[:TAG] != tag or not set(verdicts) <= {VALID, INVALID, UNREADABLE}:
            raise OSError("it wrote something other than its answer")
        return verdicts

    def _start_process(self) -> socket.socket:
        # Sockets have a timeout for writing, too, which pipes do not have.
        ours, theirs = socket.socketpair()
        with theirs:
            self._connection = ours
            self._process = subprocess.Popen(  # noqa: S603 - a fixed command, without a shell
                own_command("verifier-process"),
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                env=own_environment(),
                process_group=0,
            )
        return ours

    def stop(self) -> None:
        """End the process, if it runs."""
        process, self._process = self._process, None
        connection, self._connection = self._connection, None
        if process is not None:
            process.kill()
            process.wait()
        if connection is not None:
            connection.close()


def _encode_check(check: SignatureCheck) -> bytes:
    digest = hashlib.sha384(check.data).digest()
    return check.key.raw + digest + der_from_raw(check.signature).ljust(DER, b"\0")
