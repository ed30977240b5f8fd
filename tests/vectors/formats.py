"""Checks the vectors of plain formats: text, numbers, dates, hashes, filters, paths, messages, logs."""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Callable
from functools import partial
from typing import Any

from goatherd import ids
from goatherd.errors import DecodeError
from goatherd.identity.strict_json import to_pretty_json
from goatherd.wire import bloom
from goatherd.wire.base32 import base32_decode, base32_encode
from goatherd.wire.bloom import BloomFilter
from goatherd.wire.commit_log import scan_log
from goatherd.wire.derived_ids import ALPHABET, LENGTH
from goatherd.wire.encoders import Decoder, encode_cyclical, encode_plain, refuse_encoded
from goatherd.wire.hashing import murmur3
from goatherd.wire.javascript_values import UNDEFINED, date_from_json, number_text, seconds_from_ms
from goatherd.wire.json import json_number, parse_json, stable_stringify, to_json
from goatherd.wire.messages import VERSION, SyncMessage, filter_parameters
from goatherd.wire.paths import join_path
from tests.fakes.goatdb_paths import is_valid_path, log_file, normalize_path, path_part, repository_id
from tests.fakes.goatdb_rules import cycles_for
from tests.vectors.notation import dense, value_of
from tests.vectors.sheet import Case, Sheet, equal, mismatch, refuses, same_text, yields
from tests.vectors.upstream_log import UpstreamLog
from tests.vectors.versions import pack_version, unpack_version

Document = dict[str, Any]


def base32(document: Document, sheet: Sheet) -> None:
    def case(c: Case) -> None:
        same_text("encoded", c["encoded"], base32_encode(bytes.fromhex(c["hex"])))
        same_text("decoded", c["hex"], base32_decode(c["encoded"]).hex())

    def decode(c: Case) -> None:
        yields(c, "hex", lambda: base32_decode(c["input"]).hex(), same_text)

    sheet.each("cases", document.get("cases"), case)
    sheet.each("decode", document.get("decode"), decode)


def js_numbers(document: Document, sheet: Sheet) -> None:
    def case(c: Case) -> None:
        (value,) = struct.unpack(">d", bytes.fromhex(c["hex"]))
        same_text("string", c["string"], number_text(value))
        same_text("json", c["json"], json_number(value))
        same_text("json inside a value", f"[{c['json']}]", to_json([value]))

    sheet.each("cases", document.get("cases"), case)


def murmur(document: Document, sheet: Sheet) -> None:
    sheet.each(
        "cases",
        document.get("cases"),
        lambda c: equal("result", c["result"], murmur3("".join(c["chunks"]), int(c["seed"]))),
    )


def stable(document: Document, sheet: Sheet) -> None:
    def case(c: Case) -> None:
        value = value_of(c["input"])
        yields(c, "output", lambda: stable_stringify(value), same_text)

    sheet.each("cases", document.get("cases"), case)


def dates(document: Document, sheet: Sheet) -> None:
    def ms(value: Any) -> Any:
        decoded = date_from_json(value).ms
        return "NaN" if decoded is None else decoded

    def case(c: Case) -> None:
        invalid = c["ms"] in (None, "NaN")
        seconds = math.nan if invalid else seconds_from_ms(c["ms"])
        if "seconds" in c and c["seconds"] not in (None, "NaN"):
            equal("seconds", c["seconds"], seconds)
        same_text("json", c["json"], json_number(seconds))
        equal("decoded_ms", "NaN" if c["decoded_ms"] is None else c["decoded_ms"], ms(seconds))

    def decode(c: Case) -> None:
        value = value_of(c["input"])
        if "error" in c or "throws" in c:
            refuses("ms", lambda: date_from_json(value))
        else:
            equal("ms", "NaN" if c["ms"] is None else c["ms"], ms(value))

    sheet.each("cases", document.get("cases"), case)
    sheet.each("decode", document.get("decode"), decode)


def path(document: Document, sheet: Sheet) -> None:
    def or_error(what: str, expected: Any, call: Callable[[], Any]) -> None:
        if isinstance(expected, dict):
            refuses(what, call)
        else:
            equal(what, expected, call())

    def case(c: Case) -> None:
        text = c["path"]
        equal("valid", c["valid"], is_valid_path(text))
        equal("normalized", c["normalized"], normalize_path(text))
        for index, name in enumerate(("type", "repo", "item", "embed")):
            equal(name, c[name], path_part(text, index))
        or_error("repo_id", c["repo_id"], lambda: repository_id(text))
        or_error("log_file", c["log_file"], lambda: log_file(repository_id(text)))

    sheet.each("cases", document.get("cases"), case)
    sheet.each("joins", document.get("joins"), lambda c: same_text("joined", c["joined"], join_path(c["a"], c["b"])))


def misc(document: Document, sheet: Sheet) -> None:
    alphabet = document.get("unique_id_alphabet", ALPHABET)
    length = document.get("unique_id_length", LENGTH)

    def unique_id(text: str) -> None:
        equal("alphabet", alphabet, ALPHABET)
        equal("length", length, LENGTH)
        equal("length of the id", length, len(text))
        equal("characters outside of the alphabet", [], [unit for unit in text if unit not in ALPHABET])
        equal("length of one of ours", length, len(ids.new_id()))

    def version(item: tuple[str, Any]) -> None:
        name, packed = item
        if name == "VCurrent":
            equal(name, packed, VERSION)
        else:
            numbers = [int(part) for part in name.removeprefix("V").split("_")]
            equal(name, packed, pack_version([*numbers, 0, 0, 0, 0][:4]))

    def tuple_(c: Case) -> None:
        equal("value", c["value"], pack_version(c["parts"]))
        equal("back", c["back"], list(unpack_version(c["value"])))
        a, b, third, d = unpack_version(c["value"])
        same_text("string", c["string"], f"{a}.{b}.{third}" + (f"-{d}" if d else ""))

    sheet.each("unique_ids", document.get("unique_ids"), unique_id)
    versions = document.get("versions")
    if isinstance(versions, dict):
        for item in versions.items():
            sheet.case(f"versions.{item[0]}", partial(version, item))
    sheet.each("tuples", document.get("tuples"), tuple_)
    pretty = document.get("pretty")
    sheet.each("pretty", pretty, lambda c: same_text("text", c["text"], to_pretty_json(c["value"]).decode()))


def bloom_filter(document: Document, sheet: Sheet) -> None:
    def probes(c: Case, holder: BloomFilter) -> None:
        for member, expected in c.get("probes", []):
            equal(f"has {member!r}", expected, member in holder)

    def case(c: Case) -> None:
        if "error" in c or "throws" in c:
            refuses("decoded", lambda: BloomFilter.from_json(c["serialized"]))
            return
        holder = BloomFilter.from_json(c["serialized"])
        if "params" in c:
            _rebuilt(c, holder)
        equal("members_all_present", c.get("members_all_present", True), all(m in holder for m in c["members"]))
        probes(c, holder)

    def _rebuilt(c: Case, holder: BloomFilter) -> None:
        equal("bytes", c["bytes"], len(holder.bits))
        equal("hashes", c["hashes"], len(holder.seeds))
        equal("serialized", c["serialized"], holder.to_json())
        params = c["params"]
        size, m, k = params.get("size", 1), params.get("m"), params.get("k")
        if m is None:
            m = bloom.filter_size(size, params["fpr"])[0]
        if k is None:
            k = m / max(1, size) * math.log(2)
        count = math.ceil(min(k, params.get("maxHashes", k)))
        equal("hashes by the formula", c["hashes"], count)
        equal("bytes by the formula", c["bytes"], (m + 7) // 8)
        again = BloomFilter(bytearray((m + 7) // 8), holder.seeds)
        if set(params) == {"size", "fpr"}:
            again = BloomFilter.for_size(params["size"], params["fpr"], holder.seeds)
        for member in c["members"]:
            again.add(member)
        equal("serialized after adding the members", c["serialized"], again.to_json())

    def formula(c: Case) -> None:
        m, k = bloom.filter_size(c["size"], c["fpr"])
        equal("m", c["m"], m)
        equal("k", c["k"], k)
        equal("bytes", c["bytes"], (m + 7) // 8)
        equal("hashes", c["hashes"], bloom.seed_count(c["size"], c["fpr"]))

    sheet.each("cases", document.get("cases"), case)
    sheet.each("formulas", document.get("formulas"), formula)


def encoders(document: Document, sheet: Sheet) -> None:
    def case(c: Case) -> None:
        value = value_of(dense(c["input"]))
        if "to_js" in c or "to_js_error" in c or "to_js_throws" in c:
            yields(c, "to_js", lambda: to_json(encode_plain(value)), same_text)
        if yields(c, "cyclical_set", lambda: to_json({"k": encode_cyclical(value)}), same_text):
            encoded = parse_json(c["cyclical_set"]).get("k", UNDEFINED)
            yields(c, "decoded", lambda: _decoded(encoded))

    sheet.each("cases", document.get("cases"), case)


def _decoded(encoded: Any) -> Any:
    """Read a value; what GoatDB's reader leaves undecoded is no value."""
    return refuse_encoded(Decoder().decode(encoded))


def sync_messages(document: Document, sheet: Sheet) -> None:
    def filters(c: Case) -> None:
        size, fpr = filter_parameters(c["local"], c["peer"], c["cycles"], c["low_accuracy"])
        # V8 has a `pow` of its own, which rounds one result in thirty the other way; the sizes below are exact.
        if not abs(c["fpr"] - fpr) <= 2 * math.ulp(fpr):
            mismatch("fpr", c["fpr"], fpr)
        equal("filter_bytes", c["filter_bytes"], (bloom.filter_size(size, fpr)[0] + 7) // 8)
        equal("hashes", c["hashes"], bloom.seed_count(size, fpr))
        equal("size", c["size"], c["local"])

    def cycles(c: Case) -> None:
        equal("client", c["client"], cycles_for(c["freq_ms"]))
        equal("server", c["server"], cycles_for(c["freq_ms"]))

    def message(c: Case) -> None:
        decoded = SyncMessage.from_json(parse_json(c["json"]))
        same_text("json", c["json"], to_json(decoded.to_json()))
        equal("size", c["size"], decoded.size)
        sent = [commit["id"] for commit in decoded.commits]
        equal("sent_ids", c["sent_ids"], sent)
        equal("decoded", c["decoded"], {"size": decoded.size, "ids": sent, "version": decoded.version})
        if c["peer_filter"] is None or not (sent or any(decoded.filter.bits)):
            # Either no filter was given, or no missing commits were requested; what was sent shows only the second.
            equal("ids sent without the peer's filter", [], sent)
            equal("an empty filter", 0, sum(decoded.filter.bits))
            equal("size is the local count", c["local_count"], decoded.size)
            return
        peer = BloomFilter.from_json(c["peer_filter"])
        equal("ids that the peer lacks", c["sent_ids"], [each for each in c["all_ids"] if each not in peer])
        equal("filter holds all ids", True, all(each in decoded.filter for each in c["all_ids"]))
        equal("size is the number of all ids", len(c["all_ids"]), decoded.size)

    sheet.each("filters", document.get("filters"), filters)
    sheet.each("cycles", document.get("cycles"), cycles)
    sheet.each("messages", document.get("messages"), message)


def log_recovery(document: Document, sheet: Sheet) -> None:
    def writes(c: Case) -> None:
        log = UpstreamLog(b"")
        for batch in c["batches"]:
            log.append(batch)
        same_text("file", c["file"], log.data.decode())

    def scans(c: Case) -> None:
        data = base64.b64decode(c["file_base64"], validate=True)
        if c["rounds"]:
            equal("records of our own scan", c["rounds"][0]["records"], _handed_on(_own_scan(data)))
        log = UpstreamLog(data, write=c["write"])
        for number, expected in enumerate(c["rounds"]):
            log = UpstreamLog(log.data, write=c["write"])
            equal(f"records of round {number}", expected["records"], _handed_on(log.scan()))
            equal(f"size after round {number}", expected["size_after"], len(log.data))
        _same_bytes("file_after", c["file_after_base64"], log.data)
        if "then_append" in c:
            log = UpstreamLog(log.data, write=c["write"])
            log.scan()
            for batch in c["then_append"]:
                log.append(batch)
            _same_bytes("file_after_append", c["file_after_append_base64"], log.data)
            again = UpstreamLog(log.data, write=False)
            equal("records_after_append", c["records_after_append"], _handed_on(again.scan()))

    sheet.each("writes", document.get("writes"), writes)
    sheet.each("scans", document.get("scans"), scans)


def _handed_on(records: list[Any]) -> Any:
    """Return what GoatDB's thread that reads logs hands on as JSON: a number beyond a double's range is null."""
    return parse_json(to_json(records))


def _own_scan(data: bytes) -> list[Any]:
    found = scan_log(data)
    again = scan_log(data[: found.good_end])
    if again.damage is not None or len(again.records) != len(found.records):
        raise DecodeError("our own repair loses a record")
    return found.records


def _same_bytes(what: str, expected: str, got: bytes) -> None:
    if base64.b64decode(expected, validate=True) != got:
        mismatch(what, base64.b64decode(expected), got)
