"""Alert the operator: a log event at level ERROR, and a command that the operator has configured.

The caller decides when to send an alert and when to repeat it. An alert contains ids, times and reasons, no key. If the
command fails or does not end in time, that is logged, and has no other effect.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Final

from goatherd.serving.process_group import run_shell_command
from goatherd.telemetry import Event as LogEvent
from goatherd.telemetry import event_text, hide_key_material

_log = logging.getLogger("goatherd.rotation")

COMMAND_TIMEOUT: Final = timedelta(seconds=30)


class AlertKind(StrEnum):
    """The reason for an alert to the operator."""

    ROTATION_FAILED = "rotation-failed"
    """A rotation was cancelled or rolled back, or could not be started or resumed."""
    RETIREMENT_FAILED = "retirement-failed"
    """Old private keys could not be destroyed."""
    """A scheduled time passed without a rotation, and is not made up for."""
    KEY_NEAR_END = "key-near-end"
    """The current root is near its expiration, or past it."""
    ANCHOR_UNREACHABLE = "anchor-unreachable"
    """The anchor did not sign a test text, or was not asked to, several times in a row."""
    STORE_AWAY = "store-away"
    """The identity could not be read, several times in a row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """An alert to the operator: what is wrong with the scheduled rotation, the store or the anchor.

    Attributes:
        reason: The reason for the alert, in one line.
        code: The error's code; None if the reason is not an error.
        failures: Number of consecutive failures so far.
    """

    kind: AlertKind
    reason: str
    root_id: str | None = None
    code: str | None = None
    failures: int = 0

    def to_json(self) -> dict[str, object]:
        return {
            "kind": self.kind.value,
            "reason": hide_key_material(self.reason),
            "root": self.root_id,
            "code": self.code,
            "failures": self.failures,
        }


class Alarm:
    """Logs alerts to the operator, and runs a command for each. The command gets the alert as JSON on standard input.

    Args:
        command: The command line, run by ``/bin/sh -c``; None to log only.
        timeout: Timeout of the command; then the command and the processes that it started are killed.
    """

    def __init__(self, command: str | None = None, *, timeout: timedelta = COMMAND_TIMEOUT) -> None:
        self._command = command
        self._timeout = timeout.total_seconds()

    async def raise_alert(self, alert: Alert) -> None:
        """Log one alert, run the alert command, and return when the command has ended."""
        data = alert.to_json()
        _log.error(event_text(LogEvent.CONTROLLER_ALERT, **data))
        if self._command is None:
            return
        problem = await run_shell_command(self._command, self._timeout, json.dumps(data).encode() + b"\n")
        if problem is not None:
            _log.error(event_text(LogEvent.CONTROLLER_ALERT_FAILED, reason=problem))
