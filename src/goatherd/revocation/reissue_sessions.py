"""Reissue the sessions that a revoked root had introduced: collect them from the servers, and push their new commits.

This module reads the old commits, pushes the new ones, and checks which have arrived. `introduced_sessions` chooses the
sessions and makes the commits; `revoker` writes the identity. Commits that a server already holds are not pushed again.
New commits are pushed to all Goatherd servers at once, so that they verify at the same time, and the next commits are
signed meanwhile. If there is no Goatherd server, the commits are pushed to one unmodified server, and the servers
synchronize them. A server that a commit does not reach gets it by a push of its own. A server that fails gets no more
new commits until the other servers have all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final, Protocol

from goatherd.clock import Clock
from goatherd.cluster.node import Node
from goatherd.cluster.session_queries import read_held
from goatherd.errors import DecodeError, GoatherdError, RotationError
from goatherd.identity.document import IdentityDocument
from goatherd.identity.revocations import FrozenList, Revocation, commit_digest
from goatherd.identity.session import ROOT_OWNER, OwnedSession, Session
from goatherd.identity.session_commits import session_from_commit
from goatherd.identity.transitions import CANCELLED
from goatherd.ids import new_id, new_seeds
from goatherd.revocation.introduced_sessions import (
    Introduced,
    IntroducedSessions,
    find_introduced_sessions,
    find_reissued,
    introduce_again,
)
from goatherd.revocation.report import NodeOutcome, RevocationReport
from goatherd.rotation.cross_signing import introduction_ids
from goatherd.rotation.machine import Policy
from goatherd.rotation.polling import Polling
from goatherd.trust import TrustPool
from goatherd.verifiers import verification_threads
from goatherd.wire.bloom import BloomFilter
from goatherd.wire.commit import Commit, decode_commits
from goatherd.wire.messages import VERSION, filter_of_held
from goatherd.wire.paths import SESSIONS_PATH

BATCH: Final = 500
AHEAD: Final = 2
"""How many batches are pushed at one time: a server decodes one while it verifies another."""
RETRIES: Final = 5
"""How often commits that a server has not stored yet are pushed again: it may be verifying them for another server."""

_ROUNDS: Final = 500
_MOST_FILTERS: Final = 64
_CERTAIN: Final = 1e-9
_ALL: Final[dict[str, Any]] = {"__t": "E", "__v": {"d": "AA==", "s": []}}


class SessionNode(Node, Protocol):
    """The interface of a server, as far as `SessionReissuer` needs it."""

    async def lacking(
        self, path: str, commit_ids: Sequence[str], signer: OwnedSession, now_ms: int | None = None
    ) -> list[str]: ...


class OnEach(Protocol):
    """The interface of the function by which `Revoker` calls servers concurrently and records each failure."""

    async def __call__(
        self, urls: Collection[str], call: Callable[[Any], Awaitable[object]], *, is_long: bool = False
    ) -> None: ...


class SessionReissuer:
    """Reissues the sessions of one revoked root, in one run.

    Args:
        nodes: The servers, by URL.
        outcomes: The result at each server, by URL; filled in here.
        report: The report of the run; filled in here.
        on_each: Calls servers concurrently, and records each failure in `outcomes`.
        pushed: Called after each batch with the server and the number of sessions pushed so far.
        waits: Called with the servers that do not store the new commits, and the time until which they are retried, in
            milliseconds since 1970.
        org, policy, clock: As for `goatherd.revocation.revoker.Revoker`.
    """

    def __init__(
        self,
        *,
        nodes: Mapping[str, SessionNode],
        outcomes: Mapping[str, NodeOutcome],
        report: RevocationReport,
        on_each: OnEach,
        pushed: Callable[[str, int], None],
        waits: Callable[[tuple[str, ...], int], None],
        org: str,
        policy: Policy,
        clock: Clock,
    ) -> None:
        self._nodes = nodes
        self._outcomes = outcomes
        self._report = report
        self._on_each = on_each
        self._pushed = pushed
        self._waits = waits
        self._org = org
        self._policy = policy
        self._clock = clock

    async def collect_sessions(
        self,
        document: IdentityDocument,
        session_id: str,
        *,
        frozen: FrozenList | None = None,
        leave_out: Collection[str] = (),
    ) -> tuple[IntroducedSessions, set[str]]:
        """Collect ``/sys/sessions`` from the servers, and find the sessions that the revoked root had introduced.

        Unmodified servers are asked only if there is no Goatherd server to ask.

        Args:
            document: The identity.
            session_id: The revoked root.
            frozen: The list of the revoked root's commits that stay valid; None, before there is such a list, to accept
                all.
            leave_out: Ids of sessions not to be reissued.

        Returns:
            The sessions to reissue, and the ids of the commits by which the current root has reissued some already.
        """
        signer, raw = document.current, await self._collect_from(self._choose_servers(), document)
        revoked = document.find_root(session_id)
        assert revoked is not None

        def look() -> tuple[IntroducedSessions, set[str]]:
            commits = decode_commits(raw, self._org)
            # A root that is no longer in the document but is trusted without the revoked one is not the thief's.
            others = self._verify_commits(document, commits, {*document.revoked_ids, session_id})
            with verification_threads("goatherd-sessions") as executor:
                found = find_introduced_sessions(
                    commits,
                    revoked,
                    successor_id=signer.id,
                    roots={*(root.id for root in document.roots), *(root.id for root in others)},
                    frozen=frozen,
                    leave_out=leave_out,
                    executor=executor,
                )
                return found, find_reissued(commits, found.sessions, signer.session, executor)

        found, known = await asyncio.to_thread(look)
        report = self._report
        report.sessions = len(found.sessions)
        report.long_lived = tuple(one.session.id for one in found.sessions if one.is_long)
        report.rogue_roots, report.forged, report.left_out = found.rogue_roots, found.forged, found.left_out
        cancelled = {entry.to_id for entry in document.history if entry.event == CANCELLED}
        report.cancelled_roots = tuple(root for root in found.rogue_roots if root in cancelled)
        return found, known

    async def find_introductions(self, document: IdentityDocument, session_id: str) -> set[bytes]:
        """Return the digests of the commits by which the revoked root introduces roots that the identity trusts.

        The signatures are not verified.
        """
        roots = {
            commit_id: root
            for root in document.roots
            if root.id not in document.revoked_ids
            for commit_id in introduction_ids(root.id)
        }
        found: list[Mapping[str, Any]] = []

        async def read(node: SessionNode) -> None:
            found.extend((await read_held(node, list(roots), document.current, self._clock.now_ms())).values())

        await self._on_each(self._choose_servers(), read)
        digests = set()
        for commit in decode_commits(found, self._org):
            with suppress(DecodeError):
                is_one = commit.session == session_id and session_from_commit(commit) == roots[commit.id]
                if is_one and (digest := commit_digest(commit)) is not None:
                    digests.add(digest)
        return digests

    def _choose_servers(self) -> list[str]:
        """Return the Goatherd servers that answer and are not distrusted; without any, all servers that answer."""
        ready = [one for one in self._outcomes.values() if one.problem is None]
        ours = [one.url for one in ready if not (one.is_unmodified or one.is_distrusted)]
        return ours or [one.url for one in ready]

    async def find_pruned(self, document: IdentityDocument, session_id: str) -> Session | None:
        """Return a root that is no longer in the document, from verified introductions on the servers.

        Return None if no server has one.
        """
        commits = decode_commits(await self._collect_from(self._outcomes, document), self._org)
        found = await asyncio.to_thread(self._verify_commits, document, commits, document.revoked_ids)
        return next((root for root in found if root.id == session_id), None)

    async def _collect_from(self, urls: Collection[str], document: IdentityDocument) -> list[Any]:
        """Return the commits of ``/sys/sessions`` of the given servers.

        SECURITY: each server is asked for all its commits, and different commits with one id are all returned. So a
        server that lies cannot hide another's commit behind one with the same id
        (tests/unit/revocation/test_claims_of_one_server.py).
        """
        found: dict[str, list[Any]] = {}

        async def collect(node: SessionNode) -> None:
            seen: set[str] = set()
            for _ in range(_ROUNDS):
                shown = await asyncio.to_thread(_filter_of, tuple(seen))
                message = {"ver": VERSION, "f": shown, "s": len(seen), "c": [], "ad": []}
                (reply,) = await node.batch_sync([(SESSIONS_PATH, message)], document.current, self._clock.now_ms())
                before = len(seen)
                for commit in reply.get("c") or ():
                    if isinstance(commit, Mapping) and isinstance(key := commit.get("id"), str) and key not in seen:
                        seen.add(key)
                        if commit not in (same := found.setdefault(key, [])):
                            same.append(commit)
                if len(seen) == before:
                    return

        await self._on_each(urls, collect, is_long=True)
        return [commit for same in found.values() for commit in same]

    def _verify_commits(
        self, document: IdentityDocument, commits: Iterable[Commit], revoked: Collection[str]
    ) -> tuple[Session, ...]:
        current = document.current
        if current.id in revoked:
            # Only before anything is written. Its successor, which is not known here, has introduced no root.
            current = OwnedSession.generate(session_id=new_id(), owner=ROOT_OWNER, now_ms=self._clock.now_ms())
        pool = TrustPool(
            org=self._org,
            current=current,
            roots=[root for root in document.roots if root.id not in revoked],
            revoked=revoked,
            anchored=document.anchored_trust,
        )
        pool.offer_session_commits(commits)
        return pool.roots

    async def introduce_again(
        self,
        document: IdentityDocument,
        entry: Revocation,
        found: IntroducedSessions,
        known: Collection[str],
        *,
        comes_back: bool = True,
    ) -> None:
        """Reissue the sessions whose new commits are missing, and check that every server gets them.

        A server that fails does not delay the others, and is retried after them; its outcome records the reason.

        Args:
            document: The identity.
            entry: The revocation, as recorded in the document.
            found: The sessions to reissue.
            known: Ids of the commits that at least one server holds already, as `collect_sessions` returns them.
            comes_back: Whether to retry failed servers, for `Policy.adoption` at most.

        Raises:
            RotationError: No server stores the commits that are pushed to it.
            NodeError: No server answers any more.
        """
        ready = [one for one in self._outcomes.values() if one.problem is None and not one.is_distrusted]
        ready.sort(key=lambda one: one.is_unmodified)
        if not ready:
            return
        wanted = [one.commit_id for one in found.sessions]
        todo = [one for one in found.sessions if one.commit_id not in known]
        failed: dict[str, GoatherdError] = {}
        await self._push_reissued(todo, ready, failed, document, entry)
        by_id = {one.commit_id: one for one in found.sessions}
        left = [one for one in ready if one.url not in failed]
        polling: Polling | None = None
        shown = None
        while True:
            for outcome in left:
                outcome.problem = None
                failed.pop(outcome.url, None)
                arrived = partial(self._wait_for_arrival, outcome, wanted, by_id, document, entry)
                if (error := await self._try_node(outcome, arrived)) is not None:
                    failed[outcome.url] = error
            left = [one for one in ready if one.url in failed]
            if polling is None:
                polling = Polling(self._clock, self._policy, self._policy.adoption)
            if len(left) in (0, len(ready)) or not comes_back or polling.is_over:
                break
            urls = tuple(one.url for one in left)
            if urls != shown:
                shown = urls
                self._waits(urls, polling.until_ms)
            await polling.pause()
        if len(left) == len(ready):
            raise next(iter(failed.values()))

    async def _push_reissued(
        self,
        todo: Sequence[Introduced],
        ready: Sequence[NodeOutcome],
        failed: dict[str, GoatherdError],
        document: IdentityDocument,
        entry: Revocation,
    ) -> None:
        """Push new commits to all Goatherd servers, or to one unmodified server; add servers that fail to `failed`."""
        ours = [one for one in ready if not one.is_unmodified]

        async def push_batch(commits: Sequence[Commit]) -> None:
            async def push(outcome: NodeOutcome) -> bool:
                work = partial(self._push_commits, outcome, commits, document.current)
                if (error := await self._try_node(outcome, work)) is not None:
                    failed.setdefault(outcome.url, error)
                return error is None

            left = [one for one in ours or ready if one.url not in failed]
            holders: list[NodeOutcome] = []
            if ours:
                stored = await asyncio.gather(*[push(one) for one in left])
                holders = [one for one, is_stored in zip(left, stored, strict=True) if is_stored]
            while left and not ours and not holders:
                if await push(one := left.pop(0)):
                    holders.append(one)
            if holders:
                self._report.pushed += len(commits)
                self._pushed(holders[0].url, self._report.pushed)

        pushing: set[asyncio.Task[None]] = set()
        try:
            for start in range(0, len(todo), BATCH):
                commits = await self._sign_commits(todo[start : start + BATCH], document, entry)
                if len(pushing) >= AHEAD:
                    done, pushing = await asyncio.wait(pushing, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        task.result()
                pushing.add(asyncio.create_task(push_batch(commits), name="reissued sessions"))
            await asyncio.gather(*pushing)
        finally:
            for task in pushing:
                task.cancel()
            await asyncio.gather(*pushing, return_exceptions=True)

    async def _try_node(self, outcome: NodeOutcome, call: Callable[[], Awaitable[object]]) -> GoatherdError | None:
        """Call one server; return the error if the call failed, and record the error in the server's outcome."""
        errors: list[GoatherdError] = []

        async def attempt(_: SessionNode) -> None:
            try:
                await call()
            except GoatherdError as error:
                errors.append(error)
                raise

        await self._on_each([outcome.url], attempt, is_long=True)
        return errors[0] if errors else None

    async def _sign_commits(
        self, introduced: Sequence[Introduced], document: IdentityDocument, entry: Revocation
    ) -> list[Commit]:
        def make() -> list[Commit]:
            with verification_threads("goatherd-sessions") as executor:
                return introduce_again(
                    introduced, signer=document.current, at=entry.at, org=self._org, executor=executor
                )

        return await asyncio.to_thread(make)

    async def _push_commits(self, outcome: NodeOutcome, commits: Sequence[Commit], signer: OwnedSession) -> None:
        await self._nodes[outcome.url].push(SESSIONS_PATH, commits, signer, self._clock.now_ms())
        lacking = await self._find_lacking(outcome, [commit.id for commit in commits], signer)
        self._report.node_calls += 2
        polling = Polling(self._clock, self._policy)
        for _ in range(RETRIES):
            if not lacking:
                return
            await polling.pause()
            missing = [commit for commit in commits if commit.id in set(lacking)]
            await self._nodes[outcome.url].push(SESSIONS_PATH, missing, signer, self._clock.now_ms())
            lacking = await self._find_lacking(outcome, lacking, signer)
            self._report.node_calls += 2
        if lacking:
            raise RotationError(
                f"{outcome.url} did not store {len(lacking)} of {len(commits)} session commits signed by {signer.id}",
                hint="Check the server's log, then run the command again.",
            )

    async def _find_lacking(self, outcome: NodeOutcome, wanted: Sequence[str], signer: OwnedSession) -> list[str]:
        """Return which of the commits `wanted` a server does not hold.

        A Goatherd server answers this question. An unmodified server only sends Bloom filters of the commits that it
        holds, and such a filter of a few commits wrongly contains every second other id. So filters with other seeds
        are requested, at most `_MOST_FILTERS`, until the probability that all of them contain an id wrongly is below
        `_CERTAIN`.
        """
        node = self._nodes[outcome.url]
        if not outcome.is_unmodified:
            lacking = set(await node.lacking(SESSIONS_PATH, wanted, signer, self._clock.now_ms()))
            return [one for one in wanted if one in lacking]
        held, doubt = list(wanted), 1.0
        seen: set[tuple[int, ...]] = set()
        message = {"ver": VERSION, "f": _ALL, "s": 0, "c": [], "ad": []}
        for _ in range(_MOST_FILTERS):
            (reply,) = await node.batch_sync([(SESSIONS_PATH, message)], signer, self._clock.now_ms())
            shown = _filter_in(reply)
            if shown is None:
                return list(wanted)
            if shown.seeds not in seen:
                seen.add(shown.seeds)
                held = await asyncio.to_thread(_all_in, shown, held)
                doubt *= shown.error_rate
            if not held or doubt < _CERTAIN:
                break
        kept = set(held)
        return [one for one in wanted if one not in kept]

    async def _wait_for_arrival(
        self,
        outcome: NodeOutcome,
        wanted: Sequence[str],
        by_id: Mapping[str, Introduced],
        document: IdentityDocument,
        entry: Revocation,
    ) -> None:
        """Wait for the new commits to reach a server from the other servers; at the deadline, push the missing ones."""
        polling, least = Polling(self._clock, self._policy, self._policy.settle), len(wanted) + 1
        lacking = list(wanted)
        while True:
            # A commit that has arrived stays, so each request asks for fewer commits than the one before.
            lacking = await self._find_lacking(outcome, lacking, document.current)
            outcome.introduced = len(wanted) - len(lacking)
            if not lacking:
                return
            if len(lacking) < least:
                least = len(lacking)
                polling.extend()
            alone = outcome.is_unmodified or len(self._nodes) == 1
            if alone or polling.is_over:
                break
            await polling.pause()
        for start in range(0, len(lacking), BATCH):
            part = [by_id[commit_id] for commit_id in lacking[start : start + BATCH]]
            await self._push_commits(outcome, await self._sign_commits(part, document, entry), document.current)
        outcome.introduced = len(wanted)


def _filter_of(ids: Sequence[str]) -> dict[str, Any]:
    return {"__t": "E", "__v": filter_of_held(ids, new_seeds).to_json()}


def _filter_in(reply: Mapping[str, Any] | None) -> BloomFilter | None:
    try:
        return BloomFilter.from_json(reply["f"]["__v"]) if reply is not None else None
    except (DecodeError, KeyError, TypeError):
        return None


def _all_in(shown: BloomFilter, wanted: Sequence[str]) -> list[str]:
    return [one for one in wanted if one in shown]
