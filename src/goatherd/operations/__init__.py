"""The operations of Goatherd: one module for each task on a cluster, a store or a directory.

The command line and the Python API call them. Operations take opened objects (a store, clients of the servers, a
policy) and return data. They read no configuration and print nothing: `goatherd.config` opens the objects, and
`goatherd.cli` prints.

- An identity in a store: `init`, `migrate` (with `migration_files`, `migration_sessions`, `merge_identities` and
  `git_history`), `export`, `copy`, `labels`; `identity_store` reads the identity.
- Servers: `serve`, `run_agent`, `run_door`, `demo` (with its `workload`).
- Rotations: `rotate`, `restore`, `retire`, `revoke`, `sign`, `controller`; `runs` records each run.
- Checks: `status`, `doctor` (with `store_checks`), `audit`, `data` (with `check_data`, `repair_data` and
  `concurrent_creations`), `installation`.
"""
