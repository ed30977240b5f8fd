"""The vectors that GoatDB 0.5.1 produced, and the command that judges them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from goatherd.testing.vectors import check_directory, main
from goatherd.testing.vectors.sheet import shown

VECTORS = Path(__file__).parents[1] / "vectors"
COMPLETE = [
    "base32",
    "bloom",
    "checksums",
    "commits",
    "dates",
    "encoders",
    "js-numbers",
    "log-recovery",
    "misc",
    "murmur3",
    "paths",
    "request-signatures",
    "sessions",
    "signatures",
    "stable-stringify",
    "sync-messages",
]
PARTLY = ["edits", "jsonl", "merges", "orders", "schemas"]
SHEETS = {sheet.name: sheet for sheet in check_directory(VECTORS)[0]}


@pytest.mark.parametrize("name", COMPLETE)
def test_every_case_holds(name: str) -> None:
    sheet = SHEETS[name]
    assert sheet.failures == []
    assert sheet.ok == sheet.total > 0
    assert not sheet.not_judged


@pytest.mark.parametrize("name", PARTLY)
def test_what_is_judged_holds_and_the_rest_says_why(name: str) -> None:
    sheet = SHEETS[name]
    assert sheet.failures == []
    assert sheet.ok + sum(sheet.not_judged.values()) == sheet.total
    assert all("comes with the full server" in reason for reason in sheet.not_judged)


def test_every_file_is_judged() -> None:
    assert sorted(SHEETS) == sorted(COMPLETE + PARTLY)
    assert check_directory(VECTORS)[1] == []


def test_the_command_prints_a_line_per_file_and_succeeds() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "goatherd.testing.vectors", str(VECTORS)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    assert "base32 32 ok / 32\n" in done.stdout
    assert len(done.stdout.splitlines()) == len(SHEETS)
    assert all(re.fullmatch(r"\S+ \d+ ok / \d+(, \d+ not judged: .+)?", line) for line in done.stdout.splitlines())
    assert done.stderr == ""


def _sabotage(node: Any) -> list[tuple[Any, Any]]:
    """Return every place of a document that holds a scalar, as (container, key)."""
    places: list[tuple[Any, Any]] = []
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in list(items):
        if isinstance(value, dict | list):
            places += _sabotage(value)
        elif key not in ("name", "note", "about"):
            places.append((node, key))
    return places


@pytest.mark.parametrize(
    ("name", "part", "member"),
    [
        ("base32", "cases", "encoded"),
        ("base32", "decode", "hex"),
        ("bloom", "cases", "hashes"),
        ("bloom", "formulas", "m"),
        ("checksums", "cases", "checksum"),
        ("checksums", "values", "hash"),
        ("commits", "cases", "expect"),
        ("commits", "cases", "pool_expect"),
        ("dates", "cases", "json"),
        ("dates", "decode", "ms"),
        ("encoders", "cases", "cyclical_set"),
        ("js-numbers", "cases", "string"),
        ("log-recovery", "writes", "file"),
        ("log-recovery", "scans", "file_after_base64"),
        ("misc", "tuples", "value"),
        ("misc", "pretty", "text"),
        ("murmur3", "cases", "result"),
        ("paths", "cases", "valid"),
        ("paths", "joins", "joined"),
        ("request-signatures", "cases", "expect"),
        ("sessions", "sessions", "public_json"),
        ("sessions", "settings", "text"),
        ("sessions", "load", "expiration_ms"),
        ("signatures", "cases", "signed_string"),
        ("signatures", "verify", "expect"),
        ("stable-stringify", "cases", "output"),
        ("sync-messages", "filters", "fpr"),
        ("sync-messages", "cycles", "server"),
        ("sync-messages", "messages", "size"),
    ],
)
def test_a_case_that_is_made_wrong_fails(tmp_path: Path, name: str, part: str, member: str) -> None:
    document = json.loads((VECTORS / f"{name}.json").read_text())
    case = next(each for each in document[part] if member in each)
    value = case[member]
    case[member] = (
        (not value) if isinstance(value, bool) else value + 1 if isinstance(value, int | float) else f"{value}AAAA"
    )
    (tmp_path / "renamed.json").write_text(json.dumps(document))
    (sheet,), strangers = check_directory(tmp_path)
    assert strangers == []
    assert sheet.name == "renamed"
    assert (len(sheet.failures), sheet.ok) == (1, sheet.total - 1)
    assert main([str(tmp_path)]) == 1


def test_a_damaged_log_fails(tmp_path: Path) -> None:
    shutil.copytree(VECTORS / "jsonl", tmp_path / "jsonl")
    log = tmp_path / "jsonl" / "data-notes.jsonl"
    log.write_bytes(log.read_bytes()[:-40])
    (sheet,), _ = check_directory(tmp_path)
    assert sheet.name == "jsonl"
    assert sheet.failures


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("garbage.json", "{"),
        ("list.json", "[]"),
        ("kindless.json", "{}"),
        ("stranger.json", '{"format": "goatdb-vectors/1", "kind": "nonsense", "cases": []}'),
        ("future.json", '{"format": "goatdb-vectors/9", "kind": "base32", "cases": []}'),
        ("notes.txt", "hello"),
        ("lost.jsonl", "{}\n"),
    ],
)
def test_a_file_of_no_known_kind_is_named_and_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, text: str
) -> None:
    shutil.copy(VECTORS / "base32.json", tmp_path)
    (tmp_path / name).write_text(text)
    assert main([str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert "base32 32 ok / 32" in printed
    assert f"UNKNOWN {name}: " in printed


@pytest.mark.parametrize(
    "text",
    ['{"kind": "base32"}', '{"kind": "base32", "cases": 5}', '{"kind": "commits", "sessions": [5], "cases": [{}]}'],
)
def test_a_file_without_usable_cases_fails(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    assert main([str(tmp_path)]) == 1


def test_wrong_usage_has_its_own_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert main([str(tmp_path / "nothing")]) == 2
    assert main([str(tmp_path)]) == 1
    assert main(["--help"]) == 0
    assert "usage" in capsys.readouterr().out


def test_no_failure_shows_a_private_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """SECURITY: guards `goatherd.testing.vectors.sheet.shown`."""
    text = (VECTORS / "sessions.json").read_text()
    keys = set(re.findall(r'\\"d\\": ?\\"([\w-]{64})', text)) | set(re.findall(r'"d\\*": *\\*"([\w-]{64})', text))
    assert len(keys) > 5
    document = json.loads(text)
    for part in ("sessions", "settings", "load"):
        for case in document[part]:
            for container, key in _sabotage(case):
                if isinstance(container[key], str):
                    container[key] = container[key].replace('"expiration"', '"Expiration"')
    (tmp_path / "sessions.json").write_text(json.dumps(document))
    assert main([str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert "FAILED" in printed
    assert not [key for key in keys if key in printed or key[:24] in printed]
    assert "A" * 64 not in shown({"d": "A" * 64})
