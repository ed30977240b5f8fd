"""Run the operator's health check, an HTTP probe, and count its consecutive failures during a rotation.

`goatherd.rotation.machine` decides what a failure means for the rotation.

A check that does not end in time has failed. Each failure is described in one short line, which is written to logs and
to the identity document's history. So that it contains no secret, the line has a status, but no output of
a server, and neither the credentials nor the query of a URL.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Final, Protocol
from urllib.parse import urlsplit

from goatherd.clock import Clock
from goatherd.errors import ConfigurationError
from goatherd.rotation.machine import HealthView
from goatherd.serving.http_client import describe_failure, make_http_client
from goatherd.serving.server_url import check_http_url

if TYPE_CHECKING:
    import httpx2

TIMEOUT: Final = timedelta(seconds=5)


class HealthSignal(Protocol):
    """The interface of a health check of the cluster, which a rotation depends on.

    Attributes:
        name: Human-readable name of the check.
    """

    @property
    def name(self) -> str: ...

    async def ask(self) -> str | None:
        """Run the health check; return None if the cluster is healthy, else the reason in one line.

        A check that raises an exception has failed.
        """
        ...


class HTTPProbe:
    """A health check that passes if a GET request is answered with a status of 200 to 299. Redirects are not followed.

    Args:
        url: An http or https URL; credentials and a query in it are used but never shown.
        timeout: Timeout of one request; a request that exceeds it has failed.

    Raises:
        ConfigurationError: `url` is not an http or https URL.
    """

    def __init__(self, url: str, *, timeout: timedelta = TIMEOUT) -> None:
        parts = urlsplit(
            check_http_url(url, hint="Write it as a URL with a scheme, such as http://127.0.0.1:9000/healthy.")
        )
        assert parts.hostname is not None
        self._url = url
        self._timeout = timeout.total_seconds()
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        # SECURITY: the name is logged, so it contains no credentials and no query of the URL
        # (tests/unit/rotation/test_health_checks.py).
        self.name = f"GET {parts.scheme}://{host}{f':{parts.port}' if parts.port else ''}{parts.path}"

    async def ask(self) -> str | None:
        import httpx2

        try:
            async with asyncio.timeout(self._timeout):
                # No pool: a connection from before an outage could still answer and hide the outage.
                is_plain = self._url.startswith("http://")
                async with make_http_client(self._url, verify=not is_plain, timeout=None) as http:
                    return await self._ask_once(http)
        except (TimeoutError, httpx2.TimeoutException):
            return f"{self.name}: no answer within {self._timeout:g} s"
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            return f"{self.name}: {describe_failure(error)}"
        except ConfigurationError as error:
            return f"{self.name}: {error}"

    async def _ask_once(self, http: httpx2.AsyncClient) -> str | None:
        async with http.stream("GET", self._url) as response:
            status = response.status_code
        return None if 200 <= status < 300 else f"{self.name}: status {status}"


async def _ask_signal(signal: HealthSignal) -> str | None:
    """Run one health check. One that raises has failed, so that the rotation is rolled back and not left half-way."""
    try:
        return await signal.ask()
    except Exception as error:  # noqa: BLE001 - a program's own check can raise anything
        # SECURITY: the message may quote a URL with credentials, or an answer
        # (tests/unit/rotation/test_health_checks.py).
        return f"{signal.name}: {type(error).__name__}"


class HealthWatch:
    """Runs the health checks of a rotation at intervals, and counts consecutive failures.

    Args:
        signals: The health checks; all of them must pass.
        clock: Supplies the time, to know when the next check is due.
        interval: Shortest time between two runs of the checks.
    """

    def __init__(self, signals: Sequence[HealthSignal], *, clock: Clock, interval: timedelta) -> None:
        self.signals = tuple(signals)
        self._clock = clock
        self._interval = interval.total_seconds()
        self._ask_once: float | None = None
        self._failures = 0
        self._problem: str | None = None

    async def ask(self) -> str | None:
        """Run all health checks now, concurrently; return what is wrong, or None if all pass.

        A failure does not change the count of consecutive failures.
        """
        answers = await asyncio.gather(*(_ask_signal(one) for one in self.signals))
        return "; ".join(answer for answer in answers if answer is not None) or None

    async def read_result(self, *, anew: bool = False) -> HealthView:
        """Return the latest result of the health checks; run them first if the interval has passed.

        Args:
            anew: Run the checks even if the interval has not passed. Needed after a change of the phase, because an
                older result says nothing about the new phase.
        """
        now = self._clock.monotonic()
        if anew or self._ask_once is None or now - self._ask_once >= self._interval:
            self._ask_once = now
            self._problem = await self.ask()
            self._failures = 0 if self._problem is None else self._failures + 1
        return HealthView(failures=self._failures, problem=self._problem)

    @property
    def is_failing(self) -> bool:
        """Whether the latest run of the health checks has failed."""
        return self._problem is not None

    def forget(self) -> None:
        """Discard the latest result of the health checks, and reset the count of consecutive failures to 0."""
        self._ask_once, self._failures, self._problem = None, 0, None
