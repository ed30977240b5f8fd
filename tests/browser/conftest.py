"""A browser for each module. A test fails on any error in a page's console, and on a request to another host."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import axe_playwright_python
import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.deadlines import HANG
from tests.fakes.chromium import WHY_SKIPPED, PageServer, find_chromium

OpenPage = Callable[..., Page]
AXE = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = find_chromium()
    if program is None:
        pytest.skip(WHY_SKIPPED)
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox"] if os.getuid() == 0 else []
        started = playwright.chromium.launch(executable_path=program, args=arguments)
        yield started
        started.close()


@pytest.fixture
def server() -> Iterator[PageServer]:
    """The process that serves the page."""
    with PageServer() as started:
        yield started


@pytest.fixture
def open_page(browser: Browser) -> Iterator[OpenPage]:
    """Return a function that opens a URL in a new context, with options of Playwright's contexts."""
    contexts, problems, asked = [], [], []
    allowed: list[str] = []

    def open_one(url: str, *, expected: Sequence[str] = (), **options: Any) -> Page:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        context.set_default_timeout(HANG * 1000)
        contexts.append(context)
        page = context.new_page()
        allowed.append(url.split("/", 3)[2])
        # Chromium notes a failed request on the console, too; what a test expects is not an error.
        page.on(
            "console",
            lambda message: (
                problems.append(message.text)
                if message.type in ("error", "warning") and not any(text in message.text for text in expected)
                else None
            ),
        )
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", lambda dialog: problems.append(f"a dialog: {dialog.message}"))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(url, wait_until="load")
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert problems == []
    assert [url for url in asked if not url.startswith("file:") and url.split("/", 3)[2] not in allowed] == []


def find_violations(page: Page, *, has_contrast: bool = True) -> list[str]:
    """Return what axe-core finds wrong on a page, each with the elements.

    Args:
        page: The page.
        has_contrast: Whether to check the contrast of every text, which takes a minute for hundreds of equal rows.
    """
    # Through the debugger, which the page's policy does not concern.
    page.evaluate(AXE)
    found = page.evaluate(
        "enabled => axe.run({ rules: { 'color-contrast': { enabled } }, resultTypes: ['violations'] })", has_contrast
    )
    return [
        f"{one['id']}: {node['target']} {node['failureSummary']}"
        for one in found["violations"]
        for node in one["nodes"]
    ]


def find_overflow(page: Page) -> int:
    """Return by how many pixels the page is wider than the window."""
    width: int = page.evaluate("() => document.scrollingElement.scrollWidth - document.documentElement.clientWidth")
    return width
