"""Every command, option, code and metric is documented, and the generated pages are up to date."""

from __future__ import annotations

import ast
import functools
import itertools
import re
import shlex
import subprocess
import sys
import tomllib
from itertools import takewhile
from pathlib import Path

import click
import pytest

from goatherd.agent import data_directory_lock
from goatherd.cli.main import EXIT_MEANINGS, cli
from goatherd.cli.menu import ALIASES, COMMANDS
from goatherd.config.options import load_options, option_keys
from goatherd.identity.settings_json import SETTINGS_NAME
from goatherd.metrics import FAMILIES
from goatherd.node import log_storage
from goatherd.node.frozen_commits import FOLDER
from goatherd.node.log_storage import UNUSED_NAME
from goatherd.plugins import provider_schemes
from goatherd.settings.data_directory import DAMAGED_SUFFIX, REMAINS, SEEN_NAME
from goatherd.telemetry import Event
from tests.docs.json_fields import DOCUMENTS
from tests.docs.reference import COMMON, DOCS, PAGES, SOURCE, error_classes, in_step

ROOT = DOCS.parent
TEXTS = {str(page.relative_to(ROOT)): page.read_text() for page in sorted([*DOCS.rglob("*.md"), *ROOT.glob("*.md")])}
ARCHITECTURE = DOCS / "explanation/architecture.md"
TOP = r"(?:src|tests|docs|deploy|scripts|tools|requirements|examples)/"
NAMED_PAGE = re.compile(r"\((how-to|reference|explanation) page: ([^)]*)\)")
OTHER_FORM = re.compile(r"\bhow-to\b|(?<!/)\bdocs/|\breference page\b")
REFERENCE = {page.stem: page.read_text() for page in PAGES}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_generated_parts_are_in_step_with_the_code(page: Path) -> None:
    assert page.read_text() == in_step(page.read_text()), "run: make reference"


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_and_every_option_of_it_is_documented(name: str) -> None:
    section = re.search(rf"## goatherd {ALIASES.get(name, name)}\n(.*?)(?=\n## |\Z)", REFERENCE["cli"], re.DOTALL)
    assert section is not None
    found = cli.get_command(click.Context(cli), name)
    assert found is not None
    for parameter in found.params:
        if isinstance(parameter, click.Option) and "--help" not in parameter.opts:
            for option in [*parameter.opts, *parameter.secondary_opts]:
                assert option in (REFERENCE["cli"] if option in COMMON else section[1])


def test_every_role_of_a_policy_is_documented() -> None:
    found = cli.get_command(click.Context(cli), "policy")
    assert found is not None
    (role,) = [one for one in found.params if one.name == "role"]
    assert isinstance(role.type, click.Choice)
    assert {f"`{one}`" for one in role.type.choices} == set(re.findall(r"`\w+`", DOCUMENTS["policy"]["role"].meaning))


def test_every_command_that_writes_the_audit_trail_is_named_on_its_page() -> None:
    told = (DOCS / "how-to/audit.md").read_text().split("```toml")[0]
    writers = set()
    for name in COMMANDS:
        found = cli.get_command(click.Context(cli), name)
        assert found is not None
        options = [one for one in found.params if isinstance(one, click.Option) and "--audit-log" in one.opts]
        if any("appends every decision" in (one.help or "") for one in options):
            writers.add(ALIASES.get(name, name))
    assert len(writers) > 5
    assert {name for name in writers if f"`{name}" not in told} == set()


def test_every_exit_code_is_documented() -> None:
    for code, meaning in EXIT_MEANINGS.items():
        assert f"| {code} |" in REFERENCE["cli"]
        assert meaning in REFERENCE["cli"]


def test_every_configuration_key_is_documented_and_its_variable_has_the_documented_name() -> None:
    assert "`rotation.grace` is `GOATHERD_ROTATION_GRACE`" in REFERENCE["configuration"]
    for key in option_keys():
        assert f"`{key.name}`" in REFERENCE["configuration"]
        assert key.variable == f"GOATHERD_{key.name.upper().replace('.', '_')}" or key.is_table


@pytest.mark.slow
def test_every_error_code_is_documented_and_no_two_classes_share_one() -> None:
    codes = [kind.code for kind in error_classes()]
    assert len(set(codes)) == len(codes)
    for code in codes:
        assert f"`{code}`" in REFERENCE["errors"] or code == "goatherd"


def test_an_error_code_that_is_defined_outside_of_errors_py_is_documented_too() -> None:
    texts = [file.read_text() for file in sorted((ROOT / "src").rglob("*.py"))]
    codes = {code for text in texts for code in re.findall(r'^class .*\bcode="([a-z_.]+)"\):$', text, re.MULTILINE)}
    assert len(codes) > 80
    assert {code for code in codes if f"`{code}`" not in REFERENCE["errors"]} == set()


def test_every_code_that_a_page_names_is_one() -> None:
    codes = {kind.code for kind in error_classes()}
    known = codes | {event.value for event in Event} | {key.name for key in option_keys()}
    families = "|".join(sorted({code.partition(".")[0] for code in codes if "." in code}))
    pattern = rf"`((?:{families})\.[a-z]+_[a-z_]+)`"
    named = {(page, code) for page, text in TEXTS.items() for code in re.findall(pattern, text)}
    assert len(named) > 5
    assert {(page, code) for page, code in named if code not in known} == set()


def test_the_management_endpoints_that_need_a_bound_signature_are_documented() -> None:
    source = (SOURCE / "node/server.py").read_text()
    endpoints = set(re.findall(r'"/goatherd/v1/(\w+)": database', source))
    row = next(line for line in REFERENCE["http-api"].splitlines() if line.startswith("| without the member"))
    assert len(endpoints) >= 5
    assert {name for name in endpoints if f"`{name}`" not in row} == set()


def test_the_answers_without_cors_headers_are_documented() -> None:
    told = re.search(r"The exceptions are (.*?)\sthe 404 of", REFERENCE["http-api"], re.DOTALL)
    assert told is not None
    sources = [path.read_text() for name in ("node", "serving") for path in (SOURCE / name).glob("*.py")]
    answers = r"Response\(status=(\d+), cors=False\)|RefusedError\(\s*Excess\.\w+, (\d+),|b\"HTTP/1.1 (\d+) "
    found = {status for text in sources for groups in re.findall(answers, text) for status in groups if status}
    assert {"408", "413", "429", "431", "503", "507"} <= found
    assert found <= set(re.findall(r"\d+", told[1]))


def test_every_file_in_a_data_directory_is_documented() -> None:
    names = {SEEN_NAME, DAMAGED_SUFFIX, REMAINS, SETTINGS_NAME, FOLDER, UNUSED_NAME}
    names |= {log_storage.LOCK_NAME, data_directory_lock.LOCK_NAME}
    layout = REFERENCE["data-directory"].split("## Which directories")[0]
    assert {name for name in names if name not in layout} == set()


def test_each_program_that_exports_the_metrics_of_a_signer_is_documented() -> None:
    call = re.compile(r"(?<!def )\bsigner_samples\(")
    callers = {path.name for path in SOURCE.rglob("*.py") if call.search(path.read_text())}
    assert callers == {"rotation_metrics.py", "management.py"}, "the page names a controller and a server"
    (row,) = re.findall(r"^\| \*processes that use a signer\* \|.*$", REFERENCE["metrics"], re.MULTILINE)
    assert "`goatherd controller`" in row
    assert "`goatherd serve --root-signer`" in row


def test_the_type_of_a_metric_follows_from_its_name_as_the_page_says() -> None:
    (row,) = re.findall(r"^\| types \|.*$", REFERENCE["metrics"], re.MULTILINE)
    endings = dict(re.findall(r"(counter|histogram) if its name ends with `(\w+)`", row))
    assert len(endings) == 2
    for metric, about in FAMILIES.items():
        kind = next((kind for kind, ending in endings.items() if metric.value.endswith(ending)), "gauge")
        assert kind == about.kind.value, metric.value


def test_every_uri_scheme_is_documented() -> None:
    for scheme in provider_schemes():
        assert f"`{scheme}://`" in REFERENCE["configuration"]


def test_every_log_event_is_documented() -> None:
    for event in Event:
        assert f"`{event.value}`" in REFERENCE["log-events"]


def test_the_configuration_files_that_are_shown_are_read(tmp_path: Path) -> None:
    shown = [text for page in TEXTS.values() for text in re.findall(r"```toml\n(.*?)```", page, re.DOTALL)]
    ours = [text for text in shown if "project" not in tomllib.loads(text)]
    assert len(ours) > 5
    for text in ours:
        (tmp_path / "goatherd.toml").write_text(text)
        assert load_options({}, {}, directory=tmp_path).origin


def test_every_command_line_that_is_shown_is_one() -> None:
    shown, wrong = 0, []
    for page, text in TEXTS.items():
        blocks = "".join(re.findall(r"```console\n(.*?)```", text, re.DOTALL)).replace("\\\n", " ")
        for line in re.findall(r"^(?:\$ )?goatherd (.*)$", blocks, re.MULTILINE):
            shown += 1
            words = list(takewhile(lambda word: not re.match(r"\d?[<>|&]", word), shlex.split(line, comments=True)))
            try:
                name, found, rest = cli.resolve_command(click.Context(cli), words)
                assert found is not None
                found.make_context(name, rest)
            except click.UsageError as error:
                wrong.append(f"{page}: goatherd {line}: {error.format_message()}")
    assert shown > 100
    assert wrong == []


def test_every_link_within_the_repo_leads_somewhere() -> None:
    wrong = []
    for page, text in TEXTS.items():
        for target, anchor in re.findall(r"\]\(([^)#\s]*)#?([^)\s]*)\)", text):
            if "://" in target or target.startswith("mailto:"):
                continue
            found = (ROOT / page).parent / target if target else ROOT / page
            if not found.exists() or (anchor and anchor not in anchors(found)):
                wrong.append(f"{page}: {target}#{anchor}")
    assert wrong == []


@functools.cache
def anchors(page: Path) -> list[str]:
    """Return the anchors of a page's headings."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return [re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads]


def test_every_goatherd_command_that_is_shown_exists_with_its_options() -> None:
    wrong = []
    for page, text in TEXTS.items():
        for name, rest in re.findall(r"\bgoatherd ([a-z]+)\b([^\n`]*)", text):
            if name not in COMMANDS:
                continue
            _, found, words = cli.resolve_command(click.Context(cli), [name, *rest.partition("#")[0].split()])
            assert found is not None
            known = {option for parameter in found.params for option in [*parameter.opts, *parameter.secondary_opts]}
            shown = re.findall(r"(?<!\S)(--[a-z][a-z-]*)", " ".join(words))
            wrong += [f"{page}: goatherd {name} {option}" for option in shown if option not in known | {"--help"}]
    assert wrong == []


@pytest.mark.slow
def test_every_page_that_a_message_names_has_that_title() -> None:
    """The package holds no pages, so a message or a help text names one by its title, in one form."""
    titles = {(page.parent.name, page.read_text().splitlines()[0].removeprefix("# ")) for page in DOCS.glob("*/*.md")}
    named, wrong = set(), []
    for file in sorted((ROOT / "src").rglob("*.py")):
        source = file.read_text()
        if not re.search(r"\bpage\b|\bhow-to\b|\bdocs/", source):
            continue
        tree = ast.parse(source)
        docstrings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                text = " ".join(node.value.split())
                pages = set(NAMED_PAGE.findall(text))
                named |= pages
                is_other_form = node not in docstrings and OTHER_FORM.search(NAMED_PAGE.sub("", text)) is not None
                if is_other_form or not pages <= titles:
                    wrong.append(f"{file.name}: {text}")
    assert wrong == []
    assert len(named) > 4


def test_every_test_that_the_code_names_exists() -> None:
    missing = []
    for file in sorted((ROOT / "src").rglob("*.py")):
        for path, names in re.findall(r"\b(tests/[a-z_/]+[a-z_](?:\.py)?)((?:::\w+)*)", file.read_text()):
            named = ROOT / path
            text = named.read_text() if named.is_file() else ""
            if not named.exists() or not all(name in text for name in names.split("::")):
                missing.append(f"{file.name}: {path}{names}")
    assert missing == []


def test_every_security_comment_names_the_test_that_guards_it() -> None:
    unguarded = []
    for file in sorted((ROOT / "src").rglob("*.py")):
        lines = file.read_text().splitlines()
        for number, line in enumerate(lines):
            if "SECURITY:" in line:
                begins = "#" if line.lstrip().startswith("#") else ""
                rest = takewhile(
                    lambda one, begins=begins: one.strip() and one.lstrip().startswith(begins), lines[number:]
                )
                if "tests/" not in " ".join(rest):
                    unguarded.append(f"{file.name}:{number + 1}")
    assert unguarded == []


def named_files(text: str) -> set[str]:
    """Return the paths of the repository that a page names in backticks."""
    return {path for path in re.findall(r"`([^`\s]+)`", text) if re.match(TOP, path) and not re.search(r"[*…{<]", path)}


def test_every_file_that_a_page_names_exists() -> None:
    named = {(page, path) for page, text in TEXTS.items() for path in named_files(text)}
    assert len(named) > 50
    assert {(page, path) for page, path in named if not (ROOT / path.split("::")[0]).exists()} == set()


def test_every_file_and_room_of_the_architecture_exists_in_the_text_and_in_the_picture() -> None:
    text = ARCHITECTURE.read_text()
    rooms = re.findall(r"^\| (.*?) \|", text.split("## Three walks")[0], re.MULTILINE)
    named = {name for room in rooms for name in re.findall(r"`([\w/.]+)`", room)}
    drawn = set(re.findall(r">([\w/]+\.py)<", (DOCS / "drawings/three-walks.svg").read_text()))
    assert len(named) > 15
    assert len(drawn) > 15
    assert {name for name in named | drawn if not (SOURCE / name).exists()} == set()


def test_every_module_and_package_of_the_source_is_in_the_architecture() -> None:
    text = ARCHITECTURE.read_text()
    rooms = {f"{path.name}/" for path in SOURCE.iterdir() if (path / "__init__.py").exists()}
    rooms |= {path.name for path in SOURCE.glob("*.py")} - {"__init__.py", "__main__.py"}
    assert {room for room in rooms if f"`{room}`" not in text} == set()


RIDDLES = r"\b(somebody|nobody|anybody|whoever|newcomers?|for ever|for good|under way|patience|unless told)\b"


def test_what_people_write_for_readers_names_its_subjects_and_uses_the_field_s_words() -> None:
    found = []
    for page, text in TEXTS.items():
        if "/adr/" not in page:
            prose = re.sub(
                r"<!-- generated: .*?<!-- end -->|^```.*?^```|`[^`]*`", "", text, flags=re.DOTALL | re.MULTILINE
            )
            found += [(page, word) for word in re.findall(RIDDLES, prose, re.IGNORECASE)]
    assert found == []


def test_the_changelog_of_a_release_is_short_and_what_is_new_stands_above_it() -> None:
    sections = re.findall(r"^## \[([^\]]+)\].*\n((?:(?!## ).*\n)*)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert sections[0][0] == "Unreleased"
    assert len(sections) > 1
    for name, text in sections[1:]:
        lines = len(text.strip().splitlines())
        assert lines <= 40, f"{name} is a summary: new entries stand under Unreleased (a merge may bring old ones back)"


def test_no_entry_of_the_changelog_is_cut_or_stated_twice() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    cut = re.findall(r"[.:]\)?\n( +[a-z].*)", text)
    assert not cut, f"rests of an entry that a merge has cut: {cut}"
    entries = re.findall(r"^ *- (.{60}.*)$", text, re.MULTILINE)
    twice = {one for one in entries if sum(other[:60] == one[:60] for other in entries) > 1}
    assert not twice, f"entries that a merge has doubled: {twice}"


def test_every_make_target_is_in_the_menu_and_every_one_that_is_shown_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    menu = set(re.findall(r"^([a-z-]+):.*?## ", makefile, re.MULTILINE))
    assert targets == menu
    for page, text in TEXTS.items():
        for target in re.findall(r"`make ([a-z-]+)`|^make ([a-z-]+)$", text, re.MULTILINE):
            assert (target[0] or target[1]) in targets, page


def test_the_architecture_lists_the_modules_in_the_order_of_the_layers_that_are_checked() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = [re.findall(r"\w+", layer) for layer in reversed(contracts[0]["layers"])]
    position = {name: number for number, layer in enumerate(layers) for name in layer}
    rows = re.findall(r"^\| (`.*?) \|", ARCHITECTURE.read_text().split("## Three walks")[0], re.MULTILINE)
    listed = [[position[name] for name in re.findall(r"`(\w+)(?:\.py|/)`", row)] for row in rows]
    assert sorted(name for layer in layers for name in layer if name != "__main__") == sorted(
        re.findall(r"`(\w+)(?:\.py|/)`", " ".join(rows))
    )
    assert all(max(lower) <= min(higher) for lower, higher in itertools.pairwise(listed))


def test_everything_that_writes_a_private_key_to_a_file_is_named_in_the_promises() -> None:
    names = {"operations/export.py": "`goatherd export`", "agent/organization.py": "`--plain-file`"}
    names["settings/file.py"] = "`FileSettings`"
    writers = {str(path.relative_to(SOURCE)) for path in SOURCE.rglob("*.py") if "to_settings(" in path.read_text()}
    assert writers - {"identity/settings_json.py"} == set(names)
    promises = (ROOT / "SECURITY.md").read_text()
    assert {name for name in names.values() if name not in promises} == set()


def test_every_decision_is_numbered_and_listed() -> None:
    records = sorted((DOCS / "adr").glob("[0-9]*.md"))
    numbers = [int(record.name[:4]) for record in records]
    assert numbers == sorted(set(numbers)), "a number names one decision, also after that decision was given up"
    index = (DOCS / "adr/index.md").read_text()
    for record in records:
        assert record.stem in index
        assert len(record.read_text().splitlines()) <= 70, f"{record.name} is longer than a page"


def test_every_dependency_has_a_line_in_the_record_of_dependencies() -> None:
    text = (DOCS / "adr/0010-dependencies.md").read_text()
    listed = "\n".join(path.read_text() for path in (ROOT / "requirements").glob("*.in"))
    for name in re.findall(r"^([a-z0-9][a-z0-9-]*)", listed, re.MULTILINE):
        assert f"`{name}`" in text, name


def test_python_blocks_of_the_documentation_compile() -> None:
    for page, text in TEXTS.items():
        for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
            compile(block, page, "exec", flags=0x2000)  # top-level await


@pytest.mark.slow
def test_the_generator_runs_as_it_is_documented() -> None:
    command = [sys.executable, "-m", "tests.docs.reference", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
