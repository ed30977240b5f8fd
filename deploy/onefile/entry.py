"""What the executable of one file runs: the command line, or a form of Python that the command line starts itself.

Goatherd starts processes of its own by ``sys.executable``, which is this executable: ``-m goatherd …`` (the servers of
``goatherd demo``, the process that serves the page, and those that verify signatures), and ``-I -S -c SCRIPT …`` (the
agent's launcher of a server). PyInstaller gives such a process the files that were unpacked for the first one.
"""

import os
import sys


def restore_environment() -> None:
    """Undo what PyInstaller's loader has set for itself, so that no program that is started loads our libraries."""
    before = os.environ.pop("LD_LIBRARY_PATH_ORIG", None)
    if before is not None:
        os.environ["LD_LIBRARY_PATH"] = before
    else:
        os.environ.pop("LD_LIBRARY_PATH", None)


def main() -> None:
    restore_environment()
    if sys.argv[1:4] == ["-I", "-S", "-c"] and len(sys.argv) > 4:
        script = sys.argv[4]
        sys.argv = ["-c", *sys.argv[5:]]
        for name in [name for name in os.environ if name.startswith("_PYI_")]:
            del os.environ[name]
        exec(compile(script, "<launcher>", "exec"), {"__name__": "__main__"})  # noqa: S102 - as Python does with -c
        return
    if sys.argv[1:3] == ["-m", "goatherd"]:
        del sys.argv[1:3]
    from goatherd.__main__ import main as run

    run()


if __name__ == "__main__":
    main()
