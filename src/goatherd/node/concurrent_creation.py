"""Merge the first commits of an item that several clients have created at the same time. Pure.

Two offline clients that create an item with the same key make two commits without parents. An unmodified GoatDB server
or client crashes when it merges these two, but not if it also receives a commit that has both as parents. So a Goatherd
server creates this merge commit before it sends the two commits.

The merged value follows GoatDB's rule: it has the fields of all creations, the later value wins, and sets and maps are
united. The merge commit, including its timestamp, its id and the seeds of its ancestors filter, is computed from its
parents and the id of the session that signs it. So all servers that sign with the same root create the same commit.

Concurrent commits that change an existing item are left to GoatDB's servers and clients: they can merge these without a
crash, since the commits have a common ancestor. Until they are merged, a read returns the item's head, which is one of
them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from goatherd.errors import DecodeError, EncodeError
from goatherd.identity.session_commits import SESSIONS_SCHEMA
from goatherd.node.repository import Repository
from goatherd.wire.bloom import DEFAULT_FPR, BloomFilter, seed_count
from goatherd.wire.commit import Commit, new_commit
from goatherd.wire.derived_ids import id_of_digest
from goatherd.wire.json import to_json

PORTION = 500
"""Maximum number of creations in one merge; peers reject a commit of more than 1 000 parents."""


def unmerged_creations(repository: Repository, key: str) -> list[Commit]:
    """Return the concurrent creations of an item, oldest first, if merging them would crash an unmodified GoatDB.

    The list is empty if there is no such danger. GoatDB crashes if an item has several leaves (commits without
    children), and no commit of the item is known to be the parent of another commit.
    """
    if not repository.has_unlinked_leaves(key):
        return []
    leaves = repository.find_leaves(key)
    if len(leaves) < 2:
        return []
    # COMPAT: before a merge, GoatDB drops leaves with equal contents, such as two introductions of one root. So these
    # need no merge commit, which would also keep clients from evaluating them (ADR 17). Leaves with other schemas may
    # be malformed, and are always merged.
    if all(leaf.schema == SESSIONS_SCHEMA for leaf in leaves) and len({to_json(leaf.data) for leaf in leaves}) == 1:
        return []
    return leaves[::-1]


def portions_of(creations: Sequence[Commit]) -> Iterator[Sequence[Commit]]:
    """Split the concurrent creations of an item, oldest first, into portions that one merge commit each can unite.

    The number of parents of a commit is limited. The parents of a merge commit are the creations of one portion and,
    from the second portion on, the previous merge commit.
    """
    for start in range(0, len(creations), PORTION):
        yield creations[start : start + PORTION]


def merge_creations(
    creations: Sequence[Commit], repository: Repository, session_id: str, merged: Sequence[Commit] = ()
) -> Commit | None:
    """Build the unsigned commit that merges several concurrent creations of one item.

    The commit has all these creations as parents. The result is None if their contents cannot be merged.

    Args:
        creations: Creations to merge, oldest first, as `unmerged_creations` returns them; the first may be the merge of
            earlier creations. At most as many as a commit may have parents.
        repository: The repository that contains the creations.
        session_id: Id of the session that will sign the merge commit; also recorded in the commit as its merge leader.
        merged: Those commits among `creations` that are merge commits and are not in the repository yet.
    """
    whole = {merge.id: merge.record for merge in merged}
    read = [whole[creation.id] if creation.id in whole else repository.build_record(creation) for creation in creations]
    records = [record for record in read if record is not None]
    if not records:
        return None
    marker = str(records[0]["s"])
    fields: dict[str, _FieldUnion] = {}
    for record in records:
        if record["s"] == marker:
            for name, value in record["d"].items():
                if name not in fields or not fields[name].merge_value(value):
                    fields[name] = _FieldUnion(value)
    names = "\n".join([session_id, *[commit.id for commit in creations]])
    digest = hashlib.sha512(names.encode(errors="surrogatepass")).digest()
    commit_id = id_of_digest(digest[:24])
    count = seed_count(1, DEFAULT_FPR)
    seeds = tuple([int.from_bytes(digest[24 + 6 * i : 30 + 6 * i], "big") for i in range(count)])
    try:
        return new_commit(
            commit_id=commit_id,
            key=creations[0].key,
            session_id=session_id,
            ts=int(creations[-1].ts) + 1,
            org=repository.org,
            parents=[commit.id for commit in creations],
            data={name: union.merged_value() for name, union in fields.items()},
            schema_marker=marker,
            connection=commit_id,
            ancestors_filter=BloomFilter.for_size(1, DEFAULT_FPR, seeds),
            merge_leader=session_id,
            registry=repository.registry,
        )
    except (DecodeError, EncodeError):
        return None


class _FieldUnion:
    """Merge the values that concurrent creations give to one field.

    Sets and maps are united; of other values the latest is used.
    """

    __slots__ = ("_members", "_value")

    def __init__(self, value: Any) -> None:
        self._value = value
        self._members = _mergeable_members(value)

    def merge_value(self, value: Any) -> bool:
        """Unite the value so far with a later one, and return True, if both are sets or both maps; else return False.

        If the result is False, the object is unchanged, and the later value must replace it.
        """
        members = _mergeable_members(value)
        if self._members is None or members is None or ("__t" in self._value) != ("__t" in value):
            return False
        self._members |= members
        return True

    def merged_value(self) -> Any:
        if self._members is None:
            return self._value
        return {"__t": "S", "__v": list(self._members.values())} if "__t" in self._value else self._members


def _mergeable_members(value: Any) -> dict[str, Any] | None:
    """Return the members of an encoded map or set as a dict, or None if the value is neither.

    The dict's keys are the names of the map's entries, or the JSON of the set's elements. Rich text counts as neither.
    """
    if not isinstance(value, Mapping) or _is_rich_text(value):
        return None
    # SECURITY: items of an unknown schema are stored as they arrived, so a value may have a type marker `__t` without
    # its `__v`. An exception here would prevent the repository from being opened at every start
    # (tests/unit/node/test_repository.py).
    elements = value.get("__v")
    if value.get("__t") == "S" and isinstance(elements, list):
        return {to_json(element): element for element in elements}
    return None if "__t" in value else dict(value)


def _is_rich_text(value: Mapping[str, Any]) -> bool:
    root = value.get("root")
    return isinstance(root, Mapping) and isinstance(root.get("children"), list)
