"""A real OpenBao server for tests: found, started, asked and stopped.

What it is: `find_bao` and `BaoServer`. What it is not: a fake, or a way to run OpenBao for anything but tests: it is in
development mode, its root token is known and nothing is kept. Rules: 127.0.0.1 only; ready means that the health URL
answers; a test process that is killed takes the server along (Linux).
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import httpx2

from tests.deadlines import HANG
from tests.fakes.emulator import Emulator

VARIABLE: Final = "GOATHERD_BAO"
INSTALLED: Final = Path("build/tools/openbao/bin/bao")
ROOT_TOKEN: Final = f"goatherd-test-{secrets.token_hex(8)}"
"""Of this process's servers, so that another's, which took the port first, is not mistaken for ours."""
WHY_SKIPPED: Final = (
    "NO OPENBAO, SO THE VAULT PROVIDER IS NOT TESTED: run scripts/install-openbao, put `bao` on the PATH, or set "
    f"{VARIABLE}"
)


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


class BaoServer(Emulator):
    """One server in development mode, as a context manager; a key/value engine, version 2, is mounted at ``secret``.

    Attributes:
        port: Where it listens.
        url: Such as ``http://127.0.0.1:41234``.
        ca: With TLS, the certificate of its authority.
    """

    def __init__(self, program: Path, *, tls: bool = False) -> None:
        super().__init__(program)
        self._tls = tls

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    @property
    def ca(self) -> str:
        return str(self.home / "vault-ca.pem")

    def ask(
        self, method: str, path: str, body: Mapping[str, object] | None = None, *, token: str = ROOT_TOKEN
    ) -> dict[str, Any]:
        """Send a request as root, or with another token; return the JSON object in the answer.

        Raises:
            AssertionError: The server refused; a missing thing is an empty answer.
        """
        # A context that is not used takes longer to make than the request takes.
        verify = ssl.create_default_context(cafile=self.ca) if self._tls else False
        with httpx2.Client(verify=verify, trust_env=False, timeout=HANG) as http:
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

    def _command(self) -> list[str]:
        command = [str(self._program), "server", "-dev", f"-dev-root-token-id={ROOT_TOKEN}", "-dev-no-store-token"]
        command += [f"-dev-listen-address=127.0.0.1:{self.port}", "-log-level=warn"]
        return command + (["-dev-tls", f"-dev-tls-cert-dir={self.home}"] if self._tls else [])

    def _is_ready(self) -> bool:
        with contextlib.suppress(httpx2.HTTPError, json.JSONDecodeError, OSError, AssertionError):
            self.ask("GET", "sys/health")
            self.ask("GET", "secret/config")  # for a moment, the engine answers that it is being upgraded
            return True
        return False
