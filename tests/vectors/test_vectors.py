"""The vectors that GoatDB 0.5.1 produced, and the command that checks them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.done_once import sign_and_verify_each_time
from tests.vectors import check_directory, main
from tests.vectors.sheet import Sheet, shown

ROOT = Path(__file__).parents[2]
VECTORS = ROOT / "tests/vectors"
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
EDGES = [
    "checksums-edges",
    "commits-edges",
    "edits-edges",
    "encoders-edges",
    "log-recovery-edges",
    "merges-edges",
    "orders-edges",
    "schemas-edges",
    "sessions-edges",
    "stable-stringify-edges",
]
PARTLY = ["edits", "jsonl", "merges", "orders", "schemas"]


@pytest.fixture(autouse=True, scope="module")
def every_signature_is_made_and_verified() -> Iterator[None]:
    with sign_and_verify_each_time():
        yield


@pytest.fixture(scope="module")
def checked(every_signature_is_made_and_verified: None) -> tuple[list[Sheet], list[str]]:
    return check_directory(VECTORS)


@pytest.fixture(scope="module")
def sheets(checked: tuple[list[Sheet], list[str]]) -> dict[str, Sheet]:
    return {sheet.name: sheet for sheet in checked[0]}


@pytest.mark.parametrize("name", COMPLETE + EDGES)
def test_every_case_holds(sheets: dict[str, Sheet], name: str) -> None:
    sheet = sheets[name]
    assert sheet.failures == []
    assert sheet.ok == sheet.total > 0
    assert not sheet.not_judged


@pytest.mark.parametrize("name", PARTLY)
def test_what_is_judged_holds_and_the_rest_says_why(sheets: dict[str, Sheet], name: str) -> None:
    sheet = sheets[name]
    assert sheet.failures == []
    assert sheet.ok + sum(sheet.not_judged.values()) == sheet.total
    assert all("only clients and GoatDB's servers" in reason for reason in sheet.not_judged)


def test_every_file_is_judged(checked: tuple[list[Sheet], list[str]]) -> None:
    sheets, messages = checked
    assert sorted(sheet.name for sheet in sheets) == sorted(COMPLETE + EDGES + PARTLY)
    assert messages == []


@pytest.mark.slow
def test_the_command_prints_a_line_per_file_and_succeeds(sheets: dict[str, Sheet]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.vectors"], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout
    assert "base32 32 ok / 32\n" in done.stdout
    assert len(done.stdout.splitlines()) == len(sheets)
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
        ("edges/orders-edges", "graphs", "descending"),
        ("edges/orders-edges", "graphs", "leaves"),
        ("edges/orders-edges", "graphs", "head"),
        ("edges/orders-edges", "graphs", "corrupted"),
        ("edges/orders-edges", "rendezvous", "leader"),
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


@pytest.mark.parametrize(
    ("member", "part"),
    [
        ("merge_base", "base"),
        ("merge_base", "schema"),
        ("merge_base", "reached_root"),
        ("merge_record", "item"),
        ("merge_if_needed", "created"),
        ("merge_if_needed", "parents"),
        ("merge_if_needed", "item"),
    ],
)
def test_a_merge_of_a_graph_that_is_made_wrong_fails(tmp_path: Path, member: str, part: str) -> None:
    document = _document("edges/orders-edges")
    case = next(each for each in document["graphs"] if part in each.get(member, {}))
    case[member][part] = "wrong"
    sheet = _judged(tmp_path, document)
    assert (len(sheet.failures), sheet.ok) == (1, sheet.total - 1)


def _document(name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((VECTORS / f"{name}.json").read_text())
    return document


def _judged(tmp_path: Path, document: dict[str, Any]) -> Sheet:
    (tmp_path / "x.json").write_text(json.dumps(document))
    (sheet,), strangers = check_directory(tmp_path)
    assert strangers == []
    return sheet


@pytest.mark.parametrize(
    ("name", "part", "path", "value"),
    [
        ("checksums", "cases", ["wire", "cs"], "1"),
        ("edits", "cases", ["equal"], "neither"),
        ("edits", "cases", ["patched", "cs"], "1"),
        ("merges", "cases", ["result", "cs"], "1"),
        ("log-recovery", "scans", ["file_after_base64"], "CgoK????"),
    ],
)
def test_no_member_of_a_case_that_is_judged_is_left_out(
    tmp_path: Path, name: str, part: str, path: list[str], value: str
) -> None:
    document = _document(name)
    honest = _judged(tmp_path, document)
    for case in document[part]:
        place = case
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
    sheet = _judged(tmp_path, document)
    assert (honest.failures, sheet.not_judged) == ([], honest.not_judged)
    assert len(sheet.failures) == len(document[part]) - sum(sheet.not_judged.values())


@pytest.mark.parametrize(("name", "member"), [("request-signatures", "window_ms"), ("checksums", "seed")])
def test_a_constant_of_the_file_is_ours(tmp_path: Path, name: str, member: str) -> None:
    assert _judged(tmp_path, {**_document(name), member: 5}).failures


def test_a_part_of_another_name_is_counted_and_not_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "base32.json").write_text(json.dumps({**_document("base32"), "more": [{}, {}]}))
    assert main([str(tmp_path)]) == 0
    assert capsys.readouterr().out == "base32 32 ok / 34, 2 not judged: a part that this kind is not known to have\n"


def test_a_file_with_damaged_declarations_still_counts_its_cases(tmp_path: Path) -> None:
    sheet = _judged(tmp_path, {**_document("signatures"), "sessions": [5]})
    assert (sheet.ok, sheet.total, len(sheet.failures)) == (0, 90, 1)


def test_a_rate_may_differ_by_what_v8_rounds_otherwise(tmp_path: Path) -> None:
    case = {"local": 272, "peer": 1, "cycles": 3, "low_accuracy": False, "size": 272}
    case |= {"fpr": 0.023820675009393263, "filter_bytes": 265, "hashes": 6}
    document = {"kind": "sync-messages", "filters": [case, {**case, "fpr": 0.0238206750093933}]}
    sheet = _judged(tmp_path, document)
    assert (sheet.ok, len(sheet.failures)) == (1, 1)


def test_a_peer_that_has_everything_is_sent_nothing(tmp_path: Path) -> None:
    document = _document("sync-messages")
    case = next(each for each in document["messages"] if each["sent_ids"])
    message = json.loads(case["json"])
    case |= {"peer_filter": message["f"]["__v"], "sent_ids": [], "decoded": {**case["decoded"], "ids": []}}
    case["json"] = json.dumps({**message, "c": []}, separators=(",", ":"))
    assert _judged(tmp_path, document).failures == []
    case["peer_filter"] = {"d": "AA==", "s": [1]}
    assert len(_judged(tmp_path, document).failures) == 1


@pytest.mark.parametrize(
    ("change", "kept", "roots", "trusted"),
    [
        ({}, True, 1, 1),
        ({"currentSession": None}, False, 1, 1),
        ({"currentSession": {}}, False, 0, 0),
        ({"roots": {}}, True, 0, 0),
        ({"roots": 5}, True, 0, 0),
        ({"roots": 0}, True, 0, 0),
        ({"trustedSessions": [{}]}, True, 1, 0),
    ],
)
def test_settings_are_loaded_as_far_as_goatdb_loads_them(
    tmp_path: Path, change: dict[str, Any], kept: bool, roots: int, trusted: int
) -> None:
    document = _document("sessions")
    case = next(each for each in document["load"] if each["name"] == "good")
    settings = json.loads(case["text"])
    members = {name: settings[name][:1] for name in ("roots", "trustedSessions")}
    case |= {"text": json.dumps({**settings, **members, **change}), "roots": roots, "trusted": trusted}
    if not kept:
        case |= {"current": "new", "expiration_ms": case["now_ms"] + 30 * 86_400_000, "owner": "root"}
    sheet = _judged(tmp_path, {"kind": "sessions", "load": [case]})
    assert sheet.failures == []


@pytest.mark.parametrize(
    ("change", "roots"),
    [
        ({"key_ops": []}, 0),
        ({"key_ops": ["verify", "sing"]}, 0),
        ({"alg": "ES256"}, 0),
        ({"ext": False}, 0),
        ({"d": "AAAA"}, 0),
        ({"x": "?"}, 0),
        ({"key_ops": None, "ext": None, "alg": None, "crv": "P-256", "kid": "a"}, 1),
        ({"x": "AAAA"}, 1),
    ],
)
def test_settings_are_loaded_with_the_keys_that_deno_imports(
    tmp_path: Path, change: dict[str, Any], roots: int
) -> None:
    case = next(each for each in _document("sessions")["load"] if each["name"] == "good")
    settings = json.loads(case["text"])
    settings["roots"] = [{**settings["roots"][0], "publicKey": {**settings["roots"][0]["publicKey"], **change}}]
    trusted = len(settings["trustedSessions"]) if roots else 0
    case |= {"text": json.dumps(settings), "roots": roots, "trusted": trusted}
    assert _judged(tmp_path, {"kind": "sessions", "load": [case]}).failures == []


def test_settings_with_a_private_key_that_is_none_are_loaded_up_to_it(tmp_path: Path) -> None:
    case = next(each for each in _document("sessions")["load"] if each["name"] == "good")
    settings = json.loads(case["text"])
    settings["roots"] = [{**settings["roots"][0], "privateKey": {"kty": "EC"}}]
    case |= {"text": json.dumps(settings), "roots": 0, "trusted": 0}
    assert _judged(tmp_path, {"kind": "sessions", "load": [case]}).failures == []


def test_settings_with_a_date_that_is_none_are_kept(tmp_path: Path) -> None:
    case = next(each for each in _document("sessions")["load"] if each["name"] == "good")
    settings = json.loads(case["text"])
    settings["currentSession"]["expiration"] = "soon"
    case |= {"text": json.dumps(settings), "expiration_ms": None}
    assert _judged(tmp_path, {"kind": "sessions", "load": [case]}).failures == []


def test_holes_of_an_array_are_undefined_but_in_the_stable_text(tmp_path: Path) -> None:
    holed = {"$": "array", "v": [1, {"$": "hole"}, {"$": "date", "ms": 0}]}
    text = '{"k":[1,null,{"__t":"D","__v":0}]}'
    case = {"input": holed, "cyclical_set": text, "decoded": [1, None, {"$": "date", "ms": 0}]}
    assert _judged(tmp_path, {"kind": "encoders", "cases": [case]}).failures == []
    stable = {"input": {"a": holed}, "output": '{"a":{"0":1,"2":{}}}'}
    assert _judged(tmp_path, {"kind": "stable-stringify", "cases": [stable]}).failures == []


@pytest.mark.slow
def test_names_that_cannot_be_printed_are_escaped(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(json.dumps({"kind": "base32", "cases": [{"name": "\ud800é"}]}))
    done = subprocess.run(
        [sys.executable, "-m", "tests.vectors", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        cwd=ROOT,
    )
    assert (done.returncode, done.stderr) == (1, "")
    assert "FAILED cases[0] \\ud800\\xe9: KeyError" in done.stdout


def test_a_link_to_nothing_is_named(tmp_path: Path) -> None:
    shutil.copy(VECTORS / "base32.json", tmp_path)
    (tmp_path / "gone.json").symlink_to(tmp_path / "nowhere.json")
    (tmp_path / "folder").symlink_to(VECTORS)
    assert check_directory(tmp_path)[1] == ["folder: no file", "gone.json: no file"]


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
    """SECURITY: guards `tests.vectors.sheet.shown`."""
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
