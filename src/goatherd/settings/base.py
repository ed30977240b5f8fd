"""What every source of settings shares: the identity in use, who is told of another, one refresh at a time, failures.

What it is not: it reads and writes nothing. Rules: what is refused leaves the identity in use as it is and shows in
`SettingsSource.status`; between an answer and the swap that it causes nothing is awaited.

The members of ``GET /goatherd/v1/identity`` that a Goatherd server and an agent have in common.

Pure. SECURITY: built from ids and numbers, never from a document as a whole (tests/cluster/test_exchanges.py,
tests/unit/agent/test_own_api.py).
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
    """What kind of source the identity in use is from."""

    STORE = "store"
    FILE = "file"
    LAST_KNOWN_GOOD = "last known good"
    """A sealed copy of what the store held; the store has not been reached since."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DBSettings:
    """What a server starts from, or goes on with.

    Attributes:
        current: The session that the server signs with.
        roots: The document's roots, public halves.
        trusted: User sessions that the source holds; always empty for a store.
        document: The identity document.
        loaded_at_ms: When it was taken over, in milliseconds since 1970.
        source: Where it came from, for people.
        notes: What was changed in reading it, or is worth knowing.
        confirmed_at_ms: When the store last confirmed it, in milliseconds since 1970, where it is from a last known
            good copy; else None.
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
    """Why what the source holds is not in use.

    Attributes:
        code: The error's stable code.
        message: Without key material.
        hint: What to do next.
        at_ms: When, in milliseconds since 1970.
        version: The store's version id, where it was read.
    """

    code: str
    message: str
    hint: str
    at_ms: int
    version: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingsStatus:
    """How fresh the identity in use is.

    Attributes:
        source: Where it comes from, for people.
        generation: Of the identity in use; None before the first load.
        version: The store's id of the version in use.
        last_success_ms: When the source last gave an answer that could be used, in milliseconds since 1970.
        age: Time since then.
        failures: How many refreshes in a row have failed or were refused.
        last_refusal: The last failure; it stays after a recovery, for the record.
        origin: What kind of source the identity in use is from.
        is_backing_off: Whether the source is asked ever more seldom, because it fails.
        is_watching: Whether the source tells of changes by itself, now.
        view_interval: Longest time between two looks at a source that answers; None where there are no regular looks.
        refused: How many looks found an identity that is not to be used, by the error's code, since the start.
        calls: The calls of the store, where there is one; shared by all who use the same provider.
        has_seen_signed: Whether a signed identity was ever taken over, so that an unsigned one is refused.
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
        """Whether the identity in use is not what the source holds, as far as can be known."""
        return self.failures > 0


Subscriber = Callable[[DBSettings], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Introductions:
    """Commits of ``/sys/sessions`` that introduce roots, as one place gave them: unverified.

    Attributes:
        place: Where they are from: a URL, or words.
        commits: None of a user's session is among them.
        problem: Why the place gave none, if that was a failure.
    """

    place: str
    commits: tuple[Commit, ...] = field(default=(), repr=False)
    problem: str | None = None


IntroductionSource = Callable[[IdentityDocument], AsyncIterator[Introductions]]
"""Gives root introductions, place by place, for a document to which no chain of endorsements leads."""


class SettingsProvider(Protocol):
    """Gives a server its settings. An async context manager; `load` before anything else."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    @property
    def settings(self) -> DBSettings:
        """What is in use. Raises `SettingsError` before the first `load`."""
        ...

    @property
    def status(self) -> SettingsStatus:
        """How fresh that is."""
        ...

    async def load(self) -> DBSettings:
        """Read the settings for the first time and return them; later, `refresh` and return what is in use."""
        ...

    async def refresh(self) -> bool:
        """Look at the source now, and return whether another identity is in use than before. Never raises for it."""
        ...

    async def update(
        self, *, document: IdentityDocument | None = None, trusted_sessions: Iterable[Session] = ()
    ) -> bool:
        """Hand over a changed identity, or sessions that became known, and return whether the identity was written."""
        ...

    def subscribe(self, callback: Subscriber) -> Callable[[], None]:
        """Have `callback` called with every new settings; return what ends that."""
        ...

    def for_org(self, org: str) -> SettingsProvider:
        """Return the provider for one organization's identity."""
        ...


DBSettingsProvider = SettingsProvider
"""The name that GoatDB's proposal has for it."""


class SettingsSource(ABC):
    """What both kinds share: the identity in use, who is told, one refresh at a time, the record of failures.

    Attributes:
        origin: What kind of source this is.
        introductions: Where to look for the way to an identity over roots that have left it; None: nowhere. Set by the
            server that these are the settings of.
        recalled: The roots that this server has used before its start, as it remembers them. Some may have left the
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
        """Open what is owned."""

    @abstractmethod
    async def _close_source(self) -> None:
        """Close it."""

    @property
    def settings(self) -> DBSettings:
        """What is in use.

        Raises:
            SettingsError: Nothing has been loaded yet.
        """
        if self._settings is None:
            raise SettingsError(f"{self._source} has not been loaded", hint="Call load() first.")
        return self._settings

    @property
    def status(self) -> SettingsStatus:
        """How fresh that is."""
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
        """Have `callback` called, on the event loop, with every new settings; return what ends that."""
        token = object()
        self._subscribers[token] = callback
        return lambda: self._subscribers.pop(token, None) and None

    async def load(self) -> DBSettings:
        """Read the settings for the first time; later, `refresh` and return what is in use.

        Raises:
            SettingsError: The file is missing or cannot be read.
            ProviderError: The store cannot be read; there is no such secret, for one.
            IdentityError: What is there is not to be used. No new identity is ever made in its place.
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
        """Look at the source now.

        Calls during a look share the next one, since that one under way may have begun before there was news.

        Returns:
            Whether another identity is in use than before. A refusal or a failure is False; `status` tells it.

        Raises:
            SettingsError: Nothing has been loaded yet.
        """
        return await self._share_refresh(is_told=True)

    async def _share_refresh(self, *, is_told: bool) -> bool:
        """Look now; with `is_told`, somebody waits for the answer, else it is one of many looks."""
        _ = self.settings
        if self._queued is not None and not self._queued.done():
            task = self._queued
        elif self._active is not None and not self._active.done():
            look = self._refresh_once(self._active, is_told=is_told)
            task = self._queued = asyncio.create_task(look, name=f"refresh {self._source} again")
        else:
            look = self._refresh_once(None, is_told=is_told)
            task = self._active = asyncio.create_task(look, name=f"refresh {self._source}")
        # One caller that goes away must not take the answer from the others.
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
        """Return the settings, or raise."""

    @abstractmethod
    async def _read_again(self, *, is_told: bool) -> DBSettings | None:
        """Return new settings, or None where nothing has changed, or raise to refuse."""

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
    """Return the code of every reason for which an identity can be refused."""
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
    """Return what a program says of the identity that it has read, and of how fresh that is."""
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
