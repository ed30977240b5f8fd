"""The stand-in for an unmodified server gives the recorded answers of the original, its wrong ones too."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest

from goatherd.door.limits import DoorLimits
from goatherd.door.request_checks import check_session_request, read_batch, read_commit
from goatherd.identity.session import OwnedSession, Session, parse_signature, sign_commit
from goatherd.ids import new_id
from goatherd.serving.caller_limits import RefusedError
from goatherd.wire.batch import SMALL_BODY
from goatherd.wire.commit import Commit
from goatherd.wire.schema import Registry, Schema, SchemaField
from tests.cluster.door_world import A, Standing, X, Y
from tests.deadlines import HANG
from tests.fakes.upstream_child import UpstreamChild
from tests.unit.goats import NOW, commit_by, element, introduction, owned, root, signed_header

EXCHANGES = Path(__file__).parents[2] / "exchanges"
NOTE = Schema(
    ns="note",
    version=1,
    fields=(
        SchemaField(name="title", type="string", required=True),
        SchemaField(name="n", type="number"),
        SchemaField(name="done", type="boolean"),
        SchemaField(name="when", type="date"),
        SchemaField(name="tags", type="set"),
        SchemaField(name="meta", type="map"),
        SchemaField(name="body", type="richtext"),
    ),
)


def load(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((EXCHANGES / f"{name}.json").read_text())
    return loaded


def child_of(recording: dict[str, Any]) -> UpstreamChild:
    before = recording["dataDirBefore"]
    settings = before["localhost/settings.json"]
    child = UpstreamChild(
        OwnedSession.from_json(settings["currentSession"]), clock=Standing(), registry=Registry([NOTE]), leaks=False
    )
    for raw in [*settings["roots"], *settings["trustedSessions"]]:
        child.sessions[raw["id"]] = Session.from_json(raw)
    for file, records in before.items():
        if file.endswith(".jsonl"):
            path = "/" + file.removeprefix("localhost/").removesuffix(".jsonl")
            child.repositories[path] = {record["id"]: record for record in records}
    child.restart()
    return child


def time_of(exchange: dict[str, Any], otherwise: int) -> int:
    if "at" in exchange:
        return int(exchange["at"])
    header = exchange["request"]["headers"].get("x-goat-sig", "")
    try:
        return int(parse_signature(header).data["ts"])
    except Exception:  # noqa: BLE001 - a header that the exchange is about
        return otherwise


def ids(commits: list[dict[str, Any]]) -> set[str]:
    return {commit["id"] for commit in commits}


@pytest.mark.parametrize("name", ["auth-errors", "malformed", "forged-author", "session-create", "routes"])
async def test_the_stand_in_answers_as_the_original_was_recorded(name: str) -> None:
    recording = load(name)
    child = child_of(recording)
    now_ms = recording["recordedAtMs"]
    async with child, httpx2.AsyncClient(verify=False, timeout=60) as http:
        for exchange in recording["exchanges"]:
            request, expected = exchange["request"], exchange["response"]
            assert isinstance(child.clock, Standing)
            child.clock.at_ms = now_ms = time_of(exchange, now_ms)
            if "restart" in exchange["label"]:
                child.restart()
            response = await http.request(
                request["method"],
                child.url + request["path"],
                content=request.get("body") or b"",
                headers={k: v for k, v in request["headers"].items() if k not in ("host", "content-length")},
            )
            assert response.status_code == expected["status"], exchange["label"]
            if expected["status"] == 200 and request["path"] == "/batch-sync" and request["method"] == "POST":
                for ours, theirs in zip(response.json(), json.loads(expected["body"]), strict=True):
                    assert ours["path"] == theirs["path"]
                    assert ours["res"]["s"] == theirs["res"]["s"], exchange["label"]
                    if name != "malformed":
                        assert ids(ours["res"]["c"]) == ids(theirs["res"]["c"]), exchange["label"]
            elif request["path"] != "/auth/session":
                assert response.text == (expected["body"] or "")


RECORDED = sorted(path.stem for path in EXCHANGES.glob("*.json"))


def bodies() -> list[tuple[str, int, bytes]]:
    """Every recorded request of a real client or server that the original answered with 200."""
    found = []
    for name in RECORDED:
        recording = load(name)
        now_ms = recording["recordedAtMs"]
        for exchange in recording["exchanges"]:
            request = exchange["request"]
            now_ms = time_of(exchange, now_ms)
            is_real = exchange["label"].startswith(("real", "peer", "client")) or "Deno" in str(request["headers"])
            if is_real and exchange["response"]["status"] == 200 and not request.get("bodyTruncated"):
                found.append((request["path"], now_ms, (request.get("body") or "").encode()))
    return found


async def push(child: UpstreamChild, path: str, *commits: Commit, by: OwnedSession = A) -> int:
    """Push a commit; return the status, or 0 if the server's process has ended."""
    async with httpx2.AsyncClient(verify=False, timeout=HANG) as http:
        headers = {"x-goat-sig": signed_header(by, NOW)}
        try:
            answer = await http.post(f"{child.url}/batch-sync", json=[element(path, commits)], headers=headers)
        except httpx2.HTTPError:
            return 0
        return answer.status_code


@pytest.mark.parametrize("age", [0, 4_999, 5_001])
async def test_the_stand_in_ends_when_a_creation_older_than_five_seconds_meets_another(age: int) -> None:
    async with UpstreamChild(A, clock=Standing()) as child:
        for session in (X, Y):
            child.introduce(session.session)
        first, second = (commit_by(by, "k", {"text": by.id}, ts=NOW - age) for by in (X, Y))
        await push(child, "/data/x", first)
        await push(child, "/data/x", second)
        assert (child.died is not None) is (age > 5_000)
        assert set(child.repositories["/data/x"]) == {first.id, second.id}


async def test_the_stand_in_looks_at_new_leaves_only() -> None:
    async with UpstreamChild(A, clock=Standing()) as child:
        fresh = owned("anon-fresh")
        first = introduction(fresh, A)
        child_of_it = replace_signed(first, parents=(first.id,))
        assert await push(child, "/sys/sessions", first, child_of_it) == 200
        assert fresh.id in child.sessions, "of the two, the child is a leaf"
        other, stranger = root("root-b"), root("root-c")
        introduced = introduction(other, A)
        vouched = replace_signed(introduction(other, stranger), parents=(introduced.id,), by=stranger)
        child.sessions[stranger.id] = stranger.session
        assert await push(child, "/sys/sessions", introduced, vouched) == 200
        assert len(child.repositories["/sys/sessions"]) == 4
        assert other.id not in child.sessions, "the introduction has a child, and no root has signed that"


def replace_signed(commit: Commit, *, parents: tuple[str, ...], by: OwnedSession = A) -> Commit:
    return sign_commit(by, replace(commit, id=new_id(), parents=parents, signature=None), now_ms=NOW)


async def test_the_stand_in_makes_a_root_of_its_own_where_it_finds_none() -> None:
    first, second = UpstreamChild(None), UpstreamChild(None)
    assert first.root.session.is_root
    assert first.root.id != second.root.id


async def test_the_stand_in_listens_on_all_addresses_where_it_is_told_to_as_the_original_does() -> None:
    async with (
        UpstreamChild(A, host="0.0.0.0") as everywhere,
        UpstreamChild(A) as here,
        httpx2.AsyncClient(verify=False, timeout=HANG) as http,
    ):
        for url in (everywhere.url, everywhere.url.replace("127.0.0.1", "127.0.0.2"), here.url):
            assert (await http.get(f"{url}/healthy")).text == "OK"
        with pytest.raises(httpx2.ConnectError):
            await http.get(here.url.replace("127.0.0.1", "127.0.0.2") + "/healthy")


async def test_the_stand_in_verifies_again_what_is_sent_again_before_it_is_stored() -> None:
    async with UpstreamChild(A, clock=Standing()) as child:
        child.introduce(X.session)
        commit = commit_by(X, "k", {"text": "x"})
        async with child.stalled():
            pushes = [asyncio.create_task(push(child, "/data/x", commit, by=X)) for _ in range(2)]
            async with asyncio.timeout(HANG):
                while child.verified[commit.id] < 2:
                    await asyncio.sleep(0.01)
            assert not child.repositories["/data/x"]
        assert await asyncio.gather(*pushes) == [200, 200]
        assert await push(child, "/data/x", commit, by=X) == 200
        assert child.verified[commit.id] == 2


def test_nothing_is_refused_that_a_real_client_or_server_was_recorded_to_send() -> None:
    limits = DoorLimits()
    commits = batches = sessions = 0
    for path, now_ms, body in bodies():
        try:
            if path == "/batch-sync":
                batches += 1
                for element in read_batch(body, limits):
                    for commit in element.commits:
                        read_commit(commit.raw, element.path, org="localhost", limits=limits, now_ms=now_ms)
                        commits += 1
            elif path == "/auth/session":
                check_session_request(body)
                sessions += 1
        except RefusedError as error:
            raise AssertionError(f"{error.rule}: {error}: {body[:200]!r}") from error
    assert commits > 3
    assert batches > 10
    assert sessions >= 3


def test_a_large_body_says_what_the_same_body_says_that_is_small() -> None:
    limits = DoorLimits()
    for path, _, body in bodies():
        if path == "/batch-sync":
            small, large = read_batch(body, limits), read_batch(body.ljust(SMALL_BODY + 1), limits)
            assert [each.path for each in large] == [each.path for each in small]
            assert [[one.raw for one in each.commits] for each in large] == [
                [one.raw for one in each.commits] for each in small
            ]
            assert [{**each.raw["msg"], "c": []} for each in large] == [{**each.raw["msg"], "c": []} for each in small]


def test_nothing_is_refused_of_what_a_real_server_stored() -> None:
    """All commits in the recorded data directories, except those that the recordings call malformed."""
    limits = DoorLimits()
    seen = 0
    for name in ("batch-sync-client", "two-round", "two-round-peer", "session-create", "login", "rotated-restart"):
        recording = load(name)
        for key in ("dataDirBefore", "dataDirAfter"):
            for file, records in recording.get(key, {}).items():
                if not file.endswith(".jsonl"):
                    continue
                path = "/" + "/".join(file.removesuffix(".jsonl").split("/")[-2:])
                for raw in records:
                    read_commit(raw, path, org="localhost", limits=limits, now_ms=recording["recordedAtMs"])
                    seen += 1
    assert seen > 20
