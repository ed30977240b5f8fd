"""Which commits of /sys/sessions introduce a user's session, and the filter that asks a server for a sample."""

from __future__ import annotations

from typing import Any

import pytest

from goatherd.cluster.session_queries import _filter_sample, introduces_user
from goatherd.wire.bloom import BloomFilter

FIELDS = {"id": "session", "owner": ""}
COMMIT: dict[str, Any] = {"id": "commit", "k": "session", "ts": 1, "c": {"r": {"d": FIELDS}}}


@pytest.mark.parametrize(
    ("members", "is_introduction"),
    [
        ({}, True),
        ({"p": []}, True),
        ({"p": ["parent"]}, False),
        ({"k": "another"}, False),
        ({"id": 5}, False),
        ({"ts": "1"}, False),
        ({"c": {"r": {"d": {**FIELDS, "owner": "user"}}}}, False),
        ({"c": {"r": {"d": None}}}, False),
        ({"c": {"r": None}}, False),
        ({"c": None}, False),
    ],
    ids=str,
)
def test_the_first_whole_commit_of_a_session_without_an_owner_introduces_a_user(
    members: dict[str, Any], is_introduction: bool
) -> None:
    assert introduces_user({**COMMIT, **members}) is is_introduction


@pytest.mark.parametrize(("share", "zeros"), [(0.0, 1), (0.25, 0.25), (0.5, 0.5), (1.0, 1.0)])
def test_a_filter_contains_all_ids_but_the_wanted_share_and_never_all(share: float, zeros: float) -> None:
    found = BloomFilter.from_json(_filter_sample(share)["__v"])
    missing = 8 * len(found.bits) - sum(byte.bit_count() for byte in found.bits)
    assert missing == (zeros if isinstance(zeros, int) else round(zeros * 8 * len(found.bits)))
