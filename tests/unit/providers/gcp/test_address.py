"""Addresses and resource names of Google Secret Manager, and GoatDB's configuration shape."""

from __future__ import annotations

import pytest

from goatherd.errors import ConfigurationError, ProviderConfigurationError
from goatherd.providers.gcp.address import GCPAddress, check_name, parse_address, parse_number, parse_resource
from goatherd.providers.gcp.provider import GCPSecretProvider


def test_an_address_is_a_project_and_a_secret():
    address, secret_id = parse_address("gcp://my-project/goatdb-{org}-root")
    assert (address, secret_id) == (GCPAddress(project="my-project"), "goatdb-{org}-root")
    assert address.host == "secretmanager.googleapis.com"
    assert address.version_name("herd", 3) == "projects/my-project/secrets/herd/versions/3"


def test_a_location_means_a_regional_secret_and_its_own_host():
    address, _ = parse_address("gcp://my-project/root?location=europe-west3")
    assert address.host == "secretmanager.europe-west3.rep.googleapis.com"
    assert address.secret_name("herd") == "projects/my-project/locations/europe-west3/secrets/herd"


def test_an_endpoint_replaces_the_host_and_a_project_may_have_a_domain():
    address, _ = parse_address(
        "gcp://example.com:herd/root?endpoint=secrets.p.example.com:443&replication=europe-west3"
    )
    assert address.host == "secrets.p.example.com:443"
    assert address.parent == "projects/example.com:herd"
    assert address.replication == ("europe-west3",)


@pytest.mark.parametrize(
    "uri",
    [
        "gcp://",
        "gcp://my-project",
        "gcp://my-project/",
        "gcp:///root",
        "gcp://my-project/a/b",
        "gcp://my-project/root#x",
        "gcp://My_Project/root",
        "gcp://my-project/root?region=europe-west3",
        "gcp://my-project/root?location=a&location=b",
        "gcp://my-project/root?location=",
        "gcp://my-project/root?location=../x",
        "gcp://my-project/root?location=europe-west3&replication=europe-west4",
        "gcp://my-project/root?replication=europe-west3,",
        "gcp://my-project/root?endpoint=https://x",
        "gcp://my-project/root?endpoint=a/b",
        "aws://my-project/root",
    ],
)
def test_what_is_no_address_is_refused(uri: str):
    with pytest.raises(ConfigurationError):
        parse_address(uri)


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("projects/1234/secrets/herd/versions/3", 3),
        ("projects/my-project/secrets/herd/versions/3", 3),
        ("projects/1234/secrets/other/versions/3", None),
        ("projects/1234/locations/europe-west3/secrets/herd/versions/3", None),
        ("projects/1234/secrets/herd", None),
        ("projects/1234/secrets/herd/versions/latest", None),
        ("projects/1234/secrets/herd/versions/0", None),
        ("projects/1234/secrets/herd/versions/3/x", None),
        ("x/projects/1234/secrets/herd/versions/3", None),
        ("", None),
    ],
)
def test_an_answers_name_must_be_this_secrets_whatever_it_calls_the_project(name: str, number: int | None):
    assert GCPAddress(project="my-project").number_in(name, "herd") == number


def test_numbers_are_parsed_as_the_service_writes_them():
    assert parse_number("12") == 12
    for text in ("0", "01", "-1", "1 ", "\u0661", "", "1.0", "latest", "9" * 19):
        assert parse_number(text) is None


def test_a_name_has_no_dot_and_no_slash_also_where_other_stores_allow_them():
    check_name("goatdb-root_1")
    for name in ("a.b", "a/b", "", "x" * 256, "ä"):
        with pytest.raises(ConfigurationError, match="Google"):
            check_name(name)


async def test_an_organization_with_a_dot_is_refused_before_the_store_is_asked():
    provider, _ = GCPSecretProvider.from_uri("gcp://my-project/goatdb-{org}")
    with pytest.raises(ProviderConfigurationError, match="Google"):
        await provider.read("goatdb-example.com")


def test_a_full_name_names_the_project_and_the_location():
    assert parse_resource("projects/p/secrets/s") == ("p", None, "s")
    assert parse_resource("projects/p/locations/l/secrets/s") == ("p", "l", "s")
    assert parse_resource("projects/p/secrets/s/versions/latest") is None


@pytest.mark.parametrize(
    ("config", "project", "location", "secret_id"),
    [
        ({"secretId": "herd", "project": "my-project"}, "my-project", None, "herd"),
        ({"secretId": "herd"}, "from-environment", None, "herd"),
        ({"secretId": "projects/my-project/secrets/herd"}, "my-project", None, "herd"),
        ({"secretId": "herd", "region": "europe-west3"}, "from-environment", "europe-west3", "herd"),
        ({"secretId": "projects/my-project/locations/eu/secrets/a-{org}"}, "my-project", "eu", "a-{org}"),
    ],
)
def test_the_configuration_shape_of_goatdb(
    config: dict[str, object], project: str, location: str | None, secret_id: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "from-environment")
    provider, found = GCPSecretProvider.from_config({"provider": "gcp", **config})
    assert (provider.address.project, provider.address.location, found) == (project, location, secret_id)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"secretId": ""},
        {"secretId": 7},
        {"secretId": "root"},
        {"secretId": "root", "project": "my-project", "profile": "x"},
        {"secretId": "root", "project": 7},
        {"secretId": "projects/my-project/secrets/herd", "project": "another"},
        {"secretId": "projects/my-project/secrets/herd", "region": "europe-west3"},
        {"secretId": "projects/my-project/secrets/herd/versions/latest"},
    ],
)
def test_a_configuration_that_lacks_something_or_contradicts_itself_is_refused(
    config: dict[str, object], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("GOOGLE_CLOUD_PROJECT", raising=False)
    with pytest.raises(ConfigurationError, match="cloudConfig"):
        GCPSecretProvider.from_config({"provider": "gcp", **config})
