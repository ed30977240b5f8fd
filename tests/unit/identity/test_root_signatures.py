"""The root's signature over the whole document: who signs, which bytes, and what the signature does not prove."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from goatherd.errors import IdentityError
from goatherd.identity.document import (
    IdentityDocument,
    Phase,
    decode_document,
    document_tree,
    encode_document,
    sign_document,
)
from goatherd.identity.redaction import redact_document
from goatherd.identity.root_signatures import MEMBER, DocumentSignature, tree_digest
from goatherd.identity.session import parse_signature, sign_data
from goatherd.identity.strict_json import to_canonical_json, to_pretty_json
from goatherd.identity.succession import TrustCheckpoint, verify_successor
from goatherd.identity.transitions import (
    activate_rotation,
    cancel_rotation,
    finalize_rotation,
    prepare_restore,
    prepare_rotation,
    prune_roots,
    record_frozen_commits,
    record_reissued_sessions,
    record_retirement,
    replace_expired,
    revoke_root,
    roll_back_rotation,
    with_phase,
)
from goatherd.wire.javascript_values import UNDEFINED

from .make import DAY, NOW, activated, first, owned, prepared, published, rotated


def revoked() -> IdentityDocument:
    """A document with every member: endorsements, a revocation with proof and frozen list, history, a rotation."""
    stolen = revoke_root(rotated(), owned("b").id, NOW, reason="stolen", successor=owned("c"))
    frozen = record_frozen_commits(stolen, owned("b").id, NOW, commits=3, digest="ab" * 32)
    done = record_reissued_sessions(replace(frozen, pruned=2), owned("b").id, NOW)
    return prepare_rotation(done, owned("d"), now_ms=NOW, rotation_id="r9", started_by="me", stable_version="7")


def pruned() -> IdentityDocument:
    twice = prepare_rotation(rotated(), owned("c"), now_ms=NOW, rotation_id="r2", started_by="me", stable_version="7")
    twice = finalize_rotation(with_phase(activate_rotation(published_of(twice), NOW), Phase.VERIFIED, NOW), NOW)
    return prune_roots(twice, [owned("a").id], NOW)


def published_of(document: IdentityDocument) -> IdentityDocument:
    return with_phase(document, Phase.PUBLISHED, NOW)


WRITTEN: dict[str, tuple[Callable[[], IdentityDocument], str]] = {
    "create": (first, "a"),
    "prepare": (prepared, "a"),
    "publish": (published, "a"),
    "activate": (activated, "b"),
    "finalize": (rotated, "b"),
    "cancel": (lambda: cancel_rotation(published(), NOW, reason="why"), "a"),
    "roll back": (lambda: roll_back_rotation(activated(), first(), NOW, reason="why"), "a"),
    "retire": (lambda: record_retirement(rotated(), owned("a").id, NOW), "b"),
    "prune": (pruned, "c"),
    "revoke another root": (lambda: revoke_root(rotated(), owned("a").id, NOW, reason="why"), "b"),
    "revoke the current root": (
        lambda: revoke_root(first(), owned("a").id, NOW, reason="why", successor=owned("c")),
        "c",
    ),
    "freeze, settle": (revoked, "c"),
    "restore": (
        lambda: prepare_restore(
            rotated(), owned("a"), now_ms=NOW, rotation_id="r2", started_by="me", stable_version="5"
        ),
        "b",
    ),
    "replace an expired root": (
        lambda: replace_expired(first(), owned("z", days=900), NOW + 800 * DAY, rotation_id="r2"),
        "z",
    ),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_whatever_writes_a_document_has_its_current_root_sign_it(name: str) -> None:
    make, signer = WRITTEN[name]
    document = make()
    assert document.is_signed
    assert document.signature is not None
    assert document.signature.by == document.current.id == owned(signer).id
    assert document.signature.generation == document.generation
    assert decode_document(encode_document(document)).is_signed


def test_a_root_that_has_expired_still_signs_what_is_written_before_it_is_replaced() -> None:
    late = record_retirement(rotated(), owned("a").id, NOW + 4000 * DAY)
    assert late.current.session.is_expired(NOW + 4000 * DAY)
    assert late.is_signed


def mutations(value: Any, set_: Callable[[Any], Any]) -> Iterator[Any]:
    """Yield complete trees, each with one difference below `value`; `set_` puts another value in its place."""
    if isinstance(value, dict):
        for name, member in value.items():
            yield set_({other: inner for other, inner in value.items() if other != name})
            yield from mutations(member, lambda new, name=name: set_({**value, name: new}))
        yield set_({**value, "unknown": 1})
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield set_(value[:index] + value[index + 1 :])
            yield from mutations(item, lambda new, index=index: set_([*value[:index], new, *value[index + 1 :]]))
        yield set_([*value, 1])
    elif isinstance(value, bool) or value is None:
        yield set_(not value)
    elif isinstance(value, int | float):
        yield set_(value + 1)
        yield set_(value - 1)
    else:
        yield set_(_another(value))
        yield set_(value + "x")


def _another(text: str) -> str:
    """Return a string of the same form, with another digit in a time or another letter in an id."""
    for index in reversed(range(len(text))):
        if text[index].isdigit():
            return text[:index] + str((int(text[index]) + 1) % 10) + text[index + 1 :]
    return "other"


@pytest.mark.slow
@pytest.mark.parametrize("make", [pruned, revoked], ids=["pruned", "revoked"])
def test_an_altered_member_is_refused_as_malformed_or_is_not_signed(make: Callable[[], IdentityDocument]) -> None:
    document = make()
    generation = document.generation - 1
    assert document.lineage is not None
    before = replace(
        TrustCheckpoint.from_document(document),
        generation=generation,
        digest=document.lineage.digest_of(generation) or "",
    )
    verify_successor(document, before)
    tree, seen, decoded = document_tree(document), set(), 0
    for mutant in mutations(tree, lambda new: new):
        seen.add(to_pretty_json(mutant))
        try:
            altered = decode_document(to_pretty_json(mutant))
        except IdentityError:
            continue
        if tree_digest(mutant) == tree_digest(tree):
            continue  # the signature's own text: one signature can be written in several ways
        decoded += 1
        assert not altered.is_signed, "an altered document passes for signed"
        with pytest.raises(IdentityError):
            verify_successor(altered, before)
    assert len(seen) > 150
    assert decoded > 60, "what the form's rules catch anyway shows nothing of the signature"


def test_order_and_white_space_are_not_signed_since_a_store_may_write_them_anew() -> None:
    def reversed_everywhere(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: reversed_everywhere(value[name]) for name in reversed(value)}
        return [reversed_everywhere(item) for item in value] if isinstance(value, list) else value

    raw = json.dumps(reversed_everywhere(document_tree(revoked())), indent=None)
    assert decode_document(raw).is_signed


def test_what_an_older_goatherd_writes_keeps_a_signature_that_does_not_hold() -> None:
    tree = document_tree(rotated())
    tree["generation"] += 1
    document = decode_document(to_pretty_json(tree))
    assert document.signature is not None
    assert document.signature.generation == document.generation - 1
    assert not document.is_signed


def test_a_signature_by_another_root_of_the_document_does_not_count() -> None:
    document = rotated()
    foreign = sign_document(replace(document, current=owned("a")), NOW).signature
    assert foreign is not None
    assert not replace(document, signature=foreign).is_signed
    assert not replace(document, signature=replace(foreign, by=document.current.id)).is_signed


def test_nothing_else_is_signed_with_it_and_nothing_else_passes_for_it() -> None:
    document = rotated()
    good = document.signature
    assert good is not None
    assert parse_signature(good.signature).data is UNDEFINED
    for text in (
        "",
        "garbage",
        document.endorsements[0].signature,
        sign_data(document.current, now_ms=NOW, external={"goatherd": "endorsement/1", "session": {}}),
        sign_data(document.current, now_ms=NOW, embedded={"goatherd": "document/1", "sha256": "0" * 64}),
    ):
        assert not replace(document, signature=replace(good, signature=text)).is_signed


def test_a_document_without_a_signature_is_not_signed() -> None:
    tree = document_tree(first())
    del tree[MEMBER]
    assert not decode_document(to_pretty_json(tree)).is_signed
    assert not decode_document(to_pretty_json({**tree, MEMBER: None})).is_signed


@pytest.mark.parametrize(
    "member", [1, [], {}, {"by": "a", "generation": 1}, {"by": 1, "generation": 1, "signature": ""}]
)
def test_a_malformed_signature_is_refused_with_its_position(member: Any) -> None:
    if member == []:
        member = [1]
    with pytest.raises(IdentityError, match="documentSignature"):
        decode_document(to_pretty_json({**document_tree(first()), MEMBER: member}))


def test_the_canonical_form_is_that_of_rfc_8785() -> None:
    value = {"\u20ac": 1, "\r": 2, "\ufb33": 3, "1": 4, "\U0001f600": 5, "\x80": 6, "\xf6": 7}
    assert list(json.loads(to_canonical_json(value))) == ["\r", "1", "\x80", "\xf6", "\u20ac", "\U0001f600", "\ufb33"]
    assert to_canonical_json({"b": [1e21, 1.0, -0.0, 0.000001], "a": {"d": None, "c": "\u000f\n"}}) == (
        b'{"a":{"c":"\\u000f\\n","d":null},"b":[1e+21,1,0,0.000001]}'
    )


def with_unknown(document: IdentityDocument) -> IdentityDocument:
    """Put an unknown member into every object of every list, as a newer Goatherd would have."""
    tree = copy.deepcopy(document_tree(document))
    for name in ("endorsements", "revoked", "history"):
        for item in tree[name]:
            item["newer"] = {"kept": [name, None]}
    tree["revoked"][0]["freeze"]["newer"] = True
    return sign_document(decode_document(to_pretty_json(tree)), NOW)


def test_unknown_members_of_list_entries_survive_every_change_and_are_shown_nowhere() -> None:
    document = with_unknown(revoked())
    entries = {name: len(document_tree(document)[name]) for name in ("endorsements", "revoked", "history")}
    # Each of these mutations changes one of the lists, so the document is not written back as it was read.
    later = cancel_rotation(document, NOW, reason="why")
    later = revoke_root(later, owned("a").id, NOW, reason="stolen too")
    later = record_frozen_commits(later, owned("a").id, NOW, commits=1, digest="cd" * 32)
    later = prepare_rotation(later, owned("e"), now_ms=NOW, rotation_id="r10", started_by="me", stable_version="9")
    tree = document_tree(later)
    kept = {name: sum("newer" in item for item in tree[name]) for name in entries}
    assert kept["revoked"] == entries["revoked"]
    assert kept["history"] == entries["history"]
    assert kept["endorsements"] > 0
    assert tree["revoked"][0]["freeze"]["newer"] is True
    assert tree["history"][0]["newer"] == {"kept": ["history", None]}
    assert "newer" not in json.dumps(redact_document(later))


def test_a_signature_is_renewed_and_not_piled_up() -> None:
    document = replace(first(), signature=DocumentSignature(by="x", generation=9, signature="s", extra={"old": 1}))
    signed = sign_document(document, NOW).signature
    assert signed is not None
    assert not signed.extra


def test_a_key_in_a_signature_is_refused_as_everywhere() -> None:
    secret = owned("a").to_secret_json()["privateKey"]
    tree = document_tree(first())
    tree[MEMBER] = {**tree[MEMBER], "extra": secret}
    with pytest.raises(IdentityError, match="private key") as caught:
        decode_document(to_pretty_json(tree))
    assert secret["d"] not in str(caught.value)
