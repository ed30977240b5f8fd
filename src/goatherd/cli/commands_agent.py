"""The commands for GoatDB servers that know nothing of Goatherd: run, fetch, watch.

What it is: the wiring of `goatherd.agent`. What it is not: it decides nothing. Rules: standard output is the server's;
what the agent has to say goes to standard error; no key and no password is ever an argument.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import socket
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from goatherd.cli.commands_serve import require_node_extra
from goatherd.cli.main import PORT, App, PathType, command
from goatherd.cli.process import log_level_option, log_to_stderr
from goatherd.clock import SystemClock
from goatherd.config.build import SEEN_NAME, build_door, build_last_known_good, configured_provider
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
from goatherd.times import iso

if TYPE_CHECKING:
    from goatherd.agent import Lease, ManagedOrganization, Supervisor
    from goatherd.agent.agent import Front, Notify
    from goatherd.agent.data_directory_lock import DataDirectoryLock
    from goatherd.agent.restart_lease import LeaseRecord, NoLease

SETTINGS_NAME = "settings.json"
NO_LEASE = "none"

Decorator = Callable[[Callable[..., int | None]], Callable[..., int | None]]


def _place_options(function: Callable[..., int | None]) -> Callable[..., int | None]:
    """Add the options that say where the file goes and where it comes from."""
    for option in reversed(
        [
            click.option(
                "--data",
                "agent_data",
                type=PathType(path_type=Path, file_okay=False),
                help="Data directory of the GoatDB server.",
            ),
            click.option(
                "--create", is_flag=True, help="Create the data directory, or an organization's in it, if missing."
            ),
            click.option(
                "--url",
                "agent_url",
                metavar="URL",
                help="URL at which the server answers (default: http://127.0.0.1:8080).",
            ),
            click.option(
                "--memory",
                "agent_memory",
                type=PathType(path_type=Path),
                help="Directory on a tmpfs for settings.json (default: found automatically).",
            ),
            click.option(
                "--plain-file",
                is_flag=True,
                help="Write settings.json, including the private key, to the disk instead of a tmpfs.",
            ),
            click.option(
                "--accept-identity",
                is_flag=True,
                help="Follow the store, once, to an identity that no trusted root has endorsed, or that goes back.",
            ),
            log_level_option("info"),
        ]
    ):
        function = option(function)
    return function


def _change_options(ways: Sequence[str]) -> Decorator:
    def decorate(function: Callable[..., int | None]) -> Callable[..., int | None]:
        for option in reversed(
            [
                click.option(
                    "--on-change",
                    "agent_on_change",
                    type=click.Choice(ways),
                    help="How to notify the server when the identity changes.",
                ),
                click.option(
                    "--signal",
                    "agent_signal",
                    metavar="NAME",
                    help="Signal to send with --on-change signal (default: HUP).",
                ),
                click.option(
                    "--command", "agent_command", metavar="TEXT", help="Command to run with --on-change command."
                ),
                click.option(
                    "--lease",
                    "agent_lease",
                    metavar="URI",
                    help="Secret that holds the restart lease; `none` for one server (default: beside the identity).",
                ),
                click.option(
                    "--ready-timeout",
                    "agent_ready_timeout",
                    metavar="TIME",
                    help="How long a started server may take until it is ready (default: 1m).",
                ),
                click.option(
                    "--refresh-interval",
                    "settings_refresh_interval",
                    metavar="TIME",
                    help="How often to read the store (default: 30s).",
                ),
            ]
        ):
            function = option(function)
        return function

    return decorate


@command(
    example="goatherd run --provider file:///srv/keys/root --data /srv/goatdb -- deno run -A server.ts\n"
    "goatherd run --provider vault://vault:8200/secret/{org} --data /srv/goatdb --org a --org b -- node server.js",
    orgs=True,
)
@_place_options
@_change_options(["restart", "signal", "command", "ignore"])
@click.option(
    "--stop-signal",
    "agent_stop_signal",
    metavar="NAME",
    help="Signal that stops the server for a restart (default: TERM).",
)
@click.option(
    "--grace",
    "agent_grace",
    metavar="TIME",
    help="How long a server may take to stop before it is killed (default: 30s).",
)
@click.option(
    "--crashes",
    "agent_crashes",
    metavar="N",
    help="How many times in a row to restart a server that crashed (default: 5).",
)
@click.option(
    "--pass-env",
    "agent_pass_env",
    multiple=True,
    metavar="NAME",
    help="Environment variable with a store credential to pass to the server. Can be given more than once.",
)
@click.option("--door", metavar="PORT", type=PORT, help="Port of a door in front of the server; see `goatherd door`.")
@click.option(
    "--door-host", metavar="ADDRESS", default="127.0.0.1", show_default=True, help="Address on which the door listens."
)
@click.option("--public-url", metavar="URL", help="URL at which clients reach the door.")
@click.option(
    "--private", is_flag=True, help="Let the door allow only roots and owners to write to /sys/* and /user/ID."
)
@click.option(
    "--forwarded-by",
    "limits_forwarded_by",
    multiple=True,
    metavar="NETWORK",
    help="Network of a proxy in front of the door. Can be given more than once.",
)
@click.option(
    "--agent-port",
    metavar="PORT",
    type=PORT,
    help="Port on which the agent reports its state to `status --node`, if there is no door.",
)
@click.option(
    "--agent-host",
    metavar="ADDRESS",
    default="127.0.0.1",
    show_default=True,
    help="Address on which the agent listens with --agent-port.",
)
@click.argument("child", metavar="COMMAND...", nargs=-1, required=True, type=click.UNPROCESSED)
def run(
    app: App,
    orgs: tuple[str, ...],
    child: tuple[str, ...],
    door: int | None,
    door_host: str,
    public_url: str | None,
    private: bool,
    agent_port: int | None,
    agent_host: str,
    create: bool,
    plain_file: bool,
    accept_identity: bool,
    log_level: str,
) -> int:
    """Run an unmodified GoatDB server with its identity from a store.

    The agent writes the server's settings.json to a tmpfs, links to it from the data directory, and starts COMMAND.
    When the identity changes, the agent restarts the server, one server of the cluster at a time. If the server is not
    ready with the new root, the agent restarts it with the previous root. After every start, the agent checks with an
    unauthenticated request whether the server exposes its private key, and stops the server if it does. After SIGTERM
    or Ctrl-C the exit code is 0 if the server stopped in time; otherwise it is the server's exit code, or 128 plus the
    number of the signal that ended the server.

    --door starts a verifying proxy in front of the server; see `goatherd door`.
    """
    from goatherd.agent import Supervisor
    from goatherd.agent.child_process import find_command

    log_to_stderr(log_level)
    find_command(child)
    environ = _environ(app.options)
    supervisor = Supervisor(child, environ=environ, grace=app.options.agent_grace)
    plan = _Plan(app.options, orgs, create=create, plain_file=plain_file, accept_identity=accept_identity)
    front: Front | None = None
    if agent_port is not None:
        if door is not None:
            raise click.UsageError("--agent-port does not go with --door: the door's address is the agent's, too")
        require_node_extra()
        front = _own_address(app.options.agent_url.replace(ORG_FIELD, plan.orgs[0]), host=agent_host, port=agent_port)
    if door is not None:
        require_node_extra()
        front = build_door(
            app.options,
            app.options.agent_url.replace(ORG_FIELD, plan.orgs[0]),
            host=door_host,
            port=door,
            public_url=public_url,
            private=private,
        )
    elif public_url is not None or private or app.options.origin.get("limits.forwarded_by") == "flag":
        raise click.UsageError("--public-url, --private and --forwarded-by need --door PORT")
    return asyncio.run(_run(plan, supervisor, None, front))


run.allow_interspersed_args = False  # what follows the command is the command's


@command(
    example="goatherd fetch --provider k8s://prod/goatdb-root --data /srv/goatdb --memory /run/goatdb-keys\n"
    "goatherd fetch --provider file:///srv/keys/{org}/root --data /srv/goatdb --org a --org b",
    orgs=True,
)
@_place_options
def fetch(
    app: App, orgs: tuple[str, ...], create: bool, plain_file: bool, accept_identity: bool, log_level: str
) -> None:
    """Write a GoatDB server's settings.json once, then exit.

    For an init container, or before another program starts the server. The server must not run: it would overwrite the
    file. The file stays until you remove it or its tmpfs is unmounted.
    """
    log_to_stderr(log_level)
    plan = _Plan(app.options, orgs, create=create, plain_file=plain_file, accept_identity=accept_identity)
    written = asyncio.run(_fetch(plan))
    data = {"organizations": [{"org": org, "file": file, "current": current} for org, file, current in written]}
    app.out.result(data, [f"wrote {file}: root {current}" for _, file, current in written])


@command(
    example="goatherd watch --data /srv/goatdb --memory /run/goatdb-keys --on-change signal --signal TERM"
    " --pid-file /run/goatdb.pid\n"
    'goatherd watch --data /srv/goatdb --on-change command --command "systemctl restart goatdb"',
    orgs=True,
)
@_place_options
@_change_options(["signal", "command", "ignore"])
@click.option(
    "--pid-file", type=PathType(path_type=Path), help="File with the server's process id, for --on-change signal."
)
def watch(
    app: App,
    orgs: tuple[str, ...],
    pid_file: Path | None,
    create: bool,
    plain_file: bool,
    accept_identity: bool,
    log_level: str,
) -> int:
    """Keep settings.json up to date for a server that another program runs.

    For a sidecar. The agent writes the file at its start and when the identity changes, one server of the cluster at a
    time. Then it restarts the server by a signal or a command, and waits until the server signs with the new root. If
    the server does not, the agent writes the previous root. The file stays when the agent exits, because the server may
    need it for its next start.
    """
    log_to_stderr(log_level)
    plan = _Plan(app.options, orgs, create=create, plain_file=plain_file, accept_identity=accept_identity)
    if "agent.on_change" not in app.options.origin or app.options.agent_on_change == "restart":
        raise click.UsageError("--on-change is missing: how to notify the server (signal, command or ignore)")
    if app.options.agent_on_change == "signal" and pid_file is None:
        raise click.UsageError("--on-change signal needs --pid-file FILE")
    return asyncio.run(_run(plan, None, pid_file))


@command(example="goatherd lease --provider k8s://prod/goatdb-root --make")
@click.option(
    "--lease", "agent_lease", metavar="URI", help="Secret that holds the lease (default: beside the identity)."
)
@click.option("--make", is_flag=True, help="Create the lease if there is none.")
def lease(app: App, make: bool) -> None:
    """Show which node holds the restart lease, or create the lease.

    The agents of `goatherd run` and `goatherd watch` restart their servers one at a time. They share a restart lease: a
    small secret beside the identity, which holds no key. The first agent creates the lease if its credentials allow it.
    Otherwise, create it with --make and other credentials.
    """
    ticket, is_new, name = asyncio.run(_look(app.options, make=make))
    until = None if ticket.holder is None else iso(ticket.until_ms)
    data = {"lease": name, "made": is_new, "holder": ticket.holder, "until": until}
    state = "free" if ticket.holder is None else f"with {ticket.holder} until {until}"
    app.out.result(data, [f"{name} {'was made, and ' if is_new else ''}is {state}"])


# --- wiring ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Plan:
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


def _own_address(url: str, *, host: str, port: int) -> Front:
    """Return what opens the agent's own address, where there is no door."""
    from goatherd.agent.own_address import OwnAddress

    return lambda _, own: OwnAddress(upstream=url, answer=own.answer, guard=own.guard, host=host, port=port)


def _environ(options: Options) -> dict[str, str]:
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


async def _run(plan: _Plan, supervisor: Supervisor | None, pid_file: Path | None, front: Front | None = None) -> int:
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


async def _fetch(plan: _Plan) -> list[tuple[str, str, str]]:
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
    plan: _Plan, claim: DataDirectoryLock, memory: Path | None
) -> tuple[list[ManagedOrganization], SecretProvider, str]:
    """Make the directory in memory and what each organization needs; nothing is asked of the store yet."""
    from goatherd.agent import ManagedOrganization
    from goatherd.agent.memory_directory import make_private
    from goatherd.agent.settings_file import SettingsFile
    from goatherd.client import NodeClient
    from goatherd.data_directory import SESSIONS_LOG, read_records
    from goatherd.rotation.introductions import introduction_source
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


def _move_in(plan: _Plan, handovers: Sequence[ManagedOrganization]) -> None:
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
    plan: _Plan, stack: AsyncExitStack, token: str, provider: SecretProvider, template: str
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


async def _look(options: Options, *, make: bool) -> tuple[LeaseRecord, bool, str]:
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
        environ = _environ(options)
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
