"""The commands that README, the tutorial and the how-to pages show work, against live processes.

Not typed here: commands of platforms (``az``, ``kubectl``, …), which the tests of each store hold against its emulator.
"""

from __future__ import annotations

import asyncio
import http.server
import json
import re
import socket
import threading
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import pytest

import goatherd
from goatherd.cli.main import EXIT_FINDINGS, EXIT_KEY_FOUND
from goatherd.clock import SystemClock
from goatherd.cluster.client import NodeClient
from goatherd.identity.document import encode_document
from goatherd.identity.session import ROOT_OWNER, OwnedSession
from goatherd.identity.transitions import create_document
from goatherd.ids import new_id
from goatherd.plugins import open_provider
from goatherd.providers.values import CURRENT
from tests.deadlines import ANSWER, HANG
from tests.docs.reference import DOCS
from tests.docs.typist import ROOT, Shell, Typed, steps
from tests.fakes.moto import WHY_SKIPPED, MotoServer, find_moto
from tests.ports import free_ports

pytestmark = pytest.mark.slow

HOW_TO = DOCS / "how-to"
STORE = "file:///srv/keys/root"
"""What the pages call the store."""


class World:
    """Directories, ports and servers in the place of those that the pages name."""

    def __init__(self, home: Path, stack: ExitStack) -> None:
        self.home = home
        self.stack = stack
        self.ports = free_ports(4)
        one, two, three, health = (str(port) for port in self.ports)
        self.replace = {
            "/srv": f"{home}/srv",
            "/var/log": f"{home}/log",
            "/var/lib/node_exporter/textfile": f"{home}/textfile",
            "/run/goatherd-keys": f"{home}/run/keys",
            **{f"10.0.0.{number}:8080": f"127.0.0.1:{port}" for number, port in ((1, one), (2, two), (3, three))},
            **{f"127.0.0.1:810{number}": f"127.0.0.1:{port}" for number, port in ((1, one), (2, two), (3, three))},
            **{f"--port 810{number}": f"--port {port}" for number, port in ((1, one), (2, two), (3, three))},
            "10.0.0.9:9000": f"127.0.0.1:{health}",
        }
        for name in ("srv", "log", "textfile", "run"):
            (home / name).mkdir()
        self.provider = f"file://{home}/srv/keys/root"

    def shell(self, **environ: str) -> Shell:
        return self.stack.enter_context(Shell(self.home, self.replace, environ))

    def servers(self, shell: Shell, count: int = 3) -> None:
        """Start Goatherd's own servers, each with the others as its peers."""
        ports = self.ports[:count]
        for port in ports:
            peers = " ".join(f"--peer http://127.0.0.1:{other}" for other in ports if other != port)
            shell.start(f"goatherd serve --create --data {self.home}/data-{port} --port {port} {peers}")

    def cluster(self, count: int = 3) -> Shell:
        """Return a shell for a cluster that serves."""
        urls = " ".join(f"http://127.0.0.1:{port}" for port in self.ports[:count])
        shell = self.shell(GOATHERD_PROVIDER=self.provider, GOATHERD_NODES=urls)
        code, _ = shell.run("goatherd init")
        assert code == 0, shell.story
        self.servers(shell, count)
        return shell

    def healthy(self) -> None:
        """Answer a health check with 200."""

        class Well(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", self.ports[3]), Well)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.stack.callback(server.server_close)
        self.stack.callback(server.shutdown)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with ExitStack() as stack:
        yield World(tmp_path, stack)


def page(name: str) -> list[Typed | object]:
    found = steps((ROOT / name).read_text())
    assert any(isinstance(step, Typed) for step in found), f"{name} has nothing to type"
    return found


def test_the_readme_s_commands_work_when_pasted_one_after_the_other(world: World) -> None:
    (world.home / ".venv").symlink_to(ROOT / ".venv")
    world.shell().follow(page("README.md"))


def test_the_tutorial_works_as_it_is_written(world: World) -> None:
    (world.home / ".venv").symlink_to(ROOT / ".venv")
    world.shell().follow(page("docs/tutorials/first-light.md"))


@pytest.mark.parametrize("name", ["rotate", "schedule", "monitor", "alerts", "find-nodes", "outages"])
def test_a_page_about_a_running_cluster_works_as_it_is_written(world: World, name: str) -> None:
    world.healthy()
    world.replace |= {
        "dns://goatdb.internal:8080": f"dns://localhost:{world.ports[1]}",
        "127.0.0.1:9464": f"127.0.0.1:{free_ports(1)[0]}",
    }
    world.cluster().follow(page(f"docs/how-to/{name}.md"))


def current_root(shell: Shell) -> str:
    code, out = shell.run("goatherd show --json")
    assert code == 0, shell.story
    return str(json.loads(out)["current"]["id"])


def test_the_page_about_a_stolen_key_works_as_it_is_written(world: World) -> None:
    shell = world.cluster()
    world.replace["ROOT"] = current_root(shell)
    shell.follow(page("docs/how-to/revoke.md"))


def test_the_page_about_an_expired_root_works_as_it_is_written(world: World) -> None:
    past_ms = SystemClock().now_ms() - timedelta(days=40) // timedelta(milliseconds=1)
    expired = OwnedSession.generate(session_id=new_id(), owner=ROOT_OWNER, now_ms=past_ms, lifetime=timedelta(days=39))

    async def keep() -> None:
        provider, secret_id = open_provider(world.provider)
        async with provider:
            await provider.create(secret_id, encode_document(create_document(expired, past_ms)))

    asyncio.run(keep())
    shell = world.shell(GOATHERD_PROVIDER=world.provider)
    world.servers(shell, 2)
    shell.follow(page("docs/how-to/expired-root.md"))


def test_the_page_about_a_restored_store_works_as_it_is_written(world: World) -> None:
    shell = world.cluster(2)
    for number, port in enumerate(world.ports[:2], 1):
        (world.home / f"srv/goatdb-{number}").symlink_to(world.home / f"data-{port}")
    backup, later, keys = "/srv/keys.backup", "/srv/keys.later", "/srv/keys"
    shell.follow([Typed(f"cp -a {keys} {backup}"), Typed("goatherd rotate"), Typed(f"mv {keys} {later}")])
    shell.follow([Typed(f"cp -a {backup} {keys}"), *page("docs/how-to/restored-store.md")])


def test_the_page_about_regions_works_as_it_is_written(world: World) -> None:
    for number in (1, 2):
        (world.home / f"srv/goatdb-{number}").mkdir()
    world.shell(GOATHERD_ROTATION_ADOPTION=f"{HANG:g}s").follow(page("docs/how-to/regions.md"))


def test_the_page_about_going_back_works_as_it_is_written(world: World) -> None:
    shell = world.cluster(2)
    shell.follow([Typed("goatherd rotate"), *page("docs/how-to/restore.md")])


def test_the_page_about_damaged_data_works_as_it_is_written(world: World) -> None:
    one, two = world.ports[:2]
    shell = world.shell(GOATHERD_PROVIDER=world.provider)
    assert shell.run("goatherd init")[0] == 0, shell.story
    for port, peer, data in ((one, two, "srv/goatdb"), (two, one, "two")):
        shell.start(f"goatherd serve --create --data {world.home}/{data} --port {port} --peer http://127.0.0.1:{peer}")
    asyncio.run(create_session(one))
    shell.run("kill %1; wait %1")
    log = world.home / "srv/goatdb/localhost/sys/sessions.jsonl"
    log.write_bytes(log.read_bytes() + b'{"torn')
    check, repair = (step for step in page("docs/how-to/repair-data.md") if isinstance(step, Typed))
    code, out = shell.run(shell.told(check.line))
    assert code == EXIT_FINDINGS, shell.story
    assert "torn: the last line is unfinished" in out
    shell.follow([Typed(repair.line), Typed(check.line)])


def test_the_page_about_installing_names_targets_that_exist() -> None:
    """The page itself is not typed: docs/how-to/install.md would build all packages and images."""
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))
    text = (HOW_TO / "install.md").read_text()
    named = set(re.findall(r"(?:^\$ |`)make (\w+)", text, re.MULTILINE))
    assert named >= {"dist", "onefile", "image", "sbom"}
    assert named <= targets
    assert f"goatherd-{goatherd.__version__}-share.tar.gz" in text


def test_every_page_with_commands_is_typed_by_a_test_here_or_by_those_of_its_store() -> None:
    """The page docs/how-to/external-secrets.md is typed by tests/cluster/test_external_secrets.py."""
    text = Path(__file__).read_text()
    for path in HOW_TO.glob("*.md"):
        named = f"docs/how-to/{path.name}" in text or f'"{path.stem}"' in text
        assert named or path.stem.startswith("store-") or not steps(path.read_text()), path


def test_the_page_about_the_audit_trail_works_as_it_is_written(world: World) -> None:
    shell = world.cluster()
    (world.home / "log/goatherd").mkdir()
    found = page("docs/how-to/audit.md")
    # The trail that the page reads is of a rotation with the page's own configuration.
    (configuration,) = found[:1]
    shell.follow([configuration, Typed("goatherd rotate")])
    shell.follow(found[1:])


def test_the_page_about_the_browser_works_as_it_is_written(world: World) -> None:
    shell = world.cluster(2)
    one, two, three, four = free_ports(4)
    world.replace |= {
        "--port 8090": f"--port {one}",
        "--host 0.0.0.0 --token": f"--host 127.0.0.1 --port={two} --token",
        "--host 0.0.0.0 --behind": f"--host 127.0.0.1 --port={three} --behind",
        "--web 127.0.0.1:8090": f"--web 127.0.0.1:{four}",
        "/etc/goatherd": f"{world.home}/log",
    }
    certificate = "openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=localhost -out web.pem -keyout web.key"
    assert shell.run(f"{certificate} && mkdir log/goatherd")[0] == 0, shell.story
    shell.follow(page("docs/how-to/web.md"))
    assert "signs on 2 of 2 servers" in (world.home / "status.html").read_text()
    assert shell.run(f"curl -sfk https://127.0.0.1:{two}/page.css")[0] == 0, shell.story


def test_the_page_about_an_unsigned_identity_works_as_it_is_written(world: World) -> None:
    shell = world.shell(GOATHERD_PROVIDER=world.provider)
    assert shell.run("goatherd init")[0] == 0, shell.story
    asyncio.run(write_unsigned(world.provider))
    (typed,) = page("docs/how-to/unsigned-identity.md")
    assert isinstance(typed, Typed)
    code, out = shell.run(typed.line.replace(STORE, world.provider))
    assert (code, "newer was added" in out) == (EXIT_FINDINGS, True), shell.story
    assert shell.run("goatherd retire --yes")[0] != 0, shell.story
    assert shell.run("goatherd restore --signature --take-back")[0] == 0, shell.story
    assert shell.run("goatherd retire --yes")[0] == 0, shell.story


async def write_unsigned(uri: str) -> None:
    """Write the next generation as a tool does that does not sign."""
    provider, secret_id = open_provider(uri)
    async with provider:
        found = await provider.read(secret_id, CURRENT)
        tree = json.loads(found.value.reveal())
        raw = json.dumps({**tree, "generation": tree["generation"] + 1, "newer": 1}).encode()
        await provider.write(secret_id, raw, label=CURRENT, expected=found.version.id)


def test_the_page_that_compares_the_stores_works_as_it_is_written(world: World) -> None:
    shell = world.shell()
    assert shell.run(f"goatherd init --provider {world.provider}")[0] == 0, shell.story
    found = page("docs/how-to/choose-a-store.md")
    world.replace["root aws://eu-west-1/goatdb/prod/root"] = f"root file://{world.home}/srv/elsewhere/root"
    shell.follow(found)


def test_the_page_about_writing_a_provider_works_as_it_is_written(world: World) -> None:
    world.shell().follow(page("docs/how-to/write-a-provider.md"))


def test_the_page_about_migration_works_as_it_is_written(world: World) -> None:
    one, two = world.ports[:2]
    settings(world.home / "srv/goatdb/localhost/settings.json")
    (world.home / "two/localhost").mkdir(parents=True)
    text = (world.home / "srv/goatdb/localhost/settings.json").read_bytes()
    (world.home / "two/localhost/settings.json").write_bytes(text)
    shell = world.shell(PYTHONPATH=str(ROOT))
    like = "python -m tests.cluster.goatlike"
    shell.start(f"{like} --path {world.home}/srv/goatdb --port {one}")
    asyncio.run(create_session(one))  # a server that has had a client has a log of sessions
    shell.run("kill %1; wait %1")
    shell.start(f"{like} --path {world.home}/two --port {two}")
    world.replace |= {
        "{org}": "{org}",
        "-- COMMAND …": f"--url http://127.0.0.1:{one} -- {like} --path {world.home}/srv/goatdb --port {one}",
    }
    shell.follow(page("docs/how-to/migrate.md"))


def test_a_start_by_the_agent_is_undone_as_the_page_about_migration_says(world: World) -> None:
    """When the agent ends, it removes settings.json, without which GoatDB would create a new root."""
    (row,) = re.findall(r"^\| 4 .*\|$", (HOW_TO / "migrate.md").read_text(), re.MULTILINE)
    assert "After `goatherd run`, which removes `settings.json`, run `goatherd export`" in row
    data, file = f"{world.home}/srv/goatdb", world.home / "srv/goatdb/localhost/settings.json"
    settings(file)
    before = json.loads(file.read_text())["currentSession"]["id"]
    shell = world.shell(GOATHERD_PROVIDER=world.provider, PYTHONPATH=str(ROOT))
    server = f"python -m tests.cluster.goatlike --path {data} --port {world.ports[0]}"
    assert shell.run(f"goatherd migrate {data}")[0] == 0, shell.story
    shell.start(f"goatherd run --data {data} --url http://127.0.0.1:{world.ports[0]} -- {server}")
    assert shell.run("kill %1; wait %1")[0] == 0, shell.story
    assert not file.exists()
    assert shell.run(f"goatherd export {file}")[0] == 0, shell.story
    shell.start(server)
    assert json.loads(file.read_text())["currentSession"]["id"] == before


async def create_session(port: int) -> None:
    async with NodeClient(f"http://127.0.0.1:{port}", timeout=ANSWER) as client:
        await client.create_session()


def settings(path: Path) -> None:
    """Write the settings.json of a GoatDB server."""
    now_ms = SystemClock().now_ms()
    root = OwnedSession.generate(session_id=new_id(), owner=ROOT_OWNER, now_ms=now_ms, lifetime=timedelta(days=30))
    path.parent.mkdir(parents=True)
    tree = {"currentSession": root.to_secret_json(), "roots": [root.session.to_json()], "trustedSessions": []}
    path.write_text(json.dumps(tree))


def test_the_page_about_unmodified_servers_works_as_it_is_written(world: World) -> None:
    shell = world.shell(PYTHONPATH=str(ROOT))
    assert shell.run(f"goatherd init --provider {world.provider}")[0] == 0, shell.story
    (world.home / "srv/goatdb").mkdir()
    one, two, inside, own = world.ports
    shell.start(
        f"goatherd serve --create --provider {world.provider} --data {world.home}/two --port {two}"
        f" --peer http://127.0.0.1:{one}"
    )
    like = f"python -m tests.cluster.goatlike --path {world.home}/srv/goatdb --peer http://127.0.0.1:{two}"
    world.replace |= {
        "vault://vault.example:8200/secret/goatdb/root": world.provider,
        "http://127.0.0.1:8080 --agent-port 8090 -- deno run -A server.ts": (
            f"http://127.0.0.1:{one} --agent-port {own} -- {like} --port {one}"
        ),
        "10.0.0.1:8090": f"127.0.0.1:{own}",
        "10.0.0.2:8090": f"127.0.0.1:{two}",
        "http://127.0.0.1:8081 --door 8080 -- env PORT=8081 deno run -A server.ts": (
            f"http://127.0.0.1:{inside} --door {one} -- {like} --port {inside}"
        ),
    }
    found = page("docs/how-to/run-unmodified-servers.md")
    shell.follow(found)


def test_the_page_about_ec2_works_as_it_is_written(world: World) -> None:
    """The emulator's address and keys are in the place of a region and the instance's role."""
    program = find_moto()
    if program is None:
        pytest.skip(WHY_SKIPPED)
    settings(world.home / "srv/goatdb/localhost/settings.json")
    inside, door = world.ports[:2]
    with MotoServer(program) as moto:
        named = "aws://eu-west-1/goatdb/prod/root"
        world.replace |= {
            f"{named}-lease": "LEASE",
            named: f"{named}?endpoint={moto.url}",
            "LEASE": f"{named}-lease?endpoint={moto.url}",
            "/opt/app/server": "python -m tests.cluster.goatlike",
            "http://127.0.0.1:8081 --door 8080": f"http://127.0.0.1:{inside} --door {door}",
            "--port 8081": f"--port {inside}",
            "http://127.0.0.1:8080": f"http://127.0.0.1:{door}",
        }
        keys = {"AWS_ACCESS_KEY_ID": "AKIAMOTO000000000000", "AWS_SECRET_ACCESS_KEY": "x" * 40}
        shell = world.shell(PYTHONPATH=str(ROOT), **keys)
        text = (world.home / "srv/goatdb/localhost/settings.json").read_text()
        steps = page("docs/how-to/ec2.md")
        shell.follow(steps)
        assert current_root(shell) != json.loads(text)["currentSession"]["id"]
        (world.home / "srv/goatdb/localhost/settings.json.bak").write_text(text)
        (scan,) = (step.line for step in steps if isinstance(step, Typed) and step.line.startswith("goatherd scan"))
        assert shell.run(shell.told(scan))[0] == EXIT_KEY_FOUND, shell.story
        shell.__exit__()
        world.stack.pop_all()


def test_the_commands_of_the_page_about_systemd_are_what_its_units_run(world: World) -> None:
    """The rest of the page concerns systemd; tests/deploy/test_systemd.py runs the units."""
    shell = world.shell()
    (world.home / "goatherd.env").write_text(f"GOATHERD_PROVIDER={world.provider}\n")
    assert shell.run(f"goatherd init --provider {world.provider} && mkdir data")[0] == 0, shell.story
    world.replace |= {
        "/home/APP/data": f"{world.home}/data",
        "/etc/goatherd/goatherd.env": f"{world.home}/goatherd.env",
        "runuser -u APP -- /opt/goatherd/bin/": "",
        "systemctl start UNIT": "touch started",
    }
    steps = [step for step in page("docs/how-to/systemd.md") if isinstance(step, Typed)]
    ours = [step for step in steps if step.line.startswith(("set -a", "runuser"))]
    assert len(ours) == 2
    shell.follow(ours)
    assert (world.home / "started").exists()
    assert (world.home / "data/localhost/settings.json").is_file()


def test_the_shell_reads_the_environment_file_of_the_page_about_systemd_whatever_the_address_is(world: World) -> None:
    shell = world.shell()
    steps = {step.line.split()[0]: step.line for step in page("docs/how-to/systemd.md") if isinstance(step, Typed)}
    named = "vault://vault.example:8200/secret/root?auth=approle&role-id-file=/etc/goatherd/role"
    world.replace |= {
        "/etc/goatherd/goatherd.env": f"{world.home}/goatherd.env",
        "aws://eu-west-1/goatdb/prod/root": named,
    }
    for line in (steps["install"], steps["set"]):
        assert shell.run(shell.told(line))[0] == 0, shell.story
    assert shell.run('printf "%s" "$GOATHERD_PROVIDER"') == (0, named), shell.story


def test_the_page_about_leaked_keys_works_as_it_is_written(world: World) -> None:
    shell = world.shell(GOATHERD_PROVIDER=world.provider)
    assert shell.run("goatherd init")[0] == 0, shell.story
    assert shell.run("mkdir srv/app && cd srv/app && git init -q . && echo nothing >README")[0] == 0, shell.story
    assert shell.run("tar -cf ../image.tar README")[0] == 0, shell.story
    shell.follow(page("docs/how-to/scan.md"))
    shell.run("goatherd export settings.json && git add settings.json")
    code, out = shell.run(shell.told("goatherd scan /srv/app"))
    assert (code, "current root (LIVE)" in out) == (EXIT_KEY_FOUND, True), shell.story


def test_the_pattern_that_a_page_shows_for_gitleaks_finds_a_key_in_every_common_form(world: World) -> None:
    shell = world.shell(GOATHERD_PROVIDER=world.provider)
    assert shell.run("goatherd init && goatherd export settings.json")[0] == 0, shell.story
    (shown,) = re.findall(r"```text\n(\[\[rules.*?)```", (HOW_TO / "scan.md").read_text(), re.DOTALL)
    (rule,) = tomllib.loads(shown)["rules"]
    settings = (world.home / "settings.json").read_text()
    for text in (settings, json.dumps(json.loads(settings)), json.dumps(settings)):
        assert re.search(rule["regex"], text)
        assert any(keyword in text for keyword in rule["keywords"])
    assert not re.search(rule["regex"], json.dumps({"privateKey": "withheld", "d": "short"}))


def test_a_page_s_command_that_fails_fails_its_test(world: World) -> None:
    with pytest.raises(AssertionError, match="goatherd show"):
        world.shell(GOATHERD_PROVIDER=world.provider).follow([Typed("goatherd show")])


def test_a_page_s_command_that_fails_when_it_starts_fails_its_test(world: World) -> None:
    shell = world.shell(GOATHERD_PROVIDER=world.provider)
    assert shell.run("goatherd init")[0] == 0, shell.story
    with socket.create_server(("127.0.0.1", world.ports[0])), pytest.raises(AssertionError, match="in use"):
        shell.follow([Typed(f"goatherd controller --unsafe-without-nodes --metrics 127.0.0.1:{world.ports[0]}")])


def test_what_a_page_shows_must_come(world: World) -> None:
    shell = world.shell(GOATHERD_PROVIDER=world.provider)
    shell.follow([Typed("goatherd init", ("created root 5tljic0wlf in file:///…/root (version 1)",))])
    with pytest.raises(AssertionError, match="the page shows: something else"):
        shell.follow([Typed("goatherd show", ("something else",))])


def test_a_command_that_goes_on_after_its_test_is_ended(world: World) -> None:
    shell = world.shell()
    _, out = shell.run("sleep 600 & echo $!")
    shell.__exit__()
    pid = out.split()[-1]
    assert not Path(f"/proc/{pid}/stat").exists() or Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"
    world.stack.pop_all()
