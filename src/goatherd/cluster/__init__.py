"""Find the servers of a cluster, send requests to them, and observe their state.

- `goatherd.cluster.client`: sends requests to one server; `goatherd.cluster.server_answers`: checks its answers.
- `goatherd.cluster.node`: the requests that Goatherd makes to a server, and what its answers have shown;
  `goatherd.cluster.server_problems`: describes what is wrong with it.
- `goatherd.cluster.discovery`: finds the servers by URL, DNS name or Kubernetes Service.
- `goatherd.cluster.observer`: finds out which roots each server trusts, which commits it holds, which root it signs
  with.
- `goatherd.cluster.session_queries`: reads session commits from a server.
- `goatherd.cluster.flow_probe`: checks whether the servers synchronize.
- `goatherd.cluster.first_identity`: asks the peers whether they trust the first identity that a server reads.
- `goatherd.cluster.introductions`: fetches the root introductions that other servers hold.
- `goatherd.cluster.process_mark`: finds out whether an unmodified server has restarted.
"""
