"""Checks the vectors of commit graphs: order, leaves, head and value as Goatherd's server reads them, and merges.

Only clients and GoatDB's servers merge leaves. The rules of docs/reference/goatdb-formats.md#commit-graph by which they
do are here and in `tests.vectors.diff`, like those of edits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from goatherd.errors import DecodeError
from goatherd.node.repository import Repository
from goatherd.wire.commit import Commit
from goatherd.wire.hashing import murmur3
from goatherd.wire.items import patch_data, record_data
from goatherd.wire.javascript_values import JSMap, unit_key, utf16_units
from goatherd.wire.json import stable_stringify, to_json
from goatherd.wire.schema import NULL_SCHEMA, Data, Registry, Schema
from tests.fakes.goatdb_rules import upgrade_data
from tests.fakes.memory_log import MemoryLog
from tests.vectors.diff import changed_fields, diff_data, wrap_changes
from tests.vectors.items import RICH_TEXT, encode_item, is_rich, is_same_item
from tests.vectors.notation import registry_of
from tests.vectors.sheet import Case, NotJudgedError, Sheet, equal, refuses

Document = dict[str, Any]

KEY, ME, LOCAL = "k", "ME", "LOCAL"
LEADER_MS = 5000
RENDEZVOUS_SEED = 7366173373169631

REMOVED_MAP = "of a map that one side removed, only clients and GoatDB's servers know what a merge leaves"
DAMAGED_BASE = "of a delta on a corrupted one, only clients and GoatDB's servers make what they read last"


def orders(document: Document, sheet: Sheet) -> None:
    registry = registry_of(document)

    def graph(c: Case) -> None:
        read = _Graph(c["commits"], registry, document.get("now_ms", 0))
        read.check_reading(c)
        read.check_merging(c)

    def rendezvous(c: Case) -> None:
        equal("leader", c["leader"], choose_leader(c["peers"], c["key"]))

    sheet.each("graphs", document.get("graphs"), graph)
    sheet.each("rendezvous", document.get("rendezvous"), rendezvous)


def choose_leader(peers: Iterable[str], key: str | None) -> str | None:
    """Return the peer with the smallest hash, of several the first; None without peers."""
    name = "null" if key is None else f'"{key}"'
    return min(dict.fromkeys(peers), key=lambda peer: murmur3(f"{peer}/{name}", RENDEZVOUS_SEED), default=None)


class _Graph:
    """The commits of one key, read by a repository whose session is `ME` and whose connection is `LOCAL`."""

    def __init__(self, raw: list[Any], registry: Registry, now_ms: int) -> None:
        log = MemoryLog(raw)
        self._repository = Repository(
            "/data/test", log, org="localhost", connection=LOCAL, own_session=lambda: ME, registry=registry
        )
        self._repository.load_log()
        self._registry = registry
        self._now_ms = now_ms
        self._linked = {parent for commit in self._repository for parent in commit.parents}

    def check_reading(self, c: Case) -> None:
        found = self._repository
        equal("descending", c["descending"], [commit.id for commit in found.commits_of(KEY)])
        equal("has_item", c["has_item"], {commit.id: found.is_readable(commit) for commit in found})
        equal("leaves", c["leaves"], [commit.id for commit in found.find_leaves(KEY)])
        head = found.find_head(KEY)
        equal("head", c["head"], head.id if head else None)
        bases = [found.get(each.base) for each in found if each.base is not None]
        if any(each is not None and found.is_readable(each) and found.build_record(each) is None for each in bases):
            raise NotJudgedError(DAMAGED_BASE)
        corrupted = {each.id: found.is_readable(each) and found.build_record(each) is None for each in found}
        equal("corrupted", c["corrupted"], corrupted)
        item = found.find_item(KEY)
        equal("value", (c["value"] or {}).get("d"), item.data if item else None)

    def check_merging(self, c: Case) -> None:
        for commit_id, expected in c["high_probability_leaf"].items():
            equal(f"high_probability_leaf of {commit_id}", expected, self.is_probable_leaf(self._get(commit_id)))
        if "merge_base" in c:
            wanted = c["merge_base"]
            included, base, schema, reached = self.find_merge_base([self._get(each) for each in wanted["input"]])
            equal("included", wanted["included"], [commit.id for commit in included])
            equal("base", wanted["base"], base.id if base else None)
            equal("schema of the merge", wanted["schema"], schema.marker)
            equal("reached_root", wanted["reached_root"], reached)
        if "merge_record" in c:
            wanted = c["merge_record"]
            record, base = self.merge([self._get(each) for each in wanted["input"]])
            equal("merged item", wanted["item"], record)
            equal("base of the merged item", wanted["base"], base.id if base else None)
        if "merge_if_needed" in c:
            self._check_merge(c["merge_if_needed"])

    def _check_merge(self, wanted: dict[str, Any]) -> None:
        if "error" in wanted:
            refuses("merge", self.merge_leaves)
            return
        made = self.merge_leaves()
        equal("created", wanted["created"], made is not None)
        if made is not None:
            equal("merge commit", {name: wanted.get(name) for name in made}, made)

    # --- the rules ----------------------------------------------------------------------------------------------------

    def _get(self, commit_id: str) -> Commit:
        commit = self._repository.get(commit_id)
        if commit is None:
            raise DecodeError(f"no commit {commit_id!r}")
        return commit

    def item_of(self, commit: Commit) -> tuple[Data, Schema, dict[str, Any]]:
        """Return the item of a readable commit: data, schema, record. For a corrupted commit, that of the newest intact
        one."""
        good = self._good(commit)
        record = None if good is None else self._repository.build_record(good)
        schema = None if record is None else self._registry.from_marker(record["s"])
        if record is None or schema is None:
            return {}, NULL_SCHEMA, {"s": "null"}
        return record_data(record, self._registry), schema, dict(record)

    def _good(self, commit: Commit) -> Commit | None:
        """Return the commit that holds a commit's item: itself, or the newest intact one if it is corrupted."""
        candidates = (commit, *self._repository.commits_of(KEY))
        return next((each for each in candidates if self._repository.build_record(each) is not None), None)

    def is_probable_leaf(self, commit: Commit) -> bool:
        if commit.id in self._linked:
            return False
        commits = self._repository.commits_of(KEY)
        agreement = math.log2(max(len(commits), commits[-1].ancestors_count))
        if len(commits) < agreement:
            return True
        filters = [each.ancestors_filter for each in commits[: int(agreement) + 1]]
        if any(held is None or commit.id not in held for held in filters):
            return True
        if int(agreement) >= len(commits):
            raise DecodeError("GoatDB reads past the end of the commits")
        return False

    def find_common_ancestor(self, a: Commit, b: Commit) -> tuple[Commit | None, bool]:
        """Return the lowest common ancestor of two commits, and whether a root was met on the way."""
        if not a.parents or not b.parents:
            return None, True
        if b.id in a.parents:
            return b, False
        if a.id in b.parents:
            return a, False
        sides = [dict.fromkeys(a.parents), dict.fromkeys(b.parents)]
        reached = False
        while True:
            known = [self._repository.get(each) for each in sides[0] if each in sides[1]]
            for base in _descending([each for each in known if each is not None]):
                if self._repository.is_readable(base):
                    return base, reached
            grown = False
            for side in sides:
                for commit_id in list(side):
                    parent = self._repository.get(commit_id)
                    if parent is None:
                        continue
                    reached = reached or not parent.parents
                    grown = grown or any(each not in side for each in parent.parents)
                    side.update(dict.fromkeys(parent.parents))
            if not grown:
                return None, reached

    def find_merge_base(self, commits: Sequence[Commit]) -> tuple[list[Commit], Commit | None, Schema, bool]:
        base: Commit | None = None
        schema, reached = NULL_SCHEMA, False
        included: list[Commit] = []
        for commit in commits:
            if not self._repository.is_readable(commit):
                continue
            own = self.item_of(commit)[1]
            if base is None:
                base, schema = commit, own
                included.append(commit)
                continue
            ancestor, is_root = self.find_common_ancestor(base, commit)
            reached = reached or is_root
            if ancestor is not None:
                base = ancestor
                included.append(commit)
                schema = own if own.version > schema.version else schema
        return included, base, schema, reached

    def merge(self, commits: Sequence[Commit]) -> tuple[dict[str, Any], Commit | None]:
        """Return the merged record of some commits, and the base of the merge."""
        latest: dict[str, Commit] = {}
        for commit in commits:
            before = latest.get(commit.connection)
            if before is None or before.ts < commit.ts:
                latest[commit.connection] = commit
        readable = _descending([each for each in latest.values() if self._repository.is_readable(each)])[::-1]
        roots = [each for each in readable if not each.parents]
        others = [each for each in readable if each.parents]
        base: Commit | None = None
        if roots:
            edit = roots[0].edit
            if edit is not None and edit.get("s") is None:
                raise DecodeError("GoatDB fails to read the schema of a delta without one")
            schema = self.item_of(roots[0])[1]
        elif len(others) == 1:
            schema = self.item_of(others[0])[1]
        else:
            others, base, schema, _ = self.find_merge_base(others)
        start, own, _ = ({}, NULL_SCHEMA, {}) if base is None else self.item_of(base)
        start, own = self._upgraded(start, own, schema)
        changes: dict[str, list[Any]] = {}
        removed: set[str] = set()
        sides: list[tuple[Data, Data, Schema]] = [({}, *self.item_of(each)[:2]) for each in roots]
        sides += [(start, *self._upgraded(*self.item_of(each)[:2], schema)) for each in others]
        for old, new, its_schema in sides:
            if is_rich(its_schema, old, new):
                raise NotJudgedError(RICH_TEXT)
            for name, parts in wrap_changes(diff_data(old, new, its_schema)).items():
                if name not in new and isinstance(old.get(name), JSMap):
                    removed.add(name)
                changes.setdefault(name, []).extend(parts)
        if any(len(changes[name]) > 1 for name in removed):
            raise NotJudgedError(REMOVED_MAP)
        return encode_item(patch_data(start, changes, own), own), base

    def _upgraded(self, data: Data, schema: Schema, target: Schema) -> tuple[Data, Schema]:
        if target is NULL_SCHEMA or target.version == schema.version:
            return data, schema
        return upgrade_data(data, schema, target, self._registry)

    def merge_leaves(self) -> dict[str, Any] | None:
        """Return the members of the merge commit that the session `ME` makes now; None if it makes none."""
        leaves = self._repository.find_leaves(KEY)
        recent = [each.session for each in leaves if abs(self._now_ms - each.ts) <= LEADER_MS]
        if len(leaves) < 2 or (choose_leader(recent, KEY) or ME) != ME:
            return None
        unique: list[Commit] = []
        for leaf in leaves:
            if self.is_probable_leaf(leaf) and not any(self._is_equal(leaf, other) for other in unique):
                unique.append(leaf)
        unique.sort(key=lambda commit: commit.ts)
        if len(unique) < 2:
            return None
        ancestors = sum(commit.id in self._linked for commit in self._repository.commits_of(KEY))
        if not ancestors:
            raise DecodeError("GoatDB fails to make a merge commit without ancestors")
        record, base = self.merge(unique)
        if record["s"] == "null":
            return None
        return {
            "parents": [commit.id for commit in unique],
            "merge_base": base.id if base else None,
            "merge_leader": ME,
            "ancestors_count": ancestors,
            "item": self._compressed(record),
        }

    def _compressed(self, record: dict[str, Any]) -> dict[str, Any]:
        """Return a merged item as it is read again from its signed commit, which holds a delta if that is shorter."""
        full = [commit for commit in self._repository.commits_of(KEY) if not commit.is_delta]
        if not full:
            stable_stringify(record)
            return record
        old, old_schema, old_record = self.item_of(max(full, key=lambda commit: commit.ts))
        schema = self._registry.from_marker(record["s"])
        assert schema is not None
        if is_rich(schema, old):
            raise NotJudgedError(RICH_TEXT)
        changes = diff_data(old, record_data(record, self._registry), schema)
        edit = {"sc": old_record["cs"], "dc": record["cs"], "c": wrap_changes(changes, alone=True)}
        if len(utf16_units(to_json(edit))) > 0.85 * len(utf16_units(to_json(record))):
            stable_stringify(record)
            return record
        stable_stringify(edit)
        read = encode_item(patch_data(old, wrap_changes(changes), old_schema), old_schema)
        return read if read["cs"] == record["cs"] else self.item_of(self._repository.commits_of(KEY)[0])[2]

    def _is_equal(self, a: Commit, b: Commit) -> bool:
        (old, _, first), (new, schema, second) = self.item_of(a), self.item_of(b)
        if self._good(a) is self._good(b):
            return True
        if is_rich(schema, old, new):
            raise NotJudgedError(RICH_TEXT)
        return is_same_item(first, second, changed_fields(old, new, schema))


def _descending(commits: Iterable[Commit]) -> list[Commit]:
    return sorted(commits, key=lambda commit: (commit.ts, unit_key(commit.id)), reverse=True)
