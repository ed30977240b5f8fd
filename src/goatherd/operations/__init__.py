"""What the command line and Python programs call: one module for each operation on a cluster, store or directory.

Operations take opened objects (a provider, node clients, a policy) and return data. They read no configuration and
print nothing; `goatherd.config` opens the objects, `goatherd.cli` prints.

- An identity in a store: `init`, `migrate` (with `migration_files`, `migration_sessions`, `merge_identities` and
  `git_history`), `export`, `copy`, `labels`; `identity_store` is the open store.
- Servers: `serve`, `run_agent`, `run_door`, `demo` (with its `workload`).
- Rotations: `rotate`, `restore`, `retire`, `revoke`, `sign`, `controller`; `runs` and `metrics_file` are the frame of
  one run.
- Checks: `status`, `doctor` (with `store_checks`), `audit`, `data` (with `check_data`, `repair_data` and
  `concurrent_creations`), `installation`.
"""
