"""Goatherd's own GoatDB server.

* `log_storage`: stores commits on disk or in memory; one disk flush serves several requests (group commit)
* `repository`: holds the commits of one repository: their graph, leaves (commits without children), heads and items
* `concurrent_creation`: merges the first commits of an item that several clients have created at the same time
* `commit_checks`: compares a new commit with its repository, in addition to the checks in `goatherd.admission`
* `views`: selects the commits that a session may read, and builds the answer to its sync message
* `engine`: computes the answers to GoatDB's requests, without I/O
* `unused_sessions`: stores new sessions until they sign their first request
* `unused_session_exchange`: copies these new sessions to the other servers
* `database`: runs one organization: its identity, engine, threads, disk, and peers (the other servers)
* `peer`: synchronizes a database with another server
* `data_check`: verifies the logs while the server runs
* `frozen_commits`: stores the lists of those commits of revoked roots that stay valid
* `management`: answers the requests to Goatherd's management endpoints
* `expiry_warning`: warns that the current root is about to expire
* `server`: provides the HTTP endpoints and runs the process

Start reading with the class `Server`. `serve` runs a server until a signal stops it; `ServerListener` opens its socket.
"""

from goatherd.node.database import Database, DatabaseRepository
from goatherd.node.peer import PeerStatus
from goatherd.node.server import Server, ServerListener, run, serve

__all__ = ["Database", "DatabaseRepository", "PeerStatus", "Server", "ServerListener", "run", "serve"]
