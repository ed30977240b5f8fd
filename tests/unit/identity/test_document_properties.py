"""Random documents and random damage: each document is rejected, or is consistent; no error contains a key."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from goatherd.errors import IdentityError
from goatherd.identity.document import _MEMBERS as KNOWN_MEMBERS
from goatherd.identity.document import IdentityDocument, Phase, decode_document, encode_document
from goatherd.identity.redaction import redact_document
from goatherd.identity.root_signatures import verify_endorsement
from goatherd.identity.settings_json import from_settings, to_settings
from goatherd.identity.strict_json import (
    _canonical_text,
    _indent_value,
    holds_private_key,
    to_canonical_json,
    to_pretty_json,
)
from goatherd.identity.succession import check_generation, verify_successor
from goatherd.identity.transitions import (
    activate_rotation,
    cancel_rotation,
    finalize_rotation,
    prepare_rotation,
    record_retirement,
    revoke_root,
    roll_back_rotation,
    with_phase,
)

from .make import NOW, everything_in, first, owned, secret_of, shows_key

pytestmark = pytest.mark.slow

NAMES = ("a", "b", "c", "d", "e", "f", "g")
SESSIONS = [owned(name) for name in NAMES]

scalars = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
names = st.text(max_size=8) | st.text("09az", max_size=3)
values = st.recursive(
    scalars | st.text(st.characters(exclude_categories=()), max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4),
    max_leaves=12,
)
KNOWN = {"version", "trustedSessions", "privateKey", *KNOWN_MEMBERS}
extras = st.dictionaries(
    st.text(max_size=10).filter(lambda name: name not in KNOWN),
    values.filter(lambda value: not holds_private_key(value)),
    max_size=3,
)
moves = st.lists(st.sampled_from(["go on", "go on", "go on", "undo", "retire", "revoke"]), max_size=12)


def walk(steps: list[str], extra: dict[str, Any]) -> list[IdentityDocument]:
    """Perform a random walk through the rotations; yield every document on it."""
    tree = json.loads(encode_document(first()))
    documents = [decode_document(to_pretty_json({**tree, **extra}))]
    stable = documents[0]
    names = iter(NAMES[1:])
    for step in steps:
        document = documents[-1]
        if step == "go on":
            if document.phase is None:
                name = next(names, None)
                if name is None:
                    break
                stable = document
                document = prepare_rotation(
                    document, owned(name), now_ms=NOW, rotation_id=f"to-{name}", started_by="me", stable_version="1"
                )
            elif document.phase is Phase.PREPARED:
                document = with_phase(document, Phase.PUBLISHED, NOW)
            elif document.phase is Phase.PUBLISHED:
                document = activate_rotation(document, NOW)
            elif document.phase is Phase.ACTIVATED:
                document = with_phase(document, Phase.VERIFIED, NOW)
            else:
                document = finalize_rotation(document, NOW)
        elif step == "undo" and document.phase in (Phase.PREPARED, Phase.PUBLISHED):
            document = cancel_rotation(document, NOW, reason="why")
        elif step == "undo" and document.phase is not None and stable.current.id not in document.revoked_ids:
            document = roll_back_rotation(document, stable, NOW, reason="why")
        elif step in ("retire", "revoke"):
            old = [root.id for root in document.roots if root.id != document.current.id]
            if document.phase is None and old and old[0] not in document.retired_ids | document.revoked_ids:
                change = record_retirement(document, old[0], NOW), revoke_root(document, old[0], NOW, reason="why")
                document = change[0] if step == "retire" else change[1]
        if document is not documents[-1]:
            documents.append(document)
    return documents


documents = st.builds(lambda steps, extra: walk(steps, extra)[-1], moves, extras)


def check_consistent(document: IdentityDocument) -> None:
    """Check an accepted identity by rules that are written independently of the code under test."""
    ids = [root.id for root in document.roots]
    assert len(ids) == len(set(ids))
    assert all(root.owner == "root" for root in document.roots)
    for holder in (document.current, document.next):
        if holder is not None:
            assert [root for root in document.roots if root == holder.session] == [holder.session]
            signature = holder.signer.sign(b"probe")
            holder.session.public_key.verify(signature, b"probe")
    assert document.current.id not in document.revoked_ids
    assert (document.next is not None) == (document.phase in (Phase.PREPARED, Phase.PUBLISHED))
    by_id = {root.id: root for root in document.roots}
    for endorsement in document.endorsements:
        verify_endorsement(endorsement, by=by_id[endorsement.by], of=by_id[endorsement.of])
    raw = encode_document(document)
    assert decode_document(raw) == document
    assert encode_document(decode_document(raw)) == raw
    for holder in (document.current, document.next):
        assert holder is None or raw.decode().count(secret_of(holder)) == 1
    tree = json.loads(raw)
    public = {
        name: {inner: member[inner] for inner in member if inner != "privateKey"}
        if name in ("currentSession", "nextSession") and member
        else member
        for name, member in tree.items()
    }
    assert "privateKey" not in json.dumps(public)
    secret_holders = [document.current, *([document.next] if document.next else [])]
    held = {secret_of(holder) for holder in secret_holders}
    others = [session for session in SESSIONS if secret_of(session) not in held]
    assert not shows_key(raw.decode(), *others)
    assert not shows_key(repr(document) + json.dumps(redact_document(document)), *SESSIONS)
    assert not shows_key(to_settings(document).decode(), *others, *secret_holders[1:])


@given(moves, extras)
@settings(max_examples=40, deadline=None)
def test_every_document_on_a_random_walk_is_whole_and_follows_from_the_one_before(
    steps: list[str], extra: dict[str, Any]
) -> None:
    path = walk(steps, extra)
    for document in path:
        check_consistent(document)
    for seen, new in itertools.pairwise(path):
        assert new.generation == seen.generation + 1
        assert new.extra == seen.extra
        verify_successor(new, seen)
    check_generation(path[-1], path[0])


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path to everything inside a JSON value."""
    found = [path] if path else []
    if isinstance(value, dict):
        for name, member in value.items():
            found += places(member, (*path, name))
    elif isinstance(value, list):
        for index, member in enumerate(value):
            found += places(member, (*path, index))
    return found


def sorted_places(tree: Any) -> list[tuple[Any, ...]]:
    """Return all places, those where damage matters most several times."""
    found = places(tree)
    return found + 6 * [path for path in found if path[-1] in HOT or path[:1] == ("rotation",)]


def look(tree: Any, path: tuple[Any, ...]) -> Any:
    for step in path:
        tree = tree[step]
    return tree


def put(tree: Any, path: tuple[Any, ...], value: Any) -> None:
    look(tree, path[:-1])[path[-1]] = value


KINDS = ("drop", "retype", "copy", "swap", "rename", "twist", "alike", "hide")
HOT = ("id", "d", "privateKey", "reason", "by", "of", "startedBy", "phase", "expiration", "owner", "generation")
deep: Any = 1
for _ in range(40):
    deep = {"x": [deep]}
odd = values | st.sampled_from([10**30, -1, 1e308, 2**53, True, "", "x" * 70, [], {}, deep, "root", "\ud800"])


def damage(tree: dict[str, Any], data: st.DataObject) -> dict[str, Any]:
    intact, tree = tree, json.loads(json.dumps(tree))
    for _ in range(data.draw(st.integers(1, 3), "count")):
        path = data.draw(st.sampled_from(sorted_places(tree)), "path")
        kind = data.draw(
            st.sampled_from(["drop", "retype", "copy", "swap", "rename", "twist", "alike", "hide"]), "kind"
        )
        if kind == "drop":
            del look(tree, path[:-1])[path[-1]]
        elif kind == "retype":
            put(tree, path, json.loads(json.dumps(data.draw(odd, "value"))))
        elif kind == "alike":
            alike = [other for other in sorted_places(tree) if type(look(tree, other)) is type(look(tree, path))]
            put(tree, path, json.loads(json.dumps(look(tree, data.draw(st.sampled_from(alike), "other")))))
        elif kind == "hide":
            where = look(tree, path)
            secret = data.draw(st.sampled_from(SESSIONS[:3])).to_secret_json()
            # A bare text is known for a key only where the key is the document's own.
            own = intact["currentSession"]["privateKey"]["d"]
            hidden = data.draw(st.sampled_from([own, secret["privateKey"], secret]), "hidden")
            if isinstance(where, dict):
                where[data.draw(st.sampled_from(["privateKey", "old", "reason"]), "name")] = hidden
            elif isinstance(where, list):
                where.append(hidden)
            elif isinstance(where, str):
                put(tree, path, where[:50] + json.dumps(hidden))
        elif kind == "twist":
            text = str(look(tree, path))
            at = data.draw(st.integers(0, max(0, len(text) - 1)), "at")
            put(tree, path, text[:at] + data.draw(st.sampled_from("Aa0-_ /"), "letter") + text[at + 1 :])
        else:
            other = data.draw(st.sampled_from(sorted_places(tree)), "other")
            copied = json.loads(json.dumps([look(tree, other), look(tree, path)]))
            if kind == "rename" and isinstance(look(tree, path[:-1]), dict):
                look(tree, path[:-1])[data.draw(st.sampled_from(["d", "privateKey", "x"]), "name")] = copied[0]
            else:
                put(tree, path, copied[0])
                shorter = other[: len(path)] != path
                if kind == "swap" and shorter and path[: len(other)] != other:
                    put(tree, other, copied[1])
        if not tree or not places(tree):
            break
    return tree


def check_refusal(error: IdentityError) -> None:
    assert not shows_key(everything_in(error), *SESSIONS)
    assert error.__cause__ is None
    assert error.code.startswith("identity.")


def try_to_decode(raw: bytes) -> None:
    try:
        document = decode_document(raw)
    except IdentityError as error:
        check_refusal(error)
    else:
        check_consistent(document)


@given(documents, st.data())
@settings(max_examples=250, deadline=None)
def test_a_document_with_members_dropped_swapped_copied_or_retyped_is_never_half_accepted(
    document: IdentityDocument, data: st.DataObject
) -> None:
    tree = damage(json.loads(encode_document(document)), data)
    try_to_decode(json.dumps(tree).encode("utf-8", "surrogatepass"))


@given(documents, st.data())
@settings(max_examples=150, deadline=None)
def test_a_document_with_flipped_lost_or_repeated_bytes_is_never_half_accepted(
    document: IdentityDocument, data: st.DataObject
) -> None:
    raw = bytearray(encode_document(document))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(raw) - 1))
        kind = data.draw(st.sampled_from(["flip", "cut", "lose", "repeat"]))
        if kind == "flip":
            raw[at] ^= 1 << data.draw(st.integers(0, 7))
        elif kind == "cut":
            del raw[at + 1 :]
        elif kind == "lose":
            del raw[at : at + data.draw(st.integers(1, 400))]
        else:
            raw[at:at] = raw[at : at + data.draw(st.integers(1, 400))]
        if not raw:
            break
    try_to_decode(bytes(raw))


@given(st.binary(max_size=200) | values.map(lambda value: json.dumps(value).encode()))
@settings(max_examples=200, deadline=None)
def test_anything_at_all_is_refused_or_read(raw: bytes) -> None:
    try_to_decode(raw)


@given(documents, st.data())
@settings(max_examples=100, deadline=None)
def test_a_damaged_settings_json_is_never_half_read(document: IdentityDocument, data: st.DataObject) -> None:
    own = document.current.to_secret_json()
    user = owned("u", owner="u-1").session.to_json()
    roots = [own, *(root.to_json() for root in document.roots if root.id != document.current.id)]
    tree = damage({"currentSession": own, "roots": roots, "trustedSessions": [own, user]}, data)
    try:
        made, trusted, notes = from_settings(json.dumps(tree).encode("utf-8", "surrogatepass"), NOW)
    except IdentityError as error:
        check_refusal(error)
    else:
        check_consistent(made)
        assert not any(session.is_root for session in trusted)
        assert not shows_key("\n".join(notes), *SESSIONS)


@given(documents, extras)
@settings(max_examples=60, deadline=None)
def test_any_member_order_and_unknown_members_inside_sessions_come_back_byte_for_byte(
    document: IdentityDocument, extra: dict[str, Any]
) -> None:
    tree = dict(reversed(list(json.loads(encode_document(document)).items())))
    for session in (tree["currentSession"], *tree["roots"]):
        for name, value in extra.items():
            session.setdefault(name, value)
    raw = to_pretty_json(tree)
    assert encode_document(decode_document(raw)) == raw


@given(values)
def test_however_it_is_written_the_text_is_the_same(value: Any) -> None:
    assert to_pretty_json(value) == _indent_value(value, "\n").encode()
    assert to_canonical_json(value) == _canonical_text(value).encode()
