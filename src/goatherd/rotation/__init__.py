"""Replace the root key of a cluster while its servers run.

Pure modules, which do no I/O and read no clock:

- `machine`: phases, legal steps and their conditions as tables; `decide`, which returns the next action.
- `observation`: the data on which `decide` decides. `policy`: timeouts, quorum, lifetimes.
- `obstacles`: what prevents a rotation from starting. `clocks`: whether this machine's clock is wrong.
- `plan`: what a rotation would do. `cross_signing`: the commits by which one root introduces another.

Modules that carry a rotation out:

- `rotator`: the loop that observes the store and the servers, decides, and acts. `events`: the events that it reports.
- `identity_writer`: reads and changes the identity in the store, for a rotation, a revocation and `replacement`. It
  uses `repeating_store`, which retries single calls, and `signed_store` and `store_history`, the checks before a write.
- `attempts`: limits how often an action is tried. `polling`: the pauses and the deadline of a wait.
- `anchor_keys`: collects the signatures of an anchor, whose key is in an HSM or a KMS.
- `health_checks`: the operator's own health checks of the cluster.
- `restorable`: which previous root can sign again. `replacement`: replaces an expired root.
"""
