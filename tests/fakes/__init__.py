"""Fakes that the tests run against: stores, servers and networks that answer as their documentation says, or fail.

- `aws_fake`, `azure_fake`, `gcp_fake`, `kubernetes_fake`: a platform's secret store on the wire.
- `moto`, `openbao`: emulators that others wrote, found and started. `emulator`: what both have in common.
- `iam_evaluator`: whether an IAM policy allows a request.
- `herd`: simulated GoatDB nodes, for rotations without a network.
- `memory_log`: a repository's log without a file.
- `goatdb_paths`, `goatdb_rules`: GoatDB's functions for paths, and other rules of GoatDB.
- `upstream_child`: a stand-in for an unmodified GoatDB server that is wrong where GoatDB is wrong.
- `faults`: a proxy that loses, delays and cuts what passes through.
"""
