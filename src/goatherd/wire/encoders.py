"""GoatDB's JSON encoders and decoders: how Dates, Sets, Maps and shared objects become JSON with type markers.

Pure. The markers are listed in docs/reference/goatdb-formats.md#encoders. The values are those of
`goatherd.wire.javascript_values`. As in GoatDB, user data that looks like a marker is read as one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

from goatherd.errors import DecodeError, EncodeError
from goatherd.wire.javascript_values import UNDEFINED, JSDate, JSMap, JSSet, date_from_json, own_keys
from goatherd.wire.json import nesting_depth

ElementFilter = Callable[[Any], bool]


@dataclass(frozen=True, slots=True)
class Encoded:
    """The content of an ``E`` marker in GoatDB's encoding: a filter, a change or another object in encoded form."""

    value: dict[str, Any]


def keeps_rich_text_element(element: Any) -> bool:
    """Return whether GoatDB stores this element of rich text.

    GoatDB leaves out elements that are not plain objects, and those with ``isLocal: true``.
    """
    return type(element) is dict and element.get("isLocal") is not True


# --- encoding -----------------------------------------------------------------------------------------------------


def is_native(value: Any, keep: ElementFilter | None = None) -> bool:
    """Return whether GoatDB's plain encoder, with the filter `keep` for array items, leaves the value unchanged.

    Raises:
        EncodeError: GoatDB's encoder throws on the value.
    """
    kind = type(value)
    if kind is dict:
        if "hasOwnProperty" in value:
            raise EncodeError(f"{_UNREADABLE}: GoatDB's encoder throws on it")
        return all(is_native(item, keep) for item in value.values())
    if kind is list:
        return all((keep is None or keep(item)) and is_native(item, keep) for item in value)
    return not isinstance(value, JSDate | JSSet | JSMap | Encoded)


def encode_plain(value: Any, keep: ElementFilter | None = None) -> Any:
    """Encode a value as GoatDB's plain encoder does.

    Items of arrays and Sets that the filter `keep` rejects are left out. The values in a Map stay unconverted.

    Raises:
        EncodeError: The value has an object with a member ``hasOwnProperty``.
    """
    if is_native(value, keep):
        return value
    if isinstance(value, JSDate):
        return {"__t": "D", "__v": value.seconds}
    if isinstance(value, JSSet):
        return {"__t": "S", "__v": [encode_plain(item, keep) for item in value if keep is None or keep(item)]}
    if isinstance(value, JSMap):
        return dict(value)
    if isinstance(value, Encoded):
        return {"__t": "E", "__v": value.value}
    if type(value) is list:
        return [encode_plain(item, keep) for item in value if keep is None or keep(item)]
    return {key: encode_plain(item, keep) for key, item in value.items() if item is not UNDEFINED}


def encode_cyclical(value: Any, keep: ElementFilter | None = None) -> Any:
    """Encode a member's value as GoatDB's cyclical encoder does: objects reached more than once become references.

    Raises:
        EncodeError: The value has an object with a member ``hasOwnProperty``.
    """
    if type(value) is not dict:
        return encode_plain(value, keep)
    shared = _shared_objects(value)
    if not shared:
        return encode_plain(value, keep)
    numbers = {id(item): number for number, item in enumerate(shared)}
    records = [encode_plain(item, keep) for item in shared]
    # The whole is encoded once more, so a Map's Dates come out marked in the records and unmarked behind a reference.
    return encode_plain({"__r": records, "__d": _with_references(value, numbers, keep)}, keep)


def _shared_objects(root: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the plain objects inside `root` that are reached more than once, ordered by their second occurrence."""
    seen: set[int] = set()
    numbered: dict[int, dict[str, Any]] = {}

    def walk(value: Any) -> None:
        kind = type(value)
        if kind is dict:
            if _is_reference(value) or id(value) in numbered:
                return
            if id(value) in seen:
                numbered[id(value)] = value
            seen.add(id(value))
            for key in own_keys(value):
                walk(value[key])
        elif kind is list or isinstance(value, JSSet):
            for item in value:
                walk(item)
        elif isinstance(value, JSMap):
            for item in value.values():
                walk(item)

    walk(root)
    return list(numbered.values())


def _is_reference(value: dict[str, Any]) -> bool:
    number = value.get("__rId")
    return isinstance(number, int | float) and not isinstance(number, bool)


def _with_references(value: Any, numbers: dict[int, int], keep: ElementFilter | None, top: bool = True) -> Any:
    """Return a copy of a value with references in place of its shared objects; Dates, Sets and Maps are kept."""
    kind = type(value)
    if kind is dict:
        if not top and id(value) in numbers:
            return {"__rId": numbers[id(value)]}
        if "hasOwnProperty" in value:
            raise EncodeError(f"{_UNREADABLE}: GoatDB's encoder throws on it")
        return {
            key: _with_references(item, numbers, keep, False) for key, item in value.items() if item is not UNDEFINED
        }
    if kind is list:
        return [_with_references(item, numbers, keep, False) for item in value if keep is None or keep(item)]
    if isinstance(value, JSSet):
        return JSSet([_with_references(item, numbers, keep, False) for item in value if keep is None or keep(item)])
    if isinstance(value, JSMap):
        return JSMap({key: _with_references(item, numbers, keep, False) for key, item in value.items()})
    return value


# --- decoding -----------------------------------------------------------------------------------------------------

# SECURITY: with references, a short text can expand to a huge value, which every reader must traverse. GoatDB uses
# references only for rich-text pointers, one small node each (tests/unit/wire/test_encoders.py).
MAX_REFERENCED = 20_000


def check_members(encoded: dict[str, Any]) -> None:
    """Check that GoatDB can read the members of an encoded object, and reads no others in their place.

    Raises:
        DecodeError: One member is named ``hasOwnProperty``, which hides the method by which GoatDB finds members; or
            the object is an ``E`` marker, and GoatDB would read the members of the object in it instead.
    """
    if "hasOwnProperty" in encoded:
        raise DecodeError(f"{_UNREADABLE}: GoatDB's decoder throws on it")
    # SECURITY: with such a marker, a record could name one schema to this server, and another, such as that of
    # sessions, to GoatDB's clients (tests/unit/wire/test_commit.py).
    if encoded.get("__t") == "E" and isinstance(encoded.get("__v"), dict):
        raise DecodeError("an object must not be in a marker of GoatDB's own encoding")


_UNREADABLE: Final = "an object must not have a member hasOwnProperty"


class Decoder:
    """Decode the members of one object that GoatDB has encoded.

    The cyclical kind of decoder also follows references.
    """

    __slots__ = ("_cyclical", "_met_references", "_records", "_referenced_values", "_sizes")

    def __init__(self, *, cyclical: bool = True) -> None:
        self._cyclical = cyclical
        self._records: list[list[Any]] = []
        self._met_references = False
        self._sizes: dict[int, int] = {}
        self._referenced_values = 0

    def decode(self, value: Any) -> Any:
        """Return the JavaScript value of a member that GoatDB has encoded.

        Raises:
            DecodeError: A reference or a date is invalid, the nesting is too deep, or references lead to more than
                `MAX_REFERENCED` values.
        """
        kind = type(value)
        if kind is not dict and kind is not list:
            return value
        try:
            return self._decode(value)
        except RecursionError:
            raise DecodeError("the data is nested too deeply") from None

    def _decode(self, value: Any) -> Any:
        kind = type(value)
        if kind is list:
            return [self._decode(item) for item in value]
        if kind is not dict:
            return value
        if self._cyclical:
            if isinstance(value.get("__r"), list) and isinstance(value.get("__d"), dict):
                return self._decode_referencing(value["__r"], value["__d"])
            if self._met_references and _is_reference(value):
                return self._resolve_reference(value["__rId"])
        if "__t" in value:
            marker, content = value["__t"], value.get("__v")
            if marker == "S" and isinstance(content, list):
                return JSSet([self._decode(item) for item in content])
            if marker == "D" and isinstance(content, int | float) and not isinstance(content, bool):
                return date_from_json(content)
            if marker == "E" and isinstance(content, dict):
                return Encoded(content)
        return {key: self._decode(item) for key, item in value.items()}

    def _decode_referencing(self, records: list[Any], value: dict[str, Any]) -> Any:
        """Decode an object (the member ``__d``) whose references point into `records`.

        At the top level of this object, a type marker is not decoded.
        """
        self._met_references = True
        self._records.append(records)
        if _is_reference(value):
            decoded = self._resolve_reference(value["__rId"])
        else:
            decoded = {key: self._decode(item) for key, item in value.items()}
        self._records.pop()
        return decoded

    def _resolve_reference(self, number: float) -> Any:
        if not self._records:
            raise DecodeError("a reference (__rId) is outside of an object with referenced objects (__r)")
        records = self._records[-1]
        if not 0 <= number < len(records) or number != int(number):
            return UNDEFINED
        record = records[int(number)]
        if id(record) not in self._sizes:
            self._sizes[id(record)] = 1 + sum(len(each) for level in nesting_depth(record) for each in level)
        self._referenced_values += self._sizes[id(record)]
        if self._referenced_values > MAX_REFERENCED:
            raise DecodeError("the references lead to more values than are allowed")
        return record


def has_stray_reference(value: Any, *, is_inside: bool = False) -> bool:
    """Return whether encoded data contain a reference outside of an object with referenced objects.

    Args:
        value: Parsed JSON.
        is_inside: Whether `value` is inside such an object, so that a reference is in its place.
    """
    items: Iterable[Any] = value
    if type(value) is dict:
        if "__r" in value and isinstance(value["__r"], list) and isinstance(value.get("__d"), dict):
            # GoatDB does not decode the referenced objects.
            return has_stray_reference(value["__d"], is_inside=True)
        if "__rId" in value and _is_reference(value):
            return not is_inside
        items = value.values()
    elif type(value) is not list:
        return False
    for item in items:
        if (type(item) is dict or type(item) is list) and has_stray_reference(item, is_inside=is_inside):
            return True
    return False


def refuse_encoded(value: Any) -> Any:
    """Return decoded user data after a check that no ``E`` marker (GoatDB's internal encoding) is in it.

    Raises:
        DecodeError: The value contains such a marker, which GoatDB would turn into an internal decoder object.
    """
    if isinstance(value, Encoded):
        raise DecodeError("the data contains an object in the form of GoatDB's own encoding, which GoatDB would change")
    if isinstance(value, dict):
        for item in value.values():
            refuse_encoded(item)
    elif isinstance(value, list | JSSet):
        for item in value:
            refuse_encoded(item)
    return value
