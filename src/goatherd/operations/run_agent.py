"""Run an unmodified GoatDB server with its identity from a store, or write its settings.json once and exit.

The agent itself is `goatherd.agent`. Before it runs, this module checks and locks the data directory, stops a server
that a killed agent has left, and prepares a directory on a tmpfs; afterwards it clears this directory. Rules: nothing
is written into a data directory that may belong to another server. A key is only written to paths where a later agent
would find and remove it.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from goatherd.agent import Agent, Lease, ManagedOrganization, OnChange, Rules, Supervisor
from goatherd.agent.agent import Front, Notify, stop_leftover_server
from goatherd.agent.data_directory_lock import DataDirectoryLock, may_signal
from goatherd.agent.memory_directory import clear_if_empty, directory_for, make_private, remove_directory
from goatherd.agent.restart_lease import NoLease
from goatherd.agent.settings_file import SettingsFile
from goatherd.clock import SystemClock
from goatherd.errors import AgentError, ConfigurationError
from goatherd.files import read_with_owner
from goatherd.identity.settings_json import SETTINGS_NAME
from goatherd.operations.first_start import check_first_start
from goatherd.plugins import credential_variables
from goatherd.providers.base import SecretProvider
from goatherd.providers.values import ORG_FIELD, secret_id_for
from goatherd.serving.service_manager import VARIABLES, ServiceManager
from goatherd.settings.data_directory import (
    check_data_directory,
    check_logs_whole,
    organization_directories,
    prepare_logs,
    refuse_running,
    refuse_unnamed_organizations,
)

if TYPE_CHECKING:
    from goatherd.operations.data import OpenStore


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFiles:
    """The data directory of an unmodified GoatDB server, and the places of its settings.json files.

    Attributes:
        data: The data directory, as an absolute path.
        orgs: The organizations that the server serves.
        memory: Directory on a tmpfs, so in memory, for the settings.json files of this data directory; None to write
            them to the disk.
        creates: Whether to create the data directory, and each organization's directory in it, if missing.
    """

    data: Path
    orgs: tuple[str, ...]
    memory: Path | None
    creates: bool

    @property
    def directory_names(self) -> list[str]:
        """The names of the organizations' directories."""
        return [secret_id_for(ORG_FIELD, org) for org in self.orgs]

    def directory_of(self, org: str) -> Path:
        """Return an organization's directory in the data directory."""
        return self.data / secret_id_for(ORG_FIELD, org)

    def settings_file_of(self, org: str) -> SettingsFile:
        """Return an organization's settings.json."""
        target = None if self.memory is None else self.memory / f"{secret_id_for(ORG_FIELD, org)}.json"
        return SettingsFile(link=self.directory_of(org) / SETTINGS_NAME, target=target)

    def check_data_directory(self) -> None:
        """Check that the data directory belongs to these organizations, and create it if `creates` is set.

        Raises:
            ConfigurationError: The data directory is missing, or holds something other than these organizations.
        """
        check_data_directory(self.data, self.directory_names, create=self.creates)

    def is_memory_of_this_server(self, directory: Path) -> bool:
        """Whether `directory` is a tmpfs directory that an agent creates for this data directory, by its name."""
        return directory == directory_for(directory.parent, self.data)


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenSettings:
    """A settings.json that was written: the organization, the file, and the current root in it."""

    org: str
    file: Path
    current_id: str


async def run_agent(
    files: ServerFiles,
    organizations: Sequence[ManagedOrganization],
    *,
    supervisor: Supervisor | None,
    lease_secret: tuple[SecretProvider, str] | None,
    rules: Rules,
    notify: Notify | None = None,
    front: Front | None = None,
    grace: timedelta,
    open_store: OpenStore | None = None,
) -> int:
    """Keep the settings.json of a GoatDB server up to date until SIGTERM, or until the server ends.

    Args:
        files: The server's data directory.
        organizations: The organizations of the server, with their identities in the store.
        supervisor, rules, notify, front: As for `goatherd.agent.Agent`.
        lease_secret: The provider, not open yet, and the id of the secret that holds the restart lease (so that only
            one server of the cluster restarts at a time); None for a cluster of one server. Not used if the server is
            never restarted.
        grace: How long a server that an earlier agent left running may take to stop.
        open_store: Opens the store of an organization, with which its data are compared at the first start; None for no
            comparison.

    Returns:
        The exit code.

    Raises:
        ConfigurationError: The data directory is missing, or holds an organization that is not in `files`.
        IdentityExistsError: The data belong to another identity than that in the store.
        AgentBusyError: Another agent uses the data directory.
        StorageError: Another server runs on the data directory, or a log in it is damaged.
        AgentError: The server cannot be run, or exposed its private key.
    """
    clock = SystemClock()
    # SECURITY: a GoatDB server generates a new root for each organization in its data directory that --org does not
    # name, so the agent does not start it (tests/unit/cli/test_agent_commands.py).
    refuse_unnamed_organizations(files.data, files.directory_names)
    await _check_data(files, open_store)
    async with AsyncExitStack() as stack:
        lock = stack.enter_context(DataDirectoryLock(files.data))
        await stop_leftover_server(lock, grace, clock)
        if supervisor is not None:
            for directory in organization_directories(files.data):
                await asyncio.to_thread(refuse_running, directory)
                await asyncio.to_thread(check_logs_whole, directory)
        agent: Agent | None = None

        def clear_memory(directory: Path) -> None:
            is_ours = agent is not None and agent.owns_files and supervisor is not None
            (remove_directory if is_ours else clear_if_empty)(directory)

        if files.memory is not None:
            stack.callback(clear_memory, files.memory)
        _prepare_memory(files, lock)
        _move_settings(files, organizations)
        left = lock.before.memory
        if (
            supervisor is not None
            and left is not None
            and left != files.memory
            and files.is_memory_of_this_server(left)
        ):
            # SECURITY: a memory directory that an earlier agent of this server used is removed, because it can hold
            # keys of organizations that this agent does not serve (tests/unit/cli/test_agent_commands.py).
            remove_directory(left)
        lease: Lease | NoLease = NoLease()
        if lease_secret is not None and rules.on_change is not OnChange.IGNORE:
            provider, secret_id = lease_secret
            await stack.enter_async_context(provider)
            lease = Lease(provider, secret_id, holder=f"{socket.gethostname()}:{os.getpid()}", token=lock.token)
        agent = Agent(
            organizations,
            lock=lock,
            supervisor=supervisor,
            lease=lease,
            rules=rules,
            notify=notify,
            front=front,
            service=ServiceManager(),
            clock=clock,
        )
        return await agent.run()


async def fetch_settings(
    files: ServerFiles, organizations: Sequence[ManagedOrganization], *, open_store: OpenStore | None = None
) -> list[WrittenSettings]:
    """Write the settings.json of each organization once. The files stay on the disk or in memory.

    Args:
        files: The data directory of the server, which must not run.
        organizations: The organizations of the server, with their identities in the store.
        open_store: As for `run_agent`.

    Raises:
        ConfigurationError: The data directory is missing, or holds something other than these organizations.
        IdentityExistsError: The data belong to another identity than that in the store.
        AgentBusyError: An agent uses the data directory.
        StorageError: The server runs, or a log in the data directory is damaged.
        ProviderError, IdentityError: An identity cannot be read. Nothing was written.
    """
    await _check_data(files, open_store)
    written = []
    async with AsyncExitStack() as stack:
        lock = stack.enter_context(DataDirectoryLock(files.data))
        if files.memory is not None:
            stack.callback(clear_if_empty, files.memory)
        _prepare_memory(files, lock)
        for organization in organizations:
            directory = files.directory_of(organization.org)
            refuse_running(directory)
            prepare_logs(directory)
            await stack.enter_async_context(organization)
            await organization.load_identity(asyncio.Event())
            lock.before.check_not_exposed(organization.document.current.id)
            await organization.check_place(is_left_over=organization.org in lock.before.orgs)
        _move_settings(files, organizations)
        # Recorded first: a key is only written where a later agent knows that it may replace or remove the file.
        lock.save(orgs={*lock.before.orgs, *files.orgs})
        for organization in organizations:
            await organization.write_file()
            assert organization.running is not None
            current_id = organization.running.current.id
            written.append(WrittenSettings(org=organization.org, file=organization.file.link, current_id=current_id))
    return written


async def _check_data(files: ServerFiles, open_store: OpenStore | None) -> None:
    files.check_data_directory()
    if open_store is not None:
        for org in files.orgs:
            await check_first_start(files.directory_of(org), org, open_store)


def _prepare_memory(files: ServerFiles, lock: DataDirectoryLock) -> None:
    """Create the directory on the tmpfs, in which settings.json files are written.

    Its path is recorded first, where the next agent finds it, so that no key is left behind in memory.
    """
    if files.memory is not None:
        lock.save(memory=files.memory)
        make_private(files.memory)


def _move_settings(files: ServerFiles, organizations: Iterable[ManagedOrganization]) -> None:
    """Move settings.json files to the present tmpfs directory from one that an earlier run was given with --memory.

    SECURITY: no later agent looks into the earlier directory, so a private key there would never be removed
    (tests/unit/cli/test_agent_commands.py).
    """
    for organization in organizations:
        before = organization.file.move_in(lambda file: files.is_memory_of_this_server(file.parent))
        if before is not None:
            clear_if_empty(before)


def hide_credentials(
    environ: Mapping[str, str], *, stores: Collection[str], sealing_key: str | None, passed: Collection[str]
) -> dict[str, str]:
    """Return the environment for the server: that of the agent without its credentials.

    The server gets neither the credentials of the stores, nor the key of the last known good identity (an encrypted
    copy on the disk), nor what systemd has given the agent: its notification socket and its credentials' directory.

    SECURITY: with these credentials, an attacker who compromises the server could read the keys of future roots in the
    store (tests/unit/operations/test_run_agent.py).

    Args:
        environ: The agent's own environment.
        stores: The URI of each store, or its scheme.
        sealing_key: Source of the key that encrypts the last known good identity, such as ``env:NAME``.
        passed: Names of variables to pass on although they hold credentials.
    """
    hidden = [sealing_key.removeprefix("env:")] if sealing_key is not None and sealing_key.startswith("env:") else []
    hidden += [name for store in stores for name in credential_variables(store)]
    hidden += [*VARIABLES, "CREDENTIALS_DIRECTORY"]  # of systemd: they are the agent's
    return {
        name: value
        for name, value in environ.items()
        if name in passed or not any(fnmatchcase(name, pattern) for pattern in hidden)
    }


def signal_notifier(number: int, *, supervisor: Supervisor | None, pid_file: Path | None) -> Notify:
    """Return a function that sends a signal to the supervisor's process or to the process in the PID file.

    Raises:
        ConfigurationError: Neither `supervisor` nor `pid_file` is given.
    """
    if supervisor is None and pid_file is None:
        raise ConfigurationError(
            "a signal needs the process id of the server", hint="Name the file that holds it: --pid-file FILE."
        )

    async def notify() -> None:
        if supervisor is not None:
            supervisor.send_signal(number)
            return
        assert pid_file is not None
        try:
            raw, owner = await asyncio.to_thread(read_with_owner, pid_file)
            if (pid := int(raw)) > 1:
                if not await asyncio.to_thread(may_signal, owner, pid):
                    raise ProcessLookupError(errno.ESRCH, f"there is no process {pid} that the file's owner may signal")
                os.kill(pid, number)
        except (OSError, ValueError, OverflowError) as error:
            raise AgentError(
                f"cannot signal the server whose process id is in {pid_file}: {error}",
                hint="Check --pid-file: the server must write the file at each start.",
            ) from error

    return notify
