"""A real OpenBao server for tests: found, started, asked and stopped.

What it is: `find_bao` and `BaoServer`. What it is not: a fake, or a way to run OpenBao for anything but tests: it is in
development mode, its root token is known and nothing is kept. Rules: 127.0.0.1 only; ready means that the health URL
answers; a test process that is killed takes the server along (Linux).
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import httpx2

VARIABLE: Final = "GOATHERD_BAO"
INSTALLED: Final = Path("build/tools/openbao/bin/bao")
ROOT_TOKEN: Final = f"goatherd-test-{secrets.token_hex(8)}"
"""Of this process's servers, so that another's, which took the port first, is not mistaken for ours."""
WHY_SKIPPED: Final = (
    "NO OPENBAO, SO THE VAULT PROVIDER IS NOT TESTED: run scripts/install-openbao, put `bao` on the PATH, or set "
    f"{VARIABLE}"
)

_READY_WITHIN: Final = 20.0
_TRIES: Final = 5
_PR_SET_PDEATHSIG: Final = 1


def find_bao(root: Path | None = None) -> Path | None:
    """Return the server's program: from `GOATHERD_BAO`, where scripts/install-openbao puts it, or the PATH; or None.

    Args:
        root: The directory of the repository; by default found from this file, else the working directory.
    """
    if named := os.environ.get(VARIABLE):
        return Path(named)
    for place in (root, Path(__file__).resolve().parents[2], Path.cwd()):
        if place is not None and (place / INSTALLED).exists():
            return place / INSTALLED
    on_path = shutil.which("bao")
    return Path(on_path) if on_path else None


class BaoServer:
    """One server in development mode, as a context manager; a key/value engine, version 2, is mounted at ``secret``.

    Attributes:
        port: Where it listens.
        url: Such as ``http://127.0.0.1:41234``.
        ca: With TLS, the certificate of its authority.
    """

    def __init__(self, program: Path, *, tls: bool = False) -> None:
        self._program = program
        self._tls = tls
        self._process: subprocess.Popen[bytes] | None = None
        self._directory: tempfile.TemporaryDirectory[str] | None = None
        self.port = 0

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    @property
    def ca(self) -> str:
        assert self._directory is not None
        return f"{self._directory.name}/vault-ca.pem"

    def __enter__(self) -> Self:
        self._directory = tempfile.TemporaryDirectory(prefix="goatherd-bao-")
        try:
            for attempt in range(1, _TRIES + 1):
                self.port = _free_port()
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

    def ask(
        self, method: str, path: str, body: Mapping[str, object] | None = None, *, token: str = ROOT_TOKEN
    ) -> dict[str, Any]:
        """Send a request as root, or with another token; return the JSON object in the answer.

        Raises:
            AssertionError: The server refused; a missing thing is an empty answer.
        """
        verify = (
            ssl.create_default_context(cafile=self.ca) if self._tls else False
        )  # reading all authorities takes long
        with httpx2.Client(verify=verify, trust_env=False, timeout=10) as http:
            response = http.request(method, f"{self.url}/v1/{path}", headers={"X-Vault-Token": token}, json=body)
        assert response.status_code in (200, 204, 404), f"{method} {path}: {response.status_code} {response.text}"
        return dict(response.json()) if response.content else {}

    def token(self, *policies: str, ttl: str = "1h", **options: object) -> str:
        """Return a new token with these policies' texts."""
        names = [self.policy(text) for text in policies]
        body = {"policies": names, "ttl": ttl, "no_parent": True, **options}
        return str(self.ask("POST", "auth/token/create", body)["auth"]["client_token"])

    def policy(self, text: str) -> str:
        """Store a policy; return its name."""
        name = f"test-{abs(hash(text)):x}"
        self.ask("POST", f"sys/policies/acl/{name}", {"policy": text})
        return name

    def _start(self, *, last: bool) -> bool:
        assert self._directory is not None
        home = Path(self._directory.name)
        log = home / "log"
        command = [str(self._program), "server", "-dev", f"-dev-root-token-id={ROOT_TOKEN}", "-dev-no-store-token"]
        command += [f"-dev-listen-address=127.0.0.1:{self.port}", "-log-level=warn"]
        if self._tls:
            command += ["-dev-tls", f"-dev-tls-cert-dir={home}"]
        environment = {"HOME": str(home), "PATH": os.environ.get("PATH", "")}
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=home,
                start_new_session=True,
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,
            )
        end = time.monotonic() + _READY_WITHIN
        while time.monotonic() < end:
            if self._process.poll() is not None:
                if last:
                    raise AssertionError(f"{self._program} ended by itself:\n{log.read_text()[-2000:]}")
                return False  # most likely the port was taken meanwhile
            with contextlib.suppress(httpx2.HTTPError, json.JSONDecodeError, OSError, AssertionError):
                self.ask("GET", "sys/health")
                self.ask("GET", "secret/config")  # for a moment, the engine answers that it is being upgraded
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
    """Return a port that is free and whose neighbour is too: the development server takes both."""
    for _ in range(100):
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = int(first.getsockname()[1])
            with contextlib.suppress(OSError, OverflowError):
                second.bind(("127.0.0.1", port + 1))
                return port
    raise AssertionError("no two neighbouring free ports")


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
