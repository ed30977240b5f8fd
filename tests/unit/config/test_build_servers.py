"""What the options build for servers: the environment that a server gets from its agent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from goatherd.config.build_servers import build_child_environment
from goatherd.config.options import load_options


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
