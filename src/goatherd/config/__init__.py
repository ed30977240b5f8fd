"""Configuration: ``goatherd.toml``, environment variables and flags.

`options` is the list of every option and the order of precedence. `values` reads the text of one option. `build` opens
the objects that the options describe: the store, the policy of a rotation, the schedule, a server, a door.
"""
