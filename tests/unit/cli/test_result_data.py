"""Each value of a report is printed under its own name: of a rotation, of the demo, of a key that no version holds."""

from __future__ import annotations

import io
from dataclasses import replace
from datetime import timedelta

import pytest

from goatherd.cli.demo import demo_json, demo_lines
from goatherd.cli.output import Output
from goatherd.cli.text.key_inventory import inventory_lines
from goatherd.cli.text.rotation import report_data
from goatherd.identity.key_retirement import RetirementRule
from goatherd.key_inventory import Holding, KeyInventory
from goatherd.operations.demo import DemoPart, DemoReport
from goatherd.operations.workload import LoadAudit, LoadWindow
from goatherd.providers.values import SecretVersion, VersionId
from goatherd.rotation.events import Report
from goatherd.rotation.machine import Kept, Outcome, Phase

OUTPUT = Output(as_json=False, stdout=io.StringIO(), stderr=io.StringIO())


def test_every_value_of_a_rotations_report_is_under_its_own_name() -> None:
    report = Report(
        outcome=Outcome.CANCELLED,
        rotation_id="rotation-1",
        from_id="root-a",
        to_id="root-b",
        current_id="root-c",
        phase=Phase.ACTIVATED,
        generation=7,
        reason="a test",
        event="cancelled",
        behind=("http://behind",),
        left_out=("http://left-out",),
        destroyed=("1",),
        given_up=("2",),
        kept=(Kept(version="3", labels=("mine",)),),
        undestroyed=("4 (provider.throttled)",),
        restarts={"http://node": 5, "http://unknown": None},
        began_ms=1_795_521_600_000,
        ended_ms=1_795_521_602_345,
    )
    assert report_data(report) == {
        "outcome": "cancelled",
        "rotation": "rotation-1",
        "from": "root-a",
        "to": "root-b",
        "current": "root-c",
        "phase": "activated",
        "generation": 7,
        "reason": "a test",
        "event": "cancelled",
        "behind": ["http://behind"],
        "leftOut": ["http://left-out"],
        "destroyed": ["1"],
        "givenUp": ["2"],
        "kept": [{"version": "3", "labels": ["mine"]}],
        "undestroyed": ["4 (provider.throttled)"],
        "restarts": [{"node": "http://node", "count": 5}, {"node": "http://unknown", "count": None}],
        "began": "2026-11-24T12:00:00.000Z",
        "ended": "2026-11-24T12:00:02.345Z",
        "seconds": 2.345,
    }


DEMO = DemoReport(
    servers=3,
    clients=6,
    passages=(
        DemoPart(
            name="before",
            window=LoadWindow(requests=10, refused=0, p50_ms=1.234, p99_ms=5.678, reasons={}),
            phases={},
        ),
        DemoPart(
            name="rotation",
            window=LoadWindow(requests=20, refused=0, p50_ms=2.0, p99_ms=6.0, reasons={}),
            phases={"prepared": 0.1234, "published": 0.5},
        ),
    ),
    audit=LoadAudit(accepted=15, lost={}, unverifiable=(), by_signer={"root-a": 4, "root-b": 8}),
    roots={"A": "root-a", "B": "root-b", "C": "root-c"},
    signer="root-b",
    clean_exits=True,
)


def test_every_value_of_the_demos_report_is_under_its_own_name() -> None:
    assert demo_json(DEMO) == {
        "passed": True,
        "servers": 3,
        "clients": 6,
        "requests": 30,
        "refused": 0,
        "commits": 15,
        "lost": 0,
        "unverifiable": 0,
        "signer": "root-b",
        "sessionsSignedBy": {"A": 4, "B": 8, "C": 0},
        "passages": [
            {
                "name": "before",
                "requests": 10,
                "refused": 0,
                "reasons": {},
                "p50Ms": 1.23,
                "p99Ms": 5.68,
                "phaseSeconds": {},
            },
            {
                "name": "rotation",
                "requests": 20,
                "refused": 0,
                "reasons": {},
                "p50Ms": 2.0,
                "p99Ms": 6.0,
                "phaseSeconds": {"prepared": 0.123, "published": 0.5},
            },
        ],
    }
    lines = demo_lines(DEMO, OUTPUT)
    assert lines[2].split() == ["before", "10", "0", "1.2", "ms", "5.7", "ms"]
    assert lines[3].endswith("prepared 0.12 s  published 0.50 s")
    assert lines[5:9] == [
        "  requests 30   refused 0",
        "  commits  15   lost 0   unverifiable 0   (each read from all 3 servers, each signature checked)",
        "  session commits signed by root: A 4, B 8, C 0",
        "",
    ]
    assert lines[9:] == ["Nothing refused, nothing lost."]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"audit": replace(DEMO.audit, lost={"commit": ("http://node",)})}, "  commits  15   lost 1   unverifiable 0"),
        ({"audit": replace(DEMO.audit, unverifiable=("commit",))}, "  commits  15   lost 0   unverifiable 1"),
        ({"audit": replace(DEMO.audit, accepted=0)}, "  commits  0   lost 0   unverifiable 0"),
        ({"clean_exits": False}, "  a server did not end cleanly"),
        (
            {
                "passages": (
                    replace(
                        DEMO.passages[0], window=replace(DEMO.passages[0].window, refused=2, reasons={"HTTP 400": 2})
                    ),
                )
            },
            "  before: 2 x HTTP 400",
        ),
    ],
)
def test_the_demo_has_failed_if_one_thing_went_wrong_and_its_report_says_what(
    change: dict[str, object], line: str
) -> None:
    report = replace(DEMO, **change)  # type: ignore[arg-type]
    assert demo_json(report)["passed"] is False
    lines = demo_lines(report, OUTPUT)
    assert any(one.startswith(line) for one in lines)
    assert lines[-1] == "FAILED: see above."


def test_each_root_whose_key_no_version_holds_is_a_line_that_says_where_the_key_is() -> None:
    read = Holding(
        version=SecretVersion(id=VersionId("1"), created_ms=0), private_ids=frozenset({"held"}), retired_ms=0
    )
    keys = KeyInventory(
        holdings=(read,),
        rule=RetirementRule(
            signing=frozenset({"held"}), in_use=frozenset(), cancelled=frozenset(), grace=timedelta(days=30)
        ),
        roots=("held", "gone", "recorded", "anchor", "former"),
        recorded=frozenset({"recorded"}),
        unretired=(),
        copies=None,
        anchors=frozenset({"anchor", "former"}),
    )
    assert inventory_lines(keys, OUTPUT, 0)[2:] == [
        "the private key of gone is in no version of this secret",
        "the private key of recorded is in no version of this secret, and the identity records that none holds it",
        "the private key of the anchor anchor is in an HSM or a KMS, and in no version of this secret",
        "the private key of the anchor former is in an HSM or a KMS, and in no version of this secret",
    ]
    unread = replace(read, problem="provider.unavailable")
    assert inventory_lines(replace(keys, holdings=(unread,)), OUTPUT, 0)[2] == (
        "the private key of gone was not found, but some versions could not be read"
    )
