"""Make the ``/sys/sessions`` commits by which one root introduces another (cross-signatures).

Pure: each commit, with its id, its time and its signature, is computed from the identity document alone. So any process
that resumes a rotation makes the same commit again, and to push it twice does no harm.

The commit that introduces a root never has a parent commit (ADR 17), because a GoatDB client ignores an introduction
that arrives after a child of it. All introductions of one root have the same contents, so GoatDB does not merge them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any, Final

from goatherd.cluster.session_queries import ExpectedCommit
from goatherd.identity.document import IdentityDocument
from goatherd.identity.key_age import last_signed_ms
from goatherd.identity.root_signatures import Endorsement
from goatherd.identity.session import (
    OwnedSession,
    Session,
    parse_signature,
    sign_commit,
)
from goatherd.identity.session_commits import draft_session_commit, earlier_introduction_id, introduction_id
from goatherd.wire.derived_ids import derived_id

COPIES: Final = 3
"""How many times a new root is introduced. An unmodified server that holds 60 session commits omits one of them from an
answer with a probability of 1 in 15, and all three with a probability of 1 in 3600."""


def introduction_ids(session_id: str) -> tuple[str, ...]:
    """Return the ids of the `COPIES` commits by which a new root is introduced; `introduction_id` returns the first.

    Why several: a server leaves a commit out of its answer if the client's Bloom filter contains the commit by chance.
    A client that gets a root's introduction only after those of later roots would never trust these later roots.
    """
    others = [derived_id(f"introduction/{number}", session_id) for number in range(2, COPIES + 1)]
    return (introduction_id(session_id), *others)


def make_introductions(document: IdentityDocument, *, org: str) -> list[list[dict[str, Any]]]:
    """Return the commits that introduce the next root: one list for each push, in the order in which to push them.

    A new root is introduced by several commits (`introduction_ids`), which differ in their ids only; a previous root
    that is restored, by one. If the identity has an anchor (a key in an HSM or a KMS), the anchor has signed the
    introduction in advance, and the document holds its signature. A new anchor is introduced first, in a push of its
    own, because GoatDB verifies all commits of a request before it trusts any of them.

    Args:
        document: An identity document with a rotation in phase prepared or published.
        org: The organization of the servers' data; it is part of the signed bytes.
    """
    record, after = document.rotation, document.next_anchor
    assert record is not None
    commits = [make_introduction(document, org=org)]
    if not record.is_restore:
        commits += [_introduce_next(document, commit_id, org) for commit_id in introduction_ids(record.to_id)[1:]]
    # A next root that is the next anchor (direct mode) is introduced first, too, since it introduces others.
    if after is None or after == document.anchor:
        return [commits]
    session = document.find_root(after)
    assert session is not None
    signed = _find_introduction(document, session, document.anchor)
    if signed is None:
        signed = make_session_commit(
            session, signer=document.current, commit_id=introduction_id(session.id), ts=record.started_at, org=org
        )
    for one in document.endorsements:
        earlier = document.find_root(one.of)
        if one.by == after and one.commit is not None and one.commit.is_earlier and earlier is not None:
            commits.append(one.introduction(earlier).to_json())
    return [[signed], commits]


def _find_introduction(document: IdentityDocument, root: Session, by_id: str | None) -> dict[str, Any] | None:
    """Return the commit by which an anchor has introduced `root`; None if the document holds no signature for it.

    With `by_id`, only an introduction by this anchor counts; with None, one by any anchor.
    """
    found = _find_endorsement(document, root.id, by_id)
    return None if found is None else found.introduction(root).to_json()


def _find_endorsement(document: IdentityDocument, root_id: str, by_id: str | None = None) -> Endorsement | None:
    """Return an anchor's endorsement of a root that is also the root's introduction; None if the document has none.

    With `by_id`, only an endorsement by this anchor counts. An endorsement by a revoked anchor never counts.
    """
    return next(
        (
            one
            for one in document.endorsements
            if one.of == root_id and one.commit is not None and by_id in (None, one.by)
            if one.by not in document.revoked_ids
        ),
        None,
    )


def expected_introductions(document: IdentityDocument) -> tuple[ExpectedCommit, ...]:
    """Return the commits each of which proves that the next root was introduced; empty if no rotation is in progress.

    For a new root this is one commit, signed by the current root, or by the anchor if the identity has one. A previous
    root that is restored was introduced earlier: by the root that it replaced, or by the root that replaced it (the
    cross-signature). A server that holds none of these commits gets a new introduction, the last one in the result.
    """
    record = document.rotation
    if record is None:
        return ()
    authority = _find_introducing_anchor(document)
    if authority is not None:
        # SECURITY: in an identity with an anchor, only the anchor's introduction counts: servers do not trust a root
        # that another root has introduced (tests/unit/rotation/test_anchor.py).
        return (_expect_introduction(document, introduction_id(record.to_id), record.to_id, {authority}),)
    if not record.is_restore:
        return (_expect_introduction(document, introduction_id(record.to_id), record.to_id, {record.from_id}),)
    # SECURITY: introductions that a revoked root has signed do not count (tests/unit/rotation/test_cross_signing.py).
    trusted = {root.id for root in document.roots} - document.revoked_ids
    found = [_expect_introduction(document, introduction_id(record.to_id), record.to_id, trusted - {record.to_id})]
    for entry in document.history:
        if entry.rotation_id is None:
            continue
        if entry.from_id == record.to_id and entry.to_id in trusted:
            ids = (cross_signature_id(entry.rotation_id), former_cross_signature_id(entry.rotation_id))
            found += [_expect_introduction(document, commit_id, record.to_id, {entry.to_id}) for commit_id in ids]
        elif entry.to_id == record.to_id and entry.from_id in trusted:
            found.append(
                _expect_introduction(document, restoration_id(entry.rotation_id), record.to_id, {entry.from_id})
            )
    return (*found, _expect_introduction(document, restoration_id(record.id), record.to_id, {record.from_id}))


def cross_signature_id(rotation_id: str) -> str:
    """Return the id of a rotation's cross-signature: the commit by which the new root introduces the replaced one."""
    return derived_id("cross-signature/2", rotation_id)


def former_cross_signature_id(rotation_id: str) -> str:
    """Return the id that a rotation's cross-signature had in older versions of Goatherd.

    There, the cross-signature (the new root's introduction of the replaced one) had a parent commit (ADR 17).
    """
    return derived_id("cross-signature", rotation_id)


def restoration_id(rotation_id: str) -> str:
    """Return the id of the commit that introduces a restored root to a server that holds no introduction of it."""
    return derived_id("restoration", rotation_id)


def _expect_introduction(
    document: IdentityDocument, commit_id: str, session_id: str, signer_ids: Collection[str]
) -> ExpectedCommit:
    known = [root.session for root in (document.next, document.current) if root is not None] + list(document.roots)
    session = next(root for root in known if root.id == session_id)
    signers = {root.id: root for root in known if root.id in signer_ids}
    return ExpectedCommit(commit_id=commit_id, session=session, signers=tuple(signers.values()))


def expected_cross_signature(document: IdentityDocument) -> ExpectedCommit | None:
    """Return the commit by which the next root must introduce the root that it replaces (the cross-signature).

    Returns:
        The commit that servers must hold; None if no rotation is in progress.
    """
    record = document.rotation
    if record is None:
        return None
    return _expect_introduction(document, cross_signature_id(record.id), record.from_id, {record.to_id})


def make_introduction(document: IdentityDocument, *, org: str) -> dict[str, Any]:
    """Return the commit that introduces the next root, signed by the anchor if there is one, else by the current root.

    Args:
        document: An identity document with a rotation in phase prepared or published.
        org: The organization of the servers' data; it is part of the signed bytes.
    """
    record = document.rotation
    assert record is not None
    authority, successor = _find_introducing_anchor(document), document.next
    if authority is not None and successor is not None:
        signed = _find_introduction(document, successor.session, authority)
        assert signed is not None
        return signed
    commit_id = restoration_id(record.id) if record.is_restore else introduction_id(record.to_id)
    return _introduce_next(document, commit_id, org)


def _find_introducing_anchor(document: IdentityDocument) -> str | None:
    """Return the id of the anchor that must introduce the next root; None if the current root must introduce it.

    If the next root is itself the next anchor (direct mode), the present anchor must introduce it.
    """
    authority, record = document.next_anchor or document.anchor, document.rotation
    if authority is not None and record is not None and record.to_id == authority:
        return document.anchor
    return authority


def _introduce_next(document: IdentityDocument, commit_id: str, org: str) -> dict[str, Any]:
    record, successor = document.rotation, document.next
    assert record is not None
    assert successor is not None
    return make_session_commit(
        successor.session, signer=document.current, commit_id=commit_id, ts=record.started_at, org=org
    )


def make_cross_signature(document: IdentityDocument, *, org: str) -> dict[str, Any]:
    """Return the cross-signature: the commit that introduces the previous root, signed by the new current root.

    Args:
        document: An identity document with a rotation in phase activated or verified.
        org: The organization of the servers' data; it is part of the signed bytes.
    """
    record, expected = document.rotation, expected_cross_signature(document)
    assert record is not None
    assert expected is not None
    earlier = document.find_root(record.from_id)
    assert earlier is not None
    assert document.rotated_at is not None
    return make_session_commit(
        earlier, signer=document.current, commit_id=expected.commit_id, ts=document.rotated_at, org=org
    )


def find_introduction_ids(rotations: Iterable[str], roots: Iterable[str], listed: Iterable[str]) -> tuple[str, ...]:
    """Return the ids of all commits by which the roots of one identity may have been introduced to servers.

    Args:
        rotations: Ids of the identity's rotations.
        roots: Ids of the roots that took part in these rotations.
        listed: Ids of the roots that the identity document lists now; each may have introduced roots that the document
            no longer lists.
    """
    found = [
        one
        for rotation in rotations
        for one in (cross_signature_id(rotation), former_cross_signature_id(rotation), restoration_id(rotation))
    ]
    by = tuple(listed)
    for root in roots:
        found += [introduction_id(root), *(earlier_introduction_id(root, signer) for signer in by if signer != root)]
    return tuple(found)


def expected_earlier_introduction(document: IdentityDocument, session_id: str) -> ExpectedCommit:
    """Return the commit that servers must hold before a previous root may be removed from the identity document.

    By this commit, the current root introduces the previous root. In an identity with an anchor, the anchor does.
    """
    current = document.current.id
    if document.anchor is not None:
        signed, by_id = _find_first_introduction(document, session_id), document.anchor
        if signed is not None and signed.commit is not None:
            root = document.find_root(session_id)
            assert root is not None
            commit_id = signed.commit.draft_commit(root, by_id=signed.by).id
            return _expect_introduction(document, str(commit_id), session_id, {signed.by})
        return _expect_introduction(document, earlier_introduction_id(session_id, by_id), session_id, {by_id})
    return _expect_introduction(document, earlier_introduction_id(session_id, current), session_id, {current})


def make_earlier_introduction(document: IdentityDocument, session_id: str, *, org: str) -> dict[str, Any]:
    """Return the commit that introduces a previous root, signed by the anchor or by the current root.

    The anchor's introduction is used if the document holds it.

    Because of this commit, servers trust the previous root also after it is removed from the identity document.

    Args:
        document: An identity document without a rotation in progress.
        session_id: Id of a previous root in the document.
        org: The organization of the servers' data; it is part of the signed bytes.
    """
    earlier = document.find_root(session_id)
    assert earlier is not None
    if document.anchor is not None and (signed := _find_first_introduction(document, session_id)) is not None:
        return signed.introduction(earlier).to_json()
    return make_session_commit(
        earlier,
        signer=document.current,
        commit_id=expected_earlier_introduction(document, session_id).commit_id,
        # Derived from the document alone, so that every process makes the same commit; not in the future.
        ts=document.rotated_at or last_signed_ms(document, session_id),
        org=org,
    )


def is_introduced_by_anchor(document: IdentityDocument, session_id: str) -> bool:
    """Return whether the document already holds the signature by which a valid anchor introduces a root.

    If so, no new signature of the anchor is needed.
    """
    return _find_first_introduction(document, session_id) is not None


def _find_first_introduction(document: IdentityDocument, session_id: str) -> Endorsement | None:
    """Return the anchor's endorsement by which servers learned a root; None if there is none, or it no longer counts.

    It counts while the anchor is in `introducing_anchor_ids` and is not revoked. Another anchor may be a former one, or
    that of a rotation that was cancelled or rolled back. Its introduction does not permit the removal of the root from
    the document, so the present anchor must make another one.
    """
    first = next((one for one in document.endorsements if one.of == session_id and one.commit is not None), None)
    counts = first is not None and first.by in document.introducing_anchor_ids - document.revoked_ids
    return first if counts else None


def expected_late_introduction(document: IdentityDocument, expired_id: str) -> ExpectedCommit:
    """Return the commit, to be held by servers, by which an expired root introduces the root that has replaced it."""
    return _expect_introduction(document, introduction_id(document.current.id), document.current.id, {expired_id})


def make_late_introduction(document: IdentityDocument, expired: OwnedSession, *, org: str) -> dict[str, Any]:
    """Return the commit by which an expired root introduces the current root, which has replaced it.

    Clients that know only the expired root trust the current root because of this commit. The commit has the time of
    the endorsement in the document, when the expired root's signature was still valid.

    Args:
        document: An identity document without a rotation in progress.
        expired: The expired root with its private key.
        org: The organization of the servers' data; it is part of the signed bytes.
    """
    current = document.current
    (signature,) = (one.signature for one in document.endorsements if (one.by, one.of) == (expired.id, current.id))
    ts = parse_signature(signature).ts
    assert isinstance(ts, int)
    return make_session_commit(current.session, signer=expired, commit_id=introduction_id(current.id), ts=ts, org=org)


def make_session_commit(
    session: Session,
    *,
    signer: OwnedSession,
    commit_id: str,
    ts: int,
    org: str,
    parents: Sequence[str] = (),
    connection: str | None = None,
) -> dict[str, Any]:
    """Return a signed commit of ``/sys/sessions`` that introduces a session.

    Args:
        session: The session to introduce; only its public key is written.
        signer: The root that introduces the session, and that signs the commit as its author.
        commit_id: Id of the commit: 24 characters of a-z and 0-9.
        ts: Time of the commit and of its signature, in milliseconds since 1970.
        org: The organization of the servers' data; it is part of the signed bytes.
        parents: Ids of the commit's parents.
        connection: Id of the process that writes the commit; None to derive it from the signer.
    """
    draft = draft_session_commit(
        session, signer_id=signer.id, commit_id=commit_id, ts=ts, org=org, parents=parents, connection=connection
    )
    return sign_commit(signer, draft, now_ms=ts).to_json()
