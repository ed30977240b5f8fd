"""`make` and `scripts/bootstrap` rebuild .venv after the checkout was moved, and keep it otherwise."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deadlines import HANG

ROOT = Path(__file__).parents[2]

UV = """#!/bin/sh
case $1 in
venv) for last; do :; done; mkdir -p "$last/bin"; ln -s "$PYTHON" "$last/bin/python"; touch "$last/anew" ;;
pip) printf '#!%s/bin/python\\n' "$PWD/.venv" > .venv/bin/goatherd ;;
esac
"""
"""A uv that makes an environment without packages, and whose every installation brings `goatherd`."""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    place = tmp_path / "checkout"
    for name in ("scripts/bootstrap", "Makefile", "pyproject.toml", "requirements/run.txt"):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, place / name)
    uv = tmp_path / "programs" / "uv"
    uv.parent.mkdir()
    uv.write_text(UV)
    uv.chmod(0o755)
    return place


def run(checkout: Path, *command: str) -> None:
    programs = f"{checkout.parent}/programs:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": programs, "PYTHON": sys.executable}
    subprocess.run(command, cwd=checkout, env=environment, check=True, capture_output=True, timeout=HANG)


def make_and_forget(checkout: Path, *command: str) -> Path:
    """Run the command; return the mark of a new environment, and remove the mark."""
    run(checkout, *command)
    mark = checkout / ".venv" / "anew"
    mark.unlink()
    return mark


def test_an_environment_in_its_place_is_kept(checkout: Path) -> None:
    mark = make_and_forget(checkout, "scripts/bootstrap", "run")
    run(checkout, "scripts/bootstrap", "run")
    assert not mark.exists()


@pytest.mark.parametrize("is_copy", [False, True])
def test_an_environment_is_made_anew_after_the_checkout_was_moved_or_copied(checkout: Path, is_copy: bool) -> None:
    make_and_forget(checkout, "scripts/bootstrap", "run")
    moved = checkout.with_name("moved")
    if is_copy:
        shutil.copytree(checkout, moved, symlinks=True)
    else:
        checkout.rename(moved)
    run(moved, "scripts/bootstrap", "run")
    assert (moved / ".venv" / "anew").exists()
    assert (moved / ".venv/bin/goatherd").read_text() == f"#!{moved}/.venv/bin/python\n"


@pytest.mark.parametrize("quote", ["", "'", '"'])
def test_a_long_path_that_no_first_line_can_hold_is_read_from_the_second(checkout: Path, quote: str) -> None:
    mark = make_and_forget(checkout, "scripts/bootstrap", "run")
    long = f"#!/bin/sh\n'''exec' {quote}{checkout}/.venv/bin/python{quote} \"$0\" \"$@\"\n' '''\n"
    (checkout / ".venv/bin/goatherd").write_text(long)
    run(checkout, "scripts/bootstrap", "run")
    assert not mark.exists()


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_calls_it_again_only_after_the_checkout_was_moved(checkout: Path) -> None:
    mark = make_and_forget(checkout, "make", ".venv/.run")
    run(checkout, "make", ".venv/.run")
    assert not mark.exists()
    moved = checkout.rename(checkout.with_name("moved"))
    run(moved, "make", ".venv/.run")
    assert (moved / ".venv" / "anew").exists()
