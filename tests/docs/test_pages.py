"""What pages name exists, what they draw can be read, and what they tell contributors to change works."""

from __future__ import annotations

import importlib.util
import re
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from goatherd.errors import ConfigurationError
from goatherd.providers.memory import MemorySecretProvider
from tests.docs.reference import DOCS, SOURCE

ROOT = DOCS.parent
ARCHITECTURE = DOCS / "explanation/architecture.md"
CONTRIBUTE = DOCS / "tutorials/contribute.md"
PAGES = sorted(DOCS.rglob("*.md"))
DRAWINGS = sorted((DOCS / "drawings").glob("*.svg"))
SVG = "{http://www.w3.org/2000/svg}"
TOP = r"(?:src|tests|docs|deploy|scripts|tools|requirements|examples)/"


def named_files(text: str) -> set[str]:
    """Return the paths of the repository that a page names in backticks."""
    return {path for path in re.findall(r"`([^`\s]+)`", text) if re.match(TOP, path) and not re.search(r"[*…{<]", path)}


@pytest.mark.parametrize("page", [*PAGES, *sorted(ROOT.glob("*.md"))], ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_that_a_page_names_exists(page: Path) -> None:
    missing = {path for path in named_files(page.read_text()) if not (ROOT / path.split("::")[0]).exists()}
    assert missing == set()


def test_every_file_and_room_of_the_architecture_exists_in_the_text_and_in_the_picture() -> None:
    text = ARCHITECTURE.read_text()
    rooms = re.findall(r"^\| (.*?) \|", text.split("## Three walks")[0], re.MULTILINE)
    named = {name for room in rooms for name in re.findall(r"`([\w/.]+)`", room)}
    drawn = set(re.findall(r">([\w/]+\.py)<", (DOCS / "drawings/three-walks.svg").read_text()))
    assert len(named) > 15
    assert len(drawn) > 15
    assert {name for name in named | drawn if not (SOURCE / name).exists()} == set()


def test_every_room_of_the_source_is_in_the_architecture() -> None:
    text = ARCHITECTURE.read_text()
    rooms = {path.name for path in SOURCE.iterdir() if path.is_dir() and (path / "__init__.py").exists()}
    assert {room for room in rooms - {"signers"} if f"`{room}/`" not in text} == set()


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
    entries = re.findall(r"<([\w/-]+)>$", index, re.MULTILINE)
    pages = [str(page.relative_to(DOCS))[:-3] for page in PAGES]
    assert sorted(entries) == [page for page in sorted(pages) if page != "index" and not page.startswith("adr/0")]


def test_the_change_that_the_contributors_page_shows_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = CONTRIBUTE.read_text()
    (shown,) = re.findall(r"```diff\n(.*?)```", page, re.DOTALL)
    head = re.search(r"^\+\+\+ b/(\S+)$", shown, re.MULTILINE)
    assert head is not None
    body = shown[head.end() + 1 :].splitlines(keepends=True)
    before = "".join(line[1:] for line in body if line[0] in "- ")
    after = "".join(line[1:] for line in body if line[0] in "+ ")
    text = (ROOT / head[1]).read_text()
    assert text.count(before) == 1, "the page shows lines that the file no longer has"
    (tmp_path / "changed.py").write_text(text.replace(before, after))
    spec = importlib.util.spec_from_file_location("goatherd_changed_memory", tmp_path / "changed.py")
    assert spec is not None
    assert spec.loader is not None
    changed = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, changed.__name__, changed)
    spec.loader.exec_module(changed)
    (test,) = re.findall(r"```python\ndef (test_\w+).*?:\n(.*?)```", page, re.DOTALL)
    names = {
        "MemorySecretProvider": changed.MemorySecretProvider,
        "pytest": pytest,
        "ConfigurationError": ConfigurationError,
    }
    exec(f"def shown():\n{test[1]}", names)
    names["shown"]()
    names["MemorySecretProvider"] = MemorySecretProvider
    with pytest.raises(ConfigurationError):
        names["shown"]()
