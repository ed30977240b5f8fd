"""The printed Roles: exactly the verbs, exactly the Secret."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from goatherd.errors import ConfigurationError, ProviderAccessDeniedError
from goatherd.providers.base import RetryPolicy
from goatherd.providers.kubernetes.permissions import policy, volume_policy
from goatherd.providers.values import STABLE
from tests.contract.kubernetes.clients import provider_of
from tests.fakes.kubernetes_fake import FakeKubernetes

ROOT = "goatdb/root"
NEVER = RetryPolicy(attempts=1, base=timedelta(0))


@pytest.fixture
def fake() -> Iterator[FakeKubernetes]:
    with FakeKubernetes(namespaces=("goatdb",)) as running:
        yield running


def documents(role: str) -> list[Any]:
    return list(yaml.safe_load_all(policy(role, f"k8s://{ROOT}?context=prod")))


@pytest.mark.parametrize(
    ("role", "verbs"),
    [
        ("server", ["get", "watch"]),
        ("rotator", ["get", "watch", "update"]),
        ("admin", ["get", "watch", "update", "delete"]),
    ],
)
def test_a_role_names_one_secret_and_its_verbs(role: str, verbs: list[str]):
    made, binding = documents(role)
    assert made["metadata"] == binding["metadata"] == {"namespace": "goatdb", "name": f"goatherd-{role}-root"}
    assert made["rules"][0] == {"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["root"], "verbs": verbs}
    create = [{"apiGroups": [""], "resources": ["secrets"], "verbs": ["create"]}]
    assert made["rules"][1:] == (create if role == "admin" else [])
    assert binding["roleRef"]["name"] == made["metadata"]["name"]
    assert binding["subjects"] == [{"kind": "ServiceAccount", "namespace": "goatdb", "name": f"goatherd-{role}"}]


def test_the_danger_of_create_is_said_where_it_is_printed():
    assert "may create any Secret" in policy("admin", ROOT)
    assert "may create any Secret" not in policy("rotator", ROOT)


@pytest.mark.parametrize("role", ["", "root", "Server", "reader"])
def test_an_unknown_role_is_answered_with_the_known_ones(role: str):
    with pytest.raises(ConfigurationError) as caught:
        policy(role, ROOT)
    assert caught.value.hint == "Roles: server, rotator, admin."


@pytest.mark.parametrize(
    "uri", ['ns/a"]\n    verbs: ["*"]', "ns/*", "*/root", "ns/root\nrules: []", "root", "vault", "ns/a: b", "ns/a#b"]
)
def test_a_name_that_would_change_the_policy_is_refused(uri: str):
    with pytest.raises(ConfigurationError):
        policy("server", uri)


@pytest.mark.parametrize("uri", ["k8s://ns/{org}", "k8s://{org}/root"])
def test_a_role_for_many_organizations_is_refused_with_what_to_do(uri: str):
    with pytest.raises(ConfigurationError) as caught:
        policy("server", uri)
    assert "each organization" in caught.value.hint


async def test_under_its_role_each_may_do_what_it_is_for_and_nothing_more(fake: FakeKubernetes, tmp_path: Path):
    tokens = {role: fake.account(role, documents(role)[0]) for role in ("server", "rotator", "admin")}
    async with (
        provider_of(fake, tmp_path, token=tokens["server"], retry=NEVER) as reader,
        provider_of(fake, tmp_path, token=tokens["rotator"], retry=NEVER) as rotator,
        provider_of(fake, tmp_path, token=tokens["admin"], retry=NEVER) as admin,
    ):
        first = await admin.create(ROOT, b"first")
        await admin.create("goatdb/other", b"other")
        assert (await reader.read(ROOT)).value.reveal() == b"first"
        async for _ in reader.watch(ROOT):
            break
        second = await rotator.write(ROOT, b"second", expected=first.id)
        await rotator.label(ROOT, STABLE, second.id, expected=None)
        await rotator.destroy(ROOT, first.id)
        for denied in (
            reader.write(ROOT, b"third", expected=second.id),
            reader.create("goatdb/mine", b"x"),
            reader.delete(ROOT),
            reader.read("goatdb/other"),
            rotator.create("goatdb/mine", b"x"),
            rotator.delete(ROOT),
            rotator.write("goatdb/other", b"x", expected="1"),
            admin.delete("goatdb/other"),
        ):
            with pytest.raises(ProviderAccessDeniedError) as caught:
                await denied
            assert "goatherd policy k8s" in caught.value.hint
        await admin.delete(ROOT)


def test_a_pod_that_reads_a_mounted_secret_needs_the_mount_and_no_right():
    made = yaml.safe_load(volume_policy("server", "k8s-volume:///var/run/secrets/goatherd"))["spec"]
    assert made["automountServiceAccountToken"] is False
    assert made["containers"][0]["volumeMounts"] == [
        {"name": "identity", "mountPath": "/var/run/secrets/goatherd", "readOnly": True}
    ]
    assert made["volumes"][0]["secret"]["defaultMode"] == 0o440


@pytest.mark.parametrize("role", ["rotator", "admin"])
def test_who_changes_something_is_sent_to_the_address_in_the_api(role: str):
    with pytest.raises(ConfigurationError) as caught:
        volume_policy(role, "/var/run/secrets/goatherd")
    assert f"goatherd policy k8s --role {role}" in caught.value.hint


@pytest.mark.parametrize(
    "uri", ["", "relative", '/a"\n  readOnly: false', "/a/../b", "/", "/a b", "k8s-volume://host/x"]
)
def test_a_directory_that_would_change_the_manifest_is_refused(uri: str):
    with pytest.raises(ConfigurationError):
        volume_policy("server", uri)
