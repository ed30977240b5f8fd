"""Decide who may read and write which repository (docs/reference/goatdb-protocol.md#authorization).

The first of these rules that concerns the repository decides; if none does, everything is allowed:

1. enforced: ``/sys/sessions`` may only be read; ``/sys/stats`` is closed;
2. the application's rules, in order: a string is compared with the repository's path, a pattern is searched in it;
3. defaults: only roots may use ``/sys/*``, only the owner may use ``/user/<id>``. (COMPAT: GoatDB has both defaults but
   never applies them. An application that lets signed-in users read ``/sys/users`` adds a rule.)

Roots, and the session with which this server signs, may do everything. A write is judged by the session that signed the
commit, a read by the session that sent the request. The node applies all three; the door does not know the
application's rules and applies only the defaults, to commits.
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


def is_allowed_by_default(path: str, owner: str | None) -> bool:
    """Return whether GoatDB's documentation allows a session of `owner` that is not a root to use a repository."""
    if path.startswith("/user/"):
        return owner is not None and path == f"/user/{owner}"
    return not path.startswith("/sys/")


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """One read or write, about which a rule decides.

    Attributes:
        repository: The repository's path.
        key: The item's key.
        session: The session that reads, or that signed the commit.
        operation: ``read`` or ``write``.
    """

    repository: str
    key: str
    session: Session
    operation: Operation


Allow = Callable[[Access], bool]


@dataclass(frozen=True, slots=True)
class AccessRule:
    """An access rule of the application.

    Attributes:
        repository: A repository's path, or a pattern that is searched in it.
        allow: Returns whether an access is allowed. For reads it is called once per key and owner between two changes
            of a repository, so the result must depend only on the access and the repositories.
    """

    repository: str | re.Pattern[str]
    allow: Allow

    def matches(self, path: str) -> bool:
        if isinstance(self.repository, str):
            return self.repository == path
        return self.repository.search(path) is not None


class Rulebook:
    """The access rules of one organization."""

    def __init__(self, rules: Sequence[AccessRule] = ()) -> None:
        self._rules = tuple(rules)

    def rule_for(self, path: str) -> Allow | None:
        """Return the rule that decides about a repository; None if everything is allowed."""
        if path == SESSIONS_PATH:
            return _allow_reading
        if path == STATS_PATH:
            return _allow_nothing
        for rule in self._rules:
            if rule.matches(path):
                return rule.allow
        # SECURITY: private according to GoatDB's documentation (tests/unit/test_upstream_traps.py).
        return _allow_default if path.startswith(("/sys/", "/user/")) else None

    def reads_whole(self, path: str, session: Session) -> bool | None:
        """Return whether a session may read everything in a repository, or nothing; None if that depends on the key."""
        rule = self.rule_for(path)
        if rule is None or session.is_root:
            return True
        if rule in (_allow_reading, _allow_nothing, _allow_default):
            return rule(Access(repository=path, key="", session=session, operation="read"))
        return None

    def allows(self, access: Access) -> bool:
        """Return whether an access is allowed. A rule that raises an exception denies the access."""
        if access.session.is_root:
            return True
        rule = self.rule_for(access.repository)
        return rule is None or apply_rule(rule, access)


def apply_rule(rule: Allow, access: Access) -> bool:
    """Return a rule's answer; False if the rule raises an exception, so that other requests continue."""
    try:
        return bool(rule(access))
    except Exception:  # noqa: BLE001 - application code
        return False


def _allow_reading(access: Access) -> bool:
    return access.operation == "read"


def _allow_nothing(access: Access) -> bool:  # noqa: ARG001 - the shape of a rule
    return False


def _allow_default(access: Access) -> bool:
    return is_allowed_by_default(access.repository, access.session.owner)
