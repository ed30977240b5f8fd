"""Read session commits (``/sys/sessions``) from a server that runs unmodified GoatDB 0.5.1.

GoatDB has no request for a single commit: a server sends all commits that the Bloom filter in the request does not
contain. So Goatherd sends a filter that seems to contain every commit except a few. The server then sends these few,
and by chance one in 8192 of all others, so the answer is small even with 50 000 sessions.

The commits in an answer are unverified until `ExpectedCommit.matches` or `prove_signer` has verified them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from goatherd.cluster.node import Node
from goatherd.cluster.server_answers import ServerIdentity, make_printable
from goatherd.errors import DecodeError, InvalidSignatureError, NodeRefusedError, VerificationError
from goatherd.identity.session import OwnedSession, Session, parse_signature, verify_commit
from goatherd.identity.session_commits import session_from_commit
from goatherd.ids import new_seeds
from goatherd.wire.bloom import BloomFilter
from goatherd.wire.commit import Commit
from goatherd.wire.hashing import murmur3
from goatherd.wire.javascript_values import exact_date_ms
from goatherd.wire.messages import VERSION
from goatherd.wire.paths import SESSIONS_PATH

SMALL_REPOSITORY: Final = 1000
"""A repository with at most this many commits is read as a whole."""
_FILTER_BYTES: Final = 1024
EMPTY_FILTER: Final[dict[str, Any]] = {"__t": "E", "__v": {"d": "AA==", "s": [1, 2]}}
"""A Bloom filter that contains no commit, so that a server sends all of its commits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedCommit:
    """The description of a commit in ``/sys/sessions`` that must introduce a root, to compare a server's commit with.

    Attributes:
        commit_id: Id of the commit.
        session: The root that the commit introduces.
        signers: Roots; one of them must have signed the commit.
    """

    commit_id: str
    session: Session
    signers: tuple[Session, ...]

    @property
    def session_id(self) -> str:
        """Id of the root that the commit introduces."""
        return self.session.id

    def matches(self, raw: Mapping[str, Any], *, org: str) -> bool:
        """Return whether `raw` is the expected commit, and not another one under the same id.

        The commit must have a valid signature of one of `signers`, and introduce the root with its key and an
        expiration that is not earlier. Bytes are not compared, because another version of Goatherd may have encoded the
        commit differently.

        SECURITY: the next root signs only if servers hold a commit by which others can follow it
        (tests/unit/rotation/test_cross_signing.py, tests/unit/cluster/test_observer.py).

        Args:
            raw: The commit as a server sent it.
            org: The organization; it is part of the signed bytes.
        """
        signer = next((one for one in self.signers if one.id == read_signer(raw)), None)
        if signer is None or raw.get("id") != self.commit_id:
            return False
        try:
            commit = Commit.from_json(dict(raw), org=org)
            found = session_from_commit(commit)
            verify_commit(signer, commit)
        except (DecodeError, VerificationError):
            return False
        is_same = (found.id, found.owner, found.public_key) == (
            self.session.id,
            self.session.owner,
            self.session.public_key,
        )
        lives_on = found.expiration_ms >= exact_date_ms(self.session.expiration_ms)
        return is_same and lives_on and commit.session == signer.id


def read_signer(commit: Mapping[str, Any]) -> str | None:
    """Return the id of the session that a commit names as its signer, unverified, safe to print; None without one."""
    signature = commit.get("sig")
    if not isinstance(signature, str):
        return None
    try:
        return make_printable(parse_signature(signature).session_id)
    except InvalidSignatureError:
        return None


async def prove_signer(
    node: Node, identity: ServerIdentity, roots: Sequence[OwnedSession], *, org: str, now_ms: int
) -> str | None:
    """Return the id of the root that signs at a server under an agent, if a commit proves it; else None.

    The agent reports the root, and a commit that the server has signed with it. The server must hold that commit.

    Args:
        node: The server.
        identity: The agent's report.
        roots: One or two roots that the server may trust. The first one signs the request, or the second if the server
            does not trust the first. If the reported root is among them, the commit's signature is verified.
        org: The organization; it is part of the signed bytes.
        now_ms: Milliseconds since 1970.

    Raises:
        NodeUnreachableError, NodeRefusedError: As `NodeClient.batch_sync`.
    """
    claim = read_claim(identity)
    if claim is None:
        return None
    _, commit_id, signer = claim
    try:
        held = await read_held(node, [commit_id], roots[0], now_ms)
    except NodeRefusedError as error:
        if error.status != 403 or len(roots) == 1:
            raise
        held = await read_held(node, [commit_id], roots[1], now_ms)
    commit = held.get(commit_id)
    if commit is None or read_signer(commit) != signer:
        return None
    key = next((one.session for one in roots if one.id == signer), None)
    if key is not None and not _is_signed_by(key, commit, org):
        return None
    return signer


async def read_held(
    node: Node, commit_ids: Sequence[str], signer: OwnedSession, now_ms: int
) -> dict[str, dict[str, Any]]:
    """Return those of the given ``/sys/sessions`` commits that a server holds, by id and unverified.

    Raises:
        NodeUnreachableError, NodeRefusedError: As `NodeClient.batch_sync`.
    """
    (reply,) = await node.batch_sync([(SESSIONS_PATH, _sync_request(filter_all_but(commit_ids)))], signer, now_ms)
    return {commit["id"]: dict(commit) for commit in _read_commits(reply) if commit.get("id") in commit_ids}


async def read_sessions_filter(node: Node, asker: OwnedSession, now_ms: int) -> Any:
    """Return a Bloom filter of the session commits that a server holds now, for a later request of the new ones only.

    If the server holds few commits, the filter is empty, so that the later answer contains all of them.

    Raises:
        NodeUnreachableError, NodeRefusedError: As `NodeClient.batch_sync`.
    """
    (before,) = await node.batch_sync([(SESSIONS_PATH, _sync_request(filter_all_but(())))], asker, now_ms)
    # The server's own filter. At this size its error rate is small; a smaller repository is sent as a whole.
    return before.get("f") if isinstance(before.get("s"), int) and before["s"] > SMALL_REPOSITORY else EMPTY_FILTER


async def find_session_commit(node: Node, owned: OwnedSession, known: Any, now_ms: int) -> Mapping[str, Any] | None:
    """Return the commit by which a server has introduced a new session; None if the server does not send it.

    Args:
        node: The server.
        owned: The session that the server has just created.
        known: Result of `read_sessions_filter` before the session was created; None if it could not be read.
        now_ms: Milliseconds since 1970.

    Raises:
        NodeUnreachableError, NodeRefusedError: As `NodeClient.batch_sync`.
    """
    for sync_filter in (EMPTY_FILTER,) if known in (None, EMPTY_FILTER) else (known, EMPTY_FILTER):
        (reply,) = await node.batch_sync([(SESSIONS_PATH, _sync_request(sync_filter))], owned, now_ms)
        for commit in _read_commits(reply):
            if commit.get("k") == owned.id:
                return commit
    return None


def introduces_user(commit: Mapping[str, Any]) -> bool:
    """Return whether a commit of ``/sys/sessions`` introduces an anonymous session, which has no owner."""
    contents = commit.get("c")
    record = contents.get("r") if isinstance(contents, Mapping) else None
    fields = record.get("d") if isinstance(record, Mapping) else None
    is_whole = isinstance(commit.get("id"), str) and isinstance(commit.get("ts"), int | float) and not commit.get("p")
    return is_whole and isinstance(fields, Mapping) and fields.get("id") == commit.get("k") and not fields.get("owner")


def _is_signed_by(session: Session, raw: Mapping[str, Any], org: str) -> bool:
    try:
        verify_commit(session, Commit.from_json(dict(raw), org=org))
    except (DecodeError, VerificationError):
        return False
    return True


def read_claim(identity: ServerIdentity) -> tuple[str, str, str] | None:
    """Return which root signs at an agent's server, as the agent claims: the ids of process, commit and root.

    The commit is one that the server process has signed with the root. The result is None if the agent has not checked
    its server yet.
    """
    commit_id = None if identity.agent is None else identity.agent.check_commit
    if identity.instance is None or commit_id is None or identity.signer is None:
        return None
    return identity.instance, commit_id, identity.signer


def filter_all_but(commit_ids: Sequence[str]) -> dict[str, Any]:
    """Return a Bloom filter that seems to contain every commit except the given ones, so that a server sends these."""
    (seed,) = new_seeds(1)
    bits = bytearray(b"\xff" * _FILTER_BYTES)
    for commit_id in commit_ids:
        index = murmur3(commit_id, seed) % (8 * _FILTER_BYTES)
        bits[index >> 3] &= ~(1 << (index & 7)) & 0xFF
    return {"__t": "E", "__v": BloomFilter(bits, (seed,)).to_json()}


def _filter_sample(share: float) -> dict[str, Any]:
    """Return a Bloom filter that makes a server send about the fraction `share` (0 to 1) of its commits, at random."""
    if share >= 1:
        return EMPTY_FILTER
    (seed,) = new_seeds(1)
    bits = bytearray(b"\xff" * _FILTER_BYTES)
    total = 8 * _FILTER_BYTES
    for index in range(max(1, round(share * total))):  # the seed is new each time, so which bits does not matter
        bits[index >> 3] &= ~(1 << (index & 7)) & 0xFF
    return {"__t": "E", "__v": BloomFilter(bits, (seed,)).to_json()}


async def read_sessions_sample(node: Node, asker: OwnedSession, now_ms: int) -> list[Mapping[str, Any]]:
    """Return a server's commits of ``/sys/sessions``, unverified; if they are many, about `SMALL_REPOSITORY` at random.

    Raises:
        NodeUnreachableError, NodeRefusedError: As `NodeClient.batch_sync`.
    """
    (counted,) = await node.batch_sync([(SESSIONS_PATH, _sync_request(filter_all_but(())))], asker, now_ms)
    size = counted.get("s")
    share = SMALL_REPOSITORY / size if isinstance(size, int) and size > SMALL_REPOSITORY else 1
    (reply,) = await node.batch_sync([(SESSIONS_PATH, _sync_request(_filter_sample(share)))], asker, now_ms)
    return _read_commits(reply)


def _sync_request(sync_filter: Any) -> dict[str, Any]:
    return {"ver": VERSION, "f": sync_filter, "s": 0, "c": [], "ad": []}


def _read_commits(reply: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    commits = reply.get("c")
    return [commit for commit in commits if isinstance(commit, Mapping)] if isinstance(commits, list) else []
