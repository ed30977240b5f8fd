"""Goatherd's own GoatDB server.

* `log_storage`: commits on disk or in memory, and group commit
* `repository`: the commits of one repository: graph, leaves, heads, items
* `concurrent_creation`: merges of concurrent creations of one key
* `commit_checks`: which commits a repository accepts, beyond `goatherd.admission`
* `views`: the commits that a session may read, and the answer to its sync message
* `engine`: the answers to GoatDB's requests; pure
* `unused_sessions`, `unused_session_exchange`: sessions that have signed nothing yet
* `database`: one organization: identity, engine, threads, disk, peers
* `peer`: synchronizes a database with another server
* `data_check`: verifies the logs of a running server
* `frozen_commits`, `management`, `expiry_warning`: Goatherd's management endpoints, and warnings
* `server`: the HTTP endpoints and the process

Start with `Server`, and `serve` or `ServerListener`, which opens its socket.
"""

from goatherd.node.database import Database, DatabaseRepository
from goatherd.node.peer import PeerStatus
from goatherd.node.server import Server, ServerListener, run, serve

__all__ = ["Database", "DatabaseRepository", "PeerStatus", "Server", "ServerListener", "run", "serve"]
