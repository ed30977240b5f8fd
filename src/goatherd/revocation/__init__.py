"""Revoke a stolen root: replace it, and make servers reject what it signs from now on.

- `goatherd.revocation.revoker`: replaces the root, completes the list of its commits that stay valid, and reissues its
  sessions.
- `goatherd.revocation.reissue_sessions`: collects the sessions that the revoked root had introduced, and reissues them.
- `goatherd.revocation.introduced_sessions`: finds these sessions in commits, and makes the commits by which the new
  root introduces them.
- `goatherd.revocation.report`: the progress of a revocation, in total and at each server.
"""
