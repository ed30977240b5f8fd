"""Check or repair a server's data directory: every organization in it, and the signatures of its commits.

The logs of one organization are checked by `goatherd.operations.check_data` and repaired by
`goatherd.operations.repair_data`. No server may run on the directory. Signatures are verified with the identity in the
store. Without a store they are verified with the roots that the server's own files name, and without such files they
are not verified.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path

from goatherd.clock import SystemClock
from goatherd.operations.check_data import (
    Anchor,
    DataReport,
    check_organization,
    find_anchor,
    find_organizations,
    lock_organization,
)
from goatherd.operations.identity_store import Store
from goatherd.operations.repair_data import Repair, RepairPeer, read_peers, repair_organization

OpenStore = Callable[[str], AbstractAsyncContextManager[Store]]
"""Opens the store of one organization."""


async def check_data(
    path: Path, *, org: str | None, open_store: OpenStore | None, peers: Sequence[RepairPeer] = ()
) -> list[DataReport]:
    """Read every record of every organization, and compare the sessions with those of other servers. Changes nothing.

    Args:
        path: A data directory, or the directory of one organization.
        org: The organization to check; None for all.
        open_store: Opens the store with an organization's identity; None to read no store.
        peers: Other servers of the cluster.

    Raises:
        ConfigurationError: The path holds no such organization, or there are peers but no roots to verify their commits
            with.
        StorageError: A server runs on the directory, or a log cannot be read.
        ProviderError, IdentityError: The identity cannot be read.
    """
    reports = []
    for name, directory in find_organizations(path, org):
        anchor = await _read_anchor(name, directory, open_store)
        with lock_organization(directory) as logs, _verification_threads() as executor:
            held, problems = await read_peers(logs, name, anchor, peers, executor)
            report = await asyncio.to_thread(check_organization, logs, name, anchor, executor, held)
            reports.append(replace(report, problems=problems))
    return reports


async def repair_data(
    path: Path, *, org: str | None, open_store: OpenStore | None, peers: Sequence[RepairPeer] = ()
) -> list[Repair]:
    """Repair the logs of every organization, with commits from other servers.

    Args:
        path: A data directory, or the directory of one organization.
        org: The organization to repair; None for all.
        open_store: Opens the store with an organization's identity; None to read no store.
        peers: Other servers of the cluster, which may hold the commits that are damaged here.

    Raises:
        ConfigurationError: The path holds no such organization, or there are peers but no roots to verify their commits
            with.
        StorageError: A server runs on the directory, or a log cannot be read or written. The repair can be run again.
        ProviderError, IdentityError: The identity cannot be read.
    """
    repairs = []
    for name, directory in find_organizations(path, org):
        anchor = await _read_anchor(name, directory, open_store)
        with lock_organization(directory) as logs, _verification_threads() as executor:
            repairs.append(await repair_organization(logs, name, anchor, peers, executor))
    return repairs


async def _read_anchor(org: str, directory: Path, open_store: OpenStore | None) -> Anchor | None:
    if open_store is None:
        return find_anchor(directory, SystemClock().now_ms())
    async with open_store(org) as store:
        _, document = await store.read()
    return Anchor.from_document(document, store.name)


def _verification_threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="goatherd-data")
