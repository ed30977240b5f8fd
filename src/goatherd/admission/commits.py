"""Decode a commit and make every check that needs neither the session that signed it nor other commits.

GoatDB stores anything that it can decode, and some commits crash servers or clients that merge them. The checks accept
everything that GoatDB's own clients and servers write. As in GoatDB, the sender is not notified of a rejection;
`NotAdmittedError` holds the reason.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from enum import StrEnum
from typing import Any, Final

from goatherd.admission.requests import RequestLimits, may_verify
from goatherd.errors import DecodeError, EncodeError, WireError
from goatherd.identity.session_commits import SESSIONS_NAMESPACE, session_from_commit
from goatherd.wire.commit import Commit
from goatherd.wire.encoders import check_members, has_stray_reference
from goatherd.wire.items import record_data
from goatherd.wire.json import nesting_depth, parse_json
from goatherd.wire.paths import SESSIONS_PATH
from goatherd.wire.schema import BUILTIN, Registry

_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_KEY = re.compile(r"[a-z0-9_-]{1,200}")
MAP_MARK: Final = "__IS_MAP_OBJ"
"""A member by which GoatDB takes an object for a Map. It throws when it compares two such objects, as in a merge."""


class CommitFault(StrEnum):
    """The part of a commit that is wrong. The door (reverse proxy) has a rule with the same name for each part."""

    COMMIT = "commit"
    TIME = "time"
    ANCESTORS = "ancestors"
    CONTENTS = "contents"
    SESSION_ITEM = "session-item"


class NotAdmittedError(DecodeError, code="wire.not_admitted"):
    """A commit is well-formed, but rejected, because it could crash servers or clients, or win every later conflict.

    Args:
        text: The reason for the rejection.
        fault: The part that is wrong.
    """

    def __init__(self, text: str, fault: CommitFault = CommitFault.COMMIT) -> None:
        super().__init__(text)
        self.fault = fault


def is_nested_deeper(value: Any, depth: int, forbidden: Sequence[str] = ()) -> bool:
    """Return whether parsed JSON has more than `depth` levels, or contains a member with a forbidden name."""
    for index, level in enumerate(nesting_depth(value)):
        if index == depth or any(name in item for item in level if type(item) is dict for name in forbidden):
            return True
    return False


def decode_commit(
    raw: Any, path: str, *, org: str, limits: RequestLimits, now_ms: int, registry: Registry = BUILTIN
) -> Commit:
    """Decode a received commit, and check everything in it that needs no other commit and no signature.

    Args:
        raw: The commit as received. The caller must check how deeply it is nested (`is_nested_deeper`).
        path: Path of the commit's repository.
        org: The organization's id; signatures of commits cover it.
        limits: The limits on one commit.
        now_ms: The time of the server's clock in milliseconds.
        registry: The schemas that the server knows.

    Raises:
        WireError: The value is not a commit.
        NotAdmittedError: The commit could crash a server or a client, or has a timestamp with which it would win every
            later conflict.
    """
    commit = Commit.from_json(raw, org=org, registry=registry)
    if _ID.fullmatch(commit.id) is None or _KEY.fullmatch(commit.key) is None:
        raise NotAdmittedError("a commit's id and key must have the form that GoatDB generates")
    if not math.isfinite(commit.ts) or commit.ts <= 0:
        raise NotAdmittedError(f"commit {commit.id!r} must have a valid timestamp", CommitFault.TIME)
    if commit.ts > now_ms + limits.ahead.total_seconds() * 1000:
        # SECURITY: a commit from the far future would win every later conflict (tests/unit/test_upstream_traps.py).
        raise NotAdmittedError(f"commit {commit.id!r} has a timestamp too far in the future", CommitFault.TIME)
    _check_ancestors(commit, limits)
    if has_stray_reference(raw):
        # SECURITY: GoatDB decodes all commits of a message with one decoder. It throws on such a reference after it has
        # decoded referenced objects of any earlier commit, so it could never read the message
        # (tests/unit/admission/test_commits.py).
        raise NotAdmittedError(
            f"commit {commit.id!r} must not have a reference (__rId) without referenced objects (__r)",
            CommitFault.CONTENTS,
        )
    if commit.contents != raw["c"]:
        try:
            commit.check_lasting(registry)
        except WireError as error:
            raise NotAdmittedError(str(error), CommitFault.CONTENTS) from None
    _check_contents(commit, path, registry)
    return commit


def _check_ancestors(commit: Commit, limits: RequestLimits) -> None:
    if len(commit.parents) > limits.parents or commit.id in commit.parents:
        raise NotAdmittedError(
            f"commit {commit.id!r} has too many parents, or is its own parent", CommitFault.ANCESTORS
        )
    held = commit.ancestors_filter
    if held is not None and (len(held.bits) > limits.ancestor_bytes or len(held.seeds) > limits.seeds):
        raise NotAdmittedError(f"the ancestors filter of commit {commit.id!r} is too large", CommitFault.ANCESTORS)
    if not 0 <= commit.ancestors_count < 2**53:
        raise NotAdmittedError(f"the ancestor count of commit {commit.id!r} is out of range", CommitFault.ANCESTORS)


def check_session_item(commit: Commit, path: str) -> None:
    """Check that a commit of ``/sys/sessions`` introduces a session, and that no commit of another repository does.

    Raises:
        NotAdmittedError: The commit contains no session, but is in ``/sys/sessions``; or it contains one, but is not.
    """
    if path == SESSIONS_PATH:
        try:
            # SECURITY: a value in /sys/sessions that is not a session prevents every later start of GoatDB. A session
            # must be stored under its own id (tests/unit/node/test_engine.py, tests/cluster/test_door_writers.py).
            session_from_commit(commit)
            if not may_verify(parse_json((commit.data or {})["publicKey"])):
                raise DecodeError("its public key must be one that may verify signatures")
        except DecodeError as error:
            raise NotAdmittedError(
                f"{path}/{commit.key} must be a valid session: {error}", CommitFault.SESSION_ITEM
            ) from None
    elif SESSIONS_NAMESPACE in (commit.namespace, _edit_namespace(commit)):
        # SECURITY: a signature does not cover the repository, and (COMPAT) GoatDB learns sessions in any. So anyone
        # could spread the introduction of a revoked root again (tests/unit/node/test_engine.py). A delta that names the
        # schema of sessions makes GoatDB throw before it writes the commits that it received with the delta.
        raise NotAdmittedError(
            f"{path}/{commit.key} must not be a session: sessions are in {SESSIONS_PATH}", CommitFault.SESSION_ITEM
        )


def _edit_namespace(commit: Commit) -> str | None:
    """Return the namespace of the schema that the edit of a delta names; None if it names none."""
    marker = (commit.edit or {}).get("s")
    return marker.partition("/")[0] if isinstance(marker, str) else None


def _check_contents(commit: Commit, path: str, registry: Registry) -> None:
    """Reject a commit with contents on which GoatDB's servers or clients crash when they open or merge them."""
    check_session_item(commit, path)
    if commit.is_delta:
        return
    if commit.schema == "null":
        raise NotAdmittedError(f"commit {commit.id!r} must not contain the null item", CommitFault.CONTENTS)
    schema, record = registry.from_marker(commit.schema), commit.record
    if schema is None or record is None:
        # A schema of the application's, which only its servers know.
        _check_unknown_data(commit)
        return
    try:
        problem = schema.problem(record_data(record, registry))
    except EncodeError as error:
        raise NotAdmittedError(f"commit {commit.id!r}: {error}", CommitFault.CONTENTS) from None
    if problem is not None:
        raise NotAdmittedError(f"commit {commit.id!r}: {problem}", CommitFault.CONTENTS)


def _check_unknown_data(commit: Commit) -> None:
    """Reject values that GoatDB's servers and clients cannot write again, in an item of any schema."""
    try:
        for level in nesting_depth(commit.data):
            for item in level:
                if type(item) is dict:
                    check_members(item)
    except DecodeError as error:
        raise NotAdmittedError(f"commit {commit.id!r}: {error}", CommitFault.CONTENTS) from None
