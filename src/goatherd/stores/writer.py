"""Write an identity to the primary store, and check before each change that every follower shows the previous change.

`ReplicatedStore` is what writing commands use in place of a single store. Rules:

- Reads and changes go to the primary store only; a version of a follower is read or destroyed by the id ``REGION:ID``.
- Before a value is written, a label moved or a version destroyed, every follower must show the primary store's present
  `current` and `stable` (`observe`). So no change is made on top of one that a region has not seen.
- A follower is written after the primary store, in the order of the configuration, by compare-and-swap. A later
  identity there, one with another history, or an untrusted one is never overwritten.
- If a process is killed after it wrote the primary store and before it wrote a follower, the next command updates this
  follower.
- A cancel and a rollback do not wait for followers (`ignoring_lag`), and a revocation waits only once for each
  (`leaving_behind`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Final, Self

from goatherd.clock import Clock
from goatherd.errors import (
    ConfigurationError,
    ConflictError,
    IdentityError,
    ProviderAccessDeniedError,
    ProviderError,
    SecretExistsError,
    SecretNotFoundError,
    StoreLagError,
    StoresDifferError,
    UnavailableError,
    VersionDisabledError,
)
from goatherd.identity.document import decode_document
from goatherd.providers.base import Call, RetryPolicy, SecretProvider
from goatherd.providers.breaker import Breaker, new_breaker
from goatherd.providers.values import (
    CURRENT,
    STABLE,
    Label,
    SecretBytes,
    SecretValue,
    SecretVersion,
    VersionId,
    VersionState,
)
from goatherd.stores.comparison import DocumentMark, Standing, compare_documents
from goatherd.stores.members import (
    FOLLOWER_TIMEOUT,
    StoreGroup,
    StoreMember,
    check_members,
    combine_guarantees,
    describe_promotion,
    describe_untrusted,
    find_secret_id,
)
from goatherd.stores.reader import RegionalReader
from goatherd.telemetry import Event, event_text

_log = logging.getLogger("goatherd.stores")

PATIENCE: Final = timedelta(seconds=30)
_POLL: Final = timedelta(milliseconds=250)
_LABELS: Final = (CURRENT, STABLE)


@dataclass(frozen=True, slots=True, kw_only=True)
class FollowerView:
    """What a follower shows, compared with the primary store.

    Attributes:
        region: The region of the follower.
        scheme: URI scheme of the follower's store.
        is_in_step: Whether the follower shows the primary store's `current` and `stable`.
        is_allowed: Whether the operator lets the follower lag (``--allow-lagging``).
        is_lasting: Whether waiting cannot help: the follower holds no identity document, a later identity, one with
            another history, or an untrusted one.
        is_reachable: Whether the follower answered.
        is_denied: Whether the follower has denied access.
        generation: The generation of the follower's identity; None if it is not known.
        standing: How the follower's identity compares with that of the primary store; None if it is not known.
        labels: For each label, the id of the follower's version that it points at.
        problem: Why the follower is not in step, as a phrase; empty if it is.
        hint: What the operator can do.
    """

    region: str
    scheme: str
    is_in_step: bool
    is_allowed: bool = False
    is_lasting: bool = False
    is_reachable: bool = True
    is_denied: bool = False
    generation: int | None = None
    standing: Standing | None = None
    labels: Mapping[Label, VersionId]
    problem: str = ""
    hint: str = ""

    @property
    def is_later(self) -> bool:
        """Whether the follower holds a later identity than the primary store."""
        return self.standing is Standing.AHEAD

    @property
    def is_split(self) -> bool:
        """Whether the follower and the primary store were changed independently."""
        return self.standing is Standing.SPLIT

    @property
    def is_untrusted(self) -> bool:
        """Whether neither this follower nor the primary store holds an identity that follows from the other's roots."""
        return self.standing is Standing.UNTRUSTED

    @property
    def is_holding(self) -> bool:
        """Whether this follower blocks changes of the primary store.

        The operator can allow a follower to lag. But one that holds a later identity, or one with another history,
        always blocks: the primary store may be outdated, so it must not change.
        """
        if self.is_later or self.is_split:
            return True
        return not self.is_in_step and not self.is_allowed


@dataclass(frozen=True, slots=True)
class _Contents:
    """The values that a store has under `current` and `stable`; None where no version has the label."""

    held: Mapping[Label, SecretValue]

    def value_of(self, label: Label) -> SecretBytes | None:
        return self.held[label].value if label in self.held else None

    @property
    def values(self) -> dict[Label, SecretBytes]:
        return {label: found.value for label, found in self.held.items()}

    @property
    def mark(self) -> DocumentMark | None:
        if CURRENT not in self.held:
            return None
        return DocumentMark.from_document(decode_document(self.held[CURRENT].value.reveal()))

    @property
    def labels(self) -> dict[Label, VersionId]:
        return {label: found.version.id for label, found in self.held.items()}


class ReplicatedStore(StoreGroup):
    """Writes one identity to the primary store, and makes sure that the followers in other regions show it.

    Address: none; the section ``[stores]`` of goatherd.toml names the stores.
    Credentials: those of each store.
    Permissions: those of a rotator in each store.
    Guarantees: those of the primary store (`combine_guarantees`).

    Args:
        members: The primary store, then the followers in the order in which they are written.
        allowed: Regions whose store may lag (``--allow-lagging``).
        patience: How long a change waits for every follower to show the previous change.
        clock: Supplies the time, and waits.
    """

    confirms_labels = False

    def __init__(
        self,
        members: Sequence[StoreMember],
        *,
        allowed: Sequence[str] = (),
        patience: timedelta = PATIENCE,
        clock: Clock | None = None,
    ) -> None:
        check_members(members)
        timeout = sum((3 * one.provider.timeout for one in members), patience)
        super().__init__(timeout=timeout, retry=RetryPolicy(attempts=1), clock=clock)
        self.members = tuple(members)
        self.primary, *followers = members
        self.followers = tuple(followers)
        regions = {one.region for one in self.followers}
        if unknown := sorted(set(allowed) - regions):
            raise ConfigurationError(
                f"--allow-lagging: no follower has the region {unknown[0]!r}",
                hint=f"Regions of the followers: {', '.join(sorted(regions)) or 'none'}.",
            )
        self.allowed = frozenset(allowed)
        self.patience = patience
        self.store_clock = self.primary.provider.store_clock
        self._on_left: Callable[[FollowerView], None] | None = None
        self._breakers: dict[tuple[str, str], Breaker] = {}
        self._reader: RegionalReader | None = None
        self._in_step: set[str] = set()
        self._is_gated = True
        self._guarantees = combine_guarantees(members)

    @classmethod
    def from_reader(cls, reader: RegionalReader) -> Self:
        """Return an object for the stores of a reader that is open. It asks no store whose last call failed.

        So a process that makes such an object for each view of a cluster does not wait each time for a store that does
        not answer.
        """
        stores = cls(reader.listed, clock=reader.clock)
        stores._reader = reader
        return stores

    def open_reader(self, interval: timedelta) -> RegionalReader:
        """Return a reader of the same stores, which must be open already. It reads the primary store first.

        Its calls count as calls of this object.

        Args:
            interval: How often the caller reads.
        """
        reader = RegionalReader(self.members, interval=interval, clock=self.clock)
        reader.call_counts = self.call_counts
        return reader

    # --- the followers --------------------------------------------------------------------------------------------

    @contextmanager
    def ignoring_lag(self) -> Iterator[None]:
        """Let the ``with`` block change the primary store although followers lag.

        This is for cancelling a rotation or rolling it back, which must always be possible.
        """
        before, self._is_gated = self._is_gated, False
        try:
            yield
        finally:
            self._is_gated = before

    @contextmanager
    def leaving_behind(self, on_left: Callable[[FollowerView], None]) -> Iterator[None]:
        """Let the ``with`` block continue without a follower that lags for longer than `patience`.

        For a revocation, which one region must not prevent. Unlike `ignoring_lag`, a change still waits for followers
        that lag for a moment. A follower that holds a later identity, or one with another history, still stops the
        change.

        Args:
            on_left: Called with each follower that is left behind; from then on it may lag, as with
                ``--allow-lagging``.
        """
        before, self._on_left = self.allowed, on_left
        try:
            yield
        finally:
            self.allowed, self._on_left = before, None
            self._in_step.clear()

    def _leave_behind(self, holding: Sequence[FollowerView]) -> bool:
        if self._on_left is None or any(view.is_later or view.is_split for view in holding):
            return False
        self.allow_lagging({view.region for view in holding})
        for view in holding:
            self._on_left(view)
        return True

    def allow_lagging(self, regions: Collection[str]) -> None:
        """Let the stores in `regions` lag from now on, as with ``--allow-lagging``."""
        self.allowed |= set(regions)

    async def observe(self, secret_id: str, *, catch_up: bool = False) -> tuple[FollowerView, ...]:
        """Compare every follower with the primary store, and return one view for each.

        Args:
            secret_id: The secret's id in the primary store.
            catch_up: Whether to update followers first, if they are behind.

        Raises:
            ProviderError: The primary store cannot be read.
        """
        failure = self.recent_failure(self.primary, secret_id)
        if failure is not None:
            raise failure.with_traceback(None)
        primary = await self._read_contents(self.primary, secret_id)
        views: list[FollowerView]
        if catch_up:  # in the fixed order, one after the other
            views = [await self._view_follower(one, secret_id, primary, catch_up=True) for one in self.followers]
        else:
            looks = (self._view_follower(one, secret_id, primary, catch_up=False) for one in self.followers)
            views = list(await asyncio.gather(*looks))
        if all(not view.is_holding for view in views):
            self._in_step.add(secret_id)
        else:
            self._in_step.discard(secret_id)
        return tuple(views)

    async def _view_follower(
        self, member: StoreMember, secret_id: str, primary: _Contents, *, catch_up: bool
    ) -> FollowerView:
        view = FollowerView(
            region=member.region,
            scheme=member.provider.scheme,
            is_in_step=False,
            is_allowed=member.region in self.allowed,
            labels={},
        )
        failure = self.recent_failure(member, secret_id)
        if failure is not None:
            return _without_answer(view, failure)
        breaker = self._find_breaker(member, secret_id)
        breaker.record_call(self.clock.monotonic())
        try:
            async with asyncio.timeout(FOLLOWER_TIMEOUT.total_seconds() * (3 if catch_up else 1)):
                found = await self._read_contents(member, secret_id)
                if catch_up:
                    try:
                        found = await self._bring_forward(member, secret_id, primary, found)
                    except (ConflictError, SecretExistsError):
                        found = await self._read_contents(member, secret_id)
                        if found.mark is None:
                            raise
                        # Another process brings it forward, too.
        except (ProviderError, TimeoutError, IdentityError) as error:
            return self._failed_view(view, breaker, member, secret_id, error)
        breaker.record_success()
        return _compare_follower(view, primary, found)

    def _failed_view(
        self,
        view: FollowerView,
        breaker: Breaker,
        member: StoreMember,
        secret_id: str,
        error: ProviderError | TimeoutError | IdentityError,
    ) -> FollowerView:
        if isinstance(error, IdentityError):
            return replace(
                view, is_lasting=True, problem=f"its value is no identity document: {error}", hint=error.hint
            )
        if isinstance(error, TimeoutError):
            error = StoreLagError(
                f"the follower gave no answer within {FOLLOWER_TIMEOUT.total_seconds():g} s",
                provider=member.provider.scheme,
                secret_id=secret_id,
                operation="read",
            )
        if breaker.error is None:
            _log.warning(event_text(Event.STORES_UNREACHABLE, region=member.region, code=error.code, message=error))
        breaker.record_failure(self.clock.monotonic(), error)
        return _without_answer(view, error)

    async def _read_contents(self, member: StoreMember, secret_id: str) -> _Contents:
        """Read the values of `current` and `stable` in one store; leave out what is missing there.

        Raises:
            SecretNotFoundError: The store is the primary one, and has no value with the label `current`.
        """
        inner = find_secret_id(member, self.primary, secret_id)
        attempts = None if member.is_primary else 1
        held: dict[Label, SecretValue] = {}
        for label in _LABELS:
            try:
                held[label] = await member.provider.read(inner, label, attempts=attempts)
            except SecretNotFoundError as error:
                if member.is_primary and label == CURRENT:
                    raise await self._explain_missing(error, secret_id) from error.__cause__
        if STABLE in held and CURRENT in held and held[STABLE].version.id == held[CURRENT].version.id:
            held[STABLE] = held[CURRENT]
        return _Contents(held)

    async def _bring_forward(
        self, member: StoreMember, secret_id: str, primary: _Contents, found: _Contents
    ) -> _Contents:
        """Write what a follower lacks of the primary store's `current` and `stable`, by compare-and-swap.

        A follower that holds a later identity, one with another history, or an untrusted one is not changed.

        Raises:
            ConflictError: Another process has changed the follower meanwhile.
        """
        inner, provider = find_secret_id(member, self.primary, secret_id), member.provider
        if found.values == primary.values:
            return found
        ours, theirs = primary.mark, found.mark
        assert ours is not None
        if theirs is None:
            created = await provider.create(inner, primary.held[CURRENT].value)
            first = SecretValue(version=created, value=primary.held[CURRENT].value)
            found = _Contents({**found.held, CURRENT: first})
        elif compare_documents(theirs, ours) in (Standing.AHEAD, Standing.SPLIT, Standing.UNTRUSTED):
            # SECURITY: a follower that holds a later identity, or one with another history, is not overwritten
            # (tests/unit/stores/test_writer.py); nor is one by a primary store with an attacker's identity
            # (tests/unit/stores/test_foreign_identity.py).
            return found
        stable = primary.value_of(STABLE)
        if stable is not None and stable != primary.value_of(CURRENT):
            await self._put_stable(member, inner, stable, found)
        before = found.held[CURRENT]
        if before.value != primary.held[CURRENT].value:
            value = primary.held[CURRENT].value
            written = await provider.write(inner, value, label=CURRENT, expected=before.version.id)
            found = _Contents({**found.held, CURRENT: SecretValue(version=written, value=value)})
        if stable is not None and stable == primary.value_of(CURRENT):
            await self._put_stable(member, inner, stable, found)
        return await self._read_contents(member, secret_id)

    async def _put_stable(self, member: StoreMember, inner: str, stable: SecretBytes, found: _Contents) -> None:
        if found.value_of(STABLE) == stable:
            return
        holder = found.labels.get(STABLE)
        if found.value_of(CURRENT) == stable:
            await member.provider.label(inner, STABLE, found.held[CURRENT].version.id, expected=holder)
            return
        version = await _find_value(member.provider, inner, stable)
        if version is not None:
            await member.provider.label(inner, STABLE, version, expected=holder)
        else:
            await member.provider.write(inner, stable, label=STABLE, expected=holder)

    async def _wait_for_followers(self, call: Call) -> None:
        """Wait until every follower shows what the primary store holds; then the caller may change the primary store.

        Raises:
            StoreLagError: A follower did not show the present content in time. Nothing was changed.
            StoresDifferError: Waiting does not help. Nothing was changed.
        """
        if call.secret_id in self._in_step or not self.followers:
            return
        if not self._is_gated:
            # A lagging follower does not stop a rollback; another store that has been promoted does.
            views = await self.observe(call.secret_id)
            if promoted := [view for view in views if view.is_later or view.is_split]:
                raise holding_error(call, promoted)
            return
        until = self.clock.monotonic() + self.patience.total_seconds()
        while True:
            views = await self.observe(call.secret_id, catch_up=True)
            holding = [view for view in views if view.is_holding]
            if not holding:
                return
            lasting = [view for view in holding if view.is_lasting]
            if not lasting and self.clock.monotonic() < until:
                await self.clock.sleep(_POLL)
            elif not self._leave_behind(lasting or holding):
                raise holding_error(call, lasting or holding)

    async def _update_followers(self, call: Call) -> None:
        """Update the followers after a change; one that fails stays behind."""
        self._in_step.discard(call.secret_id)
        if not self.followers:
            return
        try:
            await self.observe(call.secret_id, catch_up=True)
        except ProviderError as error:
            _log.warning(event_text(Event.STORES_UNREACHABLE, region=self.primary.region, code=error.code))

    # --- the primary store ----------------------------------------------------------------------------------------

    def _listed_region(self, secret_id: str) -> str:  # noqa: ARG002
        return self.primary.region

    def _find_breaker(self, member: StoreMember, secret_id: str) -> Breaker:
        if self._reader is not None:
            return self._reader.find_view_breaker(member, secret_id)
        return self._breakers.setdefault((member.region, secret_id), new_breaker(timedelta(seconds=5)))

    def recent_failure(self, member: StoreMember, secret_id: str) -> ProviderError | None:
        if self._reader is not None:
            return self._reader.recent_failure(member, secret_id)
        breaker, now = self._find_breaker(member, secret_id), self.clock.monotonic()
        if breaker.error is not None and breaker.error.operation != "read":
            # A change that fails half-way leaves a version behind, so it is repeated after the whole pause only.
            return breaker.error if breaker.time_to_probe(now) else None
        return None if breaker.admits_call(now) else breaker.error

    async def _read(self, call: Call, at: Label | VersionId) -> SecretValue:
        if not isinstance(at, VersionId):
            try:
                return await self.primary.provider.read(call.secret_id, at)
            except SecretNotFoundError as error:
                if at != CURRENT:
                    raise
                raise await self._explain_missing(error, call.secret_id) from error.__cause__
            except UnavailableError as error:
                lost, others = self.primary.region, " or ".join(one.region for one in self.followers)
                error.hint += (
                    f" If the store of region {lost} is lost permanently, `goatherd stores promote REGION` makes the"
                    f" store of another region the primary store: {others}."
                )
                raise
        member, inner = self._locate(at)
        found = await member.provider.read(self._id_in(member, call), inner)
        return replace(found, version=self._qualify_version(member, found.version))

    async def _explain_missing(self, error: SecretNotFoundError, secret_id: str) -> SecretNotFoundError:
        """Set the hint of the error that the primary store lacks the secret, if a follower has it; return the error."""
        for member in self.followers:
            with suppress(ProviderError, TimeoutError):
                async with asyncio.timeout(FOLLOWER_TIMEOUT.total_seconds()):
                    await member.provider.read(find_secret_id(member, self.primary, secret_id), attempts=1)
                error.hint = describe_promotion(member.region, self.primary.region)
                break
        return error

    async def _versions(self, call: Call) -> Sequence[SecretVersion]:
        return await self.primary.provider.versions(call.secret_id)

    async def _create(self, call: Call, value: SecretBytes, label: Label) -> SecretVersion:
        for member in self.followers:
            inner = self._id_in(member, call)
            try:
                found = await member.provider.read(inner)
            except SecretNotFoundError:
                continue
            if found.value != value:
                text = f"the store of region {member.region} holds the secret {inner!r} already"
                hint = describe_promotion(member.region, self.primary.region)
                raise call.error(SecretExistsError, text, hint=hint)
        version = await self.primary.provider.create(call.secret_id, value, label)
        await self._update_followers(call)
        return version

    async def _write(self, call: Call, value: SecretBytes, label: Label, expected: VersionId | None) -> SecretVersion:
        await self._wait_for_followers(call)
        version = await self.primary.provider.write(call.secret_id, value, label=label, expected=expected)
        await self._update_followers(call)
        return version

    async def _label(self, call: Call, label: Label, version: VersionId, expected: VersionId | None) -> None:
        await self._wait_for_followers(call)
        await self.primary.provider.label(call.secret_id, label, version, expected=expected)
        await self._update_followers(call)

    async def _unlabel(self, call: Call, label: Label, expected: VersionId) -> None:
        await self._wait_for_followers(call)
        await self.primary.provider.unlabel(call.secret_id, label, expected=expected)
        await self._update_followers(call)

    async def _destroy(self, call: Call, version: VersionId) -> None:
        await self._wait_for_followers(call)
        place, at = self._locate(version)
        if not place.is_primary:
            await place.provider.destroy(self._id_in(place, call), at)
            return
        # The copies first: once the primary store has destroyed the value, no copy can be recognized by it.
        try:
            value = (await self.primary.provider.read(call.secret_id, version)).value
        except (VersionDisabledError, SecretNotFoundError):
            value = None
        for member in self.followers:
            if value is None:
                continue
            try:
                await self._destroy_copies(member, call, value)
            except ProviderError as error:
                if member.region not in self.allowed:
                    raise
                # `copied_versions` lists them, once the store answers.
                text = f"copies of version {version} were not destroyed there: {error}"
                _log.warning(event_text(Event.STORES_UNREACHABLE, region=member.region, code=error.code, message=text))
        await self.primary.provider.destroy(call.secret_id, version)

    async def _destroy_copies(self, member: StoreMember, call: Call, value: SecretBytes) -> None:
        failure = self.recent_failure(member, call.secret_id)
        if failure is not None:
            raise failure.with_traceback(None)
        inner = self._id_in(member, call)
        for copy in [one async for one in _find_copies(member.provider, inner, value)]:
            await member.provider.destroy(inner, copy)

    async def _delete(self, call: Call) -> None:
        for member in self.followers:
            await member.provider.delete(self._id_in(member, call))
        await self.primary.provider.delete(call.secret_id)

    def takes_label(self, label: str) -> bool:
        return all(one.provider.takes_label(label) for one in self.members)


def _compare_follower(view: FollowerView, primary: _Contents, found: _Contents) -> FollowerView:
    """Compare a follower that answered (`found`) with the primary store, and add what it lacks to its view."""
    ours, theirs = primary.mark, found.mark
    assert ours is not None
    view = replace(view, labels=found.labels)
    if theirs is None:
        return replace(view, problem="it does not hold the secret yet")
    standing = compare_documents(theirs, ours)
    view = replace(view, generation=theirs.generation, standing=standing)
    if standing in (Standing.AHEAD, Standing.SPLIT, Standing.UNTRUSTED):
        text, hint = _describe_difference(view.region, standing, theirs, ours)
        return replace(view, is_lasting=True, problem=text, hint=hint)
    if standing is Standing.BEHIND:
        return replace(view, problem=f"it shows generation {theirs.generation}, the primary store {ours.generation}")
    if found.value_of(STABLE) != primary.value_of(STABLE):
        return replace(view, problem="its label stable does not point at the primary store's stable version")
    return replace(view, is_in_step=True)


def _describe_difference(region: str, standing: Standing, theirs: DocumentMark, ours: DocumentMark) -> tuple[str, str]:
    if standing is Standing.AHEAD:
        text = f"it holds generation {theirs.generation}, later than generation {ours.generation} of the primary store"
        hint = (
            "If a region was promoted, write the [stores] section that `goatherd stores promote` printed into"
            f" goatherd.toml. Otherwise the primary store holds an older identity than before: make {region} the"
            " primary store. `goatherd stores sync` then brings the others forward."
        )
        return text, hint
    if standing is Standing.UNTRUSTED:
        text = (
            f"it holds generation {theirs.generation} of an identity that no root in the primary store (generation"
            f" {ours.generation}) leads to, or the other way round"
        )
        return text, describe_untrusted(region)
    text = (
        f"it holds generation {theirs.generation} with another history than generation {ours.generation} of the"
        " primary store"
    )
    return text, "Both stores were changed independently. `goatherd doctor` shows both histories and the ways out."


def _without_answer(view: FollowerView, error: ProviderError) -> FollowerView:
    is_denied = isinstance(error, ProviderAccessDeniedError)
    return replace(view, is_reachable=False, is_denied=is_denied, problem=str(error), hint=error.hint)


def holding_error(call: Call, holding: Sequence[FollowerView]) -> ProviderError:
    """Return the error for a change that was not made, because the followers in `holding` block it."""
    text = "; ".join(f"region {view.region}: {view.problem}" for view in holding)
    kind = StoresDifferError if any(view.is_lasting for view in holding) else StoreLagError
    hint = " ".join(dict.fromkeys(view.hint for view in holding if view.hint))
    if kind is StoreLagError:
        regions = " ".join(f"--allow-lagging {view.region}" for view in holding)
        hint = (
            f"{hint} `goatherd stores status` shows each region. If the region is lost, `{regions}` leaves it out."
        ).strip()
    return call.error(kind, f"nothing was changed: {text}", hint=hint or None, final=kind is not StoreLagError)


async def _find_copies(provider: SecretProvider, secret_id: str, value: SecretBytes) -> AsyncGenerator[VersionId]:
    """Yield the ids of the readable versions of a secret that hold `value`, newest first."""
    for version in await provider.versions(secret_id):
        if version.state is not VersionState.ENABLED:
            continue
        with suppress(SecretNotFoundError, VersionDisabledError):
            if (await provider.read(secret_id, version.id)).value == value:
                yield version.id


async def _find_value(provider: SecretProvider, secret_id: str, value: SecretBytes) -> VersionId | None:
    async with aclosing(_find_copies(provider, secret_id, value)) as copies:
        return await anext(copies, None)
