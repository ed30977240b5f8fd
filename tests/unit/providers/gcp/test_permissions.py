"""The printed permissions. Tests on the fake (tests/contract) check that they suffice and that none can be left out."""

from __future__ import annotations

import pytest

from goatherd.errors import ConfigurationError
from goatherd.providers.gcp.permissions import permissions, policy


def test_a_server_gets_the_predefined_role_for_one_secret():
    assert policy("server", "gcp://my-project/goatdb-root") == (
        "# Goatherd server: reads the identity, and can change nothing.\n"
        "MEMBER=serviceAccount:goatherd-server@my-project.iam.gserviceaccount.com\n"
        'gcloud secrets add-iam-policy-binding "goatdb-root" --project=my-project \\\n'
        '    --member="$MEMBER" --role=roles/secretmanager.secretAccessor --condition=None\n'
    )


def test_a_rotator_gets_a_role_of_its_own_with_exactly_its_permissions():
    text = policy("rotator", "my-project/goatdb-root?location=europe-west3")
    listed = {line.removeprefix("- ") for line in text.splitlines() if line.startswith("- ")}
    assert listed == permissions("rotator")
    assert not {"secretmanager.secrets.create", "secretmanager.secrets.delete"} & listed
    assert "gcloud iam roles create goatherdRotator --project=my-project --file=goatherdRotator.yaml" in text
    assert "--location=europe-west3" in text


def test_an_admin_gets_it_on_the_project_because_the_secret_is_not_there_yet():
    text = policy("admin", "gcp://my-project/goatdb-root")
    assert "gcloud projects add-iam-policy-binding my-project" in text
    assert "- secretmanager.secrets.create" in text
    assert "description: The admin does what the rotator does, and creates and deletes the secret.\n" in text
    assert "# These rights hold for every secret of the project my-project" in text


def test_each_organizations_secret_gets_its_own_grant():
    text = policy("server", "gcp://my-project/goatdb-{org}-root")
    assert 'add-iam-policy-binding "goatdb-${ORG}-root"' in text
    assert "ORG=acme" in text


@pytest.mark.parametrize("role", ["", "owner", "Server"])
def test_an_unknown_role_is_refused_with_the_known_ones(role: str):
    with pytest.raises(ConfigurationError) as caught:
        policy(role, "gcp://my-project/root")
    assert caught.value.hint == "Roles: server, rotator, admin."


@pytest.mark.parametrize("name", ['a"b', "$(id)", "a;b", "a b", "`x`", "a%22b", "{org}{x}"])
def test_a_name_that_a_shell_would_read_is_refused(name: str):
    with pytest.raises(ConfigurationError):
        policy("server", f"gcp://my-project/{name}")
    with pytest.raises(ConfigurationError):
        policy("server", f"gcp://{name}/root")
