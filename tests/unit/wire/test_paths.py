"""Paths: GoatDB's rules, and the stricter rules of this server."""

from __future__ import annotations

from contextlib import suppress
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goatherd.errors import PathError
from goatherd.wire.paths import (
    check_item_path,
    check_repository_path,
    join_path,
)
from tests.fakes.goatdb_paths import is_valid_path, log_file, normalize_path, path_part, repository_id


@pytest.mark.parametrize("path", ["/data/notes", "/sys/sessions/", "/a/b-c_9", f"/{'k' * 100}/{'n' * 100}"])
def test_repository_paths_are_opened(path: str) -> None:
    kind, name = check_repository_path(path)
    assert path.removesuffix("/") == f"/{kind}/{name}"


@pytest.mark.parametrize(
    "path",
    [
        "/../x",
        "/a/..",
        "/a/.",
        "/a",
        "/a/b/c",
        "//a/b",
        "/a//b",
        "a/b",
        "",
        "/",
        "/a/b//",
        "/A/b",
        "/a/b.jsonl",
        "/a/b\n",
        "/a/\0",
        "/a/é",
        "/a/b\\c",
        "/%2e%2e/x",
        "/٠/b",
        f"/{'k' * 101}/b",
        f"/a/{'n' * 101}",
        None,
        5,
    ],
)
def test_nothing_else_reaches_the_file_system(path: object) -> None:
    with pytest.raises(PathError):
        check_repository_path(path)  # type: ignore[arg-type]


def test_of_all_short_paths_those_of_two_plain_components_are_accepted() -> None:
    accepted = {}
    for length in range(6):
        for path in map("".join, product("/a.-é\n", repeat=length)):
            with suppress(PathError):
                accepted[path] = check_repository_path(path)
    names = ("a", "-", "aa", "a-", "-a", "--")
    plain = {f"/{kind}/{name}{end}": (kind, name) for kind in names for name in names for end in ("", "/")}
    assert accepted == {path: parts for path, parts in plain.items() if len(path) < 6}


def test_items_written_here_have_a_key() -> None:
    assert check_item_path("/data/notes", "n1") == "/data/notes/n1"
    for key in ("", "a/b", "A", ".."):
        with pytest.raises(PathError):
            check_item_path("/data/notes", key)


@given(st.text(st.sampled_from("/abA"), max_size=12))
def test_goatdbs_functions_take_any_text(path: str) -> None:
    parts = [path_part(path, index) for index in range(4)]
    assert all(part is None or isinstance(part, str) for part in parts)
    assert isinstance(normalize_path(path), str)
    assert is_valid_path(path) == (path.startswith("/") and path.count("/") <= 4 and "A" not in path)


def test_double_slashes_are_not_repaired() -> None:
    assert repository_id("/data//notes/x") == "/data/notes"
    assert path_part("/data//notes/x", 2) == "notes"


def test_missing_parts_print_as_the_word() -> None:
    assert normalize_path("") == "/undefined/undefined/"
    with pytest.raises(PathError):
        repository_id("/data")


def test_a_log_file_has_two_components() -> None:
    assert log_file("/data/notes") == "data/notes.jsonl"
    assert [log_file("/./x"), log_file("/../x"), log_file("/a/..")] == ["x.jsonl", "../x.jsonl", "a/...jsonl"]
    # As GoatDB 0.5.1, for which a backslash separates parts, too.
    assert [log_file(r"/a\b/c"), log_file(r"/a/b\..\c")] == ["a/b/c.jsonl", "a/c.jsonl"]
    assert [log_file("/\\\\/x"), log_file("/\\..\\a/.\\x")] == ["/x.jsonl", "/a/x.jsonl"]
    for repository in ("/data", "/a/b/c"):
        with pytest.raises(PathError):
            log_file(repository)


def test_joining_leaves_one_slash() -> None:
    assert {join_path(a, b) for a in ("/a", "/a/") for b in ("b", "/b")} == {"/a/b"}


@pytest.mark.parametrize(
    ("path", "repository"),
    [("/a/b/c", "/a/b"), ("a/b", "/a/b"), ("///a/b", "/a/a"), ("//a/b", "/a/a"), ("/a/b//", "/a/b")],
)
def test_the_repository_of_a_path_begins_with_one_slash(path: str, repository: str) -> None:
    assert repository_id(path) == repository
