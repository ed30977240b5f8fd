"""The command line.

`main` finds the command, reads the options and turns errors into exit codes; `output` is the only writer to a terminal;
`commands_store`, `commands_cluster` and `commands_serve` hold the commands; `migration` and `checks` do the work of
`migrate` and `doctor`. Modules are imported when their command is typed, so that ``goatherd --help`` costs nothing.
"""
