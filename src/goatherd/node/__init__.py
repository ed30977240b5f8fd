"""Goatherd's own GoatDB server.

* `log_storage`: stores commits on disk or in memory; requests share disk flushes (group commit)
* `repository`: holds the commits of one repository: their graph, leaves, heads and items
* `concurrent_creation`: merges commits of clients that created the same key at the same time
* `commit_checks`: checks of a commit against its repository, beyond those of `goatherd.admission`
* `views`: the commits that a session may read, and the answer to its sync message
* `engine`: computes the answers to GoatDB's requests, without I/O
* `unused_sessions`, `unused_session_exchange`: sessions that have not signed a request yet
* `database`: runs one organization: identity, engine, threads, disk, peers
* `peer`: synchronizes a database with another server
* `data_check`: verifies the logs while the server runs
* `frozen_commits`, `management`, `expiry_warning`: Goatherd's management endpoints, and warnings
* `server`: the HTTP endpoints and the process

Start with `Server`. `serve` runs one until a signal stops it; `ServerListener` opens its socket.
"""

from goatherd.node.database import Database, DatabaseRepository
from goatherd.node.peer import PeerStatus
from goatherd.node.server import Server, ServerListener, run, serve

__all__ = ["Database", "DatabaseRepository", "PeerStatus", "Server", "ServerListener", "run", "serve"]
