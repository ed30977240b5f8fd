"""A thin client of the HTTP API that Vault and OpenBao share, for the key/value engine, version 2.

The client does not handle labels. It does not retry, except with a new token if the server has rejected an expired one.
An answer is used only if its shape and version number are right. A damaged answer raises `UnavailableError` and is
never reported as a missing secret.

Follows https://openbao.org/api-docs/secret/kv/kv-v2/ and https://openbao.org/api-docs/ (status codes); checked against
the answers of a real OpenBao 2.7.2.
"""

from __future__ import annotations

import contextlib
import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import urljoin, urlsplit

import httpx2

from goatherd.clock import Clock, RemoteClock
from goatherd.errors import (
    ConfigurationError,
    ProviderAccessDeniedError,
    ProviderConfigurationError,
    ProviderError,
    SecretTooLargeError,
    ThrottledError,
    UnavailableError,
)
from goatherd.providers.cancellation import finish_request
from goatherd.providers.http_answers import (
    await_answer,
    damaged_answer_error,
    no_answer_error,
    parse_object,
    parse_retry_after,
    read_body,
)
from goatherd.providers.tls import default_context, load_authorities
from goatherd.providers.values import VersionState
from goatherd.providers.vault.address import VaultAddress
from goatherd.providers.vault.auth import Credentials
from goatherd.providers.versioned_record import parse_number
from goatherd.serving.certificate_files import CertificateFiles
from goatherd.serving.connection_pool import ConnectionPool
from goatherd.serving.http_client import causes_of, make_http_client

_QUOTED: Final = 200
_CAS_MISMATCH: Final = "check-and-set parameter did not match"
_MOST_VERSIONS: Final = 10**18 - 1
_UPGRADING: Final = "Upgrading from non-versioned to versioned"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One version of an entry in Vault, with its data."""

    data: Mapping[str, Any]
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Gone:
    """One version of an entry in Vault without data: it was deleted (which can be undone) or destroyed."""

    version: int
    state: VersionState


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """Vault's description of a version of an entry that it has just written.

    Attributes:
        version: The version's number.
        expires: Whether the server will delete the version automatically.
    """

    version: int
    expires: bool


class VaultClient:
    """A client for one key/value mount of a Vault server, with one login. Call `open` first and `close` last."""

    def __init__(
        self,
        address: VaultAddress,
        *,
        timeout: float,
        clock: Clock,
        environment: Mapping[str, str] | None = None,
        transport: httpx2.AsyncBaseTransport | None = None,
        store_clock: RemoteClock | None = None,
    ) -> None:
        self._address = address
        self._timeout = timeout
        self._clock = clock
        self._store_clock = store_clock or RemoteClock(clock)
        self._transport = transport
        self._credentials = Credentials(address.auth, self._send_request, clock=clock, environment=environment)
        self._pool: ConnectionPool | None = None
        self._certificate: CertificateFiles | None = None
        self._context: ssl.SSLContext | None = None
        self._index: str | None = None

    def open(self) -> None:
        """Create the connection pool for the Vault server. Sends no request.

        Raises:
            ConfigurationError: A certificate or key file cannot be used.
        """
        self._context, self._certificate = self._tls_context()
        self._pool = self._make_pool(self._context)

    def _make_pool(self, context: ssl.SSLContext) -> ConnectionPool:
        http = make_http_client(
            self._address.url,
            verify=context,
            timeout=self._timeout,
            transport=self._transport,
            headers={"Accept-Encoding": "identity", "X-Vault-Request": "true"},
        )
        return ConnectionPool(http)

    async def close(self) -> None:
        """Close the connections to the Vault server. A token from a login is not revoked, as others may share it."""
        pool, self._pool = self._pool, None
        await self._credentials.close()
        if pool is not None:
            await pool.aclose()

    # --- the key/value engine ---------------------------------------------------------------------------------------

    async def read_secret(self, path: str) -> Found | Gone | None:
        """Read the newest version of an entry in Vault; None if there is no entry."""
        status, answer = await self.call_api("GET", self._api_path("data", path))
        if _is_absence(status, answer):
            return None
        data = _require_object(answer, "data")
        number = _version_of(_require_object(data, "metadata"))
        if status == 404:
            return Gone(version=number, state=_state_of(_require_object(data, "metadata"), self._clock.now_ms()))
        return Found(data=_require_object(data, "data"), version=number)

    async def write_secret(self, path: str, data: Mapping[str, object], *, cas: int) -> Written | None:
        """Write the next version of an entry if its newest is `cas` (0: no entry exists); return None otherwise."""
        body = {"data": data, "options": {"cas": cas}}
        status, answer = await finish_request(self.call_api("POST", self._api_path("data", path), body=body))
        if status == 400:
            return None
        metadata = _require_object(answer, "data")
        number = _version_of(metadata)
        if number != cas + 1:
            raise damaged_answer_error("it names another version than the one written")
        return Written(version=number, expires=bool(metadata.get("deletion_time")))

    async def read_states(self, path: str) -> Mapping[int, VersionState]:
        """Read the state of each version that Vault keeps of an entry; empty if there is no entry."""
        status, answer = await self.call_api("GET", self._api_path("metadata", path))
        if _is_absence(status, answer):
            return {}
        versions, now_ms = _require_object(_require_object(answer, "data"), "versions"), self._clock.now_ms()
        kept = {int(number): _require_object(versions, number) for number in versions if parse_number(number)}
        return {number: _state_of(version, now_ms) for number, version in kept.items()}

    async def destroy_versions(self, path: str, *versions: int) -> None:
        """Destroy the data of some versions of an entry in Vault permanently."""
        await finish_request(self.call_api("POST", self._api_path("destroy", path), body={"versions": list(versions)}))

    async def remove_secret(self, path: str) -> None:
        """Remove an entry with all its versions from Vault; a missing entry is not an error."""
        await finish_request(self.call_api("DELETE", self._api_path("metadata", path)))

    async def may_destroy(self, path: str) -> bool:
        """Return whether the token may destroy versions of an entry; also True if Vault does not say."""
        return await self.has_capability("update", "destroy", path) is not False

    async def has_capability(self, capability: str, kind: str, path: str) -> bool | None:
        """Return whether the token has a capability on a path, such as ``update``; None if Vault does not say."""
        where = self._api_path(kind, path)
        try:
            _, answer = await self.call_api("POST", "sys/capabilities-self", body={"paths": [where]})
        except ProviderAccessDeniedError:
            return None
        listed = _require_object(answer, "data").get(where)
        return any(each in listed for each in (capability, "root", "sudo")) if isinstance(listed, list) else None

    async def engine_version(self) -> str | None:
        """Return the type of the secrets engine at the mount, such as ``kv 2``; None if the token may not read it."""
        try:
            status, answer = await self.call_api("GET", f"sys/internal/ui/mounts/{self._address.mount}")
        except ProviderAccessDeniedError:
            return None
        if status != 200:
            return None
        data = _require_object(answer, "data")
        options = data.get("options")
        return f"{data.get('type')} {options.get('version', '1') if isinstance(options, Mapping) else '1'}"

    # --- one request ------------------------------------------------------------------------------------------------

    def _api_path(self, kind: str, path: str) -> str:
        return f"{self._address.mount}/{kind}/{path}"

    async def call_api(
        self, method: str, path: str, *, body: Mapping[str, object] | None = None, params: Mapping[str, str] = {}
    ) -> tuple[int, Mapping[str, Any]]:
        """Send a request to Vault with a token; if the token has expired, get a new one and send the request again.

        Returns:
            The status, which is 200, 204, 400 or 404, and the JSON object in the answer.

        Raises:
            ProviderError: Vault did not answer, denied the request, or gave a damaged answer.
        """
        token = await self._credentials.current_token()
        status, answer = await self._send_request(method, path, token=token, body=body, params=params)
        if status == 403 and await self._credentials.replace_token(token):
            status, answer = await self._send_request(
                method, path, token=await self._credentials.current_token(), body=body, params=params
            )
        if status == 403:
            raise ProviderAccessDeniedError(
                f"the server refuses {method} {path}",
                hint="Give the token a policy: `goatherd policy vault --role server` (or rotator, admin) prints this"
                " policy.",
            )
        errors = _errors_text(answer)
        if status == 404 and "no handler for route" in errors:
            raise ProviderConfigurationError(
                f"nothing is mounted at {self._address.mount}",
                hint="The address begins with the mount of a key/value engine, version 2. See `vault secrets list`.",
            )
        if status == 404 and "data" not in answer and not isinstance(answer.get("errors"), list):
            raise damaged_answer_error("HTTP 404 that no Vault server sends: another server answers in its place")
        if status == 400 and _UPGRADING in errors:
            raise UnavailableError(f"{self._address.mount} is being upgraded to version 2; this takes a moment")
        if status == 400 and _CAS_MISMATCH not in errors:
            raise ProviderConfigurationError(f"the server does not understand {method} {path}: {errors}")
        return status, answer

    async def _send_request(
        self,
        method: str,
        path: str,
        *,
        token: str | None,
        body: Mapping[str, object] | None = None,
        params: Mapping[str, str] = {},
    ) -> tuple[int, Mapping[str, Any]]:
        """Send one request to Vault; return its status (200, 204, 400, 403 or 404) and the JSON object in the answer.

        Raises:
            ProviderError: Vault did not answer, gave a damaged answer, or answered with another status.
        """
        headers = {}
        if token is not None:
            headers["X-Vault-Token"] = token
        if self._address.namespace:
            headers["X-Vault-Namespace"] = self._address.namespace
        if self._index is not None:
            headers["X-Vault-Index"] = self._index
        content = None if body is None else json.dumps(body).encode()
        url = f"{self._address.url}/v1/{path}"
        for _ in range(2):
            status, answer_headers, raw = await self._exchange_once(method, url, headers, content, params)
            if status not in (301, 302, 307, 308):
                break
            url, params = self._follow_redirect(url, answer_headers.get("location")), {}
        # Passed back, it lets a server with readable standbys wait until it has seen what this client has seen.
        index = answer_headers.get("x-vault-index")
        if index is not None and index.isascii():  # another one could not be sent
            self._index = index
        return self._error_for(method, path, status, answer_headers, raw)

    async def _current_pool(self) -> ConnectionPool:
        """Return the connection pool; a new one if the files of the client's certificate were replaced."""
        pool = self._pool
        if pool is None:
            raise ProviderConfigurationError("the provider is not open", hint="Use `async with`.")
        if self._certificate is None:
            return pool
        is_renewed = False
        with contextlib.suppress(OSError, ValueError):  # in the middle of a renewal; the next request tries again
            is_renewed = await self._certificate.load_if_replaced()
        if is_renewed and self._pool is not None:
            # A connection shows the certificate that it was made with, for as long as it lasts.
            old, self._pool = self._pool, self._make_pool(self._certificate.context)
            await old.aclose()
        return self._pool or pool

    async def _exchange_once(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        content: bytes | None,
        params: Mapping[str, str],
    ) -> tuple[int, httpx2.Headers, bytes]:
        async def exchange(http: httpx2.AsyncClient) -> tuple[int, httpx2.Headers, bytes]:
            began = self._clock.monotonic()
            async with http.stream(method, url, headers=headers, content=content, params=params or None) as response:
                self._store_clock.note_date(response.headers.get("date"), began=began)
                return response.status_code, response.headers, await read_body(response)

        return await await_answer((await self._current_pool()).run(exchange), self._no_answer_error)

    def _no_answer_error(self, error: Exception) -> ProviderError:
        for cause in causes_of(error):
            if isinstance(cause, ssl.SSLError) and cause.reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"):
                return ProviderConfigurationError(
                    f"{self._address.url} does not speak TLS",
                    hint="If you want a connection without TLS (to a proxy on this machine), write tls=off in the"
                    " address.",
                )
            if isinstance(cause, ssl.SSLCertVerificationError) and self._address.ca and self._context is not None:
                load_authorities(self._context, self._address.ca)
        hint = "Name the server's certificate authority: ca=/path/to/ca.pem in the address, or VAULT_CACERT."
        return no_answer_error(error, self._address.url, distrust_hint=hint)

    def _follow_redirect(self, url: str, location: str | None) -> str:
        """Return the URL to which a Vault standby redirects a request: that of the active node.

        SECURITY: like Vault's own clients, Goatherd sends the token to the target of the redirect. So with TLS, a
        redirect is followed only from a server whose certificate was checked, and never to plain HTTP. Without TLS, an
        attacker who can forge a redirect can also read the token (tests/unit/providers/vault/test_client.py).
        """
        try:
            target = urljoin(url, location or "")
            is_allowed = bool(location) and urlsplit(target).scheme in ("https", urlsplit(url).scheme)
        except ValueError:
            is_allowed = False
        if not is_allowed:
            raise UnavailableError("the server redirects to a URL that is not allowed", final=True)
        return target

    def _error_for(
        self, method: str, path: str, status: int, headers: httpx2.Headers, raw: bytes
    ) -> tuple[int, Mapping[str, Any]]:
        what = f"{method} {path}"
        if status == 429:
            raise ThrottledError(
                f"the server limits requests: {what}",
                retry_after=_retry_after(headers.get("retry-after"), self._clock.now_ms()),
                hint="A rate limit quota applies; see `vault read sys/quotas/rate-limit/…`.",
            )
        if status == 413:
            raise SecretTooLargeError(f"the server rejected {what}: the request is too large")
        if status >= 500 or status in (408, 412, 472, 473):
            errors = _errors_text(parse_object(raw) or {})
            if "sealed" in errors:
                raise UnavailableError("the server is sealed", hint="Unseal the server: `vault operator unseal`.")
            if "value being too large" in errors or "exceeds maximum" in errors:
                raise SecretTooLargeError("the value is too large for the server")
            raise UnavailableError(f"the server failed with HTTP {status}: {errors}".rstrip(": "))
        if status == 400 and b"HTTP request to an HTTPS server" in raw:
            raise ProviderConfigurationError(f"{self._address.url} wants TLS", hint="Remove tls=off, or use https.")
        if status == 204:
            return status, {}
        answer = parse_object(raw)
        if answer is None or status not in (200, 400, 403, 404):
            raise damaged_answer_error(f"HTTP {status} without the JSON that a Vault server sends")
        return status, answer

    def _tls_context(self) -> tuple[ssl.SSLContext, CertificateFiles | None]:
        """Return the TLS context for the Vault server, and the files of the client's certificate, if it has one."""
        address = self._address
        certificate: CertificateFiles | None = None
        if not address.url.startswith("https:") or not (address.ca or address.cert):
            return default_context(), None
        try:
            if address.ca is None:
                context = httpx2.create_ssl_context()
            elif Path(address.ca).is_dir():
                context = ssl.create_default_context(capath=address.ca)
            else:
                context = ssl.create_default_context(cafile=address.ca)
            if address.cert:
                certificate = CertificateFiles(context, address.cert, address.key)
                certificate.load()
        except (OSError, ValueError) as error:
            files = ", ".join(each for each in (address.ca, address.cert, address.key) if each)
            raise ConfigurationError(
                f"cannot use a certificate or key file ({type(error).__name__}): {files}",
                hint="ca, cert and key, or VAULT_CACERT, VAULT_CLIENT_CERT and VAULT_CLIENT_KEY, must name PEM files.",
            ) from error
        return context, certificate


def _is_absence(status: int, answer: Mapping[str, Any]) -> bool:
    """Return whether Vault's answer means "no such version or entry": only a 404 with an empty list of errors does."""
    return status == 404 and "data" not in answer and answer.get("errors") == []


def _errors_text(answer: Mapping[str, Any]) -> str:
    """Return Vault's error messages as text. They name paths and parameters; Vault repeats no secret values in them."""
    errors = answer.get("errors")
    return "; ".join(str(each) for each in errors)[:_QUOTED] if isinstance(errors, list) else ""


def _require_object(answer: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = answer.get(name)
    if not isinstance(value, Mapping):
        raise damaged_answer_error(f"it has no {name!r}")
    return value


def _version_of(metadata: Mapping[str, Any]) -> int:
    number = metadata.get("version")
    if type(number) is not int or not 1 <= number <= _MOST_VERSIONS:
        raise damaged_answer_error("it names no version")
    if not isinstance(metadata.get("created_time"), str):
        raise damaged_answer_error("a version has no timestamp")
    return number


def _state_of(metadata: Mapping[str, Any], now_ms: int) -> VersionState:
    if metadata.get("destroyed"):
        return VersionState.DESTROYED
    deleted = metadata.get("deletion_time")
    return VersionState.DISABLED if deleted and _parse_time(str(deleted)) <= now_ms else VersionState.ENABLED


def _parse_time(text: str) -> int:
    """Parse a timestamp of Vault such as ``2026-11-24T16:05:27.03791695Z`` into milliseconds since 1970."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise damaged_answer_error("a timestamp is invalid") from None
    return int(moment.replace(tzinfo=moment.tzinfo or UTC).timestamp() * 1000)


def _retry_after(header: str | None, now_ms: int) -> float | None:
    """Return for how many seconds Vault's ``Retry-After`` header asks to wait, at least 1.

    OpenBao rounds down, so that its 0 means "in less than a second", not "now".
    """
    seconds = parse_retry_after(header, now_ms)
    return None if seconds is None else max(1.0, seconds)
