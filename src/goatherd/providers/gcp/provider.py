"""Store secrets in Google Secret Manager, with aliases as labels and the secret's etag for compare-and-swap.

`goatherd.providers.gcp.client` sends the requests, and `goatherd.providers.base` retries. How a version is written:

1. `AddSecretVersion` adds the version. It has no precondition and no idempotency token.
2. `UpdateSecret` moves the alias under the etag of the secret that was read before step 1, and notes in an annotation
   which call wrote the version. This is the only commit point: the alias alone decides which of several writers wins.

A writer that loses destroys its version. A writer that dies between the steps leaves a version without a label, which
`goatherd retire` finds by the keys in it. Readers of ``latest``, the newest version in whatever state, may get such a
version: readers other than Goatherd read the alias.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Final, Self

from google.auth.credentials import Credentials

from goatherd.clock import Clock
from goatherd.errors import (
    ConflictError,
    ProviderAccessDeniedError,
    ProviderError,
    SecretExistsError,
    SecretNotFoundError,
    UnavailableError,
    VersionDisabledError,
)
from goatherd.providers.base import Call, Guarantees, ReadConsistency, RetryPolicy, SecretProvider
from goatherd.providers.capabilities import Finding, Verdict, rights_finding
from goatherd.providers.gcp.address import GCPAddress, check_name, parse_address, parse_number
from goatherd.providers.gcp.client import Secret, SecretManagerAPI, missing_version_error
from goatherd.providers.gcp.permissions import permissions
from goatherd.providers.gcp.problem import EtagMovedError
from goatherd.providers.values import Label, SecretBytes, SecretValue, SecretVersion, VersionId, VersionState

Check = Callable[[Secret], None]

DONE: Final = "goatherd-done"
"""The annotation that lists the latest versions, each with the call that wrote it: ``NUMBER=REQUEST``."""
DESTROYED: Final = "goatherd-destroyed"
"""The annotation that lists the numbers of the latest versions that may get no label, since they are destroyed."""
_REMEMBERED_NOTES: Final = 32
_ENTRY: Final = re.compile(r"([1-9][0-9]{0,17})=([0-9a-f]{16})")
_ATTEMPT: Final = timedelta(seconds=4)
_SHARE: Final = 0.4  # of the whole deadline, so that one silent request leaves time for another
_PROBES: Final = 32
_REMEMBERED: Final = 256
_RANDOM = secrets.SystemRandom()


class GCPSecretProvider(SecretProvider):
    """Store secrets in Google Secret Manager. Needs the extra ``gcp``.

    Address: ``gcp://PROJECT/SECRET``. ``?location=europe-west3`` for a regional secret and its regional endpoint;
        ``?replication=europe-west3,europe-west4`` for the locations of a global secret that Goatherd creates (by
        default, Google chooses); ``?endpoint=host:port`` for a private endpoint. Names have no slash and no dot.
    Credentials: application default credentials: the attached service account, Workload Identity,
        GOOGLE_APPLICATION_CREDENTIALS, ``gcloud auth application-default login``.
    Permissions: `goatherd.providers.gcp.permissions` has the exact ones for each role.
    Guarantees:
        compare-and-swap: on every label.
        reads: by version strong. A read by label may return the previous version for minutes; a rotation waits until
            the servers report the new one.
        history: every version until it is destroyed.
        destroying: immediate. With a ``version_destroy_ttl`` on the secret, ``versions.enable`` can restore the version
            until that time has passed.
        deleting: immediate and permanent.
        size: 64 KiB for a value.

    A read by label returns no other labels of the version, and a version's `created_ms` is 0 for a reader without the
    right to read metadata.
    """

    scheme = "gcp"
    credential_variables = (
        "GOOGLE_APPLICATION_CREDENTIALS",
        "CLOUDSDK_*",
    )

    def __init__(
        self,
        project_id: str | GCPAddress,
        *,
        timeout: timedelta = timedelta(seconds=10),
        retry: RetryPolicy | None = None,
        clock: Clock | None = None,
        credentials: Credentials | None = None,
    ) -> None:
        """Create a provider for the secrets of a Google Cloud project. Connects to nothing.

        Args:
            project_id: The project's id or number, or an address with more details, such as the location.
            timeout: The deadline of one call, retries included.
            retry: How often and how fast to retry.
            clock: Used for the pauses between retries.
            credentials: Used instead of the application default credentials.
        """
        super().__init__(timeout=timeout, retry=retry, clock=clock)
        self.address = project_id if isinstance(project_id, GCPAddress) else GCPAddress(project=project_id)
        self._api = SecretManagerAPI(self.address, credentials, min(_ATTEMPT, timeout * _SHARE))
        self._created: dict[tuple[str, int, int], int] = {}

    @classmethod
    def from_uri(cls, uri: str | Mapping[str, object]) -> tuple[Self, str]:
        address, secret_id = parse_address(uri)
        return cls(address), secret_id

    @classmethod
    def from_config(cls, config: Mapping[str, object]) -> tuple[Self, str]:
        return cls.from_uri(config)

    @property
    def guarantees(self) -> Guarantees:
        return Guarantees(cas=True, read_consistency=ReadConsistency.STRONG_BY_VERSION, custom_labels=True)

    def check_secret_id(self, secret_id: str) -> None:
        super().check_secret_id(secret_id)
        check_name(secret_id)

    async def _close(self) -> None:
        await self._api.close()

    async def diagnose(self, secret_id: str) -> list[Finding]:
        """Check which permissions the credentials have on a secret, and return the findings."""
        call = self._start_call("diagnose", secret_id)
        rotator = permissions("rotator")
        granted = await self._run_call(call, lambda now: self._api.granted_permissions(now, rotator))
        missing = sorted(rotator - granted)
        if not missing or granted == permissions("server"):
            return [rights_finding(self.scheme, may_write=not missing, may_destroy=None if missing else True)]
        text = f"neither a server's rights nor a rotator's: {', '.join(missing)} missing for that"
        hint = f"`goatherd policy {self.scheme} --role server` or `--role rotator` prints all that is needed."
        return [Finding(name="rights", verdict=Verdict.CAUTION, text=text, hint=hint)]

    # --- reading ----------------------------------------------------------------------------------------------------

    async def _read(self, call: Call, at: Label | VersionId) -> SecretValue:
        if isinstance(at, Label):
            number, value = await self._by_label(call, at)
            labels = frozenset({at})
        else:
            wanted = parse_number(at)
            if wanted is None:
                raise missing_version_error(at)
            number, value = await self._api.access_version(call, wanted)
            labels = await self._read_labels(call, number)
        created_ms = await self._created_ms(call, number, value)
        version = SecretVersion(id=VersionId(number), labels=labels, created_ms=created_ms)
        return SecretValue(version=version, value=value)

    async def _versions(self, call: Call) -> Sequence[SecretVersion]:
        listed = {version.number: version for version in await self._api.list_versions(call)}
        secret = await self._api.get_secret(call)
        for number in sorted(set(secret.aliases.values()) - set(listed)):  # the list lags
            with contextlib.suppress(SecretNotFoundError):
                listed[number] = await self._api.get_version(call, number)
        return [listed[number].describe_version(secret.labels_of(number)) for number in sorted(listed, reverse=True)]

    async def _labels_held(self, call: Call) -> Mapping[Label, VersionId]:
        aliases = (await self._api.get_secret(call)).aliases
        return {Label(alias): VersionId(number) for alias, number in aliases.items()}

    async def _by_label(self, call: Call, label: Label) -> tuple[int, SecretBytes]:
        """Read the version that a label points at, by its alias; look up an unknown alias in the metadata."""
        try:
            return await self._api.access_version(call, label)
        except SecretNotFoundError as missing:
            try:
                number = (await self._api.get_secret(call)).aliases.get(label)
            except ProviderAccessDeniedError:
                number = None
            if number is None:
                raise call.missing_label_error(label) from missing
        return await self._api.access_version(call, number)

    async def _read_labels(self, call: Call, number: int) -> frozenset[Label]:
        try:
            return (await self._api.get_secret(call)).labels_of(number)
        except ProviderAccessDeniedError:  # a server may read values and nothing else
            return frozenset()

    async def _created_ms(self, call: Call, number: int, value: SecretBytes) -> int:
        """Return when a version was created, or 0 without permission; cached, because metadata has a small quota."""
        # The value too: a secret that was deleted and created again has other versions with the same numbers.
        key = (call.secret_id, number, hash(value.reveal()))
        if key not in self._created:
            try:
                created_ms = (await self._api.get_version(call, number)).created_ms
            except ProviderAccessDeniedError:
                created_ms = 0
            while len(self._created) >= _REMEMBERED:
                del self._created[next(iter(self._created))]
            self._created[key] = created_ms
        return self._created[key]

    # --- writing ----------------------------------------------------------------------------------------------------

    async def _create(self, call: Call, value: SecretBytes, label: Label) -> SecretVersion:
        def absent(secret: Secret) -> None:
            if secret.aliases:
                raise SecretExistsError("the secret exists already")

        self._forget_secret(call)
        try:
            made = await self._api.create_secret(call)
        except (SecretExistsError, ProviderAccessDeniedError) as error:
            try:
                made = await self._read_unused_secret(call, value)
            except SecretNotFoundError:
                raise error from None  # the secret does not exist, and the credentials may not create it
        return await self._add_labelled(call, value, label, absent, made)

    async def _read_unused_secret(self, call: Call, value: SecretBytes) -> Secret:
        """Return a secret without a version, which an operator may have created to grant permissions on it.

        A version that an earlier attempt of this call has added is accepted as well.

        Raises:
            SecretExistsError: The secret has another version.
        """
        secret = await self._api.get_secret(call)
        if _written_by(secret, call) is not None:
            return secret
        is_used = bool(secret.aliases) or bool(await self._api.list_versions(call))
        if is_used and (call.attempt == 1 or await self._find_version(call, value, 0) is None):
            raise SecretExistsError("the secret exists already")
        return secret

    async def _write(self, call: Call, value: SecretBytes, label: Label, expected: VersionId | None) -> SecretVersion:
        def held(secret: Secret) -> None:
            call.check_holder(label, secret.aliases.get(label), expected)

        return await self._add_labelled(call, value, label, held, await self._api.get_secret(call))

    async def _add_labelled(
        self, call: Call, value: SecretBytes, label: Label, check: Check, secret: Secret
    ) -> SecretVersion:
        """Add a version to a secret and move `label` to it, if `check` allows it; else destroy the version."""
        done = _written_by(secret, call)
        if done is not None:
            return (await self._api.get_version(call, done)).describe_version(secret.labels_of(done))
        check(secret)
        base = max([0, *secret.aliases.values(), *(int(number) for number, _ in _entries(secret))])
        number: int | None = None

        async def move(secret: Secret) -> Secret:
            if _written_by(secret, call) == number:
                return secret
            check(secret)
            assert number is not None
            if number in _destroyed(secret):
                raise UnavailableError(f"version {number} was destroyed before its label moved")
            notes = [(str(number), call.request[:16]), *_entries(secret)][:_REMEMBERED_NOTES]
            noted = {**secret.annotations, DONE: " ".join(f"{version}={by}" for version, by in notes)}
            return replace(secret, aliases={**secret.aliases, label: number}, annotations=noted)

        try:
            # An earlier attempt's version is found by its value, since its answer may have been lost.
            number = await self._find_version(call, value, base) if call.attempt > 1 else None
            if number is None:
                version = await self._api.add_version(call, value)
                number = version.number
            else:
                version = await self._api.get_version(call, number)
            secret = await self._change_secret(call, move, secret)
        except ProviderError as error:
            if not error.retryable or call.attempt >= self.retry.attempts:
                with contextlib.suppress(ProviderError):
                    number = number or await self._find_version(call, value, base)
                    if number is not None:
                        await self._destroy_unlabelled(call, number)
            raise
        return version.describe_version(secret.labels_of(number))

    async def _change_secret(
        self, call: Call, change: Callable[[Secret], Awaitable[Secret]], secret: Secret | None = None
    ) -> Secret:
        """Change a secret under its etag; read it again, and call `change` again, if another writer was first.

        Args:
            call: The provider call.
            change: Returns the secret as it is to be, or its argument if nothing is to change.
            secret: The secret as the caller has just read it.

        Returns:
            The secret as it is now.
        """
        pause = 0.02
        while True:
            secret = secret or await self._api.get_secret(call)
            try:
                wanted = await change(secret)
                return secret if wanted is secret else await self._api.update_secret(call, secret, wanted)
            except EtagMovedError:
                secret = None
                # Not the provider's clock: this waits for another process, whose time no test turns.
                await asyncio.sleep(pause * _RANDOM.uniform(0.5, 1))
                pause = min(1.0, pause * 1.6)

    async def _find_version(self, call: Call, value: SecretBytes, base: int) -> int | None:
        """Return the number of a version above `base` that holds `value`; reads by number are strongly consistent."""
        for number in range(base + 1, base + 1 + _PROBES):
            try:
                _, found = await self._api.access_version(call, number)
            except SecretNotFoundError:
                return None
            except VersionDisabledError:
                continue
            if found == value:
                return number
        return None

    async def _label(self, call: Call, label: Label, version: VersionId, expected: VersionId | None) -> None:
        number = parse_number(version)

        async def move(secret: Secret) -> Secret:
            if number is None:
                raise missing_version_error(version)
            # Read the version after the secret: a writer that destroys the version from now on changes the etag first.
            found = await self._api.get_version(call, number)
            if found.state is not VersionState.ENABLED or number in _destroyed(secret):
                state = found.state.value if found.state is not VersionState.ENABLED else "destroyed"
                raise VersionDisabledError(f"version {number} was {state}")
            call.check_holder(label, secret.aliases.get(label), expected)
            return replace(secret, aliases={**secret.aliases, label: number})

        await self._change_secret(call, move)

    async def _unlabel(self, call: Call, label: Label, expected: VersionId) -> None:
        async def remove(secret: Secret) -> Secret:
            call.check_holder(label, secret.aliases.get(label), expected)
            return replace(secret, aliases={name: at for name, at in secret.aliases.items() if name != label})

        await self._change_secret(call, remove)

    # --- removing ---------------------------------------------------------------------------------------------------

    async def _destroy(self, call: Call, version: VersionId) -> None:
        number = parse_number(version)
        if number is None:
            raise missing_version_error(version)
        if not (await self._api.get_version(call, number)).doomed:
            await self._destroy_unlabelled(call, number)

    async def _destroy_unlabelled(self, call: Call, number: int) -> None:
        """Destroy a version that has no label, once no writer can label it any more.

        Raises:
            ConflictError: A label points at the version.
        """

        async def note(secret: Secret) -> Secret:
            if held := sorted(secret.labels_of(number)):
                raise ConflictError(
                    f"the label {held[0]!r} points at version {number}", hint="Move the label to another version first."
                )
            # The note changes the etag, so that a request to label the version that is still on its way fails.
            noted = sorted({*_destroyed(secret), number})[-_REMEMBERED_NOTES:]
            return replace(secret, annotations={**secret.annotations, DESTROYED: " ".join(map(str, noted))})

        await self._change_secret(call, note)
        await self._api.destroy_version(call, number)

    async def _delete(self, call: Call) -> None:
        self._forget_secret(call)
        await self._api.delete_secret(call)

    def _forget_secret(self, call: Call) -> None:
        """Remove a secret's versions from the cache, because this call creates or deletes the secret."""
        self._created = {key: known for key, known in self._created.items() if key[0] != call.secret_id}


def _entries(secret: Secret) -> list[tuple[str, str]]:
    """Return the latest versions that Goatherd wrote, the newest first: number and beginning of `Call.request`."""
    return _ENTRY.findall(secret.annotations.get(DONE, ""))


def _written_by(secret: Secret, call: Call) -> int | None:
    """Return the number of the version that this call has written; None if there is none."""
    return next((int(number) for number, by in _entries(secret) if by == call.request[:16]), None)


def _destroyed(secret: Secret) -> frozenset[int]:
    """Return the numbers of the versions that are destroyed, or are to be destroyed."""
    return frozenset(int(number) for number in secret.annotations.get(DESTROYED, "").split() if number.isdecimal())
