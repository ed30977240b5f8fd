"""The agent: runs an unmodified GoatDB server with keys from a secret store.

Read the modules in this order: `restart_rules` (which changes of the identity require a restart; pure),
`memory_directory` and `settings_file` (where the private key is stored while the server runs), `data_directory_lock`
(one agent for one data directory), `session_log` (the sessions in the server's own log), `child_process` (the server's
process), `server_checks` (whether the server is ready, and whether it exposes its key), `restart_lease` (one server of
the cluster restarts at a time), `organization` (brings one organization's identity from the store to settings.json),
`agent` (starts, restarts and stops the server).
"""

from goatherd.agent.agent import Agent, Rules
from goatherd.agent.child_process import Supervisor
from goatherd.agent.organization import ManagedOrganization
from goatherd.agent.restart_lease import Lease
from goatherd.agent.restart_rules import OnChange

__all__ = ["Agent", "Lease", "ManagedOrganization", "OnChange", "Rules", "Supervisor"]
