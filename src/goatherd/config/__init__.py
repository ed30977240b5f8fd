"""Configuration: ``goatherd.toml``, environment variables and flags.

`options` lists every option and defines the order of precedence. `values` parses the value of one option. `build` and
`build_servers` open the objects that the options describe: the store, the policy of a rotation, the schedule, a server,
a door.
"""
