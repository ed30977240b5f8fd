"""The files of the repository that git tracks."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[1]


def tracked_files() -> list[Path]:
    """Return the files that git tracks, if they are in the working tree. Skips the test outside of a git checkout."""
    listed = subprocess.run(["git", "ls-files"], cwd=_ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [path for path in (_ROOT / line for line in listed.stdout.splitlines()) if path.is_file()]
