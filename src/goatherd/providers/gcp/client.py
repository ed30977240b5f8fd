"""Call Google Secret Manager through its asynchronous SDK: one method for each API call that Goatherd makes.

`SecretManagerAPI` sends one request and returns the checked answer or raises one of Goatherd's errors. It does not
retry (`goatherd.providers.base` does) and has no rules for labels. An answer counts as damaged until its names, state
and checksum have been checked; a damaged answer raises `UnavailableError` and is never reported as a missing secret.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar

import google.auth
import google_crc32c
from google.api_core import exceptions as sdk
from google.api_core.client_options import ClientOptions
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
from goatherd.providers.gcp.problem import EtagMovedError, status_of, translate_error
from goatherd.providers.values import Label, SecretBytes, SecretVersion, VersionId, VersionState

Answer = TypeVar("Answer")

# SECURITY: the SDK logs requests and answers, values too, where its loggers are let
# (tests/contract/gcp/test_answers.py::test_the_sdk_logs_no_value).
_NOISY: Final = ("google", "google.cloud.secretmanager_v1", Client.__module__, Transport.__module__)
SCOPES: Final = ("https://www.googleapis.com/auth/cloud-platform",)
PAGE: Final = 250

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)
_MOVED: Final = frozenset({"FAILED_PRECONDITION", "ABORTED"})
# gRPC waits a second after a connection broke, longer than our first retries take.
_CHANNEL: Final = (
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 5_000),
)
_STATES: Final = {
    wire.SecretVersion.State.ENABLED: VersionState.ENABLED,
    wire.SecretVersion.State.DISABLED: VersionState.DISABLED,
    wire.SecretVersion.State.DESTROYED: VersionState.DESTROYED,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Secret:
    """The used fields of the API's resource `Secret`."""

    etag: str
    aliases: Mapping[str, int]
    annotations: Mapping[str, str]

    def labels_of(self, number: int) -> frozenset[Label]:
        """Return the labels that point at version `number`."""
        return frozenset(Label(alias) for alias, target in self.aliases.items() if target == number)


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """The used fields of the API's resource `SecretVersion`; `doomed` if it is destroyed or will be at a set time."""

    number: int
    created_ms: int
    state: VersionState
    doomed: bool

    def describe_version(self, labels: frozenset[Label], *, is_left: bool = False) -> SecretVersion:
        """Return the description of the version for the caller.

        Args:
            labels: The labels that point at the version.
            is_left: Whether a note says that a writer that died has left the version.
        """
        return SecretVersion(
            id=VersionId(self.number),
            labels=labels,
            created_ms=self.created_ms,
            state=self.state,
            is_leftover=is_left and not labels and not self.doomed,
        )


class SecretManagerAPI:
    """The API's methods. Each raises `goatherd.errors`; `goatherd.providers.gcp.problem` translates them."""

    def __init__(self, address: GCPAddress, credentials: Credentials | None, timeout: timedelta) -> None:
        self._address = address
        self._credentials = credentials
        self._timeout = timeout.total_seconds()
        self._client: Client | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def close(self) -> None:
        """Close the connection, if there is one."""
        client, self._client = self._client, None
        if client is not None and self._loop is asyncio.get_running_loop():
            await client.transport.close()  # type: ignore[no-untyped-call]

    async def get_secret(self, call: Call) -> Secret:
        """Call GetSecret. It counts against the project's quota of 600 metadata reads a minute."""
        request = wire.GetSecretRequest(name=self._secret_name(call))
        return self._checked_secret(call, await self._send_request(call, lambda it: it.get_secret, request))

    async def create_secret(self, call: Call, annotations: Mapping[str, str]) -> Secret:
        """Call CreateSecret, which creates the secret without a version."""
        body = wire.Secret(annotations=dict(annotations))
        if self._address.replication:
            replicas = [wire.Replication.UserManaged.Replica(location=each) for each in self._address.replication]
            body.replication = wire.Replication(user_managed=wire.Replication.UserManaged(replicas=replicas))
        elif self._address.location is None:
            body.replication = wire.Replication(automatic=wire.Replication.Automatic())
        request = wire.CreateSecretRequest(parent=self._address.parent, secret_id=call.secret_id, secret=body)
        return self._checked_secret(call, await self._send_request(call, lambda it: it.create_secret, request))

    async def update_secret(
        self,
        call: Call,
        seen: Secret,
        *,
        annotations: Mapping[str, str],
        aliases: Mapping[str, int] | None = None,
    ) -> Secret:
        """Call UpdateSecret, which succeeds only if the secret's etag is still that of `seen`.

        https://docs.cloud.google.com/secret-manager/docs/etags

        Raises:
            EtagMovedError: The etag has changed.
        """
        body = wire.Secret(name=self._secret_name(call), etag=seen.etag, annotations=dict(annotations))
        mask = ["annotations"]
        if aliases is not None:
            body.version_aliases = dict(aliases)
            mask.append("version_aliases")
        request = wire.UpdateSecretRequest(secret=body, update_mask={"paths": mask})
        return self._checked_secret(
            call, await self._send_request(call, lambda it: it.update_secret, request, compares=True)
        )

    async def delete_secret(self, call: Call) -> None:
        """Call DeleteSecret, which deletes the secret with all its versions."""
        request = wire.DeleteSecretRequest(name=self._secret_name(call))
        await self._send_request(call, lambda it: it.delete_secret, request, silent=True)

    async def add_version(self, call: Call, value: SecretBytes, *, timeout: float) -> Version:
        """Call AddSecretVersion with the value's CRC32C, which the service checks."""
        data = value.reveal()
        payload = wire.SecretPayload(data=data, data_crc32c=google_crc32c.value(data))
        request = wire.AddSecretVersionRequest(parent=self._secret_name(call), payload=payload)
        answer = await self._send_request(
            call, lambda it: it.add_secret_version, request, timeout=min(timeout, self._timeout), quoting=False
        )
        return self._checked_version(call, answer)

    async def access_version(self, call: Call, at: str | int) -> tuple[int, SecretBytes]:
        """Call AccessSecretVersion, by alias or by number. Return the version's number and its value."""
        name = self._address.version_name(call.secret_id, at)
        request = wire.AccessSecretVersionRequest(name=name)
        answer = await self._send_request(call, lambda it: it.access_secret_version, request)
        number = self._address.number_in(answer.name, call.secret_id)
        if number is None or (isinstance(at, int) and number != at):
            raise call.error(UnavailableError, f"the answer is about another version than {str(at)!r}")
        data = answer.payload.data
        if not data:
            raise call.error(UnavailableError, f"the answer about version {number} holds no value")
        # SECURITY: what was cut or changed on the way is no value
        # (tests/contract/gcp/test_answers.py::test_a_damaged_value_is_unavailable_and_never_returned).
        if "data_crc32c" not in answer.payload or answer.payload.data_crc32c != google_crc32c.value(data):
            raise call.error(UnavailableError, f"the value of version {number} does not have its checksum")
        return number, SecretBytes(data)

    async def get_version(self, call: Call, number: int) -> Version:
        """Call GetSecretVersion. It counts against the project's quota of 600 metadata reads a minute."""
        request = wire.GetSecretVersionRequest(name=self._address.version_name(call.secret_id, number))
        found = self._checked_version(call, await self._send_request(call, lambda it: it.get_secret_version, request))
        if found.number != number:
            raise call.error(UnavailableError, f"the answer is about another version than {number}")
        return found

    async def list_versions(self, call: Call, *, after: int = 0) -> list[Version]:
        """Call ListSecretVersions. Return the versions with numbers above `after`, newest first."""
        request = wire.ListSecretVersionsRequest(parent=self._secret_name(call), page_size=PAGE)
        found: list[Version] = []
        while True:
            page = await self._send_request(call, _first_page, request)
            listed = [self._checked_version(call, each) for each in page.versions]
            found += [each for each in listed if each.number > after]
            last = page.next_page_token in ("", request.page_token)
            if last or any(each.number <= after for each in listed):
                return sorted(found, key=lambda each: each.number, reverse=True)
            request.page_token = page.next_page_token

    async def destroy_version(self, call: Call, number: int) -> None:
        """Call DestroySecretVersion. With a `version_destroy_ttl`, it disables the version and destroys it later."""
        request = wire.DestroySecretVersionRequest(name=self._address.version_name(call.secret_id, number))
        await self._send_request(call, lambda it: it.destroy_secret_version, request)

    async def disable_version(self, call: Call, number: int) -> None:
        """Call DisableSecretVersion; EnableSecretVersion undoes it."""
        request = wire.DisableSecretVersionRequest(name=self._address.version_name(call.secret_id, number))
        await self._send_request(call, lambda it: it.disable_secret_version, request)

    async def granted_permissions(self, call: Call, permissions: Iterable[str]) -> frozenset[str]:
        """Call TestIamPermissions, which needs no permission, and return those that the credentials have."""
        request = iam_policy_pb2.TestIamPermissionsRequest(
            resource=self._secret_name(call), permissions=sorted(permissions)
        )
        answer = await self._send_request(call, lambda it: it.test_iam_permissions, request)
        return frozenset(answer.permissions)

    # --- one request ------------------------------------------------------------------------------------------------

    async def _send_request(
        self,
        call: Call,
        method: Callable[[Client], Callable[..., Awaitable[Answer]]],
        request: object,
        *,
        timeout: float | None = None,
        quoting: bool = True,
        compares: bool = False,
        silent: bool = False,
    ) -> Answer:
        """Send one request with its own deadline and without the SDK's retries."""
        doing = type(request).__name__.removesuffix("Request")
        try:
            client = await self._connect_client()
            answer = await method(client)(request=request, retry=None, timeout=timeout or self._timeout)
            if answer is not None or silent:
                return answer
            # grpc.aio 1.85 returns None for bytes that are not the message.
            problem: Exception = call.error(UnavailableError, f"the answer to {doing} is damaged")
        except sdk.GoogleAPICallError as error:
            moved = compares and status_of(error) in _MOVED
            problem = EtagMovedError() if moved else translate_error(call, error, doing=doing, quoting=quoting)
        except Exception as error:  # noqa: BLE001 - the libraries below raise what they like when bytes are cut
            problem = translate_error(call, error, doing=doing)
        raise problem  # outside of the handlers, so that the SDK's exception is not its context

    async def _connect_client(self) -> Client:
        loop = asyncio.get_running_loop()
        if self._client is None or self._loop is not loop:
            # In a thread: it reads files, and may ask the metadata server.
            credentials = self._credentials or await asyncio.to_thread(_default_credentials)
            if self._client is None or self._loop is not loop:
                for name in _NOISY:
                    logger = logging.getLogger(name)
                    logger.setLevel(max(logger.level, logging.INFO))
                options = ClientOptions(api_endpoint=self._address.host)
                self._client = Client(credentials=credentials, transport=_new_transport, client_options=options)
                self._loop = loop
        return self._client

    # --- one answer -------------------------------------------------------------------------------------------------

    def _secret_name(self, call: Call) -> str:
        return self._address.secret_name(call.secret_id)

    def _checked_secret(self, call: Call, answer: wire.Secret) -> Secret:
        if not self._address.is_secret(answer.name, call.secret_id) or not answer.etag:
            raise call.error(UnavailableError, "the answer does not describe this secret")
        return Secret(etag=answer.etag, aliases=dict(answer.version_aliases), annotations=dict(answer.annotations))

    def _checked_version(self, call: Call, answer: wire.SecretVersion) -> Version:
        number = self._address.number_in(answer.name, call.secret_id)
        state = _STATES.get(answer.state)
        created = answer.create_time
        if number is None or state is None or not created:
            raise call.error(UnavailableError, "the answer does not describe a version of this secret")
        return Version(
            number=number,
            created_ms=(created - _EPOCH) // _MILLISECOND,
            state=state,
            doomed=state is VersionState.DESTROYED or bool(answer.scheduled_destroy_time),
        )


def not_there(call: Call, version: str) -> SecretNotFoundError:
    """Return the error for a string that is not a version id of this store."""
    return call.error(SecretNotFoundError, f"there is no version {version[:40]!r}")


def _first_page(client: Client) -> Callable[..., Awaitable[wire.ListSecretVersionsResponse]]:
    """Return the method without the SDK's pager, which requests further pages itself and fails on a damaged page."""

    async def ask(**arguments: Any) -> wire.ListSecretVersionsResponse:
        pager = await client.list_secret_versions(**arguments)
        return await anext(aiter(pager.pages))

    return ask


def _default_credentials() -> Credentials:
    found: Credentials = google.auth.default(scopes=list(SCOPES))[0]
    return found


def _new_transport(**options: Any) -> Transport:
    return Transport(channel=_new_channel, **options)


def _new_channel(host: str, *, options: list[tuple[str, object]], **others: Any) -> Any:
    return Transport.create_channel(host, options=[*options, *_CHANNEL], **others)
