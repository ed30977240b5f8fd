"""Which Secret an address names."""

from __future__ import annotations

import pytest

from goatherd.errors import ConfigurationError
from goatherd.providers.kubernetes.address import parse_address, split_secret_id
from goatherd.providers.kubernetes.provider import KubernetesSecretProvider
from goatherd.providers.values import secret_id_for


@pytest.mark.parametrize(
    ("uri", "secret_id", "kubeconfig", "context"),
    [
        ("k8s://goatdb/root", "goatdb/root", None, None),
        ("k8s:///goatdb/root", "goatdb/root", None, None),
        ("k8s://goatdb/goat.{org}.root", "goatdb/goat.{org}.root", None, None),
        ("k8s://{org}/root", "{org}/root", None, None),
        ("k8s://ns/root?context=prod", "ns/root", None, "prod"),
        ("k8s://ns/root?context=a%40b&kubeconfig=/etc/kube%20config", "ns/root", "/etc/kube config", "a@b"),
    ],
)
def test_an_address_is_a_namespace_and_a_name(uri: str, secret_id: str, kubeconfig: str | None, context: str | None):
    address, found = parse_address(uri)
    assert (found, address.kubeconfig, address.context) == (secret_id, kubeconfig, context)


@pytest.mark.parametrize(
    "uri",
    [
        "k8s://",
        "k8s://ns",
        "k8s://ns/",
        "k8s:///root",
        "k8s://ns/a/b",
        "k8s://ns/Root",
        "k8s://ns.x/root",
        "k8s://ns/a_b",
        "k8s://ns/-a",
        "k8s://ns/a..b",
        f"k8s://ns/{'a.' * 127}",
        "k8s://ns/root#x",
        "k8s://ns/root?contxt=x",
        "k8s://ns/root?context=",
        "k8s://ns/root?context=a&context=b",
        "k8s://ns/%2e%2e",
        "k8s://ns/a%2fb",
        "k8s://ns:443/root",
    ],
)
def test_what_kubernetes_would_not_take_is_refused(uri: str):
    with pytest.raises(ConfigurationError):
        parse_address(uri)


def test_the_configuration_shape_says_the_same():
    address, secret_id = parse_address(
        {"provider": "k8s", "secretId": "root", "namespace": "ns", "context": "c", "region": "x"}
    )
    assert (secret_id, address.context, address.kubeconfig) == ("ns/root", "c", None)
    for wrong in (
        {"provider": "k8s"},
        {"provider": "k8s", "secretId": 7},
        {"provider": "k8s", "secretId": "root"},
        {"provider": "k8s", "secretId": "a/b", "token": "x"},
        {"provider": "k8s", "secretId": "a/b", "context": ""},
    ):
        with pytest.raises(ConfigurationError):
            parse_address(wrong)


@pytest.mark.parametrize("org", ["Acme", "a_b", "a.b.", "-a"])
def test_an_organization_that_kubernetes_cannot_name_is_refused_when_the_secret_is_named(org: str):
    with pytest.raises(ConfigurationError):
        split_secret_id(secret_id_for("ns/goat.{org}", org))


def test_a_provider_can_be_made_without_a_cluster():
    provider, secret_id = KubernetesSecretProvider.from_uri("k8s://ns/root?kubeconfig=/not/there")
    assert secret_id == "ns/root"
    assert provider.guarantees.cas
