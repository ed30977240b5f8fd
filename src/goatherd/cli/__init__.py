"""The command line.

`main` finds the command, reads the options and turns errors into exit codes. Each command has a module that reads its
arguments and calls `goatherd.operations`; `text` formats the results, and `output` writes them. A command's module is
imported only when that command is run, so ``goatherd --help`` is fast.
"""
