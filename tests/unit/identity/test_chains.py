"""A server that was offline follows roots that have left the document, by their introductions."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest

from goatherd.errors import SuccessionError
from goatherd.identity.document import IdentityDocument
from goatherd.identity.session import OwnedSession, Session
from goatherd.identity.session_commits import earlier_introduction_id, introduction_id
from goatherd.identity.succession import TrustCheckpoint, verify_succession, verify_successor
from goatherd.identity.transitions import prunable_roots, prune_roots, revoke_root
from goatherd.rotation.cross_signing import make_session_commit
from goatherd.wire.commit import Commit

from .make import DAY, NOW, first, owned, rotated

ORG = "localhost"
COUNT = 30
NAMES = ["a", *(f"r{number}" for number in range(1, COUNT))]


def introduced(session: Session, signer: OwnedSession, ts: int = NOW) -> Commit:
    raw = make_session_commit(session, signer=signer, commit_id=introduction_id(session.id), ts=ts, org=ORG)
    return Commit.from_json(raw, org=ORG)


def outlived(name: str, later: str) -> Commit:
    """Return the commit by which a later root introduces an earlier one, so that it may leave the document."""
    session, signer = owned(name).session, owned(later)
    commit_id = earlier_introduction_id(session.id, signer.id)
    return Commit.from_json(make_session_commit(session, signer=signer, commit_id=commit_id, ts=NOW, org=ORG), org=ORG)


def aged() -> IdentityDocument:
    """Return the document of a cluster that has rotated so often that only its two latest roots are left in it."""
    document = first()
    for name in NAMES[1:]:
        document = rotated(document, name)
    return prune_roots(document, prunable_roots(document), NOW)


def chain() -> list[Commit]:
    return [introduced(owned(new).session, owned(old)) for old, new in itertools.pairwise(NAMES)]


def whole_chain() -> list[Commit]:
    """Return what every listed server holds: how each root came, and that the last one introduces the first."""
    return [*chain(), outlived("a", NAMES[-1])]


@pytest.mark.slow
def test_a_node_that_missed_every_rotation_but_the_first_follows_by_the_introductions_in_any_order() -> None:
    document, links = aged(), chain()
    random.Random(7).shuffle(links)
    assert len(document.roots) == 2
    with pytest.raises(SuccessionError, match="no chain") as caught:
        verify_succession(document, [owned("a").session])
    assert caught.value.is_chain_open
    verify_succession(document, [owned("a").session], links)
    with pytest.raises(SuccessionError, match="is gone from the identity"):
        verify_successor(document, TrustCheckpoint.from_document(first()), links)
    verify_successor(document, TrustCheckpoint.from_document(first()), [*links, outlived("a", NAMES[-1])])
    verify_successor(document, TrustCheckpoint.from_document(first()), whole_chain())


@pytest.mark.slow
@pytest.mark.parametrize("missing", [0, COUNT // 2, COUNT - 3])
def test_a_chain_with_a_gap_is_refused(missing: int) -> None:
    links = chain()
    del links[missing]
    with pytest.raises(SuccessionError, match="no chain"):
        verify_succession(aged(), [owned("a").session], links)


@pytest.mark.slow
def test_a_link_that_another_key_has_signed_is_none() -> None:
    links = chain()
    middle = COUNT // 2
    old, new = owned(NAMES[middle]), owned(NAMES[middle + 1])
    impostor = OwnedSession(session=replace(owned("thief").session, id=old.id), signer=owned("thief").signer)
    forgeries = [
        introduced(new.session, impostor),
        introduced(new.session, owned("thief")),
        replace(introduced(new.session, owned("thief")), session=old.id),
        introduced(replace(new.session, owner="user"), old),
        introduced(new.session, old, ts=old.session.expiration_ms + 1),
    ]
    links[middle : middle + 1] = forgeries
    with pytest.raises(SuccessionError, match="no chain"):
        verify_succession(aged(), [owned("a").session], links)
    verify_succession(aged(), [owned("a").session], [*links, introduced(new.session, old)])


@pytest.mark.slow
def test_a_link_to_another_key_or_expiration_than_the_document_lists_is_none() -> None:
    links = chain()
    last, before = owned(NAMES[-1]), owned(NAMES[-2])
    document = prune_endorsements(aged())
    for other in (
        replace(last.session, expiration_ms=last.session.expiration_ms - DAY),
        replace(last.session, public_key=owned("thief").session.public_key),
    ):
        with pytest.raises(SuccessionError, match="no chain"):
            verify_succession(document, [owned("a").session], [*links[:-1], introduced(other, before)])
    verify_succession(document, [owned("a").session], links)


def prune_endorsements(document: IdentityDocument) -> IdentityDocument:
    return replace(document, endorsements=())


@pytest.mark.slow
def test_a_chain_does_not_lead_through_a_root_that_the_document_revokes() -> None:
    middle = NAMES[COUNT // 2]
    document = first()
    for name in NAMES[1:]:
        document = rotated(document, name)
    document = revoke_root(document, owned(middle).id, NOW, reason="stolen")
    document = prune_roots(document, prunable_roots(document), NOW)
    with pytest.raises(SuccessionError, match="no chain"):
        verify_succession(document, [owned("a").session], chain())
    verify_succession(document, [owned(NAMES[COUNT // 2 + 1]).session], chain())


def test_past_a_revoked_root_leads_its_proof() -> None:
    document = first()
    for name in ("r1", "r2"):
        document = rotated(document, name)
    document = revoke_root(document, owned("r2").id, NOW, reason="stolen", successor=owned("r3"))
    document = rotated(rotated(document, "r4"), "r5")
    document = prune_roots(document, prunable_roots(document), NOW)
    kept = {root.id for root in document.roots}
    assert owned("a").id not in kept
    links = [introduced(owned(new).session, owned(old)) for old, new in [("a", "r1"), ("r1", "r2"), ("r3", "r4")]]
    verify_succession(document, [owned("a").session], links)
    with pytest.raises(SuccessionError, match="no chain"):
        verify_succession(document, [owned("a").session], links[1:])


@pytest.mark.slow
def test_a_root_that_was_slipped_into_the_document_is_refused_whatever_the_chain_says_of_the_others() -> None:
    document, links = aged(), chain()
    slipped = replace(document, roots=(*document.roots, owned("thief").session))
    with pytest.raises(SuccessionError, match=f"to root {owned('thief').id}"):
        verify_succession(slipped, [owned("a").session], [*links, introduced(owned("thief").session, owned("thief"))])


@pytest.mark.slow
def test_what_is_no_introduction_at_all_does_no_harm() -> None:
    links = chain()
    noise = [
        replace(links[0], signature=None),
        replace(links[1], signature="nonsense"),
        introduced(owned("u", owner="user").session, owned("a")),
    ]
    verify_succession(aged(), [owned("a").session], [*noise, *links])
