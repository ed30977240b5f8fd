"""The replacement of an expired root: in any state of the store and of the servers, and only if it has expired."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from goatherd.cluster.client import NodeClient
from goatherd.errors import IllegalStepError, NodeUnreachableError, ObstructedError, UnavailableError
from goatherd.identity.document import IdentityDocument, Phase, encode_document
from goatherd.identity.session import ROOT_OWNER, OwnedSession
from goatherd.identity.transitions import create_document, prepare_rotation, with_phase
from goatherd.ids import new_id
from goatherd.node import Server
from goatherd.providers.values import STABLE
from goatherd.rotation.events import Decided, Event, ExpiredRootReplaced
from goatherd.rotation.machine import Policy, Wait
from goatherd.rotation.replacement import Replacer
from goatherd.settings.store import CloudSecretSettings
from tests.unit.node.nodes import SECRET, document_of, now_ms, root
from tests.unit.revocation.clusters import Cluster, Counting, Faltering, client_of, cluster_of

SECOND = timedelta(seconds=1)
DAY = timedelta(days=1)
POLICY = Policy(adoption=60 * SECOND)


def expired_root() -> OwnedSession:
    made_ms = now_ms() - 40 * DAY // timedelta(milliseconds=1)
    return OwnedSession.generate(session_id=new_id(), owner=ROOT_OWNER, now_ms=made_ms, lifetime=39 * DAY)


def expired_identity(a: OwnedSession) -> IdentityDocument:
    return create_document(a, now_ms() - 40 * DAY // timedelta(milliseconds=1))


@contextlib.asynccontextmanager
async def servers_of(top: Path, document: IdentityDocument, count: int = 2) -> AsyncIterator[Cluster]:
    """Give servers that read the store often: an expired root cannot notify them."""
    async with cluster_of(top, document, 0) as cluster:
        for number in range(count):
            settings = CloudSecretSettings(cluster.provider, SECRET, refresh_interval=SECOND / 5)
            server = Server(top / f"server-{number}", settings, debug=True)
            await cluster.stack.enter_async_context(server)
            cluster.servers.append(server)
            cluster.nodes.append(client_of(server, f"http://node-{number}"))
        yield cluster


def replacer(cluster: Cluster, **options: object) -> Replacer:
    return Replacer(cluster.provider, SECRET, cluster.nodes, policy=POLICY, **options)  # type: ignore[arg-type]


@pytest.mark.slow
async def test_a_replacement_from_one_end_to_the_other(tmp_path: Path) -> None:
    a, events = expired_root(), list[Event]()
    async with servers_of(tmp_path, expired_identity(a)) as cluster:
        report = await replacer(cluster, on_event=events.append).replace()

        document = await cluster.document()
        assert report.is_complete
        assert report.is_written
        assert (report.expired_id, report.current_id) == (a.id, document.current.id)
        assert {server.database().pool.current.id for server in cluster.servers} == {document.current.id}
        assert document.revoked == ()
        stable = await cluster.provider.read(SECRET, STABLE)
        assert stable.version.id == (await cluster.provider.read(SECRET)).version.id
        replaced = [event for event in events if isinstance(event, ExpiredRootReplaced)]
        assert [(one.from_id, one.to_id) for one in replaced] == [(a.id, document.current.id)]

        again = await replacer(cluster).replace()
        assert (again.is_complete, again.is_written) == (True, False)
        assert (await cluster.document()).generation == document.generation


@pytest.mark.slow
async def test_a_server_that_is_away_is_named_and_followed_by_the_next_run(tmp_path: Path) -> None:
    class Away(NodeClient):
        async def batch_sync(self, *arguments: object, **options: object) -> list[dict[str, object]]:
            raise NodeUnreachableError("connection refused")

        async def identity(self) -> None:
            raise NodeUnreachableError("connection refused")

    async with servers_of(tmp_path, expired_identity(expired_root())) as cluster:
        there, back = cluster.nodes
        away = client_of(cluster.servers[1], back.base_url, Away)
        short, events = Policy(adoption=3 * SECOND), list[Event]()
        report = await Replacer(cluster.provider, SECRET, [there, away], policy=short, on_event=events.append).replace()
        assert [report.has_followed(node) for node in report.nodes] == [True, False]
        assert not report.is_complete
        waits = [event.action for event in events if isinstance(event, Decided) and isinstance(event.action, Wait)]
        assert (waits[-1].nodes, waits[-1].reason) == ((back.base_url,), "signs with the new root")
        assert (await replacer(cluster).replace()).is_complete


@pytest.mark.slow
async def test_the_next_root_of_a_rotation_in_progress_takes_over_and_keeps_its_introduction(tmp_path: Path) -> None:
    a, b = expired_root(), root("root-b")
    began_ms = a.session.expiration_ms - 60_000
    document = prepare_rotation(
        expired_identity(a), b, now_ms=began_ms, rotation_id="r1", started_by="ops", stable_version="1"
    )
    async with servers_of(tmp_path, with_phase(document, Phase.PUBLISHED, began_ms)) as cluster:
        report = await replacer(cluster).replace()
        assert report.is_complete
        assert report.current_id == b.id
        after = await cluster.document()
        assert (after.rotation, after.next, after.endorsements) == (None, None, document.endorsements)


async def test_a_root_that_has_not_expired_is_not_replaced(tmp_path: Path) -> None:
    async with servers_of(tmp_path, document_of(root("root-a"))) as cluster:
        before = (await cluster.document()).generation
        with pytest.raises(IllegalStepError, match="has not expired"):
            await replacer(cluster).replace()
        assert (await cluster.document()).generation == before


async def test_nothing_is_written_where_a_listed_server_belongs_to_another_identity(tmp_path: Path) -> None:
    async with (
        servers_of(tmp_path / "one", expired_identity(expired_root()), 1) as cluster,
        servers_of(tmp_path / "two", expired_identity(expired_root()), 1) as other,
    ):
        before = (await cluster.document()).generation
        cluster.nodes.append(client_of(other.servers[0], "http://stranger"))
        with pytest.raises(ObstructedError, match="http://stranger belongs to another identity"):
            await replacer(cluster).replace()
        assert (await cluster.document()).generation == before


@pytest.mark.slow
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_a_store_that_fails_every_call_once_ends_no_replacement(tmp_path: Path, after: bool) -> None:
    a, events, provider = expired_root(), list[Event](), Faltering()
    async with provider:
        await provider.create(SECRET, encode_document(expired_identity(a)))
        provider.is_faltering, provider.after = True, after
        report = await Replacer(provider, SECRET, [], policy=POLICY, on_event=events.append).replace()
        provider.is_faltering = False
        assert (report.is_complete, report.is_written, report.expired_id) == (True, True, a.id)
        assert provider.failures > 4
        assert [event.to_id for event in events if isinstance(event, ExpiredRootReplaced)] == [report.current_id]
        stable = await provider.read(SECRET, STABLE)
        assert stable.version.id == (await provider.read(SECRET)).version.id


@pytest.mark.slow
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_whichever_call_to_the_store_fails_the_next_run_finishes(tmp_path: Path, after: bool) -> None:
    for call in range(1, 12):
        a = expired_root()
        provider = Counting()
        async with provider:
            await provider.create(SECRET, encode_document(expired_identity(a)))
            provider.fails_at, provider.after = call, after
            one = Replacer(provider, SECRET, [], policy=POLICY)
            failed = False
            try:
                await one.replace()
            except UnavailableError:
                failed = True
            provider.fails_at = 0
            report = await one.replace()
            assert report.is_complete
            assert report.expired_id == a.id
            if not failed:
                assert call > 4
                return
    raise AssertionError("a replacement takes fewer calls than that")
