"""Store secrets in the memory of this process, for tests, demos and embedding. They are lost when the process ends.

Each operation is one step without an await, under a lock, so that threads and tasks can share a store.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final, Self

from goatherd.clock import Clock
from goatherd.errors import ConfigurationError
from goatherd.providers import addresses
from goatherd.providers.base import MAX_VALUE_BYTES, Call, Guarantees, ReadConsistency, RetryPolicy, SecretProvider
from goatherd.providers.values import Label, SecretBytes, SecretValue, SecretVersion, VersionId, check_role
from goatherd.providers.versioned_record import Growth, VersionedRecord, entry_for


@dataclass(slots=True)
class MemoryStore:
    """The secrets that one or more memory providers share."""

    ledgers: dict[str, VersionedRecord] = field(default_factory=dict)
    values: dict[tuple[str, int], SecretBytes] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)


_SHARED: Final[dict[str, MemoryStore]] = {}


class MemorySecretProvider(SecretProvider):
    """Store secrets in the memory of this process.

    Address: ``memory:///name/secret``. All providers with the same name share a store within the process. A
        provider that is constructed directly has its own store unless it is given one.
    Credentials: none.
    Permissions: none; all code in the process can read it.
    Guarantees: compare-and-swap, strong reads, every version kept until destroyed; the store ends with the process.
    """

    scheme = "memory"
    confirms_labels = False

    def __init__(
        self,
        store: MemoryStore | None = None,
        *,
        timeout: timedelta = timedelta(seconds=10),
        retry: RetryPolicy | None = None,
        clock: Clock | None = None,
        max_value_bytes: int = MAX_VALUE_BYTES,
    ) -> None:
        super().__init__(timeout=timeout, retry=retry, clock=clock)
        self._store = MemoryStore() if store is None else store
        self._guarantees = Guarantees(
            cas=True,
            read_consistency=ReadConsistency.STRONG,
            max_value_bytes=max_value_bytes,
            durable=False,
            custom_labels=True,
        )

    @classmethod
    def from_uri(cls, uri: str) -> tuple[Self, str]:
        form = addresses.AddressForm(scheme=uri.partition(":")[0], example="Write memory:///name/secret.")
        parsed = addresses.parse_uri(form, uri)
        name, _, secret_id = parsed.path.partition("/")
        if parsed.host or not name or not secret_id:
            raise form.error("it must name a store and a secret")
        return cls(_SHARED.setdefault(name, MemoryStore())), secret_id

    @property
    def guarantees(self) -> Guarantees:
        return self._guarantees

    async def _create(self, call: Call, value: SecretBytes, label: Label) -> SecretVersion:
        return self._add_version(call, value, lambda ledger, entry: ledger.with_first_version(call, entry, label))

    async def _read(self, call: Call, at: Label | VersionId) -> SecretValue:
        with self._store.lock:
            ledger = self._record_of(call)
            number = ledger.find_version(call, at)
            return SecretValue(
                version=ledger.describe_version(number), value=self._store.values[call.secret_id, number]
            )

    async def _write(self, call: Call, value: SecretBytes, label: Label, expected: VersionId | None) -> SecretVersion:
        return self._add_version(call, value, lambda ledger, entry: ledger.with_version(call, entry, label, expected))

    async def _label(self, call: Call, label: Label, version: VersionId, expected: VersionId | None) -> None:
        with self._store.lock:
            self._store.ledgers[call.secret_id] = self._record_of(call).with_label(call, label, version, expected)

    async def _unlabel(self, call: Call, label: Label, expected: VersionId) -> None:
        with self._store.lock:
            self._store.ledgers[call.secret_id] = self._record_of(call).without_label(call, label, expected)

    async def _versions(self, call: Call) -> Sequence[SecretVersion]:
        with self._store.lock:
            ledger = self._record_of(call)
            ledger.must_exist(call)
            return ledger.newest_first()

    async def _destroy(self, call: Call, version: VersionId) -> None:
        with self._store.lock:
            self._store.ledgers[call.secret_id] = self._record_of(call).without_value(call, version)
            self._store.values.pop((call.secret_id, int(version)), None)

    async def _delete(self, call: Call) -> None:
        with self._store.lock:
            ledger = self._record_of(call)
            ledger.must_exist(call)
            del self._store.ledgers[call.secret_id]
            for number in ledger.versions:
                self._store.values.pop((call.secret_id, number), None)

    def _record_of(self, call: Call) -> VersionedRecord:
        return self._store.ledgers.get(call.secret_id, VersionedRecord())

    def _add_version(self, call: Call, value: SecretBytes, grow: Growth) -> SecretVersion:
        with self._store.lock:
            ledger = self._record_of(call)
            number = ledger.made_by(call.request)
            if number is None:
                ledger = grow(ledger, entry_for(value, request=call.request, now_ms=self.clock.now_ms()))
                number = ledger.next_number - 1
                self._store.values[call.secret_id, number] = value
                self._store.ledgers[call.secret_id] = ledger
            return ledger.describe_version(number)


def policy(role: str, secret: str | Mapping[str, object]) -> str:
    """Raise an error: no policy can restrict the memory store, because all code in the process can use it.

    Raises:
        ConfigurationError: Always.
    """
    check_role(role)
    raise ConfigurationError(
        f"{str(secret)[:200]!r} is in one process's memory, where there are no permissions to grant",
        hint="The memory store is for tests. For a store on this machine, use `goatherd policy file`.",
    )
