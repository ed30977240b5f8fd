"""Five servers under load whose roots an anchor endorses: a key in OpenBao, and then one in SoftHSM2."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from goatherd.clock import SystemClock
from goatherd.errors import IllegalStepError, NodeRefusedError, UnanchoredIdentityError
from goatherd.identity.document import encode_document, sign_document
from goatherd.identity.root_signatures import endorse_root
from goatherd.identity.session import ROOT_OWNER, OwnedSession
from goatherd.ids import new_id
from goatherd.operations.workload import Workload
from goatherd.plugins import policy_text
from goatherd.providers.values import CURRENT
from goatherd.remote_keys import RootSigners
from goatherd.revocation.revoker import Revoker
from goatherd.rotation.anchor_keys import AnchorChoice
from goatherd.rotation.policy import Policy
from goatherd.rotation.replacement import Replacer
from goatherd.rotation.rotator import Rotator
from goatherd.signers.base import KeyCreator, Signer
from goatherd.signers.local import LocalSigner
from goatherd.signers.transit.address import parse_uri
from goatherd.signers.transit.signer import TransitSigner
from goatherd.signers.verified import VerifiedSigner
from tests.deadlines import ADOPTION, ANSWER, HANG
from tests.fakes.openbao import WHY_SKIPPED, BaoServer, find_bao
from tests.fakes.softhsm import PIN, SoftToken, find_softhsm
from tests.fakes.softhsm import WHY_SKIPPED as WHY_NO_TOKEN
from tests.unit.node.nodes import session_commit, signed_commit
from tests.waiting import until

from .goatclient import GoatClient
from .herd import herd
from .test_clients_through_rotation import LIFE, herd_of
from .test_revocation import NOTES, SESSIONS, back_dated, cluster_of
from .test_rotation_under_load import rotator_of

BAO, MODULE = find_bao(), find_softhsm()
pytestmark = pytest.mark.deep


class Counted:
    """Opens signers of one platform, and counts their signatures."""

    def __init__(self) -> None:
        self.opened: list[VerifiedSigner] = []
        self.configured = RootSigners()

    def open(self, uri: str) -> VerifiedSigner:
        signer = VerifiedSigner(self.make(uri))
        self.configured.add(uri)
        self.opened.append(signer)
        return signer

    def make(self, uri: str) -> Signer:
        raise NotImplementedError

    @property
    def signed(self) -> int:
        return sum(count for one in self.opened for (call, _), count in one.call_counts.ended.items() if call == "sign")


class Transit(Counted):
    """Keys of an OpenBao server, with a token that may sign with them and do nothing else."""

    def __init__(self, server: BaoServer, *keys: str) -> None:
        super().__init__()
        self.uris = [f"transit://127.0.0.1:{server.port}/transit/{key}?tls=off" for key in keys]
        for key in keys:
            server.ask("POST", f"transit/keys/{key}", {"type": "ecdsa-p384"})
        self._token = server.token(*(policy_text("transit", "signer", uri) for uri in self.uris))

    def make(self, uri: str) -> Signer:
        return TransitSigner(parse_uri(uri), environment={"VAULT_TOKEN": self._token})


class Token(Counted):
    """Keys of a SoftHSM2 token."""

    def make(self, uri: str) -> Signer:
        from goatherd.signers.pkcs11.address import parse_uri as parse_token_uri
        from goatherd.signers.pkcs11.signer import PKCS11Signer

        environment = {"GOATHERD_PKCS11_PIN": PIN, "GOATHERD_PKCS11_MODULE": MODULE or ""}
        return PKCS11Signer(parse_token_uri(uri, environment=environment), environment=environment)


class Local(Counted):
    """Keys in sealed files."""

    def make(self, uri: str) -> Signer:
        return LocalSigner.from_uri(uri)


@pytest.fixture
def bao() -> Iterator[BaoServer]:
    assert BAO is not None
    with BaoServer(BAO) as running:
        running.ask("POST", "sys/mounts/transit", {"type": "transit"})
        yield running


async def check_rotations(
    tmp_path: Path, signers: Counted, choices: list[AnchorChoice], *, servers: int, clients: int
) -> list[int]:
    """Rotate under load; return how often the signers signed for each rotation."""
    clock, spent = SystemClock(), list[int]()
    async with herd(tmp_path, count=servers) as cluster, contextlib.AsyncExitStack() as stack:
        load = await stack.enter_async_context(Workload(cluster.urls, clients=clients))
        rotator = await stack.enter_async_context(
            rotator_of(cluster, open_signer=signers.open, signers=signers.configured)
        )
        began = load.now()
        for choice in choices:
            before = signers.signed
            await rotator.rotate(anchor=choice)
            spent.append(signers.signed - before)
        await clock.sleep(ADOPTION / 100)
        await load.stop()
        audit = await load.audit([cluster.first.session], timeout=ADOPTION)
        document, window = await cluster.document(), load.window(began)
        used = [server.database().pool.current.id for server in cluster.servers]
    assert window.reasons == {}
    assert window.requests > 50
    assert audit.lost == {}
    assert audit.unverifiable == ()
    assert used == [document.current.id] * servers
    assert document.anchor is not None
    return spent


@pytest.mark.skipif(BAO is None, reason=WHY_SKIPPED)
async def test_an_anchor_in_openbao_renews_three_times_and_is_replaced_under_load(
    tmp_path: Path, bao: BaoServer
) -> None:
    signers = Transit(bao, "first", "second")
    first, second = (AnchorChoice(signer=uri) for uri in signers.uris)
    choices = [first, AnchorChoice(), AnchorChoice(), AnchorChoice(), second]
    spent = await check_rotations(tmp_path, signers, choices, servers=5, clients=6)
    assert max(spent[1:4]) <= 2


@contextlib.asynccontextmanager
async def token_with_key(folder: Path) -> AsyncIterator[tuple[Token, str]]:
    """Make a token with a key in it; yield its signers and the key's URI."""
    pytest.importorskip("pkcs11")
    folder.mkdir()
    with SoftToken(folder) as token:
        token.make_token("goatdb")
        signers, uri = Token(), "pkcs11:token=goatdb;object=anchor"
        async with signers.make(uri) as plugin:  # the next test makes a token, when no session may be open
            assert isinstance(plugin, KeyCreator)
            await plugin.create_key()
        yield signers, uri


@pytest.mark.skipif(MODULE is None, reason=WHY_NO_TOKEN)
async def test_an_anchor_in_a_token_is_added_and_renews_under_load(tmp_path: Path) -> None:
    async with token_with_key(tmp_path / "token") as (signers, uri):
        spent = await check_rotations(
            tmp_path, signers, [AnchorChoice(signer=uri), AnchorChoice()], servers=2, clients=2
        )
    assert spent[1] <= 2


@pytest.mark.skipif(MODULE is None, reason=WHY_NO_TOKEN)
async def test_a_stolen_working_root_is_revoked_by_one_signature_of_a_token_and_its_thief_gets_nothing(
    tmp_path: Path,
) -> None:
    async with token_with_key(tmp_path / "token") as (signers, uri), cluster_of(tmp_path, 2) as cluster:
        options: Any = {"policy": cluster.revoker().policy, "open_signer": signers.open, "signers": signers.configured}
        await Rotator(cluster.provider, "root", cluster.clients, **options).rotate(anchor=AnchorChoice(signer=uri))
        document = await cluster.document()
        stolen, user = document.current, (await cluster.clients[0].create_session())[0]
        oldest = [signed_commit(stolen), signed_commit(user)]
        await cluster.push_until_held(cluster.members[0], oldest, stolen)
        await cluster.in_step(path=NOTES, ids={one.id for one in oldest})
        thief = OwnedSession.generate(session_id=new_id(), owner=ROOT_OWNER, now_ms=SystemClock().now_ms())

        # The thief, who can also write to the store, names a root of their own.
        forged = endorse_root(stolen, thief.session, SystemClock().now_ms())
        version = (await cluster.provider.read("root")).version
        taken = replace(
            document,
            generation=document.generation + 1,
            current=thief,
            roots=(thief.session, *document.roots),
            endorsements=(*document.endorsements, forged),
            anchor=None,
            anchor_changes=(),
        )
        await cluster.provider.write(
            "root",
            encode_document(sign_document(taken, SystemClock().now_ms())),
            label=CURRENT,
            expected=version.id,
        )
        for member in cluster.members:
            assert member.server is not None
            await until(lambda member=member: member.server.database().status.is_degraded)  # type: ignore[misc]
            refusal = member.server.database().status.last_refusal
            assert refusal is not None
            assert refusal.code == UnanchoredIdentityError.code
        assert {member.root for member in cluster.members} == {stolen.id}
        version = (await cluster.provider.read("root")).version
        await cluster.provider.write("root", encode_document(document), label=CURRENT, expected=version.id)

        before = signers.signed
        nodes = cluster.clients
        report = await Revoker(cluster.provider, "root", nodes, **options).revoke(stolen.id, reason="stolen")

        assert report.is_complete
        assert signers.signed - before == 1
        after = await cluster.document()
        assert after.anchor == document.anchor
        assert {member.root for member in cluster.members} == {after.current.id}
        for client in cluster.clients:
            with pytest.raises(NodeRefusedError, match="403"):
                await client.push(NOTES, back_dated(stolen), stolen)  # type: ignore[arg-type]
            await client.push(SESSIONS, [session_commit(stolen, thief.session)], user)
        mine = signed_commit(user)
        await cluster.clients[1].push(NOTES, [mine], user)
        await cluster.in_step(path=NOTES, ids={one.id for one in (*oldest, mine)})
        for member in cluster.members:
            assert member.server is not None
            assert thief.id not in member.server.database().pool.root_ids
            assert len(member.holds(NOTES)) == 3


async def test_an_expired_working_root_is_replaced_by_one_signature_of_the_anchor_on_real_servers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOATHERD_SIGNER_SEAL_KEY", bytes(range(32)).hex())
    signers, uri = Local(), f"local:{tmp_path}/anchor.json"
    plugin = signers.make(uri)
    assert isinstance(plugin, KeyCreator)
    await plugin.create_key()
    policy = Policy(adoption=ADOPTION, settle=ADOPTION, node_timeout=ANSWER, lifetime=LIFE, working_lifetime=LIFE)
    async with herd_of(tmp_path) as servers, servers.nodes() as nodes:
        options: Any = {
            "policy": policy,
            "clock": servers.clock,
            "open_signer": signers.open,
            "signers": signers.configured,
        }
        await Rotator(servers.provider, "root", nodes, **options).rotate(anchor=AnchorChoice(signer=uri))
        expired = (await servers.document()).current
        client = await GoatClient.born(servers.urls[0], servers.clock)
        oldest = await client.write("the oldest")
        await client.sync()
        await servers.in_step()

        servers.clock.ahead += 2 * LIFE
        with pytest.raises(IllegalStepError):
            await Rotator(servers.provider, "root", nodes, **options).rotate()
        before = signers.signed
        report = await Replacer(servers.provider, "root", nodes, **options).replace()

        assert report.is_complete, [*report.nodes]
        assert signers.signed - before == 1
        document = await servers.document()
        assert document.anchor is not None
        assert document.anchor is not None
        assert {one.database().pool.current.id for one in servers.servers} == {document.current.id} != {expired.id}
        new = await GoatClient.born(servers.urls[1], servers.clock)
        latest = await new.write("by a session that the new working root has introduced")
        for each in (new, client):
            async with asyncio.timeout(HANG):
                while each.unverified([oldest, latest]):
                    await each.sync()
