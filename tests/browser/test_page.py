"""What a reader sees and does on the page: states, live changes, keyboard, no JavaScript, small and dark screens,
signing in."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
from playwright.sync_api import expect

from goatherd.times import iso
from goatherd.web.render import Renderer, view_data
from tests.fakes.chromium import PageServer
from tests.fakes.page_scenes import HOSTILE, NOW, A, B, scenes, view_of
from tests.ports import free_ports

from .conftest import OpenPage, find_overflow, find_violations

pytestmark = pytest.mark.slow
SCENES = scenes()
TOKEN = "correct horse battery staple"


def test_the_steady_state_reads_as_a_sentence_and_axe_finds_nothing(server: PageServer, open_page: OpenPage) -> None:
    server.show(view_of(SCENES["steady"]))
    page = open_page(server.url)
    expect(page.get_by_role("heading", level=1)).to_have_text("Root x7uubah0 signs on 5 of 5 servers.")
    expect(page.get_by_role("table", name="Servers").get_by_role("row")).to_have_count(6)
    expect(page.get_by_text("in the minutes of * 1-4 * * SAT,SUN (Europe/Berlin)")).to_be_visible()
    expect(page.locator("#live")).to_contain_text("last update")
    expect(page).to_have_title("✓ localhost · Goatherd")
    assert find_violations(page) == []
    dark = open_page(server.url, color_scheme="dark")
    assert find_violations(dark) == []
    narrow = open_page(server.url, viewport={"width": 360, "height": 740}, has_touch=True)
    assert find_overflow(narrow) == 0
    assert find_violations(narrow) == []


@pytest.mark.deep
@pytest.mark.parametrize("name", SCENES)
def test_every_state_is_legible_everywhere(name: str, server: PageServer, open_page: OpenPage) -> None:
    server.show(view_of(SCENES[name]))
    page = open_page(f"{server.url}/?all=1")
    assert find_overflow(page) == 0
    # The rows of these two are as those of the others.
    assert find_violations(page, has_contrast=name not in ("crowd", "long-history")) == []
    page.set_viewport_size({"width": 360, "height": 740})
    assert find_overflow(page) == 0


def test_a_rotation_is_followed_live_without_losing_the_reader_s_place(server: PageServer, open_page: OpenPage) -> None:
    server.show(view_of(SCENES["steady"]))
    page = open_page(server.url)
    copy = page.get_by_role("table", name="Servers").get_by_role("button", name=f"Copy root {B}").first
    copy.focus()
    for phase, column in (
        ("prepared", "introduction"),
        ("published", "introduction"),
        ("activated", "cross-signature"),
        ("verified", "cross-signature"),
    ):
        server.show(view_of(SCENES[phase]))
        expect(page.locator("[aria-current=step]")).to_have_text(phase)
        expect(page.get_by_role("columnheader", name=column)).to_be_visible()
        expect(page.get_by_role("heading", level=1)).to_contain_text(f"Rotation from ak96ho8j to x7uubah0: {phase}")
        expect(page.get_by_text("http://10.0.0.5:8080: ")).to_be_visible()
        assert page.evaluate("() => document.activeElement.className") == "copy"
    expect(page).to_have_title("↻ localhost · Goatherd")
    assert find_violations(page) == []
    server.show(view_of(SCENES["rolled-back"]))
    expect(page.get_by_text("The last rotation was rolled back")).to_contain_text("does not sign with the next root")
    expect(page.locator("#rotation")).to_be_hidden()
    server.show(None, {"text": "The identity cannot be read: the store did not answer.", "advice": "Check it."})
    expect(page.get_by_role("alert")).to_contain_text("the store did not answer")
    expect(page.get_by_text("Unknown; before: degraded")).to_be_visible()
    expect(page).to_have_title("? localhost · Goatherd")
    assert find_violations(page) == []
    server.show(view_of(SCENES["revoked"]))
    expect(page.get_by_role("alert")).to_be_hidden()
    expect(page.get_by_text("Unknown; before")).to_be_hidden()
    expect(page.get_by_role("table", name="Chain of roots").get_by_text("revoked")).to_be_visible()
    server.show(view_of(SCENES["server-away"]))
    row = page.get_by_role("row").filter(has_text="10.0.0.5")
    expect(row.get_by_text("no", exact=True)).to_have_count(1)
    assert row.get_by_text("unknown", exact=True).count() >= 4


def test_a_lost_connection_is_shown_and_comes_back(open_page: OpenPage) -> None:
    (port,) = free_ports(1)
    with PageServer(port) as first:
        first.show(view_of(SCENES["steady"]))
        page = open_page(first.url, expected=["net::ERR"])
        expect(page.locator("#live.on")).to_contain_text("last update")
    expect(page.locator("#live.off")).to_contain_text("connection lost; last update")
    expect(page.get_by_role("status")).to_have_text("connection lost")
    with PageServer(port) as second:
        second.show(view_of(SCENES["server-away"]))
        expect(page.locator("#live.on")).to_contain_text("last update")
        expect(page.get_by_role("heading", level=1)).to_contain_text("4 of 5 servers")


def test_the_keyboard_reaches_everything(server: PageServer, open_page: OpenPage) -> None:
    view = view_of(SCENES["long-history"])
    server.show(view)
    page = open_page(server.url, permissions=["clipboard-read", "clipboard-write"])
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
    for name in ("Servers", "Roots", "Stores", "History"):
        page.keyboard.press("Tab")
        expect(page.get_by_role("link", name=name, exact=True)).to_be_focused()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.evaluate("() => navigator.clipboard.readText()") == "http://10.0.0.1:8080"
    page.get_by_label("Events").focus()
    page.keyboard.press("c")  # the first event that begins with it
    page.keyboard.press("Tab")
    with page.expect_navigation():
        page.keyboard.press("Enter")
    expect(page.get_by_label("Events")).to_have_value("cancelled")
    expect(page.get_by_role("table", name="History").get_by_role("row")).to_have_count(51)
    page.get_by_role("link", name="Show all 125 events").press("Enter")
    expect(page.get_by_role("table", name="History").get_by_role("row")).to_have_count(126)
    link = page.get_by_role("table", name="History").get_by_role("link").last
    link.press("Enter")
    expect(page.locator("tr.target")).to_be_in_viewport()
    page.evaluate("() => document.querySelector('tr.target').classList.add('before')")
    assert view.trail is not None
    server.show(replace(view, trail=replace(view.trail, text="62 records")))
    expect(page.get_by_text("62 records")).to_be_visible()
    expect(page.locator("tr.target:not(.before)"), "an update keeps the mark").to_be_in_viewport()
    page.locator("summary").press("Enter")
    expect(page.get_by_role("table", name="Newest records")).to_be_visible()


def test_without_scripts_the_page_is_whole_and_reloads(server: PageServer, open_page: OpenPage) -> None:
    server.show(view_of(SCENES["activated"]))
    page = open_page(server.url, java_script_enabled=False)
    expect(page.get_by_role("heading", level=1)).to_contain_text("activated")
    expect(page.locator("meta[http-equiv=refresh]")).to_have_attribute("content", "10")
    expect(page.get_by_role("button", name="Copy")).to_have_count(0)
    expect(page.locator("#rotation time").first).to_contain_text("UTC")


def test_times_are_the_reader_s_with_utc_on_hover(server: PageServer, open_page: OpenPage) -> None:
    server.show(view_of(SCENES["steady"]))
    page = open_page(server.url, timezone_id="Asia/Tokyo", locale="ja-JP")
    expires = page.get_by_role("table", name="Chain of roots").locator("time").nth(2)
    utc = iso(SCENES["steady"].document.current.session.expiration_ms)
    assert expires.get_attribute("title") == f"{utc[:10]} {utc[11:19]} UTC"
    expect(expires).to_have_text(f"{utc[:10]} 09:00:00")
    expect(page.locator("#zone")).to_have_text("Asia/Tokyo")


def test_hostile_names_are_only_text(server: PageServer, open_page: OpenPage) -> None:
    server.show(view_of(SCENES["hostile"], org=HOSTILE[:60]))
    page = open_page(server.url)
    server.show(view_of(SCENES["hostile"], org=HOSTILE[:60]))
    expect(page.locator("#live.on")).to_be_visible()
    assert page.locator("script").count() == 1
    assert page.locator("img").count() == 0
    expect(page.get_by_role("row").filter(has_text="<script>alert(1)</script>").first).to_be_visible()
    assert "\u202e" not in page.content()
    assert find_overflow(page) == 0
    assert find_violations(page) == []
    page.set_viewport_size({"width": 360, "height": 740})
    assert find_overflow(page) == 0


def test_a_reader_signs_in_and_out(open_page: OpenPage) -> None:
    with PageServer(token_digest=hashlib.sha256(TOKEN.encode()).hexdigest()) as server:
        server.show(view_of(SCENES["steady"]))
        page = open_page(server.url, expected=["status of 401", "status of 403"])
        assert find_violations(page) == []
        assert "x7uubah0" not in page.content()
        page.get_by_label("Token").fill("not this one")
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_role("alert")).to_have_text("This is not the token.")
        page.get_by_label("Token").fill(TOKEN)
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_role("heading", level=1)).to_contain_text("5 of 5 servers")
        expect(page.locator("#live.on")).to_be_visible()
        assert page.evaluate("() => document.cookie") == ""
        page.get_by_role("button", name="Sign out").click()
        expect(page.get_by_label("Token")).to_be_visible()


def test_a_file_is_the_same_page_and_prints(open_page: OpenPage, tmp_path: Path) -> None:
    file = tmp_path / "status.html"
    file.write_text(Renderer().render_file(view_data(view_of(SCENES["activated"], interval_ms=None))))
    page = open_page(f"file://{file}")
    expect(page.get_by_role("heading", level=1)).to_contain_text(f"Rotation from {A[:8]}")
    expect(page.locator("#live")).to_have_text(f"as of {iso(NOW)[:10]} {iso(NOW)[11:19]}")
    assert find_violations(page) == []
    page.emulate_media(media="print")
    expect(page.get_by_role("navigation")).to_be_hidden()
    expect(page.get_by_role("table", name="Servers")).to_be_visible()
