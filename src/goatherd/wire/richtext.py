"""Compute the checksum of a rich text value from its flat form (docs/reference/goatdb-formats.md#rich-text).

Pure. The module does not diff, patch or normalize rich text.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from goatherd.errors import EncodeError
from goatherd.wire.hashing import text_hash, value_hash, value_text
from goatherd.wire.javascript_values import UNDEFINED, JSDate, JSSet, join_surrogates, unit_key, utf16_units

Atom = dict[str, Any]


def rich_text_checksum(tree: Any) -> str:
    """Return GoatDB's checksum string of a rich text value: one hash over all parts that are not marked as local.

    Raises:
        EncodeError: The value is not a rich text tree.
    """
    root = tree.get("root") if type(tree) is dict else None
    if type(root) is not dict or not isinstance(root.get("children"), list):
        raise EncodeError("the value must be a rich text tree")
    pointers = _by_node(_read_pointers(tree.get("pointers")))
    atoms = _flatten_nodes(root["children"], 0, pointers)
    texts: dict[int, str] = {}
    for atom in atoms:
        if id(atom) not in texts:
            texts[id(atom)] = value_text(_without_links(atom))
    return text_hash("".join([texts[id(atom)] for atom in atoms]))


def _read_pointers(raw: Any) -> list[Atom]:
    """Return the pointers of a rich text value (such as cursors) that are not local, sorted and without duplicates."""
    if not isinstance(raw, JSSet):
        return []
    unique: dict[str, Atom] = {}
    texts: dict[int, str] = {}
    for pointer in raw:
        if type(pointer) is dict and pointer.get("isLocal") is not True:
            node = pointer.get("node")
            if type(node) is dict:
                # A text node is read once, however many pointers share it; its text stands for it in the hash.
                if id(node) not in texts:
                    texts[id(node)] = value_text(node)
                node = texts[id(node)]
            unique.setdefault(value_hash(pointer if node is None else {**pointer, "node": node}), pointer)
    return sorted(unique.values(), key=_pointer_order)


def _by_node(pointers: list[Atom]) -> dict[int, list[Atom]]:
    """Group the pointers of a rich text value by the node that they point to, sorted by offset.

    The keys are the ``id()`` of the node objects.
    """
    found: dict[int, list[Atom]] = {}
    for pointer in pointers:
        found.setdefault(id(pointer.get("node")), []).append(pointer)
    for own in found.values():
        own.sort(key=lambda pointer: _read_number(pointer.get("offset")))
    return found


def _pointer_order(pointer: Atom) -> tuple[bytes, bytes, float, tuple[bool, float]]:
    expiration = pointer.get("expiration")
    ms = expiration.ms or 0 if isinstance(expiration, JSDate) else 0
    key, kind, direction = str(pointer.get("key")), str(pointer.get("type")), _read_number(pointer.get("dir"))
    return unit_key(key), unit_key(kind), direction, (isinstance(expiration, JSDate), ms)


def _read_number(value: Any) -> float:
    """Return a number for sorting or counting, or 0 if the value is not a number.

    With 0, a malformed pointer in a rich text causes no error.
    """
    return value if isinstance(value, int | float) and value == value else 0


def _flatten_nodes(siblings: Iterable[Any], depth: int, pointers: dict[int, list[Atom]]) -> list[Any]:
    atoms: list[Any] = []
    for node in siblings:
        if type(node) is dict and node.get("isLocal") is True:
            continue
        if _is_text_node(node):
            atoms += _flatten_text(node, pointers)
        elif type(node) is dict and isinstance(node.get("children"), list):
            atoms += [{"__elementSpacer": True}, node]
            inner = _flatten_nodes(node["children"], depth + 1, pointers)
            if inner:
                atoms += [{"depthMarker": depth + 1}, *inner, {"depthMarker": depth}]
        else:
            atoms.append(node)
    return atoms


def _flatten_text(node: Atom, pointers: dict[int, list[Atom]]) -> list[Any]:
    if not pointers:
        return [node]
    text = utf16_units(node["text"])
    atoms: list[Any] = []
    position: float = 0
    for pointer in pointers.get(id(node), []):
        # An offset may lie beyond the text.
        offset = _read_number(pointer.get("offset"))
        end = int(min(max(offset, 0), len(text)))
        if offset > position:
            atoms.append(_with_text(node, text[int(min(position, len(text))) : end]))
        if offset >= position:
            atoms.append(_with_text(node, text[end : end + 1]))
            position = offset + 1
        atoms.append(pointer)
    if position <= len(text):
        atoms.append(_with_text(node, text[int(position) :]))
    return atoms


def _with_text(node: Atom, part: list[int]) -> Atom:
    return {**node, "text": join_surrogates("".join(map(chr, part)))}


def _without_links(value: Any) -> Any:
    """Return a rich text value without the members that link its parts, at every depth.

    These are the elements' ``children`` and the pointers' ``node`` and ``offset``.
    """
    if type(value) is dict:
        dropped: tuple[str, ...] = ()
        if isinstance(value.get("children"), list):
            dropped = ("children",)
        if _is_text_node(value.get("node")):
            dropped += ("node", "offset")
        return {
            key: _without_links(item) for key, item in value.items() if key not in dropped and item is not UNDEFINED
        }
    if type(value) is list:
        return [_without_links(item) for item in value]
    if isinstance(value, JSSet):
        return JSSet([_without_links(item) for item in value])
    return value


def _is_text_node(value: Any) -> bool:
    return type(value) is dict and isinstance(value.get("text"), str)
