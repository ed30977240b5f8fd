"""Answer monitoring's requests for health and metrics, for a door (reverse proxy) and for the agent of a server.

Requests for GoatDB's own ``/healthy`` are passed on to the server. Answers contain only codes, ids and numbers.
`goatherd.metrics` describes each metric.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from goatherd.door.request_checks import DoorRule
from goatherd.metrics import TEXT_TYPE, MetricSample, common_samples, format_samples
from goatherd.telemetry import Event, Metric
from goatherd.wire.json import to_json_bytes

if TYPE_CHECKING:
    from goatherd.door.door import DoorStatus
    from goatherd.identity.document import IdentityDocument
    from goatherd.settings.base import SettingsProvider, SettingsStatus

HEALTH_PATH: Final = "/goatherd/v1/health"
METRICS_PATH: Final = "/goatherd/v1/metrics"
JSON_TYPE: Final = b"application/json"
STATES: Final = ("starting", "serving", "restarting", "stopped")
"""State of an agent, as `goatherd.agent.agent.Agent.describe` returns it."""


def content_type_of(path: str) -> bytes:
    """Return the content type of the answer for a path below ``/goatherd/v1/``."""
    return TEXT_TYPE.encode() if path == METRICS_PATH else JSON_TYPE


def health_answer(status: SettingsStatus, door: DoorStatus | None, state: str | None = None) -> dict[str, Any]:
    """Return the answer to ``GET /goatherd/v1/health``: ``ok``, or ``degraded`` and the first reason.

    Args:
        status: How current the identity in use is, and whether the last refresh failed.
        door: The door's status; None without a door.
        state: The state of the agent's server, such as ``serving``; None without an agent.
    """
    reason: str | None = None
    if status.is_degraded:
        reason = "settings" if status.last_refusal is None else status.last_refusal.code
    elif state is not None and state != "serving":
        reason = f"server.{state}"
    elif door is not None and door.is_blind:
        reason = Event.DOOR_BLIND.value
    elif door is not None and door.is_exposed:
        reason = Event.DOOR_SERVER_EXPOSED.value
    return {
        "status": "ok" if reason is None else "degraded",
        "source": str(status.origin),
        "reason": reason,
        "server": state,
        "door": None if door is None else {"blind": door.is_blind, "exposed": door.is_exposed},
    }


def door_samples(door: DoorStatus) -> Iterator[MetricSample]:
    """Return the metrics of a door (reverse proxy)."""
    yield MetricSample(Metric.CONNECTIONS, door.connections)
    for rule in DoorRule:
        yield MetricSample(Metric.STOPPED, door.stopped.get(rule, 0), (rule.value,))
    yield MetricSample(Metric.DOOR_REQUESTS, door.handed_on)
    yield MetricSample(Metric.DOOR_SESSIONS, door.sessions)
    yield MetricSample(Metric.DOOR_BLIND, door.is_blind)
    yield MetricSample(Metric.DOOR_EXPOSED, door.is_exposed)


def agent_samples(agent: Mapping[str, Any]) -> Iterator[MetricSample]:
    """Return the metrics of an agent: the restarts and the state of its server."""
    yield MetricSample(Metric.SERVER_RESTARTS, agent["restarts"])
    for state in STATES:
        yield MetricSample(Metric.SERVER_STATE, agent["state"] == state, (state,))


async def metrics_answer(
    document: IdentityDocument, status: SettingsStatus, door: DoorStatus | None, agent: Mapping[str, Any] | None = None
) -> bytes:
    """Return the answer to ``GET /goatherd/v1/metrics``.

    Args:
        document: The identity document in use.
        status: How current the identity in use is, and whether the last refresh failed.
        door: The door's status; None without a door.
        agent: The state of the agent, as `Agent.describe` returns it; None without an agent.

    Raises:
        MissingExtraError: The library that writes metrics is not installed.
    """
    samples = [*common_samples(document, status)]
    if door is not None:
        samples += door_samples(door)
    if agent is not None:
        samples += agent_samples(agent)
    return await asyncio.to_thread(format_samples, samples)


class DoorAPI:
    """Answers requests below ``/goatherd/v1/`` for a door without an agent.

    Args:
        settings: The settings from which the door gets its identity.

    Attributes:
        figures: Function that returns the door's status; None until the door exists.
    """

    def __init__(self, settings: SettingsProvider) -> None:
        self._settings = settings
        self.figures: Callable[[], DoorStatus] | None = None

    async def answer_request(
        self, method: str, path: str, query: str, signature: str, body: bytes = b""
    ) -> tuple[int, bytes]:
        """Answer a request below ``/goatherd/v1/``: return status and body; only health and metrics exist."""
        del query, signature, body
        door = None if self.figures is None else self.figures()
        if method == "GET" and path == HEALTH_PATH:
            return 200, to_json_bytes(health_answer(self._settings.status, door))
        if method == "GET" and path == METRICS_PATH:
            return 200, await metrics_answer(self._settings.settings.document, self._settings.status, door)
        return 404, b""
