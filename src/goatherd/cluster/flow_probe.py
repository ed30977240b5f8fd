"""Check that the servers of a cluster synchronize: a session that one of them has stored must reach the others.

The check works with any GoatDB server, also with one that does not report with which servers it synchronizes. It
changes nothing, with one exception: if no server has created a session recently, the check creates an anonymous one,
which GoatDB keeps permanently.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from datetime import timedelta
from typing import Final

from goatherd.clock import Clock
from goatherd.cluster.node import FlowProbe, Node
from goatherd.cluster.session_queries import introduces_user, read_held, read_sessions_sample, read_signer
from goatherd.errors import NodeError
from goatherd.identity.session import OwnedSession
from goatherd.times import milliseconds

_RECENT: Final = timedelta(days=1)
_MANY_RECENT: Final = 16
_PAUSE: Final = timedelta(milliseconds=250)


async def probe_flow(
    nodes: Mapping[str, Node],
    at: str,
    others: Sequence[str],
    *,
    asker: OwnedSession,
    patience: timedelta,
    clock: Clock,
    timeout: float,
) -> FlowProbe:
    """Check that each session that a server has created recently is on all servers within `patience`.

    If no server has created a session, create an anonymous one at a server, and check that the other servers accept a
    request signed by this session.

    Args:
        nodes: The servers, by URL. A server that does not answer counts as one that the session has not reached.
        at: URL of the server that creates the session, if one is needed.
        others: URLs of the other servers.
        asker: A root that the servers trust, which signs the requests. Only sessions introduced by this root are
            checked.
        patience: How long a session may take to reach the others.
        clock: Tells the time and waits.
        timeout: Timeout of one server, in seconds.
    """
    recent = await _find_recent(nodes, (at, *others), asker, clock, timeout)
    if recent:
        wanted = list(recent)

        async def find_missing(url: str) -> list[str]:
            return await _find_missing(nodes, url, wanted, asker, clock, timeout)

        missing = await _wait_for_all(find_missing, (at, *others), patience, clock)
        if not missing:
            return FlowProbe(at=at)
        missed = next(iter(missing.values()))[0]
        return FlowProbe(at=recent[missed], unreached=tuple(url for url, found in missing.items() if missed in found))
    try:
        async with asyncio.timeout(timeout):
            owned, _ = await nodes[at].create_session()
    except (NodeError, TimeoutError) as error:
        return FlowProbe(at=at, problem=str(error) or f"no answer within {timeout:g} s")

    async def find_rejected(url: str) -> list[str]:
        return [] if await _is_accepted(nodes, url, owned, clock, timeout) else [owned.id]

    return FlowProbe(at=at, unreached=tuple(await _wait_for_all(find_rejected, others, patience, clock)))


async def _wait_for_all(
    find_missing: Callable[[str], Coroutine[None, None, list[str]]],
    urls: Sequence[str],
    patience: timedelta,
    clock: Clock,
) -> dict[str, list[str]]:
    """Ask servers repeatedly what they lack, until none lacks anything or `patience` is over.

    Returns:
        For each server that lacks something at the end, by URL, what `find_missing` returned for it last.
    """
    until = clock.monotonic() + patience.total_seconds()
    left = list(urls)
    while True:
        async with asyncio.TaskGroup() as group:
            asked = {url: group.create_task(find_missing(url)) for url in left}
        missing = {url: found for url in left if (found := asked[url].result())}
        left = list(missing)
        if not left or clock.monotonic() >= until:
            return missing
        await clock.sleep(_PAUSE)


async def _find_recent(
    nodes: Mapping[str, Node], urls: Sequence[str], asker: OwnedSession, clock: Clock, timeout: float
) -> dict[str, str]:
    """Return the ids of recent commits by which root `asker` introduces anonymous sessions, each with a server's URL.

    The server holds the commit. If a server has many sessions, only a sample of them is read.
    """

    async def find(url: str) -> list[tuple[float, str]]:
        now_ms = clock.now_ms()
        try:
            async with asyncio.timeout(timeout):
                commits = await read_sessions_sample(nodes[url], asker, now_ms)
        except (NodeError, TimeoutError):
            return []
        oldest_ms = now_ms - milliseconds(_RECENT)
        found = [
            (commit["ts"], commit["id"])
            for commit in commits
            if introduces_user(commit) and commit["ts"] >= oldest_ms and read_signer(commit) == asker.id
        ]
        return sorted(found)[-_MANY_RECENT:]

    async with asyncio.TaskGroup() as group:
        tasks = {url: group.create_task(find(url)) for url in urls}
    return {commit_id: url for url, task in tasks.items() for _, commit_id in task.result()}


async def _find_missing(
    nodes: Mapping[str, Node], url: str, commit_ids: Sequence[str], asker: OwnedSession, clock: Clock, timeout: float
) -> list[str]:
    """Return which of the given session commits a server does not hold; all of them if the server does not answer."""
    try:
        async with asyncio.timeout(timeout):
            held = await read_held(nodes[url], commit_ids, asker, clock.now_ms())
    except (KeyError, NodeError, TimeoutError):
        return list(commit_ids)
    return [one for one in commit_ids if one not in held]


async def _is_accepted(nodes: Mapping[str, Node], url: str, signer: OwnedSession, clock: Clock, timeout: float) -> bool:
    """Return whether a server accepts a request signed by `signer`, which shows that it holds that session's commit.

    COMPAT: GoatDB accepts requests of every session whose commit in ``/sys/sessions`` it holds.
    """
    try:
        async with asyncio.timeout(timeout):
            await nodes[url].batch_sync([], signer, clock.now_ms())
    except (KeyError, NodeError, TimeoutError):
        return False
    return True
