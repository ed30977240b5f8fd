"""Schemas of items, the markers by which a commit names a schema (such as ``sessions/1``), and the registry of schemas.

Pure. The format is in docs/reference/goatdb-formats.md#schemas. GoatDB never transmits schemas, and a reader that does
not know the schema of a commit cannot distinguish dates from numbers. Goatherd stores such a commit as sent; GoatDB
drops it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from goatherd.wire.javascript_values import JSDate, JSMap, JSSet, parse_integer

FieldType = Literal["string", "number", "boolean", "date", "set", "map", "richtext"]
FIELD_TYPES: Final[frozenset[str]] = frozenset({"string", "number", "boolean", "date", "set", "map", "richtext"})

Data = dict[str, Any]
"""The fields of an item as JavaScript values (`goatherd.wire.json`), in insertion order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemaField:
    """One field of a schema of GoatDB items.

    Attributes:
        name: The name of the field.
        type: The field's type, one of `FIELD_TYPES`.
        required: Whether an item without the field is invalid.
        default: Computes the value of an absent field from the item's data; None if there is no default.
        validate: A function, given by the schema's author, that checks a value; None if there is no such check.
    """

    name: str
    type: FieldType
    required: bool = False
    default: Callable[[Data], Any] | None = None
    validate: Callable[[Any], bool] | None = None


IS_DELETED: Final = SchemaField(name="isDeleted", type="boolean")


@dataclass(frozen=True, slots=True, kw_only=True)
class Schema:
    """A schema of GoatDB items: a namespace, a version and fields.

    Every schema also has the field `isDeleted`, as its last.

    Attributes:
        ns: The schema's namespace; None only for the null schema.
        version: The schema's version, an integer of 1 or more.
        fields: The fields, in the order of their declaration.
        upgrade: Converts data of the previous version to this one; None if no conversion is needed.
    """

    ns: str | None
    version: int
    fields: tuple[SchemaField, ...]
    upgrade: Callable[[Data], Data] | None = None
    by_name: Mapping[str, SchemaField] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        by_name = {each.name: each for each in (*self.fields, IS_DELETED)}
        object.__setattr__(self, "by_name", by_name)

    @property
    def marker(self) -> str:
        """The string by which a commit names the schema: ``ns/version``, or ``null``."""
        return "null" if self.ns is None else f"{self.ns}/{self.version}"

    def problem(self, data: Data) -> str | None:
        """Return the error that GoatDB's validation reports for an item's data; None if the data are valid."""
        for each in self.by_name.values():
            if each.required and each.name not in data:
                return f'Missing required field "{each.name}"'
        for name, value in data.items():
            known = self.by_name.get(name)
            if known is None:
                return f"Unknown field {name}"
            if not _has_type(value, known.type):
                return f'Invalid value for field "{name}". Expected {known.type}'
            if known.validate is not None and not known.validate(value):
                return f'Field "{name}" failed custom schema validation'
        return None


def _has_type(value: Any, kind: str) -> bool:
    if kind == "string":
        return isinstance(value, str)
    if kind == "number":
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind == "boolean":
        return isinstance(value, bool)
    if kind == "date":
        return isinstance(value, JSDate)
    if kind == "set":
        return isinstance(value, JSSet)
    if kind == "map":
        return isinstance(value, JSMap)
    root = value.get("root") if type(value) is dict else None
    return isinstance(root, dict) and isinstance(root.get("children"), list)


NULL_SCHEMA: Final = Schema(ns=None, version=0, fields=())
SESSIONS: Final = Schema(
    ns="sessions",
    version=1,
    fields=(
        SchemaField(name="id", type="string", required=True),
        SchemaField(name="publicKey", type="string", required=True),
        SchemaField(name="expiration", type="date", required=True),
        SchemaField(name="owner", type="string"),
    ),
)
USER_STATS: Final = Schema(
    ns="user-stats",
    version=1,
    fields=(SchemaField(name="firstLoggedIn", type="date"), SchemaField(name="lastLoggedIn", type="date")),
)


class Registry:
    """The schemas that a reader of commits knows. If a schema is registered twice, the first one is kept."""

    def __init__(self, schemas: Iterable[Schema] = ()) -> None:
        self._versions: dict[str, dict[int, Schema]] = {}
        self._by_marker: dict[str, Schema] = {}
        for schema in (SESSIONS, USER_STATS, *schemas):
            self.register(schema)

    def register(self, schema: Schema) -> None:
        """Add a schema to the registry.

        Raises:
            ValueError: The schema is the null schema, or its version is below 1.
        """
        if schema.ns is None or schema.version < 1:
            raise ValueError("a schema must have a namespace and a version of 1 or more")
        self._versions.setdefault(schema.ns, {}).setdefault(schema.version, schema)
        if "/" not in schema.ns:
            self._by_marker.setdefault(schema.marker, schema)

    @property
    def schemas(self) -> list[Schema]:
        """Every registered schema, sorted by namespace and version."""
        return [versions[number] for _, versions in sorted(self._versions.items()) for number in sorted(versions)]

    def get(self, ns: str | None, version: int = 0) -> Schema | None:
        """Return the schema with this namespace and version; version 0 means the latest.

        The result is None if the registry has no such schema.
        """
        if ns is None:
            return NULL_SCHEMA
        versions = self._versions.get(ns)
        if not versions:
            return None
        return versions[max(versions)] if version == 0 else versions.get(version)

    def from_marker(self, marker: Any) -> Schema | None:
        """Return the schema that a marker such as ``sessions/1`` names; None if the registry has no such schema.

        COMPAT: a version that is missing, not a number or 0 selects the latest; further parts are ignored.
        """
        if marker == "null":
            return NULL_SCHEMA
        if not isinstance(marker, str):
            return None
        if marker in self._by_marker:
            return self._by_marker[marker]
        ns, _, rest = marker.partition("/")
        if ns not in self._versions:
            return None
        version = parse_integer(rest.partition("/")[0])
        if math.isnan(version):
            return self.get(ns)
        return self.get(ns, int(version)) if math.isfinite(version) else None


BUILTIN: Final = Registry()
