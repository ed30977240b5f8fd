"""A thousand rotations: the identity document stays small, and nothing that was ever signed is lost.

Real are the rotator, the identity, the trust pools, the store's interface and the settings of the server that comes
back. Simulated are the clock and the wire: the nodes answer in this process, and carry only the latest commits to each
other at each tick, as synchronized servers do.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from goatherd.errors import SuccessionError
from goatherd.identity.document import IdentityDocument, Phase, encode_document
from goatherd.identity.session import OwnedSession
from goatherd.identity.session_commits import claims_root
from goatherd.identity.succession import TrustCheckpoint
from goatherd.providers.memory import MemorySecretProvider, MemoryStore
from goatherd.rotation.machine import Outcome
from goatherd.settings.base import Introductions
from goatherd.settings.store import CloudSecretSettings
from goatherd.trust import TrustPool
from goatherd.wire.commit import Commit
from goatherd.wire.messages import SyncMessage
from tests.depth import STRIDE
from tests.fakes.herd import DATA, SESSIONS, FakeClock, Herd, HerdNode, find_missing, new_message
from tests.unit.identity.make import USUAL_BYTES
from tests.unit.rotation.conftest import POLICY, document_of, rotator_for

LATEST = 30
KEPT_VERSIONS = 40
LIFETIME = timedelta(days=90)
STEADY_POLICY = replace(POLICY, lifetime=LIFETIME, grace=timedelta(days=10))


class QuickNode(HerdNode):
    """A node that looks at its latest commits only, so that a long log costs no more than a short one."""

    def _answer(self, path: str, message: SyncMessage) -> dict[str, Any]:
        self._ingest(path, message.commits)
        latest = list(self._logs[path].values())[-LATEST:]
        filter_of_latest = self._herd.filter_of([commit.id for commit in latest])
        return new_message(filter_of_latest, len(latest), find_missing(message.filter, latest))

    async def sync_with(self, peer: HerdNode) -> None:
        assert isinstance(peer, QuickNode)
        for path in self._logs:
            lacking = [one for one in list(peer._logs[path].values())[-LATEST:] if not self.holds(path, one.id)]
            self._ingest(path, [one.to_json() for one in lacking])


async def aging_herd(clock: FakeClock, provider: MemorySecretProvider) -> Herd:
    herd = await Herd.start(provider, clock=clock, nodes=0, lifetime=LIFETIME)
    document = await document_of(herd)
    herd.nodes = [QuickNode(herd, f"node-{number}", document) for number in range(2)]
    return herd


async def finish(herd: Herd, number: int) -> None:
    del number
    assert (await rotator_for(herd, policy=STEADY_POLICY).rotate()).outcome is Outcome.ROTATED


async def roll_back_every_other(herd: Herd, number: int) -> None:
    rotator = rotator_for(herd, policy=STEADY_POLICY)
    await rotator.rotate(to_phase=Phase.ACTIVATED)
    if number % 2:
        await rotator.resume()
    else:
        await rotator.abandon("not well")


async def write_note(herd: Herd, number: int) -> None:
    """Let the root that signs now introduce a client that writes one note."""
    await herd.add_clients(1, at=herd.nodes[number % 2], home=herd.nodes[number % 2])
    await herd.step()
    herd.clients[-1].connected = False


def drop_old_versions(store: MemoryStore, secret_id: str) -> None:
    """Drop old versions, as stores do that keep a limited number; otherwise each list would be as long as the test."""
    secret = store.secrets[secret_id]
    kept = {number: secret.record.versions[number] for number in sorted(secret.record.versions)[-KEPT_VERSIONS:]}
    store.secrets[secret_id] = secret.with_record(replace(secret.record, versions=MappingProxyType(kept)))


class Peer:
    """A peer that returns the root introductions in a node's ``/sys/sessions``."""

    def __init__(self, node: HerdNode, without: Callable[[Commit], bool] = lambda _: False) -> None:
        self._commits = tuple(one for one in node.commits(SESSIONS) if claims_root(one) and not without(one))

    async def __call__(self, document: IdentityDocument) -> AsyncIterator[Introductions]:
        del document
        yield Introductions(place="http://node-0", commits=self._commits)


async def join(herd: Herd, path: Path, seen: TrustCheckpoint, peer: Peer | None) -> IdentityDocument:
    """Start a server that remembers the checkpoint `seen`."""
    path.write_bytes(seen.to_bytes())
    async with CloudSecretSettings(herd.provider, herd.secret_id, seen=path, clock=herd.clock) as settings:
        settings.introductions = peer
        return (await settings.load()).document


async def check_age(herd: Herd, path: Path, seen: TrustCheckpoint, signers: int) -> None:
    document = await document_of(herd)
    fresh = OwnedSession.generate(session_id="fresh", owner=None, now_ms=herd.clock.now_ms())
    pool = TrustPool(org="localhost", current=fresh, roots=document.roots)
    pool.offer_session_commits(reversed(herd.nodes[0].commits(SESSIONS)))
    assert len(pool.root_ids) >= signers
    for repository in (SESSIONS, DATA):
        commits = herd.nodes[0].commits(repository)
        assert pool.verify_commits(commits) == [None] * len(commits)
    assert (await join(herd, path, seen, Peer(herd.nodes[0]))).current.id == document.current.id
    with pytest.raises(SuccessionError):
        await join(herd, path, seen, None)
    with pytest.raises(SuccessionError):
        await join(herd, path, seen, Peer(herd.nodes[0], without=lambda one: one.session == "root-a"))


async def age(
    tmp_path: Path, rotations: int, one: Callable[[Herd, int], Any] = finish, *, retires: bool = True
) -> None:
    clock, store = FakeClock(), MemoryStore()
    async with MemorySecretProvider(store, clock=clock) as provider:
        herd = await aging_herd(clock, provider)
        seen = TrustCheckpoint.from_document(await document_of(herd))
        for number in range(rotations):
            if number in (0, 1, rotations // 2):
                await write_note(herd, number)
            await one(herd, number)
            size = len(encode_document(await document_of(herd)))
            assert size < USUAL_BYTES, f"after rotation {number + 1}"
            herd.clock.turn(timedelta(days=20))
            if retires:
                await rotator_for(herd, policy=STEADY_POLICY).retire()
            drop_old_versions(store, herd.secret_id)
        await check_age(herd, tmp_path / "seen.json", seen, signers=rotations // 2)


@pytest.mark.slow
async def test_thirty_rotations_leave_a_small_document_and_a_server_last_seen_at_the_first_joins(
    tmp_path: Path,
) -> None:
    await age(tmp_path, 30)


@pytest.mark.deep
async def test_a_thousand_rotations_leave_a_small_document_and_a_server_last_seen_at_the_first_joins(
    tmp_path: Path,
) -> None:
    await age(tmp_path, 1000 // STRIDE, retires=False)


@pytest.mark.slow
async def test_rollbacks_in_between_change_nothing_of_that(tmp_path: Path) -> None:
    await age(tmp_path, 24, roll_back_every_other)


@pytest.mark.deep
async def test_many_rollbacks_in_between_change_nothing_of_that(tmp_path: Path) -> None:
    await age(tmp_path, 60, roll_back_every_other)
