"""What `goatherd status` says of a rotation in progress, and what `goatherd rotate` says of restarts."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from goatherd.cli.rotation_text import restart_lines
from goatherd.rotation.events import Report
from goatherd.rotation.machine import Outcome, Phase

from .conftest import Goatherd, Serving

pytestmark = pytest.mark.slow


def test_status_says_since_when_the_phase_lasts_until_when_it_may_and_for_whom_it_waits(
    goatherd: Goatherd, store: str, tmp_path: Path, serve: Callable[..., Serving]
) -> None:
    assert goatherd("init", "--provider", store).code == 0
    server = serve("--data", str(tmp_path / "data"), "--provider", store)
    options = ("--provider", store, "--node", server.url)
    before = json.loads(goatherd("status", *options, "--json").out)
    assert before["rotation"] is None
    assert goatherd("rotate", "--to", "published", *options).code == 0

    ready = goatherd("status", *options)
    assert re.search(r"rotation    published since \S+Z, expected until \S+Z by this configuration", ready.out)
    assert "waiting for nothing; `goatherd rotate --resume` takes the next step" in ready.out

    server.process.kill()
    server.process.wait(60)
    late = json.loads(goatherd("status", *options, "--json").out)["rotation"]
    assert late["phase"] == "published"
    assert late["since"] < late["until"]
    assert any(
        f"{server.url} (no answer): answers a request signed by the next root" in one for one in late["waitingFor"]
    )


def test_the_outcome_of_a_rotation_says_that_no_server_restarted(
    goatherd: Goatherd, store: str, tmp_path: Path, serve: Callable[..., Serving]
) -> None:
    assert goatherd("init", "--provider", store).code == 0
    server = serve("--data", str(tmp_path / "data"), "--provider", store)
    done = goatherd("rotate", "--provider", store, "--node", server.url)
    assert "restarts: none" in done.out
    again = goatherd("rotate", "--provider", store, "--node", server.url, "--json")
    assert json.loads(again.out)["restarts"] == [{"node": server.url, "count": 0}]


def report(restarts: dict[str, int | None]) -> Report:
    return Report(
        outcome=Outcome.ROTATED,
        rotation_id="r",
        from_id="a",
        to_id="b",
        current_id="b",
        phase=Phase.STEADY,
        generation=6,
        restarts=restarts,
        began_ms=0,
        ended_ms=1,
    )


def test_a_server_that_restarted_more_than_once_is_warned_of_and_an_unmodified_one_is_not_known() -> None:
    lines = restart_lines(report({"http://a": 1, "http://b": 2, "http://c": None, "http://d": 0}))
    assert lines == [
        "restarts: http://a 1, http://b 2",
        "restarts not known, since unmodified GoatDB does not tell: http://c",
        "warning: http://b restarted 2 times; one is enough",
    ]
