"""The files under deploy/ pass their own linters, and contain valid command lines and options of Goatherd."""

from __future__ import annotations

import functools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

import goatherd
from goatherd.cli.main import EXIT_CODES, cli
from tests.deadlines import HANG

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
LINTERS = ROOT / "build/tools/linters/bin"
DOCKERFILES = sorted(DEPLOY.rglob("*Dockerfile"))
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
UNITS = sorted(path for path in (DEPLOY / "systemd").glob("*.*") if path.is_file())
DROP_INS = sorted((DEPLOY / "systemd").glob("*/*.conf"))


def named(path: Path) -> str:
    return str(path.relative_to(DEPLOY))


def linted(tool: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = LINTERS / tool
    if not program.exists():
        pytest.skip(f"{tool} IS NOT INSTALLED, SO deploy/ IS NOT LINTED: run scripts/install-linters")
    return subprocess.run([program, *arguments], capture_output=True, text=True, timeout=120, check=False)


def check_manifests(*paths: Path) -> None:
    done = linted("kubernetes-validate", "--strict", *map(str, paths))
    assert done.returncode == 0, done.stdout + done.stderr


def check_command_line(line: list[str]) -> None:
    """Parse a command line with the command that it names."""
    assert line, "a container of Goatherd needs arguments"
    name, found, words = cli.resolve_command(click.Context(cli), list(line))
    assert found is not None, f"there is no goatherd {line[0]}"
    with found.make_context(name, words) as context:
        assert context.command is found


def check_confinement(path: Path) -> None:
    for pod in pods(path):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["enableServiceLinks"] is False, "the name of a Service would be that of an option"
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            confined = container["securityContext"]
            assert confined["allowPrivilegeEscalation"] is False
            assert confined["readOnlyRootFilesystem"] is True
            assert confined["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["limits"]["memory"]


def check_keys_are_in_memory(path: Path) -> None:
    for pod in pods(path):
        volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            mounts = {mount["mountPath"]: mount["name"] for mount in container.get("volumeMounts", [])}
            for argument in container.get("args", []):
                if argument.startswith("--memory="):
                    volume = volumes[mounts[argument.removeprefix("--memory=")]]
                    assert volume["emptyDir"]["medium"] == "Memory"
                assert argument != "--plain-file"


def run_as_kubernetes(words: list[str], replace: dict[str, str]) -> int:
    """Run a container's command line as a container would get it, and return its process id.

    Of two dollar signs Kubernetes leaves one: https://kubernetes.io/docs/reference/kubernetes-api/workload-resources/pod-v1/.
    """
    line = [word.replace("$$", "$") for word in words]
    for old, new in replace.items():
        assert any(old in word for word in line), f"no {old} in {line}"
        line = [word.replace(old, new) for word in line]
    with subprocess.Popen(line) as process:
        assert process.wait(HANG) == 0
        return process.pid


@functools.cache
def documents(path: Path) -> list[dict[str, Any]]:
    return [each for each in yaml.safe_load_all(path.read_text()) if each]


def pods(path: Path) -> Iterator[dict[str, Any]]:
    """Yield every pod's spec of a manifest, at any depth."""

    def walk(node: Any) -> Iterator[dict[str, Any]]:
        if isinstance(node, dict):
            if "containers" in node:
                yield node
            for value in node.values():
                yield from walk(value)
        elif isinstance(node, list):
            for value in node:
                yield from walk(value)

    for document in documents(path):
        yield from walk(document)


def containers(path: Path) -> Iterator[dict[str, Any]]:
    for pod in pods(path):
        yield from [*pod.get("initContainers", []), *pod["containers"]]


def command_lines() -> Iterator[Any]:
    """Yield every Goatherd command line that a file under deploy/ runs or shows."""
    for path in MANIFESTS:
        for container in containers(path):
            line = [*container.get("command", []), *container.get("args", [])]
            if container["image"].startswith("goatherd"):
                yield pytest.param(line, id=f"{named(path)}-{container['name']}")
    for path in [*UNITS, *DROP_INS]:
        for line in re.findall(r"^Exec\w+=\S*/goatherd (.*)$", path.read_text(), re.MULTILINE):
            yield pytest.param(shlex.split(line), id=named(path))
    for path in [*DOCKERFILES, *MANIFESTS, *UNITS]:
        for number, line in enumerate(re.findall(r"^#\s+(?:\$ )?goatherd ([^|#\n]*)", path.read_text(), re.MULTILINE)):
            yield pytest.param(shlex.split(line), id=f"{named(path)}-comment-{number}")


@pytest.mark.parametrize("path", DOCKERFILES, ids=named)
def test_a_dockerfile_passes_hadolint(path: Path) -> None:
    done = linted("hadolint", str(path))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", DOCKERFILES, ids=named)
def test_an_image_has_a_fixed_base_a_numeric_user_and_a_health_check(path: Path) -> None:
    """CI runs the entry point and the health check of the image (scripts/build-image-folder)."""
    text = path.read_text()
    bases = [line for line in re.findall(r"^FROM (\S+)", text, re.MULTILINE) if "$" not in line]
    assert bases
    assert {re.sub(r"[0-9a-f]{64}", "…", base) for base in bases} == {"python:3.13-slim@sha256:…"}
    assert len(set(re.findall(r"@sha256:([0-9a-f]{64})", text))) == 1
    assert re.findall(r"^USER (.*)$", text, re.MULTILINE) == ["10001:10001"]
    (check,) = re.findall(r"^HEALTHCHECK .*CMD (.*)$", text, re.MULTILINE)
    assert json.loads(check)[0] == "python", "no shell is needed"


@pytest.mark.parametrize("path", DOCKERFILES, ids=named)
def test_a_health_check_does_not_ask_the_proxy_that_docker_has_set(path: Path, tmp_path: Path) -> None:
    (check,) = re.findall(r"^HEALTHCHECK .*CMD (.*)$", path.read_text(), re.MULTILINE)
    (tmp_path / "healthy").write_text("OK")
    files = functools.partial(SimpleHTTPRequestHandler, directory=tmp_path)
    with HTTPServer(("127.0.0.1", 0), files) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/healthy"
        words = [sys.executable, *json.loads(check.replace("http://127.0.0.1:8080/healthy", url))[1:]]
        environ = {**os.environ, "http_proxy": "http://127.0.0.1:1", "HEALTHCHECK_URL": url}
        done = subprocess.run(words, env=environ, capture_output=True, text=True, timeout=HANG, check=False)
        server.shutdown()
    assert done.returncode == 0, done.stderr


def test_the_image_s_version_is_the_project_s() -> None:
    (image,) = [path for path in DOCKERFILES if path.name == "Dockerfile"]
    assert f'org.opencontainers.image.version="{goatherd.__version__}"' in image.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("path", MANIFESTS, ids=named)
def test_a_manifest_is_what_kubernetes_takes(path: Path) -> None:
    check_manifests(path)


@pytest.mark.parametrize("path", UNITS, ids=named)
def test_a_unit_is_what_systemd_takes(path: Path, tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze IS NOT INSTALLED, SO UNITS ARE NOT LINTED")
    # A program must be there and executable for systemd; which one is not the question here.
    text = re.sub(r"^(Exec\w+=)\S+", r"\1/bin/true", path.read_text(), flags=re.MULTILINE)
    for other in UNITS:
        (tmp_path / other.name).write_text(other.read_text().replace("/opt/goatherd/bin/goatherd", "/bin/true"))
    (tmp_path / path.name).write_text(text)
    done = subprocess.run(
        [analyze, "verify", "--man=no", str(tmp_path / path.name)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    complaints = [line for line in done.stderr.splitlines() if path.name in line]
    assert not complaints, "\n".join(complaints)


def test_what_a_later_start_can_repair_is_started_again() -> None:
    for path in (DEPLOY / "systemd/goatherd-run.service", *DROP_INS):
        (never,) = re.findall(r"^RestartPreventExitStatus=(.*)$", path.read_text(), re.MULTILINE)
        assert str(EXIT_CODES["agent"]) not in never.split(), "the agent starts no server on an exposed key"
        assert str(EXIT_CODES["provider"]) not in never.split(), "a store that is down comes back"
        assert str(EXIT_CODES["identity"]) not in never.split(), "after a power cut, peers with the proof come back"


@pytest.mark.parametrize("line", list(command_lines()))
def test_goatherd_takes_the_command_lines(line: list[str]) -> None:
    check_command_line(line)


def test_callers_of_an_unmodified_server_come_to_its_door() -> None:
    """SECURITY: such a server exposes its key and accepts forged authors (docs/explanation/door.md)."""
    (unit,) = [path for path in UNITS if path.name == "goatherd-run.service"]
    (image,) = [path for path in DOCKERFILES if path.name == "run.Dockerfile"]
    (entry,) = re.findall(r"^ENTRYPOINT (.*)$", image.read_text(), re.MULTILINE)
    (start,) = re.findall(r"^ExecStart=(.*)$", unit.read_text(), re.MULTILINE)
    assert shlex.split(start)[-4:] == ["--path", "/var/lib/goatdb", "--port", "8081"]
    for line in (shlex.split(start), json.loads(entry)):
        options = line[line.index("run") + 1 : line.index("--")]
        given = dict(zip(options[::2], options[1::2], strict=True))
        assert (given["--door"], given["--door-host"], given["--url"]) == ("8080", "0.0.0.0", "http://127.0.0.1:8081")
        with cli.get_command(click.Context(cli), "run").make_context("run", [*options, "--", "true"]):  # type: ignore[union-attr]
            pass
    assert "PORT=8081" in image.read_text()
    assert "EXPOSE 8080\n" in image.read_text()

    sidecar = DEPLOY / "kubernetes/sidecar.yaml"
    by_name = {each["name"]: each for each in containers(sidecar)}
    assert by_name["door"]["args"][:2] == ["door", "--upstream=http://127.0.0.1:8081"]
    assert by_name["door"]["restartPolicy"] == "Always"
    assert "--url=http://127.0.0.1:8081" in by_name["watch"]["args"]
    assert by_name["goatdb"]["env"] == [{"name": "PORT", "value": "8081"}]
    assert [name for name, each in by_name.items() if "ports" in each] == ["door"]
    kinds = {each["kind"]: each for each in documents(sidecar)}
    assert kinds["NetworkPolicy"]["spec"]["ingress"] == [{"ports": [{"port": 8080}]}]
    assert kinds["Service"]["spec"]["ports"][0]["port"] == 8080


def test_the_unit_of_an_unmodified_server_is_as_confined_as_that_of_goatherds_own() -> None:
    def confinement(name: str) -> set[str]:
        text = (DEPLOY / "systemd" / name).read_text()
        kinds = r"Private\w+|Protect\w+|Restrict[A-Z]\w+|NoNewPrivileges|LockPersonality|Capability\w+|LimitCORE"
        return {line for line in text.splitlines() if re.match(rf"(?:{kinds})=", line)}

    own = confinement("goatherd-server.service")
    assert len(own) >= 12
    assert own <= confinement("goatherd-run.service")


def test_there_are_command_lines_to_look_at() -> None:
    assert len(list(command_lines())) >= 6


@pytest.mark.parametrize("path", MANIFESTS, ids=named)
def test_no_container_may_do_more_than_it_needs(path: Path) -> None:
    check_confinement(path)


@pytest.mark.parametrize("path", MANIFESTS, ids=named)
def test_a_key_lies_in_memory_only(path: Path) -> None:
    check_keys_are_in_memory(path)


def test_the_sidecar_finds_the_server_by_the_process_id_that_the_server_s_container_writes(tmp_path: Path) -> None:
    (server,) = [each for each in containers(DEPLOY / "kubernetes/sidecar.yaml") if each["name"] == "goatdb"]
    pid = run_as_kubernetes(server["command"], {"/srv/goatdb": str(tmp_path), "deno run -A server.ts": "true"})
    assert int((tmp_path / "server.pid").read_text()) == pid
