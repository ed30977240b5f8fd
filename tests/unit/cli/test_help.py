"""The menu and the help: complete, with examples, and cheap."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest

from goatherd.cli.main import COMMANDS, EXIT_CODES, EXIT_MEANINGS, cli

from .conftest import Goatherd

HEAVY = ("httpx2", "starlette", "uvicorn", "uvloop", "cryptography", "rich", "orjson", "mmh3", "asyncio", "ssl")


def commands() -> dict[str, click.Command]:
    context = click.Context(cli)
    found = {name: cli.get_command(context, name) for name in COMMANDS}
    return {name: command for name, command in found.items() if command is not None}


def test_help_imports_nothing_that_it_does_not_use() -> None:
    script = (
        "import sys\n"
        "from goatherd.cli.main import run\n"
        "code = run(['--help'])\n"
        f"heavy = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "sys.exit(f'imported: {heavy}' if heavy else code)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "rotate" in done.stdout


@pytest.mark.parametrize(
    "name", ["show", pytest.param("init", marks=pytest.mark.slow), pytest.param("versions", marks=pytest.mark.slow)]
)
def test_a_command_on_a_file_store_imports_no_http_and_no_server(name: str) -> None:
    script = (
        "import sys\n"
        "from goatherd.cli.main import run\n"
        f"run([{name!r}, '--provider', 'nowhere:///x'])\n"
        "heavy = [name for name in ('httpx2', 'starlette', 'uvicorn', 'uvloop') if name in sys.modules]\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_value_that_the_help_shows_for_an_option_is_accepted_as_it_is_shown() -> None:
    found = 0
    for name, command in commands().items():
        for option in command.params:
            if not isinstance(option.type, click.Choice):
                continue
            found += 1
            context = click.Context(command)
            for value in option.type.choices:
                assert type(value) is str, (
                    f"{name} {option.opts}: click shows the name of an enum's member, not its value"
                )
                assert option.type.convert(value, option, context) == value
                if isinstance(option, click.Option):
                    shown = " ".join(command.get_help(context).split())
                    assert value in shown
    assert found > 5


def test_the_menu_lists_every_command_with_the_first_line_of_its_help(goatherd: Goatherd) -> None:
    result = goatherd("--help")
    assert result.code == 0
    for name, command in commands().items():
        assert COMMANDS[name][1] in " ".join(result.out.split())
        first_line = (command.help or "").strip().splitlines()[0]
        assert first_line == COMMANDS[name][1]


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_has_help_with_an_example_and_the_common_options(goatherd: Goatherd, name: str) -> None:
    result = goatherd(name, "--help")
    assert result.code == 0
    assert f"Example:\n    goatherd {name}" in result.out
    for option in ("--provider", "--json", "--debug", "--org", "--config"):
        assert option in result.out


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_option_says_what_it_is_for(name: str) -> None:
    for parameter in commands()[name].params:
        if isinstance(parameter, click.Option) and "--log-level" not in parameter.opts:
            assert parameter.help, parameter.opts


def test_every_exit_code_has_a_meaning() -> None:
    assert set(EXIT_CODES.values()) <= set(EXIT_MEANINGS)


def test_the_version_is_told(goatherd: Goatherd) -> None:
    import goatherd as package

    lines = goatherd("--version").out.splitlines()
    assert lines[0] == f"goatherd, version {package.__version__}"
    assert [line.split()[0] for line in lines[1:5]] == ["python", "signatures", "tls", "extras"]


@pytest.mark.parametrize("arguments", [["--version", "--json"], ["--json", "--version"]])
def test_programs_are_told_the_versions_of_what_signs_and_of_each_extra(
    goatherd: Goatherd, arguments: list[str]
) -> None:
    import platform
    import ssl

    import goatherd as package

    found = goatherd(*arguments).json
    assert found["version"] == package.__version__
    assert found["python"].startswith(platform.python_version())
    assert found["tls"] == ssl.OPENSSL_VERSION
    assert found["openssl"].startswith("OpenSSL ")
    assert "vault" in found["extras"]  # it needs no library of its own
    assert not set(found["extras"]) & set(found["missingExtras"])


def test_json_may_stand_before_the_command_too(goatherd: Goatherd) -> None:
    assert goatherd("--json", "config").json["options"]
    assert goatherd("--json", "show").json["error"]["code"] == "configuration.invalid"


def test_python_dash_m_is_the_same_program() -> None:
    done = subprocess.run([sys.executable, "-m", "goatherd", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("goatherd, version ")
