"""Format the results of `goatherd.operations`: as lines and tables for a terminal, and as JSON for ``--json``.

Each module formats the results of one command or subject. No module reads a store or contacts a server, and only
`progress` writes, through `goatherd.cli.output`.
"""
