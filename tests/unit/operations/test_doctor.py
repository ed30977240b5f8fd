"""What `goatherd doctor` concludes from what a server reports."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from goatherd.clock import SystemClock
from goatherd.cluster.node import NodeView
from goatherd.cluster.server_answers import ServerIdentity
from goatherd.identity.session import OwnedSession
from goatherd.identity.transitions import create_document
from goatherd.operations.doctor import CheckScope, _check_step
from goatherd.operations.store_checks import FAILED, WARNING
from goatherd.rotation.policy import Policy


@pytest.mark.parametrize(("seconds_ago", "is_suspected"), [(2, True), (500, False)])
def test_a_server_that_read_a_store_after_the_change_and_has_not_seen_it_reads_another_store(
    seconds_ago: int, is_suspected: bool
) -> None:
    now_ms = SystemClock().now_ms()
    root = OwnedSession.generate(session_id="root-a", owner="root", now_ms=now_ms, lifetime=timedelta(days=90))
    document = replace(create_document(root, now_ms), generation=7, last_updated=now_ms - 300_000)
    report = ServerIdentity(
        generation=2, view_age=timedelta(seconds=seconds_ago), view_interval=timedelta(minutes=5), says_interval=True
    )
    node = NodeView(
        url="http://a", reachable=True, report=report, trusts_current=True, signs_with="root-a", generation=2
    )
    scope = CheckScope(org="localhost", policy=Policy(), refresh_interval=timedelta(seconds=30))
    found = _check_step(node, document, scope)
    assert found.level == WARNING
    assert found.text.startswith("http://a is at generation 2, the store at 7")
    assert ("not another one" in found.hint) is is_suspected


@pytest.mark.parametrize(("generation", "hint"), [(2, "can read the store"), (9, "see `store history`")])
def test_a_server_with_another_root_has_missed_a_change_or_the_store_has_lost_one(generation: int, hint: str) -> None:
    now_ms = SystemClock().now_ms()
    root = OwnedSession.generate(session_id="root-a", owner="root", now_ms=now_ms, lifetime=timedelta(days=90))
    document = replace(create_document(root, now_ms), generation=7)
    report = ServerIdentity(generation=generation)
    node = NodeView(
        url="http://a", reachable=True, report=report, trusts_current=True, signs_with="root-b", generation=generation
    )
    scope = CheckScope(org="localhost", policy=Policy(), refresh_interval=timedelta(seconds=30))
    found = _check_step(node, document, scope)
    assert (found.level, found.text) == (FAILED, "http://a signs with root-b, not with root-a")
    assert hint in found.hint
