"""Runs an unmodified GoatDB server with keys from a store.

Read in this order: `plan` (what a server must be told, and when; pure), `memory` and `settings_file` (where the key
lies while the server runs), `claim` (one agent for one data directory), `sessions` (who is in the server's own log),
`supervisor` (one child process), `question` (what an attacker would ask), `lease` (one node at a time), `handover` (one
organization's way from the store to the server), `agent` (the loop).
"""

from goatherd.agent.agent import Agent, Rules
from goatherd.agent.handover import Handover
from goatherd.agent.lease import Lease
from goatherd.agent.plan import OnChange
from goatherd.agent.supervisor import Supervisor

__all__ = ["Agent", "Handover", "Lease", "OnChange", "Rules", "Supervisor"]
