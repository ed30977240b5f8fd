"""Revoking a stolen root.

- `goatherd.revocation.revoker`: replaces the root, freezes what the cluster holds of it, and reissues its sessions.
- `goatherd.revocation.reissue_sessions`: collects the sessions that the revoked root had introduced, and reissues them;
  `goatherd.revocation.introduced_sessions`: which these are, and their new commits.
- `goatherd.revocation.report`: the progress of a revocation, in total and at each node.
"""
