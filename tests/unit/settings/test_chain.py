"""A server that was offline follows roots that have left the document, by introductions that its peers hold."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from goatherd.errors import SuccessionError
from goatherd.identity.document import IdentityDocument, encode_document
from goatherd.identity.succession import TrustCheckpoint
from goatherd.identity.transitions import revoke_root
from goatherd.settings.base import Introductions
from goatherd.settings.store import CHAIN_RETRY, CloudSecretSettings
from goatherd.wire.commit import Commit
from tests.unit.identity.make import NOW, first, owned, rotated
from tests.unit.identity.test_chains import aged, chain, introduced, whole_chain

from .make import SECRET, CountingProvider, HandClock, store_with


class Places:
    """A source of introductions that returns what a test gave it, and counts its calls."""

    def __init__(self, *places: Introductions) -> None:
        self.places = list(places)
        self.asked: list[str] = []

    async def __call__(self, document: IdentityDocument) -> AsyncIterator[Introductions]:
        assert document.current.id == aged().current.id
        for place in self.places:
            self.asked.append(place.place)
            yield place


def place(name: str, *commits: Commit, problem: str | None = None) -> Introductions:
    return Introductions(place=name, commits=commits, problem=problem)


def settings_with(
    provider: CountingProvider, seen: Path, clock: HandClock, *places: Introductions
) -> CloudSecretSettings:
    settings = CloudSecretSettings(provider, SECRET, seen=seen, clock=clock)
    settings.introductions = Places(*places)
    return settings


@pytest.fixture
def seen(tmp_path: Path) -> Path:
    path = tmp_path / "seen.json"
    path.write_bytes(TrustCheckpoint.from_document(first()).to_bytes())
    return path


@pytest.fixture
async def provider() -> CountingProvider:
    return await store_with(aged())


@pytest.mark.slow
async def test_a_server_last_seen_at_the_first_rotation_starts_by_the_log_of_a_peer(
    provider: CountingProvider, seen: Path
) -> None:
    links = whole_chain()
    settings = settings_with(
        provider,
        seen,
        HandClock(),
        place("this server's own log", *links[:3]),
        place("http://b:8101", problem="did not answer"),
        place("http://c:8101", *links[3:]),
        place("http://d:8101"),
    )
    async with settings:
        assert (await settings.load()).current.id == aged().current.id
    assert isinstance(settings.introductions, Places)
    assert settings.introductions.asked[-1] == "http://c:8101", "no further than the chain needs"
    assert settings.recalled == first().roots


@pytest.mark.slow
async def test_a_forged_chain_is_refused_and_every_place_is_named(provider: CountingProvider, seen: Path) -> None:
    links = chain()
    thief = owned("thief")
    links[10] = replace(introduced(owned("r11").session, thief), session=owned("r10").id)
    settings = settings_with(
        provider, seen, HandClock(), place("http://b:8101", *links), place("http://c:8101", problem="did not answer")
    )
    async with settings:
        with pytest.raises(SuccessionError, match="no chain") as caught:
            await settings.load()
    assert "http://b:8101: has no matching introductions" in str(caught.value)
    assert "http://c:8101: did not answer" in str(caught.value)
    assert "--peer" in caught.value.hint
    assert "GOATHERD_NODES" in caught.value.hint, "`goatherd run` has no --peer"
    assert "--accept-identity" in caught.value.hint


@pytest.mark.slow
async def test_a_server_that_trusts_only_a_root_that_was_revoked_without_its_key_is_sent_to_no_other_server(
    seen: Path,
) -> None:
    document = revoke_root(rotated(), owned("a").id, NOW, reason="old backup")
    settings = CloudSecretSettings(await store_with(document), SECRET, seen=seen, clock=HandClock())

    async def ask_peers(document: IdentityDocument) -> AsyncIterator[Introductions]:
        yield place("http://b:8101")

    settings.introductions = ask_peers
    async with settings:
        with pytest.raises(SuccessionError, match="no chain") as caught:
            await settings.load()
    assert "revokes every root that this server trusts" in caught.value.hint
    assert "--accept-identity" in caught.value.hint
    assert "--peer" not in caught.value.hint


@pytest.mark.slow
async def test_without_any_peer_the_error_says_so(provider: CountingProvider, seen: Path) -> None:
    async with settings_with(provider, seen, HandClock()) as settings:
        with pytest.raises(SuccessionError, match="no peer is known"):
            await settings.load()


@pytest.mark.slow
async def test_a_server_that_runs_follows_too_and_asks_again_when_its_peers_did_not_know() -> None:
    provider, clock = CountingProvider(), HandClock()
    await provider.create(SECRET, encode_document(first()))
    places = Places(place("http://b:8101", problem="did not answer"))
    async with CloudSecretSettings(provider, SECRET, clock=clock) as settings:
        settings.introductions = places
        await settings.load()
        await provider.put(aged())
        assert not await settings.refresh()
        assert settings.status.last_refusal is not None
        assert settings.status.last_refusal.code == SuccessionError.code
        assert not await settings.refresh()
        assert len(places.asked) == 1, "not at every look"
        places.places = [place("http://b:8101", *whole_chain())]
        await clock.turn(CHAIN_RETRY)
        await settings.refresh()
        assert settings.settings.current.id == aged().current.id


async def test_peers_are_not_asked_for_what_no_introduction_can_mend(tmp_path: Path) -> None:
    provider = CountingProvider()
    await provider.create(SECRET, encode_document(first()))
    path = tmp_path / "seen.json"
    other = replace(first().roots[0], public_key=owned("thief").session.public_key)
    path.write_bytes(TrustCheckpoint.from_document(replace(first(), roots=(other,), generation=0)).to_bytes())
    settings = settings_with(provider, path, HandClock(), place("http://b:8101", *whole_chain()))
    async with settings:
        with pytest.raises(SuccessionError, match="another key"):
            await settings.load()
    assert isinstance(settings.introductions, Places)
    assert settings.introductions.asked == []
