"""Direct mode on real servers: a signer makes each signature of the root, and can fail, hang or sign wrongly."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from goatherd import remote_keys
from goatherd.cluster.client import NodeClient
from goatherd.crypto import PrivateKey
from goatherd.errors import IllegalStepError, NodeRefusedError, NotAdoptedError, ObstructedError
from goatherd.identity.session import OwnedSession
from goatherd.operations.workload import Workload
from goatherd.plugins import policy_text
from goatherd.remote_keys import RootSigners
from goatherd.revocation.revoker import Revoker
from goatherd.rotation.anchor_keys import AnchorChoice
from goatherd.rotation.machine import Phase, Policy
from goatherd.rotation.obstacles import ObstacleKind
from goatherd.signers.local import LocalSigner
from tests.deadlines import ADOPTION, ANSWER, HANG
from tests.docs.http_answers import IDENTITY
from tests.fakes.openbao import WHY_SKIPPED, BaoServer, find_bao
from tests.unit.cli.json_documents import JSONDocuments
from tests.unit.node.nodes import signed_commit
from tests.waiting import until

from .herd import Herd, herd
from .test_rotation_under_load import rotator_of

BAO = find_bao()
NOTES, SESSIONS = "/data/notes", "/sys/sessions"
pytestmark = pytest.mark.slow


@dataclass
class Faults:
    """The present fault of every signer of the scheme ``local``."""

    is_held: bool = False
    is_lying: bool = False
    waiting: int = 0


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Faults:
    monkeypatch.setenv("GOATHERD_SIGNER_SEAL_KEY", bytes(range(32)).hex())
    found, sign, other = Faults(), LocalSigner.sign, PrivateKey.generate()

    async def sign_with_faults(self: LocalSigner, text: bytes) -> bytes:
        found.waiting += 1
        while found.is_held:
            await asyncio.sleep(0.01)
        found.waiting -= 1
        return other.sign(text) if found.is_lying else await sign(self, text)

    monkeypatch.setattr(LocalSigner, "sign", sign_with_faults)
    return found


@pytest.fixture(autouse=True)
def signers_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_keys, "TIMEOUT", timedelta(seconds=HANG))
    monkeypatch.setattr("goatherd.signers.transit.signer.REQUEST_TIMEOUT", HANG)


async def new_key(path: Path) -> str:
    uri = f"local:{path}"
    await LocalSigner.from_uri(uri).create_key()
    return uri


@contextlib.asynccontextmanager
async def clients_of(cluster: Herd) -> AsyncIterator[list[NodeClient]]:
    """Yield clients that wait longer for a session than a server waits for the signature on it."""
    async with contextlib.AsyncExitStack() as stack:
        yield [await stack.enter_async_context(NodeClient(url, timeout=ADOPTION)) for url in cluster.urls]


async def held_by(client: NodeClient, user: OwnedSession) -> set[str]:
    return {raw["id"] for raw in await client.pull(NOTES, user)}


async def health_of(cluster: Herd, number: int = 0) -> dict[str, Any]:
    import httpx2

    async with httpx2.AsyncClient(trust_env=False, timeout=HANG) as http:
        answer: dict[str, Any] = (await http.get(f"{cluster.urls[number]}/goatherd/v1/health")).json()
    return answer


async def go_direct(cluster: Herd, uri: str, **options: Any) -> None:
    async with RootSigners([uri]) as signers, rotator_of(cluster, signers=signers) as rotator:
        async with asyncio.timeout(HANG):
            while (await rotator.plan(anchor=AnchorChoice(signer=uri, is_direct=True))).obstacles:
                await asyncio.sleep(0.05)  # the servers check their signers
        await rotator.rotate(anchor=AnchorChoice(signer=uri, is_direct=True), **options)


async def test_a_cluster_enters_direct_mode_replaces_the_key_and_leaves_it_twice_under_load(
    tmp_path: Path, faults: Faults
) -> None:
    first, second = await new_key(tmp_path / "first.json"), await new_key(tmp_path / "second.json")
    third = await new_key(tmp_path / "third.json")
    async with herd(tmp_path, count=2, root_signers=[first, second, third]) as cluster:
        load = Workload(cluster.urls, clients=3)
        async with (
            load,
            RootSigners([first, second, third]) as signers,
            rotator_of(cluster, signers=signers) as rotator,
        ):
            began = load.now()
            await go_direct(cluster, first)
            document = await cluster.document()
            assert document.is_direct
            assert document.current.is_remote
            with pytest.raises(IllegalStepError, match="not renewed"):
                await rotator.rotate()
            await rotator.rotate(anchor=AnchorChoice(leaves_direct=True))
            working = await cluster.document()
            assert not working.is_direct
            assert working.anchor == document.anchor
            await rotator.rotate(anchor=AnchorChoice(signer=second, is_direct=True))
            await rotator.rotate(anchor=AnchorChoice(signer=third, is_direct=True), to_phase=Phase.ACTIVATED)
            await rotator.abandon()
            assert (await cluster.document()).current.id != document.current.id
            assert (await cluster.document()).is_direct
            await rotator.rotate(anchor=AnchorChoice(is_removed=True))
            async with asyncio.timeout(HANG):
                while load.window(began).requests <= 50:
                    await asyncio.sleep(0.05)
            await load.stop()
            audit = await load.audit([cluster.first.session], timeout=ADOPTION)
        last, window = await cluster.document(), load.window(began)
        used = [server.database().pool.current.id for server in cluster.servers]
    assert window.reasons == {}
    assert window.requests > 50
    assert audit.lost == {}
    assert audit.unverifiable == ()
    assert last.anchor is None
    assert used == [last.current.id] * 2


async def test_a_rotation_into_direct_mode_does_not_begin_while_a_server_cannot_sign(
    tmp_path: Path, faults: Faults
) -> None:
    uri, other = await new_key(tmp_path / "root.json"), await new_key(tmp_path / "other.json")
    choice = AnchorChoice(signer=uri, is_direct=True)
    async with herd(tmp_path, count=1, root_signers=[other]) as cluster, rotator_of(cluster) as rotator:
        before = await cluster.document()
        with pytest.raises(ObstructedError) as caught:
            await rotator.rotate(anchor=choice)
        assert {one.kind for one in caught.value.obstacles} == {ObstacleKind.CANNOT_SIGN}
        (obstacle,) = (await rotator.plan(anchor=choice)).obstacles
        assert cluster.urls[0] in obstacle
        assert await cluster.document() == before


async def test_a_published_root_does_not_sign_while_a_server_cannot_sign_with_it(
    tmp_path: Path, faults: Faults
) -> None:
    uri = await new_key(tmp_path / "root.json")
    async with herd(tmp_path, count=1, root_signers=[uri]) as cluster:
        await go_direct(cluster, uri, to_phase=Phase.PUBLISHED)
        signers: Any = cluster.servers[0]._root_signers
        signers._signers, kept = (), signers._signers  # as after a restart without the option
        async with rotator_of(cluster, timedelta(seconds=1)) as rotator:
            with pytest.raises(NotAdoptedError):
                await rotator.resume()
        document = await cluster.document()
        signers._signers = kept
    assert (document.current.id, document.rotation) == (cluster.first.id, None)


async def test_while_the_signer_is_away_clients_go_on_and_everything_else_resumes_afterwards(
    tmp_path: Path, faults: Faults
) -> None:
    key = tmp_path / "root.json"
    uri = await new_key(key)
    async with herd(tmp_path, count=2, root_signers=[uri]) as cluster, clients_of(cluster) as (one, two):
        user, _ = await one.create_session()
        await go_direct(cluster, uri)
        new, _ = await two.create_session()
        assert (await health_of(cluster))["status"] == "ok"

        key.rename(tmp_path / "away.json")
        with pytest.raises(NodeRefusedError) as caught:
            await one.create_session()
        assert caught.value.status == 503
        note = signed_commit(user)
        await one.push(NOTES, [note], user)
        assert await held_by(one, user) == {note.id}
        assert (await health_of(cluster))["reason"] == "signer.not_found"
        identity = await one.identity()
        assert identity is not None
        assert identity.signing_problem == "signer.not_found"

        (tmp_path / "away.json").rename(key)

        async def is_synchronized() -> bool:
            return await held_by(two, new) == {note.id}

        await until(is_synchronized)

        async def is_well() -> bool:
            return all([(await health_of(cluster, number))["status"] == "ok" for number in (0, 1)])

        await until(is_well)
        await one.create_session()


async def test_a_signer_that_hangs_delays_no_poll_and_shows_no_unmerged_item(tmp_path: Path, faults: Faults) -> None:
    uri = await new_key(tmp_path / "root.json")
    async with herd(tmp_path, count=1, root_signers=[uri]) as cluster, clients_of(cluster) as (client,):
        user, _ = await client.create_session()
        reader, _ = await client.create_session()
        await go_direct(cluster, uri)
        faults.is_held = True
        asking = [asyncio.create_task(client.create_session()) for _ in range(3)]

        async def is_asked() -> bool:
            return faults.waiting >= 3

        await until(is_asked)
        creations = [signed_commit(user, key="same"), signed_commit(reader, key="same")]
        for creation, author in zip(creations, (user, reader), strict=True):
            await client.push(NOTES, [creation], author)
        for _ in range(5):
            assert await held_by(client, reader) == {creations[0].id}, "the second one comes with the merge of both"
        assert not any(task.done() for task in asking)
        faults.is_held = False
        await asyncio.gather(*asking)

        async def is_merged() -> bool:
            return len(await held_by(client, reader)) == 3

        await until(is_merged)


async def test_a_wrong_signature_is_never_used(tmp_path: Path, faults: Faults) -> None:
    uri = await new_key(tmp_path / "root.json")
    async with herd(tmp_path, count=1, root_signers=[uri]) as cluster, clients_of(cluster) as (client,):
        user, _ = await client.create_session()
        await go_direct(cluster, uri)
        faults.is_lying = True
        before = {raw["id"] for raw in await client.pull(SESSIONS, user)}
        with pytest.raises(NodeRefusedError, match="503"):
            await client.create_session()
        assert {raw["id"] for raw in await client.pull(SESSIONS, user)} == before
        assert (await health_of(cluster))["reason"] == "signer.invalid_signature"


async def test_in_direct_mode_the_signer_revokes_an_earlier_root_and_reissues_its_sessions(
    tmp_path: Path, faults: Faults
) -> None:
    uri = await new_key(tmp_path / "root.json")
    async with herd(tmp_path, count=2, root_signers=[uri]) as cluster, clients_of(cluster) as nodes:
        user, _ = await nodes[0].create_session()
        note = signed_commit(user)
        await nodes[0].push(NOTES, [note], user)
        await go_direct(cluster, uri)
        policy = Policy(adoption=ADOPTION, settle=ADOPTION, node_timeout=ANSWER)
        current = (await cluster.document()).current.id
        async with RootSigners([uri]) as signers:
            revoker = Revoker(cluster.provider, "root", nodes, policy=policy, signers=signers)
            with pytest.raises(IllegalStepError, match="direct mode"):
                await revoker.revoke(current, reason="a test")
            report = await revoker.revoke(cluster.first.id, reason="stolen")
        assert report.is_complete
        after = await cluster.document()
        assert after.revoked_ids == {cluster.first.id}
        assert after.current.id == current
        with pytest.raises(NodeRefusedError, match="403"):
            await nodes[0].pull(NOTES, cluster.first)
        assert await held_by(nodes[1], user) == {note.id}


@pytest.fixture
def bao() -> Iterator[BaoServer]:
    assert BAO is not None
    with BaoServer(BAO) as running:
        running.ask("POST", "sys/mounts/transit", {"type": "transit"})
        yield running


@pytest.mark.skipif(BAO is None, reason=WHY_SKIPPED)
async def test_three_servers_sign_with_a_key_in_openbao_and_the_right_to_sign_only(
    tmp_path: Path, bao: BaoServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"transit://127.0.0.1:{bao.port}/transit/root?tls=off"
    bao.ask("POST", "transit/keys/root", {"type": "ecdsa-p384"})
    monkeypatch.setenv("VAULT_TOKEN", bao.token(policy_text("transit", "signer", uri)))
    async with herd(tmp_path, count=3, root_signers=[uri]) as cluster:
        await go_direct(cluster, uri)
        async with Workload(cluster.urls, clients=3) as load:
            began = load.now()
            await asyncio.sleep(1)
            await load.stop()
            document = await cluster.document()
            audit = await load.audit([cluster.first.session], timeout=ADOPTION)
            window = load.window(began)
        identities = [server.database().describe_identity() for server in cluster.servers]
        for identity in identities:
            JSONDocuments().check_fields("identity", IDENTITY, identity)
    assert window.reasons == {}
    assert audit.lost == {}
    assert audit.unverifiable == ()
    assert audit.by_signer[document.current.id] >= 3
    assert [one["signingProblem"] for one in identities] == [None] * 3
