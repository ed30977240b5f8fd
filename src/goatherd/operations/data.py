"""Check or repair a server's data directory: lock each organization in it, and find the roots that verify its commits.

The logs of one organization are checked by `goatherd.operations.check_data` and repaired by
`goatherd.operations.repair_data`. No server may run on the directory. Signatures are verified with the identity in the
store. If no store is configured, the roots in the server's own files are used; if these files are missing, signatures
are not verified.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

from goatherd.agent.data_directory_lock import LOCK_NAME as AGENT_LOCK_NAME
from goatherd.clock import SystemClock
from goatherd.errors import AgentBusyError, ConfigurationError, IdentityError, StorageError
from goatherd.files import lock_file
from goatherd.identity.settings_json import SETTINGS_NAME, from_settings
from goatherd.identity.succession import TrustCheckpoint
from goatherd.node.log_storage import LogDirectory
from goatherd.operations.check_data import DataReport, TrustedRoots, check_organization
from goatherd.operations.identity_store import Store
from goatherd.operations.repair_data import Repair, RepairPeer, read_peers, repair_organization
from goatherd.settings.data_directory import (
    SEEN_NAME,
    is_organization_directory,
    list_entries,
    organization_directories,
    refuse_running,
)
from goatherd.verifiers import verification_threads

OpenStore = Callable[[str], AbstractAsyncContextManager[Store]]
"""Opens the store of one organization."""


async def check_data(
    path: Path, *, org: str | None, open_store: OpenStore | None, peers: Sequence[RepairPeer] = ()
) -> list[DataReport]:
    """Read every record of every organization, and compare the sessions with those of other servers. Changes nothing.

    Args:
        path: A data directory, or the directory of one organization.
        org: The organization to check; None for all.
        open_store: Opens the store with an organization's identity; None to use the roots in the server's own files.
        peers: Other servers of the cluster, whose sessions are compared with those in the directory.

    Raises:
        ConfigurationError: The path holds no such organization, or there are peers but no roots to verify their commits
            with.
        StorageError: A server runs on the directory, or a log cannot be read (or written).
        ProviderError, IdentityError: The identity cannot be read.
    """
    reports = []
    for name, directory in find_organizations(path, org):
        trusted = await _read_trusted_roots(name, directory, open_store)
        with lock_organization(directory, only_reads=True) as logs, verification_threads("goatherd-data") as executor:
            held, problems = await read_peers(logs, name, trusted, peers, executor)
            report = await asyncio.to_thread(check_organization, logs, name, trusted, executor, held)
            reports.append(replace(report, problems=problems))
    return reports


async def repair_data(
    path: Path, *, org: str | None, open_store: OpenStore | None, peers: Sequence[RepairPeer] = ()
) -> list[Repair]:
    """Repair the logs of every organization in a data directory, with commits from other servers.

    Args and errors are those of `check_data`. After an error, the repair can be run again.
    """
    repairs = []
    for name, directory in find_organizations(path, org):
        trusted = await _read_trusted_roots(name, directory, open_store)
        with lock_organization(directory) as logs, verification_threads("goatherd-data") as executor:
            repairs.append(await repair_organization(logs, name, trusted, peers, executor))
    return repairs


def find_organizations(path: Path, org: str | None) -> list[tuple[str, Path]]:
    """Return the name and directory of each organization in a data directory, or of the one at `path`.

    Args:
        path: A data directory, or the directory of one organization.
        org: The only organization to return, or None for all. If `path` is the directory of one organization, `org` is
            its name, and None stands for the name of the directory.

    Raises:
        ConfigurationError: The path holds no organization, or not the one named by `org`.
        StorageError: The directory cannot be read.
    """
    if not path.is_dir():
        raise ConfigurationError(f"{path} is not a directory", hint="Name the data directory of a server.")
    found = [(one.name, one) for one in organization_directories(path)]
    if not found and is_organization_directory(path):
        path = Path(os.path.abspath(path))  # noqa: PTH100 - so that it has a parent, with the lock of an agent
        return [(org or path.resolve().name, path)]
    chosen = [(name, one) for name, one in found if org is None or name == org]
    if not chosen:
        for one in list_entries(path):
            if org in (None, one.name) and one.is_dir() and not os.access(one, os.R_OK | os.X_OK):
                raise StorageError(f"{one} cannot be read: Permission denied")
        what = "no GoatDB data" if org is None or not found else f"no data of organization {org!r}"
        raise ConfigurationError(f"{path} holds {what}", hint="Name the data directory of a server.")
    return chosen


@contextmanager
def lock_organization(directory: Path, *, only_reads: bool = False) -> Iterator[LogDirectory]:
    """Lock an organization's directory, so that no server and no agent can use it.

    Args:
        directory: The directory.
        only_reads: Whether nothing will be written, so that the directory may be on a read-only file system.

    Raises:
        StorageError: A server runs on the directory; the message names its process.
        AgentBusyError: An agent uses the directory.
        NewerFormatError: A newer GoatDB has written in the directory.
    """
    descriptor: int | None = None
    try:
        try:
            descriptor = lock_file(directory.parent / AGENT_LOCK_NAME, create=False)
        except FileNotFoundError:
            pass
        except BlockingIOError:
            raise AgentBusyError(
                f"a `goatherd run` command uses {directory.parent}",
                hint="Stop that command, then run this one again.",
            ) from None
        except OSError as error:
            raise StorageError(f"{directory.parent / AGENT_LOCK_NAME} cannot be locked: {error.strerror}") from error
        with LogDirectory(directory, only_reads=only_reads) as logs:
            refuse_running(directory)
            yield logs
    finally:
        if descriptor is not None:
            os.close(descriptor)


def find_trusted_roots(directory: Path, now_ms: int) -> TrustedRoots | None:
    """Return the roots that an organization's own files name; None if there is no such file.

    The roots are those of the identity that a server last used in this directory or, if no server has recorded it,
    those of settings.json. An attacker who can write to the directory can change these files, too: only roots from a
    store prove that commits were not forged.

    Raises:
        IdentityError: A file is malformed.
        StorageError: A file cannot be read.
    """
    for name in (SEEN_NAME, SETTINGS_NAME):
        path = directory / name
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise StorageError(f"{path} cannot be read: {error.strerror}") from error
        try:
            if name == SEEN_NAME:
                seen = TrustCheckpoint.from_bytes(raw)
                return TrustedRoots.from_checkpoint(seen, str(path))
            document, _, _ = from_settings(raw, now_ms)
        except IdentityError as error:
            raise type(error)(
                f"{path}: {error}", hint="Give --provider URI: the identity in that store names the trusted roots."
            ) from None
        return TrustedRoots.from_document(document, str(path))
    return None


async def _read_trusted_roots(org: str, directory: Path, open_store: OpenStore | None) -> TrustedRoots | None:
    if open_store is None:
        return find_trusted_roots(directory, SystemClock().now_ms())
    async with open_store(org) as store:
        _, document = await store.read()
    return TrustedRoots.from_document(document, store.name)
