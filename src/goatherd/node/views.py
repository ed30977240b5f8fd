"""Build the answer to a sync message from the commits that the requesting session may read. Pure.

The message is described in docs/reference/goatdb-protocol.md#sync-messages.

A view is the set of commits that the sessions of one owner may read. It is built once for each owner and each version
of a repository. A view also records what the clients of each session hold (`goatherd.node.poll_memory`), so that most
polls take little time. `Views.view_for`, `Views.recall_looks` and `Views.drop_views` run on the event loop's thread.
The other methods change only the view that they are given, by replacing immutable values, and can run in other threads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from goatherd.admission.access import Access, Rulebook, apply_rule
from goatherd.admission.requests import RequestLimits
from goatherd.identity.introductions_for_clients import RootIntroductions
from goatherd.identity.session import Session
from goatherd.identity.session_commits import SESSIONS_NAMESPACE
from goatherd.node.poll_memory import SLICE, Look, PollMemory
from goatherd.node.repository import Repository, Seeds
from goatherd.trust import TrustPool
from goatherd.wire.bloom import BloomFilter, seed_count
from goatherd.wire.commit import Commit
from goatherd.wire.messages import VERSION, EncodedMessage, SyncMessage, encode_filter, filter_parameters
from goatherd.wire.paths import SESSIONS_PATH

BIG_VIEW = 200
"""Number of commits from which the answer to a view is built in a thread."""

_CYCLES = 3
# What a commit costs besides its looks into a filter, in looks.
_FIXED_LOOKUPS = 2
_FILTER_LIFE_MS = 1000
_COMMITS_PER_MS = 10
_MOST = 64
_MOST_KEPT = 1000
"""For how many commits an empty filter is kept; larger ones take more memory."""
_NEW_COMMITS = 256
"""How many new commits are looked up, sent, or added to a filter, on the event loop's thread."""
_BYTES_PER_LOOKUP = 8
"""So many bytes of commits are put into an answer in the time of one look into a filter, or less."""
_LIGHT_LOOKUPS = 40_000
"""How many bits of filters are looked up on the event loop's thread for one batch; that takes 4 ms."""
_PART = 8
"""If more than this part of a view may be lacking, all of it is looked up."""


@dataclass(frozen=True, slots=True)
class _Filter:
    """A Bloom filter over the first `count` commits that an owner may read, and its JSON."""

    made_ms: int
    count: int
    bloom: BloomFilter
    encoded: bytes


@dataclass(slots=True)
class SessionView:
    """A view: the commits of a repository that the sessions of one owner may read, and Bloom filters over them.

    It is valid for one version of the repository.
    """

    version: int
    commits: list[Commit]
    is_sessions: bool
    introductions: RootIntroductions = field(default_factory=RootIntroductions)
    filters: dict[tuple[int, int], _Filter] = field(default_factory=dict)
    memory: PollMemory = field(default_factory=PollMemory)
    merges: dict[str, list[Commit]] = field(default_factory=dict)

    def add_commits(self, commits: Sequence[Commit]) -> None:
        """Add commits to the view in the order of the log.

        A thread that is reading the view meanwhile sees a correct list.
        """
        for commit in commits:
            if len(commit.parents) > 1:
                for parent in commit.parents:
                    self.merges.setdefault(parent, []).append(commit)
        if self.is_sessions:
            self.introductions.extend(commits)
        self.commits += commits


@dataclass(slots=True)
class ReplyBudget:
    """How many more bytes and filter lookups one answer may take; all its elements share this budget.

    `chosen` has the commits that were put into the answer since it was last emptied.
    """

    left: int
    lookups: int
    is_untouched: bool = True
    chosen: list[Commit] = field(default_factory=list)

    def take_bytes(self, size: int) -> bool:
        """Reserve room for some bytes in the answer; return False if there is not enough.

        The first piece always fits.
        """
        if size > self.left and not self.is_untouched:
            return False
        self.is_untouched = False
        self.left -= size
        return True


@dataclass(frozen=True, kw_only=True)
class SyncLimits(RequestLimits):
    """Limits on one ``/batch-sync`` request and on its answer.

    Attributes:
        spare_size: The filter of an answer has room for the commits on this server and in the request. If the sender
            says that it holds more commits, room for at most this number is added.
        reply_commits: Maximum number of commits in the answer to one element. The rest follows in later rounds.
        reply_commit_bytes: Maximum bytes of commits in the answer to one element. GoatDB's clients must receive a whole
            answer within ten seconds, its servers within five.
        reply_bytes: Maximum bytes of commits and filters in one answer. The rest follows in later rounds.
        reply_lookups: Approximate maximum of filter lookups for one answer; 5 million take a second. Elements left over
            get their commits in later rounds.
    """

    spare_size: int = 1000
    reply_commits: int = 100_000
    reply_commit_bytes: int = 16 * 1024 * 1024
    reply_bytes: int = 64 * 1024 * 1024
    reply_lookups: int = 10_000_000


class Views:
    """The views of one organization's repositories: which commits each session may read."""

    def __init__(self, rulebook: Rulebook, limits: SyncLimits, pool: TrustPool, new_seeds: Seeds) -> None:
        self._rulebook = rulebook
        self._limits = limits
        self._pool = pool
        self._new_seeds = new_seeds
        self._views: dict[str, dict[str | None, SessionView]] = {}
        self._empty_filters: dict[tuple[int, int], bytes] = {}

    def drop_views(self, path: str) -> None:
        """Drop the views of a repository that has been closed."""
        self._views.pop(path, None)

    def view_for(self, repository: Repository, requester: Session) -> SessionView:
        """Return the view of a repository for a session: the commits that the session may read.

        All sessions of one owner share a view (COMPAT).
        """
        whole = requester.id == self._pool.current.id or self._rulebook.reads_whole(repository.path, requester)
        is_sessions = repository.path == SESSIONS_PATH
        if whole is False:
            return SessionView(version=repository.version, commits=[], is_sessions=is_sessions)
        name = None if whole else f"@{requester.owner or ''}"
        views = self._views.setdefault(repository.path, {})
        view = views.get(name)
        if view is not None and view.version == repository.version:
            return view
        rule = self._rulebook.rule_for(repository.path)
        if rule is None or whole:
            # Grows in place, so that one more commit costs one more.
            view = view or SessionView(version=0, commits=[], is_sessions=is_sessions)
            commits = repository.shown_since(len(view.commits))
        else:
            allowed = {
                key: apply_rule(rule, Access(repository=repository.path, key=key, session=requester, operation="read"))
                for key in repository.item_keys()
            }
            commits = [commit for commit in repository.shown_since(0) if allowed[commit.key]]
            view = SessionView(version=0, commits=[], is_sessions=is_sessions)
        view.add_commits(commits)
        view.version = repository.version
        if len(views) > _MOST:
            views.clear()
        views[name] = view
        return view

    def order_elements(self, views: Sequence[SessionView], asked: Sequence[SyncMessage]) -> Sequence[int]:
        """Return the order in which the elements of a request are processed, as positions in the request.

        If processing all elements could exceed the limit on filter lookups, only the first ones get commits in the
        answer. Then the order begins at a random element and continues from the start after the last one, so that no
        element waits indefinitely.
        """
        costs = [
            len(view.commits) * _cost_per_commit(message.filter) for view, message in zip(views, asked, strict=True)
        ]
        count = len(costs)
        if sum(costs) <= self._limits.reply_lookups:
            return range(count)
        first = self._new_seeds(1)[0] % count
        return (*range(first, count), *range(first))

    def recall_looks(
        self,
        views: Sequence[SessionView],
        session_id: str | None,
        asked: Sequence[SyncMessage],
        brought: Sequence[bool],
        now_ms: int,
    ) -> list[Look | None]:
        """Find the sync messages that can be answered quickly, as earlier polls show that the client lacks little.

        For each message the result has the lookup, or None if the message needs more work.
        """
        looks: list[Look | None] = []
        left = _LIGHT_LOOKUPS
        for view, message, is_new in zip(views, asked, brought, strict=True):
            look = None
            if session_id is not None and len(view.commits) > BIG_VIEW and left > 0:
                look = Look()
                if _may_lack(message):
                    arguments = session_id, view.commits, message.filter, message.size
                    look = view.memory.recall(*arguments, _NEW_COMMITS)
                    left -= _cost_per_commit(message.filter) * (SLICE if look is None else look.lookups)
                if look is not None and not self._has_filter(view, look, message, is_new, now_ms):
                    look = None
                if look is not None and look.missing:
                    size = _light_size(view, look.missing)
                    left -= 0 if size is None else size // _BYTES_PER_LOOKUP
                    look = None if size is None or left < 0 else look
            looks.append(look)
        return looks

    def take_look(
        self, view: SessionView, session_id: str | None, asked: SyncMessage, room: ReplyBudget
    ) -> Look | None:
        """Find the commits that a client lacks; return None if the limit on filter lookups has been reached.

        Args:
            view: The commits that the requesting session may read.
            session_id: Id of the session for whose clients the result is remembered. None for a root: servers and tools
                sign with it, and they may also request commits that they already hold.
            asked: The client's sync message.
            room: How many bytes and filter lookups the whole answer may still use.
        """
        if not _may_lack(asked):
            return Look()
        # SECURITY: a request with a thousand elements for one large repository must not take minutes
        # (tests/unit/node/test_engine_answers.py).
        if room.lookups <= 0:
            return None
        if session_id is None or len(view.commits) <= BIG_VIEW:
            look = view.memory.look_at_all("", view.commits, asked.filter, asked.size)
        else:
            arguments = session_id, view.commits, asked.filter, asked.size
            look = view.memory.recall(*arguments, len(view.commits) // _PART) or view.memory.look_at_all(*arguments)
            view.memory.store(session_id, look)
        room.lookups -= look.lookups * _cost_per_commit(asked.filter)
        return look

    def build_reply(
        self,
        view: SessionView,
        asked: SyncMessage,
        look: Look | None,
        brought: bool,
        now_ms: int,
        *,
        born_under: Mapping[str, float] | None,
        room: ReplyBudget,
    ) -> EncodedMessage:
        """Build the answer to one sync message.

        Args:
            view: The commits that the requesting session may read.
            asked: The sync message to answer.
            look: The commits that the client lacks; None if the answer to this message must contain no commits.
            brought: Whether the message brought a commit that was new and stored.
            now_ms: The time of the server's clock in milliseconds.
            born_under: Ids of the roots that introduced the requesting client's session, and when (ms since 1970); None
                if a root signed the request, since then the sender is a server. They decide which commits that
                introduce roots the client needs.
            room: How many bytes and filter lookups the whole answer may still use.
        """
        count = len(view.commits)
        size, cycles = self._filter_key(view, asked, look, brought)
        commits: list[bytes] = []
        if asked.version < VERSION or not count:
            # COMPAT: a client of an older build gets only the number of commits, with an empty filter.
            shown = self._encode_empty_filter(size, cycles)
        else:
            # SECURITY: a request with a thousand elements that each request every commit must not fill the memory
            # (tests/unit/node/test_engine_answers.py).
            shown = self._view_filter(view, size, cycles, now_ms, may_be_old=_may_be_old(asked, look))
            if look is not None and look.missing:
                commits = self._missing_commits(view, look.missing, born_under, room)
        if not room.take_bytes(len(shown) * 3 // 4):
            # "I have nothing" costs the asker bandwidth; a filter that lacks something would cost it commits.
            shown = self._encode_empty_filter(1, cycles)
        return EncodedMessage(filter=shown, size=count, commits=commits)

    def _filter_key(self, view: SessionView, asked: SyncMessage, look: Look | None, brought: bool) -> tuple[int, int]:
        """Return the properties of an answer's filter: its number of commits, and the rounds until GoatDB converges.

        COMPAT: after a message with new commits, GoatDB answers with a filter for one round, which contains hardly any
        commit by chance, but is three times as large. A client that holds no commit which this server lacks does not
        need such a filter, and gets one only from a small view; neither does a sender that claims to hold everything,
        as doors and tools do that only push.
        """
        count = len(view.commits)
        # SECURITY: a client that claims to hold 1e8 commits must not make this server build a filter for as many
        # (tests/unit/node/test_engine_answers.py).
        peer = int(min(max(asked.size, 0), count + len(asked.commits) + self._limits.spare_size))
        size = max(count, peer)
        if count > BIG_VIEW:
            # Room to grow by a quarter and more: a filter is made anew a few times while a repository doubles.
            grain = 1 << max(0, size.bit_length() - 2)
            size = -(-size // grain) * grain
        is_precise = brought and (count <= BIG_VIEW or (_may_lack(asked) and not _holds_nothing_else(look)))
        return size, 1 if is_precise else _CYCLES

    def _empty_filter(self, size: int, cycles: int) -> BloomFilter:
        size, fpr = filter_parameters(size, size, cycles)
        return BloomFilter.for_size(size, fpr, self._new_seeds(seed_count(size, fpr)))

    def _encode_empty_filter(self, size: int, cycles: int) -> bytes:
        """Return the JSON of an empty filter, from a cache if possible.

        An empty filter contains no commit by chance, so it does not need new seeds each time.
        """
        if (size, cycles) not in self._empty_filters:
            if len(self._empty_filters) >= _MOST or size > _MOST_KEPT:
                return encode_filter(self._empty_filter(size, cycles))
            self._empty_filters[size, cycles] = encode_filter(self._empty_filter(size, cycles))
        return self._empty_filters[size, cycles]

    def _has_filter(self, view: SessionView, look: Look, asked: SyncMessage, brought: bool, now_ms: int) -> bool:
        """Return whether `_view_filter` takes little time, because a filter can be reused or the view is small."""
        if len(view.commits) <= BIG_VIEW or asked.version < VERSION:
            return True
        known = view.filters.get(self._filter_key(view, asked, look, brought))
        if known is None or len(view.commits) - known.count > _NEW_COMMITS:
            return False
        return _may_be_old(asked, look) or 0 <= now_ms - known.made_ms < _filter_life(view)

    def _view_filter(self, view: SessionView, size: int, cycles: int, now_ms: int, *, may_be_old: bool) -> bytes:
        """Return the JSON of a Bloom filter over the commits of a view.

        The filter of a large view is reused and extended with new commits. The filter of a small view is reused only if
        `may_be_old`: the client holds the same commits as this server.

        If a client holds a commit that the filter contains only by chance, the client sends it once the filter has new
        seeds. So a filter is reused for at least a second (one or two rounds; building a filter over 50 000 commits
        takes a third of a second), and longer if `may_be_old`.
        """
        known = view.filters.get((size, cycles))
        life = _filter_life(view) if len(view.commits) > BIG_VIEW else 0
        if known is None or not (may_be_old or 0 <= now_ms - known.made_ms < life):
            known = _Filter(now_ms, 0, self._empty_filter(size, cycles), b"")
        fresh = view.commits[known.count :]
        if not fresh:
            return known.encoded
        # Another thread may be at the same: filters are replaced, never changed.
        bloom = BloomFilter(bytearray(known.bloom.bits), known.bloom.seeds)
        bloom.update([commit.id for commit in fresh])
        if len(view.filters) > _MOST:
            view.filters.clear()
        encoded = encode_filter(bloom)
        view.filters[size, cycles] = _Filter(known.made_ms, known.count + len(fresh), bloom, encoded)
        return encoded

    def _missing_commits(
        self, view: SessionView, positions: Sequence[int], born_under: Mapping[str, float] | None, room: ReplyBudget
    ) -> list[bytes]:
        """Return the encoded commits that the sender of a message lacks, within the limits on the answer.

        If an item was created twice, a creation is never returned without the merge commit that keeps the receiver from
        crashing.
        """
        if room.left <= 0:
            return []
        missing = [view.commits[position] for position in positions]
        if view.is_sessions:
            if born_under is None:
                missing = view.introductions.for_peer(missing)
            else:
                missing = view.introductions.for_client(
                    missing,
                    born_under=born_under,
                    find_root=self._pool.find_root,
                    anchors=self._pool.anchor_ids,
                )
        else:
            # SECURITY: clients trust sessions from any repository. So commits that introduce sessions are not sent from
            # this one, in which GoatDB or an earlier build may have stored some
            # (tests/unit/node/test_engine_answers.py).
            missing = [commit for commit in missing if commit.namespace != SESSIONS_NAMESPACE]
        chosen: list[bytes] = []
        ids: dict[str, None] = {}
        left = self._limits.reply_commit_bytes
        for commit in missing[: self._limits.reply_commits]:
            encoded = commit.encoded
            left -= len(encoded)
            if (left < 0 and chosen) or not room.take_bytes(len(encoded)):
                break
            chosen.append(encoded)
            room.chosen.append(commit)
            ids[commit.id] = None
        merges = deque(ids) if view.merges else deque()
        while merges:
            for commit in view.merges.get(merges.popleft(), ()):
                if commit.id not in ids:
                    # Beyond the cap, or the filter claims it by chance: sending it again costs nothing.
                    chosen.append(commit.encoded)
                    room.chosen.append(commit)
                    room.left -= len(chosen[-1])
                    ids[commit.id] = None
                    merges.append(commit.id)
        return chosen


def _light_size(view: SessionView, missing: Sequence[int]) -> int | None:
    """Return the size in bytes of the commits at some positions; None if it takes long to put them into an answer.

    That is so for many commits, those that must be encoded, and those of ``/sys/sessions``, which are sent in an order
    of their own.
    """
    if len(missing) > _NEW_COMMITS or view.is_sessions:
        return None
    commits = [view.commits[position] for position in missing]
    return sum(len(commit.encoded) for commit in commits) if all(commit.is_compact for commit in commits) else None


def _may_lack(asked: SyncMessage) -> bool:
    """Return whether a sync message asks for commits.

    It does not if its filter has no seeds, which claims that the sender holds everything.
    """
    return bool(asked.filter.seeds) and asked.version >= VERSION


def _may_be_old(asked: SyncMessage, look: Look | None) -> bool:
    """Return whether the filter of an earlier answer may be sent again, with the commits that were added since.

    It may if client and server hold the same commits, or if the sender only pushes: it claims to hold everything. One
    that claims so and brings nothing asks for filters, each with other seeds (`goatherd.revocation.reissue_sessions`).
    """
    is_push = bool(asked.commits) and not _may_lack(asked)
    return is_push or (look is not None and _holds_nothing_else(look) and not look.missing)


def _holds_nothing_else(look: Look | None) -> bool:
    """Return whether a client is known to hold no commit that this server lacks."""
    return look is not None and look.surplus is not None and look.surplus <= 0


def _cost_per_commit(held: BloomFilter) -> int:
    return len(held.seeds) + _FIXED_LOOKUPS if held.seeds else 0


def _filter_life(view: SessionView) -> int:
    return max(_FILTER_LIFE_MS, len(view.commits) // _COMMITS_PER_MS)
