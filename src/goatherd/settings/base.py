"""The settings of a server, and the base class of their sources: the identity in use, subscribers, refreshes, failures.

The subclasses read and write. Rules: a rejected identity changes nothing but `SettingsSource.status`. Once an identity
was accepted, nothing is awaited before it is in use.

SECURITY: `describe_identity` is built from single ids and numbers, never from a whole document
(tests/cluster/test_exchanges.py, tests/unit/agent/test_own_api.py).
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from enum import StrEnum
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

from goatherd.clock import Clock, SystemClock
from goatherd.errors import GoatherdError, IdentityError, SettingsError
from goatherd.identity.document import IdentityDocument, source_digest
from goatherd.identity.session import OwnedSession, Session
from goatherd.providers.call_metrics import CallCounts
from goatherd.providers.lifetime import SharedLifetime
from goatherd.telemetry import Event, event_text

if TYPE_CHECKING:
    from goatherd.wire.commit import Commit


_log = logging.getLogger("goatherd.settings")


class Origin(StrEnum):
    """The kinds of sources of the identity in use."""

    STORE = "store"
    FILE = "file"
    LAST_KNOWN_GOOD = "last known good"
    """A sealed copy of the store's identity; the store has not answered since the start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DBSettings:
    """The identity that a server uses, and how it was loaded.

    Attributes:
        current: The current root, with its private key.
        roots: The public halves of the document's roots.
        trusted: User sessions that the source holds; always empty for a store.
        document: The identity document.
        loaded_at_ms: When the identity was adopted, in milliseconds since 1970.
        source: Human-readable description of the source.
        notes: Human-readable warnings, and changes made while the source was read.
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
    """Why the identity in the source is not in use.

    Attributes:
        code: The error's stable code.
        message: The error's message, without key material.
        hint: What to do next.
        at_ms: When the identity was rejected, in milliseconds since 1970.
        version: The store's version id, if it was read.
    """

    code: str
    message: str
    hint: str
    at_ms: int
    version: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingsStatus:
    """The freshness of the identity in use.

    Attributes:
        source: Human-readable description of the source.
        generation: Generation of the identity in use; None before the first load.
        version: The store's id of the version in use.
        last_success_ms: When the source last gave a usable answer, in milliseconds since 1970.
        age: Time since `last_success_ms`.
        failures: Number of refreshes in a row that failed or were rejected.
        last_refusal: The last failure or rejection; kept after a recovery.
        origin: The kind of source of the identity in use.
        is_backing_off: Whether the source is read at growing intervals, because it fails.
        is_watching: Whether the source currently reports changes.
        view_interval: Maximum time between two reads of a source that answers; None if it is not read regularly.
        refused: Number of reads since the start whose identity was rejected, by error code.
        calls: Counts of calls of the store, if there is one; shared by all users of the same provider.
        has_seen_signed: Whether a signed identity was ever adopted, so that an unsigned one is rejected.
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

    @property
    def is_degraded(self) -> bool:
        """Whether the last refresh failed or was rejected, so that the identity in use may be outdated."""
        return self.failures > 0


Subscriber = Callable[[DBSettings], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Introductions:
    """Unverified commits of ``/sys/sessions`` that introduce roots, from one server or file.

    Attributes:
        place: Where the commits are from: a URL or a description.
        commits: The commits; none introduces a user's session.
        problem: Why reading the commits failed, or None.
    """

    place: str
    commits: tuple[Commit, ...] = field(default=(), repr=False)
    problem: str | None = None


IntroductionSource = Callable[[IdentityDocument], AsyncIterator[Introductions]]
"""Yields root introductions, source by source, for a document to which no chain of endorsements leads."""


class SettingsProvider(Protocol):
    """Gives a server its settings. Enter it as an async context manager, then call `load` before anything else."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    @property
    def settings(self) -> DBSettings:
        """The settings in use. Raises `SettingsError` before the first `load`."""
        ...

    @property
    def status(self) -> SettingsStatus:
        """The freshness of the settings in use."""
        ...

    async def load(self) -> DBSettings:
        """Read the settings for the first time and return them; later, `refresh` and return the settings in use."""
        ...

    async def refresh(self) -> bool:
        """Read the source now; return whether the identity in use has changed. A failure is recorded, not raised."""
        ...

    async def update(
        self, *, document: IdentityDocument | None = None, trusted_sessions: Iterable[Session] = ()
    ) -> bool:
        """Write a changed identity or new user sessions; return whether the identity was written."""
        ...

    def subscribe(self, callback: Subscriber) -> Callable[[], None]:
        """Call `callback` with every new settings; return a function that ends the subscription."""
        ...

    def for_org(self, org: str) -> SettingsProvider:
        """Return the provider for one organization's identity."""
        ...


DBSettingsProvider = SettingsProvider
"""Alias; GoatDB's proposal uses this name."""


class SettingsSource(ABC):
    """Base class of both sources: the identity in use, its subscribers, one refresh at a time, a record of failures.

    Attributes:
        origin: The kind of this source.
        introductions: Returns introductions of roots, to verify an identity if roots have left it; None if there are
            none to ask. Set by the server that uses these settings.
        recalled: The roots that this server used before its last start, as it has recorded them. Some may have left the
            identity since.
    """

    origin: ClassVar[Origin]
    introductions: IntroductionSource | None = None
    recalled: tuple[Session, ...] = ()

    def __init__(self, *, source: str, clock: Clock | None) -> None:
        self._source = source
        self._clock: Clock = clock or SystemClock()
        self._settings: DBSettings | None = None
        self._version: str | None = None
        self._last_success_ms: int | None = None
        self._failures = 0
        self._refusals = dict.fromkeys(identity_codes(), 0)
        self._last_refusal: Refusal | None = None
        self._subscribers: dict[object, Subscriber] = {}
        self._active: asyncio.Task[bool] | None = None
        self._queued: asyncio.Task[bool] | None = None
        self._refused_version: str | None = None
        self._lifetime = SharedLifetime()

    async def __aenter__(self) -> Self:
        await self._lifetime.enter_resource(self._open_source)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._lifetime.leave_resource(self._stop)

    async def _stop(self) -> None:
        try:
            await cancel_tasks(self._queued, self._active)
        finally:
            self._queued = self._active = None
            await self._close_source()

    @abstractmethod
    async def _open_source(self) -> None:
        """Open the resources of the source."""

    @abstractmethod
    async def _close_source(self) -> None:
        """Close the resources of the source."""

    @property
    def settings(self) -> DBSettings:
        """The settings in use.

        Raises:
            SettingsError: Nothing has been loaded yet.
        """
        if self._settings is None:
            raise SettingsError(f"{self._source} has not been loaded", hint="Call load() first.")
        return self._settings

    @property
    def status(self) -> SettingsStatus:
        """The freshness of the settings in use."""
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
        """Call `callback`, on the event loop, with every new settings; return a function that ends the subscription."""
        token = object()
        self._subscribers[token] = callback
        return lambda: self._subscribers.pop(token, None) and None

    async def load(self) -> DBSettings:
        """Read the settings for the first time; in later calls, `refresh` and return the settings in use.

        Raises:
            SettingsError: The file is missing or cannot be read.
            ProviderError: The store cannot be read, or has no such secret.
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
        """Read the source now.

        Calls during a refresh share the next one, because the one in progress may have started before the change.

        Returns:
            Whether the identity in use has changed. After a failure or a rejection it is False, and `status` has the
            reason.

        Raises:
            SettingsError: Nothing has been loaded yet.
        """
        return await self._share_refresh(is_told=True)

    async def _share_refresh(self, *, is_told: bool) -> bool:
        """Start a refresh, or join one that is queued but has not started.

        `is_told` is true if a caller asked for the refresh and waits for it, false for a periodic poll.
        """
        _ = self.settings
        if self._queued is not None and not self._queued.done():
            task = self._queued
        elif self._active is not None and not self._active.done():
            look = self._refresh_once(self._active, is_told=is_told)
            task = self._queued = asyncio.create_task(look, name=f"refresh {self._source} again")
        else:
            look = self._refresh_once(None, is_told=is_told)
            task = self._active = asyncio.create_task(look, name=f"refresh {self._source}")
        # The cancellation of one caller must not cancel the refresh of the others.
        return await asyncio.shield(task)

    async def _refresh_once(self, before: asyncio.Task[bool] | None, *, is_told: bool) -> bool:
        if before is not None:
            await asyncio.wait({before})
            self._active, self._queued = self._queued, None
        try:
            found = await self._read_again(is_told=is_told)
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
        """Read the source for the first time."""

    @abstractmethod
    async def _read_again(self, *, is_told: bool) -> DBSettings | None:
        """Return new settings, or None if nothing has changed; raise an error to reject the identity."""

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


def identity_codes() -> tuple[str, ...]:
    """Return the codes of all errors with which an identity can be rejected."""
    kinds: list[type[GoatherdError]] = [IdentityError]
    for kind in kinds:
        kinds += kind.__subclasses__()
    return tuple(sorted({kind.code for kind in kinds}))


async def cancel_tasks(*tasks: asyncio.Task[Any] | None) -> None:
    running = [task for task in tasks if task is not None and not task.done()]
    for task in running:
        task.cancel()
    if running:
        await asyncio.wait(running)


def describe_identity(document: IdentityDocument, status: SettingsStatus) -> dict[str, Any]:
    """Return the members of the answer that describe the identity in use and its freshness."""
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
        # A rotation that sees a server refuse the document goes back at once (`goatherd.cluster.observer`).
        "refusal": {"code": refusal.code} if status.is_degraded and refusal is not None else None,
        "viewIntervalMs": None if interval is None else round(interval / timedelta(milliseconds=1)),
        "watching": status.is_watching,
    }
