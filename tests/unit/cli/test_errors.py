"""How a command ends after an error: exit code, message, hint, and a traceback only on request."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

import goatherd.errors
from goatherd.cli import main
from goatherd.cli.main import EXIT_CODES, EXIT_INTERRUPTED, run
from goatherd.cli.output import hide_key_material
from goatherd.cli.text.progress import RotationProgress
from goatherd.errors import GoatherdError, NodeError, ProviderError
from goatherd.identity.session import OwnedSession
from goatherd.rotation.events import Event, PhaseEntered
from goatherd.rotation.machine import Phase

from .conftest import Goatherd

KEY = OwnedSession.generate(session_id="s", owner="root", now_ms=0).to_secret_json()["privateKey"]["d"]


def families() -> set[str]:
    kinds = [
        kind for _, kind in inspect.getmembers(goatherd.errors, inspect.isclass) if issubclass(kind, GoatherdError)
    ]
    return {kind.code.partition(".")[0] for kind in kinds if kind is not GoatherdError}


def test_every_family_of_errors_has_an_exit_code() -> None:
    assert families() == set(EXIT_CODES)


def test_the_exit_codes_of_the_families_differ_from_each_other_and_from_success() -> None:
    assert len(set(EXIT_CODES.values())) == len(EXIT_CODES)
    assert 0 not in EXIT_CODES.values()


def test_every_error_says_what_to_do_next() -> None:
    kinds = [
        kind for _, kind in inspect.getmembers(goatherd.errors, inspect.isclass) if issubclass(kind, GoatherdError)
    ]
    assert [kind.__name__ for kind in kinds if kind is not GoatherdError and not kind.hint] == []
    assert NodeError("x", hint="").hint == NodeError.hint


@pytest.mark.parametrize("name", ["versions", "rotate", "retire", "status", "lease"])
def test_every_command_gives_a_hint_if_there_is_no_secret(goatherd: Goatherd, store: str, name: str) -> None:
    options = {"rotate": ["--unsafe-without-nodes"], "retire": ["--yes"]}.get(name, [])
    result = goatherd(name, "--provider", store, *options)
    assert result.code == EXIT_CODES["provider"]
    assert ("goatherd status --restart-lease --make" if name == "lease" else "goatherd init") in result.err


@pytest.mark.parametrize("name", ["7", "nope", "not a label"])
def test_a_version_that_is_not_there_is_told_as_that(goatherd: Goatherd, store: str, name: str) -> None:
    assert goatherd("init", "--provider", store).code == 0
    result = goatherd("show", "--at", name, "--provider", store)
    assert result.code == EXIT_CODES["provider"]
    assert f"no version has the id or the label {name!r}" in result.err
    assert "goatherd show --versions" in result.err


@pytest.mark.parametrize("org", ["../x", "a/b", "..", ""])
def test_an_organization_that_is_none_is_told_whatever_the_command(
    goatherd: Goatherd, store: str, tmp_path: Path, org: str
) -> None:
    assert goatherd("init", "--provider", store).code == 0
    for command in (["show"], ["serve", "--data", str(tmp_path / "d")], ["fetch", "--data", str(tmp_path / "d")]):
        result = goatherd(*command, "--provider", store, "--org", org)
        assert result.code == EXIT_CODES["configuration"], command
        assert "[configuration.invalid]" in result.err
    assert not (tmp_path / "x").exists()


def test_an_error_is_told_on_standard_error_with_its_code_and_a_hint(goatherd: Goatherd) -> None:
    result = goatherd("show")
    assert result.code == EXIT_CODES["configuration"]
    assert result.out == ""
    assert result.err.startswith("error: no store is named [configuration.invalid]\nhint: Give --provider URI")


def test_with_json_an_error_is_one_document_on_standard_output(goatherd: Goatherd) -> None:
    result = goatherd("show", "--json")
    assert result.code == EXIT_CODES["configuration"]
    assert result.err == ""
    assert result.json["error"]["code"] == "configuration.invalid"
    assert result.json["error"]["hint"]


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["rotate", "--plan", "--resume"], ["show", "--nonsense"], ["export"]]
)
def test_a_wrong_command_line_ends_with_2_as_text_and_as_json(goatherd: Goatherd, arguments: list[str]) -> None:
    result = goatherd(*arguments)
    assert result.code == 2
    assert result.err.startswith("error: ")
    as_json = goatherd(*arguments, "--json")
    assert as_json.code == 2
    assert as_json.json["error"]["code"] == "usage"


def test_a_mistyped_command_gets_the_nearest_one(goatherd: Goatherd) -> None:
    assert "Did you mean 'rotate'?" in goatherd("rotat").err


def test_a_scheme_that_no_plugin_has_is_a_plugin_error(goatherd: Goatherd) -> None:
    assert goatherd("show", "--provider", "nowhere:///x").code == EXIT_CODES["plugin"]


def test_a_secret_that_is_not_there_gets_the_way_to_make_one(goatherd: Goatherd, store: str) -> None:
    result = goatherd("show", "--provider", store)
    assert result.code == EXIT_CODES["provider"]
    assert "goatherd init" in result.err


def test_a_bug_is_told_without_a_traceback_and_without_keys(
    goatherd: Goatherd, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError(f"this is {KEY}")

    monkeypatch.setattr("goatherd.cli.show.open_store", fail)
    result = goatherd("show", "--provider", store)
    assert result.code == 1
    assert "Traceback" not in result.err
    assert "<hidden>" in result.err
    assert KEY not in result.err + result.out
    debug = goatherd("show", "--provider", store, "--debug")
    assert "Traceback" in debug.err
    assert KEY not in debug.err + debug.out
    as_json = goatherd("show", "--provider", store, "--json")
    assert as_json.json["error"]["code"] == "internal"
    assert KEY not in as_json.out


def test_of_several_errors_at_once_ours_is_told(goatherd: Goatherd, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise BaseExceptionGroup("", [ValueError("x"), ExceptionGroup("", [NodeError("that one")])])

    monkeypatch.setattr("goatherd.cli.show.open_store", fail)
    result = goatherd("show", "--provider", "file:///x/y")
    assert result.code == EXIT_CODES["node"]
    assert "that one" in result.err


def test_an_interruption_ends_with_130(goatherd: Goatherd, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("goatherd.cli.show.open_store", interrupt)
    result = goatherd("show", "--provider", "file:///x/y")
    assert result.code == 130
    assert result.err.endswith("error: interrupted [interrupted]\n")


def test_a_reader_that_goes_away_is_no_error() -> None:
    script = "from goatherd.cli.main import run; import sys; sys.exit(run(['--help']))"
    command = f'"{sys.executable}" -c "{script}" | true; echo "${{PIPESTATUS[0]}}"'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0"
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "text",
    [KEY, f'"d":"{KEY}"', "z" * 64, "0123456789abcdef" * 6, "1" * 115],
    ids=["a key", "a member", "64 letters", "96 hexadecimal digits", "115 digits"],
)
def test_whatever_may_be_a_key_is_hidden(text: str) -> None:
    assert KEY not in hide_key_material(text)
    assert "<hidden>" in hide_key_material(text)


@pytest.mark.parametrize(
    "text", ["file:///a/long/path/" + "x/" * 40, "id abcdefghijklmnopqrstuvwx", "0123456789abcdef" * 4]
)
def test_paths_ids_and_sha256_sums_are_shown(text: str) -> None:
    assert hide_key_material(text) == text


def test_errors_of_providers_name_provider_secret_and_operation(goatherd: Goatherd, store: str) -> None:
    result = goatherd("versions", "--provider", store, "--json")
    assert result.json["error"]["code"] == "provider.not_found"
    for word in ("file", "versions", "root"):
        assert word in result.json["error"]["message"]


def test_the_flag_json_is_seen_even_where_the_command_line_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["show", "--json", "--nonsense"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "usage"


def test_behind_two_dashes_json_is_a_name_like_any_other(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["show", "--", "--json"]) == 2
    assert capsys.readouterr().out == ""


def test_no_other_module_ends_the_process_or_maps_exit_codes() -> None:
    assert main.exit_code(ProviderError("x", provider="p", secret_id="s", operation="o")) == EXIT_CODES["provider"]
    assert main.exit_code(GoatherdError("x")) == 1


@pytest.mark.parametrize(
    ("command", "module", "told"),
    [
        (["rotate", "--unsafe-without-nodes"], "rotate", ""),
        (["rotate", "--resume", "--unsafe-without-nodes"], "rotate", "`goatherd rotate --resume` finishes it"),
        (["rotate", "--rollback"], "rotate", "`goatherd rotate --resume` finishes it"),
        (["retire", "--yes"], "retire", "run `goatherd retire` again to destroy the rest"),
        (
            ["revoke", "root-a", "--reason", "stolen", "--unsafe-without-nodes", "--yes"],
            "revoke",
            "run the same command again to resume",
        ),
        (["stores", "sync"], "stores", "run the same command again to complete it"),
        (["stores", "promote", "us"], "stores", "run the same command again to complete it"),
        (["versions", "label", "mine", "1"], "show", ""),
        (["versions", "unlabel", "mine"], "show", ""),
        (["restore", "--signature"], "restore", ""),
    ],
)
def test_sigterm_ends_what_changes_a_cluster_as_ctrl_c_does(
    goatherd: Goatherd, store: str, monkeypatch: pytest.MonkeyPatch, command: list[str], module: str, told: str
) -> None:
    cleaned = []

    @asynccontextmanager
    async def terminate(*_: object, **__: object) -> AsyncIterator[None]:
        os.kill(os.getpid(), signal.SIGTERM)
        try:
            await asyncio.Event().wait()
            yield
        finally:
            cleaned.append(True)

    # If the command does not catch the exception, it ends the tests.
    monkeypatch.setattr(f"goatherd.cli.{module}.open_store", terminate)
    before = signal.signal(signal.SIGTERM, lambda *_: (_ for _ in ()).throw(AssertionError("SIGTERM was not caught")))
    try:
        result = goatherd(*command, "--provider", store)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert result.code == 143
    assert told in result.err
    assert ("--resume" in result.err) is ("--resume" in told), "nothing was written"
    assert "ended by SIGTERM" in result.err
    assert cleaned


def test_a_rotation_that_is_interrupted_after_it_began_can_be_resumed(
    goatherd: Goatherd, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert goatherd("init", "--provider", store).code == 0
    show = RotationProgress.show

    def interrupt(self: RotationProgress, event: Event) -> None:
        show(self, event)
        if isinstance(event, PhaseEntered) and event.phase is Phase.PREPARED:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(RotationProgress, "show", interrupt)
    interrupted = goatherd("rotate", "--unsafe-without-nodes", "--provider", store)
    assert (interrupted.code, "`goatherd rotate --resume` finishes it" in interrupted.err) == (143, True)
    monkeypatch.undo()
    # One command brings the cluster to rest, whether a rotation is in progress or not.
    for _ in range(2):
        assert goatherd("rotate", "--resume", "--unsafe-without-nodes", "--provider", store).code == 0


def test_ctrl_c_while_the_command_is_imported_prints_no_traceback() -> None:
    script = """
import builtins, sys
from goatherd.__main__ import main
def interrupt(name, *more, real=builtins.__import__):
    if name == "goatherd.cli.main":
        raise KeyboardInterrupt
    return real(name, *more)
builtins.__import__ = interrupt
sys.argv = ["goatherd", "show"]
main()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (EXIT_INTERRUPTED, "", "")


@pytest.mark.parametrize(
    "command", [["retire", "--grace", "0s"], ["revoke", "root-a", "--reason", "stolen", "--unsafe-without-nodes"]]
)
@pytest.mark.parametrize(("sees", "answers"), [(True, False), (False, True)])
def test_no_question_is_asked_that_cannot_be_seen_or_answered(
    goatherd: Goatherd, store: str, monkeypatch: pytest.MonkeyPatch, command: list[str], sees: bool, answers: bool
) -> None:
    assert goatherd("init", "--provider", store).code == 0
    assert goatherd("retire", "--provider", store).code == 0, "there is nothing to destroy, so nothing to confirm"
    assert goatherd("rotate", "--unsafe-without-nodes", "--provider", store).code == 0
    monkeypatch.setattr(sys.stderr, "isatty", lambda: sees)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: answers)
    result = goatherd(*command, "--provider", store)
    assert result.code == 2
    assert "give --yes" in result.err


def test_a_store_that_disappears_in_a_rotation_is_looked_for_and_not_made_anew(
    goatherd: Goatherd, store: str, tmp_path: Path
) -> None:
    goatherd("init", "--provider", store)
    goatherd("rotate", "--unsafe-without-nodes", "--to", "published", "--provider", store)
    (tmp_path / "keys").rename(tmp_path / "unmounted")
    for command in (["rotate", "--resume", "--unsafe-without-nodes"], ["status"]):
        result = goatherd(*command, "--provider", store, "--json")
        error = result.json["error"]
        assert error["code"] == "provider.not_found"
        hint = error["hint"]
        assert hint.index("the mount") < hint.index("goatherd init")
        assert "no running server trusts" in hint
    assert not (tmp_path / "keys").exists()


def test_no_crash_of_the_command_or_of_what_it_starts_leaves_its_memory_on_the_disk() -> None:
    code = (
        "import resource, sys; sys.argv[1:] = ['--version']; import goatherd.__main__ as m\n"
        "try: m.main()\n"
        "except SystemExit: print(resource.getrlimit(resource.RLIMIT_CORE))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "(1, 1)", "Linux gives a dump to a program in spite of a limit of 0"
