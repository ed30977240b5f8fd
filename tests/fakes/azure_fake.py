"""A key vault on this machine, for tests: the wire of Azure Key Vault's secrets, over TLS, used through the real SDK.

What it is: `FakeKeyVault`, which answers as the API reference says; each behaviour names its page. What it is not: an
emulator of Azure; where the reference is silent, it does what makes our life harder (versions are listed in an order
that means nothing, the error's inner code is spelled in both ways). Rules: nothing is written to disk but a
certificate, whose key was made for this run; it listens on 127.0.0.1, on a port that the system gives.

KV = learn.microsoft.com/rest/api/keyvault/secrets, GENERAL = learn.microsoft.com/azure/key-vault/general.
"""

from __future__ import annotations

import base64
import contextlib
import copy
import datetime as dt
import email.utils
import ipaddress
import json
import re
import secrets
import ssl
import tempfile
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Final, Self
from urllib.parse import parse_qs, urlsplit

from azure.core.credentials import AccessToken
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from goatherd.clock import SystemClock
from goatherd.testing.wrong_answers import Restore, WrongAnswers

TOKEN: Final = "token-of-the-owner"
"""May do everything."""
MAX_VALUE: Final = 25 * 1024
MAX_TAGS: Final = 15
PAGE: Final = 25
_ACTION: Final = "Microsoft.KeyVault/vaults/secrets/"
_ALL: Final = frozenset(
    f"{_ACTION}{name}"
    for name in (
        "getSecret/action",
        "readMetadata/action",
        "setSecret/action",
        "update/action",
        "delete",
        "recover/action",
        "purge/action",
    )
)
_NAME = re.compile(r"[0-9a-zA-Z-]{1,127}")
_HEADER: Final = "secret-of-the-managed-identity"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """A fault of the server: for which requests, and how often.

    Attributes:
        match: It affects requests whose method and path contain this, such as ``PUT /secrets/root-pointer``. A space
            at the end stands for the end of the path.
        times: For how many requests; None: indefinitely.
        status: Answer with this and do nothing, unless `after`.
        headers: Headers of the answer.
        body: Body of the answer; None for an error as the service words it.
        after: Perform the request first.
        hang_up: Close the connection without an answer.
    """

    match: str = ""
    times: int | None = 1
    status: int = 500
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes | None = None
    after: bool = False
    hang_up: bool = False


@dataclass(slots=True)
class _Version:
    value: str
    created: int
    content_type: str | None
    tags: dict[str, str]
    enabled: bool = True


@dataclass(slots=True)
class _State:
    """All secrets, by name in lower case: names are the same but for case (GENERAL/about-keys-secrets-certificates)."""

    secrets: dict[str, dict[str, _Version]] = field(default_factory=dict)
    deleted: dict[str, dict[str, _Version]] = field(default_factory=dict)


class _RefusedError(Exception):
    def __init__(self, status: int, code: str, message: str, inner: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.inner = status, code, inner


class FakeCredential:
    """Gives one token; what `goatherd.providers.azure.provider.AzureSecretProvider` takes instead of Azure's chain."""

    def __init__(self, token: str = TOKEN) -> None:
        self._token = token

    async def get_token(self, *scopes: str, **options: Any) -> AccessToken:
        """Return the token, good for an hour."""
        return AccessToken(self._token, int(time.time()) + 3600)

    async def close(self) -> None:
        """Close nothing."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        await self.close()


class FastClock(SystemClock):
    """A clock that runs `speed` times faster, except for the date; for a vault whose clock does so, too."""

    def __init__(self, speed: float) -> None:
        self._speed = speed

    def monotonic(self) -> float:
        return super().monotonic() * self._speed

    async def sleep(self, duration: dt.timedelta) -> None:
        await super().sleep(duration / self._speed)


class SteppedClock(SystemClock):
    """A clock that advances only while a task waits, and without real waiting; for a vault with the same clock."""

    def __init__(self) -> None:
        self.passed = 0.0

    def monotonic(self) -> float:
        return self.passed

    async def sleep(self, duration: dt.timedelta) -> None:
        self.passed += duration.total_seconds()
        await super().sleep(dt.timedelta(0))


class FakeKeyVault:
    """One vault, and a managed identity beside it; see the module.

    ::

        with FakeKeyVault() as vault:
            address = AzureAddress(vault="fake", url=vault.url, ca=str(vault.ca), check_challenge=False)
            async with AzureSecretProvider(address, credential=FakeCredential()) as provider: …

    Attributes:
        port: Where the vault listens, once entered.
        ca: The file with the certificate to trust.
        requests: Method and path of every request that bore a good token.
        challenges: How many requests had no valid token.
        identity_failure: The status with which the managed identity refuses every request; None if it gives tokens.
        token_seconds: How long a token of the managed identity is good for.
        trouble: The next fault.
        wrong: Which request is answered with a wrong success.
    """

    def __init__(self, *, speed: float = 1.0, clock: SteppedClock | None = None) -> None:
        """Make one.

        Args:
            speed: How much faster than the world's its clock runs, so that tests need not wait whole seconds.
            clock: Its clock instead, shared with the provider, where a test must not depend on how fast it runs.
        """
        self._speed = speed
        self._clock = clock
        self._began = (time.time(), time.monotonic())
        self._lock = threading.Lock()
        self._state = _State()
        self._allowed: dict[str, tuple[frozenset[str], frozenset[str] | None]] = {TOKEN: (_ALL, None)}
        self._stack = contextlib.ExitStack()
        self.port = 0
        self.identity_port = 0
        self.identity_failure: int | None = None
        self.token_seconds = 3600
        self.ca = Path()
        self.requests: list[str] = []
        self.challenges = 0
        self.trouble: list[Trouble] = []
        self.wrong = WrongAnswers()
        self.inner_error = "innererror"

    @property
    def url(self) -> str:
        """The vault's address."""
        return f"https://localhost:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """Return the variables that give Azure's own credentials chain the owner's token, as a web app gets one."""
        return {"IDENTITY_ENDPOINT": f"http://127.0.0.1:{self.identity_port}/msi/token", "IDENTITY_HEADER": _HEADER}

    def uri(self, name: str) -> str:
        """Return the address of a secret."""
        return f"azure://fake/{name}?endpoint={self.url}&challenge=unchecked&ca={self.ca}"

    def allow(self, token: str, actions: Collection[str], names: Collection[str] | None = None) -> None:
        """Let `token` do these data actions only, on these secrets only (None: on all)."""
        self._allowed[token] = (frozenset(actions), None if names is None else frozenset(names))

    def now(self) -> int:
        """Return the vault's clock, in whole seconds since 1970."""
        wall, tick = self._began
        if self._clock is not None:
            return int(wall + self._clock.passed)
        return int(wall + (time.monotonic() - tick) * self._speed)

    def versions(self, name: str) -> dict[str, str]:
        """Return the values of a secret by version id, oldest first."""
        return {version: one.value for version, one in self._state.secrets.get(name, {}).items()}

    def overwrite(self, name: str, version: str, value: str) -> None:
        """Change a stored value directly, which no API can do."""
        self._state.secrets[name][version].value = value

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="goatherd-azure-")))
            context, self.ca = _certificate(folder)
            self.port = _serve(stack, self._vault_handler(), context)
            self.identity_port = _serve(stack, self._identity_handler(), None)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    # --- one request --------------------------------------------------------------------------------------------------

    def _vault_handler(self) -> type[BaseHTTPRequestHandler]:
        vault = self

        class Handler(_Handler):
            def answer(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(length)
                target, method = urlsplit(self.path), self.command
                if (token := vault._token(self.headers.get("Authorization"))) is None:
                    vault.challenges += 1
                    # GENERAL/authentication-requests-and-responses: a request without a token is told where to get one.
                    self.send(
                        401,
                        {"error": {"code": "Unauthorized", "message": "AKV10000: Request is missing a Bearer token."}},
                        authenticate='Bearer authorization="https://login.microsoftonline.com/'
                        '00000000-0000-0000-0000-000000000000", resource="https://vault.azure.net"',
                    )
                    return
                vault.requests.append(f"{method} {target.path}")
                trouble = vault._next_trouble(f"{method} {target.path}")
                if trouble is not None and not trouble.after:
                    self.fail(trouble)
                    return
                query = parse_qs(target.query)
                told: dict[str, Any] | bytes
                try:
                    status = 200
                    told = vault.wrong.answer(
                        lambda: json.dumps(vault._do(method, target.path, query, body, token)).encode(),
                        changes=method != "GET",
                        save=vault._save,
                        other=lambda: vault._other(target.path, query, token),
                    )
                except _RefusedError as refused:
                    status, told = refused.status, _error(refused, vault.inner_error)
                if trouble is not None:
                    self.fail(trouble)
                else:
                    self.send(status, told)

            def fail(self, trouble: Trouble) -> None:
                if trouble.hang_up:
                    self.close_connection = True
                    return
                worded = {"error": {"code": "Trouble", "message": "The test wants it so."}}
                self.send(trouble.status, worded if trouble.body is None else trouble.body, more=trouble.headers)

            def date_time_string(self, timestamp: float | None = None) -> str:
                # RFC 9110, 6.6.1: a server that has a clock says its time in every answer.
                return email.utils.formatdate(vault.now() if timestamp is None else timestamp, usegmt=True)

        return Handler

    def _identity_handler(self) -> type[BaseHTTPRequestHandler]:
        vault = self

        class Handler(_Handler):
            # learn.microsoft.com/azure/app-service/overview-managed-identity#rest-endpoint-reference, and, on a path of
            # its own, that of virtual machines: learn.microsoft.com/entra/identity/managed-identities-azure-resources/
            # how-to-use-vm-token
            def answer(self) -> None:
                if vault.identity_failure is not None:
                    self.send(vault.identity_failure, {"error": f"it quotes {_HEADER}"})
                    return
                is_machine = self.path.startswith("/metadata/")
                if not (
                    self.headers.get("Metadata") if is_machine else self.headers.get("X-IDENTITY-HEADER") == _HEADER
                ):
                    self.send(400 if is_machine else 401, {"error": "no header"})
                    return
                resource = parse_qs(urlsplit(self.path).query).get("resource", [""])[0]
                self.send(
                    200,
                    {
                        "access_token": TOKEN,
                        "expires_on": str(int(time.time()) + vault.token_seconds),
                        "resource": resource,
                        "token_type": "Bearer",
                    },
                )

        return Handler

    def _save(self) -> Restore:
        with self._lock:
            saved = copy.deepcopy(self._state)
        return lambda: setattr(self, "_state", saved)

    def _other(self, path: str, query: dict[str, list[str]], token: str) -> bytes | None:
        """Return the answer to a read of another version of the same secret."""
        found = re.fullmatch(r"/secrets/([^/]+)/([^/]*)", path)
        if found is None or found[2] == "versions":
            return None
        asked = self._do("GET", path, query, b"", token)
        for version, one in self._state.secrets.get(found[1].lower(), {}).items():
            if one.enabled and not str(asked["id"]).endswith(version):
                return json.dumps(self._do("GET", f"/secrets/{found[1]}/{version}", query, b"", token)).encode()
        return None

    def _token(self, header: str | None) -> str | None:
        kind, _, token = (header or "").partition(" ")
        return token if kind == "Bearer" and token in self._allowed else None

    def _next_trouble(self, request: str) -> Trouble | None:
        with self._lock:
            for index, trouble in enumerate(self.trouble):
                if trouble.match in f"{request} ":
                    if trouble.times is not None:
                        left = trouble.times - 1
                        self.trouble[index : index + 1] = [_times(trouble, left)] if left else []
                    return trouble
            return None

    def _do(self, method: str, path: str, query: dict[str, list[str]], body: bytes, token: str) -> dict[str, Any]:
        if "api-version" not in query:
            # GENERAL/authentication-requests-and-responses#api-version: it must be named.
            raise _RefusedError(400, "BadParameter", "api-version must be specified")
        routes: tuple[tuple[str, str, str, Callable[..., dict[str, Any]]], ...] = (
            ("PUT", r"/secrets/([^/]+)/?", "setSecret/action", self._set),
            ("GET", r"/secrets/([^/]+)/versions", "readMetadata/action", self._list),
            ("GET", r"/secrets/([^/]+)/([^/]*)", "getSecret/action", self._get),
            ("PATCH", r"/secrets/([^/]+)/([^/]+)", "update/action", self._update),
            ("DELETE", r"/secrets/([^/]+)/?", "delete", self._delete),
            ("GET", r"/deletedsecrets/([^/]+)/?", "readMetadata/action", self._get_deleted),
            ("DELETE", r"/deletedsecrets/([^/]+)/?", "purge/action", self._purge),
            ("POST", r"/deletedsecrets/([^/]+)/recover", "recover/action", self._recover),
        )
        for verb, pattern, action, work in routes:
            if verb == method and (found := re.fullmatch(pattern, path)):
                name, *rest = found.groups()
                if not _NAME.fullmatch(name):
                    raise _RefusedError(400, "BadParameter", "The request URI contains an invalid name.")
                actions, names = self._allowed[token]
                if _ACTION + action not in actions or (names is not None and name.lower() not in names):
                    # GENERAL/rbac-guide, GENERAL/rest-error-codes#http-403-insufficient-permissions
                    message = (
                        "Caller is not authorized to perform action on resource.\r\n"
                        f"Action: '{_ACTION}{action}'\r\nDecisionReason: 'DeniedWithNoValidRBAC'"
                    )
                    raise _RefusedError(403, "Forbidden", message, "ForbiddenByRbac")
                with self._lock:
                    return work(name.lower(), *rest, query=query, body=_parsed(body))
        raise _RefusedError(404, "NotFound", "no such route")

    # --- the operations, under the lock -------------------------------------------------------------------------------

    def _set(self, name: str, *, body: dict[str, Any], **_: Any) -> dict[str, Any]:
        # KV/set-secret: "If the named secret already exists, Azure Key Vault creates a new version of that secret."
        value, tags = body.get("value"), body.get("tags") or {}
        if not isinstance(value, str):
            raise _RefusedError(400, "BadParameter", "The parameter value is missing.")
        if len(value.encode()) > MAX_VALUE:  # learn.microsoft.com/azure/key-vault/secrets/about-secrets: 25k bytes
            raise _RefusedError(400, "BadParameter", "The length of the secret exceeds the limit.")
        # …/about-secrets#secret-tags: up to 15 tags of 256 characters; …#secret-attributes: contentType up to 255.
        if len(tags) > MAX_TAGS or any(len(each) > 256 for pair in tags.items() for each in pair):
            raise _RefusedError(400, "BadParameter", "There are too many tags, or they are too long.")
        if len(body.get("contentType") or "") > 255:
            raise _RefusedError(400, "BadParameter", "The content type is too long.")
        if name in self._state.deleted:
            # GENERAL/soft-delete-overview: the name of a deleted object is reserved; github.com/Azure/azure-sdk-for-net
            # issue 31581 and github.com/external-secrets/external-secrets issue 3519 show the code.
            message = f"Secret {name} is currently in a deleted but recoverable state, and its name cannot be reused"
            raise _RefusedError(409, "Conflict", message, "ObjectIsDeletedButRecoverable")
        version = secrets.token_hex(16)
        self._state.secrets.setdefault(name, {})[version] = _Version(
            value=value,
            created=self.now(),
            content_type=body.get("contentType"),
            tags=dict(tags),
            enabled=(body.get("attributes") or {}).get("enabled", True),
        )
        return {"value": value, **self._bundle(name, version)}

    def _get(self, name: str, version: str, **_: Any) -> dict[str, Any]:
        # KV/get-secret: an empty version means the latest, which is not the latest that is enabled.
        found = self._found(name)
        version = version or list(found)[-1]
        if version not in found:
            raise _RefusedError(404, "SecretNotFound", f"A secret with (name/id) {name}/{version} was not found.")
        if not found[version].enabled:
            # github.com/Azure/azure-sdk-for-js issue 24756: the same status and code as for a denial.
            message = "Operation get is not allowed on a disabled secret."
            raise _RefusedError(403, "Forbidden", message, "SecretDisabled")
        return {"value": found[version].value, **self._bundle(name, version)}

    def _list(self, name: str, *, query: dict[str, list[str]], **_: Any) -> dict[str, Any]:
        # KV/get-secret-versions: without values, pages of at most 25, "nextLink" for the rest, in no promised order.
        # github.com/Azure/azure-sdk-for-python issue 35923: deterministic, but not chronological.
        ordered = sorted(self._found(name))
        size = int(query.get("maxresults", [str(PAGE)])[0])
        if not 1 <= size <= PAGE:
            raise _RefusedError(400, "BadParameter", "invalid maxresults")
        begin = int(base64.urlsafe_b64decode(query["$skiptoken"][0])) if "$skiptoken" in query else 0
        page: dict[str, Any] = {
            "value": [self._bundle(name, version) for version in ordered[begin : begin + size]],
            "nextLink": None,
        }
        if begin + size < len(ordered):
            token = base64.urlsafe_b64encode(str(begin + size).encode()).decode()
            api = query["api-version"][0]
            page["nextLink"] = f"{self.url}/secrets/{name}/versions?api-version={api}&$skiptoken={token}"
        return page

    def _update(self, name: str, version: str, *, body: dict[str, Any], **_: Any) -> dict[str, Any]:
        # KV/update-secret: "Attributes that are not specified in the request are left unchanged"; tags are replaced.
        found = self._found(name)
        if version not in found:
            raise _RefusedError(404, "SecretNotFound", f"A secret with (name/id) {name}/{version} was not found.")
        one = found[version]
        one.enabled = (body.get("attributes") or {}).get("enabled", one.enabled)
        one.tags = dict(body["tags"]) if body.get("tags") is not None else one.tags
        one.content_type = body.get("contentType") or one.content_type
        return self._bundle(name, version)

    def _delete(self, name: str, **_: Any) -> dict[str, Any]:
        # KV/delete-secret: "The DELETE operation applies to any secret stored"; all versions, none alone.
        self._state.deleted[name] = self._found(name)
        del self._state.secrets[name]
        return self._deleted_bundle(name)

    def _get_deleted(self, name: str, **_: Any) -> dict[str, Any]:
        # KV/get-deleted-secret
        return self._deleted_bundle(name)

    def _purge(self, name: str, **_: Any) -> dict[str, Any]:
        # KV/purge-deleted-secret
        self._deleted_bundle(name)
        del self._state.deleted[name]
        return {}

    def _recover(self, name: str, **_: Any) -> dict[str, Any]:
        # KV/recover-deleted-secret
        self._deleted_bundle(name)
        self._state.secrets[name] = self._state.deleted.pop(name)
        return self._bundle(name, list(self._state.secrets[name])[-1])

    def _found(self, name: str) -> dict[str, _Version]:
        if name not in self._state.secrets:
            raise _RefusedError(
                404, "SecretNotFound", f"A secret with (name/id) {name} was not found in this key vault."
            )
        return self._state.secrets[name]

    def _bundle(self, name: str, version: str, where: dict[str, dict[str, _Version]] | None = None) -> dict[str, Any]:
        one = (self._state.secrets if where is None else where)[name][version]
        # KV/get-secret#secretattributes: times in seconds, as Unix time.
        attributes = {
            "enabled": one.enabled,
            "created": one.created,
            "updated": one.created,
            "recoveryLevel": "Recoverable+Purgeable",
            "recoverableDays": 90,
        }
        bundle: dict[str, Any] = {
            "id": f"{self.url}/secrets/{name}/{version}",
            "attributes": attributes,
            "tags": one.tags,
        }
        return {**bundle, "contentType": one.content_type} if one.content_type else bundle

    def _deleted_bundle(self, name: str) -> dict[str, Any]:
        found = self._state.deleted.get(name)
        if found is None:
            raise _RefusedError(404, "SecretNotFound", f"Deleted Secret not found: {name}")
        return {
            **self._bundle(name, list(found)[-1], self._state.deleted),
            "recoveryId": f"{self.url}/deletedsecrets/{name}",
            "deletedDate": self.now(),
            "scheduledPurgeDate": self.now() + 90 * 86_400,
        }


class _Handler(BaseHTTPRequestHandler):
    """HTTP/1.1 with connections that stay, one thread each."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1
    disable_nagle_algorithm = True
    timeout: ClassVar[float] = 60.0

    def answer(self) -> None:
        """Answer one request."""
        raise NotImplementedError

    def handle(self) -> None:
        with contextlib.suppress(OSError, ssl.SSLError):  # the client went away
            super().handle()

    def send(
        self,
        status: int,
        told: dict[str, Any] | bytes,
        *,
        authenticate: str | None = None,
        more: tuple[tuple[str, str], ...] = (),
    ) -> None:
        """Send an answer."""
        body = told if isinstance(told, bytes) else json.dumps(told).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        if authenticate is not None:
            self.send_header("WWW-Authenticate", authenticate)
        for name, value in more:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name for it
        """Log nothing."""


for _method in ("GET", "PUT", "PATCH", "DELETE", "POST"):
    setattr(_Handler, f"do_{_method}", lambda handler: handler.answer())


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64
    context: ssl.SSLContext | None = None

    def get_request(self) -> tuple[Any, Any]:
        connection, client = super().get_request()
        if self.context is not None:
            # The handshake happens with the first read, in the connection's own thread.
            connection = self.context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        return connection, client

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Do not log that a client reset its connection, which tests make clients do."""


def _serve(stack: contextlib.ExitStack, handler: type[BaseHTTPRequestHandler], context: ssl.SSLContext | None) -> int:
    server = _Server(("127.0.0.1", 0), handler)
    server.context = context
    stack.callback(server.server_close)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    stack.callback(thread.join)
    stack.callback(server.shutdown)
    return int(server.server_address[1])


def _certificate(folder: Path) -> tuple[ssl.SSLContext, Path]:
    """Make a certificate for localhost, with a key that is deleted as soon as it is loaded, and a file to trust it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "goatherd test vault")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(
            x509.SubjectAlternativeName(
                [x509.DNSName("localhost"), x509.IPAddress(ipaddress.IPv4Address("127.0.0.1"))]
            ),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    path, private = folder / "ca.pem", folder / "key.pem"
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private.touch(0o600)
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path, private)
    private.unlink()
    return context, path


def _error(refused: _RefusedError, inner_error: str = "innererror") -> dict[str, Any]:
    inner = {} if refused.inner is None else {inner_error: {"code": refused.inner}}
    return {"error": {"code": refused.code, "message": str(refused), **inner}}


def _parsed(body: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(body) if body else {}
    except ValueError:
        parsed = None
    if not isinstance(parsed, dict):
        raise _RefusedError(400, "BadParameter", "The body is not an object of JSON.")
    return parsed


def _times(trouble: Trouble, left: int) -> Trouble:
    return Trouble(**{name: getattr(trouble, name) for name in trouble.__dataclass_fields__} | {"times": left})
