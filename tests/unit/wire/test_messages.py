"""Sync messages and request bodies."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goatherd.errors import DecodeError
from goatherd.wire.bloom import BloomFilter
from goatherd.wire.json import parse_json, to_json_bytes
from goatherd.wire.messages import (
    VERSION,
    EncodedMessage,
    SyncMessage,
    decode_request_element,
    encode_filter,
    encode_reply,
    encode_request,
    filter_parameters,
)
from tests.fakes.goatdb_rules import cycles_for

MESSAGE = SyncMessage(version=VERSION, filter=BloomFilter(b"\1", (5, 6)), size=3, commits=[{"id": "a"}])
ENCODED = EncodedMessage(filter=encode_filter(MESSAGE.filter), size=3, commits=[b'{"id":"a"}'])


def test_a_message_is_written_in_goatdbs_order() -> None:
    message = b'{"ver":50595584,"f":{"__t":"E","__v":{"d":"AQ==","s":[5,6]}},"s":3,"c":[{"id":"a"}],"ad":[]}'
    assert to_json_bytes(MESSAGE.to_json()) == message
    assert encode_reply([("/data/x", ENCODED)]) == b'[{"path":"/data/x","res":' + message + b"}]"
    assert encode_request([("/data/x", ENCODED)]) == b'[{"path":"/data/x","msg":' + message + b"}]"
    assert encode_request([("/data/x", MESSAGE.to_json())]) == encode_request([("/data/x", ENCODED)])
    assert SyncMessage.from_json(parse_json(message)) == MESSAGE


def test_an_element_of_a_request_is_a_path_and_a_message() -> None:
    assert decode_request_element({"path": "/d/x", "msg": MESSAGE.to_json()}) == ("/d/x", MESSAGE)


def test_a_bare_filter_and_absent_members_are_accepted() -> None:
    message = SyncMessage.from_json({"f": {"d": "AA==", "s": []}})
    assert (message.version, message.size, list(message.commits)) == (0, 0, [])


def test_seeds_may_be_texts_of_whole_numbers() -> None:
    assert SyncMessage.from_json({"f": {"d": "AQ==", "s": ["5", 6]}}).filter == BloomFilter(b"\1", (5, 6))
    for seed in ("", "x", "-1", "1.5", "9" * 17, "²"):
        with pytest.raises(DecodeError):
            SyncMessage.from_json({"f": {"d": "AQ==", "s": [seed]}})


@pytest.mark.parametrize("version", [None, "50595584", True, {}])
def test_a_version_that_is_no_number_counts_as_none(version: object) -> None:
    assert SyncMessage.from_json({"f": {"d": "", "s": []}, "ver": version}).version == 0


@pytest.mark.parametrize(
    "message", [None, [], {}, {"f": None}, {"f": {"d": "", "s": []}, "c": None}, {"f": {"__t": "E"}}]
)
def test_malformed_messages_are_refused(message: object) -> None:
    with pytest.raises(DecodeError):
        SyncMessage.from_json(message)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "element", [None, 5, {}, {"path": 5, "msg": {}}, {"path": "/a/b"}, {"path": "/a/b", "msg": None}]
)
def test_malformed_elements_are_refused(element: object) -> None:
    with pytest.raises(DecodeError):
        decode_request_element(element)


@given(st.integers(0, 100_000), st.integers(0, 100_000), st.integers(1, 3))
def test_filter_parameters_stay_in_range(local: int, peer: int, cycles: int) -> None:
    size, fpr = filter_parameters(local, peer, cycles)
    assert size == max(1, local, peer)
    assert 0 < fpr <= 0.5
    assert filter_parameters(local, peer, cycles, low_accuracy=True) == (size, 0.5)


def test_cycles_are_one_to_three() -> None:
    assert [cycles_for(ms) for ms in (0, 333, 334, 500, 501, 10**9)] == [3, 3, 2, 2, 1, 1]
