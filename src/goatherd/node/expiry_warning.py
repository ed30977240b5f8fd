"""Warn that the current root is about to expire, in the log and in the health report.

The server logs the warning at its start, whenever it becomes more urgent, and once a day. It is logged as an error if
the root has expired or must be rotated at once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final

from goatherd.clock import Clock
from goatherd.identity.document import IdentityDocument
from goatherd.identity.key_age import REPLACE_EXPIRED, Urgency, assess_urgency, time_left
from goatherd.telemetry import Event, event_text
from goatherd.times import iso

_log = logging.getLogger("goatherd.node.expiry")

LOOK_EVERY: Final = timedelta(hours=1)
SAY_EVERY: Final = timedelta(days=1)

_LEVELS: Final = {
    Urgency.DUE: logging.WARNING,
    Urgency.SOON: logging.WARNING,
    Urgency.URGENT: logging.ERROR,
    Urgency.EXPIRED: logging.ERROR,
}
_DAY: Final = timedelta(days=1)


class ExpiryWatch:
    """Check how long the current root session is still valid, and log warnings before it expires.

    Args:
        org: The organization's id.
        document: Returns the identity document in use.
        clock: Supplies the current time.
    """

    def __init__(self, org: str, document: Callable[[], IdentityDocument], clock: Clock) -> None:
        self._org = org
        self._document = document
        self._clock = clock
        self._said: tuple[str, Urgency] | None = None
        self._said_at = 0.0

    async def run(self) -> None:
        """Check the expiration of the current root once an hour, until cancelled."""
        while True:
            self.check_expiry()
            await self._clock.sleep(LOOK_EVERY)

    def check_expiry(self) -> None:
        """Log a warning if the current root expires soon, unless the same warning was logged in the last day."""
        document, now_ms = self._document(), self._clock.now_ms()
        stage = assess_urgency(document, now_ms)
        news = (document.current.id, stage)
        age = self._clock.monotonic() - self._said_at
        if stage is Urgency.FINE or (news == self._said and age < SAY_EVERY.total_seconds()):
            return
        self._said, self._said_at = news, self._clock.monotonic()
        _log.log(
            _LEVELS[stage],
            event_text(
                Event.IDENTITY_EXPIRING,
                org=self._org,
                root=document.current.id,
                urgency=stage.value,
                days_left=f"{time_left(document, now_ms) / _DAY:.1f}",
                expires=iso(document.current.session.expiration_ms),
                do=_command_for(stage),
            ),
        )

    def describe_expiry(self) -> dict[str, Any]:
        """Return, for the health report, how long the current root is still valid."""
        document, now_ms = self._document(), self._clock.now_ms()
        return {
            "root": document.current.id,
            "expires": iso(document.current.session.expiration_ms),
            "daysLeft": round(time_left(document, now_ms) / _DAY, 2),
            "urgency": assess_urgency(document, now_ms).value,
        }


def _command_for(stage: Urgency) -> str:
    return REPLACE_EXPIRED if stage is Urgency.EXPIRED else "goatherd rotate"
