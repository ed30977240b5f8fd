"""The page of a real herd: each phase live, a roll-back, a revoked root, an unreachable server or store, an agent."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from pathlib import Path

import pytest
from playwright.async_api import Page, async_playwright, expect

import goatherd
from goatherd.cluster.discovery import NodeDirectory
from goatherd.identity.settings_json import to_settings
from goatherd.node.server import ServerListener
from goatherd.operations.identity_store import Store
from goatherd.operations.revoke import revoke
from goatherd.operations.rotate import resume, roll_back, rotate
from goatherd.providers.base import SecretProvider
from goatherd.rotation.machine import Phase
from goatherd.rotation.policy import Policy
from goatherd.web.access import PageAddress
from goatherd.web.collector import Collector
from goatherd.web.publisher import publish_views
from tests.cluster.agents import cluster
from tests.cluster.herd import CutOff, herd
from tests.deadlines import ADOPTION, ANSWER, HANG
from tests.fakes.chromium import WHY_SKIPPED, find_chromium
from tests.ports import free_ports

from .conftest import AXE

PROGRAM = find_chromium()
pytestmark = [pytest.mark.deep, pytest.mark.skipif(PROGRAM is None, reason=WHY_SKIPPED)]
INTERVAL = timedelta(milliseconds=500)
POLICY = Policy(adoption=ADOPTION, node_timeout=ANSWER, unlisted=timedelta(0))


@contextlib.asynccontextmanager
async def reading(
    provider: SecretProvider, secret_id: str, urls: Sequence[str]
) -> AsyncIterator[tuple[Store, NodeDirectory, Page]]:
    """Serve the page of a cluster, and yield its store, its servers, and the page in a browser."""
    problems: list[str] = []
    async with NodeDirectory(urls, timeout=ANSWER) as nodes, async_playwright() as playwright:
        store = Store(provider=provider, secret_id=secret_id, org="localhost", name="file:///keys/root")
        collector = Collector(
            store=store, nodes=nodes, policy=POLICY, schedule=None, grace=POLICY.grace, interval=INTERVAL
        )
        stop, ready = asyncio.Event(), asyncio.Queue[str]()
        address = PageAddress(host="127.0.0.1", port=0)
        publishing = asyncio.create_task(
            publish_views(collector, address, interval=INTERVAL, stop=stop, on_ready=ready.put_nowait)
        )
        arguments = ["--no-sandbox"] if os.getuid() == 0 else []
        browser = await playwright.chromium.launch(executable_path=PROGRAM, args=arguments)
        page = await browser.new_page()
        page.set_default_timeout(HANG * 1000)
        expect.set_options(timeout=HANG * 1000)
        page.on("console", lambda one: problems.append(one.text) if one.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        await page.goto(await ready.get())
        yield store, nodes, page
        await page.evaluate(AXE)
        found = await page.evaluate("() => axe.run()")
        problems += [f"{one['id']}: {node['target']}" for one in found["violations"] for node in one["nodes"]]
        await browser.close()
        stop.set()
        await publishing
        assert problems == []


async def test_a_reader_follows_a_real_rotation_and_a_roll_back(tmp_path: Path) -> None:
    async with (
        herd(tmp_path, count=3) as three,
        reading(three.provider, three.secret_id, three.urls) as (store, nodes, page),
    ):
        headline = page.get_by_role("heading", level=1)
        await expect(headline).to_contain_text("signs on 3 of 3 servers.")

        await rotate(store, nodes, POLICY, to_phase=Phase.PREPARED)
        for phase in (Phase.PREPARED, Phase.PUBLISHED, Phase.ACTIVATED, Phase.VERIFIED):
            await resume(store, nodes, POLICY, to_phase=phase)
            await expect(page.locator("[aria-current=step]")).to_have_text(phase.value)
        await resume(store, nodes, POLICY)
        await expect(headline).to_contain_text("signs on 3 of 3 servers.")
        await expect(page.locator("#history").get_by_text("rotated")).to_be_visible()

        await rotate(store, nodes, POLICY, to_phase=Phase.ACTIVATED)
        await roll_back(store, nodes, POLICY, reason="the <b>office</b> asked for it")
        told = page.get_by_text("The last rotation was rolled back")
        await expect(told).to_contain_text("the <b>office</b> asked for it")


async def test_a_reader_sees_a_server_and_the_store_away_and_a_revoked_root(tmp_path: Path) -> None:
    async with (
        herd(tmp_path, count=2) as two,
        reading(two.provider, two.secret_id, two.urls) as (store, nodes, page),
    ):
        headline = page.get_by_role("heading", level=1)
        row = page.get_by_role("table", name="Servers").get_by_role("row").filter(has_text=two.urls[1])
        await expect(headline).to_contain_text("signs on 2 of 2 servers.")
        await expect(row.get_by_text(goatherd.__version__, exact=True)).to_be_visible()

        await two.listeners[1].__aexit__(None, None, None)
        await expect(headline).to_contain_text(f"signs on 1 of 2 servers; {two.urls[1]} did not answer.")
        await expect(row.get_by_text("no", exact=True)).to_have_count(1)
        for column in ("trusts current root", "signs with", "generation", "last store read", "version"):
            await expect(row.locator(f"td[data-label='{column}']")).to_have_text("unknown")
        async with ServerListener(two.servers[1], port=int(two.urls[1].rpartition(":")[2])):
            await expect(headline).to_contain_text("signs on 2 of 2 servers.")

            assert isinstance(two.provider, CutOff)
            two.provider.is_cut = True
            await expect(page.get_by_role("alert")).to_contain_text("the cable is out")
            await expect(headline).to_contain_text("signs on 2 of 2 servers.")
            two.provider.is_cut = False
            await expect(page.get_by_role("alert")).to_be_hidden()

            await revoke(store, nodes, POLICY, root_id=two.first.id, reason="laptop stolen", confirmed=True)
            await expect(headline).to_contain_text("signs on 2 of 2 servers.")
            root = page.get_by_role("table", name="Chain of roots").get_by_role("row").filter(has_text=two.first.id[:8])
            stolen = root.filter(has_text="laptop stolen")
            await expect(stolen.get_by_text("revoked", exact=True)).to_be_visible()
            await expect(page.locator("#history").get_by_text("laptop stolen").first).to_be_visible()


async def test_a_reader_sees_unmodified_servers_with_an_agent_and_without(tmp_path: Path) -> None:
    async with cluster(tmp_path, 2) as made:
        agented, bare = made.nodes
        (door,) = free_ports(1)
        agented.options = ("--door", str(door))
        bare.is_bare = True
        bare.settings.parent.mkdir(parents=True)
        bare.settings.write_bytes(to_settings(await made.document()))
        await asyncio.gather(agented.start(), bare.start())
        await asyncio.gather(agented.up(made.first), bare.up(made.first))
        urls = (f"http://127.0.0.1:{door}", bare.url)
        async with reading(made.provider, made.secret_id, urls) as (_, _, page):
            servers = page.get_by_role("table", name="Servers")
            under_agent, alone = (servers.get_by_role("row").filter(has_text=url) for url in urls)
            await expect(under_agent).to_contain_text("GoatDB under an agent, with a door")
            await expect(under_agent.get_by_text(goatherd.__version__, exact=True)).to_be_visible()
            await expect(under_agent.get_by_text(made.first.id[:8])).to_be_visible()
            await expect(alone).to_contain_text("unmodified GoatDB server")
            await expect(alone.get_by_text("yes", exact=True)).to_have_count(2)
            await expect(alone.locator("td[data-label=version]")).to_contain_text("·")
