"""Entry point of ``python -m goatherd`` and of the ``goatherd`` command."""

from __future__ import annotations

import gc
import os
import sys


def main() -> None:
    """Run the command line and end the process with its exit code."""
    try:
        _run_command_line()
    except KeyboardInterrupt:  # while modules are imported; `run` reports the others
        sys.exit(130)


def _run_command_line() -> None:
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        # Python sets a stream to None if it was closed (`>&-`). The next file that is opened, such as a key file, would
        # then get the stream's file descriptor.
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115, PTH123 - for as long as the process lives
    if sys.argv[1:] in (["--help"], ["-h"]):
        try:
            _print_help()
            return
        except OSError:
            pass  # no reader, or a full disk: the command line writes the help again, and reports the error
    from goatherd.serving.garbage_collection import collect_rarely

    collect_rarely()
    _leave_no_core()
    # `goatherd.serving.own_processes` starts this, also with the executable of one file. It is no command for
    # operators: at a terminal, it would wait for input and ignore Ctrl-C.
    own = [] if sys.stdin.isatty() else sys.argv[1:]
    if own == ["page-process"]:
        from goatherd.web.page_process import main as serve_page

        sys.exit(serve_page())
    from goatherd.cli.main import run
    from goatherd.cli.output import flush_streams

    code = run(sys.argv[1:], owns_process=True)
    flush_streams()
    gc.freeze()  # otherwise Python looks for garbage once more before the process ends
    sys.exit(code)


def _print_help() -> None:
    """Print the command line's help.

    It imports nothing that only a command needs, so that the help appears quickly (tests/unit/cli/test_start_up.py).
    """
    from goatherd.cli.menu import help_text

    # `goatherd.cli.output` is what only a command needs.
    sys.stdout.write(help_text() + "\n")
    sys.stdout.flush()


def _leave_no_core() -> None:
    """Turn off core dumps of this process and of the processes that it starts.

    SECURITY: a core dump would contain private keys (tests/unit/cli/test_errors.py). With a limit of 0, Linux still
    sends it to a program that ``core_pattern`` names, such as apport. A limit of 1 byte also stops that
    (https://github.com/torvalds/linux/blob/v6.6/fs/coredump.c).
    """
    try:
        import resource
    except ImportError:  # not on Windows, which writes none by itself
        return
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (1, 1))
    except ValueError:  # the limit is 0 already, and only root may raise it
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    main()
