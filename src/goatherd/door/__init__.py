"""A verifying reverse proxy ("the door") in front of an unmodified GoatDB server ("the server").

Read the modules in this order: `limits` (limits on one caller's requests; pure), `request_checks` (checks of requests
and commits; pure), `key_filter` (removes private keys from answers; pure), `repository_reader` (reads the server's
repositories as a peer), `trusted_sessions` (decides whose signatures count), `commit_index` (detects commits that would
crash the server), `server_connections` (HTTP connections to the server), `exchange` (one request and its answer),
`delivery` (delivers large pushes in portions), `proxy` (handles each request), `door` (the whole proxy).

The package itself imports nothing: an agent without a door needs no library of the extra ``node``.
"""
