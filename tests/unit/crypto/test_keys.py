"""Keys: JWK, raw signatures, and that no private key shows anywhere."""

from __future__ import annotations

import base64
import copy
import logging
import pickle
import traceback
from collections.abc import Iterator
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from hypothesis import given, settings
from hypothesis import strategies as st

from goatherd.crypto import PrivateKey, PublicKey
from goatherd.crypto.keys import raw_from_der
from goatherd.crypto.sealed import open_sealed, seal_data
from goatherd.errors import DecodeError, InvalidSealError, InvalidSignatureError
from tests.done_once import sign_and_verify_each_time

KEY = PrivateKey.generate()
ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973


def b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


@pytest.fixture(autouse=True, scope="module")
def every_signature_is_made_and_verified() -> Iterator[None]:
    with sign_and_verify_each_time():
        yield


class TestSignatures:
    @given(st.binary(max_size=200))
    @settings(deadline=None, max_examples=20)
    def test_verify_and_are_the_same_each_time(self, data: bytes) -> None:
        signature = KEY.sign(data)
        assert len(signature) == 96
        assert KEY.sign(data) == signature
        KEY.public_key.verify(signature, data)

    def test_the_mirrored_one_verifies_too(self) -> None:
        signature = KEY.sign(b"x")
        s = int.from_bytes(signature[48:], "big")
        KEY.public_key.verify(signature[:48] + (ORDER - s).to_bytes(48, "big"), b"x")

    @pytest.mark.parametrize("length", [0, 1, 95, 97, 104])
    def test_of_another_length_are_refused(self, length: int) -> None:
        with pytest.raises(InvalidSignatureError):
            KEY.public_key.verify((KEY.sign(b"x") + bytes(20))[:length], b"x")

    @given(st.integers(0, 767))
    @settings(deadline=None, max_examples=20)
    def test_with_any_bit_flipped_are_refused(self, bit: int) -> None:
        signature = bytearray(KEY.sign(b"x"))
        signature[bit // 8] ^= 1 << bit % 8
        with pytest.raises(InvalidSignatureError):
            KEY.public_key.verify(bytes(signature), b"x")

    @pytest.mark.parametrize("signature", [bytes(96), b"\xff" * 96, bytes(48) + b"\1" * 48])
    def test_out_of_range_are_refused(self, signature: bytes) -> None:
        with pytest.raises(InvalidSignatureError):
            KEY.public_key.verify(signature, b"x")

    @given(st.integers(1, ORDER - 1), st.integers(1, ORDER - 1), st.integers(0, 383), st.integers(0, 383))
    def test_come_out_of_der_padded(self, r: int, s: int, shift_r: int, shift_s: int) -> None:
        r, s = (r >> shift_r) or 1, (s >> shift_s) or 1
        assert raw_from_der(encode_dss_signature(r, s)) == r.to_bytes(48, "big") + s.to_bytes(48, "big")


class TestJWK:
    def test_members_come_in_denos_order(self) -> None:
        assert list(KEY.public_key.to_jwk()) == ["kty", "alg", "crv", "x", "y", "key_ops", "ext"]
        assert list(KEY.to_jwk()) == ["kty", "alg", "crv", "d", "x", "y", "key_ops", "ext"]

    def test_round_trip(self) -> None:
        assert PublicKey.from_jwk(KEY.public_key.to_jwk()) == KEY.public_key
        assert PrivateKey.from_jwk(KEY.to_jwk()).sign(b"x") == KEY.sign(b"x")

    def test_nodes_order_and_missing_alg_are_read(self) -> None:
        jwk = KEY.public_key.to_jwk()
        assert (
            PublicKey.from_jwk({name: jwk[name] for name in ("key_ops", "ext", "kty", "x", "y", "crv")})
            == KEY.public_key
        )

    def test_coordinates_are_always_48_bytes(self) -> None:
        small = PrivateKey.from_jwk(_jwk_of(_key_with_a_leading_zero()))
        assert len(small.public_key.raw) == 96
        assert len(small.public_key.to_jwk()["x"]) == len(small.to_jwk()["d"]) == 64

    @pytest.mark.parametrize(
        "change",
        [
            {"kty": "RSA"},
            {"crv": "P-256"},
            {"x": None},
            {"x": "AA"},
            {"x": "=" * 64},
            {"x": "+" * 64},
            {"x": "é" * 64},
            {"y": 5},
            {"y": "A" * 63 + "\n"},
        ],
    )
    def test_malformed_public_keys_are_refused(self, change: dict[str, Any]) -> None:
        with pytest.raises(DecodeError):
            PublicKey.from_jwk({**KEY.public_key.to_jwk(), **change})

    @pytest.mark.parametrize("jwk", [None, [], "x", {}])
    def test_what_is_no_jwk_is_refused(self, jwk: Any) -> None:
        with pytest.raises(DecodeError):
            PublicKey.from_jwk(jwk)
        with pytest.raises(DecodeError):
            PrivateKey.from_jwk(jwk)

    def test_a_point_off_the_curve_shows_at_check_and_at_verification(self) -> None:
        key = PublicKey.from_jwk({**KEY.public_key.to_jwk(), "y": b64(b"\1" * 48)})
        with pytest.raises(DecodeError):
            key.check()
        with pytest.raises(InvalidSignatureError):
            key.verify(KEY.sign(b"x"), b"x")

    @pytest.mark.parametrize("d", [bytes(48), ORDER.to_bytes(48, "big"), b"\xff" * 48])
    def test_a_private_number_out_of_range_is_refused(self, d: bytes) -> None:
        with pytest.raises(DecodeError):
            PrivateKey.from_jwk({**KEY.to_jwk(), "d": b64(d)})

    def test_a_private_number_of_another_point_is_refused(self) -> None:
        with pytest.raises(DecodeError):
            PrivateKey.from_jwk({**KEY.to_jwk(), "d": PrivateKey.generate().to_jwk()["d"]})


def _key_with_a_leading_zero() -> PrivateKey:
    while True:
        key = PrivateKey.generate()
        if key.public_key.raw[0] == 0 or key.public_key.raw[48] == 0:
            return key


def _jwk_of(key: PrivateKey) -> dict[str, Any]:
    return key.to_jwk()


class TestSecrecy:
    """SECURITY: guards `goatherd.crypto.PrivateKey`."""

    def test_a_private_key_is_not_in_any_text_of_it(self, caplog: pytest.LogCaptureFixture) -> None:
        d = KEY.to_jwk()["d"]
        number = str(int.from_bytes(base64.urlsafe_b64decode(d), "big"))
        logging.getLogger("test").warning("%s %r %s", KEY, KEY, [KEY])
        for text in (repr(KEY), str(KEY), f"{KEY}", caplog.text, repr(vars(type(KEY)).keys())):
            assert d not in text
            assert number not in text

    @pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
    def test_a_public_key_is_pickled_and_copied_before_and_after_its_first_use(self, protocol: int) -> None:
        used = PublicKey(KEY.public_key.raw)
        used.verify(KEY.sign(b"text"), b"text")
        for key in (PublicKey(used.raw), used):
            for again in (pickle.loads(pickle.dumps(key, protocol)), copy.copy(key), copy.deepcopy(key)):
                assert again == key
                again.verify(KEY.sign(b"text"), b"text")

    @pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
    def test_a_private_key_is_not_pickled_or_copied(self, protocol: int) -> None:
        with pytest.raises(TypeError, match="pickled"):
            pickle.dumps(KEY, protocol)
        with pytest.raises(TypeError, match="pickled"):
            copy.deepcopy(KEY)

    @pytest.mark.parametrize(
        "change", [{"x": "A" * 64}, {"crv": "P-256"}, {"d": "short"}, {"d": "!" * 64}, {"d": 5}, {"x": "short"}]
    )
    def test_an_error_quotes_neither_the_key_nor_what_came_instead(self, change: dict[str, Any]) -> None:
        jwk = {**KEY.to_jwk(), **change}
        with pytest.raises(DecodeError) as caught:
            PrivateKey.from_jwk(jwk)
        text = "".join(traceback.format_exception(caught.value))
        assert jwk["d"] != 5 or "= 5" not in text
        assert str(KEY.to_jwk()["d"]) not in text
        assert not isinstance(change.get("d"), str) or change["d"] not in text

    def test_a_public_key_shows_only_its_beginning(self) -> None:
        assert len(repr(KEY.public_key)) < 40


class TestSeal:
    """Data on the disk under a key of the operator's."""

    KEY = bytes.fromhex("feffe9928665731c6d6a8f9467308308" * 2)

    def test_what_was_sealed_elsewhere_by_aes_256_gcm_opens(self) -> None:
        """Test case 16 of McGrew and Viega, "The Galois/Counter Mode of Operation"."""
        nonce, tag = "cafebabefacedbaddecaf888", "76fc6ece0f4e1768cddf8853bb2d551b"
        text = (
            "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa"
            "8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662"
        )
        plain = (
            "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72"
            "1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39"
        )
        associated = bytes.fromhex("feedfacedeadbeeffeedfacedeadbeefabaddad2")
        assert open_sealed(bytes.fromhex(nonce + text + tag), key=self.KEY, associated=associated).hex() == plain

    @given(st.binary(max_size=300), st.binary(max_size=50))
    def test_it_opens_with_the_same_key_and_data_and_is_28_bytes_longer(self, data: bytes, associated: bytes) -> None:
        sealed = seal_data(data, key=self.KEY, associated=associated)
        assert len(sealed) == len(data) + 28
        assert open_sealed(sealed, key=self.KEY, associated=associated) == data
        assert seal_data(data, key=self.KEY, associated=associated)[:12] != sealed[:12]

    @given(st.binary(max_size=100), st.integers(0, 10_000), st.integers(1, 255))
    def test_any_change_of_it_shows(self, data: bytes, place: int, change: int) -> None:
        sealed = bytearray(seal_data(data, key=self.KEY, associated=b"a"))
        with pytest.raises(InvalidSealError):
            open_sealed(bytes(sealed), key=self.KEY, associated=b"b")
        with pytest.raises(InvalidSealError):
            open_sealed(bytes(sealed), key=bytes(32), associated=b"a")
        with pytest.raises(InvalidSealError):
            open_sealed(bytes(sealed[: place % len(sealed)]), key=self.KEY, associated=b"a")
        sealed[place % len(sealed)] ^= change
        with pytest.raises(InvalidSealError):
            open_sealed(bytes(sealed), key=self.KEY, associated=b"a")

    @pytest.mark.parametrize("size", [0, 16, 24, 31, 33])
    def test_a_shorter_key_is_no_weaker_seal_but_a_mistake(self, size: int) -> None:
        with pytest.raises(ValueError, match="32 bytes"):
            seal_data(b"", key=bytes(size), associated=b"")
