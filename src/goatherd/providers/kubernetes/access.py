"""How the API server is reached, and as whom: a pod's service account, or a kubeconfig file.

What it is: `load_access`, which reads files and the environment, and `Access`, which hands out a bearer token. What it
is not: HTTP. Rules: a token that stands in a file is read again, because the kubelet replaces it; no token and no
private key is in any repr, error, log or file of ours; a server whose certificate cannot be checked is not talked to.

Follows https://kubernetes.io/docs/tasks/run-application/access-api-from-pod/ and
https://kubernetes.io/docs/reference/config-api/kubeconfig.v1/. Not supported, and said so when met: exec plugins,
auth-provider, passwords, impersonation, proxy-url, insecure-skip-tls-verify, and merging several files.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import importlib
import json
import os
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from goatherd.clock import Clock
from goatherd.errors import ConfigurationError, MissingExtraError
from goatherd.providers.kubernetes.address import KubernetesAddress

SERVICE_ACCOUNT: Final = "/var/run/secrets/kubernetes.io/serviceaccount"

_READ_AGAIN: Final = 60.0
"""Seconds; as client-go does. The kubelet replaces a token long before it expires."""
_HINT: Final = "Use a service account's token, a client certificate, or run in the cluster; see the how-to page."


@dataclass(slots=True, kw_only=True)
class Access:
    """One API server and one way to be somebody there.

    Attributes:
        server: Its URL.
        verify: The TLS context, with the client certificate if there is one; None for a plain ``http`` address.
        tls_server_name: The name that the server's certificate has to have, where it is not the URL's.
        source: Where all this comes from, for messages.
    """

    server: str
    verify: ssl.SSLContext | None
    tls_server_name: str | None = None
    source: str
    token_file: Path | None = None
    _token: str | None = field(default=None, repr=False)
    _read_at: float | None = field(default=None, repr=False)

    def token(self, clock: Clock, *, again: bool = False) -> str | None:
        """Return the bearer token, read again when it is older than a minute or `again` is asked for. Blocks on disk.

        Raises:
            ConfigurationError: The file cannot be read, or is empty.
        """
        if self.token_file is None:
            return self._token
        now = clock.monotonic()
        if self._token is None or again or self._read_at is None or now - self._read_at >= _READ_AGAIN:
            self._token, self._read_at = _token_from(self.token_file), now
        return self._token


def load_access(
    address: KubernetesAddress,
    environment: Mapping[str, str] | None = None,
    *,
    service_account: str = SERVICE_ACCOUNT,
) -> Access:
    """Return how to reach the cluster of `address`. Blocks on disk.

    In this order: the address's own kubeconfig; the file in `KUBECONFIG`; the pod's service account;
    ``~/.kube/config``. A context, if one is named, is looked for in a kubeconfig only.

    Raises:
        ConfigurationError: There is none, or it cannot be used; the message says what is not supported.
        MissingExtraError: The kubeconfig is YAML and PyYAML is not installed.
    """
    environment = os.environ if environment is None else environment
    named = address.kubeconfig or environment.get("KUBECONFIG")
    if named and not address.kubeconfig:
        files = [each for each in named.split(os.pathsep) if each]
        if len(files) > 1:
            raise ConfigurationError(
                f"KUBECONFIG names {len(files)} files, and they are not merged here",
                hint="Name one: kubeconfig=/path/to/file in the address, or `kubectl config view --flatten > one`.",
            )
        named = files[0] if files else None
    in_pod = "KUBERNETES_SERVICE_HOST" in environment and Path(service_account, "token").exists()
    if not named and not address.context and in_pod:
        return _from_pod(environment, Path(service_account))
    path = Path(named).expanduser() if named else Path(environment.get("HOME") or "~").expanduser() / ".kube/config"
    if not named and not path.exists():
        raise ConfigurationError(
            "no Kubernetes cluster is configured: this is no pod, and there is no KUBECONFIG and no ~/.kube/config",
            hint="Add ?kubeconfig=/path/to/file to the address.",
        )
    return _from_kubeconfig(path, address.context)


def _from_pod(environment: Mapping[str, str], directory: Path) -> Access:
    host, port = environment["KUBERNETES_SERVICE_HOST"], environment.get("KUBERNETES_SERVICE_PORT", "443")
    with contextlib.suppress(ValueError):
        if ip_address(host).version == 6:
            host = f"[{host}]"
    return Access(
        server=f"https://{host}:{port}",
        verify=_context(directory / "ca.crt", None, source="the pod's service account"),
        source="the pod's service account",
        token_file=directory / "token",
    )


def _from_kubeconfig(path: Path, context_name: str | None) -> Access:
    source = f"kubeconfig {path}"
    config = _parsed(path)
    chosen = context_name or config.get("current-context")
    if not isinstance(chosen, str) or not chosen:
        raise ConfigurationError(f"{source} has no current-context", hint="Add ?context=NAME to the address.")
    context = _named(config, "contexts", "context", chosen, source)
    cluster = _named(config, "clusters", "cluster", context.get("cluster"), source)
    user = _named(config, "users", "user", context.get("user"), source) if context.get("user") else {}
    source = f"{source}, context {chosen}"
    _refuse(cluster, ("insecure-skip-tls-verify", "proxy-url"), source)
    _refuse(
        user, ("exec", "auth-provider", "username", "password", "as", "as-uid", "as-groups", "as-user-extra"), source
    )
    server = _text(cluster, "server", source)
    if server is None:
        raise ConfigurationError(f"{source} names no server")
    authority = cluster.get("certificate-authority-data") or _file(path, cluster, "certificate-authority", source)
    return Access(
        server=_checked_server(server, source),
        verify=_context(authority, _pair(path, user, source), source=source) if server.startswith("https:") else None,
        tls_server_name=_text(cluster, "tls-server-name", source),
        source=source,
        # As kubectl does: the file wins over the token beside it, because it can be replaced.
        token_file=_file(path, user, "tokenFile", source),
        _token=None if user.get("tokenFile") else _text(user, "token", source),
    )


def _parsed(path: Path) -> Mapping[str, Any]:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"cannot read the kubeconfig {path}: {error.strerror}") from None
    config: object
    try:
        config = json.loads(raw)  # JSON is YAML too, and needs no library
    except ValueError:
        try:
            yaml = importlib.import_module("yaml")
        except ImportError as error:
            raise MissingExtraError(
                f"the kubeconfig {path} is YAML, and PyYAML is not installed",
                hint="Install it: pip install 'goatherd[kubernetes]'",
            ) from error
        # SECURITY: safe_load makes no objects; its errors quote the file, and so the key, so none is passed on
        # (tests/unit/providers/test_kubernetes_access.py::test_a_damaged_kubeconfig_is_named_and_not_quoted).
        try:
            config = yaml.safe_load(raw)
        except (yaml.YAMLError, ValueError, RecursionError):
            config = None
    if not isinstance(config, Mapping):
        raise ConfigurationError(f"the kubeconfig {path} is no YAML mapping")
    return config


def _named(config: Mapping[str, Any], plural: str, singular: str, name: object, source: str) -> Mapping[str, Any]:
    for entry in config.get(plural) or ():
        if isinstance(entry, Mapping) and entry.get("name") == name and isinstance(entry.get(singular), Mapping):
            found: Mapping[str, Any] = entry[singular]
            return found
    names = [str(entry.get("name")) for entry in config.get(plural) or () if isinstance(entry, Mapping)]
    raise ConfigurationError(
        f"{source} has no {singular} {name!r}",
        hint=f"It has: {', '.join(names) or 'none'}." if singular == "context" else None,
    )


def _refuse(section: Mapping[str, Any], members: tuple[str, ...], source: str) -> None:
    for member in members:
        if section.get(member):
            raise ConfigurationError(f"{source} uses {member}, which is not supported", hint=_HINT)


def _text(section: Mapping[str, Any], member: str, source: str) -> str | None:
    value = section.get(member)
    if value is not None and not isinstance(value, str):
        raise ConfigurationError(f"{source}: {member} must be a text")
    return value or None


def _file(path: Path, section: Mapping[str, Any], member: str, source: str) -> Path | None:
    """Return the file that a member names, which may be relative to the kubeconfig's directory."""
    value = _text(section, member, source)
    return None if value is None else path.parent / value


def _checked_server(server: str, source: str) -> str:
    parts = urlsplit(server)
    # SECURITY: a token is not sent where anybody on the way can read it
    # (tests/unit/providers/test_kubernetes_access.py::test_a_server_without_tls_is_refused_unless_it_is_this_machine).
    is_local = parts.hostname in ("localhost", "127.0.0.1", "::1")
    if parts.scheme not in ("https", "http") or not parts.hostname or (parts.scheme == "http" and not is_local):
        raise ConfigurationError(f"{source}: the server must be an https address")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ConfigurationError(f"{source}: the server's address holds more than a host, a port and a path")
    return server.rstrip("/")


def _token_from(path: Path) -> str:
    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"cannot read the token file {path}: {type(error).__name__}") from None
    if not token:
        raise ConfigurationError(f"the token file {path} is empty")
    return token


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pair:
    """A client certificate and its key, each as a file or as PEM bytes."""

    cert: Path | bytes
    key: Path | bytes = field(repr=False)


def _pair(path: Path, user: Mapping[str, Any], source: str) -> _Pair | None:
    cert = _pem(user, "client-certificate-data", source) or _file(path, user, "client-certificate", source)
    key = _pem(user, "client-key-data", source) or _file(path, user, "client-key", source)
    if cert is None and key is None:
        return None
    if cert is None or key is None:
        raise ConfigurationError(f"{source} has half a client certificate: it needs a certificate and a key")
    return _Pair(cert=cert, key=key)


def _pem(section: Mapping[str, Any], member: str, source: str) -> bytes | None:
    value = _text(section, member, source)
    if value is None:
        return None
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise ConfigurationError(f"{source}: {member} is not base64") from None


def _context(authority: object, pair: _Pair | None, *, source: str) -> ssl.SSLContext:
    """Return a TLS context that trusts `authority` (a file, base64 of PEM, or None for the system's) and no other."""
    try:
        if authority is None:
            context = ssl.create_default_context()
        elif isinstance(authority, Path):
            context = ssl.create_default_context(cafile=str(authority))
        else:
            pem = base64.b64decode(str(authority), validate=True).decode("ascii")
            context = ssl.create_default_context(cadata=pem)
        if authority is not None:
            # Many clusters' own authorities lack an extension that Python asks for by default since 3.13. The chain,
            # the name and the dates are checked all the same.
            context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        if pair is not None:
            with _as_file(pair.cert) as cert, _as_file(pair.key) as key:
                context.load_cert_chain(cert, key, password=_no_password)
    except (OSError, ssl.SSLError, binascii.Error, ValueError) as error:
        raise ConfigurationError(f"{source}: cannot use a certificate or key: {type(error).__name__}") from None
    return context


def _no_password() -> str:
    raise ValueError("the key is encrypted")  # else OpenSSL would ask at the terminal


@contextlib.contextmanager
def _as_file(pem: Path | bytes) -> Iterator[str]:
    """Give OpenSSL a path, which is all that it takes.

    SECURITY: bytes get one in memory and never on a disk
    (tests/unit/providers/test_kubernetes_access.py::test_a_key_in_the_kubeconfig_never_becomes_a_file_on_a_disk).
    """
    if isinstance(pem, Path):
        yield str(pem)
        return
    if not hasattr(os, "memfd_create"):
        raise ConfigurationError(
            "client-key-data in a kubeconfig can be used on Linux only",
            hint="Name files: client-certificate, client-key.",
        )
    descriptor = os.memfd_create("goatherd", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, pem)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)
