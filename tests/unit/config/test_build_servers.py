"""A server built from options, and the environment that a server gets from its agent."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from goatherd.cluster.discovery import Place, PlatformNames
from goatherd.config.build_servers import build_child_environment, build_door, build_organizations, build_server
from goatherd.config.options import load_options
from goatherd.errors import ConfigurationError
from goatherd.identity.transitions import create_document
from goatherd.operations.run_agent import ServerFiles
from goatherd.serving.caller_limits import CallerLimits
from goatherd.settings.store import CloudSecretSettings
from tests.unit.node.nodes import cluster, now_ms, root


@pytest.mark.parametrize(
    ("public_url", "expected"),
    [
        ("https://goats.example/", "https://goats.example"),
        ("https://goats.example:443", "https://goats.example"),
        ("http://goats.example:443", "http://goats.example:443"),
        (None, None),
    ],
)
def test_browsers_may_use_a_server_from_the_public_url(
    tmp_path: Path, public_url: str | None, expected: str | None
) -> None:
    given = {"serve_data": str(tmp_path), "provider": "file:///srv/keys/root"}
    environ = {} if public_url is None else {"GOATHERD_SERVE_PUBLIC_URL": public_url}
    assert build_server(load_options(given, environ, directory=tmp_path)).base_url == expected


def test_a_connection_stays_open_for_longer_than_that_of_a_load_balancer(tmp_path: Path) -> None:
    def idle_timeouts(**given: str) -> set[timedelta]:
        own = {"serve_data": str(tmp_path), "provider": "file:///srv/keys/root"}
        options = load_options({**own, **given}, {}, directory=tmp_path)
        door = build_door(options, "http://127.0.0.1:1", host="127.0.0.1", port=0, public_url=None, private=False)
        return {build_server(options).limiter.limits.idle_timeout, door.keywords["limits"].idle_timeout}

    assert idle_timeouts() == {CallerLimits().idle_timeout}
    assert idle_timeouts(limits_idle_timeout="620s") == {timedelta(seconds=620)}
    with pytest.raises(ConfigurationError, match="clients reuse a connection for 5s"):
        idle_timeouts(limits_idle_timeout="5s")


def test_the_key_that_seals_the_last_known_good_identity_is_not_passed_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SEAL", "secret")
    monkeypatch.setenv("OTHER", "kept")
    flags: dict[str, Any] = {"settings_last_known_good_key": "env:SEAL", "settings_last_known_good": tmp_path / "x"}
    environ = build_child_environment(load_options(flags, {}, directory=tmp_path))
    assert "SEAL" not in environ
    assert environ["OTHER"] == "kept"


@pytest.mark.parametrize(
    ("store", "hidden", "kept"),
    [
        ("aws://eu-central-1/x", ["AWS_SECRET_ACCESS_KEY", "AWS_CONTAINER_AUTHORIZATION_TOKEN"], ["AWS_REGION"]),
        ("azure://vault/x", ["AZURE_CLIENT_SECRET", "IDENTITY_HEADER"], ["AZURE_OTHER"]),
        ("gcp://project/x", ["GOOGLE_APPLICATION_CREDENTIALS"], ["GOOGLE_CLOUD_PROJECT"]),
        ("vault:///secret/x", ["VAULT_TOKEN", "BAO_TOKEN"], ["AWS_SECRET_ACCESS_KEY"]),
        ("openbao:///secret/x", ["VAULT_SECRET_ID", "BAO_TOKEN"], []),
        ("k8s://prod/x", ["KUBECONFIG"], ["KUBERNETES_SERVICE_HOST"]),
        ("file:///srv/keys/x", [], ["AWS_SECRET_ACCESS_KEY", "VAULT_TOKEN"]),
    ],
)
def test_what_opens_the_store_is_not_in_the_servers_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: str, hidden: list[str], kept: list[str]
) -> None:
    for name in (*hidden, *kept):
        monkeypatch.setenv(name, "a credential")
    environ = build_child_environment(load_options({"provider": store}, {}, directory=tmp_path))
    assert not set(hidden) & set(environ)
    assert set(kept) <= set(environ)
    passed = build_child_environment(
        load_options({"provider": store, "agent_pass_env": hidden}, {}, directory=tmp_path)
    )
    assert set(hidden) <= set(passed)


async def test_an_agent_asks_a_server_whose_url_a_client_writes_differently(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def find(_: PlatformNames) -> list[Place]:
        return [Place("http://[::FFFF:127.0.0.1]:1")]

    monkeypatch.setattr(PlatformNames, "find", find)
    given = {"provider": f"file://{tmp_path}/keys", "agent_lease": "none", "nodes": ("dns://localhost:1",)}
    options = load_options(given, {}, directory=tmp_path)
    files = ServerFiles(data=tmp_path, orgs=("localhost",), memory=None, creates=False)
    settings = build_organizations(options, files, accept_identity=False)[0][0]._settings
    assert isinstance(settings, CloudSecretSettings)
    assert settings.rejections is not None
    assert not await settings.rejections(create_document(root(), now_ms()))


@pytest.mark.slow
async def test_an_agent_asks_the_servers_that_it_finds_by_dns(tmp_path: Path) -> None:
    document = create_document(root(), now_ms())
    async with cluster(tmp_path / "servers", 1, [document], links=lambda _: ()) as (node,):
        nodes = (node.url.replace("http://127.0.0.1", "dns://localhost"),)
        given: dict[str, Any] = {"provider": f"file://{tmp_path}/keys", "agent_lease": "none", "nodes": nodes}
        options = load_options(given, {}, directory=tmp_path)
        files = ServerFiles(data=tmp_path, orgs=("localhost",), memory=None, creates=False)
        ((organization,), _) = build_organizations(options, files, accept_identity=False)
        settings = organization._settings
        assert isinstance(settings, CloudSecretSettings)
        assert settings.introductions is not None
        assert settings.rejections is not None
        found = {each.place: each.problem async for each in settings.introductions(document)}
        assert found[node.url] is None, "the name may have an IPv6 address, too"
        assert not await settings.rejections(document)
        assert await settings.rejections(create_document(root(), now_ms())) == [node.url]
        options = load_options({**given, "nodes": ("dns://name.invalid:80",)}, {}, directory=tmp_path)
        settings = build_organizations(options, files, accept_identity=False)[0][0]._settings
        assert isinstance(settings, CloudSecretSettings)
        assert settings.introductions is not None
        assert settings.rejections is not None
        problems = [each.problem or "" async for each in settings.introductions(document)]
        assert "name.invalid" in problems[-1]
        assert not await settings.rejections(document)
