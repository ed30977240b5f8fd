"""The moto server for tests: found, started, emptied and stopped.

What it is: `find_moto` and `MotoServer`, an emulator of AWS by another project, as a process of its own. What it
is not: AWS; where moto deviates, `tests.fakes.aws_fake` follows the API reference. Rules: 127.0.0.1 only;
ready means that its own API answers; a test process that is killed takes it along (Linux).
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

import httpx2

from tests.deadlines import HANG
from tests.fakes.emulator import Emulator

VARIABLE: Final = "GOATHERD_MOTO"
INSTALLED: Final = Path("build/tools/moto/bin/moto_server")
WHY_SKIPPED: Final = (
    f"NO MOTO, SO THE AWS PROVIDER IS TESTED AGAINST OUR OWN FAKE ONLY: run scripts/install-moto, or set {VARIABLE} to "
    "a moto_server"
)


def find_moto() -> Path | None:
    """Return the server's program: from `GOATHERD_MOTO`, or where scripts/install-moto puts it; or None."""
    if named := os.environ.get(VARIABLE):
        return Path(named)
    for place in (Path(__file__).resolve().parents[2], Path.cwd()):
        if (place / INSTALLED).exists():
            return place / INSTALLED
    return None


class MotoServer(Emulator):
    """One server, as a context manager."""

    @property
    def url(self) -> str:
        """The address to give to an SDK as its endpoint, of any service."""
        return f"http://127.0.0.1:{self.port}"

    def _command(self) -> list[str]:
        return [str(self._program), "-H", "127.0.0.1", "-p", str(self.port)]

    def _is_ready(self) -> bool:
        # A TLS context that is not used takes longer to make than the request takes.
        with contextlib.suppress(httpx2.HTTPError), httpx2.Client(verify=False, trust_env=False, timeout=HANG) as http:
            return http.get(f"{self.url}/moto-api/data.json").status_code == 200
        return False
