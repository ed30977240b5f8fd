"""Find commits that introduce the same session twice in ``/sys/sessions``, and make the commit that joins them.

COMPAT: GoatDB 0.5.1 crashes with "Merge commit got empty ancestors filter" when it merges different commits of one item
of which none has a child. Two such commits of one session crash a server that gets the second one from a peer, and
every client that connects. They do no harm once a third commit, the joining commit, has both as parents.

The module does no I/O. It removes no commit, since a peer or client that holds the commit would send it again. The
contents of the joining commit depend only on the commits that it joins. So servers that are repaired at different
times, with different roots, agree on these contents.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from goatherd.errors import DecodeError
from goatherd.identity.session import ROOT_OWNER, OwnedSession, Session
from goatherd.identity.session_commits import session_from_commit
from goatherd.rotation.cross_signing import make_session_commit
from goatherd.wire.commit import Commit
from goatherd.wire.derived_ids import derived_id


@dataclass(frozen=True, slots=True, kw_only=True)
class Conflict:
    """Different commits that create the same session, none of which has a child in its log.

    Attributes:
        session_id: The session, which is the key of the commits.
        creations: The commits, the earliest first.
        holders: Directories and server URLs that hold the commits, sorted.
    """

    session_id: str
    creations: tuple[Commit, ...]
    holders: tuple[str, ...]

    @property
    def text(self) -> str:
        """Describe the conflict in a sentence."""
        ids = ", ".join(commit.id for commit in self.creations)
        return (
            f"{len(self.creations)} commits create session {self.session_id} with different contents ({ids}), in"
            f" {' and '.join(self.holders)}"
        )

    def to_json(self) -> dict[str, object]:
        """Return the conflict as JSON data."""
        return {
            "session": self.session_id,
            "commits": [commit.id for commit in self.creations],
            "heldBy": list(self.holders),
        }


def find_conflicts(logs: Mapping[str, Iterable[Commit]]) -> list[Conflict]:
    """Find the sessions that several different commits create, in one log or on different servers; sorted by session.

    GoatDB crashes when it merges such commits before one of them has a child. A server can merge them if its log holds
    a child of one of them, so the commits of that server are left out.

    Args:
        logs: The commits in each ``/sys/sessions``, by the directory or the server's URL from which they were read.
    """
    found: dict[str, dict[str, Commit]] = {}
    holders: dict[str, set[str]] = {}
    for holder, commits in logs.items():
        held = list(commits)
        parents = {parent for commit in held for parent in commit.parents}
        continued = {commit.key for commit in held if commit.id in parents}
        for commit in held:
            if commit.key not in continued:
                found.setdefault(commit.key, {})[commit.id] = commit
                holders.setdefault(commit.key, set()).add(holder)
    conflicts = []
    for key in sorted(found):
        creations = sorted(found[key].values(), key=lambda commit: (commit.ts, commit.id))
        if any(commit.contents != creations[0].contents for commit in creations):
            conflicts.append(Conflict(session_id=key, creations=tuple(creations), holders=tuple(sorted(holders[key]))))
    return conflicts


def join_creations(conflict: Conflict, *, signer: OwnedSession, org: str) -> dict[str, Any]:
    """Sign a commit that merges all commits which create one session.

    These commits are its parents. It has the latest of their expirations, and their owner if one of them has an
    owner.

    Args:
        conflict: The creations, all verified.
        signer: The root that signs.
        org: The organization; it is part of the signed bytes.

    Raises:
        DecodeError: One of the commits is not a session commit, or they contain different keys.
    """
    sessions = [session_from_commit(commit) for commit in conflict.creations]
    if any(session.public_key != sessions[0].public_key for session in sessions):
        raise DecodeError(
            f"session {conflict.session_id} is created with different keys: one of them is forged. Find out which one"
            " before clients use these servers again"
        )
    ids = "/".join(sorted(commit.id for commit in conflict.creations))
    # COMPAT: a server verifies the commits of a push in the order of their timestamps, and merges after every 50
    # commits. So the commit that joins the creations is dated before the first of them.
    earliest = min(math.floor(commit.ts) for commit in conflict.creations)
    return make_session_commit(
        _merge_sessions(sessions),
        signer=signer,
        commit_id=derived_id("joined creations", f"{signer.id}/{org}/{ids}"),
        ts=max(1, earliest - 1),
        org=org,
        parents=sorted(commit.id for commit in conflict.creations),
    )


def _merge_sessions(sessions: Iterable[Session]) -> Session:
    """Merge versions of one session: use the latest expiration and any owner. A root stays a root."""
    first, *others = sessions
    united = first
    for session in others:
        owner = united.owner if session.owner is None or united.owner == ROOT_OWNER else session.owner
        expiration_ms = max(united.expiration_ms, session.expiration_ms)
        united = replace(united, owner=owner, expiration_ms=expiration_ms)
    return united
