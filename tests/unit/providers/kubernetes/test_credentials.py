"""Credential plugins of a kubeconfig: when they run, what the API server gets from them, and what no error shows."""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import sys
import tempfile
import textwrap
import traceback
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("kubernetes_asyncio", reason="needs the extra kubernetes")

from goatherd.cluster.discovery import NodeDirectory
from goatherd.errors import (
    ConfigurationError,
    ProviderAccessDeniedError,
    ProviderConfigurationError,
    ProviderError,
    SecretNotFoundError,
    UnavailableError,
)
from goatherd.providers.base import RetryPolicy
from goatherd.providers.kubernetes import credentials
from goatherd.providers.kubernetes.access import load_access
from goatherd.providers.kubernetes.address import KubernetesAddress
from goatherd.providers.kubernetes.credentials import ClusterAccess
from goatherd.providers.kubernetes.provider import KubernetesSecretProvider
from tests.deadlines import HANG
from tests.fakes.certificates import certificate, certificate_server, replace_file
from tests.fakes.kubernetes_fake import FakeKubernetes
from tests.unit.providers.kubernetes.test_access import HandClock, config_of, written

NEVER = RetryPolicy(attempts=1)
PATIENCE = timedelta(seconds=HANG)
V1 = "client.authentication.k8s.io/v1"
SECRET_TOKEN = "S3CRET." + "x" * 60
ANSWER = json.dumps({"apiVersion": V1, "kind": "ExecCredential", "status": {"token": SECRET_TOKEN}})
ROLE = {
    "metadata": {"namespace": "default"},
    "rules": [{"apiGroups": [""], "resources": ["secrets"], "verbs": ["get", "watch", "create", "update"]}],
}


class Plugin:
    """A credential plugin: a program beside the kubeconfig that prints the content of a file and counts its runs."""

    def __init__(self, directory: Path) -> None:
        self.answer = directory / "answer"
        self.runs_file = directory / "runs"
        self.seen = directory / "seen"
        self.program = directory / "bin" / "get-token"
        self.program.parent.mkdir()
        self.program.write_text(
            textwrap.dedent(
                f"""\
                #!{sys.executable}
                import json, os, sys, time
                with open({str(self.runs_file)!r}, "a") as runs:
                    runs.write("x")
                with open({str(self.seen)!r}, "w") as seen:
                    json.dump([sys.argv[1:], os.environ.get("STAGE"), os.environ["KUBERNETES_EXEC_INFO"]], seen)
                with open({str(self.answer)!r}) as answer:
                    do = json.load(answer)
                time.sleep(do["seconds"])
                sys.stderr.write(do["stderr"])
                sys.stdout.write(do["stdout"])
                sys.exit(do["code"])
                """
            )
        )
        self.program.chmod(0o755)

    @property
    def runs(self) -> int:
        return len(self.runs_file.read_text()) if self.runs_file.exists() else 0

    def will(self, stdout: str, *, stderr: str = "", code: int = 0, seconds: float = 0) -> None:
        self.answer.write_text(json.dumps({"stdout": stdout, "stderr": stderr, "code": code, "seconds": seconds}))

    def gives(self, *, seconds: float = 0, **status: Any) -> None:
        self.will(json.dumps({"apiVersion": V1, "kind": "ExecCredential", "status": status}), seconds=seconds)


@pytest.fixture
def plugin(tmp_path: Path) -> Plugin:
    return Plugin(tmp_path)


def config(directory: Path, cluster: dict[str, Any] | None = None, **more: Any) -> KubernetesAddress:
    settings = {"apiVersion": V1, "command": "bin/get-token", "args": ["--for", "goatdb"], **more}
    return written(directory, config_of(cluster, {"exec": settings}))


def access_of(directory: Path, **more: Any) -> ClusterAccess:
    return load_access(config(directory, **more), {})


def at(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


async def test_a_plugin_says_who_asks_with_the_arguments_and_variables_of_the_kubeconfig(
    tmp_path: Path, plugin: Plugin
):
    with FakeKubernetes() as fake:
        plugin.gives(token=fake.account("a", ROLE))
        address = config(tmp_path, {"server": fake.url}, env=[{"name": "STAGE", "value": "prod"}])
        async with KubernetesSecretProvider(address, retry=NEVER, timeout=PATIENCE) as provider:
            assert plugin.runs == 0, "nothing is run before there is something to ask"
            await provider.create("default/root", b"value")
            assert (await provider.read("default/root")).value.reveal() == b"value"
            async for _ in provider.watch("default/root"):
                break
    assert plugin.runs == 1
    arguments, stage, info = json.loads(plugin.seen.read_text())
    assert (arguments, stage) == (["--for", "goatdb"], "prod")
    assert json.loads(info)["apiVersion"] == V1


async def test_a_plugin_that_wants_to_know_the_cluster_is_told(tmp_path: Path, plugin: Plugin):
    plugin.gives(token="t")
    await access_of(tmp_path, provideClusterInfo=True).credential(HandClock())
    info = json.loads(json.loads(plugin.seen.read_text())[2])
    assert info["kind"] == "ExecCredential"
    assert info["spec"] == {"interactive": False, "cluster": {"server": "https://prod.test:6443"}}


async def test_a_token_is_renewed_shortly_before_it_expires_and_not_earlier(tmp_path: Path, plugin: Plugin):
    clock, access = HandClock(), access_of(tmp_path)
    clock.now = 1_000_000
    plugin.gives(token="first", expirationTimestamp=at(clock.now + 900))
    assert (await access.credential(clock)).token == "first"
    plugin.gives(token="second", expirationTimestamp=at(clock.now + 1800))
    clock.now += 839
    assert (await access.credential(clock)).token == "first"
    clock.now += 2
    assert (await access.credential(clock)).token == "second"
    assert plugin.runs == 2


async def test_a_token_without_a_date_holds_until_it_is_rejected(tmp_path: Path, plugin: Plugin):
    with FakeKubernetes() as fake:
        old, new = fake.account("a", ROLE), fake.account("a", ROLE)
        plugin.gives(token=old)
        address = config(tmp_path, {"server": fake.url})
        async with KubernetesSecretProvider(address, retry=NEVER, timeout=PATIENCE) as provider:
            await provider.create("default/root", b"value")
            for _ in range(3):
                await provider.read("default/root")
            assert plugin.runs == 1
            plugin.gives(token=new)
            fake.revoke(old)
            assert (await provider.read("default/root")).value.reveal() == b"value"
            async for _ in provider.watch("default/root"):
                break
            assert plugin.runs == 2


async def test_a_rejected_token_runs_the_plugin_once_for_each_request_and_no_more(tmp_path: Path, plugin: Plugin):
    with FakeKubernetes() as fake:
        plugin.gives(token="unknown")
        address = config(tmp_path, {"server": fake.url})
        async with KubernetesSecretProvider(address, retry=NEVER, timeout=PATIENCE) as provider:
            with pytest.raises(ProviderAccessDeniedError, match="rejected the credentials"):
                await provider.read("default/root")
        assert plugin.runs == 2
        assert [asked.status for asked in fake.asked] in ([401, 401], [])


async def test_many_requests_at_once_run_the_plugin_once(tmp_path: Path, plugin: Plugin):
    plugin.gives(token="t", seconds=0.1)
    access, clock = access_of(tmp_path), HandClock()
    found = await asyncio.gather(*(access.credential(clock) for _ in range(20)))
    assert {credential.token for credential in found} == {"t"}
    plugin.gives(token="u")
    await asyncio.gather(*(access.credential(clock, rejected=found[0]) for _ in range(20)))
    assert plugin.runs == 2


@pytest.mark.slow
async def test_a_request_that_gives_up_does_not_stop_the_plugin(tmp_path: Path, plugin: Plugin):
    plugin.gives(token="t", seconds=0.3)
    access, clock = access_of(tmp_path), HandClock()
    first = asyncio.create_task(access.credential(clock))
    while plugin.runs == 0:
        await asyncio.sleep(0.01)
    first.cancel()
    assert (await access.credential(clock)).token == "t"
    assert plugin.runs == 1


def no_secret(number: int, *, rejected: int = 0) -> tuple[int, dict[str, Any]]:
    """Answer as an API server without Secrets, which rejects the credentials of the request number `rejected`."""
    reason = "Unauthorized" if number == rejected else "NotFound"
    details = {"kind": "secrets", "name": "root"}
    status = {"kind": "Status", "status": "Failure", "reason": reason, "details": details}
    return (401 if number == rejected else 404), status


async def test_a_client_certificate_of_a_plugin_is_shown_and_replaced(tmp_path: Path, plugin: Plugin):
    clients = [certificate(f"client-{number}") for number in range(2)]
    files = set(Path(tempfile.gettempdir()).iterdir())
    async with certificate_server(tmp_path, clients, functools.partial(no_secret, rejected=2)) as server:
        cluster = {"server": server.url, "certificate-authority": str(server.ca)}
        plugin.gives(clientCertificateData=clients[0][0].decode(), clientKeyData=clients[0][1].decode())
        async with KubernetesSecretProvider(config(tmp_path, cluster), retry=NEVER, timeout=PATIENCE) as provider:
            for _ in range(2):
                with pytest.raises(ProviderError, match="no such secret"):
                    await provider.read("default/root")
                plugin.gives(clientCertificateData=clients[1][0].decode(), clientKeyData=clients[1][1].decode())
    assert server.shown == ["client-0", "client-0", "client-1"], "the second request was rejected and came again"
    written_now = set(Path(tempfile.gettempdir()).iterdir()) - files
    assert not any("PRIVATE KEY" in path.read_text(errors="replace") for path in written_now if path.is_file())


async def test_a_certificate_authority_that_is_replaced_is_loaded_again(tmp_path: Path):
    ca = tmp_path / "authority.crt"
    ca.write_bytes(certificate("former authority")[0])
    async with certificate_server(tmp_path, [], no_secret) as server:
        address = written(tmp_path, config_of({"server": server.url, "certificate-authority": str(ca)}))
        async with KubernetesSecretProvider(address, retry=NEVER, timeout=PATIENCE) as provider:
            for authority in (ca.read_bytes(), server.ca.read_bytes()):
                replace_file(ca, authority)
                with pytest.raises(ProviderConfigurationError, match="is not trusted"):
                    await provider.read("default/root")
            with pytest.raises(SecretNotFoundError):
                await provider.read("default/root")


async def test_a_client_certificate_in_files_is_loaded_again_when_it_is_renewed(tmp_path: Path):
    clients = [certificate(f"client-{number}") for number in range(2)]
    cert, key = tmp_path / "client.crt", tmp_path / "client.key"
    cert.write_bytes(clients[0][0])
    key.write_bytes(clients[0][1])
    async with certificate_server(tmp_path, clients, no_secret) as server:
        cluster = {"server": server.url, "certificate-authority": str(server.ca)}
        user = {"client-certificate": cert.name, "client-key": key.name}
        address = written(tmp_path, config_of(cluster, user))

        async def read() -> None:
            with pytest.raises(ProviderError, match="no such secret"):
                await provider.read("default/root")

        async with KubernetesSecretProvider(address, retry=NEVER, timeout=PATIENCE) as provider:
            await read()
            replace_file(cert, clients[1][0])
            await read()
            replace_file(key, clients[1][1])
            await read()
    assert server.shown == ["client-0", "client-0", "client-1"], "in the middle of the renewal the earlier one"


async def test_a_client_certificate_beside_a_token_in_a_file_leaves_its_renewal_as_it_is(tmp_path: Path):
    client = certificate("client")
    for name, content in zip(("client.crt", "client.key", "token"), (*client, b"first"), strict=True):
        (tmp_path / name).write_bytes(content)
    user = {"client-certificate": "client.crt", "client-key": "client.key", "tokenFile": "token"}
    access, clock = load_access(written(tmp_path, config_of(user=user)), {}), HandClock()
    first = await access.credential(clock)
    (tmp_path / "token").write_text("second")
    assert await access.credential(clock) == first, "it is not a minute old"
    second = await access.credential(clock, rejected=first)
    assert (first.token, second.token, second.certificate) == ("first", "second", first.certificate)


@pytest.mark.parametrize(
    ("status", "told"),
    [
        ({}, "neither a token nor a client certificate"),
        ({"token": ""}, "neither a token nor a client certificate"),
        ({"token": 7}, "token, which is not a string"),
        ({"token": "a\r\nX-Admin: yes"}, "a token that cannot be sent in a header"),
        ({"token": "t", "expirationTimestamp": "soon"}, "an expirationTimestamp that is not a timestamp"),
        ({"clientCertificateData": "x"}, "half a client certificate"),
        ({"clientCertificateData": "x", "clientKeyData": "y"}, "a client certificate or key that cannot be used"),
    ],
)
async def test_a_plugin_that_prints_no_credential_is_named(
    tmp_path: Path, plugin: Plugin, status: dict[str, Any], told: str
):
    plugin.gives(**status)
    with pytest.raises(ProviderConfigurationError, match=told) as caught:
        await access_of(tmp_path).credential(HandClock())
    assert "get-token printed" in str(caught.value)


@pytest.mark.parametrize(
    ("stdout", "stderr", "code", "told"),
    [
        ("", "token expired, run: cloud login\n", 1, "token expired, run: cloud login"),
        ("", f"debug: got {SECRET_TOKEN}\nfailed", 3, "ended with 3: debug: got … failed"),
        ("", "", 4, "ended with 4: without a message"),
        (SECRET_TOKEN, "", 0, "not JSON"),
        (json.dumps({"token": SECRET_TOKEN}), "", 0, "not an ExecCredential"),
        (json.dumps([SECRET_TOKEN]), "", 0, "not an ExecCredential"),
        (ANSWER.replace(V1, f"{V1}beta1"), "", 0, f"not have the apiVersion {V1}"),
    ],
)
async def test_no_error_of_a_plugin_shows_a_token(
    tmp_path: Path,
    plugin: Plugin,
    caplog: pytest.LogCaptureFixture,
    stdout: str,
    stderr: str,
    code: int,
    told: str,
):
    caplog.set_level(logging.DEBUG)
    plugin.will(stdout, stderr=stderr, code=code)
    with FakeKubernetes() as fake:
        address = config(tmp_path, {"server": fake.url})
        async with KubernetesSecretProvider(address, retry=NEVER, timeout=PATIENCE) as provider:
            with pytest.raises(ProviderAccessDeniedError) as caught:
                await provider.read("default/root")
        assert fake.asked == []
    assert told in str(caught.value)
    everything = "".join(traceback.format_exception(caught.value)) + caplog.text
    assert "S3CRET" not in everything


async def test_a_plugin_that_is_not_installed_is_answered_with_its_own_hint(tmp_path: Path):
    access = access_of(tmp_path, command="no-such-plugin", installHint="Install it:\n  cloud components install it")
    with pytest.raises(ProviderConfigurationError, match="no-such-plugin was not found") as caught:
        await access.credential(HandClock())
    assert caught.value.hint == "Install it: cloud components install it"


@pytest.mark.slow
async def test_a_plugin_that_does_not_end_is_killed(tmp_path: Path, plugin: Plugin, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(credentials, "PLUGIN_TIMEOUT", timedelta(seconds=0.2))
    plugin.gives(token="t", seconds=3600)
    with pytest.raises(UnavailableError, match="did not end within") as caught:
        await access_of(tmp_path).credential(HandClock())
    assert "log in first" in (caught.value.hint or "")


@pytest.mark.slow
async def test_a_plugin_whose_child_keeps_its_output_open_holds_nothing_up(
    tmp_path: Path, plugin: Plugin, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(credentials, "PLUGIN_TIMEOUT", timedelta(seconds=2))
    may_end = tmp_path / "may end"
    child = f'until [ -e "{may_end}" ]; do sleep 0.05; done'
    plugin.program.write_text(
        f"#!{sys.executable}\nimport subprocess, time\n"
        f"subprocess.Popen(['/bin/sh', '-c', {child!r}], start_new_session=True)\n"
        f"open({str(plugin.runs_file)!r}, 'w').write('x')\ntime.sleep(3600)\n"
    )
    try:
        async with asyncio.timeout(HANG):
            with pytest.raises(UnavailableError, match="did not end within"):
                await access_of(tmp_path).credential(HandClock())
        assert plugin.runs > 0
    finally:
        may_end.touch()


async def test_a_plugin_that_runs_when_the_provider_is_closed_is_killed(tmp_path: Path, plugin: Plugin):
    plugin.gives(token="t", seconds=3600)
    access = access_of(tmp_path)
    waiting = asyncio.create_task(access.credential(HandClock()))
    while plugin.runs == 0:
        await asyncio.sleep(0.01)
    await access.close()
    with pytest.raises(asyncio.CancelledError):
        await waiting


def test_a_plugin_that_needs_a_terminal_is_refused(tmp_path: Path):
    with pytest.raises(ConfigurationError, match="needs a terminal"):
        access_of(tmp_path, interactiveMode="Always")


async def test_finding_nodes_runs_the_plugin_once_for_many_looks(tmp_path: Path, plugin: Plugin):
    with FakeKubernetes(namespaces=("prod",)) as fake:
        role = {
            "metadata": {"namespace": "prod"},
            "rules": [{"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list"]}],
        }
        plugin.gives(token=fake.account("a", role))
        fake.slices["prod"] = [
            {
                "kind": "EndpointSlice",
                "metadata": {"name": "goatdb-x", "labels": {"kubernetes.io/service-name": "goatdb"}},
                "addressType": "IPv4",
                "endpoints": [{"addresses": ["10.0.0.1"], "conditions": {"ready": True, "serving": True}}],
                "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
            }
        ]
        address = config(tmp_path, {"server": fake.url})
        node = f"k8s-service://prod/goatdb:http?kubeconfig={address.kubeconfig}"
        async with NodeDirectory([node], timeout=PATIENCE) as directory:
            for _ in range(3):
                assert [client.base_url for client in await directory()] == ["http://10.0.0.1:8080"]
    assert plugin.runs == 1
