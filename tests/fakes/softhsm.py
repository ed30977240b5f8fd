"""SoftHSM2 for tests: a token of this process in a directory of its own, with a key made by its own tools.

What it is: `find_softhsm`, `SoftToken`. What it is not: an HSM; the keys are in files. Rules: the library reads its
configuration when it is initialized, so a process has one directory of tokens at a time, and the library is initialized
again after a token was made.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Final, Self

INSTALLED: Final = Path(__file__).resolve().parents[2] / "build/tools/softhsm"
LIBRARY: Final = "libsofthsm2.so"
VARIABLE: Final = "SOFTHSM2_CONF"
PIN: Final = "PIN-of-the-test-1234"
WHY_SKIPPED: Final = (
    "NO SOFTHSM2, SO THE PKCS#11 SIGNER IS NOT TESTED: install the package softhsm2 (scripts/install-softhsm), or set "
    "GOATHERD_SOFTHSM to its library"
)
_PLACES: Final = (
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib64/softhsm/libsofthsm2.so",
    "/usr/local/lib/softhsm/libsofthsm2.so",
    "/opt/homebrew/lib/softhsm/libsofthsm2.so",
)


def find_softhsm() -> str | None:
    """Return the path of the library: from `GOATHERD_SOFTHSM`, where scripts/install-softhsm puts it, or a package."""
    if _find_tool() is None:
        return None
    named = os.environ.get("GOATHERD_SOFTHSM")
    return named or next((str(place) for place in (INSTALLED / LIBRARY, *_PLACES) if Path(place).exists()), None)


def _find_tool() -> str | None:
    installed = INSTALLED / "softhsm2-util"
    return str(installed) if installed.exists() else shutil.which("softhsm2-util")


class SoftToken:
    """A directory with tokens, as a context manager that points the library to it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._before: str | None = None

    def __enter__(self) -> Self:
        (self._directory / "tokens").mkdir()
        conf = self._directory / "softhsm2.conf"
        conf.write_text(
            f"directories.tokendir = {self._directory}/tokens\nobjectstore.backend = file\nlog.level = ERROR\n"
        )
        self._before = os.environ.get(VARIABLE)
        os.environ[VARIABLE] = str(conf)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = self._before

    def make_token(self, label: str) -> None:
        """Make a token with this label and `PIN`, which this process sees from then on.

        No session may be open: the library is initialized again, since another test may have used its own directory.
        """
        tool, library = _find_tool(), find_softhsm()
        assert tool is not None
        assert library is not None
        command = [tool, "--module", library, "--init-token", "--free", "--label", label]
        subprocess.run([*command, "--pin", PIN, "--so-pin", f"so-{PIN}"], check=True, capture_output=True)
        import pkcs11  # not everywhere where these helpers are imported is it installed

        pkcs11.lib(library).reinitialize()
