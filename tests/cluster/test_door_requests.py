"""Malformed messages, forged requests and logins: the attack works on the server itself, and the door stops it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from goatherd.door.request_checks import DoorRule
from goatherd.identity.session import OwnedSession, sign_data
from goatherd.wire.base32 import base32_encode
from tests.cluster.door_world import A, World, X, Y, world
from tests.unit.goats import DAY, NOW, element, key_of, new_id, owned, signed_header

from .door_attacks import NOTES, envelope, note

pytestmark = pytest.mark.slow


# --- messages ---------------------------------------------------------------------------------------------------------


def message(**changes: Any) -> list[dict[str, Any]]:
    one = element(NOTES)
    one["msg"].update(changes)
    return [one]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[",
        b"null",
        b'"x"',
        b"{}",
        [None],
        [5],
        [{}],
        [{"path": NOTES}],
        [{"path": NOTES, "msg": None}],
        [{"path": NOTES, "msg": {}}],
        message(f=None),
        message(f={"d": "!", "s": []}),
        message(f={"d": "AA=="}),
        message(c=None),
        [{**element(NOTES), "path": 5}],
        [{**element(NOTES), "path": "/one"}],
        message(x={"hasOwnProperty": 1}),
        b"[" * 200_000,
    ],
    ids=lambda body: str(body)[:50],
)
async def test_a_malformed_body_does_not_reach_the_server(body: Any) -> None:
    async with world() as w:
        bare = await w.send(False, body)
        assert bare.status_code in (200, 400, 500)
        w.child.reached.clear()
        response = await w.send(True, body)
        assert (response.status_code, response.content) == (400, b"")
        assert not w.others()
        assert "access-control-allow-origin" not in response.headers


async def test_the_elements_before_a_malformed_one_take_no_effect() -> None:
    for through in (False, True):
        async with world() as w:
            commit = note()
            response = await w.send(through, [element(NOTES, [commit]), {}])
            assert response.status_code == (400 if through else 500)
            assert (commit.id in w.stored(NOTES)) is not through


@pytest.mark.parametrize("size", [1e8, 1e9, 1e12, -1, 0.5, "1e9", None, True], ids=str)
async def test_a_count_by_which_the_server_would_size_its_answer_is_refused(size: Any) -> None:
    async with world() as w:
        assert (await w.send(True, message(s=size))).status_code == 400
        assert w.stopped(DoorRule.MESSAGE) == 1
        if size == 1e8:
            with pytest.raises(Exception, match=r".*"):
                await w.send(False, message(s=size))
            assert w.child.died


@pytest.mark.parametrize(
    "given", [{"d": "AA==", "s": [1] * 2000}, {"d": "A" * 8_000_000, "s": [1]}], ids=["seeds", "bits"]
)
async def test_a_filter_that_costs_the_server_seconds_is_refused(given: Any) -> None:
    async with world() as w:
        assert (await w.send(True, message(f={"__t": "E", "__v": given}))).status_code == 400


@pytest.mark.parametrize(
    "path",
    ["/../x", "/data/..", "/settings.json/x", "/data/x\0y", "/data/" + "n" * 300, "/Data/x", "//sys/sessions", "/a//b"],
    ids=lambda path: path[:20].replace("\0", "0"),
)
async def test_a_path_that_is_none_opens_no_file(path: str) -> None:
    async with world() as w:
        assert (await w.send(True, [element(path)])).status_code == 400
        assert w.child.files == {"sys/sessions.jsonl"}
        if path == "/../x":
            await w.send(False, [element(path)])
            assert "../x.jsonl" in w.child.files, "beside the data directory"
        elif "\0" in path:
            with pytest.raises(Exception, match=r".*"):
                await w.send(False, [element(path)])
            assert w.child.died


async def test_a_batch_of_thousands_of_paths_is_refused() -> None:
    async with world() as w:
        paths = [element(f"/data/r{number}") for number in range(2000)]
        assert (await w.send(False, paths)).status_code == 200
        assert len(w.child.files) == 2001
        assert (await w.send(True, paths)).status_code == 400


# --- request signatures -----------------------------------------------------------------------------------------------


def token(by: OwnedSession = A) -> str:
    return sign_data(by, now_ms=NOW, embedded={"u": "u1", "s": X.id, "ts": NOW, "sl": new_id()})


@pytest.mark.parametrize(
    ("header", "bare", "guarded"),
    [
        (lambda: "", 400, 400),
        (lambda: "!!", 500, 403),
        (lambda: base32_encode(b"text"), 500, 403),
        (lambda: sign_data(X, now_ms=NOW), 500, 403),
        (lambda: envelope(signed_header(X), s="a"), 500, 403),
        (lambda: signed_header(owned("stranger")), 403, 403),
        (lambda: signed_header(X, NOW - 240_000), 403, 403),
        (lambda: token(), 200, 403),
    ],
    ids=["none", "no base32", "no JSON", "no data", "no signature", "unknown", "late", "a login token"],
)
async def test_a_request_without_valid_signature_is_rejected(
    header: Callable[[], str], bare: int, guarded: int
) -> None:
    async with world() as w:
        for through, status in ((False, bare), (True, guarded)):
            fields = {"x-goat-sig": header()} if header() else {}
            response = await w.http.post(w.base(through) + "/batch-sync", json=[element(NOTES)], headers=fields)
            assert response.status_code == status
            assert response.content == b"" or status == 200


async def test_a_signature_counts_for_three_minutes_and_no_longer() -> None:
    async with world() as w:
        header = signed_header(X)
        for through in (False, True):
            assert (await w.send(through, [], header)).status_code == 200
        w.clock.at_ms += 200_000
        assert (await w.send(False, [], header)).status_code == 200, "remembered"
        assert (await w.send(True, [], header)).status_code == 403


# --- /auth/* ----------------------------------------------------------------------------------------------------------


async def mail(w: World, through: bool, by: OwnedSession, *, signed: str = "a@goats.example", **changes: Any) -> int:
    request = {"email": "a@goats.example", "signature": sign_data(by, now_ms=NOW, external=signed), **changes}
    response = await w.http.post(w.base(through) + "/auth/send-login-email", json=request)
    return response.status_code


async def test_no_login_mail_goes_out_on_a_forged_signature() -> None:
    async with world() as w:
        thief = replace(X, signer=Y.signer)
        assert await mail(w, False, thief) == 200
        assert len(w.child.mails) == 1
        assert await mail(w, True, thief) == 403
        assert await mail(w, True, X, signed="b@goats.example") == 403
        assert await mail(w, True, X, signature="zz") == 403
        assert await mail(w, False, X, signature="zz") == 500
        assert await mail(w, True, X, email=5) == 400
        assert [await mail(w, True, thief) for _ in range(10)] == [403] * 10, "they are not charged to the address"
        assert len(w.child.mails) == 1
        assert await mail(w, True, X) == 200
        assert len(w.child.mails) == 2


async def test_an_old_login_token_does_not_sign_in() -> None:
    for through in (False, True):
        async with world() as w:
            old = w.child.login_token("u1", X.id, NOW - 10 * DAY)
            response = await w.http.get(w.base(through) + f"/auth/temp-login?t={old}", follow_redirects=False)
            assert response.status_code == 307
            assert w.child.sessions[X.id].owner == (None if through else "u1")
            fresh = w.child.login_token("u1", X.id, NOW - 60_000)
            await w.http.get(w.base(through) + f"/auth/temp-login?t={fresh}", follow_redirects=False)
            assert w.child.sessions[X.id].owner == "u1"


@pytest.mark.parametrize(
    ("body", "bare", "guarded"),
    [
        (b"", 400, 400),
        (b"{}", 400, 400),
        (b"null", 400, 400),
        ({"publicKey": "x"}, 400, 400),
        ({"publicKey": {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"}}, 500, 400),
        ({"publicKey": {**owned("n").session.public_key.to_jwk(), "x": "A" * 64}}, 500, 400),
        ({"publicKey": key_of("n").to_jwk()}, 400, 400),
    ],
    ids=["empty", "object", "null", "text", "P-256", "off the curve", "private"],
)
async def test_a_key_that_is_none_makes_no_session(body: Any, bare: int, guarded: int) -> None:
    async with world() as w:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        direct = await w.http.post(w.child.url + "/auth/session", content=raw)
        assert direct.status_code == bare
        w.child.reached.clear()
        response = await w.http.post(w.door.url + "/auth/session", content=raw)
        assert response.status_code == guarded
        if bare == guarded:
            assert response.content == direct.content
        assert not w.others()
