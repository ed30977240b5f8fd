"""One server after a theft: which commits it reports, whose frozen list it accepts, and what it keeps over a
restart."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx2
import pytest

from goatherd.clock import SystemClock
from goatherd.cluster.client import NodeClient
from goatherd.errors import NodeRefusedError
from goatherd.identity.document import IdentityDocument, encode_document
from goatherd.identity.revocations import FrozenList, commit_digest
from goatherd.identity.session import OwnedSession
from goatherd.identity.transitions import record_frozen_commits, revoke_root
from goatherd.node import Server
from goatherd.node.frozen_commits import FOLDER, FrozenCommitStore
from goatherd.providers.memory import MemorySecretProvider
from goatherd.providers.values import CURRENT
from goatherd.wire.commit import Commit
from tests.unit import goats
from tests.waiting import until

from .nodes import ORG, SECRET, document_of, now_ms, root, session_commit, settings_of, signed_commit, store_of

NOTES = "/data/notes"
A, B, X = root("root-a"), root("root-b"), root("root-x")
FIRST = document_of(A)
STOLEN = revoke_root(FIRST, A.id, now_ms(), reason="stolen", successor=B)


def listed(*commits: Commit) -> FrozenList:
    return FrozenList(frozenset(commit_digest(commit) or b"" for commit in commits))


def stolen(frozen: FrozenList | None = None) -> IdentityDocument:
    if frozen is None:
        return STOLEN
    return record_frozen_commits(STOLEN, A.id, now_ms(), commits=len(frozen), digest=frozen.digest)


async def put(provider: MemorySecretProvider, document: IdentityDocument) -> None:
    async with provider:
        found = await provider.read(SECRET)
        await provider.write(SECRET, encode_document(document), label=CURRENT, expected=found.version.id)


def client_of(server: Server) -> NodeClient:
    http = httpx2.AsyncClient(transport=httpx2.ASGITransport(server.app), base_url="http://node", verify=False)
    return NodeClient("http://node", http=http)


async def ids(client: NodeClient, path: str, signer: OwnedSession) -> set[str]:
    return {commit["id"] for commit in await client.pull(path, signer)}


async def test_a_server_tells_what_it_holds_open_or_closed_and_no_rogue_roots(tmp_path: Path) -> None:
    provider = await store_of(FIRST)
    note, rogue, user = signed_commit(A), session_commit(A, X.session), session_commit(A, root("u").session)
    async with Server(tmp_path, settings_of(provider), debug=True) as server:
        client = client_of(server)
        await client.push(NOTES, [note], A)
        await client.push("/sys/sessions", [rogue, user], A)
        with pytest.raises(NodeRefusedError, match="409"):
            await client.held(A.id, A)
        assert FrozenList.from_bytes(await client.held(A.id, A, early=True)) == listed(note)
        shown = [digest.hex() for digest in sorted(listed(note, user).digests)]
        told = await client.describe_held(A.id, [*shown, "00" * 32, "nonsense"], A)
        assert [(one.path, one.key, one.ts) for one in told] == [(NOTES, note.key, int(note.ts))]
    await put(provider, stolen())
    async with Server(tmp_path, settings_of(provider), debug=True) as server:
        assert NOTES not in server.database().engine.repositories
        held = FrozenList.from_bytes(await client_of(server).held(A.id, B))
    assert held == listed(note)


@pytest.mark.parametrize("asker", [A, X], ids=["the revoked root", "a stranger"])
async def test_only_a_root_may_ask_or_hand_over(tmp_path: Path, asker: OwnedSession) -> None:
    provider = await store_of(stolen())
    async with Server(tmp_path, settings_of(provider), debug=True) as server:
        client = client_of(server)
        for call in (client.held(A.id, asker), client.keep_frozen(b"", asker)):
            with pytest.raises(NodeRefusedError, match="403"):
                await call
        with pytest.raises(NodeRefusedError, match="400"):
            await client.keep_frozen(b"nonsense", B)


async def test_a_server_tells_a_root_exactly_what_it_lacks(tmp_path: Path) -> None:
    provider = await store_of(FIRST)
    note = signed_commit(A)
    async with Server(tmp_path, settings_of(provider), debug=True) as server:
        client = client_of(server)
        await client.push(NOTES, [note], A)
        assert await client.lacking(NOTES, [note.id, "another"], A) == ["another"]
        assert await client.lacking("/data/never", [note.id], A) == [note.id]
        assert "/data/never" not in server.database().engine.repositories
        with pytest.raises(NodeRefusedError, match="403"):
            await client.lacking(NOTES, [], X)
        with pytest.raises(NodeRefusedError, match="400"):
            await client.lacking("/../x", [], A)


async def test_a_list_counts_once_the_identity_names_it_and_over_a_restart(tmp_path: Path) -> None:
    provider = await store_of(stolen())
    note, late, back_dated = signed_commit(A), signed_commit(A), signed_commit(A)
    frozen = listed(note)
    settings = settings_of(provider)
    async with Server(tmp_path, settings, debug=True) as server:
        client = client_of(server)
        await client.keep_frozen(frozen.to_bytes(), B)
        await client.push(NOTES, [note], B)
        assert await ids(client, NOTES, B) == set(), "no identity names the list yet"
        await put(provider, stolen(frozen))
        await settings.refresh()
        await client.push(NOTES, [note, late], B)
        assert await ids(client, NOTES, B) == {note.id}
        assert await client.frozen(frozen.digest) == frozen.to_bytes()
        assert await client.frozen("ab" * 32) is None
    assert (tmp_path / ORG / FOLDER / frozen.digest).stat().st_mode & 0o077 == 0
    async with Server(tmp_path, settings_of(provider), debug=True) as server:
        client = client_of(server)
        await client.push("/data/other", [note, back_dated], B)
        assert await ids(client, "/data/other", B) == {note.id}


class Peer:
    """A server that answers each request for a list with the same list, whatever its digest."""

    def __init__(self, frozen: FrozenList) -> None:
        self._sent = frozen.to_bytes()

    async def frozen(self, digest: str) -> bytes:
        return self._sent


async def test_a_list_with_another_digest_is_not_taken_from_a_peer_and_the_next_peer_is_asked(tmp_path: Path) -> None:
    wanted, other = listed(signed_commit(A)), listed(signed_commit(A))
    peers: list[Any] = [Peer(other), Peer(wanted)]
    engine = goats.Node(B, A, B).engine
    store = FrozenCommitStore(
        engine=engine,
        folder=tmp_path,
        repositories=list,
        peers=lambda: peers,
        clock=SystemClock(),
        changed=lambda: None,
    )
    store.apply_document(stolen(wanted))
    running = asyncio.create_task(store.run())
    await until(lambda: any((tmp_path / each.digest).exists() for each in (wanted, other)))
    running.cancel()
    assert [path.name for path in tmp_path.iterdir()] == [wanted.digest]


async def test_a_damaged_list_on_the_disk_counts_as_none(tmp_path: Path) -> None:
    note = signed_commit(A)
    provider = await store_of(stolen(listed(note)))
    folder = tmp_path / ORG / FOLDER
    folder.mkdir(parents=True, mode=0o700)
    (folder / listed(note).digest).write_bytes(listed(note, signed_commit(A)).to_bytes())
    async with Server(tmp_path, settings_of(provider), debug=True) as server:
        client = client_of(server)
        await client.push(NOTES, [note], B)
        assert await ids(client, NOTES, B) == set()


async def test_a_revocation_takes_effect_with_the_next_request_and_what_is_held_stays(tmp_path: Path) -> None:
    provider = await store_of(FIRST)
    note = signed_commit(A)
    settings = settings_of(provider)
    async with Server(tmp_path, settings, debug=True) as server:
        client = client_of(server)
        user, _ = await client.create_session()
        await client.push(NOTES, [note], A)
        await put(provider, stolen())
        assert await settings.refresh()
        with pytest.raises(NodeRefusedError, match="403"):
            await client.push(NOTES, [signed_commit(A)], A)
        mine = signed_commit(user)
        await client.push(NOTES, [signed_commit(A), mine], user)
        await client.push("/sys/sessions", [session_commit(A, root("u").session)], user)
        assert await ids(client, NOTES, user) == {note.id, mine.id}
        assert len(await ids(client, "/sys/sessions", user)) == 1
        new, roots = await client.create_session()
        assert [one.id for one in roots] == [B.id]
        assert await client.answers(new)
