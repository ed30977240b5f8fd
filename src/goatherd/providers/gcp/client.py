"""Call Google Secret Manager through its asynchronous SDK: one method for each API call that Goatherd makes.

`SecretManagerAPI` sends one request and returns the checked answer or raises one of Goatherd's errors. It does not
retry (`goatherd.providers.base` does) and has no rules for labels. The names, the state and the checksum in every
answer are checked; a damaged answer raises `UnavailableError` and is never reported as a missing secret.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, TypeVar

import google_crc32c
from google.api_core import exceptions as sdk
from google.auth.credentials import Credentials
from google.cloud.secretmanager_v1 import SecretManagerServiceAsyncClient as Client
from google.cloud.secretmanager_v1 import types as wire
from google.cloud.secretmanager_v1.services.secret_manager_service.transports import (
    SecretManagerServiceGrpcAsyncIOTransport as Transport,
)
from google.iam.v1 import iam_policy_pb2  # type: ignore[import-untyped]

from goatherd.errors import SecretNotFoundError, UnavailableError
from goatherd.providers.base import Call
from goatherd.providers.gcp.address import GCPAddress
from goatherd.providers.gcp.connection import Connection, first_page
from goatherd.providers.gcp.problem import EtagMovedError, status_of, translate_error
from goatherd.providers.values import Label, SecretBytes, SecretVersion, VersionId, VersionState

Answer = TypeVar("Answer")

# SECURITY: the SDK logs requests and answers, including secret values, if these loggers are enabled
# (tests/contract/gcp/test_answers.py::test_the_sdk_logs_no_value).
_NOISY: Final = ("google", "google.cloud.secretmanager_v1", Client.__module__, Transport.__module__)
PAGE: Final = 250

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)
_MOVED: Final = frozenset({"FAILED_PRECONDITION", "ABORTED"})
_STATES: Final = {
    wire.SecretVersion.State.ENABLED: VersionState.ENABLED,
    wire.SecretVersion.State.DISABLED: VersionState.DISABLED,
    wire.SecretVersion.State.DESTROYED: VersionState.DESTROYED,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Secret:
    """The fields of Google Secret Manager's resource `Secret` that Goatherd uses: etag, aliases and annotations."""

    etag: str
    aliases: Mapping[str, int]
    annotations: Mapping[str, str]

    def labels_of(self, number: int) -> frozenset[Label]:
        """Return the labels (aliases) that point at version `number` of the secret."""
        return frozenset(Label(alias) for alias, target in self.aliases.items() if target == number)


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """The fields of Google's resource `SecretVersion` that Goatherd uses.

    `doomed` means that the version is destroyed, or will be at a time that is already set.
    """

    number: int
    created_ms: int
    state: VersionState
    doomed: bool

    def describe_version(self, labels: frozenset[Label]) -> SecretVersion:
        """Return the version, at which `labels` point, as the `SecretVersion` that callers of the provider get."""
        return SecretVersion(id=VersionId(self.number), labels=labels, created_ms=self.created_ms, state=self.state)


class SecretManagerAPI:
    """Calls the API of Google Secret Manager and raises Goatherd's errors, which `problem` makes from the SDK's."""

    def __init__(self, address: GCPAddress, credentials: Credentials | None, timeout: timedelta) -> None:
        self._address = address
        self._timeout = timeout.total_seconds()
        self._connection = Connection(Client, Transport, host=address.host, credentials=credentials, quiet=_NOISY)

    async def close(self) -> None:
        """Close the connection to Google Secret Manager, if there is one."""
        await self._connection.close()

    async def get_secret(self, call: Call) -> Secret:
        """Read a secret's etag, aliases and annotations (GetSecret; quota: 600 metadata reads a minute)."""
        request = wire.GetSecretRequest(name=self._secret_name(call))
        return self._checked_secret(call, await self._send_request(lambda it: it.get_secret, request))

    async def create_secret(self, call: Call) -> Secret:
        """Create a secret without a version in Google Secret Manager (CreateSecret)."""
        body = wire.Secret()
        if self._address.replication:
            replicas = [wire.Replication.UserManaged.Replica(location=each) for each in self._address.replication]
            body.replication = wire.Replication(user_managed=wire.Replication.UserManaged(replicas=replicas))
        elif self._address.location is None:
            body.replication = wire.Replication(automatic=wire.Replication.Automatic())
        request = wire.CreateSecretRequest(parent=self._address.parent, secret_id=call.secret_id, secret=body)
        return self._checked_secret(call, await self._send_request(lambda it: it.create_secret, request))

    async def update_secret(self, call: Call, seen: Secret, wanted: Secret) -> Secret:
        """Change a secret's aliases or annotations (UpdateSecret), only if its etag is still that of `seen`.

        https://docs.cloud.google.com/secret-manager/docs/etags

        Raises:
            EtagMovedError: The etag has changed: another writer has changed the secret since it was read.
        """
        body = wire.Secret(name=self._secret_name(call), etag=seen.etag, annotations=dict(wanted.annotations))
        mask = ["annotations"]
        if wanted.aliases != seen.aliases:
            body.version_aliases = dict(wanted.aliases)
            mask.append("version_aliases")
        request = wire.UpdateSecretRequest(secret=body, update_mask={"paths": mask})
        return self._checked_secret(call, await self._send_request(lambda it: it.update_secret, request, compares=True))

    async def delete_secret(self, call: Call) -> None:
        """Delete a secret with all its versions from Google Secret Manager (DeleteSecret)."""
        request = wire.DeleteSecretRequest(name=self._secret_name(call))
        await self._send_request(lambda it: it.delete_secret, request, silent=True)

    async def add_version(self, call: Call, value: SecretBytes) -> Version:
        """Add a version to a secret (AddSecretVersion).

        The request contains the value's CRC32C, which the service checks.
        """
        data = value.reveal()
        payload = wire.SecretPayload(data=data, data_crc32c=google_crc32c.value(data))
        request = wire.AddSecretVersionRequest(parent=self._secret_name(call), payload=payload)
        return self._checked_version(
            call, await self._send_request(lambda it: it.add_secret_version, request, quoting=False)
        )

    async def access_version(self, call: Call, at: str | int) -> tuple[int, SecretBytes]:
        """Read a version's value by alias or number (AccessSecretVersion); return the number and the value."""
        name = self._address.version_name(call.secret_id, at)
        request = wire.AccessSecretVersionRequest(name=name)
        answer = await self._send_request(lambda it: it.access_secret_version, request)
        number = self._address.number_in(answer.name, call.secret_id)
        if number is None or (isinstance(at, int) and number != at):
            raise UnavailableError(f"the answer is about another version than {str(at)!r}")
        data = answer.payload.data
        if not data:
            raise UnavailableError(f"the answer about version {number} holds no value")
        # SECURITY: a value that was truncated or changed on its way from the service is never returned
        # (tests/contract/gcp/test_answers.py::test_a_damaged_value_is_unavailable_and_never_returned).
        if "data_crc32c" not in answer.payload or answer.payload.data_crc32c != google_crc32c.value(data):
            raise UnavailableError(f"the value of version {number} does not have its checksum")
        return number, SecretBytes(data)

    async def get_version(self, call: Call, number: int) -> Version:
        """Read a version's metadata (GetSecretVersion; the project's quota is 600 metadata reads a minute)."""
        request = wire.GetSecretVersionRequest(name=self._address.version_name(call.secret_id, number))
        found = self._checked_version(call, await self._send_request(lambda it: it.get_secret_version, request))
        if found.number != number:
            raise UnavailableError(f"the answer is about another version than {number}")
        return found

    async def list_versions(self, call: Call) -> list[Version]:
        """List the versions of a secret (ListSecretVersions)."""
        request = wire.ListSecretVersionsRequest(parent=self._secret_name(call), page_size=PAGE)
        found: list[Version] = []
        while True:
            page = await self._send_request(lambda it: first_page(it.list_secret_versions), request)
            found += [self._checked_version(call, each) for each in page.versions]
            if page.next_page_token in ("", request.page_token):
                return found
            request.page_token = page.next_page_token

    async def destroy_version(self, call: Call, number: int) -> None:
        """Destroy a version of a secret (DestroySecretVersion).

        If the secret has a `version_destroy_ttl`, the service disables the version now and destroys it after that time.
        """
        request = wire.DestroySecretVersionRequest(name=self._address.version_name(call.secret_id, number))
        await self._send_request(lambda it: it.destroy_secret_version, request)

    async def granted_permissions(self, call: Call, permissions: Iterable[str]) -> frozenset[str]:
        """Return which of the given permissions the credentials have on a secret (TestIamPermissions)."""
        request = iam_policy_pb2.TestIamPermissionsRequest(
            resource=self._secret_name(call), permissions=sorted(permissions)
        )
        answer = await self._send_request(lambda it: it.test_iam_permissions, request)
        return frozenset(answer.permissions)

    # --- one request ------------------------------------------------------------------------------------------------

    async def _send_request(
        self,
        method: Callable[[Client], Callable[..., Awaitable[Answer]]],
        request: object,
        *,
        quoting: bool = True,
        compares: bool = False,
        silent: bool = False,
    ) -> Answer:
        """Send one request to Google Secret Manager with its own deadline and without the SDK's retries.

        Args:
            call: The provider call that needs the request.
            method: Returns the method of the SDK's client to call.
            request: The request.
            quoting: Whether an error may quote the service's text; False if the request holds a value.
            compares: Whether a failed precondition means that the etag has changed; then `EtagMovedError` is raised.
            silent: Whether an empty answer is a success.
        """
        doing = type(request).__name__.removesuffix("Request")
        try:
            answer: Answer = await self._connection.send(method, request, timeout=self._timeout)
            if answer is not None or silent:
                return answer
            # grpc.aio 1.85 returns None for bytes that are not the message.
            problem: Exception = UnavailableError(f"the answer to {doing} is damaged")
        except sdk.GoogleAPICallError as error:
            moved = compares and status_of(error) in _MOVED
            problem = EtagMovedError() if moved else translate_error(error, doing=doing, quoting=quoting)
        except Exception as error:  # noqa: BLE001 - the libraries below raise what they like when bytes are cut
            problem = translate_error(error, doing=doing)
        raise problem  # outside of the handlers, so that the SDK's exception is not its context

    # --- one answer -------------------------------------------------------------------------------------------------

    def _secret_name(self, call: Call) -> str:
        return self._address.secret_name(call.secret_id)

    def _checked_secret(self, call: Call, answer: wire.Secret) -> Secret:
        if not self._address.is_secret(answer.name, call.secret_id) or not answer.etag:
            raise UnavailableError("the answer does not describe this secret")
        return Secret(etag=answer.etag, aliases=dict(answer.version_aliases), annotations=dict(answer.annotations))

    def _checked_version(self, call: Call, answer: wire.SecretVersion) -> Version:
        number = self._address.number_in(answer.name, call.secret_id)
        state = _STATES.get(answer.state)
        created = answer.create_time
        if number is None or state is None or not created:
            raise UnavailableError("the answer does not describe a version of this secret")
        return Version(
            number=number,
            created_ms=(created - _EPOCH) // _MILLISECOND,
            state=state,
            doomed=state is VersionState.DESTROYED or bool(answer.scheduled_destroy_time),
        )


def missing_version_error(version: str) -> SecretNotFoundError:
    """Return the "not found" error for `version`, a string that cannot be a version id of Google Secret Manager."""
    return SecretNotFoundError(f"there is no version {version[:40]!r}")
