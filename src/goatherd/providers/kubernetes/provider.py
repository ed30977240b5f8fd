"""Store secrets in Kubernetes: one Secret object holds all versions and labels of a secret.

`client` sends the requests, `access` provides the credentials, and `record` encodes the object.

- Every change is one PUT of the whole object with the resourceVersion that was read, so that a value and the label that
  points at it change together or not at all. After a conflict, the writer reads the object and decides again.
- An object that Goatherd did not write, or that is damaged, is never changed, and never counts as missing.
- A version that a label points at is never removed to make room.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, Final, Self

import httpx2

from goatherd.clock import Clock, SystemClock
from goatherd.errors import (
    ProviderConfigurationError,
    ProviderError,
    SecretExistsError,
    SecretNotFoundError,
    SecretTooLargeError,
    UnavailableError,
)
from goatherd.providers.base import Call, Guarantees, ReadConsistency, RetryPolicy, SecretProvider
from goatherd.providers.capabilities import Finding, Verdict, rights_finding
from goatherd.providers.kubernetes.access import load_access
from goatherd.providers.kubernetes.address import (
    KubernetesAddress,
    parse_address,
    split_secret_id,
)
from goatherd.providers.kubernetes.client import KubernetesClient, WatchExpiredError
from goatherd.providers.kubernetes.credentials import ClusterAccess
from goatherd.providers.kubernetes.record import (
    HISTORY,
    MAX_OBJECT_BYTES,
    NoRoomError,
    SecretObject,
    decode_object,
    encode_changes,
    new_object,
)
from goatherd.providers.values import Label, SecretBytes, SecretValue, SecretVersion, VersionId
from goatherd.providers.versioned_record import (
    DamagedRecordError,
    ForeignRecordError,
    VersionedRecord,
    entry_for,
    parse_number,
)

_FULL_PERCENT: Final = 90
_WRITERS: Final = "other writers keep changing the Secret"
_WATCH_SECONDS: Final = (240, 300)
_RANDOM = secrets.SystemRandom()


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


class KubernetesSecretProvider(SecretProvider):
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
        record = await self._read_record(call)
        try:
            share = round(100 * record.size / MAX_OBJECT_BYTES)
        except DamagedRecordError as error:
            raise _damaged_error(error) from None
        text = f"the Secret is {share} % full"
        if share >= _FULL_PERCENT:
            hint = "`goatherd retire` takes old versions out of it; writes drop the oldest by themselves."
            return [first, Finding(name="size", verdict=Verdict.CAUTION, text=text, hint=hint)]
        return [first, Finding(name="size", verdict=Verdict.FINE, text=text)]

    # --- the algebra ------------------------------------------------------------------------------------------------

    async def _open(self) -> None:
        access = await asyncio.to_thread(load_access, self.address, self._environment)
        # One attempt that hangs shall leave time for another.
        timeout = max(0.2, min(5.0, self.timeout.total_seconds() / 2))
        client = KubernetesClient(
            access, timeout=timeout, clock=self.clock, transport=self._transport, store_clock=self.store_clock
        )
        client.open()
        self._client = client

    async def _close(self) -> None:
        await self._client.close()

    async def _create(self, call: Call, value: SecretBytes, label: Label) -> SecretVersion:
        namespace, name = split_secret_id(call.secret_id)
        entry = entry_for(value, request=call.request, now_ms=self.clock.now_ms())
        ledger = VersionedRecord().with_first_version(call, entry, label)
        content = await self._client.create_secret(namespace, name, new_object(namespace, name, ledger, value))
        if content is not None:
            self._check_stored_record(content, ledger)
            return ledger.describe_version(1)
        # An earlier attempt, whose answer was lost, may have created the Secret. A role that may only create cannot
        # read it, so the first attempt does not try.
        if call.attempt > 1:
            found = await self._client.get_secret(namespace, name)
            existing = None if found is None else _record_or_none(found)
            if existing is not None and (made := existing.ledger.made_by(call.request)) is not None:
                return existing.ledger.describe_version(made)
        raise SecretExistsError("the secret exists already")

    async def _read(self, call: Call, at: Label | VersionId) -> SecretValue:
        record = await self._read_record(call)
        try:
            if isinstance(at, VersionId) and (left := parse_number(at)) in record.leftover_numbers():
                return SecretValue(version=_describe_leftover(left), value=record.leftover_value(left))
            number = record.ledger.find_version(call, at)
            return SecretValue(version=record.ledger.describe_version(number), value=record.read_value(number))
        except DamagedRecordError as error:
            raise _damaged_error(error) from None

    async def _write(self, call: Call, value: SecretBytes, label: Label, expected: VersionId | None) -> SecretVersion:
        entry = entry_for(value, request=call.request, now_ms=self.clock.now_ms())

        def step(record: SecretObject) -> VersionedRecord | None:
            if record.ledger.made_by(call.request) is not None:
                return None
            return record.ledger.with_version(call, entry, label, expected)

        record = await self._change_record(call, step, new=value)
        made = record.ledger.made_by(call.request)
        if made is None:
            raise UnavailableError("the value that was written is missing")
        return record.ledger.describe_version(made)

    async def _label(self, call: Call, label: Label, version: VersionId, expected: VersionId | None) -> None:
        await self._change_record(call, lambda record: record.ledger.with_label(call, label, version, expected))

    async def _unlabel(self, call: Call, label: Label, expected: VersionId) -> None:
        await self._change_record(call, lambda record: record.ledger.without_label(call, label, expected))

    async def _versions(self, call: Call) -> Sequence[SecretVersion]:
        """List the versions of a secret. The values are sent too: the API cannot return a part of a Secret."""
        record = await self._read_record(call)
        found = {int(version.id): version for version in record.ledger.newest_first()}
        found |= {number: _describe_leftover(number) for number in record.leftover_numbers()}
        return [found[number] for number in sorted(found, reverse=True)]

    async def _labels_held(self, call: Call) -> Mapping[Label, VersionId]:
        ledger = (await self._read_record(call)).ledger
        return {label: VersionId(number) for label, number in ledger.labels.items()}

    async def _destroy(self, call: Call, version: VersionId) -> None:
        """Remove a version's value from the Kubernetes Secret.

        etcd keeps earlier states until it is compacted (every five minutes by default) and defragmented, and its
        backups keep them longer; docs/how-to/store-kubernetes.md says what to do about that.
        """

        def step(record: SecretObject) -> VersionedRecord | None:
            ledger = record.ledger
            if parse_number(version) in record.leftover_numbers():
                return ledger  # every change removes the values that the record of versions does not list
            gone = ledger.without_value(call, version)
            return None if gone is ledger else gone

        await self._change_record(call, step)

    async def _delete(self, call: Call) -> None:
        namespace, name = split_secret_id(call.secret_id)
        while True:
            record = await self._read_record(call)  # fails if Goatherd has not written the Secret
            if await self._client.delete_secret(namespace, name, record.content):
                return
            await call.pause_for_writers(_WRITERS, longest=0.05)

    # --- reading and changing the object ----------------------------------------------------------------------------

    async def _change_record(
        self, call: Call, step: Callable[[SecretObject], VersionedRecord | None], new: SecretBytes | None = None
    ) -> SecretObject:
        """Replace the Secret by one with the versions and labels that `step` returns; after a conflict, do it again.

        `step` gets the Secret as it was read, and returns None if nothing is to change. `new` is the value of a new
        version.
        """
        namespace, name = split_secret_id(call.secret_id)
        while True:
            record = await self._read_record(call)
            ledger = step(record)
            if ledger is None:
                return record
            # One change must not take a version's label and also drop the version.
            pinned = set(record.ledger.labels.values())
            try:
                wanted = encode_changes(record, ledger, new, pinned)
            except NoRoomError as error:
                raise SecretTooLargeError(
                    f"the Secret has no room for the new version: {error}",
                    hint="Move labels off old versions, or remove other keys from the Secret.",
                ) from None
            except DamagedRecordError as error:
                raise _damaged_error(error) from None
            content = await self._client.replace_secret(namespace, name, wanted.content)
            if content is not None:
                self._check_stored_record(content, wanted.ledger)
                return wanted
            await call.pause_for_writers(_WRITERS, longest=0.05)

    async def _read_record(self, call: Call) -> SecretObject:
        namespace, name = split_secret_id(call.secret_id)
        content = await self._client.get_secret(namespace, name)
        if content is None:
            raise SecretNotFoundError("there is no such secret")
        try:
            return decode_object(content)
        except ForeignRecordError as error:
            raise ProviderConfigurationError(
                f"this Secret was not made by Goatherd: {error}",
                hint="Choose another name. Nothing in this Secret was changed.",
            ) from None
        except DamagedRecordError as error:
            raise _damaged_error(error) from None

    def _check_stored_record(self, content: Mapping[str, object], ledger: VersionedRecord) -> None:
        """Raise `UnavailableError` unless the API server's answer shows that it stored these versions and labels."""
        stored = _record_or_none(content)
        if stored is None or stored.ledger != ledger:
            raise UnavailableError("the server's answer is damaged: it holds another list of versions")


def _describe_leftover(number: int) -> SecretVersion:
    return SecretVersion(id=VersionId(number), created_ms=0, is_leftover=True)


def _record_or_none(content: Mapping[str, object]) -> SecretObject | None:
    try:
        return decode_object(content)
    except (ForeignRecordError, DamagedRecordError):
        return None


def _damaged_error(error: DamagedRecordError) -> UnavailableError:
    return UnavailableError(
        f"the Secret is damaged: {error}",
        hint="Nothing was changed. Restore it from a backup, or read an undamaged version by its id.",
        final=True,
    )
