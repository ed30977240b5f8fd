"""The man pages and completions that `make man` builds: one page of each command, and nothing that man complains of."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from goatherd.cli.main import EXIT_CODES
from goatherd.cli.menu import COMMANDS

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def share(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not (ROOT / "build/tools/release/.installed").exists():
        pytest.skip("click-man IS NOT INSTALLED, SO NO MAN PAGE IS BUILT: run scripts/install-release-tools")
    folder = tmp_path_factory.mktemp("share")
    line = [sys.executable, str(ROOT / "scripts/build-man"), str(folder)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def test_every_command_has_a_page_with_its_options_and_an_example(share: Path) -> None:
    pages = {path.name: path.read_text() for path in (share / "man/man1").iterdir()}
    assert pages.keys() == {"goatherd.1", *(f"goatherd-{name}.1" for name in COMMANDS)}
    assert all(".SH EXAMPLES" in text for name, text in pages.items() if name != "goatherd.1")
    assert r"\fB\-\-ready\-timeout\fP" in pages["goatherd-run.1"]
    top = pages["goatherd.1"]
    assert all(f".B {code}\n" in top for code in EXIT_CODES.values())
    assert [name for name in ("rotate", "doctor") if f".B goatherd {name}\n" not in top] == []


def test_man_reads_every_page_without_a_warning(share: Path) -> None:
    groff = shutil.which("groff")
    if groff is None:
        pytest.skip("groff IS NOT INSTALLED, SO MAN PAGES ARE NOT FORMATTED")
    pages = sorted((share / "man/man1").iterdir())
    done = subprocess.run([groff, "-man", "-ww", "-z", *pages], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_completion_scripts_are_those_that_the_command_prints(share: Path) -> None:
    bash = (share / "bash-completion/completions/goatherd").read_text()
    assert "complete -o nosort -F _goatherd_completion goatherd" in bash
    assert (share / "zsh/site-functions/_goatherd").read_text().startswith("#compdef goatherd\n")
    assert "complete --no-files --command goatherd" in (share / "fish/vendor_completions.d/goatherd.fish").read_text()
