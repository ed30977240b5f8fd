"""Find providers and signers by URI scheme, and import only the one that is needed.

The module reads the entry points of installed packages, selects one, and says why it cannot be used. The built-in
providers and signers are found in the same way. Rules: the entry point's name is the scheme. The order does not depend
on the file system. If two packages register the same scheme, the error names both. Error messages quote the scheme of a
URI, never the whole URI, which may hold a password.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, Final, cast

from goatherd.errors import ConfigurationError, GoatherdError, MissingExtraError, PluginNotFoundError
from goatherd.serving.server_url import masked

if TYPE_CHECKING:
    from goatherd.providers.base import SecretProvider
    from goatherd.providers.capabilities import ServiceReader
    from goatherd.signers.base import Signer

PROVIDERS: Final = "goatherd.providers"
SIGNERS: Final = "goatherd.signers"
POLICIES: Final = "goatherd.policies"

Policy = Callable[[str, str], str]
"""What an entry point of `POLICIES` is: a role (``server``, ``rotator``, ``admin``; ``signer`` for signers) and an
address in, the text of exactly the rights that the role needs out. Pure, and without the platform's SDK. It raises
`ConfigurationError`. Those of Goatherd's own providers take a ``cloudConfig``, too."""

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*")
_BRACED = re.compile(r"[{}][^{}/]*\}?")
_OURS = "goatherd"
# What GoatDB's cloudConfig calls a provider, where that is not the scheme.
_NAMES: Final[Mapping[str, str]] = {"kubernetes": "k8s"}
# The extra that brings a scheme's libraries, where that is not the scheme.
_EXTRAS: Final[Mapping[str, str]] = {
    "k8s": "kubernetes",
    "k8s-volume": "kubernetes",
    "openbao": "vault",
    "awskms": "aws",
    "gcpkms": "gcp",
    "azurekms": "azure",
}


def provider_schemes() -> tuple[str, ...]:
    """Return the URI schemes of the installed providers, sorted. Imports none of them."""
    return tuple(sorted({point.name for point in _entry_points(PROVIDERS)}))


def open_provider(uri: str) -> tuple[SecretProvider, str]:
    """Return the provider and the secret id that `uri` names; enter the provider (``async with``) to use it.

    Args:
        uri: The address of a secret, such as ``file:///srv/keys/root``. A ``{org}`` in it stays in the secret id.

    Raises:
        ConfigurationError: The string is not a URI, or the plugin rejects it, or it contains a password or another
            placeholder than ``{org}``.
        PluginNotFoundError: No plugin has the scheme; the message lists those that exist.
        MissingExtraError: The plugin's libraries are not installed; the hint is the install command.
    """
    if not isinstance(uri, str):
        raise ConfigurationError(
            f"the address of a store must be a string, not a {type(uri).__name__}",
            hint="Write SCHEME://…, such as file:///srv/keys/root.",
        )
    scheme, separator, rest = uri.partition("://")
    scheme = scheme.lower()
    if not separator or not _SCHEME.fullmatch(scheme):
        known = ", ".join(provider_schemes())
        raise ConfigurationError(
            f"{masked(uri)!r} is not the URI of a store",
            hint=f"Write SCHEME://…, such as file:///srv/keys/root. Known schemes: {known}.",
        )
    # SECURITY: an address with a password is rejected, because logs and errors show addresses
    # (tests/unit/test_plugins.py::test_a_password_in_an_address_is_refused_and_not_quoted).
    if "@" in rest.partition("/")[0]:
        raise ConfigurationError(
            f"a {scheme} address must not contain a user or a password",
            hint="Remove the part before the @. The provider finds the platform's own credentials.",
        )
    _check_placeholders(rest)
    plugin = _provider_class(scheme)
    with _address_of(scheme):
        made: object = plugin.from_uri(f"{scheme}://{rest}")
    provider, secret_id = _check_made(made, scheme, "from_uri")
    _check_placeholders(secret_id)  # an address may be written with escapes
    return provider, secret_id


def signer_schemes() -> tuple[str, ...]:
    """Return the URI schemes of the installed signers, sorted. Imports none of them."""
    return tuple(sorted({point.name for point in _entry_points(SIGNERS)}))


def open_signer_plugin(uri: str) -> Signer:
    """Return the signer that `uri` names, unverified: use `goatherd.signers.open_signer`, which verifies signatures.

    Args:
        uri: Such as ``pkcs11:token=goatdb;object=anchor`` or ``transit://localhost:8200/transit/goatdb-anchor``.

    Raises:
        ConfigurationError: The string is not the URI of a signer, or the plugin rejects it, or it contains a password.
        PluginNotFoundError: No plugin has the scheme; the message lists those that exist.
        MissingExtraError: The plugin's libraries are not installed; the hint is the install command.
    """
    if not isinstance(uri, str):
        raise ConfigurationError(
            f"the URI of a signer must be a string, not a {type(uri).__name__}",
            hint="Write SCHEME:…, such as pkcs11:token=goatdb;object=anchor.",
        )
    scheme, separator, rest = uri.partition(":")
    scheme = scheme.lower()
    known = ", ".join(signer_schemes())
    if not separator or not _SCHEME.fullmatch(scheme):
        # SECURITY: the error does not quote the string, which may be a key or a PIN that was given by mistake
        # (tests/unit/signers/test_opening.py::test_what_is_no_uri_is_not_quoted).
        raise ConfigurationError(
            "the signer must be given as a URI",
            hint=f"Write SCHEME:…, such as pkcs11:token=goatdb;object=anchor. Known schemes: {known}.",
        )
    if rest.startswith("//") and "@" in rest[2:].partition("/")[0]:
        raise ConfigurationError(
            f"a {scheme} URI must not contain a user or a password",
            hint="Remove the part before the @. The signer finds the platform's own credentials.",
        )
    points = [point for point in _entry_points(SIGNERS) if point.name == scheme]
    if not points:
        raise PluginNotFoundError(f"no signer for the scheme {scheme!r}; known schemes: {known}")
    if len(points) > 1:
        raise _claimed_twice(scheme, points)
    plugin: type[Signer] = _load_plugin(points[0], scheme, "signer")
    if not (isinstance(plugin, type) and hasattr(plugin, "from_uri") and hasattr(plugin, "sign")):
        raise ConfigurationError(
            f"the {scheme} signer of {_distribution_name(points[0])} is not a Signer: {points[0].value}"
        )
    _check_complete(plugin, points[0], scheme, "signer")
    with _address_of(scheme, "signer"):
        return plugin.from_uri(f"{scheme}:{rest}")


def provider_from_config(cloud_config: Mapping[str, object]) -> tuple[SecretProvider, str]:
    """Return provider and secret id of a ``cloudConfig``: ``{"provider": "aws", "secretId": "…", "region": "…"}``.

    Raises:
        ConfigurationError: The provider is missing or unknown, or an option is not one of its options.
        MissingExtraError: The plugin's libraries are not installed; the hint is the install command.
    """
    name = cloud_config.get("provider")
    if not isinstance(name, str) or not _SCHEME.fullmatch(name):
        raise ConfigurationError(
            "cloudConfig: provider must be the name of a provider",
            hint=f"Known schemes: {', '.join(provider_schemes())}.",
        )
    try:
        plugin = _provider_class(_NAMES.get(name, name))
    except PluginNotFoundError as error:
        raise ConfigurationError(f"cloudConfig: {error}", hint=error.hint) from error
    for value in cloud_config.values():
        if isinstance(value, str):
            _check_placeholders(value)
    with _address_of(name):
        made: object = plugin.from_config(cloud_config)
    return _check_made(made, name, "from_config")


def open_service_reader(scheme: str, options: Mapping[str, str], *, timeout: timedelta) -> ServiceReader:
    """Return a reader of the Services of the platform that stores a provider's secrets, such as Kubernetes.

    Args:
        scheme: The provider's scheme, such as ``k8s``.
        options: The options of the provider that say how to reach the platform, such as ``kubeconfig``.
        timeout: Timeout of one request.

    Raises:
        PluginNotFoundError: No installed provider has the scheme.
        MissingExtraError: The plugin's libraries are not installed; the hint is the install command.
    """
    plugin: Any = _provider_class(scheme)
    reader: ServiceReader = plugin.service_reader(options, timeout=timeout)
    return reader


def credential_variables(name: str) -> tuple[str, ...]:
    """Return the environment variables that hold credentials for a kind of store; see `SecretProvider`.

    Args:
        name: A URI, a scheme or the ``provider`` of a ``cloudConfig``.

    Raises:
        PluginNotFoundError: No installed provider has the scheme.
    """
    return _provider_class(name.partition(":")[0]).credential_variables


def policy_text(name: str, role: str, secret: str | Mapping[str, object]) -> str:
    """Return the access policy that grants `role` its permissions for one secret. Needs no SDK.

    Args:
        name: The scheme, or GoatDB's name for the provider.
        role: ``server``, ``rotator`` or ``admin``.
        secret: The address, a short form of it that the provider accepts, such as a path, or a ``cloudConfig``.

    Raises:
        ConfigurationError: The role is unknown, no policy can be written for the address, or the ``cloudConfig`` is of
            another provider.
        PluginNotFoundError: No plugin prints policies for the scheme; the message lists those that do.
    """
    scheme = _NAMES.get(name, name)
    points = [point for point in _entry_points(POLICIES) if point.name == scheme]
    if not points:
        known = ", ".join(sorted({point.name for point in _entry_points(POLICIES)}))
        raise PluginNotFoundError(f"no policies for the scheme {scheme!r}; known schemes: {known}")
    if len(points) > 1:
        raise _claimed_twice(scheme, points)
    given = secret.get("provider") if isinstance(secret, Mapping) else scheme
    if not isinstance(given, str) or _NAMES.get(given, given) != scheme:
        raise ConfigurationError(
            f"cloudConfig: the configured store has the provider {given!r}, not {name!r}",
            hint="Name that provider, or give the address of the secret.",
        )
    for text in [secret] if isinstance(secret, str) else secret.values():
        if isinstance(text, str):
            _check_placeholders(text)
    if isinstance(secret, Mapping) and not points[0].value.startswith(f"{_OURS}."):
        raise ConfigurationError(
            f"the policies of the plugin {scheme!r} take no cloudConfig", hint="Give the address of the secret."
        )
    policy = _load_plugin(points[0], scheme)
    with _address_of(scheme):
        text = policy(role, secret)
    if not isinstance(text, str):
        raise ConfigurationError(
            f"the policies of the plugin {scheme!r} are broken: a {type(text).__name__} was returned, not a string",
            hint=f"Report this error to the authors of {_distribution_name(points[0])}.",
        )
    return text


def _check_placeholders(text: str) -> None:
    """Reject a misspelt placeholder: if taken literally, all organizations would share one secret."""
    strange = _BRACED.search(text.replace("{org}", ""))
    if strange is not None:
        raise ConfigurationError(
            f"{strange[0]} in a store's address is not a known placeholder",
            hint="The only placeholder is {org}, in lower case; it is replaced by the organization's id.",
        )


def _check_made(made: object, scheme: str, method: str) -> tuple[SecretProvider, str]:
    """Return the provider and the secret id that a plugin has made from an address, if they are that.

    Raises:
        ConfigurationError: They are something else, or the provider's base class was not initialized.
    """
    problem = None
    if not (isinstance(made, tuple) and len(made) == 2 and isinstance(made[1], str) and hasattr(made[0], "from_uri")):
        problem = f"{method} must return a provider and the id of a secret"
    elif not hasattr(made[0], "call_counts"):
        problem = "its __init__ must call super().__init__()"
    if problem is not None:
        raise ConfigurationError(
            f"the {scheme} provider is broken: {problem}", hint="Report this error to the authors of the plugin."
        )
    return cast("tuple[SecretProvider, str]", made)


@contextmanager
def _address_of(scheme: str, kind: str = "provider") -> Iterator[None]:
    """Convert exceptions of a plugin that reads an address, such as `ValueError`, into Goatherd's errors."""
    try:
        yield
    except GoatherdError:
        raise
    except Exception as error:  # noqa: BLE001 - a third-party plugin can raise anything
        # SECURITY: the error shows neither the text of the plugin's exception nor its chain, which may quote the
        # address (tests/unit/test_plugins.py::test_what_a_plugin_raises_over_an_address_is_named_and_not_quoted).
        raise ConfigurationError(
            f"the {scheme} {kind} rejected the address ({type(error).__name__})",
            hint="Check the address. If it is correct, report a bug to the authors of the plugin.",
        ) from None


def _entry_points(group: str) -> list[EntryPoint]:
    """Return the group's entry points, sorted and without duplicates if a distribution is found twice on the path."""
    unique = {(point.name, _distribution_name(point), point.value): point for point in entry_points(group=group)}
    return [unique[key] for key in sorted(unique)]


def _distribution_name(point: EntryPoint) -> str:
    return point.dist.name if point.dist else "?"


def _provider_class(scheme: str) -> type[SecretProvider]:
    points = [point for point in _entry_points(PROVIDERS) if point.name == scheme]
    if not points:
        raise _not_found(scheme)
    if len(points) > 1:
        raise _claimed_twice(scheme, points)
    loaded = _load_plugin(points[0], scheme)
    if not (isinstance(loaded, type) and hasattr(loaded, "from_uri") and hasattr(loaded, "from_config")):
        distribution, value = _distribution_name(points[0]), points[0].value
        raise ConfigurationError(f"the {scheme} provider of {distribution} is not a SecretProvider: {value}")
    _check_complete(loaded, points[0], scheme)
    return loaded


def _check_complete(plugin: type, point: EntryPoint, scheme: str, kind: str = "provider") -> None:
    """Reject a plugin without a member that it must have; otherwise the error would be about the address."""
    members = set(getattr(plugin, "__abstractmethods__", ()))
    if not isinstance(getattr(plugin, "scheme", None), str):
        members.add("scheme")
    facts = "guarantees" if kind == "provider" else "facts"
    if callable(getattr(plugin, facts, None)):  # a method, where a property is needed
        members.add(f"the property {facts}")
    lacking = ", ".join(sorted(members))
    if lacking:
        distribution = _distribution_name(point)
        raise ConfigurationError(
            f"the {scheme} {kind} of {distribution} lacks {lacking}: {point.value}",
            hint=f"Report this error to the authors of {distribution}.",
        )


def _claimed_twice(scheme: str, points: list[EntryPoint]) -> ConfigurationError:
    names = " and ".join(f"{_distribution_name(point)} ({point.value})" for point in points)
    return ConfigurationError(
        f"the scheme {scheme!r} is provided by two packages: {names}", hint="Uninstall one of the two packages."
    )


def _load_plugin(point: EntryPoint, scheme: str, kind: str = "provider") -> Any:
    distribution = _distribution_name(point)
    try:
        return point.load()
    except ImportError as error:
        wanted = f"'goatherd[{_EXTRAS.get(scheme, scheme)}]'" if distribution == _OURS else distribution
        raise MissingExtraError(
            f"the {scheme} {kind} needs a library that is not installed: {error.name or error}",
            hint=f"Install it: pip install {wanted}",
        ) from error
    except (Exception, SystemExit) as error:  # a third-party module may exit, for example in a licence check
        raise ConfigurationError(
            f"the {scheme} {kind} of {distribution} is broken: {type(error).__name__}: {error}",
            hint=f"Report this error to the authors of {distribution}.",
        ) from error


def _not_found(scheme: str) -> PluginNotFoundError:
    known = ", ".join(provider_schemes()) or "none: goatherd itself is not installed"
    import difflib

    close = difflib.get_close_matches(scheme, provider_schemes(), n=1, cutoff=0.5)
    hint = f"Did you mean {close[0]!r}? Otherwise install the package that provides this scheme." if close else None
    return PluginNotFoundError(f"no provider for the scheme {scheme!r}; known schemes: {known}", hint=hint)
