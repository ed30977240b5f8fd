"""Read an identity from the stores of several regions: first this process's own region, then the others in order.

This is the only place that decides which store is read. Rules:

- If a store's identity is earlier than the one in use, has another history, or does not follow from the roots in use,
  the store is reported, and the next one is read. Only if no store can be used, the caller gets what does not follow:
  it may find the missing introductions in the logs of other servers.
- A store that fails costs one timeout; after that, its circuit breaker skips it until the next probe is due.
- A store may show the identity in use although another region's store shows a later one, because no command could write
  it. So the other stores are read, too, after a caller has learned of a change (`expect_change`), and from time to
  time (`COMPARE_AFTER`).
- Nothing is written here.

The version ids of a follower (a store that copies the primary store) are shown as ``REGION:ID``, so that no command
mistakes them for ids of the primary store.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Final, NoReturn

from goatherd.clock import Clock
from goatherd.errors import (
    ConfigurationError,
    IdentityError,
    ProviderConfigurationError,
    ProviderError,
    SecretNotFoundError,
    StoreLagError,
    UnavailableError,
)
from goatherd.identity.document import decode_document
from goatherd.providers.base import Call, ReadConsistency, RetryPolicy
from goatherd.providers.breaker import Breaker, new_breaker
from goatherd.providers.capabilities import WatchableSecretProvider
from goatherd.providers.values import CURRENT, Label, SecretBytes, SecretValue, SecretVersion, VersionId
from goatherd.stores.comparison import DocumentMark, Standing, compare_documents
from goatherd.stores.members import (
    StoreGroup,
    StoreMember,
    check_members,
    combine_guarantees,
    describe_promotion,
    find_secret_id,
)
from goatherd.telemetry import Event, event_text

_log = logging.getLogger("goatherd.stores")

COMPARE_AFTER: Final = 10
"""After how many intervals the other stores are read, too, although the first one shows the identity in use."""
COMPARE_TIMEOUT: Final = timedelta(seconds=2)
"""How long that may take for each store: the server's own store has answered, and a command may be waiting."""
_INTERVAL: Final = timedelta(seconds=30)
_SECRETS: Final = 1000
"""Maximum number of remembered secrets whose identity is not in use: callers of a server may name any organization."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreState:
    """What the last reads have shown of one region's store.

    Attributes:
        region: The region.
        is_primary: Whether rotations write this store.
        is_reachable: Whether the last call was answered; None before the first one.
        generation: The generation of the identity that it returned last; None if it is not known.
        standing: How that identity compares with the one in use; None if either is not known.
        problem: Why the last call failed, or why the answer cannot be used; None if it could be used.
    """

    region: str
    is_primary: bool
    is_reachable: bool | None = None
    generation: int | None = None
    standing: Standing | None = None
    problem: str | None = None

    @property
    def is_followed(self) -> bool | None:
        """Whether the store's last read gave an identity that a server may use; None before the first read.

        A server may use an identity that is not earlier than the one in use, and has the same history. The result is
        False also if the read failed.
        """
        if self.is_reachable is None:
            return None
        return self.problem is None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreRead:
    """The last read of an identity: from which region's store it came, and which version it was."""

    region: str
    version: str
    generation: int | None


class _Secret:
    """What the reader knows of one secret: the identity in use, and the state of each store."""

    def __init__(self, members: Sequence[StoreMember], interval: timedelta, now: float) -> None:
        self.used: DocumentMark | None = None
        self.compare_at = now + COMPARE_AFTER * interval.total_seconds()
        self.last: StoreRead | None = None
        self.breakers = [new_breaker(interval) for _ in members]
        self.view_breakers = [new_breaker(interval) for _ in members]
        self.states = [StoreState(region=one.region, is_primary=one.is_primary) for one in members]
        self.judged: dict[bytes, tuple[Standing, DocumentMark]] = {}
        """The results of comparisons with `used`, by the SHA-256 of the value."""
        self.rejected: tuple[bytes, float] | None = None
        """SHA-256 of the value that the caller has rejected last, and until when it is not compared any more."""


class RegionalReader(StoreGroup):
    """Reads one identity from the stores of several regions.

    Address: none; the section ``[stores]`` of goatherd.toml names the stores.
    Credentials: those of each store.
    Permissions: those of a server, in each store.
    Guarantees: reads are eventually consistent; nothing can be written.

    Args:
        members: The primary store, then the followers, in the order in which they are read.
        region: The own region, whose store is read first; None to read the primary store first.
        interval: How often the caller reads; a failing store is probed again after about this time.
        clock: Supplies the time.
    """

    def __init__(
        self,
        members: Sequence[StoreMember],
        *,
        region: str | None = None,
        interval: timedelta = _INTERVAL,
        clock: Clock | None = None,
    ) -> None:
        check_members(members)
        # Each store has its own deadline and its own retries.
        timeout = sum((one.provider.timeout for one in members), timedelta(seconds=1))
        super().__init__(timeout=timeout, retry=RetryPolicy(attempts=1), clock=clock)
        if region is not None and region not in {one.region for one in members}:
            raise ConfigurationError(
                f"stores: no store has the region {region!r}",
                hint=f"Regions with a store: {', '.join(one.region for one in members)}.",
            )
        self.region = region
        self.primary = members[0]
        self.listed = tuple(members)
        self.members = tuple(sorted(members, key=lambda one: one.region != region))
        self.store_clock = self.members[0].provider.store_clock
        self._interval = interval
        self._secrets: dict[str, _Secret] = {}
        self._guarantees = replace(
            combine_guarantees(members), read_consistency=ReadConsistency.EVENTUAL, custom_labels=False
        )

    # --- what the caller uses -------------------------------------------------------------------------------------

    def note_used(self, secret_id: str, mark: DocumentMark) -> None:
        """Record the identity that the caller uses now. From then on, no store with an earlier identity is followed."""
        known = self._secret(secret_id)
        known.used = replace(mark, document=None)  # the document holds private keys; the checkpoint holds none
        known.judged.clear()
        known.states = [state if state.standing is None else replace(state, standing=None) for state in known.states]

    def note_rejected(self, secret_id: str, value: SecretBytes) -> None:
        """Record that the caller has rejected a value, so that no comparison with other stores returns it for a while.

        Later, the caller may have the introductions that lead to it.
        """
        until = self.clock.monotonic() + COMPARE_AFTER * self._interval.total_seconds()
        self._secret(secret_id).rejected = hashlib.sha256(value.reveal()).digest(), until

    def expect_change(self, secret_id: str) -> None:
        """Let the next read compare all stores, because a command has reported a change."""
        self._secret(secret_id).compare_at = self.clock.monotonic()

    def states(self, secret_id: str) -> tuple[StoreState, ...]:
        """Return what the last reads have shown of each store, in the order in which they are read."""
        return tuple(self._secret(secret_id).states)

    def last_read(self, secret_id: str) -> StoreRead | None:
        """Return from which store the identity was read last; None before the first read."""
        return self._secret(secret_id).last

    def primary_error(self, secret_id: str) -> ProviderError | None:
        """Return why the primary store could not be read, or why its identity is not used, by the last read.

        None if its identity is used, or if it was not read yet.
        """
        index = next(at for at, one in enumerate(self.members) if one.is_primary)
        known = self._secret(secret_id)
        state, error = known.states[index], known.breakers[index].error
        if isinstance(error, SecretNotFoundError) and known.last is not None:
            # Its own hint is `goatherd init`, whose identity no server would trust.
            error.hint = describe_promotion(known.last.region, state.region)
        if error is not None or state.problem is None:
            return error
        text = f"region {state.region}: {state.problem}"
        return StoreLagError(text, provider=self.scheme, secret_id=secret_id, operation="read")

    # --- reading --------------------------------------------------------------------------------------------------

    async def read(
        self, secret_id: str, at: Label | VersionId | str = CURRENT, *, attempts: int | None = None
    ) -> SecretValue:
        call = self._start_call("read", secret_id)
        place = at if isinstance(at, VersionId) else self._check_label(call, at)
        return await self._run_call(call, lambda now: self._read_in_order(now, place, attempts))

    async def _read(self, call: Call, at: Label | VersionId) -> SecretValue:
        return await self._read_in_order(call, at, None)

    async def _read_in_order(self, call: Call, at: Label | VersionId, attempts: int | None) -> SecretValue:
        if isinstance(at, VersionId):
            member, inner = self._locate(at)
            found = await member.provider.read(self._id_in(member, call), inner)
            return replace(found, version=self._qualify_version(member, found.version))
        known = self._secret(call.secret_id)
        failure: ProviderError | None = None
        unfit: SecretValue | None = None
        lagging: list[str] = []
        now = self.clock.monotonic()
        # If every store fails, a caller that asks again soon is answered by those that may be asked already.
        is_any_due = any(not breaker.time_to_probe(now) for breaker in known.breakers)
        for index, member in enumerate(self.members):
            breaker = known.breakers[index]
            if breaker.time_to_probe(now) and (is_any_due or not breaker.admits_call(now)):
                failure = failure or breaker.error
                continue
            tries = 1 if breaker.is_open else attempts
            try:
                found = await self._read_member(breaker, member, call, at, tries)
            except SecretNotFoundError as error:
                if at != CURRENT:
                    raise
                self._report_state(known, index, problem=str(error), error=error)
                failure = failure or error
                continue
            except ProviderError as error:
                self._report_state(known, index, problem=str(error), error=error)
                failure = error if failure is None or isinstance(failure, SecretNotFoundError) else failure
                continue
            found = replace(found, version=self._qualify_version(member, found.version))
            if at != CURRENT:
                return found
            standing, mark = self._record_standing(known, index, found.value)
            # SECURITY: stores are compared only in a server, which verifies an identity before it uses it
            # (tests/unit/schedule/test_controller.py).
            is_to_compare = self.region is not None and known.used is not None and now >= known.compare_at
            if standing is Standing.SAME and is_to_compare:
                known.compare_at = now + COMPARE_AFTER * self._interval.total_seconds()
                later = await self._find_later(known, index, call, at)
                member, found, mark = later or (member, found, mark)
            if standing in (Standing.SAME, Standing.AHEAD):
                generation = None if mark is None else mark.generation
                known.last = StoreRead(region=member.region, version=found.version.id, generation=generation)
                return found
            if standing is Standing.BEHIND:
                lagging.append(f"region {member.region} holds generation {mark.generation if mark else '?'}")
            elif unfit is None or self._is_rejected(known, unfit.value):
                unfit = found
        if unfit is not None:
            return unfit  # the caller refuses it, and says which rule it breaks
        if lagging and known.used is not None:
            raise call.error(
                StoreLagError,
                f"no store that answers holds generation {known.used.generation}, which is in use: "
                f"{'; '.join(lagging)}",
            )
        assert failure is not None
        raise failure.with_traceback(None)

    async def _find_later(
        self, known: _Secret, first: int, call: Call, at: Label
    ) -> tuple[StoreMember, SecretValue, DocumentMark] | None:
        """Return the identity of the first other store that shows a later one than that in use, and the store.

        Stores that do not answer are skipped. Of the others, a store with a later or an untrusted identity is reported,
        and one that had a problem when it was read before. A copy may lag for a moment, which is not reported.

        Args:
            known: What is known of the secret.
            first: The index of the store that shows the identity in use; those after it are read.
            call, at: What is read.
        """
        for index, member in enumerate(self.members[first + 1 :], first + 1):
            breaker = known.breakers[index]
            if breaker.time_to_probe(self.clock.monotonic()):
                continue
            with suppress(ProviderError, IdentityError):
                try:
                    async with asyncio.timeout(COMPARE_TIMEOUT.total_seconds()):
                        found = await self._read_member(breaker, member, call, at, 1)
                except TimeoutError:
                    why = f"no answer within {COMPARE_TIMEOUT.total_seconds():g} s"
                    breaker.record_failure(self.clock.monotonic(), call.error(UnavailableError, why))
                    continue
                if self._is_rejected(known, found.value):
                    self._report_state(known, index, problem="holds an identity that was rejected", is_reachable=True)
                    continue
                standing, mark = self._compare_identity(known, found.value)
                if standing in (Standing.AHEAD, Standing.UNTRUSTED) or known.states[index].problem is not None:
                    self._record_standing(known, index, found.value)
                if standing is Standing.AHEAD:
                    return member, replace(found, version=self._qualify_version(member, found.version)), mark
        return None

    def _is_rejected(self, known: _Secret, value: SecretBytes) -> bool:
        """Return whether the caller has rejected this value a short time ago."""
        digest, until = known.rejected or (b"", 0.0)
        return self.clock.monotonic() < until and hashlib.sha256(value.reveal()).digest() == digest

    async def _read_member(
        self, breaker: Breaker, member: StoreMember, call: Call, at: Label, attempts: int | None
    ) -> SecretValue:
        breaker.record_call(self.clock.monotonic())
        try:
            found = await member.provider.read(self._id_in(member, call), at, attempts=attempts)
        except ProviderError as error:
            if not (isinstance(error, SecretNotFoundError) and at != CURRENT):
                breaker.record_failure(self.clock.monotonic(), error)
            raise
        breaker.record_success()
        return found

    def _record_standing(self, known: _Secret, index: int, value: SecretBytes) -> tuple[Standing, DocumentMark | None]:
        """Compare the identity `value` of one store with the one in use; record the result and return it."""
        try:
            standing, mark = self._compare_identity(known, value)
        except IdentityError as error:
            self._report_state(known, index, problem=f"the value is no identity document: {error}", is_reachable=True)
            return Standing.SPLIT, None
        # SECURITY: an identity that is earlier than the one in use, or has another history, is never used
        # (tests/unit/stores/test_reader.py); nor does an attacker's identity keep the other stores from being read
        # (tests/unit/stores/test_foreign_identity.py).
        problem = {
            Standing.BEHIND: f"holds generation {mark.generation}, earlier than the one in use",
            Standing.SPLIT: f"holds generation {mark.generation}, which has another history than the one in use",
            Standing.UNTRUSTED: f"holds generation {mark.generation}, which does not follow from the roots in use",
        }.get(standing)
        self._report_state(known, index, problem=problem, mark=mark, standing=standing, is_reachable=True)
        return standing, mark

    def _compare_identity(self, known: _Secret, value: SecretBytes) -> tuple[Standing, DocumentMark]:
        """Compare the identity `value` of a store with the one in use, and return the result.

        Raises:
            IdentityError: The value is no identity document.
        """
        digest = hashlib.sha256(value.reveal()).digest()
        if digest not in known.judged:
            mark = DocumentMark.from_document(decode_document(value.reveal()))
            standing = Standing.SAME if known.used is None else compare_documents(mark, known.used)
            while len(known.judged) >= 2 * len(self.members):
                del known.judged[next(iter(known.judged))]
            known.judged[digest] = standing, replace(mark, document=None)
        return known.judged[digest]

    def _report_state(
        self,
        known: _Secret,
        index: int,
        *,
        problem: str | None,
        error: ProviderError | None = None,
        mark: DocumentMark | None = None,
        standing: Standing | None = None,
        is_reachable: bool = False,
    ) -> None:
        before = known.states[index]
        after = replace(
            before,
            is_reachable=is_reachable,
            generation=before.generation if mark is None else mark.generation,
            standing=standing,
            problem=problem,
        )
        known.states[index] = after
        used = None if known.used is None else known.used.generation
        if problem is not None and (before.problem is None or before.is_reachable is not is_reachable):
            event = Event.STORES_BEHIND if is_reachable else Event.STORES_UNREACHABLE
            code = None if error is None else error.code
            _log.warning(event_text(event, region=after.region, generation=used, code=code, message=problem))
        elif problem is None and before.problem is not None:
            _log.warning(event_text(Event.STORES_RECOVERED, region=after.region, generation=after.generation))

    async def _versions(self, call: Call) -> Sequence[SecretVersion]:
        failure: ProviderError | None = None
        last = self._secret(call.secret_id).last
        # The list belongs to the store from which the identity was read.
        for member in sorted(self.members, key=lambda one: last is not None and one.region != last.region):
            try:
                found = await member.provider.versions(self._id_in(member, call))
            except ProviderError as error:
                failure = failure or error
                continue
            return [self._qualify_version(member, version) for version in found]
        assert failure is not None
        raise failure.with_traceback(None)

    # --- names ----------------------------------------------------------------------------------------------------

    def _secret(self, secret_id: str) -> _Secret:
        found = self._secrets.get(secret_id)
        if found is None:
            # SECURITY: an entry that records which identity is in use is never dropped, because it keeps a store from
            # leading a server back to an earlier one (tests/unit/stores/test_reader.py).
            idle = [one for one, known in self._secrets.items() if known.used is None]
            for one in idle[: max(0, len(idle) + 1 - _SECRETS)]:
                del self._secrets[one]
            found = self._secrets[secret_id] = _Secret(self.members, self._interval, self.clock.monotonic())
        return found

    def _listed_region(self, secret_id: str) -> str:
        last = self._secret(secret_id).last
        return self.members[0].region if last is None else last.region

    def find_view_breaker(self, member: StoreMember, secret_id: str) -> Breaker:
        """Return the circuit breaker for views of a secret in one region's store.

        A view reads more than the identity, and waits for less time: if it fails, the store is still read.
        """
        return self._secret(secret_id).view_breakers[self.members.index(member)]

    def recent_failure(self, member: StoreMember, secret_id: str) -> ProviderError | None:
        known, index, now = self._secret(secret_id), self.members.index(member), self.clock.monotonic()
        pausing = [one for one in (known.breakers[index], known.view_breakers[index]) if one.time_to_probe(now)]
        return pausing[0].error if pausing else None

    # --- no changes -----------------------------------------------------------------------------------------------

    async def _refuse_change(self, call: Call, *_: Any, **__: Any) -> NoReturn:
        raise call.error(ProviderConfigurationError, "this reader of the stores of several regions cannot change them")

    _create = _write = _label = _destroy = _delete = _refuse_change


class WatchingRegionalReader(RegionalReader):
    """A `RegionalReader` whose own region's store reports changes."""

    def watch(self, secret_id: str) -> AsyncIterator[None]:
        """Watch the secret in the own region's store, as `WatchableSecretProvider.watch` does."""
        own = self.members[0]
        assert isinstance(own.provider, WatchableSecretProvider)
        return own.provider.watch(find_secret_id(own, self.primary, secret_id))


def make_reader(
    members: Sequence[StoreMember],
    *,
    region: str | None = None,
    interval: timedelta = _INTERVAL,
    clock: Clock | None = None,
) -> RegionalReader:
    """Return a reader of several regions' stores, which also reports changes if the own region's store does.

    The arguments are those of `RegionalReader`.
    """
    reader = RegionalReader(members, region=region, interval=interval, clock=clock)
    if isinstance(reader.members[0].provider, WatchableSecretProvider):
        return WatchingRegionalReader(members, region=region, interval=interval, clock=clock)
    return reader
