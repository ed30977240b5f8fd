"""`goatherd status`: the verdict first, what to do last, and all that matters on the first screen."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from goatherd.cli import status as command
from goatherd.cli.main import EXIT_CODES, EXIT_FINDINGS
from goatherd.cli.output import Output
from goatherd.cli.text.identity import roots_lines
from goatherd.cli.text.status import status_data, status_lines
from goatherd.identity.document import HistoryEntry
from goatherd.operations.status import ClusterStatus
from goatherd.web.view import State
from tests.fakes.page_scenes import DAY, NOW, A, B, herd, scenes, status, steady, view_of

from .conftest import Goatherd, Serving

SCENES = scenes()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def show(found: ClusterStatus, stream: io.StringIO) -> list[str]:
    """Return the lines that the command writes."""
    out = Output(as_json=False, stdout=stream)
    view = view_of(found)
    out.result(status_data(found, view), status_lines(view, found, out))
    return stream.getvalue().splitlines()


@pytest.mark.parametrize("width", [80, 120])
def test_the_first_screen_has_20_lines_after_a_dozen_rotations(width: int) -> None:
    rotated = [
        HistoryEntry(at=NOW - 3_600_000 * hour, event="rotated", from_id=A, to_id=B) for hour in range(12, 0, -1)
    ]
    document = replace(steady(), history=tuple(rotated))
    lines = show(status(document, herd(document, 3)), io.StringIO())
    assert sum(max(1, -(-len(line) // width)) for line in lines) <= 20, lines
    assert lines[0] == f"well: Root {B[:8]} signs on 3 of 3 servers."
    assert lines[-1] == "next: nothing to do"
    text = "\n".join(lines)
    assert f"root         {B[:8]} expires in 150 days (" in text
    assert "rotation     due in " in text
    assert f"last change  rotated {A[:8]} -> {B[:8]} 1 h ago (" in text
    assert [line.split() for line in lines if line.startswith("http")] == [
        [f"http://10.0.0.{number}:8080", "well", B[:8], str(number + 3), "s", "ago"] for number in (1, 2, 3)
    ]


@pytest.mark.parametrize(
    ("name", "verdict", "advice"),
    [
        ("steady", "well: ", "nothing to do"),
        ("prepared", "rotating: ", "`goatherd rotate --resume`, or `goatherd rotate --cancel` to end the rotation."),
        ("verified", "rotating: ", "`goatherd rotate --resume`, or `goatherd rotate --rollback` to end the rotation."),
        ("server-away", "failed: ", "Start the server, or remove it from the list of servers."),
        ("rolled-back", "degraded: ", "Remove the cause, then run `goatherd rotate`."),
        ("no-servers", "unknown: ", "Give --node URL for each server."),
    ],
)
def test_it_begins_with_the_verdict_and_ends_with_what_to_do(name: str, verdict: str, advice: str) -> None:
    lines = show(SCENES[name], io.StringIO())
    assert lines[0].startswith(verdict)
    assert lines[-1].startswith("next: ")
    assert lines[-1].endswith(advice)


def test_the_process_that_started_a_rotation_and_what_it_waits_for_are_named() -> None:
    text = "\n".join(show(SCENES["activated"], io.StringIO()))
    assert "started 20 s ago (" in text
    assert ") by ops@host1:4711\n" in text
    assert "\nphase        activated since 15 s ago (" in text
    assert ", deadline in 4 min\n" in text
    assert "\nwaiting for  http://10.0.0.5:8080: signs with the next root\n" in text
    assert f"http://10.0.0.5:8080  previous root  {A[:8]}" in text


def test_a_server_that_does_not_answer_while_the_root_rotates_is_no_good_news() -> None:
    rotating = SCENES["published"]
    away = SCENES["server-away"].servers[4]
    lines = show(replace(rotating, servers=(*rotating.servers[:4], away)), io.StringIO())
    assert lines[0].startswith("degraded: ")
    assert lines[0].endswith(f"; {away.url} did not answer.")


def test_colours_and_signs_are_for_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    found = SCENES["server-away"]
    plain = show(found, io.StringIO())
    coloured = show(found, Terminal())
    assert coloured[0] == plain[0].replace("failed", "\x1b[31m✕ failed\x1b[0m", 1)
    assert sum(line.startswith("\x1b[32m✓ \x1b[0mhttp://10.0.0.") for line in coloured) == 4
    monkeypatch.setenv("NO_COLOR", "1")
    assert show(found, Terminal())[0] == f"✕ {plain[0]}"
    assert not any("\x1b" in line for line in (*plain, *show(found, Terminal())))


def test_an_expired_root_does_not_sign() -> None:
    late = replace(SCENES["steady"], at_ms=NOW + 151 * DAY)
    lines = show(late, io.StringIO())
    assert lines[0] == f"failed: Root {B[:8]} has expired, and no new client is accepted."
    assert lines[1].startswith(f"root         {B[:8]} expired 24 h ago (")
    assert lines[-1].startswith("next: Run `goatherd rotate --replace-expired`")
    out = Output(as_json=False, stdout=io.StringIO())
    states = {line.split()[0]: line.split()[1] for line in roots_lines(out, late.document, late.at_ms)}
    assert states[B] == "EXPIRED"
    assert {row.id: row.state for row in view_of(late).roots}[B] == "expired"


@pytest.mark.slow
def test_the_servers_are_asked_although_the_store_cannot_be_read(
    goatherd: Goatherd, store: str, serve: Callable[..., Serving], tmp_path: Path
) -> None:
    first = goatherd("init", "--provider", store, "--json").json["current"]["id"]
    server = serve("--data", str(tmp_path / "data"), "--provider", store)
    nodes = ("--provider", store, "--node", server.url, "--node", "http://127.0.0.1:1")
    Path(store.removeprefix("file://")).rename(tmp_path / "elsewhere")
    shown = goatherd("status", *nodes)
    assert shown.code == EXIT_CODES["provider"]
    assert shown.out.startswith("failed: The store could not be read: ")
    assert "[provider.not_found]\n" in shown.out
    assert f"{server.url}  answers      {first[:8]}" in shown.out
    assert [line.split()[1:3] for line in shown.out.splitlines() if line.startswith("http://127.0.0.1:1 ")] == [
        ["unreachable", "?"]
    ]
    assert shown.out.splitlines()[-1].startswith("next: ")
    found = goatherd("status", *nodes, "--json")
    assert (found.code, found.json["error"]["code"]) == (EXIT_CODES["provider"], "provider.not_found")
    assert [one["signsWith"] for one in found.json["nodes"]] == [first, None]


def test_watch_shows_the_status_again_until_it_is_interrupted(
    goatherd: Goatherd, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    goatherd("init", "--provider", store)
    pauses = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(command.asyncio, "sleep", pause)
    shown = goatherd("status", "--watch", "--provider", store)
    assert shown.code == 0
    assert shown.out.count("unknown: Root ") == 3
    assert pauses == [5.0] * 3
    assert goatherd("status", "--watch", "--json", "--provider", store).code == 2


def test_without_a_server_nothing_is_said_to_be_well(goatherd: Goatherd, store: str) -> None:
    goatherd("init", "--provider", store)
    shown = goatherd("status", "--provider", store, "--json")
    assert (shown.code, shown.json["state"]) == (EXIT_FINDINGS, State.UNKNOWN)
