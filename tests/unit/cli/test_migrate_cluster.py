"""migrate for a whole cluster: comparing servers, reading the store back, checking servers, and removing keys from
disks."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from goatherd.cli.main import EXIT_CODES, EXIT_FINDINGS, EXIT_INTERRUPTED
from goatherd.clock import SystemClock
from goatherd.errors import SettingsError
from goatherd.identity.document import decode_document, encode_document
from goatherd.identity.session import OwnedSession, Session, parse_signature
from goatherd.identity.settings_json import from_settings
from goatherd.identity.succession import verify_succession
from goatherd.identity.transitions import prune_roots
from goatherd.node.log_storage import LogDirectory
from goatherd.operations.migration_files import verified_sessions
from goatherd.plugins import open_provider
from goatherd.providers.base import SecretProvider
from goatherd.providers.file.provider import FileSecretProvider
from goatherd.providers.values import CURRENT, SecretBytes
from goatherd.settings.data_directory import REMAINS, read_commits
from goatherd.trust import TrustPool
from goatherd.wire.commit import Commit
from goatherd.wire.commit_log import frame_records
from goatherd.wire.javascript_values import ms_from_seconds
from tests.fakes.upstream_child import SESSIONS, UpstreamChild
from tests.unit.goats import introduction

from .conftest import Goatherd, read_documents
from .test_migrate import DESCRIPTION, NAMED, NOW_MS, settings, settle
from .upstream import upstream

FAR_MS = 4_000_000_000_000


@contextmanager
def server(status: int, *, accepts: str | None = None) -> Iterator[str]:
    """Run a server that answers every request with `status`, but with 200 if the root `accepts` has signed it."""

    class Answer(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            signer = parse_signature(self.headers["x-goat-sig"]).session_id
            self.send_response(200 if signer == accepts else status)
            self.send_header("content-length", "2")
            self.end_headers()
            self.wfile.write(b"[]")

        def log_message(self, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{http.server_port}"
        finally:
            http.shutdown()
            thread.join()


@pytest.fixture
def second(data: Path) -> Path:
    """Return a second server of the same cluster, whose root GoatDB has extended."""
    other = Path(shutil.copytree(data, data.parent / "second"))
    settle(other)
    return other


def rewritten(top: Path, change: dict[str, Any]) -> None:
    (top / "localhost/settings.json").write_text(json.dumps({**settings(top), **change}))


def a_new_root(top: Path, session_id: str) -> str:
    """Give a server a new root, as GoatDB does if it cannot read its settings.json."""
    root = OwnedSession.generate(session_id=session_id, owner="root", now_ms=NOW_MS)
    rewritten(top, {"currentSession": root.to_secret_json(), "roots": [root.session.to_json()], "trustedSessions": []})
    return root.id


def test_the_servers_of_a_cluster_have_one_identity_and_the_latest_expiration_counts(
    goatherd: Goatherd, data: Path, second: Path, store: str
) -> None:
    result = goatherd("migrate", str(data), str(second), "--provider", store, "--json")
    assert result.code == 0, result.err
    first, other = result.json["organizations"]
    assert (first["migrated"], other["alreadyThere"]) == (True, True)
    assert {first["current"], other["current"]} == {NAMED["root"]}
    assert goatherd("show", "--provider", store, "--json").json["current"]["expiration"].startswith("2096")


def test_different_roots_on_different_servers_are_told_with_what_to_do_and_nothing_is_written(
    goatherd: Goatherd, data: Path, second: Path, store: str
) -> None:
    stranger = a_new_root(second, "b" * 24)
    refused = goatherd("migrate", str(data), str(second), "--provider", store)
    assert refused.code == EXIT_CODES["settings"]
    assert NAMED["root"] in refused.err
    assert stranger in refused.err
    assert "into its own secret" in refused.err
    assert "--root ID" in refused.err
    assert goatherd("show", "--provider", store).code == EXIT_CODES["provider"]


def logged(top: Path) -> list[Commit]:
    return read_commits(top / "localhost/sys/sessions.jsonl", "localhost")


@pytest.mark.slow
def test_with_a_chosen_root_the_other_one_stays_trusted_and_all_clients_find_their_way(
    goatherd: Goatherd, data: Path, second: Path, store: str
) -> None:
    a, (b, user) = NAMED["root"], a_cluster_of_its_own(second)
    before = [(top / "localhost/sys/sessions.jsonl").read_bytes() for top in (data, second)]
    command = ["migrate", str(data), str(second), "--provider", store, "--root", a]
    dry = goatherd(*command, "--dry-run")
    assert dry.code == 0, dry.err
    assert f"root {a} becomes the current root" in dry.err
    assert f"root {b.id} ({second}/localhost/settings.json) stays trusted" in dry.err
    assert f"goatherd revoke {b.id}" in dry.err
    assert [(top / "localhost/sys/sessions.jsonl").read_bytes() for top in (data, second)] == before
    assert goatherd("show", "--provider", store).code == EXIT_CODES["provider"]

    done = goatherd(*command)
    assert done.code == 0, done.err
    shown = goatherd("show", "--provider", store, "--json").json
    assert (shown["current"]["id"], {root["id"] for root in shown["roots"]}) == (a, {a, b.id})
    assert shown["revoked"] == []
    winner, _, _ = from_settings((data / "localhost/settings.json").read_bytes(), NOW_MS)
    for trusted in (winner.current, b):
        pool = TrustPool(org="localhost", current=trusted, roots=[trusted.session])
        pool.offer_session_commits([*logged(data), *logged(second)])
        assert {root.id for root in pool.roots} == {a, b.id}, "who trusts one of the roots learns the other"
        assert pool.get_session(user.id) == user
    births = [{c.id for c in logged(top) if c.key in (a, b.id) and not c.parents} for top in (data, second)]
    assert births[0] == births[1], "the same commits without parents on both, or GoatDB servers would end"
    assert len(births[0]) == 2

    after = [(top / "localhost/sys/sessions.jsonl").read_bytes() for top in (data, second)]
    assert goatherd(*command).code == 0
    assert [(top / "localhost/sys/sessions.jsonl").read_bytes() for top in (data, second)] == after


def test_a_server_that_trusts_only_the_root_that_lost_may_follow(
    goatherd: Goatherd, data: Path, second: Path, store: str, tmp_path: Path
) -> None:
    b, _ = a_cluster_of_its_own(second)
    assert goatherd("migrate", str(data), str(second), "--provider", store, "--root", NAMED["root"]).code == 0
    (document,) = read_documents(store)
    verify_succession(document, [b.session])
    verify_succession(document, [document.current.session])


def test_a_root_that_one_broken_server_has_added_becomes_no_root_without_a_yes(
    goatherd: Goatherd, data: Path, second: Path, store: str
) -> None:
    thief = OwnedSession.generate(session_id="t" * 24, owner="root", now_ms=NOW_MS).session
    rewritten(second, {"trustedSessions": [*settings(second)["trustedSessions"], thief.to_json()]})
    one, both = ["migrate", str(second), "--provider", store], ["migrate", str(data), str(second), "--provider", store]
    for command in (one, both):
        planned = goatherd(*command, "--dry-run")
        assert f"nothing without --accept-roots, because of root {thief.id}" in planned.out
        refused = goatherd(*command)
        assert refused.code == EXIT_CODES["configuration"]
        assert f"root {thief.id} (localhost: in {second}/localhost/settings.json)" in refused.err
        assert goatherd("show", "--provider", store).code == EXIT_CODES["provider"]
    assert goatherd(*both, "--accept-roots").code == 0
    roots = goatherd("show", "--provider", store, "--json").json["roots"]
    assert {root["id"] for root in roots} == {NAMED["root"], thief.id}
    assert goatherd(*both).code == 0, "the store's identity gets no further roots, so there is nothing to confirm"


def test_a_root_that_no_server_has_cannot_be_chosen(goatherd: Goatherd, data: Path, second: Path, store: str) -> None:
    a_cluster_of_its_own(second)
    refused = goatherd("migrate", str(data), str(second), "--provider", store, "--root", "z" * 24)
    assert refused.code == EXIT_CODES["settings"]
    assert "no server of localhost has root" in refused.err
    assert "Give --root one of these roots." in refused.err
    blind = goatherd("migrate", str(data), "--provider", store, "--root", NAMED["root"], "--no-write-sessions")
    assert "cannot be combined with --no-write-sessions" in blind.err


def test_items_that_both_servers_created_are_named_before_anything_is_written(
    goatherd: Goatherd, data: Path, second: Path, store: str
) -> None:
    b, user = a_cluster_of_its_own(second)
    command = ["migrate", str(data), str(second), "--provider", store, "--root", NAMED["root"], "--dry-run"]
    assert "created on more than one server" not in goatherd(*command).err, "what was copied is no second creation"
    for top in (data, second):
        with LogDirectory(top / "localhost") as directory:
            log = directory.open_log("/data/common")
            log.append_record(introduction(user, b, key="settings").to_json())
            log.flush()
    told = goatherd(*command).err
    assert "1 item was created on more than one server independently (/data/common/settings)" in told
    assert "goatherd serve" in told


def a_cluster_of_its_own(top: Path) -> tuple[OwnedSession, Session]:
    """Give a server a new root, and a user session that this root has introduced in its log."""
    root = OwnedSession.generate(session_id="b" * 24, owner="root", now_ms=NOW_MS)
    rewritten(top, {"currentSession": root.to_secret_json(), "roots": [root.session.to_json()], "trustedSessions": []})
    user = OwnedSession.generate(session_id="u" * 24, owner=None, now_ms=NOW_MS).session
    with LogDirectory(top / "localhost") as directory:
        log = directory.open_log(SESSIONS)
        log.append_record(introduction(user, root).to_json())
        log.flush()
    return root, user


def test_one_root_with_two_keys_is_a_forgery(goatherd: Goatherd, data: Path, second: Path, store: str) -> None:
    a_new_root(second, NAMED["root"])
    refused = goatherd("migrate", str(data), str(second), "--provider", store)
    assert refused.code == EXIT_CODES["settings"]
    assert "forged" in refused.err
    assert goatherd("show", "--provider", store).code == EXIT_CODES["provider"]


def test_the_store_is_read_back(goatherd: Goatherd, data: Path, store: str) -> None:
    assert "read back from" in goatherd("migrate", str(data), "--provider", store).out
    assert "read back from" not in goatherd("migrate", str(data), "--provider", store, "--dry-run").out


def test_a_store_that_gives_something_else_back_keeps_the_key_on_the_disk(
    goatherd: Goatherd, data: Path, store: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = f"file://{tmp_path}/other/root"
    goatherd("init", "--provider", other)
    whole = FileSecretProvider._create

    async def forgetful(self: Any, call: Any, value: Any, label: Any) -> Any:
        stored = json.loads((tmp_path / "other" / "root" / "secret.json").read_bytes())
        value = type(value)(stored["value"].encode())
        return await whole(self, call, value, label)

    monkeypatch.setattr(FileSecretProvider, "_create", forgetful)
    refused = goatherd("migrate", str(data), "--provider", store, "--remove-key")
    assert refused.code == EXIT_CODES["settings"]
    assert "did not return root" in refused.err
    assert settings(data) == json.loads(DESCRIPTION["settings_json"])


def test_a_running_server_that_takes_the_key_for_its_root_is_a_proof(
    goatherd: Goatherd, data: Path, store: str
) -> None:
    with server(200) as url:
        result = goatherd("migrate", str(data), "--provider", store, "--node", url)
    assert result.code == 0
    assert f"{url} accepts requests signed by root {NAMED['root']}" in result.out


def test_a_running_server_that_denies_the_key_is_a_finding_and_the_key_stays_on_the_disk(
    goatherd: Goatherd, data: Path, store: str
) -> None:
    with server(403) as url:
        result = goatherd("migrate", str(data), "--provider", store, "--node", url, "--remove-key")
    assert result.code == EXIT_FINDINGS
    assert f"{url} rejects requests signed by root" in result.out
    assert "no file was removed" in result.out
    assert "still holds the private key" in result.out
    assert settings(data) == json.loads(DESCRIPTION["settings_json"])


def test_after_a_revocation_the_key_leaves_the_disk_although_no_server_accepts_it(
    goatherd: Goatherd, data: Path, store: str
) -> None:
    settle(data)
    assert goatherd("migrate", str(data), "--provider", store).code == 0
    revoked = ["revoke", NAMED["root"], "--provider", store, "--yes", "--reason", "in git", "--unsafe-without-nodes"]
    assert f"revoked {NAMED['root']}" in goatherd(*revoked).out
    current = goatherd("show", "--provider", store, "--json").json["current"]["id"]
    command = ["migrate", str(data), "--provider", store, "--remove-key", "--node"]
    with server(403) as stranger:
        refused = goatherd(*command, stranger)
    assert refused.code == EXIT_FINDINGS
    assert f"{stranger} rejects requests signed by root {current}" in refused.out
    assert (data / "localhost/settings.json").exists()
    with server(403, accepts=current) as url:
        result = goatherd(*command, url)
    assert result.code == 0, result.out
    assert f"{url} accepts requests signed by root {current}" in result.out
    assert not (data / "localhost/settings.json").exists()


def test_a_server_that_has_not_followed_a_rotation_is_one_of_the_cluster(
    goatherd: Goatherd, data: Path, store: str
) -> None:
    settle(data)
    assert goatherd("migrate", str(data), "--provider", store).code == 0
    assert goatherd("rotate", "--provider", store, "--unsafe-without-nodes").code == 0
    with server(403, accepts=NAMED["root"]) as url:
        result = goatherd("migrate", str(data), "--provider", store, "--node", url)
    assert result.code == 0
    assert f"{url} accepts requests signed by root {NAMED['root']}" in result.out


@pytest.fixture
def pruned(goatherd: Goatherd, data: Path, store: str) -> OwnedSession:
    """Migrate, and rotate until the store no longer lists the root of the settings.json. Return the current root."""
    settle(data)
    assert goatherd("migrate", str(data), "--provider", store).code == 0
    assert goatherd("rotate", "--provider", store, "--unsafe-without-nodes").code == 0
    assert goatherd("rotate", "--provider", store, "--unsafe-without-nodes").code == 0

    async def prune() -> OwnedSession:
        provider, secret_id = open_provider(store)
        async with provider:
            held = await provider.read(secret_id, CURRENT)
            shorter = prune_roots(decode_document(held.value.reveal()), [NAMED["root"]], SystemClock().now_ms())
            value = SecretBytes(encode_document(shorter))
            await provider.write(secret_id, value, label=CURRENT, expected=held.version.id)
            return shorter.current

    return asyncio.run(prune())


@pytest.mark.parametrize("where", ["the log", "a server"])
def test_a_server_whose_root_has_left_the_list_is_one_of_the_cluster_if_a_later_root_says_so(
    goatherd: Goatherd, data: Path, store: str, pruned: OwnedSession, where: str
) -> None:
    root = from_settings((data / "localhost/settings.json").read_bytes(), 0)[0].current
    chain = [introduction(root, pruned, commit_id="earlier")]
    log = data / "localhost/sys/sessions.jsonl"
    before = log.read_bytes()
    command = ["migrate", str(data), "--provider", store, "--remove-key"]

    def prepare(child: UpstreamChild) -> None:
        for commit in chain:
            child.create(SESSIONS, commit)

    if where == "the log":
        before += frame_records([commit.to_json() for commit in chain])
        log.write_bytes(before)
        result, again = goatherd(*command), goatherd(*command)
    else:
        with upstream(pruned, prepare) as child:
            result, again = (goatherd(*command, "--node", child.url) for _ in range(2))
            assert f"accepts requests signed by root {pruned.id}" in again.out
    assert result.code == again.code == 0, result.err + again.err
    assert f"already migrated: root {pruned.id}" in result.out
    assert "could not be verified" not in result.out
    assert log.read_bytes() == before, "every session is in the log, introduced by the earlier root"
    assert not (data / "localhost/settings.json").exists()


def test_a_root_that_no_later_root_has_introduced_is_not_called_another_clusters(
    goatherd: Goatherd, data: Path, store: str, pruned: OwnedSession
) -> None:
    thief = OwnedSession.generate(session_id="t" * 24, owner="root", now_ms=NOW_MS)
    root = from_settings((data / "localhost/settings.json").read_bytes(), 0)[0].current
    with (data / "localhost/sys/sessions.jsonl").open("ab") as log:
        log.write(frame_records([introduction(root, thief, commit_id="forged").to_json()]))
    refused = goatherd("migrate", str(data), "--provider", store, "--remove-key")
    assert refused.code == EXIT_CODES["identity"]
    assert f"(root {pruned.id}) does not list root {root.id}" in refused.err
    assert "remove the file by hand" in refused.err
    assert "--root" not in refused.err
    assert (data / "localhost/settings.json").exists()


def test_a_root_that_has_expired_proves_nothing_of_a_server(goatherd: Goatherd, data: Path, store: str) -> None:
    expires(data, -1)
    with server(403) as url:
        result = goatherd("migrate", str(data), "--provider", store, "--node", url)
    assert result.code == 0
    assert f"it is not known whether {url} has this root: the server rejects it, but it has expired" in result.out


def test_a_server_that_has_extended_its_root_itself_is_one_of_the_cluster(
    goatherd: Goatherd, data: Path, store: str
) -> None:
    expires(data, 1)
    assert goatherd("migrate", str(data), "--provider", store).code == 0
    assert goatherd("rotate", "--provider", store, "--unsafe-without-nodes").code == 0
    original = SystemClock.now_ms
    with pytest.MonkeyPatch.context() as patch, server(403, accepts=NAMED["root"]) as url:
        patch.setattr(SystemClock, "now_ms", lambda clock: original(clock) + 2 * 86_400_000)
        result = goatherd("migrate", str(data), "--provider", store, "--node", url)
    assert result.code == 0, result.out
    assert f"{url} accepts requests signed by root {NAMED['root']}" in result.out


def test_a_server_that_does_not_answer_is_told_and_proves_nothing(goatherd: Goatherd, data: Path, store: str) -> None:
    with server(200) as url:
        pass
    result = goatherd("migrate", str(data), "--provider", store, "--node", url, "--json")
    assert result.code == 0
    (proof,) = result.json["nodes"]
    assert proof["trusts"] is None
    assert proof["problem"]


def test_the_key_leaves_the_disk_when_asked_and_comes_back_with_export(
    goatherd: Goatherd, data: Path, store: str
) -> None:
    settle(data)
    before = settings(data)
    result = goatherd("migrate", str(data), "--provider", store, "--remove-key")
    assert result.code == 0, result.err
    file = data / "localhost/settings.json"
    assert not file.exists()
    secret = before["currentSession"]["privateKey"]["d"]
    left = [path for path in data.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]
    assert left == [], "the key is in no file of the data directory"
    note = json.loads((data / "localhost" / REMAINS).read_text())
    assert note["store"] == store
    assert note["current"]["id"] == NAMED["root"]
    assert "GoatDB itself would create a new root" in result.out
    assert "still holds the private key" not in result.out

    undone = goatherd("export", str(file), "--provider", store, "--data", str(data / "localhost"))
    assert undone.code == 0, undone.err
    assert settings(data)["currentSession"] == before["currentSession"]


def test_a_store_in_memory_never_takes_the_only_copy_of_a_key(goatherd: Goatherd, data: Path) -> None:
    command = ["migrate", str(data), "--provider", "memory:///lost/root"]
    for more in (["--remove-key"], []):
        refused = goatherd(*command, *more)
        assert refused.code == EXIT_CODES["provider"]
        assert "the memory store is lost when the command ends" in refused.err
    assert settings(data) == json.loads(DESCRIPTION["settings_json"])
    assert goatherd(*command, "--dry-run").code == 0


def expires(top: Path, days: float) -> int:
    """Set the expiration of the root in a settings.json to some days from now, as GoatDB does at a start."""
    expiration_ms = SystemClock().now_ms() + round(days * 86_400_000)
    tree = settings(top)
    listed = [tree["currentSession"], *tree["roots"], *tree["trustedSessions"]]
    for session in listed:
        if session["id"] == NAMED["root"]:
            session["expiration"] = expiration_ms / 1000
    rewritten(top, tree)
    return ms_from_seconds(expiration_ms / 1000)


def extended(goatherd: Goatherd, data: Path, store: str) -> OwnedSession:
    """Migrate a root that expires two days ago; then GoatDB extends it, and a user signs in. Return the user."""
    expires(data, -2)
    assert goatherd("migrate", str(data), "--provider", store).code == 0
    expires(data, 25)
    root = from_settings((data / "localhost/settings.json").read_bytes(), 0)[0].current
    user = OwnedSession.generate(session_id="n" * 24, owner="u9", now_ms=NOW_MS)
    with LogDirectory(data / "localhost") as directory:
        log = directory.open_log(SESSIONS)
        log.append_record(introduction(user, root, ts=SystemClock().now_ms() - 86_400_000).to_json())
        log.flush()
    return user


def test_the_expiration_that_goatdb_has_extended_since_is_in_the_store_before_the_file_is_removed(
    goatherd: Goatherd, data: Path, store: str, tmp_path: Path
) -> None:
    user = extended(goatherd, data, store)
    dry = goatherd("migrate", str(data), "--provider", store, "--dry-run")
    assert "its expiration in the store would become" in dry.out
    assert goatherd("show", "--provider", store, "--json").json["generation"] == 1
    result = goatherd("migrate", str(data), "--provider", store, "--remove-key")
    assert result.code == 0, result.err
    assert "its expiration in the store is now" in result.out
    assert "has expired" not in result.out
    assert not (data / "localhost/settings.json").exists()
    stored = read_documents(store)
    last = max(stored, key=lambda document: document.generation)
    assert (last.generation, last.is_signed) == (2, True)
    verify_succession(last, [last.current.session])
    assert user.session in verified_sessions(data / "localhost", last, "localhost")


def test_a_root_that_was_extended_after_it_was_replaced_keeps_its_file(
    goatherd: Goatherd, data: Path, store: str
) -> None:
    expires(data, 1)
    assert goatherd("migrate", str(data), "--provider", store).code == 0
    assert goatherd("rotate", "--provider", store, "--unsafe-without-nodes").code == 0
    expires(data, 25)
    later = goatherd("migrate", str(data), "--provider", store)
    assert later.code == 0, "until its stored expiration, all that the root signs is valid"
    original = SystemClock.now_ms
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SystemClock, "now_ms", lambda clock: original(clock) + 2 * 86_400_000)
        refused = goatherd("migrate", str(data), "--provider", store, "--remove-key")
    assert refused.code == EXIT_CODES["settings"]
    assert "it is not the current root there" in refused.err
    assert (data / "localhost/settings.json").exists()


def test_an_identity_that_was_changed_without_its_key_is_not_signed_by_a_migration(
    goatherd: Goatherd, data: Path, store: str, tmp_path: Path
) -> None:
    extended(goatherd, data, store)
    stored, *_ = read_documents(store)
    provider, secret_id = open_provider(store)
    altered = SecretBytes(encode_document(replace(stored, generation=7)))
    asyncio.run(write_secret(provider, secret_id, altered))
    refused = goatherd("migrate", str(data), "--provider", store, "--remove-key")
    assert refused.code == EXIT_CODES["identity"]
    assert "goatherd restore --signature" in refused.err
    assert (data / "localhost/settings.json").exists()


async def write_secret(provider: SecretProvider, secret_id: str, value: SecretBytes) -> None:
    async with provider:
        held = await provider.read(secret_id, CURRENT)
        await provider.write(secret_id, value, label=CURRENT, expected=held.version.id)


def test_a_short_life_of_the_root_in_the_store_is_told_whatever_the_file_says(
    goatherd: Goatherd, data: Path, store: str
) -> None:
    settle(data)
    assert goatherd("migrate", str(data), "--provider", store).code == 0
    assert goatherd("rotate", "--provider", store, "--unsafe-without-nodes", "--lifetime", "31d").code == 0
    current = goatherd("show", "--provider", store, "--json").json["current"]["id"]
    original = SystemClock.now_ms
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SystemClock, "now_ms", lambda clock: original(clock) + 20 * 86_400_000)
        result = goatherd("migrate", str(data), "--provider", store)
    assert f"the current root {current} expires in 11.0 days" in result.out


def test_paths_that_overlap_are_one_server(goatherd: Goatherd, data: Path, store: str, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(data)
    same = [data, data / "localhost", data / "localhost/settings.json", tmp_path / "link"]
    result = goatherd("migrate", *map(str, same), "--provider", store, "--remove-key", "--json")
    assert result.code == 0, result.err
    assert len(result.json["organizations"]) == 1
    assert not (data / "localhost/settings.json").exists()


def test_other_files_with_the_key_are_named(goatherd: Goatherd, data: Path, store: str) -> None:
    backup = data / "localhost/settings.json.bak"
    shutil.copy(data / "localhost/settings.json", backup)
    result = goatherd("migrate", str(data), "--provider", store, "--remove-key")
    assert f"{backup} holds a private key too: remove it by hand" in result.out
    assert backup.exists()


def test_a_file_beside_it_that_cannot_be_read_does_not_count_as_one_without_a_key(
    goatherd: Goatherd, data: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backup, real = data / "localhost/settings.json.bak", Path.read_bytes
    backup.write_bytes((data / "localhost/settings.json").read_bytes())

    def read(path: Path) -> bytes:
        if path == backup:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", read)
    told = f"{backup} cannot be read (Permission denied): check whether it holds a private key too"
    assert told in goatherd("migrate", str(data), "--provider", store).out
    assert told in goatherd("migrate", str(data), "--provider", store, "--remove-key").out


def test_a_dry_run_removes_nothing(goatherd: Goatherd, data: Path, store: str) -> None:
    assert goatherd("migrate", str(data), "--provider", store, "--dry-run", "--remove-key").code == 0
    assert settings(data) == json.loads(DESCRIPTION["settings_json"])


def test_without_a_terminal_there_is_no_question_and_the_key_stays(goatherd: Goatherd, data: Path, store: str) -> None:
    result = goatherd("migrate", str(data), "--provider", store)
    assert "still holds the private key" in result.out
    assert settings(data) == json.loads(DESCRIPTION["settings_json"])


def test_the_key_of_a_running_server_stays_on_its_disk(goatherd: Goatherd, data: Path, store: str) -> None:
    goatherd("migrate", str(data), "--provider", store)
    with LogDirectory(data / "localhost"):
        refused = goatherd("migrate", str(data), "--provider", store, "--no-write-sessions", "--remove-key")
    assert refused.code == EXIT_CODES["node"], refused.out
    assert settings(data) == json.loads(DESCRIPTION["settings_json"])


def test_a_link_that_the_agent_made_is_not_removed(goatherd: Goatherd, data: Path, store: str, tmp_path: Path) -> None:
    file = data / "localhost/settings.json"
    moved = file.rename(tmp_path / "in-memory.json")
    file.symlink_to(moved)
    refused = goatherd("migrate", str(data), "--provider", store, "--remove-key")
    assert refused.code == EXIT_CODES["settings"]
    assert SettingsError.code in refused.err
    assert moved.exists()


def lines_about(top: Path, session_id: str) -> list[str]:
    lines = (top / "localhost/sys/sessions.jsonl").read_text().splitlines()
    return [line for line in lines if line and json.loads(line).get("k") == session_id]


def trust_in_settings_json(top: Path, owned: OwnedSession) -> None:
    rewritten(top, {"trustedSessions": [*settings(top)["trustedSessions"], owned.session.to_json()]})


@pytest.mark.parametrize("way", ["in one call", "one call each", "one call each, and a rotation between"])
def test_a_session_that_only_settings_json_knows_gets_the_same_commit_on_every_server(
    goatherd: Goatherd, data: Path, store: str, way: str
) -> None:
    """GoatDB 0.5.1 crashes on two different commits of one session that have no parents."""
    settle(data)
    other = Path(shutil.copytree(data, data.parent / "other"))
    owned = OwnedSession.generate(session_id="a" * 24, owner="u7", now_ms=NOW_MS)
    for top in (data, other):
        trust_in_settings_json(top, owned)
    if way == "in one call":
        assert goatherd("migrate", str(data), str(other), "--provider", store).code == 0
    else:
        assert goatherd("migrate", str(data), "--provider", store).code == 0
        if "rotation" in way:
            assert goatherd("rotate", "--provider", store, "--unsafe-without-nodes").code == 0
        assert goatherd("migrate", str(other), "--provider", store, "--only-server").code == 0
    (first_line,), (second_line,) = (lines_about(top, owned.id) for top in (data, other))
    assert first_line == second_line


def test_a_session_that_another_servers_log_introduces_is_copied_from_there(
    goatherd: Goatherd, data: Path, store: str
) -> None:
    other = Path(shutil.copytree(data, data.parent / "other"))
    log = other / "localhost/sys/sessions.jsonl"
    kept = [line for line in log.read_text().splitlines() if line and json.loads(line).get("k") != NAMED["u1"]]
    log.write_text("".join(f"{line}\n" for line in kept))
    assert goatherd("migrate", str(data), str(other), "--provider", store).code == 0
    assert [json.loads(line) for line in lines_about(other, NAMED["u1"])] == [
        json.loads(line) for line in lines_about(data, NAMED["u1"])
    ]


def test_a_forged_commit_in_one_servers_log_is_not_copied_into_anothers(
    goatherd: Goatherd, data: Path, store: str
) -> None:
    other = Path(shutil.copytree(data, data.parent / "other"))
    log = other / "localhost/sys/sessions.jsonl"
    kept = [line for line in log.read_text().splitlines() if line and json.loads(line).get("k") != NAMED["u1"]]
    log.write_text("".join(f"{line}\n" for line in kept))
    genuine = lines_about(data, NAMED["u1"])
    thief = OwnedSession.generate(session_id="t" * 24, owner=None, now_ms=NOW_MS)
    evil = OwnedSession.generate(session_id=NAMED["u1"], owner="root", now_ms=NOW_MS)
    parents = (json.loads(genuine[-1])["id"],)
    with LogDirectory(data / "localhost") as directory:
        forged = directory.open_log(SESSIONS)
        forged.append_record(introduction(evil, thief, commit_id="forged", parents=parents).to_json())
        forged.flush()
    assert len(lines_about(data, NAMED["u1"])) == len(genuine) + 1
    assert goatherd("migrate", str(data), str(other), "--provider", store).code == 0
    assert [json.loads(line) for line in lines_about(other, NAMED["u1"])] == [json.loads(line) for line in genuine]


def test_a_server_that_is_migrated_later_refuses_to_create_a_session_that_another_may_create_differently(
    goatherd: Goatherd, data: Path, store: str
) -> None:
    settle(data)
    other = Path(shutil.copytree(data, data.parent / "other"))
    owned = OwnedSession.generate(session_id="a" * 24, owner=None, now_ms=NOW_MS)
    trust_in_settings_json(data, owned)
    trust_in_settings_json(other, replace(owned, session=replace(owned.session, owner="u7")))
    assert goatherd("migrate", str(data), "--provider", store).code == 0
    before = (other / "localhost/sys/sessions.jsonl").read_bytes()
    for more in ([], ["--node", "http://127.0.0.1:1"]):
        refused = goatherd("migrate", str(other), "--provider", store, *more)
        assert refused.code == EXIT_CODES[SettingsError.code.partition(".")[0]]
        assert owned.id in refused.err
        assert "--node" in refused.err
        assert (other / "localhost/sys/sessions.jsonl").read_bytes() == before
    assert goatherd("migrate", str(other), "--provider", store, "--no-write-sessions").code == 0
    assert goatherd("migrate", str(data), str(other), "--provider", store).code == 0
    first, more_known = (json.loads(line) for line in lines_about(data, owned.id))
    assert [json.loads(line) for line in lines_about(other, owned.id)] == [first, more_known]
    assert more_known["p"] == [first["id"]]


@pytest.mark.parametrize("rotates", [False, True])
@pytest.mark.slow
def test_a_server_that_is_migrated_later_copies_what_a_running_server_holds(
    goatherd: Goatherd, data: Path, store: str, rotates: bool
) -> None:
    settle(data)
    other = Path(shutil.copytree(data, data.parent / "other"))
    owned = OwnedSession.generate(session_id="a" * 24, owner=None, now_ms=NOW_MS)
    trust_in_settings_json(data, owned)
    trust_in_settings_json(other, replace(owned, session=replace(owned.session, owner="u7")))
    assert goatherd("migrate", str(data), "--provider", store).code == 0
    root = from_settings((data / "localhost/settings.json").read_bytes(), 0)[0].current
    if rotates:
        assert goatherd("rotate", "--provider", store, "--unsafe-without-nodes").code == 0
    (line,) = lines_about(data, owned.id)
    held = Commit.from_json(json.loads(line), org="localhost")
    thief = OwnedSession.generate(session_id="t" * 24, owner=None, now_ms=NOW_MS)
    forged = introduction(replace(owned.session, owner="root"), thief, commit_id="forged")

    def prepare(child: UpstreamChild) -> None:
        child.create(SESSIONS, forged)
        child.create(SESSIONS, held)

    with upstream(root, prepare) as child:
        assert goatherd("migrate", str(other), "--provider", store, "--node", child.url).code == 0
    copied, more_known = (json.loads(line) for line in lines_about(other, owned.id))
    assert copied == json.loads(line)
    assert (more_known["p"], more_known["c"]["r"]["d"]["owner"]) == ([held.id], "u7")


@pytest.mark.parametrize("named", ["data directory", "organization's directory", "settings.json"])
@pytest.mark.slow
def test_servers_that_share_a_settings_json_by_links_are_several_servers(
    goatherd: Goatherd, data: Path, store: str, tmp_path: Path, named: str
) -> None:
    settle(data)
    owned = OwnedSession.generate(session_id="a" * 24, owner="u7", now_ms=NOW_MS)
    trust_in_settings_json(data, owned)
    shared = (data / "localhost/settings.json").rename(tmp_path / "shared.json")
    (data / "localhost/settings.json").symlink_to(shared)
    other = Path(shutil.copytree(data, data.parent / "other", symlinks=True))
    below = {"data directory": "", "organization's directory": "localhost", "settings.json": "localhost/settings.json"}
    words = ["migrate", *(str(top / below[named]) for top in (data, other)), "--provider", store]
    result = goatherd(*words, "--json")
    assert result.code == 0, result.err
    assert [owned.id in one["sessionsWritten"] for one in result.json["organizations"]] == [True, True]
    assert lines_about(data, owned.id) == lines_about(other, owned.id) != []
    with LogDirectory(other / "localhost"):
        assert goatherd(*words).code == EXIT_CODES["node"], "the other server runs"
    kept = goatherd(*words, "--remove-key")
    assert kept.code == EXIT_CODES["settings"]
    assert "remove both by hand" in kept.err
    assert shared.exists()


def test_a_link_that_leads_to_a_data_directory_is_that_server(
    goatherd: Goatherd, data: Path, store: str, tmp_path: Path
) -> None:
    (tmp_path / "link.json").symlink_to(data / "localhost/settings.json")
    result = goatherd("migrate", str(tmp_path / "link.json"), str(data), "--provider", store, "--json")
    assert result.code == 0, result.err
    (outcome,) = result.json["organizations"]
    assert outcome["sessionsInLog"] > 0


@pytest.mark.parametrize("ending", ["settings.json was removed at 20", "only logs"])
@pytest.mark.parametrize("named", ["data directory", "organization's directory"])
def test_a_stopped_server_that_was_migrated_earlier_can_be_named_when_its_settings_json_is_gone(
    goatherd: Goatherd, data: Path, store: str, named: str, ending: str
) -> None:
    settle(data)
    other = Path(shutil.copytree(data, data.parent / "other"))
    owned = OwnedSession.generate(session_id="a" * 24, owner=None, now_ms=NOW_MS)
    alone = OwnedSession.generate(session_id="b" * 24, owner="u8", now_ms=NOW_MS)
    trust_in_settings_json(data, owned)
    trust_in_settings_json(other, replace(owned, session=replace(owned.session, owner="u7")))
    trust_in_settings_json(other, alone)
    assert goatherd("migrate", str(data), "--provider", store, "--remove-key").code == 0
    if ending == "only logs":
        (data / "localhost" / REMAINS).unlink()  # as where `goatherd run` has ended
    earlier = data / "localhost" if "organization" in named else data
    again = goatherd("migrate", str(earlier), "--provider", store, "--remove-key")
    assert again.code == (EXIT_CODES["configuration"] if ending == "only logs" else 0)
    assert ("If `goatherd serve` or `goatherd run` ran there, the identity is in" in again.err) is (
        ending == "only logs"
    )
    assert ending in again.err + again.out
    assert "rejects" not in again.out
    before = (data / "localhost/sys/sessions.jsonl").read_bytes()
    done = goatherd("migrate", str(other), str(earlier), "--provider", store, "--json")
    assert done.code == 0, done.err
    (outcome,) = done.json["organizations"]
    assert outcome["settings"] == str(other / "localhost/settings.json")
    assert {owned.id, alone.id} <= set(outcome["sessionsWritten"])
    first, more_known = (json.loads(line) for line in lines_about(other, owned.id))
    assert [json.loads(line) for line in lines_about(data, owned.id)] == [first]
    assert more_known["p"] == [first["id"]]
    assert (data / "localhost/sys/sessions.jsonl").read_bytes() == before


@pytest.mark.parametrize("named", ["directory", "file"])
def test_a_removed_settings_json_is_checked_in_the_store_of_the_organization_that_its_log_is_signed_for(
    goatherd: Goatherd, data: Path, tmp_path: Path, named: str
) -> None:
    settle(data)
    server = Path(shutil.copytree(data / "localhost", tmp_path / "srv"))
    source = server if named == "directory" else server / "settings.json"
    command = ["migrate", str(source), "--provider", f"file://{tmp_path}/keys/{{org}}/root", "--remove-key", "--json"]
    for _ in range(2):
        result = goatherd(*command)
        assert result.code == 0, result.err
        assert [one["org"] for one in result.json["organizations"]] == ["localhost"]


def test_a_removed_settings_json_that_is_named_stands_for_no_other_file(
    goatherd: Goatherd, data: Path, tmp_path: Path
) -> None:
    copies = tmp_path / "copies"
    other = copies / "other" / "settings.json"
    other.parent.mkdir(parents=True)
    for copy in (copies / "settings.json", other):
        shutil.copy(data / "localhost/settings.json", copy)
    provider = f"file://{tmp_path}/keys/{{org}}/root"
    for _ in range(2):
        result = goatherd("migrate", str(copies / "settings.json"), "--provider", provider, "--remove-key", "--json")
        assert result.code == 0, result.err
        assert [one["org"] for one in result.json["organizations"]] == ["localhost"]
        assert other.is_file()


@pytest.fixture
def takes_ctrl_c() -> Iterator[None]:
    """Let Ctrl-C interrupt this process, even if it was started in the background, where SIGINT is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("takes_ctrl_c")
def test_ctrl_c_ends_the_question_at_once(
    goatherd: Goatherd, data: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = []

    def interrupt(*_: object, **__: object) -> bool:
        os.kill(os.getpid(), signal.SIGINT)
        waits.append(True)
        return True

    monkeypatch.setattr("goatherd.cli.output.Output.may_ask", True)
    monkeypatch.setattr("click.confirm", interrupt)
    assert goatherd("migrate", str(data), "--provider", store).code == EXIT_INTERRUPTED
    assert waits == []
    assert (data / "localhost/settings.json").exists()


def test_the_question_is_asked_on_standard_error_as_the_result_may_go_to_a_file(
    goatherd: Goatherd, data: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("goatherd.cli.output.Output.may_ask", True)
    monkeypatch.setattr("click.termui.visible_prompt_func", lambda text: print(text) or "n")
    asked = goatherd("migrate", str(data), "--provider", store)
    assert "from the disk now?" in asked.err
    assert "from the disk now?" not in asked.out
    assert settings(data) == json.loads(DESCRIPTION["settings_json"])
