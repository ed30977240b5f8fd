"""The operations of Goatherd: one module for each task on a cluster, a store or a directory.

The command line calls them, and ``import goatherd`` offers the most important ones. Operations take a store and
servers, by their URLs or open already (`opening`), and return data. They read no configuration and print nothing:
`goatherd.config` reads it, and `goatherd.cli` prints.

- An identity in a store: `init`, `migrate` (with `migration_files`, `migration_sessions`, `merge_identities` and
  `git_history`), `export`, `copy`, `labels`; `identity_store` reads the identity.
- Servers: `serve`, `run_agent`, `run_door`, `demo` (with its `workload`).
- Rotations: `rotate`, `restore`, `retire`, `revoke`, `sign`, `controller`; `runs` records each run.
- Checks: `status`, `doctor` (with `store_checks`), `audit`, `data` (with `check_data`, `repair_data` and
  `concurrent_creations`), `installation`.
- `sessions`: make, encode and introduce sessions; only Python programs call it.
"""
