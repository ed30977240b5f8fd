"""Every signer has a page of the same form, and a row in the reference."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from tests.docs.reference import DOCS

PROJECT = tomllib.loads((DOCS.parent / "pyproject.toml").read_text())["project"]
SCHEMES = sorted(PROJECT["entry-points"]["goatherd.signers"])
SKELETON = [
    *("Address", "Permissions", "Credentials", "Facts"),
    *("Create a key", "Check it", "Costs and limits", "Trouble"),
]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_signer_s_page_has_the_same_skeleton(scheme: str) -> None:
    text = (DOCS / f"how-to/signer-{scheme}.md").read_text()
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == SKELETON
    assert f"goatherd policy {scheme} --role signer" in text
    assert f"goatherd doctor --signer '{scheme}:" in text
    assert "It can hold the key of an [anchor](anchor.md)." in " ".join(text.split())
    creation = text.split("## Create a key\n")[1].split("\n## ")[0]
    assert "`--create-key` of `goatherd init` and `goatherd rotate`" in " ".join(creation.split())
    facts = re.findall(r"^\| ([a-z -]+) \|", text.split("## Facts\n")[1].split("\n## ")[0], re.MULTILINE)
    assert "exportable" in facts


def test_every_scheme_is_in_the_reference_and_has_a_policy() -> None:
    reference = (DOCS / "reference/signers.md").read_text()
    for scheme in SCHEMES:
        assert f"[`{scheme}`](../how-to/signer-{scheme}.md)" in reference
    assert set(SCHEMES) <= set(PROJECT["entry-points"]["goatherd.policies"])


def test_no_page_of_a_signer_is_of_an_unknown_one() -> None:
    pages = {path.stem.removeprefix("signer-") for path in Path(DOCS / "how-to").glob("signer-*.md")}
    assert pages == set(SCHEMES)
