"""Send requests to one Azure key vault through Microsoft's SDK, check the answers, and translate the errors.

`KeyVault` sends one request and returns the checked answer or raises one of Goatherd's errors. The SDK's retries are
off, because `goatherd.providers.base` retries. The module does not handle labels. Every exception of the SDK is
translated here. No answer is used before its shape has been checked.

SECURITY: an exception of the SDK may quote what was sent or received, so it is never chained. Only its status, the
service's codes and the text of a denial are quoted (tests/contract/azure/test_faults.py, `…_shows_no_value`).
"""

from __future__ import annotations

import json
import logging
import re
import ssl
from collections.abc import Awaitable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Final

import aiohttp
from azure.core import exceptions as sdk
from azure.core.credentials_async import AsyncTokenCredential
from azure.core.pipeline import PipelineResponse
from azure.core.pipeline.transport import AioHttpTransport
from azure.keyvault.secrets import SecretProperties
from azure.keyvault.secrets.aio import SecretClient

from goatherd.clock import Clock, RemoteClock, read_http_date
from goatherd.errors import (
    ConfigurationError,
    ProviderAccessDeniedError,
    ProviderConfigurationError,
    ProviderError,
    SecretDeletedError,
    SecretTooLargeError,
    ThrottledError,
    UnavailableError,
    VersionDisabledError,
)
from goatherd.providers.azure.address import POINTER_SUFFIX, AzureAddress
from goatherd.providers.azure.credential import DefaultCredential, TokenServiceError
from goatherd.providers.azure.records import is_version_id
from goatherd.providers.cancellation import finish_request
from goatherd.serving.http_client import describe_failure

DELETED_CODE: Final = "ObjectIsDeletedButRecoverable"
_CODE = re.compile(r"[A-Za-z0-9]{1,64}")


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class StoredSecret:
    """One version of a secret with its value, as Azure Key Vault reports it.

    SECURITY: no repr shows the value (tests/unit/providers/azure/test_records.py).

    Attributes:
        version: The version's id.
        created: When the version was written: seconds since 1970, by the service's clock.
        value: The secret value; empty in a listing.
        content_type: The content type with which the version was written.
        tags: The tags with which the version was written.
        enabled: Whether the value can be read; if not, `value` is empty.
    """

    version: str
    created: int
    value: str
    content_type: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    enabled: bool = True


class KeyVault:
    """Sends requests to one Azure key vault; owns the SDK's client and, unless the caller passes one, the credential.

    Args:
        address: The key vault, and the managed identity (an account in Azure) with which to log in.
        timeout: The deadline of a whole call; no single wait for the service takes longer than half of it.
        clock: Measures the time since the service's last answer.
        credential: The credential to use instead of Azure's default chain. The caller closes it.
        store_clock: The estimate of the service's clock; the date of each answer updates it.
    """

    def __init__(
        self,
        address: AzureAddress,
        timeout: timedelta,
        clock: Clock,
        credential: AsyncTokenCredential | None,
        store_clock: RemoteClock,
    ) -> None:
        self._address = address
        self._timeout = timeout
        self._clock = clock
        self._store_clock = store_clock
        self._last_date: tuple[int, float] | None = None
        self._given = credential
        self._stack = AsyncExitStack()
        self._client: SecretClient | None = None

    async def open(self) -> None:
        """Create the Azure SDK's client for the key vault. Sends no request.

        Raises:
            ConfigurationError: The file of CA certificates cannot be used.
        """
        async with AsyncExitStack() as stack:
            if self._given is not None:
                credential = self._given
            else:
                credential = await stack.enter_async_context(DefaultCredential(self._address))
            options = client_options(self._address, self._timeout.total_seconds() / 2)
            client = SecretClient(self._address.url, credential, raw_response_hook=self._note_date, **options)
            self._client = await stack.enter_async_context(client)
            self._stack = stack.pop_all()

    async def close(self) -> None:
        """Close the Azure SDK's client, and the credential that `open` created."""
        self._client = None
        await self._stack.aclose()

    async def get_secret(self, name: str, version: str = "") -> StoredSecret | None:
        """Read one version of a secret, by default the newest; None if there is none or the secret is deleted."""
        found = await self._call_sdk(self._open_client().get_secret(name, version), name, missing=None)
        if found is None:
            return None
        stored = _checked_secret(found.value, found.properties, name)
        if version and stored.version != version:
            raise UnavailableError(f"the answer is about another version of {name} than the requested one")
        return stored

    async def put_secret(self, name: str, value: str, content_type: str, tags: dict[str, str]) -> StoredSecret:
        """Write a new version of a secret and return it.

        If the caller is cancelled, wait up to a second for the answer: only after the answer does the next read show
        reliably whether the version was written.
        """
        writing = self._call_sdk(
            self._open_client().set_secret(name, value, content_type=content_type, tags=tags),
            name,
            missing=None,
        )
        made = await finish_request(writing)
        if made is None:
            raise UnavailableError(f"the service answered 404 to the request that writes {name}")
        return _checked_secret(value, made.properties, name)

    async def list_versions(self, name: str) -> dict[str, StoredSecret]:
        """List all versions of a secret by their ids, unordered and without values; empty if there is no secret."""

        async def collect() -> list[SecretProperties]:
            return [item async for item in self._open_client().list_properties_of_secret_versions(name)]

        items = [_checked_item(item, name) for item in await self._call_sdk(collect(), name, missing=[])]
        return {item.version: item for item in items}

    def service_time(self) -> int:
        """Return the time by the key vault's clock, or slightly less, in seconds since 1970, from its last answer.

        Ask before a listing, not after it: the answer may be dated long after the service looked up the versions.

        Raises:
            UnavailableError: The service's answers have no date.
        """
        if self._last_date is None:
            raise UnavailableError("the service's answers have no date, so it is unknown which write came first")
        date, then = self._last_date
        return date + int(self._clock.monotonic() - then)

    async def disable_version(self, name: str, version: str) -> None:
        """Make a version of a secret unreadable, until somebody enables it again."""
        work = self._open_client().update_secret_properties(name, version, enabled=False)
        if await self._call_sdk(work, name, missing=None) is None:
            raise UnavailableError(f"version {version} of {name} is listed, but the service has none")

    async def delete_secret(self, name: str) -> None:
        """Delete a secret with all its versions; it can be recovered for a while. A missing secret is not an error."""
        await self._call_sdk(self._open_client().delete_secret(name), name, missing=None)

    async def is_deleted(self, name: str) -> bool:
        """Return whether a secret is deleted but recoverable; also False if the caller has no permission to know."""
        try:
            return await self._call_sdk(self._open_client().get_deleted_secret(name), name, missing=None) is not None
        except ProviderAccessDeniedError:
            return False

    def deleted_error(self, secret_id: str) -> SecretDeletedError:
        """Return the error for a secret in Azure Key Vault that is deleted but can be recovered."""
        return _deleted_error(secret_id, self._address.vault)

    def _note_date(self, response: PipelineResponse[Any, Any]) -> None:
        header = response.http_response.headers.get("Date")
        # The SDK does not say when it sent the request; it waits no longer than this.
        self._store_clock.note_date(header, began=self._clock.monotonic() - self._timeout.total_seconds())
        date_ms = read_http_date(header)
        self._last_date = None if date_ms is None else (date_ms // 1000, self._clock.monotonic())

    def _open_client(self) -> SecretClient:
        if self._client is None:
            raise ProviderConfigurationError("the provider is not open", hint="Open the provider with `async with`.")
        return self._client

    async def _call_sdk(self, work: Awaitable[Any], name: str, *, missing: Any) -> Any:
        """Await one operation of the Azure SDK, and translate its errors; return `missing` if there is no such secret.

        Raises:
            ProviderError: The operation failed.
        """
        try:
            return await work
        except Exception as error:  # noqa: BLE001 - the SDK lets out JSON errors, aiohttp's and its own
            if not (isinstance(error, sdk.HttpResponseError) and error.status_code == 404):
                ours = self._translate_error(error, name)
            elif error_codes(error)[0] == "SecretNotFound":
                return missing
            else:
                # A 404 of another server (a proxy, a wrong address) does not mean that the secret is missing.
                text = f"{self._address.url} answers 404, but not as a key vault does"
                ours = UnavailableError(text, final=True)
        raise ours  # out here, where the SDK's error is not its context either

    def _translate_error(self, error: Exception, name: str) -> ProviderError:
        if isinstance(error, ProviderError):
            return error
        code = error_codes(error)[1]
        if code == "SecretDisabled":
            return VersionDisabledError(
                f"a version of {name} is disabled",
                hint=f"`az keyvault secret set-attributes --vault-name {self._address.vault} --name {name} "
                "--enabled true` enables it (with --version, if it is not the newest).",
            )
        if code == DELETED_CODE:
            return _deleted_error(name.removesuffix(POINTER_SUFFIX), self._address.vault)
        return translate_error(error, self._address.url, name)


def _translate_refusal(error: sdk.HttpResponseError, name: str) -> ProviderError:
    status = error.status_code or 0
    code, inner, message = error_codes(error)
    reason = f"{status} {inner or code}".rstrip()
    if status in (401, 403):
        return ProviderAccessDeniedError(
            f"{reason}: {_first_line(message)}",
            hint="`goatherd policy azure` prints the roles that are needed; a new assignment takes some minutes. "
            "ForbiddenByFirewall and ForbiddenByConnection are caused by the vault's network settings.",
        )
    if status in (409, 423):
        # ObjectIsBeingDeleted, ObjectIsBeingRecovered, or two requests at once: over in a moment.
        return UnavailableError(f"{name} is being changed ({reason})")
    if status == 429:
        return ThrottledError(f"the vault limits the rate of requests ({reason})", retry_after=_retry_after_of(error))
    if status == 413 or (status == 400 and "length" in message.lower() and "secret" in message.lower()):
        return SecretTooLargeError(f"the value is too long for the vault ({reason})")
    if status == 408 or status >= 500:
        return UnavailableError(f"the vault reports an error ({reason})")
    return ProviderConfigurationError(f"the vault rejected the request ({reason})")


def translate_error(error: Exception, url: str, name: str) -> ProviderError:
    """Translate an error of the Azure SDK about the secret or key `name`, where secrets and keys do not differ."""
    if isinstance(error, sdk.HttpResponseError) and error.status_code and error.status_code >= 400:
        return _translate_refusal(error, name)
    if isinstance(error, TokenServiceError):
        return UnavailableError(str(error))
    if isinstance(error, sdk.ClientAuthenticationError):
        return ProviderAccessDeniedError(
            "no credential of Azure's default chain gave a token",
            hint="Give the machine a managed identity, or set AZURE_CLIENT_ID, AZURE_TENANT_ID and "
            "AZURE_CLIENT_SECRET, or run `az login`.",
        )
    if isinstance(error, sdk.ServiceRequestError | sdk.ServiceResponseError | aiohttp.ClientError | OSError):
        cause = getattr(error, "inner_exception", None) or error.__cause__ or error
        return UnavailableError(f"no answer from {url}: {describe_failure(cause)}")
    if isinstance(error, ValueError) and "challenge" in str(error):
        return ProviderConfigurationError(
            f"{url} demands a token for another domain than its own",
            hint="Check the address. If a proxy of your own is in front of the vault, add challenge=unchecked.",
        )
    # Not JSON, cut JSON, JSON of another shape: json's, azure.core's and attribute errors.
    return UnavailableError(f"the answer of {url} is damaged ({type(error).__name__})")


def client_options(address: AzureAddress, timeout: float) -> dict[str, Any]:
    """Return the options of the SDK's clients for a vault: one attempt, `timeout` in seconds, and no log of requests.

    Raises:
        ConfigurationError: The file of CA certificates cannot be used.
    """
    return {
        "verify_challenge_resource": address.check_challenge,
        "logging_enable": False,
        "http_logging_level": logging.DEBUG,
        "retry_total": 0,
        "connection_timeout": timeout,
        "read_timeout": timeout,
        "transport": AioHttpTransport(session=_new_session(address.ca)),
    }


def _new_session(ca: str | None) -> aiohttp.ClientSession:
    """Create the HTTP session for requests to Azure: like the SDK's own, with two differences.

    It trusts the CA certificates in the file `ca`, if one is given; the SDK's own option for that would disable its
    connection pool. And it sends a PUT only once, even if the connection ends before the answer. By default aiohttp
    sends it again, because HTTP defines PUT as idempotent, but in Key Vault each PUT makes a version
    (tests/contract/azure/test_faults.py::test_a_write_whose_answer_was_lost_is_done_once).
    """
    try:
        context = ssl.create_default_context(cafile=ca) if ca is not None else True
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(f"the file of certificates {ca!r} cannot be used: {type(error).__name__}") from None
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=context),
        trust_env=True,
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
    )
    session._retry_connection = False
    return session


def _checked_secret(value: object, properties: SecretProperties, name: str) -> StoredSecret:
    try:
        version, created = properties.version, properties.created_on
    except (AttributeError, TypeError, ValueError):
        version, created = None, None
    if not isinstance(value, str) or not is_version_id(version) or not isinstance(created, datetime):
        raise UnavailableError(f"the answer about {name} is damaged: a member is missing")
    kind = properties.content_type
    return StoredSecret(
        version=str(version),
        created=int(created.timestamp()),
        value=value,
        content_type=kind if isinstance(kind, str) else "",
        tags=dict(properties.tags or {}),
    )


def _checked_item(listed: SecretProperties, name: str) -> StoredSecret:
    return replace(_checked_secret("", listed, name), enabled=listed.enabled is not False)


def _deleted_error(secret_id: str, vault: str) -> SecretDeletedError:
    names = ", ".join(secret_id + suffix for suffix in ("", POINTER_SUFFIX))
    return SecretDeletedError(
        "the secret is deleted but can be recovered; its name stays taken until it is purged",
        hint=f"Recover {names} (`az keyvault secret recover --vault-name {vault} --name …`), or purge all of them.",
    )


def error_codes(error: Any) -> tuple[str, str, str]:
    """Return the code, the inner code and the message of an Azure error; each is empty if there is none."""
    try:
        details = json.loads(error.response.text())["error"]
        inner = details.get("innererror") or details.get("innerError") or {}  # both spellings occur
        code, within, message = details.get("code"), inner.get("code"), details.get("message")
    except Exception:  # noqa: BLE001 - whatever else answered
        return "", "", ""
    return (
        code if isinstance(code, str) and _CODE.fullmatch(code) else "",
        within if isinstance(within, str) and _CODE.fullmatch(within) else "",
        message if isinstance(message, str) else "",
    )


def _first_line(message: str) -> str:
    return message.splitlines()[0][:200] if message else "the vault refuses"


def _retry_after_of(error: sdk.HttpResponseError) -> float | None:
    """Return for how many seconds Azure asks the client to wait before a retry; None if it does not say."""
    header = getattr(error.response, "headers", {}).get("Retry-After")
    try:
        seconds = float(header) if header is not None else None
    except ValueError:
        return None
    return seconds if seconds is not None and 0 <= seconds < 86_400 else None
