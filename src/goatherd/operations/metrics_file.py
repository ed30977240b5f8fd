"""Count one run of a rotation and write its metrics to a file, for node_exporter's textfile collector.

The file is also written after a run that failed. If the file cannot be written, that is reported, and the run's result
stays the same. `goatherd.metrics` defines the metrics.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Final

from goatherd.clock import SystemClock
from goatherd.errors import ConfigurationError, GoatherdError
from goatherd.metrics import RotationMetrics, require_library, write_file
from goatherd.operations.identity_store import Store

SUFFIX: Final = ".prom"


@contextmanager
def write_metrics_file(path: Path | None, store: str, on_failure: Callable[[str], None]) -> Iterator[RotationMetrics]:
    """Count the body of the ``with`` statement as one run of a rotation, and write the metrics to `path` at its end.

    Args:
        path: The file; None to write none.
        store: The name of the store, which becomes a metric label.
        on_failure: Called with a line of text if the file cannot be written.

    Raises:
        ConfigurationError: node_exporter would not read a file of this name.
        MissingExtraError: The library that writes metrics is not installed.
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
        with seen.count_run(SystemClock()):
            yield seen
    finally:
        try:
            write_file(path, seen.all_samples(), store=store)
        except OSError as error:
            on_failure(f"the metrics file {path} was not written: {error.strerror or error}")


@asynccontextmanager
async def read_identity_at_end(store: Store, seen: RotationMetrics) -> AsyncIterator[None]:
    """Read the identity once more at the end, for the metrics. A store that does not answer does not fail the run."""
    try:
        yield
    finally:
        with suppress(GoatherdError):
            _, seen.document = await store.read()
