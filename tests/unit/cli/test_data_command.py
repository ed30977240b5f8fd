"""goatherd doctor --data: the check and the repair of a data directory."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from goatherd.cli.main import EXIT_CODES, EXIT_FINDINGS
from goatherd.clock import SystemClock
from goatherd.cluster.client import NodeClient
from goatherd.identity.document import IdentityDocument, encode_document
from goatherd.identity.settings_json import to_settings
from goatherd.node.log_storage import LogDirectory
from goatherd.plugins import open_provider
from goatherd.providers.values import SecretBytes
from goatherd.wire.commit_log import frame_records
from tests.deadlines import ANSWER
from tests.unit.goats import NOW, commit_by, introduction, owned, root

from .conftest import Goatherd, Serving, secrets_in

Serve = Callable[..., Serving]

CURRENT, USER = root("current"), owned("user")
DOCUMENT = IdentityDocument(generation=1, current=CURRENT, roots=(CURRENT.session,), last_updated=NOW)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return a data directory with one damaged line among valid ones."""
    directory = tmp_path / "data" / "localhost"
    commits = {
        "sys/sessions": [introduction(USER, CURRENT, commit_id="s1")],
        "data/notes": [commit_by(USER, f"k{n}", {"n": n}, commit_id=f"n{n}") for n in range(3)],
    }
    for name, each in commits.items():
        file = directory / f"{name}.jsonl"
        file.parent.mkdir(parents=True)
        file.write_bytes(frame_records([commit.to_json() for commit in each]).replace(b'"id":"n1"', b'"id"#"n1"'))
    return directory.parent


@pytest.fixture
def identity(store: str) -> str:
    """Return a store with the identity to which the data belong."""

    async def put() -> None:
        provider, secret_id = open_provider(store)
        async with provider:
            await provider.create(secret_id, SecretBytes(encode_document(DOCUMENT)))

    asyncio.run(put())
    return store


def test_check_lists_what_is_damaged_and_repair_moves_it_aside(goatherd: Goatherd, data: Path, identity: str) -> None:
    file = data / "localhost" / "data" / "notes.jsonl"
    offset = file.read_bytes().index(b'{"ver"', 10)
    found = goatherd("data", "check", str(data), "--provider", identity)
    assert found.code == EXIT_FINDINGS
    assert f"data/notes.jsonl, byte {offset}, " in found.out
    assert "damaged: the line is not a JSON object" in found.out
    assert f"verified with the identity of {identity}" in found.out
    (one,) = goatherd("data", "check", str(data), "--provider", identity, "--json").json["organizations"]
    assert (one["org"], one["records"], one["verifiedWith"]) == ("localhost", 3, identity)
    (finding,) = one["findings"]
    assert (finding["file"], finding["offset"], finding["kind"]) == (str(file), offset, "damaged")
    done = goatherd("data", "repair", str(data), "--provider", identity)
    assert done.code == 0
    assert "moved aside: 1, into data/notes.jsonl.damaged" in done.out
    assert b'"id"#"n1"' in file.with_name("notes.jsonl.damaged").read_bytes()
    clean = goatherd("data", "check", str(data / "localhost"), "--provider", identity)
    assert (clean.code, clean.out.splitlines()[-1]) == (0, "nothing found")
    again = goatherd("data", "repair", str(data), "--provider", identity)
    assert (again.code, "nothing was moved or fetched" in again.out) == (0, True)


def test_without_a_store_the_roots_of_the_directory_count_and_without_these_none(
    goatherd: Goatherd, data: Path
) -> None:
    assert "signatures were NOT verified" in goatherd("data", "check", str(data)).out
    settings = data / "localhost" / "settings.json"
    settings.write_bytes(to_settings(DOCUMENT))
    result = goatherd("data", "check", str(data))
    assert f"verified with the identity of {settings}" in result.out
    for secret in secrets_in(data):
        assert secret not in result.out + result.err


def test_the_store_is_not_read_with_offline(goatherd: Goatherd, data: Path, store: str) -> None:
    assert goatherd("data", "check", str(data), "--provider", store).code == EXIT_CODES["provider"]
    assert goatherd("data", "check", str(data), "--provider", store, "--offline").code == EXIT_FINDINGS


def test_what_cannot_be_meant_is_an_error(goatherd: Goatherd, data: Path, tmp_path: Path) -> None:
    assert goatherd("data", "check", str(tmp_path / "dta")).code == EXIT_CODES["configuration"]
    assert goatherd("data", "check", str(data), "--org", "acme").code == EXIT_CODES["configuration"]
    for action in ("check", "repair"):
        assert "--provider" in goatherd("data", action, str(data), "--peer", "http://127.0.0.1:1").err
    with LogDirectory(data / "localhost"):
        result = goatherd("data", "repair", str(data))
        assert result.code == EXIT_CODES["node"]
        assert "in use by process" in result.err
    assert not list(data.rglob("*.damaged"))


def test_a_peer_that_does_not_answer_is_named(goatherd: Goatherd, data: Path, identity: str) -> None:
    result = goatherd("data", "repair", str(data), "--provider", identity, "--peer", "http://127.0.0.1:1")
    assert result.code == EXIT_FINDINGS
    assert "problem: POST http://127.0.0.1:1/batch-sync" in result.out
    assert "not fetched yet: 1" not in result.out
    assert "lines without a readable commit id: 1; their commits were fetched if a peer that answered" in result.out
    assert "`repair --peer URL`" not in result.out, "a peer was given"
    assert "No peer that answered holds a valid copy of what was not fetched." in result.out, "it may have sent others"


def test_records_of_a_lost_session_stay_and_the_output_names_what_fetches_the_session(
    goatherd: Goatherd, data: Path, identity: str
) -> None:
    sessions = data / "localhost" / "sys" / "sessions.jsonl"
    sessions.write_bytes(frame_records([introduction(owned("other"), CURRENT, commit_id="s2").to_json()]))
    done = goatherd("data", "repair", str(data), "--provider", identity)
    assert done.code == EXIT_FINDINGS
    assert "not repaired: 2" in done.out
    assert "Records of unknown sessions stay in their logs. --peer URL fetches missing sessions." in done.out
    sessions.unlink()
    lost = goatherd("data", "check", str(data), "--provider", identity)
    assert lost.code == EXIT_CODES["configuration"]
    assert "has lost its sessions" in lost.err
    assert "--peer" in lost.err


@pytest.mark.slow
def test_repair_fetches_a_damaged_commit_from_a_running_server(
    goatherd: Goatherd, data: Path, store: str, serve: Serve, tmp_path: Path
) -> None:
    """The peer holds it; the private key in the store signs the request."""
    goatherd("init", "--provider", store)
    shutil.rmtree(data)
    peer = serve("--provider", store, "--data", str(tmp_path / "peer"))
    ids = asyncio.run(push(peer.url))
    shutil.copytree(tmp_path / "peer", data)
    file = data / "localhost" / "data" / "notes.jsonl"
    file.write_bytes(file.read_bytes().replace(b'"text"', b'"Text"', 1).replace(b"{", b"", 1))
    result = goatherd("data", "repair", str(data), "--provider", store, "--peer", peer.url, "--json")
    (done,) = result.json["organizations"]
    assert (result.code, len(done["setAside"]), done["fetched"], done["problems"]) == (0, 1, 1, [])
    with LogDirectory(data / "localhost") as logs:
        assert {record["id"] for record in logs.open_log("/data/notes").read_records()} == set(ids)
    assert peer.stop() == 0


async def push(url: str) -> list[str]:
    now_ms = SystemClock().now_ms()
    async with NodeClient(url, timeout=ANSWER) as client:
        author, _ = await client.create_session()
        commits = [commit_by(author, f"k{n}", {"text": "x"}, ts=now_ms) for n in range(3)]
        await client.push("/data/notes", commits, author)
    return [commit.id for commit in commits]


@pytest.mark.slow
def test_status_and_doctor_show_what_a_server_has_found_in_its_logs(
    goatherd: Goatherd, data: Path, identity: str, serve: Serve
) -> None:
    server = serve("--provider", identity, "--data", str(data))
    words = ("--provider", identity, "--node", server.url)
    for _ in range(200):
        (node,) = goatherd("status", *words, "--json").json["nodes"]
        if node["data"]["complete"]:
            break
    assert node["data"] == {"complete": True, "records": 3, "damaged": 1, "unverifiable": 0, "unwritable": 0}
    assert "unusable records in its logs: 1 damaged" in goatherd("status", *words).out
    told = goatherd("doctor", *words).out
    assert f"{server.url} has unusable records in its logs: 1 damaged" in told
    assert "goatherd doctor --data check" in told
    assert server.stop() == 0
    assert f"data.damaged file={data}/localhost/data/notes.jsonl damaged=1" in server.stderr.read_text()
