"""Parse the address of a secret in Vault or OpenBao, from a URI or ``cloudConfig`` and the environment.

The module opens no connection. An unknown option is rejected. An address never holds a secret. The environment
variables can begin with `VAULT_` or `BAO_`; if a variable is set under both names, the URI's scheme decides which one
is used.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

from goatherd.errors import ConfigurationError
from goatherd.providers import addresses
from goatherd.providers.addresses import AddressForm, Option
from goatherd.providers.values import ORG_FIELD
from goatherd.providers.vault.auth import SERVICE_ACCOUNT_TOKEN, AppRoleAuth, AuthMethod, KubernetesAuth, TokenAuth

DEFAULT_PORT: Final = 8200
TOKEN_FILE: Final = "~/.vault-token"  # noqa: S105 - a path

_EXAMPLE: Final = "Write, for example, vault://vault.example.org:8200/secret/goatdb/root, with the mount first."
OPTIONS: Final = {
    "auth": Option(choices=("token", "approle", "kubernetes")),
    "auth-mount": Option(),
    "ca": Option(),
    "cert": Option(),
    "key": Option(),
    "mount": Option(),
    "namespace": Option(),
    "reads": Option(choices=("any", "active")),
    "role": Option(),
    "role-id": Option(),
    "secret-id-file": Option(),
    "tls": Option(choices=("on", "off")),
    "token-file": Option(),
}
FORMS: Final = {
    scheme: AddressForm(
        scheme=scheme,
        example=_EXAMPLE,
        options=OPTIONS,
        host="address",
        missing="it names no mount and path",
    )
    for scheme in ("vault", "openbao")
}


@dataclass(frozen=True, slots=True, kw_only=True)
class VaultAddress:
    """The address of one key/value mount of a Vault or OpenBao server, and how to log in.

    Attributes:
        url: The server's URL, such as ``https://vault.example.org:8200``.
        mount: The mount of a key/value engine, version 2.
        auth: The login method, by which Goatherd gets a token.
        namespace: The Vault namespace; None for the root namespace.
        ca: A file or directory of CA certificates to trust instead of the system's.
        cert: The client certificate's file, if the server requires one.
        key: The client certificate's key file.
        reads_active: Whether the active node answers all reads, so that they are strong: true for a single server, and
            for a cluster whose standbys forward reads.
    """

    url: str
    mount: str = "secret"
    auth: AuthMethod = field(default_factory=lambda: TokenAuth(variables=("VAULT_TOKEN",), file=TOKEN_FILE))
    namespace: str | None = None
    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    reads_active: bool = False


def parse_address(
    scheme: str, given: str | Mapping[str, object], *, environment: Mapping[str, str] | None = None
) -> tuple[VaultAddress, str]:
    """Parse the address of a secret in Vault or OpenBao into the address of a mount and a secret id.

    Args:
        scheme: ``vault`` or ``openbao``.
        given: ``vault://host:port/mount/path?option=…``, or a ``cloudConfig`` like
            ``{"provider": "vault", "secretId": "secret/goatdb/root", "address": …}``, whose other members are the
            options of the URI. Without a host or ``address``, the environment names the server.
        environment: Used instead of the process's environment.

    Raises:
        ConfigurationError: The address does not have this form.
    """
    address, secret_id, _ = parse_with_form(FORMS[scheme], given, environment=environment)
    return address, secret_id


def parse_with_form(
    form: AddressForm, given: str | Mapping[str, object], *, environment: Mapping[str, str] | None = None
) -> tuple[VaultAddress, str, Mapping[str, str]]:
    """Parse an address of any form that has the options of ``vault://`` into address, path below the mount and options.

    Raises:
        ConfigurationError: The address does not have this form.
    """
    host, path, options = addresses.parse_address(form, given)
    path = path if isinstance(given, str) else path.removeprefix("/")
    scheme = form.scheme
    env = _Environment(scheme, os.environ if environment is None else environment)
    mount = options.get("mount")
    secret_id = path
    if mount is None:
        mount, _, secret_id = path.partition("/")
    if not mount or not secret_id or ORG_FIELD in mount:
        raise form.error(form.missing)
    address = VaultAddress(
        url=_read_url(scheme, host, options, env),
        mount=mount.strip("/"),
        auth=_read_auth(scheme, options, env),
        namespace=options.get("namespace") or env.get("NAMESPACE"),
        ca=options.get("ca") or env.get("CACERT") or env.get("CAPATH"),
        cert=options.get("cert") or env.get("CLIENT_CERT"),
        key=options.get("key") or env.get("CLIENT_KEY"),
        reads_active=options.get("reads") == "active",
    )
    return address, secret_id, options


class _Environment:
    """Reads environment variables by the part of the name after ``VAULT_`` or ``BAO_``.

    If a variable is set with both prefixes, the URI's scheme decides which one is used.
    """

    def __init__(self, scheme: str, variables: Mapping[str, str]) -> None:
        self._prefixes = ("BAO_", "VAULT_") if scheme == "openbao" else ("VAULT_", "BAO_")
        self._variables = variables

    def names(self, name: str) -> tuple[str, ...]:
        return tuple(prefix + name for prefix in self._prefixes)

    def get(self, name: str) -> str | None:
        return next((self._variables[each] for each in self.names(name) if self._variables.get(each)), None)


def _read_url(scheme: str, host: str, options: Mapping[str, str], env: _Environment) -> str:
    if host and "://" not in host:
        # SECURITY: without TLS, the token and the keys are sent unencrypted. So TLS is off only if the address has
        # `tls=off` (tests/unit/providers/vault/test_address.py).
        url = f"{'http' if options.get('tls') == 'off' else 'https'}://{host}"
        if _parse_url(scheme, url)[1] is None:
            url += f":{DEFAULT_PORT}"
        return url
    if "tls" in options:
        raise ConfigurationError(
            f"{scheme} address: the option tls needs host:port; in a URL, write http:// or https://"
        )
    url = (host or env.get("ADDR") or "").rstrip("/")
    if not url:
        names = " or ".join(env.names("ADDR"))
        raise ConfigurationError(
            f"a {scheme} address without a host needs the environment variable {names}", hint=_EXAMPLE
        )
    _parse_url(scheme, url)
    return url


def _parse_url(scheme: str, url: str) -> tuple[str, int | None]:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or parts.scheme not in ("http", "https") or "@" in parts.netloc or parts.query or parts.fragment:
        raise ConfigurationError(
            f"a {scheme} address needs a host and a port, or an http or https URL without a path or query",
            hint=_EXAMPLE,
        )
    return host, port


def _read_auth(scheme: str, options: Mapping[str, str], env: _Environment) -> AuthMethod:
    method = options.get("auth")
    if method is None:
        approle = "role-id" in options or (env.get("TOKEN") is None and env.get("ROLE_ID") is not None)
        method = "approle" if approle and "token-file" not in options else "token"
    allowed = {
        "token": {"token-file"},
        "approle": {"auth-mount", "role-id", "secret-id-file"},
        "kubernetes": {"auth-mount", "role", "token-file"},
    }[method]
    given = {"auth-mount", "role", "role-id", "secret-id-file", "token-file"} & set(options)
    if not given <= allowed:
        raise ConfigurationError(f"{scheme} address: {min(given - allowed)} cannot be combined with auth={method}")
    mount = options.get("auth-mount", method).strip("/")
    if method == "token":
        if "token-file" in options:
            return TokenAuth(file=options["token-file"])
        return TokenAuth(variables=env.names("TOKEN"), file=TOKEN_FILE)
    if method == "approle":
        return AppRoleAuth(
            role_id=options.get("role-id"),
            role_id_variables=env.names("ROLE_ID"),
            secret_id_file=options.get("secret-id-file"),
            secret_id_variables=env.names("SECRET_ID"),
            mount=mount,
        )
    if "role" not in options:
        raise ConfigurationError(f"{scheme} address: auth=kubernetes needs role=…")
    return KubernetesAuth(
        role=options["role"], token_file=options.get("token-file", SERVICE_ACCOUNT_TOKEN), mount=mount
    )
