"""The progress of a rotation, shown on a real terminal and as lines."""

from __future__ import annotations

import io
import os
import pty
import re
import sys
from pathlib import Path

import pytest

from goatherd.cli.output import Output
from goatherd.cli.text.progress import RotationProgress, show_delay
from goatherd.rotation.events import Decided, HealthSeen, NodeNotified, NodesSeen, NodesUnknown, StoreTroubled
from goatherd.rotation.machine import HealthView, NodeView, Wait

from .conftest import Goatherd


def on_a_terminal(*arguments: str, **environ: str) -> str:
    """Run the command line with a terminal for all three streams and return what was written to it."""
    command = [sys.executable, "-m", "goatherd", *arguments]
    pid, terminal = pty.fork()
    if pid == 0:  # pragma: no cover - the child
        os.execve(sys.executable, command, {**os.environ, "TERM": "xterm", "COLUMNS": "120", **environ})
    written = b""
    while True:
        try:
            some = os.read(terminal, 4096)
        except OSError:
            break
        if not some:
            break
        written += some
    os.close(terminal)
    os.waitpid(pid, 0)
    return written.decode()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of forkpty:DeprecationWarning")
def test_on_a_terminal_the_view_is_written_over_and_the_result_stays(
    goatherd: Goatherd, store: str, tmp_path: Path
) -> None:
    goatherd("init", "--provider", store)
    written = on_a_terminal("rotate", "--unsafe-without-nodes", "--provider", store)
    assert "\x1b[" in written
    assert "verified" in written
    assert "rotated: " in written


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of forkpty:DeprecationWarning")
def test_errors_are_coloured_on_a_terminal_unless_no_color_is_set() -> None:
    assert "\x1b[31merror: " in on_a_terminal("shwo")
    assert "\x1b" not in on_a_terminal("shwo", NO_COLOR="1")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of forkpty:DeprecationWarning")
@pytest.mark.parametrize("name", ["page-process", "verifier-process"])
def test_processes_that_goatherd_starts_itself_are_no_commands(name: str) -> None:
    assert f"No such command '{name}'" in on_a_terminal(name)


def view(url: str) -> NodeView:
    return NodeView(url=url, reachable=True)


def test_who_joins_and_who_leaves_in_the_middle_is_told_and_so_is_health_when_it_changes() -> None:
    stderr = io.StringIO()
    progress = RotationProgress(Output(as_json=False, stderr=stderr))
    for event in (
        NodesSeen(nodes=(view("http://a"), view("http://b"))),
        NodesSeen(nodes=(view("http://a"), view("http://c"))),
        NodesUnknown(problem="dns://x: no answer"),
        NodesUnknown(problem="dns://x: no answer"),
        HealthSeen(health=HealthView(failures=1, problem="command check: ended with 1")),
        HealthSeen(health=HealthView(failures=0)),
        Decided(action=Wait(nodes=(), reason="stays healthy", until_ms=1_790_000_000_000)),
    ):
        progress.show(event)
    assert stderr.getvalue().splitlines() == [
        "http://b is no longer listed",
        "http://c has joined",
        "the servers could not be discovered: dns://x: no answer; trying again",
        "not healthy, 1 in a row: command check: ended with 1",
        "healthy",
        "waiting until 2026-09-21 14:13:20 UTC: stays healthy",
    ]


def test_an_error_of_aws_is_shown_once_although_each_request_has_another_id() -> None:
    stderr = io.StringIO()
    progress = RotationProgress(Output(as_json=False, stderr=stderr))
    for number in "12":
        error = f"aws: create 'x': Denied (HTTP 400, request {number}): no"
        progress.show(Decided(action=Wait(nodes=(), reason=f"stores follow: us: {error}", until_ms=5)))
        progress.show(StoreTroubled(error=error))
    assert len(stderr.getvalue().splitlines()) == 2


def test_only_a_server_that_reads_the_store_is_said_to_read_it_next() -> None:
    """A manual-restart server does not read it, and its operator would wait in vain."""
    stderr = io.StringIO()
    progress = RotationProgress(Output(as_json=False, stderr=stderr), bare=["http://bare"])
    wait = Wait(nodes=("http://agent", "http://bare"), reason="has it", until_ms=1_790_000_000_000)
    for event in (
        NodeNotified(url="http://agent", is_reached=False),
        NodeNotified(url="http://bare", is_reached=False),
        NodeNotified(url="http://bare", is_reached=False, problem="no answer within 5 s"),
        Decided(action=wait),
    ):
        progress.show(event)
    poll = "waiting for its next poll of the store, at most 30 s unless it is set otherwise"
    assert stderr.getvalue().splitlines() == [
        f"http://agent has no refresh endpoint: {poll}",
        "http://bare was not notified: no answer within 5 s",
        f"waiting until 2026-09-21 14:13:20 UTC for http://agent, http://bare: has it; http://agent: {poll}",
    ]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_that_writes_nothing_over_gets_every_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    stderr = Terminal()
    with RotationProgress(Output(as_json=False, stderr=stderr)) as progress:
        progress.show(NodesUnknown(problem="dns://x: no answer"))
    assert stderr.getvalue() == "the servers could not be discovered: dns://x: no answer; trying again\n"


def test_where_it_is_narrow_nothing_of_an_address_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "60")
    url = "http://goatdb-0.example:8080"
    stderr = Terminal()
    with RotationProgress(Output(as_json=False, stderr=stderr)) as progress:
        progress.show(NodesSeen(nodes=(view(url),)))
    assert "…" not in stderr.getvalue()
    column = "".join(
        line.split(" ")[0] for line in re.sub(r"\x1b\[[^a-zA-Z]*[a-zA-Z]", "", stderr.getvalue()).splitlines()
    )
    assert url in column


def test_a_revocation_states_that_the_store_fails_while_it_tries_again() -> None:
    stderr = io.StringIO()
    show_delay(Output(as_json=False, stderr=stderr), StoreTroubled(error="aws: write 'root': no answer"))
    assert stderr.getvalue() == "the store: aws: write 'root': no answer\n"
