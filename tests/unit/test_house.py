"""The house rules that a machine can check: docstrings, names, nothing of any one machine in the repo."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.tracked_files import tracked_files

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
OF_TESTS = sorted(path for name in ("fakes", "simulation", "vectors") for path in (ROOT / "tests" / name).rglob("*.py"))
NAMELESS = {"core", "common", "utils", "util", "helpers", "models", "services", "types", "interfaces", "misc"}

# Written in pieces, so that this file does not find itself.
FOREIGN = {
    "a path of one machine": re.compile(r"/" + r"(?:work|farm|root|Users)/|/" + r"home/[a-z]|/tmp" + r"/(?!\{)[a-z]+/"),
    "the folder of the plans": re.compile(r"\bshared" + r"/"),
    "a registry's host": re.compile(r"py" + r"pi\.org|python" + r"hosted|registry\." + r"npmjs|deb\." + r"debian"),
    "a note to come back": re.compile(r"\b(?:TO" + r"DO|FIX" + r"ME|XX" + r"X)\b"),
    "a private key": re.compile(r"BEGIN (?:EC )?PRIVATE" + r" KEY"),
}


def tracked() -> list[Path]:
    """Return the files of the repo that people wrote: not the vectors and exchanges, which GoatDB wrote."""
    return [path for path in tracked_files() if path.suffix == ".py" or not {"vectors", "exchanges"} & set(path.parts)]


def test_every_module_begins_with_a_docstring() -> None:
    paths = SOURCES + OF_TESTS
    assert len(paths) > 400
    assert [str(path.relative_to(ROOT)) for path in paths if not path.read_text().startswith('"""')] == []


def test_no_module_has_a_name_that_says_nothing() -> None:
    parts = {part for path in SOURCES for part in path.relative_to(ROOT / "src").with_suffix("").parts}
    assert not parts & NAMELESS


def test_the_name_of_a_public_class_means_one_thing() -> None:
    places: dict[str, list[str]] = {}
    for path in SOURCES:
        for name in re.findall(r"^class ([A-Z]\w*)", path.read_text(), re.MULTILINE):
            places.setdefault(name, []).append(str(path.relative_to(ROOT)))
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_init_modules_hold_a_docstring_and_imports_and_nothing_else() -> None:
    for path in SOURCES + OF_TESTS:
        # The package's own one hands its names out when they are asked for (docs/adr/0001-layers.md).
        if path.name == "__init__.py" and path.parent.name != "goatherd":
            text = path.read_text()
            assert not re.search(r"^(def|class|async def|if|for|while|try)\b", text, re.MULTILINE), path


@pytest.mark.slow
def test_nothing_in_the_repo_names_a_machine_a_registry_or_an_unfinished_thing() -> None:
    found = []
    for path in tracked():
        if path.suffix in {".png", ".gif"}:
            continue
        text = path.read_text(errors="replace")
        for what, pattern in FOREIGN.items():
            for match in pattern.finditer(text):
                line = text.count("\n", 0, match.start()) + 1
                found.append(f"{path.relative_to(ROOT)}:{line}: {what}: {match.group()!r}")
    assert not found, "\n".join(found)


def test_the_source_uses_print_nowhere_but_in_the_command_line() -> None:
    for path in SOURCES:
        if not {"cli", "testing"} & set(path.relative_to(ROOT).parts):
            assert not re.search(r"^\s*print\(", path.read_text(), re.MULTILINE), path


def test_the_pinned_requirements_cover_what_pyproject_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = set(project["dependencies"]) | set(project["optional-dependencies"]["node"])
    listed = {line for line in (ROOT / "requirements/run.in").read_text().splitlines() if not line.startswith("#")}
    assert asked <= listed
    assert listed - asked == {"hatchling", "editables"}


@pytest.mark.parametrize("name", ["run", "dev", "docs", "image", "lowest", "release"])
def test_every_pinned_requirement_has_an_exact_version_and_a_hash_and_no_address(name: str) -> None:
    text = (ROOT / f"requirements/{name}.txt").read_text()
    assert "://" not in text
    assert "-index" not in text
    entries = re.split(r"\n(?=\S)", text.strip())
    for entry in entries:
        assert re.match(r"[a-z0-9.-]+==[^ ]+", entry), entry
        assert "--hash=sha256:" in entry, entry


def test_the_image_holds_every_extra_in_the_versions_that_the_tests_run_with() -> None:
    image, dev = pinned("image"), pinned("dev")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    asked = {re.split(r"[^a-z0-9-]", wanted.lower())[0] for name in extras if name != "all" for wanted in extras[name]}
    assert asked <= image.keys()
    assert {name: version for name, version in image.items() if dev.get(name, version) != version} == {}


def pinned(name: str) -> dict[str, str]:
    """Return the version of each package that requirements/`name`.txt pins."""
    text = (ROOT / f"requirements/{name}.txt").read_text()
    return dict(re.findall(r"^([a-z0-9.-]+)==([^ ;]+)", text, re.MULTILINE))


def test_the_license_and_the_version_are_what_the_project_says() -> None:
    import goatherd

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    assert project["version"] == goatherd.__version__
    assert f"[{project['version']}]" in (ROOT / "CHANGELOG.md").read_text()


def test_importing_the_package_starts_no_process_and_opens_no_socket() -> None:
    script = (
        "import sys\n"
        "seen = []\n"
        "sys.addaudithook(lambda event, args: seen.append(event) if event.startswith(('subprocess.', 'socket.connect', "
        "'os.system', 'os.fork', 'os.exec')) else None)\n"
        "import goatherd\n"
        "sys.exit(str(seen) if seen else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
