"""What a short command must not import: modules, not times, so that the test holds on a busy machine."""

from __future__ import annotations

import subprocess
import sys

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
