"""A revocation against servers in this process: every step, every place to stop at, and every kind of node."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest

from goatherd.cluster.client import NodeClient
from goatherd.cluster.server_answers import HeldCommit
from goatherd.errors import (
    ConfigurationError,
    ConflictError,
    IllegalStepError,
    NodeUnreachableError,
    RotationError,
    StoreWentBackError,
    UnavailableError,
    UnsignedIdentityError,
)
from goatherd.identity import Phase
from goatherd.identity.document import IdentityDocument, decode_document, encode_document
from goatherd.identity.revocations import FrozenList, commit_digest
from goatherd.identity.session import OwnedSession
from goatherd.identity.transitions import (
    activate_rotation,
    correct_times,
    finalize_rotation,
    mark_verified,
    prepare_rotation,
    with_phase,
)
from goatherd.ids import new_id
from goatherd.node import Server
from goatherd.providers.memory import MemorySecretProvider
from goatherd.providers.values import CURRENT, STABLE, VersionState
from goatherd.revocation.revoker import Revoker
from goatherd.rotation.cross_signing import make_earlier_introduction
from goatherd.rotation.events import Event, RevocationStep, RevocationStepped, StoreTroubled
from goatherd.rotation.machine import Policy
from goatherd.rotation.rotator import Rotator
from goatherd.settings import FileSettings
from goatherd.wire.commit import Commit
from tests.unit.node.nodes import (
    SECRET,
    document_of,
    now_ms,
    root,
    session_commit,
    settings_of,
    signed_commit,
    store_of,
)

pytestmark = pytest.mark.slow

SECOND = timedelta(seconds=1)
POLICY = Policy(adoption=60 * SECOND, settle=SECOND / 5, flow_patience=SECOND / 5)
NOTES = "/data/notes"
SESSIONS = "/sys/sessions"


class Counting(MemorySecretProvider):
    """A store that goes away with its n-th call, before anything of it has happened or after it; 0 for never."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.calls = 0
        self.fails_at = 0
        self.after = False

    async def _count(self, name: str, call: Any) -> Any:
        self.calls += 1
        is_away = 0 < self.fails_at <= self.calls
        if is_away and not (self.after and self.calls == self.fails_at):
            call.close()
            raise UnavailableError("gone", provider="memory", secret_id=SECRET, operation=name)
        done = await call
        if is_away:
            raise UnavailableError("gone", provider="memory", secret_id=SECRET, operation=name)
        return done

    async def read(self, *arguments: Any, **options: Any) -> Any:
        return await self._count("read", super().read(*arguments, **options))

    async def write(self, *arguments: Any, **options: Any) -> Any:
        return await self._count("write", super().write(*arguments, **options))

    async def label(self, *arguments: Any, **options: Any) -> Any:
        return await self._count("label", super().label(*arguments, **options))

    async def destroy(self, *arguments: Any, **options: Any) -> Any:
        return await self._count("destroy", super().destroy(*arguments, **options))


class Faltering(MemorySecretProvider):
    """A store that fails every call once, before anything of it has happened or after it, its first read excepted."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.is_faltering = self.after = False
        self.failures = 0
        self._calls = -1

    async def _falter(self, name: str, call: Any) -> Any:
        self._calls += self.is_faltering
        fails = self.is_faltering and self._calls % 2 == 1
        self.failures += fails
        if fails and not self.after:
            call.close()
            raise UnavailableError("gone", provider="memory", secret_id=SECRET, operation=name)
        done = await call
        if fails:
            raise UnavailableError("gone", provider="memory", secret_id=SECRET, operation=name)
        return done

    async def read(self, *arguments: Any, **options: Any) -> Any:
        return await self._falter("read", super().read(*arguments, **options))

    async def versions(self, *arguments: Any, **options: Any) -> Any:
        return await self._falter("versions", super().versions(*arguments, **options))

    async def write(self, *arguments: Any, **options: Any) -> Any:
        return await self._falter("write", super().write(*arguments, **options))

    async def label(self, *arguments: Any, **options: Any) -> Any:
        return await self._falter("label", super().label(*arguments, **options))

    async def destroy(self, *arguments: Any, **options: Any) -> Any:
        return await self._falter("destroy", super().destroy(*arguments, **options))


class Lagging(MemorySecretProvider):
    """A store whose reads and lists show once, after each write, what was there before it."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.before: tuple[Any, Any] | None = None

    async def read(self, *arguments: Any, **options: Any) -> Any:
        before, self.before = self.before, None if self.before is None else (None, self.before[1])
        now = await super().read(*arguments, **options)
        return now if before is None or before[0] is None else before[0]

    async def versions(self, secret_id: str) -> Any:
        before, self.before = self.before, None if self.before is None else (self.before[0], None)
        now = await super().versions(secret_id)
        return now if before is None or before[1] is None else before[1]

    async def write(self, secret_id: str, value: Any, **options: Any) -> Any:
        before = (await super().read(secret_id, CURRENT), await super().versions(secret_id))
        done = await super().write(secret_id, value, **options)
        self.before = before
        return done


class Doubting(MemorySecretProvider):
    """A store that applies a write and says that it met a conflict, as one whose lists lag does."""

    async def write(self, secret_id: str, value: Any, **options: Any) -> Any:
        await super().write(secret_id, value, **options)
        raise ConflictError("not confirmed", provider="memory", secret_id=secret_id, operation="write")


class Forgetful(NodeClient):
    """A server that has lost the frozen lists."""

    async def frozen(self, digest: str) -> bytes | None:
        return None


class Meddling(NodeClient):
    """A server that gives somebody time to change the store, while it is asked what it holds of the root."""

    meddle: Callable[[], Awaitable[None]]

    async def held(self, *arguments: Any, **options: Any) -> bytes:
        await self.meddle()
        return await super().held(*arguments, **options)


class Upstream(NodeClient):
    """A server that knows nothing of ours, as GoatDB's is."""

    async def identity(self) -> None:
        return None

    async def refresh(self, signer: OwnedSession, now_ms: int | None = None) -> None:
        return None


@dataclass
class Cluster:
    """Servers in this process that are no peers of each other, and the store that they read."""

    top: Path
    provider: MemorySecretProvider
    servers: list[Server]
    nodes: list[NodeClient]
    stack: contextlib.AsyncExitStack

    async def add(self) -> NodeClient:
        server = Server(self.top / f"node-{len(self.servers)}", settings_of(self.provider), debug=True)
        await self.stack.enter_async_context(server)
        self.servers.append(server)
        self.nodes.append(client_of(server, f"http://node-{len(self.nodes)}"))
        return self.nodes[-1]

    async def document(self) -> IdentityDocument:
        return decode_document((await self.provider.read(SECRET)).value.reveal())

    async def put(self, document: IdentityDocument) -> None:
        found = await self.provider.read(SECRET)
        await self.provider.write(SECRET, encode_document(document), label=CURRENT, expected=found.version.id)

    def revoker(self, nodes: Sequence[NodeClient] | None = None, **options: Any) -> Revoker:
        options.setdefault("policy", POLICY)
        return Revoker(self.provider, SECRET, self.nodes if nodes is None else nodes, **options)


def client_of(server: Server, url: str, kind: type[NodeClient] = NodeClient) -> NodeClient:
    http = httpx2.AsyncClient(transport=httpx2.ASGITransport(server.app), base_url=url, verify=False)
    return kind(url, http=http)


@contextlib.asynccontextmanager
async def cluster_of(
    top: Path, document: IdentityDocument, count: int = 2, provider: MemorySecretProvider | None = None
) -> AsyncIterator[Cluster]:
    if provider is None:
        provider = await store_of(document)
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(provider)
        cluster = Cluster(top, provider, [], [], stack)
        for _ in range(count):
            await cluster.add()
        yield cluster


async def ids(node: NodeClient, path: str, signer: OwnedSession) -> set[str]:
    return {commit["id"] for commit in await node.pull(path, signer)}


async def test_a_revocation_from_one_end_to_the_other(tmp_path: Path) -> None:
    a = root("root-a")
    events: list[Event] = []
    async with cluster_of(tmp_path, document_of(a), 3) as cluster:
        first, second, _ = cluster.nodes
        users = [(await node.create_session())[0] for node in (first, second, first)]
        await spread(cluster, a)
        note, in_flight = signed_commit(a), signed_commit(a)
        for node in cluster.nodes:
            await node.push(NOTES, [note], a)
        for node in (first, second):
            await node.push(NOTES, [in_flight], a)

        report = await cluster.revoker(on_event=events.append).revoke(a.id, reason="stolen")

        document = await cluster.document()
        b = document.current
        assert b.id != a.id
        assert report.is_complete
        assert (report.frozen, report.sessions, report.pushed) == (8, 3, 3)
        assert [node.in_flight for node in report.nodes] == [0, 0, 1]
        assert {server.database().pool.current.id for server in cluster.servers} == {b.id}
        for node in cluster.nodes:
            assert all([await node.answers(user) for user in users]), "every session is known everywhere by now"
            await node.push(NOTES, [in_flight, signed_commit(a)], b)
            assert await ids(node, NOTES, b) == {note.id, in_flight.id}
        stable = await cluster.provider.read(SECRET, STABLE)
        assert stable.version.id == (await cluster.provider.read(SECRET)).version.id
        assert report.keys_left == ("1",)

        again = await cluster.revoker().revoke(a.id, reason="stolen")
        assert again.is_complete
        assert again.pushed == 0
        assert (await cluster.document()).generation == document.generation
    steps = [event.step for event in events if isinstance(event, RevocationStepped)]
    assert list(dict.fromkeys(steps)) == list(RevocationStep)[:-1]


async def test_a_new_node_takes_over_the_old_commits_and_none_of_the_thiefs(tmp_path: Path) -> None:
    a = root("root-a")
    async with cluster_of(tmp_path, document_of(a), 1) as cluster:
        old = cluster.nodes[0]
        user, _ = await old.create_session()
        oldest = [signed_commit(a), signed_commit(user)]
        await old.push(NOTES, oldest, a)
        report = await cluster.revoker().revoke(a.id, reason="stolen")
        b = (await cluster.document()).current
        await cluster.revoker().revoke(a.id, reason="stolen")
        new = await cluster.add()
        frozen = await old.frozen((await cluster.document()).revoked[0].freeze.digest)  # type: ignore[union-attr]
        assert frozen is not None
        await new.keep_frozen(frozen, b)
        for path in (SESSIONS, NOTES):
            await new.push(path, await old.pull(path, b), b)
            assert await ids(new, path, b) == await ids(old, path, b)
        assert await new.answers(user)
        assert report.is_complete


async def test_nothing_is_written_by_a_plan(tmp_path: Path) -> None:
    a = root("root-a")
    async with cluster_of(tmp_path, document_of(a)) as cluster:
        await cluster.nodes[0].create_session()
        rogue = session_commit(a, root("rogue").session)
        await cluster.nodes[1].push(SESSIONS, [rogue, replace(rogue, id=new_id())], a)
        before = [await ids(node, SESSIONS, a) for node in cluster.nodes]
        report = await cluster.revoker().plan(a.id)
        assert (report.sessions, report.rogue_roots) == (1, ("rogue",))
        assert [await ids(node, SESSIONS, a) for node in cluster.nodes] == before
        assert (await cluster.document()).generation == 1
        assert [one.refuses for one in report.nodes] == [False, False]


@pytest.mark.slow
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_a_revocation_that_is_cut_off_at_any_call_of_the_store_is_carried_on(tmp_path: Path, after: bool) -> None:
    a = root("root-a")
    at = calls = 0
    while calls >= at:
        at += 1
        provider = Counting()
        async with provider:
            await provider.create(SECRET, encode_document(document_of(a)))
        async with cluster_of(tmp_path / str(at), document_of(a), 1, provider) as cluster:
            node = cluster.nodes[0]
            user, _ = await node.create_session()
            note = signed_commit(a)
            await node.push(NOTES, [note], a)
            provider.calls, provider.fails_at, provider.after = 0, at, after
            with contextlib.suppress(UnavailableError):
                await cluster.revoker().revoke(a.id, reason="stolen", destroy=True)
            calls, provider.fails_at = provider.calls, 0
            report = await cluster.revoker().revoke(a.id, reason="stolen", destroy=True)
            assert report.is_complete
            document = await cluster.document()
            assert document.revoked_ids == {a.id}
            assert document.retired_ids >= {a.id}
            assert report.keys_left == ()
            assert await node.answers(user)
            assert await ids(node, NOTES, document.current) == {note.id}
            assert not await node.answers(a)
    assert calls > 10


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_a_store_that_fails_every_call_once_ends_no_revocation(tmp_path: Path, after: bool) -> None:
    a, events = root("root-a"), list[Event]()
    async with cluster_of(tmp_path, document_of(a), 1) as cluster, Faltering(cluster.provider._store) as provider:
        (node,) = cluster.nodes
        user, _ = await node.create_session()
        provider.is_faltering, provider.after = True, after
        revoker = Revoker(provider, SECRET, cluster.nodes, policy=POLICY, on_event=events.append)
        report = await revoker.revoke(a.id, reason="stolen", destroy=True)
        document = await cluster.document()
        assert (report.is_complete, report.sessions, report.keys_left) == (True, 1, ())
        assert (document.revoked_ids, document.retired_ids) == ({a.id}, {a.id})
        assert await node.answers(user)
        assert provider.failures > 10
        assert sum(isinstance(event, StoreTroubled) for event in events) == provider.failures
        steps = {event.step for event in events if isinstance(event, RevocationStepped)}
        assert steps >= {RevocationStep.REVOKED, RevocationStep.CLOSED, RevocationStep.SETTLED}
        stable = await cluster.provider.read(SECRET, STABLE)
        assert stable.version.id == (await cluster.provider.read(SECRET)).version.id


async def test_a_store_that_is_away_before_a_revocation_begins_is_reported_at_once(tmp_path: Path) -> None:
    provider = Counting()
    async with provider:
        await provider.create(SECRET, encode_document(document_of(root("root-a"))))
    provider.fails_at = 1
    with pytest.raises(UnavailableError):
        await Revoker(provider, SECRET, []).revoke("root-a", reason="stolen")
    assert provider.calls == 1


@pytest.mark.slow
async def test_a_node_that_cannot_be_reached_keeps_the_list_open_and_the_others_refuse_the_root_all_the_same(
    tmp_path: Path,
) -> None:
    a = root("root-a")
    async with cluster_of(tmp_path, document_of(a), 1) as cluster:
        gone = NodeClient("http://127.0.0.1:9")
        policy = replace(POLICY, adoption=SECOND / 10, node_timeout=SECOND)
        report = await cluster.revoker([*cluster.nodes, gone], policy=policy).revoke(a.id, reason="stolen")
        await gone.aclose()
        assert not report.closed
        assert not report.is_complete
        assert [node.refuses for node in report.nodes] == [True, False]
        assert report.nodes[1].problem
        assert not await cluster.nodes[0].answers(a)
        report = await cluster.revoker().revoke(a.id, reason="stolen")
        assert report.is_complete


@pytest.mark.slow
async def test_what_a_node_took_in_too_late_stays_there_until_the_list_is_reopened(tmp_path: Path) -> None:
    a = root("root-a")
    async with cluster_of(tmp_path, document_of(a)) as cluster:
        first, late = cluster.nodes
        assert (await cluster.revoker([first]).revoke(a.id, reason="stolen")).closed
        thiefs = signed_commit(a)
        await late.push(NOTES, [thiefs], a)
        user, _ = await late.create_session()
        b = (await cluster.document()).current
        report = await cluster.revoker().revoke(a.id, reason="stolen")
        assert [node.late for node in report.nodes] == [0, 2]
        await first.push(NOTES, [thiefs], b)
        assert await ids(first, NOTES, b) == set()
        assert await ids(late, NOTES, b) == {thiefs.id}
        report = await cluster.revoker().revoke(a.id, reason="stolen", reopen=True)
        assert [node.alone for node in report.nodes] == [0, 2]
        assert not await late.answers(user)
        await first.push(NOTES, [thiefs], b)
        assert await ids(first, NOTES, b) == set(), "nobody else holds it, so it takes the operator's word"
        report = await cluster.revoker(trust_alone=["http://node-1"]).revoke(a.id, reason="stolen", reopen=True)
        assert [(node.late, node.alone) for node in report.nodes] == [(0, 0), (0, 0)]
        assert all([await node.answers(user) for node in cluster.nodes])
        await first.push(NOTES, [thiefs], b)
        assert await ids(first, NOTES, b) == {thiefs.id}


@pytest.mark.parametrize("kind", [Lagging, Doubting])
async def test_a_store_that_shows_what_was_before_a_write_changes_nothing(
    tmp_path: Path, kind: type[MemorySecretProvider]
) -> None:
    a = root("root-a")
    document = document_of(a)
    provider = kind()
    async with provider:
        await provider.create(SECRET, encode_document(document))
    async with cluster_of(tmp_path, document, provider=provider) as cluster:
        report = await cluster.revoker().revoke(a.id, reason="stolen")
        assert report.is_complete
        assert (await cluster.document()).generation == document.generation + 3, "each step is written once"
        (current,) = [one for one in await MemorySecretProvider.versions(provider, SECRET) if CURRENT in one.labels]
        assert STABLE in current.labels, "there is no going back behind a revocation"


async def test_the_root_that_takes_over_introduces_the_earlier_ones(tmp_path: Path) -> None:
    a, b = root("root-a"), root("root-b")
    async with cluster_of(tmp_path, after_a_rotation(a, b)) as cluster:
        assert (await cluster.revoker().revoke(b.id, reason="stolen")).is_complete
        document = await cluster.document()
        wanted = make_earlier_introduction(document, a.id, org="localhost")["id"]
        for node in cluster.nodes:
            assert wanted in await ids(node, SESSIONS, document.current)


async def test_a_list_that_no_server_has_any_more_is_closed_anew(tmp_path: Path) -> None:
    a = root("root-a")
    async with cluster_of(tmp_path, document_of(a)) as cluster:
        await cluster.nodes[0].push(NOTES, [signed_commit(a)], a)
        alone = cluster.revoker(trust_alone=["http://node-0"])
        before = await alone.revoke(a.id, reason="stolen")
        nodes = [client_of(server, f"http://node-{n}", Forgetful) for n, server in enumerate(cluster.servers)]
        with pytest.raises(RotationError, match="no server has the list") as caught:
            await cluster.revoker(nodes).revoke(a.id, reason="stolen")
        assert "--reopen" in caught.value.hint
        report = await cluster.revoker(nodes).revoke(a.id, reason="stolen", reopen=True)
        assert (report.is_complete, report.frozen) == (True, before.frozen - 1)


async def test_stable_stays_where_somebody_elses_rotation_would_go_back_to(tmp_path: Path) -> None:
    a, b = root("root-a"), root("root-b")
    async with cluster_of(tmp_path, document_of(a), 1) as cluster:
        await cluster.revoker().revoke(a.id, reason="stolen")
        steady = await cluster.document()
        (stable,) = [one.id for one in await cluster.provider.versions(SECRET) if STABLE in one.labels]
        await cluster.put(after_a_rotation(a, b, Phase.PUBLISHED, first=steady))
        assert (await cluster.revoker().revoke(a.id, reason="stolen")).is_complete
        assert [one.id for one in await cluster.provider.versions(SECRET) if STABLE in one.labels] == [stable]


@pytest.mark.parametrize("phase", [Phase.PREPARED, Phase.PUBLISHED, Phase.ACTIVATED])
async def test_keys_of_a_revoked_root_are_destroyed_during_somebody_elses_rotation(
    tmp_path: Path, phase: Phase
) -> None:
    a, b = root("root-a"), root("root-b")
    async with cluster_of(tmp_path, document_of(a), 1) as cluster:
        await cluster.revoker().revoke(a.id, reason="stolen")
        steady = await cluster.document()
        (stable,) = [one.id for one in await cluster.provider.versions(SECRET) if STABLE in one.labels]
        await cluster.put(after_a_rotation(steady.current, b, phase, first=steady))
        report = await cluster.revoker().revoke(a.id, reason="stolen", destroy=True)
        assert (report.destroyed, report.keys_left) == (("1",), ())
        document = await cluster.document()
        assert document.retired_ids == {a.id}
        assert document.rotation is not None
        assert document.rotation.phase is phase
        assert [one.id for one in await cluster.provider.versions(SECRET) if STABLE in one.labels] == [stable]
        again = await cluster.revoker().revoke(a.id, reason="stolen", destroy=True)
        assert (again.destroyed, again.generation) == ((), document.generation)


async def test_nothing_is_destroyed_where_the_record_of_it_would_be_refused(tmp_path: Path) -> None:
    a = root("root-a")
    async with cluster_of(tmp_path, document_of(a), 1) as cluster:
        await cluster.revoker().revoke(a.id, reason="stolen")
        document = await cluster.document()
        node = client_of(cluster.servers[0], "http://node-0", Meddling)
        assert isinstance(node, Meddling)
        node.meddle = lambda: cluster.put(replace(document, last_updated=now_ms() + 1))
        with pytest.raises(UnsignedIdentityError):
            await cluster.revoker([node]).revoke(a.id, reason="stolen", destroy=True)
        assert {one.state for one in await cluster.provider.versions(SECRET)} == {VersionState.ENABLED}


async def test_a_session_that_is_left_out_is_believed_no_more(tmp_path: Path) -> None:
    a = root("root-a")
    async with cluster_of(tmp_path, document_of(a), 1) as cluster:
        node = cluster.nodes[0]
        user, _ = await node.create_session()
        far = now_ms() + 400 * 86_400_000
        mole = OwnedSession.generate(session_id=new_id(), owner=None, now_ms=far)
        await node.push(SESSIONS, [session_commit(a, mole.session)], a)
        plan = await cluster.revoker().plan(a.id)
        assert plan.long_lived == (mole.id,)
        report = await cluster.revoker().revoke(a.id, reason="stolen", leave_out=[mole.id])
        assert (report.sessions, report.left_out, report.is_complete) == (1, (mole.id,), True)
        assert await node.answers(user)
        assert not await node.answers(mole)
    async with Server(tmp_path / "node-0", settings_of(cluster.provider), debug=True) as server:
        restarted = client_of(server, "http://again")
        assert await restarted.answers(user)
        assert not await restarted.answers(mole)


async def test_a_rogue_root_is_neither_introduced_again_nor_listed(tmp_path: Path) -> None:
    a, rogue = root("root-a"), root("rogue")
    async with cluster_of(tmp_path, document_of(a), 1) as cluster:
        node = cluster.nodes[0]
        mole = root("mole")
        await node.push(SESSIONS, [session_commit(a, rogue.session)], a)
        await node.push(SESSIONS, [session_commit(rogue, replace(mole.session, owner=None))], rogue)
        report = await cluster.revoker().revoke(a.id, reason="stolen")
        assert report.rogue_roots == ("rogue",)
        assert (report.sessions, report.is_complete) == (0, True)
        assert not await node.answers(rogue)
        assert not await node.answers(mole)


async def test_the_next_rotation_and_the_next_theft_are_as_any_other(tmp_path: Path) -> None:
    a = root("root-a")
    async with cluster_of(tmp_path, document_of(a), 1) as cluster:
        node = cluster.nodes[0]
        user, _ = await node.create_session()
        note = signed_commit(a)
        await node.push(NOTES, [note], a)
        first = await cluster.revoker().revoke(a.id, reason="stolen")
        done = await Rotator(cluster.provider, SECRET, cluster.nodes, policy=POLICY).rotate()
        assert done.from_id == first.current_id
        second = await cluster.revoker().revoke(done.current_id, reason="stolen as well")
        assert second.is_complete
        assert second.sessions == 0, "the user's session was introduced by the root before"
        document = await cluster.document()
        assert document.revoked_ids == {a.id, done.current_id}
        assert await node.answers(user)
        assert await ids(node, NOTES, document.current) == {note.id}


async def test_a_prepared_root_can_be_revoked_alone(tmp_path: Path) -> None:
    a, b = root("root-a"), root("root-b")
    async with cluster_of(tmp_path, after_a_rotation(a, b, Phase.PREPARED), 1) as cluster:
        report = await cluster.revoker().revoke(b.id, reason="stolen")
        document = await cluster.document()
        assert (report.is_complete, report.has_proof) == (True, True)
        assert (document.current.id, document.next, document.rotation) == (a.id, None, None)


def after_a_rotation(
    a: OwnedSession, b: OwnedSession, phase: Phase | None = None, *, first: IdentityDocument | None = None
) -> IdentityDocument:
    now = now_ms() if first is None else first.last_updated or 0
    document = prepare_rotation(
        first or document_of(a), b, now_ms=now, rotation_id="r", started_by="", stable_version="1"
    )
    if phase is Phase.PREPARED:
        return document
    document = with_phase(document, Phase.PUBLISHED, now)
    if phase is Phase.PUBLISHED:
        return document
    document = activate_rotation(document, now)
    if phase is Phase.ACTIVATED:
        return document
    return finalize_rotation(mark_verified(document, now), now)


@pytest.mark.parametrize("choice", ["new", "next", "root-b"])
async def test_during_a_rotation_the_successor_is_chosen(tmp_path: Path, choice: str) -> None:
    a, b = root("root-a"), root("root-b")
    async with cluster_of(tmp_path, after_a_rotation(a, b, Phase.PUBLISHED), 1) as cluster:
        report = await cluster.revoker().revoke(a.id, reason="stolen", successor=choice)
        document = await cluster.document()
    assert report.is_complete
    assert (document.current.id == b.id) == (choice != "new")
    assert document.revoked_ids == ({a.id, b.id} if choice == "new" else {a.id})


async def test_an_earlier_root_is_revoked_and_the_current_one_goes_on(tmp_path: Path) -> None:
    a, b = root("root-a"), root("root-b")
    first = document_of(a)
    async with cluster_of(tmp_path, first, 2) as cluster:
        user, _ = await cluster.nodes[0].create_session()
        await spread(cluster, a)
        for document in (after_a_rotation(a, b, Phase.PREPARED, first=first), after_a_rotation(a, b, first=first)):
            await cluster.put(document)
        report = await cluster.revoker().revoke(a.id, reason="stolen")
        document = await cluster.document()
        assert (document.current.id, report.is_complete, report.has_proof) == (b.id, True, True)
        assert document.revoked_ids == {a.id}
        assert all([await node.answers(user) for node in cluster.nodes])
        assert report.also_stored == ()
        assert len(report.keys_left) == 2


async def test_an_earlier_root_can_take_over_while_its_key_is_in_the_store(tmp_path: Path) -> None:
    a, b = root("root-a"), root("root-b")
    first = document_of(a)
    async with cluster_of(tmp_path, first, 1) as cluster:
        await cluster.put(after_a_rotation(a, b, first=first))
        report = await cluster.revoker().revoke(b.id, reason="stolen", successor=a.id)
        assert (report.current_id, report.is_complete) == (a.id, True)
        with pytest.raises(IllegalStepError):
            await cluster.revoker().revoke(a.id, reason="stolen", successor=b.id)


@pytest.mark.parametrize(("session_id", "successor"), [("nobody", "new"), ("root-a", "next"), ("root-a", "nobody")])
async def test_what_cannot_be_is_refused_before_anything_happens(
    tmp_path: Path, session_id: str, successor: str
) -> None:
    a = root("root-a")
    async with cluster_of(tmp_path, document_of(a), 1) as cluster:
        for call in (
            cluster.revoker().plan(session_id, successor=successor),
            cluster.revoker().revoke(session_id, reason="x", successor=successor),
        ):
            with pytest.raises(IllegalStepError):
                await call
        assert (await cluster.document()).generation == 1


async def test_an_unmodified_server_learns_the_successor_and_the_sessions_and_goes_on_believing_the_root(
    tmp_path: Path,
) -> None:
    a = root("root-a")
    (tmp_path / "upstream" / "localhost").mkdir(parents=True)
    (tmp_path / "upstream" / "localhost" / "settings.json").write_bytes(encode_document(document_of(a)))
    async with (
        cluster_of(tmp_path, document_of(a), 1) as cluster,
        Server(tmp_path / "upstream", FileSettings(tmp_path / "upstream"), debug=True) as server,
    ):
        upstream = client_of(server, "http://upstream", Upstream)
        user, _ = await cluster.nodes[0].create_session()
        report = await cluster.revoker([*cluster.nodes, upstream]).revoke(a.id, reason="stolen")
        b = (await cluster.document()).current
        assert report.is_complete
        assert [node.is_unmodified for node in report.nodes] == [False, True]
        assert [node.introduced for node in report.nodes] == [1, 1]
        assert await upstream.answers(b)
        assert await upstream.answers(user)
        assert await upstream.answers(a)


async def test_a_revocation_over_unmodified_servers_only_reissues_the_sessions_and_ends(tmp_path: Path) -> None:
    a = root("root-a")
    async with contextlib.AsyncExitStack() as stack:
        cluster = await stack.enter_async_context(cluster_of(tmp_path, document_of(a), 0))
        upstreams = []
        for name in ("one", "two", "three"):
            top = tmp_path / name
            (top / "localhost").mkdir(parents=True)
            (top / "localhost" / "settings.json").write_bytes(encode_document(document_of(a)))
            server = await stack.enter_async_context(Server(top, FileSettings(top), debug=True))
            upstreams.append(client_of(server, f"http://{name}", Upstream))
        user, _ = await upstreams[0].create_session()
        report = await cluster.revoker(upstreams).revoke(a.id, reason="stolen")
        assert report.is_complete
        assert (report.sessions, [node.introduced for node in report.nodes]) == (1, [1, 1, 1])
        for upstream in upstreams:
            assert await upstream.answers(user), "each server has the session, reissued by the successor"
        entry = (await cluster.document()).revoked[0]
        assert entry.freeze is None, "no server keeps the list, so none is on record that no server could give"
        # The thief goes on: a second run must not sign what the stolen root has introduced since.
        thief, _ = await upstreams[1].create_session()
        again = await cluster.revoker(upstreams).revoke(a.id, reason="stolen")
        assert again.is_complete
        assert (again.pushed, again.late_sessions) == (0, (thief.id,))
        reopened = await cluster.revoker(upstreams).revoke(a.id, reason="stolen", reopen=True)
        assert (reopened.is_complete, reopened.sessions, reopened.late_sessions) == (True, 2, ())


async def test_filters_that_claim_too_much_leave_no_session_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A filter of three commits claims every second id that its server lacks: several in a row do so by chance."""
    a = root("root-a")
    claims = 0

    async def claiming(self: NodeClient, batch: Any, signer: OwnedSession, now_ms: int | None = None) -> Any:
        nonlocal claims
        replies = await NodeClient.batch_sync(self, batch, signer, now_ms)
        asks_for_filters_only = all(message["f"]["__v"]["s"] == [] and not message["c"] for _, message in batch)
        if batch and asks_for_filters_only and claims < 20:
            claims += 1
            return [{**reply, "f": {"__t": "E", "__v": {"d": "/w==", "s": [claims]}}} for reply in replies]
        return replies

    (tmp_path / "one" / "localhost").mkdir(parents=True)
    (tmp_path / "two" / "localhost").mkdir(parents=True)
    for name in ("one", "two"):
        (tmp_path / name / "localhost" / "settings.json").write_bytes(encode_document(document_of(a)))
    async with (
        cluster_of(tmp_path, document_of(a), 0) as cluster,
        Server(tmp_path / "one", FileSettings(tmp_path / "one"), debug=True) as first,
        Server(tmp_path / "two", FileSettings(tmp_path / "two"), debug=True) as second,
    ):
        upstreams = [client_of(first, "http://one", Upstream), client_of(second, "http://two", Upstream)]
        user, _ = await upstreams[0].create_session()
        monkeypatch.setattr(Upstream, "batch_sync", claiming)
        report = await cluster.revoker(upstreams).revoke(a.id, reason="stolen")
        assert claims == 20
        monkeypatch.undo()
        assert [node.introduced for node in report.nodes] == [1, 1]
        for upstream in upstreams:
            assert await upstream.answers(user)


async def test_a_node_that_drops_what_is_pushed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a = root("root-a")

    async def nowhere(self: NodeClient, path: str, _: Any, signer: OwnedSession, __: int | None = None) -> Any:
        (reply,) = await self.batch_sync([(path, {"ver": 50595584, "f": FULL, "s": 0, "c": [], "ad": []})], signer)
        return reply

    async with cluster_of(tmp_path, document_of(a), 1) as cluster:
        await cluster.nodes[0].create_session()
        monkeypatch.setattr(NodeClient, "push", nowhere)
        with pytest.raises(RotationError, match="node-0 did not store"):
            await cluster.revoker().revoke(a.id, reason="stolen")


async def test_a_node_that_drops_what_is_pushed_holds_up_no_other_and_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = root("root-a")
    async with cluster_of(tmp_path, document_of(a), 3) as cluster:
        users = [(await cluster.nodes[0].create_session())[0] for _ in range(3)]
        await spread(cluster, a)
        first, pushes = cluster.nodes[0], 0
        plain = first.push

        async def breaks_off(path: str, commits: Any, signer: OwnedSession, now: int | None = None) -> Any:
            nonlocal pushes
            # The introduction of the successor is the first; then it takes nothing for a while.
            pushes += path == SESSIONS
            if 2 <= pushes <= 3:
                raise NodeUnreachableError("http://node-0 broke off")
            return await plain(path, commits, signer, now)

        monkeypatch.setattr(first, "push", breaks_off)
        report = await cluster.revoker().revoke(a.id, reason="stolen")
        assert pushes >= 3
        assert report.is_complete
        assert [node.problem for node in report.nodes] == [None] * 3
        for node in cluster.nodes:
            assert all([await node.answers(user) for user in users])


async def test_a_node_that_never_takes_what_is_pushed_is_named_and_the_others_have_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = root("root-a")
    async with cluster_of(tmp_path, document_of(a), 3) as cluster:
        user, _ = await cluster.nodes[0].create_session()
        await spread(cluster, a)

        async def lacks_all(path: str, ids: Sequence[str], *_: Any) -> list[str]:
            return list(ids)

        monkeypatch.setattr(cluster.nodes[0], "lacking", lacks_all)
        report = await cluster.revoker(policy=replace(POLICY, adoption=SECOND)).revoke(a.id, reason="stolen")
        assert not report.is_complete
        assert [node.introduced for node in report.nodes][1:] == [1, 1]
        assert "did not store" in (report.nodes[0].problem or "")
        assert [node.problem for node in report.nodes][1:] == [None, None]
        for node in cluster.nodes[1:]:
            assert await node.answers(user)


FULL = {"__t": "E", "__v": {"d": "AA==", "s": []}}


@pytest.mark.parametrize("method", ["push", "held", "keep_frozen", "refresh", "batch_sync", "identity"])
async def test_a_node_that_dies_on_the_way_loses_nothing_for_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    a = root("root-a")
    async with cluster_of(tmp_path, document_of(a), 1) as cluster:
        user, _ = await cluster.nodes[0].create_session()

        async def dies(*_: Any, **__: Any) -> Any:
            raise NodeUnreachableError("gone")

        with monkeypatch.context() as patch:
            patch.setattr(NodeClient, method, dies)
            revoker = cluster.revoker(policy=replace(POLICY, adoption=SECOND / 10))
            with contextlib.suppress(NodeUnreachableError):
                assert not (await revoker.revoke(a.id, reason="stolen")).is_complete
        assert (await cluster.revoker().revoke(a.id, reason="stolen")).is_complete
        assert await cluster.nodes[0].answers(user)


async def aged_cluster(cluster: Cluster) -> list[str]:
    """Rotate until the first roots have left the document; return the ids of all roots, oldest first."""
    rotator = Rotator(cluster.provider, SECRET, cluster.nodes, policy=POLICY)
    roots = [(await cluster.document()).current.id]
    while (await cluster.document()).pruned < 2:
        roots.append((await rotator.rotate()).current_id)
    return roots


async def test_a_root_that_has_left_the_document_can_still_be_revoked(tmp_path: Path) -> None:
    a = root("root-a")
    async with cluster_of(tmp_path, document_of(a), 1) as cluster:
        node = cluster.nodes[0]
        note = signed_commit(a)
        await node.push(NOTES, [note], a)
        roots = await aged_cluster(cluster)
        before = await cluster.document()
        assert before.find_root(a.id) is None
        assert await node.answers(a), "it is trusted by its introductions"
        planned = await cluster.revoker().plan(a.id)
        assert planned.rogue_roots == ()
        report = await cluster.revoker().revoke(a.id, reason="stolen")
        assert report.rogue_roots == ()
        document = await cluster.document()
        assert a.id in document.revoked_ids
        assert document.find_root(a.id) == a.session
        assert document.pruned == before.pruned - 1
        assert not await node.answers(a)
        await node.push(NOTES, [signed_commit(a)], document.current)
        assert await ids(node, NOTES, document.current) == {note.id}, "what was held counts, and nothing else"
        pool = cluster.servers[0].database().pool
        assert set(roots) - {a.id} <= set(pool.root_ids), "no other root goes with it"
        with pytest.raises(IllegalStepError):
            await cluster.revoker().revoke("stranger", reason="never heard of")


async def test_revoking_the_current_root_takes_no_root_that_has_left_the_document_with_it(tmp_path: Path) -> None:
    a = root("root-a")
    async with cluster_of(tmp_path, document_of(a), 1) as cluster:
        roots = await aged_cluster(cluster)
        stolen = (await cluster.document()).current.id
        report = await cluster.revoker().revoke(stolen, reason="stolen")
        assert report.rogue_roots == ()
        assert set(roots) - {stolen} <= set(cluster.servers[0].database().pool.root_ids)


class Broken(NodeClient):
    """A server that was broken into, with the stolen key: it signs what it likes and says that it holds it.

    Attributes:
        forger: The stolen root; None while the thief is quiet.
        note: The commit that he signs once he has heard of the revocation.
        mole: The session that he introduces then.
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


async def spread(cluster: Cluster, signer: OwnedSession) -> None:
    """Bring what each node holds to all others, as peers do."""
    for path in (SESSIONS, NOTES):
        for giver in cluster.nodes:
            for taker in cluster.nodes:
                if taker is not giver:
                    await taker.push(path, await giver.pull(path, signer), signer)


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
            assert await ids(node, NOTES, b) == {note.id}, "the thief's commit is taken by nobody"
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


async def test_a_distrusted_server_confirms_nobody_and_nobody_waits_for_it(
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
        """What this server holds reaches the other while `revoke` looks a third time."""

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
async def test_whoever_is_to_be_judged_is_listed_and_judged_once(tmp_path: Path, choice: dict[str, Any]) -> None:
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


async def test_a_revocation_ends_where_the_store_is_restored_meanwhile_and_gives_its_version_id_again(
    tmp_path: Path,
) -> None:
    a = root("root-a")
    async with cluster_of(tmp_path, document_of(a), 1) as cluster:
        store = cluster.provider._store
        backup = (dict(store.ledgers), dict(store.values))
        started = prepare_rotation(
            await cluster.document(),
            root("fork"),
            now_ms=now_ms(),
            rotation_id="fork",
            started_by="",
            stable_version="1",
        )
        await cluster.put(correct_times(await cluster.document(), now_ms()))
        push = cluster.nodes[0].push

        async def restored_meanwhile(*arguments: Any, **options: Any) -> Any:
            before = (await cluster.provider.read(SECRET)).version.id
            store.ledgers, store.values = dict(backup[0]), dict(backup[1])
            await cluster.put(started)
            assert (await cluster.provider.read(SECRET)).version.id == before
            return await push(*arguments, **options)

        cluster.nodes[0].push = restored_meanwhile  # type: ignore[method-assign]
        with pytest.raises(StoreWentBackError, match="a backup was restored meanwhile"):
            await cluster.revoker().revoke(a.id, reason="stolen")
        assert await cluster.document() == started, "it was overwritten"
