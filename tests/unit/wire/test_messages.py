"""Sync messages and request bodies."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goatherd.errors import DecodeError
from goatherd.wire.bloom import BloomFilter
from goatherd.wire.messages import (
    VERSION,
    EncodedMessage,
    SyncMessage,
    cycles_for,
    decode_reply,
    decode_request,
    decode_request_element,
    decode_session_reply,
    encode_filter,
    encode_reply,
    encode_request,
    encode_session_request,
    filter_parameters,
)

MESSAGE = SyncMessage(version=VERSION, filter=BloomFilter(b"\1", (5, 6)), size=3, commits=[{"id": "a"}])
ENCODED = EncodedMessage(filter=encode_filter(MESSAGE.filter), size=3, commits=[b'{"id":"a"}'])


def test_a_message_is_written_in_goatdbs_order() -> None:
    assert encode_request([("/data/x", ENCODED)]) == encode_request([("/data/x", MESSAGE.to_json())])
    assert encode_request([("/data/x", ENCODED)]) == (
        b'[{"path":"/data/x","msg":{"ver":50595584,"f":{"__t":"E","__v":{"d":"AQ==","s":[5,6]}},'
        b'"s":3,"c":[{"id":"a"}],"ad":[]}}]'
    )


def test_requests_and_replies_read_back() -> None:
    ((path, message),) = [decode_request_element(each) for each in decode_request(encode_request([("/d/x", ENCODED)]))]
    assert (path, message.to_json()) == ("/d/x", MESSAGE.to_json())
    ((path, message),) = decode_reply(encode_reply([("/d/x", ENCODED)]))
    assert (path, message.to_json()) == ("/d/x", MESSAGE.to_json())


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


@pytest.mark.parametrize("body", [b"{}", b"null", b"nonsense", b""])
def test_a_batch_is_an_array(body: bytes) -> None:
    with pytest.raises(DecodeError):
        decode_request(body)
    with pytest.raises(DecodeError):
        decode_reply(body)


@pytest.mark.parametrize("body", [b"[{}]", b'[{"path":"/a/b"}]', b'[{"path":"/a/b","res":{}}]', b"[5]"])
def test_malformed_replies_are_refused(body: bytes) -> None:
    with pytest.raises(DecodeError):
        decode_reply(body)


def test_session_bodies() -> None:
    assert encode_session_request({"kty": "EC"}) == b'{"publicKey":{"kty":"EC"}}'
    assert decode_session_reply(b'{"session":{"id":"a"},"roots":[{}]}') == ({"id": "a"}, [{}])
    for body in (b"[]", b"{}", b'{"session":{},"roots":[5]}', b'{"session":5,"roots":[]}'):
        with pytest.raises(DecodeError):
            decode_session_reply(body)


@given(st.integers(0, 100_000), st.integers(0, 100_000), st.integers(1, 3))
def test_filter_parameters_stay_in_range(local: int, peer: int, cycles: int) -> None:
    size, fpr = filter_parameters(local, peer, cycles)
    assert size == max(1, local, peer)
    assert 0 < fpr <= 0.5
    assert filter_parameters(local, peer, cycles, low_accuracy=True) == (size, 0.5)


def test_cycles_are_one_to_three() -> None:
    assert [cycles_for(ms) for ms in (0, 333, 334, 500, 501, 10**9)] == [3, 3, 2, 2, 1, 1]
