"""What `goatherd serve` and the door have in common on the network: sockets, HTTP/1.1, and a budget for each caller.

Nothing here knows GoatDB. `sockets` binds addresses, `listener` and `http_connection` are uvicorn's server and
connection with a timeout for everything, `caller_limits` says how much a caller may take before it is known who it is,
`caller_limiter` counts that, `signals` handles signals to stop, and `threads` lets threads take turns more often.
"""
