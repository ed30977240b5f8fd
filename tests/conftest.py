"""Configuration of all tests: which are slow or deep, a summary of skipped ones, Hypothesis's profiles.

Hypothesis profiles: ``full`` is the default, ``make test-fast`` asks for ``fast``. No deadlines: a busy machine is no
bug. Slow by where they stand: the tests that start servers or kill processes. Single ones elsewhere carry the mark.
Deep are those that repeat what `make test` does a few times, thousands of times: `make test-deep` runs them.

Side by side (`-n auto`): slow tests wait for processes half of their time, so two share a core; and the files that take
longest begin first, whatever the shuffled order, so that no core is without work at the end.
"""

from __future__ import annotations

import functools
import gc
import logging
import os
import re
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.done_once import do_once
from tests.leftover_processes import watch_this_process
from tests.open_connections import connections_left_open, enter_test, watch_connections

HERE = Path(__file__).parent
SLOW_FOLDERS = tuple(HERE / name for name in ("browser", "chaos", "cluster", "contract", "model"))
QUICK_FILES = (
    HERE / "contract" / "test_provider_contract.py",
    HERE / "contract" / "test_contract_catches.py",
    HERE / "model" / "test_small_worlds.py",
    HERE / "model" / "test_model_matches.py",
    HERE / "model" / "test_page.py",
)

LONG_FILES = tuple(
    HERE / name
    for name in (
        "docs/test_pages_typed.py",
        "cluster/test_rotation_on_every_store.py",
        "cluster/test_agent.py",
        "chaos/test_rotation_killed.py",
        "contract/test_interrupted_changes.py",
        "cluster/test_rotation_under_load.py",
    )
)
"""Longest first; each takes a good part of a minute."""

SHOWN = 3000
"""Characters of a failure that are printed at once; the whole of it comes at the end."""

MEMORY = Path("/dev/shm")
LEAST_ROOM = 2 << 30

settings.register_profile("full", deadline=None)
settings.register_profile("fast", deadline=None, max_examples=20)
settings.load_profile("full")


@pytest.fixture(scope="session", autouse=True)
def what_costs_most_is_done_once() -> Iterator[None]:
    with do_once():
        yield


@pytest.fixture(autouse=True)
def loggers_as_they_were() -> Iterator[None]:
    """Undo what a command line that ran in this process has set, which would silence the logs of the next test."""
    before = [(logger, logger.level) for logger in (logging.getLogger(), logging.getLogger("goatherd"))]
    yield
    for logger, level in before:
        if logger.level != level:  # a call clears the cache of every logger
            logger.setLevel(level)


class FailurePrinter:
    """Print each failure when it happens: a run that is stopped by its time limit prints no summary."""

    def __init__(self, terminal: pytest.TerminalReporter) -> None:
        self._terminal = terminal

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._terminal.write_line(f"\nFAILED {report.nodeid} ({report.when})\n{report.longreprtext[-SHOWN:]}")


def pytest_configure() -> None:
    """Watch connections and processes; put the tests' folders into memory if there is room for ten thousand files."""
    watch_connections()
    watch_this_process()
    if "PYTEST_DEBUG_TEMPROOT" in os.environ or not os.access(MEMORY, os.W_OK | os.X_OK):
        return
    found = os.statvfs(MEMORY)
    if found.f_bavail * found.f_frsize >= LEAST_ROOM and not found.f_flag & os.ST_NOEXEC:
        os.environ["PYTEST_DEBUG_TEMPROOT"] = str(MEMORY)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    """Fail the test that has left a connection open, after the end of its event loop."""
    yield
    if left := connections_left_open():
        pytest.fail("\n".join(["connections were left open:", *left]), pytrace=False)


def pytest_runtest_setup(item: pytest.Item) -> None:
    enter_test(item.nodeid)


def pytest_sessionstart(session: pytest.Session) -> None:
    plugins = session.config.pluginmanager
    terminal = plugins.get_plugin("terminalreporter")
    if terminal is not None and not hasattr(session.config, "workerinput"):
        plugins.register(FailurePrinter(terminal), "failure-printer")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print how many tests were skipped for which reason, and the seed that shuffled the order."""
    reasons: Counter[str] = Counter()
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reasons[reason.removeprefix("Skipped: ")] += 1
    if reasons:
        terminalreporter.section(f"{reasons.total()} skipped, by reason")
        for reason, count in reasons.most_common():
            terminalreporter.line(f"{count:5}  {reason}")
    reports = terminalreporter.stats.get("passed", []) + terminalreporter.stats.get("failed", [])
    costs = [value for report in reports for name, value in report.user_properties if name == "cost"]
    if costs:
        terminalreporter.section("the dearest of many hostile inputs, by the place that takes them")
        for cost in sorted(costs):
            terminalreporter.line(str(cost))
    seed = getattr(config.option, "randomly_seed", None)
    if isinstance(seed, int):
        terminalreporter.line(f"shuffled order: repeat it with --randomly-seed={seed}")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """Return two workers for each core, unless only quick tests run, which do not wait."""
    if config.option.markexpr == "not slow":
        return None
    return 2 * len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Skip files with only slow tests if only quick tests run: importing their SDKs takes longer than most tests.

    A folder of such files is left out too, since its conftest.py imports the same SDK.
    """
    if config.option.markexpr != "not slow" or any(collection_path in file.parents for file in QUICK_FILES):
        return None
    return True if is_slow(collection_path) or is_marked_slow(collection_path) else None


@functools.cache
def is_slow(path: Path) -> bool:
    return path not in QUICK_FILES and any(path.is_relative_to(folder) for folder in SLOW_FOLDERS)


def is_marked_slow(path: Path) -> bool:
    """Return whether a file marks all of its tests, in one line, as slow or deep."""
    if path.suffix != ".py":
        return False
    return re.search(r"^pytestmark = .*\b(?:slow|deep)\b", path.read_text(), re.MULTILINE) is not None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if is_slow(item.path):
            item.add_marker(pytest.mark.slow)
        if "deep" in item.keywords:
            item.add_marker(pytest.mark.slow)
    slow_files = {item.path for item in items if "slow" in item.keywords}
    items.sort(key=lambda item: rank(item.path, slow_files))


def pytest_collection_finish() -> None:
    """Exclude the collected tests from garbage collection: there are many, and they live until the end."""
    gc.collect()
    gc.freeze()


def rank(path: Path, slow_files: Collection[Path]) -> int:
    """Return how early a file begins: the long ones, then those with slow tests, then the rest."""
    if path in LONG_FILES:
        return LONG_FILES.index(path)
    return len(LONG_FILES) + (path not in slow_files)
