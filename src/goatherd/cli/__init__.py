"""The command line.

`main` finds the command, reads the options and turns errors into exit codes; `output` is the only writer to a terminal.
A command's module parses, calls `goatherd.operations` and prints; `text` holds what people read. Modules are imported
when their command is typed, so that ``goatherd --help`` costs nothing.
"""
