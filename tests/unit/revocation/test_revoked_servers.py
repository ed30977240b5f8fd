"""A revocation with servers that run unmodified GoatDB, or that drop what is pushed to them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from goatherd.cluster.client import NodeClient
from goatherd.errors import (
    NodeUnreachableError,
    RotationError,
)
from goatherd.identity.document import encode_document
from goatherd.identity.session import OwnedSession
from goatherd.node import Server
from goatherd.settings.file import FileSettings
from goatherd.wire.messages import encode_request
from tests.unit.node.nodes import (
    document_of,
    root,
)
from tests.unit.revocation.clusters import POLICY, SECOND, SESSIONS, Upstream, client_of, cluster_of, spread

pytestmark = pytest.mark.slow


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


async def test_a_goatherd_server_with_a_settings_json_counts_as_unmodified_unless_the_file_revokes_the_root(
    tmp_path: Path,
) -> None:
    a = root("root-a")
    file = tmp_path / "file" / "localhost" / "settings.json"
    file.parent.mkdir(parents=True)
    file.write_bytes(encode_document(document_of(a)))
    async with cluster_of(tmp_path, document_of(a), 1) as cluster:
        async with Server(tmp_path / "file", FileSettings(tmp_path / "file"), debug=True) as server:
            other = client_of(server, "http://file")
            user, _ = await cluster.nodes[0].create_session()
            report = await cluster.revoker([*cluster.nodes, other]).revoke(a.id, reason="stolen")
            assert report.is_complete
            assert [(node.is_unmodified, node.is_from_file) for node in report.nodes] == [(False, False), (True, True)]
            assert [node.introduced for node in report.nodes] == [1, 1]
            assert await other.answers(user)
        file.write_bytes(encode_document(await cluster.document()))
        async with Server(tmp_path / "file", FileSettings(tmp_path / "file"), debug=True) as server:
            other = client_of(server, "http://file")
            report = await cluster.revoker([*cluster.nodes, other]).revoke(a.id, reason="stolen")
            assert report.is_complete
            assert [(node.is_unmodified, node.refuses) for node in report.nodes] == [(False, True)] * 2


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
    """A filter over three commits contains every second missing id by chance, several ids in a row too."""
    a = root("root-a")
    claims = 0

    async def claiming(self: NodeClient, batch: Any, signer: OwnedSession, now_ms: int | None = None) -> Any:
        nonlocal claims
        replies = await NodeClient.batch_sync(self, batch, signer, now_ms)
        messages = [each["msg"] for each in json.loads(encode_request(batch))]
        asks_for_filters_only = all(message["f"]["__v"]["s"] == [] and not message["c"] for message in messages)
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
            # The server stores the introduction of the successor, and then nothing for a while.
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
