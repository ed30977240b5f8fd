"""Limits that only the door (the proxy in front of an unmodified GoatDB server) sets on requests. Pure.

The limits that the door shares with a Goatherd server are in `goatherd.serving.caller_limits` and
`goatherd.admission.requests`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta

from goatherd.admission.requests import RequestLimits
from goatherd.serving.caller_limits import CallerLimits, Rate


@dataclass(frozen=True, slots=True, kw_only=True)
class DoorLimits(CallerLimits, RequestLimits):
    """Limits on the requests that the door passes on.

    Attributes:
        mails: Rate limit for ``POST /auth/send-login-email`` from one IP address.
        new_repositories: Rate at which one IP address may request repositories that the door does not remember; the
            server creates a file for each and never closes it. Not counted: requests of root sessions; requests that
            the server rejects; repositories in which the server has commits, if its answer has up to 256 KiB.
        repositories: Number of repositories that the door remembers; the least recently requested one is dropped.
        size: Maximum number of commits that the sender of a sync message may claim to hold (member ``s``). The server
            makes the Bloom filter in its answer large enough for this number.
        index_commits: Number of commit ids that the door keeps to detect concurrent creations and circular deltas; it
            reads the least used repositories again.
        login_age: Maximum age of a login token.
    """

    mails: Rate = field(default=Rate(per_second=0.1, burst=10))
    new_repositories: Rate = field(default=Rate(per_second=2, burst=200))
    repositories: int = 50_000
    elements: int = 64
    size: int = 1_000_000
    index_commits: int = 1_000_000
    login_age: timedelta = timedelta(hours=1)
