"""The moto server for tests: found, started, emptied and stopped.

What it is: `find_moto` and `MotoServer`, an emulator of AWS that somebody else wrote, as a process of its own. What it
is not: AWS; where moto does otherwise, `tests.fakes.aws_fake` follows the API reference. Rules: 127.0.0.1 only;
ready means that its own API answers; a test process that is killed takes it along (Linux).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import httpx2

VARIABLE: Final = "GOATHERD_MOTO"
INSTALLED: Final = Path("build/tools/moto/bin/moto_server")
WHY_SKIPPED: Final = (
    f"NO MOTO, SO THE AWS PROVIDER IS TESTED AGAINST OUR OWN FAKE ONLY: run scripts/install-moto, or set {VARIABLE} to "
    "a moto_server"
)

_READY_WITHIN: Final = 30.0
_TRIES: Final = 5
_PR_SET_PDEATHSIG: Final = 1


def find_moto() -> Path | None:
    """Return the server's program: from `GOATHERD_MOTO`, or where scripts/install-moto puts it; or None."""
    if named := os.environ.get(VARIABLE):
        return Path(named)
    for place in (Path(__file__).resolve().parents[2], Path.cwd()):
        if (place / INSTALLED).exists():
            return place / INSTALLED
    return None


class MotoServer:
    """One server, as a context manager.

    Attributes:
        port: Where it listens on 127.0.0.1.
    """

    def __init__(self, program: Path) -> None:
        self._program = program
        self._process: subprocess.Popen[bytes] | None = None
        self._home: tempfile.TemporaryDirectory[str] | None = None
        self.port = 0

    @property
    def url(self) -> str:
        """The address to give to an SDK as its endpoint, of any service."""
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._home = tempfile.TemporaryDirectory(prefix="goatherd-moto-")
        try:
            for attempt in range(1, _TRIES + 1):
                self.port = _free_port()
                if self._start(Path(self._home.name), last=attempt == _TRIES):
                    break
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()
        if self._home is not None:
            self._home.cleanup()

    def _start(self, home: Path, *, last: bool) -> bool:
        log = home / "log"
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [str(self._program), "-H", "127.0.0.1", "-p", str(self.port)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={"HOME": str(home), "PATH": os.environ.get("PATH", "")},
                cwd=home,
                start_new_session=True,
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,
            )
        end = time.monotonic() + _READY_WITHIN
        with httpx2.Client(verify=False, trust_env=False, timeout=5) as http:  # plain HTTP
            while time.monotonic() < end:
                if self._process.poll() is not None:
                    if last:
                        raise AssertionError(f"{self._program} ended by itself:\n{log.read_text()[-2000:]}")
                    return False  # most likely the port was taken meanwhile
                with contextlib.suppress(httpx2.HTTPError):
                    if http.get(f"{self.url}/moto-api/data.json").status_code == 200:
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


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
