"""What a request, and a commit before its signature is looked at, must look like. Pure.

GoatDB stores anything that it can decode and is killed, or kills its clients, by some of it. The rules here refuse
nothing that GoatDB's own clients and servers write. Refusal is silent on the wire, as GoatDB's is; `NotAdmittedError`
says why to whoever watches.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from goatherd.crypto import PublicKey
from goatherd.errors import DecodeError, EncodeError
from goatherd.identity.session_commits import session_from_commit
from goatherd.node.repository import Repository
from goatherd.wire.commit import Commit
from goatherd.wire.items import record_data
from goatherd.wire.json import levels, parse_json
from goatherd.wire.paths import SESSIONS_PATH

_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_KEY = re.compile(r"[a-z0-9_-]{1,200}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much one request may ask for. The defaults are far above what GoatDB's clients do.

    Attributes:
        elements: Elements of one batch; real clients send up to 19.
        seeds: Hash functions of one filter; GoatDB needs 31 for 50 000 commits at its strictest.
        filter_bytes: Bytes of one filter; 4 MiB is enough for 800 000 commits at GoatDB's strictest.
        spare_size: How far above what is here, and came along, a peer's count is believed when a reply's filter is
            sized.
        reply_commits: Commits in the answer to one element. The rest follows in later rounds.
        reply_bytes: Bytes of commits and filters in one answer. The rest follows in later rounds.
        reply_lookups: Looks into filters for one answer, about; 5 million take a second. Elements left over get
            their commits in later rounds.
        parents: Parents of one commit.
        ancestor_bytes: Bytes of one ancestors filter.
        depth: Nesting of a commit's contents.
        ahead: How far in the future a commit's time may lie.
    """

    elements: int = 1000
    seeds: int = 64
    filter_bytes: int = 4 * 1024 * 1024
    spare_size: int = 1000
    reply_commits: int = 10_000
    reply_bytes: int = 64 * 1024 * 1024
    reply_lookups: int = 10_000_000
    parents: int = 1000
    ancestor_bytes: int = 1024 * 1024
    depth: int = 64
    ahead: timedelta = timedelta(days=1)


class NotAdmittedError(DecodeError):
    """A commit that is well formed but not one that this server stores."""

    code = "wire.not_admitted"


def decode_commit(raw: Any, repository: Repository, limits: Limits, now_ms: int) -> Commit:
    """Decode a commit from a peer or client and check everything that needs no signature.

    Raises:
        DecodeError: It is not a commit.
        NotAdmittedError: It is one that would harm somebody.
    """
    if isinstance(raw, Mapping) and _deeper_than(raw.get("c"), limits.depth):
        raise NotAdmittedError("a commit's contents are nested too deeply")
    commit = Commit.from_json(raw, org=repository.org, registry=repository.registry)
    if _ID.fullmatch(commit.id) is None or _KEY.fullmatch(commit.key) is None:
        raise NotAdmittedError("a commit's id or key is not one that GoatDB makes")
    if not math.isfinite(commit.ts) or commit.ts <= 0:
        raise NotAdmittedError(f"commit {commit.id!r} has no time")
    if commit.ts > now_ms + limits.ahead.total_seconds() * 1000:
        # SECURITY: a commit from the far future would win every later conflict (test_upstream_traps.py).
        raise NotAdmittedError(f"commit {commit.id!r} is from the future")
    if len(commit.parents) > limits.parents or commit.id in commit.parents:
        raise NotAdmittedError(f"commit {commit.id!r} has impossible parents")
    ancestors = commit.ancestors_filter
    if ancestors is not None and (len(ancestors.bits) > limits.ancestor_bytes or len(ancestors.seeds) > limits.seeds):
        raise NotAdmittedError(f"commit {commit.id!r} has an impossible ancestors filter")
    if not 0 <= commit.ancestors_count < 2**53:
        raise NotAdmittedError(f"commit {commit.id!r} has an impossible number of ancestors")
    if commit.contents != raw["c"]:
        commit.check_lasting(repository.registry)
    _check_contents(commit, repository)
    return commit


def decode_session_request(body: bytes) -> PublicKey:
    """Read the body of ``POST /auth/session``.

    Raises:
        DecodeError: Its text is what GoatDB answers with.
    """
    try:
        request = parse_json(body)
    except DecodeError:
        raise DecodeError("InvalidPublicKey") from None
    if request is None:
        raise DecodeError("InvalidPublicKey")
    if not isinstance(request, dict) or "publicKey" not in request:
        raise DecodeError("MissingPublicKey")
    jwk = request["publicKey"]
    if jwk is not None and not isinstance(jwk, dict | list):
        raise DecodeError("MissingPublicKey")
    if (
        not isinstance(jwk, dict)
        or "d" in jwk
        or jwk.get("ext") is False
        or jwk.get("key_ops", ["verify"]) != ["verify"]
    ):
        raise DecodeError("InvalidPublicKey")
    try:
        key = PublicKey.from_jwk(jwk)
        key.check()
    except DecodeError:
        raise DecodeError("InvalidPublicKey") from None
    return key


def _check_contents(commit: Commit, repository: Repository) -> None:
    """Refuse contents on which real servers and clients die when they merge them."""
    if repository.path == SESSIONS_PATH:
        # SECURITY: a value that is no session stops GoatDB from ever starting again (tests/unit/node/test_engine.py).
        session_from_commit(commit)
    check_against(commit, repository)
    if commit.is_delta:
        return
    if commit.schema == "null":
        raise NotAdmittedError(f"commit {commit.id!r} holds the null item")
    schema = repository.registry.from_marker(commit.schema)
    record = commit.record
    if schema is None or record is None:
        return
    try:
        problem = schema.problem(record_data(record, repository.registry))
    except EncodeError as error:
        raise NotAdmittedError(f"commit {commit.id!r}: {error}") from None
    if problem is not None:
        raise NotAdmittedError(f"commit {commit.id!r}: {problem}")


def check_against(commit: Commit, repository: Repository) -> None:
    """Check what depends on the commits that are there; once more when it is about to be stored.

    Raises:
        NotAdmittedError: It does not go with them.
    """
    if commit.is_delta:
        # SECURITY: deltas on deltas send a GoatDB reader into endless loops; it never writes one itself.
        base = repository.get(commit.base or "")
        if commit.base == commit.id or repository.is_base(commit.id):
            raise NotAdmittedError(f"commit {commit.id!r} is a delta that a delta builds on")
        if base is not None and (base.is_delta or base.key != commit.key):
            raise NotAdmittedError(f"commit {commit.id!r} is a delta on a delta, or on another item")
        return
    known = repository.namespace_of(commit.key)
    if known is not None and commit.namespace != known:
        raise NotAdmittedError(f"commit {commit.id!r} changes the schema of {commit.key!r} from {known!r}")


def _deeper_than(value: Any, depth: int) -> bool:
    """Whether JSON is nested deeper than `depth`."""
    return any(index == depth for index, _ in enumerate(levels(value)))
