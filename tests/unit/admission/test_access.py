"""Access to repositories: which rights are enforced, the application's rules, and GoatDB's documented defaults."""

from __future__ import annotations

import re
from typing import Any

import pytest

from goatherd.admission.access import Access, AccessRule, Rulebook, is_allowed_by_default
from goatherd.errors import PathError
from tests.unit.goats import owned, root

A, X, U = root("root-a"), owned("x"), owned("u", "u1")


def test_rules_are_asked_in_goatdbs_order() -> None:
    open_users = AccessRule(re.compile("^/sys/users$"), lambda access: access.operation == "read")
    book = Rulebook([open_users, AccessRule("/sys/stats", lambda _: True), AccessRule("/sys/sessions", lambda _: True)])

    def may(path: str, operation: Any, session: Any = X) -> bool:
        return book.allows(Access(repository=path, key="k", session=session.session, operation=operation))

    assert may("/sys/users", "read")
    assert not may("/sys/users", "write")
    assert not may("/sys/stats", "read")
    assert may("/sys/sessions", "read")
    assert not may("/sys/sessions", "write")
    assert may("/user/u1", "write", U)
    assert not may("/user/u1", "write")
    assert may("/data/x", "write")
    assert may("/sys/stats", "write", A)


@pytest.mark.parametrize("path", ["/data/x", "data/x", "/data/x/", "/data/x/item"])
def test_a_rule_applies_to_its_repository_however_the_path_is_written(path: str) -> None:
    book = Rulebook([AccessRule(path, lambda _: False)])
    assert not book.allows(Access(repository="/data/x", key="k", session=X.session, operation="read"))
    assert book.allows(Access(repository="/data/y", key="k", session=X.session, operation="read"))


@pytest.mark.parametrize("path", ["", "/data", "/Data/x", "/data/*", "//data/x"])
def test_a_rule_for_a_path_that_no_repository_has_is_an_error(path: str) -> None:
    with pytest.raises(PathError):
        AccessRule(path, lambda _: False)


PATHS = [
    ("/data/x", None, True),
    ("/sys/users", None, False),
    ("/sys/users", "u1", False),
    ("/user/u1", None, False),
    ("/user/u1", "u1", True),
    ("/user/u2", "u1", False),
    ("/users/u2", "u1", True),
]


@pytest.mark.parametrize(("path", "owner", "expected"), PATHS)
def test_who_may_write_where_by_the_documentation(path: str, owner: str | None, expected: bool) -> None:
    assert is_allowed_by_default(path, owner) is expected


@pytest.mark.parametrize(("path", "owner", "expected"), PATHS)
def test_a_server_without_rules_follows_the_documentation_like_the_door(
    path: str, owner: str | None, expected: bool
) -> None:
    session = owned(f"session-{owner}", owner).session
    assert Rulebook().allows(Access(repository=path, key="k", session=session, operation="write")) is expected
