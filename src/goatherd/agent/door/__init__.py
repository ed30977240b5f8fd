"""A verifying reverse proxy in front of an unmodified GoatDB server.

Read in this order: `limits` (how much one caller may ask for; pure), `rules` (what a request and a commit must look
like; pure), `redaction` (private keys in answers; pure), `replica` (what the child holds, read as a peer), `trust`
(whose signature counts), `index` (which commits the child would not survive), `upstream` (HTTP to the child),
`exchange` (between that and `goatherd.serving`, HTTP to callers), `delivery` (large pushes in parts), `proxy` (one
request's way), `door` (all of it together).
"""

from goatherd.agent.door.door import Door, DoorStatus
from goatherd.agent.door.limits import Limits
from goatherd.agent.door.rules import Rule
from goatherd.agent.door.trust import Trust
from goatherd.serving.limits import Rate

__all__ = ["Door", "DoorStatus", "Limits", "Rate", "Rule", "Trust"]
