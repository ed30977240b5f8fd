"""GoatDB's version numbers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.vectors.versions import pack_version, unpack_version


class TestVersions:
    @given(st.integers(0, 255), st.integers(0, 255), st.integers(0, 255), st.integers(0, 255))
    def test_versions_pack_into_a_signed_32_bit_integer(self, a: int, b: int, c: int, d: int) -> None:
        packed = pack_version((a, b, c, d))
        assert -(2**31) <= packed < 2**31
        assert unpack_version(packed) == (a, b, c, d)
