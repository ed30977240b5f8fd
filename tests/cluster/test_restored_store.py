"""A store that was restored from a backup of before a rotation, under servers that have followed the rotation."""

from __future__ import annotations

import shutil
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from goatherd.cluster.server_answers import ServerIdentity
from goatherd.errors import (
    ForkedIdentityError,
    GenerationError,
    GoatherdError,
    NodeRefusedError,
    NotAdoptedError,
    ObstructedError,
    StoreWentBackError,
)
from goatherd.identity.document import IdentityDocument
from goatherd.identity.session import OwnedSession
from goatherd.rotation.policy import Policy
from goatherd.rotation.replacement import Replacer
from goatherd.rotation.rotator import Rotator
from goatherd.settings.base import Refusal
from goatherd.wire.commit import Commit
from tests.deadlines import ADOPTION, ANSWER
from tests.unit.node.nodes import signed_commit
from tests.waiting import until

from .test_revocation import NOTES, Cluster, Member, cluster_of

pytestmark = pytest.mark.slow
SECOND = timedelta(seconds=1)
POLICY = Policy(adoption=ADOPTION, settle=ADOPTION, node_timeout=ANSWER, grace=timedelta(0))


class Store:
    """The file store of a cluster, which can be restored to an earlier state."""

    def __init__(self, cluster: Cluster) -> None:
        self.path = cluster.top / "keys"

    def back_up(self, name: str) -> None:
        shutil.copytree(self.path, self.path.with_name(name))

    def restore(self, name: str) -> None:
        shutil.rmtree(self.path)
        shutil.copytree(self.path.with_name(name), self.path)

    @property
    def contents(self) -> dict[str, bytes]:
        return {str(one): one.read_bytes() for one in sorted(self.path.rglob("*")) if one.is_file()}


def rotator_of(cluster: Cluster, *, listed: bool = True, **policy: object) -> Rotator:
    nodes = cluster.clients if listed else []
    settings: dict[str, object] = {name: getattr(POLICY, name) for name in POLICY.__slots__} | policy
    return Rotator(
        cluster.provider,
        "root",
        nodes,
        policy=Policy(**settings),  # type: ignore[arg-type]
        unsafe_without_nodes=not listed,
    )


def document_of(member: Member) -> IdentityDocument:
    assert member.server is not None
    document = member.server.database().document
    assert document is not None
    return document


def refusal_of(member: Member) -> Refusal | None:
    assert member.server is not None
    status = member.server.database().status
    return status.last_refusal if status.is_degraded else None


async def lose_a_rotation(cluster: Cluster) -> tuple[OwnedSession, Commit]:
    """Rotate, have the new root sign a commit, restore the store from before that, and stop the servers.

    Returns:
        The root that the store has lost, and its commit, which every server holds.
    """
    store = Store(cluster)
    store.back_up("backup")
    await rotator_of(cluster).rotate()
    root = (await cluster.document()).current
    commit = signed_commit(root)
    await cluster.clients[0].push(NOTES, [commit], root)
    await cluster.in_step(path=NOTES, ids={commit.id})
    store.restore("backup")
    for member in cluster.members:
        await member.stop()
    return root, commit


async def refused_by_all(cluster: Cluster, error: type[GoatherdError]) -> None:
    def is_refused() -> bool:
        found = [refusal_of(member) for member in cluster.members]
        return all(one is not None and one.code == error.code for one in found)

    await until(is_refused)


async def test_no_command_writes_to_a_store_that_went_back_and_no_server_follows_who_does(tmp_path: Path) -> None:
    async with cluster_of(tmp_path, 2) as cluster:
        store, a = Store(cluster), cluster.stolen
        store.back_up("backup")
        await rotator_of(cluster).rotate()
        b = (await cluster.document()).current
        by_b = signed_commit(b)
        await cluster.clients[0].push(NOTES, [by_b], b)
        await cluster.in_step(path=NOTES, ids={by_b.id})
        store.back_up("later")
        store.restore("backup")
        await refused_by_all(cluster, GenerationError)

        restored = store.contents
        commands: list[Callable[[], Awaitable[object]]] = [
            rotator_of(cluster).rotate,
            rotator_of(cluster).restore,
            rotator_of(cluster).resume,
            rotator_of(cluster).abandon,
            rotator_of(cluster).retire,
            lambda: cluster.revoker().revoke(a.id, reason="stolen"),
            lambda: cluster.revoker().plan(a.id),
            Replacer(cluster.provider, "root", cluster.clients, policy=POLICY).replace,
        ]
        for command in commands:
            with pytest.raises((StoreWentBackError, ObstructedError), match="nothing was written") as caught:
                await command()
            assert "seen generation 6 of the identity, and the store holds generation 1" in str(caught.value)
            assert "--accept-identity" in caught.value.hint
            assert store.contents == restored

        # An operator goes on all the same, from a machine that knows of no server: twice, past the servers' generation.
        for _ in range(2):
            await rotator_of(cluster, listed=False).rotate()
        assert (await cluster.document()).find_root(b.id) is None
        assert (await cluster.document()).generation > document_of(cluster.members[0]).generation
        await refused_by_all(cluster, ForkedIdentityError)
        assert [member.root for member in cluster.members] == [b.id, b.id], "the root that had been signing is gone"
        with pytest.raises(StoreWentBackError, match="another generation 6"):
            await rotator_of(cluster).rotate()

        survey = await rotator_of(cluster).survey()
        assert any("another generation 6" in one.text for one in survey.obstacles)

        # The first way out: the later state.
        store.restore("later")
        await until(lambda: not any(refusal_of(member) for member in cluster.members))
        report = await rotator_of(cluster).rotate()
        assert report.outcome.value == "rotated"
        assert {member.root for member in cluster.members} == {report.current_id}


async def test_the_older_identity_can_be_accepted_on_every_server_and_nothing_that_was_signed_since_is_lost(
    tmp_path: Path,
) -> None:
    async with cluster_of(tmp_path, 2) as cluster:
        a = cluster.stolen
        _, by_b = await lose_a_rotation(cluster)
        with pytest.raises(GenerationError, match="went back from 6 to 1"):
            await cluster.members[0].start()
        for member in cluster.members:
            await member.start(accept_identity=True)
        assert {member.root for member in cluster.members} == {a.id}
        report = await rotator_of(cluster).rotate()
        assert {member.root for member in cluster.members} == {report.current_id}
        for member in cluster.members:
            assert member.server is not None
            pool = member.server.database().pool
            held = list(member.server.database().engine.get_repository(NOTES))
            assert {commit.id for commit in held} == {by_b.id}
            assert pool.verify_commits(held) == [None]


async def test_a_root_that_was_lost_with_the_later_state_can_be_revoked_once_the_older_one_is_accepted(
    tmp_path: Path,
) -> None:
    """The identity does not list the root; servers trust it because the previous root has introduced it."""
    async with cluster_of(tmp_path, 2) as cluster:
        a = cluster.stolen
        b, by_b = await lose_a_rotation(cluster)
        for member in cluster.members:
            await member.start(accept_identity=True)
        assert {member.root for member in cluster.members} == {a.id}
        await cluster.in_step(path=NOTES, ids={by_b.id})

        report = await cluster.revoker().revoke(b.id, reason="who has its private key is not known")

        assert (report.is_complete, report.current_id) == (True, a.id)
        assert (await cluster.document()).revoked_ids == {b.id}
        later = signed_commit(b)
        for client in cluster.clients:
            with pytest.raises(NodeRefusedError):
                await client.push(NOTES, [later], b)
        await cluster.in_step(path=NOTES, ids={by_b.id})


async def test_no_command_goes_on_from_a_backup_of_before_a_revocation(tmp_path: Path) -> None:
    """The servers reject the only root of that backup, so it contains nothing that they trust."""
    async with cluster_of(tmp_path, 2) as cluster:
        store, a = Store(cluster), cluster.stolen
        store.back_up("backup")
        assert (await cluster.revoker().revoke(a.id, reason="stolen")).is_complete
        later = {member.root for member in cluster.members}
        store.back_up("later")
        store.restore("backup")
        await refused_by_all(cluster, GenerationError)
        restored = store.contents
        commands: list[Callable[[], Awaitable[object]]] = [
            rotator_of(cluster).rotate,
            rotator_of(cluster).resume,
            rotator_of(cluster).retire,
            lambda: cluster.revoker().revoke(a.id, reason="stolen"),
            Replacer(cluster.provider, "root", cluster.clients, policy=POLICY).replace,
        ]
        for command in commands:
            with pytest.raises((StoreWentBackError, ObstructedError), match="and the store holds generation 1"):
                await command()
            assert store.contents == restored
        survey = await rotator_of(cluster).survey()
        assert not any("another identity" in one.text for one in survey.obstacles)
        store.restore("later")
        await until(lambda: not any(refusal_of(member) for member in cluster.members))
        assert {member.root for member in cluster.members} == later


async def test_one_server_that_lies_about_the_store_is_overruled_by_name(tmp_path: Path) -> None:
    async with cluster_of(tmp_path, 2) as cluster:
        liar, honest = cluster.clients
        identity = liar.identity

        async def lie() -> ServerIdentity | None:
            answer = await identity()
            return None if answer is None else replace(answer, generation=2**53 - 1)

        liar.identity = lie  # type: ignore[method-assign]
        before = await cluster.document()
        with pytest.raises(StoreWentBackError, match=liar.base_url):
            await rotator_of(cluster).rotate()
        with pytest.raises(StoreWentBackError, match=liar.base_url):
            await cluster.revoker().plan(before.current.id)
        assert await cluster.document() == before
        distrust = frozenset({liar.base_url})
        report = await rotator_of(cluster, distrust=distrust).rotate()
        assert report.outcome.value == "rotated"
        assert honest.base_url not in distrust


async def test_a_store_that_is_restored_in_the_middle_of_a_rotation_ends_it(tmp_path: Path) -> None:
    async with cluster_of(tmp_path, 2) as cluster:
        store = Store(cluster)
        store.back_up("backup")
        rotator = rotator_of(cluster, store_patience=2 * SECOND)
        push = cluster.clients[0].push

        async def restored_meanwhile(*arguments: object, **options: object) -> object:
            store.restore("backup")
            return await push(*arguments, **options)  # type: ignore[arg-type]

        cluster.clients[0].push = restored_meanwhile  # type: ignore[assignment, method-assign]
        with pytest.raises((StoreWentBackError, GenerationError, NotAdoptedError)):
            await rotator.rotate()
        assert {member.root for member in cluster.members} == {cluster.stolen.id}
