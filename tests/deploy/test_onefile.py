"""The single-file executable (`make onefile`) works like the installed command on a machine without Python."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from goatherd.cli.main import EXIT_CODES
from tests.deadlines import HANG
from tests.ports import free_ports

pytestmark = [pytest.mark.deep, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
PROGRAM = Path(os.environ.get("GOATHERD_ONEFILE", ROOT / "build/onefile/goatherd"))
ELSEWHERE = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def _is_built() -> None:
    if not PROGRAM.exists():
        pytest.skip("THE EXECUTABLE OF ONE FILE IS NOT BUILT, SO IT IS NOT TRIED: make onefile")


def run(home: Path, *words: str, code: int = 0, **environ: str) -> str:
    """Run the executable without this process's environment, with an empty home directory."""
    given = {"PATH": "/usr/bin:/bin", "HOME": str(home), **environ}
    done = subprocess.run(
        [PROGRAM, *words], env=given, cwd=home, capture_output=True, text=True, timeout=4 * HANG, check=False
    )
    assert done.returncode == code, f"{words}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def answers(url: str) -> bool:
    """Return whether a server answers at the URL, with any status."""
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False


def test_every_extra_is_in_it(tmp_path: Path) -> None:
    found = json.loads(run(tmp_path, "--version", "--json"))
    assert found["missingExtras"] == []
    assert {"aws", "azure", "gcp", "kubernetes", "node", "pkcs11", "web"} <= set(found["extras"])


@pytest.mark.parametrize(
    "uri",
    [
        f"aws://eu-west-1/root?endpoint={ELSEWHERE}",
        f"gcp://project/root?endpoint={ELSEWHERE}",
        f"azure://vault/root?endpoint={ELSEWHERE}",
        "vault://127.0.0.1:9/secret/root?tls=off&reads=active",
        "k8s://default/root?kubeconfig=/nowhere/kubeconfig",
    ],
    ids=lambda uri: uri.partition(":")[0],
)
def test_the_library_of_each_store_is_found_and_fails_at_the_store(tmp_path: Path, uri: str) -> None:
    environ = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "VAULT_TOKEN": "x", "GOATHERD_TIMEOUT": "2s"}
    given = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), **environ}
    words = [PROGRAM, "show", "--provider", uri, "--json"]
    done = subprocess.run(words, env=given, cwd=tmp_path, capture_output=True, text=True, timeout=4 * HANG, check=False)
    assert done.returncode in {EXIT_CODES["provider"], EXIT_CODES["configuration"]}, done.stdout + done.stderr
    assert not re.search(r"missing_extra|not_found|internal", done.stdout), done.stdout


def test_an_identity_is_made_rotated_searched_and_retired(tmp_path: Path) -> None:
    store = f"file://{tmp_path}/keys/root"
    run(tmp_path, "init", GOATHERD_PROVIDER=store)
    before = json.loads(run(tmp_path, "show", "--json", GOATHERD_PROVIDER=store))["current"]["id"]
    run(tmp_path, "rotate", "--unsafe-without-nodes", GOATHERD_PROVIDER=store)
    assert json.loads(run(tmp_path, "show", "--json", GOATHERD_PROVIDER=store))["current"]["id"] != before
    run(tmp_path, "export", "settings.json", GOATHERD_PROVIDER=store)
    assert "(LIVE)" in run(tmp_path, "scan", "settings.json", code=15, GOATHERD_PROVIDER=store)


def test_the_demo_passes_with_servers_that_are_the_same_file(tmp_path: Path) -> None:
    assert json.loads(run(tmp_path, "demo", "--json").partition('\n{"event"')[0])["passed"] is True


def test_the_page_is_served_by_a_process_of_the_same_file(tmp_path: Path) -> None:
    store = f"file://{tmp_path}/keys/root"
    run(tmp_path, "init", GOATHERD_PROVIDER=store)
    given = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "GOATHERD_PROVIDER": store}
    words = [PROGRAM, "web", "--port", "0", "--json"]
    with subprocess.Popen(words, env=given, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        try:
            assert process.stdout is not None
            first = process.stdout.readline()
            assert first.startswith(b'{"ready"'), first + process.stdout.read()
            assert answers(json.loads(first)["url"])
            process.send_signal(signal.SIGTERM)
            assert process.wait(HANG) == 0
        finally:
            process.kill()


def test_the_agent_runs_a_server_that_gets_none_of_its_libraries(tmp_path: Path) -> None:
    store = f"file://{tmp_path}/keys/root"
    run(tmp_path, "init", GOATHERD_PROVIDER=store)
    (tmp_path / "data").mkdir()
    inside, door = free_ports(2)
    server = tmp_path / "server"
    server.write_text(f'#!/bin/sh\nenv >{tmp_path}/environ\nexec {sys.executable} -m tests.cluster.goatlike "$@"\n')
    server.chmod(0o755)
    words = ["run", "--data", "data", "--url", f"http://127.0.0.1:{inside}", "--door", str(door), "--"]
    words += [str(server), "--path", "data", "--port", str(inside)]
    given = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "GOATHERD_PROVIDER": store}
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen([PROGRAM, *words], env=given, cwd=tmp_path, stdout=log, stderr=log) as process,
    ):
        try:
            for _ in range(600):
                if "agent.up" in (tmp_path / "log").read_text():
                    break
                assert process.poll() is None, (tmp_path / "log").read_text()
                answers(f"http://127.0.0.1:{door}/healthy")
                signal.sigtimedwait([], 0.1)
            assert "agent.up" in (tmp_path / "log").read_text()
            process.send_signal(signal.SIGTERM)
            assert process.wait(HANG) == 0, (tmp_path / "log").read_text()
        finally:
            process.kill()
    assert not re.search(r"^(LD_LIBRARY_PATH|_PYI_\w+)=", (tmp_path / "environ").read_text(), re.MULTILINE)
