"""Vector files that GoatDB produced, and the code that checks them: ``python -m tests.vectors``.

- `runner`: finds the files, dispatches on their ``kind``, prints the report.
- `sheet`: counting and comparing. `notation`: the vectors' notation for JavaScript values.
- `formats`, `signed`, `items`, `repositories`: one function per kind of file.
- `upstream_log`: GoatDB's own log repair, which Goatherd does not copy but the vectors record.
"""

from tests.vectors.runner import check_directory, main

__all__ = ["check_directory", "main"]
