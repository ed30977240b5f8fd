"""Store secrets in the memory of this process, for tests, demos and embedding. They are lost when the process ends."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from datetime import timedelta
from typing import Final, Self

from goatherd.clock import Clock
from goatherd.errors import ConfigurationError, ConflictError
from goatherd.providers import addresses
from goatherd.providers.base import MAX_VALUE_BYTES, Guarantees, ReadConsistency, RetryPolicy
from goatherd.providers.record_provider import ObjectStore, RecordProvider, StoredObject, Token
from goatherd.providers.values import check_role
from goatherd.providers.versioned_record import RecordedSecret


class MemoryStore(ObjectStore):
    """The secrets that one or more memory providers share; threads can share it, too.

    Attributes:
        secrets: The content of each secret, by its id. The content is also the token.
    """

    def __init__(self, secrets: Mapping[str, RecordedSecret] | None = None) -> None:
        self.secrets = dict(secrets or {})
        self._lock = threading.Lock()

    async def get(self, secret_id: str) -> StoredObject | None:
        found = self.secrets.get(secret_id)
        return None if found is None else StoredObject(found, found)

    async def put(self, secret_id: str, secret: RecordedSecret, token: Token | None) -> None:
        with self._lock:
            self._check_token(secret_id, token)
            self.secrets[secret_id] = secret

    async def delete(self, secret_id: str, token: Token) -> None:
        with self._lock:
            self._check_token(secret_id, token)
            del self.secrets[secret_id]

    def _check_token(self, secret_id: str, token: Token | None) -> None:
        if self.secrets.get(secret_id) is not token:
            raise ConflictError("another writer has changed the secret")


_SHARED: Final[dict[str, MemoryStore]] = {}


class MemorySecretProvider(RecordProvider):
    """Store secrets in the memory of this process.

    Address: ``memory:///name/secret``. All providers with the same name share a store within the process. A
        provider that is constructed directly has its own store unless it is given one.
    Credentials: none.
    Permissions: none; all code in the process can read it.
    Guarantees: compare-and-swap, strong reads, every version kept until destroyed; the store ends with the process.
    """

    scheme = "memory"
    confirms_labels = False
    store: MemoryStore

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
        self.store = MemoryStore() if store is None else store
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
