"""What an installation without any extra can do, and the public names."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import goatherd

EXTRAS = ("awscrt", "starlette", "uvicorn", "uvloop", "httptools", "boto3", "google", "azure", "hvac", "kubernetes")


COMMANDS = (
    "from goatherd.cli.main import run\n"
    "here = ['--provider', f'file://{sys.argv[1]}/keys/root']\n"
    "assert run(['init', *here]) == 0\n"
)
"""The beginning of a script that runs commands with a store in the directory that is its argument."""


def bare(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a Python that cannot import what the extras bring."""
    block = (
        "import sys\n"
        "class Missing:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] in {EXTRAS!r}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Missing())\n"
    )
    return subprocess.run(
        [sys.executable, "-c", block + script, *arguments], capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_every_public_name_can_be_had_and_says_what_it_is() -> None:
    for name in goatherd.__all__:
        assert inspect.getdoc(getattr(goatherd, name)), name
    assert set(goatherd.__all__) <= set(dir(goatherd))


def test_the_public_names_are_few() -> None:
    assert len(goatherd.__all__) <= 60


@pytest.mark.slow
@pytest.mark.parametrize(
    ("used", "extra"),
    [
        ("goatherd.AWSSecretProvider", "aws"),
        ("goatherd.AzureSecretProvider", "azure"),
        ("goatherd.GCPSecretProvider", "gcp"),
        ("asyncio.run(goatherd.serve(goatherd.Server('data', 'file:///no/such/root')))", "node"),
    ],
)
def test_a_name_that_needs_an_extra_says_how_to_install_it(used: str, extra: str) -> None:
    script = f"import asyncio, goatherd\ntry: {used}\nexcept goatherd.GoatherdError as error: print(error.hint)"
    done = bare(script)
    assert done.stdout.strip() == f"Install it: pip install 'goatherd[{extra}]'", done.stderr


@pytest.mark.slow
def test_help_and_other_tools_that_read_every_name_work_without_the_extras() -> None:
    script = (
        "import goatherd, inspect, pydoc\n"
        "assert 'rotate' in pydoc.render_doc(goatherd)\n"
        "print([name for name, _ in inspect.getmembers(goatherd) if name.endswith('SecretProvider')])\n"
    )
    done = bare(script)
    found = ["CloudSecretProvider", "FileSecretProvider", "MemorySecretProvider", "SecretProvider"]
    assert done.stdout.strip() == str(found), done.stderr


def test_names_of_type_checkers_and_of_the_interpreter_are_the_same() -> None:
    tree = ast.parse(Path(goatherd.__file__).read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level == 0]
    homes = {
        alias.name: node.module.removeprefix("goatherd.")
        for node in imports
        if node.module is not None and node.module.startswith("goatherd.")
        for alias in node.names
    }
    del homes["MissingExtraError"]
    assert homes == goatherd._HOME_OF
    assert sorted(homes) == goatherd.__all__


def test_a_name_that_is_not_public_is_not_there() -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        _ = goatherd.nonsense
    done = subprocess.run([sys.executable, "-c", "import goatherd; goatherd.rotat"], capture_output=True, check=False)
    assert b"Did you mean: 'rotate'?" in done.stderr


def test_importing_the_package_imports_nothing_else_of_it() -> None:
    done = bare("import goatherd; print([name for name in sys.modules if name.startswith('goatherd.')])")
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.slow
def test_without_extras_everything_but_serving_works(tmp_path: Path) -> None:
    script = COMMANDS + (
        "assert run(['status', *here]) == 11\n"  # no server is listed, so whether the cluster is well is unknown
        "assert run(['doctor', *here]) == 0\n"
        "assert run(['rotate', '--unsafe-without-nodes', *here]) == 0\n"
        "assert run(['export', sys.argv[1] + '/settings.json', *here]) == 0\n"
        "assert run(['migrate', sys.argv[1] + '/settings.json', *here]) == 0\n"
    )
    done = bare(script, str(tmp_path))
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_only_an_agent_with_an_http_address_needs_the_extra_node(tmp_path: Path) -> None:
    script = COMMANDS + (
        "files = ['--data', f'{sys.argv[1]}/data', '--create', '--plain-file']\n"
        "ends = [*files, '--crashes', '0', '--', sys.executable, '-c', 'raise SystemExit(7)']\n"
        "assert run(['run', '--once', *here, *files]) == 0\n"
        "assert run(['run', *here, *ends]) == 7\n"
        "assert run(['run', *here, '--agent-port', '1', *ends]) == 3\n"
        "assert run(['run', *here, '--door', '1', *ends]) == 3\n"
    )
    done = bare(script, str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("hint: Install them: pip install 'goatherd[node]'") == 2


@pytest.mark.slow
def test_without_the_extra_node_serving_says_how_to_install_it(tmp_path: Path) -> None:
    script = "from goatherd.cli.main import run\nsys.exit(run(['serve', '--data', sys.argv[1]]))\n"
    done = bare(script, str(tmp_path))
    assert done.returncode == 3, done.stderr
    assert "pip install 'goatherd[node]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_command_line_works_with_a_click_before_8_4() -> None:
    """There `ParamType` takes no type argument."""
    script = (
        "import click\n"
        "def refuse(cls, item): raise TypeError(f'type {cls.__name__!r} is not subscriptable')\n"
        "click.ParamType.__class_getitem__ = classmethod(refuse)\n"
        "from goatherd.cli.main import run\n"
        "sys.exit(run(['run', '--help']))\n"
    )
    done = bare(script)
    assert done.returncode == 0, done.stderr
