"""Modules that a short command must not import. Modules are checked and not times, which depend on the machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

NOT_FOR_HELP = (
    "typing", "re", "contextlib", "dataclasses", "inspect", "enum", "json", "pathlib", "click", "asyncio", "ssl",
    "importlib.metadata", "cryptography", "httpx2", "starlette", "uvicorn", "uvloop", "orjson", "mmh3",
    "goatherd.cli.main", "goatherd.errors", "goatherd.config",
)  # fmt: skip
"""What ``goatherd --help`` must not import."""


def imported_by(*arguments: str) -> set[str]:
    """Return the modules that a command imports, beyond those of an interpreter that does nothing."""
    script = (
        "import sys\n"
        "bare = set(sys.modules)\n"
        "from goatherd.__main__ import main\n"
        "sys.argv[1:] = sys.argv[2:]\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        "    print(*set(sys.modules) - bare, file=sys.stderr)\n"
    )
    command = [sys.executable, "-c", script, "-", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    return set(done.stderr.split())


def test_help_imports_nothing_but_the_table_of_commands() -> None:
    found = imported_by("--help")
    assert not found & set(NOT_FOR_HELP)
    assert {name for name in found if name.startswith("goatherd")} == {
        "goatherd", "goatherd.__main__", "goatherd.cli", "goatherd.cli.menu",
    }  # fmt: skip


NOT_FOR_THE_IDENTITY_IN_A_STORE = (
    "httpx2", "starlette", "uvicorn", "uvloop", "h11", "cronsim",
    "cryptography.hazmat.primitives.ciphers.aead", "cryptography.hazmat.primitives.serialization", "mmh3",
    "goatherd.crypto.sealed", "goatherd.rotation", "goatherd.wire.commit",
    "goatherd.audit", "goatherd.cluster", "goatherd.metrics", "goatherd.node", "goatherd.operations.rotate",
    "goatherd.schedule",
    "goatherd.settings",
)  # fmt: skip
"""What ``goatherd show`` must not import where the store is a directory of files."""


@pytest.mark.slow
def test_the_identity_in_a_file_store_is_shown_without_what_only_servers_need(tmp_path: Path) -> None:
    store = ("--provider", f"file://{tmp_path}/keys/root")
    imported_by("init", *store)
    found = imported_by("show", *store)
    assert "goatherd.operations.identity_store" in found
    assert not {name for name in NOT_FOR_THE_IDENTITY_IN_A_STORE if name in found}


@pytest.mark.slow
@pytest.mark.parametrize("module", ["goatherd.node.server", "goatherd.door.door"])
def test_what_serves_imports_nothing_that_only_rotates(module: str) -> None:
    command = [sys.executable, "-c", f"import sys, {module}; print(*sys.modules)"]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert "goatherd.metrics" in found
    assert not {name for name in found if name.startswith(("goatherd.rotation", "goatherd.revocation"))}
