"""The identity document: what it accepts, rejects, writes and shows."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from goatherd.crypto import fingerprint
from goatherd.errors import IdentityError, KeyMismatchError, MalformedIdentityError
from goatherd.identity.document import SIZE_LIMIT_BYTES, IdentityDocument, decode_document, encode_document
from goatherd.identity.redaction import days_left, find_warnings, redact_document
from goatherd.identity.strict_json import to_pretty_json
from goatherd.identity.transitions import (
    LITTLE_ROOM_BYTES,
    cancel_rotation,
    create_document,
    revoke_root,
    roll_back_rotation,
    room_left,
)

from .make import DAY, NOW, activated, everything_in, first, owned, prepared, published, rotated, secret_of, shows_key

DOCUMENTS: dict[str, Callable[[], IdentityDocument]] = {
    "first": first,
    "prepared": prepared,
    "published": published,
    "activated": activated,
    "rotated": rotated,
    "cancelled": lambda: cancel_rotation(published(), NOW, reason="node-2 does not trust it"),
    "rolled back": lambda: roll_back_rotation(activated(), first(), NOW, reason="node-2 does not sign"),
    "revoked": lambda: revoke_root(rotated(), owned("a").id, NOW, reason="stolen"),
}


def tree_of(document: IdentityDocument) -> dict[str, Any]:
    return dict(json.loads(encode_document(document)))


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_document_reads_back_as_it_was_and_is_written_back_byte_for_byte(name: str) -> None:
    document = DOCUMENTS[name]()
    raw = encode_document(document)
    assert decode_document(raw) == document
    assert encode_document(decode_document(raw)) == raw


def test_the_text_is_what_javascript_would_write() -> None:
    raw = encode_document(first()).decode()
    assert raw == json.dumps(json.loads(raw), indent=2, ensure_ascii=False)
    members = ["version", "generation", "currentSession", "roots", "lastUpdated", "documentSignature"]
    assert list(json.loads(raw)) == members


def test_member_order_node_keys_and_unknown_members_survive_untouched() -> None:
    tree = tree_of(prepared())
    odd = dict(reversed(list(tree.items())))
    odd["plugin"] = {"bloom": {"d": "abc", "s": [1, 2]}, "n": 1e21, "tiny": 1e-7, "text": "\ud800 \u2028 é \x00"}
    odd["revoked"] = []
    odd["rotatedFrom"] = None
    for session in (odd["currentSession"], odd["nextSession"], *odd["roots"]):
        session["publicKey"] = {
            "key_ops": ["verify"],
            "ext": True,
            **{name: session["publicKey"][name] for name in ("kty", "x", "y", "crv")},
        }
        session["note"] = "kept"
    raw = to_pretty_json(odd)
    assert encode_document(decode_document(raw)) == raw


def test_what_a_session_held_beyond_our_members_survives_a_rotation_and_nothing_is_added() -> None:
    tree = tree_of(first())
    for session in (tree["currentSession"], tree["roots"][0]):
        session["note"] = "kept"
    tree["plugin"] = {"deep": [1, {"x": None}]}
    after = tree_of(rotated(decode_document(to_pretty_json(tree))))
    assert after["roots"][0] == tree["roots"][0]
    assert after["plugin"] == tree["plugin"]
    assert set(after["currentSession"]) == {"id", "publicKey", "privateKey", "owner", "expiration"}


def test_the_earlier_private_key_leaves_the_text_and_the_memory_at_activation() -> None:
    document = activated()
    assert not shows_key(encode_document(document).decode(), owned("a"))
    assert document.source is not None
    assert secret_of(owned("a")) not in json.dumps(document.source.tree)


def test_a_document_without_generation_is_generation_zero_and_stays_as_it_is() -> None:
    tree = tree_of(first())
    del tree["generation"]
    document = decode_document(to_pretty_json(tree))
    assert document.generation == 0
    assert encode_document(document) == to_pretty_json(tree)
    assert prepared(document).generation == 1


def test_a_byte_order_mark_is_skipped_as_goatdb_does() -> None:
    assert decode_document(b"\xef\xbb\xbf" + encode_document(first())) == first()


def changed(**members: Any) -> Callable[[dict[str, Any]], None]:
    return lambda tree: tree.update(members)


def at(*path: str | int, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(tree: Any) -> None:
        for step in path[:-1]:
            tree = tree[step]
        tree[path[-1]] = value

    return change


def without(*path: str | int) -> Callable[[dict[str, Any]], None]:
    def change(tree: Any) -> None:
        for step in path[:-1]:
            tree = tree[step]
        del tree[path[-1]]

    return change


C_PUBLIC = owned("c").session.to_json()
BAD_POINT = {**C_PUBLIC["publicKey"], "x": C_PUBLIC["publicKey"]["y"]}
JWK_SECRET = owned("c").to_secret_json()["privateKey"]

REFUSED: list[tuple[str, Callable[[dict[str, Any]], None], str]] = [
    ("no version", without("version"), "version is not 2"),
    ("a later version", changed(version=3), "version is not 2"),
    ("version true", changed(version=True), "version is not 2"),
    ("negative generation", changed(generation=-1), "generation must be"),
    ("fractional generation", changed(generation=1.5), "generation must be"),
    ("generation as text", changed(generation="1"), "generation must be"),
    ("generation true", changed(generation=True), "generation must be"),
    ("huge generation", changed(generation=2**60), "generation must be"),
    ("no current session", without("currentSession"), "currentSession is missing"),
    ("current session a list", changed(currentSession=[]), "currentSession must be a JSON object"),
    ("current session without private key", without("currentSession", "privateKey"), "currentSession.privateKey"),
    ("current session without expiration", without("currentSession", "expiration"), "currentSession.expiration"),
    ("expiration as text", at("currentSession", "expiration", value="1798118895"), "currentSession.expiration"),
    ("expiration huge", at("currentSession", "expiration", value=1e300), "currentSession.expiration"),
    ("expiration beyond year 9999", at("currentSession", "expiration", value=9e11), "currentSession.expiration"),
    ("an id that could be a key", at("roots", 0, "id", value="x" * 64), "roots[0].id is not an id"),
    ("an empty id", at("roots", 0, "id", value=""), "roots[0].id is not an id"),
    ("owner of a root not root", at("roots", 1, "owner", value="u-1"), "owner of a root must be `root`"),
    ("no owner", without("roots", 1, "owner"), "owner of a root must be `root`"),
    ("a point off the curve", at("roots", 1, "publicKey", value=BAD_POINT), "roots[1].publicKey"),
    ("another curve", at("roots", 1, "publicKey", "crv", value="P-256"), "roots[1].publicKey"),
    ("roots no list", changed(roots={}), "roots must be a list"),
    ("no roots", changed(roots=[]), "currentSession is not among the roots"),
    ("roots missing", without("roots"), "roots is missing"),
    ("current not among the roots", lambda tree: tree["roots"].pop(0), "currentSession is not among the roots"),
    ("next not among the roots", lambda tree: tree["roots"].pop(1), "nextSession is not among the roots"),
    ("another expiration in roots", at("roots", 0, "expiration", value=1798118896), "same key, owner and expir"),
    ("another key in roots", at("roots", 0, "publicKey", value=C_PUBLIC["publicKey"]), "same key, owner and expir"),
    ("a root twice", lambda tree: tree["roots"].append(tree["roots"][0]), "same id"),
    ("a key twice", lambda tree: tree["roots"].append({**tree["roots"][0], "id": "z"}), "same public key"),
    ("a private key in roots", lambda t: t["roots"][0].update(privateKey=t["currentSession"]["privateKey"]), "roots h"),
    ("a d in a public key", at("roots", 0, "publicKey", "d", value=JWK_SECRET["d"]), "roots holds a private key"),
    ("a d in the current public key", at("currentSession", "publicKey", "d", value="x"), "currentSession holds a priv"),
    ("a private key deep in an unknown member", changed(backup={"x": [{"old": JWK_SECRET}]}), "holds a private key"),
    ("a private key in a text", changed(backup=json.dumps({"privateKey": 1})), "holds a private key"),
    ("a PEM key", changed(backup="-----BEGIN EC " + "PRIVATE KEY-----"), "holds a private key"),
    ("a member privateKey at the top", changed(privateKey=None), "holds a private key"),
    ("a second private key in the current session", at("currentSession", "old", value=JWK_SECRET), "holds a private"),
    (
        "the private key in disguise",
        lambda tree: tree.update(note=f"my {tree['currentSession']['privateKey']['d']}"),
        "must not be anywhere else",
    ),
    ("user sessions", changed(trustedSessions=[]), "user sessions"),
    ("next without rotation", without("rotation"), "nextSession but no rotation"),
    ("rotation without next", without("nextSession"), "there is no nextSession"),
    ("a phase that is none", at("rotation", "phase", value="steady"), "rotation.phase"),
    ("a phase that is no text", at("rotation", "phase", value=[]), "rotation.phase"),
    ("activated with a next session", at("rotation", "phase", value="activated"), "there still is a nextSession"),
    ("a rotation from elsewhere", at("rotation", "from", value="x"), "`from` names is not among the roots"),
    ("a rotation backwards", lambda t: t["rotation"].update({"from": t["rotation"]["to"]}), "to itself"),
    ("a rotation to elsewhere", at("rotation", "to", value="x"), "must lead from"),
    ("a time that is none", at("rotation", "startedAt", value="2026-13-01T00:00:00.000Z"), "rotation.startedAt"),
    ("a time as number", changed(lastUpdated=1), "lastUpdated must be a timestamp"),
    ("rotatedFrom no id", changed(rotatedFrom={}), "rotatedFrom is not an id"),
    ("an endorsement of a stranger", at("endorsements", 0, "of", value="x"), "endorsements[0] names a session"),
    (
        "an endorsement turned round",
        lambda t: t["endorsements"][0].update(by=t["endorsements"][0]["of"], of=t["endorsements"][0]["by"]),
        "the signature of endorsements[0] is invalid",
    ),
    ("an endorsement that is damaged", at("endorsements", 0, "signature", value="aaaa"), "endorsements[0] is invalid"),
    (
        "the current session revoked",
        lambda t: t.update(revoked=[{"id": t["currentSession"]["id"], "at": t["lastUpdated"], "reason": ""}]),
        "currentSession is revoked",
    ),
    ("a history that is none", changed(history=[1]), "history[0] must be a JSON object"),
]


@pytest.mark.parametrize(("change", "message"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_a_document_is_refused_and_the_rule_is_named_without_key_material(
    change: Callable[[dict[str, Any]], None], message: str
) -> None:
    tree = tree_of(prepared())
    change(tree)
    with pytest.raises(MalformedIdentityError) as caught:
        decode_document(to_pretty_json(tree))
    assert message in str(caught.value)
    assert not shows_key(everything_in(caught.value), owned("a"), owned("b"), owned("c"))


@pytest.mark.parametrize("member", ["currentSession", "nextSession"])
def test_a_private_key_of_another_session_is_a_mismatch(member: str) -> None:
    tree = tree_of(prepared())
    tree[member]["privateKey"] = JWK_SECRET
    with pytest.raises(KeyMismatchError, match=member):
        decode_document(to_pretty_json(tree))


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'"text"',
        b"\xff\xfe",
        b'{"version": 2',
        b'{"version": 2} x',
        b'{"version": NaN}',
        b'{"version": 1e999}',
        b'{"version": ' + b"9" * 5000 + b"}",
        b'{"version": 2, "version": 2}',
        b"[" * 60_000,
        b'{"a":' * 20 + b"1" + b"}" * 20,
        b" " * (SIZE_LIMIT_BYTES + 1),
    ],
    ids=range(15),
)
def test_bytes_that_are_no_document_are_refused(raw: bytes) -> None:
    with pytest.raises(MalformedIdentityError) as caught:
        decode_document(raw)
    assert caught.value.__context__ is None


@pytest.mark.slow
def test_truncating_a_document_anywhere_is_refused_and_shows_no_key() -> None:
    raw = encode_document(prepared())
    for end in range(0, len(raw), 7):
        with pytest.raises(IdentityError) as caught:
            decode_document(raw[:end])
        assert not shows_key(everything_in(caught.value), owned("a"), owned("b"))


def test_a_document_that_grew_too_large_is_not_written() -> None:
    document = replace(first(), extra={"notes": "x" * SIZE_LIMIT_BYTES})
    with pytest.raises(MalformedIdentityError, match="at most 65536 are allowed"):
        encode_document(document)


def test_notes_tell_of_a_large_document_and_of_a_short_life() -> None:
    assert find_warnings(first(), NOW) == []
    assert "expires in 14.0 days" in find_warnings(first(), NOW + 16 * DAY)[0]
    assert "expired 1.0 days ago" in find_warnings(first(), NOW + 31 * DAY)[0]
    large = replace(first(), extra={"notes": "x" * (room_left(first()) - LITTLE_ROOM_BYTES - 100)})
    assert find_warnings(large, NOW) == [], "there is room for more than one rotation"
    (warning,) = find_warnings(replace(large, extra={"notes": large.extra["notes"] + "x" * 100}), NOW)
    assert "will soon be too large for another rotation" in warning
    (warning,) = find_warnings(replace(first(), extra={"notes": "x" * room_left(first())}), NOW)
    assert "is too large for another rotation; no root can be removed" in warning
    with_previous = replace(first(), roots=(*first().roots, owned("previous").session))
    (warning,) = find_warnings(replace(with_previous, extra={"notes": "x" * room_left(first())}), NOW)
    assert "a rotation first removes previous roots" in warning
    assert days_left(first(), NOW) == pytest.approx(30, abs=0.01)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_neither_repr_nor_redaction_shows_key_material(name: str) -> None:
    document = DOCUMENTS[name]()
    sessions = [owned("a"), owned("b")]
    for text in (
        repr(document),
        str(document),
        f"{document}",
        json.dumps(redact_document(document)),
        repr(redact_document(document)),
    ):
        assert not shows_key(text, *sessions)
        assert '"kty"' not in text
        assert "privateKey" not in text
    with pytest.raises(TypeError):
        pickle.dumps(document)


def test_redaction_shows_ids_fingerprints_and_phase_and_of_unknown_members_only_the_names() -> None:
    shown = redact_document(replace(prepared(), extra={"plugin": "private matter"}))
    assert shown["phase"] == "prepared"
    assert shown["current"]["id"] == owned("a").id
    assert shown["next"]["fingerprint"] == fingerprint(owned("b").session.public_key)
    assert shown["rotation"]["startedBy"] == "alice@host"
    assert shown["unknownMembers"] == ["plugin"]
    assert "private matter" not in json.dumps(shown)


def test_a_fingerprint_is_that_of_the_key_in_its_usual_form() -> None:
    import hashlib

    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    key = owned("a").session.public_key
    point = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP384R1(), b"\x04" + key.raw)
    der = point.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert fingerprint(key) == hashlib.sha256(der).hexdigest()[:16]


def test_a_first_document_needs_a_root() -> None:
    with pytest.raises(MalformedIdentityError, match="owner of a root must be `root`"):
        create_document(owned("u", owner="u-1"), NOW)


def test_another_private_key_does_not_hide_within_the_one_that_is_allowed() -> None:
    tree = json.loads(encode_document(first()))
    for name in ("privateKey", "spare"):
        hidden = json.loads(json.dumps(tree))
        hidden["currentSession"]["privateKey"][name] = owned("b").to_secret_json()["privateKey"]
        with pytest.raises(MalformedIdentityError, match="private key, which is not allowed there"):
            decode_document(json.dumps(hidden))
