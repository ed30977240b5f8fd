"""The operator's health check: when it passes or fails, and that a rotation rolls back in time if it fails."""

from __future__ import annotations

import http.server
import itertools
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta

import pytest

from goatherd.errors import ConfigurationError, NotAdoptedError, UnhealthyError
from goatherd.identity.document import Phase
from goatherd.rotation.events import Event, HealthSeen, PhaseEntered
from goatherd.rotation.health_checks import HTTPProbe
from goatherd.rotation.machine import Outcome
from tests.fakes.herd import Herd
from tests.unit.rotation.conftest import POLICY, MakeHerd, check_steady, document_of, rotator_for

PATIENT = timedelta(seconds=60)
MS = timedelta(milliseconds=1)


class Said:
    """A health check whose result a test sets for each phase of the document."""

    name = "the test"

    def __init__(self, herd: Herd, bad: Callable[[Phase, int], bool]) -> None:
        self.herd, self.bad = herd, bad
        self.asked: list[tuple[Phase, int]] = []

    async def ask(self) -> str | None:
        phase = Phase((await document_of(self.herd)).phase or Phase.STEADY)
        times = sum(one == phase for one, _ in self.asked)
        self.asked.append((phase, self.herd.clock.now_ms()))
        return f"{self.name}: bad" if self.bad(phase, times) else None


async def test_a_rotation_does_not_begin_where_it_is_not_well_already(make_herd: MakeHerd) -> None:
    herd = await make_herd()
    before = await document_of(herd)
    with pytest.raises(UnhealthyError, match="the test: bad"):
        await rotator_for(herd, health=[Said(herd, lambda *_: True)]).rotate()
    assert await document_of(herd) == before
    plan = await rotator_for(herd, health=[Said(herd, lambda *_: True)]).plan()
    assert "the health check fails: the test: bad" in plan.obstacles


async def test_a_rotation_that_is_not_well_is_not_carried_on_to_where_b_signs(make_herd: MakeHerd) -> None:
    herd = await make_herd()
    await rotator_for(herd).rotate(to_phase=Phase.PUBLISHED)
    with pytest.raises(UnhealthyError):
        await rotator_for(herd, health=[Said(herd, lambda *_: True)]).resume()
    assert (await document_of(herd)).phase == Phase.PUBLISHED


@pytest.mark.slow
@pytest.mark.parametrize("phase", [Phase.ACTIVATED, Phase.VERIFIED])
async def test_bad_answers_in_a_row_bring_the_earlier_root_back_in_time_and_the_reason_is_told_everywhere(
    make_herd: MakeHerd, phase: Phase, caplog: pytest.LogCaptureFixture
) -> None:
    herd = await make_herd()
    signal = Said(herd, lambda now, _: now is phase)
    with caplog.at_level(logging.WARNING), pytest.raises(NotAdoptedError, match="not healthy, 3 times in a row") as got:
        await rotator_for(herd, health=[signal]).rotate()
    bad = [at for one, at in signal.asked if one is phase]
    assert len(bad) == POLICY.health_failures
    document = await document_of(herd)
    entry = document.history[-1]
    assert (entry.event, entry.at - bad[0] <= POLICY.health_bound / MS) == ("rolled-back", True)
    assert all(after - before >= POLICY.health_interval / MS for before, after in itertools.pairwise(bad))
    reason = "not healthy, 3 times in a row: the test: bad"
    assert entry.reason == got.value.report.reason == reason
    assert "correct the health check" in got.value.hint
    assert any("rotation.ended" in record.message and reason in record.message for record in caplog.records)
    await check_steady(herd)
    assert herd.refused == 0


@pytest.mark.slow
async def test_one_bad_answer_is_waited_out(make_herd: MakeHerd) -> None:
    herd = await make_herd()
    signal = Said(herd, lambda phase, times: phase is Phase.ACTIVATED and times < 2)
    events: list[Event] = []
    assert (await rotator_for(herd, health=[signal], events=events).rotate()).outcome is Outcome.ROTATED
    assert [event.health.failures for event in events if isinstance(event, HealthSeen)][:3] == [1, 2, 0]
    await check_steady(herd)


@pytest.mark.slow
async def test_a_signal_that_comes_and_goes_ends_with_the_patience(make_herd: MakeHerd) -> None:
    herd = await make_herd()
    policy = replace(POLICY, health_failures=10, health_interval=timedelta(seconds=5))
    signal = Said(herd, lambda phase, _: phase is Phase.ACTIVATED)
    with pytest.raises(NotAdoptedError, match="timeout: expected that the health check passes again"):
        await rotator_for(herd, health=[signal], policy=policy).rotate()


@pytest.mark.slow
async def test_it_is_asked_before_the_beginning_and_while_b_signs_and_watched_before_the_end(
    make_herd: MakeHerd,
) -> None:
    herd = await make_herd()
    signal, events = Said(herd, lambda *_: False), list[Event]()
    await rotator_for(herd, health=[signal], events=events).rotate()
    assert {phase for phase, _ in signal.asked} == {Phase.STEADY, Phase.ACTIVATED, Phase.VERIFIED}
    assert sum(phase is Phase.STEADY for phase, _ in signal.asked) == 1
    entered = [event.at_ms for event in events if isinstance(event, PhaseEntered)]
    assert entered[-1] - entered[-2] >= POLICY.health_soak / MS


async def test_every_signal_must_be_well(make_herd: MakeHerd) -> None:
    herd = await make_herd()
    good, bad = Said(herd, lambda *_: False), Said(herd, lambda phase, _: phase is Phase.ACTIVATED)
    with pytest.raises(NotAdoptedError, match="not healthy"):
        await rotator_for(herd, health=[good, bad]).rotate()


class Raising(Said):
    """A program's own check that raises an exception where another check would report a failure."""

    async def ask(self) -> str | None:
        if await super().ask() is not None:
            raise ValueError("http://user:password@site")
        return None


async def test_a_check_that_raises_has_failed_and_what_it_raises_is_named_but_not_quoted(make_herd: MakeHerd) -> None:
    herd = await make_herd()
    raising = Raising(herd, lambda phase, _: phase is Phase.ACTIVATED)
    with pytest.raises(NotAdoptedError, match="the test: ValueError") as caught:
        await rotator_for(herd, health=[raising]).rotate()
    assert "password" not in str(caught.value)
    assert (await document_of(herd)).current.id == "root-a"
    await check_steady(herd)


async def test_an_operator_who_goes_back_is_not_asked_how_the_cluster_is(make_herd: MakeHerd) -> None:
    herd = await make_herd()
    await rotator_for(herd).rotate(to_phase=Phase.ACTIVATED)
    signal = Said(herd, lambda *_: True)
    assert (await rotator_for(herd, health=[signal]).abandon()).outcome.is_stopped
    assert signal.asked == []


# --- an HTTP probe ----------------------------------------------------------------------------------------------------


class Page(http.server.BaseHTTPRequestHandler):
    """A web server that answers with the status in the requested path, or hangs."""

    hangs = threading.Event()

    def do_GET(self) -> None:
        name = self.path.partition("?")[0].strip("/")
        if name == "hang":
            self.hangs.wait(60)
            return
        self.send_response(int(name))
        self.send_header("content-length", "0")
        self.send_header("location", "/200")
        self.end_headers()

    def log_request(self, code: object = "-", size: object = "-") -> None:
        pass


@pytest.fixture
def pages() -> Iterator[str]:
    Page.hangs.clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        Page.hangs.set()
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(("status", "is_well"), [(200, True), (204, True), (302, False), (404, False), (503, False)])
async def test_well_is_what_answers_with_2xx(pages: str, status: int, is_well: bool) -> None:
    answer = await HTTPProbe(f"http://{pages}/{status}", timeout=PATIENT).ask()
    assert answer == (None if is_well else f"GET http://{pages}/{status}: status {status}")


async def test_credentials_and_query_of_a_probe_are_used_and_not_shown(pages: str) -> None:
    probe = HTTPProbe(f"http://me:s3cr3t@{pages}/503?token=s3cr3t", timeout=PATIENT)
    assert await probe.ask() == f"GET http://{pages}/503: status 503"
    with pytest.raises(ConfigurationError) as caught:
        HTTPProbe("ftp://me:s3cr3t@host/", timeout=PATIENT)
    assert "s3cr3t" not in str(caught.value)


@pytest.mark.slow
async def test_no_answer_in_time_and_no_connection_are_bad_answers(pages: str) -> None:
    slow = await HTTPProbe(f"http://{pages}/hang", timeout=timedelta(milliseconds=200)).ask()
    assert slow == f"GET http://{pages}/hang: no answer within 0.2 s"
    refused = await HTTPProbe("http://127.0.0.1:1/", timeout=PATIENT).ask()
    assert refused == "GET http://127.0.0.1:1/: connection refused"
