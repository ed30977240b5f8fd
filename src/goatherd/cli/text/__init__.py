"""What people read: lines and tables made of the data that `goatherd.operations` returns.

Each module makes the lines of one subject and the same facts as data for ``--json``. Nothing here decides, reads a
store or asks a server. Only `progress` writes, through `goatherd.cli.output`.
"""
