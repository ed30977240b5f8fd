"""Checks a directory of vector files that GoatDB produced: ``python -m goatherd.testing.vectors DIR``.

- `runner`: finds the files, dispatches on their ``kind``, prints the report.
- `sheet`: counting and comparing. `notation`: the vectors' notation for JavaScript values.
- `formats`, `signed`, `items`, `repositories`: one function per kind of file.
- `upstream_log`: GoatDB's own log repair, which Goatherd does not copy but the vectors record.
"""

from goatherd.testing.vectors.runner import check_directory, main

__all__ = ["check_directory", "main"]
