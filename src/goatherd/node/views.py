"""Build the answer to a sync message from the commits that the requesting session may read. Pure.

The message: docs/reference/goatdb-protocol.md#sync-messages.

A view is the set of commits that one owner may read. It is built once for each owner and each version of a repository.
`Views.view_for` and `Views.drop_views` run on the event loop's thread. `Views.build_reply` changes only the view that
it is given, and can run in another thread.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from goatherd.admission.access import Access, Rulebook, apply_rule
from goatherd.admission.limits import RequestLimits
from goatherd.errors import VerificationError
from goatherd.identity.introductions_for_clients import RootIntroductions
from goatherd.identity.session import Session
from goatherd.identity.session_commits import SESSIONS_NAMESPACE
from goatherd.node.repository import Repository, Seeds
from goatherd.trust import TrustPool
from goatherd.wire.bloom import BloomFilter, seed_count
from goatherd.wire.commit import Commit
from goatherd.wire.json import to_json_bytes
from goatherd.wire.messages import VERSION, SyncMessage, filter_parameters
from goatherd.wire.paths import SESSIONS_PATH

BIG_VIEW = 200
"""Number of commits from which the answer to a view is built in a thread."""

_CYCLES = 3
# What a commit costs besides its looks into a filter, in looks.
_FIXED_LOOKUPS = 2
_FILTER_LIFE_MS = 1000
_COMMITS_PER_MS = 10
_MOST = 64


@dataclass(slots=True)
class _Filter:
    """A filter over the first `count` commits of a view."""

    made_ms: int
    count: int
    bloom: BloomFilter


@dataclass(slots=True)
class SessionView:
    """The commits that one owner may read at one version of a repository, and the filters over them."""

    version: int
    commits: list[Commit]
    introductions: RootIntroductions = field(default_factory=RootIntroductions)
    filters: dict[tuple[int, int], _Filter] = field(default_factory=dict)


@dataclass(slots=True)
class ReplyBudget:
    """The number of bytes that an answer may still take, shared by all its elements."""

    left: int
    is_untouched: bool = True

    def take_bytes(self, size: int) -> bool:
        """Take room for some bytes; return False if there is not enough. The first piece always fits."""
        if size > self.left and not self.is_untouched:
            return False
        self.is_untouched = False
        self.left -= size
        return True


@dataclass(frozen=True, kw_only=True)
class SyncLimits(RequestLimits):
    """Limits on one batch and on its answer.

    Attributes:
        spare_size: How much a peer's commit count may exceed the commits here and in the request when the filter of
            the answer is sized.
        reply_commits: Maximum number of commits in the answer to one element. The rest follows in later rounds.
        reply_bytes: Maximum bytes of commits and filters in one answer. The rest follows in later rounds.
        reply_lookups: Approximate maximum of filter lookups for one answer; 5 million take a second. Elements left over
            get their commits in later rounds.
    """

    spare_size: int = 1000
    reply_commits: int = 10_000
    reply_bytes: int = 64 * 1024 * 1024
    reply_lookups: int = 10_000_000


class Views:
    """The views of one organization's repositories."""

    def __init__(self, rulebook: Rulebook, limits: SyncLimits, pool: TrustPool, new_seeds: Seeds) -> None:
        self._rulebook = rulebook
        self._limits = limits
        self._pool = pool
        self._new_seeds = new_seeds
        self._views: dict[str, dict[str | None, SessionView]] = {}

    def drop_views(self, path: str) -> None:
        """Drop the views of a repository that is closed."""
        self._views.pop(path, None)

    def view_for(self, repository: Repository, requester: Session) -> SessionView:
        """Return the commits that a session may read; all sessions of one owner share a view (COMPAT)."""
        whole = requester.id == self._pool.current.id or self._rulebook.reads_whole(repository.path, requester)
        if whole is False:
            return SessionView(version=repository.version, commits=[])
        name = None if whole else f"@{requester.owner or ''}"
        views = self._views.setdefault(repository.path, {})
        view = views.get(name)
        if view is not None and view.version == repository.version:
            return view
        rule = self._rulebook.rule_for(repository.path)
        if rule is None or whole:
            # Grows in place, so that one more commit costs one more; a thread that is reading it sees a truthful list.
            view = view or SessionView(version=0, commits=[])
            fresh = repository.shown_since(len(view.commits))
            view.commits += fresh
            if repository.path == SESSIONS_PATH:
                view.introductions.extend(fresh)
            view.version = repository.version
        else:
            allowed = {
                key: apply_rule(rule, Access(repository=repository.path, key=key, session=requester, operation="read"))
                for key in repository.item_keys()
            }
            commits = [commit for commit in repository.shown_since(0) if allowed[commit.key]]
            view = SessionView(version=repository.version, commits=commits)
            if repository.path == SESSIONS_PATH:
                view.introductions.extend(commits)
        if len(views) > _MOST:
            views.clear()
        views[name] = view
        return view

    def choose_served(self, views: Sequence[SessionView], asked: Sequence[SyncMessage]) -> list[bool]:
        """Choose the elements of a batch that get commits in this answer, within the lookup limit; at least one.

        The first one is chosen at random, so that no element waits indefinitely behind the same others.
        """
        # SECURITY: a thousand elements for one big repository must not take minutes
        # (tests/unit/node/test_engine_answers.py).
        costs = [
            len(view.commits) * (len(message.filter.seeds) + _FIXED_LOOKUPS) if message.filter.seeds else 0
            for view, message in zip(views, asked, strict=True)
        ]
        left = self._limits.reply_lookups
        if sum(costs) <= left:
            return [True] * len(costs)
        served = [False] * len(costs)
        first = self._new_seeds(1)[0] % len(costs)
        for index in (*range(first, len(costs)), *range(first)):
            served[index] = left > 0
            left -= costs[index]
        return served

    def build_reply(
        self,
        view: SessionView,
        asked: SyncMessage,
        brought: bool,
        now_ms: int,
        *,
        born_under: Collection[str] | None,
        room: ReplyBudget,
        is_served: bool,
    ) -> tuple[SyncMessage, list[bytes]]:
        """Build the answer to one sync message.

        Args:
            view: The commits that the requesting session may read.
            asked: The sync message.
            brought: Whether the message brought a commit that was new and stored.
            now_ms: The server's clock.
            born_under: The roots that introduced the requesting client's session; None for a root, which is a peer.
            room: What the whole answer may still take.
            is_served: Whether the answer may include commits (`choose_served`).

        Returns:
            The answer without commits, and the encoded commits.
        """
        count = len(view.commits)
        # SECURITY: a count of 1e8 would make us build a filter for as many (tests/unit/node/test_engine_answers.py).
        peer = int(min(max(asked.size, 0), count + len(asked.commits) + self._limits.spare_size))
        cycles = 1 if brought else _CYCLES
        if asked.version < VERSION:
            # COMPAT: an older build gets a count and nothing else.
            shown, commits = self._empty_filter(max(count, peer), cycles), []
        else:
            # SECURITY: a thousand elements that each ask for everything must not fill the memory
            # (tests/unit/node/test_engine_answers.py).
            shown = self._view_filter(view, max(count, peer), cycles, now_ms)
            commits = self._missing_commits(view, asked.filter, born_under, room) if is_served else []
        if not room.take_bytes(len(shown.bits)):
            # "I have nothing" costs the asker bandwidth; a filter that lacks something would cost it commits.
            shown = self._empty_filter(1, cycles)
        return SyncMessage(version=VERSION, filter=shown, size=count), commits

    def _empty_filter(self, size: int, cycles: int) -> BloomFilter:
        size, fpr = filter_parameters(size, size, cycles)
        return BloomFilter.for_size(size, fpr, self._new_seeds(seed_count(size, fpr)))

    def _view_filter(self, view: SessionView, size: int, cycles: int, now_ms: int) -> BloomFilter:
        """Return a filter over a view. For a large view, one filter is reused for at least a second and updated.

        New seeds are needed so that rounds converge. But a second is only one or two rounds, and building a filter over
        50 000 commits takes a third of a second.
        """
        if len(view.commits) <= BIG_VIEW:
            made = self._empty_filter(size, cycles)
            made.update([commit.id for commit in view.commits])
            return made
        # Room to grow by a quarter and more: a filter is made anew a few times while a repository doubles.
        grain = 1 << max(0, size.bit_length() - 2)
        size = -(-size // grain) * grain
        life = max(_FILTER_LIFE_MS, len(view.commits) // _COMMITS_PER_MS)
        known = view.filters.get((size, cycles))
        if known is None or not 0 <= now_ms - known.made_ms < life:
            known = _Filter(now_ms, 0, self._empty_filter(size, cycles))
        done = known.count
        fresh = view.commits[done:]
        known.bloom.update([commit.id for commit in fresh])
        known.count = max(known.count, done + len(fresh))
        # Another thread may be at the same: it must not see a filter that is not full yet.
        if len(view.filters) > _MOST:
            view.filters.clear()
        view.filters[size, cycles] = known
        return known.bloom

    def _is_trusted_root(self, session_id: str) -> bool:
        """Return whether a root is trusted. May be called in any thread: it only reads dictionaries of the pool."""
        try:
            self._pool.get_root(session_id)
        except VerificationError:
            return False
        return True

    def _missing_commits(
        self, view: SessionView, held: BloomFilter, born_under: Collection[str] | None, room: ReplyBudget
    ) -> list[bytes]:
        """Return the encoded commits that a peer lacks, within the limits.

        A second creation of a key is never returned without the merge commit that keeps the peer from crashing.
        """
        if not held.seeds or room.left <= 0:
            return []
        commits = view.commits
        missing = [commit for commit in commits if commit.id not in held]
        if missing and missing[0].namespace == SESSIONS_NAMESPACE:
            if born_under is None:
                missing = view.introductions.for_peer(missing)
            else:
                missing = view.introductions.for_client(missing, born_under=born_under, counts=self._is_trusted_root)
        chosen: list[bytes] = []
        ids: set[str] = set()
        for commit in missing[: self._limits.reply_commits]:
            encoded = to_json_bytes(commit.to_json())
            if not room.take_bytes(len(encoded)):
                break
            chosen.append(encoded)
            ids.add(commit.id)
        for commit in commits if ids else ():
            if len(commit.parents) > 1 and commit.id not in ids and not ids.isdisjoint(commit.parents):
                # Beyond the cap, or the filter claims it by chance: sending it again costs nothing.
                chosen.append(to_json_bytes(commit.to_json()))
                room.left -= len(chosen[-1])
                ids.add(commit.id)
        return chosen
