"""Let one node restart at a time: a lease in the store, taken by compare-and-swap, that expires automatically.

The lease names its holder and its deadline, and is stored in a secret of its own in the same store as the identity. No
data depends on it: if two nodes restart at the same time, nothing is lost, but fewer nodes serve meanwhile.

Rules: a node takes the lease only if the lease is free, expired, or already held by this node. The lease has expired
when its deadline is past by more than `SKEW` on the node's clock, or when no node has written it for longer than `TERM`
and `SKEW` on the node's monotonic clock. The term is the reader's: nothing in the lease makes it longer. The holder
renews the lease and releases it afterwards. A value that is not a lease is never overwritten. Only a change of the
identity needs the lease; a restart after a crash does not.
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
from goatherd.serving.signals import cancel_tasks
from goatherd.telemetry import Event, event_text
from goatherd.times import milliseconds

TERM: Final = timedelta(seconds=60)
"""Duration of the lease without renewal."""
SKEW: Final = timedelta(seconds=30)
"""Largest difference between the clocks of nodes."""
POLL: Final = timedelta(seconds=2)
_TROUBLED: Final = timedelta(seconds=30)
_SUFFIX: Final = "-lease"
_RANDOM = secrets.SystemRandom()

_log = logging.getLogger("goatherd.agent")


def lease_id_for(secret_id: str) -> str:
    """Return the id of the secret that stores the lease; it is derived from the id of the identity's secret."""
    return secret_id + _SUFFIX


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseRecord:
    """The restart lease in the form in which the store holds it.

    Attributes:
        holder: Human-readable name of the holder; None while the lease is free.
        token: Identifies the holder.
        until_ms: The deadline, in milliseconds since 1970 by the holder's clock.
    """

    holder: str | None = None
    token: str | None = None
    until_ms: int = 0

    def to_bytes(self) -> bytes:
        """Encode the lease as JSON."""
        tree = {"goatherdLease": 1, "holder": self.holder, "token": self.token, "until": self.until_ms}
        return json.dumps(tree).encode()

    @classmethod
    def from_bytes(cls, raw: bytes) -> Self:
        """Decode a lease that `to_bytes` has encoded as JSON.

        Raises:
            AgentError: The value is not a lease.
        """
        try:
            tree: Any = json.loads(raw)
            if not isinstance(tree, Mapping) or tree.get("goatherdLease") != 1:
                raise ValueError
            holder, token = tree["holder"], tree["token"]
            if not all(isinstance(text, str | None) for text in (holder, token)):
                raise ValueError
            return cls(holder=holder, token=token, until_ms=int(tree["until"]))
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            raise AgentError(
                "the secret for the restart lease contains something else, not a lease; it was not changed",
                hint="Name another secret with --lease, or remove this secret.",
            ) from None


class Lease:
    """One node's handle on the cluster's restart lease. Not for concurrent use.

    Args:
        provider: The store, which the caller has opened.
        secret_id: The secret that stores the lease; created on first use.
        holder: Human-readable name of this node: ``host:pid``.
        token: Identifies this node (default: random). After a crash or a lost answer, the node recognizes its own lease
            by this token.
        poll: How often to read the lease while another node holds it.
        clock: Supplies the current time.

    Attributes:
        problem: Code of the error for which the lease cannot be taken now; None if there is none.
    """

    def __init__(
        self,
        provider: SecretProvider,
        secret_id: str,
        *,
        holder: str,
        token: str | None = None,
        poll: timedelta = POLL,
        clock: Clock | None = None,
    ) -> None:
        self._provider = provider
        self._secret_id = secret_id
        self._holder = holder
        self._token = token or secrets.token_hex(16)
        self._poll = poll
        self._clock: Clock = clock or SystemClock()
        self._version: str | None = None
        self._is_taking = False
        self._watched: tuple[str, float] | None = None
        self.problem: str | None = None

    @asynccontextmanager
    async def hold(self) -> AsyncIterator[None]:
        """Wait for the lease, hold it inside the block, and release it.

        Waits indefinitely: if the store fails, or its secret for the lease contains something else, the node tries
        again at growing intervals.
        """
        try:
            await self._acquire_lease()
        except asyncio.CancelledError:
            if self._is_taking:  # the write may take effect all the same
                await asyncio.shield(asyncio.ensure_future(self._give_back()))
            raise
        self._is_taking = False
        renewing = asyncio.create_task(self._renew_lease(), name="renew the lease")
        try:
            yield
        finally:
            await cancel_tasks(renewing)
            # Never cancelled: the other nodes would have to wait for the deadline.
            await asyncio.shield(asyncio.ensure_future(self._release_lease()))

    async def _acquire_lease(self) -> None:
        pause, last_code, last_holder = self._poll, "", ""
        self.problem = None
        while True:
            try:
                holder = await self._try_to_take()
                self.problem = None
                if holder is None:
                    _log.info(event_text(Event.AGENT_LEASE_TAKEN, lease=self._secret_id))
                    return
                pause = self._poll
                if holder != last_holder:
                    last_holder = holder
                    _log.info(event_text(Event.AGENT_LEASE_AWAITED, lease=self._secret_id, holder=holder))
            except (ProviderError, AgentError) as error:
                self.problem = error.code
                if error.code != last_code:
                    last_code = error.code
                    _log.error(event_text(Event.AGENT_LEASE_FAILED, code=error.code, message=error))
                pause = min(2 * pause, _TROUBLED)
            await self._clock.sleep(pause * _RANDOM.uniform(0.5, 1))

    async def _try_to_take(self) -> str | None:
        """Try once to take the restart lease; return None on success, otherwise the name of its holder."""
        try:
            found = await self._provider.read(self._secret_id, CURRENT)
        except SecretNotFoundError:
            self._is_taking = True
            with contextlib.suppress(SecretExistsError):
                made = await self._provider.create(self._secret_id, self._own_record().to_bytes())
                self._version = str(made.id)
                return None
            self._is_taking = False
            return "another node"
        record, version = LeaseRecord.from_bytes(found.value.reveal()), str(found.version.id)
        if record.token != self._token and not self._is_over(record, version):
            return record.holder or "another node"
        self._is_taking = True
        try:
            await self._write_record(self._own_record(), version)
        except ConflictError:
            self._is_taking = False
            return "another node"
        return None

    def _is_over(self, record: LeaseRecord, version: str) -> bool:
        if record.holder is None:
            return True
        now = self._clock.monotonic()
        if self._watched is None or self._watched[0] != version:
            self._watched = (version, now)
        # SECURITY: the deadline, which any writer of the store can choose, only shortens the wait, or a lease could
        # keep every server from restarting (tests/unit/agent/test_restart_lease.py).
        is_unrenewed = now - self._watched[1] > (TERM + SKEW).total_seconds()
        return is_unrenewed or self._clock.now_ms() > record.until_ms + milliseconds(SKEW)

    def _own_record(self) -> LeaseRecord:
        until_ms = self._clock.now_ms() + milliseconds(TERM)
        return LeaseRecord(holder=self._holder, token=self._token, until_ms=until_ms)

    async def _write_record(self, record: LeaseRecord, expected: str) -> None:
        written = await self._provider.write(self._secret_id, record.to_bytes(), label=CURRENT, expected=expected)
        self._version = str(written.id)
        if self._provider.guarantees.destroys:
            # Only to remove old versions; without the permission to destroy they stay in the store.
            with contextlib.suppress(ProviderError):
                await self._provider.destroy(self._secret_id, expected)

    async def _renew_lease(self) -> None:
        while True:
            await self._clock.sleep(TERM / 3)
            assert self._version is not None
            try:
                await self._write_record(self._own_record(), self._version)
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
            if LeaseRecord.from_bytes(found.value.reveal()).token == self._token:
                self._version = str(found.version.id)
                return True
        return False

    async def _give_back(self) -> None:
        if await self._is_still_ours():
            await self._release_lease()

    async def _release_lease(self) -> None:
        assert self._version is not None
        try:
            await self._write_record(LeaseRecord(), self._version)
        except ConflictError:
            if await self._is_still_ours():
                with contextlib.suppress(ProviderError):
                    await self._write_record(LeaseRecord(), self._version)
        except UnavailableError:
            pass  # the lease expires automatically
        except ProviderError as error:
            _log.error(event_text(Event.AGENT_LEASE_FAILED, code=error.code, message=error))


async def read_lease(provider: SecretProvider, secret_id: str, *, make: bool = False) -> tuple[LeaseRecord, bool]:
    """Read the lease; return it, and whether this call has created it.

    Args:
        provider: The store.
        secret_id: The secret that stores the lease.
        make: Whether to create a free lease if there is none. The commands of an operator create it, so that the nodes
            need no permission to create secrets.

    Raises:
        SecretNotFoundError: There is no lease, and `make` is false.
        AgentError: The value is not a lease.
        ProviderError: The store failed.
    """
    try:
        found = await provider.read(secret_id, CURRENT)
    except SecretNotFoundError as error:
        if not make:
            error.hint = (
                "The first node that restarts creates the lease, if it has the permission. "
                "`goatherd status --restart-lease --make` creates it now."
            )
            raise
        with contextlib.suppress(SecretExistsError):
            await provider.create(secret_id, LeaseRecord().to_bytes())
            return LeaseRecord(), True
        found = await provider.read(secret_id, CURRENT)
    return LeaseRecord.from_bytes(found.value.reveal()), False


class NoLease:
    """A replacement for `Lease` that never waits.

    This is for a single server, or for servers that an orchestrator restarts one at a time.
    """

    problem: str | None = None

    @asynccontextmanager
    async def hold(self) -> AsyncIterator[None]:
        """Run the block at once, without a lease."""
        yield
