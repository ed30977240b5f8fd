"""Watching a Secret: every change causes a hint at once, a watch restarts cheaply, and a hint only causes a read."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

pytest.importorskip("kubernetes_asyncio", reason="needs the extra kubernetes")

from goatherd.errors import ProviderAccessDeniedError, ThrottledError, UnavailableError
from goatherd.providers.capabilities import WatchableSecretProvider
from goatherd.providers.kubernetes import provider as module
from goatherd.providers.kubernetes.provider import KubernetesSecretProvider
from tests.contract.kubernetes.clients import provider_of
from tests.deadlines import HANG
from tests.fakes.kubernetes_fake import FakeKubernetes, Trouble

from .test_contract import ROOT


@pytest.fixture
async def provider(fake: FakeKubernetes, tmp_path: Path) -> AsyncIterator[KubernetesSecretProvider]:
    async with provider_of(fake, tmp_path) as entered:
        yield entered


async def hint(hints: AsyncIterator[None]) -> None:
    """Wait for the next hint."""
    await asyncio.wait_for(anext(hints), HANG)


async def no_hint(hints: AsyncIterator[None], fake: FakeKubernetes, provider: KubernetesSecretProvider) -> None:
    """Check that no hint comes before that of a change that is made now."""
    waiting = asyncio.create_task(anext(hints))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    await touch(fake)
    await asyncio.wait_for(waiting, HANG)


async def touch(fake: FakeKubernetes) -> None:
    fake.put("default", "root", fake.stored("default", "root"))


async def test_the_provider_can_be_watched_and_says_so(provider: KubernetesSecretProvider):
    assert provider.guarantees.push
    assert isinstance(provider, WatchableSecretProvider)


async def test_every_change_is_told_creation_and_deletion_too(fake: FakeKubernetes, provider: KubernetesSecretProvider):
    hints = provider.watch(ROOT)
    await hint(hints)  # it stands, though there is nothing yet
    first = await provider.create(ROOT, b"first")
    await hint(hints)
    await provider.write(ROOT, b"second", expected=first.id)
    await hint(hints)
    await provider.label(ROOT, "stable", first.id, expected=None)
    await hint(hints)
    await provider.delete(ROOT)
    await hint(hints)
    await provider.create(ROOT, b"again")
    await hint(hints)


async def test_other_secrets_and_bookmarks_are_no_hints(fake: FakeKubernetes, provider: KubernetesSecretProvider):
    await provider.create(ROOT, b"first")
    hints = provider.watch(ROOT)
    await hint(hints)
    await hint(hints)
    await provider.create("default/root2", b"other")
    fake.bookmark()
    await no_hint(hints, fake, provider)


async def test_a_watch_that_is_begun_again_goes_on_where_the_last_one_was(
    fake: FakeKubernetes, provider: KubernetesSecretProvider
):
    await provider.create(ROOT, b"first")
    first = provider.watch(ROOT)
    await hint(first)
    await hint(first)
    fake.bookmark()
    waiting = asyncio.create_task(anext(first))
    async with asyncio.timeout(HANG):
        while provider._seen[ROOT] != str(fake.version):
            await asyncio.sleep(0.01)
    waiting.cancel()
    await asyncio.wait({waiting})
    again = provider.watch(ROOT)
    await hint(again)
    await no_hint(again, fake, provider)
    assert [asked.resource_version for asked in fake.asked if asked.verb == "watch"] == ["", str(fake.version - 1)]


async def test_history_that_the_server_has_forgotten_means_beginning_afresh(
    fake: FakeKubernetes, provider: KubernetesSecretProvider
):
    await provider.create(ROOT, b"first")
    first = provider.watch(ROOT)
    await hint(first)
    await hint(first)
    await first.aclose()
    await touch(fake)
    fake.compact()
    hints = provider.watch(ROOT)
    await hint(hints)  # it stood, until the server found what it had forgotten
    await hint(hints)
    await hint(hints)
    await no_hint(hints, fake, provider)
    versions = [asked.resource_version for asked in fake.asked if asked.verb == "watch"]
    assert versions[0] == versions[2] == ""
    assert versions[1] != ""


async def test_a_bare_410_means_beginning_afresh_too(fake: FakeKubernetes, provider: KubernetesSecretProvider):
    await provider.create(ROOT, b"first")
    provider._seen[ROOT] = "1"
    fake.troubles = [Trouble(status=410, body=b"gone")]
    await hint(provider.watch(ROOT))
    assert [asked.resource_version for asked in fake.asked if asked.verb == "watch"] == ["1", ""]


async def test_a_watch_ends_when_the_server_ends_it(
    fake: FakeKubernetes, provider: KubernetesSecretProvider, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "_WATCH_SECONDS", (0, 0))
    await provider.create(ROOT, b"first")
    async with asyncio.timeout(HANG):
        assert [None async for _ in provider.watch(ROOT)] == [None, None]


async def test_a_watch_that_is_left_is_closed_at_the_server(fake: FakeKubernetes, provider: KubernetesSecretProvider):
    await provider.create(ROOT, b"first")
    hints = provider.watch(ROOT)
    await hint(hints)
    assert fake.watching == 1
    await hints.aclose()
    async with asyncio.timeout(HANG):
        while fake.watching:
            await touch(fake)
            await asyncio.sleep(0.01)


async def test_a_role_without_watch_is_denied(fake: FakeKubernetes, tmp_path: Path):
    role = {
        "metadata": {"namespace": "default"},
        "rules": [{"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["root"], "verbs": ["get"]}],
    }
    async with provider_of(fake, tmp_path, token=fake.account("reader", role)) as reader:
        with pytest.raises(ProviderAccessDeniedError, match="cannot watch") as caught:
            await anext(reader.watch(ROOT))
    assert caught.value.operation == "watch"


async def test_a_throttled_watch_carries_the_hint(fake: FakeKubernetes, provider: KubernetesSecretProvider):
    fake.troubles = [Trouble(status=429, headers={"Retry-After": "3"}, body=b"Too many requests")]
    with pytest.raises(ThrottledError) as caught:
        await anext(provider.watch(ROOT))
    assert caught.value.retry_after == 3


def line(kind: str, content: object) -> bytes:
    return json.dumps({"type": kind, "object": content}).encode() + b"\n"


@pytest.mark.parametrize(
    "raw",
    [
        b"nonsense\n",
        b"{}\n",
        b"[]\n",
        line("ADDED", {}),
        line("ADDED", {"metadata": {"name": "root", "resourceVersion": "7"}}),
        line("UNHEARD-OF", {"metadata": {"name": "root", "resourceVersion": "7"}}),
        line("ERROR", {"kind": "Status", "code": 500, "message": "oops"}),
        line("BOOKMARK", {"metadata": {}}),
    ],
)
async def test_a_damaged_event_is_unavailable(fake: FakeKubernetes, provider: KubernetesSecretProvider, raw: bytes):
    fake.troubles = [Trouble(status=200, body=raw)]
    hints = provider.watch(ROOT)
    await hint(hints)
    with pytest.raises(UnavailableError):
        await hint(hints)


async def test_half_an_event_at_the_end_is_no_event(fake: FakeKubernetes, provider: KubernetesSecretProvider):
    fake.troubles = [Trouble(status=200, body=b'{"type":"ADDED","object":{"kind":"Secr')]
    assert [None async for _ in provider.watch(ROOT)] == [None]
