"""The units of deploy/systemd: confined, and their command lines run as they are written, with a socket for systemd.

No test starts systemd itself. The tests provide the environment, the directories and the notification socket.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deadlines import HANG
from tests.deploy.test_deploy import DEPLOY, DROP_INS, ROOT, UNITS
from tests.ports import free_ports

PAGE = ROOT / "docs/how-to/systemd.md"
SERVICES = [path for path in UNITS if path.suffix == ".service"]
MOST_EXPOSED = 2.0
"""systemd's own scale goes from 0 to 10; below 2 it calls a service "OK"."""
EXISTING = """\
[Unit]
Description=An application
[Service]
ExecStart=/bin/true --as-it-was
Restart=always
RestartSec=1
ProtectHome=yes
"""


def analyze(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze IS NOT INSTALLED, SO UNITS ARE NOT JUDGED")
    command = [program, *words]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, env={**os.environ, **environ}
    )


@pytest.mark.parametrize("path", SERVICES, ids=lambda path: path.name)
def test_a_unit_is_confined(path: Path) -> None:
    done = analyze("security", "--offline=true", "--no-pager", f"--threshold={MOST_EXPOSED * 10:g}", str(path))
    assert done.returncode == 0, done.stdout


def test_a_drop_in_takes_over_a_unit_that_exists(tmp_path: Path) -> None:
    (drop_in,) = DROP_INS
    (tmp_path / "my-goatdb.service").write_text(EXISTING)
    (tmp_path / "my-goatdb.service.d").mkdir()
    text = drop_in.read_text().replace("/opt/goatherd/bin/goatherd", "/bin/true")
    (tmp_path / "my-goatdb.service.d/goatherd.conf").write_text(text)
    done = analyze("verify", "--man=no", str(tmp_path / "my-goatdb.service"), SYSTEMD_UNIT_PATH=f"{tmp_path}:")
    complaints = [line for line in done.stderr.splitlines() if "goatdb" in line]
    assert not complaints, "\n".join(complaints)
    settings = re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE)
    starts = [value for name, value in settings if name == "ExecStart"]
    assert starts[0] == "", "the unit's own command line is cleared, then set"
    assert starts[1].startswith("/bin/true run ")
    assert dict(settings)["RestartSec"] == "5"
    assert dict(settings)["ProtectHome"] == "read-only"


def test_the_page_creates_the_users_of_the_units_and_names_those_that_load_credentials() -> None:
    page = PAGE.read_text()
    texts = {path.name: path.read_text() for path in SERVICES}
    users = {user for text in texts.values() for user in re.findall(r"^User=(.+)$", text, re.MULTILINE)}
    created = re.findall(r"^\$ useradd (.*) (\w+)$", page, re.MULTILINE)
    assert {name for _, name in created} == users
    assert all("--user-group" in options.split() for options, _ in created), "the units name the group, too"
    loading = {name for name, text in texts.items() if "\nLoadCredential=" in text}
    assert (
        set(re.findall(r"^`(\S+)` passes the store's credentials by `LoadCredential=`", page, re.MULTILINE)) == loading
    )


def test_the_file_of_the_environment_can_be_written_on_a_machine_that_has_no_directory_for_it(tmp_path: Path) -> None:
    (line,) = re.findall(r"^\$ (install .*)$", PAGE.read_text(), re.MULTILINE)
    assert line.count("/etc/goatherd/") == 1
    subprocess.run(["bash", "-c", line.replace("/etc/goatherd/", f"{tmp_path}/etc/")], check=True, timeout=HANG)
    written = tmp_path / "etc/goatherd.env"
    assert written.read_text() == "GOATHERD_PROVIDER='aws://eu-west-1/goatdb/prod/root'\n"
    assert written.stat().st_mode & 0o777 == 0o600


def test_every_notifying_unit_waits_for_a_program_that_notifies() -> None:
    for path in [*SERVICES, *DROP_INS]:
        text = path.read_text()
        starts = [shlex.split(line)[1] for line in re.findall(r"^ExecStart=(/.*)$", text, re.MULTILINE)]
        is_notifying = "Type=notify\n" in text
        assert is_notifying == (starts[0] in {"run", "serve"}), path
        assert ("WatchdogSec=" in text) == is_notifying


class Started:
    """A unit's command line, as systemd would start it, and what it has notified."""

    def __init__(self, unit: Path, home: Path, replace: dict[str, str], **environ: str) -> None:
        text = unit.read_text()
        for old, new in replace.items():
            assert old in text, f"{unit} has no {old}"
            text = text.replace(old, new)
        line = re.findall(r"^ExecStart=(.+)$", text, re.MULTILINE)[-1]
        given = dict(value.split("=", 1) for value in re.findall(r"^Environment=(.+)$", text, re.MULTILINE))
        (seconds,) = re.findall(r"^WatchdogSec=(\d+)$", text, re.MULTILINE)
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.listener.bind(str(home / "notify"))
        self.listener.settimeout(HANG)
        self.log = home / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                shlex.split(line),
                env={
                    **{name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ},
                    **given,
                    "NOTIFY_SOCKET": str(home / "notify"),
                    "WATCHDOG_USEC": str(int(seconds) * 1_000_000),
                    **environ,
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def wait_for(self, message: str) -> list[str]:
        """Return the notifications up to one that has this line."""
        found: list[str] = []
        deadline = time.monotonic() + HANG
        while message not in found:
            assert time.monotonic() < deadline, f"{message}: not among {found}\n{self.log.read_text()}"
            assert self.process.poll() is None, self.log.read_text()
            found += self.listener.recv(4096).decode().splitlines()
        return found

    def stop(self) -> tuple[int, list[str]]:
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(HANG)
        self.listener.setblocking(False)
        left = []
        try:
            while True:
                left += self.listener.recv(4096).decode().splitlines()
        except BlockingIOError:
            return code, left
        finally:
            self.listener.close()


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    for name in ("data", "keys"):
        (tmp_path / name).mkdir(mode=0o700)
    yield tmp_path
    for found in tmp_path.glob("*.pid"):
        os.kill(int(found.read_text()), signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["goatherd-run.service", "my-goatdb.service.d/goatherd.conf"])
def test_a_unit_of_an_unmodified_server_starts_reports_and_stops(home: Path, name: str) -> None:
    """The application dumps its environment, which must not contain systemd's variables for the agent."""
    unit = DEPLOY / "systemd" / name
    inside, door = free_ports(2)
    goatherd = Path(sys.executable).parent / "goatherd"
    provider = f"file://{home}/store/root"
    subprocess.run([goatherd, "init", "--provider", provider], check=True, capture_output=True)
    application = home / "server"
    application.write_text(
        f'#!/bin/sh\nenv >{home}/environ\nexec {sys.executable} -m tests.cluster.goatlike "$@"\n',
    )
    application.chmod(0o755)
    # Another directory on a tmpfs stands for RuntimeDirectory=.
    memory = Path("/dev/shm") / f"goatherd-test-{os.getpid()}-{inside}"
    memory.mkdir(mode=0o700)
    is_own = name == "goatherd-run.service"
    replace = {
        "/opt/goatherd/bin/goatherd": str(goatherd),
        "/opt/app/server": str(application),
        ("/var/lib/goatdb" if is_own else "/home/APP/data"): str(home / "data"),
        "/run/goatdb-keys": str(memory),
        (":8081" if is_own else ":8080"): f":{inside}",
        ("--port 8081" if is_own else "--port 8080"): f"--port {inside}",
        ("--door 8080" if is_own else "--door 8090"): f"--door {door}",
    }
    try:
        started = Started(
            unit,
            home,
            replace,
            GOATHERD_PROVIDER=provider,
            CREDENTIALS_DIRECTORY="/run/credentials/x",
            PYTHONPATH=str(ROOT),
        )
        found = started.wait_for("READY=1")
        assert "WATCHDOG=1" in found
        code, left = started.stop()
        assert code == 0, started.log.read_text()
        assert "STOPPING=1" in left
        child = (home / "environ").read_text()
        assert "PYTHONPATH=" in child
        assert not re.search(r"^(NOTIFY_SOCKET|WATCHDOG_\w+|CREDENTIALS_DIRECTORY)=", child, re.MULTILINE)
        assert not list(home.glob("data/*/settings.json")), "the key goes with the agent"
    finally:
        shutil.rmtree(memory, ignore_errors=True)


@pytest.mark.slow
def test_the_unit_of_goatherd_s_own_server_starts_reports_and_stops(home: Path) -> None:
    goatherd = Path(sys.executable).parent / "goatherd"
    (port,) = free_ports(1)
    provider = f"file://{home}/store/root"
    subprocess.run([goatherd, "init", "--provider", provider], check=True, capture_output=True)
    (home / "data/localhost").mkdir()
    replace = {
        "/opt/goatherd/bin/goatherd": str(goatherd),
        "/var/lib/goatdb": str(home / "data"),
        "--host 0.0.0.0 --port 8080": f"--host 127.0.0.1 --port {port}",
    }
    started = Started(DEPLOY / "systemd/goatherd-server.service", home, replace, GOATHERD_PROVIDER=provider)
    assert "WATCHDOG=1" in started.wait_for("READY=1")
    code, left = started.stop()
    assert (code, "STOPPING=1" in left) == (0, True), started.log.read_text()
