"""Credentials for the Kubernetes API server: a token, a client certificate, or the output of a credential plugin.

Each source gives a bearer token or a client certificate and renews it. `kubeconfig` reads the configuration; `client`
sends the requests. Goatherd writes no token or private key into a repr, an error, a log or a file. Requests that need
the plugin at the same time share one run of it. The run continues if the request that started it ends, and stops when
the client is closed.

Follows https://kubernetes.io/docs/reference/access-authn-authz/authentication/#client-go-credential-plugins and
https://kubernetes.io/docs/reference/config-api/client-authentication.v1/.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import ssl
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import ClassVar, Final

from goatherd.clock import Clock
from goatherd.errors import ConfigurationError, ProviderAccessDeniedError, ProviderConfigurationError, UnavailableError
from goatherd.providers.cancellation import retrieve_outcome
from goatherd.providers.tls import load_authorities
from goatherd.serving.certificate_files import CertificateFiles
from goatherd.serving.process_group import kill_group

PLUGIN_TIMEOUT: Final = timedelta(seconds=60)
"""How long a credential plugin may take; those of the large clouds take one to three seconds."""

_READ_AGAIN: Final = 60.0
"""Seconds; as client-go does. The kubelet replaces a token long before it expires."""
_EARLY: Final = 0.1
_EARLY_MS: Final = 60_000
_QUOTED: Final = 300
_TOKEN_LIKE = re.compile(r"[A-Za-z0-9+/_.=-]{40,}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    """The credential that a request sends to the API server.

    Attributes:
        token: The bearer token; None if a client certificate or nothing identifies the caller.
        generation: How often the source has renewed the credential.
        certificate: How often the source has replaced the client certificate; connections with an older one must not be
            reused.
    """

    token: str | None = field(repr=False)
    generation: int = 0
    certificate: int = 0


class ClusterCredentials(ABC):
    """The interface of a source of credentials for a Kubernetes API server.

    Attributes:
        can_renew: Whether the source can return another credential than one that was rejected.
    """

    can_renew: ClassVar[bool] = True

    @abstractmethod
    async def current_credential(self, clock: Clock, *, rejected: Credential | None = None) -> Credential:
        """Return the credential for the next request to the Kubernetes API server.

        Args:
            clock: Decides whether a credential has expired.
            rejected: The credential that the server has just rejected with 401; it is returned again only if the source
                has no other.

        Raises:
            ConfigurationError: A token file cannot be read.
            ProviderError: A plugin failed.
        """

    async def close(self) -> None:  # noqa: B027 - most sources run nothing
        """Stop the credential plugin, if one is running."""


@dataclass(slots=True, kw_only=True)
class ClusterAccess:
    """How to reach one Kubernetes API server: its URL, the TLS settings and the credentials.

    Attributes:
        server: The URL of the API server.
        verify: The TLS context, with the client certificate if there is one; None for a plain ``http`` address.
        authority: The file with the cluster's certificate authority; None if it is not in a file.
        tls_server_name: The name that the server's certificate must have, if it is not the URL's host.
        source: Where this configuration was found, for messages.
        credentials: The source of the token.
    """

    server: str
    verify: ssl.SSLContext | None
    authority: Path | None = None
    tls_server_name: str | None = None
    source: str
    credentials: ClusterCredentials = field(repr=False)

    async def credential(self, clock: Clock, *, rejected: Credential | None = None) -> Credential:
        """Return the credential for the next request; see `ClusterCredentials.current_credential`."""
        try:
            return await self.credentials.current_credential(clock, rejected=rejected)
        except ConfigurationError as error:  # such as a token file that cannot be read
            raise ProviderConfigurationError(str(error), hint=error.hint) from None

    def load_authority(self) -> None:
        """Load the cluster's certificate authority again, after the API server's certificate was not trusted."""
        if self.verify is not None and self.authority is not None:
            load_authorities(self.verify, self.authority)

    async def close(self) -> None:
        """Stop the credential plugin, if one is running."""
        await self.credentials.close()


class FixedToken(ClusterCredentials):
    """A bearer token from the Kubernetes configuration that never changes, or no token."""

    can_renew = False

    def __init__(self, token: str | None) -> None:
        self._credential = Credential(token=token)

    async def current_credential(self, clock: Clock, *, rejected: Credential | None = None) -> Credential:  # noqa: ARG002
        return self._credential


class TokenFile(ClusterCredentials):
    """A bearer token in a file that another process, such as the kubelet, replaces."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._credential: Credential | None = None
        self._read_at = 0.0

    async def current_credential(self, clock: Clock, *, rejected: Credential | None = None) -> Credential:
        now, known = clock.monotonic(), self._credential
        if known is not None and known != rejected and now - self._read_at < _READ_AGAIN:
            return known
        token = await asyncio.to_thread(_read_token, self._path)
        generation = 1 if known is None else known.generation + (token != known.token)
        self._credential, self._read_at = Credential(token=token, generation=generation), now
        return self._credential


class CertificatePair(ClusterCredentials):
    """A client certificate in files that another program replaces, beside the token of another source, if it has one.

    Args:
        files: The certificate and its key, loaded into the TLS context of the connections.
        token: The source of the token.
    """

    def __init__(self, files: CertificateFiles, token: ClusterCredentials) -> None:
        self._files = files
        self._token = token

    async def current_credential(self, clock: Clock, *, rejected: Credential | None = None) -> Credential:
        token = None if rejected is None else replace(rejected, certificate=0)  # as the other source knows it
        credential = await self._token.current_credential(clock, rejected=token)
        with contextlib.suppress(OSError, ValueError):  # in the middle of a renewal; the next request tries again
            await self._files.load_if_replaced()
        return replace(credential, certificate=self._files.generation)

    async def close(self) -> None:
        await self._token.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginSettings:
    """The checked ``exec`` member of a user in a kubeconfig: the credential plugin to run.

    Attributes:
        arguments: The program and its arguments.
        environment: The environment variables for the program.
        api_version: The API version in which the program must answer.
        install_hint: What to do if the program is missing; may be empty.
        source: Where the settings come from, for messages.
    """

    arguments: Sequence[str] = field(repr=False)
    environment: Mapping[str, str] = field(repr=False)
    api_version: str
    install_hint: str = ""
    source: str

    @property
    def command(self) -> str:
        return self.arguments[0]


class CredentialPlugin(ClusterCredentials):
    """A program that prints an ``ExecCredential``, such as ``aws eks get-token`` or ``gke-gcloud-auth-plugin``.

    Args:
        settings: The plugin to run.
        use_certificate: Called with a client certificate and its key, as PEM, if the plugin prints them.
    """

    def __init__(self, settings: PluginSettings, use_certificate: Callable[[bytes, bytes], None]) -> None:
        self._settings = settings
        self._use_certificate = use_certificate
        self._credential: Credential | None = None
        self._pair: tuple[bytes, bytes] | None = None
        self._renew_at_ms: int | None = None
        self._running: asyncio.Task[Credential] | None = None

    async def current_credential(self, clock: Clock, *, rejected: Credential | None = None) -> Credential:
        known = self._credential
        is_due = self._renew_at_ms is not None and clock.now_ms() >= self._renew_at_ms
        if known is not None and not is_due and (rejected is None or known.generation != rejected.generation):
            return known
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._run_plugin(clock))
            self._running.add_done_callback(retrieve_outcome)
        # If this request is cancelled, the plugin continues, and the next request uses its credential.
        return await asyncio.shield(self._running)

    async def close(self) -> None:
        running, self._running = self._running, None
        if running is not None and not running.done():
            running.cancel()
            await asyncio.wait({running})

    async def _run_plugin(self, clock: Clock) -> Credential:
        status = await run_plugin(self._settings)
        token, pair, expires_ms = self._check_status(status)
        known = self._credential or Credential(token=None)
        renewed = replace(known, token=token, generation=known.generation + 1)
        if pair is not None and pair != self._pair:
            try:
                self._use_certificate(*pair)
            except ConfigurationError as error:
                raise self._output_error("a client certificate or key that cannot be used") from error
            self._pair = pair
            renewed = replace(renewed, certificate=known.certificate + 1)
        now = clock.now_ms()
        # Renew the credential a little early, so that it does not expire during a request. A credential without an
        # expiration is used until the API server rejects it.
        early = 0 if expires_ms is None else min(_EARLY_MS, max(0, round((expires_ms - now) * _EARLY)))
        self._renew_at_ms = None if expires_ms is None else expires_ms - early
        self._credential = renewed
        return renewed

    def _check_status(self, status: object) -> tuple[str | None, tuple[bytes, bytes] | None, int | None]:
        """Check a credential plugin's output; return its token, its certificate with key, and when they expire.

        The expiry is in milliseconds since 1970. Each of the three is None if the plugin did not print it.
        """
        if not isinstance(status, Mapping):
            raise self._output_error("a status that is not an object")
        for name in ("token", "clientCertificateData", "clientKeyData", "expirationTimestamp"):
            if status.get(name) is not None and not isinstance(status[name], str):
                raise self._output_error(f"{name}, which is not a string")
        token, cert, key = status.get("token"), status.get("clientCertificateData"), status.get("clientKeyData")
        # SECURITY: a line break in the token would end the header `Authorization` and begin another header
        # (tests/unit/providers/kubernetes/test_credentials.py::test_a_plugin_that_prints_no_credential_is_named).
        if token and not re.fullmatch(r"[\x21-\x7e]+", token):
            raise self._output_error("a token that cannot be sent in a header")
        if bool(cert) != bool(key):
            raise self._output_error("half a client certificate: only one of certificate and key")
        if not token and not cert:
            raise self._output_error("neither a token nor a client certificate")
        expires_ms = None
        if status.get("expirationTimestamp"):
            try:
                expires = datetime.fromisoformat(status["expirationTimestamp"])
            except ValueError:
                raise self._output_error("an expirationTimestamp that is not a timestamp") from None
            expires = expires if expires.tzinfo is not None else expires.replace(tzinfo=UTC)
            expires_ms = round(expires.timestamp() * 1000)
        pair = (cert.encode(), key.encode()) if cert and key else None
        return token or None, pair, expires_ms

    def _output_error(self, what: str) -> ProviderConfigurationError:
        return ProviderConfigurationError(
            f"{self._settings.source}: the credential plugin {self._settings.command} printed {what}",
            hint="Run the plugin by hand, with the arguments and variables of the kubeconfig, and compare its output"
            " with its manual.",
        )


async def run_plugin(settings: PluginSettings) -> object:
    """Run a credential plugin once, without a terminal, and return the ``status`` that it prints.

    Raises:
        ProviderError: The plugin is not installed, failed, printed no ``ExecCredential``, or took too long.
    """
    plugin = f"the credential plugin {settings.command}"
    if shutil.which(settings.command, path=settings.environment.get("PATH", os.defpath)) is None:
        raise ProviderConfigurationError(
            f"{settings.source}: {plugin} was not found on this machine",
            hint=settings.install_hint or "Install it, or check the PATH of this process.",
        )
    try:
        async with asyncio.timeout(PLUGIN_TIMEOUT.total_seconds()):
            code, printed, stderr = await _run_process(settings)
    except TimeoutError:
        raise UnavailableError(
            f"{settings.source}: {plugin} did not end within {PLUGIN_TIMEOUT.total_seconds():.0f} s",
            hint="A plugin that asks for a login cannot do so here: log in first, for example with `kubectl get ns`.",
        ) from None
    except OSError as error:
        raise _plugin_error(settings, error.strerror or type(error).__name__) from None
    if code != 0:
        # SECURITY: a plugin's standard output may be a token, so it is not shown. Its standard error is meant to be
        # read, so it is shown, without anything that looks like a token
        # (tests/unit/providers/kubernetes/test_credentials.py::test_no_error_of_a_plugin_shows_a_token).
        raise _plugin_error(
            settings, f"it ended with {code}: {shorten_text(stderr.decode(errors='replace')) or 'without a message'}"
        )
    try:
        answer = json.loads(printed)
    except (ValueError, RecursionError):
        raise _plugin_error(settings, "its output is not JSON") from None
    if not isinstance(answer, Mapping) or answer.get("kind") != "ExecCredential":
        raise _plugin_error(settings, "its output is not an ExecCredential")
    if answer.get("apiVersion") != settings.api_version:
        raise _plugin_error(
            settings, f"its output does not have the apiVersion {settings.api_version} of the kubeconfig"
        )
    return answer.get("status")


async def _run_process(settings: PluginSettings) -> tuple[int, bytes, bytes]:
    """Run a credential plugin; return exit code, output and error output. Leave no process behind when cancelled."""
    process = await asyncio.create_subprocess_exec(
        *settings.arguments,
        env=settings.environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        printed, stderr = await process.communicate()
    finally:
        # A process that it started in a session of its own may keep them open, and asyncio would wait for that.
        for descriptor in (1, 2):
            if (pipe := process._transport.get_pipe_transport(descriptor)) is not None:  # type: ignore[attr-defined]
                pipe.close()
        await kill_group(process)
    return process.returncode or 0, printed, stderr


def _plugin_error(settings: PluginSettings, why: str) -> ProviderAccessDeniedError:
    return ProviderAccessDeniedError(
        f"{settings.source}: the credential plugin {settings.command} gave no credential: {why}",
        hint="Log in with the platform's own command, then try `kubectl get ns` with the same kubeconfig.",
    )


def shorten_text(text: str) -> str:
    """Return a credential plugin's output as one short line, with anything that looks like a token removed."""
    line = " ".join(_TOKEN_LIKE.sub("…", text).split())
    return line if len(line) <= _QUOTED else line[:_QUOTED] + "…"


def _read_token(path: Path) -> str:
    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"cannot read the token file {path}: {type(error).__name__}") from None
    if not token:
        raise ConfigurationError(f"the token file {path} is empty")
    return token
