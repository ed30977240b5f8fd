"""Checks the vectors of items: checksums, schemas, edits, merges."""

from __future__ import annotations

from typing import Any

from goatherd.wire.hashing import DEFAULT_SEED, value_hash
from goatherd.wire.items import (
    canonical_edit,
    canonical_record,
    data_checksum,
    encode_data,
    normalize_data,
    patch_data,
    record_data,
)
from goatherd.wire.javascript_values import utf16_units
from goatherd.wire.json import parse_json, to_json
from goatherd.wire.schema import NULL_SCHEMA, Data, Registry, Schema
from tests.fakes.goatdb_rules import upgrade_data
from tests.vectors.diff import changed_fields, diff_data, wrap_changes
from tests.vectors.notation import registry_of, value_of
from tests.vectors.sheet import Case, NotJudgedError, Sheet, equal, mismatch, refuses, yields

Document = dict[str, Any]

RICH_TEXT = "Goatherd hands rich text on as it is: only clients and GoatDB's servers diff, merge and normalize it"


def _known(registry: Registry, marker: Any) -> Schema:
    schema = registry.from_marker(marker)
    if schema is None:
        mismatch("schema", "one that the file declares", marker)
    return schema


def is_rich(schema: Schema, *data: Data) -> bool:
    """Return whether any of the data has rich text."""
    names = [name for name, field in schema.by_name.items() if field.type == "richtext"]
    return any(name in each for each in data for name in names)


def encode_item(data: Data, schema: Schema) -> dict[str, Any]:
    """Return the record of normalized data."""
    return {
        "s": schema.marker,
        "d": parse_json(to_json(encode_data(data, schema))),
        "n": schema is not NULL_SCHEMA,
        "cs": data_checksum(data, schema),
    }


# --- checksums ----------------------------------------------------------------------------------------------------


def checksums(document: Document, sheet: Sheet) -> None:
    registry = registry_of(document)

    def case(c: Case) -> None:
        schema = _known(registry, c["schema"])
        data = value_of(c["data"])
        rich = is_rich(schema, data)
        if not rich:
            yields(c, "checksum", lambda: data_checksum(normalize_data(data, schema), schema))
            yields(c, "wire", lambda: encode_item(normalize_data(data, schema), schema), as_is=True)
        if "wire" not in c:
            if rich:
                raise NotJudgedError(RICH_TEXT)
            return
        wire = c["wire"]
        equal("checksum in wire", c["checksum"], wire["cs"])
        yields(c, "checksum_after_decode", lambda: data_checksum(record_data(wire, registry), schema))
        if c["checksum"] == c.get("checksum_after_decode"):
            equal("wire read and written", wire, canonical_record(wire, registry))
        elif rich:
            raise NotJudgedError(RICH_TEXT)

    def value(c: Case) -> None:
        equal("seed of the file", document.get("seed", DEFAULT_SEED), DEFAULT_SEED)
        given = value_of(c["value"])
        yields(c, "hash", lambda: value_hash(given))
        if "hash_seed_7" in c:
            equal("hash_seed_7", c["hash_seed_7"], value_hash(given, 7))

    sheet.each("cases", document.get("cases"), case)
    sheet.each("values", document.get("values"), value)


# --- schemas ------------------------------------------------------------------------------------------------------


def schemas(document: Document, sheet: Sheet) -> None:
    registry = registry_of(document)

    def case(c: Case) -> None:
        schema = _known(registry, c["schema"])
        data = value_of(c["data"])
        problem = schema.problem(data)
        equal("valid_before", c["valid_before"], problem is None)
        equal("message_before", c.get("message_before") or "", problem or "")
        if is_rich(schema, data) and ("normalized" in c or data.get("rt") is not None):
            raise NotJudgedError(RICH_TEXT)
        if not yields(c, "normalized", lambda: normalize_data(data, schema)):
            return
        normalized = normalize_data(data, schema)
        problem = schema.problem(normalized)
        equal("valid", c["valid"], problem is None)
        equal("message", c.get("message") or "", problem or "")
        yields(c, "wire", lambda: encode_item(normalized, schema), as_is=True)

    def marker(c: Case) -> None:
        schema = registry.from_marker(c["marker"])
        decoded = None if schema is None else "null schema" if schema is NULL_SCHEMA else schema.marker
        equal("decoded", c["decoded"], decoded)
        equal("encoded", c.get("encoded"), None if schema is None else schema.marker)

    def upgrade(c: Case) -> None:
        schema = NULL_SCHEMA if c["from"] is None else _known(registry, c["from"])
        target = registry.get(schema.ns) if c["to"] is None else registry.from_marker(c["to"])
        data = value_of(c["data"])
        if c.get("error") or c.get("throws"):
            refuses("upgraded", lambda: upgrade_data(data, schema, target or schema, registry))
            return
        if target is None or target.version == schema.version:
            upgraded, reached = dict(data), schema
        else:
            upgraded, reached = upgrade_data(data, schema, target, registry)
        equal("changed", c["changed"], target is not None and target.version != schema.version)
        equal("schema", c["schema"], reached.marker)
        equal("result", value_of(c["result"]), upgraded)

    sheet.each("cases", document.get("cases"), case)
    sheet.each("markers", document.get("markers"), marker)
    sheet.each("upgrades", document.get("upgrades"), upgrade)


# --- edits and merges ---------------------------------------------------------------------------------------------


def edits(document: Document, sheet: Sheet) -> None:
    registry = registry_of(document)

    def case(c: Case) -> None:
        schema = _known(registry, c["schema"])
        old, new = record_data(c["base"], registry), record_data(c["target"], registry)
        equal("edit read and written", c["edit"], canonical_edit(c["edit"], registry))
        if _touches_rich_text(c["edit"]["c"], schema):
            raise NotJudgedError(RICH_TEXT)
        changes = diff_data(old, new, schema)
        base_sum, target_sum = c["base"].get("cs"), c["target"].get("cs")
        equal("edit", c["edit"], {"sc": base_sum, "dc": target_sum, "c": wrap_changes(changes)})
        patched = patch_data(old, c["edit"]["c"], schema)
        record = encode_item(patched, schema)
        equal("patched", c["patched"], record)
        equal("patched_checksum", c["patched_checksum"], record["cs"])
        equal("intact", c["intact"], record["cs"] == target_sum)
        differing = changed_fields(old, new, schema)
        equal("changed_fields", c["changed_fields"], differing)
        equal("equal", c["equal"], is_same_item(c["base"], c["target"], differing))
        delta_length = len(
            utf16_units(to_json({"sc": base_sum, "dc": target_sum, "c": wrap_changes(changes, alone=True)}))
        )
        equal("delta_length", c["delta_length"], delta_length)
        full_length = len(utf16_units(to_json(c["target"])))
        equal("full_length", c["full_length"], full_length)
        equal("delta_chosen", c["delta_chosen"], delta_length <= 0.85 * full_length)

    sheet.each("cases", document.get("cases"), case)


def is_same_item(a: dict[str, Any], b: dict[str, Any], differing: list[str]) -> bool:
    """GoatDB's item equality: namespace, version, checksums where both are known, every field."""
    sums = [each.get("cs") for each in (a, b)]
    return a["s"] == b["s"] and (None in sums or sums[0] == sums[1]) and not differing


def _touches_rich_text(changes: Any, schema: Schema) -> bool:
    return any(name in schema.by_name and schema.by_name[name].type == "richtext" for name in changes)


def merges(document: Document, sheet: Sheet) -> None:
    registry = registry_of(document)

    def case(c: Case) -> None:
        schema = _known(registry, c["schema"])
        both = [c["ours_changes"], c["theirs_changes"]]
        if any(_touches_rich_text(changes, schema) for changes in both):
            raise NotJudgedError(RICH_TEXT)
        if c["base"] is None:
            start = upgrade_data({}, NULL_SCHEMA, schema, registry)[0]
            equal("start", c["start"], encode_item(start, schema))
            base: Data = {}
        else:
            start = base = record_data(c["base"], registry)
        for name, changes in (("ours", both[0]), ("theirs", both[1])):
            made = diff_data(start, record_data(c[name], registry), schema)
            equal(f"{name}_changes", changes, wrap_changes(made))
        merged: Data = start if c["base"] is None else base
        combined: dict[str, list[Any]] = {}
        for changes in both:
            for name, parts in changes.items():
                combined.setdefault(name, []).extend(parts)
        merged = patch_data(merged, combined, schema)
        record = encode_item(merged, schema)
        equal("result", c["result"], record)
        equal("result_checksum", c["result_checksum"], record["cs"])

    sheet.each("cases", document.get("cases"), case)
