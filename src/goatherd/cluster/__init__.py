"""Servers, seen from outside.

- `goatherd.cluster.client`: one server over HTTP; `goatherd.cluster.server_answers`: its answers, checked.
- `goatherd.cluster.discovery`: which servers there are, by address, DNS or Kubernetes Service.
- `goatherd.cluster.introductions`: root introductions that other servers hold.
- `goatherd.cluster.process_mark`: whether an unmodified server has restarted.
"""
