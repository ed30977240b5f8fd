"""Limits on the requests that the door passes on, added to those that a Goatherd server has too. Pure.

The shared limits are in `goatherd.serving.caller_limits` and `goatherd.admission.limits`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta

from goatherd.admission.limits import RequestLimits
from goatherd.serving.caller_limits import CallerLimits, Rate


@dataclass(frozen=True, slots=True, kw_only=True)
class DoorLimits(CallerLimits, RequestLimits):
    """Limits on the requests that the door passes on.

    Attributes:
        answer_timeout: Also how long the server may take to answer, or pause in an answer (504).
        session_requests: Of one session, counted when the server has accepted its signature.
        mails: ``POST /auth/send-login-email`` of one address.
        new_repositories: Repositories of one address that were not asked for since the door opened; the server makes
            a file for each and never closes it.
        repositories: Repositories that are remembered as asked for; the one not asked for for longest is forgotten.
        size: The count ``s`` of one message; the server sizes its answer's filter by it.
        index_commits: Ids held to judge what depends on the server's commits (concurrent creations, circular deltas).
        login_age: How old a login token may be.
    """

    mails: Rate = field(default=Rate(per_second=0.1, burst=10))
    new_repositories: Rate = field(default=Rate(per_second=2, burst=200))
    repositories: int = 50_000
    elements: int = 64
    size: int = 1_000_000
    index_commits: int = 1_000_000
    login_age: timedelta = timedelta(hours=1)
