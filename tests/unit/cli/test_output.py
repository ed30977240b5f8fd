"""Output that nothing reads, or that cannot be written: the work continues, with its own exit code and no traceback."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from goatherd.cli.output import Output, hide_key_material

from .conftest import Goatherd

GOATHERD = f"{sys.executable} -m goatherd"
needs_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")


def shell(line: str, cwd: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("GOATHERD_", "PYTHONIO"))}
    return subprocess.run(
        ["bash", "-c", f'goatherd() {{ {GOATHERD} "$@"; }}\n{line}'],
        cwd=cwd,
        env=inherited | environ,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def made(goatherd: Goatherd, store: str) -> str:
    assert goatherd("init", "--provider", store).code == 0
    return store


@pytest.mark.slow
def test_a_rotation_whose_reader_goes_away_is_brought_to_its_end(goatherd: Goatherd, made: str, tmp_path: Path) -> None:
    line = f"goatherd rotate --unsafe-without-nodes --provider {made} 2>&1 | true; exit ${{PIPESTATUS[0]}}"
    done = shell(line, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    shown = goatherd("show", "--provider", made, "--json").json
    assert shown["phase"] == "steady"
    assert shown["rotatedFrom"] is not None


@pytest.mark.slow
def test_the_exit_code_is_that_of_the_work_even_if_the_output_is_not_read(made: str, tmp_path: Path) -> None:
    node = "http://127.0.0.1:1"
    line = f"goatherd status --provider {made} --node {node} | true; exit ${{PIPESTATUS[0]}}"
    assert shell(line, tmp_path).returncode == 11
    assert shell("goatherd show 2>&1 | true; exit ${PIPESTATUS[0]}", tmp_path).returncode == 2


def test_a_connection_that_breaks_is_no_reader_that_has_gone(
    goatherd: Goatherd, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("goatherd.cli.show.open_store", fail)
    result = goatherd("show", "--provider", store)
    assert result.code == 1
    assert "Broken pipe" in result.err


@pytest.mark.slow
@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_is_as_good_as_dev_null(made: str, tmp_path: Path, closed: str) -> None:
    done = shell(f"goatherd show --provider {made} {closed}", tmp_path)
    assert done.returncode == 0
    assert done.stderr == ""


@pytest.mark.slow
def test_what_is_opened_later_does_not_get_the_number_of_a_closed_stream(tmp_path: Path) -> None:
    script = """
import os, sys
from goatherd.__main__ import main
sys.argv = ["goatherd", "--version"]
try:
    main()
except SystemExit:
    os.fstat(1), sys.stderr.write(f"{os.open(os.devnull, os.O_RDONLY)}")
"""
    (tmp_path / "script.py").write_text(script)
    done = shell(f"{sys.executable} script.py <&- >&-", tmp_path)
    assert int(done.stderr) > 2


@pytest.mark.slow
@needs_full
@pytest.mark.parametrize("option", ["", "--json"])
def test_a_result_that_cannot_be_kept_is_an_error_that_says_why(made: str, tmp_path: Path, option: str) -> None:
    done = shell(f"goatherd show {option} --provider {made} >/dev/full", tmp_path)
    assert done.returncode == 1
    assert "error: the operating system refused: No space left on device [system]\nhint: " in done.stderr
    assert "Traceback" not in done.stderr
    assert "a bug of" not in done.stderr


@pytest.mark.slow
@needs_full
def test_progress_that_cannot_be_kept_stops_no_rotation(goatherd: Goatherd, made: str, tmp_path: Path) -> None:
    done = shell(f"goatherd rotate --unsafe-without-nodes --provider {made} 2>/dev/full", tmp_path)
    assert done.returncode == 0
    assert done.stdout.startswith("rotated: ")


@pytest.mark.slow
@needs_full
@pytest.mark.parametrize("option", ["", "--json"])
def test_a_ready_line_that_cannot_be_kept_stops_no_server(made: str, tmp_path: Path, option: str) -> None:
    done = shell(
        f"{GOATHERD} serve {option} --provider {made} --data data --create --port 0 >/dev/full 2>log & server=$!\n"
        "until grep -q node.started log || ! kill -0 $server; do sleep 0.1; done\n"
        "kill $server; wait $server; echo $?; cat log",
        tmp_path,
    )
    assert done.stdout.startswith("0\n"), done.stdout
    assert "node.stopped" in done.stdout
    assert "error:" not in done.stdout


@pytest.mark.parametrize("text", ["né", "bytes \udcff"], ids=["a letter", "a byte that is no text"])
@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_what_an_encoding_does_not_have_is_escaped(text: str, encoding: str) -> None:
    for as_json in (False, True):
        raw = io.BytesIO()
        stream = io.TextIOWrapper(raw, encoding=encoding)
        out = Output(as_json=as_json, stdout=stream, stderr=stream)
        out.failure("usage", text, "")
        out.event("phase", {"text": text}, text)
        written = raw.getvalue().decode(encoding)
        if as_json:
            document, _, event = written.rstrip().rpartition("\n")
            assert json.loads(document)["error"]["message"] == json.loads(event)["text"] == hide_key_material(text)


@pytest.mark.slow
def test_a_directory_that_was_removed_holds_no_configuration(made: str, tmp_path: Path) -> None:
    done = shell(f"mkdir gone && cd gone && rmdir ../gone && goatherd show --provider {made}", tmp_path)
    assert done.returncode == 0, done.stderr


def test_without_a_command_the_menu_is_shown_and_that_is_no_success(goatherd: Goatherd) -> None:
    result = goatherd()
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("Usage: goatherd")
    assert "[usage]" not in result.err


@pytest.mark.slow
def test_the_shell_completion_that_is_documented_is_written(tmp_path: Path) -> None:
    for name in ("bash", "zsh", "fish"):
        done = shell("goatherd", tmp_path, _GOATHERD_COMPLETE=f"{name}_source")
        assert (done.returncode, done.stderr) == (0, "")
        assert "_GOATHERD_COMPLETE" in done.stdout


def test_an_error_of_the_command_line_is_one_line(goatherd: Goatherd) -> None:
    assert goatherd("audit").err.splitlines()[0] == "error: Missing argument '[verify|show] FILE'. [usage]"


def test_nothing_that_commands_a_terminal_is_written() -> None:
    nasty = "a\x1b[2J\x9b31m\x07\u202eb\tc"
    shown = "a\\u001b[2J\\u009b31m\\u0007\\u202eb\tc"
    out, err = io.StringIO(), io.StringIO()
    text = Output(as_json=False, stdout=out, stderr=err)
    text.result({}, [nasty])
    text.write_note(nasty)
    text.failure("code", nasty, nasty)
    assert out.getvalue() == f"{shown}\n"
    assert err.getvalue() == f"{shown}\nerror: {shown} [code]\nhint: {shown}\n"
    programs = io.StringIO()
    Output(as_json=True, stdout=programs, stderr=err).result({"text": nasty}, [])
    assert json.loads(programs.getvalue()) == {"text": nasty}
    assert all(char.isprintable() or char == "\n" for char in programs.getvalue())


def test_a_text_from_the_store_shows_no_line_that_the_command_has_not_written() -> None:
    out, err = io.StringIO(), io.StringIO()
    text = Output(as_json=False, stdout=out, stderr=err)
    text.result({}, ["reason: a\nsignature   valid"])
    text.write_note("a\nb")
    text.event("name", {}, "first\nforged", "second")
    text.failure("code", "a\nb", "run this\nor that")
    assert out.getvalue() == "reason: a\\u000asignature   valid\n"
    assert err.getvalue().splitlines() == [
        "a\\u000ab",
        "first\\u000aforged",
        "second",
        "error: a\\u000ab [code]",
        "hint: run this\\u000aor that",
    ]
