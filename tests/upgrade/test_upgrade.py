"""Store, data directory, configuration and a rotation in progress that 0.1.0 has written work with this version.

The archive was written by the commands of 0.1.0 and is never edited: a store after a rotation, the data directory of a
server of it, its goatherd.toml (with @HOME@ and @PORT@ in the place of what differs), and a store, `halfway`, whose
rotation has stopped when the next root was published. The roots live for 55 years; their keys are used
for nothing else.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import pytest

from tests.docs.typist import Shell
from tests.ports import free_ports

ARCHIVE = Path(__file__).parent / "written_by_0_1_0.tar.gz"
ROOTS = ("6uwg4lesii91mryhjdrxqu7d", "cbnc06irserganb1x7shld8k")
"""The root that was replaced, and the current one."""

pytestmark = pytest.mark.slow


@pytest.fixture
def home(tmp_path: Path) -> Path:
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    for directory in (tmp_path / "keys").iterdir():
        directory.chmod(0o700)  # the filter drops the modes of directories
    text = (tmp_path / "goatherd.toml").read_text()
    (port,) = free_ports(1)
    (tmp_path / "goatherd.toml").write_text(text.replace("@HOME@", str(tmp_path)).replace("@PORT@", str(port)))
    return tmp_path


def goatherd(home: Path, *words: str) -> str:
    """Run a command in `home`; with a store named, where no configuration file lists servers."""
    directory = home / "data" if "--provider" in words else home
    environ = {name: value for name, value in os.environ.items() if not name.startswith("GOATHERD_")}
    line = [sys.executable, "-m", "goatherd", *words]
    done = subprocess.run(line, cwd=directory, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_configuration_file_is_read_with_the_same_meaning(home: Path) -> None:
    shown = goatherd(home, "doctor", "--options")
    for key, value in (("rotation.lifetime", "20000d"), ("controller.max_age", "90d"), ("rotation.adoption", "2m")):
        assert [line.split()[1] for line in shown.splitlines() if line.startswith(f"{key} ")] == [value]


def test_the_store_is_read_rotated_and_restored(home: Path) -> None:
    store = ("--provider", f"file://{home}/keys/root")
    before = json.loads(goatherd(home, "show", "--json", *store))
    assert (before["current"]["id"], before["phase"], before["signed"]) == (ROOTS[1], "steady", True)
    assert {root["id"] for root in before["roots"]} == set(ROOTS)
    goatherd(home, "restore", "--unsafe-without-nodes", *store)
    assert json.loads(goatherd(home, "show", "--json", *store))["current"]["id"] == ROOTS[0]
    goatherd(home, "rotate", "--unsafe-without-nodes", *store)
    assert json.loads(goatherd(home, "show", "--json", *store))["current"]["id"] not in ROOTS


def test_a_rotation_in_progress_is_resumed(home: Path) -> None:
    store = ("--provider", f"file://{home}/keys/halfway")
    before = json.loads(goatherd(home, "show", "--json", *store))
    assert before["phase"] == "published"
    goatherd(home, "rotate", "--resume", "--unsafe-without-nodes", *store)
    after = json.loads(goatherd(home, "show", "--json", *store))
    assert (after["phase"], after["current"]["id"]) == ("steady", before["next"]["id"])


def test_a_server_goes_on_with_its_data_and_follows_a_rotation(home: Path) -> None:
    with Shell(home) as shell:
        port = tomllib.loads((home / "goatherd.toml").read_text())["serve"]["port"]
        shell.start(f"goatherd serve --port {port}")
        code, _ = shell.run("goatherd rotate")
        assert code == 0, shell.story
        code, out = shell.run("goatherd status --json")
        (node,) = json.loads(out)["nodes"]
        assert (code, node["trustsCurrent"]) == (0, True), shell.story
        code, _ = shell.run("kill %1; wait %1")
        code, out = shell.run("goatherd doctor --data check data")
        assert code == 0, shell.story
