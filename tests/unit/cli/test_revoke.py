"""`goatherd revoke`: its questions, its output, and its exit codes."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from goatherd.clock import SystemClock
from goatherd.cluster.client import NodeClient
from goatherd.identity.session import OwnedSession
from goatherd.identity.settings_json import to_settings
from goatherd.identity.transitions import create_document
from tests.deadlines import ANSWER
from tests.fakes.upstream_child import SESSIONS, UpstreamChild
from tests.unit.goats import introduction

from .conftest import Goatherd, Serving, secrets_in
from .upstream import upstream

pytestmark = pytest.mark.slow


def root_of(goatherd: Goatherd, store: str) -> str:
    current: str = goatherd("show", "--provider", store, "--json").json["current"]["id"]
    return current


@pytest.fixture
def cluster(goatherd: Goatherd, store: str, serve: Callable[..., Serving], tmp_path: Path) -> Serving:
    assert goatherd("init", "--provider", store).code == 0
    return serve("--data", str(tmp_path / "data"), "--provider", store)


def test_a_root_is_revoked_looked_at_again_and_its_key_destroyed(
    goatherd: Goatherd, store: str, cluster: Serving, tmp_path: Path
) -> None:
    root = root_of(goatherd, store)
    common = ("--provider", store, "--node", cluster.url)
    plan = goatherd("revoke", root, "--plan", *common)
    assert plan.code == 0
    assert "nothing is written" in plan.out
    assert f"{cluster.url}: the only server whose list counts" in plan.out
    assert "collect the commits of the root from 1 Goatherd server;" in plan.out
    assert "1 stored version still holds its private key: 1." in plan.out
    assert root_of(goatherd, store) == root

    done = goatherd("revoke", root, "--reason", "laptop stolen", "--yes", *common)
    assert done.code == 0, done.err + done.out
    assert f"revoked {root}" in done.out
    assert "--destroy destroys it now" in done.out
    assert root_of(goatherd, store) != root
    shown = goatherd("show", "--provider", store, "--json").json
    assert shown["revoked"][0]["reason"] == "laptop stolen"
    assert shown["revoked"][0]["freeze"]["commits"] == 3, "the successor is introduced three times"

    keys = len(secrets_in(tmp_path / "keys"))
    again = goatherd("revoke", root, "--reason", "x", "--yes", "--destroy", "--json", *common)
    assert again.code == 0
    assert again.json["complete"] is True
    assert again.json["destroyed"] == ["1"]
    assert again.json["keysLeft"] == []
    assert len(secrets_in(tmp_path / "keys")) == keys - 1
    secrets = secrets_in(tmp_path / "keys")
    assert not any(secret in text for secret in secrets for text in (plan.out, done.out, done.err, again.out))
    assert goatherd("status", *common).code == 0
    events = [json.loads(line) for line in again.err.splitlines()]
    assert {event["event"] for event in events} == {"revocation"}


def test_a_server_that_is_not_there_leaves_it_unfinished(goatherd: Goatherd, store: str, cluster: Serving) -> None:
    root = root_of(goatherd, store)
    nodes = ("--node", cluster.url, "--node", "http://127.0.0.1:9", "--adoption", "1s")
    done = goatherd("revoke", root, "--reason", "x", "--yes", "--provider", store, *nodes)
    assert done.code == 11
    assert "NOT FINISHED" in done.out
    assert "NOT CLOSED, a listed server has not reported its commits" in done.out
    assert "http://127.0.0.1:9" in done.out
    assert re.search(
        r"^waiting until \S+ \S+ UTC for http://127.0.0.1:9: rejects the revoked root$", done.err, re.MULTILINE
    )


def test_where_no_server_is_listed_none_is_blamed(goatherd: Goatherd, store: str) -> None:
    goatherd("init", "--provider", store)
    root = goatherd("show", "--provider", store, "--json").json["current"]["id"]
    common = (root, "--reason", "x", "--unsafe-without-nodes", "--provider", store)
    assert "no list of frozen commits yet: no server is listed" in goatherd("revoke", *common, "--dry-run").out
    assert "NOT CLOSED, no server is listed" in goatherd("revoke", *common, "--yes").out


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        ((), 2, "--reason TEXT is missing"),
        (("--reason", "x"), 2, "no server is listed"),
        (("--reason", "x", "--node", "http://127.0.0.1:9"), 2, "nothing can be confirmed without a terminal"),
        (("--reason", "x", "--unsafe-without-nodes", "--yes"), 10, "is not a root of this identity"),
    ],
    ids=["no reason", "no node", "no server to ask", "no such root"],
)
def test_what_is_missing_is_said_and_nothing_is_written(
    goatherd: Goatherd, store: str, arguments: tuple[str, ...], code: int, text: str
) -> None:
    assert goatherd("init", "--provider", store).code == 0
    done = goatherd("revoke", "nobody", "--provider", store, *arguments)
    assert done.code == code
    assert text in done.err
    assert goatherd("show", "--provider", store, "--json").json["generation"] == 1


def test_in_haste_the_identity_alone_can_be_written(goatherd: Goatherd, store: str) -> None:
    assert goatherd("init", "--provider", store).code == 0
    root = root_of(goatherd, store)
    done = goatherd("revoke", root, "--reason", "x", "--unsafe-without-nodes", "--yes", "--provider", store)
    assert done.code == 11
    assert root_of(goatherd, store) != root


def test_over_unmodified_servers_it_ends_and_names_what_they_sign_with_the_root_afterwards(
    goatherd: Goatherd, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_ms = SystemClock().now_ms()
    root = OwnedSession.generate(session_id="r" * 24, owner="root", now_ms=now_ms, lifetime=timedelta(days=90))
    user, late = (OwnedSession.generate(session_id=name * 24, owner=None, now_ms=now_ms).session for name in "ul")
    (tmp_path / "settings.json").write_bytes(to_settings(create_document(root, now_ms)))
    assert goatherd("migrate", str(tmp_path / "settings.json"), "--provider", store).code == 0
    introduced = introduction(user, root, ts=now_ms)

    def prepare(child: UpstreamChild) -> None:
        child.create(SESSIONS, introduced)
        child.restart()

    with upstream(root, prepare) as one, upstream(root, prepare) as other:
        words = ("revoke", root.id, "--reason", "stolen", "--yes", "--provider", store)
        nodes = ("--node", one.url, "--node", other.url)
        done = goatherd(*words, *nodes)
        assert done.code == 0, done.out + done.err
        assert [done.out.count(f"{url}: an unmodified GoatDB server\n") for url in (one.url, other.url)] == [1, 1]
        assert done.out.count("still trusts the revoked root") == 1
        successor = root_of(goatherd, store)
        for child in (one, other):
            signers = {raw["s"] for raw in child.repositories[SESSIONS].values() if raw["k"] == user.id}
            assert signers == {root.id, successor}
        one.introduce(late)
        monkeypatch.setenv("GOATHERD_ROTATION_BARE", other.url)
        again = goatherd(*words, *nodes[:2])
        assert f"{other.url}: an unmodified GoatDB server\n" in again.out, "a manual-restart server, which must restart"
        assert (again.code, "sessions: 1 to reissue, 0 pushed" in again.out) == (0, True)
        assert f"are not reissued: {late.id}" in again.out


@pytest.mark.usefixtures("apart")
def test_what_one_server_alone_claims_is_shown_and_counts_if_asked(
    goatherd: Goatherd, store: str, cluster: Serving, serve: Callable[..., Serving], tmp_path: Path
) -> None:
    root = root_of(goatherd, store)
    other = serve("--data", str(tmp_path / "other"), "--provider", store)
    user = asyncio.run(session_at(cluster.url))
    nodes = ("--provider", store, "--node", cluster.url, "--node", other.url)
    done = goatherd("revoke", root, "--reason", "stolen", "--yes", *nodes)
    assert done.code == 0, done.err + done.out
    assert f"{cluster.url}: ALONE claims 1 commit of the root" in done.out
    assert f"session {user}: 1 commit, dated 20" in done.out
    assert f"--reopen --trust-alone {cluster.url}" in done.out

    again = goatherd(
        "revoke", root, "--reason", "stolen", "--yes", "--json", "--reopen", "--trust-alone", cluster.url + "/", *nodes
    )
    assert again.code == 0, again.err + again.out
    assert (again.json["sessions"], again.json["pushed"]) == (1, 1)
    assert [node["alone"] for node in again.json["nodes"]] == [0, 0]

    wrong = goatherd("revoke", root, "--plan", "--distrust", "http://127.0.0.1:9", *nodes)
    assert wrong.code == 2
    assert "take listed servers only, not http://127.0.0.1:9" in wrong.err


async def session_at(url: str) -> str:
    async with NodeClient(url, timeout=ANSWER) as client:
        return (await client.create_session())[0].id
