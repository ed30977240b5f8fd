"""Answer requests to Goatherd's management endpoints, which an unmodified GoatDB server does not have.

The module opens no socket: the door (Goatherd's reverse proxy) or `goatherd.agent.own_address` passes requests to it.
Rules: answers contain only ids, numbers and short words from a fixed list of fields, never a whole identity document.
Requests to these endpoints never reach the server.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from goatherd.agent.organization import ManagedOrganization
from goatherd.clock import Clock
from goatherd.door.report import HEALTH_PATH, METRICS_PATH, health_answer, metrics_answer
from goatherd.errors import OtherServerError, VerificationError
from goatherd.identity.request_binding import MISDIRECTED, RequestGuard, digest_body
from goatherd.trust import TrustPool
from goatherd.wire.json import to_json_bytes

if TYPE_CHECKING:
    from goatherd.door.door import DoorStatus


class OwnAPI:
    """Answers requests for Goatherd's management endpoints in place of an agent's server.

    Args:
        organizations: The server's organizations; the first one answers a request that names none.
        describe: Returns what the agent currently does with the server, as JSON.
        clock: Supplies the current time.

    Attributes:
        figures: Returns the status of the door (Goatherd's reverse proxy); None without a door.
        guard: Checks whether a request was signed for this agent's server, and was not received before. The door uses
            the same guard.
    """

    def __init__(
        self, organizations: Sequence[ManagedOrganization], *, describe: Callable[[], Mapping[str, Any]], clock: Clock
    ) -> None:
        self._organizations = {organization.org: organization for organization in organizations}
        self._first = organizations[0]
        self._describe = describe
        self._clock = clock
        self.figures: Callable[[], DoorStatus] | None = None
        self.guard = RequestGuard(lambda: str(describe().get("instance", "")))

    @property
    def _door(self) -> DoorStatus | None:
        return None if self.figures is None else self.figures()

    @property
    def is_down(self) -> bool:
        """Whether no answer is expected from the server because its agent starts or restarts it."""
        return self._describe().get("state") in ("starting", "restarting")

    async def answer_request(
        self, method: str, path: str, query: str, signature: str, body: bytes = b""
    ) -> tuple[int, bytes]:
        """Return the status and body of the answer to a request below ``/goatherd/v1/``.

        `query` can select the organization (``org=…``); the default is the first one. Status 421 means that the request
        was signed for another server process than that of `guard`.
        """
        organization = self._first
        if wanted := parse_qs(query).get("org"):
            found = self._organizations.get(wanted[0])
            if found is None:
                return 404, b""
            organization = found
        if method == "GET" and path == "/goatherd/v1/identity":
            return 200, to_json_bytes(self._describe_identity(organization))
        if method == "GET" and path == HEALTH_PATH:
            return 200, to_json_bytes(health_answer(organization.status, self._door, self._describe()["state"]))
        if method == "GET" and path == METRICS_PATH:
            return 200, await metrics_answer(organization.document, organization.status, self._door, self._describe())
        if method == "POST" and path == "/goatherd/v1/refresh":
            return await self._refresh_identity(organization, path, body, signature)
        return 404, b""

    def _describe_identity(self, organization: ManagedOrganization) -> dict[str, Any]:
        agent = dict(self._describe())
        instance = agent.pop("instance")
        described = organization.describe()
        door = self._door
        return {
            **described,
            "instance": instance,
            "nowMs": self._clock.now_ms(),
            "agent": {**agent, **described["agent"], "door": None if door is None else door.to_json()},
        }

    async def _refresh_identity(
        self, organization: ManagedOrganization, path: str, body: bytes, signature: str
    ) -> tuple[int, bytes]:
        """Answer a request to read the store now: if a root signed the request, read the store; otherwise reject it."""
        document = organization.document
        pool = TrustPool.from_identity(document, org=organization.org)
        now_ms = self._clock.now_ms()
        try:
            envelope = pool.verify_root_request(signature, now_ms)
            self.guard.check_management_request(envelope, path=path, digest=digest_body(body), now_ms=now_ms)
        except OtherServerError:
            return MISDIRECTED, b""
        except VerificationError:
            return 403, b""
        has_changed = await organization.refresh_identity()
        return 200, to_json_bytes({"generation": organization.document.generation, "changed": has_changed})
