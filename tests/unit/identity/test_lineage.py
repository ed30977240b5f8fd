"""A store restored from a backup: which documents a server rejects that has used a later one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from goatherd.errors import ForkedIdentityError, MalformedIdentityError, SuccessionError
from goatherd.identity.document import (
    IdentityDocument,
    decode_document,
    document_digest,
    encode_document,
    sign_document,
)
from goatherd.identity.lineage import KEPT, Lineage
from goatherd.identity.succession import TrustCheckpoint, verify_successor
from goatherd.identity.transitions import cancel_rotation, prunable_roots, prune_roots, record_retirement, revoke_root

from .make import NOW, first, owned, prepared, published, rotated
from .test_chains import introduced, outlived

A, B, D = owned("a"), owned("b"), owned("d")


def twice(document: IdentityDocument) -> IdentityDocument:
    """Return the document after two more rotations, the generation of which is higher than after one."""
    return rotated(rotated(document, "d"), "e")


def test_the_root_that_has_signed_since_the_backup_cannot_be_taken_away_by_going_on_from_the_backup() -> None:
    seen, forked = rotated(first(), "b"), twice(first())
    assert forked.generation > seen.generation
    with pytest.raises(ForkedIdentityError, match=f"not grown from the generation {seen.generation}"):
        verify_successor(forked, seen)
    # That A has introduced B, as in every rotation, does not say why B is gone.
    links = [introduced(B.session, A), introduced(D.session, A)]
    with pytest.raises(SuccessionError, match=f"root {B.id}, which is trusted here, is gone") as caught:
        verify_successor(forked, seen, links, may_fork=True)
    assert caught.value.is_chain_open
    assert caught.value.is_root_lost


def test_it_is_found_out_by_what_a_server_remembers_over_a_restart() -> None:
    seen = TrustCheckpoint.from_bytes(TrustCheckpoint.from_document(rotated(first(), "b")).to_bytes())
    with pytest.raises(ForkedIdentityError):
        verify_successor(twice(first()), seen)
    with pytest.raises(SuccessionError, match="is gone"):
        verify_successor(twice(first()), seen, may_fork=True)


def test_a_writer_that_names_no_predecessors_takes_no_root_away_either() -> None:
    forked = sign_document(replace(twice(first()), lineage=None), NOW)
    with pytest.raises(SuccessionError, match="is gone"):
        verify_successor(forked, rotated(first(), "b"))


def test_two_histories_with_the_same_roots_are_told_apart() -> None:
    before = rotated(first(), "b")
    seen, forked = record_retirement(before, A.id, NOW), prepared(record_retirement(before, A.id, NOW + 1), "d")
    with pytest.raises(ForkedIdentityError):
        verify_successor(forked, seen)
    verify_successor(prepared(seen, "d"), seen)
    # A store without compare-and-swap lets two writers win: the server that has read what was lost goes on.
    verify_successor(forked, seen, may_fork=True)


def test_a_root_that_was_only_prepared_may_be_gone() -> None:
    seen = prepared()
    after = cancel_rotation(seen, NOW, reason="asked for")
    assert after.find_root(B.id) is None
    verify_successor(after, seen)
    verify_successor(after, TrustCheckpoint.from_bytes(TrustCheckpoint.from_document(seen).to_bytes()))


def test_a_root_that_was_published_may_not() -> None:
    seen = published()
    without = sign_document(
        replace(cancel_rotation(seen, NOW, reason="asked for"), roots=(A.session,), endorsements=()), NOW
    )
    with pytest.raises(SuccessionError, match=f"root {B.id}, which is trusted here, is gone"):
        verify_successor(without, seen)


def test_a_pruned_root_is_explained_by_the_later_root_that_has_introduced_it() -> None:
    seen = rotated(rotated(first(), "b"), "c")
    after = prune_roots(seen, prunable_roots(seen), NOW)
    assert after.find_root(A.id) is None
    verify_successor(after, seen, [outlived("a", "c")])
    for links in ([], [outlived("a", "d")], [introduced(A.session, owned("c"))], [introduced(B.session, A)]):
        with pytest.raises(SuccessionError, match=f"root {A.id}, which is trusted here, is gone"):
            verify_successor(after, seen, links)
    with pytest.raises(SuccessionError, match="is gone"):
        verify_successor(after, seen, [replace(outlived("a", "c"), signature=outlived("a", "d").signature)])


def test_it_is_explained_over_roots_that_have_been_pruned_since() -> None:
    document = seen = rotated(rotated(first(), "b"), "c")
    for name in ("d", "e", "f"):
        document = rotated(document, name)
        document = prune_roots(document, prunable_roots(document), NOW)
    links = [outlived("a", "d"), outlived("b", "d"), outlived("c", "e"), outlived("d", "f")]
    with pytest.raises(SuccessionError, match="no chain"):
        verify_successor(document, seen, links)
    there = [introduced(owned(new).session, owned(old)) for old, new in (("c", "d"), ("d", "e"))]
    verify_successor(document, seen, [*links, *there])
    with pytest.raises(SuccessionError, match=r"root [ac]x+, which is trusted here, is gone"):
        verify_successor(document, seen, [links[0], links[1], links[3], *there])


def test_where_there_is_nowhere_to_look_the_count_of_pruned_roots_has_to_do() -> None:
    seen = rotated(rotated(first(), "b"), "c")
    after = prune_roots(seen, prunable_roots(seen), NOW)
    verify_successor(after, seen, is_pruning_believed=True)
    with pytest.raises(SuccessionError, match="is gone"):
        verify_successor(sign_document(replace(after, pruned=0), NOW), seen, is_pruning_believed=True, may_fork=True)


def test_a_revoked_root_stays_and_is_no_loss() -> None:
    seen = rotated(first(), "b")
    verify_successor(revoke_root(seen, A.id, NOW, reason="stolen"), seen)


# --- the list of predecessors -----------------------------------------------------------------------------------------


def test_each_document_names_the_one_before_it_and_forgets_the_eldest() -> None:
    document = first()
    assert document.lineage is None
    for name in ("b", "c", "d", "e"):
        before, document = document, rotated(document, name)
        assert document.lineage is not None
        assert document.lineage.digest_of(before.generation) == document_digest(before)[:32]
    assert document.lineage is not None
    assert [generation for generation, _ in document.lineage.entries] == [*range(document.generation)][-KEPT:]
    assert len(str(document.lineage.to_json())) < 1024


def test_the_predecessor_is_what_was_stored_whatever_was_changed_in_memory_before_the_step() -> None:
    stored = rotated(first(), "b")
    changed = replace(stored, pruned=7)
    after = record_retirement(changed, A.id, NOW)
    assert after.lineage is not None
    assert after.lineage.digest_of(stored.generation) == document_digest(stored)[:32]


def test_a_writer_that_does_not_know_the_list_leaves_a_gap() -> None:
    before = rotated(first(), "b")
    by_another = decode_document(encode_document(replace(before, generation=before.generation + 1)))
    after = record_retirement(by_another, A.id, NOW)
    assert after.lineage is not None
    assert after.lineage.digest_of(before.generation) is None
    verify_successor(after, before)


@pytest.mark.parametrize(
    "value",
    [
        [],
        "x",
        {"1": 2},
        {"1": "ab"},
        {"01": "a" * 32},
        {"-1": "a" * 32},
        {"1": "A" * 32},
        {str(number): "a" * 32 for number in range(65)},
    ],
)
def test_anything_else_is_no_list_of_predecessors(value: object) -> None:
    with pytest.raises(MalformedIdentityError, match="predecessors"):
        Lineage.from_json(value, "predecessors")
