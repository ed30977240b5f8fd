"""Servers, seen from outside.

- `goatherd.cluster.client`: one server over HTTP; `goatherd.cluster.server_answers`: its answers, checked.
- `goatherd.cluster.node`: the requests that Goatherd makes to a server, and what a server has shown.
- `goatherd.cluster.discovery`: which servers there are, by address, DNS or Kubernetes Service.
- `goatherd.cluster.observer`: what each server trusts, holds and signs with.
- `goatherd.cluster.session_queries`: reads session commits from a server.
- `goatherd.cluster.flow_probe`: whether the servers synchronize.
- `goatherd.cluster.introductions`: root introductions that other servers hold.
- `goatherd.cluster.process_mark`: whether an unmodified server has restarted.
"""
