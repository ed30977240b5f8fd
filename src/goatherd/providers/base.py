"""The interface of a secret store: immutable versions, and a map of labels that changes by compare-and-swap.

Each public method of `SecretProvider` adds checks, a deadline, retries and uniform errors to one private method. A
plugin implements only the private methods. The module depends neither on GoatDB nor on a platform.

Rules:
- Only `goatherd.errors` are raised. Each names the provider, the secret and the operation, and never a value.
- Only this module retries: after `ThrottledError` and `UnavailableError`, with jittered backoff, within one deadline
  for the whole call.
"""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from copy import copy
from dataclasses import dataclass, field, replace
from datetime import timedelta
from enum import StrEnum
from pathlib import PurePath
from types import TracebackType
from typing import ClassVar, Final, NoReturn, Protocol, Self, TypeVar

from goatherd.clock import Clock, RemoteClock, SystemClock
from goatherd.errors import (
    ConfigurationError,
    ConflictError,
    GoatherdError,
    ProviderAccessDeniedError,
    ProviderConfigurationError,
    ProviderError,
    ProviderMisuseError,
    SecretDeletedError,
    SecretNotFoundError,
    SecretTooLargeError,
    ThrottledError,
    UnavailableError,
)
from goatherd.event_loop import EventLoopNeededError, find_running_loop
from goatherd.providers.addresses import uri_of_config
from goatherd.providers.call_metrics import CallCounts
from goatherd.providers.lifetime import LifetimeMisuseError, SharedLifetime
from goatherd.providers.values import (
    COMPONENT,
    CURRENT,
    ORG_FIELD,
    Label,
    SecretValue,
    SecretVersion,
    VersionId,
    VersionState,
    check_label,
    is_label,
)
from goatherd.providers.values import SecretBytes as SecretBytes

MAX_VALUE_BYTES: Final = 64 * 1024
MAX_SECRET_ID_CHARS: Final = 512
MAX_HELD_LABEL_CHARS: Final = 512
_RANDOM = secrets.SystemRandom()
Result = TypeVar("Result")
ErrorKind = TypeVar("ErrorKind", bound=ProviderError)


class ReadConsistency(StrEnum):
    """Which version a provider's read may return if it starts after a write has returned."""

    STRONG = "strong"
    """That write or a newer one."""
    STRONG_BY_VERSION = "strong-by-version"
    """Strong when asked by version id; a label may still lead to an older version for a while."""
    EVENTUAL = "eventual"
    """Anything older, for a while."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Guarantees:
    """The properties that a secret provider promises, as data. The contract suite tests them.

    Attributes:
        cas: Whether exactly one succeeds of two writes or label moves with the same `expected` (compare-and-swap). If
            False, the provider's page says what can happen instead.
        best_effort_cas: If `cas` is False, whether at most one writer succeeds, and all readers agree which, under the
            conditions that the provider's page states.
        read_consistency: Which version a read may return after a write.
        max_value_bytes: Longer values are rejected before anything is sent to the store.
        history: The minimum number of unlabelled versions that the store keeps; None if it keeps all until destroyed.
        destroys: Whether `SecretProvider.destroy` makes a value unreadable before it returns.
        deprecates: If `destroys` is False, whether `SecretProvider.destroy` removes the labels that keep the version,
            so that the store deletes it in its own time. Until then, the value can be read by the version's id.
        disables: If `destroys` and `deprecates` are False, whether `SecretProvider.destroy` disables the version: it is
            unreadable until an operator who may change the secret enables it again with the store's own tool.
        recoverable: Whether a deleted secret can be restored for a while; until then its name stays taken.
        first_is_current: Whether the first version becomes the current one whatever label it is created with; then
            `create` accepts no other label.
        durable: Whether a value survives the end of the process that wrote it.
        push: Whether the store can report changes; the provider is then a `WatchableSecretProvider`.
        custom_labels: Whether an operator can put their own labels on versions and remove them with
            `SecretProvider.unlabel`. `label` and `write` accept any label in any case, because copying a secret needs
            that.
    """

    cas: bool
    best_effort_cas: bool = False
    read_consistency: ReadConsistency
    max_value_bytes: int = MAX_VALUE_BYTES
    history: int | None = None
    destroys: bool = True
    deprecates: bool = False
    disables: bool = False
    recoverable: bool = False
    first_is_current: bool = False
    durable: bool = True
    push: bool = False
    custom_labels: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often and how fast to retry a failed call: at most `attempts` times, with jittered exponential backoff.

    The pause after attempt n is a random part, at least a tenth, of ``base * 2**(n-1)`` or of `cap`, whichever is less.
    """

    attempts: int = 5
    base: timedelta = timedelta(milliseconds=100)
    cap: timedelta = timedelta(seconds=3)

    def delay(self, attempt: int) -> timedelta:
        """Return how long to wait after the failed attempt number `attempt` (the first is 1)."""
        longest = min(self.cap.total_seconds(), self.base.total_seconds() * 2.0 ** (attempt - 1))
        return timedelta(seconds=longest * _RANDOM.uniform(0.1, 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of a secret provider's public method, as it is passed to the private method that does the work.

    Attributes:
        provider: The provider's URI scheme.
        secret_id: The secret's name, already checked.
        operation: The public method's name.
        request: A random string, the same for every attempt of this call. A store that keeps it with a version
            recognizes a write that it has already done and whose answer was lost.
        attempt: The number of the attempt, from 1.
        waits: What the call has waited for, in order; the error at the deadline reports the last entry.
    """

    provider: str
    secret_id: str
    operation: str
    request: str = field(default_factory=lambda: secrets.token_hex(16))
    attempt: int = 1
    waits: list[str] = field(default_factory=list)

    def error(self, kind: type[ErrorKind], message: str, *, hint: str | None = None, final: bool = False) -> ErrorKind:
        """Create an error that names the provider, the secret and the operation of this call.

        Args:
            kind: The class of the error.
            message: What went wrong. SECURITY: it must not contain any part of a value (tests/contract guards it).
            hint: What to do next, if the class's own hint is not the best one.
            final: Whether another attempt is pointless although the class is retryable.
        """
        return kind(
            message,
            provider=self.provider,
            secret_id=self.secret_id,
            operation=self.operation,
            hint=hint,
            final=final,
        )

    def complete_error(self, error: ProviderError) -> ProviderError:
        """Return an error that was raised without its call as a new error, which names this call."""
        completed = copy(error)
        # Not the constructor of the error's own class, which in a plugin may take other arguments.
        ProviderError.__init__(
            completed, str(error), provider=self.provider, secret_id=self.secret_id, operation=self.operation
        )
        return completed

    async def pause_for_writers(self, wait: str, *, longest: float = 0.02) -> None:
        """Wait a random moment, up to `longest` seconds, before a change is tried again with which others interfered.

        `wait` says what the call waits for.
        """
        self.waits[:] = [wait]
        # Not the provider's clock: this waits for another process, whose time no test turns.
        await SystemClock().sleep(timedelta(seconds=_RANDOM.uniform(0.001, longest)))

    def missing_label_error(self, label: str) -> SecretNotFoundError:
        """Create the error that no version of an existing secret has a label."""
        return self.error(
            SecretNotFoundError,
            f"no version holds the label {label!r}",
            hint="`goatherd show --versions` lists the versions and their labels. If `goatherd copy` to this secret was"
            " interrupted, repeat it with --resume.",
        )

    def check_holder(self, label: Label, holder: object, expected: VersionId | None) -> None:
        """Raise `ConflictError` unless `label` points at the version `expected` (None: at no version).

        `holder` is the id or the number of the version at which it points; None if it points at none.
        """
        if (None if holder is None else str(holder)) != expected:
            found = "no version" if holder is None else f"version {holder}"
            wanted = "none" if expected is None else f"version {expected[:64]}"
            raise self.error(ConflictError, f"{found} holds the label {str(label)!r}; expected: {wanted}")


class SecretProvider(ABC):
    """The interface of a secret store. A plugin for a kind of store derives its provider from this class.

    A provider is an async context manager: ``async with`` opens it, and leaving the last such block closes it. Without
    ``async with``, the first call opens it, and `aclose` or the end of the event loop closes it. A call after that is
    an error, unless the provider owns no connection.

    Every public method may raise, besides what its own docstring lists:
        ProviderAccessDeniedError: The store or the operating system denies access.
        ThrottledError: The store limits the rate of requests, and still did after the retries.
        UnavailableError: The store gave no answer within the deadline, or a damaged one. After a write it means that
            the outcome is unknown: read again. A damaged value is never reported as missing.
        ProviderConfigurationError: The address, a name or the configuration cannot work.
        ProviderMisuseError: The provider was closed, or is open in another event loop.

    A plugin subclasses this class, sets `scheme`, implements `from_uri`, `guarantees` and the seven private methods,
    and documents *Address, Credentials, Permissions, Guarantees* in its class docstring; a plugin that declares
    `Guarantees.custom_labels` also implements `_unlabel`. A private method raises errors of `goatherd.errors`, always
    ``from`` the platform's exception; any other exception is reported as a bug of the plugin.

    Attributes:
        scheme: The URI scheme, which is also the entry point's name.
        credential_variables: Environment variables that hold credentials for the store; ``*`` at the end matches any
            suffix. The agent removes them from its server's environment.
        needs_event_loop: Whether the provider can be used only while an event loop runs. False if it only calls the
            operating system, so that a short command need not import asyncio (`goatherd.event_loop`). Without a loop,
            calls block, and the deadline is checked between the attempts of a call only.
        confirms_labels: Whether this class reads the labels again before it reports a change of them as done. False if
            the plugin does so itself, or if no server is involved. Destruction and deletion are always confirmed.
        timeout: The deadline of one call, retries included.
        retry: How often and how fast to retry.
        call_counts: The number of calls and their outcomes.
        store_clock: The store's clock, estimated. A plugin records the times of the store's answers there; for a store
            without a clock it stays unknown.
    """

    scheme: ClassVar[str]
    credential_variables: ClassVar[tuple[str, ...]] = ()
    needs_event_loop: ClassVar[bool] = True
    confirms_labels: ClassVar[bool] = True

    def __init__(
        self,
        *,
        timeout: timedelta = timedelta(seconds=10),
        retry: RetryPolicy | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.timeout = timeout
        self.retry = retry or RetryPolicy()
        self.clock: Clock = clock or SystemClock()
        self.call_counts = CallCounts(self.scheme)
        self.store_clock = RemoteClock(self.clock)
        self._lifetime = SharedLifetime()

    # --- made and opened ------------------------------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def from_uri(cls, uri: str) -> tuple[Self, str]:
        """Create a provider from the URI of a secret, and return it with the secret id. Connects to nothing.

        Raises:
            ConfigurationError: The URI does not have the form that its scheme requires.
        """

    @classmethod
    def from_config(cls, config: Mapping[str, object]) -> tuple[Self, str]:
        """Return a provider and the secret id from GoatDB's ``cloudConfig``, ``{"provider": …, "secretId": …}``.

        A plugin may override this. By default the secret id is the path of a URI without a host,
        ``scheme:///secretId``; ``region`` is ignored, and other members are rejected.

        Raises:
            ConfigurationError: A required member is missing, or a member is unknown or invalid.
        """
        return cls.from_uri(uri_of_config(cls.scheme, config))

    @property
    @abstractmethod
    def guarantees(self) -> Guarantees:
        """What the store promises, such as compare-and-swap."""

    async def __aenter__(self) -> Self:
        if self.needs_event_loop and find_running_loop() is None:
            raise EventLoopNeededError(f"the {self.scheme} provider needs an event loop")
        await self._lifetime.enter_resource(self._open_guarded)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._lifetime.leave_resource(self._close_guarded)

    def __enter__(self) -> NoReturn:
        raise TypeError(f"use `async with`, not `with`: {type(self).__name__} is an asynchronous context manager")

    def __exit__(self, *_: object) -> None:  # noqa: B027 - `with` looks for both
        """Do nothing: a provider cannot be used in a plain ``with`` block, because `__enter__` raises."""

    async def aclose(self) -> None:
        """Close what the first call outside of ``async with`` has opened, such as a connection pool."""
        await self._lifetime.release()

    # --- the algebra ----------------------------------------------------------------------------------------------

    async def create(self, secret_id: str, value: SecretBytes | bytes, label: str = CURRENT) -> SecretVersion:
        """Create a secret whose first version holds `value` and has the label `label`.

        Raises:
            SecretExistsError: The secret exists already and was not changed.
            SecretTooLargeError: The value is longer than the store allows.
        """
        call = self._start_call("create", secret_id)
        hidden, checked = self._check_value(call, value), self._check_label(call, label)

        async def make(now: Call) -> SecretVersion:
            made = _check_result(now, await self._create(now, hidden, checked), SecretVersion)
            await self._confirm_label(now, checked, made.id, None)
            return made

        return await self._run_call(call, make)

    async def read(
        self, secret_id: str, at: Label | VersionId | str = CURRENT, *, attempts: int | None = None
    ) -> SecretValue:
        """Read one version of a secret with its value, by a label or by the version's id.

        Args:
            secret_id: The secret's name in the store.
            at: A label (any plain string is a label), or a version id such as ``VersionId("7")`` or `SecretVersion.id`.
            attempts: The maximum number of attempts, for a caller that retries itself; never more than `retry` allows,
                and None for as many.

        Raises:
            SecretNotFoundError: There is no such secret or version, or no version has the label.
            VersionDisabledError: The version's value was disabled or destroyed.
        """
        call = self._start_call("read", secret_id)
        if not isinstance(at, Label | VersionId) and not (isinstance(at, str) and is_label(at)):
            raise call.error(
                ProviderConfigurationError,
                f"{at!r} is not a valid label",
                hint=f"A string is a label. For the id of a version, write VersionId({str(at)!r}).",
            )
        place = at if isinstance(at, VersionId) else self._check_label(call, at)

        async def get(now: Call) -> SecretValue:
            return _check_result(now, await self._read(now, place), SecretValue)

        found = await self._run_call(call, get, attempts)
        if found.value.size > self.guarantees.max_value_bytes:
            raise call.error(SecretTooLargeError, f"version {found.version.id} is {found.value.size} bytes long")
        return found

    async def write(
        self, secret_id: str, value: SecretBytes | bytes, *, label: str = CURRENT, expected: str | None
    ) -> SecretVersion:
        """Add a new version to a secret and move `label` to it, if `label` still points at the version `expected`.

        Args:
            secret_id: The secret's name in the store.
            value: The secret value of the new version.
            label: The label to move.
            expected: The id of the version that `label` points at now; None if no version has the label.

        Raises:
            ConflictError: `label` points at another version. No label was moved; an unlabelled version may have been
                added.
            SecretNotFoundError: There is no such secret; use `create`.
            SecretTooLargeError: The value is longer than the store allows.
        """
        call = self._start_call("write", secret_id)
        hidden, checked = self._check_value(call, value), self._check_label(call, label)
        holder = None if expected is None else _version_id(expected)

        async def put(now: Call) -> SecretVersion:
            written = _check_result(now, await self._write(now, hidden, checked, holder), SecretVersion)
            await self._confirm_label(now, checked, written.id, holder)
            return written

        return await self._run_call(call, put)

    async def label(self, secret_id: str, label: str, version: str, *, expected: str | None) -> None:
        """Move `label` to an existing version, if it still points at the version `expected` (None: at no version).

        Raises:
            ConflictError: `label` points at another version; nothing was changed.
            SecretNotFoundError: There is no such secret or version.
            VersionDisabledError: The version's value was disabled or destroyed.
        """
        call = self._start_call("label", secret_id)
        checked, target = self._check_label(call, label), _version_id(version)
        holder = None if expected is None else _version_id(expected)

        async def move(now: Call) -> None:
            try:
                await self._label(now, checked, target, holder)
            except ConflictError:
                # An earlier attempt may have moved it before its answer got lost.
                if now.attempt == 1 or not any(
                    known.id == target and checked in known.labels for known in await self._versions(now)
                ):
                    raise
            await self._confirm_label(now, checked, target, holder)

        await self._run_call(call, move)

    async def unlabel(self, secret_id: str, label: str, *, expected: str) -> None:
        """Remove `label` from a version of a secret, if it still points at the version `expected`.

        Any label that `versions` lists can be removed, also one that another tool has set and that `label` would
        reject.

        Raises:
            ConflictError: Another version has `label`, or none has it; nothing was changed.
            SecretNotFoundError: There is no such secret.
            ProviderConfigurationError: `label` is ``current``, without which no reader finds the identity, or the store
                does not support removing labels (`Guarantees.custom_labels`).
        """
        call = self._start_call("unlabel", secret_id)
        checked, holder = self._check_held_label(call, label), _version_id(expected)
        if not self.guarantees.custom_labels:
            raise call.error(ProviderConfigurationError, "this store cannot remove a label from a version")
        if checked == CURRENT:
            raise call.error(
                ProviderConfigurationError,
                f"the label {str(CURRENT)!r} cannot be removed: readers find the secret's value by it",
                hint="Move it to another version instead.",
            )

        async def remove(now: Call) -> None:
            try:
                await self._unlabel(now, checked, holder)
            except ConflictError:
                # An earlier attempt may have taken it off before its answer got lost.
                if now.attempt == 1 or any(checked in known.labels for known in await self._versions(now)):
                    raise
            await self._confirm_label(now, checked, None, holder)

        await self._run_call(call, remove)

    async def versions(self, secret_id: str) -> list[SecretVersion]:
        """List a secret's versions without values, newest first; destroyed ones too if the store remembers them.

        The list has every version whose value the store still holds. This includes versions that an interrupted change
        has left (`SecretVersion.is_leftover`), if the caller has permission to see them.

        Raises:
            SecretNotFoundError: There is no such secret.
        """
        call = self._start_call("versions", secret_id)
        found = list(await self._run_call(call, self._versions))
        return [_check_result(call, one, SecretVersion) for one in found]

    async def destroy(self, secret_id: str, version: str) -> None:
        """Make a version's value permanently unreadable. Destroying a destroyed version does nothing.

        Some stores delete unlabelled versions only later, or can only disable a version; with such a store, `destroy`
        removes the labels that keep the version, or disables it. Check `Guarantees.destroys` before you report that the
        value is gone. If a leftover (`SecretVersion.is_leftover`) is destroyed while its writer is about to register
        it, the writer writes its value again, or fails.

        Raises:
            ConflictError: A label points at the version: move the label first. Nothing was changed.
            SecretNotFoundError: There is no such secret or version.
            ProviderConfigurationError: The store can neither destroy, deprecate nor disable a version
                (`Guarantees.destroys`, ``deprecates``, ``disables``).
        """
        call = self._start_call("destroy", secret_id)
        promised = self.guarantees
        if not (promised.destroys or promised.deprecates or promised.disables):
            raise call.error(ProviderConfigurationError, "this store cannot destroy a single version")
        target = _version_id(version)

        async def destroy(now: Call) -> None:
            await self._destroy(now, target)
            await self._confirm_destroyed(now, target)

        await self._run_call(call, destroy)

    async def delete(self, secret_id: str) -> None:
        """Delete the secret with all its versions and labels.

        Raises:
            SecretNotFoundError: There is no such secret.
            SecretDeletedError: The secret is deleted already, but can still be restored (`Guarantees.recoverable`). For
                such a secret, every other method but `versions` raises this error too.
        """
        call = self._start_call("delete", secret_id)

        async def remove(now: Call) -> None:
            try:
                await self._delete(now)
            except SecretNotFoundError:
                # An earlier attempt may have removed it before its answer got lost.
                if now.attempt == 1:
                    raise
            await self._confirm_deleted(now)

        await self._run_call(call, remove)

    # --- the four calls of GoatDB's proposal --------------------------------------------------------------------------

    async def get_secret(self, secret_id: str) -> SecretBytes:
        """Return the current value of a secret. ``getSecret`` is an alias.

        Raises:
            SecretNotFoundError: There is no such secret.
        """
        return (await self.read(secret_id)).value

    async def get_secret_version(self, secret_id: str, version: Label | VersionId | str) -> SecretBytes:
        """Return the value of one version of a secret. ``getSecretVersion`` is an alias.

        Args:
            secret_id: The secret's name in the store.
            version: A label such as ``"stable"``, or a version's id. A string that is both counts as the label.

        Raises:
            SecretNotFoundError: There is no such secret, or no version with this label or id.
            VersionDisabledError: The version's value was disabled or destroyed.
        """
        if isinstance(version, str) and not isinstance(version, Label | VersionId):
            version = Label(version) if self.takes_label(version) else VersionId(version)
            if isinstance(version, Label):
                with suppress(SecretNotFoundError):
                    return (await self.read(secret_id, version)).value
                version = VersionId(version)
        return (await self.read(secret_id, version)).value

    async def update_secret(
        self, secret_id: str, value: SecretBytes | bytes | str, *, version_label: str = CURRENT
    ) -> SecretVersion:
        """Add a new version to a secret and move a label to it. ``updateSecret`` is an alias.

        The label moves from any version; `write`, in contrast, moves it only from the version that the caller has seen.
        If the current version already holds the value, no version is added, and the label moves to the current version.
        So ``update_secret(secret_id, await get_secret(secret_id), version_label="stable")`` labels the current version.

        Args:
            secret_id: The secret's name in the store.
            value: The secret value as bytes; a string is encoded as UTF-8.
            version_label: The label to move. If it is not ``"current"``, readers still get the current value.

        Raises:
            ConflictError: Another writer moved the label during this call. Nothing that a reader sees was changed.
            SecretNotFoundError: There is no such secret; use `create`.
            SecretTooLargeError: The value is longer than the store allows.
        """
        raw = value.encode() if isinstance(value, str) else value
        hidden = raw if isinstance(raw, SecretBytes) else SecretBytes(raw)
        known = await self.versions(secret_id)
        holder = next((one.id for one in known if version_label in one.labels), None)
        current = await self.read(secret_id)
        if current.value != hidden:
            return await self.write(secret_id, hidden, label=version_label, expected=holder)
        if holder != current.version.id:
            await self.label(secret_id, version_label, current.version.id, expected=holder)
        return current.version

    async def delete_secret(self, secret_id: str) -> None:
        """Delete a secret with all its versions and labels. ``deleteSecret`` is an alias.

        Raises:
            SecretNotFoundError: There is no such secret.
        """
        await self.delete(secret_id)

    # GoatDB's spelling.
    getSecret, getSecretVersion = get_secret, get_secret_version  # noqa: N815
    updateSecret, deleteSecret = update_secret, delete_secret  # noqa: N815

    # --- what a plugin writes ---------------------------------------------------------------------------------------

    async def _open(self) -> None:  # noqa: B027 - most providers own nothing
        """Open the resources that the provider owns, such as a connection pool."""

    async def _close(self) -> None:  # noqa: B027
        """Close the resources that `_open` opened, such as a connection pool."""

    @abstractmethod
    async def _create(self, call: Call, value: SecretBytes, label: Label) -> SecretVersion:
        """Create the secret with its first version, or raise `SecretExistsError`.

        If an earlier attempt of the same call has created it (`Call.request` is stored with it), return that version.
        """

    @abstractmethod
    async def _read(self, call: Call, at: Label | VersionId) -> SecretValue:
        """Return a version of a secret with its value, by `Label` or `VersionId`."""

    @abstractmethod
    async def _write(self, call: Call, value: SecretBytes, label: Label, expected: VersionId | None) -> SecretVersion:
        """Add a version, then move the label if it is at `expected` (None: nowhere), or raise `ConflictError`.

        If an earlier attempt of the same call has added the version (`Call.request` is stored with it), move only the
        label.
        """

    @abstractmethod
    async def _label(self, call: Call, label: Label, version: VersionId, expected: VersionId | None) -> None:
        """Move a label if it is at `expected` (None: nowhere), or raise `ConflictError`."""

    async def _unlabel(self, call: Call, label: Label, expected: VersionId) -> None:
        """Remove a label that is at `expected`, or raise `ConflictError`; required for `Guarantees.custom_labels`."""
        raise NotImplementedError

    @abstractmethod
    async def _versions(self, call: Call) -> Sequence[SecretVersion]:
        """List the versions of a secret newest first, without values."""

    @abstractmethod
    async def _destroy(self, call: Call, version: VersionId) -> None:
        """Make a value unreadable permanently, or raise `ConflictError` if a label points at it.

        A label that moves there during the call counts, too. A store that cannot destroy a value deprecates or disables
        it (`Guarantees.destroys`).
        """

    @abstractmethod
    async def _delete(self, call: Call) -> None:
        """Remove a secret with all its values."""

    async def _labels_held(self, call: Call) -> Mapping[Label, VersionId]:
        """Return all labels of a secret and their versions. A plugin overrides this if it can use fewer requests."""
        return {label: version.id for version in await self._versions(call) for label in version.labels}

    # --- a success is confirmed --------------------------------------------------------------------------------------

    async def _confirm_label(
        self, call: Call, label: Label, version: VersionId | None, before: VersionId | None
    ) -> None:
        """Check that a label no longer points at its old version, after the store has reported that the label moved.

        Raises:
            UnavailableError: The label still points at the old version: the move was not made, or is not visible yet.
        """
        if not self.confirms_labels or version == before:
            return
        try:
            holder = (await self._labels_held(call)).get(label)
        except ProviderAccessDeniedError:
            return  # credentials that may only create secrets cannot read labels
        except SecretNotFoundError:
            holder = None
            before = None
        # Any other holder is a later change of another writer.
        if holder == before:
            found = "no version" if holder is None else f"version {holder}"
            raise call.error(
                UnavailableError,
                f"the store answered success, but {found} holds the label {str(label)!r} as before the change",
            )

    async def _confirm_destroyed(self, call: Call, version: VersionId) -> None:
        promised = self.guarantees
        if not (promised.destroys or promised.disables):
            return
        left = (VersionState.ENABLED, VersionState.DESTROYING)
        if any(known.id == version and known.state in left for known in await self._versions(call)):
            raise call.error(UnavailableError, f"the store answered success, but version {version} is not destroyed")

    async def _confirm_deleted(self, call: Call) -> None:
        try:
            await self._read(call, CURRENT)
        except (SecretNotFoundError, SecretDeletedError, ProviderAccessDeniedError):
            return
        raise call.error(UnavailableError, "the store answered success, but the secret is still read")

    def takes_label(self, label: str) -> bool:
        """Return whether `read`, `write` and `label` accept a label. A plugin with reserved labels overrides this."""
        return is_label(label)

    def check_secret_id(self, secret_id: str) -> None:
        """Check that a secret's name is valid. A plugin overrides this if its store allows other characters.

        Raises:
            ConfigurationError: The name does not consist of components of ``[A-Za-z0-9._-]`` with slashes between them,
                or a component has only dots.
        """
        # SECURITY: a component such as `..` could lead to another secret or out of the directory, so it is rejected
        # (tests/unit/providers/test_base.py).
        if ORG_FIELD in secret_id:
            raise ConfigurationError(
                f"the secret id still contains {ORG_FIELD}: name an organization",
                hint=f"Each organization has a secret of its own: the organization's id replaces {ORG_FIELD}.",
            )
        components = secret_id.split("/")
        if len(secret_id) > MAX_SECRET_ID_CHARS or not all(
            COMPONENT.fullmatch(component) and component.strip(".") for component in components
        ):
            raise ConfigurationError(
                f"{secret_id[:MAX_SECRET_ID_CHARS]!r} is not a valid secret id",
                hint="Use components of A-Z a-z 0-9 . _ - with slashes between them; none may be dots only.",
            )

    # --- around each call -------------------------------------------------------------------------------------------

    def _start_call(self, operation: str, secret_id: str) -> Call:
        call = Call(provider=self.scheme, secret_id=secret_id, operation=operation)
        try:
            self.check_secret_id(secret_id)
        except ConfigurationError as error:
            raise call.error(ProviderConfigurationError, str(error), hint=error.hint) from None
        return call

    def _check_label(self, call: Call, label: str) -> Label:
        try:
            return check_label(label)
        except ConfigurationError as error:
            raise call.error(ProviderConfigurationError, str(error), hint=error.hint) from None

    def _check_held_label(self, call: Call, label: str) -> Label:
        """Check the form of a label that is already in the store and may be another tool's; return it as a `Label`."""
        if isinstance(label, VersionId) or not 0 < len(label) <= MAX_HELD_LABEL_CHARS:
            return self._check_label(call, label)
        return Label(label)

    def _check_value(self, call: Call, value: SecretBytes | bytes) -> SecretBytes:
        hidden = value if isinstance(value, SecretBytes) else SecretBytes(value)
        limit = self.guarantees.max_value_bytes
        if hidden.size > limit:
            raise call.error(SecretTooLargeError, f"the value is {hidden.size} bytes long; the store allows {limit}")
        if hidden.size == 0:
            raise call.error(
                ProviderConfigurationError, "a secret must not be empty, because some stores reject an empty value"
            )
        return hidden

    async def _run_call(
        self, call: Call, action: Callable[[Call], Awaitable[Result]], attempts: int | None = None
    ) -> Result:
        """Attempt a provider call until it succeeds, no attempt is left, or the deadline passes; count the call."""
        with self.call_counts.count_call(call.operation, self.clock.monotonic):
            return await self._run_attempts(call, action, attempts)

    async def _run_attempts(
        self, call: Call, action: Callable[[Call], Awaitable[Result]], attempts: int | None
    ) -> Result:
        most = min(attempts or self.retry.attempts, self.retry.attempts)
        limit, began = self.timeout.total_seconds(), self.clock.monotonic()
        loop = find_running_loop()
        scope = None
        if loop is not None:
            import asyncio  # here, since a short command has no event loop and does not import it

            scope = asyncio.timeout(limit)

        def seconds_left() -> float:
            if loop is None or scope is None:
                return limit - (self.clock.monotonic() - began)
            return (scope.when() or 0) - loop.time()

        last: ProviderError | None = None
        unsure: UnavailableError | None = None
        try:
            async with scope or nullcontext():
                while True:
                    try:
                        return await _run_guarded(call, lambda now: self._do_opened(now, action))
                    except (ThrottledError, UnavailableError) as error:
                        last = error
                        if isinstance(error, UnavailableError) and call.operation not in _READING:
                            unsure = error
                        if not error.retryable or call.attempt >= most:
                            raise
                        pause = self.retry.delay(call.attempt)
                        if isinstance(error, ThrottledError) and error.retry_after is not None:
                            # Past the deadline, more makes no difference; and a store may ask for any number.
                            wish = min(limit, error.retry_after)
                            pause = max(pause, timedelta(seconds=wish))
                        if pause.total_seconds() >= seconds_left():
                            raise
                    await self.clock.sleep(pause)
                    call = replace(call, attempt=call.attempt + 1)
                    self.call_counts.count_retry(call.operation)
        except ThrottledError as error:
            if unsure is None:
                raise
            # An earlier attempt may have made the change, so the caller gets that attempt's error.
            raise unsure from error
        except TimeoutError:
            waited = f"no answer within {limit:g} s"
            reason = call.waits[-1] if call.waits else str(last or "")
            raise call.error(UnavailableError, f"{waited}: {reason}" if reason else waited) from last

    async def _open_guarded(self) -> None:
        await _run_guarded(Call(provider=self.scheme, secret_id="", operation="open"), lambda _: self._open())

    async def _close_guarded(self) -> None:
        await _run_guarded(Call(provider=self.scheme, secret_id="", operation="close"), lambda _: self._close())

    async def _do_opened(self, call: Call, action: Callable[[Call], Awaitable[Result]]) -> Result:
        kind = type(self)
        if kind._open is not SecretProvider._open or kind._close is not SecretProvider._close:
            try:
                await self._lifetime.hold_open(self._open_guarded, self._close_guarded)
            except LifetimeMisuseError as error:
                raise call.error(ProviderMisuseError, f"the provider {error}", hint=error.hint) from None
        return await action(call)


_READING: Final = frozenset({"read", "versions"})


def _version_id(text: str) -> VersionId:
    if isinstance(text, Label):
        raise TypeError("a label was given in place of a version id")
    return VersionId(text)


async def _run_guarded(call: Call, action: Callable[[Call], Awaitable[Result]]) -> Result:
    try:
        return await action(call)
    except ProviderError as error:
        if error.provider:
            raise
        incomplete = error
    except GoatherdError:
        raise
    except TimeoutError:
        raise call.error(UnavailableError, "the store did not answer in time") from None
    except Exception as error:  # noqa: BLE001 - the guarantee: nothing but our errors leaves a plugin
        # SECURITY: the message of a plugin's exception may quote the value, so neither it nor the chain is shown
        # (tests/unit/providers/test_base.py::test_a_stranger_exception_is_named_but_not_quoted).
        raise call.error(
            ProviderError,
            describe_crash(error),
            hint="This is a bug in the plugin: its methods must be coroutines that raise goatherd.errors only.",
        ) from None
    # Out here, where nothing of the request is the error's context.
    raise call.complete_error(incomplete) from incomplete.__cause__


def describe_crash(error: Exception) -> str:
    """Return the class and the place of an exception that a plugin has raised, without its message."""
    import traceback  # here, since most commands fail without it

    frames = traceback.extract_tb(error.__traceback__)
    place = f"{PurePath(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"
    return f"the plugin failed with {type(error).__name__} at {place}"


def _check_result(call: Call, found: object, kind: type[Result]) -> Result:
    """Return what a method of a plugin has returned, if it is a `kind`; otherwise the plugin is at fault."""
    if not isinstance(found, kind):
        raise call.error(
            ProviderError,
            f"the plugin returned a {type(found).__name__}, not a {kind.__name__}",
            hint=f"This is a bug in the plugin: `_{call.operation}` must return what its base class says.",
        )
    return found


CloudSecretProvider = SecretProvider
"""The name that GoatDB's proposal has for a secret provider."""


class StoreReader(Protocol):
    """The read methods of a secret store: implemented by `SecretProvider` and by wrappers around a provider."""

    @property
    def guarantees(self) -> Guarantees: ...

    async def read(self, secret_id: str, at: Label | VersionId = CURRENT) -> SecretValue: ...

    async def versions(self, secret_id: str) -> list[SecretVersion]: ...
