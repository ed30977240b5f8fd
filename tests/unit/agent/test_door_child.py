"""The stand-in for an unmodified server answers as the original was recorded, where the original is wrong, too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx2
import pytest

from goatherd.agent.door.limits import Limits
from goatherd.agent.door.rules import RefusedError, check_session_request, read_batch, read_commit
from goatherd.identity.session import OwnedSession, Session, parse_signature
from goatherd.testing.upstream_child import UpstreamChild
from goatherd.wire.schema import Field, Registry, Schema
from tests.cluster.door_world import Standing

EXCHANGES = Path(__file__).parents[2] / "exchanges"
NOTE = Schema(
    ns="note",
    version=1,
    fields=(
        Field(name="title", type="string", required=True),
        Field(name="n", type="number"),
        Field(name="done", type="boolean"),
        Field(name="when", type="date"),
        Field(name="tags", type="set"),
        Field(name="meta", type="map"),
        Field(name="body", type="richtext"),
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


def test_nothing_is_refused_that_a_real_client_or_server_was_recorded_to_send() -> None:
    limits = Limits()
    commits = batches = sessions = 0
    for path, now_ms, body in bodies():
        try:
            if path == "/batch-sync":
                batches += 1
                for element in read_batch(body, limits):
                    for raw in element.commits:
                        read_commit(raw, element.path, org="localhost", limits=limits, now_ms=now_ms)
                        commits += 1
            elif path == "/auth/session":
                check_session_request(body)
                sessions += 1
        except RefusedError as error:
            raise AssertionError(f"{error.rule}: {error}: {body[:200]!r}") from error
    assert commits > 3
    assert batches > 10
    assert sessions >= 3


def test_nothing_is_refused_of_what_a_real_server_stored() -> None:
    """Every commit in the recorded data directories, but those that the recordings call malformed."""
    limits = Limits()
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
