"""The wheel: what users install holds the package, and nothing that only our own tests need."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
MOST_BYTES = 1_400_000
FOR_AUTHORS = {
    "answer_checks",
    "contract",
    "contract_command",
    "provider_checks",
    "signer_checks",
    "subject",
    "wrong_answers",
}


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with what `make dist` builds; it builds twice and fails if the files differ."""
    folder = tmp_path_factory.mktemp("dist")
    line = [sys.executable, "scripts/build-dist", str(folder)]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    (built,) = dist.glob("*.whl")
    return built


def modules(wheel: Path) -> set[str]:
    """Return the dotted names of the wheel's modules."""
    with zipfile.ZipFile(wheel) as archive:
        files = [name.removesuffix(".py") for name in archive.namelist() if name.endswith(".py")]
    return {name.replace("/", ".").removesuffix(".__init__") for name in files}


def test_the_wheel_holds_the_modules_of_src_and_no_others(wheel: Path) -> None:
    source = {path.relative_to(ROOT / "src") for path in (ROOT / "src").rglob("*.py")}
    assert modules(wheel) == {".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in source}
    with zipfile.ZipFile(wheel) as archive:
        metadata = f"goatherd-{wheel.name.split('-')[1]}.dist-info"
        assert {name.split("/")[0] for name in archive.namelist()} == {"goatherd", metadata}


def test_the_checksums_are_those_of_the_files(dist: Path) -> None:
    listed = dict(reversed(line.split()) for line in (dist / "SHA256SUMS").read_text().splitlines())
    assert listed == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in dist.iterdir() if path.name in listed
    }
    assert {name.rpartition(".")[2] for name in listed} == {"whl", "gz"}


def test_the_sdist_holds_the_source_and_the_services_and_no_tests(dist: Path) -> None:
    (built,) = dist.glob("goatherd-*[0-9].tar.gz")
    with tarfile.open(built) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames()}
    tops = {name.split("/")[0] for name in names}
    texts = {"CHANGELOG.md", "LICENSE", "README.md", "SECURITY.md", "pyproject.toml", "PKG-INFO", ".gitignore"}
    assert tops == texts | {"src", "deploy"}
    services = {str(path.relative_to(ROOT)) for path in (ROOT / "deploy").rglob("*") if path.is_file()}
    assert {name for name in names if name.startswith("deploy/")} == services


def test_no_fake_no_simulation_and_no_vectors_are_installed(wheel: Path) -> None:
    shipped = modules(wheel)
    assert not [name for name in shipped if {"fakes", "simulation", "vectors", "tests"} & set(name.split("."))]
    assert not [name for name in shipped if name.endswith("_fake")]
    testing = {name.removeprefix("goatherd.testing.") for name in shipped if name.startswith("goatherd.testing.")}
    assert testing == FOR_AUTHORS


@pytest.mark.slow
def test_the_wheel_stays_small(wheel: Path) -> None:
    """With the tests' fakes, simulation and vector checker it would have 146,000 bytes more."""
    assert wheel.stat().st_size < MOST_BYTES


@pytest.mark.slow
def test_the_contract_command_runs_from_the_wheel_alone(wheel: Path, tmp_path: Path) -> None:
    """The wheel is imported as an archive, so neither src/ nor tests/ can be what is found."""
    script = (
        "import sys\n"
        f"sys.path.insert(0, {str(wheel)!r})\n"
        "import goatherd.testing.contract_command as command\n"
        f"assert command.__file__.startswith({str(wheel)!r}), command.__file__\n"
        "assert not [name for name in sys.modules if name.partition('.')[0] == 'tests']\n"
        "command.main()\n"
    )
    line = [sys.executable, "-c", script, f"file://{tmp_path}/keys/try", "--rounds", "1"]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
