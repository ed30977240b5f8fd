"""Read one context of one or several kubeconfig files: the API server, its certificate authority, and the credentials.

`kubernetes_asyncio` reads and merges the files; `read_kubeconfig` checks every member that Goatherd uses. `access`
decides which files are read. A client certificate is loaded into a TLS context without writing its key to a disk. No
message quotes a file, because it may hold a key. An unsupported member that would change the server or the credentials
is rejected, with an error that names it.

Follows https://kubernetes.io/docs/reference/config-api/kubeconfig.v1/ and
https://kubernetes.io/docs/concepts/configuration/organize-cluster-access-kubeconfig/#merging-kubeconfig-files.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import os
import ssl
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

from goatherd.errors import ConfigurationError, MissingExtraError
from goatherd.providers.kubernetes.credentials import (
    CertificatePair,
    ClusterAccess,
    ClusterCredentials,
    CredentialPlugin,
    FixedToken,
    PluginSettings,
    TokenFile,
    shorten_text,
)
from goatherd.serving.certificate_files import CertificateFiles, load_pair


def make_context(authority: str | Path | None, *, source: str) -> ssl.SSLContext:
    """Create the TLS context for a Kubernetes API server, which trusts only the given CA. Reads files.

    Args:
        authority: The CA's certificates: a file, or PEM in base64, or None for the system's authorities.
        source: Where the authority is configured, for messages.

    Raises:
        ConfigurationError: The authority cannot be used.
    """
    try:
        if authority is None:
            return ssl.create_default_context()
        if isinstance(authority, Path):
            context = ssl.create_default_context(cafile=str(authority))
        else:
            pem = base64.b64decode(authority, validate=True).decode("ascii")
            context = ssl.create_default_context(cadata=pem)
    except (OSError, ssl.SSLError, binascii.Error, ValueError) as error:
        is_file = isinstance(authority, Path)
        expected = f"{authority} is a PEM certificate" if is_file else "certificate-authority-data is PEM in base64"
        raise ConfigurationError(
            f"{source}: the cluster's CA certificate cannot be used ({_describe_failure(error)})",
            hint=f"Check that {expected}.",
        ) from None
    # Many clusters' own authorities lack an extension that Python requires by default since 3.13. Python still checks
    # the chain, the name and the dates.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


def use_certificate(context: ssl.SSLContext, cert: Path | bytes, key: Path | bytes, *, source: str) -> None:
    """Load a client certificate into a TLS context, for all connections that are made with it from now on.

    Args:
        context: The TLS context for the Kubernetes API server.
        cert: The client certificate, as a file or PEM bytes.
        key: The certificate's key, not encrypted, as a file or PEM bytes.
        source: Where the certificate is configured, for messages.

    Raises:
        ConfigurationError: The certificate or the key cannot be used.
    """
    try:
        with _as_file(cert) as cert_file, _as_file(key) as key_file:
            load_pair(context, cert_file, key_file)
    except (OSError, ValueError) as error:
        raise _unusable_pair_error(source, error) from None


def _unusable_pair_error(source: str, error: Exception) -> ConfigurationError:
    return ConfigurationError(
        f"{source}: the client certificate or its key cannot be used ({_describe_failure(error)})",
        hint="Check that both are PEM, that the key is not encrypted, and that it belongs to the certificate.",
    )


def _describe_failure(error: Exception) -> str:
    """Return why a certificate or key cannot be used, without its bytes, which an exception's text may quote."""
    if isinstance(error, OSError) and not isinstance(error, ssl.SSLError) and error.strerror:
        return error.strerror
    return type(error).__name__


@contextlib.contextmanager
def _as_file(pem: Path | bytes) -> Iterator[str]:
    """Yield the path of a file that contains a PEM certificate or key, because OpenSSL accepts only paths.

    SECURITY: bytes are put into a file in memory, never on a disk
    (tests/unit/providers/kubernetes/test_access.py::test_a_key_in_the_kubeconfig_never_becomes_a_file_on_a_disk).
    """
    if isinstance(pem, Path):
        yield str(pem)
        return
    if not hasattr(os, "memfd_create"):
        raise ConfigurationError(
            "a client key that is not in a file of its own, such as client-key-data, can be used on Linux only",
            hint="Name the files in the kubeconfig with client-certificate and client-key.",
        )
    descriptor = os.memfd_create("goatherd", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, pem)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


_HINT: Final = "Use a token, a token file, a client certificate, a credential plugin (exec), or run in the cluster."
_REWRITE_HINT: Final = "Have the plugin's own command write the kubeconfig again."
_FILE_HINT: Final = "Correct the path (KUBECONFIG, or ?kubeconfig=FILE in the store's URI), or make the file readable."
_VIEW_HINT: Final = "Check the file with `kubectl config view`."
_API_VERSIONS: Final = ("client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1")
_CLUSTER_REFUSED: Final = ("insecure-skip-tls-verify", "proxy-url")
_USER_REFUSED: Final = ("auth-provider", "username", "password", "as", "as-uid", "as-groups", "as-user-extra")


class Merged(Protocol):
    """An entry of the merged kubeconfig of the Kubernetes library: its value and the file that it came from."""

    value: Any
    path: str | None


class _Section:
    """The members of one entry of a kubeconfig, such as a user. An error names the entry, and never quotes a value.

    Args:
        members: The members, unchecked.
        file: The kubeconfig from which the entry comes.
        source: Where the entry is configured, for messages.
    """

    def __init__(self, members: Mapping[str, Any], file: Path, source: str) -> None:
        self.members = members
        self.file = file
        self.source = source

    def error(self, problem: str, hint: str) -> ConfigurationError:
        return ConfigurationError(f"{self.source}: {problem}", hint=hint)

    def refuse(self, *members: str) -> None:
        for member in members:
            if self.members.get(member):
                raise ConfigurationError(f"{self.source} uses {member}, which is not supported", hint=_HINT)

    def text(self, member: str) -> str | None:
        value = self.members.get(member)
        if value is not None and not isinstance(value, str):
            raise self.error(f"{member} must be a string", "Correct the kubeconfig, or quote the value.")
        return value or None

    def path(self, member: str) -> Path | None:
        """Return the path that a member names; a relative path starts at the kubeconfig's directory."""
        value = self.text(member)
        return None if value is None else self.file.parent / value

    def pem(self, member: str) -> Path | bytes | None:
        """Return what a member such as ``client-key`` names: the data in ``client-key-data``, or else a file."""
        value = self.text(f"{member}-data")
        if value is None:
            return self.path(member)
        try:
            return base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError):
            raise self.error(
                f"{member}-data must be base64", "Encode the PEM file: `base64 -w0 FILE` on Linux."
            ) from None


def read_kubeconfig(paths: str, context_name: str | None) -> ClusterAccess:
    """Read one context of kubeconfig files, and return how to reach its cluster.

    Args:
        paths: One file, or several as in `KUBECONFIG`. If several files have an entry of the same name or a
            ``current-context``, that of the first file counts.
        context_name: The context; None for the current one.

    Raises:
        ConfigurationError: There is no such context, or it cannot be used; the message says what is not supported.
        MissingExtraError: The extra ``kubernetes`` is not installed.
    """
    config, current = _merge_files(paths)
    source = f"kubeconfig {paths}"
    chosen = context_name or current
    if not isinstance(chosen, str) or not chosen:
        raise ConfigurationError(f"{source} has no current-context", hint="Add ?context=NAME to the address.")
    context = _find_section(config, "contexts", "context", chosen, source).members
    cluster = _find_section(config, "clusters", "cluster", context.get("cluster"), source)
    user = _Section({}, cluster.file, source)
    if context.get("user"):
        user = _find_section(config, "users", "user", context.get("user"), source)
    cluster.source = user.source = source = f"{source}, context {chosen}"
    cluster.refuse(*_CLUSTER_REFUSED)
    user.refuse(*_USER_REFUSED)
    server = _read_server(cluster)
    authority = cluster.text("certificate-authority-data") or cluster.path("certificate-authority")
    tls = make_context(authority, source=source) if server.startswith("https:") else None
    credentials = _read_credentials(user, cluster, authority, tls)
    pair = _read_certificate_pair(user)
    if tls is not None and pair is not None:
        credentials = _add_certificate(credentials, tls, *pair, source=source)
    return ClusterAccess(
        server=server,
        verify=tls,
        authority=authority if isinstance(authority, Path) else None,
        tls_server_name=cluster.text("tls-server-name"),
        source=source,
        credentials=credentials,
    )


def _read_credentials(
    user: _Section, cluster: _Section, authority: str | Path | None, tls: ssl.SSLContext | None
) -> ClusterCredentials:
    # In the order of kubectl: a file can be replaced, so it wins over the token beside it; a plugin is asked last.
    token_file = user.path("tokenFile")
    if token_file is not None:
        return TokenFile(token_file)
    token = user.text("token")
    if token is not None or not user.members.get("exec"):
        return FixedToken(token)
    settings = _read_plugin(user, cluster, authority)

    def take(cert: bytes, key: bytes) -> None:
        if tls is None:
            raise user.error(
                "the credential plugin printed a client certificate, which needs an https server",
                "Set cluster.server to an https URL.",
            )
        use_certificate(tls, cert, key, source=user.source)

    return CredentialPlugin(settings, take)


def _add_certificate(
    credentials: ClusterCredentials, tls: ssl.SSLContext, cert: Path | bytes, key: Path | bytes, *, source: str
) -> ClusterCredentials:
    """Load a client certificate into the TLS context; return the credentials, which watch its files if it has files."""
    if isinstance(credentials, CredentialPlugin) or not (isinstance(cert, Path) and isinstance(key, Path)):
        use_certificate(tls, cert, key, source=source)
        return credentials
    files = CertificateFiles(tls, cert, key)
    try:
        files.load()
    except (OSError, ValueError) as error:
        raise _unusable_pair_error(source, error) from None
    return CertificatePair(files, credentials)


def _read_plugin(user: _Section, cluster: _Section, authority: str | Path | None) -> PluginSettings:
    """Check the ``exec`` member of a kubeconfig's user, and return the settings of the credential plugin."""
    if not isinstance(user.members["exec"], Mapping):
        raise user.error("exec must be a mapping", _REWRITE_HINT)
    plugin = _Section(user.members["exec"], user.file, user.source)
    command, version = plugin.text("command"), plugin.text("apiVersion")
    if command is None:
        raise plugin.error("exec.command is missing", _REWRITE_HINT)
    if version not in _API_VERSIONS:
        raise plugin.error(
            f"exec must have the apiVersion {' or '.join(_API_VERSIONS)}",
            "Newer plugins use it: update the plugin, then have its own command write the kubeconfig again.",
        )
    arguments, variables = plugin.members.get("args") or [], plugin.members.get("env") or []
    if not isinstance(arguments, list) or not all(isinstance(each, str) for each in arguments):
        raise plugin.error("exec.args must be a list of strings", "Correct the kubeconfig, or quote the argument.")
    if not isinstance(variables, list) or not all(
        isinstance(each, Mapping) and isinstance(each.get("name"), str) and isinstance(each.get("value"), str)
        for each in variables
    ):
        raise plugin.error(
            "each item of exec.env must have a `name` and a `value`, both strings",
            "Correct the kubeconfig, or quote the value.",
        )
    if "/" in command:  # as a path it is relative to the kubeconfig's directory, as a name it is looked for in PATH
        command = str(plugin.file.parent / command)
    if plugin.members.get("interactiveMode") == "Always":
        raise plugin.error(
            f"the credential plugin {command} needs a terminal, which Goatherd does not provide",
            "Log in first, with a plugin that stores its credentials, or use a service account's token.",
        )
    spec: dict[str, object] = {"interactive": False}
    if plugin.members.get("provideClusterInfo"):
        spec["cluster"] = _cluster_info(cluster, authority)
    from kubernetes_asyncio.config.exec_provider import ExecProvider
    from kubernetes_asyncio.config.kube_config import ConfigNode

    # The library puts command and variables together. It is not asked to run them: what it runs cannot be stopped.
    prepared = ExecProvider(
        ConfigNode(
            "exec",
            {
                "apiVersion": version,
                "command": command,
                "args": list(arguments),
                "env": [{"name": each["name"], "value": each["value"]} for each in variables],
            },
        )
    )
    info = {"apiVersion": version, "kind": "ExecCredential", "spec": spec}
    return PluginSettings(
        arguments=tuple(prepared.args),
        environment={**prepared.env, "KUBERNETES_EXEC_INFO": json.dumps(info)},
        api_version=version,
        install_hint=shorten_text(plugin.text("installHint") or ""),
        source=plugin.source,
    )


def _cluster_info(cluster: _Section, authority: str | Path | None) -> dict[str, object]:
    """Return the description of the cluster that a credential plugin gets if its kubeconfig asks for that."""
    members: dict[str, object] = {
        "server": cluster.members.get("server"),
        "tls-server-name": cluster.members.get("tls-server-name"),
        "certificate-authority-data": authority,
    }
    if isinstance(authority, Path):
        try:
            members["certificate-authority-data"] = base64.b64encode(authority.read_bytes()).decode()
        except OSError as error:
            raise cluster.error(
                f"cannot read {authority}: {error.strerror}",
                "Correct certificate-authority, or make the file readable.",
            ) from None
    extensions = cluster.members.get("extensions")
    for each in extensions if isinstance(extensions, list) else []:
        if isinstance(each, Mapping) and each.get("name") == "client.authentication.k8s.io/exec":
            members["config"] = each.get("extension")
    return {name: value for name, value in members.items() if value}


def _merge_files(paths: str) -> tuple[Mapping[str, Any], object]:
    """Merge several kubeconfig files; return the configuration and the name of its current context."""
    try:
        from kubernetes_asyncio.config.kube_config import KubeConfigMerger
    except ImportError as error:
        raise MissingExtraError(
            f"cannot read the kubeconfig {paths}: kubernetes_asyncio is not installed",
            hint="Install it: pip install 'goatherd[kubernetes]'",
        ) from error
    if not any(os.path.exists(os.path.expanduser(path)) for path in paths.split(os.pathsep) if path):  # noqa: PTH110, PTH111
        raise ConfigurationError(f"cannot read the kubeconfig {paths}: No such file or directory", hint=_FILE_HINT)
    # SECURITY: no error of the library or its YAML reader is passed on, because they quote the file, and so a key in it
    # (tests/unit/providers/kubernetes/test_access.py::test_a_damaged_kubeconfig_is_named_and_not_quoted).
    try:
        merger = KubeConfigMerger(paths)
        config: Any = merger.config.value if merger.config is not None else None
        # The library takes the last file's current-context, kubectl the first one's.
        currents = [merger.config_files[path].get("current-context") for path in merger.paths]
    except OSError as error:
        raise ConfigurationError(f"cannot read the kubeconfig {paths}: {error.strerror}", hint=_FILE_HINT) from None
    except Exception:  # noqa: BLE001 - whatever the form of the file makes of the library
        raise ConfigurationError(
            f"the kubeconfig {paths} is invalid: it must be YAML with clusters, contexts and users",
            hint=_VIEW_HINT,
        ) from None
    if not isinstance(config, Mapping):
        raise ConfigurationError(f"the kubeconfig {paths} must be a YAML mapping", hint=_VIEW_HINT)
    return config, next((current for current in currents if current), None)


def _find_section(config: Mapping[str, Any], plural: str, singular: str, name: object, source: str) -> _Section:
    """Find the entry called `name` in a list of the kubeconfig, such as ``clusters``."""
    entries: list[Merged] = config.get(plural) or []
    for entry in entries:
        found = entry.value
        if isinstance(found, Mapping) and found.get("name") == name and isinstance(found.get(singular), Mapping):
            return _Section(found[singular], Path(str(entry.path)).absolute(), source)
    names = [str(entry.value.get("name")) for entry in entries if isinstance(entry.value, Mapping)]
    raise ConfigurationError(
        f"{source} has no {singular} {name!r}",
        hint=f"It has: {', '.join(names)}."
        if names
        else f"It has no {plural}; `kubectl config view` shows what it has.",
    )


def _read_server(cluster: _Section) -> str:
    server = cluster.text("server")
    if server is None:
        raise cluster.error("cluster.server is missing", "Add the API server's URL, such as https://10.0.0.1:6443.")
    try:
        parts = urlsplit(server)
    except ValueError:
        raise cluster.error("cluster.server must be a URL", "Write a URL such as https://10.0.0.1:6443.") from None
    # SECURITY: a token must not be sent over a network unencrypted
    # (tests/unit/providers/kubernetes/test_access.py::test_a_server_without_tls_is_refused_unless_it_is_this_machine).
    is_local = parts.hostname in ("localhost", "127.0.0.1", "::1")
    if parts.scheme not in ("https", "http") or not parts.hostname or (parts.scheme == "http" and not is_local):
        raise cluster.error(
            "cluster.server must be an https URL",
            "Write a URL such as https://10.0.0.1:6443. Only a server on this machine may have an http URL.",
        )
    if parts.username or parts.password or parts.query or parts.fragment:
        raise cluster.error(
            "cluster.server must have only a host, a port and a path",
            "Remove the user, password, query or fragment from the URL.",
        )
    return server.rstrip("/")


def _read_certificate_pair(user: _Section) -> tuple[Path | bytes, Path | bytes] | None:
    """Return the client certificate and the key of a kubeconfig's user, each as a file or as PEM bytes."""
    cert, key = user.pem("client-certificate"), user.pem("client-key")
    if cert is None and key is None:
        return None
    if cert is None or key is None:
        missing, given = ("client-certificate", "client-key") if cert is None else ("client-key", "client-certificate")
        raise user.error(
            f"{missing} is missing, but {given} is given",
            "Give both the client certificate and its key, or neither.",
        )
    return cert, key
