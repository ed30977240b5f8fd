"""What `goatherd serve` and the door have in common on the network: sockets, HTTP/1.1, and a budget for each caller.

Nothing here knows GoatDB. `addresses` binds sockets, `listener` and `caller` are uvicorn's server and connection with
an end to everything, `gate` counts what callers take before it is known who they are,
`limits` says how much that is, and `threads` lets threads take turns more often.
"""
