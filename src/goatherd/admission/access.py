"""Decide which sessions may read and write which repository (docs/reference/goatdb-protocol.md#authorization).

The first of these rules that concerns the repository decides. If no rule concerns it, everything is allowed:

1. always: ``/sys/sessions`` may only be read, and ``/sys/stats`` may be neither read nor written;
2. the application's rules, in order: a string is compared with the repository's path, a pattern is searched in it;
3. defaults: only roots may use ``/sys/*``, only the owner may use ``/user/<id>``. (COMPAT: GoatDB has both defaults but
   never applies them. An application that lets signed-in users read ``/sys/users`` adds a rule.)

Roots, and the session with which this server signs, may do everything. A write is judged by the session that signed the
commit, a read by the session that sent the request. Goatherd's own server applies all three rules. The door (the proxy
in front of an unmodified server) does not know the application's rules; it applies only the defaults, and only to
commits.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from goatherd.admission.requests import read_repository_path
from goatherd.identity.session import Session
from goatherd.wire.paths import SESSIONS_PATH

STATS_PATH = "/sys/stats"

Operation = Literal["read", "write"]


def is_allowed_by_default(path: str, owner: str | None) -> bool:
    """Return whether GoatDB's documented defaults let a non-root session of the user `owner` use a repository."""
    if path.startswith("/user/"):
        return owner is not None and path == f"/user/{owner}"
    return not path.startswith("/sys/")


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """One read or write of an item, about which an access rule decides.

    Attributes:
        repository: The repository's path.
        key: The item's key.
        session: The session that reads the item, or that has signed the commit to be written.
        operation: ``read`` or ``write``.
    """

    repository: str
    key: str
    session: Session
    operation: Operation


Allow = Callable[[Access], bool]


@dataclass(frozen=True, slots=True)
class AccessRule:
    """An access rule of the application for some repositories.

    Attributes:
        repository: A repository's path (of an item's path, only the part that names the repository counts), or a
            regular expression that is searched in the path.
        allow: Returns whether an access is allowed. For reads, the function is called once per key and owner between
            two changes of a repository, so the result must depend only on the access and the repositories.

    Raises:
        PathError: No repository can have the path.
    """

    repository: str | re.Pattern[str]
    allow: Allow

    def __post_init__(self) -> None:
        if isinstance(self.repository, str):
            # SECURITY: the path is checked, because a rule with a mistyped path would never apply and leave its
            # repository open to everyone (tests/unit/admission/test_access.py).
            object.__setattr__(self, "repository", read_repository_path(self.repository))

    def matches(self, path: str) -> bool:
        if isinstance(self.repository, str):
            return self.repository == path
        return self.repository.search(path) is not None


class Rulebook:
    """The application's access rules for one organization."""

    def __init__(self, rules: Sequence[AccessRule] = ()) -> None:
        self._rules = tuple(rules)

    def rule_for(self, path: str) -> Allow | None:
        """Return the first access rule that applies to a repository; None if every access is allowed."""
        if path == SESSIONS_PATH:
            return _allow_reading
        if path == STATS_PATH:
            return _allow_nothing
        for rule in self._rules:
            if rule.matches(path):
                return rule.allow
        # SECURITY: GoatDB's documentation states that these repositories are private; GoatDB itself leaves them open
        # (tests/unit/test_upstream_traps.py).
        return _allow_default if path.startswith(("/sys/", "/user/")) else None

    def reads_whole(self, path: str, session: Session) -> bool | None:
        """Return whether a session may read everything in a repository (True) or nothing (False).

        None means that this depends on the item's key.
        """
        rule = self.rule_for(path)
        if rule is None or session.is_root:
            return True
        if rule in (_allow_reading, _allow_nothing, _allow_default):
            return rule(Access(repository=path, key="", session=session, operation="read"))
        return None

    def allows(self, access: Access) -> bool:
        """Return whether the rules allow an access. A rule that raises an exception denies the access."""
        if access.session.is_root:
            return True
        rule = self.rule_for(access.repository)
        return rule is None or apply_rule(rule, access)


def apply_rule(rule: Allow, access: Access) -> bool:
    """Return whether an access rule allows an access; False if the rule raises an exception.

    Rules are the application's code, whose errors must not stop other requests.
    """
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
