"""Code, tests and pages cite only what is in the repository, and nothing by a bare number."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.reference import DOCS
from tests.tracked_files import tracked_files

ROOT = DOCS.parent

# Written in pieces, so that this file does not find itself.
ANYWHERE = {
    "a section of another document": re.compile(
        r"\b(?:for" + r"mats|proto" + r"col|des" + r"ign)(?:\.md)?,?\s" + "\N{SECTION SIGN}?" + r"\d"
    ),
    "a section sign": re.compile("\N{SECTION SIGN}"),
    "a number instead of a name": re.compile(r"\b[TD]\d{1,2}\b"),
    "a numbered hazard, trap or difference": re.compile(
        r"\b(?:haz" + r"ard|tra" + r"p|differ" + r"ence|experi" + r"ment)s? \d"
    ),
}
IN_PROSE = {
    "a bare section number": re.compile(
        r"(?<!\w)\(\d{1,2}\.\d{1,2}(?:(?:,| and) \d{1,2}(?:\.\d{1,2})?)*(?: step \d+)?\)"
        r"|\b\d{1,2}\.\d{1,2} step \d|^\s*\d{1,2}\.\d{1,2}(?: and \d{1,2}(?:\.\d{1,2})?)*: ",
        re.MULTILINE,
    )
}
TEXT = {".py", ".md", ".yaml", ".yml", ".sh", ".service", ".socket", ".timer", ".toml", ".Dockerfile", ""}


def tracked() -> list[Path]:
    """Return the text files of the repository that people wrote."""
    # The rules of ruff have names such as those numbers.
    return [path for path in tracked_files() if path.suffix in TEXT and path.name not in {"LICENSE", "pyproject.toml"}]


def prose(path: Path) -> str:
    """Return the text of a file that readers see: a module's comments and docstrings, all of any other file."""
    text = path.read_text()
    if path.suffix != ".py":
        return text
    # By pattern, not by the tokenizer: that takes twenty times as long for all files.
    return "\n".join(
        docstring or comment for docstring, comment in re.findall(r'"""(.*?)"""|# ([^\n]*)', text, re.DOTALL)
    )


def citations(text: str, spoken: str) -> list[str]:
    """Return what cites a document by numbers in `text`, whose comments and docstrings are `spoken`."""
    found = [f"{what}: {match[0]!r}" for what, pattern in ANYWHERE.items() for match in pattern.finditer(text)]
    return found + [f"{what}: {match[0]!r}" for what, pattern in IN_PROSE.items() for match in pattern.finditer(spoken)]


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as the built documentation has them."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


def dead_links(text: str) -> list[str]:
    """Return the pages, anchors and decisions under ``docs/`` that a text names and that do not exist."""
    dead = []
    for name, named in re.findall(r"(?<![\w/.-])docs/([\w/.-]+\.md)((?:(?:,| and|, and)?\s?#[\w-]+)*)", text):
        page = DOCS / name
        wanted = re.findall(r"#([\w-]+)", named)
        if not page.is_file():
            dead.append(f"docs/{name}")
        else:
            dead += [f"docs/{name}#{anchor}" for anchor in wanted if anchor not in anchors(page)]
    dead += re.findall(r"(?<![\w/.-])docs/adr/\d{4}(?!-)", text)
    known = {int(record.name[:4]) for record in (DOCS / "adr").glob("[0-9]*.md")}
    return dead + [f"ADR {number}" for number in re.findall(r"\bADR (\d+)\b", text) if int(number) not in known]


@pytest.mark.slow
def test_nothing_is_cited_by_a_number_that_leads_nowhere() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {each}" for path in tracked() for each in citations(path.read_text(), prose(path))
    ]
    assert not found, "say it in words, or link docs/reference/goatdb-formats.md or goatdb-protocol.md:\n" + "\n".join(
        found
    )


@pytest.mark.slow
def test_every_page_and_anchor_of_the_docs_that_the_code_names_exists() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {each}"
        for path in tracked()
        if path != Path(__file__)
        for each in dead_links(path.read_text())
    ]
    assert not found, "\n".join(found)


@pytest.mark.slow
def test_every_markdown_file_that_is_named_is_in_the_repository() -> None:
    files = tracked()
    known = {path.name for path in files if path.suffix == ".md"}
    found = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in files
        if path != Path(__file__)
        for name in re.findall(r"\b[\w-]+\.md\b", path.read_text())
        if name not in known
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "text",
    [
        "Decode a string (for" + "mats 4.2).",
        "as proto" + "col 12h shows",
        "the promise of des" + "ign \N{SECTION SIGN}3",
        "not signed (T" + "9)",
        "see D" + "28 for that",
        "this is haz" + "ard 1",
        "GoatDB's order (11" + ".4).",
        "GoatDB's rule (7" + ".5 step 1).",
        "7" + ".3 and 9: the signature",
    ],
)
def test_a_citation_that_leads_nowhere_is_found(text: str) -> None:
    assert citations(text, text)


@pytest.mark.parametrize(
    "text",
    ["took 0.77 s (0.52 to 1.11)", "RFC 9110, 10.2.3", "2026-11-24T12:00:00Z", "OpenBao 2.7.2", "text format 0.0.4"],
)
def test_a_number_that_is_no_citation_is_left_alone(text: str) -> None:
    assert not citations(text, text)


@pytest.mark.parametrize(
    ("text", "dead"),
    [
        ("docs/reference/goatdb-formats.md#signatures", []),
        ("docs/reference/goatdb-formats.md#no-such-head", ["docs/reference/goatdb-formats.md#no-such-head"]),
        ("docs/reference/goatdb-formats.md#signatures, #base32 and #none", ["docs/reference/goatdb-formats.md#none"]),
        ("ADR 1 and ADR 999", ["ADR 999"]),
        ("docs/no-such-page.md#signatures", ["docs/no-such-page.md"]),
    ],
)
def test_a_link_to_a_page_or_an_anchor_that_does_not_exist_is_found(text: str, dead: list[str]) -> None:
    assert dead_links(text) == dead
