"""Parse the addresses of secrets in all stores: URIs, and GoatDB's ``cloudConfig`` (the same address as an object).

Pure: it reads no file and connects to nothing. This module defines the form that all addresses share; each store's
`address` module defines what a host, a path or an option means for that store. An unknown, empty or repeated option is
an error, and no error quotes the URI. An address never holds a secret, because addresses are logged.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

from goatherd.errors import ConfigurationError
from goatherd.providers.values import ORG_FIELD

_SECRETS: Final = frozenset({"token", "secret-id", "password"})


class Option(NamedTuple):
    """One option in the address of a secret: ``?name=value`` in a URI, or a member of GoatDB's ``cloudConfig``.

    Attributes:
        config: The option's name in ``cloudConfig``; None if it is the same as in a URI, empty if the option is not
            allowed there.
        choices: The allowed values; empty if any string is allowed.
        is_number: Whether the value may also be an integer in ``cloudConfig``.
    """

    config: str | None = None
    choices: tuple[str, ...] = ()
    is_number: bool = False


class AddressForm(NamedTuple):
    """The syntax of the addresses of secrets in one kind of store, as a URI or as GoatDB's ``cloudConfig``.

    Attributes:
        scheme: The URI scheme.
        example: The hint of errors, which shows a valid address.
        options: The allowed options, by their names in a URI.
        host: The member of ``cloudConfig`` that stands for the URI's host, such as ``project``. A member ``region`` is
            always allowed there, and ignored unless it is the host or an option.
        missing: The error message for a URI without a path.
        subject: What the path of the URI names, such as a secret; used in error messages.
    """

    scheme: str
    example: str = ""
    options: Mapping[str, Option] = MappingProxyType({})
    host: str = "region"
    missing: str = "it names no secret"
    subject: str = "a secret"

    def error(self, problem: str, *, hint: str | None = None) -> ConfigurationError:
        """Return the error for a URI that does not have this form; the hint is `hint` or else the example."""
        return ConfigurationError(
            f"invalid {self.scheme} address of {self.subject}: {problem}", hint=hint or self.example
        )


class ParsedAddress(NamedTuple):
    """The parts of a secret's address after parsing: host, path and options.

    Attributes:
        host: The text between ``//`` and the path of the URI, as written, or the member of ``cloudConfig`` that stands
            for it; may be empty.
        path: The path of the URI without its leading slash, decoded, or the member ``secretId``; never empty.
        options: The values of the options by name. All are checked: the store's `AddressForm` allows them.
    """

    host: str
    path: str
    options: Mapping[str, str]


def parse_address(form: AddressForm, given: str | Mapping[str, object]) -> ParsedAddress:
    """Parse the address of a secret, a URI or GoatDB's ``cloudConfig``, by the syntax `form` of its store.

    Raises:
        ConfigurationError: As for `parse_uri` and `parse_config`.
    """
    return parse_uri(form, given) if isinstance(given, str) else parse_config(form, given)


def parse_uri(form: AddressForm, uri: str) -> ParsedAddress:
    """Parse the URI of a secret by the syntax `form` of its store, and return host, path and options.

    Raises:
        ConfigurationError: The URI does not have this syntax, or an option is unknown, empty, repeated or not allowed.
    """
    parts = urlsplit(uri)
    if parts.scheme != form.scheme:
        raise form.error(f"its scheme is {parts.scheme[:40]!r}, not {form.scheme!r}")
    if parts.fragment:
        raise form.error("it has a fragment")
    options: dict[str, str] = {}
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name in options:
            raise ConfigurationError(f"{form.scheme} address: the option {name!r} is given twice")
        options[name] = value
    check_options(form, options)
    path = unquote(parts.path.removeprefix("/"))
    if not path:
        raise form.error(form.missing)
    return ParsedAddress(host=parts.netloc, path=path, options=options)


def parse_config(form: AddressForm, config: Mapping[str, object]) -> ParsedAddress:
    """Parse GoatDB's ``cloudConfig``, such as ``{"provider": …, "secretId": …}``, for a store whose syntax is `form`.

    Raises:
        ConfigurationError: A member is missing, unknown or not a string, or an option has a value that is not allowed.
    """
    names = {name if one.config is None else one.config: name for name, one in form.options.items()}
    names.pop("", None)
    known = {"secretId", "region", form.host, *names}
    unknown = sorted(set(config) - {"provider", *known})
    if unknown:
        raise ConfigurationError(
            f"cloudConfig: provider {form.scheme!r} has no option {unknown[0]!r}",
            hint=f"Known options: {', '.join(sorted(known))}.",
        )
    example = f'Such as {{"provider": "{form.scheme}", "secretId": "goatdb/root"}}.'
    texts: dict[str, str] = {}
    for name in ("secretId", *sorted(known - {"secretId"})):
        value = config.get(name)
        if type(value) is int and name in names and form.options[names[name]].is_number:
            value = str(value)
        if value is not None and (not isinstance(value, str) or not value):
            raise ConfigurationError(f"cloudConfig: {name} must be a string", hint=example)
        if isinstance(value, str):
            texts[name] = value
    if "secretId" not in texts:
        raise ConfigurationError("cloudConfig: secretId must be a string", hint=example)
    options = {name: texts[theirs] for theirs, name in names.items() if theirs in texts}
    check_options(form, options)
    return ParsedAddress(host=texts.get(form.host, ""), path=texts["secretId"], options=options)


def uri_of_config(scheme: str, config: Mapping[str, object]) -> str:
    """Return the URI of a ``cloudConfig`` that names nothing but a secret: ``scheme:///secretId``. A region is ignored.

    Raises:
        ConfigurationError: A member is missing, unknown or not a string.
    """
    return f"{scheme}:///{parse_config(AddressForm(scheme=scheme), config).path.removeprefix('/')}"


def check_options(form: AddressForm, options: Mapping[str, str]) -> None:
    """Check that a store's address has only known options with allowed values.

    Raises:
        ConfigurationError: An option is unknown, empty, or has a value that is not allowed.
    """
    for name, value in options.items():
        # SECURITY: addresses are logged, so an option that holds a secret is rejected
        # (tests/unit/providers/vault/test_address.py).
        if name in _SECRETS:
            raise ConfigurationError(
                f"{form.scheme} address: {name!r} must not be part of it, because addresses are logged",
                hint="Give this value in an environment variable or a file.",
            )
        if name not in form.options:
            known = ", ".join(sorted(form.options)) or "none"
            raise ConfigurationError(
                f"{form.scheme} address: unknown option {name[:40]!r}", hint=f"Known options: {known}."
            )
        choices = form.options[name].choices
        if not value or (choices and value not in choices):
            raise ConfigurationError(
                f"{form.scheme} address: {name} must be {' or '.join(choices) or 'a string that is not empty'}",
                hint=f"Write {' or '.join(f'{name}={one}' for one in choices or ('VALUE',))} in the address.",
            )


def check_part(value: str | None, pattern: re.Pattern[str], what: str, hint: str) -> None:
    """Check one part of an address, such as a region; None means that it is not given.

    Raises:
        ConfigurationError: The part does not match the pattern. `what` names the part in the message.
    """
    if value is not None and not pattern.fullmatch(value):
        raise ConfigurationError(f"{value[:100]!r} is not a valid {what}", hint=hint)


def split_path(path: str, *, example: str) -> tuple[str, str]:
    """Split the absolute path of a secret into the store's base directory and the secret id.

    The id is the last component. If a component contains ``{org}``, the id begins at the first such component instead,
    so that all organizations share the base directory.

    Raises:
        ConfigurationError: The path is not absolute, or a component is empty, ``.`` or ``..``. The hint is `example`.
    """
    components = path.split("/")[1:]
    if not path.startswith("/") or not all(components) or {".", ".."} & set(components):
        raise ConfigurationError(f"{path[:200]!r} is not an absolute path to a secret", hint=example)
    split = next((i for i, component in enumerate(components) if ORG_FIELD in component), len(components) - 1)
    return "/" + "/".join(components[:split]), "/".join(components[split:])


def path_of_uri(uri: str, *, hosts: tuple[str, ...] = ("",), example: str) -> str:
    """Return the decoded path of a URI that names a file or a directory and has no other parts.

    Raises:
        ConfigurationError: The URI has options, a fragment, or a host that is not one of `hosts`. The hint is
            `example`.
    """
    parts = urlsplit(uri)
    if parts.netloc not in hosts or parts.query or parts.fragment:
        raise ConfigurationError(f"a {parts.scheme} address must have a path and nothing else", hint=example)
    return unquote(parts.path)
