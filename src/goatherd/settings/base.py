"""The settings of a server, and the base class of their sources, which handles subscribers, refreshes and failures.

The subclasses read and write the settings. Rules: a rejected identity changes only `SettingsSource.status`. An accepted
identity is put into use in one step, without an ``await`` in between, so that no other task sees only a part of it.

SECURITY: `describe_identity` is built from single ids and numbers, never from a whole document
(tests/cluster/test_exchanges.py, tests/unit/agent/test_own_api.py).
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from enum import StrEnum
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

import goatherd
from goatherd.clock import Clock, SystemClock
from goatherd.errors import GoatherdError, IdentityError, SettingsError
from goatherd.identity.document import IdentityDocument, source_digest
from goatherd.identity.session import OwnedSession, Session
from goatherd.providers.call_metrics import CallCounts
from goatherd.providers.lifetime import SharedLifetime
from goatherd.serving.signals import cancel_tasks
from goatherd.stores.reader import StoreRead, StoreState
from goatherd.telemetry import Event, event_text

if TYPE_CHECKING:
    from goatherd.wire.commit import Commit


_log = logging.getLogger("goatherd.settings")


class Origin(StrEnum):
    """The kind of source that a server's identity was loaded from."""

    STORE = "store"
    FILE = "file"
    LAST_KNOWN_GOOD = "last known good"
    """A sealed copy of the store's identity; the store has not answered since the start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DBSettings:
    """The identity document that a server uses, and how it was loaded.

    Attributes:
        current: The current root of the identity, with its private key.
        roots: The public halves of the document's roots.
        trusted: User sessions in the source (a ``settings.json``); always empty if the source is a secret store.
        document: The identity document.
        loaded_at_ms: When the identity was adopted, in milliseconds since 1970.
        source: Human-readable description of where the identity was read from.
        notes: Human-readable warnings, and what was changed in the identity when it was read.
        confirmed_at_ms: If the identity is from a last known good copy: when the store last confirmed it, in
            milliseconds since 1970. Otherwise None.
    """

    current: OwnedSession
    roots: tuple[Session, ...]
    trusted: tuple[Session, ...] = field(default=(), repr=False)
    document: IdentityDocument
    loaded_at_ms: int
    source: str
    notes: tuple[str, ...] = ()
    confirmed_at_ms: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why a server has rejected the identity document that it has read from the store or file.

    Attributes:
        code: The error's stable code.
        message: The error's message, without key material.
        hint: What to do next.
        at_ms: When the identity was rejected, in milliseconds since 1970.
        version: The store's id of the rejected version; None if it is not known.
    """

    code: str
    message: str
    hint: str
    at_ms: int
    version: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingsStatus:
    """How fresh a server's identity is, and the result of the latest reads from its source.

    Attributes:
        source: Human-readable description of the source.
        generation: Generation of the identity in use; None before the first load.
        version: The store's id of the version that holds the identity in use.
        last_success_ms: When an identity was last read from the source without an error, in milliseconds since 1970.
        age: Time that has passed since `last_success_ms`.
        failures: Number of refreshes in a row that failed, or whose identity was rejected.
        last_refusal: The last failure or rejection; kept after a recovery.
        origin: The kind of source of the identity in use.
        is_backing_off: Whether the source is read at growing intervals, because it fails.
        is_watching: Whether the source currently notifies this server of changes.
        view_interval: Maximum time between two reads of a source that answers; None if it is not read regularly.
        refused: Number of reads since the start whose identity was rejected, by error code.
        calls: Counts of calls to the store, if the source is a store; shared by all users of the same provider.
        has_seen_signed: Whether a signed identity was ever adopted, so that an unsigned one is rejected.
        region: The region of this server; None if its configuration names none.
        store_read: From which region's store the identity was read last; None with a single store.
        stores: What the last reads have shown of each region's store; empty with a single store.
    """

    source: str
    generation: int | None
    version: str | None
    last_success_ms: int | None
    age: timedelta | None
    failures: int
    last_refusal: Refusal | None
    origin: Origin = Origin.STORE
    is_backing_off: bool = False
    is_watching: bool = False
    view_interval: timedelta | None = None
    refused: Mapping[str, int] = field(default_factory=dict)
    calls: CallCounts | None = field(default=None, repr=False, compare=False)
    has_seen_signed: bool = False
    region: str | None = None
    store_read: StoreRead | None = None
    stores: tuple[StoreState, ...] = ()

    @property
    def is_degraded(self) -> bool:
        """Whether the last refresh of the identity failed or was rejected, so that the one in use may be outdated."""
        return self.failures > 0


Subscriber = Callable[[DBSettings], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Introductions:
    """Unverified commits of ``/sys/sessions`` that introduce roots, as read from one server or file.

    Attributes:
        place: The URL of the server, or a description of the file.
        commits: The commits that introduce roots; those that introduce users' sessions are left out.
        problem: Why reading the commits failed; None if it succeeded.
    """

    place: str
    commits: tuple[Commit, ...] = field(default=(), repr=False)
    problem: str | None = None


IntroductionSource = Callable[[IdentityDocument], AsyncIterator[Introductions]]
"""Yields root introductions, source by source, for a document to which no chain of endorsements leads."""

RejectionSource = Callable[[IdentityDocument], Awaitable[Sequence[str]]]
"""Returns the URLs of the peers that reject the current root of a document; none if any peer accepts it."""


class SettingsProvider(Protocol):
    """The interface of an object that gives a server its settings: the identity document and the user sessions.

    Enter it as an async context manager, then call `load` before any other method.
    """

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    @property
    def settings(self) -> DBSettings:
        """The settings (identity and user sessions) that the server uses now.

        Raises `SettingsError` before the first `load`.
        """
        ...

    @property
    def status(self) -> SettingsStatus:
        """How fresh the settings in use are, and the result of the latest reads from their source."""
        ...

    async def load(self) -> DBSettings:
        """Read the settings for the first time and return them.

        Later calls do the same as `refresh`, then return the settings.
        """
        ...

    async def refresh(self) -> bool:
        """Read the settings from their source now; return whether the identity in use has changed.

        A failure is recorded in `status`, not raised.
        """
        ...

    async def update(
        self, *, document: IdentityDocument | None = None, trusted_sessions: Iterable[Session] = ()
    ) -> bool:
        """Write a changed identity or new user sessions to the source; return whether the identity was written."""
        ...

    def subscribe(self, callback: Subscriber) -> Callable[[], None]:
        """Call `callback` with the new settings whenever they change; return a function that ends the subscription."""
        ...

    def for_org(self, org: str) -> SettingsProvider:
        """Return the settings provider for one organization's identity."""
        ...


DBSettingsProvider = SettingsProvider
"""Alias; GoatDB's proposal uses this name."""


class SettingsSource(ABC):
    """Base class of the settings from a file and from a store. It keeps the identity in use, and records failures.

    It notifies subscribers of changes, and runs one refresh at a time.

    Attributes:
        origin: The kind of this source.
        introductions: Reads, from other servers, commits by which one root introduces another. They prove that an
            identity follows the one in use even if roots in between were removed from it. Set by the server that uses
            these settings; None if there is no such source.
        rejections: Asks the peers, before the first identity is used, whether they trust its current root. Set in the
            same way.
        recalled: The roots that this server used before its last start, according to its own record. Some of them may
            have been removed from the identity since.
    """

    origin: ClassVar[Origin]
    introductions: IntroductionSource | None = None
    rejections: RejectionSource | None = None
    recalled: tuple[Session, ...] = ()

    def __init__(self, *, source: str, clock: Clock | None) -> None:
        self._source = source
        self._clock: Clock = clock or SystemClock()
        self._settings: DBSettings | None = None
        self._version: str | None = None
        self._last_success_ms: int | None = None
        self._failures = 0
        self._refusals = dict.fromkeys(IdentityError.all_codes(), 0)
        self._last_refusal: Refusal | None = None
        self._subscribers: dict[object, Subscriber] = {}
        self._active: asyncio.Task[bool] | None = None
        self._queued: asyncio.Task[bool] | None = None
        self._refused_version: str | None = None
        self._lifetime = SharedLifetime()

    async def __aenter__(self) -> Self:
        await self._lifetime.enter_resource(self._open_source)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._lifetime.leave_resource(self._stop)

    async def _stop(self) -> None:
        try:
            await cancel_tasks(self._queued, self._active)
        finally:
            self._queued = self._active = None
            await self._close_source()

    @abstractmethod
    async def _open_source(self) -> None:
        """Open the file or store that the settings are read from."""

    @abstractmethod
    async def _close_source(self) -> None:
        """Close the file or store that the settings are read from."""

    @property
    def settings(self) -> DBSettings:
        """The settings (identity and user sessions) that the server uses now.

        Raises:
            SettingsError: `load` was not called yet, or failed.
        """
        if self._settings is None:
            raise SettingsError(f"{self._source} has not been loaded", hint="Call load() first.")
        return self._settings

    @property
    def status(self) -> SettingsStatus:
        """How fresh the settings in use are, and the result of the latest reads from their source."""
        age = None
        if self._last_success_ms is not None:
            age = timedelta(milliseconds=max(0, self._clock.now_ms() - self._last_success_ms))
        return SettingsStatus(
            source=self._source,
            generation=self._settings.document.generation if self._settings else None,
            version=self._version,
            last_success_ms=self._last_success_ms,
            age=age,
            failures=self._failures,
            refused=dict(self._refusals),
            last_refusal=self._last_refusal,
            origin=Origin.LAST_KNOWN_GOOD if self._is_copy else self.origin,
        )

    @property
    def _is_copy(self) -> bool:
        return self._settings is not None and self._settings.confirmed_at_ms is not None

    def subscribe(self, callback: Subscriber) -> Callable[[], None]:
        """Call `callback` with the new settings whenever they change; return a function that ends the subscription.

        `callback` is called on the event loop.
        """
        token = object()
        self._subscribers[token] = callback
        return lambda: self._subscribers.pop(token, None) and None

    async def load(self) -> DBSettings:
        """Read the settings for the first time and return them.

        Later calls do the same as `refresh`, then return the settings.

        Raises:
            SettingsError: The settings file is missing or cannot be read.
            ProviderError: The store cannot be read, or does not hold the secret.
            IdentityError: The identity was rejected. No new identity is created instead.
        """
        if self._settings is not None:
            await self.refresh()
            return self._settings
        failure: IdentityError
        try:
            settings = await self._read_first()
        except IdentityError as error:
            failure = error
        else:
            if self._settings is None:
                self._apply_settings(settings, Event.SETTINGS_LOADED)
            return self.settings
        raise type(failure)(f"{self._source}: {failure}", hint=failure.hint)

    async def refresh(self) -> bool:
        """Read the settings from their file or store now, and adopt a changed identity.

        Calls that come during a refresh wait for the next one and share it, because the one in progress may have read
        the source before the change that the caller expects.

        Returns:
            Whether the identity in use has changed. After a failure or a rejection it is False, and `status` has the
            reason.

        Raises:
            SettingsError: `load` was not called yet, or failed.
        """
        return await self._share_refresh(is_requested=True)

    async def _share_refresh(self, *, is_requested: bool) -> bool:
        """Start a refresh of the settings, or join a refresh that is queued but has not started.

        `is_requested` is true if a caller asked for the refresh and waits for it, false for a periodic poll.
        """
        _ = self.settings
        if self._queued is not None and not self._queued.done():
            task = self._queued
        elif self._active is not None and not self._active.done():
            look = self._refresh_once(self._active, is_requested=is_requested)
            task = self._queued = asyncio.create_task(look, name=f"refresh {self._source} again")
        else:
            look = self._refresh_once(None, is_requested=is_requested)
            task = self._active = asyncio.create_task(look, name=f"refresh {self._source}")
        # The cancellation of one caller must not cancel the refresh of the others.
        return await asyncio.shield(task)

    async def _refresh_once(self, before: asyncio.Task[bool] | None, *, is_requested: bool) -> bool:
        if before is not None:
            await asyncio.wait({before})
            self._active, self._queued = self._queued, None
        try:
            found = await self._read_again(is_requested=is_requested)
        except GoatherdError as error:
            self._record_failure(error)
            return False
        if found is None:
            self._record_success()
            return False
        self._apply_settings(found, Event.SETTINGS_CHANGED)
        return True

    @abstractmethod
    async def _read_first(self) -> DBSettings:
        """Read the settings from the file or store for the first time."""

    @abstractmethod
    async def _read_again(self, *, is_requested: bool) -> DBSettings | None:
        """Read the file or store again; return the new settings, or None if nothing has changed.

        If it raises an error, the source could not be read or the new identity is rejected, and the settings in use
        stay. `is_requested` is true if a caller waits for the result, false for a periodic poll.
        """

    def _apply_settings(self, settings: DBSettings, event: Event) -> None:
        self._settings = settings
        if settings.confirmed_at_ms is None:
            self._record_success()
        else:
            self._last_success_ms = settings.confirmed_at_ms
        document = settings.document
        _log.info(
            event_text(
                event,
                source=self._source,
                version=self._version,
                generation=document.generation,
                current=document.current.id,
                phase=document.phase or "steady",
            )
        )
        if event is not Event.SETTINGS_LOADED:
            self._notify_subscribers(settings)

    def _notify_subscribers(self, settings: DBSettings) -> None:
        for callback in list(self._subscribers.values()):
            try:
                callback(settings)
            except Exception:  # noqa: BLE001 - one that fails must not keep the others on the old key
                _log.exception(event_text(Event.SETTINGS_SUBSCRIBER_FAILED, source=self._source))

    def _record_success(self) -> None:
        if self._failures:
            _log.warning(event_text(Event.SETTINGS_RECOVERED, source=self._source, failures=self._failures))
        self._failures = 0
        self._last_success_ms = self._clock.now_ms()
        if self._settings is not None and self._is_copy:
            self._settings = replace(self._settings, source=self._source, confirmed_at_ms=None)

    def _record_failure(self, error: GoatherdError) -> None:
        self._failures += 1
        if isinstance(error, IdentityError):
            self._refusals[error.code] = self._refusals.get(error.code, 0) + 1
        last = self._last_refusal
        self._last_refusal = Refusal(
            code=error.code,
            message=str(error),
            hint=error.hint,
            at_ms=self._clock.now_ms(),
            version=self._refused_version if isinstance(error, IdentityError) else None,
        )
        event = Event.SETTINGS_REFUSED if isinstance(error, IdentityError) else Event.SETTINGS_UNREACHABLE
        is_news = self._failures == 1 or last is None or last.code != error.code
        _log.log(
            logging.ERROR if is_news else logging.DEBUG,
            event_text(event, source=self._source, code=error.code, failures=self._failures, message=error),
        )


def describe_identity(document: IdentityDocument, status: SettingsStatus) -> dict[str, Any]:
    """Return the JSON members by which a server reports its version, the identity that it uses, and how fresh it is."""
    age, refusal, interval = status.age, status.last_refusal, status.view_interval
    return {
        "documentRoots": [root.id for root in document.roots],
        "revoked": sorted(document.revoked_ids),
        "generation": document.generation,
        # Whether it refuses an unsigned document: a command that would sign one asks (rotation.signed_store).
        "signed": status.has_seen_signed,
        "digest": source_digest(document),
        "phase": str(document.phase or "steady"),
        "rotation": document.rotation.id if document.rotation is not None else None,
        "viewAgeMs": None if age is None else round(age / timedelta(milliseconds=1)),
        "degraded": status.is_degraded,
        "source": str(status.origin),
        # A rotation that sees a server reject the document rolls back at once (`goatherd.cluster.observer`).
        "refusal": {"code": refusal.code} if status.is_degraded and refusal is not None else None,
        "viewIntervalMs": None if interval is None else round(interval / timedelta(milliseconds=1)),
        "watching": status.is_watching,
        "version": goatherd.__version__,
        **(_describe_stores(status) if status.stores else {}),
    }


def _describe_stores(status: SettingsStatus) -> dict[str, Any]:
    return {
        "region": status.region,
        "storeRegion": None if status.store_read is None else status.store_read.region,
        "storeVersion": status.version,
        # Regions whose store did not answer, or holds an earlier identity than this server uses.
        "storesNotFollowed": [one.region for one in status.stores if one.is_followed is False],
    }
