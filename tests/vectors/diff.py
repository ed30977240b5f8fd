"""The changes between two versions of an item, in the form of an edit. Pure.

The changes are those of docs/reference/goatdb-formats.md#edits, found by its #equality.

Rich text is not diffed yet. Goatherd's server writes full commits; readers of GoatDB accept both.
"""

from __future__ import annotations

from typing import Any

from goatherd.errors import EncodeError
from goatherd.wire.encoders import encode_plain
from goatherd.wire.equality import core_equal, set_remove
from goatherd.wire.items import DELETE, INSERT, as_json, encode_field
from goatherd.wire.javascript_values import UNDEFINED, JSMap, JSSet
from goatherd.wire.schema import Data, Schema


def changed_fields(old: Data, new: Data, schema: Schema) -> list[str]:
    """Return the fields that differ by GoatDB's field equality: removed ones first, then in the order of `new`."""
    known = [name for name in (*old, *new) if name in schema.by_name]
    names = [name for name in known if name not in new] + [name for name in new if name in schema.by_name]
    return [name for name in names if not _field_equal(old.get(name, UNDEFINED), new.get(name, UNDEFINED))]


def diff_data(old: Data, new: Data, schema: Schema) -> dict[str, list[dict[str, Any]]]:
    """Return the changes that turn `old` into `new`, unwrapped and with values as one encoder level leaves them.

    Raises:
        EncodeError: Rich text changed, or `new` is not valid.
    """
    if problem := schema.problem(new):
        raise EncodeError(problem)
    changes: dict[str, list[dict[str, Any]]] = {}
    for name, field in schema.by_name.items():
        before, after = old.get(name, UNDEFINED), new.get(name, UNDEFINED)
        if before is after is UNDEFINED:
            continue
        if field.type == "richtext":
            if not _field_equal(before, after):
                raise EncodeError("rich text is not diffed yet")
            continue
        parts = _diff_field(before, after)
        if parts:
            changes[name] = [
                {
                    "changeType": "fd",
                    "operation": operation,
                    "vType": field.type,
                    "value": encode_field(value, field.type),
                }
                for operation, value in parts
            ]
    return changes


def wrap_changes(changes: dict[str, list[dict[str, Any]]], *, alone: bool = False) -> dict[str, Any]:
    """Return the changes in the form that an edit has.

    Args:
        alone: Leave what one encoder level does not convert, as GoatDB does where it measures the length.
    """
    wrapped: dict[str, Any] = {}
    for name, parts in changes.items():
        wrapped[name] = [
            {"__t": "E", "__v": part if alone else {**part, "value": as_json(encode_plain(part["value"]))}}
            for part in parts
        ]
    return wrapped


def _field_equal(old: Any, new: Any) -> bool:
    if old is UNDEFINED or new is UNDEFINED:
        return old is new
    return core_equal(old, new)


def _diff_field(old: Any, new: Any) -> list[tuple[int, Any]]:
    if old is UNDEFINED:
        return [(INSERT, new)]
    if new is UNDEFINED:
        return [(DELETE, old)]
    if isinstance(old, JSSet) and isinstance(new, JSSet):
        return [part for part in ((INSERT, set_remove(new, old)), (DELETE, set_remove(old, new))) if len(part[1])]
    if isinstance(old, JSMap) and isinstance(new, JSMap):
        changed = [key for key in old if key in new and not core_equal(old[key], new[key])]
        added = [key for key in new if key not in old]
        inserted = JSMap({key: new[key] for key in changed + added})
        removed = JSMap({key: item for key, item in old.items() if key not in new})
        return [part for part in ((INSERT, inserted), (DELETE, removed)) if part[1]]
    return [] if core_equal(old, new) else [(INSERT, new)]
