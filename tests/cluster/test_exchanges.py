"""Every exchange recorded with GoatDB 0.5.1, sent to a Goatherd server: the same answer, or a difference listed here.

The list below is complete: an exchange that is not in it is compared exactly, and one that is in it must differ exactly
as it says. ``docs/reference/compatibility.md`` explains them in the rows and under the headings named here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from goatherd.errors import SettingsError
from goatherd.identity.request_binding import RequestBinding, sign_bound_request
from goatherd.identity.session import OwnedSession, sign_commit, sign_request
from goatherd.ids import new_id, new_seeds
from goatherd.wire.bloom import BloomFilter
from goatherd.wire.commit import new_commit

pytest.register_assert_rewrite("tests.cluster.recording")

from tests.cluster.recording import EXCHANGES, ORG, Exchange, Recording, Replay  # noqa: E402

COMPATIBILITY = Path(__file__).parents[2] / "docs" / "reference" / "compatibility.md"

Json = dict[str, Any]
Check = Callable[[Replay, Exchange, httpx2.Response], None]


def refuses(replay: Replay, exchange: Exchange, response: httpx2.Response) -> None:
    """Accept any answer with the declared status."""
    assert response.content == b""
    cors = response.status_code != 403
    assert ("access-control-allow-origin" in response.headers) == cors


def is_truthful(replay: Replay, exchange: Exchange, response: httpx2.Response) -> None:
    """Check our answer against what is on our disk, because there is no recorded answer to compare with."""
    replay.check_truthful(exchange, response)


def says_invalid_key(replay: Replay, exchange: Exchange, response: httpx2.Response) -> None:
    assert response.text == '{"error":"InvalidPublicKey"}'
    assert response.headers["access-control-allow-origin"]


def agrees(replay: Replay, exchange: Exchange, response: httpx2.Response) -> None:
    """Compare with the recorded answer, except for what `keeps` and `drops` name."""
    replay.check(exchange, response)


def stores_nothing(replay: Replay, exchange: Exchange, response: httpx2.Response) -> None:
    """The answer is as recorded, since neither shows the repository; the commit is not on our disk."""
    replay.check(exchange, response)
    assert [replay.stored(path) for path, _ in pushed(exchange)] == [set()]


def has_the_same_roots(replay: Replay, exchange: Exchange, response: httpx2.Response) -> None:
    """Compare with the recorded answer, except that the root that signs comes first."""
    recorded, ours = json.loads(exchange.response["body"]), response.json()
    assert ours["session"] == recorded["session"]
    assert ours["roots"] == recorded["roots"][::-1]
    replay.check_headers(exchange, response)


def merges_births(replay: Replay, exchange: Exchange, response: httpx2.Response) -> None:
    """Check that both concurrent creations are kept, and joined by a commit that has both as parents."""
    replay.check_truthful(exchange, response)
    births = [json.loads(one.request["body"])[0]["msg"]["c"][0]["id"] for one in replay.recording.exchanges]
    (element,) = response.json()
    assert element["res"]["s"] == 3
    assert [sorted(commit["p"]) for commit in element["res"]["c"] if "p" in commit] == [sorted(births)]


def is_small(replay: Replay, exchange: Exchange, response: httpx2.Response) -> None:
    """Check that a reply's filter is not as large as a request claims."""
    replay.check_truthful(exchange, response)
    assert len(response.content) < 10_000


@dataclass(frozen=True)
class Difference:
    """How our answer intentionally differs from the recorded one.

    Attributes:
        rule: The row or heading in ``docs/reference/compatibility.md`` that explains it, or how it begins.
        status: Our status.
        check: What else must hold.
        keeps: The commits of the request that our server keeps from here on, but the recorded server did not.
        drops: The commits that our server does not keep, but the recorded server did.
        settles: The commits that the recorded server has from here on, too.
    """

    rule: str
    status: int
    check: Check
    keeps: Callable[[Json], bool] = lambda _: False
    drops: Callable[[Json], bool] = lambda _: False
    settles: Callable[[Json], bool] = lambda _: False


def every(_: Json) -> bool:
    return True


def by_root_d(commit: Json) -> bool:
    return bool(commit["s"] == "zrxlh0pdpmqg718dnaqsvih0")


BAD_REQUEST = Difference("Malformed batches", 400, refuses)
BAD_SIGNATURE = Difference("Malformed signature headers", 403, refuses)
NO_LOGIN = Difference("Login by mail", 404, refuses)

LOGIN = (
    "real client #4",
    "unknown user",
    "no email",
    "not an email",
    "no signature",
    "garbage signature",
    "unknown session",
    "root session",
    "wrong key for a known session id (0.5.1 forgets to await the check)",
    "email is a number",
    "empty body",
    "malformed",
    "no token",
    "garbage token",
    "token signed by the anonymous session",
    "token for an unknown user",
    "token for an unknown session",
    "valid token (ten days old: age is not checked)",
    "second use",
    "send-login-email by a session that has an owner",
)

MALFORMED = (
    "empty body",
    "truncated JSON",
    "[null]",
    "[5]",
    "[{}]",
    "no msg",
    "msg null",
    "msg {}",
    "f null",
    "f.d not base64",
    "f.s missing",
    "c null",
    "path missing",
    "path number",
    "truncated JSON without a signature",
)

DIFFERENCES: dict[str, dict[str, Difference]] = {
    "auth-errors": {
        "not base32": BAD_SIGNATURE,
        "base32 of text": BAD_SIGNATURE,
        "no embedded data": BAD_SIGNATURE,
        "raw signature one byte long": BAD_SIGNATURE,
        "login token instead of a request signature": Difference("Request signatures without a string", 403, refuses),
    },
    "batch-sync-empty": {"path with one component": BAD_REQUEST},
    "forged-author": {
        "X writes to /sys/stats, s = root A, signed by X: accepted": Difference(
            "Author and signer", 200, stores_nothing
        ),
        "X pushes a root session, s = root A, signed by X: stored, not trusted": Difference(
            "Author and signer", 200, agrees, drops=every
        ),
        "after a server restart the forged root is accepted and reads /sys/stats": Difference(
            "Sessions in the log", 403, refuses
        ),
    },
    "login": dict.fromkeys(LOGIN, NO_LOGIN)
    | {"real client after login #6": Difference("Login by mail", 200, is_truthful)},
    "malformed": dict.fromkeys(MALFORMED, BAD_REQUEST)
    | {"s is a string": Difference("Counts that are not numbers", 200, is_truthful)},
    "oversized": {
        "s = 1 000 000: reply filter is sized by it": Difference("Limits", 200, is_small),
        "s = 100 000 000": Difference("Limits", 200, is_small),
        "path of 306 bytes": BAD_REQUEST,
        "NUL in the path": BAD_REQUEST,
        "delta commit whose base is itself": Difference("Harmful commits", 200, is_small),
    },
    "rotated-restart": {
        "request by A": Difference("Roots as signers", 200, is_truthful),
        "data commit signed by A, pushed by B: dropped": Difference("Roots as signers", 200, agrees, keeps=every),
        "session commit signed by A, pushed by B: dropped": Difference("Roots as signers", 200, agrees, keeps=every),
        "new session": Difference("Order of the roots", 200, has_the_same_roots),
    },
    "session-create": {
        "P-256 key": Difference("Invalid keys", 400, says_invalid_key),
        "point not on the curve": Difference("Invalid keys", 400, says_invalid_key),
    },
    "sys-sessions-root": {
        "root D (by A) and session Z (by D) in one message: Z dropped": Difference(
            "Roots and their sessions in one message", 200, agrees, keeps=by_root_d
        ),
        "same message again: Z accepted": Difference(
            "Roots and their sessions in one message", 200, agrees, settles=by_root_d
        ),
    },
    "two-births-crash": {"Y: second birth, 59 s old": Difference("Concurrent creations", 200, merges_births)},
}

NOT_REPLAYED = {
    "session-create-first-start": "test_a_server_without_an_identity_does_not_start",
    "oversized: 1 MB title": "cut in the recording, test_large_commits_are_kept",
    "oversized: 20 MB title": "cut in the recording, test_large_commits_are_kept",
}


def replayed_names() -> list[str]:
    return sorted(file.stem for file in EXCHANGES.glob("*.json") if file.stem not in NOT_REPLAYED)


def private_parts(recording: Recording) -> set[bytes]:
    """Return every private key in a recording, in the encodings in which it could leak."""

    def find(value: Any) -> set[str]:
        if isinstance(value, dict):
            own = {value["d"]} if {"kty", "d"} <= value.keys() else set()
            return own.union(*(find(inner) for inner in value.values()))
        return set().union(*(find(inner) for inner in value)) if isinstance(value, list) else set()

    return {part.encode() for part in find([recording.files_before, recording.files_after, recording.sessions])}


@pytest.mark.parametrize("name", replayed_names())
async def test_our_answers_are_the_recorded_ones_or_differ_as_listed(name: str, tmp_path: Path) -> None:
    recording = Recording.load(name)
    replay = Replay.start(recording, tmp_path)
    differences = dict(DIFFERENCES.get(name, {}))
    await replay.server.__aenter__()
    try:
        for exchange in recording.exchanges:
            if f"{name}: {exchange.label}" in NOT_REPLAYED:
                continue
            if "after a server restart" in exchange.label:
                await replay.restart()
            difference = differences.pop(exchange.label, None)
            response = await replay.send(exchange)
            try:
                compare(replay, exchange, response, difference)
            except AssertionError as error:
                error.add_note(f"in {name}: {exchange.label}")
                raise
        assert not differences, "listed, but not in the recording"
        await replay.request("GET", "/goatherd/v1/identity", {}, b"")
    finally:
        await replay.server.__aexit__(None, None, None)
    leaks = [part for part in {b"privateKey", *private_parts(recording)} if part in b"".join(replay.everything)]
    assert not leaks, "SECURITY: an answer holds a private key"


def compare(replay: Replay, exchange: Exchange, response: httpx2.Response, difference: Difference | None) -> None:
    if difference is None:
        replay.check(exchange, response)
        return
    assert response.status_code == difference.status
    for path, commits in pushed(exchange):
        replay.kept[path] |= {commit["id"] for commit in commits if difference.keeps(commit)}
        replay.kept[path] -= {commit["id"] for commit in commits if difference.settles(commit)}
        replay.dropped[path] |= {commit["id"] for commit in commits if difference.drops(commit)}
    replay.settling = any(difference.settles(commit) for _, commits in pushed(exchange) for commit in commits)
    difference.check(replay, exchange, response)
    replay.settling = False


def pushed(exchange: Exchange) -> list[tuple[str, list[Json]]]:
    if exchange.request["path"] != "/batch-sync" or exchange.status != 200:
        return []
    return [(one["path"], one["msg"]["c"]) for one in json.loads(exchange.request["body"]) if "c" in one["msg"]]


async def test_a_server_without_an_identity_does_not_start(tmp_path: Path) -> None:
    """GoatDB creates a root here, and the recorded answer contains its private key."""
    recording = Recording.load("session-create-first-start")
    assert "privateKey" in recording.exchanges[0].response["body"]
    replay = Replay.start(recording, tmp_path)
    with pytest.raises(SettingsError):
        await replay.server.__aenter__()
    assert not (tmp_path / ORG / "settings.json").exists()


@pytest.mark.parametrize(("label", "size"), [("1 MB title", 1_000_000), ("20 MB title", 20_000_000)])
async def test_large_commits_are_kept(label: str, size: int, tmp_path: Path) -> None:
    recording = Recording.load("oversized")
    exchange = next(one for one in recording.exchanges if one.label == label)
    signer = OwnedSession.from_json(recording.sessions["X"])
    replay = Replay.start(recording, tmp_path)
    replay.clock.at_ms = exchange.at_ms
    commit = sign_commit(
        signer,
        new_commit(
            commit_id=new_id(),
            key="big",
            session_id=signer.id,
            ts=exchange.at_ms,
            org=ORG,
            data={"title": "x" * size},
            schema_marker="note/1",
            connection=new_id(),
            ancestors_filter=BloomFilter.for_size(1, 0.25, new_seeds(3)),
        ),
        now_ms=exchange.at_ms,
    )
    message = {"ver": 50595584, "f": {"d": "AA==", "s": [1]}, "s": 1, "c": [commit.to_json()]}
    body = json.dumps([{"path": "/data/test", "msg": message}]).encode()
    async with replay.server:
        headers = {"x-goat-sig": sign_request(signer, now_ms=exchange.at_ms, nonce=new_id())}
        response = await replay.request("POST", "/batch-sync", headers, body)
        assert response.status_code == exchange.status
        assert response.json()[0]["res"]["c"] == [commit.to_json()]
    assert replay.stored("/data/test") == {commit.id}


async def test_no_private_key_leaves_a_server_whose_settings_hold_them_among_the_roots(tmp_path: Path) -> None:
    """GoatDB writes the file so after a first start or an extension of the root."""
    recording = Recording.load("session-create")
    settings = recording.files_before[f"{ORG}/settings.json"]
    own = settings["currentSession"]
    settings["roots"] = [dict(own)]
    settings["trustedSessions"] = [dict(own)]
    replay = Replay.start(recording, tmp_path)
    root = OwnedSession.from_json(own)
    everything = json.dumps(
        [
            {"path": path, "msg": {"ver": 50595584, "f": {"d": "AA==", "s": [1]}, "s": 0, "c": []}}
            for path in ("/sys/sessions", "/sys/users", "/sys/stats", "/data/test")
        ]
    ).encode()
    async with replay.server:
        for exchange in recording.exchanges:
            if exchange.request["path"] == "/auth/session":
                await replay.send(exchange)
        identity = json.loads((await replay.request("GET", "/goatherd/v1/identity", {}, b"")).content)
        for path in ("/batch-sync", "/goatherd/v1/refresh"):
            binding = RequestBinding.for_request("POST", path, everything, [identity["instance"]])
            headers = {"x-goat-sig": sign_bound_request(root, binding, now_ms=replay.clock.at_ms, nonce=new_id())}
            response = await replay.request("POST", path, headers, everything)
            assert response.status_code == 200
        for path in ("/goatherd/v1/identity", "/settings.json", "/localhost/settings.json", "/../settings.json"):
            await replay.request("GET", path, {}, b"")
    answers = b"".join(replay.everything)
    assert answers.count(b'"roots"') >= 3, "sessions were created and roots published"
    assert b"privateKey" not in answers
    assert own["privateKey"]["d"].encode() not in answers


def test_every_difference_is_in_the_documentation() -> None:
    named = re.findall(r"^(?:### |\| )([^|\n]+)", COMPATIBILITY.read_text(), re.MULTILINE)
    for rule in {one.rule for differences in DIFFERENCES.values() for one in differences.values()}:
        assert any(each.lower().startswith(rule.lower()) for each in named), (
            f"the page has neither row nor heading {rule}"
        )
