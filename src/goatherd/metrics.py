"""Metrics for Prometheus: the table of all metrics, their values, and three ways to export them.

Pure functions compute samples from an identity document, a settings' status and a provider's counts.
`goatherd.operations.rotation_metrics` collects the metrics of a process that rotates. Samples are exported as text, by
an HTTP endpoint, or in a file for node_exporter. Most events are counted by the code in which they happen, not here.

Rules:
- The names of the metrics are in `goatherd.telemetry`; everything else about a metric is in `FAMILIES`. Units are
  seconds. Points in time are exported as timestamps, not as ages, because an age in a file is too low when the file is
  read later.
- Label values come from short lists: phases, error codes, URI schemes. The one exception is the id of the current root,
  of which there is only one at a time.
- SECURITY: samples contain only ids, codes and numbers; a document's keys are not read (tests/unit/test_metrics.py).
- ``prometheus_client`` writes the format. It is imported only when metrics are exported.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import goatherd
from goatherd.errors import MissingExtraError
from goatherd.identity.document import IdentityDocument, Phase
from goatherd.identity.key_age import working_life
from goatherd.identity.transitions import SUCCESSES, signing_since_ms
from goatherd.providers.call_metrics import BUCKETS, CallCounts, Durations
from goatherd.settings.base import Origin, SettingsStatus
from goatherd.signers.verified import SignerCounts
from goatherd.telemetry import Metric

if TYPE_CHECKING:
    from prometheus_client.core import CollectorRegistry
    from prometheus_client.core import Metric as Family

TEXT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
NEVER: Final = 0.0
"""The timestamp of an event that has never happened."""
FAILURES: Final = ("cancelled", "rolled-back")
"""The events in a document's history by which a rotation ends without a new current root."""
READABLE: Final = 0o644
"""Mode of a metrics file: node_exporter runs as another user, and metrics hold no secret."""


class MetricKind(StrEnum):
    """The type of a metric in Prometheus."""

    GAUGE = "gauge"
    COUNTER = "counter"
    HISTOGRAM = "histogram"


class Exporter(StrEnum):
    """The programs that export a metric."""

    NODE = "servers"
    DOOR = "doors"
    FRONT = "servers and doors"
    AGENT = "agents"
    ROTATOR = "processes that rotate"
    SIGNER = "processes that use a signer"
    BOTH = "servers and processes that rotate"


@dataclass(frozen=True, slots=True)
class MetricFamily:
    """The description of a metric. `help` is one line, also used as Prometheus' HELP."""

    kind: MetricKind
    where: Exporter
    help: str
    labels: tuple[str, ...] = ()


_gauge = partial(MetricFamily, MetricKind.GAUGE)
_counter = partial(MetricFamily, MetricKind.COUNTER)
_histogram = partial(MetricFamily, MetricKind.HISTOGRAM)

FAMILIES: Final[dict[Metric, MetricFamily]] = {
    Metric.BUILD_INFO: _gauge(Exporter.BOTH, "Always 1; the label is Goatherd's version.", ("version",)),
    Metric.IDENTITY_GENERATION: _gauge(
        Exporter.BOTH, "Generation of the identity in use; rises by one with every write."
    ),
    Metric.IDENTITY_INFO: _gauge(Exporter.BOTH, "Always 1; the label is the id of the current root.", ("root",)),
    Metric.ROOT_SIGNING_SINCE: _gauge(
        Exporter.BOTH,
        "When the current root began to sign, in seconds since 1970; if the document no longer states this, the "
        "earliest time in the document. time() minus this value is the age of the key.",
    ),
    Metric.ROOT_EXPIRES: _gauge(
        Exporter.BOTH,
        "When the current root expires, in seconds since 1970. This value minus time() is the remaining lifetime.",
    ),
    Metric.WORKING_ROOT_LIFETIME: _gauge(
        Exporter.BOTH,
        "Lifetime of the current root from its endorsement to its expiration; only if an anchor has endorsed it. The"
        " root is renewed when a third of its lifetime is left.",
    ),
    Metric.ROTATION_PHASE: _gauge(
        Exporter.BOTH, "1 for the current phase of the rotation, 0 for the others.", ("phase",)
    ),
    Metric.ROTATION_PHASE_ENTERED: _gauge(
        Exporter.BOTH,
        "When the current phase began, in seconds since 1970; in the phase steady, when the identity was last written.",
    ),
    Metric.ROTATION_LAST_SUCCESS: _gauge(
        Exporter.BOTH,
        "When a rotation last ended successfully, in seconds since 1970; 0 if the identity document records none.",
    ),
    Metric.ROTATION_LAST_FAILURE: _gauge(
        Exporter.BOTH,
        "When a rotation was last cancelled or rolled back, in seconds since 1970; 0 if the identity document records "
        "none.",
        ("event",),
    ),
    Metric.SETTINGS_AGE_SECONDS: _gauge(Exporter.NODE, "Seconds since the server last read the store successfully."),
    Metric.SETTINGS_DEGRADED: _gauge(Exporter.NODE, "1 while the last refresh from the store failed or was rejected."),
    Metric.SETTINGS_FAILURES: _gauge(
        Exporter.NODE, "Number of consecutive refreshes from the store that failed or were rejected."
    ),
    Metric.SETTINGS_LAST_KNOWN_GOOD: _gauge(
        Exporter.NODE, "1 while the server uses the identity of its last known good copy."
    ),
    Metric.SETTINGS_BREAKER_OPEN: _gauge(
        Exporter.NODE, "1 while the server reads the store at growing intervals because the store fails."
    ),
    Metric.SETTINGS_WATCHING: _gauge(Exporter.NODE, "1 while the store notifies the server of changes."),
    Metric.STORE_FOLLOWED: _gauge(
        Exporter.NODE,
        "1 if the store of a region answers and holds the identity in use or a later one, else 0, by region.",
        ("region",),
    ),
    Metric.DOCUMENTS_REFUSED: _counter(
        Exporter.NODE, "Number of refreshes whose identity document was rejected, by error code.", ("code",)
    ),
    Metric.DATA_CHECKED: _gauge(
        Exporter.NODE, "1 once the server has read all of its logs since its start, and verified every record."
    ),
    Metric.DATA_RECORDS: _gauge(Exporter.NODE, "Number of commits that the check of the logs has read so far."),
    Metric.DATA_UNUSABLE: _gauge(
        Exporter.NODE,
        "Number of unusable records in the logs: damaged (not a commit) or unverifiable (the signature is invalid or "
        "the signer is unknown).",
        ("kind",),
    ),
    Metric.DATA_UNWRITABLE: _gauge(Exporter.NODE, "Number of repositories whose log cannot be written now."),
    Metric.CONNECTIONS: _gauge(Exporter.FRONT, "Number of open connections from clients and peers."),
    Metric.STOPPED: _counter(
        Exporter.FRONT,
        "Number of rejected requests and, at a door, removed commits, by rule. A server has only the rules too-large, "
        "too-slow and too-many.",
        ("rule",),
    ),
    Metric.PAUSED: _counter(
        Exporter.NODE,
        "Number of delayed requests, by cause: the session has sent too many requests (requests) or has used too much "
        "processor time (work).",
        ("cause",),
    ),
    Metric.UNUSED_SESSIONS: _gauge(
        Exporter.NODE, "Number of sessions that have signed nothing yet and are not in /sys/sessions."
    ),
    Metric.UNUSED_SESSIONS_DROPPED: _counter(
        Exporter.NODE, "Number of sessions that were dropped before they signed anything, because there were too many."
    ),
    Metric.DOOR_REQUESTS: _counter(Exporter.DOOR, "Number of requests that the server behind the door has answered."),
    Metric.DOOR_SESSIONS: _gauge(Exporter.DOOR, "Number of sessions that the door knows."),
    Metric.DOOR_BLIND: _gauge(
        Exporter.DOOR,
        "1 while the door cannot read the server's sessions; it then answers 503 to pushes of unknown sessions.",
    ),
    Metric.DOOR_EXPOSED: _gauge(
        Exporter.DOOR, "1 if the server can be reached without the door, at another address of its machine."
    ),
    Metric.SERVER_STATE: _gauge(
        Exporter.AGENT,
        "1 for the current state of the agent's server, 0 for the others: starting, serving, restarting, stopped.",
        ("state",),
    ),
    Metric.SERVER_RESTARTS: _counter(Exporter.AGENT, "Number of restarts of the server by its agent."),
    Metric.PROVIDER_CALLS: _counter(
        Exporter.BOTH,
        "Number of calls to the store by operation and outcome: ok, cancelled, or an error code. Excludes retries.",
        ("provider", "operation", "outcome"),
    ),
    Metric.PROVIDER_RETRIES: _counter(
        Exporter.BOTH, "Number of retries of calls to the store.", ("provider", "operation")
    ),
    Metric.PROVIDER_CALL_DURATION: _histogram(
        Exporter.BOTH,
        "Duration of calls to the store in seconds, including retries and pauses.",
        ("provider", "operation"),
    ),
    Metric.SIGNER_CALLS: _counter(
        Exporter.SIGNER,
        "Number of calls to the signer by operation and outcome: ok, cancelled, or an error code. Excludes retries.",
        ("signer", "operation", "outcome"),
    ),
    Metric.SIGNER_RETRIES: _counter(
        Exporter.SIGNER, "Number of retries of calls to the signer.", ("signer", "operation")
    ),
    Metric.SIGNER_CALL_DURATION: _histogram(
        Exporter.SIGNER,
        "Duration of calls to the signer in seconds, including retries and pauses.",
        ("signer", "operation"),
    ),
    Metric.SIGNER_INVALID_SIGNATURES: _counter(
        Exporter.SIGNER,
        "Number of signatures that the signer returned and that do not match its public key; none of them was used.",
        ("signer",),
    ),
    Metric.RUNS: _counter(
        Exporter.ROTATOR,
        "Number of runs by outcome: rotated, restored, cancelled, rolled_back, ended, reached, retired, nothing, "
        "interrupted, or an error code.",
        ("outcome",),
    ),
    Metric.RUN_ENDED: _gauge(
        Exporter.ROTATOR,
        "When the last run ended, in seconds since 1970. A run that yields to another process (`rotation.busy`) is left"
        " out.",
    ),
    Metric.RUN_SUCCEEDED: _gauge(
        Exporter.ROTATOR,
        "1 if the last run that has ended had the requested result, else 0; `rotation.busy` is left out.",
    ),
    Metric.PHASE_DURATION: _gauge(
        Exporter.ROTATOR, "Duration of each phase of the last rotation that this process drove, in seconds.", ("phase",)
    ),
    Metric.NODES: _gauge(
        Exporter.ROTATOR, "Number of servers that were reachable or unreachable at the last check.", ("state",)
    ),
    Metric.ANCHOR_REACHABLE: _gauge(
        Exporter.ROTATOR,
        "1 if the signer of the anchor signed a test text at the controller's last check, else 0; absent without an"
        " anchor, and while the identity does not follow from the one before. It is checked every hour, and every five"
        " minutes after a failure.",
    ),
    Metric.ROOT_SIGNER_UP: _gauge(
        Exporter.NODE,
        "1 if the server can sign as the current root, by its last request to the signer, else 0; absent on a server"
        " without --root-signer.",
    ),
    Metric.WITHHELD_ITEMS: _gauge(
        Exporter.NODE,
        "Number of items that are hidden until the signer has signed the merge of their concurrent creations.",
    ),
    Metric.NEXT_ROTATION: _gauge(
        Exporter.ROTATOR, "When the next rotation is planned, in seconds since 1970; absent where none is."
    ),
}
"""Every metric, in the order of the reference page."""


@dataclass(frozen=True, slots=True)
class MetricSample:
    """One sample of a metric: a value, or a histogram's durations. `labels` holds the values of the metric's labels."""

    metric: Metric
    value: float | Durations
    labels: tuple[str, ...] = ()


# --- where values come from ---------------------------------------------------------------------------------------


def build_samples() -> Iterator[MetricSample]:
    """Return the metric that states the version of Goatherd."""
    yield MetricSample(Metric.BUILD_INFO, 1, (goatherd.__version__,))


def identity_samples(document: IdentityDocument) -> Iterator[MetricSample]:
    """Return the metrics of an identity: current root, start and expiration, rotation phase, and last outcomes."""
    record = document.rotation
    phase = Phase.STEADY if record is None else Phase(record.phase)
    entered = document.last_updated if record is None else record.phase_at
    yield MetricSample(Metric.IDENTITY_GENERATION, document.generation)
    yield MetricSample(Metric.IDENTITY_INFO, 1, (document.current.id,))
    since = signing_since_ms(document)
    if since is not None:
        yield MetricSample(Metric.ROOT_SIGNING_SINCE, since / 1000)
    yield MetricSample(Metric.ROOT_EXPIRES, document.current.session.expiration_ms / 1000)
    if (life := working_life(document)) is not None:
        yield MetricSample(Metric.WORKING_ROOT_LIFETIME, life.total_seconds())
    for each in Phase:
        yield MetricSample(Metric.ROTATION_PHASE, each is phase, (each.value,))
    if entered is not None:
        yield MetricSample(Metric.ROTATION_PHASE_ENTERED, entered / 1000)
    yield MetricSample(Metric.ROTATION_LAST_SUCCESS, _last_event(document, SUCCESSES))
    for event in FAILURES:
        yield MetricSample(Metric.ROTATION_LAST_FAILURE, _last_event(document, (event,)), (event,))


def _last_event(document: IdentityDocument, events: Collection[str]) -> float:
    return max((entry.at / 1000 for entry in document.history if entry.event in events), default=NEVER)


def settings_samples(status: SettingsStatus) -> Iterator[MetricSample]:
    """Return the metrics that say how current a server's identity is, and how many identities it has rejected."""
    if status.age is not None:
        yield MetricSample(Metric.SETTINGS_AGE_SECONDS, status.age / timedelta(seconds=1))
    yield MetricSample(Metric.SETTINGS_DEGRADED, status.is_degraded)
    yield MetricSample(Metric.SETTINGS_FAILURES, status.failures)
    yield MetricSample(Metric.SETTINGS_LAST_KNOWN_GOOD, status.origin is Origin.LAST_KNOWN_GOOD)
    yield MetricSample(Metric.SETTINGS_BREAKER_OPEN, status.is_backing_off)
    yield MetricSample(Metric.SETTINGS_WATCHING, status.is_watching)
    for store in status.stores:
        if store.is_followed is not None:
            yield MetricSample(Metric.STORE_FOLLOWED, store.is_followed, (store.region,))
    for code, count in status.refused.items():
        yield MetricSample(Metric.DOCUMENTS_REFUSED, count, (code,))


def common_samples(document: IdentityDocument, status: SettingsStatus) -> Iterator[MetricSample]:
    """Return the metrics of every server, door and agent: version, identity, settings and calls to the store."""
    yield from build_samples()
    yield from identity_samples(document)
    yield from settings_samples(status)
    if status.calls is not None:
        yield from call_samples(status.calls)


def call_samples(calls: CallCounts) -> Iterator[MetricSample]:
    """Return the metrics of a provider's calls: counts and durations."""
    return _count_calls(calls, Metric.PROVIDER_CALLS, Metric.PROVIDER_RETRIES, Metric.PROVIDER_CALL_DURATION)


def signer_samples(calls: SignerCounts) -> Iterator[MetricSample]:
    """Return the metrics of a signer's calls, and how many invalid signatures it has returned."""
    yield from _count_calls(calls, Metric.SIGNER_CALLS, Metric.SIGNER_RETRIES, Metric.SIGNER_CALL_DURATION)
    yield MetricSample(Metric.SIGNER_INVALID_SIGNATURES, calls.invalid_signatures, (calls.provider,))


def _count_calls(calls: CallCounts, ended: Metric, retries: Metric, duration: Metric) -> Iterator[MetricSample]:
    for (operation, outcome), count in calls.ended.items():
        yield MetricSample(ended, count, (calls.provider, operation, outcome))
    for operation, count in calls.retries.items():
        yield MetricSample(retries, count, (calls.provider, operation))
    for operation, durations in calls.durations.items():
        yield MetricSample(duration, durations, (calls.provider, operation))


# --- ways out -----------------------------------------------------------------------------------------------------


def format_samples(samples: Iterable[MetricSample]) -> bytes:
    """Return the samples in Prometheus' text format 0.0.4 (`TEXT_TYPE`). Not for an event loop: it takes milliseconds.

    Raises:
        MissingExtraError: ``prometheus_client`` is not installed.
    """
    listed = list(samples)
    registry = _new_registry(lambda: listed)
    from prometheus_client import generate_latest

    return generate_latest(registry)


@contextmanager
def serve_metrics(samples: Callable[[], Iterable[MetricSample]], *, host: str, port: int) -> Iterator[int]:
    """Answer ``GET /metrics`` with the samples while the block runs, in a thread of its own; yield the port.

    Args:
        samples: Called at each scrape, in that thread.
        host: The address to listen on.
        port: Port to listen on; 0 selects a free one.

    Raises:
        MissingExtraError: ``prometheus_client`` is not installed.
        OSError: The address cannot be bound.
    """
    registry = _new_registry(samples)
    from prometheus_client import make_wsgi_app

    from goatherd.serving.scrape_server import ScrapeServer

    with ScrapeServer(host, port, make_wsgi_app(registry)).running() as bound:
        yield bound


def write_file(path: Path, samples: Iterable[MetricSample], *, store: str) -> None:
    """Write the gauges to a file for node_exporter's textfile collector, which every user can read.

    The file is replaced atomically.

    Counters are left out: a process that runs once counts from zero, so Prometheus would see no increase.

    Args:
        path: Must end in ``.prom``, or node_exporter ignores the file.
        samples: The samples to write.
        store: The value of the label ``store``, so that one machine can have files of several identities.

    Raises:
        MissingExtraError: ``prometheus_client`` is not installed.
        OSError: The file cannot be written; the previous one is unchanged.
    """
    gauges = [sample for sample in samples if FAMILIES[sample.metric].kind is MetricKind.GAUGE]
    registry = _new_registry(lambda: gauges, {"store": store})
    from prometheus_client import generate_latest

    # SECURITY: the file is created under a new random name, and changed only through its descriptor. The directory may
    # belong to another user, who could replace a file of a known name by a link (tests/unit/test_metrics.py).
    new = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, READABLE)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, READABLE)  # under systemd's UMask=0077, only the own user could read it
            file.write(generate_latest(registry))
        new.replace(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise


def require_library() -> None:
    """Check that the library for metrics is installed, before work begins that the metrics measure.

    Raises:
        MissingExtraError: ``prometheus_client`` is not installed.
    """
    try:
        import prometheus_client  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "metrics need a library that is not installed: prometheus-client",
            hint="Install it: pip install 'goatherd[metrics]'",
        ) from error


def _new_registry(
    samples: Callable[[], Iterable[MetricSample]], constant: dict[str, str] | None = None
) -> CollectorRegistry:
    require_library()
    from prometheus_client.core import CollectorRegistry
    from prometheus_client.registry import Collector

    class Samples(Collector):
        def collect(self) -> Iterable[Family]:
            return _build_families(samples(), constant or {})

        def describe(self) -> Iterable[Family]:
            return ()

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Samples())
    return registry


def _build_families(samples: Iterable[MetricSample], constant: dict[str, str]) -> list[Family]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

    found: dict[Metric, CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily] = {}
    for sample in samples:
        about = FAMILIES[sample.metric]
        family = found.get(sample.metric)
        names, values = [*about.labels, *constant], [*sample.labels, *constant.values()]
        if isinstance(sample.value, Durations):
            if family is None:
                family = found[sample.metric] = HistogramMetricFamily(sample.metric, about.help, labels=names)
            assert isinstance(family, HistogramMetricFamily)
            family.add_metric(values, _cumulative_buckets(sample.value), sample.value.total)
            continue
        if family is None:
            make = CounterMetricFamily if about.kind is MetricKind.COUNTER else GaugeMetricFamily
            family = found[sample.metric] = make(sample.metric, about.help, labels=names)
        assert not isinstance(family, HistogramMetricFamily)
        family.add_metric(values, float(sample.value))
    return list(found.values())


def _cumulative_buckets(durations: Durations) -> list[tuple[str, float]]:
    """Return a histogram's buckets: the cumulative count for each upper bound, as Prometheus requires."""
    counts, running = [], 0
    for bound, count in zip((*map(str, BUCKETS), "+Inf"), durations.counts, strict=True):
        running += count
        counts.append((bound, float(running)))
    return counts
