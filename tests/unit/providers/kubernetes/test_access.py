"""How the Kubernetes API server is found, which parts of a kubeconfig are supported, and what is never shown or
written."""

from __future__ import annotations

import base64
import json
import os
import ssl
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("kubernetes_asyncio", reason="needs the extra kubernetes")

from goatherd.errors import ConfigurationError, GoatherdError, MissingExtraError, ProviderConfigurationError
from goatherd.providers.base import RetryPolicy
from goatherd.providers.kubernetes.access import load_access
from goatherd.providers.kubernetes.address import KubernetesAddress
from goatherd.providers.kubernetes.provider import KubernetesSecretProvider
from tests.deadlines import HANG
from tests.fakes.certificates import certificate
from tests.fakes.kubernetes_fake import ADMIN_TOKEN, FakeKubernetes
from tests.unit.providers.homeless import make_homeless

SECRET_TOKEN = "S3CRET-token"
PATIENCE = timedelta(seconds=HANG)
PLUGIN = {"command": "aws", "apiVersion": "client.authentication.k8s.io/v1"}


class HandClock:
    """A clock that advances only when the test advances it."""

    def __init__(self) -> None:
        self.now = 0.0

    def now_ms(self) -> int:
        return int(self.now * 1000)

    def monotonic(self) -> float:
        return self.now

    async def sleep(self, duration: timedelta) -> None:
        self.now += duration.total_seconds()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    directory = tmp_path_factory.mktemp("certificate")
    cert, key = certificate()
    (directory / "tls.crt").write_bytes(cert)
    (directory / "tls.key").write_bytes(key)
    return directory / "tls.crt", directory / "tls.key"


def config_of(cluster: dict[str, Any] | None = None, user: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "prod",
        "contexts": [
            {"name": "prod", "context": {"cluster": "c", "user": "u"}},
            {"name": "test", "context": {"cluster": "d", "user": "u"}},
        ],
        "clusters": [
            {"name": "c", "cluster": {"server": "https://prod.test:6443", **(cluster or {})}},
            {"name": "d", "cluster": {"server": "https://test.test"}},
        ],
        "users": [{"name": "u", "user": {"token": SECRET_TOKEN} if user is None else user}],
    }


def written(path: Path, config: object, *, as_json: bool = False) -> KubernetesAddress:
    file = path / "config"
    file.write_text(json.dumps(config) if as_json else yaml.safe_dump(config))
    return KubernetesAddress(kubeconfig=str(file))


# --- where it is ------------------------------------------------------------------------------------------------------


async def test_a_kubeconfig_is_yaml_and_names_its_context(tmp_path: Path):
    address = written(tmp_path, config_of())
    access = load_access(address, {})
    assert access.server == "https://prod.test:6443"
    credential = await access.credential(HandClock())
    assert credential.token == SECRET_TOKEN
    assert SECRET_TOKEN not in repr(access) + repr(credential)
    other = KubernetesAddress(kubeconfig=address.kubeconfig, context="test")
    assert load_access(other, {}).server == "https://test.test"


def test_a_kubeconfig_without_the_library_is_answered_with_the_install_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    address = written(tmp_path, config_of())
    monkeypatch.setitem(sys.modules, "kubernetes_asyncio.config.kube_config", None)
    with pytest.raises(MissingExtraError, match="kubernetes_asyncio is not installed") as caught:
        load_access(address, {})
    assert caught.value.hint == "Install it: pip install 'goatherd[kubernetes]'"


def test_a_pod_needs_no_library(pod: tuple[dict[str, str], Path], monkeypatch: pytest.MonkeyPatch):
    environment, account = pod
    monkeypatch.setitem(sys.modules, "kubernetes_asyncio.config.kube_config", None)
    assert load_access(KubernetesAddress(), environment, service_account=str(account)).server == "https://10.0.0.1:443"


@pytest.fixture
def pod(tmp_path: Path, pair: tuple[Path, Path]) -> tuple[dict[str, str], Path]:
    """The environment and the service account of a pod."""
    account = tmp_path / "account"
    account.mkdir()
    (account / "token").write_text("first-token\n")
    (account / "ca.crt").write_bytes(pair[0].read_bytes())
    return {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "KUBERNETES_SERVICE_PORT": "443", "HOME": str(tmp_path)}, account


def test_the_order_is_the_address_then_the_variable_then_the_pod_then_the_home(
    tmp_path: Path, pod: tuple[dict[str, str], Path]
):
    environment, account = pod

    def server(address: KubernetesAddress, **more: str) -> str:
        return load_access(address, {**environment, **more}, service_account=str(account)).server

    named = written(tmp_path, config_of())
    assert named.kubeconfig is not None
    nothing = KubernetesAddress()
    (tmp_path / ".kube").mkdir()
    config = config_of()
    config["current-context"] = "test"
    (tmp_path / ".kube/config").write_text(yaml.safe_dump(config))
    assert server(named) == "https://prod.test:6443"
    assert server(nothing, KUBECONFIG=named.kubeconfig) == "https://prod.test:6443"
    assert server(nothing) == "https://10.0.0.1:443"
    assert server(KubernetesAddress(context="test")) == "https://test.test", "a context means a kubeconfig"
    assert load_access(nothing, {"HOME": str(tmp_path)}).server == "https://test.test"


def test_an_ipv6_service_address_is_bracketed(pod: tuple[dict[str, str], Path]):
    environment, account = pod
    access = load_access(
        KubernetesAddress(), {**environment, "KUBERNETES_SERVICE_HOST": "fd00::1"}, service_account=str(account)
    )
    assert access.server == "https://[fd00::1]:443"


def test_no_cluster_at_all_is_said_to_be_so(tmp_path: Path):
    with pytest.raises(ConfigurationError, match="no Kubernetes cluster is configured") as caught:
        load_access(KubernetesAddress(), {"HOME": str(tmp_path)})
    assert "kubeconfig=" in caught.value.hint


def test_a_user_without_a_home_directory_has_no_kubeconfig(monkeypatch: pytest.MonkeyPatch):
    make_homeless(monkeypatch)
    with pytest.raises(ConfigurationError, match="no Kubernetes cluster is configured"):
        load_access(KubernetesAddress(), {})


async def test_several_files_in_the_variable_are_merged_and_the_first_wins(tmp_path: Path):
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    (second / "token").write_text("beside-the-second")
    here = {"current-context": "prod", "contexts": config_of()["contexts"], "users": [], "clusters": []}
    there = config_of(user={"tokenFile": "token"})
    there["current-context"] = "test"
    there["contexts"] = [{"name": "prod", "context": {"cluster": "d", "user": "u"}}]
    paths = [
        written(first, here).kubeconfig or "",
        str(tmp_path / "not-there"),
        written(second, there).kubeconfig or "",
    ]
    access = load_access(KubernetesAddress(), {"KUBECONFIG": os.pathsep.join(paths)})
    assert access.server == "https://prod.test:6443", "the first file says which context, and what it is"
    assert (await access.credential(HandClock())).token == "beside-the-second", "a path is relative to its own file"
    swapped = load_access(KubernetesAddress(), {"KUBECONFIG": os.pathsep.join(paths[::-1])})
    assert swapped.server == "https://test.test"


def test_one_damaged_file_among_several_is_an_error(tmp_path: Path):
    good = written(tmp_path, config_of()).kubeconfig or ""
    (tmp_path / "bad").write_text("users: 5\ntoken: " + SECRET_TOKEN)
    with pytest.raises(ConfigurationError, match="must be YAML") as caught:
        load_access(KubernetesAddress(), {"KUBECONFIG": f"{good}{os.pathsep}{tmp_path / 'bad'}"})
    assert SECRET_TOKEN not in str(caught.value)


# --- tokens -----------------------------------------------------------------------------------------------------------


async def test_a_service_accounts_token_is_read_again_every_minute_and_when_it_was_refused(
    pod: tuple[dict[str, str], Path],
):
    environment, account = pod
    clock = HandClock()
    access = load_access(KubernetesAddress(), environment, service_account=str(account))
    first = await access.credential(clock)
    assert first.token == "first-token"
    (account / "token").write_text("second-token")
    clock.now += 59
    assert await access.credential(clock) == first
    assert (await access.credential(clock, rejected=first)).token == "second-token"
    (account / "token").write_text("third-token")
    clock.now += 60
    assert (await access.credential(clock)).token == "third-token"


async def test_a_token_that_was_replaced_is_used_after_one_refusal(tmp_path: Path):
    with FakeKubernetes() as fake:
        old, new = fake.account("a", ROLE), fake.account("a", ROLE)
        (tmp_path / "token").write_text(old)
        address = written(tmp_path, config_of({"server": fake.url}, {"tokenFile": "token"}))
        async with KubernetesSecretProvider(address, retry=RetryPolicy(attempts=1), timeout=PATIENCE) as provider:
            await provider.create("default/root", b"value")
            (tmp_path / "token").write_text(new)
            fake.revoke(old)
            assert (await provider.read("default/root")).value.reveal() == b"value"
            async for _ in provider.watch("default/root"):
                break
            (tmp_path / "token").unlink()
            fake.revoke(new)
            with pytest.raises(ProviderConfigurationError, match="token file"):
                await provider.read("default/root")


ROLE = {
    "metadata": {"namespace": "default"},
    "rules": [{"apiGroups": [""], "resources": ["secrets"], "verbs": ["get", "watch", "create"]}],
}


# --- TLS --------------------------------------------------------------------------------------------------------------


async def test_over_tls_with_the_authority_in_the_kubeconfig(tmp_path: Path, pair: tuple[Path, Path]):
    encoded = base64.b64encode(pair[0].read_bytes()).decode()
    with FakeKubernetes(tls=(str(pair[0]), str(pair[1]))) as fake:
        for cluster in (
            {"certificate-authority-data": encoded},
            {"certificate-authority": str(pair[0])},
            {"certificate-authority-data": encoded, "tls-server-name": "localhost"},
        ):
            address = written(tmp_path, config_of({"server": fake.url, **cluster}, {"token": ADMIN_TOKEN}))
            async with KubernetesSecretProvider(address, timeout=PATIENCE) as provider:
                await provider.create("default/root", b"value")
                await provider.delete("default/root")


@pytest.mark.parametrize("cluster", [{}, {"tls-server-name": "elsewhere.test"}], ids=["authority", "name"])
async def test_a_server_that_cannot_prove_who_it_is_gets_no_token(
    tmp_path: Path, pair: tuple[Path, Path], cluster: dict[str, str]
):
    if cluster:
        cluster = {**cluster, "certificate-authority": str(pair[0])}
    with FakeKubernetes(tls=(str(pair[0]), str(pair[1]))) as fake:
        address = written(tmp_path, config_of({"server": fake.url, **cluster}, {"token": ADMIN_TOKEN}))
        async with KubernetesSecretProvider(address, retry=RetryPolicy(attempts=1), timeout=PATIENCE) as provider:
            with pytest.raises(ProviderConfigurationError, match="is not trusted"):
                await provider.read("default/root")
        assert fake.asked == []


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="there are no files in memory here")
def test_a_key_in_the_kubeconfig_never_becomes_a_file_on_a_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cert, key = certificate("somebody")
    user = {
        "client-certificate-data": base64.b64encode(cert).decode(),
        "client-key-data": base64.b64encode(key).decode(),
    }
    address = written(tmp_path, config_of(user=user))
    loaded: list[str] = []
    load = ssl.SSLContext.load_cert_chain

    def seen(self: ssl.SSLContext, certfile: str, keyfile: str, password: object = None) -> None:
        loaded.extend((os.path.realpath(certfile), os.path.realpath(keyfile)))
        load(self, certfile, keyfile, password)

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", seen)
    access = load_access(address, {})
    assert access.verify is not None
    assert len(loaded) == 4, "certificate and key, each tried in another context first"
    assert all(path.startswith("/memfd:") for path in loaded)
    left = [entry.resolve().name for entry in Path("/proc/self/fd").iterdir()]
    assert not any(name.startswith("memfd:goatherd") for name in left)


def test_client_certificates_may_be_files_beside_the_kubeconfig(tmp_path: Path, pair: tuple[Path, Path]):
    for each in pair:
        (tmp_path / each.name).write_bytes(each.read_bytes())
    user = {"client-certificate": "tls.crt", "client-key": "tls.key"}
    assert load_access(written(tmp_path, config_of(user=user)), {}).verify is not None


# --- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cluster", "user", "told"),
    [
        ({}, {"exec": "aws"}, "exec must be a mapping"),
        ({}, {"exec": {"command": "aws"}}, "exec must have the apiVersion client.authentication.k8s.io/v1 or"),
        ({}, {"exec": {"command": "a", "apiVersion": "client.authentication.k8s.io/v1alpha1"}}, "have the apiVersion"),
        ({}, {"exec": {"apiVersion": "client.authentication.k8s.io/v1"}}, "exec.command is missing"),
        ({}, {"exec": {**PLUGIN, "args": "x"}}, "exec.args must be a list"),
        ({}, {"exec": {**PLUGIN, "env": [{"name": "X", "value": 1}]}}, "each item of exec.env must have a `name`"),
        ({}, {"auth-provider": {"name": "gcp"}}, "auth-provider, which is not supported"),
        ({}, {"username": "u", "password": SECRET_TOKEN}, "username, which is not supported"),
        ({}, {"token": "t", "as": "root"}, "as, which is not supported"),
        ({"insecure-skip-tls-verify": True}, None, "insecure-skip-tls-verify, which is not supported"),
        ({"proxy-url": "http://proxy.test"}, None, "proxy-url, which is not supported"),
        ({"server": "ftp://x"}, None, "cluster.server must be an https URL"),
        ({"server": "https://u:p@x"}, None, "must have only a host"),
        ({"server": None}, None, "cluster.server is missing"),
        ({"server": "https://[x]:1"}, None, "cluster.server must be a URL"),
        ({"server": 7}, None, "server must be a string"),
        ({"certificate-authority": "/not/there"}, None, r"CA certificate cannot be used \(No such file"),
        ({"certificate-authority-data": "*"}, None, r"CA certificate cannot be used \(Error\)"),
        ({}, {"client-key-data": "*"}, "client-key-data must be base64"),
        ({}, {"client-certificate": "/a"}, "client-key is missing, but client-certificate is given"),
        ({}, {"client-key": "/a"}, "client-certificate is missing, but client-key is given"),
        ({}, {"client-certificate": "/a", "client-key": "/b"}, "the client certificate or its key cannot be used"),
    ],
)
def test_what_is_not_supported_or_wrong_is_said_to_be_so(
    tmp_path: Path, cluster: dict[str, Any], user: dict[str, Any] | None, told: str
):
    with pytest.raises(ConfigurationError, match=told) as caught:
        load_access(written(tmp_path, config_of(cluster, user)), {})
    assert SECRET_TOKEN not in str(caught.value)
    assert caught.value.hint
    assert caught.value.hint != ConfigurationError.hint, "an option is not what is wrong"


@pytest.mark.parametrize(("server", "good"), [("http://127.0.0.1:8001", True), ("http://api.test", False)])
def test_a_server_without_tls_is_refused_unless_it_is_this_machine(tmp_path: Path, server: str, good: bool):
    address = written(tmp_path, config_of({"server": server}))
    if good:
        assert load_access(address, {}).verify is None
    else:
        with pytest.raises(ConfigurationError, match="https"):
            load_access(address, {})


@pytest.mark.parametrize(
    "raw",
    ["", "just text", "- a", "{", "a: [", f"token: {SECRET_TOKEN}\n\t- x: [", "!!python/object/apply:os.system [x]"],
)
def test_a_damaged_kubeconfig_is_named_and_not_quoted(tmp_path: Path, raw: str):
    (tmp_path / "config").write_text(raw)
    with pytest.raises(ConfigurationError, match="config") as caught:
        load_access(KubernetesAddress(kubeconfig=str(tmp_path / "config")), {})
    error: BaseException | None = caught.value
    while error is not None:
        assert SECRET_TOKEN not in str(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def test_a_context_that_is_not_there_is_answered_with_those_that_are(tmp_path: Path):
    address = written(tmp_path, config_of())
    with pytest.raises(ConfigurationError, match="no context 'stage'") as caught:
        load_access(KubernetesAddress(kubeconfig=address.kubeconfig, context="stage"), {})
    assert caught.value.hint == "It has: prod, test."


async def test_a_kubeconfig_that_is_not_there_is_said_when_the_provider_is_entered(tmp_path: Path):
    provider = KubernetesSecretProvider(KubernetesAddress(kubeconfig=str(tmp_path / "none")))
    with pytest.raises(GoatherdError, match="cannot read the kubeconfig"):
        await provider.__aenter__()
