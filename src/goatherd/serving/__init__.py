"""Network code that `goatherd serve` and the door share: sockets, HTTP/1.1, and limits for each caller.

Nothing here is specific to GoatDB. `sockets` binds addresses. `listener` and `http_connection` are uvicorn's server and
connection with a timeout for every wait. `caller_limits` defines how much an unauthenticated caller may use, and
`caller_limiter` enforces it. `signals` handles signals to stop. `service_manager` reports the state of the process to
systemd. `http_client` makes HTTP clients, and `connection_pool` closes their connections. `certificate_files` loads
certificates into TLS contexts, also when their files are replaced. `own_processes` starts further processes of
Goatherd without this process's secrets.
"""
