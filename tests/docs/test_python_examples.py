"""The programs in examples/python do what they say: on files, on an emulator of AWS, and on OpenBao."""

from __future__ import annotations

import ast
import os
import re
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

import goatherd
from tests.deadlines import HANG
from tests.docs.reference import DOCS
from tests.fakes.moto import WHY_SKIPPED as NO_MOTO
from tests.fakes.moto import MotoServer, find_moto
from tests.fakes.openbao import ROOT_TOKEN, BaoServer, find_bao
from tests.fakes.openbao import WHY_SKIPPED as NO_BAO
from tests.ports import free_ports

pytestmark = pytest.mark.slow

EXAMPLES = DOCS.parent / "examples/python"


@dataclass(frozen=True)
class Place:
    """A store: the URI of a secret by its name, and the environment with its credentials."""

    uri: Callable[[str], str]
    environment: dict[str, str]
    directory: Path

    def run(self, program: str, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-W", "error", str(EXAMPLES / program), *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=4 * HANG,
        )
        assert done.returncode == 0, done.stderr
        # Log events of a rotation that was left may be there; a resource that was not closed may not.
        assert "Warning" not in done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout


@pytest.fixture(params=["file", *(pytest.param(store, marks=pytest.mark.deep) for store in ("aws", "openbao"))])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    environment = {"PATH": os.environ.get("PATH", ""), "HOME": str(tmp_path)}
    if request.param == "file":
        yield Place(lambda name: f"file://{tmp_path}/keys/{name}", environment, tmp_path)
    elif request.param == "aws":
        program = find_moto()
        if program is None:
            pytest.skip(NO_MOTO)
        with MotoServer(program) as moto:
            environment |= {"AWS_ACCESS_KEY_ID": "AKIAEXAMPLE", "AWS_SECRET_ACCESS_KEY": "example"}
            options = f"?endpoint={moto.url}&recovery_days=0"
            yield Place(lambda name: f"aws://eu-west-1/goatdb/{name}{options}", environment, tmp_path)
    else:
        program = find_bao()
        if program is None:
            pytest.skip(NO_BAO)
        with BaoServer(program) as bao:
            environment |= {"BAO_TOKEN": ROOT_TOKEN}
            at = f"openbao://127.0.0.1:{bao.port}/secret/goatdb"
            yield Place(lambda name: f"{at}/{name}?tls=off&reads=active", environment, tmp_path)


def test_the_programs_work_one_after_the_other_on_every_store(place: Place) -> None:
    store = place.uri("root")
    assert "generation 1" in place.run("first_identity.py", store)
    assert "now signs with" in place.run("store_settings.py", store)
    introduced = place.run("introduce_root.py", store)
    assert "trusted before: False\ntrusted after: True\n" in introduced
    assert '"d":' not in introduced
    assert place.run("four_calls.py", place.uri("scratch")) == (
        "current b'second'\nstable b'first'\nrestored b'first'\n"
    )
    ports = free_ports(2)
    nodes = [f"http://127.0.0.1:{port}" for port in ports]
    with ExitStack() as stack:
        for number, port in enumerate(ports):
            arguments = [store, str(place.directory / f"data-{number}"), str(port), *nodes]
            server = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, str(EXAMPLES / "server.py"), *arguments],
                    env=place.environment,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            stack.callback(server.terminate)
            assert server.stdout is not None
            assert server.stdout.readline() == f"serves at {nodes[number]}\n"
        assert "signs in place of" in place.run("rotate.py", store, *nodes)
        assert place.run("roll_back.py", store, *nodes).endswith("every server follows: True\n")
        assert "revoked: True" in place.run("revoke.py", store, *nodes)


def test_a_settings_json_is_written_changed_and_migrated(place: Place) -> None:
    assert "trusts 1 user session" in place.run("file_settings.py", str(place.directory / "old"))
    settings = str(place.directory / "old/settings.json")
    store = place.uri("migrated")
    assert "is now in the store" in place.run("migrate.py", store, settings)
    assert "is already in the store" in place.run("migrate.py", store, settings)


def test_an_identity_gets_an_anchor_and_its_working_root_is_renewed(tmp_path: Path) -> None:
    environment = {"PATH": os.environ.get("PATH", ""), "GOATHERD_SIGNER_SEAL_KEY": secrets.token_hex(32)}
    place = Place(lambda name: f"file://{tmp_path}/{name}", environment, tmp_path)
    signer = f"local:{tmp_path}/anchor.json"
    shown = place.run("anchor.py", place.uri("root"), signer).splitlines()
    first = re.fullmatch(rf"(\w{{24}}) signs, endorsed by the key in {re.escape(signer)}", shown[0])
    assert first is not None
    assert re.fullmatch(rf"\w{{24}} signs in place of {first[1]}", shown[1])


def test_every_program_is_listed() -> None:
    listed = re.findall(r"`(\w+\.py)", (EXAMPLES / "README.md").read_text())
    assert sorted(set(listed)) == sorted(program.name for program in EXAMPLES.glob("*.py"))


def test_the_first_program_of_the_how_to_works(tmp_path: Path) -> None:
    page = (DOCS / "how-to/use-from-python.md").read_text()
    program = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0]
    for shown, port in zip((8101, 8102), free_ports(2), strict=True):
        program = program.replace(str(shown), str(port))
    done = subprocess.run(
        [sys.executable, "-c", program.replace("/srv", str(tmp_path))],
        capture_output=True,
        text=True,
        check=False,
        timeout=4 * HANG,
    )
    assert re.fullmatch(r"\w{24} signs in place of \w{24}\n", done.stdout), done.stderr


def test_every_program_of_the_pages_is_python_that_uses_names_that_there_are() -> None:
    for page in (DOCS / "how-to/use-from-python.md", DOCS.parent / "README.md"):
        programs = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
        assert programs
        for program in programs:
            tree = compile(program, str(page), "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            for node in ast.walk(tree):
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "goatherd":
                    assert node.attr in goatherd.__all__
