"""The command line.

`main` finds the command, reads the options and turns errors into exit codes. The module of a command reads its
arguments and calls `goatherd.operations`; `text` formats the results, and `output` writes them. A command's module is
imported only when the command is typed, so that ``goatherd --help`` is fast.
"""
