"""Goatherd's own GoatDB server.

* `log_storage`: stores commits on disk or in memory; one disk flush serves several requests (group commit)
* `repository`: holds the commits of one repository: their graph, leaves, heads and items
* `concurrent_creation`: merges the first commits of an item that several clients have created
* `commit_checks`: checks of a commit against its repository, beyond those of `goatherd.admission`
* `views`: the commits that a session may read, and the answer to its sync message
* `engine`: computes the answers to GoatDB's requests, without I/O
* `unused_sessions`, `unused_session_exchange`: store and copy sessions that have not signed a request yet
* `database`: runs one organization: identity, engine, threads, disk, peers
* `peer`: synchronizes a database with another server
* `data_check`: verifies the logs while the server runs
* `frozen_commits`: stores the lists of valid commits of revoked roots
* `management`: answers Goatherd's management
  requests; `expiry_warning`: warns that the root is about to expire
* `server`: the HTTP endpoints and the process

Read `Server` first. `serve` runs a server until a signal stops it; `ServerListener` opens its socket.
"""

from goatherd.node.database import Database, DatabaseRepository
from goatherd.node.peer import PeerStatus
from goatherd.node.server import Server, ServerListener, run, serve

__all__ = ["Database", "DatabaseRepository", "PeerStatus", "Server", "ServerListener", "run", "serve"]
