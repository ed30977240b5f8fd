"""What processes that serve share: sockets, HTTP/1.1, limits for each caller, and the sources of their secrets.

Nothing here is specific to GoatDB. `sockets` binds addresses. `listener` and `http_connection` are uvicorn's server and
connection with a timeout for every wait. `caller_limits` defines how much an unauthenticated caller may use, and
`caller_limiter` enforces it. `signals` handles signals to stop. `service_manager` reports the state of the process to
systemd. `http_client` makes HTTP clients, and `connection_pool` closes their connections. `certificate_files` loads
certificates into TLS contexts, also when their files are replaced, and `secret_source` reads keys, tokens and PINs.
`server_url` parses the URLs of servers and addresses to listen on. `garbage_collection` adjusts the interpreter.
`own_processes` starts further processes of Goatherd without this process's secrets.
"""
