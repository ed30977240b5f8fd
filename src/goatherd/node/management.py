"""A server's management endpoints: check who may use them, and answer with the health report or the metrics.

Each ``POST`` must be signed by a root, and the signature must cover this server, this endpoint and this body. At
GoatDB's own endpoints (`goatherd.node.engine`) a signature need not cover these, because the signatures of GoatDB's
clients and servers never do.

``GET /goatherd/v1/health`` also reports problems of a server that still answers requests; GoatDB's ``/healthy`` does
not. Reports contain only codes, ids and numbers. `goatherd.metrics` describes each metric.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from goatherd.errors import VerificationError
from goatherd.identity.request_binding import digest_body
from goatherd.metrics import MetricSample, signer_samples
from goatherd.node.engine import Engine, Response, refuse_request
from goatherd.telemetry import Metric

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from goatherd.cluster.server_answers import LogsReport
    from goatherd.remote_keys import RootSigners
    from goatherd.serving.caller_limits import Excess
    from goatherd.settings.base import SettingsStatus


def data_samples(data: LogsReport) -> Iterator[MetricSample]:
    """Return the metrics of the check of the log files."""
    yield MetricSample(Metric.DATA_CHECKED, data.is_complete)
    yield MetricSample(Metric.DATA_RECORDS, data.records)
    yield MetricSample(Metric.DATA_UNUSABLE, data.damaged, ("damaged",))
    yield MetricSample(Metric.DATA_UNUSABLE, data.unverifiable, ("unverifiable",))
    yield MetricSample(Metric.DATA_UNWRITABLE, data.unwritable)


def describe_health(
    status: SettingsStatus, data: LogsReport | None, signing_problem: str | None = None
) -> dict[str, Any]:
    """Return the answer to ``GET /goatherd/v1/health``: ``ok`` or ``degraded``, and the reason.

    A degraded server still answers requests, with the identity that it has. No rotation starts while a server is
    degraded. The reasons are:

    * the code of the error with which the last refresh of the identity failed, or the identity was rejected
    * ``storage``: some logs cannot be written. Reads are answered from the logs; writes to these repositories are
      rejected with status 507
    * `signing_problem`, the code of the error with which the HSM or KMS that holds the root's key does not sign. The
      server then creates no sessions, and does not synchronize

    Damaged records in `data` do not degrade a server, since it withholds these records from clients.
    """
    refusal = status.last_refusal
    reason = refusal.code if status.is_degraded and refusal is not None else None
    cannot_write = data is not None and data.unwritable > 0
    return {
        "status": "degraded" if status.is_degraded or cannot_write or signing_problem else "ok",
        "source": str(status.origin),
        "reason": "storage" if cannot_write else reason or signing_problem,
        "data": None if data is None else data.to_json(),
    }


def caller_samples(
    connections: int, stopped: Mapping[Excess, int], paused: Mapping[str, int], unused: tuple[int, int]
) -> Iterator[MetricSample]:
    """Return the metrics of callers.

    Args:
        connections: Number of open connections.
        stopped: Number of requests that exceeded each limit.
        paused: Number of delayed requests, by the cause of the delay.
        unused: Number of sessions that have not signed a request yet: stored ones and dropped ones.
    """
    yield MetricSample(Metric.CONNECTIONS, connections)
    for excess, count in stopped.items():
        yield MetricSample(Metric.STOPPED, count, (excess.value,))
    for cause, count in paused.items():
        yield MetricSample(Metric.PAUSED, count, (cause,))
    stored, dropped = unused
    yield MetricSample(Metric.UNUSED_SESSIONS, stored)
    yield MetricSample(Metric.UNUSED_SESSIONS_DROPPED, dropped)


def root_signer_samples(problem: str | None, signers: RootSigners, withheld: int) -> Iterator[MetricSample]:
    """Return the metrics of a server that signs with an HSM or a KMS; none if it was started without a signer.

    `problem` is the code of the error that prevents signatures, or None. `withheld` is the number of items that are
    hidden until the merge of their concurrent creations is signed.
    """
    if not signers.states and problem is None:
        return
    yield MetricSample(Metric.ROOT_SIGNER_UP, problem is None)
    yield MetricSample(Metric.WITHHELD_ITEMS, withheld)
    for calls in signers.call_counts:
        yield from signer_samples(calls)


_BIG_BODY: Final = 64 * 1024


async def refuse_unless_root(
    engine: Engine, path: str, body: bytes, header: str | None, *, now_ms: int
) -> Response | None:
    """Return the error response to a management request that no root has signed for this server, else None."""
    try:
        envelope = engine.pool.verify_root_request(header or "", now_ms)
        digest = digest_body(body) if len(body) <= _BIG_BODY else await asyncio.to_thread(digest_body, body)
        engine.guard.check_management_request(envelope, path=path, digest=digest, now_ms=now_ms)
    except VerificationError as error:
        return refuse_request(error)
    return None
