"""A secret provider for stores that keep a secret as one object and replace it as a whole, by compare-and-swap.

`ObjectStore` is what a store of that kind has to do: get, put and delete one object. `RecordProvider` does the rest:
the object holds a record of versions and labels together with the values
(`goatherd.providers.versioned_record.RecordedSecret`), and each change replaces it in one step. So a process that dies
leaves the secret as it was before the change, or as it is after it.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from goatherd.errors import (
    ConflictError,
    ProviderAccessDeniedError,
    ProviderConfigurationError,
    SecretExistsError,
    SecretNotFoundError,
    SecretTooLargeError,
    UnavailableError,
)
from goatherd.providers.base import Call, SecretProvider
from goatherd.providers.values import Label, SecretBytes, SecretValue, SecretVersion, VersionId
from goatherd.providers.versioned_record import (
    DamagedRecordError,
    ForeignRecordError,
    NoRoomError,
    RecordedSecret,
    VersionedRecord,
    encode_secret,
    entry_for,
    trim_secret,
)

Token = Any
"""What identifies one state of an object, such as its version or its digest. Only its store looks into it."""


class StoredObject(NamedTuple):
    """The object of a secret as it was read from a store.

    Attributes:
        secret: The content.
        token: What identifies this state of the object.
    """

    secret: RecordedSecret
    token: Token


class ObjectStore(ABC):
    """A store that keeps one object for each secret and replaces it as a whole.

    A method raises errors of `goatherd.errors`, always ``from None`` or ``from`` the platform's exception, and no
    error quotes a value.

    Attributes:
        max_bytes: How large an object may be, as `size_of` counts it. The oldest versions without a label are removed
            to make room. None if any size is allowed.
        max_unlabelled: How many versions without a label an object holds at most; None for all.
        keeps_states: Whether the store keeps earlier states of an object, which `erase_before` erases.
    """

    max_bytes: ClassVar[int | None] = None
    max_unlabelled: ClassVar[int | None] = None
    keeps_states: ClassVar[bool] = False

    @abstractmethod
    async def get(self, secret_id: str) -> StoredObject | None:
        """Return the object of a secret; None if there is none.

        Raises:
            ForeignRecordError: Goatherd did not write the object.
            DamagedRecordError: The object is damaged.
        """

    @abstractmethod
    async def put(self, secret_id: str, secret: RecordedSecret, token: Token | None) -> None:
        """Replace the object of a secret in one step; without a token, create it.

        Raises:
            ConflictError: The object is no longer in the state that `token` identifies, or exists already; or another
                writer is at work. The message says which.
        """

    @abstractmethod
    async def delete(self, secret_id: str, token: Token) -> None:
        """Remove the object of a secret.

        Raises:
            ConflictError: As for `put`.
        """

    async def erase_before(self, secret_id: str, token: Token) -> None:
        """Make all states of an object before that of `token` permanently unreadable; required for `keeps_states`."""
        raise NotImplementedError

    def size_of(self, secret: RecordedSecret) -> int:
        """Return how many bytes a secret takes in the store. A store that does not write JSON overrides this."""
        return len(json.dumps(encode_secret(secret), ensure_ascii=False).encode())


class RecordProvider(SecretProvider):
    """Store each secret as one object of an `ObjectStore`, with all its versions, labels and values.

    - Each change reads the object, checks what is to hold, and replaces the object if nobody else has meanwhile. After
      a conflict, it reads and decides again.
    - An object that Goatherd did not write, or that is damaged, is never changed, and never counts as missing.
    - A version that a label points at is never removed to make room.

    A subclass sets `store` in its constructor or in `_open`.
    """

    store: ObjectStore

    async def _create(self, call: Call, value: SecretBytes, label: Label) -> SecretVersion:
        entry = entry_for(value, request=call.request, now_ms=self.clock.now_ms())
        record = VersionedRecord().with_first_version(call, entry, label)
        secret = RecordedSecret(record=record, values={1: value})
        while True:
            try:
                await self.store.put(call.secret_id, self._trim(secret), None)
            except ConflictError as conflict:
                busy = str(conflict)
            else:
                return record.describe_version(1)
            try:
                found = await self._get_object(call)
            except ProviderAccessDeniedError:  # a role that may only create
                raise SecretExistsError("the secret exists already") from None
            except ProviderConfigurationError as error:
                raise SecretExistsError(str(error), hint=error.hint) from None
            if found is not None:
                made = found.secret.record.made_by(call.request)
                if made is None:
                    raise SecretExistsError("the secret exists already")
                return found.secret.record.describe_version(made)
            await call.pause_for_writers(busy)

    async def _read(self, call: Call, at: Label | VersionId) -> SecretValue:
        secret = (await self._require_object(call)).secret
        number = secret.record.find_version(call, at)
        try:
            return SecretValue(version=secret.record.describe_version(number), value=secret.read_value(number))
        except DamagedRecordError as error:
            raise _damaged_error(error) from None

    async def _write(self, call: Call, value: SecretBytes, label: Label, expected: VersionId | None) -> SecretVersion:
        entry = entry_for(value, request=call.request, now_ms=self.clock.now_ms())

        def step(record: VersionedRecord) -> VersionedRecord:
            return record if record.made_by(call.request) else record.with_version(call, entry, label, expected)

        record = await self._change_record(call, step, value)
        made = record.made_by(call.request)
        assert made is not None, "the newest version is never removed"
        return record.describe_version(made)

    async def _label(self, call: Call, label: Label, version: VersionId, expected: VersionId | None) -> None:
        await self._change_record(call, lambda record: record.with_label(call, label, version, expected))

    async def _unlabel(self, call: Call, label: Label, expected: VersionId) -> None:
        await self._change_record(call, lambda record: record.without_label(call, label, expected))

    async def _versions(self, call: Call) -> Sequence[SecretVersion]:
        return (await self._require_object(call)).secret.record.newest_first()

    async def _labels_held(self, call: Call) -> Mapping[Label, VersionId]:
        record = (await self._require_object(call)).secret.record
        return {label: VersionId(number) for label, number in record.labels.items()}

    async def _destroy(self, call: Call, version: VersionId) -> None:
        if self.store.keeps_states:
            # Recorded before the earlier states are erased: if this process dies in between, the version is listed as
            # one that still has to be destroyed.
            record = await self._change_record(call, lambda now: now.without_value(call, version, destroyed=False))
            number = record.parse_version(call, version)
            while not record.versions[number].destroyed:
                found = await self._require_object(call)
                if number not in found.secret.record.living:  # otherwise a lagging server has answered
                    await self.store.erase_before(call.secret_id, found.token)
                    break
                await call.pause_for_writers("the store does not show its last change yet")
        await self._change_record(call, lambda record: record.without_value(call, version))

    async def _delete(self, call: Call) -> None:
        while True:
            found = await self._require_object(call)
            try:
                await self.store.delete(call.secret_id, found.token)
            except ConflictError as conflict:
                busy = str(conflict)
            else:
                return
            await call.pause_for_writers(busy)

    async def _change_record(
        self, call: Call, step: Callable[[VersionedRecord], VersionedRecord], new: SecretBytes | None = None
    ) -> VersionedRecord:
        """Replace a secret's record by the one that `step` makes of it, and return that; after a conflict, try again.

        Nothing is written if `step` returns an equal record. `new` is the value of a new version.
        """
        while True:
            found = await self._require_object(call)
            before = found.secret.record
            record = step(before)
            if record == before:
                return record
            # One change must not take a version's label and also remove the version.
            secret = self._trim(found.secret.with_record(record, new), before.labels.values())
            try:
                await self.store.put(call.secret_id, secret, found.token)
            except ConflictError as conflict:
                busy = str(conflict)
            else:
                return secret.record
            await call.pause_for_writers(busy)

    def _trim(self, secret: RecordedSecret, pinned: Collection[int] = ()) -> RecordedSecret:
        store = self.store
        try:
            return trim_secret(
                secret,
                pinned,
                max_bytes=store.max_bytes,
                max_unlabelled=store.max_unlabelled,
                size_of=store.size_of,
            )
        except NoRoomError as error:
            raise SecretTooLargeError(
                f"the secret has no room for the new version: {error}", hint="Move labels off old versions."
            ) from None

    async def _get_object(self, call: Call) -> StoredObject | None:
        try:
            return await self.store.get(call.secret_id)
        except ForeignRecordError as error:
            raise ProviderConfigurationError(
                f"what is stored there was not made by Goatherd: {error}",
                hint="Choose another name. Nothing was changed.",
            ) from None
        except DamagedRecordError as error:
            raise _damaged_error(error) from None

    async def _require_object(self, call: Call) -> StoredObject:
        found = await self._get_object(call)
        if found is None:
            raise SecretNotFoundError("there is no such secret")
        return found


def _damaged_error(error: DamagedRecordError) -> UnavailableError:
    return UnavailableError(
        f"the secret is damaged: {error}",
        hint="Nothing was changed. Restore it from a backup. Until then, undamaged versions can be read by their ids.",
        final=True,
    )
