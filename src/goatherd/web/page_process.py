"""The process that serves the status page (``python -m goatherd page-process``).

It reads from standard input one JSON object a line: first the address on which to serve the page, then the views. It
ends when its standard input ends.

SECURITY: the process has no store credentials in its environment, no connection to a store or a server, and no root
key, so an attacker who takes it over gets none of these (tests/unit/web/test_publisher.py).
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from goatherd.clock import Clock, SystemClock
from goatherd.errors import GoatherdError
from goatherd.serving.caller_limiter import CallerLimiter
from goatherd.serving.caller_limits import CallerLimits, Rate
from goatherd.serving.certificate_files import CertificateFiles
from goatherd.serving.listener import HTTPListener
from goatherd.telemetry import Event, event_text
from goatherd.web.access import PageAddress, open_tls
from goatherd.web.app import PageApp

LONGEST_LINE: Final = 64 * 1024 * 1024
GRACE: Final = timedelta(seconds=2)
CERTIFICATE_CHECK: Final = timedelta(minutes=1)
"""Time between two checks whether the certificate was renewed, which happens days before it expires."""
LIMITS: Final = CallerLimits(
    body_bytes=4096,
    header_bytes=16 * 1024,
    connections=1000,
    connections_per_address=600,
    requests=Rate(per_second=500, burst=1000),
    new_sessions=Rate(per_second=0.2, burst=20),
)
"""`requests` is enough for hundreds of pages behind one proxy, which poll every second during a rotation.
`new_sessions` limits how often an address may try a token."""

_log = logging.getLogger("goatherd.web")


def read_address(data: dict[str, Any]) -> PageAddress:
    """Return the page's address from the JSON object in the first line of standard input."""
    files = {name: None if data[name] is None else Path(data[name]) for name in ("certificate", "key")}
    return PageAddress(**data | files | {"proxies": tuple(data["proxies"])})


async def serve_page(lines: asyncio.StreamReader, clock: Clock) -> None:
    """Serve the page at the address in the first of the `lines`, and show the views in the lines after it.

    Args:
        lines: Standard input; see the module.
        clock: Measures what readers use, and when to check the files of the certificate.

    Raises:
        GoatherdError: The address cannot be bound, or the certificate cannot be used.
    """
    first = json.loads(await lines.readline())
    address = read_address(first["address"])
    limiter = CallerLimiter(LIMITS, clock=clock, forwarded_by=address.proxies)
    app = PageApp(address, limiter, clock=clock, interval_ms=first["interval_ms"])
    files = open_tls(address)
    tls = None if files is None else files.context
    # The page measures ages by the header `Date`, since the reader's clock may be wrong.
    listener = HTTPListener(app, address.host, address.port, limiter=limiter, has_date=True, tls=tls)
    await listener.start()
    renewing = None if files is None else asyncio.create_task(renew_certificate(files, clock))
    try:
        _send_message({"ready": listener.url})
        while line := await lines.readline():
            message = json.loads(line)
            app.publish(message["view"], message["problem"])
    finally:
        if renewing is not None:
            renewing.cancel()
        await listener.stop(GRACE)


async def renew_certificate(files: CertificateFiles, clock: Clock) -> None:
    """Load the certificate and its key again, for new connections, whenever their files were replaced. Never returns.

    A pair that cannot be used is logged once; until another pair can be used, the page is served with the earlier one.
    """
    reported = ""
    while True:
        await clock.sleep(CERTIFICATE_CHECK)
        try:
            await files.load_if_replaced()
            problem = ""
        except (OSError, ValueError) as error:
            problem = str(error)
            if problem != reported:
                _log.warning(event_text(Event.PAGE_CERTIFICATE_REFUSED, reason=problem))
        reported = problem


def main() -> int:
    """Run the process of the status page until its standard input ends; return the exit code."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")  # as the command that started it logs
    return asyncio.run(_run_page())


async def _run_page() -> int:
    # systemd sends its signal to every process of a unit; the parent decides when to stop.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    lines = asyncio.StreamReader(limit=LONGEST_LINE)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    try:
        await serve_page(lines, SystemClock())
    except GoatherdError as error:
        _send_message({"code": error.code, "message": str(error), "hint": error.hint})
        return 1
    return 0


def _send_message(message: dict[str, str]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()
