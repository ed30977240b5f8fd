"""Store secrets in Kubernetes: one Secret object holds all versions and labels of a secret.

`client` sends the requests and `access` provides the credentials. Each change is one PUT of the whole Secret with the
resourceVersion that was read (`goatherd.providers.record_provider`). Other keys, labels and annotations of the Secret
survive every change.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Mapping
from datetime import timedelta
from typing import Any, Final, Self

import httpx2

from goatherd.clock import Clock, SystemClock
from goatherd.errors import ConflictError, ProviderConfigurationError, ProviderError
from goatherd.providers.base import Call, Guarantees, ReadConsistency, RetryPolicy
from goatherd.providers.capabilities import Finding, Verdict, rights_finding
from goatherd.providers.kubernetes.access import load_access
from goatherd.providers.kubernetes.address import (
    KubernetesAddress,
    parse_address,
    split_secret_id,
)
from goatherd.providers.kubernetes.client import KubernetesClient, WatchExpiredError
from goatherd.providers.kubernetes.credentials import ClusterAccess
from goatherd.providers.record_provider import ObjectStore, RecordProvider, StoredObject, Token
from goatherd.providers.versioned_record import (
    DamagedRecordError,
    RecordedSecret,
    decode_base64,
    decode_members,
    encode_base64,
    encode_members,
)

MAX_OBJECT_BYTES: Final = 1 << 20
"""What all values of one Secret may add up to: https://kubernetes.io/docs/concepts/configuration/secret/#restriction-data-size."""
HISTORY: Final = 8
"""With values of the greatest length, so many unlabelled versions fit beside seven labelled ones."""
_FULL_PERCENT: Final = 90
_WATCH_SECONDS: Final = (240, 300)
_RANDOM = secrets.SystemRandom()


class KubernetesStore(ObjectStore):
    """Keeps each secret as one Kubernetes Secret, ``namespace/name``. Its resourceVersion is the token.

    Args:
        client: An open client of the cluster.
    """

    max_bytes = MAX_OBJECT_BYTES - (16 << 10)
    max_unlabelled = 32

    def __init__(self, client: KubernetesClient) -> None:
        self._client = client

    async def get(self, secret_id: str) -> StoredObject | None:
        content = await self._client.get_secret(*split_secret_id(secret_id))
        if content is None:
            return None
        data = content.get("data") or {}
        if not isinstance(data, Mapping):
            raise DamagedRecordError("its field data is not a map")
        return StoredObject(decode_members({key: decode_base64(data[key]) for key in data}), content)

    async def put(self, secret_id: str, secret: RecordedSecret, token: Token | None) -> None:
        namespace, name = split_secret_id(secret_id)
        data = {key: encode_base64(raw) for key, raw in encode_members(secret).items()}
        if token is None:
            metadata = {"namespace": namespace, "name": name, "labels": {"app.kubernetes.io/managed-by": "goatherd"}}
            new = {"apiVersion": "v1", "kind": "Secret", "type": "Opaque", "metadata": metadata, "data": data}
            if await self._client.create_secret(namespace, name, new) is None:
                raise ConflictError("the Secret exists already")
        elif await self._client.replace_secret(namespace, name, {**token, "data": data}) is None:
            raise ConflictError(_CHANGED)

    async def delete(self, secret_id: str, token: Token) -> None:
        if not await self._client.delete_secret(*split_secret_id(secret_id), token):
            raise ConflictError(_CHANGED)

    def size_of(self, secret: RecordedSecret) -> int:
        """Return the bytes of a secret as Kubernetes counts them: decoded from base64."""
        return sum(len(raw) for raw in encode_members(secret).values())


_CHANGED: Final = "other writers keep changing the Secret"


class KubernetesServices:
    """Reads which pods are behind Kubernetes Services; a `goatherd.providers.capabilities.ServiceReader`.

    Args:
        address: The kubeconfig and its context.
        timeout: Timeout of one request.
    """

    def __init__(self, address: KubernetesAddress, timeout: timedelta) -> None:
        self._address, self._timeout = address, timeout
        self._access: ClusterAccess | None = None

    async def endpoint_slices(self, namespace: str, service: str) -> list[dict[str, Any]]:
        """Return all EndpointSlices of a Kubernetes Service; an empty list if there is no such Service."""
        # Kept, because otherwise a credential plugin would run for each request.
        if self._access is None:
            self._access = await asyncio.to_thread(load_access, self._address)
        client = KubernetesClient(self._access, timeout=self._timeout.total_seconds(), clock=SystemClock())
        client.open()
        try:
            return await client.endpoint_slices(namespace, service)
        finally:
            await client.close()


class KubernetesSecretProvider(RecordProvider):
    """Store secrets in Kubernetes Secrets.

    Address: ``k8s://namespace/name``: one Secret of type Opaque holds all versions of a secret. Options in the query:
        ``kubeconfig`` (a file) and ``context`` (one of its contexts). ``{org}`` may stand in the name or the namespace.
    Credentials: the files in `KUBECONFIG`, merged; a pod's service account, whose token is read again every minute; or
        ``~/.kube/config``, with a token, a token file, a client certificate or a credential plugin (exec).
    Permissions: ``goatherd policy k8s --role server`` (or rotator, admin) prints a Role.
    Guarantees:
        compare-and-swap: the Secret's ``resourceVersion``.
        reads: strong.
        history: at least 8 unlabelled versions; labelled ones are never dropped.
        destroying: removed from the Secret immediately, but not from old states in etcd and its backups.
        size: 64 KiB for a value, 1 MiB for all.
        push: a watch notifies servers within a second; they still poll.
    """

    scheme = "k8s"
    credential_variables = ("KUBECONFIG",)
    _client: KubernetesClient  # made by `_open`

    def __init__(
        self,
        address: KubernetesAddress | None = None,
        *,
        timeout: timedelta = timedelta(seconds=10),
        retry: RetryPolicy | None = None,
        clock: Clock | None = None,
        environment: Mapping[str, str] | None = None,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        super().__init__(timeout=timeout, retry=retry, clock=clock)
        self.address = address or KubernetesAddress()
        self._environment = environment
        self._transport = transport
        self._seen: dict[str, str] = {}

    @classmethod
    def from_uri(cls, uri: str | Mapping[str, object]) -> tuple[Self, str]:
        address, secret_id = parse_address(uri)
        return cls(address), secret_id

    @classmethod
    def from_config(cls, config: Mapping[str, object]) -> tuple[Self, str]:
        return cls.from_uri(config)

    @classmethod
    def service_reader(cls, options: Mapping[str, str], *, timeout: timedelta) -> KubernetesServices:
        """Return a reader of Kubernetes Services, for `goatherd.cluster.discovery`. No request is made yet."""
        address = KubernetesAddress(kubeconfig=options.get("kubeconfig"), context=options.get("context"))
        return KubernetesServices(address, timeout)

    @property
    def guarantees(self) -> Guarantees:
        return Guarantees(
            cas=True,
            read_consistency=ReadConsistency.STRONG,
            history=HISTORY,
            push=True,
            custom_labels=True,
        )

    def check_secret_id(self, secret_id: str) -> None:
        super().check_secret_id(secret_id)
        split_secret_id(secret_id)

    async def watch(self, secret_id: str) -> AsyncIterator[None]:
        """Watch a Secret: yield once when the watch is established, then each time that the Secret may have changed.

        The API server ends a watch after some minutes. A new watch continues where the last one ended, if the server
        still has that version. Otherwise it starts afresh and, if the Secret exists, yields a second time at once.

        Raises:
            ProviderAccessDeniedError: The Role does not allow ``watch``.
            ProviderError: The watch cannot be established, or broke.
        """
        call = self._start_call("watch", secret_id)
        namespace, name = split_secret_id(secret_id)
        if not hasattr(self, "_client"):
            raise call.error(ProviderConfigurationError, "the provider is not open", hint="Use `async with`.")
        seconds = _RANDOM.randint(*_WATCH_SECONDS)
        try:
            for _ in range(2):
                try:
                    async with self._client.watch_secret(namespace, name, self._seen.get(secret_id), seconds) as events:
                        yield
                        async for event in events:
                            self._seen[secret_id] = event.resource_version
                            if event.content is not None or event.is_deleted:
                                yield
                    return
                except WatchExpiredError:
                    if self._seen.pop(secret_id, None) is None:
                        return
            return
        except ProviderError as error:
            incomplete = error
        # Outside of the handler: nothing of the request shall hang on the error.
        raise call.complete_error(incomplete)

    async def diagnose(self, secret_id: str) -> list[Finding]:
        """Check what the credentials allow and how full the Kubernetes Secret is, and return the findings."""
        call = self._start_call("diagnose", secret_id)
        return await self._run_call(call, self._diagnose_secret)

    async def _diagnose_secret(self, call: Call) -> list[Finding]:
        namespace, name = split_secret_id(call.secret_id)
        may_write = await self._client.may_update(namespace, name)
        if may_write is None:
            text = "the API server does not say what the credentials may do"
            first = Finding(name="rights", verdict=Verdict.NOT_CHECKED, text=text)
        else:
            # Destroying a version is an update, too.
            first = rights_finding(self.scheme, may_write=may_write, may_destroy=True if may_write else None)
        secret = (await self._require_object(call)).secret
        share = round(100 * self.store.size_of(secret) / MAX_OBJECT_BYTES)
        text = f"the Secret is {share} % full"
        if share >= _FULL_PERCENT:
            hint = "`goatherd retire` takes old versions out of it; writes drop the oldest by themselves."
            return [first, Finding(name="size", verdict=Verdict.CAUTION, text=text, hint=hint)]
        return [first, Finding(name="size", verdict=Verdict.FINE, text=text)]

    async def _open(self) -> None:
        access = await asyncio.to_thread(load_access, self.address, self._environment)
        # One attempt that hangs shall leave time for another.
        timeout = max(0.2, min(5.0, self.timeout.total_seconds() / 2))
        client = KubernetesClient(
            access, timeout=timeout, clock=self.clock, transport=self._transport, store_clock=self.store_clock
        )
        client.open()
        self._client = client
        self.store = KubernetesStore(client)

    async def _close(self) -> None:
        await self._client.close()
