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
        answer_timeout: How long a caller may pause in reading an answer, and how long the server may take to answer or
            pause in an answer (504).
        session_requests: Requests of one session, counted when the server has accepted its signature.
        mails: Rate of ``POST /auth/send-login-email`` of one address.
        new_repositories: Rate at which one address may request repositories that no caller has requested since the door
            opened; the server creates a file for each and never closes it.
        repositories: Number of requested repositories that the door remembers; the least recently requested one is
            dropped.
        size: Maximum of the count ``s`` of one message; the server sizes its answer's filter by it.
        index_commits: Number of commit ids that the door keeps to detect concurrent creations and circular deltas.
        login_age: Maximum age of a login token.
    """

    mails: Rate = field(default=Rate(per_second=0.1, burst=10))
    new_repositories: Rate = field(default=Rate(per_second=2, burst=200))
    repositories: int = 50_000
    elements: int = 64
    size: int = 1_000_000
    index_commits: int = 1_000_000
    login_age: timedelta = timedelta(hours=1)
