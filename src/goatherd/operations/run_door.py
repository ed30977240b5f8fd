"""Run the door in front of a GoatDB server: alone, or for an agent that runs the server.

What it is not: the door itself (`goatherd.door`). Rule: the door trusts the identity in the store, and follows it.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from goatherd.agent.agent import Front
from goatherd.door import Door, DoorLimits, TrustedSessions
from goatherd.door.report import DoorAPI
from goatherd.serving.threads import shorten_switch_interval
from goatherd.settings import CloudSecretSettings

if TYPE_CHECKING:
    from goatherd.agent import ManagedOrganization
    from goatherd.agent.own_api import OwnAPI


@dataclass(frozen=True, slots=True, kw_only=True)
class DoorSetup:
    """Where a door listens, and what it lets through.

    Attributes:
        upstream: URL of the server behind the door.
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one.
        public_url: URL at which clients reach the door; it replaces the server's own address in answers.
        private: Whether only roots and owners may write to ``/sys/*`` and ``/user/<id>``.
        limits: What callers may take.
        forwarded_by: Networks of proxies whose ``X-Forwarded-For`` header is used.
    """

    upstream: str
    host: str
    port: int
    public_url: str | None
    private: bool
    limits: DoorLimits
    forwarded_by: tuple[str, ...]


async def run_door(
    setup: DoorSetup, settings: CloudSecretSettings, org: str, *, on_ready: Callable[[Door], None]
) -> None:
    """Keep a door open, with the identity from the store, until SIGTERM or SIGINT.

    Meant for a process of its own: sets its thread switch interval.

    Args:
        setup: The door.
        settings: The identities in the store, not entered yet.
        org: The organization.
        on_ready: Called once the door listens.

    Raises:
        ProviderError, IdentityError: The identity cannot be read.
        NodeError: The address is in use.
    """
    shorten_switch_interval()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        async with settings.for_org(org) as followed:
            trust = TrustedSessions(org=org, identity=(await followed.load()).document)
            own = DoorAPI(followed)
            followed.subscribe(lambda changed: trust.swap(changed.document))
            async with Door(
                upstream=setup.upstream,
                trust=trust,
                host=setup.host,
                port=setup.port,
                public_url=setup.public_url,
                private=setup.private,
                limits=setup.limits,
                forwarded_by=setup.forwarded_by,
                own=own.answer,
            ) as door:
                own.figures = lambda: door.status
                on_ready(door)
                await stop.wait()
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def door_of_agent(setup: DoorSetup) -> Front:
    """Return what opens the door of an agent, which has the identities already."""

    @asynccontextmanager
    async def open_door(organizations: Sequence[ManagedOrganization], own: OwnAPI) -> AsyncIterator[Door]:
        trusts = []
        for organization in organizations:
            trust = TrustedSessions(org=organization.org, identity=organization.document)
            organization.follow(trust.swap)
            trusts.append(trust)
        door = Door(
            upstream=setup.upstream,
            trust=trusts,
            host=setup.host,
            port=setup.port,
            public_url=setup.public_url,
            private=setup.private,
            limits=setup.limits,
            forwarded_by=setup.forwarded_by,
            own=own.answer,
            guard=own.guard,
            is_restarting=lambda: own.is_down,
        )
        own.figures = lambda: door.status
        shorten_switch_interval()
        async with door:
            yield door

    return open_door
