"""Each JSON document has the fields that json_fields.py declares, all of them and no others.

The fixture `goatherd` checks every document of every test for fields that are not declared, and for wrong types. The
scenarios here look for the opposite: a declared field that no longer occurs.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from unittest.mock import patch

import pytest

from goatherd.clock import SystemClock
from goatherd.identity.document import encode_document
from goatherd.identity.session import ROOT_OWNER, OwnedSession
from goatherd.identity.settings_json import from_settings
from goatherd.identity.transitions import create_document
from goatherd.ids import new_id
from goatherd.plugins import open_provider
from tests.deadlines import HANG
from tests.docs.json_fields import DOCUMENTS, OBJECTS, Field
from tests.fakes.aws_fake import ACCESS_KEY, REGION, FakeSecretsManager
from tests.ports import free_ports
from tests.unit.goats import introduction

from .conftest import Goatherd, Serving
from .json_documents import JSONDocuments

ROOT = Path(__file__).parents[3]
DOWN = "http://127.0.0.1:1"
"""A server that does not answer."""


@dataclass(frozen=True, slots=True)
class Stage:
    """What a scenario works with: the command line, a store without an identity, an empty directory."""

    goatherd: Goatherd
    store: str
    directory: Path
    documents: JSONDocuments
    serve: Callable[..., Serving]

    def run(self, *arguments: str) -> None:
        """Run a command with the store and ``--json``; it must print a document."""
        result = self.goatherd(*arguments, "--provider", self.store, "--json")
        assert result.out.startswith("{"), result.err

    def start_server(self) -> Serving:
        return self.serve("--data", str(self.directory / "data"), "--provider", self.store)


def without_store(stage: Stage) -> None:
    stage.goatherd("--version", "--json")
    stage.goatherd("config", "--json")
    stage.goatherd("policy", "aws", "--role", "server", "aws://eu-west-1/goatdb/root", "--json")
    stage.goatherd("show", "--provider", stage.store, "--json")
    stage.goatherd("status", "--provider", stage.store, "--node", "http://127.0.0.1:1", "--json")
    stage.goatherd("doctor", "--signer", "local:/no/such/key.json", "--json")


def identity_of_a_new_store(stage: Stage) -> None:
    stage.run("init")
    stage.run("show")
    stage.run("doctor")
    stage.run("sign")
    stage.run("export", str(stage.directory / "settings.json"))
    stage.run("scan", str(stage.directory / "settings.json"))
    stage.run("fetch", "--data", str(stage.directory / "data"), "--create", "--plain-file")
    stage.run("lease", "--make")


def stores_of_three_regions(stage: Stage) -> None:
    followers = [f'{{region = "{name}", provider = "file://{stage.directory}/{name}/root"}}' for name in ("us", "ap")]
    file = stage.directory / "regions.toml"
    file.write_text(
        f'[stores]\nprimary = {{region = "eu", provider = "{stage.store}"}}\nfollowers = [{", ".join(followers)}]\n'
    )
    for words in ("init", "stores status", "stores sync", "stores promote us", "stores status"):
        stage.goatherd(*words.split(), "--config", str(file), "--json")


def rotation_and_what_it_leaves(stage: Stage) -> None:
    stage.run("init")
    stage.run("rotate", "--plan", "--node", DOWN)
    trail = str(stage.directory / "audit.jsonl")
    stage.run("rotate", "--unsafe-without-nodes", "--audit-log", trail)
    stage.run("audit", "verify", trail)
    stage.run("audit", "show", trail)
    stage.run("history", "--audit-log", trail)
    stage.run("show")
    stage.run("versions")
    stage.run("versions", "label", "mine", "1")
    stage.run("retire", "--dry-run", "--grace", "0s")
    stage.run("restore", "--unsafe-without-nodes")
    stage.run("retire", "--yes", "--grace", "0s")
    stage.run("versions", "label", "aws-of-mine", "current")
    credentials = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": "x" * 40}
    with FakeSecretsManager() as fake, patch.dict(os.environ, credentials):
        stage.goatherd("copy", stage.store, f"aws://{REGION}/copy?endpoint={fake.url}", "--dry-run", "--json")
    stage.goatherd("copy", stage.store, f"file://{stage.directory}/copy/root", "--json")
    anchored(stage)


def anchored(stage: Stage) -> None:
    """Add an anchor, prepare its replacement and its removal, and drop it as lost."""
    key = stage.directory / "seal"
    key.write_text(secrets.token_hex(32))
    key.chmod(0o600)
    first, second = (f"local:{stage.directory}/{name}.json?seal-key=file:{key}" for name in ("first", "second"))
    stage = replace(stage, store=f"file://{stage.directory}/anchored/root")
    made = stage.goatherd("init", "--anchor", first, "--create-key", "--provider", stage.store)
    assert made.code == 0, made.err
    with patch.dict(os.environ, {"GOATHERD_SIGNERS": f"{first} {second}"}):
        for choice in (("--anchor", second, "--create-key"), ("--remove-anchor",)):
            stage.run("rotate", *choice, "--to", "prepared", "--unsafe-without-nodes")
            stage.run("show")
            stage.run("rotate", "--cancel", "--unsafe-without-nodes")
        stage.run("status")
    stage.run("rotate", "--drop-lost-anchor")


def expired_root(stage: Stage) -> None:
    past_ms = SystemClock().now_ms() - timedelta(days=181) // timedelta(milliseconds=1)
    root = OwnedSession.generate(session_id=new_id(), owner=ROOT_OWNER, now_ms=past_ms, lifetime=timedelta(days=180))

    async def keep() -> None:
        provider, secret_id = open_provider(stage.store)
        async with provider:
            await provider.create(secret_id, encode_document(create_document(root, past_ms)))

    asyncio.run(keep())
    stage.run("rotate", "--replace-expired", "--adoption", "1s", "--node", DOWN)


def schedule(stage: Stage) -> None:
    stage.run("init")
    stage.run("controller", "--explain")
    stage.run("controller", "--once", "--unsafe-without-nodes")


def migration(stage: Stage) -> None:
    settings = stage.directory / "settings.json"
    stage.run("init")
    stage.run("export", str(settings))
    other = f"file://{stage.directory}/other/root"
    stage.goatherd("migrate", str(settings), "--provider", other, "--node", DOWN, "--json")


def damaged_data(stage: Stage) -> None:
    stage.run("init")
    stage.run("export", str(stage.directory / "settings.json"))
    root = from_settings((stage.directory / "settings.json").read_bytes(), 0)[0].current
    now_ms = SystemClock().now_ms()
    user = OwnedSession.generate(session_id="user", owner=None, now_ms=now_ms).session
    created = [introduction(each, root, ts=now_ms) for each in (user, replace(user, owner="u7"))]
    for name, lines in {
        "data/notes": ['{"id"#"n1"}'],
        "sys/sessions": [json.dumps(c.to_json()) for c in created],
    }.items():
        log = stage.directory / f"data/localhost/{name}.jsonl"
        log.parent.mkdir(parents=True)
        log.write_text("".join(f"{line}\n" for line in lines))
    data = str(stage.directory / "data")
    stage.run("data", "check", data)
    stage.run("data", "repair", data)


@contextmanager
def server_under_agent(stage: Stage) -> Iterator[str]:
    """Run a server that GoatDB's own could be, under an agent with a door; give the door's URL."""
    inside, port = free_ports(2)
    data = str(stage.directory / "unmodified")
    command = ["run", "--create", "--provider", stage.store, "--data", data, "--door", str(port)]
    command += ["--url", f"http://127.0.0.1:{inside}", "--", sys.executable, "-m", "tests.cluster.goatlike"]
    command += ["--path", data, "--port", str(inside)]
    with (
        (stage.directory / "agent.log").open("w") as log,
        subprocess.Popen([sys.executable, "-m", "goatherd", *command], stdout=log, stderr=log, cwd=ROOT) as process,
    ):
        try:
            until = time.monotonic() + 2 * HANG
            while '"leakCheck":{' not in identity_at(port):
                assert process.poll() is None, (stage.directory / "agent.log").read_text()
                assert time.monotonic() < until, (stage.directory / "agent.log").read_text()
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def identity_at(port: int) -> str:
    with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/goatherd/v1/identity") as answer:
        return str(answer.read())
    return ""


def revocation_with_a_server(stage: Stage) -> None:
    stage.run("init")
    server = stage.start_server()
    stage.documents.check(["serve", "--json"], server.ready)
    node = ("--node", server.url)
    stage.run("rotate", "--to", "published", *node)
    with server_under_agent(stage) as agent:
        stage.run("status", *node, "--node", agent)
    stage.run("rotate", "--resume", *node)
    stage.run("status", *node)
    root = stage.goatherd("show", "--provider", stage.store, "--json").json["current"]["id"]
    stage.run("revoke", root, "--plan", "--distrust", server.url, *node)
    stage.run("revoke", root, "--reason", "stolen", "--yes", *node)
    assert stage.goatherd("rotate", *node, "--provider", stage.store).code == 0
    assert stage.goatherd("restore", "--to", "published", "--provider", stage.store, *node).code == 0
    stage.run("show")
    anchored(stage)
    stage.run("rotate", "--cancel", *node)
    stage.run("status", *node)


def door(stage: Stage) -> None:
    stage.run("init")
    command = ["door", "--json", "--upstream", DOWN, "--provider", stage.store, "--port", "0"]
    with subprocess.Popen([sys.executable, "-m", "goatherd", *command], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            stage.documents.check(command, json.loads(process.stdout.readline()))
        finally:
            process.terminate()


def page(stage: Stage) -> None:
    stage.run("init")
    line = [sys.executable, "-m", "goatherd", "web", "--json", "--port", "0", "--provider", stage.store]
    with subprocess.Popen(line, cwd=stage.directory, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        stage.documents.check(["web"], json.loads(process.stdout.readline()))
        process.terminate()


def demo(stage: Stage) -> None:
    assert stage.goatherd("demo", "--json").code == 0


Scenario = Callable[[Stage], None]

FAST: dict[Scenario, list[str]] = {
    without_store: ["--version", "config", "policy", "error", "doctor --signer", "check"],
    identity_of_a_new_store: ["init", "show", "doctor", "sign", "export", "scan", "fetch", "lease", "session"],
    rotation_and_what_it_leaves: [
        *["rotate", "rotate --plan", "restore", "retire", "retire --dry-run", "key inventory"],
        *["rotate --drop-lost-anchor", "stored version", "event"],
        *["kept version", "versions", "versions label", "audit verify", "audit show", "history", "copy"],
    ],
    stores_of_three_regions: ["stores status", "stores sync", "stores promote", "region"],
    expired_root: ["rotate --replace-expired"],
    schedule: ["controller --explain", "controller --once", "due"],
    migration: ["migrate"],
    damaged_data: ["data check", "data repair", "finding", "conflict"],
}
SLOW: dict[Scenario, list[str]] = {
    revocation_with_a_server: ["serve", "status", "server", "revoke", "identity", "rotation report"],
    door: ["door"],
    page: ["web"],
}
DEEP: dict[Scenario, list[str]] = {demo: ["demo"]}
"""By scenario, the documents and objects of which every declared field occurs in it."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scenario", "names"),
    [
        *(pytest.param(*each, id=each[0].__name__) for each in FAST.items()),
        *(pytest.param(*each, id=each[0].__name__, marks=pytest.mark.slow) for each in SLOW.items()),
        *(pytest.param(*each, id=each[0].__name__, marks=pytest.mark.deep) for each in DEEP.items()),
    ],
)
def test_every_declared_field_occurs(
    scenario: Scenario,
    names: list[str],
    goatherd: Goatherd,
    store: str,
    tmp_path: Path,
    json_documents: JSONDocuments,
    serve: Callable[..., Serving],
) -> None:
    scenario(Stage(goatherd, store, tmp_path, json_documents, serve))
    for name in names:
        declared = set((DOCUMENTS | OBJECTS)[name])
        assert declared == json_documents.seen[name], f"{name}: declared in json_fields.py, but it never occurs"


def test_every_document_and_every_object_has_a_scenario() -> None:
    covered = [name for names in [*FAST.values(), *SLOW.values(), *DEEP.values()] for name in names]
    assert sorted(covered) == sorted([*DOCUMENTS, *OBJECTS])


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"lease": "x", "made": True, "holder": None, "until": None, "new": 1}, "the field new is not declared"),
        ({"lease": "x", "made": 1}, "made is declared as boolean, but holds 1"),
        ({"lease": None}, "lease is declared as string, but holds None"),
    ],
)
def test_a_field_that_is_not_declared_or_has_another_type_is_found(document: dict[str, object], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        JSONDocuments().check(["lease", "--json"], document)


def test_a_nested_field_that_is_not_declared_is_found() -> None:
    with pytest.raises(AssertionError, match="stored version: the field new is not declared"):
        JSONDocuments().check(["versions"], {"versions": [{"new": 1}]})
    with pytest.raises(AssertionError, match=r"copy: the field skipped\[\]\.new is not declared"):
        JSONDocuments().check(["copy"], {"skipped": [{"new": 1}]})
    with pytest.raises(AssertionError, match="session: the field new is not declared"):
        JSONDocuments().check(["show"], {"current": {"new": 1}})


def test_every_meaning_is_one_plain_sentence() -> None:
    fields: list[Field] = [field for each in [*DOCUMENTS.values(), *OBJECTS.values()] for field in each.values()]
    assert [field.meaning for field in fields if not field.meaning.endswith(".")] == []
    assert {field.shape for field in fields} - {""} == set(OBJECTS)
