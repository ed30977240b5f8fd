"""GoatDB's base32."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goatherd.errors import DecodeError
from goatherd.wire.base32 import base32_decode, base32_encode


class TestBase32:
    @given(st.binary(max_size=300))
    def test_is_rfc_4648_with_the_first_padding_replaced(self, raw: bytes) -> None:
        text = base32_encode(raw)
        assert text == base64.b32encode(raw).decode().replace("=", "_", 1).lower()
        assert base32_decode(text) == raw
        assert base32_decode(text.upper()) == raw
        assert base32_decode(text.replace("_", "=")) == raw

    def test_ignores_spare_bits(self) -> None:
        assert base32_decode("mf_=====") == base32_decode("me_=====") == b"a"

    @pytest.mark.parametrize(
        "text", ["me", "me======x", "m_______", "_=======", "mez_====", "mezd____", "a1======", "a=a====="]
    )
    def test_refuses_bad_length_padding_and_characters(self, text: str) -> None:
        with pytest.raises(DecodeError):
            base32_decode(text)

    def test_refuses_what_is_no_text(self) -> None:
        with pytest.raises(DecodeError):
            base32_decode(None)  # type: ignore[arg-type]
