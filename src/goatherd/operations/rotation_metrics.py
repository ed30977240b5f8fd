"""Collect the metrics of a process that rotates.

Apart from `goatherd.metrics`, so that servers, which have other metrics, start without the code of rotations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from goatherd.clock import Clock
from goatherd.errors import GoatherdError, RotationBusyError, RotationError
from goatherd.identity.document import IdentityDocument, Phase
from goatherd.metrics import MetricSample, build_samples, call_samples, identity_samples, signer_samples
from goatherd.providers.call_metrics import CallCounts
from goatherd.rotation.events import Event, NodesSeen, PhaseEntered, RunEnded
from goatherd.rotation.machine import Outcome
from goatherd.signers.verified import SignerCounts
from goatherd.telemetry import Metric

INTERRUPTED: Final = "interrupted"


class RotationMetrics:
    """Metrics of a process that rotates. Pass `record_event` to the `Rotator`, and run the rotator inside `count_run`.

    Attributes:
        calls: The call counts of the store; None to export none.
        document: The identity document as the process last read it; the process sets this attribute.
        next_ms: When the next rotation is planned, in milliseconds since 1970.
        signer_calls: The call counts of signers that this process has used, by scheme.
        is_anchor_reachable: Returns whether the anchor signed at the last check; None if it was not checked.
    """

    def __init__(self, calls: CallCounts | None = None) -> None:
        self.calls = calls
        self.document: IdentityDocument | None = None
        self.next_ms: int | None = None
        self.signer_calls: dict[str, SignerCounts] = {}
        self.is_anchor_reachable: Callable[[], bool | None] = lambda: None
        # Every outcome begins at 0, or its first occurrence would be no increase that a query could see.
        outcomes = (each.name.lower() for each in Outcome)
        self._runs = dict.fromkeys((*outcomes, INTERRUPTED, *RotationError.all_codes()), 0)
        self._ended_ms: int | None = None
        self._succeeded = False
        self._outcome: str | None = None
        self._rotation_id: str | None = None
        self._entered: tuple[Phase, int] | None = None
        self._phases: dict[Phase, float] = {}
        self._reachable: tuple[int, int] | None = None

    def record_event(self, event: Event) -> None:
        """Record an event of a rotation."""
        if isinstance(event, PhaseEntered):
            self._enter_phase(event)
        elif isinstance(event, NodesSeen):
            up = sum(node.reachable for node in event.nodes)
            self._reachable = (up, len(event.nodes) - up)
        elif isinstance(event, RunEnded):
            self._outcome = event.report.outcome.name.lower()

    @contextmanager
    def count_run(self, clock: Clock) -> Iterator[None]:
        """Count the events inside the block as one run of a rotation.

        The metrics show the result of the run once it has ended. Until then, and if the run yields to another process,
        they show the result of the previous run.
        """
        self._outcome, self._entered = None, None
        has_succeeded = False
        try:
            yield
            has_succeeded = True
        except GoatherdError as error:
            self._outcome = self._outcome or error.code
            raise
        finally:
            outcome = self._outcome or INTERRUPTED
            self._runs[outcome] = self._runs.get(outcome, 0) + 1
            if outcome != RotationBusyError.code:
                self._ended_ms, self._succeeded = clock.now_ms(), has_succeeded

    def all_samples(self) -> Iterator[MetricSample]:
        """Return the samples of all metrics of this process."""
        yield from build_samples()
        if self.document is not None:
            yield from identity_samples(self.document)
        for outcome, count in dict(self._runs).items():
            yield MetricSample(Metric.RUNS, count, (outcome,))
        if self._ended_ms is not None:
            yield MetricSample(Metric.RUN_ENDED, self._ended_ms / 1000)
            yield MetricSample(Metric.RUN_SUCCEEDED, self._succeeded)
        for phase, seconds in dict(self._phases).items():
            yield MetricSample(Metric.PHASE_DURATION, seconds, (phase.value,))
        if self._reachable is not None:
            for state, count in zip(("reachable", "unreachable"), self._reachable, strict=True):
                yield MetricSample(Metric.NODES, count, (state,))
        if self.next_ms is not None:
            yield MetricSample(Metric.NEXT_ROTATION, self.next_ms / 1000)
        if (is_reachable := self.is_anchor_reachable()) is not None:
            yield MetricSample(Metric.ANCHOR_REACHABLE, is_reachable)
        if self.calls is not None:
            yield from call_samples(self.calls)
        for counts in list(self.signer_calls.values()):
            yield from signer_samples(counts)

    def _enter_phase(self, event: PhaseEntered) -> None:
        if event.rotation_id is not None and event.rotation_id != self._rotation_id:
            self._rotation_id, self._entered, self._phases = event.rotation_id, None, {}
        if self._entered is not None:
            phase, since_ms = self._entered
            self._phases[phase] = (event.at_ms - since_ms) / 1000
        self._entered = None if event.phase is Phase.STEADY else (event.phase, event.at_ms)
