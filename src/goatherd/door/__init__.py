"""A verifying reverse proxy ("the door") in front of an unmodified GoatDB server ("the server").

Read the modules in this order: `limits` (limits on one caller's requests; pure), `request_checks` (checks of requests
and commits; pure), `key_filter` (removes private keys from answers; pure), `repository_reader` (reads the server's
repositories as a peer), `trusted_sessions` (decides whose signatures count), `commit_index` (detects commits that would
crash the server), `server_connections` (HTTP connections to the server), `exchange` (one request and its answer),
`delivery` (delivers large pushes in portions), `proxy` (handles each request), `door` (the whole proxy).

A name is imported when it is first used: an agent without a door needs no library of the extra ``node``.
"""

from typing import TYPE_CHECKING

from goatherd.lazy_imports import lazy_attributes

if TYPE_CHECKING:
    from goatherd.door.door import Door, DoorStatus
    from goatherd.door.limits import DoorLimits
    from goatherd.door.request_checks import DoorRule
    from goatherd.door.trusted_sessions import TrustedSessions
    from goatherd.serving.caller_limits import Rate

__all__ = ["Door", "DoorLimits", "DoorRule", "DoorStatus", "Rate", "TrustedSessions"]

__getattr__ = lazy_attributes(
    __name__,
    Door="door",
    DoorLimits="limits",
    DoorRule="request_checks",
    DoorStatus="door",
    Rate="limits",
    TrustedSessions="trusted_sessions",
)
