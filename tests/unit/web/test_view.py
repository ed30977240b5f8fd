"""The page, `goatherd status` and the metrics are views of one object, so they state the same."""

from __future__ import annotations

import json
from dataclasses import replace
from html import unescape

import pytest

from goatherd.cli.text.status import status_data
from goatherd.errors import ProviderAccessDeniedError
from goatherd.identity.document import Phase
from goatherd.identity.transitions import create_document, revoke_root
from goatherd.metrics import Metric, identity_samples
from goatherd.rotation.obstacles import Obstacle, ObstacleKind
from goatherd.times import iso
from goatherd.web.render import Choice, Renderer, view_data
from goatherd.web.view import Fact, State, TrailView, make_view
from tests.fakes.page_scenes import GUARANTEES, NOW, A, B, away, herd, scenes, server, status, steady, view_of
from tests.unit.identity.make import owned as make_root

SCENES = scenes()
FACTS = {None: Fact.UNKNOWN, True: Fact.YES, False: Fact.NO}


@pytest.mark.parametrize("name", SCENES)
def test_page_status_and_metrics_state_the_same(name: str) -> None:
    found = SCENES[name]
    view = view_of(found)
    data = status_data(found, view)
    samples = {(one.metric, one.labels): one.value for one in identity_samples(found.document)}
    identity = data["identity"]

    assert view.signer == identity["current"]["id"]
    assert samples[Metric.IDENTITY_INFO, (view.signer,)] == 1
    assert view.generation == identity["generation"] == samples[Metric.IDENTITY_GENERATION, ()]
    assert (data["state"], data["summary"]) == (view.state, view.sentence)
    phase = "steady" if view.rotation is None else view.rotation.phase
    assert phase == identity["phase"]
    assert [one for one in Phase if samples[Metric.ROTATION_PHASE, (one.value,)]] == [phase]
    signs = next(row for row in view.roots if row.state == "signs")
    assert signs.since_ms is not None
    assert samples[Metric.ROOT_SIGNING_SINCE, ()] == signs.since_ms / 1000
    assert samples[Metric.ROOT_EXPIRES, ()] == signs.expires_ms / 1000
    expirations = {one["id"]: one["expiration"] for one in identity["roots"]}
    assert {row.id: iso(row.expires_ms) for row in view.roots} == expirations
    assert {row.id for row in view.roots if row.state == "revoked"} == {one["id"] for one in identity["revoked"]}
    assert len(view.history) == len(identity["history"])
    assert [iso(row.at_ms) for row in reversed(view.history)] == [one["at"] for one in identity["history"]]
    if name != "hostile":
        reasons = [one.get("reason") for one in identity["history"]]
        assert [row.reason or None for row in reversed(view.history)] == reasons
        assert view.store == data["store"]
    assert dict(view.stores[0].labels) == data["labels"]
    for store, one in zip(view.stores, data["stores"], strict=False):
        assert (store.region, store.role.partition(",")[0], store.generation) == (
            one["region"],
            one["role"],
            one["generation"],
        )
        assert (None if store.lag_since_ms is None else iso(store.lag_since_ms)) == one["lagSince"]
    assert len(view.stores) == max(1, len(data["stores"]))
    assert {row.id: {place.version for place in row.places} for row in view.roots} == {
        one["id"]: set(one["versions"]) for one in data["privateKeys"]["roots"]
    }
    assert (view.rotation is None) == (data["rotation"] is None)
    if view.rotation is not None:
        assert view.rotation.until_ms is not None
        assert iso(view.rotation.until_ms) == data["rotation"]["until"]
        assert list(view.rotation.waiting_for) == data["rotation"]["waitingFor"]
    for row, one in zip(view.servers, data["nodes"], strict=True):
        assert row.trusts_current is FACTS[one["trustsCurrent"]]
        assert row.generation == one["generation"]
        assert (row.region or None, row.store_region or None) == (one["region"], one["storeRegion"])
        assert row.clock_ahead_ms == one["clockAheadMs"]
        assert (row.version or None) == one["version"]
        if row.trusts_next is not Fact.NONE:
            assert (row.trusts_next, row.introduction) == (FACTS[one["trustsNext"]], FACTS[one["holdsIntroduction"]])
        if row.cross_signature is not Fact.NONE:
            assert row.cross_signature is FACTS[one["holdsCrossSignature"]]
    assert view.signing == sum(one["signsWith"] == view.signer for one in data["nodes"])


def test_the_sentence_counts_servers_and_names_the_next_rotation() -> None:
    view = view_of(SCENES["steady"])
    assert (view.state, view.sentence) == (State.WELL, "Root x7uubah0 signs on 5 of 5 servers.")
    assert view.next_step is not None
    assert view.next_step.cron == "* 1-4 * * SAT,SUN (Europe/Berlin)"
    assert view.next_step.at_ms is not None
    assert view.next_step.at_ms > NOW


def test_a_server_that_is_away_is_named_and_the_unknown_is_never_no() -> None:
    view = view_of(SCENES["server-away"])
    assert view.state is State.FAILED
    assert "4 of 5 servers; http://10.0.0.5:8080 did not answer" in view.sentence
    row = view.servers[4]
    assert (row.reachable, row.trusts_current, row.signs) == (Fact.NO, Fact.UNKNOWN, "unknown")
    assert [one.text for one in view.remarks] == [], "the sentence says it already"
    assert row.problem == "did not answer: connection refused"
    remembered = replace(away(steady(), 0), clock_ahead_ms=0)
    assert view_of(status(steady(), [remembered])).servers[0].clock_ahead_ms is None
    silent = view_of(SCENES["unmodified"])
    assert silent.sentence.endswith("4 of 5 servers; 1 does not report its root.")
    assert silent.servers[4].is_behind
    assert [row.version for row in silent.servers] == [*["0.1.0"] * 3, "", None]


def test_a_store_that_went_back_comes_before_everything_else() -> None:
    now = steady()
    back = Obstacle(kind=ObstacleKind.STORE_BEHIND, text="a server has used generation 9", hint="Put it back.")
    view = view_of(status(now, [away(now, 0)], obstacles=[back]))
    assert (view.state, view.advice) == (State.FAILED, "Put it back.")
    assert view.sentence == (
        "The store holds an older or a different identity than before: a server has used generation 9."
    )


def test_each_phase_says_what_happens_at_its_deadline() -> None:
    for phase, ends in (("prepared", "cancels it"), ("published", "cancels it"), ("activated", "rolls it back")):
        view = view_of(SCENES[phase])
        assert view.state is State.ROTATING
        assert view.next_step is None
        assert view.rotation is not None
        assert f"The process that drives the rotation {ends}: {A[:8]} " in view.rotation.at_deadline
        assert dict(view.rotation.phases)[phase] == "current"
        assert (view.rotation.from_id, view.rotation.to_id) == (A, B)
    assert [row.signs for row in view_of(SCENES["activated"]).servers] == [*["current"] * 4, "previous"]
    late = replace(SCENES["activated"], at_ms=NOW + 900_000)
    assert view_of(late).state is State.DEGRADED


def test_versions_that_may_not_be_listed_are_unknown() -> None:
    found = SCENES["steady"]
    keys = replace(found.keys, holdings=(), cause=ProviderAccessDeniedError("no"))
    view = view_of(replace(found, keys=keys, versions=(), written_ms=None))
    (row,) = view.stores
    assert (row.versions, row.written_ms) == (None, None)
    assert row.problem == "its versions cannot be read (provider.access_denied)"
    assert view.state is State.WELL
    assert view.next_step is not None
    sections = Renderer().render_sections(view_data(view), Choice(), is_live=False, problem=None)
    assert sections["stores"].count(">unknown<") == 2


def test_a_roll_back_is_told_with_its_reason() -> None:
    view = view_of(SCENES["rolled-back"])
    assert view.state is State.DEGRADED
    assert "does not sign with the next root" in view.remarks[0].text
    assert view.remarks[0].at_ms == view.history[0].at_ms
    assert view.history[0].reason == "http://10.0.0.3:8080 does not sign with the next root"


def test_an_anchor_is_named_with_the_place_of_its_key() -> None:
    rows = view_of(SCENES["anchored"]).roots
    assert [(row.id, row.state, row.absence) for row in rows] == [
        (B, "signs", ""),
        (A, "anchor", "its key is in an HSM or a KMS"),
    ]


def test_an_audit_trail_that_is_not_whole_is_named_at_the_top() -> None:
    trail = TrailView(file="audit.jsonl", verdict="broken", text="line 3 is not a record", checked_ms=NOW)
    view = make_view(SCENES["steady"], org="localhost", guarantees=GUARANTEES, trail=trail)
    assert view.state is State.DEGRADED
    assert view.remarks[0].text == "The audit trail audit.jsonl is broken: line 3 is not a record"
    assert view.remarks[0].advice == "Run `goatherd audit verify audit.jsonl`."


def test_a_server_that_signs_with_another_root_is_trouble() -> None:
    now = steady()
    view = view_of(status(now, [*herd(now, 2), server(now, 2, signs_with=A)]))
    assert view.state is State.FAILED
    assert "2 of 3 servers; http://10.0.0.3:8080 does not follow the current root" in view.sentence


def test_texts_from_outside_are_escaped_and_cannot_turn_the_line_around() -> None:
    view = view_of(SCENES["hostile"])
    text = json.dumps(view_data(view), ensure_ascii=False)
    assert "\u202e" not in text
    renderer = Renderer()
    html = "".join(renderer.render_sections(view_data(view), Choice(), is_live=True, problem=None).values())
    assert "<script" not in html
    assert "<img" not in html
    assert "&lt;script&gt;" in html


@pytest.mark.parametrize("name", SCENES)
def test_no_private_key_and_no_key_material_reaches_a_view_or_a_page(name: str) -> None:
    found = SCENES[name]
    view = view_data(view_of(found))
    written = json.dumps(view) + Renderer().render_file(view)
    for owned in (found.document.current, found.document.next):
        if owned is not None:
            secret = owned.signer.to_jwk()["d"]  # type: ignore[union-attr]
            assert len(secret) == 64
            assert secret not in written


def test_a_file_holds_everything_and_loads_nothing() -> None:
    html = unescape(Renderer().render_file(view_data(view_of(SCENES["long-history"], interval_ms=None))))
    assert html.count('id="event-') == 500
    assert "default-src 'none'; style-src 'sha256-" in html
    # The script polls only for a page that is served; here the policy lets it connect to nothing.
    for reference in (" src=", "<link", "url(", "@import", "connect-src"):
        assert reference not in html, reference
    assert 'href="/' not in html


def test_a_link_to_an_event_leads_to_it_when_older_events_are_gone() -> None:
    found = SCENES["long-history"]
    later = replace(found, document=replace(found.document, history=found.document.history[100:]))
    anchors = [row.anchor for row in view_of(found).history]
    assert len(set(anchors)) == 500
    assert [row.anchor for row in view_of(later).history] == anchors[:400]
    view, renderer = view_data(view_of(found)), Renderer()
    here, all_events = f"#{anchors[0]}", f"/?all=1#{anchors[0]}"
    for choice, is_live, link in (
        (Choice(), True, all_events),
        (Choice(is_all=True), True, here),
        (Choice(), False, here),
    ):
        sections = renderer.render_sections(view, choice, is_live=is_live, problem=None)
        assert f'href="{link}"' in sections["history"]


def test_the_history_is_filtered_and_cut_for_a_live_page() -> None:
    view = view_data(view_of(SCENES["long-history"]))
    renderer = Renderer()

    def shown(choice: Choice) -> int:
        return renderer.render_sections(view, choice, is_live=True, problem=None)["history"].count('id="event-')

    assert shown(Choice()) == 50
    assert shown(Choice(is_all=True)) == 500
    assert shown(Choice(event="cancelled", is_all=True)) == 125
    assert shown(Choice(event="no such event")) == 0


def test_the_root_after_a_revocation_is_introduced_by_the_revoked_one() -> None:
    stolen, successor = make_root("a"), make_root("c")
    document = revoke_root(create_document(stolen, NOW), stolen.id, NOW, reason="stolen", successor=successor)
    rows = {row.id: row.introduced_by for row in view_of(status(document, [])).roots}
    assert rows == {stolen.id: (), successor.id: (stolen.id,)}
