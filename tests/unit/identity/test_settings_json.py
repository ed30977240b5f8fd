"""Import from and export to GoatDB's settings.json."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from goatherd.errors import IdentityError, KeyMismatchError, MalformedIdentityError
from goatherd.identity.document import decode_document, encode_document
from goatherd.identity.redaction import redact_document
from goatherd.identity.settings_json import from_settings, publishes_private_key, to_settings, to_settings_keeping
from goatherd.identity.transitions import prepare_rotation, revoke_root

from .make import DAY, NOW, activated, everything_in, first, owned, prepared, rotated, shows_key

VECTORS = Path(__file__).parents[2] / "vectors"
DESCRIPTION = json.loads((VECTORS / "jsonl/description.json").read_text())
WRITTEN_BY_GOATDB: dict[str, str] = {
    "a running server": DESCRIPTION["settings_json"],
    **{case["name"]: case["text"] for case in json.loads((VECTORS / "sessions.json").read_text())["settings"]},
}
USER = owned("u", owner="u-1")
GUEST = owned("g", owner=None)


def settings_tree(**members: Any) -> dict[str, Any]:
    """Return a settings.json as a running GoatDB server writes it, with private keys wherever its own session
    occurs."""
    own = owned("a").to_secret_json()
    trusted = [own, USER.session.to_json(), GUEST.session.to_json()]
    return {"currentSession": own, "roots": [own], "trustedSessions": trusted, **members}


def text(tree: dict[str, Any]) -> str:
    return json.dumps(tree, indent=2, ensure_ascii=False)


@pytest.mark.parametrize("name", WRITTEN_BY_GOATDB)
def test_what_goatdb_wrote_becomes_a_document_with_the_same_keys(name: str) -> None:
    raw = WRITTEN_BY_GOATDB[name]
    original = json.loads(raw)
    document, trusted, _ = from_settings(raw, NOW)
    assert document.generation == 1
    assert document.current.to_secret_json() == original["currentSession"]
    assert document.find_root(document.current.id) == document.current.session
    assert {session.id for session in trusted} == {
        session["id"] for session in original["trustedSessions"] if session.get("owner") != "root"
    }
    tree = json.loads(encode_document(document))
    assert [root for root in tree["roots"] if "privateKey" in root] == []
    assert "trustedSessions" not in tree
    assert decode_document(encode_document(document)) == document


@pytest.mark.parametrize("name", WRITTEN_BY_GOATDB)
def test_a_document_is_a_settings_json_as_it_is_and_by_export(name: str) -> None:
    document, trusted, _ = from_settings(WRITTEN_BY_GOATDB[name], NOW)
    for raw in (encode_document(document), to_settings(document, trusted), to_settings_keeping(document, trusted)):
        again, _, _ = from_settings(raw, NOW)
        assert again.current == document.current
        assert again.roots == document.roots


def test_private_keys_are_taken_out_of_roots_and_trusted_sessions_and_that_is_noted() -> None:
    document, trusted, notes = from_settings(text(settings_tree()), NOW)
    assert document.roots == (owned("a").session,)
    assert trusted == (USER.session, GUEST.session)
    assert len([note for note in notes if "private key" in note]) == 2
    assert not shows_key("\n".join(notes), owned("a"))


PUBLIC = owned("a").session.to_json()


@pytest.mark.parametrize(
    ("change", "publishes"),
    [
        ({"roots": [PUBLIC]}, False),
        ({"roots": [PUBLIC, owned("b").session.to_json()]}, False),
        ({"roots": [PUBLIC], "trustedSessions": [owned("u", owner="u-1").to_secret_json()]}, False),
        ({}, True),
        ({"roots": []}, True),
        ({"roots": None}, True),
        ({"roots": [owned("b").session.to_json()]}, True),
        ({"roots": [owned("a", days=20).session.to_json()]}, True),
        ({"roots": [owned("a", days=60).session.to_json()]}, True),
        ({"roots": [PUBLIC, owned("b").to_secret_json()]}, True),
        ({"roots": [PUBLIC], "trustedSessions": [owned("a", days=60).to_secret_json()]}, True),
        ({"roots": [PUBLIC], "trustedSessions": [owned("b").to_secret_json()]}, True),
    ],
)
def test_a_server_publishes_its_key_unless_its_public_half_is_among_the_roots_with_its_expiration(
    change: dict[str, Any], publishes: bool
) -> None:
    raw = text(settings_tree(**change))
    from_settings(raw, NOW)
    assert publishes_private_key(raw) is publishes


def test_no_settings_of_ours_make_a_server_publish_a_key() -> None:
    for document in (first(), prepared(), activated(), rotated()):
        for raw in (encode_document(document), to_settings(document), to_settings_keeping(document, [USER.session])):
            assert not publishes_private_key(raw)


def test_a_file_without_roots_gets_its_own_root() -> None:
    for change in ({"roots": []}, {"roots": None}):
        document, _, _ = from_settings(text(settings_tree(**change)), NOW)
        assert document.roots == (owned("a").session,)


def test_a_root_that_is_only_trusted_joins_the_roots() -> None:
    tree = settings_tree()
    tree["trustedSessions"].append(owned("b").session.to_json())
    document, trusted, notes = from_settings(text(tree), NOW)
    assert document.roots == (owned("a").session, owned("b").session)
    assert owned("b").session not in trusted
    assert any("trustedSessions only" in note for note in notes)


def test_of_two_copies_of_a_session_goatdbs_choice_counts_in_either_order() -> None:
    user = USER.session.to_json()
    guest = {name: value for name, value in user.items() if name != "owner"}
    longer = {**user, "expiration": user["expiration"] + 5}
    for worse, better in ((guest, user), (user, longer)):
        for copies in ([worse, better], [better, worse]):
            _, trusted, _ = from_settings(text(settings_tree(trustedSessions=copies)), NOW)
            assert [session.to_json() for session in trusted] == [better]


def test_of_two_expirations_the_later_one_holds_in_both_places() -> None:
    later = owned("a", days=60).session
    document, _, notes = from_settings(text(settings_tree(roots=[later.to_json()])), NOW)
    assert document.current.session == later
    assert document.roots == (later,)
    assert any("two expirations" in note for note in notes)


def test_unknown_members_inside_sessions_are_left_out_since_goatdb_publishes_them() -> None:
    tree = settings_tree()
    tree["currentSession"] = {**tree["currentSession"], "internal": "note to self"}
    document, _, notes = from_settings(text(tree), NOW)
    assert b"note to self" not in encode_document(document)
    assert any("left out" in note for note in notes)


def test_unknown_members_at_the_top_are_kept_unless_they_hold_a_key() -> None:
    document, _, notes = from_settings(text(settings_tree(plugin={"a": 1}, backup=owned("c").to_secret_json())), NOW)
    assert document.extra == {"plugin": {"a": 1}}
    assert any("left out" in note for note in notes)


def test_an_identity_document_with_trusted_sessions_is_read_as_the_document_that_it_is() -> None:
    document = prepared()
    again, trusted, _ = from_settings(to_settings_keeping(document, [USER.session]), NOW)
    assert again == document
    assert trusted == (USER.session,)


def test_a_short_life_is_noted() -> None:
    assert any("expires in" in note for note in from_settings(text(settings_tree()), NOW + 20 * DAY)[2])
    assert any("has expired" in note for note in from_settings(text(settings_tree()), NOW + 40 * DAY)[2])


def swapped(tree: dict[str, Any]) -> None:
    tree["currentSession"] = {**tree["currentSession"], "privateKey": owned("c").to_secret_json()["privateKey"]}


REFUSED: dict[str, Callable[[dict[str, Any]], object]] = {
    "no current session": lambda t: t.pop("currentSession"),
    "null current session": lambda t: t.update(currentSession=None),
    "no private key": lambda t: t.update(currentSession=owned("a").session.to_json()),
    "a client's settings": lambda t: t.update(currentSession=USER.to_secret_json()),
    "roots no list": lambda t: t.update(roots={}),
    "a root that is a user": lambda t: t.update(roots=[USER.session.to_json()]),
    "a root without key": lambda t: t.update(roots=[{"id": "x", "owner": "root", "expiration": 1798118895}]),
    "a trusted session that is none": lambda t: t["trustedSessions"].append(7),
    "trusted sessions no list": lambda t: t.update(trustedSessions="x"),
    "two keys under one id": lambda t: t["trustedSessions"].append({**GUEST.session.to_json(), "id": USER.id}),
    "its own id with another key": lambda t: t.update(roots=[{**owned("b").session.to_json(), "id": owned("a").id}]),
    "another session's private key": swapped,
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_settings_json_that_goatdb_would_half_read_is_refused_whole(name: str) -> None:
    tree = settings_tree()
    REFUSED[name](tree)
    with pytest.raises((MalformedIdentityError, KeyMismatchError)) as caught:
        from_settings(text(tree), NOW)
    assert not shows_key(everything_in(caught.value), owned("a"), owned("b"), owned("c"), USER)


def test_an_export_holds_what_a_goatdb_server_reads_and_nothing_else() -> None:
    document = prepared()
    tree = json.loads(to_settings(document, [USER.session]))
    assert list(tree) == ["currentSession", "roots", "trustedSessions"]
    assert tree["roots"] == [owned("a").session.to_json(), owned("b").session.to_json()]
    assert [session["id"] for session in tree["trustedSessions"]] == [owned("a").id, owned("b").id, USER.id]
    assert not shows_key(to_settings(document).decode(), owned("b"))


def test_an_export_lists_earlier_roots_as_trusted_but_no_revoked_one() -> None:
    tree = json.loads(to_settings(rotated()))
    assert owned("a").id in [session["id"] for session in tree["trustedSessions"]]
    revoked = to_settings(revoke_root(rotated(), owned("a").id, NOW, reason="stolen"), [owned("a").session])
    assert owned("a").id.encode() not in revoked


def test_an_export_with_fifteen_days_or_less_to_live_is_refused() -> None:
    edge = owned("a").session.expiration_ms - 15 * DAY
    to_settings(first(), now_ms=edge - 1)
    with pytest.raises(IdentityError, match=r"15\.0 days left"):
        to_settings(first(), now_ms=edge)
    to_settings(first())


def test_a_real_settings_json_is_rotated_and_exported_with_its_old_root_still_listed() -> None:
    document, trusted, _ = from_settings(WRITTEN_BY_GOATDB["a running server"], NOW)
    after = rotated(document)
    exported = json.loads(to_settings(after, trusted))
    assert exported["currentSession"]["id"] == owned("b").id
    assert {root["id"] for root in exported["roots"]} == {document.current.id, owned("b").id}
    assert {session.id for session in trusted} < {session["id"] for session in exported["trustedSessions"]}
    assert redact_document(after)["rotatedFrom"] == document.current.id


def test_the_settings_of_an_activated_rotation_never_hold_the_earlier_key() -> None:
    assert not shows_key(to_settings_keeping(activated(), [owned("a").session]).decode(), owned("a"))


@pytest.mark.slow
def test_ten_thousand_user_sessions_are_read_in_good_time() -> None:
    session = USER.session.to_json()
    tree = settings_tree(trustedSessions=[{**session, "id": f"user{number}"} for number in range(10_000)])
    document, trusted, _ = from_settings(text(tree), NOW)
    assert len(trusted) == 10_000
    assert prepare_rotation(
        document, owned("b"), now_ms=NOW, rotation_id="r", started_by="x", stable_version=None
    ).next == owned("b")
