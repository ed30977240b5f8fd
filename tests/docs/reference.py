"""Writes the generated parts of the documentation from the code: commands, options, errors, metrics, rules and more.

The text between ``<!-- generated: NAME -->`` and ``<!-- end -->`` of a page is generated; the rest is written by
hand. ``python -m tests.docs.reference`` updates all pages; test_reference.py checks that
they are up to date.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import tomllib
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path

import click

import goatherd.errors
from goatherd.admission.commits import NotAdmittedError
from goatherd.admission.requests import RequestLimits
from goatherd.cli.main import EXIT_CODES, EXIT_MEANINGS, cli
from goatherd.cli.menu import ALIASES, COMMANDS
from goatherd.config.options import option_keys
from goatherd.door.limits import DoorLimits
from goatherd.door.request_checks import DoorRule
from goatherd.errors import GoatherdError
from goatherd.identity.key_age import STAGES, WORKING_STAGES
from goatherd.metrics import FAMILIES
from goatherd.node.views import SyncLimits
from goatherd.providers.base import SecretProvider
from goatherd.serving.caller_limits import CallerLimits, Rate
from goatherd.signers.verified import VerifiedSigner
from goatherd.telemetry import Event
from goatherd.times import format_duration
from goatherd.wire.batch import TooManyValuesError
from tests.docs.http_answers import AGENT, IDENTITY
from tests.docs.json_fields import DOCUMENTS, OBJECTS, Fields

DOCS = Path(__file__).parents[2] / "docs"
SOURCE = DOCS.parent / "src/goatherd"
PAGES = [
    *sorted((DOCS / "reference").glob("*.md")),
    *sorted((DOCS / "how-to").glob("store-*.md")),
    DOCS / "how-to/write-a-provider.md",
    DOCS / "adr/index.md",
]

_PART = re.compile(r"(<!-- generated: ([a-z0-9-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _table(heads: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(heads) + " |", "| " + " | ".join("---" for _ in heads) + " |"]
    lines += ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _short(text: str | None) -> str:
    return (text or "").strip().splitlines()[0] if text and text.strip() else ""


COMMON = ("--provider", "--org", "--config", "--json", "--debug")
REPEATABLE = " Can be given more than once."
MANY = 5
"""An option that as many commands have is described in a table of its own."""


def _options(name: str, *, common: bool) -> list[list[str]]:
    context = click.Context(cli, info_name="goatherd")
    found = cli.get_command(context, name)
    assert found is not None
    inner = click.Context(found, info_name=name, parent=context)
    rows = []
    for parameter in found.get_params(inner):
        if not isinstance(parameter, click.Option) or "--help" in parameter.opts:
            continue
        if (parameter.opts[-1] in COMMON) == common:
            record = parameter.get_help_record(inner)
            assert record is not None
            text = record[1].removesuffix(REPEATABLE)
            rows.append([f"`{record[0]}{' …' if text != record[1] else ''}`", text])
    return rows


def common_options() -> str:
    """Return the table of the options that every command has."""
    return _table(["option", "meaning"], _options("show", common=True))


def _title(name: str) -> str:
    return f"goatherd {ALIASES.get(name, name)}"


def _users() -> dict[tuple[str, ...], list[str]]:
    """Return the commands that have each option, by its row, so that an option of several is described once."""
    users: dict[tuple[str, ...], list[str]] = {}
    for name in COMMANDS:
        for row in _options(name, common=False):
            users.setdefault(tuple(row), []).append(name)
    return users


def shared_options() -> str:
    """Return the table of the options that many commands have."""
    rows = [list(row) for row, names in _users().items() if len(names) >= MANY]
    return _table(["option", "meaning"], sorted(rows))


def _own_options(name: str, users: dict[tuple[str, ...], list[str]]) -> str:
    """Return the table of a command's options, and links to those that are described elsewhere."""
    own: list[list[str]] = []
    elsewhere: dict[str, list[str]] = {}
    rows = _options(name, common=False)
    homes = ["" if len(users[tuple(row)]) >= MANY else users[tuple(row)][0] for row in rows]
    for row, home in zip(rows, homes, strict=True):
        if home == name or (home and homes.count(home) == 1):
            own.append(row)
        else:
            elsewhere.setdefault(_title(home) if home else "several commands", []).append(row[0].split()[0].strip("`"))
    table = "\n" + _table(["option", "meaning"], own) if own else ""
    links = []
    for title, options in elsewhere.items():
        anchor = re.sub(r"[^a-z -]", "", title).replace(" ", "-").replace("several", "options-of-several")
        links.append(f"{', '.join(f'`{option}`' for option in options)} ([of {title}](#{anchor}))")
    return table + (f"\nAlso {', '.join(links)}.\n" if links else "")


def commands() -> str:
    """Return a section for each command: what it does, its own options, an example."""
    parts = []
    context = click.Context(cli, info_name="goatherd")
    users = _users()
    for name in COMMANDS:
        found = cli.get_command(context, name)
        assert found is not None
        text = inspect.cleandoc(found.help or "")
        example = inspect.cleandoc((found.epilog or "").replace("\b", "")).partition("Example:\n")[2]
        alias = f"Alias: `goatherd {name}`.\n\n" if name in ALIASES else ""
        parts.append(
            f"## {_title(name)}\n\n{alias}{text}\n\n```console\n"
            f"{inspect.cleandoc(example)}\n```\n{_own_options(name, users)}"
        )
    return "\n".join(parts)


def exit_codes() -> str:
    """Return the table of exit codes."""
    families = {code: family for family, code in EXIT_CODES.items()}
    rows = []
    for code, meaning in sorted(EXIT_MEANINGS.items()):
        rows.append([str(code), f"`{families[code]}.*`" if code in families else "", meaning])
    return _table(["exit code", "error codes", "meaning"], rows)


def options() -> str:
    """Return the table of options."""
    rows = []
    for key in option_keys():
        default = f" Default: `{key.default_text}`." if key.default_text else ""
        rows.append([f"`{key.name}`", key.form, key.help + default])
    return _table(["key", "form", "meaning"], rows)


def error_classes() -> list[type[GoatherdError]]:
    """Return every error class, in the order in which errors.py has them; those of other modules behind their base."""
    found = [
        kind for kind in vars(goatherd.errors).values() if isinstance(kind, type) and issubclass(kind, GoatherdError)
    ]
    for kind in (TooManyValuesError, NotAdmittedError):
        found.insert(1 + next(at for at, one in enumerate(found) if one is kind.__base__), kind)
    return found


def errors() -> str:
    """Return the table of error codes."""
    rows = []
    for kind in error_classes():
        if kind is not GoatherdError:
            meaning = inspect.cleandoc(kind.__doc__ or "").split("\n\n")[0].replace("``", "`")
            retryable = " *Retryable.*" if kind.retryable else ""
            rows.append([f"`{kind.code}`", f"`{kind.__name__}`", meaning + retryable])
    return _table(["code", "class", "meaning"], rows)


def events() -> str:
    """Return the table of log events, their meaning taken from the text under each."""
    source = inspect.getsource(Event)
    meanings = dict(re.findall(r'= "([a-z_.]+)"\n\s+"""(.*?)"""', source, re.DOTALL))
    return _table(["event", "meaning"], [[f"`{event.value}`", meanings[event.value]] for event in Event])


def metrics() -> str:
    """Return a table of metrics for each kind of process that exports them."""
    tables: dict[str, list[list[str]]] = {}
    for metric, about in FAMILIES.items():
        labels = ", ".join(f"`{label}`" for label in about.labels)
        where = about.where.value.capitalize()
        tables.setdefault(where, []).append([f"`{metric.value}`", labels, about.help])
    return "\n".join(f"## {where}\n\n{_table(['metric', 'labels', 'meaning'], rows)}" for where, rows in tables.items())


def _docstring(class_name: str, room: str = "providers") -> str:
    """Return a plugin's docstring from its source, so that no SDK has to be installed to write the page."""
    for path in sorted((SOURCE / room).rglob("*.py")):
        source = path.read_text()
        if f"class {class_name}(" in source:
            for node in ast.parse(source).body:
                if isinstance(node, ast.ClassDef) and node.name == class_name:
                    return (ast.get_docstring(node) or "").replace("``", "`")
    raise LookupError(class_name)


def schemes() -> str:
    """Return the table of Goatherd's own URI schemes, from the docstrings of the providers."""
    project = tomllib.loads((DOCS.parent / "pyproject.toml").read_text())["project"]
    rows = []
    for scheme, place in sorted(project["entry-points"]["goatherd.providers"].items()):
        text = _docstring(place.partition(":")[2])
        address = re.search(r"Address: (.*?)(?=\n[A-Z]\w+:|\Z)", text, re.DOTALL)
        rows.append([f"`{scheme}://`", _short(text), address[1] if address else ""])
    return _table(["scheme", "what it is", "address"], rows)


def guarantees(scheme: str) -> str:
    """Return the table of what a store guarantees, from the docstring of its provider."""
    project = tomllib.loads((DOCS.parent / "pyproject.toml").read_text())["project"]
    text = _docstring(project["entry-points"]["goatherd.providers"][scheme].partition(":")[2])
    section = re.search(r"^Guarantees:.*\n((?: {4}.*\n?)+)", text, re.MULTILINE)
    assert section is not None, scheme
    rows = re.findall(r"^ {4}([a-z -]+): (.*?)(?=\n {4}\w|\Z)", section[1], re.DOTALL | re.MULTILINE)
    return _table(["about", "what holds"], [[name, meaning.strip().removesuffix(".")] for name, meaning in rows])


def signer_schemes() -> str:
    """Return the table of the signers' URI schemes, from the docstrings of the signers."""
    project = tomllib.loads((DOCS.parent / "pyproject.toml").read_text())["project"]
    rows = []
    for scheme, place in sorted(project["entry-points"]["goatherd.signers"].items()):
        text = _docstring(place.partition(":")[2], "signers")
        address = re.search(r"Address: (.*?)(?=\n[A-Z]\w+:|\Z)", text, re.DOTALL)
        facts = re.search(r"Facts: (.*?)(?=\n[A-Z]\w+:|\Z)", text, re.DOTALL)
        page = f"[`{scheme}`](../how-to/signer-{scheme}.md)"
        rows.append([page, _short(text), address[1] if address else "", facts[1] if facts else ""])
    return _table(["scheme", "what it is", "address", "facts"], rows)


def _door_rules(kind: str) -> list[list[str]]:
    """Return the rows of the door's rules for requests, commits or answers, from the text under each rule."""
    source = inspect.getsource(DoorRule)
    rows = []
    for rule, text in re.findall(r'= "([a-z-]+)"[^\n]*\n\s+"""(.*?)"""', source, re.DOTALL):
        for status, meaning in re.findall(
            rf"^ *{kind}(?:, ([\d, ]+))?: (.*?)(?:\n\n|\Z)", text, re.DOTALL | re.MULTILINE
        ):
            rows.append(
                [f"`{rule}`", *([status] if status else []), meaning.strip().removesuffix(".").replace("``", "`")]
            )
    return rows


def door_requests() -> str:
    """Return the table of the rules by which the door rejects requests."""
    return _table(["rule", "answer", "what is rejected"], _door_rules("Request"))


def door_commits() -> str:
    """Return the table of the rules by which the door removes commits."""
    return _table(["rule", "what is removed: a commit …"], _door_rules("Commit"))


def door_answers() -> str:
    """Return the table of the rules by which the door changes answers."""
    return _table(["rule", "what happens"], _door_rules("Answer"))


def _limit_meanings(kind: type) -> dict[str, str]:
    """Return what a class of limits states about each of its own fields."""
    found = re.findall(r"^ {4}(\w+): (.*?)(?=\n {4}\w+: |\Z)", inspect.getdoc(kind) or "", re.DOTALL | re.MULTILINE)
    return {name: re.sub(r"`+", "`", meaning) for name, meaning in found}


def _limit(name: str, value: object) -> str:
    if isinstance(value, Rate):
        average = f"{value.per_second:g}/s" if value.per_second >= 1 else f"{value.per_second * 60:g}/min"
        return f"{average}, {value.burst:g} at once"
    if isinstance(value, timedelta):
        return format_duration(value)
    assert isinstance(value, int)
    if not name.endswith(("_bytes", "_rate")):
        return f"{value:,}".replace(",", " ")
    unit = "/s" if name.endswith("_rate") else ""
    return next(f"{value // size} {word}{unit}" for word, size in _SIZES.items() if value % size == 0)


_SIZES = {"MiB": 1024 * 1024, "KiB": 1024, "bytes": 1}


def caller_limits() -> str:
    """Return the table of the limits that the door and a Goatherd server have, with the option that changes each."""
    options = {key.name for key in option_keys()}
    rows = []
    for name, meaning in _limit_meanings(CallerLimits).items():
        option = next((f"limits.{name}{end}" for end in ("", "_per_second") if f"limits.{name}{end}" in options), "")
        about = f"{meaning} Option: `{option}`." if option else meaning
        rows.append([f"`{name}`", _limit(name, getattr(CallerLimits(), name)), about])
    return _table(["limit", "default", "what it limits"], rows)


def request_limits() -> str:
    """Return the table of the limits of a request's contents, for the door and for a Goatherd server."""
    rows = []
    for kind in (RequestLimits, DoorLimits, SyncLimits):
        for name, meaning in _limit_meanings(kind).items():
            values = [
                _limit(name, getattr(one, name)) if hasattr(one, name) else "" for one in (DoorLimits(), SyncLimits())
            ]
            rows.append([f"`{name}`", *values, meaning])
    return _table(["limit", "door", "`goatherd serve`", "what it limits"], rows)


def _field_rows(fields: Fields) -> list[list[str]]:
    rows = []
    for path, field in fields.items():
        link = f"[{field.shape}](#{field.shape.replace(' ', '-')})"
        if path.endswith("."):
            rows.append([f"`{path}…`", "", f"All fields of {link}."])
        elif path:
            form = field.form.removeprefix("array of ").replace("map of ", "map: ")
            may_be_null = form.endswith(" or null")
            form = form.removesuffix(" or null").replace("array of string", "string[]")
            form = link if field.shape else form
            form += "[]" * field.form.startswith("array of ") + "?" * may_be_null
            rows.append([f"`{path}`", form, field.meaning])
    return rows


def identity_answer() -> str:
    """Return the table of the members of a server's answer to ``GET /goatherd/v1/identity``."""
    return _table(["member", "type", "meaning"], _field_rows(IDENTITY))


def agent_answer() -> str:
    """Return the table of the members in which the answer of an agent differs."""
    return _table(["member", "type", "meaning"], _field_rows(AGENT))


def stages() -> str:
    """Return the table of the stages of an expiring root."""
    rows = []
    for (stage, most, part), (_, working_part) in zip(reversed(STAGES), reversed(WORKING_STAGES), strict=True):
        row = [f"less than {most.days} days and less than {_PARTS[part]} of the lifetime"]
        rows.append([f"`{stage}`", *row, f"less than {_PARTS[working_part]} of the lifetime"])
    return _table(
        ["urgency", "remaining lifetime of an ordinary root", "of a working root, which an anchor endorses"], rows
    )


_PARTS = {1 / 2: "half", 1 / 3: "a third", 1 / 4: "a quarter", 1 / 6: "a sixth"}


def json_documents() -> str:
    """Return a section for each JSON document: its fields, their types and meanings."""
    return _json_sections({_document_heading(name): fields for name, fields in DOCUMENTS.items()})


def json_objects() -> str:
    """Return a section for each object that several JSON documents contain."""
    return _json_sections(OBJECTS)


def _document_heading(name: str) -> str:
    if name == "error":
        return "Errors"
    word, _, rest = name.replace("versions label", "versions label|unlabel").partition(" ")
    return f"goatherd {ALIASES.get(word, word)} {rest}".rstrip()


def _json_sections(all_fields: dict[str, Fields]) -> str:
    heads = ["field", "type", "meaning"]
    parts = []
    for name, fields in all_fields.items():
        rows = _field_rows(fields)
        shape = fields[""].shape if "" in fields else ""
        whole = f"All fields of [{shape}](#{shape.replace(' ', '-')}){', and' if rows else '.'}\n" if shape else ""
        parts.append(f"### {name}\n\n" + "\n".join([each for each in (whole, rows and _table(heads, rows)) if each]))
    return "\n".join(parts)


_OPTIONAL_HOOKS = ("_open", "_close", "_unlabel")


def provider_methods() -> str:
    """Return the table of the methods that a provider's author writes, from their docstrings."""
    required = SecretProvider.__abstractmethods__
    rows = []
    for name, method in vars(SecretProvider).items():
        if name in required or name in _OPTIONAL_HOOKS:
            rows.append([f"`{name}`{'' if name in required else ' (optional)'}", _short(inspect.getdoc(method))])
    return _table(["you write", "what it does"], rows)


def signer_calls() -> str:
    """Return the table of what a program can call on a signer, from the docstrings."""
    rows = []
    for name, member in vars(VerifiedSigner).items():
        if not name.startswith("_") and inspect.getdoc(member):
            call = f"{name}({', '.join(inspect.signature(member).parameters)})" if callable(member) else name
            rows.append([f"`{call.replace('(self, ', '(').replace('(self)', '()')}`", _short(inspect.getdoc(member))])
    return _table(["name", "what it does or holds"], [[row[0], row[1].replace("``", "`")] for row in rows])


def decisions() -> str:
    """Return the list of the decisions, from the headings of their pages."""
    pages = sorted((DOCS / "adr").glob("[0-9]*.md"))
    heads = [page.read_text().splitlines()[0].removeprefix("# ").partition(". ") for page in pages]
    return "".join(f"{number}. [{title}]({page.name})\n" for page, (number, _, title) in zip(pages, heads, strict=True))


GENERATORS: dict[str, Callable[[], str]] = {
    "commands": commands,
    "common-options": common_options,
    "shared-options": shared_options,
    "exit-codes": exit_codes,
    "options": options,
    "errors": errors,
    "json-documents": json_documents,
    "json-objects": json_objects,
    "events": events,
    "metrics": metrics,
    "door-requests": door_requests,
    "door-commits": door_commits,
    "door-answers": door_answers,
    "caller-limits": caller_limits,
    "request-limits": request_limits,
    "identity-answer": identity_answer,
    "agent-answer": agent_answer,
    "stages": stages,
    **{
        f"guarantees-{scheme}": partial(guarantees, scheme)
        for scheme in ("aws", "azure", "file", "gcp", "k8s", "vault")
    },
    "provider-methods": provider_methods,
    "signer-calls": signer_calls,
    "decisions": decisions,
    "schemes": schemes,
    "signer-schemes": signer_schemes,
}


def in_step(text: str) -> str:
    """Return a page with its generated parts updated."""
    return _PART.sub(lambda match: match[1] + GENERATORS[match[2]]() + match[3], text)


def main() -> None:
    """Update every page; with ``--check``, only print which pages are outdated."""
    behind = [page for page in PAGES if page.read_text() != in_step(page.read_text())]
    if "--check" in sys.argv:
        sys.exit("".join(f"{page}: out of step\n" for page in behind) or 0)
    for page in behind:
        page.write_text(in_step(page.read_text()))


if __name__ == "__main__":
    main()
