"""The overview of commands and their help: complete, with examples, and fast."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from goatherd.cli import main
from goatherd.cli.main import EXIT_CODES, EXIT_FINDINGS, EXIT_MEANINGS, EXIT_USAGE, cli
from goatherd.cli.menu import ALIASES, COMMANDS, FORMS, GROUPS
from goatherd.config.options import option_keys

from .conftest import Goatherd


def commands() -> dict[str, click.Command]:
    context = click.Context(cli)
    found = {name: cli.get_command(context, name) for name in COMMANDS}
    return {name: command for name, command in found.items() if command is not None}


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


SHOWN = [name for names in GROUPS.values() for name in names]


def test_the_menu_lists_the_commands_of_four_groups_with_the_first_line_of_their_help(goatherd: Goatherd) -> None:
    result = goatherd("--help")
    assert result.code == 0
    assert max(map(len, result.out.splitlines())) < 80
    for name, command in commands().items():
        assert (f"\n  {name:<10}  {COMMANDS[name]}\n" in result.out) is (name in SHOWN)
        first_line = (command.help or "").strip().splitlines()[0]
        assert first_line == COMMANDS[name]


def test_revoke_states_what_follows_if_servers_do_not_adopt_a_revocation(goatherd: Goatherd) -> None:
    text = " ".join(goatherd("revoke", "--help").out.split())
    assert "then a rotation is cancelled or rolled back, and a revocation is left incomplete (default: 5m)." in text


def test_every_hidden_command_is_another_form_of_one_that_the_menu_lists() -> None:
    assert set(FORMS) <= set(SHOWN)
    assert {*SHOWN, *ALIASES, "demo"} == set(COMMANDS)
    assert len(SHOWN) == len(set(SHOWN))


@pytest.mark.parametrize(("name", "form"), ALIASES.items())
def test_a_form_of_a_command_has_the_help_of_its_alias_and_is_listed_in_the_help_of_the_command(
    goatherd: Goatherd, name: str, form: str
) -> None:
    shown, flag = form.split()
    alias, result = goatherd(name, "--help"), goatherd(shown, flag, "--help")
    assert result.code == 0
    assert f"Usage: goatherd {form} " in result.out
    assert result.out.partition("\n\n")[2] == alias.out.partition("\n\n")[2]
    assert f"This command is now `goatherd {form}`; the old name, `goatherd {name}`, still works." in alias.out
    assert f"    {flag}" in goatherd(shown, "--help").out


@pytest.mark.parametrize(
    "words", [["demo", "--provider", "x"], ["demo", "--org", "x"], ["copy", "memory:///a", "b", "--provider", "x"]]
)
def test_a_command_has_no_common_option_that_would_have_no_effect(goatherd: Goatherd, words: list[str]) -> None:
    result = goatherd(*words)
    assert result.code == EXIT_USAGE
    assert "No such option" in result.err
    assert words[-2] in result.err


def test_the_flag_of_a_form_may_stand_anywhere_but_among_the_words_of_a_server_that_run_starts(
    goatherd: Goatherd, tmp_path: Path
) -> None:
    store = f"file://{tmp_path}/keys/root"
    goatherd("init", "--provider", store)
    assert goatherd("show", "--provider", store, "--versions").out == goatherd("versions", "--provider", store).out
    assert goatherd("--json", "show", "--versions", "--provider", store).json["versions"]
    for words in (["--", "deno", "--watch"], ["deno", "run", "--watch"]):
        result = goatherd("run", "--data", f"{tmp_path}", "--provider", store, *words)
        assert "the command 'deno' was not found" in result.err
    (tmp_path / "data").mkdir()
    for words in (["--once", "--provider", store], ["--provider", store, "--url", "http://a:1", "--once"]):
        written = goatherd("run", *words, "--data", f"{tmp_path}/data", "--plain-file", "--json")
        assert written.code == 0, written.err


def test_a_hidden_alias_says_on_a_terminal_what_to_type(goatherd: Goatherd, monkeypatch: pytest.MonkeyPatch) -> None:
    assert goatherd("config").err == ""
    monkeypatch.setattr("goatherd.cli.main.is_at_terminal", lambda: True)
    assert "`goatherd config` is now `goatherd doctor --options`" in goatherd("config").err


def test_help_is_a_word_too(goatherd: Goatherd) -> None:
    assert goatherd("help").out == goatherd("--help").out
    assert goatherd("help", "rotate").out == goatherd("rotate", "--help").out


def test_without_arguments_a_new_user_is_told_the_first_three_commands(goatherd: Goatherd) -> None:
    result = goatherd()
    assert result.code == EXIT_USAGE
    typed = re.findall(r"^  (goatherd .*)$", result.err, re.MULTILINE)
    assert [line.split()[1] for line in typed] == ["init", "serve", "rotate"]
    for line in typed:
        parsed(line)


def parsed(line: str) -> None:
    """Parse a command line as the command itself does, without running it.

    Raises:
        click.UsageError: The command line is wrong.
    """
    words = shlex.split(line.partition(" | ")[0])
    assert words[0] == "goatherd", line
    context = click.Context(cli, info_name="goatherd")
    name, command, rest = cli.resolve_command(context, words[1:])
    assert command is not None
    command.make_context(name, rest, parent=context)


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_example_in_the_help_of_a_command_is_one_that_parses(name: str) -> None:
    lines = (commands()[name].epilog or "").partition("Example:\n")[2].splitlines()
    assert lines
    for line in lines:
        found = re.fullmatch(r'eval "\$\((.*)\)"', line.strip())
        parsed(found[1] if found else line)


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_has_help_with_an_example_and_the_common_options(goatherd: Goatherd, name: str) -> None:
    result = goatherd(name, "--help")
    assert result.code == 0
    if name == "completion":  # it reads no configuration
        assert 'Example:\n    eval "$(goatherd completion bash)"' in result.out
        return
    assert f"Example:\n    goatherd {ALIASES.get(name, name)}" in result.out
    without = {"demo": ("--provider", "--org"), "copy": ("--provider",)}.get(name, ())  # they would have no effect
    for option in ("--provider", "--json", "--debug", "--org", "--config"):
        assert (f"  {option} " in result.out) == (option not in without), option


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_a_shell_completes_names_and_options(goatherd: Goatherd, shell: str) -> None:
    script = goatherd("completion", shell)
    assert script.code == 0
    assert "_GOATHERD_COMPLETE" in script.out
    assert complete("goatherd re") == ["plain,revoke", "plain,retire", "plain,restore"]


def complete(line: str) -> list[str]:
    """Return bash's completions for a line; nothing may be printed into the prompt."""
    typed = {"_GOATHERD_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
    done = subprocess.run(
        [sys.executable, "-m", "goatherd"], env={**os.environ, **typed}, capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.slow
def test_a_shell_completes_the_flags_of_forms() -> None:
    assert complete("goatherd run --wat") == ["plain,--watch"]
    assert "plain,--versions" in complete("goatherd show -")
    assert "plain,--pid-file" in complete("goatherd run --provider file:///a --watch --p")
    assert complete("goatherd rotate --dry") == ["plain,--dry-run"]
    assert complete("goatherd show --versions --vers") == []
    assert not {"error:", "plain,--versions"} & set(complete("goatherd foo --"))


def test_completion_writes_no_message_into_the_prompt(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("goatherd.cli.main.is_at_terminal", lambda: True)
    context = click.Context(cli, info_name="goatherd", resilient_parsing=True)
    assert cli.resolve_command(context, ["foo", "--json"]) == (None, None, ["--json"])
    assert cli.resolve_command(context, ["config"])[0] == "config"
    assert capsys.readouterr().err == ""


def options() -> list[tuple[str, click.Option]]:
    found = [(name, item) for name, command in commands().items() for item in command.params]
    return [(name, item) for name, item in found if isinstance(item, click.Option)]


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_option_says_what_it_is_for_in_a_complete_phrase(name: str) -> None:
    for command, option in options():
        if command == name:
            text = option.help or ""
            assert re.fullmatch(r"[A-Z][^ ]*( [^ ]+){2,}", text), option.opts
            assert text.endswith((".", ").")), f"{option.opts}: {text}"


OF_TWO_MEANINGS = {"--audit-log", "--resume", "--grace", "--distrust"}
"""What is resumed, what ends with the grace, and what is not believed of a server depends on the command."""


def test_options_of_one_name_have_one_text_up_to_what_only_one_command_adds() -> None:
    texts: dict[str, set[str]] = {}
    for _, option in options():
        texts.setdefault(option.opts[-1], set()).add(re.split(r"[.,;:(]", option.help or "")[0].strip())
    different = {name for name, found in texts.items() if len(found) > 1}
    assert different == OF_TWO_MEANINGS, {name: texts[name] for name in different}


def test_every_option_states_its_default_and_every_default_has_one_form() -> None:
    keys = {key.attribute: key for key in option_keys()}
    unstated = []
    for name, option in options():
        assert not option.show_default, f"{name} {option.opts}: write (default: …) into the text"
        key = keys.get(option.name or "")
        default = key.default_text if key is not None else option.default if isinstance(option.default, str) else ""
        if default and not option.is_flag and "default" not in (option.help or ""):
            unstated.append(f"{name} {option.opts[-1]}")
    assert unstated == []


def test_options_of_one_meaning_have_one_name() -> None:
    names: dict[str, set[str]] = {}
    for _, option in options():
        names.setdefault(option.help or "", set()).add(option.opts[-1])
    assert [found for found in names.values() if len(found) > 1] == []
    flags: dict[str, set[str]] = {}
    for _, option in options():
        if option.name in {key.attribute for key in option_keys()}:
            flags.setdefault(option.name or "", set()).add(option.opts[-1])
    assert [found for found in flags.values() if len(found) > 1] == []


def test_every_command_that_can_show_what_it_would_do_has_the_option_dry_run() -> None:
    shown = {
        name: option.opts for name, option in options() if (option.help or "").startswith("Show what would be done")
    }
    assert shown == {
        "migrate": ["--dry-run"],
        "copy": ["--dry-run"],
        "rotate": ["--plan", "--dry-run"],
        "retire": ["--dry-run"],
        "revoke": ["--plan", "--dry-run"],
    }


def test_every_exit_code_has_a_meaning() -> None:
    assert set(EXIT_CODES.values()) <= set(EXIT_MEANINGS)


def test_the_meaning_of_a_finding_names_every_command_that_ends_with_it() -> None:
    folder = Path(main.__file__).parent
    found = {path.stem for path in folder.glob("*.py") if "EXIT_FINDINGS" in path.read_text()} - {"main"}
    named = re.findall(r"`([^`]+)`", EXIT_MEANINGS[EXIT_FINDINGS])
    assert {name.split()[0] for name in named} == found
    assert {name for name in named if name.startswith("stores")} == {"stores status", "stores sync"}


def test_only_a_command_that_writes_the_audit_trail_says_that_it_does(goatherd: Goatherd) -> None:
    for name, option in options():
        if "--audit-log" in option.opts:
            assert ("appends" in (option.help or "")) is (name not in {"history", "web"}), name


def test_the_version_is_told(goatherd: Goatherd) -> None:
    import goatherd as package

    lines = goatherd("--version").out.splitlines()
    assert lines[0] == f"goatherd, version {package.__version__}"
    assert [line.split()[0] for line in lines[1:6]] == ["python", "signatures", "servers", "tls", "extras"]


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
