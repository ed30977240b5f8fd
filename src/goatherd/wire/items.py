"""Decode and encode items and edits, the contents of commits (docs/reference/goatdb-formats.md#records and #edits).

Pure. A *record* is an item's JSON (``s``, ``d``, ``n``, ``cs``); its data are JavaScript values once decoded. If the
registry does not know the schema, the record is kept unchanged, because dates and rich text cannot be recognized.
Checksums and patches are the same nevertheless: they treat a date as a number, and recognize rich text by its shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from goatherd.errors import DecodeError, EncodeError
from goatherd.wire.encoders import (
    Decoder,
    Encoded,
    check_members,
    encode_cyclical,
    encode_plain,
    is_native,
    keeps_rich_text_element,
    refuse_encoded,
)
from goatherd.wire.equality import MAX_PATCH_WORK, Work, decoded_equal, set_add, set_remove
from goatherd.wire.hashing import item_checksum, value_text
from goatherd.wire.javascript_values import UNDEFINED, JSDate, JSMap, JSSet, date_from_json, is_truthy, utf16_characters
from goatherd.wire.json import parse_json, to_json
from goatherd.wire.richtext import rich_text_checksum
from goatherd.wire.schema import BUILTIN, FIELD_TYPES, NULL_SCHEMA, Data, Registry, Schema

Record = dict[str, Any]

INSERT, DELETE = 1, -1


# --- data of an item ----------------------------------------------------------------------------------------------


def decode_data(encoded: Any, schema: Schema, *, like_goatdb: bool = False) -> Data:
    """Decode the encoded fields of an item (its member ``d``): those that are present, in the schema's order.

    Args:
        like_goatdb: Whether to accept a set field that does not hold a set, as GoatDB does until it merges the field.

    Raises:
        DecodeError: GoatDB cannot read one of the fields.
    """
    data: Data = {}
    if not isinstance(encoded, dict):
        return data  # COMPAT: an item without data, or with another value there, has no fields.
    decoder = Decoder()
    for field in schema.by_name.values():
        if field.name in encoded:
            value = _decode_field(encoded[field.name], field.type, decoder, like_goatdb)
            if value is not UNDEFINED:
                data[field.name] = value
    return data


def _decode_field(value: Any, kind: str, decoder: Decoder, like_goatdb: bool = False) -> Any:
    if kind == "date" and isinstance(value, int | float) and not isinstance(value, bool):
        return date_from_json(value)
    if kind == "set":
        return _decode_set(value, decoder, like_goatdb)
    decoded = refuse_encoded(decoder.decode(value))
    return _as_map(decoded) if kind == "map" else decoded


def _decode_set(value: Any, decoder: Decoder, like_goatdb: bool) -> Any:
    if isinstance(value, list):
        return JSSet([_legacy_element(item) for item in value])
    decoded = refuse_encoded(decoder.decode(value))
    if not isinstance(decoded, JSSet) and not like_goatdb:
        # SECURITY: a set field that holds no set is rejected, because GoatDB's servers and clients throw when they
        # merge it (tests/unit/wire/test_commit.py).
        raise DecodeError("a set field holds no set")
    return decoded


def _legacy_element(element: Any) -> Any:
    if isinstance(element, str):
        return parse_json(element)
    if element is None or isinstance(element, bool | int | float):
        return element
    raise DecodeError("an element of a set in the old form (an array) must be a string of JSON or a scalar")


_MAX_MAP_TEXT: Final = 1000


def _as_map(value: Any) -> JSMap:
    """Return a Map of the entries that JavaScript's ``Object.entries`` lists for a value."""
    if value is None or value is UNDEFINED:
        raise DecodeError("a map field holds no map")
    if isinstance(value, str):
        # SECURITY: GoatDB turns a string into a Map with one entry for each character. That is expensive, and no
        # application does it on purpose, so the length is limited (tests/unit/wire/test_commit.py).
        if len(value) > _MAX_MAP_TEXT:
            raise DecodeError(f"a map field holds a string of more than {_MAX_MAP_TEXT} characters")
        return JSMap(utf16_characters(value))
    if isinstance(value, list):
        return JSMap({str(index): item for index, item in enumerate(value)})
    return JSMap(value) if isinstance(value, dict) else JSMap()


def encode_data(data: Data, schema: Schema) -> dict[str, Any]:
    """Encode the fields of an item, in the order of `data`.

    Raises:
        EncodeError: A field is not in the schema, or GoatDB cannot write a value.
    """
    fields: dict[str, Any] = {}
    flat = True
    for name, value in data.items():
        field = schema.by_name.get(name)
        if field is None:
            raise EncodeError(f"the schema {schema.marker} has no field {name!r}")
        if value is UNDEFINED:
            continue
        encoded = encode_field(value, field.type)
        flat = flat and type(encoded) is not dict and type(encoded) is not list
        fields[name] = encoded
    return fields if flat else as_json(encode_cyclical(fields))


def encode_field(value: Any, kind: str) -> Any:
    """Encode the value of one field according to its type `kind`; the values in a Map are not converted yet.

    Raises:
        EncodeError: GoatDB cannot write such a value in a field of this type.
    """
    if kind == "date":
        return _date_seconds(value)
    if kind == "richtext":
        return encode_cyclical(value, keeps_rich_text_element)
    return encode_cyclical(value)


def _date_seconds(value: Any) -> float:
    """Return the value of a date field in seconds, its serialized form; NaN for an invalid date."""
    if isinstance(value, JSDate):
        return value.seconds
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    raise EncodeError("a date field must hold a date")


def as_json(value: Any) -> Any:
    """Return an encoded value as a reader of its JSON will get it.

    Parts that the encoder left unconverted, such as Dates in a Map, are written as JSON and parsed again.
    """
    try:
        return value if is_native(value) else parse_json(to_json(value))
    except RecursionError:
        raise EncodeError("the data is nested too deeply") from None


def normalize_data(data: Data, schema: Schema) -> Data:
    """Return an item's data in normal form: empty sets and maps are dropped, defaults are filled in.

    Rich text is not changed.

    Raises:
        EncodeError: A set, map or rich text field is null.
    """
    normal = dict(data)
    for field in schema.by_name.values():
        value = normal.get(field.name, UNDEFINED)
        if value is None and field.type in ("set", "map", "richtext"):
            raise EncodeError(f"field {field.name!r} must not be null")
        if field.type in ("set", "map") and isinstance(value, JSSet | JSMap) and not value:
            value = UNDEFINED
        if value is UNDEFINED and field.default is not None:
            value = field.default(data)
        if value is UNDEFINED:
            normal.pop(field.name, None)
        else:
            normal[field.name] = value
    return normal


def data_checksum(data: Data, schema: Schema | None) -> str:
    """Return GoatDB's checksum of an item's normalized data, as a decimal string.

    Args:
        schema: The item's schema; None if the schema is unknown. In that case rich text is recognized by its shape.

    Raises:
        EncodeError: A field is not in the schema, or a value has no checksum.
    """
    texts: dict[str, str] = {}
    shared: dict[int, str] = {}
    for name, value in data.items():
        if value is UNDEFINED:
            continue
        if schema is None:
            rich = _looks_like_rich_text(value)
        elif (field := schema.by_name.get(name)) is None:
            raise EncodeError(f"the schema {schema.marker} has no field {name!r}")
        else:
            rich = field.type == "richtext"
            if field.type == "date":
                value = _date_seconds(value)
        texts[name] = rich_text_checksum(value) if rich else value_text(value, texts=shared)
    return item_checksum(texts)


def _looks_like_rich_text(value: Any) -> bool:
    root = value.get("root") if isinstance(value, dict) else None
    return isinstance(root, dict) and isinstance(root.get("children"), list)


# --- records ------------------------------------------------------------------------------------------------------


def record_data(record: Mapping[str, Any], registry: Registry = BUILTIN) -> Data:
    """Decode the data of a commit's record to JavaScript values; for an unknown schema, all members.

    Raises:
        DecodeError: The data is malformed.
    """
    schema = registry.from_marker(record.get("s"))
    if schema is not None:
        return decode_data(record.get("d"), schema)
    encoded = record.get("d")
    if not isinstance(encoded, dict):
        raise DecodeError("an item's data must be a JSON object")
    decoder = Decoder()
    return {name: decoder.decode(value) for name, value in encoded.items()}


def encoded_checksum(data: Mapping[str, Any], marker: str = "", registry: Registry = BUILTIN) -> str:
    """Return GoatDB's checksum of an item's encoded data, as a decimal string.

    Raises:
        DecodeError: The data is malformed.
        EncodeError: A value has no checksum.
    """
    return data_checksum(record_data({"s": marker, "d": data}, registry), registry.from_marker(marker))


_VERBATIM_TYPES = frozenset({"string", "number", "boolean"})


def canonical_record(record: Any, registry: Registry = BUILTIN, *, like_goatdb: bool = False) -> Record:
    """Decode the record of a full commit and encode it again, as GoatDB does before it verifies the commit.

    Args:
        like_goatdb: Whether to reject an unknown schema, whose records are otherwise returned unchanged, and to accept
            a set field that does not hold a set.

    Raises:
        DecodeError: GoatDB cannot read the record, or could not write it again.
    """
    if not isinstance(record, dict):
        raise DecodeError("a commit's record must be a JSON object")
    check_members(record)
    if isinstance(record.get("d"), dict):
        check_members(record["d"])
    marker = record.get("s")
    schema = registry.from_marker(marker)
    if schema is None:
        if like_goatdb or not isinstance(marker, str):
            raise DecodeError(f"unknown schema {marker!r:.100}")
        if not isinstance(record.get("d"), dict):
            raise DecodeError("an item's data must be a JSON object")
        return record
    try:
        return _canonical_record(record, schema, like_goatdb)
    except EncodeError as error:
        raise DecodeError(str(error)) from error
    except RecursionError:
        raise DecodeError("the data is nested too deeply") from None


def _canonical_record(record: dict[str, Any], schema: Schema, like_goatdb: bool) -> Record:
    raw = record.get("d")
    mark = record.get("n")
    normalized = is_truthy(mark)
    mark = _reencode_value(mark) if normalized else schema is not NULL_SCHEMA
    stated = _reencode_value(record.get("cs"))
    flat = _flat_data(raw, schema) if normalized and "cs" in record else None
    if flat is not None:
        return {"s": schema.marker, "d": flat, "n": mark, "cs": stated}
    data = decode_data(raw, schema, like_goatdb=like_goatdb)
    if not normalized:
        data = normalize_data(data, schema)
    encoded = encode_data(data, schema)
    checksum = stated if "cs" in record else data_checksum(data, schema)
    return {"s": schema.marker, "d": encoded, "n": mark, "cs": checksum}


def _flat_data(raw: Any, schema: Schema) -> dict[str, Any] | None:
    """Return an item's data, decoded and encoded again, if every present field is a scalar; otherwise None.

    This is a fast path for the most common items.
    """
    if type(raw) is not dict:
        return None
    data: dict[str, Any] = {}
    for field in schema.by_name.values():
        if field.name in raw:
            value = raw[field.name]
            kind = type(value)
            if kind is dict or kind is list:
                return None
            if field.type == "date":
                if kind is not int and kind is not float:
                    return None
                value = encode_field(date_from_json(value), "date")
            elif field.type not in _VERBATIM_TYPES:
                return None
            data[field.name] = value
    return data


# --- edits --------------------------------------------------------------------------------------------------------


def canonical_edit(edit: Any, registry: Registry = BUILTIN, *, like_goatdb: bool = False) -> dict[str, Any]:
    """Decode the edit of a delta commit and encode it again, as GoatDB does before it verifies the commit.

    Args:
        like_goatdb: Whether to leave out the marker of an unknown schema, which is otherwise kept, and to accept, as
            GoatDB does, a change that replaces a field of type Set by another value.

    Raises:
        DecodeError: A change is malformed, or of an unknown kind.
    """
    try:
        return _canonical_edit(edit, registry, like_goatdb)
    except EncodeError as error:
        raise DecodeError(str(error)) from error
    except RecursionError:
        raise DecodeError("the data is nested too deeply") from None


def _canonical_edit(edit: Any, registry: Registry, like_goatdb: bool) -> dict[str, Any]:
    # COMPAT: an edit that is not an object counts as one without members, as in GoatDB.
    members = edit if isinstance(edit, dict) else {}
    check_members(members)
    encoded = {name: _reencode_value(members[name]) for name in ("sc", "dc") if name in members}
    encoded["c"] = {
        name: [{"__t": "E", "__v": _canonical_change(change, like_goatdb)} for change in changes]
        for name, changes in _changes_by_field(members.get("c")).items()
    }
    marker = members.get("s")
    schema = registry.from_marker(marker)
    if schema is not None:
        encoded["s"] = schema.marker
    elif isinstance(marker, str) and not like_goatdb:
        encoded["s"] = marker
    return encoded


def _changes_by_field(encoded: Any) -> dict[str, list[Any]]:
    """Return the changes of an edit (its member ``c``) by field, each change in its decoded form.

    COMPAT: as in GoatDB, a missing member `c`, and a `c` without members of its own, contain no changes.
    """
    decoded = Decoder().decode(encoded)
    if isinstance(decoded, list):
        decoded = {str(index): each for index, each in enumerate(decoded)}
    if isinstance(decoded, Encoded) or (isinstance(decoded, str) and decoded):
        raise DecodeError("the changes of an edit must be an object")
    changes = decoded if isinstance(decoded, dict) else {}
    check_members(changes)
    if not all(isinstance(each, list) for each in changes.values()):
        raise DecodeError("the changes of a field must be an array")
    return changes


def _canonical_change(decoded: Any, like_goatdb: bool = False) -> dict[str, Any]:
    if not isinstance(decoded, Encoded):
        raise DecodeError("a change in an edit must be an object in an E marker")
    change = decoded.value
    check_members(change)
    kind = change.get("changeType")
    if kind == "rt":
        # COMPAT: GoatDB filters the elements of a whole rich text field, but not those of a change.
        members = {name: change[name] for name in ("op", "start", "end", "values") if name in change}
        return {"changeType": "rt", **{name: _reencode_value(value) for name, value in members.items()}}
    if kind != "fd":
        raise DecodeError(f"an edit has a change of unknown type {kind!r:.100}")
    value_type = change.get("vType")
    if not isinstance(value_type, str) or value_type not in FIELD_TYPES or value_type == "richtext":
        raise DecodeError(f"an edit has a change of a value of unknown type {value_type!r:.100}")
    encoded = {"changeType": "fd"}
    if "operation" in change:
        encoded["operation"] = _reencode_value(change["operation"])
    encoded["vType"] = value_type
    if "value" in change or value_type in ("date", "map"):
        value = _decode_field(change.get("value", UNDEFINED), value_type, Decoder(), like_goatdb)
        encoded["value"] = as_json(encode_plain(encode_field(value, value_type)))
    return encoded


def _reencode_value(value: Any) -> Any:
    """Decode an encoded value and encode it again, as GoatDB does with a value of any type."""
    if type(value) is not dict and type(value) is not list:
        return value
    return as_json(encode_plain(refuse_encoded(Decoder().decode(value))))


def apply_edit(record: Mapping[str, Any], edit: Mapping[str, Any], registry: Registry = BUILTIN) -> Record:
    """Apply the edit of a delta commit to its base record, and return the resulting record. Both checksums are checked.

    Raises:
        DecodeError: The edit belongs to another base, is malformed or changes rich text, or its result does not have
            the stated checksum.
    """
    try:
        return _apply_edit(record, edit, registry)
    except EncodeError as error:
        raise DecodeError(str(error)) from error
    except RecursionError:
        raise DecodeError("the data is nested too deeply") from None


def _apply_edit(record: Mapping[str, Any], edit: Mapping[str, Any], registry: Registry) -> Record:
    if record.get("cs") != edit.get("sc"):
        raise DecodeError("the edit's source checksum is not the checksum of its base")
    # COMPAT: the schema is the base's; GoatDB does not use that of the edit.
    marker = str(record.get("s"))
    schema = registry.from_marker(marker)
    data = patch_data(record_data(record, registry), edit.get("c"), schema)
    checksum = data_checksum(data, schema)
    if checksum != edit.get("dc"):
        raise DecodeError("the patched item does not have the edit's target checksum")
    encoded = as_json(encode_cyclical(data)) if schema is None else encode_data(data, schema)
    written = marker if schema is None else schema.marker
    return {"s": written, "d": encoded, "n": schema is not NULL_SCHEMA, "cs": checksum}


def patch_data(data: Data, changes: Any, schema: Schema | None) -> Data:
    """Apply the changes of an edit to an item's data, and normalize the result. Changes of unknown fields are ignored.

    Raises:
        DecodeError: A change is malformed or changes rich text, or the work exceeds `MAX_PATCH_WORK`.
    """
    # SECURITY: the work of an edit is limited, because each change of a set or map copies it, so many small changes
    # could take hours (tests/unit/wire/test_equality.py).
    work = Work(MAX_PATCH_WORK)
    patched = dict(data)
    for name, field_changes in _changes_by_field(changes).items():
        if schema is not None and name not in schema.by_name:
            continue
        field_type = None if schema is None else schema.by_name[name].type
        for change in map(_canonical_change, field_changes):
            is_rich = change["changeType"] == "rt"
            if field_type == "richtext" or (is_rich and schema is None):
                raise DecodeError("the edit changes rich text, which Goatherd cannot apply")
            operation = change.get("operation")
            if is_rich or isinstance(operation, bool) or operation not in (INSERT, DELETE):
                continue  # COMPAT: GoatDB ignores such a change.
            # COMPAT: the field's type determines how a change is applied, whatever type the change names.
            kind = field_type or change["vType"]
            value = _decode_field(change["value"], change["vType"], Decoder()) if "value" in change else UNDEFINED
            if kind in ("set", "map") and (value is UNDEFINED or change["vType"] != kind):
                raise DecodeError(f"a change of a {kind} must have a value of this type")
            if kind == "date" and schema is None and isinstance(value, JSDate):
                value = value.seconds
            _patch_field(patched, name, operation == INSERT, kind, value, work)
    if schema is None:
        return {name: value for name, value in patched.items() if not isinstance(value, JSSet | JSMap) or value}
    return normalize_data(patched, schema)


def _patch_field(data: Data, name: str, insert: bool, kind: str, value: Any, work: Work) -> None:
    current = data.get(name, UNDEFINED)
    if isinstance(current, JSSet | dict):
        work.take(1 + len(current))
    if kind == "set":
        items = list(current) if isinstance(current, JSSet) else []
        changed: Any = set_add(items, value, work) if insert else set_remove(items, value, work)
    elif kind == "map":
        changed = JSMap(current if isinstance(current, dict) else {})
        for key, item in value.items():
            if insert:
                changed[key] = item
            elif key in changed and decoded_equal(changed[key], item, work):
                del changed[key]
    elif insert:
        changed = value
    else:
        changed = UNDEFINED if decoded_equal(current, value, work) else current
    if changed is UNDEFINED:
        data.pop(name, None)
    else:
        data[name] = changed
