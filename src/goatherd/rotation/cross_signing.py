"""Make the ``/sys/sessions`` commits by which one root introduces another (cross-signatures).

Pure. A commit depends on the identity document alone, including its id, time and signature. So any process that resumes
a rotation makes the very same commit again, and pushing it twice has the effect of pushing it once.

No introduction of a root has a parent (ADR 17), because a GoatDB client that was offline ignores an introduction that
is the parent of a commit the client holds. All introductions of one root have the same contents, so GoatDB does not
merge them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any, Final

from goatherd.cluster.session_queries import ExpectedCommit
from goatherd.derived_ids import derived_id
from goatherd.identity.document import IdentityDocument
from goatherd.identity.key_age import last_signed_ms
from goatherd.identity.session import (
    OwnedSession,
    Session,
    parse_signature,
    sign_commit,
)
from goatherd.identity.session_commits import (
    SESSIONS_SCHEMA,
    earlier_introduction_id,
    session_fields,
)
from goatherd.wire.bloom import DEFAULT_FPR, BloomFilter, seed_count
from goatherd.wire.commit import new_commit

COPIES: Final = 3
"""How many times a new root is introduced. An unmodified server that holds 60 session commits omits one of them from an
answer with a probability of 1 in 15, and all three with a probability of 1 in 3600."""


def introduction_id(session_id: str) -> str:
    """Return the id of the commit that introduces this root to its cluster."""
    return derived_id("introduction", session_id)


def introduction_ids(session_id: str) -> tuple[str, ...]:
    """Return the ids of all commits that introduce this root to its cluster; `introduction_id` returns the first.

    An unmodified server leaves a commit out of its answer if the client's Bloom filter contains it by chance. A client
    that gets one introduction later than the following ones never follows those, so each is sent `COPIES` times.
    """
    others = [derived_id(f"introduction/{number}", session_id) for number in range(2, COPIES + 1)]
    return (introduction_id(session_id), *others)


def make_repeated_introductions(document: IdentityDocument, *, org: str) -> list[dict[str, Any]]:
    """Return commits with the contents of `make_introduction` under other ids; none for a root that is restored.

    Args:
        document: A prepared or published document.
        org: See `make_introduction`.
    """
    record = document.rotation
    assert record is not None
    if record.is_restore:
        return []
    return [_introduce_next(document, commit_id, org) for commit_id in introduction_ids(record.to_id)[1:]]


def expected_introductions(document: IdentityDocument) -> tuple[ExpectedCommit, ...]:
    """Return the commits any of which shows that the next root was introduced; none if no rotation is in progress.

    A new root has one such commit, signed by the current root. A previous root that is restored was introduced before:
    by the root that it replaced, or by one that replaced it (its cross-signature). A server that holds none of these
    gets a new one, which is the last of those returned.
    """
    record = document.rotation
    if record is None:
        return ()
    if not record.is_restore:
        return (_expect(document, introduction_id(record.to_id), record.to_id, {record.from_id}),)
    # SECURITY: a commit of a revoked root introduces nothing (tests/unit/rotation/test_cross_signing.py).
    believed = {root.id for root in document.roots} - document.revoked_ids
    found = [_expect(document, introduction_id(record.to_id), record.to_id, believed - {record.to_id})]
    for entry in document.history:
        if entry.rotation_id is None:
            continue
        if entry.from_id == record.to_id and entry.to_id in believed:
            ids = (cross_signature_id(entry.rotation_id), former_cross_signature_id(entry.rotation_id))
            found += [_expect(document, commit_id, record.to_id, {entry.to_id}) for commit_id in ids]
        elif entry.to_id == record.to_id and entry.from_id in believed:
            found.append(_expect(document, restoration_id(entry.rotation_id), record.to_id, {entry.from_id}))
    return (*found, _expect(document, restoration_id(record.id), record.to_id, {record.from_id}))


def cross_signature_id(rotation_id: str) -> str:
    """Return the id of the commit by which a rotation's new root introduces the root that it replaces."""
    return derived_id("cross-signature/2", rotation_id)


def former_cross_signature_id(rotation_id: str) -> str:
    """Return the id of a rotation's cross-signature in older versions of Goatherd, where it had a parent (ADR 17)."""
    return derived_id("cross-signature", rotation_id)


def restoration_id(rotation_id: str) -> str:
    """Return the id of the commit that introduces a restored root to a server that holds no introduction of it."""
    return derived_id("restoration", rotation_id)


def _expect(document: IdentityDocument, commit_id: str, session_id: str, signer_ids: Collection[str]) -> ExpectedCommit:
    known = [root.session for root in (document.next, document.current) if root is not None] + list(document.roots)
    session = next(root for root in known if root.id == session_id)
    signers = {root.id: root for root in known if root.id in signer_ids}
    return ExpectedCommit(commit_id=commit_id, session=session, signers=tuple(signers.values()))


def expected_cross_signature(document: IdentityDocument) -> ExpectedCommit | None:
    """Return the expected introduction of the previous root by the next one; None if no rotation is in progress."""
    record = document.rotation
    if record is None:
        return None
    return _expect(document, cross_signature_id(record.id), record.from_id, {record.to_id})


def make_introduction(document: IdentityDocument, *, org: str) -> dict[str, Any]:
    """Return the commit that introduces the next root, signed by the current one.

    Args:
        document: A prepared or published document.
        org: The organization of the servers' data; it is part of the signed bytes.
    """
    record = document.rotation
    assert record is not None
    commit_id = restoration_id(record.id) if record.is_restore else introduction_id(record.to_id)
    return _introduce_next(document, commit_id, org)


def _introduce_next(document: IdentityDocument, commit_id: str, org: str) -> dict[str, Any]:
    record, successor = document.rotation, document.next
    assert record is not None
    assert successor is not None
    return make_session_commit(
        successor.session, signer=document.current, commit_id=commit_id, ts=record.started_at, org=org
    )


def make_cross_signature(document: IdentityDocument, *, org: str) -> dict[str, Any]:
    """Return the commit that introduces the previous root, signed by the current one.

    Args:
        document: An activated or verified document.
        org: See `make_introduction`.
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
    """Return the ids of all commits by which roots of this identity may have been introduced.

    Args:
        rotations: Ids of rotations.
        roots: Ids of roots that took part in them.
        listed: Ids of roots that the document lists; they may have introduced roots that were removed from it.
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
    """Return the expected commit by which the current root introduces a previous one."""
    current = document.current.id
    return _expect(document, earlier_introduction_id(session_id, current), session_id, {current})


def make_earlier_introduction(document: IdentityDocument, session_id: str, *, org: str) -> dict[str, Any]:
    """Return the commit that introduces a previous root of a steady document, signed by the current one.

    Because of this commit the previous root stays trusted after it was removed from the document.

    Args:
        document: A steady document.
        session_id: A previous root in the document.
        org: See `make_introduction`.
    """
    earlier = document.find_root(session_id)
    assert earlier is not None
    return make_session_commit(
        earlier,
        signer=document.current,
        commit_id=expected_earlier_introduction(document, session_id).commit_id,
        # Derived from the document alone, so that every process makes the same commit; not in the future.
        ts=document.rotated_at or last_signed_ms(document, session_id),
        org=org,
    )


def expected_late_introduction(document: IdentityDocument, expired_id: str) -> ExpectedCommit:
    """Return the expected commit by which an expired root introduces the current one, which has replaced it."""
    return _expect(document, introduction_id(document.current.id), document.current.id, {expired_id})


def make_late_introduction(document: IdentityDocument, expired: OwnedSession, *, org: str) -> dict[str, Any]:
    """Return the commit by which an expired root introduces the current one, which has replaced it.

    Clients that know only the expired root follow the current one by this commit. The commit has the time of the
    endorsement in the document, when the expired root's signature was still valid.

    Args:
        document: A steady document.
        expired: The expired root with its private key.
        org: See `make_introduction`.
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
        signer: The root that introduces it, and the commit's author.
        commit_id: 24 characters of a-z and 0-9.
        ts: Time of the commit and of its signature, in milliseconds since 1970.
        org: See `make_introduction`.
        parents: Ids of the commit's parents.
        connection: Id of the process that writes it; None to derive it from the signer.
    """
    draft = new_commit(
        commit_id=commit_id,
        key=session.id,
        session_id=signer.id,
        ts=ts,
        org=org,
        data=session_fields(session),
        schema_marker=SESSIONS_SCHEMA,
        connection=connection or derived_id("connection", signer.id),
        parents=parents,
        # COMPAT: GoatDB's commits always carry one; nothing is recorded in it, as for any first or second of a key.
        ancestors_filter=BloomFilter.for_size(1, DEFAULT_FPR, range(1, 1 + seed_count(1, DEFAULT_FPR))),
    )
    return sign_commit(signer, draft, now_ms=ts).to_json()
