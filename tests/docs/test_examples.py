"""The commands in the READMEs of examples/ work, against live processes, emulators and fakes."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.docs.reference import DOCS
from tests.docs.test_pages_typed import World, page, world
from tests.docs.typist import ROOT, Typed
from tests.fakes.kubernetes_fake import ADMIN_TOKEN, FakeKubernetes
from tests.fakes.moto import WHY_SKIPPED, MotoServer, find_moto

pytestmark = pytest.mark.slow

EXAMPLES = DOCS.parent / "examples"
__all__ = ["world"]


def test_three_servers_on_one_machine(world: World) -> None:
    world.shell().follow(page("examples/file-cluster/README.md"))
    assert not (world.home / "herd").exists()


def test_an_unmodified_server_behind_its_door(world: World) -> None:
    inside, door = world.ports[:2]
    world.replace |= {
        "/opt/app/server": "python -m tests.cluster.goatlike",
        "http://127.0.0.1:8081 --door 8080": f"http://127.0.0.1:{inside} --door {door}",
        "--port 8081": f"--port {inside}",
        "http://127.0.0.1:8080": f"http://127.0.0.1:{door}",
    }
    world.shell(PYTHONPATH=str(ROOT)).follow(page("examples/unmodified-server/README.md"))


def test_the_identity_in_an_emulator_of_aws(world: World) -> None:
    program = find_moto()
    if program is None:
        pytest.skip(WHY_SKIPPED)
    steps = page("examples/aws/README.md")
    (start,) = [step for step in steps if isinstance(step, Typed) and step.line.startswith("moto_server")]
    with MotoServer(program) as moto:
        world.replace["http://127.0.0.1:5000"] = moto.url
        shell = world.shell()
        shell.follow([step for step in steps if step is not start])
        code, out = shell.run("goatherd show --json")
        assert (code, json.loads(out)["store"].startswith("aws://")) == (0, True), shell.story
        shell.__exit__()
        world.stack.pop_all()


def test_the_commands_of_the_kubernetes_example_that_are_goatherd_s(world: World) -> None:
    """The kubectl commands are not run; tests/deploy checks the manifests against Kubernetes's schemas."""
    with FakeKubernetes(namespaces=["goatdb"]) as cluster:
        config = {
            "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "clusters": [{"name": "c", "cluster": {"server": cluster.url}}],
            "users": [{"name": "u", "user": {"token": ADMIN_TOKEN}}],
        }
        (world.home / "kubeconfig").write_text(json.dumps(config))
        world.shell(KUBECONFIG=f"{world.home}/kubeconfig").follow(page("examples/kubernetes/README.md"))
    assert "goatherd-server" in (world.home / "server-rights.yaml").read_text()
    assert "goatherd-rotator" in (world.home / "rotator-rights.yaml").read_text()


def test_a_provider_in_a_package_of_its_own_passes_the_contract(world: World) -> None:
    line = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(world.home / "dist")]
    subprocess.run(line, cwd=EXAMPLES / "custom-provider", check=True, capture_output=True)
    (built,) = (world.home / "dist").glob("*.whl")
    with zipfile.ZipFile(built) as wheel:
        wheel.extractall(world.home / "site")

    world.shell(PYTHONPATH=f"{world.home}/site").follow(page("examples/custom-provider/README.md"))
    assert (world.home / "srv/try/store.db").stat().st_mode & 0o777 == 0o600


def test_every_example_is_listed_and_has_its_commands_typed() -> None:
    listed = (EXAMPLES / "README.md").read_text()
    text = Path(__file__).read_text()
    for folder in sorted(path for path in EXAMPLES.iterdir() if path.is_dir()):
        assert f"]({folder.name}/README.md)" in listed
        assert folder.name == "python" or f"examples/{folder.name}/README.md" in text
