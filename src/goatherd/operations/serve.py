"""Run Goatherd's own GoatDB server (`goatherd.node`) on a data directory.

The server does not start on a data directory that may belong to another server.
"""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from goatherd.clock import SystemClock
from goatherd.errors import MissingExtraError
from goatherd.operations.first_start import check_first_start
from goatherd.serving.garbage_collection import collect_rarely, exempt_present_objects, share_arena
from goatherd.serving.service_manager import ServiceManager
from goatherd.settings.data_directory import check_data_directory, refuse_running

if TYPE_CHECKING:
    from goatherd.node.server import Server
    from goatherd.operations.data import OpenStore

NODE_LIBRARIES: Final = ("uvicorn", "httptools", "prometheus_client")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerReady:
    """The URL, the organization and the current root's id of a server that has started to answer requests."""

    url: str
    org: str
    signer: str


async def serve_organization(
    server: Server,
    data: Path,
    org: str,
    *,
    creates: bool,
    host: str,
    port: int,
    on_ready: Callable[[ServerReady], None],
    open_store: OpenStore | None = None,
) -> None:
    """Run a server until SIGTERM or SIGINT, which stop it gracefully. A second signal stops it sooner.

    Call it in a process of its own, since it changes the process's garbage collection.

    Args:
        server: The server, not entered yet.
        data: Its data directory.
        org: Its organization.
        creates: Whether to create the data directory, or the organization's directory in it, if missing.
        host: Address to listen on.
        port: Port to listen on; 0 for any free port.
        on_ready: Called once the server answers requests.
        open_store: Opens the store with the identity, with which the data are compared at the first start; None for no
            comparison.

    Raises:
        ConfigurationError: The data directory is missing, or holds something other than this organization.
        IdentityExistsError: The data belong to another identity than that in the store.
        StorageError: Another process has a file of the data open for writing.
        GoatherdError: The identity or the data cannot be loaded, or the address is in use.
    """
    # Imported here, since the command line first asks this module whether the server's libraries are installed.
    from goatherd.node.server import serve

    collect_rarely()
    share_arena()
    check_data_directory(data, [org], create=creates)
    # COMPAT: a GoatDB server takes no lock, and truncates its logs when it starts, even while another server writes
    # them (docs/reference/goatdb-formats.md#defects).
    await asyncio.to_thread(refuse_running, data / org)
    if open_store is not None:
        await check_first_start(data / org, org, open_store)
    service = ServiceManager()

    def report_ready(url: str) -> None:
        exempt_present_objects()
        signer = server.database().pool.current.id
        on_ready(ServerReady(url=url, org=org, signer=signer))
        service.report_ready(f"serves {org} at {url}; root {signer} signed at the start")

    async with service.feed_watchdog(SystemClock()):
        await serve(server, host, port, started=report_ready, stopping=service.report_stopping)


def require_node_extra() -> None:
    """Check that the libraries of the extra ``node`` are installed.

    Raises:
        MissingExtraError: A library is missing; the hint is the install command.
    """
    missing = [name for name in NODE_LIBRARIES if not _is_installed(name)]
    if missing:
        raise MissingExtraError(
            f"serving needs libraries that are not installed: {', '.join(missing)}",
            hint="Install them: pip install 'goatherd[node]'",
        )


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False
