"""Any JSON value in any member of any answer: no command crashes, and what it shows can be printed."""

from __future__ import annotations

import contextlib
import copy
import json
import math
import random
from collections.abc import AsyncIterator
from datetime import timedelta
from email.utils import formatdate
from pathlib import Path
from typing import Any

import httpx2
import pytest

from goatherd.cli.text.server_state import server_data
from goatherd.clock import SystemClock
from goatherd.cluster.client import NodeClient
from goatherd.cluster.observer import Observer, Question, observe_servers
from goatherd.cluster.server_answers import LONGEST_TEXT, ServerIdentity, make_printable
from goatherd.errors import DecodeError, InvalidAnswerError, NodeError, RotationError
from goatherd.identity.document import IdentityDocument, decode_document
from goatherd.identity.session import OwnedSession
from goatherd.identity.transitions import prepare_rotation
from goatherd.node import Server
from goatherd.operations.doctor import CheckScope, _check_server
from goatherd.providers.memory import MemorySecretProvider
from goatherd.revocation.revoker import Revoker
from goatherd.rotation.cross_signing import (
    expected_cross_signature,
    expected_earlier_introduction,
    expected_introductions,
)
from goatherd.rotation.events import Event
from goatherd.rotation.policy import Policy
from tests.deadlines import ANSWER
from tests.depth import STRIDE
from tests.unit.node.nodes import SECRET, document_of, now_ms, root, settings_of, signed_commit, store_of

SECOND = timedelta(seconds=1)
POLICY = Policy(adoption=SECOND / 2, settle=SECOND / 10, flow_patience=SECOND / 20, node_timeout=ANSWER)
NASTY: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    2**63,
    10**400,
    1e300,
    -1e300,
    0.5,
    "",
    "\x1b[2J\x1b]0;title\x07",
    "a\nb\u202e\x9bc",
    "x" * 5000,
    "\ud800",
    [],
    {},
    [[]],
    [{}],
    [None, "a", 1],
    {"": {}},
    {"id": [], "k": {}, "sig": 5, "ts": "1", "c": [], "s": {}, "f": {"__t": "E", "__v": {"d": "%", "s": [{}]}}},
)

DEEP = "nested without end"
"""Stands for a list in a list in a list, thousands of times."""


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return where a value can be put: every member and entry, at every depth."""
    found = [path]
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, child in children:
        found += places(child, (*path, name))
    return found


def lie(answer: Any, dice: random.Random) -> Any:
    """Return the answer with one to three members replaced or removed at random."""
    for _ in range(dice.choice((1, 1, 1, 2, 3))):
        path = dice.choice(places(answer))
        value = DEEP if dice.random() < 0.03 else copy.deepcopy(dice.choice(NASTY))
        if not path:
            return value
        at = answer
        for name in path[:-1]:
            at = at[name]
        if isinstance(at, dict) and dice.random() < 0.15:
            del at[path[-1]]
        elif isinstance(at, list) and dice.random() < 0.15:
            at.append(value)
        else:
            at[path[-1]] = value
    return answer


class WaitingClock(SystemClock):
    """A clock that advances only while a task waits for it, so that slow code on a slow machine misses no deadline."""

    def __init__(self) -> None:
        self._passed = 0.0

    def monotonic(self) -> float:
        return self._passed

    async def sleep(self, duration: timedelta) -> None:
        await super().sleep(duration)
        self._passed += duration.total_seconds()


class Liar:
    """Stands between a client and an honest server, and replaces parts of the answers.

    Attributes:
        dice: Chooses the lies; None for honest answers.
        rate: How many of its answers are lies.
    """

    def __init__(self, server: Server) -> None:
        self._http = httpx2.AsyncClient(transport=httpx2.ASGITransport(server.app), base_url="http://x", verify=False)
        self.dice: random.Random | None = None
        self.rate = 1.0

    async def __call__(self, request: httpx2.Request) -> httpx2.Response:
        told = await self._http.request(
            request.method, request.url.raw_path.decode(), content=request.content, headers=request.headers
        )
        headers, body, status = (
            {"date": formatdate(usegmt=True), **told.headers},
            told.content,
            told.status_code,
        )
        headers.pop("content-length", None)
        if self.dice is None or self.dice.random() > self.rate:
            return httpx2.Response(status, headers=headers, content=body)
        if self.dice.random() < 0.1:
            headers["date"] = self.dice.choice(("", "x", "Thu, 26 Nov 99999 00:00:00 GMT", "1 Jan 0001 00:00 +9999"))
        if self.dice.random() < 0.05:
            status = self.dice.choice((200, 204, 301, 403, 404, 409, 421, 500, 599))
        try:
            body = json.dumps(lie(json.loads(body), self.dice), ensure_ascii=self.dice.random() < 0.5).encode(
                errors="surrogatepass"
            )
            body = body.replace(json.dumps(DEEP).encode(), b"[" * 5000 + b"]" * 5000)
        except ValueError:
            body = self.dice.choice((b"", self.dice.randbytes(64), self.dice.randbytes(33), b"[", b"\xff", b"NaN"))
        return httpx2.Response(status, headers=headers, content=body)

    def client(self, url: str) -> NodeClient:
        return NodeClient(url, http=httpx2.AsyncClient(transport=httpx2.MockTransport(self)), timeout=ANSWER)


@contextlib.asynccontextmanager
async def servers(
    top: Path, count: int, signer: OwnedSession
) -> AsyncIterator[tuple[MemorySecretProvider, list[Liar], list[NodeClient]]]:
    provider = await store_of(document_of(signer))
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(provider)
        liars, clients = [], []
        for number in range(count):
            server = Server(top / f"node-{number}", settings_of(provider), debug=True)
            await stack.enter_async_context(server)
            liars.append(Liar(server))
            clients.append(liars[-1].client(f"http://node-{number}"))
        yield provider, liars, clients


def rotating(document: IdentityDocument) -> IdentityDocument:
    return prepare_rotation(
        document, root("next"), now_ms=now_ms(), rotation_id="r" * 24, started_by="test", stable_version=None
    )


def check_shown(value: Any) -> None:
    """Check that everything in a value can be shown and stored."""
    if isinstance(value, str):
        assert value.isprintable(), value
    elif isinstance(value, float):
        assert math.isfinite(value)
    elif isinstance(value, dict):
        for name, child in value.items():
            check_shown(name)
            check_shown(child)
    elif isinstance(value, list | tuple | frozenset):
        for child in value:
            check_shown(child)


async def ask_everything(client: NodeClient, signer: OwnedSession) -> None:
    """Call each method of the client; the only error that may occur is a failure of the server."""
    for call in (
        client.identity,
        client.new_session,
        client.healthy,
        client.time_ms,
        lambda: client.answers(signer),
        lambda: client.pull("/sys/sessions", signer),
        lambda: client.refresh(signer),
        lambda: client.held(signer.id, signer, early=True),
        lambda: client.describe_held(signer.id, ["ab"], signer),
        lambda: client.lacking("/sys/sessions", ["a"], signer),
        lambda: client.frozen("0" * 64),
        lambda: client.push("/data/notes", [signed_commit(signer)], signer),
    ):
        with contextlib.suppress(NodeError):
            await call()


async def watch(client: NodeClient, signer: OwnedSession, document: IdentityDocument) -> None:
    """Do what `status`, `doctor` and `rotate` do with one server."""
    observer = Observer([client], clock=SystemClock(), timeout=ANSWER)
    moving = rotating(document)
    questions = (
        Question(
            asker=signer, signer=True, answers=True, earlier=(expected_earlier_introduction(document, signer.id),)
        ),
        Question(
            asker=signer,
            next_root=moving.next,
            introductions=expected_introductions(moving),
            cross_signature=expected_cross_signature(moving),
            signer=True,
            process=True,
        ),
    )
    for question in questions:
        for view in await observer.observe(question):
            for name in ("signs_with", "rejects", "activity", "roots", "instance", "partners", "generation"):
                check_shown(getattr(view, name))
    await observer.read_identities()
    await observer.probe_flow(client.base_url, [], asker=signer, patience=timedelta(0))
    async for commits in observer.read_commits(["a" * 24], signer):
        assert isinstance(commits, list)
    (view,) = await observe_servers([client], document.current, org="localhost", timeout=ANSWER)
    check_shown(json.loads(json.dumps(server_data(view))))
    for check in await _check_server(
        client,
        document,
        CheckScope(addresses=("http://x",), org="localhost", policy=Policy(), refresh_interval=timedelta(seconds=30)),
    ):
        check_shown(check.text)


async def lied_to(top: Path, seeds: range) -> None:
    signer = root("the-root")
    async with servers(top, 1, signer) as (provider, (liar,), (client,)):
        await client.push("/data/notes", [signed_commit(signer)], signer)
        document = decode_document((await provider.read(SECRET)).value.reveal())
        for seed in seeds:
            liar.dice, liar.rate = random.Random(seed), 0.3 if seed % 3 else 1.0
            try:
                await ask_everything(client, signer)
                await watch(client, signer, document)
            except BaseException as error:
                error.add_note(f"seed {seed}")
                raise


@pytest.mark.slow
async def test_whatever_a_server_answers_is_its_own_failure_and_no_tools(tmp_path: Path) -> None:
    await lied_to(tmp_path, range(12))


@pytest.mark.deep
async def test_thousands_of_answers_are_their_servers_own_failure_and_no_tools(tmp_path: Path) -> None:
    await lied_to(tmp_path, range(12, 1500, STRIDE))


async def revoked_beside_a_liar(top: Path, seed: int) -> None:
    signer = root("root-a")
    events: list[Event] = []
    async with servers(top, 3, signer) as (provider, liars, clients):
        user, _ = await clients[0].create_session()
        for client in clients[1:]:
            await client.push("/sys/sessions", await clients[0].pull("/sys/sessions", signer), signer)
        liars[2].dice, liars[2].rate = random.Random(seed), 0.5 if seed % 2 else 1.0
        options: dict[str, Any] = {"policy": POLICY, "clock": WaitingClock(), "on_event": events.append}
        revoker = Revoker(provider, SECRET, clients, **options)
        try:
            await revoker.plan(signer.id)
            report = await revoker.revoke(signer.id, reason="stolen")
            if not report.is_complete:
                revoker = Revoker(provider, SECRET, clients, distrust=[clients[2].base_url], **options)
                report = await revoker.revoke(signer.id, reason="stolen")
        except RotationError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
        document = decode_document((await provider.read(SECRET)).value.reveal())
        assert document.revoked_ids == {signer.id}
        for client in clients[:2]:
            assert not await client.answers(signer)
            assert await client.answers(user), f"seed {seed}: its session was introduced again"
        for node in report.nodes:
            check_shown([node.problem or "", *[claim.key for claim in node.claims]])


@pytest.mark.slow
async def test_a_lying_server_ends_no_revocation(tmp_path: Path) -> None:
    await revoked_beside_a_liar(tmp_path, 0)


@pytest.mark.deep
async def test_a_lying_server_ends_no_revocation_whatever_it_says(tmp_path: Path) -> None:
    for seed in range(1, 150, STRIDE):
        await revoked_beside_a_liar(tmp_path / str(seed), seed)


# --- the cases that ended every command before ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "member",
    [
        {"revoked": [[]]},
        {"viewAgeMs": 1e300},
        {"viewAgeMs": -1},
        {"generation": 2**63},
        {"generation": True},
        {"nowMs": 10**400},
        {"refusal": "text"},
        {"refusal": {"code": "\x1b[2J"}},
        {"roots": ["a", 1]},
        {"roots": ["r"] * 10_001},
        {"instance": "x" * 65},
        {"version": 1},
        {"version": "0.1.0\x1b[2J"},
        {"peers": [{"instances": [{}]}]},
        {"data": {"records": 1}},
        {"signer": ""},
        {"agent": "is here"},
        {"agent": {"leakCheck": {"atMs": 1e300}}},
        {"agent": {"door": {"stopped": {"x": "y"}}}},
    ],
)
async def test_an_answer_with_one_invalid_member_is_invalid(member: dict[str, Any]) -> None:
    answer = {"signer": "r", **member}
    with pytest.raises(DecodeError) as refused:
        ServerIdentity.from_json(answer)
    assert str(refused.value).isprintable()


async def test_the_error_names_the_server_and_the_member_and_not_what_it_said() -> None:
    body = {"signer": "r", "source": "\x1b[2Jsecret"}
    transport = httpx2.MockTransport(lambda _: httpx2.Response(200, json=body))
    with pytest.raises(InvalidAnswerError, match=r"http://a.*source: must be a short printable string") as refused:
        await NodeClient("http://a", http=httpx2.AsyncClient(transport=transport)).identity()
    assert "secret" not in str(refused.value)


def test_members_that_are_missing_or_new_do_no_harm() -> None:
    found = ServerIdentity.from_json({"signer": "r", "new": [[]], "agent": None})
    assert found == ServerIdentity(signer="r")
    for stranger in ({}, [], None, 5, "text", {"signer": None}, {"name": "an application"}):
        assert ServerIdentity.from_json(stranger) is None


def test_a_text_is_cut_short_and_printable() -> None:
    assert make_printable("é\x1b\n") == "é??"
    assert len(make_printable("x" * 999)) == LONGEST_TEXT
