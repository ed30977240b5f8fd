"""Run the door, a proxy that verifies requests to a GoatDB server: alone, or beside an agent that runs the server.

The door itself is `goatherd.door`. It trusts the roots of the identity in the store, and adopts each change of that
identity.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

from goatherd.agent.agent import Front
from goatherd.door.door import Door
from goatherd.door.report import DoorAPI
from goatherd.door.trusted_sessions import TrustedSessions
from goatherd.serving.garbage_collection import (
    collect_rarely,
    exempt_present_objects,
    share_arena,
    shorten_switch_interval,
)
from goatherd.serving.signals import run_unless_set, watch_stop_signals
from goatherd.settings.store import CloudSecretSettings

if TYPE_CHECKING:
    from goatherd.agent import ManagedOrganization
    from goatherd.agent.own_api import OwnAPI


async def run_door(
    make_door: partial[Door], settings: CloudSecretSettings, org: str, *, on_ready: Callable[[Door], None]
) -> None:
    """Run a door with the identity from the store, until SIGTERM or SIGINT. A second signal stops it at once.

    Call it in a process of its own, since it changes the process's thread switch interval and garbage collection.

    Args:
        make_door: Makes the door; called with the arguments that depend on the identity.
        settings: Reads the identities in the store; an async context manager that is not entered yet.
        org: The organization.
        on_ready: Called once the door listens.

    Raises:
        ProviderError, IdentityError: The identity cannot be read.
        NodeError: The address is in use.
    """
    shorten_switch_interval()
    collect_rarely()
    share_arena()
    with watch_stop_signals() as signals:
        async with settings.for_org(org) as followed:
            loaded = await run_unless_set(signals.stop, followed.load())
            if loaded is None:
                return
            trust = TrustedSessions(org=org, identity=loaded.document)
            own = DoorAPI(followed)
            followed.subscribe(lambda changed: trust.adopt_identity(changed.document))
            async with make_door(trust=trust, own=own.answer_request) as door:
                own.figures = lambda: door.status
                exempt_present_objects()
                signals.on_repeat.append(door.hurry)
                on_ready(door)
                await signals.stop.wait()


def door_of_agent(make_door: partial[Door]) -> Front:
    """Return a function that opens the door (the verifying proxy) in front of an agent's server.

    The door uses the identity documents that the agent has loaded, and reads no store itself.
    """

    @asynccontextmanager
    async def open_door(organizations: Sequence[ManagedOrganization], own: OwnAPI) -> AsyncIterator[Door]:
        trusts = []
        for organization in organizations:
            trust = TrustedSessions(org=organization.org, identity=organization.document)
            organization.subscribe(trust.adopt_identity)
            trusts.append(trust)
        door = make_door(
            trust=trusts,
            own=own.answer_request,
            org_urls={organization.org: organization.url for organization in organizations},
            guard=own.guard,
            is_restarting=lambda: own.is_down,
        )
        own.figures = lambda: door.status
        shorten_switch_interval()
        async with door:
            yield door

    return open_door
