"""Types of a store's values: secret bytes, labels, version ids, and descriptions of versions.

A description of a version has no field for the value. Secret bytes are masked when printed; `SecretBytes.reveal`
is the only access to them, so a search for that name finds all code that handles the bytes.
"""

from __future__ import annotations

import hmac
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NoReturn, final

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
    """A store's own id of an immutable version. Opaque: only the provider that made the id knows its order."""

    __slots__ = ()


CURRENT: Final = Label("current")
STABLE: Final = Label("stable")


class VersionState(StrEnum):
    """Whether a version's value can be read."""

    ENABLED = "enabled"
    DISABLED = "disabled"
    DESTROYED = "destroyed"


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretVersion:
    """The description of one version. It has no value field, so that a log line cannot leak the value.

    Attributes:
        id: The store's own id.
        labels: The labels that point at the version, including those of other tools as the platform spells them, which
            `SecretProvider.label` may not accept.
        created_ms: Milliseconds since 1970, by the store's clock.
        state: Whether its value can be read.
        is_leftover: Whether an interrupted change left the version: the value is in the store, but Goatherd's record
            lacks the version or lists it as destroyed. A leftover version can be destroyed, and read by its id unless
            it is disabled; it cannot get a label. It may belong to a process that is still writing.
    """

    id: VersionId
    labels: frozenset[Label] = frozenset()
    created_ms: int
    state: VersionState = VersionState.ENABLED
    is_leftover: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretValue:
    """One version with its value."""

    version: SecretVersion
    value: SecretBytes


def is_label(text: str) -> bool:
    return _LABEL.fullmatch(text) is not None and text not in _RESERVED_LABELS


def check_label(text: str) -> Label:
    """Return `text` as a label.

    Raises:
        ConfigurationError: The text is not a letter followed by up to 62 of ``[A-Za-z0-9_-]``, or is ``latest`` or
            ``new``, which some stores reserve.
    """
    if isinstance(text, VersionId) or not is_label(text):
        raise ConfigurationError(
            f"not a label: {str(text)!r}",
            hint="A label is a letter, then up to 62 of A-Z a-z 0-9 _ -. The labels latest and new are reserved.",
        )
    return Label(text)


def shown_label(label: str) -> str:
    """Return a label for humans, on one line and quoted for a POSIX shell.

    Args:
        label: Any label in a store; one that another tool has set may contain spaces or control characters.
    """
    if label.isprintable():
        return shlex.quote(label)
    escaped = "".join(
        one if one.isprintable() and one not in "\\'" else "".join(f"\\{byte:03o}" for byte in one.encode())
        for one in label
    )
    return f"$'{escaped}'"


def shown_labels(labels: Iterable[str]) -> str:
    """Return labels for humans, sorted and separated by spaces; see `shown_label`."""
    return " ".join(shown_label(label) for label in sorted(labels))


def secret_id_for(template: str, org: str) -> str:
    """Return `template` with ``{org}`` replaced by the organization's id.

    Raises:
        ConfigurationError: The id is not one component of ``[A-Za-z0-9._-]``, so it could lead to another secret.
    """
    # SECURITY: an organization named `../other` must not reach another secret
    # (tests/unit/providers/test_base.py::test_an_organization_cannot_step_out_of_its_place).
    if not COMPONENT.fullmatch(org) or org.strip(".") == "":
        raise ConfigurationError(f"organization {org!r} cannot be part of a secret id: use A-Z a-z 0-9 . _ - only")
    return template.replace(ORG_FIELD, org)


@final
class SecretBytes:
    """Secret bytes, masked in ``repr``, ``str`` and format strings; they cannot be pickled or joined to bytes.

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
        """Return the bytes."""
        return self._value

    @property
    def size(self) -> int:
        """The length in bytes."""
        return len(self._value)

    # SECURITY: tests/unit/providers/test_values.py tries every way out that Python offers.
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
