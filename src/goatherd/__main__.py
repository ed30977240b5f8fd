"""``python -m goatherd`` and the ``goatherd`` command."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the command line and end the process with its exit code."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        # Python has None for what was closed (`>&-`), and the next file opened, a key's, would get that number.
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115, PTH123 - for as long as the process lives
    from goatherd.cli.main import run
    from goatherd.cli.output import settle

    code = run(sys.argv[1:], owns_process=True)
    settle()
    sys.exit(code)


if __name__ == "__main__":
    main()
