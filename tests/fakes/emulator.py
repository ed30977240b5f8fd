"""An emulator of another project, as a process: started on a free port, waited for, and stopped.

What it is: `Emulator`, what `tests.fakes.moto` and `tests.fakes.openbao` have in common. What it is not: a fake. Rules:
127.0.0.1 only; a test process that is killed takes the emulator along (Linux).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tests.deadlines import HANG
from tests.ports import free_ports

_READY_WITHIN: Final = 2 * HANG
_TRIES: Final = 5
_PR_SET_PDEATHSIG: Final = 1


class Emulator(ABC):
    """One server, as a context manager.

    Attributes:
        port: Where it listens on 127.0.0.1.
    """

    def __init__(self, program: Path) -> None:
        self._program = program
        self._process: subprocess.Popen[bytes] | None = None
        self._directory: tempfile.TemporaryDirectory[str] | None = None
        self.port = 0

    @abstractmethod
    def _command(self) -> list[str]:
        """Return the command line, with the port that was chosen."""

    @abstractmethod
    def _is_ready(self) -> bool:
        """Return whether the server's own API answers."""

    @property
    def home(self) -> Path:
        """The server's directory, while it runs."""
        assert self._directory is not None
        return Path(self._directory.name)

    def __enter__(self) -> Self:
        self._directory = tempfile.TemporaryDirectory(prefix=f"goatherd-{self._program.name}-")
        try:
            for attempt in range(1, _TRIES + 1):
                (self.port,) = free_ports(1)  # OpenBao in development mode takes the next one, too
                if self._start(last=attempt == _TRIES):
                    return self
        except BaseException:
            self.__exit__(None, None, None)
            raise
        raise AssertionError("unreachable")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()
        if self._directory is not None:
            self._directory.cleanup()

    def _start(self, *, last: bool) -> bool:
        log = self.home / "log"
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                self._command(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={"HOME": str(self.home), "PATH": os.environ.get("PATH", "")},
                cwd=self.home,
                start_new_session=True,
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,
            )
        end = time.monotonic() + _READY_WITHIN
        while time.monotonic() < end:
            if self._process.poll() is not None:
                if last:
                    raise AssertionError(f"{self._program} ended by itself:\n{log.read_text()[-2000:]}")
                return False  # most likely the port was taken meanwhile
            if self._is_ready():
                return True
            time.sleep(0.02)
        raise AssertionError(f"{self._program} is not ready after {_READY_WITHIN:g} s:\n{log.read_text()[-2000:]}")

    def _stop(self) -> None:
        process = self._process
        if process is None or process.poll() is not None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
                return


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
