"""Limits on the batches and commits that a server accepts."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

NAME_LENGTH = 100
"""Maximum length of each of the two names in a repository's path."""


# No slots: the door's limits inherit from this class and from those of every caller.
@dataclass(frozen=True, kw_only=True)
class RequestLimits:
    """Limits on one batch and its commits. The defaults are far above what GoatDB's clients send.

    Attributes:
        elements: Number of elements in one batch; real clients and servers send up to 19.
        seeds: Number of hash functions of one filter; GoatDB needs 31 for 50 000 commits at its strictest.
        filter_bytes: Size of one filter; 4 MiB is enough for 800 000 commits at GoatDB's strictest.
        parents: Number of parents of one commit.
        ancestor_bytes: Size of one ancestors filter in bytes.
        depth: Levels of nested JSON. The node counts those of a commit's contents, the door those of the whole element
            or commit.
        ahead: How far in the future the timestamp of a commit may be.
    """

    elements: int = 1000
    seeds: int = 64
    filter_bytes: int = 4 * 1024 * 1024
    parents: int = 1000
    ancestor_bytes: int = 1024 * 1024
    depth: int = 64
    ahead: timedelta = timedelta(days=1)
