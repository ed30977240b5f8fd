"""One node at a time: a lease in the store, taken by compare-and-swap, that ends by itself.

What it is: a small value that is no secret (who, until when), in a secret of its own beside the identity. What it is
not: a lock that data depends on. Two nodes that restart at the same moment lose nothing, they only serve less.

Rules: a lease is taken only while it is free, ours already, or over. Over means that its deadline has passed by more
than `skew` on our clock, or that nobody has touched it for longer than it lasts on our own stop watch, whatever the
clocks say. It is renewed while held and given back afterwards. What is no lease is never overwritten. Only a change of
the identity takes one: a server that crashes writes nothing to the store.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, Self

from goatherd.clock import Clock, SystemClock
from goatherd.errors import (
    AgentError,
    ConflictError,
    ProviderError,
    SecretExistsError,
    SecretNotFoundError,
    UnavailableError,
)
from goatherd.providers.base import SecretProvider
from goatherd.providers.values import CURRENT
from goatherd.telemetry import Event, event_text
from goatherd.times import milliseconds

TERM: Final = timedelta(seconds=60)
SKEW: Final = timedelta(seconds=30)
POLL: Final = timedelta(seconds=2)
_TROUBLED: Final = timedelta(seconds=30)
_SUFFIX: Final = "-lease"
_RANDOM = secrets.SystemRandom()

_log = logging.getLogger("goatherd.agent")


def lease_id_for(secret_id: str) -> str:
    """Return the secret in which the lease lies, beside the identity's own."""
    return secret_id + _SUFFIX


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """What the store holds.

    Attributes:
        holder: Who has it, for people; None while it is free.
        token: Tells this holder from every other.
        until_ms: The deadline, in milliseconds since 1970 by the holder's clock.
        term_ms: How long it lasts from its last renewal.
    """

    holder: str | None = None
    token: str | None = None
    until_ms: int = 0
    term_ms: int = 0

    def to_bytes(self) -> bytes:
        """Return it as text."""
        tree = {"goatherdLease": 1, "holder": self.holder, "token": self.token, "until": self.until_ms}
        return json.dumps({**tree, "term": self.term_ms}).encode()

    @classmethod
    def from_bytes(cls, raw: bytes) -> Self:
        """Read it back.

        Raises:
            AgentError: It is no lease.
        """
        try:
            tree: Any = json.loads(raw)
            if not isinstance(tree, Mapping) or tree.get("goatherdLease") != 1:
                raise ValueError
            holder, token = tree["holder"], tree["token"]
            if not all(isinstance(text, str | None) for text in (holder, token)):
                raise ValueError
            return cls(holder=holder, token=token, until_ms=int(tree["until"]), term_ms=int(tree["term"]))
        except (ValueError, KeyError, TypeError):
            raise AgentError(
                "what lies in the lease's place is no lease; it was left as it is",
                hint="Name another place with --lease, or remove that secret.",
            ) from None


class Lease:
    """One node's hold on the cluster's lease. One use at a time.

    Args:
        provider: The store; entered by the caller.
        secret_id: Where the lease lies; made when it is first needed.
        holder: Who takes it, for people: ``host:pid``.
        token: Tells this node from every other; a lease with it is this node's own, from before a crash or a lost
            answer. Random unless given.
        term: How long it lasts without being renewed.
        skew: By how much clocks may differ.
        poll: How often to look while somebody else has it.
        clock: The time.
    """

    def __init__(
        self,
        provider: SecretProvider,
        secret_id: str,
        *,
        holder: str,
        token: str | None = None,
        term: timedelta = TERM,
        skew: timedelta = SKEW,
        poll: timedelta = POLL,
        clock: Clock | None = None,
    ) -> None:
        self._provider = provider
        self._secret_id = secret_id
        self._holder = holder
        self._token = token or secrets.token_hex(16)
        self._term = term
        self._skew = skew
        self._poll = poll
        self._clock: Clock = clock or SystemClock()
        self._version: str | None = None
        self._watched: tuple[str, float] | None = None

    @asynccontextmanager
    async def hold(self) -> AsyncIterator[None]:
        """Wait until the lease is ours, keep it while inside, and give it back.

        Waits for as long as it takes: a store that fails is asked on, ever more seldom, and so is one that holds
        something else in the lease's place.
        """
        await self._acquire()
        renewing = asyncio.create_task(self._renew(), name="renew the lease")
        try:
            yield
        finally:
            renewing.cancel()
            await asyncio.wait({renewing})
            # Not cut short: the others would have to wait for the deadline.
            await asyncio.shield(asyncio.ensure_future(self._release()))

    async def _acquire(self) -> None:
        pause, last_code, last_holder = self._poll, "", ""
        while True:
            try:
                holder = await self._try()
                if holder is None:
                    _log.info(event_text(Event.AGENT_LEASE_TAKEN, lease=self._secret_id))
                    return
                pause = self._poll
                if holder != last_holder:
                    last_holder = holder
                    _log.info(event_text(Event.AGENT_LEASE_AWAITED, lease=self._secret_id, holder=holder))
            except (ProviderError, AgentError) as error:
                if error.code != last_code:
                    last_code = error.code
                    _log.error(event_text(Event.AGENT_LEASE_FAILED, code=error.code, message=error))
                pause = min(2 * pause, _TROUBLED)
            await self._clock.sleep(pause * _RANDOM.uniform(0.5, 1))

    async def _try(self) -> str | None:
        """Try once; return None when the lease is ours, else the name of the node that holds it."""
        try:
            found = await self._provider.read(self._secret_id, CURRENT)
        except SecretNotFoundError:
            with contextlib.suppress(SecretExistsError):
                made = await self._provider.create(self._secret_id, self._mine().to_bytes())
                self._version = str(made.id)
                return None
            return "another node"
        ticket, version = Ticket.from_bytes(found.value.reveal()), str(found.version.id)
        if ticket.token != self._token and not self._is_over(ticket, version):
            return ticket.holder or "another node"
        try:
            await self._put(self._mine(), version)
        except ConflictError:
            return "another node"
        return None

    def _is_over(self, ticket: Ticket, version: str) -> bool:
        if ticket.holder is None:
            return True
        now = self._clock.monotonic()
        if self._watched is None or self._watched[0] != version:
            self._watched = (version, now)
        skew_ms = milliseconds(self._skew)
        watched_ms = (now - self._watched[1]) * 1000
        return self._clock.now_ms() > ticket.until_ms + skew_ms or watched_ms > ticket.term_ms + skew_ms

    def _mine(self) -> Ticket:
        term_ms = milliseconds(self._term)
        until_ms = self._clock.now_ms() + term_ms
        return Ticket(holder=self._holder, token=self._token, until_ms=until_ms, term_ms=term_ms)

    async def _put(self, ticket: Ticket, expected: str) -> None:
        written = await self._provider.write(self._secret_id, ticket.to_bytes(), label=CURRENT, expected=expected)
        self._version = str(written.id)
        if self._provider.guarantees.destroys:
            # Only to keep the store tidy; whoever may not destroy leaves them to the store.
            with contextlib.suppress(ProviderError):
                await self._provider.destroy(self._secret_id, expected)

    async def _renew(self) -> None:
        while True:
            await self._clock.sleep(self._term / 3)
            assert self._version is not None
            try:
                await self._put(self._mine(), self._version)
            except ConflictError:
                if await self._is_still_ours():
                    continue
                _log.error(event_text(Event.AGENT_LEASE_LOST, lease=self._secret_id))
                return
            except ProviderError as error:
                _log.error(event_text(Event.AGENT_LEASE_FAILED, code=error.code, message=error))

    async def _is_still_ours(self) -> bool:
        with contextlib.suppress(ProviderError, AgentError):
            found = await self._provider.read(self._secret_id, CURRENT)
            if Ticket.from_bytes(found.value.reveal()).token == self._token:
                self._version = str(found.version.id)
                return True
        return False

    async def _release(self) -> None:
        assert self._version is not None
        try:
            await self._put(Ticket(), self._version)
        except ConflictError:
            if await self._is_still_ours():
                with contextlib.suppress(ProviderError):
                    await self._put(Ticket(), self._version)
        except UnavailableError:
            pass  # it ends by itself
        except ProviderError as error:
            _log.error(event_text(Event.AGENT_LEASE_FAILED, code=error.code, message=error))


async def look_at_lease(provider: SecretProvider, secret_id: str, *, make: bool = False) -> tuple[Ticket, bool]:
    """Return who has the lease, and whether it was made just now, free.

    Args:
        provider: The store.
        secret_id: Where the lease lies.
        make: Make it where there is none, so that nodes need no right to create.

    Raises:
        SecretNotFoundError: There is none, and none was to be made.
        AgentError: What is there is no lease.
        ProviderError: The store does not take part.
    """
    try:
        found = await provider.read(secret_id, CURRENT)
    except SecretNotFoundError as error:
        if not make:
            error.hint = "The first node that restarts makes it, if it may; `goatherd lease --make` makes it now."
            raise
        with contextlib.suppress(SecretExistsError):
            await provider.create(secret_id, Ticket().to_bytes())
            return Ticket(), True
        found = await provider.read(secret_id, CURRENT)
    return Ticket.from_bytes(found.value.reveal()), False


class NoLease:
    """For a server that is alone, or that something else restarts one at a time."""

    @asynccontextmanager
    async def hold(self) -> AsyncIterator[None]:
        """Hold nothing."""
        yield
