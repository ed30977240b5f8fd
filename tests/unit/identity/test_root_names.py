"""Roots are named by what every output shows: a beginning of the id; and by ``current`` and ``previous``."""

from __future__ import annotations

from dataclasses import replace

import pytest

from goatherd.errors import ConfigurationError
from goatherd.identity.document import HistoryEntry
from goatherd.identity.root_names import resolve_root, shorten_id

from .make import first


def test_a_root_is_named_by_its_id_by_a_unique_beginning_or_by_its_place() -> None:
    document = first()
    current = document.current.id
    with pytest.raises(ConfigurationError, match="there is no previous root"):
        resolve_root(document, "previous")
    gone = HistoryEntry(at=1, event="rotated", from_id="xyzdefghijklmnop", to_id="xyzdefghzzzzzzzz")
    document = replace(document, history=(gone,), rotated_from="xyzdefghijklmnop")
    names = {
        "current": current,
        "previous": "xyzdefghijklmnop",
        current: current,
        "xyzdefghi": "xyzdefghijklmnop",
        "no-such-root": "no-such-root",
    }
    assert {name: resolve_root(document, name) for name in names} == names
    with pytest.raises(ConfigurationError, match="'xyz' is the beginning of 2 roots: xyzdefghijklmnop, xyzdefghzzzzz"):
        resolve_root(document, "xyz")
    with pytest.raises(ConfigurationError, match="the id of the root is empty"):
        resolve_root(document, "")


def test_a_whole_id_is_not_a_beginning_of_a_longer_one() -> None:
    both = HistoryEntry(at=1, event="rotated", from_id="xyz", to_id="xyzd")
    assert resolve_root(replace(first(), history=(both,)), "xyz") == "xyz"


def test_a_long_id_is_shown_by_its_beginning() -> None:
    assert (shorten_id("x7uubah0sjfihygxyyz6ntwb"), shorten_id("twelve-chars")) == ("x7uubah0", "twelve-chars")
