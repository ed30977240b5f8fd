"""``--metrics-file``: what a command that rotates leaves for node_exporter's textfile collector.

What it is: the frame around one run. What it is not: the metrics (`goatherd.metrics`). Rules: a file that cannot be
written is a remark and no failure, whatever became of the run; the file is written after a failure, too.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Final

from goatherd.cli.output import Output
from goatherd.clock import SystemClock
from goatherd.errors import ConfigurationError, GoatherdError
from goatherd.metrics import RotationMetrics, require_library, write_file
from goatherd.operations.identity_store import Store

SUFFIX: Final = ".prom"


@contextmanager
def reported(path: Path | None, store: str, out: Output) -> Iterator[RotationMetrics]:
    """Count what happens inside as one run of a rotation, and write `path` at its end.

    Args:
        path: The file; None for none.
        store: The store's name, which becomes a label.
        out: Where a file that cannot be written is told of.

    Raises:
        ConfigurationError: node_exporter would not look at a file of this name.
        MissingExtraError: The library that writes it is not installed.
    """
    seen = RotationMetrics()
    if path is None:
        yield seen
        return
    if path.suffix != SUFFIX:
        raise ConfigurationError(
            f"{path} does not end in {SUFFIX}: node_exporter would not read it", hint=f"Name it {path.stem}{SUFFIX}."
        )
    require_library()
    try:
        with seen.run(SystemClock()):
            yield seen
    finally:
        try:
            write_file(path, seen.samples(), store=store)
        except OSError as error:
            out.note(f"note: the metrics file {path} was not written: {error.strerror or error}")


@asynccontextmanager
async def remembered(store: Store, seen: RotationMetrics) -> AsyncIterator[None]:
    """Read the identity once more at the end, to be among the metrics; a store that is silent changes nothing."""
    try:
        yield
    finally:
        with suppress(GoatherdError):
            _, seen.document = await store.read()
