"""Read and write the JSON objects in an identity document, each by one declaration of its members.

A subclass of `JSONObject` is a dataclass whose fields are made by `json_member`. This names the member of the JSON, the
function that reads and checks the member, and the one that writes it. Members that this version of Goatherd does not
know are written back unchanged. Pure. Errors name positions (``roots[1]``) and quote nothing.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, Final, Self, TypeVar

from goatherd.errors import MalformedIdentityError
from goatherd.times import read_iso

# 63, since a private key's text has 64 characters: it can never be taken for an id and then be shown.
_ID: Final = re.compile(r"[A-Za-z0-9._~-]{1,63}")
_ISO: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,3})?Z")
_MAX_TEXT: Final = 500
_MAX_SIGNATURE: Final = 4096
_SAFE_INTEGER: Final = 2**53 - 1

T = TypeVar("T")


def json_member(
    name: str,
    read: Callable[[Any, str], Any],
    write: Callable[[Any], Any] | None = None,
    *,
    default: Any = MISSING,
    is_nullable: bool = False,
) -> Any:
    """Return a field of a `JSONObject`. A value that is None or False is not written.

    Args:
        name: The member's name in the JSON.
        read: Checks the JSON value and returns the field's value; an error begins with the position, its second
            argument.
        write: Returns the JSON value of the field's value; None to write the field's value as it is.
        default: The field's value if the JSON has no such member; such a member is required if this is not given.
        is_nullable: Whether null in the JSON means the same as no member.
    """
    return field(default=default, metadata={"name": name, "read": read, "write": write, "is_nullable": is_nullable})


@dataclass(frozen=True, slots=True, kw_only=True)
class JSONObject:
    """A JSON object in an identity document.

    Attributes:
        extra: Members of the JSON that this version of Goatherd does not know.
    """

    extra: Mapping[str, Any] = field(default_factory=dict, repr=False, hash=False)

    @classmethod
    def from_json(cls, value: Any, where: str) -> Self:
        """Read the object from JSON.

        Args:
            value: The JSON value.
            where: The position in the document, for errors.

        Raises:
            MalformedIdentityError: A member is missing or malformed; the message names its position.
        """
        given = read_object(value, where)
        known = _members_of(cls)
        found: dict[str, Any] = {}
        for name, one in known.items():
            is_there = name in given and not (one.metadata["is_nullable"] and given[name] is None)
            if is_there or one.default is MISSING:
                found[one.name] = one.metadata["read"](given.get(name), f"{where}.{name}")
        return cls(**found, extra={name: value for name, value in given.items() if name not in known})

    def to_json(self) -> dict[str, Any]:
        written: dict[str, Any] = {}
        for name, one in _members_of(type(self)).items():
            value, write = getattr(self, one.name), one.metadata["write"]
            if value is not None and value is not False:
                written[name] = value if write is None else write(value)
        return {**written, **self.extra}


def _members_of(kind: type[JSONObject]) -> dict[str, Field[Any]]:
    return {one.metadata["name"]: one for one in fields(kind) if one.metadata}


def read_object(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise MalformedIdentityError(f"{where} must be a JSON object")
    return value


def read_text(value: Any, where: str, *, limit: int = _MAX_TEXT) -> str:
    if not isinstance(value, str) or len(value) > limit:
        raise MalformedIdentityError(f"{where} must be a string of at most {limit} characters")
    return value


def read_signature(value: Any, where: str) -> str:
    return read_text(value, where, limit=_MAX_SIGNATURE)


def read_id(value: Any, where: str) -> str:
    if not isinstance(value, str) or not _ID.fullmatch(value):
        raise MalformedIdentityError(f"{where} is not an id")
    return value


def read_number(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _SAFE_INTEGER:
        raise MalformedIdentityError(f"{where} must be a non-negative integer")
    return value


def read_flag(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise MalformedIdentityError(f"{where} must be true or false")
    return value


def read_time(value: Any, where: str) -> int:
    """Read a timestamp as milliseconds since 1970."""
    if isinstance(value, str) and _ISO.fullmatch(value):
        with contextlib.suppress(ValueError):
            return read_iso(value)
    raise MalformedIdentityError(f"{where} must be a timestamp such as 2026-01-31T12:00:00.000Z")


def read_list(value: Any, where: str) -> Iterator[tuple[Any, str]]:
    """Yield each item of a JSON list, with the name by which an error names the item."""
    if not isinstance(value, list):
        raise MalformedIdentityError(f"{where} must be a list")
    yield from ((item, f"{where}[{index}]") for index, item in enumerate(value))


def read_each(read: Callable[[Any, str], T]) -> Callable[[Any, str], tuple[T, ...]]:
    """Return a function that reads a JSON list, and each of its items by `read`."""
    return lambda value, where: tuple(read(item, position) for item, position in read_list(value, where))


read_ids = read_each(read_id)
