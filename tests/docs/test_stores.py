"""The page that compares the stores agrees with the stores' own pages and with the providers."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest

from goatherd.plugins import _provider_class, policy_text, provider_schemes
from goatherd.providers.base import Guarantees, ReadConsistency
from tests.docs.reference import DOCS

HOW_TO = DOCS / "how-to"
CHOOSE = (HOW_TO / "choose-a-store.md").read_text()
STORES = sorted(path for path in HOW_TO.glob("store-*.md"))
SKELETON = ["Address", "Permissions", "Credentials", "Guarantees", "In the store", "Costs and limits", "Trouble"]


def rows(beginning: str, page: str = CHOOSE) -> list[list[str]]:
    """Return the cells of the table whose first row begins so, the line under the heads included."""
    lines = page[page.index(f"\n| {beginning}") + 1 :].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.removeprefix("|").removesuffix("|").split("|")] for line in lines]


@pytest.mark.parametrize("page", STORES, ids=lambda path: path.stem)
def test_every_store_s_page_has_the_same_skeleton(page: Path) -> None:
    text = page.read_text()
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == SKELETON
    assert "### Read it without Goatherd\n" in text.split("## In the store\n")[1].split("## Costs and limits")[0]
    promised = re.findall(r"^\| ([a-z -]+) \|", text.split("## Guarantees\n")[1].split("\n## ")[0], re.MULTILINE)
    assert {"compare-and-swap", "reads", "history", "destroying", "size"} <= set(promised)
    assert "](choose-a-store.md#in-every-store)" in text


def test_what_every_store_guarantees_is_said_once() -> None:
    section = CHOOSE.split("## In every store\n")[1].split("\n## ")[0]
    said = re.findall(r"^\| ([a-z -]+) \|", section, re.MULTILINE)
    assert {"a writer that dies", "a lost answer", "a false success", "damage", "credentials"} <= set(said)


def test_every_store_is_compared_and_every_scheme_is_named() -> None:
    for page in STORES:
        assert f"]({page.name})" in CHOOSE
    for scheme in set(provider_schemes()) - {"memory"}:
        assert f"`{scheme}://`" in CHOOSE


def test_every_extra_has_a_row_of_measured_figures() -> None:
    project = tomllib.loads((DOCS.parent / "pyproject.toml").read_text())["project"]
    performance = (DOCS / "reference/performance.md").read_text()
    measured = {row[0].strip("`"): row[1:] for row in rows("extra", performance)[2:]}
    assert set(project["optional-dependencies"]) <= set(measured)
    for size, took in measured.values():
        assert re.fullmatch(r"\d+ MB", size)
        assert re.match(r"\d+ ms|only what is used", took)


def test_the_month_s_costs_are_those_that_the_stores_pages_work_out() -> None:
    heads, _, *body = rows("| [files]")
    pages = [re.sub(r".*\((.*)\)", r"\1", head) for head in heads[1:]]
    costs = next(row[1:] for row in body if row[0] == "monthly cost of ten servers that read every 30 s")
    table = dict(zip(pages, costs, strict=True))
    assert len(table) == len(STORES)
    for page, cost in table.items():
        if "$" in cost:
            assert f"**{cost}**" in (HOW_TO / page).read_text(), page
        else:
            assert "no money" in (HOW_TO / page).read_text(), page


PLACES = {
    "files": ("file", "file:///srv/keys/root"),
    "AWS": ("aws", "aws://eu-west-1/root"),
    "Google": ("gcp", "gcp://my-project/root"),
    "Azure": ("azure", "azure://my-vault/root"),
    "Vault, OpenBao": ("vault", "vault://localhost:8200/secret/root?reads=active"),
    "Kubernetes": ("k8s", "k8s://default/root"),
}


def promised(name: str) -> Guarantees:
    scheme, uri = PLACES[name]
    return _provider_class(scheme).from_uri(uri)[0].guarantees


@pytest.mark.parametrize("name", list(PLACES))
def test_what_is_compared_is_what_the_provider_declares(name: str) -> None:
    heads, _, *body = rows("| [files]")
    column = next(i for i, head in enumerate(heads) if head.startswith(f"[{name}]"))
    cell = {row[0]: row[column] for row in body}
    it = promised(name)
    assert cell["two writers at once"].startswith("exactly one wins") is it.cas
    strong = it.read_consistency is ReadConsistency.STRONG
    assert cell["a read after a write"].startswith("sees it") is strong
    assert (cell["notifies servers of a change"] != "no") is it.push
    at_once = "at once" in cell["old private keys"]
    assert at_once is it.destroys
    assert ("can be restored" in cell["a deleted secret"]) is it.recoverable
    if it.max_value_bytes == 64 * 1024:
        assert cell["longest value"].startswith("64 KiB")
    else:
        assert cell["longest value"] == f"{it.max_value_bytes // 1000} {it.max_value_bytes % 1000} bytes"


def test_the_script_that_measured_the_extras_is_there_and_knows_them_all() -> None:
    text = (DOCS.parent / "scripts/measure-extras").read_text()
    project = tomllib.loads((DOCS.parent / "pyproject.toml").read_text())["project"]
    for extra in project["optional-dependencies"]:
        assert f'"{extra}":' in text


def test_the_page_about_aws_names_every_action_of_each_role() -> None:
    rows = dict(
        re.findall(r"^\| (server|rotator|admin) \| (.*) \|$", (HOW_TO / "store-aws.md").read_text(), re.MULTILINE)
    )
    rows["admin"] += rows["rotator"]
    for role, row in rows.items():
        statements = json.loads(policy_text("aws", role, "aws://eu-west-1/goatdb/prod/root"))["Statement"]
        actions = {action for one in statements for action in one["Action"] if one["Effect"] == "Allow"}
        assert {action for action in actions if f"`{action.removeprefix('secretsmanager:')}`" not in row} == set(), role
