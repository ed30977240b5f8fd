"""Hold the commits of one repository: the commit graph, its leaves and heads, and the items. All I/O is in its `Log`.

GoatDB's rules are in docs/reference/goatdb-formats.md#commit-graph.

Commits are held in compact form (`Commit.compact`), since few of them are ever read
(docs/adr/0022-compact-commits.md).

The repository verifies nothing: `goatherd.node.engine` verifies and authorizes commits first, and the log holds only
accepted ones. The repository never changes or drops a commit. Of two commits with the same id it keeps the first.
(GoatDB also keeps the first, but compares ids across all repositories, and before it verifies commits.)

Reading an item returns its head: of its leaves (commits without children), the one that GoatDB's order prefers. Leaves
are not merged here, except concurrent creations (`goatherd.node.concurrent_creation`); GoatDB's servers and clients
merge the others, by ordinary commits.

COMPAT: a delta counts as *corrupted* if it does not fit its base, or if it changes rich text, which Goatherd cannot
read yet. Reading the item then returns its newest commit that is not corrupted, and `Item.fallback` is true. Chains of
deltas are followed by loops, not by recursion; a chain that forms a cycle is unreadable.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypedDict, Unpack

from goatherd.errors import DecodeError, EncodeError, ItemExistsError, ItemNotFoundError
from goatherd.wire.bloom import DEFAULT_FPR, BloomFilter, seed_count
from goatherd.wire.commit import Commit, apply_edit, new_commit
from goatherd.wire.items import decode_data, encode_data, normalize_data
from goatherd.wire.javascript_values import unit_key
from goatherd.wire.paths import check_item_path, check_repository_path
from goatherd.wire.schema import BUILTIN, Registry

MAX_CHAIN = 256
"""Maximum length of a chain of deltas that is read; GoatDB itself writes at most one delta on a full commit."""

MAX_WEIGHT = 64 * 1024

Seeds = Callable[[int], Sequence[int]]
"""Returns this many new Bloom filter seeds (`goatherd.ids.new_seeds`)."""


class Log(Protocol):
    """The interface of a repository's storage: an append-only list of JSON objects. See `goatherd.node.log_storage`."""

    @property
    def unflushed(self) -> int:
        """Number of appended records that are not written durably yet."""
        ...

    def read_lines(self) -> Iterator[Mapping[str, Any] | bytes]:
        """Yield every record of the log in order, as an object or as JSON in bytes, which may be damaged.

        `append_record` accepts both forms.

        Raises:
            StorageError: The log cannot be read.
        """
        ...

    def append_record(self, record: Mapping[str, Any] | bytes) -> None:
        """Append a record, given as an object or as its compact JSON. The next `flush` writes it."""
        ...

    def flush(self) -> None:
        """Write all records that were appended so far durably.

        Raises:
            StorageError: The records could not be written; they are kept for the next flush.
        """
        ...


class Authorship(TypedDict):
    """What a new commit needs besides its contents.

    Attributes:
        commit_id: A new id for the commit.
        session_id: Id of the session that will sign the commit.
        ts: The commit's timestamp in milliseconds.
        seeds: Returns random seeds for the commit's filter over its ancestors.
    """

    commit_id: str
    session_id: str
    ts: int
    seeds: Seeds


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """An item of a repository: the current value of one key.

    Attributes:
        key: The item's key.
        schema: The schema marker, such as ``note/1``.
        data: The encoded fields (dates in seconds). Must not be changed.
        commit: The commit that contains the value.
        head: The commit that should determine the value. It differs from `commit` only if `fallback` is true.
    """

    key: str
    schema: str
    data: Mapping[str, Any]
    commit: Commit
    head: Commit

    @property
    def deleted(self) -> bool:
        return bool(self.data.get("isDeleted"))

    @property
    def fallback(self) -> bool:
        """Whether this is an older value of the item, because its head commit is corrupted or unreadable."""
        return self.commit.id != self.head.id


class Repository:
    """The commits of one GoatDB repository, which form a graph, and the items whose history they are.

    Args:
        path: The repository's path, ``/type/id``.
        log: The log in which the commits are stored.
        org: The organization's id.
        connection: This process's connection id; if an item has several leaves, the one that this process wrote is
            preferred as the head.
        own_session: Returns the id of the session with which this server signs now.
        registry: The schemas that this server knows.

    Attributes:
        ids: The ids of all commits in order of arrival. Ids are only added, at the end.
        version: A number that increases with every added commit. A cache of the repository's contents is valid for one
            version only.
        undecodable: Number of the log's records that are not commits; they stay in the log.
        unverified: Ids of commits that were read from the log and not verified since. A damaged disk may have changed
            them, so clients and peers get them only after `goatherd.node.engine` has verified them.
        weight: Approximate size of the commits in bytes, with at most `MAX_WEIGHT` for each.
    """

    def __init__(
        self,
        path: str,
        log: Log,
        *,
        org: str,
        connection: str,
        own_session: Callable[[], str],
        registry: Registry = BUILTIN,
    ) -> None:
        kind, name = check_repository_path(path)
        self.path = f"/{kind}/{name}"
        self.log = log
        self.org = org
        self.connection = connection
        self.registry = registry
        self.ids: list[str] = []
        self.version = 0
        self.undecodable = 0
        self.unverified: set[str] = set()
        self.weight = 0
        self._own_session = own_session
        self._shown: list[str] | None = None  # what may be sent, in this order; None while that is `ids`
        self._written: list[str] | None = None  # instead of it, while the log cannot be written
        self._delayed: list[str] = []
        self._held_keys: Counter[str] = Counter()
        self._withheld: set[str] = set()
        self._closed = 0
        self._commits: dict[str, Commit] = {}
        # Most keys have one commit, and most others one leaf: a container for each would take more memory than these.
        self._by_key: dict[str, Commit | list[Commit]] = {}
        # The leaves of the items with several commits, so that a read need not scan the item's whole history.
        self._tips: dict[str, Commit | dict[str, Commit]] = {}
        self._linked: set[str] = set()
        self._namespaces: dict[str, str | None] = {}  # of keys whose first commit is a delta
        self._with_child: set[str] = set()
        self._bases: set[str] = set()

    def load_log(self, wrong: Mapping[str, Sequence[Commit]] | None = None) -> None:
        """Read the repository's commits from its log.

        Signatures are not verified again: commits were verified before they were stored.

        Args:
            wrong: Commits of the log that were found to be damaged, by id; they are left out.

        Raises:
            StorageError: The log cannot be read.
        """
        self._index_commits(self._read_commits(wrong or {}))
        self.unverified = set(self.ids)

    def _read_commits(self, wrong: Mapping[str, Sequence[Commit]]) -> Iterator[Commit]:
        """Yield the commits of the log, except those in `wrong`."""
        for record in self.log.read_lines():
            try:
                commit = self._decode_record(record)
            except DecodeError:
                self.undecodable += 1
                continue
            if commit not in wrong.get(commit.id, ()):
                yield commit

    def _decode_record(self, record: Mapping[str, Any] | bytes) -> Commit:
        if isinstance(record, bytes):
            return Commit.from_stored(record, org=self.org, registry=self.registry)
        commit = Commit.from_json(record, org=self.org, registry=self.registry)
        commit.compact()
        return commit

    # --- adding ------------------------------------------------------------------------------------------------------

    def add_commit(self, commit: Commit) -> bool:
        """Add a verified commit to the repository and append it to the log.

        The commit is durable after the log's next flush.

        Returns:
            Whether the commit was added. False if a commit with this id exists already, or if the commit would close a
            cycle of deltas (each based on the next).
        """
        if commit.id in self._commits or self.closes_a_cycle(commit):
            return False
        commit.compact()
        self._index_commits((commit,))
        self.log.append_record(commit.encoded)
        return True

    def _index_commits(self, commits: Iterable[Commit]) -> None:
        """Add commits to what is kept in memory, except those with a known id and those that would close a cycle.

        One call for many commits is fast: opening a repository spends half of its time here.
        """
        held, by_key, tips, with_child = self._commits, self._by_key, self._tips, self._with_child
        for commit in commits:
            commit_id, key, base_id, parent_ids = commit.id, commit.key, commit.base, commit.parents
            if commit_id in held or (base_id is not None and self.closes_a_cycle(commit)):
                continue
            known = by_key.get(key)
            if known is None:
                first = by_key[key] = commit
            elif isinstance(known, list):
                first = known[0]
                known.append(commit)
            else:
                first = known
                by_key[key] = [first, commit]
                if first.id not in with_child:
                    tips[key] = first
            parents = [held.get(parent_id) for parent_id in parent_ids] if parent_ids else ()
            if first is not commit or parent_ids or base_id is not None:
                commit.share_strings(first.key, parents, None if base_id is None else held.get(base_id))
                if base_id is not None:
                    self._bases.add(base_id)
                if first.is_delta and not commit.is_delta:
                    self._namespaces.setdefault(key, commit.namespace)
            held[commit_id] = commit
            if key in self._held_keys or key in self._withheld:
                if self._shown is None:
                    self._shown = list(self.ids)
                self._delayed.append(commit_id)
            elif self._shown is not None:
                self._shown.append(commit_id)
            self.ids.append(commit_id)
            is_leaf = commit_id not in with_child
            if not is_leaf:
                self._linked.add(key)
            for parent_id, parent in zip(parent_ids, parents, strict=True):
                if parent is not None:
                    self._linked.add(parent.key)
                    if parent_id not in with_child:
                        self._remove_tip(parent)
                with_child.add(parent_id)
            if is_leaf and known is not None:
                self._add_tip(commit)
            self.weight += min(len(commit.encoded), MAX_WEIGHT)
            self.version += 1

    def _add_tip(self, commit: Commit) -> None:
        tips = self._tips.get(commit.key)
        if isinstance(tips, dict):
            tips[commit.id] = commit
        else:
            self._tips[commit.key] = commit if tips is None else {tips.id: tips, commit.id: commit}

    def _remove_tip(self, commit: Commit) -> None:
        tips = self._tips.get(commit.key)
        if isinstance(tips, dict):
            del tips[commit.id]
        elif tips is not None:
            del self._tips[commit.key]

    def _tips_of(self, key: str) -> Iterable[Commit]:
        only = self._by_key.get(key)
        if isinstance(only, Commit):
            return () if only.id in self._with_child else (only,)
        tips = self._tips.get(key, {})
        return tips.values() if isinstance(tips, dict) else (tips,)

    def _commits_by_arrival(self, key: str) -> Sequence[Commit]:
        commits = self._by_key.get(key, ())
        return (commits,) if isinstance(commits, Commit) else commits

    def closes_a_cycle(self, commit: Commit) -> bool:
        """Return whether adding this delta would close a cycle: its chain of bases leads back to it.

        A chain that is longer than `MAX_CHAIN` counts as a cycle.
        """
        base = commit.base
        for _ in range(MAX_CHAIN):
            if base is None:
                return False
            if base == commit.id:
                return True
            known = self._commits.get(base)
            if known is None:
                return False
            base = known.base
        return True

    def withhold_damaged(self, wrong: Mapping[str, Sequence[Commit]], good: Mapping[str, Commit]) -> bool:
        """Remove commits whose stored form is damaged from the open repository; the log stays unchanged.

        Args:
            wrong: The damaged commits, by id.
            good: Undamaged commits from the same log that replace damaged ones with the same id.

        Returns:
            Whether the open repository has changed.
        """
        out = {commit_id for commit_id in wrong if self._commits.get(commit_id) in wrong[commit_id]}
        found = [commit for commit_id, commit in good.items() if commit_id not in self._commits]
        if not out and not found:
            return False
        left = Repository(
            self.path,
            self.log,
            org=self.org,
            connection=self.connection,
            own_session=self._own_session,
            registry=self.registry,
        )
        for commit in [*self, *found]:
            kept = good.get(commit.id) if commit.id in out else commit
            if kept is not None and not left.closes_a_cycle(kept):
                kept.compact()
                left._index_commits((kept,))
        left.version += self.version + 1
        left.undecodable = self.undecodable
        left.unverified = (self.unverified - out) & left._commits.keys()
        left._held_keys, left._withheld, left._closed = self._held_keys, self._withheld, self._closed
        left._delayed = [commit_id for commit_id in self._delayed if commit_id in left._commits]
        if self._shown is not None:
            left._shown = [commit_id for commit_id in self._shown if commit_id in left._commits]
        if self._written is not None:
            left._written = [commit_id for commit_id in self._written if commit_id in left._commits]
        self.__dict__.update(left.__dict__)
        return True

    def hold_back_unwritten(self) -> None:
        """Hide commits that are not in the log file yet, and all later ones, from clients and peers.

        `show_written` ends this.
        """
        unwritten = set(self.ids[max(0, len(self.ids) - self.log.unflushed) :])
        self._written = [commit_id for commit_id in self._showable_ids() if commit_id not in unwritten]
        self.version += 1

    def show_written(self) -> None:
        """Show the commits again that `hold_back_unwritten` has hidden from clients and peers."""
        if self._written is not None:
            self._written = None
            self.version += 1

    # --- looking -----------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._commits)

    def __contains__(self, commit_id: str) -> bool:
        return commit_id in self._commits

    def __iter__(self) -> Iterator[Commit]:
        """Iterate over all commits of the repository in the order of their arrival."""
        return iter(self._commits.values())

    def get(self, commit_id: str) -> Commit | None:
        """Return the commit with this id; None if the repository has no such commit."""
        return self._commits.get(commit_id)

    @property
    def shown_ids(self) -> Sequence[str]:
        """The ids of the commits that clients and peers may receive: all commits that are not hidden at present."""
        if self._closed:
            return ()
        return self._showable_ids() if self._written is None else self._written

    def _showable_ids(self) -> list[str]:
        return self.ids if self._shown is None else self._shown

    def shown_since(self, count: int) -> list[Commit]:
        """Return the commits that clients and peers may receive, without the first `count`."""
        return [self._commits[commit_id] for commit_id in self.shown_ids[count:]]

    @contextmanager
    def hold_back_everything(self) -> Iterator[None]:
        """Hide all commits of the repository from clients and peers while the block runs."""
        self._closed += 1
        try:
            yield
        finally:
            self._closed -= 1
            self.version += 1

    @contextmanager
    def hold_back(self, keys: Iterable[str]) -> Iterator[None]:
        """Hide commits that are added to these items from clients and peers while the block runs.

        Inside the block, the caller merges concurrent creations of the items; at its end the commits are shown, but an
        item with creations that another request still has to merge is shown at the end of that request's block. Commits
        of other items are shown at once, so that the answer to a push shows the client that they were stored.
        """
        held = set(keys)
        self._held_keys.update(held)
        try:
            yield
        finally:
            self._held_keys.subtract(held)
            for key in held:
                if self._held_keys[key] <= 0:
                    del self._held_keys[key]
            unmerged = {key for key in held if key in self._held_keys and self.has_unlinked_leaves(key)}
            self._show_delayed(held - unmerged - self._withheld)

    def withhold_item(self, key: str, *, is_shown: bool) -> None:
        """Hide commits of an item from clients and peers until `show_item`.

        Args:
            key: The item's key.
            is_shown: Whether clients and peers may have received commits of the item. If True, these stay visible; only
                commits that `hold_back` hides now, and later ones, stay hidden. If False, all commits of the item are
                hidden.
        """
        self._withheld.add(key)
        hidden = set() if is_shown else {commit.id for commit in self._commits_by_arrival(key)} - set(self._delayed)
        if hidden:
            self._delayed += [commit_id for commit_id in self._showable_ids() if commit_id in hidden]
            self._shown = [commit_id for commit_id in self._showable_ids() if commit_id not in hidden]
            self.version += 1

    def show_item(self, key: str) -> None:
        """Show the commits of an item that `withhold_item` has hidden from clients and peers."""
        self._withheld.discard(key)
        if key not in self._held_keys:
            self._show_delayed({key})

    def _show_delayed(self, keys: Set[str]) -> None:
        shown = [commit_id for commit_id in self._delayed if self._commits[commit_id].key in keys]
        if shown and self._shown is not None:
            out = set(shown)
            self._delayed = [commit_id for commit_id in self._delayed if commit_id not in out]
            self._shown += shown
            self.version += 1

    def item_keys(self) -> list[str]:
        """Return the keys of all items, in the order of their first commit."""
        return list(self._by_key)

    def branched_keys(self) -> list[str]:
        """Return the keys of the items that have several commits without children."""
        return [key for key, tips in self._tips.items() if isinstance(tips, dict) and len(tips) > 1]

    def commits_of(self, key: str) -> list[Commit]:
        """Return all commits of an item in descending order: later timestamp first, then larger id first."""
        return sorted(self._commits_by_arrival(key), key=_commit_order, reverse=True)

    def count_of(self, key: str) -> int:
        """Return how many commits the item with this key has."""
        return len(self._commits_by_arrival(key))

    def namespace_of(self, key: str) -> str | None:
        """Return the schema namespace of an item: that of its first full (non-delta) commit; None without one."""
        first = next(iter(self._commits_by_arrival(key)), None)
        return self._namespaces.get(key) if first is None or first.is_delta else first.namespace

    def is_linked(self, key: str) -> bool:
        """Return whether any commit of the repository has a commit of this item as a parent."""
        return key in self._linked

    def has_unlinked_leaves(self, key: str) -> bool:
        """Return whether an item has several commits without children, and none of its commits is a parent."""
        return not self.is_linked(key) and isinstance(self._tips.get(key), dict)

    def is_base(self, commit_id: str) -> bool:
        """Return whether any delta in the repository builds on the commit with this id."""
        return commit_id in self._bases

    def is_readable(self, commit: Commit) -> bool:
        """Return whether a commit's contents can be read: it is a full commit, or its chain of bases ends in one."""
        return self._delta_chain(commit) is not None

    def find_leaves(self, key: str) -> list[Commit]:
        """Return the leaves of an item in descending order.

        Leaves are readable commits that are not a parent of another commit.
        """
        return sorted(filter(self.is_readable, self._tips_of(key)), key=_commit_order, reverse=True)

    def find_head(self, key: str) -> Commit | None:
        """Return the commit that determines the value of an item; None if the item has no readable commit."""
        leaves = self.find_leaves(key)
        if len(leaves) == 1:
            return leaves[0]
        candidates = leaves or [commit for commit in self.commits_of(key) if self.is_readable(commit)]
        if not candidates:
            return None
        own = self._own_session()
        return (
            next((commit for commit in candidates if commit.connection == self.connection), None)
            or next((commit for commit in candidates if commit.session == own), None)
            or candidates[0]
        )

    def find_item(self, key: str) -> Item | None:
        """Return the item with this key, also if it is deleted; None if none of its commits is readable."""
        head = self.find_head(key)
        if head is None:
            return None
        return self.read_item(key, head, ()) or self.read_item(key, head, self.commits_of(key))

    def read_item(self, key: str, head: Commit, commits: Sequence[Commit]) -> Item | None:
        """Return the item with this key, given its head commit and its other commits. May be called in any thread.

        If the head cannot be read, the item has the value of the first readable commit in `commits`; None if there is
        none.
        """
        record = self.build_record(head)
        if record is not None:
            return Item(key=key, schema=str(record["s"]), data=record["d"], commit=head, head=head)
        for commit in commits:
            record = self.build_record(commit)
            if record is not None:
                return Item(key=key, schema=str(record["s"]), data=record["d"], commit=commit, head=head)
        return None

    def build_record(self, commit: Commit) -> Mapping[str, Any] | None:
        """Return the item data that a commit contains; None if the commit is corrupted or unreadable."""
        chain = self._delta_chain(commit)
        if chain is None:
            return None
        record: Mapping[str, Any] | None = chain.pop().record
        try:
            while chain and record is not None:
                record = apply_edit(record, chain.pop().edit or {}, self.registry)
        except DecodeError:
            return None
        return record

    def _delta_chain(self, commit: Commit) -> list[Commit] | None:
        """Return a delta commit, its base, the base of that base, and so on to a full commit.

        The result is None if a base is missing, or the chain is longer than `MAX_CHAIN` or a cycle.
        """
        chain = [commit]
        while chain[-1].base is not None:
            base = self._commits.get(chain[-1].base)
            if base is None or len(chain) > MAX_CHAIN:
                return None
            chain.append(base)
        return chain

    # --- writing -----------------------------------------------------------------------------------------------------

    def build_create(self, key: str, schema: str, data: Mapping[str, Any], **author: Unpack[Authorship]) -> Commit:
        """Build the unsigned commit that creates an item, or restores a deleted one.

        Args:
            key: The item's key.
            schema: The schema marker, such as ``note/1``. Data are validated only if the registry knows the schema.
            data: The item's encoded fields.
            author: Who signs the commit, and when.

        Raises:
            ItemExistsError: An item that is not deleted exists already.
            PathError, EncodeError, DecodeError: The key or the data are not allowed.
        """
        self.check_absent(key)
        return self._build_commit(key, schema, data, **author)

    def build_set(self, key: str, data: Mapping[str, Any], **author: Unpack[Authorship]) -> Commit:
        """Build the unsigned commit that replaces all fields of an item. The arguments are those of `build_create`.

        Raises:
            ItemNotFoundError: The item does not exist, or is deleted.
            PathError, EncodeError, DecodeError: The data are not allowed.
        """
        item = self._require_item(key)
        return self._build_commit(key, item.schema, data, **author)

    def build_delete(self, key: str, **author: Unpack[Authorship]) -> Commit:
        """Build the unsigned commit that deletes an item: it repeats the item's fields and sets ``isDeleted``.

        The arguments are those of `build_create`.

        Raises:
            ItemNotFoundError: The item does not exist, or is deleted.
        """
        item = self._require_item(key)
        return self._build_commit(key, item.schema, {**item.data, "isDeleted": True}, **author)

    def check_absent(self, key: str) -> None:
        """Check that an item does not exist, or is deleted.

        Raises:
            ItemExistsError: The item exists.
        """
        item = self.find_item(key)
        if item is not None and not item.deleted:
            raise ItemExistsError(f"item {self.path}/{key} already exists")

    def _require_item(self, key: str) -> Item:
        item = self.find_item(key)
        if item is None or item.deleted:
            raise ItemNotFoundError(f"item {self.path}/{key} does not exist")
        return item

    def _build_commit(self, key: str, schema: str, data: Mapping[str, Any], **author: Unpack[Authorship]) -> Commit:
        check_item_path(self.path, key)
        head = self.find_head(key)
        ancestors_filter, count = self.build_ancestors_filter(key, author["seeds"])
        return new_commit(
            commit_id=author["commit_id"],
            key=key,
            session_id=author["session_id"],
            ts=author["ts"],
            org=self.org,
            parents=() if head is None else (head.id,),
            data=self._check_data(schema, data),
            schema_marker=schema,
            connection=self.connection,
            ancestors_filter=ancestors_filter,
            ancestors_count=count,
            registry=self.registry,
        )

    def build_ancestors_filter(self, key: str, seeds: Seeds) -> tuple[BloomFilter, int]:
        """Return the Bloom filter over the ancestors of an item's next commit, and the number of ancestors in it."""
        ancestors = [commit.id for commit in self._commits_by_arrival(key) if commit.id in self._with_child]
        size = max(1, len(ancestors))
        ancestors_filter = BloomFilter.for_size(size, DEFAULT_FPR, seeds(seed_count(size, DEFAULT_FPR)))
        for commit_id in ancestors:
            ancestors_filter.add(commit_id)
        return ancestors_filter, len(ancestors)

    def _check_data(self, marker: str, data: Mapping[str, Any]) -> dict[str, Any]:
        schema = self.registry.from_marker(marker)
        if schema is None or schema.ns is None:
            return dict(data)
        values = decode_data(dict(data), schema)
        unknown = data.keys() - schema.by_name.keys()
        problem = f"Unknown field {min(unknown)}" if unknown else schema.problem(normalize_data(values, schema))
        if problem is not None:
            raise EncodeError(f"invalid data for {self.path}: {problem}")
        return encode_data(normalize_data(values, schema), schema)


def _commit_order(commit: Commit) -> tuple[float, bytes]:
    return commit.ts, unit_key(commit.id)
