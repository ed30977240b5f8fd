"""A GoatDB server of our own.

* `storage`: where commits rest, on disk or in memory
* `repository`: the commits of one repository: graph, leaves, heads, items
* `concurrent_creation`: merges of concurrent creations of one key
* `commit_checks`: which commits a repository accepts, beyond `goatherd.admission`
* `views`: what one requester may see of a repository
* `engine`: what a request means; pure
* `disk`, `pending_commits`: when commits are on the disk; commits whose signers are not trusted yet
* `database`: one organization alive: identity, engine, threads, disk, peers
* `peer`: keeps a database in step with another server
* `server`: the HTTP face and the process

Start with `Server`, and `serve` or `ServerListener` to put it on a socket.
"""

from goatherd.node.database import Database, DatabaseRepository
from goatherd.node.peer import PeerStatus
from goatherd.node.server import Server, ServerListener, run, serve

__all__ = ["Database", "DatabaseRepository", "PeerStatus", "Server", "ServerListener", "run", "serve"]
