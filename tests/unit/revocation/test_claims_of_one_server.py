"""A revocation with a server that claims commits of the revoked root which no other server holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from goatherd.cluster.client import NodeClient
from goatherd.cluster.server_answers import HeldCommit
from goatherd.errors import (
    ConfigurationError,
    NodeUnreachableError,
)
from goatherd.identity.revocations import FrozenList, commit_digest
from goatherd.identity.session import OwnedSession
from goatherd.ids import new_id
from goatherd.revocation.introduced_sessions import Introduced, find_reissued
from goatherd.rotation.cross_signing import introduction_ids
from goatherd.wire.commit import Commit
from tests.unit.node.nodes import (
    document_of,
    now_ms,
    root,
    session_commit,
    signed_commit,
)
from tests.unit.revocation.clusters import NOTES, POLICY, SECOND, SESSIONS, Cluster, client_of, cluster_of, ids, spread

pytestmark = pytest.mark.slow


class Broken(NodeClient):
    """A server controlled by an attacker with the stolen key: it signs commits with the key and claims to hold them.

    Attributes:
        forger: The stolen root; None while the attacker does nothing.
        note: The commit that the attacker signs once the server is notified of the revocation.
        mole: The session that the attacker introduces then.
    """

    forger: OwnedSession | None = None

    async def held(self, session_id: str, signer: OwnedSession, now_ms: int | None = None, **options: Any) -> bytes:
        honest = FrozenList.from_bytes(await super().held(session_id, signer, now_ms, **options))
        if self.forger is None or options.get("early"):
            return honest.to_bytes()
        digests = {commit_digest(self.note), commit_digest(Commit.from_json(self.introduction, org="localhost"))}
        return FrozenList(honest.digests | {one for one in digests if one is not None}).to_bytes()

    async def describe_held(self, session_id: str, digests: Sequence[str], *arguments: Any) -> list[HeldCommit]:
        told = await super().describe_held(session_id, digests, *arguments)
        return [*told, HeldCommit(digests[-1], SESSIONS, self.mole.id, int(self.note.ts))]

    async def batch_sync(self, requests: Any, *arguments: Any) -> Any:
        replies = await super().batch_sync(requests, *arguments)
        if self.forger is not None and requests[0][0] == SESSIONS:
            replies[0]["c"] = [*(replies[0].get("c") or ()), self.introduction]
        return replies

    def takes_over(self, stolen: OwnedSession) -> None:
        self.forger, self.note = stolen, signed_commit(stolen)
        self.mole = OwnedSession.generate(session_id=new_id(), owner="admin", now_ms=now_ms())
        self.introduction = session_commit(stolen, self.mole.session).to_json()


async def with_a_broken_server(cluster: Cluster, a: OwnedSession) -> tuple[Broken, OwnedSession, Commit]:
    user, _ = await cluster.nodes[0].create_session()
    note = signed_commit(a)
    await cluster.nodes[0].push(NOTES, [note], a)
    await spread(cluster, a)
    broken = cluster.nodes[2] = client_of(cluster.servers[2], "http://node-2", Broken)
    assert isinstance(broken, Broken)
    broken.takes_over(a)
    return broken, user, note


@pytest.mark.slow
async def test_what_one_server_signs_after_the_revocation_and_claims_alone_counts_for_nothing(tmp_path: Path) -> None:
    a = root("root-a")
    async with cluster_of(tmp_path, document_of(a), 3) as cluster:
        broken, user, note = await with_a_broken_server(cluster, a)
        report = await cluster.revoker().revoke(a.id, reason="stolen")
        b = (await cluster.document()).current
        for node in cluster.nodes[:2]:
            await node.push(NOTES, [broken.note], b)
            await node.push(SESSIONS, [broken.introduction], b)
            assert await ids(node, NOTES, b) == {note.id}, "no server accepts the thief's commit"
            assert not await node.answers(broken.mole), "the successor does not introduce the thief's session"
            assert await node.answers(user)
        assert report.is_complete
        assert [node.alone for node in report.nodes] == [0, 0, 2]
        (claim,) = report.nodes[2].claims
        assert (claim.path, claim.key, claim.commits) == (SESSIONS, broken.mole.id, 1)
        assert claim.first_ms == claim.last_ms == int(broken.note.ts)


async def test_the_operator_says_whose_list_counts(tmp_path: Path) -> None:
    a = root("root-a")
    async with cluster_of(tmp_path, document_of(a), 3) as cluster:
        broken, _, _ = await with_a_broken_server(cluster, a)
        only = signed_commit(a)
        await cluster.nodes[1].push(NOTES, [only], a)
        choice: dict[str, Any] = {"distrust": ["http://node-2"], "trust_alone": ["http://node-1"]}
        report = await cluster.revoker(**choice).revoke(a.id, reason="stolen")
        assert report.is_complete
        assert [node.alone for node in report.nodes] == [0, 0, 2]
        assert [node.counted_alone for node in report.nodes] == [0, 1, 0]
        assert [node.is_distrusted for node in report.nodes] == [False, False, True]
        b = (await cluster.document()).current
        await cluster.nodes[0].push(NOTES, [only, broken.note], b)
        assert only.id in await ids(cluster.nodes[0], NOTES, b)
        assert broken.note.id not in await ids(cluster.nodes[0], NOTES, b)


async def test_a_distrusted_server_confirms_no_other_and_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = root("root-a")
    async with cluster_of(tmp_path, document_of(a), 3) as cluster:
        broken, user, _ = await with_a_broken_server(cluster, a)
        second = cluster.nodes[1] = client_of(cluster.servers[1], "http://node-1", Broken)
        assert isinstance(second, Broken)
        second.forger, second.note, second.mole, second.introduction = a, broken.note, broken.mole, broken.introduction
        choice: dict[str, Any] = {"distrust": ["http://node-1", "http://node-2"]}

        async def dies(*_: Any, **__: Any) -> Any:
            raise NodeUnreachableError("gone")

        monkeypatch.setattr(broken, "refresh", dies)
        monkeypatch.setattr(broken, "identity", dies)
        report = await cluster.revoker(**choice).revoke(a.id, reason="stolen")
        assert (report.closed, report.is_complete, report.sessions) == (True, True, 1)
        assert [node.is_sole for node in report.nodes] == [True, False, False]
        assert await cluster.nodes[0].answers(user)
        assert not await cluster.nodes[0].answers(broken.mole)


class Hiding(NodeClient):
    """A server that sends, under the id of each commit of ``/sys/sessions`` that it holds, another commit instead."""

    async def batch_sync(self, requests: Any, *arguments: Any) -> Any:
        replies = await super().batch_sync(requests, *arguments)
        if requests[0][0] == SESSIONS:
            replies[0]["c"] = [{**one, "c": {}} for one in replies[0].get("c") or ()]
        return replies


async def test_a_server_that_is_asked_first_cannot_hide_a_session_that_another_server_shows(tmp_path: Path) -> None:
    a = root("root-a")
    async with cluster_of(tmp_path, document_of(a), 3) as cluster:
        user, _ = await cluster.nodes[1].create_session()
        await spread(cluster, a)
        hiding = client_of(cluster.servers[0], "http://node-0", Hiding)
        report = await cluster.revoker([hiding, *cluster.nodes[1:]]).revoke(a.id, reason="stolen")
        assert (report.is_complete, report.sessions) == (True, 1)
        assert await cluster.nodes[1].answers(user)


async def test_a_server_cannot_claim_that_a_session_is_reissued_already(tmp_path: Path) -> None:
    a = root("root-a")
    async with cluster_of(tmp_path, document_of(a), 2) as cluster:
        users = [(await cluster.nodes[1].create_session())[0] for _ in range(2)]
        await spread(cluster, a)
        assert (await cluster.revoker().revoke(a.id, reason="stolen")).is_complete
        b = (await cluster.document()).current
        shown = [Commit.from_json(one, org="localhost") for one in await cluster.nodes[1].pull(SESSIONS, b)]
        true = {one.id for one in shown if one.session == b.id and one.key in {user.id for user in users}}
        claimed = [one.with_signature(shown[0].signature) if one.key == users[0].id else one for one in shown]
        introduced = [Introduced(session=users[0].session, commit_id=one, parents=(), is_long=False) for one in true]
        assert find_reissued(shown, introduced, b.session) == true
        assert len(find_reissued(claimed, introduced, b.session)) == 1


@pytest.mark.slow
async def test_one_server_under_two_urls_does_not_confirm_itself(tmp_path: Path) -> None:
    a = root("root-a")
    async with cluster_of(tmp_path, document_of(a), 2) as cluster:
        only = signed_commit(a)
        await cluster.nodes[1].push(NOTES, [only], a)
        twice = client_of(cluster.servers[1], "http://alias")
        await cluster.revoker([*cluster.nodes, twice]).revoke(a.id, reason="stolen")
        b = (await cluster.document()).current
        await cluster.nodes[0].push(NOTES, [only], b)
        assert await ids(cluster.nodes[0], NOTES, b) == set()


@pytest.mark.slow
async def test_what_is_on_its_way_when_the_root_is_revoked_gets_the_time_to_arrive(tmp_path: Path) -> None:
    a = root("root-a")

    class Slow(NodeClient):
        """This server's commits reach the other server while `revoke` reads for the third time."""

        looks = 0

        async def held(self, *arguments: Any, **options: Any) -> bytes:
            if options.get("early"):
                self.looks += 1
                if self.looks == 3:
                    await spread(cluster, a)
            return await super().held(*arguments, **options)

    async with cluster_of(tmp_path, document_of(a), 2) as cluster:
        slow = cluster.nodes[0] = client_of(cluster.servers[0], "http://node-0", Slow)
        assert isinstance(slow, Slow)
        user, _ = await slow.create_session()
        note = signed_commit(a)
        await slow.push(NOTES, [note], a)
        report = await cluster.revoker(policy=replace(POLICY, flow_patience=60 * SECOND)).revoke(a.id, reason="stolen")
        assert report.is_complete
        assert [node.alone for node in report.nodes] == [0, 0]
        b = (await cluster.document()).current
        assert await ids(cluster.nodes[1], NOTES, b) == {note.id}
        assert await cluster.nodes[1].answers(user)
        assert slow.looks >= 3


async def test_a_plan_shows_what_one_server_alone_claims_and_writes_nothing(tmp_path: Path) -> None:
    a = root("root-a")
    async with cluster_of(tmp_path, document_of(a), 2) as cluster:
        only = signed_commit(a)
        await cluster.nodes[1].push(NOTES, [only], a)
        report = await cluster.revoker().plan(a.id)
        assert [node.alone for node in report.nodes] == [0, 1]
        (claim,) = report.nodes[1].claims
        assert (claim.path, claim.key, claim.commits, claim.last_ms) == (NOTES, only.key, 1, int(only.ts))
        assert (await cluster.document()).generation == 1
        report = await cluster.revoker(trust_alone=["http://node-1"]).plan(a.id)
        assert [(node.alone, node.counted_alone) for node in report.nodes] == [(0, 0), (0, 1)]


@pytest.mark.parametrize(
    "choice",
    [
        {"distrust": ["http://elsewhere"]},
        {"trust_alone": ["http://elsewhere"]},
        {"distrust": ["http://node-0"], "trust_alone": ["http://node-0"]},
    ],
)
async def test_each_server_that_is_judged_is_listed_and_judged_once(tmp_path: Path, choice: dict[str, Any]) -> None:
    a = root("root-a")
    async with cluster_of(tmp_path, document_of(a), 1) as cluster:
        with pytest.raises(ConfigurationError):
            await cluster.revoker(**choice).revoke(a.id, reason="stolen")
        assert (await cluster.document()).generation == 1


@pytest.mark.parametrize(
    ("said", "understood"),
    [
        ({"digest": "ab", "path": NOTES, "key": "k", "ts": 1.5}, HeldCommit("ab", NOTES, "k", 1)),
        ({"digest": "ab", "path": NOTES, "key": "\x1b[2J" + "k" * 999, "ts": 1e300}, "?[2J" + "k" * 195 + "…"),
        ({"digest": "ab", "path": NOTES, "key": "k", "ts": True}, HeldCommit("ab", NOTES, "k", None)),
        ({"digest": "ab", "path": NOTES, "key": "k", "ts": float("nan")}, HeldCommit("ab", NOTES, "k", None)),
        ({"digest": "ab", "path": NOTES, "key": "k"}, HeldCommit("ab", NOTES, "k", None)),
        ({"digest": "ab", "path": NOTES, "key": "k", "ts": "1"}, HeldCommit("ab", NOTES, "k", None)),
    ],
)
def test_what_a_server_says_of_its_commits_is_made_printable_and_short(said: Any, understood: Any) -> None:
    found = HeldCommit.from_json(said)
    assert (found.key if isinstance(understood, str) else found) == understood


class Away(NodeClient):
    """A server that cannot be reached."""

    async def batch_sync(self, *arguments: Any) -> Any:
        raise NodeUnreachableError("gone")

    async def identity(self) -> Any:
        raise NodeUnreachableError("gone")


async def test_the_successor_that_a_first_run_introduced_to_one_server_only_is_introduced_to_the_other(
    tmp_path: Path,
) -> None:
    a = root("root-a")
    async with cluster_of(tmp_path, document_of(a), 2) as cluster:
        away = client_of(cluster.servers[1], "http://node-1", Away)
        hasty = replace(POLICY, adoption=0 * SECOND)
        first = await cluster.revoker([cluster.nodes[0], away], policy=hasty).revoke(a.id, reason="stolen")
        assert not first.closed
        b = (await cluster.document()).current
        planned = await cluster.revoker().plan(a.id)
        assert [node.alone for node in planned.nodes] == [0, 0]

        impostor = OwnedSession.generate(session_id=b.id, owner="root", now_ms=now_ms()).session
        claim = {**session_commit(a, impostor).to_json(), "id": introduction_ids(b.id)[0]}
        forged = Commit.from_json(claim, org="localhost")

        class Lying(NodeClient):
            """A server that reports another root's key under the successor's id, and claims to hold it."""

            async def held(self, *arguments: Any, **options: Any) -> bytes:
                honest = FrozenList.from_bytes(await super().held(*arguments, **options))
                digest = commit_digest(forged)
                assert digest is not None
                return FrozenList(honest.digests | {digest}).to_bytes()

            async def batch_sync(self, requests: Any, *arguments: Any) -> Any:
                replies = await super().batch_sync(requests, *arguments)
                if requests[0][0] == SESSIONS:
                    replies[0]["c"] = [*(replies[0].get("c") or ()), forged.to_json()]
                return replies

        liar = client_of(cluster.servers[1], "http://node-1", Lying)
        report = await cluster.revoker([liar, cluster.nodes[0]]).revoke(a.id, reason="stolen")
        assert report.is_complete
        # The liar is asked first, and its commit has the id of the true one, which is counted nevertheless.
        assert (report.frozen, [node.alone for node in report.nodes]) == (3, [1, 0])
        introductions = [one for one in await cluster.nodes[0].pull(SESSIONS, b) if one["k"] == b.id]
        await cluster.nodes[1].push(SESSIONS, introductions, b)
        assert await ids(cluster.nodes[1], SESSIONS, b) >= set(introduction_ids(b.id))
