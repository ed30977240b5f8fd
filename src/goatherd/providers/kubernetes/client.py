"""A thin client of the Kubernetes API for what Goatherd needs: one Secret at a time, and the endpoints of a Service.

The client does not handle versions or labels. It does not retry, except once with a renewed credential if the server
has rejected the old one. An answer is used only if it holds the requested Secret. A damaged answer raises
`UnavailableError`. A Secret counts as missing only if a ``Status`` of the API server names it, never because of a bare
404, which a proxy may have sent.

Follows https://kubernetes.io/docs/reference/kubernetes-api/config-and-storage-resources/secret-v1/ and
https://kubernetes.io/docs/reference/using-api/api-concepts/; checked against the answers of a real kube-apiserver.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import httpx2

from goatherd.clock import Clock, RemoteClock
from goatherd.errors import (
    ProviderAccessDeniedError,
    ProviderConfigurationError,
    ProviderError,
    SecretTooLargeError,
    ThrottledError,
    UnavailableError,
)
from goatherd.providers.cancellation import finish_request
from goatherd.providers.http_answers import (
    add_chunk,
    await_answer,
    damaged_answer_error,
    no_answer_error,
    parse_object,
    parse_retry_after,
    read_body,
)
from goatherd.providers.kubernetes.credentials import ClusterAccess, Credential
from goatherd.providers.tls import default_context
from goatherd.serving.connection_pool import ConnectionPool
from goatherd.serving.http_client import causes_of, make_http_client

_QUOTED: Final = 500
_OVERDUE: Final = 15.0

# https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/status/
_REASONS: Final = frozenset(
    {
        "Unauthorized",
        "Forbidden",
        "NotFound",
        "AlreadyExists",
        "Conflict",
        "Gone",
        "Invalid",
        "ServerTimeout",
        "StoreReadError",
        "Timeout",
        "TooManyRequests",
        "BadRequest",
        "MethodNotAllowed",
        "NotAcceptable",
        "RequestEntityTooLarge",
        "UnsupportedMediaType",
        "InternalError",
        "Expired",
        "ServiceUnavailable",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchEvent:
    """One event of a watch on a Kubernetes Secret.

    Attributes:
        content: The Secret as it is now; None if it was deleted, or if the event is a bookmark, which reports no
            change.
        is_deleted: Whether the Secret was deleted.
        resource_version: The version from which the next watch continues.
    """

    content: Mapping[str, Any] | None = None
    is_deleted: bool = False
    resource_version: str

    def __repr__(self) -> str:
        return f"Event({self.resource_version})"


class WatchExpiredError(Exception):
    """The API server no longer has the version from which a watch should continue; start a new watch."""


class KubernetesClient:
    """A client for one Kubernetes API server, with one set of credentials. Call `open` first and `close` last."""

    def __init__(
        self,
        access: ClusterAccess,
        *,
        timeout: float,
        clock: Clock,
        transport: httpx2.AsyncBaseTransport | None = None,
        store_clock: RemoteClock | None = None,
    ) -> None:
        self._access = access
        self._timeout = timeout
        self._clock = clock
        self._store_clock = store_clock or RemoteClock(clock)
        self._transport = transport
        self._pool: ConnectionPool | None = None
        self._certificate = 0

    def open(self) -> None:
        """Create the connection pool for the Kubernetes API server. Sends no request."""
        self._pool = self._make_pool()

    def _make_pool(self) -> ConnectionPool:
        http = make_http_client(
            self._access.server,
            verify=default_context() if self._access.verify is None else self._access.verify,
            timeout=self._timeout,
            transport=self._transport,
            headers={"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "goatherd"},
        )
        return ConnectionPool(http)

    async def close(self) -> None:
        """Close the connections to the Kubernetes API server, and stop a running credential plugin."""
        await self._access.close()
        pool, self._pool = self._pool, None
        if pool is not None:
            await pool.http.aclose()  # at once, since a watch would keep its connection open for minutes

    # --- Secrets ----------------------------------------------------------------------------------------------------

    async def get_secret(self, namespace: str, name: str) -> dict[str, Any] | None:
        """Read a Kubernetes Secret; None if there is none.

        Without a resourceVersion in the query, the answer is the most recent state, "consistent read":
        https://kubernetes.io/docs/reference/using-api/api-concepts/#semantics-for-get-and-list.
        """
        status, answer = await self._call_api("GET", _secret_path(namespace, name))
        if status == 404:
            self._must_be_missing(answer, namespace, name)
            return None
        return _decode_secret(answer, namespace, name)

    async def create_secret(self, namespace: str, name: str, content: Mapping[str, Any]) -> dict[str, Any] | None:
        """Create a Kubernetes Secret and return it as stored; None if it exists already."""
        status, answer = await finish_request(self._call_api("POST", _secret_path(namespace), body=content))
        if status == 404:
            raise ProviderConfigurationError(
                f"there is no namespace {namespace!r}",
                hint=f"Create the namespace: kubectl create namespace {namespace}",
            )
        if status == 409:
            # The same status means two things; only the reason tells them apart.
            if answer.get("reason") == "AlreadyExists":
                return None
            raise UnavailableError(f"the server does not create the Secret now{_reason_of(answer, ': ')}")
        return _decode_secret(answer, namespace, name)

    async def replace_secret(self, namespace: str, name: str, content: Mapping[str, Any]) -> dict[str, Any] | None:
        """Replace a Secret if its resourceVersion is still that in `content`; None if it has changed or was deleted."""
        # SECURITY: without a resourceVersion, the API server would replace the Secret whatever its present state
        # (tests/contract/kubernetes/test_contract.py::test_every_replacement_names_the_state_that_it_replaces).
        if not content["metadata"].get("resourceVersion"):
            raise UnavailableError("the Secret came without a resourceVersion")
        status, answer = await finish_request(self._call_api("PUT", _secret_path(namespace, name), body=content))
        if status in (404, 409):
            return None
        return _decode_secret(answer, namespace, name)

    async def delete_secret(self, namespace: str, name: str, content: Mapping[str, Any]) -> bool:
        """Delete a Secret if it is unchanged since `content` was read; False if it has changed or was deleted."""
        metadata = content["metadata"]
        preconditions = {"uid": metadata.get("uid"), "resourceVersion": metadata["resourceVersion"]}
        body = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": preconditions}
        status, answer = await finish_request(self._call_api("DELETE", _secret_path(namespace, name), body=body))
        if status in (404, 409):
            return False
        # A Status of success, or the Secret where a finalizer keeps it for a while.
        if answer.get("kind") not in ("Status", "Secret"):
            raise damaged_answer_error("it is neither a Status nor a Secret")
        return True

    async def endpoint_slices(self, namespace: str, service: str) -> list[dict[str, Any]]:
        """Return all EndpointSlices of a Kubernetes Service; an empty list if there is no such Service.

        https://kubernetes.io/docs/concepts/services-networking/endpoint-slices/#ownership. The answer to a list request
        without a limit is complete: reference/using-api/api-concepts/#retrieving-large-results-sets-in-chunks.
        """
        path = f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"
        status, answer = await self._call_api("GET", f"{path}?labelSelector=kubernetes.io%2Fservice-name%3D{service}")
        items, metadata = answer.get("items"), answer.get("metadata")
        if status != 200 or answer.get("kind") != "EndpointSliceList" or not isinstance(items, list):
            raise damaged_answer_error("it is not a list of EndpointSlices")
        if not isinstance(metadata, Mapping) or metadata.get("continue"):
            raise damaged_answer_error("it is only a part of a list")
        if not all(isinstance(item, dict) for item in items):
            raise damaged_answer_error("an EndpointSlice is not an object")
        return items

    async def may_update(self, namespace: str, name: str) -> bool | None:
        """Return whether the credentials allow to update a Secret; None if the API server does not say.

        Every user may ask about itself: reference/access-authn-authz/authorization/#checking-api-access.
        """
        attributes = {"verb": "update", "resource": "secrets", "namespace": namespace, "name": name}
        body = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": attributes},
        }
        path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
        try:
            _, answer = await self._call_api("POST", path, body=body)
        except ProviderAccessDeniedError:
            return None
        status = answer.get("status")
        allowed = status.get("allowed") if isinstance(status, Mapping) else None
        return allowed if isinstance(allowed, bool) else None

    @asynccontextmanager
    async def watch_secret(
        self, namespace: str, name: str, resource_version: str | None, seconds: int
    ) -> AsyncIterator[AsyncIterator[WatchEvent]]:
        """Watch a Secret for some time, from a known version or from its present state, which is yielded first.

        Args:
            namespace: The Secret's namespace.
            name: The Secret's name.
            resource_version: The version to continue from; None for "get state and start at most recent".
            seconds: After this time, the server ends the watch.

        Raises:
            WatchExpiredError: The server no longer has that version.
            ProviderError: The request failed.

        The field selector is what lets RBAC check the name:
        https://kubernetes.io/docs/reference/access-authn-authz/rbac/#referring-to-resources.
        """
        params = {
            "watch": "true",
            "fieldSelector": f"metadata.name={name}",
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(seconds),
        }
        if resource_version is not None:
            params["resourceVersion"] = resource_version
        path = _secret_path(namespace)
        credential = await self._access.credential(self._clock)
        for is_last in (False, True):
            stream = self._open_stream("GET", path, credential, params=params, read=seconds + _OVERDUE)
            async with stream as response:
                if response.status_code == 200:
                    yield self._read_events(response, namespace, name)
                    return
                raw = await await_answer(read_body(response), self._no_answer_error)
            if response.status_code == 410:
                raise WatchExpiredError
            if response.status_code != 401 or is_last or not self._access.credentials.can_renew:
                self._error_for("watch", path, response, raw)
                raise damaged_answer_error(f"HTTP {response.status_code} to a watch")
            credential = await self._access.credential(self._clock, rejected=credential)

    async def _read_events(self, response: httpx2.Response, namespace: str, name: str) -> AsyncIterator[WatchEvent]:
        line, chunks = bytearray(), response.aiter_bytes()
        while (chunk := await await_answer(anext(chunks, None), self._no_answer_error)) is not None:
            add_chunk(line, chunk)
            while (end := line.find(b"\n")) >= 0:
                event = _decode_event(bytes(line[:end]), namespace, name)
                del line[: end + 1]
                if event is not None:
                    yield event

    # --- one request ------------------------------------------------------------------------------------------------

    async def _call_api(
        self, method: str, path: str, *, body: Mapping[str, Any] | None = None
    ) -> tuple[int, Mapping[str, Any]]:
        """Send a request to the Kubernetes API; return its status (200 to 202, 404 or 409) and the JSON object."""
        content = None if body is None else json.dumps(body).encode()
        credential = await self._access.credential(self._clock)
        for is_last in (False, True):
            async with self._open_stream(method, path, credential, content=content) as response:
                raw = await await_answer(read_body(response), self._no_answer_error)
            if response.status_code != 401 or is_last or not self._access.credentials.can_renew:
                break
            credential = await self._access.credential(self._clock, rejected=credential)
        return self._error_for(method, path, response, raw)

    @asynccontextmanager
    async def _open_stream(
        self,
        method: str,
        path: str,
        credential: Credential,
        *,
        params: Mapping[str, str] | None = None,
        content: bytes | None = None,
        read: float | None = None,
    ) -> AsyncIterator[httpx2.Response]:
        pool = self._pool
        if pool is None:
            raise ProviderConfigurationError("the provider is not open", hint="Open the client with `async with`.")
        if credential.certificate != self._certificate:
            # A connection shows the certificate that it was made with, for as long as it lasts.
            old, pool = pool, self._make_pool()
            self._certificate, self._pool = credential.certificate, pool
            await old.aclose()
        headers = {"Content-Type": "application/json"} if content is not None else {}
        if credential.token is not None:
            headers["Authorization"] = f"Bearer {credential.token}"
        name = self._access.tls_server_name
        request = pool.http.build_request(
            method,
            f"{self._access.server}{path}",
            params=params,
            content=content,
            headers=headers,
            timeout=httpx2.Timeout(self._timeout, read=read or self._timeout),
            extensions={} if name is None else {"sni_hostname": name},
        )
        async with pool as http:
            began = self._clock.monotonic()
            response = await await_answer(http.send(request, stream=True), self._no_answer_error)
            self._store_clock.note_date(response.headers.get("date"), began=began)
            try:
                yield response
            finally:
                await response.aclose()

    def _no_answer_error(self, error: Exception) -> ProviderError:
        if any(isinstance(cause, ssl.SSLCertVerificationError) for cause in causes_of(error)):
            self._access.load_authority()
        hint = f"Check certificate-authority-data in the {self._access.source}."
        return no_answer_error(error, self._access.server, distrust_hint=hint)

    def _error_for(
        self, method: str, path: str, response: httpx2.Response, raw: bytes
    ) -> tuple[int, Mapping[str, Any]]:
        what, code = f"{method} {path}", response.status_code
        answer = parse_object(raw)
        if code == 429:
            # The body may be plain text: a server that is over its limit of requests in flight writes no Status.
            raise ThrottledError(
                f"the server limits the rate of requests: {what}",
                retry_after=_retry_after(response.headers.get("retry-after"), answer, self._clock.now_ms()),
            )
        if code == 413 or (code >= 500 and b"request is too large" in raw):
            raise SecretTooLargeError(f"the Kubernetes API server rejected {what}: the object is too large")
        if code >= 500 or code == 408:
            raise UnavailableError(f"the server failed with HTTP {code}{_reason_of(answer or {}, ': ')}")
        if code in (401, 403):
            raise self._denied_error(what, code, answer or {})
        if code == 422:
            raise _invalid_reason(answer or {})
        if code in (400, 405, 406, 415):
            # SECURITY: only the reason of a 400 is shown, because its message quotes the request's body, and so the
            # value (tests/contract/kubernetes/test_contract.py::test_a_refusal_that_quotes_the_request_is_not_quoted).
            raise ProviderConfigurationError(
                f"the server does not understand {what}: HTTP {code}{_reason_of(answer or {}, ', ')}"
            )
        if answer is None or code not in (200, 201, 202, 404, 409):
            raise damaged_answer_error(f"HTTP {code} without the JSON that an API server sends")
        if code in (404, 409) and (answer.get("kind") != "Status" or answer.get("status") != "Failure"):
            raise damaged_answer_error(
                f"HTTP {code} without a Status: another server answers in the API server's place"
            )
        return code, answer

    def _denied_error(self, what: str, code: int, answer: Mapping[str, Any]) -> ProviderError:
        if code == 401:
            return ProviderAccessDeniedError(
                f"the server rejected the credentials ({self._access.source}): {what}",
                hint="The token or the client certificate is missing, expired or for another cluster.",
            )
        # "secrets "x" is forbidden: User "u" cannot get resource …": names only.
        message = str(answer.get("message") or "")[:_QUOTED]
        if "exceeded quota" in message or "is being terminated" in message:
            return ProviderConfigurationError(message)
        return ProviderAccessDeniedError(
            f"the server refuses {what}{': ' if message else ''}{message}",
            hint="Give the account a role: `goatherd policy k8s --role server` (or rotator, admin) prints this role."
            " Only the role admin may create a Secret.",
        )

    def _must_be_missing(self, answer: Mapping[str, Any], namespace: str, name: str) -> None:
        details = answer.get("details")
        missing = (details.get("kind"), details.get("name")) if isinstance(details, Mapping) else None
        if answer.get("reason") != "NotFound" or missing not in (("secrets", name), ("namespaces", namespace)):
            raise damaged_answer_error("HTTP 404 that does not say that this Secret is missing")


def _secret_path(namespace: str, name: str | None = None) -> str:
    collection = f"/api/v1/namespaces/{namespace}/secrets"
    return collection if name is None else f"{collection}/{name}"


def _decode_secret(answer: Mapping[str, Any], namespace: str, name: str) -> dict[str, Any]:
    """Decode the Secret in an answer of the Kubernetes API, and check that it is the requested one."""
    metadata = answer.get("metadata")
    if answer.get("kind") != "Secret" or not isinstance(metadata, Mapping):
        raise damaged_answer_error("it is not a Secret")
    if (metadata.get("namespace"), metadata.get("name")) != (namespace, name):
        raise damaged_answer_error("it is another Secret than the requested one")
    if not isinstance(metadata.get("resourceVersion"), str) or not metadata["resourceVersion"]:
        raise damaged_answer_error("it has no resourceVersion")
    return dict(answer)


def _decode_event(line: bytes, namespace: str, name: str) -> WatchEvent | None:
    """Decode one line of a watch into an event; None if the line does not concern the watched Secret.

    https://kubernetes.io/docs/reference/using-api/api-concepts/#efficient-detection-of-changes
    """
    parsed = parse_object(line)
    content = None if parsed is None else parsed.get("object")
    if parsed is None or not isinstance(content, Mapping):
        raise damaged_answer_error("a line of the watch is not an event")
    kind = parsed.get("type")
    if kind == "ERROR":
        if content.get("code") == 410 or content.get("reason") in ("Expired", "Gone"):
            raise WatchExpiredError
        raise UnavailableError(f"the server ended the watch{_reason_of(content, ': ')}")
    metadata = content.get("metadata")
    version = metadata.get("resourceVersion") if isinstance(metadata, Mapping) else None
    if not isinstance(version, str) or not version:
        raise damaged_answer_error("an event of a watch has no resourceVersion")
    if kind == "BOOKMARK":
        return WatchEvent(resource_version=version)
    if not isinstance(metadata, Mapping) or metadata.get("name") != name:
        return None
    if kind == "DELETED":
        return WatchEvent(is_deleted=True, resource_version=version)
    if kind in ("ADDED", "MODIFIED"):
        return WatchEvent(content=_decode_secret(content, namespace, name), resource_version=version)
    raise damaged_answer_error("the watch sent an event of unknown type")


def _reason_of(answer: Mapping[str, Any], before: str = "") -> str:
    """Return the reason in a Kubernetes Status, after the string `before`; empty if it is not a known reason.

    Only known reasons are quoted, because other text may hold a secret.
    """
    reason = answer.get("reason")
    return f"{before}{reason}" if isinstance(reason, str) and reason in _REASONS else ""


def _invalid_reason(answer: Mapping[str, Any]) -> ProviderError:
    """Return the error for a Kubernetes answer with status 422. The answer is not quoted: it may hold a secret."""
    details = answer.get("details")
    causes = details.get("causes") if isinstance(details, Mapping) else None
    found = [cause for cause in causes if isinstance(cause, Mapping)] if isinstance(causes, list) else []
    if any(cause.get("reason") == "FieldValueTooLong" for cause in found):
        return SecretTooLargeError("the Secret would be longer than the API server accepts")
    message = str(answer.get("message") or "")
    if "field is immutable when `immutable` is set" in message:
        return ProviderConfigurationError(
            "the Secret is immutable",
            hint="Save it with `kubectl get secret NAME -o json`, because it holds the only private keys. Remove"
            " `immutable` and `metadata.uid` from the saved file, delete the Secret, and create it from the file.",
        )
    fields = ", ".join(sorted({str(cause.get("field"))[:60] for cause in found}))
    return ProviderConfigurationError(f"the server rejected the Secret as invalid: {fields or '?'}")


def _retry_after(header: str | None, answer: Mapping[str, Any] | None, now_ms: int) -> float | None:
    """Return for how many seconds a Kubernetes answer with status 429 asks to wait; None if it does not say.

    The time is in the ``Retry-After`` header or, without this header, in the Status.
    """
    if header is not None:
        return parse_retry_after(header, now_ms)
    details = (answer or {}).get("details")
    seconds = details.get("retryAfterSeconds") if isinstance(details, Mapping) else None
    return float(seconds) if isinstance(seconds, int) and seconds > 0 else None
