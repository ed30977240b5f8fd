"""Decide whether a repository may store a commit that a client or peer has sent.

`goatherd.admission` checks the commit alone; this module compares it with the commits that are already stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from goatherd.admission.commits import MAP_MARK, CommitFault, NotAdmittedError, decode_commit, is_nested_deeper
from goatherd.admission.requests import RequestLimits
from goatherd.errors import AuthorMismatchError, InvalidSignatureError, UnknownSignerError, VerificationError
from goatherd.identity.session import parse_signature
from goatherd.node.repository import Repository
from goatherd.wire.commit import Commit


def read_commit(raw: Any, repository: Repository, limits: RequestLimits, now_ms: int) -> Commit:
    """Decode a commit that a peer or client sent, and check everything except its signature.

    Args:
        raw: The commit as received, as parsed JSON.
        repository: The repository to which the commit was sent.
        limits: Limits on the commit's size, nesting, and how far its timestamp may be in the future.
        now_ms: The time of the server's clock in milliseconds.

    Raises:
        DecodeError: The received value is not a commit.
        NotAdmittedError: The commit exceeds a limit, contradicts the repository (`check_against`), or could crash a
            server or client that reads it.
    """
    if isinstance(raw, Mapping) and is_nested_deeper(raw.get("c"), limits.depth, (MAP_MARK,)):
        raise NotAdmittedError(
            f"a commit's contents must not be nested too deeply, or have a member {MAP_MARK}", CommitFault.CONTENTS
        )
    commit = decode_commit(
        raw, repository.path, org=repository.org, limits=limits, now_ms=now_ms, registry=repository.registry
    )
    check_against(commit, repository)
    commit.keep_encoded()  # long commits take long, and this runs in a thread
    return commit


def check_against(commit: Commit, repository: Repository) -> None:
    """Check that a decoded commit does not contradict the commits that its repository already holds.

    The server calls this function when the commit arrives, and again just before it stores the commit, because another
    request may have stored commits in between.

    Raises:
        NotAdmittedError: The commit changes the schema of its item; or it is a delta (a change to a base commit) and
            its base is itself a delta or belongs to another item, or another delta is already based on it.
    """
    if commit.is_delta:
        # SECURITY: a delta that is based on a delta can send a GoatDB reader into an endless loop. GoatDB itself never
        # writes one (tests/unit/node/test_engine.py).
        base = repository.get(commit.base or "")
        if commit.base == commit.id or repository.is_base(commit.id):
            raise NotAdmittedError(f"commit {commit.id!r} must not be a delta: another delta is based on it")
        if base is not None and (base.is_delta or base.key != commit.key):
            raise NotAdmittedError(f"the base of delta commit {commit.id!r} must be a full commit of the same item")
        return
    known = repository.namespace_of(commit.key)
    if known is not None and commit.namespace != known:
        raise NotAdmittedError(f"commit {commit.id!r} must not change the schema of item {commit.key!r} from {known!r}")


def is_damaged(commit: Commit, verdict: VerificationError | None) -> bool:
    """Return whether the verdict on a commit of this server's log shows that the commit was changed in the log.

    A commit whose signer is unknown may become valid later, unless it names another session than its signature.
    """
    if isinstance(verdict, UnknownSignerError):
        try:
            return parse_signature(commit.signature or "").session_id != commit.session
        except VerificationError:
            return True
    return isinstance(verdict, InvalidSignatureError | AuthorMismatchError)
