"""Read the cluster at intervals, and hand each view to the process that serves the page.

There are two processes. The process that runs this module reads the store, which holds the private key of the root, and
listens on no port. The process of the page (`goatherd.web.page_process`) answers readers, and gets only views.
SECURITY: no request reaches a process that holds a key (tests/unit/web/test_publisher.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict
from datetime import timedelta
from typing import Any, Final, Protocol

from goatherd.errors import ConfigurationError, GoatherdError, NodeError
from goatherd.serving.own_processes import own_command, own_environment
from goatherd.serving.signals import run_unless_set
from goatherd.telemetry import Event, event_text
from goatherd.times import milliseconds
from goatherd.web.access import PageAddress
from goatherd.web.render import Renderer, view_data
from goatherd.web.view import View, clean_text

START_TIMEOUT: Final = timedelta(seconds=60)
STOP_TIMEOUT: Final = timedelta(seconds=5)
RETRY_PAUSE: Final = timedelta(seconds=5)
ROTATION_INTERVAL: Final = timedelta(seconds=1)
"""Longest time between two views while a rotation is in progress, which can be over in seconds."""

_log = logging.getLogger("goatherd.web")


class ViewSource(Protocol):
    """Protocol of an object that makes the page's views; `goatherd.web.collector.Collector` implements it."""

    async def collect(self) -> View: ...


class PageProcess:
    """The process that serves the page.

    Attributes:
        url: The URL of the page.
    """

    def __init__(self, process: asyncio.subprocess.Process, url: str) -> None:
        self._process = process
        self.url = url

    @property
    def pid(self) -> int:
        return self._process.pid

    async def show(self, view: View | None, problem: GoatherdError | None = None) -> None:
        """Send a view, or None and the error that prevented a new view, to the page; with None the last view stays.

        Raises:
            NodeError: The process that serves the page has ended.
        """
        problem_data = None
        if problem is not None:
            text = f"The identity cannot be read: {clean_text(str(problem))}."
            problem_data = {"text": text, "advice": clean_text(problem.hint)}
        await self._send_message({"view": None if view is None else view_data(view), "problem": problem_data})

    async def _send_message(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message, default=str).encode() + b"\n")
            await self._process.stdin.drain()
        except OSError as error:
            raise _ended_error() from error

    async def wait(self) -> None:
        """Wait until the process that serves the page ends."""
        await self._process.wait()


def _ended_error() -> NodeError:
    return NodeError("the process that serves the page has ended", hint="Its last messages are on standard error.")


@asynccontextmanager
async def start_page_process(address: PageAddress, interval: timedelta) -> AsyncIterator[PageProcess]:
    """Run the process that serves the page while the ``async with`` block runs, and yield it.

    Args:
        address: The address of the page, and the readers that may see it.
        interval: Time between two views.

    Raises:
        MissingExtraError: A library of the extra ``web`` is not installed.
        GoatherdError: The process cannot be started, the address cannot be bound, or the certificate cannot be used.
    """
    Renderer()  # says what to install
    try:
        process = await asyncio.create_subprocess_exec(
            *own_command("page-process"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=own_environment(),
            process_group=0,  # Ctrl-C reaches this process only, which decides when the page stops
        )
    except OSError as error:
        raise NodeError(
            f"cannot start the process that serves the page: {error.strerror}",
            hint="Check the limits on memory and on the number of processes.",
        ) from error
    try:
        assert process.stdout is not None
        page = PageProcess(process, "")
        await page._send_message({"address": asdict(address), "interval_ms": milliseconds(interval)})
        try:
            async with asyncio.timeout(START_TIMEOUT.total_seconds()):
                line = await process.stdout.readline()
        except TimeoutError:
            raise NodeError("the process that serves the page did not start in time", hint="Try again.") from None
        page.url = _read_url(line)
        yield page
    finally:
        await _stop_process(process)


def _read_url(line: bytes) -> str:
    """Return the page's URL from the first line that the process printed.

    Raises:
        GoatherdError: The process has ended, has reported an error, or has printed something else.
    """
    if not line:
        raise _ended_error()
    try:
        answer = json.loads(line)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        text = clean_text(line.decode(errors="replace").strip())[:200]
        raise NodeError(
            f"the process that serves the page printed {text!r} first",
            hint="Only Goatherd may print there. Check what Python runs when it starts, for example sitecustomize.py.",
        )
    if "ready" not in answer:
        kind = ConfigurationError if answer["code"].startswith("configuration") else NodeError
        raise kind(answer["message"], hint=answer["hint"])
    url: str = answer["ready"]
    return url


async def _stop_process(process: asyncio.subprocess.Process) -> None:
    """End the page's process by closing its standard input; kill it if it still runs after `STOP_TIMEOUT`."""
    if process.stdin is not None:
        process.stdin.close()
    try:
        async with asyncio.timeout(STOP_TIMEOUT.total_seconds()):
            await process.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def publish_views(
    source: ViewSource,
    address: PageAddress,
    *,
    interval: timedelta,
    stop: asyncio.Event,
    on_ready: Callable[[str], None],
) -> None:
    """Serve the page, with a new view in each interval, until `stop` is set.

    Args:
        source: Reads the cluster and makes the views.
        address, interval: As for `start_page_process`.
        stop: Event whose setting ends the page.
        on_ready: Called with the page's URL once it is served and has its first view.

    Raises:
        MissingExtraError: A library of the extra ``web`` is not installed.
        ConfigurationError, ProviderError, IdentityError: The first view cannot be made, and a retry would not help.
        NodeError: The address cannot be bound, or the process that serves the page has ended.
    """
    async with AsyncExitStack() as stack:
        page = await run_unless_set(stop, stack.enter_async_context(start_page_process(address, interval)))
        if page is None:
            return
        view = await run_unless_set(stop, _show_first_view(source, page))
        if not stop.is_set():
            on_ready(page.url)
            await _show_views(source, page, interval=interval, stop=stop, view=view, is_shown=True)


@asynccontextmanager
async def publish_beside(source: ViewSource, address: PageAddress, *, interval: timedelta) -> AsyncIterator[str]:
    """Serve the page while the block runs, and yield its URL.

    A failure of the page does not end the block: it is logged, and the page is served again after `RETRY_PAUSE`.

    Args and errors are those of `publish_views` and `start_page_process`.
    """
    stop = asyncio.Event()
    url: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def serve_repeatedly() -> None:
        while not stop.is_set():
            try:
                async with start_page_process(address, interval) as page:
                    _log.info(event_text(Event.PAGE_OPENED, url=page.url))
                    if not url.done():
                        url.set_result(page.url)
                    await _show_views(source, page, interval=interval, stop=stop)
            except Exception as error:  # noqa: BLE001 - the caller waits for the URL, and for the page after that
                if not url.done():
                    url.set_exception(error)
                    return
                unexpected = None if isinstance(error, GoatherdError) else error
                _log.warning(event_text(Event.PAGE_LOST, reason=str(error)), exc_info=unexpected)
                await asyncio.sleep(RETRY_PAUSE.total_seconds())

    serving = asyncio.create_task(serve_repeatedly())
    try:
        yield await url
    finally:
        stop.set()
        await asyncio.wait({serving}, timeout=2 * STOP_TIMEOUT.total_seconds())
        serving.cancel()
        await asyncio.wait({serving})


async def _show_first_view(source: ViewSource, page: PageProcess) -> View | None:
    """Show the first view on the page, and return it; or show why the store cannot be read now, and return None.

    Raises:
        GoatherdError: The store cannot be read, and a retry would not help.
    """
    try:
        view = await source.collect()
    except GoatherdError as error:
        if not error.retryable:
            raise
        await page.show(None, error)
        return None
    await page.show(view)
    return view


async def _show_views(
    source: ViewSource,
    page: PageProcess,
    *,
    interval: timedelta,
    stop: asyncio.Event,
    view: View | None = None,
    is_shown: bool = False,
) -> None:
    """Show a new view in each interval, or in each `ROTATION_INTERVAL` during a rotation, until `stop` is set.

    If `is_shown`, the page shows `view` already, so the first new one follows after an interval.

    Raises:
        NodeError: The process that serves the page has ended.
    """
    ended = asyncio.create_task(page.wait())
    stopping = asyncio.create_task(stop.wait())
    try:
        while not stop.is_set():
            if not is_shown:
                try:
                    view = await run_unless_set(stop, source.collect())
                    problem: GoatherdError | None = None
                except GoatherdError as error:
                    view, problem = None, error
                if not stop.is_set():
                    await page.show(view, problem)
            is_shown = False
            is_rotating = view is not None and view.rotation is not None
            seconds = min(interval, ROTATION_INTERVAL) if is_rotating else interval
            pause = asyncio.create_task(asyncio.sleep(seconds.total_seconds()))
            await asyncio.wait({pause, ended, stopping}, return_when=asyncio.FIRST_COMPLETED)
            pause.cancel()
            if ended.done():
                raise _ended_error()
    finally:
        ended.cancel()
        stopping.cancel()
