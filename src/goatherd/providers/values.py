"""The types that all stores share: secret bytes, labels, version ids, descriptions of versions, and roles.

A description of a version has no field for the value. Secret bytes are masked when printed; `SecretBytes.reveal`
is the only access to them, so a search for that name finds all code that handles the bytes.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Literal, NoReturn, final, get_args

from goatherd.errors import ConfigurationError

ORG_FIELD: Final = "{org}"
COMPONENT = re.compile(r"[A-Za-z0-9._-]{1,200}")
# The narrowest rule among the platforms (Google's aliases), so that a label means the same everywhere.
_LABEL = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,62}")
_RESERVED_LABELS = frozenset({"latest", "new"})


@final
class Label(str):
    """A movable name for one version of a secret, such as ``current``. A `VersionId` with the same text is no label."""

    __slots__ = ()


@final
class VersionId(str):
    """The store's own id of a version of a secret. Only the provider that made the id knows what it means."""

    __slots__ = ()


CURRENT: Final = Label("current")
STABLE: Final = Label("stable")


class VersionState(StrEnum):
    """Whether the value of a secret's version can be read."""

    ENABLED = "enabled"
    DISABLED = "disabled"
    DESTROYING = "destroying"
    """Its destruction was interrupted: it cannot be read, but the store may still hold the value. Destroy it again."""
    DESTROYED = "destroyed"


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretVersion:
    """The description of one version of a secret. It does not contain the value, so that a log line cannot leak it.

    Attributes:
        id: The store's own id of the version.
        labels: The labels that point at the version, including those of other tools as the platform spells them, which
            `SecretProvider.label` may not accept.
        created_ms: When the version was written, in milliseconds since 1970, by the store's clock.
        state: Whether the version's value can be read.
        is_leftover: Whether an interrupted change left the version: the value is in the store, but Goatherd's record
            lacks the version or lists it as destroyed. A leftover version can be destroyed, and read by its id unless
            it is disabled; it cannot get a label. A process that is still writing may have added it.
    """

    id: VersionId
    labels: frozenset[Label] = frozenset()
    created_ms: int
    state: VersionState = VersionState.ENABLED
    is_leftover: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretValue:
    """One version of a secret: its description and its value."""

    version: SecretVersion
    value: SecretBytes


def is_label(text: str) -> bool:
    return _LABEL.fullmatch(text) is not None and text not in _RESERVED_LABELS


def check_label(text: str) -> Label:
    """Check that `text` is valid as a label of a secret's version, and return it as a `Label`.

    Raises:
        ConfigurationError: The text is not a letter followed by up to 62 of ``[A-Za-z0-9_-]``, or is ``latest`` or
            ``new``, which some stores reserve.
    """
    if isinstance(text, VersionId) or not is_label(text):
        raise ConfigurationError(
            f"{str(text)!r} is not a valid label",
            hint="A label is a letter, then up to 62 of A-Z a-z 0-9 _ -. The labels latest and new are reserved.",
        )
    return Label(text)


def format_label(label: str) -> str:
    """Return a label of a secret's version in a form to print: on one line and quoted for a POSIX shell.

    Args:
        label: Any label in a store; one that another tool has set may contain spaces or control characters.
    """
    if label.isascii() and label.isalnum():
        return label
    if label.isprintable():
        import shlex  # not for the labels of ours

        return shlex.quote(label)
    escaped = "".join(
        one if one.isprintable() and one not in "\\'" else "".join(f"\\{byte:03o}" for byte in one.encode())
        for one in label
    )
    return f"$'{escaped}'"


def format_labels(labels: Iterable[str]) -> str:
    """Return labels of a secret's version in a form to print, sorted and separated by spaces; see `format_label`."""
    return " ".join(format_label(label) for label in sorted(labels))


def secret_id_for(template: str, org: str) -> str:
    """Return the secret id of one organization: `template` with ``{org}`` replaced by the organization's id.

    Raises:
        ConfigurationError: The organization's id has a character that is not in ``[A-Za-z0-9._-]``, such as a slash,
            which could lead to another secret.
    """
    # SECURITY: an organization named `../other` must not reach another secret
    # (tests/unit/providers/test_base.py::test_an_organization_cannot_step_out_of_its_place).
    if not COMPONENT.fullmatch(org) or org.strip(".") == "":
        raise ConfigurationError(f"organization {org!r} cannot be part of a secret id: use A-Z a-z 0-9 . _ - only")
    return template.replace(ORG_FIELD, org)


@final
class SecretBytes:
    """The value of a secret, masked in ``repr``, ``str`` and format strings; it cannot be pickled or joined to bytes.

    Comparing values of equal length takes constant time.
    """

    __slots__ = ("_value",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, value: bytes | bytearray | memoryview) -> None:
        # Not bytes(value): that makes zeros of a number.
        try:
            self._value = bytes(memoryview(value))
        except TypeError:
            raise TypeError(f"the value of a secret must be bytes, not {type(value).__name__}") from None

    def reveal(self) -> bytes:
        """Return the secret value as plain bytes."""
        return self._value

    @property
    def size(self) -> int:
        """The length of the secret value in bytes."""
        return len(self._value)

    # SECURITY: Python has many ways to show an object; tests/unit/providers/test_values.py checks that only `reveal`
    # shows the value.
    def __repr__(self) -> str:
        return "SecretBytes(<hidden>)"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return repr(self)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SecretBytes):
            return NotImplemented
        return hmac.compare_digest(self._value, other._value)

    def __copy__(self) -> SecretBytes:
        return self

    def __deepcopy__(self, memo: object) -> SecretBytes:
        return self

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a SecretBytes cannot be pickled")

    def __getstate__(self) -> NoReturn:
        raise TypeError("a SecretBytes cannot be pickled")


Role = Literal["server", "rotator", "admin"]
"""``server`` reads the identity, ``rotator`` also changes it, ``admin`` also creates and deletes it."""


def check_role(role: str) -> None:
    """Check the name of a role that `goatherd policy` prints permissions for: ``server``, ``rotator`` or ``admin``.

    Raises:
        ConfigurationError: The role is unknown.
    """
    if role not in get_args(Role):
        raise ConfigurationError(f"there is no role {role!r}", hint=f"Roles: {', '.join(get_args(Role))}.")
