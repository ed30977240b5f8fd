"""The site: its drawings, its sidebar, and the change that the contributors' page shows."""

from __future__ import annotations

import importlib.util
import re
import sys
import xml.etree.ElementTree as ET
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from goatherd import errors
from goatherd.errors import ConfigurationError
from goatherd.providers.memory import MemorySecretProvider, MemoryStore
from goatherd.testing.contract import check_provider
from tests.contract import test_provider_contract
from tests.docs.reference import DOCS

ROOT = DOCS.parent
CONTRIBUTE = DOCS / "tutorials/contribute.md"
PAGES = sorted(DOCS.rglob("*.md"))
DRAWINGS = sorted((DOCS / "drawings").glob("*.svg"))
SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize("path", DRAWINGS, ids=lambda path: path.stem)
def test_a_drawing_is_shown_has_a_title_follows_dark_and_light_and_holds_its_text(path: Path) -> None:
    assert any(f"drawings/{path.name})" in page.read_text() for page in PAGES)
    raw = path.read_text()
    assert "prefers-color-scheme: dark" in raw
    assert 'body[data-theme="dark"]' in raw
    tree = ET.fromstring(raw)
    assert tree.findtext(f"{SVG}title")
    assert tree.findtext(f"{SVG}desc")
    _, _, width, height = (float(number) for number in tree.attrib["viewBox"].split())
    for text in tree.iter(f"{SVG}text"):
        assert text.text
        half = len(text.text) * (7.5 if text.attrib["class"] == "name" else 6.2) / 2
        x, y = float(text.attrib["x"]), float(text.attrib["y"])
        middle = x + {"start": half, "end": -half}.get(text.attrib.get("text-anchor", "start"), 0)
        assert middle - half >= 0, text.text
        assert middle + half <= width, text.text
        assert 0 < y < height, text.text


def test_every_page_is_in_the_site_s_sidebar_once() -> None:
    index = (DOCS / "index.md").read_text()
    trees = "\n".join(re.findall(r"```\{toctree\}(.*?)```", index, re.DOTALL))
    entries = re.findall(r"^(?:.+ <)?([\w/-]+)>?$", trees, re.MULTILINE)
    pages = [str(page.relative_to(DOCS))[:-3] for page in PAGES]
    assert sorted(entries) == [page for page in sorted(pages) if page != "index" and not page.startswith("adr/0")]


def load_module(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a module with this source."""
    (tmp_path / "changed.py").write_text(text)
    spec = importlib.util.spec_from_file_location("goatherd_changed_memory", tmp_path / "changed.py")
    assert spec is not None
    assert spec.loader is not None
    changed = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, changed.__name__, changed)
    spec.loader.exec_module(changed)
    return changed


@pytest.mark.slow
async def test_the_mistake_that_the_contributors_page_shows_is_caught_by_the_check_that_it_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = CONTRIBUTE.read_text()
    (line,) = re.findall(r"```python\n(expected = .*)\n```", page)
    (named,) = re.findall(r"`FAILED (.*?)`", page)
    text = (ROOT / "src/goatherd/providers/record_provider.py").read_text()
    first = text.index("        entry = ", text.index("async def _write("))
    changed = load_module(f"{text[:first]}        {line}\n{text[first:]}", tmp_path, monkeypatch)
    kind = type("Changed", (MemorySecretProvider,), {"_write": changed.RecordProvider._write})
    store = MemoryStore()
    report = await check_provider(lambda: kind(store), rounds=2, settle=timedelta(0))
    errors = {one.check.replace("_", " "): str(one.error) for one in report.failures}
    assert errors[named] == "2 writers won"


def test_the_change_that_the_contributors_page_shows_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = CONTRIBUTE.read_text()
    (shown,) = re.findall(r"```diff\n(.*?)```", page, re.DOTALL)
    head = re.search(r"^\+\+\+ b/(\S+)$", shown, re.MULTILINE)
    assert head is not None
    body = shown[head.end() + 1 :].splitlines(keepends=True)
    before = "".join(line[1:] for line in body if line[0] in "- ")
    after = "".join(line[1:] for line in body if line[0] in "+ ")
    text = (ROOT / head[1]).read_text().replace(after, before)  # who has followed the page runs the tests, too
    assert text.count(before) == 1, "the page shows lines that the file no longer has"
    unchanged = load_module(text, tmp_path, monkeypatch)
    changed = load_module(text.replace(before, after), tmp_path, monkeypatch)
    (test,) = re.findall(r"```python\ndef (test_\w+).*?:\n(.*?)```", page, re.DOTALL)
    (imported,) = re.findall(r"add `(\w+)` to its imports from `goatherd\.errors`", page)
    names = {
        **vars(test_provider_contract),
        "MemorySecretProvider": changed.MemorySecretProvider,
        imported: getattr(errors, imported),
    }
    exec(f"def shown():\n{test[1]}", names)
    names["shown"]()
    names["MemorySecretProvider"] = unchanged.MemorySecretProvider
    with pytest.raises(ConfigurationError):
        names["shown"]()


async def test_the_provider_that_the_page_for_authors_shows_keeps_the_contract(tmp_path: Path) -> None:
    (shown,) = re.findall(
        r"```python\n(import json\n.*?)```", (DOCS / "how-to/write-a-provider.md").read_text(), re.DOTALL
    )
    names: dict[str, Any] = {"__name__": "shown"}
    exec(shown, names)
    provider, secret_id = names["SQLiteProvider"].from_uri(f"mystore://{tmp_path}/keys.db/root")
    assert secret_id == "root"
    report = await check_provider(lambda: names["SQLiteProvider"](provider.store.path), rounds=5, settle=timedelta(0))
    assert [(one.check, str(one.error)) for one in report.failures] == []
