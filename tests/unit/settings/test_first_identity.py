"""A server that has used no identity yet asks its peers whether they trust the root of the identity in the store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest

from goatherd.clock import SystemClock
from goatherd.cluster.client import NodeClient
from goatherd.cluster.first_identity import rejection_source
from goatherd.cluster.server_answers import ServerIdentity
from goatherd.errors import NodeRefusedError, NodeUnreachableError, SuccessionError, UnsignedRequestError
from goatherd.identity.document import IdentityDocument, source_digest
from goatherd.identity.session import OwnedSession
from goatherd.identity.succession import TrustCheckpoint
from goatherd.identity.transitions import create_document
from goatherd.settings.store import PEERS_RETRY, PEERS_TIMEOUT, CloudSecretSettings
from tests.unit.identity.make import first
from tests.unit.node.nodes import cluster, root, settings_of, store_of
from tests.unit.node.nodes import now_ms as now
from tests.waiting import until

from .make import SECRET, HandClock, store_with


@dataclass
class Peers:
    """Answers of the peers that a test sets, and how often they were asked."""

    rejecting: Sequence[str] = ("http://b:8101",)
    asked: int = 0

    async def __call__(self, document: IdentityDocument) -> Sequence[str]:
        assert document.current.id == first().current.id
        self.asked += 1
        return self.rejecting


async def settings_with(peers: Peers, clock: HandClock, **options: object) -> CloudSecretSettings:
    settings = CloudSecretSettings(await store_with(first()), SECRET, clock=clock, **options)  # type: ignore[arg-type]
    settings.rejections = peers
    return settings


async def test_an_identity_whose_root_no_peer_trusts_is_not_used(caplog: pytest.LogCaptureFixture) -> None:
    peers, clock = Peers(), HandClock()
    async with await settings_with(peers, clock) as settings:
        loading = asyncio.create_task(settings.load())
        for _ in range(PEERS_TIMEOUT // PEERS_RETRY):
            await until(lambda: PEERS_RETRY in clock.waits)
            assert not loading.done()
            assert caplog.text.count("settings.rejected_by_peers") == 1  # the operator sees at once why the start waits
            clock.waits.clear()
            await clock.turn(PEERS_RETRY)
        with pytest.raises(
            SuccessionError, match=r"no peer trusts the current root ax+ .*rejected by: http://b:8101"
        ) as caught:
            await loading
        assert "--accept-identity" in caught.value.hint


async def test_a_peer_that_reads_the_store_a_little_later_is_waited_for() -> None:
    peers, clock = Peers(), HandClock()
    async with await settings_with(peers, clock) as settings:
        loading = asyncio.create_task(settings.load())
        await until(lambda: peers.asked == 1)
        peers.rejecting = ()
        await until(lambda: PEERS_RETRY in clock.waits)
        await clock.turn(PEERS_RETRY)
        assert (await loading).current.id == first().current.id
        await settings.refresh()
    assert peers.asked == 2


@pytest.mark.parametrize("known", ["accepted", "seen"])
async def test_peers_are_not_asked_about_an_identity_that_was_accepted_or_used(tmp_path: Path, known: str) -> None:
    peers, seen = Peers(), tmp_path / "seen.json"
    if known == "seen":
        seen.write_bytes(TrustCheckpoint.from_document(first()).to_bytes())
    async with await settings_with(peers, HandClock(), accept_identity=known == "accepted", seen=seen) as settings:
        await settings.load()
    assert not peers.asked


# --- what peers answer ------------------------------------------------------------------------------------------------


Answer = bool | Exception | None


class Client(NodeClient):
    """Answers as a test says, without a connection."""

    def __init__(self, url: str, answer: Answer, ahead: timedelta | None, digest: str | None = None) -> None:
        super().__init__(url)
        self.answer, self.ahead, self.digest = answer, ahead, digest

    async def answers(self, signer: OwnedSession, now_ms: int | None = None) -> bool:
        if isinstance(self.answer, Exception):
            raise self.answer
        if self.answer is None:
            await asyncio.Event().wait()
        return bool(self.answer)

    async def identity(self) -> ServerIdentity | None:
        return None if self.digest is None else ServerIdentity(digest=self.digest)

    def clock_ahead_ms(self, now_ms: int) -> int | None:
        return None if self.ahead is None else self.ahead // timedelta(milliseconds=1)


def listed(*urls: str) -> Callable[[], Awaitable[Sequence[str]]]:
    async def list_peers() -> Sequence[str]:
        return urls

    return list_peers


YES, NO, SILENT = True, False, None
NOTHING, NEAR, FAR = timedelta(0), timedelta(seconds=-20), timedelta(hours=1)
BROKEN = NodeRefusedError("status 500", status=500)
UNSIGNED = UnsignedRequestError("the KMS does not sign")
UNREACHABLE = NodeUnreachableError("connection refused")


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([], []),
        ([(NO, NOTHING), (NO, NEAR)], [0, 1]),
        ([(NO, NOTHING), (YES, NOTHING)], []),
        ([(YES, NOTHING), (SILENT, NOTHING)], []),
        ([(SILENT, NOTHING), (NO, NOTHING)], [1]),
        ([(UNREACHABLE, NOTHING), (BROKEN, NOTHING), (SILENT, NOTHING)], []),
        ([(UNREACHABLE, NOTHING), (NO, NEAR)], [1]),
        ([(NO, FAR), (NO, -FAR), (NO, None)], []),
    ],
)
async def test_peers_that_reject_the_root_count_if_none_trusts_it(
    answers: list[tuple[Answer, timedelta | None]],
    expected: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("goatherd.cluster.first_identity.ANSWER", timedelta(milliseconds=50))
    urls = {f"http://127.0.0.1:{number + 1}": answer for number, answer in enumerate(answers)}
    ask = rejection_source(peers=listed(*urls), connect=lambda url: Client(url, *urls[url]), clock=HandClock())
    assert await ask(first()) == [list(urls)[number] for number in expected] or not expected


@pytest.mark.parametrize("answer", [NO, UNSIGNED], ids=["expired", "its signer does not sign"])
async def test_a_root_that_cannot_sign_is_trusted_by_a_peer_with_the_same_identity_only(answer: Answer) -> None:
    url, clients = "http://127.0.0.1:1", list[Client]()

    def connect(url: str) -> Client:
        clients.append(Client(url, answer, NOTHING, digest))
        return clients[-1]

    ask = rejection_source(peers=listed(url), connect=connect, clock=HandClock())
    digest = source_digest(first())
    assert not await ask(first())
    digest = "0" * 64
    assert await ask(first()) == [url]


async def test_a_peer_whose_url_is_not_valid_counts_neither_way() -> None:
    assert not await rejection_source(peers=listed("x://y"), connect=NodeClient, clock=HandClock())(first())


# --- with servers -----------------------------------------------------------------------------------------------------


@asynccontextmanager
async def attacked(tmp_path: Path, *, is_forged: bool) -> AsyncIterator[tuple[CloudSecretSettings, str]]:
    """A server, and settings for a new one from a store in which an attacker may have replaced the identity."""
    genuine = create_document(root(), now())
    # The attacker's root has the id of the genuine one, but another key.
    forged = create_document(root(genuine.current.id), now()) if is_forged else genuine
    async with cluster(tmp_path, 1, [genuine], links=lambda _: ()) as (node,):
        settings = settings_of(await store_of(forged))
        settings.rejections = rejection_source(peers=listed(node.url), connect=NodeClient, clock=SystemClock())
        yield settings, node.url


@pytest.mark.slow
async def test_a_new_server_does_not_use_an_identity_that_an_attacker_has_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("goatherd.settings.store.PEERS_TIMEOUT", timedelta(0))
    async with attacked(tmp_path, is_forged=True) as (settings, url), settings:
        with pytest.raises(SuccessionError, match=f"rejected by: {url}"):
            await settings.load()


@pytest.mark.slow
async def test_a_new_server_uses_the_identity_that_its_peer_trusts(tmp_path: Path) -> None:
    async with attacked(tmp_path, is_forged=False) as (settings, _), settings:
        await settings.load()
