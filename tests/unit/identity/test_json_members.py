"""The rules that each member of an identity document keeps, whatever it is about."""

from __future__ import annotations

import pytest

from goatherd.errors import MalformedIdentityError
from goatherd.identity.json_members import read_text


def test_a_string_has_as_many_characters_as_its_limit_at_most() -> None:
    assert read_text("12345", "here", limit=5) == "12345"
    for value in ("123456", 5, None):
        with pytest.raises(MalformedIdentityError, match=r"^here must be a string of at most 5 characters$"):
            read_text(value, "here", limit=5)
