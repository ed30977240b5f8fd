"""What `goatherd run`, `fetch` and `watch` open."""

from __future__ import annotations

import asyncio
import os
import shlex
import socket
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from goatherd.clock import SystemClock
from goatherd.config.build import SEEN_NAME, build_last_known_good, configured_provider
from goatherd.config.options import Options
from goatherd.config.values import organization
from goatherd.data_directory import (
    check_data_directory,
    check_logs_whole,
    organization_directories,
    refuse_running,
    refuse_unnamed_organizations,
)
from goatherd.errors import AgentError, ConfigurationError
from goatherd.plugins import credential_variables, open_provider
from goatherd.providers.base import SecretProvider
from goatherd.providers.values import ORG_FIELD, secret_id_for

if TYPE_CHECKING:
    from goatherd.agent import Lease, ManagedOrganization, Supervisor
    from goatherd.agent.agent import Front, Notify
    from goatherd.agent.data_directory_lock import DataDirectoryLock
    from goatherd.agent.restart_lease import LeaseRecord, NoLease


SETTINGS_NAME = "settings.json"
NO_LEASE = "none"


# --- wiring ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AgentPlan:
    options: Options
    orgs: tuple[str, ...]
    create: bool
    plain_file: bool
    accept_identity: bool

    def __init__(
        self, options: Options, orgs: Sequence[str], *, create: bool, plain_file: bool, accept_identity: bool
    ) -> None:
        object.__setattr__(self, "options", options)
        object.__setattr__(self, "orgs", tuple(dict.fromkeys(map(organization, orgs))) or (options.org,))
        object.__setattr__(self, "create", create)
        object.__setattr__(self, "plain_file", plain_file)
        object.__setattr__(self, "accept_identity", accept_identity)

    @property
    def data(self) -> Path:
        if self.options.agent_data is None:
            raise ConfigurationError("no data directory is named", hint="Give --data DIR, or set GOATHERD_AGENT_DATA.")
        return self.options.agent_data.resolve()

    def claim(self) -> DataDirectoryLock:
        """Check that the data directory is the one that is meant, and return the claim on it.

        Raises:
            ConfigurationError: It is missing, or holds something else, and is not to be created.
        """
        from goatherd.agent.data_directory_lock import DataDirectoryLock

        check_data_directory(self.data, self._directories, create=self.create)
        return DataDirectoryLock(self.data)

    def check_organizations(self) -> None:
        """Make sure that the data directory holds no organization that is not named.

        Raises:
            ConfigurationError: It does. The server would make a root of its own for it.
        """
        # SECURITY: a forgotten --org (tests/unit/agent/test_commands.py).
        refuse_unnamed_organizations(self.data, self._directories)

    @property
    def _directories(self) -> list[str]:
        return [secret_id_for(ORG_FIELD, org) for org in self.orgs]

    def memory(self) -> Path | None:
        """Return the directory in memory for this data directory; None where a plain file was asked for."""
        from goatherd.agent.memory_directory import directory_for, find_memory

        if self.plain_file:
            return None
        return directory_for(find_memory(self.options.agent_memory, os.environ), self.data)


def own_address(url: str, *, host: str, port: int) -> Front:
    """Return what opens the agent's own address, where there is no door."""
    from goatherd.agent.own_address import OwnAddress

    return lambda _, own: OwnAddress(upstream=url, answer=own.answer, guard=own.guard, host=host, port=port)


def child_environment(options: Options) -> dict[str, str]:
    """Return the server's environment: the agent's own, but for what opens the store or the last known good identity.

    SECURITY: who finds a hole in the server must not get the key that comes after this one
    (tests/unit/agent/test_commands.py).
    """
    key = options.settings_last_known_good_key or ""
    hidden = [key.removeprefix("env:")] if key.startswith("env:") else []
    store = options.provider or (options.cloud_config or {}).get("provider", "")
    hidden += credential_variables(store) if store else ()
    passed = options.agent_pass_env
    return {
        name: value
        for name, value in os.environ.items()
        if name in passed or not any(fnmatchcase(name, pattern) for pattern in hidden)
    }


async def run_agent(
    plan: AgentPlan, supervisor: Supervisor | None, pid_file: Path | None, front: Front | None = None
) -> int:
    from goatherd.agent import Agent, OnChange, Rules
    from goatherd.agent.agent import take_over
    from goatherd.agent.memory_directory import clear, clear_if_empty, directory_for

    options, clock = plan.options, SystemClock()
    plan.check_organizations()
    async with AsyncExitStack() as stack:
        claim = stack.enter_context(plan.claim())
        memory = plan.memory()
        await take_over(claim, options.agent_grace, clock)
        if supervisor is not None:
            for directory in organization_directories(plan.data):
                await asyncio.to_thread(check_logs_whole, directory)
        agent: Agent | None = None

        def tidy(directory: Path) -> None:
            is_ours = agent is not None and agent.owns_files and supervisor is not None
            (clear if is_ours else clear_if_empty)(directory)

        if memory is not None:
            stack.callback(tidy, memory)
        handovers, provider, template = _handovers(plan, claim, memory)
        _move_in(plan, handovers)
        left = claim.before.memory
        if supervisor is not None and left not in (None, memory) and left == directory_for(left.parent, plan.data):
            # SECURITY: what is still there is of organizations that this agent does not serve; nobody would clear it
            # (tests/unit/agent/test_commands.py).
            clear(left)
        on_change = OnChange(options.agent_on_change)
        lease = await _lease(plan, stack, claim.token, provider, template) if on_change is not OnChange.IGNORE else None
        agent = Agent(
            handovers,
            lock=claim,
            supervisor=supervisor,
            lease=lease or _no_lease(),
            rules=Rules(
                on_change=on_change,
                stop_signal=options.agent_stop_signal,
                ready_timeout=options.agent_ready_timeout,
                crashes=options.agent_crashes,
            ),
            notify=_notify(options, on_change, supervisor, pid_file),
            front=front,
            clock=clock,
        )
        return await agent.run()


async def fetch_settings(plan: AgentPlan) -> list[tuple[str, str, str]]:
    from goatherd.agent.memory_directory import clear_if_empty

    written = []
    async with AsyncExitStack() as stack:
        claim, memory = stack.enter_context(plan.claim()), plan.memory()
        if memory is not None:
            stack.callback(clear_if_empty, memory)
        handovers, _, _ = _handovers(plan, claim, memory)
        for handover in handovers:
            refuse_running(handover.file.link.parent)
            check_logs_whole(handover.file.link.parent)
            await stack.enter_async_context(handover)
            await handover.load(asyncio.Event())
            await handover.check_place(is_left_over=handover.org in claim.before.orgs)
        _move_in(plan, handovers)
        for handover in handovers:
            await handover.write()
            assert handover.running is not None
            written.append((handover.org, str(handover.file.link), handover.running.current.id))
        claim.save(orgs={*claim.before.orgs, *(handover.org for handover in handovers)})
    return written


def _handovers(
    plan: AgentPlan, claim: DataDirectoryLock, memory: Path | None
) -> tuple[list[ManagedOrganization], SecretProvider, str]:
    """Make the directory in memory and what each organization needs; nothing is asked of the store yet."""
    from goatherd.agent import ManagedOrganization
    from goatherd.agent.memory_directory import make_private
    from goatherd.agent.settings_file import SettingsFile
    from goatherd.cluster.client import NodeClient
    from goatherd.cluster.introductions import introduction_source
    from goatherd.data_directory import SESSIONS_LOG, read_records
    from goatherd.settings import CloudSecretSettings

    options = plan.options
    provider, template = configured_provider(options, plan.orgs)
    is_per_org = ORG_FIELD in template
    copy = build_last_known_good(options, is_per_org=is_per_org)
    if memory is not None:
        claim.save(memory=memory)
        make_private(memory)
    handovers = []
    for org in plan.orgs:
        name = secret_id_for(ORG_FIELD, org)
        directory = plan.data / name
        settings = CloudSecretSettings(
            provider,
            secret_id_for(template, org),
            refresh_interval=options.settings_refresh_interval,
            accept_identity=plan.accept_identity,
            seen=directory / SEEN_NAME,
            last_known_good=None if copy is None else copy.for_org(org),
        )
        settings.introductions = introduction_source(
            org=org,
            read_own=partial(read_records, directory / SESSIONS_LOG),
            peers=lambda: tuple(dict.fromkeys((*options.nodes, *options.serve_peers))),
            connect=lambda url: NodeClient(url, timeout=options.timeout),
            clock=SystemClock(),
        )
        handovers.append(
            ManagedOrganization(
                org=org,
                settings=settings,
                directory=directory,
                file=SettingsFile(
                    link=directory / SETTINGS_NAME, target=None if memory is None else memory / f"{name}.json"
                ),
                client=NodeClient(options.agent_url.replace(ORG_FIELD, org), timeout=options.timeout),
                clock=SystemClock(),
            )
        )
    return handovers, provider, template


def _move_in(plan: AgentPlan, handovers: Sequence[ManagedOrganization]) -> None:
    """Bring here what lies where an earlier --memory has put it.

    SECURITY: the key would stay there, since nobody looks there any more (tests/unit/agent/test_commands.py).
    """
    from goatherd.agent.memory_directory import clear_if_empty, directory_for

    def is_ours(file: Path) -> bool:
        return file.parent == directory_for(file.parent.parent, plan.data)

    for handover in handovers:
        before = handover.file.move_in(is_ours)
        if before is not None:
            clear_if_empty(before)


async def _lease(
    plan: AgentPlan, stack: AsyncExitStack, token: str, provider: SecretProvider, template: str
) -> Lease | None:
    from goatherd.agent import Lease

    if plan.options.agent_lease == NO_LEASE:
        return None
    # One process serves all organizations, so its turn is one, too: the first one's secret stands for all.
    provider, secret_id = _place_of_lease(plan.options, (provider, template), plan.orgs[0])
    await stack.enter_async_context(provider)
    return Lease(provider, secret_id, holder=f"{socket.gethostname()}:{os.getpid()}", token=token)


def _place_of_lease(
    options: Options, identity: tuple[SecretProvider, str] | None, org: str
) -> tuple[SecretProvider, str]:
    """Return where the lease lies: where it is said to, else beside the identity."""
    from goatherd.agent.restart_lease import lease_id_for

    if options.agent_lease is not None:
        return open_provider(options.agent_lease)
    provider, template = identity or configured_provider(options)
    return provider, lease_id_for(secret_id_for(template, org))


async def look_at_lease(options: Options, *, make: bool) -> tuple[LeaseRecord, bool, str]:
    from goatherd.agent.restart_lease import read_lease

    if options.agent_lease == NO_LEASE:
        raise ConfigurationError("there is no lease: agent.lease is `none`", hint="Give --lease URI.")
    provider, secret_id = _place_of_lease(options, None, options.org)
    async with provider:
        ticket, is_new = await read_lease(provider, secret_id, make=make)
    return ticket, is_new, secret_id


def _no_lease() -> NoLease:
    from goatherd.agent.restart_lease import NoLease

    return NoLease()


def _notify(options: Options, way: str, supervisor: Supervisor | None, pid_file: Path | None) -> Notify | None:
    from goatherd.agent.agent import run_command

    if way == "command":
        if not options.agent_command:
            raise ConfigurationError("--on-change command needs a command", hint="Give --command TEXT.")
        words = shlex.split(options.agent_command)
        environ = child_environment(options)
        return lambda: run_command(words, options.agent_ready_timeout, SystemClock(), environ)
    if way == "signal":
        return lambda: _signal(options.agent_signal, supervisor, pid_file)
    return None


async def _signal(number: int, supervisor: Supervisor | None, pid_file: Path | None) -> None:
    if supervisor is not None:
        supervisor.send(number)
        return
    assert pid_file is not None
    try:
        pid = int(await asyncio.to_thread(pid_file.read_text))
        if pid > 1:
            os.kill(pid, number)
    except (OSError, ValueError) as error:
        raise AgentError(f"cannot tell the server of {pid_file}: {error}") from error
