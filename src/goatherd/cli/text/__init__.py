"""Format the results of `goatherd.operations`: lines and tables for a terminal, and data for ``--json``.

Each module formats the results of one command or subject. No module reads a store or contacts a server, and only
`progress` writes, through `goatherd.cli.output`.
"""
