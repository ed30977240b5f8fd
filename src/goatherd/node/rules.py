"""Who may read and write what (docs/reference/goatdb-protocol.md#authorization). Pure.

For a repository, the first of these that speaks about it decides, and none means everything is allowed:

1. enforced: ``/sys/sessions`` may only be read; ``/sys/stats`` is closed;
2. the application's rules, in order: a text is the repository's path, a pattern is searched in it;
3. defaults: ``/sys/*`` is for roots only, ``/user/<id>`` for its owner only. (COMPAT: GoatDB has these two as well but
   never applies them. An application that wants signed-in users to read ``/sys/users`` says so by a rule.)

Roots, and the session that signs here, may do everything. A commit is judged by the session that signed it, a read by
the session that asks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from goatherd.identity.session import Session
from goatherd.wire.paths import SESSIONS_PATH

STATS_PATH = "/sys/stats"

Operation = Literal["read", "write"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """One question to a rule.

    Attributes:
        repository: The repository's path.
        key: The item's key.
        session: Who asks, or who signed the commit.
        operation: ``read`` or ``write``.
    """

    repository: str
    key: str
    session: Session
    operation: Operation


Allow = Callable[[Access], bool]


@dataclass(frozen=True, slots=True)
class Rule:
    """An application's rule.

    Attributes:
        repository: A repository's path, or a pattern that is searched in it.
        allow: Answers whether an access is allowed. Asked once per key and owner between two changes of a repository,
            for reading, so it must depend on nothing but the access and the repositories.
    """

    repository: str | re.Pattern[str]
    allow: Allow

    def matches(self, path: str) -> bool:
        if isinstance(self.repository, str):
            return self.repository == path
        return self.repository.search(path) is not None


class Rulebook:
    """The rules of one organization."""

    def __init__(self, rules: Sequence[Rule] = ()) -> None:
        self._rules = tuple(rules)

    def rule_for(self, path: str) -> Allow | None:
        """Return the rule that decides about a repository; None when everything is allowed."""
        if path == SESSIONS_PATH:
            return _read_only
        if path == STATS_PATH:
            return _nothing
        for rule in self._rules:
            if rule.matches(path):
                return rule.allow
        # SECURITY: what the documentation of GoatDB promises is private (tests/unit/test_upstream_traps.py).
        if path.startswith("/sys/"):
            return _nothing
        if path.startswith("/user/"):
            return _owner_only
        return None

    def reads_whole(self, path: str, session: Session) -> bool | None:
        """Whether a session may read everything in a repository, or nothing; None where it is asked key by key."""
        rule = self.rule_for(path)
        if rule is None or session.is_root:
            return True
        if rule in (_read_only, _nothing, _owner_only):
            return rule(Access(repository=path, key="", session=session, operation="read"))
        return None

    def allows(self, access: Access) -> bool:
        """Whether an access is allowed. A rule that raises allows nothing."""
        if access.session.is_root:
            return True
        rule = self.rule_for(access.repository)
        return rule is None or ask(rule, access)


def ask(rule: Allow, access: Access) -> bool:
    """Return a rule's answer; one that raises allows nothing, and stops nobody else."""
    try:
        return bool(rule(access))
    except Exception:  # noqa: BLE001 - application code
        return False


def _read_only(access: Access) -> bool:
    return access.operation == "read"


def _nothing(access: Access) -> bool:  # noqa: ARG001 - the shape of a rule
    return False


def _owner_only(access: Access) -> bool:
    owner = access.session.owner
    return owner is not None and access.repository == f"/user/{owner}"
